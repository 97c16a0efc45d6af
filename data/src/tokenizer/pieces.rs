//! Long texts are encoded in pieces, so that memory grows with the tokens and not with the tokenizer's notes:
//! encoding a text at once takes 100 to 500 bytes for each of its bytes.
//!
//! Each piece begins some way before the end of the piece before it. Where both have the same two tokens side
//! by side, well within what they share, the one hands over to the other. That gives the tokens of the whole
//! text if that place
//!
//! - begins a word for both. Pre-tokenizers match words from left to right and remember nothing; no known one
//!   looks further ahead than what the pieces share. So the earlier piece has the words of the whole up to
//!   there, the later one has them from there on, and words are encoded one by one.
//! - or lies within one word (the whole text, where the tokenizer has no words) that goes over all that the
//!   pieces share, and the model is a byte pair encoding. Such a word is a run of one kind of character,
//!   which a pre-tokenizer that begins within it takes up to the same end. And a byte pair encoding gives a
//!   sequence of tokens in which each two neighbours, encoded alone, are these two tokens, and every sequence
//!   with that property is the encoding of its text (merges within the one neighbour do not depend on what
//!   lies beyond it, nor does which of the two neighbours' merges comes first).
//!
//! Where there is no such place, the piece is made longer. A text that has none at all is encoded at once in
//! the end: one word for a model that is no byte pair encoding, or one of a byte pair encoding with dropout,
//! which is never the same twice.

use std::ops::Range;

use tokenizers::ModelWrapper;

use super::{Encoded, TokenizerError, failed};

/// Bytes of a piece, what it shares with the next aside.
const PIECE: usize = 1 << 16;

/// Bytes that two pieces share: more than a pre-tokenizer looks ahead and than several of the longest tokens
/// have.
const SHARED: usize = 1024;

/// Bytes at either end of what is shared, in which tokens may be others than in the whole.
const MARGIN: usize = 128;

/// Places at which the next piece may begin that are tried before the piece is made longer: as many as the
/// longest tokens have letters. A tokenizer may put a space before a text, and then only some places in a
/// text that repeats itself lead to the same tokens.
const TRIES: usize = 256;

/// Encodes a text, in pieces if it is long.
pub(super) fn encode(
    inner: &tokenizers::Tokenizer,
    text: &str,
    add_special: bool,
) -> Result<Encoded, TokenizerError> {
    let is_random = matches!(inner.get_model(), ModelWrapper::BPE(model) if model.dropout.is_some());
    match text.len() >= 2 * PIECE && !is_random {
        true => Ok(in_pieces(inner, text, add_special, PIECE)?.0),
        false => Ok(Piece::encode(inner, text, 0..text.len(), add_special)?.encoded),
    }
}

/// A stretch of the text with its tokens.
struct Piece {
    range: Range<usize>,
    /// Beginnings count from the beginning of the whole text.
    encoded: Encoded,
    /// The number of each token's word within the piece.
    words: Vec<Option<u32>>,
}

impl Piece {
    fn encode(
        inner: &tokenizers::Tokenizer,
        text: &str,
        range: Range<usize>,
        add_special: bool,
    ) -> Result<Self, TokenizerError> {
        let encoding = inner.encode(&text[range.clone()], add_special).map_err(|error| failed(&*error))?;
        let added = encoding.get_special_tokens_mask();
        let added_front = added.iter().take_while(|&&added| added == 1).count();
        let added_back = added[added_front..].iter().rev().take_while(|&&added| added == 1).count();
        let mut begins: Vec<usize> =
            encoding.get_offsets().iter().map(|offsets| range.start + offsets.0).collect();
        let end = begins.len() - added_back;
        begins[end..].fill(text.len());
        let words = encoding.get_word_ids().to_vec();
        let encoded = Encoded { ids: encoding.get_ids().to_vec(), begins, added_front, added_back };
        Ok(Piece { range, encoded, words })
    }

    /// The tokens that stand in the text.
    fn own(&self) -> Range<usize> {
        self.encoded.added_front..self.encoded.ids.len() - self.encoded.added_back
    }

    /// The first token that begins there or later.
    fn token_at(&self, byte: usize) -> usize {
        let own = self.own();
        own.start + self.encoded.begins[own].partition_point(|&begin| begin < byte)
    }

    /// Tokens at whose beginning the piece may be cut, within a range of the text: those before which another
    /// one ends, which the parts of one character do not.
    fn borders(&self, within: Range<usize>) -> impl Iterator<Item = usize> {
        let begins = &self.encoded.begins;
        let tokens = self.token_at(within.start).max(self.own().start + 1)..self.token_at(within.end);
        tokens.filter(|&i| begins[i - 1] < begins[i])
    }

