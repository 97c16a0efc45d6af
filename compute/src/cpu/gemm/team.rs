//! Who computes the tasks of products.

use crate::cpu::Pool;

/// Who computes a product's tasks.
pub(super) enum Team<'a> {
    /// The calling thread.
    Alone,
    /// All threads of a pool.
    Pool(&'a Pool),
}

impl Team<'_> {
    pub(super) fn threads(&self) -> usize {
        match self {
            Team::Alone => 1,
            Team::Pool(pool) => pool.threads(),
        }
    }

    /// Threads to cut each of so many products for that are computed together.
    pub(super) fn threads_for(&self, products: usize) -> usize {
        self.threads().div_ceil(products.max(1))
    }

    pub(super) fn run(&self, tasks: usize, body: impl Fn(usize) + Sync) {
        match self {
            Team::Alone => (0..tasks).for_each(body),
            Team::Pool(pool) => pool.run(tasks, |task, _| body(task)),
        }
    }
}
