//! Which tokens carry loss, as text: trained runs stand in brackets.

use data::{DataSpec, TrainOn};

use crate::support::{Files, load, masked, tokenizer};

const CHAT: &str = r#"{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Émile 🎻"}, {"role": "user", "content": "Again?"}, {"role": "assistant", "content": "Bo."}]}"#;

/// ChatML without generation blocks, as models ship it.
const PLAIN_CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
    '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The first example, masked.
fn shown(lines: &str, set: impl FnOnce(&mut DataSpec)) -> String {
    let dataset = load(lines, set).unwrap_or_else(|error| panic!("{error}"));
    masked(&dataset.examples[0], &tokenizer())
}

/// The first example under a template given as text, or the error.
fn under_template(template: &str, lines: &str, train_on: TrainOn) -> Result<String, String> {
    let files = Files::new(&[("t.jinja", template)]);
    let path = files.path("t.jinja").display().to_string();
    let set = |spec: &mut DataSpec| (spec.chat_template, spec.train_on) = (Some(path.clone()), train_on);
    match load(lines, set) {
        Ok(dataset) => Ok(masked(&dataset.examples[0], &tokenizer())),
        Err(error) => Err(error.to_string().replace(&path, "t.jinja")),
    }
}

#[test]
fn generation_blocks_carry_loss() {
    insta::assert_snapshot!(shown(CHAT, |_| {}), @r"
    <|im_start|>system⏎
    Be kind.<|im_end|>⏎
    <|im_start|>user⏎
    Who?<|im_end|>⏎
    <|im_start|>assistant⏎
    [Émile 🎻<|im_end|>⏎
    ]<|im_start|>user⏎
    Again?<|im_end|>⏎
    <|im_start|>assistant⏎
    [Bo.<|im_end|>⏎
    ]
    ");
}

#[test]
fn completion_is_the_last_turn() {
    insta::assert_snapshot!(shown(CHAT, |spec| spec.train_on = TrainOn::Completion), @r"
    <|im_start|>system⏎
    Be kind.<|im_end|>⏎
    <|im_start|>user⏎
    Who?<|im_end|>⏎
    <|im_start|>assistant⏎
    Émile 🎻<|im_end|>⏎
    <|im_start|>user⏎
    Again?<|im_end|>⏎
    <|im_start|>assistant⏎
    [Bo.<|im_end|>⏎
    ]
    ");
}

#[test]
fn without_generation_blocks_prefixes_find_the_same_tokens() {
    for train_on in [TrainOn::Assistant, TrainOn::Completion, TrainOn::All] {
        let marked = shown(CHAT, |spec| spec.train_on = train_on);
        assert_eq!(under_template(PLAIN_CHATML, CHAT, train_on).unwrap(), marked, "{train_on}");
    }
}

#[test]
fn a_closing_token_after_the_last_turn_does_not_hide_the_earlier_ones() {
    // Phi 3's own template ends every text that is not a prompt with the end-of-text token.
    let phi = std::fs::read_to_string(crate::support::fixture("templates/phi3.jinja")).unwrap();
    insta::assert_snapshot!(under_template(&phi, CHAT, TrainOn::Assistant).unwrap(), @r"
    <|system|>⏎
    Be kind.<|end|>⏎
    <|user|>⏎
    Who?<|end|>⏎
    <|assistant|>⏎
    [Émile 🎻<|end|>⏎
    ]<|user|>⏎
    Again?<|end|>⏎
    <|assistant|>⏎
    [Bo.<|end|>⏎
    </s>]
    ");
}

#[test]
fn a_template_that_drops_earlier_thoughts_is_refused_by_name() {
    let qwen3 = std::fs::read_to_string(crate::support::fixture("templates/qwen3.jinja")).unwrap();
    let error = under_template(&qwen3, CHAT, TrainOn::Assistant).unwrap_err();
    insta::assert_snapshot!(error.split_once(": ").unwrap().1, @"chat template t.jinja: it writes a turn differently once another follows (it may drop thoughts, for instance), so the assistant's tokens cannot be told apart; use a template with {% generation %} blocks (data.chat_template: a file, or one of alpaca, chatml, deepseek-r1, gemma, glm-4, granite, guanaco, llama-2, llama-3, llama-3.1, mistral, mistral-v3, olmo-2, phi-3, phi-4, phi-4-mini, qwen2.5, qwen3, vicuna, zephyr), or set data.train_on: completion or all");
    let last = under_template(&qwen3, CHAT, TrainOn::Completion).unwrap();
    assert!(last.contains("[<think>⏎\n⏎\n</think>⏎\n⏎\nBo.<|im_end|>"), "{last}");
}

/// A prompt that opens a thought, which a finished turn does not show.
const PROMPT_OPENS_A_THOUGHT: &str = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% else %}<|assistant|>\
     {{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}\
     <|assistant|><think>\n{% endif %}";

const TWO_TURNS: &str = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "A bow?"}, {"role": "assistant", "content": "Yes"}]}"#;

#[test]
fn a_prompt_that_opens_a_thought_shares_only_the_header_with_a_finished_turn() {
    let of =
        |train_on| under_template(PROMPT_OPENS_A_THOUGHT, &TWO_TURNS.replace('\n', ""), train_on).unwrap();
    let both = "<s><|user|>Hi<|assistant|>[Hello</s>]<|user|>A bow?<|assistant|>[Yes</s>]";
    assert_eq!(of(TrainOn::Assistant), both);
    assert_eq!(of(TrainOn::Completion), both.replace("[Hello</s>]", "Hello</s>"));
}

