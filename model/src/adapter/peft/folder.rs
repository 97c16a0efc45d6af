//! An adapter's folder: its settings and tensors, whoever wrote them, and how they fit a model. A missing
//! tensor, which PEFT passes over with a warning, is an error.
//!
//! PEFT loads what a file holds into the model by name: besides the low-rank updates and the modules that the
//! settings name, any weight of the base that stands in the file takes the base's place. It writes such
//! weights itself (embedding and head where one of them is targeted or the vocabulary was resized), mostly
//! equal to the base's. Here they are found by [`AdapterFolder::open`], told from the base's own by
//! [`AdapterFolder::compare`], and used by [`Decoder::load_for`].
//!
//! [`Decoder::load_for`]: crate::Decoder::load_for

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use compute::{DType, Device, Matrix, MatrixMut};
use serde_json::Value;

use super::files::read_tensor;
use super::mlx::Settings as MlxSettings;
use super::per_expert;
use super::targets::{self, Resolution};
use super::{self as peft, CONFIG_FILE, PREFIX, PeftConfig, key_prefix};
use crate::adapter::parameters::{Adapter, Layout};
use crate::checkpoint::{Checkpoint, read_as_stored};
use crate::config::Config;
use crate::error::{ModelError, Result, nearest, quoted};
use crate::folder::ModelFolder;
use crate::names::{ModuleId, Parameter};

/// The tensors of an adapter under the keys and in the shapes that PEFT gives them.
#[derive(Debug)]
pub struct AdapterTensors {
    file: Checkpoint,
    /// For a file that has them transposed: the name there of each key.
    transposed: Option<BTreeMap<String, String>>,
    /// Those that the file has in pieces, which are then not tensors of their own.
    assembled: BTreeMap<String, Assembled>,
}

/// A tensor that a file has in pieces; what they leave is zero.
#[derive(Debug)]
pub(super) struct Assembled {
    pub(super) shape: [usize; 2],
    pub(super) pieces: Vec<Piece>,
}

/// A tensor of a file and where its elements go: the row `row` and those below it, the column `col` and each
/// `step`th behind it.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) name: String,
    pub(super) shape: [usize; 2],
    pub(super) row: usize,
    pub(super) col: usize,
    pub(super) step: usize,
}

impl AdapterTensors {
    /// A file of PEFT's.
    pub(super) fn of_peft(file: Checkpoint) -> Self {
        AdapterTensors { file, transposed: None, assembled: BTreeMap::new() }
    }

    /// A file whose matrices are PEFT's transposed, with the name of each key's.
    pub(super) fn transposed(file: Checkpoint, names: BTreeMap<String, String>) -> Self {
        AdapterTensors { file, transposed: Some(names), assembled: BTreeMap::new() }
    }

    /// These tensors, with others made of pieces of the file.
    ///
    /// # Errors
    /// If a piece is missing or has another shape.
    fn assemble(&mut self, assembled: BTreeMap<String, Assembled>) -> Result<()> {
        for Piece { name, shape, .. } in assembled.values().flat_map(|assembled| &assembled.pieces) {
            match self.file.tensor(name) {
                Some(info) if info.shape == shape => {}
                Some(info) => {
                    let problem = format!("has shape {:?} but needs {shape:?} by {CONFIG_FILE}", info.shape);
                    return Err(self.error(name, problem));
                }
                None => {
                    let near = quoted(nearest(name, self.file.names(), 1));
                    let problem =
                        format!("is missing (the nearest is {near}), though {CONFIG_FILE} calls for it");
                    return Err(self.error(name, problem));
                }
            }
        }
        self.assembled = assembled;
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The keys: those of the file in their order, and behind them those that are made of pieces.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let of_peft = self.transposed.is_none().then(|| self.file.names());
        let others = self.transposed.iter().flat_map(|names| names.keys().map(String::as_str));
        let mut pieces: BTreeSet<&str> = BTreeSet::new();
        pieces.extend(self.assembled.values().flat_map(|a| &a.pieces).map(|piece| piece.name.as_str()));
        let whole = of_peft.into_iter().flatten().filter(move |name| !pieces.contains(name));
        whole.chain(others).chain(self.assembled.keys().map(String::as_str))
    }

