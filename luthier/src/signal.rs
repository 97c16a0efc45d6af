//! Requests to stop. The first SIGINT or SIGTERM raises a flag that the training loop looks at between steps; a
//! second one ends the process at once, with the shell's exit code for it (130, 143).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// From now on, SIGINT and SIGTERM ask the program to stop rather than end it.
///
/// Returns the flag that becomes true with the first of them. Call it when there is something to save: until then, a
/// signal ends the process as usual.
pub(crate) fn stop_on_request() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The order matters: the first of the two actions must see the flag as it was before this signal.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))
            .and_then(|_| flag::register(signal, Arc::clone(&stop)))
            .context("cannot take over SIGINT and SIGTERM")?;
    }
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn the_first_signal_raises_the_flag_and_ends_nothing() {
        let stop = stop_on_request().unwrap();
        assert!(!stop.load(Ordering::Relaxed));
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert!(stop.load(Ordering::Relaxed));
    }
}
