//! The `{% generation %}` tag, which the template engine does not know.
//!
//! Before compiling, the tag is rewritten into a filter block in a scope of its own, which has the same rules
//! of scope and white space as transformers' own extension. (That one is a call block, but minijinja's call
//! blocks cannot assign to an outer namespace.) The filter puts marks around what the block renders; after
//! rendering they are taken out again and their places are the spans.

use minijinja::Environment;

use super::{Rendered, percent};

/// Marks around a block: noncharacters, which no text may be interchanged with, and
/// [`super::python::message`] drops them from messages, so that no text can forge a mark.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

/// Whether the character is one of the marks.
pub(super) fn is_mark(c: char) -> bool {
    c == OPEN || c == CLOSE
}

/// Adds the filter behind the block.
pub(super) fn install(env: &mut Environment<'static>) {
    env.add_filter("__generation", |text: &str| format!("{OPEN}{text}{CLOSE}"));
}

/// The template with its generation tags as filter blocks, and whether there were any.
///
/// Comments, expressions and raw blocks are passed over, so a comment that tells of `{% generation %}` is no
/// tag.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len() + 64);
    let mut found = false;
    let mut rest = source;
    while let Some(start) = find_opening(rest) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = match &rest[..2] {
            "{#" => rest.find("#}").map(|at| at + 2),
            "{{" => end_of_code(rest, "}}"),
            _ => end_of_code(rest, "%}"),
        };
        let Some(end) = end else { break };
        let tag = &rest[..end];
        match tag_name(tag) {
            Some("generation") => {
                found = true;
                out.push_str(&tag.replacen("generation", "with %}{% filter __generation", 1));
            }
            Some("endgeneration") => {
                out.push_str(&tag.replacen("endgeneration", "endfilter %}{% endwith", 1))
            }
            Some("raw") => {
                let end = end_of_raw(rest, end);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
                continue;
            }
            _ if tag.starts_with("{#") => out.push_str(tag),
            _ => out.push_str(&percent::rewrite(tag)),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    (out, found)
}

fn find_opening(text: &str) -> Option<usize> {
    text.match_indices('{')
        .map(|(at, _)| at)
        .find(|&at| matches!(text.as_bytes().get(at + 1), Some(b'#' | b'{' | b'%')))
}

/// The end of an expression or tag that begins at the start of `text`, passing over string literals.
fn end_of_code(text: &str, close: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 2;
    let mut quote = None;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, b'\'' | b'"') => quote = Some(bytes[at]),
            (None, _) if bytes[at..].starts_with(close.as_bytes()) => return Some(at + close.len()),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The first word of a `{% ... %}` tag.
fn tag_name(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("{%")?.trim_start_matches(['-', '+']).trim_start();
    let end = inner.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inner.len());
    Some(&inner[..end])
}

/// The end of the `{% endraw %}` tag after `from`, or of the text.
fn end_of_raw(text: &str, from: usize) -> usize {
    let mut at = from;
    while let Some(start) = text[at..].find("{%").map(|found| at + found) {
        let end = end_of_code(&text[start..], "%}").map_or(text.len(), |end| start + end);
        if tag_name(&text[start..end]) == Some("endraw") {
            return end;
        }
        at = start + 2;
    }
    text.len()
}

/// Takes the marks out of a rendered text. `None` if they do not pair up.
pub(super) fn split(marked: &str) -> Option<Rendered> {
    let mut text = String::with_capacity(marked.len());
    let mut generation = Vec::new();
    let mut open = None;
    for piece in marked.split_inclusive([OPEN, CLOSE]) {
        let mark = piece.chars().next_back().filter(|&c| is_mark(c));
        text.push_str(piece.trim_end_matches([OPEN, CLOSE]));
        match (mark, open) {
            (Some(OPEN), None) => open = Some(text.len()),
            (Some(CLOSE), Some(start)) => {
                generation.push(start..text.len());
                open = None;
            }
            (None, _) => {}
            _ => return None,
        }
    }
    open.is_none().then_some(Rendered { text, generation })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_tags_are_rewritten() {
        let source = "{# {% generation %} #}{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}\
                      {%- generation -%}x{%+ endgeneration %}{ {% if a == '%}' %}{% endif %}";
        let expected = "{# {% generation %} #}{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}\
                        {%- with %}{% filter __generation -%}x{%+ endfilter %}{% endwith %}{ {% if a == '%}' %}{% endif %}";
        assert_eq!(rewrite(source), (expected.to_string(), true));
        assert_eq!(rewrite("{% gen"), ("{% gen".to_string(), false));
    }
}
