//! The rules of a pool as people write them: the tree of departments and projects, and what each may have.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::Millis;
use crate::amounts::{Bounds, RESOURCES, Resource};

/// Departments and projects that a policy may have.
pub const MAX_QUEUES: usize = 100_000;
/// Floors that its tree may have.
pub const MAX_DEPTH: usize = 8;
/// The most of a resource that may be named, so that no sum of a pool overflows.
pub const MAX_AMOUNT: u64 = 1 << 50;

/// What stands in POLICY.yaml.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Groups of projects, or of departments.
    pub departments: Vec<Queue>,
    /// What jobs belong to.
    pub projects: Vec<Queue>,
    /// Who may change this policy, and do whatever an owner may.
    pub admins: BTreeSet<String>,
    /// How much past use counts against a project's part of the surplus.
    pub usage: Usage,
    /// How long a job that is stopped has to save itself, before it is killed. In milliseconds.
    pub grace: Millis,
    /// How long a job that may grow keeps its size at least. In milliseconds.
    pub resize_interval: Millis,
    /// How often a job that failed by itself is tried again.
    pub retries: u32,
    /// Jobs that one project may have in the pool.
    pub max_jobs: u32,
}

/// How past use is remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Usage {
    /// After this time, use counts half. In milliseconds.
    pub half_life: Millis,
    /// 0: past use does not count; 1: a project that had its part all along gets none of the surplus while
    /// others want it.
    pub weight: f64,
}

impl Default for Usage {
    fn default() -> Self {
        Usage { half_life: 7 * 24 * 3_600_000, weight: 1.0 }
    }
}

/// A department or a project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// Letters, digits, `-`, `_` and `.`; one of its kind.
    pub name: String,
    /// The department that it belongs to.
    pub department: Option<String>,
    /// What it gets when it wants it, whatever others do. A resource that is not named: nothing.
    pub quota: Share,
    /// What it never passes. A resource that is not named: no limit.
    pub limit: Share,
    /// Its part of the surplus, beside its siblings' weights.
    pub over_quota_weight: f64,
    /// Above its siblings', it gets of the surplus first.
    pub priority: i32,
    /// How long its jobs are safe from jobs of their own project. In milliseconds; from the department if
    /// missing.
    pub preempt_min_runtime: Option<Millis>,
    /// How long its jobs are safe from other projects. In milliseconds; from the department if missing.
    pub reclaim_min_runtime: Option<Millis>,
    /// Who may submit jobs.
    pub members: BTreeSet<String>,
    /// Who may cancel, hold and prioritize the jobs of all members.
    pub owners: BTreeSet<String>,
}

impl Default for Queue {
    fn default() -> Self {
        Queue {
            name: String::new(),
            department: None,
            quota: Share::default(),
            limit: Share::default(),
            over_quota_weight: 1.0,
            priority: 0,
            preempt_min_runtime: None,
            reclaim_min_runtime: None,
            members: BTreeSet::new(),
            owners: BTreeSet::new(),
        }
    }
}

/// An amount of each resource as a policy says it; missing ones are not said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Share {
    /// Thousandths of a device.
    pub devices: Option<Said>,
    /// Cores.
    pub cpus: Option<Said>,
    /// Bytes of the host's memory.
    pub memory: Option<Said>,
}

/// An amount that is said: a number, or that there is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// As much as this.
    Amount(u64),
    /// Everything.
    Unlimited,
}

impl Share {
    /// What is said of one resource.
    #[must_use]
    pub fn of(&self, resource: Resource) -> Option<Said> {
        match resource {
            Resource::Devices => self.devices,
            Resource::Cpus => self.cpus,
            Resource::Memory => self.memory,
        }
    }

