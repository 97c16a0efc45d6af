//! The ways of cutting text into words that llama.cpp has names for (`src/llama-vocab.cpp`), as pre-tokenizers
//! of `tokenizer.json`.

use serde_json::{Value as Json, json};

use super::super::legacy::QWEN2_WORDS;

/// GPT-2's words, as a byte-level pre-tokenizer has them by itself.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Qwen2's with up to three digits in a word.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// A step of a pre-tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Each match is a word, and what stands between matches.
    Split(String),
    /// Each digit is a word.
    Digits,
    /// Bytes become characters.
    Bytes,
}

impl Step {
    /// The steps of a pre-tokenizer; `None` if one is of another kind.
    pub(super) fn all(json: &Json) -> Option<Vec<Step>> {
        match json["type"].as_str()? {
            "Sequence" => {
                let parts = json["pretokenizers"].as_array()?;
                Some(parts.iter().map(Step::all).collect::<Option<Vec<_>>>()?.concat())
            }
            "ByteLevel" if json["add_prefix_space"] == true => None,
            "ByteLevel" if json["use_regex"] == false => Some(vec![Step::Bytes]),
            "ByteLevel" => Some(vec![Step::Split(GPT2.to_owned()), Step::Bytes]),
            "Digits" if json["individual_digits"] == true => Some(vec![Step::Digits]),
            "Split" => {
                // A pattern that covers the text leaves nothing between its matches to remove.
                let how = (json["behavior"].as_str()?, json["invert"].as_bool()?);
                let kept = matches!(how, ("Isolated", false) | ("Removed", true));
                let pattern = json["pattern"]["Regex"].as_str().filter(|_| kept)?;
                Some(vec![Step::Split(pattern.to_owned())])
            }
            _ => None,
        }
    }

    fn json(&self) -> Json {
        match self {
            Step::Split(pattern) => {
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
            }
            Step::Digits => json!({"type": "Digits", "individual_digits": true}),
            Step::Bytes => byte_level(),
        }
    }
}

/// Bytes as characters, by the pre-tokenizer and by the decoder.
pub(super) fn byte_level() -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false})
}

/// A way of cutting text into words.
pub(super) struct ByteLevel {
    /// What llama.cpp calls it; the first name is written.
    names: &'static [&'static str],
    digits: bool,
    patterns: &'static [&'static str],
    /// Whether a word that is a token stays one, whatever the merges are.
    pub(super) ignore_merges: bool,
    /// Whether texts begin with a token where the file does not say.
    pub(super) add_bos: bool,
    /// Whether characters are composed first (NFC), as by Qwen's own tokenizer.
    pub(super) composed: bool,
}

const PLAIN: ByteLevel = ByteLevel {
    names: &["gpt-2", "phi-2", "mpt", "olmo", "exaone4", "a.x-4.0", "mellum", "trillion", "granite-docling"],
    digits: false,
    patterns: &[GPT2],
    ignore_merges: false,
    add_bos: false,
    composed: false,
};

const KNOWN: [ByteLevel; 11] = [
    PLAIN,
    ByteLevel {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    ByteLevel { names: &["glm4"], patterns: &[LLAMA3], ignore_merges: true, ..PLAIN },
    ByteLevel { names: &["smaug-bpe", "dbrx", "chatglm-bpe"], patterns: &[LLAMA3], ..PLAIN },
    ByteLevel {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "kormo", "f2llmv2"],
        patterns: &[QWEN2_WORDS],
        composed: true,
        ..PLAIN
    },
    ByteLevel { names: &["qwen35"], patterns: &[QWEN35], composed: true, ..PLAIN },
    ByteLevel {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        digits: true,
        ..PLAIN
    },
    ByteLevel { names: &["tekken"], patterns: &[TEKKEN], ignore_merges: true, add_bos: true, ..PLAIN },
    ByteLevel { names: &["gpt-4o", "llama4"], patterns: &[GPT4O], ..PLAIN },
    ByteLevel { names: &["hunyuan-dense", "deepseek-v3", "joyai-llm"], patterns: &DEEPSEEK3, ..PLAIN },
    ByteLevel { names: &["default"], patterns: &DEFAULT, ..PLAIN },
];

impl ByteLevel {
    /// The way of this name.
    pub(super) fn named(name: &str) -> Option<&'static ByteLevel> {
        KNOWN.iter().find(|known| known.names.contains(&name))
    }

    /// All names.
    pub(super) fn names() -> String {
        let names: Vec<&str> = KNOWN.iter().flat_map(|known| known.names).copied().collect();
        names.join(", ")
    }

    /// The name of a pre-tokenizer.
    pub(super) fn name_of(steps: &[Step], ignore_merges: bool) -> Option<&'static str> {
        let same = |known: &&ByteLevel| known.steps() == steps && known.ignore_merges == ignore_merges;
        KNOWN.iter().find(same).map(|known| known.names[0])
    }

    fn steps(&self) -> Vec<Step> {
        let digits = self.digits.then_some(Step::Digits);
        let splits = self.patterns.iter().map(|pattern| Step::Split((*pattern).to_owned()));
        digits.into_iter().chain(splits).chain([Step::Bytes]).collect()
    }

    /// As `tokenizer.json` has it.
    pub(super) fn pre_tokenizer(&self) -> Json {
        let steps: Vec<Json> = self.steps().iter().map(Step::json).collect();
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}
