//! Finds models, adapters and data sets: a path as it is, or a hub id in the cache that `huggingface_hub`
//! keeps, downloaded if missing.
//!
//! The cache is shared with Python: `models--owner--name/{refs,blobs,snapshots}`, a snapshot being a folder
//! of relative links to blobs, a blob being named by its etag (see `cache`). What is complete there is used
//! without asking the hub again; a newer commit is fetched by naming it as the revision, or by removing the
//! folder from the cache. `download` speaks HTTP, `transfer` brings files over several connections; a
//! download that broke off goes on where it stopped. `splits` says which files of a data set are a split.
//! What the hub answers is not trusted: names, hashes and sizes are checked before they become paths.

mod cache;
mod download;
mod splits;
#[cfg(test)]
mod tests;
mod transfer;

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::error::user;
use cache::{INDEX, Repo};
use download::{Client, Listing};
use model::gguf::Gguf;
use splits::Part;

/// The folder of a model that is named by a folder or by a hub id, `owner/name[@revision]`; or its GGUF file.
///
/// Downloads the model if it is not in the cache yet, which takes as long as it takes, with progress on
/// stderr.
pub(crate) fn resolve_model(name: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(name);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    if path.is_file() && Gguf::is_named_so(path) {
        return Ok(path.to_owned());
    }
    if path.exists() {
        return Err(user(format!(
            "{name} is a file; a model is a folder with config.json and .safetensors files, or a GGUF file"
        )));
    }
    let id = match RepoId::parse(Kind::Model, name) {
        Ok(id) => id,
        Err(_) if looks_like_a_path(name) => {
            let what = if name.ends_with(".gguf") { "file" } else { "folder" };
            return Err(user(format!("no such {what}: {name}")));
        }
        Err(reason) => return Err(user(format!("no such folder, and no hub id: `{name}`: {reason}"))),
    };
    Hub::open()?.model(&id)
}

/// Whether [`resolve_model`] finds a model without asking the hub.
pub(crate) fn is_here(model: &str) -> bool {
    let is_cached = |id: RepoId| {
        Hub::open().is_ok_and(|hub| hub.cached_model(&id, &Repo::new(&hub.cache, &id)).is_some())
    };
    Path::new(model).exists() || RepoId::parse(Kind::Model, model).is_ok_and(is_cached)
}

/// The folder of an adapter, named by a folder or by a hub id, `owner/name[@revision]`. A name that can be no
/// id is a folder's, whether or not there is one: whoever reads it says what is missing.
pub(crate) fn resolve_adapter(name: &str) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(name);
    match RepoId::parse(Kind::Adapter, name) {
        Ok(id) if !path.exists() && !looks_like_a_path(name) => Hub::open()?.adapter(&id),
        _ if !path.exists() => Err(user(format!("no such folder: {name}"))),
        _ => Ok(path),
    }
}

/// The files behind a source of examples: the path itself, or those of a data set on the hub,
/// `owner/name[@revision][:split]`.
pub(crate) fn resolve_data(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    match path.to_str().filter(|_| !path.exists()).and_then(DatasetName::parse) {
        Some(name) => Ok(Hub::open()?.dataset(&name)?.files),
        None => Ok(vec![path.to_owned()]),
    }
}

/// Downloads a model, or an adapter where the repository holds one, and returns its folder; one that is here
/// is left alone.
pub(crate) fn download(name: &str) -> anyhow::Result<PathBuf> {
    let id = RepoId::parse(Kind::Model, name);
    match id {
        Ok(id) if !Path::new(name).exists() && !looks_like_a_path(name) => Hub::open()?.model_or_adapter(&id),
        _ => resolve_model(name),
    }
}

/// Downloads a data set's split, `owner/name[@revision][:split]`, and returns the folder that its files are
/// in.
pub(crate) fn download_dataset(name: &str) -> anyhow::Result<PathBuf> {
    let parsed = DatasetName::parse(name).ok_or_else(|| {
        user(format!("`{name}` names no data set on the hub: expected owner/name[@revision][:split]"))
    })?;
    Ok(Hub::open()?.dataset(&parsed)?.folder)
}

/// Whether a name is a hub id, `owner/name[@revision]`, rather than a folder here.
pub(crate) fn is_id(name: &str) -> bool {
    !Path::new(name).exists() && !looks_like_a_path(name) && RepoId::parse(Kind::Model, name).is_ok()
}

fn looks_like_a_path(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    name.is_empty() || name.contains('\\') || ["", ".", "..", "~"].contains(&first) || !name.contains('/')
}

/// What a repository is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Model,
    /// On the hub a model like any other.
    Adapter,
    Dataset,
}

