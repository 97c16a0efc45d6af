//! `luthier quantize`: writes a quantized model, and tells what that cost.

use std::path::Path;
use std::process::ExitCode;

use compute::quant::blocks::GROUP;
use compute::quant::{CodebookFormat, Format};
use compute::{Device, Precision};
use model::Config;
use model::calibration::Calibration;
use model::checkpoint::{Staging, copy_tokenizer};
use model::quantize::{QuantizedWeight, is_quantized, quantize_folder};
use serde_json::{Value, json};

use crate::cli::{self, Global};
use crate::error::user;
use crate::run_file::RunFile;
use crate::setup::{self, Base};
use crate::terminal::{self, Progress, Table, bytes, count};

pub(super) fn run(args: cli::Quantize, global: &Global) -> anyhow::Result<ExitCode> {
    let staging = Staging::folder(&args.output)?;
    let base = Base::open(&args.model)?;
    let from = &base.files;
    let format = format(&args)?;
    let total = from.config.parameters().iter().filter(|p| is_quantized(p, format)).count() as u64;
    let mut progress = Progress::items("quantizing", total, 0);
    let mut done = 0;
    let device = global.device()?;
    let mut calibration =
        args.calibrate.as_deref().map(|file| calibration(&args, &base, file, format, &device)).transpose()?;
    let report =
        quantize_folder(from, staging.path(), &device, format, calibration.as_mut(), &mut |weight| {
            done += 1;
            progress.set(done, &weight.name);
        })?;
    progress.finish("");
    // A GGUF file's is no file of a folder.
    copy_tokenizer(base.tokenizer_folder()?, staging.path(), true)?;
    staging.publish()?;
    let facts = facts(&from.config, format, &report);
    if args.json {
        terminal::print_json(&facts)?;
        return Ok(ExitCode::SUCCESS);
    }
    terminal::print_line(format!("{}\n{}\n", args.output.display(), by_part(&report)))?;
    for line in summary(&facts, format) {
        terminal::print_line(line)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Examples that integers are chosen by, and the most tokens of one.
const EXAMPLES: usize = 128;
const TOKENS: usize = 512;

/// The model with the texts by which its integers are chosen.
fn calibration(
    args: &cli::Quantize,
    base: &Base,
    file: &str,
    format: Format,
    device: &Device,
) -> anyhow::Result<Calibration> {
    let Format::Blocks(kind) = format else {
        return Err(user(format!("--calibrate chooses integers: --type int4, int3 or int2, not {format}")));
    };
    let mut run = RunFile::default();
    run.data.chat_template = args.chat_template.clone();
    run.data.max_length = Some(TOKENS.min(base.config.max_position_embeddings));
    let data = setup::dataset(&run, Path::new(file), Some(&base.config), &base.tokenizer()?, None)?;
    let sequences: Vec<&[u32]> =
        data.examples.iter().take(EXAMPLES).map(|example| example.input_ids.as_slice()).collect();
    if sequences.is_empty() {
        return Err(user(format!("{file} has no examples to calibrate with")));
    }
    let decoder = base.load(device, Precision::F32, None)?;
    Ok(Calibration::new(decoder, kind, &sequences))
}

/// The format that the flags say.
fn format(args: &cli::Quantize) -> anyhow::Result<Format> {
    match args.format {
        Format::Codebook(CodebookFormat { code, block_size, .. }) => {
            let (block_size, double_quant) = (args.block_size.unwrap_or(block_size), !args.no_double_quant);
            Ok(Format::Codebook(CodebookFormat { code, block_size, double_quant }))
        }
        Format::Blocks(kind) if args.block_size.is_some() || args.no_double_quant => Err(user(format!(
            "--block-size and --no-double-quant are of nf4 and fp4; {kind} has a scale and a minimum for each 32 weights"
        ))),
        blocks => Ok(blocks),
    }
}

/// Weights, bytes and errors that belong together.
#[derive(Clone, Copy, Default)]
struct Sums {
    parameters: u64,
    bytes: u64,
    squares: f64,
    squared_error: f64,
    worst: f64,
}

impl Sums {
    fn of<'a>(weights: impl IntoIterator<Item = &'a QuantizedWeight>) -> Self {
        weights.into_iter().fold(Sums::default(), |sums, weight| Sums {
            parameters: sums.parameters + weight.parameters,
            bytes: sums.bytes + weight.bytes,
            squares: sums.squares + weight.squares,
            squared_error: sums.squared_error + weight.squared_error,
            worst: sums.worst.max(weight.relative_error()),
        })
    }

    fn bits(self) -> f64 {
        8.0 * self.bytes as f64 / self.parameters.max(1) as f64
    }

    fn relative_error(self) -> f64 {
        (self.squared_error / self.squares.max(f64::MIN_POSITIVE)).sqrt()
    }
}

fn facts(config: &Config, format: Format, report: &[QuantizedWeight]) -> Value {
    let all = Sums::of(report);
    let layers = report.iter().map(|weight| {
        json!({
            "name": weight.name,
            "parameters": weight.parameters,
            "bytes": weight.bytes,
            "relative_error": weight.relative_error(),
        })
    });
    json!({
        "type": format.name(),
        "block_size": match format {
            Format::Codebook(format) => format.block_size,
            Format::Blocks(_) => GROUP,
        },
        "double_quant": matches!(format, Format::Codebook(CodebookFormat { double_quant: true, .. })),
        "parameters": config.parameter_count(),
        "quantized_parameters": all.parameters,
        "quantized_bytes": all.bytes,
        "bits_per_parameter": all.bits(),
        "relative_error": all.relative_error(),
        "layers": layers.collect::<Vec<_>>(),
    })
}

/// A line for each kind of layer.
fn by_part(report: &[QuantizedWeight]) -> Table {
    let mut table = Table::new(["layers", "weights", "bits a weight", "relative error", "the worst layer's"]);
    let mut kinds: Vec<&str> = Vec::new();
    for weight in report {
        if !kinds.contains(&weight.kind()) {
            kinds.push(weight.kind());
        }
    }
    for kind in kinds {
        let sums = Sums::of(report.iter().filter(|weight| weight.kind() == kind));
        table.row([
            kind.to_owned(),
            count(sums.parameters as f64),
            format!("{:.3}", sums.bits()),
            percent(sums.relative_error()),
            percent(sums.worst),
        ]);
    }
    table
}

fn summary(facts: &Value, format: Format) -> [String; 2] {
    let number = |key: &str| facts[key].as_f64().unwrap_or(0.0);
    let rest = number("parameters") - number("quantized_parameters");
    [
        format!(
            "{} of {} parameters are {} at {:.3} bits each, {} in all, with a relative error of {}",
            count(number("quantized_parameters")),
            count(number("parameters")),
            format,
            number("bits_per_parameter"),
            bytes(number("quantized_bytes") as u64),
            percent(number("relative_error")),
        ),
        format!("{} of embeddings, head, norms and biases stay as they were", count(rest)),
    ]
}

fn percent(part: f64) -> String {
    format!("{:.2} %", 100.0 * part)
}
