//! The older layout of byte-level tokenizers, `vocab.json` and `merges.txt`, as the `tokenizer.json` that
//! transformers converts it to.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::{TokenizerError, broken, read, read_object};

/// Qwen2's way of cutting text into words (transformers, models/qwen2/tokenization_qwen2.py).
pub(super) const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The text of a `tokenizer.json` for a folder with `vocab.json` and `merges.txt`.
pub(super) fn tokenizer_json(folder: &Path, config: &Map<String, Json>) -> Result<Vec<u8>, TokenizerError> {
    let vocab = read_object(&folder.join("vocab.json"))?;
    let merges_path = folder.join("merges.txt");
    let (Some(vocab), Some(merges)) = (vocab, read(&merges_path)?) else {
        let sentencepiece = folder.join("tokenizer.model").exists();
        let hint = if sentencepiece {
            "; tokenizer.model alone is not read: save the tokenizer once with transformers' save_pretrained"
        } else {
            "; copy the tokenizer's files of the model into the folder"
        };
        return Err(TokenizerError::Missing { folder: folder.into(), hint });
    };
    let merges = parse_merges(&merges, &merges_path)?;
    let qwen =
        config.get("tokenizer_class").and_then(Json::as_str).is_some_and(|class| class.starts_with("Qwen2"));
    let (normalizer, pre_tokenizer) = if qwen { qwen2_words() } else { gpt2_words() };
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(folder, &vocab)?,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": merges,
        },
    });
    Ok(tokenizer.to_string().into_bytes())
}

fn byte_level(use_regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex})
}

fn gpt2_words() -> (Json, Json) {
    (Json::Null, byte_level(true))
}

fn qwen2_words() -> (Json, Json) {
    let split =
        json!({"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": false});
    (json!({"type": "NFC"}), json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]}))
}

/// One merge per line, `left right`; lines before the first merge may be a `#version` comment.
fn parse_merges(text: &str, path: &Path) -> Result<Vec<Json>, TokenizerError> {
    let lines = text
        .lines()
        .enumerate()
        .filter(|(i, line)| !line.is_empty() && (*i > 0 || !line.starts_with("#version")));
    lines
        .map(|(i, line)| match line.split(' ').collect::<Vec<_>>()[..] {
            [left, right] => Ok(json!([left, right])),
            _ => Err(broken(path, format!("line {}: a merge is two tokens with a space between", i + 1))),
        })
        .collect()
}

/// Tokens of `added_tokens.json`, and the end-of-text token of GPT-2's vocabulary, which stands in the
/// vocabulary itself.
fn added_tokens(folder: &Path, vocab: &Map<String, Json>) -> Result<Vec<Json>, TokenizerError> {
    let added = read_object(&folder.join("added_tokens.json"))?.unwrap_or_default();
    let in_vocab = vocab.get_key_value("<|endoftext|>");
    let mut tokens: Vec<(u64, &String)> =
        added.iter().chain(in_vocab).filter_map(|(token, id)| Some((id.as_u64()?, token))).collect();
    tokens.sort();
    tokens.dedup();
    let token = |(id, content): (u64, &String)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    Ok(tokens.into_iter().map(token).collect())
}
