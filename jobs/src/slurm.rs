//! A real Slurm, driven through its own commands: a policy becomes accounts and qualities of service, a job a
//! batch script.
//!
//! Read with `--json` where Slurm 22.05 has it, and with the parsable lists of `sacctmgr` and `scontrol`
//! elsewhere. Nothing is kept here: what runs, waits and has ended is what Slurm says. Borrowed work runs
//! under the QOS `over` (see `accounts.rs`), and whoever asks first calls [`Slurm::settle`], which does what
//! Slurm does not do by itself.

pub(crate) mod accounts;
mod answers;
pub(crate) mod script;
pub(crate) mod shell;
mod why;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use crate::Millis;
use crate::amounts::{Amounts, Bounds, Resource};
use crate::executor::OWN_PROGRAM;
use crate::export::{ExportError, check_launch, label};
use crate::job::Spec;
use crate::policy::Policy;

pub use answers::{Job, State};

/// Tasks of one array, as Slurm has them unless its owner says otherwise (`MaxArraySize`).
pub const MAX_ARRAY: usize = 1000;

/// Why Slurm was of no use.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SlurmError {
    /// Slurm is not there.
    #[error("cannot start `{program}`: {message}; is this a machine of a Slurm cluster?")]
    Start {
        /// What was to be started.
        program: String,
        /// What the system said.
        message: String,
    },
    /// Slurm refused.
    #[error("`{command}` failed: {message}")]
    Failed {
        /// What was started.
        command: String,
        /// What it said.
        message: String,
    },
    /// What Slurm said makes no sense to us.
    #[error("cannot read what `{command}` says: {message}")]
    Answer {
        /// What was started.
        command: String,
        /// What is wrong with it.
        message: String,
    },
    /// What was named is no job's number.
    #[error("`{0}` is no job of Slurm; they are numbers such as 12, or 12_3 in an array")]
    NoNumber(String),
    /// Slurm does not know the job, or no longer.
    #[error("Slurm knows no job {0}")]
    NoJob(String),
    /// What was asked for cannot be.
    #[error("{0}")]
    Refused(String),
    /// The policy or the job cannot be written down for Slurm.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// A Slurm that can be reached from this machine.
#[derive(Debug, Clone, Default)]
pub struct Slurm {
    conf: Option<PathBuf>,
    programs: Option<PathBuf>,
    own: Option<String>,
}

/// What a project may have of its own, and what of it is spoken for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Quota {
    bounds: Bounds,
    /// By running jobs.
    used: Amounts,
    /// By jobs that wait for it.
    wanted: Amounts,
}

impl Quota {
    /// How many jobs of a size fit beside what runs and waits.
    fn room(&self, one: &Amounts, at_most: usize) -> usize {
        let mut all = sum(&self.used, &self.wanted, 1);
        let mut fits = || {
            all = sum(&all, one, 1);
            self.bounds.passed_by(&all).is_none()
        };
        (0..at_most).take_while(|_| fits()).count()
    }
}

impl Slurm {
    /// The Slurm that the environment names.
    #[must_use]
    pub fn new() -> Self {
        Slurm::default()
    }

    /// The Slurm of this `slurm.conf`.
    #[must_use]
    pub fn with_conf(self, conf: impl Into<PathBuf>) -> Self {
        Slurm { conf: Some(conf.into()), ..self }
    }

    /// Slurm's commands in this folder instead of those on the `PATH`.
    #[must_use]
    pub fn with_programs(self, folder: impl Into<PathBuf>) -> Self {
        Slurm { programs: Some(folder.into()), ..self }
    }

    /// Where this program is on the machines of the cluster, for jobs whose command begins with
    /// [`OWN_PROGRAM`]; otherwise it is looked for on the `PATH`.
    #[must_use]
    pub fn with_own_program(self, path: impl Into<String>) -> Self {
        Slurm { own: Some(path.into()), ..self }
    }

