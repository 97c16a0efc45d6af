//! Malformed files: each error names the file, the line, what is wrong, and the nearest right name where
//! there is one.

use data::{DataError, DataSpec, Dataset, Format, TrainOn};

use proptest::prelude::*;

use crate::support::{Files, error_of, load, tokenizer, tokenizer_without_template};

const GOOD: &str =
    r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;

fn error(lines: &str) -> String {
    error_of("data.jsonl", lines, |_| {})
}

#[test]
fn invalid_json_names_its_line() {
    let text = error(&format!("{GOOD}\n\n{{\"messages\": [}}\n"));
    assert!(text.starts_with("data.jsonl:3: invalid JSON at column 15"), "{text}");
}

#[test]
fn invalid_json_inside_a_list_names_its_line() {
    let text = error_of("a.json", "[\n{\"text\": \"a\"},\n{\"text\":\n \"b\" \"c\"}\n]", |_| {});
    assert!(text.starts_with("a.json:4: invalid JSON"), "{text}");
}

#[test]
fn a_list_that_is_cut_off_says_so() {
    let text = error_of("a.json", "[\n{\"text\": \"a\"},\n{\"text\": \"b", |_| {});
    assert!(text.starts_with("a.json:3: "), "{text}");
    let text = error_of("a.json", "[\n{\"text\": \"a\"}\n", |_| {});
    assert!(text.contains("cut off"), "{text}");
    let text = error_of("a.json", "[{\"text\": \"a\"}] x", |_| {});
    assert!(text.contains("after the end"), "{text}");
}

#[test]
fn a_record_must_be_an_object() {
    assert!(error("[[1, 2]]").contains("must be a JSON object, this is a list"));
    assert!(
        error("{\"text\": \"a\"}\n[1, 2]")
            .contains("data.jsonl:2: a record must be a JSON object, this is a list")
    );
}

