//! What is staged appears whole or not at all, whoever else is at work beside it and whatever was killed
//! there.

use std::fs::{self, File};
use std::path::Path;

use model::checkpoint::{Staging, sweep_staged};
use tempfile::tempdir;

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A folder with one file, published.
fn publish(output: &Path, text: &str) -> Result<(), String> {
    let staging = Staging::folder(output).map_err(|e| e.to_string())?;
    fs::write(staging.path().join("text"), text).unwrap();
    staging.publish().map_err(|e| e.to_string())
}

/// What a process that was killed while it was writing `name` leaves: nobody holds its lock.
fn left_by_the_dead(folder: &Path, name: &str, with: &[&str]) {
    let hidden = folder.join(format!(".{name}.AbCdEf.luthier-partial"));
    fs::create_dir(&hidden).unwrap();
    for name in with {
        match *name {
            "lock" => drop(File::create(hidden.join(name)).unwrap()),
            _ => {
                fs::create_dir(hidden.join(name)).unwrap();
                fs::write(hidden.join(name).join("text"), *name).unwrap();
            }
        }
    }
}

#[test]
fn what_is_staged_appears_whole_and_what_is_dropped_leaves_nothing() {
    let folder = tempdir().unwrap();
    let output = folder.path().join("a/b/out");
    let staging = Staging::folder(&output).unwrap();
    fs::write(staging.path().join("text"), "x").unwrap();
    assert!(!output.exists());
    drop(staging);
    assert_eq!(names(folder.path()), [""; 0], "folders that were made on the way go too");
    publish(&output, "x").unwrap();
    assert_eq!(names(output.parent().unwrap()), ["out"]);
    assert_eq!(names(&output), ["text"]);

    let output = folder.path().join("file.gguf");
    let staging = Staging::file(&output).unwrap();
    fs::write(staging.path(), "x").unwrap();
    staging.publish().unwrap();
    assert_eq!(fs::read(&output).unwrap(), b"x");
    drop(Staging::file(&folder.path().join("never")).unwrap());
    assert_eq!(names(folder.path()), ["a", "file.gguf"]);
}

#[test]
fn a_place_that_is_taken_is_refused_and_left_as_it_is() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("full")).unwrap();
    fs::write(path("full/notes"), "mine").unwrap();
    fs::write(path("file"), "mine").unwrap();
    let before = names(folder.path());
    for (name, folders, files) in [
        ("full", "is not empty; name a new folder", "is a folder; name a new file in it"),
        ("file", "is a file; name a new folder", "exists; name a new file"),
        ("file/below", "cannot write", "cannot write"),
        ("none/..", "names no place", "names no place"),
    ] {
        let got = Staging::folder(&path(name)).unwrap_err().to_string();
        assert!(got.contains(folders), "{name}: {got}");
        let got = Staging::file(&path(name)).unwrap_err().to_string();
        assert!(got.contains(files), "{name}: {got}");
    }
    let here = std::env::current_dir().unwrap(); // which is not empty
    assert!(Staging::folder(&here).unwrap_err().to_string().contains("is not empty"));
    assert_eq!(names(folder.path()), before);

    // Taken while it was being written.
    for (name, make) in [("one", fs::create_dir as fn(_) -> _), ("two", |path| fs::write(path, "mine"))] {
        let staging = Staging::folder(&path(name)).unwrap();
        make(path(name)).unwrap();
        let _ = fs::write(path(name).join("notes"), "mine");
        let got = staging.publish().unwrap_err().to_string();
        assert!(got.contains("was written by another process meanwhile"), "{got}");
    }
    let staging = Staging::file(&path("three")).unwrap();
    fs::write(staging.path(), "ours").unwrap();
    fs::write(path("three"), "mine").unwrap();
    let got = staging.publish().unwrap_err().to_string();
    assert!(got.contains("was written by another process meanwhile"), "{got}");
    assert_eq!(fs::read(path("three")).unwrap(), b"mine");
    assert_eq!(names(&path("one")), ["notes"]);
    assert_eq!(names(folder.path()), ["file", "full", "one", "three", "two"]);
}

