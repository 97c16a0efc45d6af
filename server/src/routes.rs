//! All routes.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::routing::{get, post};

use crate::app::App;
use crate::error::ApiError;
use crate::tuning::routes as tuning;
use crate::{audit, chat, completions, files, lora, models, openapi, page, status, tokens};

pub(crate) fn router(app: Arc<App>) -> Router {
    routes().fallback(no_route).method_not_allowed_fallback(no_method).with_state(app)
}

/// Each of them is described in openapi.json.
fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/models", get(models::models))
        .route("/v1/models/{*name}", get(models::model).delete(tuning::delete_model))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/files", get(files::list).post(files::upload).layer(DefaultBodyLimit::disable()))
        .route("/v1/files/{id}", get(files::retrieve).delete(files::delete))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/fine_tuning/jobs", get(tuning::list).post(tuning::create))
        .route("/v1/fine_tuning/jobs/{id}", get(tuning::retrieve))
        .route("/v1/fine_tuning/jobs/{id}/cancel", post(tuning::cancel))
        .route("/v1/fine_tuning/jobs/{id}/pause", post(tuning::pause))
        .route("/v1/fine_tuning/jobs/{id}/resume", post(tuning::resume))
        .route("/v1/fine_tuning/jobs/{id}/events", get(tuning::events))
        .route("/v1/fine_tuning/jobs/{id}/checkpoints", get(tuning::list_checkpoints))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/load_lora_adapter", post(lora::load))
        .route("/v1/unload_lora_adapter", post(lora::unload))
        .route("/v1/audit", get(audit::list))
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .route("/metrics", get(status::metrics))
        .route("/api/state", get(status::state))
        .route("/", get(page::index))
        .route("/style.css", get(page::style))
        .route("/page.js", get(page::script))
        .route("/docs", get(openapi::docs))
        .route("/docs.js", get(openapi::script))
        .route("/openapi.json", get(openapi::document))
}

async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::no_route(method.as_str(), uri.path())
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::no_method(method.as_str(), uri.path())
}
