//! Keys, whose adapters, and how much.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use server::{Limits, Place, Tenants};
use tempfile::TempDir;

use crate::support::{SAYS, Server, Start, adapter, folder};

/// SHA-256 of `alpha`, `beta`, `root`.
pub(crate) const ALPHA: &str = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8";
const BETA: &str = "f44e64e75f3948e9f73f8dfa94721c4ce8cbb4f265c4790c702b2d41cfbf2753";
pub(crate) const ROOT: &str = "4813494d137e1631bba301d5acab6e7bb7aa74ce1185d456565ef51d737677b2";

fn keys(folder: &TempDir, text: &str) -> PathBuf {
    let path = folder.path().join("keys.yaml");
    fs::write(&path, text).unwrap();
    path
}

/// Two tenants with an adapter each, and an administrator.
fn server(folder: &TempDir, more: &str) -> Server {
    with_limits(folder, more, Start::default().limits)
}

fn with_limits(folder: &TempDir, more: &str, limits: Limits) -> Server {
    let root = folder.path().join("root");
    adapter(&root.join("a"), 'A', 1);
    adapter(&root.join("b"), 'B', 1);
    let text = format!(
        "- {{tenant: alpha, key_sha256: {ALPHA}, adapters: [a]{more}}}\n\
         - {{tenant: beta, key_sha256: [{BETA}], adapters: [b]}}\n\
         - {{tenant: root, key_sha256: {ROOT}, adapters: ['*'], admin: true}}\n"
    );
    let tenants = Tenants::read(&keys(folder, &text)).unwrap();
    Server::with(Start { tenants, root: Some(root), limits, ..Start::default() })
}

fn ask(server: &Server, key: &str, model: &str) -> crate::support::Reply {
    server.post_with(key, "/v1/completions", &json!({"model": model, "prompt": "x"}))
}

#[test]
fn without_a_key_nothing_is_answered_but_how_the_server_is() {
    let folder = folder();
    let server = server(&folder, "");
    for path in
        ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/v1/load_lora_adapter"]
    {
        server.post(path, &json!({})).error(401, None);
    }
    for path in ["/v1/models", "/v1/models/a", "/metrics", "/api/state"] {
        let reply = server.get(path);
        reply.error(401, None);
        assert_eq!(reply.header("www-authenticate"), Some("bearer"));
    }
    for key in ["", "gamma", "alpha beta", ALPHA] {
        ask(&server, key, "base").error(401, None);
    }
    for path in ["/health", "/ready", "/"] {
        assert_eq!(server.get(path).status, 200);
    }
}

#[test]
fn a_tenant_sees_and_uses_what_is_its_own() {
    let folder = folder();
    let server = server(&folder, "");
    let ids = |key: &str| -> Vec<Value> {
        let models = server.get_with(key, "/v1/models").json(200);
        models["data"].as_array().unwrap().iter().map(|card| card["id"].clone()).collect()
    };
    assert_eq!(ids("alpha"), ["base", "a"]);
    assert_eq!(ids("beta"), ["base", "b"]);
    assert_eq!(ids("root"), ["base", "a", "b"]);
    assert_eq!(ask(&server, "alpha", "a").json(200)["choices"][0]["text"], format!("A{SAYS}"));
    // Another's is as if it were not there, loaded or not.
    ask(&server, "root", "b").json(200);
    let others = ask(&server, "alpha", "b").error(404, Some("model"));
    assert_eq!(others, ask(&server, "alpha", "nobody's").error(404, Some("model")).replace("nobody's", "b"));
    server.get_with("alpha", "/v1/models/b").error(404, Some("model"));
    let tokenize = json!({"model": "b", "prompt": "x"});
    server.post_with("alpha", "/tokenize", &tokenize).error(404, Some("model"));
    let state = server.get_with("alpha", "/api/state").json(200);
    assert_eq!(state["adapters"].as_array().unwrap().len(), 1);
    // Owners are told apart.
    let owners: Vec<u64> = server.script.lock().unwrap().asks.iter().map(|ask| ask.owner).collect();
    assert_eq!(owners, [1, 3]);
}

