//! A tree of located nodes to typed settings, through serde; every complaint names the key and where it was
//! written.

use std::fmt::{self, Display};

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    Visitor,
};
use serde::forward_to_deserialize_any;

use super::{FileText, Node, Origin, RunFile, Value};
use crate::error::{user, user_at};

/// Decodes a whole run file.
pub(super) fn decode(tree: &Node) -> Result<RunFile, Problem> {
    if !matches!(tree.value, Value::Null | Value::Map(_)) {
        let message =
            format!("a run file is a section of keys, such as `model: ...`; this is {}", tree.describe());
        return Err(Problem::new(message).at(tree.origin.clone()));
    }
    <RunFile as de::Deserialize>::deserialize(Decoder(tree))
}

/// Decodes a section that is no run file's, named so.
pub(super) fn decode_section<T: de::DeserializeOwned>(name: &str, node: &Node) -> Result<T, Problem> {
    T::deserialize(Decoder(node)).map_err(|problem| problem.within(name).at(node.origin.clone()))
}

/// Decodes a whole file that is no run file.
pub(super) fn decode_other<T: de::DeserializeOwned>(node: &Node) -> Result<T, Problem> {
    T::deserialize(Decoder(node)).map_err(|mut problem| {
        if let Kind::UnknownKey { of_run, .. } = &mut problem.kind {
            *of_run = false;
        }
        problem.at(node.origin.clone())
    })
}

/// What is wrong with a setting, and where it was written.
#[derive(Debug)]
pub(super) struct Problem {
    kind: Kind,
    /// The keys that lead here, outermost first.
    path: Vec<String>,
    /// None until the node around the failure has added its own.
    origin: Option<Origin>,
}

#[derive(Debug)]
enum Kind {
    /// The last key of the path is none of those known in its section.
    UnknownKey {
        known: &'static [&'static str],
        /// Whether a run file's other keys may be meant.
        of_run: bool,
    },
    /// Another kind of value is expected; what was found is filled in by the node.
    Unexpected { expected: String, found: Option<String> },
    /// A message that begins with the key, such as "must be 1 or more".
    About(String),
    /// A message of its own.
    Message(String),
}

impl Problem {
    /// A problem that is about no key.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { kind: Kind::Message(message.into()), path: Vec::new(), origin: None }
    }

    /// A problem with a key's value; the message goes on from the key's name: "must be 1 or more".
    pub(super) fn about(key: &str, message: impl Into<String>, origin: Origin) -> Self {
        Self { kind: Kind::About(message.into()), path: vec![key.to_owned()], origin: Some(origin) }
    }

    fn of(kind: Kind) -> Self {
        Self { kind, path: Vec::new(), origin: None }
    }

    /// The same, written there, unless a place nearer to the cause is known.
    pub(super) fn at(mut self, origin: Origin) -> Self {
        // A place in a flag's own text is of no use to anyone: the flag is short.
        let in_flag = matches!((&self.origin, &origin), (Some(Origin::File(_)), Origin::Flag(_)));
        if self.origin.is_none() || in_flag {
            self.origin = Some(origin);
        }
        self
    }

    fn within(mut self, key: &str) -> Self {
        self.path.insert(0, key.to_owned());
        self
    }

    fn found(mut self, node: &Node) -> Self {
        if let Kind::Unexpected { found: found @ None, .. } = &mut self.kind {
            *found = Some(node.describe());
        }
        self.at(node.origin.clone())
    }

    /// The error for `main`, pointing into the file or naming the flag.
    pub(super) fn report(self, file: Option<&FileText>) -> anyhow::Error {
        let (message, help) = self.words();
        match (self.origin, file) {
            (Some(Origin::File(span)), Some(file)) => user_at(message, file.excerpt(span, help)),
            (Some(origin @ Origin::Flag(_)), _) => user(format!("{origin}: {}", join(message, help))),
            _ => user(join(message, help)),
        }
    }

    /// The message, and what else helps.
    fn words(&self) -> (String, Option<String>) {
        let key = self.path.join(".");
        match &self.kind {
            Kind::UnknownKey { known, of_run } => unknown_key(&key, known, *of_run),
            Kind::Unexpected { expected, found } => {
                let found = found.as_deref().unwrap_or("something else");
                let key = if key.is_empty() { "this setting".into() } else { format!("`{key}`") };
                (format!("{key}: expected {expected}, found {found}"), None)
            }
            Kind::About(message) if key.is_empty() => (message.clone(), None),
            Kind::About(message) => (format!("`{key}` {message}"), None),
            Kind::Message(message) => (message.clone(), None),
        }
    }
}

