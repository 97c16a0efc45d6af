//! Where a template that does not mark them writes the assistant's turns: found by comparing renderings.
//!
//! A turn begins where the model begins to write: where the rendering of the messages before it, generation
//! prompt included, ends. It ends where the rendering of the messages up to it ends. Both must begin the
//! whole text. One more rendering of the whole, with other words in the turn's place, tells the template's
//! text from the author's. By it a prompt is understood that says more than a finished turn shows (it may
//! open a thought): the turn begins behind what the two share of the template's text, and never within the
//! author's words. And by it the result is checked: all that changes with the words lies within the turn.

use std::ops::Range;

use minijinja::Value;

use crate::template::{ChatTemplate, Conversation, TemplateError};
use crate::tokenizer::Encoded;

/// A conversation whose whole text is known and whose turns are to be found in it.
pub(super) struct Turns<'a> {
    /// The template.
    pub(super) template: &'a ChatTemplate,
    /// The conversation.
    pub(super) chat: &'a Conversation,
    /// What the template rendered of it.
    pub(super) text: &'a str,
    /// The tokens of `text`.
    pub(super) encoded: &'a Encoded,
    /// The end-of-text token, which some templates write behind every text that is no prompt (Phi 3); empty
    /// if there is none.
    pub(super) end_of_text: &'a str,
}

/// Why a turn cannot be found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    /// What prompts for the turn is not how it begins.
    Prompt,
    /// The turn is written differently once another follows.
    Rewritten,
    /// What the template makes of the turn's words cannot be followed.
    Words,
}

impl Obstacle {
    fn message(self) -> &'static str {
        match self {
            Obstacle::Prompt => {
                "its generation prompt is not how it begins an assistant's turn that is already there"
            }
            Obstacle::Rewritten => {
                "it writes a turn differently once another follows (it may drop thoughts, for instance)"
            }
            Obstacle::Words => "it does not write an assistant's words as one piece of the text",
        }
    }
}

impl Turns<'_> {
    /// The byte ranges of the given messages, which must be the assistant's.
    pub(super) fn find(&self, turns: &[usize]) -> Result<Vec<Range<usize>>, TemplateError> {
        let find = |&turn: &usize| {
            self.range(turn).map_err(|obstacle| TemplateError::NotPrefixPreserving {
                origin: self.template.origin().into(),
                message: obstacle.message().into(),
                instead: match obstacle {
                    Obstacle::Rewritten if Some(&turn) != turns.last() => "completion or all",
                    _ => "all",
                },
            })
        };
        turns.iter().map(find).collect()
    }

    fn range(&self, turn: usize) -> Result<Range<usize>, Obstacle> {
        let end = self.end(turn).ok_or(Obstacle::Rewritten)?;
        let (probed, words) = self.probe(turn).ok_or(Obstacle::Words)?;
        let (before, after) = (&probed[..words.start], &probed[words.end..]);
        if !after.ends_with(&self.text[end..]) {
            return Err(Obstacle::Words);
        }
        let start = self.start(turn, before).ok_or(Obstacle::Prompt)?;
        // What was taken off the end may have been all that the turn had.
        Ok(start.min(end)..end)
    }

    /// Where the turn ends: the text of the messages up to it must begin the whole.
    fn end(&self, turn: usize) -> Option<usize> {
        if turn + 1 == self.chat.len() {
            return Some(self.text.len());
        }
        self.beginning(&self.render(self.chat.upto(turn + 1), false)?)
    }

    /// How much of the whole text a rendering of its first messages is, if it begins it.
    pub(super) fn beginning(&self, said: &str) -> Option<usize> {
        self.with_and_without_end(said).find(|said| self.text.starts_with(said)).map(str::len)
    }

    fn with_and_without_end<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        [Some(text), text.strip_suffix(self.end_of_text)].into_iter().flatten()
    }

    /// Where the turn begins. `probed` is what precedes other words in the turn's place.
    fn start(&self, turn: usize, probed: &str) -> Option<usize> {
        // All that does not depend on the turn's words; an empty thought, for instance, does.
        let before = &probed[..common_prefix(probed, self.text)];
        let front_of_token = |start| if start == probed.len() { start } else { self.front_of_token(start) };
        let earlier = self.chat.upto(turn);
        // A template need not know what to make of no messages at all, or of a system message alone.
        let prompt = if turn == 0 { None } else { self.render(earlier, true) };
        match prompt {
            None => {
                let (start, whole) = self.start_by_header(turn, before)?;
                Some(if whole { start } else { front_of_token(start) })
            }
            Some(prompt) if before.starts_with(&prompt) => Some(prompt.len()),
            Some(prompt) => {
                let shared = common_prefix(&prompt, before);
                (shared > self.unprompted(earlier, &prompt)?).then(|| front_of_token(shared))
            }
        }
    }

    /// The same where what comes before the turn cannot be rendered: by the header that the turn has behind a
    /// question. With it, whether the header is all that a prompt shows.
    fn start_by_header(&self, turn: usize, before: &str) -> Option<(usize, bool)> {
        let question = Conversation::question();
        let prompt = self.render(&question, true)?;
        let (message, words) = self.chat.with_other_words(turn, self.text);
        let answered = self.render(&[question.as_slice(), &[message]].concat(), false)?;
        let example = answered.split(&words).next()?;
        let shared = common_prefix(&prompt, example);
        let header =
            example.get(self.unprompted(&question, &prompt)?..shared).filter(|header| !header.is_empty())?;
        if self.chat.texts(turn).any(|text| text.contains(header)) {
            return None;
        }
        Some((before.rfind(header)? + header.len(), shared == prompt.len()))
    }

    /// How much of a prompt is the messages' own text: what the template renders of them without a prompt.
    fn unprompted(&self, earlier: &[Value], prompt: &str) -> Option<usize> {
        let text = self.render(earlier, false)?;
        self.with_and_without_end(&text).find(|text| prompt.starts_with(text)).map(str::len)
    }

    /// The whole text with other words in the turn's place, and where the words stand in it.
    fn probe(&self, turn: usize) -> Option<(String, Range<usize>)> {
        let (message, words) = self.chat.with_other_words(turn, self.text);
        let calls = self.chat.with_other_arguments(turn, &words);
        // Some templates write the calls of a turn and not its words, and a turn that only calls is best left
        // silent.
        let probes = if self.chat.is_silent(turn) { [calls, Some(message)] } else { [Some(message), calls] };
        probes.into_iter().flatten().find_map(|message| self.probe_by(turn, message, &words))
    }

    fn probe_by(&self, turn: usize, message: Value, words: &str) -> Option<(String, Range<usize>)> {
        let mut messages = self.chat.upto(self.chat.len()).to_vec();
        messages[turn] = message;
        let text = self.render(&messages, false)?;
        let words = text.find(words)?..text.rfind(words)? + words.len();
        Some((text, words))
    }

    fn render(&self, messages: &[Value], prompt: bool) -> Option<String> {
        let rendered = self.template.render_values(messages, self.chat.tools(), prompt);
        rendered.ok().map(|rendered| rendered.text)
    }

    /// The front of the token that a place within the template's text may cut in two: `<|a|>` and `<|b|>`
    /// have letters in common, but as tokens nothing.
    fn front_of_token(&self, place: usize) -> usize {
        let after = self.encoded.begins.partition_point(|&begin| begin <= place);
        after.checked_sub(1).map_or(place, |token| self.encoded.begins[token])
    }
}

/// The number of bytes that two texts have in common at their beginning, in whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    same.map(|(a, _)| a.len_utf8()).sum()
}
