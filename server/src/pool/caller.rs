//! Who asks a pool: the owner of the token that the request shows.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use jobs::access::Who;
use jobs::store::StoreError;
use serde::de::DeserializeOwned;
use subtle::ConstantTimeEq;

use crate::app::{aside, read_body};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::pool::{PoolApp, Quotas, unreadable};
use crate::tenants::{bearer, key};

/// What is told to everybody without a token that counts, so that it tells nothing.
const NO_TOKEN: &str = "a token of this pool is needed: `Authorization: Bearer TOKEN`";

/// Who asks, and what it may still ask for.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) who: Who,
    quotas: Arc<Quotas>,
}

impl FromRequestParts<Arc<PoolApp>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<PoolApp>) -> Result<Self, ApiError> {
        let shown = bearer(&parts.headers).ok_or_else(|| ApiError::unauthorized(NO_TOKEN))?;
        let hash = key::hash(shown.trim_ascii());
        let who = match bool::from(app.root.ct_eq(&hash)) {
            true => Who { name: app.root_name.clone(), is_root: true },
            false => {
                let reading = Arc::clone(app);
                let find = move || reading.handle.read(|reader| reader.user(&hash));
                let name = aside(move || find().map_err(|error| unreadable(&error))).await?;
                Who { name: name.ok_or_else(|| ApiError::unauthorized(NO_TOKEN))?, is_root: false }
            }
        };
        let quotas = app.quotas(&who.name);
        let message = "you have asked for as much as you may in a minute";
        let taken = quotas.requests.take(1, Instant::now());
        taken.map_err(|seconds| ApiError::over_quota(message, seconds))?;
        Ok(Caller { who, quotas })
    }
}

impl Caller {
    /// Refuses whoever is no admin.
    pub(super) fn require_admin(&self, app: &PoolApp, what: &str) -> Result<(), ApiError> {
        match self.who.is_admin(app.handle.pool().policy()) {
            true => Ok(()),
            false => Err(ApiError::forbidden(format!("only admins may {what}"))),
        }
    }

    /// Takes so many jobs off what it may submit, or says when to come again.
    pub(super) fn take_jobs(&self, count: usize) -> Result<(), ApiError> {
        let message = "you have submitted as many jobs as you may in a minute";
        let taken = self.quotas.jobs.take(count, Instant::now());
        taken.map_err(|seconds| ApiError::over_quota(message, seconds))
    }
}

/// The body of a request, an object.
pub(super) struct Body(pub(super) Fields);

impl FromRequest<Arc<PoolApp>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<PoolApp>) -> Result<Self, ApiError> {
        let bytes = read_body(request, app.limits.body_bytes, app.limits.read_time).await?;
        Fields::parse(&bytes).map(Body)
    }
}

/// Reads a value as what it should be; the field that is wrong is named by its path below `at`.
pub(super) fn read<T: DeserializeOwned>(at: &str, value: serde_json::Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let below = error.path().to_string();
        let field = match (at, below.as_str()) {
            (at, ".") => at.to_owned(),
            ("", below) => below.to_owned(),
            (at, below) => format!("{at}.{below}"),
        };
        ApiError::field(field.clone(), format!("`{field}`: {}", error.inner()))
    })
}

impl PoolApp {
    /// Reads what the pool remembers, where that holds up nobody.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&jobs::store::Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let app = Arc::clone(self);
        aside(move || app.handle.read(read).map_err(|error| unreadable(&error))).await
    }
}
