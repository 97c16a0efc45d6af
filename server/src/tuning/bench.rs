//! The thread on which jobs train, and what becomes of them.
//!
//! It trains all jobs that can go on, until they have ended or the list of jobs has changed; then it begins
//! again with the new list. What has to outlive the server is in the store before anybody is told of it.

use std::collections::HashMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::jobs::{self, Job, Note, Status};
use super::{Ended, Task, Told, Tuner};
use crate::adapters::Adapters;
use crate::error::ApiError;
use crate::files;
use crate::store::Store;

/// Between two steps that are noted as events, so that a small model's thousand steps are not a thousand rows.
const NOTED_EVERY: Duration = Duration::from_secs(1);
/// A pause where the store cannot be read, such as on a full disk.
const PAUSE: Duration = Duration::from_secs(1);

/// What the thread and the routes share.
pub(crate) struct Bench {
    store: Arc<Store>,
    adapters: Arc<Adapters>,
    pub(super) tuner: Arc<dyn Tuner>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The list of jobs is not what the thread works on.
    has_changed: bool,
    is_ending: bool,
    /// What ends the jobs that train.
    stops: HashMap<String, Arc<AtomicBool>>,
}

impl State {
    fn stop_all(&mut self) {
        self.stops.values().for_each(|stop| stop.store(true, Ordering::Relaxed));
    }
}

