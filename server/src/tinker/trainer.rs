//! The thread that trains: what it drives, and how requests of each model come to it in their order.
//!
//! Clients number a model's requests and may send them in any order; a request runs when all before it have.
//! Requests for passes whose turn it is go through together, whosever models they are of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

/// Numbers that are used up before their turn has come.
const MOST_AHEAD: u64 = 8192;
/// How long requests wait for one before them that does not come: its client is gone, or it was never sent.
const LONGEST_GAP: Duration = Duration::from_secs(900);
/// Tokens of passes that go through together: with more of them the processors have no more to gain, and
/// whoever comes next waits.
const TURN_TOKENS: usize = 4096;
/// How often is looked for such.
const LOOK: Duration = Duration::from_secs(30);

/// What a model is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lora {
    /// Its rank.
    pub rank: usize,
    /// Decides how it begins.
    pub seed: u64,
    /// Whether the layers of attention are trained,
    pub attention: bool,
    /// those of the MLP,
    pub mlp: bool,
    /// and the output head.
    pub head: bool,
}

/// What a pass minimizes: see the losses of Tinker's API.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// The negative log-probability of the targets.
    CrossEntropy,
    /// The policy gradient with importance weights.
    ImportanceSampling,
    /// That with clipped ratios, as the smaller of two products.
    Ppo {
        /// What ratios are clipped to.
        clip: [f64; 2],
    },
    /// Clipped ratios as weights of the log-probability.
    Cispo {
        /// What ratios are clipped to.
        clip: [f64; 2],
    },
    /// The advantage with a quadratic penalty.
    Dro {
        /// How much the penalty counts.
        beta: f64,
    },
}

/// A sequence to pass: `targets[i]` is what is to follow `ids[i]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// Tokens that are read.
    pub ids: Vec<u32>,
    /// A target for each.
    pub targets: Vec<u32>,
    /// What each target counts.
    pub weights: Vec<f32>,
    /// Log-probabilities of the targets when they were sampled; empty for cross entropy.
    pub sampled: Vec<f32>,
    /// Their advantages; empty for cross entropy.
    pub advantages: Vec<f32>,
}

/// A request for a forward pass, or a forward and a backward one.
#[derive(Clone, Debug, PartialEq)]
pub struct Pass {
    /// Of which model.
    pub model: String,
    /// What passes.
    pub examples: Vec<Example>,
    /// What is minimized.
    pub objective: Objective,
    /// Whether gradients are added up.
    pub backward: bool,
}

impl Pass {
    /// Tokens of all its examples.
    fn tokens(&self) -> usize {
        self.examples.iter().map(|example| example.ids.len()).sum()
    }
}

/// What it came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Passed {
    /// The sum of the losses.
    pub loss: f64,
    /// Log-probabilities of each example's targets.
    pub logprobs: Vec<Vec<f32>>,
}

/// The settings of a step of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// The learning rate.
    pub learning_rate: f64,
    /// Decays of the moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay of the weights.
    pub weight_decay: f64,
    /// The longest gradient; 0: any.
    pub clip: f64,
}

/// Why a request came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// In words.
    pub message: String,
    /// Whether the request is to blame.
    pub is_of_request: bool,
}

/// What trains models: a studio, or in tests something that behaves like one.
pub trait Trainer {
    /// Makes a model.
    ///
    /// # Errors
    /// If it cannot be, or there is no room for it.
    fn create(&mut self, model: &str, lora: Lora) -> Result<(), Refused>;
    /// Lets go of a model.
    fn remove(&mut self, model: &str);
    /// Passes of one model each, together; results in their order, each as it is alone.
    fn pass(&mut self, passes: Vec<Pass>) -> Vec<Result<Passed, Refused>>;
    /// Updates a model by its gradients; their norm.
    ///
    /// # Errors
    /// If that is not finite.
    fn step(&mut self, model: &str, adam: Adam) -> Result<f64, Refused>;
    /// Writes a model into a folder that is made for it.
    ///
    /// # Errors
    /// If it cannot be written.
    fn save(&mut self, model: &str, folder: &Path, with_optimizer: bool) -> Result<(), Refused>;
    /// Reads what was written.
    ///
    /// # Errors
    /// If it is not whole, or of another kind of model.
    fn load(&mut self, model: &str, folder: &Path, with_optimizer: bool) -> Result<(), Refused>;
}

