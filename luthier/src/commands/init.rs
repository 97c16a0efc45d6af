//! `luthier init`: writes a run file with comments, its values settled from the model and the data at hand.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use data::{ChatTemplate, Dataset, Format, Tokenizer, template};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use train::StepPlan;

use crate::cli::{self, Global};
use crate::error::user;
use crate::run_file::{Entry, Line, Override, Purpose, Quantization, RunFile, Settings, commented};
use crate::setup::{self, Base, Needs};
use crate::terminal::{self, bytes, count};

/// The keys that a beginner may want; the others are shown as comments unless they are away from their
/// defaults.
const BASIC: [&str; 22] = [
    "model",
    "quantization",
    "data.train",
    "data.eval_fraction",
    "data.format",
    "data.train_on",
    "data.chat_template",
    "data.max_length",
    "data.packing",
    "adapter.method",
    "adapter.r",
    "adapter.alpha",
    "adapter.dropout",
    "adapter.target_modules",
    "optimizer.name",
    "optimizer.learning_rate",
    "schedule.name",
    "schedule.warmup",
    "training.epochs",
    "training.batch_size",
    "training.seed",
    "output",
];

/// The built-in template that marks turns with plain words.
const PLAIN: &str = "vicuna";
/// Examples from which on some are held out.
const ENOUGH_TO_HOLD_OUT: usize = 200;

pub(super) fn run(args: cli::Init, global: &Global) -> anyhow::Result<ExitCode> {
    check_free(&args.output)?;
    let mut proposal = Proposal::of(&args)?;
    if let Some(model) = &args.model {
        proposal.look(&Base::open(model)?, global.threads())?;
    }
    let text = proposal.text();
    write_new(&args.output, &text)?;
    proposal.found.iter().for_each(|line| eprintln!("{line}"));
    if args.output != Path::new("-") {
        let output = terminal::quoted(&args.output);
        eprintln!("wrote {output}; look at it, then check it with `luthier train {output} --dry-run`");
    }
    Ok(ExitCode::SUCCESS)
}

/// A run file that comes into being.
struct Proposal {
    run: RunFile,
    /// The examples as they were named.
    data: Vec<String>,
    /// What was found, a line each.
    found: Vec<String>,
    /// Why a key has its value.
    notes: Vec<(&'static str, String)>,
}

impl Proposal {
    fn of(args: &cli::Init) -> anyhow::Result<Self> {
        let mut overrides: Vec<Override> = Vec::new();
        overrides.extend(args.model.as_ref().map(|model| Override::flag("--model", "model", model)));
        overrides.extend(match args.data.as_slice() {
            [] => None,
            [one] => Some(Override::flag("--data", "data.train", one)),
            many => Some(Override::list("--data", "data.train", many)),
        });
        let settings = Settings::resolve(None, overrides)?;
        settings.validate(Purpose::Other)?;
        let mut run = settings.run;
        if args.model.is_some() || !args.data.is_empty() {
            run.output = Some(free_folder());
        }
        Ok(Proposal { run, data: args.data.clone(), found: Vec::new(), notes: Vec::new() })
    }

    /// Settles what depends on the model, and on the data if there are any.
    fn look(&mut self, base: &Base, threads: usize) -> anyhow::Result<()> {
        let config = &base.config;
        self.found.push(format!(
            "model: {}, {} parameters, a context of {} tokens",
            config.family.model_type(),
            count(config.parameter_count() as f64),
            config.max_position_embeddings
        ));
        let settled = setup::settle_by_model(&mut self.run, config);
        self.settled(settled);
        if !self.run.data.sources().is_empty() {
            self.look_at_data(base, &base.tokenizer()?)?;
        }
        self.settle_memory(base, threads)
    }

