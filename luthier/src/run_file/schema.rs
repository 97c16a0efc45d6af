//! The JSON schema of the run file, for editors. Descriptions, defaults and ranges are those of the types;
//! how a setting may be written that can be written in more than one way stands here.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::values::QuantizationType;
use super::{
    ByteSize, Format, MicroBatch, Offloading, Pattern, Quantization, RunFile, Source, TargetModules,
    TrainData,
};

/// The schema of `RUN.yaml`, in JSON Schema's draft of 2020-12, with all types in place.
pub(crate) fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<RunFile>().to_value();
    schema["title"] = "A run of luthier".into();
    let sections = schema["properties"].as_object_mut().expect("a run file has keys");
    for section in sections.values_mut().filter(|section| section.get("properties").is_some()) {
        // A section whose keys are all commented out is an empty one. Its keys have their own defaults.
        section["type"] = json!(["object", "null"]);
        section.as_object_mut().expect("a section is an object").remove("default");
    }
    tidy(&mut schema);
    let keys = schema.as_object_mut().expect("it is an object");
    let first = ["$schema", "title", "description"]
        .map(|key| (key.to_owned(), keys.shift_remove(key).unwrap_or_default()));
    Value::Object(first.into_iter().chain(std::mem::take(keys)).collect())
}

/// Descriptions in one line; no formats beyond the standard's, over which some validators stumble.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            // The key of the run file with this name is no text.
            if map.get("format").is_some_and(Value::is_string) {
                map.shift_remove("format");
            }
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// The name of a type, and its schema in place wherever it is used.
macro_rules! written {
    ($type:ty, $name:literal, |$generator:ident| $schema:expr) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

written!(ByteSize, "ByteSize", |_generator| json_schema!({
    "anyOf": [
        {"type": "string", "pattern": "^[0-9.]+ *(([KkMmGgTt][Ii]?)?[Bb])?$"},
        {"type": "integer", "minimum": 0},
    ],
}));

written!(Quantization, "Quantization", |generator| {
    let kind = generator.subschema_for::<QuantizationType>();
    json_schema!({
        "anyOf": [
            kind,
            {
                "type": "object",
                "properties": {
                    "type": kind,
                    "double_quant": {
                        "description": "Quantizes the blocks' scales too.",
                        "type": "boolean",
                        "default": Quantization::NF4.double_quant,
                    },
                    "block_size": {
                        "description": "Weights that share a scale.",
                        "enum": compute::quant::BLOCK_SIZES,
                        "default": Quantization::NF4.block_size,
                    },
                    "group_size": {
                        "description": "Weights that share a scale and a minimum, of integers.",
                        "enum": [compute::quant::blocks::GROUP],
                        "default": compute::quant::blocks::GROUP,
                    },
                },
                "required": ["type"],
                "additionalProperties": false,
            },
        ],
    })
});

written!(TrainData, "TrainData", |generator| json_schema!({
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": generator.subschema_for::<Source>(), "minItems": 1},
    ],
}));

written!(Source, "Source", |generator| json_schema!({
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {
                "path": {"description": "A file or a folder.", "type": "string"},
                "format": generator.subschema_for::<Option<Format>>(),
                "weight": {
                    "description": "How often its examples are seen beside those of weight 1.",
                    "type": "number",
                    "exclusiveMinimum": 0,
                    "default": 1.0,
                },
            },
            "required": ["path"],
            "additionalProperties": false,
        },
    ],
}));

written!(TargetModules, "TargetModules", |_generator| json_schema!({
    "anyOf": [
        {"const": "all-linear"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "string", "minLength": 1},
    ],
}));

written!(MicroBatch, "MicroBatch", |_generator| json_schema!({
    "anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}],
}));

written!(Offloading, "Offloading", |generator| json_schema!({
    "anyOf": [{"const": "auto"}, {"type": "boolean"}, generator.subschema_for::<ByteSize>()],
}));

