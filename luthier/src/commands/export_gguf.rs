//! `luthier export gguf`: a model, or an adapter, as llama.cpp and Ollama load it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use compute::Precision;
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
    let (base, told, kind) =
        write_model(args.model.as_deref(), args.adapter.as_deref(), args.kind, global, staging.path())?;
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
        }))?;
    } else {
        terminal::print_line(format!(
            "{}\n{architecture}, {tensors} tensors of {} in all, matrices stored as {}",
            args.output.display(),
            terminal::bytes(size_bytes),
            kind.name().to_lowercase(),
        ))?;
        let file = quoted(&args.output);
        terminal::print_line(format!("read back and found the same; use it by `llama-cli -m {file}`"))?;
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

/// Writes a model, with an adapter added into it if there is one, and proves that the file's tokenizer cuts
/// texts as the folder's.
pub(super) fn write_model(
    model: Option<&str>,
    adapter: Option<&str>,
    kind: Option<TensorType>,
    global: &Global,
    path: &Path,
) -> anyhow::Result<(Base, ExportedModel, TensorType)> {
    let device = global.device()?;
    let subject = Subject::open(model, adapter, &device)?;
    // As merging does it: an adapter has learnt to make up for the rounding of the base it was trained over.
    let quantization = if adapter.is_some() { subject.quantization(None) } else { None };
    let trained = subject.remembered.as_ref().map(|run| run.precision.engine());
    let Subject { base, adapter, .. } = subject;
    let held = trained.unwrap_or(Precision::F32);
    let on_loading = quantization.map(|format| OnLoading { format, held });
    let kind = kind.unwrap_or_else(|| match base.dtype() {
        Some(StoredDType::F32) => TensorType::F32,
        Some(StoredDType::F16) => TensorType::F16,
        _ => TensorType::BF16,
    });
    let name = Path::new(&base.name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut entries = vec![("general.name".to_owned(), Said::Text(name))];
    entries.extend(gguf::tokenizer_entries(&base)?);
    let changed_by = base.changed_by.as_ref();
    let decoder = Decoder::load_for(&base.files, changed_by, &device, Precision::F32, on_loading)?;
    let named = base.files.path.clone();
    let told = decoder.write_gguf(adapter.as_ref(), &named, entries, kind, path)?;
    gguf::tokenizer(&Gguf::open(path)?).context("the file's tokenizer cannot be read back")?;
    Ok((base, told, kind))
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