#[cfg(unix)]
#[test]
fn an_empty_folder_is_as_good_as_none_keeps_its_permissions_and_links_to_it_are_followed() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mode = |name: &str| fs::metadata(path(name)).unwrap().permissions().mode() & 0o777;
    fs::create_dir(path("private")).unwrap();
    fs::set_permissions(path("private"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("private", path("link")).unwrap();
    publish(&path("link"), "x").unwrap();
    assert!(path("link").is_symlink());
    assert_eq!((names(&path("private")), mode("private")), (vec!["text".to_owned()], 0o700));
    symlink("nowhere", path("lost")).unwrap();
    for lost in ["lost", "lost/"] {
        let got = publish(&path(lost), "x").unwrap_err();
        assert!(got.contains("is a link that leads nowhere"), "{got}");
    }
    for name in ["slash/", "dot/.", "dot/../dots"] {
        publish(&path(name), "x").unwrap();
    }
    assert_eq!(names(folder.path()), ["dot", "dots", "link", "lost", "private", "slash"]);
}

#[test]
fn what_the_dead_left_is_swept_and_what_the_living_write_is_not() {
    let folder = tempdir().unwrap();
    left_by_the_dead(folder.path(), "other", &["lock", "new"]);
    left_by_the_dead(folder.path(), "half-swept", &["new"]);
    left_by_the_dead(folder.path(), "just-made", &[]);
    for foreign in [".x.partial", ".luthier-partial", "y.AbCdEf.luthier-partial", ".rsync"] {
        fs::create_dir(folder.path().join(foreign)).unwrap();
    }
    let living = Staging::folder(&folder.path().join("living")).unwrap();
    assert_eq!(names(folder.path()).len(), 4 + 1, "the dead's are gone");
    assert_eq!(sweep_staged(folder.path()), ["living"]);
    let got = publish(&folder.path().join("living"), "x").unwrap_err();
    assert!(got.contains("is being written by another process"), "{got}");
    publish(&folder.path().join("living.too"), "x").unwrap();
    fs::write(living.path().join("text"), "x").unwrap();
    living.publish().unwrap();
    let kept =
        [".luthier-partial", ".rsync", ".x.partial", "living", "living.too", "y.AbCdEf.luthier-partial"];
    assert_eq!(names(folder.path()), kept);
}

#[test]
fn what_replaces_stands_in_the_old_ones_place_or_the_old_one_does() {
    let folder = tempdir().unwrap();
    let best = folder.path().join("best");
    for text in ["first", "second"] {
        let staging = Staging::replacing(&best).unwrap();
        fs::write(staging.path().join("text"), text).unwrap();
        drop(Staging::replacing(&best).unwrap());
        staging.publish().unwrap();
        assert_eq!(fs::read_to_string(best.join("text")).unwrap(), text);
        assert_eq!(names(folder.path()), ["best"]);
    }
    // Killed between the old one's going and the new one's coming; then after both.
    fs::remove_dir_all(&best).unwrap();
    for _ in 0..2 {
        left_by_the_dead(folder.path(), "best", &["lock", "new", "old"]);
        assert_eq!(sweep_staged(folder.path()), [""; 0]);
        assert_eq!(fs::read_to_string(best.join("text")).unwrap(), "old");
        assert_eq!(names(folder.path()), ["best"]);
    }
    // What was being deleted does not come back.
    fs::remove_dir_all(&best).unwrap();
    left_by_the_dead(folder.path(), "best", &["lock", "new"]);
    sweep_staged(folder.path());
    assert_eq!(names(folder.path()), [""; 0]);
    // Nor does a folder that somebody took away.
    let gone = folder.path().join("gone");
    assert!(Staging::replacing(&gone.join("best")).is_err() && !gone.exists());
}

#[test]
fn of_many_that_write_to_one_place_one_succeeds_and_nobody_sweeps_the_living() {
    const WRITERS: usize = 8;
    for _ in 0..20 {
        let folder = tempdir().unwrap();
        let path = folder.path();
        let work = &|i: usize| {
            let own = publish(&path.join(format!("own-{i}")), "own");
            own.unwrap_or_else(|e| panic!("nobody else writes there: {e}"));
            publish(&path.join("one"), &i.to_string()).is_ok().then_some(i)
        };
        let won: Vec<usize> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS).map(|i| scope.spawn(move || work(i))).collect();
            writers.into_iter().filter_map(|writer| writer.join().unwrap()).collect()
        });
        assert_eq!(won.len(), 1);
        assert_eq!(fs::read_to_string(path.join("one/text")).unwrap(), won[0].to_string());
        assert_eq!(names(path).len(), WRITERS + 1, "{:?}", names(path));
    }
}
