//! A model folder's tokenizer: text to ids and back, special tokens, and the chat templates that came with
//! it.
//!
//! The folder's `tokenizer.json` decides what is added to a text (its post-processor), as in transformers,
//! where `add_bos_token` and `add_eos_token` of `tokenizer_config.json` have no say once a `tokenizer.json`
//! exists. A folder in the older layout (`vocab.json` and `merges.txt`) is read as the `tokenizer.json` it
//! would be converted to.

mod bytes;
pub mod gguf;
mod legacy;
mod pieces;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use tokenizers::{AddedToken, ModelWrapper, PostProcessorWrapper};

/// Tokens before a text that decide how its first token reads.
const LEAD: usize = 32;

/// A tokenizer folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file that must be there is not, or cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The folder holds no tokenizer that this program can read.
    #[error("{folder}: no tokenizer.json, and no vocab.json with merges.txt{hint}")]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// What to do about it.
        hint: &'static str,
    },
    /// A file does not say what it should.
    #[error("{path}: {message}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        message: String,
    },
    /// The tokenizer failed on a text or on ids.
    #[error("the tokenizer failed: {0}")]
    Failed(String),
}

/// A text's token ids and where each token begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// T token ids.
    pub ids: Vec<u32>,
    /// T offsets in bytes: where each token begins in the text.
    pub begins: Vec<usize>,
    /// How many tokens at the front the tokenizer itself added (such as a BOS), not standing in the text.
    pub added_front: usize,
    /// How many tokens at the end the tokenizer itself added (such as an EOS).
    pub added_back: usize,
}

