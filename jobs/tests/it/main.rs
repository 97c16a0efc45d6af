//! The crate from outside.

mod export;
mod histories;
mod processes;
mod schema;
mod shares;
mod simulate;
mod slurm;
mod slurm_answers;
mod traces;
