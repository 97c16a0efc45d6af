//! Which tokens carry loss: from an understood record to token ids with labels.
//!
//! A conversation is rendered to one text and tokenized as one text; labels follow from character offsets.
//! The assistant's words are what the template's `{% generation %}` blocks rendered. Where a template has
//! none, they are found by comparing renderings (`label/turns.rs`): what message i adds to the text of the
//! messages before it (generation prompt included) is what the model is to say. That is the convention of
//! TRL, and so everything the template writes after the assistant's words, the end-of-turn token and a line
//! break behind it, carries loss as well; the header before them never does. A token that spans a border
//! belongs to where it begins.

mod marked;
mod turns;

use std::ops::Range;

use crate::error::named_enum;
use crate::format::{Chat, Item};
use crate::template::{ChatTemplate, Conversation, Part, TemplateError};
use crate::tokenizer::{Encoded, Tokenizer};
use crate::{DataError, IGNORE, Source};
use marked::Marked;
use turns::Turns;

/// Which tokens carry loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainOn {
    /// Every turn of the assistant; of a completion, the completion.
    Assistant,
    /// The last turn of the assistant; of a completion, the completion.
    Completion,
    /// Every token.
    All,
}

named_enum!(
    TrainOn,
    "value of data.train_on",
    Assistant = "assistant",
    Completion = "completion",
    All = "all"
);

/// Turns items into token ids with labels.
pub struct Labeller<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The chat template, if there is one.
    pub template: Option<&'a ChatTemplate>,
    /// What renders an instruction if there is no chat template: Alpaca's prompt.
    pub instruction_template: &'a ChatTemplate,
    /// Which tokens carry loss.
    pub train_on: TrainOn,
}

/// Token ids with labels, and what was noticed about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// T token ids.
    pub input_ids: Vec<u32>,
    /// T labels, not shifted.
    pub labels: Vec<i32>,
    /// How the trained parts end.
    pub ending: Ending,
    /// What the chat template leaves out of the conversation, and one can do without.
    pub unwritten: Vec<Part>,
    /// Learnt text that the vocabulary cannot spell, the first of it.
    pub unknown: Option<String>,
    /// How the prompt of a completion ends; none: it is no completion.
    pub border: Option<Border>,
}

/// What becomes of the border between a prompt and its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// The tokens of the prompt are those that it has alone.
    Kept,
    /// A token spans it, which carries no loss: the tokens with which the prompt ends alone were never seen there.
    Joined,
}

/// How an example's trained parts end, which is how the model learns to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Each in an end token of the model.
    Ended,
    /// Each in a special token, this one (the last such) none at which the model stops.
    Other(u32),
    /// At least one in an ordinary token.
    Open,
}

