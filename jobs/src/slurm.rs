//! A real Slurm.
pub(crate) mod accounts;
pub(crate) mod script;
pub(crate) mod shell;
