//! Regular expressions over answers, with bounds.

use std::ops::{ControlFlow, Range};

use fancy_regex::{Captures, Regex, RegexBuilder};

use super::exact::ExactMatch;
use super::{TextError, best, python};

/// A regular expression as the crate `fancy-regex` reads it, which is Python's syntax but for two things: `$`
/// matches at the very end only (Python's also before a newline there, which is `\Z` here), and `\w` has
/// combining marks.
///
/// Without look-around and references to groups, a search takes time linear in the text. With them it tracks
/// back: at most [`Pattern::MAX_STEPS`] times in a search, and more than [`Pattern::QUICK_STEPS`] times in at
/// most a hundred searches of a text, and one for each 5000 bytes of it; beyond that it is an error. (Between
/// two steps, a look-around with `.*` in it may run to the end of a line each time. Keep such expressions
/// from texts with lines of megabytes.)
#[derive(Clone, Debug)]
pub struct Pattern {
    regex: Regex,
    /// The same with a lower limit, which most searches need not exceed.
    quick: Regex,
}

impl Pattern {
    /// How often one search may track back.
    pub const MAX_STEPS: usize = 1_000_000;
    /// How often one search may track back without being counted as a long one.
    pub const QUICK_STEPS: usize = 10_000;
    /// How often an expression may match in a text; more is an error.
    pub const MAX_MATCHES: usize = 100_000;
    /// The bytes that a compiled expression may take, about.
    const MAX_SIZE: usize = 10 << 20;

    /// Reads an expression.
    pub fn new(pattern: &str) -> Result<Self, TextError> {
        let build = |steps| {
            let built =
                RegexBuilder::new(pattern).backtrack_limit(steps).delegate_size_limit(Self::MAX_SIZE).build();
            built.map_err(|error| TextError::Pattern { pattern: pattern.into(), reason: error.to_string() })
        };
        Ok(Pattern { regex: build(Self::MAX_STEPS)?, quick: build(Self::QUICK_STEPS)? })
    }

    /// The expression as it was given.
    pub fn as_str(&self) -> &str {
        self.regex.as_str()
    }

    /// The text without what matches, Python's `re.sub(pattern, "", text)`.
    pub fn remove_from(&self, text: &str) -> Result<String, TextError> {
        let mut kept = String::with_capacity(text.len());
        let mut end = 0;
        self.each_match(text, |captures| {
            let found = range(captures, 0).unwrap_or(end..end);
            kept.push_str(&text[end..found.start]);
            end = found.end;
            ControlFlow::Continue(())
        })?;
        kept.push_str(&text[end..]);
        Ok(kept)
    }

    /// Goes through the matches from left to right as Python's `re.findall` does: an empty match may follow
    /// directly upon another one. (Where an empty match is preferred to a longer one at the same place,
    /// Python finds both, here only the empty one is.)
    fn each_match(
        &self,
        text: &str,
        mut each: impl FnMut(&Captures<'_>) -> ControlFlow<()>,
    ) -> Result<(), TextError> {
        let gave_up = |reason: String| TextError::Search { pattern: self.as_str().into(), reason };
        let (mut position, mut count) = (0, 0);
        // Each step of a search may just go to the text's next character, so long texts have long searches.
        let mut long_searches = 100 + text.len() / 5000;
        while position <= text.len() {
            let found = match self.quick.captures_from_pos(text, position) {
                Ok(found) => found,
                Err(_) if long_searches > 0 => {
                    long_searches -= 1;
                    let found = self.regex.captures_from_pos(text, position);
                    found.map_err(|error| gave_up(error.to_string()))?
                }
                Err(error) => return Err(gave_up(error.to_string())),
            };
            let Some(captures) = found else { break };
            count += 1;
            if count > Self::MAX_MATCHES {
                return Err(gave_up(format!("it matches more than {} times", Self::MAX_MATCHES)));
            }
            let whole = range(&captures, 0).unwrap_or(position..position);
            if each(&captures).is_break() {
                break;
            }
            position = match whole.is_empty() {
                false => whole.end,
                true => whole.end + text[whole.end..].chars().next().map_or(1, char::len_utf8),
            };
        }
        Ok(())
    }
}

fn range(captures: &Captures<'_>, group: usize) -> Option<Range<usize>> {
    captures.get(group).map(|found| found.range())
}

/// Whether what a regular expression finds in an answer equals a reference: lm-evaluation-harness' filter
/// `regex` (`lm_eval/filters/extraction.py`, `RegexFilter`) before its metric `exact_match`.
#[derive(Clone, Debug)]
pub struct PatternMatch {
    /// What is looked for. What it finds is its group, of several groups the first that is not empty, without
    /// groups all of it; whitespace at both ends is left out.
    pub pattern: Pattern,
    /// Which match is taken: 0 is the first, -1 the last, -2 the last but one.
    pub select: isize,
    /// What stands for an answer without such a match, or in which none of several groups has anything.
    pub fallback: String,
    /// How the found text is compared with the reference, of which nothing is extracted.
    pub exact: ExactMatch,
}

impl PatternMatch {
    /// Takes the first match of an expression, with `[invalid]` as fallback.
    pub fn first(pattern: Pattern) -> Self {
        PatternMatch { pattern, select: 0, fallback: "[invalid]".into(), exact: ExactMatch::default() }
    }

    /// What is found in an answer.
    pub fn extract<'a>(&'a self, answer: &'a str) -> Result<&'a str, TextError> {
        let groups = self.pattern.regex.captures_len();
        let mut found: Vec<Option<Range<usize>>> = Vec::new();
        self.pattern.each_match(answer, |captures| {
            found.push(match groups {
                1 => range(captures, 0),
                // A single group that took no part is an empty text, not a reason for the fallback.
                2 => Some(range(captures, 1).unwrap_or(0..0)),
                _ => (1..groups).find_map(|group| range(captures, group).filter(|range| !range.is_empty())),
            });
            match usize::try_from(self.select) {
                Ok(select) if found.len() > select => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })?;
        let selected = match usize::try_from(self.select) {
            Ok(select) => found.get(select),
            Err(_) => found.len().checked_sub(self.select.unsigned_abs()).and_then(|index| found.get(index)),
        };
        let text = selected.and_then(|range| answer.get(range.clone()?));
        Ok(text.map_or(self.fallback.as_str(), python::strip))
    }

    /// 1 if what is found equals one of the references, else 0.
    pub fn score(&self, answer: &str, references: &[impl AsRef<str>]) -> Result<f64, TextError> {
        let found = self.exact.normalized(self.extract(answer)?)?;
        best(references, |_, reference| Ok(f64::from(self.exact.normalized(reference)? == found)))
    }
}
