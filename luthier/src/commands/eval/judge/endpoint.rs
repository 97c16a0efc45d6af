//! One request to a model behind OpenAI's interface, and what may come of it.

mod wait;

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use ureq::http::StatusCode;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use self::wait::asked_wait;
use crate::run_file::{JudgeSection, Judging};
use crate::terminal::{cut, one_line};

/// The longest reply that is read.
const MAX_BYTES: u64 = 4 << 20;
/// Columns of what is quoted of an endpoint's answer.
const QUOTED: usize = 160;
/// Where there is no account of tokens, one for so many bytes: no tokenizer is at hand, and a budget must
/// hold.
const BYTES_PER_TOKEN: usize = 4;

/// An endpoint and the model that judges there.
pub(super) struct Endpoint {
    url: String,
    key: Option<String>,
    judge: JudgeSection,
    agent: Agent,
}

/// What the judge said.
pub(super) struct Said {
    pub(super) reply: String,
    pub(super) finish_reason: Option<String>,
    /// Of the prompt and the reply.
    pub(super) tokens: u64,
}

/// A try without a reply.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) why: Failure,
    /// Whether the judge may have worked on it all the same, which is paid for.
    pub(super) may_cost: bool,
}

/// Why there is no reply.
#[derive(Debug)]
pub(super) enum Failure {
    /// For a reason that may pass: the same request may succeed later, after the wait that was asked for.
    MayPass { why: String, wait: Option<Duration> },
    /// This request will not succeed.
    Request(String),
    /// No request will.
    Endpoint(String),
}

impl Endpoint {
    /// The endpoint of a judge file, without its key.
    pub(super) fn open(judging: &Judging) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // A key must not wander to another host.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .user_agent(concat!("luthier/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(judging.file.timeout()))
            .max_idle_connections_per_host(judging.file.parallel)
            .build()
            .new_agent();
        let judge = judging.file.judge.clone();
        Endpoint { url: address(&judge.url), key: None, judge, agent }
    }

    /// Takes the key out of the variable that the file names, if it names one.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn unlock(&mut self, judging: &Judging) -> anyhow::Result<()> {
        let Some(name) = &self.judge.key_env else { return Ok(()) };
        let key = std::env::var(name).unwrap_or_default().trim().to_owned();
        let refuse = |message: &str| Err(judging.refuse("judge.key_env", message));
        match () {
            () if key.is_empty() => refuse(&format!("names the variable {name}, which is not set")),
            () if !key.chars().all(|c| c.is_ascii_graphic()) => {
                refuse(&format!("names the variable {name}, whose value has characters that are in no key"))
            }
            () => {
                self.key = Some(key);
                Ok(())
            }
        }
    }

    /// Where requests go.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The body of a request.
    pub(super) fn body(&self, messages: &Value) -> String {
        let JudgeSection { model, temperature, max_tokens, .. } = &self.judge;
        let mut body = json!({"model": model, "messages": messages});
        if let Some(temperature) = temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(max_tokens) = max_tokens {
            body["max_tokens"] = json!(max_tokens);
        }
        body.to_string()
    }

    /// The most tokens that a request may come to, as far as can be told before.
    pub(super) fn most_tokens(&self, body: &str) -> u64 {
        estimated(body.len()) + u64::from(self.judge.max_tokens.unwrap_or(0))
    }

    /// Asks once.
    pub(super) fn ask(&self, body: &str) -> Result<Said, Failed> {
        // Who was told nothing, or nothing that can be used, may pay for it; an error's status is no answer.
        let worked = |why: Failure| Failed { may_cost: !matches!(why, Failure::Endpoint(_)), why };
        let mut request = self.agent.post(&self.url).header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = request.send(body).map_err(|error| worked(self.lost(&error)))?;
        let (status, wait) = (response.status(), asked_wait(response.headers(), SystemTime::now()));
        let text = read(response.body_mut()).map_err(|error| worked(self.lost(&error)))?;
        if status != StatusCode::OK {
            let why = format!("{status}: {}", quoted(&message(&text).unwrap_or(text)));
            let why = match status {
                _ if may_pass(status) => Failure::MayPass { why, wait },
                // Without a key, money or such a model.
                StatusCode::UNAUTHORIZED
                | StatusCode::PAYMENT_REQUIRED
                | StatusCode::FORBIDDEN
                | StatusCode::NOT_FOUND => Failure::Endpoint(why),
                _ if status.is_redirection() => {
                    Failure::Endpoint(format!("{status}: give the address it leads to"))
                }
                _ => Failure::Request(why),
            };
            return Err(Failed { why, may_cost: false });
        }
        said(&text, body.len()).map_err(|why| worked(Failure::Request(why)))
    }

    fn lost(&self, error: &ureq::Error) -> Failure {
        use ureq::Error::*;
        match error {
            Timeout(_) => {
                let seconds = self.agent.config().timeouts().global.unwrap_or_default().as_secs_f64();
                Failure::MayPass { why: format!("no reply within {seconds} s"), wait: None }
            }
            // std has no kind of error for a name that leads nowhere.
            Io(error) if error.to_string().contains("failed to lookup address") => {
                Failure::Endpoint(error.to_string())
            }
            Io(_) | ConnectionFailed | Protocol(_) => {
                Failure::MayPass { why: format!("connection lost ({error})"), wait: None }
            }
            BodyExceedsLimit(_) => {
                Failure::Request(format!("the answer is longer than {} MiB", MAX_BYTES >> 20))
            }
            HostNotFound => Failure::Endpoint("there is no such host".to_owned()),
            _ => Failure::Endpoint(error.to_string()),
        }
    }
}

