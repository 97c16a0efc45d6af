//! Where the parts of a rendered conversation stand that its record marks as not to be learnt.

use std::ops::Range;

use super::TrainOn;
use super::turns::Turns;
use crate::format::{Chat, Learnt, Mark};
use crate::template::TemplateError;
use crate::{DataError, Rendered, Source};

/// A conversation as it was rendered, with its record.
pub(super) struct Marked<'a> {
    pub(super) turns: &'a Turns<'a>,
    /// The generation blocks of the whole text.
    pub(super) generation: &'a [Range<usize>],
    pub(super) record: &'a Chat,
    pub(super) train_on: TrainOn,
    pub(super) at: &'a Source,
}

impl Marked<'_> {
    /// The byte ranges of the text that carry no loss, whatever `data.train_on` says.
    pub(super) fn ranges(&self) -> Result<Vec<Range<usize>>, DataError> {
        let turns = self.record.assistant_turns();
        let learnt_at_all = |turn: &usize| match self.train_on {
            TrainOn::All => true,
            TrainOn::Completion if self.record.given == 0 => turns.last() == Some(turn),
            _ => turns.contains(turn),
        };
        // Without generation blocks, such a turn is not looked for in the first place.
        let is_left_out = |learnt: &Learnt| {
            *learnt == Learnt::Nothing
                && self.train_on != TrainOn::All
                && !self.turns.template.has_generation()
        };
        let mut unlearnt = Vec::new();
        for (turn, mark) in &self.record.marks {
            match &mark.learnt {
                Learnt::All if learnt_at_all(turn) || turns.contains(turn) => {}
                Learnt::All => return Err(self.widens(mark)),
                learnt if !learnt_at_all(turn) || is_left_out(learnt) => {}
                _ => unlearnt.push((*turn, mark)),
            }
        }
        let mut ranges = Vec::new();
        for (turn, mark) in unlearnt {
            let extent = self.extent(turn, mark)?;
            let Learnt::AllBut(parts) = &mark.learnt else {
                ranges.extend(extent);
                continue;
            };
            let content = self.record.messages[turn].get("content").and_then(|content| content.as_str());
            let found = find(self.turns.text, &extent, content.unwrap_or_default());
            let (cut, at) = found.ok_or_else(|| self.not_found(mark))?;
            let place = |byte: usize| (byte.max(cut) - cut + at).min(self.turns.text.len());
            ranges.extend(parts.iter().map(|part| place(part.start)..place(part.end)));
        }
        Ok(ranges)
    }

    /// Where a message stands: the generation blocks that it filled; where there are none, an assistant's
    /// turn, or all that another's message added to the text of those before it.
    fn extent(&self, turn: usize, mark: &Mark) -> Result<Vec<Range<usize>>, DataError> {
        let role = |i: usize| self.record.messages[i].get("role").and_then(|role| role.as_str());
        let is_assistant = role(turn) == Some("assistant");
        match (is_assistant, self.turns.template.has_generation()) {
            (true, true) => self.blocks(turn, mark),
            (true, false) => self.turns.find(&[turn]).map_err(|error| self.error(error)),
            (false, _) => self.added(turn, mark).map(|range| vec![range]),
        }
    }

    /// The generation blocks that an assistant's message filled.
    fn blocks(&self, turn: usize, mark: &Mark) -> Result<Vec<Range<usize>>, DataError> {
        let (assistants, whole) = (self.record.assistant_turns(), self.generation);
        if self.record.given == 0 && whole.len() == assistants.len() {
            let place = assistants.iter().position(|&i| i == turn).expect("it is an assistant's");
            return Ok(vec![whole[place].clone()]);
        }
        let before = if turn == 0 { 0 } else { self.render(turn)?.generation.len() };
        let upto = self.render(turn + 1)?;
        let text = self.turns.text;
        let same = |(a, b): (&Range<usize>, &Range<usize>)| upto.text[a.clone()] == text[b.clone()];
        let after = upto.generation.len();
        if before > after || after > whole.len() || !upto.generation.iter().zip(whole).all(same) {
            return Err(self.not_found(mark));
        }
        Ok(whole[before..after].to_vec())
    }

    /// What a message added to the text of those before it, where each of the two texts begins the whole.
    fn added(&self, turn: usize, mark: &Mark) -> Result<Range<usize>, DataError> {
        let place = |upto: usize| -> Result<Option<usize>, DataError> {
            match upto {
                0 => Ok(Some(0)),
                upto if upto == self.record.messages.len() => Ok(Some(self.turns.text.len())),
                upto => Ok(self.turns.beginning(&self.render(upto)?.text)),
            }
        };
        match place(turn)?.zip(place(turn + 1)?) {
            Some((begin, end)) if begin <= end => Ok(begin..end),
            _ => Err(self.not_found(mark)),
        }
    }

    fn render(&self, upto: usize) -> Result<Rendered, DataError> {
        let Turns { template, chat, .. } = self.turns;
        template.render_values(chat.upto(upto), chat.tools(), false).map_err(|error| self.error(error))
    }

    fn error(&self, error: TemplateError) -> DataError {
        DataError::Render { at: self.at.clone(), error }
    }

    fn not_found(&self, mark: &Mark) -> DataError {
        let origin = self.turns.template.origin().into();
        self.error(TemplateError::MarkNotFound { origin, place: mark.place.clone() })
    }

    fn widens(&self, mark: &Mark) -> DataError {
        let message = format!(
            "{} marks as learnt what data.train_on: {} does not learn; set data.train_on: all, or take the mark away",
            mark.place, self.train_on
        );
        DataError::record(self.at, message)
    }
}

/// Where a content stands within the ranges: how many bytes its beginning lost, as templates trim it, and
/// where the rest begins. Nothing unless it begins the ranges or stands there once.
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
