//! A run's folder: who may write there, what it remembers, and what goes with the result.
//!
//! ```text
//! run.yaml                                         the resolved settings, paths in full: they make the
//!                                                  folder a run's
//! tokenizer.json ..., chat_template.jinja          what the examples were rendered with
//! checkpoints/                                     all that a resume needs, and the best evaluation's
//!                                                  tensors
//! metrics.jsonl                                    a line for each step and each evaluation
//! adapter_config.json, adapter_model.safetensors   the result
//! README.md                                        the model card
//! events.out.tfevents.*                            the metrics for TensorBoard, if training.tensorboard is set
//! evaluations/*.json                               what a person redirected there, for `report`
//! ```

mod account;
mod card;
mod of_result;

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use data::{ChatTemplate, Dataset, Format, Tokenizer};
use model::adapter::peft::CONFIG_FILE;
use model::checkpoint::write_whole;
use serde_json::Value;

pub(crate) use account::{Account, Losses, State};
pub(crate) use card::{has_card, write_card};
pub(crate) use of_result::OfResult;

use crate::error::user;
use crate::run_file::{self, RunFile, Settings};
use crate::terminal::quoted;

/// The resolved settings of a run.
pub(crate) const SETTINGS: &str = "run.yaml";
const CHECKPOINTS: &str = "checkpoints";
const LOCK: &str = "lock";
const METRICS: &str = "metrics.jsonl";
/// Bytes at the end of the metrics in which the last step's line stands.
const LAST_LINES: u64 = 1 << 16;
/// How often, and after how long, a lock is tried again.
const LOOKS: usize = 4;
const LOOK: Duration = Duration::from_millis(50);
const TEMPLATE: &str = "chat_template.jinja";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Whether a folder holds a run. One that holds anything else is refused.
pub(crate) fn holds_run(folder: &Path) -> anyhow::Result<bool> {
    let only = |folder: &Path, ours: fn(&str) -> bool| match fs::read_dir(folder) {
        Ok(mut entries) => entries.all(|e| e.is_ok_and(|e| ours(&e.file_name().to_string_lossy()))),
        Err(_) => true, // there is none, or its use will tell
    };
    // A run that was killed while it claimed the folder is none.
    let empty = only(folder, |name| name == CHECKPOINTS || name.starts_with(".run.yaml."))
        && only(&folder.join(CHECKPOINTS), |name| name == LOCK);
    // Looked at last: another process may be claiming the folder just now.
    if folder.join(SETTINGS).exists() {
        return Ok(true);
    }
    if folder.exists() && !folder.is_dir() {
        let message = "is a file; `output` names the folder for the result";
        return Err(user(format!("{} {message}", folder.display())));
    }
    if !empty {
        let message = "is not empty and holds no run of luthier; choose another folder for `output`";
        return Err(user(format!("{} {message}", folder.display())));
    }
    Ok(false)
}

/// Refuses to go on with a folder that holds no run, which `--resume FOLDER` asks for.
pub(crate) fn require_run(folder: &Path) -> anyhow::Result<()> {
    if folder.join(SETTINGS).is_file() {
        return Ok(());
    }
    let shown = folder.display();
    let message = match folder.is_dir() {
        true => format!("--resume {shown}: there is no {SETTINGS} in it, so it holds no run to go on with"),
        false => format!("--resume {shown}: there is no such folder"),
    };
    Err(user(message))
}

/// A run that goes on takes the settings on which its result depends, if they are left open, from its saved
/// ones and must agree with the rest of them.
pub(crate) fn go_on(folder: &Path, resume: bool, run: &mut RunFile) -> anyhow::Result<()> {
    if !resume {
        return Err(user(format!(
            "{} holds a run already: go on with it by `{}`, or choose another folder for `output`",
            folder.display(),
            resume_command(folder)
        )));
    }
    let mut saved = Settings::resolve(Some(&folder.join(SETTINGS)), Vec::new())?.run;
    run.adopt_settled(&saved);
    saved.make_paths_absolute();
    let mut now = run.clone();
    now.make_paths_absolute();
    run_file::check_resume(&saved, &now)
}

/// What a person types to go on with a run.
pub(crate) fn resume_command(folder: &Path) -> String {
    format!("luthier train --resume {}", quoted(folder))
}

/// Where the best evaluation's tensors are kept.
pub(crate) fn best(folder: &Path) -> PathBuf {
    folder.join(CHECKPOINTS).join("best")
}

