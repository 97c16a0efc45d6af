//! A whole model as llama.cpp and Ollama load it: what a Hugging Face folder has, with an adapter added into
//! its weights if there is one, a tensor at a time.

use std::path::Path;

use compute::ops::rope::Rotation;
use compute::quant::{BlockType, Blocks, Format};
use compute::{DType, MatrixRef, bf16};
use half::f16;

use super::metadata::{Description, describe, loses_windows};
use super::names::GgufPlace;
use super::writer::{Entries, GgufSpec, GgufWriter, Said};
use super::{Gguf, TensorType};
use crate::adapter::merge::{is_whole, merged_config};
use crate::adapter::parameters::Adapter;
use crate::checkpoint::StoredDType;
use crate::config::Config;
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::linear::BaseWeight;
use crate::names::{ModuleId, Parameter, Part};

/// The types in which weights are written, with llama.cpp's number for a file of them (`llama_ftype` of
/// `include/llama.h`).
const WRITTEN: [(TensorType, u32); 10] = [
    (TensorType::F32, 0),
    (TensorType::F16, 1),
    (TensorType::BF16, 32),
    (TensorType::Q4_0, 2),
    (TensorType::Q4_1, 3),
    (TensorType::Q8_0, 7),
    (TensorType::Q5_0, 8),
    (TensorType::Q5_1, 9),
    (TensorType::Q4_K, 14),
    (TensorType::Q6_K, 18),
];
/// Bytes that are written at once.
const PIECE: usize = 1 << 20;

/// The type of this name, if weights are written in it.
pub fn written_type(name: &str) -> Option<TensorType> {
    WRITTEN.into_iter().map(|(kind, _)| kind).find(|kind| kind.name().eq_ignore_ascii_case(name))
}

/// Appends the bytes of a row's values, of the types that have a number for each.
///
/// # Errors
/// The first value that the type cannot hold.
fn encode(values: &[f32], kind: TensorType, to: &mut Vec<u8>) -> Result<(), f32> {
    match kind {
        TensorType::F32 => to.extend(bytemuck::cast_slice::<f32, u8>(values)),
        TensorType::BF16 => to.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes())),
        TensorType::F16 => {
            if let Some(&value) = values.iter().find(|&&value| !f16::from_f32(value).is_finite()) {
                return Err(value);
            }
            to.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()));
        }
        other => unreachable!("{other} is not among the types that are written"),
    }
    Ok(())
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedModel {
    /// What llama.cpp calls the architecture.
    pub architecture: &'static str,
    /// Tensors in the file.
    pub tensors: usize,
    /// Values in all of them.
    pub parameters: u64,
    /// Bytes of the file's tensors.
    pub size_bytes: u64,
    /// Weights that became the nearest blocks: all others are values, or blocks of the base as they were, but
    /// for an update that their minima took up.
    pub rounded: usize,
    /// The window that llama.cpp does not compute for this architecture, in tokens.
    pub lost_window: Option<usize>,
}

/// A tensor with the parameters that lie in it, first to last.
struct Stack {
    spec: GgufSpec,
    parts: Vec<(Parameter, GgufPlace)>,
}

