//! A base model on disk, and an adapter with it.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use compute::quant::Format;
use compute::{Device, Precision};
use data::Tokenizer;
use model::adapter::peft::CONFIG_FILE;
use model::adapter::peft::folder::AdapterFolder;
use model::gguf::TensorType;
use model::{Adapter, Config, Decoder, ModelFolder, OnLoading, StoredDType, StoredWeights};
use tempfile::TempDir;

use super::gguf;
use crate::error::{Advised, user};
use crate::hub;
use crate::run_file::{RunFile, Settings};
use crate::run_folder;

/// What a command that uses a model works on: a base, perhaps an adapter, and what the adapter's run
/// remembers.
pub(crate) struct Subject {
    pub(crate) base: Base,
    pub(crate) adapter: Option<Adapter>,
    /// The settings of the run that trained the adapter.
    pub(crate) remembered: Option<RunFile>,
}

impl Subject {
    /// Opens what `--model` and `--adapter` name. Without a model it is the one that the adapter was trained
    /// on, as its run folder or its configuration says. Where the adapter's file has weights of the base
    /// itself they take their place. The tokenizer and its chat template are those in the adapter's folder,
    /// if there are any. The adapter's values go to the memory of `device`, notes to stderr.
    ///
    /// # Errors
    /// If neither names a model, or one does not fit the other.
    pub(crate) fn open(model: Option<&str>, adapter: Option<&str>, device: &Device) -> anyhow::Result<Self> {
        Subject::open_by("--model", model, adapter, device)
    }

    /// [`Subject::open`], where another flag names the model.
    pub(crate) fn open_by(
        flag: &str,
        model: Option<&str>,
        adapter: Option<&str>,
        device: &Device,
    ) -> anyhow::Result<Self> {
        let Some(name) = adapter else {
            let model = model.ok_or_else(|| {
                user(format!(
                    "no model is named: give one by {flag}, or the run folder of an adapter by --adapter"
                ))
            })?;
            return Ok(Subject { base: Base::open(model)?, adapter: None, remembered: None });
        };
        let folder = hub::resolve_adapter(name)?;
        run_folder::require_adapter(&folder)?;
        let run = run_folder::of_adapter(&folder);
        let remembered = run.as_deref().and_then(run_folder::settings);
        let trained_on = remembered.as_ref().and_then(|run| run.model.clone());
        let trained_on = trained_on.or_else(|| named_in_config(&folder));
        let mut base = match (model, &trained_on) {
            (Some(model), _) => Base::open(model)?,
            (None, Some(model)) => Base::open(model).map_err(|error| {
                let advice = format!("name it by {flag}, if it lies elsewhere now");
                Advised::new(
                    error,
                    format!("that is the model which {name} says it was trained on: {advice}"),
                )
            })?,
            (None, None) => {
                let message = "does not say which model it was trained on: name it by";
                return Err(user(format!("{name} {message} {flag}")));
            }
        };
        if let (Some(model), Some(other)) = (model, &trained_on)
            && remembered.is_some()
            && !same_model(model, other)
        {
            eprintln!("note: {name} was trained on {other}; {flag} {model} is used");
        }
        let adapter = base.take_over(&folder, run.as_deref(), device)?;
        Ok(Subject { base, adapter: Some(adapter), remembered })
    }

    /// Gives settings that were left open the values that the adapter was trained under, as far as they
    /// decide what an example is and how the base is held. What is taken, and what differs, is told on
    /// stderr.
    pub(crate) fn lend(&self, settings: &mut Settings) {
        let Some(trained) = &self.remembered else { return };
        let (mut taken, mut differing) = (Vec::new(), Vec::new());
        // As a run folder has them.
        let mut here = settings.run.clone();
        here.make_paths_absolute();
        self.tell_of_quantization();
        self.tell_of_rounding();
        let trained = &RunFile {
            quantization: trained.quantization.filter(|_| super::quantization_of_result(trained).is_some()),
            ..trained.clone()
        };
        for key in ["data.chat_template", "data.max_length", "data.train_on", "quantization"] {
            if here.value(key) == trained.value(key) {
                continue;
            }
            let value = trained.value(key);
            // The copy in the adapter's folder is the one that it was trained with, and stands in for the
            // tokenizer's own.
            let has_copy = || self.base.has_template_file();
            match settings.is_set(key) {
                false if key == "data.chat_template" && has_copy() => {
                    taken.push("its chat template".to_owned());
                }
                true => differing.push(format!("{key} was {value}")),
                // A base that is stored quantized is used as it is.
                false if key == "quantization" && self.base.config.quantization.is_some() => {}
                false => {
                    settings.run.take(key, trained);
                    taken.push(format!("{key} {value}"));
                }
            }
        }
        for (what, list) in [("as in training", taken), ("unlike in training", differing)] {
            if !list.is_empty() {
                eprintln!("note: {what}: {}", list.join(", "));
            }
        }
    }