    fn begins_word(&self, token: usize) -> bool {
        self.words[token] != self.words[token - 1]
    }
}

/// Where a piece hands over to the next: the first token of the next that is used, and as many of the earlier
/// one's.
fn handover(piece: &Piece, next: &Piece, is_bpe: bool) -> Option<(usize, usize)> {
    let shared = next.range.start + MARGIN..piece.range.end.checked_sub(MARGIN)?;
    let pair = |piece: &Piece, token: usize| (piece.encoded.ids[token - 1], piece.encoded.ids[token]);
    let mut in_word = None;
    let mut is_one_word = is_bpe;
    for token in piece.borders(shared.clone()) {
        let begin = piece.encoded.begins[token];
        let other = next.token_at(begin);
        let same = other < next.own().end
            && other > next.own().start
            && next.encoded.begins[other] == begin
            && next.encoded.begins[other - 1] < begin
            && pair(piece, token) == pair(next, other);
        match (piece.begins_word(token), same) {
            (true, true) if next.begins_word(other) => return Some((token, other)),
            (true, _) => is_one_word = false,
            (false, true) => in_word = in_word.or(Some((token, other))),
            (false, false) => {}
        }
    }
    is_one_word &= next.borders(shared).all(|token| !next.begins_word(token));
    in_word.filter(|_| is_one_word)
}

/// The encoding, and how long the longest piece was, in bytes.
fn in_pieces(
    inner: &tokenizers::Tokenizer,
    text: &str,
    add_special: bool,
    piece: usize,
) -> Result<(Encoded, usize), TokenizerError> {
    let is_bpe = matches!(inner.get_model(), ModelWrapper::BPE(_));
    let encode = |range: Range<usize>, add_special| Piece::encode(inner, text, range, add_special);
    let end_of =
        |begin: usize, bytes: usize| text.ceil_char_boundary((begin + bytes + SHARED).min(text.len()));
    let mut current = encode(0..end_of(0, piece), add_special)?;
    let mut longest = current.range.len();
    let (added_front, added_back) = (current.encoded.added_front, current.encoded.added_back);
    let back = current.encoded.ids[current.own().end..].to_vec();
    let mut all = Encoded { added_front, added_back, ..Encoded::default() };
    // The first token of the current piece that is not in `all`.
    let mut from = 0;
    while current.range.end < text.len() {
        let taken = match next_piece(&current, text, piece, is_bpe, encode)? {
            Some((next, upto, next_from)) => {
                all.ids.extend(&current.encoded.ids[from..upto]);
                all.begins.extend(&current.encoded.begins[from..upto]);
                from = next_from;
                next
            }
            // From the same beginning on, the tokens stay the same but near the end.
            None => {
                let longer = 2 * current.range.len().max(piece);
                encode(
                    current.range.start..end_of(current.range.start, longer),
                    add_special && all.ids.is_empty(),
                )?
            }
        };
        current = taken;
        longest = longest.max(current.range.len());
    }
    let upto = current.own().end;
    all.ids.extend(&current.encoded.ids[from..upto]);
    all.begins.extend(&current.encoded.begins[from..upto]);
    all.begins.resize(all.begins.len() + back.len(), text.len());
    all.ids.extend(back);
    Ok((all, longest))
}

