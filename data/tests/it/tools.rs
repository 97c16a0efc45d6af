//! Tools and thoughts: what of them a template writes, in which form it takes them, and what is said if it
//! does not.

use data::{Chat, ChatTemplate, DataSpec, TrainOn};

use crate::support::{Files, error_of, fixture, load, masked, tokenizer};

/// A call as OpenAI has it: no content, the arguments as JSON text.
const CALL: &str = r#"{"messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "abcdef012", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Oslo\"}"}}]}, {"role": "tool", "tool_call_id": "abcdef012", "content": "12"}, {"role": "assistant", "content": "12 degrees."}]}"#;

const PLAIN: &str =
    r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}"#;

const THOUGHT: &str = r#"{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", "reasoning_content": "two and two"}]}"#;

fn under(template: &str, lines: &str) -> Result<String, String> {
    let set = |spec: &mut DataSpec| spec.chat_template = Some(template.into());
    match load(lines, set) {
        Ok(dataset) => Ok(masked(&dataset.examples[0], &tokenizer())),
        Err(error) => Err(error.to_string()),
    }
}

/// Under a template given as text.
fn under_text(template: &str, lines: &str) -> Result<String, String> {
    let files = Files::new(&[("t.jinja", template)]);
    under(&files.path("t.jinja").display().to_string(), lines)
}

#[test]
fn a_call_that_the_template_does_not_write_is_refused_with_those_that_write_it() {
    for template in ["chatml", "llama-3", "gemma", "zephyr", "phi-3"] {
        let error = under(template, CALL).unwrap_err();
        assert!(
            error.contains(":1: chat template")
                && error.contains("does not write calls of tools (messages[1].tool_calls)")
                && error.contains("one of llama-3.1, mistral-v3, qwen2.5, qwen3)"),
            "{template}: {error}"
        );
    }
    for template in ["vicuna", "mistral", "llama-2", "alpaca", "deepseek-r1"] {
        let error = under(template, CALL).unwrap_err();
        assert!(error.contains("know tools: llama-3.1, mistral-v3, qwen2.5, qwen3"), "{template}: {error}");
    }
}

#[test]
fn what_is_refused_is_counted_over_all_records() {
    let lines = [PLAIN, CALL, PLAIN, CALL, CALL].join("\n");
    let error = error_of("data.jsonl", &lines, |_| {});
    assert!(error.starts_with("data.jsonl:2: ") && error.contains("nor all of 2 other records"), "{error}");
    // The first thing wrong is the error.
    let error = error_of("data.jsonl", &[CALL, "{\"messages\": 1}"].join("\n"), |_| {});
    assert!(error.starts_with("data.jsonl:1: chat template"), "{error}");
    let error = error_of("data.jsonl", &["{\"messages\": 1}", CALL].join("\n"), |spec| {
        spec.format = data::Format::Messages
    });
    assert!(error.starts_with("data.jsonl:1: \"messages\""), "{error}");
}

