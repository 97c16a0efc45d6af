//! Asks the hub what a repository holds and for files of it, again where an answer may come yet.
//!
//! HTTP is `ureq`: blocking, as all of this program is, and a fifth of what `reqwest` pulls in. TLS is
//! `rustls` on `ring`, which needs no more than the C compiler that Rust links with. The system's
//! certificates count, so that `SSL_CERT_FILE` and a company's own authority work; `HTTPS_PROXY` and
//! `NO_PROXY` are honoured.

use std::ops::Range;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::cache::{self, Repo};
use super::transfer::{self, RemoteFile};
use super::{Kind, RepoId};
use crate::error::user;
use crate::terminal::{bytes, rough};

/// Attempts in a row that bring no byte, after which a download is given up.
pub(super) const ATTEMPTS: u32 = 6;
/// The longest wait that is our own choice, and the longest that a hub may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const LONGEST_ASKED_WAIT: Duration = Duration::from_secs(300);
/// A listing of a repository's files that is larger than this is none.
const MAX_LISTING_BYTES: u64 = 64 << 20;

/// Speaks with one hub.
pub(super) struct Client {
    endpoint: String,
    token: Option<String>,
    agent: Agent,
    /// Before the second attempt; doubled before each further one.
    pub(super) first_wait: Duration,
    /// How many connections files come over.
    pub(super) connections: usize,
    /// Bytes of a file that one request asks for where there is more of it.
    pub(super) segment: u64,
    /// Bytes that a folder's disk has room for, where that can be told.
    pub(super) free_space: fn(&Path) -> Option<u64>,
}

/// A failure after which the same request may succeed.
#[derive(Debug)]
pub(super) struct Hiccup {
    pub(super) reason: String,
    /// How long the hub asks to wait.
    wait: Option<Duration>,
}

/// What the hub says of a revision.
#[derive(Deserialize)]
pub(super) struct Listing {
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

impl Listing {
    /// The full hash of the commit.
    pub(super) fn commit(&self) -> &str {
        &self.sha
    }

    /// The names of its files, none of which leads out of the folder that it is put into.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.siblings.iter().map(|sibling| sibling.rfilename.as_str())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names().any(|other| other == name)
    }
}

impl Hiccup {
    /// A connection that could not be made, or broke.
    pub(super) fn lost(error: impl std::fmt::Display) -> Self {
        Self { reason: format!("connection lost ({error})"), wait: None }
    }

    /// The answer of a hub that is busy or ill.
    pub(super) fn answer(response: &Response<Body>) -> Self {
        let asked = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let wait = asked.and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
        Self { reason: format!("the hub answers {}", response.status()), wait }
    }

    /// How long to wait, the `failures`-th time in a row.
    pub(super) fn wait(&self, first: Duration, failures: u32) -> Duration {
        let ours = first.saturating_mul(1 << (failures - 1)).min(LONGEST_WAIT);
        ours.max(self.wait.unwrap_or_default().min(LONGEST_ASKED_WAIT))
    }

    /// What the person reads meanwhile.
    pub(super) fn note(&self, wait: Duration) -> String {
        format!("{}, trying again in {}", self.reason, rough(wait))
    }
}

impl Client {
    pub(super) fn new(endpoint: &str, token: Option<String>) -> Self {
        Self::with(endpoint, token, ureq::Proxy::try_from_env(), Duration::from_secs(60))
    }

