//! Between the keys of a GGUF file and the tokenizer that they describe.

use anyhow::Context;
use data::{ChatTemplate, GgufTokenizer, Tokenizer};
use model::gguf::{Entries, Gguf, GgufValue, Said};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Base;
use crate::error::user;

/// What stands under `tokenizer.*` in a file.
///
/// # Errors
/// If a value is not of the kind that its key has.
pub(crate) fn tokenizer_lists(file: &Gguf) -> anyhow::Result<GgufTokenizer> {
    let keys = Keys(file);
    let id = |kind: &str| keys.id(&format!("{kind}_token_id"));
    let mut templates = Vec::new();
    for (key, value) in file.metadata() {
        let Some(name) = key.strip_prefix("tokenizer.chat_template") else { continue };
        match value {
            GgufValue::Text(text) if name.is_empty() => {
                templates.insert(0, ("default".to_owned(), text.clone()))
            }
            GgufValue::Text(text) => templates.push((name.trim_start_matches('.').to_owned(), text.clone())),
            // The names of the others.
            GgufValue::Texts(_) if name == "s" => {}
            _ => return Err(keys.wrong(key, "is no text")),
        }
    }
    let model = keys.text("model")?.ok_or_else(|| keys.wrong("tokenizer.ggml.model", "is missing"))?;
    let (key, merges) = keys.get("merges");
    if model == "gpt2" && merges.is_none() {
        return Err(keys.wrong(&key, "is missing, by which tokens are joined"));
    }
    Ok(GgufTokenizer {
        model,
        pre: keys.text("pre")?,
        tokens: keys.texts("tokens")?,
        scores: keys.numbers("scores")?,
        types: keys.integers("token_type")?,
        merges: keys.texts("merges")?,
        bos: id("bos")?,
        eos: id("eos")?,
        other_ends: [id("eot")?, id("eom")?].into_iter().flatten().collect(),
        unknown: id("unknown")?,
        padding: id("padding")?,
        add_bos: keys.flag("add_bos_token")?,
        add_eos: keys.flag("add_eos_token")?,
        add_space_prefix: keys.flag("add_space_prefix")?,
        templates,
    })
}

/// The tokenizer of a file.
///
/// # Errors
/// As [`tokenizer_lists`]; also if the lists contradict each other.
pub(crate) fn tokenizer(file: &Gguf) -> anyhow::Result<Tokenizer> {
    Ok(tokenizer_lists(file)?.tokenizer(file.path())?)
}

/// The files that a folder with the same tokenizer would hold, written into a folder of their own.
///
/// # Errors
/// As [`tokenizer`]; also if the files cannot be written.
pub(crate) fn unpack_tokenizer(file: &Gguf) -> anyhow::Result<TempDir> {
    let (lists, folder) = (tokenizer_lists(file)?, tempfile::tempdir()?);
    let ends: Vec<u32> = lists.eos.iter().chain(&lists.other_ends).copied().collect();
    for (name, object) in [
        ("tokenizer.json", lists.tokenizer_json(file.path())?),
        ("tokenizer_config.json", Value::Object(lists.tokenizer_config())),
        ("generation_config.json", json!({"eos_token_id": ends})),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, object.to_string()).with_context(|| path.display().to_string())?;
    }
    Ok(folder)
}

/// What a file says of the tokenizer of a base. An answer ends where the chat template ends a turn, too.
///
/// # Errors
/// If llama.cpp would cut texts into other tokens.
pub(crate) fn tokenizer_entries(base: &Base) -> anyhow::Result<Entries> {
    let mut lists = GgufTokenizer::of_folder(base.tokenizer_folder()?, base.config.vocab_size)?;
    let tokenizer = base.tokenizer()?;
    let template = ChatTemplate::resolve(None, &tokenizer)?;
    let end = template.and_then(|template| template.end_of_turn(&tokenizer));
    if let Some(end) = end.filter(|&end| lists.eos != Some(end)) {
        lists.other_ends = vec![end];
    }
    Ok(entries(lists))
}

