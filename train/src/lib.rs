//! The optimizer's loop, resumable: examples in, trained tensors, metrics and checkpoints out.
//!
//! Knows nothing of HTTP, queues or terminals: it tells what happens through [`Event`]s and is stopped by a flag.

mod checkpoint;
mod error;
mod metrics;
mod optimizer;
mod plan;
mod saving;
mod schedule;
mod sums;
mod trainer;

pub use error::{Result, TrainError};
pub use metrics::{EvalMetrics, StepMetrics, peak_memory_bytes};
pub use optimizer::{OptimizerSettings, Rule};
pub use plan::{Demand, StepPlan};
pub use saving::Saving;
pub use schedule::{Decay, Schedule};
pub use trainer::{Event, Job, Outcome, Settings, Trainer, evaluate, memory_plan, train};