    /// `proxy`: as `HTTPS_PROXY` and its like say; none in tests, which talk to this machine. `patience`:
    /// with a hub that says nothing.
    pub(super) fn with(
        endpoint: &str,
        token: Option<String>,
        proxy: Option<ureq::Proxy>,
        patience: Duration,
    ) -> Self {
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
            .timeout_recv_response(Some(patience))
            .timeout_per_read(Some(patience))
            .build()
            .new_agent();
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            agent,
            first_wait: Duration::from_secs(1),
            connections: 8,
            segment: 8 << 20,
            free_space,
        }
    }

    /// What the hub says of a revision: its commit and its files.
    pub(super) fn listing(&self, id: &RepoId) -> anyhow::Result<Listing> {
        let (kind, revision) = (id.kind.plural(), escape(&id.revision, false));
        let url = format!("{}/api/{kind}/{id}/revision/{revision}?blobs=true", self.endpoint);
        let mut response = self.patiently(id, || self.get(&url, None))?;
        let text = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_string();
        let text = text.with_context(|| format!("{id}: the answer of {} broke off", self.endpoint))?;
        let listing: Listing = serde_json::from_str(&text)
            .with_context(|| format!("{id}: {} does not answer as a hub does", self.endpoint))?;
        if !cache::is_commit(&listing.sha) {
            return Err(user(format!("{id}: {} names no commit, but {:?}", self.endpoint, listing.sha)));
        }
        if let Some(bad) = listing.names().find(|name| !cache::is_inside(name)) {
            return Err(user(format!("{id}: the hub lists a file outside its folder: {bad:?}")));
        }
        Ok(listing)
    }

    /// Brings files of a listing into the snapshot of its commit, unless they are there.
    pub(super) fn fetch(
        &self,
        id: &RepoId,
        repo: &Repo,
        listing: &Listing,
        names: &[&str],
    ) -> anyhow::Result<()> {
        let folder = repo.snapshot_folder(&listing.sha);
        let missing = |sibling: &&Sibling| {
            names.contains(&sibling.rfilename.as_str()) && !folder.join(&sibling.rfilename).exists()
        };
        let mut files = Vec::new();
        for sibling in listing.siblings.iter().filter(missing) {
            files.push(self.describe(id, &listing.sha, sibling)?);
        }
        if files.is_empty() {
            return Ok(());
        }
        let needed = transfer::bytes_to_come(repo, &files);
        if let Some(free) = (self.free_space)(repo.root()).filter(|free| *free < needed) {
            return Err(user(format!(
                "{id}: {} are to be downloaded, but the disk of {} has only {} free; make room there, or name a folder on \
                 another disk by HF_HOME",
                bytes(needed),
                repo.root().display(),
                bytes(free)
            )));
        }
        transfer::run(self, id, repo, &listing.sha, files)
    }

    /// A file's content address and size: from the listing, or asked for where a mirror's listing lacks them.
    fn describe(&self, id: &RepoId, commit: &str, sibling: &Sibling) -> anyhow::Result<RemoteFile> {
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
    fn head(&self, id: &RepoId, commit: &str, name: &str) -> anyhow::Result<(String, u64)> {
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

    /// Repeats a request that failed for a reason that may pass; turns what remains into an error for the
    /// user.
    fn patiently(
        &self,
        id: &RepoId,
        request: impl Fn() -> Result<Response<Body>, ureq::Error>,
    ) -> anyhow::Result<Response<Body>> {
        for failures in 1.. {
            let last = failures == ATTEMPTS;
            let hiccup = match request() {
                Ok(response) if may_pass(response.status()) && !last => Hiccup::answer(&response),
                Ok(response) if response.status().is_success() || response.status().is_redirection() => {
                    return Ok(response);
                }
                Ok(response) => return Err(self.refusal(id, response.status())),
                Err(error) if last || !may_pass_error(&error) => {
                    return Err(user(format!(
                        "{id} is no {} here, and {} cannot be reached: {error}",
                        id.kind.place(),
                        self.endpoint
                    )));
                }
                Err(error) => Hiccup::lost(error),
            };
            let wait = hiccup.wait(self.first_wait, failures);
            eprintln!("{}", hiccup.note(wait));
            sleep(wait);
        }
        unreachable!("the last attempt returns")
    }

    /// A request for an address, or for some bytes of what is there.
    pub(super) fn get(&self, url: &str, range: Option<Range<u64>>) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        request.call()
    }

    pub(super) fn address(&self, id: &RepoId, commit: &str, name: &str) -> String {
        let folder = if id.kind == Kind::Dataset { "datasets/" } else { "" };
        format!("{}/{folder}{id}/resolve/{commit}/{}", self.endpoint, escape(name, true))
    }

    /// What a refusal means to the user.
    pub(super) fn refusal(&self, id: &RepoId, status: StatusCode) -> anyhow::Error {
        let (endpoint, kind, place) = (&self.endpoint, id.kind, id.kind.place());
        user(match status {
            StatusCode::UNAUTHORIZED if self.token.is_none() => format!(
                "{id}: no such {place} here, and {endpoint} has no such public {kind}; if it is private or gated, set HF_TOKEN or \
                 log in with `hf auth login`"
            ),
            StatusCode::UNAUTHORIZED => format!("{id}: {endpoint} does not accept the token in HF_TOKEN"),
            StatusCode::FORBIDDEN => format!(
                "{id}: access is refused; accept the {kind}'s conditions at {endpoint}/{}{id} and use a token of that account \
                 (HF_TOKEN)",
                if kind == Kind::Dataset { "datasets/" } else { "" }
            ),
            StatusCode::NOT_FOUND => format!(
                "{id}: no such {place} here, and {endpoint} has no such {kind} or no revision `{}`",
                id.revision
            ),
            status => format!("{id}: {endpoint} answers {status}"),
        })
    }
}

/// Bytes that the disk of a folder has room for; the folder need not exist yet.
fn free_space(folder: &Path) -> Option<u64> {
    let existing = folder.ancestors().find(|folder| folder.exists())?;
    fs4::available_space(existing).ok()
}

/// Answers after which the same request may succeed.
pub(super) fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status)
}

fn may_pass_error(error: &ureq::Error) -> bool {
    use ureq::Error::*;
    match error {
        // A name that leads nowhere: this machine has no network, or the address is misspelt. std has no kind
        // for it.
        Io(error) => !error.to_string().contains("failed to lookup address"),
        other => matches!(other, Timeout(_) | ConnectionFailed | Protocol(_)),
    }
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
