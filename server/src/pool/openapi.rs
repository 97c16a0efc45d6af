//! GET /pool/v1/openapi.json, and the same at /openapi.json, which says what every route of a pool takes and
//! gives.

use std::sync::LazyLock;

use axum::response::Response;

use crate::page::file;

/// The document, which a test holds against the routes.
static DOCUMENT: LazyLock<String> =
    LazyLock::new(|| include_str!("openapi.json").replacen("VERSION", env!("CARGO_PKG_VERSION"), 1));

pub(super) async fn document() -> Response {
    file("application/json", &DOCUMENT)
}
