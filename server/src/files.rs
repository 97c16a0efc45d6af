//! /v1/files: what clients bring for their jobs, and what jobs leave for them.
//!
//! A file lies in the state folder under its id; the table says whose it is and what it was called. It is
//! written aside, renamed, and safe on the disk before its row stands, so that a row always has its file. A file
//! that has no row is removed at the start.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::multipart::{Field, MultipartError, MultipartRejection};
use axum::extract::{Multipart, Path as At, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::app::{App, Caller, aside, seconds};
use crate::asked::new_id;
use crate::error::ApiError;
use crate::paging::{Paging, page};
use crate::store::Store;

/// The tables of this part.
pub(crate) const TABLES: &str = "CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created INTEGER NOT NULL
) STRICT;";

/// What files of examples are for.
pub(crate) const FOR_TRAINING: &str = "fine-tune";
/// What files are for that jobs leave.
pub(crate) const OF_RESULTS: &str = "fine-tune-results";
/// What a file of examples may end in: so its reader knows what it is.
const KINDS: [&str; 5] = ["jsonl", "json", "csv", "parquet", "txt"];
/// Files that a tenant may bring. What its jobs leave does not count.
const MOST_FILES: i64 = 1000;
/// Fields of a form.
const MOST_FIELDS: usize = 16;
/// Bytes of the name and of a small field.
const MOST_NAME: usize = 255;
/// Bytes that are read of a file at once.
const CHUNK: usize = 1 << 16;

/// A file of a tenant.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    number: i64,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) purpose: String,
    bytes: i64,
    created: i64,
}

impl Stored {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Stored {
            number: row.get("number")?,
            id: row.get("id")?,
            name: row.get("name")?,
            purpose: row.get("purpose")?,
            bytes: row.get("bytes")?,
            created: row.get("created")?,
        })
    }

    fn value(&self) -> Value {
        json!({
            "id": self.id, "object": "file", "bytes": self.bytes, "created_at": self.created,
            "filename": self.name, "purpose": self.purpose, "status": "processed",
        })
    }

    /// Where it lies.
    pub(crate) fn path(&self, store: &Store) -> PathBuf {
        place(store, &self.id, &self.name)
    }
}

/// The folder of all files.
fn folder(store: &Store) -> PathBuf {
    store.folder().join("files")
}

fn place(store: &Store, id: &str, name: &str) -> PathBuf {
    let kind = kind(name).unwrap_or("csv");
    folder(store).join(format!("{id}.{kind}"))
}

/// What a file's name ends in, if it is of a kind that is read.
fn kind(name: &str) -> Option<&'static str> {
    let given = Path::new(name).extension()?.to_str()?;
    KINDS.into_iter().find(|kind| given.eq_ignore_ascii_case(kind))
}

/// A tenant's file.
pub(crate) fn find(all: &Transaction<'_>, tenant: &str, id: &str) -> rusqlite::Result<Option<Stored>> {
    let query = "SELECT * FROM files WHERE id = ?1 AND tenant = ?2";
    all.query_row(query, [id, tenant], Stored::read).optional()
}

