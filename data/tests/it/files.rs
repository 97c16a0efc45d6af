//! Files as they come: line ends, layouts, encodings, and what Python writes into JSON.

use data::{ChatTemplate, DataSpec, Dataset, Tokenizer};

use crate::support::{Files, error_of, fixture, load, load_as, masked, tokenizer};

/// The records of a file by where they begin, and their texts.
fn lines_and_texts(name: &str, content: &str) -> Vec<(usize, String)> {
    let dataset = load_as(name, content, |_| {}).unwrap_or_else(|error| panic!("{name}: {error}"));
    let text = |example: &data::Example| masked(example, &tokenizer()).replace("⏎\n", "⏎");
    dataset.examples.iter().map(|example| (example.source.line, text(example))).collect()
}

#[test]
fn lines_of_a_text_file_end_in_a_line_feed() {
    let unix = load_as("a.txt", "Once.\nTwice.\n\nEnd", |_| {}).unwrap();
    for windows in ["\u{feff}Once.\r\nTwice.\r\n\r\nEnd", "Once.\rTwice.\r\rEnd", "Once.\r\nTwice.\n\rEnd"] {
        let dataset = load_as("a.txt", windows, |_| {}).unwrap();
        assert_eq!(dataset.examples[0].input_ids, unix.examples[0].input_ids, "{windows:?}");
    }
}

#[test]
fn a_carriage_return_within_a_string_of_json_is_data() {
    for name in ["a.jsonl", "a.json"] {
        let dataset = load_as(name, "{\"text\": \"a\\r\\nb\\rc\"}\r\n", |_| {}).unwrap();
        assert_eq!(masked(&dataset.examples[0], &tokenizer()), "<s>[a\r⏎\nb\rc</s>]");
    }
}

#[test]
fn a_template_renders_the_same_whatever_its_line_ends() {
    let unix = "{%- for m in messages %}\n{{ m.role }}:\n{{ 'a\nb' }}{{ '\\r\\n' }}{{ m.content }}\n{% endfor %}\nend\n";
    let message = [("role", "user"), ("content", "x\r\ny")];
    let messages = [message.map(|(key, value)| (key.to_string(), value.into())).into_iter().collect()];
    let rendered = |source: &str| {
        ChatTemplate::compile(source, "t").unwrap().render(&messages, None, false).unwrap().text
    };
    let expected = "user:\na\nb\r\nx\r\ny\nend";
    assert_eq!(rendered(unix), expected, "escapes and messages are left as they are");
    for other in [unix.replace('\n', "\r\n"), unix.replace('\n', "\r"), format!("\u{feff}{unix}")] {
        assert_eq!(rendered(&other), expected, "{other:?}");
    }

    // In a file, and in the tokenizer's own settings.
    let windows = unix.replace('\n', "\r\n");
    let json = std::fs::read_to_string(fixture("tokenizer/tokenizer.json")).unwrap();
    let config = serde_json::json!({ "chat_template": windows }).to_string();
    let files = Files::new(&[
        ("tokenizer.json", &json),
        ("tokenizer_config.json", &config),
        ("t.jinja", &format!("\u{feff}{windows}")),
    ]);
    let tokenizer = Tokenizer::load(files.folder()).unwrap();
    let path = files.path("t.jinja").display().to_string();
    for setting in [None, Some(path.as_str())] {
        let template = ChatTemplate::resolve(setting, &tokenizer).unwrap().unwrap();
        assert_eq!(template.render(&messages, None, false).unwrap().text, expected);
    }
}

#[test]
fn lists_and_objects_over_several_lines_are_read_in_jsonl_as_in_json() {
    let a = (String::from("<s>[a</s>]"), String::from("<s>[b</s>]"));
    for (content, lines) in [
        ("[\n {\n  \"text\": \"a\"\n },\n {\"text\": \"b\"}\n]", [2, 5]),
        ("\u{feff}\r\n[{\"text\": \"a\"}, {\"text\": \"b\"}]", [2, 2]),
        ("{\n \"text\": \"a\"\n}\n{\n \"text\": \"b\"\n}\n", [1, 4]),
        ("\n{ \"text\":\n \"a\" }\n\n{\"text\": \"b\"}\n", [2, 5]),
        ("{\"text\": \"a\"} {\"text\": \"b\"}", [1, 1]),
        ("{\"text\": \"a\"}\r{\"text\": \"b\"}\r", [1, 1]),
        ("{\"text\": \"a\"}\r\n\r\n{\"text\": \"b\"}\r\n", [1, 3]),
        ("{\"text\": \"a\"}\n\u{feff}{\"text\": \"b\"}\n", [1, 2]),
    ] {
        for name in ["a.jsonl", "a.ndjson", "a.json"] {
            if name == "a.json" && content.contains("\n\u{feff}") {
                continue;
            }
            let found = lines_and_texts(name, content);
            assert_eq!(found, [(lines[0], a.0.clone()), (lines[1], a.1.clone())], "{name}: {content:?}");
        }
    }
}