#[test]
fn descriptions_of_tools_are_not_left_out_in_silence() {
    let line = PLAIN.replacen(
        '{',
        r#"{"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "#,
        1,
    );
    let error = under("chatml", &line).unwrap_err();
    assert!(error.contains("does not write the descriptions of tools (tools[0])"), "{error}");
    assert!(under("qwen2.5", &line).unwrap().contains(r#""name": "f""#));
}

#[test]
fn built_in_templates_write_calls_as_their_models_have_them() {
    let shown = |template: &str| under(template, CALL).unwrap();
    assert!(shown("qwen2.5").contains("[<tool_call>⏎\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}⏎\n</tool_call><|im_end|>"));
    let llama = shown("llama-3.1");
    assert!(
        llama.contains(r#"[{"name": "get_weather", "parameters": {"city": "Oslo"}}<|eot_id|>]"#),
        "{llama}"
    );
    assert!(llama.contains("ipython<|end_header_id|>⏎\n⏎\n\"12\"<|eot_id|>"), "{llama}");
    let mistral = shown("mistral-v3");
    assert!(
        mistral.starts_with(
            "<s>[INST] Weather?[/INST][[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}, \"id\": \"abcdef012\"}]</s>]\
             [TOOL_RESULTS] {\"content\": 12, \"call_id\": \"abcdef012\"}[/TOOL_RESULTS][ 12 degrees.</s>]"
        ),
        "{mistral}"
    );
}

#[test]
fn a_template_gets_calls_in_the_form_that_it_takes() {
    // Qwen 2.5's own puts JSON text within quotes, GLM's asks for the arguments' items, DeepSeek's appends a
    // text.
    for (template, written) in [
        ("qwen2_5", r#""arguments": {"city": "Oslo"}}"#),
        ("glm4moe", "<arg_key>city</arg_key>⏎\n<arg_value>Oslo</arg_value>"),
        ("deepseekv3", "get_weather⏎\n```json⏎\n{\"city\": \"Oslo\"}"),
    ] {
        let source = std::fs::read_to_string(fixture("templates").join(format!("{template}.jinja"))).unwrap();
        let object = CALL.replace(r#""{\"city\": \"Oslo\"}""#, r#"{"city": "Oslo"}"#);
        assert_ne!(object, CALL);
        for line in [CALL, &object] {
            let shown = under_text(&source, line).unwrap();
            assert!(shown.contains(written) && !shown.contains("None"), "{template}: {shown}");
        }
    }
}

#[test]
fn a_turn_that_only_calls_is_found_though_its_function_comes_again() {
    // GPT-OSS names the function again in the header of what the tool answers.
    let source = std::fs::read_to_string(fixture("templates/gptoss.jinja")).unwrap();
    let shown = under_text(&source, CALL).unwrap();
    assert!(
        shown.contains(
            "<|start|>assistant[ to=functions.get_weather<|channel|>commentary json<|message|>{\"city\": \"Oslo\"}<|call|>]\
             <|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>\"12\"<|end|>\
             <|start|>assistant[<|channel|>final<|message|>12 degrees.<|return|>]"
        ),
        "{shown}"
    );
}

#[test]
fn calls_of_openais_older_form_and_of_sharegpt_are_calls() {
    let older = r#"{"messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": null, "function_call": {"name": "get_weather", "arguments": "{\"city\": \"Oslo\"}"}}, {"role": "function", "name": "get_weather", "content": "12"}, {"role": "assistant", "content": "12 degrees."}]}"#;
    let sharegpt = r#"{"conversations": [{"from": "human", "value": "Weather?"}, {"from": "gpt", "value": null, "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]}, {"from": "observation", "value": "12"}, {"from": "gpt", "value": "12 degrees."}]}"#;
    let tagged = r#"{"conversations": [{"from": "human", "value": "Weather?"}, {"from": "function_call", "value": "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}"}, {"from": "observation", "value": "12"}, {"from": "gpt", "value": "12 degrees."}]}"#;
    let mixed = r#"{"conversations": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]}, {"role": "tool", "content": "12"}, {"role": "assistant", "content": "12 degrees."}]}"#;
    let expected = under("qwen2.5", CALL).unwrap();
    for line in [older, sharegpt, tagged, mixed] {
        assert_eq!(under("qwen2.5", line).unwrap(), expected, "{line}");
        assert!(under("chatml", line).unwrap_err().contains("does not write calls of tools"), "{line}");
    }
    let nothing =
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}"#;
    assert!(under("chatml", nothing).unwrap_err().contains("messages[1] has no \"content\""));
}

#[test]
fn thoughts_that_the_template_does_not_write_are_refused() {
    let inline = THOUGHT
        .replace(r#""4", "reasoning_content": "two and two""#, r#""<think>\ntwo and two\n</think>\n\n4""#);
    assert!(under("qwen3", THOUGHT).unwrap().contains("[<think>⏎\ntwo and two⏎\n</think>⏎\n⏎\n4<|im_end|>"));
    assert_eq!(under("qwen3", THOUGHT), under("qwen3", &inline));
    for name in ["reasoning_content", "thinking", "reasoning"] {
        let error = under("chatml", &THOUGHT.replace("reasoning_content", name)).unwrap_err();
        assert!(error.contains(&format!("the assistant's thoughts (messages[1].{name})")), "{error}");
        assert!(error.contains("one of deepseek-r1, qwen3)"), "{error}");
    }
    assert!(under("chatml", &inline).unwrap().contains("[<think>⏎\ntwo and two"));
    let drops = "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endfor %}\
                 {% if add_generation_prompt %}<|assistant|>{% endif %}";
    let error = under_text(drops, &inline).unwrap_err();
    assert!(error.contains("messages[1].content before </think>"), "{error}");
}

#[test]
fn thoughts_of_turns_that_are_not_learnt_may_be_dropped() {
    let two = r#"{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", "reasoning_content": "two and two"}, {"role": "user", "content": "3+3?"}, {"role": "assistant", "content": "6", "reasoning_content": "three"}]}"#;
    let qwen3 = fixture("templates/qwen3.jinja").display().to_string();
    let dataset =
        load(two, |spec| (spec.chat_template, spec.train_on) = (Some(qwen3), TrainOn::Completion)).unwrap();
    let shown = masked(&dataset.examples[0], &tokenizer());
    assert!(
        shown.contains("assistant⏎\n4<|im_end|>") && shown.contains("[<think>⏎\nthree⏎\n</think>"),
        "{shown}"
    );
    assert!(dataset.report.warnings().is_empty(), "{:?}", dataset.report.warnings());
}

#[test]
fn other_parts_that_are_not_written_are_counted() {
    let named = PLAIN.replacen(r#""content": "Hi""#, r#""content": "Hi", "name": "Ana""#, 1);
    let report = load(&[&named, PLAIN, &named].join("\n"), |_| {}).unwrap().report;
    assert_eq!(
        report.warnings(),
        ["The chat template does not write the field \"name\" of messages: 2 examples."]
    );
    let deaf = "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}\
                {% if add_generation_prompt %}<|assistant|>{% endif %}";
    let files = Files::new(&[("t.jinja", deaf)]);
    let line = PLAIN.replacen("[{", r#"[{"role": "system", "content": "Be kind."}, {"#, 1);
    let path = files.path("t.jinja").display().to_string();
    let report = load(&line, |spec| spec.chat_template = Some(path)).unwrap().report;
    assert_eq!(
        report.warnings(),
        ["The chat template does not write the content of every message: 1 example."]
    );
    // A template that writes names, and numbers that are nobody's words.
    let line = named.replacen(r#""name""#, r#""id": "7", "score": 3, "name""#, 1);
    let names = deaf.replace("{{ m.content", "{{ m.name or '' }}{{ m.content");
    assert!(under_text(&names, &line).unwrap().starts_with("<|user|>AnaHi"));
}

#[test]
fn a_prompt_does_not_go_without_tools_in_silence() {
    let files = Files::new(&[("chat.json", CALL)]);
    let chat = Chat::read(&files.path("chat.json")).unwrap();
    let prompt =
        |name: &str| ChatTemplate::builtin(name).unwrap().prompt(&chat.messages[..3], chat.tools.as_ref());
    assert!(prompt("chatml").unwrap_err().to_string().contains("does not write calls of tools"));
    assert!(prompt("qwen3").unwrap().contains("<tool_call>\n{\"name\": \"get_weather\""));
}
