//! What of a conversation a template leaves out.
//!
//! Found by rendering the conversation with a word of ours in the place of each part: a part whose word does
//! not come out is one that the template does not write.

use serde_json::{Map, Value as Json, json};

use super::conversation::{Conversation, THOUGHTS, calls_mut, function_mut};
use super::{BUILTIN, ChatTemplate};

/// A part of a conversation that carries meaning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The descriptions of tools beside the messages.
    Tools,
    /// The calls of an assistant's message.
    ToolCalls,
    /// What a tool answered.
    ToolResult,
    /// What the assistant thought: a field of its own, or what stands before `</think>`.
    Thoughts,
    /// The content of another message.
    Content,
    /// A field of a message that is none of the usual ones.
    Field(String),
}

impl Part {
    /// Whether it belongs to the use of tools.
    pub(crate) fn is_of_tools(&self) -> bool {
        matches!(self, Part::Tools | Part::ToolCalls | Part::ToolResult)
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Part::Tools => f.write_str("the descriptions of tools"),
            Part::ToolCalls => f.write_str("calls of tools"),
            Part::ToolResult => f.write_str("what a tool answers"),
            Part::Thoughts => f.write_str("the assistant's thoughts"),
            Part::Content => f.write_str("the content of every message"),
            Part::Field(name) => write!(f, "the field {name:?} of messages"),
        }
    }
}

/// A part that a template does not write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwritten {
    /// What kind of part.
    pub part: Part,
    /// Where it stands in the record, such as `messages[1].tool_calls`.
    pub place: String,
    /// The message it belongs to, if it belongs to one.
    pub message: Option<usize>,
}

/// Fields of messages that are written, or that no template needs to write.
const USUAL: [&str; 8] = ["role", "content", "tool_calls", "tool_call_id", "id", "type", "input", "name"];

/// A conversation with a word in the place of each part.
struct Marked {
    chat: Conversation,
    /// Each word with its part.
    words: Vec<(String, Unwritten)>,
    /// The keys that stand for the arguments of each call.
    arguments: Vec<String>,
}

impl Marked {
    fn new(chat: &Conversation) -> Self {
        let mut marker = Marker::default();
        let mut tools = chat.tool_descriptions().to_vec();
        for (i, tool) in tools.iter_mut().enumerate() {
            let name = function_mut(tool).and_then(|tool| tool.get_mut("name"));
            if let Some(name) = name {
                *name = marker.word(Part::Tools, format!("tools[{i}]"), None);
            }
        }
        let messages = chat.messages().iter().cloned().enumerate();
        let messages = messages.map(|(i, message)| marker.message(i, message)).collect();
        let tools = (!tools.is_empty()).then_some(Json::Array(tools));
        Marked { chat: Conversation::new(messages, tools), words: marker.words, arguments: marker.arguments }
    }
}

#[derive(Default)]
struct Marker {
    count: usize,
    words: Vec<(String, Unwritten)>,
    arguments: Vec<String>,
}

impl Marker {
    /// Letters that no text has, and of which none is part of another.
    fn fresh(&mut self) -> String {
        self.count += 1;
        format!("wq{}qw", self.count)
    }

    fn word(&mut self, part: Part, place: String, message: Option<usize>) -> Json {
        let word = self.fresh();
        self.words.push((word.clone(), Unwritten { part, place, message }));
        Json::String(word)
    }

