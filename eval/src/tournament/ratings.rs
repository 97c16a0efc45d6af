//! Judgements in files as QLoRA's authors released them: a folder with a file for each pair of systems and
//! order, `A-vs-B-gpt4-reviewer.jsonl` with scores or `A-vs-B-gpt-4-reviewer-threeclass.jsonl` with the
//! number of the better answer, and in each line a question, the ids of both answers, the judge's reply, and
//! what was made of it.
//!
//! Two things in them cannot be taken at their word. The reply's `score` is -1 where the authors' program did
//! not find it; it is read again from the reply. And a file's name does not tell whose answer stood first:
//! some files have both in the opposite order. The ids do tell, since a system's answer has the same id
//! wherever it is judged.

mod files;
mod order;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use self::files::{Line, Opened};
use super::Judgement;
use super::reply::Reading;

/// Files that are no ratings.
#[derive(Debug, thiserror::Error)]
pub enum RatingsError {
    /// A file or folder that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder without such files.
    #[error(
        "{}: no file in this folder is called A-vs-B-JUDGE-reviewer.jsonl; give the folder with a \
         judge's ratings",
        path.display()
    )]
    NoFiles {
        /// The folder.
        path: PathBuf,
    },
    /// A file or folder that is too large.
    #[error("{}: {what}", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// What there is too much of.
        what: String,
    },
    /// A line that is no rating.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A file whose ids contradict each other.
    #[error("{}: {problem}", path.display())]
    Order {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// What a judge was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RatingsKind {
    /// A score for each answer.
    Scores,
    /// Which is better, or neither.
    Better,
}

/// Whose answer stands first in a file that is called `A-vs-B`, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// A's, by the answers' ids.
    AsNamed,
    /// B's, by the answers' ids.
    Reversed,
    /// A's, by the name alone: no id says more.
    ByNameAlone,
}

/// A reply in which no verdict was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// The line, from 1.
    pub line: usize,
    /// The question.
    pub question: String,
    /// How the reply ends.
    pub ending: String,
}

/// What a file held.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileReport {
    /// Where it is.
    pub path: PathBuf,
    /// What the judge was asked for.
    pub kind: RatingsKind,
    /// The system whose answers stand first.
    pub first: String,
    /// The system whose answers stand second.
    pub second: String,
    /// How that is known.
    pub order: Order,
    /// How many replies were read in which way.
    pub readings: BTreeMap<Reading, usize>,
    /// Lines whose `score` says something else than the reply; the reply counts.
    pub disagreeing: Vec<usize>,
    /// Replies that could not be read; they are left out.
    pub unread: Vec<Unread>,
}

/// A judge's ratings.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ratings {
    /// Those with scores, for [`Tournament::percent_of`](super::Tournament::percent_of).
    pub scores: Vec<Judgement>,
    /// Those that only name the better answer, for [`Tournament::elo`](super::Tournament::elo).
    pub better: Vec<Judgement>,
    /// What each file held, in the order of names.
    pub files: Vec<FileReport>,
}

impl Ratings {
    /// Reads all ratings in a folder and the folders in it. Other files are passed over.
    ///
    /// # Errors
    /// If the folder has none, is larger than any such folder is, or a line of one is damaged.
    pub fn read(folder: &Path) -> Result<Self, RatingsError> {
        let opened = files::open_all(folder)?;
        let orders = order::of_all(&opened)?;
        let mut ratings = Ratings::default();
        let mut seen: BTreeMap<(RatingsKind, [String; 3]), PathBuf> = BTreeMap::new();
        for (file, order) in opened.into_iter().zip(orders) {
            let [mut first, mut second] = file.names;
            if order == Order::Reversed {
                (first, second) = (second, first);
            }
            let mut readings: BTreeMap<Reading, usize> = BTreeMap::new();
            for Line { number, question, verdict, .. } in file.lines {
                let key = (file.kind, [question.clone(), first.clone(), second.clone()]);
                if let Some(before) = seen.insert(key, file.path.clone()) {
                    let problem = format!(
                        "question {question} of `{first}` and `{second}` in this order was judged in {} \
                         already; give the folder of one judge",
                        before.display()
                    );
                    return Err(RatingsError::Line { path: file.path, line: number, problem });
                }
                let Some((reading, verdict)) = verdict else { continue };
                *readings.entry(reading).or_default() += 1;
                let judgement = Judgement { question, first: first.clone(), second: second.clone(), verdict };
                match file.kind {
                    RatingsKind::Scores => ratings.scores.push(judgement),
                    RatingsKind::Better => ratings.better.push(judgement),
                }
            }
            let Opened { path, kind, unread, disagreeing, .. } = file;
            ratings.files.push(FileReport {
                path,
                kind,
                first,
                second,
                order,
                readings,
                disagreeing,
                unread,
            });
        }
        Ok(ratings)
    }

    /// How many replies of a kind were read in which way, in all files.
    pub fn readings(&self, kind: RatingsKind) -> BTreeMap<Reading, usize> {
        let mut all = BTreeMap::new();
        for file in self.files.iter().filter(|file| file.kind == kind) {
            file.readings.iter().for_each(|(reading, count)| *all.entry(*reading).or_default() += count);
        }
        all
    }

    /// How many replies of a kind could not be read.
    pub fn unread(&self, kind: RatingsKind) -> usize {
        self.files.iter().filter(|file| file.kind == kind).map(|file| file.unread.len()).sum()
    }
}
