//! A whole model as mlx-lm loads it: a folder with the names of a Hugging Face folder, its linear layers
//! quantized as MLX does it if that is asked for, and an adapter added into its weights if there is one.
//!
//! What mlx-lm computes was read in its release 0.32.2 (`mlx_lm/models`, `mlx_lm/utils.py`).

use std::collections::BTreeMap;
use std::path::Path;

use compute::ops::rope::RopeScaling;
use compute::quant::{BlockType, Blocks, Format};
use serde_json::Value;

use crate::adapter::merge::{is_whole, merged_config};
use crate::adapter::parameters::Adapter;
use crate::checkpoint::{
    CheckpointWriter, SHARD_BYTES, StoredDType, TensorSpec, copy_companions, copy_tokenizer, mlx, write_whole,
};
use crate::config::quantization::{INTEGERS, bits, count};
use crate::config::{Config, MlxHead};
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::folder::ModelFolder;
use crate::linear::BaseWeight;
use crate::names::Parameter;

/// How a folder's linear layers are stored; all else is values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlxType {
    /// As values.
    Values(StoredDType),
    /// As integers of this type, 32 weights of a row to a scale and a minimum.
    Integers(BlockType),
}

impl MlxType {
    /// All that can be written.
    pub const ALL: [MlxType; 6] = [
        MlxType::Values(StoredDType::F32),
        MlxType::Values(StoredDType::F16),
        MlxType::Values(StoredDType::Bf16),
        MlxType::Integers(BlockType::Int4),
        MlxType::Integers(BlockType::Int3),
        MlxType::Integers(BlockType::Int2),
    ];

    /// The name in settings: `f16`, `q4`.
    pub fn name(self) -> String {
        match self {
            MlxType::Values(dtype) => dtype.name().to_lowercase(),
            MlxType::Integers(kind) => format!("q{}", bits(kind)),
        }
    }

    /// The integers that a format is, if it is such.
    pub fn of_format(format: Format) -> Option<MlxType> {
        let integers = INTEGERS.into_iter().find(|&kind| Format::Blocks(kind) == format);
        integers.map(MlxType::Integers)
    }

