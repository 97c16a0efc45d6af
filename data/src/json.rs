//! JSON as people's files have it: what Python's `json.dumps` writes beyond the standard is read, and what is
//! wrong is told in words.
//!
//! serde_json parses. Only a text that it refuses, or in which an integer may have more than 64 bits, is
//! looked at here:
//!
//! - `NaN`, `Infinity` and `-Infinity`, which Python writes where a table has no value, are null.
//! - An integer beyond 64 bits in a description or a call of tools keeps its digits: it becomes a text of a
//!   mark and the digits, which the template's values turn back into an integer. (serde_json's
//!   `arbitrary_precision` would make every number of every crate a text, token ids included.) `NaN` is an
//!   error there: null would be another value than the author's.

use serde_json::Value as Json;

/// Keys below which numbers are part of what is taught.
const TOOL_KEYS: &[&str] = &["tools", "tool_calls", "arguments"];

/// Stands before the digits of an integer beyond 64 bits: a noncharacter, which no text may be interchanged
/// with.
const INTEGER_MARK: char = '\u{FDD2}';

/// Where a text is no JSON, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JsonError {
    /// Line breaks before the place.
    pub(crate) lines_before: usize,
    /// The place on its line, in characters from 1.
    pub(crate) column: usize,
    /// Whether the text ends before the value does.
    pub(crate) cut_off: bool,
    /// What is wrong and what to do, with [`COLUMN`] where the column is to be named.
    message: String,
}

impl JsonError {
    fn new(text: &str, at: usize, message: String, cut_off: bool) -> Self {
        let before = &text[..text.floor_char_boundary(at)];
        let line = before.rfind('\n').map_or(0, |end| end + 1);
        let (lines_before, column) = (before.matches('\n').count(), before[line..].chars().count() + 1);
        JsonError { lines_before, column, cut_off, message }
    }

    /// What is wrong and what to do. `indent`: what stands before the text on its first line.
    pub(crate) fn message(&self, indent: usize) -> String {
        let column = if self.lines_before == 0 { self.column + indent } else { self.column };
        self.message.replace(COLUMN, &format!("at column {column}"))
    }
}

/// The digits of an integer beyond 64 bits, if that is what the text stands for.
pub(crate) fn big_integer(text: &str) -> Option<&str> {
    let integer = text.strip_prefix(INTEGER_MARK)?;
    let digits = integer.strip_prefix('-').unwrap_or(integer);
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(integer)
}

/// Parses a record.
pub(crate) fn parse(text: &str) -> Result<Json, JsonError> {
    read(text, false)
}

/// Parses a text that is itself the description or a call of tools.
pub(crate) fn parse_tools(text: &str) -> Result<Json, JsonError> {
    read(text, true)
}

/// A value as JSON in one line, its integers beyond 64 bits with their digits.
pub(crate) fn write(value: &Json) -> String {
    let (text, mark) = (value.to_string(), format!("\"{INTEGER_MARK}"));
    let mut parts = text.split(&mark);
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        match part
            .split_once('"')
            .filter(|(digits, _)| big_integer(&format!("{INTEGER_MARK}{digits}")).is_some())
        {
            Some((digits, rest)) => out.extend([digits, rest]),
            None => out.extend([&mark, part]),
        }
    }
    out
}

fn read(text: &str, in_tools: bool) -> Result<Json, JsonError> {
    let refused = match serde_json::from_str(text) {
        Ok(value) if !has_long_number(text.as_bytes()) => return Ok(value),
        Ok(value) => match mend(text, in_tools).text {
            None => return Ok(value),
            Some(mended) => return Ok(serde_json::from_str(&mended).unwrap_or(value)),
        },
        Err(error) => error,
    };
    let Mended { text: mended, problem } = mend(text, in_tools);
    let place = place_of(text, &refused);
    match (problem, mended) {
        (Some((at, message)), mended) if mended.is_some() || at <= place => {
            Err(JsonError::new(text, at, message, false))
        }
        // Its columns are those of the mended text.
        (_, Some(mended)) => serde_json::from_str(&mended).map_err(|error| {
            let at = place_of(&mended, &error).saturating_sub(1);
            JsonError::new(&mended, at, in_words(&error, ""), error.is_eof())
        }),
        (_, None) => {
            let message = in_words(&refused, &format!(" {COLUMN}"));
            Err(JsonError::new(text, place.saturating_sub(1), message, refused.is_eof()))
        }
    }
}

/// What is wrong; `place`: with a space in front, or nothing.
fn in_words(error: &serde_json::Error, place: &str) -> String {
    match what(error).as_str() {
        TOO_DEEP => format!(
            "lists and objects are nested more than {LEVELS} levels deep{place}, which is not read; give a \
             tree of messages a message a record, and what else is so deep as text"
        ),
        what => format!("invalid JSON{place}: {what}"),
    }
}

/// serde_json's message without the place that it appends.
fn what(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_string()
}

/// Up to which byte serde_json had read when it gave up.
fn place_of(text: &str, error: &serde_json::Error) -> usize {
    let lines = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    (lines.map(str::len).sum::<usize>() + error.column()).min(text.len())
}

