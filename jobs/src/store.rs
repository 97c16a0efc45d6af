//! What a pool remembers: its state and every event since, and what happened to each job. One SQLite file.
//!
//! Events are written before anything follows from them, so the state is what the scheduler makes of the last
//! snapshot and the events behind it, whatever was killed when.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::Millis;
use crate::job::{Exit, JobId, Outcome, Phase, Spec, StopReason};
use crate::policy::Policy;
use crate::pool::{Action, Event, Pool};

const SCHEMA: i64 = 1;
/// The file, in the folder.
const FILE: &str = "pool.db";
/// Decisions between two snapshots.
const SNAPSHOT_EVERY: u64 = 256;
/// How long samples are kept, in milliseconds.
const KEEP_SAMPLES: Millis = 14 * 24 * 3_600_000;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS snapshot (
        one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, pool TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, at INTEGER NOT NULL, event TEXT);
    CREATE TABLE IF NOT EXISTS jobs (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL, project TEXT NOT NULL, user TEXT NOT NULL, spec TEXT NOT NULL,
        submitted INTEGER NOT NULL, ended INTEGER, outcome TEXT, evictions INTEGER NOT NULL DEFAULT 0,
        expected_start INTEGER, expected_end INTEGER, group_name TEXT);
    CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (ended);
    CREATE TABLE IF NOT EXISTS attempts (
        job INTEGER NOT NULL, number INTEGER NOT NULL, started INTEGER NOT NULL, placement TEXT NOT NULL,
        told INTEGER, reason TEXT, ended INTEGER, exit TEXT, lost_steps INTEGER,
        PRIMARY KEY (job, number)) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS attempts_by_stop ON attempts (told) WHERE reason IS NOT NULL;
    CREATE TABLE IF NOT EXISTS samples (at INTEGER NOT NULL, sample TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS samples_by_time ON samples (at);
    CREATE TABLE IF NOT EXISTS audit (
        number INTEGER PRIMARY KEY, at INTEGER NOT NULL, user TEXT NOT NULL, deed TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS users (
        name TEXT PRIMARY KEY, hash BLOB NOT NULL, created INTEGER NOT NULL, revoked INTEGER);
    CREATE TABLE IF NOT EXISTS speeds (what TEXT PRIMARY KEY, rate REAL NOT NULL, measured INTEGER NOT NULL);
";

/// What cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or file cannot be used.
    #[error("{}: {message}", path.display())]
    Folder {
        /// It.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The database says no.
    #[error("the pool's state cannot be kept: {0}")]
    Database(#[from] rusqlite::Error),
    /// What was kept cannot be understood.
    #[error("the pool's state is damaged: {0}")]
    Damaged(String),
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub id: JobId,
    /// What was submitted.
    pub spec: Spec,
    /// When.
    pub submitted: Millis,
    /// When it ended.
    pub ended: Option<Millis>,
    /// How.
    pub outcome: Option<Outcome>,
    /// How often it was stopped for others.
    pub evictions: u32,
    /// When it was expected to start, as said when it was submitted.
    pub expected_start: Option<Millis>,
    /// When it was expected to end, as said when it was submitted.
    pub expected_end: Option<Millis>,
    /// What was submitted together has a name.
    pub group: Option<String>,
    /// Each of its starts.
    pub attempts: Vec<AttemptRecord>,
}

/// What became of one start of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// From 1.
    pub number: u32,
    /// When it started.
    pub started: Millis,
    /// Where.
    pub placement: crate::Placement,
    /// When it was told to stop.
    pub told: Option<Millis>,
    /// Why.
    pub reason: Option<StopReason>,
    /// When it ended.
    pub ended: Option<Millis>,
    /// How.
    pub exit: Option<Exit>,
    /// Steps that were computed and not saved; `None` if nobody knows.
    pub lost_steps: Option<u64>,
}

/// What was first expected of a job that has ended, and what came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// When it was submitted.
    pub submitted: Millis,
    /// When it was expected to start.
    pub expected_start: Option<Millis>,
    /// When it did.
    pub started: Option<Millis>,
    /// When it was expected to end.
    pub expected_end: Option<Millis>,
    /// When it did.
    pub ended: Option<Millis>,
}

/// A job that was told to stop for another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvictionRecord {
    /// The job that was stopped.
    pub job: JobId,
    /// What people call it.
    pub name: String,
    /// Its project.
    pub project: String,
    /// When it was told.
    pub at: Millis,
    /// Why, and for whom.
    pub reason: StopReason,
    /// The project of the job that gets the room.
    pub by_project: Option<String>,
    /// Steps that were computed and not saved; `None` if nobody knows, or not yet.
    pub lost_steps: Option<u64>,
}

