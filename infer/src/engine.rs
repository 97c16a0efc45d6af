//! Many sequences at once: requests with an adapter each, or none, over one base, a forward pass a step.
//!
//! Every request comes to what it comes to alone, to the byte, at any load and beside any others. The rows of a
//! prompt are multiplied as those of a long text are, however few they are, so that it does not matter where a
//! chunk ends or what another request has computed of it already. A new token's row is a product of its own, as
//! it is for a request alone ([`Generator`](crate::Generator) gives the same), or, with [`Sums::Tiles`], one of
//! many.
//!
//! A request is taken up when there are pages for the whole of it. None has to make room for another one once it
//! runs, and so none is computed twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use compute::{Foreground, Precision};
use model::memory::{Allocator, MemoryPlan};
use model::{Activations, Adapter, Batch, Cache, Config, Decoder, Group, Layout, PAGE, Run};

use crate::constraint::{Allowed, Constraint, Reason};
use crate::generator::{Finish, InferError};
use crate::pages::Pages;
use crate::queue::Queue;
use crate::sampler::{Sampler, Sampling};

/// The fewest inputs that a QA-LoRA adapter of a request may read together.
pub const SMALLEST_GROUP: usize = 16;

/// What a request is called.
pub type RequestId = u64;

/// In which order the products of new tokens sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sums {
    /// As fast as a request alone goes. Log-probabilities differ from those of a pass over the whole text by
    /// rounding.
    #[default]
    Rows,
    /// As training sums: a text's log-probabilities are those of a pass over the whole of it, to the bit.
    Tiles,
}

/// The sizes of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Tokens of the longest sequence, at most what the model was made for.
    pub context: usize,
    /// Tokens that the cache holds in all; rounded up to whole pages.
    pub cached_tokens: usize,
    /// The most tokens of a step: those that are generated, and chunks of prompts.
    pub step_tokens: usize,
    /// The most sequences that run at once.
    pub running: usize,
    /// The largest rank of an adapter that a request may have.
    pub max_rank: usize,
    /// How new tokens are summed.
    pub sums: Sums,
}

impl Extent {
    /// The same within what the model was made for, and so that a step can hold a token of each sequence.
    fn within(self, config: &Config) -> Self {
        let context = self.context.clamp(1, config.max_position_embeddings);
        let running = self.running.max(1);
        let step_tokens = self.step_tokens.max(running);
        Extent { context, running, step_tokens, cached_tokens: self.cached_tokens.max(1), ..self }
    }

    fn pages(&self) -> usize {
        self.cached_tokens.div_ceil(PAGE)
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Tokens to continue.
    pub prompt: Vec<u32>,
    /// With which adapter, which stays alive until the request has ended. Requests share what was computed of
    /// a common beginning only where this is the same object, or none.
    pub adapter: Option<Arc<Adapter>>,
    /// The most new tokens; with 0 the prompt's log-probabilities are all there is.
    pub max_tokens: usize,
    /// Tokens that end the sequence; the one that came is not part of the result.
    pub stop: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Which tokens it may be chosen from, if not from all. Where it allows nothing more, the sequence ends.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Log-probabilities of new tokens, and of so many of the likeliest beside each.
    pub logprobs: Option<usize>,
    /// The same of the prompt's tokens.
    pub prompt_logprobs: Option<usize>,
    /// Whose it is: requests that wait take turns by what their owners have used.
    pub owner: u64,
}

/// The logarithm of a token's probability by the model, before constraint, temperature and all else that sampling
/// does.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Which token.
    pub token: u32,
    /// Natural logarithm.
    pub logprob: f32,
    /// The likeliest tokens, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// What became of a request in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt is computed.
    Prompt {
        /// Tokens of it that were there from another request.
        cached: usize,
        /// Of each of its tokens but the first, if they were asked for.
        logprobs: Vec<Logprobs>,
    },
    /// A new token.
    Token {
        /// Which one.
        token: u32,
        /// If it was asked for.
        logprobs: Option<Logprobs>,
    },
    /// There is no more. The request is forgotten.
    End(Finish),
    /// It could not go on. The request is forgotten.
    Failed(InferError),
}