    /// The dimensions of a tensor.
    pub fn shape(&self, key: &str) -> Option<Vec<usize>> {
        if let Some(assembled) = self.assembled.get(key) {
            return Some(assembled.shape.to_vec());
        }
        match &self.transposed {
            None => self.file.tensor(key).map(|info| info.shape.clone()),
            Some(names) => {
                let info = self.file.tensor(names.get(key)?)?;
                Some(info.shape.iter().rev().copied().collect())
            }
        }
    }

    /// Reads a tensor by its key into a matrix of its size; a tensor of one dimension is a single row.
    ///
    /// # Errors
    /// As [`Checkpoint::read_into`].
    pub fn read_into(&self, key: &str, mut to: MatrixMut<'_>) -> Result<()> {
        if let Some(Assembled { shape, pieces }) = self.assembled.get(key) {
            assert_eq!([to.rows(), to.cols()], *shape, "shape of {key}");
            let cols = to.cols();
            let values = to.reborrow().f32();
            values.fill(0.0);
            for Piece { name, shape, row, col, step } in pieces {
                let mut piece = Matrix::unset(shape[0], shape[1], DType::F32);
                self.file.read_into(name, piece.as_mut())?;
                for (n, from) in piece.as_ref().f32().chunks(shape[1]).enumerate() {
                    let to = values[(row + n) * cols + col..].iter_mut().step_by(*step);
                    to.zip(from).for_each(|(to, from)| *to = *from);
                }
            }
            return Ok(());
        }
        let turned = self.transposed.as_ref().and_then(|names| names.get(key));
        let name = turned.map_or(key, String::as_str);
        read_as_stored(turned.is_some(), to, |to| self.file.read_into(name, to))
    }

    /// An error about a tensor, under the name that it has in the file.
    pub(super) fn error(&self, key: &str, problem: impl Into<String>) -> ModelError {
        let name = self.transposed.as_ref().and_then(|names| names.get(key)).map_or(key, String::as_str);
        ModelError::tensor(self.path(), name, problem)
    }
}

/// Settings and tensors of an adapter's folder, read without a model.
#[derive(Debug)]
pub struct AdapterFiles {
    /// The settings; those of another program in PEFT's words.
    pub config: PeftConfig,
    /// The tensors.
    pub tensors: AdapterTensors,
    mlx: Option<MlxSettings>,
}

impl AdapterFiles {
    /// Reads a folder of PEFT's or of mlx-lm's.
    ///
    /// # Errors
    /// If a file is missing, or the settings are of neither or not supported.
    pub fn open(folder: &Path) -> Result<Self> {
        let settings = peft::read_settings(folder)?;
        let Some(settings) = MlxSettings::parse(&settings, &folder.join(CONFIG_FILE))? else {
            let config = PeftConfig::from_map(&settings, &folder.join(CONFIG_FILE))?;
            let tensors = AdapterTensors::of_peft(peft::open_weights(folder)?);
            return Ok(AdapterFiles { config, tensors, mlx: None });
        };
        let (config, tensors) = settings.open(folder)?;
        Ok(AdapterFiles { config, tensors, mlx: Some(settings) })
    }

    /// The program whose form the folder has.
    pub fn written_by(&self) -> &'static str {
        if self.mlx.is_some() { "mlx-lm" } else { "PEFT" }
    }
}

/// A weight or bias of the base that an adapter's file has, though no setting says that it was trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseTensor {
    /// What it stands for; a tied head's weight is the embedding's.
    pub parameter: Parameter,
    /// Its key.
    pub key: String,
    /// Whether PEFT would find the module under this key.
    usable: bool,
}

