//! Formats of conversations that are written the same in Jinja and in Go's template language, which Ollama
//! reads. A format is recognized by what the model's own template renders.

use data::ChatTemplate;
use serde_json::{Map, Value};

/// What stands around a message's words.
type Around = (&'static str, &'static str);

/// A format.
pub(super) struct Format {
    pub(super) name: &'static str,
    /// Around a system message; `None`: it stands before the first user's words, an empty line between them.
    system: Option<Around>,
    user: Around,
    assistant: Around,
}

const FORMATS: [Format; 7] = [
    Format {
        name: "chatml",
        system: Some(("<|im_start|>system\n", "<|im_end|>\n")),
        user: ("<|im_start|>user\n", "<|im_end|>\n"),
        assistant: ("<|im_start|>assistant\n", "<|im_end|>\n"),
    },
    Format {
        name: "llama-3",
        system: Some(("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>")),
        user: ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        assistant: ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    },
    Format {
        name: "gemma",
        system: None,
        user: ("<start_of_turn>user\n", "<end_of_turn>\n"),
        assistant: ("<start_of_turn>model\n", "<end_of_turn>\n"),
    },
    Format {
        name: "phi-3",
        system: Some(("<|system|>\n", "<|end|>\n")),
        user: ("<|user|>\n", "<|end|>\n"),
        assistant: ("<|assistant|>\n", "<|end|>\n"),
    },
    Format {
        name: "phi-4",
        system: Some(("<|im_start|>system<|im_sep|>", "<|im_end|>")),
        user: ("<|im_start|>user<|im_sep|>", "<|im_end|>"),
        assistant: ("<|im_start|>assistant<|im_sep|>", "<|im_end|>"),
    },
    Format {
        name: "granite",
        system: Some(("<|start_of_role|>system<|end_of_role|>", "<|end_of_text|>\n")),
        user: ("<|start_of_role|>user<|end_of_role|>", "<|end_of_text|>\n"),
        assistant: ("<|start_of_role|>assistant<|end_of_role|>", "<|end_of_text|>\n"),
    },
    Format {
        name: "zephyr",
        system: Some(("<|system|>\n", "</s>\n")),
        user: ("<|user|>\n", "</s>\n"),
        assistant: ("<|assistant|>\n", "</s>\n"),
    },
];

/// A format, and what the template tells the model where a conversation has no system message.
pub(super) struct Found {
    pub(super) format: &'static Format,
    pub(super) system: Option<String>,
}

/// The words of a telling conversation: two questions with an answer between them.
const SAID: [&str; 3] = ["What is it?", "It is so.", "And then?"];
const TOLD: &str = "Be brief.";

impl Format {
    /// The conversation as this format writes it, up to the answer's first word.
    fn render(&self, told: Option<&str>) -> String {
        let around = |(before, after): Around, words: &str| format!("{before}{words}{after}");
        let [asked, answered, asked_again] = SAID;
        let (front, first) = match (told, self.system) {
            (None, _) => (String::new(), asked.to_owned()),
            (Some(told), Some(system)) => (around(system, told), asked.to_owned()),
            (Some(told), None) => (String::new(), format!("{told}\n\n{asked}")),
        };
        let turns = [
            around(self.user, &first),
            around(self.assistant, answered),
            around(self.user, asked_again),
            self.assistant.0.to_owned(),
        ];
        front + &turns.concat()
    }

    /// The same in Go's language, as Ollama calls what it knows. The last answer is left open, so that one can
    /// be gone on with.
    pub(super) fn go_template(&self) -> String {
        let (user, assistant) = (self.user, self.assistant);
        let (system, told) = match self.system {
            Some((before, after)) => (
                format!("{{{{ if eq .Role \"system\" }}}}{before}{{{{ .Content }}}}{after}{{{{ else if "),
                "",
            ),
            None => (
                "{{ if ".to_owned(),
                "{{ if and $first $.System }}{{ $.System }}\n\n{{ end }}{{ $first = false }}",
            ),
        };
        let begin = if self.system.is_some() { "" } else { "{{ $first := true }}" };
        format!(
            "{begin}{{{{ range $i, $_ := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}{system}\
             eq .Role \"user\" }}}}{}{told}{{{{ .Content }}}}{}{{{{ else if eq .Role \"assistant\" }}}}{}{{{{ .Content }}}}\
             {{{{ if not $last }}}}{}{{{{ end }}}}{{{{ end }}}}{{{{ if and $last (ne .Role \"assistant\") }}}}{}{{{{ end }}}}\
             {{{{ end }}}}",
            user.0, user.1, assistant.0, assistant.1, assistant.0,
        )
    }

