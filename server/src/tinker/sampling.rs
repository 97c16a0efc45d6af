//! POST /api/v1/create_sampling_session and /asample, GET /api/v1/samplers/ID: samples of the base and of
//! checkpoints, by the engine that serves everybody.
//!
//! A sequence ends with the token that stopped it: whoever trains on samples trains on their ends, too. So
//! the engine is told of no stops, and is stopped.

use std::future::poll_fn;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use data::TextStream;
use infer::{Ask, Event, Finish, Logprobs, Sampling};
use serde_json::{Value, json};

use super::futures::Answer;
use super::inputs::read_input;
use super::outputs::{Likeliest, SampleOutput, Sampled};
use super::path::CheckpointPath;
use super::{Tinker, now, records};
use crate::adapters::Generation;
use crate::app::{App, Body, Caller};
use crate::asked::{random, room};
use crate::error::ApiError;
use crate::fields::{Fields, tokens};
use crate::metrics::Meter;
use crate::places::Slot;
use crate::tenants::Tenant;
use crate::words::Words;
use crate::worker::Ticket;

/// Tokens beside each that log-probabilities are told of.
const MOST_TOP: i64 = 64;
/// Stops of a request, and bytes of one.
const MOST_STOPS: usize = 64;
const MOST_STOP_BYTES: usize = 1024;
/// What counts samples from checkpoints, whose names are too many for labels.
const LABEL: &str = "tinker";

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let tinker = app.tinker()?;
    let session = fields.required_text("session_id")?.to_owned();
    tinker.require_session(&session, &tenant).await?;
    fields.required("sampling_session_seq_id")?;
    let number = fields.whole("sampling_session_seq_id", 0..=i64::from(u32::MAX))?.unwrap_or_default();
    let path = tinker.source(&app, &fields, &tenant).await?;
    let id = format!("{session}:sample:{number}");
    let made = id.clone();
    let add = move |all: &rusqlite::Transaction<'_>| {
        records::add_sampler(all, (&made, &session, &tenant.name), path.as_ref())
    };
    tinker.records(add).await?;
    Ok(Json(json!({"type": "create_sampling_session", "sampling_session_id": id})))
}

fn absent(sampler: &str) -> ApiError {
    ApiError::absent("sampling_session_id", format!("there is no sampler `{sampler}`"))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Path(sampler): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = sampler.clone();
    let found = app.tinker()?.records(move |all| records::sampler(all, &id, &tenant.name)).await?;
    let path = found.ok_or_else(|| absent(&sampler))?;
    Ok(Json(json!({"sampler_id": sampler, "base_model": app.model, "model_path": path})))
}

impl Tinker {
    /// What `model_path` or `base_model` say is to be sampled from: a checkpoint, or the base.
    async fn source(
        &self,
        app: &App,
        fields: &Fields,
        tenant: &Tenant,
    ) -> Result<Option<CheckpointPath>, ApiError> {
        let base = fields.text("base_model")?;
        if let Some(base) = base.filter(|base| *base != app.model) {
            return Err(ApiError::no_model(base));
        }
        match fields.text("model_path")? {
            Some(path) => self.checkpoint(path, "model_path", tenant).await.map(Some),
            None if base.is_some() => Ok(None),
            None => Err(ApiError::field(
                "model_path",
                "`model_path` or `base_model` must say what to sample from",
            )),
        }
    }

    /// The adapter of a checkpoint, loaded if need be.
    async fn generation(
        &self,
        app: &App,
        path: &CheckpointPath,
        tenant: &Tenant,
    ) -> Result<Arc<Generation>, ApiError> {
        let (asked, name) = (path.clone(), tenant.name.clone());
        if !self.records(move |all| records::has_checkpoint(all, &asked, &name, now())).await? {
            return Err(ApiError::absent("model_path", format!("there is no checkpoint `{path}`")));
        }
        self.snapshot(app, path, tenant).await
    }

