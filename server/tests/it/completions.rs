//! POST /v1/completions.

use std::time::Duration;

use serde_json::{Value, json};

use server::Limits;

use crate::support::{BEGIN, CONTEXT, SAYS, Server, Start, encode};

const PATH: &str = "/v1/completions";

fn body(more: Value) -> Value {
    let mut body = json!({"model": "base", "prompt": "Hi"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn a_prompt_is_continued_in_openais_shape() {
    let server = Server::start();
    let answer = server.post(PATH, &body(json!({}))).json(200);
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(
        answer["choices"],
        json!([{"index": 0, "text": SAYS, "logprobs": null, "finish_reason": "stop"}])
    );
    let ask = server.script.lock().unwrap().asks[0].clone();
    assert_eq!((ask.prompt, ask.max_tokens), ([vec![BEGIN], encode("Hi")].concat(), 16));
    assert_eq!((ask.logprobs, ask.prompt_logprobs), (None, None));
}

#[test]
fn prompts_may_be_texts_or_tokens_or_lists_of_them() {
    let server = Server::start();
    for (prompt, prompts) in [
        (json!("a"), vec![vec![BEGIN, 97]]),
        (json!(["a", "b"]), vec![vec![BEGIN, 97], vec![BEGIN, 98]]),
        (json!([97, 98]), vec![vec![97, 98]]),
        (json!([[97], [98, 99]]), vec![vec![97], vec![98, 99]]),
    ] {
        server.script.lock().unwrap().asks.clear();
        let answer = server.post(PATH, &body(json!({"prompt": prompt, "n": 2, "seed": 1}))).json(200);
        assert_eq!(answer["choices"].as_array().unwrap().len(), 2 * prompts.len());
        let asks: Vec<Vec<u32>> =
            server.script.lock().unwrap().asks.iter().map(|ask| ask.prompt.clone()).collect();
        let twice: Vec<Vec<u32>> =
            prompts.iter().flat_map(|prompt| [prompt.clone(), prompt.clone()]).collect();
        assert_eq!(asks, twice);
        let tokens: usize = prompts.iter().map(Vec::len).sum();
        assert_eq!(answer["usage"]["prompt_tokens"], tokens);
    }
}

/// As lm-evaluation-harness asks: log-probabilities of a text that is given as token ids.
#[test]
fn the_log_probabilities_of_a_prompt_are_told_with_its_tokens() {
    let server = Server::start();
    let tokens = [vec![BEGIN], encode("hell é")].concat();
    for max_tokens in [0, 1] {
        let asked = json!({"prompt": tokens, "echo": true, "logprobs": 1, "max_tokens": max_tokens});
        let answer = server.post(PATH, &body(asked)).json(200);
        let choice = &answer["choices"][0];
        let (text, logprobs) = (choice["text"].as_str().unwrap(), &choice["logprobs"]);
        let said = if max_tokens == 1 { "hell" } else { "" };
        assert_eq!(text, format!("<|begin|>hell é{said}"));
        assert_eq!(choice["finish_reason"], "length");
        let mut spelled = vec!["<|begin|>", "hell", " ", "Ã", "©"];
        let mut offsets = vec![0, 9, 13, 14, 14];
        let mut values = vec![None];
        values.extend(tokens[1..].iter().map(|&token| Some(-f64::from(token) / 256.0)));
        if max_tokens == 1 {
            spelled.push("hell");
            offsets.push(15);
            values.push(Some(-258.0 / 256.0));
        }
        assert_eq!(logprobs["tokens"], json!(spelled));
        assert_eq!(logprobs["text_offset"], json!(offsets));
        assert_eq!(logprobs["token_logprobs"], json!(values));
        let top = logprobs["top_logprobs"].as_array().unwrap();
        assert!(top[0].is_null() && top.len() == spelled.len());
        for ((top, token), value) in top.iter().zip(&spelled).zip(&values).skip(1) {
            assert_eq!(top[token], json!(value), "{top}");
        }
    }
}

#[test]
fn a_text_that_is_told_again_is_told_as_it_came() {
    let server = Server::start();
    let answer =
        server.post(PATH, &body(json!({"prompt": "é <|im_end|>x", "echo": true, "logprobs": 0}))).json(200);
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], format!("é <|im_end|>x{SAYS}"));
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(tokens[..4], ["<|begin|>", "Ã", "©", " "]);
    let offsets: Vec<u64> =
        choice["logprobs"]["text_offset"].as_array().unwrap().iter().map(|o| o.as_u64().unwrap()).collect();
    assert_eq!(offsets[3..8], [1, 2, 12, 13, 17], "{offsets:?}");
    let answer = server.post(PATH, &body(json!({"prompt": "a", "echo": true, "max_tokens": 0}))).json(200);
    assert_eq!(answer["choices"][0]["text"], "a");
    let answer = server.post(PATH, &body(json!({"max_tokens": 0}))).json(200);
    assert_eq!(
        answer["choices"][0],
        json!({"index": 0, "text": "", "logprobs": null, "finish_reason": "length"})
    );
}

#[test]
fn a_stream_tells_the_same_as_one_answer() {
    let server = Server::start();
    for more in [
        json!({"logprobs": 2}),
        json!({"logprobs": 1, "echo": true, "prompt": ["a", "bc"], "n": 2}),
        json!({"stop": "o w"}),
        json!({"max_tokens": 0}),
    ] {
        let whole = server.post(PATH, &body(more.clone())).json(200);
        let mut streamed = body(more);
        streamed["stream"] = json!(true);
        streamed["stream_options"] = json!({"include_usage": true});
        let events = server.post(PATH, &streamed).events();
        let (last, events) = events.split_last().unwrap();
        assert_eq!(last["usage"], whole["usage"]);
        for choice in whole["choices"].as_array().unwrap() {
            let of_choice =
                || events.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == choice["index"]);
            let text: String = of_choice().filter_map(|c| c["text"].as_str()).collect();
            assert_eq!(json!(text), choice["text"]);
            assert_eq!(of_choice().next_back().unwrap()["finish_reason"], choice["finish_reason"]);
            for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let parts = of_choice().filter_map(|c| c["logprobs"][list].as_array()).flatten().cloned();
                let parts: Vec<Value> = parts.collect();
                let all = choice["logprobs"][list].as_array().cloned().unwrap_or_default();
                assert_eq!(parts, all, "{list}");
            }
        }
    }
}

