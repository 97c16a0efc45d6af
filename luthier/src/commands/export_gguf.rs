//! `luthier export gguf`: a model, or an adapter, as llama.cpp and Ollama load it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use compute::Precision;
use compute::quant::Format;
use model::adapter::merge::Difference;
use model::checkpoint::Staging;
use model::gguf::adapter::{Exported, export};
use model::gguf::export::ExportedModel;
use model::gguf::{Gguf, Said, TensorType};
use model::{Decoder, OnLoading, StoredDType};
use serde_json::json;

use crate::cli::{self, Global};
use crate::error::user;
use crate::setup::{Base, Subject, gguf};
use crate::terminal::{self, quoted};

pub(super) fn run(args: cli::ExportGguf, global: &Global) -> anyhow::Result<ExitCode> {
    let staging = Staging::file(&args.output)?;
    match &args.model {
        None => of_adapter(&args, global, staging),
        Some(_) => of_model(&args, global, staging),
    }
}

fn of_model(args: &cli::ExportGguf, global: &Global, staging: Staging) -> anyhow::Result<ExitCode> {
    let asked = Asked {
        model: args.model.as_deref(),
        adapter: args.adapter.as_deref(),
        kind: args.kind,
        max_divergence: args.max_divergence,
    };
    let Exporting { base, told, kind, divergence } = write_model(asked, global, staging.path())?;
    staging.publish()?;
    let ExportedModel { architecture, tensors, parameters, size_bytes, lost_window } = told;
    if args.json {
        terminal::print_json(&json!({
            "output": args.output.display().to_string(),
            "architecture": architecture,
            "type": kind.name().to_lowercase(),
            "tensors": tensors,
            "parameters": parameters,
            "size_bytes": size_bytes,
            "largest_difference": divergence.largest,
            "mean_difference": divergence.mean,
            "relative_difference": divergence.relative,
        }))?;
    } else {
        terminal::print_line(format!(
            "{}\n{architecture}, {tensors} tensors of {} in all, matrices stored as {}",
            args.output.display(),
            terminal::bytes(size_bytes),
            kind.name().to_lowercase(),
        ))?;
        let file = quoted(&args.output);
        terminal::print_line(format!(
            "read back and found the same; on a text its logits differ from the model's by {}, by {:.2e} in the mean and \
             {:.2e} at most",
            terminal::percent(divergence.relative),
            divergence.mean,
            divergence.largest
        ))?;
        terminal::print_line(format!("use it by `llama-cli -m {file}` or `luthier chat --model {file}`"))?;
    }
    note_window(&base, lost_window);
    Ok(ExitCode::SUCCESS)
}

/// Says that texts beyond the window come out otherwise on llama.cpp.
pub(super) fn note_window(base: &Base, window: Option<usize>) {
    if let Some(window) = window {
        eprintln!(
            "note: llama.cpp has no sliding window for {} models: beyond {window} tokens it sees more than the \
             model does here",
            base.config.family.model_type()
        );
    }
}

/// What is to be written.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) model: Option<&'a str>,
    pub(super) adapter: Option<&'a str>,
    pub(super) kind: Option<TensorType>,
    /// In percent.
    pub(super) max_divergence: Option<f64>,
}

/// What was written.
pub(super) struct Exporting {
    pub(super) base: Base,
    pub(super) told: ExportedModel,
    pub(super) kind: TensorType,
    /// Of the file's logits on a text from those of the model.
    pub(super) divergence: Difference,
}

/// What both models are asked (Lewis Carroll, "Alice's Adventures in Wonderland", 1865).
const TEXT: &str = "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing \
                    to do: once or twice she had peeped into the book her sister was reading, but it had no pictures \
                    or conversations in it, \u{201c}and what is the use of a book,\u{201d} thought Alice \
                    \u{201c}without pictures or conversation?\u{201d}";

/// How far logits may be off with weights of a type, relative to their size: some times what it usually is.
fn bound(kind: TensorType) -> f64 {
    match kind.name() {
        "F32" => 1e-4,
        "F16" => 5e-3,
        "BF16" => 3e-2,
        "Q8_0" => 5e-2,
        "Q6_K" => 0.15,
        "Q5_0" | "Q5_1" | "Q5_K" => 0.3,
        _ => 0.6,
    }
}