/// An adapter folder, checked against the model it is to be used with.
#[derive(Debug)]
pub struct AdapterFolder {
    /// Its settings.
    pub config: PeftConfig,
    /// What they come to on the model.
    pub resolution: Resolution,
    /// What is worth telling the user.
    pub notes: Vec<String>,
    /// The model as the adapter means it: the base's configuration, with as many tokens as the adapter has
    /// rows for.
    pub model: Config,
    /// What the file has of the base itself; after [`AdapterFolder::compare`] only what differs, and takes
    /// its place.
    pub base_tensors: Vec<BaseTensor>,
    /// Tokens that were added to the base's vocabulary before the adapter was trained.
    pub added_tokens: usize,
    /// The adapter's tensors, for [`AdapterFolder::model`].
    layout: Layout,
    tensors: AdapterTensors,
}

impl AdapterFolder {
    /// Opens an adapter folder for a model. `base` is what the user calls the model, if known: a base of
    /// another name is a note, tensors of another shape are an error.
    pub fn open(folder: &Path, model: &Config, base: Option<&str>) -> Result<AdapterFolder> {
        let AdapterFiles { mut config, mut tensors, mlx } = AdapterFiles::open(folder)?;
        let mut moved = false;
        match mlx {
            Some(settings) => settings.check_layers(&tensors, model)?,
            // Trained on the model by itself, or with it in another place of the wrapper.
            None => {
                let place = |key: &str| model.names.moved_here(key.strip_prefix(PREFIX)?);
                moved = tensors.file.names().any(|key| place(key).is_some());
                tensors.file.rename(|key| Some(key_prefix(&place(key)?)))?;
                if moved {
                    config.rename(|path| model.names.moved_here(path));
                }
            }
        }
        let settings = folder.join(CONFIG_FILE);
        let converted =
            per_expert::convert(&config, &tensors, model).map_err(|e| in_file(e, &settings, &config))?;
        if let Some((new, assembled)) = converted {
            config = new;
            tensors.assemble(assembled)?;
        }
        let resolution =
            targets::resolve_as_peft(&config, model).map_err(|e| in_file(e, &settings, &config))?;
        let lost = |field: &str| resolution.unused.iter().any(|unused| unused.field == field);
        if let Some(field) = ["rank_pattern", "alpha_pattern"].into_iter().find(|field| moved && lost(field))
        {
            let problem = "names places of the model that the adapter was trained on, which are others here; write \
                           them as this model has them, or without what stands before the layers";
            return Err(ModelError::field(&settings, field, problem));
        }
        let mut opened = AdapterFolder {
            config,
            resolution,
            notes: vec![],
            model: model.clone(),
            base_tensors: vec![],
            added_tokens: 0,
            layout: Layout::default(),
            tensors,
        };
        opened.resize_vocabulary()?;
        opened.layout = Layout::of_adapter(&opened.resolution, &opened.model);
        opened.check()?;
        opened.note(base);
        Ok(opened)
    }

    /// The adapter itself, laid out for [`AdapterFolder::model`], in the memory of a device.
    ///
    /// # Errors
    /// If a tensor has a value that is not finite, or cannot be read.
    pub fn read(&self, device: &Device) -> Result<Adapter> {
        let mut adapter = Adapter::zeros(self.layout.clone(), self.config.lora_dropout as f32, device);
        let Adapter { layout, parameters, .. } = &mut adapter;
        for tensor in layout.tensors() {
            read_tensor(parameters, tensor, |to| self.tensors.read_into(&tensor.name, to))?;
        }
        Ok(adapter)
    }

    /// Reads a tensor by its key into a matrix of its size; a tensor of one dimension is a single row.
    ///
    /// # Errors
    /// As [`Checkpoint::read_into`].
    pub fn read_into(&self, key: &str, to: MatrixMut<'_>) -> Result<()> {
        self.tensors.read_into(key, to)
    }

    /// Reads the tensor that takes the place of a parameter of the base into its matrix; false if none does.
    pub(crate) fn read_replacement(&self, parameter: &Parameter, to: MatrixMut<'_>) -> Result<bool> {
        let Some(BaseTensor { key, .. }) = self.base_tensors.iter().find(|t| t.parameter == *parameter)
        else {
            return Ok(false);
        };
        read_as_stored(parameter.transposed, to, |to| self.read_into(key, to))?;
        Ok(true)
    }