    /// Makes a policy hold: accounts, qualities of service, users. May be done again and again; needs an
    /// operator of Slurm. Returns what of the policy Slurm does not do, and which settings of the cluster
    /// keep it from doing the rest.
    ///
    /// # Errors
    /// If the policy is wrong, or Slurm refuses; what was done until then stays.
    pub fn apply(&self, policy: &Policy) -> Result<Vec<String>, SlurmError> {
        let tree = policy.tree().map_err(ExportError::from)?;
        let names = accounts::names(&tree)?;
        let gpus = self.counts_gpus()?;
        if !gpus && tree.divided.contains(&Resource::Devices) {
            return Err(SlurmError::Refused(
                "the policy divides devices, but this Slurm does not count them: set \
                 AccountingStorageTRES=gres/gpu in slurm.conf"
                    .into(),
            ));
        }
        let mut gaps = self.lacking()?;
        for command in accounts::commands(policy, &tree, &names, gpus) {
            let mut arguments = vec!["--immediate", "--quiet"];
            arguments.extend(command.iter().map(String::as_str));
            match self.run("sacctmgr", &arguments, None) {
                Err(SlurmError::Failed { message, .. }) if is_so_already(&message) => {}
                other => drop(other?),
            }
        }
        gaps.extend(names.changed());
        gaps.extend(accounts::gaps(policy, &tree));
        Ok(gaps)
    }

    /// Submits a job; returns its number.
    ///
    /// # Errors
    /// If the job cannot be written down, its project is not in Slurm, it can never fit its quota, or Slurm
    /// refuses.
    pub fn submit(&self, spec: &Spec, grace: Millis) -> Result<String, SlurmError> {
        let mut numbers = self.submit_all(std::slice::from_ref(spec), grace)?;
        Ok(numbers.remove(0))
    }

    /// Submits jobs that differ in what they run alone: as arrays, one of those that the project's quota has
    /// room for, and one of those on borrowed room. Returns the arrays' numbers; task `n` of the first is the
    /// `n`th job, and so on.
    ///
    /// # Errors
    /// As [`Slurm::submit`], or if they differ in what they ask for.
    pub fn submit_all(&self, specs: &[Spec], grace: Millis) -> Result<Vec<String>, SlurmError> {
        let Some(first) = specs.first() else { return Ok(Vec::new()) };
        specs.iter().try_for_each(check_launch)?;
        if specs.iter().any(|spec| !is_like(first, spec)) {
            return Err(SlurmError::Refused("jobs of one array have to ask for the same".into()));
        }
        let project = label(&first.project);
        let quotas = self.quotas()?;
        let Some(quota) = quotas.get(&project) else {
            return Err(SlurmError::Refused(format!(
                "Slurm has no QOS `{project}` for project `{}`: apply the policy first, or check the project's name",
                first.project
            )));
        };
        let total = first.total(0);
        let in_quota = if first.class.is_preemptible() {
            quota.room(&total, specs.len())
        } else if let Some(resource) = quota.bounds.passed_by(&total) {
            return Err(SlurmError::Refused(format!(
                "it asks for {}, and the quota of `{}` is {}, which a job that is never stopped has to stay \
                 in; make it preemptible (class train), or ask for less",
                resource.say(total[resource]),
                first.project,
                resource.say(quota.bounds.of(resource).unwrap_or(0))
            )));
        } else {
            specs.len()
        };
        let (own, borrowed) = specs.split_at(in_quota);
        let mut numbers = Vec::new();
        for (specs, qos) in [(own, project.as_str()), (borrowed, accounts::OVER)] {
            for specs in specs.chunks(MAX_ARRAY) {
                numbers.push(self.batch(specs, qos, grace)?);
            }
        }
        Ok(numbers)
    }

    fn batch(&self, specs: &[Spec], qos: &str, grace: Millis) -> Result<String, SlurmError> {
        let mut specs = specs.to_vec();
        if let Some(own) = &self.own {
            let programs = specs.iter_mut().filter_map(|spec| spec.launch.arguments.first_mut());
            programs.filter(|program| *program == OWN_PROGRAM).for_each(|program| program.clone_from(own));
        }
        let specs: Vec<&Spec> = specs.iter().collect();
        let said = self.run("sbatch", &["--parsable"], Some(&script::script(&specs, qos, grace)))?;
        // `12;cluster` where there are several clusters.
        let number = said.trim().split(';').next().unwrap_or_default();
        check_number(number).map_err(|_| SlurmError::Answer {
            command: "sbatch --parsable".into(),
            message: format!("{:?} is no job's number", said.trim()),
        })?;
        Ok(number.to_owned())
    }

