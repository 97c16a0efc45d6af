//! What a model writes, read as it comes: thoughts, words to the user, and calls of tools.

use crate::asked::random;
use crate::style::{Calls, Style, THINK};

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Delta {
    /// What the model thinks.
    Thought(String),
    /// What it says.
    Said(String),
    /// It begins to call a function.
    Call { id: String, name: String },
    /// A piece of the arguments of the call that began last.
    Arguments(String),
}

/// Where thoughts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thoughts {
    /// There are none.
    None,
    /// They come if the answer begins with their mark.
    Maybe,
    /// The prompt has begun them.
    Begun,
}

impl Thoughts {
    /// As a prompt leaves it.
    pub(crate) fn behind(prompt: &str, style: &Style) -> Self {
        let prompt = prompt.trim_end();
        match style.thinks {
            true if prompt.ends_with(THINK[0]) => Thoughts::Begun,
            true if !prompt.ends_with(THINK[1]) => Thoughts::Maybe,
            _ => Thoughts::None,
        }
    }
}

/// What the text that is held back may be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// The mark before thoughts.
    BeforeThoughts,
    Thinking,
    /// Space behind thoughts.
    BehindThoughts,
    /// The first words, which may be a call that no mark announces.
    Beginning,
    Saying,
    /// The beginning of a call, from its mark on.
    Opening,
    /// The same of a further one, which has no mark of its own.
    Next,
    /// A call whose name does not stand first; read when it is whole. Where it begins, and what of it was seen.
    Whole(Depth, usize, usize),
    Arguments(Depth),
    /// The rest of a call behind its arguments.
    Rest(Depth),
    /// Behind a call.
    Behind,
}

/// Reads an answer.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    calls: Option<Calls>,
    names: Vec<String>,
    /// How many calls are told at most.
    most: usize,
    place: Place,
    held: String,
    has_thought: bool,
    /// Calls that were told.
    told: usize,
}

impl Reader {
    /// `names`: the functions that can be called.
    pub(crate) fn new(style: &Style, thoughts: Thoughts, names: Vec<String>, parallel: bool) -> Self {
        let calls = style.calls.clone().filter(|_| !names.is_empty());
        let place = match thoughts {
            Thoughts::None => Place::Beginning,
            Thoughts::Maybe => Place::BeforeThoughts,
            Thoughts::Begun => Place::Thinking,
        };
        let most = if parallel { usize::MAX } else { 1 };
        Reader { calls, names, most, place, held: String::new(), has_thought: false, told: 0 }
    }

    /// Whether what comes next is thought.
    pub(crate) fn is_thinking(&self) -> bool {
        self.place == Place::Thinking
    }

    /// Whether functions were called.
    pub(crate) fn has_called(&self) -> bool {
        self.told > 0
    }

