//! The table of jobs, and what happened to each.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{OptionalExtension, Row, Transaction, named_params, params};
use serde_json::{Map, Value, json};

use super::{Plan, Setting, Task};
use crate::app::seconds;
use crate::files;
use crate::store::Store;

/// The tables of this part. What a client may not see of a job is not in its row's `value`.
pub(crate) const TABLES: &str = "CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    status TEXT NOT NULL,
    model TEXT NOT NULL,
    suffix TEXT NOT NULL,
    training_file TEXT NOT NULL,
    validation_file TEXT,
    settings TEXT NOT NULL,
    rate REAL NOT NULL,
    metadata TEXT NOT NULL,
    plan TEXT,
    created INTEGER NOT NULL,
    begun INTEGER,
    finished INTEGER,
    expected INTEGER,
    tokens INTEGER,
    result_file TEXT,
    has_model INTEGER NOT NULL DEFAULT 0,
    error TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS job_events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    created INTEGER NOT NULL,
    level TEXT NOT NULL,
    message TEXT NOT NULL,
    step INTEGER,
    data TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_unfinished ON jobs (number) WHERE finished IS NULL;
CREATE INDEX IF NOT EXISTS job_events_of ON job_events (job, number);";

/// Begins the names of folders that are about to be deleted.
pub(super) const HIDDEN: &str = ".";
/// Events of a job that tell what steps came to; beyond that they are thinned.
const MOST_METRICS: i64 = 4000;

/// How a job stands, in OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Validating,
    Queued,
    Running,
    Paused,
    Succeeded,
    Failed,
    Cancelled,
}

const STATUSES: [(Status, &str); 7] = [
    (Status::Validating, "validating_files"),
    (Status::Queued, "queued"),
    (Status::Running, "running"),
    (Status::Paused, "paused"),
    (Status::Succeeded, "succeeded"),
    (Status::Failed, "failed"),
    (Status::Cancelled, "cancelled"),
];

impl Status {
    pub(crate) fn word(self) -> &'static str {
        STATUSES.iter().find(|(status, _)| *status == self).map_or("", |(_, word)| word)
    }

    /// All in which something is still to come of a job.
    pub(crate) const UNFINISHED: [Status; 4] =
        [Status::Validating, Status::Queued, Status::Running, Status::Paused];

    /// Whether nothing more comes of it.
    pub(crate) fn has_ended(self) -> bool {
        matches!(self, Status::Succeeded | Status::Failed | Status::Cancelled)
    }
}

impl ToSql for Status {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.word().into())
    }
}

impl FromSql for Status {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let word = value.as_str()?;
        let found = STATUSES.iter().find(|(_, known)| *known == word);
        found.map(|(status, _)| *status).ok_or(FromSqlError::InvalidType)
    }
}

/// A row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) number: i64,
    pub(crate) id: String,
    pub(crate) tenant: String,
    pub(crate) status: Status,
    pub(crate) model: String,
    pub(crate) suffix: String,
    pub(crate) training_file: String,
    pub(crate) validation_file: Option<String>,
    /// Triples of field, key and value.
    settings: Vec<(String, String, Value)>,
    pub(crate) rate: f64,
    metadata: Value,
    plan: Option<Plan>,
    created: i64,
    begun: Option<i64>,
    finished: Option<i64>,
    expected: Option<i64>,
    tokens: Option<i64>,
    result_file: Option<String>,
    /// Whether the result is served.
    pub(crate) has_model: bool,
    error: Option<String>,
}

/// A job that is new.
pub(crate) struct New<'a> {
    pub(crate) id: &'a str,
    pub(crate) tenant: &'a str,
    pub(crate) model: &'a str,
    pub(crate) suffix: &'a str,
    pub(crate) training_file: &'a str,
    pub(crate) validation_file: Option<&'a str>,
    pub(crate) settings: &'a [Setting],
    pub(crate) rate: f64,
    pub(crate) metadata: &'a BTreeMap<String, String>,
}

/// The folder of all jobs' folders.
pub(super) fn folder(store: &Store) -> PathBuf {
    store.folder().join("jobs")
}

pub(crate) fn now() -> i64 {
    seconds(SystemTime::now()) as i64
}

fn plan_value(plan: &Plan) -> Value {
    let Plan { epochs, batch_size, learning_rate, steps, seed } = plan;
    json!({
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "steps": steps,
        "seed": seed,
    })
}