/// Writes a model, with an adapter added into it if there is one, and proves that the file's tokenizer cuts
/// texts as the folder's, and that the model in it computes what it should.
pub(super) fn write_model(asked: Asked<'_>, global: &Global, path: &Path) -> anyhow::Result<Exporting> {
    let Asked { model, adapter, kind, max_divergence } = asked;
    let device = global.device()?;
    let subject = Subject::open(model, adapter, &device)?;
    // As merging does it: an adapter has learnt to make up for the rounding of the base it was trained over.
    let quantization = if adapter.is_some() { subject.quantization(None) } else { None };
    let trained = subject.remembered.as_ref().map(|run| run.precision.engine());
    let aware = subject.remembered.as_ref().and_then(|run| run.training.quantization_aware);
    let aware = aware.map(|aware| aware.format());
    let Subject { base, mut adapter, .. } = subject;
    let held = trained.unwrap_or(Precision::F32);
    let on_loading = quantization.map(|format| OnLoading { format, held });
    let blocks = |format: Format| match format {
        Format::Blocks(kind) => Some(TensorType::of_blocks(kind)),
        Format::Codebook(_) => None,
    };
    let own = || aware.or(quantization).or(base.config.quantization).and_then(blocks);
    let kind = kind.or_else(own).unwrap_or_else(|| match base.dtype() {
        Some(StoredDType::F32) => TensorType::F32,
        Some(StoredDType::F16) => TensorType::F16,
        _ => TensorType::BF16,
    });
    // What was trained for these very weights is held against what it computed with.
    let is_aware = aware.is_some() && aware.and_then(blocks) == Some(kind);
    if let (true, Some(adapter)) = (is_aware, &mut adapter) {
        adapter.layout.quantization_aware = aware;
    }
    let name = Path::new(&base.name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut entries = vec![("general.name".to_owned(), Said::Text(name))];
    entries.extend(gguf::tokenizer_entries(&base)?);
    let changed_by = base.changed_by.as_ref();
    let precision = if is_aware { held } else { Precision::F32 };
    let decoder = Decoder::load_for(&base.files, changed_by, &device, precision, on_loading)?;
    let mut ids = base.tokenizer()?.encode(TEXT, true)?.ids;
    ids.truncate(base.config.max_position_embeddings);
    let text = [ids];
    let expected = decoder.logits_of(adapter.as_ref(), &text);
    let named = base.files.path.clone();
    let told = decoder.write_gguf(adapter.as_ref(), &named, entries, kind, path)?;
    gguf::tokenizer(&Gguf::open(path)?).context("the file's tokenizer cannot be read back")?;
    drop(decoder);
    let read = Decoder::load(path, &device, precision, None).context("the file cannot be read back")?;
    let divergence = Difference::between(&expected, &read.logits_of(None, &text));
    let bound = max_divergence.map_or_else(|| bound(kind), |percent| percent / 100.0);
    if !divergence.is_within(bound) {
        return Err(user(format!(
            "the logits of the file differ from the model's by {} on a text, where {} are allowed; nothing was kept: use a \
             type of more bits, or allow more by --max-divergence",
            terminal::percent(divergence.relative),
            terminal::percent(bound)
        )));
    }
    Ok(Exporting { base, told, kind, divergence })
}

fn of_adapter(args: &cli::ExportGguf, global: &Global, staging: Staging) -> anyhow::Result<ExitCode> {
    let named = args.adapter.as_deref().expect("a model or an adapter was named");
    let exported = write_adapter(named, args.base.as_deref(), global, staging.path())?;
    staging.publish()?;
    let Exported { architecture, alpha, updates, rescaled } = &exported;
    if args.json {
        let file = args.output.display().to_string();
        let facts = json!({
            "output": file,
            "architecture": architecture,
            "alpha": alpha,
            "updates": updates,
            "rescaled": rescaled,
        });
        terminal::print_json(&facts)?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = args.output.display();
    let scales = match rescaled {
        0 => "their values are the adapter's own".to_owned(),
        _ => format!("of {rescaled} the scale stands in B, since a file has one alpha"),
    };
    terminal::print_line(format!("{file}\n{updates} updates of {architecture}, alpha {alpha}; {scales}"))?;
    let file = quoted(&args.output);
    terminal::print_line(format!(
        "read back and found the same; use it by `llama-cli -m BASE.gguf --lora {file}`"
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes an adapter alone.
pub(super) fn write_adapter(
    named: &str,
    base: Option<&str>,
    global: &Global,
    path: &Path,
) -> anyhow::Result<Exported> {
    let Subject { base, adapter, .. } = Subject::open_by("--base", base, Some(named), &global.device()?)?;
    if base.changed_by.is_some() {
        let problem =
            "holds weights of the base itself, which an adapter of llama.cpp cannot; merge it instead";
        return Err(user(format!("{named} {problem}")));
    }
    Ok(export(&adapter.expect("an adapter was named"), Path::new(named), &base.config, path)?)
}
