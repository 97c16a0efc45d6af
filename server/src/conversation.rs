//! The messages and tools of a chat, as a template takes them.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Fields;

/// Functions that a request may describe.
const MAX_FUNCTIONS: usize = 128;
/// Characters of a function's name.
const MAX_NAME: usize = 128;

/// What is to be answered.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Map<String, Value>>,
    pub(crate) tools: Option<Value>,
    /// The functions that may be called.
    pub(crate) functions: Vec<Function>,
    pub(crate) choice: Choice,
    /// Whether several may be called at once.
    pub(crate) parallel: bool,
    /// Further variables of the template.
    pub(crate) variables: Map<String, Value>,
}

/// A function that can be called.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// A JSON schema.
    pub(crate) parameters: Value,
    /// The field that has it.
    pub(crate) param: String,
}

/// Whether functions are called.
#[derive(Debug, PartialEq)]
pub(crate) enum Choice {
    /// As the model likes.
    Free,
    /// One of them at least.
    Required,
    /// This one.
    Named(String),
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
        let given = tools.map_or(&[][..], Vec::as_slice);
        if given.len() > MAX_FUNCTIONS {
            return Err(ApiError::field("tools", format!("`tools` may be {MAX_FUNCTIONS} at most")));
        }
        let functions = given.iter().enumerate().map(|(place, tool)| function(place, tool));
        let functions: Vec<Function> = functions.collect::<Result<_, _>>()?;
        let choice = choice(fields, &functions)?;
        let (tools, functions) = match choice {
            Some(_) => (tools.map(|tools| Value::from(tools.clone())), functions),
            None => (None, Vec::new()),
        };
        Ok(Conversation {
            messages,
            tools,
            functions,
            choice: choice.unwrap_or(Choice::Free),
            parallel: fields.boolean("parallel_tool_calls")?.unwrap_or(true),
            variables: fields.object("chat_template_kwargs")?.map(Fields::into_map).unwrap_or_default(),
        })
    }
}

/// `tool_choice`; none where no function is to be called.
fn choice(fields: &Fields, functions: &[Function]) -> Result<Option<Choice>, ApiError> {
    let wrong = |message: String| ApiError::field("tool_choice", message);
    let choice = match fields.value("tool_choice") {
        None => return Ok(Some(Choice::Free)),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => return Ok(Some(Choice::Free)),
            "none" => return Ok(None),
            "required" => Some(Choice::Required),
            _ => None,
        },
        Some(named) => {
            let name = named["function"]["name"].as_str().filter(|_| named["type"] == "function");
            name.map(|name| Choice::Named(name.to_owned()))
        }
    };
    let choice = choice.ok_or_else(|| {
        let words = "`tool_choice` must be \"auto\", \"none\", \"required\" or \
            {\"type\": \"function\", \"function\": {\"name\": ...}}";
        wrong(words.to_owned())
    })?;
    match &choice {
        Choice::Named(name) if !functions.iter().any(|function| function.name == *name) => {
            Err(wrong(format!("`tool_choice` names `{name}`, which `tools` does not describe")))
        }
        _ if functions.is_empty() => Err(wrong("`tool_choice` asks for a call, and `tools` is empty".into())),
        _ => Ok(Some(choice)),
    }
}

fn function(place: usize, tool: &Value) -> Result<Function, ApiError> {
    let wrong = |field: &str, expected: &str| {
        let param = format!("tools[{place}]{field}");
        ApiError::field(&param, format!("`{param}` must be {expected}"))
    };
    let tool = tool.as_object().ok_or_else(|| wrong("", "an object"))?;
    if tool.get("type").is_some_and(|kind| kind != "function") {
        return Err(wrong(".type", "\"function\""));
    }
    let function = tool.get("function").and_then(Value::as_object);
    let function = function.ok_or_else(|| wrong(".function", "an object"))?;
    let is_name = |name: &&str| {
        let is_letter = |c: char| c.is_ascii_alphanumeric() || "_-.:/".contains(c);
        (1..=MAX_NAME).contains(&name.len()) && name.chars().all(is_letter)
    };
    let name = function.get("name").and_then(Value::as_str).filter(is_name);
    let name = name.ok_or_else(|| wrong(".function.name", "a name of letters, digits, `_`, `-` and `.`"))?;
    let parameters = match function.get("parameters") {
        // A function without parameters, as OpenAI has it.
        None | Some(Value::Null) => {
            json!({"type": "object", "properties": {}, "additionalProperties": false})
        }
        Some(schema @ Value::Object(_)) => schema.clone(),
        Some(_) => return Err(wrong(".function.parameters", "an object, a JSON schema")),
    };
    let param = format!("tools[{place}].function.parameters");
    Ok(Function { name: name.to_owned(), parameters, param })
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
    if let Some(calls) = message.get("tool_calls").filter(|calls| !calls.is_null()) {
        let is_call = |call: &Value| {
            let function = &call["function"];
            function["name"].is_string()
                && (function["arguments"].is_string() || function["arguments"].is_object())
        };
        if !calls.as_array().is_some_and(|calls| calls.iter().all(is_call)) {
            return Err(wrong(
                ".tool_calls",
                "a list of calls, each with a `function` of `name` and `arguments`",
            ));
        }
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