/// Seconds since 1970 at which the run first began: templates may print the date, and a resumed run must
/// print the same.
pub(crate) fn begun(folder: &Path, resumed: bool) -> i64 {
    let saved = fs::read_to_string(begun_path(folder)).ok().filter(|_| resumed);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    saved.and_then(|text| text.trim().parse().ok()).unwrap_or_else(now)
}

fn begun_path(folder: &Path) -> PathBuf {
    folder.join(CHECKPOINTS).join("begun")
}

/// Writes the resolved settings into the run folder; they come first, since they make the folder a run's.
/// Paths are in full: the run can be gone on with, and its adapter used, from any folder.
pub(crate) fn claim(folder: &Path, run: &RunFile, begun: i64) -> anyhow::Result<()> {
    let mut saved = run.clone();
    saved.make_paths_absolute();
    write_whole(&folder.join(SETTINGS), saved.to_yaml()?.as_bytes())?;
    Ok(write_whole(&begun_path(folder), format!("{begun}\n").as_bytes())?)
}

/// Makes and holds the folder of a new run, in which another process may have begun one meanwhile.
pub(crate) fn begin(folder: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make the run folder {}", folder.display()))?;
    let lock = lock(folder)?;
    if holds_run(folder)? {
        let message = "was taken by another run meanwhile; wait for it and go on with it by --resume, or choose another folder";
        return Err(user(format!("{} {message}", folder.display())));
    }
    Ok(lock)
}

/// Holds the run folder until this process ends, however it ends: two at once would write into each other's
/// checkpoints.
pub(crate) fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join(CHECKPOINTS).join(LOCK);
    // Not the folder above it: one that was removed meanwhile is not made again.
    let made = fs::create_dir(folder.join(CHECKPOINTS)).or_else(|e| match e.kind() {
        ErrorKind::AlreadyExists => Ok(()),
        _ => Err(e),
    });
    let file = made
        .and_then(|()| File::options().append(true).create(true).open(&path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    // Who only looks whether a run is going on holds it for a moment, too.
    let mut tries = (0..LOOKS).map(|_| match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            thread::sleep(LOOK);
            Err(TryLockError::WouldBlock)
        }
        other => other,
    });
    let locked = tries.find(Result::is_ok).unwrap_or_else(|| file.try_lock());
    match locked {
        Err(TryLockError::WouldBlock) => {
            let message = "is being trained by another process; wait until it has ended, or end it";
            Err(user(format!("{} {message}", folder.display())))
        }
        // Not every file system has locks; a folder on such a one is not refused.
        _ => Ok(file),
    }
}

/// The source of the chat template that the examples are rendered with, where it is not the tokenizer's own.
pub(crate) fn template_source(
    run: &RunFile,
    tokenizer: &Tokenizer,
    train: &Dataset,
) -> anyhow::Result<Option<String>> {
    let setting = match &run.data.chat_template {
        Some(named) => Some(named.as_str()),
        // Instructions are rendered so where there is no template.
        None if tokenizer.templates().is_empty() && has_instructions(train) => Some("alpaca"),
        None => return Ok(None),
    };
    Ok(ChatTemplate::resolve(setting, tokenizer)?.map(|template| template.source().to_owned()))
}

fn has_instructions(train: &Dataset) -> bool {
    train.report.files.iter().any(|file| file.format == Format::Alpaca)
}

/// Copies the tokenizer from `from` into a folder, with this chat template in place of its own if one is
/// given: as `chat_template.jinja`, which transformers reads first, and in `tokenizer_config.json`, which
/// older versions read.
pub(crate) fn write_tokenizer(from: &Path, template: Option<&str>, folder: &Path) -> anyhow::Result<()> {
    let Some(template) = template else {
        return Ok(model::checkpoint::copy_tokenizer(from, folder, true)?);
    };
    model::checkpoint::copy_tokenizer(from, folder, false)?;
    write_whole(&folder.join(TEMPLATE), template.as_bytes())?;
    let path = from.join(TOKENIZER_CONFIG);
    let mut config: Value = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?,
        Err(e) if e.kind() == ErrorKind::NotFound => Value::Object(Default::default()),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    config["chat_template"] = template.into();
    let text = serde_json::to_string_pretty(&config).expect("JSON that was just read");
    Ok(write_whole(&folder.join(TOKENIZER_CONFIG), text.as_bytes())?)
}

/// The run that an adapter's folder belongs to: itself, or, of a checkpoint in it, the folder above.
pub(crate) fn of_adapter(adapter: &Path) -> Option<PathBuf> {
    let above = || {
        let parent = adapter.canonicalize().ok()?.parent()?.to_owned();
        (parent.file_name()? == CHECKPOINTS).then(|| parent.parent().map(Path::to_owned)).flatten()
    };
    let holds = |folder: &PathBuf| folder.join(SETTINGS).is_file();
    Some(adapter.to_owned()).filter(holds).or_else(|| above().filter(holds))
}