impl Decoder {
    /// Writes the model, with an adapter added into it if there is one, to a new file, and reads it back.
    /// Matrices are stored as `kind`; vectors, the choice of experts and embeddings of positions in `f32`, as
    /// llama.cpp's converter has them. `entries` is what the file says besides the model's shape: its name and
    /// its tokenizer. Errors call the model `named`.
    ///
    /// # Errors
    /// If llama.cpp has no such model, or computes another one of what the file can say; if a value does not
    /// fit into `kind`; if the file cannot be written, or what is read back is not what was to be written.
    ///
    /// # Panics
    /// If `kind` is not one of [`written_type`].
    pub fn write_gguf(
        &self,
        adapter: Option<&Adapter>,
        named: &Path,
        entries: Entries,
        kind: TensorType,
        path: &Path,
    ) -> Result<ExportedModel> {
        let wrong = |problem: String| ModelError::file(named, problem);
        let config = adapter.map_or_else(
            || self.config.clone(),
            |adapter| merged_config(&self.config, adapter, StoredDType::F32.into()),
        );
        let Some(form) = config.gguf else {
            let family = config.family.model_type();
            return Err(wrong(format!(
                "is a {family} model, and how llama.cpp holds those is not known here"
            )));
        };
        let Description { entries: said, factors } = describe(&config, form).map_err(wrong)?;
        let (_, file_type) = WRITTEN.into_iter().find(|(known, _)| *known == kind).expect("a type to write");
        let general = |key: &str, value: Said| (format!("general.{key}"), value);
        let mut all = vec![
            general("architecture", form.architecture.into()),
            general("type", "model".into()),
            general("file_type", Said::Count(file_type)),
            general("quantization_version", Said::Count(2)),
        ];
        all.extend(said);
        all.extend(entries);
        let stacks = stacks(&config, |parameter| self.stored_as(adapter, parameter, kind));
        let factor_spec = |(name, values): &(&str, Vec<f32>)| GgufSpec {
            name: (*name).to_owned(),
            dimensions: vec![values.len() as u64],
            kind: TensorType::F32,
        };
        let specs = factors.iter().map(factor_spec).chain(stacks.iter().map(|stack| stack.spec.clone()));
        let mut writer = GgufWriter::create(path, &all, specs.collect())?;
        for (name, values) in &factors {
            writer.write(name, bytemuck::cast_slice(values))?;
        }
        // The header says it all: what it cannot say is known before the weights are written.
        writer.flush()?;
        let read = Gguf::open(path)?.config()?;
        if let Some(field) = differing_field(&config, &read) {
            let problem = format!(
                "cannot be written as a model of llama.cpp: its {} models have no such {field}",
                form.architecture
            );
            return Err(wrong(problem));
        }
        let mut rounded = 0;
        for Stack { spec, parts } in &stacks {
            for (parameter, place) in parts {
                let written = match spec.kind.blocks().filter(|kind| *kind != BlockType::F16) {
                    Some(kind) => {
                        rounded += usize::from(self.kept_blocks(adapter, parameter, kind).is_none());
                        let blocks = self.blocks_of(adapter, parameter, kind).ok_or(Failed::Scale);
                        blocks.and_then(|blocks| {
                            write_blocks(&mut writer, spec, place, &blocks, parameter.rows)
                        })
                    }
                    None => self.with_parameter(adapter, parameter, |values| {
                        write_part(&mut writer, spec, place, values)
                    }),
                };
                written.map_err(|error| match error {
                    Failed::Write(error) => error,
                    Failed::Scale => {
                        ModelError::scale_too_large(named, &parameter.name(), kind, "bf16 or f32")
                    }
                    Failed::Value(value) => {
                        let problem =
                            format!("has the value {value}, which {kind} cannot hold; use bf16 or f32");
                        ModelError::tensor(named, parameter.name(), problem)
                    }
                })?;
            }
        }
        let file = writer.finish(&all)?;
        let size_bytes = file.tensors().values().map(|tensor| tensor.size_bytes).sum();
        Ok(ExportedModel {
            architecture: form.architecture,
            tensors: file.tensors().len(),
            parameters: config.parameter_count(),
            size_bytes,
            rounded,
            lost_window: loses_windows(&config, form),
        })
    }
}

impl Decoder {
    /// The type of the base's blocks, if it has such: the one that its configuration says, or else the first
    /// linear layer's. Half precision is none.
    fn main_blocks(&self) -> Option<BlockType> {
        if let Some(Format::Blocks(kind)) = self.config.quantization {
            return Some(kind);
        }
        let parameters = self.config.parameters();
        let kind = |p: &Parameter| match self.base_weight(p.module) {
            BaseWeight::Quantized(weight) => weight.blocks().map(Blocks::kind),
            BaseWeight::Dense(_) => None,
        };
        let quantizable = parameters.iter().filter(|parameter| parameter.is_quantizable());
        quantizable.filter_map(kind).find(|kind| *kind != BlockType::F16)
    }

