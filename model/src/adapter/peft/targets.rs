//! Which modules an adapter is trained on: PEFT's rules of matching names, applied to a model.
//!
//! The rules are those of `check_target_module_exists`, `get_pattern_key` and `_set_trainable` in PEFT 0.21.
//! What PEFT lets pass in silence (a name, expression or pattern that matches nothing) is an error here.

use std::collections::BTreeSet;

use fancy_regex::Regex;

use super::settings::wide_scaling;
use super::{PeftConfig, Pooling, QaLora, Selection, scaling};
use crate::config::{Config, Mlp};
use crate::error::{ModelError, Result, nearest, quoted};
use crate::names::{ModuleId, Part};

/// A linear layer with a low-rank update.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Which layer.
    pub module: ModuleId,
    /// Its path.
    pub path: String,
    /// `R`.
    pub rank: usize,
    /// The numerator of the scale, in QA-LoRA by PEFT's convention.
    pub alpha: f64,
    /// What multiplies `B A`: alpha / R, or alpha / sqrt(R) with rsLoRA, and in QA-LoRA a factor on the sums of
    /// inputs.
    pub scale: f32,
}

/// A parameter of a mixture of experts with a low-rank update: PEFT's `target_parameters` over the models of
/// transformers 5.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterTarget {
    /// The block, from 0.
    pub layer: usize,
    /// Gate and up, or down, of all experts, or the choice of experts.
    pub part: Part,
    /// Its name, such as `model.layers.0.mlp.experts.gate_up_proj`.
    pub name: String,
    /// The path of the module that holds it, in which PEFT wraps one update around the other: the outer
    /// one's, or with `.base_layer` behind it the inner one's.
    pub place: String,
    /// `R`, for each expert.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f64,
    /// What multiplies `B A`.
    pub scale: f32,
}

impl ParameterTarget {
    /// A parameter, without what is trained on it.
    pub(super) fn named(layer: usize, part: Part, name: String) -> Self {
        ParameterTarget { layer, part, name, place: String::new(), rank: 0, alpha: 0.0, scale: 0.0 }
    }

    /// [`ParameterTarget::place`] where these parts are trained.
    pub(super) fn place(layer: usize, part: Part, trained: &[Part], model: &Config) -> String {
        match part {
            Part::Router => model.names.router(layer),
            // The parameter that stands first in the module is wrapped first.
            Part::GateUp if trained.contains(&Part::Down) => {
                format!("{}.base_layer", model.names.experts(layer))
            }
            _ => model.names.experts(layer),
        }
    }

    /// The linear layers of an expert that it holds, one below the other.
    pub(super) fn parts(&self) -> &'static [Part] {
        match self.part {
            Part::GateUp => &[Part::Gate, Part::Up],
            Part::Down => &[Part::Down],
            _ => &[],
        }
    }

    /// How many matrices it is, one for each expert, and `[out, in]` of each of the layers in them.
    pub(super) fn size(&self, model: &Config) -> (usize, [usize; 2]) {
        let (layer, count) = (self.layer, model.experts.map_or(0, |experts| experts.count));
        let (count, id) = match self.parts().first() {
            None => (1, ModuleId::Linear { layer, part: self.part }),
            Some(&part) => (count, ModuleId::Expert { layer, expert: 0, part }),
        };
        let module = model.module(id);
        (count, [module.rows, module.cols])
    }
}

/// What an adapter's settings come to on a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolution {
    /// The layers with low-rank updates, in the order of [`ModuleId`].
    pub targets: Vec<Target>,
    /// Whether the layers have magnitudes too: DoRA.
    pub dora: bool,
    /// Inputs that A of the layers reads as their sum: QA-LoRA.
    pub group: Option<usize>,
    /// The parameters of experts with low-rank updates, block by block.
    pub parameters: Vec<ParameterTarget>,
    /// The modules trained whole (`modules_to_save`), in the order of [`ModuleId`].
    pub saved: Vec<ModuleId>,
    /// Names and patterns that PEFT accepts and that match nothing; empty unless read from a PEFT folder.
    pub unused: Vec<Unused>,
}

impl Resolution {
    /// The same without what has no effect.
    pub fn without_unused(&self) -> Resolution {
        Resolution { unused: Vec::new(), ..self.clone() }
    }
}

