//! Publishing: what takes time to write is filled under a hidden name beside its place, and gets its name
//! when it is whole.
//!
//! The hidden folder belongs to one process, which holds a lock on a file in it. What nobody holds is of a
//! process that was killed, and is swept by the next one that writes beside it. A process number would not
//! tell: numbers come again, and containers that share a folder have equal ones. Where the file system has no
//! locks, nothing is swept.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use tempfile::{Builder, TempDir, TempPath};

use super::writer::{folder_of, sync, sync_folder};
use crate::error::{ModelError, Result};

/// Ends the names of hidden folders. They are deleted with all that is in them, so no other program may use
/// such names.
const SUFFIX: &str = ".luthier-partial";
/// What is in a hidden folder: the file that its owner holds, what is being filled, what that is about to
/// replace.
const LOCK: &str = "lock";
const NEW: &str = "new";
const OLD: &str = "old";
/// Folders to make before giving up: one that is swept between being made and being held is no good.
const ATTEMPTS: usize = 16;

/// A file or folder that is being filled and appears whole or not at all. Dropped before it is published, it
/// leaves nothing.
#[derive(Debug)]
pub struct Staging {
    // In the order in which they go: the folder is removed while it is held, then those that were made for
    // it.
    _hidden: TempDir,
    _lock: File,
    _parents: Parents,
    content: PathBuf,
    target: PathBuf,
    replaces: bool,
}

impl Staging {
    /// An empty folder, to be published as `output`, where nothing may be but an empty folder.
    ///
    /// # Errors
    /// If `output` is taken, another process is writing it, or no folder can be made there.
    pub fn folder(output: &Path) -> Result<Self> {
        let target = resolve(output)?;
        let there = match fs::read_dir(&target).map(|mut entries| entries.next().is_none()) {
            Ok(true) => Some(fs::metadata(&target).map_err(|e| ModelError::read(output, e))?),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Ok(false) => {
                let problem = "is not empty; name a new folder, so that nothing is overwritten";
                return Err(ModelError::file(output, problem));
            }
            Err(e) if e.kind() == ErrorKind::NotADirectory => {
                return Err(ModelError::file(output, "is a file; name a new folder"));
            }
            Err(e) => return Err(ModelError::write(output, e)),
        };
        if there.is_some() && std::env::current_dir().is_ok_and(|here| here == target) {
            // A shell that stands in a folder that is replaced sees an empty one.
            let problem = "is the folder that this program was started in; name a new folder in it";
            return Err(ModelError::file(output, problem));
        }
        let staging = Staging::in_free_place(output, target)?;
        let make = || fs::create_dir(&staging.content).map_err(|e| ModelError::write(output, e));
        make()?;
        if let Some(metadata) = there {
            // That the empty folder can be replaced is tried now rather than after all the work. Its
            // permissions stay.
            let allow = || fs::set_permissions(&staging.content, metadata.permissions());
            allow().and_then(|()| fs::rename(&staging.content, &staging.target)).map_err(|e| {
                match e.kind() {
                    ErrorKind::ResourceBusy | ErrorKind::CrossesDevices => {
                        let problem = "is a mount point, which cannot be replaced; name a new folder in it";
                        ModelError::file(output, problem)
                    }
                    _ => staging.refused(e),
                }
            })?;
            make()?;
            allow().map_err(|e| ModelError::write(output, e))?;
        }
        Ok(staging)
    }

    /// A file that is yet to be written, to be published as `output`, where nothing may be.
    ///
    /// # Errors
    /// If `output` is taken, another process is writing it, or no file can be made there.
    pub fn file(output: &Path) -> Result<Self> {
        let target = resolve(output)?;
        match fs::metadata(&target) {
            Err(e) if e.kind() == ErrorKind::NotFound => Staging::in_free_place(output, target),
            Err(e) => Err(ModelError::write(output, e)),
            Ok(metadata) if metadata.is_dir() => {
                Err(ModelError::file(output, "is a folder; name a new file in it"))
            }
            Ok(_) => Err(ModelError::file(output, "exists; name a new file, so that nothing is overwritten")),
        }
    }

    /// An empty folder that takes the place of what is at `path`, in a folder that exists and that no other
    /// process writes in.
    ///
    /// # Errors
    /// If no folder can be made there.
    pub fn replacing(path: &Path) -> Result<Self> {
        let staging = Staging::beside(path.to_owned(), true, Parents::default())?;
        fs::create_dir(&staging.content).map_err(|e| ModelError::write(path, e))?;
        Ok(staging)
    }

    /// Sweeps first, so that its room can be used again what a killed process left there.
    fn in_free_place(output: &Path, target: PathBuf) -> Result<Self> {
        let folder = folder_of(&target);
        let parents = Parents::make(folder).map_err(|e| ModelError::write(output, e))?;
        // Of two that start together both may get on from here; then the first to publish wins.
        if sweep_staged(folder).contains(&name_of(&target)) {
            let problem =
                "is being written by another process; wait until it has ended, or name another place";
            return Err(ModelError::file(output, problem));
        }
        Staging::beside(target, false, parents)
    }

