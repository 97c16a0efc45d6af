//! The form that an answer is to have: `response_format`, as OpenAI has it, and vLLM's `structured_outputs`.

use llguidance::api::GrammarWithLexer;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Fields;

/// Bytes of a schema, or of all choices.
const MAX_BYTES: usize = 128 << 10;
/// Bytes of an expression, also in a schema: what it costs grows with their square.
const MAX_REGEX: usize = 4 << 10;
/// Bytes of a grammar.
const MAX_GRAMMAR: usize = 8 << 10;
/// How deep it may be nested.
const MAX_DEPTH: usize = 64;
/// Space between the parts of JSON, so that an answer cannot consist of it.
const SPACE: &str = r"[\x20\x0A\x0D\x09]{1,20}";
/// Names that vLLM had.
const OLDER: [&str; 4] = ["guided_json", "guided_regex", "guided_choice", "guided_grammar"];

/// What an answer is to look like.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Form {
    /// Values of a JSON schema.
    Json(Value),
    /// Texts of a regular expression.
    Regex(String),
    /// One of some texts.
    Choice(Vec<String>),
    /// Texts of a grammar in Lark's syntax.
    Grammar(String),
}

/// A form, and the field that asks for it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Formed {
    pub(crate) form: Form,
    pub(crate) param: String,
}

impl Formed {
    /// What a request asks for, if it does.
    pub(crate) fn read(fields: &Fields) -> Result<Option<Self>, ApiError> {
        for name in OLDER {
            let now = name.trim_start_matches("guided_");
            if fields.value(name).is_some() {
                let message = format!("`{name}` is called `structured_outputs`: {{\"{now}\": ...}} now");
                return Err(ApiError::field(name, message));
            }
        }
        let (asked, structured) = (response_format(fields)?, structured_outputs(fields)?);
        match (asked, structured) {
            (Some(_), Some(formed)) => {
                let message =
                    "`response_format` and `structured_outputs` cannot both say what the answer is to be";
                Err(ApiError::field(formed.param, message))
            }
            (asked, structured) => Ok(asked.or(structured)),
        }
    }

    /// The grammar of the form, called `name`.
    pub(crate) fn grammar(self, name: &str) -> Result<GrammarWithLexer, ApiError> {
        let Formed { form, param } = self;
        let grammar = match form {
            Form::Json(schema) => {
                GrammarWithLexer { json_schema: Some(checked(schema, &param)?), ..lark("") }
            }
            Form::Regex(regex) => {
                check(&regex, MAX_REGEX, &param)?;
                GrammarWithLexer::from_regex(&regex)
            }
            Form::Choice(choices) => {
                let choices: Vec<String> = choices.iter().map(|choice| literal(choice)).collect();
                let text = format!("start: {}", choices.join(" | "));
                too_long(text.len(), MAX_BYTES, &param)?;
                lark(&text)
            }
            Form::Grammar(text) => {
                check(&text, MAX_GRAMMAR, &param)?;
                lark(&text)
            }
        };
        Ok(GrammarWithLexer { name: Some(name.to_owned()), ..grammar })
    }
}

/// A grammar in Lark's syntax; none where the text is empty.
pub(crate) fn lark(text: &str) -> GrammarWithLexer {
    let text = (!text.is_empty()).then(|| text.to_owned());
    GrammarWithLexer { lark_grammar: text, ..GrammarWithLexer::default() }
}

/// A text as Lark writes it.
pub(crate) fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A schema that is neither too large nor too deep, with our rule for the space between its parts.
pub(crate) fn checked(schema: Value, param: &str) -> Result<Value, ApiError> {
    let Value::Object(mut schema) = schema else {
        return Err(ApiError::field(param, format!("`{param}` must be an object, a JSON schema")));
    };
    too_long(Value::from(schema.clone()).to_string().len(), MAX_BYTES, param)?;
    schema.iter().try_for_each(|(name, value)| check_patterns(name, value, param))?;
    if schema.values().map(depth).max().unwrap_or(0) >= MAX_DEPTH {
        return Err(too_deep(param));
    }
    schema.insert("x-guidance".into(), json!({"whitespace_pattern": SPACE}));
    Ok(Value::Object(schema))
}

fn too_long(bytes: usize, most: usize, param: &str) -> Result<(), ApiError> {
    if bytes <= most {
        return Ok(());
    }
    Err(ApiError::field(param, format!("`{param}` has {bytes} bytes, and may have {most} at most")))
}