    /// Tells that the adapter was trained for weights that are rounded, where they are not.
    pub(crate) fn tell_of_rounding(&self) {
        let Some(format) = self.trained_for() else { return };
        let (name, command) = match format {
            Format::Codebook(_) => (format.to_string(), "merge"),
            Format::Blocks(kind) => (TensorType::of_blocks(kind).name().to_lowercase(), "export gguf"),
        };
        eprintln!(
            "note: the adapter was trained for weights that are rounded to {name}, and here they are not; `{command} \
             --type {name}` writes what it was trained for"
        );
    }

    /// For weights of which format the adapter was trained, if it was for such that are rounded.
    pub(crate) fn trained_for(&self) -> Option<Format> {
        Some(self.remembered.as_ref()?.training.quantization_aware?.format())
    }

    /// Tells that a run's quantization is not for its result, where that is so.
    fn tell_of_quantization(&self) {
        let Some(run) = &self.remembered else { return };
        if super::quantization(run) != super::quantization_of_result(run) {
            eprintln!(
                "note: the adapter is for the base as it is stored; its run began by {}, and quantized what that left",
                run.adapter.init.engine().name()
            );
        }
    }

    /// How the base is held: as a flag says (`Some(None)`: not quantized), else as the adapter knew it in
    /// training.
    pub(crate) fn quantization(&self, flag: Option<Option<Format>>) -> Option<Format> {
        let trained = self.remembered.as_ref().and_then(super::quantization_of_result);
        self.tell_of_quantization();
        // What is stored quantized is used as it is.
        let trained = trained.filter(|_| self.base.config.quantization.is_none());
        let words = |format: Option<Format>| format.map_or("none".to_owned(), |format| format.to_string());
        match flag {
            None => {
                if let Some(format) = trained {
                    eprintln!("note: the base is held in {}, as in training", words(Some(format)));
                }
                trained
            }
            // The name says how; the rest is as it was.
            Some(format) if format.map(Format::name) == trained.map(Format::name) => trained,
            Some(format) => {
                if self.remembered.is_some() {
                    let (now, then) = (words(format), words(trained));
                    eprintln!("note: the base is held in {now}; in training it was {then}");
                }
                format
            }
        }
    }
}

/// The model that an adapter's own configuration names, PEFT's or mlx-lm's.
fn named_in_config(folder: &Path) -> Option<String> {
    let text = std::fs::read(folder.join(CONFIG_FILE)).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let name = config.get("base_model_name_or_path").or_else(|| config.get("model"))?.as_str()?;
    Some(name.to_owned()).filter(|name| !name.is_empty())
}

/// Whether two names are of one model: the same folder, or the same id.
fn same_model(one: &str, other: &str) -> bool {
    let place = |name: &str| Path::new(name).canonicalize().ok();
    one == other || (place(one).is_some() && place(one) == place(other))
}

/// A base model's folder and what its files say, before its weights are read.
pub(crate) struct Base {
    /// What the user called it.
    pub(crate) name: String,
    pub(crate) files: ModelFolder,
    /// The files' configuration, as the adapter means it if there is one.
    pub(crate) config: Config,
    /// How its weights are stored; none where the folder has no weights.
    pub(crate) stored: Option<StoredWeights>,
    /// Where its tokenizer is, if not with the model: with an adapter that was trained after tokens were added.
    tokenizer_elsewhere: Option<PathBuf>,
    /// Where the tokenizer of a GGUF file was written to for who needs files, as long as this lives.
    unpacked: OnceCell<TempDir>,
    /// The adapter whose file has some weights in place of the base's own, if one does.
    pub(crate) changed_by: Option<AdapterFolder>,
}

impl Base {
    /// Finds the model, downloading it if need be, and opens it.
    pub(crate) fn open(name: &str) -> anyhow::Result<Self> {
        let files = ModelFolder::open(&hub::resolve_model(name)?)?;
        let (config, stored) = (files.config.clone(), files.stored()?);
        let (name, unpacked) = (name.to_owned(), OnceCell::new());
        Ok(Base { name, files, config, stored, tokenizer_elsewhere: None, unpacked, changed_by: None })
    }