impl Forecast {
    /// By how much forecasts of starts and of ends were off, in the median, whichever way. Nothing of none.
    #[must_use]
    pub fn median_errors(forecasts: &[Forecast]) -> (Option<Millis>, Option<Millis>) {
        let median = |of: fn(&Forecast) -> Option<(Millis, Millis)>| {
            let pairs = forecasts.iter().filter_map(of);
            let mut errors: Vec<Millis> = pairs.map(|(expected, came)| expected.abs_diff(came)).collect();
            errors.sort_unstable();
            errors.get(errors.len() / 2).copied()
        };
        (median(|of| of.expected_start.zip(of.started)), median(|of| of.expected_end.zip(of.ended)))
    }
}

/// One line of the log of who did what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// When.
    pub at: Millis,
    /// Who.
    pub user: String,
    /// What, in words.
    pub deed: String,
}

/// A user whom the pool knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserRecord {
    /// Its name.
    pub name: String,
    /// When it was added.
    pub created: Millis,
    /// When its token was taken back.
    pub revoked: Option<Millis>,
}

/// The memory of one pool; one process has it at a time.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    connection: Connection,
    number: u64,
    since_snapshot: u64,
    _lock: File,
}

impl Store {
    /// Opens a folder, and makes it if it is missing.
    ///
    /// # Errors
    /// If another process has it, it cannot be written to, or a newer program wrote it.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let refused = |message: String| StoreError::Folder { path: folder.to_owned(), message };
        fs::create_dir_all(folder).map_err(|error| refused(error.to_string()))?;
        let lock = File::create(folder.join("pool.lock")).map_err(|error| refused(error.to_string()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(refused("another pool uses it".into())),
            Err(TryLockError::Error(error)) => return Err(refused(error.to_string())),
        }
        let connection = connect(folder)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version > SCHEMA {
            return Err(refused(format!("a newer program wrote {FILE}; use that one")));
        }
        connection.execute_batch(TABLES)?;
        connection.pragma_update(None, "user_version", SCHEMA)?;
        let number = connection
            .query_row(
                "SELECT MAX(number) FROM (SELECT number FROM events UNION ALL SELECT number FROM snapshot)",
                [],
                |row| row.get::<_, Option<i64>>(0),
            )?
            .unwrap_or(0);
        Ok(Store {
            folder: folder.to_owned(),
            connection,
            number: number as u64,
            since_snapshot: 0,
            _lock: lock,
        })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A second connection, for whoever only reads.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn reader(&self) -> Result<Reader, StoreError> {
        Ok(Reader { connection: connect(&self.folder)? })
    }

    /// The pool as it was when the last event had been written; a new one under `policy`, if there is none.
    ///
    /// # Errors
    /// If what was kept is damaged, or `policy` is needed and wrong.
    pub fn load(&mut self, policy: Option<&Policy>, now: Millis) -> Result<Pool, StoreError> {
        let damaged = |error: &dyn std::fmt::Display| StoreError::Damaged(error.to_string());
        let kept: Option<(i64, String)> = self
            .connection
            .query_row("SELECT number, pool FROM snapshot", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((number, pool)) = kept else {
            let policy = policy.cloned().unwrap_or_default();
            let pool = Pool::new(policy, now).map_err(|error| damaged(&error))?;
            self.snapshot(&pool)?;
            return Ok(pool);
        };
        let mut pool: Pool = serde_json::from_str(&pool).map_err(|error| damaged(&error))?;
        let mut rows =
            self.connection.prepare("SELECT at, event FROM events WHERE number > ?1 ORDER BY number")?;
        let mut rows = rows.query([number])?;
        while let Some(row) = rows.next()? {
            let (at, event): (i64, Option<String>) = (row.get(0)?, row.get(1)?);
            match event {
                Some(event) => {
                    let event: Event = serde_json::from_str(&event).map_err(|error| damaged(&error))?;
                    pool.accept(event, at as u64).map_err(|error| damaged(&error))?;
                }
                None => drop(pool.decide(at as u64)),
            }
        }
        Ok(pool)
    }

    /// Writes a decision down: the events before it, what followed, and who wanted it. All of it or nothing.
    ///
    /// # Errors
    /// If the disk is full or the file is damaged; nothing is written then.
    pub fn write(&mut self, step: &Step<'_>, pool: &Pool) -> Result<(), StoreError> {
        let all = self.connection.transaction()?;
        let mut number = self.number;
        for event in step.events {
            number += 1;
            let event =
                serde_json::to_string(event).map_err(|error| StoreError::Damaged(error.to_string()))?;
            all.prepare_cached("INSERT INTO events VALUES (?1, ?2, ?3)")?.execute(params![
                number as i64,
                step.at as i64,
                event
            ])?;
        }
        number += 1;
        all.prepare_cached("INSERT INTO events VALUES (?1, ?2, NULL)")?
            .execute(params![number as i64, step.at as i64])?;
        for event in step.events {
            record_event(&all, event, step)?;
        }
        for action in step.actions {
            record_action(&all, action, step.at, pool)?;
        }
        for (user, deed) in step.deeds {
            all.prepare_cached("INSERT INTO audit (at, user, deed) VALUES (?1, ?2, ?3)")?
                .execute(params![step.at as i64, user, deed])?;
        }
        all.commit()?;
        self.number = number;
        self.since_snapshot += 1;
        if self.since_snapshot >= SNAPSHOT_EVERY {
            self.snapshot(pool)?;
        }
        Ok(())
    }

    /// Writes the whole state down, so that the events before it are not needed any more.
    ///
    /// # Errors
    /// If the disk is full or the file is damaged.
    pub fn snapshot(&mut self, pool: &Pool) -> Result<(), StoreError> {
        let text = serde_json::to_string(pool).map_err(|error| StoreError::Damaged(error.to_string()))?;
        let all = self.connection.transaction()?;
        all.execute("INSERT OR REPLACE INTO snapshot VALUES (1, ?1, ?2)", params![self.number as i64, text])?;
        all.execute("DELETE FROM events WHERE number <= ?1", [self.number as i64])?;
        all.commit()?;
        self.since_snapshot = 0;
        Ok(())
    }

    /// A number for a job that no job ever had.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn next_job(&self) -> Result<JobId, StoreError> {
        let last: Option<i64> =
            self.connection.query_row("SELECT MAX(id) FROM jobs", [], |row| row.get(0))?;
        Ok(JobId(last.unwrap_or(0) as u64 + 1))
    }

    /// Notes how a job was expected to go.
    ///
    /// # Errors
    /// If the disk is full or the file is damaged.
    pub fn expect(&self, id: JobId, start: Option<Millis>, end: Option<Millis>) -> Result<(), StoreError> {
        let set =
            "UPDATE jobs SET expected_start = ?2, expected_end = ?3 WHERE id = ?1 AND expected_start IS NULL";
        self.connection.prepare_cached(set)?.execute(params![
            id.0 as i64,
            start.map(|n| n as i64),
            end.map(|n| n as i64)
        ])?;
        Ok(())
    }

    /// Notes a sample of the pool, and forgets those that are too old.
    ///
    /// # Errors
    /// If the disk is full or the file is damaged.
    pub fn sample(&self, at: Millis, sample: &str) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT INTO samples VALUES (?1, ?2)")?
            .execute(params![at as i64, sample])?;
        let old = at.saturating_sub(KEEP_SAMPLES);
        self.connection.prepare_cached("DELETE FROM samples WHERE at < ?1")?.execute([old as i64])?;
        Ok(())
    }

