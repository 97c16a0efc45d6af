//! Adapters that PEFT made under transformers 4, where every expert had linear layers of its own, each with
//! its A and B, in the words of PEFT over transformers 5: a pair for a parameter of all experts of a block
//! (`target_parameters`).
//!
//! There an expert's gate and up are one matrix and share A. Two pairs of rank R are one of rank 2 R, as PEFT
//! converts them too: the rows of A one below the other, and of B each half has its own columns, with zeros
//! in the other's.

use std::collections::BTreeMap;

use super::folder::{AdapterTensors, Assembled, Piece};
use super::targets::{self, ParameterTarget, Resolution, Target};
use super::{PREFIX, PeftConfig, Selection, a_key, b_key};
use crate::config::Config;
use crate::error::{ModelError, Result};
use crate::names::{ModuleId, Part};

/// The settings and tensors in the words of transformers 5; none if they are already.
///
/// # Errors
/// If the settings do not fit the model, or choose only some of a block's experts, or one of gate and up.
pub(super) fn convert(
    config: &PeftConfig,
    tensors: &AdapterTensors,
    model: &Config,
) -> Result<Option<(PeftConfig, BTreeMap<String, Assembled>)>> {
    let of_expert = |key: &str| {
        let path = key.strip_prefix(PREFIX).and_then(|path| path.split_once(".lora_"));
        let module = path.and_then(|(path, _)| model.names.parse(path));
        module.is_some_and(targets::is_parameter)
    };
    if !config.target_parameters.is_empty() || !tensors.keys().any(of_expert) {
        return Ok(None);
    }
    if config.use_dora {
        let problem = "is on for layers of experts, which PEFT with transformers 5 has no DoRA for; merge the \
                       adapter in PEFT";
        return Err(ModelError::setting("use_dora", problem));
    }
    let old = targets::resolve_with_experts(config, model)?;
    let (apart, modules): (Vec<Target>, Vec<Target>) =
        old.targets.into_iter().partition(|target| targets::is_parameter(target.module));
    let (mut parameters, mut assembled) = (Vec::new(), BTreeMap::new());
    for layer in 0..model.layers {
        let mut names = Vec::new();
        for (part, name) in model.names.parameters_of_experts(layer) {
            let mut target = ParameterTarget::named(layer, part, name);
            let linears = linears(&target, &apart, model)?;
            let Some(first) = linears.first() else { continue };
            let pairs = target.parts().len().max(1);
            target.rank = pairs * first.rank;
            target.alpha = alpha(target.rank, first.rank, first.alpha, config.use_rslora);
            target.scale = first.scale;
            names.push((target, linears));
        }
        let chosen: Vec<Part> = names.iter().map(|(target, _)| target.part).collect();
        for (mut target, linears) in names {
            target.place = ParameterTarget::place(layer, target.part, &chosen, model);
            let (a, b) = assemble(&target, &linears, model);
            assembled.insert(a_key(&target.place), a);
            assembled.insert(b_key(&target.place), b);
            parameters.push(target);
        }
    }
    let resolution = Resolution {
        targets: modules,
        dora: false,
        group: None,
        parameters,
        saved: old.saved,
        unused: old.unused,
    };
    let converted = PeftConfig {
        target_modules: Some(Selection::List(targets::names(&resolution, model))),
        exclude_modules: None,
        layers_to_transform: None,
        layers_pattern: Vec::new(),
        target_parameters: resolution.parameters.iter().map(|target| target.name.clone()).collect(),
        // PEFT has none before parameters, and a finished adapter is applied without.
        lora_dropout: 0.0,
        ..config.clone()
    };
    Ok(Some((converted.spelt_out(&resolution), assembled)))
}

/// The linear layers that a parameter holds: expert by expert, gate before up. Empty if none of them is
/// trained.
fn linears<'t>(target: &ParameterTarget, apart: &'t [Target], model: &Config) -> Result<Vec<&'t Target>> {
    let layer = target.layer;
    let modules: Vec<ModuleId> = match target.parts() {
        [] => vec![ModuleId::Linear { layer, part: target.part }],
        parts => {
            let of = |expert| parts.iter().map(move |&part| ModuleId::Expert { layer, expert, part });
            (0..target.size(model).0).flat_map(of).collect()
        }
    };
    // They are in the order of their modules.
    let find = |module| apart.binary_search_by_key(&module, |target| target.module).ok().map(|n| &apart[n]);
    let found: Vec<&Target> = modules.iter().filter_map(|&module| find(module)).collect();
    let Some(first) = found.first() else { return Ok(found) };
    if let Some(&missing) = modules.iter().find(|&&module| find(module).is_none()) {
        let problem = format!(
            "means {} and not {}: an update is of all experts of a block, and of gate and up together",
            first.path,
            model.path(missing)
        );
        return Err(ModelError::setting("target_modules", problem));
    }
    match found.iter().find(|target| (target.rank, target.scale) != (first.rank, first.scale)) {
        None => Ok(found),
        Some(other) => {
            let problem = format!(
                "gives {} rank {} and alpha {}, and {} rank {} and alpha {}: the experts of a block \
                 have one rank and scale",
                first.path, first.rank, first.alpha, other.path, other.rank, other.alpha
            );
            Err(ModelError::setting("rank_pattern", problem))
        }
    }
}

/// The alpha that gives a rank the scale of another.
fn alpha(rank: usize, other: usize, alpha: f64, rslora: bool) -> f64 {
    let factor = rank as f64 / other as f64;
    alpha * if rslora { factor.sqrt() } else { factor }
}

/// A `[R * E, in]`, expert by expert, and B `[out, R * E]`, rank by rank with the experts side by side, from
/// those of the layers.
fn assemble(target: &ParameterTarget, linears: &[&Target], model: &Config) -> (Assembled, Assembled) {
    let (count, [out, inner]) = target.size(model);
    let pairs = target.parts().len().max(1);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (n, linear) in linears.iter().enumerate() {
        let (expert, pair, rank) = (n / pairs, n % pairs, linear.rank);
        let row = expert * target.rank + pair * rank;
        let [a_name, b_name] = [a_key(&linear.path), b_key(&linear.path)];
        a.push(Piece { name: a_name, shape: [rank, inner], row, col: 0, step: 1 });
        let (row, col) = (pair * out, pair * rank * count + expert);
        b.push(Piece { name: b_name, shape: [out, rank], row, col, step: count });
    }
    let ranks = target.rank * count;
    (Assembled { shape: [ranks, inner], pieces: a }, Assembled { shape: [pairs * out, ranks], pieces: b })
}
