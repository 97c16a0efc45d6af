//! What is left beside the replies: `judgements.jsonl`, one judgement in a line, which another judge can be
//! put beside, and `result.json`, what `--json` prints.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use anyhow::Context;
use eval::tournament::{Judgement, Ratings, Reading, Tournament, Verdict};
use model::checkpoint::write_whole;
use serde::{Deserialize, Serialize};

use crate::error::user;

const JUDGEMENTS: &str = "judgements.jsonl";
const RESULT: &str = "result.json";
/// A larger file was not written here.
const MAX_BYTES: u64 = 1 << 30;

/// A game and what the judge's reply says of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Judged {
    pub(super) question: String,
    pub(super) first: String,
    pub(super) second: String,
    /// None: the reply could not be read.
    pub(super) verdict: Option<Verdict>,
    /// Where in the reply it stood.
    pub(super) reading: Option<Reading>,
}

impl Judged {
    /// The judgement, if there is one.
    pub(super) fn judgement(&self) -> Option<Judgement> {
        let (question, first, second) = (self.question.clone(), self.first.clone(), self.second.clone());
        self.verdict.map(|verdict| Judgement { question, first, second, verdict })
    }
}

/// Writes both files into the output folder.
///
/// # Errors
/// If they cannot be written.
pub(super) fn write(folder: &Path, all: &[Judged], result: &impl Serialize) -> anyhow::Result<()> {
    let mut lines = String::new();
    for judged in all {
        lines.push_str(&serde_json::to_string(judged)?);
        lines.push('\n');
    }
    write_whole(&folder.join(JUDGEMENTS), lines.as_bytes())?;
    let result = serde_json::to_string_pretty(result)? + "\n";
    Ok(write_whole(&folder.join(RESULT), result.as_bytes())?)
}

/// The judgements of another judge, by what they are called: what this command left in a folder, or ratings
/// as QLoRA has them.
///
/// # Errors
/// If there are none, or they are damaged.
pub(super) fn read_other(folder: &Path) -> anyhow::Result<Vec<(String, Tournament)>> {
    let path = folder.join(JUDGEMENTS);
    let mut kinds: [(&str, Vec<Judgement>); 2] = [("scores", Vec::new()), ("better", Vec::new())];
    match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let ratings = Ratings::read(folder).context("--beside")?;
            (kinds[0].1, kinds[1].1) = (ratings.scores, ratings.better);
        }
        file => {
            let file = file.with_context(|| format!("cannot read {}", path.display()))?;
            for judgement in read_lines(&path, file)? {
                let kind = usize::from(matches!(judgement.verdict, Verdict::Better(_)));
                kinds[kind].1.push(judgement);
            }
        }
    }
    let mut all = Vec::new();
    for (kind, judgements) in kinds.into_iter().filter(|(_, judgements)| !judgements.is_empty()) {
        let tournament = Tournament::new(&judgements).with_context(|| folder.display().to_string())?;
        all.push((format!("{kind} of {}", folder.display()), tournament));
    }
    match all.is_empty() {
        true => Err(user(format!("--beside {}: there is no judgement", folder.display()))),
        false => Ok(all),
    }
}

fn read_lines(path: &Path, file: File) -> anyhow::Result<Vec<Judgement>> {
    let mut all = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file.take(MAX_BYTES)).lines()) {
        let place = || format!("{}:{number}", path.display());
        let line = line.with_context(place)?;
        let judged: Judged = serde_json::from_str(&line)
            .map_err(|error| user(format!("{}: the line is no judgement: {error}", place())))?;
        all.extend(judged.judgement());
    }
    Ok(all)
}