    /// How a parameter is stored where matrices are stored as `kind`, as llama.cpp has it
    /// (`ModelBase.prepare_tensors`, `llama_tensor_get_type`): its head keeps more bits, and rows that are no
    /// whole blocks another type. Of a base that is of this type itself everything keeps its own, and what is
    /// trained whole keeps its values.
    fn stored_as(&self, adapter: Option<&Adapter>, parameter: &Parameter, kind: TensorType) -> TensorType {
        let router = matches!(parameter.module, ModuleId::Linear { part: Part::Router, .. });
        let fits = |kind: TensorType| (parameter.cols as u64).is_multiple_of(kind.block_elements());
        let is_quantized = kind.blocks().is_some_and(|blocks| blocks != BlockType::F16);
        // Whether the base is of this type: what it holds then stays what it is.
        let is_own = is_quantized && self.main_blocks().map(TensorType::of_blocks) == Some(kind);
        let projects = parameter.module == ModuleId::Head
            || parameter.module == ModuleId::Embedding && self.config.tie_word_embeddings;
        match () {
            () if parameter.is_vector() || router || parameter.module == ModuleId::Positions => {
                TensorType::F32
            }
            () if !is_quantized => kind,
            () if is_own && is_whole(adapter, parameter) => TensorType::F32,
            () if is_own => match self.base_weight(parameter.module) {
                BaseWeight::Dense(weight) if weight.dtype() == DType::Bf16 => TensorType::BF16,
                BaseWeight::Dense(_) => TensorType::F32,
                BaseWeight::Quantized(weight) => {
                    weight.blocks().map_or(kind, |blocks| TensorType::of_blocks(blocks.kind()))
                }
            },
            () if projects && kind != TensorType::Q8_0 => [TensorType::Q6_K, TensorType::Q8_0]
                .into_iter()
                .find(|kind| fits(*kind))
                .unwrap_or(TensorType::F16),
            () if fits(kind) => kind,
            () => {
                let next = if kind == TensorType::Q6_K { TensorType::Q8_0 } else { TensorType::Q5_0 };
                if fits(next) { next } else { TensorType::F16 }
            }
        }
    }
}

/// The tensors of a model in the order in which a token meets them.
fn stacks(config: &Config, stored_as: impl Fn(&Parameter) -> TensorType) -> Vec<Stack> {
    let mut stacks: Vec<Stack> = Vec::new();
    for parameter in config.parameters() {
        let place = config.gguf_place(&parameter).expect("the family's form is known");
        // Experts of a layer follow each other, gate, up and down of each.
        let found = stacks.iter_mut().rev().take(Part::GATED.len()).find(|of| of.spec.name == place.tensor);
        match found {
            Some(stack) => stack.parts.push((parameter, place)),
            None => {
                let kind = stored_as(&parameter);
                let (name, dimensions) = (place.tensor.clone(), place.dimensions.clone());
                let spec = GgufSpec { name, dimensions, kind };
                stacks.push(Stack { spec, parts: vec![(parameter, place)] });
            }
        }
    }
    stacks
}

/// Why a parameter was not written.
enum Failed {
    Write(ModelError),
    Value(f32),
    /// Blocks whose scale is no finite number in half precision.
    Scale,
}

/// Writes a parameter's rows of blocks in the order that its place asks for.
fn write_blocks(
    writer: &mut GgufWriter,
    spec: &GgufSpec,
    place: &GgufPlace,
    blocks: &Blocks,
    rows: usize,
) -> Result<(), Failed> {
    let bytes = blocks.bytes();
    let row_bytes = bytes.len() / rows;
    let mut from = vec![0; rows];
    for row in 0..rows {
        from[place.order.place(row)] = row;
    }
    for row in from {
        writer.write(&spec.name, &bytes[row * row_bytes..][..row_bytes]).map_err(Failed::Write)?;
    }
    Ok(())
}

/// Writes a parameter's values in the order that its place asks for.
fn write_part(
    writer: &mut GgufWriter,
    spec: &GgufSpec,
    place: &GgufPlace,
    values: MatrixRef<'_>,
) -> Result<(), Failed> {
    let values = values.download();
    let values = values.as_ref();
    // A bias has an element where its weight has a row.
    let values = if spec.dimensions.len() == 1 { values.reshape(values.cols(), 1) } else { values };
    let mut from = vec![0; values.rows()];
    for row in 0..values.rows() {
        from[place.order.place(row)] = row;
    }
    let (mut row_values, mut bytes) = (vec![0.0; values.cols()], Vec::with_capacity(PIECE));
    for row in from {
        let row = values.rows_range(row..row + 1);
        match row.dtype() {
            DType::F32 => row_values.copy_from_slice(row.f32()),
            DType::Bf16 => row_values.iter_mut().zip(row.bf16()).for_each(|(to, value)| *to = value.to_f32()),
        }
        if place.plus_one {
            row_values.iter_mut().for_each(|value| *value += 1.0);
        }
        encode(&row_values, spec.kind, &mut bytes).map_err(Failed::Value)?;
        if bytes.len() >= PIECE {
            writer.write(&spec.name, &bytes).map_err(Failed::Write)?;
            bytes.clear();
        }
    }
    writer.write(&spec.name, &bytes).map_err(Failed::Write)
}

/// Rounding of constants to `f32`, of which some are computed.
const NEARLY: f64 = 1e-6;

