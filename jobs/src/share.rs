//! What each queue's fair share is: its guaranteed part, then a part of the surplus.
//!
//! The rules are those of KAI-Scheduler's `proportion` plugin
//! (`pkg/scheduler/plugins/proportion/resource_division`): quotas first, whatever the priority; then the
//! surplus, by strict order of priority and within one priority by weight, corrected by past use; then what
//! rounding left over.

use crate::amounts::Resource;
use crate::policy::Tree;

/// One queue among its siblings, for one resource, in its units.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// Above others', it gets of the surplus first.
    pub priority: i32,
    /// What is guaranteed; `None` is everything.
    pub quota: Option<f64>,
    /// What it may never pass; `None` is no limit.
    pub limit: Option<f64>,
    /// Its part of the surplus, beside others' weights; 0 is none.
    pub weight: f64,
    /// What its jobs have and want.
    pub request: f64,
    /// Its past use as a part of the capacity, 0 to 1.
    pub usage: f64,
}

impl Claim {
    fn requestable(&self) -> f64 {
        self.limit.map_or(self.request, |limit| limit.min(self.request))
    }

    fn is_sated(&self, share: f64) -> bool {
        self.request <= share || self.limit.is_some_and(|limit| limit <= share)
    }
}

/// Divides `total` among siblings, `usage_weight` telling how much past use counts (0: not at all). Gives a
/// share for each, in their order, which is also the order of age.
///
/// Quotas that are more than the total are not scaled down: the sum of shares may pass it.
#[must_use]
pub fn divide(total: f64, claims: &[Claim], usage_weight: f64) -> Vec<f64> {
    let mut shares: Vec<f64> =
        claims.iter().map(|claim| claim.quota.unwrap_or(total).min(claim.requestable())).collect();
    let mut left = total;
    for share in &shares {
        left -= share;
    }
    if left <= 0.0 {
        return shares;
    }
    let mut priorities: Vec<i32> = claims.iter().map(|claim| claim.priority).collect();
    priorities.sort_unstable_by(|a, b| b.cmp(a));
    priorities.dedup();
    let mut by_priority = vec![Vec::new(); priorities.len()];
    for (index, claim) in claims.iter().enumerate() {
        by_priority[priorities.partition_point(|&p| p > claim.priority)].push(index);
    }
    let fractions: Vec<Vec<(f64, usize)>> = by_priority
        .iter()
        .map(|members| divide_surplus(claims, members, usage_weight, &mut shares, &mut left))
        .collect();
    for mut remainders in fractions {
        remainders.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (_, index) in remainders {
            if left <= 0.0 {
                return shares;
            }
            let given = left.min(1.0);
            shares[index] += given;
            left -= given;
        }
    }
    shares
}

/// Divides `total` of one resource, in its units, down a tree: among the tops, then each one's share among
/// its children. Gives the share of each node of the tree; `requested` and `usage` tell of each node what a
/// [`Claim`] says.
#[must_use]
pub fn divide_tree(
    tree: &Tree,
    resource: Resource,
    total: f64,
    usage_weight: f64,
    requested: impl Fn(usize) -> f64,
    usage: impl Fn(usize) -> f64,
) -> Vec<f64> {
    let units = |bound: Option<u64>| bound.map(|bound| resource.units(bound));
    let claim = |&node: &usize| {
        let queue = &tree.nodes[node];
        Claim {
            priority: queue.priority,
            quota: units(queue.quota.of(resource)),
            limit: units(queue.limit.of(resource)),
            weight: queue.weight,
            request: requested(node),
            usage: usage(node),
        }
    };
    let mut shares = vec![0.0; tree.nodes.len()];
    let mut floors = vec![(total, &tree.tops)];
    while let Some((total, siblings)) = floors.pop() {
        let claims: Vec<Claim> = siblings.iter().map(claim).collect();
        for (&node, share) in siblings.iter().zip(divide(total, &claims, usage_weight)) {
            shares[node] = share;
            floors.push((share, &tree.children[node]));
        }
    }
    shares
}

/// Divides what is left among queues of one priority, in rounds until nobody is sated by one. Gives the
/// fractions of units that rounding kept from some.
fn divide_surplus(
    claims: &[Claim],
    members: &[usize],
    usage_weight: f64,
    shares: &mut [f64],
    left: &mut f64,
) -> Vec<(f64, usize)> {
    let mut fractions = vec![0.0; members.len()];
    let mut weights = vec![0.0; members.len()];
    loop {
        let wanting = |&&i: &&usize| claims[i].requestable() - shares[i] > 0.0;
        let all: f64 = members.iter().filter(wanting).map(|&i| claims[i].weight).sum();
        if all == 0.0 {
            break;
        }
        for (weight, &i) in weights.iter_mut().zip(members) {
            let claim = &claims[i];
            let part = claim.weight / all;
            let counts = !claim.is_sated(shares[i]);
            *weight = if counts { (part + usage_weight * (part - claim.usage)).max(0.0) } else { 0.0 };
        }
        let sum: f64 = weights.iter().sum();
        if sum == 0.0 {
            break;
        }
        let (round, mut again) = (*left, false);
        for (n, &i) in members.iter().enumerate() {
            if *left == 0.0 {
                break;
            }
            let claim = &claims[i];
            if claim.is_sated(shares[i]) || claim.weight == 0.0 {
                continue;
            }
            let need = (claim.requestable() - shares[i]).max(0.0);
            let part = round * weights[n] / sum;
            let given = if need <= part {
                fractions[n] = 0.0;
                need
            } else {
                let whole = part.floor();
                if part - whole > 0.0 {
                    fractions[n] = part - whole;
                }
                whole
            };
            if given == 0.0 {
                continue;
            }
            shares[i] += given;
            *left -= given;
            again |= need < part;
        }
        if !again || *left == 0.0 {
            break;
        }
    }
    members.iter().zip(fractions).filter(|(_, f)| *f > 0.0).map(|(&i, f)| (f, i)).collect()
}
