//! An adapter out of the difference of two models: of each linear layer the nearest update of a rank (Eckart
//! and Young 1936), a layer at a time.

use std::collections::BTreeSet;

use compute::ops::reduce;
use compute::{DType, Device, Matrix};

use super::parameters::{Adapter, Layout, Trained};
use super::peft::PeftConfig;
use super::peft::targets::{self, Resolution};
use crate::config::Config;
use crate::decompose::Singular;
use crate::error::{ModelError, Result};
use crate::folder::ModelFolder;
use crate::names::Parameter;

/// What an update has of one layer's difference.
#[derive(Clone, Debug, PartialEq)]
pub struct Extracted {
    /// The path of the layer.
    pub module: String,
    /// Its rank.
    pub rank: usize,
    /// The sum of the squares of the difference.
    pub squares: f64,
    /// What of it the update has not.
    pub lost: f64,
}

/// A tensor that differs and is no part of the adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// Root of the sum of squares of the difference over that of the base's.
    pub relative: f64,
    /// The path of its module, if an adapter can have it whole beside the updates.
    pub savable: Option<String>,
}

/// An adapter that was extracted, and what it has and has not of the difference.
#[derive(Debug)]
pub struct Extraction {
    /// The adapter, in the host's memory.
    pub adapter: Adapter,
    /// Its settings, as they are written.
    pub config: PeftConfig,
    /// Layer by layer.
    pub layers: Vec<Extracted>,
    /// What differs besides.
    pub left_out: Vec<LeftOut>,
}

/// Both folders, with their tensors checked.
struct Pair<'a> {
    base: &'a ModelFolder,
    tuned: &'a ModelFolder,
    device: &'a Device,
}

impl Pair<'_> {
    /// # Errors
    /// If they are not of one family and one shape, or one of them has no weights or has them quantized.
    fn check(&self) -> Result<()> {
        for folder in [self.base, self.tuned] {
            if folder.config.quantization.is_some() {
                let problem = "says that the weights are quantized; name the model's 16-bit checkpoint";
                return Err(folder.quantization_problem(problem.into()));
            }
            folder.require_weights()?.check(&folder.config)?;
        }
        let [base, tuned] = [self.base, self.tuned].map(|folder| &folder.config);
        let path = self.tuned.path.join("config.json");
        let refuse = |field: &str, problem: String| Err(ModelError::field(&path, field, problem));
        let [one, other] = [base, tuned].map(|config| config.family.model_type());
        if one != other {
            return refuse(
                "model_type",
                format!("is {other:?}, and that of the base {one:?}: both must be of one family"),
            );
        }
        if base.tie_word_embeddings != tuned.tie_word_embeddings {
            let problem =
                "is not as the base has it; an adapter over the base cannot tell head and embedding apart";
            return refuse("tie_word_embeddings", problem.to_owned());
        }
        let shapes = |config: &Config| -> Vec<(String, [usize; 2])> {
            config.parameters().iter().map(|p| (p.name(), [p.rows, p.cols])).collect()
        };
        let (of_base, of_tuned) = (shapes(base), shapes(tuned));
        if let Some(((name, shape), (_, had))) = of_tuned.iter().zip(&of_base).find(|(t, b)| t != b) {
            let problem = format!(
                "gives {name} {} x {} values, and the base has {} x {} there; both must be of one shape{}",
                shape[0],
                shape[1],
                had[0],
                had[1],
                if base.vocab_size != tuned.vocab_size { " and one vocabulary" } else { "" }
            );
            let field = if base.vocab_size != tuned.vocab_size { "vocab_size" } else { "hidden_size" };
            return refuse(field, problem);
        }
        if of_base.len() != of_tuned.len() {
            let problem =
                format!("gives the model {} tensors, and the base has {}", of_tuned.len(), of_base.len());
            return refuse("num_hidden_layers", problem);
        }
        Ok(())
    }

    /// The values of the tuned model and of the base.
    fn read(&self, parameter: &Parameter) -> Result<[Matrix; 2]> {
        let read = |folder: &ModelFolder| {
            let mut values = Matrix::unset(parameter.rows, parameter.cols, DType::F32);
            folder.require_weights()?.read_parameter(parameter, &folder.config, values.as_mut())?;
            Ok::<_, ModelError>(values)
        };
        Ok([read(self.tuned)?, read(self.base)?])
    }

    /// What the tuned model has more than the base, and the sums of squares of that and of the base's values.
    fn difference(&self, parameter: &Parameter) -> Result<(Matrix, f64, f64)> {
        let [mut tuned, base] = self.read(parameter)?;
        tuned.as_mut().f32().iter_mut().zip(base.as_ref().f32()).for_each(|(t, b)| *t -= b);
        let squares = |values: &Matrix| reduce::sum_of_squares(self.device, values.as_ref());
        let (difference, of_base) = (squares(&tuned), squares(&base));
        Ok((tuned, difference, of_base))
    }
}

