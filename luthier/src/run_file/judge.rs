//! `JUDGE.yaml`: whose answers are judged, and by whom.
//!
//! ```yaml
//! questions: questions.jsonl             # {id, question}
//! answers:                               # of each system a file: {id, answer}
//!   base: base.jsonl
//!   tuned: tuned.jsonl
//! reference: base                        # whose scores are 100 %
//! judge:
//!   url: https://api.openai.com/v1       # any endpoint with /chat/completions
//!   model: gpt-4.1
//!   key_env: OPENAI_API_KEY              # the variable that holds the key
//! output: judged                         # the folder of replies and results
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::decode::{Problem, decode_other};
use super::{FileText, Node, Origin, yaml};
use crate::error::user;

/// More systems than this are a slip of the pen: every pair of them would be judged.
const MOST_SYSTEMS: usize = 100;
/// The longest name of a system, in bytes: it becomes a file's.
const LONGEST_NAME: usize = 100;
/// More threads than this help nobody.
const MOST_PARALLEL: usize = 256;
/// A week, in seconds.
const LONGEST: f64 = 7.0 * 86_400.0;

/// What a judge file says.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct JudgeFile {
    /// The file of questions.
    pub(crate) questions: PathBuf,
    /// Of each system the file of its answers.
    pub(crate) answers: BTreeMap<String, PathBuf>,
    /// The system whose scores are 100 %.
    pub(crate) reference: Option<String>,
    /// Which systems are put beside each other.
    pub(crate) pairs: Pairs,
    /// Who judges.
    pub(crate) judge: JudgeSection,
    /// A file with the judge's instructions around `{question}`, `{answer_1}` and `{answer_2}`; none: ours.
    pub(crate) prompt: Option<PathBuf>,
    /// What the judge is asked for.
    pub(crate) kind: Kind,
    /// Requests at once.
    pub(crate) parallel: usize,
    /// How often a request is sent again that failed for a reason that may pass.
    pub(crate) retries: u32,
    /// Seconds before a request is sent again for the first time; each further wait is twice as long.
    pub(crate) backoff: f64,
    /// Seconds for a request and its reply.
    pub(crate) timeout: f64,
    /// The most that one run of the command may spend.
    pub(crate) budget: Budget,
    /// The folder of replies and results.
    pub(crate) output: PathBuf,
}

/// Who judges.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct JudgeSection {
    /// Where `/chat/completions` is, such as `http://localhost:8000/v1`.
    pub(crate) url: String,
    /// The model's name there.
    pub(crate) model: String,
    /// The environment variable that holds the key, if one is needed.
    pub(crate) key_env: Option<String>,
    /// How much chance is in a reply; null: not sent, for models that take none.
    pub(crate) temperature: Option<f64>,
    /// Tokens of the longest reply; null: not sent.
    pub(crate) max_tokens: Option<u32>,
}

/// Which systems are put beside each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pairs {
    /// Each beside each.
    #[default]
    All,
    /// Each beside the reference.
    Reference,
}

/// What a judge is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// A score from 1 to 10 for each answer.
    #[default]
    Scores,
    /// The number of the better one, or 3 for neither.
    Verdict,
}

/// The most that one run of the command may spend; null: no limit.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Budget {
    /// Requests, with those that are sent again.
    pub(crate) requests: Option<u64>,
    /// Tokens of prompts and replies together.
    pub(crate) tokens: Option<u64>,
}

impl Default for JudgeFile {
    fn default() -> Self {
        JudgeFile {
            questions: PathBuf::new(),
            answers: BTreeMap::new(),
            reference: None,
            pairs: Pairs::default(),
            judge: JudgeSection::default(),
            prompt: None,
            kind: Kind::default(),
            parallel: 8,
            retries: 5,
            backoff: 1.0,
            timeout: 120.0,
            budget: Budget::default(),
            output: PathBuf::new(),
        }
    }
}

impl Default for JudgeSection {
    fn default() -> Self {
        let (url, model) = (String::new(), String::new());
        JudgeSection { url, model, key_env: None, temperature: Some(0.0), max_tokens: Some(1024) }
    }
}

/// A judge file that still knows where everything was written.
#[derive(Debug)]
pub(crate) struct Judging {
    /// What it says.
    pub(crate) file: JudgeFile,
    tree: Node,
    text: FileText,
}