#[test]
fn only_an_admin_changes_what_is_served() {
    let folder = folder();
    let server = server(&folder, "");
    let body = json!({"lora_name": "x", "lora_path": "a"});
    server.post_with("alpha", "/v1/load_lora_adapter", &body).error(403, None);
    server.post_with("alpha", "/v1/unload_lora_adapter", &body).error(403, None);
    server.get_with("alpha", "/metrics").error(403, None);
    server.post_with("root", "/v1/load_lora_adapter", &body).json(200);
    server.post_with("root", "/v1/unload_lora_adapter", &body).json(200);
    assert!(server.get_with("root", "/metrics").body.contains("vllm:"));
}

#[test]
fn quotas_are_kept_and_say_when_to_come_again() {
    let folder = self::folder();
    let server = server(&folder, ", requests_per_minute: 2");
    ask(&server, "alpha", "base").json(200);
    ask(&server, "alpha", "base").json(200);
    let reply = ask(&server, "alpha", "base");
    reply.error(429, None);
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    assert_eq!(reply.json(429)["error"]["code"], "rate_limit_exceeded");
    ask(&server, "beta", "base").json(200);
    // What is wrong costs nothing.
    server.post_with("beta", "/v1/completions", &json!({})).error(400, Some("model"));
}

#[test]
fn tokens_are_counted_as_they_come() {
    let folder = self::folder();
    let server = server(&folder, ", tokens_per_minute: 5");
    ask(&server, "alpha", "base").json(200);
    let reply = ask(&server, "alpha", "base");
    assert!(reply.error(429, None).contains("tokens"));
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!(seconds > 30, "ten tokens of five a minute: {seconds}");
}

#[test]
fn a_file_of_keys_says_what_is_wrong_with_it() {
    let folder = folder();
    let told = |text: &str| Tenants::read(&keys(&folder, text)).unwrap_err().to_string();
    for (text, words) in [
        (String::new(), ""),
        ("[]".into(), "no key"),
        ("- {tenant: a}".into(), "key_sha256"),
        ("- {tenant: a, key_sha256: abc}".into(), "64 hexadecimal digits"),
        (format!("- {{tenant: a, key_sha256: {}}}", "é".repeat(32)), "64 hexadecimal digits"),
        ("- {tenant: a, key_sha256: []}".into(), "no key"),
        (format!("- {{tenant: a, key_sha256: {ALPHA}, key: x}}"), "key"),
        (format!("- {{tenant: '', key_sha256: {ALPHA}}}"), "1 to 128"),
        (format!("- {{tenant: a, key_sha256: {ALPHA}, weight: 0}}"), "weight"),
        (format!("- {{tenant: a, key_sha256: {ALPHA}, weight: 1e-4}}"), "from 0.001 to 1000"),
        (format!("- {{tenant: a, key_sha256: {ALPHA}, weight: 1001}}"), "from 0.001 to 1000"),
        (format!("- {{tenant: a, key_sha256: {ALPHA}, adapters: 5}}"), "a string or a list of strings"),
        (format!("- {{tenant: a, key_sha256: {ALPHA}, weight: .nan}}"), "weight"),
        (format!("- {{tenant: a, key_sha256: {ALPHA}, requests_per_minute: 0}}"), "quota"),
        (format!("- {{tenant: a, key_sha256: {ALPHA}}}\n- {{tenant: b, key_sha256: {ALPHA}}}"), "in common"),
        (format!("- {{tenant: a, key_sha256: {ALPHA}}}\n- {{tenant: a, key_sha256: {BETA}}}"), "in common"),
    ] {
        let message = told(&text);
        assert!(message.contains("keys.yaml") && message.contains(words), "{text}: {message}");
    }
    let json = json!([{"tenant": "a", "key_sha256": ALPHA.to_uppercase(), "weight": 2}]).to_string();
    let tenants = Tenants::read(&keys(&folder, &json)).unwrap();
    assert_eq!(tenants.weights(), [(1, 2.0)]);
    assert!(Tenants::read("none.yaml".as_ref()).unwrap_err().to_string().contains("none.yaml"));
}

