//! The formats in which people keep examples, told apart by their keys and turned into one of four kinds of
//! [`Item`].

mod found;
mod marks;
mod oasst;
mod question;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

pub(crate) use found::{Opened, open};
pub use marks::{Learnt, Mark};
pub(crate) use oasst::Trees;
pub use oasst::{Oasst, Paths};
pub use question::{Asked, Question, Questions};

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
    /// OpenAssistant's trees of messages, a tree or a message a record; or `{"text": "### Human: ..."}`.
    Oasst,
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
    Oasst = "oasst",
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
    /// A record that is marked as not to be learnt.
    Unlearnt,
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
    /// What the record says of single messages' being learnt, by their index.
    pub marks: BTreeMap<usize, Mark>,
}

/// Roles that messages may have.
const ROLES: &[&str] = &["system", "user", "assistant", "tool", "developer"];

/// Keys under which an alpaca record may keep its parts; Dolly and GSM8K use the later ones. Without an
/// instruction, the input is one.
const INSTRUCTION: &[&str] = &["instruction", "question", "query", "prompt"];
const INPUT: &[&str] = &["input", "context"];
const OUTPUT: &[&str] = &["output", "response", "answer"];

/// The format of a record, by its keys.
pub fn detect(record: &Map<String, Json>, at: &Source) -> Result<Format, DataError> {
    let has = |key: &str| record.contains_key(key);
    let has_one_of = |keys: &[&str]| keys.iter().any(|key| has(key));
    if has("input_ids") {
        Ok(Format::Tokenized)
    } else if oasst::is_of_tree(record) {
        Ok(Format::Oasst)
    } else if has("chosen") && has("rejected") {
        Ok(Format::Preference)
    } else if has("messages") {
        Ok(Format::Messages)
    } else if has("conversations") || has("conversation") {
        Ok(Format::Sharegpt)
    } else if has("prompt") && has("completion") {
        Ok(Format::Completion)
    } else if (has_one_of(INSTRUCTION) || has("input")) && has_one_of(OUTPUT) {
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
         (instruction, output; also question, query, prompt or input, and response or answer), completion (prompt, completion), text \
         (text), oasst (message_tree_id, prompt; or message_id, parent_id, role) and tokenized (input_ids, labels); rename the keys or columns",
        found.join(", ")
    )
}