/// Makes what trains, on the thread that it is to run on, when it is first needed.
pub type BeginTraining = dyn FnOnce() -> Result<Box<dyn Trainer>, String> + Send;

/// What is asked of a model.
#[derive(Debug)]
pub(crate) enum Job {
    /// With nothing before it: the model is made, and perhaps filled from a folder.
    Create(Lora, Option<(PathBuf, bool)>),
    Pass(Pass),
    Step(Adam),
    Save(PathBuf, bool),
    Load(PathBuf, bool),
    /// A request that was refused: what comes after it does not wait for it.
    Nothing,
}

/// What became of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    Done,
    Passed(Passed),
    Norm(f64),
}

type Result_ = Result<Outcome, Refused>;

enum Command {
    Do { owner: u64, model: String, seq: u64, job: Job, done: oneshot::Sender<Result_> },
    Remove(String),
    Stop,
}

/// The way to the thread.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    ended: watch::Receiver<()>,
}

impl Handle {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub(crate) fn start(begin: Box<BeginTraining>) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (commands, queue) = mpsc::channel();
        // Dropped with the thread, also where it panics.
        let (alive, ended) = watch::channel(());
        let thread = std::thread::Builder::new().name("trainer".into()).spawn(move || {
            let _alive = alive;
            Desk {
                begin: Some(begin),
                trainer: None,
                queue,
                lines: BTreeMap::new(),
                turns: Turns::default(),
            }
            .work();
        })?;
        Ok((Handle { commands, ended }, thread))
    }

    /// Puts a request into its model's line, at its number; the model is made by number 0. Where the model or
    /// the thread is gone, the answer never comes.
    pub(crate) fn send(&self, owner: u64, (model, seq): (&str, u64), job: Job) -> oneshot::Receiver<Result_> {
        let (done, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Do { owner, model: model.to_owned(), seq, job, done });
        answer
    }

    /// Lets go of a model and of what waits for it.
    pub(crate) fn remove(&self, model: &str) {
        let _ = self.commands.send(Command::Remove(model.to_owned()));
    }

    /// Whether the thread still runs.
    pub(crate) fn is_alive(&self) -> bool {
        self.ended.has_changed().is_ok()
    }

    /// Has the thread end after what it is doing.
    pub(crate) fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }
}

/// A model's requests that wait, by their numbers, and the next one's.
#[derive(Default)]
struct Line {
    owner: u64,
    next: u64,
    waiting: BTreeMap<u64, (Job, oneshot::Sender<Result_>)>,
    /// Since when the next one is missing while others wait.
    stuck: Option<Instant>,
}

impl Line {
    fn take(&mut self, seq: u64, job: Job, done: oneshot::Sender<Result_>) {
        if seq < self.next {
            let message = format!("the number {seq} of this model is used: the next one is {}", self.next);
            let _ = done.send(Err(Refused { message, is_of_request: true }));
        } else if !matches!(job, Job::Nothing) {
            self.waiting.insert(seq, (job, done));
        } else if seq - self.next < MOST_AHEAD {
            self.waiting.entry(seq).or_insert((job, done));
        }
        self.look();
    }

    /// Takes note of whether what waits has to wait for what has not come.
    fn look(&mut self) {
        let is_stuck = !self.waiting.is_empty() && !self.waiting.contains_key(&self.next);
        self.stuck = if is_stuck { self.stuck.or_else(|| Some(Instant::now())) } else { None };
    }

