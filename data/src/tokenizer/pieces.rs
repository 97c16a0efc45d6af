//! Long texts are encoded in pieces, so that memory grows with the tokens and not with the tokenizer's notes: encoding a text at
//! once takes 100 to 500 bytes for each of its bytes.
//!
//! A text is cut only where its tokens stay the same:
//!
//! - Pre-tokenizers match words from left to right and remember nothing. No known one has a word go on over a space that
//!   follows something else, or from an ideograph to a full stop, and what comes next is then matched as at the beginning
//!   of a text. So both sides of such a place are split as they are in the whole.
//! - Byte pair encoding, where there are no words, gives a sequence of tokens in which each two neighbours, encoded alone,
//!   are these two tokens; and every sequence with that property is the encoding of its text. (Merges within the one
//!   neighbour do not depend on what lies beyond it, nor does which of the two neighbours' merges comes first.) The
//!   two tokens at a cut are seen as neighbours in the encoding of the text around the cut; else there is no cut.
//!
//! That encoding of the surroundings also tells of normalizers and added tokens for which the place would not do. Tokenizers
//! that are not byte pair encodings, and texts without such places, are encoded at once.

use tokenizers::ModelWrapper;

use super::{Encoded, TokenizerError, failed};

/// Bytes of a piece, up to the next place to cut.
const PIECE: usize = 1 << 16;

/// Bytes on each side of a cut that are encoded to see that it is one.
const AROUND: usize = 256;

/// Places to try, before the text is taken to have none.
const TRIES: usize = 32;

/// Encodes a text, in pieces if it is long.
pub(super) fn encode(
    inner: &tokenizers::Tokenizer,
    text: &str,
    add_special: bool,
) -> Result<Encoded, TokenizerError> {
    match text.len() >= 2 * PIECE {
        true => match in_pieces(inner, text, add_special, PIECE)? {
            Some(encoded) => Ok(encoded),
            None => at_once(inner, text, add_special),
        },
        false => at_once(inner, text, add_special),
    }
}

fn at_once(inner: &tokenizers::Tokenizer, text: &str, add_special: bool) -> Result<Encoded, TokenizerError> {
    let encoding = inner.encode(text, add_special).map_err(|error| failed(&*error))?;
    let added = encoding.get_special_tokens_mask();
    let added_front = added.iter().take_while(|&&added| added == 1).count();
    let added_back = added[added_front..].iter().rev().take_while(|&&added| added == 1).count();
    let mut begins: Vec<usize> = encoding.get_offsets().iter().map(|offsets| offsets.0).collect();
    let end = begins.len() - added_back;
    begins[end..].fill(text.len());
    Ok(Encoded { ids: encoding.get_ids().to_vec(), begins, added_front, added_back })
}

/// A place between two tokens.
struct Cut {
    /// Where the text before it ends.
    at: usize,
    /// Where the text after it begins: there, or after a space that the tokenizer itself puts before a text.
    from: usize,
    /// The token before.
    last: u32,
    /// The token after, and where it begins.
    first: u32,
    first_begin: usize,
}

