//! POST /v1/chat/completions.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{BEGIN, CONTEXT, SAYS, Server, Start, encode};

const PATH: &str = "/v1/chat/completions";

fn body(more: Value) -> Value {
    let mut body = json!({"model": "base", "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn a_conversation_is_answered_in_openais_shape() {
    let server = Server::start();
    let answer = server.post(PATH, &body(json!({"nobody": "knows this"}))).json(200);
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("base")));
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-") && answer["created"].is_u64());
    assert_eq!(
        answer["choices"],
        json!([{
            "index": 0, "message": {"role": "assistant", "content": SAYS, "refusal": null}, "logprobs": null,
            "finish_reason": "stop",
        }])
    );
    let prompt = encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    let new = encode(SAYS).len();
    assert_eq!(
        answer["usage"],
        json!({
            "prompt_tokens": prompt.len(), "completion_tokens": new, "total_tokens": prompt.len() + new,
            "prompt_tokens_details": {"cached_tokens": 1},
        })
    );
    let script = server.script.lock().unwrap();
    assert_eq!(script.asks[0].prompt, prompt);
    // As many tokens as there is room for, and at temperature 1, as OpenAI has it.
    assert_eq!(script.asks[0].max_tokens, CONTEXT - prompt.len());
    assert_eq!(script.asks[0].sampling.temperature, 1.0);
}

#[test]
fn settings_reach_the_engine() {
    let server = Server::start();
    let settings = json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "presence_penalty": -1, "frequency_penalty": 0.25,
        "repetition_penalty": 1.5, "seed": -1, "max_completion_tokens": 3, "max_tokens": 5, "stop_token_ids": [1, 2],
    });
    let answer = server.post(PATH, &body(settings)).json(200);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let ask = server.script.lock().unwrap().asks[0].clone();
    let s = ask.sampling;
    assert_eq!((s.temperature, s.top_p, s.top_k, s.min_p), (0.5, 0.9, 7, 0.1));
    assert_eq!((s.presence_penalty, s.frequency_penalty, s.repetition_penalty), (-1.0, 0.25, 1.5));
    assert_eq!((s.seed, ask.max_tokens), (u64::MAX, 3));
    assert!(ask.stop.starts_with(&[1, 2]) && ask.stop.len() > 2);
}

#[test]
fn answers_to_one_prompt_have_seeds_of_their_own() {
    let server = Server::start();
    let answer = server.post(PATH, &body(json!({"n": 3, "seed": 5}))).json(200);
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    let mut seeds: Vec<u64> =
        server.script.lock().unwrap().asks.iter().map(|ask| ask.sampling.seed).collect();
    seeds.sort();
    assert_eq!(seeds, [5, 6, 7]);
    assert_eq!(answer["usage"]["completion_tokens"], 3 * encode(SAYS).len());
}

#[test]
fn a_stream_tells_the_same_piece_by_piece() {
    let server = Server::start();
    let asked = json!({"stream": true, "stream_options": {"include_usage": true}, "n": 2});
    let events = server.post(PATH, &body(asked)).events();
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let mut texts = [String::new(), String::new()];
    let mut reasons = [None, None];
    for event in &events[..events.len() - 1] {
        let choice = &event["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts[index] += choice["delta"]["content"].as_str().unwrap_or_default();
        reasons[index] = reasons[index].or(choice["finish_reason"].as_str());
        assert!(event["usage"].is_null());
    }
    assert_eq!((texts, reasons), ([SAYS, SAYS].map(String::from), [Some("stop"); 2]));
    let last = events.last().unwrap();
    assert_eq!((&last["choices"], last["usage"]["completion_tokens"].as_u64()), (&json!([]), Some(16)));
    // Without the option no usage is told.
    let events = server.post(PATH, &body(json!({"stream": true}))).events();
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let server = Server::start();
    server.script.lock().unwrap().pause = Duration::from_millis(5);
    for stop in [json!("o w"), json!(["zzz", "o w"])] {
        let answer = server.post(PATH, &body(json!({"stop": stop}))).json(200);
        assert_eq!(answer["choices"][0]["message"]["content"], "hell");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let events = server.post(PATH, &body(json!({"stop": stop, "stream": true}))).events();
        let text: String =
            events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, "hell");
    }
    // What only might have been a stop is told in the end.
    let answer = server.post(PATH, &body(json!({"stop": "world!"}))).json(200);
    assert_eq!(answer["choices"][0]["message"]["content"], SAYS);
    server.wait(|script| script.cancelled.len() == 4);
}

#[test]
fn log_probabilities_are_told_with_bytes_and_others() {
    let server = Server::start();
    let asked = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 1});
    let answer = server.post(PATH, &body(asked.clone())).json(200);
    let expected = json!([{
        "token": "hell", "logprob": -258.0 / 256.0, "bytes": [104, 101, 108, 108],
        "top_logprobs": [
            {"token": "\u{102}", "logprob": -258.0 / 256.0, "bytes": null},
            {"token": "\u{103}", "logprob": -258.0 / 256.0 - 1.0, "bytes": null},
        ],
    }]);
    let content = &answer["choices"][0]["logprobs"]["content"];
    assert_eq!(content[0]["token"], expected[0]["token"]);
    assert_eq!(content[0]["bytes"], expected[0]["bytes"]);
    assert_eq!(content[0]["logprob"], expected[0]["logprob"]);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let mut streamed = body(asked);
    streamed["stream"] = json!(true);
    let events = server.post(PATH, &streamed).events();
    let told: Vec<&Value> = events
        .iter()
        .map(|event| &event["choices"][0]["logprobs"]["content"])
        .filter(|content| content.is_array())
        .collect();
    assert_eq!(told, [content]);
}