#[test]
fn without_keys_only_this_machine_is_listened_to() {
    let all = Tenants::open_to_all();
    for host in ["0.0.0.0", "::"] {
        let error = Place::take(host, 0, &all).unwrap_err().to_string();
        assert!(error.contains("--keys"), "{error}");
    }
    let place = Place::take("127.0.0.1", 0, &all).unwrap();
    let taken = Place::take("127.0.0.1", place.address().port(), &all).unwrap_err().to_string();
    assert!(taken.contains("cannot listen at 127.0.0.1:"), "{taken}");
}

#[test]
fn without_keys_pages_of_strangers_are_refused() {
    let server = Server::start();
    let refused = |headers: &str| {
        // The first `Host` is the client's own; a page's name resolves to this machine.
        let mut stream = server.connect();
        let head = format!("GET /v1/models HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
        std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
        crate::support::Reply::read(stream).error(403, None);
    };
    refused("Host: example.com\r\n");
    refused("Host: localhost\r\nOrigin: http://example.com\r\n");
    refused("Host: localhost\r\nOrigin: null\r\n");
    let host = server.address;
    assert_eq!(server.raw("GET", "/v1/models", &format!("Origin: http://{host}\r\n"), b"").status, 200);
}

#[test]
fn no_tenant_takes_the_places_of_all() {
    let folder = folder();
    let server = server(&folder, "");
    let many = |n: usize| json!({"model": "a", "prompt": "x", "n": n});
    // Of 1024 places half are a tenant's at most.
    server.post_with("alpha", "/v1/completions", &many(513)).error(400, Some("n"));
    assert_eq!(
        server.post_with("alpha", "/v1/completions", &many(512)).json(200)["choices"]
            .as_array()
            .unwrap()
            .len(),
        512
    );
}

#[test]
fn of_three_tenants_two_leave_a_place_for_the_third() {
    let folder = folder();
    let limits = Limits { requests: 4, ..Start::default().limits };
    let server = with_limits(&folder, "", limits);
    server.script.lock().unwrap().pause = Duration::from_millis(30);
    let body = json!({"model": "base", "prompt": "!", "max_tokens": 100, "stream": true}).to_string();
    let begin = |key: &str| {
        let headers = format!("Authorization: Bearer {key}\r\n");
        server.send("POST", "/v1/completions", &headers, body.as_bytes())
    };
    let _running = [begin("alpha"), begin("alpha"), begin("beta")];
    server.wait(|script| script.running == 3);
    for key in ["alpha", "beta"] {
        assert_eq!(ask(&server, key, "base").json(429)["error"]["code"], "queue_full", "{key}");
    }
    ask(&server, "root", "base").json(200);
}

#[test]
fn a_quota_counts_answers() {
    let folder = folder();
    let server = server(&folder, ", requests_per_minute: 5");
    let many = |n: usize| {
        server.post_with("alpha", "/v1/completions", &json!({"model": "base", "prompt": ["x", "y"], "n": n}))
    };
    many(2).json(200);
    many(1).error(429, None);
    ask(&server, "alpha", "base").json(200);
    // More than there ever are is no matter of waiting.
    assert!(many(3).error(400, None).contains("5 that this key has in a minute"));
}

#[test]
fn where_adapters_lie_is_told_to_administrators() {
    let folder = folder();
    let server = server(&folder, "");
    let root = |key: &str| server.get_with(key, "/v1/models/a").json(200)["root"].clone();
    assert_eq!(root("alpha"), "a");
    assert!(root("root").as_str().unwrap().starts_with('/'));
}

#[test]
fn a_star_by_itself_means_all_shared_adapters() {
    let folder = folder();
    let tenants = keys(&folder, &format!("- {{tenant: a, key_sha256: {ALPHA}, adapters: '*'}}"));
    let root = folder.path().join("root");
    adapter(&root.join("b"), 'B', 1);
    let tenants = Tenants::read(&tenants).unwrap();
    let server = Server::with(Start { tenants, root: Some(root), ..Start::default() });
    ask(&server, "alpha", "b").json(200);
}
