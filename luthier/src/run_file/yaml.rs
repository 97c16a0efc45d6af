//! YAML text to a tree of nodes that know where they were written, and back. The only place that knows the
//! YAML crate.

use std::fmt::{self, Display};
use std::ops::Range;
use std::rc::Rc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::Serialize;
use serde_saphyr::{Error, Spanned};

use super::decode::Problem;

/// Where a node was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Origin {
    /// Nowhere: a default.
    Default,
    /// The bytes in the run file's text.
    File(Range<usize>),
    /// A flag, as it was typed.
    Flag(Rc<str>),
}

impl Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("the defaults"),
            Origin::File(_) => f.write_str("the run file"),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    /// A scalar that is no string, as it was written: `1e-4`, `yes`, `007`. Lets it serve where text is
    /// expected.
    pub(super) text: Option<String>,
    pub(super) origin: Origin,
}

/// YAML's kinds of values.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    String(String),
    List(Vec<Node>),
    /// In the file's order, keys unique.
    Map(Vec<(Key, Node)>),
}

/// A map's key and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) origin: Origin,
}

impl Node {
    pub(super) fn new(value: Value, origin: Origin) -> Self {
        Self { value, text: None, origin }
    }

    /// What stands here, for a message.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a section of keys".into(),
            Value::String(text) => format!("`{text}`"),
            _ => format!("`{}`", self.text.as_deref().unwrap_or("?")),
        }
    }

    /// Lays a value over this tree at a path of keys, making the sections that are not there.
    pub(super) fn put(&mut self, path: &[String], value: Node, origin: &Origin) -> Result<(), Problem> {
        let mut node = self;
        for (depth, name) in path.iter().enumerate() {
            if matches!(node.value, Value::Null) {
                node.value = Value::Map(Vec::new());
            }
            let described = node.describe();
            let Value::Map(entries) = &mut node.value else {
                let message = format!("is {described} and has no key `{name}`");
                return Err(Problem::about(&path[..depth].join("."), message, origin.clone()));
            };
            let index = entries.iter().position(|(key, _)| key.name == *name).unwrap_or_else(|| {
                let key = Key { name: name.clone(), origin: origin.clone() };
                entries.push((key, Node::new(Value::Null, origin.clone())));
                entries.len() - 1
            });
            if depth + 1 == path.len() {
                entries[index].0.origin = origin.clone();
            }
            node = &mut entries[index].1;
        }
        *node = value;
        Ok(())
    }

    /// Whether there is a value at a key's path itself; that there is a section around it is not enough.
    pub(super) fn has(&self, path: &str) -> bool {
        let mut node = self;
        for name in path.split('.') {
            let Value::Map(entries) = &node.value else { return false };
            let Some((_, value)) = entries.iter().find(|(key, _)| key.name == name) else { return false };
            node = value;
        }
        true
    }

    /// Where the value of a key's path, such as `projects[2].quota`, was written, or the nearest section around it
    /// that was.
    pub(super) fn origin_of(&self, path: &str) -> Origin {
        let mut node = self;
        let mut origin = Origin::Default;
        for step in path.split('.') {
            let (name, index) = match step.strip_suffix(']').and_then(|step| step.split_once('[')) {
                Some((name, index)) => (name, index.parse::<usize>().ok()),
                None => (step, None),
            };
            let Value::Map(entries) = &node.value else { break };
            let Some((key, value)) = entries.iter().find(|(key, _)| key.name == name) else { break };
            origin = match value.value {
                Value::Null | Value::List(_) | Value::Map(_) => key.origin.clone(),
                _ => value.origin.clone(),
            };
            node = value;
            if let (Some(index), Value::List(items)) = (index, &value.value) {
                let Some(item) = items.get(index) else { break };
                origin = item.origin.clone();
                node = item;
            }
        }
        origin
    }
}

