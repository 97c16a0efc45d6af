//! The adapters that are there, by name: immutable generations, loaded once however many requests wait for
//! them, and gone from memory when others need the room.

mod name;
mod root;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Instant, SystemTime};

use infer::Adapter;
use tokio::sync::{Semaphore, watch};

use crate::error::{ApiError, ServerError};
use crate::tenants::Tenant;
use crate::words::Chat;
pub(crate) use name::is_name;
use root::Root;

/// Loads at a time: each takes memory that is not counted until it is done.
const LOADS: usize = 2;

/// An adapter as it came from its folder.
#[derive(Debug)]
pub struct LoadedAdapter {
    /// Its values, checked against the base.
    pub adapter: Arc<Adapter>,
    /// Its largest rank.
    pub rank: usize,
    /// What it takes of the memory.
    pub bytes: u64,
    /// How conversations are written for it, if not as for the base.
    pub chat: Option<Chat>,
}

/// Reads the adapter in a folder, or says why it cannot be served.
pub type Loader = dyn Fn(&Path) -> Result<LoadedAdapter, String> + Send + Sync;

/// What a name stands for from one replacement to the next. A request keeps the one it began with.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) name: String,
    /// Grows with everything that is loaded, whatever its name.
    pub(crate) number: u64,
    pub(crate) loaded: LoadedAdapter,
    pub(crate) created: SystemTime,
}

/// How an adapter is to be loaded over the API.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Conditions {
    /// Whether it may take the place of another.
    pub(crate) replace: bool,
    /// The generation whose place it is to take, 0 for none.
    pub(crate) expected: Option<u64>,
    /// Whether it stays in memory whatever happens; none: as the one whose place it takes.
    pub(crate) pinned: Option<bool>,
}

/// Why a name cannot be used.
#[derive(Clone, Debug)]
enum Refusal {
    Unknown,
    Broken(String),
    Replaced,
    Full,
}

impl Refusal {
    fn answer(self, name: &str) -> ApiError {
        match self {
            Refusal::Unknown => ApiError::no_model(name),
            Refusal::Broken(message) => {
                ApiError::field("model", format!("the adapter `{name}` cannot be loaded: {message}"))
            }
            Refusal::Replaced => ApiError::unavailable(format!(
                "the adapter `{name}` was replaced or taken away while it was loaded; ask again"
            )),
            Refusal::Full => ApiError::unavailable(format!(
                "there is no memory for the adapter `{name}` beside those that are in use or pinned"
            )),
        }
    }
}

type Outcome = Option<Result<Arc<Generation>, Refusal>>;

struct Entry {
    /// Which of all that ever were: one that is taken away and made again under its name is another one.
    serial: u64,
    path: PathBuf,
    /// The tenant that it belongs to; none: it is shared.
    owner: Option<String>,
    ready: Option<Arc<Generation>>,
    /// The generation that is there or was last, 0 before the first.
    number: u64,
    pinned: bool,
    used: Instant,
    requests: u64,
}

impl Entry {
    /// One that is not in memory.
    fn new(serial: u64, path: &Path, owner: Option<&str>) -> Self {
        let (path, owner) = (path.to_owned(), owner.map(str::to_owned));
        let used = Instant::now();
        Entry { serial, path, owner, ready: None, number: 0, pinned: false, used, requests: 0 }
    }

    /// What a load that was begun must find unchanged at its end, or it has read what is not there any more.
    fn version(&self) -> (u64, u64) {
        (self.serial, self.number)
    }

    /// It was asked for.
    fn count(&mut self) {
        self.used = Instant::now();
        self.requests += 1;
    }

    fn is_idle(&self) -> bool {
        self.ready.as_ref().is_some_and(|ready| Arc::strong_count(ready) == 1)
    }
}

#[derive(Default)]
struct Inner {
    last_number: u64,
    last_serial: u64,
    entries: BTreeMap<String, Entry>,
    loading: HashMap<String, watch::Receiver<Outcome>>,
    /// Replaced or unloaded, perhaps still in use.
    retired: Vec<Weak<Generation>>,
}

