//! The part of JSON Schema that the fixtures use, strictly: a keyword that is not known here is an error.

use fancy_regex::Regex;
use serde_json::Value;

/// What is wrong with a value; nothing if it is as its schema says.
pub(crate) fn errors(schema: &Value, root: &Value, value: &Value, at: &str) -> Vec<String> {
    let keywords = schema.as_object().expect("a schema is an object");
    if let Some(name) = keywords.get("$ref") {
        let name = name.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
        return errors(&root["$defs"][name], root, value, at);
    }
    let mut found = Vec::new();
    for (keyword, rule) in keywords {
        let wrong = match keyword.as_str() {
            "type" => !is_type(rule.as_str().unwrap(), value),
            "enum" => !rule.as_array().unwrap().contains(value),
            "pattern" => {
                let pattern = Regex::new(rule.as_str().unwrap()).unwrap();
                value.as_str().is_some_and(|text| !pattern.is_match(text).unwrap())
            }
            "maxLength" => value.as_str().is_some_and(|text| text.len() as u64 > rule.as_u64().unwrap()),
            "minimum" => value.as_f64().is_some_and(|number| number < rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_some_and(|number| number > rule.as_f64().unwrap()),
            "minItems" => value.as_array().is_some_and(|items| (items.len() as u64) < rule.as_u64().unwrap()),
            "maxItems" => value.as_array().is_some_and(|items| items.len() as u64 > rule.as_u64().unwrap()),
            "required" => {
                let missing = |key: &&Value| value.get(key.as_str().unwrap()).is_none();
                let keys = rule.as_array().unwrap().iter().filter(missing);
                found.extend(keys.map(|key| format!("{at}: {key} is missing")));
                false
            }
            "items" => {
                let items = value.as_array().into_iter().flatten().enumerate();
                found.extend(items.flat_map(|(n, item)| errors(rule, root, item, &format!("{at}[{n}]"))));
                false
            }
            "properties" | "additionalProperties" => false,
            other => panic!("{other}: the fixture uses a keyword that is not known here"),
        };
        if wrong {
            found.push(format!("{at}: {value} is not {keyword} {rule}"));
        }
    }
    let others = keywords.get("additionalProperties");
    for (key, inner) in value.as_object().into_iter().flatten() {
        let at = format!("{at}.{key}");
        match (keywords.get("properties").and_then(|known| known.get(key)), others) {
            (Some(schema), _) => found.extend(errors(schema, root, inner, &at)),
            (None, Some(Value::Object(schema))) => {
                found.extend(errors(&Value::Object(schema.clone()), root, inner, &at));
            }
            (None, _) => found.push(format!("{at}: there is no such field")),
        }
    }
    found
}

fn is_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("{other}: the fixture uses a type that is not known here"),
    }
}
