//! Another program's settings: read as a run file is, YAML or JSON, so that messages can say on which line a
//! setting stands.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::{FileText, Node, Origin, Value, yaml};
use crate::error::user;

/// A file of settings at its top level.
#[derive(Debug)]
pub(crate) struct Foreign {
    /// The file as the user named it.
    pub(crate) path: String,
    /// In the file's order, keys unique.
    pub(crate) settings: Vec<Setting>,
}

/// A key with its value.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) value: Json,
    /// Where the key stands, from 1.
    pub(crate) line: usize,
}

impl Foreign {
    /// Reads a file of keys.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let file = FileText::read(path, "configuration")?;
        let tree = yaml::parse(&file.text).map_err(|problem| problem.report(Some(&file)))?;
        let Value::Map(entries) = &tree.value else {
            return Err(user(format!(
                "{}: this is {}; a file of settings is expected",
                file.path,
                tree.describe()
            )));
        };
        let line = |origin: &Origin| match origin {
            Origin::File(span) => 1 + file.text[..span.start].matches('\n').count(),
            _ => 1,
        };
        let settings = entries
            .iter()
            .map(|(key, value)| Setting {
                key: key.name.clone(),
                value: json(value),
                line: line(&key.origin),
            })
            .collect();
        Ok(Foreign { path: file.path, settings })
    }

    /// What a key is set to; null is not set.
    pub(crate) fn get(&self, key: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.key == key && !setting.value.is_null())
    }
}

fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Signed(value) => (*value).into(),
        Value::Unsigned(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::String(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => {
            let map: Map<String, Json> =
                entries.iter().map(|(key, value)| (key.name.clone(), json(value))).collect();
            map.into()
        }
    }
}
