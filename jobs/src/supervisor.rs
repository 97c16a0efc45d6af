//! Drives a pool: takes what people ask and what processes do, lets the scheduler decide, writes it down, and
//! only then does it.
//!
//! One thread does all of that. Whoever kills this process at any instant loses nothing: what was written
//! down is computed again, and what was to be done is done again, which executors take well.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::Millis;
use crate::access::{Deed, Who};
use crate::executor::{Attempt, Executor, Status};
use crate::job::{Exit, Job, JobId, Phase, Spec, StopReason};
use crate::nodes::Node;
use crate::policy::Policy;
use crate::pool::{Action, Event, Pool, Refused};
use crate::simulate::{Expected, Limits, forecast};
use crate::store::{Reader, Step, Store, StoreError};
use crate::why::Why;

/// Requests that may wait; more are sent away.
const WAITING: usize = 4096;
/// Requests that are taken together.
const TOGETHER: usize = 512;
/// How often processes are looked at.
const PULSE: Duration = Duration::from_millis(50);
/// A process that has not begun so long after it was started is started again.
const BEGINS_WITHIN: Duration = Duration::from_secs(3);
/// How often progress is asked for and samples are taken.
const LOOK: Duration = Duration::from_secs(5);

/// How far a job's work has come, as its own files tell.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps that were computed.
    pub done: u64,
    /// Steps that are saved.
    pub saved: u64,
    /// Steps in all.
    pub total: Option<u64>,
}

/// Whoever knows what jobs compute.
pub trait Insight: Send {
    /// How far a job has come; nothing if its files do not tell.
    fn progress(&self, spec: &Spec) -> Option<Progress>;
}

/// Nobody knows what jobs compute.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoInsight;

impl Insight for NoInsight {
    fn progress(&self, _: &Spec) -> Option<Progress> {
        None
    }
}

/// Why somebody does not get what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// It is not theirs to decide.
    #[error("{0}")]
    Forbidden(String),
    /// It makes no sense.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Too many ask at once.
    #[error("the pool has more requests than it can take now; try again in a moment")]
    Busy,
    /// It cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pool ends.
    #[error("the pool is shutting down")]
    Ended,
}

enum Ask {
    Submit { specs: Vec<Spec>, group: Option<String> },
    Deed { id: JobId, deed: Deed },
    Apply(Policy),
    User { name: String, hash: Option<Vec<u8>> },
    Learn { what: String, rate: f64 },
}

enum Answer {
    Done,
    Jobs(Vec<JobId>),
}

struct Request {
    who: Who,
    ask: Ask,
    reply: SyncSender<Result<Answer, Denied>>,
}

enum Message {
    Request(Box<Request>),
    Forecast(BTreeMap<JobId, Expected>),
    End,
}

/// A pool that runs, for whoever asks it: over HTTP, from a terminal, in tests.
#[derive(Debug, Clone)]
pub struct Handle {
    messages: SyncSender<Message>,
    pool: Arc<RwLock<Pool>>,
    reader: Arc<Mutex<Reader>>,
    expected: Expectations,
    logs: Arc<PathBuf>,
}

/// When jobs are expected to start and end, as was computed last.
type Expectations = Arc<RwLock<BTreeMap<JobId, Expected>>>;

/// The thread that drives a pool.
#[derive(Debug)]
pub struct Supervisor {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// What a pool needs to run.
pub struct Setup {
    /// Where it remembers.
    pub store: Store,
    /// The rules, if they are to be others than those it remembers.
    pub policy: Option<Policy>,
    /// The machines that are there.
    pub nodes: Vec<Node>,
    /// Who starts processes.
    pub executor: Box<dyn Executor>,
    /// Who knows what they compute.
    pub insight: Box<dyn Insight>,
}

impl Supervisor {
    /// Goes on with what the store remembers: whatever ran and still runs is found again, whatever has ended
    /// meanwhile is noticed.
    ///
    /// # Errors
    /// If the store is damaged, or the policy or a machine is refused.
    pub fn start(setup: Setup) -> Result<Supervisor, Denied> {
        let Setup { mut store, policy, nodes, executor, insight } = setup;
        let pool = store.load(policy.as_ref(), now())?;
        let (messages, inbox) = sync_channel(WAITING);
        let logs = Arc::new(executor.log(JobId(0)));
        let reader = Arc::new(Mutex::new(store.reader()?));
        let next_job = store.next_job()?;
        let pool = Arc::new(RwLock::new(pool));
        let expected = Expectations::default();
        let mut keeper = Keeper {
            forecaster: forecaster(messages.clone(), Arc::clone(&expected)).map_err(|_| Denied::Ended)?,
            store,
            executor,
            insight,
            pool: Arc::clone(&pool),
            next_job,
            begun: BTreeMap::new(),
            estimates: BTreeMap::new(),
            looked: None,
            killed: BTreeMap::new(),
            expected: BTreeSet::new(),
        };
        keeper.begin(policy, nodes)?;
        let thread = thread::Builder::new().name("pool".into());
        let thread = thread.spawn(move || keeper.run(&inbox)).map_err(|_| Denied::Ended)?;
        let handle = Handle { messages, pool, reader, expected, logs };
        Ok(Supervisor { handle, thread: Some(thread) })
    }

