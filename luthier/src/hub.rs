//! Finds a model: a folder as it is, or a hub id in the cache that `huggingface_hub` keeps, downloaded if missing.
//!
//! The cache is shared with Python: `models--owner--name/{refs,blobs,snapshots}`, a snapshot being a folder of relative
//! links to blobs, a blob being named by its etag (see `cache`). What is complete there is used without asking the
//! hub again; a newer commit is fetched by naming it as the revision, or by removing the folder from the cache.
//! `download` speaks HTTP; a download that broke off goes on where it stopped. What the hub answers is not trusted:
//! names, hashes and sizes are checked before they become paths.

mod cache;
mod download;
#[cfg(test)]
mod tests;

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use crate::error::user;
use cache::Repo;
use download::Client;

/// The folder of a model that is named by a folder or by a hub id, `owner/name[@revision]`.
///
/// Downloads the model if it is not in the cache yet, which takes as long as it takes, with progress on stderr.
pub(crate) fn resolve_model(name: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(name);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    if path.exists() {
        return Err(user(format!(
            "{name} is a file; a model is a folder with config.json and .safetensors files"
        )));
    }
    let id = match ModelId::parse(name) {
        Ok(id) => id,
        Err(_) if looks_like_a_path(name) => return Err(user(format!("no such folder: {name}"))),
        Err(reason) => return Err(user(format!("no such folder, and no hub id: `{name}`: {reason}"))),
    };
    Hub::from_environment(|name| std::env::var(name).ok())?.model(&id)
}

/// The folder of an adapter.
pub(crate) fn resolve_adapter(name: &str) -> anyhow::Result<PathBuf> {
    Ok(PathBuf::from(name))
}

/// Whether a name is a hub id, `owner/name[@revision]`, rather than a folder here.
pub(crate) fn is_id(name: &str) -> bool {
    !Path::new(name).exists() && !looks_like_a_path(name) && ModelId::parse(name).is_ok()
}

fn looks_like_a_path(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    name.is_empty() || name.contains('\\') || ["", ".", "..", "~"].contains(&first) || !name.contains('/')
}

/// A model on the hub, at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ModelId {
    owner: String,
    name: String,
    /// A branch, a tag or a commit.
    revision: String,
}

impl ModelId {
    /// Parses `owner/name[@revision]`; refuses what could not be a part of a path or an address.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = repo.split_once('/').ok_or("expected owner/name[@revision]")?;
        if !is_id_part(owner) || !is_id_part(name) {
            return Err("owner and name are made of letters, digits, `-`, `_` and `.`");
        }
        let parts_sound = revision.split('/').all(is_id_part);
        if !parts_sound {
            return Err("a revision is a branch, a tag or a commit");
        }
        Ok(Self { owner: owner.into(), name: name.into(), revision: revision.into() })
    }
}

impl Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// One part of a path that can lead nowhere but down: no separators, not hidden, no `..`.
fn is_id_part(part: &str) -> bool {
    (1..=96).contains(&part.len())
        && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
        && !part.starts_with(['.', '-'])
        && !part.contains("..")
}

/// The hub as the environment names it.
struct Hub {
    /// The folder that holds `models--owner--name`.
    cache: PathBuf,
    /// Whether the network may not be used.
    offline: bool,
    client: Client,
}

impl Hub {
    /// Reads the variables that `huggingface_hub` reads: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`,
    /// `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`.
    fn from_environment(variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let user_home = set("HOME").or_else(|| set("USERPROFILE"));
        let path = |text: String| match (text.strip_prefix("~/"), &user_home) {
            (Some(rest), Some(home)) => Path::new(home).join(rest),
            _ => PathBuf::from(text),
        };
        let home = set("HF_HOME")
            .map(path)
            .or_else(|| set("XDG_CACHE_HOME").map(|cache| path(cache).join("huggingface")))
            .or_else(|| user_home.as_ref().map(|home| Path::new(home).join(".cache/huggingface")))
            .ok_or_else(|| user("no folder for downloaded models: set HF_HOME"))?;
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).map(path);
        let token_file = set("HF_TOKEN_PATH").map(path).unwrap_or_else(|| home.join("token"));
        let token = set("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file).ok());
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let yes = |value: String| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str());
        let offline =
            ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().any(|name| set(name).is_some_and(yes));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Ok(Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            offline,
            client: Client::new(&endpoint, token),
        })
    }

    /// The snapshot folder of a model, downloaded if it is not complete.
    fn model(&self, id: &ModelId) -> anyhow::Result<PathBuf> {
        let repo = Repo::new(&self.cache, id);
        let cached = repo.snapshot(id).filter(|folder| cache::has_model(folder));
        // Without its tokenizer, which Python may not have needed, it is worth asking for the rest.
        if let Some(snapshot) = cached.filter(|folder| self.offline || folder.join("tokenizer.json").exists())
        {
            return Ok(snapshot);
        }
        if self.offline {
            return Err(user(format!(
                "{id}: no such folder, and revision `{}` is not complete in the cache {}, while HF_HUB_OFFLINE forbids \
                 to download it",
                id.revision,
                self.cache.display()
            )));
        }
        self.client.download(id, &repo)
    }
}
