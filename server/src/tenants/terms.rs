//! What a tenant may do, and how a file of keys says it.

use std::path::Path;

use serde::Deserialize;

use super::key::Key;
use crate::error::ServerError;

/// Shares of the engine's turns, beside a tenant with 1. Beyond these the queue would be one tenant's.
const WEIGHTS: std::ops::RangeInclusive<f64> = 0.001..=1000.0;

/// What a tenant may do.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// The shared adapters that it may use; `*`: all of them.
    pub adapters: Vec<String>,
    /// How many turns it gets beside a tenant with 1, where requests wait.
    pub weight: f64,
    /// Answers that it may ask for in a minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in a minute.
    pub tokens_per_minute: Option<u32>,
    /// Whether it sees everything, and changes what is served.
    pub admin: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Terms {
            adapters: Vec::new(),
            weight: 1.0,
            requests_per_minute: None,
            tokens_per_minute: None,
            admin: false,
        }
    }
}

impl Terms {
    /// Refuses what would not work, and says why.
    pub(super) fn check(&self) -> Result<(), String> {
        if !WEIGHTS.contains(&self.weight) {
            let (least, most) = WEIGHTS.into_inner();
            return Err(format!("weight must be from {least} to {most}, and is {}", self.weight));
        }
        if [self.requests_per_minute, self.tokens_per_minute].contains(&Some(0)) {
            return Err("a quota of 0 would refuse everything; leave it out for none".into());
        }
        Ok(())
    }
}

/// A tenant as a file or the server's state has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) terms: Terms,
    pub(super) keys: Vec<Key>,
}

/// What a file of keys says of a tenant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    tenant: String,
    key_sha256: Texts,
    adapters: Option<Texts>,
    weight: Option<f64>,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u32>,
    #[serde(default)]
    admin: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum Texts {
    One(String),
    Several(Vec<String>),
}

impl Texts {
    fn list(self) -> Vec<String> {
        match self {
            Texts::One(text) => vec![text],
            Texts::Several(texts) => texts,
        }
    }
}

/// Reads a file of keys, YAML or JSON: a list of `{tenant, key_sha256, adapters, weight, requests_per_minute,
/// tokens_per_minute, admin}`.
///
/// # Errors
/// If it cannot be read, or does not say what it should.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, ServerError> {
    let refused = |message: String| ServerError::Keys { path: path.to_owned(), message };
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let written: Vec<Written> = serde_saphyr::from_str(&text).map_err(|error| refused(error.to_string()))?;
    if written.is_empty() {
        return Err(refused("there is no key in it, so nobody could use the server".into()));
    }
    let mut entries: Vec<Entry> = Vec::new();
    for (written, place) in written.into_iter().zip(1..) {
        let name = written.tenant.clone();
        let entry = entry(written)
            .map_err(|message| refused(format!("entry {place} (tenant {name:?}): {message}")))?;
        if let Some(other) = entries.iter().find(|other| clash(other, &entry)) {
            let message = format!("tenants {:?} and {name:?} have a name or a key in common", other.name);
            return Err(refused(message));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(written: Written) -> Result<Entry, String> {
    let Written { tenant: name, key_sha256, adapters, weight, .. } = written;
    check_name(&name)?;
    let keys = key_sha256.list().iter().map(|hash| Key::of_hash(hash)).collect::<Option<Vec<_>>>();
    let keys = keys.ok_or("key_sha256 is the SHA-256 of a key, in 64 hexadecimal digits")?;
    if keys.is_empty() {
        return Err("it has no key".into());
    }
    let terms = Terms {
        adapters: adapters.map(Texts::list).unwrap_or_default(),
        weight: weight.unwrap_or(1.0),
        requests_per_minute: written.requests_per_minute,
        tokens_per_minute: written.tokens_per_minute,
        admin: written.admin,
    };
    terms.check()?;
    Ok(Entry { name, terms, keys })
}

/// Refuses what cannot be a tenant's name.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    match name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
        true => Err("a tenant's name has 1 to 128 characters that can be seen".into()),
        false => Ok(()),
    }
}

fn clash(one: &Entry, other: &Entry) -> bool {
    one.name == other.name || one.keys.iter().any(|key| other.keys.contains(key))
}