    /// For whoever asks the pool.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends the thread; processes go on.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        let _ = self.handle.messages.send(Message::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Handle {
    /// The pool as it stands. Whoever holds it keeps the pool from deciding.
    pub fn pool(&self) -> RwLockReadGuard<'_, Pool> {
        self.pool.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what the pool remembers.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn read<T>(&self, read: impl FnOnce(&Reader) -> Result<T, StoreError>) -> Result<T, StoreError> {
        read(&self.reader.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why a job is where it is, and when that is expected to change; nothing if it is not in the pool.
    #[must_use]
    pub fn why(&self, id: JobId) -> Option<Why> {
        let why = self.pool().why(id)?;
        let expected = self.expected(id).and_then(|expected| match why.rule.as_str() {
            "running" => expected.end,
            _ => Some(expected.start),
        });
        Some(Why { expected, ..why })
    }

    /// When a job is expected to start and end, if nobody submits, cancels or changes anything.
    #[must_use]
    pub fn expected(&self, id: JobId) -> Option<Expected> {
        self.expected.read().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    /// The file of a job's messages.
    #[must_use]
    pub fn log(&self, id: JobId) -> PathBuf {
        // The same file for every job, but for the number in it.
        let of_zero = self.logs.as_path();
        let (file, folder) = (of_zero.file_name(), of_zero.parent().and_then(|folder| folder.parent()));
        folder.unwrap_or(of_zero).join(id.to_string()).join(file.unwrap_or_default())
    }

    /// Submits jobs: all of them, or none. `group` names those that belong together.
    ///
    /// # Errors
    /// If one of them is not allowed or can never run.
    pub fn submit(&self, who: &Who, specs: Vec<Spec>, group: Option<String>) -> Result<Vec<JobId>, Denied> {
        match self.ask(who, Ask::Submit { specs, group })? {
            Answer::Jobs(ids) => Ok(ids),
            Answer::Done => Ok(Vec::new()),
        }
    }

    /// Does something with a job.
    ///
    /// # Errors
    /// If it is not theirs to decide, or the job is not in the pool.
    pub fn act(&self, who: &Who, id: JobId, deed: Deed) -> Result<(), Denied> {
        self.ask(who, Ask::Deed { id, deed }).map(drop)
    }

    /// Changes the rules.
    ///
    /// # Errors
    /// If it is not theirs to decide, or the policy is wrong or leaves out a project with jobs.
    pub fn apply(&self, who: &Who, policy: Policy) -> Result<(), Denied> {
        self.ask(who, Ask::Apply(policy)).map(drop)
    }

    /// Adds a user by the hash of its token, or takes the token back.
    ///
    /// # Errors
    /// If it is not theirs to decide.
    pub fn set_user(&self, who: &Who, name: &str, hash: Option<Vec<u8>>) -> Result<(), Denied> {
        self.ask(who, Ask::User { name: name.to_owned(), hash }).map(drop)
    }

    /// Remembers how fast something was measured to be.
    ///
    /// # Errors
    /// If it cannot be kept.
    pub fn learn(&self, who: &Who, what: &str, rate: f64) -> Result<(), Denied> {
        self.ask(who, Ask::Learn { what: what.to_owned(), rate }).map(drop)
    }

    fn ask(&self, who: &Who, ask: Ask) -> Result<Answer, Denied> {
        let (reply, answer) = sync_channel(1);
        let request = Box::new(Request { who: who.clone(), ask, reply });
        match self.messages.try_send(Message::Request(request)) {
            Ok(()) => answer.recv().unwrap_or(Err(Denied::Ended)),
            Err(TrySendError::Full(_)) => Err(Denied::Busy),
            Err(TrySendError::Disconnected(_)) => Err(Denied::Ended),
        }
    }
}

/// What is gathered for one decision.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    actions: Vec<Action>,
    deeds: Vec<(String, String)>,
    groups: Vec<(JobId, String)>,
    lost: Vec<(JobId, Option<u64>)>,
    replies: Vec<(SyncSender<Result<Answer, Denied>>, Answer)>,
}

/// Computes forecasts aside, since they are many decisions, and tells them. It ends with the sender of pools.
fn forecaster(messages: SyncSender<Message>, expected: Expectations) -> io::Result<SyncSender<Pool>> {
    let (pools, inbox) = sync_channel::<Pool>(1);
    let work = move || {
        for pool in inbox {
            let forecast = forecast(&pool, now(), &Limits::default());
            *expected.write().unwrap_or_else(PoisonError::into_inner) = forecast.clone();
            // The pool may be ending, and wait for nobody.
            let _ = messages.try_send(Message::Forecast(forecast));
        }
    };
    thread::Builder::new().name("forecast".into()).spawn(work)?;
    Ok(pools)
}

struct Keeper {
    forecaster: SyncSender<Pool>,
    store: Store,
    executor: Box<dyn Executor>,
    insight: Box<dyn Insight>,
    pool: Arc<RwLock<Pool>>,
    next_job: JobId,
    /// When a start was asked for that is not seen to run yet.
    begun: BTreeMap<Attempt, Instant>,
    /// When a running job was last asked how far it is, and how far it was at its start.
    estimates: BTreeMap<JobId, (u32, u64)>,
    looked: Option<Instant>,
    /// When a start was last told to end at once.
    killed: BTreeMap<Attempt, Instant>,
    /// Jobs of which it is noted when they were first expected to start and end.
    expected: BTreeSet<JobId>,
}

impl Keeper {
    /// What has changed while the pool was away.
    fn begin(&mut self, policy: Option<Policy>, nodes: Vec<Node>) -> Result<(), Denied> {
        let mut batch = Batch::default();
        if let Some(policy) = policy
            && self.peek(|pool| *pool.policy() != policy)
        {
            self.accept(Event::Policy { policy }, &mut batch)?;
        }
        self.set_nodes(nodes, &mut batch)?;
        self.decide(batch);
        Ok(())
    }

    /// The machines that are there; others are gone.
    fn set_nodes(&mut self, nodes: Vec<Node>, batch: &mut Batch) -> Result<(), Denied> {
        let known: Vec<String> = self
            .peek(|pool| pool.nodes().iter().filter(|node| node.up).map(|node| node.name.clone()).collect());
        for name in known.into_iter().filter(|name| nodes.iter().all(|node| node.name != *name)) {
            self.accept(Event::NodeDown { name }, batch)?;
        }
        for node in nodes {
            if self.peek(|pool| !pool.nodes().contains(&node)) {
                self.accept(Event::NodeUp { node }, batch)?;
            }
        }
        Ok(())
    }

    fn peek<T>(&self, look: impl FnOnce(&Pool) -> T) -> T {
        look(&self.pool.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn run(&mut self, inbox: &Receiver<Message>) {
        loop {
            let mut batch = Batch::default();
            let mut ends = false;
            let mut message = match inbox.recv_timeout(PULSE) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            while let Some(told) = message {
                match told {
                    Message::Request(request) => self.take(*request, &mut batch),
                    Message::Forecast(forecast) => self.note_forecast(&forecast),
                    Message::End => {
                        ends = true;
                        break;
                    }
                }
                message = if batch.events.len() < TOGETHER { inbox.try_recv().ok() } else { None };
            }
            self.look_at_processes(&mut batch);
            let looks = self.looked.is_none_or(|at| at.elapsed() >= LOOK);
            if looks {
                self.looked = Some(Instant::now());
                self.look_at_progress(&mut batch);
            }
            let wakes = self.peek(Pool::wakes_at).is_some_and(|at| at <= now());
            if !batch.events.is_empty() || !batch.replies.is_empty() || wakes {
                self.decide(batch);
            }
            if looks {
                self.sample();
                // One that is still being computed is enough.
                let _ = self.forecaster.try_send(self.peek(Clone::clone));
            }
            if ends {
                let pool = self.pool.read().unwrap_or_else(PoisonError::into_inner);
                let _ = self.store.snapshot(&pool);
                return;
            }
        }
    }

    /// Does what somebody asks, or says why not.
    fn take(&mut self, request: Request, batch: &mut Batch) {
        let Request { who, ask, reply } = request;
        match self.answer(&who, ask, batch) {
            Ok(answer) => batch.replies.push((reply, answer)),
            Err(denied) => drop(reply.send(Err(denied))),
        }
    }

    fn answer(&mut self, who: &Who, ask: Ask, batch: &mut Batch) -> Result<Answer, Denied> {
        match ask {
            Ask::Submit { specs, group } => self.submit(who, specs, group, batch),
            Ask::Deed { id, deed } => {
                let verdict = self.peek(|pool| match pool.jobs().get(&id) {
                    // Who may not see a job does not learn whether it is there.
                    Some(job) if who.belongs_to(&job.spec.project, pool.policy()) => {
                        who.may(deed, job, pool.policy()).map_err(Denied::Forbidden)
                    }
                    _ => Err(Denied::Refused(Refused::NoJob(id))),
                });
                verdict?;
                let event = match deed {
                    Deed::Cancel => Event::Cancelled { id },
                    Deed::Hold => Event::Held { id },
                    Deed::Release => Event::Released { id },
                    Deed::Prioritize(priority) => Event::Prioritized { id, priority },
                };
                self.accept(event, batch)?;
                let to = if let Deed::Prioritize(n) = deed { format!(" to {n}") } else { String::new() };
                batch.deeds.push((who.name.clone(), format!("{} job {id}{to}", deed.word())));
                Ok(Answer::Done)
            }
            Ask::Apply(policy) => {
                self.require_admin(who, "change the policy")?;
                self.accept(Event::Policy { policy }, batch)?;
                batch.deeds.push((who.name.clone(), "apply a policy".into()));
                Ok(Answer::Done)
            }
            Ask::User { name, hash } => {
                self.require_admin(who, "add and remove users")?;
                if !crate::policy::is_name(&name) {
                    return Err(Denied::Forbidden(format!(
                        "{name:?} is no name: 1 to 63 letters, digits, `-`, `_` and `.`"
                    )));
                }
                match hash {
                    Some(hash) => self.store.add_user(&name, &hash, now())?,
                    None if self.store.revoke_user(&name, now())? => {}
                    None => return Err(Denied::Forbidden(format!("there is no user {name} with a token"))),
                }
                batch.deeds.push((who.name.clone(), format!("set the token of {name}")));
                Ok(Answer::Done)
            }
            Ask::Learn { what, rate } => {
                self.store.learn(&what, rate, now())?;
                Ok(Answer::Done)
            }
        }
    }

    fn require_admin(&self, who: &Who, what: &str) -> Result<(), Denied> {
        match self.peek(|pool| who.is_admin(pool.policy())) {
            true => Ok(()),
            false => Err(Denied::Forbidden(format!("only admins may {what}"))),
        }
    }

    fn submit(
        &mut self,
        who: &Who,
        mut specs: Vec<Spec>,
        group: Option<String>,
        batch: &mut Batch,
    ) -> Result<Answer, Denied> {
        for spec in &mut specs {
            who.name.clone_into(&mut spec.user);
            self.peek(|pool| who.may_submit(spec, pool.policy())).map_err(Denied::Forbidden)?;
        }
        // All or none: what one of them would be refused for, is known before the first is taken.
        let mut copy = (specs.len() > 1).then(|| self.peek(Clone::clone));
        if let Some(copy) = &mut copy {
            for (n, spec) in specs.iter().enumerate() {
                let id = JobId(self.next_job.0 + n as u64);
                copy.accept(Event::Submitted { id, spec: spec.clone() }, now())?;
            }
        }
        let mut ids = Vec::with_capacity(specs.len());
        for spec in specs {
            let id = self.next_job;
            let deed = format!("submit job {id} to {}", spec.project);
            self.accept(Event::Submitted { id, spec }, batch)?;
            self.next_job = JobId(id.0 + 1);
            batch.deeds.push((who.name.clone(), deed));
            batch.groups.extend(group.clone().map(|group| (id, group)));
            ids.push(id);
        }
        Ok(Answer::Jobs(ids))
    }

    fn accept(&mut self, event: Event, batch: &mut Batch) -> Result<(), Refused> {
        let mut pool = self.pool.write().unwrap_or_else(PoisonError::into_inner);
        batch.actions.extend(pool.accept(event.clone(), now())?);
        batch.events.push(event);
        Ok(())
    }

    /// Lets the scheduler decide, writes it down, answers, and does it.
    fn decide(&mut self, mut batch: Batch) {
        let written = {
            let mut pool = self.pool.write().unwrap_or_else(PoisonError::into_inner);
            batch.actions.extend(pool.decide(now()));
            let at = pool.at();
            let step = Step {
                at,
                events: &batch.events,
                actions: &batch.actions,
                deeds: &batch.deeds,
                groups: &batch.groups,
                lost: &batch.lost,
            };
            self.store.write(&step, &pool)
        };
        if let Err(error) = written {
            self.go_back(&error.to_string(), batch);
            return;
        }
        for (reply, answer) in batch.replies {
            let _ = reply.send(Ok(answer));
        }
        for action in batch.actions {
            if let Action::Start { id, attempt, placement } = action {
                self.start(Attempt { job: id, number: attempt }, &placement);
            } else if let Action::Stop { id, attempt, .. } = action {
                let _ = self.executor.stop(Attempt { job: id, number: attempt });
            }
        }
    }

    /// What could not be written down has not happened: the pool is again what was written.
    fn go_back(&mut self, why: &str, batch: Batch) {
        eprintln!("pool: {why}; nothing of the last requests was done");
        if let Ok(kept) = self.store.load(None, now()) {
            *self.pool.write().unwrap_or_else(PoisonError::into_inner) = kept;
        }
        if let Ok(next) = self.store.next_job() {
            self.next_job = next;
        }
        for (reply, _) in batch.replies {
            let _ = reply.send(Err(Denied::Store(StoreError::Damaged(why.to_owned()))));
        }
        thread::sleep(Duration::from_millis(500));
    }

    fn start(&mut self, attempt: Attempt, placement: &crate::Placement) {
        let Some((spec, nodes)) = self
            .peek(|pool| pool.jobs().get(&attempt.job).map(|job| (job.spec.clone(), pool.nodes().to_vec())))
        else {
            return;
        };
        self.begun.insert(attempt, Instant::now());
        let done = self.insight.progress(&spec).map_or(0, |progress| progress.done);
        self.estimates.insert(attempt.job, (attempt.number, done));
        if let Err(error) = self.executor.start(attempt, &spec, placement, &nodes) {
            eprintln!("pool: job {} cannot be started: {error}", attempt.job);
        }
    }

    /// Notices processes that have ended, and ends those that take too long to save.
    fn look_at_processes(&mut self, batch: &mut Batch) {
        let now = now();
        let grace = self.peek(|pool| pool.policy().grace);
        let running: Vec<(Attempt, Phase, Spec)> = self.peek(|pool| {
            let runs = |(&id, job): (&JobId, &Job)| {
                job.placement()?;
                Some((Attempt { job: id, number: job.attempt }, job.phase.clone(), job.spec.clone()))
            };
            pool.jobs().iter().filter_map(runs).collect()
        });
        for (attempt, phase, spec) in running {
            match self.executor.status(attempt) {
                Ok(Status::Exited(exit)) => self.note_exit(attempt, exit, &spec, batch),
                Ok(Status::Missing) => self.note_missing(attempt, &phase, batch),
                Ok(Status::Running) => {
                    self.begun.remove(&attempt);
                    let Phase::Stopping { told, reason, .. } = &phase else { continue };
                    // After a restart nobody knows whether it was told: it is told again, which changes
                    // nothing.
                    let _ = self.executor.stop(attempt);
                    let patience = if *reason == StopReason::Cancelled { grace.min(30_000) } else { grace };
                    let due = self.killed.get(&attempt).is_none_or(|at| at.elapsed().as_secs() >= 2);
                    if told + patience <= now && due {
                        self.killed.insert(attempt, Instant::now());
                        let _ = self.executor.kill(attempt);
                    }
                }
                Err(error) => report(&error, attempt),
            }
        }
    }

    fn note_exit(&mut self, attempt: Attempt, exit: Exit, spec: &Spec, batch: &mut Batch) {
        self.begun.remove(&attempt);
        self.killed.remove(&attempt);
        self.estimates.remove(&attempt.job);
        let lost = self.insight.progress(spec).map(|progress| progress.done.saturating_sub(progress.saved));
        batch.lost.push((attempt.job, if exit == Exit::Done { Some(0) } else { lost }));
        let event = Event::Exited { id: attempt.job, attempt: attempt.number, exit };
        let _ = self.accept(event, batch);
    }

    /// A start that left no trace: this process was killed before it could begin it, or what it began has not
    /// come up.
    fn note_missing(&mut self, attempt: Attempt, phase: &Phase, batch: &mut Batch) {
        if self.begun.get(&attempt).is_some_and(|at| at.elapsed() < BEGINS_WITHIN) {
            return;
        }
        match phase {
            Phase::Running { placement, .. } => self.start(attempt, placement),
            // It never ran, so nothing of it is lost.
            _ => {
                let event = Event::Exited { id: attempt.job, attempt: attempt.number, exit: Exit::Saved };
                let _ = self.accept(event, batch);
            }
        }
    }

    /// Corrects how long jobs still take by how far they have come.
    fn look_at_progress(&mut self, batch: &mut Batch) {
        let now = now();
        let running: Vec<(JobId, u32, Millis, Spec, u64, Option<Millis>)> = self.peek(|pool| {
            let runs = |(&id, job): (&JobId, &Job)| match &job.phase {
                Phase::Running { placement, since } => {
                    Some((id, job.attempt, *since, job.spec.clone(), placement.steps, job.remaining))
                }
                _ => None,
            };
            pool.jobs().iter().filter_map(runs).collect()
        });
        for (id, attempt, since, spec, steps, remaining) in running {
            let Some(Progress { done, total: Some(total), .. }) = self.insight.progress(&spec) else {
                continue;
            };
            let Some(&(of, first)) = self.estimates.get(&id) else {
                self.estimates.insert(id, (attempt, done));
                continue;
            };
            if of != attempt || done <= first + 1 || now <= since {
                continue;
            }
            let each = (now - since) as f64 / (done - first) as f64;
            let left = (each * total.saturating_sub(done) as f64 * spec.speed(steps)) as u64;
            // What was said before, as it is now.
            let ran = ((now - since) as f64 * spec.speed(steps)) as u64;
            let said = remaining.map(|said| said.saturating_sub(ran));
            let differs = said.is_none_or(|said| said.abs_diff(left) * 10 > said.max(left));
            if differs {
                let _ = self.accept(Event::Estimated { id, remaining: left }, batch);
            }
        }
    }

    /// Notes what was expected of jobs of which nothing was, so that it can be seen later how good that was.
    fn note_forecast(&mut self, forecast: &BTreeMap<JobId, Expected>) {
        for (id, expected) in forecast {
            if self.expected.insert(*id) {
                let _ = self.store.expect(*id, Some(expected.start), expected.end);
            }
        }
        let jobs: BTreeSet<JobId> = self.peek(|pool| pool.jobs().keys().copied().collect());
        self.expected.retain(|id| jobs.contains(id));
    }

    /// Notes how the pool stands, for whoever looks at it over time.
    fn sample(&mut self) {
        // A pool in which nothing happens has a sample of each time, too.
        let sample = Sample { at: now(), ..self.peek(sample) };
        if let Ok(text) = serde_json::to_string(&sample) {
            let _ = self.store.sample(sample.at, &text);
        }
    }
}

fn report(error: &io::Error, attempt: Attempt) {
    eprintln!("pool: how far job {} is cannot be told: {error}", attempt.job);
}

/// How a pool stands at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When.
    pub at: Millis,
    /// All of all machines, devices in thousandths.
    pub capacity: crate::Amounts,
    /// Departments and projects that have, want or may have something.
    pub queues: Vec<QueueSample>,
}

/// How one department or project stands at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueSample {
    /// Its name.
    pub name: String,
    /// Whether jobs belong to it.
    pub is_project: bool,
    /// What its processes have.
    pub held: crate::Amounts,
    /// Its fair share, in units: devices, cores, bytes.
    pub share: [f64; 3],
    /// Jobs that run or are stopping.
    pub running: u32,
    /// Jobs that wait.
    pub waiting: u32,
}

/// How a pool stands now.
#[must_use]
pub fn sample(pool: &Pool) -> Sample {
    let tree = pool.tree();
    let (held, shares) = (pool.held(), pool.shares());
    let mut counts = vec![(0, 0); tree.nodes.len()];
    for job in pool.jobs().values() {
        let runs = job.placement().is_some();
        for node in tree.path(pool.project_of(job)) {
            counts[node].0 += u32::from(runs);
            counts[node].1 += u32::from(!runs);
        }
    }
    let queue = |(n, node): (usize, &crate::policy::Node)| QueueSample {
        name: node.name.clone(),
        is_project: node.is_project,
        held: held[n],
        share: shares[n],
        running: counts[n].0,
        waiting: counts[n].1,
    };
    let queues = tree.nodes.iter().enumerate().map(queue).collect();
    Sample { at: pool.at(), capacity: pool.capacity(), queues }
}

/// The time, in milliseconds since the epoch.
#[must_use]
pub fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as u64)
}
