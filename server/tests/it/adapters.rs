//! Adapters by name: at the start, over the API, from a root; replaced, unloaded, and gone when room is
//! needed.

use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{SAYS, Server, Start, adapter, folder};

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";

fn cards(server: &Server) -> Vec<Value> {
    server.get("/v1/models").json(200)["data"].as_array().unwrap().clone()
}

fn state(server: &Server, name: &str) -> Value {
    let state = server.get("/api/state").json(200);
    let adapters = state["adapters"].as_array().unwrap().clone();
    adapters.into_iter().find(|adapter| adapter["name"] == name).unwrap_or(Value::Null)
}

#[test]
fn each_name_answers_with_its_own_adapter() {
    let folder = folder();
    let adapters = ['A', 'B'].map(|letter| {
        let name = letter.to_lowercase().to_string();
        (name, adapter(&folder.path().join(letter.to_string()), letter, 1))
    });
    let server = Server::with(Start { adapters: adapters.to_vec(), ..Start::default() });
    assert_eq!(server.complete("a"), format!("A{SAYS}"));
    assert_eq!(server.complete("b"), format!("B{SAYS}"));
    assert_eq!(server.complete("base"), SAYS);
    server.post("/v1/completions", &json!({"model": "c", "prompt": "x"})).error(404, Some("model"));
}

#[test]
fn models_are_listed_with_what_they_come_from() {
    let folder = folder();
    let (outside, root) = (folder.path().join("outside"), folder.path().join("root"));
    adapter(&root.join("cold"), 'C', 1);
    fs::create_dir(root.join("no-adapter")).unwrap();
    adapter(&root.join(".hidden"), 'H', 1);
    let adapters = vec![("warm".to_owned(), adapter(&outside, 'W', 1))];
    let server = Server::with(Start { adapters, root: Some(root.clone()), ..Start::default() });
    let cards = cards(&server);
    let ids: Vec<&Value> = cards.iter().map(|card| &card["id"]).collect();
    assert_eq!(ids, ["base", "cold", "warm"]);
    assert_eq!((&cards[0]["parent"], &cards[0]["object"]), (&Value::Null, &json!("model")));
    assert_eq!(cards[2]["parent"], "base");
    assert_eq!(cards[2]["root"], outside.to_str().unwrap());
    assert!(cards.iter().all(|card| card["created"].as_u64() > Some(1_600_000_000)));
    assert_eq!(server.get("/v1/models/cold").json(200)["id"], "cold");
    server.get("/v1/models/other").error(404, Some("model"));
    assert_eq!(state(&server, "cold")["state"], "cold");
    assert_eq!(state(&server, "warm")["state"], "warm");
    assert_eq!(state(&server, "warm")["pinned"], true);
}

#[test]
fn an_adapter_of_the_root_is_loaded_once_however_many_ask_for_it() {
    let folder = folder();
    adapter(&folder.path().join("one"), 'O', 1);
    let root = Some(folder.path().to_owned());
    let server = Server::with(Start { root, load_time: Duration::from_millis(300), ..Start::default() });
    thread::scope(|scope| {
        let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| server.complete("one"))).collect();
        thread::sleep(Duration::from_millis(100));
        assert_eq!(state(&server, "one")["state"], "loading");
        // The base is not held up.
        assert_eq!(server.complete("base"), SAYS);
        for asked in asked {
            assert_eq!(asked.join().unwrap(), format!("O{SAYS}"));
        }
    });
    assert_eq!(*server.loads.lock().unwrap(), 1);
    assert_eq!(state(&server, "one")["generation"], 1);
    assert_eq!(state(&server, "one")["requests"], 8);
}

#[test]
fn a_load_that_fails_changes_nothing() {
    let folder = folder();
    let root = folder.path().to_owned();
    adapter(&root.join("good"), 'G', 1);
    fs::create_dir(root.join("bad")).unwrap();
    fs::write(root.join("bad/adapter_config.json"), "{").unwrap();
    let server = Server::with(Start { root: Some(root.clone()), ..Start::default() });
    let message =
        server.post("/v1/completions", &json!({"model": "bad", "prompt": "x"})).error(400, Some("model"));
    assert!(message.contains("`bad` cannot be loaded: adapter_config.json"), "{message}");
    assert_eq!(state(&server, "bad")["state"], "cold");
    server.post(LOAD, &json!({"lora_name": "x", "lora_path": "good"})).json(200);
    let replaced = json!({"lora_name": "x", "lora_path": "bad", "load_inplace": true});
    assert!(server.post(LOAD, &replaced).error(400, Some("lora_path")).contains("adapter_config.json"));
    assert_eq!(server.complete("x"), format!("G{SAYS}"));
    // Once it is put right it is there.
    adapter(&root.join("bad"), 'B', 1);
    assert_eq!(server.complete("bad"), format!("B{SAYS}"));
}

