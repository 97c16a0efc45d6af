//! Whose turn it is to give a pool its work, where one thread has somebody waiting for it and another has not.
//!
//! Sections of several threads follow each other. A thread that was told to yield ([`yielding`]) leaves the pool
//! to the others as long as any of them is at work ([`Foreground`]), between two of its own sections: so what is
//! in its way is never longer than one operation. It gets a share of the time at any rate, or a busy server
//! would never train.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::pool::{Pool, lock};

/// Seconds after which a thread that waits looks again.
const LONGEST_WAIT: f64 = 60.0;

thread_local! {
    /// The part of the time that this thread gets while others are at work; none: it does not yield.
    static SHARE: Cell<Option<f64>> = const { Cell::new(None) };
}

/// Makes all operations of this thread yield to threads that are in the foreground ([`Device::foreground`]),
/// but for this share of the time, until what it returns is dropped. It changes no result.
///
/// [`Device::foreground`]: crate::Device::foreground
///
/// # Panics
/// If the share is not above 0 and at most 1.
pub fn yielding(share: f64) -> Yielding {
    assert!(share > 0.0 && share <= 1.0, "a share of the time is above 0 and at most 1, and not {share}");
    Yielding { before: SHARE.replace(Some(share)), _of_this_thread: PhantomData }
}

/// As long as it lives, this thread yields.
#[derive(Debug)]
#[must_use = "the thread yields as long as it lives"]
pub struct Yielding {
    before: Option<f64>,
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for Yielding {
    fn drop(&mut self) {
        SHARE.set(self.before);
    }
}

/// As long as it lives, somebody waits for what its thread computes, and threads that yield stand back.
#[derive(Debug)]
#[must_use = "others stand back as long as it lives"]
pub struct Foreground {
    /// None on a device without threads.
    pool: Option<Arc<Pool>>,
}

impl Foreground {
    pub(crate) fn enter(pool: Option<Arc<Pool>>) -> Self {
        if let Some(pool) = &pool {
            pool.turn().foreground.fetch_add(1, Ordering::SeqCst);
        }
        Foreground { pool }
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool
            && pool.turn().foreground.fetch_sub(1, Ordering::SeqCst) == 1
        {
            // Whoever is about to wait has looked under this lock.
            drop(lock(&pool.turn().account));
            pool.turn().left.notify_all();
        }
    }
}

/// Hands out the turns of a pool.
#[derive(Debug)]
pub(super) struct Turn {
    /// Held by the thread whose section runs.
    section: Mutex<()>,
    /// Held by the one thread of those that yield whose turn is next: no more than one section of theirs is ever
    /// in the way of somebody who waits.
    background: Mutex<()>,
    /// Threads that do not like to wait.
    foreground: AtomicUsize,
    account: Mutex<Account>,
    /// Nobody is in the foreground any more.
    left: Condvar,
}

/// What threads that yield have coming, in seconds: never above 0, so that nothing is saved up.
#[derive(Debug)]
struct Account {
    credit: f64,
    since: Instant,
}

impl Account {
    fn accrue(&mut self, share: f64) {
        let now = Instant::now();
        self.credit = (self.credit + share * (now - self.since).as_secs_f64()).min(0.0);
        self.since = now;
    }
}

impl Turn {
    pub(super) fn new() -> Self {
        Turn {
            section: Mutex::new(()),
            background: Mutex::new(()),
            foreground: AtomicUsize::new(0),
            account: Mutex::new(Account { credit: 0.0, since: Instant::now() }),
            left: Condvar::new(),
        }
    }

    /// Waits for this thread's turn, which ends when what it returns is dropped.
    pub(super) fn wait(&self) -> Taken<'_> {
        let Some(share) = SHARE.get() else {
            return Taken { _section: lock(&self.section), _at_cost: None };
        };
        let background = lock(&self.background);
        let mut account = lock(&self.account);
        while self.foreground.load(Ordering::SeqCst) > 0 {
            account.accrue(share);
            if account.credit >= 0.0 {
                break;
            }
            // A tiny share makes more seconds than a duration has.
            let until = Duration::from_secs_f64((-account.credit / share).min(LONGEST_WAIT));
            account = self.left.wait_timeout(account, until).unwrap_or_else(|held| held.into_inner()).0;
        }
        drop(account);
        let section = lock(&self.section);
        Taken {
            _section: section,
            _at_cost: Some(Cost { turn: self, since: Instant::now(), _background: background }),
        }
    }
}

/// The turn of a thread.
pub(super) struct Taken<'t> {
    _section: MutexGuard<'t, ()>,
    /// Of a thread that yields.
    _at_cost: Option<Cost<'t>>,
}

/// What the turn of a thread that yields costs it, if anybody waits when it ends.
struct Cost<'t> {
    turn: &'t Turn,
    since: Instant,
    _background: MutexGuard<'t, ()>,
}

impl Drop for Cost<'_> {
    fn drop(&mut self) {
        if self.turn.foreground.load(Ordering::SeqCst) > 0 {
            lock(&self.turn.account).credit -= self.since.elapsed().as_secs_f64();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    /// Sections of a yielding thread in a fifth of a second, each of some 2 ms, while another thread is in the
    /// foreground or not.
    fn sections(share: f64, foreground: bool) -> usize {
        let pool = Arc::new(Pool::new(2));
        let (count, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let held = foreground.then(|| Foreground::enter(Some(Arc::clone(&pool))));
            scope.spawn(|| {
                let _yielding = yielding(share);
                while !ended.load(Ordering::SeqCst) {
                    pool.run(1, |_, _| thread::sleep(Duration::from_millis(2)));
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
            thread::sleep(Duration::from_millis(200));
            ended.store(true, Ordering::SeqCst);
            drop(held);
        });
        count.into_inner()
    }

    #[test]
    fn a_thread_that_yields_gets_its_share_beside_others_and_all_without_them() {
        let (alone, beside) = (sections(0.05, false), sections(0.05, true));
        assert!(beside >= 1, "it is not starved");
        assert!(beside * 4 <= alone, "{beside} sections beside another, {alone} alone");
    }

    #[test]
    fn it_goes_on_at_once_when_the_last_one_has_left() {
        let pool = Arc::new(Pool::new(2));
        let held = Foreground::enter(Some(Arc::clone(&pool)));
        let begun = Instant::now();
        thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let _yielding = yielding(f64::MIN_POSITIVE);
                // The first one costs more than any share.
                pool.run(1, |_, _| thread::sleep(Duration::from_millis(5)));
                pool.run(1, |_, _| ());
            });
            thread::sleep(Duration::from_millis(50));
            assert!(!waits.is_finished(), "it stands back");
            // A thread that does not yield is not in its way, nor it in that one's.
            pool.run(2, |_, _| ());
            drop(held);
            waits.join().unwrap();
        });
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn yielding_ends_with_its_guard() {
        let outer = yielding(0.5);
        drop(yielding(0.1));
        assert_eq!(SHARE.get(), Some(0.5));
        drop(outer);
        assert_eq!(SHARE.get(), None);
    }
}
