//! The command line of Luthier: the table of contents.
//!
//! `cli` says what can be typed, `run_file` what a run's settings mean, `commands` has one file per command,
//! and `error` decides how a failure reads and which exit code it gets. `hub` finds and downloads models,
//! `terminal` and `signal` speak with the person and the system. Results go to stdout, progress and logs to
//! stderr.
//!
//! This crate is glue: it computes nothing itself, and it is the only one that uses `anyhow`.

/// As std's, but for a stderr that nobody reads any more (a closed terminal, `2>&1 | head`): the work goes on
/// without a word.
macro_rules! eprintln {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

/// The same without a line's end.
macro_rules! eprint {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stderr(), $($words)*);
    }};
}

mod cli;
mod commands;
mod error;
mod forgetting;
mod hub;
mod output;
mod plot;
mod run_file;
mod run_folder;
mod setup;
mod signal;
mod terminal;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match catch_unwind(AssertUnwindSafe(|| commands::run(cli))) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => error::report(&error),
        // The panic's own message already stands on stderr.
        Err(_) => error::report_panic(),
    }
}
