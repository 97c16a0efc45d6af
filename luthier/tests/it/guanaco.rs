//! The recipes: their run files are understood and fit into the memory that they name, and the scaled-down
//! one runs from data to verdict.

#[expect(dead_code, reason = "its `main` serves until it is ended")]
#[path = "../../examples/scripted_judge.rs"]
mod scripted_judge;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::luthier;
use crate::support::{names, succeed, text, tiny_model, write_lines};

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("recipes/guanaco")
}

/// Each run file with the shape that it is for, and the memory of the GPU that it is to fit into, in bytes.
const RUNS: [(&str, &str, u64); 4] = [
    ("7b", "llama-7b", 24_000_000_000),
    ("13b", "llama-13b", 24_000_000_000),
    ("33b", "llama-33b", 24_000_000_000),
    ("65b", "llama-65b", 48_000_000_000),
];

#[test]
fn each_run_file_is_planned_within_the_memory_of_the_paper() {
    let (folder, readme) = (tempdir().unwrap(), fs::read_to_string(recipes().join("README.md")).unwrap());
    for (name, shape, most) in RUNS {
        let file = recipes().join(format!("{name}.yaml"));
        // Threads have buffers of their own, which are part of the plan.
        let plan = ["plan", text(&file), "--shape", shape, "--threads", "2", "--json"];
        let plan: Value = serde_json::from_str(&succeed(folder.path(), &plan).0).unwrap();
        let bytes = plan["total_bytes"].as_u64().unwrap();
        assert!(bytes <= most, "{name}: {bytes}");
        let told = format!("{:.1} GB", bytes as f64 / 1e9);
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{name}.yaml`"))).unwrap();
        assert!(row.contains(&told), "{told} is not in {row}");
    }
}

/// Conversations of letters, short enough for the tiny model.
fn conversations(count: usize) -> Vec<Value> {
    let turn = |role: &str, content: String| json!({"role": role, "content": content});
    let of = |n: usize| json!({"messages": [turn("user", format!("What is {n}?")), turn("assistant", format!("It is {n}."))]});
    (0..count).map(of).collect()
}

/// The scripted judge, with references that are there by the time of the first request.
fn judge(references: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let references = scripted_judge::references(&references).unwrap();
            thread::spawn(move || scripted_judge::serve(&stream, &references).ok());
        }
    });
    url
}

#[test]
fn the_small_recipe_runs_from_data_to_verdict() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    tiny_model(path);
    write_lines(path.join("chats.jsonl"), &conversations(60));
    let settings = luthier(path);
    let mut command = Command::new("sh");
    settings.get_envs().for_each(|(name, value)| {
        command.env(name, value.unwrap());
    });
    ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"].iter().for_each(|name| {
        command.env_remove(name);
    });
    let output = command
        .arg(recipes().join("small.sh"))
        .args(["model", "chats.jsonl", "out"])
        .current_dir(path)
        .env("LUTHIER", env!("CARGO_BIN_EXE_luthier"))
        .env("QUESTIONS", "4")
        .env("JUDGE_URL", judge(path.join("out/held-out.jsonl")))
        .env("JUDGE_MODEL", "scripted")
        .output()
        .unwrap();
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{errors}");
    for said in ["% of base", "guanaco", "both orders agree 100.0 %"] {
        assert!(told.contains(said), "{said} is not in\n{told}");
    }
    let made = [
        "all.jsonl",
        "base.jsonl",
        "guanaco.jsonl",
        "held-out.jsonl",
        "judge.yaml",
        "judged",
        "run",
        "train.jsonl",
    ];
    assert_eq!(names(&path.join("out")), made);
    let lines = |name: &str| fs::read_to_string(path.join("out").join(name)).unwrap().lines().count();
    assert_eq!(["held-out.jsonl", "train.jsonl", "base.jsonl", "guanaco.jsonl"].map(lines), [4, 56, 4, 4]);
    assert_eq!(lines("judged/replies.jsonl"), 8);
}
