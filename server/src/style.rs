//! How a model writes calls of tools and thoughts: found once, in what its chat template makes of a message that
//! calls a tool. So nobody has to name a parser.

use data::{ChatTemplate, Tokenizer};
use llguidance::api::GrammarWithLexer;
use serde_json::{Map, Value, json};

use crate::conversation::Function;
use crate::error::ApiError;
use crate::form::{self, checked, literal};

/// The marks of thoughts.
pub(crate) const THINK: [&str; 2] = ["<think>", "</think>"];
/// Words that no template has.
const NAME: &str = "wq1qw";
const KEY: &str = "wq2qw";
const SAID: &str = "wq3qw";
/// The most calls that a grammar allows where calls are asked for.
const MOST_CALLS: usize = 16;

/// How a model writes what is not said to the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    /// Calls of tools, if the template writes them in a way that is known.
    pub(crate) calls: Option<Calls>,
    /// Whether thoughts may stand between `<think>` and `</think>`.
    pub(crate) thinks: bool,
}

/// How calls are written: objects of JSON between marks, such as `<tool_call>` (Hermes, Qwen), behind one as a list
/// (`[TOOL_CALLS]`, Mistral), or alone (Llama).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Calls {
    /// The mark before a call, or before the list of them; empty: a call is all that is said.
    pub(crate) open: String,
    /// The mark behind it, which may be empty.
    pub(crate) close: String,
    /// Whether the calls are a list.
    pub(crate) is_list: bool,
    /// What stands from the mark to the function's name.
    before: String,
    /// From there to the arguments.
    between: String,
}

impl Style {
    /// How a template has it written.
    pub(crate) fn of(template: &ChatTemplate) -> Self {
        Style { calls: Calls::of(template), thinks: template.source().contains(THINK[1]) }
    }

    /// Special tokens that are told, since they say where thoughts are, and calls if there can be any.
    pub(crate) fn marks(&self, calls: bool, tokenizer: &Tokenizer) -> Vec<u32> {
        let calls =
            self.calls.iter().filter(|_| calls).flat_map(|calls| [calls.open.as_str(), calls.close.as_str()]);
        let marks = calls.chain(THINK.into_iter().filter(|_| self.thinks));
        marks.filter_map(|mark| special(tokenizer, mark)).collect()
    }
}

/// The special token that a mark is.
fn special(tokenizer: &Tokenizer, mark: &str) -> Option<u32> {
    tokenizer.token_to_id(mark).filter(|&id| tokenizer.is_special(id))
}

/// A mark as Lark writes it; nothing for an empty one.
pub(crate) fn mark(tokenizer: &Tokenizer, mark: &str) -> String {
    match special(tokenizer, mark) {
        Some(id) => format!("<[{id}]>"),
        None if mark.is_empty() => String::new(),
        None => literal(mark),
    }
}