#[test]
fn what_prompt_and_turn_share_never_reaches_into_the_answer() {
    for (answer, learnt) in [
        ("<think>\\nwell", "<think>⏎\nwell"),
        ("<thin air>", "<thin air>"),
        ("<", "<"),
        ("", ""),
        ("<|assistant|><think>", "<|assistant|><think>"),
    ] {
        let line = TWO_TURNS.replace('\n', "").replace("Hello", answer);
        let shown = under_template(PROMPT_OPENS_A_THOUGHT, &line, TrainOn::Assistant).unwrap();
        assert!(shown.starts_with(&format!("<s><|user|>Hi<|assistant|>[{learnt}</s>]<|user|>")), "{shown}");
    }
}

#[test]
fn a_token_that_prompt_and_turn_share_in_part_is_learnt() {
    // The prompt goes on with another special token, which begins with the same letters.
    let template = PROMPT_OPENS_A_THOUGHT
        .replace("<|assistant|>{{ m", "<|assistant|><|im_start|>{{ m")
        .replace("<|assistant|><think>\n", "<|assistant|><|im_end|>");
    let shown = under_template(&template, &TWO_TURNS.replace('\n', ""), TrainOn::Completion).unwrap();
    assert!(shown.ends_with("<|assistant|>[<|im_start|>Yes</s>]"), "{shown}");
}

#[test]
fn a_chat_may_begin_with_the_assistant() {
    let line =
        r#"{"messages": [{"role": "assistant", "content": "Welcome"}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"}]}"#
            .replace('\n', "");
    // As Qwen 2.5 and Llama 3.1 look for a system message: undefined, if there is no message.
    let looks_at_the_first = PLAIN_CHATML.replacen(
        "{% for",
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}{% for",
        1,
    );
    for (prompt, template) in [
        ("", looks_at_the_first.clone()),
        ("<think>\n", looks_at_the_first.replace("assistant\n'", "assistant\n<think>\n'")),
    ] {
        let shown = under_template(&template, &line, TrainOn::Assistant).unwrap();
        assert_eq!(
            shown,
            "<|im_start|>system⏎\nBe kind.<|im_end|>⏎\n<|im_start|>assistant⏎\n[Welcome<|im_end|>⏎\n]\
             <|im_start|>user⏎\nHi<|im_end|>⏎\n<|im_start|>assistant⏎\n[Hello<|im_end|>⏎\n]",
            "{prompt}"
        );
        let alone = r#"{"messages": [{"role": "assistant", "content": "Welcome"}]}"#;
        let shown = under_template(&template, alone, TrainOn::Completion).unwrap();
        assert!(shown.ends_with("<|im_start|>assistant⏎\n[Welcome<|im_end|>⏎\n]"), "{shown}");
    }
}

#[test]
fn a_turn_that_other_text_depends_on_is_refused() {
    for template in [
        // The answer's length stands in a later question.
        PLAIN_CHATML
            .replace(
                "'<|im_end|>'",
                "((m1.content | length ~ '') if loop.index0 == 2 else '') + '<|im_end|>'",
            )
            .replacen("{% for", "{% set m1 = messages[1] %}{% for", 1),
        PLAIN_CHATML.replace("+ message['content']", "+ message['content'] | upper"),
    ] {
        let error = under_template(&template, &TWO_TURNS.replace('\n', ""), TrainOn::Assistant).unwrap_err();
        assert!(error.contains("does not write an assistant's words as one piece"), "{error}");
    }
    // The header is one that a generation prompt has nothing of.
    let template = PLAIN_CHATML.replace("'<|im_start|>assistant\n' }}{% endif", "'Answer:' }}{% endif");
    let error = under_template(&template, &TWO_TURNS.replace('\n', ""), TrainOn::Assistant).unwrap_err();
    assert!(error.contains("generation prompt") && error.contains("data.train_on: all"), "{error}");
}

#[test]
fn a_token_across_the_border_belongs_to_where_it_begins() {
    // " violin" is one token: it begins with the space, which is the prompt's in the first and the answer's
    // in the second.
    assert_eq!(shown(r#"{"prompt": "a ", "completion": "violin"}"#, |_| {}), "<s>a violin[</s>]");
    assert_eq!(shown(r#"{"prompt": "a", "completion": " violin"}"#, |_| {}), "<s>a[ violin</s>]");
    assert_eq!(shown(r#"{"prompt": "", "completion": "a violin"}"#, |_| {}), "<s>[a violin</s>]");
    assert_eq!(shown(r#"{"prompt": "a violin", "completion": ""}"#, |_| {}), "<s>a violin[</s>]");
}

#[test]
fn a_preview_shows_a_character_of_several_tokens_once() {
    let dataset = load(r#"{"prompt": "x", "completion": " 東🎻"}"#, |_| {}).unwrap();
    let tokenizer = tokenizer();
    let segments = data::preview::segments(&dataset.examples[0], &tokenizer);
    let text: String = segments.iter().map(|segment| segment.text.as_str()).collect();
    assert_eq!(text, "<s>x 東🎻</s>");
    assert!(segments.iter().filter(|segment| segment.trained).count() > 4);
    let json = data::preview::json(&dataset.examples[0], &tokenizer).unwrap();
    assert_eq!(json["text"], "<s>x 東🎻</s>");
    assert!(json["source"].as_str().unwrap().ends_with("data.jsonl:1"));
}
