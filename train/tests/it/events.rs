//! The event file for TensorBoard: whole records, each step once whatever was interrupted, the values of
//! `metrics.jsonl`. Frames and checksums are read here by their definition.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use compute::Precision;
use serde_json::Value;
use train::{Outcome, Saves, Settings};

use crate::common::{random_examples, run, settings, tiny};

fn with_events() -> Settings {
    Settings { tensorboard: true, eval_every: Some(3), saves: Saves::EverySteps(2), ..settings() }
}

fn go(settings: &Settings, folder: &Path, stop_after: Option<u64>) -> Outcome {
    let (train, eval) = (random_examples(30), random_examples(4));
    run(&tiny(1, Precision::F32), 0.0, &train, &eval, settings, folder, stop_after).0
}

/// CRC-32C (Castagnoli), a bit at a time.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

fn masked(bytes: &[u8]) -> u32 {
    let crc = crc(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The data of all records, each of which must be whole.
fn records(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut records) = (bytes, Vec::new());
    while !rest.is_empty() {
        let size = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let number = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let data = &rest[12..12 + size];
        assert_eq!((number(8), number(12 + size)), (masked(&rest[..8]), masked(data)));
        records.push(data);
        rest = &rest[16 + size..];
    }
    records
}

/// A field of a message of protocol buffers.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let length = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let (number, rest) = bytes.split_at(length);
        *bytes = rest;
        number.iter().rev().fold(0, |all, byte| all << 7 | u64::from(byte & 0x7f))
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let size = match key & 7 {
            0 => {
                fields.push((key >> 3, Field::Number(varint(&mut bytes))));
                continue;
            }
            1 => 8,
            5 => 4,
            2 => varint(&mut bytes) as usize,
            other => panic!("wire type {other}"),
        };
        let (value, rest) = bytes.split_at(size);
        fields.push((key >> 3, Field::Bytes(value)));
        bytes = rest;
    }
    fields
}

/// What TensorBoard would show: of each tag its steps with values, and the wall times of all events in order.
#[derive(Debug, Default, PartialEq)]
struct Shown {
    scalars: BTreeMap<String, Vec<(u64, f32)>>,
    times: Vec<f64>,
}

fn shown(folder: &Path) -> Shown {
    let bytes = fs::read(file(folder)).unwrap();
    let records = records(&bytes);
    let contains = |record: &[u8], text: &[u8]| record.windows(text.len()).any(|part| part == text);
    assert!(contains(records[0], b"\x1a\x0dbrain.Event:2"), "the version is the first record");
    assert!(records[1].ends_with(b"\x3a\x02\x08\x01"), "a session starts, at step 0");
    let mut shown = Shown::default();
    for record in &records[2..] {
        let mut step = 0;
        for (tag, field) in fields(record) {
            match (tag, field) {
                (1, Field::Bytes(time)) => shown.times.push(f64::from_le_bytes(time.try_into().unwrap())),
                (2, Field::Number(number)) => step = number,
                (5, Field::Bytes(summary)) => {
                    for (_, value) in fields(summary) {
                        let Field::Bytes(value) = value else { panic!("a value is a message") };
                        let [(1, Field::Bytes(tag)), (2, Field::Bytes(number))] = &fields(value)[..] else {
                            panic!("a tag and a number")
                        };
                        let number = f32::from_le_bytes((*number).try_into().unwrap());
                        let tag = String::from_utf8(tag.to_vec()).unwrap();
                        shown.scalars.entry(tag).or_default().push((step, number));
                    }
                }
                (tag, _) => panic!("field {tag}"),
            }
        }
    }
    shown
}

/// The one event file of a run.
fn file(folder: &Path) -> PathBuf {
    let files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let mut events = files.iter().filter(|path| path.to_string_lossy().contains("/events.out.tfevents."));
    let file = events.next().expect("there is an event file");
    assert!(events.next().is_none() && file.to_string_lossy().ends_with(".v2"), "{file:?}");
    file.clone()
}