fn join(message: String, help: Option<String>) -> String {
    match help {
        Some(help) => format!("{message}\n{help}"),
        None => message,
    }
}

/// What people coming from PEFT, TRL or Axolotl may type, and the key, or the setting, that means it here.
const ELSEWHERE: [(&str, &str); 18] = [
    ("base_model", "model"),
    ("model_name_or_path", "model"),
    ("output_dir", "output"),
    ("datasets", "data.train"),
    ("val_set_size", "data.eval_fraction"),
    ("sequence_len", "data.max_length"),
    ("sample_packing", "data.packing"),
    ("lora_r", "adapter.r"),
    ("lora_alpha", "adapter.alpha"),
    ("lora_dropout", "adapter.dropout"),
    ("lora_target_modules", "adapter.target_modules"),
    ("use_rslora", "adapter.rslora"),
    ("use_dora", "adapter.method: dora"),
    ("lr", "optimizer.learning_rate"),
    ("lr_scheduler_type", "schedule.name"),
    ("num_train_epochs", "training.epochs"),
    ("gradient_checkpointing", "training.checkpointing"),
    ("enable_activation_offloading", "training.activation_offloading"),
];

fn unknown_key(key: &str, known: &[&str], of_run: bool) -> (String, Option<String>) {
    let (section, name) = key.rsplit_once('.').map_or(("", key), |(section, name)| (section, name));
    let known_list = format!("known keys{}: {}", within(section), known.join(", "));
    let full = |name: &str| if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
    let elsewhere = || {
        let theirs = ELSEWHERE.iter().find(|(theirs, _)| *theirs == name);
        theirs.map(|(_, ours)| (*ours).to_owned()).or_else(|| elsewhere_here(name))
    };
    let here = nearest(name, known.iter().copied()).map(full);
    let nearest = here.or_else(|| if of_run { elsewhere() } else { None });
    match nearest {
        Some(nearest) => (format!("unknown key `{key}`; did you mean `{nearest}`?"), Some(known_list)),
        None => (format!("unknown key `{key}`"), Some(known_list)),
    }
}

fn within(section: &str) -> String {
    if section.is_empty() { String::new() } else { format!(" in {section}") }
}

/// The key of another section that has this name, or nearly.
fn elsewhere_here(name: &str) -> Option<String> {
    let keys = super::flatten(&RunFile::default());
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let names: Vec<String> = keys.iter().map(|(key, _)| last(key)).collect();
    let nearest = nearest(name, names.iter().map(String::as_str))?;
    keys.into_iter().map(|(key, _)| key).find(|key| last(key) == nearest)
}

/// The most alike of the known names, if any is alike enough to be meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase().replace('-', "_");
    known
        .map(|known| (strsim::damerau_levenshtein(&name, known), known))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, known)| *distance <= known.len().max(name.len()) / 3)
        .map(|(_, known)| known)
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().0)
    }
}

impl std::error::Error for Problem {}