fn entries(lists: GgufTokenizer) -> Entries {
    let mut entries = Entries::new();
    let mut say = |key: &str, value: Said| entries.push((format!("tokenizer.{key}"), value));
    say("ggml.model", Said::Text(lists.model.clone()));
    lists.pre.into_iter().for_each(|pre| say("ggml.pre", Said::Text(pre)));
    say("ggml.tokens", Said::Texts(lists.tokens));
    if !lists.scores.is_empty() {
        say("ggml.scores", Said::Floats(lists.scores));
    }
    say("ggml.token_type", Said::Integers(lists.types));
    if lists.model == "gpt2" {
        say("ggml.merges", Said::Texts(lists.merges));
    }
    let ids = [
        ("bos", lists.bos),
        ("eos", lists.eos),
        ("eot", lists.other_ends.first().copied()),
        ("unknown", lists.unknown),
        ("padding", lists.padding),
    ];
    for (kind, id) in ids {
        id.into_iter().for_each(|id| say(&format!("ggml.{kind}_token_id"), Said::Count(id)));
    }
    let flags = [
        ("add_bos_token", lists.add_bos),
        ("add_eos_token", lists.add_eos),
        ("add_space_prefix", lists.add_space_prefix),
    ];
    for (key, flag) in flags {
        flag.into_iter().for_each(|flag| say(&format!("ggml.{key}"), Said::Bool(flag)));
    }
    let named: Vec<String> =
        lists.templates.iter().map(|(name, _)| name.clone()).filter(|name| name != "default").collect();
    if !named.is_empty() {
        say("chat_templates", Said::Texts(named));
    }
    for (name, template) in lists.templates {
        let key =
            if name == "default" { "chat_template".to_owned() } else { format!("chat_template.{name}") };
        say(&key, Said::Text(template));
    }
    entries
}

/// The keys under `tokenizer.ggml`.
struct Keys<'a>(&'a Gguf);

impl Keys<'_> {
    fn get(&self, name: &str) -> (String, Option<&GgufValue>) {
        let key = format!("tokenizer.ggml.{name}");
        let value = self.0.metadata().get(&key);
        (key, value)
    }

    fn wrong(&self, key: &str, problem: &str) -> anyhow::Error {
        user(format!("{}: `{key}` {problem}", self.0.path().display()))
    }

    fn text(&self, name: &str) -> anyhow::Result<Option<String>> {
        match self.get(name) {
            (_, None) => Ok(None),
            (_, Some(GgufValue::Text(text))) => Ok(Some(text.clone())),
            (key, Some(_)) => Err(self.wrong(&key, "is no text")),
        }
    }

    fn texts(&self, name: &str) -> anyhow::Result<Vec<String>> {
        match self.get(name) {
            (_, None) => Ok(Vec::new()),
            (_, Some(GgufValue::Texts(texts))) => Ok(texts.clone()),
            (key, Some(_)) => Err(self.wrong(&key, "is no list of texts")),
        }
    }

    fn numbers(&self, name: &str) -> anyhow::Result<Vec<f32>> {
        match self.get(name) {
            (_, None) => Ok(Vec::new()),
            (_, Some(GgufValue::Floats(numbers))) => Ok(numbers.iter().map(|&n| n as f32).collect()),
            (_, Some(GgufValue::Integers(numbers))) => Ok(numbers.iter().map(|&n| n as f32).collect()),
            (key, Some(_)) => Err(self.wrong(&key, "is no list of numbers")),
        }
    }

    fn integers(&self, name: &str) -> anyhow::Result<Vec<i32>> {
        let (key, value) = self.get(name);
        let wrong = || self.wrong(&key, "is no list of whole numbers of 32 bits");
        match value {
            None => Ok(Vec::new()),
            Some(GgufValue::Integers(numbers)) => {
                numbers.iter().map(|&n| i32::try_from(n).map_err(|_| wrong())).collect()
            }
            Some(_) => Err(wrong()),
        }
    }

    fn id(&self, name: &str) -> anyhow::Result<Option<u32>> {
        let (key, value) = self.get(name);
        let wrong = || self.wrong(&key, "is no id of a token");
        match value {
            None => Ok(None),
            Some(GgufValue::Integer(id)) => u32::try_from(*id).map(Some).map_err(|_| wrong()),
            Some(_) => Err(wrong()),
        }
    }

    fn flag(&self, name: &str) -> anyhow::Result<Option<bool>> {
        match self.get(name) {
            (_, None) => Ok(None),
            (_, Some(GgufValue::Bool(flag))) => Ok(Some(*flag)),
            (key, Some(_)) => Err(self.wrong(&key, "is neither true nor false")),
        }
    }
}
