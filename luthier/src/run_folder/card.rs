//! The model card, `README.md`: what the Hugging Face hub shows, and what a person finds who opens the
//! folder.

use std::path::Path;

use model::checkpoint::write_whole;
use train::History;

use super::OfResult;
use crate::hub;
use crate::run_file::{Method, RunFile, TrainData};
use crate::setup;
use crate::terminal::quoted;

const CARD: &str = "README.md";

/// Whether there is a card. A run that was killed after its result has none.
pub(crate) fn has_card(folder: &Path) -> bool {
    folder.join(CARD).exists()
}

/// Writes the card of a finished run.
pub(crate) fn write_card(folder: &Path, run: &RunFile, base: &str, history: &History) -> anyhow::Result<()> {
    Ok(write_whole(&folder.join(CARD), card(folder, run, base, history).as_bytes())?)
}

fn card(folder: &Path, run: &RunFile, base: &str, history: &History) -> String {
    let name = folder.file_name().map_or("adapter".into(), |name| name.to_string_lossy().into_owned());
    let adapter = run.adapter.method != Method::Full;
    let init = run.adapter.init.engine();
    let written = setup::peft_config(run, base);
    let written = if init.changes_base() { written.with_beginning() } else { written };
    // The hub links a model by its id; a path of this machine would be no link.
    let known = hub::is_id(base);
    let shown = if known { base.to_owned() } else { file_name(base) };
    let mut card = String::from("---\n");
    if known {
        card += &format!("base_model: {}\n", base.split('@').next().unwrap_or(base));
    }
    card += if adapter { "library_name: peft\ntags:\n- lora\n- luthier\n" } else { "tags:\n- luthier\n" };
    card += &format!("---\n\n# {name}\n\n");
    card += &match adapter {
        true => format!(
            "A LoRA adapter of rank {} (alpha {}) for `{shown}`, trained with Luthier. PEFT loads this folder, and so does\n\
             `luthier chat --model BASE --adapter {}`.\n\n",
            written.r,
            written.lora_alpha,
            quoted(&name)
        ),
        false => format!("All weights of `{shown}`, fine-tuned with Luthier.\n\n"),
    };
    let mut row = |key: &str, value: String| card += &format!("| {key} | {value} |\n");
    row("setting", "value".into());
    row("---", "---".into());
    let files: Vec<String> = sources(run).iter().map(|name| format!("`{name}`")).collect();
    row("data", files.join(", "));
    row("longest example", format!("{} tokens", setup::max_length(run, None)));
    row("steps", format!("{} of {}", history.steps.len(), setup::rows_in_words(run, setup::batch_size(run))));
    row("learning rate", format!("{:e}", setup::learning_rate(run)));
    if init.changes_base() {
        let (r, name) = (run.adapter.r, init.name());
        row("began by", format!("{name} of rank {r}, which the folder has beside the result, subtracted"));
    }
    if let Some(quantization) = &run.quantization {
        row("base quantized to", format!("{:?}", quantization.kind).to_lowercase());
    }
    let OfResult { step, evaluation, forgetting, .. } = OfResult::of(run, history);
    if history.steps.last().is_some_and(|last| step < last.step) {
        row("result", format!("of step {step}"));
    }
    if let Some(of) = history.steps.iter().rfind(|of| of.step <= step) {
        row("training loss, last step", format!("{:.4}", of.loss));
    }
    if let Some(measured) = forgetting {
        row("divergence from the base", format!("{:.4} nats a token", measured.forgetting_kl));
    }
    if let Some(evaluation) = evaluation {
        row("held-out loss", format!("{:.4} (step {})", evaluation.eval_loss, evaluation.step));
    }
    card += "\nAll settings stand in `run.yaml`, the chat template in `chat_template.jinja` or `tokenizer_config.json`.\n";
    card
}

/// The names of the files of examples, without the folders they lie in.
pub(super) fn sources(run: &RunFile) -> Vec<String> {
    let paths: Vec<String> = match &run.data.train {
        None => Vec::new(),
        Some(TrainData::One(path)) => vec![path.display().to_string()],
        Some(TrainData::Many(sources)) => sources.iter().map(|s| s.path.display().to_string()).collect(),
    };
    paths.iter().map(|path| file_name(path)).collect()
}

pub(super) fn file_name(path: &str) -> String {
    Path::new(path).file_name().map_or(path.to_owned(), |name| name.to_string_lossy().into_owned())
}
