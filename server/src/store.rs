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
/// A file that takes room on the disk, to be given up where there is none left: what frees room has to be noted, too.
const RESERVE: &str = "reserve";
const RESERVED_BYTES: usize = 1 << 20;
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
        let store = Store { folder: folder.to_owned(), connection, _lock: lock };
        store.has_room();
        Ok(store)
    }

    /// Where files go that tables name.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether there is room for more than what frees room. It takes its time.
    pub(crate) fn has_room(&self) -> bool {
        let path = self.folder.join(RESERVE);
        if path.exists() {
            return true;
        }
        // Aside, so that half of one is never taken for one; with something in it, for a disk may take nothing
        // as nothing.
        let aside = self.folder.join("reserve.part");
        let made = fs::write(&aside, vec![1; RESERVED_BYTES]).and_then(|()| fs::rename(&aside, &path));
        if made.is_err() {
            let _ = fs::remove_file(&aside);
        }
        made.is_ok()
    }

    /// Reads or writes, all of it or nothing. It takes its time: not on a thread of connections.
    ///
    /// # Errors
    /// If the disk is full or the file is damaged.
    pub(crate) fn with<T>(
        &self,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, ApiError> {
        self.attempt(&work).map_err(refused)
    }

    /// The same of what frees room on the disk, or ends what takes it: on a full disk it has the reserve, which
    /// nothing else may use up.
    ///
    /// # Errors
    /// As [`Store::with`].
    pub(crate) fn freeing<T>(
        &self,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, ApiError> {
        let mut done = self.attempt(&work);
        if done.as_ref().is_err_and(is_full) && fs::remove_file(self.folder.join(RESERVE)).is_ok() {
            done = self.attempt(&work);
        }
        done.map_err(refused)
    }

    fn attempt<T>(&self, work: impl Fn(&Transaction<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let all = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = work(&all)?;
        all.commit()?;
        Ok(result)
    }
}

fn refused(error: rusqlite::Error) -> ApiError {
    match is_full(&error) {
        true => ApiError::full(),
        false => ApiError::internal(format!("the server's state cannot be kept: {error}")),
    }
}

/// Whether the disk has no room.
fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

/// Makes the folder, which nobody else on the machine may look into: it holds what clients bring. One that is
/// there keeps the mode that it was given.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_disk_is_full_the_reserve_is_given_up_and_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let reserve = folder.path().join(RESERVE);
        assert_eq!(reserve.metadata().unwrap().len(), RESERVED_BYTES as u64);
        let allow = |pages: u32| {
            let set = format!("PRAGMA max_page_count = {pages}");
            store.with(|all| all.query_row(&set, [], |row| row.get::<_, i64>(0))).unwrap();
        };
        let fill = |all: &Transaction<'_>| {
            all.execute_batch("CREATE TABLE big (a); INSERT INTO big VALUES (zeroblob(1e6))")
        };
        // The database may not grow: as on a full disk.
        allow(1);
        assert!(store.with(fill).is_err() && reserve.exists(), "it is not for what takes room");
        let error = store.freeing(fill).unwrap_err();
        assert!(error.message().contains("disk is full"), "{}", error.message());
        assert!(!reserve.exists(), "it was given up");
        // Nothing of it stands, and with room it does.
        allow(100_000);
        store.with(fill).unwrap();
        assert!(store.has_room() && reserve.exists());
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_looks_into_the_folder() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        Store::open(&state).unwrap();
        assert_eq!(state.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_file_is_no_folder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Store::open(file.path()).unwrap_err();
        assert!(error.to_string().contains("--state names a folder"), "{error}");
    }
}
