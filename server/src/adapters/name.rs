//! What an adapter may be called: what is safe as a file's name and as a label.

/// The rule in words.
pub(super) const RULE: &str = "1 to 128 of A-Z, a-z, 0-9, `.`, `_` and `-`, and does not begin with a dot";

/// Whether an adapter may have this name.
pub(crate) fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=128).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_allowed)
}
