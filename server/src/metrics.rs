//! What is counted: requests, tokens and times by adapter and tenant, under vLLM's names.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use infer::Load;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Pairs of adapter and tenant that are told apart. Further adapters are counted together.
const MAX_SERIES: usize = 500;
/// What further adapters are called.
const OTHER: &str = "other";
/// Times that quantiles are taken of.
const RECENT: usize = 512;

/// Seconds to the first token, as vLLM cuts them.
const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Seconds between tokens.
const BETWEEN: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Seconds of a whole request.
const WHOLE: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    model_name: String,
    adapter: String,
    tenant: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    model_name: String,
    adapter: String,
    tenant: String,
    finished_reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Model {
    model_name: String,
}

type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// The counters of a server.
pub(crate) struct Metrics {
    model: String,
    registry: Registry,
    running: Gauge,
    waiting: Gauge,
    cache: Gauge<f64, AtomicU64>,
    prompt_tokens: Family<Labels, Counter>,
    new_tokens: Family<Labels, Counter>,
    first_token: Histograms,
    between: Histograms,
    whole: Histograms,
    ended: Family<Ended, Counter>,
    series: Mutex<BTreeMap<(String, String), Series>>,
    recent: Mutex<[VecDeque<f64>; 3]>,
}

/// The counters of an adapter and a tenant.
#[derive(Clone, Debug)]
struct Series {
    labels: Labels,
    prompt_tokens: Counter,
    new_tokens: Counter,
    first_token: Histogram,
    between: Histogram,
    whole: Histogram,
}

/// Tokens that an adapter has read and written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) prompt_tokens: u64,
    pub(crate) new_tokens: u64,
}

impl Metrics {
    pub(crate) fn new(model: &str) -> Self {
        let mut registry = Registry::default();
        let of_model = Model { model_name: model.to_owned() };
        let mut gauge = |name: &str, help: &str| {
            let family = Family::<Model, Gauge>::default();
            registry.register(name, help, family.clone());
            family.get_or_create_owned(&of_model)
        };
        let running = gauge("vllm:num_requests_running", "Requests that are being computed");
        let waiting = gauge("vllm:num_requests_waiting", "Requests that wait for room");
        let cache = Family::<Model, Gauge<f64, AtomicU64>>::default();
        registry.register(
            "vllm:kv_cache_usage_perc",
            "Part of the cache that requests use, 0 to 1",
            cache.clone(),
        );
        let cache = cache.get_or_create_owned(&of_model);
        let (prompt_tokens, new_tokens) = (Family::default(), Family::default());
        registry.register("vllm:prompt_tokens", "Tokens of prompts", Family::clone(&prompt_tokens));
        registry.register("vllm:generation_tokens", "Tokens that were generated", Family::clone(&new_tokens));
        let mut histogram = |name: &str, help: &str, make: fn() -> Histogram| {
            let family = Histograms::new_with_constructor(make);
            registry.register(name, help, family.clone());
            family
        };
        let first_token =
            histogram("vllm:time_to_first_token_seconds", "Time from a request to its first token", || {
                Histogram::new(FIRST_TOKEN)
            });
        let between = histogram("vllm:inter_token_latency_seconds", "Time from a token to the next", || {
            Histogram::new(BETWEEN)
        });
        let whole = histogram("vllm:e2e_request_latency_seconds", "Time of a whole request", || {
            Histogram::new(WHOLE)
        });
        let ended = Family::<Ended, Counter>::default();
        registry.register("vllm:request_success", "Requests that have ended", ended.clone());
        Metrics {
            model: model.to_owned(),
            registry,
            running,
            waiting,
            cache,
            prompt_tokens,
            new_tokens,
            first_token,
            between,
            whole,
            ended,
            series: Mutex::default(),
            recent: Mutex::default(),
        }
    }

    /// What measures a request. Where there is no adapter, `adapter` is empty.
    pub(crate) fn meter(self: &Arc<Self>, adapter: &str, tenant: &str) -> Meter {
        let series = self.series(adapter, tenant);
        Meter { metrics: Arc::clone(self), series, begun: Instant::now(), last: None, reason: "abort" }
    }

