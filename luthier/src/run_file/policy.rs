//! `POLICY.yaml`: who may have how much of a pool.
//!
//! ```yaml
//! admins: [ann]                          # who may change this
//! departments:
//!   - {name: research, quota: {devices: 6}}
//! projects:
//!   - name: vision
//!     department: research
//!     quota: {devices: 4}                # its own whenever it wants it
//!     limit: {devices: 8}                # never more
//!     over_quota_weight: 2               # of what others leave, twice as much as a sibling with 1
//!     reclaim_min_runtime: 5m            # its borrowed work is safe for so long
//!     members: [bob]
//!     owners: [ann]
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::str::FromStr;

use jobs::Millis;
use jobs::amounts::WHOLE;
use jobs::policy::{Policy, Queue, Said, Share, Usage};
use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};

use super::decode::{Problem, decode_other};
use super::{ByteSize, FileText, Node, Origin, Value, yaml};
use crate::error::user;

/// Reads a policy, and checks all of it.
///
/// # Errors
/// If a key is unknown, or something in it cannot hold: told with the line.
pub(crate) fn read_policy(path: &Path) -> anyhow::Result<Policy> {
    let text = FileText::read(path, "policy")?;
    let tree = yaml::parse(&text.text).map_err(|problem| problem.report(Some(&text)))?;
    if !matches!(tree.value, Value::Map(_)) {
        return Err(user(format!("{}: a policy has sections, such as `projects:`", text.path)));
    }
    let file: PolicyFile = decode_other(&tree).map_err(|problem| problem.report(Some(&text)))?;
    let policy = file.policy();
    match policy.tree() {
        Ok(_) => Ok(policy),
        Err(error) => Err(refuse(&tree, &text, &error.field, &error.message)),
    }
}

fn refuse(tree: &Node, text: &FileText, key: &str, message: &str) -> anyhow::Error {
    match tree.origin_of(key) {
        Origin::Default => user(format!("{}: `{key}`: {message}", text.path)),
        origin => Problem::about(key, message, origin).report(Some(text)),
    }
}

#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PolicyFile {
    departments: Vec<QueueFile>,
    projects: Vec<QueueFile>,
    admins: BTreeSet<String>,
    usage: UsageFile,
    grace: Span,
    resize_interval: Span,
    retries: u32,
    max_jobs: u32,
}

#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct UsageFile {
    half_life: Span,
    weight: f64,
}

#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct QueueFile {
    name: String,
    department: Option<String>,
    quota: ShareFile,
    limit: ShareFile,
    over_quota_weight: f64,
    priority: i32,
    preempt_min_runtime: Option<Span>,
    reclaim_min_runtime: Option<Span>,
    members: BTreeSet<String>,
    owners: BTreeSet<String>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ShareFile {
    devices: Option<Bound<Devices>>,
    cpus: Option<Bound<Cpus>>,
    memory: Option<Bound<Memory>>,
}

impl Default for PolicyFile {
    fn default() -> Self {
        let policy = Policy::default();
        PolicyFile {
            departments: Vec::new(),
            projects: Vec::new(),
            admins: BTreeSet::new(),
            usage: UsageFile::default(),
            grace: Span(policy.grace),
            resize_interval: Span(policy.resize_interval),
            retries: policy.retries,
            max_jobs: policy.max_jobs,
        }
    }
}

impl Default for UsageFile {
    fn default() -> Self {
        let Usage { half_life, weight } = Usage::default();
        UsageFile { half_life: Span(half_life), weight }
    }
}

impl Default for QueueFile {
    fn default() -> Self {
        let queue = Queue::default();
        QueueFile {
            name: queue.name,
            department: queue.department,
            quota: ShareFile::default(),
            limit: ShareFile::default(),
            over_quota_weight: queue.over_quota_weight,
            priority: queue.priority,
            preempt_min_runtime: None,
            reclaim_min_runtime: None,
            members: queue.members,
            owners: queue.owners,
        }
    }
}

impl PolicyFile {
    fn policy(self) -> Policy {
        Policy {
            departments: self.departments.into_iter().map(QueueFile::queue).collect(),
            projects: self.projects.into_iter().map(QueueFile::queue).collect(),
            admins: self.admins,
            usage: Usage { half_life: self.usage.half_life.0, weight: self.usage.weight },
            grace: self.grace.0,
            resize_interval: self.resize_interval.0,
            retries: self.retries,
            max_jobs: self.max_jobs,
        }
    }
}

impl QueueFile {
    fn queue(self) -> Queue {
        Queue {
            name: self.name,
            department: self.department,
            quota: self.quota.share(),
            limit: self.limit.share(),
            over_quota_weight: self.over_quota_weight,
            priority: self.priority,
            preempt_min_runtime: self.preempt_min_runtime.map(|span| span.0),
            reclaim_min_runtime: self.reclaim_min_runtime.map(|span| span.0),
            members: self.members,
            owners: self.owners,
        }
    }
}

impl ShareFile {
    fn share(self) -> Share {
        Share {
            devices: self.devices.map(|bound| bound.said),
            cpus: self.cpus.map(|bound| bound.said),
            memory: self.memory.map(|bound| bound.said),
        }
    }
}

