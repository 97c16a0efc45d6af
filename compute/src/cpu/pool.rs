//! A fork-join pool: spin briefly, then sleep.
//!
//! One parallel section runs at a time. The caller publishes it, works on it itself, closes it and waits for
//! the workers that joined, not for those that slept through it: on a machine busy with other things, a
//! section never waits for a thread that the system has not woken yet.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::turn::Turn;

/// Polls before a waiting thread sleeps: some 20 us, more than the gap between two operations of a forward
/// pass and much less than a time slice that another program could have used.
const SPINS: u32 = 1000;
/// Polls after which a waiting thread offers its processor to others each time.
const SPINS_BEFORE_YIELD: u32 = 200;

/// The state word: how many workers are inside (low half), whether a section is open, whether the caller
/// sleeps, and the section's number, so that a worker enters each at most once.
const INSIDE: u64 = (1 << 32) - 1;
const OPEN: u64 = 1 << 32;
const WAITING: u64 = 1 << 33;
const NUMBER: u64 = 1 << 34;

thread_local! {
    /// The pool whose section this thread is running (its address, 0 for none) and its worker index there.
    static INSIDE_OF: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Threads that run one parallel section at a time. Dropping the pool ends and joins them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Sections of several callers follow each other.
    turn: Turn,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included.
    ///
    /// # Panics
    /// If the system refuses a thread.
    pub(crate) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let workers = (1..threads.max(1))
            .map(|worker| {
                let shared = Arc::clone(&shared);
                let builder = thread::Builder::new().name(format!("compute-{worker}"));
                builder
                    .spawn(move || shared.work(worker))
                    .unwrap_or_else(|e| panic!("cannot start a thread: {e}"))
            })
            .collect();
        Pool { shared, workers, turn: Turn::new() }
    }

    /// Who may give it work.
    pub(super) fn turn(&self) -> &Turn {
        &self.turn
    }

    /// Number of threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `body(task, worker)` once for every task in `0..tasks`; `worker < self.threads()` tells which
    /// thread runs it (index for per-thread scratch: no two threads run under one index at a time). Tasks are
    /// handed out dynamically, so results must not depend on which worker runs which task. Returns when all
    /// are done. A panic in a task is re-raised here; tasks not yet begun are then dropped. Called from
    /// inside a task of this pool, it runs the tasks there and then, on that task's worker.
    pub(crate) fn run(&self, tasks: usize, body: impl Fn(usize, usize) + Sync) {
        let here = Arc::as_ptr(&self.shared) as usize;
        let (inside_of, worker) = INSIDE_OF.get();
        if inside_of == here {
            return (0..tasks).for_each(|task| body(task, worker));
        }
        let turn = self.turn.wait();
        if tasks <= 1 || self.workers.is_empty() {
            let _inside = Inside::enter(here, 0);
            return (0..tasks).for_each(|task| body(task, 0));
        }
        self.shared.publish(tasks, &body, self.workers.len());
        self.shared.run_tasks(0);
        let panic = self.shared.close();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.mutex));
        self.shared.begun.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // workers catch the panics of tasks, so there is none to report
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

/// A section: its body, with the type and the lifetime erased, and the number of its tasks.
#[derive(Clone, Copy)]
struct Section {
    call: unsafe fn(*const (), usize, usize),
    body: *const (),
    tasks: usize,
}

unsafe fn call<F: Fn(usize, usize)>(body: *const (), task: usize, worker: usize) {
    // SAFETY: `publish` made `body` from an `&F`, which outlives the section.
    unsafe { (*body.cast::<F>())(task, worker) }
}

struct Shared {
    state: AtomicU64,
    /// Written by the caller while the section is closed and nobody is inside; read by those who are inside.
    section: UnsafeCell<Section>,
    next_task: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    ending: AtomicBool,
    /// For sleeping on the two condition variables; it guards nothing but the moment between looking and
    /// sleeping.
    mutex: Mutex<()>,
    begun: Condvar,
    done: Condvar,
    sleepers: AtomicUsize,
}

// SAFETY: `section` is the only member that is not already Sync. Its pointers come from a `&F` with `F:
// Sync`, it is written only while nobody is inside (`publish`), and read only by threads counted in `state`.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to a particular thread.
unsafe impl Send for Shared {}

impl Default for Shared {
    fn default() -> Self {
        unsafe fn nothing(_: *const (), _: usize, _: usize) {}
        Shared {
            state: AtomicU64::new(0),
            section: UnsafeCell::new(Section { call: nothing, body: std::ptr::null(), tasks: 0 }),
            next_task: AtomicUsize::new(0),
            panic: Mutex::new(None),
            ending: AtomicBool::new(false),
            mutex: Mutex::new(()),
            begun: Condvar::new(),
            done: Condvar::new(),
            sleepers: AtomicUsize::new(0),
        }
    }
}