    /// As bounds, with `missing` for what is not said.
    fn bounds(&self, missing: Option<u64>) -> Bounds {
        let mut bounds = Bounds::default();
        for resource in RESOURCES {
            *bounds.of_mut(resource) = match self.of(resource) {
                Some(Said::Amount(amount)) => Some(amount),
                Some(Said::Unlimited) => None,
                None => missing,
            };
        }
        bounds
    }
}

/// What is wrong with a policy, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct PolicyError {
    /// The place in the file, such as `projects[2].quota.devices`.
    pub field: String,
    /// What is wrong there, and what would be right.
    pub message: String,
}

/// A department or project in the checked tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether jobs may belong to it.
    pub is_project: bool,
    /// The department above it, by number; always a smaller one.
    pub parent: Option<usize>,
    /// Of the surplus, above siblings with less.
    pub priority: i32,
    /// Of the surplus, beside siblings' weights.
    pub weight: f64,
    /// Its guaranteed part.
    pub quota: Bounds,
    /// What it never passes.
    pub limit: Bounds,
    /// How long its jobs are safe from their own project.
    pub preempt_min_runtime: Millis,
    /// How long its jobs are safe from other projects.
    pub reclaim_min_runtime: Millis,
}

/// A checked policy: departments before what belongs to them, both in the order of the file, which is the
/// order of age.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tree {
    /// Departments and projects; a parent stands before its children.
    pub nodes: Vec<Node>,
    /// The children of each, in order.
    pub children: Vec<Vec<usize>>,
    /// Those without a department.
    pub tops: Vec<usize>,
    /// Which resources are divided: those that a quota or a limit names. Of others, whoever comes takes.
    pub divided: Vec<Resource>,
}

impl Tree {
    /// The number of a project.
    #[must_use]
    pub fn project(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.is_project && node.name == name)
    }

    /// All projects: their names and numbers, in the order of age.
    pub fn projects(&self) -> impl Iterator<Item = (&str, usize)> {
        let named = self.nodes.iter().enumerate().filter(|(_, node)| node.is_project);
        named.map(|(number, node)| (node.name.as_str(), number))
    }

    /// A node and the departments above it, upwards.
    pub fn path(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(node), |&n| self.nodes[n].parent)
    }

    /// Where two projects part: the highest ancestors-or-selves of each that differ. `None` for one and the
    /// same.
    #[must_use]
    pub fn parting(&self, a: usize, b: usize) -> Option<(usize, usize)> {
        let (up_a, up_b): (Vec<_>, Vec<_>) = (self.path(a).collect(), self.path(b).collect());
        let mut sides = up_a.iter().rev().zip(up_b.iter().rev());
        sides.find(|(a, b)| a != b).map(|(&a, &b)| (a, b))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            departments: Vec::new(),
            projects: Vec::new(),
            admins: BTreeSet::new(),
            usage: Usage::default(),
            grace: 10 * 60_000,
            resize_interval: 60_000,
            retries: 3,
            max_jobs: 100_000,
        }
    }
}

impl Policy {
    /// Checks it, and makes the tree of it.
    ///
    /// # Errors
    /// The first thing that is wrong: a name twice or unfit, a department that does not exist or belongs to
    /// itself, a guarantee that its own limit or its department forbids, a number out of its range.
    pub fn tree(&self) -> Result<Tree, PolicyError> {
        let count = self.departments.len() + self.projects.len();
        if count > MAX_QUEUES {
            return Err(wrong("projects", format!("{count} departments and projects; at most {MAX_QUEUES}")));
        }
        if !(0.0..=1000.0).contains(&self.usage.weight) {
            return Err(wrong("usage.weight", "must be 0 to 1000"));
        }
        if self.usage.half_life == 0 {
            return Err(wrong("usage.half_life", "must be above 0"));
        }
        let by_name = self.departments_by_name()?;
        let order = self.departments_in_order(&by_name)?;
        let mut tree = Tree {
            nodes: Vec::with_capacity(count),
            children: vec![Vec::new(); count],
            tops: Vec::new(),
            divided: self.divided(),
        };
        let mut numbers = BTreeMap::new();
        for &index in &order {
            let queue = &self.departments[index];
            let number = self.grow(&mut tree, queue, &format!("departments[{index}]"), false, &numbers)?;
            numbers.insert(queue.name.as_str(), number);
        }
        let mut names = BTreeSet::new();
        for (index, queue) in self.projects.iter().enumerate() {
            let field = format!("projects[{index}]");
            if !names.insert(queue.name.as_str()) {
                return Err(wrong(format!("{field}.name"), format!("`{}` is named twice", queue.name)));
            }
            self.grow(&mut tree, queue, &field, true, &numbers)?;
        }
        self.check_guarantees(&tree)?;
        Ok(tree)
    }

