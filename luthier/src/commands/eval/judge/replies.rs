//! The replies that were paid for: a file to which each is added as it comes, and never asked for again.
//!
//! A line of `replies.jsonl` is on the disk before the next request of its thread is sent. So a kill loses at
//! most what was under way, and leaves at most one line without its end, which is cut off when the file is
//! next opened. What a line answers is named by the hash of the whole request: another prompt, model or
//! answer is another line, and the old ones stay for whoever goes back.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::user;

/// The file's name in the output folder.
const NAME: &str = "replies.jsonl";
/// A larger file was not written here.
const MAX_BYTES: u64 = 4 << 30;

/// What names a request: the hash of its address and its body.
pub(super) fn key_of(url: &str, body: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("POST {url}\n"));
    hash.update(body);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A judge's reply, with what it was about for those who read the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    /// The hash of the request.
    pub(super) request: String,
    pub(super) question: String,
    pub(super) first: String,
    pub(super) second: String,
    pub(super) reply: String,
    /// Why it ended, as the endpoint says.
    pub(super) finish_reason: Option<String>,
    /// Of the prompt and the reply.
    pub(super) tokens: u64,
}

/// All replies in a folder, which is this process's alone.
#[derive(Debug)]
pub(super) struct Replies {
    path: PathBuf,
    /// Held locked.
    file: File,
    /// Bytes of whole lines.
    length: u64,
    by_request: BTreeMap<String, Reply>,
}

impl Replies {
    /// Opens the replies of a folder, making it if it is not there.
    ///
    /// # Errors
    /// If another process has it, it cannot be written, or a line of it is damaged.
    pub(super) fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(NAME);
        let failed = || format!("cannot keep replies in {}", path.display());
        fs::create_dir_all(folder).with_context(failed)?;
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&path).with_context(failed)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let folder = folder.display();
            return Err(user(format!(
                "{folder}: another `eval judge` is writing there; wait for it, or stop it"
            )));
        }
        // The name must outlive a crash as the lines do.
        #[cfg(unix)]
        File::open(folder).and_then(|folder| folder.sync_all()).with_context(failed)?;
        let bytes = file.metadata().with_context(failed)?.len();
        if bytes > MAX_BYTES {
            return Err(user(format!("{} has {bytes} bytes; that is no file of replies", path.display())));
        }
        let mut content = Vec::with_capacity(bytes as usize);
        file.read_to_end(&mut content).with_context(failed)?;
        let length = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut replies = Replies { path, file, length: length as u64, by_request: BTreeMap::new() };
        for (number, line) in (1..).zip(content[..length].split(|byte| *byte == b'\n')) {
            if line.is_empty() {
                continue;
            }
            let reply: Reply = serde_json::from_slice(line).map_err(|error| {
                user(format!(
                    "{}:{number}: the line is no reply: {error}; remove it, and it is asked for again",
                    replies.path.display()
                ))
            })?;
            replies.by_request.insert(reply.request.clone(), reply);
        }
        if length < content.len() {
            replies.cut().with_context(|| format!("cannot repair {}", replies.path.display()))?;
            eprintln!("note: {}: a last line without its end was cut off", replies.path.display());
        }
        replies.file.seek(SeekFrom::Start(replies.length)).context("cannot go to the end of the replies")?;
        Ok(replies)
    }

    pub(super) fn get(&self, request: &str) -> Option<&Reply> {
        self.by_request.get(request)
    }

    /// Adds a reply, which is on the disk when this returns.
    ///
    /// # Errors
    /// If it cannot be written. The file is then as it was before.
    pub(super) fn add(&mut self, reply: Reply) -> anyhow::Result<()> {
        let mut line = serde_json::to_string(&reply).context("cannot write a reply as JSON")?;
        line.push('\n');
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // What stays of the line, the next process cuts off.
            let _ = self.cut();
            return Err(error).with_context(|| format!("cannot write to {}", self.path.display()));
        }
        self.length += line.len() as u64;
        self.by_request.insert(reply.request.clone(), reply);
        Ok(())
    }

    /// Leaves whole lines only.
    fn cut(&mut self) -> std::io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.sync_data()
    }
}
