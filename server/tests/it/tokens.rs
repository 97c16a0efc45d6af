//! POST /tokenize and /detokenize.

use serde_json::{Value, json};

use crate::support::{BEGIN, CONTEXT, Server, encode};

#[test]
fn texts_become_tokens_and_back() {
    let server = Server::start();
    let told = server.post("/tokenize", &json!({"model": "base", "prompt": "hell é"})).json(200);
    let tokens = [vec![BEGIN], encode("hell é")].concat();
    assert_eq!(
        told,
        json!({"count": tokens.len(), "max_model_len": CONTEXT, "tokens": tokens, "token_strs": null})
    );
    let bare = json!({"prompt": "hell", "add_special_tokens": false, "return_token_strs": true});
    let told = server.post("/tokenize", &bare).json(200);
    assert_eq!((&told["tokens"], &told["token_strs"]), (&json!(encode("hell")), &json!(["hell"])));
    let told = server.post("/detokenize", &json!({"model": "base", "tokens": tokens})).json(200);
    assert_eq!(told, json!({"prompt": "<|begin|>hell é"}));
}

#[test]
fn conversations_become_tokens() {
    let server = Server::start();
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let tokens = |more: Value| -> Value {
        let mut body = json!({"messages": messages});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/tokenize", &body).json(200)["tokens"].clone()
    };
    let said = "<|im_start|>user\nHi<|im_end|>\n";
    assert_eq!(tokens(json!({})), json!(encode(&format!("{said}<|im_start|>assistant\n"))));
    assert_eq!(tokens(json!({"add_generation_prompt": false})), json!(encode(said)));
}

#[test]
fn what_is_wrong_is_told_by_its_name() {
    let server = Server::start();
    server.post("/tokenize", &json!({})).error(400, Some("prompt"));
    server.post("/tokenize", &json!({"prompt": ["a"]})).error(400, Some("prompt"));
    server.post("/tokenize", &json!({"prompt": "a", "model": "other"})).error(404, Some("model"));
    server.post("/detokenize", &json!({})).error(400, Some("tokens"));
    server.post("/detokenize", &json!({"tokens": "a"})).error(400, Some("tokens"));
    server.post("/detokenize", &json!({"tokens": [1], "model": "other"})).error(404, Some("model"));
}
