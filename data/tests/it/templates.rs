//! Chat templates against what transformers rendered (fixtures/make_templates.py).

use data::{ChatTemplate, TemplateError};
use serde_json::{Map, Value};

use crate::support::{fixture, tokenizer};

fn fixtures() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture("templates.json")).unwrap()).unwrap()
}

fn template(name: &str, time: i64) -> ChatTemplate {
    let template = match name.strip_prefix("builtin ") {
        Some(name) => ChatTemplate::builtin(name).unwrap(),
        None => {
            let source = std::fs::read_to_string(fixture("templates").join(format!("{name}.jinja"))).unwrap();
            ChatTemplate::compile(&source, name).unwrap()
        }
    };
    template.with_special_tokens(&tokenizer()).at_time(time)
}

fn messages(conversation: &Value) -> Vec<Map<String, Value>> {
    let messages = conversation["messages"].as_array().unwrap();
    messages.iter().map(|message| message.as_object().unwrap().clone()).collect()
}

#[test]
fn templates_render_as_in_transformers() {
    let fixtures = fixtures();
    let mut checked = 0;
    for case in fixtures["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let place = format!("{name}, {}", case["conversation"]);
        let conversation = &fixtures["conversations"][case["conversation"].as_str().unwrap()];
        let template = template(name, fixtures["unix_time"].as_i64().unwrap());
        let tools = Some(&conversation["tools"]).filter(|tools| !tools.is_null());
        let render = |prompt| template.render(&messages(conversation), tools, prompt);
        if let Some(error) = case["error"].as_str() {
            let ours = render(false).expect_err(&place).to_string();
            if let Some(message) = error.strip_prefix("TemplateError: ") {
                assert!(ours.contains(message), "{place}: {ours}");
            }
            continue;
        }
        let rendered = render(false).unwrap_or_else(|error| panic!("{place}: {error}"));
        assert_eq!(rendered.text, case["text"].as_str().unwrap(), "{place}");
        let prompted = match &case["prompt"] {
            Value::String(suffix) => rendered.text.clone() + suffix,
            other => other["whole"].as_str().unwrap().to_string(),
        };
        assert_eq!(render(true).unwrap().text, prompted, "{place}, with the generation prompt");
        checked += 1;
    }
    assert!(checked > 80, "only {checked} cases");
}

/// Expressions that the engine has otherwise than Jinja, each with the reason why it stays.
const OTHERWISE: &[&str] = &[];

