//! Training over the real server: the sampler's numbers are the trainer's, and checkpoints outlive a server
//! that is killed.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::serve::Served;
use crate::support::{succeed, text, tiny_model};

impl Served {
    /// What a request comes to once it is done.
    fn done(&self, route: &str, body: &Value) -> Value {
        let promise = self.post(&format!("/api/v1/{route}"), body);
        let result = self.post("/api/v1/retrieve_future", &json!({"request_id": promise["request_id"]}));
        assert!(result.get("error").is_none(), "{route}: {result}");
        result
    }

    fn session(&self) -> String {
        self.post("/api/v1/create_session", &json!({}))["session_id"].as_str().unwrap().to_owned()
    }

    fn sample(&self, path: &Value, max_tokens: usize, temperature: f64) -> Value {
        let body = json!({
            "model_path": path, "prompt": input(&PROMPT), "prompt_logprobs": true,
            "sampling_params": {"max_tokens": max_tokens, "seed": 1, "temperature": temperature, "stop": []},
        });
        self.done("asample", &body)
    }
}

const PROMPT: [u32; 5] = [104, 101, 108, 108, 111];

fn input(ids: &[u32]) -> Value {
    json!({"chunks": [{"type": "encoded_text", "tokens": ids}]})
}

fn datum(ids: &[u32]) -> Value {
    let targets = json!({"data": ids[1..], "dtype": "int64", "shape": [ids.len() - 1]});
    json!({"model_input": input(&ids[..ids.len() - 1]), "loss_fn_inputs": {"target_tokens": targets}})
}

fn pass(model: &str, seq: u64, ids: &[u32]) -> Value {
    let given = json!({"loss_fn": "cross_entropy", "data": [datum(ids)]});
    json!({"model_id": model, "seq_id": seq, "forward_backward_input": given, "forward_input": given})
}

/// Trains a little, and saves both kinds of checkpoints: the model and their paths.
fn train(server: &Served, base: &str) -> (String, Value, Value) {
    let session = server.session();
    let lora = json!({"rank": 4, "seed": 3});
    let create = json!({"session_id": session, "model_seq_id": 0, "base_model": base, "lora_config": lora});
    let model = server.done("create_model", &create)["model_id"].as_str().unwrap().to_owned();
    let (mut losses, mut seq) = (Vec::new(), 0);
    for _ in 0..6 {
        let passed =
            server.done("forward_backward", &pass(&model, seq + 1, b"hello there".map(u32::from).as_ref()));
        losses.push(passed["metrics"]["loss:sum"].as_f64().unwrap());
        let adam = json!({"model_id": model, "seq_id": seq + 2, "adam_params": {"learning_rate": 0.01}});
        server.done("optim_step", &adam);
        seq += 2;
    }
    assert!(losses[5] < 0.8 * losses[0], "{losses:?}");
    let saved = server.done("save_weights", &json!({"model_id": model, "seq_id": seq + 1, "path": "a"}));
    let named = json!({"model_id": model, "seq_id": seq + 2, "path": "a"});
    let sampler = server.done("save_weights_for_sampler", &named);
    (model, saved["path"].clone(), sampler["path"].clone())
}

/// The largest difference between what was told of a sample and what `forward` says of it.
fn away(server: &Served, model: &str, path: &Value, seq: u64) -> f64 {
    let told = server.sample(path, 40, 1.0);
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap_or(f64::NAN)).collect()
    };
    let sequence = &told["sequences"][0];
    let tokens: Vec<u32> = numbers(&sequence["tokens"]).iter().map(|&token| token as u32).collect();
    assert_eq!(tokens.len(), 40);
    let ids = [&PROMPT[..], &tokens].concat();
    let forward = server.done("forward", &pass(model, seq, &ids));
    let forward = numbers(&forward["loss_fn_outputs"][0]["logprobs"]["data"]);
    let sampled = [numbers(&told["prompt_logprobs"])[1..].to_vec(), numbers(&sequence["logprobs"])].concat();
    assert_eq!(forward.len(), sampled.len());
    forward.iter().zip(sampled).map(|(one, other)| (one - other).abs()).fold(0.0, f64::max)
}

#[test]
fn a_samples_log_probabilities_are_those_of_forward() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    for (more, most) in [(&["--exact-logprobs"][..], 0.0), (&[], 1e-4)] {
        for precision in ["f32", "bf16"] {
            let state = format!("state-{precision}-{}", more.len());
            let flags = [&["--state", &state, "--precision", precision], more].concat();
            let mut server = Served::start_as(folder.path(), &flags);
            let (model, _, path) = train(&server, "model");
            let away = away(&server, &model, &path, 15);
            let most = if precision == "bf16" && most > 0.0 { 0.5 } else { most };
            assert!(away <= most, "{more:?} {precision}: {away}");
            server.child.kill().unwrap();
            server.child.wait().unwrap();
        }
    }
}

#[test]
fn checkpoints_outlive_a_server_that_is_killed() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let flags = ["--state", "state"];
    let mut server = Served::start(folder.path(), &flags);
    let (model, saved, sampler) = train(&server, "model");
    let before = server.sample(&sampler, 12, 0.0);
    server.child.kill().unwrap();
    server.child.wait().unwrap();

    let mut server = Served::start(folder.path(), &flags);
    assert_eq!(server.sample(&sampler, 12, 0.0)["sequences"], before["sequences"]);
    assert_eq!(server.sample(&saved, 12, 0.0)["sequences"], before["sequences"]);
    let session = server.session();
    let load = json!({"session_id": session, "model_seq_id": 0, "path": saved, "optimizer": true});
    let again = server.done("load_weights", &load)["model_id"].as_str().unwrap().to_owned();
    let passed = server.done("forward_backward", &pass(&again, 1, &PROMPT));
    assert!(passed["metrics"]["loss:sum"].as_f64().unwrap() > 0.0);
    let step = json!({"model_id": again, "seq_id": 2, "adam_params": {"learning_rate": 0.01}});
    assert!(server.done("optim_step", &step)["metrics"]["grad_norm"].as_f64().unwrap() > 0.0);

    // It is an adapter like any other.
    let place = Path::new("state/tinker").join(model.replace(':', "_")).join("weights/a");
    let told = succeed(
        folder.path(),
        &[
            "generate",
            "--model",
            "model",
            "--adapter",
            text(&place),
            "--prompt",
            "hello",
            "--max-tokens",
            "3",
        ],
    );
    assert!(!told.0.is_empty());
    server.child.kill().unwrap();
    server.child.wait().unwrap();
}