/// A name or a pattern without effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unused {
    /// The setting it stands in.
    pub field: &'static str,
    /// Which and why, continuing "`field` ...".
    pub problem: String,
}

pub use crate::names::tables::DEFAULT_TARGETS;

/// What PEFT's table has for a model where `target_modules` is null: queries and values, or the layer that
/// holds them.
pub fn default_targets(model: &Config) -> Vec<String> {
    let parts = if model.fused_qkv.is_some() { &[Part::Qkv][..] } else { &[Part::Q, Part::V] };
    let last = |path: String| path.rsplit('.').next().unwrap_or_default().to_owned();
    parts.iter().map(|&part| last(model.path(ModuleId::Linear { layer: 0, part }))).collect()
}
/// Every linear layer but the head, in any case of letters.
pub const ALL_LINEAR: &str = "all-linear";

fn is_all_linear(selection: &Selection) -> bool {
    matches!(selection, Selection::Expression(text) if text.eq_ignore_ascii_case(ALL_LINEAR))
}

/// Applies an adapter's settings to a model.
///
/// # Errors
/// If a name, an expression or a pattern matches nothing or something that is not a linear layer, or an
/// expression is not valid.
pub fn resolve(settings: &PeftConfig, model: &Config) -> Result<Resolution> {
    let mut modules = module_tree(model);
    if settings.target_modules.as_ref().is_some_and(is_all_linear) {
        modules.retain(|node| !node.id.is_some_and(|module| is_named_as_experts(module, model)));
    }
    let resolution = resolve_in(settings, model, &modules)?;
    refuse(&resolution.unused)?;
    if let Some(target) = resolution.targets.iter().find(|t| is_named_as_experts(t.module, model)) {
        let problem = format!(
            "chooses {}, whose name PEFT takes for the experts of this family's other layers: it would read \
             the adapter as another one; leave the MLP's layers out",
            target.path
        );
        return Err(ModelError::setting("target_modules", problem));
    }
    if !resolution.parameters.is_empty() && settings.use_dora {
        let problem = "must be false with target_parameters: PEFT has no DoRA of experts";
        return Err(ModelError::setting("use_dora", problem));
    }
    if !resolution.parameters.is_empty() && settings.lora_dropout > 0.0 {
        let problem = "must be 0 with target_parameters: PEFT has no dropout before experts";
        return Err(ModelError::setting("lora_dropout", problem));
    }
    Ok(resolution)
}

/// As [`resolve`], but names and patterns without effect are only listed: a folder that PEFT wrote is judged
/// by its tensors.
pub fn resolve_as_peft(settings: &PeftConfig, model: &Config) -> Result<Resolution> {
    resolve_in(settings, model, &module_tree(model))
}

/// As [`resolve_as_peft`], as PEFT did over the models of transformers 4, where each expert had linear layers
/// of its own and their choice was one.
pub(super) fn resolve_with_experts(settings: &PeftConfig, model: &Config) -> Result<Resolution> {
    let mut modules = module_tree(model);
    let linears = model.modules().into_iter().map(|m| m.id).filter(|&id| is_parameter(id));
    modules.extend(linears.map(|id| Node { path: model.path(id), kind: Kind::Linear, id: Some(id) }));
    resolve_in(settings, model, &modules)
}

fn resolve_in(settings: &PeftConfig, model: &Config, modules: &[Node]) -> Result<Resolution> {
    let (saved, mut unused) = saved_modules(settings, modules)?;
    let (selected, unused_targets) = select(settings, modules, default_targets(model))?;
    unused.extend(unused_targets);
    let mut ranks = Patterns::new("rank_pattern", &settings.rank_pattern)?;
    let mut alphas = Patterns::new("alpha_pattern", &settings.alpha_pattern)?;
    let mut targets = Vec::with_capacity(selected.len());
    for index in selected {
        let Node { path, id, .. } = &modules[index];
        let module = id.expect("a linear layer of the tree has an id");
        if saved.contains(&module) {
            let problem =
                format!("and target_modules both name {path}; train it whole or by a low-rank update");
            return Err(ModelError::setting("modules_to_save", problem));
        }
        let rank = ranks.get(path)?.unwrap_or(settings.r);
        let alpha = alphas.get(path)?.unwrap_or(settings.lora_alpha);
        let inputs = model.module(module).cols;
        let alpha = settings.qalora.map_or(alpha, |qalora| qalora.alpha_in_peft(alpha, inputs));
        let factor = settings.qalora.map_or(1.0, |qalora| Pooling::Peft.factor(inputs, qalora.group));
        let scale = (wide_scaling(rank, alpha, settings.use_rslora) * factor) as f32;
        targets.push(Target { module, path: path.clone(), rank, alpha, scale });
    }
    let (mut parameters, unused_parameters) = parameters_of_experts(settings, model);
    unused.extend(unused_parameters);
    for target in &mut parameters {
        target.rank = ranks.get(&target.name)?.unwrap_or(settings.r);
        target.alpha = alphas.get(&target.name)?.unwrap_or(settings.lora_alpha);
        target.scale = scaling(target.rank, target.alpha, settings.use_rslora);
    }
    unused.extend(ranks.unused());
    unused.extend(alphas.unused());
    targets.sort_by_key(|t| t.module);
    let group = check_qalora(settings, model, &targets, !parameters.is_empty())?;
    Ok(Resolution { targets, dora: settings.use_dora, group, parameters, saved, unused })
}