    /// Leaves of [`AdapterFolder::base_tensors`] those that are not the base's own, rounded or not.
    ///
    /// # Errors
    /// If one that differs cannot take the base's place, two that stand for the same differ from each other,
    /// or the base has no weights.
    pub fn compare(&mut self, base: &ModelFolder) -> Result<()> {
        let (config, base) = (&base.config, base.require_weights()?);
        let file = &self.tensors.file;
        let mut kept: Vec<BaseTensor> = Vec::new();
        for tensor in std::mem::take(&mut self.base_tensors) {
            if let Some(twin) = kept.iter_mut().find(|kept| kept.parameter == tensor.parameter) {
                if !file.same_values(&tensor.key, file, &twin.key)? {
                    let problem = format!(
                        "differs from `{}`, and both stand for {}; the adapter's file must have one of them",
                        twin.key,
                        tensor.parameter.name()
                    );
                    return Err(self.tensors.error(&tensor.key, problem));
                }
                twin.usable |= tensor.usable;
                continue;
            }
            kept.push(tensor);
        }
        for tensor in kept {
            let base_has_it = self.added_tokens == 0 || !is_vocabulary(tensor.parameter.module);
            if base_has_it {
                if base.quantized(&tensor.parameter, config)?.is_some() {
                    let problem = "stands for a weight that the base has quantized; use the base's 16-bit checkpoint, \
                                   or take the tensor out of the adapter";
                    return Err(self.tensors.error(&tensor.key, problem));
                }
                let name = base.stored_name(&tensor.parameter, config)?;
                if file.same_values(&tensor.key, base, &name)? {
                    continue;
                }
            }
            if !tensor.usable {
                let key = Whole::parse(&tensor.key).expect("it was parsed before");
                let place = self.place_of(self.model.names.parse(key.path).expect("it was parsed before"));
                let problem = format!(
                    "differs from {} of the base, and has a name that PEFT would drop with these settings: its place is {}{}{}",
                    tensor.parameter.name(),
                    key.path,
                    if place.is_empty() { "" } else { "." },
                    place
                );
                return Err(self.tensors.error(&tensor.key, problem));
            }
            self.base_tensors.push(tensor);
        }
        let noted =
            self.base_tensors.iter().filter(|t| self.added_tokens == 0 || !is_vocabulary(t.parameter.module));
        let told = noted.map(|t| {
            let name = t.parameter.name();
            format!(
                "the adapter's file has {name} whole, which differs from the base's and is used in its place"
            )
        });
        let told: Vec<String> = told.collect();
        self.notes.extend(told);
        Ok(())
    }

    /// Refuses an adapter that changes the base itself, where only what is trained would be kept.
    ///
    /// # Errors
    /// If [`AdapterFolder::base_tensors`] has any that [`AdapterFolder::compare`] left there.
    pub fn require_unchanged_base(&self) -> Result<()> {
        let advice = "merge the adapter, which keeps it, and train on the merged model";
        if self.added_tokens > 0 {
            let problem = format!(
                "the adapter has {} rows more than the base's vocabulary of {}: tokens were added before it was trained, so \
                 the base must be resized first, and its tokenizer used; {advice}",
                self.added_tokens,
                self.model.vocab_size - self.added_tokens
            );
            return Err(ModelError::file(self.tensors.path(), problem));
        }
        match self.base_tensors.first() {
            None => Ok(()),
            Some(tensor) => {
                let problem = format!(
                    "differs from the base's and is not trained (modules_to_save does not name it), so a run that goes on \
                     from this adapter would lose it; {advice}"
                );
                Err(self.tensors.error(&tensor.key, problem))
            }
        }
    }