impl Format {
    /// Understands a record. `self` must not be `Auto`.
    pub fn item(self, record: Map<String, Json>, at: &Source) -> Result<Item, DataError> {
        let mut fields = Fields { record, at };
        fields.refuse_unheard(self)?;
        if !fields.is_learnt(self)? {
            return Ok(Item::Unlearnt);
        }
        match self {
            Format::Auto => panic!("the format is found before records are understood"),
            // What is read of a tree is a conversation.
            Format::Messages | Format::Oasst => fields.messages(),
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

/// Keys of a record that change what is to be learnt and cannot be honoured: (formats, keys, what is said
/// where one has a value).
const UNHEARD: &[(&[Format], &[&str], &str)] = {
    use Format::{Alpaca, Completion, Messages, Sharegpt, Tokenized};
    &[
        (
            &[Messages, Sharegpt, Alpaca, Completion, Tokenized],
            &["images", "image", "videos", "video", "audios", "audio", "pixel_values"],
            "only text can be trained on; leave out such records, or the key if the text stands for itself",
        ),
        (&[Messages], &["functions"], "this is OpenAI's older form, give them as \"tools\""),
        (
            &[Messages, Sharegpt, Completion],
            &["documents"],
            "documents beside messages are not read; write them into a message",
        ),
        (
            &[Messages, Sharegpt, Completion],
            &["chat_template_kwargs"],
            "settings of the template are not read; write them into a template of your own, data.chat_template: a file",
        ),
        (&[Messages, Sharegpt, Alpaca, Completion], &["kto_tag"], LIKED),
        (
            &[Tokenized],
            &["seq_lengths", "seq_lens", "sequence_lengths", "cu_seqlens"],
            "a row of several examples packed is not read; give each example a row of its own",
        ),
    ]
};

const LIKED: &str = "preference data (liked or not) is not supported yet; to train on the liked answers alone, keep only those, \
                     without the key";

/// Keys of a message that change what is to be learnt, and what is said where they have a value.
const UNHEARD_IN_MESSAGE: &[(&str, &str)] = &[
    ("refusal", "give the words of a refusal as \"content\""),
    ("images", "only text can be trained on"),
    ("videos", "only text can be trained on"),
    ("audio", "only text can be trained on"),
];

/// Whether a value says nothing: null, or an empty text, list or object.
fn is_void(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::String(text) => text.is_empty(),
        Json::Array(items) => items.is_empty(),
        Json::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// Messages with their marks.
#[derive(Default)]
struct Turns {
    messages: Vec<Map<String, Json>>,
    marks: BTreeMap<usize, Mark>,
}

impl Turns {
    fn push(&mut self, message: Map<String, Json>, mark: Option<Mark>) {
        self.marks.extend(mark.map(|mark| (self.messages.len(), mark)));
        self.messages.push(message);
    }

    fn into_chat(self, tools: Option<Json>) -> Chat {
        Chat { messages: self.messages, marks: self.marks, tools, ..Chat::default() }
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

    /// Refuses what would else be left out without a word.
    fn refuse_unheard(&self, format: Format) -> Result<(), DataError> {
        for (_, keys, what) in UNHEARD.iter().filter(|(formats, ..)| formats.contains(&format)) {
            if let Some(key) =
                keys.iter().find(|key| self.record.get(**key).is_some_and(|value| !is_void(value)))
            {
                return Err(self.error(format!("{key:?}: {what}")));
            }
        }
        // As a number or a name, a label is some class of the text.
        let is_chat = matches!(format, Format::Messages | Format::Sharegpt | Format::Completion);
        if is_chat && self.record.get("label").is_some_and(Json::is_boolean) {
            return Err(self.error(format!("\"label\": {LIKED}")));
        }
        Ok(())
    }

    /// Whether the record as a whole is learnt. As a number, `loss` is taken for something that was measured.
    fn is_learnt(&mut self, format: Format) -> Result<bool, DataError> {
        if self.record.get("loss").is_some_and(Json::is_number) {
            self.record.shift_remove("loss");
        }
        // Of a tokenized row it is a list, a value for each token.
        let of_tokens = match format {
            Format::Tokenized => self.take_list("loss_mask"),
            _ => None,
        };
        let learnt = marks::take(&mut self.record, "").map_err(|error| {
            self.error(format!(
                "{error}; to see examples more or less often, keep them in a file of their own, with a weight in data.train"
            ))
        })?;
        self.record.extend(of_tokens.map(|list| ("loss_mask".to_string(), list)));
        Ok(learnt.is_none_or(|(_, learnt)| learnt))
    }

    fn take_list(&mut self, key: &str) -> Option<Json> {
        self.record.get(key).is_some_and(Json::is_array).then(|| self.record.shift_remove(key))?
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
            Json::String(text) => self.list_of_text(keys[0], &text),
            other => Err(self.error(format!("{:?} must be a list, not {}", keys[0], kind(&other)))),
        }
    }

    /// A list that is kept as JSON text, as the cell of a table.
    fn list_of_text(&self, key: &str, text: &str) -> Result<Vec<Json>, DataError> {
        match json::parse(text) {
            Ok(Json::Array(items)) => Ok(items),
            // Python's `str` of a list, which pandas writes into a csv.
            Err(_) if text.trim_start().starts_with("[{'") => Err(self.error(format!(
                "{key:?} is a list as Python prints it, not JSON; write it by json.dumps, or save the table as .parquet"
            ))),
            _ => Err(self.error(format!("{key:?} must be a list, not a string"))),
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
        let mut turns = self.system_turn()?;
        self.message_list("messages", messages, &mut turns)?;
        Ok(Item::Chat(turns.into_chat(self.tools()?)))
    }

    /// The record's own `system`, which stands before its messages.
    fn system_turn(&mut self) -> Result<Turns, DataError> {
        let mut turns = Turns::default();
        let system = self.optional_text(&["system", "system_prompt"])?;
        if !system.is_empty() {
            turns.push(message("system", system), None);
        }
        Ok(turns)
    }

    fn message_list(&self, key: &str, items: Vec<Json>, turns: &mut Turns) -> Result<(), DataError> {
        if items.is_empty() {
            return Err(self.error(format!("{key:?} is empty")));
        }
        for (i, item) in items.into_iter().enumerate() {
            let (message, mark) = self.message(&format!("{key}[{i}]"), item)?;
            turns.push(message, mark);
        }
        Ok(())
    }

    /// Checks a message, makes a list of text parts one text, and takes the marks off.
    fn message(&self, place: &str, item: Json) -> Result<(Map<String, Json>, Option<Mark>), DataError> {
        let found = kind(&item);
        let Json::Object(mut message) = with_tool_calls(item) else {
            return Err(
                self.error(format!("{place} must be an object with \"role\" and \"content\", not {found}"))
            );
        };
        let unheard = |(key, _): &&(&str, &str)| message.get(*key).is_some_and(|value| !is_void(value));
        if let Some((key, what)) = UNHEARD_IN_MESSAGE.iter().find(unheard) {
            return Err(self.error(format!("{place}.{key}: {what}")));
        }
        let not_learnt = self.check_message(place, &mut message)?;
        let mark = marks::of_message(&mut message, place, not_learnt).map_err(|error| self.error(error))?;
        Ok((message, mark))
    }

    /// Checks a message and makes a list of text parts one text, of which it returns the bytes that are
    /// marked as not learnt.
    fn check_message(
        &self,
        place: &str,
        message: &mut Map<String, Json>,
    ) -> Result<Vec<Range<usize>>, DataError> {
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
        let (content, not_learnt) = match message.get("content") {
            Some(Json::String(_)) => return Ok(Vec::new()),
            None | Some(Json::Null) if has_calls(message) => (String::new(), Vec::new()),
            None | Some(Json::Null) => {
                let slip =
                    message.keys().find(|key| *key != "content" && nearest(key, &["content"]).is_some());
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
        Ok(not_learnt)
    }

    /// The parts' text, and the bytes of it whose parts are marked as not learnt.
    fn text_parts(&self, place: &str, parts: &[Json]) -> Result<(String, Vec<Range<usize>>), DataError> {
        let text = |i: usize, part: &Json| match part {
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
        let (mut content, mut not_learnt) = (String::new(), Vec::<Range<usize>>::new());
        for (i, part) in parts.iter().enumerate() {
            let begin = content.len();
            content.push_str(&text(i, part)?);
            let mark = match part.as_object() {
                Some(part) => marks::take(&mut part.clone(), &format!("{place}.content[{i}].")),
                None => Ok(None),
            };
            if mark.map_err(|error| self.error(error))?.is_some_and(|(_, learnt)| !learnt) {
                match not_learnt.last_mut() {
                    Some(last) if last.end == begin => last.end = content.len(),
                    _ => not_learnt.push(begin..content.len()),
                }
            }
        }
        Ok((content, not_learnt))
    }

    /// `conversations` with LLaMA-Factory's tags. Some collections keep role and content under that key
    /// instead.
    fn sharegpt(&mut self) -> Result<Item, DataError> {
        let turns = self.list(&["conversations", "conversation"])?;
        if turns.is_empty() {
            return Err(self.error("\"conversations\" is empty"));
        }
        let mut chat = self.system_turn()?;
        for (i, turn) in turns.into_iter().enumerate() {
            let place = format!("conversations[{i}]");
            let tagged = turn.get("from").is_some() || turn.get("role").is_none();
            let turn = if tagged { self.untagged(&place, turn)? } else { turn };
            let (message, mark) = self.message(&place, turn)?;
            chat.push(message, mark);
        }
        Ok(Item::Chat(chat.into_chat(self.tools()?)))
    }

    /// A turn with `role` and `content` in place of `from` and `value`; what else it has stays with it.
    fn untagged(&self, place: &str, turn: Json) -> Result<Json, DataError> {
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
        let mut untagged = match from.as_str() {
            "human" | "user" => message("user", value),
            "gpt" | "assistant" | "chatgpt" | "bot" | "model" | "bard" | "bing" => {
                message("assistant", value)
            }
            "system" => message("system", value),
            "observation" | "tool" | "function_response" => message("tool", value),
            "function_call" => tool_call(value),
            _ => {
                let hint = did_you_mean(&from, TAGS);
                return Err(self
                    .error(format!("{place}.from: unknown tag {from:?}{hint}; known: {}", TAGS.join(", "))));
            }
        };
        if let Json::Object(turn) = turn {
            for (key, value) in turn.into_iter().filter(|(key, _)| key != "from" && key != "value") {
                untagged.entry(key).or_insert(value);
            }
        }
        Ok(Json::Object(untagged))
    }

    /// A user's turn is the instruction and, a line below, the input; `history` holds earlier [user,
    /// assistant] pairs.
    fn alpaca(&mut self) -> Result<Item, DataError> {
        let has_instruction = INSTRUCTION.iter().any(|key| self.record.contains_key(*key));
        let keys =
            if has_instruction || !self.record.contains_key("input") { INSTRUCTION } else { &["input"] };
        let (instruction, output) = (self.text(keys)?, self.text(OUTPUT)?);
        let input = self.optional_text(INPUT)?;
        let Turns { mut messages, marks } = self.system_turn()?;
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
        Ok(Item::Chat(Chat { messages, tools: self.tools()?, given: 0, instruction: true, marks }))
    }

    fn history(&mut self) -> Result<Vec<Json>, DataError> {
        match self.take(&["history"]) {
            None => Ok(Vec::new()),
            Some(Json::Array(pairs)) => Ok(pairs),
            Some(Json::String(text)) if text.trim().is_empty() => Ok(Vec::new()),
            Some(Json::String(text)) => self.list_of_text("history", &text),
            Some(other) => Err(self.error(format!("\"history\" must be a list, not {}", kind(&other)))),
        }
    }

    fn completion(&mut self) -> Result<Item, DataError> {
        if let Some(Json::Array(_)) = self.record.get("prompt") {
            let (prompt, completion) = (self.list(&["prompt"])?, self.list(&["completion"])?);
            let mut turns = self.system_turn()?;
            self.message_list("prompt", prompt, &mut turns)?;
            let given = turns.messages.len();
            self.message_list("completion", completion, &mut turns)?;
            return Ok(Item::Chat(Chat { given, ..turns.into_chat(self.tools()?) }));
        }
        for key in ["system", "system_prompt", "tools"] {
            if self.record.get(key).is_some_and(|value| !is_void(value)) {
                return Err(self.error(format!(
                    "{key:?} has no place beside two texts; write it into the prompt, or give prompt and completion as lists of \
                     messages"
                )));
            }
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
        let mut labels = match self.take(&["labels"]) {
            None => input_ids.iter().map(|&id| id as i32).collect(),
            Some(Json::Array(labels)) => self.labels(&labels)?,
            Some(other) => return Err(self.error(format!("\"labels\" must be a list, not {}", kind(&other)))),
        };
        if labels.len() != input_ids.len() {
            let (ids, labels) = (input_ids.len(), labels.len());
            return Err(self.error(format!("{ids} input_ids but {labels} labels; there must be as many")));
        }
        for key in ["loss_mask", "loss_weights", "completion_mask", "assistant_masks"] {
            let Some(learnt) = self.flags(key, input_ids.len(), "not learnt", "learnt")? else { continue };
            labels
                .iter_mut()
                .zip(learnt)
                .filter(|(_, learnt)| !learnt)
                .for_each(|(label, _)| *label = IGNORE);
        }
        let seen = self.flags("attention_mask", input_ids.len(), "padding", "seen")?;
        let seen = seen.unwrap_or_else(|| vec![true; input_ids.len()]);
        self.check_positions(&seen)?;
        if self
            .flags("token_type_ids", input_ids.len(), "of the first kind", "of the second")?
            .is_some_and(|kinds| kinds.contains(&true))
        {
            return Err(
                self.error("\"token_type_ids\" has others than 0; no supported model knows kinds of tokens")
            );
        }
        let kept = |i: &usize| seen[*i];
        let ids = (0..seen.len()).filter(kept).map(|i| input_ids[i]).collect();
        let labels = (0..seen.len()).filter(kept).map(|i| labels[i]).collect();
        Ok(Item::Tokenized { input_ids: ids, labels })
    }

    /// A list of 0 and 1, as many as there are tokens.
    fn flags(
        &mut self,
        key: &str,
        tokens: usize,
        zero: &str,
        one: &str,
    ) -> Result<Option<Vec<bool>>, DataError> {
        let flags = match self.take(&[key]) {
            None => return Ok(None),
            Some(Json::Array(flags)) => flags,
            Some(other) => return Err(self.error(format!("{key:?} must be a list, not {}", kind(&other)))),
        };
        if flags.len() != tokens {
            let flags = flags.len();
            return Err(self.error(format!("{tokens} input_ids but {flags} in {key}; there must be as many")));
        }
        let flag = |(i, value): (usize, &Json)| match (value.as_f64(), value.as_bool()) {
            (Some(0.0), _) | (_, Some(false)) => Ok(false),
            (Some(1.0), _) | (_, Some(true)) => Ok(true),
            _ => Err(self.error(format!("{key}[{i}]: {value} is neither 0 ({zero}) nor 1 ({one})"))),
        };
        flags.iter().enumerate().map(flag).collect::<Result<_, _>>().map(Some)
    }

    /// Refuses positions that do not go up by one, as those of a row of several examples.
    fn check_positions(&mut self, seen: &[bool]) -> Result<(), DataError> {
        let positions = match self.take(&["position_ids"]) {
            None => return Ok(()),
            Some(Json::Array(positions)) => positions,
            Some(other) => {
                return Err(self.error(format!("\"position_ids\" must be a list, not {}", kind(&other))));
            }
        };
        if positions.len() != seen.len() {
            let (ids, positions) = (seen.len(), positions.len());
            return Err(
                self.error(format!("{ids} input_ids but {positions} position_ids; there must be as many"))
            );
        }
        let mut expected = None;
        for (i, position) in positions.iter().enumerate().filter(|(i, _)| seen[*i]) {
            let Some(number) = position.as_u64() else {
                return Err(self.error(format!("position_ids[{i}]: {position} is not a position")));
            };
            if expected.is_some_and(|expected| expected != number) {
                return Err(self.error(format!(
                    "position_ids[{i}] is {number} where the tokens before end at {}; give each example of a packed row a row of \
                     its own, and no other positions than ascending ones",
                    expected.unwrap_or_default() - 1
                )));
            }
            expected = Some(number + 1);
        }
        Ok(())
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

/// A message in whose place OpenAI's older form is read too: `function_call` is one call, the role `function`
/// a tool's.
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

/// An assistant's turn that calls functions: JSON of one call or a list, `{"name", "arguments"}`. What is no
/// such JSON stays the text it is.
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
    /// Reads a conversation to be answered: a JSON file with a list of messages, or an object with `messages`
    /// and `tools`.
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
        let mut fields = Fields { record, at: &at };
        fields.refuse_unheard(Format::Messages)?;
        match fields.messages()? {
            Item::Chat(chat) => Ok(chat),
            _ => unreachable!("messages are a conversation"),
        }
    }

    /// Whether no mark says that a message is not learnt.
    pub(crate) fn is_learnt(&self, turn: usize) -> bool {
        self.marks.get(&turn).is_none_or(|mark| mark.learnt != Learnt::Nothing)
    }

    /// The indices of the assistant's messages that may be learnt from.
    pub(crate) fn assistant_turns(&self) -> Vec<usize> {
        let is_assistant = |i: &usize| self.messages[*i].get("role").is_some_and(|role| role == "assistant");
        (self.given..self.messages.len()).filter(is_assistant).collect()
    }

    /// The same conversation with an instruction's `input` standing below the instruction, for templates that
    /// know no `input`.
    pub fn with_inputs_in_content(mut self) -> Self {
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