impl Bench {
    /// Starts the thread, which takes up what an earlier server left.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub(crate) fn start(
        store: Arc<Store>,
        adapters: Arc<Adapters>,
        tuner: Arc<dyn Tuner>,
    ) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        let state = Mutex::new(State { has_changed: true, ..State::default() });
        let bench = Arc::new(Bench { store, adapters, tuner, state, changed: Condvar::new() });
        let own = Arc::clone(&bench);
        let thread = std::thread::Builder::new().name("tuning".into()).spawn(move || own.work())?;
        Ok((bench, thread))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The list of jobs has changed.
    pub(super) fn wake(&self) {
        let mut state = self.lock();
        state.has_changed = true;
        state.stop_all();
        self.changed.notify_all();
    }

    /// Has the thread end once what trains is saved.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.is_ending = true;
        state.stop_all();
        self.changed.notify_all();
    }

    fn is_ending(&self) -> bool {
        self.lock().is_ending
    }

    fn work(&self) {
        loop {
            {
                let mut state = self.lock();
                while !state.has_changed && !state.is_ending {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                if state.is_ending {
                    return;
                }
                state.has_changed = false;
            }
            match self.round() {
                // What has ended may have made room for what waits.
                Ok(true) => self.lock().has_changed = true,
                Ok(false) => {}
                Err(error) => {
                    eprintln!("warning: fine-tuning waits: {}", error.message());
                    std::thread::sleep(PAUSE);
                    self.lock().has_changed = true;
                }
            }
        }
    }

    /// Trains what can be trained; whether there was anything.
    fn round(&self) -> Result<bool, ApiError> {
        for job in self.store.with(|all| jobs::that_are(all, &[Status::Validating]))? {
            self.validate(&job)?;
        }
        let (mut company, mut lost) = (Vec::new(), Vec::new());
        self.store.with(|all| {
            for job in jobs::that_are(all, &[Status::Queued, Status::Running])? {
                match job.task(&self.store, all)? {
                    Some(task) => company.push((job, task)),
                    None => lost.push(job),
                }
            }
            Ok(())
        })?;
        for job in lost {
            self.fail(&job, "a file that it needs is not there any more")?;
        }
        if company.is_empty() {
            return Ok(false);
        }
        {
            let mut state = self.lock();
            state.stops =
                company.iter().map(|(job, task)| (job.id.clone(), Arc::clone(&task.stop))).collect();
            if state.has_changed || state.is_ending {
                state.stops.clear();
                return Ok(true);
            }
        }
        let ended = self.train(&company);
        self.lock().stops.clear();
        for ((job, task), ended) in company.iter().zip(ended) {
            match ended {
                Ended::Finished { tokens } => self.succeed(job, task, tokens)?,
                Ended::Failed(why) => self.fail(job, &named(task, &why))?,
                Ended::Interrupted => {}
            }
            self.show_checkpoints(job);
        }
        Ok(true)
    }

    /// Reads all input of a new job, and lets it wait for its turn.
    fn validate(&self, job: &Job) -> Result<(), ApiError> {
        let planned = match self.store.with(|all| job.task(&self.store, all))? {
            Some(task) => {
                let planned = caught(|| self.tuner.plan(&task)).unwrap_or_else(Err);
                planned.map_err(|why| named(&task, &why))
            }
            None => Err("a file that it needs is not there any more".to_owned()),
        };
        match planned {
            Err(why) => self.fail(job, &why),
            Ok(plan) => self.store.with(|all| {
                jobs::set_plan(all, &job.id, &plan)?;
                if jobs::set_status(all, &job.id, &[Status::Validating], Status::Queued)? {
                    let words =
                        format!("the files are valid: {} steps in {} epochs", plan.steps, plan.epochs);
                    jobs::note(all, &job.id, &Note::info(words))?;
                }
                Ok(())
            }),
        }
    }

    fn train(&self, company: &[(Job, Task)]) -> Vec<Ended> {
        let tasks: Vec<Task> = company.iter().map(|(_, task)| task.clone()).collect();
        let mut notes: Vec<Notes> = company.iter().map(|_| Notes::default()).collect();
        let mut tell = |place: usize, told: Told| {
            let job: &Job = &company[place].0;
            if let Told::Saved(_) = told {
                self.show_checkpoints(job);
            }
            // What cannot be noted now, such as on a full disk, is no reason to lose the run.
            let noted = self.store.with(|all| notes[place].take(all, job, &told));
            if let Err(error) = noted {
                eprintln!("warning: {}: {}", job.id, error.message());
            }
        };
        let ended = caught(|| self.tuner.train(&tasks, &mut tell));
        ended.unwrap_or_else(|why| company.iter().map(|_| Ended::Failed(why.clone())).collect())
    }

    fn succeed(&self, job: &Job, task: &Task, tokens: u64) -> Result<(), ApiError> {
        let table = self.tuner.metrics(task).map(|lines| table(&lines));
        let file = table
            .ok()
            .map(|table| files::leave(&self.store, &job.tenant, "step_metrics.csv", table.as_bytes()));
        let file = file.transpose()?;
        // Before anybody is told of it.
        self.show(job, &job.result(), &job.folder(&self.store));
        let ended = self.store.with(|all| {
            let ended = jobs::set_status(all, &job.id, &Status::UNFINISHED, Status::Succeeded)?;
            if ended {
                jobs::set_result(all, &job.id, tokens, file.as_deref())?;
                let words = format!("the job has succeeded; its model is {}", job.result());
                jobs::note(all, &job.id, &Note::info(words))?;
            }
            Ok(ended)
        })?;
        // One that was cancelled in its last step has a result and no model.
        if !ended {
            self.adapters.remove(&job.result(), &job.tenant);
        }
        Ok(())
    }

    fn fail(&self, job: &Job, why: &str) -> Result<(), ApiError> {
        self.store.with(|all| {
            if jobs::set_status(all, &job.id, &Status::UNFINISHED, Status::Failed)? {
                jobs::set_error(all, &job.id, why)?;
                jobs::note(all, &job.id, &Note::error(format!("the job has failed: {why}")))?;
            }
            Ok(())
        })
    }

    /// What an earlier server has trained is served again.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) fn show_all(&self) -> Result<(), ApiError> {
        for job in self.store.with(jobs::served)? {
            if job.has_model {
                self.show(&job, &job.result(), &job.folder(&self.store));
            }
            self.show_checkpoints(&job);
        }
        Ok(())
    }

    /// Has the checkpoints served that a job has, and none that it had.
    fn show_checkpoints(&self, job: &Job) {
        let there: HashMap<String, _> = checkpoints(&job.folder(&self.store))
            .into_iter()
            .map(|(step, path)| (job.checkpoint(step), path))
            .collect();
        let known = self.adapters.own(&job.tenant, &format!("{}:ckpt-step-", job.result()));
        for gone in known.iter().filter(|name| !there.contains_key(*name)) {
            self.adapters.remove(gone, &job.tenant);
        }
        for (name, path) in there.iter().filter(|(name, _)| !known.contains(name)) {
            self.show(job, name, path);
        }
    }

    /// Has a folder of a job served under a name.
    fn show(&self, job: &Job, name: &str, folder: &Path) {
        if let Err(why) = self.adapters.register(name, folder, &job.tenant) {
            eprintln!("warning: {}: {why}", job.id);
        }
    }

    /// Takes a job's model and its checkpoints away, and what it wrote.
    ///
    /// # Errors
    /// If the folder cannot be removed.
    pub(super) fn remove(&self, job: &Job) -> Result<(), ApiError> {
        self.store.with(|all| jobs::forget_model(all, &job.id))?;
        for name in self.adapters.own(&job.tenant, &job.result()) {
            self.adapters.remove(&name, &job.tenant);
        }
        match fs::remove_dir_all(job.folder(&self.store)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ApiError::storage(format!("the model's folder cannot be removed: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// A job is to stop now, whatever becomes of it.
    pub(super) fn stop(&self, id: &str) {
        let mut state = self.lock();
        match state.stops.get(id) {
            Some(stop) => stop.store(true, Ordering::Relaxed),
            // It may be in a list that was read and does not train yet: that list is read again.
            None => {
                state.has_changed = true;
                self.changed.notify_all();
            }
        }
    }

    pub(super) fn is_open(&self) -> bool {
        !self.is_ending()
    }
}

/// The same words with files as the client calls them: where they lie is nobody's business.
fn named(task: &Task, words: &str) -> String {
    let replace =
        |words: String, (path, name): &(PathBuf, String)| words.replace(&path.display().to_string(), name);
    task.names.iter().fold(words.to_owned(), replace)
}

/// Runs what must not end the thread, whatever goes wrong in it.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
        format!("a fault of this program: {message}")
    })
}

