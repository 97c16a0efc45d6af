//! What is remembered of sessions, runs, checkpoints and samplers over restarts. Every question names the
//! tenant who asks, so that nobody is told of what is another's.

use rusqlite::{OptionalExtension, Params, Row, Transaction, params};
use serde_json::{Value, json};

use super::path::{CheckpointPath, Kind};
use super::trainer::Lora;

/// The tables.
pub(crate) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS tinker_sessions (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, created INTEGER NOT NULL, name TEXT, metadata TEXT, ended TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS tinker_runs (
    id TEXT PRIMARY KEY, session TEXT NOT NULL REFERENCES tinker_sessions (id), tenant TEXT NOT NULL,
    base TEXT NOT NULL, rank INTEGER NOT NULL, attention INTEGER NOT NULL, mlp INTEGER NOT NULL,
    head INTEGER NOT NULL, created INTEGER NOT NULL, used INTEGER NOT NULL, metadata TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS tinker_checkpoints (
    run TEXT NOT NULL REFERENCES tinker_runs (id), kind TEXT NOT NULL, name TEXT NOT NULL,
    tenant TEXT NOT NULL, created INTEGER NOT NULL, bytes INTEGER NOT NULL, expires INTEGER, metadata TEXT,
    is_passing INTEGER NOT NULL, PRIMARY KEY (run, kind, name)
) STRICT;
CREATE TABLE IF NOT EXISTS tinker_samplers (
    id TEXT PRIMARY KEY, session TEXT NOT NULL REFERENCES tinker_sessions (id), tenant TEXT NOT NULL, path TEXT
) STRICT;
";

type Result<T> = rusqlite::Result<T>;

/// A run as it is remembered.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) base: String,
    /// Without its seed.
    pub(super) lora: Lora,
}

/// A page of a list, and how many there are in all.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) items: Vec<Value>,
    pub(super) total: i64,
}

/// Which part of a list is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) offset: i64,
    pub(super) limit: i64,
}

fn metadata(row: &Row<'_>, column: &str) -> Result<Value> {
    let text: Option<String> = row.get(column)?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
}

pub(super) fn add_session(
    all: &Transaction<'_>,
    id: &str,
    tenant: &str,
    now: i64,
    name: Option<&str>,
    metadata: Option<&str>,
) -> Result<()> {
    let insert = "INSERT INTO tinker_sessions (id, tenant, created, name, metadata) VALUES (?, ?, ?, ?, ?)";
    all.execute(insert, params![id, tenant, now, name, metadata]).map(drop)
}

/// Whether a session is the tenant's, and if so whether it has ended.
pub(super) fn session_ended(all: &Transaction<'_>, id: &str, tenant: &str) -> Result<Option<bool>> {
    let query = "SELECT ended IS NOT NULL FROM tinker_sessions WHERE id = ? AND tenant = ?";
    all.query_row(query, [id, tenant], |row| row.get(0)).optional()
}

/// Ends a session; how it ended first stays.
pub(super) fn end_session(all: &Transaction<'_>, id: &str, tenant: &str, how: &str) -> Result<()> {
    let update = "UPDATE tinker_sessions SET ended = COALESCE(ended, ?) WHERE id = ? AND tenant = ?";
    all.execute(update, [how, id, tenant]).map(drop)
}

pub(super) fn session(all: &Transaction<'_>, id: &str, tenant: &str) -> Result<Option<Value>> {
    let ids = |table: &str| -> Result<Vec<String>> {
        let query = format!("SELECT id FROM {table} WHERE session = ? AND tenant = ? ORDER BY rowid");
        all.prepare(&query)?.query_map([id, tenant], |row| row.get(0))?.collect()
    };
    let (runs, samplers) = (ids("tinker_runs")?, ids("tinker_samplers")?);
    let query = "SELECT name, metadata FROM tinker_sessions WHERE id = ? AND tenant = ?";
    let told = |row: &Row<'_>| {
        let name: Option<String> = row.get("name")?;
        Ok(json!({
            "training_run_ids": runs, "sampler_ids": samplers, "display_name": name,
            "user_metadata": metadata(row, "metadata")?,
        }))
    };
    all.query_row(query, [id, tenant], told).optional()
}

pub(super) fn sessions(all: &Transaction<'_>, tenant: &str, span: Span) -> Result<Page> {
    let of = ("tinker_sessions WHERE tenant = ?1", "id", "created DESC, rowid DESC");
    list(all, of, params![tenant], span, |row| Ok(Value::from(row.get::<_, String>("id")?)))
}

