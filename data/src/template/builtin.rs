//! Templates of well-known formats, with `{% generation %}` around the assistant's words and its end of turn.

/// Name and source of each, in alphabetical order.
macro_rules! templates {
    ($($name:literal),+ $(,)?) => {
        /// The names, as `data.chat_template` takes them.
        pub(super) const NAMES: &[&str] = &[$($name),+];

        /// The source of a template by its name.
        pub(super) fn source(name: &str) -> Option<&'static str> {
            match name {
                $($name => Some(include_str!(concat!("builtin/", $name, ".jinja"))),)+
                _ => None,
            }
        }
    };
}

templates![
    "alpaca",
    "chatml",
    "deepseek-r1",
    "gemma",
    "glm-4",
    "granite",
    "guanaco",
    "llama-2",
    "llama-3",
    "llama-3.1",
    "mistral",
    "mistral-v3",
    "olmo-2",
    "phi-3",
    "phi-4",
    "phi-4-mini",
    "qwen2.5",
    "qwen3",
    "vicuna",
    "zephyr",
];
