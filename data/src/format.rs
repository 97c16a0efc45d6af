//! The formats in which people keep examples, told apart by their keys and turned into one of four kinds of [`Item`].

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use crate::error::{did_you_mean, named_enum, nearest};
use crate::json;
use crate::source::kind;
use crate::{DataError, IGNORE, Source};

/// How a record says what is to be learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// Found by looking at the first records.
    Auto,
    /// `{"messages": [{"role", "content"}], "tools"}`.
    Messages,
    /// `{"conversations": [{"from", "value"}], "system", "tools"}`.
    Sharegpt,
    /// `{"instruction", "input", "output", "system", "history"}`.
    Alpaca,
    /// `{"prompt", "completion"}`: two texts, or two lists of messages.
    Completion,
    /// `{"text"}`.
    Text,
    /// `{"prompt", "chosen", "rejected"}`: recognised, not yet trained on.
    Preference,
    /// `{"input_ids", "labels"}`.
    Tokenized,
}

named_enum!(
    Format,
    "data format",
    Auto = "auto",
    Messages = "messages",
    Sharegpt = "sharegpt",
    Alpaca = "alpaca",
    Completion = "completion",
    Text = "text",
    Preference = "preference",
    Tokenized = "tokenized",
);

/// A record, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A conversation.
    Chat(Chat),
    /// Two texts, of which the second is to be learnt.
    Completion {
        /// What is given.
        prompt: String,
        /// What is to be learnt.
        completion: String,
    },
    /// A text to be learnt whole.
    Text(String),
    /// Token ids, with labels as in transformers.
    Tokenized {
        /// T token ids.
        input_ids: Vec<u32>,
        /// T labels.
        labels: Vec<i32>,
    },
}

/// A conversation as chat templates take it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// Messages with `role` and `content`, and whatever else the record's messages carry (`tool_calls` ...).
    pub messages: Vec<Map<String, Json>>,
    /// Descriptions of tools, a list, if there are any.
    pub tools: Option<Json>,
    /// Messages before this index are only context: the prompt of a conversational completion.
    pub given: usize,
    /// Whether the record is an instruction, which has a well-known form even without a chat template.
    pub instruction: bool,
}

/// Roles that messages may have.
const ROLES: &[&str] = &["system", "user", "assistant", "tool", "developer"];

/// Keys under which an alpaca record may keep its parts; Dolly and GSM8K use the later ones.
const INSTRUCTION: &[&str] = &["instruction", "question", "query"];
const INPUT: &[&str] = &["input", "context"];
const OUTPUT: &[&str] = &["output", "response", "answer"];

/// The format of a record, by its keys.
pub fn detect(record: &Map<String, Json>, at: &Source) -> Result<Format, DataError> {
    let has = |key: &str| record.contains_key(key);
    let has_one_of = |keys: &[&str]| keys.iter().any(|key| has(key));
    if has("input_ids") {
        Ok(Format::Tokenized)
    } else if has("chosen") && has("rejected") {
        Ok(Format::Preference)
    } else if has("messages") {
        Ok(Format::Messages)
    } else if has("conversations") || has("conversation") {
        Ok(Format::Sharegpt)
    } else if has("prompt") && has("completion") {
        Ok(Format::Completion)
    } else if has_one_of(INSTRUCTION) && has_one_of(OUTPUT) {
        Ok(Format::Alpaca)
    } else if has("text") {
        Ok(Format::Text)
    } else {
        Err(DataError::record(at, unknown_keys(record)))
    }
}

fn unknown_keys(record: &Map<String, Json>) -> String {
    const KEYS: &[&str] = &[
        "messages",
        "conversations",
        "instruction",
        "input",
        "output",
        "prompt",
        "completion",
        "text",
        "input_ids",
        "labels",
    ];
    let found: Vec<&str> = record.keys().map(String::as_str).take(12).collect();
    let slip =
        found.iter().filter(|key| !KEYS.contains(key)).find_map(|key| Some((key, nearest(key, KEYS)?)));
    let hint = slip.map(|(key, near)| format!(" Did you mean {near:?} by {key:?}?")).unwrap_or_default();
    format!(
        "no known format has only the keys [{}].{hint} Known are messages (messages), sharegpt (conversations), alpaca \
         (instruction, output), completion (prompt, completion), text (text) and tokenized (input_ids, labels)",
        found.join(", ")
    )
}