    fn departments_by_name(&self) -> Result<BTreeMap<&str, usize>, PolicyError> {
        let mut by_name = BTreeMap::new();
        for (index, queue) in self.departments.iter().enumerate() {
            if by_name.insert(queue.name.as_str(), index).is_some() {
                let field = format!("departments[{index}].name");
                return Err(wrong(field, format!("`{}` is named twice", queue.name)));
            }
        }
        Ok(by_name)
    }

    /// Departments, those above first; otherwise as in the file.
    fn departments_in_order(&self, by_name: &BTreeMap<&str, usize>) -> Result<Vec<usize>, PolicyError> {
        let mut depths = Vec::with_capacity(self.departments.len());
        for index in 0..self.departments.len() {
            let (mut at, mut depth) = (index, 0);
            while let Some(above) = &self.departments[at].department {
                let field = || format!("departments[{at}].department");
                let Some(&next) = by_name.get(above.as_str()) else {
                    return Err(wrong(field(), format!("there is no department `{above}`")));
                };
                at = next;
                depth += 1;
                if at == index {
                    return Err(wrong(
                        format!("departments[{index}].department"),
                        format!(
                            "`{}` belongs to itself; a department has to stand below another, or below none",
                            self.departments[index].name
                        ),
                    ));
                }
                if depth > self.departments.len() || depth >= MAX_DEPTH {
                    // A cycle further up is told at one of its own members, unless the tree is only too high.
                    if depth > self.departments.len() {
                        break;
                    }
                    if depth >= MAX_DEPTH && !self.climbs_out(index, by_name) {
                        break;
                    }
                    return Err(wrong(
                        format!("departments[{index}].department"),
                        format!("more than {MAX_DEPTH} floors of departments"),
                    ));
                }
            }
            depths.push((depth, index));
        }
        depths.sort_unstable();
        Ok(depths.into_iter().map(|(_, index)| index).collect())
    }

    /// Whether going up from a department ends.
    fn climbs_out(&self, index: usize, by_name: &BTreeMap<&str, usize>) -> bool {
        let mut at = index;
        for _ in 0..=self.departments.len() {
            match self.departments[at].department.as_deref().and_then(|above| by_name.get(above)) {
                None => return true,
                Some(&next) => at = next,
            }
        }
        false
    }

    fn divided(&self) -> Vec<Resource> {
        let all = || self.departments.iter().chain(&self.projects);
        let names =
            |&r: &Resource| all().any(|queue| queue.quota.of(r).is_some() || queue.limit.of(r).is_some());
        RESOURCES.into_iter().filter(names).collect()
    }

