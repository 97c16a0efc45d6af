//! Whose turn it is: requests that wait, by what their owners have used.
//!
//! Fair sharing by virtual counters (Sheng et al., "Fairness in Serving Large Language Models", 2024): an owner's
//! counter grows by one for a token of a prompt and by two for a new one; the owner with the smallest goes
//! first. Who comes back with nothing waiting begins at the smallest counter of those who wait, so that idle
//! time cannot be saved up.

use std::collections::{BTreeMap, VecDeque};

/// What a token of a prompt counts.
const PROMPT: u64 = 1;
/// What a new token counts.
const NEW: u64 = 2;
/// Counters count in parts of a token, so that large weights leave something to count.
const UNIT: f64 = 1024.0;

/// Requests that wait for their turn.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    waiting: BTreeMap<u64, VecDeque<T>>,
    /// What owners have used, of those that were ever here.
    used: BTreeMap<u64, u64>,
    /// By how much what an owner uses counts less, where it is not 1.
    weights: BTreeMap<u64, f64>,
    /// The counter of whoever went last.
    level: u64,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Queue { waiting: BTreeMap::new(), used: BTreeMap::new(), weights: BTreeMap::new(), level: 0 }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    /// Lets a request wait behind its owner's others.
    pub(crate) fn push(&mut self, owner: u64, request: T) {
        if !self.waiting.contains_key(&owner) {
            let active = self.waiting.keys().map(|owner| self.used[owner]).min().unwrap_or(self.level);
            let used = self.used.entry(owner).or_default();
            *used = active.max(*used);
        }
        self.waiting.entry(owner).or_default().push_back(request);
    }

    /// The request whose turn it is.
    pub(crate) fn first(&self) -> Option<&T> {
        self.waiting[&self.next_owner()?].front()
    }

    /// Takes the request whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let owner = self.next_owner()?;
        self.level = self.used[&owner];
        let of_owner = self.waiting.get_mut(&owner)?;
        let request = of_owner.pop_front();
        if of_owner.is_empty() {
            self.waiting.remove(&owner);
        }
        request
    }

    fn next_owner(&self) -> Option<u64> {
        self.waiting.keys().copied().min_by_key(|owner| self.used[owner])
    }

    /// Counts what an owner has used.
    pub(crate) fn count(&mut self, owner: u64, prompt_tokens: usize, new_tokens: usize) {
        let tokens = PROMPT * prompt_tokens as u64 + NEW * new_tokens as u64;
        let weight = self.weights.get(&owner).copied().unwrap_or(1.0);
        let used = self.used.entry(owner).or_default();
        *used = used.saturating_add((tokens as f64 * UNIT / weight) as u64);
    }

    /// Lets what an owner uses count so many times less.
    ///
    /// # Panics
    /// If that is not above 0.
    pub(crate) fn set_weight(&mut self, owner: u64, weight: f64) {
        assert!(weight > 0.0, "a weight of {weight}");
        self.weights.insert(owner, weight);
    }

    /// Takes out the requests that are so; whether there were any.
    pub(crate) fn remove(&mut self, is_it: impl Fn(&T) -> bool) -> bool {
        let before = self.len();
        self.waiting.values_mut().for_each(|of_owner| of_owner.retain(|request| !is_it(request)));
        self.waiting.retain(|_, of_owner| !of_owner.is_empty());
        self.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_used_least_goes_first_and_idle_time_is_not_saved_up() {
        let mut queue = Queue::new();
        (0..6).for_each(|n| queue.push(1, (1, n)));
        let mut order = Vec::new();
        let mut take = |queue: &mut Queue<(u64, i32)>| {
            let (owner, n) = queue.pop().unwrap();
            queue.count(owner, 10, 5);
            order.push((owner, n));
        };
        take(&mut queue);
        take(&mut queue);
        // A quiet owner comes: it waits for at most one of the greedy one's.
        (0..3).for_each(|n| queue.push(2, (2, n)));
        (0..5).for_each(|_| take(&mut queue));
        assert_eq!(order, [(1, 0), (1, 1), (1, 2), (2, 0), (1, 3), (2, 1), (1, 4)]);
        assert_eq!(queue.len(), 2);
        // Who counts twice gets two turns for one of the other's.
        let mut queue = Queue::new();
        queue.set_weight(2, 2.0);
        (0..20).for_each(|n| [1, 2].into_iter().for_each(|owner| queue.push(owner, (owner, n))));
        let turns: Vec<u64> = std::iter::from_fn(|| {
            let (owner, _) = queue.pop()?;
            queue.count(owner, 10, 5);
            Some(owner)
        })
        .take(15)
        .collect();
        assert_eq!(turns.iter().filter(|&&owner| owner == 2).count(), 10);
        let mut queue = Queue::new();
        (0..2).for_each(|n| [1, 2].into_iter().for_each(|owner| queue.push(owner, (owner, n))));
        queue.remove(|&(owner, n)| owner == 1 || (owner, n) == (2, 9));
        assert!(queue.remove(|&(_, n)| n == 0) && queue.len() == 1);
    }
}
