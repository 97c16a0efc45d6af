//! Answers of a form: `response_format` and `structured_outputs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use compute::{Device, Precision, random};
use infer::{Engine, Extent, Sums};
use model::{Config, Decoder};
use serde_json::{Map, Value, json};
use server::Limits;

use crate::support::{SAYS, Server, Start};

const CHAT: &str = "/v1/chat/completions";
const PLAIN: &str = "/v1/completions";

fn chat(more: Value) -> Value {
    with(json!({"model": "base", "messages": [{"role": "user", "content": "Hi"}]}), more)
}

fn plain(more: Value) -> Value {
    with(json!({"model": "base", "prompt": "Hi", "max_tokens": 60}), more)
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn schema(schema: Value) -> Value {
    let described = json!({"name": "answer", "schema": schema, "strict": true});
    json!({"response_format": {"type": "json_schema", "json_schema": described}})
}

/// What a request of both kinds is answered with, text and reason, whole and streamed.
fn answers(server: &Server, more: &Value) -> Vec<(String, String)> {
    let mut told = Vec::new();
    for (path, mut body) in [(CHAT, chat(more.clone())), (PLAIN, plain(more.clone()))] {
        let choice = server.post(path, &body).json(200)["choices"][0].clone();
        let text = choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap();
        told.push((text.to_owned(), choice["finish_reason"].as_str().unwrap().to_owned()));
        body["stream"] = json!(true);
        let (mut text, mut reason) = (String::new(), String::new());
        for event in server.post(path, &body).events() {
            let choice = &event["choices"][0];
            text += choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
            reason += choice["finish_reason"].as_str().unwrap_or_default();
        }
        told.push((text, reason));
    }
    told
}

#[test]
fn an_answer_has_the_form_that_was_asked_for() {
    let server = Server::start();
    let person = json!({
        "type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"], "additionalProperties": false,
    });
    for (says, more, expected) in [
        // What the model says fits.
        ("{\"name\": \"Ann\", \"age\": 7}", schema(person.clone()), "{\"name\": \"Ann\", \"age\": 7}"),
        ("[1]", json!({"structured_outputs": {"json": {"const": [1]}}}), "[1]"),
        ("[1]", json!({"structured_outputs": {"json": "{\"const\": [1]}"}}), "[1]"),
        ("{\"a\": [1]} and", json!({"response_format": {"type": "json_object"}}), "{\"a\": [1]}"),
        ("2026-11 and", json!({"structured_outputs": {"regex": "[0-9]{4}-[0-9]{2}"}}), "2026-11"),
        ("yes", json!({"structured_outputs": {"choice": ["yes", "no"]}}), "yes"),
        ("é\"/", json!({"structured_outputs": {"choice": ["é\"/", "\n"]}}), "é\"/"),
        ("aab", json!({"structured_outputs": {"grammar": "start: \"a\"+ \"b\""}}), "aab"),
        // What it says is cut where the form is complete, and bent where it would leave it.
        ("no way", json!({"structured_outputs": {"choice": ["yes", "no"]}}), "no"),
        ("1x", json!({"structured_outputs": {"regex": "[0-9]+"}}), "1"),
    ] {
        server.says(says);
        let told = answers(&server, &more);
        assert!(
            told.iter().all(|told| *told == (expected.to_owned(), "stop".to_owned())),
            "{more}: {told:?}"
        );
    }
    // Nothing but text was asked for.
    server.says(SAYS);
    let told = answers(&server, &json!({"response_format": {"type": "text"}}));
    assert!(told.iter().all(|(text, _)| text == SAYS), "{told:?}");
}

#[test]
fn an_answer_that_is_cut_says_so() {
    let server = Server::start();
    server.says("{\"name\": \"Ann\"}");
    let more = with(json!({"response_format": {"type": "json_object"}}), json!({"max_tokens": 4}));
    let told = answers(&server, &more);
    assert!(told.iter().all(|told| *told == ("{\"na".to_owned(), "length".to_owned())), "{told:?}");
}

#[test]
fn several_answers_are_kept_to_it_each_for_itself() {
    let server = Server::start();
    server.says("abcab");
    let more = json!({"n": 3, "structured_outputs": {"regex": "[abc]{5}"}});
    let answer = server.post(CHAT, &chat(more)).json(200);
    let texts: Vec<_> =
        answer["choices"].as_array().unwrap().iter().map(|c| &c["message"]["content"]).collect();
    assert_eq!(texts, ["abcab"; 3]);
}