    /// Adds a user, or gives one a new token, told by its hash.
    ///
    /// # Errors
    /// If the disk is full or the file is damaged.
    pub fn add_user(&self, name: &str, hash: &[u8], now: Millis) -> Result<(), StoreError> {
        let add = "INSERT OR REPLACE INTO users VALUES (?1, ?2, ?3, NULL)";
        self.connection.execute(add, params![name, hash, now as i64])?;
        Ok(())
    }

    /// Takes a user's token back. Tells whether there was one.
    ///
    /// # Errors
    /// If the disk is full or the file is damaged.
    pub fn revoke_user(&self, name: &str, now: Millis) -> Result<bool, StoreError> {
        let revoke = "UPDATE users SET revoked = ?2 WHERE name = ?1 AND revoked IS NULL";
        Ok(self.connection.execute(revoke, params![name, now as i64])? > 0)
    }

    /// Remembers how fast something was measured to be.
    ///
    /// # Errors
    /// If the disk is full or the file is damaged.
    pub fn learn(&self, what: &str, rate: f64, now: Millis) -> Result<(), StoreError> {
        let add = "INSERT OR REPLACE INTO speeds VALUES (?1, ?2, ?3)";
        self.connection.execute(add, params![what, rate, now as i64])?;
        Ok(())
    }
}

