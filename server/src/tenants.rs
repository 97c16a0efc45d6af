//! Who asks: keys belong to tenants, and a tenant sees and uses what is its own.

mod quota;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::http::{HeaderMap, header};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use crate::error::{ApiError, ServerError};
use quota::Quota;

/// What a file of keys says of a tenant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    tenant: String,
    key_sha256: Hashes,
    #[serde(default)]
    adapters: Vec<String>,
    #[serde(default = "one")]
    weight: f64,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u32>,
    #[serde(default)]
    admin: bool,
}

fn one() -> f64 {
    1.0
}

/// One hash, or several while a key is replaced by another.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Hashes {
    One(String),
    Several(Vec<String>),
}

/// Somebody with keys, adapters and quotas.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    /// What the engine calls it.
    pub(crate) owner: u64,
    /// Whether it may load and unload adapters.
    pub(crate) admin: bool,
    /// The shared ones that it may use; none: all of them.
    adapters: Option<BTreeSet<String>>,
    weight: f64,
    keys: Vec<[u8; 32]>,
    requests: Quota,
    tokens: Quota,
    places: OnceLock<Arc<Semaphore>>,
}

impl Tenant {
    /// Places for its requests, so many of them.
    pub(crate) fn places(&self, count: usize) -> &Arc<Semaphore> {
        self.places.get_or_init(|| Arc::new(Semaphore::new(count)))
    }

    /// Whoever asks where there are no keys.
    fn anybody() -> Self {
        Tenant {
            name: "default".into(),
            owner: 0,
            admin: true,
            adapters: None,
            weight: one(),
            keys: Vec::new(),
            requests: Quota::new(None),
            tokens: Quota::new(None),
            places: OnceLock::new(),
        }
    }

    /// Whether it sees and uses an adapter: its own ones, those of the shared ones that it was given, and as an
    /// administrator all. `owner`: the tenant that the adapter belongs to; none: it is shared.
    pub(crate) fn sees(&self, adapter: &str, owner: Option<&str>) -> bool {
        let is_given = || self.adapters.as_ref().is_none_or(|adapters| adapters.contains(adapter));
        self.admin || owner.map_or_else(is_given, |owner| owner == self.name)
    }

    /// Takes a request off the quotas, or says when to come again. Tokens count once they are known, so that a
    /// request may go beyond what is left, and the next one waits the longer.
    pub(crate) fn admit(&self) -> Result<(), ApiError> {
        let now = Instant::now();
        if let Err(seconds) = self.tokens.check(now) {
            return Err(ApiError::over_quota("the tokens of this key's quota are used up", seconds));
        }
        let message = "this key has made as many requests as it may";
        self.requests.take(1, now).map_err(|seconds| ApiError::over_quota(message, seconds))
    }

    /// Takes tokens off the quota.
    pub(crate) fn charge(&self, tokens: usize) {
        self.tokens.charge(tokens, Instant::now());
    }
}

/// All tenants of a server.
#[derive(Debug)]
pub struct Tenants {
    tenants: Vec<std::sync::Arc<Tenant>>,
    has_keys: bool,
}

impl Tenants {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.tenants.len()
    }

    /// Without keys: everybody may do everything.
    pub fn open_to_all() -> Self {
        Tenants { tenants: vec![Tenant::anybody().into()], has_keys: false }
    }

    /// Reads a file of keys, YAML or JSON: a list of `{tenant, key_sha256, adapters, weight,
    /// requests_per_minute, tokens_per_minute, admin}`.
    ///
    /// # Errors
    /// If it cannot be read, or does not say what it should.
    pub fn read(path: &Path) -> Result<Self, ServerError> {
        let refused = |message: String| ServerError::Keys { path: path.to_owned(), message };
        let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
        let written: Vec<Written> =
            serde_saphyr::from_str(&text).map_err(|error| refused(error.to_string()))?;
        if written.is_empty() {
            return Err(refused("there is no key in it, so nobody could use the server".into()));
        }
        let mut tenants: Vec<std::sync::Arc<Tenant>> = Vec::new();
        for (written, owner) in written.into_iter().zip(1..) {
            let name = written.tenant.clone();
            let tenant = tenant(written, owner)
                .map_err(|message| refused(format!("entry {owner} (tenant {name:?}): {message}")))?;
            if let Some(other) = tenants.iter().find(|other| clash(other, &tenant)) {
                let message = format!("tenants {:?} and {name:?} have a name or a key in common", other.name);
                return Err(refused(message));
            }
            tenants.push(tenant.into());
        }
        Ok(Tenants { tenants, has_keys: true })
    }

    /// Whether a key must be shown.
    pub fn has_keys(&self) -> bool {
        self.has_keys
    }

    /// What each owner of requests is to get of the engine beside the others, as far as it is not 1.
    pub fn weights(&self) -> impl Iterator<Item = (u64, f64)> + '_ {
        let weights = self.tenants.iter().map(|tenant| (tenant.owner, tenant.weight));
        weights.filter(|(_, weight)| *weight != one())
    }

    /// Whose key these headers show.
    pub(crate) fn identify(&self, headers: &HeaderMap) -> Result<std::sync::Arc<Tenant>, ApiError> {
        if !self.has_keys {
            return Ok(std::sync::Arc::clone(&self.tenants[0]));
        }
        let shown = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let key = match shown.and_then(|value| value.split_at_checked(7)) {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"Bearer ") => key,
            _ => return Err(ApiError::unauthorized("a key is needed: `Authorization: Bearer KEY`")),
        };
        let hash: [u8; 32] = Sha256::digest(key.trim_ascii()).into();
        // All are compared, and each to its end, so that the time tells nothing.
        let mut found = None;
        for tenant in &self.tenants {
            for known in &tenant.keys {
                if bool::from(known.ct_eq(&hash)) {
                    found = Some(tenant);
                }
            }
        }
        found.cloned().ok_or_else(|| ApiError::unauthorized("nobody has this key"))
    }
}

fn tenant(written: Written, owner: u64) -> Result<Tenant, String> {
    let Written { tenant: name, key_sha256, adapters, weight, .. } = written;
    if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
        return Err("a tenant's name has 1 to 128 characters that can be seen".into());
    }
    let hashes = match key_sha256 {
        Hashes::One(hash) => vec![hash],
        Hashes::Several(hashes) => hashes,
    };
    let keys: Vec<[u8; 32]> = hashes
        .iter()
        .map(|hash| digest(hash).ok_or("key_sha256 is the SHA-256 of a key, in 64 hexadecimal digits"))
        .collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Err("it has no key".into());
    }
    if !(weight.is_finite() && weight > 0.0) {
        return Err(format!("weight must be above 0, and is {weight}"));
    }
    let quotas = [written.requests_per_minute, written.tokens_per_minute];
    if quotas.contains(&Some(0)) {
        return Err("a quota of 0 would refuse everything; leave it out for none".into());
    }
    let adapters = (!adapters.iter().any(|name| name == "*")).then(|| adapters.into_iter().collect());
    let [requests, tokens] = quotas.map(Quota::new);
    let (admin, places) = (written.admin, OnceLock::new());
    Ok(Tenant { name, owner, admin, adapters, weight, keys, requests, tokens, places })
}

fn clash(one: &Tenant, other: &Tenant) -> bool {
    one.name == other.name || one.keys.iter().any(|key| other.keys.contains(key))
}

/// The bytes of 64 hexadecimal digits.
fn digest(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}