    /// Refuses to quantize a weight that the adapter's file has in place of the base's: PEFT would not load
    /// it either.
    pub(crate) fn check_quantizable(&self) -> Result<()> {
        match self.base_tensors.iter().find(|t| t.parameter.is_quantizable()) {
            None => Ok(()),
            Some(tensor) => {
                let problem = "differs from the base's weight, which is to be quantized; use the base without quantization";
                Err(self.tensors.error(&tensor.key, problem))
            }
        }
    }

    /// Takes over the size of the vocabulary if the adapter has more rows than the base, all that are needed.
    fn resize_vocabulary(&mut self) -> Result<()> {
        let base = self.model.vocab_size;
        let mut rows = BTreeMap::new();
        for key in self.tensors.keys() {
            let of_vocabulary = |path: &str| self.model.names.parse(path).is_some_and(is_vocabulary);
            let update = key.strip_prefix(PREFIX).and_then(|path| path.strip_suffix(".lora_B.weight"));
            let whole = Whole::parse(key).map(|whole| whole.path);
            let named = whole.is_some_and(of_vocabulary) || update.is_some_and(of_vocabulary);
            match self.tensors.shape(key).as_deref() {
                Some(&[n, cols]) if named && (update.is_some() || cols == self.model.hidden_size) => {
                    rows.insert(key.to_owned(), n);
                }
                _ => {}
            }
        }
        let Some((key, &new)) = rows.iter().find(|&(_, &n)| n != base) else { return Ok(()) };
        if new < base {
            let problem = format!(
                "has {new} rows, {} fewer than the base's vocabulary of {base}: the base's vocabulary had another size \
                 when the adapter was trained; {}",
                base - new,
                self.origin()
            );
            return Err(self.tensors.error(key, problem));
        }
        if let Some((other, n)) = rows.iter().find(|&(_, &n)| n != new) {
            let problem =
                format!("has {new} rows, but `{other}` has {n}; embedding and head have one vocabulary");
            return Err(self.tensors.error(key, problem));
        }
        self.added_tokens = new - base;
        self.model.vocab_size = new;
        self.model.raw.insert("vocab_size".to_owned(), Value::from(new));
        Ok(())
    }

    /// Every expected key with its shape is there, and no other but the base's own.
    fn check(&mut self) -> Result<()> {
        for tensor in self.layout.tensors() {
            let (key, shape) = (&tensor.name, tensor.file_shape());
            let Some(found) = self.tensors.shape(key) else {
                return Err(self.missing(key));
            };
            if found != shape {
                return Err(self.misshapen(key, &found, &shape, &self.reason(key)));
            }
        }
        let expected: BTreeSet<&str> = self.layout.tensors().iter().map(|t| t.name.as_str()).collect();
        let mut base_tensors = Vec::new();
        for key in self.tensors.keys().filter(|key| !expected.contains(key)) {
            if self.is_copy(key, &expected)? {
                continue;
            }
            let Some(tensor) = self.base_tensor(key) else { return Err(self.unknown(key, &expected)) };
            let (found, shape) = (self.tensors.shape(key).unwrap_or_default(), tensor.parameter.file_shape());
            if found != shape {
                return Err(self.misshapen(key, &found, &shape, "as the base has it"));
            }
            base_tensors.push(tensor);
        }
        self.base_tensors = base_tensors;
        if self.added_tokens > 0 { self.check_rows() } else { Ok(()) }
    }

    /// Whether this is a second copy of what is trained whole: PEFT writes one where it saves embeddings by
    /// another road, too.
    fn is_copy(&self, key: &str, expected: &BTreeSet<&str>) -> Result<bool> {
        let first = key.replace(".modules_to_save.", ".").replace(".default.", ".");
        if first == key || !expected.contains(first.as_str()) {
            return Ok(false);
        }
        let file = &self.tensors.file;
        if file.same_values(key, file, &first)? {
            return Ok(true);
        }
        let problem = format!(
            "differs from `{first}`, and both stand for what was trained; the file must have one of them"
        );
        Err(self.tensors.error(key, problem))
    }

