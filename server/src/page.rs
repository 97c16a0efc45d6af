//! GET /: a page for people, in five files that are part of the program.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// Nothing of it comes from elsewhere, and nothing else may be run in it.
const POLICY: &str =
    "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

pub(crate) async fn index() -> Response {
    file("text/html; charset=utf-8", include_str!("page/index.html"))
}

pub(crate) async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("page/style.css"))
}

pub(crate) async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("page/page.js"))
}

/// What all pages have in common.
pub(crate) async fn common() -> Response {
    file("text/javascript; charset=utf-8", include_str!("page/common.js"))
}

pub(crate) async fn jobs() -> Response {
    file("text/javascript; charset=utf-8", include_str!("page/jobs.js"))
}

pub(crate) fn file(kind: &'static str, text: &'static str) -> Response {
    let head = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (head, text).into_response()
}