    fn look_at_data(&mut self, base: &Base, tokenizer: &Tokenizer) -> anyhow::Result<()> {
        let load = |run: &RunFile| setup::training_examples(run, Some(&base.config), tokenizer, None);
        let own = ChatTemplate::resolve(None, tokenizer)?.is_some();
        let data = match load(&self.run) {
            Err(error) if own => return Err(error),
            Err(error) => {
                // Conversations need a template, and the tokenizer has none.
                let name = fitting_template(tokenizer);
                self.run.data.chat_template = Some(name.to_owned());
                let fits = if name == PLAIN { "needs no special tokens" } else { "has its special tokens" };
                let why = format!("the tokenizer has no template of its own; {name} {fits}");
                self.note("data.chat_template", why);
                load(&self.run).map_err(|_| error)?
            }
            Ok(data) => data,
        };
        self.describe(&data, own);
        if data.examples.len() >= ENOUGH_TO_HOLD_OUT {
            self.run.data.eval_fraction = Some(0.05);
            self.note("data.eval_fraction", "so that you see when the run begins to learn by heart".into());
        }
        let (train, eval) = match self.run.data.eval_fraction {
            Some(fraction) => {
                let (train, eval) = data.split(fraction, self.run.training.seed)?;
                (train, Some(eval))
            }
            None => (data, None),
        };
        let settled = setup::settle_by_data(&mut self.run, &base.config, &train, eval.as_ref());
        self.settled(settled);
        let (epochs, batch) = (setup::epochs(&self.run), setup::batch_size(&self.run));
        let steps = StepPlan::new(&train, setup::order(&self.run), batch, epochs, None).steps();
        self.note("training.epochs", format!("{steps} steps with these examples"));
        Ok(())
    }

    /// Notes why settings that were left open became what they are.
    fn settled(&mut self, settled: Vec<setup::Settled>) {
        for (what, why) in settled {
            let key = match what {
                "rate" => "optimizer.learning_rate",
                "batch" => "training.batch_size",
                _ => "training.epochs",
            };
            self.note(key, why);
        }
    }

    /// The examples in numbers.
    fn describe(&mut self, data: &Dataset, own_template: bool) {
        let report = &data.report;
        for file in &report.files {
            self.found.push(format!(
                "{}: {} records, format {}",
                file.path.display(),
                file.records,
                file.format
            ));
        }
        self.found.push(format!(
            "examples: {}, {} tokens, the longest {} of them; {} carry loss",
            report.examples,
            count(report.tokens as f64),
            report.longest,
            count(report.trained_tokens as f64)
        ));
        if report.truncated > 0 {
            let cut = report.truncated;
            self.note(
                "data.max_length",
                format!("{cut} of {} examples are longer and are cut off", report.examples),
            );
        }
        let chats =
            |file: &data::dataset::FileReport| matches!(file.format, Format::Messages | Format::Sharegpt);
        if own_template && report.files.iter().any(chats) {
            self.note("data.chat_template", "the tokenizer has one".into());
        }
        self.found.extend(report.warnings().iter().map(|warning| format!("warning: {warning}")));
    }

    /// Four bits, if the run fits into what is free with them only.
    fn settle_memory(&mut self, base: &Base, threads: usize) -> anyhow::Result<()> {
        let Some(budget) = setup::available_memory() else { return Ok(()) };
        let (config, stored) = (&base.config, base.stored.as_ref());
        let choose = |run: &RunFile| -> anyhow::Result<_> {
            let trained = setup::trained(run, config, &base.name)?;
            let needs = Needs::expected(run, config, threads);
            let plan = |sizes| setup::memory_plan(run, config, stored, &trained, needs, sizes);
            Ok(setup::choose(run, trained.layers(config), needs, Some(budget), &plan))
        };
        let mut choice = choose(&self.run)?;
        if !choice.fits && config.quantization.is_none() {
            let smaller = RunFile { quantization: Some(Quantization::NF4), ..self.run.clone() };
            let four_bits = choose(&smaller)?;
            if four_bits.fits {
                let why = format!("without it the run needs {}", bytes(choice.plan.total()));
                self.note("quantization", why);
                (self.run, choice) = (smaller, four_bits);
            }
        }
        let verdict = if choice.fits { "fits" } else { "does not fit; see `luthier plan`" };
        let (needed, free) = (bytes(choice.plan.total()), bytes(budget));
        self.found.push(format!("memory: at most {needed}, of {free} that are free here: {verdict}"));
        Ok(())
    }

    fn note(&mut self, key: &'static str, why: String) {
        self.notes.push((key, why));
    }

