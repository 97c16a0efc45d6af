//! GET /openapi.json, which says what every route takes and gives, and GET /docs, a page that shows it.

use std::sync::LazyLock;

use axum::response::Response;

use crate::page::file;

/// The document, which a test holds against the routes.
static DOCUMENT: LazyLock<String> =
    LazyLock::new(|| include_str!("openapi.json").replacen("VERSION", env!("CARGO_PKG_VERSION"), 1));

pub(crate) async fn document() -> Response {
    file("application/json", &DOCUMENT)
}

pub(crate) async fn docs() -> Response {
    file("text/html; charset=utf-8", include_str!("page/docs.html"))
}

pub(crate) async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("page/docs.js"))
}