fn plan_of(value: &Value) -> Option<Plan> {
    Some(Plan {
        epochs: value["epochs"].as_u64()?,
        batch_size: value["batch_size"].as_u64()? as usize,
        learning_rate: value["learning_rate"].as_f64()?,
        steps: value["steps"].as_u64()?,
        seed: value["seed"].as_u64()?,
    })
}

impl Job {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let json = |name: &str| -> rusqlite::Result<Value> {
            let text: Option<String> = row.get(name)?;
            Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
        };
        Ok(Job {
            number: row.get("number")?,
            id: row.get("id")?,
            tenant: row.get("tenant")?,
            status: row.get("status")?,
            model: row.get("model")?,
            suffix: row.get("suffix")?,
            training_file: row.get("training_file")?,
            validation_file: row.get("validation_file")?,
            settings: serde_json::from_value(json("settings")?).unwrap_or_default(),
            rate: row.get("rate")?,
            metadata: json("metadata")?,
            plan: plan_of(&json("plan")?),
            created: row.get("created")?,
            begun: row.get("begun")?,
            finished: row.get("finished")?,
            expected: row.get("expected")?,
            tokens: row.get("tokens")?,
            result_file: row.get("result_file")?,
            has_model: row.get("has_model")?,
            error: row.get("error")?,
        })
    }

    /// What the result is called.
    pub(crate) fn result(&self) -> String {
        let short = &self.id[self.id.len().saturating_sub(8)..];
        format!("ft:{}:{}:{short}", self.model, self.suffix)
    }

    /// What a checkpoint of it is called.
    pub(crate) fn checkpoint(&self, step: u64) -> String {
        format!("{}:ckpt-step-{step}", self.result())
    }

    /// Its run's folder.
    pub(crate) fn folder(&self, store: &Store) -> PathBuf {
        folder(store).join(&self.id)
    }

    /// What its folder is called while it is deleted.
    pub(super) fn hidden(&self, store: &Store) -> PathBuf {
        folder(store).join(format!("{HIDDEN}{}", self.id))
    }

    /// What is trained; none if its files are gone.
    pub(crate) fn task(&self, store: &Store, all: &Transaction<'_>) -> rusqlite::Result<Option<Task>> {
        let mut names = Vec::new();
        let mut path = |id: &str| -> rusqlite::Result<Option<PathBuf>> {
            let Some(file) = files::find(all, &self.tenant, id)? else { return Ok(None) };
            names.push((file.path(store), file.name.clone()));
            Ok(Some(file.path(store)))
        };
        let Some(training) = path(&self.training_file)? else { return Ok(None) };
        let validation = match &self.validation_file {
            Some(id) => match path(id)? {
                Some(path) => Some(path),
                None => return Ok(None),
            },
            None => None,
        };
        let setting = |(field, key, value): &(String, String, Value)| Setting {
            field: field.clone(),
            key: key.clone(),
            value: value.clone(),
        };
        Ok(Some(Task {
            folder: self.folder(store),
            training,
            validation,
            names,
            settings: self.settings.iter().map(setting).collect(),
            rate: self.rate,
            stop: Arc::new(AtomicBool::new(false)),
        }))
    }

    /// What a client is told of it.
    pub(crate) fn value(&self) -> Value {
        let plan = self.plan.as_ref();
        let hyperparameters = json!({
            "n_epochs": plan.map_or(json!("auto"), |plan| json!(plan.epochs)),
            "batch_size": plan.map_or(json!("auto"), |plan| json!(plan.batch_size)),
            "learning_rate_multiplier": self.rate,
        });
        let error = |why: &String| json!({"code": "invalid_job", "message": why, "param": null});
        let chosen: Map<String, Value> =
            self.settings.iter().map(|(_, key, value)| (key.clone(), value.clone())).collect();
        json!({
            "id": self.id, "object": "fine_tuning.job", "model": self.model, "created_at": self.created,
            "finished_at": self.finished,
            "fine_tuned_model": self.has_model.then(|| self.result()),
            "organization_id": self.tenant,
            "result_files": self.result_file.iter().collect::<Vec<_>>(),
            "status": self.status.word(),
            "validation_file": self.validation_file, "training_file": self.training_file,
            "hyperparameters": hyperparameters,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            "trained_tokens": self.tokens,
            "error": self.error.as_ref().map(error),
            "seed": plan.map(|plan| plan.seed),
            "estimated_finish": if self.status.has_ended() { None } else { self.expected },
            "integrations": [], "metadata": self.metadata, "user_provided_suffix": self.suffix,
            // What OpenAI's has not.
            "started_at": self.begun, "learning_rate": plan.map(|plan| plan.learning_rate),
            "steps": plan.map(|plan| plan.steps), "settings": chosen,
        })
    }
}

