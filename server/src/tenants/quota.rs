//! So much a minute: a bucket that fills at an even rate up to a minute's worth.

use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

#[derive(Debug)]
pub(crate) struct Quota {
    per_minute: Option<f64>,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// May be below zero, where more was used than there was.
    level: f64,
    filled: Instant,
}

impl Quota {
    /// None: no end.
    pub(crate) fn new(per_minute: Option<u32>) -> Self {
        let per_minute = per_minute.map(f64::from);
        let bucket = Bucket { level: per_minute.unwrap_or(0.0), filled: Instant::now() };
        Quota { per_minute, bucket: Mutex::new(bucket) }
    }

    /// Whether it is one of so much a minute.
    pub(super) fn is(&self, per_minute: Option<u32>) -> bool {
        self.per_minute == per_minute.map(f64::from)
    }

    /// Whether anything is left, else the seconds until there is.
    pub(super) fn check(&self, now: Instant) -> Result<(), u64> {
        self.demand(f64::MIN_POSITIVE, now).map(drop)
    }

    /// Takes as much if it is there, else says in how many seconds it is.
    pub(crate) fn take(&self, amount: usize, now: Instant) -> Result<(), u64> {
        if let Some(mut bucket) = self.demand(amount as f64, now)? {
            bucket.level -= amount as f64;
        }
        Ok(())
    }

    /// Takes as much, there or not.
    pub(super) fn charge(&self, amount: usize, now: Instant) {
        if let Some((mut bucket, _)) = self.fill(now) {
            bucket.level -= amount as f64;
        }
    }

    fn demand(&self, amount: f64, now: Instant) -> Result<Option<MutexGuard<'_, Bucket>>, u64> {
        match self.fill(now) {
            Some((bucket, per_minute)) if bucket.level < amount => {
                Err(((amount - bucket.level) * 60.0 / per_minute).ceil().max(1.0) as u64)
            }
            filled => Ok(filled.map(|(bucket, _)| bucket)),
        }
    }

    fn fill(&self, now: Instant) -> Option<(MutexGuard<'_, Bucket>, f64)> {
        let per_minute = self.per_minute?;
        let mut bucket = self.bucket.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let seconds = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.level = (bucket.level + seconds * per_minute / 60.0).min(per_minute);
        bucket.filled = now;
        Some((bucket, per_minute))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_quota_is_used_up_and_comes_back() {
        let (quota, start) = (Quota::new(Some(2)), Instant::now());
        assert_eq!(quota.take(1, start), Ok(()));
        assert_eq!(quota.take(1, start), Ok(()));
        assert_eq!(quota.take(1, start), Err(30));
        assert_eq!(quota.take(1, start + Duration::from_secs(31)), Ok(()));
        assert!(quota.take(1, start + Duration::from_secs(32)).is_err());
    }

    #[test]
    fn who_used_more_than_there_was_waits_the_longer() {
        let (quota, start) = (Quota::new(Some(60)), Instant::now());
        assert_eq!(quota.check(start), Ok(()));
        quota.charge(90, start);
        assert_eq!(quota.check(start), Err(30));
        assert_eq!(quota.check(start + Duration::from_secs(31)), Ok(()));
        assert_eq!(Quota::new(None).check(start), Ok(()));
    }
}
