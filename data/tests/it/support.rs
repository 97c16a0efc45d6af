//! What the tests share: the fixture tokenizer, files in a temporary folder, examples as text.

use std::path::{Path, PathBuf};

use data::{DataError, DataSpec, Dataset, Example, Tokenizer, preview};
use tempfile::TempDir;

/// A folder beside the tests.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The fixture tokenizer: byte-level, with a BOS that it adds itself and the built-in chatml template.
pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::load(&fixture("tokenizer")).unwrap()
}

/// The fixture tokenizer without a chat template.
pub(crate) fn tokenizer_without_template() -> Tokenizer {
    let folder = TempDir::new().unwrap();
    for name in ["tokenizer.json", "generation_config.json"] {
        std::fs::copy(fixture("tokenizer").join(name), folder.path().join(name)).unwrap();
    }
    let config = r#"{"bos_token": "<s>", "eos_token": "</s>"}"#;
    std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    Tokenizer::load(folder.path()).unwrap()
}

/// Files in a folder that goes away with the test.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        Files(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }
}

/// Loads the text as a file of the given name, under settings changed by `set`.
pub(crate) fn load_as(
    name: &str,
    content: &str,
    set: impl FnOnce(&mut DataSpec),
) -> Result<Dataset, DataError> {
    let files = Files::new(&[(name, content)]);
    let mut spec = DataSpec::file(files.path(name));
    set(&mut spec);
    Dataset::load(&spec, &tokenizer())
}

/// Loads JSON lines under settings changed by `set`.
pub(crate) fn load(lines: &str, set: impl FnOnce(&mut DataSpec)) -> Result<Dataset, DataError> {
    load_as("data.jsonl", lines, set)
}

/// The error of loading a file, without the folder's name.
pub(crate) fn error_of(name: &str, content: &str, set: impl FnOnce(&mut DataSpec)) -> String {
    let files = Files::new(&[(name, content)]);
    let mut spec = DataSpec::file(files.path(name));
    set(&mut spec);
    let error = Dataset::load(&spec, &tokenizer()).expect_err("the file is malformed");
    error.to_string().replace(&format!("{}/", files.folder().display()), "")
}

/// An example as text, each trained run in brackets, line breaks visible.
pub(crate) fn masked(example: &Example, tokenizer: &Tokenizer) -> String {
    let run = |(text, trained): (String, bool)| if trained { format!("[{text}]") } else { text };
    let text: String = preview::runs(example, tokenizer).into_iter().map(run).collect();
    text.replace('\n', "⏎\n")
}