/// Removes what uploads left that were not ended, and whatever else has no row.
///
/// # Errors
/// If the folder, or the store, cannot be read or written.
pub(crate) fn tidy(store: &Store) -> std::io::Result<()> {
    fs::create_dir_all(folder(store))?;
    let known = store.with(|all| {
        let mut query = all.prepare("SELECT * FROM files")?;
        let paths = query.query_map([], |row| Ok(Stored::read(row)?.path(store)))?;
        paths.collect::<rusqlite::Result<HashSet<_>>>()
    });
    let known = known.map_err(|error| std::io::Error::other(error.message().to_owned()))?;
    for entry in fs::read_dir(folder(store))? {
        let path = entry?.path();
        if !known.contains(&path) && path.is_file() {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

pub(crate) async fn upload(
    State(app): State<Arc<App>>,
    caller: Caller,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Json<Value>, ApiError> {
    let store = Arc::clone(app.store()?);
    if app.is_draining() {
        return Err(ApiError::unavailable("the server is about to end"));
    }
    let mut form = form.map_err(|_| ApiError::invalid("a file is sent as `multipart/form-data`"))?;
    let places = app.uploads.take(caller.0.owner, 1, app.tenants.count());
    let _place = places.ok_or_else(ApiError::busy)?;
    let (tenant, asked) = (caller.0.name.clone(), Arc::clone(&store));
    if !aside(move || Ok(asked.has_room())).await? {
        return Err(ApiError::full());
    }
    let (mut purpose, mut received) = (None, None);
    let mut sending = Sending::new(&app);
    let mut count = 0;
    while let Some(field) = sending.wait(form.next_field()).await? {
        count += 1;
        if count > MOST_FIELDS {
            return Err(ApiError::invalid(format!("the form has more than {MOST_FIELDS} fields")));
        }
        match field.name() {
            Some("purpose") => purpose = Some(small(&mut sending, field).await?),
            Some("file") if received.is_none() => {
                received = Some(Received::take(&app, &mut sending, &store, field).await?);
            }
            Some("file") => return Err(ApiError::field("file", "`file` is there twice")),
            // Such as `expires_after`, which changes nothing here.
            _ => drop(small(&mut sending, field).await?),
        }
    }
    match purpose.as_deref() {
        Some(FOR_TRAINING) => {}
        Some(other) => {
            let message = format!("`purpose` must be \"fine-tune\", and is {other:?}");
            return Err(ApiError::field("purpose", message));
        }
        None => return Err(ApiError::field("purpose", "`purpose` is missing")),
    }
    let received = received.ok_or_else(|| ApiError::field("file", "`file` is missing"))?;
    let stored = aside(move || received.keep(&store, &tenant)).await;
    app.audit(&caller, "file.create", stored.as_ref().map_or("", |stored| &stored.id), &stored);
    Ok(Json(stored?.value()))
}

/// A form that a client sends. It has its time for each part, and may not take longer in all than one that is
/// sent at the least rate: a place among the uploads is not to be had for a byte now and then.
struct Sending {
    part_time: Duration,
    /// Bytes a second.
    rate: u64,
    /// When all that has come is to have come.
    deadline: Instant,
}

impl Sending {
    fn new(app: &App) -> Self {
        let part_time = app.limits.read_time;
        Sending { part_time, rate: app.limits.upload_rate, deadline: Instant::now() + part_time }
    }

    /// The next part, if it comes in time.
    async fn wait<T>(&self, next: impl Future<Output = Result<T, MultipartError>>) -> Result<T, ApiError> {
        let end = self.deadline.min(Instant::now() + self.part_time);
        let next = tokio::time::timeout_at(end, next).await.map_err(|_| ApiError::too_slow())?;
        next.map_err(|error| ApiError::invalid(format!("the form cannot be read: {}", error.body_text())))
    }

    /// The next bytes of a field.
    async fn chunk(&mut self, field: &mut Field<'_>) -> Result<Option<Bytes>, ApiError> {
        let chunk = self.wait(field.chunk()).await?;
        let bytes = chunk.as_ref().map_or(0, Bytes::len);
        self.deadline += Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        Ok(chunk)
    }
}

/// A field of a few letters.
async fn small(sending: &mut Sending, mut field: Field<'_>) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = sending.chunk(&mut field).await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MOST_NAME {
            return Err(ApiError::invalid("a field of the form is too long"));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::invalid("a field of the form is not UTF-8"))
}

/// A file that has no row yet. Dropped without one, it is removed.
pub(crate) struct Received {
    id: String,
    name: String,
    bytes: u64,
    /// Where it lies now.
    path: PathBuf,
    has_row: bool,
}

impl Drop for Received {
    fn drop(&mut self) {
        if !self.has_row {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn cannot_be_kept(error: std::io::Error) -> ApiError {
    ApiError::storage(format!("the file cannot be kept: {error}"))
}

impl Received {
    fn new(store: &Store, name: &str) -> Self {
        let id = new_id("file");
        let path = folder(store).join(format!("{id}.part"));
        Received { id, name: name.to_owned(), bytes: 0, path, has_row: false }
    }

    async fn take(
        app: &App,
        sending: &mut Sending,
        store: &Store,
        mut field: Field<'_>,
    ) -> Result<Self, ApiError> {
        let name = field.file_name().unwrap_or_default();
        // A client may send a path; nothing of it but the name is kept, and that is no path here.
        let name = name.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
        if name.is_empty() || name.len() > MOST_NAME || name.chars().any(char::is_control) {
            return Err(ApiError::field("file", "`file` needs a name of 1 to 255 bytes"));
        }
        if kind(&name).is_none() {
            let kinds = KINDS.join(", .");
            let message = format!("the file's name must end in one of .{kinds}, and is {name:?}");
            return Err(ApiError::field("file", message));
        }
        let mut received = Received::new(store, &name);
        let mut file = tokio::fs::File::create(&received.path).await.map_err(cannot_be_kept)?;
        while let Some(chunk) = sending.chunk(&mut field).await? {
            received.bytes += chunk.len() as u64;
            if received.bytes > app.limits.file_bytes {
                let message = format!("a file may have {} bytes at most", app.limits.file_bytes);
                return Err(ApiError::field("file", message));
            }
            file.write_all(&chunk).await.map_err(cannot_be_kept)?;
        }
        file.flush().await.map_err(cannot_be_kept)?;
        file.sync_all().await.map_err(cannot_be_kept)?;
        match received.bytes {
            0 => Err(ApiError::field("file", "the file is empty")),
            _ => Ok(received),
        }
    }

    /// Gives what is written its place, and has the disk keep it there.
    fn settle(&mut self, store: &Store) -> Result<(), ApiError> {
        let path = place(store, &self.id, &self.name);
        fs::rename(&self.path, &path).map_err(cannot_be_kept)?;
        self.path = path;
        // Where folders cannot be opened, such as on Windows, their entries are kept without being asked.
        let _ = fs::File::open(folder(store)).and_then(|folder| folder.sync_all());
        Ok(())
    }

    /// Its row. With the transaction's end it [`stays`](Self::stays).
    pub(crate) fn enter(
        &self,
        all: &Transaction<'_>,
        tenant: &str,
        purpose: &str,
    ) -> rusqlite::Result<Stored> {
        let created = seconds(SystemTime::now()) as i64;
        all.execute(
            "INSERT INTO files (id, tenant, name, purpose, bytes, created) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![self.id, tenant, self.name, purpose, self.bytes as i64, created],
        )?;
        all.query_row("SELECT * FROM files WHERE id = ?1", [&self.id], Stored::read)
    }

    /// It has its row.
    pub(crate) fn stays(mut self) {
        self.has_row = true;
    }

    /// Gives a client's file its place and its row.
    fn keep(mut self, store: &Store, tenant: &str) -> Result<Stored, ApiError> {
        self.settle(store)?;
        let kept = store.with(|all| {
            let query = "SELECT count(*) FROM files WHERE tenant = ?1 AND purpose = ?2";
            let count: i64 = all.query_row(query, [tenant, FOR_TRAINING], |row| row.get(0))?;
            (count < MOST_FILES).then(|| self.enter(all, tenant, FOR_TRAINING)).transpose()
        })?;
        let message = format!("there are {MOST_FILES} files already; delete some");
        let stored = kept.ok_or_else(|| ApiError::field("file", message))?;
        self.stays();
        Ok(stored)
    }
}

/// Writes a file that a job leaves; it is yet to be [entered](Received::enter).
///
/// # Errors
/// If the disk does not keep it.
pub(crate) fn leave(store: &Store, name: &str, text: &[u8]) -> Result<Received, ApiError> {
    let mut received = Received::new(store, name);
    received.bytes = text.len() as u64;
    let written = fs::File::create(&received.path).and_then(|mut file| {
        file.write_all(text)?;
        file.sync_all()
    });
    written.map_err(cannot_be_kept)?;
    received.settle(store)?;
    Ok(received)
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    paging: Paging,
) -> Result<Json<Value>, ApiError> {
    let store = Arc::clone(app.store()?);
    let files = aside(move || {
        let limit = paging.limit(10_000)?;
        let tenant = caller.0.name.as_str();
        store
            .with(|all| {
                let before = match &paging.after {
                    Some(id) => match find(all, tenant, id)? {
                        Some(file) => file.number,
                        None => return Ok(None),
                    },
                    None => i64::MAX,
                };
                let query =
                    "SELECT * FROM files WHERE tenant = ?1 AND number < ?2 ORDER BY number DESC LIMIT ?3";
                let mut query = all.prepare_cached(query)?;
                let rows = query.query_map(params![tenant, before, limit as i64 + 1], Stored::read)?;
                let rows = rows.map(|row| Ok(row?.value()));
                Ok(Some(page(rows.collect::<rusqlite::Result<_>>()?, limit)))
            })?
            .ok_or_else(|| paging.lost("file"))
    });
    Ok(Json(files.await?))
}

/// A tenant's file by its id.
async fn named(app: &App, caller: &Caller, id: &str) -> Result<Stored, ApiError> {
    let (store, tenant, id) = (Arc::clone(app.store()?), caller.0.name.clone(), id.to_owned());
    aside(move || store.with(|all| find(all, &tenant, &id))?.ok_or_else(|| ApiError::no_such("file", &id)))
        .await
}

pub(crate) async fn retrieve(
    State(app): State<Arc<App>>,
    caller: Caller,
    At(id): At<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(named(&app, &caller, &id).await?.value()))
}

pub(crate) async fn content(
    State(app): State<Arc<App>>,
    caller: Caller,
    At(id): At<String>,
) -> Result<Response, ApiError> {
    let stored = named(&app, &caller, &id).await?;
    let path = stored.path(app.store()?);
    let file = tokio::fs::File::open(path).await;
    let file = file.map_err(|error| match error.kind() {
        ErrorKind::NotFound => ApiError::gone("the file is not on the server's disk any more"),
        _ => ApiError::internal(format!("the file cannot be read: {error}")),
    })?;
    let chunks = stream::unfold(file, |mut file| async {
        let mut chunk = vec![0; CHUNK];
        match file.read(&mut chunk).await {
            Ok(0) => None,
            Ok(read) => {
                chunk.truncate(read);
                Some((Ok(chunk), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    });
    let mut response = Response::new(Body::from_stream(chunks));
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    At(id): At<String>,
) -> Result<Json<Value>, ApiError> {
    let (store, name, tenant) = (Arc::clone(app.store()?), id.clone(), caller.0.name.clone());
    let deleted = aside(move || {
        let tenant = tenant.as_str();
        let found = store.freeing(|all| {
            let Some(stored) = find(all, tenant, &id)? else { return Ok(None) };
            let is_used = crate::tuning::is_waited_for(all, &id)?;
            if !is_used {
                all.execute("DELETE FROM files WHERE id = ?1", [&id])?;
            }
            Ok(Some((stored, is_used)))
        })?;
        match found {
            None => Err(ApiError::no_such("file", &id)),
            Some((_, true)) => {
                Err(ApiError::conflicting("a job that has not ended needs this file; cancel the job first"))
            }
            Some((stored, false)) => match fs::remove_file(stored.path(&store)) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(ApiError::storage(format!("the file cannot be removed: {error}")))
                }
                _ => {
                    // What was given up for this is kept again, now that there is room.
                    store.has_room();
                    Ok(Json(json!({"id": id, "object": "file", "deleted": true})))
                }
            },
        }
    })
    .await;
    app.audit(&caller, "file.delete", &name, &deleted);
    deleted
}
