//! The crate from outside.

mod export;
mod histories;
mod schema;
mod shares;
mod slurm;
mod slurm_answers;
