//! Chat templates, rendered as transformers' `apply_chat_template` renders them.
//!
//! A template is Jinja with trimmed blocks, a few functions (`raise_exception`, `strftime_now`, `tojson` in
//! Python's spacing) and one tag of its own: `{% generation %} ... {% endgeneration %}` around what the
//! assistant says. Templates come from strangers, so rendering has a budget of work and of depth; a template
//! that exceeds it is an error.

mod builtin;
mod conversation;
mod generation;
mod percent;
mod python;
mod text;
mod unwritten;

use std::ops::Range;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use crate::format::Chat;
use crate::source::universal_newlines;
use crate::tokenizer::Tokenizer;

pub(crate) use conversation::Conversation;
use unwritten::{Calls, builtins_that_write};
pub use unwritten::{Part, Unwritten};

/// Work that one rendering may do: about ten thousand messages, or a second.
const FUEL: u64 = 20_000_000;
/// Depth of nested calls and blocks that one rendering may reach.
const RECURSION_LIMIT: usize = 200;
/// The longest template that is looked at, in bytes. Real ones have up to 20 KB.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// A chat template that cannot be used, or a conversation that it cannot render.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("chat template {origin}: {message}")]
    Syntax {
        /// Where the template came from.
        origin: String,
        /// What is wrong, with the line.
        message: String,
    },
    /// The template refused the conversation, or failed on it.
    #[error("chat template {origin} cannot render this conversation: {message}")]
    Render {
        /// Where the template came from.
        origin: String,
        /// What it said, with the line in the template.
        message: String,
    },
    /// The template needs too much work.
    #[error("chat template {origin} does not end within the work that one conversation may take")]
    Endless {
        /// Where the template came from.
        origin: String,
    },
    /// The assistant's tokens cannot be found in what the template renders.
    #[error(
        "chat template {origin}: {message}, so the assistant's tokens cannot be told apart; use a template with \
         {{% generation %}} blocks (data.chat_template: a file, or one of {}), or set data.train_on: {instead}",
        BUILTIN.join(", ")
    )]
    NotPrefixPreserving {
        /// Where the template came from.
        origin: String,
        /// How it changes earlier text.
        message: String,
        /// The values of `data.train_on` that would still work.
        instead: &'static str,
    },
    /// The template leaves out a part of the conversation without which it says another thing.
    #[error(
        "chat template {origin} does not write {part} ({place}){}, and without it the conversation would say another thing; use a \
         template that writes it (data.chat_template: a file, or one of {}), or take it out",
        and_others(*.others), builtins_that_write(.part).join(", ")
    )]
    Unwritten {
        /// Where the template came from.
        origin: String,
        /// What is left out.
        part: Part,
        /// Where it stands in the record.
        place: String,
        /// In how many more records something is left out.
        others: usize,
    },
    /// What a record marks as not to be learnt cannot be found in what the template renders.
    #[error(
        "chat template {origin}: where the message of the mark {place} stands cannot be told from what it renders; use a template \
         with {{% generation %}} blocks (data.chat_template: a file, or one of {})",
        BUILTIN.join(", ")
    )]
    MarkNotFound {
        /// Where the template came from.
        origin: String,
        /// The message and the mark.
        place: String,
    },
    /// `data.chat_template` names neither a built-in template nor a file.
    #[error("data.chat_template: {given:?} is neither a file nor a built-in template{did_you_mean}; built in are {}", BUILTIN.join(", "))]
    Unknown {
        /// What was given.
        given: String,
        /// A nearby name, as words.
        did_you_mean: String,
    },
    /// The file of `data.chat_template` cannot be read.
    #[error("data.chat_template: {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
}

fn and_others(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => ", nor all of 1 other record".into(),
        _ => format!(", nor all of {count} other records"),
    }
}

/// The names of the built-in templates.
pub const BUILTIN: &[&str] = builtin::NAMES;

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The whole text.
    pub text: String,
    /// The byte ranges of `text` that came from `{% generation %}` blocks, ascending.
    pub generation: Vec<Range<usize>>,
}

/// A chat template's marker for the end of a turn that is plain text to a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PlainEnd {
    /// Where the template came from.
    pub template: String,
    /// The marker.
    pub marker: String,
    /// The number of tokens that it becomes.
    pub tokens: usize,
    /// Built-in templates whose markers are tokens.
    pub fitting: Vec<String>,
}