#[test]
fn tools_and_parts_of_text_reach_the_template() {
    let server = Server::start();
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let asked = json!({
        "model": "base", "tools": tools,
        "messages": [
            {"role": "developer", "content": "Be."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
    });
    server.post(PATH, &asked).json(200);
    let prompt = server.script.lock().unwrap().asks[0].prompt.clone();
    let tokenized = server.post("/detokenize", &json!({"tokens": prompt})).json(200);
    let text = tokenized["prompt"].as_str().unwrap();
    assert!(text.starts_with("[{\"type\": \"function\""), "{text}");
    assert!(text.contains("<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nab<|im_end|>"), "{text}");
    assert!(!prompt.contains(&BEGIN), "the template decides what a conversation begins with");
    let mut none = asked;
    none["tool_choice"] = json!("none");
    server.post(PATH, &none).json(200);
    let asks = &server.script.lock().unwrap().asks;
    assert!(asks[1].prompt.len() < asks[0].prompt.len());
}

#[test]
fn what_is_wrong_is_told_by_its_name() {
    let server = Server::start();
    for (more, param) in [
        (json!({"temperature": 2.5}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": -0.5}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"min_p": 1.5}), "min_p"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -3}), "frequency_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"seed": 0.5}), "seed"),
        (json!({"n": 0}), "n"),
        (json!({"n": 100_000_000}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_completion_tokens": "many"}), "max_completion_tokens"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": [""]}), "stop"),
        (json!({"stop": vec!["a"; 17]}), "stop"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": true}), "stream_options"),
        (json!({"stream_options": {"include_usage": 1}}), "include_usage"),
        (json!({"logprobs": 1}), "logprobs"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": {"role": "user"}}), "messages"),
        (json!({"messages": ["Hi"]}), "messages[0]"),
        (json!({"messages": [{"content": "Hi"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0].content"),
        (json!({"tools": ["f"]}), "tools[0]"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"model": null}), "model"),
        (json!({"model": 5}), "model"),
        (json!({"logit_bias": {"5": 1}}), "logit_bias"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids"),
    ] {
        let message = server.post(PATH, &body(more.clone())).error(400, Some(param));
        assert!(message.contains(param.split('[').next().unwrap()), "{more}: {message}");
    }
    assert!(server.script.lock().unwrap().asks.is_empty());
}

#[test]
fn what_does_not_fit_into_the_context_is_refused() {
    let server = Server::start();
    let reply = server.post(PATH, &body(json!({"max_tokens": CONTEXT})));
    assert!(reply.error(400, Some("max_tokens")).contains("128 in all"));
    assert_eq!(reply.json(400)["error"]["code"], "context_length_exceeded");
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(CONTEXT)}]});
    server.post(PATH, &body(long)).error(400, Some("messages"));
}

#[test]
fn without_a_template_there_are_no_conversations() {
    let server = Server::with(Start { has_template: false, ..Start::default() });
    assert!(server.post(PATH, &body(json!({}))).error(400, Some("messages")).contains("/v1/completions"));
}

#[test]
fn a_name_that_nobody_has_is_not_found() {
    let server = Server::start();
    for model in ["other", "../base", "base ", "", "."] {
        let reply = server.post(PATH, &body(json!({"model": model})));
        reply.error(404, Some("model"));
        assert_eq!(reply.json(404)["error"]["code"], "model_not_found");
    }
    assert!(server.script.lock().unwrap().asks.is_empty(), "the base does not answer for others");
}

#[test]
fn the_ids_of_tokens_are_told_if_asked_for() {
    let server = Server::start();
    let prompt = encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    let asked = json!({"return_token_ids": true, "max_tokens": 5});
    let answer = server.post(PATH, &body(asked.clone())).json(200);
    assert_eq!(answer["prompt_token_ids"], json!(prompt));
    assert_eq!(answer["choices"][0]["token_ids"], json!(encode(SAYS)[..5]));
    let mut streamed = body(asked);
    streamed["stream"] = json!(true);
    let events = server.post(PATH, &streamed).events();
    assert_eq!(events[0]["prompt_token_ids"], json!(prompt));
    let ids = events.iter().filter_map(|event| event["choices"][0]["token_ids"].as_array()).flatten();
    assert_eq!(ids.cloned().collect::<Value>(), answer["choices"][0]["token_ids"]);
}

/// As OpenAI takes it: the likeliest token alone.
#[test]
fn top_p_may_be_zero() {
    let server = Server::start();
    server.post(PATH, &body(json!({"top_p": 0}))).json(200);
    assert_eq!(server.script.lock().unwrap().asks[0].sampling.top_p, 0.0);
}