    /// A base that is resized takes every row of embedding and head from the adapter's file.
    fn check_rows(&mut self) -> Result<()> {
        let modules: &[ModuleId] = &[ModuleId::Embedding, ModuleId::Head];
        let tied = self.model.tie_word_embeddings;
        let saved = |module| self.resolution.saved.contains(&module);
        for &module in modules {
            let parameter = self.model.weight_of(module);
            if self.base_tensors.iter().any(|t| t.parameter == parameter) {
                continue;
            }
            // What is trained whole covers the base's weight, that of a tied head only where both are.
            if !saved(module) || (tied && !modules.iter().all(|&m| saved(m))) {
                let problem = format!(
                    "holds embeddings of {} tokens, {} more than the base's vocabulary of {}: tokens were added before the \
                     adapter was trained, so the base must be resized first, and the rows of {} are not in the file; \
                     resize the base as it was then, and use that model with its tokenizer",
                    self.model.vocab_size,
                    self.added_tokens,
                    self.model.vocab_size - self.added_tokens,
                    self.model.path(module)
                );
                return Err(ModelError::file(self.tensors.path(), problem));
            }
            // Any of them will do: a pass uses the adapter's copy.
            let key = format!("{}.weight", key_prefix(&self.model.path(module)));
            self.base_tensors.push(BaseTensor { parameter, key, usable: true });
        }
        Ok(())
    }

    /// Where the shape of a tensor that the settings call for comes from.
    fn reason(&self, key: &str) -> String {
        let Resolution { targets, parameters, .. } = &self.resolution;
        let path = key.strip_prefix(PREFIX).unwrap_or(key);
        let place = path.split_once(".lora_").map(|(place, _)| place);
        if let Some(target) = targets.iter().find(|target| place == Some(target.path.as_str())) {
            let module = self.model.module(target.module);
            let size = format!("{} x {}", module.rows, module.cols);
            return format!("r {}; {} of the model is {size}", target.rank, target.path);
        }
        if let Some(target) = parameters.iter().find(|target| place == Some(target.place.as_str())) {
            let (count, [out, inner]) = target.size(&self.model);
            let size = format!("{count} x {} x {inner}", target.parts().len().max(1) * out);
            return format!("r {}; {} of the model is {size}", target.rank, target.name);
        }
        let path = path.rsplit_once('.').map_or(path, |(path, _)| path);
        format!("{path} of the model, trained whole")
    }

    /// What a key stands for in the base, if it is the whole weight or bias of a module.
    fn base_tensor(&self, key: &str) -> Option<BaseTensor> {
        let Whole { path, place, bias } = Whole::parse(key)?;
        let module = self.model.names.parse(path)?;
        let weight = self.model.weight_of(module);
        let mut parameters = self.model.parameters().into_iter();
        let parameter = parameters.find(|p| p.module == weight.module && p.bias == bias)?;
        Some(BaseTensor { parameter, key: key.to_owned(), usable: place == self.place_of(module) })
    }

