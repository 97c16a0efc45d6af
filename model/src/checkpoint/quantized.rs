//! Weights of codes in files. bitsandbytes has beside the packed codes a handful of tensors, and a JSON object
//! in the bytes of one of them (`functional.QuantState.as_dict`, `utils.pack_dict_to_tensor`). Blocks are bytes,
//! `[rows, bytes of a row]`, whose type config.json says, or a GGUF file for each tensor.

use std::path::Path;
use std::sync::Arc;

use compute::Buffer;
use compute::quant::{
    BLOCK_SIZES, BlockType, Blocks, Code, Codebook, CodebookFormat, Format, Quantized, SCALES_BLOCK, Scales,
};
use half::bf16;
use serde::{Deserialize, Serialize};

use super::{Checkpoint, CheckpointWriter, Placed, StoredDType, TensorInfo, TensorSpec};
use crate::config::Config;
use crate::error::{ModelError, Result};
use crate::gguf::names::RowOrder;
use crate::names::Parameter;

const STATE: &str = ".quant_state.bitsandbytes__";
const ABSMAX: &str = ".absmax";
const MAP: &str = ".quant_map";
const NESTED_ABSMAX: &str = ".nested_absmax";
const NESTED_MAP: &str = ".nested_quant_map";
/// The codes that bitsandbytes knows.
const CODES: [Code; 2] = [Code::Nf4, Code::Fp4];
/// The types that may have been quantized.
const TYPES: [StoredDType; 3] = [StoredDType::F32, StoredDType::Bf16, StoredDType::F16];
/// Longest JSON object of a weight, in bytes.
const MAX_STATE: usize = 1 << 16;

/// The weight that a tensor beside it belongs to.
pub(super) fn weight_of(name: &str) -> Option<&str> {
    let states = CODES.map(state_suffix);
    let suffixes =
        [ABSMAX, MAP, NESTED_ABSMAX, NESTED_MAP].into_iter().chain(states.iter().map(String::as_str));
    // None of them is the end of another: `.nested_absmax` does not end in `.absmax`.
    suffixes.into_iter().find_map(|suffix| name.strip_suffix(suffix))
}

fn state_suffix(code: Code) -> String {
    format!("{STATE}{code}")
}

/// The JSON object of a weight, in bitsandbytes' order.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_blocksize: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_dtype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_offset: Option<f64>,
}

impl Checkpoint {
    /// In which code a weight is stored in four bits, if it is.
    pub(super) fn quantized_code(&self, weight: &str) -> Option<Code> {
        CODES.into_iter().find(|&code| self.tensors.contains_key(&(weight.to_owned() + &state_suffix(code))))
    }

    /// Checks the tensors of a weight in four bits against its shape.
    pub(super) fn check_quantized(&self, parameter: &Parameter, config: &Config) -> Result<()> {
        let name = self.name_of(parameter).unwrap_or_else(|| parameter.name());
        let wrong = |problem: &str| Err(ModelError::tensor(&self.path, name.as_str(), problem));
        let Some(said) = config.quantization else {
            return wrong("is stored in four bits, but config.json has no `quantization_config`");
        };
        if !parameter.is_quantizable() {
            return wrong("is stored in four bits; only the blocks' linear layers can be");
        }
        match self.state(parameter)? {
            Some(state) if state.quant_type != said.name() => wrong(&format!(
                "is stored as {}, but config.json says that weights are {said}",
                state.quant_type
            )),
            _ => Ok(()),
        }
    }

    /// How a weight is stored in codes, if it is, and the bytes that they and their scales take.
    ///
    /// # Errors
    /// If what stands beside its codes is missing, misshapen or contradicts the parameter.
    pub fn quantized(&self, parameter: &Parameter, config: &Config) -> Result<Option<(Format, u64)>> {
        if let Some((kind, info)) = self.blocks(parameter, config) {
            return Ok(Some((Format::Blocks(kind), info.size_bytes())));
        }
        let Some(state) = self.state(parameter)? else { return Ok(None) };
        let name = self.name_of(parameter).expect("it has codes, as its state was checked");
        let code = self.quantized_code(&name).expect("it has a state");
        let double_quant = state.nested_blocksize.is_some();
        let scales = if double_quant { &[ABSMAX, NESTED_ABSMAX][..] } else { &[ABSMAX] };
        let scales = scales.iter().map(|suffix| self.tensors[&(name.clone() + suffix)].size_bytes());
        let bytes = self.tensors[&name].size_bytes() + scales.sum::<u64>();
        let format = CodebookFormat { code, block_size: state.blocksize, double_quant };
        Ok(Some((Format::Codebook(format), bytes)))
    }