impl Labeller<'_> {
    /// Token ids with labels for one item. `at` says in errors where the record stands.
    pub fn label(&self, item: Item, at: &Source) -> Result<Labelled, DataError> {
        match item {
            Item::Chat(chat) => self.chat(chat, at),
            Item::Completion { prompt, completion } => self.completion(&prompt, &completion),
            Item::Text(text) => self.text(&text, at),
            Item::Unlearnt => Ok(Labelled {
                input_ids: Vec::new(),
                labels: Vec::new(),
                ending: Ending::Ended,
                unwritten: Vec::new(),
                unknown: None,
                border: None,
            }),
            Item::Tokenized { input_ids, labels } => {
                let ending = match labels.iter().rposition(|&label| label != IGNORE) {
                    Some(last) => self.ending_of(input_ids[last]),
                    None => Ending::Ended,
                };
                Ok(Labelled { input_ids, labels, ending, unwritten: Vec::new(), unknown: None, border: None })
            }
        }
    }

    fn chat(&self, chat: Chat, at: &Source) -> Result<Labelled, DataError> {
        let template = match self.template {
            Some(template) => template,
            None if chat.instruction => self.instruction_template,
            None => {
                return Err(DataError::Setting {
                    key: "data.chat_template",
                    message: format!(
                        "{at} is a conversation, but the tokenizer has no chat template; name a built-in one or a file, such as \
                         --chat-template {}",
                        template_hint(self.tokenizer)
                    ),
                });
            }
        };
        let chat =
            if template.takes_input() || !chat.instruction { chat } else { chat.with_inputs_in_content() };
        let render_error = |error| DataError::Render { at: at.clone(), error };
        let turns = self.turns(&chat);
        let conversation = template.conversation(&chat.messages, chat.tools.as_ref());
        let unwritten = self.unwritten(template, &conversation, &turns).map_err(render_error)?;
        let rendered = template.render_whole(&conversation, false).map_err(render_error)?;
        let encoded = self.tokenizer.encode(&rendered.text, false)?;
        let text = rendered.text.as_str();
        let found = Turns { template, chat: &conversation, text, encoded: &encoded, end_of_text: self.end() };
        let spans = self.spans(&found, &turns, chat.given, &rendered.generation).map_err(render_error)?;
        let marked = Marked {
            turns: &found,
            generation: &rendered.generation,
            record: &chat,
            train_on: self.train_on,
            at,
        };
        let (learnt, unlearnt) = (Ranges::of(spans.clone()), Ranges::of(marked.ranges()?));
        let labels = labels(&encoded, |begin| learnt.contain(begin) && !unlearnt.contain(begin));
        let is_learnt = |span: &&Range<usize>| !unlearnt.cover(span);
        let ending = spans.iter().filter(is_learnt).fold(Ending::Ended, |ending, span| {
            match (ending, self.ending_of_span(text, &encoded, span)) {
                (Ending::Open, _) | (_, Ending::Open) => Ending::Open,
                (earlier, Ending::Ended) => earlier,
                (_, other) => other,
            }
        });
        Ok(self.labelled(text, encoded, labels, ending, unwritten))
    }

    /// The assistant's messages of which tokens carry loss.
    fn turns(&self, chat: &Chat) -> Vec<usize> {
        let turns = chat.assistant_turns();
        let turns = match self.train_on {
            TrainOn::Completion if chat.given == 0 => turns.into_iter().next_back().into_iter().collect(),
            _ => turns,
        };
        turns.into_iter().filter(|&turn| chat.is_learnt(turn)).collect()
    }

    /// What the template leaves out and one can do without. Calls, tools, and the thoughts of the last turn
    /// that is learnt are not among that: without them another thing would be learnt than the record says.
    fn unwritten(
        &self,
        template: &ChatTemplate,
        chat: &Conversation,
        turns: &[usize],
    ) -> Result<Vec<Part>, TemplateError> {
        let mut parts = Vec::new();
        for unwritten in template.unwritten(chat) {
            let is_learnt = unwritten.message.is_some_and(|i| turns.contains(&i));
            let is_last = unwritten.message == turns.last().copied();
            match &unwritten.part {
                part if part.is_of_tools() => return Err(template.leaves_out(unwritten)),
                Part::Thoughts if is_learnt && is_last => return Err(template.leaves_out(unwritten)),
                // Templates drop the thoughts of earlier turns by design, as the model is then prompted.
                Part::Thoughts if !is_learnt => {}
                part => parts.push(part.clone()),
            }
        }
        Ok(parts)
    }

    /// The byte ranges of the rendered conversation that carry loss.
    fn spans(
        &self,
        turns: &Turns<'_>,
        learnt: &[usize],
        given: usize,
        generation: &[Range<usize>],
    ) -> Result<Vec<Range<usize>>, TemplateError> {
        let Turns { template, chat, text, .. } = turns;
        if self.train_on == TrainOn::All {
            return Ok(std::iter::once(0..text.len()).collect());
        }
        let Some(&first) = learnt.first() else { return Ok(Vec::new()) };
        if template.has_generation() {
            let all = self.train_on == TrainOn::Assistant && given == 0;
            let earlier = if all || first == 0 {
                0
            } else {
                template.render_values(chat.upto(first), chat.tools(), false)?.generation.len()
            };
            return Ok(generation.iter().skip(earlier).cloned().collect());
        }
        turns.find(learnt)
    }

    /// The text of the end-of-text token.
    fn end(&self) -> &str {
        let end = self.tokenizer.special_tokens().iter().find(|(name, _)| name == "eos_token");
        end.map_or("", |(_, token)| token.as_str())
    }

    fn completion(&self, prompt: &str, completion: &str) -> Result<Labelled, DataError> {
        let text = format!("{prompt}{completion}");
        let mut encoded = self.tokenizer.encode(&text, true)?;
        let ending = self.append_end(&mut encoded, text.len());
        let start = if self.train_on == TrainOn::All { 0 } else { prompt.len() };
        let labels = labels(&encoded, |begin| begin >= start);
        let border = Some(self.border(prompt, &encoded)?);
        Ok(Labelled { border, ..self.labelled(&text, encoded, labels, ending, Vec::new()) })
    }

    /// What becomes of the border behind a prompt in a text that begins with it.
    fn border(&self, prompt: &str, encoded: &Encoded) -> Result<Border, DataError> {
        let next = encoded.begins.partition_point(|&begin| begin < prompt.len());
        if prompt.is_empty() || encoded.begins.get(next) == Some(&prompt.len()) {
            return Ok(Border::Kept);
        }
        let alone = self.tokenizer.encode(prompt, true)?;
        let own = &alone.ids[..alone.ids.len() - alone.added_back];
        Ok(if encoded.ids.starts_with(own) { Border::Kept } else { Border::Joined })
    }

    fn text(&self, text: &str, at: &Source) -> Result<Labelled, DataError> {
        if self.train_on == TrainOn::Completion {
            let message = format!("{at} is plain text and has no completion; set it to assistant or all");
            return Err(DataError::Setting { key: "data.train_on", message });
        }
        let mut encoded = self.tokenizer.encode(text, true)?;
        let ending = self.append_end(&mut encoded, text.len());
        let labels = encoded.ids.iter().map(|&id| id as i32).collect();
        Ok(self.labelled(text, encoded, labels, ending, Vec::new()))
    }

    fn labelled(
        &self,
        text: &str,
        encoded: Encoded,
        labels: Vec<i32>,
        ending: Ending,
        unwritten: Vec<Part>,
    ) -> Labelled {
        let unknown = self.tokenizer.unknown().and_then(|unknown| {
            let place = labels.iter().position(|&label| label == unknown as i32)?;
            let end = encoded.begins[place..].iter().find(|&&begin| begin > encoded.begins[place]);
            text.get(encoded.begins[place]..end.map_or(text.len(), |&end| end)).map(String::from)
        });
        Labelled { input_ids: encoded.ids, labels, ending, unwritten, unknown, border: None }
    }

    /// Appends the end-of-text token unless the text already ends in it.
    fn append_end(&self, encoded: &mut Encoded, text_bytes: usize) -> Ending {
        let Some(eos) = self.tokenizer.eos() else { return Ending::Open };
        if encoded.ids.last() != Some(&eos) {
            encoded.ids.push(eos);
            encoded.begins.push(text_bytes);
        }
        Ending::Ended
    }

    fn ending_of(&self, id: u32) -> Ending {
        match id {
            id if self.tokenizer.is_end(id) => Ending::Ended,
            id if self.tokenizer.is_special(id) => Ending::Other(id),
            _ => Ending::Open,
        }
    }

    /// How a span ends, white space after it aside.
    fn ending_of_span(&self, text: &str, encoded: &Encoded, span: &Range<usize>) -> Ending {
        let end = span.start + text[span.clone()].trim_end().len();
        let after = encoded.begins.partition_point(|&begin| begin < end);
        match after.checked_sub(1) {
            Some(last) if encoded.begins[last] >= span.start => self.ending_of(encoded.ids[last]),
            _ => Ending::Open,
        }
    }
}