/// Nothing if the text cannot be cut, or would not be encoded as it is at once.
fn in_pieces(
    inner: &tokenizers::Tokenizer,
    text: &str,
    add_special: bool,
    piece: usize,
) -> Result<Option<Encoded>, TokenizerError> {
    match inner.get_model() {
        ModelWrapper::BPE(model) if model.dropout.is_none() => {}
        _ => return Ok(None),
    }
    let mut all = Encoded::default();
    let mut back: Vec<u32> = Vec::new();
    let mut before: Option<Cut> = None;
    loop {
        let from = before.as_ref().map_or(0, |cut| cut.from);
        let after = match find(inner, text, from, piece)? {
            Search::Cut(cut) => Some(cut),
            Search::End => None,
            Search::Failed => return Ok(None),
        };
        let part = &text[from..after.as_ref().map_or(text.len(), |cut| cut.at)];
        let part = at_once(inner, part, add_special && before.is_none())?;
        let own = part.added_front..part.ids.len() - part.added_back;
        let (ids, begins) = (&part.ids[own.clone()], &part.begins[own.clone()]);
        let fits = before.as_ref().is_none_or(|cut| ids.first() == Some(&cut.first))
            && after.as_ref().is_none_or(|cut| ids.last() == Some(&cut.last));
        if !fits {
            return Ok(None);
        }
        if before.is_none() {
            all.added_front = part.added_front;
            all.added_back = part.added_back;
            all.ids.extend(&part.ids[..own.start]);
            all.begins.extend(&part.begins[..own.start]);
            back.extend(&part.ids[own.end..]);
        }
        let own_begin = all.begins.len();
        all.ids.extend(ids);
        all.begins.extend(begins.iter().map(|begin| from + begin));
        if let Some(cut) = &before {
            all.begins[own_begin] = cut.first_begin;
        }
        before = after;
        if before.is_none() {
            break;
        }
    }
    all.begins.resize(all.begins.len() + back.len(), text.len());
    all.ids.extend(back);
    Ok(Some(all))
}

enum Search {
    Cut(Cut),
    /// There is no place up to the end of the text.
    End,
    /// There are places, and the tokenizer encodes across them.
    Failed,
}

/// The first cut that is `piece` bytes or more after `from`.
fn find(
    inner: &tokenizers::Tokenizer,
    text: &str,
    from: usize,
    piece: usize,
) -> Result<Search, TokenizerError> {
    let start = text.ceil_char_boundary(from.saturating_add(piece));
    let mut tried = 0;
    let mut last = ' ';
    for (offset, next) in text[start..].char_indices() {
        if may_end_word(last, next) {
            if let Some(cut) = check(inner, text, start + offset)? {
                return Ok(Search::Cut(cut));
            }
            tried += 1;
            if tried == TRIES {
                return Ok(Search::Failed);
            }
        }
        last = next;
    }
    Ok(Search::End)
}

/// Whether no pre-tokenizer's word has these two characters side by side.
fn may_end_word(last: char, next: char) -> bool {
    let ideograph =
        matches!(last, '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' | '\u{4e00}'..='\u{9fff}');
    match next {
        ' ' => !last.is_whitespace(),
        '\u{3001}' | '\u{3002}' | '\u{ff0c}' => ideograph,
        _ => false,
    }
}