/// A duration, such as `30s`, `5m`, `2h` or `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(
    /// Milliseconds.
    pub(crate) Millis,
);

/// Units of durations, in milliseconds.
const SPANS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 24 * 3_600_000)];
/// Ten years: longer is a slip of the pen.
const LONGEST: f64 = 10.0 * 366.0 * 24.0 * 3_600_000.0;
const SPAN: &str = "a duration such as 30s, 5m, 2h or 7d";

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let scale = SPANS.iter().find(|(unit, _)| *unit == text[end..].trim()).map(|(_, scale)| *scale);
        match (text[..end].parse::<f64>(), scale) {
            (Ok(0.0), _) if text[end..].is_empty() => Ok(Span(0)),
            (Ok(number), Some(scale)) if number * scale as f64 <= LONGEST => {
                Ok(Span((number * scale as f64).round() as u64))
            }
            _ => Err(format!("expected {SPAN}")),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SPAN)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Span, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// An amount of one resource as people write it.
trait Amount {
    /// What is expected, for messages.
    const EXPECTED: &'static str;

    /// Reads it.
    fn parse(text: &str) -> Option<u64>;
}

struct Devices;
struct Cpus;
struct Memory;

impl Amount for Devices {
    const EXPECTED: &'static str = "devices, such as 4 or 0.5, or unlimited";

    fn parse(text: &str) -> Option<u64> {
        let devices: f64 = text.parse().ok().filter(|d| (0.0..=1e9).contains(d))?;
        let thousandths = (devices * WHOLE as f64).round();
        ((thousandths / WHOLE as f64 - devices).abs() < 1e-9).then_some(thousandths as u64)
    }
}

impl Amount for Cpus {
    const EXPECTED: &'static str = "whole cpus, such as 16, or unlimited";

    fn parse(text: &str) -> Option<u64> {
        text.parse().ok()
    }
}

impl Amount for Memory {
    const EXPECTED: &'static str = "memory, such as 64GiB, or unlimited";

    fn parse(text: &str) -> Option<u64> {
        text.parse::<ByteSize>().ok().map(|size| size.0)
    }
}

/// An amount, or that there is no bound.
struct Bound<A> {
    said: Said,
    of: PhantomData<A>,
}

impl<'de, A: Amount> Deserialize<'de> for Bound<A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<A>(PhantomData<A>);
        impl<A: Amount> Visitor<'_> for Reader<A> {
            type Value = Bound<A>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(A::EXPECTED)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bound<A>, E> {
                let said = match text {
                    // As other schedulers write it.
                    "unlimited" | "-1" => Some(Said::Unlimited),
                    text => A::parse(text).map(Said::Amount),
                };
                let said = said.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))?;
                Ok(Bound { said, of: PhantomData })
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Bound<A>, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Bound<A>, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Bound<A>, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Policy, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read_policy(file.path()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_policy_says_amounts_and_durations_as_people_write_them() {
        let policy = read(
            "projects:\n  - name: vision\n    quota: {devices: 0.5, cpus: 8, memory: 4GiB}\n    limit: {devices: -1, \
             cpus: unlimited}\n    reclaim_min_runtime: 5m\ngrace: 90s\nusage: {half_life: 2d}\n",
        )
        .unwrap();
        let vision = &policy.projects[0];
        assert_eq!(vision.quota.devices, Some(Said::Amount(500)));
        assert_eq!(vision.quota.memory, Some(Said::Amount(4 << 30)));
        assert_eq!(vision.limit.devices, Some(Said::Unlimited));
        assert_eq!(vision.limit.memory, None);
        assert_eq!(vision.reclaim_min_runtime, Some(300_000));
        assert_eq!((policy.grace, policy.usage.half_life), (90_000, 2 * 86_400_000));
    }

    #[test]
    fn what_cannot_hold_is_refused_where_it_stands() {
        for (text, said) in [
            ("projects:\n  - {name: a, quota: {devices: -2}}\n", "expected devices"),
            ("projects:\n  - {name: a, quota: {devices: 0.0001}}\n", "expected devices"),
            ("projects:\n  - {name: a, quota: {cpus: 1.5}}\n", "expected whole cpus"),
            ("projects:\n  - {name: a, qouta: {cpus: 1}}\n", "quota"),
            ("projects:\n  - {name: a}\n  - {name: a}\n", "named twice"),
            ("projects:\n  - {name: a/b}\n", "letters, digits"),
            ("projects:\n  - {name: a, department: b}\n", "no department `b`"),
            (
                "departments:\n  - {name: a, department: b}\n  - {name: b, department: a}\n",
                "belongs to itself",
            ),
            ("departments:\n  - {name: a, department: a}\n", "belongs to itself"),
            ("projects:\n  - {name: a, quota: {cpus: 3}, limit: {cpus: 2}}\n", "the limit is 2 cpus"),
            (
                "departments:\n  - {name: d, quota: {cpus: 3}}\nprojects:\n  - {name: a, department: d, \
                 quota: {cpus: 2}}\n  - {name: b, department: d, quota: {cpus: 2}}\n",
                "guaranteed 3 cpus",
            ),
            ("grace: soon\n", "expected a duration"),
            ("- a\n", "sections"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(said), "{text}\n{error}");
        }
    }
}
