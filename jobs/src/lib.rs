//! Who may run what, when, and why. Knows no model: a job is a command with what it asks for.
//!
//! A [`Policy`] is a tree of departments and projects with quotas; a [`Pool`] is the state of everything
//! under it, and [`Pool::step`] the scheduler: a function of the state, an event and the time. It has no
//! clock, no thread and no disk, so what happened can be computed again from its events.

pub mod access;
pub mod amounts;
pub mod executor;
pub mod export;
pub mod job;
pub mod nodes;
pub mod policy;
pub mod pool;
pub mod share;
pub mod simulate;
pub mod slurm;
pub mod store;
pub mod supervisor;
pub mod trace;
mod why;

pub use amounts::{Amounts, Bounds, RESOURCES, Resource};
pub use job::{Class, Exit, Job, JobId, Launch, Outcome, Phase, Range, Spec, StopReason};
pub use nodes::{Node, Place, Placement};
pub use policy::{Policy, PolicyError};
pub use pool::{Action, Event, Pool, Refused};
pub use why::{Bound, Why};

/// A time or a duration, in milliseconds; a time counts from the epoch of whoever keeps the clock.
pub type Millis = u64;