/// Reads a run file.
pub(super) fn parse(text: &str) -> Result<Node, Problem> {
    let tree = serde_saphyr::from_str::<Spanned<Raw>>(text).map_err(|error| problem(error, text))?;
    Ok(located(tree, &|span| Origin::File(span), text))
}

/// Reads a flag's value, whose every node is written in the flag.
pub(super) fn parse_flag(text: &str, origin: &Origin) -> Result<Node, Problem> {
    let tree = serde_saphyr::from_str::<Spanned<Raw>>(text);
    let tree = tree.map_err(|error| problem(error, text).at(origin.clone()))?;
    Ok(located(tree, &|_| origin.clone(), text))
}

/// Writes data as YAML, keys in the type's order.
pub(super) fn write(data: &impl Serialize) -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(data)
}

fn problem(error: Error, text: &str) -> Problem {
    let place =
        error.location().map(|l| bytes(l.span()).unwrap_or_else(|| byte_at(text, l.line(), l.column())));
    let message = match error.without_snippet() {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key `{key}` stands here a second time")
        }
        Error::DuplicateMappingKey { key: None, .. } => "this key stands here a second time".into(),
        Error::MultipleDocuments { .. } => "a run file is one YAML document; here begins another".into(),
        other => {
            let text = other.to_string();
            let text = text.lines().next().unwrap_or_default();
            // The place is shown by the excerpt.
            let text = text.rsplit_once(" at line ").map_or(text, |(message, _)| message);
            format!("this is not valid YAML: {text}")
        }
    };
    let problem = Problem::new(message);
    match place {
        Some(span) => problem.at(Origin::File(span)),
        None => problem,
    }
}

fn bytes(span: serde_saphyr::Span) -> Option<Range<usize>> {
    let start = usize::try_from(span.byte_offset()?).ok()?;
    Some(start..start + usize::try_from(span.byte_len()?).ok()?)
}

/// The byte at a line and column, both from 1; columns count characters.
fn byte_at(text: &str, line: u64, column: u64) -> Range<usize> {
    let index = |n: u64| usize::try_from(n.saturating_sub(1)).unwrap_or(usize::MAX);
    let start: usize = text.split_inclusive('\n').take(index(line)).map(str::len).sum();
    let rest = text[start..].lines().next().unwrap_or_default();
    let start = start + rest.char_indices().nth(index(column)).map_or(rest.len(), |(offset, _)| offset);
    start..start + text[start..].chars().next().filter(|c| *c != '\n').map_or(0, char::len_utf8)
}

/// The parser's tree to ours.
fn located(tree: Spanned<Raw>, origin: &dyn Fn(Range<usize>) -> Origin, text: &str) -> Node {
    let span = bytes(tree.referenced.span()).unwrap_or(0..0);
    let written =
        bytes(tree.defined.span()).and_then(|span| text.get(span)).map(|text| text.trim_end().to_owned());
    let mut node = Node { value: Value::Null, text: written, origin: origin(span) };
    node.value = match tree.value {
        Raw::Null => Value::Null,
        Raw::Bool(b) => Value::Bool(b),
        Raw::Signed(n) => Value::Signed(n),
        Raw::Unsigned(n) => Value::Unsigned(n),
        Raw::Float(x) => Value::Float(x),
        Raw::String(text) => Value::String(text),
        Raw::List(items) => Value::List(items.into_iter().map(|item| located(item, origin, text)).collect()),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let span = bytes(key.referenced.span()).unwrap_or(0..0);
                    (Key { name: key.value, origin: origin(span) }, located(value, origin, text))
                })
                .collect(),
        ),
    };
    node
}

/// A value as the parser gives it.
enum Raw {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    String(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Raw, E> {
        Ok(Raw::Signed(n))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Raw, E> {
        Ok(Raw::Unsigned(n))
    }

    fn visit_f64<E>(self, x: f64) -> Result<Raw, E> {
        Ok(Raw::Float(x))
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::String(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}