/// The groups of QA-LoRA, if it is that: every layer's inputs must be whole ones.
fn check_qalora(
    settings: &PeftConfig,
    model: &Config,
    targets: &[Target],
    has_parameters: bool,
) -> Result<Option<usize>> {
    let Some(QaLora { group, .. }) = settings.qalora else { return Ok(None) };
    let wrong = |problem: String| Err(ModelError::setting("qalora", problem));
    if settings.use_dora || has_parameters {
        let problem = "is a method of its own for linear layers: it goes neither with use_dora nor with target_parameters";
        return wrong(problem.into());
    }
    let inputs = |target: &&Target| model.module(target.module).cols;
    if let Some(target) = targets.iter().find(|target| !inputs(target).is_multiple_of(group)) {
        return wrong(format!(
            "needs inputs that are whole groups of {group}, and {} has {}; leave such layers out of target_modules",
            target.path,
            inputs(&target)
        ));
    }
    Ok(Some(group))
}

/// The parameters that `target_parameters` names, with ranks and scales to be filled in, and the entries
/// without effect. An entry is a whole name or what stands behind a dot in it, as in PEFT's
/// `LoraModel._inject_parameters`.
fn parameters_of_experts(settings: &PeftConfig, model: &Config) -> (Vec<ParameterTarget>, Vec<Unused>) {
    let (entries, mut used) = (&settings.target_parameters, BTreeSet::new());
    let with_experts = (0..model.layers).filter(|&layer| model.blocks[layer].mlp == Mlp::Experts);
    let all: Vec<_> = with_experts.map(|layer| (layer, model.names.parameters_of_experts(layer))).collect();
    let mut targets = Vec::new();
    for (layer, parameters) in &all {
        let layer = *layer;
        let mut found: Vec<(Part, &String)> = Vec::new();
        for (part, name) in parameters {
            let hits = || entries.iter().filter(|entry| suffixes(name).any(|end| end == entry.as_str()));
            used.extend(hits());
            found.extend(hits().next().map(|_| (*part, name)));
        }
        let trained: Vec<Part> = found.iter().map(|(part, _)| *part).collect();
        for (part, name) in found {
            let place = ParameterTarget::place(layer, part, &trained, model);
            targets.push(ParameterTarget { place, ..ParameterTarget::named(layer, part, name.clone()) });
        }
    }
    let known = match all.first() {
        None => "it has none".to_owned(),
        Some((_, parameters)) => {
            let names = parameters.iter().map(|(_, name)| model.names.within_block(name));
            format!("these are {}", quoted(names))
        }
    };
    let unknown = |entry: &String| {
        let problem = format!(
            "names {entry:?}, which is no parameter of the model's experts ({known}); linear layers are named in \
             target_modules"
        );
        Unused { field: "target_parameters", problem }
    };
    let unused = entries.iter().filter(|entry| !used.contains(entry)).map(unknown).collect();
    (targets, unused)
}

/// Whether a module is a bare parameter, or part of one, for transformers 5, and thus none of PEFT's linear
/// layers.
pub(in crate::adapter) fn is_parameter(module: ModuleId) -> bool {
    matches!(module, ModuleId::Expert { .. } | ModuleId::Linear { part: Part::Router, .. })
}