/// Refuses a schema with an expression that is too long.
fn check_patterns(name: &str, value: &Value, param: &str) -> Result<(), ApiError> {
    match value {
        Value::String(pattern) if name == "pattern" => check(pattern, MAX_REGEX, param),
        Value::Object(fields) => fields.iter().try_for_each(|(field, value)| {
            if name == "patternProperties" {
                check(field, MAX_REGEX, param)?;
            }
            check_patterns(field, value, param)
        }),
        Value::Array(items) => items.iter().try_for_each(|item| check_patterns("", item, param)),
        _ => Ok(()),
    }
}

fn too_deep(param: &str) -> ApiError {
    ApiError::field(param, format!("`{param}` is nested too deep: {MAX_DEPTH} levels at most"))
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Refuses an expression or a grammar that is too long, or whose brackets are too many within each other.
fn check(text: &str, most: usize, param: &str) -> Result<(), ApiError> {
    too_long(text.len(), most, param)?;
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > MAX_DEPTH { Err(too_deep(param)) } else { Ok(()) }
}

fn response_format(fields: &Fields) -> Result<Option<Formed>, ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(None) };
    let formed = |schema| Ok(Some(Formed { form: Form::Json(schema), param: "response_format".into() }));
    match format.value("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => formed(json!({"type": "object"})),
        Some("json_schema") => {
            let schema = format.value("json_schema").and_then(|described| described.get("schema"));
            match schema.filter(|schema| schema.is_object()) {
                Some(schema) => formed(schema.clone()),
                None => Err(ApiError::field(
                    "response_format",
                    "`response_format` needs an object `json_schema` with an object `schema`",
                )),
            }
        }
        _ => Err(ApiError::field(
            "response_format",
            "`type` of `response_format` must be \"text\", \"json_object\" or \"json_schema\"",
        )),
    }
}

fn structured_outputs(fields: &Fields) -> Result<Option<Formed>, ApiError> {
    let Some(asked) = fields.object("structured_outputs")? else { return Ok(None) };
    let wrong = |name: &str, expected: &str| {
        let param = format!("structured_outputs.{name}");
        ApiError::field(&param, format!("`{param}` must be {expected}"))
    };
    let text = |name: &str| match asked.value(name).map(Value::as_str) {
        None => Ok(None),
        Some(Some(text)) if !text.trim().is_empty() => Ok(Some(text.to_owned())),
        Some(_) => Err(wrong(name, "a string that is not empty")),
    };
    let mut forms = Vec::new();
    if let Some(schema) = asked.value("json") {
        // A schema, or its text.
        let read = schema.as_str().map(serde_json::from_str::<Map<String, Value>>);
        let schema = match read {
            None => schema.as_object().cloned(),
            Some(read) => read.ok(),
        };
        let schema = schema.ok_or_else(|| wrong("json", "a JSON schema, an object"))?;
        forms.push(("json", Form::Json(schema.into())));
    }
    forms.extend(text("regex")?.map(|regex| ("regex", Form::Regex(regex))));
    forms.extend(text("grammar")?.map(|grammar| ("grammar", Form::Grammar(grammar))));
    if let Some(choices) = asked.value("choice") {
        let texts = |list: &Vec<Value>| list.iter().map(|text| text.as_str().map(str::to_owned)).collect();
        let choices: Option<Vec<String>> = choices.as_array().and_then(texts);
        let choices =
            choices.filter(|choices| !choices.is_empty() && choices.iter().all(|text| !text.is_empty()));
        let choices = choices.ok_or_else(|| wrong("choice", "a list of strings that are not empty"))?;
        forms.push(("choice", Form::Choice(choices)));
    }
    if asked.value("json_object").and_then(Value::as_bool) == Some(true) {
        forms.push(("json_object", Form::Json(json!({"type": "object"}))));
    }
    for name in ["whitespace_pattern", "structural_tag"] {
        if asked.value(name).is_some() {
            let param = format!("structured_outputs.{name}");
            let message = format!("this server cannot do what `{param}` asks for; leave it out");
            return Err(ApiError::field(param, message));
        }
    }
    match <[_; 1]>::try_from(forms) {
        Ok([(name, form)]) => Ok(Some(Formed { form, param: format!("structured_outputs.{name}") })),
        Err(_) => Err(ApiError::field(
            "structured_outputs",
            "`structured_outputs` must have one of `json`, `regex`, `choice` and `grammar`",
        )),
    }
}
