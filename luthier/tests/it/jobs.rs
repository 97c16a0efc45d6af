//! Fine-tuning jobs over the real server: they end in the bytes of `luthier train`, in whatever company, and
//! what is wrong with their settings is told by the one that is to blame.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::serve::Served;
use crate::support::{succeed, text, tiny_model, write_lines};

impl Served {
    /// The status of an answer, and what it says.
    fn asks(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let (host, length) = (&self.address, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: {kind}\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap())
    }

    /// The id of a file that it was given.
    fn upload(&self, path: &Path) -> String {
        let content = fs::read_to_string(path).unwrap();
        let part = "--XX\r\nContent-Disposition: form-data; name=";
        let form = format!(
            "{part}\"purpose\"\r\n\r\nfine-tune\r\n{part}\"file\"; filename=\"a.jsonl\"\r\n\r\n{content}\r\n\
             --XX--\r\n"
        );
        let kind = "multipart/form-data; boundary=XX";
        let (status, file) = self.asks("POST", "/v1/files", kind, form.as_bytes());
        assert_eq!(status, 200, "{file}");
        file["id"].as_str().unwrap().to_owned()
    }

    fn create(&self, job: &Value) -> (u16, Value) {
        self.asks("POST", "/v1/fine_tuning/jobs", "application/json", job.to_string().as_bytes())
    }

    fn job(&self, id: &str) -> Value {
        self.asks("GET", &format!("/v1/fine_tuning/jobs/{id}"), "application/json", b"").1
    }

    #[track_caller]
    fn wait(&self, id: &str, status: &str) -> Value {
        let begun = Instant::now();
        loop {
            let job = self.job(id);
            if job["status"] == status {
                return job;
            }
            assert!(begun.elapsed() < Duration::from_secs(60) && job["status"] != "failed", "{job}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Examples in a file.
fn examples(folder: &Path) -> std::path::PathBuf {
    let line = |n: usize| json!({"text": format!("{n} and {} are {}", n + 1, 2 * n + 1)});
    write_lines(folder.join("data.jsonl"), &(0..12).map(line).collect::<Vec<_>>())
}

#[test]
fn jobs_that_trained_together_end_one_by_one_in_the_bytes_of_each_alone() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let data = examples(folder.path());
    let flags = ["--state", "state", "--set", "adapter.r=4"];
    let served = Served::start(folder.path(), &flags);
    let file = served.upload(&data);
    // The first has no end; all of them are there when the next server begins.
    let ids = [100_000, 2, 5].map(|epochs| {
        let hyperparameters = json!({"n_epochs": epochs, "batch_size": 4});
        let job = json!({
            "model": "model", "training_file": file, "seed": epochs, "hyperparameters": hyperparameters,
        });
        let (status, made) = served.create(&job);
        assert_eq!(status, 200, "{made}");
        made["id"].as_str().unwrap().to_owned()
    });
    served.kill();
    let served = Served::start(folder.path(), &flags);
    for (id, epochs) in ids.iter().zip([100_000, 2, 5]).skip(1) {
        let done = served.wait(id, "succeeded");
        let output = format!("alone-{epochs}");
        let (epochs, seed) = (format!("training.epochs={epochs}"), format!("training.seed={epochs}"));
        let mut arguments =
            vec!["train", "--model", "model", "--set", "precision=f32", "--data", text(&data)];
        arguments.extend(["--output", &output, "--quiet", "--set", &epochs, "--set", &seed]);
        arguments.extend(["--set", "training.batch_size=4", "--set", "adapter.r=4"]);
        succeed(folder.path(), &arguments);
        let bytes = |run: &Path| fs::read(folder.path().join(run).join("adapter_model.safetensors")).unwrap();
        let run = Path::new("state/jobs").join(id);
        assert!(bytes(&run) == bytes(output.as_ref()), "{epochs}");
        let asked = json!({"model": done["fine_tuned_model"], "prompt": "1 and", "max_tokens": 4});
        assert!(served.post("/v1/completions", &asked)["choices"][0]["text"].is_string());
        assert_eq!(served.job(&ids[0])["status"], "running");
    }
    served.post(&format!("/v1/fine_tuning/jobs/{}/cancel", ids[0]), &json!({}));
    served.kill();
}

#[test]
fn settings_are_judged_together_and_the_one_to_blame_is_named() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let data = examples(folder.path());
    let served = Served::start(folder.path(), &["--state", "state"]);
    let file = served.upload(&data);
    let with = |served: &Served, held_out: bool, settings: Value| {
        let mut job = json!({"model": "model", "training_file": file, "settings": settings});
        if held_out {
            job["validation_file"] = json!(file);
        }
        let (status, answer) = served.create(&job);
        (status, answer["error"]["param"].as_str().unwrap_or_default().to_owned())
    };
    for (held_out, settings, blamed) in [
        // Neither is right without the other, whichever comes first.
        (false, json!({"adapter.group_size": 16, "adapter.method": "qalora"}), ""),
        (true, json!({"training.eval_every": 5, "training.early_stopping_patience": 2}), ""),
        (false, json!({"training.eval_every": 5, "training.epochs": 2}), "settings.training.eval_every"),
        (false, json!({"adapter.alpha": 8, "adapter.group_size": 16}), "settings.adapter.group_size"),
        // What could be trained, and not be served.
        (false, json!({"adapter.group_size": 4, "adapter.method": "qalora"}), "settings.adapter.group_size"),
        (false, json!({"adapter.alpha": 8, "adapter.r": 0, "adapter.dropout": 2}), "settings.adapter.r"),
        (false, json!({"adapter.r": 4, "schedule.nme": "cosine"}), "settings.schedule.nme"),
    ] {
        let status = if blamed.is_empty() { 200 } else { 400 };
        assert_eq!(with(&served, held_out, settings.clone()), (status, blamed.to_owned()), "{settings}");
    }
    served.kill();
    // What only goes with settings of the server's own.
    let served = Served::start(folder.path(), &["--state", "state", "--set", "data.eval_fraction=0.5"]);
    assert_eq!(with(&served, true, json!({"adapter.r": 4})), (400, "validation_file".into()));
    assert_eq!(with(&served, false, json!({"training.eval_every": 5})), (200, String::new()));
    served.kill();
}
