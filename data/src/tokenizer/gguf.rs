//! The tokenizer of a GGUF file, as the lists and numbers under `tokenizer.*`, to and from the files of a
//! Hugging Face folder.
//!
//! llama.cpp has two tokenizers that models here use (`src/llama-vocab.cpp`): `gpt2`, byte-level BPE with its
//! merges, whose way of cutting text into words has a name; and `llama`, SentencePiece's BPE, which joins the
//! pair whose token has the highest score. The second is a BPE by merges, too: every way to join two tokens to
//! a third, in the order of the third's score.

mod words;

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::{Tokenizer, TokenizerError, broken, folder_json, read_object};
use words::{ByteLevel, Step};

/// What a token is (`llama_token_type` of `include/llama.h`).
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

/// How SentencePiece writes a space.
const SPACE: &str = "▁";
/// The score of tokens that nothing is joined to.
const NEVER: f32 = -1e9;
/// The longest text of a token that can be the result of a merge, in characters.
const MAX_PIECE: usize = 256;

/// What stands under `tokenizer.*` in a GGUF file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// `tokenizer.ggml.model`: `llama` or `gpt2`.
    pub model: String,
    /// `tokenizer.ggml.pre`: how `gpt2` cuts text into words.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by their ids.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`, one for each token, or none.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`, one for each token, or none.
    pub types: Vec<i32>,
    /// `tokenizer.ggml.merges`, two tokens with a space between them.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id` and `eom_token_id`: other tokens at which an answer ends.
    pub other_ends: Vec<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unknown: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub padding: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`, and those that have a name.
    pub templates: Vec<(String, String)>,
}

impl GgufTokenizer {
    /// The tokenizer itself; errors call it `path`.
    ///
    /// # Errors
    /// If the lists contradict each other, or text is cut into words in a way that is not known here.
    pub fn tokenizer(&self, path: &Path) -> Result<Tokenizer, TokenizerError> {
        let tokenizer = self.tokenizer_json(path)?;
        let ends: Vec<u32> = self.eos.iter().chain(&self.other_ends).copied().collect();
        let mut model = Map::new();
        model.insert("eos_token_id".to_owned(), json!(ends));
        let bytes = tokenizer.to_string().into_bytes();
        Tokenizer::from_objects(path, &bytes, &self.tokenizer_config(), &model)
    }

    /// The `tokenizer.json` of an equal folder.
    ///
    /// # Errors
    /// As [`GgufTokenizer::tokenizer`].
    pub fn tokenizer_json(&self, path: &Path) -> Result<Json, TokenizerError> {
        let vocabulary = self.checked(path)?;
        let (normalizer, words, decoder, model) = match &*self.model {
            "gpt2" => {
                let name = self.pre.as_deref().unwrap_or("default");
                let known = ByteLevel::named(name).ok_or_else(|| {
                    let problem = format!(
                        "tokenizer.ggml.pre is {name:?}, a way of cutting text into words that is not known here; \
                         known are {}",
                        ByteLevel::names()
                    );
                    broken(path, problem)
                })?;
                let normalizer = if known.composed { json!({"type": "NFC"}) } else { Json::Null };
                let model = json!({
                    "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                    "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                    "ignore_merges": known.ignore_merges,
                    "vocab": vocabulary, "merges": self.split_merges(path, &vocabulary)?,
                });
                (normalizer, known.pre_tokenizer(), words::byte_level(), model)
            }
            "llama" => {
                let unknown = self.unknown.or(Some(0)).and_then(|id| self.tokens.get(id as usize));
                let model = json!({
                    "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                    "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                    "ignore_merges": false,
                    "vocab": vocabulary, "merges": self.merges_by_score(&vocabulary),
                });
                let prefixed = self.add_space_prefix.unwrap_or(true);
                (spaces(prefixed), Json::Null, spaces_back(prefixed), model)
            }
            other => {
                let problem = format!(
                    "tokenizer.ggml.model is {other:?}, which is not supported; supported are `llama` and `gpt2`"
                );
                return Err(broken(path, problem));
            }
        };
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": normalizer,
            "pre_tokenizer": words,
            "post_processor": self.post_processor(path)?,
            "decoder": decoder,
            "model": model,
        }))
    }

    /// The `tokenizer_config.json` of an equal folder.
    pub fn tokenizer_config(&self) -> Map<String, Json> {
        let mut config = Map::new();
        config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
        for (name, id) in [
            ("bos_token", self.bos()),
            ("eos_token", self.eos()),
            ("unk_token", self.unknown),
            ("pad_token", self.padding),
        ] {
            if let Some(token) = id.and_then(|id| self.tokens.get(id as usize)) {
                config.insert(name.to_owned(), token.clone().into());
            }
        }
        config.insert("add_bos_token".to_owned(), self.adds_bos().into());
        config.insert("add_eos_token".to_owned(), self.add_eos.unwrap_or(false).into());
        match &self.templates[..] {
            [] => {}
            [(name, only)] if name == "default" => {
                config.insert("chat_template".to_owned(), only.clone().into());
            }
            several => {
                let entry = |(name, template): &(String, String)| json!({"name": name, "template": template});
                config.insert("chat_template".to_owned(), several.iter().map(entry).collect());
            }
        }
        config
    }

    /// The ids that llama.cpp takes where the file gives none.
    fn bos(&self) -> Option<u32> {
        self.bos.or((self.model == "llama").then_some(1))
    }

    fn eos(&self) -> Option<u32> {
        self.eos.or((self.model == "llama").then_some(2))
    }

    fn adds_bos(&self) -> bool {
        let usual = match &*self.model {
            "llama" => true,
            _ => self.pre.as_deref().and_then(ByteLevel::named).is_some_and(|known| known.add_bos),
        };
        self.add_bos.unwrap_or(usual) && self.bos().is_some()
    }

    /// The tokens with their ids, once everything that names tokens has been checked.
    fn checked(&self, path: &Path) -> Result<Map<String, Json>, TokenizerError> {
        let count = self.tokens.len();
        if count == 0 {
            return Err(broken(path, "tokenizer.ggml.tokens is missing, or empty"));
        }
        for (key, length) in [("scores", self.scores.len()), ("token_type", self.types.len())] {
            if length != 0 && length != count {
                return Err(broken(
                    path,
                    format!("tokenizer.ggml.{key} has {length} entries for {count} tokens"),
                ));
            }
        }
        if self.model == "llama" && self.scores.is_empty() {
            return Err(broken(path, "tokenizer.ggml.scores is missing, by which tokens are joined"));
        }
        if let Some(id) = self.scores.iter().position(|score| score.is_nan()) {
            return Err(broken(path, format!("tokenizer.ggml.scores[{id}] is no number")));
        }
        for (key, id) in [
            ("bos", self.bos),
            ("eos", self.eos),
            ("unknown", self.unknown),
            ("padding", self.padding),
            ("eot", self.other_ends.first().copied()),
            ("eom", self.other_ends.get(1).copied()),
        ] {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                let problem = format!("tokenizer.ggml.{key}_token_id is {id}, and there are {count} tokens");
                return Err(broken(path, problem));
            }
        }
        let mut vocabulary = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            // As llama.cpp calls them; nothing is ever cut into one.
            let text = if token.is_empty() { format!("[EMPTY_{id}]") } else { token.clone() };
            if let Some(other) = vocabulary.insert(text, id.into()) {
                let problem = format!("tokenizer.ggml.tokens has {token:?} as {other} and as {id}");
                return Err(broken(path, problem));
            }
        }
        Ok(vocabulary)
    }

    fn kind(&self, id: usize) -> i32 {
        self.types.get(id).copied().unwrap_or(kind::NORMAL)
    }

    fn split_merges(&self, path: &Path, known: &Map<String, Json>) -> Result<Vec<Json>, TokenizerError> {
        let split = |(n, merge): (usize, &String)| {
            let wrong = |problem: &str| broken(path, format!("tokenizer.ggml.merges[{n}] {problem}"));
            let (left, right) =
                merge.split_once(' ').ok_or_else(|| wrong("is not two tokens with a space between them"))?;
            for token in [left.to_owned(), right.to_owned(), format!("{left}{right}")] {
                if !known.contains_key(&token) {
                    return Err(wrong(&format!("joins or makes {token:?}, which is no token")));
                }
            }
            Ok(json!([left, right]))
        };
        self.merges.iter().enumerate().map(split).collect()
    }

    /// Every way to make a token of two others, that of the highest score first (transformers'
    /// `integrations/ggml.py`).
    fn merges_by_score(&self, known: &Map<String, Json>) -> Vec<Json> {
        let id = |token: &str| known.get(token).and_then(Json::as_u64);
        let mut merges: Vec<(f32, [u64; 3], Json)> = Vec::new();
        for (result, token) in self.tokens.iter().enumerate() {
            let joined = matches!(self.kind(result), kind::NORMAL | kind::USER_DEFINED);
            if !joined || token.chars().nth(MAX_PIECE).is_some() {
                continue;
            }
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(a), Some(b)) = (id(left), id(right)) {
                    merges.push((self.scores[result], [result as u64, a, b], json!([left, right])));
                }
            }
        }
        merges.sort_by(|(a, ids_a, _), (b, ids_b, _)| b.total_cmp(a).then(ids_a.cmp(ids_b)));
        merges.into_iter().map(|(.., merge)| merge).collect()
    }

    /// Tokens that are found in a text before it is cut into words.
    fn added_tokens(&self) -> Vec<Json> {
        let token = |(id, content): (usize, &String)| {
            let special = match self.kind(id) {
                kind::CONTROL | kind::UNKNOWN => true,
                kind::USER_DEFINED => false,
                _ => return None,
            };
            Some(json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": special}))
        };
        self.tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()).filter_map(token).collect()
    }

    fn post_processor(&self, path: &Path) -> Result<Json, TokenizerError> {
        let (front, back) = (self.adds_bos(), self.add_eos.unwrap_or(false));
        let token = |key: &str, id: Option<u32>| {
            let token = id.and_then(|id| Some((id, self.tokens.get(id as usize)?)));
            token.ok_or_else(|| broken(path, format!("adds a token to texts, and {key} is missing")))
        };
        let front = front.then(|| token("tokenizer.ggml.bos_token_id", self.bos())).transpose()?;
        let back = back.then(|| token("tokenizer.ggml.eos_token_id", self.eos())).transpose()?;
        if front.is_none() && back.is_none() {
            return Ok(Json::Null);
        }
        let special = |token: Option<(u32, &String)>, of: u8| {
            token.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": of}}))
        };
        let sequence = |name: &str, of: u8| {
            let text = json!({"Sequence": {"id": name, "type_id": of}});
            special(front, of).into_iter().chain([text]).chain(special(back, of)).collect::<Vec<_>>()
        };
        let named = |(id, token): (u32, &String)| {
            (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}))
        };
        let pair = [sequence("A", 0), sequence("B", 1)].concat();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": sequence("A", 0),
            "pair": pair,
            "special_tokens": front.into_iter().chain(back).map(named).collect::<Map<_, _>>(),
        }))
    }
}

/// Spaces as SentencePiece writes them, with one before a text if so asked.
fn spaces(prefixed: bool) -> Json {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    match prefixed {
        false => replace,
        true => {
            let prepend = json!({"type": "Prepend", "prepend": SPACE});
            json!({"type": "Sequence", "normalizers": [prepend, replace]})
        }
    }
}

fn spaces_back(prefixed: bool) -> Json {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefixed {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}

/// A text with most of what tells two ways of cutting text apart: after the one by which llama.cpp's converter
/// recognizes a way.
const TELLING: &str = "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u{200d}🌫️ (multiple emojis) ✅ 🦙🦙 3 33 333 \
    3333 33333 333333 3333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на \
    Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make \
    it, 'D you like some tea? We'Ve a'lL CamelCase snake_case x=1;\r\n\treturn  0 Once upon a time, there was";

impl GgufTokenizer {
    /// The tokenizer of a folder, for a model of so many tokens: those that it has not are filled in as unused.
    ///
    /// # Errors
    /// If the folder has no tokenizer, or none that llama.cpp would cut texts as: what is read from the lists
    /// again must cut a telling text into the same ids.
    pub fn of_folder(folder: &Path, vocabulary: usize) -> Result<Self, TokenizerError> {
        let config = read_object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let (path, bytes) = folder_json(folder, &config)?;
        let json: Json = serde_json::from_slice(&bytes).map_err(|error| broken(&path, error))?;
        let original = Tokenizer::load(folder)?;
        let highest = original.inner.get_vocab(true).into_values().max().unwrap_or(0);
        if highest as usize >= vocabulary {
            let problem = format!("has the token {highest}, and the model has rows for {vocabulary}");
            return Err(broken(&path, problem));
        }
        let mut lists = GgufTokenizer {
            bos: original.bos(),
            eos: original.eos(),
            other_ends: original
                .ends()
                .iter()
                .copied()
                .filter(|&end| Some(end) != original.eos())
                .take(1)
                .collect(),
            unknown: original.unknown.or_else(|| named_unknown(&original)),
            padding: original.pad(),
            templates: original.templates().to_vec(),
            ..GgufTokenizer::default()
        };
        lists.fill_tokens(&original, vocabulary);
        let unsuitable = |what: &str| broken(&path, format!("{what}, for which llama.cpp has no name"));
        if json["model"]["type"] != "BPE" {
            return Err(unsuitable("is no tokenizer of byte pairs"));
        }
        let merges =
            merges(&json["model"]["merges"]).ok_or_else(|| broken(&path, "has no list of merges"))?;
        let steps = Step::all(&json["pre_tokenizer"]);
        if let Some(steps) = steps.filter(|steps| steps.last() == Some(&Step::Bytes)) {
            let ignores = json["model"]["ignore_merges"] == true;
            let name = ByteLevel::name_of(&steps, ignores)
                .ok_or_else(|| unsuitable("cuts texts into words in a way of its own"))?;
            lists.model = "gpt2".to_owned();
            lists.pre = Some(name.to_owned());
            lists.merges = merges.iter().map(|[left, right]| format!("{left} {right}")).collect();
        } else {
            lists.model = "llama".to_owned();
            lists.pre = Some("default".to_owned());
            lists.score(&merges);
            // llama.cpp looks for these in texts as they are typed.
            for (token, kind) in lists.tokens.iter_mut().zip(&lists.types) {
                if *kind == kind::USER_DEFINED {
                    *token = token.replace(SPACE, " ");
                }
            }
            let text = json["normalizer"].to_string() + &json["pre_tokenizer"].to_string();
            let never = text.contains("\"never\"");
            lists.add_space_prefix =
                Some(!never && (text.contains("\"Prepend\"") || text.contains("\"Metaspace\"")));
        }
        let with_ends = original.encode("a", true)?;
        lists.add_bos = Some(with_ends.added_front > 0);
        lists.add_eos = Some(with_ends.added_back > 0);
        let again = lists.tokenizer(&path)?;
        let same =
            |special| Ok(original.encode(TELLING, special)?.ids == again.encode(TELLING, special)?.ids);
        if !same(false)? || !same(true)? {
            return Err(unsuitable("cuts texts in a way of its own"));
        }
        Ok(lists)
    }

    fn fill_tokens(&mut self, original: &Tokenizer, vocabulary: usize) {
        let added = original.inner.get_added_tokens_decoder();
        for id in 0..vocabulary as u32 {
            // The tokenizer itself gives some added tokens as they are behind its normalizer.
            let added = added.get(&id);
            let token = added.map(|added| added.content.clone()).or_else(|| original.inner.id_to_token(id));
            let Some(token) = token else {
                self.tokens.push(format!("[PAD{id}]"));
                self.types.push(kind::UNUSED);
                continue;
            };
            self.types.push(match added {
                _ if Some(id) == self.unknown && original.unknown == Some(id) => kind::UNKNOWN,
                Some(added) if added.special || looks_special(&token) => kind::CONTROL,
                Some(_) => kind::USER_DEFINED,
                None if is_byte(&token) => kind::BYTE,
                None => kind::NORMAL,
            });
            self.tokens.push(token);
        }
    }

    /// Gives each token the score that its first merge stands for: the earlier, the higher.
    fn score(&mut self, merges: &[[String; 2]]) {
        let mut first: HashMap<String, f32> = HashMap::new();
        for (rank, [left, right]) in merges.iter().enumerate() {
            first.entry(format!("{left}{right}")).or_insert(-(rank as f32));
        }
        self.scores = self.tokens.iter().map(|token| first.get(token).copied().unwrap_or(NEVER)).collect();
    }
}

/// `unk_token` of the configuration, where the tokenizer's own model never writes one.
fn named_unknown(original: &Tokenizer) -> Option<u32> {
    let (_, token) = original.special_tokens().iter().find(|(name, _)| name == "unk_token")?;
    original.token_to_id(token)
}

/// Pairs of tokens, in either way of writing them.
fn merges(list: &Json) -> Option<Vec<[String; 2]>> {
    let pair = |merge: &Json| match merge {
        Json::String(text) => text.split_once(' ').map(|(left, right)| [left.to_owned(), right.to_owned()]),
        Json::Array(pair) => match &pair[..] {
            [Json::String(left), Json::String(right)] => Some([left.clone(), right.clone()]),
            _ => None,
        },
        _ => None,
    };
    list.as_array()?.iter().map(pair).collect()
}

/// Whether an added token that is not flagged as special is one by its looks (llama.cpp's
/// `does_token_look_special`).
fn looks_special(token: &str) -> bool {
    let within = |before: &str, after: &str| token.starts_with(before) && token.ends_with(after);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || within("<|", "|>")
        || within("<｜", "｜>")
        || within("<unused", ">")
}

/// Whether a token stands for a byte that no other token has: `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}
