//! The optimizer's loop, resumable: examples in, trained tensors, metrics and checkpoints out.
//!
//! Knows nothing of HTTP, queues or terminals: it tells what happens through [`Event`]s and is stopped by a
//! flag.

mod checkpoint;
mod course;
mod error;
mod evaluation;
mod forecast;
mod job;
mod metrics;
mod optimizer;
mod pass;
mod plan;
mod rehearsal;
mod saving;
mod schedule;
mod studio;
mod sums;
mod tensorboard;
mod trainer;

pub use checkpoint::Best;
pub use error::{Result, TrainError};
pub use evaluation::{changes, evaluate};
pub use forecast::{Amount, Pace};
pub use job::{Event, Forgetting, Job, Outcome, Saves, Settings, Together};
pub use metrics::{EvalMetrics, ForgettingMetrics, History, StepMetrics, peak_memory_bytes};
pub use optimizer::{OptimizerSettings, Rule};
pub use plan::{Demand, StepPlan};
pub use saving::Saving;
pub use schedule::{Decay, Schedule};
pub use studio::{
    ModelSettings, Objective, Passed, Sequence, StepSettings, Studio, StudioError, StudioExtent, Work,
};
pub use trainer::{Planned, Trainer, memory_plan, train};