#[test]
fn tokens_behind_a_stop_string_are_not_told() {
    let server = Server::start();
    let answer = server.post(PATH, &body(json!({"stop": "o w", "logprobs": 0}))).json(200);
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!(["hell"]));
}

#[test]
fn what_is_wrong_is_told_by_its_name() {
    let server = Server::start();
    for (more, param) in [
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": ["a", 5]}), "prompt"),
        (json!({"prompt": [97, "a"]}), "prompt"),
        (json!({"prompt": [[97], "a", 5]}), "prompt"),
        (json!({"prompt": [-1]}), "prompt"),
        (json!({"prompt": [0.5]}), "prompt"),
        (json!({"prompt": [4294967296_u64]}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": [9999]}), "prompt"),
        (json!({"prompt": vec!["a"; 2000]}), "prompt"),
        (json!({"prompt": vec![97; CONTEXT + 1], "max_tokens": 0}), "prompt"),
        (json!({"max_tokens": CONTEXT}), "max_tokens"),
        (json!({"logprobs": 21}), "logprobs"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"echo": 1}), "echo"),
        (json!({"suffix": "end"}), "suffix"),
        (json!({"best_of": 2}), "best_of"),
    ] {
        server.post(PATH, &body(more)).error(400, Some(param));
    }
}

/// The first ones are long done when the last one begins.
#[test]
fn answers_that_wait_for_each_other_lose_nothing() {
    let limits = Limits::of_context(1 << 20);
    let server = Server::with(Start { limits, ..Start::default() });
    {
        let mut script = server.script.lock().unwrap();
        (script.lanes, script.pause) = (1, Duration::from_micros(200));
    }
    for stream in [false, true] {
        let asked = json!({"prompt": ["!", "a!", "x"], "max_tokens": 1500, "stream": stream});
        let reply = server.post(PATH, &body(asked));
        let choices: Vec<Value> = match stream {
            false => reply.json(200)["choices"].as_array().unwrap().clone(),
            true => reply.events().iter().map(|event| event["choices"][0].clone()).collect(),
        };
        let length = |index: usize| -> usize {
            let of_choice = choices.iter().filter(|choice| choice["index"] == index);
            of_choice.map(|choice| choice["text"].as_str().unwrap().len()).sum()
        };
        assert_eq!([0, 1, 2].map(length), [1500, 1500, SAYS.len()]);
    }
}

/// More answers than a task hears of in one turn.
#[test]
fn a_request_may_have_hundreds_of_answers() {
    let server = Server::start();
    for more in [json!({"n": 300}), json!({"prompt": vec!["a"; 300]})] {
        let answer = server.post(PATH, &body(more)).json(200);
        assert_eq!(answer["choices"].as_array().unwrap().len(), 300);
    }
}

#[test]
fn the_ids_of_tokens_are_told_if_asked_for() {
    let server = Server::start();
    let asked = json!({"prompt": [[97], [98, 99]], "return_token_ids": true, "max_tokens": 2});
    let answer = server.post(PATH, &body(asked.clone())).json(200);
    for (index, prompt) in [json!([97]), json!([98, 99])].into_iter().enumerate() {
        let choice = &answer["choices"][index];
        assert_eq!((&choice["prompt_token_ids"], &choice["token_ids"]), (&prompt, &json!(encode(SAYS)[..2])));
    }
    let mut streamed = body(asked);
    streamed["stream"] = json!(true);
    let events = server.post(PATH, &streamed).events();
    let of_first = events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == 0);
    let of_first: Vec<&Value> = of_first.collect();
    assert_eq!(of_first[0]["prompt_token_ids"], json!([97]));
    let ids = of_first.iter().filter_map(|choice| choice["token_ids"].as_array()).flatten();
    assert_eq!(ids.cloned().collect::<Value>(), json!(encode(SAYS)[..2]));
}

#[test]
fn an_unknown_token_is_told_with_its_field_and_the_vocabulary() {
    let server = Server::start();
    let message = server.post(PATH, &body(json!({"prompt": [97, 5000]}))).error(400, Some("prompt"));
    assert_eq!(message, "`prompt` has the token id 5000, and the vocabulary 263 tokens");
}