/// Extracts an adapter of `config`, whose `lora_alpha` decides the scale only, from what `tuned` has more than
/// `base`. In memory are the adapter and one layer.
///
/// # Errors
/// If the models are not of one family and shape, a rank is higher than a layer has directions, or a file
/// cannot be read.
pub fn extract(
    base: &ModelFolder,
    tuned: &ModelFolder,
    config: &PeftConfig,
    device: &Device,
    observe: &mut dyn FnMut(&Extracted),
) -> Result<Extraction> {
    let pair = Pair { base, tuned, device };
    pair.check()?;
    let model = &base.config;
    let resolution = targets::resolve(config, model)?;
    check_ranks(&resolution, model)?;
    // What the files of both have is in the host's memory, and so is what becomes of it.
    let mut adapter = Adapter::zeros(Layout::of_adapter(&resolution, model), 0.0, &Device::cpu(1));
    let modules: Vec<_> = adapter.layout.modules().collect();
    let (mut layers, mut covered) = (Vec::new(), BTreeSet::new());
    for (module, trained) in modules {
        let parameter = model.weight_of(module);
        let tensors = adapter.layout.tensors();
        match trained {
            Trained::Lora(lora) => {
                let (difference, squares, _) = pair.difference(&parameter)?;
                let singular = Singular::of(difference.as_ref()).ok_or_else(|| {
                    let problem = "differs by something that has no singular values; its values are damaged";
                    ModelError::tensor(&tuned.path, parameter.name(), problem)
                })?;
                let (a, b) = adapter.parameters.pair_mut(&tensors[lora.a], &tensors[lora.a + 1]);
                singular.write_leading(lora.scale, a, b);
                let lost = singular.squares_from(lora.rank);
                let told = Extracted { module: model.path(module), rank: lora.rank, squares, lost };
                observe(&told);
                layers.push(told);
            }
            Trained::Full(full) => {
                let bias = full.bias.map(|index| (index, model.parameter(module, true)));
                for (index, parameter) in [(full.weight, parameter)].into_iter().chain(bias) {
                    let [values, _] = pair.read(&parameter)?;
                    let to = adapter.parameters.tensor_mut(&tensors[index]);
                    to.f32().copy_from_slice(values.as_ref().f32());
                }
                covered.extend(bias.map(|(_, parameter)| parameter.name()));
            }
            Trained::Dora(_) => unreachable!("settings without magnitudes"),
        }
        // What a tied head gets is not the embedding's, too.
        covered.extend((parameter.module == module).then(|| parameter.name()));
    }
    let left_out = left_out(&pair, &resolution, &covered)?;
    let config = config.clone().settled(&resolution, model);
    Ok(Extraction { adapter, config, layers, left_out })
}

/// No update has more directions than its layer.
fn check_ranks(resolution: &Resolution, model: &Config) -> Result<()> {
    if !resolution.parameters.is_empty() {
        let problem = "names experts, of which no update is extracted; leave it out";
        return Err(ModelError::setting("target_parameters", problem));
    }
    for target in &resolution.targets {
        let module = model.module(target.module);
        let most = module.rows.min(module.cols);
        if target.rank > most {
            let problem = format!(
                "is {}, and {}, whose weight is {} x {}, has {most} directions at most; choose a lower one",
                target.rank, target.path, module.rows, module.cols
            );
            return Err(ModelError::setting("rank", problem));
        }
    }
    Ok(())
}

/// The tensors that differ and are not in the adapter.
fn left_out(pair: &Pair<'_>, resolution: &Resolution, covered: &BTreeSet<String>) -> Result<Vec<LeftOut>> {
    let model = &pair.base.config;
    let mut left_out = Vec::new();
    for parameter in model.parameters().iter().filter(|parameter| !covered.contains(&parameter.name())) {
        let (_, squares, of_base) = pair.difference(parameter)?;
        if squares == 0.0 {
            continue;
        }
        // A layer with an update cannot be trained whole as well, and its bias is a part of it.
        let has_update = resolution.targets.iter().any(|target| target.module == parameter.module);
        let of_experts = targets::is_parameter(parameter.module);
        let savable = (!has_update && !of_experts).then(|| model.path(parameter.module));
        let relative = (squares / of_base.max(f64::MIN_POSITIVE)).sqrt();
        left_out.push(LeftOut { name: parameter.name(), relative, savable });
    }
    Ok(left_out)
}
