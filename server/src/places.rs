//! Places among the requests that run or wait: none of several tenants keeps the others out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All places of a server.
#[derive(Debug)]
pub(crate) struct Places {
    count: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    /// How many each owner of requests has, if any.
    by: HashMap<u64, usize>,
}

/// A place, which is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    places: Arc<Places>,
    owner: u64,
}

impl Places {
    pub(crate) fn new(count: usize) -> Arc<Self> {
        Arc::new(Places { count, taken: Mutex::default() })
    }

    /// The most that one of so many tenants can have: of several one alone does not take more than half.
    pub(crate) fn most(&self, tenants: usize) -> usize {
        if tenants > 1 { self.count.div_ceil(2) } else { self.count }
    }

    /// As many places for an owner, all or none. Beside those a place stays free for each of the `tenants`
    /// that has none, up to half of all; the first place of an owner may be one of those.
    pub(crate) fn take(self: &Arc<Self>, owner: u64, answers: usize, tenants: usize) -> Option<Vec<Slot>> {
        let mut taken = self.lock();
        let own = taken.by.get(&owner).copied().unwrap_or(0);
        let without = tenants.saturating_sub(taken.by.len() + usize::from(own == 0)).min(self.count / 2);
        let kept = if own + answers <= 1 { 0 } else { without };
        if own + answers > self.most(tenants) || taken.total + answers + kept > self.count {
            return None;
        }
        taken.total += answers;
        *taken.by.entry(owner).or_default() += answers;
        Some((0..answers).map(|_| Slot { places: Arc::clone(self), owner }).collect())
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.lock().total
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.total -= 1;
        if let Some(own) = taken.by.get_mut(&self.owner) {
            *own -= 1;
            if *own == 0 {
                taken.by.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_three_tenants_leave_a_place_for_the_third() {
        for count in [4, 5, 8, 9, 1024] {
            let places = Places::new(count);
            let mut held = Vec::new();
            for owner in [1, 2] {
                while let Some(slots) = places.take(owner, 1, 3) {
                    held.extend(slots);
                }
            }
            assert_eq!(places.taken(), count - 1);
            assert!(places.take(3, 1, 3).is_some(), "{count} places");
            drop(held);
            assert_eq!(places.taken(), 0);
        }
    }

    #[test]
    fn one_tenant_has_all_places_and_of_several_each_has_half_at_most() {
        let places = Places::new(7);
        assert!(places.take(1, 8, 1).is_none());
        assert_eq!(places.take(1, 7, 1).map(|slots| slots.len()), Some(7));
        for tenants in [2, 3, 100] {
            assert!(places.take(1, 5, tenants).is_none());
            assert!(places.take(1, places.most(tenants), tenants).is_some(), "{tenants} tenants");
        }
    }

    #[test]
    fn where_tenants_are_more_than_places_whoever_comes_first_has_one() {
        let places = Places::new(2);
        let held = [places.take(1, 1, 5), places.take(2, 1, 5)];
        assert!(held.iter().all(Option::is_some) && places.take(3, 1, 5).is_none());
    }
}
