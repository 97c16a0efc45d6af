//! `luthier export mlx`: a folder as mlx-lm loads it.

use std::process::ExitCode;

use model::StoredDType;
use model::checkpoint::Staging;
use model::mlx::{MlxModel, MlxType};
use serde_json::json;

use super::proof::{self, Original};
use crate::cli::{self, Global};
use crate::terminal::{self, quoted};

pub(super) fn run(args: cli::ExportMlx, global: &Global) -> anyhow::Result<ExitCode> {
    let staging = Staging::folder(&args.output)?;
    let mut original = Original::open(args.model.as_deref(), args.adapter.as_deref(), global)?;
    let dtype = original.base.dtype().unwrap_or(StoredDType::Bf16);
    let own = original.own_format().and_then(MlxType::of_format);
    let kind = args.kind.or(own).unwrap_or(MlxType::Values(dtype));
    let dtype = if let MlxType::Values(dtype) = kind { dtype } else { dtype };
    let loaded = original.load(kind.format())?;
    let (base, adapter) = (&original.base, original.adapter.as_ref());
    let MlxModel { quantized: (quantized, tensors), size_bytes, lost_window } = loaded.decoder.write_mlx(
        adapter,
        &base.files,
        base.tokenizer_folder()?,
        staging.path(),
        kind,
        dtype,
    )?;
    let name = kind.name();
    let bound = args.max_divergence.map_or_else(|| proof::bound(&name), |percent| percent / 100.0);
    let divergence = loaded.prove(staging.path(), "folder", bound, "use a type of more bits")?;
    staging.publish()?;
    let output = args.output.display().to_string();
    if args.json {
        let mut facts = json!({
            "output": output,
            "type": name,
            "weights": tensors,
            "quantized_weights": quantized,
            "size_bytes": size_bytes,
        });
        proof::add_to(&mut facts, divergence);
        terminal::print_json(&facts)?;
    } else {
        terminal::print_line(format!(
            "{output}\n{} in all; {quantized} of {tensors} weights are integers of {name}, all others are {}",
            terminal::bytes(size_bytes),
            dtype.name().to_lowercase(),
        ))?;
        terminal::print_line(proof::in_words(divergence))?;
        let folder = quoted(&args.output);
        terminal::print_line(format!(
            "use it by `mlx_lm.generate --model {folder}` or `luthier chat --model {folder}`"
        ))?;
    }
    if let Some(window) = lost_window {
        eprintln!(
            "note: mlx-lm has no sliding window for {} models: beyond {window} tokens it sees more than the model does \
             here",
            base.config.family.model_type()
        );
    }
    Ok(ExitCode::SUCCESS)
}
