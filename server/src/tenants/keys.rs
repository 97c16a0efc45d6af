//! Keys in a server's state: made, listed and revoked by another process while the server runs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use serde::Serialize;

use super::key::Key;
use super::terms::{self, Entry, Terms, check_name};
use crate::app::seconds;
use crate::audit::{self, Record};
use crate::error::ServerError;
use crate::store;

/// Tenants with what they may do, and their keys. A key that is revoked stays, so that a server which had one
/// never opens to all.
pub(crate) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS tenants (
        name TEXT PRIMARY KEY,
        adapters TEXT NOT NULL, -- a JSON list
        weight REAL NOT NULL,
        requests_per_minute INTEGER,
        tokens_per_minute INTEGER,
        admin INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS keys (
        id TEXT PRIMARY KEY,
        tenant TEXT NOT NULL REFERENCES tenants (name),
        sha256 BLOB NOT NULL UNIQUE,
        created INTEGER NOT NULL, -- seconds since 1970, as the others
        used INTEGER,
        revoked INTEGER
    ) STRICT;";

/// The keys of a state folder, which a server may be using.
#[derive(Debug)]
pub struct Keys {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// What is to become of a tenant's terms; what is none stays as it is, or as it is for new tenants.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// The shared adapters that it may use.
    pub adapters: Option<Vec<String>>,
    /// Its turns beside others.
    pub weight: Option<f64>,
    /// Answers in a minute; `Some(None)`: as many as it wants.
    pub requests_per_minute: Option<Option<u32>>,
    /// Tokens in a minute; `Some(None)`: as many as it wants.
    pub tokens_per_minute: Option<Option<u32>>,
    /// Whether it is an administrator.
    pub admin: Option<bool>,
}

/// A key that was just made.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// What it is called.
    pub id: String,
    /// The key itself, which is told this once.
    pub key: String,
    /// Whose it is.
    pub tenant: String,
}

/// What is told of a key and of its tenant.
#[derive(Clone, Debug, Serialize)]
pub struct ListedKey {
    /// What it is called.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// When it was last used, to the minute.
    pub used: Option<i64>,
    /// When it was revoked.
    pub revoked: Option<i64>,
    /// The shared adapters that its tenant may use.
    pub adapters: Vec<String>,
    /// Its tenant's turns beside others.
    pub weight: f64,
    /// Answers in a minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens in a minute.
    pub tokens_per_minute: Option<u32>,
    /// Whether its tenant is an administrator.
    pub admin: bool,
}

impl Keys {
    /// Opens the keys of a state folder, made where it is missing.
    ///
    /// # Errors
    /// If it cannot be written to, or a newer program wrote it.
    pub fn open(folder: &Path) -> Result<Self, ServerError> {
        let connection = Mutex::new(store::connect(folder)?);
        Ok(Keys { path: folder.join(store::FILE), connection })
    }

    /// Makes a key for a tenant, new or known, whose terms it changes.
    ///
    /// # Errors
    /// If the name or the terms cannot be, or the folder cannot be written to.
    pub fn add(&self, tenant: &str, change: &Change) -> Result<Made, ServerError> {
        check_name(tenant).map_err(|message| self.refused(message))?;
        let (key, text) = Key::make().map_err(|message| self.refused(message))?;
        self.change(|all| {
            let mut terms = terms_of(all, tenant)?.unwrap_or_default();
            let Change { adapters, weight, requests_per_minute, tokens_per_minute, admin } = change.clone();
            terms.adapters = adapters.unwrap_or(terms.adapters);
            terms.weight = weight.unwrap_or(terms.weight);
            terms.requests_per_minute = requests_per_minute.unwrap_or(terms.requests_per_minute);
            terms.tokens_per_minute = tokens_per_minute.unwrap_or(terms.tokens_per_minute);
            terms.admin = admin.unwrap_or(terms.admin);
            if let Err(message) = terms.check() {
                return Ok(Err(message));
            }
            put_terms(all, tenant, &terms)?;
            put_key(all, tenant, &key)?;
            record(all, "key.add", &format!("{} of tenant {tenant}", key.id))?;
            Ok(Ok(()))
        })?;
        Ok(Made { id: key.id.to_string(), key: text, tenant: tenant.to_owned() })
    }

