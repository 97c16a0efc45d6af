//! `luthier export gguf`: a model, or an adapter, as llama.cpp and Ollama load it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use compute::quant::Format;
use model::StoredDType;
use model::checkpoint::Staging;
use model::gguf::adapter::{Exported, export};
use model::gguf::export::ExportedModel;
use model::gguf::{Gguf, Said, TensorType};
use serde_json::json;

use super::proof::{self, ADAPTER_ADVICE, EXPORT_ADVICE, Original, Proof, Written};
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
    let Exporting { base, told, kind, proof } = write_model(asked, global, staging.path())?;
    staging.publish()?;
    let ExportedModel { architecture, tensors, parameters, size_bytes, lost_window, .. } = told;
    if args.json {
        let mut facts = json!({
            "output": args.output.display().to_string(),
            "architecture": architecture,
            "type": kind.name().to_lowercase(),
            "tensors": tensors,
            "parameters": parameters,
            "size_bytes": size_bytes,
        });
        proof.add_to(&mut facts);
        terminal::print_json(&facts)?;
    } else {
        terminal::print_line(format!(
            "{}\n{architecture}, {tensors} tensors of {} in all\n{proof}",
            args.output.display(),
            terminal::bytes(size_bytes),
        ))?;
        let file = quoted(&args.output);
        terminal::print_line(format!("use it by `llama-cli -m {file}` or `luthier chat --model {file}`"))?;
    }
    note_window(&base, lost_window);
    proof.warn(ADAPTER_ADVICE);
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
    pub(super) proof: Proof,
}

/// Writes a model, with an adapter added into it if there is one, and proves that the file's tokenizer cuts
/// texts as the folder's, and that the model in it computes what it should.
pub(super) fn write_model(asked: Asked<'_>, global: &Global, path: &Path) -> anyhow::Result<Exporting> {
    let Asked { model, adapter, kind, max_divergence } = asked;
    let mut original = Original::open(model, adapter, None, global)?;
    let of_blocks = |format: Format| match format {
        Format::Blocks(kind) => Some(TensorType::of_blocks(kind)),
        Format::Codebook(_) => None,
    };
    let own = || original.own_format().and_then(of_blocks);
    let kind = kind.or_else(own).unwrap_or_else(|| match original.subject.base.dtype() {
        Some(StoredDType::F32) => TensorType::F32,
        Some(StoredDType::F16) => TensorType::F16,
        _ => TensorType::BF16,
    });
    let loaded = original.load(kind.blocks().map(Format::Blocks))?;
    let Subject { base, adapter, .. } = original.subject;
    let mut entries = vec![("general.name".to_owned(), Said::Text(base.title()))];
    entries.extend(gguf::tokenizer_entries(&base)?);
    let told = loaded.decoder.write_gguf(adapter.as_ref(), &base.files.path, entries, kind, path)?;
    gguf::tokenizer(&Gguf::open(path)?).context("the file's tokenizer cannot be read back")?;
    let name = kind.name().to_lowercase();
    let explained = || proof::bound(&name, told.rounded);
    let bound = max_divergence.map_or_else(explained, |percent| percent / 100.0);
    let written = Written { path, what: "file", kind: name, bound: Some(bound), advice: EXPORT_ADVICE };
    let proof = loaded.prove(written)?;
    Ok(Exporting { base, told, kind, proof })
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
    let subject = Subject::open_by("--base", base, Some(named), &global.device()?)?;
    subject.tell_of_rounding();
    let Subject { base, adapter, .. } = subject;
    if base.changed_by.is_some() {
        let problem =
            "holds weights of the base itself, which an adapter of llama.cpp cannot; merge it instead";
        return Err(user(format!("{named} {problem}")));
    }
    Ok(export(&adapter.expect("an adapter was named"), Path::new(named), &base.config, path)?)
}