    /// All of our jobs that Slurm has in mind: those that wait and run, and those that ended in the last
    /// minutes.
    ///
    /// # Errors
    /// If Slurm cannot be asked.
    pub fn list(&self) -> Result<Vec<Job>, SlurmError> {
        Ok(self.queue()?.into_iter().filter(|job| job.is_ours).collect())
    }

    /// A job, or the tasks of an array; from the accounting if it has ended a while ago.
    ///
    /// # Errors
    /// If Slurm cannot be asked, or knows no such job.
    pub fn show(&self, id: &str) -> Result<Vec<Job>, SlurmError> {
        check_number(id)?;
        let of_it = |job: &Job| job.id == id || job.array().is_some_and(|array| array == id);
        let mut jobs: Vec<Job> = self.queue()?.into_iter().filter(of_it).collect();
        if jobs.is_empty() {
            let arguments = ["--json", "--jobs", id];
            let said = self.run("sacct", &arguments, None)?;
            let ended = answers::ended(&said).map_err(|message| answer("sacct", &arguments, message))?;
            jobs = ended.into_iter().filter(of_it).collect();
        }
        if jobs.is_empty() {
            return Err(SlurmError::NoJob(id.to_owned()));
        }
        Ok(jobs)
    }

    /// Where a job writes what it says.
    ///
    /// # Errors
    /// As [`Slurm::show`].
    pub fn logs(&self, id: &str) -> Result<Vec<PathBuf>, SlurmError> {
        Ok(self.show(id)?.into_iter().map(|job| job.log).collect())
    }

    /// Ends a job; it may save, within the cluster's `KillWait`, and does not go on.
    ///
    /// # Errors
    /// If Slurm refuses, or the job has ended.
    pub fn cancel(&self, id: &str) -> Result<(), SlurmError> {
        self.alive(id)?;
        self.run("scancel", &[id], None).map(drop)
    }

    /// Keeps a job from running until it is released. One that runs saves first, and leaves.
    ///
    /// # Errors
    /// If Slurm refuses, or the job has ended.
    pub fn hold(&self, id: &str) -> Result<(), SlurmError> {
        let jobs = self.alive(id)?;
        self.run("scontrol", &["hold", id], None)?;
        for job in jobs.iter().filter(|job| job.state == State::Running) {
            self.run("scancel", &["--signal=USR1", "--batch", &job.id], None)?;
        }
        Ok(())
    }

    /// Lets a job run that was held.
    ///
    /// # Errors
    /// If Slurm refuses, or the job has ended.
    pub fn release(&self, id: &str) -> Result<(), SlurmError> {
        self.alive(id)?;
        self.run("scontrol", &["release", id], None).map(drop)
    }

    fn alive(&self, id: &str) -> Result<Vec<Job>, SlurmError> {
        let mut jobs = self.show(id)?;
        jobs.retain(|job| !job.state.is_over());
        match jobs.is_empty() {
            true => Err(SlurmError::Refused(format!("job {id} has ended"))),
            false => Ok(jobs),
        }
    }

