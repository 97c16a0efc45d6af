//! What the routes share: the engine, the adapters, the tenants, the counters, and the way of a request to
//! the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header;
use axum::http::request::Parts;
use infer::Ask;
use tokio::sync::Semaphore;

use crate::adapters::{Adapters, Generation};
use crate::answer::{Answer, Asker};
use crate::asked::{Asked, random};
use crate::audit::{Asking, Audit};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::guard;
use crate::metrics::Metrics;
use crate::places::{Places, Slot};
use crate::store::Store;
use crate::tenants::{Tenant, Tenants};
use crate::tinker::Tinker;
use crate::tuning::Bench;
use crate::words::Words;
use crate::worker::Handle;

/// How much a server takes upon itself.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of a prompt with its answer.
    pub context: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of a file that a client brings.
    pub file_bytes: u64,
    /// Bytes a second that it must bring in the long run.
    pub upload_rate: u64,
    /// How long fine-tuning jobs train at least before they stop to let others join them.
    pub least_training: Duration,
    /// Answers that are made or waited for at once.
    pub requests: usize,
    /// Connections at once; further ones wait.
    pub connections: usize,
    /// Time for the head of a request, and for its body.
    pub read_time: Duration,
    /// Time in which a client must take some of what is written for it.
    pub write_time: Duration,
    /// Time that requests have to end when the server is asked to.
    pub drain_time: Duration,
}

impl Limits {
    /// Those of a server that nobody set up otherwise.
    pub fn of_context(context: usize) -> Self {
        Limits {
            context,
            body_bytes: 2 << 20,
            file_bytes: 512 << 20,
            upload_rate: 32 << 10,
            least_training: Duration::from_secs(10),
            requests: 1024,
            connections: 16384,
            read_time: Duration::from_secs(30),
            write_time: Duration::from_secs(60),
            drain_time: Duration::from_secs(60),
        }
    }
}

/// A server's state.
pub(crate) struct App {
    /// What the base is called.
    pub(crate) model: String,
    pub(crate) words: Arc<Words>,
    pub(crate) engine: Handle,
    pub(crate) adapters: Arc<Adapters>,
    pub(crate) tenants: Tenants,
    /// What outlives the server; none where it was given no folder.
    pub(crate) store: Option<Arc<Store>>,
    /// What trains; none where there is no store.
    pub(crate) bench: Option<Arc<Bench>>,
    /// Long texts that are made into tokens at once.
    pub(crate) long_texts: Semaphore,
    /// Files that are sent at once.
    pub(crate) uploads: Arc<Places>,
    /// Training by clients; none where there is no store or nothing that trains.
    pub(crate) tinker: Option<Tinker>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    pub(crate) places: Arc<Places>,
    pub(crate) audit: Audit,
    pub(crate) draining: AtomicBool,
    pub(crate) begun: Instant,
}

impl App {
    /// What outlives the server.
    pub(crate) fn store(&self) -> Result<&Arc<Store>, ApiError> {
        self.store.as_ref().ok_or_else(ApiError::no_state)
    }

