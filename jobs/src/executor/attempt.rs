//! The process beside each process of a job: it starts it, tells it to stop, and writes down how it ended.
//!
//! It is told by files in its folder, so whoever starts jobs may be killed and come back without anything
//! getting lost or being done twice: `lock` is held as long as it or its child lives, `stop` and `kill`
//! appear when the child shall end, `exit.json` says how it did.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};

use crate::job::Exit;

/// What the folder says at the beginning.
pub(super) const LAUNCH: &str = "launch.json";
/// Held as long as the process or the one beside it lives.
pub(super) const LOCK: &str = "lock";
/// The number of the process beside it, which leads the group of both.
pub(super) const PID: &str = "pid";
/// Appears when the process shall save and end.
pub(super) const STOP: &str = "stop";
/// Appears when it shall end at once.
pub(super) const KILL: &str = "kill";
/// How it ended.
pub(super) const EXIT: &str = "exit.json";

/// How often the folder and the child are looked at.
const PULSE: Duration = Duration::from_millis(25);
/// What `luthier train` and its kind say when they have saved on request.
const SAVED: i32 = 75;
/// What programs say of wrong input.
const REFUSED: i32 = 2;

/// A command to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    /// The program and its arguments.
    pub(super) arguments: Vec<String>,
    /// Where it starts.
    pub(super) folder: PathBuf,
    /// What is added to the environment.
    pub(super) environment: Vec<(String, String)>,
    /// The file of its messages.
    pub(super) log: PathBuf,
}

/// Runs the command of a folder, until it has ended and that is written down. If another process runs or has
/// run it, that is left alone.
///
/// # Errors
/// If the folder cannot be read or written.
pub fn run(folder: &Path) -> io::Result<()> {
    let lock = File::create(folder.join(LOCK))?;
    // Whoever asks how far this is holds the lock for an instant.
    let mut tries = 0;
    while lock.try_lock().is_err() {
        tries += 1;
        if tries == 40 {
            return Ok(());
        }
        thread::sleep(PULSE);
    }
    if folder.join(EXIT).exists() {
        return Ok(());
    }
    // The child keeps the lock, too: as long as either lives, nobody takes this start for one that is over.
    fcntl_setfd(&lock, FdFlags::empty())?;
    fs::write(folder.join(PID), std::process::id().to_string())?;
    let told = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&told))?;
    }
    let order: Order = serde_json::from_slice(&fs::read(folder.join(LAUNCH))?)?;
    let exit = match spawn(&order) {
        Ok(child) => watch(folder, child, &told)?,
        Err(error) => {
            let program = order.arguments.first().map_or("", String::as_str);
            note(&order.log, &format!("cannot start {program}: {error}"));
            Exit::Refused
        }
    };
    record(folder, exit)
}

fn spawn(order: &Order) -> io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(&order.log)?;
    let (program, arguments) = order.arguments.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    Command::new(program)
        .args(arguments)
        .current_dir(&order.folder)
        .envs(order.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A group of its own: what it starts ends with it, and a signal meant for it does not reach this
        // process.
        .process_group(0)
        .spawn()
}

/// Waits for the child, and passes on what the folder or a signal says.
fn watch(folder: &Path, mut child: Child, told: &AtomicBool) -> io::Result<Exit> {
    let pid = Pid::from_child(&child);
    let (mut stopped, mut killed) = (false, false);
    let (stop, kill) = (folder.join(STOP), folder.join(KILL));
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(exit(status));
        }
        if !stopped && (told.load(Ordering::Relaxed) || stop.exists()) {
            stopped = true;
            let _ = kill_process(pid, Signal::TERM);
        }
        if !killed && kill.exists() {
            killed = true;
            let _ = kill_process_group(pid, Signal::KILL);
        }
        thread::sleep(PULSE);
    }
}

fn exit(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(0), _) => Exit::Done,
        (Some(SAVED), _) => Exit::Saved,
        (Some(REFUSED), _) => Exit::Refused,
        (Some(code), _) => Exit::Failed(code),
        (None, signal) => Exit::Killed(signal.unwrap_or(0)),
    }
}

/// Writes down how it ended, all of it or nothing.
fn record(folder: &Path, exit: Exit) -> io::Result<()> {
    let aside = folder.join("exit.part");
    let mut file = File::create(&aside)?;
    file.write_all(&serde_json::to_vec(&exit)?)?;
    file.sync_all()?;
    fs::rename(aside, folder.join(EXIT))
}

/// Adds a line to a job's messages; they are not what anything depends on.
pub(super) fn note(log: &Path, line: &str) {
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(log) {
        let _ = writeln!(file, "{line}");
    }
}