#[test]
fn deep_nesting_is_no_crash() {
    assert!(error(&"[".repeat(100_000)).contains("the list does not end"));
    let text = error(&(r#"{"a":"#.repeat(100_000) + "1" + &"}".repeat(100_000)));
    assert!(text.contains("data.jsonl:1: lists and objects are nested more than 127 levels deep"), "{text}");
}

#[test]
fn bytes_that_are_no_utf8_name_their_line() {
    let files = Files::new(&[]);
    std::fs::write(files.path("a.jsonl"), b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n").unwrap();
    let text = Dataset::load(&DataSpec::file(files.path("a.jsonl")), &tokenizer()).unwrap_err().to_string();
    assert!(text.contains("a.jsonl:2: not UTF-8 (byte 0xff)"), "{text}");
    std::fs::write(files.path("b.txt"), b"a\nb\n\xc3").unwrap();
    let text = Dataset::load(&DataSpec::file(files.path("b.txt")), &tokenizer()).unwrap_err().to_string();
    assert!(text.contains("b.txt:3: not UTF-8"), "{text}");
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    let text = error(r#"{"mesages": []}"#);
    assert!(
        text.starts_with("data.jsonl:1: no known format")
            && text.contains(r#"Did you mean "messages" by "mesages"?"#),
        "{text}"
    );
    let text = error_of("data.jsonl", r#"{"prompt": "a", "completoin": "b"}"#, |spec| {
        spec.format = Format::Completion
    });
    assert_eq!(text, r#"data.jsonl:1: the key "completion" is missing; did you mean it by "completoin"?"#);
}

#[test]
fn a_file_has_one_format() {
    let text = error(&format!("{GOOD}\n{{\"text\": \"a\"}}"));
    assert!(text.starts_with("data.jsonl:2: looks like format text, but line 1 like messages"), "{text}");
}

#[test]
fn a_later_record_without_its_key_is_an_error() {
    let lines = "{\"text\": \"a\"}\n".repeat(200) + "{\"txt\": \"b\"}";
    assert_eq!(error(&lines), r#"data.jsonl:201: the key "text" is missing; did you mean it by "txt"?"#);
}

#[test]
fn roles_are_checked() {
    let text = error(r#"{"messages": [{"role": "asistant", "content": "a"}]}"#);
    assert!(
        text.contains(r#"messages[0].role: unknown role "asistant", did you mean "assistant"?"#),
        "{text}"
    );
    let text = error(r#"{"messages": [{"rol": "user", "content": "a"}]}"#);
    assert!(text.contains(r#"messages[0] has no "role"; did you mean it by "rol"?"#), "{text}");
    let text = error(r#"{"messages": [{"role": "user", "content": 5}]}"#);
    assert!(text.contains("messages[0].content must be a string"), "{text}");
    let text = error(r#"{"messages": [{"role": "user"}]}"#);
    assert!(text.contains("messages[0] has no \"content\""), "{text}");
    assert!(error(r#"{"messages": []}"#).contains("is empty"));
    assert!(error(r#"{"messages": "a"}"#).contains("must be a list, not a string"));
    assert!(error(r#"{"messages": ["a"]}"#).contains("must be an object"));
}

#[test]
fn pictures_are_refused() {
    let text =
        error(r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}"#);
    assert!(text.contains(r#"content[0] is of type "image_url"; only text"#), "{text}");
}

#[test]
fn sharegpt_tags_are_checked() {
    let text = error(r#"{"conversations": [{"from": "humen", "value": "a"}]}"#);
    assert!(text.contains(r#"conversations[0].from: unknown tag "humen", did you mean "human"?"#), "{text}");
    assert!(error(r#"{"conversations": [{"from": "human", "text": "a"}]}"#).contains("has no \"value\""));
}

#[test]
fn alpaca_fields_are_checked() {
    let text = error(r#"{"instruction": "a", "output": "b", "history": [["c"]]}"#);
    assert!(text.contains("history[0] must be a pair of strings"), "{text}");
    assert!(
        error(r#"{"instruction": 1, "output": "b"}"#)
            .contains("\"instruction\" must be a string, not a number")
    );
}

#[test]
fn tokenized_records_are_checked() {
    let text = error(r#"{"input_ids": [1, 2], "labels": [1]}"#);
    assert!(text.contains("2 input_ids but 1 labels"), "{text}");
    let text = error(r#"{"input_ids": [1, 2], "labels": [-100, -1]}"#);
    assert!(text.contains("labels[1]: -1 is neither a token id nor -100"), "{text}");
    assert!(
        error(r#"{"input_ids": [1, -2], "labels": [1, 2]}"#).contains("input_ids[1]: -2 is not a token id")
    );
    assert!(error(r#"{"input_ids": [1, 4294967296], "labels": [1, 2]}"#).contains("is not a token id"));
    assert!(
        error(r#"{"input_ids": [1, 2.5], "labels": [1, 2]}"#).contains("input_ids[1]: 2.5 is not a token id")
    );
}

#[test]
fn a_token_beyond_the_vocabulary_is_named() {
    let text = error_of("data.jsonl", r#"{"input_ids": [1, 512], "labels": [1, 512]}"#, |spec| {
        spec.vocab_size = Some(512)
    });
    assert!(text.starts_with("data.jsonl:1: token 512"), "{text}");
    let text = error_of("data.jsonl", r#"{"input_ids": [1, 2], "labels": [1, 600]}"#, |spec| {
        spec.vocab_size = Some(512)
    });
    assert!(text.contains("token 600"), "{text}");
    let text = error_of("data.jsonl", r#"{"text": "a violin"}"#, |spec| spec.vocab_size = Some(16));
    assert!(text.contains("beyond the model's vocabulary of 16"), "{text}");
}

#[test]
fn preference_data_is_recognised_and_refused() {
    let text = error(r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#);
    assert!(text.contains("preference") && text.contains("not supported yet"), "{text}");
}

#[test]
fn what_the_template_refuses_names_the_record() {
    let text = error_of(
        "data.jsonl",
        &format!("{GOOD}\n{}", r#"{"messages": [{"role": "assistant", "content": "a"}]}"#),
        |spec| spec.chat_template = Some("llama-2".into()),
    );
    assert!(
        text.starts_with("data.jsonl:2: chat template llama-2") && text.contains("must alternate"),
        "{text}"
    );
}

#[test]
fn a_conversation_needs_a_template() {
    let files = Files::new(&[("a.jsonl", GOOD)]);
    let text =
        Dataset::load(&DataSpec::file(files.path("a.jsonl")), &tokenizer_without_template()).unwrap_err();
    assert!(text.to_string().contains("the tokenizer has no chat template; name a built-in one"), "{text}");
}

#[test]
fn a_run_in_which_nothing_would_be_trained_does_not_start() {
    let nothing = load(r#"{"messages": [{"role": "user", "content": "a"}]}"#, |_| {}).unwrap_err();
    assert!(matches!(nothing, DataError::NothingTrained(_)), "{nothing}");
    assert!(nothing.to_string().contains("of 1 records 1 have no token that carries loss"), "{nothing}");
    assert!(error("").contains("there is no example in"), "an empty file");
    assert!(error(r#"{"input_ids": [], "labels": []}"#).contains("nothing would be trained"));
    assert!(error(r#"{"input_ids": [5], "labels": [5]}"#).contains("nothing would be trained"));
}

#[test]
fn files_of_another_kind_are_refused_with_advice() {
    for (name, advice) in [
        ("a.jsonl.xz", ".xz is compressed in a way that is not read; unpack it, or pack it as .gz or .zst"),
        ("a.parquet.gz", "a Parquet file is compressed within and read from its end; unpack it first"),
        ("a.gz", "what is compressed is unknown; name it in front of the ending, as in .jsonl.gz"),
        ("a.arrow", ".arrow is not read; save it as .parquet"),
        ("a.xlsx", ".xlsx is not read; save the sheet as .csv"),
        ("a", "without an ending its kind is unknown; name it with one of jsonl,"),
        ("a.jsnl.gz", ".jsnl is not a supported kind of file, did you mean .jsonl?"),
    ] {
        let text = error_of(name, "", |_| {});
        assert!(text.contains(advice), "{text}");
    }
    assert!(error_of("a.jsonnl", "", |_| {}).contains("did you mean .jsonl?"));
    let missing = Dataset::load(&DataSpec::file("no/such/file.jsonl"), &tokenizer()).unwrap_err().to_string();
    assert!(missing.contains("no/such/file.jsonl"), "{missing}");
    let empty = Files::new(&[("README.md", "")]);
    let text = Dataset::load(&DataSpec::file(empty.folder()), &tokenizer()).unwrap_err().to_string();
    assert!(text.contains("holds no file"), "{text}");
}

#[test]
fn settings_that_contradict_the_data_are_named() {
    let text = error_of("a.txt", "text", |spec| spec.format = Format::Alpaca);
    assert!(text.contains("a .txt file is plain text, not alpaca"), "{text}");
    let text = error_of("data.jsonl", r#"{"text": "a"}"#, |spec| spec.train_on = TrainOn::Completion);
    assert!(text.starts_with("data.train_on: data.jsonl:1 is plain text"), "{text}");
    let text = error_of("data.jsonl", GOOD, |spec| spec.max_length = 1);
    assert!(text.contains("data.max_length"), "{text}");
    let text = error_of("data.jsonl", GOOD, |spec| spec.sources[0].weight = f64::NAN);
    assert!(text.contains("weight NaN must be more than 0"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_file_makes_a_panic(text in r#"[\[\]{},;:"\\a1\r\n\t é🎻-]{0,40}"#, bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        for name in ["a.json", "a.jsonl", "a.txt", "a.csv", "a.tsv", "a.parquet"] {
            let files = Files::new(&[]);
            for content in [text.as_bytes(), &bytes] {
                std::fs::write(files.path(name), content).unwrap();
                let Ok(records) = data::source::records(&files.path(name)) else { continue };
                records.flatten().for_each(|record| drop(record.parse()));
            }
        }
    }

    #[test]
    fn no_record_makes_a_panic(value in json_value()) {
        let record = serde_json::json!({"messages": value, "conversations": value, "instruction": value, "output": value,
            "history": value, "prompt": value, "completion": value, "text": value, "input_ids": value, "labels": value,
            "tools": value});
        let at = data::Source { file: std::sync::Arc::new("a".into()), line: 1 };
        for name in Format::NAMES.iter().filter(|name| **name != "auto") {
            let format: Format = name.parse().unwrap();
            let _ = format.item(record.as_object().unwrap().clone(), &at);
        }
    }

    #[test]
    fn no_template_makes_a_panic(source in r#"(\{%-?|-?%\}|\{\{|\}\}|\{#|#\}| generation | endgeneration | raw | endraw |'|"|\\|é|\n|x| if | endif ){0,20}"#) {
        if let Ok(template) = data::ChatTemplate::compile(&source, "x") {
            let _ = template.render(&[], None, true);
        }
    }
}

/// JSON of the shapes that records have, right and wrong.
fn json_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<f64>().prop_map(serde_json::Value::from),
        prop::sample::select(vec!["user", "assistant", "gpt", "human", "function_call", "[1]", "{}", ""])
            .prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let key =
            prop::sample::select(vec!["role", "content", "from", "value", "type", "text", "tool_calls"]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::btree_map(key, inner, 0..4)
                .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_string(), value)).collect()),
        ]
    })
}