impl PlainEnd {
    /// What that means, and what to do.
    pub(crate) fn describe(&self) -> String {
        let PlainEnd { template, marker, tokens, fitting } = self;
        let instead = match fitting.as_slice() {
            [] => "no built-in template ends a turn with a token that it has, so the marker is learnt as the text it is".to_string(),
            names => format!("built-in templates that end a turn with a token that it has: {}", names.join(", ")),
        };
        format!(
            "Ending in `{marker}`, by which the chat template ({template}) ends a turn and which is no token of this tokenizer but \
             {tokens} tokens of plain text, so that the model does not stop by itself ({instead})"
        )
    }
}

/// The built-in templates that end a turn with a special token of the tokenizer and have no other markers in
/// brackets than tokens; where some have such markers, only these: the model may know them.
pub fn fitting(tokenizer: &Tokenizer) -> Vec<&'static str> {
    let named: Vec<&str> = tokenizer.special_tokens().iter().map(|(_, token)| token.as_str()).collect();
    let mut fitting: Vec<(&str, bool)> = Vec::new();
    for &name in BUILTIN {
        let template = ChatTemplate::builtin(name).expect("it is built in").with_special_tokens(tokenizer);
        let Some((before, after)) = template.exchange() else { continue };
        let text = before + &after;
        let own: Vec<&str> = markers(&text).filter(|marker| !named.contains(marker)).collect();
        if template.end_of_turn(tokenizer).is_some()
            && own.iter().all(|marker| tokenizer.token_to_id(marker).is_some())
        {
            fitting.push((name, !own.is_empty()));
        }
    }
    let some_have_own = fitting.iter().any(|(_, own)| *own);
    fitting.into_iter().filter(|(_, own)| *own == some_have_own).map(|(name, _)| name).collect()
}

/// What stands in brackets without white space, such as `<|im_end|>` and `[INST]`.
fn markers(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices(['<', '[']).filter_map(|(begin, open)| {
        let end = begin + text[begin..].find(if open == "<" { '>' } else { ']' })? + 1;
        let marker = &text[begin..end];
        (!marker[1..].contains(|c: char| c == '<' || c == '[' || c.is_whitespace())).then_some(marker)
    })
}

/// A compiled chat template.
pub struct ChatTemplate {
    env: Environment<'static>,
    origin: String,
    /// As it was given; of several, that of conversations without tools.
    source: String,
    has_tool_template: bool,
    has_generation: bool,
    special: Vec<(String, Value)>,
}

impl ChatTemplate {
    /// Compiles a template. `origin` says in messages where it came from.
    pub fn compile(source: &str, origin: &str) -> Result<Self, TemplateError> {
        Self::compile_named(&[("default".into(), source.into())], origin)
    }

    /// A built-in template by its name; see [`BUILTIN`].
    pub fn builtin(name: &str) -> Option<Self> {
        let source = builtin::source(name)?;
        Some(Self::compile(source, name).expect("built-in templates are valid"))
    }

    /// The template that `data.chat_template` asks for: a built-in name, else a file. `None`: the tokenizer's
    /// own, if it has one. The tokenizer's special tokens become the template's variables.
    pub fn resolve(setting: Option<&str>, tokenizer: &Tokenizer) -> Result<Option<Self>, TemplateError> {
        let template = match setting {
            Some(given) => match Self::builtin(given) {
                Some(template) => template,
                None => Self::from_file(given)?,
            },
            None if tokenizer.templates().is_empty() => return Ok(None),
            None => Self::compile_named(tokenizer.templates(), "of the tokenizer")?,
        };
        Ok(Some(template.with_special_tokens(tokenizer)))
    }

    fn from_file(given: &str) -> Result<Self, TemplateError> {
        match std::fs::read_to_string(Path::new(given)) {
            Ok(source) => Self::compile(&source, given),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(TemplateError::Unknown {
                given: given.into(),
                did_you_mean: crate::error::did_you_mean(given, BUILTIN),
            }),
            Err(source) => Err(TemplateError::Io { path: given.into(), source }),
        }
    }

    /// Compiles the one named `default` (or the first) and, for conversations with tools, the one named
    /// `tool_use`.
    fn compile_named(sources: &[(String, String)], origin: &str) -> Result<Self, TemplateError> {
        let find = |name: &str| sources.iter().find(|(n, _)| n == name).map(|(_, source)| source);
        let default = find("default").unwrap_or(&sources[0].1);
        let tool_use = find("tool_use");
        let mut env = environment();
        let mut has_generation = false;
        for (name, source) in
            [Some(("default", default)), tool_use.map(|source| ("tool_use", source))].into_iter().flatten()
        {
            let syntax = |message: String| TemplateError::Syntax { origin: origin.into(), message };
            if source.len() > MAX_SOURCE_BYTES {
                return Err(syntax(format!("longer than {MAX_SOURCE_BYTES} bytes")));
            }
            // Jinja reads every line break of a template as `\n`; a byte order mark is no text of it either.
            let source = universal_newlines(source.trim_start_matches('\u{feff}'));
            let (source, found) = generation::rewrite(&source);
            has_generation |= found;
            env.add_template_owned(name, source).map_err(|error| syntax(describe(&error)))?;
        }
        let has_tool_template = tool_use.is_some();
        Ok(ChatTemplate {
            env,
            origin: origin.into(),
            source: default.clone(),
            has_tool_template,
            has_generation,
            special: Vec::new(),
        })
    }

