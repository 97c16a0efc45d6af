//! A run file for people: each setting on a line with what it means beside it, in the words of the schema.

use std::fmt::Write as _;

use serde_json::Value;

use super::{schema, yaml};
use crate::terminal::printable;

/// Where comments begin, in columns.
const COLUMN: usize = 36;
/// Columns of a line.
const WIDTH: usize = 120;

/// A key of the run file and what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Its path, such as `adapter.r`.
    pub(crate) path: String,
    /// The values that it may have, if they are a closed set, and what it means.
    pub(crate) comment: String,
    pub(crate) default: Value,
}

/// What stands on a key's line.
pub(crate) struct Line {
    /// Whether it is a setting, or only a comment that shows one.
    pub(crate) set: bool,
    pub(crate) value: Value,
    pub(crate) comment: String,
}

/// All keys, in the file's order.
pub(crate) fn keys() -> Vec<Entry> {
    fn walk(path: &str, schema: &Value, keys: &mut Vec<Entry>) {
        let Some(Value::Object(properties)) = schema.get("properties") else {
            let description = schema["description"].as_str().unwrap_or_default();
            let comment = match choices(schema) {
                Some(choices) => format!("{choices}. {description}"),
                None => description.to_owned(),
            };
            return keys.push(Entry { path: path.to_owned(), comment, default: schema["default"].clone() });
        };
        for (name, schema) in properties {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            walk(&path, schema, keys);
        }
    }
    let mut keys = Vec::new();
    walk("", &schema(), &mut keys);
    keys
}

/// The values of a closed set, as `a | b | c`; null among them is one of them.
fn choices(schema: &Value) -> Option<String> {
    fn collect(schema: &Value, values: &mut Vec<Value>) -> Option<()> {
        if let Some(value) = schema.get("const") {
            values.push(value.clone());
        } else if let Some(some) = schema.get("enum") {
            values.extend_from_slice(some.as_array()?);
        } else if let Some(some) = schema.get("oneOf").or_else(|| schema.get("anyOf")) {
            some.as_array()?.iter().try_for_each(|schema| collect(schema, values))?;
        } else if schema["type"] == "null" {
            values.push(Value::Null);
        } else {
            return None;
        }
        Some(())
    }
    let mut values = Vec::new();
    collect(schema, &mut values)?;
    Some(values.iter().map(yaml_value).collect::<Vec<_>>().join(" | "))
}

/// Writes a run file with the lines that keys get; a key without a line is left out. `head` becomes comments
/// above all.
pub(crate) fn commented(head: &[String], line: impl Fn(&Entry) -> Option<Line>) -> String {
    let mut text: String =
        head.iter().flat_map(|line| wrapped(line, WIDTH - 2)).map(|line| comment(&line)).collect();
    let mut within = "";
    let keys = keys();
    for key in &keys {
        let Some(line) = line(key) else { continue };
        let (section, name) = key.path.rsplit_once('.').unwrap_or(("", &key.path));
        if section != within && !section.is_empty() {
            writeln!(text, "{section}:").expect("writing to a string");
        }
        within = section;
        let indent = if section.is_empty() { "" } else { "  " };
        let mark = if line.set { "" } else { "# " };
        write_line(&mut text, indent, &format!("{mark}{name}: {}", yaml_value(&line.value)), &line.comment);
    }
    text
}

fn comment(line: &str) -> String {
    // A name in it may have a line end, after which the rest would be no comment.
    format!("# {}", printable(line).replace('\n', "\\n")).trim_end().to_owned() + "\n"
}

/// The setting with its comment beside it, or above it where it is long.
fn write_line(text: &mut String, indent: &str, setting: &str, comment: &str) {
    let setting = format!("{indent}{setting}");
    let mut lines = wrapped(comment, WIDTH - COLUMN - 2).into_iter();
    if setting.chars().count() + 1 > COLUMN {
        for line in wrapped(comment, WIDTH - 4) {
            writeln!(text, "{indent}# {line}").expect("writing to a string");
        }
        lines = Vec::new().into_iter();
    }
    match lines.next() {
        Some(first) => writeln!(text, "{setting:COLUMN$}# {first}"),
        None => writeln!(text, "{setting}"),
    }
    .expect("writing to a string");
    for line in lines {
        writeln!(text, "{:COLUMN$}# {line}", "").expect("writing to a string");
    }
}

/// Text in lines of so many columns at most, broken between words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    if text.is_empty() { Vec::new() } else { lines }
}

/// A value as it stands in a run file, on one line.
pub(crate) fn yaml_value(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        // A string of JSON is one of YAML.
        Value::String(_) | Value::Null | Value::Bool(_) => value.to_string(),
        Value::Number(number) => match number.as_f64() {
            Some(x) if number.is_f64() => float(x),
            _ => number.to_string(),
        },
        Value::Array(items) => {
            format!("[{}]", items.iter().map(yaml_value).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| {
                format!("{}: {}", yaml_value(&Value::String(key.clone())), yaml_value(value))
            };
            format!("{{{}}}", map.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
    }
}

/// A number as people write it: 2.0e-4, 0.05, 32.
fn float(x: f64) -> String {
    let small = x != 0.0 && x.abs() < 1e-3;
    match small || x.abs() >= 1e9 {
        true => {
            let text = format!("{x:e}");
            let (mantissa, exponent) = text.split_once('e').expect("of this form");
            let point = if mantissa.contains('.') { "" } else { ".0" };
            format!("{mantissa}{point}e{exponent}")
        }
        false if x.fract() == 0.0 && x != 0.0 => format!("{x:.0}"),
        false => format!("{x:?}"),
    }
}

/// Whether text can stand without quotes, also within a list, and is text again when it is read.
fn is_plain(text: &str) -> bool {
    let begins = text.starts_with(|c: char| c.is_alphanumeric() || "./~_".contains(c));
    let letters = text.chars().all(|c| c.is_alphanumeric() || "./~_-+@".contains(c));
    let read = || yaml::parse(text).ok().map(|node| node.value);
    begins && letters && matches!(read(), Some(yaml::Value::String(read)) if read == text)
}