/// What an engine is busy with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that hold pages of the cache.
    pub running: usize,
    /// Requests that wait for room.
    pub waiting: usize,
    /// Pages in use by requests.
    pub used_pages: usize,
    /// Pages that hold what another request may begin with.
    pub kept_pages: usize,
    /// All pages.
    pub pages: usize,
}

/// A request that runs.
#[derive(Debug)]
struct Sequence {
    ask: Ask,
    sampler: Sampler,
    /// Prompt and new tokens.
    tokens: Vec<u32>,
    /// How many of them have keys and values in the cache.
    computed: usize,
    /// How many had when it began.
    cached: usize,
    pages: Arc<[u32]>,
    /// Full pages that others may begin with, and what stands before the next one.
    named: (usize, u64),
    prompt_logprobs: Vec<Logprobs>,
    /// What its constraint says of the token that this step brings.
    allowed: Option<Result<Allowed, Reason>>,
}

impl Sequence {
    /// Whether all tokens but the last were computed: the next step brings a new one.
    fn is_generating(&self) -> bool {
        self.tokens.len() > self.ask.prompt.len()
    }

    fn new_tokens(&self) -> usize {
        self.tokens.len() - self.ask.prompt.len()
    }

    /// The next token for logits `[V]`, of those that may come. `masked` is room to work in.
    fn next(&mut self, logits: &[f32], masked: &mut Vec<f32>) -> Result<u32, Reason> {
        match self.allowed.take() {
            None => Ok(self.sampler.sample(logits)),
            Some(allowed) => match allowed?.mask(logits, &self.ask.stop, masked) {
                true => Ok(self.sampler.sample(masked)),
                false => Err("no token of the vocabulary may follow here".into()),
            },
        }
    }

    /// Lets the constraint take a new token; whether nothing may follow it.
    fn accept(&mut self, token: u32) -> Result<bool, Reason> {
        let Some(constraint) = &mut self.ask.constraint else { return Ok(false) };
        constraint.accept(token)?;
        Ok(constraint.is_over())
    }
}

/// A model that answers many requests at once.
#[derive(Debug)]
pub struct Engine {
    decoder: Arc<Decoder>,
    extent: Extent,
    buffers: Activations,
    cache: Cache,
    pages: Pages,
    queue: Queue<(RequestId, Ask)>,
    running: BTreeMap<RequestId, Sequence>,
    next_id: RequestId,
    /// Held while there are requests: what trains beside them stands back.
    foreground: Option<Foreground>,
    /// Logits of one row, those of tokens that may not come at minus infinity.
    masked: Vec<f32>,
}

impl Engine {
    /// An engine without requests, with all its memory.
    pub fn new(decoder: Arc<Decoder>, extent: Extent) -> Self {
        let extent = extent.within(&decoder.config);
        let allocator = &mut Allocator::real(&decoder.device);
        let (buffers, cache) = room(&decoder.config, decoder.precision, extent, allocator);
        let pages = Pages::new(extent.pages());
        let (queue, running) = (Queue::new(), BTreeMap::new());
        let (masked, foreground) = (Vec::new(), None);
        Engine { decoder, extent, buffers, cache, pages, queue, running, next_id: 0, foreground, masked }
    }

    /// The memory that [`Engine::new`] asks for, of a model like this.
    pub fn memory_plan(config: &Config, precision: Precision, extent: Extent) -> MemoryPlan {
        let mut planning = Allocator::planning();
        room(config, precision, extent.within(config), &mut planning);
        planning.into_plan()
    }

    /// Gives an owner's requests more turns, or fewer, than those of others: what it uses counts for so many times
    /// less. 1 unless set.
    ///
    /// # Panics
    /// If the weight is not above 0.
    pub fn set_weight(&mut self, owner: u64, weight: f64) {
        self.queue.set_weight(owner, weight);
    }