    /// Does for waiting jobs what Slurm does not do by itself: a job on borrowed room comes into its
    /// project's quota once that has room again, and one that was put back in the queue need not wait two
    /// minutes. Says what it did; what belongs to others and may not be changed stays as it is.
    ///
    /// # Errors
    /// If Slurm cannot be asked.
    pub fn settle(&self) -> Result<Vec<String>, SlurmError> {
        let jobs = self.queue()?;
        let mut quotas = self.quotas_with(&jobs)?;
        let mut waiting: Vec<&Job> =
            jobs.iter().filter(|job| job.is_ours && job.state == State::Waiting).collect();
        waiting.sort_by_key(|job| (job.submitted, job.number));
        let mut done = Vec::new();
        for job in waiting {
            if job.reason == "BeginTime" && job.restarts > 0 && self.update(&job.id, "StartTime=now")? {
                done.push(format!("job {} may start again at once", job.id));
            }
            let Some(quota) = quotas.get_mut(&job.project) else { continue };
            if job.qos != accounts::OVER {
                continue;
            }
            let tasks = job.tasks();
            for task in &tasks[..quota.room(&job.requested, tasks.len())] {
                if self.update(task, &format!("QOS={}", job.project))? {
                    quota.wanted = sum(&quota.wanted, &job.requested, 1);
                    done.push(format!(
                        "job {task} goes into the quota of `{}`, which has room again",
                        job.project
                    ));
                }
            }
        }
        Ok(done)
    }