/// Rows of `FROM ...` as values.
fn list(
    all: &Transaction<'_>,
    (from, columns, order): (&str, &str, &str),
    params: impl Params + Clone,
    Span { offset, limit }: Span,
    told: impl FnMut(&Row<'_>) -> Result<Value>,
) -> Result<Page> {
    let total = all.query_row(&format!("SELECT COUNT(*) FROM {from}"), params.clone(), |row| row.get(0))?;
    let query = format!("SELECT {columns} FROM {from} ORDER BY {order} LIMIT {limit} OFFSET {offset}");
    let items = all.prepare(&query)?.query_map(params, told)?.collect::<Result<_>>()?;
    Ok(Page { items, total })
}

pub(super) fn add_run(
    all: &Transaction<'_>,
    (id, session, tenant): (&str, &str, &str),
    run: &Run,
    now: i64,
    metadata: Option<&str>,
) -> Result<()> {
    let Lora { rank, attention, mlp, head, .. } = run.lora;
    let insert = "INSERT OR IGNORE INTO tinker_runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?9, ?9, ?10)";
    let rank = rank as i64;
    all.execute(insert, params![id, session, tenant, run.base, rank, attention, mlp, head, now, metadata])
        .map(drop)
}

pub(super) fn run(all: &Transaction<'_>, id: &str, tenant: &str) -> Result<Option<Run>> {
    let query = "SELECT * FROM tinker_runs WHERE id = ? AND tenant = ?";
    let read = |row: &Row<'_>| {
        let rank: i64 = row.get("rank")?;
        let (attention, mlp, head) = (row.get("attention")?, row.get("mlp")?, row.get("head")?);
        let lora = Lora { rank: rank as usize, seed: 0, attention, mlp, head };
        Ok(Run { base: row.get("base")?, lora })
    };
    all.query_row(query, [id, tenant], read).optional()
}

const RUN_COLUMNS: &str = "id, base, tenant, rank, metadata,
    strftime('%Y-%m-%dT%H:%M:%SZ', used, 'unixepoch') AS last";

fn told_run(all: &Transaction<'_>, row: &Row<'_>) -> Result<Value> {
    let (id, base): (String, String) = (row.get("id")?, row.get("base")?);
    let (tenant, rank, last): (String, i64, String) =
        (row.get("tenant")?, row.get("rank")?, row.get("last")?);
    let newest = |kind: Kind| -> Result<Value> {
        let of = (
            "tinker_checkpoints WHERE run = ?1 AND kind = ?2",
            CHECKPOINT_COLUMNS,
            "created DESC, rowid DESC",
        );
        let one = Span { offset: 0, limit: 1 };
        let page = list(all, of, params![id, kind.segment()], one, told_checkpoint)?;
        Ok(page.items.into_iter().next().unwrap_or_default())
    };
    Ok(json!({
        "training_run_id": id, "base_model": base, "model_owner": tenant, "is_lora": true, "corrupted": false,
        "lora_rank": rank, "last_request_time": last, "last_checkpoint": newest(Kind::Training)?,
        "last_sampler_checkpoint": newest(Kind::Sampler)?, "user_metadata": metadata(row, "metadata")?,
    }))
}

pub(super) fn shown_run(all: &Transaction<'_>, id: &str, tenant: &str) -> Result<Option<Value>> {
    let query = format!("SELECT {RUN_COLUMNS} FROM tinker_runs WHERE id = ? AND tenant = ?");
    all.query_row(&query, [id, tenant], |row| told_run(all, row)).optional()
}

pub(super) fn runs(all: &Transaction<'_>, tenant: &str, span: Span) -> Result<Page> {
    let of = ("tinker_runs WHERE tenant = ?1", RUN_COLUMNS, "used DESC, rowid DESC");
    list(all, of, params![tenant], span, |row| told_run(all, row))
}

const CHECKPOINT_COLUMNS: &str = "run, kind, name, bytes, metadata,
    strftime('%Y-%m-%dT%H:%M:%SZ', created, 'unixepoch') AS time,
    strftime('%Y-%m-%dT%H:%M:%SZ', expires, 'unixepoch') AS end";

fn path_of(row: &Row<'_>) -> Result<CheckpointPath> {
    let (run, kind, name): (String, String, String) = (row.get("run")?, row.get("kind")?, row.get("name")?);
    let kind = Kind::of_segment(&kind).unwrap_or(Kind::Training);
    Ok(CheckpointPath { run, kind, name })
}

fn told_checkpoint(row: &Row<'_>) -> Result<Value> {
    let path = path_of(row)?;
    let (bytes, time, end): (i64, String, Option<String>) =
        (row.get("bytes")?, row.get("time")?, row.get("end")?);
    Ok(json!({
        "checkpoint_id": path.id(), "checkpoint_type": path.kind.name(), "time": time,
        "tinker_path": path.to_string(), "size_bytes": bytes, "public": false, "expires_at": end,
        "user_metadata": metadata(row, "metadata")?,
    }))
}