#[test]
fn what_cannot_be_asked_for_is_refused_by_its_name() {
    let server = Server::start();
    for (more, param) in [
        (json!({"response_format": "json"}), "response_format"),
        (json!({"response_format": {"type": "xml"}}), "response_format"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}),
            "response_format",
        ),
        (schema(json!({"type": "nothing"})), "response_format"),
        (schema(json!({"$ref": "#/nowhere"})), "response_format"),
        (schema(json!({"enum": []})), "response_format"),
        (json!({"structured_outputs": 5}), "structured_outputs"),
        (json!({"structured_outputs": {}}), "structured_outputs"),
        (json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}), "structured_outputs"),
        (json!({"structured_outputs": {"json": "{"}}), "structured_outputs.json"),
        (json!({"structured_outputs": {"json": 5}}), "structured_outputs.json"),
        (json!({"structured_outputs": {"regex": 5}}), "structured_outputs.regex"),
        (json!({"structured_outputs": {"regex": "("}}), "structured_outputs.regex"),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs.choice"),
        (json!({"structured_outputs": {"choice": [5]}}), "structured_outputs.choice"),
        (json!({"structured_outputs": {"choice": [""]}}), "structured_outputs.choice"),
        (json!({"structured_outputs": {"grammar": "start: nothing"}}), "structured_outputs.grammar"),
        (json!({"structured_outputs": {"grammar": "root ::= \"a\""}}), "structured_outputs.grammar"),
        (
            json!({"structured_outputs": {"regex": "a", "structural_tag": "{}"}}),
            "structured_outputs.structural_tag",
        ),
        (
            json!({"structured_outputs": {"json": {}, "whitespace_pattern": " "}}),
            "structured_outputs.whitespace_pattern",
        ),
        (json!({"guided_json": {"type": "object"}}), "guided_json"),
    ] {
        for (path, body) in [(CHAT, chat(more.clone())), (PLAIN, plain(more.clone()))] {
            let reply = server.post(path, &body);
            assert_eq!(reply.status, 400, "{more}: {}", reply.body);
            reply.error(400, Some(param));
        }
    }
    let both = json!({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}});
    server.post(CHAT, &chat(both)).error(400, Some("structured_outputs.regex"));
    assert!(server.script.lock().unwrap().asks.is_empty());
}