    /// What it was laid out for.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Takes up a request, which waits for its turn.
    ///
    /// # Errors
    /// If the prompt is empty, too long, not of the model's vocabulary, or needs more cache than there is, or
    /// the adapter's rank is above [`Extent::max_rank`].
    pub fn submit(&mut self, ask: Ask) -> Result<RequestId, InferError> {
        self.check(&ask)?;
        if let Some(adapter) = &ask.adapter {
            self.decoder.fix(adapter);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.queue.push(ask.owner, (id, ask));
        self.stand();
        Ok(id)
    }

    fn check(&self, ask: &Ask) -> Result<(), InferError> {
        let (vocab_size, context) = (self.decoder.config.vocab_size, self.extent.context);
        let prompt = ask.prompt.len();
        if prompt == 0 {
            return Err(InferError::EmptyPrompt);
        }
        if prompt > context {
            return Err(InferError::PromptTooLong { prompt, context });
        }
        if let Some(&token) = ask.prompt.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(InferError::UnknownToken { token, vocab_size });
        }
        let (needed, pages) = (self.pages_for(ask), self.pages.count());
        if needed > pages {
            return Err(InferError::TooLarge { needed, pages });
        }
        let Some(adapter) = &ask.adapter else { return Ok(()) };
        let (rank, max_rank) = (adapter.layout.max_rank(), self.extent.max_rank);
        if rank > max_rank {
            let (what, room) = (format!("rank {rank}"), format!("ranks up to {max_rank}"));
            return Err(InferError::AdapterTooLarge { what, room });
        }
        match adapter.layout.smallest_group() {
            Some(group) if group < SMALLEST_GROUP => {
                let what = format!("groups of {group} inputs");
                Err(InferError::AdapterTooLarge { what, room: format!("{SMALLEST_GROUP} or more") })
            }
            _ => Ok(()),
        }
    }

    /// Pages of the longest sequence that a request can become: the last token needs no room.
    fn pages_for(&self, ask: &Ask) -> usize {
        let longest = ask.prompt.len().saturating_add(ask.max_tokens.saturating_sub(1));
        longest.min(self.extent.context).div_ceil(PAGE)
    }

    /// Forgets a request: there are no more events of it. Of one that is not known nothing happens.
    pub fn cancel(&mut self, id: RequestId) {
        if !self.queue.remove(|(waiting, _)| *waiting == id) {
            self.forget(id);
        }
        self.stand();
    }

    /// Takes its place before what can wait, or leaves it.
    fn stand(&mut self) {
        if self.is_idle() {
            self.foreground = None;
        } else if self.foreground.is_none() {
            self.foreground = Some(self.decoder.device.foreground());
        }
    }

    /// Gives back what a running request has.
    fn forget(&mut self, id: RequestId) {
        if let Some(sequence) = self.running.remove(&id) {
            self.pages.give_back(&sequence.pages);
        }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.len() == 0
    }

    /// What it is busy with.
    pub fn load(&self) -> Load {
        Load {
            running: self.running.len(),
            waiting: self.queue.len(),
            used_pages: self.pages.used(),
            kept_pages: self.pages.kept(),
            pages: self.pages.count(),
        }
    }

    /// Computes one step of whatever there is to do, and says what came of it.
    pub fn step(&mut self) -> Vec<(RequestId, Event)> {
        self.take_up();
        let Engine { decoder, extent, buffers, cache, running, .. } = self;
        let (batch, parts) = next_batch(*extent, running);
        if parts.is_empty() {
            return Vec::new();
        }
        let mut rules = take_constraints(running, &parts);
        let groups = groups(decoder, extent.sums, running, &parts);
        let allowed = ask_while(&mut rules, || {
            decoder.forward_groups(&groups, &batch, Some(cache), buffers);
        });
        drop(groups);
        for ((id, rule), allowed) in rules.into_iter().zip(allowed) {
            let sequence = running.get_mut(&id).expect("it took part");
            (sequence.ask.constraint, sequence.allowed) = (Some(rule), Some(allowed));
        }
        let wanted = self.advance(&parts);
        let mut events = Vec::new();
        for wanted in wanted.chunks(self.buffers.logits_rows()) {
            // One whose logits are no numbers has failed in the rows before.
            let wanted: Vec<&Wanted> =
                wanted.iter().filter(|wanted| self.running.contains_key(&wanted.id)).collect();
            let answers = self.answers(&wanted);
            for (wanted, answer) in wanted.into_iter().zip(answers) {
                self.take(wanted, answer, &mut events);
            }
        }
        self.stand();
        events
    }