    /// The type of a weight's blocks, if it is stored in such, and where they are.
    fn blocks(&self, parameter: &Parameter, config: &Config) -> Option<(BlockType, &TensorInfo)> {
        let info = self.stored(parameter, config).ok()?;
        match info.dtype {
            StoredDType::Blocks(kind) => Some((kind, info)),
            _ => None,
        }
    }

    /// The state of a weight in four bits, checked against the parameter and the tensors beside it.
    fn state(&self, parameter: &Parameter) -> Result<Option<State>> {
        let mut names = parameter.names().map(|name| (self.quantized_code(&name), name));
        let Some((Some(code), name)) = names.find(|(code, _)| code.is_some()) else { return Ok(None) };
        let key = name.clone() + &state_suffix(code);
        let info = &self.tensors[&key];
        let path: &Path = &self.files[info.file].0;
        let wrong = |problem: String| ModelError::tensor(path, key.as_str(), problem);
        if CODES
            .iter()
            .any(|&other| other != code && self.tensors.contains_key(&(name.clone() + &state_suffix(other))))
        {
            return Err(wrong("is not the weight's only state: it must be of one code".into()));
        }
        if info.dtype != StoredDType::U8 || info.element_count() > MAX_STATE {
            return Err(wrong(format!("is not up to {MAX_STATE} bytes of JSON")));
        }
        let mut text = vec![0; info.element_count()];
        self.read_bytes(&key, 0, &mut text)?;
        let state: State = serde_json::from_slice(&text)
            .map_err(|e| wrong(format!("is not the JSON object that bitsandbytes writes: {e}")))?;
        if state.quant_type != code.name() {
            return Err(wrong(format!("says quant_type {:?} under the name of {code}", state.quant_type)));
        }
        if !BLOCK_SIZES.contains(&state.blocksize) {
            return Err(wrong(format!("says blocksize {}; supported are {BLOCK_SIZES:?}", state.blocksize)));
        }
        if state.shape != [parameter.rows, parameter.cols] {
            return Err(wrong(format!(
                "says shape {:?} but config.json makes the weight [{}, {}]; the weights and config.json must be of one \
                 model",
                state.shape, parameter.rows, parameter.cols
            )));
        }
        // The type that was quantized, to which bitsandbytes rounds values on request; here the arithmetic
        // says.
        if !TYPES.iter().any(|dtype| dtype.torch_name() == state.dtype) {
            return Err(wrong(format!(
                "says dtype {:?}; supported are float32, bfloat16, float16",
                state.dtype
            )));
        }
        let elements = parameter.rows * parameter.cols;
        let blocks = elements.div_ceil(state.blocksize);
        let mut expected = vec![(MAP, StoredDType::F32, 16)];
        match (state.nested_blocksize, state.nested_offset) {
            (None, None) => expected.push((ABSMAX, StoredDType::F32, blocks)),
            (Some(size), Some(offset)) if size.is_power_of_two() && (offset as f32).is_finite() => expected
                .extend([
                    (ABSMAX, StoredDType::U8, blocks),
                    (NESTED_ABSMAX, StoredDType::F32, blocks.div_ceil(size)),
                    (NESTED_MAP, StoredDType::F32, 256),
                ]),
            _ => {
                return Err(wrong(
                    "has a nested_blocksize that is no power of two, or it or nested_offset without the other".into(),
                ));
            }
        }
        for (suffix, dtype, count) in expected {
            let name = name.clone() + suffix;
            let info = self.tensors.get(&name).ok_or_else(|| self.missing(&name))?;
            if info.dtype != dtype || info.element_count() != count {
                let problem = format!(
                    "has {} values of {} where {count} of {} are needed",
                    info.element_count(),
                    info.dtype.name(),
                    dtype.name()
                );
                return Err(ModelError::tensor(&self.files[info.file].0, name, problem));
            }
        }
        // Whatever type the codes are stored as (`bnb_4bit_quant_storage`), their bytes are the codes.
        let info = self.tensors.get(&name).ok_or_else(|| self.missing(&name))?;
        if info.size_bytes() != elements.div_ceil(2) as u64 {
            let problem =
                format!("has {} bytes of codes where {} are needed", info.size_bytes(), elements.div_ceil(2));
            return Err(ModelError::tensor(&self.files[info.file].0, name, problem));
        }
        Ok(Some(state))
    }