    /// What outlives the server, and what trains.
    pub(crate) fn tuning(&self) -> Result<(Arc<Store>, Arc<Bench>), ApiError> {
        let bench = self.bench.clone().ok_or_else(ApiError::no_state)?;
        Ok((Arc::clone(self.store()?), bench))
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The most answers that a tenant can have at once: of several tenants one alone does not take all
    /// places.
    pub(crate) fn most_answers(&self) -> usize {
        self.places.most(self.tenants.count())
    }

    /// Notes in the log what came of something that changes what is served or kept. `action`: a noun and a
    /// verb, such as `adapter.load`; `what`: a name or an id, never a text of a user's.
    pub(crate) fn audit<T>(&self, caller: &Caller, action: &str, what: &str, done: &Result<T, ApiError>) {
        self.audit.note(&caller.1, action, what, done);
    }

    /// Places for as many answers, if there are any and the tenant's quotas allow a request.
    pub(crate) fn admit(&self, tenant: &Tenant, answers: usize) -> Result<Vec<Slot>, ApiError> {
        if self.is_draining() {
            return Err(ApiError::unavailable("the server is about to end"));
        }
        if !self.engine.is_alive() {
            return Err(ApiError::internal("the engine has stopped"));
        }
        let slots = self.places.take(tenant.owner, answers, self.tenants.count());
        let slots = slots.ok_or_else(ApiError::busy)?;
        tenant.admit(answers)?;
        Ok(slots)
    }

    /// The adapter that a model's name means to a tenant; none for the base.
    pub(crate) async fn adapter(
        &self,
        tenant: &Tenant,
        model: &str,
    ) -> Result<Option<Arc<Generation>>, ApiError> {
        match model {
            model if model == self.model => Ok(None),
            model => self.adapters.acquire(model, tenant).await.map(Some),
        }
    }

    /// Brings a request to the engine.
    pub(crate) fn ask(
        &self,
        ask: Ask,
        stops: Vec<String>,
        param: &'static str,
        streams: bool,
        tenant: &Arc<Tenant>,
        adapter: Option<&Arc<Generation>>,
        slot: Slot,
    ) -> Answer {
        let name = adapter.map_or("", |adapter| adapter.name.as_str());
        let meter = self.metrics.meter(name, &tenant.name);
        let asker = Asker { tenant: Arc::clone(tenant), meter, _adapter: adapter.cloned(), _slot: slot };
        Answer::ask(&self.engine, &self.words, ask, stops, param, streams, asker)
    }

    /// What every answer to a request says of it.
    pub(crate) fn head(&self, kind: &str, asked: &Asked, adapter: Option<&Arc<Generation>>) -> Head {
        let number = adapter.map_or(0, |adapter| adapter.number);
        Head {
            id: format!("{kind}-{:016x}", random()),
            created: seconds(SystemTime::now()),
            model: asked.model.clone(),
            fingerprint: format!("generation-{number}"),
        }
    }
}

/// What every answer to a request says of it.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    /// The adapter's generation, 0 for the base.
    pub(crate) fingerprint: String,
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Bytes of a text from which on it is a long one: its tokens take a hundred times as much while they are made.
const LONG_TEXT: usize = 1 << 16;

impl App {
    /// Makes tokens of the text of a request, aside. Of long ones few are made into tokens at once.
    pub(crate) async fn tokenizing<T: Send + 'static>(
        &self,
        fields: &Fields,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let is_long = fields.bytes() > LONG_TEXT;
        let _turn = if is_long { self.long_texts.acquire().await.ok() } else { None };
        aside(work).await
    }
}

/// Runs what takes its time, such as reading a long text, where it holds up nobody.
pub(crate) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("the request could not be read")))
}

/// Who makes a request, and by which key and from where.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) Arc<Tenant>, pub(crate) Arc<Asking>);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        if !app.tenants.has_keys() {
            guard::check(&parts.headers)?;
        }
        let known = app.tenants.identify(&parts.headers)?;
        let asking = parts.extensions.get::<Arc<Asking>>().cloned();
        let asking = asking.ok_or_else(|| ApiError::internal("a request without an address"))?;
        asking.is_of(known.clone());
        Ok(Caller(known.tenant, asking))
    }
}

impl Caller {
    /// Whether it may change what is served.
    pub(crate) fn require_admin(&self) -> Result<(), ApiError> {
        match self.0.admin {
            true => Ok(()),
            false => Err(ApiError::forbidden("this key may not do that: its tenant is no `admin`")),
        }
    }
}

/// The body of a request, an object.
pub(crate) struct Body(pub(crate) Fields);

impl FromRequest<Arc<App>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let bytes = read_body(request, app.limits.body_bytes, app.limits.read_time).await?;
        Fields::parse(&bytes).map(Body)
    }
}

/// Reads a body of at most so many bytes, in at most that time.
pub(crate) async fn read_body(request: Request, limit: usize, time: Duration) -> Result<Bytes, ApiError> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::too_large(limit));
    }
    let read = axum::body::to_bytes(request.into_body(), limit);
    match tokio::time::timeout(time, read).await {
        Err(_) => Err(ApiError::too_slow()),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => match is_about_length(&error) {
            true => Err(ApiError::too_large(limit)),
            false => Err(ApiError::invalid("the body of the request broke off")),
        },
    }
}

fn is_about_length(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