/// One decision to be written down.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// When.
    pub at: Millis,
    /// What happened before it.
    pub events: &'a [Event],
    /// What follows.
    pub actions: &'a [Action],
    /// Who wanted what.
    pub deeds: &'a [(String, String)],
    /// Of jobs that are submitted together, their name.
    pub groups: &'a [(JobId, String)],
    /// Of jobs that exited: steps that were lost.
    pub lost: &'a [(JobId, Option<u64>)],
}

fn connect(folder: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(folder.join(FILE))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(connection)
}

fn text<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn record_event(all: &Transaction<'_>, event: &Event, step: &Step<'_>) -> rusqlite::Result<()> {
    match event {
        Event::Submitted { id, spec } => {
            let group = step.groups.iter().find(|(of, _)| of == id).map(|(_, name)| name);
            let add = "INSERT INTO jobs (id, name, project, user, spec, submitted, group_name) VALUES (?1, \
                       ?2, ?3, ?4, ?5, ?6, ?7)";
            all.prepare_cached(add)?.execute(params![
                id.0 as i64,
                spec.name,
                spec.project,
                spec.user,
                text(spec),
                step.at as i64,
                group
            ])?;
        }
        Event::Exited { id, attempt, exit } => {
            let lost = step.lost.iter().find(|(of, _)| of == id).and_then(|(_, lost)| *lost);
            let set = "UPDATE attempts SET ended = ?3, exit = ?4, lost_steps = ?5 WHERE job = ?1 AND number \
                       = ?2 AND ended IS NULL";
            all.prepare_cached(set)?.execute(params![
                id.0 as i64,
                attempt,
                step.at as i64,
                text(exit),
                lost.map(|n| n as i64)
            ])?;
        }
        Event::Prioritized { id, priority } => {
            let set = "UPDATE jobs SET spec = json_set(spec, '$.priority', ?2) WHERE id = ?1";
            all.prepare_cached(set)?.execute(params![id.0 as i64, priority])?;
        }
        _ => {}
    }
    Ok(())
}

fn record_action(all: &Transaction<'_>, action: &Action, at: Millis, pool: &Pool) -> rusqlite::Result<()> {
    match action {
        Action::Start { id, attempt, placement } => {
            let add =
                "INSERT OR REPLACE INTO attempts (job, number, started, placement) VALUES (?1, ?2, ?3, ?4)";
            all.prepare_cached(add)?.execute(params![id.0 as i64, attempt, at as i64, text(placement)])?;
        }
        Action::Stop { id, attempt, reason } => {
            let set = "UPDATE attempts SET told = ?3, reason = ?4 WHERE job = ?1 AND number = ?2";
            all.prepare_cached(set)?.execute(params![id.0 as i64, attempt, at as i64, text(reason)])?;
            if let Some(job) = pool.jobs().get(id) {
                all.prepare_cached("UPDATE jobs SET evictions = ?2 WHERE id = ?1")?
                    .execute(params![id.0 as i64, job.evictions])?;
            }
        }
        Action::Ended { id, outcome } => {
            let set = "UPDATE jobs SET ended = ?2, outcome = ?3 WHERE id = ?1";
            all.prepare_cached(set)?.execute(params![id.0 as i64, at as i64, text(outcome)])?;
        }
    }
    Ok(())
}

/// Reads what a pool remembers, beside whoever writes.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
}

/// Which records are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Which {
    /// Of this project alone.
    pub project: Option<String>,
    /// Of these projects alone, if they are said.
    pub among: Option<Vec<String>>,
    /// Of this user alone.
    pub user: Option<String>,
    /// Of this group alone.
    pub group: Option<String>,
    /// Those that have ended, too.
    pub ended: bool,
    /// At most so many, the newest first.
    pub limit: u32,
}

