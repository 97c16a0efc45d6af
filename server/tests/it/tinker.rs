//! Tinker's API: every route and every error, with a script in the place of what trains.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use server::{Objective, Tenants};
use tempfile::TempDir;

use crate::support::{END, Reply, SAYS, Server, Start, VOCAB, encode, folder};

/// A server that trains, with its folder.
fn start() -> (Server, TempDir) {
    let state = folder();
    (again(state.path()), state)
}

fn again(state: &Path) -> Server {
    Server::with(Start { state: Some(state.into()), ..Start::default() })
}

impl Server {
    fn tell(&self, route: &str, body: &Value) -> Value {
        self.post(&format!("/api/v1/{route}"), body).json(200)
    }

    fn session(&self) -> String {
        let told = self
            .tell("create_session", &json!({"tags": [], "user_metadata": {"a": "b"}, "sdk_version": "1"}));
        told["session_id"].as_str().unwrap().to_owned()
    }

    /// The result of what is promised.
    fn result(&self, promise: &Value) -> Value {
        self.tell("retrieve_future", &json!({"request_id": promise["request_id"]}))
    }

    fn done(&self, route: &str, body: &Value) -> Value {
        let result = self.result(&self.tell(route, body));
        assert!(result.get("error").is_none(), "{route}: {result}");
        result
    }

    fn model(&self, session: &str, number: u32) -> String {
        let made = self.done("create_model", &create(session, number));
        made["model_id"].as_str().unwrap().to_owned()
    }

    fn delete(&self, path: &str) -> Reply {
        self.raw("DELETE", path, "", b"")
    }

    /// Sends protobuf, takes bytes.
    fn proto(&self, route: &str, headers: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = self.send("POST", &format!("/api/v1/{route}"), headers, body);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head, bytes[end + 4..].to_vec())
    }
}

const PROTO: &str = "Content-Type: application/x-protobuf\r\n";

fn create(session: &str, number: u32) -> Value {
    json!({
        "session_id": session, "model_seq_id": number, "base_model": "base",
        "lora_config": {"rank": 8, "seed": 1, "train_unembed": false}, "optimizer_config": {"type": "adamw"},
    })
}

fn datum(ids: &[u32], targets: &[u32]) -> Value {
    json!({
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": ids}]},
        "loss_fn_inputs": {"target_tokens": {"data": targets, "dtype": "int64", "shape": [targets.len()]}},
    })
}

fn pass(model: &str, seq: u64, data: &[Value]) -> Value {
    json!({
        "model_id": model, "seq_id": seq,
        "forward_backward_input": {"loss_fn": "cross_entropy", "data": data},
    })
}

/// A field of a message: its number, and bytes.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [&varint(number << 3 | 2)[..], &varint(bytes.len() as u64), bytes].concat()
}