    /// Lets requests run that wait, as long as there is room for the one whose turn it is.
    fn take_up(&mut self) {
        while self.running.len() < self.extent.running {
            let Some((_, ask)) = self.queue.first() else { return };
            let count = self.pages_for(ask);
            // The last token's logits are needed, and so it is always computed; of a prompt whose
            // log-probabilities are asked for, all are.
            let known = if ask.prompt_logprobs.is_some() { 0 } else { ask.prompt.len() - 1 };
            let root = self.pages.root(ask.adapter.as_ref());
            let Some(taken) = self.pages.take(root, &ask.prompt[..known], count) else { return };
            let (id, ask) = self.queue.pop().expect("it is the first");
            let cached = taken.there * PAGE;
            let sequence = Sequence {
                sampler: Sampler::new(ask.sampling, &ask.prompt),
                tokens: ask.prompt.clone(),
                computed: cached,
                cached,
                pages: taken.pages.into(),
                named: (taken.there, taken.before),
                prompt_logprobs: Vec::new(),
                allowed: None,
                ask,
            };
            self.running.insert(id, sequence);
        }
    }

    /// Takes note of what a pass has computed; returns the rows whose logits are wanted.
    fn advance(&mut self, parts: &[Part]) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for &Part { id, row, count } in parts {
            let sequence = self.running.get_mut(&id).expect("it took part");
            let by_tiles = is_by_tiles(self.extent.sums, sequence);
            let Sequence { ask, tokens, computed, pages, named, .. } = sequence;
            let first = *computed;
            *computed += count;
            let is_whole = *computed == tokens.len();
            let prompt = ask.prompt.len();
            if first < prompt {
                self.queue.count(ask.owner, count, 0);
            }
            // What is summed otherwise than a prompt's is of no use to one.
            let of_use = if self.extent.sums == Sums::Tiles { *computed } else { prompt.min(*computed) };
            while (named.0 + 1) * PAGE <= of_use {
                let page = &tokens[named.0 * PAGE..(named.0 + 1) * PAGE];
                *named = (named.0 + 1, self.pages.fill(pages[named.0], named.1, page));
            }
            let asks_for_prompt = ask.prompt_logprobs.filter(|_| first < prompt);
            for i in (0..count).filter(|i| asks_for_prompt.is_some() && first + i + 1 < prompt) {
                let what = Purpose::Known(tokens[first + i + 1]);
                wanted.push(Wanted { id, row: row + i, by_tiles, what });
            }
            if is_whole {
                wanted.push(Wanted { id, row: row + count - 1, by_tiles, what: Purpose::Next });
            }
        }
        wanted
    }

    /// The tokens of some rows, with their log-probabilities where these are asked for.
    fn answers(&mut self, wanted: &[&Wanted]) -> Vec<Result<Logprobs, InferError>> {
        let Engine { decoder, buffers, running, masked, .. } = self;
        let rows: Vec<usize> = wanted.iter().map(|wanted| wanted.row).collect();
        let parts = wanted.iter().enumerate().map(|(i, wanted)| Part { id: wanted.id, row: i, count: 1 });
        let by_tiles = |i: usize| wanted[i].by_tiles;
        let groups = groups_of(decoder, running, parts, by_tiles);
        let groups: Vec<_> = groups.iter().map(|group| (group.run, &rows[group.rows.clone()])).collect();
        let logits = decoder.logits_of_groups(&groups, buffers).download();
        let vocabulary = decoder.config.vocab_size;
        let mut found = Vec::new();
        for (wanted, logits) in wanted.iter().zip(logits.f32().chunks_exact(vocabulary)) {
            let sequence = running.get_mut(&wanted.id).expect("it took part");
            if !logits.iter().all(|logit| logit.is_finite()) {
                found.push(Err(InferError::NotFinite { tokens: sequence.computed }));
                continue;
            }
            let (token, asked) = match wanted.what {
                Purpose::Known(token) => (token, sequence.ask.prompt_logprobs),
                Purpose::Next if sequence.ask.max_tokens == 0 => (0, None),
                Purpose::Next => match sequence.next(logits, masked) {
                    Ok(token) => (token, sequence.ask.logprobs),
                    Err(reason) => {
                        found.push(Err(InferError::Constraint(reason)));
                        continue;
                    }
                },
            };
            let top = asked.map_or(Vec::new(), |count| likeliest(logits, count));
            found.push(Ok(Logprobs { token, logprob: logits[token as usize], top }));
        }
        drop(logits);
        let asks = |wanted: &Wanted| {
            let ask = &running[&wanted.id].ask;
            matches!(wanted.what, Purpose::Known(_)) || ask.logprobs.is_some()
        };
        if wanted.iter().any(|wanted| asks(wanted)) {
            let tokens: Vec<u32> = found.iter().map(|of| of.as_ref().map_or(0, |of| of.token)).collect();
            let losses = decoder.losses_of_next(&tokens, buffers);
            for (of, loss) in found.iter_mut().zip(losses) {
                let Ok(Logprobs { token, logprob, top }) = of else { continue };
                let normalizer = *logprob + loss;
                top.iter_mut().for_each(|(other, logit)| {
                    *logit = if other == token { -loss } else { *logit - normalizer };
                });
                *logprob = -loss;
            }
        }
        found
    }

    /// Takes up what a row has come to.
    fn take(
        &mut self,
        wanted: &Wanted,
        answer: Result<Logprobs, InferError>,
        events: &mut Vec<(RequestId, Event)>,
    ) {
        let id = wanted.id;
        let context = self.extent.context;
        // It may have failed in a row before.
        let Some(sequence) = self.running.get_mut(&id) else { return };
        let logprobs = match answer {
            Ok(logprobs) => logprobs,
            Err(error) => {
                self.forget(id);
                return events.push((id, Event::Failed(error)));
            }
        };
        if let Purpose::Known(_) = wanted.what {
            return sequence.prompt_logprobs.push(logprobs);
        }
        if !sequence.is_generating() {
            let (cached, of_prompt) = (sequence.cached, std::mem::take(&mut sequence.prompt_logprobs));
            events.push((id, Event::Prompt { cached, logprobs: of_prompt }));
        }
        let token = logprobs.token;
        let ask = &sequence.ask;
        let ended = if ask.max_tokens == 0 {
            Some(Finish::Length)
        } else if ask.stop.contains(&token) {
            Some(Finish::Stop)
        } else {
            self.queue.count(ask.owner, 0, 1);
            let logprobs = ask.logprobs.map(|_| logprobs);
            let is_over = match sequence.accept(token) {
                Ok(is_over) => is_over,
                Err(reason) => {
                    self.forget(id);
                    return events.push((id, Event::Failed(InferError::Constraint(reason))));
                }
            };
            events.push((id, Event::Token { token, logprobs }));
            sequence.tokens.push(token);
            let is_last = sequence.new_tokens() == sequence.ask.max_tokens || sequence.computed == context;
            if is_over { Some(Finish::Stop) } else { is_last.then_some(Finish::Length) }
        };
        if let Some(finish) = ended {
            self.forget(id);
            events.push((id, Event::End(finish)));
        }
    }
}