    /// Where PEFT keeps the base's own weight of a module.
    fn place_of(&self, module: ModuleId) -> &'static str {
        match () {
            () if self.resolution.saved.contains(&module) => "original_module",
            () if self.resolution.targets.iter().any(|t| t.module == module) => "base_layer",
            () => "",
        }
    }

    fn missing(&self, key: &str) -> ModelError {
        let dora = key.replace(".lora_A.weight", ".lora_magnitude_vector");
        if dora != key && !self.resolution.dora && self.tensors.shape(&dora).is_some() {
            return self.tensors.error(&dora, foreign_part(&dora).expect("it is DoRA's"));
        }
        let near = quoted(nearest(key, self.tensors.keys(), 1));
        let near =
            if near.is_empty() { "the file is empty".to_owned() } else { format!("the nearest is {near}") };
        let problem =
            format!("is missing ({near}), though adapter_config.json calls for it; {}", self.origin());
        self.tensors.error(key, problem)
    }

    fn misshapen(&self, key: &str, found: &[usize], shape: &[usize], what: &str) -> ModelError {
        let problem = format!("has shape {found:?} but needs {shape:?} here ({what}); {}", self.origin());
        self.tensors.error(key, problem)
    }

    fn unknown(&self, key: &str, expected: &BTreeSet<&str>) -> ModelError {
        if let Some(problem) = foreign_part(key) {
            return self.tensors.error(key, problem);
        }
        let near = quoted(nearest(key, expected.iter().copied(), 1));
        let problem = format!(
            "is not called for by adapter_config.json on this model (the nearest that is: {near}); {}",
            self.origin()
        );
        self.tensors.error(key, problem)
    }

    /// For which base the adapter is, as far as it says.
    fn origin(&self) -> String {
        match &self.config.base_model_name_or_path {
            Some(base) => format!("the adapter was trained on {base:?}: use it with that model"),
            None => {
                "the adapter was trained on another model, or its files are not of one adapter".to_owned()
            }
        }
    }

    fn note(&mut self, base: Option<&str>) {
        let trimmed = |name: &str| name.trim_end_matches('/').to_owned();
        if let (Some(named), Some(base)) = (&self.config.base_model_name_or_path, base)
            && trimmed(named) != trimmed(base)
        {
            self.notes.push(format!(
                "the adapter was trained on {named:?} and is used with {base:?}; its shapes fit"
            ));
        }
        if self.added_tokens > 0 {
            self.notes.push(format!(
                "tokens were added before the adapter was trained: the base is resized from {} tokens to {}",
                self.model.vocab_size - self.added_tokens,
                self.model.vocab_size
            ));
        }
        let unused =
            self.resolution.unused.iter().map(|u| format!("{CONFIG_FILE}: `{}` {}", u.field, u.problem));
        self.notes.extend(unused);
    }
}

/// A key of the whole weight or bias of a module.
struct Whole<'a> {
    path: &'a str,
    /// What PEFT puts between the path and `weight`: nothing, `base_layer` beside a low-rank update,
    /// `original_module` beside what is trained whole.
    place: &'a str,
    bias: bool,
}

impl<'a> Whole<'a> {
    fn parse(key: &'a str) -> Option<Self> {
        let path = key.strip_prefix(PREFIX)?;
        let bias = path.ends_with(".bias");
        let path = path.strip_suffix(if bias { ".bias" } else { ".weight" })?;
        let (path, place) = match path.rsplit_once('.') {
            Some((path, place @ ("base_layer" | "original_module"))) => (path, place),
            _ => (path, ""),
        };
        Some(Whole { path, place, bias })
    }
}

fn is_vocabulary(module: ModuleId) -> bool {
    matches!(module, ModuleId::Embedding | ModuleId::Head)
}

/// Of a tensor that belongs to another method: which, continuing "tensor `key` ...".
fn foreign_part(key: &str) -> Option<&'static str> {
    const PARTS: [(&str, &str); 4] = [
        (
            ".lora_magnitude_vector",
            "belongs to DoRA, which adapter_config.json does not name: it must say \"use_dora\": true",
        ),
        (
            ".lora_embedding_",
            "is a low-rank update of an embedding, which is not supported; train it whole by modules_to_save, or merge \
             the adapter in PEFT",
        ),
        (
            ".trainable_tokens_",
            "holds single trained tokens (trainable_token_indices), which are not supported; merge the adapter in PEFT",
        ),
        (".lora_B.bias", "is a bias on B (lora_bias), which is not supported; merge the adapter in PEFT"),
    ];
    PARTS.into_iter().find(|(part, _)| key.contains(part)).map(|(_, problem)| problem)
}

/// Says of a setting that does not fit the model in which file it stands and which model it may be meant for.
fn in_file(error: ModelError, path: &Path, config: &PeftConfig) -> ModelError {
    match (error, &config.base_model_name_or_path) {
        (ModelError::Setting { field, problem }, Some(base)) => {
            ModelError::field(path, field, format!("{problem}; the adapter was trained on {base:?}"))
        }
        (ModelError::Setting { field, problem }, None) => ModelError::field(path, field, problem),
        (other, _) => other,
    }
}
