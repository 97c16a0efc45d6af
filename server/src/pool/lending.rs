//! Who borrows from whom: what projects hold beyond their quotas, and whose unused quotas that is.

use jobs::{Amounts, Pool, RESOURCES, Resource};
use serde_json::{Value, json};

/// An amount that one project has of another's quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loan {
    /// Whose quota it is, by number in the tree.
    pub(super) from: usize,
    /// Who has it.
    pub(super) to: usize,
    pub(super) resource: Resource,
    /// Devices in thousandths, cores, bytes.
    pub(super) amount: u64,
}

impl Loan {
    pub(super) fn value(&self, pool: &Pool) -> Value {
        let name = |node: usize| pool.tree().nodes[node].name.as_str();
        json!({
            "from": name(self.from), "to": name(self.to), "resource": self.resource.name(), "amount": self.amount,
        })
    }
}

/// All loans of a pool. `held`: what each node of the tree has.
///
/// What no quota promises is borrowed first, and belongs to nobody. The rest comes from everybody who leaves
/// some of its quota unused, in proportion; who borrowed which device of whom, nobody can say.
pub(super) fn loans(pool: &Pool, held: &[Amounts]) -> Vec<Loan> {
    let (tree, capacity) = (pool.tree(), pool.capacity());
    let projects: Vec<usize> = tree.projects().map(|(_, number)| number).collect();
    let mut loans = Vec::new();
    for &resource in &tree.divided {
        let quota = |node: usize| tree.nodes[node].quota.of(resource);
        let sides = projects.iter().filter_map(|&node| Some((node, held[node][resource], quota(node)?)));
        let (mut borrowers, mut lenders, mut promised) = (Vec::new(), Vec::new(), 0_u64);
        for (node, has, quota) in sides {
            promised = promised.saturating_add(quota);
            if has > quota {
                borrowers.push((node, has - quota));
            } else if has < quota {
                lenders.push((node, quota - has));
            }
        }
        let sum = |side: &[(usize, u64)]| side.iter().map(|(_, amount)| u128::from(*amount)).sum::<u128>();
        let (borrowed, unused) = (sum(&borrowers), sum(&lenders));
        let nobodys = u128::from(capacity[resource].saturating_sub(promised));
        let lent = borrowed.saturating_sub(nobodys).min(unused);
        if lent == 0 {
            continue;
        }
        for &(to, over) in &borrowers {
            for &(from, left) in &lenders {
                let part = lent * u128::from(over) * u128::from(left);
                let amount = (part as f64 / (borrowed as f64 * unused as f64)).round() as u64;
                if amount > 0 {
                    loans.push(Loan { from, to, resource, amount });
                }
            }
        }
    }
    loans
}

/// What each resource of `amounts` has above a project's quota.
pub(super) fn above(pool: &Pool, node: usize, amounts: &Amounts) -> Amounts {
    let mut above = Amounts::NONE;
    for resource in RESOURCES {
        let quota = pool.tree().nodes[node].quota.of(resource);
        above[resource] = quota.map_or(0, |quota| amounts[resource].saturating_sub(quota));
    }
    above
}