    /// Reads a weight that is stored in codes; `None` if it is not.
    ///
    /// # Errors
    /// If what stands beside its codes is missing, misshapen or contradicts the parameter, or the file cannot
    /// be read.
    pub fn read_quantized(&self, parameter: &Parameter, config: &Config) -> Result<Option<Quantized>> {
        if let Some((kind, _)) = self.blocks(parameter, config) {
            return Ok(Some(self.read_blocks(parameter, config, kind)?));
        }
        let Some(state) = self.state(parameter)? else { return Ok(None) };
        let name = self.name_of(parameter).expect("it has codes, as its state was checked");
        let absmax = name.clone() + ABSMAX;
        let scales = match (state.nested_blocksize, state.nested_offset) {
            (Some(block_size), Some(offset)) => {
                let mut codes = Buffer::zeros(self.tensors[&absmax].element_count());
                self.read_bytes(&absmax, 0, &mut codes)?;
                let map = self.read_vector(&(name.clone() + NESTED_MAP))?.try_into().expect("256 of them");
                let absmax = self.read_vector(&(name.clone() + NESTED_ABSMAX))?.into();
                Scales::Double { codes, map, absmax, block_size, offset: offset as f32 }
            }
            _ => Scales::Plain(self.read_vector(&absmax)?.into()),
        };
        let table: [f32; 16] = self.read_vector(&(name.clone() + MAP))?.try_into().expect("16 of them");
        let largest = table.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let finite = |block| bf16::from_f32(largest * scales.of(block)).is_finite();
        if let Some(block) = (0..scales.blocks()).find(|&block| !finite(block)) {
            let problem =
                format!("has the scale {:e} for block {block}; weights must be finite", scales.of(block));
            return Err(ModelError::tensor(&self.files[self.tensors[&absmax].file].0, absmax, problem));
        }
        let (rows, cols) = (parameter.rows, parameter.cols);
        let mut codebook = Codebook::new(rows * cols, state.blocksize, table, scales);
        self.read_bytes(&name, 0, codebook.codes_mut())?;
        Ok(Some(Quantized::of_codebook(rows, cols, codebook)))
    }

    fn read_blocks(&self, parameter: &Parameter, config: &Config, kind: BlockType) -> Result<Quantized> {
        let (rows, cols) = (parameter.rows, parameter.cols);
        let name = self.stored_name(parameter, config)?;
        let info = &self.tensors[&name];
        let blocks = match (&self.map, info.placed) {
            // As it lies, unless rows have another order there.
            (Some(map), Some(Placed { order: RowOrder::Same, .. })) => {
                let start = info.start as usize;
                Blocks::mapped(kind, Arc::clone(map), start..start + kind.size_bytes(rows * cols))
            }
            (_, placed) => {
                let mut blocks = Blocks::zeros(kind, rows * cols);
                self.read_bytes(&name, 0, blocks.bytes_mut())?;
                if let Some(placed) = placed {
                    placed.sort_rows(blocks.bytes_mut(), kind.size_bytes(cols));
                }
                blocks
            }
        };
        if let Some(block) = blocks.not_finite() {
            let element = block * kind.elements();
            let problem = format!(
                "has a scale that is no finite number in row {}, from column {} on",
                element / cols,
                element % cols
            );
            return Err(ModelError::tensor(&self.files[self.tensors[&name].file].0, name, problem));
        }
        Ok(Quantized::of_blocks(rows, cols, blocks))
    }

    /// The values of a tensor of `f32`, whatever its shape.
    fn read_vector(&self, name: &str) -> Result<Vec<f32>> {
        let info = &self.tensors[name];
        let mut bytes = vec![0; info.size_bytes() as usize];
        self.read_bytes(name, 0, &mut bytes)?;
        let (values, _) = bytes.as_chunks::<4>();
        let values: Vec<f32> = values.iter().map(|&b| f32::from_le_bytes(b)).collect();
        match values.iter().find(|v| !v.is_finite()) {
            None => Ok(values),
            Some(value) => {
                let problem = format!("has the value {value}; scales must be finite");
                Err(ModelError::tensor(&self.files[info.file].0, name, problem))
            }
        }
    }
}