impl de::Error for Problem {
    fn custom<T: Display>(message: T) -> Self {
        Self::of(Kind::About(message.to_string()))
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::of(Kind::Unexpected { expected: in_words(&expected.to_string()), found: None })
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::of(Kind::Unexpected { expected: in_words(&expected.to_string()), found: None })
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        let expected = in_words(&expected.to_string());
        Self::of(Kind::Unexpected { expected, found: Some(format!("a list of {length}")) })
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        let expected = match expected {
            [] => "nothing".to_owned(),
            [only] => (*only).to_owned(),
            [most @ .., last] => format!("{} or {last}", most.join(", ")),
        };
        Self::of(Kind::Unexpected { expected, found: None })
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::of(Kind::UnknownKey { known: expected, of_run: true }).within(field)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::of(Kind::About(format!("lacks the key `{field}`")))
    }
}

/// serde's names of types, in a user's words.
fn in_words(expected: &str) -> String {
    match expected {
        "usize" | "u64" | "u32" | "u16" | "u8" => "a whole number of 0 or more".into(),
        "i64" | "i32" => "a whole number".into(),
        "f64" | "f32" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a string" | "path string" | "string or map" => "text".into(),
        "a sequence" => "a list".into(),
        "a map" => "a section of keys".into(),
        other if other.starts_with("struct") => "a section of keys".into(),
        other => other.into(),
    }
}

/// serde's way into a node.
struct Decoder<'a>(&'a Node);

impl<'a> Decoder<'a> {
    /// A scalar as text, whatever YAML takes it for; null is no text.
    fn text(&self) -> Option<&'a str> {
        match &self.0.value {
            Value::String(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => None,
            _ => self.0.text.as_deref(),
        }
    }

    fn visit_any<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Problem> {
        match &self.0.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Signed(n) => visitor.visit_i64(*n),
            Value::Unsigned(n) => visitor.visit_u64(*n),
            Value::Float(x) => visitor.visit_f64(*x),
            Value::String(text) => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate() }),
            Value::Map(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
        }
    }
}

impl<'de> Deserializer<'de> for Decoder<'_> {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.visit_any(visitor).map_err(|problem| problem.found(self.0))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.0.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.text() {
            Some(text) => visitor.visit_str(text),
            None => self.visit_any(visitor),
        }
        .map_err(|problem| problem.found(self.0))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_str(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let text = self.text().ok_or_else(|| de::Error::unknown_variant("", variants));
        text.and_then(|text| {
            let text: StrDeserializer<'_, Problem> = text.into_deserializer();
            text.deserialize_enum(name, variants, visitor)
        })
        .map_err(|problem: Problem| problem.found(self.0))
    }

    /// A section whose keys are all commented out is an empty one.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        match self.0.value {
            Value::Null => visitor.visit_map(Entries { entries: [].iter(), value: None }),
            // serde would take a list for the values of the keys, in their order.
            Value::List(_) => Err(de::Error::invalid_type(Unexpected::Seq, &"struct")),
            _ => self.visit_any(visitor),
        }
        .map_err(|problem| problem.found(self.0))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Problem> {
        match &self.0.value {
            Value::List(items) if items.len() != length => {
                let expected = format!("a list of {length}");
                let problem: Problem = de::Error::invalid_length(items.len(), &expected.as_str());
                Err(problem.at(self.0.origin.clone()))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple_struct
        map identifier ignored_any
    }
}

/// A list's items, counted.
struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Problem> {
        let Some((index, item)) = self.items.next() else { return Ok(None) };
        seed.deserialize(Decoder(item)).map(Some).map_err(|problem| problem.within(&index.to_string()))
    }
}

/// A map's entries.
struct Entries<'a> {
    entries: std::slice::Iter<'a, (super::Key, Node)>,
    value: Option<&'a (super::Key, Node)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Problem> {
        self.value = self.entries.next();
        let Some((key, _)) = self.value else { return Ok(None) };
        let name: StrDeserializer<'_, Problem> = key.name.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|problem| problem.at(key.origin.clone()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        let (key, value) = self.value.expect("a key before its value");
        seed.deserialize(Decoder(value)).map_err(|problem| problem.within(&key.name))
    }
}
