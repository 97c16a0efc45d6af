//! The tokenizer wrapper: special tokens, offsets, streaming, other layouts and broken files.

use data::{Tokenizer, TokenizerError};

use crate::support::{Files, fixture, tokenizer};

#[test]
fn special_tokens_come_from_strings_objects_and_the_generation_config() {
    let tokenizer = tokenizer();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (Some(1), Some(2), None));
    assert_eq!(tokenizer.ends(), [2, 4]);
    assert!(tokenizer.is_end(4) && tokenizer.is_special(3) && !tokenizer.is_end(3));
    assert_eq!(tokenizer.token_to_id("<|im_end|>"), Some(4));
    assert_eq!(tokenizer.templates()[0].0, "default");
}

#[test]
fn offsets_say_where_a_token_begins_its_leading_space_included() {
    let encoded = tokenizer().encode("a violin", true).unwrap();
    assert_eq!((encoded.added_front, encoded.added_back), (1, 0));
    assert_eq!(encoded.ids.len(), 3, "{encoded:?}");
    assert_eq!(encoded.begins, [0, 0, 1]);
}

#[test]
fn a_stream_gives_out_whole_characters_and_all_of_them() {
    let tokenizer = tokenizer();
    let text = "Grüße, 東京! 👩‍👩‍👧 <|im_end|> naïve";
    let ids = tokenizer.encode(text, false).unwrap().ids;
    let mut stream = tokenizer.stream(false);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(&tokenizer, id)).collect();
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    assert_eq!(pieces.concat() + &stream.finish(&tokenizer), text);

    let mut cut = tokenizer.stream(false);
    let half = &ids[..ids.iter().position(|&id| id > 300).unwrap_or(3).max(6)];
    let shown: String = half.iter().map(|&id| cut.push(&tokenizer, id)).collect();
    assert_eq!(shown + &cut.finish(&tokenizer), tokenizer.decode(half, false).unwrap());
}

#[test]
fn an_unfinished_character_is_shown_when_the_stream_ends() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("東", false).unwrap().ids;
    let mut stream = tokenizer.stream(false);
    assert_eq!(stream.push(&tokenizer, ids[0]), "");
    assert!(stream.finish(&tokenizer).contains('\u{fffd}'));
}

