//! Clients of a server that speaks OpenAI's interface, ours or another's, over HTTP.

use std::io::{BufRead, BufReader};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use serde_json::{Value, json};
use ureq::Agent;

use super::{Outcome, Planned};
use crate::error::user;

/// Which model a request is for.
pub(super) type Model<'m> = &'m (dyn Fn(&Planned) -> &'m str + Sync);

/// The longest that a request may take, and that a server may be silent before it begins to answer.
const PATIENCE: Duration = Duration::from_secs(600);
const SILENCE: Duration = Duration::from_secs(120);

/// A server as somebody with a key sees it.
#[derive(Clone)]
pub(super) struct Client {
    url: String,
    key: Option<String>,
    agent: Agent,
    pub(super) base: String,
    /// Models that are made of the base.
    pub(super) adapters: Vec<String>,
}

impl Client {
    /// Asks a server what it serves.
    ///
    /// # Errors
    /// If there is none, or it serves nothing.
    pub(super) fn open(url: &str, key: Option<&str>) -> anyhow::Result<Self> {
        // A connection for each request: servers close one that was used often, or not for a while, when they like.
        let config = Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .timeout_recv_response(Some(SILENCE))
            .http_status_as_error(false)
            .max_idle_connections(0)
            .build();
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let agent = Agent::new_with_config(config);
        let (base, adapters) = (String::new(), Vec::new());
        let mut client = Client { url, key: key.map(str::to_owned), agent, base, adapters };
        let listed = client
            .with_key(client.agent.get(format!("{}/v1/models", client.url)))
            .call()
            .map_err(anyhow::Error::from)
            .and_then(|mut answer| Ok(answer.body_mut().read_to_string()?))
            .map_err(|error| user(format!("--url {}: {error}", client.url)))?;
        let listed: Value = serde_json::from_str(&listed)
            .map_err(|_| user(format!("--url {}: /v1/models is not OpenAI's list of models", client.url)))?;
        for card in listed["data"].as_array().into_iter().flatten() {
            let Some(id) = card["id"].as_str() else { continue };
            match card["parent"].as_str() {
                None if client.base.is_empty() => client.base = id.to_owned(),
                _ => client.adapters.push(id.to_owned()),
            }
        }
        match client.base.is_empty() {
            true => Err(user(format!("--url {}: it serves no model: {listed}", client.url))),
            false => Ok(client),
        }
    }

    /// Asks all, so many at once, each of the model that it is for.
    ///
    /// # Errors
    /// If a request is refused or breaks off.
    pub(super) fn ask(
        &self,
        planned: &[Planned],
        parallel: usize,
        model: Model<'_>,
    ) -> anyhow::Result<Outcome> {
        let begun = Instant::now();
        let next = AtomicUsize::new(0);
        let all = Mutex::new(Outcome::of(planned));
        let client = || -> anyhow::Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(of) = planned.get(number) else { return Ok(()) };
                let Answered { first, between, tokens } = self.ask_one(of, model(of))?;
                let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                all.new_tokens += tokens;
                all.first.push(first);
                all.between.push(between);
            }
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..parallel).map(|_| scope.spawn(client)).collect();
            clients.into_iter().try_for_each(joined)
        })?;
        let mut outcome = all.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        outcome.seconds = begun.elapsed().as_secs_f64();
        Ok(outcome)
    }

    /// Asks all, one after the other, beside somebody else who always has so many requests running or
    /// waiting.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub(super) fn ask_beside(
        &self,
        other: &Client,
        greed: usize,
        planned: &[Planned],
        model: Model<'_>,
    ) -> anyhow::Result<Outcome> {
        let ended = AtomicBool::new(false);
        let theirs = |first: usize| -> anyhow::Result<()> {
            let mut all = planned.iter().cycle().skip(first);
            while let (false, Some(of)) = (ended.load(Ordering::Relaxed), all.next()) {
                other.ask_one(of, model(of))?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (0..greed).map(|n| scope.spawn(move || theirs(n))).collect();
            // The first one finds the others only just coming.
            let asked = self.ask(&planned[..1], 1, model).and_then(|_| self.ask(planned, 1, model));
            ended.store(true, Ordering::Relaxed);
            others.into_iter().try_for_each(joined)?;
            asked
        })
    }

    /// How one request went.
    fn ask_one(&self, planned: &Planned, model: &str) -> anyhow::Result<Answered> {
        let body = json!({
            "model": model, "prompt": planned.prompt, "max_tokens": planned.new, "temperature": 0, "stream": true,
            "stream_options": {"include_usage": true}, "ignore_eos": true, "add_special_tokens": false,
        });
        let begun = Instant::now();
        let request = self.agent.post(format!("{}/v1/completions", self.url));
        let request = self.with_key(request).header("Content-Type", "application/json");
        let mut answer = request.send(body.to_string())?;
        if answer.status() != 200 {
            let why = answer.body_mut().read_to_string().unwrap_or_default();
            return Err(user(format!("--url {}: {} {why}", self.url, answer.status())));
        }
        let (mut first, mut last, mut tokens) = (None, begun, None);
        for line in BufReader::new(answer.body_mut().as_reader()).lines() {
            let line = line.context("the answer broke off")?;
            let Some(event) = line.strip_prefix("data: ").filter(|event| *event != "[DONE]") else {
                continue;
            };
            let event: Value = serde_json::from_str(event).context("an event is not JSON")?;
            if let Some(error) = event.get("error") {
                return Err(user(format!("--url {}: {error}", self.url)));
            }
            // Not every token is an event of its own: half a character waits for its other half.
            tokens = event["usage"]["completion_tokens"].as_u64().or(tokens);
            if event["choices"][0].is_object() {
                last = Instant::now();
                first.get_or_insert(last);
            }
        }
        let (Some(first), Some(tokens @ 1..)) = (first, tokens) else {
            return Err(user(format!("--url {}: an answer without a token, or without its usage", self.url)));
        };
        let between = (last - first) / (tokens as u32 - 1).max(1);
        Ok(Answered { first: first - begun, between, tokens: tokens as usize })
    }

    fn with_key<Body>(&self, request: ureq::RequestBuilder<Body>) -> ureq::RequestBuilder<Body> {
        match &self.key {
            Some(key) => request.header("Authorization", format!("Bearer {key}")),
            None => request,
        }
    }
}

fn joined(client: ScopedJoinHandle<'_, anyhow::Result<()>>) -> anyhow::Result<()> {
    client.join().unwrap_or_else(|_| Err(anyhow!("a client has failed")))
}

/// How a request went.
struct Answered {
    /// From asking to the first token, and between two of them on average.
    first: Duration,
    between: Duration,
    tokens: usize,
}
