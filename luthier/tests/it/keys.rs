//! `luthier keys`: who may ask a server, told while it runs; and how many may be connected to one.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::tempdir;

use crate::failure;
use crate::serve::Served;
use crate::support::{succeed, tiny_model};

/// SHA-256 of `alpha`.
const HASH: &str = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The status of an answer to whoever has a key.
fn status(served: &Served, key: &str, path: &str) -> u16 {
    let mut stream = TcpStream::connect(&served.address).unwrap();
    let host = &served.address;
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply.split(' ').nth(1).unwrap().parse().unwrap()
}

#[track_caller]
fn soon(holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(5), "what was waited for never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn keys_are_made_listed_and_revoked() {
    let folder = tempdir().unwrap();
    let keys = |arguments: &[&str]| succeed(folder.path(), &[&["keys"], arguments].concat());
    let (key, told) =
        keys(&["add", "--state", "state", "--tenant", "shop", "--adapters", "a,b", "--weight", "2"]);
    assert!(key.starts_with("tml-") && key.ends_with('\n') && key.lines().count() == 1, "{key}");
    assert!(told.contains("of tenant shop") && !told.contains(key.trim()), "{told}");
    let more = ["--requests-per-minute", "9", "--admin", "--json"];
    let (made, _) = keys(&[&["add", "--state", "state", "--tenant", "shop"], &more[..]].concat());
    let (made, listed) = (json(&made), json(&keys(&["list", "--state", "state", "--json"]).0));
    let listed = listed["keys"].as_array().unwrap();
    assert_eq!(listed.len(), 2);
    for entry in listed {
        assert_eq!((&entry["adapters"], &entry["weight"]), (&serde_json::json!(["a", "b"]), &2.0.into()));
        assert_eq!((&entry["requests_per_minute"], &entry["admin"]), (&9.into(), &true.into()));
    }
    let id = made["id"].as_str().unwrap();
    assert!(keys(&["revoke", "--state", "state", id]).1.contains("is revoked"));
    assert!(keys(&["revoke", "--state", "state", id]).1.contains("was revoked before"));
    fs::write(folder.path().join("keys.yaml"), format!("- {{tenant: other, key_sha256: {HASH}}}")).unwrap();
    assert!(keys(&["import", "keys.yaml", "--state", "state"]).1.contains("1 new key"));
    let (table, _) = keys(&["list", "--state", "state"]);
    assert!(table.contains("other") && table.lines().count() == 4, "{table}");
    let (log, _) = keys(&["audit", "--state", "state", "--json"]);
    let actions: Vec<Value> =
        json(&log)["entries"].as_array().unwrap().iter().map(|entry| entry["action"].clone()).collect();
    assert_eq!(actions, ["key.import", "key.revoke", "key.add", "key.add"]);
    assert_eq!(keys(&["audit", "--state", "state", "--last", "2"]).0.lines().count(), 3);
    // No file of the state has a key.
    for entry in fs::read_dir(folder.path().join("state")).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(key.trim().len()).any(|window| window == key.trim().as_bytes()));
    }
}

#[test]
fn what_cannot_be_done_with_keys_is_told() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("file"), "- 5").unwrap();
    for (arguments, words) in [
        (&["list", "--state", "none"][..], "none: it has no luthier.db"),
        (&["revoke", "key-1", "--state", "none"], "it has no luthier.db"),
        (&["audit", "--state", "none"], "it has no luthier.db"),
        (&["add", "--state", "file", "--tenant", "a"], "file"),
        (&["add", "--state", "s", "--tenant", "a", "--weight", "0"], "from 0.001 to 1000"),
        (&["add", "--state", "s", "--tenant", "a", "--weight", "-1"], "from 0.001 to 1000"),
        (&["add", "--state", "s", "--tenant", "a", "--tokens-per-minute", "0"], "or none"),
        (&["add", "--state", "s", "--tenant", ""], "1 to 128 characters"),
        (&["add", "--state", "s"], "--tenant"),
        (&["revoke", "key-1", "--state", "s"], "there is no key `key-1`"),
        (&["import", "none.yaml", "--state", "s"], "none.yaml"),
        (&["import", "file", "--state", "s"], "file"),
    ] {
        let told = failure(folder.path(), &[&["keys"], arguments].concat());
        assert!(told.starts_with("exit code 2") && told.contains(words), "{arguments:?}: {told}");
    }
    assert!(!folder.path().join("none").exists());
}

#[test]
fn a_server_follows_its_keys_while_it_runs() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let keys = |arguments: &[&str]| succeed(folder.path(), &[&["keys"], arguments].concat()).0;
    let first = keys(&["add", "--state", "state", "--tenant", "a", "--json"]);
    let mut served = Served::start(folder.path(), &["--state", "state"]);
    let (first, path) = (json(&first), "/v1/models");
    let of = |made: &Value| made["key"].as_str().unwrap().to_owned();
    assert_eq!((status(&served, &of(&first), path), status(&served, "none", path)), (200, 401));
    let second = json(&keys(&["add", "--state", "state", "--tenant", "b", "--json"]));
    soon(|| status(&served, &of(&second), path) == 200);
    for made in [&first, &second] {
        keys(&["list", "--state", "state"]);
        succeed(folder.path(), &["keys", "revoke", "--state", "state", made["id"].as_str().unwrap()]);
        soon(|| status(&served, &of(made), path) == 401);
    }
    assert_eq!(status(&served, "none", path), 401);
    served.child.kill().unwrap();
    served.child.wait().unwrap();
}

/// What a process has in memory, in bytes.
#[cfg(target_os = "linux")]
fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
#[cfg(target_os = "linux")]
fn ten_thousand_idle_connections_cost_little_and_hold_up_nobody() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    // Both ends have files of their own; where the system allows fewer, so many.
    let most = limit.maximum.map_or(usize::MAX, |most| most as usize);
    let count = most.saturating_sub(1000).min(10_000);
    let mut served = Served::start(folder.path(), &[]);
    let process = served.child.id();
    assert_eq!(status(&served, "", "/health"), 200);
    let before = resident(process);
    let idle: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(&served.address).unwrap()).collect();
    let begun = Instant::now();
    // It comes behind all of them.
    assert_eq!(status(&served, "", "/v1/models"), 200);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let each = resident(process).saturating_sub(before) / count as u64;
    println!("{count} idle connections, {each} bytes each");
    assert!(each < 32 << 10, "{each} bytes for an idle connection");
    drop(idle);
    served.child.kill().unwrap();
    served.child.wait().unwrap();
}