    fn text(&self) -> String {
        let mut tree = serde_json::to_value(&self.run).expect("settings are plain data");
        if self.data.len() > 1 {
            tree["data"]["train"] = json!(self.data);
        }
        let mut head = vec![
            "A run of luthier: `luthier train FILE`. Lines that begin with # are comments, or settings that are at their \
             defaults; remove the # to change one."
                .to_owned(),
        ];
        head.extend(self.found.iter().cloned());
        commented(&head, |key| Some(self.line(key, &tree)))
    }

    fn line(&self, key: &Entry, tree: &Value) -> Line {
        let pointer = format!("/{}", key.path.replace('.', "/"));
        let value = tree.pointer(&pointer).cloned().unwrap_or_default();
        let notes: Vec<&str> =
            self.notes.iter().filter(|(of, _)| *of == key.path).map(|(_, why)| why.as_str()).collect();
        let comment = match notes.as_slice() {
            [] => key.comment.clone(),
            _ => format!("{} Here: {}.", key.comment, notes.join("; ")),
        };
        Line { set: BASIC.contains(&key.path.as_str()) || value != key.default, value, comment }
    }
}

/// The run file that fits no model and no data in particular.
#[cfg(test)]
fn generic() -> String {
    Proposal { run: RunFile::default(), data: Vec::new(), found: Vec::new(), notes: Vec::new() }.text()
}

/// The first name of a run folder that is not taken.
fn free_folder() -> PathBuf {
    let names = std::iter::once("run".to_owned()).chain((2..).map(|n| format!("run-{n}")));
    names.map(PathBuf::from).find(|name| !name.exists()).expect("there are names enough")
}

/// A built-in template that ends turns with a special token of this tokenizer, or else one of plain words.
fn fitting_template(tokenizer: &Tokenizer) -> &'static str {
    template::fitting(tokenizer).first().copied().unwrap_or(PLAIN)
}

/// Refuses a place that is taken, before any work is done for it.
pub(super) fn check_free(output: &Path) -> anyhow::Result<()> {
    match output != Path::new("-") && output.symlink_metadata().is_ok() {
        true => Err(user(format!(
            "{} exists already; remove it, or name another file by --output",
            output.display()
        ))),
        false => Ok(()),
    }
}

/// Writes a file that must not exist, whole; `-` is stdout.
pub(super) fn write_new(output: &Path, text: &str) -> anyhow::Result<()> {
    if output == Path::new("-") {
        return terminal::print(text);
    }
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let mut file: NamedTempFile<std::fs::File> = tempfile::Builder::new()
            .prefix(".run.")
            .make_in(folder, |path| std::fs::File::create_new(path))?;
        file.write_all(text.as_bytes())?;
        file.persist_noclobber(output).map_err(|error| error.error)
    };
    write().map(drop).with_context(|| format!("cannot write {}", output.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_file::keys;

    #[test]
    fn the_generic_file_holds_every_key_with_its_default() {
        let text = generic();
        let names = keys();
        let uncommented: String = text
            .lines()
            .map(|line| {
                let bare = line.trim_start().trim_start_matches("# ");
                let name = bare.split(':').next().unwrap_or_default();
                let shown =
                    names.iter().any(|key| key.path.ends_with(&format!(".{name}")) || key.path == name);
                let indent = &line[..line.len() - line.trim_start().len()];
                if line.trim_start().starts_with("# ") && shown && indent.len() < 4 {
                    format!("{indent}{bare}\n")
                } else {
                    format!("{line}\n")
                }
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            let path = folder.path().join("run.yaml");
            std::fs::write(&path, text).unwrap();
            Settings::resolve(Some(&path), Vec::new()).unwrap()
        };
        assert_eq!(read(&text).run, RunFile::default(), "{text}");
        let settings = read(&uncommented);
        assert_eq!(settings.run, RunFile::default());
        for key in names {
            assert!(settings.is_set(&key.path), "{} stands in the file:\n{uncommented}", key.path);
        }
    }

    #[test]
    fn the_guide_shows_the_generic_file() {
        let guide = include_str!("../../../docs/guide/run-file.md");
        let shown = guide.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        assert_eq!(shown, generic(), "docs/guide/run-file.md shows what `luthier init --output -` writes");
    }

    #[test]
    fn every_basic_key_is_one() {
        for key in BASIC {
            assert!(keys().iter().any(|known| known.path == key), "{key}");
        }
    }
}