    /// Takes over the tenants and keys of a file as `--keys` has it: the terms are those of the file, keys
    /// that are not there yet are added. Gives the number of new keys. All of it or nothing.
    ///
    /// # Errors
    /// If the file cannot be used, or a key in it is another tenant's here or was revoked.
    pub fn import(&self, path: &Path) -> Result<usize, ServerError> {
        let entries = terms::read(path)?;
        self.change(|all| {
            let mut added = 0;
            for Entry { name, terms, keys } in &entries {
                put_terms(all, name, terms)?;
                for key in keys {
                    let there = all
                        .query_row(
                            "SELECT tenant, revoked IS NOT NULL FROM keys WHERE sha256 = ?1",
                            [&key.hash],
                            |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)),
                        )
                        .optional()?;
                    match there {
                        None => {
                            put_key(all, name, key)?;
                            added += 1;
                        }
                        Some((_, true)) => return Ok(Err(format!("{} was revoked", key.id))),
                        Some((tenant, _)) if tenant != *name => {
                            return Ok(Err(format!("{} is a key of tenant {tenant:?} already", key.id)));
                        }
                        Some(_) => {}
                    }
                }
            }
            record(all, "key.import", &format!("{added} new keys"))?;
            Ok(Ok(added))
        })
    }

    /// Revokes a key; false if it was revoked before.
    ///
    /// # Errors
    /// If there is no such key.
    pub fn revoke(&self, id: &str) -> Result<bool, ServerError> {
        self.change(|all| {
            let now = seconds(SystemTime::now()) as i64;
            let sql = "UPDATE keys SET revoked = ?2 WHERE id = ?1 AND revoked IS NULL";
            if all.execute(sql, params![id, now])? == 1 {
                record(all, "key.revoke", id)?;
                return Ok(Ok(true));
            }
            let is_there: bool =
                all.query_row("SELECT EXISTS (SELECT 1 FROM keys WHERE id = ?1)", [id], |row| row.get(0))?;
            Ok(if is_there {
                Ok(false)
            } else {
                Err(format!("there is no key `{id}`; see `luthier keys list`"))
            })
        })
    }

    /// All keys, also those that were revoked, by tenant and time.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn list(&self) -> Result<Vec<ListedKey>, ServerError> {
        self.read(|all| {
            let mut rows = all.prepare(
                "SELECT id, tenant, created, used, revoked, adapters, weight, requests_per_minute,
                 tokens_per_minute, admin FROM keys JOIN tenants ON tenant = name ORDER BY tenant, created, id",
            )?;
            let listed = rows.query_map([], |row| {
                let terms = terms_in(row, 5)?;
                Ok(ListedKey {
                    id: row.get(0)?,
                    tenant: row.get(1)?,
                    created: row.get(2)?,
                    used: row.get(3)?,
                    revoked: row.get(4)?,
                    adapters: terms.adapters,
                    weight: terms.weight,
                    requests_per_minute: terms.requests_per_minute,
                    tokens_per_minute: terms.tokens_per_minute,
                    admin: terms.admin,
                })
            })?;
            listed.collect()
        })
    }

    /// The newest entries of the audit log, as many as `last`, the newest first.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn audit(&self, last: usize) -> Result<Vec<Record>, ServerError> {
        self.read(|all| audit::read(all, last, None))
    }

    /// What it says now of tenants that have a key, and whether there ever was one.
    pub(super) fn entries(&self) -> Result<(Vec<Entry>, bool), ServerError> {
        self.read(|all| {
            let has_keys = all.query_row("SELECT EXISTS (SELECT 1 FROM keys)", [], |row| row.get(0))?;
            let mut rows = all.prepare(
                "SELECT id, sha256, tenant, adapters, weight, requests_per_minute, tokens_per_minute, admin
                 FROM keys JOIN tenants ON tenant = name WHERE revoked IS NULL ORDER BY tenant, created, id",
            )?;
            let mut rows = rows.query([])?;
            let mut entries: Vec<Entry> = Vec::new();
            while let Some(row) = rows.next()? {
                let (id, hash, name): (String, _, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let key = Key { id: id.into(), hash };
                match entries.last_mut().filter(|entry| entry.name == name) {
                    Some(entry) => entry.keys.push(key),
                    None => entries.push(Entry { name, terms: terms_in(row, 3)?, keys: vec![key] }),
                }
            }
            Ok((entries, has_keys))
        })
    }

    /// A number that changes with every change that others make.
    pub(super) fn version(&self) -> Result<i64, ServerError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.query_row("PRAGMA data_version", [], |row| row.get(0)).map_err(|error| self.failed(&error))
    }

    /// Notes when keys were used, in seconds since 1970.
    pub(super) fn note_uses(&self, uses: &HashMap<std::sync::Arc<str>, u64>) -> Result<(), ServerError> {
        self.change(|all| {
            for (id, time) in uses {
                all.execute("UPDATE keys SET used = ?2 WHERE id = ?1", params![id, *time as i64])?;
            }
            Ok(Ok(()))
        })
    }

    /// Reads, all of it as it is at one time.
    fn read<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, ServerError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let read = connection.transaction().and_then(|all| work(&all));
        read.map_err(|error| self.failed(&error))
    }

    /// Changes, all of it or nothing; nothing either where the work finds that it cannot be.
    fn change<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<Result<T, String>>,
    ) -> Result<T, ServerError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        // Others' changes are waited for before anything is read.
        let all = connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let done = all.and_then(|all| {
            let done = work(&all)?;
            if done.is_ok() {
                all.commit()?;
            }
            Ok(done)
        });
        done.map_err(|error| self.failed(&error))?.map_err(|message| self.refused(message))
    }

    fn failed(&self, error: &rusqlite::Error) -> ServerError {
        ServerError::State { path: self.path.clone(), message: error.to_string() }
    }

    fn refused(&self, message: String) -> ServerError {
        ServerError::Keys { path: self.path.clone(), message }
    }
}