    /// Gives the template a tokenizer's special tokens as variables (`bos_token` ...).
    pub fn with_special_tokens(mut self, tokenizer: &Tokenizer) -> Self {
        let values = tokenizer
            .special_tokens()
            .iter()
            .map(|(name, token)| (name.clone(), Value::from(token.as_str())));
        self.special = values.collect();
        self
    }

    /// The same with further variables, such as `enable_thinking`, which decide how it writes. What a conversation
    /// is made of goes before them.
    pub fn with_variables(&self, variables: &Map<String, Json>) -> Self {
        let further = variables.iter().map(|(name, value)| (name.clone(), python::value(value)));
        ChatTemplate {
            env: self.env.clone(),
            origin: self.origin.clone(),
            source: self.source.clone(),
            special: self.special.iter().cloned().chain(further).collect(),
            ..*self
        }
    }

    /// Fixes the time that `strftime_now` tells, in seconds since 1970 (UTC), so that a run resumed on
    /// another day renders the same text. Without this it is the time of rendering.
    pub fn at_time(mut self, unix_seconds: i64) -> Self {
        self.env.add_function("strftime_now", move |format: &str| python::strftime(format, unix_seconds));
        self
    }

    /// Where the template came from, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The template as it was given, in Jinja; of several by name, the one for conversations without tools.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template marks the assistant's words with `{% generation %}`.
    pub fn has_generation(&self) -> bool {
        self.has_generation
    }

    /// Whether the template places an instruction's `input` itself, as Alpaca's does.
    pub(crate) fn takes_input(&self) -> bool {
        Some(self.source.as_str()) == builtin::source("alpaca")
    }