impl Calls {
    fn of(template: &ChatTemplate) -> Option<Self> {
        let message = |value: Value| match value {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        let user = message(json!({"role": "user", "content": "Ready?"}));
        let function = json!({"name": NAME, "arguments": {KEY: "x"}});
        let call = json!([{"id": "abcdefghi", "type": "function", "function": function}]);
        let tools = json!([{"type": "function", "function": {
            "name": NAME, "description": "", "parameters": {"type": "object", "properties": {}},
        }}]);
        let render = |answer: Value| {
            let messages = [user.clone(), message(answer)];
            Some(template.render(&messages, Some(&tools), false).ok()?.text)
        };
        let said = render(json!({"role": "assistant", "content": SAID}))?;
        let (_, end) = said.rsplit_once(SAID)?;
        // Templates take a call's missing words as nothing, or as no words; all of them take its arguments as an object.
        let called = [json!(""), Value::Null].into_iter().find_map(|content| {
            let text = render(json!({"role": "assistant", "content": content, "tool_calls": call}))?;
            text.rsplit_once(KEY).is_some_and(|(before, _)| before.contains(NAME)).then_some(text)
        })?;
        let common = said.bytes().zip(called.bytes()).take_while(|(a, b)| a == b).count();
        Calls::read(called.get(common..)?, end.trim())
    }

    /// Reads how a call is written; `end` is what stands behind every message.
    fn read(text: &str, end: &str) -> Option<Self> {
        let (before, rest) = text.split_once(&format!("\"{NAME}\""))?;
        let brace = before.rfind('{')?;
        let mut objects = serde_json::Deserializer::from_str(&text[brace..]).into_iter::<Value>();
        let call = objects.next()?.ok()?;
        let behind = &text[brace + objects.byte_offset()..];
        if call["name"] != NAME {
            return None;
        }
        let arguments = ["arguments", "parameters"].into_iter().find(|name| call[name].get(KEY).is_some())?;
        let between = rest.split_once('{')?.0;
        // Nothing but the name may stand before the arguments.
        if !between.contains(arguments) || before[brace..].matches('"').count() != 2 {
            return None;
        }
        let lead = before[..brace].trim();
        let is_list = lead.ends_with('[');
        let open = lead.strip_suffix('[').unwrap_or(lead).trim();
        let behind = behind.trim_start();
        let behind = if is_list { behind.strip_prefix(']')? } else { behind };
        let close = behind.split(end).next().filter(|_| !end.is_empty()).unwrap_or(behind).trim();
        // Marks are short words; what is longer is something else.
        let is_mark = |mark: &str| mark.len() <= 40 && !mark.contains(char::is_whitespace);
        if !is_mark(open) || !is_mark(close) || (open.is_empty() && is_list) {
            return None;
        }
        Some(Calls {
            open: open.to_owned(),
            close: close.to_owned(),
            is_list,
            before: format!("{}\"", before.trim_start().strip_prefix(open)?),
            between: format!("\"{between}"),
        })
    }

    /// Rules for calls of some functions, the first of which is `calls`, and the grammars of their arguments with the
    /// fields that these come from.
    pub(crate) fn grammar(
        &self,
        functions: &[&Function],
        parallel: bool,
        tokenizer: &Tokenizer,
    ) -> Result<(String, Vec<(GrammarWithLexer, String)>), ApiError> {
        let (open, close) = (mark(tokenizer, &self.open), mark(tokenizer, &self.close));
        let (lead, name) = self.before.split_at(self.before.rfind('{').unwrap_or(0));
        let lead = if lead.is_empty() { String::new() } else { literal(lead) };
        let gap = if self.close.is_empty() || self.is_list { "" } else { "\"\\n\"" };
        let more = |call: &str| match parallel {
            true => format!("({call}){{0,{}}}", MOST_CALLS - 1),
            false => String::new(),
        };
        let calls = match (self.is_list, self.open.is_empty()) {
            (true, _) => format!("calls: {open} {lead} call {} \"]\" {close}", more("\", \" call")),
            (false, false) => {
                let more = more("\"\\n\" one");
                format!("calls: one {more}\none: {open} {lead} call {gap} {close}")
            }
            // A call that stands alone is the only one.
            (false, true) => format!("calls: {lead} call"),
        };
        let mut grammars = Vec::new();
        let mut choices = Vec::new();
        for (place, function) in functions.iter().enumerate() {
            let schema = checked(function.parameters.clone(), &function.param)?;
            let grammar = GrammarWithLexer { json_schema: Some(schema), ..form::lark("") };
            let grammar = GrammarWithLexer { name: Some(format!("arguments{place}")), ..grammar };
            grammars.push((grammar, function.param.clone()));
            let head = literal(&format!("{name}{}{}", function.name, self.between));
            choices.push(format!("{head} @arguments{place} \"}}\""));
        }
        Ok((format!("{calls}\ncall: {}", choices.join(" | ")), grammars))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_styles_of_known_templates_are_found() {
        let calls = |open: &str, close: &str, is_list, before: &str, between: &str| Calls {
            open: open.into(),
            close: close.into(),
            is_list,
            before: before.into(),
            between: between.into(),
        };
        let arguments = "\", \"arguments\": ";
        let hermes = calls("<tool_call>", "</tool_call>", false, "\n{\"name\": \"", arguments);
        for (name, expected) in [
            ("qwen2.5", Some(hermes.clone())),
            ("qwen3", Some(hermes)),
            ("llama-3.1", Some(calls("", "", false, "{\"name\": \"", "\", \"parameters\": "))),
            ("mistral-v3", Some(calls("[TOOL_CALLS]", "", true, " [{\"name\": \"", arguments))),
            ("chatml", None),
            ("gemma", None),
        ] {
            let special = json!({"eos_token": "</s>"}).as_object().unwrap().clone();
            let style = Style::of(&ChatTemplate::builtin(name).unwrap().with_variables(&special));
            assert_eq!(style.calls, expected, "{name}");
            assert_eq!(style.thinks, name == "qwen3", "{name}");
        }
    }
}