    /// Lets go of what has waited too long for what has not come.
    fn give_up(&mut self) {
        if self.stuck.is_none_or(|since| since.elapsed() < LONGEST_GAP) {
            return;
        }
        let missing = self.next;
        while let Some((seq, (_, done))) = self.waiting.pop_first() {
            let message = format!("request {missing} of this model has not come, which is before it");
            let _ = done.send(Err(Refused { message, is_of_request: true }));
            self.next = seq + 1;
        }
        self.stuck = None;
    }
}

struct Desk {
    begin: Option<Box<BeginTraining>>,
    trainer: Option<Box<dyn Trainer>>,
    queue: mpsc::Receiver<Command>,
    lines: BTreeMap<String, Line>,
    turns: Turns,
}

/// Whose passes come next: those of the tenant that has had the fewest tokens.
#[derive(Debug, Default)]
struct Turns {
    /// Tokens that each tenant has had.
    had: BTreeMap<u64, usize>,
    /// Tenants that had passes when the last ones were chosen.
    present: BTreeSet<u64>,
}

impl Turns {
    /// Which of these passes go through together, of tenants and their tokens: by turns, until there are enough
    /// to fill a pass; at least one.
    fn choose(&mut self, passes: &[(u64, usize)]) -> Vec<usize> {
        let owners: BTreeSet<u64> = passes.iter().map(|(owner, _)| *owner).collect();
        // Whoever comes has saved nothing up; between equals it goes first.
        let least = self.present.iter().map(|owner| self.had[owner]).min().unwrap_or(0);
        let new: BTreeSet<u64> = owners.difference(&self.present).copied().collect();
        for owner in &new {
            let had = self.had.entry(*owner).or_default();
            *had = least.max(*had);
        }
        self.present = owners;
        let (mut chosen, mut tokens) = (Vec::new(), 0);
        let mut left: Vec<usize> = (0..passes.len()).collect();
        let rank = |had: &BTreeMap<u64, usize>, owner: u64| (had[&owner], !new.contains(&owner));
        while tokens < TURN_TOKENS
            && let Some(at) = (0..left.len()).min_by_key(|at| rank(&self.had, passes[left[*at]].0))
        {
            let next = left.remove(at);
            let (owner, of_pass) = passes[next];
            tokens += of_pass;
            *self.had.entry(owner).or_default() += of_pass;
            chosen.push(next);
        }
        chosen.sort_unstable();
        chosen
    }
}

impl Desk {
    fn work(mut self) {
        loop {
            let mut command = match self.has_turn() {
                true => self.queue.try_recv().ok(),
                false => match self.queue.recv_timeout(LOOK) {
                    Ok(command) => Some(command),
                    Err(mpsc::RecvTimeoutError::Timeout) => None,
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                },
            };
            self.lines.values_mut().for_each(Line::give_up);
            while let Some(next) = command {
                match next {
                    Command::Do { owner, model, seq, job, done } => {
                        let line = match &job {
                            Job::Create(..) => {
                                Some(self.lines.entry(model).or_insert(Line { owner, ..Line::default() }))
                            }
                            _ => self.lines.get_mut(&model),
                        };
                        // Of a model that is gone nobody hears anything: the sender is dropped.
                        if let Some(line) = line {
                            line.take(seq, job, done);
                        }
                    }
                    Command::Remove(model) => {
                        self.lines.remove(&model);
                        if let Some(trainer) = &mut self.trainer {
                            trainer.remove(&model);
                        }
                    }
                    Command::Stop => return,
                }
                command = self.queue.try_recv().ok();
            }
            self.turn();
        }
    }

    fn has_turn(&self) -> bool {
        self.lines.values().any(|line| line.waiting.contains_key(&line.next))
    }

