//! What a judge's reply says.
//!
//! A judge is asked for two scores in its first line, or for the number of the better answer in its last, and
//! does not always obey: where it was asked to solve a problem first, the scores come later, in words of its
//! own. The shapes below are those that GPT-4 gave the authors of QLoRA.

use std::sync::LazyLock;

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use super::Outcome;

/// The highest score that a judge can give; a pair with a higher one is something else, such as a point in a
/// plane.
const HIGHEST: f64 = 10.0;

/// Where in a reply the verdict was found. In the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reading {
    /// Two scores in the first line, or a number alone in the last: what was asked for.
    AsAsked,
    /// A pair in brackets, alone in its line or called an output, a tuple or scores: `Output: (2, 10)`. Or a
    /// verdict in brackets, `[[A]]`.
    Brackets,
    /// After the name of each assistant: `Assistant 1: 2/10`.
    Labelled,
    /// In a sentence: "I would give Assistant 1 a score of 10 and Assistant 2 a score of 2", "I choose option
    /// 3".
    InWords,
    /// Not in the reply, but in the field beside it, where whoever wrote the file had put it.
    Recorded,
}

impl Reading {
    /// All of them.
    pub const ALL: [Reading; 5] =
        [Reading::AsAsked, Reading::Brackets, Reading::Labelled, Reading::InWords, Reading::Recorded];
}

/// A number that may be a score, with what may say that it is one of ten.
const SCORE: &str = r"(\d{1,2}(?:\.\d{1,3})?)(?:\s*/\s*10|\s+out\s+of\s+10)?";

/// Patterns have no look-around and no references back, so that matching takes time in proportion to the
/// text.
fn pattern(pattern: &str) -> Regex {
    Regex::new(&pattern.replace("SCORE", SCORE)).expect("a pattern of this file")
}

/// The scores of the first and the second answer in a judge's reply, each from 0 to 10, and where they stood;
/// `None` if there are none to be found.
pub fn read_scores(reply: &str) -> Option<(Reading, [f64; 2])> {
    static AS_ASKED: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"^\s*[(\[]?\s*SCORE(?:\s*[,;]\s*|\s+)SCORE\s*[)\]]?\s*$"));
    static BRACKETS: LazyLock<Regex> = LazyLock::new(|| {
        pattern(r"(?i)^(?:\s*|.*\b(?:output|tuple|scores?)\b[^()]*)\(\s*SCORE\s*,\s*SCORE\s*\)[^()]*$")
    });
    let pair = |found: fancy_regex::Captures| Some([number(&found, 1)?, number(&found, 2)?]);
    let line_with = |regex: &Regex, line: &str| regex.captures(line).ok().flatten().and_then(pair);

    let first = reply.lines().find(|line| !line.trim().is_empty())?;
    if let Some(scores) = line_with(&AS_ASKED, first) {
        return Some((Reading::AsAsked, scores));
    }
    // The last counts: what stands before it is on the way there.
    if let Some(scores) = reply.lines().rev().find_map(|line| line_with(&BRACKETS, line)) {
        return Some((Reading::Brackets, scores));
    }
    if let Some(scores) = labelled(reply) {
        return Some((Reading::Labelled, scores));
    }
    in_words(reply).map(|scores| (Reading::InWords, scores))
}

/// The last scores that follow "Assistant 1:" and "Assistant 2:". What follows a score ends it, or explains
/// it in brackets or after a dash: "Assistant 1: 3x + 10" is no score of 3.
fn labelled(reply: &str) -> Option<[f64; 2]> {
    static LABELLED: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"(?im)\bassistant\s+([12])(?:'s)?(?:\s+score)?\s*:\s*\(?\s*SCORE\s*(?:$|[,;()]|\.\s|\.$|\s-\s)",
        )
    });
    of_each(&LABELLED, reply)
}

/// The last scores that a sentence gives to each, or to both.
fn in_words(reply: &str) -> Option<[f64; 2]> {
    static EACH: LazyLock<Regex> = LazyLock::new(|| {
        pattern(r"(?i)\bassistant\s+([12])\s+(?:receives\s+|gets\s+|with\s+)?a\s+score\s+of\s+SCORE")
    });
    static BOTH: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)\bboth\b[^.\n]*\ba\s+score\s+of\s+SCORE"));
    let both = || {
        let found = BOTH.captures_iter(reply).filter_map(Result::ok).last()?;
        number(&found, 1).map(|score| [score; 2])
    };
    of_each(&EACH, reply).or_else(both)
}

/// The last score of each assistant, by a pattern with its number and the score.
fn of_each(regex: &Regex, reply: &str) -> Option<[f64; 2]> {
    let mut scores = [None; 2];
    for found in regex.captures_iter(reply) {
        let found = found.ok()?;
        let assistant = usize::from(found.get(1)?.as_str() == "2");
        scores[assistant] = number(&found, 2).or(scores[assistant]);
    }
    Some([scores[0]?, scores[1]?])
}

/// A group's number, if it can be a score.
fn number(found: &fancy_regex::Captures, group: usize) -> Option<f64> {
    found.get(group)?.as_str().parse().ok().filter(|score| (0.0..=HIGHEST).contains(score))
}

/// Which answer a judge's reply calls the better one: 1, 2, or 3 for neither, or in brackets as the prompts of
/// MT-Bench (`[[A]]`, `[[B]]`, `[[C]]` for neither; Zheng et al. 2023) and of Arena-Hard (`[[A>>B]]`, `[[A=B]]`; Li
/// et al. 2024) ask for it; `None` if it does not say.
pub fn read_verdict(reply: &str) -> Option<(Reading, Outcome)> {
    static BRACKETS: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"\[\[\s*(?:([ABC])|([AB])\s*(>{1,2}|<{1,2}|=)\s*([AB]))\s*\]\]"));
    static CHOICE: LazyLock<Regex> = LazyLock::new(|| {
        pattern(r"(?i)\b(?:choose|choice\s+is|answer\s+is)\s+(?:option\s+)?([123])\b[^\d]*$")
    });
    let last = reply.lines().rev().find(|line| !line.trim().is_empty())?.trim();
    let outcome = |number: &str| match number {
        "1" => Some(Outcome::First),
        "2" => Some(Outcome::Second),
        "3" => Some(Outcome::Tie),
        _ => None,
    };
    if let Some(outcome) = outcome(last.trim_end_matches('.')) {
        return Some((Reading::AsAsked, outcome));
    }
    // The last counts: what stands before it may quote what was asked for.
    if let Some(found) = BRACKETS.captures_iter(reply).filter_map(Result::ok).last() {
        return Some((Reading::Brackets, in_brackets(&found)?));
    }
    let found = CHOICE.captures(last).ok().flatten()?;
    Some((Reading::InWords, outcome(found.get(1)?.as_str())?))
}

/// A verdict in brackets: a letter, or two of them with which is the better one.
fn in_brackets(found: &fancy_regex::Captures) -> Option<Outcome> {
    let group = |n: usize| found.get(n).map(|group| group.as_str());
    let of_letter = |letter: &str| match letter {
        "A" => Outcome::First,
        "B" => Outcome::Second,
        _ => Outcome::Tie,
    };
    match (group(1), group(2), group(3), group(4)) {
        (Some(letter), ..) => Some(of_letter(letter)),
        (_, Some(left), Some(sign), Some(right)) if left != right => Some(match sign {
            "=" => Outcome::Tie,
            sign => of_letter(if sign.starts_with('>') { left } else { right }),
        }),
        _ => None,
    }
}
