//! What a server remembers over restarts: tables of one SQLite file, beside the files that they name.
//!
//! Each part of the server that keeps something declares its tables, which are made where they are missing. A
//! change to a table that exists is a number of the schema more, and a step in [`Store::open`].

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::error::{ApiError, ServerError};
use crate::{audit, files, tenants, tinker, tuning};

/// The number of the schema that this program writes.
const SCHEMA: i64 = 1;
/// The tables of all parts.
const TABLES: [&str; 5] = [tenants::TABLES, audit::TABLE, files::TABLES, tuning::TABLES, tinker::TABLES];
/// The file, in the folder.
pub(crate) const FILE: &str = "luthier.db";
/// How long another process may hold the file, such as one that changes keys.
const PATIENCE: Duration = Duration::from_secs(5);

/// A folder that one server at a time keeps its memory in.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    connection: Mutex<Connection>,
    /// Held as long as the server lives.
    _lock: File,
}

impl Store {
    /// Makes the folder and the tables where they are missing.
    ///
    /// # Errors
    /// If another server uses the folder, it cannot be written to, or a newer program wrote it.
    pub(crate) fn open(folder: &Path) -> Result<Self, ServerError> {
        let refused = |message: String| ServerError::State { path: folder.to_owned(), message };
        make(folder).map_err(|error| refused(error.to_string()))?;
        let lock = File::create(folder.join("lock")).map_err(|error| refused(error.to_string()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(refused("another server uses it".into())),
            Err(TryLockError::Error(error)) => return Err(refused(error.to_string())),
        }
        let connection = Mutex::new(connect(folder)?);
        Ok(Store { folder: folder.to_owned(), connection, _lock: lock })
    }

    /// Where files go that tables name.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Reads or writes, all of it or nothing. It takes its time: not on a thread of connections.
    ///
    /// # Errors
    /// If the disk is full or the file is damaged.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, ApiError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let done = connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(|all| {
            let result = work(&all)?;
            all.commit()?;
            Ok(result)
        });
        done.map_err(|error| ApiError::internal(format!("the server's state cannot be kept: {error}")))
    }
}

/// Makes the folder, which nobody else on the machine may look into: it holds what clients bring.
fn make(folder: &Path) -> std::io::Result<()> {
    if folder.exists() && !folder.is_dir() {
        return Err(std::io::Error::other("it is a file; --state names a folder"));
    }
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

/// A way to the file of a folder, which a server may be using. The folder and the tables are made where they
/// are missing.
///
/// # Errors
/// If it cannot be written to, or a newer program wrote it.
pub(crate) fn connect(folder: &Path) -> Result<Connection, ServerError> {
    let refused = |message: String| ServerError::State { path: folder.to_owned(), message };
    make(folder).map_err(|error| refused(error.to_string()))?;
    let path = folder.join(FILE);
    let refused = |error: rusqlite::Error| refused(format!("{FILE}: {error}"));
    let connection = Connection::open(&path).map_err(refused)?;
    connection.busy_timeout(PATIENCE).map_err(refused)?;
    // What was committed is on the disk, also where the machine loses its power.
    connection.pragma_update(None, "journal_mode", "wal").map_err(refused)?;
    connection.pragma_update(None, "synchronous", "full").map_err(refused)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(refused)?;
    let written: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(refused)?;
    if written > SCHEMA {
        return Err(ServerError::State {
            path,
            message: "a newer version of this program wrote it; use that one, or another --state".into(),
        });
    }
    TABLES.iter().try_for_each(|tables| connection.execute_batch(tables)).map_err(refused)?;
    if written < SCHEMA {
        connection.pragma_update(None, "user_version", SCHEMA).map_err(refused)?;
    }
    Ok(connection)
}