    /// Takes the next piece of text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Delta> {
        self.held.push_str(text);
        let mut deltas = Vec::new();
        while self.step(&mut deltas) {}
        deltas
    }

    /// The rest. What only looked like a call is what the model said.
    pub(crate) fn finish(&mut self) -> Vec<Delta> {
        let held = std::mem::take(&mut self.held);
        let mut deltas = Vec::new();
        match self.place {
            Place::Thinking => push(&mut deltas, Delta::Thought(held)),
            Place::Arguments(_) => self.tell(&mut deltas, Delta::Arguments(held)),
            Place::Rest(_) | Place::Behind | Place::BehindThoughts => {}
            // Space behind calls is the template's.
            _ if self.has_called() && held.trim().is_empty() => {}
            _ => push(&mut deltas, Delta::Said(held)),
        }
        deltas
    }

    /// Goes on by one place; whether there is more to read.
    fn step(&mut self, deltas: &mut Vec<Delta>) -> bool {
        match self.place.clone() {
            Place::BeforeThoughts => {
                let text = self.held.trim_start();
                if let Some(thought) = text.strip_prefix(THINK[0]) {
                    self.go(thought.to_owned(), Place::Thinking)
                } else if THINK[0].starts_with(text) {
                    false
                } else {
                    self.place = Place::Beginning;
                    true
                }
            }
            Place::Thinking => self.think(deltas),
            Place::BehindThoughts => match self.held.trim_start() {
                "" => false,
                text => self.go(text.to_owned(), Place::Beginning),
            },
            Place::Beginning => match &self.calls {
                Some(calls) if calls.open.is_empty() => match self.held.trim_start().bytes().next() {
                    None => false,
                    Some(b'{') => self.go(self.held.trim_start().to_owned(), Place::Opening),
                    Some(_) => self.go(self.held.clone(), Place::Saying),
                },
                _ => {
                    self.place = Place::Saying;
                    true
                }
            },
            Place::Saying => self.say(deltas),
            Place::Opening => self.open(true, deltas),
            Place::Next => self.open(false, deltas),
            Place::Whole(depth, from, seen) => self.whole(depth, from, seen, deltas),
            Place::Arguments(mut depth) => {
                let end = depth.end(&self.held);
                let text: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
                self.tell(deltas, Delta::Arguments(text));
                self.place = match end {
                    Some(_) => Place::Rest(Depth { open: 1, ..Depth::default() }),
                    None => Place::Arguments(depth),
                };
                end.is_some()
            }
            Place::Rest(mut depth) => match depth.end(&self.held) {
                Some(end) => self.go(self.held[end..].to_owned(), Place::Behind),
                None => {
                    self.go(String::new(), Place::Rest(depth));
                    false
                }
            },
            Place::Behind => self.behind(),
        }
    }

    fn go(&mut self, held: String, place: Place) -> bool {
        (self.held, self.place) = (held, place);
        true
    }

    fn tell(&self, deltas: &mut Vec<Delta>, delta: Delta) {
        if self.told <= self.most {
            push(deltas, delta);
        }
    }

    fn think(&mut self, deltas: &mut Vec<Delta>) -> bool {
        if !self.has_thought {
            self.held = self.held.trim_start().to_owned();
        }
        if let Some((thought, rest)) = self.held.split_once(THINK[1]) {
            push(deltas, Delta::Thought(thought.trim_end().to_owned()));
            return self.go(rest.to_owned(), Place::BehindThoughts);
        }
        // Space at the end may be that before the mark.
        let sure = before_mark(&self.held, THINK[1]);
        let sure = self.held[..sure].trim_end().len();
        let thought: String = self.held.drain(..sure).collect();
        self.has_thought |= !thought.is_empty();
        push(deltas, Delta::Thought(thought));
        false
    }

    fn say(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let open = match &self.calls {
            Some(calls) if !calls.open.is_empty() => calls.open.clone(),
            _ => {
                push(deltas, Delta::Said(std::mem::take(&mut self.held)));
                return false;
            }
        };
        if let Some(at) = self.held.find(&open) {
            // Space before a call is the template's; it is held with the call, in case that is none.
            let said = self.held[..at].trim_end().len();
            let said: String = self.held.drain(..said).collect();
            push(deltas, Delta::Said(said));
            self.place = Place::Opening;
            return true;
        }
        let sure = self.held[..before_mark(&self.held, &open)].trim_end().len();
        let said: String = self.held.drain(..sure).collect();
        push(deltas, Delta::Said(said));
        false
    }

    /// What was held is no call. Its mark is not looked at again.
    fn no_call(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let open = self.calls.as_ref().map_or("", |calls| calls.open.as_str());
        let end = self.held.find(open).map_or(0, |at| at + open.len());
        if open.is_empty() {
            self.calls = None;
        }
        let said: String = self.held.drain(..end).collect();
        push(deltas, Delta::Said(said));
        self.place = Place::Saying;
        true
    }

    /// Reads the beginning of a call, up to its arguments.
    fn open(&mut self, has_mark: bool, deltas: &mut Vec<Delta>) -> bool {
        let Some(calls) = &self.calls else { return self.no_call(deltas) };
        let mut cursor = Cursor(&self.held);
        let mut lead = Ok(());
        if has_mark {
            lead = cursor.word(&calls.open);
            if calls.is_list {
                lead = lead.and_then(|()| cursor.word("["));
            }
        }
        cursor.space();
        let from = self.held.len() - cursor.0.len();
        match lead.and_then(|()| cursor.head()) {
            Ok(Some(name)) if self.names.contains(&name) => {
                let arguments = cursor.0.to_owned();
                self.call(name, deltas);
                self.go(arguments, Place::Arguments(Depth::default()))
            }
            Ok(None) => {
                self.place = Place::Whole(Depth::default(), from, from);
                true
            }
            Err(Short::More) => false,
            Ok(Some(_)) | Err(Short::Other) => self.no_call(deltas),
        }
    }

    fn call(&mut self, name: String, deltas: &mut Vec<Delta>) {
        self.told += 1;
        // Nine letters and digits, which Mistral's templates insist on.
        let id = format!("{:09x}", random() >> 28);
        self.tell(deltas, Delta::Call { id, name });
    }

    fn whole(&mut self, mut depth: Depth, from: usize, seen: usize, deltas: &mut Vec<Delta>) -> bool {
        let Some(end) = depth.end(&self.held[seen..]) else {
            self.place = Place::Whole(depth, from, self.held.len());
            return false;
        };
        let end = seen + end;
        let call = serde_json::from_str::<serde_json::Value>(&self.held[from..end]).unwrap_or_default();
        let name = call["name"].as_str().filter(|name| self.names.iter().any(|known| known == name));
        let arguments = ["arguments", "parameters"].into_iter().find_map(|field| call.get(field));
        let arguments = match arguments {
            None => Some("{}".to_owned()),
            Some(serde_json::Value::String(text)) => Some(text.clone()),
            Some(object) => object.is_object().then(|| object.to_string()),
        };
        match name.zip(arguments) {
            Some((name, arguments)) => {
                self.call(name.to_owned(), deltas);
                self.tell(deltas, Delta::Arguments(arguments));
                self.go(self.held[end..].to_owned(), Place::Behind)
            }
            None => self.no_call(deltas),
        }
    }

    /// Behind a call stand its mark, a comma or a semicolon before another one, or words.
    fn behind(&mut self) -> bool {
        let Some(calls) = &self.calls else { return false };
        let text = self.held.trim_start();
        if text.is_empty() {
            return false;
        }
        if let Some(rest) = text.strip_prefix([',', ';']).filter(|_| calls.is_list || calls.open.is_empty()) {
            return self.go(rest.to_owned(), Place::Next);
        }
        if let Some(rest) = text.strip_prefix(']').filter(|_| calls.is_list) {
            return self.go(rest.to_owned(), Place::Behind);
        }
        if !calls.close.is_empty() {
            if let Some(rest) = text.strip_prefix(calls.close.as_str()) {
                return self.go(rest.to_owned(), Place::Saying);
            }
            if calls.close.starts_with(text) {
                return false;
            }
        }
        self.go(self.held.clone(), Place::Saying)
    }
}