/// What two configurations have different that a model's results depend on; rounding aside.
fn differing_field(one: &Config, other: &Config) -> Option<&'static str> {
    let near = |a: f32, b: f32| (f64::from(a) - f64::from(b)).abs() <= NEARLY * f64::from(a).abs();
    let caps = |a: Option<f32>, b: Option<f32>| a.zip(b).map_or(a == b, |(a, b)| near(a, b));
    let same: [(&'static str, bool); 28] = [
        ("vocabulary", one.vocab_size == other.vocab_size),
        ("width", one.hidden_size == other.hidden_size),
        ("inner width", one.intermediate_size == other.intermediate_size),
        ("number of layers", one.layers == other.layers),
        ("number of heads", (one.heads, one.kv_heads) == (other.heads, other.kv_heads)),
        ("size of a head", one.head_dim == other.head_dim),
        ("window", one.blocks.iter().map(|b| b.window).eq(other.blocks.iter().map(|b| b.window))),
        ("choice of layers that turn positions", turned(one).eq(turned(other))),
        (
            "choice of layers with experts",
            one.blocks.iter().map(|b| b.mlp).eq(other.blocks.iter().map(|b| b.mlp)),
        ),
        ("kind of norm", one.norm == other.norm),
        ("epsilon of norms", near(one.norm_eps, other.norm_eps)),
        ("place of norms", one.norms == other.norms),
        ("parallel halves", one.parallel_residual == other.parallel_residual),
        ("norms of queries and keys", one.qk_norm == other.qk_norm),
        ("positions", one.positions == other.positions),
        ("rotary embedding", same_ropes(one, other)),
        ("growth of queries", same_growth(one, other)),
        ("context", one.max_position_embeddings == other.max_position_embeddings),
        ("scale of attention", near(one.attention_scale, other.attention_scale)),
        ("scale of attention by layer", one.attention_scale_by_layer == other.attention_scale_by_layer),
        ("cap of attention", caps(one.attention_cap, other.attention_cap)),
        ("scale of embeddings", near(one.embedding_scale, other.embedding_scale)),
        ("scale of the residual stream", near(one.residual_scale, other.residual_scale)),
        ("scale of logits", near(one.logits_scale, other.logits_scale)),
        ("cap of logits", caps(one.logits_cap, other.logits_cap)),
        ("activation", one.activation == other.activation),
        ("experts", one.experts == other.experts),
        ("head", one.tie_word_embeddings == other.tie_word_embeddings),
    ];
    // The file has the tensors of the one, by their names and sizes.
    let parameters = |config: &Config| -> Vec<_> {
        config.parameters().iter().map(|parameter| config.gguf_place(parameter)).collect()
    };
    let same_parameters = || parameters(one) == parameters(other);
    let field = same.into_iter().find(|(_, same)| !same).map(|(field, _)| field);
    field.or_else(|| (!same_parameters()).then_some("layout of weights"))
}

/// For each layer, whether it turns queries and keys.
fn turned(config: &Config) -> impl Iterator<Item = bool> {
    config.blocks.iter().map(|block| block.rope.is_some())
}

/// Whether the layers turn by the same frequencies, at every length of texts.
fn same_ropes(one: &Config, other: &Config) -> bool {
    let near = |(a, b): (f32, f32)| (f64::from(a) - f64::from(b)).abs() <= NEARLY * f64::from(a).abs();
    let same_frequencies = |a: &Rotation, b: &Rotation, long: bool| {
        let (of_a, by_a) = a.scaling.frequencies(a.dims, a.theta, long);
        let (of_b, by_b) = b.scaling.frequencies(b.dims, b.theta, long);
        of_a.into_iter().zip(of_b).all(near) && near((by_a as f32, by_b as f32))
    };
    // The length from which on other frequencies hold, where they are others.
    let changes_at = |rope: &Rotation| {
        let of = |long| rope.scaling.frequencies(rope.dims, rope.theta, long);
        rope.scaling.short_context().filter(|_| of(false) != of(true))
    };
    one.blocks.iter().zip(&other.blocks).all(|(a, b)| {
        let (Some(a), Some(b)) = (a.rope, b.rope) else { return a.rope.is_none() == b.rope.is_none() };
        let (a, b) = (&one.ropes[a], &other.ropes[b]);
        a.dims == b.dims
            && a.interleaved == b.interleaved
            && changes_at(a) == changes_at(b)
            && [false, true].into_iter().all(|long| same_frequencies(a, b, long))
    })
}

fn same_growth(one: &Config, other: &Config) -> bool {
    match (one.query_growth, other.query_growth) {
        (None, None) => true,
        (Some(a), Some(b)) => a.original == b.original && (a.beta - b.beta).abs() <= NEARLY * a.beta,
        _ => false,
    }
}