/// The settings that a run folder remembers. One that cannot be read is nobody's of ours: a note says so.
pub(crate) fn settings(folder: &Path) -> Option<RunFile> {
    let path = folder.join(SETTINGS);
    match Settings::resolve(Some(&path), Vec::new()) {
        Ok(settings) => Some(settings.run),
        Err(error) => {
            eprintln!(
                "note: {} is not a run file of this program, so nothing is taken from it: {error}",
                path.display()
            );
            None
        }
    }
}

/// Refuses a folder without an adapter in it that has checkpoints of one, as an unfinished run or a folder of
/// a Trainer has: the message names the last of them.
pub(crate) fn require_adapter(folder: &Path) -> anyhow::Result<()> {
    if folder.join(CONFIG_FILE).exists() {
        return Ok(());
    }
    if folder.is_file() {
        return Err(user(format!(
            "{} is a file; name the folder of an adapter or of its run",
            folder.display()
        )));
    }
    let ours = folder.join(SETTINGS).is_file();
    let (within, prefix) =
        if ours { (folder.join(CHECKPOINTS), "step-") } else { (folder.to_owned(), "checkpoint-") };
    let shown = folder.display();
    match last_checkpoint(&within, prefix, CONFIG_FILE).map(|(_, path)| path) {
        Some(last) if ours => Err(user(format!(
            "{shown}: this run has no result yet; its last checkpoint is {}: name that, or finish the run by `{}`",
            last.display(),
            resume_command(folder)
        ))),
        Some(last) => Err(user(format!(
            "{shown}: there is no {CONFIG_FILE} in it; its last checkpoint is {}: name that",
            last.display()
        ))),
        None if ours && folder.join("config.json").is_file() => Err(user(format!(
            "{shown} is a model of its own, all of its weights were trained: name it by --model"
        ))),
        None if ours => Err(user(format!(
            "{shown}: this run has no result and no checkpoint yet; finish it by `{}`",
            resume_command(folder)
        ))),
        None => Ok(()), // whoever reads the adapter says what is missing
    }
}

/// Puts the run folder's copy in the place of a template file that is gone.
pub(crate) fn find_template(folder: &Path, run: &mut RunFile) {
    let copy = folder.join(TEMPLATE);
    let is_gone = |named: &str| !data::template::BUILTIN.contains(&named) && !Path::new(named).exists();
    if run.data.chat_template.as_deref().is_some_and(is_gone) && copy.is_file() {
        run.data.chat_template = Some(copy.display().to_string());
    }
}

/// The folder of the last checkpoint of a run that has an adapter in it.
pub(crate) fn last_adapter(folder: &Path) -> Option<PathBuf> {
    Some(last_checkpoint(&folder.join(CHECKPOINTS), "step-", CONFIG_FILE)?.1)
}

/// The last step that a run has computed, and the last one that is saved; nothing if it has not begun. Cheap
/// enough to be asked every few seconds: of the metrics, only the end is read.
pub(crate) fn steps(folder: &Path) -> Option<(u64, u64)> {
    let mut file = File::open(folder.join(METRICS)).ok()?;
    let length = file.metadata().ok().filter(fs::Metadata::is_file)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_LINES))).ok()?;
    let mut end = Vec::new();
    file.take(LAST_LINES).read_to_end(&mut end).ok()?;
    let step = |line: &[u8]| -> Option<u64> {
        let line: serde_json::Value = serde_json::from_slice(line).ok()?;
        line.get("loss")?;
        line.get("step")?.as_u64()
    };
    let done = end.split(|byte| *byte == b'\n').filter_map(step).next_back().unwrap_or(0);
    let is_finished = [CONFIG_FILE, "config.json"].iter().any(|file| folder.join(file).is_file());
    let saved = last_checkpoint(&folder.join(CHECKPOINTS), "step-", "state.json").map_or(0, |(step, _)| step);
    Some((done, if is_finished { done } else { saved }))
}

/// The folder `PREFIXn` that has a file, with the largest n.
fn last_checkpoint(folder: &Path, prefix: &str, file: &str) -> Option<(u64, PathBuf)> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let numbered = entries.filter_map(|entry| {
        let number: u64 = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
        entry.path().join(file).is_file().then(|| (number, entry.path()))
    });
    numbered.max()
}
