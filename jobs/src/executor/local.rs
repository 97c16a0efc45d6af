//! Processes of this machine.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process_group};

use super::attempt::{EXIT, KILL, LAUNCH, LOCK, Order, PID, STOP, note};
use super::{Attempt, Executor, Status};
use crate::amounts::WHOLE;
use crate::job::{Exit, JobId, Spec};
use crate::nodes::{Node, Place, Placement};

/// What a job's command begins with that runs this program, wherever it is on the machine that it comes to.
pub const OWN_PROGRAM: &str = "luthier";

/// Starts jobs as processes of this machine, each with one beside it that outlives this process.
#[derive(Debug)]
pub struct Local {
    folder: PathBuf,
    /// What jobs that begin with `luthier` start.
    program: String,
    /// The command that calls [`super::run_attempt`] with the folder that is its last argument.
    beside: Vec<String>,
}

impl Local {
    /// Keeps what it has to in `folder`. Where a job's command begins with [`OWN_PROGRAM`], `program` is
    /// started; `beside` is the command that calls [`super::run_attempt`].
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn new(folder: PathBuf, program: String, beside: Vec<String>) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Local { folder, program, beside })
    }

    fn arguments(&self, spec: &Spec, place: &Place) -> Vec<String> {
        let mut arguments = spec.launch.filled(&place.amounts());
        if let Some(first) = arguments.first_mut()
            && first == OWN_PROGRAM
        {
            first.clone_from(&self.program);
        }
        arguments
    }

    fn job(&self, job: JobId) -> PathBuf {
        self.folder.join(job.to_string())
    }

    fn attempt(&self, attempt: Attempt) -> PathBuf {
        self.job(attempt.job).join(format!("attempt-{}", attempt.number))
    }

    /// The folders of a start's members; none if it was never begun.
    fn members(&self, attempt: Attempt) -> io::Result<Vec<PathBuf>> {
        let folder = self.attempt(attempt);
        let count = match fs::read_to_string(folder.join("members")) {
            Ok(count) => count.trim().parse::<usize>().unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok((0..count).map(|member| folder.join(format!("member-{member}"))).collect())
    }

    fn spawn(&self, folder: &Path) -> io::Result<()> {
        let (program, arguments) = self.beside.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        use std::os::unix::process::CommandExt;
        let mut child = Command::new(program)
            .args(arguments)
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        // Its end is told by its folder; somebody has to ask for its status, or it stays as a zombie.
        thread::spawn(move || drop(child.wait()));
        Ok(())
    }
}

impl Executor for Local {
    fn start(&mut self, attempt: Attempt, spec: &Spec, placement: &Placement, _: &[Node]) -> io::Result<()> {
        let folder = self.attempt(attempt);
        for (member, place) in placement.members.iter().enumerate() {
            let folder = folder.join(format!("member-{member}"));
            fs::create_dir_all(&folder)?;
            let order = Order {
                arguments: self.arguments(spec, place),
                folder: spec.launch.folder.clone(),
                environment: environment(attempt, spec, place, member),
                log: self.log(attempt.job),
            };
            write(&folder.join(LAUNCH), &serde_json::to_vec_pretty(&order)?)?;
        }
        // From here on it has been begun.
        write(&folder.join("members"), placement.members.len().to_string().as_bytes())?;
        for folder in self.members(attempt)? {
            if let Err(error) = self.spawn(&folder) {
                note(&self.log(attempt.job), &format!("cannot start {}: {error}", self.beside[0]));
                return Err(error);
            }
        }
        Ok(())
    }

    fn stop(&mut self, attempt: Attempt) -> io::Result<()> {
        self.members(attempt)?.iter().try_for_each(|member| File::create(member.join(STOP)).map(drop))
    }

    fn kill(&mut self, attempt: Attempt) -> io::Result<()> {
        for member in self.members(attempt)? {
            if member.join(KILL).exists() && is_locked(&member)? {
                // The process beside it was told before and has not done it: it is gone itself.
                let pid = fs::read_to_string(member.join(PID)).ok().and_then(|pid| pid.trim().parse().ok());
                if let Some(pid) = pid.and_then(Pid::from_raw) {
                    let _ = kill_process_group(pid, Signal::KILL);
                }
            }
            File::create(member.join(KILL))?;
        }
        Ok(())
    }

    fn status(&mut self, attempt: Attempt) -> io::Result<Status> {
        let members = self.members(attempt)?;
        if members.is_empty() {
            return Ok(Status::Missing);
        }
        let mut exits = Vec::with_capacity(members.len());
        for member in &members {
            match status(member)? {
                Status::Running => {}
                Status::Missing => return Ok(Status::Missing),
                Status::Exited(exit) => exits.push(exit),
            }
        }
        let failed = exits.iter().find(|exit| !matches!(exit, Exit::Done | Exit::Saved));
        if exits.len() < members.len() {
            if failed.is_some() {
                self.stop(attempt)?; // The others wait for one that is gone.
            }
            return Ok(Status::Running);
        }
        let saved = exits.iter().find(|exit| **exit == Exit::Saved);
        Ok(Status::Exited(*failed.or(saved).unwrap_or(&Exit::Done)))
    }

    fn log(&self, job: JobId) -> PathBuf {
        self.job(job).join("log")
    }
}

/// What a process learns of its place: which devices it may see, and which member it is, as `torchrun` says
/// it.
fn environment(attempt: Attempt, spec: &Spec, place: &Place, member: usize) -> Vec<(String, String)> {
    let devices: Vec<String> = place.devices.iter().map(u32::to_string).collect();
    let mut environment = vec![
        ("LUTHIER_JOB".to_owned(), attempt.job.to_string()),
        ("CUDA_VISIBLE_DEVICES".to_owned(), devices.join(",")),
    ];
    if place.part > 0 && place.part < WHOLE {
        environment.push(("LUTHIER_DEVICE_PART".to_owned(), format!("{}", place.part as f64 / WHOLE as f64)));
    }
    if spec.members > 1 {
        environment.push(("RANK".to_owned(), member.to_string()));
        environment.push(("WORLD_SIZE".to_owned(), spec.members.to_string()));
    }
    environment
}

/// How far the process of a folder is. What was ordered but has not begun counts as missing: it may be
/// started again, since only one can hold the lock.
fn status(folder: &Path) -> io::Result<Status> {
    // In this order: the number is written under the lock, and the end before the lock is given back.
    // Otherwise one that just begins or just ends would be taken for lost.
    let begun = folder.join(PID).exists();
    let locked = is_locked(folder)?;
    match fs::read(folder.join(EXIT)) {
        Ok(exit) => return Ok(Status::Exited(serde_json::from_slice(&exit).unwrap_or(Exit::Lost))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(match (locked, begun) {
        (true, _) => Status::Running,
        (false, true) if folder.join(KILL).exists() => Status::Exited(Exit::Killed(9)),
        (false, true) => Status::Exited(Exit::Lost),
        (false, false) => Status::Missing,
    })
}

fn is_locked(folder: &Path) -> io::Result<bool> {
    match File::open(folder.join(LOCK)) {
        Ok(lock) => match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a file, all of it or nothing.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("part");
    fs::write(&aside, bytes)?;
    fs::rename(aside, path)
}
