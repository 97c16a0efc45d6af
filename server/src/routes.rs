//! All routes.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::routing::{get, post};

use crate::app::App;
use crate::error::ApiError;
use crate::tuning::routes as tuning;
use crate::{audit, chat, completions, files, lora, models, openapi, page, status, tinker, tokens};

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
        .route("/common.js", get(page::common))
        .route("/page.js", get(page::script))
        .route("/jobs.js", get(page::jobs))
        .route("/docs", get(openapi::docs))
        .route("/docs.js", get(openapi::script))
        .route("/openapi.json", get(openapi::document))
        .merge(tinker::router())
}

pub(crate) async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::no_route(method.as_str(), uri.path())
}

pub(crate) async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::no_method(method.as_str(), uri.path())
}

/// Holds a description of routes against the routes.
#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// The paths of a router, with the names of their parameters.
    fn paths<S>(routes: &Router<S>) -> BTreeSet<String>
    where
        Router<S>: std::fmt::Debug,
    {
        // The router tells its paths to nobody but those who debug it: `RouteId(3): "/v1/models"`.
        let told = format!("{routes:?}");
        let told = told.split_once("paths: {").unwrap().1.split("fallback_router: ").next().unwrap();
        let paths =
            told.split("): \"").skip(1).map(|rest| rest.split('"').next().unwrap().replace("{*", "{"));
        paths.filter(|path| path.starts_with('/')).collect()
    }

    /// Fails if the document in `file` describes others than these.
    pub(crate) fn hold<S>(routes: &Router<S>, document: &str, file: &str)
    where
        Router<S>: std::fmt::Debug,
    {
        let paths = paths(routes);
        let document: Value = serde_json::from_str(document).unwrap();
        let described: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
        let missing: Vec<_> = paths.difference(&described).collect();
        assert!(
            missing.is_empty(),
            "say in {file}, under `paths`, what each method of these takes and gives (`tags` \
             and `summary`; for a body `requestBody` with `schema` and an `example` that works; `responses`): \
             {missing:?}"
        );
        let gone: Vec<_> = described.difference(&paths).collect();
        assert!(gone.is_empty(), "{file} describes what is not there: {gone:?}");
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let routes = routes();
        assert!(paths(&routes).contains("/v1/models/{name}"), "{:?}", paths(&routes));
        hold(&routes, include_str!("openapi.json"), "server/src/openapi.json");
    }
}
