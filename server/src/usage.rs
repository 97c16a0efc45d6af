//! What a request cost in tokens.

use serde_json::{Value, json};

use crate::answer::Answer;

/// Tokens of a request; those of a prompt count once, however many answers there are to it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) cached: usize,
    pub(crate) new: usize,
    /// Of the new ones those of thoughts, where the model thinks.
    pub(crate) thought: Option<usize>,
}

impl Usage {
    /// Of answers whose prompts are computed, `n` to each prompt.
    pub(crate) fn of_prompts(answers: &[Answer], n: usize) -> Self {
        let firsts = answers.iter().step_by(n);
        firsts.fold(Usage::default(), |usage, answer| Usage {
            prompt: usage.prompt + answer.prompt_tokens,
            cached: usage.cached + answer.cached,
            ..usage
        })
    }

    pub(crate) fn value(self) -> Value {
        let mut usage = json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.new,
            "total_tokens": self.prompt + self.new,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        });
        if let Some(thought) = self.thought {
            usage["completion_tokens_details"] = json!({"reasoning_tokens": thought});
        }
        usage
    }
}
