//! `luthier export mlx`: a folder as mlx-lm loads it.

use std::process::ExitCode;

use compute::quant::BlockType;
use model::StoredDType;
use model::checkpoint::Staging;
use model::mlx::{MlxModel, MlxType};
use serde_json::json;

use super::proof::{self, ADAPTER_ADVICE, EXPORT_ADVICE, Original, Written};
use crate::cli::{self, Global};
use crate::setup::Subject;
use crate::terminal::{self, quoted};

pub(super) fn run(args: cli::ExportMlx, global: &Global) -> anyhow::Result<ExitCode> {
    let staging = Staging::folder(&args.output)?;
    let mut original = Original::open(args.model.as_deref(), args.adapter.as_deref(), None, global)?;
    let dtype = original.subject.base.dtype().unwrap_or(StoredDType::Bf16);
    let own = original.subject.base.config.quantization;
    // What was trained for integers is written as such; else each weight stays what it is.
    let trained = original.subject.trained_for().and_then(MlxType::of_format);
    let kind = args.kind.or(trained);
    let dtype = if let Some(MlxType::Values(dtype)) = kind { dtype } else { dtype };
    let loaded = original.load(kind.and_then(MlxType::format))?;
    let Subject { base, adapter, .. } = &original.subject;
    let MlxModel { integers, weights, rounded, size_bytes, lost_window } = loaded.decoder.write_mlx(
        adapter.as_ref(),
        &base.files,
        base.tokenizer_folder()?,
        staging.path(),
        kind,
        dtype,
    )?;
    let of_values = dtype.name().to_lowercase();
    let most =
        integers.iter().max_by_key(|&(_, number)| number).map(|(&kind, _)| MlxType::Integers(kind).name());
    let name = most.unwrap_or_else(|| of_values.clone());
    let explained = || proof::bound(&name, rounded);
    let bound = args.max_divergence.map_or_else(explained, |percent| percent / 100.0);
    let (path, kind) = (staging.path(), name.clone());
    let proof =
        loaded.prove(Written { path, what: "folder", kind, bound: Some(bound), advice: EXPORT_ADVICE })?;
    staging.publish()?;
    let output = args.output.display().to_string();
    let quantized: usize = integers.values().sum();
    if args.json {
        let mut facts = json!({
            "output": output,
            "type": name,
            "weights": weights,
            "quantized_weights": quantized,
            "size_bytes": size_bytes,
        });
        proof.add_to(&mut facts);
        terminal::print_json(&facts)?;
    } else {
        let of_each = |(&kind, number): (&BlockType, &usize)| {
            format!("{number} of {weights} weights are integers of {}", MlxType::Integers(kind).name())
        };
        let mut words: Vec<String> = integers.iter().map(of_each).collect();
        words.push(match quantized {
            0 => format!("all weights are {of_values}"),
            _ => format!("all others are {of_values}"),
        });
        let (size, words) = (terminal::bytes(size_bytes), words.join(", "));
        let folder = quoted(&args.output);
        terminal::print_line(format!("{output}\n{size} in all; {words}\n{proof}"))?;
        terminal::print_line(format!(
            "use it by `mlx_lm.generate --model {folder}` or `luthier chat --model {folder}`"
        ))?;
    }
    if let (0, None, Some(own)) = (quantized, args.kind, own) {
        eprintln!(
            "note: MLX has no {own}, so the weights are values of {of_values}; --type q4 makes integers of them"
        );
    }
    proof.warn(ADAPTER_ADVICE);
    if let Some(window) = lost_window {
        eprintln!(
            "note: mlx-lm has no sliding window for {} models: beyond {window} tokens it sees more than the model does \
             here",
            base.config.family.model_type()
        );
    }
    Ok(ExitCode::SUCCESS)
}