/// Encodes the text around a place, whole and in two, with the space after the place or without it.
fn check(inner: &tokenizers::Tokenizer, text: &str, at: usize) -> Result<Option<Cut>, TokenizerError> {
    let begin = text.floor_char_boundary(at.saturating_sub(AROUND));
    let end = text.ceil_char_boundary(at.saturating_add(AROUND));
    let encode = |text: &str| at_once(inner, text, false);
    let (whole, left) = (encode(&text[begin..end])?, encode(&text[begin..at])?.ids);
    let (Some(right), Some(&last)) = (whole.ids.strip_prefix(&left[..]), left.last()) else {
        return Ok(None);
    };
    let Some(&first) = right.first() else { return Ok(None) };
    let first_begin = begin + whole.begins[left.len()];
    let froms = [Some(at), text[at..].starts_with(' ').then_some(at + 1)];
    for from in froms.into_iter().flatten() {
        if encode(&text[from..end])?.ids == right {
            return Ok(Some(Cut { at, from, last, first, first_begin }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A byte pair encoding of these settings, which has learnt from the text by itself: the most frequent pair first.
    fn tokenizer(settings: &Value, text: &str, spaces: char) -> tokenizers::Tokenizer {
        let mut vocab: Vec<String> = vec!["<unk>".into(), "<s>".into(), "</s>".into()];
        let text: String = text.chars().map(|c| if c == ' ' { spaces } else { c }).collect();
        let mut symbols: Vec<String> = text.chars().map(String::from).collect();
        vocab.extend(symbols.iter().cloned().collect::<std::collections::BTreeSet<_>>());
        let mut merges = Vec::new();
        for _ in 0..200 {
            let mut counts = std::collections::BTreeMap::new();
            for pair in symbols.windows(2) {
                *counts.entry((pair[0].clone(), pair[1].clone())).or_insert(0) += 1;
            }
            let ((a, b), _) = counts.into_iter().max_by_key(|(_, count)| *count).unwrap();
            let joined = format!("{a}{b}");
            if !vocab.contains(&joined) {
                vocab.push(joined.clone());
            }
            let mut merged = Vec::new();
            let mut rest = symbols.into_iter().peekable();
            while let Some(symbol) = rest.next() {
                match symbol == a && rest.peek() == Some(&b) {
                    true => {
                        rest.next();
                        merged.push(joined.clone());
                    }
                    false => merged.push(symbol),
                }
            }
            symbols = merged;
            merges.push(format!("{a} {b}"));
        }
        let vocab: Value = vocab.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
        let mut whole = json!({
            "version": "1.0", "truncation": null, "padding": null, "decoder": null, "normalizer": null,
            "pre_tokenizer": null, "post_processor": null,
            "added_tokens": [
                {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                 "normalized": false, "special": true},
                {"id": 2, "content": "</s>", "single_word": false, "lstrip": true, "rstrip": true,
                 "normalized": false, "special": true},
            ],
            "model": {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>", "fuse_unk": true},
        });
        whole.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        tokenizers::Tokenizer::from_bytes(whole.to_string()).unwrap()
    }

    fn kinds() -> Vec<(&'static str, Value, char)> {
        let split = |pattern: &str| {
            json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            ]}})
        };
        let template = json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                               "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}});
        vec![
            (
                "Llama 2",
                json!({"post_processor": template, "normalizer": {"type": "Sequence", "normalizers": [
                    {"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}}),
                '▁',
            ),
            (
                "Metaspace",
                json!({"post_processor": template, "pre_tokenizer":
                    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}}),
                '▁',
            ),
            (
                "GPT-2",
                json!({"post_processor": template, "pre_tokenizer":
                    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true}}),
                'Ġ',
            ),
            (
                "Llama 3",
                split(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                ),
                'Ġ',
            ),
        ]
    }

    /// Texts with runs of spaces, numbers, line ends, marks and special tokens at random places.
    fn text(seed: u64, words: usize) -> String {
        const PARTS: [&str; 24] = [
            " the",
            " cat",
            " sat on",
            "  ",
            " ",
            "\n",
            "\n\n ",
            "\t",
            "12345678",
            " 90",
            ".",
            " ...",
            "'s",
            " don't",
            " é",
            "這是。",
            "中文，中文、",
            " \u{301}",
            "<s>",
            " </s> ",
            " a</s>",
            " aaaaaaaa",
            " abababab",
            " -- ",
        ];
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        (0..words).map(|_| PARTS[draw() % PARTS.len()]).collect()
    }

    #[test]
    fn a_text_in_pieces_has_the_tokens_of_the_text_at_once() {
        for (name, settings, space) in kinds() {
            let tokenizer = tokenizer(&settings, &text(1, 500), space);
            let mut cut = 0;
            for seed in 0..60 {
                let text = text(seed, 400);
                let whole = at_once(&tokenizer, &text, true).unwrap();
                let Some(pieces) = in_pieces(&tokenizer, &text, true, 20 + seed as usize).unwrap() else {
                    continue;
                };
                let same = pieces.ids.iter().zip(&whole.ids).take_while(|(a, b)| a == b).count();
                assert_eq!(
                    pieces.ids.len(),
                    whole.ids.len(),
                    "{name}, {seed}: other ids from token {same} on"
                );
                assert_eq!(same, whole.ids.len(), "{name}, {seed}: other ids from token {same} on");
                let pairs = pieces.begins.iter().zip(&whole.begins);
                let other: Vec<_> = pairs.filter(|(a, b)| a != b).collect();
                assert!(other.is_empty(), "{name}, {seed}: other beginnings {other:?}");
                assert_eq!(pieces, whole, "{name}, {seed}");
                cut += 1;
            }
            assert!(cut > 50, "{name}: only {cut} of 60 texts were cut");
        }
    }
}