/// Whether there are 19 digits in a row, as an integer beyond 64 bits has. Most bytes need not be looked at.
fn has_long_number(bytes: &[u8]) -> bool {
    const DIGITS: usize = 19;
    let mut at = DIGITS - 1;
    while at < bytes.len() {
        if bytes[at].is_ascii_digit() {
            let before = bytes[..at].iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
            let from = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            if before + from >= DIGITS {
                return true;
            }
            at += from;
        }
        at += DIGITS;
    }
    false
}

/// Levels of lists and objects that serde_json goes down, and what it says of more.
const LEVELS: usize = 127;
const TOO_DEEP: &str = "recursion limit exceeded";

/// In a message, where the column is to be named.
const COLUMN: &str = "<column>";

/// A text with what serde_json does not read replaced, and the first thing in it that cannot be.
struct Mended {
    /// `None`: nothing was replaced.
    text: Option<String>,
    /// The byte and a message.
    problem: Option<(usize, String)>,
}

fn mend(text: &str, in_tools: bool) -> Mended {
    let mut mender = Mender {
        text,
        at: 0,
        copied: 0,
        out: String::new(),
        depth: 0,
        tools_from: in_tools.then_some(0),
        last_string: "",
    };
    let problem = mender.run().err();
    let text = (mender.copied > 0).then(|| mender.out + &text[mender.copied..]);
    Mended { text, problem }
}

struct Mender<'a> {
    text: &'a str,
    at: usize,
    /// The text up to here is in `out`, its replacements made.
    copied: usize,
    out: String,
    depth: usize,
    /// The depth of the value that tells of tools, while it lasts.
    tools_from: Option<usize>,
    last_string: &'a str,
}

impl Mender<'_> {
    fn run(&mut self) -> Result<(), (usize, String)> {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            match byte {
                b'"' => self.string()?,
                b'\'' => {
                    return Err((
                        self.at,
                        format!("a single quote {COLUMN} is not JSON; write strings in \"\""),
                    ));
                }
                b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => self.word()?,
                _ => {
                    match byte {
                        b'{' | b'[' => self.depth += 1,
                        b':' if self.tools_from.is_none() && TOOL_KEYS.contains(&self.last_string) => {
                            self.tools_from = Some(self.depth);
                        }
                        b'}' | b']' => {
                            self.depth = self.depth.saturating_sub(1);
                            self.tools_from = self.tools_from.filter(|&from| self.depth >= from);
                        }
                        b',' => self.tools_from = self.tools_from.filter(|&from| self.depth > from),
                        _ => {}
                    }
                    self.at += 1;
                }
            }
        }
        Ok(())
    }

    /// Passes over a string, of which an escape must not be half a character.
    fn string(&mut self) -> Result<(), (usize, String)> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        self.at = start;
        while let Some(&byte) = bytes.get(self.at) {
            match byte {
                b'"' => break,
                b'\\' => match escaped_unit(self.text, self.at) {
                    Some(0xd800..=0xdbff)
                        if matches!(escaped_unit(self.text, self.at + 6), Some(0xdc00..=0xdfff)) =>
                    {
                        self.at += 12;
                    }
                    Some(0xd800..=0xdfff) => {
                        let escape = &self.text[self.at..self.at + 6];
                        let message = format!(
                            "half of a surrogate pair, {escape}, {COLUMN}; write the whole character, or \\ufffd"
                        );
                        return Err((self.at, message));
                    }
                    _ => self.at += 2,
                },
                _ => self.at += 1,
            }
        }
        self.last_string = self.text.get(start..self.at).unwrap_or_default();
        self.at += 1;
        Ok(())
    }

    /// A number or a word, up to what cannot be part of it.
    fn word(&mut self) -> Result<(), (usize, String)> {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '-' | '+' | '.' | '_')));
        let word = &rest[..end.unwrap_or(rest.len())];
        let digits = word.strip_prefix('-').unwrap_or(word);
        let in_tools = self.tools_from.is_some();
        if digits.starts_with(|c: char| c.is_ascii_digit()) {
            let beyond = digits.bytes().all(|byte| byte.is_ascii_digit())
                && !digits.starts_with("0")
                && word.parse::<i64>().is_err()
                && word.parse::<u64>().is_err();
            if beyond && in_tools {
                self.replace(word, &format!("\"{INTEGER_MARK}{word}\""));
            }
        } else if matches!(word, "NaN" | "Infinity" | "-Infinity") && !in_tools {
            self.replace(word, "null");
        } else if !matches!(word, "true" | "false" | "null") {
            let instead = match word {
                "NaN" | "Infinity" | "-Infinity" => "null or a number",
                "nan" | "None" | "undefined" | "NULL" | "Null" => "null",
                "True" | "TRUE" => "true",
                "False" | "FALSE" => "false",
                _ => "a string in \"\", a number, true, false or null",
            };
            let shown: String = word.chars().take(40).collect();
            return Err((self.at, format!("`{shown}` {COLUMN} is not JSON; write {instead}")));
        }
        self.at += word.len();
        Ok(())
    }

    fn replace(&mut self, word: &str, by: &str) {
        self.out.push_str(&self.text[self.copied..self.at]);
        self.out.push_str(by);
        self.copied = self.at + word.len();
    }
}

