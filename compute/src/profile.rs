//! Where the time goes: what each operation took and did, while somebody asks.
//!
//! An operation says what it is about to do by `Device::watch` and is timed until it returns. Work is what
//! its formula needs, once, not what is read or computed again: bytes of its factors and results, and
//! floating-point operations where they, and not memory, could decide.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What an operation has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Floating-point operations; 0 where reading and writing is all that counts.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

impl Work {
    /// Work that is reading and writing.
    pub(crate) fn bytes(bytes: usize) -> Work {
        Work { flops: 0, bytes: bytes as u64 }
    }
}

impl std::ops::Add for Work {
    type Output = Work;

    fn add(self, other: Work) -> Work {
        Work { flops: self.flops + other.flops, bytes: self.bytes + other.bytes }
    }
}

impl std::iter::Sum for Work {
    fn sum<I: Iterator<Item = Work>>(all: I) -> Work {
        all.fold(Work::default(), |sum, work| sum + work)
    }
}

/// By what calls are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The operation.
    pub operation: &'static str,
    /// The size of a product, `[m, n, k]`.
    pub size: Option<[usize; 3]>,
}

impl From<&'static str> for Key {
    fn from(operation: &'static str) -> Key {
        Key { operation, size: None }
    }
}

/// What the calls of one operation came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Total {
    /// How many there were.
    pub calls: u64,
    /// Time from entering to leaving them, together.
    pub seconds: f64,
    /// What they did, together.
    pub work: Work,
}

/// The account of a device.
#[derive(Debug, Default)]
pub struct Profile {
    on: AtomicBool,
    totals: Mutex<BTreeMap<Key, Total>>,
}

impl Profile {
    /// Forgets what was counted and counts from now on.
    pub fn start(&self) {
        self.totals().clear();
        self.on.store(true, Ordering::Relaxed);
    }

    /// Stops counting and returns what was counted, by operation.
    pub fn stop(&self) -> BTreeMap<Key, Total> {
        self.on.store(false, Ordering::Relaxed);
        std::mem::take(&mut self.totals())
    }

    /// Times an operation until what this returns is dropped.
    pub(crate) fn watch(&self, key: Key, work: impl FnOnce() -> Work) -> Option<Watch<'_>> {
        let on = self.on.load(Ordering::Relaxed);
        on.then(|| Watch { profile: self, key, work: work(), begun: Instant::now() })
    }

    fn totals(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Total>> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operation under way.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    profile: &'a Profile,
    key: Key,
    work: Work,
    begun: Instant,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let mut totals = self.profile.totals();
        let total = totals.entry(self.key).or_default();
        total.calls += 1;
        total.seconds += seconds;
        total.work = total.work + self.work;
    }
}
