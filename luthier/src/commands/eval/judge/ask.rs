//! Asking for all replies that are missing, many at once, patiently and within a budget.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use super::endpoint::{Endpoint, Failed, Failure};
use super::games::{Game, Games};
use super::replies::{Replies, Reply};
use crate::run_file::{Budget, JudgeFile};
use crate::terminal::Progress;

/// The longest wait between two tries, unless the endpoint asks for a longer one.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// So many requests that all tries were in vain for, or refused questions, without a reply between them, and
/// the others are not sent.
const HOPELESS: usize = 5;
/// How soon a wait notices that nobody waits any more.
const GLANCE: Duration = Duration::from_millis(20);

/// What asking came to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Requests that were sent, again included.
    pub(super) sent: u64,
    /// Of replies, and the most that tries without one may have taken.
    pub(super) tokens: u64,
    /// Tries that failed for a reason that may pass.
    pub(super) again: u64,
    /// Games whose request has no reply, and why.
    pub(super) failed: BTreeMap<usize, String>,
    pub(super) end: Option<End>,
}

/// Why not all were asked for.
#[derive(Debug)]
pub(super) enum End {
    /// The budget of requests is used up.
    Requests,
    /// The budget of tokens is.
    Tokens,
    /// Somebody wants it to stop.
    Asked,
    /// The endpoint answers nobody.
    Endpoint(String),
    /// Replies cannot be written.
    Broken(anyhow::Error),
}

/// What the threads share.
struct State<'a> {
    replies: &'a mut Replies,
    next: usize,
    outcome: Outcome,
    /// Tokens that requests under way may come to.
    under_way: u64,
    /// Since the last reply: requests that all tries were in vain for.
    in_vain: usize,
    /// And questions that were refused; what is wrong with one is wrong in all its games.
    refused: BTreeSet<usize>,
    /// Nobody sends before, since the endpoint asked for it.
    not_before: Option<Instant>,
    last_trouble: String,
    progress: Progress,
    done: u64,
}

/// Asks for what is missing of the games' replies, and keeps each as it comes.
pub(super) fn ask_all(
    games: &Games<'_>,
    endpoint: &Endpoint,
    replies: &mut Replies,
    settings: &JudgeFile,
    stop: &AtomicBool,
) -> Outcome {
    let missing = games.missing(replies);
    if missing.is_empty() {
        return Outcome::default();
    }
    let all = games.requests();
    let done = (all - missing.len()) as u64;
    let mut progress = Progress::items("judging", all as u64, done);
    progress.set(done, "");
    let state = State {
        replies,
        next: 0,
        outcome: Outcome::default(),
        under_way: 0,
        in_vain: 0,
        refused: BTreeSet::new(),
        not_before: None,
        last_trouble: String::new(),
        progress,
        done,
    };
    let asking = Asking { games, endpoint, settings, stop, missing: &missing, state: Mutex::new(state) };
    scope(|scope| {
        for _ in 0..settings.parallel.min(missing.len()) {
            scope.spawn(|| asking.work());
        }
    });
    let state = asking.state.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    state.progress.finish(&state.last_trouble);
    state.outcome
}

struct Asking<'a> {
    games: &'a Games<'a>,
    endpoint: &'a Endpoint,
    settings: &'a JudgeFile,
    stop: &'a AtomicBool,
    missing: &'a [&'a Game],
    state: Mutex<State<'a>>,
}

