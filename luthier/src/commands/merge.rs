//! `luthier merge`: writes a model with an adapter added into its weights, and proves that it computes the
//! same.

use std::path::Path;
use std::process::ExitCode;
use std::{fs, io};

use anyhow::Context;
use compute::quant::Format;
use data::ChatTemplate;
use model::adapter::merge::{Linear, Stored};
use model::checkpoint::{Staging, write_whole};
use serde_json::json;

use super::proof::{self, Original, Written};
use crate::cli::{self, Global};
use crate::setup::Base;
use crate::terminal;

pub(super) fn run(args: cli::Merge, global: &Global) -> anyhow::Result<ExitCode> {
    let staging = Staging::folder(&args.output)?;
    let quantization = args.quantization.map(|held| held.0);
    let mut original = Original::open(args.model.as_deref(), Some(&args.adapter), quantization, global)?;
    let loaded = original.load(args.kind)?;
    let base = &original.subject.base;
    let adapter = original.subject.adapter.as_ref().expect("an adapter was named");
    let dtype = args.dtype.or(base.dtype()).expect("its weights were just read");
    let kept = loaded.decoder.integers_for(adapter).filter(|_| args.dtype.is_none());
    let linear = match (args.kind, kept) {
        (Some(format), Some(kind)) if format == Format::Blocks(kind) => Linear::Kept(kind),
        (Some(format), _) => Linear::Rounded(format),
        (None, Some(kind)) => Linear::Kept(kind),
        (None, None) => Linear::Values,
    };
    let of_values = dtype.name().to_lowercase();
    let (kind, bound) = match linear {
        Linear::Values => (of_values.clone(), Some(proof::bound(&of_values, 0))),
        Linear::Kept(kind) => (kind.to_string(), Some(proof::bound(kind.name(), 0))),
        // What rounding to few bits may cost depends on the model: it is told, and not judged.
        Linear::Rounded(format) => (format.to_string(), None),
    };
    let stored = Stored { dtype, linear };
    let tokenizer = base.tokenizer_folder()?;
    loaded.decoder.write_model_files(adapter, &base.files, tokenizer, staging.path(), stored)?;
    let ends = stop_at_end_of_turn(base, staging.path())?;
    let advice = match kind.as_str() {
        "f32" => "this should not happen: please report it",
        "f16" => "merge with --dtype f32 or bf16, or keep the adapter apart",
        _ => "merge with --dtype f32, or keep the adapter apart",
    };
    let written = Written { path: staging.path(), what: "merged model", kind: kind.clone(), bound, advice };
    let proof = loaded.prove(written)?;
    staging.publish()?;
    if args.json {
        let mut facts = json!({ "dtype": kind });
        proof.add_to(&mut facts);
        terminal::print_json(&facts)?;
    } else {
        terminal::print_line(format!("{}\n{proof}", args.output.display()))?;
    }
    if let Some(token) = ends {
        eprintln!("note: generation_config.json ends answers at {token}, as the chat template does");
    }
    proof.warn("merge with --dtype f32, or keep the adapter apart");
    Ok(ExitCode::SUCCESS)
}

/// Adds the token with which the chat template ends a turn to those at which generation ends, if it is not
/// among them: other programs know no more than generation_config.json, and answers would not end there.
/// Returns the token that was added.
fn stop_at_end_of_turn(base: &Base, merged: &Path) -> anyhow::Result<Option<String>> {
    let tokenizer = base.tokenizer()?;
    let template = ChatTemplate::resolve(None, &tokenizer)?;
    let Some(end) = template.and_then(|template| template.end_of_turn(&tokenizer)) else { return Ok(None) };
    if tokenizer.is_end(end) {
        return Ok(None);
    }
    let path = merged.join("generation_config.json");
    let mut config: serde_json::Map<String, serde_json::Value> = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).context("generation_config.json of the base")?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => serde_json::Map::new(),
        Err(error) => return Err(error).context("generation_config.json of the base"),
    };
    let ends: Vec<u32> = tokenizer.ends().iter().copied().chain([end]).collect();
    config.insert("eos_token_id".to_owned(), json!(ends));
    write_whole(&path, serde_json::to_string_pretty(&config).expect("numbers and text").as_bytes())?;
    Ok(tokenizer.id_to_token(end))
}
