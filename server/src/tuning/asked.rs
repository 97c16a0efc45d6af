//! What a request for a job says: OpenAI's fields, and any setting of a run file that is a client's to
//! choose.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Setting;
use crate::error::ApiError;
use crate::fields::Fields;

/// Settings that a client may choose, and those among them that it may not: what is the server's own, and
/// what names files.
const OPEN: [&str; 5] = ["adapter.", "optimizer.", "schedule.", "training.", "data."];
const CLOSED: [&str; 7] = [
    "adapter.init_from",
    "data.train",
    "data.eval",
    "data.chat_template",
    "optimizer.memory",
    "training.activation_offloading",
    "training.frozen_activations",
];
/// Metadata of a job, as OpenAI bounds it.
const MOST_METADATA: usize = 16;
const MOST_SUFFIX: usize = 64;
const MOST_SETTINGS: usize = 100;
/// All fields of a request. One that is misspelt would be missed when the job has trained for hours.
const FIELDS: [&str; 10] = [
    "model",
    "training_file",
    "validation_file",
    "suffix",
    "seed",
    "hyperparameters",
    "method",
    "settings",
    "metadata",
    "integrations",
];

/// A request for a job.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) training_file: String,
    pub(super) validation_file: Option<String>,
    pub(super) suffix: String,
    pub(super) settings: Vec<Setting>,
    /// A factor to the learning rate.
    pub(super) rate: f64,
    pub(super) metadata: BTreeMap<String, String>,
}

impl Asked {
    pub(super) fn read(fields: &Fields) -> Result<Self, ApiError> {
        fields.only(&FIELDS)?;
        fields.refuse("integrations", |value| value.as_array().is_some_and(Vec::is_empty))?;
        let suffix = fields.text("suffix")?.unwrap_or_default().to_owned();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if suffix.len() > MOST_SUFFIX || !suffix.chars().all(is_plain) {
            let message = format!("`suffix` has at most {MOST_SUFFIX} of A-Z, a-z, 0-9, `.`, `_` and `-`");
            return Err(ApiError::field("suffix", message));
        }
        let mut chosen = Chosen { settings: Vec::new(), rate: 1.0 };
        if let Some(hyperparameters) = fields.object("hyperparameters")? {
            chosen.hyperparameters(&hyperparameters, "hyperparameters")?;
        }
        if let Some(method) = fields.object("method")? {
            match method.required_text("type").map_err(|error| error.within("method"))? {
                "supervised" => {}
                other => {
                    let message = format!(
                        "`method.type` must be \"supervised\", and is {other:?}: other methods are not there \
                         yet"
                    );
                    return Err(ApiError::field("method.type", message));
                }
            }
            method.only(&["type", "supervised"]).map_err(|error| error.within("method"))?;
            if let Some(of) = method.object("supervised").map_err(|error| error.within("method"))? {
                let within = |error: ApiError| error.within("method.supervised");
                of.only(&["hyperparameters"]).map_err(within)?;
                if let Some(of) = of.object("hyperparameters").map_err(within)? {
                    chosen.hyperparameters(&of, "method.supervised.hyperparameters")?;
                }
            }
        }
        if let Some(seed) = fields.count("seed", 0)? {
            chosen.set("seed", "training.seed", seed.into());
        }
        if let Some(settings) = fields.value("settings") {
            chosen.settings("settings", "", settings)?;
        }
        Ok(Asked {
            model: fields.required_text("model")?.to_owned(),
            training_file: fields.required_text("training_file")?.to_owned(),
            validation_file: fields.text("validation_file")?.map(str::to_owned),
            suffix,
            settings: chosen.settings,
            rate: chosen.rate,
            metadata: metadata(fields)?,
        })
    }
}

fn metadata(fields: &Fields) -> Result<BTreeMap<String, String>, ApiError> {
    let Some(value) = fields.value("metadata") else { return Ok(BTreeMap::new()) };
    let refused = || {
        let message = format!(
            "`metadata` must be an object of at most {MOST_METADATA} strings, with keys of up to 64 \
             characters and values of up to 512"
        );
        ApiError::field("metadata", message)
    };
    let pair = |(key, value): (&String, &Value)| {
        let value = value.as_str()?;
        (key.chars().count() <= 64 && value.chars().count() <= 512).then(|| (key.clone(), value.to_owned()))
    };
    let entries = value.as_object().filter(|entries| entries.len() <= MOST_METADATA).ok_or_else(refused)?;
    entries.iter().map(pair).collect::<Option<_>>().ok_or_else(refused)
}

struct Chosen {
    settings: Vec<Setting>,
    rate: f64,
}

impl Chosen {
    fn set(&mut self, field: &str, key: &str, value: Value) {
        self.settings.retain(|setting| setting.key != key);
        self.settings.push(Setting { field: field.to_owned(), key: key.to_owned(), value });
    }

    /// OpenAI's own three; `auto` leaves one to the server.
    fn hyperparameters(&mut self, fields: &Fields, within: &str) -> Result<(), ApiError> {
        let known = ["n_epochs", "batch_size", "learning_rate_multiplier"];
        fields.only(&known).map_err(|error| error.within(within))?;
        let is_auto = |name: &str| fields.value(name).is_some_and(|value| value == "auto");
        for (name, key) in [("n_epochs", "training.epochs"), ("batch_size", "training.batch_size")] {
            if is_auto(name) {
                continue;
            }
            if let Some(count) = fields.count(name, 1).map_err(|error| error.within(within))? {
                self.set(&format!("{within}.{name}"), key, count.into());
            }
        }
        let name = "learning_rate_multiplier";
        if !is_auto(name)
            && let Some(rate) = fields.number(name, 1e-6..=1e6).map_err(|error| error.within(within))?
        {
            self.rate = rate;
        }
        Ok(())
    }

    /// Settings of a run file: `{"adapter": {"r": 8}}` or `{"adapter.r": 8}`.
    fn settings(&mut self, field: &str, path: &str, value: &Value) -> Result<(), ApiError> {
        let is_open = OPEN.iter().any(|open| path.starts_with(open));
        if path.is_empty() || (!is_open && value.is_object()) {
            let Some(entries) = value.as_object() else {
                let message = "`settings` must be an object of a run file's keys, such as {\"adapter.r\": 8}";
                return Err(ApiError::field("settings", message));
            };
            return entries.iter().try_for_each(|(key, value)| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                self.settings(&format!("settings.{path}"), &path, value)
            });
        }
        let whole = value == "full" && path == "adapter.method";
        let is_closed =
            CLOSED.iter().any(|closed| path == *closed || path.starts_with(&format!("{closed}.")));
        if !is_open || is_closed || whole {
            let message = format!("`{path}` is not for a job to choose; leave it out");
            return Err(ApiError::field(field, message));
        }
        if self.settings.len() == MOST_SETTINGS {
            return Err(ApiError::field("settings", "there are too many settings"));
        }
        self.set(field, path, value.clone());
        Ok(())
    }
}
