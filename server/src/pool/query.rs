//! What stands behind the `?` of a request: each value is read with its range, and what is wrong is told by
//! its name.

use std::collections::BTreeMap;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;

use crate::error::ApiError;

/// Names with their values, each once.
pub(super) struct Asked(BTreeMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let asked = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Query(pairs) = asked.map_err(|_| ApiError::invalid("what stands behind `?` cannot be read"))?;
        let mut asked = BTreeMap::new();
        for (name, value) in pairs {
            if asked.insert(name.clone(), value).is_some() {
                return Err(ApiError::field(name.clone(), format!("`{name}` is there twice")));
            }
        }
        Ok(Asked(asked))
    }
}

impl Asked {
    /// Refuses names that are none of these.
    pub(super) fn only(self, known: &[&str]) -> Result<Self, ApiError> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(self),
            Some(name) => {
                let known = if known.is_empty() { "nothing".to_owned() } else { known.join("`, `") };
                let message = format!("there is no `{name}` here; there is `{known}`");
                Err(ApiError::field(name, message))
            }
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    pub(super) fn boolean(&self, name: &str) -> Result<bool, ApiError> {
        match self.0.get(name).map(String::as_str) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(ApiError::field(name, format!("`{name}` must be true or false"))),
        }
    }

    /// A whole number from `least` to `most`.
    pub(super) fn whole<N: FromStr + PartialOrd + std::fmt::Display + Copy>(
        &self,
        name: &str,
        least: N,
        most: N,
    ) -> Result<Option<N>, ApiError> {
        let Some(text) = self.0.get(name) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        let message = format!("`{name}` must be a whole number from {least} to {most}");
        number.map(Some).ok_or_else(|| ApiError::field(name, message))
    }
}
