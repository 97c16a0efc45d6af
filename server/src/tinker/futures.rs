//! POST /api/v1/retrieve_future and /cancel_future: a request is answered with a name at once, and by that
//! its result is asked for until it is there.
//!
//! Names are made of what clients number anyway, so a request that is sent twice is done once. Results stay
//! in memory for a while, also after they were taken, since an answer may be lost on its way. What a restart
//! has lost is gone, and clients are told so.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::outputs::{PassOutput, SampleOutput};
use crate::app::{App, Body, Caller, aside};
use crate::error::ApiError;

/// How long a client's question waits for an answer; clients wait 45 seconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a result stays that nobody takes, and one that was taken.
const KEPT: Duration = Duration::from_secs(3600);
const KEPT_TAKEN: Duration = Duration::from_secs(120);
/// Results that a tenant may have waiting, and their bytes.
const MOST: usize = 8192;
const MOST_BYTES: usize = 256 << 20;

/// A result.
#[derive(Debug)]
pub(super) enum Answer {
    Json(Value),
    Pass(PassOutput),
    Sample(SampleOutput),
    Failed { message: String, is_of_request: bool },
}

impl Answer {
    fn bytes(&self) -> usize {
        match self {
            Answer::Json(_) | Answer::Failed { .. } => 256,
            Answer::Pass(output) => output.bytes(),
            Answer::Sample(output) => output.bytes(),
        }
    }
}

type Outcome = Option<Arc<Answer>>;

struct Entry {
    tenant: String,
    /// Whether it is a model's.
    trains: bool,
    outcome: watch::Receiver<Outcome>,
    task: AbortHandle,
    begun: Instant,
    /// When the result was there.
    ended: Arc<OnceLock<Instant>>,
    taken: Option<Instant>,
}

/// The results of a server, by the names of their requests.
#[derive(Default)]
pub(crate) struct Futures {
    entries: Mutex<BTreeMap<String, Entry>>,
}

impl Futures {
    /// Begins a request, unless one of this name was begun already. `work` is called at once.
    ///
    /// # Errors
    /// If the tenant has too many already, or `work` refuses it.
    pub(super) fn begin<F>(
        &self,
        id: &str,
        tenant: &str,
        work: impl FnOnce() -> Result<F, ApiError>,
    ) -> Result<(), ApiError>
    where
        F: Future<Output = Result<Answer, ApiError>> + Send + 'static,
    {
        let mut entries = self.lock();
        if entries.get(id).is_some_and(|entry| entry.tenant == tenant) {
            return Ok(());
        }
        sweep(&mut entries);
        let of_tenant = || entries.values().filter(|entry| entry.tenant == tenant);
        let bytes = |entry: &Entry| entry.outcome.borrow().as_ref().map_or(0, |answer| answer.bytes());
        if of_tenant().count() >= MOST || of_tenant().map(bytes).sum::<usize>() > MOST_BYTES {
            return Err(ApiError::busy());
        }
        let work = work()?;
        let (done, outcome) = watch::channel(None);
        let ended = Arc::new(OnceLock::new());
        let noted = Arc::clone(&ended);
        let task = tokio::spawn(async move {
            let answer = work.await.unwrap_or_else(|error| Answer::Failed {
                message: error.message().to_owned(),
                is_of_request: error.is_of_request(),
            });
            noted.get_or_init(Instant::now);
            let _ = done.send(Some(Arc::new(answer)));
        });
        let entry = Entry {
            tenant: tenant.to_owned(),
            trains: id.contains(":train:"),
            outcome,
            task: task.abort_handle(),
            begun: Instant::now(),
            ended,
            taken: None,
        };
        entries.insert(id.to_owned(), entry);
        Ok(())
    }

    /// Whether a request of this name was begun.
    pub(super) fn is_begun(&self, id: &str, tenant: &str) -> bool {
        self.lock().get(id).is_some_and(|entry| entry.tenant == tenant)
    }

    /// What a request has come to, once it has or the client's patience is at its end.
    async fn wait(&self, id: &str, tenant: &str) -> Result<Outcome, ApiError> {
        let gone = || ApiError::gone("this request is not known any more; make it again");
        let mut outcome = {
            let entries = self.lock();
            let entry = entries.get(id).filter(|entry| entry.tenant == tenant).ok_or_else(gone)?;
            entry.outcome.clone()
        };
        let waited = tokio::time::timeout(PATIENCE, outcome.wait_for(Option::is_some)).await;
        match waited {
            Err(_) => Ok(None),
            Ok(Ok(answer)) => {
                if let Some(entry) = self.lock().get_mut(id) {
                    entry.taken = Some(Instant::now());
                }
                Ok(answer.clone())
            }
            // It was cancelled, or its task is gone.
            Ok(Err(_)) => Err(gone()),
        }
    }

    fn cancel(&self, id: &str, tenant: &str) {
        let entries = self.lock();
        // What a model does has its place in a line.
        let is_sample = |entry: &&Entry| entry.tenant == tenant && !entry.trains;
        if let Some(entry) = entries.get(id).filter(is_sample) {
            entry.task.abort();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets what nobody asks for any more.
fn sweep(entries: &mut BTreeMap<String, Entry>) {
    entries.retain(|_, entry| {
        let ended = entry.outcome.borrow().is_some() || entry.outcome.has_changed().is_err();
        let kept = match entry.taken {
            Some(taken) => taken.elapsed() < KEPT_TAKEN,
            // One that waited long for its turn has its time from then on.
            None => entry.ended.get().unwrap_or(&entry.begun).elapsed() < KEPT,
        };
        !ended || kept
    });
}

/// POST /api/v1/retrieve_future.
pub(super) async fn retrieve(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    headers: HeaderMap,
    Body(fields): Body,
) -> Result<Response, ApiError> {
    let id = fields.required_text("request_id")?;
    let tinker = app.tinker()?;
    let Some(answer) = tinker.futures.wait(id, &tenant.name).await? else {
        let again = json!({"type": "try_again", "request_id": id, "queue_state": "active"});
        return Ok(Json(again).into_response());
    };
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let wants_proto = accepts.into_iter().any(|value| value.contains(PROTOBUF));
    aside(move || Ok(response(&answer, wants_proto))).await
}

/// A result as it is told.
fn response(answer: &Answer, wants_proto: bool) -> Response {
    let proto = |bytes: Vec<u8>| ([(header::CONTENT_TYPE, PROTOBUF)], bytes).into_response();
    match answer {
        Answer::Json(value) => Json(value).into_response(),
        Answer::Pass(output) if wants_proto => proto(output.proto()),
        Answer::Pass(output) => Json(output.json()).into_response(),
        Answer::Sample(output) if wants_proto => proto(output.proto()),
        Answer::Sample(output) => Json(output.json()).into_response(),
        Answer::Failed { message, is_of_request } => {
            let category = if *is_of_request { "user" } else { "server" };
            Json(json!({"error": message, "category": category})).into_response()
        }
    }
}

/// The type of a body in protobuf.
pub(super) const PROTOBUF: &str = "application/x-protobuf";

/// POST /api/v1/cancel_future: whoever sampled is not interested any more.
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Body(fields): Body,
) -> Result<StatusCode, ApiError> {
    app.tinker()?.futures.cancel(fields.required_text("request_id")?, &tenant.name);
    Ok(StatusCode::NO_CONTENT)
}