/// The checkpoints in a run's folder, by their steps.
pub(super) fn checkpoints(folder: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(folder.join("checkpoints")).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
            Some((step, entry.path()))
        })
        .collect();
    found.sort();
    found
}

/// What was noted of a job on this round.
#[derive(Default)]
struct Notes {
    steps: u64,
    /// When it began here, and after which step.
    begun: Option<(Instant, u64)>,
    last: Option<Instant>,
}

impl Notes {
    fn take(&mut self, all: &rusqlite::Transaction<'_>, job: &Job, told: &Told) -> rusqlite::Result<()> {
        match told {
            &Told::Started { step, steps } => {
                (self.steps, self.begun, self.last) = (steps, Some((Instant::now(), step)), None);
                jobs::go_back(all, &job.id, step)?;
                let from = [Status::Queued, Status::Running];
                let goes = jobs::set_status(all, &job.id, &from, Status::Running)?;
                if goes && job.status != Status::Running {
                    let words = match step {
                        0 => "training has begun".to_owned(),
                        step => format!("training goes on after step {step}"),
                    };
                    jobs::note(all, &job.id, &Note::info(words))?;
                }
                Ok(())
            }
            &Told::Step { step, loss, grad_norm, learning_rate } => {
                let is_due = self.last.is_none_or(|last| last.elapsed() >= NOTED_EVERY);
                if !is_due && step != self.steps {
                    return Ok(());
                }
                self.last = Some(Instant::now());
                if let Some((begun, first)) = self.begun
                    && step > first
                {
                    let each = begun.elapsed().as_secs_f64() / (step - first) as f64;
                    let left = each * self.steps.saturating_sub(step) as f64;
                    jobs::set_expected(all, &job.id, jobs::now() + left as i64)?;
                }
                let words = format!("Step {step}/{}: training loss={loss:.4}", self.steps);
                let data = json!({
                    "step": step, "total_steps": self.steps, "train_loss": loss, "grad_norm": grad_norm,
                    "learning_rate": learning_rate,
                });
                jobs::note(all, &job.id, &Note::metrics(words, step, data))
            }
            &Told::Evaluated { step, loss } => {
                let words = format!("Step {step}/{}: validation loss={loss:.4}", self.steps);
                let data = json!({"step": step, "total_steps": self.steps, "valid_loss": loss});
                jobs::note(all, &job.id, &Note::metrics(words, step, data))
            }
            Told::Saved(_) => Ok(()),
            Told::Warning(words) => jobs::note(all, &job.id, &Note::warning(words.clone())),
        }
    }
}

/// The result file: a line for each step, as OpenAI's has it.
fn table(lines: &[Value]) -> String {
    let mut table = "step,train_loss,learning_rate,grad_norm,valid_loss\n".to_owned();
    let mut held_out: HashMap<u64, &Value> = HashMap::new();
    for line in lines {
        if let (Some(step), Some(loss)) = (line["step"].as_u64(), line.get("eval_loss")) {
            held_out.insert(step, loss);
        }
    }
    for line in lines.iter().filter(|line| line.get("loss").is_some()) {
        let step = line["step"].as_u64().unwrap_or_default();
        let valid = held_out.get(&step).map(|loss| loss.to_string()).unwrap_or_default();
        let (loss, rate, norm) = (&line["loss"], &line["learning_rate"], &line["grad_norm"]);
        table.push_str(&format!("{step},{loss},{rate},{norm},{valid}\n"));
    }
    table
}
