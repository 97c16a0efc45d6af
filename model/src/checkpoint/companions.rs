//! What stands beside the weights in a model's folder and is copied with them.

use std::fs;
use std::path::Path;

use super::write_whole;
use crate::error::{ModelError, Result};

/// The tokenizer's files, but for its chat templates.
const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];
/// Its chat template, and a folder of more of them by name.
const TEMPLATE: &str = "chat_template.jinja";
const MORE_TEMPLATES: &str = "additional_chat_templates";
/// And the others.
const COMPANIONS: [&str; 2] = ["generation_config.json", "LICENSE"];

/// Copies a tokenizer from one folder to another, and the files of its chat templates if `templates`.
pub fn copy_tokenizer(from: &Path, to: &Path, templates: bool) -> Result<()> {
    if from == to {
        return Ok(());
    }
    for name in TOKENIZER_FILES.iter().chain(templates.then_some(&TEMPLATE)) {
        copy_file(&from.join(name), &to.join(name))?;
    }
    if !templates {
        return Ok(());
    }
    for entry in fs::read_dir(from.join(MORE_TEMPLATES)).into_iter().flatten().flatten() {
        let folder = to.join(MORE_TEMPLATES);
        fs::create_dir_all(&folder).map_err(|e| ModelError::write(&folder, e))?;
        copy_file(&entry.path(), &folder.join(entry.file_name()))?;
    }
    Ok(())
}

/// Copies what else stands beside the weights of a model's folder.
pub(crate) fn copy_companions(from: &Path, to: &Path) -> Result<()> {
    COMPANIONS.iter().try_for_each(|name| copy_file(&from.join(name), &to.join(name)))
}

/// Copies a file, if it is there.
fn copy_file(from: &Path, to: &Path) -> Result<()> {
    if !from.is_file() {
        return Ok(());
    }
    let bytes = fs::read(from).map_err(|e| ModelError::read(from, e))?;
    write_whole(to, &bytes)
}