/// Rows of a step that belong to a sequence.
#[derive(Clone, Copy)]
struct Part {
    id: RequestId,
    /// The first row.
    row: usize,
    /// How many.
    count: usize,
}

/// A row whose logits are wanted.
struct Wanted {
    id: RequestId,
    row: usize,
    by_tiles: bool,
    what: Purpose,
}

/// What for.
enum Purpose {
    /// The log-probability of the token that follows there.
    Known(u32),
    /// A token to follow.
    Next,
}

/// The rows of the next step: a token of every sequence that generates, then of prompts, those that came first,
/// as many as there is room for. Rows by tiles with the same adapter stand together.
fn next_batch(extent: Extent, running: &BTreeMap<RequestId, Sequence>) -> (Batch, Vec<Part>) {
    let mut room = extent.step_tokens;
    let mut chosen: Vec<(RequestId, usize)> = Vec::new();
    for generating in [true, false] {
        for (&id, sequence) in running.iter().filter(|(_, s)| s.is_generating() == generating) {
            let count = room.min(sequence.tokens.len() - sequence.computed);
            if count > 0 {
                chosen.push((id, count));
                room -= count;
            }
        }
    }
    let address = |sequence: &Sequence| sequence.ask.adapter.as_ref().map(|a| Arc::as_ptr(a).addr());
    chosen.sort_by_key(|(id, _)| {
        let sequence = &running[id];
        (is_by_tiles(extent.sums, sequence), address(sequence), *id)
    });
    let mut batch = Batch::new();
    let mut parts = Vec::new();
    for (id, count) in chosen {
        let Sequence { tokens, computed, pages, .. } = &running[&id];
        let new = &tokens[*computed..*computed + count];
        parts.push(Part { id, row: batch.push_paged(new, *computed, Arc::clone(pages)), count });
    }
    (batch, parts)
}

