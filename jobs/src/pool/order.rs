//! In which order waiting jobs are looked at: the tree of departments and projects, each floor ordered by the
//! same rules.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::amounts::Amounts;
use crate::job::JobId;

use super::room::Room;

/// A finite number that can be ordered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ordered(pub(super) f64);

impl Eq for Ordered {}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// What a department or project is compared with its siblings by; the smallest goes first (KAI-Scheduler's
/// `queue_order`): those not over their share, those that stay in their quota with the job, higher priority,
/// the smaller part of what they may have with the job and without it, the smaller share, the older.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    over_share: bool,
    beyond_quota: bool,
    priority: Reverse<i32>,
    with_job: Ordered,
    without: Ordered,
    may_have: [Ordered; 3],
    age: usize,
}

impl Rank {
    /// The rank of a node of the tree with a job that asks for `want`; nothing for its rank as it is.
    pub(super) fn of(room: &Room<'_>, node: usize, want: &Amounts) -> Rank {
        let queue = &room.tree().nodes[node];
        let with = room.allocated[node].plus(want);
        let divided = &room.tree().divided;
        Rank {
            over_share: divided.iter().any(|&r| room.is_over_share(node, r)),
            beyond_quota: divided.iter().any(|&r| queue.quota.of(r).is_some_and(|quota| with[r] > quota)),
            priority: Reverse(queue.priority),
            with_job: Ordered(room.dominant(node, &with)),
            without: Ordered(room.dominant(node, &room.allocated[node])),
            may_have: room.may_have(node).map(Ordered),
            age: node,
        }
    }
}

/// Waiting jobs, the next one first; which is next follows from what has been given meanwhile.
pub(super) struct Queueing {
    /// The jobs of each project, the next one first.
    lists: Vec<VecDeque<(JobId, Amounts)>>,
    /// Of each department, and last of all of them together: its children that have jobs.
    heaps: Vec<BinaryHeap<Reverse<(Rank, usize)>>>,
    /// The way to the job that was given out last, from the top, and what that job asks for.
    way: Vec<usize>,
    want: Amounts,
}

impl Queueing {
    /// All of `lists`, which has the jobs of each project in order, with what each asks for.
    pub(super) fn new(room: &Room<'_>, lists: Vec<VecDeque<(JobId, Amounts)>>) -> Self {
        let count = room.tree().nodes.len();
        let mut queueing = Queueing {
            lists,
            heaps: vec![BinaryHeap::new(); count + 1],
            way: Vec::new(),
            want: Amounts::NONE,
        };
        // Children stand behind their parents.
        for node in (0..count).rev() {
            queueing.enter(room, node);
        }
        queueing
    }

    /// Puts a node beside its siblings, if it has a job.
    fn enter(&mut self, room: &Room<'_>, node: usize) {
        let Some((_, want)) = self.head(node) else { return };
        let rank = Rank::of(room, node, &want);
        let above = room.tree().nodes[node].parent.unwrap_or(self.heaps.len() - 1);
        self.heaps[above].push(Reverse((rank, node)));
    }

    /// The job that a node would give out next.
    fn head(&self, mut node: usize) -> Option<(JobId, Amounts)> {
        while let Some(Reverse((_, child))) = self.heaps[node].peek() {
            node = *child;
        }
        self.lists[node].front().copied()
    }

    /// The next job, and its project. `is_changed` tells whether anybody was given anything since the last
    /// one.
    pub(super) fn next(&mut self, room: &Room<'_>, is_changed: bool) -> Option<(JobId, usize)> {
        // Then a job that asks for the same has the same rank as the one before it, and that was the first of
        // all.
        if let Some(&project) = self.way.last()
            && !is_changed
            && let Some((id, _)) = self.lists[project].pop_front_if(|(_, want)| *want == self.want)
        {
            return Some((id, project));
        }
        // Those on the way to the last job have other ranks now; those beside it do not.
        for node in std::mem::take(&mut self.way).into_iter().rev() {
            self.enter(room, node);
        }
        let mut at = self.heaps.len() - 1;
        while let Some(Reverse((_, child))) = self.heaps[at].pop() {
            self.way.push(child);
            at = child;
        }
        let (id, want) = self.lists.get_mut(at)?.pop_front()?;
        self.want = want;
        Some((id, at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{Policy, Queue, Said, Share};
    use crate::simulate::{empty_pool, machines};

    proptest! {
        /// Whether ranks are computed again or known to be the same: the order is the same.
        #[test]
        fn the_order_is_that_of_ranks_computed_anew(
            quotas in proptest::collection::vec((0..5_u64, any::<bool>(), 0..2_i32), 1..6),
            jobs in proptest::collection::vec((0..6_usize, 1..3_u64), 0..40),
        ) {
            let devices = |n| Share { devices: Some(Said::Amount(n)), ..Share::default() };
            let department =
                |n: usize| Queue { name: format!("d{n}"), quota: devices(9000), ..Queue::default() };
            let project = |(n, &(quota, is_below, priority)): (usize, &(u64, bool, i32))| Queue {
                name: format!("p{n}"),
                department: is_below.then(|| format!("d{}", n % 2)),
                quota: devices(quota * 500),
                priority,
                ..Queue::default()
            };
            let projects: Vec<Queue> = quotas.iter().enumerate().map(project).collect();
            let policy = Policy { departments: (0..2).map(department).collect(), projects, ..Policy::default() };
            let mut pool = empty_pool(policy, machines(1, 8)).unwrap();
            let mut lists = vec![VecDeque::new(); pool.tree.nodes.len()];
            for (n, &(project, size)) in jobs.iter().enumerate() {
                let project = 2 + project % quotas.len();
                lists[project].push_back((JobId(n as u64), Amounts { devices: size * 1000, ..Amounts::NONE }));
            }
            let room = Room::new(&mut pool, 0);
            let mut anew = Queueing::new(&room, lists.clone());
            let mut known = Queueing::new(&room, lists);
            for _ in 0..=jobs.len() {
                prop_assert_eq!(known.next(&room, false), anew.next(&room, true));
            }
        }
    }
}