/// A tenant's job.
pub(crate) fn find(all: &Transaction<'_>, tenant: &str, id: &str) -> rusqlite::Result<Option<Job>> {
    let query = "SELECT * FROM jobs WHERE id = ?1 AND tenant = ?2";
    all.query_row(query, [id, tenant], Job::read).optional()
}

/// A tenant's jobs, the newest first, from below a number on; one more than `limit` if there are more.
pub(crate) fn list(
    all: &Transaction<'_>,
    tenant: &str,
    below: i64,
    limit: usize,
) -> rusqlite::Result<Vec<Job>> {
    let query = "SELECT * FROM jobs WHERE tenant = ?1 AND number < ?2 ORDER BY number DESC LIMIT ?3";
    let mut query = all.prepare_cached(query)?;
    query.query_map(params![tenant, below, limit as i64 + 1], Job::read)?.collect()
}

/// All jobs that have not ended and stand so, the oldest first.
pub(crate) fn that_are(all: &Transaction<'_>, statuses: &[Status]) -> rusqlite::Result<Vec<Job>> {
    let mut query = all.prepare_cached("SELECT * FROM jobs WHERE finished IS NULL ORDER BY number")?;
    let jobs = query.query_map([], Job::read)?;
    jobs.filter(|job| job.as_ref().map_or(true, |job| statuses.contains(&job.status))).collect()
}

/// Jobs whose results, or whose checkpoints, are served.
pub(crate) fn served(all: &Transaction<'_>) -> rusqlite::Result<Vec<Job>> {
    let mut query = all.prepare_cached("SELECT * FROM jobs WHERE begun IS NOT NULL ORDER BY number")?;
    query.query_map([], Job::read)?.collect()
}

/// A tenant's job that has ended, by what its result is called or would be.
pub(crate) fn ended(all: &Transaction<'_>, tenant: &str, result: &str) -> rusqlite::Result<Option<Job>> {
    let query = "SELECT * FROM jobs WHERE tenant = ?1 AND finished IS NOT NULL AND substr(id, -8) = ?2";
    let mut query = all.prepare_cached(query)?;
    let short = result.rsplit(':').next().unwrap_or_default();
    let mut jobs = query.query_map([tenant, short], Job::read)?;
    jobs.find(|job| job.as_ref().map_or(true, |job| job.result() == result)).transpose()
}

/// A tenant's jobs that have not ended.
pub(crate) fn count_unfinished(all: &Transaction<'_>, tenant: &str) -> rusqlite::Result<i64> {
    let query = "SELECT count(*) FROM jobs WHERE tenant = ?1 AND finished IS NULL";
    all.query_row(query, [tenant], |row| row.get(0))
}

/// Whether a job that has not ended needs a file.
pub(crate) fn is_waited_for(all: &Transaction<'_>, file: &str) -> rusqlite::Result<bool> {
    let query =
        "SELECT count(*) FROM jobs WHERE finished IS NULL AND (training_file = ?1 OR validation_file = ?1)";
    all.query_row(query, [file], |row| Ok(row.get::<_, i64>(0)? > 0))
}

pub(crate) fn insert(all: &Transaction<'_>, new: &New<'_>) -> rusqlite::Result<()> {
    let settings: Vec<(&str, &str, &Value)> = new
        .settings
        .iter()
        .map(|setting| (setting.field.as_str(), setting.key.as_str(), &setting.value))
        .collect();
    all.execute(
        "INSERT INTO jobs (id, tenant, status, model, suffix, training_file, validation_file, settings, rate,
            metadata, created)
         VALUES (:id, :tenant, :status, :model, :suffix, :training, :validation, :settings, :rate, :metadata,
            :now)",
        named_params! {
            ":id": new.id, ":tenant": new.tenant, ":status": Status::Validating, ":model": new.model,
            ":suffix": new.suffix, ":training": new.training_file, ":validation": new.validation_file,
            ":settings": json!(settings).to_string(), ":rate": new.rate,
            ":metadata": json!(new.metadata).to_string(), ":now": now(),
        },
    )?;
    note(all, new.id, &Note::info("the job was created"))
}

