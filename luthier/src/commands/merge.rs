//! `luthier merge`: writes a model with an adapter added into its weights, and proves that it computes the
//! same.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use compute::Precision;
use compute::quant::{BlockType, Format};
use data::ChatTemplate;
use model::adapter::merge::{Difference, Stored};
use model::checkpoint::{Staging, write_whole};
use model::quantize::quantize_folder;
use model::{Decoder, ModelError, ModelFolder, OnLoading, StoredDType};
use serde_json::json;

use crate::cli::{self, Global};
use crate::error::user;
use crate::setup::{Base, Subject};
use crate::terminal;

/// Rounding that is more than this part of what the adapter does is worth a warning.
const WORTH_A_WARNING: f64 = 0.1;

pub(super) fn run(args: cli::Merge, global: &Global) -> anyhow::Result<ExitCode> {
    let staging = Staging::folder(&args.output)?;
    let device = global.device()?;
    let subject = Subject::open(args.model.as_deref(), Some(&args.adapter), &device)?;
    // An adapter has learnt to make up for the rounding of the base that it was trained over.
    if args.kind.is_none() {
        subject.tell_of_rounding();
    }
    let quantization = subject.quantization(args.quantization.map(|held| held.0));
    let trained = subject.remembered.as_ref().map(|run| run.precision.engine());
    let Subject { base, adapter, .. } = subject;
    let adapter = adapter.expect("an adapter was named");
    // What is quantized on loading is quantized as its run held it; all else is as the files have it.
    let held = trained.unwrap_or(Precision::F32);
    let on_loading = quantization.map(|format| OnLoading { format, held });
    let changed_by = base.changed_by.as_ref();
    let load = |adapter| Decoder::load_for(&base.files, adapter, &device, Precision::F32, on_loading);
    // What the adapter's file has in place of the base's own weights is a part of what it does. Of two
    // vocabularies only one can be asked.
    let comparable = changed_by.is_some() && !base.is_resized();
    let unchanged = comparable.then(|| load(None)).transpose()?;
    let unchanged = unchanged.map(|decoder| decoder.probe(None));
    let decoder = load(changed_by)?;
    let dtype = args.dtype.or(base.dtype()).expect("its weights were just read");
    let adapted = decoder.probe(Some(&adapter));
    let plain = unchanged.unwrap_or_else(|| decoder.probe(None));
    if !Difference::between(&plain, &adapted).largest.is_finite() {
        return Err(user(
            "logits of base and adapter are not finite: the weights of one of them are damaged or too large",
        ));
    }
    let integers = decoder
        .integers_for(&adapter)
        .filter(|&kind| args.dtype.is_none() && args.kind.is_none_or(|asked| asked == Format::Blocks(kind)));
    let again = args.kind.filter(|_| integers.is_none());
    let stored = Stored { dtype, integers };
    let tokenizer = base.tokenizer_folder()?;
    let write = |folder: &Path| decoder.write_model_files(&adapter, &base.files, tokenizer, folder, stored);
    match again {
        None => write(staging.path())?,
        Some(format) => {
            // Beside the result, on the same disk.
            let whole =
                tempfile::tempdir_in(args.output.parent().filter(|p| p.is_dir()).unwrap_or(Path::new(".")))?;
            write(whole.path())?;
            let merged = ModelFolder::open(whole.path())?;
            quantize_folder(&merged, staging.path(), &device, format, None, &mut |_| {})?;
        }
    }
    let ends = stop_at_end_of_turn(&base, staging.path())?;
    // The merged model is read back in place of the base, not beside it.
    drop((decoder, adapter));
    let merged = match Decoder::load(staging.path(), &device, Precision::F32, None) {
        Err(e @ ModelError::Tensor { .. }) => {
            let advice =
                format!("the merged weights do not fit into {}; use --dtype f32 or bf16", name(dtype));
            return Err(e).context(advice);
        }
        merged => merged.context("the merged model cannot be read back")?.probe(None),
    };
    let result = Merged {
        stored,
        again,
        adapter: Difference::between(&plain, &adapted),
        merging: Difference::between(&adapted, &merged),
        resized: base.is_resized(),
    };
    if !result.merging.is_within(result.bound()) {
        return Err(user(result.refusal()));
    }
    staging.publish()?;
    match args.json {
        true => terminal::print_json(&result.json())?,
        false => terminal::print_line(format!("{}\n{result}", args.output.display()))?,
    }
    if let Some(token) = ends {
        eprintln!("note: generation_config.json ends answers at {token}, as the chat template does");
    }
    result.warn();
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
        Err(_) => serde_json::Map::new(), // the base has none
    };
    let ends: Vec<u32> = tokenizer.ends().iter().copied().chain([end]).collect();
    config.insert("eos_token_id".to_owned(), json!(ends));
    write_whole(&path, serde_json::to_string_pretty(&config).expect("numbers and text").as_bytes())?;
    Ok(tokenizer.id_to_token(end))
}

