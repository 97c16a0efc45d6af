//! The bytes that tokens stand for, as grammars need them: a token may be a part of a character.

use serde_json::Value as Json;

use super::Tokenizer;

/// How a vocabulary spells bytes.
#[derive(Default)]
struct Spelling {
    /// A letter for each byte (GPT-2's `bytes_to_unicode`).
    by_letters: bool,
    /// `<0x0A>` for bytes that no token has.
    falls_back: bool,
    /// What stands for a space.
    space: Option<String>,
}

impl Spelling {
    /// As a tokenizer's decoder reads it.
    fn read(&mut self, decoder: &Json) {
        let text = |value: &Json| value.as_str().map(str::to_owned);
        match decoder["type"].as_str().unwrap_or_default() {
            "ByteLevel" => self.by_letters = true,
            "ByteFallback" => self.falls_back = true,
            "Metaspace" => self.space = text(&decoder["replacement"]),
            "Replace" if decoder["content"] == " " => self.space = text(&decoder["pattern"]["String"]),
            _ => {}
        }
        decoder["decoders"].as_array().into_iter().flatten().for_each(|decoder| self.read(decoder));
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        if self.by_letters
            && let Some(bytes) = token.chars().map(byte_of).collect()
        {
            return bytes;
        }
        let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        if let Some(byte) = hex.filter(|_| self.falls_back).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            return vec![byte];
        }
        match &self.space {
            Some(space) => token.replace(space.as_str(), " ").into_bytes(),
            None => token.as_bytes().to_vec(),
        }
    }
}

impl Tokenizer {
    /// The bytes of every token by its id, as it stands within a text; none for an id that is no token.
    pub fn token_bytes(&self) -> Vec<Vec<u8>> {
        let mut spelling = Spelling::default();
        if let Ok(decoder) = serde_json::to_value(self.inner.get_decoder()) {
            spelling.read(&decoder);
        }
        let added = self.inner.get_added_tokens_decoder();
        let last = added.keys().max().map_or(0, |&id| id as usize + 1);
        let bytes = |id: u32| match added.get(&id) {
            Some(token) => token.content.as_bytes().to_vec(),
            None => self.id_to_token(id).map_or(Vec::new(), |token| spelling.bytes(&token)),
        };
        (0..self.vocab_size().max(last) as u32).map(bytes).collect()
    }
}

/// The byte that a letter of a byte-level vocabulary stands for: itself if it can be seen, else one of those from
/// 256 on, in order.
fn byte_of(letter: char) -> Option<u8> {
    let is_seen = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(letter) {
        code @ 0..256 => Some(code as u8).filter(|&byte| is_seen(byte)),
        code => (0..=255).filter(|&byte| !is_seen(byte)).nth(code as usize - 256),
    }
}
