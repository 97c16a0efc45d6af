//! The thread on which jobs train, and what becomes of them.
//!
//! It trains all jobs that can go on, until they have ended or the list of jobs has changed; then it begins
//! again with the new list. What has to outlive the server is in the store before anybody is told of it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{MAIN_SEPARATOR, Path, PathBuf};
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

/// Between two steps that are noted as events, so that a small model's thousand steps are not a thousand
/// rows.
const NOTED_EVERY: Duration = Duration::from_secs(1);
/// A pause where the store cannot be read, such as on a full disk.
const PAUSE: Duration = Duration::from_secs(1);
/// Why a job fails whose files were lost.
const LOST: &str = "a file that it needs is not there any more";

/// What the thread and the routes share.
pub(crate) struct Bench {
    store: Arc<Store>,
    adapters: Arc<Adapters>,
    pub(super) tuner: Arc<dyn Tuner>,
    /// How long jobs train at least before they begin again with a new list.
    least: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The list of jobs is not what the thread works on.
    has_changed: bool,
    /// A job found no room on the disk.
    is_full: bool,
    is_ending: bool,
    /// What trains, or is about to.
    company: Option<Company>,
}

/// The jobs that train.
struct Company {
    /// When the first of them began, once its input had been read.
    begun: Option<Instant>,
    /// What ends each that has not ended.
    stops: HashMap<String, Arc<AtomicBool>>,
}

impl State {
    fn stop_all(&self) {
        let stops = self.company.iter().flat_map(|company| company.stops.values());
        stops.for_each(|stop| stop.store(true, Ordering::Relaxed));
    }

    /// Ends what trains if there is another list, and this one has had its time: all who train read their
    /// input again, and whoever makes jobs in a loop must not keep the others at that.
    fn stop_if_due(&self, least: Duration) {
        let begun = self.company.as_ref().and_then(|company| company.begun);
        if self.has_changed && begun.is_some_and(|begun| begun.elapsed() >= least) {
            self.stop_all();
        }
    }
}