/// A tokenizer with its special tokens, end tokens and chat templates.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `bos_token`, `eos_token` ... as chat templates name them, in the order of the file.
    special: Vec<(String, String)>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unknown: Option<u32>,
    /// Sorted: `eos` and whatever generation_config.json (or config.json) adds to it.
    ends: Vec<u32>,
    /// Ids of tokens flagged special.
    special_ids: BTreeSet<u32>,
    templates: Vec<(String, String)>,
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder. Only `tokenizer.json` (or `vocab.json` with `merges.txt`) must
    /// exist; what else is there must be readable.
    pub fn load(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer_config.json");
        let config = read_object(&path)?.unwrap_or_default();
        let special_map = read_object(&folder.join("special_tokens_map.json"))?.unwrap_or_default();
        let (file, bytes) = folder_json(folder, &config)?;
        let model = read_object(&folder.join("config.json"))?.unwrap_or_default();
        let generation = read_object(&folder.join("generation_config.json"))?;
        let templates = chat_templates(folder, &config)?;
        let inner = load_inner(&file, &bytes)?;
        let special = special_tokens(&config, &special_map);
        let ends = Ends { model: &model, generation: generation.as_ref() };
        Tokenizer::assemble(inner, (&path, &config), special, &ends, templates)
    }

    /// The tokenizer of what the files of a folder would hold: the text of `tokenizer.json`, the objects of
    /// `tokenizer_config.json` and, with ids of end tokens, `config.json`. Errors call them `path`.
    pub fn from_objects(
        path: &Path,
        tokenizer: &[u8],
        config: &Map<String, Json>,
        model: &Map<String, Json>,
    ) -> Result<Self, TokenizerError> {
        let inner = load_inner(path, tokenizer)?;
        let special = special_tokens(config, &Map::new());
        let templates = configured_templates(config, path)?;
        Tokenizer::assemble(inner, (path, config), special, &Ends { model, generation: None }, templates)
    }

    fn assemble(
        mut inner: tokenizers::Tokenizer,
        (path, config): (&Path, &Map<String, Json>),
        special: Vec<(String, String)>,
        ends: &Ends<'_>,
        templates: Vec<(String, String)>,
    ) -> Result<Self, TokenizerError> {
        add_configured_tokens(&mut inner, config, path)?;
        let missing: Vec<AddedToken> = special
            .iter()
            .filter(|(_, token)| inner.token_to_id(token).is_none())
            .map(|(_, token)| AddedToken::from(token.clone(), true))
            .collect();
        inner.add_special_tokens(missing).map_err(|error| failed(&*error))?;
        find_special_tokens_in_raw_text(&mut inner)?;
        let named = |name: &str| -> Option<u32> {
            let (_, token) = special.iter().find(|(key, _)| key == name)?;
            inner.token_to_id(token)
        };
        let Ends { model, generation } = ends;
        let eos = named("eos_token").or_else(|| token_ids(model.get("eos_token_id")).first().copied());
        let bos = named("bos_token");
        let pad = named("pad_token");
        let unknown = unknown(&inner);
        let mut ends = token_ids(generation.unwrap_or(model).get("eos_token_id"));
        ends.extend(eos);
        ends.sort_unstable();
        ends.dedup();
        let special_ids = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        Ok(Tokenizer { inner, special, bos, eos, pad, unknown, ends, special_ids, templates })
    }

    /// Token ids of a text, with where each begins. `add_special`: whether the tokenizer's own special tokens
    /// (BOS and the like) are added, as they are for raw text and are not for a rendered chat.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Encoded, TokenizerError> {
        pieces::encode(&self.inner, text, add_special)
    }

    /// The text of token ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let shown: Vec<u32> =
            ids.iter().copied().filter(|&id| !skip_special || !self.is_special(id)).collect();
        self.inner.decode(&shown, false).map_err(|error| failed(&*error))
    }

    /// A decoder for tokens that arrive one by one.
    pub fn stream(&self, skip_special: bool) -> TextStream {
        TextStream { skip_special, ids: Vec::new(), prefix: String::new(), prefix_index: 0 }
    }

    /// A decoder for the tokens that follow a prompt, special ones left out: how the first of them reads, such as
    /// whether a space is put before it, depends on what stands before.
    pub fn stream_after(&self, prompt: &[u32]) -> TextStream {
        let mut stream = self.stream(true);
        for &id in &prompt[prompt.len().saturating_sub(LEAD)..] {
            stream.push(self, id);
        }
        stream
    }

    /// The id of a token by its exact text, such as `<|im_end|>`.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, in the vocabulary's own spelling.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The number of tokens, added ones included. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The beginning-of-text token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-text token: what is appended to texts and completions.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The padding token.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The token that stands for text which the vocabulary cannot spell; `None` if it can spell everything,
    /// or where the same token ends texts.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown.filter(|&id| !self.is_end(id))
    }

    /// All tokens at which generation stops, ascending: `eos_token` and those of generation_config.json.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Whether the token is one of [`ends`](Self::ends).
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// Whether the token is flagged as special, as end-of-turn markers are.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// Special tokens under the names that chat templates use (`bos_token`, `eos_token` ...).
    pub fn special_tokens(&self) -> &[(String, String)] {
        &self.special
    }

    /// The chat templates that came with the tokenizer as (name, source); a single one is named `default`.
    pub fn templates(&self) -> &[(String, String)] {
        &self.templates
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).field("ends", &self.ends).finish()
    }
}

/// Decodes tokens that arrive one by one, and gives out text only once it is whole: a character of several
/// bytes may be spread over several tokens.
#[derive(Clone, Debug)]
pub struct TextStream {
    skip_special: bool,
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
}

impl TextStream {
    /// Takes the next token and returns the text that became whole with it, which may be empty.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        let (ids, prefix, index) = (&mut self.ids, &mut self.prefix, &mut self.prefix_index);
        match tokenizers::step_decode_stream(
            &tokenizer.inner,
            vec![id],
            self.skip_special,
            ids,
            prefix,
            index,
        ) {
            Ok(text) => text.unwrap_or_default(),
            // The decoder looked back further than the stream remembers: begin anew at this token.
            Err(_) => {
                *self = tokenizer.stream(self.skip_special);
                self.ids.push(id);
                self.prefix = tokenizer.decode(&[id], self.skip_special).unwrap_or_default();
                self.prefix_index = 1;
                self.prefix.clone()
            }
        }
    }

    /// The text still held back: an unfinished character, shown as U+FFFD.
    pub fn finish(self, tokenizer: &Tokenizer) -> String {
        let whole = tokenizer.decode(&self.ids, self.skip_special).unwrap_or_default();
        whole.strip_prefix(&self.prefix).unwrap_or_default().to_string()
    }
}