/// Whether a linear layer is one of an MLP without experts in a model that has experts elsewhere: PEFT (0.21
/// with transformers 5) turns its name into parameters of experts wherever it stands among targets.
fn is_named_as_experts(module: ModuleId, model: &Config) -> bool {
    let of_mlp = |part| matches!(part, Part::Gate | Part::Up | Part::Down | Part::GateUp);
    model.experts.is_some() && matches!(module, ModuleId::Linear { part, .. } if of_mlp(part))
}

/// Names that select exactly these layers, by the rule for lists that all versions of PEFT share: the ends of
/// their paths, or where other modules of the model end so, too, the whole paths.
pub fn names(resolution: &Resolution, model: &Config) -> Vec<String> {
    let targets: BTreeSet<String> = resolution.targets.iter().map(|t| t.path.clone()).collect();
    let end = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let mut ends: Vec<String> = Vec::new();
    for Target { path, .. } in &resolution.targets {
        let end = end(path);
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    let exact = |node: &Node| ends.contains(&end(&node.path)) == targets.contains(&node.path);
    if module_tree(model).iter().all(exact) {
        return ends;
    }
    resolution.targets.iter().map(|t| t.path.clone()).collect()
}

/// What multiplies `B A` on the module of this path, whose rank is known from its tensors. Used where there
/// is only an adapter's folder and no model.
pub fn scale_at(settings: &PeftConfig, path: &str, rank: usize) -> Result<f32> {
    Ok(scaling(rank, alpha_at(settings, path)?, settings.use_rslora))
}

/// The numerator of that.
pub(super) fn alpha_at(settings: &PeftConfig, path: &str) -> Result<f64> {
    let alpha = Patterns::new("alpha_pattern", &settings.alpha_pattern)?.get(path)?;
    Ok(alpha.unwrap_or(settings.lora_alpha))
}

/// What has no effect is a mistake in settings that a person wrote.
fn refuse(unused: &[Unused]) -> Result<()> {
    match unused.first() {
        None => Ok(()),
        Some(Unused { field, problem }) => Err(ModelError::setting(*field, problem.as_str())),
    }
}

/// A module as `named_modules()` of transformers lists it.
struct Node {
    path: String,
    kind: Kind,
    /// Which module with parameters it is.
    id: Option<ModuleId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Linear,
    Head,
    Embedding,
    /// Norms, activations and the modules that hold others.
    Other,
}

/// All modules of a model: PEFT's expressions are matched against containers and norms too.
fn module_tree(model: &Config) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let tied = model.tie_word_embeddings.then_some(ModuleId::Head);
    for id in model.modules().into_iter().map(|m| m.id).chain(tied) {
        let kind = match id {
            _ if is_parameter(id) => continue,
            ModuleId::Linear { .. } | ModuleId::Expert { .. } => Kind::Linear,
            ModuleId::Head => Kind::Head,
            ModuleId::Embedding | ModuleId::Positions => Kind::Embedding,
            ModuleId::Norm { .. } | ModuleId::FinalNorm => Kind::Other,
        };
        nodes.push(Node { path: model.path(id), kind, id: Some(id) });
    }
    let others = model.names.others(model.layers).into_iter();
    nodes.extend(others.map(|path| Node { path, kind: Kind::Other, id: None }));
    nodes
}

/// The indices of the modules that the settings select, and the entries without effect.
fn select(
    settings: &PeftConfig,
    modules: &[Node],
    defaults: Vec<String>,
) -> Result<(Vec<usize>, Vec<Unused>)> {
    let parameters = !settings.target_parameters.is_empty();
    let defaults = Selection::List(if parameters { Vec::new() } else { defaults });
    let targets = settings.target_modules.as_ref().unwrap_or(&defaults);
    let layers = LayerFilter::new(settings, targets)?;
    let all_linear = is_all_linear(targets);
    let mut included = Matcher::new("target_modules", targets)?;
    let mut excluded =
        settings.exclude_modules.as_ref().map(|e| Matcher::new("exclude_modules", e)).transpose()?;
    let mut selected = Vec::new();
    for (index, Node { path, kind, .. }) in modules.iter().enumerate() {
        let hit =
            if all_linear { (*kind == Kind::Linear).then_some(Hit::Whole) } else { included.hit(path)? };
        let out = match &mut excluded {
            // A container's name excludes nothing in PEFT, which is not what its writer meant.
            Some(excluded) if *kind != Kind::Other => excluded.hit(path)?.is_some(),
            _ => false,
        };
        let saved = settings.modules_to_save.iter().any(|m| holds(path, m));
        let chosen = match hit {
            Some(Hit::Suffix) => layers.admits(path)?,
            Some(Hit::Whole) => true,
            None => false,
        };
        if !chosen || out || saved {
            continue;
        }
        match kind {
            Kind::Linear | Kind::Head => selected.push(index),
            Kind::Embedding => {
                let problem = format!(
                    "matches {path}: low-rank updates of embeddings are not supported; to train them whole, name \
                     them in modules_to_save"
                );
                return Err(ModelError::setting("target_modules", problem));
            }
            Kind::Other => {
                let what = what_is_not_linear(path, modules);
                return Err(ModelError::setting("target_modules", what));
            }
        }
    }
    if selected.is_empty() && !parameters {
        return Err(nothing_selected(settings, targets, modules));
    }
    let unused = if all_linear { Vec::new() } else { included.unused(modules) };
    Ok((selected, unused.into_iter().chain(excluded.iter().flat_map(|e| e.unused(modules))).collect()))
}