#[test]
fn a_broken_record_names_its_line_however_the_file_is_laid_out() {
    let error = |content: &str| error_of("a.jsonl", content, |_| {});
    for (content, message) in [
        ("[\n{\"text\": \"a\"},\n {\"text\": }\n]", "a.jsonl:3: invalid JSON at column 11: expected value"),
        (
            "{\n \"text\": \"a\"\n}\n{\n \"text\" \"b\"\n}",
            "a.jsonl:5: invalid JSON at column 9: expected `:` (in the value that begins on line 4)",
        ),
        (
            "{\"text\":\n{\"text\": \"b\"}\n",
            "a.jsonl:2: invalid JSON at column 14: EOF while parsing an object (in the value that begins on line 1); the value \
             does not end, is the file cut off?",
        ),
        (
            "{\"text\": \"a\"}\n{\"text\":\n{\"text\": \"b\"}\n",
            "a.jsonl:2: invalid JSON at column 8: EOF while parsing a value; the value does not end, is the file cut off?",
        ),
        ("[\n{\"text\": \"a\"},\n]", "a.jsonl:3: a comma after the last element of the list; take it away"),
        (
            "{\"text\": \"a\"},\n{\"text\": \"b\"},\n",
            "a.jsonl:1: a comma after an object; take these commas away, or write the whole as one list, [...]",
        ),
        (
            "[{\"text\": \"a\"}]\n[{\"text\": \"a\"}]\n",
            "a.jsonl:2: a second list; a file is one list of objects, or an object on each line",
        ),
        ("[\n{\"text\": \"a\"}\n", "a.jsonl:3: the list does not end; the file seems cut off"),
        ("[\n{\"text\": \"a\"},\n[1]]", "a.jsonl:3: a record must be a JSON object, this is a list"),
    ] {
        assert_eq!(error(content), message, "{content:?}");
    }
}

#[test]
fn what_is_no_utf8_text_says_what_it_is() {
    let utf16 = |little: bool, mark: bool| {
        let text = format!("{}{{\"text\": \"a\"}}\n", if mark { "\u{feff}" } else { "" });
        let bytes = |unit: u16| if little { unit.to_le_bytes() } else { unit.to_be_bytes() };
        text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>()
    };
    let cases: [(Vec<u8>, &str); 8] = [
        (utf16(true, true), "is UTF-16 text; save the file as UTF-8"),
        (utf16(false, true), "is UTF-16 text; save the file as UTF-8"),
        (utf16(true, false), "is UTF-16 text; save the file as UTF-8"),
        (utf16(false, false), "is UTF-16 text; save the file as UTF-8"),
        (b"\xfd7zXZ\0\0".to_vec(), "is compressed by xz, whatever its ending says; unpack it first"),
        (b"ARROW1\0\0".to_vec(), "is an Arrow file, whatever its ending says; save it as .parquet"),
        (b"PK\x03\x04\0".to_vec(), "is a zip archive, whatever its ending says; unpack it first"),
        (b"PAR1\x15\0".to_vec(), "is a Parquet file, whatever its ending says; name it .parquet"),
    ];
    for (bytes, message) in cases {
        for name in ["a.jsonl", "a.json", "a.txt"] {
            let files = Files::new(&[]);
            std::fs::write(files.path(name), &bytes).unwrap();
            let error =
                Dataset::load(&DataSpec::file(files.path(name)), &tokenizer()).unwrap_err().to_string();
            assert!(error.ends_with(&format!("{name}: {message}")), "{error}");
        }
    }
    for name in ["a.jsonl", "a.json"] {
        let error = error_of(name, "", |_| {});
        assert!(error.contains("nothing would be trained"), "{name}: {error}");
    }
}

#[test]
fn what_python_writes_where_a_table_has_no_value_is_null() {
    let dataset = load(
        r#"{"instruction": "Say hi", "input": NaN, "output": "Hi", "score": -Infinity, "n": [Infinity]}"#,
        |_| {},
    );
    let with_null = load(r#"{"instruction": "Say hi", "input": null, "output": "Hi"}"#, |_| {}).unwrap();
    assert_eq!(dataset.unwrap().examples[0].input_ids, with_null.examples[0].input_ids);
    let error = error_of("a.jsonl", r#"{"instruction": "Say hi", "output": NaN}"#, |_| {});
    assert_eq!(error, "a.jsonl:1: the key \"output\" is null, which it must not be");
}

#[test]
fn what_is_no_json_is_named_with_its_column_and_what_to_write() {
    let cases = [
        (
            r#"{"text": "a \ud83d"}"#,
            "half of a surrogate pair, \\ud83d, at column 13; write the whole character, or \\ufffd",
        ),
        (
            r#"{"text": "a \ud83d\u0041"}"#,
            "half of a surrogate pair, \\ud83d, at column 13; write the whole character, or \\ufffd",
        ),
        (
            r#"{"text": "🎻 \udfff"}"#,
            "half of a surrogate pair, \\udfff, at column 13; write the whole character, or \\ufffd",
        ),
        (r#"{"text": None}"#, "`None` at column 10 is not JSON; write null"),
        (r#"{"text": True}"#, "`True` at column 10 is not JSON; write true"),
        (r#"{'text': 'a'}"#, "a single quote at column 2 is not JSON; write strings in \"\""),
        (
            r#"{"text": "a", "tools": [{"maximum": Infinity}]}"#,
            "`Infinity` at column 37 is not JSON; write null or a number",
        ),
    ];
    for (record, message) in cases {
        assert_eq!(
            error_of("a.jsonl", &format!("{{\"text\": \"a\"}}\n{record}"), |_| {}),
            format!("a.jsonl:2: {message}")
        );
        let list = format!("[{{\"text\": \"a\"}},\n{record}]");
        assert_eq!(error_of("a.json", &list, |_| {}), format!("a.json:2: {message}"));
    }
    let error = error_of("a.json", r#"[{"text": "a"}, {"text": None}]"#, |_| {});
    assert_eq!(error, "a.json:1: `None` at column 26 is not JSON; write null");
}