    /// The format of linear layers.
    pub fn format(self) -> Option<Format> {
        match self {
            MlxType::Values(_) => None,
            MlxType::Integers(kind) => Some(Format::Blocks(kind)),
        }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MlxModel {
    /// How many weights are integers of each type.
    pub integers: BTreeMap<BlockType, usize>,
    /// All weights.
    pub weights: usize,
    /// Those that became the nearest integers: all other integers are the base's, but for an update that their
    /// minima took up.
    pub rounded: usize,
    /// Bytes of all tensors.
    pub size_bytes: u64,
    /// The window that mlx-lm does not compute for this family, in tokens.
    pub lost_window: Option<usize>,
}

impl Decoder {
    /// Writes the model, with an adapter added into it if there is one, into a folder that exists, with what
    /// stands beside the weights of `base` and the tokenizer's files of the folder `tokenizer`; config.json
    /// comes last. Linear layers become integers if `kind` says so: those of the base as they are, with an
    /// update that their minima take up, or else the nearest to the values. Without a `kind` each weight stays
    /// integers of as many bits as it has in the base, but for those that are trained whole. All else, and
    /// whatever rows are no whole groups, is stored as `dtype`.
    ///
    /// # Errors
    /// If mlx-lm has no such model, or computes another one; if a file cannot be read or written.
    pub fn write_mlx(
        &self,
        adapter: Option<&Adapter>,
        base: &ModelFolder,
        tokenizer: &Path,
        folder: &Path,
        kind: Option<MlxType>,
        dtype: StoredDType,
    ) -> Result<MlxModel> {
        let values = adapter.map_or_else(
            || self.config.as_values(),
            |adapter| merged_config(&self.config, adapter, dtype.into()),
        );
        computed(&values).map_err(|problem| ModelError::file(&base.path, problem))?;
        let integers = |parameter: &Parameter| match kind {
            None => self.integers_of(parameter).filter(|_| !is_whole(adapter, parameter)),
            Some(MlxType::Values(_)) => None,
            Some(MlxType::Integers(kind)) => {
                let is_kept = || self.kept_blocks(adapter, parameter, kind).is_some();
                (parameter.takes(Format::Blocks(kind)) || is_kept()).then_some(kind)
            }
        };
        let parameters = values.parameters();
        let specs = |parameter: &Parameter| match integers(parameter) {
            Some(kind) => mlx::specs(&parameter.name(), parameter, kind),
            None => vec![TensorSpec { name: parameter.name(), shape: parameter.file_shape(), dtype }],
        };
        let specs: Vec<TensorSpec> = parameters.iter().flat_map(specs).collect();
        let size_bytes = specs.iter().map(TensorSpec::size_bytes).sum();
        let mut writer = CheckpointWriter::model(folder, specs, SHARD_BYTES)?;
        let (mut quantized, mut rounded) = (BTreeMap::new(), 0);
        for parameter in &parameters {
            let name = parameter.name();
            match integers(parameter) {
                Some(kind) => {
                    rounded += usize::from(self.kept_blocks(adapter, parameter, kind).is_none());
                    let blocks = self.blocks_of(adapter, parameter, kind).ok_or_else(|| {
                        let as_mlx = MlxType::Integers(kind).name();
                        ModelError::scale_too_large(&base.path, &name, as_mlx, "bf16 or f32")
                    })?;
                    mlx::write(&mut writer, &name, &blocks)?;
                    quantized.insert(name, kind);
                }
                None => self.with_parameter(adapter, parameter, |values| writer.write(&name, values))?,
            }
        }
        writer.finish()?;
        copy_tokenizer(tokenizer, folder, true)?;
        copy_companions(&base.path, folder)?;
        let mut config = values.quantized_for_mlx(&quantized);
        spell_out(&mut config);
        write_whole(&folder.join("config.json"), config.to_json(dtype).as_bytes())?;
        let lost_window = config.blocks.iter().find_map(|block| block.window);
        let integers = count(quantized.into_values());
        Ok(MlxModel { integers, weights: parameters.len(), rounded, size_bytes, lost_window })
    }

    /// The type of the integers in which the base holds a weight, if it does.
    fn integers_of(&self, parameter: &Parameter) -> Option<BlockType> {
        if parameter.is_vector() {
            return None;
        }
        let BaseWeight::Quantized(weight) = self.base_weight(parameter.module) else { return None };
        weight.blocks().map(Blocks::kind).filter(|kind| INTEGERS.contains(kind))
    }
}

/// # Errors
/// What mlx-lm has in another form, or computes in another way.
fn computed(config: &Config) -> Result<(), String> {
    let family = config.family.model_type();
    let Some(form) = config.mlx else {
        return Err(format!(
            "is a model of {family} that mlx-lm holds under other names or in other shapes, or computes otherwise; \
             `export gguf` may do"
        ));
    };
    match (form.head, config.tie_word_embeddings) {
        (MlxHead::Tied, false) => {
            return Err(format!("has a head of its own, and that of mlx-lm's {family} is the embedding"));
        }
        (MlxHead::Own, true) => {
            return Err(format!("has the embedding as its head, and mlx-lm's {family} has another"));
        }
        _ => {}
    }
    let is_computed = |scaling: &RopeScaling| match *scaling {
        RopeScaling::None => true,
        RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => form.scales_rotary,
        RopeScaling::Yarn { attention_factor, mscale, mscale_all_dim, truncate, .. } => {
            let inferred = attention_factor.is_none() && mscale.is_some() == mscale_all_dim.is_some();
            form.scales_rotary && inferred && truncate
        }
        // It takes the factors for long texts at every length.
        RopeScaling::LongRope { .. } => false,
    };
    match config.ropes.iter().all(|rope| is_computed(&rope.scaling)) {
        true => Ok(()),
        false => {
            Err(format!("stretches its rotary embedding in a way that mlx-lm's {family} does not compute"))
        }
    }
}

/// Says in config.json what mlx-lm takes otherwise where the file leaves it out, the rotary embedding in the
/// fields of transformers before 5, too.
fn spell_out(config: &mut Config) {
    let scaling = config.raw.get("rope_parameters").filter(|of| {
        let kind = of.get("rope_type").and_then(Value::as_str);
        kind.is_some_and(|kind| kind != "default")
    });
    let fields = [
        ("tie_word_embeddings", Some(config.tie_word_embeddings.into())),
        ("head_dim", Some(config.head_dim.into())),
        ("num_key_value_heads", Some(config.kv_heads.into())),
        ("rope_theta", config.ropes.first().map(|rope| rope.theta.into())),
        ("rope_scaling", scaling.cloned()),
    ];
    for (name, value) in fields {
        let field = config.raw.entry(name).or_insert(Value::Null);
        if let (true, Some(value)) = (field.is_null(), value) {
            *field = value;
        }
    }
}