/// How a module's path was matched; a full path is taken whatever the layer filter says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hit {
    Whole,
    Suffix,
}

/// A list of names or an expression, remembering which entries matched.
struct Matcher<'a> {
    field: &'static str,
    rule: Rule<'a>,
}

enum Rule<'a> {
    Names { names: BTreeSet<&'a str>, used: BTreeSet<&'a str> },
    Expression { text: &'a str, regex: Regex, used: bool },
}

impl<'a> Matcher<'a> {
    fn new(field: &'static str, selection: &'a Selection) -> Result<Self> {
        let rule = match selection {
            Selection::List(list) => {
                let names = list.iter().map(String::as_str).collect();
                Rule::Names { names, used: BTreeSet::new() }
            }
            Selection::Expression(text) => {
                // `fullmatch`: the expression must fit the whole path, whichever alternative that takes.
                let regex = python_regex(field, text, &format!("^(?:{})\\z", translated(text)))?;
                Rule::Expression { text, regex, used: false }
            }
        };
        Ok(Matcher { field, rule })
    }

    fn hit(&mut self, path: &str) -> Result<Option<Hit>> {
        match &mut self.rule {
            Rule::Names { names, used } => {
                let mut hit = None;
                for suffix in suffixes(path) {
                    if let Some(name) = names.get(suffix) {
                        used.insert(name);
                        hit = hit.or(Some(if suffix.len() == path.len() { Hit::Whole } else { Hit::Suffix }));
                    }
                }
                Ok(hit)
            }
            Rule::Expression { text, regex, used } => {
                let fits = is_match(self.field, text, regex, path)?;
                *used |= fits;
                Ok(fits.then_some(Hit::Whole))
            }
        }
    }

    /// What matched no module.
    fn unused(&self, modules: &[Node]) -> Vec<Unused> {
        let field = self.field;
        match &self.rule {
            Rule::Names { names, used } => {
                let unused = names.difference(used);
                unused.map(|name| Unused { field, problem: no_such_name(name, modules) }).collect()
            }
            Rule::Expression { used: true, .. } => Vec::new(),
            Rule::Expression { text, .. } => vec![Unused { field, problem: fits_nothing(text, modules) }],
        }
    }
}

/// A path, and what is left of it behind each dot.
fn suffixes(path: &str) -> impl Iterator<Item = &str> {
    std::iter::once(path).chain(path.match_indices('.').map(|(dot, _)| &path[dot + 1..]))
}

fn no_such_name(name: &str, modules: &[Node]) -> String {
    let other = modules.iter().find(|m| m.kind == Kind::Other && suffixes(&m.path).any(|end| end == name));
    match other {
        Some(Node { path, .. }) => what_is_not_linear(path, modules),
        None => {
            let all = linear_names(modules);
            let near = quoted(nearest(name, all.iter().copied(), 1));
            let all = quoted(all);
            format!("names {name:?}, which the model does not have; the nearest is {near}, all are {all}")
        }
    }
}

/// Of a container or a norm that stands where linear layers are named.
fn what_is_not_linear(path: &str, modules: &[Node]) -> String {
    match linears_inside(path, modules).as_str() {
        "" => format!("names {path}, which is not a linear layer"),
        inside => format!("names {path}, which is not a linear layer; the linear layers in it are {inside}"),
    }
}

