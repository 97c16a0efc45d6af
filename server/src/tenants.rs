//! Who asks: keys belong to tenants, and a tenant sees and uses what is its own.

pub(crate) mod key;
mod keys;
mod quota;
mod terms;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use axum::http::{HeaderMap, header};

use crate::app::seconds;
use crate::error::{ApiError, ServerError};
use key::Key;
pub(crate) use keys::TABLES;
pub use keys::{Change, Keys, ListedKey, Made};
pub(crate) use quota::Quota;
use terms::Entry;
pub use terms::Terms;

/// Seconds between two notes of when keys were last used.
const NOTE_USES: u64 = 60;

/// Somebody with keys, adapters and quotas.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    /// What the engine calls it.
    pub(crate) owner: u64,
    /// Whether it sees everything, and may load and unload adapters.
    pub(crate) admin: bool,
    /// The shared ones that it may use; none: all of them.
    adapters: Option<BTreeSet<String>>,
    entry: Entry,
    /// When each of its keys was last used, in seconds since 1970, until that is noted; 0: not since.
    used: Vec<AtomicU64>,
    requests: Arc<Quota>,
    tokens: Arc<Quota>,
}

impl Tenant {
    /// `before`: the same tenant until now, whose quotas go on.
    fn new(entry: Entry, owner: u64, before: Option<&Tenant>) -> Self {
        let terms = &entry.terms;
        let is_all = terms.adapters.iter().any(|name| name == "*");
        let kept = |quota: fn(&Tenant) -> &Arc<Quota>, per_minute: Option<u32>| {
            let same = before.map(quota).filter(|quota| quota.is(per_minute)).cloned();
            same.unwrap_or_else(|| Arc::new(Quota::new(per_minute)))
        };
        Tenant {
            name: entry.name.clone(),
            owner,
            admin: terms.admin,
            adapters: (!is_all).then(|| terms.adapters.iter().cloned().collect()),
            used: entry.keys.iter().map(|_| AtomicU64::new(0)).collect(),
            requests: kept(|tenant| &tenant.requests, terms.requests_per_minute),
            tokens: kept(|tenant| &tenant.tokens, terms.tokens_per_minute),
            entry,
        }
    }

    /// Whoever asks where there are no keys.
    fn anybody() -> Self {
        let terms = Terms { adapters: vec!["*".into()], admin: true, ..Terms::default() };
        Tenant::new(Entry { name: "default".into(), terms, keys: Vec::new() }, 0, None)
    }

    /// Whether it sees and uses an adapter: its own ones, those of the shared ones that it was given, and as
    /// an administrator all. `owner`: the tenant that the adapter belongs to; none: it is shared.
    pub(crate) fn sees(&self, adapter: &str, owner: Option<&str>) -> bool {
        let is_given = || self.adapters.as_ref().is_none_or(|adapters| adapters.contains(adapter));
        self.admin || owner.map_or_else(is_given, |owner| owner == self.name)
    }

    /// Takes so many answers off the quotas, or says when to come again. Tokens count once they are known, so
    /// that a request may go beyond what is left, and the next one waits the longer.
    pub(crate) fn admit(&self, answers: usize) -> Result<(), ApiError> {
        let now = Instant::now();
        if let Some(most) = self.entry.terms.requests_per_minute.filter(|most| answers > *most as usize) {
            let message = format!("{answers} answers are more than the {most} that this key has in a minute");
            return Err(ApiError::invalid(message));
        }
        if let Err(seconds) = self.tokens.check(now) {
            return Err(ApiError::over_quota("the tokens of this key's quota are used up", seconds));
        }
        let message = "this key has asked for as many answers as it may";
        self.requests.take(answers, now).map_err(|seconds| ApiError::over_quota(message, seconds))
    }

    /// Takes tokens off the quota.
    pub(crate) fn charge(&self, tokens: usize) {
        self.tokens.charge(tokens, Instant::now());
    }
}

/// Who asks, and by which key.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) tenant: Arc<Tenant>,
    /// What the key is called; none where there are none.
    pub(crate) key: Option<Arc<str>>,
}

/// The key that these headers show as OpenAI's clients do: `Authorization: Bearer KEY`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
}

/// All tenants of a server, as they are now.
#[derive(Debug)]
pub struct Tenants {
    now: RwLock<Arc<Now>>,
    /// Where they come from, if they may change.
    stored: Option<Stored>,
}

#[derive(Debug)]
struct Now {
    tenants: Vec<Arc<Tenant>>,
    /// Whether a key must be shown.
    has_keys: bool,
    /// The number that the next new tenant gets.
    next: u64,
}

#[derive(Debug)]
struct Stored {
    keys: Keys,
    /// The version of the keys that was read last, and when uses were noted last.
    seen: Mutex<(Option<i64>, u64)>,
}