/// A job that stands in one of these ways stands otherwise from now on. False if it does not: then nothing
/// changes, so that what a client has changed meanwhile stays.
pub(crate) fn set_status(
    all: &Transaction<'_>,
    id: &str,
    from: &[Status],
    to: Status,
) -> rusqlite::Result<bool> {
    let query = "SELECT status FROM jobs WHERE id = ?1";
    let now_is: Option<Status> = all.query_row(query, [id], |row| row.get(0)).optional()?;
    if !now_is.is_some_and(|status| from.contains(&status)) {
        return Ok(false);
    }
    let begins = to == Status::Running;
    let query = "UPDATE jobs SET status = ?2, begun = CASE WHEN ?3 THEN coalesce(begun, ?4) ELSE begun END,
            finished = CASE WHEN ?5 THEN ?4 END, expected = NULL
         WHERE id = ?1";
    Ok(all.execute(query, params![id, to, begins, now(), to.has_ended()])? > 0)
}

pub(crate) fn set_plan(all: &Transaction<'_>, id: &str, plan: &Plan) -> rusqlite::Result<()> {
    all.execute("UPDATE jobs SET plan = ?2 WHERE id = ?1", params![id, plan_value(plan).to_string()])?;
    Ok(())
}

pub(crate) fn set_error(all: &Transaction<'_>, id: &str, why: &str) -> rusqlite::Result<()> {
    all.execute("UPDATE jobs SET error = ?2 WHERE id = ?1", [id, why])?;
    Ok(())
}

/// When it will have ended, as far as one can tell.
pub(crate) fn set_expected(all: &Transaction<'_>, id: &str, expected: i64) -> rusqlite::Result<()> {
    all.execute("UPDATE jobs SET expected = ?2 WHERE id = ?1", params![id, expected])?;
    Ok(())
}

/// What it has come to.
pub(crate) fn set_result(
    all: &Transaction<'_>,
    id: &str,
    tokens: u64,
    file: Option<&str>,
) -> rusqlite::Result<()> {
    let query = "UPDATE jobs SET tokens = ?2, result_file = ?3, has_model = 1 WHERE id = ?1";
    all.execute(query, params![id, tokens as i64, file])?;
    Ok(())
}

/// Its result is not served any more.
pub(crate) fn forget_model(all: &Transaction<'_>, id: &str) -> rusqlite::Result<()> {
    all.execute("UPDATE jobs SET has_model = 0 WHERE id = ?1", [id])?;
    Ok(())
}

/// Something that happened.
pub(crate) struct Note {
    level: &'static str,
    message: String,
    /// Of what a step came to.
    step: Option<u64>,
    data: Option<Value>,
}

impl Note {
    pub(crate) fn info(message: impl Into<String>) -> Self {
        Note { level: "info", message: message.into(), step: None, data: None }
    }

    pub(crate) fn warning(message: impl Into<String>) -> Self {
        Note { level: "warn", ..Note::info(message) }
    }

    pub(crate) fn error(message: impl Into<String>) -> Self {
        Note { level: "error", ..Note::info(message) }
    }

    pub(crate) fn metrics(message: String, step: u64, data: Value) -> Self {
        Note { step: Some(step), data: Some(data), ..Note::info(message) }
    }
}

pub(crate) fn note(all: &Transaction<'_>, job: &str, note: &Note) -> rusqlite::Result<()> {
    let data = note.data.as_ref().map(Value::to_string);
    all.execute(
        "INSERT INTO job_events (job, created, level, message, step, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![job, now(), note.level, note.message, note.step.map(|step| step as i64), data],
    )?;
    note.step.map_or(Ok(()), |step| thin(all, job, step))
}

/// Keeps the events of a long job few: where there are too many, one of each kind is left of every so many
/// steps, so that they stay evenly spread from the first step to the last one, `step`.
fn thin(all: &Transaction<'_>, job: &str, step: u64) -> rusqlite::Result<()> {
    let count = "SELECT count(*) FROM job_events WHERE job = ?1 AND step IS NOT NULL";
    let count: i64 = all.prepare_cached(count)?.query_row([job], |row| row.get(0))?;
    if count <= MOST_METRICS {
        return Ok(());
    }
    // A quarter of them for each of the two kinds, so that it is seldom done.
    let spread = step as i64 / (MOST_METRICS / 4) + 1;
    all.execute(
        "DELETE FROM job_events WHERE job = ?1 AND step IS NOT NULL AND number NOT IN (
            SELECT max(number) FROM job_events WHERE job = ?1 AND step IS NOT NULL
            GROUP BY step / ?2, json_extract(data, '$.valid_loss') IS NULL)",
        params![job, spread],
    )?;
    Ok(())
}

