//! GET /v1/audit, and what it tells: who changed what, and who was refused for want of a right. Never a
//! prompt, never a key.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use rusqlite::{Connection, params};
use serde::Serialize;
use serde_json::{Value, json};

use crate::app::{App, Caller, aside, seconds};
use crate::error::ApiError;
use crate::store::Store;
use crate::tenants::{Known, Quota};

/// The log, by time.
pub(crate) const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time INTEGER NOT NULL, -- seconds since 1970
        tenant TEXT,
        key TEXT, -- what the key is called
        action TEXT NOT NULL,
        what TEXT NOT NULL,
        outcome TEXT NOT NULL,
        peer TEXT
    ) STRICT;";

/// Entries that are kept.
const MOST: i64 = 100_000;
/// Seconds that an entry is kept.
const AGE: u64 = 90 * 24 * 3600;
/// Entries that may wait for the disk.
const WAITING: usize = 1024;
/// Refusals a minute that are written each by itself; beyond them they are counted.
const REFUSALS: u32 = 60;
/// Characters of what an action was about.
const LONGEST: usize = 256;
/// Entries of an answer, if nobody says how many, and at most.
const USUAL: usize = 100;
const LARGEST: usize = 1000;

/// An entry of the log.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Its number; later ones have larger numbers.
    pub id: i64,
    /// Seconds since 1970.
    pub time: i64,
    /// Who asked; none on the command line, or where no key was known.
    pub tenant: Option<String>,
    /// What the key is called.
    pub key: Option<String>,
    /// What was asked for, such as `adapter.load`.
    pub action: String,
    /// What it was about, such as an adapter's name.
    pub what: String,
    /// `done`, or why not.
    pub outcome: String,
    /// The address that the request came from: a client's, or a proxy's.
    pub peer: Option<String>,
}

impl Record {
    /// Of nobody, now.
    pub(crate) fn now(action: &str, what: &str, outcome: &str) -> Self {
        Record {
            id: 0,
            time: seconds(SystemTime::now()) as i64,
            tenant: None,
            key: None,
            action: action.to_owned(),
            what: what.chars().take(LONGEST).collect(),
            outcome: outcome.to_owned(),
            peer: None,
        }
    }
}

/// A request on its way: where it comes from, and whose it is once that is known.
#[derive(Debug)]
pub(crate) struct Asking {
    peer: IpAddr,
    known: OnceLock<Known>,
}

impl Asking {
    pub(crate) fn from(peer: IpAddr) -> Arc<Self> {
        Arc::new(Asking { peer, known: OnceLock::new() })
    }

    pub(crate) fn is_of(&self, known: Known) {
        // The first to ask is the only one: it is one request.
        let _ = self.known.set(known);
    }

    fn record(&self, action: &str, what: &str, outcome: &str) -> Record {
        let known = self.known.get();
        Record {
            tenant: known.map(|known| known.tenant.name.clone()),
            key: known.and_then(|known| known.key.as_deref().map(str::to_owned)),
            peer: Some(self.peer.to_string()),
            ..Record::now(action, what, outcome)
        }
    }
}

/// What writes the log, on a thread of its own; nothing where there is no state to keep it in.
pub(crate) struct Audit {
    writer: Option<Writer>,
    refusals: Quota,
    /// Entries that were left out since the last one that was written.
    missed: Arc<AtomicU64>,
}

struct Writer {
    records: SyncSender<Option<Record>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    /// # Errors
    /// If the system has no thread for it.
    pub(crate) fn start(store: Option<&Arc<Store>>) -> std::io::Result<Self> {
        let missed = Arc::new(AtomicU64::new(0));
        let writer = store.map(|store| {
            let (records, queue) = sync_channel(WAITING);
            let (store, missed) = (Arc::clone(store), Arc::clone(&missed));
            let work = move || write_all(&store, &queue, &missed);
            let thread = std::thread::Builder::new().name("audit".into()).spawn(work)?;
            std::io::Result::Ok(Writer { records, thread: Mutex::new(Some(thread)) })
        });
        Ok(Audit { writer: writer.transpose()?, refusals: Quota::new(Some(REFUSALS)), missed })
    }