/// The UTF-16 unit of an escape, `\u` and four hexadecimal digits, at this byte.
fn escaped_unit(text: &str, at: usize) -> Option<u16> {
    let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(text: &str) -> String {
        parse(text).unwrap_err().message(0)
    }

    #[test]
    fn integers_beyond_64_bits_keep_their_digits_in_tools_only() {
        let text = r#"{"id": 18446744073709551616, "tools": [{"max": 18446744073709551616, "min": -9223372036854775809,
            "in": [18446744073709551615, -9223372036854775808, 1e30, 12345678901234567890.5]}], "after": 18446744073709551616,
            "text": "18446744073709551616"}"#;
        let value = parse(text).unwrap();
        assert_eq!(value["tools"][0]["max"], "\u{FDD2}18446744073709551616");
        assert_eq!(value["tools"][0]["min"], "\u{FDD2}-9223372036854775809");
        assert_eq!(
            value["tools"][0]["in"],
            json!([18446744073709551615u64, -9223372036854775808i64, 1e30, 12345678901234567890.5])
        );
        assert_eq!(
            (&value["id"], &value["after"]),
            (&json!(18446744073709551616f64), &json!(18446744073709551616f64))
        );
        assert_eq!(value["text"], "18446744073709551616");
        assert_eq!(big_integer(value["tools"][0]["max"].as_str().unwrap()), Some("18446744073709551616"));
        assert_eq!(parse_tools("[18446744073709551616]").unwrap()[0], "\u{FDD2}18446744073709551616");
    }

    #[test]
    fn what_was_read_is_written_with_all_its_digits() {
        let text =
            r#"{"tools":[{"max":18446744073709551616,"min":-9223372036854775809,"name":"\"1\\"}],"n":1.5}"#;
        assert_eq!(write(&parse(text).unwrap()), text);
    }

    #[test]
    fn long_runs_of_digits_are_found_wherever_they_stand() {
        for length in 0..60 {
            for place in 0..80 {
                let text = format!("{}{}{}", "x".repeat(place), "1".repeat(length), "y".repeat(25));
                assert_eq!(has_long_number(text.as_bytes()), length >= 19, "{length} digits at {place}");
            }
        }
    }

    #[test]
    fn what_python_writes_for_no_value_is_null() {
        assert_eq!(
            parse(r#"{"a": NaN, "b": [Infinity, -Infinity, "NaN, Infinity"]}"#).unwrap(),
            json!({"a": null, "b": [null, null, "NaN, Infinity"]})
        );
        let error = parse("{\"tools\": [\n {\"max\": NaN}]}").unwrap_err();
        assert_eq!(error.lines_before, 1);
        assert_eq!(error.message(5), "`NaN` at column 10 is not JSON; write null or a number");
        let error = parse("{\"a\": NaN,\n \"b\": }").unwrap_err();
        assert_eq!((error.lines_before, error.message(0).as_str()), (1, "invalid JSON: expected value"));
    }

    #[test]
    fn words_and_halves_of_characters_are_named_with_their_column() {
        assert_eq!(error(r#"{"é": None}"#), "`None` at column 7 is not JSON; write null");
        assert_eq!(error(r#"{"a": True}"#), "`True` at column 7 is not JSON; write true");
        assert_eq!(error("{'a': 1}"), "a single quote at column 2 is not JSON; write strings in \"\"");
        assert_eq!(
            error(r#"{"a": "x\ud83d"}"#),
            r"half of a surrogate pair, \ud83d, at column 9; write the whole character, or \ufffd"
        );
        assert_eq!(
            error(r#"{"a": "\ud83d\ude00 \ude00"}"#),
            r"half of a surrogate pair, \ude00, at column 21; write the whole character, or \ufffd"
        );
        assert_eq!(parse(r#"{"a": "\ud83d\ude00 \\ud83d"}"#).unwrap(), json!({"a": "😀 \\ud83d"}));
    }

    #[test]
    fn what_is_nested_too_deep_is_told_as_such() {
        let nested =
            |levels: usize| format!("{{\"a\": {}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
        assert!(parse(&nested(LEVELS)).is_ok());
        let told = error(&nested(LEVELS + 1));
        assert!(
            told.starts_with("lists and objects are nested more than 127 levels deep at column 133, "),
            "{told}"
        );
        let in_lines = nested(LEVELS + 1).replace(": ", ": NaN,\n\"b\": ");
        let told = parse(&in_lines).unwrap_err();
        assert_eq!(told.lines_before, 1);
        assert!(
            told.message(0).starts_with("lists and objects are nested more than 127 levels deep, "),
            "{told:?}"
        );
    }

    #[test]
    fn the_first_thing_wrong_is_the_error() {
        assert_eq!(error(r#"{"a" 1, "b": None}"#), "invalid JSON at column 6: expected `:`");
        assert!(parse(r#"{"a": [1"#).unwrap_err().cut_off);
    }
}
