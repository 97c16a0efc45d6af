//! A configuration on its way to a run file: what each key came to, and why.

use serde_json::Value;

use crate::error::user;
use crate::run_file::{Foreign, Line, Override, Purpose, Setting, Settings, commented, keys, yaml_value};
use crate::setup::ADOPTED;
use crate::terminal::printable;

/// What a key of another program means here.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meaning {
    /// The same as this key of the run file.
    Is(&'static str),
    /// Read together with others, in the code below the table.
    Read,
    /// Nothing: it is about devices, speed, caches, logs or uploads, or is settled by itself.
    Needless,
    /// What cannot be had here: why, and what to do instead.
    Lost(&'static str),
    /// What makes the whole file one of another purpose: why it is refused.
    Refused(&'static str),
}

/// Rows of keys, separated by spaces, with what they mean. A key may end in `*`.
pub(super) type Table = [(&'static str, Meaning)];

/// A key of the run file with its value and where it comes from.
struct Carried {
    key: &'static str,
    value: Value,
    /// What it came from, as the comment beside it.
    from: String,
    /// The keys that it came from.
    keys: String,
    line: Option<usize>,
}

/// What is to be said of a line.
struct Remark {
    line: Option<usize>,
    text: String,
}

pub(super) struct Translation<'a> {
    pub(super) file: &'a Foreign,
    program: &'static str,
    carried: Vec<Carried>,
    changed: Vec<Remark>,
    lost: Vec<Remark>,
    needless: Vec<String>,
    /// The keys that are lost, for the file's head.
    lost_keys: Vec<String>,
}

impl<'a> Translation<'a> {
    pub(super) fn new(file: &'a Foreign, program: &'static str) -> Self {
        Translation {
            file,
            program,
            carried: Vec::new(),
            changed: Vec::new(),
            lost: Vec::new(),
            needless: Vec::new(),
            lost_keys: Vec::new(),
        }
    }

    /// Takes each key as the first row says that names it. One in no row is told: nothing is dropped in
    /// silence.
    pub(super) fn apply(&mut self, tables: &[&Table]) -> anyhow::Result<()> {
        for setting in &self.file.settings {
            let Setting { key, value, .. } = setting;
            let names = |row: &str| row.split_whitespace().any(|name| matches(name, key));
            let row = tables.iter().flat_map(|table| table.iter()).find(|(row, _)| names(row));
            match row.map(|(_, meaning)| *meaning) {
                _ if value.is_null() => {}
                Some(Meaning::Is(ours)) => self.put(ours, value.clone(), &[key]),
                Some(Meaning::Read) => {}
                Some(Meaning::Needless) => self.needless.push(printable(key)),
                Some(Meaning::Lost(_) | Meaning::Refused(_)) if is_off(value) => {}
                Some(Meaning::Lost(why)) => self.lose(key, why),
                Some(Meaning::Refused(why)) => {
                    let Foreign { path, .. } = self.file;
                    let shown = yaml_value(value);
                    return Err(user(format!("{path}:{}: {key}: {shown}: {why}", setting.line)));
                }
                None => self
                    .lose(key, "this key is not known here; look up what it does, and whether you need it"),
            }
        }
        Ok(())
    }

    /// What a key is set to; null is not set.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.file.get(key).map(|setting| &setting.value)
    }

    /// The first of these keys that is set.
    pub(super) fn first<'k>(&self, keys: &[&'k str]) -> Option<&'k str> {
        keys.iter().copied().find(|key| self.get(key).is_some())
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    /// A number, which YAML's users may have put in quotes.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        let value = self.get(key)?;
        value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())
    }

    /// Whether a key is set to true.
    pub(super) fn is_on(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value == &Value::Bool(true))
    }

    /// Whether a key is set to false.
    pub(super) fn is_off(&self, key: &str) -> bool {
        self.get(key) == Some(&Value::Bool(false))
    }

    /// Sets a key of the run file from these of the other program's; a later one wins.
    pub(super) fn put(&mut self, key: &'static str, value: impl Into<Value>, from: &[&str]) {
        let written = |key: &&str| match self.get(key) {
            Some(value) => format!("`{key}: {}`", yaml_value(value)),
            None => format!("`{key}`"),
        };
        let line = from.iter().find_map(|key| self.file.get(key)).map(|setting| setting.line);
        let short = |key: &&str| match self.get(key) {
            Some(Value::Array(_) | Value::Object(_)) => format!("`{key}`"),
            _ => written(key),
        };
        let shown = from.iter().map(short).collect::<Vec<_>>().join(", ");
        self.set(Carried { key, value: value.into(), from: shown, keys: from.join(", "), line });
    }

    /// Sets a key that the file left open to what the other program then does.
    pub(super) fn default(&mut self, key: &'static str, value: impl Into<Value>) {
        if !self.has(key) {
            let from = format!("{}'s default", self.program);
            self.set(Carried { key, value: value.into(), keys: from.clone(), from, line: None });
        }
    }

    fn set(&mut self, carried: Carried) {
        self.carried.retain(|other| other.key != carried.key);
        self.carried.push(carried);
    }

    /// What a key of the run file is set to by now.
    pub(super) fn carried(&self, key: &str) -> Option<&Value> {
        self.carried.iter().find(|carried| carried.key == key).map(|carried| &carried.value)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.carried(key).is_some()
    }

    /// Trains all weights: what is set of an adapter does not count.
    pub(super) fn train_all(&mut self, from: Option<&str>) {
        let of_adapter = |key: &str| key.starts_with("adapter.") || key == "optimizer.lora_plus_ratio";
        self.carried.retain(|carried| !of_adapter(carried.key));
        match from {
            Some(key) => self.put("adapter.method", "full", &[key]),
            None => self.default("adapter.method", "full"),
        }
    }

    /// Goes on from an adapter, if there is one: its own configuration decides what it is, there as here.
    pub(super) fn adopt_adapter(&mut self) {
        if self.has("adapter.init_from") {
            let decided = |key: &str| key.strip_prefix("adapter.").is_some_and(|key| ADOPTED.contains(&key));
            self.carried.retain(|carried| !decided(carried.key));
        }
    }

    /// A key that does not mean quite the same here.
    pub(super) fn change(&mut self, key: &str, what: impl std::fmt::Display) {
        let remark = self.remark(key, what);
        self.changed.push(remark);
    }

    /// A key that cannot be carried over: why, and what to do.
    pub(super) fn lose(&mut self, key: &str, why: impl std::fmt::Display) {
        let remark = self.remark(key, why);
        self.lost.push(remark);
        self.lost_keys.push(key.to_owned());
    }

    fn remark(&self, key: &str, what: impl std::fmt::Display) -> Remark {
        // Of `datasets[0].type` the line of `datasets` is known.
        let line = self.file.get(key.split('[').next().unwrap_or(key)).map(|setting| setting.line);
        let shown = self.file.get(key).map(|setting| shortened(&yaml_value(&setting.value)));
        let text = match shown {
            Some(value) => format!("{key}: {value}: {what}"),
            None => format!("{key}: {what}"),
        };
        // Keys and names are another program's text.
        Remark { line, text: printable(&text).replace('\n', "\\n") }
    }

    /// The run file, whose settings are within their ranges.
    pub(super) fn run_file(&self) -> anyhow::Result<String> {
        let overrides = self.carried.iter().map(|carried| {
            let place = match carried.line {
                Some(line) => format!("{}:{line}: {}:", self.file.path, carried.keys),
                None => format!("{}: {}:", self.file.path, carried.keys),
            };
            Override::parsed(&place, carried.key, &yaml_value(&carried.value))
        });
        let settings = Settings::resolve(None, overrides.collect::<Result<_, _>>()?)?;
        settings.validate(Purpose::Other)?;
        let mut head = vec![format!(
            "From {}, a configuration of {}; beside each value what it came from.",
            self.file.path, self.program
        )];
        if !self.lost_keys.is_empty() {
            head.push(format!("Not carried over: {}.", self.lost_keys.join(", ")));
        }
        debug_assert!(self.carried.iter().all(|carried| keys().iter().any(|key| key.path == carried.key)));
        Ok(commented(&head, |key| {
            let carried = self.carried.iter().find(|carried| carried.key == key.path)?;
            Some(Line { set: true, value: carried.value.clone(), comment: carried.from.clone() })
        }))
    }

    /// Says on stderr what changed its meaning and what is left out, a line each.
    pub(super) fn report(&mut self) {
        eprintln!("{} settings carried over", self.carried.len());
        for (title, remarks) in [("changed", &mut self.changed), ("not carried over", &mut self.lost)] {
            remarks.sort_by_key(|remark| remark.line);
            for Remark { line, text } in remarks {
                let line = line.map_or(String::new(), |line| format!("{line}:"));
                eprintln!("{title}: {}:{line} {text}", self.file.path);
            }
        }
        if !self.needless.is_empty() {
            eprintln!("not needed here: {}", self.needless.join(", "));
        }
    }
}

fn matches(name: &str, key: &str) -> bool {
    name.strip_suffix('*').map_or(name == key, |beginning| key.starts_with(beginning))
}

/// Whether a value asks for nothing.
pub(super) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.trim(), "" | "none" | "no"),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_off),
    }
}

/// Enough of a value to recognize it by.
fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