    fn beside(target: PathBuf, replaces: bool, parents: Parents) -> Result<Self> {
        let folder = folder_of(&target);
        let prefix = format!(".{}.", name_of(&target));
        for _ in 0..ATTEMPTS {
            let hidden = Builder::new().prefix(&prefix).suffix(SUFFIX).tempdir_in(folder);
            let hidden = hidden.map_err(|e| ModelError::write(&target, e))?;
            if let Some(lock) = hold(hidden.path()).map_err(|e| ModelError::write(&target, e))? {
                // As the target was named, for messages.
                let content = folder.join(name_of(hidden.path())).join(NEW);
                return Ok(Staging {
                    _hidden: hidden,
                    _lock: lock,
                    _parents: parents,
                    content,
                    target,
                    replaces,
                });
            }
        }
        let problem = "cannot be written: the hidden folders beside it vanish as soon as they are made";
        Err(ModelError::file(&target, problem))
    }

    /// What is to be filled.
    pub fn path(&self) -> &Path {
        &self.content
    }

    /// Gives what was filled its name. Its files are on the disk already, as
    /// [`write_whole`](super::write_whole) and [`CheckpointWriter`](super::CheckpointWriter) leave them.
    ///
    /// # Errors
    /// If the place has been taken meanwhile; what is there stays.
    pub fn publish(self) -> Result<()> {
        sync(&self.content);
        let published = if self.replaces {
            self.replace()
        } else if self.content.is_dir() {
            // Takes the place of nothing but an empty folder.
            fs::rename(&self.content, &self.target)
        } else {
            let path = TempPath::try_from_path(&self.content);
            path.and_then(|path| path.persist_noclobber(&self.target).map_err(|e| e.error))
        };
        published.map_err(|e| self.refused(e))?;
        sync_folder(&self.target);
        Ok(())
    }

    /// A process that is killed between the two leaves it to [`sweep_staged`] to put the old one back.
    fn replace(&self) -> io::Result<()> {
        let old = self.content.with_file_name(OLD);
        let had_one = match fs::rename(&self.target, &old) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            renamed => renamed.is_ok(),
        };
        fs::rename(&self.content, &self.target).inspect_err(|_| {
            if had_one {
                let _ = fs::rename(&old, &self.target); // the error that brought us here matters more
            }
        })
    }

    fn refused(&self, error: io::Error) -> ModelError {
        match error.kind() {
            ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory => {
                let problem =
                    "was written by another process meanwhile and is left as it is; name another place";
                ModelError::file(&self.target, problem)
            }
            _ => ModelError::write(&self.target, error),
        }
    }
}

/// Folders that were made on the way; those that are still empty in the end go again.
#[derive(Debug, Default)]
struct Parents(Vec<PathBuf>);

impl Parents {
    fn make(folder: &Path) -> io::Result<Self> {
        let missing = folder.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let parents = Parents(missing.map(Path::to_owned).collect());
        fs::create_dir_all(folder)?;
        Ok(parents)
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_dir(path); // the innermost first, and none that is not empty
        }
    }
}

/// Where a new file or folder goes: links are followed, since a folder cannot take a link's place.
fn resolve(output: &Path) -> Result<PathBuf> {
    match fs::canonicalize(output) {
        Err(e) if e.kind() == ErrorKind::NotFound => match output.file_name() {
            None => Err(ModelError::file(output, "names no place for a new file or folder")),
            Some(name) => {
                let target = output.with_file_name(name);
                match target.is_symlink() {
                    true => Err(ModelError::file(output, "is a link that leads nowhere; name another place")),
                    false => Ok(target),
                }
            }
        },
        resolved => resolved.map_err(|e| ModelError::write(output, e)),
    }
}

/// Holds a hidden folder that was just made, unless somebody who sweeps was faster.
fn hold(hidden: &Path) -> io::Result<Option<File>> {
    let path = hidden.join(LOCK);
    let lock = match File::create_new(&path) {
        Err(e) if matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => return Ok(None),
        created => created?,
    };
    // Without locks it is not held, but nobody sweeps it either.
    let swept = matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) || !path.exists();
    Ok((!swept).then_some(lock))
}

/// Removes the hidden folders that processes which were killed left in a folder, and puts back what one of
/// them was about to replace. Returns the names of what living processes are writing there.
pub fn sweep_staged(folder: &Path) -> Vec<String> {
    let mut live = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (hidden, name) = (entry.path(), name_of(&entry.path()));
        let staged = name.strip_prefix('.').and_then(|n| n.strip_suffix(SUFFIX)?.rsplit_once('.'));
        let Some((name, _)) = staged.filter(|_| entry.file_type().is_ok_and(|t| t.is_dir())) else {
            continue;
        };
        // Made where it is missing: who comes upon a folder before its owner holds it must not think it free.
        let lock = File::options().write(true).create(true).truncate(false).open(hidden.join(LOCK));
        match lock.map(|lock| (lock.try_lock(), lock)) {
            Ok((Ok(()), _lock)) => {
                let (new, old, target) = (hidden.join(NEW), hidden.join(OLD), folder.join(name));
                if new.exists() && old.exists() && !target.exists() {
                    let _ = fs::rename(old, target); // if it cannot be, it is as good as lost
                }
                let _ = fs::remove_dir_all(&hidden); // of no use, and no harm
            }
            Ok((Err(TryLockError::WouldBlock), _)) => live.push(name.to_owned()),
            _ => {}
        }
    }
    live
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