    /// Whether a change was allowed: others' jobs are not ours to change, and one may have started in
    /// between.
    fn update(&self, id: &str, change: &str) -> Result<bool, SlurmError> {
        match self.run("scontrol", &["update", &format!("JobId={id}"), change], None) {
            Ok(_) => Ok(true),
            Err(SlurmError::Failed { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn queue(&self) -> Result<Vec<Job>, SlurmError> {
        let said = self.run("squeue", &["--json"], None)?;
        answers::queue(&said, now()).map_err(|message| answer("squeue", &["--json"], message))
    }

    fn quotas(&self) -> Result<BTreeMap<String, Quota>, SlurmError> {
        self.quotas_with(&self.queue()?)
    }

    /// Of each QOS that is a project's.
    fn quotas_with(&self, jobs: &[Job]) -> Result<BTreeMap<String, Quota>, SlurmError> {
        let mut quotas = BTreeMap::new();
        for [name, bounds, preempts] in self.table(["qos", "format=name,grptres,preempt"])? {
            if preempts.split(',').any(|other| other == accounts::OVER) {
                let bounds = self.bounds(&bounds)?;
                quotas.insert(name, Quota { bounds, ..Quota::default() });
            }
        }
        for job in jobs {
            let Some(quota) = quotas.get_mut(&job.qos) else { continue };
            match job.state {
                State::Running | State::Stopping => quota.used = sum(&quota.used, &job.requested, 1),
                State::Waiting => quota.wanted = sum(&quota.wanted, &job.requested, job.tasks().len() as u64),
                _ => {}
            }
        }
        Ok(quotas)
    }

    /// Of each account: the one above it, and its limit.
    fn limits(&self) -> Result<BTreeMap<String, (String, Bounds)>, SlurmError> {
        let mut limits = BTreeMap::new();
        for [account, user, parent, bounds] in
            self.table(["assoc", "format=account,user,parentname,grptres"])?
        {
            if user.is_empty() {
                limits.insert(account, (parent, self.bounds(&bounds)?));
            }
        }
        Ok(limits)
    }

    fn bounds(&self, said: &str) -> Result<Bounds, SlurmError> {
        answers::bounds(said).map_err(|message| answer("sacctmgr", &["show"], message))
    }

    /// A list of `sacctmgr`, in columns.
    fn table<const N: usize>(&self, what: [&str; 2]) -> Result<Vec<[String; N]>, SlurmError> {
        let arguments = ["--noheader", "--parsable2", "show", what[0], what[1]];
        let said = self.run("sacctmgr", &arguments, None)?;
        let row = |line: &str| -> Result<[String; N], SlurmError> {
            let columns: Vec<String> = line.split('|').map(str::to_owned).collect();
            columns
                .try_into()
                .map_err(|_| answer("sacctmgr", &arguments, format!("{line:?} has not {N} columns")))
        };
        said.lines().filter(|line| !line.is_empty()).map(row).collect()
    }

    fn counts_gpus(&self) -> Result<bool, SlurmError> {
        let rows = self.table(["tres", "format=type,name"])?;
        Ok(rows.iter().any(|[kind, name]| kind == "gres" && name == "gpu"))
    }

    /// Settings of the cluster without which the policy does not hold.
    fn lacking(&self) -> Result<Vec<String>, SlurmError> {
        let said = self.run("scontrol", &["show", "config"], None)?;
        let value = |key: &str| {
            let of_key = |line: &&str| line.split('=').next().is_some_and(|name| name.trim() == key);
            let line = said.lines().find(of_key).unwrap_or_default();
            line.split_once('=').map_or("", |(_, value)| value.trim()).to_ascii_lowercase()
        };
        let wanted: [(&str, &str, &str); 7] = [
            ("PreemptType", "preempt/qos", "nobody's quota is taken back"),
            ("PreemptMode", "requeue", "who has to make room does not go on later"),
            (
                "SlurmctldParameters",
                "preempt_send_user_signal",
                "a job hears too late that it has to make room",
            ),
            ("JobRequeue", "1", "who has to make room does not go on later"),
            ("AccountingStorageEnforce", "limits", "limits are not held"),
            ("AccountingStorageEnforce", "qos", "who may borrow is not checked"),
            ("PriorityType", "priority/multifactor", "fair shares do not count"),
        ];
        let lacks = |(key, part, otherwise): &(&str, &str, &str)| {
            let has = value(key).split(',').any(|word| word.trim() == *part);
            (!has).then(|| format!("slurm.conf does not say {key}={part}: {otherwise}"))
        };
        Ok(wanted.iter().filter_map(lacks).collect())
    }

    fn run(&self, program: &str, arguments: &[&str], input: Option<&str>) -> Result<String, SlurmError> {
        let path = self.programs.as_deref().map_or(PathBuf::from(program), |folder| folder.join(program));
        let mut command = Command::new(path);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        // These would win over what the script says.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("SBATCH_")) {
                command.env_remove(name);
            }
        }
        if let Some(conf) = &self.conf {
            command.env("SLURM_CONF", conf);
        }
        let failed = |message: String| SlurmError::Start { program: program.to_owned(), message };
        let mut child = command.spawn().map_err(|error| {
            failed(if error.kind() == ErrorKind::NotFound {
                "it is not there".into()
            } else {
                error.to_string()
            })
        })?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            // Who does not read to the end says why by its status.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            let said = if complaint.trim().is_empty() { text.as_str() } else { &*complaint };
            let command = format!("{program} {}", arguments.join(" "));
            return Err(SlurmError::Failed { command: command.trim().to_owned(), message: one_line(said) });
        }
        Ok(text)
    }
}

/// What somebody's program said, in one line without anything that moves a terminal's cursor.
fn one_line(said: &str) -> String {
    let words: Vec<&str> =
        said.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let line = words.join(" ");
    if line.is_empty() { "it said nothing".to_owned() } else { line.chars().take(500).collect() }
}

fn answer(program: &str, arguments: &[&str], message: String) -> SlurmError {
    SlurmError::Answer { command: format!("{program} {}", arguments.join(" ")), message }
}

fn is_so_already(message: &str) -> bool {
    ["Nothing new added", "Nothing modified", "already exist"].iter().any(|known| message.contains(known))
}

/// `12`, or `12_3` in an array.
fn check_number(id: &str) -> Result<(), SlurmError> {
    let digits = |text: &str| (1..=10).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let ok = match id.split_once('_') {
        Some((array, task)) => digits(array) && digits(task),
        None => digits(id),
    };
    if ok { Ok(()) } else { Err(SlurmError::NoNumber(id.chars().take(60).collect())) }
}

/// Both, the second so many times. Nobody vouches for the numbers, so it stops at the greatest.
fn sum(some: &Amounts, more: &Amounts, times: u64) -> Amounts {
    let add = |a: u64, b: u64| a.saturating_add(b.saturating_mul(times));
    Amounts {
        devices: add(some.devices, more.devices),
        cpus: add(some.cpus, more.cpus),
        memory: add(some.memory, more.memory),
    }
}

/// Whether two jobs may be tasks of one array.
fn is_like(a: &Spec, b: &Spec) -> bool {
    let asks = |spec: &Spec| {
        (spec.project.clone(), spec.class, spec.priority, spec.members, spec.devices, spec.cpus, spec.memory)
    };
    asks(a) == asks(b)
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