/// The terms in a row from a column on: adapters, weight, requests, tokens, whether it is an administrator.
fn terms_in(row: &Row<'_>, first: usize) -> rusqlite::Result<Terms> {
    let adapters: String = row.get(first)?;
    let wrong = |error| rusqlite::Error::FromSqlConversionFailure(first, rusqlite::types::Type::Text, error);
    Ok(Terms {
        adapters: serde_json::from_str(&adapters).map_err(|error| wrong(error.into()))?,
        weight: row.get(first + 1)?,
        requests_per_minute: row.get(first + 2)?,
        tokens_per_minute: row.get(first + 3)?,
        admin: row.get(first + 4)?,
    })
}

fn terms_of(all: &Transaction<'_>, tenant: &str) -> rusqlite::Result<Option<Terms>> {
    let sql =
        "SELECT adapters, weight, requests_per_minute, tokens_per_minute, admin FROM tenants WHERE name = ?1";
    all.query_row(sql, [tenant], |row| terms_in(row, 0)).optional()
}

fn put_terms(all: &Transaction<'_>, tenant: &str, terms: &Terms) -> rusqlite::Result<()> {
    let Terms { adapters, weight, requests_per_minute, tokens_per_minute, admin } = terms;
    let adapters = serde_json::json!(adapters).to_string();
    all.execute(
        "INSERT INTO tenants VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (name) DO UPDATE SET
         (adapters, weight, requests_per_minute, tokens_per_minute, admin) = (?2, ?3, ?4, ?5, ?6)",
        params![tenant, adapters, weight, requests_per_minute, tokens_per_minute, admin],
    )?;
    Ok(())
}

fn put_key(all: &Transaction<'_>, tenant: &str, key: &Key) -> rusqlite::Result<()> {
    let now = seconds(SystemTime::now()) as i64;
    let sql = "INSERT INTO keys (id, tenant, sha256, created) VALUES (?1, ?2, ?3, ?4)";
    all.execute(sql, params![key.id, tenant, key.hash, now])?;
    Ok(())
}

/// Notes a change that was made on the command line.
fn record(all: &Transaction<'_>, action: &'static str, what: &str) -> rusqlite::Result<()> {
    audit::write(all, &Record::now(action, what, "done"))
}