    /// Makes this the base that the adapter in `folder` means, and reads the adapter. `run`: the run folder
    /// that it belongs to.
    fn take_over(&mut self, folder: &Path, run: Option<&Path>, device: &Device) -> anyhow::Result<Adapter> {
        // A run folder says itself what the adapter was trained on.
        let files = self.check_adapter(folder, run.is_none().then_some(&*self.name))?;
        files.notes.iter().for_each(|note| eprintln!("note: {note}"));
        let has_tokenizer =
            |folder: &&Path| ["tokenizer.json", "vocab.json"].iter().any(|name| folder.join(name).is_file());
        match [Some(folder), run].into_iter().flatten().find(has_tokenizer) {
            Some(folder) => self.tokenizer_elsewhere = Some(folder.to_owned()),
            None if files.added_tokens > 0 => eprintln!(
                "note: {} has no tokenizer.json, so the added tokens have no text; put the tokenizer there that the \
                 adapter was trained with",
                folder.display()
            ),
            None => {}
        }
        let adapter = files.read(device)?;
        self.config = files.model.clone();
        self.changed_by = (!files.base_tensors.is_empty()).then_some(files);
        Ok(adapter)
    }

    /// Whether the adapter was trained over a vocabulary that had been made larger.
    pub(crate) fn is_resized(&self) -> bool {
        self.changed_by.as_ref().is_some_and(|files| files.added_tokens > 0)
    }

    /// What other programs show as its name: what a GGUF file says, or else the last part of what the user
    /// called it.
    pub(crate) fn title(&self) -> String {
        let said = self.files.gguf.as_ref().and_then(|file| file.text("general.name")).map(str::to_owned);
        let called = || Path::new(&self.name).file_name().unwrap_or_default().to_string_lossy().into_owned();
        said.unwrap_or_else(called)
    }

    /// The type of its weights in the files, or else in config.json.
    pub(crate) fn dtype(&self) -> Option<StoredDType> {
        self.stored.as_ref().map(|stored| stored.dtype).or(self.config.dtype)
    }

    /// Reads the weights, quantizing them on the way if that is asked for.
    pub(crate) fn load(
        &self,
        device: &Device,
        precision: Precision,
        quantization: Option<Format>,
    ) -> anyhow::Result<Decoder> {
        let adapter = self.changed_by.as_ref();
        let on_loading = quantization.map(|format| OnLoading { format, held: precision });
        Ok(Decoder::load_for(&self.files, adapter, device, precision, on_loading)?)
    }

    /// The tokenizer, which must not have tokens that the model does not know.
    pub(crate) fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        match (&self.tokenizer_elsewhere, &self.files.gguf) {
            (None, Some(file)) => gguf::tokenizer(file),
            (elsewhere, _) => Ok(Tokenizer::load(elsewhere.as_ref().unwrap_or(&self.files.path))?),
        }
    }

    /// A folder with the tokenizer's files. Those of a GGUF file are written for it.
    pub(crate) fn tokenizer_folder(&self) -> anyhow::Result<&Path> {
        match (&self.tokenizer_elsewhere, &self.files.gguf) {
            (Some(folder), _) => Ok(folder),
            (None, None) => Ok(&self.files.path),
            (None, Some(file)) => {
                if self.unpacked.get().is_none() {
                    let _ = self.unpacked.set(gguf::unpack_tokenizer(file)?);
                }
                Ok(self.unpacked.get().expect("it was just written").path())
            }
        }
    }

    /// Whether the tokenizer's folder has its chat template in a file of its own.
    fn has_template_file(&self) -> bool {
        let folder = self.tokenizer_elsewhere.as_ref().unwrap_or(&self.files.path);
        folder.join("chat_template.jinja").is_file()
    }

    /// An adapter folder that leaves this model as it is, checked against it; notes go to stderr.
    pub(crate) fn adapter_folder(&self, folder: &Path) -> anyhow::Result<AdapterFolder> {
        let files = self.check_adapter(folder, Some(&self.name))?;
        files.require_unchanged_base()?;
        files.notes.iter().for_each(|note| eprintln!("note: {note}"));
        Ok(files)
    }

    /// An adapter folder checked against this model, and against its weights where it has such, too. There is
    /// a note if its own configuration names another base than `name`.
    fn check_adapter(&self, folder: &Path, name: Option<&str>) -> anyhow::Result<AdapterFolder> {
        let mut files = AdapterFolder::open(folder, &self.config, name)?;
        if !files.base_tensors.is_empty() {
            files.compare(&self.files)?;
        }
        Ok(files)
    }
}