fn failed(error: &(dyn std::error::Error + Send + Sync)) -> TokenizerError {
    TokenizerError::Failed(error.to_string())
}

fn broken(path: &Path, message: impl ToString) -> TokenizerError {
    TokenizerError::Broken { path: path.into(), message: message.to_string() }
}

/// What the tokenizer's model writes for what it does not know. `unk_token` of tokenizer_config.json has no
/// say in that: GPT-2's is the end of text, and never stands for anything else.
fn unknown(inner: &tokenizers::Tokenizer) -> Option<u32> {
    match inner.get_model() {
        ModelWrapper::BPE(model) => inner.token_to_id(model.unk_token.as_ref()?),
        ModelWrapper::WordPiece(model) => inner.token_to_id(&model.unk_token),
        ModelWrapper::WordLevel(model) => inner.token_to_id(&model.unk_token),
        // It keeps the place to itself; by convention that is this token's.
        ModelWrapper::Unigram(_) => inner.token_to_id("<unk>"),
    }
}

/// Where ids of end tokens stand.
struct Ends<'a> {
    /// config.json.
    model: &'a Map<String, Json>,
    /// generation_config.json, if there is one; it has the say.
    generation: Option<&'a Map<String, Json>>,
}

/// The text of a folder's `tokenizer.json`, or of the one that its older files would be converted to, with the
/// file that has it.
fn folder_json(folder: &Path, config: &Map<String, Json>) -> Result<(PathBuf, Vec<u8>), TokenizerError> {
    let path = folder.join("tokenizer.json");
    match std::fs::read(&path) {
        Ok(bytes) => Ok((path, bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok((folder.join("vocab.json"), legacy::tokenizer_json(folder, config)?))
        }
        Err(source) => Err(TokenizerError::Io { path, source }),
    }
}

fn load_inner(path: &Path, bytes: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let mut inner = tokenizers::Tokenizer::from_bytes(bytes)
        .map_err(|error| broken(path, format!("not a tokenizer: {error}")))?;
    // Lengths are our business: a tokenizer saved with truncation on would silently cut examples.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|error| failed(&*error))?;
    let processor = inner.get_post_processor().cloned().map(keep_spaces_in_offsets);
    inner.with_post_processor(processor);
    Ok(inner)
}

/// Makes a token's offset say where the token begins, its leading space included. With `trim_offsets` a
/// byte-level tokenizer says where the word begins, and a token that begins in the prompt would look like the
/// answer's.
fn keep_spaces_in_offsets(processor: PostProcessorWrapper) -> PostProcessorWrapper {
    match processor {
        PostProcessorWrapper::ByteLevel(level) => level.trim_offsets(false).into(),
        PostProcessorWrapper::Sequence(mut sequence) => {
            for inner in sequence.as_mut() {
                *inner = keep_spaces_in_offsets(inner.clone());
            }
            sequence.into()
        }
        other => other,
    }
}

/// Has special tokens looked for in the text as it stands. Some older files have them looked for after
/// normalization, where a normalizer that prepends a space hides them: an end token that a template writes
/// would fall into ordinary pieces.
fn find_special_tokens_in_raw_text(inner: &mut tokenizers::Tokenizer) -> Result<(), TokenizerError> {
    let mut tokens: Vec<(u32, AddedToken)> = inner
        .get_added_tokens_decoder()
        .into_iter()
        .filter(|(_, token)| token.special && token.normalized)
        .collect();
    tokens.sort_by_key(|(id, _)| *id);
    let tokens: Vec<AddedToken> = tokens.into_iter().map(|(_, token)| token.normalized(false)).collect();
    inner.add_special_tokens(tokens).map_err(|error| failed(&*error))?;
    Ok(())
}

/// Adds tokens that tokenizer_config.json names and tokenizer.json lacks, under the ids it names.
fn add_configured_tokens(
    inner: &mut tokenizers::Tokenizer,
    config: &Map<String, Json>,
    path: &Path,
) -> Result<(), TokenizerError> {
    let Some(Json::Object(decoder)) = config.get("added_tokens_decoder") else { return Ok(()) };
    let mut tokens: Vec<(u32, AddedToken)> = Vec::new();
    for (id, token) in decoder {
        let id = id
            .parse()
            .map_err(|_| broken(path, format!("added_tokens_decoder: {id:?} is not a token id")))?;
        let token: AddedToken = serde_json::from_value(token.clone())
            .map_err(|error| broken(path, format!("added_tokens_decoder.{id}: {error}")))?;
        tokens.push((id, token));
    }
    tokens.sort_by_key(|(id, _)| *id);
    for (id, token) in tokens {
        match inner.token_to_id(&token.content) {
            Some(found) if found == id => continue,
            Some(found) => {
                let message = format!("token {:?} is {id} here and {found} in tokenizer.json", token.content);
                return Err(broken(path, message));
            }
            None => {}
        }
        let content = token.content.clone();
        inner.add_tokens([token]).map_err(|error| failed(&*error))?;
        let found = inner.token_to_id(&content);
        if found != Some(id) {
            return Err(broken(
                path,
                format!("token {content:?} is {id} here, but {found:?} is free in tokenizer.json"),
            ));
        }
    }
    Ok(())
}

/// `*_token` entries of tokenizer_config.json, then those only special_tokens_map.json has. An entry is a
/// string or an object with `content`.
fn special_tokens(config: &Map<String, Json>, map: &Map<String, Json>) -> Vec<(String, String)> {
    const NAMES: [&str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let content = |value: &Json| match value {
        Json::String(token) => Some(token.clone()),
        Json::Object(token) => token.get("content").and_then(Json::as_str).map(String::from),
        _ => None,
    };
    let find = |name: &str| [config, map].into_iter().find_map(|file| file.get(name).and_then(content));
    NAMES.iter().filter_map(|name| Some((name.to_string(), find(name)?))).collect()
}

/// A token id or a list of them, as `eos_token_id` may be either.
fn token_ids(value: Option<&Json>) -> Vec<u32> {
    let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Json::Array(values)) => values.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// chat_template.jinja and additional_chat_templates/*.jinja if there are any; else `chat_template` of
/// tokenizer_config.json, which is a string or a list of {name, template}. transformers prefers files, too.
fn chat_templates(
    folder: &Path,
    config: &Map<String, Json>,
) -> Result<Vec<(String, String)>, TokenizerError> {
    let mut templates = Vec::new();
    if let Some(source) = read(&folder.join("chat_template.jinja"))? {
        templates.push(("default".to_string(), source));
    }
    if let Ok(entries) = std::fs::read_dir(folder.join("additional_chat_templates")) {
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "jinja"))
        {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            templates.extend(read(path)?.map(|source| (name, source)));
        }
    }
    if !templates.is_empty() {
        return Ok(templates);
    }
    configured_templates(config, &folder.join("tokenizer_config.json"))
}

/// The chat templates that `tokenizer_config.json` itself holds.
fn configured_templates(
    config: &Map<String, Json>,
    path: &Path,
) -> Result<Vec<(String, String)>, TokenizerError> {
    match config.get("chat_template") {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(Json::String(source)) => Ok(vec![("default".into(), source.clone())]),
        Some(Json::Array(list)) => list
            .iter()
            .map(|entry| {
                let field = |name: &str| entry.get(name).and_then(Json::as_str).map(String::from);
                field("name").zip(field("template")).ok_or_else(|| {
                    broken(path, "chat_template: each entry of the list needs a \"name\" and a \"template\"")
                })
            })
            .collect(),
        Some(_) => Err(broken(path, "chat_template: must be a string or a list of {name, template}")),
    }
}

fn read(path: &Path) -> Result<Option<String>, TokenizerError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Io { path: path.into(), source }),
    }
}

fn read_object(path: &Path) -> Result<Option<Map<String, Json>>, TokenizerError> {
    let Some(text) = read(path)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(Json::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(broken(path, "must be a JSON object")),
        Err(error) => Err(broken(path, error)),
    }
}