/// What would take minutes or all memory is refused at once; what is only large is answered.
#[test]
fn what_explodes_is_refused_at_once() {
    let limits = Limits { body_bytes: 4 << 20, ..Limits::of_context(4096) };
    let server = Server::with(Start { limits, ..Start::default() });
    let nested =
        |levels: usize| (0..levels).fold(json!({"type": "string"}), |inner, _| json!({"items": inner}));
    let words = |count: usize| (0..count).map(|i| format!("word {i} {}", i * 7919)).collect::<Vec<_>>();
    let deep = |levels: usize| format!("{}a{}", "(".repeat(levels), ")".repeat(levels));
    let many = |count: usize| {
        let fields: serde_json::Map<String, Value> = (0..count)
            .map(|i| (format!("field{i}"), json!({"type": "string", "pattern": "^[a-z]{1,500}$"})))
            .collect();
        json!({"type": "object", "properties": fields})
    };
    let repeated =
        json!({"type": "array", "items": {"type": "string"}, "minItems": 100_000, "maxItems": 200_000});
    let regex = |regex: &str| json!({"structured_outputs": {"regex": regex}});
    let grammar = |grammar: &str| json!({"structured_outputs": {"grammar": grammar}});
    let format = Some("response_format");
    for (more, param) in [
        (schema(nested(70)), format),
        (schema(nested(20)), None),
        (schema(json!({"$ref": "#"})), format),
        (
            schema(
                json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
            ),
            format,
        ),
        (schema(json!({"allOf": [{"$ref": "#"}, {"type": "object"}]})), format),
        (schema(json!({"type": "object", "properties": {"a": {"$ref": "#"}}})), None),
        (schema(json!({"enum": words(100_000)})), format),
        (schema(json!({"enum": words(1000)})), None),
        (schema(many(3000)), format),
        (schema(repeated), None),
        (schema(json!({"type": "string", "minLength": 1_000_000_000})), None),
        (schema(json!({"type": "string", "pattern": "(a{1000}){1000}"})), None),
        (regex("(a{1000}){1000}"), None),
        (regex("((a{100}){100}){100}"), None),
        (regex("(.*a){40}.{40}"), None),
        (regex(&deep(1_000)), Some("structured_outputs.regex")),
        (regex(&"a?".repeat(3_000)), Some("structured_outputs.regex")),
        (schema(json!({"items": {"pattern": "a?".repeat(3_000)}})), format),
        (schema(json!({"patternProperties": {"a?".repeat(3_000): {}}})), format),
        (regex(&deep(50)), None),
        (
            grammar(&format!("start: {}", deep(1_000).replace('a', "\"a\""))),
            Some("structured_outputs.grammar"),
        ),
        (grammar("start: start"), Some("structured_outputs.grammar")),
        (grammar("start: start \"a\" | \"b\""), None),
        (grammar("start: a{10000}\na: b{10000}\nb: \"x\" | \"y\""), None),
        (json!({"structured_outputs": {"choice": words(100_000)}}), Some("structured_outputs.choice")),
    ] {
        let begun = Instant::now();
        let reply = server.post(PLAIN, &plain(with(more.clone(), json!({"max_tokens": 3}))));
        let shown = more.to_string().chars().take(120).collect::<String>();
        assert!(begun.elapsed() < Duration::from_secs(5), "{shown}: {:?}", begun.elapsed());
        match param {
            Some(_) => drop(reply.error(400, param)),
            None => drop(reply.json(200)),
        }
    }
    // What is deep without brackets must not use up a thread's stack.
    let chain = |count: usize| {
        let rules: Vec<String> = (0..count).map(|i| format!("a{i}: a{} \"x\"", i + 1)).collect();
        format!("start: a0\n{}\na{count}: \"y\"", rules.join("\n"))
    };
    for more in [
        regex(&format!("a{}", "?".repeat(4000))),
        regex(&"a?".repeat(2000)),
        regex(&format!("{}b", "a|".repeat(2000))),
        regex(&"[a-c]+d*".repeat(500)),
        regex(&"(a|b)*?".repeat(580)),
        schema(json!({"type": "string", "pattern": "a?".repeat(2000)})),
        grammar(&format!("start: \"a\"{}", "?".repeat(8000))),
        grammar(&format!("start: A\nA: {}\"a\"", "~".repeat(8000))),
        grammar(&format!("start: {}", "\"a\"? ".repeat(1_300))),
        grammar(&format!("start: /{}/", "a?".repeat(4000))),
        grammar(&chain(500)),
        grammar(&chain(500).replace('a', "A").replace("stArt", "start")),
    ] {
        let begun = Instant::now();
        let reply = server.post(PLAIN, &plain(with(more.clone(), json!({"max_tokens": 20}))));
        let shown = more.to_string().chars().take(120).collect::<String>();
        assert!([200, 400].contains(&reply.status), "{shown}: {}", reply.body);
        assert!(begun.elapsed() < Duration::from_secs(10), "{shown}: {:?}", begun.elapsed());
    }
    // What explodes later costs its own request alone, and not for long.
    server.says(&"ab".repeat(400));
    for more in [regex("(.*a){40}.{40}"), regex("(a|b)*a(a|b){200}"), regex("(.*a.*b.*){60}c")] {
        let begun = Instant::now();
        let reply = server.post(PLAIN, &plain(with(more.clone(), json!({"max_tokens": 800}))));
        assert!([200, 400].contains(&reply.status), "{more}: {}", reply.body);
        assert!(begun.elapsed() < Duration::from_secs(20), "{more}: {:?}", begun.elapsed());
    }
    server.script.lock().unwrap().says = None;
    assert_eq!(server.complete("base"), SAYS, "the server goes on");
}

