//! How many files and connections the system lets this process have at once.

/// Files that are not connections: the model's, adapters', the state's.
const OTHERS: usize = 256;

/// So many connections, or as many as there can be, after the system's soft limit is raised as far as the
/// process may.
#[cfg(unix)]
pub(crate) fn connections(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let needed = (wanted + OTHERS) as u64;
    if limit.current.is_some_and(|current| current < needed) {
        let most = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
        // Where that is refused, what was allowed before still is.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit });
    }
    let allowed = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |current| current as usize);
    wanted.min(allowed.saturating_sub(OTHERS).max(1))
}

/// So many connections: no such limit is known here.
#[cfg(not(unix))]
pub(crate) fn connections(wanted: usize) -> usize {
    wanted
}