fn name(dtype: StoredDType) -> &'static str {
    match dtype {
        StoredDType::F32 => "f32",
        StoredDType::F16 => "f16",
        StoredDType::Bf16 => "bf16",
        other => other.torch_name(),
    }
}

/// How logits differ, on a few fixed sequences in `f32` arithmetic.
struct Merged {
    stored: Stored,
    /// To what the merged weights were quantized.
    again: Option<Format>,
    /// Base and adapter against the base alone: what the adapter does.
    adapter: Difference,
    /// The merged model against base and adapter: what rounding its weights does.
    merging: Difference,
    /// The base was resized, of which the first comparison says nothing.
    resized: bool,
}

impl Merged {
    /// What the weights are called that were rounded.
    fn name(&self) -> &'static str {
        let kept = || self.stored.integers.map_or(name(self.stored.dtype), BlockType::name);
        self.again.map_or_else(kept, Format::name)
    }

    /// What rounding may cost: nothing is known of weights that are quantized; of integers, whose minima have half
    /// precision, as much as of values in it.
    fn bound(&self) -> f64 {
        if self.again.is_some() {
            return f64::INFINITY;
        }
        Difference::bound(self.stored.integers.map_or(self.stored.dtype, |_| StoredDType::F16))
    }

    /// The part of the adapter's effect that rounding amounts to.
    fn share(&self) -> f64 {
        self.merging.relative / self.adapter.relative
    }

    fn refusal(&self) -> String {
        let (dtype, bound) = (self.name(), self.bound());
        let hint = match self.stored.dtype {
            StoredDType::F32 if self.stored.integers.is_none() => "this should not happen: please report it",
            _ => "merge with --dtype f32, or keep the adapter apart",
        };
        format!(
            "the merged model's logits differ from those of base and adapter by {} where rounding to {dtype} explains \
             {}; nothing was kept: {hint}",
            terminal::percent(self.merging.relative),
            terminal::percent(bound)
        )
    }

    fn warn(&self) {
        if self.adapter.relative == 0.0 {
            if !self.resized {
                eprintln!("note: this adapter changes nothing");
            }
        } else if self.share() > WORTH_A_WARNING {
            eprintln!(
                "warning: rounding the weights to {} changes the logits by {} of what the adapter does; merge with \
                 --dtype f32, or keep the adapter apart",
                self.name(),
                terminal::percent(self.share())
            );
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "dtype": self.name(),
            "largest_difference": self.merging.largest,
            "relative_difference": self.merging.relative,
            "bound": self.again.is_none().then(|| self.bound()),
            "adapter_largest_difference": self.adapter.largest,
            "adapter_relative_difference": self.adapter.relative,
        })
    }
}

impl std::fmt::Display for Merged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Merged { adapter, merging, .. } = self;
        writeln!(f, "weights  stored as {}", self.name())?;
        let (effect, largest) = (terminal::percent(adapter.relative), terminal::digits(adapter.largest));
        writeln!(f, "adapter  changes the logits by {effect}, none by more than {largest}")?;
        let (change, largest) = (terminal::percent(merging.relative), terminal::digits(merging.largest));
        if let Some(format) = self.again {
            let share = terminal::percent(self.share());
            return write!(
                f,
                "merging  and rounding to {format} change them by {change}, none by more than {largest}: {share} of \
                 what the adapter does"
            );
        }
        let bound = terminal::percent(self.bound());
        write!(f, "merging  changes them by {change}, none by more than {largest}; up to {bound} is rounding")
    }
}