    fn message(&mut self, i: usize, mut message: Map<String, Json>) -> Map<String, Json> {
        let is_text = |value: &Json| value.as_str().is_some_and(|text| !text.trim().is_empty());
        let role = message.get("role").and_then(Json::as_str).unwrap_or_default().to_string();
        let thought = message.iter().any(|(key, value)| THOUGHTS.contains(&key.as_str()) && is_text(value));
        if thought {
            let place = message.keys().find(|key| THOUGHTS.contains(&key.as_str()));
            let place = format!("messages[{i}].{}", place.map_or("", String::as_str));
            let word = self.word(Part::Thoughts, place, Some(i));
            for key in THOUGHTS {
                if let Some(thoughts) = message.get_mut(key).filter(|value| is_text(value)) {
                    *thoughts = word.clone();
                }
            }
        }
        if let Some(content) = message.get("content").filter(|content| is_text(content)) {
            let thoughts =
                content.as_str().and_then(|text| text.rsplit_once("</think>")).map(|(thoughts, _)| thoughts);
            let part = if role == "tool" { Part::ToolResult } else { Part::Content };
            let marked = match thoughts.filter(|_| role == "assistant") {
                None => self.word(part, format!("messages[{i}].content"), Some(i)),
                Some(thoughts) => {
                    let open = if thoughts.contains("<think>") { "<think>\n" } else { "" };
                    let place = format!("messages[{i}].content before </think>");
                    let thought = self.word(Part::Thoughts, place, Some(i));
                    let thought = thought.as_str().unwrap_or_default();
                    Json::String(format!("{open}{thought}\n</think>\n\n{}", self.fresh()))
                }
            };
            message.insert("content".into(), marked);
        }
        for (key, value) in message.iter_mut() {
            let usual = USUAL.contains(&key.as_str()) && !(key == "name" && role != "tool");
            if !usual && !THOUGHTS.contains(&key.as_str()) && is_text(value) {
                *value = self.word(Part::Field(key.clone()), format!("messages[{i}].{key}"), Some(i));
            }
        }
        for call in calls_mut(&mut message).into_iter().flatten() {
            let name = self.word(Part::ToolCalls, format!("messages[{i}].tool_calls"), Some(i));
            call.insert("name".into(), name);
            let arguments = match call.get("arguments") {
                Some(Json::String(text)) => {
                    serde_json::from_str(text).ok().map(|parsed: Json| (parsed, true))
                }
                Some(arguments) => Some((arguments.clone(), false)),
                None => None,
            };
            let Some((Json::Object(arguments), as_text)) = arguments else { continue };
            if arguments.is_empty() {
                continue;
            }
            let key = self.fresh();
            let value = self.word(Part::ToolCalls, format!("messages[{i}].tool_calls"), Some(i));
            let object = json!({ &*key: value });
            call.insert(
                "arguments".into(),
                if as_text { super::python::json(&object).into() } else { object },
            );
            self.arguments.push(key);
        }
        message
    }
}

/// What a template makes of a conversation's calls, from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Calls {
    /// It leaves some out.
    LeftOut,
    /// It writes arguments as JSON within a string, or as Python's dictionaries.
    Garbled,
    /// It writes them all.
    Written,
}

/// How well a template takes a conversation.
pub(super) struct Fit {
    /// What it does not write.
    pub(super) unwritten: Vec<Unwritten>,
    /// What it makes of calls.
    pub(super) calls: Calls,
}

impl ChatTemplate {
    /// What the template does not write of a conversation. Nothing is known, and so nothing told, if it
    /// cannot render the words that are put in the parts' places.
    pub(crate) fn unwritten(&self, chat: &Conversation) -> Vec<Unwritten> {
        if chat.is_plain() { Vec::new() } else { self.fit(chat).unwritten }
    }

    /// How well the template takes a conversation.
    pub(super) fn fit(&self, chat: &Conversation) -> Fit {
        let marked = Marked::new(chat);
        let Ok(rendered) = self.render_values(marked.chat.upto(chat.len()), marked.chat.tools(), false)
        else {
            return Fit { unwritten: Vec::new(), calls: Calls::Written };
        };
        let text = rendered.text;
        let unwritten: Vec<Unwritten> =
            marked.words.into_iter().filter(|(word, _)| !text.contains(word)).map(|(_, part)| part).collect();
        let garbled =
            |key: &String| text.contains(&format!("'{key}':")) || text.contains(&format!("\\\"{key}"));
        let calls = if unwritten.iter().any(|unwritten| unwritten.part == Part::ToolCalls) {
            Calls::LeftOut
        } else if marked.arguments.iter().any(garbled) {
            Calls::Garbled
        } else {
            Calls::Written
        };
        Fit { unwritten, calls }
    }
}

/// The built-in templates that write a part, in a conversation that has all.
pub(super) fn builtins_that_write(part: &Part) -> Vec<&'static str> {
    let call =
        json!({"type": "function", "id": "abcdef012", "function": {"name": "f", "arguments": {"x": 1}}});
    let messages = json!([
        {"role": "user", "content": "Ready?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "abcdef012"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "So it is."},
    ]);
    let tools = json!([{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]);
    let messages = messages.as_array().into_iter().flatten().filter_map(Json::as_object).cloned();
    let messages: Vec<_> = if *part == Part::Thoughts {
        messages.enumerate().filter(|(i, _)| i % 3 == 0).map(|(_, message)| message).collect()
    } else {
        messages.collect()
    };
    let tools = (*part != Part::Thoughts).then_some(tools);
    let writes = |name: &&&str| {
        let mut template = ChatTemplate::builtin(name).expect("a name of the list");
        template.special = ["bos_token", "eos_token"].map(|name| (name.to_string(), "".into())).to_vec();
        let chat = template.conversation(&messages, tools.as_ref());
        let renders = template.render_values(chat.upto(chat.len()), chat.tools(), false).is_ok();
        renders && template.fit(&chat).unwritten.iter().all(|unwritten| unwritten.part != *part)
    };
    BUILTIN.iter().filter(writes).copied().collect()
}
