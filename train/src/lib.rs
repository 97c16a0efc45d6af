//! The optimizer's loop, resumable: examples in, trained tensors, metrics and checkpoints out.
//!
//! Knows nothing of HTTP, queues or terminals: it tells what happens through [`Event`]s and is stopped by a
//! flag.

mod checkpoint;
mod error;
mod forecast;
mod metrics;
mod optimizer;
mod plan;
mod saving;
mod schedule;
mod sums;
mod trainer;

pub use checkpoint::Best;
pub use error::{Result, TrainError};
pub use forecast::{Amount, Pace};
pub use metrics::{EvalMetrics, History, StepMetrics, peak_memory_bytes};
pub use optimizer::{OptimizerSettings, Rule};
pub use plan::{Demand, StepPlan};
pub use saving::Saving;
pub use schedule::{Decay, Schedule};
pub use trainer::{Event, Job, Outcome, Saves, Settings, Trainer, evaluate, memory_plan, train};