/// What is told of a new checkpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct About {
    pub(super) bytes: i64,
    /// Seconds since 1970.
    pub(super) expires: Option<i64>,
    pub(super) metadata: Option<String>,
    /// Whether it has no name of a client's, and goes when newer ones come.
    pub(super) is_passing: bool,
}

pub(super) fn add_checkpoint(
    all: &Transaction<'_>,
    path: &CheckpointPath,
    tenant: &str,
    now: i64,
    about: &About,
) -> Result<()> {
    let insert = "INSERT OR REPLACE INTO tinker_checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let About { bytes, expires, metadata, is_passing } = about;
    let (run, kind, name) = (&path.run, path.kind.segment(), &path.name);
    all.execute(insert, params![run, kind, name, tenant, now, bytes, expires, metadata, is_passing])?;
    all.execute("UPDATE tinker_runs SET used = ? WHERE id = ?", params![now, run]).map(drop)
}

pub(super) fn has_checkpoint(
    all: &Transaction<'_>,
    path: &CheckpointPath,
    tenant: &str,
    now: i64,
) -> Result<bool> {
    let query = "SELECT EXISTS (SELECT 1 FROM tinker_checkpoints WHERE run = ? AND kind = ? AND name = ?
        AND tenant = ? AND (expires IS NULL OR expires > ?))";
    let (run, kind, name) = (&path.run, path.kind.segment(), &path.name);
    all.query_row(query, params![run, kind, name, tenant, now], |row| row.get(0))
}

/// Checkpoints of a tenant that are not passing ones, of one run or of all.
pub(super) fn checkpoints(
    all: &Transaction<'_>,
    tenant: &str,
    run: Option<&str>,
    span: Span,
) -> Result<Page> {
    let from = "tinker_checkpoints WHERE tenant = ?1 AND (?2 IS NULL OR run = ?2) AND NOT is_passing";
    let of = (from, CHECKPOINT_COLUMNS, "created DESC, rowid DESC");
    list(all, of, params![tenant, run], span, told_checkpoint)
}

/// Forgets a checkpoint; whether there was one.
pub(super) fn remove_checkpoint(all: &Transaction<'_>, path: &CheckpointPath, tenant: &str) -> Result<bool> {
    let delete = "DELETE FROM tinker_checkpoints WHERE run = ? AND kind = ? AND name = ? AND tenant = ?";
    let (run, kind, name) = (&path.run, path.kind.segment(), &path.name);
    Ok(all.execute(delete, params![run, kind, name, tenant])? > 0)
}

/// Sets when a checkpoint expires; whether there was one.
pub(super) fn set_expiry(
    all: &Transaction<'_>,
    path: &CheckpointPath,
    tenant: &str,
    expires: Option<i64>,
) -> Result<bool> {
    let update =
        "UPDATE tinker_checkpoints SET expires = ? WHERE run = ? AND kind = ? AND name = ? AND tenant = ?";
    let (run, kind, name) = (&path.run, path.kind.segment(), &path.name);
    Ok(all.execute(update, params![expires, run, kind, name, tenant])? > 0)
}

/// Forgets what has expired, and of each run the passing checkpoints but the newest `keep`; which these were.
pub(super) fn sweep(all: &Transaction<'_>, now: i64, keep: i64) -> Result<Vec<CheckpointPath>> {
    let delete = "DELETE FROM tinker_checkpoints WHERE expires <= ?1 OR rowid IN (
        SELECT rowid FROM (
            SELECT rowid, ROW_NUMBER() OVER (PARTITION BY run ORDER BY created DESC, rowid DESC) AS place
            FROM tinker_checkpoints WHERE is_passing
        ) WHERE place > ?2
    ) RETURNING run, kind, name";
    all.prepare(delete)?.query_map(params![now, keep], path_of)?.collect()
}

pub(super) fn add_sampler(
    all: &Transaction<'_>,
    (id, session, tenant): (&str, &str, &str),
    path: Option<&CheckpointPath>,
) -> Result<()> {
    let insert = "INSERT OR REPLACE INTO tinker_samplers VALUES (?, ?, ?, ?)";
    let path = path.map(CheckpointPath::to_string);
    all.execute(insert, params![id, session, tenant, path]).map(drop)
}

/// What a sampler samples from: a checkpoint, or the base.
pub(super) fn sampler(all: &Transaction<'_>, id: &str, tenant: &str) -> Result<Option<Option<String>>> {
    let query = "SELECT path FROM tinker_samplers WHERE id = ? AND tenant = ?";
    all.query_row(query, [id, tenant], |row| row.get(0)).optional()
}
