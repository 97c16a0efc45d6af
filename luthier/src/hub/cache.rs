//! The layout of `huggingface_hub`'s cache: refs, blobs and snapshots of one repository.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use model::checkpoint::write_whole;
use serde::Deserialize;

use super::RepoId;
use crate::error::user;

/// A repository's folder in the cache.
pub(super) struct Repo {
    root: PathBuf,
    locks: PathBuf,
}

impl Repo {
    pub(super) fn new(cache: &Path, id: &RepoId) -> Self {
        let folder = format!("{}--{}--{}", id.kind.plural(), id.owner, id.name);
        Self { root: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    /// The folder of a revision, if it is known here; it may be incomplete.
    pub(super) fn snapshot(&self, id: &RepoId) -> Option<PathBuf> {
        let commit = match is_commit(&id.revision) {
            true => id.revision.clone(),
            false => fs::read_to_string(self.root.join("refs").join(&id.revision)).ok()?.trim().to_owned(),
        };
        let folder = self.root.join("snapshots").join(&commit);
        (is_commit(&commit) && folder.is_dir()).then_some(folder)
    }

    /// The folder that a commit's snapshot has, whether or not it exists.
    pub(super) fn snapshot_folder(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Notes which commit a branch or tag was. Done last, so that a ref leads to a whole snapshot.
    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> anyhow::Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        create_parent(&path)?;
        Ok(write_whole(&path, commit.as_bytes())?)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Notes what files a commit has. This program's own, in a hidden folder: without it, what is missing
    /// could not be told from what never was, and the hub would have to be asked each time.
    pub(super) fn write_names(&self, commit: &str, names: &[String]) -> anyhow::Result<()> {
        let path = self.names_path(commit);
        create_parent(&path)?;
        Ok(write_whole(&path, names.join("\n").as_bytes())?)
    }

    /// The names of a commit's files, if they were noted.
    pub(super) fn names(&self, commit: &str) -> Option<Vec<String>> {
        let names = fs::read_to_string(self.names_path(commit)).ok()?;
        Some(names.lines().filter(|name| is_inside(name)).map(str::to_owned).collect())
    }

    fn names_path(&self, commit: &str) -> PathBuf {
        self.root.join(".luthier").join(commit)
    }

    /// The file that holds a blob's bytes.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Waits until no other process downloads this blob; the lock ends with the returned file.
    pub(super) fn lock(&self, etag: &str) -> anyhow::Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    /// Puts a blob into a snapshot under a file's name. No other process may be doing so: its lock is held.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> anyhow::Result<()> {
        let path = self.snapshot_folder(commit).join(name);
        create_parent(&path)?;
        // A link that leads nowhere, left by an interrupted clean-up.
        if path.is_symlink() {
            fs::remove_file(&path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        let up = "../".repeat(name.matches('/').count() + 2);
        link_or_copy(&self.blob(etag), &format!("{up}blobs/{etag}"), &path)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(unix)]
fn link_or_copy(_blob: &Path, relative: &str, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

/// Links need a privilege on Windows, where `huggingface_hub` falls back to copies as well.
#[cfg(not(unix))]
fn link_or_copy(blob: &Path, _relative: &str, path: &Path) -> io::Result<()> {
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(|_| ()))
}

pub(super) fn create_parent(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))
}

/// A full git commit hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The names of a sharded model's files, as `model.safetensors.index.json` lists them.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Whether a folder holds a configuration and all weights that it needs.
pub(super) fn has_model(folder: &Path) -> bool {
    let weights = match fs::read_to_string(folder.join(INDEX)) {
        Ok(index) => {
            let whole =
                |names: Vec<String>| !names.is_empty() && names.iter().all(|name| folder.join(name).exists());
            shards(&index).is_ok_and(whole)
        }
        Err(_) => folder.join("model.safetensors").exists(),
    };
    weights && folder.join("config.json").exists()
}

/// The files that may hold an adapter's weights: PEFT's, and mlx-lm's.
pub(super) const ADAPTER_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapters.safetensors"];

/// Whether a folder holds an adapter.
pub(super) fn has_adapter(folder: &Path) -> bool {
    let weights = ADAPTER_WEIGHTS.iter().any(|name| folder.join(name).exists());
    weights && folder.join("adapter_config.json").exists()
}

/// The names of all files below a folder, sorted.
pub(super) fn files_below(folder: &Path) -> Vec<String> {
    fn visit(folder: &Path, prefix: &str, names: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else {
                continue;
            };
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => visit(&entry.path(), &format!("{name}/"), names),
                false => names.push(name),
            }
        }
    }
    let mut names = Vec::new();
    visit(folder, "", &mut names);
    names.sort();
    names
}

/// The files named by an index, each once, in the order of their names; refuses names that leave the folder.
pub(super) fn shards(index: &str) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_str(index).with_context(|| format!("{INDEX} is not valid"))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    match names.iter().find(|name| !is_inside(name)) {
        Some(name) => Err(user(format!("{INDEX} names a file outside its folder: {name:?}"))),
        None => Ok(names),
    }
}

/// Whether a file's name, as the hub gives it, stays within the folder that it is put into.
pub(super) fn is_inside(name: &str) -> bool {
    let sound = |part: &str| !part.is_empty() && part != "." && part != "..";
    name.len() <= 512
        && name.split('/').all(sound)
        && !name.contains(['\\', ':'])
        && !name.chars().any(char::is_control)
}