    /// A checkpoint as an adapter of its tenant, which also finds it among the models.
    pub(super) async fn snapshot(
        &self,
        app: &App,
        path: &CheckpointPath,
        tenant: &Tenant,
    ) -> Result<Arc<Generation>, ApiError> {
        let name = path.to_string();
        // Taken, where it was sampled from before: a name stands for one folder.
        let _ = app.adapters.register(&name, &self.folder(path), &tenant.name);
        app.adapters.acquire(&name, tenant).await
    }
}

/// What is asked for.
struct Wanted {
    prompt: Vec<u32>,
    n: usize,
    max_tokens: usize,
    sampling: Sampling,
    ends: Ends,
    /// Of each new token, beside itself.
    top: usize,
    /// Whether log-probabilities of the prompt's tokens are asked for, of how many of its last ones, and of
    /// so many beside each.
    of_prompt: bool,
    last: usize,
    prompt_top: usize,
}

/// What ends a sequence.
#[derive(Clone, Debug)]
struct Ends {
    tokens: Vec<u32>,
    texts: Vec<String>,
}

impl Ends {
    fn read(params: &Fields, words: &Words) -> Result<Self, ApiError> {
        let wrong = || {
            let message = format!(
                "`stop` must be a string, a list of up to {MOST_STOPS} strings of 1 to {MOST_STOP_BYTES} bytes, or one \
                 of token ids"
            );
            ApiError::field("stop", message)
        };
        let texts = |texts: Vec<String>| {
            let is_right = |text: &String| (1..=MOST_STOP_BYTES).contains(&text.len());
            let all = texts.len() <= MOST_STOPS && texts.iter().all(is_right);
            if all { Ok(Ends { tokens: Vec::new(), texts }) } else { Err(wrong()) }
        };
        match params.value("stop") {
            None => {
                let usual = words.stops();
                Ok(Ends { tokens: usual.tokens.clone(), texts: usual.text.iter().cloned().collect() })
            }
            Some(Value::String(text)) => texts(vec![text.clone()]),
            Some(list @ Value::Array(items)) if items.iter().all(Value::is_number) => {
                let tokens = tokens(list).filter(|tokens| tokens.len() <= MOST_STOPS).ok_or_else(wrong)?;
                Ok(Ends { tokens, texts: Vec::new() })
            }
            Some(Value::Array(items)) => {
                let strings =
                    items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>();
                texts(strings.ok_or_else(wrong)?)
            }
            Some(_) => Err(wrong()),
        }
    }
}

impl Wanted {
    fn read(fields: &Fields, app: &App) -> Result<Self, ApiError> {
        let prompt = read_input(fields.required("prompt")?).ok_or_else(|| {
            ApiError::field(
                "prompt",
                "`prompt` must be pieces of text as token ids: there are no images here",
            )
        })?;
        fields.refuse("target_prompt_logprobs", |_| false)?;
        fields.refuse("prompt_alt_tokens_k", |value| *value == json!(0))?;
        fields.refuse("record_stability_info", |value| *value == json!(false))?;
        let most = app.most_answers();
        let n = fields.count("num_samples", 1)?.unwrap_or(1);
        if n > most {
            let message = format!("`num_samples` may be {most} at most here, and is {n}");
            return Err(ApiError::field("num_samples", message));
        }
        let of_prompt = fields.boolean("prompt_logprobs")?.unwrap_or(false);
        let top = |name: &str| Ok(fields.whole(name, 0..=MOST_TOP)?.unwrap_or(0) as usize);
        let (prompt_top, top) = (top("topk_prompt_logprobs")?, top("topk_sample_logprobs")?);
        let last = fields.count("prompt_logprobs_last_n", 1)?.unwrap_or(usize::MAX);
        let params = fields
            .object("sampling_params")?
            .ok_or_else(|| ApiError::field("sampling_params", "`sampling_params` is missing"))?;
        let top_k = params.whole("top_k", -1..=i64::from(u32::MAX))?.unwrap_or(-1);
        let sampling = Sampling {
            temperature: params.number("temperature", 0.0..=100.0)?.unwrap_or(1.0) as f32,
            top_p: params.number("top_p", 0.0..=1.0)?.unwrap_or(1.0) as f32,
            top_k: usize::try_from(top_k).unwrap_or(0),
            seed: params.whole("seed", i64::MIN..=i64::MAX)?.map_or_else(random, |seed| seed as u64),
            ..Sampling::default()
        };
        let context = app.limits.context;
        // A prompt that fills the context has log-probabilities, and nothing can follow it.
        let is_full = prompt.len() == context && (of_prompt || prompt_top > 0);
        let max_tokens = match is_full {
            true => 0,
            false => room(prompt.len(), params.count("max_tokens", 1)?, context, "max_tokens")?,
        };
        let ends = Ends::read(&params, &app.words)?;
        Ok(Wanted { prompt, n, max_tokens, sampling, ends, top, of_prompt, last, prompt_top })
    }
}