fn fits_nothing(expression: &str, modules: &[Node]) -> String {
    let linear = modules.iter().find(|m| m.kind == Kind::Linear).map_or("", |m| &m.path);
    format!(
        "{expression:?} fits no module's whole path, such as {linear:?}; in a list, the end of a path is enough"
    )
}

/// What the linear layers are called, the head's name at last.
fn linear_names(modules: &[Node]) -> Vec<&str> {
    let linears = modules.iter().filter(|m| matches!(m.kind, Kind::Linear | Kind::Head));
    let mut names: Vec<&str> = linears.filter_map(|m| m.path.rsplit('.').next()).collect();
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(*name));
    names
}

fn nothing_selected(settings: &PeftConfig, targets: &Selection, modules: &[Node]) -> ModelError {
    let problem = match targets {
        Selection::List(list) if list.is_empty() => "is empty; name the layers to train".to_owned(),
        _ if settings.layers_to_transform.as_ref().is_some_and(|l| !l.is_empty()) => {
            "selects nothing together with layers_to_transform; layers count from 0".to_owned()
        }
        _ if settings.exclude_modules.is_some() || !settings.modules_to_save.is_empty() => {
            "selects nothing that exclude_modules and modules_to_save leave".to_owned()
        }
        Selection::List(list) => no_such_name(&list[0], modules),
        Selection::Expression(text) => fits_nothing(text, modules),
    };
    ModelError::setting("target_modules", problem)
}

/// The last names of the linear layers below a path.
fn linears_inside(path: &str, modules: &[Node]) -> String {
    let below = modules.iter().filter(|m| m.kind == Kind::Linear).filter_map(|m| {
        let rest = m.path.strip_prefix(path)?.strip_prefix('.')?;
        rest.rsplit('.').next()
    });
    let mut names: Vec<&str> = below.collect();
    let mut seen = BTreeSet::new();
    names.retain(|n| seen.insert(*n));
    quoted(names)
}

/// `layers_to_transform` and `layers_pattern`.
struct LayerFilter<'a> {
    layers: Option<BTreeSet<usize>>,
    /// Text and expression; the first capture named `idx` is the layer.
    patterns: Vec<(&'a str, Regex)>,
}

impl<'a> LayerFilter<'a> {
    fn new(settings: &'a PeftConfig, targets: &Selection) -> Result<Self> {
        let field = "layers_pattern";
        if settings.layers_to_transform.is_none() && !settings.layers_pattern.is_empty() {
            return Err(ModelError::setting(
                field,
                "is given without layers_to_transform, which it belongs to",
            ));
        }
        if settings.layers_to_transform.is_some() && matches!(targets, Selection::Expression(_)) {
            let problem = "cannot be combined with target_modules as an expression; give target_modules as a list, or \
                           put the layers into the expression";
            return Err(ModelError::setting("layers_to_transform", problem));
        }
        let layers = settings.layers_to_transform.as_ref().filter(|l| !l.is_empty());
        let layers = layers.map(|l| l.iter().copied().collect());
        let patterns = if settings.layers_pattern.is_empty() {
            vec![("", python_regex(field, "", r"^.*?\.[^.]*\.(?P<idx>\d+)\.")?)]
        } else {
            let one = |p: &'a String| {
                let regex = format!(r"^(?:^|.*?\.){}\.(?P<idx>\d+)\.", translated(p));
                Ok((p.as_str(), python_regex(field, p, &regex)?))
            };
            settings.layers_pattern.iter().map(one).collect::<Result<_>>()?
        };
        Ok(LayerFilter { layers, patterns })
    }

    fn admits(&self, path: &str) -> Result<bool> {
        let Some(layers) = &self.layers else { return Ok(true) };
        for (text, regex) in &self.patterns {
            let found = regex.captures(path).map_err(|e| regex_error("layers_pattern", text, &e))?;
            if let Some(layer) = found.and_then(|c| c.name("idx").map(|m| m.as_str().parse::<usize>())) {
                return Ok(layer.is_ok_and(|layer| layers.contains(&layer)));
            }
        }
        Ok(false)
    }
}

/// `rank_pattern` or `alpha_pattern`: the first pattern that fits the end of a path decides.
struct Patterns<'a, T> {
    field: &'static str,
    entries: Vec<(&'a str, Regex, T, bool)>,
}