/// Adds a delta, if it says something.
fn push(deltas: &mut Vec<Delta>, delta: Delta) {
    match &delta {
        Delta::Thought(text) | Delta::Said(text) | Delta::Arguments(text) if text.is_empty() => {}
        _ => deltas.push(delta),
    }
}

/// Up to where a text is certainly not the beginning of a mark.
fn before_mark(text: &str, mark: &str) -> usize {
    let ends = (1..mark.len().min(text.len() + 1)).rev().filter(|&end| mark.is_char_boundary(end));
    let begun = ends.into_iter().find(|&end| text.ends_with(&mark[..end]));
    text.len() - begun.unwrap_or(0)
}

/// How deep a place in JSON is, found in one pass over its pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Depth {
    open: usize,
    is_text: bool,
    is_escaped: bool,
}

impl Depth {
    /// Goes over the next piece; where the outermost bracket is closed, if it is.
    fn end(&mut self, piece: &str) -> Option<usize> {
        for (at, byte) in piece.bytes().enumerate() {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.is_text => self.is_escaped = true,
                b'"' => self.is_text = !self.is_text,
                _ if self.is_text => {}
                b'{' | b'[' => self.open += 1,
                b'}' | b']' => {
                    self.open = self.open.saturating_sub(1);
                    if self.open == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// Why the beginning of a call cannot be read.
enum Short {
    /// It may go on to be one.
    More,
    /// It is something else.
    Other,
}

/// A text that is read from its beginning.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn space(&mut self) {
        self.0 = self.0.trim_start();
    }

    fn word(&mut self, word: &str) -> Result<(), Short> {
        self.space();
        match self.0.strip_prefix(word) {
            Some(rest) => {
                self.0 = rest;
                Ok(())
            }
            None if word.starts_with(self.0) => Err(Short::More),
            None => Err(Short::Other),
        }
    }

    /// A text without escapes, between its quotes.
    fn text(&mut self) -> Result<&'a str, Short> {
        self.word("\"")?;
        let end = self.0.find(['"', '\\']).ok_or(Short::More)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = rest.strip_prefix('"').ok_or(Short::Other)?;
        Ok(text)
    }

    /// Reads an object up to its arguments, and gives the function's name. None for an object that begins
    /// otherwise, such as with its arguments.
    fn head(&mut self) -> Result<Option<String>, Short> {
        self.word("{")?;
        if self.text()? != "name" {
            return Ok(None);
        }
        self.word(":")?;
        let name = self.text()?.to_owned();
        match self.word(",").and_then(|()| self.text()) {
            Ok("arguments" | "parameters") => {}
            Ok(_) | Err(Short::Other) => return Ok(None),
            Err(Short::More) => return Err(Short::More),
        }
        self.word(":")?;
        self.space();
        match self.0.bytes().next() {
            None => Err(Short::More),
            Some(b'{') => Ok(Some(name)),
            Some(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use data::ChatTemplate;
    use serde_json::json;

    use super::*;

    /// What a text is read as, in pieces of so many characters: neighbours of a kind are put together, ids left out.
    fn read(template: &str, text: &str, size: usize) -> Vec<(&'static str, String)> {
        let special = json!({"eos_token": "</s>"}).as_object().unwrap().clone();
        let style = Style::of(&ChatTemplate::builtin(template).unwrap().with_variables(&special));
        let thoughts = if style.thinks { Thoughts::Maybe } else { Thoughts::None };
        let mut reader = Reader::new(&style, thoughts, vec!["f".into(), "g".into()], true);
        let letters: Vec<char> = text.chars().collect();
        let mut deltas: Vec<Delta> =
            letters.chunks(size).flat_map(|piece| reader.push(&piece.iter().collect::<String>())).collect();
        deltas.extend(reader.finish());
        let mut told: Vec<(&str, String)> = Vec::new();
        for delta in deltas {
            let (kind, text) = match delta {
                Delta::Thought(text) => ("thought", text),
                Delta::Said(text) => ("said", text),
                Delta::Call { name, .. } => ("call", name),
                Delta::Arguments(text) => ("arguments", text),
            };
            match told.last_mut().filter(|(last, _)| *last == kind && kind != "call") {
                Some((_, before)) => before.push_str(&text),
                None => told.push((kind, text)),
            }
        }
        told
    }

    #[test]
    fn how_a_text_is_cut_makes_no_difference() {
        let call = "{\"name\": \"f\", \"arguments\": {\"a\": \"}\\\"]é\", \"b\": [{}]}}";
        let other = "{\"arguments\": {\"é\": 1}, \"name\": \"g\"}";
        let texts = [
            format!("Well <tool_call>\n{call}\n</tool_call>\n<tool_call>\n{other}\n</tool_call> é <tool"),
            format!("<think> é\n\n a </thin </think>\n\nWell\n\n<tool_call>{call}</tool_call>"),
            format!("  {call}; {other} x"),
            format!("[TOOL_CALLS] [{call}, {other}] é"),
            format!("[TOOL_CALLS] [{call} {{"),
            format!("<tool_call>\n{{\"name\": \"h\"}}\n</tool_call>{call}"),
            "<tool_call>{\"name\": \"f\\u0041\", \"arguments\": {}}</tool_call>".into(),
            "<tool_call><tool_call>é <tool_call>{".into(),
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"".into(),
            "{\"name\": \"f\", \"parameters\": {}, \"more\": [1]}".into(),
            "{\"name\" \"f\"} é".into(),
            "<think>".into(),
            " \n ".into(),
            String::new(),
        ];
        for template in ["qwen2.5", "qwen3", "llama-3.1", "mistral-v3", "chatml"] {
            for text in &texts {
                let whole = read(template, text, usize::MAX);
                for size in [1, 2, 3, 7] {
                    assert_eq!(read(template, text, size), whole, "{template}, by {size}: {text}");
                }
                // Where nothing is called and thought, nothing is lost.
                if whole.iter().all(|(kind, _)| *kind == "said") && !text.starts_with("<think>") {
                    assert_eq!(whole.iter().map(|(_, text)| text.as_str()).collect::<String>(), *text);
                }
            }
        }
    }
}