pub(super) async fn sample(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let tinker = app.tinker()?;
    let (path, id) = match fields.text("sampling_session_id")? {
        Some(sampler) => {
            fields.required("seq_id")?;
            let number = fields.whole("seq_id", 0..=i64::MAX)?.unwrap_or_default();
            let (asked, name) = (sampler.to_owned(), tenant.name.clone());
            let found = tinker.records(move |all| records::sampler(all, &asked, &name)).await?;
            let path = found.ok_or_else(|| absent(sampler))?;
            tinker.hear(sampler.split(':').next().unwrap_or_default());
            (path.as_deref().and_then(CheckpointPath::parse), format!("{sampler}:{number}"))
        }
        None => {
            let path = tinker.source(&app, &fields, &tenant).await?;
            (path, format!("sample:{:016x}{:016x}", random(), random()))
        }
    };
    let wanted = Wanted::read(&fields, &app)?;
    let sequences: Vec<String> = (0..wanted.n).map(|sample| format!("{id}:{sample}")).collect();
    let promise = Json(json!({"request_id": id, "sample_sequence_ids": sequences}));
    if tinker.futures.is_begun(&id, &tenant.name) {
        return Ok(promise);
    }
    let adapter = match &path {
        Some(path) => Some(tinker.generation(&app, path, &tenant).await?),
        None => None,
    };
    tinker.futures.begin(&id, &tenant.name, || {
        let slots = app.admit(&tenant, wanted.n)?;
        let followed = slots
            .into_iter()
            .enumerate()
            .map(|(place, slot)| Followed::begin(&app, &tenant, adapter.as_ref(), &wanted, place, slot));
        let followed: Vec<Followed> = followed.collect();
        let app = Arc::clone(&app);
        Ok(async move { follow_all(&app.words, followed, &wanted).await.map(Answer::Sample) })
    })?;
    Ok(promise)
}

/// A sequence while it grows.
struct Followed {
    ticket: Ticket,
    meter: Meter,
    tenant: Arc<Tenant>,
    stream: TextStream,
    /// The text so far, where strings can end it.
    text: String,
    sampled: Sampled,
    prompt: Option<(usize, Vec<Logprobs>)>,
    _adapter: Option<Arc<Generation>>,
    _slot: Slot,
}

impl Followed {
    fn begin(
        app: &App,
        tenant: &Arc<Tenant>,
        adapter: Option<&Arc<Generation>>,
        wanted: &Wanted,
        place: usize,
        slot: Slot,
    ) -> Self {
        let Wanted { prompt, max_tokens, sampling, top, of_prompt, prompt_top, .. } = wanted;
        let asks_for_prompt = place == 0 && (*of_prompt || *prompt_top > 0);
        let ask = Ask {
            constraint: None,
            prompt: prompt.clone(),
            adapter: adapter.map(|adapter| Arc::clone(&adapter.loaded.adapter)),
            max_tokens: *max_tokens,
            stop: Vec::new(),
            // Those to one prompt differ.
            sampling: Sampling { seed: sampling.seed.wrapping_add(place as u64), ..*sampling },
            logprobs: Some(*top),
            prompt_logprobs: asks_for_prompt.then_some(*prompt_top),
            owner: tenant.owner,
        };
        let likeliest = (*top > 0).then_some(Likeliest { places: Vec::new(), k: *top });
        Followed {
            stream: app.words.stream_after(prompt),
            ticket: app.engine.submit(ask, false),
            meter: app.metrics.meter(adapter.map_or("", |_| LABEL), &tenant.name),
            tenant: Arc::clone(tenant),
            text: String::new(),
            sampled: Sampled { likeliest, ..Sampled::default() },
            prompt: None,
            _adapter: adapter.cloned(),
            _slot: slot,
        }
    }