/// The constraints of the sequences to which a step brings a token, out of their hands for as long as it takes.
fn take_constraints(
    running: &mut BTreeMap<RequestId, Sequence>,
    parts: &[Part],
) -> Vec<(RequestId, Box<dyn Constraint>)> {
    let mut rules = Vec::new();
    for part in parts {
        let sequence = running.get_mut(&part.id).expect("it takes part");
        if sequence.ask.max_tokens > 0 && sequence.computed + part.count == sequence.tokens.len() {
            rules.extend(sequence.ask.constraint.take().map(|rule| (part.id, rule)));
        }
    }
    rules
}

/// What constraints allow, found on a thread of its own while `work` is done: they know all tokens but the one that
/// it brings.
fn ask_while(
    rules: &mut [(RequestId, Box<dyn Constraint>)],
    work: impl FnOnce(),
) -> Vec<Result<Allowed, Reason>> {
    if rules.is_empty() {
        work();
        return Vec::new();
    }
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| rules.iter_mut().map(|(_, rule)| rule.allowed()).collect::<Vec<_>>());
        work();
        asked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// How the rows of a sequence are multiplied in the next step.
fn is_by_tiles(sums: Sums, sequence: &Sequence) -> bool {
    sums == Sums::Tiles || !sequence.is_generating()
}

/// The groups of a step.
fn groups<'a>(
    decoder: &'a Decoder,
    sums: Sums,
    running: &'a BTreeMap<RequestId, Sequence>,
    parts: &[Part],
) -> Vec<Group<'a>> {
    groups_of(decoder, running, parts.iter().copied(), |i| is_by_tiles(sums, &running[&parts[i].id]))
}

/// Groups of rows: by tiles all neighbours with the same adapter together, each other row by itself.
fn groups_of<'a>(
    decoder: &'a Decoder,
    running: &'a BTreeMap<RequestId, Sequence>,
    parts: impl Iterator<Item = Part>,
    by_tiles: impl Fn(usize) -> bool,
) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for (i, Part { id, row, count }) in parts.enumerate() {
        let run = decoder.run(running[&id].ask.adapter.as_deref());
        let run = Run { by_tiles: by_tiles(i), ..run };
        let address = |run: &Run<'_>| run.adapter.map(std::ptr::from_ref);
        let is_same = |group: &&mut Group<'_>| {
            run.by_tiles && group.run.by_tiles && address(&group.run) == address(&run)
        };
        match groups.last_mut().filter(is_same) {
            Some(group) => group.rows.end += count,
            None => groups.push(Group { rows: row..row + count, run }),
        }
    }
    groups
}

/// The largest logits, the largest first; of equal ones the smaller token.
fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count < all.len() {
        all.select_nth_unstable_by(count, order);
        all.truncate(count);
    }
    all.sort_unstable_by(order);
    // They stay as long as the request's text: not with the room of the whole vocabulary.
    all.shrink_to_fit();
    all
}

/// Buffers for a step, and a cache of whole pages.
fn room(
    config: &Config,
    precision: Precision,
    extent: Extent,
    allocator: &mut Allocator,
) -> (Activations, Cache) {
    let layout = Layout::room(config, extent.max_rank, SMALLEST_GROUP);
    let of_pass = model::Extent {
        tokens: extent.step_tokens,
        positions: extent.context,
        purpose: model::Purpose::Infer,
        precision,
    };
    let buffers = Activations::new(config, &layout, 0.0, of_pass, allocator);
    (buffers, Cache::new(config, precision, PAGE * extent.pages(), allocator))
}
