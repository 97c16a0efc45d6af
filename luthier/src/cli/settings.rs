//! The settings of a run as they can be typed: a file, `--set`, and flags for the keys that are set most.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::run_file::{Override, Settings};

/// What a run is about, for every command that takes a whole run file.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct RunArgs {
    /// The run file; its flags and --set win over it
    #[arg(value_name = "RUN.yaml", value_parser = parse_run_file)]
    pub(crate) run: Option<PathBuf>,
    /// The base model: a folder or a hub id (`model`)
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    /// The examples to train on (`data.train`); may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Vec<String>,
    /// The examples to evaluate on (`data.eval`)
    #[arg(long, value_name = "FILE")]
    pub(crate) eval_data: Option<String>,
    #[command(flatten)]
    pub(crate) shortcuts: Shortcuts,
    #[command(flatten)]
    pub(crate) set: Set,
}

/// A run file's name, and no setting that lacks its flag.
fn parse_run_file(text: &str) -> Result<PathBuf, String> {
    match text.contains('=') && !Path::new(text).exists() {
        true => Err(format!("expected a run file; a setting follows its flag, as in --set {text}")),
        false => Ok(text.into()),
    }
}

/// Flags for the keys that are set most.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Settings")]
pub(crate) struct Shortcuts {
    /// The learning rate at its peak (`optimizer.learning_rate`)
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    lr: Option<String>,
    /// Passes over the examples (`training.epochs`)
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    epochs: Option<String>,
    /// Rows of an optimizer step (`training.batch_size`)
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    batch_size: Option<String>,
    /// The rank of the adapter (`adapter.r`)
    #[arg(long, value_name = "R", allow_hyphen_values = true)]
    rank: Option<String>,
    /// Tokens of the longest example (`data.max_length`)
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    max_length: Option<String>,
    /// A chat template in place of the model's own: a file or a built-in name (`data.chat_template`)
    #[arg(long, value_name = "TEMPLATE")]
    chat_template: Option<String>,
    /// The memory to fit into, such as 48GB (`memory`)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// How the base is held: nf4, fp4, int4, int3, int2 or none (`quantization`)
    #[arg(long, value_name = "TYPE")]
    quantization: Option<String>,
}

/// Settings by their names in the run file.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Set {
    /// A setting that wins over the run file, such as optimizer.learning_rate=1e-4; may be repeated
    #[arg(long = "set", value_name = "KEY.PATH=VALUE", help_heading = "Settings")]
    pub(crate) set: Vec<String>,
}

impl RunArgs {
    /// The run file with the flags and `--set` laid over it.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        Settings::resolve(self.run.as_deref(), self.overrides()?)
    }

    /// All that was typed of the settings, in the order in which it wins: `--set`, then flags.
    pub(crate) fn overrides(&self) -> anyhow::Result<Vec<Override>> {
        let mut overrides = self.set.overrides()?;
        let text =
            |flag, key, value: &Option<String>| value.as_ref().map(|value| Override::flag(flag, key, value));
        overrides.extend(text("--model", "model", &self.model));
        overrides.extend(match self.data.as_slice() {
            [] => None,
            [one] => Some(Override::flag("--data", "data.train", one)),
            many => Some(Override::list("--data", "data.train", many)),
        });
        overrides.extend(text("--eval-data", "data.eval", &self.eval_data));
        overrides.extend(self.shortcuts.overrides()?);
        Ok(overrides)
    }
}

impl Shortcuts {
    fn overrides(&self) -> anyhow::Result<Vec<Override>> {
        let quantization = self.quantization.as_ref().map(|held| match held.as_str() {
            "none" => "null".to_owned(),
            _ => held.clone(),
        });
        let numbers = [
            ("--lr", "optimizer.learning_rate", &self.lr),
            ("--epochs", "training.epochs", &self.epochs),
            ("--batch-size", "training.batch_size", &self.batch_size),
            ("--rank", "adapter.r", &self.rank),
            ("--max-length", "data.max_length", &self.max_length),
            ("--memory", "memory", &self.memory),
            ("--quantization", "quantization", &quantization),
        ];
        let given = numbers.iter().filter_map(|(flag, key, value)| Some((flag, key, value.as_ref()?)));
        let mut overrides: Vec<_> =
            given.map(|(flag, key, value)| Override::parsed(flag, key, value)).collect::<Result<_, _>>()?;
        let template = self.chat_template.as_ref();
        overrides.extend(template.map(|name| Override::flag("--chat-template", "data.chat_template", name)));
        Ok(overrides)
    }
}

impl Set {
    /// The `--set` arguments, in order.
    pub(crate) fn overrides(&self) -> anyhow::Result<Vec<Override>> {
        Override::sets(&self.set)
    }
}

/// Lays `--set` over the run file, and flags that were given over both.
pub(super) fn resolve(
    run: Option<&Path>,
    flags: &[(&str, &str, &Option<String>)],
    set: &Set,
) -> anyhow::Result<Settings> {
    let mut overrides = set.overrides()?;
    for (flag, key, value) in flags {
        overrides.extend(value.as_ref().map(|value| Override::flag(flag, key, value)));
    }
    Settings::resolve(run, overrides)
}