/// Byte ranges of a text, of which none overlaps another, in order: a conversation may have as many as tokens.
struct Ranges(Vec<Range<usize>>);

impl Ranges {
    fn of(mut ranges: Vec<Range<usize>>) -> Self {
        ranges.sort_by_key(|range| (range.start, range.end));
        let mut apart: Vec<Range<usize>> = Vec::new();
        for range in ranges {
            match apart.last_mut() {
                Some(last) if range.start < last.end => last.end = last.end.max(range.end),
                _ => apart.push(range),
            }
        }
        Ranges(apart)
    }

    /// The last one that begins at a place or before it.
    fn before(&self, place: usize) -> Option<&Range<usize>> {
        self.0[..self.0.partition_point(|range| range.start <= place)].last()
    }

    fn contain(&self, place: usize) -> bool {
        self.before(place).is_some_and(|range| place < range.end)
    }

    fn cover(&self, span: &Range<usize>) -> bool {
        self.before(span.start).is_some_and(|range| span.end <= range.end)
    }
}

/// Labels by where each token begins; tokens that the tokenizer put in front of the text carry none.
fn labels(encoded: &Encoded, trained: impl Fn(usize) -> bool) -> Vec<i32> {
    let label = |(i, (&id, &begin)): (usize, (&u32, &usize))| {
        if i >= encoded.added_front && trained(begin) { id as i32 } else { IGNORE }
    };
    encoded.ids.iter().zip(&encoded.begins).enumerate().map(label).collect()
}

/// A built-in template for a tokenizer that has none, with the others that fit it.
fn template_hint(tokenizer: &Tokenizer) -> String {
    match crate::template::fitting(tokenizer).as_slice() {
        [] => format!("vicuna, which has no markers (built in are {})", crate::template::BUILTIN.join(", ")),
        [one] => format!("{one}, which fits this tokenizer"),
        [first, others @ ..] => format!("{first} (these fit this tokenizer, too: {})", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_one_of_them_holds() {
        let ranges = [4..9, 1..3, 8..8, 6..12, 3..4, 20..20, 15..18, 15..16];
        let sorted = Ranges::of(ranges.to_vec());
        for place in 0..25 {
            assert_eq!(sorted.contain(place), ranges.iter().any(|range| range.contains(&place)), "{place}");
        }
        for (span, covered) in
            [(4..12, true), (1..3, true), (2..5, false), (15..18, true), (17..19, false), (20..20, true)]
        {
            assert_eq!(sorted.cover(&span), covered, "{span:?}");
        }
        assert!(!Ranges::of(Vec::new()).contain(0));
    }
}
