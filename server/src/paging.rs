//! Lists that are told a part at a time, as OpenAI tells them: `after` an id, at most `limit`.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ApiError;

/// Which part of a list is wanted.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Paging {
    /// The id that the part begins behind.
    pub(crate) after: Option<String>,
    limit: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Paging {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(paging) = Query::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::invalid("of `after` and `limit` each may be there once"))?;
        Ok(paging)
    }
}

impl Paging {
    /// How many entries, of `most`.
    pub(crate) fn limit(&self, most: usize) -> Result<usize, ApiError> {
        let Some(text) = &self.limit else { return Ok(most.min(20)) };
        let limit = text.parse().ok().filter(|limit| (1..=most).contains(limit));
        limit.ok_or_else(|| {
            ApiError::field("limit", format!("`limit` must be a whole number from 1 to {most}"))
        })
    }

    /// That there is nothing behind which the part could begin.
    pub(crate) fn lost(&self, kind: &str) -> ApiError {
        let id = self.after.as_deref().unwrap_or_default();
        ApiError::absent("after", format!("there is no {kind} `{id}`, or you have no access to it"))
    }
}

/// A part of a list, of whose entries there is one too many if more follow.
pub(crate) fn page(mut entries: Vec<Value>, limit: usize) -> Value {
    let has_more = entries.len() > limit;
    entries.truncate(limit);
    let id = |entry: Option<&Value>| entry.map_or(Value::Null, |entry| entry["id"].clone());
    let (first, last) = (id(entries.first()), id(entries.last()));
    json!({"object": "list", "data": entries, "has_more": has_more, "first_id": first, "last_id": last})
}
