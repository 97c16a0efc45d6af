//! A pool over HTTP: who may run what, when and why, for the command line and for a page at `/`.
//!
//! Everybody shows a token; [`caller`] says whose it is, and what of the pool its owner sees. Routes read the
//! pool as it stands, or what it remembers, and bring what is asked to the pool's own thread through its
//! [`Handle`](jobs::supervisor::Handle), which decides who may do what.

mod caller;
mod denied;
mod files;
mod jobs;
mod lending;
mod openapi;
mod page;
mod query;
mod rules;
mod status;
mod view;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::jobs::Pool;
use ::jobs::access::Who;
use ::jobs::supervisor::Handle;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;

use crate::error::{ApiError, ServerError};
use crate::listen::{Patience, Place, THREADS, accept, end, told};
use crate::routes::{no_method, no_route};
use crate::tenants::Quota;
use crate::tenants::key;

/// Requests whose work is done at once; further ones wait.
const AT_ONCE: usize = 32;
/// What tokens of a pool begin with.
const PREFIX: &str = "pool-";

/// How much a pool's server takes upon itself.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Jobs that one request may submit.
    pub jobs_per_request: usize,
    /// Jobs that a user may submit in a minute, all at once or one by one.
    pub jobs_per_minute: u32,
    /// Requests of a user in a minute.
    pub requests_per_minute: u32,
    /// Connections at once; further ones wait.
    pub connections: usize,
    /// Time for the head of a request, and for its body.
    pub read_time: Duration,
    /// Time in which a client must take some of what is written for it.
    pub write_time: Duration,
}

impl Default for PoolLimits {
    fn default() -> Self {
        PoolLimits {
            body_bytes: 8 << 20,
            jobs_per_request: 1000,
            jobs_per_minute: 1200,
            requests_per_minute: 6000,
            connections: 4096,
            read_time: Duration::from_secs(30),
            write_time: Duration::from_secs(60),
        }
    }
}

/// What a pool's server is made of.
pub struct PoolSetup {
    /// The pool.
    pub handle: Handle,
    /// Whoever shows this token is an admin whatever the policy says.
    pub root: String,
    /// What the log calls that one.
    pub name: String,
    /// Whether jobs may run any command, not only Luthier's own ones.
    pub any_command: bool,
}

/// A token that nobody has.
///
/// # Errors
/// If the system has no randomness.
pub fn new_token() -> Result<String, ServerError> {
    key::secret(PREFIX).map_err(|message| ServerError::System(std::io::Error::other(message)))
}

/// What the routes share.
struct PoolApp {
    handle: Handle,
    root: [u8; 32],
    root_name: String,
    any_command: bool,
    limits: PoolLimits,
    /// What each user may still ask for.
    quotas: Mutex<HashMap<String, Arc<Quotas>>>,
    status: status::Kept,
}

/// What one user may still ask for.
struct Quotas {
    requests: Quota,
    jobs: Quota,
}

impl PoolApp {
    fn quotas(&self, user: &str) -> Arc<Quotas> {
        let mut all = self.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(quotas) = all.get(user) {
            return Arc::clone(quotas);
        }
        let PoolLimits { requests_per_minute, jobs_per_minute, .. } = self.limits;
        let quotas = Quotas {
            requests: Quota::new(Some(requests_per_minute)),
            jobs: Quota::new(Some(jobs_per_minute)),
        };
        let quotas = Arc::new(quotas);
        all.insert(user.to_owned(), Arc::clone(&quotas));
        quotas
    }

    /// The projects whose jobs somebody sees; none: all.
    fn seen_by(&self, who: &Who, pool: &Pool) -> Option<Vec<String>> {
        let policy = pool.policy();
        if who.is_admin(policy) {
            return None;
        }
        let is_theirs = |name: &&str| who.belongs_to(name, policy);
        let projects = policy.projects.iter().map(|project| project.name.as_str());
        Some(projects.filter(is_theirs).map(str::to_owned).collect())
    }
}

/// Serves a pool until `stop` is set.
///
/// # Errors
/// If the system refuses threads or sockets.
pub fn serve_pool(place: Place, setup: PoolSetup, stop: &AtomicBool) -> Result<(), ServerError> {
    serve_pool_within(place, setup, PoolLimits::default(), stop)
}

/// The same with other limits than the usual ones.
///
/// # Errors
/// If the system refuses threads or sockets.
pub fn serve_pool_within(
    place: Place,
    setup: PoolSetup,
    limits: PoolLimits,
    stop: &AtomicBool,
) -> Result<(), ServerError> {
    let PoolSetup { handle, root, name, any_command } = setup;
    let app = Arc::new(PoolApp {
        handle,
        root: key::hash(root.trim().as_bytes()),
        root_name: name,
        any_command,
        limits,
        quotas: Mutex::default(),
        status: status::Kept::default(),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(AT_ONCE)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = place.listen()?;
        let connections = GracefulShutdown::new();
        let PoolLimits { connections: most, read_time, write_time, .. } = limits;
        let patience = Patience { connections: most, read_time, write_time };
        let router = TowerToHyperService::new(router(app));
        tokio::select! {
            () = accept(&listener, &connections, patience, |_| router.clone()) => {}
            () = told(stop) => {}
        }
        drop(listener);
        end(connections).await;
        Ok(())
    })
}

fn router(app: Arc<PoolApp>) -> Router {
    let router = routes().fallback(no_route).method_not_allowed_fallback(no_method);
    router.layer(DefaultBodyLimit::disable()).with_state(app)
}

/// Each of them is described in pool/openapi.json.
fn routes() -> Router<Arc<PoolApp>> {
    Router::new()
        .route("/pool/v1/status", get(status::status))
        .route("/pool/v1/samples", get(status::samples))
        .route("/pool/v1/policy", get(rules::policy).put(rules::apply))
        .route("/pool/v1/me", get(rules::me))
        .route("/pool/v1/jobs", get(jobs::list).post(jobs::submit))
        .route("/pool/v1/jobs/{id}", get(jobs::retrieve))
        .route("/pool/v1/jobs/{id}/why", get(jobs::why))
        .route("/pool/v1/jobs/{id}/log", get(files::log))
        .route("/pool/v1/jobs/{id}/metrics", get(files::metrics))
        .route("/pool/v1/jobs/{id}/cancel", post(jobs::cancel))
        .route("/pool/v1/jobs/{id}/hold", post(jobs::hold))
        .route("/pool/v1/jobs/{id}/release", post(jobs::release))
        .route("/pool/v1/jobs/{id}/priority", post(jobs::prioritize))
        .route("/pool/v1/evictions", get(rules::evictions))
        .route("/pool/v1/audit", get(rules::audit))
        .route("/pool/v1/users", get(rules::users).post(rules::add_user))
        .route("/pool/v1/users/{name}", delete(rules::remove_user))
        .route("/pool/v1/speed", get(rules::speed).put(rules::learn))
        .route("/pool/v1/openapi.json", get(openapi::document))
        .route("/", get(page::index))
        .route("/pool.js", get(page::script))
        .route("/job.js", get(page::job))
        .route("/common.js", get(crate::page::common))
        .route("/style.css", get(crate::page::style))
        .route("/docs", get(crate::openapi::docs))
        .route("/docs.js", get(crate::openapi::script))
        .route("/openapi.json", get(openapi::document))
}

/// What cannot be told, in the server's words.
fn unreadable(error: &::jobs::store::StoreError) -> ApiError {
    ApiError::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_route_is_described_and_nothing_else() {
        let document = include_str!("pool/openapi.json");
        crate::routes::tests::hold(&super::routes(), document, "server/src/pool/openapi.json");
    }
}