/// The piece after this one, how many of this one's tokens are used, and from which token on the next one's
/// are.
fn next_piece(
    current: &Piece,
    text: &str,
    piece: usize,
    is_bpe: bool,
    encode: impl Fn(Range<usize>, bool) -> Result<Piece, TokenizerError>,
) -> Result<Option<(Piece, usize, usize)>, TokenizerError> {
    let shared = current.range.end.saturating_sub(SHARED).max(current.range.start)..current.range.end;
    let Some(first) = current.borders(shared.clone()).next() else { return Ok(None) };
    let first = current.encoded.begins[first];
    for begin in (first..shared.end).filter(|&begin| text.is_char_boundary(begin)).take(TRIES) {
        // What is shared is encoded alone, before a whole piece is.
        if handover(current, &encode(begin..current.range.end, false)?, is_bpe).is_none() {
            continue;
        }
        let end = text.ceil_char_boundary((begin + piece + SHARED).min(text.len()));
        let next = encode(begin..end, false)?;
        if let Some((upto, from)) = handover(current, &next, is_bpe) {
            return Ok(Some((next, upto, from)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A byte pair encoding of these settings, which has learnt from the text by itself: the most frequent
    /// pair first.
    fn tokenizer(settings: &Value, text: &str, spaces: char) -> tokenizers::Tokenizer {
        let mut vocab: Vec<String> = vec!["<unk>".into(), "<s>".into(), "</s>".into()];
        let text: String = match spaces {
            'Ġ' => text.bytes().map(as_character).collect(),
            _ => text.chars().map(|c| if c == ' ' { spaces } else { c }).collect(),
        };
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

    /// A byte as byte-level tokenizers write it.
    fn as_character(byte: u8) -> char {
        let is_printed = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        match is_printed(&byte) {
            true => char::from(byte),
            false => char::from_u32(256 + (0..byte).filter(|byte| !is_printed(byte)).count() as u32).unwrap(),
        }
    }

    /// A tokenizer that has learnt from texts as those below.
    fn learnt(settings: &Value, spaces: char) -> tokenizers::Tokenizer {
        let without_spaces = texts_without_spaces(200).into_iter().map(|(_, text)| text);
        tokenizer(settings, &(text(1, 500) + &without_spaces.collect::<String>()), spaces)
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
                "o200k",
                split(
                    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                ),
                'Ġ',
            ),
            (
                "Qwen 2",
                split(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                ),
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

    /// Texts without a space, of one kind of character each and of several.
    fn texts_without_spaces(bytes: usize) -> Vec<(&'static str, String)> {
        let drawn = |alphabet: &str| {
            let alphabet: Vec<char> = alphabet.chars().collect();
            let mut state = 1u64;
            let draw = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                alphabet[(state >> 33) as usize % alphabet.len()]
            };
            (0..bytes).map(draw).collect::<String>()
        };
        vec![
            ("a", "a".repeat(bytes)),
            ("ab", "ab".repeat(bytes / 2)),
            ("letters", drawn("abcdehnost")),
            ("letters and others", drawn("abtheABTHE0123+/=_.")),
            ("digits", drawn("0123456789")),
            ("ideographs", drawn("這是中文")),
            ("marks", "-".repeat(bytes)),
            ("line ends", "\n".repeat(bytes)),
            ("lines", "thecatsaton.\n".repeat(bytes / 13)),
            ("JSON", r#"{"cat":[1,2,90],"the":"don't"},"#.repeat(bytes / 31)),
            ("spaces", " ".repeat(bytes)),
        ]
    }

    #[test]
    fn a_text_in_pieces_has_the_tokens_of_the_text_at_once() {
        for (name, settings, space) in kinds() {
            let tokenizer = learnt(&settings, space);
            let mut cut = 0;
            for seed in 0..12 {
                let text = text(seed, 1000);
                let (pieces, longest) = in_pieces(&tokenizer, &text, true, 20 + 60 * seed as usize).unwrap();
                same(&tokenizer, &text, pieces, &format!("{name}, {seed}"));
                cut += usize::from(longest < text.len() / 2);
            }
            assert!(cut > 8, "{name}: only {cut} of 12 texts were cut");
        }
    }

    #[test]
    fn a_text_without_spaces_is_cut_and_has_the_tokens_of_the_text_at_once() {
        for (name, settings, space) in kinds() {
            let tokenizer = learnt(&settings, space);
            for (kind, text) in texts_without_spaces(6000) {
                for piece in [50, 701] {
                    let (pieces, longest) = in_pieces(&tokenizer, &text, true, piece).unwrap();
                    same(&tokenizer, &text, pieces, &format!("{name}, {kind}"));
                    assert!(longest <= 4 * (piece + SHARED), "{name}, {kind}: a piece of {longest} bytes");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_cut_is_encoded_at_once() {
        // The best way through a word depends on all of it here.
        let unigram = json!({"model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab":
            [["<unk>", -9.0], ["a", -2.0], ["aa", -2.5], ["aaa", -2.4]]}});
        let tokenizer = tokenizer(&unigram, &text(1, 500), ' ');
        let text = "a".repeat(5000);
        let (pieces, longest) = in_pieces(&tokenizer, &text, false, 100).unwrap();
        assert_eq!(longest, text.len());
        same(&tokenizer, &text, pieces, "Unigram");
    }

    fn same(tokenizer: &tokenizers::Tokenizer, text: &str, pieces: Encoded, what: &str) {
        let special = !pieces.ids.is_empty() && (pieces.added_front > 0 || pieces.added_back > 0);
        let whole = Piece::encode(tokenizer, text, 0..text.len(), special).unwrap().encoded;
        let same = pieces.ids.iter().zip(&whole.ids).take_while(|(a, b)| a == b).count();
        assert_eq!(pieces.ids.len(), whole.ids.len(), "{what}: other ids from token {same} on");
        assert_eq!(same, whole.ids.len(), "{what}: other ids from token {same} on");
        let pairs = pieces.begins.iter().zip(&whole.begins);
        let other: Vec<_> = pairs.filter(|(a, b)| a != b).take(5).collect();
        assert!(other.is_empty(), "{what}: other beginnings {other:?}");
        assert_eq!(pieces, whole, "{what}");
    }
}
