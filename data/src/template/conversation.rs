//! A conversation as a template takes it, and with other words in the place of some of its own.

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::python;

/// Names under which a message may carry what the assistant thought.
pub(super) const THOUGHTS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A conversation to be rendered whole or in part.
pub(crate) struct Conversation {
    messages: Vec<Map<String, Json>>,
    tools: Option<Json>,
    values: Vec<Value>,
    tool_values: Option<Value>,
}

impl Conversation {
    pub(super) fn new(messages: Vec<Map<String, Json>>, tools: Option<Json>) -> Self {
        let values = messages.iter().map(python::message).collect();
        let tool_values = tools.as_ref().map(python::value);
        Conversation { messages, tools, values, tool_values }
    }

    /// The number of messages.
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The messages before `end`.
    pub(crate) fn upto(&self, end: usize) -> &[Value] {
        &self.values[..end]
    }

    /// The descriptions of tools.
    pub(crate) fn tools(&self) -> Option<Value> {
        self.tool_values.clone()
    }

    pub(super) fn messages(&self) -> &[Map<String, Json>] {
        &self.messages
    }

    pub(super) fn tool_descriptions(&self) -> &[Json] {
        self.tools.as_ref().and_then(Json::as_array).map_or(&[], Vec::as_slice)
    }

    /// Whether there is nothing but what users and assistants say.
    pub(super) fn is_plain(&self) -> bool {
        let is_plain = |message: &Map<String, Json>| {
            let text = |key: &str| message.get(key).and_then(Json::as_str).unwrap_or_default();
            message.len() == 2
                && matches!(
                    (text("role"), text("content").contains("</think>")),
                    ("user", _) | ("assistant", false)
                )
        };
        self.tools.is_none() && self.messages.iter().all(is_plain)
    }

    /// Whether tools are described, called, or answer.
    pub(super) fn has_tools(&self) -> bool {
        let of_tools = |message: &Map<String, Json>| {
            message.contains_key("tool_calls") || message.get("role").is_some_and(|role| role == "tool")
        };
        self.tools.is_some() || self.messages.iter().any(of_tools)
    }

    /// The forms in which the same conversation may be given, this one first: the arguments of calls as an
    /// object or as JSON text, a call's missing words as nothing said or as none. Templates take one or the
    /// other.
    pub(super) fn forms(self) -> Vec<Self> {
        let with = |change: &dyn Fn(&mut Map<String, Json>)| {
            let mut messages = self.messages.clone();
            messages.iter_mut().for_each(change);
            (messages != self.messages).then(|| Conversation::new(messages, self.tools.clone()))
        };
        let mute = |message: &mut Map<String, Json>| {
            let is_empty = message.get("content").is_none_or(|content| content.as_str() == Some(""));
            if is_empty && calls_mut(message).is_some() {
                message.insert("content".into(), Json::Null);
            }
        };
        let turned = |message: &mut Map<String, Json>| {
            calls_mut(message).into_iter().flatten().for_each(turn_arguments);
        };
        let both = |message: &mut Map<String, Json>| {
            mute(message);
            turned(message);
        };
        let others: Vec<_> = [with(&turned), with(&mute), with(&both)].into_iter().flatten().collect();
        std::iter::once(self).chain(others).collect()
    }

    /// The contents of the messages before `end`.
    pub(crate) fn texts(&self, end: usize) -> impl Iterator<Item = &str> {
        self.messages[..end].iter().filter_map(|message| message.get("content")?.as_str())
    }

    /// A user's message, before which nothing need stand.
    pub(crate) fn question() -> Vec<Value> {
        let message = [("role", "user"), ("content", "Ready?")];
        vec![python::message(
            &message.map(|(key, text)| (key.to_string(), Json::from(text))).into_iter().collect(),
        )]
    }

    /// A message whose content and thoughts are other words, and these words, which do not occur in `text`.
    pub(crate) fn with_other_words(&self, message: usize, text: &str) -> (Value, String) {
        let mut words = "rosewood".to_string();
        while text.contains(&words) {
            words.push('x');
        }
        let mut message = self.messages[message].clone();
        message.insert("content".into(), Json::from(words.as_str()));
        for (_, thoughts) in
            message.iter_mut().filter(|(key, value)| THOUGHTS.contains(&key.as_str()) && value.is_string())
        {
            *thoughts = Json::from(words.as_str());
        }
        (python::message(&message), words)
    }

    /// A message whose calls have other words for arguments; `None` if it has no calls. (A function's name
    /// may come again in what the tool answers.)
    pub(crate) fn with_other_arguments(&self, message: usize, words: &str) -> Option<Value> {
        let mut message = self.messages[message].clone();
        for call in calls_mut(&mut message)? {
            let arguments = serde_json::json!({ words: words });
            let as_text = call.get("arguments").is_some_and(Json::is_string);
            call.insert(
                "arguments".into(),
                if as_text { python::json(&arguments).into() } else { arguments },
            );
        }
        Some(python::message(&message))
    }

    /// Whether a message says nothing but may call tools.
    pub(crate) fn is_silent(&self, message: usize) -> bool {
        let content = self.messages[message].get("content").and_then(Json::as_str);
        content.is_none_or(|content| content.trim().is_empty())
    }
}

/// The functions that a message calls, `{"name", "arguments"}`; `None` if it calls none.
pub(super) fn calls_mut(
    message: &mut Map<String, Json>,
) -> Option<impl Iterator<Item = &mut Map<String, Json>>> {
    let calls = message.get_mut("tool_calls")?.as_array_mut().filter(|calls| !calls.is_empty())?;
    Some(calls.iter_mut().filter_map(|call| function_mut(call)))
}

/// The part of a call or of a tool's description that has the name: under `function`, or the whole.
pub(super) fn function_mut(call: &mut Json) -> Option<&mut Map<String, Json>> {
    let call = call.as_object_mut()?;
    if call.get("function").is_some_and(Json::is_object) {
        return call.get_mut("function")?.as_object_mut();
    }
    Some(call)
}

/// Arguments given as JSON text become the object, and an object its text.
fn turn_arguments(call: &mut Map<String, Json>) {
    let turned = match call.get("arguments") {
        Some(Json::String(text)) => serde_json::from_str(text).ok().filter(Json::is_object),
        Some(object @ Json::Object(_)) => Some(Json::String(python::json(object))),
        _ => None,
    };
    if let Some(turned) = turned {
        call.insert("arguments".into(), turned);
    }
}
