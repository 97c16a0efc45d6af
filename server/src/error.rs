//! What is answered to requests that cannot be met, in the shape of OpenAI's errors, and why a server cannot
//! start.

use std::net::IpAddr;
use std::path::PathBuf;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use infer::InferError;
use serde_json::{Value, json};

/// Why a server does not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened at.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// Host and port as they were given.
        address: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Without keys whoever reaches the server may do everything.
    #[error(
        "without keys only a loopback address such as 127.0.0.1 may be listened at, not {0}: whoever reaches the server \
         could use and replace every adapter; make keys by `luthier keys add`, or give a file of them by --keys"
    )]
    NotLoopback(IpAddr),
    /// The file of keys cannot be used.
    #[error("{}: {message}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// An adapter that was asked for at the start cannot be served.
    #[error("adapter `{name}`: {message}")]
    Adapter {
        /// What it was to be called.
        name: String,
        /// What is wrong with it.
        message: String,
    },
    /// The folder that the server remembers things in cannot be used.
    #[error("{}: {message}", path.display())]
    State {
        /// The folder, or a file in it.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The folder that adapters are to come from cannot be used.
    #[error("{}: {message}", path.display())]
    Root {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The system has no threads or no sockets for it.
    #[error("the server cannot run: {0}")]
    System(#[from] std::io::Error),
    /// The engine's thread ended, which is a fault.
    #[error("the engine has stopped")]
    EngineStopped,
}

/// An answer that says what is wrong with a request, or with us.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which it is worth another try.
    retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        ApiError { status, kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// The request says something that it must not say.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// The same of one of its fields.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError { param: Some(param.into()), ..ApiError::invalid(message) }
    }

    /// There is no such model, or none that this tenant may know of.
    pub(crate) fn no_model(name: &str) -> Self {
        let message = format!("the model `{name}` does not exist, or you have no access to it");
        ApiError {
            status: StatusCode::NOT_FOUND,
            code: Some("model_not_found"),
            ..ApiError::field("model", message)
        }
    }

    /// There is nothing at this path.
    pub(crate) fn no_route(method: &str, path: &str) -> Self {
        ApiError {
            status: StatusCode::NOT_FOUND,
            ..ApiError::invalid(format!("there is no {method} {path}"))
        }
    }

    /// The path is right and the method is not.
    pub(crate) fn no_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not answer {method}");
        ApiError { status: StatusCode::METHOD_NOT_ALLOWED, ..ApiError::invalid(message) }
    }

    /// No key, or one that nobody has.
    pub(crate) fn unauthorized(message: &str) -> Self {
        ApiError {
            status: StatusCode::UNAUTHORIZED,
            code: Some("invalid_api_key"),
            ..ApiError::invalid(message)
        }
    }

    /// A key that does not allow it.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// The generation that was expected is not the one that is there.
    pub(crate) fn other_generation(message: impl Into<String>) -> Self {
        ApiError {
            status: StatusCode::CONFLICT,
            code: Some("generation_conflict"),
            ..ApiError::field("expected_generation", message)
        }
    }

    /// There is no such thing, or none that this tenant may know of.
    pub(crate) fn absent(param: &str, message: impl Into<String>) -> Self {
        ApiError { status: StatusCode::NOT_FOUND, code: Some("not_found"), ..ApiError::field(param, message) }
    }

    /// It was there, and is not any more.
    pub(crate) fn gone(message: impl Into<String>) -> Self {
        ApiError { status: StatusCode::GONE, code: Some("gone"), ..ApiError::invalid(message) }
    }

    /// The body has more bytes than it may.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the body of a request may have {limit} bytes at most");
        ApiError { status: StatusCode::PAYLOAD_TOO_LARGE, ..ApiError::invalid(message) }
    }

    /// The request did not come in time.
    pub(crate) fn too_slow() -> Self {
        ApiError {
            status: StatusCode::REQUEST_TIMEOUT,
            ..ApiError::invalid("the body of the request did not come in time")
        }
    }

    /// More than the context holds.
    pub(crate) fn too_long(param: &str, message: impl Into<String>) -> Self {
        ApiError { code: Some("context_length_exceeded"), ..ApiError::field(param, message) }
    }

    /// A quota is used up.
    pub(crate) fn over_quota(message: impl Into<String>, seconds: u64) -> Self {
        let code = Some("rate_limit_exceeded");
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        ApiError { code, retry_after: Some(seconds), ..error }
    }

    /// All places are taken.
    pub(crate) fn busy() -> Self {
        ApiError::crowded("the server has as many requests as it may have at once; try again")
    }

    /// The same of something that has its own words for it.
    pub(crate) fn crowded(message: impl Into<String>) -> Self {
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "overloaded_error", message);
        ApiError { code: Some("queue_full"), retry_after: Some(1), ..error }
    }

    /// What is asked for cannot be done now.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", message);
        ApiError { retry_after: Some(1), ..error }
    }

    /// There is no such thing, or none that this tenant may know of.
    pub(crate) fn no_such(kind: &str, id: &str) -> Self {
        let message = format!("there is no {kind} `{id}`, or you have no access to it");
        ApiError { status: StatusCode::NOT_FOUND, ..ApiError::invalid(message) }
    }

    /// It is not in a state in which this can be done.
    pub(crate) fn conflicting(message: impl Into<String>) -> Self {
        ApiError { status: StatusCode::CONFLICT, ..ApiError::invalid(message) }
    }

    /// Nothing more can be kept.
    pub(crate) fn full() -> Self {
        ApiError::storage("the server's disk is full: delete files or models that are not needed")
    }

    /// A disk that is full, or worse.
    pub(crate) fn storage(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "server_error", message)
    }

    /// What is wrong, in words.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The same of a field that stands in another one.
    pub(crate) fn within(self, field: &str) -> Self {
        ApiError { param: self.param.map(|param| format!("{field}.{param}")), ..self }
    }

    /// What is asked for is kept in a folder that this server does not have.
    pub(crate) fn no_state() -> Self {
        let message = "this server keeps nothing beyond its end: start it with --state DIR";
        ApiError { status: StatusCode::NOT_FOUND, ..ApiError::invalid(message) }
    }

    /// Our fault.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// What the engine let go of without a word.
    pub(crate) fn lost() -> Self {
        ApiError::internal(
            "the request was ended: its results were not taken in time, or the engine has stopped",
        )
    }

    /// What the engine says of a request.
    pub(crate) fn engine(error: &InferError, param: &str) -> Self {
        match error {
            InferError::NotFinite { .. } => ApiError::internal(error.to_string()),
            InferError::Constraint(_) => ApiError::invalid(error.to_string()),
            InferError::UnknownToken { token, vocab_size } => {
                let message =
                    format!("`{param}` has the token id {token}, and the vocabulary {vocab_size} tokens");
                ApiError::field(param, message)
            }
            InferError::AdapterTooLarge { .. } => ApiError::field("model", error.to_string()),
            InferError::PromptTooLong { .. } => ApiError::too_long(param, error.to_string()),
            _ => ApiError::field(param, error.to_string()),
        }
    }

    /// Status and code in a word or two, for a log: nothing of what the client sent stands in it.
    pub(crate) fn told(&self) -> String {
        format!("{} {}", self.status.as_str(), self.code.unwrap_or(self.kind))
    }

    /// Whether the request is to blame.
    pub(crate) fn is_of_request(&self) -> bool {
        self.status.is_client_error()
    }

    /// Whether the same request would be refused again, whenever it came.
    pub(crate) fn is_final(&self) -> bool {
        use StatusCode as S;
        [S::BAD_REQUEST, S::NOT_FOUND, S::PAYLOAD_TOO_LARGE, S::UNPROCESSABLE_ENTITY].contains(&self.status)
    }

    /// The body of the answer.
    pub(crate) fn body(&self) -> Value {
        let ApiError { message, kind, param, code, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
