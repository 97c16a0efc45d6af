//! Keys that are made and revoked while the server runs, and the log of what was changed and refused.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{Change, Keys, Place, Tenants};

use crate::support::{SAYS, Server, Start, adapter, folder};

fn server(folder: &Path) -> Server {
    let (state, root) = (folder.join("state"), folder.join("root"));
    adapter(&root.join("a"), 'A', 1);
    adapter(&root.join("b"), 'B', 1);
    let tenants = Tenants::stored(&state).unwrap();
    Server::with(Start { tenants, state: Some(state), root: Some(root), ..Start::default() })
}

fn keys(folder: &Path) -> Keys {
    Keys::open(&folder.join("state")).unwrap()
}

fn admin() -> Change {
    Change { admin: Some(true), ..Change::default() }
}

fn only(adapter: &str) -> Change {
    Change { adapters: Some(vec![adapter.into()]), ..Change::default() }
}

fn status(server: &Server, key: &str, model: &str) -> u16 {
    server.post_with(key, "/v1/completions", &json!({"model": model, "prompt": "x"})).status
}

/// Waits until the server answers so; a change is seen within a second.
#[track_caller]
fn within_a_second(server: &Server, key: &str, model: &str, wanted: u16) {
    let begun = Instant::now();
    while status(server, key, model) != wanted {
        assert!(begun.elapsed() < Duration::from_secs(5), "it still answers {}", status(server, key, model));
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_key_opens_what_it_says_and_no_longer_once_it_is_revoked() {
    let folder = folder();
    let keys = keys(folder.path());
    let (first, other) = (keys.add("alpha", &only("a")).unwrap(), keys.add("beta", &only("b")).unwrap());
    assert!(first.key.starts_with("tml-") && first.key.len() == 52 && first.key != other.key);
    let server = server(folder.path());
    assert_eq!(["a", "b", "base"].map(|model| status(&server, &first.key, model)), [200, 404, 200]);
    assert_eq!(["a", "b", "base"].map(|model| status(&server, &other.key, model)), [404, 200, 200]);
    // As Tinker's client shows it.
    let shown = server.raw("GET", "/v1/models", &format!("X-API-Key: {}\r\n", first.key), b"");
    assert_eq!(shown.json(200)["data"].as_array().unwrap().len(), 2);
    // A second key for the same tenant, then the first one goes.
    let second = keys.add("alpha", &Change::default()).unwrap();
    within_a_second(&server, &second.key, "a", 200);
    assert!(keys.revoke(&first.id).unwrap() && !keys.revoke(&first.id).unwrap());
    within_a_second(&server, &first.key, "a", 401);
    assert_eq!(status(&server, &second.key, "a"), 200);
    // What it may do is changed, too.
    keys.add("alpha", &only("b")).unwrap();
    within_a_second(&server, &second.key, "b", 200);
    assert_eq!(status(&server, &second.key, "a"), 404);
}

#[test]
fn the_last_key_that_is_revoked_opens_nothing() {
    let folder = folder();
    let keys = keys(folder.path());
    let made = keys.add("alpha", &admin()).unwrap();
    let mut server = server(folder.path());
    assert_eq!(status(&server, &made.key, "base"), 200);
    keys.revoke(&made.id).unwrap();
    within_a_second(&server, &made.key, "base", 401);
    server.get("/v1/models").error(401, None);
    server.end().unwrap();
    // Nor after another start, also where others than this machine could reach it.
    let tenants = Tenants::stored(&folder.path().join("state")).unwrap();
    assert!(tenants.has_keys() && Place::take("0.0.0.0", 0, &tenants).is_ok());
}

#[test]
fn the_first_key_closes_a_server_that_was_open() {
    let folder = folder();
    let server = server(folder.path());
    assert_eq!(server.complete("a"), format!("A{SAYS}"));
    assert!(Place::take("0.0.0.0", 0, &Tenants::stored(&folder.path().join("state")).unwrap()).is_err());
    let made = keys(folder.path()).add("alpha", &Change::default()).unwrap();
    within_a_second(&server, &made.key, "a", 404);
    server.get("/v1/models").error(401, None);
}

#[test]
fn quotas_and_weights_follow_the_keys() {
    let folder = folder();
    let keys = keys(folder.path());
    let few = Change { requests_per_minute: Some(Some(2)), weight: Some(4.0), ..Change::default() };
    let made = keys.add("alpha", &few).unwrap();
    let server = server(folder.path());
    server.wait(|script| script.weights == [(1, 4.0)].into());
    assert_eq!([(); 3].map(|()| status(&server, &made.key, "base")), [200, 200, 429]);
    // What is left of a quota stays where something else changes.
    keys.add("alpha", &Change { weight: Some(0.5), ..Change::default() }).unwrap();
    server.wait(|script| script.weights == [(1, 0.5)].into());
    assert_eq!(status(&server, &made.key, "base"), 429);
    keys.add("alpha", &Change { requests_per_minute: Some(None), ..Change::default() }).unwrap();
    within_a_second(&server, &made.key, "base", 200);
}

#[test]
fn what_cannot_be_a_tenant_is_refused_and_changes_nothing() {
    let folder = folder();
    let keys = keys(folder.path());
    let weight = |weight| Change { weight: Some(weight), ..Change::default() };
    for change in [weight(0.0), weight(f64::NAN), weight(1e9), weight(-1.0)] {
        assert!(keys.add("alpha", &change).unwrap_err().to_string().contains("weight must be"));
    }
    let quota = Change { tokens_per_minute: Some(Some(0)), ..Change::default() };
    assert!(keys.add("alpha", &quota).unwrap_err().to_string().contains("a quota of 0"));
    assert!(keys.add("", &Change::default()).unwrap_err().to_string().contains("1 to 128"));
    assert!(keys.revoke("key-none").unwrap_err().to_string().contains("there is no key `key-none`"));
    assert!(keys.list().unwrap().is_empty() && keys.audit(10).unwrap().is_empty());
}

#[test]
fn a_file_of_keys_is_taken_over_whole_or_not_at_all() {
    let folder = folder();
    let keys = keys(folder.path());
    let file = folder.path().join("keys.yaml");
    let (alpha, root) = (super::tenants::ALPHA, super::tenants::ROOT);
    let text = format!(
        "- {{tenant: alpha, key_sha256: {alpha}, adapters: '*', weight: 2, tokens_per_minute: 9}}\n\
         - {{tenant: root, key_sha256: {root}, admin: true}}\n"
    );
    std::fs::write(&file, &text).unwrap();
    assert_eq!((keys.import(&file).unwrap(), keys.import(&file).unwrap()), (2, 0));
    let listed = keys.list().unwrap();
    assert_eq!((listed.len(), listed[0].tenant.as_str(), listed[0].weight), (2, "alpha", 2.0));
    assert_eq!((&listed[0].adapters[..], listed[0].tokens_per_minute), (&["*".to_owned()][..], Some(9)));
    assert!(listed[1].admin && !listed[0].admin && listed[0].used.is_none());
    let server = server(folder.path());
    assert_eq!(status(&server, "alpha", "b"), 200);
    std::fs::write(&file, text.replace("tenant: alpha", "tenant: other").replace("weight: 2", "weight: 3"))
        .unwrap();
    let told = keys.import(&file).unwrap_err().to_string();
    assert!(told.contains("is a key of tenant \"alpha\" already"), "{told}");
    assert_eq!(keys.list().unwrap().len(), 2);
    keys.revoke(&listed[0].id).unwrap();
    std::fs::write(&file, text).unwrap();
    assert!(keys.import(&file).unwrap_err().to_string().contains("was revoked"));
}

#[test]
fn the_log_tells_who_changed_what_and_who_was_refused() {
    let folder = folder();
    let keys = keys(folder.path());
    let (root, user) = (keys.add("root", &admin()).unwrap(), keys.add("user", &only("a")).unwrap());
    let mut server = server(folder.path());
    let load = json!({"lora_name": "x", "lora_path": "a"});
    server.post_with(&root.key, "/v1/load_lora_adapter", &load).json(200);
    server.post_with(&root.key, "/v1/load_lora_adapter", &load).error(400, Some("lora_name"));
    server.post_with(&user.key, "/v1/load_lora_adapter", &load).error(403, None);
    server.post_with("tml-secret", "/v1/completions", &json!({"prompt": "private"})).error(401, None);
    server.get_with(&user.key, "/v1/audit").error(403, None);
    server.post_with(&root.key, "/v1/unload_lora_adapter", &json!({"lora_name": "x"})).json(200);
    let log = || server.get_with(&root.key, "/v1/audit").json(200)["data"].as_array().unwrap().clone();
    let begun = Instant::now();
    while log().len() < 8 && begun.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(20));
    }
    let log = log();
    let told = log.iter().rev().map(|entry| {
        ["tenant", "action", "what", "outcome"].map(|name| entry[name].as_str().unwrap_or("-").to_owned())
    });
    let made = |of: &server::Made| format!("{} of tenant {}", of.id, of.tenant);
    let expected = [
        ["-", "key.add", &made(&root), "done"],
        ["-", "key.add", &made(&user), "done"],
        ["root", "adapter.load", "x", "done"],
        ["root", "adapter.load", "x", "400 invalid_request_error"],
        ["user", "refused", "POST /v1/load_lora_adapter", "403"],
        ["-", "refused", "POST /v1/completions", "401"],
        ["user", "refused", "GET /v1/audit", "403"],
        ["root", "adapter.unload", "x", "done"],
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected);
    assert_eq!((&log[0]["key"], &log[0]["peer"]), (&json!(root.id), &json!("127.0.0.1")));
    let text = json!(log).to_string();
    assert!(!text.contains("private") && !text.contains("secret") && !text.contains(&root.key[4..]));
    // In pages, and over the command line's way.
    let page = server.get_with(&root.key, "/v1/audit?limit=2").json(200);
    assert_eq!((&page["data"], &page["has_more"]), (&json!(log[..2]), &json!(true)));
    let before = format!("/v1/audit?before={}", log[1]["id"]);
    assert_eq!(server.get_with(&root.key, &before).json(200)["data"], json!(log[2..]));
    for wrong in ["limit=0", "limit=1001", "limit=x", "before=-1"] {
        let param = wrong.split('=').next();
        server.get_with(&root.key, &format!("/v1/audit?{wrong}")).error(400, param);
    }
    server.end().unwrap();
    assert_eq!(json!(keys.audit(100).unwrap()), json!(log));
    assert_eq!(keys.audit(3).unwrap().len(), 3);
}

