//! `luthier adapters`: an adapter out of the difference of two models, and adapters of other ranks.

use std::process::ExitCode;

use compute::Precision;
use data::Tokenizer;
use model::adapter::extract::{Extracted, Extraction, LeftOut};
use model::adapter::merge::Difference;
use model::adapter::peft::folder::AdapterFiles;
use model::adapter::peft::resize::{Ranks, Resized, kept};
use model::adapter::peft::{PeftConfig, Selection, resize as other_ranks, targets};
use model::checkpoint::{Staging, copy_tokenizer};
use model::{Decoder, ModelFolder};
use serde_json::json;

use super::proof;
use crate::cli::{self, Global};
use crate::error::user;
use crate::hub;
use crate::run_folder;
use crate::setup::gguf;
use crate::terminal::{self, Progress, Table};

/// Tokens of the text that models are compared by which are read at most.
const TOKENS: usize = 64;

/// `luthier adapters extract`.
pub(super) fn extract(args: cli::Extract, global: &Global) -> anyhow::Result<ExitCode> {
    let staging = Staging::folder(&args.output)?;
    let open = |name: &str| anyhow::Ok(ModelFolder::open(&hub::resolve_model(name)?)?);
    let (base, tuned, device) = (open(&args.base)?, open(&args.tuned)?, global.device()?);
    let settings = PeftConfig {
        r: args.rank as usize,
        lora_alpha: f64::from(args.rank),
        target_modules: Some(selection(&args.target_modules)),
        modules_to_save: args.modules_to_save.clone(),
        base_model_name_or_path: Some(args.base.clone()),
        ..PeftConfig::default()
    };
    let total = targets::resolve(&settings, &base.config)?.targets.len() as u64;
    let mut progress = Progress::items("extracting", total, 0);
    let mut done = 0;
    let extraction = model::adapter::extract::extract(&base, &tuned, &settings, &device, &mut |layer| {
        done += 1;
        progress.set(done, &layer.module);
    })?;
    progress.finish("");
    if extraction.layers.iter().all(|layer| layer.squares == 0.0) && extraction.left_out.is_empty() {
        return Err(user(format!(
            "{} has the weights of {}: there is nothing to extract",
            args.tuned, args.base
        )));
    }
    extraction.adapter.save(staging.path(), &extraction.config)?;
    let proof = Proof::of(&base, &tuned, &extraction, &device)?;
    match tuned.gguf.as_ref().map(gguf::unpack_tokenizer).transpose()? {
        Some(unpacked) => copy_tokenizer(unpacked.path(), staging.path(), true)?,
        None => copy_tokenizer(&tuned.path, staging.path(), true)?,
    }
    staging.publish()?;
    extraction.left_out.iter().for_each(|tensor| eprintln!("warning: {}", warning(tensor)));
    let sum = |of: fn(&Extracted) -> f64| extraction.layers.iter().map(of).sum::<f64>();
    let (squares, lost) = (sum(|layer| layer.squares), sum(|layer| layer.lost));
    if args.json {
        let layers = extraction.layers.iter().map(|layer| {
            json!({
                "module": layer.module,
                "rank": layer.rank,
                "norm": layer.squares.sqrt(),
                "kept": kept(layer.squares, layer.lost),
            })
        });
        let left_out = extraction.left_out.iter().map(|tensor| {
            json!({"tensor": tensor.name, "relative_difference": tensor.relative, "module_to_save": tensor.savable})
        });
        terminal::print_json(&json!({
            "output": args.output.display().to_string(),
            "kept": kept(squares, lost),
            "layers": layers.collect::<Vec<_>>(),
            "left_out": left_out.collect::<Vec<_>>(),
            "proof": proof.json(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["layer", "rank", "norm of the difference", "kept"]);
    for layer in &extraction.layers {
        let norm = format!("{:.3e}", layer.squares.sqrt());
        table.row([layer.module.clone(), layer.rank.to_string(), norm, percent(layer.squares, layer.lost)]);
    }
    terminal::print_line(format!("{}\n{table}", args.output.display()))?;
    terminal::print_line(format!(
        "{} of all differences of these layers is kept, as a sum of squares",
        percent(squares, lost)
    ))?;
    terminal::print_line(proof.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// What was typed as targets: names, or one expression.
fn selection(typed: &[String]) -> Selection {
    match typed {
        [one]
            if one.eq_ignore_ascii_case(targets::ALL_LINEAR) || one.contains(['*', '\\', '(', '[', '|']) =>
        {
            Selection::Expression(one.clone())
        }
        names => Selection::List(names.to_vec()),
    }
}

fn percent(squares: f64, lost: f64) -> String {
    format!("{:.2} %", 100.0 * kept(squares, lost))
}

fn warning(tensor: &LeftOut) -> String {
    let LeftOut { name, relative, savable } = tensor;
    let differs = format!("{name} differs by {:.2} % and is not in the adapter", 100.0 * relative);
    match savable {
        Some(module) => format!("{differs}; take it over by --modules-to-save {module}"),
        None => format!("{differs}, nor can it be in one of this kind"),
    }
}

/// How far base and adapter are from the tuned model, in logits of a text.
struct Proof {
    tokens: usize,
    /// The base alone from the tuned model.
    base: Difference,
    /// Base and adapter from the tuned model.
    adapted: Difference,
}

impl Proof {
    /// One model is in memory at a time.
    fn of(
        base: &ModelFolder,
        tuned: &ModelFolder,
        extraction: &Extraction,
        device: &compute::Device,
    ) -> anyhow::Result<Self> {
        let most = TOKENS.min(base.config.max_position_embeddings);
        let text: Vec<u32> = match Tokenizer::load(&tuned.path) {
            Ok(tokenizer) => tokenizer.encode(proof::TEXT, true)?.ids.into_iter().take(most).collect(),
            Err(_) => Vec::new(),
        };
        let logits = |folder: &ModelFolder, adapter| {
            let decoder = Decoder::load_for(folder, None, device, Precision::F32, None)?;
            anyhow::Ok(match text.is_empty() {
                false => decoder.logits_of(adapter, std::slice::from_ref(&text)),
                // A model without a tokenizer reads fixed numbers.
                true => decoder.probe(adapter),
            })
        };
        let expected = logits(tuned, None)?;
        let (alone, adapted) = (logits(base, None)?, logits(base, Some(&extraction.adapter))?);
        Ok(Proof {
            tokens: expected.rows(),
            base: Difference::between(&expected, &alone),
            adapted: Difference::between(&expected, &adapted),
        })
    }

    fn json(&self) -> serde_json::Value {
        let of = |difference: Difference| {
            let Difference { largest, mean, relative } = difference;
            json!({"largest": largest, "mean": mean, "relative": relative})
        };
        json!({"tokens": self.tokens, "base": of(self.base), "base_and_adapter": of(self.adapted)})
    }
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "logits of {} tokens, apart from the tuned model's:", self.tokens)?;
        let line = |what: &str, Difference { largest, mean, .. }: Difference| {
            format!("{what}  {mean:.3e} in the mean, {largest:.3e} at most")
        };
        write!(f, "{}\n{}", line("base            ", self.base), line("base and adapter", self.adapted))
    }
}

/// `luthier adapters resize`.
pub(super) fn resize(args: cli::Resize) -> anyhow::Result<ExitCode> {
    let staging = Staging::folder(&args.output)?;
    let folder = hub::resolve_adapter(&args.adapter)?;
    run_folder::require_adapter(&folder)?;
    let files = AdapterFiles::open(&folder)?;
    let ranks = match (args.rank, args.keep) {
        (Some(rank), _) => Ranks::All(rank as usize),
        (None, keep) => Ranks::Keeping(keep.expect("one of them is required")),
    };
    let updates = model::adapter::peft::updates(&files.config, &files.tensors)?.len() as u64;
    let mut progress = Progress::items("resizing", updates, 0);
    let mut done = 0;
    let resized = other_ranks::resize(&files, ranks, staging.path(), &mut |update| {
        done += 1;
        progress.set(done, &update.module);
    })?;
    progress.finish("");
    copy_tokenizer(&folder, staging.path(), true)?;
    staging.publish()?;
    let sum = |of: fn(&Resized) -> f64| resized.iter().map(of).sum::<f64>();
    let (squares, lost) = (sum(|update| update.squares), sum(|update| update.lost));
    if args.json {
        let updates = resized.iter().map(|update| {
            json!({
                "module": update.module,
                "rank": update.to,
                "rank_before": update.from,
                "kept": kept(update.squares, update.lost),
            })
        });
        terminal::print_json(&json!({
            "output": args.output.display().to_string(),
            "kept": kept(squares, lost),
            "updates": updates.collect::<Vec<_>>(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["layer", "rank before", "rank", "kept"]);
    for update in &resized {
        let (before, now) = (update.from.to_string(), update.to.to_string());
        table.row([update.module.clone(), before, now, percent(update.squares, update.lost)]);
    }
    terminal::print_line(format!("{}\n{table}", args.output.display()))?;
    terminal::print_line(format!("{} of all updates is kept, as a sum of squares", percent(squares, lost)))?;
    Ok(ExitCode::SUCCESS)
}