    /// Renders messages as `apply_chat_template(messages, tools, tokenize=False)` does.
    pub fn render(
        &self,
        messages: &[Map<String, Json>],
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Result<Rendered, TemplateError> {
        let chat = Conversation::new(messages.to_vec(), tools.cloned());
        self.render_values(chat.upto(chat.len()), chat.tools(), add_generation_prompt)
    }

    /// The text that prompts for an answer to the messages. Calls of tools may be given as OpenAI has them or
    /// as transformers has them. A template that writes no tools does not silently do without.
    pub fn prompt(
        &self,
        messages: &[Map<String, Json>],
        tools: Option<&Json>,
    ) -> Result<String, TemplateError> {
        let chat = self.conversation(messages, tools);
        match self.unwritten(&chat).into_iter().find(|unwritten| unwritten.part.is_of_tools()) {
            Some(unwritten) => Err(self.leaves_out(unwritten)),
            None => Ok(self.render_whole(&chat, true)?.text),
        }
    }

    /// The text that prompts for an answer to a record's conversation, an instruction's `input` where the
    /// template has it.
    pub fn question(&self, chat: &Chat) -> Result<String, TemplateError> {
        match chat.instruction && !self.takes_input() {
            true => {
                let chat = chat.clone().with_inputs_in_content();
                self.prompt(&chat.messages, chat.tools.as_ref())
            }
            false => self.prompt(&chat.messages, chat.tools.as_ref()),
        }
    }

    /// Renders all of a conversation. Where a template cannot and there are tools, the error names templates
    /// that know tools.
    pub(crate) fn render_whole(&self, chat: &Conversation, prompt: bool) -> Result<Rendered, TemplateError> {
        self.render_values(chat.upto(chat.len()), chat.tools(), prompt).map_err(|error| match error {
            TemplateError::Render { origin, message } if chat.has_tools() => {
                let names = builtins_that_write(&Part::ToolCalls).join(", ");
                let message = format!("{message}; of the built-in templates these know tools: {names}");
                TemplateError::Render { origin, message }
            }
            error => error,
        })
    }

    /// The error of a part that must not be left out.
    pub(crate) fn leaves_out(&self, unwritten: Unwritten) -> TemplateError {
        let Unwritten { part, place, .. } = unwritten;
        TemplateError::Unwritten { origin: self.origin.clone(), part, place, others: 0 }
    }

    /// The special token with which the template ends the assistant's turn, such as `<|im_end|>`: generation
    /// stops there as well as at the tokenizer's end tokens, for base models under a chat template. `None` if
    /// there is no such token.
    pub fn end_of_turn(&self, tokenizer: &Tokenizer) -> Option<u32> {
        let after = self.exchange()?.1;
        tokenizer.encode(&after, false).ok()?.ids.into_iter().find(|&id| tokenizer.is_special(id))
    }

    /// The text with which the template ends the assistant's turn, its first line: where it is no special
    /// token of the tokenizer ([`Self::end_of_turn`] finds none), it is by this text that a turn is seen to
    /// have ended. `None` if the template writes nothing there but space.
    pub fn end_text(&self) -> Option<String> {
        let after = self.exchange()?.1;
        after.trim().lines().next().map(|line| line.trim().to_string())
    }

    /// How the template writes a question and an answer: the text before the answer's words, and the text
    /// behind them.
    fn exchange(&self) -> Option<(String, String)> {
        const SAID: &str = "Yes.";
        let message = |role: &str, content: &str| {
            [("role", role), ("content", content)].map(|(key, value)| (key.to_string(), Json::from(value)))
        };
        let chat =
            [message("user", "Ready?"), message("assistant", SAID)].map(|pairs| pairs.into_iter().collect());
        let text = self.render(&chat, None, false).ok()?.text;
        let (before, after) = text.rsplit_once(SAID)?;
        Some((before.to_string(), after.to_string()))
    }

    /// The marker at which the template ends the assistant's turn, if that is several tokens of this
    /// tokenizer rather than one.
    pub(crate) fn plain_end(&self, tokenizer: &Tokenizer) -> Option<PlainEnd> {
        if self.end_of_turn(tokenizer).is_some() {
            return None;
        }
        let marker = self.exchange()?.1.trim().to_string();
        let tokens = tokenizer.encode(&marker, false).ok()?.ids.len();
        (tokens > 1).then(|| {
            let fitting = fitting(tokenizer).into_iter().map(String::from).collect();
            PlainEnd { template: self.origin.clone(), marker, tokens, fitting }
        })
    }

    /// The conversation in the form that the template takes best, to be rendered in parts.
    pub(crate) fn conversation(&self, messages: &[Map<String, Json>], tools: Option<&Json>) -> Conversation {
        let mut forms = Conversation::new(messages.to_vec(), tools.cloned()).forms();
        if forms.len() == 1 {
            return forms.remove(0);
        }
        let fit = |form: &Conversation| {
            let renders = self.render_values(form.upto(form.len()), form.tools(), false).is_ok();
            renders.then(|| self.fit(form).calls)
        };
        let mut best = (fit(&forms[0]), 0);
        for (i, form) in forms.iter().enumerate().skip(1) {
            if best.0 == Some(Calls::Written) {
                break;
            }
            let fit = fit(form);
            if fit > best.0 {
                best = (fit, i);
            }
        }
        forms.swap_remove(best.1)
    }

    pub(crate) fn render_values(
        &self,
        messages: &[Value],
        tools: Option<Value>,
        add_generation_prompt: bool,
    ) -> Result<Rendered, TemplateError> {
        let name = if self.has_tool_template && tools.is_some() { "tool_use" } else { "default" };
        let variables = [
            ("messages".to_string(), Value::from(messages.to_vec())),
            ("tools".to_string(), tools.unwrap_or(Value::from(()))),
            ("documents".to_string(), Value::from(())),
            ("add_generation_prompt".to_string(), Value::from(add_generation_prompt)),
        ];
        let context = Value::from_pairs(self.special.iter().cloned().chain(variables));
        let template = self.env.get_template(name).expect("added when compiled");
        let text = template.render(context).map_err(|error| self.failed(&error))?;
        if !self.has_generation {
            return Ok(Rendered { text, generation: Vec::new() });
        }
        generation::split(&text).ok_or_else(|| TemplateError::Render {
            origin: self.origin.clone(),
            message: "its {% generation %} blocks are nested or cut apart".into(),
        })
    }

    fn failed(&self, error: &minijinja::Error) -> TemplateError {
        let origin = self.origin.clone();
        match error.kind() {
            ErrorKind::OutOfFuel => TemplateError::Endless { origin },
            _ => TemplateError::Render { origin, message: describe(error) },
        }
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({})", self.origin)
    }
}

/// The environment in which transformers renders templates (utils/chat_template_utils.py,
/// `_compile_jinja_template`).
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("the default delimiters are valid"));
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_debug(false);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION_LIMIT);
    python::install(&mut env);
    text::install(&mut env);
    generation::install(&mut env);
    percent::install(&mut env);
    env
}

/// The error in one line, with the template's line.
fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), String::from);
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}
