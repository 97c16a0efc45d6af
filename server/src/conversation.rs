//! The messages and tools of a chat, as a template takes them.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::Fields;

/// What is to be answered.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Map<String, Value>>,
    pub(crate) tools: Option<Value>,
}

impl Conversation {
    pub(crate) fn read(fields: &Fields) -> Result<Self, ApiError> {
        fields.required("messages")?;
        let given = fields.list("messages")?.map_or(&[][..], Vec::as_slice);
        if given.is_empty() {
            return Err(ApiError::field("messages", "`messages` must have a message at least"));
        }
        let messages = given.iter().enumerate().map(|(place, value)| message(place, value));
        let messages = messages.collect::<Result<_, _>>()?;
        let tools = fields.list("tools")?.filter(|tools| !tools.is_empty());
        if let Some(place) = tools.and_then(|tools| tools.iter().position(|tool| !tool.is_object())) {
            let param = format!("tools[{place}]");
            return Err(ApiError::field(&param, format!("`{param}` must be an object")));
        }
        let tools = tools.map(|tools| Value::from(tools.clone()));
        let tools = match fields.value("tool_choice").map(|choice| choice.as_str()) {
            None | Some(Some("auto")) => tools,
            Some(Some("none")) => None,
            Some(_) => {
                let message = "`tool_choice` may be \"auto\" or \"none\" here";
                return Err(ApiError::field("tool_choice", message));
            }
        };
        Ok(Conversation { messages, tools })
    }
}

fn message(place: usize, value: &Value) -> Result<Map<String, Value>, ApiError> {
    let param = |field: &str| format!("messages[{place}]{field}");
    let wrong = |field: &str, expected: &str| {
        let param = param(field);
        ApiError::field(&param, format!("`{param}` must be {expected}"))
    };
    let mut message = value.as_object().cloned().ok_or_else(|| wrong("", "an object"))?;
    match message.get("role").and_then(Value::as_str) {
        None => return Err(wrong(".role", "a string")),
        // What OpenAI's newer models call it.
        Some("developer") => drop(message.insert("role".into(), "system".into())),
        Some(_) => {}
    }
    let content = match message.get("content") {
        None | Some(Value::Null) if message.contains_key("tool_calls") => return Ok(message),
        Some(Value::String(_)) => return Ok(message),
        Some(Value::Array(parts)) => parts.iter().map(text).collect::<Option<String>>(),
        _ => None,
    };
    let content = content.ok_or_else(|| wrong(".content", "a string, or a list of parts that are text"))?;
    message.insert("content".into(), content.into());
    Ok(message)
}

/// The text of a part, if it is text.
fn text(part: &Value) -> Option<&str> {
    match part.get("type")?.as_str()? {
        "text" => part.get("text")?.as_str(),
        _ => None,
    }
}