#[test]
fn generations_are_replaced_by_comparing_and_setting() {
    let folder = folder();
    for letter in ['A', 'B', 'C'] {
        adapter(&folder.path().join(letter.to_string()), letter, 1);
    }
    let server = Server::with(Start { root: Some(folder.path().to_owned()), ..Start::default() });
    let load = |more: Value| {
        let mut body = json!({"lora_name": "x", "lora_path": "A"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post(LOAD, &body)
    };
    assert_eq!(load(json!({"expected_generation": 0})).json(200)["generation"], 1);
    assert!(load(json!({})).error(400, Some("lora_name")).contains("load_inplace"));
    load(json!({"lora_path": "B", "expected_generation": 7})).error(409, Some("expected_generation"));
    assert_eq!(server.complete("x"), format!("A{SAYS}"));
    assert_eq!(load(json!({"lora_path": "B", "expected_generation": 1})).json(200)["generation"], 2);
    assert_eq!(server.complete("x"), format!("B{SAYS}"));
    assert_eq!(load(json!({"lora_path": "C", "load_inplace": true})).json(200)["generation"], 3);
    let told = server.post("/v1/completions", &json!({"model": "x", "prompt": "a"})).json(200);
    assert_eq!(told["system_fingerprint"], "generation-3");
    let unload =
        |expected: u64| server.post(UNLOAD, &json!({"lora_name": "x", "expected_generation": expected}));
    unload(2).error(409, Some("expected_generation"));
    unload(3).json(200);
    server.post("/v1/completions", &json!({"model": "x", "prompt": "a"})).error(404, Some("model"));
    server.post(UNLOAD, &json!({"lora_name": "x"})).error(404, Some("model"));
}

#[test]
fn a_request_keeps_the_generation_that_it_began_with() {
    let folder = folder();
    for letter in ['A', 'B'] {
        adapter(&folder.path().join(letter.to_string()), letter, 1);
    }
    let server = Server::with(Start { root: Some(folder.path().to_owned()), ..Start::default() });
    let load = |letter: &str| {
        let body = json!({"lora_name": "x", "lora_path": letter, "load_inplace": true});
        server.post(LOAD, &body).json(200);
    };
    load("A");
    server.script.lock().unwrap().pause = Duration::from_millis(20);
    thread::scope(|scope| {
        let old = scope.spawn(|| server.complete("x"));
        server.wait(|script| script.asks.len() == 1);
        load("B");
        let new = scope.spawn(|| server.complete("x"));
        server.wait(|script| script.asks.len() == 2);
        server.post(UNLOAD, &json!({"lora_name": "x"})).json(200);
        assert_eq!(old.join().unwrap(), format!("A{SAYS}"));
        assert_eq!(new.join().unwrap(), format!("B{SAYS}"));
    });
}

#[test]
fn those_that_were_longest_not_asked_for_leave_and_come_back() {
    let folder = folder();
    let root = folder.path().join("root");
    for letter in ["a", "b", "c"] {
        adapter(&root.join(letter), letter.to_uppercase().chars().next().unwrap(), 40);
    }
    adapter(&root.join("huge"), 'H', 101);
    let pinned = vec![("pinned".to_owned(), adapter(&folder.path().join("p"), 'P', 20))];
    let server =
        Server::with(Start { adapters: pinned, root: Some(root), bytes: Some(100), ..Start::default() });
    let states =
        || ["a", "b", "c", "pinned"].map(|name| state(&server, name)["state"].as_str().unwrap() == "warm");
    server.complete("a");
    server.complete("b");
    assert_eq!(states(), [true, true, false, true]);
    server.complete("a");
    server.complete("c");
    assert_eq!(states(), [true, false, true, true]);
    assert_eq!(server.complete("b"), format!("B{SAYS}"));
    assert_eq!(states(), [false, true, true, true]);
    // One that is in use does not leave, and one that does not fit drives nobody out.
    server.post("/v1/completions", &json!({"model": "huge", "prompt": "x"})).error(503, None);
    assert_eq!(states(), [false, true, true, true]);
    server.script.lock().unwrap().pause = Duration::from_millis(20);
    thread::scope(|scope| {
        for name in ["b", "c"] {
            scope.spawn(|| server.complete(name));
        }
        server.wait(|script| script.running == 2);
        let reply = server.post("/v1/completions", &json!({"model": "a", "prompt": "x"}));
        assert!(reply.error(503, None).contains("no memory") && reply.header("retry-after") == Some("1"));
    });
    assert_eq!(server.complete("a"), format!("A{SAYS}"));
}

#[test]
fn no_name_and_no_path_leads_out_of_the_root() {
    let folder = folder();
    let (root, outside) = (folder.path().join("root"), adapter(&folder.path().join("outside"), 'X', 1));
    adapter(&root.join("in/deep"), 'D', 1);
    #[cfg(unix)]
    std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
    let server = Server::with(Start { root: Some(root), ..Start::default() });
    let load = |name: &str, path: &str| server.post(LOAD, &json!({"lora_name": name, "lora_path": path}));
    for path in [
        "",
        "..",
        "../outside",
        "in/../../outside",
        "/etc",
        outside.to_str().unwrap(),
        "./in/deep",
        "link",
        "none",
        "a\0b",
        "%2e%2e/outside",
        "in\\deep",
        // Slashes and dots that only look so.
        "in\u{ff0f}deep",
        "\u{2024}\u{2024}/outside",
        &"in/".repeat(10_000),
    ] {
        load("x", path).error(400, Some("lora_path"));
    }
    let long = "a".repeat(129);
    // Of the last ones the first letter is not that of the alphabet, and there is a mark that is not seen.
    for name in ["", ".x", "../x", "a/b", "a b", "é", "base", "x\n", "\0", &long, "\u{0430}bc", "ab\u{200b}c"]
    {
        load(name, "in/deep").error(400, Some("lora_name"));
    }
    load("x", "in/deep").json(200);
    for name in [
        "link",
        "../outside",
        "in/deep",
        "in",
        "%2e%2e",
        "..",
        "/etc",
        "a\0b",
        "\u{ff38}",
        "x\u{200b}",
        "X",
        &long,
    ] {
        let body = json!({"model": name, "prompt": "x"});
        server.post("/v1/completions", &body).error(404, Some("model"));
    }
    assert_eq!(*server.loads.lock().unwrap(), 1);
}

#[test]
fn what_is_wrong_with_a_load_is_told_by_its_name() {
    let server = Server::start();
    for (body, param) in [
        (json!({}), "lora_name"),
        (json!({"lora_name": "x"}), "lora_path"),
        (json!({"lora_name": 5, "lora_path": "x"}), "lora_name"),
        (json!({"lora_name": "x", "lora_path": "x", "load_inplace": 1}), "load_inplace"),
        (json!({"lora_name": "x", "lora_path": "x", "expected_generation": -1}), "expected_generation"),
        (json!({"lora_name": "x", "lora_path": "x", "pinned": "yes"}), "pinned"),
        // There is no root.
        (json!({"lora_name": "x", "lora_path": "x"}), "lora_path"),
    ] {
        server.post(LOAD, &body).error(400, Some(param));
    }
    server.post(UNLOAD, &json!({})).error(400, Some("lora_name"));
}

#[test]
fn what_cannot_be_served_at_the_start_is_told() {
    let folder = folder();
    let good = adapter(&folder.path().join("good"), 'G', 1);
    let told = |adapters: Vec<(&str, &std::path::Path)>, root: Option<&str>| {
        let adapters = adapters.into_iter().map(|(name, path)| (name.to_owned(), path.to_owned())).collect();
        let root = root.map(|root| folder.path().join(root));
        Server::try_with(Start { adapters, root, ..Start::default() }).err().unwrap().to_string()
    };
    assert!(told(vec![("a b", &good)], None).contains("adapter `a b`: a name has 1 to 128"));
    assert!(told(vec![("base", &good)], None).contains("the name of the base"));
    assert!(told(vec![("a", &good), ("a", &good)], None).contains("given twice"));
    assert!(told(vec![("a", folder.path())], None).contains("adapter `a`"));
    assert!(told(vec![], Some("none")).contains("none"));
    assert!(told(vec![], Some("good/adapter_config.json")).contains("a folder"));
}
