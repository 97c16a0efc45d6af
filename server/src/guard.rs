//! Where there are no keys, being on this machine is what gives access. A browser on it also runs the pages of
//! strangers, so their requests are refused: those for another host's name, and those that another page makes.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, header};

use crate::error::ApiError;

pub(crate) fn check(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = text(header::HOST).unwrap_or_default();
    if !is_loopback(host) {
        return Err(ApiError::forbidden(
            "without keys this server answers to requests for a loopback address only",
        ));
    }
    match text(header::ORIGIN) {
        Some(origin) if origin.split_once("://").is_none_or(|(_, from)| from != host) => {
            Err(ApiError::forbidden("without keys this server answers to no pages of others"))
        }
        _ => Ok(()),
    }
}

/// Whether `host`, perhaps with a port, is a name of this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for host in ["localhost", "localhost:80", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080", "LOCALHOST:1"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["", "example.com", "127.0.0.1.example.com", "localhost.example.com:80", "10.0.0.1", "[::2]:80"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
