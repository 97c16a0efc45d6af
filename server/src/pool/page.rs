//! GET /: the pool's page, of the same kind as that of an engine.

use axum::response::Response;

use crate::page::file;

pub(super) async fn index() -> Response {
    file("text/html; charset=utf-8", include_str!("page/index.html"))
}

pub(super) async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("page/pool.js"))
}

pub(super) async fn job() -> Response {
    file("text/javascript; charset=utf-8", include_str!("page/job.js"))
}
