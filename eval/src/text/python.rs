//! Python's functions of strings where they differ from Rust's, since the metrics and tasks that are followed
//! here are written in it (CPython 3.11, `Objects/unicodeobject.c`).

use std::sync::LazyLock;

use fancy_regex::Regex;

/// `str.isspace` of a character: also the four separators U+001C to U+001F, which are not Unicode's
/// White_Space.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip()`.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.rstrip()`.
pub(crate) fn strip_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `str.split()`.
pub(crate) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|part| !part.is_empty())
}

/// `str.capitalize()`: the first character in title case, the others in lower case.
///
/// Title case differs from upper case in digraphs, in ligatures (`ﬁ` becomes `Fi`) and in Georgian. Not
/// followed are the Greek letters with an iota subscript, and `ŉ`.
pub(crate) fn capitalize(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    let mut capitalized = String::with_capacity(text.len());
    match first {
        'Ǆ'..='ǆ' => capitalized.push('ǅ'),
        'Ǉ'..='ǉ' => capitalized.push('ǈ'),
        'Ǌ'..='ǌ' => capitalized.push('ǋ'),
        'Ǳ'..='ǳ' => capitalized.push('ǲ'),
        '\u{10d0}'..='\u{10ff}' => capitalized.push(first),
        _ => {
            let mut upper = first.to_uppercase();
            capitalized.extend(upper.next());
            capitalized.extend(upper.flat_map(char::to_lowercase));
        }
    }
    // The whole text is lowered, not its rest: how a sigma is written depends on what stands before it.
    let lower = text.to_lowercase();
    capitalized.extend(lower.chars().skip(first.to_lowercase().count()));
    capitalized
}

/// The runs of characters that `\w` matches in Python, as byte ranges: letters, numbers and the underscore.
/// (Rust's `\w` also has marks, so that "a" with a combining accent would be one word.)
pub(crate) fn words(text: &str) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    static WORD: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]+").expect("a valid expression"));
    // Without look-around and references to groups there is no backtracking, so no search fails.
    WORD.find_iter(text).map_while(|found| Some(found.ok()?.range()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capitals_are_pythons() {
        // From CPython 3.11: repr(text.capitalize()).
        for (text, expected) in [
            ("", ""),
            ("hELLO wORLD", "Hello world"),
            ("éTÉ", "Été"),
            ("ßA", "Ssa"),
            ("ﬁNE", "Fine"),
            ("ǆX", "ǅx"),
            ("ΑΣ", "Ας"),
            ("ΣΑΣ", "Σας"),
            ("ქართული", "ქართული"),
            ("1ABC", "1abc"),
            ("İI", "İi"),
        ] {
            assert_eq!(capitalize(text), expected, "{text:?}");
        }
    }

    #[test]
    fn space_and_words_are_pythons() {
        assert_eq!(strip("\u{1c} \u{85}a\u{a0}b\u{2003}\u{1f}"), "a\u{a0}b");
        assert_eq!(strip("\u{200b}a"), "\u{200b}a");
        assert_eq!(split("a\u{1d}b \n c").collect::<Vec<_>>(), ["a", "b", "c"]);
        let text = "a\u{301} the_x नम Ⓐ½";
        assert_eq!(words(text).map(|range| &text[range]).collect::<Vec<_>>(), ["a", "the_x", "नम", "½"]);
    }
}