/// Numbers from a seed.
struct Dice(u64, u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.1 += 1;
        random::below(random::key(self.0, 1), self.1, bound)
    }

    fn schema(&mut self, depth: u64) -> Value {
        match self.below(if depth == 0 { 6 } else { 9 }) {
            0 => json!({"type": "string", "minLength": self.below(3), "maxLength": 3 + self.below(6)}),
            1 => {
                let least = self.below(100) as i64 - 50;
                json!({"type": "integer", "minimum": least, "maximum": least + self.below(200) as i64})
            }
            2 => json!({"enum": ["a \"quoted\" é", 5, null, {"b": [1]}]}),
            3 => json!({"type": ["boolean", "null"]}),
            4 => json!({"const": {"x": 1.5}}),
            5 => json!({"type": "string", "pattern": "^[a-c]{2}-[0-9]+$", "maxLength": 9}),
            6 => {
                let least = self.below(3);
                json!({"type": "array", "items": self.schema(depth - 1), "minItems": least,
                    "maxItems": least + self.below(3)})
            }
            7 => json!({"anyOf": [self.schema(depth - 1), self.schema(depth - 1)]}),
            _ => {
                let fields: Vec<String> = (0..self.below(4)).map(|i| format!("field {i}")).collect();
                let required: Vec<String> = fields.iter().filter(|_| self.below(2) == 0).cloned().collect();
                let fields: Map<String, Value> =
                    fields.into_iter().map(|name| (name, self.schema(depth - 1))).collect();
                json!({"type": "object", "properties": fields, "required": required,
                    "additionalProperties": false})
            }
        }
    }
}

/// Whether a value is as a schema of [`Dice`] says.
fn fits(schema: &Value, value: &Value) -> bool {
    if let Some(choices) = schema["anyOf"].as_array() {
        return choices.iter().any(|schema| fits(schema, value));
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    if let Some(constant) = schema.get("const") {
        return value == constant;
    }
    let between = |count: usize, least: &str, most: &str| {
        count as u64 >= schema[least].as_u64().unwrap_or(0)
            && count as u64 <= schema[most].as_u64().unwrap_or(u64::MAX)
    };
    match schema["type"].as_str() {
        Some("string") => value.as_str().is_some_and(|text| {
            let is_pattern = |text: &str| {
                let (head, tail) = text.split_once('-').unwrap_or_default();
                head.len() == 2
                    && head.chars().all(|c| ('a'..='c').contains(&c))
                    && tail.parse::<u64>().is_ok()
            };
            between(text.chars().count(), "minLength", "maxLength")
                && (schema.get("pattern").is_none() || is_pattern(text))
        }),
        Some("integer") => value.as_i64().is_some_and(|number| {
            (schema["minimum"].as_i64().unwrap()..=schema["maximum"].as_i64().unwrap()).contains(&number)
        }),
        Some("array") => value.as_array().is_some_and(|items| {
            between(items.len(), "minItems", "maxItems")
                && items.iter().all(|item| fits(&schema["items"], item))
        }),
        Some("object") => value.as_object().is_some_and(|fields| {
            let required = schema["required"].as_array().unwrap();
            fields
                .iter()
                .all(|(name, value)| schema["properties"].get(name).is_some_and(|schema| fits(schema, value)))
                && required.iter().all(|name| fields.contains_key(name.as_str().unwrap()))
        }),
        _ => value.is_boolean() || value.is_null(),
    }
}

/// A model that knows nothing is kept to schemas that nobody chose, several requests at once.
#[test]
fn whatever_the_schema_what_a_random_model_writes_fits() {
    let settings = r#"{"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "initializer_range": 0.3, "tie_word_embeddings": false, "hidden_act": "silu"}"#;
    let config = Config::from_json(settings, "config.json".as_ref()).unwrap();
    let decoder = Arc::new(Decoder::random(&config, &Device::cpu(1), Precision::F32, None, 7));
    let extent = Extent {
        context: 4096,
        cached_tokens: 40_000,
        step_tokens: 64,
        running: 8,
        max_rank: 1,
        sums: Sums::Rows,
    };
    let worker = Box::new(Engine::new(decoder, extent));
    let limits = Limits::of_context(4096);
    let server = Server::with(Start { worker: Some(worker), limits, ..Start::default() });
    let (mut whole, mut cut) = (0, 0);
    for seed in 0..40 {
        let asked = Dice(seed, 0).schema(3);
        let more = with(schema(asked.clone()), json!({"n": 3, "seed": seed, "max_tokens": 1500}));
        let reply = server.post(PLAIN, &plain(more));
        assert_eq!(reply.status, 200, "{asked}: {}", reply.body);
        for choice in reply.json(200)["choices"].as_array().unwrap() {
            let text = choice["text"].as_str().unwrap();
            if choice["finish_reason"] != "stop" {
                cut += 1;
                continue;
            }
            whole += 1;
            let value =
                serde_json::from_str(text).unwrap_or_else(|error| panic!("{asked}: {text:?}: {error}"));
            assert!(fits(&asked, &value), "{asked}: {text}");
        }
    }
    assert!(whole > 100, "{whole} whole, {cut} cut");
}
