//! A policy in Slurm's terms: an account for each department and project, and a quality of service (QOS) for
//! each quota.
//!
//! A limit is what an account may have at once (`GrpTRES`), which holds down the tree. A quota is the
//! `GrpTRES` of a QOS that takes back by force what runs under the QOS `over`, in which all borrowed work is.
//! A weight is the account's fair share.

use crate::amounts::{Bounds, RESOURCES, Resource, WHOLE};
use crate::export::{ExportError, Names};
use crate::policy::{Node, Policy, Tree, is_name};

/// The QOS of work beyond its project's quota.
pub(crate) const OVER: &str = "over";
const MIB: u64 = 1 << 20;

/// Names that mean something else in Slurm.
pub(crate) fn names(tree: &Tree) -> Result<Names, ExportError> {
    Names::new(tree, &[OVER, "normal", "root"])
}

/// The arguments of `sacctmgr`, one call each, in order. An `add` of what is there already changes nothing.
pub(crate) fn commands(policy: &Policy, tree: &Tree, names: &Names, gpus: bool) -> Vec<Vec<String>> {
    let projects = || tree.nodes.iter().enumerate().filter(|(_, node)| node.is_project);
    let mut commands = vec![words(["add", "qos", OVER]), over(policy, tree)];
    for (number, node) in projects() {
        let name = names.of(number);
        commands.push(words(["add", "qos", name]));
        let priority = format!("Priority={}", 10 + 10 * rank(tree, node));
        let quota = format!("GrpTRES={}", tres(&node.quota, gpus));
        let preempts = format!("Preempt={OVER}");
        commands.push(words(["modify", "qos", name, "set", &quota, &preempts, &priority]));
    }
    for (number, node) in tree.nodes.iter().enumerate() {
        let name = names.of(number);
        let parent = format!("parent={}", node.parent.map_or("root", |above| names.of(above)));
        let described = format!("description={}", node.name);
        commands.push(words(["add", "account", name, &parent, &described, "organization=luthier"]));
        commands.push(words(["modify", "account", name, "set", &parent]));
        let share = format!("Fairshare={}", share(node));
        let limit = format!("GrpTRES={}", tres(&node.limit, gpus));
        commands.push(match node.is_project {
            true => {
                let (allowed, default) = (format!("QOS={name},{OVER}"), format!("DefaultQOS={name}"));
                words(["modify", "account", name, "set", &share, &limit, &allowed, &default])
            }
            false => words(["modify", "account", name, "set", &share, &limit]),
        });
    }
    for (number, node) in projects() {
        let queue = policy.project(&node.name).expect("the tree is the policy's");
        let account = format!("account={}", names.of(number));
        for user in queue.members.union(&queue.owners).filter(|user| is_name(user)) {
            commands.push(words(["add", "user", user, &account, "Fairshare=parent"]));
        }
        for user in queue.owners.iter().filter(|user| is_name(user)) {
            commands.push(words(["add", "coordinator", &account, &format!("names={user}")]));
        }
    }
    commands
}

fn over(policy: &Policy, tree: &Tree) -> Vec<String> {
    let runtime = tree.nodes.iter().map(|node| node.reclaim_min_runtime).max().unwrap_or(0);
    words([
        "modify",
        "qos",
        OVER,
        "set",
        "Priority=0",
        "PreemptMode=requeue",
        &format!("GraceTime={}", policy.grace.div_ceil(1000)),
        &format!("PreemptExemptTime={}", clock(runtime.div_ceil(1000))),
    ])
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.into_iter().map(str::to_owned).collect()
}

/// Slurm's `D-HH:MM:SS`.
fn clock(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    format!("{days}-{hours:02}:{minutes:02}:{:02}", seconds % 60)
}

/// How many priorities of the tree are below a node's: Slurm's are not negative.
fn rank(tree: &Tree, node: &Node) -> usize {
    let mut lower: Vec<i32> = tree.nodes.iter().map(|n| n.priority).filter(|&p| p < node.priority).collect();
    lower.sort_unstable();
    lower.dedup();
    lower.len()
}

