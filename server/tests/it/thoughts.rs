//! What a model thinks before it answers.

use serde_json::{Value, json};

use server::Limits;

use crate::support::{SAYS, Server, Start, encode};

const PATH: &str = "/v1/chat/completions";

/// Like templates that begin the thoughts themselves, unless they are told not to.
const OPENS: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + \
    message.content.split('</think>')[-1] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\\n<think>\\n' }}{% if enable_thinking is defined and not enable_thinking %}\
    {{ '\\n</think>\\n\\n' }}{% endif %}{% endif %}";

fn opens() -> Server {
    let limits = Limits::of_context(4096);
    Server::with(Start { template: OPENS.into(), limits, ..Start::default() })
}

fn body(more: Value) -> Value {
    let mut body = json!({"model": "base", "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Thoughts, words and the tokens of the first, whole; a stream must tell the same.
#[track_caller]
fn told(server: &Server, more: Value) -> (String, String, u64) {
    let answer = server.post(PATH, &body(more.clone())).json(200);
    let message = &answer["choices"][0]["message"];
    assert_eq!(message.get("reasoning"), message.get("reasoning_content"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (thought, said) = (text(&message["reasoning_content"]), text(&message["content"]));
    let mut streamed = body(more);
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let events = server.post(PATH, &streamed).events();
    let all =
        |name: &str| events.iter().map(|event| text(&event["choices"][0]["delta"][name])).collect::<String>();
    assert_eq!(
        (all("reasoning_content"), all("reasoning"), all("content")),
        (thought.clone(), thought.clone(), said.clone())
    );
    let tokens = |usage: &Value| usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    assert_eq!(tokens(&events.last().unwrap()["usage"]), tokens(&answer["usage"]));
    (thought, said, tokens(&answer["usage"]))
}

#[test]
fn thoughts_are_told_apart_from_words() {
    let server = Server::with_template("qwen3");
    for (says, thought, said) in [
        ("<think>\nWell.\n\nYes.\n</think>\n\nHello", "Well.\n\nYes.", "Hello"),
        ("<think>\n\n</think>\n\nHello", "", "Hello"),
        ("Hello <think> there", "", "Hello <think> there"),
        ("<thin", "", "<thin"),
        ("<think>no end", "no end", ""),
        ("<think>a </thinking> b</think>c", "a </thinking> b", "c"),
    ] {
        server.says(says);
        let (thoughts, words, tokens) = told(&server, json!({}));
        assert_eq!((thoughts.as_str(), words.as_str()), (thought, said), "{says}");
        assert_eq!(tokens > 0, says.starts_with("<think>"), "{says}");
    }
}

#[test]
fn a_template_may_begin_the_thoughts_and_be_told_not_to() {
    let server = opens();
    server.says("Well.\n</think>\n\nHello");
    let tokens = encode("Well.\n</think>").len() as u64;
    assert_eq!(told(&server, json!({})), ("Well.".into(), "Hello".into(), tokens));
    server.says("Hello");
    let without = json!({"chat_template_kwargs": {"enable_thinking": false}});
    assert_eq!(told(&server, without.clone()), (String::new(), "Hello".into(), 0));
    let asks = &server.script.lock().unwrap().asks;
    let written = encode("\n</think>\n\n");
    assert!(asks.last().unwrap().prompt.ends_with(&written) && !asks[0].prompt.ends_with(&written));
}

#[test]
fn variables_of_the_template_reach_tokenize_too_and_must_be_an_object() {
    let server = opens();
    let tokens = |more: Value| server.post("/tokenize", &body(more)).json(200)["count"].as_u64().unwrap();
    let without = json!({"chat_template_kwargs": {"enable_thinking": false}});
    assert!(tokens(without) > tokens(json!({})));
    server.post(PATH, &body(json!({"chat_template_kwargs": [1]}))).error(400, Some("chat_template_kwargs"));
    // What a conversation is made of is not a variable.
    let others = json!({"chat_template_kwargs": {"messages": [], "add_generation_prompt": false}});
    assert_eq!(tokens(others), tokens(json!({})));
}

#[test]
fn the_form_of_an_answer_begins_behind_its_thoughts() {
    let form = json!({"structured_outputs": {"choice": ["yes", "no"]}});
    let server = opens();
    server.says("Hm {1}.\n</think>\n\nno way");
    assert_eq!(
        told(&server, form.clone()),
        ("Hm {1}.".into(), "no".into(), encode("Hm {1}.\n</think>").len() as u64)
    );
    let server = Server::with_template("qwen3");
    for (says, thought) in [("<think>\nHm.\n</think>\n\nno way", "Hm."), ("no way", "")] {
        server.says(says);
        let (thoughts, words, _) = told(&server, form.clone());
        assert_eq!((thoughts.as_str(), words.as_str()), (thought, "no"));
    }
}

#[test]
fn without_marks_in_the_template_there_are_no_thoughts() {
    let server = Server::start();
    server.says("<think>a</think>b");
    let answer = server.post(PATH, &body(json!({}))).json(200);
    assert_eq!(answer["choices"][0]["message"]["content"], "<think>a</think>b");
    assert!(answer["usage"].get("completion_tokens_details").is_none());
    server.says(SAYS);
}
