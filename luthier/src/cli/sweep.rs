//! `sweep`.

use std::path::PathBuf;

use clap::Args;

use super::RunArgs;
use super::settings::{Set, Shortcuts};
use crate::error::user;
use crate::run_file::{Rates, Sweep as Runs};

#[derive(Args, Debug)]
pub(crate) struct Sweep {
    /// The sweep file; with --learning-rates a run file, if any
    #[arg(value_name = "SWEEP.yaml")]
    file: Option<PathBuf>,
    /// Try learning rates from the first to the second, such as 1e-5..1e-3, in place of a sweep file
    #[arg(long, value_name = "LOW..HIGH", allow_hyphen_values = true)]
    learning_rates: Option<Rates>,
    /// How many learning rates [default: 8]
    #[arg(long, value_name = "N", requires = "learning_rates")]
    count: Option<u64>,
    /// The base model: a folder or a hub id (`model`)
    #[arg(long, value_name = "M")]
    model: Option<String>,
    /// The examples to train on (`data.train`); may be repeated
    #[arg(long, value_name = "FILE")]
    data: Vec<String>,
    /// The examples to evaluate on (`data.eval`)
    #[arg(long, value_name = "FILE")]
    eval_data: Option<String>,
    /// The folder for the folders of the runs
    #[arg(long, value_name = "DIR")]
    output: Option<String>,
    /// Say nothing on stderr but warnings and errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    shortcuts: Shortcuts,
    #[command(flatten)]
    set: Set,
}

impl Sweep {
    /// What would be typed for a sweep file with the flags of a run.
    pub(crate) fn of_file(file: PathBuf, output: Option<String>, run: &RunArgs) -> Self {
        let RunArgs { model, data, eval_data, shortcuts, set, .. } = run.clone();
        let (learning_rates, count) = (None, None);
        let file = Some(file);
        Sweep {
            file,
            learning_rates,
            count,
            model,
            data,
            eval_data,
            output,
            quiet: true,
            json: false,
            shortcuts,
            set,
        }
    }

    /// The runs that were asked for.
    pub(crate) fn runs(&self) -> anyhow::Result<Runs> {
        let Sweep { file, model, data, eval_data, shortcuts, set, .. } = self;
        let (model, data, eval_data) = (model.clone(), data.clone(), eval_data.clone());
        let (shortcuts, set) = (shortcuts.clone(), set.clone());
        let overrides = RunArgs { run: None, model, data, eval_data, shortcuts, set }.overrides()?;
        let output = self.output.as_deref();
        match (self.learning_rates, file) {
            (Some(rates), run) => Runs::of_rates(run.as_deref(), &overrides, rates, self.count, output),
            (None, Some(file)) => Runs::read(file, &overrides, output),
            (None, None) => Err(user(
                "`luthier sweep` needs a sweep file, or --learning-rates such as 1e-5..1e-3; see `luthier sweep \
                 --help`",
            )),
        }
    }
}
