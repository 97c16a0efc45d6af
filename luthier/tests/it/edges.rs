//! The rules between the rooms of the house: who may use whom, where `unsafe` and `anyhow` may stand.

use std::fs;
use std::path::{Path, PathBuf};

/// A crate and the rooms it may use. There is no other edge.
const EDGES: [(&str, &[&str]); 9] = [
    ("compute", &[]),
    ("data", &[]),
    ("eval", &[]),
    ("jobs", &[]),
    ("model", &["compute"]),
    ("train", &["compute", "data", "model"]),
    ("infer", &["compute", "model"]),
    ("server", &["data", "infer", "jobs"]),
    ("luthier", &["compute", "data", "eval", "infer", "jobs", "model", "server", "train"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn manifest(path: &Path) -> toml::Table {
    let path = path.join("Cargo.toml");
    fs::read_to_string(&path).unwrap().parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names in a manifest's tables of dependencies, those for one platform included.
fn dependencies(manifest: &toml::Table, tables: &[&str]) -> Vec<String> {
    let platforms = manifest.get("target").and_then(|t| t.as_table()).into_iter().flat_map(|t| t.values());
    let places = platforms.filter_map(|platform| platform.as_table()).chain([manifest]);
    let found = places.flat_map(|place| tables.iter().filter_map(|table| place.get(*table)?.as_table()));
    found.flat_map(|table| table.keys().map(|name| name.replace("luthier-", ""))).collect()
}

#[test]
fn every_crate_of_the_workspace_has_its_place() {
    let workspace = manifest(&root());
    let mut members: Vec<&str> =
        workspace["workspace"]["members"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    let mut rooms: Vec<&str> = EDGES.iter().map(|(room, _)| *room).collect();
    members.sort_unstable();
    rooms.sort_unstable();
    assert_eq!(members, rooms);
}

#[test]
fn a_room_uses_only_the_rooms_it_may() {
    for (room, allowed) in EDGES {
        let used = dependencies(&manifest(&root().join(room)), &["dependencies", "build-dependencies"]);
        for other in
            EDGES.iter().map(|(other, _)| *other).filter(|other| used.iter().any(|name| name == other))
        {
            assert!(allowed.contains(&other), "{room} may not use {other}");
        }
    }
}

#[test]
fn only_the_binary_uses_anyhow() {
    for (room, _) in EDGES.into_iter().filter(|(room, _)| *room != "luthier") {
        let used = dependencies(
            &manifest(&root().join(room)),
            &["dependencies", "build-dependencies", "dev-dependencies"],
        );
        assert!(!used.iter().any(|name| name == "anyhow"), "{room} has typed errors, not anyhow");
    }
}

#[test]
fn unsafe_stands_only_in_compute() {
    assert_eq!(manifest(&root())["workspace"]["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
    for (room, _) in EDGES.into_iter().filter(|(room, _)| *room != "compute") {
        let lints = &manifest(&root().join(room))["lints"];
        assert_eq!(lints["workspace"].as_bool(), Some(true), "{room} has the workspace's lints");
        for path in sources(&root().join(room)) {
            let text = fs::read_to_string(&path).unwrap();
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap();
                let found =
                    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait", "unsafe("]
                        .iter()
                        .any(|word| code.contains(&word.to_string()) && !code.contains('"'));
                assert!(!found, "{}:{}: unsafe outside compute", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn every_file_opens_by_saying_what_it_is_for() {
    for path in EDGES.iter().flat_map(|(room, _)| sources(&root().join(room).join("src"))) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} has no //! at its head", path.display());
    }
}

/// Every Rust file below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// What checkpoints call the parts of a model stands in one table; elsewhere in `model` parts are values.
#[test]
fn names_of_a_models_parts_stand_in_one_table() {
    let parts =
        ["self_attn", "embed_tokens", "lm_head", "_layernorm", "_proj", "mlp.", "c_attn", "block_sparse"];
    let mut found = Vec::new();
    for path in sources(&root().join("model/src")) {
        if path.ends_with("names/tables.rs") {
            continue;
        }
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let literals = code.split('"').skip(1).step_by(2);
            if literals.into_iter().any(|text| parts.iter().any(|part| text.contains(part))) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "names of parts outside of names/tables.rs:\n{}", found.join("\n"));
}
