//! A job: what it asks for, and how far it has come.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Millis;
use crate::amounts::{Amounts, Resource, WHOLE};
use crate::nodes::Placement;

/// A job's number; the pool gives them in order, and never twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What kind of work it is; says its priority, and whether it may be stopped for others. The names and
/// numbers are KAI-Scheduler's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Trains; may be stopped and goes on later. May borrow.
    #[default]
    Train,
    /// Somebody works with it, and can go without it for a while.
    BuildPreemptible,
    /// Somebody works with it: never stopped, so it has to stay in its project's quota.
    Build,
    /// Answers requests: never stopped, so it has to stay in its project's quota.
    Inference,
}

impl Class {
    /// Its priority, unless the job has its own.
    #[must_use]
    pub fn priority(self) -> i32 {
        match self {
            Class::Train => 50,
            Class::BuildPreemptible => 75,
            Class::Build => 100,
            Class::Inference => 125,
        }
    }

    /// Whether its jobs may be stopped for others.
    #[must_use]
    pub fn is_preemptible(self) -> bool {
        self.priority() < 100
    }
}

/// As much of the resource in which a job can grow as it needs and as it can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Below this it does not start.
    pub min: u64,
    /// Above this it gains nothing.
    pub max: u64,
}

impl Range {
    /// Exactly as much.
    #[must_use]
    pub fn exactly(amount: u64) -> Range {
        Range { min: amount, max: amount }
    }
}

/// What is submitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// What people call it.
    pub name: String,
    /// The project that it belongs to.
    pub project: String,
    /// Who submitted it.
    pub user: String,
    /// What kind of work it is.
    pub class: Class,
    /// Above other jobs of its project; the class's, if nobody says otherwise.
    pub priority: i32,
    /// How many processes start together, or none of them.
    pub members: u32,
    /// Thousandths of a device for each member: below a whole one a part of one, above it whole ones.
    pub devices: Range,
    /// Cores for each member.
    pub cpus: Range,
    /// Bytes of the host's memory for each member.
    pub memory: u64,
    /// How long it computes with the least that it asks for, in milliseconds, if somebody knows.
    pub takes: Option<Millis>,
    /// What is started.
    pub launch: Launch,
}

/// A command, which each start of a job runs again: it has to go on where it was stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The program and its arguments. `{cpus}`, `{memory}` (in bytes) and `{devices}` stand for what the job
    /// was given.
    pub arguments: Vec<String>,
    /// Where it starts.
    pub folder: PathBuf,
    /// The folder of its results; of `luthier train` the run folder, whose `metrics.jsonl` tells how far it
    /// is.
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// Steps that it has in all, if somebody knows.
    #[serde(default)]
    pub steps: Option<u64>,
}

impl Launch {
    /// The arguments for what one member was given.
    #[must_use]
    pub fn filled(&self, given: &Amounts) -> Vec<String> {
        let devices = given.devices.div_ceil(WHOLE);
        let fill = |argument: &String| {
            argument
                .replace("{cpus}", &given.cpus.to_string())
                .replace("{memory}", &given.memory.to_string())
                .replace("{devices}", &devices.to_string())
        };
        self.arguments.iter().map(fill).collect()
    }
}

impl Spec {
    /// Which resource it can grow in: devices if there is a range of them, else cores.
    #[must_use]
    pub fn grows_in(&self) -> Resource {
        if self.devices.min < self.devices.max { Resource::Devices } else { Resource::Cpus }
    }

    /// How far it can grow, in steps above the least.
    #[must_use]
    pub fn steps(&self) -> u64 {
        match self.grows_in() {
            Resource::Devices => (self.devices.max - self.devices.min) / WHOLE,
            _ => self.cpus.max - self.cpus.min,
        }
    }

    /// What one member gets at a size, counted in steps above the least. Cores go along with devices in
    /// proportion.
    #[must_use]
    pub fn member(&self, steps: u64) -> Amounts {
        let mut amounts = Amounts { devices: self.devices.min, cpus: self.cpus.min, memory: self.memory };
        match self.grows_in() {
            Resource::Devices => amounts.devices += steps * WHOLE,
            _ => amounts.cpus += steps,
        }
        amounts
    }

    /// What the whole job gets at a size.
    #[must_use]
    pub fn total(&self, steps: u64) -> Amounts {
        self.member(steps).times(u64::from(self.members))
    }

    /// How much faster than at its least it is supposed to compute at a size.
    #[must_use]
    pub fn speed(&self, steps: u64) -> f64 {
        let resource = self.grows_in();
        let (least, now) = (self.member(0)[resource], self.member(steps)[resource]);
        if least == 0 { 1.0 } else { now as f64 / least as f64 }
    }
}

/// Why a running job is to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum StopReason {
    /// A job of its own project goes first: it has more priority.
    Preempted {
        /// That job.
        by: JobId,
    },
    /// Another project takes its part back.
    Reclaimed {
        /// The job that gets the room.
        by: JobId,
        /// Whether that project stays in its quota by it, which is more than in its share.
        within_quota: bool,
    },
    /// It goes on elsewhere, so that another job fits.
    Moved {
        /// The job that fits then.
        by: JobId,
    },
    /// It goes on with more or less.
    Resized {
        /// Steps above its least.
        steps: u64,
        /// The job that gets what it gives, if it gives.
        by: Option<JobId>,
    },
    /// Somebody cancelled it.
    Cancelled,
    /// Somebody holds it back.
    Held,
    /// Another member of it has ended, or its node is gone.
    Broken,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// Its work is done.
    Done,
    /// It saved its state and can go on.
    Saved,
    /// What it was given is wrong: trying again would not help.
    Refused,
    /// It needs more memory than it was given.
    OverBudget,
    /// It failed with this status.
    Failed(i32),
    /// A signal killed it.
    Killed(i32),
    /// Nobody knows: its node or its starter is gone.
    Lost,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its work is done.
    Done,
    /// It could not be done.
    Failed(Exit),
    /// Somebody cancelled it.
    Cancelled,
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// Somebody holds it back.
    Held,
    /// It wants to start, from a time on.
    Waiting {
        /// After a failure there is a pause.
        from: Millis,
    },
    /// It has a place, which others still have to leave.
    Promised {
        /// The place.
        placement: Placement,
        /// Since when.
        since: Millis,
    },
    /// It computes.
    Running {
        /// Where.
        placement: Placement,
        /// Since when.
        since: Millis,
    },
    /// It has been told to stop and is saving its state.
    Stopping {
        /// Where.
        placement: Placement,
        /// Since when it ran.
        since: Millis,
        /// When it was told.
        told: Millis,
        /// Why.
        reason: StopReason,
        /// Where it goes on.
        next: Option<Placement>,
    },
}

/// A job in the pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// What was submitted.
    pub spec: Spec,
    /// The number of its project in the policy's tree.
    pub(crate) project: usize,
    /// When.
    pub submitted: Millis,
    /// Where it stands.
    pub phase: Phase,
    /// How often it was started.
    pub attempt: u32,
    /// How often it failed by itself since it last saved.
    pub failures: u32,
    /// Milliseconds of its work, at its least size, that are still to be done, if somebody knows.
    pub remaining: Option<Millis>,
    /// How often it was stopped for others.
    pub evictions: u32,
}

impl Job {
    /// Where it is, whether it runs or is stopping.
    #[must_use]
    pub fn placement(&self) -> Option<&Placement> {
        match &self.phase {
            Phase::Running { placement, .. } | Phase::Stopping { placement, .. } => Some(placement),
            Phase::Held | Phase::Waiting { .. } | Phase::Promised { .. } => None,
        }
    }
}
