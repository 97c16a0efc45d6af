//! Speaks with a pool over its API.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use ureq::http::{Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::cli::WhichPool;
use crate::error::{fault, user};

/// The file that says where a pool of this machine listens, in its folder.
pub(super) const ADDRESS: &str = "address";
/// The file of the token of who started it.
pub(super) const TOKEN: &str = "token";
/// The longest answer that is read.
const MAX_BYTES: u64 = 64 << 20;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pool, as its API tells of it.
pub(crate) struct Client {
    agent: Agent,
    url: String,
    token: String,
}

impl Client {
    /// Finds the pool that was named.
    ///
    /// # Errors
    /// If a folder holds none, or nobody has said whose token it is.
    pub(crate) fn open(which: &WhichPool) -> anyhow::Result<Self> {
        let named = which.pool.trim_end_matches('/');
        let is_address = named.starts_with("http://") || named.starts_with("https://");
        let (url, kept) = match is_address {
            true => (named.to_owned(), None),
            false => of_folder(Path::new(named))?,
        };
        let token = which.token.clone().or(kept).ok_or_else(|| {
            user("whose token? give it by --token or in LUTHIER_POOL_TOKEN; `luthier pool users add NAME` makes one")
        })?;
        if !token.chars().all(|c| c.is_ascii_graphic()) {
            return Err(user("--token: it has characters that are in no token"));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // A token must not wander to another host.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .user_agent(concat!("luthier/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        Ok(Client { agent, url, token })
    }

    /// Asks for something.
    ///
    /// # Errors
    /// If the pool cannot be reached, or refuses.
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.agent.get(self.address(path)).header("authorization", self.bearer());
        self.answer(request.call())
    }

    /// Tells something.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.agent.post(self.address(path)).header("authorization", self.bearer());
        self.answer(request.header("content-type", "application/json").send(body.to_string()))
    }

    /// Replaces something.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.agent.put(self.address(path)).header("authorization", self.bearer());
        self.answer(request.header("content-type", "application/json").send(body.to_string()))
    }

    /// Removes something.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn delete(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.agent.delete(self.address(path)).header("authorization", self.bearer());
        self.answer(request.call())
    }

    fn address(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn answer(&self, answer: Result<Response<Body>, ureq::Error>) -> anyhow::Result<Value> {
        let mut answer = answer.map_err(|error| {
            user(format!(
                "the pool at {} does not answer: {error}; is `luthier pool serve` running?",
                self.url
            ))
        })?;
        let status = answer.status();
        let text = answer.body_mut().with_config().limit(MAX_BYTES).read_to_string();
        let text = text.with_context(|| format!("the answer of {}", self.url))?;
        if status.is_success() {
            let text = if text.is_empty() { "null" } else { &text };
            return serde_json::from_str(text)
                .map_err(|_| user(format!("{}: that is no pool: its answer is no JSON", self.url)));
        }
        let told: Option<Value> = serde_json::from_str(&text).ok();
        let message = told.as_ref().and_then(|told| told["error"]["message"].as_str());
        let message = match message {
            Some(message) => crate::terminal::printable(message),
            None => format!("{} answers {status}", self.url),
        };
        match status {
            StatusCode::UNAUTHORIZED => {
                Err(user(format!("{message}; --token or LUTHIER_POOL_TOKEN says whose it is")))
            }
            status if status.is_server_error() => Err(fault(message)),
            _ => Err(user(message)),
        }
    }
}

/// Where the pool of a folder listens, and the token of who started it.
fn of_folder(folder: &Path) -> anyhow::Result<(String, Option<String>)> {
    let shown = folder.display();
    let Ok(address) = fs::read_to_string(folder.join(ADDRESS)) else {
        return Err(user(format!(
            "{shown}: no pool has its state there; start one by `luthier pool serve --state {shown} --policy \
             POLICY.yaml`, or name another by --pool or LUTHIER_POOL"
        )));
    };
    let token = fs::read_to_string(folder.join(TOKEN)).ok().map(|token| token.trim().to_owned());
    Ok((address.trim().to_owned(), token))
}