#[test]
fn vocab_and_merges_are_read_as_the_tokenizer_they_would_become() {
    let files = Files::new(&[
        ("vocab.json", r#"{"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġab": 4, "<|endoftext|>": 5}"#),
        ("merges.txt", "#version: 0.2\na b\nĠ ab\n"),
        ("added_tokens.json", r#"{"<|im_end|>": 6}"#),
        ("tokenizer_config.json", r#"{"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}"#),
    ]);
    let tokenizer = Tokenizer::load(files.folder()).unwrap();
    assert_eq!(tokenizer.encode("ab ab<|im_end|>", true).unwrap().ids, [2, 4, 6]);
    assert_eq!(tokenizer.decode(&[2, 4], false).unwrap(), "ab ab");
    assert_eq!(tokenizer.eos(), Some(6));
}

#[test]
fn named_templates_and_template_files_are_found() {
    let json = std::fs::read_to_string(fixture("tokenizer/tokenizer.json")).unwrap();
    let list =
        r#"{"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}"#;
    let files = Files::new(&[("tokenizer.json", &json), ("tokenizer_config.json", list)]);
    let tokenizer = Tokenizer::load(files.folder()).unwrap();
    let template = data::ChatTemplate::resolve(None, &tokenizer).unwrap().unwrap();
    assert_eq!(template.render(&[], None, false).unwrap().text, "d");
    assert_eq!(template.render(&[], Some(&serde_json::json!([{}])), false).unwrap().text, "t");

    std::fs::write(files.path("chat_template.jinja"), "from the file").unwrap();
    let tokenizer = Tokenizer::load(files.folder()).unwrap();
    assert_eq!(tokenizer.templates(), [("default".to_string(), "from the file".to_string())]);
}

#[test]
fn a_folder_without_a_tokenizer_says_so() {
    let error = Tokenizer::load(Files::new(&[]).folder()).unwrap_err();
    assert!(matches!(error, TokenizerError::Missing { .. }), "{error}");
    let files = Files::new(&[("tokenizer.model", "")]);
    let error = Tokenizer::load(files.folder()).unwrap_err().to_string();
    assert!(error.contains("save_pretrained"), "{error}");
}

#[test]
fn a_broken_tokenizer_file_is_named() {
    let json = std::fs::read_to_string(fixture("tokenizer/tokenizer.json")).unwrap();
    let half = &json[..json.len() / 2];
    for (name, content) in
        [("tokenizer.json", half), ("tokenizer_config.json", "{"), ("generation_config.json", "[]")]
    {
        let files = Files::new(&[("tokenizer.json", &json)]);
        std::fs::write(files.path(name), content).unwrap();
        let error = Tokenizer::load(files.folder()).unwrap_err();
        assert!(matches!(error, TokenizerError::Broken { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_saved_truncation_does_not_cut_examples() {
    let json = std::fs::read_to_string(fixture("tokenizer/tokenizer.json")).unwrap();
    let truncation =
        r#""truncation":{"direction":"Right","max_length":4,"strategy":"LongestFirst","stride":0}"#;
    let files = Files::new(&[("tokenizer.json", &json.replacen("\"truncation\":null", truncation, 1))]);
    let tokenizer = Tokenizer::load(files.folder()).unwrap();
    assert!(tokenizer.encode("Ana builds a violin before noon.", true).unwrap().ids.len() > 4);
}

#[test]
fn a_special_token_is_found_in_text_whatever_the_normalizer() {
    // The end token is looked for after normalization here, where the prepended mark would hide it.
    let json = r#"{"version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null, "post_processor": null,
        "added_tokens": [{"id": 1, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": true, "special": true}],
        "normalizer": {"type": "Prepend", "prepend": "_"}, "decoder": null,
        "model": {"type": "BPE", "unk_token": "?", "fuse_unk": true, "vocab": {"?": 0, "<end>": 1, "_": 2, "a": 3}, "merges": []}}"#;
    let config = r#"{"eos_token": "<end>"}"#;
    let files = Files::new(&[("tokenizer.json", json), ("tokenizer_config.json", config)]);
    let tokenizer = Tokenizer::load(files.folder()).unwrap();
    assert_eq!(tokenizer.encode("a<end>", false).unwrap().ids, [2, 3, 1]);
    assert_eq!(tokenizer.decode(&[3, 1], true).unwrap(), "a");
}

#[test]
fn the_bytes_of_tokens_are_those_of_the_text() {
    let tokenizer = tokenizer();
    let bytes = tokenizer.token_bytes();
    assert_eq!(bytes.len(), tokenizer.vocab_size());
    for text in ["Grüße, 東京! 👩‍👩‍👧 <|im_end|> naïve\n\t x", "a", ""] {
        let ids = tokenizer.encode(text, false).unwrap().ids;
        let all: Vec<u8> = ids.iter().flat_map(|&id| bytes[id as usize].clone()).collect();
        assert_eq!(String::from_utf8(all).unwrap(), text);
    }
}

/// As Llama 2 spells them: a mark for spaces, and bytes that no token has by their number.
#[test]
fn bytes_may_be_spelled_by_their_numbers() {
    let json = r#"{"version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null, "post_processor": null,
        "added_tokens": [{"id": 5, "content": "▁<0x41>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": false}],
        "normalizer": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "unk_token": "?", "byte_fallback": true, "merges": [],
                  "vocab": {"?": 0, "<0xE6>": 1, "▁": 2, "<0x0g>": 3, "é": 4}}}"#;
    let files = Files::new(&[("tokenizer.json", json)]);
    let bytes = Tokenizer::load(files.folder()).unwrap().token_bytes();
    let expected: [&[u8]; 6] = [b"?", &[0xe6], b" ", b"<0x0g>", "é".as_bytes(), "▁<0x41>".as_bytes()];
    assert_eq!(bytes, expected);
}