impl Inner {
    fn owner(&self, name: &str) -> Option<&str> {
        self.entries.get(name)?.owner.as_deref()
    }

    /// The entry of a name, made where it is missing.
    fn entry(&mut self, name: &str, path: &Path, owner: Option<&str>) -> &mut Entry {
        self.entries.entry(name.to_owned()).or_insert_with(|| {
            self.last_serial += 1;
            Entry::new(self.last_serial, path, owner)
        })
    }

    /// Remembers what requests may still use.
    fn retire(&mut self, ready: Option<Arc<Generation>>) {
        self.retired.extend(ready.map(|ready| Arc::downgrade(&ready)));
    }
}

/// What is told of an adapter.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The tenant that it belongs to; none: it is shared.
    pub(crate) owner: Option<String>,
    pub(crate) state: &'static str,
    /// The generation that is there or was last.
    pub(crate) generation: Option<u64>,
    /// Of one that is in memory.
    pub(crate) ready: Option<Ready>,
    pub(crate) pinned: bool,
    pub(crate) requests: u64,
    /// Seconds since it was last asked for.
    pub(crate) idle: Option<u64>,
}

/// What is told of an adapter in memory; the adapter itself would count as in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub(crate) rank: usize,
    pub(crate) bytes: u64,
    pub(crate) created: SystemTime,
}

impl Generation {
    fn told(&self) -> Ready {
        let LoadedAdapter { rank, bytes, .. } = self.loaded;
        Ready { rank, bytes, created: self.created }
    }
}

/// All adapters of a server.
pub(crate) struct Adapters {
    loader: Box<Loader>,
    root: Option<Root>,
    budget: Option<u64>,
    /// The base's name, which no adapter may have.
    base: String,
    inner: Mutex<Inner>,
    loads: Semaphore,
}

impl Adapters {
    /// `budget`: bytes that adapters may take of the memory.
    ///
    /// # Errors
    /// If the root is no folder.
    pub(crate) fn open(
        loader: Box<Loader>,
        root: Option<&Path>,
        budget: Option<u64>,
        base: String,
    ) -> Result<Self, ServerError> {
        let root = root.map(Root::open).transpose()?;
        Ok(Adapters { loader, root, budget, base, inner: Mutex::default(), loads: Semaphore::new(LOADS) })
    }

    /// Loads an adapter that was named at the start; it stays in memory.
    ///
    /// # Errors
    /// If its name is none or is taken, or it cannot be loaded.
    pub(crate) fn preload(&self, name: &str, path: &Path) -> Result<(), ServerError> {
        let refused = |message: String| ServerError::Adapter { name: name.into(), message };
        self.check_name(name).map_err(refused)?;
        if self.lock().entries.contains_key(name) {
            return Err(refused("the name is given twice".into()));
        }
        let loaded = (self.loader)(path).map_err(refused)?;
        let done = self.put(&mut self.lock(), name, path, loaded, true);
        done.map(drop).map_err(|_| {
            refused("there is no memory for it beside those before it; raise --adapter-memory".into())
        })
    }

    /// Makes a tenant's own adapter known: it and administrators see it, and it is loaded when it is asked
    /// for. The server gives the name, with something random in it, so that nobody learns others' names by
    /// trying. Looks into the root's folder.
    ///
    /// # Errors
    /// If the name is none or is taken.
    pub(crate) fn register(&self, name: &str, path: &Path, owner: &str) -> Result<(), String> {
        if !name::is_given(name) {
            return Err(format!("`{name}` cannot be the name of an adapter"));
        }
        let is_in_root = self.in_root(name).is_some();
        let mut inner = self.lock();
        if name == self.base || is_in_root || inner.entries.contains_key(name) {
            return Err(format!("the name `{name}` is taken"));
        }
        inner.entry(name, path, Some(owner));
        Ok(())
    }