/// Whole numbers, in which a weight of 1 is 100.
fn share(node: &Node) -> u64 {
    match node.weight {
        0.0 => 0,
        weight => ((weight * 100.0).round() as u64).max(1),
    }
}

/// A bound for each resource; `-1` takes an old one away.
fn tres(bounds: &Bounds, gpus: bool) -> String {
    let one = |&resource: &Resource| {
        let bound = bounds.of(resource);
        let said = |unit: u64, suffix: &str| {
            bound.map_or("-1".to_owned(), |amount| format!("{}{suffix}", amount / unit))
        };
        match resource {
            Resource::Devices if gpus => Some(format!("gres/gpu={}", said(WHOLE, ""))),
            Resource::Devices => None,
            Resource::Cpus => Some(format!("cpu={}", said(1, ""))),
            Resource::Memory => Some(format!("mem={}", said(MIB, "M"))),
        }
    };
    RESOURCES.iter().filter_map(one).collect::<Vec<_>>().join(",")
}

/// What of a policy Slurm does not do, or not as our own pool does it.
pub(crate) fn gaps(policy: &Policy, tree: &Tree) -> Vec<String> {
    let mut gaps = vec![
        "whether a job runs within its project's quota or on borrowed room is fixed when it starts; only \
         while it waits can that change"
            .to_owned(),
        "fair share is past use that fades (PriorityDecayHalfLife), not a division of what is there now".into(),
        "no job shrinks, grows or moves so that another fits".into(),
        "a job of higher priority waits behind running ones of its own project: it stops none of them".into(),
        "who is no longer a member or owner keeps the account until somebody runs `sacctmgr delete user`; so \
         does what is no longer in the policy"
            .into(),
    ];
    let sums = |number: usize, resource: Resource| -> Option<u64> {
        tree.children[number].iter().map(|&child| tree.nodes[child].quota.of(resource)).sum()
    };
    for (number, node) in tree.nodes.iter().enumerate().filter(|(_, node)| !node.is_project) {
        let more = |&resource: &Resource| {
            node.quota.of(resource).is_some_and(|quota| sums(number, resource).is_some_and(|sum| sum < quota))
        };
        if let Some(&resource) = tree.divided.iter().find(|r| more(r)) {
            gaps.push(format!(
                "`{}` is guaranteed more {} than its projects together: nobody takes the rest back for it",
                node.name,
                resource.name()
            ));
        }
    }
    let runtimes: Vec<_> =
        tree.nodes.iter().filter(|node| node.is_project).map(|node| node.reclaim_min_runtime).collect();
    if runtimes.iter().any(|time| *time != runtimes[0]) {
        gaps.push(
            "borrowed work of all projects is safe for the longest reclaim_min_runtime among them".into(),
        );
    }
    let broken = |bounds: &Bounds| bounds.devices.is_some_and(|amount| !amount.is_multiple_of(WHOLE));
    for node in tree.nodes.iter().filter(|node| broken(&node.quota) || broken(&node.limit)) {
        gaps.push(format!(
            "`{}` has parts of devices in its quota or limit: they are rounded down",
            node.name
        ));
    }
    if !policy.admins.is_empty() {
        let names: Vec<&str> = policy.admins.iter().map(String::as_str).collect();
        gaps.push(format!(
            "admins have to be made operators by hand: sacctmgr modify user name={} set adminlevel=operator",
            names.join(",")
        ));
    }
    if policy.projects.iter().all(|queue| queue.members.is_empty() && queue.owners.is_empty()) {
        gaps.push("nobody may submit yet: sacctmgr add user NAME account=PROJECT Fairshare=parent".into());
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::clock;

    #[test]
    fn a_time_is_written_as_slurm_reads_it() {
        assert_eq!(clock(0), "0-00:00:00");
        assert_eq!(clock(59), "0-00:00:59");
        assert_eq!(clock(90_061), "1-01:01:01");
    }
}
