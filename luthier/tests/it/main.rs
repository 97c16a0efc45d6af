//! The product as a user runs it, and the rules that hold between crates.

mod adapters;
mod answers;
mod bench;
#[path = "../../../server/tests/it/browser.rs"]
#[allow(dead_code)] // the page that is clicked is the server's
mod browser;
mod chat;
mod command_line;
mod data;
mod defaults;
mod edges;
mod eval;
mod example;
mod families;
mod forgetting;
mod frozen;
mod generate;
mod gguf;
mod guanaco;
mod guide;
mod harness;
mod hostile;
mod import;
mod init;
mod init_from;
mod integers;
mod jobs;
mod judge;
mod keys;
mod merge;
mod mlx;
mod paged;
#[cfg(unix)]
mod pool;
mod pool_export;
mod preview;
mod quantize;
mod races;
mod ranks;
mod remembers;
mod report;
mod resume;
mod run_file;
mod runs;
mod serve;
mod simulate;
mod stops;
mod support;
mod sweep;
mod tinker;
mod tiny;
mod told;
#[cfg(unix)]
mod tui;

use std::path::Path;
use std::process::{Command, Output};

/// The real binary, apart from this machine's settings.
pub fn luthier(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_luthier"));
    command
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", folder.join("hf"));
    command
}

/// What the binary answers to arguments, run in a folder.
pub fn run(folder: &Path, arguments: &[&str]) -> Output {
    luthier(folder).args(arguments).output().expect("the binary starts")
}

/// The exit code, then stderr, as a snapshot shows them.
pub fn failure(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "nothing on stdout");
    format!("exit code {}\n{}", output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr))
}