    /// Forgets a tenant's own adapter, and says whether there was one. Requests that use it keep it; its
    /// files are the caller's.
    pub(crate) fn remove(&self, name: &str, owner: &str) -> bool {
        let mut inner = self.lock();
        match inner.entries.get(name) {
            Some(entry) if entry.owner.as_deref() == Some(owner) => {}
            _ => return false,
        }
        let entry = inner.entries.remove(name);
        inner.retire(entry.and_then(|entry| entry.ready));
        true
    }

    /// Forgets a tenant's own adapter, whosoever it is: the caller knows.
    pub(crate) fn forget(&self, name: &str) {
        let owner = self.lock().owner(name).map(str::to_owned);
        if let Some(owner) = owner {
            self.remove(name, &owner);
        }
    }

    /// The names of a tenant's own adapters that begin so.
    pub(crate) fn own(&self, owner: &str, prefix: &str) -> Vec<String> {
        let inner = self.lock();
        let entries = inner.entries.iter().filter(|(_, entry)| entry.owner.as_deref() == Some(owner));
        entries.map(|(name, _)| name.clone()).filter(|name| name.starts_with(prefix)).collect()
    }

    fn check_name(&self, name: &str) -> Result<(), String> {
        match name {
            name if name == self.base => Err("that is the name of the base".into()),
            name if is_name(name) => Ok(()),
            _ => Err(format!("a name has {}", name::RULE)),
        }
    }

