//! The grammar of a chat's answer: thoughts, then calls of tools, or the form that was asked for.

use data::Tokenizer;
use llguidance::api::GrammarWithLexer;

use crate::conversation::{Choice, Conversation};
use crate::error::ApiError;
use crate::form::{Formed, lark};
use crate::reader::Thoughts;
use crate::style::{Style, THINK, mark};

/// A grammar in parts.
pub(crate) struct Outline {
    /// What names the parts, if there is more than one.
    pub(crate) main: Option<GrammarWithLexer>,
    /// Each with the field that it comes from.
    pub(crate) parts: Vec<(GrammarWithLexer, String)>,
    /// The field that asks for all of it.
    pub(crate) param: String,
}

impl Outline {
    /// Of an answer that has a form and nothing else.
    pub(crate) fn of_form(formed: Formed) -> Result<Self, ApiError> {
        let param = formed.param.clone();
        Ok(Outline { main: None, parts: vec![(formed.grammar("form")?, param.clone())], param })
    }

    /// What the answer to a conversation is kept to; none if it may be anything.
    pub(crate) fn of_answer(
        conversation: &Conversation,
        formed: Option<Formed>,
        style: &Style,
        thoughts: Thoughts,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>, ApiError> {
        let functions = &conversation.functions;
        let asked: Vec<_> = match &conversation.choice {
            Choice::Free | Choice::Required => functions.iter().collect(),
            Choice::Named(name) => functions.iter().filter(|function| function.name == *name).collect(),
        };
        let must_call = conversation.choice != Choice::Free;
        // Who names a function wants one call of it.
        let parallel = conversation.parallel && !matches!(conversation.choice, Choice::Named(_));
        if !must_call && formed.is_none() {
            return Ok(None);
        }
        let param = match &formed {
            Some(formed) if !must_call => formed.param.clone(),
            _ => "tool_choice".to_owned(),
        };
        let (mut bodies, mut rules, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        match &style.calls {
            Some(calls) if !asked.is_empty() => {
                let (more, arguments) = calls.grammar(&asked, parallel, tokenizer)?;
                bodies.push("calls");
                rules.push(more);
                parts.extend(arguments);
            }
            None if must_call => {
                let message = "the chat template of this model writes calls in a way that this server does not know, \
                    so they cannot be asked for: `tool_choice` may be \"auto\" or \"none\"";
                return Err(ApiError::field("tool_choice", message));
            }
            _ => {}
        }
        if let Some(formed) = formed.filter(|_| !must_call) {
            bodies.push("@form");
            parts.push((formed.grammar("form")?, param.clone()));
        }
        let [open, close] = THINK.map(|word| mark(tokenizer, word));
        let start = match thoughts {
            Thoughts::None => "body".to_owned(),
            Thoughts::Maybe => format!("({open} thoughts GAP?)? body"),
            Thoughts::Begun => "thoughts GAP? body".to_owned(),
        };
        if thoughts != Thoughts::None {
            rules.push(match close.starts_with('<') {
                true => format!("thoughts: /(?s:.*)/ {close}"),
                false => format!("thoughts[suffix={close}]: /(?s:.*)/"),
            });
            rules.push("GAP: /[ \\n]{1,4}/".to_owned());
        }
        let main = format!("start: {start}\nbody: {}\n{}\n", bodies.join(" | "), rules.join("\n"));
        Ok(Some(Outline { main: Some(lark(&main)), parts, param }))
    }
}
