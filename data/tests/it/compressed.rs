//! Packed files, patterns and folders: the same records as from plain files, and no more memory than for
//! these.

use std::io::Write;

use data::{DataSpec, Dataset, SourceSpec, source};
use flate2::{Compression, write::GzEncoder};

use crate::support::{Files, tokenizer};

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).unwrap()
}

/// What is trained on, file and line aside.
fn loaded(files: &Files, name: &str, content: &[u8]) -> Result<Vec<(usize, Vec<u32>)>, String> {
    std::fs::write(files.path(name), content).unwrap();
    let dataset = Dataset::load(&DataSpec::file(files.path(name)), &tokenizer());
    let dataset =
        dataset.map_err(|error| error.to_string().replace(&format!("{}/", files.folder().display()), ""))?;
    Ok(dataset.examples.into_iter().map(|example| (example.source.line, example.input_ids)).collect())
}

#[test]
fn a_packed_file_is_read_as_the_plain_one_of_its_inner_name() {
    let files = Files::new(&[]);
    for (name, content) in [
        ("a.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n"),
        ("a.json", "[{\"text\": \"a\"},\n{\"text\": \"b\"}]"),
        ("a.csv", "text\na\n\"b\nc\"\n"),
        ("a.tsv", "prompt\tcompletion\na\tb\n"),
        ("a.txt", "Once.\r\nTwice."),
    ] {
        let plain = loaded(&files, name, content.as_bytes()).unwrap();
        for (ending, packed) in [("gz", gzip(content.as_bytes())), ("zst", zstd(content.as_bytes()))] {
            assert_eq!(
                loaded(&files, &format!("{name}.{ending}"), &packed),
                Ok(plain.clone()),
                "{name}.{ending}"
            );
            // Browsers and servers pack and unpack without changing names.
            assert_eq!(loaded(&files, name, &packed), Ok(plain.clone()), "{name} packed by {ending}");
            let unpacked = loaded(&files, &format!("{name}.{ending}"), content.as_bytes());
            assert_eq!(unpacked, Ok(plain.clone()), "{name}.{ending} not packed");
        }
    }
}

#[test]
fn members_and_frames_that_were_put_together_are_all_read() {
    let files = Files::new(&[]);
    let (a, b) = ("{\"text\": \"a\"}\n", "\u{feff}{\"text\": \"b\"}\n");
    let plain = loaded(&files, "a.jsonl", format!("{a}{b}").as_bytes()).unwrap();
    assert_eq!(plain.len(), 2);
    let both = |pack: fn(&[u8]) -> Vec<u8>| [pack(a.as_bytes()), pack(b.as_bytes())].concat();
    assert_eq!(loaded(&files, "a.jsonl.gz", &both(gzip)), Ok(plain.clone()));
    assert_eq!(loaded(&files, "a.jsonl.zst", &both(zstd)), Ok(plain));
}

#[test]
fn a_packed_file_that_is_cut_off_or_damaged_says_so() {
    let files = Files::new(&[]);
    let lines = "{\"text\": \"some words to pack\"}\n".repeat(200);
    for (name, packed, how) in
        [("a.jsonl.gz", gzip(lines.as_bytes()), "gzip"), ("a.csv.zst", zstd(lines.as_bytes()), "zstd")]
    {
        for end in [3, packed.len() / 2, packed.len() - 3] {
            let error = loaded(&files, name, &packed[..end]);
            if end > 4 {
                assert_eq!(
                    error,
                    Err(format!("{name}: the {how} data end too early; is the file cut off?")),
                    "{end}"
                );
            } else {
                assert!(error.is_err());
            }
        }
        let mut damaged = packed.clone();
        let middle = damaged.len() / 2;
        damaged[middle..].fill(0x55);
        let error = loaded(&files, name, &damaged).unwrap_err();
        assert!(error.contains(&format!("{name}: the {how} data ")), "{error}");
    }
    assert_eq!(
        loaded(&files, "a.txt.gz", &gzip(&gzip(b"a"))),
        Err("a.txt.gz: is compressed twice; unpack it first".into())
    );
}

#[test]
fn what_unpacks_to_a_record_without_end_is_refused() {
    let files = Files::new(&[]);
    // 300 MiB in 300 KB; all that a record may have is 256.
    let bomb = |head: &str| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(head.as_bytes()).unwrap();
        let zeros = vec![b' '; 1 << 20];
        (0..300).for_each(|_| encoder.write_all(&zeros).unwrap());
        encoder.finish().unwrap()
    };
    for (name, head, message) in [
        ("a.jsonl.gz", "{\"text\": \"", "a.jsonl.gz:1: a line longer than 256 MiB"),
        ("a.json.gz", "[\n{\"text\": \"", "a.json.gz:2: a value longer than 256 MiB"),
        ("a.csv.gz", "text\n\"", "a.csv.gz:2: a row longer than 256 MiB"),
    ] {
        std::fs::write(files.path(name), bomb(head)).unwrap();
        let error =
            source::records(&files.path(name)).map_or_else(Some, |mut records| records.find_map(Result::err));
        assert!(error.unwrap().to_string().ends_with(message), "{name}");
    }
}

#[test]
fn a_pattern_means_the_files_that_fit_it_in_the_order_of_their_names() {
    let files =
        Files::new(&[("b.jsonl", ""), ("a.jsonl", ""), ("c.csv", ""), (".d.jsonl", ""), ("[x].jsonl", "")]);
    std::fs::create_dir(files.path("inner")).unwrap();
    std::fs::write(files.path("inner/e.jsonl.gz"), "").unwrap();
    let found = |pattern: &str| -> Vec<String> {
        let names =
            |path: &std::path::PathBuf| path.strip_prefix(files.folder()).unwrap().display().to_string();
        source::files(&files.path(pattern)).unwrap().iter().map(names).collect()
    };
    assert_eq!(found("*.jsonl"), ["[x].jsonl", "a.jsonl", "b.jsonl"]);
    assert_eq!(found("[ab].*"), ["a.jsonl", "b.jsonl"]);
    assert_eq!(found("**/*.gz"), ["inner/e.jsonl.gz"]);
    assert_eq!(found("[x].jsonl"), ["[x].jsonl"], "a file of that name");
    let error = |pattern: &str| source::files(&files.path(pattern)).unwrap_err().to_string();
    assert!(error("*.txt").ends_with("*.txt: no file has a name that fits this pattern"));
    assert!(error("a**").contains("is no pattern: "), "{}", error("a**"));
    assert!(error("none.jsonl").contains("No such file"));

    // A folder means its files of every kind.
    let names = source::files(files.folder()).unwrap();
    let names: Vec<_> = names.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, [".d.jsonl", "[x].jsonl", "a.jsonl", "b.jsonl", "c.csv"]);
}

#[test]
fn standard_input_is_read_once() {
    let claim = || source::files(&SourceSpec::new("-").path);
    assert_eq!(claim().unwrap(), [std::path::PathBuf::from("-")]);
    let error = claim().unwrap_err().to_string();
    assert_eq!(
        error,
        "-: standard input can be read only once, and it is asked for twice; give the other as a file"
    );
}