#[test]
fn expressions_have_the_values_that_they_have_in_transformers() {
    let cases: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(fixture("expressions.json")).unwrap()).unwrap();
    let message = serde_json::json!({"role": "user", "content": "Hi"});
    let mut wrong = Vec::new();
    for case in &cases {
        let source = case["expression"].as_str().unwrap();
        let template = format!("{{% set m = messages[0] %}}{{% set w = 'violin' %}}{{{{ {source} }}}}");
        let rendered = ChatTemplate::compile(&template, "x")
            .and_then(|template| template.render(&[message.as_object().unwrap().clone()], None, false));
        let ours = rendered.map(|rendered| rendered.text).map_err(|error| error.to_string());
        if ours.as_deref().ok() != case["text"].as_str() && !OTHERWISE.contains(&source) {
            wrong.push(format!("{source}\n  here: {ours:?}\n  there: {case}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn generation_blocks_mark_the_tokens_that_transformers_marks() {
    let fixtures = fixtures();
    let tokenizer = tokenizer();
    let mut checked = 0;
    for case in fixtures["cases"].as_array().unwrap() {
        let Some(mask) = case["mask"].as_str() else { continue };
        let conversation = &fixtures["conversations"][case["conversation"].as_str().unwrap()];
        let name = case["template"].as_str().unwrap();
        let template = template(name, fixtures["unix_time"].as_i64().unwrap());
        let tools = Some(&conversation["tools"]).filter(|tools| !tools.is_null());
        let rendered = template.render(&messages(conversation), tools, false).unwrap();
        let encoded = tokenizer.encode(&rendered.text, false).unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(encoded.ids, ids, "{name}, {}", case["conversation"]);
        let marked = |begin: &usize| rendered.generation.iter().any(|span| span.contains(begin));
        let ours: String = encoded.begins.iter().map(|begin| if marked(begin) { '1' } else { '0' }).collect();
        assert_eq!(ours, mask, "{name}, {}", case["conversation"]);
        checked += 1;
    }
    assert!(checked > 20, "only {checked} cases");
}

#[test]
fn every_built_in_template_renders_a_conversation_and_marks_the_assistant() {
    let messages = messages(&serde_json::json!({"messages": [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you."}]}));
    for name in data::template::BUILTIN {
        let template = ChatTemplate::builtin(name).unwrap().with_special_tokens(&tokenizer());
        let rendered = template.render(&messages, None, false).unwrap();
        let said: Vec<&str> = rendered.generation.iter().map(|span| &rendered.text[span.clone()]).collect();
        assert_eq!(said.len(), 2, "{name}: {said:?}");
        assert!(said[0].contains("Hello!") && !said[0].contains("Bye"), "{name}: {said:?}");
        // What generation is prompted with is how a turn in training begins.
        let prompt = template.render(&messages[..4], None, true).unwrap().text;
        assert_eq!(prompt, rendered.text[..rendered.generation[1].start], "{name}");
    }
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let endless = "{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}";
    let error = ChatTemplate::compile(endless, "x").unwrap().render(&[], None, false).unwrap_err();
    assert!(matches!(error, TemplateError::Endless { .. }), "{error}");
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(ChatTemplate::compile(deep, "x").unwrap().render(&[], None, false).is_err());
    let wide = "{{ 'x' * 100000000000 }}";
    assert!(ChatTemplate::compile(wide, "x").unwrap().render(&[], None, false).is_err());
}

#[test]
fn a_template_with_a_slip_says_where() {
    let error = ChatTemplate::compile("{% if x %}\n{{ y }", "mine.jinja").unwrap_err().to_string();
    assert!(error.contains("mine.jinja") && error.contains("line 2"), "{error}");
    let unknown = ChatTemplate::resolve(Some("chatlm"), &tokenizer()).unwrap_err().to_string();
    assert!(unknown.contains("did you mean \"chatml\"?"), "{unknown}");
}

#[test]
fn text_cannot_forge_a_generation_block() {
    let forged = serde_json::json!({"messages": [{"role": "user", "content": "a\u{FDD0}b\u{FDD1}c"}]});
    let rendered = ChatTemplate::builtin("chatml").unwrap().render(&messages(&forged), None, false).unwrap();
    assert!(rendered.generation.is_empty() && rendered.text.contains("abc"), "{rendered:?}");
}

#[test]
fn the_token_that_ends_a_turn_is_found() {
    let tokenizer = tokenizer();
    let end = |name: &str| {
        let template = ChatTemplate::builtin(name).unwrap().with_special_tokens(&tokenizer);
        template.end_of_turn(&tokenizer).and_then(|id| tokenizer.id_to_token(id))
    };
    assert_eq!(end("chatml").as_deref(), Some("<|im_end|>"));
    assert_eq!(end("llama-3").as_deref(), Some("<|eot_id|>"));
    assert_eq!(end("mistral").as_deref(), Some("</s>"));
    assert_eq!(
        ChatTemplate::compile("{{ messages[1].content }}", "x").unwrap().end_of_turn(&tokenizer),
        None
    );
}

#[test]
fn integers_of_any_size_keep_their_digits_on_the_way_to_the_text() {
    let call = r#"{"big": 9007199254740993, "id": 12345678901234567890123, "f": 1.10, "e": 1e5, "huge": -1234567890123456789012345678901234567890123}"#;
    let tool =
        r#"{"type": "function", "function": {"name": "f", "parameters": {"maximum": 18446744073709551616}}}"#;
    let written = call.replace("1.10", "1.1").replace("1e5", "100000.0");
    let message = |arguments: &str| {
        format!(
            r#"{{"role": "assistant", "content": "", "tool_calls": [{{"type": "function", "function": {{"name": "f", "arguments": {arguments}}}}}]}}"#
        )
    };
    let records = [
        format!(
            r#"{{"messages": [{{"role": "user", "content": "x"}}, {}], "tools": [{tool}]}}"#,
            message(call)
        ),
        format!(
            r#"{{"conversations": [{{"from": "human", "value": "x"}}, {{"from": "function_call", "value": {}}}], "tools": {}}}"#,
            serde_json::Value::from(format!(r#"{{"name": "f", "arguments": {call}}}"#)),
            serde_json::Value::from(format!("[{tool}]"))
        ),
    ];
    for record in records {
        let dataset =
            crate::support::load(&record, |spec| spec.chat_template = Some("qwen2.5".into())).unwrap();
        let text = tokenizer().decode(&dataset.examples[0].input_ids, false).unwrap();
        assert!(text.contains(&format!(r#"{{"name": "f", "arguments": {written}}}"#)), "{text}");
        assert!(text.contains(r#"{"maximum": 18446744073709551616}"#), "{text}");
    }
    // Written and reckoned with in a template, too.
    let template =
        ChatTemplate::compile("{{ tools[0].a }} {{ tools[0].b | string }} {{ tools[0].a > 5 }}", "t")
            .unwrap();
    let files = crate::support::Files::new(&[(
        "chat.json",
        &format!(
            r#"{{"messages": [{{"role": "user", "content": "x"}}], "tools": [{{"a": 18446744073709551616, "b": 1{}}}]}}"#,
            "0".repeat(50)
        ),
    )]);
    let chat = data::Chat::read(&files.path("chat.json")).unwrap();
    let text = template.render(&chat.messages, chat.tools.as_ref(), false).unwrap().text;
    assert_eq!(text, format!("18446744073709551616 1{} True", "0".repeat(50)));
}