    /// Does what each model's next request asks for, passes of several models together, as many as their turns allow.
    fn turn(&mut self) {
        let (mut passes, mut answers) = (Vec::new(), Vec::new());
        let waiting = self.lines.iter().filter_map(|(model, line)| match line.waiting.get(&line.next)? {
            (Job::Pass(pass), _) => Some((model.clone(), (line.owner, pass.tokens()))),
            _ => None,
        });
        let (waiting, sizes): (Vec<String>, Vec<(u64, usize)>) = waiting.unzip();
        let chosen = self.turns.choose(&sizes);
        let later: BTreeSet<&String> = waiting
            .iter()
            .enumerate()
            .filter(|(at, _)| !chosen.contains(at))
            .map(|(_, model)| model)
            .collect();
        let names: Vec<String> = self.lines.keys().filter(|name| !later.contains(name)).cloned().collect();
        for model in names {
            let Some(line) = self.lines.get_mut(&model) else { continue };
            let Some((job, done)) = line.waiting.remove(&line.next) else { continue };
            line.next += 1;
            line.look();
            if let Job::Pass(pass) = job {
                passes.push(pass);
                answers.push(done);
                continue;
            }
            let creates = matches!(job, Job::Create(..));
            let outcome = self.do_one(&model, job);
            if creates && outcome.is_err() {
                self.lines.remove(&model);
            }
            let _ = done.send(outcome);
        }
        if passes.is_empty() {
            return;
        }
        // There are no lines without a model, and no model without what trains it.
        let Some(trainer) = &mut self.trainer else { return };
        for (passed, done) in trainer.pass(passes).into_iter().zip(answers) {
            let _ = done.send(passed.map(Outcome::Passed));
        }
    }

    fn do_one(&mut self, model: &str, job: Job) -> Result_ {
        let trainer = self.trainer()?;
        match job {
            Job::Nothing => Ok(Outcome::Done),
            Job::Create(lora, from) => {
                trainer.create(model, lora)?;
                let Some((folder, with_optimizer)) = from else { return Ok(Outcome::Done) };
                let loaded = trainer.load(model, &folder, with_optimizer);
                if loaded.is_err() {
                    trainer.remove(model);
                }
                loaded.map(|()| Outcome::Done)
            }
            Job::Step(adam) => trainer.step(model, adam).map(Outcome::Norm),
            Job::Save(folder, with_optimizer) => {
                trainer.save(model, &folder, with_optimizer).map(|()| Outcome::Done)
            }
            Job::Load(folder, with_optimizer) => {
                trainer.load(model, &folder, with_optimizer).map(|()| Outcome::Done)
            }
            Job::Pass(_) => unreachable!("passes go through together"),
        }
    }

    fn trainer(&mut self) -> Result<&mut dyn Trainer, Refused> {
        if let Some(begin) = self.begin.take() {
            let begun = begin().map_err(|message| Refused { message, is_of_request: false })?;
            self.trainer = Some(begun);
        }
        match &mut self.trainer {
            Some(trainer) => Ok(&mut **trainer),
            None => Err(Refused { message: "training could not begin".into(), is_of_request: false }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_had_the_fewest_tokens_is_next() {
        let mut turns = Turns::default();
        let large = TURN_TOKENS;
        // Of one tenant's passes a turn has as many as fill it.
        assert_eq!(turns.choose(&[(1, large / 2), (1, large / 2), (1, 1)]), [0, 1]);
        assert_eq!(turns.choose(&[(1, 10 * large), (1, 10 * large)]).len(), 1);
        // A newcomer goes first, and then they take turns.
        assert_eq!(turns.choose(&[(1, large), (2, large)]), [1]);
        let mut had = [0_usize, 0];
        for _ in 0..10 {
            for at in turns.choose(&[(1, large), (2, large)]) {
                had[at] += 1;
            }
        }
        assert!(had[0].abs_diff(had[1]) <= 2, "{had:?}");
        // Small ones of all go together.
        assert_eq!(turns.choose(&[(1, 8), (2, 8), (3, 8)]), [0, 1, 2]);
        // Who was away comes back at the others' count.
        (0..5).for_each(|_| drop(turns.choose(&[(1, large)])));
        assert_eq!(turns.choose(&[(1, large), (2, large)]), [1]);
        assert!(turns.choose(&[]).is_empty());
    }
}