/// Forgets what steps behind this one came to: they are done again.
pub(crate) fn go_back(all: &Transaction<'_>, job: &str, step: u64) -> rusqlite::Result<()> {
    all.execute("DELETE FROM job_events WHERE job = ?1 AND step > ?2", params![job, step as i64])?;
    Ok(())
}

/// The number of an event by its id.
pub(crate) fn event_number(id: &str) -> Option<i64> {
    id.strip_prefix("ftevent-")?.parse().ok()
}

/// What happened to a job, the newest first, from below a number on, whether there is an event of that number
/// or not any more.
pub(crate) fn events(
    all: &Transaction<'_>,
    job: &str,
    below: i64,
    limit: usize,
) -> rusqlite::Result<Vec<Value>> {
    let query = "SELECT * FROM job_events WHERE job = ?1 AND number < ?2 ORDER BY number DESC LIMIT ?3";
    let mut query = all.prepare_cached(query)?;
    let event = |row: &Row<'_>| {
        let number: i64 = row.get("number")?;
        let (created, level): (i64, String) = (row.get("created")?, row.get("level")?);
        let (message, data): (String, Option<String>) = (row.get("message")?, row.get("data")?);
        let data: Option<Value> = data.and_then(|data| serde_json::from_str(&data).ok());
        Ok(json!({
            "id": format!("ftevent-{number}"), "object": "fine_tuning.job.event", "created_at": created,
            "level": level, "message": message, "type": if data.is_some() { "metrics" } else { "message" },
            "data": data.unwrap_or_else(|| json!({})),
        }))
    };
    query.query_map(params![job, below, limit as i64 + 1], event)?.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A store with a job.
    pub(in crate::tuning) fn with_job() -> (tempfile::TempDir, Store, Job) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let new = New {
            id: "ftjob-1",
            tenant: "a",
            model: "base",
            suffix: "",
            training_file: "file-1",
            validation_file: None,
            settings: &[],
            rate: 1.0,
            metadata: &BTreeMap::new(),
        };
        store.with(|all| insert(all, &new)).unwrap();
        let job = store.with(|all| find(all, "a", "ftjob-1")).unwrap().unwrap();
        (folder, store, job)
    }

    #[test]
    fn jobs_that_have_ended_are_not_read_to_find_those_that_have_not() {
        let (_folder, store, job) = with_job();
        let listed = || store.with(|all| that_are(all, &Status::UNFINISHED)).map(|jobs| jobs.len());
        assert_eq!(listed().unwrap(), 1);
        // One whose row nobody could read would be told of.
        let end = "UPDATE jobs SET status = 'unheard of', finished = 1 WHERE id = ?1";
        store.with(|all| all.execute(end, [&job.id])).unwrap();
        assert_eq!(listed().unwrap(), 0);
    }

    #[test]
    fn of_a_long_job_few_steps_are_kept_and_evenly_spread() {
        let (_folder, store, job) = with_job();
        let last = 3 * MOST_METRICS as u64;
        let most = store.with(|all| {
            // As if one second in a hundred steps were noted.
            for step in (0..last).map(|n| n * 100) {
                note(all, &job.id, &Note::metrics(String::new(), step, json!({"train_loss": 1.0})))?;
                if step % 1_000 == 0 {
                    note(all, &job.id, &Note::metrics(String::new(), step, json!({"valid_loss": 1.0})))?;
                }
            }
            all.query_row("SELECT count(*) FROM job_events", [], |row| row.get::<_, i64>(0))
        });
        let most = most.unwrap();
        assert!((MOST_METRICS / 2..=MOST_METRICS + 1).contains(&most), "{most}");
        for kind in ["train_loss", "valid_loss"] {
            let steps: Vec<i64> = store
                .with(|all| {
                    let query = "SELECT step FROM job_events WHERE data LIKE ?1 ORDER BY number";
                    all.prepare(query)?.query_map([format!("%{kind}%")], |row| row.get(0))?.collect()
                })
                .unwrap();
            let gaps: Vec<i64> = steps.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let widest = *gaps.iter().max().unwrap();
            assert!(steps[0] <= widest && steps.len() > 500, "{kind}: from the first on, {}", steps.len());
            assert!(widest <= last as i64 * 100 / 250, "{kind}: {widest}");
            assert!(*steps.last().unwrap() > (last as i64 - 20) * 100, "{kind}: to the last");
        }
    }
}
