//! The document of the routes says what there is: the methods of each path, every field that is read, and
//! examples that work. That it has all paths is tested beside the routes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Server, Start, adapter, folder};

/// What can be asked of a path.
pub(crate) const METHODS: [&str; 5] = ["get", "post", "put", "delete", "patch"];

/// A server whose adapter the examples name.
fn server(root: &Path) -> Server {
    adapter(&root.join("example"), 'E', 1);
    let state = root.join("state");
    let tenants = server::Tenants::stored(&state).unwrap();
    Server::with(Start { root: Some(root.to_owned()), state: Some(state), tenants, ..Start::default() })
}

fn document(server: &Server) -> Value {
    server.get("/openapi.json").json(200)
}

/// Each method of each path, with what is said of it.
pub(crate) fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods.map(|(method, operation)| (method.clone(), path.clone(), operation.clone()))
    });
    operations.collect()
}

/// A path with something in the place of each of its parameters.
pub(crate) fn filled(path: &str) -> String {
    path.split('/')
        .map(|part| if part.starts_with('{') { "base" } else { part })
        .collect::<Vec<_>>()
        .join("/")
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|ending| ending == "rs")).collect()
}

/// The texts of all source files, without tests.
pub(crate) fn code() -> Vec<(PathBuf, String)> {
    let files = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let text = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
        (path, code)
    };
    let is_meant = |path: &PathBuf| !path.ends_with("tests.rs") && !path.to_string_lossy().contains("tinker");
    files.into_iter().filter(is_meant).map(text).collect()
}

/// The first text in quotes.
pub(crate) fn quoted(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix('"')?.split('"').next()
}

#[test]
fn a_path_answers_to_the_methods_that_are_documented_and_to_no_other() {
    let folder = folder();
    let server = server(folder.path());
    let document = document(&server);
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in METHODS {
            let reply = server.raw(&method.to_uppercase(), &filled(path), "", b"{}");
            let is_there = methods.get(method).is_some();
            assert_eq!(reply.status != 405, is_there, "{method} {path}: {}", reply.body);
        }
    }
}

#[test]
fn what_is_said_of_a_route_is_whole() {
    let folder = folder();
    let document = document(&server(folder.path()));
    for (method, path, operation) in operations(&document) {
        let of = format!("{method} {path}");
        assert!(operation["summary"].is_string() && operation["tags"][0].is_string(), "{of}: tags, summary");
        let responses = operation["responses"].as_object().unwrap();
        assert!(
            responses.keys().any(|status| status.starts_with('2')),
            "{of}: what it answers if all is well"
        );
        // Some take nothing, and of Tinker's a word each is enough: its own client knows them.
        if operation.get("requestBody").is_some() && !path.starts_with("/api/v1/") {
            let body = &operation["requestBody"]["content"];
            let is_json = body["application/json"]["example"].is_object();
            assert!(
                is_json || body.as_object().is_some_and(|kinds| !kinds.contains_key("application/json")),
                "{of}: an example of its body"
            );
        }
        let is_public = operation["security"] == json!([]);
        assert!(
            is_public || responses.contains_key("401"),
            "{of}: 401, or `security`: [] where no key is needed"
        );
    }
    // References lead somewhere.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
}

#[test]
fn keys_are_asked_for_where_the_document_says_so() {
    let folder = folder();
    let server = server(folder.path());
    let keys = server::Keys::open(&folder.path().join("state")).unwrap();
    keys.add("a", &server::Change::default()).unwrap();
    let begun = std::time::Instant::now();
    while server.get("/v1/models").status != 401 {
        assert!(begun.elapsed().as_secs() < 5);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    for (method, path, operation) in operations(&document(&server)) {
        let status = server.raw(&method.to_uppercase(), &filled(&path), "", b"{}").status;
        assert_eq!(status == 401, operation["security"] != json!([]), "{method} {path} answers {status}");
    }
}

#[test]
fn every_example_is_accepted() {
    let folder = folder();
    let server = server(folder.path());
    for (method, path, operation) in operations(&document(&server)) {
        let example = &operation["requestBody"]["content"]["application/json"]["example"];
        // Others have a state of their own to begin with, which their tests make.
        if !example.is_object() || path.starts_with("/api/v1/") || path.starts_with("/v1/fine_tuning/") {
            continue;
        }
        let reply = server.raw(&method.to_uppercase(), &path, "", example.to_string().as_bytes());
        let expected = operation["responses"].get(reply.status.to_string());
        assert!(reply.status < 300 && expected.is_some(), "{method} {path}: {} {}", reply.status, reply.body);
        let names = reply.json(reply.status);
        let schema = &expected.unwrap()["content"]["application/json"]["schema"];
        let known = properties(&document(&server), schema);
        for name in names.as_object().unwrap().keys() {
            assert!(known.contains(name), "{method} {path}: the answer's `{name}` is not documented");
        }
    }
}

/// The names of a schema's fields, of all its parts.
pub(crate) fn properties(document: &Value, schema: &Value) -> BTreeSet<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return properties(document, document.pointer(&reference[1..]).unwrap());
    }
    let parts = schema["allOf"].as_array().into_iter().flatten();
    let parts = parts.flat_map(|part| properties(document, part));
    parts
        .chain(schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()))
        .collect()
}

/// Whether a file is about pools, which have a document of their own.
pub(crate) fn is_of_pool(path: &Path) -> bool {
    path.to_string_lossy().contains("/src/pool")
}

/// The names of fields that some files read, with the files.
pub(crate) fn fields(of: impl Fn(&Path) -> bool) -> BTreeSet<(String, OsString)> {
    let readers = [
        "boolean",
        "text",
        "required_text",
        "object",
        "list",
        "number",
        "positive",
        "whole",
        "count",
        "tokens",
        "texts",
        "refuse",
        "value",
        "required",
    ];
    let mut read = BTreeSet::new();
    for (path, text) in code().into_iter().filter(|(path, _)| of(path) && !path.ends_with("fields.rs")) {
        for reader in readers {
            for call in text.split(&format!(".{reader}(")).skip(1) {
                if let Some(name) = quoted(call) {
                    read.insert((name.to_owned(), path.file_name().unwrap().to_owned()));
                }
            }
        }
    }
    read
}

/// Those of which a document says nothing.
pub(crate) fn missing<'a>(
    read: &'a BTreeSet<(String, OsString)>,
    document: &str,
) -> Vec<&'a (String, OsString)> {
    read.iter().filter(|(name, _)| !document.contains(&format!("\"{name}\":"))).collect()
}

#[test]
fn every_field_that_is_read_is_documented() {
    let folder = folder();
    let document = document(&server(folder.path())).to_string();
    let read = fields(|path| !is_of_pool(path));
    assert!(read.len() > 20, "fields are read by `fields.text(\"NAME\")` and its like: {read:?}");
    let missing = missing(&read, &document);
    assert!(missing.is_empty(), "fields without a word in server/src/openapi.json: {missing:?}");
}

#[test]
fn the_page_of_the_document_works_without_a_network() {
    let server = Server::start();
    let page = server.get("/docs");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'self'"));
    for path in ["/docs.js", "/style.css", "/openapi.json"] {
        assert!(page.body.contains(&format!("\"{path}\"")) && server.get(path).status == 200, "{path}");
    }
    for text in [page.body, server.get("/docs.js").body] {
        assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("innerHTML"));
    }
    assert_eq!(document(&server)["info"]["version"], env!("CARGO_PKG_VERSION"));
}
