//! Downloads a model's files from the hub into the cache; resumes what broke off, checks sizes and hashes.
//!
//! HTTP is `ureq`: blocking, as all of this program is, and a fifth of what `reqwest` pulls in. TLS is `rustls` on
//! `ring`, which needs no more than the C compiler that Rust links with. The system's certificates count, so that
//! `SSL_CERT_FILE` and a company's own authority work; `HTTPS_PROXY` and `NO_PROXY` are honoured.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::ModelId;
use super::cache::{self, INDEX, Repo};
use crate::error::user;
use crate::terminal::Progress;

/// Attempts in a row that bring no byte, after which a download is given up.
const ATTEMPTS: u32 = 5;
/// A listing of a repository's files that is larger than this is none.
const MAX_LISTING_BYTES: u64 = 64 << 20;

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

/// Speaks with one hub.
pub(super) struct Client {
    endpoint: String,
    token: Option<String>,
    agent: Agent,
    /// Before the second attempt; doubled before each further one.
    pub(super) first_wait: Duration,
}

/// A file of a repository.
#[derive(Clone, Debug)]
struct RemoteFile {
    name: String,
    /// The content's address: SHA-256 for large files, git's hash for small ones.
    etag: String,
    bytes: u64,
}

/// What the hub says of a revision.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Client {
    pub(super) fn new(endpoint: &str, token: Option<String>) -> Self {
        Self::with_proxy(endpoint, token, ureq::Proxy::try_from_env())
    }

    /// `proxy`: as `HTTPS_PROXY` and its like say; none in tests, which talk to this machine.
    pub(super) fn with_proxy(endpoint: &str, token: Option<String>, proxy: Option<ureq::Proxy>) -> Self {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // The token goes to the hub, never to the storage that the hub redirects to.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .tls_config(tls)
            .proxy(proxy)
            .accept_encoding("identity")
            .user_agent(concat!("luthier/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        let first_wait = Duration::from_secs(1);
        Self { endpoint: endpoint.trim_end_matches('/').to_owned(), token, agent, first_wait }
    }

    /// Brings a revision into the cache and returns its snapshot folder.
    pub(super) fn download(&self, id: &ModelId, repo: &Repo) -> anyhow::Result<PathBuf> {
        let listing = self.listing(id)?;
        let commit = listing.sha.as_str();
        if let Some(bad) = listing.siblings.iter().find(|s| !cache::is_inside(&s.rfilename)) {
            return Err(user(format!("{id}: the hub lists a file outside its folder: {:?}", bad.rfilename)));
        }
        let has = |name: &str| listing.siblings.iter().any(|s| s.rfilename == name);
        if !has("config.json") {
            return Err(user(format!("{id} has no config.json: it is no model in the Hugging Face layout")));
        }
        let mut files = Vec::new();
        for sibling in listing.siblings.iter().filter(|s| is_small_file(&s.rfilename)) {
            files.push(self.describe(id, commit, sibling)?);
        }
        let mut weights = vec!["model.safetensors".to_owned()];
        if let Some(index) = listing.siblings.iter().find(|s| s.rfilename == INDEX) {
            let index = self.describe(id, commit, index)?;
            self.fetch(id, repo, commit, &index, &mut |_| {})?;
            let path = repo.snapshot_folder(commit).join(INDEX);
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            weights = cache::shards(&text)?;
        }
        for name in weights {
            let sibling = listing.siblings.iter().find(|s| s.rfilename == name).ok_or_else(|| {
                user(format!("{id} has no {name}: only weights in safetensors files can be loaded"))
            })?;
            files.push(self.describe(id, commit, sibling)?);
        }
        let total = files.iter().map(|file| file.bytes).sum();
        let mut progress = Progress::bytes(&format!("downloading {id}"), total, 0);
        let mut done = 0;
        for file in &files {
            self.fetch(id, repo, commit, file, &mut |bytes| progress.set(done + bytes, ""))?;
            done += file.bytes;
            progress.set(done, "");
        }
        progress.finish("");
        repo.write_ref(&id.revision, commit)?;
        Ok(repo.snapshot_folder(commit))
    }

    /// What the hub says of a revision: its commit and its files.
    fn listing(&self, id: &ModelId) -> anyhow::Result<Listing> {
        let url =
            format!("{}/api/models/{id}/revision/{}?blobs=true", self.endpoint, escape(&id.revision, false));
        let mut response = self.patiently(id, || self.get(&url, 0))?;
        let text = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_string();
        let text = text.with_context(|| format!("{id}: the answer of {} broke off", self.endpoint))?;
        let listing: Listing = serde_json::from_str(&text)
            .with_context(|| format!("{id}: {} does not answer as a hub does", self.endpoint))?;
        if !cache::is_commit(&listing.sha) {
            return Err(user(format!("{id}: {} names no commit, but {:?}", self.endpoint, listing.sha)));
        }
        Ok(listing)
    }

    /// A file's content address and size: from the listing, or asked for where a mirror's listing lacks them.
    fn describe(&self, id: &ModelId, commit: &str, sibling: &Sibling) -> anyhow::Result<RemoteFile> {
        let lfs = sibling.lfs.as_ref();
        let etag = lfs.map_or(sibling.blob_id.clone(), |lfs| lfs.sha256.clone());
        let bytes = lfs.and_then(|lfs| lfs.size).or(sibling.size);
        let name = sibling.rfilename.clone();
        let (etag, bytes) = match (etag, bytes) {
            (Some(etag), Some(bytes)) => (etag, bytes),
            _ => self.head(id, commit, &name)?,
        };
        let sound =
            (16..=128).contains(&etag.len()) && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !sound {
            return Err(user(format!(
                "{id}: the hub gives {name} the etag {etag:?}, which cannot name a file"
            )));
        }
        Ok(RemoteFile { name, etag, bytes })
    }

    /// Etag and size from a file's headers, before any redirect to another host.
    fn head(&self, id: &ModelId, commit: &str, name: &str) -> anyhow::Result<(String, u64)> {
        let mut url = self.address(id, commit, name);
        for _ in 0..5 {
            let response = self.patiently(id, || {
                let request =
                    self.agent.head(&url).config().max_redirects(0).max_redirects_will_error(false).build();
                match &self.token {
                    Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")).call(),
                    None => request.call(),
                }
            })?;
            let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            let etag = text("x-linked-etag").or_else(|| text("etag"));
            let bytes = text("x-linked-size").or_else(|| text("content-length")).and_then(|n| n.parse().ok());
            match (text("location"), text("x-linked-etag"), etag, bytes) {
                (Some(location), None, _, _) if location.starts_with('/') => {
                    url = format!("{}{location}", self.endpoint);
                }
                (_, _, Some(etag), Some(bytes)) => {
                    return Ok((etag.trim_start_matches("W/").trim_matches('"').to_owned(), bytes));
                }
                _ => break,
            }
        }
        Err(user(format!("{id}: {} does not say what {name} is (no etag or size)", self.endpoint)))
    }

    /// Brings one file into the snapshot, unless it is there. Tells `moved` how many bytes of it have come.
    fn fetch(
        &self,
        id: &ModelId,
        repo: &Repo,
        commit: &str,
        file: &RemoteFile,
        moved: &mut dyn FnMut(u64),
    ) -> anyhow::Result<()> {
        let (blob, name) = (repo.blob(&file.etag), repo.snapshot_folder(commit).join(&file.name));
        if name.exists() {
            return Ok(());
        }
        let _lock = repo.lock(&file.etag)?;
        // Another process may have been faster.
        if !blob.exists() {
            self.fetch_blob(id, commit, file, &blob, moved)?;
        }
        match name.exists() {
            true => Ok(()),
            false => repo.link(commit, &file.name, &file.etag),
        }
    }

    /// Downloads a blob, going on from what an earlier attempt left, and checks it before it takes its name.
    fn fetch_blob(
        &self,
        id: &ModelId,
        commit: &str,
        file: &RemoteFile,
        blob: &Path,
        moved: &mut dyn FnMut(u64),
    ) -> anyhow::Result<()> {
        let name = &file.name;
        let mut partial = Partial::open(blob, file.bytes)?;
        let url = self.address(id, commit, name);
        let mut failures = 0;
        while partial.bytes < file.bytes {
            let before = partial.bytes;
            let outcome = self.stream(id, &url, &mut partial, moved)?;
            failures = if partial.bytes > before { 0 } else { failures + 1 };
            if failures >= ATTEMPTS {
                let reason = outcome.err().map_or("no data came".into(), |error| error.to_string());
                return Err(user(format!(
                    "{id}: the download of {name} broke off at {} of {} bytes ({reason}); run again to go on from there",
                    partial.bytes, file.bytes
                )));
            }
            if partial.bytes < file.bytes {
                sleep(self.first_wait * (1 << failures));
            }
        }
        partial.finish(id, file, blob)
    }

    /// One attempt: the rest of the file into `partial`. The outer error is final, the inner one may pass.
    fn stream(
        &self,
        id: &ModelId,
        url: &str,
        partial: &mut Partial,
        moved: &mut dyn FnMut(u64),
    ) -> anyhow::Result<Result<(), ureq::Error>> {
        let mut response = match self.get(url, partial.bytes) {
            Ok(response) => response,
            Err(error) => return Ok(Err(error)),
        };
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, partial.bytes) => {}
            StatusCode::OK if partial.bytes == 0 => {}
            // The server begins anew, or cannot go on from here: so do we.
            StatusCode::OK => partial.restart()?,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                partial.restart()?;
                return Ok(Err(ureq::Error::StatusCode(response.status().as_u16())));
            }
            status if may_pass(status) => return Ok(Err(ureq::Error::StatusCode(status.as_u16()))),
            status => return Err(self.refusal(id, status)),
        }
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match body.read(&mut buffer) {
                Ok(0) => return Ok(Ok(())),
                Ok(n) => {
                    let full = partial.append(&buffer[..n])?;
                    moved(partial.bytes);
                    if full {
                        return Ok(Ok(()));
                    }
                }
                Err(error) => return Ok(Err(ureq::Error::Io(error))),
            }
        }
    }

    /// Repeats a request that failed for a reason that may pass; turns what remains into an error for the user.
    fn patiently(
        &self,
        id: &ModelId,
        request: impl Fn() -> Result<Response<Body>, ureq::Error>,
    ) -> anyhow::Result<Response<Body>> {
        for attempt in 1.. {
            let last = attempt == ATTEMPTS;
            match request() {
                Ok(response) if may_pass(response.status()) && !last => {}
                Ok(response) if response.status().is_success() || response.status().is_redirection() => {
                    return Ok(response);
                }
                Ok(response) => return Err(self.refusal(id, response.status())),
                Err(error) if last || !may_pass_error(&error) => {
                    return Err(user(format!(
                        "{id} is no folder here, and {} cannot be reached: {error}",
                        self.endpoint
                    )));
                }
                Err(_) => {}
            }
            sleep(self.first_wait * (1 << (attempt - 1)));
        }
        unreachable!("the last attempt returns")
    }

    fn get(&self, url: &str, from: u64) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request.call()
    }

    fn address(&self, id: &ModelId, commit: &str, name: &str) -> String {
        format!("{}/{id}/resolve/{commit}/{}", self.endpoint, escape(name, true))
    }

    /// What a refusal means to the user.
    fn refusal(&self, id: &ModelId, status: StatusCode) -> anyhow::Error {
        let endpoint = &self.endpoint;
        user(match status {
            StatusCode::UNAUTHORIZED if self.token.is_none() => format!(
                "{id}: no such folder here, and {endpoint} has no such public model; if it is private or gated, set HF_TOKEN or log in with \
                 `hf auth login`"
            ),
            StatusCode::UNAUTHORIZED => format!("{id}: {endpoint} does not accept the token in HF_TOKEN"),
            StatusCode::FORBIDDEN => format!(
                "{id}: access is refused; accept the model's conditions at {endpoint}/{id} and use a token of that account \
                 (HF_TOKEN)"
            ),
            StatusCode::NOT_FOUND => format!(
                "{id}: no such folder here, and {endpoint} has no such model or no revision `{}`",
                id.revision
            ),
            status => format!("{id}: {endpoint} answers {status}"),
        })
    }
}

