//! The folder that adapters may come from. No name and no path leads out of it.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::is_name;
use crate::error::ServerError;

/// The file that makes a folder an adapter, as PEFT and mlx-lm write it.
const CONFIG_FILE: &str = "adapter_config.json";

pub(super) struct Root(PathBuf);

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self, ServerError> {
        let refused = |message: String| ServerError::Root { path: path.to_owned(), message };
        let resolved = path.canonicalize().map_err(|error| refused(error.to_string()))?;
        match resolved.is_dir() {
            true => Ok(Root(resolved)),
            false => Err(refused("adapters come from a folder, and this is none".into())),
        }
    }

    /// The adapter folder of this name, if there is one.
    pub(super) fn named(&self, name: &str) -> Option<PathBuf> {
        let path = is_name(name).then(|| self.0.join(name).canonicalize().ok())??;
        (path.starts_with(&self.0) && path.join(CONFIG_FILE).is_file()).then_some(path)
    }

    /// The folder that a path within the root names.
    pub(super) fn within(&self, path: &str) -> Result<PathBuf, String> {
        let relative = Path::new(path);
        let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        if path.is_empty() || path.contains('\0') || !relative.components().all(is_plain) {
            return Err("an adapter's path is relative to the adapter root and stays within it".into());
        }
        // That something is there is not told of what lies outside.
        match self.0.join(relative).canonicalize() {
            Ok(found) if found.starts_with(&self.0) && found.is_dir() => Ok(found),
            _ => Err(format!("the adapter root has no folder `{path}`")),
        }
    }

    /// The names of the adapter folders, each with its path.
    pub(super) fn adapters(&self) -> Vec<(String, PathBuf)> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| self.named(&name).map(|path| (name, path))).collect()
    }
}