impl Reader {
    /// The records of jobs, the newest first.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn records(&self, which: &Which) -> Result<Vec<Record>, StoreError> {
        let find = "SELECT id FROM jobs WHERE (?1 IS NULL OR project = ?1) AND (?2 IS NULL OR user = ?2)
            AND (?3 IS NULL OR group_name = ?3) AND (?4 OR ended IS NULL)
            AND (?6 IS NULL OR project IN (SELECT value FROM json_each(?6))) ORDER BY id DESC LIMIT ?5";
        let mut find = self.connection.prepare_cached(find)?;
        let Which { project, user, group, ended, limit, among } = which;
        let among = among.as_ref().map(text);
        let ids =
            find.query_map(params![project, user, group, ended, limit, among], |row| row.get::<_, i64>(0))?;
        let ids: Vec<i64> = ids.collect::<Result<_, _>>()?;
        ids.into_iter().filter_map(|id| self.record(JobId(id as u64)).transpose()).collect()
    }

    /// What became of one job.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn record(&self, id: JobId) -> Result<Option<Record>, StoreError> {
        let find = "SELECT spec, submitted, ended, outcome, evictions, expected_start, expected_end, \
                    group_name FROM jobs WHERE id = ?1";
        let row = self.connection.prepare_cached(find)?.query_row([id.0 as i64], |row| {
            Ok((
                row.get::<_, String>(0)?,
                time(row.get(1)?).unwrap_or(0),
                time(row.get(2)?),
                row.get::<_, Option<String>>(3)?,
                row.get::<_, u32>(4)?,
                time(row.get(5)?),
                time(row.get(6)?),
                row.get::<_, Option<String>>(7)?,
            ))
        });
        let Some((spec, submitted, ended, outcome, evictions, expected_start, expected_end, group)) =
            row.optional()?
        else {
            return Ok(None);
        };
        let outcome = outcome.as_deref().map(read).transpose()?;
        let attempts = self.attempts(id)?;
        let spec = read(&spec)?;
        Ok(Some(Record {
            id,
            spec,
            submitted,
            ended,
            outcome,
            evictions,
            expected_start,
            expected_end,
            group,
            attempts,
        }))
    }

    fn attempts(&self, id: JobId) -> Result<Vec<AttemptRecord>, StoreError> {
        let find = "SELECT number, started, placement, told, reason, ended, exit, lost_steps FROM attempts \
                    WHERE job = ?1 ORDER BY number";
        let mut find = self.connection.prepare_cached(find)?;
        let mut rows = find.query([id.0 as i64])?;
        let mut attempts = Vec::new();
        while let Some(row) = rows.next()? {
            let (placement, reason, exit): (String, Option<String>, Option<String>) =
                (row.get(2)?, row.get(4)?, row.get(6)?);
            attempts.push(AttemptRecord {
                number: row.get(0)?,
                started: time(row.get(1)?).unwrap_or(0),
                placement: read(&placement)?,
                told: time(row.get(3)?),
                reason: reason.as_deref().map(read).transpose()?,
                ended: time(row.get(5)?),
                exit: exit.as_deref().map(read).transpose()?,
                lost_steps: time(row.get(7)?),
            });
        }
        Ok(attempts)
    }

    /// How far first forecasts were off for jobs that have started and ended, the newest first: what was
    /// expected and what came, of starts and ends, all in milliseconds since the epoch.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn forecasts(&self, limit: u32) -> Result<Vec<Forecast>, StoreError> {
        let find = "SELECT submitted, expected_start,
                (SELECT MIN(started) FROM attempts WHERE job = id), expected_end, ended
            FROM jobs WHERE ended IS NOT NULL AND expected_start IS NOT NULL AND outcome = '\"done\"'
            ORDER BY ended DESC LIMIT ?1";
        let mut find = self.connection.prepare_cached(find)?;
        let rows = find.query_map([limit], |row| {
            Ok(Forecast {
                submitted: time(row.get(0)?).unwrap_or(0),
                expected_start: time(row.get(1)?),
                started: time(row.get(2)?),
                expected_end: time(row.get(3)?),
                ended: time(row.get(4)?),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Samples from a time on, oldest first, as they were written.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn samples(&self, since: Millis) -> Result<Vec<String>, StoreError> {
        let mut find =
            self.connection.prepare_cached("SELECT sample FROM samples WHERE at >= ?1 ORDER BY at")?;
        let rows = find.query_map([since as i64], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// At most `most` samples from a time on, evenly apart, oldest first, as they were written.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn samples_apart(&self, since: Millis, most: u32) -> Result<Vec<String>, StoreError> {
        let count = "SELECT COUNT(*) FROM samples WHERE at >= ?1";
        let count: i64 =
            self.connection.prepare_cached(count)?.query_row([since as i64], |row| row.get(0))?;
        // Rows are numbered as they come; old ones go from the front.
        let each = (count as u64).div_ceil(u64::from(most.max(1))).max(1);
        let find = "SELECT sample FROM samples WHERE at >= ?1 AND rowid % ?2 = 0 ORDER BY at";
        let mut find = self.connection.prepare_cached(find)?;
        let rows = find.query_map([since as i64, each as i64], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Jobs that were told to stop for others, the newest first. `among`: those alone of which these projects
    /// have the one or the other.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn evictions(&self, among: Option<&[String]>, limit: u32) -> Result<Vec<EvictionRecord>, StoreError> {
        let find = "SELECT a.job, j.name, j.project, a.told, a.reason, b.project, a.lost_steps
            FROM attempts a JOIN jobs j ON j.id = a.job LEFT JOIN jobs b ON b.id = json_extract(a.reason, '$.by')
            WHERE a.reason IS NOT NULL AND json_extract(a.reason, '$.by') IS NOT NULL AND (?1 IS NULL
                OR j.project IN (SELECT value FROM json_each(?1)) OR b.project IN (SELECT value FROM json_each(?1)))
            ORDER BY a.told DESC, a.job DESC LIMIT ?2";
        let mut find = self.connection.prepare_cached(find)?;
        let mut rows = find.query(params![among.map(|among| text(&among)), limit])?;
        let mut evictions = Vec::new();
        while let Some(row) = rows.next()? {
            evictions.push(EvictionRecord {
                job: JobId(row.get::<_, i64>(0)? as u64),
                name: row.get(1)?,
                project: row.get(2)?,
                at: time(row.get(3)?).unwrap_or(0),
                reason: read(&row.get::<_, String>(4)?)?,
                by_project: row.get(5)?,
                lost_steps: time(row.get(6)?),
            });
        }
        Ok(evictions)
    }

    /// Who did what, the newest first.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn audit(&self, limit: u32) -> Result<Vec<AuditRecord>, StoreError> {
        let find = "SELECT at, user, deed FROM audit ORDER BY number DESC LIMIT ?1";
        let mut find = self.connection.prepare_cached(find)?;
        let rows = find.query_map([limit], |row| {
            Ok(AuditRecord { at: time(row.get(0)?).unwrap_or(0), user: row.get(1)?, deed: row.get(2)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// All users.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn users(&self) -> Result<Vec<UserRecord>, StoreError> {
        let mut find =
            self.connection.prepare_cached("SELECT name, created, revoked FROM users ORDER BY name")?;
        let rows = find.query_map([], |row| {
            Ok(UserRecord {
                name: row.get(0)?,
                created: time(row.get(1)?).unwrap_or(0),
                revoked: time(row.get(2)?),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The user of a token, by the token's hash.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn user(&self, hash: &[u8]) -> Result<Option<String>, StoreError> {
        let find = "SELECT name FROM users WHERE hash = ?1 AND revoked IS NULL";
        Ok(self.connection.prepare_cached(find)?.query_row([hash], |row| row.get(0)).optional()?)
    }

    /// How fast something was measured to be.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn speed(&self, what: &str) -> Result<Option<f64>, StoreError> {
        let find = "SELECT rate FROM speeds WHERE what = ?1";
        Ok(self.connection.prepare_cached(find)?.query_row([what], |row| row.get(0)).optional()?)
    }
}

fn time(value: Option<i64>) -> Option<Millis> {
    value.map(|n| n as u64)
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Damaged(error.to_string()))
}

/// Whether a job has left its phase of waiting, for whoever shows it in one word.
#[must_use]
pub fn word(phase: &Phase) -> &'static str {
    match phase {
        Phase::Held => "held",
        Phase::Waiting { .. } => "waiting",
        Phase::Promised { .. } => "promised",
        Phase::Running { .. } => "running",
        Phase::Stopping { .. } => "stopping",
    }
}