    fn series(&self, adapter: &str, tenant: &str) -> Series {
        let mut known = lock(&self.series);
        let pair = |adapter: &str| (adapter.to_owned(), tenant.to_owned());
        let is_new = !known.contains_key(&pair(adapter));
        let (adapter, tenant) = if is_new && known.len() >= MAX_SERIES { pair(OTHER) } else { pair(adapter) };
        let make = || {
            let labels =
                Labels { model_name: self.model.clone(), adapter: adapter.clone(), tenant: tenant.clone() };
            Series {
                prompt_tokens: self.prompt_tokens.get_or_create_owned(&labels),
                new_tokens: self.new_tokens.get_or_create_owned(&labels),
                first_token: self.first_token.get_or_create_owned(&labels),
                between: self.between.get_or_create_owned(&labels),
                whole: self.whole.get_or_create_owned(&labels),
                labels,
            }
        };
        known.entry((adapter.clone(), tenant.clone())).or_insert_with(make).clone()
    }

    /// Everything as Prometheus reads it.
    pub(crate) fn text(&self, load: Load) -> String {
        let whole = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.running.set(whole(load.running));
        self.waiting.set(whole(load.waiting));
        self.cache.set(load.used_pages as f64 / load.pages.max(1) as f64);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// What an adapter, or with an empty name the base, has done for tenants that are `seen`.
    pub(crate) fn traffic(&self, adapter: &str, seen: impl Fn(&str) -> bool) -> Traffic {
        let known = lock(&self.series);
        let of_adapter = known.iter().filter(|((name, tenant), _)| name == adapter && seen(tenant));
        of_adapter.fold(Traffic::default(), |sum, (_, series)| Traffic {
            prompt_tokens: sum.prompt_tokens + series.prompt_tokens.get(),
            new_tokens: sum.new_tokens + series.new_tokens.get(),
        })
    }

    /// The median and the 95th of 100 of recent times, in seconds: to the first token, between tokens, of
    /// requests.
    pub(crate) fn latencies(&self) -> [Option<[f64; 2]>; 3] {
        let recent = lock(&self.recent).clone();
        recent.map(|times| {
            let mut times: Vec<f64> = times.into();
            times.sort_by(f64::total_cmp);
            let at = |part: f64| times.get((part * times.len().saturating_sub(1) as f64).round() as usize);
            Some([*at(0.5)?, *at(0.95)?])
        })
    }

    fn remember(&self, which: usize, time: Duration) {
        let times = &mut lock(&self.recent)[which];
        if times.len() == RECENT {
            times.pop_front();
        }
        times.push_back(time.as_secs_f64());
    }
}

/// Measures a request from its beginning to its end, which without [`Meter::end`] is that its client left.
pub(crate) struct Meter {
    metrics: Arc<Metrics>,
    series: Series,
    begun: Instant,
    last: Option<Instant>,
    reason: &'static str,
}

impl Meter {
    pub(crate) fn prompt(&self, tokens: usize) {
        self.series.prompt_tokens.inc_by(tokens as u64);
    }

    /// A token came.
    pub(crate) fn token(&mut self) {
        let now = Instant::now();
        let (histogram, which, since) = match self.last {
            None => (&self.series.first_token, 0, self.begun),
            Some(last) => (&self.series.between, 1, last),
        };
        histogram.observe((now - since).as_secs_f64());
        self.metrics.remember(which, now - since);
        self.series.new_tokens.inc();
        self.last = Some(now);
    }

    /// It is over, and why.
    pub(crate) fn end(&mut self, reason: &'static str) {
        self.reason = reason;
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let whole = self.begun.elapsed();
        if self.reason != "abort" {
            self.series.whole.observe(whole.as_secs_f64());
            self.metrics.remember(2, whole);
        }
        let Labels { model_name, adapter, tenant } = self.series.labels.clone();
        let ended = Ended { model_name, adapter, tenant, finished_reason: self.reason };
        self.metrics.ended.get_or_create(&ended).inc();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