    /// Checks one queue by itself, and puts it into the tree.
    fn grow(
        &self,
        tree: &mut Tree,
        queue: &Queue,
        field: &str,
        is_project: bool,
        departments: &BTreeMap<&str, usize>,
    ) -> Result<usize, PolicyError> {
        if !is_name(&queue.name) {
            return Err(wrong(
                format!("{field}.name"),
                format!(
                    "{:?}: 1 to 63 letters, digits, `-`, `_` and `.`, beginning with a letter or digit",
                    queue.name
                ),
            ));
        }
        if !(0.0..=1e6).contains(&queue.over_quota_weight) {
            return Err(wrong(format!("{field}.over_quota_weight"), "must be 0 to 1000000"));
        }
        let parent = match &queue.department {
            None => None,
            Some(name) => Some(*departments.get(name.as_str()).ok_or_else(|| {
                wrong(format!("{field}.department"), format!("there is no department `{name}`"))
            })?),
        };
        for resource in RESOURCES {
            for (which, share) in [("quota", &queue.quota), ("limit", &queue.limit)] {
                if let Some(Said::Amount(amount)) = share.of(resource)
                    && amount > MAX_AMOUNT
                {
                    return Err(wrong(format!("{field}.{which}.{}", resource.name()), "is too much"));
                }
            }
        }
        // What nobody names is everybody's: it bounds nothing.
        let mut quota = queue.quota.bounds(Some(0));
        for resource in RESOURCES.into_iter().filter(|r| !tree.divided.contains(r)) {
            *quota.of_mut(resource) = None;
        }
        let inherited = |own: Option<Millis>, of: fn(&Node) -> Millis| {
            own.or_else(|| parent.map(|above| of(&tree.nodes[above]))).unwrap_or(0)
        };
        let node = Node {
            name: queue.name.clone(),
            is_project,
            parent,
            priority: queue.priority,
            weight: queue.over_quota_weight,
            quota,
            limit: queue.limit.bounds(None),
            preempt_min_runtime: inherited(queue.preempt_min_runtime, |node| node.preempt_min_runtime),
            reclaim_min_runtime: inherited(queue.reclaim_min_runtime, |node| node.reclaim_min_runtime),
        };
        for &resource in &tree.divided {
            if let (Some(limit), quota) = (node.limit.of(resource), node.quota.of(resource))
                && quota.is_none_or(|quota| quota > limit)
            {
                let said = quota.map_or("everything".into(), |quota| resource.say(quota));
                return Err(wrong(
                    format!("{field}.quota.{}", resource.name()),
                    format!(
                        "{said} is guaranteed, but the limit is {}; lower the quota or raise the limit",
                        resource.say(limit)
                    ),
                ));
            }
        }
        let number = tree.nodes.len();
        tree.nodes.push(node);
        match parent {
            Some(above) => tree.children[above].push(number),
            None => tree.tops.push(number),
        }
        Ok(number)
    }

    /// What a department's projects are guaranteed has to be guaranteed to the department.
    fn check_guarantees(&self, tree: &Tree) -> Result<(), PolicyError> {
        for (number, node) in tree.nodes.iter().enumerate().filter(|(_, node)| !node.is_project) {
            for &resource in &tree.divided {
                let Some(quota) = node.quota.of(resource) else { continue };
                let mut sum = 0;
                for &child in &tree.children[number] {
                    sum = match tree.nodes[child].quota.of(resource) {
                        Some(part) => sum + part,
                        None => u64::MAX,
                    };
                    if sum > quota {
                        let index = self.departments.iter().position(|d| d.name == node.name);
                        let said = if sum == u64::MAX { "everything".into() } else { resource.say(sum) };
                        return Err(wrong(
                            format!("departments[{}].quota.{}", index.unwrap_or(0), resource.name()),
                            format!(
                                "`{}` is guaranteed {}, but what belongs to it {said} together; raise this \
                                 quota or lower theirs",
                                node.name,
                                resource.say(quota)
                            ),
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// A project as it is written.
    #[must_use]
    pub fn project(&self, name: &str) -> Option<&Queue> {
        self.projects.iter().find(|queue| queue.name == name)
    }
}

/// Whether it may name a department, a project, a node or a user: it stands in paths, labels and other
/// engines' names.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=63).contains(&name.len())
        && name.chars().all(ok)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn wrong(field: impl Into<String>, message: impl Into<String>) -> PolicyError {
    PolicyError { field: field.into(), message: message.into() }
}
