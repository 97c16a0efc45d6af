//! Parquet files: what pyarrow wrote is read as pyarrow reads it, and no damaged file makes a panic or fills
//! the memory.

use data::{DataSpec, Dataset, Format, source};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{Files, fixture, load, tokenizer};

fn rows(path: &std::path::Path) -> Result<Vec<Value>, String> {
    let records = source::records(path).map_err(|error| error.to_string())?;
    let parse = |record: Result<source::RawRecord, data::DataError>| {
        Ok(Value::Object(record.and_then(|record| record.parse()).map_err(|error| error.to_string())?))
    };
    records.map(parse).collect()
}

/// The rows that pyarrow found.
fn expected(name: &str) -> Vec<Value> {
    let name = name.split('-').next().unwrap();
    let text = std::fs::read_to_string(fixture(&format!("parquet/{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The value without null fields within objects; a row has all its columns.
fn without_nulls(value: Value, is_row: bool) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| is_row || !value.is_null());
            Value::Object(fields.map(|(key, value)| (key, without_nulls(value, false))).collect())
        }
        Value::Array(items) => items.into_iter().map(|item| without_nulls(item, false)).collect(),
        other => other,
    }
}

#[test]
fn rows_are_those_that_pyarrow_reads_whatever_the_compression() {
    for name in
        ["chats-none", "chats-snappy", "chats-gzip", "chats-zstd", "chats-v2", "tokenized", "types", "empty"]
    {
        let found = rows(&fixture(&format!("parquet/{name}.parquet"))).unwrap();
        let expected: Vec<Value> = expected(name).into_iter().map(|row| without_nulls(row, true)).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn nested_messages_are_trained_on_as_the_same_json_is() {
    let content = |dataset: &Dataset| {
        dataset.examples.iter().map(|e| (e.input_ids.clone(), e.labels.clone())).collect::<Vec<_>>()
    };
    for (name, format) in [("chats-zstd", Format::Messages), ("tokenized", Format::Tokenized)] {
        let lines: String =
            expected(name).into_iter().map(|row| format!("{}\n", without_nulls(row, true))).collect();
        let qwen = |spec: &mut DataSpec| spec.chat_template = Some("qwen2.5".into());
        let mut spec = DataSpec::file(fixture(&format!("parquet/{name}.parquet")));
        qwen(&mut spec);
        let dataset = Dataset::load(&spec, &tokenizer()).unwrap();
        assert_eq!(content(&dataset), content(&load(&lines, qwen).unwrap()), "{name}");
        assert_eq!(dataset.report.files[0].format, format);
        assert!(dataset.examples[1].source.to_string().ends_with(".parquet, row 2"));
    }
}

#[test]
fn an_error_names_the_row() {
    let mut spec = DataSpec::file(fixture("parquet/chats-snappy.parquet"));
    spec.format = Format::Text;
    let error = Dataset::load(&spec, &tokenizer()).unwrap_err().to_string();
    assert!(error.ends_with("chats-snappy.parquet, row 1: the key \"text\" is missing"), "{error}");
}

#[test]
fn a_compression_that_is_not_read_is_named() {
    let error = rows(&fixture("parquet/chats-brotli.parquet")).unwrap_err();
    assert!(
        error
            .ends_with("is compressed by brotli, which is not read; write it anew with snappy, gzip or zstd"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_cut_off_says_so() {
    let files = Files::new(&[]);
    let bytes = std::fs::read(fixture("parquet/chats-snappy.parquet")).unwrap();
    for end in [0, 3, 4, 100, bytes.len() / 2, bytes.len() - 8, bytes.len() - 1] {
        std::fs::write(files.path("a.parquet"), &bytes[..end]).unwrap();
        let error = rows(&files.path("a.parquet")).unwrap_err();
        assert!(
            error.contains("a.parquet: cannot be read as Parquet, is it damaged or cut off? ("),
            "{end}: {error}"
        );
    }
}

#[test]
fn a_footer_that_lies_is_an_error() {
    let files = Files::new(&[]);
    let bytes = std::fs::read(fixture("parquet/tokenized.parquet")).unwrap();
    // The footer's length, which stands in front of the last four bytes.
    for length in [0u32, 1, 40, u32::MAX, bytes.len() as u32] {
        let mut lying = bytes.clone();
        let end = lying.len();
        lying[end - 8..end - 4].copy_from_slice(&length.to_le_bytes());
        std::fs::write(files.path("a.parquet"), &lying).unwrap();
        let error = rows(&files.path("a.parquet")).unwrap_err();
        let words = if length == u32::MAX {
            "claims 4294967295 bytes of metadata"
        } else {
            "is it damaged or cut off?"
        };
        assert!(error.contains(words), "{length}: {error}");
    }
}

/// A file without rows whose one column is nested in so many groups (Thrift's compact protocol, by hand).
fn nested(levels: usize) -> Vec<u8> {
    let mut footer = vec![0x15, 2, 0x19, 0xfc];
    let mut count = levels + 2;
    while count > 0x7f {
        footer.push(count as u8 | 0x80);
        count >>= 7;
    }
    footer.push(count as u8);
    footer.extend([0x48, 1, b'r', 0x15, 2, 0]);
    (0..levels).for_each(|_| footer.extend([0x35, 0, 0x18, 1, b'a', 0x15, 2, 0]));
    footer.extend([0x15, 2, 0x25, 0, 0x18, 1, b'a', 0, 0x16, 0, 0x19, 0x0c, 0]);
    let length = (footer.len() as u32).to_le_bytes();
    [b"PAR1", &footer[..], &length, b"PAR1"].concat()
}

#[test]
fn columns_nested_without_end_are_refused_and_exhaust_no_stack() {
    let files = Files::new(&[]);
    let read = |levels| {
        std::fs::write(files.path("a.parquet"), nested(levels)).unwrap();
        rows(&files.path("a.parquet"))
    };
    assert_eq!(read(20), Ok(vec![]));
    for levels in [100, 20_000, 1_000_000] {
        let error = read(levels).unwrap_err();
        assert!(error.contains("levels deep; up to 64 are read"), "{levels}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_damaged_file_makes_a_panic(
        name in prop::sample::select(vec!["chats-none", "chats-snappy", "chats-zstd", "chats-v2", "tokenized", "types"]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_footer in any::<bool>(),
    ) {
        let mut bytes = std::fs::read(fixture(&format!("parquet/{name}.parquet"))).unwrap();
        let end = bytes.len();
        let footer = u32::from_le_bytes(bytes[end - 8..end - 4].try_into().unwrap()) as usize;
        let range = if in_footer { end - 8 - footer..end } else { 0..end };
        for (place, byte) in damage {
            let place = range.start + place.index(range.len());
            bytes[place] = byte;
        }
        let files = Files::new(&[]);
        std::fs::write(files.path("a.parquet"), &bytes).unwrap();
        let _ = rows(&files.path("a.parquet"));
    }
}