impl Kind {
    /// What the hub's addresses and the cache's folders call it.
    fn plural(self) -> &'static str {
        if self == Kind::Dataset { "datasets" } else { "models" }
    }

    /// What a name of it is taken for before the hub is asked.
    fn place(self) -> &'static str {
        if self == Kind::Dataset { "file or folder" } else { "folder" }
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Model => "model",
            Kind::Adapter => "adapter",
            Kind::Dataset => "data set",
        })
    }
}

/// A repository on the hub, at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RepoId {
    kind: Kind,
    owner: String,
    name: String,
    /// A branch, a tag or a commit.
    revision: String,
}

impl RepoId {
    /// Parses `owner/name[@revision]`; refuses what could not be a part of a path or an address.
    fn parse(kind: Kind, text: &str) -> Result<Self, &'static str> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = repo.split_once('/').ok_or("expected owner/name[@revision]")?;
        if !is_id_part(owner) || !is_id_part(name) {
            return Err("owner and name are made of letters, digits, `-`, `_` and `.`");
        }
        let parts_sound = revision.split('/').all(is_id_part);
        if !parts_sound {
            return Err("a revision is a branch, a tag or a commit");
        }
        Ok(Self { kind, owner: owner.into(), name: name.into(), revision: revision.into() })
    }
}

impl Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// A data set on the hub and the part of it that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DatasetName {
    id: RepoId,
    part: Part,
}

impl DatasetName {
    /// Parses `owner/name[@revision][:split]`, where the split may be one of a subset, `subset/split`. None:
    /// it is a path, as what ends like a file of examples is.
    fn parse(text: &str) -> Option<Self> {
        let (repo, part) = match text.split_once(':') {
            Some((repo, part)) => (repo, Part::parse(part)?),
            None => (text, Part::default()),
        };
        if looks_like_a_path(repo) || splits::has_data_ending(repo) {
            return None;
        }
        Some(Self { id: RepoId::parse(Kind::Dataset, repo).ok()?, part })
    }
}

/// Where a data set's split lies.
struct Dataset {
    folder: PathBuf,
    files: Vec<PathBuf>,
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
    /// Reads the variables that `huggingface_hub` reads: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`,
    /// `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`.
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

    /// The hub that this process's environment names.
    fn open() -> anyhow::Result<Self> {
        Self::from_environment(|name| std::env::var(name).ok())
    }

    /// The snapshot folder of a model, downloaded if it is not complete.
    fn model(&self, id: &RepoId) -> anyhow::Result<PathBuf> {
        let repo = Repo::new(&self.cache, id);
        match self.cached_model(id, &repo) {
            Some(folder) => Ok(folder),
            None => self.fetch_model(id, &repo, &self.ask(id)?),
        }
    }

    /// The snapshot folder of an adapter, downloaded if it is not complete.
    fn adapter(&self, id: &RepoId) -> anyhow::Result<PathBuf> {
        let repo = Repo::new(&self.cache, id);
        match repo.snapshot(id).filter(|folder| cache::has_adapter(folder)) {
            Some(folder) => Ok(folder),
            None => self.fetch_adapter(id, &repo, &self.ask(id)?),
        }
    }

    /// The snapshot folder of a repository that may hold one or the other.
    fn model_or_adapter(&self, id: &RepoId) -> anyhow::Result<PathBuf> {
        let repo = Repo::new(&self.cache, id);
        let adapter = || repo.snapshot(id).filter(|folder| cache::has_adapter(folder));
        if let Some(folder) = self.cached_model(id, &repo).or_else(adapter) {
            return Ok(folder);
        }
        let listing = self.ask(id)?;
        match listing.has("adapter_config.json") && !listing.has("config.json") {
            true => self.fetch_adapter(id, &repo, &listing),
            false => self.fetch_model(id, &repo, &listing),
        }
    }

    fn cached_model(&self, id: &RepoId, repo: &Repo) -> Option<PathBuf> {
        let cached = repo.snapshot(id).filter(|folder| cache::has_model(folder));
        // Without its tokenizer, which Python may not have needed, it is worth asking for the rest.
        cached.filter(|folder| self.offline || folder.join("tokenizer.json").exists())
    }

