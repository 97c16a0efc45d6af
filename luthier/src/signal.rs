//! Requests to stop. The first SIGINT, SIGTERM or (on Linux) SIGHUP raises a flag that the training loop
//! looks at between steps; a second one ends the process at once, with the shell's exit code for it (130,
//! 143, 129), and a terminal that was taken over is given back first, with the notes that the view had.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};

use crate::terminal::live;

/// How long a terminal may take to be given back before the process ends without it.
const RESTORING: Duration = Duration::from_millis(500);

/// The first flag that was handed out.
static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Those that ask for an end. SIGHUP comes when the terminal of a run is closed, unless `nohup` has made it
/// ignored.
fn signals() -> Vec<i32> {
    let mut signals = vec![SIGINT, SIGTERM];
    #[cfg(target_os = "linux")]
    if !is_ignored(signal_hook::consts::SIGHUP) {
        signals.push(signal_hook::consts::SIGHUP);
    }
    signals
}

/// Whether this process was started with a signal ignored. Other systems do not tell without `unsafe`.
#[cfg(target_os = "linux")]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// From now on, these signals ask the program to stop rather than end it.
///
/// Returns the flag that becomes true with the first of them. Call it when there is something to save: until
/// then, a signal ends the process as usual.
pub(crate) fn stop_on_request() -> anyhow::Result<Arc<AtomicBool>> {
    const TAKING: &str = "cannot take over SIGINT, SIGTERM and SIGHUP";
    let stop = Arc::new(AtomicBool::new(false));
    for signal in signals() {
        flag::register(signal, Arc::clone(&stop)).context(TAKING)?;
    }
    let _ = ASKED.set(Arc::clone(&stop));
    let mut requests = Signals::new(signals()).context(TAKING)?;
    thread::spawn(move || {
        if let Some(signal) = requests.forever().nth(1) {
            // A terminal that nobody reads would hold up whoever writes to it.
            let (done, restored) = mpsc::channel();
            thread::spawn(move || {
                live::leave();
                let _ = done.send(());
            });
            let _ = restored.recv_timeout(RESTORING);
            low_level::exit(128 + signal);
        }
    });
    Ok(stop)
}

/// Whether anybody has asked this process to stop.
pub(crate) fn is_asked_to_stop() -> bool {
    ASKED.get().is_some_and(|asked| asked.load(Ordering::Relaxed))
}

/// Asks this process to stop, as SIGINT does.
pub(crate) fn ask_to_stop() {
    let _ = low_level::raise(SIGINT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_raises_the_flag_and_ends_nothing() {
        let stop = stop_on_request().unwrap();
        assert!(!stop.load(Ordering::Relaxed));
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert!(stop.load(Ordering::Relaxed));
    }
}