/// The same from `metrics.jsonl`.
fn lines(folder: &Path) -> BTreeMap<String, Vec<(u64, f32)>> {
    let mut scalars: BTreeMap<String, Vec<(u64, f32)>> = BTreeMap::new();
    let of_step = ["loss", "grad_norm", "learning_rate", "tokens_per_second", "memory_bytes", "epoch"];
    let tags = of_step.map(|key| (format!("train/{key}"), key)).into_iter();
    let tags: Vec<_> = tags.chain([("eval/loss".to_owned(), "eval_loss")]).collect();
    for line in fs::read_to_string(folder.join("metrics.jsonl")).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        for (tag, key) in &tags {
            let Some(value) = line[key].as_f64() else { continue };
            let step = line["step"].as_u64().unwrap();
            scalars.entry(tag.clone()).or_default().push((step, value as f32));
        }
    }
    scalars
}

#[track_caller]
fn check(folder: &Path) {
    let shown = shown(folder);
    assert_eq!(shown.scalars, lines(folder));
    assert!(shown.times.is_sorted(), "{:?}", shown.times);
}

#[test]
fn the_file_says_what_the_metrics_say() {
    let out = tempfile::tempdir().unwrap();
    assert_eq!(go(&with_events(), out.path(), None), Outcome::Finished);
    check(out.path());
    let steps: Vec<u64> = shown(out.path()).scalars["train/loss"].iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, (1..=8).collect::<Vec<_>>());
}

#[test]
fn a_run_that_was_killed_and_goes_on_shows_each_step_once_and_keeps_their_times() {
    let out = tempfile::tempdir().unwrap();
    assert_eq!(go(&with_events(), out.path(), Some(5)), Outcome::Interrupted);
    // As a kill leaves it: steps after the last checkpoint, and an end in the middle of a record.
    fs::remove_dir_all(out.path().join("checkpoints/step-000005")).unwrap();
    let (before, path) = (shown(out.path()), file(out.path()));
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_within(..20);
    fs::write(&path, bytes).unwrap();
    assert_eq!(go(&with_events(), out.path(), None), Outcome::Finished);
    check(out.path());
    // The evaluations before steps 1 and 4, and steps 1 to 4.
    let after = shown(out.path());
    assert_eq!(before.times[..6], after.times[..6]);
    assert!(after.times[6] >= before.times[6], "step 5 came again");
}

#[test]
fn a_run_that_goes_on_replaces_its_own_file_and_no_others() {
    let out = tempfile::tempdir().unwrap();
    assert_eq!(go(&with_events(), out.path(), Some(5)), Outcome::Interrupted);
    let ours = file(out.path());
    let others = ["events.out.tfevents.1700000000.host.1.0", "events.out.tfevents.1700000000.host.1.0.v2"];
    let others = others.map(|name| out.path().join(name));
    others.iter().for_each(|path| fs::write(path, fs::read(&ours).unwrap()).unwrap());
    assert_eq!(go(&with_events(), out.path(), None), Outcome::Finished);
    for path in others {
        assert!(path.is_file(), "{} is another program's", path.display());
        fs::remove_file(path).unwrap();
    }
    check(out.path());
}

#[test]
fn a_run_that_gets_the_file_late_has_all_of_its_steps_there() {
    let out = tempfile::tempdir().unwrap();
    let without = Settings { tensorboard: false, ..with_events() };
    assert_eq!(go(&without, out.path(), Some(3)), Outcome::Interrupted);
    let has_events = || {
        let mut entries = fs::read_dir(out.path()).unwrap();
        entries.any(|entry| entry.unwrap().file_name().to_string_lossy().contains("tfevents"))
    };
    assert!(!has_events(), "none unless it is asked for");
    assert_eq!(go(&with_events(), out.path(), None), Outcome::Finished);
    check(out.path());
}