    fn fetch_model(&self, id: &RepoId, repo: &Repo, listing: &Listing) -> anyhow::Result<PathBuf> {
        if !listing.has("config.json") {
            return Err(user(format!("{id} has no config.json: it is no model in the Hugging Face layout")));
        }
        let mut names: Vec<&str> = listing.names().filter(|name| is_small_file(name)).collect();
        let folder = repo.snapshot_folder(listing.commit());
        let weights = match listing.has(INDEX) {
            true => {
                self.client.fetch(id, repo, listing, &[INDEX])?;
                cache::shards(&read(&folder.join(INDEX))?)?
            }
            false => vec!["model.safetensors".to_owned()],
        };
        if let Some(missing) = weights.iter().find(|name| !listing.has(name)) {
            return Err(user(format!(
                "{id} has no {missing}: only weights in safetensors files can be loaded"
            )));
        }
        names.extend(weights.iter().map(String::as_str));
        self.client.fetch(id, repo, listing, &names)?;
        repo.write_ref(&id.revision, listing.commit())?;
        Ok(folder)
    }

    fn fetch_adapter(&self, id: &RepoId, repo: &Repo, listing: &Listing) -> anyhow::Result<PathBuf> {
        let weights = cache::ADAPTER_WEIGHTS.iter().find(|name| listing.has(name));
        let Some(weights) = weights.filter(|_| listing.has("adapter_config.json")) else {
            let [peft, mlx] = cache::ADAPTER_WEIGHTS;
            return Err(user(format!(
                "{id} is no adapter: there is no adapter_config.json with {peft} or {mlx} beside it"
            )));
        };
        let small = |name: &&str| {
            is_small_file(name) || ["adapter_config.json", "run.yaml", "README.md"].contains(name)
        };
        let names: Vec<&str> = listing.names().filter(small).chain([*weights]).collect();
        self.client.fetch(id, repo, listing, &names)?;
        repo.write_ref(&id.revision, listing.commit())?;
        Ok(repo.snapshot_folder(listing.commit()))
    }

    /// The files of a data set's split, downloaded if they are not all here.
    fn dataset(&self, name: &DatasetName) -> anyhow::Result<Dataset> {
        let DatasetName { id, part } = name;
        let repo = Repo::new(&self.cache, id);
        // The hub is asked for the commit that is here already: what a split is does not change under a run.
        let here = repo.snapshot(id);
        let commit = here.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        if let (Some(folder), Some(commit)) = (&here, commit) {
            // Without a list of its own, which only this program keeps, what Python fetched is all there is
            // to go by.
            let names = repo.names(commit).or_else(|| self.offline.then(|| cache::files_below(folder)));
            if let Some(names) = names
                && let Some(files) = present(folder, &self.split(id, part, folder, &names)?)
            {
                return Ok(Dataset { folder: folder.clone(), files });
            }
        }
        let at_commit = RepoId { revision: commit.unwrap_or(&id.revision).to_owned(), ..id.clone() };
        let listing = self.ask(&at_commit)?;
        let folder = repo.snapshot_folder(listing.commit());
        if listing.has(CARD) {
            self.client.fetch(id, &repo, &listing, &[CARD])?;
        }
        let names: Vec<String> = listing.names().map(str::to_owned).collect();
        let split = self.split(id, part, &folder, &names)?;
        self.client.fetch(id, &repo, &listing, &split.iter().map(String::as_str).collect::<Vec<_>>())?;
        repo.write_names(listing.commit(), &names)?;
        repo.write_ref(&id.revision, listing.commit())?;
        let files = split.iter().map(|name| folder.join(name)).collect();
        Ok(Dataset { folder, files })
    }

    /// The names of a split's files among those of a data set, whose card lies in `folder` if it has one.
    fn split(
        &self,
        id: &RepoId,
        part: &Part,
        folder: &Path,
        names: &[String],
    ) -> anyhow::Result<Vec<String>> {
        let card = folder.join(CARD);
        let card = if card.exists() { Some(read(&card)?) } else { None };
        splits::files(names, card.as_deref(), part).map_err(|reason| user(format!("{id}: {reason}")))
    }

    /// What the hub says of a revision, if it may be asked.
    fn ask(&self, id: &RepoId) -> anyhow::Result<Listing> {
        if self.offline {
            return Err(user(format!(
                "{id}: no such {} here, and revision `{}` is not complete in the cache {}, while HF_HUB_OFFLINE forbids to \
                 download it",
                id.kind.place(),
                id.revision,
                self.cache.display()
            )));
        }
        self.client.listing(id)
    }
}

/// A data set's description, whose head says which files are which split.
const CARD: &str = "README.md";

/// Files beside the weights that are fetched where the repository has them.
const SMALL_FILES: [&str; 11] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

fn is_small_file(name: &str) -> bool {
    SMALL_FILES.contains(&name) || (!name.contains('/') && name.to_uppercase().starts_with("LICENSE"))
}

/// The files' paths, if all of them are there.
fn present(folder: &Path, names: &[String]) -> Option<Vec<PathBuf>> {
    let files: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
    files.iter().all(|file| file.exists()).then_some(files)
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