impl Format {
    /// Understands a record. `self` must not be `Auto`.
    pub fn item(self, record: Map<String, Json>, at: &Source) -> Result<Item, DataError> {
        let mut fields = Fields { record, at };
        match self {
            Format::Auto => panic!("the format is found before records are understood"),
            Format::Messages => fields.messages(),
            Format::Sharegpt => fields.sharegpt(),
            Format::Alpaca => fields.alpaca(),
            Format::Completion => fields.completion(),
            Format::Text => Ok(Item::Text(fields.text(&["text"])?)),
            Format::Tokenized => fields.tokenized(),
            Format::Preference => Err(fields.error(
                "preference data (chosen, rejected) is not supported yet; to train on the chosen answers alone, give \
                 them as messages or completion",
            )),
        }
    }
}

/// A record's fields, with errors that say where it stands.
struct Fields<'a> {
    record: Map<String, Json>,
    at: &'a Source,
}

impl Fields<'_> {
    fn error(&self, message: impl Into<String>) -> DataError {
        DataError::record(self.at, message)
    }

    /// Takes the first of the keys that is there and not null.
    fn take(&mut self, keys: &[&str]) -> Option<Json> {
        keys.iter().find_map(|key| self.record.shift_remove(*key).filter(|value| !value.is_null()))
    }

    fn require(&mut self, keys: &[&'static str]) -> Result<Json, DataError> {
        let void = keys.iter().find(|key| self.record.contains_key(**key)).copied();
        self.take(keys).ok_or_else(|| {
            if let Some(key) = void {
                return self.error(format!("the key {key:?} is null, which it must not be"));
            }
            let found: Vec<&str> = self.record.keys().map(String::as_str).collect();
            let slip = found.iter().find(|key| nearest(key, keys).is_some());
            let hint = slip.map(|key| format!("; did you mean it by {key:?}?")).unwrap_or_default();
            self.error(format!("the key {:?} is missing{hint}", keys[0]))
        })
    }

    fn text(&mut self, keys: &[&'static str]) -> Result<String, DataError> {
        match self.require(keys)? {
            Json::String(text) => Ok(text),
            other => Err(self.error(format!("{:?} must be a string, not {}", keys[0], kind(&other)))),
        }
    }

    fn optional_text(&mut self, keys: &[&'static str]) -> Result<String, DataError> {
        match self.take(keys) {
            None => Ok(String::new()),
            Some(Json::String(text)) => Ok(text),
            Some(other) => Err(self.error(format!("{:?} must be a string, not {}", keys[0], kind(&other)))),
        }
    }

    fn list(&mut self, keys: &[&'static str]) -> Result<Vec<Json>, DataError> {
        match self.require(keys)? {
            Json::Array(items) => Ok(items),
            other => Err(self.error(format!("{:?} must be a list, not {}", keys[0], kind(&other)))),
        }
    }

    /// `tools`: a list, or JSON text of one as some collections keep it.
    fn tools(&mut self) -> Result<Option<Json>, DataError> {
        let tools = match self.take(&["tools"]) {
            Some(Json::String(text)) if text.trim().is_empty() => None,
            Some(Json::String(text)) => Some(json::parse_tools(&text).map_err(|error| {
                self.error(format!("\"tools\" is text, but not JSON: {}", error.message(0)))
            })?),
            tools => tools,
        };
        match tools {
            None => Ok(None),
            Some(Json::Array(list)) if list.is_empty() => Ok(None),
            Some(Json::Array(list)) => Ok(Some(Json::Array(list))),
            Some(other) => Err(self.error(format!("\"tools\" must be a list, not {}", kind(&other)))),
        }
    }

    fn messages(&mut self) -> Result<Item, DataError> {
        let messages = self.list(&["messages"])?;
        let messages = self.message_list("messages", messages)?;
        Ok(Item::Chat(Chat { messages, tools: self.tools()?, ..Chat::default() }))
    }

    fn message_list(&self, key: &str, items: Vec<Json>) -> Result<Vec<Map<String, Json>>, DataError> {
        if items.is_empty() {
            return Err(self.error(format!("{key:?} is empty")));
        }
        items.into_iter().enumerate().map(|(i, item)| self.message(&format!("{key}[{i}]"), item)).collect()
    }

    /// Checks a message and makes a list of text parts one text.
    fn message(&self, place: &str, item: Json) -> Result<Map<String, Json>, DataError> {
        let found = kind(&item);
        let Json::Object(mut message) = with_tool_calls(item) else {
            return Err(
                self.error(format!("{place} must be an object with \"role\" and \"content\", not {}", found))
            );
        };
        let role = match message.get("role") {
            Some(Json::String(role)) => role.as_str(),
            Some(other) => {
                return Err(self.error(format!("{place}.role must be a string, not {}", kind(other))));
            }
            None => {
                let slip = message.keys().find(|key| nearest(key, &["role"]).is_some());
                let hint = slip.map(|key| format!("; did you mean it by {key:?}?")).unwrap_or_default();
                return Err(self.error(format!("{place} has no \"role\"{hint}")));
            }
        };
        if !ROLES.contains(&role) {
            let hint = did_you_mean(role, ROLES);
            return Err(
                self.error(format!("{place}.role: unknown role {role:?}{hint}; known: {}", ROLES.join(", ")))
            );
        }
        let content = match message.get("content") {
            Some(Json::String(_)) => return Ok(message),
            None | Some(Json::Null) if has_calls(&message) => String::new(),
            None | Some(Json::Null) => {
                let slip = message.keys().find(|key| nearest(key, &["content"]).is_some());
                let hint = slip.map(|key| format!("; did you mean it by {key:?}?")).unwrap_or_default();
                return Err(self.error(format!("{place} has no \"content\"{hint}")));
            }
            Some(Json::Array(parts)) => self.text_parts(place, parts)?,
            Some(other) => {
                let message =
                    format!("{place}.content must be a string or a list of text parts, not {}", kind(other));
                return Err(self.error(message));
            }
        };
        message.insert("content".into(), Json::String(content));
        Ok(message)
    }

    fn text_parts(&self, place: &str, parts: &[Json]) -> Result<String, DataError> {
        let text = |(i, part): (usize, &Json)| match part {
            Json::String(text) => Ok(text.clone()),
            part => {
                match (part.get("type").and_then(Json::as_str), part.get("text").and_then(Json::as_str)) {
                    (None | Some("text"), Some(text)) => Ok(text.to_string()),
                    (Some(other), _) if other != "text" => Err(self.error(format!(
                        "{place}.content[{i}] is of type {other:?}; only text can be trained on"
                    ))),
                    _ => Err(self.error(format!(
                        "{place}.content[{i}] must be {{\"type\": \"text\", \"text\": ...}}"
                    ))),
                }
            }
        };
        parts.iter().enumerate().map(text).collect()
    }

    /// `conversations` with LLaMA-Factory's tags. Some collections keep role and content under that key instead.
    fn sharegpt(&mut self) -> Result<Item, DataError> {
        let turns = self.list(&["conversations", "conversation"])?;
        if turns.is_empty() {
            return Err(self.error("\"conversations\" is empty"));
        }
        let mut messages = Vec::with_capacity(turns.len() + 1);
        let system = self.optional_text(&["system", "system_prompt"])?;
        if !system.is_empty() {
            messages.push(message("system", system));
        }
        for (i, turn) in turns.into_iter().enumerate() {
            let place = format!("conversations[{i}]");
            let tagged = turn.get("from").is_some() || turn.get("role").is_none();
            messages.push(if tagged {
                self.tagged_turn(&place, &turn)?
            } else {
                self.message(&place, turn)?
            });
        }
        Ok(Item::Chat(Chat { messages, tools: self.tools()?, ..Chat::default() }))
    }

    fn tagged_turn(&self, place: &str, turn: &Json) -> Result<Map<String, Json>, DataError> {
        const TAGS: &[&str] =
            &["human", "gpt", "system", "observation", "function_call", "user", "assistant", "tool"];
        let calls = turn.as_object().is_some_and(has_calls);
        let field = |key: &str| match turn.get(key) {
            Some(Json::String(text)) => Ok(text.clone()),
            None | Some(Json::Null) if calls && key == "value" => Ok(String::new()),
            Some(other) => Err(self.error(format!("{place}.{key} must be a string, not {}", kind(other)))),
            None => Err(self.error(format!("{place} has no {key:?}"))),
        };
        let (from, value) = (field("from")?, field("value")?);
        // What else an assistant's turn may carry: its calls, and what it thought.
        let said = |value: String| {
            let mut message = message("assistant", value);
            for key in ["tool_calls", "reasoning_content", "thinking", "reasoning"] {
                message.extend(turn.get(key).map(|field| (key.to_string(), field.clone())));
            }
            message
        };
        match from.as_str() {
            "human" | "user" => Ok(message("user", value)),
            "gpt" | "assistant" | "chatgpt" | "bot" | "model" | "bard" | "bing" => Ok(said(value)),
            "system" => Ok(message("system", value)),
            "observation" | "tool" | "function_response" => Ok(message("tool", value)),
            "function_call" => Ok(tool_call(value)),
            _ => {
                let hint = did_you_mean(&from, TAGS);
                Err(self
                    .error(format!("{place}.from: unknown tag {from:?}{hint}; known: {}", TAGS.join(", "))))
            }
        }
    }

    /// A user's turn is the instruction and, a line below, the input; `history` holds earlier [user, assistant] pairs.
    fn alpaca(&mut self) -> Result<Item, DataError> {
        let (instruction, output) = (self.text(INSTRUCTION)?, self.text(OUTPUT)?);
        let (input, system) = (self.optional_text(INPUT)?, self.optional_text(&["system"])?);
        let mut messages = Vec::new();
        if !system.is_empty() {
            messages.push(message("system", system));
        }
        for (i, pair) in self.history()?.iter().enumerate() {
            match pair.as_array().map(Vec::as_slice) {
                Some([Json::String(user), Json::String(assistant)]) => {
                    messages.push(message("user", user.clone()));
                    messages.push(message("assistant", assistant.clone()));
                }
                _ => {
                    return Err(
                        self.error(format!("history[{i}] must be a pair of strings, [user, assistant]"))
                    );
                }
            }
        }
        let mut user = message("user", instruction);
        if !input.is_empty() {
            user.insert("input".into(), Json::String(input));
        }
        messages.push(user);
        messages.push(message("assistant", output));
        Ok(Item::Chat(Chat { messages, tools: self.tools()?, given: 0, instruction: true }))
    }

    fn history(&mut self) -> Result<Vec<Json>, DataError> {
        match self.take(&["history"]) {
            None => Ok(Vec::new()),
            Some(Json::Array(pairs)) => Ok(pairs),
            Some(other) => Err(self.error(format!("\"history\" must be a list, not {}", kind(&other)))),
        }
    }

    fn completion(&mut self) -> Result<Item, DataError> {
        if let Some(Json::Array(_)) = self.record.get("prompt") {
            let (prompt, completion) = (self.list(&["prompt"])?, self.list(&["completion"])?);
            let mut messages = self.message_list("prompt", prompt)?;
            let given = messages.len();
            messages.extend(self.message_list("completion", completion)?);
            return Ok(Item::Chat(Chat { messages, tools: self.tools()?, given, instruction: false }));
        }
        Ok(Item::Completion { prompt: self.text(&["prompt"])?, completion: self.text(&["completion"])? })
    }

    fn tokenized(&mut self) -> Result<Item, DataError> {
        let ids = self.list(&["input_ids"])?;
        let id = |(i, value): (usize, &Json)| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| id <= i32::MAX as u32);
            id.ok_or_else(|| self.error(format!("input_ids[{i}]: {value} is not a token id")))
        };
        let input_ids: Vec<u32> = ids.iter().enumerate().map(id).collect::<Result<_, _>>()?;
        let labels = match self.take(&["labels"]) {
            None => input_ids.iter().map(|&id| id as i32).collect(),
            Some(Json::Array(labels)) => self.labels(&labels)?,
            Some(other) => return Err(self.error(format!("\"labels\" must be a list, not {}", kind(&other)))),
        };
        if labels.len() != input_ids.len() {
            let (ids, labels) = (input_ids.len(), labels.len());
            return Err(self.error(format!("{ids} input_ids but {labels} labels; there must be as many")));
        }
        Ok(Item::Tokenized { input_ids, labels })
    }

    fn labels(&self, labels: &[Json]) -> Result<Vec<i32>, DataError> {
        let label = |(i, value): (usize, &Json)| {
            let label = value.as_i64().and_then(|label| i32::try_from(label).ok());
            label.filter(|&label| label >= 0 || label == IGNORE).ok_or_else(|| {
                self.error(format!("labels[{i}]: {value} is neither a token id nor {IGNORE} (no loss)"))
            })
        };
        labels.iter().enumerate().map(label).collect()
    }
}

fn message(role: &str, content: String) -> Map<String, Json> {
    [("role".to_string(), Json::from(role)), ("content".to_string(), Json::String(content))]
        .into_iter()
        .collect()
}

fn has_calls(message: &Map<String, Json>) -> bool {
    message.get("tool_calls").and_then(Json::as_array).is_some_and(|calls| !calls.is_empty())
}

/// A message in whose place OpenAI's older form is read too: `function_call` is one call, the role `function` a tool's.
fn with_tool_calls(mut message: Json) -> Json {
    if let Some(object) = message.as_object_mut() {
        if let Some(call @ Json::Object(_)) = object.get("function_call") {
            let calls = serde_json::json!([{"type": "function", "function": call}]);
            object.insert("tool_calls".into(), calls);
            object.shift_remove("function_call");
        }
        if let Some(role) = object.get_mut("role").filter(|role| *role == "function") {
            *role = Json::from("tool");
        }
    }
    message
}

/// An assistant's turn that calls functions: JSON of one call or a list, `{"name", "arguments"}`. What is no such JSON stays
/// the text it is.
fn tool_call(value: String) -> Map<String, Json> {
    let calls = match json::parse_tools(&value) {
        Ok(Json::Array(calls)) => calls,
        Ok(call @ Json::Object(_)) => vec![call],
        _ => return message("assistant", value),
    };
    if calls.is_empty() || calls.iter().any(|call| call.get("name").is_none()) {
        return message("assistant", value);
    }
    let calls =
        calls.into_iter().map(|call| serde_json::json!({"type": "function", "function": call})).collect();
    let mut turn = message("assistant", String::new());
    turn.insert("tool_calls".into(), Json::Array(calls));
    turn
}

impl Chat {
    /// Reads a conversation to be answered: a JSON file with a list of messages, or an object with `messages` and `tools`.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let at = Source { file: Arc::new(path.to_path_buf()), line: 1 };
        let text =
            std::fs::read_to_string(path).map_err(|source| DataError::Io { path: path.into(), source })?;
        let record = match json::parse(text.trim_start_matches('\u{feff}')) {
            Ok(Json::Array(messages)) => {
                [("messages".to_string(), Json::Array(messages))].into_iter().collect()
            }
            Ok(Json::Object(object)) => object,
            Ok(other) => {
                let message = format!(
                    "must be a list of messages or an object with \"messages\", not {}",
                    kind(&other)
                );
                return Err(DataError::record(&at, message));
            }
            Err(error) => {
                let at = Source { line: at.line + error.lines_before, ..at };
                return Err(DataError::record(&at, error.message(0)));
            }
        };
        match Format::Messages.item(record, &at)? {
            Item::Chat(chat) => Ok(chat),
            _ => unreachable!("the format messages is a conversation"),
        }
    }

    /// The indices of the assistant's messages that may be learnt from.
    pub(crate) fn assistant_turns(&self) -> Vec<usize> {
        let is_assistant = |i: &usize| self.messages[*i].get("role").is_some_and(|role| role == "assistant");
        (self.given..self.messages.len()).filter(is_assistant).collect()
    }

    /// The same conversation with an instruction's `input` standing below the instruction, for templates that know no
    /// `input`.
    pub(crate) fn with_inputs_in_content(mut self) -> Self {
        for message in &mut self.messages {
            if let Some(Json::String(input)) = message.shift_remove("input")
                && let Some(Json::String(content)) = message.get_mut("content")
            {
                content.push('\n');
                content.push_str(&input);
            }
        }
        self
    }
}
