//! Starting, stopping and finding again the processes of jobs.

mod attempt;
mod local;

use std::io;
use std::path::PathBuf;

use crate::job::{Exit, JobId, Spec};
use crate::nodes::{Node, Placement};

pub use attempt::run as run_attempt;
pub use local::{Local, OWN_PROGRAM};

/// One start of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    /// The job.
    pub job: JobId,
    /// Which of its starts, from 1.
    pub number: u32,
}

/// How far a start of a job has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nothing of it was ever started.
    Missing,
    /// It runs.
    Running,
    /// All its processes have ended.
    Exited(Exit),
}

/// Who runs processes on the machines of a pool. Every call may be repeated: a start that has begun is not
/// begun again, and one that was told to stop is not told again. So whoever calls may be killed between two
/// calls and make them again.
pub trait Executor: Send {
    /// Starts the processes of a job.
    ///
    /// # Errors
    /// If they cannot be started.
    fn start(
        &mut self,
        attempt: Attempt,
        spec: &Spec,
        placement: &Placement,
        nodes: &[Node],
    ) -> io::Result<()>;

    /// Tells them to save and end.
    ///
    /// # Errors
    /// If that cannot be written down.
    fn stop(&mut self, attempt: Attempt) -> io::Result<()>;

    /// Ends them at once.
    ///
    /// # Errors
    /// If that cannot be written down.
    fn kill(&mut self, attempt: Attempt) -> io::Result<()>;

    /// How far they are.
    ///
    /// # Errors
    /// If that cannot be told now.
    fn status(&mut self, attempt: Attempt) -> io::Result<Status>;

    /// The file that a job's processes write their messages to.
    fn log(&self, job: JobId) -> PathBuf;
}
