//! /v1/files: what clients bring for their jobs, and what jobs leave for them.
//!
//! A file lies in the state folder under its id; the table says whose it is and what it was called. It is written
//! aside and renamed before its row stands, so that a row always has its file.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError, MultipartRejection};
use axum::extract::{Multipart, Path as At, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
/// What a file of examples may end in: so its reader knows what it is.
const KINDS: [&str; 5] = ["jsonl", "json", "csv", "parquet", "txt"];
/// Files that a tenant may have.
const MOST_FILES: i64 = 1000;
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

/// Removes what uploads left that were not ended.
pub(crate) fn tidy(store: &Store) -> std::io::Result<()> {
    fs::create_dir_all(folder(store))?;
    for entry in fs::read_dir(folder(store))? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "part") {
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
    let _place = app.uploads.try_acquire().map_err(|_| ApiError::busy())?;
    let (tenant, asked) = (caller.0.name.clone(), Arc::clone(&store));
    if !aside(move || Ok(asked.has_room())).await? {
        return Err(ApiError::full());
    }
    let (mut purpose, mut received) = (None, None);
    while let Some(field) = in_time(&app, form.next_field()).await?.map_err(broken)? {
        match field.name() {
            Some("purpose") => purpose = Some(small(&app, field).await?),
            Some("file") if received.is_none() => received = Some(Received::take(&app, &store, field).await?),
            Some("file") => return Err(ApiError::field("file", "`file` is there twice")),
            // Such as `expires_after`, which changes nothing here.
            _ => drop(small(&app, field).await?),
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
    let stored = aside(move || received.keep(&store, &tenant, FOR_TRAINING)).await;
    app.audit(&caller, "file.create", stored.as_ref().map_or("", |stored| &stored.id), &stored);
    Ok(Json(stored?.value()))
}

/// The next part of what a client sends, if it comes in time.
async fn in_time<T>(app: &App, next: impl Future<Output = T>) -> Result<T, ApiError> {
    tokio::time::timeout(app.limits.read_time, next).await.map_err(|_| ApiError::too_slow())
}

fn broken(error: MultipartError) -> ApiError {
    ApiError::invalid(format!("the form cannot be read: {}", error.body_text()))
}

/// A field of a few letters.
async fn small(app: &App, mut field: Field<'_>) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = in_time(app, field.chunk()).await?.map_err(broken)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MOST_NAME {
            return Err(ApiError::invalid("a field of the form is too long"));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::invalid("a field of the form is not UTF-8"))
}

/// A file that has no row yet. Dropped without one, it is removed.
struct Received {
    id: String,
    name: String,
    bytes: u64,
    part: PathBuf,
}

impl Drop for Received {
    fn drop(&mut self) {
        // Gone if it was kept.
        let _ = fs::remove_file(&self.part);
    }
}

impl Received {
    fn new(store: &Store, name: &str) -> Self {
        let id = new_id("file");
        let part = folder(store).join(format!("{id}.part"));
        Received { id, name: name.to_owned(), bytes: 0, part }
    }

    async fn take(app: &App, store: &Store, mut field: Field<'_>) -> Result<Self, ApiError> {
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
        let kept = |error: std::io::Error| ApiError::storage(format!("the file cannot be kept: {error}"));
        let mut file = tokio::fs::File::create(&received.part).await.map_err(kept)?;
        while let Some(chunk) = in_time(app, field.chunk()).await?.map_err(broken)? {
            received.bytes += chunk.len() as u64;
            if received.bytes > app.limits.file_bytes {
                let message = format!("a file may have {} bytes at most", app.limits.file_bytes);
                return Err(ApiError::field("file", message));
            }
            file.write_all(&chunk).await.map_err(kept)?;
        }
        file.flush().await.map_err(kept)?;
        file.sync_all().await.map_err(kept)?;
        match received.bytes {
            0 => Err(ApiError::field("file", "the file is empty")),
            _ => Ok(received),
        }
    }

    /// Gives it its place and its row.
    fn keep(self, store: &Store, tenant: &str, purpose: &str) -> Result<Stored, ApiError> {
        let path = place(store, &self.id, &self.name);
        fs::rename(&self.part, &path)
            .map_err(|error| ApiError::storage(format!("the file cannot be kept: {error}")))?;
        let kept = store.with(|all| {
            let query = "SELECT count(*) FROM files WHERE tenant = ?1";
            let count: i64 = all.query_row(query, [tenant], |row| row.get(0))?;
            if count >= MOST_FILES {
                return Ok(None);
            }
            let created = seconds(SystemTime::now()) as i64;
            all.execute(
                "INSERT INTO files (id, tenant, name, purpose, bytes, created) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![self.id, tenant, self.name, purpose, self.bytes as i64, created],
            )?;
            find(all, tenant, &self.id)
        });
        match kept {
            Ok(Some(stored)) => Ok(stored),
            refused => {
                let _ = fs::remove_file(&path);
                let message = format!("there are {MOST_FILES} files already; delete some");
                Err(refused.err().unwrap_or_else(|| ApiError::field("file", message)))
            }
        }
    }
}

/// Keeps a file that a job leaves.
pub(crate) fn leave(store: &Store, tenant: &str, name: &str, text: &[u8]) -> Result<String, ApiError> {
    let mut received = Received::new(store, name);
    received.bytes = text.len() as u64;
    fs::write(&received.part, text)
        .map_err(|error| ApiError::storage(format!("the file cannot be kept: {error}")))?;
    Ok(received.keep(store, tenant, "fine-tune-results")?.id)
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    paging: Paging,
) -> Result<Json<Value>, ApiError> {
    let store = Arc::clone(app.store()?);
    let files = aside(move || {
        let (after, limit) = (paging.after.clone(), paging.limit(10_000)?);
        let tenant = caller.0.name.as_str();
        store.with(|all| {
            let before = match &after {
                Some(id) => find(all, tenant, id)?.map_or(0, |file| file.number),
                None => i64::MAX,
            };
            let query = "SELECT * FROM files WHERE tenant = ?1 AND number < ?2 ORDER BY number DESC LIMIT ?3";
            let mut query = all.prepare_cached(query)?;
            let rows = query.query_map(params![tenant, before, limit as i64 + 1], Stored::read)?;
            let rows = rows.map(|row| Ok(row?.value()));
            Ok(page(rows.collect::<rusqlite::Result<_>>()?, limit))
        })
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
    let file = file.map_err(|error| ApiError::storage(format!("the file cannot be read: {error}")))?;
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
        let found = store.with(|all| {
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
                _ => Ok(Json(json!({"id": id, "object": "file", "deleted": true}))),
            },
        }
    })
    .await;
    app.audit(&caller, "file.delete", &name, &deleted);
    deleted
}
