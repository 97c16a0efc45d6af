//! `tinker://RUN/weights/NAME`: what checkpoints are called, and where they lie.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::adapters::is_name;
use crate::error::ApiError;

/// What a checkpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To go on from: with the optimizer's moments.
    Training,
    /// To sample from.
    Sampler,
}

impl Kind {
    /// Its part of a path.
    pub(crate) fn segment(self) -> &'static str {
        match self {
            Kind::Training => "weights",
            Kind::Sampler => "sampler_weights",
        }
    }

    /// What clients call the kind.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Training => "training",
            Kind::Sampler => "sampler",
        }
    }

    pub(crate) fn of_segment(segment: &str) -> Option<Self> {
        [Kind::Training, Kind::Sampler].into_iter().find(|kind| kind.segment() == segment)
    }
}

/// A checkpoint's name. None leads out of its run's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CheckpointPath {
    pub(crate) run: String,
    pub(crate) kind: Kind,
    pub(crate) name: String,
}

impl CheckpointPath {
    /// A checkpoint of a run that exists.
    ///
    /// # Errors
    /// If its name is none.
    pub(crate) fn new(run: &str, kind: Kind, name: &str) -> Result<Self, ApiError> {
        match is_name(name) {
            true => Ok(CheckpointPath { run: run.to_owned(), kind, name: name.to_owned() }),
            false => Err(ApiError::field(
                "path",
                "a checkpoint's name has 1 to 128 of A-Z, a-z, 0-9, `.`, `_` and `-`, and does not begin with a \
                 dot",
            )),
        }
    }

    /// Reads a whole path.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("tinker://")?.split('/');
        let (run, segment, name) = (parts.next()?, parts.next()?, parts.next()?);
        let kind = Kind::of_segment(segment)?;
        let is_run = |run: &str| (1..=128).contains(&run.len()) && run.split(':').all(is_name);
        let is_whole = parts.next().is_none() && is_run(run) && is_name(name);
        is_whole.then(|| CheckpointPath { run: run.to_owned(), kind, name: name.to_owned() })
    }

    /// Where it lies, within the server's folder.
    pub(crate) fn folder(&self, state: &Path) -> PathBuf {
        run_folder(state, &self.run).join(self.kind.segment()).join(&self.name)
    }

    /// What clients call it within its run.
    pub(crate) fn id(&self) -> String {
        format!("{}/{}", self.kind.segment(), self.name)
    }
}

/// Where a run's checkpoints lie.
fn run_folder(state: &Path, run: &str) -> PathBuf {
    // A colon is no part of a file's name everywhere.
    state.join("tinker").join(run.replace(':', "_"))
}

impl fmt::Display for CheckpointPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tinker://{}/{}", self.run, self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_back_and_none_leads_out() {
        let text = "tinker://ab12:train:0/weights/step-1.x";
        let path = CheckpointPath::parse(text).unwrap();
        assert_eq!(path.to_string(), text);
        let folder = path.folder(Path::new("state"));
        assert_eq!(folder, Path::new("state/tinker/ab12_train_0/weights/step-1.x"));
        for wrong in [
            "",
            "ab/weights/x",
            "tinker://ab/weights",
            "tinker://ab/weights/",
            "tinker://ab/weights/..",
            "tinker://../weights/x",
            "tinker://a:..:b/weights/x",
            "tinker:///weights/x",
            "tinker://ab/weights/x/y",
            "tinker://ab/other/x",
            "tinker://ab/weights/.hidden",
            "tinker://ab/weights/a\0b",
        ] {
            assert_eq!(CheckpointPath::parse(wrong), None, "{wrong}");
        }
    }
}
