//! `luthier serve`: what is refused before anything is served, and a server's life.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::support::{CONTEXT, succeed, text, tiny_adapter, tiny_model};
use crate::{failure, luthier};

const HASH: &str = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8";

#[test]
fn what_cannot_be_served_is_told_before_the_weights_are_read() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let keys = |text: &str| fs::write(folder.path().join("keys.yaml"), text).unwrap();
    let told = |more: &[&str]| {
        let told = failure(folder.path(), &[&["serve", "--model", "model", "--port", "0"], more].concat());
        assert!(told.starts_with("exit code 2\nerror: "), "{told}");
        told
    };
    for (more, words) in [
        (&["--host", "0.0.0.0"][..], "without keys only a loopback address"),
        (&["--host", "no such host"], "cannot listen at no such host:0"),
        (&["--adapter", "name"], "expected NAME=DIR"),
        (&["--adapter", "=run"], "expected NAME=DIR"),
        (&["--adapter", "a=none"], "none"),
        (&["--adapter-memory", "much"], "--adapter-memory"),
        (&["--context", "257"], &format!("the model was made for {CONTEXT} tokens")),
        (&["--context", "0"], "expected a whole number of 1 or more"),
        (&["--cached-tokens", "9"], "cannot hold one sequence of --context 256"),
        (&["--running", "0"], "expected a whole number of 1 or more"),
        (&["--port", "65536"], "--port"),
        (&["--drain-time", "18446744073709551615"], "--drain-time"),
        (&["--keys", "none.yaml"], "none.yaml"),
        (&["--chat-template", "none"], "neither a file nor a built-in template"),
        (&["--cached-tokens", "1000000000000"], "--cached-tokens 256"),
    ] {
        let told = match more[0] {
            "--port" => failure(folder.path(), &[&["serve", "--model", "model"], more].concat()),
            _ => told(more),
        };
        assert!(told.contains(words), "{more:?}: {told}");
    }
    keys(&format!("- {{tenant: a, key_sha256: {HASH}, weight: 0}}"));
    assert!(told(&["--keys", "keys.yaml"]).contains("weight must be from 0.001 to 1000"));
    keys("- {tenant: a, key_sha256: abc}");
    assert!(told(&["--keys", "keys.yaml"]).contains("64 hexadecimal digits"));
    assert!(failure(folder.path(), &["serve"]).contains("needs `--model <M>`"));
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server, with where it listens.
pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Served {
    pub(crate) fn start(folder: &Path, more: &[&str]) -> Self {
        Served::start_as(folder, &[&["--precision", "f32"], more].concat())
    }

    /// The same in whatever precision.
    pub(crate) fn start_as(folder: &Path, more: &[&str]) -> Self {
        let mut command = luthier(folder);
        command.args(["serve", "--model", "model", "--port", "0"]).args(more);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let told = lines.by_ref().map_while(Result::ok).find(|line| line.contains("serving"));
        let told = told.expect("it says where it listens");
        let address = told.rsplit_once("http://").unwrap().1.to_owned();
        // Else its further notes would have nowhere to go.
        std::thread::spawn(move || lines.for_each(drop));
        Served { child, address }
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let (body, host) = (body.to_string(), &self.address);
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{reply}");
        serde_json::from_str(body).unwrap()
    }
}

#[test]
fn a_server_says_what_generate_says_and_ends_when_asked_to() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let adapter = tiny_adapter(folder.path(), 0.5);
    let named = format!("tuned={}", text(&adapter));
    let mut served = Served::start(folder.path(), &["--adapter", &named]);
    for model in ["model", "tuned"] {
        let asked = json!({"model": model, "prompt": "hello", "max_tokens": 12, "temperature": 0});
        let answer = served.post("/v1/completions", &asked);
        let mut arguments = vec!["generate", "--model", "model", "--prompt", "hello", "--max-tokens", "12"];
        arguments.extend(["--precision", "f32", "--json"]);
        if model == "tuned" {
            arguments.extend(["--adapter", text(&adapter)]);
        }
        let (told, _) = succeed(folder.path(), &arguments);
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(answer["choices"][0]["text"], told["text"], "{model}");
    }
    let pid = served.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
}

/// Whatever a server holds besides, and whoever asks it for what: the base answers with the bytes of a server that
/// has nothing but the base.
#[test]
fn the_base_answers_the_same_with_adapters_and_without() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let adapters = [0.5, -0.5].map(|scale| {
        let made = tiny_adapter(folder.path(), scale);
        let named = folder.path().join(format!("adapter{scale}"));
        fs::rename(made, &named).unwrap();
        format!("tuned{scale}={}", text(&named))
    });
    let asked = |model: &str, n: u64| {
        json!({
            "model": model, "prompt": format!("hello {n}"), "max_tokens": 20, "temperature": n as f64 / 4.0,
            "seed": n, "logprobs": 3, "echo": true,
        })
    };
    let ask = |served: &Served| -> Vec<Value> {
        let answer = |n| served.post("/v1/completions", &asked("model", n))["choices"].take();
        (0..8).map(answer).collect()
    };
    for base in [&["--quantization", "none"][..], &["--quantization", "nf4"]] {
        let expected = ask(&Served::start_as(folder.path(), base));
        let [one, two] = &adapters;
        let more = [base, &["--adapter", one, "--adapter", two, "--state", "state"]].concat();
        let full = Served::start_as(folder.path(), &more);
        let got = std::thread::scope(|scope| {
            for name in ["tuned0.5", "tuned-0.5"] {
                let (full, asked) = (&full, &asked);
                scope.spawn(move || (0..8).for_each(|n| drop(full.post("/v1/completions", &asked(name, n)))));
            }
            ask(&full)
        });
        for (n, (expected, got)) in expected.iter().zip(&got).enumerate() {
            assert_eq!(expected, got, "{base:?}, request {n}");
        }
        let tuned = full.post("/v1/completions", &asked("tuned0.5", 0))["choices"].take();
        assert_ne!(tuned, expected[0], "the adapters do something");
    }
}