/// Where chats are completed, of an address with or without the route, or its `/v1`.
fn address(url: &str) -> String {
    let url = url.trim_end_matches('/');
    match url.rsplit_once("/chat/completions") {
        Some((_, "")) => url.to_owned(),
        _ if url.rsplit('/').next().is_some_and(is_version) => format!("{url}/chat/completions"),
        // An address with a path of its own is taken at its word.
        _ if url.matches('/').count() > 2 => format!("{url}/chat/completions"),
        _ => format!("{url}/v1/chat/completions"),
    }
}

fn is_version(part: &str) -> bool {
    part.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn read(body: &mut Body) -> Result<String, ureq::Error> {
    let bytes = body.with_config().limit(MAX_BYTES).read_to_vec()?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Answers after which the same request may succeed.
fn may_pass(status: StatusCode) -> bool {
    const TOO_EARLY: u16 = 425;
    status.is_server_error()
        || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT, StatusCode::CONFLICT]
            .contains(&status)
        || status.as_u16() == TOO_EARLY
}

/// The message in an error of OpenAI's form, or in what others make of it.
fn message(text: &str) -> Option<String> {
    let answer: Value = serde_json::from_str(text).ok()?;
    let error = answer.get("error").unwrap_or(&answer);
    let message = error.get("message").or_else(|| answer.get("detail")).unwrap_or(error).as_str()?;
    Some(message.to_owned())
}

/// The beginning of a foreign text, as part of a line.
fn quoted(text: &str) -> String {
    let line = one_line(text.trim());
    match cut(&line, QUOTED).0 {
        "" => "(nothing)".to_owned(),
        beginning if beginning.len() < line.len() => format!("{beginning}..."),
        whole => whole.to_owned(),
    }
}

/// The reply in an answer that says it has one.
fn said(text: &str, asked: usize) -> Result<Said, String> {
    let answer: Value =
        serde_json::from_str(text).map_err(|_| format!("the answer is no JSON: {}", quoted(text)))?;
    if answer.get("error").is_some_and(|error| !error.is_null()) {
        return Err(format!("200 OK, but an error: {}", quoted(&message(text).unwrap_or(text.to_owned()))));
    }
    let Some(choices) = answer.get("choices").and_then(Value::as_array) else {
        return Err(format!("the answer has no `choices`: {}", quoted(text)));
    };
    let [choice] = choices.as_slice() else {
        return Err(format!("the answer has {} choices in place of one", choices.len()));
    };
    // A judge that declines says so in another field; its words are a reply without a verdict.
    let said = ["content", "refusal"].iter().find_map(|key| choice["message"][*key].as_str());
    let Some(reply) = said else {
        return Err(format!("the answer's message has no `content`: {}", quoted(&choice.to_string())));
    };
    let usage = |key: &str| answer["usage"][key].as_u64();
    let parts = || Some(usage("prompt_tokens")?.saturating_add(usage("completion_tokens")?));
    let tokens = usage("total_tokens").or_else(parts).unwrap_or_else(|| estimated(asked + reply.len()));
    let finish_reason = choice["finish_reason"].as_str().map(str::to_owned);
    Ok(Said { reply: reply.to_owned(), finish_reason, tokens })
}

fn estimated(bytes: usize) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for (typed, meant) in [
            ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
            ("http://localhost:8000/", "http://localhost:8000/v1/chat/completions"),
            ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
            ("https://host/v1/chat/completions", "https://host/v1/chat/completions"),
            ("https://host/api/paas/v4/", "https://host/api/paas/v4/chat/completions"),
            ("https://host/openai", "https://host/openai/chat/completions"),
        ] {
            assert_eq!(address(typed), meant);
        }
    }
}