impl Judging {
    /// Reads a judge file and checks all of it that needs no other file.
    ///
    /// # Errors
    /// If a key is unknown, missing or out of its range. Keys that only asking needs are the concern of
    /// [`Judging::require_judge`].
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = FileText::read(path, "judge file")?;
        let tree = yaml::parse(&text.text).map_err(|problem| problem.report(Some(&text)))?;
        let file = decode_other(&tree).map_err(|problem| problem.report(Some(&text)))?;
        let judging = Judging { file, tree, text };
        judging.check()?;
        Ok(judging)
    }

    /// An error about a key, such as `judge.url`, that points at where it was set.
    pub(crate) fn refuse(&self, key: &str, message: impl Into<String>) -> anyhow::Error {
        let message = message.into();
        match self.tree.origin_of(key) {
            Origin::Default => user(format!("{}: `{key}` {message}", self.text.path)),
            origin => Problem::about(key, message, origin).report(Some(&self.text)),
        }
    }

    fn require(&self, holds: bool, key: &str, message: &str) -> anyhow::Result<()> {
        if holds { Ok(()) } else { Err(self.refuse(key, message)) }
    }

    /// Checks what is needed to ask a judge.
    ///
    /// # Errors
    /// If `judge.url`, `judge.model` or `output` is missing or wrong.
    pub(crate) fn require_judge(&self) -> anyhow::Result<()> {
        let JudgeFile { judge, output, .. } = &self.file;
        let url = "is required: where the judge answers, such as http://localhost:8000/v1";
        self.require(!judge.url.is_empty(), "judge.url", url)?;
        let known = ["http://", "https://"].iter().find_map(|scheme| judge.url.strip_prefix(scheme));
        let host = known.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
        let message =
            "must be an address that begins with http:// or https://, such as http://localhost:8000/v1";
        self.require(host, "judge.url", message)?;
        // It is written into results, so no key may stand in it.
        let plain = judge.url.chars().all(|c| c.is_ascii_graphic() && !"@?#".contains(c));
        let message = "has signs that such an address does not have; a key is named by `judge.key_env`";
        self.require(plain, "judge.url", message)?;
        self.require(
            !judge.model.is_empty(),
            "judge.model",
            "is required: the judge's name at its endpoint",
        )?;
        self.require(
            !output.as_os_str().is_empty(),
            "output",
            "is required: the folder of replies and results",
        )
    }

    fn check(&self) -> anyhow::Result<()> {
        let JudgeFile { questions, answers, reference, pairs, judge, parallel, budget, .. } = &self.file;
        self.require(!questions.as_os_str().is_empty(), "questions", "is required: the file of questions")?;
        let count = answers.len();
        self.require(count >= 2, "answers", "needs two systems or more, each with the file of its answers")?;
        let message = format!("has {count} systems, and {MOST_SYSTEMS} are the most");
        self.require(count <= MOST_SYSTEMS, "answers", &message)?;
        for name in answers.keys() {
            let plain = |c: char| !c.is_control() && c != '/' && c != '\\';
            let fine = !name.is_empty() && name.len() <= LONGEST_NAME && !name.starts_with('.');
            let message = format!(
                "calls a system {name:?}; a name has 1 to {LONGEST_NAME} bytes, no slashes, and no dot at its \
                 beginning, since files are called by it"
            );
            self.require(fine && name.chars().all(plain), "answers", &message)?;
        }
        if let Some(name) = reference
            && !answers.contains_key(name)
        {
            let known: Vec<&str> = answers.keys().map(String::as_str).collect();
            let message = format!("is none of the systems in `answers`: {}", known.join(", "));
            return Err(self.refuse("reference", message));
        }
        let message = "is `reference`, and no system is named by `reference`";
        self.require(*pairs == Pairs::All || reference.is_some(), "pairs", message)?;
        let temperature = judge.temperature.is_none_or(|t| (0.0..=2.0).contains(&t));
        self.require(temperature, "judge.temperature", "must be from 0 to 2, or null")?;
        self.require(judge.max_tokens != Some(0), "judge.max_tokens", "must be 1 or more, or null")?;
        let message = format!("must be from 1 to {MOST_PARALLEL}");
        self.require((1..=MOST_PARALLEL).contains(parallel), "parallel", &message)?;
        self.require(self.file.retries <= 100, "retries", "must be at most 100")?;
        let seconds = |x: f64| x > 0.0 && x <= LONGEST;
        self.require(seconds(self.file.backoff), "backoff", "must be more than 0 seconds")?;
        self.require(seconds(self.file.timeout), "timeout", "must be more than 0 seconds")?;
        self.require(budget.requests != Some(0), "budget.requests", "must be 1 or more, or null")?;
        self.require(budget.tokens != Some(0), "budget.tokens", "must be 1 or more, or null")
    }
}

impl JudgeFile {
    /// For a request and its reply.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }

    /// Before a request is sent again for the first time.
    pub(crate) fn backoff(&self) -> Duration {
        Duration::from_secs_f64(self.backoff)
    }
}