impl Shared {
    /// Opens a section for the workers and wakes as many sleepers as can be of use.
    fn publish<F: Fn(usize, usize) + Sync>(&self, tasks: usize, body: &F, workers: usize) {
        let section = Section { call: call::<F>, body: std::ptr::from_ref(body).cast(), tasks };
        // SAFETY: the caller holds the turn, the last section was closed and left by all: nobody reads this
        // now.
        unsafe { *self.section.get() = section };
        self.next_task.store(0, Ordering::Relaxed);
        let number = (self.state.load(Ordering::Relaxed) / NUMBER).wrapping_add(1);
        // SeqCst on both sides: either a worker about to sleep sees the section, or it is seen in `sleepers`
        // here.
        self.state.store(number.wrapping_mul(NUMBER) | OPEN, Ordering::SeqCst);
        let wake = self.sleepers.load(Ordering::SeqCst).min(tasks - 1).min(workers);
        if wake > 0 {
            drop(lock(&self.mutex));
            (0..wake).for_each(|_| self.begun.notify_one());
        }
    }

    /// Ends the section: no worker may enter any more, and those inside are waited for.
    fn close(&self) -> Option<Box<dyn Any + Send>> {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let left = || self.state.load(Ordering::Acquire) & INSIDE == 0;
        if !spin_until(left) {
            let mut guard = lock(&self.mutex);
            self.state.fetch_or(WAITING, Ordering::SeqCst);
            while !left() {
                guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
        }
        lock(&self.panic).take()
    }

    /// A worker's life.
    fn work(&self, worker: usize) {
        let mut last = 0;
        while let Some(number) = self.enter(last) {
            last = number;
            self.run_tasks(worker);
            let before = self.state.fetch_sub(1, Ordering::AcqRel);
            if before & INSIDE == 1 && before & OPEN == 0 && before & WAITING != 0 {
                drop(lock(&self.mutex));
                self.done.notify_one();
            }
        }
    }

    /// Waits for a section other than number `last` and enters it; `None` when the pool ends.
    fn enter(&self, last: u64) -> Option<u64> {
        let is_new = |state: u64| state & OPEN != 0 && state / NUMBER != last;
        let ready = || is_new(self.state.load(Ordering::SeqCst)) || self.ending.load(Ordering::SeqCst);
        loop {
            if !spin_until(ready) {
                let mut guard = lock(&self.mutex);
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while !ready() {
                    guard = self.begun.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
            if self.ending.load(Ordering::SeqCst) {
                return None;
            }
            let state = self.state.load(Ordering::Acquire);
            let entered =
                |s| self.state.compare_exchange(s, s + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            if is_new(state) && entered(state) {
                return Some(state / NUMBER);
            }
        }
    }

    /// Takes tasks until there are none. A panic is kept for the caller and ends the handing out.
    fn run_tasks(&self, worker: usize) {
        // SAFETY: this thread is the caller, or is counted inside: nobody writes the section now.
        let section = unsafe { *self.section.get() };
        let _inside = Inside::enter(std::ptr::from_ref(self) as usize, worker);
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next_task.fetch_add(1, Ordering::Relaxed);
                if task >= section.tasks {
                    return;
                }
                // SAFETY: `call` and `body` were made together, and the caller keeps the body until all have
                // left.
                unsafe { (section.call)(section.body, task, worker) };
            }
        }));
        if let Err(panic) = result {
            self.next_task.store(section.tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(panic);
        }
    }
}

/// Marks this thread as running a section, until dropped.
struct Inside {
    before: (usize, usize),
}

impl Inside {
    fn enter(pool: usize, worker: usize) -> Self {
        Inside { before: INSIDE_OF.replace((pool, worker)) }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE_OF.set(self.before);
    }
}

/// Polls `ready` for a while; whether it came true.
fn spin_until(ready: impl Fn() -> bool) -> bool {
    for spin in 0..SPINS {
        if ready() {
            return true;
        }
        if spin < SPINS_BEFORE_YIELD { std::hint::spin_loop() } else { thread::yield_now() }
    }
    false
}

/// A lock that a panic elsewhere does not spoil: what these guard is whole at any moment.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_runs_once_whatever_the_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 3, 7, 100, 1000] {
                let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                pool.run(tasks, |task, worker| {
                    assert!(worker < threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {tasks} tasks"
                );
            }
        }
    }

    #[test]
    fn many_short_sections_follow_each_other() {
        let pool = Pool::new(4);
        let sum = AtomicUsize::new(0);
        for _ in 0..20_000 {
            pool.run(4, |task, _| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.into_inner(), 20_000 * 6);
    }

    #[test]
    fn a_worker_that_slept_wakes_up() {
        let pool = Pool::new(2);
        for _ in 0..5 {
            thread::sleep(std::time::Duration::from_millis(5));
            let barrier = std::sync::Barrier::new(2); // passes only if two threads are there at once
            pool.run(2, |_, _| {
                barrier.wait();
            });
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for culprit in [0, 5, 99] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, |task, _| assert_ne!(task, culprit, "task {task} fails"));
            }));
            let message = *result.unwrap_err().downcast::<String>().unwrap();
            assert!(message.contains(&format!("task {culprit} fails")), "{message}");
            let count = AtomicUsize::new(0);
            pool.run(10, |_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 10);
        }
    }

    #[test]
    fn a_section_inside_a_task_runs_on_that_tasks_worker() {
        let pool = Pool::new(3);
        let count = AtomicUsize::new(0);
        pool.run(8, |_, outer| {
            pool.run(5, |_, inner| {
                assert_eq!(outer, inner);
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 40);
    }

    #[test]
    fn several_callers_share_one_pool() {
        let pool = Pool::new(3);
        let count = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        pool.run(3, |_, _| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 4500);
    }
}