impl Bench {
    /// Starts the thread, which takes up what an earlier server left. `least`: how long jobs train at least
    /// before others join them.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub(crate) fn start(
        store: Arc<Store>,
        adapters: Arc<Adapters>,
        tuner: Arc<dyn Tuner>,
        least: Duration,
    ) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        let state = Mutex::new(State { has_changed: true, ..State::default() });
        let bench = Arc::new(Bench { store, adapters, tuner, least, state, changed: Condvar::new() });
        let own = Arc::clone(&bench);
        let thread = std::thread::Builder::new().name("tuning".into()).spawn(move || own.work())?;
        Ok((bench, thread))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The list of jobs has changed: there is one that could train and does not.
    pub(super) fn wake(&self) {
        let mut state = self.lock();
        state.has_changed = true;
        state.stop_if_due(self.least);
        self.changed.notify_all();
    }

    /// Has the thread end once what trains is saved.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.is_ending = true;
        state.stop_all();
        self.changed.notify_all();
    }

    pub(super) fn is_ending(&self) -> bool {
        self.lock().is_ending
    }

    fn work(&self) {
        let mut suspects = HashSet::new();
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
            match self.round(&mut suspects) {
                // What has ended may have made room for what waits.
                Ok(true) => {
                    self.lock().has_changed = true;
                    self.wait_for_room();
                }
                Ok(false) => {}
                Err(error) => {
                    eprintln!("warning: fine-tuning waits: {}", error.message());
                    std::thread::sleep(PAUSE);
                    self.lock().has_changed = true;
                }
            }
        }
    }

    /// Where jobs found no room on the disk: lets some time go by, since nobody tells when there is.
    fn wait_for_room(&self) {
        let mut state = self.lock();
        if std::mem::take(&mut state.is_full) {
            eprintln!("warning: fine-tuning waits: the disk is full");
            let until = Instant::now() + self.least.max(PAUSE);
            while !state.is_ending && Instant::now() < until {
                let left = until.saturating_duration_since(Instant::now());
                state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Trains what can be trained; whether there was anything. `suspects`: jobs of which one may have a fault
    /// that ends whatever it is part of. Each of them has a round of its own.
    ///
    /// # Errors
    /// The first thing that could not be read or noted, after all else was done.
    fn round(&self, suspects: &mut HashSet<String>) -> Result<bool, ApiError> {
        let mut noted = Ok(());
        let begun = Instant::now();
        let mut new = self.store.with(|all| jobs::that_are(all, &[Status::Validating]))?.into_iter();
        for job in new.by_ref() {
            noted = noted.and(self.validate(&job));
            // To read new jobs' files takes time from those that train, and must not take all of it.
            if begun.elapsed() >= self.least {
                break;
            }
        }
        if new.len() > 0 {
            self.lock().has_changed = true;
        }
        let standing = [Status::Queued, Status::Running];
        let listed = self.store.with(|all| {
            let jobs = jobs::that_are(all, &standing)?.into_iter();
            let tasks = jobs.map(|job| Ok((job.task(&self.store, all)?, job)));
            tasks.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut company = Vec::new();
        for (task, job) in listed {
            match task {
                Some(task) => company.push((job, task)),
                None => noted = noted.and(self.fail(&job, LOST)),
            }
        }
        suspects.retain(|id| company.iter().any(|(job, _)| job.id == *id));
        if let Some(suspect) = company.iter().position(|(job, _)| suspects.contains(&job.id)) {
            company = vec![company.swap_remove(suspect)];
        }
        if company.is_empty() {
            return noted.map(|()| false);
        }
        {
            let mut state = self.lock();
            if state.is_ending {
                return noted.map(|()| true);
            }
            let stops = company.iter().map(|(job, task)| (job.id.clone(), Arc::clone(&task.stop)));
            state.company = Some(Company { begun: None, stops: stops.collect() });
        }
        // One that was cancelled since the list was read did not find what ends it.
        let trained = self.store.with(|all| jobs::that_are(all, &standing)).and_then(|listed| {
            let is_listed = |job: &Job| listed.iter().any(|other| other.id == job.id);
            let gone = company.iter().filter(|(job, _)| !is_listed(job));
            gone.for_each(|(_, task)| task.stop.store(true, Ordering::Relaxed));
            self.train(&company, suspects)
        });
        self.lock().company = None;
        noted.and(trained).map(|()| true)
    }

    /// Reads all input of a new job, and lets it wait for its turn.
    fn validate(&self, job: &Job) -> Result<(), ApiError> {
        let planned = match self.store.with(|all| job.task(&self.store, all))? {
            Some(task) => {
                let planned = caught(|| self.tuner.plan(&task)).unwrap_or_else(Err);
                planned.map_err(|why| named(&task, &why))
            }
            None => Err(LOST.to_owned()),
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

    /// Trains jobs until each has ended or was asked to stop.
    ///
    /// # Errors
    /// The first end that could not be noted: that job is trained again, which finds that it has ended.
    fn train(&self, company: &[(Job, Task)], suspects: &mut HashSet<String>) -> Result<(), ApiError> {
        let tasks: Vec<Task> = company.iter().map(|(_, task)| task.clone()).collect();
        let mut all: Vec<Progress> = company.iter().map(|_| Progress::default()).collect();
        let mut refused = None;
        let mut tell = |place: usize, told: Told| {
            let (job, task) = &company[place];
            match told {
                Told::Ended(ended) => {
                    refused = refused.take().or(self.note_end(job, task, ended).err());
                    all[place].has_ended = true;
                    let waits = |other: &Progress| other.begun.is_none() && !other.has_ended;
                    if all[place].begun.is_some() && all.iter().any(waits) {
                        self.wake();
                    }
                }
                Told::Saved(_) => self.show_checkpoints(job),
                told => {
                    // What cannot be noted now, such as on a full disk, is no reason to lose the run.
                    if let Err(error) = all[place].note(&self.store, job, &told) {
                        eprintln!("warning: {}: {}", job.id, error.message());
                    }
                }
            }
            let mut state = self.lock();
            if let Some(company) = &mut state.company
                && all[place].begun.is_some()
            {
                company.begun.get_or_insert_with(Instant::now);
            }
            state.stop_if_due(self.least);
        };
        let trained = caught(|| self.tuner.train(&tasks, &mut tell)).and_then(|trained| trained);
        let left = company.iter().zip(&all).filter(|(_, progress)| !progress.has_ended);
        match (trained, company) {
            (Ok(()), _) => suspects.retain(|id| company.iter().all(|(job, _)| job.id != *id)),
            (Err(why), [(job, task)]) => refused = refused.or(self.fail(job, &named(task, &why)).err()),
            (Err(why), _) => {
                eprintln!("warning: jobs that trained together: {why}; each goes on alone");
                suspects.extend(left.map(|((job, _), _)| job.id.clone()));
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Notes that a job has ended.
    fn note_end(&self, job: &Job, task: &Task, ended: Ended) -> Result<(), ApiError> {
        // Nothing is written into its folder any more.
        if let Some(company) = &mut self.lock().company {
            company.stops.remove(&job.id);
        }
        let noted = match ended {
            Ended::Finished { tokens } => self.succeed(job, task, tokens),
            Ended::Failed(why) => self.fail(job, &named(task, &why)),
            Ended::Interrupted => Ok(()),
            Ended::Full => {
                self.lock().is_full = true;
                Ok(())
            }
        };
        self.show_checkpoints(job);
        noted
    }

    fn succeed(&self, job: &Job, task: &Task, tokens: u64) -> Result<(), ApiError> {
        let table = self.tuner.metrics(task).map(|lines| table(&lines));
        // A job that has its model has succeeded, also if nobody can be told how.
        let file = table.and_then(|table| {
            files::leave(&self.store, "step_metrics.csv", table.as_bytes())
                .map_err(|error| error.message().to_owned())
        });
        // Before anybody is told of it.
        self.show(job, &job.result(), &job.folder(&self.store));
        let ended = self.store.with(|all| {
            if !jobs::set_status(all, &job.id, &Status::UNFINISHED, Status::Succeeded)? {
                return Ok(false);
            }
            let id = match &file {
                Ok(file) => Some(file.enter(all, &job.tenant, files::OF_RESULTS)?.id),
                Err(why) => {
                    let words = format!("the file of what its steps came to cannot be kept: {why}");
                    jobs::note(all, &job.id, &Note::warning(words))?;
                    None
                }
            };
            jobs::set_result(all, &job.id, tokens, id.as_deref())?;
            let words = format!("the job has succeeded; its model is {}", job.result());
            jobs::note(all, &job.id, &Note::info(words))?;
            Ok(true)
        });
        match (&ended, file) {
            (Ok(true), Ok(file)) => file.stays(),
            (Ok(true), Err(_)) => {}
            // One that was cancelled in its last step has a result and no model.
            _ => drop(self.adapters.remove(&job.result(), &job.tenant)),
        }
        ended.map(drop)
    }

    fn fail(&self, job: &Job, why: &str) -> Result<(), ApiError> {
        self.store.freeing(|all| {
            if jobs::set_status(all, &job.id, &Status::UNFINISHED, Status::Failed)? {
                jobs::set_error(all, &job.id, why)?;
                jobs::note(all, &job.id, &Note::error(format!("the job has failed: {why}")))?;
            }
            Ok(())
        })
    }

    /// What an earlier server has trained is served again, and what it was about to remove is gone.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub(crate) fn show_all(&self) -> Result<(), ApiError> {
        for entry in fs::read_dir(jobs::folder(&self.store)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if let Some(id) = name.to_str().and_then(|name| name.strip_prefix(jobs::HIDDEN)) {
                self.store.freeing(|all| jobs::forget_model(all, id))?;
                discard(&entry.path());
            }
        }
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
    /// If there is nothing of it, it is still being saved, its folder cannot be removed, or the disk is full;
    /// then all of it is there as before.
    pub(super) fn remove(&self, job: &Job) -> Result<(), ApiError> {
        let is_written = |company: &Company| company.stops.contains_key(&job.id);
        if self.lock().company.as_ref().is_some_and(is_written) {
            return Err(ApiError::conflicting("the job is about to stop; try again in a moment"));
        }
        // Renamed first: what a server that is killed leaves is all of it, or nothing that is served.
        let (folder, hidden) = (job.folder(&self.store), job.hidden(&self.store));
        match fs::rename(&folder, &hidden) {
            Err(error) if error.kind() == ErrorKind::NotFound && !job.has_model => {
                return Err(ApiError::no_model(&job.result()));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                let message = format!("the model's folder cannot be removed: {error}");
                return Err(ApiError::storage(message));
            }
            _ => {}
        }
        if let Err(error) = self.store.freeing(|all| jobs::forget_model(all, &job.id)) {
            let _ = fs::rename(&hidden, &folder);
            return Err(error);
        }
        for name in self.adapters.own(&job.tenant, &job.result()) {
            self.adapters.remove(&name, &job.tenant);
        }
        discard(&hidden);
        self.store.has_room();
        Ok(())
    }

    /// A job is to stop now, whatever becomes of it; the others go on.
    pub(super) fn stop(&self, id: &str) {
        let state = self.lock();
        let stop = state.company.as_ref().and_then(|company| company.stops.get(id));
        if let Some(stop) = stop {
            stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Deletes what has a hidden name, and so is gone for everybody. What is left of it is tried again at the
/// next start.
fn discard(hidden: &Path) {
    match fs::remove_dir_all(hidden) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            eprintln!("warning: {}: {error}", hidden.display());
        }
        _ => {}
    }
}

/// The same words with files as the client calls them: where they lie is nobody's business.
fn named(task: &Task, words: &str) -> String {
    let replace =
        |words: String, (path, name): &(PathBuf, String)| words.replace(&path.display().to_string(), name);
    let words = task.names.iter().fold(words.to_owned(), replace);
    match task.folder.parent() {
        Some(folder) => words.replace(&format!("{}{MAIN_SEPARATOR}", folder.display()), ""),
        None => words,
    }
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

/// How far a job has come on this round.
#[derive(Debug, Default)]
struct Progress {
    steps: u64,
    /// When it began here, and after which step.
    begun: Option<(Instant, u64)>,
    /// When a step was noted last.
    noted: Option<Instant>,
    has_ended: bool,
}

impl Progress {
    /// Notes what was told of a job, if it is worth it.
    ///
    /// # Errors
    /// If the disk is full; then the next step is noted, however soon it comes.
    fn note(&mut self, store: &Store, job: &Job, told: &Told) -> Result<(), ApiError> {
        if let &Told::Started { step, steps } = told {
            (self.steps, self.begun, self.noted) = (steps, Some((Instant::now(), step)), None);
        }
        let is_step = matches!(told, Told::Step { .. });
        if is_step && !self.is_due(told) {
            return Ok(());
        }
        store.with(|all| self.write(all, job, told))?;
        if is_step {
            self.noted = Some(Instant::now());
        }
        Ok(())
    }

    /// Whether a step is one to note.
    fn is_due(&self, told: &Told) -> bool {
        let is_last = matches!(told, Told::Step { step, .. } if *step == self.steps);
        is_last || self.noted.is_none_or(|noted| noted.elapsed() >= NOTED_EVERY)
    }

    fn write(&self, all: &rusqlite::Transaction<'_>, job: &Job, told: &Told) -> rusqlite::Result<()> {
        match told {
            &Told::Started { step, .. } => {
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
            Told::Warning(words) => jobs::note(all, &job.id, &Note::warning(words.clone())),
            // These change more than what is noted here.
            Told::Saved(_) | Told::Ended(_) => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_could_not_be_noted_does_not_keep_the_next_from_being_noted() {
        let (_folder, store, job) = jobs::tests::with_job();
        let mut progress = Progress::default();
        progress.note(&store, &job, &Told::Started { step: 0, steps: 9000 }).unwrap();
        let allow = |pages: u32| {
            let set = format!("PRAGMA max_page_count = {pages}");
            store.with(|all| all.query_row(&set, [], |row| row.get::<_, i64>(0))).unwrap();
        };
        // As on a disk that is getting full.
        allow(1);
        let mut evaluated = (1..1000).map(|step| Told::Evaluated { step, loss: 1.0 });
        evaluated.find(|told| progress.note(&store, &job, told).is_err()).expect("there is an end of pages");
        let step = |step| Told::Step { step, loss: 2.0, grad_norm: 1.0, learning_rate: 0.1 };
        assert!(progress.note(&store, &job, &step(1000)).is_err());
        allow(100_000);
        // At once, and those behind it only after a while.
        for number in 1001..1010 {
            progress.note(&store, &job, &step(number)).unwrap();
        }
        let noted = "SELECT count(*) FROM job_events WHERE data LIKE '%train_loss%'";
        let noted: i64 = store.with(|all| all.query_row(noted, [], |row| row.get(0))).unwrap();
        assert_eq!(noted, 1);
    }
}
