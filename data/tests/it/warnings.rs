//! Warnings about the tokenizer: text that it cannot spell, and ends of turns that are no tokens of it.

use data::{DataSpec, Dataset, Tokenizer};
use serde_json::json;

use crate::support::{Files, load, tokenizer};

const CHAT: &str =
    r#"{"messages": [{"role": "user", "content": "say a"}, {"role": "assistant", "content": "a é b"}]}"#;

/// A tokenizer of some letters, with `<unk>` for all others, an end token, and these markers.
fn letters(markers: &[&str]) -> (Files, Tokenizer) {
    let letters: Vec<String> = (' '..='~').map(String::from).chain([String::from('\n')]).collect();
    let tokens = ["<unk>", "</s>"].into_iter().chain(markers.iter().copied()).map(String::from);
    let vocab: serde_json::Map<_, _> =
        tokens.clone().chain(letters).zip(0..).map(|(t, i)| (t, json!(i))).collect();
    let added = tokens.zip(0..).map(|(content, id)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
               "special": true})
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(), "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    let config = json!({"eos_token": "</s>", "unk_token": "<unk>"});
    let files = Files::new(&[
        ("tokenizer.json", &tokenizer.to_string()),
        ("tokenizer_config.json", &config.to_string()),
        ("a.jsonl", CHAT),
    ]);
    let tokenizer = Tokenizer::load(files.folder()).unwrap();
    (files, tokenizer)
}

fn warnings(markers: &[&str], template: &str) -> Vec<String> {
    let (files, tokenizer) = letters(markers);
    let mut spec = DataSpec::file(files.path("a.jsonl"));
    spec.chat_template = Some(template.into());
    Dataset::load(&spec, &tokenizer).unwrap().report.warnings()
}

#[test]
fn learnt_text_that_the_vocabulary_cannot_spell_is_counted_with_samples() {
    let found = warnings(&[], "vicuna");
    assert_eq!(
        found,
        [
            "Of the tokens that carry loss, 14.3 % are <unk>: this tokenizer cannot spell some of the text, such as \"é\", and the model \
         would learn to write <unk> for it."
        ]
    );
    // In what is only read, it is no harm.
    let (files, tokenizer) = letters(&[]);
    std::fs::write(files.path("a.jsonl"), r#"{"prompt": "é", "completion": "a"}"#).unwrap();
    let report = Dataset::load(&DataSpec::file(files.path("a.jsonl")), &tokenizer).unwrap().report;
    assert_eq!((report.unknown.count, report.warnings()), (0, Vec::new()));
}

#[test]
fn a_marker_that_is_no_token_is_told_with_the_templates_that_fit() {
    let begins = "Ending in `<|im_end|>`, by which the chat template (chatml) ends a turn and which is no token of this tokenizer but 10 \
                  tokens of plain text, so that the model does not stop by itself ";
    let found = &warnings(&[], "chatml")[0];
    let templates =
        "(built-in templates that end a turn with a token that it has: alpaca, guanaco, vicuna): 1 example.";
    assert_eq!(*found, format!("{begins}{templates}"));
    let found = &warnings(&["<start_of_turn>", "<end_of_turn>"], "chatml")[0];
    let templates = "(built-in templates that end a turn with a token that it has: gemma): 1 example.";
    assert_eq!(*found, format!("{begins}{templates}"));
}

#[test]
fn a_marker_that_is_a_token_is_no_matter() {
    let found = warnings(&["<|im_start|>", "<|im_end|>"], "chatml");
    assert!(found.iter().all(|warning| !warning.contains("plain text")), "{found:?}");
    assert_eq!(load(CHAT, |_| {}).unwrap().report.plain_end, None);
    assert_eq!(tokenizer().unknown(), None, "a byte-level tokenizer spells everything");
}

/// In this vocabulary ` the` is a token.
#[test]
fn a_prompt_whose_end_is_one_token_with_the_completion_is_told_where_most_are() {
    let report = |records: &[(&str, &str)]| {
        let line = |(prompt, completion): &(&str, &str)| {
            json!({"prompt": prompt, "completion": completion}).to_string()
        };
        load(&records.iter().map(line).collect::<Vec<_>>().join("\n"), |_| {}).unwrap().report
    };
    let (joined, kept) = (("say: ", "the a"), ("say:", " the a"));
    let told = report(&[joined, joined, kept]);
    assert_eq!((told.joined, told.completions), (2, 3));
    let warning = "With the end of the prompt and the beginning of the completion in one token, which is not \
                   learnt, so that the model never sees a prompt end as it will be asked (begin the \
                   completion, rather than end the prompt, with the space between them): 2 examples.";
    assert_eq!(told.warnings(), [warning]);
    let few = report(&[joined, kept]);
    assert_eq!((few.joined, few.warnings()), (1, Vec::new()));
    let none = report(&[kept, ("", "the a"), ("say", "")]);
    assert_eq!((none.joined, none.warnings()), (0, Vec::new()));
}