impl<T: JsonSchema> JsonSchema for Pattern<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("PatternOf{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["object", "null"],
            "additionalProperties": generator.subschema_for::<T>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_file::{Override, Purpose, Settings, keys};

    /// Whether a value is as a schema says, of the words that ours uses.
    fn is_valid(schema: &Value, value: &Value) -> bool {
        let all = |words: &str, holds: &dyn Fn(&Value) -> bool| {
            schema.get(words).is_none_or(|some| some.as_array().unwrap().iter().any(holds))
        };
        let number = |word: &str| schema.get(word).and_then(Value::as_f64);
        let is_of = |kind: &Value| match kind.as_str().unwrap() {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("{other}"),
        };
        let of_kind = match schema.get("type") {
            None => true,
            Some(Value::Array(kinds)) => kinds.iter().any(is_of),
            Some(kind) => is_of(kind),
        };
        let in_range = value.as_f64().is_none_or(|x| {
            number("minimum").is_none_or(|least| x >= least)
                && number("maximum").is_none_or(|most| x <= most)
                && number("exclusiveMinimum").is_none_or(|least| x > least)
                && number("exclusiveMaximum").is_none_or(|most| x < most)
        });
        let items = value.as_array().is_none_or(|items| {
            let count = items.len() as f64;
            items.iter().all(|item| schema.get("items").is_none_or(|schema| is_valid(schema, item)))
                && number("minItems").is_none_or(|least| count >= least)
                && number("maxItems").is_none_or(|most| count <= most)
        });
        let nothing = Value::Null;
        let keys = value.as_object().is_none_or(|map| {
            let known = &schema["properties"];
            let key = |(name, value): (&String, &Value)| match (
                known.get(name),
                schema.get("additionalProperties"),
            ) {
                (Some(schema), _) => is_valid(schema, value),
                (None, Some(Value::Bool(allowed))) => *allowed,
                (None, other) => is_valid(other.unwrap_or(&nothing), value),
            };
            map.iter().all(key)
                && schema.get("required").is_none_or(|names| {
                    names.as_array().unwrap().iter().all(|name| map.contains_key(name.as_str().unwrap()))
                })
        });
        // The only pattern is that of sizes.
        let pattern = schema.get("pattern").is_none()
            || value.as_str().is_none_or(|text| text.parse::<ByteSize>().is_ok());
        let long_enough = value
            .as_str()
            .is_none_or(|text| number("minLength").is_none_or(|least| text.len() as f64 >= least));
        let constant = schema.get("const").is_none_or(|only| only == value);
        let one_of = |schema: &Value| is_valid(schema, value);
        let choices =
            all("enum", &|choice| choice == value) && all("anyOf", &one_of) && all("oneOf", &one_of);
        of_kind && in_range && items && keys && pattern && long_enough && constant && choices
    }

    /// The default settings with one away from its default.
    fn with(key: &str, value: &Value) -> Value {
        let mut run = serde_json::to_value(RunFile::default()).unwrap();
        let mut place = &mut run;
        for name in key.split('.') {
            place = &mut place[name];
        }
        *place = value.clone();
        run
    }

    fn validate(sets: &[String]) -> anyhow::Result<()> {
        let overrides = sets.iter().map(|set| Override::set(set)).collect::<Result<_, _>>()?;
        Settings::resolve(None, overrides)?.validate(Purpose::Other)
    }

    #[test]
    fn the_default_run_file_is_valid_and_sections_may_be_empty() {
        let schema = schema();
        assert!(is_valid(&schema, &serde_json::to_value(RunFile::default()).unwrap()));
        assert!(is_valid(&schema, &json!({"model": "m", "data": null})));
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    }

    #[test]
    fn every_key_has_a_description_and_its_default() {
        let defaults = serde_json::to_value(RunFile::default()).unwrap();
        for key in keys() {
            assert!(key.comment.ends_with('.') && key.comment.len() > 10, "{}: {:?}", key.path, key.comment);
            let pointer = format!("/{}", key.path.replace('.', "/"));
            assert_eq!(defaults.pointer(&pointer), Some(&key.default), "{}", key.path);
        }
        assert_eq!(keys().len(), crate::run_file::flatten(&RunFile::default()).len());
    }

    #[test]
    fn a_misspelt_key_is_not_valid() {
        let schema = schema();
        for path in
            ["modle", "data.trian", "adapter.rank", "optimizer.lr", "schedule.warm_up", "training.epoch"]
        {
            assert!(!is_valid(&schema, &with(path, &json!(1))), "{path}");
        }
    }

    #[test]
    fn every_way_of_writing_a_value_is_valid_and_no_other() {
        let schema = schema();
        for (key, good, bad) in [
            ("memory", json!(["12GiB", "1.5 gb", 4096, null]), json!(["12G", "much", -1, true])),
            ("precision", json!(["bf16", "f32"]), json!(["fp16", null])),
            (
                "quantization",
                json!(["nf4", "fp4", {"type": "nf4"}, {"type": "fp4", "double_quant": false, "block_size": 128}, null]),
                json!(["int8", {"block_size": 64}, {"type": "nf4", "block": 64}, true]),
            ),
            (
                "data.train",
                json!(["d.jsonl", ["a", {"path": "b", "format": "text", "weight": 0.5}], null]),
                json!([[], [{"weight": 1}], [{"path": "a", "format": "docx"}], 1]),
            ),
            ("data.eval_fraction", json!([0.05, null]), json!([0, 1])),
            ("data.max_length", json!([2, 4096, null]), json!([1, "long", 0.5])),
            ("adapter.r", json!([1, 65536]), json!([0, 65537, 1.5, null])),
            ("adapter.alpha", json!([0.5, 16]), json!([0, -1])),
            ("adapter.target_modules", json!(["all-linear", ["q_proj"], ".*_proj"]), json!([[], "", null])),
            ("adapter.rank_pattern", json!([{}, {"q_proj": 8}, null]), json!([{"q_proj": "x"}, []])),
            ("optimizer.betas", json!([[0.9, 0.95]]), json!([[0.9], [0.9, 0.9, 0.9], 0.9])),
            ("training.micro_batch_tokens", json!(["auto", 512]), json!([0, "all", null])),
            ("training.activation_offloading", json!(["auto", true, "512MiB", 8192]), json!(["disk", null])),
            ("training.activation_precision", json!(["bf16", null]), json!(["f32"])),
        ] {
            for (values, valid) in [(good, true), (bad, false)] {
                for value in values.as_array().unwrap() {
                    assert_eq!(is_valid(&schema, &with(key, value)), valid, "{key}: {value}");
                }
            }
        }
    }

    #[test]
    fn closed_sets_and_ranges_are_those_that_commands_take() {
        let schema = schema();
        for key in keys() {
            let pointer = format!("/properties/{}", key.path.replace('.', "/properties/"));
            let of_key = schema.pointer(&pointer).unwrap();
            let takes = |value: &Value| {
                let set = format!("{}={}", key.path, crate::run_file::yaml_value(value));
                let others = match key.path.as_str() {
                    "adapter.init" => "quantization=nf4",
                    "adapter.group_size" | "adapter.pooling" => "adapter.method=qalora",
                    path if path.starts_with("training.") => "data.eval=e",
                    _ => "data.train=d",
                };
                validate(&[others.to_owned(), set])
            };
            let known = |value: &Value| {
                let valid = is_valid(of_key, value);
                assert_eq!(takes(value).is_ok(), valid, "{}: {value}: {:?}", key.path, takes(value));
            };
            for (word, inside) in
                [("minimum", 1.0), ("maximum", -1.0), ("exclusiveMinimum", 1.0), ("exclusiveMaximum", -1.0)]
            {
                let Some(end) = of_key.get(word).and_then(Value::as_f64) else { continue };
                let whole = of_key["type"].to_string().contains("integer");
                for value in [end - inside, end].into_iter().filter(|value| *value >= 0.0) {
                    known(&if whole { json!(value as u64) } else { json!(value) });
                }
            }
            // What serde knows of a closed set stands in its own message.
            if of_key.get("oneOf").is_some() {
                let error = takes(&json!("?")).unwrap_err().to_string();
                let names = error.split("expected ").nth(1).unwrap().split(", found").next().unwrap();
                for name in names.split([',', ' ']).filter(|name| !["", "or"].contains(name)) {
                    known(&json!(name));
                }
            }
        }
    }
}
