//! Tinker's API: models that clients train a request at a time, and sample from meanwhile. An unchanged
//! `tinker` package drives it.
//!
//! A request is answered at once with a name by which its result is asked for (`futures`). Those of a model
//! go to the thread that trains, in the order of their numbers (`trainer`); samples go to the engine that
//! serves everybody (`sampling`). Checkpoints are folders below the server's, and what there is stands in its
//! SQLite file (`records`), so a restart loses models in training, and nothing that was saved.

mod checkpoints;
mod futures;
mod inputs;
mod outputs;
mod path;
mod proto;
mod records;
mod runs;
mod sampling;
mod sessions;
mod trainer;
mod training;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use axum::Router;
use axum::routing::{delete, get, post, put};
use rusqlite::Transaction;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::app::{App, aside, seconds};
use crate::error::ApiError;
use crate::places::Places;
use crate::store::Store;
use crate::tenants::Tenant;
pub(crate) use records::TABLES;
pub(crate) use trainer::Handle as TrainerHandle;
pub use trainer::{Adam, BeginTraining, Example, Lora, Objective, Pass, Passed, Refused, Trainer};

/// Mebibytes of the bodies of passes at once: several of the largest.
const BODIES: usize = 256;
/// Bodies of passes that are read at once.
const READERS: usize = 2;
/// Tokens of a tenant's passes that may wait, some twenty bytes each.
const WAITING_TOKENS: usize = 1 << 23;

/// Training by clients.
pub struct Training {
    /// Makes what trains, on the thread that it is to run on.
    pub begin: Box<BeginTraining>,
    /// Models of a tenant at once.
    pub models: usize,
    /// Where clients on this machine find the base's tokenizer, if its name does not say.
    pub tokenizer: Option<String>,
}

/// A model in training.
struct Model {
    tenant: String,
    session: String,
    lora: Lora,
}

/// What is in memory of it all.
pub(crate) struct Tinker {
    store: Arc<Store>,
    trainer: TrainerHandle,
    futures: futures::Futures,
    models: Mutex<BTreeMap<String, Model>>,
    /// Tokens that each tenant's passes may have waiting.
    waiting: Mutex<BTreeMap<String, Arc<Semaphore>>>,
    /// Mebibytes of the bodies of passes that are in memory, or are on their way.
    bodies: Arc<Places>,
    /// Bodies of passes that are read at once.
    readers: Semaphore,
    /// When sessions were heard of last.
    heard: Mutex<BTreeMap<String, Instant>>,
    most_models: usize,
    tokenizer: Option<String>,
}

impl Tinker {
    pub(crate) fn new(
        store: Arc<Store>,
        trainer: TrainerHandle,
        most_models: usize,
        tokenizer: Option<String>,
    ) -> Self {
        Tinker {
            store,
            trainer,
            futures: futures::Futures::default(),
            models: Mutex::default(),
            waiting: Mutex::default(),
            bodies: Places::new(BODIES),
            readers: Semaphore::new(READERS),
            heard: Mutex::default(),
            most_models,
            tokenizer,
        }
    }