fn is_small_file(name: &str) -> bool {
    SMALL_FILES.contains(&name) || (!name.contains('/') && name.to_uppercase().starts_with("LICENSE"))
}

/// Answers after which the same request may succeed.
fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status)
}

fn may_pass_error(error: &ureq::Error) -> bool {
    use ureq::Error::*;
    matches!(error, Io(_) | Timeout(_) | ConnectionFailed | Protocol(_))
}

/// Whether a partial answer begins where the file on disk ends.
fn starts_at(response: &Response<Body>, offset: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")))
}

/// Escapes what has a meaning in an address; `/` stays if it separates a path's parts.
fn escape(text: &str, keep_slashes: bool) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || (keep_slashes && byte == b'/');
        if plain {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// A blob on its way: `<etag>.incomplete`, which stays for the next attempt when this one breaks off.
struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    bytes: u64,
    limit: u64,
}

impl Partial {
    /// Opens what an earlier attempt left, or a new file. What is longer than `limit` cannot be a beginning.
    fn open(blob: &Path, limit: u64) -> anyhow::Result<Self> {
        cache::create_parent(blob)?;
        let path = blob.with_added_extension("incomplete");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let mut partial = Self { path, file, hasher: Sha256::new(), bytes: 0, limit };
        let read = io::copy(&mut partial.file, &mut HashWriter(&mut partial.hasher));
        partial.bytes = read.with_context(|| format!("cannot read {}", partial.path.display()))?;
        if partial.bytes > limit {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        let restart = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        restart.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.hasher = Sha256::new();
        self.bytes = 0;
        Ok(())
    }

    /// Adds bytes up to the limit; true if it is reached.
    fn append(&mut self, bytes: &[u8]) -> anyhow::Result<bool> {
        let room = usize::try_from(self.limit - self.bytes).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(room)];
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", self.path.display()))?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(self.bytes == self.limit)
    }

    /// Checks the hash, where the etag is one, and gives the blob its name.
    fn finish(self, id: &ModelId, file: &RemoteFile, blob: &Path) -> anyhow::Result<()> {
        let is_sha256 = file.etag.len() == 64;
        let hash: String = self.hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if is_sha256 && hash != file.etag {
            fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))?;
            return Err(user(format!(
                "{id}: {} was damaged on the way (SHA-256 is {hash}, not {}); it has been removed, run again to fetch it \
                 anew",
                file.name, file.etag
            )));
        }
        self.file.sync_all().with_context(|| format!("cannot write {}", self.path.display()))?;
        fs::rename(&self.path, blob).with_context(|| format!("cannot write {}", blob.display()))
    }
}

/// Feeds what is copied to a hash.
struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