/// The state of a weight, as it is written.
fn state(parameter: &Parameter, format: CodebookFormat, dtype: StoredDType, offset: f32) -> String {
    let double = format.double_quant;
    let state = State {
        quant_type: format.code.name().to_owned(),
        blocksize: format.block_size,
        dtype: dtype.torch_name().to_owned(),
        shape: vec![parameter.rows, parameter.cols],
        nested_blocksize: double.then_some(SCALES_BLOCK),
        nested_dtype: double.then(|| "float32".to_owned()),
        nested_offset: double.then_some(f64::from(offset)),
    };
    serde_json::to_string(&state).expect("JSON serializes")
}

/// Bytes set aside for a state before its offset is known; JSON may end in blanks.
fn state_bytes(parameter: &Parameter, format: CodebookFormat, dtype: StoredDType) -> usize {
    state(parameter, format, dtype, -1.234_567_8e-20).len() + 16
}

/// The tensors that [`write()`] will write under a name for a weight whose values were stored as `dtype`.
pub(crate) fn specs(
    name: &str,
    parameter: &Parameter,
    format: Format,
    dtype: StoredDType,
) -> Vec<TensorSpec> {
    let spec =
        |suffix: &str, shape: Vec<usize>, dtype| TensorSpec { name: name.to_owned() + suffix, shape, dtype };
    let format = match format {
        Format::Codebook(format) => format,
        Format::Blocks(kind) => {
            let shape = vec![parameter.rows, kind.size_bytes(parameter.cols)];
            return vec![spec("", shape, StoredDType::U8)];
        }
    };
    let elements = parameter.rows * parameter.cols;
    let blocks = elements.div_ceil(format.block_size);
    let mut specs = vec![
        spec("", vec![elements.div_ceil(2), 1], StoredDType::U8),
        spec(MAP, vec![16], StoredDType::F32),
        spec(&state_suffix(format.code), vec![state_bytes(parameter, format, dtype)], StoredDType::U8),
    ];
    match format.double_quant {
        false => specs.push(spec(ABSMAX, vec![blocks], StoredDType::F32)),
        true => specs.extend([
            spec(ABSMAX, vec![blocks], StoredDType::U8),
            spec(NESTED_ABSMAX, vec![blocks.div_ceil(SCALES_BLOCK)], StoredDType::F32),
            spec(NESTED_MAP, vec![256], StoredDType::F32),
        ]),
    }
    specs
}

/// Writes a weight's tensors.
pub(crate) fn write(
    to: &mut CheckpointWriter,
    name: &str,
    parameter: &Parameter,
    format: Format,
    dtype: StoredDType,
    weight: &Quantized,
) -> Result<()> {
    let named = |suffix: &str| name.to_owned() + suffix;
    let bytes_of = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (format, weight) = match (format, weight.codebook()) {
        (Format::Codebook(format), Some(codebook)) => (format, codebook),
        _ => {
            return to.write_bytes(name, 0, weight.blocks().expect("codes of one kind or the other").bytes());
        }
    };
    to.write_bytes(name, 0, weight.codes())?;
    to.write_bytes(&named(MAP), 0, &bytes_of(weight.table()))?;
    let offset = match weight.scales() {
        Scales::Plain(scales) => {
            to.write_bytes(&named(ABSMAX), 0, &bytes_of(scales))?;
            0.0
        }
        Scales::Double { codes, map, absmax, offset, .. } => {
            to.write_bytes(&named(ABSMAX), 0, codes)?;
            to.write_bytes(&named(NESTED_ABSMAX), 0, &bytes_of(absmax))?;
            to.write_bytes(&named(NESTED_MAP), 0, &bytes_of(&map[..]))?;
            *offset
        }
    };
    let mut text = state(parameter, format, dtype, offset).into_bytes();
    text.resize(state_bytes(parameter, format, dtype), b' ');
    to.write_bytes(&named(&state_suffix(format.code)), 0, &text)
}