    /// Notes what came of something that changes what is served or kept.
    pub(crate) fn note<T>(&self, asking: &Asking, action: &str, what: &str, done: &Result<T, ApiError>) {
        let outcome = done.as_ref().map_or_else(ApiError::told, |_| "done".to_owned());
        self.put(asking.record(action, what, &outcome));
    }

    /// Notes that a request was refused for want of a key or of a right.
    pub(crate) fn refused(&self, asking: &Asking, what: &str, status: StatusCode) {
        match self.refusals.take(1, Instant::now()) {
            Ok(()) => self.put(asking.record("refused", what, status.as_str())),
            Err(_) => drop(self.missed.fetch_add(1, Ordering::Relaxed)),
        }
    }

    fn put(&self, record: Record) {
        let Some(writer) = &self.writer else { return };
        if writer.records.try_send(Some(record)).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns when all is written.
    pub(crate) fn end(&self) {
        let Some(Writer { records, thread }) = &self.writer else { return };
        let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if records.send(None).is_ok() {
            // One that panicked has written what it could.
            let _ = thread.map(JoinHandle::join);
        }
    }
}

fn write_all(store: &Store, queue: &Receiver<Option<Record>>, missed: &AtomicU64) {
    while let Ok(Some(record)) = queue.recv() {
        let left_out = missed.swap(0, Ordering::Relaxed);
        // Where the disk is full there is nowhere to say so, and requests go on.
        let _ = store.with(|all| {
            write(all, &record)?;
            if left_out > 0 {
                write(all, &Record::now("left out", &format!("{left_out} entries"), "done"))?;
            }
            Ok(())
        });
    }
}

/// Writes an entry, and removes the oldest ones as far as they are too many or too old.
pub(crate) fn write(all: &Connection, record: &Record) -> rusqlite::Result<()> {
    let Record { time, tenant, key, action, what, outcome, peer, .. } = record;
    all.execute(
        "INSERT INTO audit (time, tenant, key, action, what, outcome, peer)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![time, tenant, key, action, what, outcome, peer],
    )?;
    all.execute("DELETE FROM audit WHERE id <= ?1", [all.last_insert_rowid() - MOST])?;
    // A few at a time: more than come.
    all.execute(
        "DELETE FROM audit WHERE time < ?1 AND id IN (SELECT id FROM audit ORDER BY id LIMIT 4)",
        [*time - AGE as i64],
    )?;
    Ok(())
}

/// The newest entries, or the newest of those with numbers below `before`, the newest first.
pub(crate) fn read(all: &Connection, last: usize, before: Option<i64>) -> rusqlite::Result<Vec<Record>> {
    let mut rows = all.prepare(
        "SELECT id, time, tenant, key, action, what, outcome, peer FROM audit
         WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
    )?;
    let last = i64::try_from(last).unwrap_or(i64::MAX);
    let records = rows.query_map([before.unwrap_or(i64::MAX), last], |row| {
        Ok(Record {
            id: row.get(0)?,
            time: row.get(1)?,
            tenant: row.get(2)?,
            key: row.get(3)?,
            action: row.get(4)?,
            what: row.get(5)?,
            outcome: row.get(6)?,
            peer: row.get(7)?,
        })
    })?;
    records.collect()
}

/// GET /v1/audit: the newest entries first; `limit`, and `before` a number for those before it.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    caller.require_admin()?;
    let store = Arc::clone(app.store()?);
    let (mut limit, mut before) = (USUAL, None);
    for (name, value) in uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')) {
        let number = || value.parse::<u32>().ok().filter(|number| *number > 0);
        let wrong =
            |most: usize| ApiError::field(name, format!("`{name}` must be a whole number from 1 to {most}"));
        match name {
            "limit" => {
                let number = number().map(|number| number as usize).filter(|number| *number <= LARGEST);
                limit = number.ok_or_else(|| wrong(LARGEST))?;
            }
            "before" => before = Some(i64::from(number().ok_or_else(|| wrong(u32::MAX as usize))?)),
            _ => {}
        }
    }
    let mut records = aside(move || store.with(|all| read(all, limit + 1, before))).await?;
    let has_more = records.len() > limit;
    records.truncate(limit);
    Ok(Json(json!({"object": "list", "data": records, "has_more": has_more})))
}
