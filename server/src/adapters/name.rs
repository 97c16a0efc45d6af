//! What an adapter may be called: what is safe as a file's name and as a label.

/// The rule in words.
pub(super) const RULE: &str = "1 to 128 of A-Z, a-z, 0-9, `.`, `_` and `-`, and does not begin with a dot";

/// The longest name.
const LONGEST: usize = 128;

/// Whether an adapter of the root, or one that is loaded by its path, may have this name.
pub(crate) fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=LONGEST).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_allowed)
}

/// Whether the server may give this name to an adapter that a tenant trained: as OpenAI and the hub write
/// them, also with `:` and `/`. It never names a file.
pub(super) fn is_given(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/".contains(&byte);
    (1..=2 * LONGEST).contains(&name.len()) && name.bytes().all(is_allowed)
}