impl<'a> Asking<'a> {
    fn state(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// One thread's: a request after the other, until there is none or an end.
    fn work(&self) {
        loop {
            let game = {
                let mut state = self.state();
                if state.outcome.end.is_some() || state.next == self.missing.len() {
                    return;
                }
                state.next += 1;
                self.missing[state.next - 1]
            };
            if let Err(end) = self.ask(game) {
                // What ended it first is what is told; an end without a cause follows another.
                let mut state = self.state();
                if state.outcome.end.is_none() {
                    state.outcome.end = end;
                }
                return;
            }
        }
    }

    /// Asks for one reply, again where that may help, and counts what comes; `Err` if nobody shall go on.
    fn ask(&self, game: &Game) -> Result<(), Option<End>> {
        let body = self.endpoint.body(&self.games.messages(game));
        let cost = self.endpoint.most_tokens(&body);
        let mut tries = 0;
        loop {
            self.wait_for_all()?;
            while !self.state().begin(cost, self.settings.budget).map_err(Some)? {
                self.pause(Instant::now() + GLANCE)?;
            }
            let answer = self.endpoint.ask(&body);
            let mut state = self.state();
            state.under_way -= cost;
            if matches!(answer, Err(Failed { may_cost: true, .. })) {
                state.outcome.tokens = state.outcome.tokens.saturating_add(cost);
            }
            let (why, wait) = match answer.map_err(|failed| failed.why) {
                Ok(said) => {
                    state.outcome.tokens = state.outcome.tokens.saturating_add(said.tokens);
                    state.in_vain = 0;
                    state.refused.clear();
                    let reply = self.games.reply(game, said);
                    return state.keep(reply).map_err(|error| Some(End::Broken(error)));
                }
                Err(Failure::Endpoint(why)) => return Err(Some(End::Endpoint(why))),
                Err(Failure::MayPass { why, wait }) if tries < self.settings.retries => (why, wait),
                Err(Failure::MayPass { why, .. }) => {
                    state.in_vain += 1;
                    let times = if tries == 0 { String::new() } else { format!(", {} times", tries + 1) };
                    return state.fail(game, why + &times);
                }
                Err(Failure::Request(why)) => {
                    state.refused.insert(game.question);
                    return state.fail(game, why);
                }
            };
            let ours = self.settings.backoff().saturating_mul(1 << tries.min(16)).min(LONGEST_WAIT);
            let mut pause = spread(ours, &game.request);
            if let Some(asked) = wait {
                // An endpoint that has enough of one request has enough of all.
                let until = Instant::now() + asked;
                state.not_before = state.not_before.max(Some(until));
                pause = pause.max(asked);
            }
            state.outcome.again += 1;
            state.last_trouble = format!("{} sent again, last: {why}", state.outcome.again);
            state.show();
            drop(state);
            self.pause(Instant::now() + pause)?;
            tries += 1;
        }
    }

    /// Waits as long as the endpoint asked all to.
    fn wait_for_all(&self) -> Result<(), Option<End>> {
        loop {
            let until = self.state().not_before.filter(|until| *until > Instant::now());
            match until {
                Some(until) => self.pause(until)?,
                None => return self.go_on(),
            }
        }
    }

    fn pause(&self, until: Instant) -> Result<(), Option<End>> {
        loop {
            self.go_on()?;
            match until.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Ok(()),
                left => sleep(left.min(GLANCE)),
            }
        }
    }

    fn go_on(&self) -> Result<(), Option<End>> {
        match () {
            () if self.stop.load(Ordering::Relaxed) => Err(Some(End::Asked)),
            () if self.state().outcome.end.is_some() => Err(None),
            () => Ok(()),
        }
    }
}

impl State<'_> {
    /// Counts a request that is about to be sent, if there is budget for it; `false` if there may be, once what
    /// is under way turns out to take less than it may.
    fn begin(&mut self, cost: u64, budget: Budget) -> Result<bool, End> {
        if budget.requests.is_some_and(|most| self.outcome.sent >= most) {
            return Err(End::Requests);
        }
        let tokens = self.outcome.tokens.saturating_add(cost);
        match budget.tokens {
            Some(most) if tokens > most => return Err(End::Tokens),
            Some(most) if tokens.saturating_add(self.under_way) > most => return Ok(false),
            _ => {}
        }
        self.outcome.sent += 1;
        self.under_way += cost;
        Ok(true)
    }

    fn keep(&mut self, reply: Reply) -> anyhow::Result<()> {
        self.replies.add(reply)?;
        self.done += 1;
        self.show();
        Ok(())
    }

    /// A request that has come to nothing.
    fn fail(&mut self, game: &Game, why: String) -> Result<(), Option<End>> {
        self.outcome.failed.insert(game.number, why.clone());
        let in_a_row = self.in_vain.max(self.refused.len());
        if in_a_row < HOPELESS {
            return Ok(());
        }
        Err(Some(End::Endpoint(format!("nothing but failures, {in_a_row} in a row, the last: {why}"))))
    }

    fn show(&mut self) {
        self.progress.set(self.done, &self.last_trouble);
    }
}

/// A wait up to a quarter longer, so that requests that failed together do not come again together.
fn spread(wait: Duration, request: &str) -> Duration {
    let part = u8::from_str_radix(request.get(..2).unwrap_or("0"), 16).unwrap_or(0);
    wait + wait / 4 * u32::from(part) / 255
}