impl Now {
    /// What follows on this: a tenant that was there keeps its number, and one that had keys goes on asking
    /// for them.
    fn follow(&self, entries: Vec<Entry>, has_keys: bool) -> Self {
        let has_keys = has_keys || self.has_keys;
        if !has_keys {
            return Now::open_to_all();
        }
        let mut next = self.next;
        let tenants = entries.into_iter().map(|entry| {
            let before = self.tenants.iter().find(|tenant| tenant.name == entry.name && tenant.owner > 0);
            if let Some(same) = before.filter(|before| before.entry == entry) {
                return Arc::clone(same);
            }
            let owner = before.map_or(next, |before| before.owner);
            next = next.max(owner + 1);
            Arc::new(Tenant::new(entry, owner, before.map(Arc::as_ref)))
        });
        let tenants = tenants.collect();
        Now { tenants, has_keys, next }
    }

    fn open_to_all() -> Self {
        Now { tenants: vec![Tenant::anybody().into()], has_keys: false, next: 1 }
    }
}

impl Tenants {
    /// Without keys: everybody may do everything.
    pub fn open_to_all() -> Self {
        Tenants { now: RwLock::new(Now::open_to_all().into()), stored: None }
    }

    /// Reads a file of keys, YAML or JSON: a list of `{tenant, key_sha256, adapters, weight,
    /// requests_per_minute, tokens_per_minute, admin}`.
    ///
    /// # Errors
    /// If it cannot be read, or does not say what it should.
    pub fn read(path: &Path) -> Result<Self, ServerError> {
        let now = Now::open_to_all().follow(terms::read(path)?, true);
        Ok(Tenants { now: RwLock::new(now.into()), stored: None })
    }

    /// Those of a state folder, which may change while the server runs. As long as it never had a key,
    /// everybody may do everything.
    ///
    /// # Errors
    /// If the folder cannot be used.
    pub fn stored(folder: &Path) -> Result<Self, ServerError> {
        let stored = Stored { keys: Keys::open(folder)?, seen: Mutex::default() };
        let tenants = Tenants { stored: Some(stored), ..Tenants::open_to_all() };
        tenants.refresh()?;
        Ok(tenants)
    }

    /// Reads again what may have changed, and says whether it has. It takes its time: not on a thread of
    /// connections.
    pub(crate) fn refresh(&self) -> Result<bool, ServerError> {
        let Some(Stored { keys, seen }) = &self.stored else { return Ok(false) };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let time = seconds(SystemTime::now());
        if time >= seen.1 + NOTE_USES {
            self.note_uses(keys)?;
            seen.1 = time;
        }
        let version = keys.version()?;
        if seen.0 == Some(version) {
            return Ok(false);
        }
        let (entries, has_keys) = keys.entries()?;
        let next = self.now().follow(entries, has_keys);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = next.into();
        seen.0 = Some(version);
        Ok(true)
    }

    /// Whether it must be asked now and then whether there are others.
    pub(crate) fn may_change(&self) -> bool {
        self.stored.is_some()
    }

    fn note_uses(&self, keys: &Keys) -> Result<(), ServerError> {
        let now = self.now();
        let each = now.tenants.iter().flat_map(|tenant| tenant.entry.keys.iter().zip(&tenant.used));
        let uses = each.map(|(key, used)| (Arc::clone(&key.id), used.swap(0, Ordering::Relaxed)));
        let uses: HashMap<_, _> = uses.filter(|(_, time)| *time > 0).collect();
        if uses.is_empty() { Ok(()) } else { keys.note_uses(&uses) }
    }

    fn now(&self) -> Arc<Now> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.now().tenants.len()
    }

    /// Whether a key must be shown.
    pub fn has_keys(&self) -> bool {
        self.now().has_keys
    }

    /// What each owner of requests is to get of the engine beside the others.
    pub fn weights(&self) -> Vec<(u64, f64)> {
        let weight = |tenant: &Arc<Tenant>| (tenant.owner, tenant.entry.terms.weight);
        self.now().tenants.iter().map(weight).collect()
    }

    /// Whose key these headers show, as OpenAI's clients send it or as Tinker's does.
    pub(crate) fn identify(&self, headers: &HeaderMap) -> Result<Known, ApiError> {
        let now = self.now();
        if !now.has_keys {
            return Ok(Known { tenant: Arc::clone(&now.tenants[0]), key: None });
        }
        let bearer = bearer(headers);
        let shown = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()));
        let shown =
            shown.ok_or_else(|| ApiError::unauthorized("a key is needed: `Authorization: Bearer KEY`"))?;
        let hash = key::hash(shown.trim_ascii());
        // All are compared, and each to its end, so that the time tells nothing.
        let mut found = None;
        for tenant in &now.tenants {
            for (known, used) in tenant.entry.keys.iter().zip(&tenant.used) {
                if known.is(&hash) {
                    found = Some((tenant, known, used));
                }
            }
        }
        let (tenant, Key { id, .. }, used) =
            found.ok_or_else(|| ApiError::unauthorized("nobody has this key"))?;
        used.store(seconds(SystemTime::now()), Ordering::Relaxed);
        Ok(Known { tenant: Arc::clone(tenant), key: Some(Arc::clone(id)) })
    }
}