    /// Takes up a token; whether it ends the sequence.
    fn hear(&mut self, words: &Words, ends: &Ends, token: u32, logprobs: Option<Logprobs>) -> bool {
        self.meter.token();
        self.tenant.charge(1);
        self.sampled.tokens.push(token);
        let (logprob, top) = logprobs.map_or((f32::NAN, Vec::new()), |of| (of.logprob, of.top));
        self.sampled.logprobs.push(logprob);
        if let Some(likeliest) = &mut self.sampled.likeliest {
            likeliest.places.push(top);
        }
        if ends.tokens.contains(&token) {
            return true;
        }
        let Some(longest) = ends.texts.iter().map(String::len).max() else { return false };
        // What was there before cannot be an end, but for its last bytes.
        let mut from = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text.push_str(&self.stream.push(words.tokenizer(), token));
        ends.texts.iter().any(|end| self.text[from..].contains(end.as_str()))
    }

    /// Follows the sequence to its end.
    async fn follow(mut self, words: &Words, wanted: &Wanted) -> Result<Self, ApiError> {
        loop {
            match poll_fn(|context| self.ticket.poll(context)).await {
                Some(Event::Prompt { cached, logprobs }) => {
                    self.tenant.charge(wanted.prompt.len());
                    self.meter.prompt(wanted.prompt.len());
                    self.prompt = Some((cached, logprobs));
                }
                Some(Event::Token { token, logprobs }) => {
                    if self.hear(words, &wanted.ends, token, logprobs) {
                        self.sampled.is_stopped = true;
                        self.meter.end("stop");
                        return Ok(self);
                    }
                }
                Some(Event::End(Finish::Length | Finish::Stop)) => {
                    self.meter.end("length");
                    return Ok(self);
                }
                Some(Event::Failed(error)) => {
                    self.meter.end("error");
                    return Err(ApiError::engine(&error, "prompt"));
                }
                Some(Event::End(Finish::Cancelled)) | None => {
                    self.meter.end("error");
                    return Err(ApiError::lost());
                }
            }
        }
    }
}

/// Follows all sequences to their ends.
async fn follow_all(
    words: &Words,
    followed: Vec<Followed>,
    wanted: &Wanted,
) -> Result<SampleOutput, ApiError> {
    let all = futures_util::future::try_join_all(followed.into_iter().map(|one| one.follow(words, wanted)));
    let mut output = SampleOutput::default();
    for (place, Followed { sampled, prompt, .. }) in all.await?.into_iter().enumerate() {
        output.sequences.push(sampled);
        let Some((cached, logprobs)) = prompt.filter(|_| place == 0) else { continue };
        output.cached = cached;
        let length = wanted.prompt.len();
        let first = length.saturating_sub(wanted.last).max(1);
        // The first token follows nothing; of others there may be no log-probability asked for.
        let mut all = vec![f32::NAN; length];
        let mut places = vec![Vec::new(); length];
        for (at, of) in (1..).zip(logprobs).skip(first - 1) {
            all[at] = of.logprob;
            places[at] = of.top;
        }
        output.prompt_logprobs = wanted.of_prompt.then_some(all);
        output.prompt_likeliest =
            (wanted.prompt_top > 0).then_some(Likeliest { places, k: wanted.prompt_top });
    }
    Ok(output)
}