    /// The adapter of this name as a tenant sees it, loaded if need be. Requests that come meanwhile wait for
    /// the same load, which goes on even if they leave.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        name: &str,
        tenant: &Tenant,
    ) -> Result<Arc<Generation>, ApiError> {
        let mut outcome = {
            let mut inner = self.lock();
            if !tenant.sees(name, inner.owner(name)) {
                return Err(ApiError::no_model(name));
            }
            if let Some(entry) = inner.entries.get_mut(name) {
                if let Some(ready) = entry.ready.clone() {
                    entry.count();
                    return Ok(ready);
                }
            } else if self.root.is_none() {
                return Err(ApiError::no_model(name));
            }
            match inner.loading.get(name) {
                Some(outcome) => outcome.clone(),
                None => self.begin_loading(&mut inner, name),
            }
        };
        let outcome = match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        let outcome = outcome.unwrap_or_else(|| Err(Refusal::Broken("loading it failed".into())));
        let ready = outcome.map_err(|refusal| refusal.answer(name))?;
        if let Some(entry) = self.lock().entries.get_mut(name) {
            entry.count();
        }
        Ok(ready)
    }

    fn begin_loading(self: &Arc<Self>, inner: &mut Inner, name: &str) -> watch::Receiver<Outcome> {
        let (done, outcome) = watch::channel(None);
        inner.loading.insert(name.to_owned(), outcome.clone());
        let (store, name) = (Arc::clone(self), name.to_owned());
        tokio::spawn(async move {
            let _ = done.send(Some(store.load_for_use(&name).await));
        });
        outcome
    }

    async fn load_for_use(self: &Arc<Self>, name: &str) -> Result<Arc<Generation>, Refusal> {
        let known = self.lock().entries.get(name).map(|entry| (entry.path.clone(), entry.version()));
        let (known, before) = known.unzip();
        let (store, wanted) = (Arc::clone(self), name.to_owned());
        let loaded = self
            .blocking(move || {
                let from_root = || store.root.as_ref()?.named(&wanted);
                let path = known.or_else(from_root).ok_or(Refusal::Unknown)?;
                // Where it lies is nobody's business.
                let words = |error: String| error.replace(&path.display().to_string(), &wanted);
                let loaded = (store.loader)(&path).map_err(|error| Refusal::Broken(words(error)))?;
                Ok((path, loaded))
            })
            .await
            .unwrap_or_else(|| Err(Refusal::Broken("loading it failed".into())));
        let mut inner = self.lock();
        inner.loading.remove(name);
        let (path, loaded) = loaded?;
        let now = inner.entries.get(name);
        if now.map(Entry::version) != before {
            // Somebody put another one there meanwhile, perhaps one that belongs to a tenant, or took it
            // away.
            return Err(Refusal::Replaced);
        }
        let pinned = now.is_some_and(|entry| entry.pinned);
        self.put(&mut inner, name, &path, loaded, pinned)
    }

    /// Loads an adapter that the API names by a path within the root.
    pub(crate) async fn load(
        self: &Arc<Self>,
        name: &str,
        path: &str,
        conditions: Conditions,
    ) -> Result<Arc<Generation>, ApiError> {
        self.check_name(name).map_err(|message| ApiError::field("lora_name", message))?;
        self.check(&self.lock(), name, conditions)?;
        // Not left half done where the client goes away.
        let (store, name, path) = (Arc::clone(self), name.to_owned(), path.to_owned());
        let load = tokio::spawn(async move {
            let inner = Arc::clone(&store);
            let loaded = store.blocking(move || inner.read(&path)).await;
            let (path, loaded) =
                loaded.unwrap_or_else(|| Err(ApiError::internal("loading the adapter failed")))?;
            let mut inner = store.lock();
            store.check(&inner, &name, conditions)?;
            let was_pinned = inner.entries.get(&name).is_some_and(|entry| entry.pinned);
            let pinned = conditions.pinned.unwrap_or(was_pinned);
            let put = store.put(&mut inner, &name, &path, loaded, pinned);
            put.map_err(|refusal| refusal.answer(&name))
        });
        load.await.unwrap_or_else(|_| Err(ApiError::internal("loading the adapter failed")))
    }

    fn read(&self, path: &str) -> Result<(PathBuf, LoadedAdapter), ApiError> {
        let refused = |message: String| ApiError::field("lora_path", message);
        let root = self.root.as_ref().ok_or_else(|| {
            refused("this server has no folder to load adapters from: start it with --adapter-root".into())
        })?;
        let path = root.within(path).map_err(refused)?;
        let loaded = (self.loader)(&path).map_err(refused)?;
        Ok((path, loaded))
    }

    /// Whether an adapter may be put under this name.
    fn check(&self, inner: &Inner, name: &str, conditions: Conditions) -> Result<(), ApiError> {
        let there = inner.entries.get(name);
        if there.is_some_and(|entry| entry.owner.is_some()) {
            let message = format!("the adapter `{name}` belongs to the tenant that trained it");
            return Err(ApiError::field("lora_name", message));
        }
        self.check_number(there, name, conditions.expected)?;
        match conditions.expected {
            None if !conditions.replace && there.is_some() => Err(ApiError::field(
                "lora_name",
                format!(
                    "the adapter `{name}` has its name here already; replace it with `load_inplace`: true"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Whether the generation that is there, or was last in memory, is the expected one.
    fn check_number(&self, there: Option<&Entry>, name: &str, expected: Option<u64>) -> Result<(), ApiError> {
        let number = there.map_or(0, |entry| entry.number);
        match expected {
            Some(expected) if expected != number => Err(ApiError::other_generation(format!(
                "the adapter `{name}` has generation {number}, not {expected} (0: none was loaded)"
            ))),
            _ => Ok(()),
        }
    }

    /// Takes an adapter out. Requests that use it keep it; one in the root, or that belongs to a tenant,
    /// comes back on its next use.
    pub(crate) fn unload(&self, name: &str, expected: Option<u64>) -> Result<(), ApiError> {
        let mut inner = self.lock();
        let entry = inner.entries.get_mut(name).ok_or_else(|| ApiError::no_model(name))?;
        self.check_number(Some(entry), name, expected)?;
        let ready = entry.ready.take();
        if entry.owner.is_none() {
            inner.entries.remove(name);
        }
        inner.retire(ready);
        Ok(())
    }

    /// Makes what was loaded the newest generation of a name, after those that were longest not asked for
    /// have left, as far as there is no room. If there is none then, nothing has changed.
    fn put(
        &self,
        inner: &mut Inner,
        name: &str,
        path: &Path,
        loaded: LoadedAdapter,
        pinned: bool,
    ) -> Result<Arc<Generation>, Refusal> {
        self.make_room(inner, name, loaded.bytes)?;
        inner.last_number += 1;
        let number = inner.last_number;
        let created = SystemTime::now();
        let made = Arc::new(Generation { name: name.to_owned(), number, loaded, created });
        let entry = inner.entry(name, path, None);
        (entry.path, entry.number, entry.pinned, entry.used) =
            (path.to_owned(), number, pinned, Instant::now());
        let replaced = entry.ready.replace(Arc::clone(&made));
        inner.retire(replaced);
        Ok(made)
    }

    fn make_room(&self, inner: &mut Inner, name: &str, bytes: u64) -> Result<(), Refusal> {
        inner.retired.retain(|retired| retired.strong_count() > 0);
        let Some(budget) = self.budget else { return Ok(()) };
        let of = |generation: &Generation| generation.loaded.bytes;
        let retired = inner.retired.iter().filter_map(Weak::upgrade).map(|generation| of(&generation));
        let mut total = retired.sum::<u64>() + bytes;
        // What is replaced is on its way out, unless requests use it.
        let mut leaving = Vec::new();
        for (other, entry) in &inner.entries {
            let Some(ready) = &entry.ready else { continue };
            if other == name && entry.is_idle() {
                continue;
            }
            total += of(ready);
            if other != name && entry.is_idle() && !entry.pinned {
                leaving.push((entry.used, other.clone(), of(ready)));
            }
        }
        leaving.sort();
        let mut leave = Vec::new();
        for (_, other, bytes) in leaving {
            if total <= budget {
                break;
            }
            total -= bytes;
            leave.push(other);
        }
        if total > budget {
            return Err(Refusal::Full);
        }
        for other in leave {
            if let Some(entry) = inner.entries.get_mut(&other) {
                entry.ready = None;
            }
        }
        Ok(())
    }

    /// Whether there is an adapter of this name for a tenant, in memory or not. Looks into the root's folder.
    pub(crate) fn has(&self, name: &str, tenant: &Tenant) -> bool {
        let (is_known, sees) = {
            let inner = self.lock();
            (inner.entries.contains_key(name), tenant.sees(name, inner.owner(name)))
        };
        sees && (is_known || self.in_root(name).is_some())
    }

    fn in_root(&self, name: &str) -> Option<PathBuf> {
        self.root.as_ref()?.named(name)
    }

    /// All adapters that a tenant sees, also those in the root that nobody has asked for yet. Looks into the
    /// root's folder.
    pub(crate) fn list(&self, tenant: &Tenant) -> Vec<Listed> {
        let in_root = self.root.as_ref().map(Root::adapters).unwrap_or_default();
        let inner = self.lock();
        let state = |name: &str, ready: bool| match (ready, inner.loading.contains_key(name)) {
            (true, _) => "warm",
            (false, true) => "loading",
            (false, false) => "cold",
        };
        let mut listed: BTreeMap<String, Listed> = in_root
            .into_iter()
            .filter(|(name, _)| *name != self.base)
            .map(|(name, path)| {
                let state = state(&name, false);
                let cold = Listed {
                    name: name.clone(),
                    path,
                    owner: None,
                    state,
                    generation: None,
                    ready: None,
                    pinned: false,
                    requests: 0,
                    idle: None,
                };
                (name, cold)
            })
            .collect();
        for (name, entry) in &inner.entries {
            let told = Listed {
                name: name.clone(),
                path: entry.path.clone(),
                owner: entry.owner.clone(),
                state: state(name, entry.ready.is_some()),
                generation: Some(entry.number).filter(|number| *number > 0),
                ready: entry.ready.as_deref().map(Generation::told),
                pinned: entry.pinned,
                requests: entry.requests,
                idle: Some(entry.used.elapsed().as_secs()),
            };
            listed.insert(name.clone(), told);
        }
        listed.retain(|name, adapter| tenant.sees(name, adapter.owner.as_deref()));
        listed.into_values().collect()
    }

    /// Runs what reads files where it may take its time. None if it panicked.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let _turn = self.loads.acquire().await.ok()?;
        tokio::task::spawn_blocking(work).await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