#[test]
fn a_flood_of_wrong_keys_is_counted_and_not_written() {
    let folder = folder();
    let keys = keys(folder.path());
    let root = keys.add("root", &admin()).unwrap();
    let mut server = server(folder.path());
    for _ in 0..200 {
        server.get_with("wrong", "/v1/models").error(401, None);
    }
    server
        .post_with(&root.key, "/v1/unload_lora_adapter", &json!({"lora_name": "x"}))
        .error(404, Some("model"));
    server.end().unwrap();
    let log = keys.audit(1000).unwrap();
    let refused = log.iter().filter(|entry| entry.action == "refused").count();
    assert!((60..80).contains(&refused), "{refused}");
    let left_out: Vec<&str> =
        log.iter().filter(|entry| entry.action == "left out").map(|entry| entry.what.as_str()).collect();
    let left_out: usize =
        left_out.iter().map(|what| what.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(left_out + refused, 200);
}

#[test]
fn a_server_without_a_state_has_no_log() {
    let server = Server::start();
    assert!(server.get("/v1/audit").error(404, None).contains("--state"));
    let folder = folder();
    adapter(&folder.path().join("a"), 'A', 1);
    let server = Server::with(Start { root: Some(folder.path().to_owned()), ..Start::default() });
    let loaded: Value =
        server.post("/v1/load_lora_adapter", &json!({"lora_name": "x", "lora_path": "a"})).json(200);
    assert_eq!(loaded["generation"], 1);
}
