//! Writing a model folder with quantized weights, a tensor at a time: four bits as bitsandbytes and transformers
//! read them, or integers in blocks.

use std::path::Path;

use compute::ops::copy;
use compute::quant::{Format, Quantized};
use compute::{DType, Device, Matrix};

use crate::calibration::Calibration;
use crate::checkpoint::{
    CheckpointWriter, SHARD_BYTES, StoredDType, TensorSpec, copy_companions, copy_tokenizer, quantized,
    write_whole,
};
use crate::error::{ModelError, Result};
use crate::folder::ModelFolder;
use crate::names::Parameter;

/// What became of one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedWeight {
    /// Its name.
    pub name: String,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes that codes and scales take.
    pub bytes: u64,
    /// Sum of the squared weights.
    pub squares: f64,
    /// Sum of the squared differences that quantization made.
    pub squared_error: f64,
}

impl QuantizedWeight {
    /// The last name of its layer: `q_proj`.
    pub fn kind(&self) -> &str {
        self.name.rsplit('.').nth(1).unwrap_or(&self.name)
    }

    /// Root of the mean squared error over that of the weights.
    pub fn relative_error(&self) -> f64 {
        (self.squared_error / self.squares.max(f64::MIN_POSITIVE)).sqrt()
    }
}

/// Writes a model with its blocks' linear layers quantized into the folder `to`, which exists; config.json
/// comes last. In memory is one tensor at a time, or with a calibration, which then chooses the integers, what
/// that holds.
///
/// # Errors
/// If the weights are not those of the configuration or quantized already, or a file cannot be read or
/// written.
pub fn quantize_folder(
    from: &ModelFolder,
    to: &Path,
    device: &Device,
    format: Format,
    calibration: Option<&mut Calibration>,
    observe: &mut dyn FnMut(&QuantizedWeight),
) -> Result<Vec<QuantizedWeight>> {
    let mut calibration = calibration;
    let config = &from.config;
    if let Some(stored) = config.quantization {
        let problem = format!(
            "says that the weights are {} already; quantize the model's 16-bit checkpoint",
            stored.name()
        );
        return Err(from.quantization_problem(problem));
    }
    let checkpoint = from.require_weights()?;
    checkpoint.check(config)?;
    let main = checkpoint.main_dtype().unwrap_or(StoredDType::Bf16);
    let stored = |p: &Parameter| Ok::<_, ModelError>(checkpoint.stored(p, config)?.dtype);
    let parameters = config.parameters();
    let mut specs = Vec::new();
    for parameter in &parameters {
        let dtype = stored(parameter)?;
        if is_quantized(parameter, format) {
            specs.extend(quantized::specs(&checkpoint.spelling(parameter), parameter, format, dtype));
        } else {
            specs.push(TensorSpec {
                name: checkpoint.spelling(parameter),
                shape: parameter.file_shape(),
                dtype,
            });
        }
    }
    specs.extend(checkpoint.foreign(config));
    let mut writer = CheckpointWriter::model(to, specs, SHARD_BYTES)?;
    let mut report = Vec::new();
    for parameter in &parameters {
        let dtype = stored(parameter)?;
        let mut values = Matrix::zeros(parameter.rows, parameter.cols, dtype.matrix_dtype());
        checkpoint.read_parameter(parameter, config, values.as_mut())?;
        if !is_quantized(parameter, format) {
            writer.write(&checkpoint.spelling(parameter), values.as_ref())?;
            continue;
        }
        let weight = match &mut calibration {
            Some(calibration) => calibration.weight(parameter)?,
            None => Quantized::quantize(device, values.as_ref(), format),
        };
        let name = checkpoint.spelling(parameter);
        if weight.blocks().is_some_and(|blocks| blocks.not_finite().is_some()) {
            return Err(ModelError::scale_too_large(&from.path, &name, format, "nf4"));
        }
        quantized::write(&mut writer, &name, parameter, format, dtype, &weight)?;
        let (squares, squared_error) = error(device, &values, &weight);
        report.push(QuantizedWeight {
            name,
            parameters: (parameter.rows * parameter.cols) as u64,
            bytes: weight.size_bytes() as u64,
            squares,
            squared_error,
        });
        observe(report.last().expect("just pushed"));
    }
    checkpoint.copy_foreign(config, &mut writer)?;
    writer.finish()?;
    copy_tokenizer(&from.path, to, true)?;
    copy_companions(&from.path, to)?;
    let json = config.quantized(format, main.torch_name()).to_json(main);
    write_whole(&to.join("config.json"), json.as_bytes())?;
    Ok(report)
}

/// Whether a folder in this format has a weight quantized: of bitsandbytes' what transformers would.
pub fn is_quantized(parameter: &Parameter, format: Format) -> bool {
    match format {
        Format::Codebook(_) => parameter.is_linear_of_transformers(),
        Format::Blocks(_) => parameter.takes(format),
    }
}

/// Sums of the squared values, and of the squared differences; a few rows at a time.
fn error(device: &Device, values: &Matrix, weight: &Quantized) -> (f64, f64) {
    const ROWS: usize = 64;
    let (rows, cols) = (values.rows(), values.cols());
    let (mut squares, mut squared_error) = (0.0, 0.0);
    let mut expected = Matrix::zeros(ROWS, cols, DType::F32);
    let mut got = Matrix::zeros(ROWS, cols, DType::F32);
    for start in (0..rows).step_by(ROWS) {
        let range = start..rows.min(start + ROWS);
        copy::copy(device, expected.top_mut(range.len()), values.as_ref().rows_range(range.clone()));
        weight.dequantize_rows(device, range.clone(), got.top_mut(range.len()));
        for (e, g) in expected.top(range.len()).f32().iter().zip(got.top(range.len()).f32()) {
            squares += f64::from(*e) * f64::from(*e);
            squared_error += f64::from(e - g) * f64::from(e - g);
        }
    }
    (squares, squared_error)
}
