//! A key, of which the server knows the SHA-256 alone.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What keys begin with that are made here: Tinker's client takes no others, and OpenAI's takes any.
const PREFIX: &str = "tml-";
/// Random bytes of a key.
const BYTES: usize = 24;

/// A key's hash, and what it is called where it must not be told.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
    pub(super) id: Arc<str>,
    pub(super) hash: [u8; 32],
}

impl Key {
    /// One of a file, called by the beginning of its hash. None if that is not 64 hexadecimal digits.
    pub(super) fn of_hash(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        let hash: [u8; 32] = if digits.len() == 64 { bytes.try_into().ok()? } else { return None };
        Some(Key { id: id(&hash), hash })
    }

    /// A new one, with its text, which is known to nobody else.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub(super) fn make() -> Result<(Self, String), String> {
        let text = secret(PREFIX)?;
        let hash = hash(text.as_bytes());
        Ok((Key { id: id(&hash), hash }, text))
    }

    /// Whether it is the key with this hash, in a time that does not tell how much of it is the same.
    pub(super) fn is(&self, hash: &[u8; 32]) -> bool {
        self.hash.ct_eq(hash).into()
    }
}

/// A text that nobody can guess, behind a prefix.
///
/// # Errors
/// If the system has no randomness.
pub(crate) fn secret(prefix: &str) -> Result<String, String> {
    let mut random = [0; BYTES];
    getrandom::fill(&mut random).map_err(|error| format!("the system has no random numbers: {error}"))?;
    Ok(format!("{prefix}{}", digits(&random)))
}

/// What a key is stored and compared as.
pub(crate) fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

fn id(hash: &[u8; 32]) -> Arc<str> {
    format!("key-{}", digits(&hash[..6])).into()
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
