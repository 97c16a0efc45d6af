//! Where the parts of a rendered conversation stand that its record marks as not to be learnt.

use std::ops::Range;

use super::TrainOn;
use crate::format::{Chat, Learnt, Mark};
use crate::template::{ChatTemplate, TemplateError};
use crate::{DataError, Source};

/// A conversation as it was rendered.
pub(super) struct Marked<'a> {
    pub(super) template: &'a ChatTemplate,
    pub(super) chat: &'a Chat,
    /// The whole text.
    pub(super) text: &'a str,
    /// The end-of-text token, which some templates write after every text that is no prompt.
    pub(super) end: &'a str,
    pub(super) train_on: TrainOn,
    pub(super) at: &'a Source,
}

impl Marked<'_> {
    /// The byte ranges of the text that carry no loss, whatever `data.train_on` says.
    pub(super) fn ranges(&self) -> Result<Vec<Range<usize>>, DataError> {
        let turns = self.chat.assistant_turns();
        let learnt_at_all = |turn: &usize| match self.train_on {
            TrainOn::All => true,
            TrainOn::Completion if self.chat.given == 0 => turns.last() == Some(turn),
            _ => turns.contains(turn),
        };
        // Without generation blocks, such a turn is not looked for in the first place.
        let is_left_out = |learnt: &Learnt| {
            *learnt == Learnt::Nothing && self.train_on != TrainOn::All && !self.template.has_generation()
        };
        let mut unlearnt = Vec::new();
        for (turn, mark) in &self.chat.marks {
            match &mark.learnt {
                Learnt::All if learnt_at_all(turn) || turns.contains(turn) => {}
                Learnt::All => return Err(self.widens(mark)),
                learnt if !learnt_at_all(turn) || is_left_out(learnt) => {}
                _ => unlearnt.push((*turn, mark)),
            }
        }
        let mut ranges = Vec::new();
        if unlearnt.is_empty() {
            return Ok(ranges);
        }
        let (messages, tools) = self.template.prepare(self.chat);
        let render = |upto: usize, prompt: bool| {
            let rendered = self.template.render_values(&messages[..upto], tools.clone(), prompt);
            rendered.map_err(|error| DataError::Render { at: self.at.clone(), error })
        };
        for (turn, mark) in unlearnt {
            let extent = self.extent(turn, mark, render)?;
            let Learnt::AllBut(parts) = &mark.learnt else {
                ranges.extend(extent);
                continue;
            };
            let content = self.chat.messages[turn].get("content").and_then(|content| content.as_str());
            let found = find(self.text, &extent, content.unwrap_or_default());
            let (cut, at) = found.ok_or_else(|| self.not_found(mark))?;
            let place = |byte: usize| (byte.max(cut) - cut + at).min(self.text.len());
            ranges.extend(parts.iter().map(|part| place(part.start)..place(part.end)));
        }
        Ok(ranges)
    }

    /// Where a message stands: the generation blocks that it filled, or all that it added to the text of those before it.
    fn extent(
        &self,
        turn: usize,
        mark: &Mark,
        render: impl Fn(usize, bool) -> Result<crate::Rendered, DataError>,
    ) -> Result<Vec<Range<usize>>, DataError> {
        let role = |i: usize| self.chat.messages[i].get("role").and_then(|role| role.as_str());
        let (is_assistant, count) = (role(turn) == Some("assistant"), self.chat.messages.len());
        if self.template.has_generation() && is_assistant {
            let whole = render(count, false)?.generation;
            let assistants: Vec<usize> = (0..count).filter(|&i| role(i) == Some("assistant")).collect();
            if whole.len() == assistants.len() {
                let place = assistants.iter().position(|&i| i == turn).expect("it is an assistant's");
                return Ok(vec![whole[place].clone()]);
            }
            let before = if turn == 0 { 0 } else { render(turn, false)?.generation.len() };
            let upto = render(turn + 1, false)?;
            let same = |(a, b): (&Range<usize>, &Range<usize>)| upto.text[a.clone()] == self.text[b.clone()];
            let after = upto.generation.len();
            if before > after || after > whole.len() || !upto.generation.iter().zip(&whole).all(same) {
                return Err(self.not_found(mark));
            }
            return Ok(whole[before..after].to_vec());
        }
        let place = |said: &str| match self.text.starts_with(said) {
            true => Some(said.len()),
            false => said.strip_suffix(self.end).filter(|open| self.text.starts_with(open)).map(str::len),
        };
        let prompted = match is_assistant {
            true => render(turn, true).ok().and_then(|prompt| place(&prompt.text)),
            false => None,
        };
        let begin = match prompted {
            Some(begin) => Some(begin),
            None if turn == 0 => Some(0),
            None => place(&render(turn, false)?.text),
        };
        let end = match turn + 1 == count {
            true => Some(self.text.len()),
            false => place(&render(turn + 1, false)?.text),
        };
        match begin.zip(end) {
            Some((begin, end)) if begin <= end => Ok(std::iter::once(begin..end).collect()),
            _ => Err(self.not_found(mark)),
        }
    }

    fn not_found(&self, mark: &Mark) -> DataError {
        let error =
            TemplateError::MarkNotFound { origin: self.template.origin().into(), place: mark.place.clone() };
        DataError::Render { at: self.at.clone(), error }
    }

    fn widens(&self, mark: &Mark) -> DataError {
        let message = format!(
            "{} marks as learnt what data.train_on: {} does not learn; set data.train_on: all, or take the mark away",
            mark.place, self.train_on
        );
        DataError::record(self.at, message)
    }
}

/// Where a content stands within the ranges: how many bytes its beginning lost, as templates trim it, and where the rest begins.
/// Nothing unless it begins the ranges or stands there once.
fn find(text: &str, ranges: &[Range<usize>], content: &str) -> Option<(usize, usize)> {
    let trimmed = content.trim();
    [(0, content), (content.len() - content.trim_start().len(), trimmed)].into_iter().find_map(
        |(cut, needle)| {
            let within = |range: &Range<usize>| {
                let found = text[range.clone()].match_indices(needle).map(|(at, _)| at);
                found.map(|at| range.start + at).collect::<Vec<_>>()
            };
            let found: Vec<usize> = ranges.iter().flat_map(within).collect();
            let first = *found.first()?;
            (found.len() == 1 || first == ranges[0].start).then_some((cut, first))
        },
    )
}