    /// Texts at which an answer ends.
    pub(super) fn stops(&self) -> impl Iterator<Item = &'static str> {
        let ends = [self.assistant.1.trim(), self.user.0.trim()];
        ends.into_iter().filter(|end| !end.is_empty())
    }
}

/// The format that a template writes, if it is a known one; `begin` is the token with which texts begin, which
/// Ollama adds by itself.
pub(super) fn recognize(template: &ChatTemplate, begin: &str) -> Option<Found> {
    let message = |role: &str, words: &str| -> Map<String, Value> {
        [("role", role), ("content", words)]
            .map(|(key, value)| (key.to_owned(), value.into()))
            .into_iter()
            .collect()
    };
    let [asked, answered, asked_again] = SAID;
    let turns = [message("user", asked), message("assistant", answered), message("user", asked_again)];
    let render = |messages: &[Map<String, Value>]| {
        let text = template.render(messages, None, true).ok()?.text;
        Some(text.strip_prefix(begin).unwrap_or(&text).to_owned())
    };
    let silent = render(&turns)?;
    let told = render(&[&[message("system", TOLD)][..], &turns].concat())?;
    let format = FORMATS.iter().find(|format| format.render(Some(TOLD)) == told)?;
    if format.render(None) == silent {
        return Some(Found { format, system: None });
    }
    // Something is said before, which is the format's if it is a system message.
    let (before, after) = format.system?;
    let (usual, _) = silent.strip_prefix(before)?.split_once(after)?;
    let system = usual.to_owned();
    (format.render(Some(&system)) == silent).then_some(Found { format, system: Some(system) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_templates_are_recognized_by_what_they_write() {
        for (name, format, system) in [
            ("chatml", "chatml", None),
            ("llama-3", "llama-3", None),
            ("gemma", "gemma", None),
            ("phi-3", "phi-3", None),
            ("phi-4", "phi-4", None),
            ("granite", "granite", None),
            (
                "qwen2.5",
                "chatml",
                Some("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
            ),
        ] {
            let found = recognize(&ChatTemplate::builtin(name).unwrap(), "").unwrap();
            assert_eq!((found.format.name, found.system.as_deref()), (format, system), "{name}");
        }
        for name in ["alpaca", "vicuna", "llama-2", "deepseek-r1"] {
            assert!(recognize(&ChatTemplate::builtin(name).unwrap(), "").is_none(), "{name}");
        }
    }

    #[test]
    fn a_format_in_go_s_language_writes_each_role_as_it_is() {
        let of = |name: &str| FORMATS.iter().find(|format| format.name == name).unwrap().go_template();
        assert_eq!(
            of("chatml"),
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}{{ if eq .Role \"system\" }}\
             <|im_start|>system\n{{ .Content }}<|im_end|>\n{{ else if eq .Role \"user\" }}<|im_start|>user\n{{ .Content }}\
             <|im_end|>\n{{ else if eq .Role \"assistant\" }}<|im_start|>assistant\n{{ .Content }}{{ if not $last }}\
             <|im_end|>\n{{ end }}{{ end }}{{ if and $last (ne .Role \"assistant\") }}<|im_start|>assistant\n{{ end }}{{ end }}"
        );
        assert!(of("gemma").starts_with("{{ $first := true }}{{ range"));
        for format in &FORMATS {
            let template = format.go_template();
            let count = |text: &str| template.matches(text).count();
            assert_eq!(count("{{ if") + count("{{ range"), count("{{ end }}"), "{}", format.name);
        }
    }
}