fn whole(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 127 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn tensor(dtype: u64, dense: &[u8], shape: &[u8]) -> Vec<u8> {
    [field(1, dense), whole(3, dtype), field(4, shape)].concat()
}

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn longs(numbers: &[i64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn proto_datum(ids: &[u32], inputs: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let tokens: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let mut datum = field(1, &field(1, &field(1, &tokens)));
    for (name, tensor) in inputs {
        datum.extend(field(2, &[field(1, name.as_bytes()), field(2, tensor)].concat()));
    }
    datum
}

fn proto_pass(model: &str, seq: u64, loss: &str, data: &[Vec<u8>]) -> Vec<u8> {
    let data: Vec<u8> = data.iter().flat_map(|datum| field(3, datum)).collect();
    [field(1, model.as_bytes()), whole(2, seq), data, field(4, loss.as_bytes())].concat()
}

#[test]
fn without_a_folder_or_for_nothing_that_is_there_it_says_so() {
    let server = Server::start();
    for route in
        ["client/config", "create_session", "telemetry", "create_model", "asample", "retrieve_future"]
    {
        let told = server.post(&format!("/api/v1/{route}"), &json!({"request_id": "x"})).error(400, None);
        assert!(told.contains("start it with `--state DIR`"), "{route}: {told}");
    }
    let (server, _state) = start();
    assert_eq!(server.get("/api/v1/healthz").json(200), json!({"status": "ok"}));
    assert_eq!(server.post("/api/v1/save_weights_external", &json!({})).status, 404);
    let can = server.get("/api/v1/get_server_capabilities").json(200);
    assert_eq!(can["supported_models"][0]["model_name"], "base");
    let config = server.tell("client/config", &json!({"sdk_version": "0.38.0"}));
    assert_eq!(
        (&config["pjwt_auth_enabled"], &config["parallel_fwdbwd_chunks"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(server.tell("client/dynamic_config", &json!({}))["sample_cancel_enabled"], true);
    assert_eq!(server.tell("telemetry", &json!({"events": [{"x": 1}]})), json!({"status": "accepted"}));
}

#[test]
fn a_client_trains_saves_and_samples() {
    let (server, _state) = start();
    let session = server.session();
    let model = server.model(&session, 0);
    assert_eq!(model, format!("{session}:train:0"));
    let info = server.tell("get_info", &json!({"model_id": model}));
    assert_eq!((&info["lora_rank"], &info["model_data"]["model_name"]), (&json!(8), &json!("base")));
    assert_eq!(info["model_data"]["tokenizer_id"], "/models/base");

    let passed = server.done("forward_backward", &pass(&model, 1, &[datum(&[1, 2], &[64, 32])]));
    assert_eq!(passed["metrics"], json!({"loss:sum": 1.5}));
    assert_eq!(passed["loss_fn_outputs"][0]["logprobs"]["data"], json!([-1.0, -0.5]));
    assert_eq!(passed["loss_fn_outputs"][0]["elementwise_loss"]["data"], json!([1.0, 0.5]));
    let forward = json!({
        "model_id": model, "seq_id": 2, "forward_input": {"loss_fn": "cross_entropy", "data": [datum(&[1], &[2])]},
    });
    server.done("forward", &forward);
    let adam = json!({"learning_rate": 0.5, "beta1": 0.8, "beta2": 0.9, "eps": 1e-8, "grad_clip_norm": -1.0});
    let stepped = server.done("optim_step", &json!({"model_id": model, "seq_id": 3, "adam_params": adam}));
    assert_eq!(stepped["metrics"]["grad_norm"], 1.5);
    let saved = json!({"model_id": model, "seq_id": 4, "path": "first", "user_metadata": {"k": "v"}});
    let saved = server.done("save_weights", &saved)["path"].as_str().unwrap().to_owned();
    assert_eq!(saved, format!("tinker://{model}/weights/first"));
    let sampler = json!({"model_id": model, "seq_id": 5, "sampling_session_seq_id": 0});
    let sampler = server.done("save_weights_for_sampler", &sampler)["sampling_session_id"].clone();
    server.done("load_weights", &json!({"model_id": model, "seq_id": 6, "path": saved, "optimizer": true}));
    {
        let taught = server.taught.lock().unwrap();
        assert_eq!(
            taught.calls,
            [
                format!(
                    "create {model} Lora {{ rank: 8, seed: 1, attention: true, mlp: true, head: false }}"
                ),
                "pass".into(),
                "pass".into(),
                format!(
                    "step {model} Adam {{ learning_rate: 0.5, betas: [0.8, 0.9], eps: 1e-8, weight_decay: 0.0, clip: 0.0 }}"
                ),
                format!("save {model} true"),
                format!("save {model} false"),
                format!("load {model} true true"),
            ]
        );
        let backward: Vec<bool> = taught.passes.iter().map(|passes| passes[0].backward).collect();
        assert_eq!(backward, [true, false]);
    }
    // The snapshot says its letter before what all say, and the token that stops is told too.
    let sample = json!({
        "sampling_session_id": sampler, "seq_id": 0, "num_samples": 2,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "sampling_params": {"max_tokens": 50, "temperature": 0.5, "top_k": -1, "top_p": 1.0, "seed": 7},
    });
    let promise = server.tell("asample", &sample);
    assert_eq!(promise["sample_sequence_ids"].as_array().unwrap().len(), 2);
    let told = server.result(&promise);
    let expected: Vec<u32> = [vec![122], encode(SAYS), vec![END]].concat();
    assert_eq!(told["sequences"][0]["tokens"], json!(expected));
    assert_eq!(told["sequences"][1]["stop_reason"], "stop");
    assert_eq!(told["sequences"][0]["logprobs"][0], json!(-122.0 / 256.0));
    assert_eq!(told["prompt_logprobs"], Value::Null);
    let asks: Vec<(u64, f32)> = server
        .script
        .lock()
        .unwrap()
        .asks
        .iter()
        .map(|ask| (ask.sampling.seed, ask.sampling.temperature))
        .collect();
    assert_eq!(asks, [(7, 0.5), (8, 0.5)]);
    // It is one of its tenant's models, for other clients, too.
    let path = server.get(&format!("/api/v1/samplers/{}", sampler.as_str().unwrap())).json(200)["model_path"]
        .clone();
    let chat = json!({"model": path, "prompt": "x"});
    assert_eq!(server.post("/v1/completions", &chat).status, 200);
    let models = server.get("/v1/models").json(200);
    assert_eq!(models["data"][1]["id"], path);
}

#[test]
fn protobuf_packed_or_not_comes_to_the_same_as_json() {
    let (server, _state) = start();
    let model = server.model(&server.session(), 0);
    let policy = proto_datum(
        &[5, 6, 7],
        &[
            ("target_tokens", tensor(2, &longs(&[64, 32, 16]), &[3])),
            ("logprobs", tensor(1, &floats(&[-1.0, -2.0, -3.0]), &[3])),
            ("advantages", tensor(1, &floats(&[0.5, 0.5, -1.0]), &[])),
        ],
    );
    // Rows begin at 0, 1, 1 and end at 2; the entries are at columns 1 and 0.
    let entries = |dtype: u64, values: &[u8]| {
        let csr = [field(1, values), field(2, &longs(&[0, 1, 2])), field(3, &longs(&[1, 0]))].concat();
        [field(2, &csr), whole(3, dtype), field(4, &[2, 2])].concat()
    };
    let matrix = proto_datum(
        &[8, 9],
        &[("target_tokens", entries(2, &longs(&[64, 32]))), ("weights", entries(1, &floats(&[2.0, 4.0])))],
    );
    let ppo = [
        proto_pass(&model, 1, "ppo", &[policy]),
        field(
            7,
            &[field(1, b"clip_low_threshold"), field(2, &[vec![9], 0.5f64.to_le_bytes().to_vec()].concat())]
                .concat(),
        ),
    ]
    .concat();
    let (status, _, promise) = server.proto("forward_backward", PROTO, &ppo);
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&promise));
    let promise: Value = serde_json::from_slice(&promise).unwrap();
    let asked = json!({"request_id": promise["request_id"]}).to_string();
    let (_, head, bytes) =
        server.proto("retrieve_future", "Accept: application/x-protobuf\r\n", asked.as_bytes());
    assert!(head.to_lowercase().contains("content-type: application/x-protobuf"), "{head}");
    let logprobs = floats(&[-1.0, -0.5, -0.25]);
    assert!(bytes.windows(12).any(|some| some == logprobs), "{bytes:?}");
    assert!(bytes.windows(8).any(|some| some == b"loss:sum"));
    let packed = zstd::bulk::compress(&proto_pass(&model, 2, "cross_entropy", &[matrix]), 3).unwrap();
    let headers = format!("{PROTO}Content-Encoding: zstd\r\n");
    let (status, _, promise) = server.proto("forward_backward", &headers, &packed);
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&promise));
    let told = server.result(&serde_json::from_slice(&promise).unwrap());
    assert_eq!(told["loss_fn_outputs"][0]["logprobs"]["shape"], json!([2, 2]));
    assert_eq!(told["loss_fn_outputs"][0]["logprobs"]["data"], json!([0.0, -1.0, -0.5, 0.0]));
    assert_eq!(told["metrics"]["loss:sum"], 4.0);
    let taught = server.taught.lock().unwrap();
    let first = &taught.passes[0][0];
    assert_eq!(first.objective, Objective::Ppo { clip: [0.5, 1.2] });
    assert_eq!(
        (&first.examples[0].ids[..], &first.examples[0].advantages[..]),
        (&[5, 6, 7][..], &[0.5, 0.5, -1.0][..])
    );
    let columns: Vec<&[u32]> =
        taught.passes[1][0].examples.iter().map(|example| &example.targets[..]).collect();
    assert_eq!(columns, [[0, 32], [64, 0]]);
}

#[test]
fn requests_run_in_the_order_of_their_numbers_once_each_and_models_together() {
    let (server, _state) = start();
    let session = server.session();
    let models = [server.model(&session, 0), server.model(&session, 1)];
    server.taught.lock().unwrap().pause = Duration::from_millis(200);
    let step = json!({"model_id": models[0], "seq_id": 2, "adam_params": {}});
    let last = server.tell("optim_step", &step);
    let first = server.tell("forward_backward", &pass(&models[0], 1, &[datum(&[1], &[1])]));
    assert_eq!(server.tell("forward_backward", &pass(&models[0], 1, &[datum(&[1], &[1])])), first);
    let others = server.tell("forward_backward", &pass(&models[1], 1, &[datum(&[2], &[2])]));
    let more = server.tell("forward_backward", &pass(&models[1], 2, &[datum(&[3], &[3])]));
    let third = server.tell("forward_backward", &pass(&models[0], 3, &[datum(&[4], &[4])]));
    for promise in [&last, &first, &others, &more, &third] {
        assert!(server.result(promise).get("error").is_none());
    }
    let taught = server.taught.lock().unwrap();
    let steps = taught.calls.iter().position(|call| call.starts_with("step")).unwrap();
    assert!(taught.calls[..steps].contains(&"pass".to_owned()));
    let passes: usize = taught.passes.iter().map(Vec::len).sum();
    assert_eq!(passes, 4, "one that was sent twice is done once");
    assert!(taught.passes.iter().any(|together| together.len() == 2), "{:?}", taught.passes);
}

#[test]
fn stops_log_probabilities_and_lengths_of_samples() {
    let (server, _state) = start();
    let session = server.session();
    let sampler = json!({"session_id": session, "sampling_session_seq_id": 3, "base_model": "base"});
    let sampler = server.tell("create_sampling_session", &sampler)["sampling_session_id"].clone();
    let mut seq = 0;
    let mut sample = |params: Value, more: Value| {
        seq += 1;
        let mut body = json!({
            "sampling_session_id": sampler, "seq_id": seq, "sampling_params": params,
            "prompt": {"chunks": [{"tokens": [1, 2]}, {"tokens": [3]}]},
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.done("asample", &body)
    };
    let says = encode(SAYS);
    let until = |count: usize| json!(says[..count]);
    let told = sample(json!({"stop": [says[2]]}), json!({}));
    assert_eq!(
        (&told["sequences"][0]["tokens"], &told["sequences"][0]["stop_reason"]),
        (&until(3), &json!("stop"))
    );
    let at = SAYS.find("o w").unwrap();
    let told = sample(json!({"stop": "o w"}), json!({}));
    let length = told["sequences"][0]["tokens"].as_array().unwrap().len();
    assert!((1..says.len()).contains(&length), "{told}");
    let text: String = SAYS.chars().take(at + 3).collect();
    assert_eq!(encode(&text).len(), length, "it ends with what ends it");
    let told = sample(json!({"max_tokens": 2}), json!({}));
    assert_eq!(
        (&told["sequences"][0]["tokens"], &told["sequences"][0]["stop_reason"]),
        (&until(2), &json!("length"))
    );
    // An empty list: nothing stops it, not even the end of text.
    let told = sample(json!({"stop": [], "max_tokens": says.len() + 3}), json!({}));
    assert_eq!(told["sequences"][0]["tokens"].as_array().unwrap().len(), says.len() + 3);
    let told = sample(
        json!({"max_tokens": 1}),
        json!({"prompt_logprobs": true, "topk_prompt_logprobs": 2, "topk_sample_logprobs": 1}),
    );
    assert_eq!(told["prompt_logprobs"], json!([null, -2.0 / 256.0, -3.0 / 256.0]));
    assert_eq!(told["topk_prompt_logprobs"][0], Value::Null);
    assert_eq!(told["topk_prompt_logprobs"][2].as_array().unwrap().len(), 2);
    assert_eq!(told["sequences"][0]["topk_logprobs"][0][0][0], says[0] % 256);
    let told =
        sample(json!({"max_tokens": 1}), json!({"prompt_logprobs": true, "prompt_logprobs_last_n": 1}));
    assert_eq!(told["prompt_logprobs"], json!([null, null, -3.0 / 256.0]));
    // A prompt as long as the context has log-probabilities, and nothing behind it.
    let whole = json!({"prompt_logprobs": true, "prompt": {"chunks": [{"tokens": vec![1; 128]}]}});
    let told = sample(json!({"max_tokens": 1}), whole);
    assert_eq!(told["prompt_logprobs"].as_array().unwrap().len(), 128);
    assert_eq!(told["sequences"][0]["tokens"], json!([]));

    // Without a session, and cancelled on its way.
    server.script.lock().unwrap().pause = Duration::from_millis(5);
    let endless = json!({
        "base_model": "base", "prompt": {"chunks": [{"tokens": [33]}]}, "sampling_params": {"max_tokens": 100},
    });
    let promise = server.tell("asample", &endless);
    let cancelled = server.post("/api/v1/cancel_future", &json!({"request_id": promise["request_id"]}));
    assert_eq!(cancelled.status, 204);
    server.wait(|script| !script.cancelled.is_empty());
    let gone = server.post("/api/v1/retrieve_future", &json!({"request_id": promise["request_id"]}));
    gone.error(410, None);
}

#[test]
fn what_was_saved_outlives_the_server_and_what_was_not_is_gone() {
    let (mut server, state) = start();
    let session = server.session();
    let model = server.model(&session, 0);
    server.done("save_weights", &json!({"model_id": model, "seq_id": 1, "path": "a"}));
    let named = json!({"model_id": model, "seq_id": 2, "path": "b", "ttl_seconds": 3600});
    let named = server.done("save_weights_for_sampler", &named)["path"].clone();
    let lost = server.tell("optim_step", &json!({"model_id": model, "seq_id": 3, "adam_params": {}}));
    server.end().unwrap();

    let server = again(state.path());
    server.post("/api/v1/retrieve_future", &json!({"request_id": lost["request_id"]})).error(410, None);
    let told = server.post("/api/v1/optim_step", &json!({"model_id": model, "seq_id": 4, "adam_params": {}}));
    assert!(told.error(410, None).contains("create one from its last checkpoint"));
    server.tell("session_heartbeat", &json!({"session_id": session}));
    let sampler = json!({"session_id": session, "sampling_session_seq_id": 0, "model_path": named});
    let sampler = server.tell("create_sampling_session", &sampler)["sampling_session_id"].clone();
    let sample = json!({
        "sampling_session_id": sampler, "seq_id": 0, "prompt": {"chunks": [{"tokens": [1]}]},
        "sampling_params": {"max_tokens": 1},
    });
    assert_eq!(server.done("asample", &sample)["sequences"][0]["tokens"], json!([122]));
    let from = format!("tinker://{model}/weights/a");
    let load = json!({"session_id": session, "model_seq_id": 1, "path": from, "optimizer": true});
    let loaded = server.done("load_weights", &load);
    assert_eq!(loaded["model_id"], format!("{session}:train:1"));
    let calls = server.taught.lock().unwrap().calls.clone();
    assert!(calls[0].contains("rank: 8, seed: 0, attention: true, mlp: true, head: false"), "{calls:?}");
    assert_eq!(calls[1], format!("load {session}:train:1 true true"));

    // Lists, and their order: the newest first.
    let run = server.get(&format!("/api/v1/training_runs/{model}")).json(200);
    assert_eq!((&run["training_run_id"], &run["lora_rank"]), (&json!(model), &json!(8)));
    assert_eq!(run["last_checkpoint"]["checkpoint_id"], "weights/a");
    assert_eq!(run["last_sampler_checkpoint"]["tinker_path"], named);
    let runs = server.get("/api/v1/training_runs?limit=1&offset=0").json(200);
    assert_eq!(runs["cursor"], json!({"offset": 0, "limit": 1, "total_count": 2}));
    let list = server.get(&format!("/api/v1/training_runs/{model}/checkpoints")).json(200);
    let ids: Vec<&str> = list["checkpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| of["checkpoint_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["sampler_weights/b", "weights/a"]);
    assert!(list["checkpoints"][0]["expires_at"].as_str().unwrap().ends_with('Z'));
    let info = server.tell("weights_info", &json!({"tinker_path": from}));
    assert_eq!((&info["lora_rank"], &info["train_unembed"]), (&json!(8), &json!(false)));
    let of_session = server.get(&format!("/api/v1/sessions/{session}")).json(200);
    assert_eq!(of_session["training_run_ids"].as_array().unwrap().len(), 2);
    assert_eq!(of_session["user_metadata"], json!({"a": "b"}));
    assert_eq!(server.get("/api/v1/sessions").json(200)["sessions"], json!([session]));
    server.get("/api/v1/sessions?limit=0").error(400, Some("limit"));

    let ttl = format!("/api/v1/training_runs/{model}/checkpoints/weights/a/ttl");
    assert_eq!(server.raw("PUT", &ttl, "", b"{\"ttl_seconds\": null}").status, 204);
    server.raw("PUT", &ttl, "", b"{\"ttl_seconds\": 5}").error(400, Some("ttl_seconds"));
    let place = format!("/api/v1/training_runs/{model}/checkpoints/weights/a");
    let files = state.path().join("tinker").join(model.replace(':', "_")).join("weights/a");
    assert!(files.is_dir());
    assert_eq!(server.delete(&place).status, 204);
    assert!(!files.exists());
    server.delete(&place).error(404, Some("checkpoint_id"));
    let gone = server.post("/api/v1/weights_info", &json!({"tinker_path": from}));
    gone.error(404, Some("tinker_path"));
    let finish =
        server.post(&format!("/api/v1/sessions/{session}/finish"), &json!({"reason": {"type": "success"}}));
    assert_eq!(finish.status, 204);
    server.post("/api/v1/session_heartbeat", &json!({"session_id": session})).error(410, None);
    assert_eq!(server.post("/api/v1/create_model", &create(&session, 2)).status, 410);
}

#[test]
fn passing_checkpoints_go_when_newer_ones_come_and_names_are_taken_once() {
    let (server, state) = start();
    let model = server.model(&server.session(), 0);
    for seq in 1..=10 {
        let body = json!({"model_id": model, "seq_id": seq, "sampling_session_seq_id": seq});
        server.done("save_weights_for_sampler", &body);
    }
    let folder = state.path().join("tinker").join(model.replace(':', "_")).join("sampler_weights");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 8);
    assert!(!names.contains(&"passing-2".to_owned()) && names.contains(&"passing-3".to_owned()), "{names:?}");
    let list = server.get("/api/v1/checkpoints").json(200);
    assert_eq!(list["checkpoints"], json!([]), "they have no names of a client's");
    server.done("save_weights", &json!({"model_id": model, "seq_id": 11, "path": "x"}));
    let twice = json!({"model_id": model, "seq_id": 12, "path": "x"});
    assert!(server.post("/api/v1/save_weights", &twice).error(400, Some("path")).contains("already"));
    server.done("save_weights", &json!({"model_id": model, "seq_id": 13, "path": "x", "overwrite": true}));
    // The same request again is the same request.
    server.done("save_weights", &json!({"model_id": model, "seq_id": 11, "path": "x"}));
}

#[test]
fn a_tenant_learns_nothing_of_what_is_anothers() {
    let keys = folder();
    let path = keys.path().join("keys.yaml");
    // The hashes of `tml-one` and `tml-two`.
    let hash = |key: &str| {
        use sha2::Digest;
        sha2::Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let text = format!(
        "- {{tenant: one, key_sha256: {}, adapters: ['*']}}\n- {{tenant: two, key_sha256: {}, adapters: ['*']}}\n",
        hash("tml-one"),
        hash("tml-two")
    );
    std::fs::write(&path, text).unwrap();
    let state = folder();
    let tenants = Tenants::read(&path).unwrap();
    let server = Server::with(Start { state: Some(state.path().into()), tenants, ..Start::default() });
    let ask = |key: &str, method: &str, route: &str, body: &Value| {
        let headers = format!("X-API-Key: {key}\r\nContent-Type: application/json\r\n");
        server.raw(method, &format!("/api/v1/{route}"), &headers, body.to_string().as_bytes())
    };
    assert_eq!(server.post("/api/v1/create_session", &json!({})).status, 401);
    let session = ask("tml-one", "POST", "create_session", &json!({})).json(200)["session_id"].clone();
    let session = session.as_str().unwrap();
    let promise = ask("tml-one", "POST", "create_model", &create(session, 0)).json(200);
    let asked = json!({"request_id": promise["request_id"]});
    let model = ask("tml-one", "POST", "retrieve_future", &asked).json(200)["model_id"].clone();
    let model = model.as_str().unwrap();
    let info = ask("tml-one", "POST", "get_info", &json!({"model_id": model})).json(200);
    assert_eq!(info["model_data"]["tokenizer_id"], Value::Null, "no folder is told where others could ask");
    let save = json!({"model_id": model, "seq_id": 1, "path": "a"});
    let promise = ask("tml-one", "POST", "save_weights_for_sampler", &save).json(200);
    let saved =
        ask("tml-one", "POST", "retrieve_future", &json!({"request_id": promise["request_id"]})).json(200);
    let path = saved["path"].as_str().unwrap();

    // Each is answered as what does not exist is, but for its name.
    let other = "00000000000000000000000000000000";
    let same = |method: &str, route: &dyn Fn(&str) -> String, body: &dyn Fn(&str) -> Value| {
        let theirs = ask("tml-two", method, &route(session), &body(session));
        let nobodys = ask("tml-two", method, &route(other), &body(other));
        assert!([404, 410].contains(&theirs.status), "{}: {}", route("x"), theirs.body);
        assert_eq!((theirs.status, theirs.body.replace(session, other)), (nobodys.status, nobodys.body));
    };
    let plain = |route: &'static str| move |_: &str| route.to_owned();
    let of_model = |seq: u64| {
        move |session: &str| {
            let model = format!("{session}:train:0");
            json!({"model_id": model, "seq_id": seq, "adam_params": {}, "path": "x"})
        }
    };
    same("POST", &plain("session_heartbeat"), &|session| json!({"session_id": session}));
    same("POST", &plain("create_model"), &|session| create(session, 5));
    same("POST", &plain("get_info"), &of_model(1));
    same("POST", &plain("unload_model"), &of_model(1));
    same("POST", &plain("optim_step"), &of_model(2));
    same("POST", &plain("save_weights"), &of_model(2));
    same("POST", &plain("forward_backward"), &|session| {
        pass(&format!("{session}:train:0"), 2, &[datum(&[1], &[1])])
    });
    same("POST", &plain("retrieve_future"), &|session| json!({"request_id": format!("{session}:train:0:0")}));
    let of_path = |session: &str| path.replace(&model[..32], session);
    same("POST", &plain("weights_info"), &|session| json!({"tinker_path": of_path(session)}));
    same(
        "POST",
        &plain("asample"),
        &|session| json!({"model_path": of_path(session), "prompt": {"chunks": []}, "sampling_params": {}}),
    );
    same(
        "POST",
        &plain("load_weights"),
        &|session| json!({"path": of_path(session), "optimizer": false, "model_id": "x", "seq_id": 1}),
    );
    let nothing = |_: &str| json!({});
    same("GET", &|session| format!("sessions/{session}"), &nothing);
    same("POST", &|session| format!("sessions/{session}/finish"), &nothing);
    same("GET", &|session| format!("training_runs/{session}:train:0"), &nothing);
    same("GET", &|session| format!("training_runs/{session}:train:0/checkpoints"), &nothing);
    same(
        "DELETE",
        &|session| format!("training_runs/{session}:train:0/checkpoints/sampler_weights/a"),
        &nothing,
    );
    same(
        "PUT",
        &|session| format!("training_runs/{session}:train:0/checkpoints/sampler_weights/a/ttl"),
        &nothing,
    );
    assert_eq!(ask("tml-two", "GET", "training_runs", &json!({})).json(200)["cursor"]["total_count"], 0);
    assert_eq!(ask("tml-two", "GET", "checkpoints", &json!({})).json(200)["cursor"]["total_count"], 0);
    assert_eq!(ask("tml-one", "GET", "checkpoints", &json!({})).json(200)["cursor"]["total_count"], 1);
    // Nor by its name as an adapter.
    let chat = server.post_with("tml-two", "/v1/completions", &json!({"model": path, "prompt": "x"}));
    assert_eq!(chat.status, 404);
    // It is all still there.
    let list = ask("tml-one", "GET", &format!("sessions/{session}"), &json!({})).json(200);
    assert_eq!(list["training_run_ids"], json!([model]));
}

#[test]
fn passes_and_samples_count_against_quotas() {
    use sha2::Digest;
    let (keys, state) = (folder(), folder());
    let path = keys.path().join("keys.yaml");
    let hash: String = sha2::Sha256::digest("tml-one").iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(&path, format!("- {{tenant: one, key_sha256: {hash}, requests_per_minute: 2}}\n"))
        .unwrap();
    let tenants = Tenants::read(&path).unwrap();
    let server = Server::with(Start { state: Some(state.path().into()), tenants, ..Start::default() });
    let ask = |route: &str, body: &Value| {
        let body = body.to_string();
        server.raw("POST", &format!("/api/v1/{route}"), "X-API-Key: tml-one\r\n", body.as_bytes())
    };
    let session = ask("create_session", &json!({})).json(200)["session_id"].clone();
    let session = session.as_str().unwrap();
    ask("create_model", &create(session, 0)).json(200);
    let model = format!("{session}:train:0");
    ask("forward_backward", &pass(&model, 1, &[datum(&[1], &[1])])).json(200);
    let sample = json!({"base_model": "base", "prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 1}});
    ask("asample", &sample).json(200);
    let full = ask("forward_backward", &pass(&model, 2, &[datum(&[1], &[1])]));
    full.error(429, None);
    assert!(full.header("retry-after").is_some());
    ask("asample", &sample).error(429, None);
}

#[test]
fn what_cannot_be_is_refused_by_its_name() {
    let (server, _state) = start();
    let session = server.session();
    let model = server.model(&session, 0);
    let refuse = |route: &str, body: Value, status: u16, param: Option<&str>, words: &str| {
        let told = server.post(&format!("/api/v1/{route}"), &body).error(status, param);
        assert!(told.contains(words), "{route} {body}: {told}");
    };
    let with = |mut body: Value, name: &str, value: Value| {
        body[name] = value;
        body
    };
    refuse(
        "create_model",
        with(create(&session, 1), "base_model", json!("other")),
        404,
        Some("model"),
        "other",
    );
    refuse(
        "create_model",
        with(create(&session, 1), "lora_config", Value::Null),
        400,
        Some("lora_config"),
        "low-rank",
    );
    refuse(
        "create_model",
        with(create(&session, 1), "lora_config", json!({"rank": 0})),
        400,
        Some("rank"),
        "1 or more",
    );
    refuse(
        "create_model",
        with(create(&session, 1), "model_seq_id", json!(-1)),
        400,
        Some("model_seq_id"),
        "from 0",
    );
    let dimuon = with(create(&session, 1), "optimizer_config", json!({"type": "dimuon"}));
    refuse("create_model", dimuon, 400, Some("optimizer_config"), "no optimizer `dimuon`");
    refuse("create_session", json!({"user_metadata": "x"}), 400, Some("user_metadata"), "must be an object");
    let big = server.tell("create_model", &with(create(&session, 1), "lora_config", json!({"rank": 65})));
    let told = server.result(&big);
    assert_eq!(told, json!({"error": "no room for rank 65", "category": "user"}));
    server.model(&session, 2);
    refuse("create_model", create(&session, 3), 400, None, "2 models are in training already");

    let step = |adam: Value| json!({"model_id": model, "seq_id": 1, "adam_params": adam});
    refuse(
        "optim_step",
        json!({"model_id": model, "seq_id": 0, "adam_params": {}}),
        400,
        Some("seq_id"),
        "from 1 on",
    );
    refuse("optim_step", json!({"model_id": model, "seq_id": 1}), 400, Some("adam_params"), "missing");
    refuse("optim_step", step(json!({"beta1": 1.0})), 400, Some("beta1"), "below 1");
    refuse("optim_step", step(json!({"learning_rate": -1})), 400, Some("learning_rate"), "of 0 or more");
    refuse("optim_step", step(json!({"eps": 0})), 400, Some("eps"), "above 0");
    let other = json!({"model_id": model, "seq_id": 1, "optimizer_params": {"type": "dimuon"}});
    refuse("optim_step", other, 400, Some("optimizer_params"), "cannot do");
    for path in ["", "..", "a/b", "../../etc", ".x", "a\u{0}b", "ü", &"x".repeat(129)] {
        let body = json!({"model_id": model, "seq_id": 1, "path": path});
        refuse("save_weights", body.clone(), 400, Some("path"), "a checkpoint's name has");
        refuse("save_weights_for_sampler", body, 400, Some("path"), "a checkpoint's name has");
    }
    refuse(
        "save_weights",
        json!({"model_id": model, "seq_id": 1, "ttl_seconds": 1}),
        400,
        Some("ttl_seconds"),
        "3600",
    );
    refuse(
        "save_weights_for_sampler",
        json!({"model_id": model, "seq_id": 1}),
        400,
        Some("path"),
        "must say",
    );
    for path in ["x", "tinker://x/weights/..", "tinker://../../etc/weights/passwd", "tinker://x/weights/y"] {
        let body = json!({"model_id": model, "seq_id": 1, "path": path, "optimizer": false});
        refuse("load_weights", body, 404, Some("path"), "there is no checkpoint");
    }

    let data = |datum: Value| pass(&model, 1, &[datum]);
    let of = |name: &str, tensor: Value| {
        let mut body = datum(&[1, 2], &[3, 4]);
        body["loss_fn_inputs"][name] = tensor;
        data(body)
    };
    refuse("forward_backward", pass(&model, 1, &[]), 400, Some("data"), "1 to 1024 examples");
    refuse("forward_backward", data(json!({})), 400, Some("data"), "no images and sounds");
    refuse(
        "forward_backward",
        data(datum(&[1, 2], &[3])),
        400,
        Some("data"),
        "2 tokens and `target_tokens` the shape [1]",
    );
    refuse(
        "forward_backward",
        of("weights", json!({"data": [1.0], "shape": [1]})),
        400,
        Some("data"),
        "the shape [1], and",
    );
    refuse(
        "forward_backward",
        of("weights", json!({"data": [1, "x"]})),
        400,
        Some("data"),
        "fitting numbers",
    );
    refuse(
        "forward_backward",
        of("weights", json!({"data": [1, 2], "shape": [3]})),
        400,
        Some("data"),
        "says its shape is [3]",
    );
    refuse(
        "forward_backward",
        of("weights", json!({"data": [1, 2], "shape": [-2]})),
        400,
        Some("data"),
        "shape is [-2]",
    );
    refuse(
        "forward_backward",
        of("target_tokens", json!({"data": [1, -1]})),
        400,
        Some("data"),
        "fitting numbers",
    );
    refuse(
        "forward_backward",
        of("surprise", json!({"data": [1, 2]})),
        400,
        Some("data"),
        "there is no `surprise`",
    );
    let huge = json!({"data": [], "shape": [i64::MAX, i64::MAX], "sparse_crow_indices": [], "sparse_col_indices": []});
    refuse("forward_backward", of("weights", huge), 400, Some("data"), "no sparse matrix");
    let loss = |name: &str, config: Value| {
        let mut body = data(datum(&[1], &[1]));
        body["forward_backward_input"]["loss_fn"] = json!(name);
        body["forward_backward_input"]["loss_fn_config"] = config;
        body
    };
    refuse("forward_backward", loss("gspo", json!({})), 400, Some("loss_fn"), "no loss `gspo`");
    refuse("forward_backward", loss("ppo", json!({})), 400, Some("data"), "`logprobs` is missing");
    refuse(
        "forward_backward",
        loss("ppo", json!({"beta": 1})),
        400,
        Some("loss_fn_config"),
        "no setting `beta`",
    );
    refuse(
        "forward_backward",
        loss("ppo", json!({"clip_low_threshold": 2})),
        400,
        Some("loss_fn_config"),
        "may not be above",
    );
    refuse(
        "forward_backward",
        loss("dro", json!({"beta": "x"})),
        400,
        Some("loss_fn_config"),
        "must be a number",
    );
    let deep = format!("{{\"forward_backward_input\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let told = server.raw("POST", "/api/v1/forward_backward", "", deep.as_bytes()).error(400, None);
    assert!(told.contains("the body is not JSON"), "{told}");
    // The trainer's own word, at a number that none of those above has used up.
    let promise = server.tell("forward_backward", &pass(&model, 9, &[datum(&[VOCAB], &[1])]));
    (1..9)
        .for_each(|seq| drop(server.post("/api/v1/optim_step", &json!({"model_id": model, "seq_id": seq}))));
    let told = server.result(&promise);
    assert_eq!(told["category"], "user");
    assert!(told["error"].as_str().unwrap().contains("token"), "{told}");

    let sample = |more: Value| {
        let mut body =
            json!({"base_model": "base", "prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    refuse("asample", sample(json!({"num_samples": 0})), 400, Some("num_samples"), "1 or more");
    refuse("asample", sample(json!({"num_samples": 5000})), 400, Some("num_samples"), "at most here");
    refuse(
        "asample",
        sample(json!({"prompt": {"chunks": [{"type": "image"}]}})),
        400,
        Some("prompt"),
        "no images",
    );
    refuse(
        "asample",
        sample(json!({"sampling_params": {"stop": [1, "x"]}})),
        400,
        Some("stop"),
        "must be a string",
    );
    refuse(
        "asample",
        sample(json!({"sampling_params": {"temperature": -1}})),
        400,
        Some("temperature"),
        "from 0",
    );
    refuse(
        "asample",
        sample(json!({"sampling_params": {"max_tokens": 128}})),
        400,
        Some("max_tokens"),
        "the context has",
    );
    refuse(
        "asample",
        sample(json!({"prompt_alt_tokens_k": 2})),
        400,
        Some("prompt_alt_tokens_k"),
        "cannot do",
    );
    refuse(
        "asample",
        sample(json!({"topk_prompt_logprobs": 65})),
        400,
        Some("topk_prompt_logprobs"),
        "from 0 to 64",
    );
    refuse("asample", sample(json!({"base_model": "x"})), 404, Some("model"), "`x`");
    refuse(
        "asample",
        json!({"sampling_session_id": "x", "seq_id": 1}),
        404,
        Some("sampling_session_id"),
        "no sampler",
    );
}

#[test]
fn protobuf_that_lies_is_refused() {
    let (server, _state) = start();
    let model = server.model(&server.session(), 0);
    let refuse = |headers: &str, body: &[u8], status: u16, words: &str| {
        let (found, _, told) = server.proto("forward_backward", headers, body);
        let told = String::from_utf8_lossy(&told).into_owned();
        assert_eq!(found, status, "{told}");
        assert!(told.contains(words), "{words}: {told}");
    };
    let of =
        |inputs: &[(&str, Vec<u8>)]| proto_pass(&model, 1, "cross_entropy", &[proto_datum(&[1, 2], inputs)]);
    let targets = || ("target_tokens", tensor(2, &longs(&[1, 2]), &[2]));
    // Lengths beyond the body's end, and a key of no type.
    refuse(PROTO, &[26, 255, 255, 255, 255, 15, 1], 400, "cannot be read");
    refuse(PROTO, &[7], 400, "cannot be read");
    refuse(PROTO, &[0xff; 64], 400, "cannot be read");
    refuse(PROTO, &proto_pass(&model, 1, "cross_entropy", &[vec![10, 200]]), 400, "cannot be read");
    // Very many empty examples.
    let many = proto_pass(&model, 1, "cross_entropy", &vec![Vec::new(); 100_000]);
    refuse(PROTO, &many, 400, "1 to 1024 examples");
    refuse(PROTO, &of(&[]), 400, "`target_tokens` is missing");
    refuse(PROTO, &of(&[("target_tokens", tensor(2, &[1, 2, 3], &[2]))]), 400, "bytes that are no Int64");
    refuse(
        PROTO,
        &of(&[("target_tokens", tensor(9, &longs(&[1, 2]), &[2]))]),
        400,
        "a type that is not read",
    );
    refuse(
        PROTO,
        &of(&[("target_tokens", tensor(2, &longs(&[1, -2]), &[2]))]),
        400,
        "has -2, which is no token",
    );
    refuse(
        PROTO,
        &of(&[("target_tokens", tensor(2, &longs(&[1, 2]), &[127]))]),
        400,
        "has 2 numbers, and says",
    );
    let endless = [&[255; 9][..], &[1]].concat();
    refuse(
        PROTO,
        &of(&[("target_tokens", tensor(2, &longs(&[1, 2]), &endless))]),
        400,
        "has 2 numbers, and says",
    );
    let sparse = |rows: &[i64], columns: &[i64], shape: &[u8]| {
        let csr =
            [field(1, &floats(&[1.0, 1.0])), field(2, &longs(rows)), field(3, &longs(columns))].concat();
        let weights = [field(2, &csr), whole(3, 1), field(4, shape)].concat();
        of(&[targets(), ("weights", weights)])
    };
    refuse(PROTO, &sparse(&[0, 1, 3], &[0, 0], &[2, 1]), 400, "no sparse matrix");
    refuse(PROTO, &sparse(&[0, 2, 1], &[0, 0], &[2, 1]), 400, "no sparse matrix");
    refuse(PROTO, &sparse(&[0, 1, 2], &[0, 7], &[2, 1]), 400, "no sparse matrix");
    refuse(PROTO, &sparse(&[0, 1, 2], &[-1, 0], &[2, 1]), 400, "no sparse matrix");
    refuse(PROTO, &sparse(&[0, 1, 2], &[0, 0], &[2, 1]), 400, "the shape [2, 1], and `target_tokens` [2]");
    let image = proto_pass(&model, 1, "cross_entropy", &[field(1, &field(2, b"png"))]);
    refuse(PROTO, &image, 400, "no images and sounds");
    refuse(PROTO, &proto_pass(&model, 0, "cross_entropy", &[Vec::new()]), 400, "from 1 on");
    // Packed bodies: what is none, one that grows, and another packing.
    let packed = format!("{PROTO}Content-Encoding: zstd\r\n");
    refuse(&packed, b"not packed", 400, "no zstd");
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
    assert!(bomb.len() < 1 << 20);
    refuse(&packed, &bomb, 413, "bytes at most");
    refuse(&format!("{PROTO}Content-Encoding: br\r\n"), b"x", 400, "not by br");
    let claims = format!("{PROTO}Content-Length: {}\r\n", usize::MAX);
    let (status, ..) = server.proto("forward_backward", &claims, b"");
    assert!([400, 413].contains(&status), "{status}");
    // A weight that is no number is for the one that trains to refuse; here it only has to arrive.
    let nan = of(&[targets(), ("weights", tensor(1, &floats(&[f32::NAN, 1.0]), &[2]))]);
    assert_eq!(server.proto("forward_backward", PROTO, &nan).0, 200);
}

#[test]
fn a_request_that_is_refused_holds_up_nobody() {
    let (server, _state) = start();
    let model = server.model(&server.session(), 0);
    let refused = |route: &str, body: Value| server.post(&format!("/api/v1/{route}"), &body).json(400);
    let step = |seq: u64, rate: f64| json!({"model_id": model, "seq_id": seq, "adam_params": {"learning_rate": rate}});
    // The next one has come before.
    let waits = server.tell("optim_step", &step(2, 1e-3));
    refused("optim_step", step(1, -1.0));
    assert!(server.result(&waits).get("error").is_none());
    // Of each kind, as JSON and as protobuf.
    refused("forward_backward", pass(&model, 3, &[datum(&[1], &[1, 2])]));
    let body = proto_pass(&model, 4, "no_such_loss", &[]);
    assert_eq!(server.proto("forward_backward", PROTO, &body).0, 400);
    refused("save_weights", json!({"model_id": model, "seq_id": 5, "path": "../x"}));
    server
        .post(
            "/api/v1/load_weights",
            &json!({"model_id": model, "seq_id": 6, "path": "tinker://a/weights/b", "optimizer": false}),
        )
        .json(404);
    server.done("optim_step", &step(7, 1e-3));
    // A number that is used is told as such.
    let again = server.result(&server.tell("optim_step", &step(1, 1e-3)));
    assert!(again["error"].as_str().unwrap().contains("number 1 of this model is used"), "{again}");
}