impl<'a, T: Copy> Patterns<'a, T> {
    fn new(field: &'static str, patterns: &'a [(String, T)]) -> Result<Self> {
        let entry = |(text, value): &'a (String, T)| {
            let regex = python_regex(field, text, &format!(r"^(.*\.)?({})$", translated(text)))?;
            Ok((text.as_str(), regex, *value, false))
        };
        Ok(Patterns { field, entries: patterns.iter().map(entry).collect::<Result<_>>()? })
    }

    fn get(&mut self, path: &str) -> Result<Option<T>> {
        for (text, regex, value, used) in &mut self.entries {
            if is_match(self.field, text, regex, path)? {
                *used = true;
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }

    fn unused(&self) -> Vec<Unused> {
        let unused = self.entries.iter().filter(|(.., used)| !used);
        let unused = unused.map(|(text, ..)| Unused {
            field: self.field,
            problem: format!(
                "{text:?} decides nothing: it fits no trained layer that an earlier pattern leaves"
            ),
        });
        unused.collect()
    }
}

/// The modules trained whole, and the entries that match nothing. PEFT matches the bare end of the path here,
/// without asking for a dot: `norm` means every norm.
fn saved_modules(settings: &PeftConfig, modules: &[Node]) -> Result<(Vec<ModuleId>, Vec<Unused>)> {
    let field = "modules_to_save";
    let mut saved = BTreeSet::new();
    let mut unused = Vec::new();
    for entry in &settings.modules_to_save {
        let mut found = false;
        for Node { path, id, .. } in
            modules.iter().filter(|m| !entry.is_empty() && m.path.ends_with(entry.as_str()))
        {
            match id {
                Some(id) => saved.insert(*id),
                None => {
                    let inside = linears_inside(path, modules);
                    let problem = format!(
                        "names {path}, which holds other modules; name those to be trained whole{}{inside}",
                        if inside.is_empty() { "" } else { ": " }
                    );
                    return Err(ModelError::setting(field, problem));
                }
            };
            found = true;
        }
        if !found {
            let owners = modules.iter().filter(|m| m.id.is_some()).map(|m| m.path.as_str());
            let names = owners.map(|path| path.rsplit('.').next().unwrap_or(path));
            let near = quoted(nearest(entry, names, 3));
            let problem = format!("names {entry:?}, which the model does not have; the nearest are {near}");
            unused.push(Unused { field, problem });
        }
    }
    Ok((saved.into_iter().collect(), unused))
}

/// PEFT's `(^|.*\.)m($|\..*)`: the entry is a run of whole segments of the path.
fn holds(path: &str, entry: &str) -> bool {
    !entry.is_empty() && format!(".{path}.").contains(&format!(".{entry}."))
}

/// The few places where Rust's expressions mean something else than Python's: within a class, `[`, `&` and
/// `~` are plain characters in Python and operators in Rust.
fn translated(python: &str) -> String {
    let mut out = String::with_capacity(python.len());
    let mut class_length = None; // characters since the class was opened, to know a leading `]`
    let mut characters = python.chars();
    while let Some(c) = characters.next() {
        if c == '\\' {
            out.push(c);
            out.extend(characters.next());
            class_length = class_length.map(|n| n + 1);
            continue;
        }
        match (c, class_length) {
            ('[', None) => class_length = Some(0),
            ('^', Some(0)) => {
                out.push(c);
                continue; // a `]` behind the `^` is still a leading one
            }
            (']', Some(n)) if n > 0 => class_length = None,
            ('[' | '&' | '~', Some(n)) => {
                out.push('\\');
                class_length = Some(n + 1);
            }
            (_, Some(n)) => class_length = Some(n + 1),
            (_, None) => {}
        }
        out.push(c);
    }
    out
}

fn python_regex(field: &str, text: &str, full: &str) -> Result<Regex> {
    Regex::new(full)
        .map_err(|e| ModelError::setting(field, format!("{text:?} is not a valid expression: {e}")))
}

fn is_match(field: &str, text: &str, regex: &Regex, path: &str) -> Result<bool> {
    regex.is_match(path).map_err(|e| regex_error(field, text, &e))
}

fn regex_error(field: &str, text: &str, error: &fancy_regex::Error) -> ModelError {
    ModelError::setting(
        field,
        format!("{text:?} cannot be matched in reasonable time ({error}); make it simpler"),
    )
}