    /// Asks or tells the records, aside from the threads of connections.
    async fn records<T: Send + 'static>(
        &self,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let store = Arc::clone(&self.store);
        aside(move || store.with(work)).await
    }

    /// The same of what frees room on the disk.
    async fn free<T: Send + 'static>(
        &self,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let store = Arc::clone(&self.store);
        aside(move || store.freeing(work)).await
    }

    /// A checkpoint's folder.
    fn folder(&self, path: &path::CheckpointPath) -> PathBuf {
        path.folder(self.store.folder())
    }

    fn models(&self) -> MutexGuard<'_, BTreeMap<String, Model>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for a pass to wait in.
    fn queue_room(&self, tenant: &str, tokens: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let room =
            waiting.entry(tenant.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(WAITING_TOKENS)));
        Arc::clone(room).try_acquire_many_owned(tokens as u32).map_err(|_| ApiError::busy())
    }

    /// A session was heard of.
    fn hear(&self, session: &str) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.insert(session.to_owned(), Instant::now());
    }

    /// Lets go of a model in training.
    fn unload(&self, model: &str) {
        self.models().remove(model);
        self.trainer.remove(model);
    }

    /// Makes sure that a session is a tenant's and goes on.
    async fn require_session(&self, session: &str, tenant: &Tenant) -> Result<(), ApiError> {
        let (id, name) = (session.to_owned(), tenant.name.clone());
        match self.records(move |all| records::session_ended(all, &id, &name)).await? {
            Some(false) => {
                self.hear(session);
                Ok(())
            }
            Some(true) => Err(ApiError::gone("this session has ended; begin another one")),
            None => Err(ApiError::absent("session_id", format!("there is no session `{session}`"))),
        }
    }

    /// Deletes what has expired.
    async fn sweep(&self, app: &App) -> Result<(), ApiError> {
        let swept = self.free(move |all| records::sweep(all, now(), checkpoints::KEPT_PASSING)).await?;
        for path in swept {
            runs::delete_files(app, self, &path).await?;
        }
        Ok(())
    }
}

/// Removes what a server that was killed had begun to write: checkpoints under hidden names, which nobody knows.
pub(crate) fn tidy(store: &Store) {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let runs = entries(&store.folder().join("tinker"));
    let kinds = runs.flat_map(|run| entries(&run.path()).collect::<Vec<_>>());
    for entry in kinds.flat_map(|kind| entries(&kind.path()).collect::<Vec<_>>()) {
        if entry.file_name().to_string_lossy().starts_with('.') {
            // What is left of it is tried again at the next start.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl App {
    /// The state of Tinker's API, where this server has it.
    fn tinker(&self) -> Result<&Tinker, ApiError> {
        let why = match self.store {
            None => "start it with `--state DIR`, where it keeps checkpoints",
            Some(_) => "start it with a `--training-memory` above 0",
        };
        self.tinker.as_ref().ok_or_else(|| ApiError::invalid(format!("this server trains nothing: {why}")))
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    seconds(SystemTime::now()) as i64
}

/// The routes below /api/v1.
pub(crate) fn router() -> Router<Arc<App>> {
    const CHECKPOINT: &str = "/training_runs/{run}/checkpoints/{kind}/{name}";
    let routes = Router::new()
        .route("/healthz", get(sessions::health))
        .route("/client/config", post(sessions::config))
        .route("/client/dynamic_config", post(sessions::dynamic_config))
        .route("/get_server_capabilities", get(sessions::capabilities))
        .route("/create_session", post(sessions::create))
        .route("/session_heartbeat", post(sessions::heartbeat))
        .route("/telemetry", post(sessions::telemetry))
        .route("/sessions", get(sessions::list))
        .route("/sessions/{session}", get(sessions::show))
        .route("/sessions/{session}/finish", post(sessions::finish))
        .route("/create_model", post(training::create))
        .route("/get_info", post(training::info))
        .route("/unload_model", post(training::unload))
        .route("/forward", post(training::forward))
        .route("/forward_backward", post(training::forward_backward))
        .route("/optim_step", post(training::step))
        .route("/save_weights", post(checkpoints::save))
        .route("/save_weights_for_sampler", post(checkpoints::save_for_sampler))
        .route("/load_weights", post(checkpoints::load))
        .route("/create_sampling_session", post(sampling::create))
        .route("/samplers/{sampler}", get(sampling::show))
        .route("/asample", post(sampling::sample))
        .route("/retrieve_future", post(futures::retrieve))
        .route("/cancel_future", post(futures::cancel))
        .route("/weights_info", post(runs::weights_info))
        .route("/training_runs", get(runs::list))
        .route("/training_runs/{run}", get(runs::show))
        .route("/training_runs/{run}/checkpoints", get(runs::checkpoints))
        .route(CHECKPOINT, delete(runs::remove))
        .route(&format!("{CHECKPOINT}/ttl"), put(runs::set_ttl))
        .route("/checkpoints", get(runs::all_checkpoints));
    Router::new().nest("/api/v1", routes)
}
