//! Marks of what is not to be learnt: on a record, a message, a part of one, a token.

use data::{DataSpec, Report, TrainOn};

use crate::support::{Files, error_of, load, load_as, masked, tokenizer};

/// A conversation of two turns, with more keys in the first answer and the second question.
fn chat(first_answer: &str, second_question: &str) -> String {
    format!(
        r#"{{"messages": [{{"role": "user", "content": "Hi"}}, {{"role": "assistant", "content": "wrong"{first_answer}}},
        {{"role": "user", "content": "Again"{second_question}}}, {{"role": "assistant", "content": "right"}}]}}"#
    )
    .replace('\n', " ")
}

/// The same as sharegpt.
fn sharegpt(first_answer: &str, second_question: &str) -> String {
    let chat = chat(first_answer, second_question).replace("messages", "conversations");
    chat.replace("\"role\": \"user\"", "\"from\": \"human\"")
        .replace("\"role\": \"assistant\"", "\"from\": \"gpt\"")
        .replace("\"content\"", "\"value\"")
}

fn under(record: &str, template: &str, train_on: TrainOn) -> Result<(String, Report), String> {
    let files = Files::new(&[("plain.jinja", PLAIN_CHATML)]);
    let path = files.path("plain.jinja").display().to_string();
    let set = |spec: &mut DataSpec| {
        let template = if template == "plain" { path.clone() } else { template.to_string() };
        (spec.chat_template, spec.train_on) = (Some(template), train_on);
    };
    let keep = "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"assistant\", \"content\": \"y\"}]}";
    let keep = if record.contains("conversations") { sharegpt("", "") } else { keep.to_string() };
    let dataset = load_as("data.json", &format!("{record}\n{keep}"), set)
        .map_err(|error| error.to_string().replace(&path, "plain.jinja"))?;
    let text = match dataset.examples.len() {
        1 => String::new(),
        _ => masked(&dataset.examples[0], &tokenizer()),
    };
    Ok((text, dataset.report))
}

/// ChatML without generation blocks, as models ship it.
const PLAIN_CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
    '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const ONLY_RIGHT: &str = "<|im_start|>user⏎\nHi<|im_end|>⏎\n<|im_start|>assistant⏎\nwrong<|im_end|>⏎\n\
    <|im_start|>user⏎\nAgain<|im_end|>⏎\n<|im_start|>assistant⏎\n[right<|im_end|>⏎\n]";

#[test]
fn a_turn_that_is_marked_as_not_to_be_learnt_carries_no_loss() {
    let marks = [
        "\"weight\": 0",
        "\"weight\": 0.0",
        "\"weight\": \"0\"",
        "\"weight\": false",
        "\"train\": false",
        "\"training\": false",
        "\"training\": \"False\"",
        "\"loss\": false",
        "\"loss_mask\": 0",
        "\"loss_mask\": 0.0",
        "\"train\": 0, \"weight\": 0",
        "\"train\": false, \"weight\": null",
        "\"weight\": NaN, \"loss\": \"false\"",
    ];
    for mark in marks {
        for template in ["chatml", "plain"] {
            for record in [chat(&format!(", {mark}"), ""), sharegpt(&format!(", {mark}"), "")] {
                let (text, report) = under(&record, template, TrainOn::Assistant).unwrap();
                assert_eq!(text, ONLY_RIGHT, "{mark}, {template}");
                assert_eq!(
                    (report.missing_end, report.other_end.len()),
                    (0, 0),
                    "{mark}: a cut is no missing end"
                );
            }
        }
    }
}

#[test]
fn marks_that_say_what_is_learnt_anyway_change_nothing() {
    let unmarked = under(&chat("", ""), "chatml", TrainOn::Assistant).unwrap().0;
    for mark in [
        ", \"weight\": 1",
        ", \"train\": true",
        ", \"loss\": \"True\"",
        ", \"loss_mask\": 1.0",
        ", \"weight\": null",
    ] {
        for record in [chat(mark, ", \"weight\": 0"), sharegpt(mark, ", \"weight\": 1")] {
            assert_eq!(under(&record, "chatml", TrainOn::Assistant).unwrap().0, unmarked, "{mark}");
        }
    }
}

#[test]
fn marks_are_no_part_of_what_a_template_renders() {
    let template = "{% for m in messages %}{{ m | tojson }}{% endfor %}{% if add_generation_prompt %}{{ '' }}{% endif %}";
    let files = Files::new(&[("t.jinja", template)]);
    let set = |spec: &mut DataSpec| {
        (spec.chat_template, spec.train_on) =
            (Some(files.path("t.jinja").display().to_string()), TrainOn::All)
    };
    let dataset = load(&chat(", \"weight\": 1, \"train\": true, \"name\": \"Bo\"", ""), set).unwrap();
    let text = masked(&dataset.examples[0], &tokenizer());
    assert!(text.contains(r#"{"role": "assistant", "content": "wrong", "name": "Bo"}"#), "{text}");
}

#[test]
fn under_all_a_marked_turn_of_anyone_is_left_out() {
    for template in ["chatml", "plain"] {
        for record in [
            chat(", \"train\": false", ", \"weight\": 0"),
            sharegpt(", \"loss\": false", ", \"train\": false"),
        ] {
            let (text, _) = under(&record, template, TrainOn::All).unwrap();
            assert_eq!(
                text,
                "<|im_start|>[user⏎\nHi<|im_end|>⏎\n<|im_start|>assistant⏎\n]wrong<|im_end|>⏎\n<|im_start|>user⏎\nAgain<|im_end|>⏎\n\
                 [<|im_start|>assistant⏎\nright<|im_end|>⏎\n]",
                "{template}"
            );
        }
    }
    let first = chat("", "").replacen("\"Hi\"", "\"Hi\", \"train\": false", 1);
    let (text, _) = under(&first, "plain", TrainOn::All).unwrap();
    assert!(text.starts_with("<|im_start|>user⏎\nHi<|im_end|>⏎\n[<|im_start|>assistant⏎\nwrong"), "{text}");
}

#[test]
fn completion_learns_the_last_turn_or_nothing() {
    let (text, _) = under(&chat(", \"weight\": 0", ""), "chatml", TrainOn::Completion).unwrap();
    assert_eq!(text, ONLY_RIGHT);
    let last = chat("", "").replacen("\"right\"", "\"right\", \"weight\": 0", 1);
    for template in ["chatml", "plain"] {
        let (text, report) = under(&last, template, TrainOn::Completion).unwrap();
        assert_eq!((text.as_str(), report.without_trained_token), ("", 1), "{template}");
    }
}

#[test]
fn a_conversational_completion_is_marked_like_any_conversation() {
    let record = r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b", "train": false},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}"#
        .replace('\n', " ");
    for train_on in [TrainOn::Assistant, TrainOn::Completion] {
        let text = masked(&load(&record, |spec| spec.train_on = train_on).unwrap().examples[0], &tokenizer());
        assert!(text.contains("⏎\nb<|im_end|>") && text.contains("[d<|im_end|>"), "{text}");
    }
}

#[test]
fn earlier_turns_that_are_not_learnt_may_be_rewritten_by_the_template() {
    // Qwen 3's own template drops thoughts of earlier turns, which is why they could not be learnt.
    let qwen3 = std::fs::read_to_string(crate::support::fixture("templates/qwen3.jinja")).unwrap();
    let files = Files::new(&[("qwen3.jinja", &qwen3)]);
    let set =
        |spec: &mut DataSpec| spec.chat_template = Some(files.path("qwen3.jinja").display().to_string());
    let text = masked(&load(&chat(", \"train\": false", ""), set).unwrap().examples[0], &tokenizer());
    assert!(text.contains("⏎\nwrong<|im_end|>") && text.contains("right<|im_end|>⏎\n]"), "{text}");
    let set = |spec: &mut DataSpec| spec.chat_template = Some("qwen3".into());
    let text = masked(&load(&chat(", \"train\": false", ""), set).unwrap().examples[0], &tokenizer());
    assert!(!text.contains("[wrong") && text.contains("right<|im_end|>⏎\n]"), "{text}");
}

#[test]
fn generation_blocks_are_those_of_their_turn_whatever_their_number() {
    // Two blocks a turn, and none for an empty one.
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' and m.content %}\
        {% generation %}{{ m.content }}{% endgeneration %}-{% generation %}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}\
        <|im_end|>{% endif %}{% endfor %}";
    let files = Files::new(&[("t.jinja", template)]);
    let set = |spec: &mut DataSpec| spec.chat_template = Some(files.path("t.jinja").display().to_string());
    let text = masked(&load(&chat(", \"train\": false", ""), set).unwrap().examples[0], &tokenizer());
    assert_eq!(
        text,
        "<|im_start|>userHi<|im_end|><|im_start|>assistantwrong-<|im_end|><|im_start|>userAgain<|im_end|><|im_start|>assistant[right]-\
         [<|im_end|>]"
    );
    // A block for the last turn only: which one the first would have had is not known.
    let last = "{% for m in messages %}<|im_start|>{{ m.role }}{% if loop.last %}{% generation %}{{ m.content }}{% endgeneration %}\
        {% else %}{{ m.content }}{% endif %}{% endfor %}";
    let files = Files::new(&[("t.jinja", last)]);
    let set = |spec: &mut DataSpec| spec.chat_template = Some(files.path("t.jinja").display().to_string());
    let error = load(&chat(", \"train\": false", ""), set).unwrap_err().to_string();
    assert!(
        error.contains("where the message of the mark messages[1].train stands cannot be told"),
        "{error}"
    );
}

#[test]
fn parts_of_a_turn_are_learnt_as_axolotl_marks_them() {
    let parts = r#", "train_detail": [{"begin_offset": 0, "end_offset": 2, "train": false}, {"begin_offset": 3, "end_offset": 7, "train": true},
        {"begin_offset": 8, "end_offset": 11, "train": false}]"#
        .replace('\n', " ");
    for key in ["train_detail", "training_detail"] {
        let more = parts.replace("train_detail", key);
        for record in [chat(&more, ""), sharegpt(&more, "")] {
            let record = record.replace("\"wrong\"", "\"東1 [2é3] no.\"");
            for template in ["chatml", "plain"] {
                let (text, _) = under(&record, template, TrainOn::Assistant).unwrap();
                assert!(text.contains("assistant⏎\n東1 [[2é3]] no.[<|im_end|>⏎\n]"), "{template}: {text}");
            }
        }
    }
    // What no entry names is not learnt; a turn of which nothing is named is not learnt at all, nor is its
    // end.
    let one = r#", "train_detail": [{"begin_offset": 1, "end_offset": 1, "train": true}]"#;
    let (text, _) = under(&chat(one, "").replace("wrong", "1 2 3"), "plain", TrainOn::Assistant).unwrap();
    assert!(
        text.contains("assistant⏎\n1[ ]2 3[<|im_end|>") || text.contains("assistant⏎\n1[ 2] 3[<|im_end|>"),
        "{text}"
    );
    let none = r#", "train_detail": [{"begin_offset": 1, "end_offset": 1, "train": false}]"#;
    assert_eq!(under(&chat(none, ""), "plain", TrainOn::Assistant).unwrap().0, ONLY_RIGHT);
    let both = r#", "weight": 0, "train_detail": [{"begin_offset": 0, "end_offset": 1, "train": true}]"#;
    assert_eq!(under(&chat(both, ""), "chatml", TrainOn::Assistant).unwrap().0, ONLY_RIGHT);
}

#[test]
fn parts_of_a_content_have_marks_of_their_own() {
    let parts = r#"[{"type": "text", "text": "think.", "train": false}, {"type": "text", "text": " say. ", "weight": 1}, "end"]"#;
    for template in ["chatml", "plain"] {
        let record = chat("", "").replace("\"wrong\"", parts);
        let (text, _) = under(&record, template, TrainOn::Assistant).unwrap();
        assert!(text.contains("assistant⏎\nthink.[ say. end<|im_end|>"), "{template}: {text}");
        let record =
            chat("", "").replace("\"wrong\"", r#"[{"type": "text", "text": "wrong", "loss_mask": 0}]"#);
        assert_eq!(under(&record, template, TrainOn::Assistant).unwrap().0, ONLY_RIGHT);
    }
    // Trimmed by the template, as Gemma's does.
    let record = chat("", "")
        .replace("\"wrong\"", r#"[{"type": "text", "text": "  think.", "train": false}, " say. "]"#);
    let (text, _) = under(&record, "gemma", TrainOn::Assistant).unwrap();
    assert!(text.contains("model⏎\nthink.[ say.<end_of_turn>"), "{text}");
}

#[test]
fn a_record_that_is_marked_is_left_out_and_counted() {
    for (kept, marked) in [
        (r#"{"text": "a"}"#, r#"{"text": "b", "weight": 0}"#),
        (r#"{"prompt": "a", "completion": "b"}"#, r#"{"prompt": "a", "completion": "c", "train": false}"#),
        (r#"{"instruction": "a", "output": "b"}"#, r#"{"instruction": "a", "output": "c", "loss": false}"#),
        (r#"{"input_ids": [1, 5]}"#, r#"{"input_ids": [1, 6], "weight": 0.0}"#),
        (
            r#"{"conversations": [{"from": "gpt", "value": "b"}]}"#,
            r#"{"conversations": [{"from": "gpt", "value": "c"}], "training": "false"}"#,
        ),
    ] {
        let report = load(&format!("{kept}\n{marked}"), |_| {}).unwrap().report;
        assert_eq!((report.examples, report.without_trained_token), (1, 1), "{marked}");
        assert!(report.warnings().iter().any(|line| line.contains("no token that carries loss: 1 example")));
        assert_eq!(
            load(
                &format!(
                    "{kept}\n{}",
                    marked
                        .replace(": 0.0}", ": 1}")
                        .replace(": 0}", ": 1}")
                        .replace(": false}", ": true}")
                        .replace("\"false\"}", "\"true\"}")
                ),
                |_| {}
            )
            .unwrap()
            .examples
            .len(),
            2,
            "{marked}"
        );
    }
    let error = error_of("a.jsonl", r#"{"text": "a", "weight": 0}"#, |_| {});
    assert!(error.contains("of 1 records 1 have no token that carries loss"), "{error}");
    // A loss that somebody measured is no mark.
    assert_eq!(load(r#"{"text": "a", "loss": 2.31}"#, |_| {}).unwrap().examples.len(), 1);
    assert_eq!(load(r#"{"text": "a", "loss": 0}"#, |_| {}).unwrap().examples.len(), 1);
}

#[test]
fn a_mark_that_cannot_be_honoured_is_an_error() {
    let error = |record: &str| error_of("a.jsonl", record, |_| {});
    for (mark, message) in [
        (
            "\"weight\": 0.5",
            "messages[1].weight is 0.5; it is learnt (1 or true) or not (0 or false), and nothing between",
        ),
        ("\"weight\": -1", "messages[1].weight is -1; it is learnt"),
        ("\"train\": \"maybe\"", "messages[1].train is \"maybe\"; it is learnt"),
        ("\"loss_mask\": [0, 1]", "messages[1].loss_mask is a list; it is learnt"),
        (
            "\"train\": true, \"weight\": 0",
            "messages[1].train says that it is learnt, messages[1].weight that it is not",
        ),
        (
            "\"train_detail\": {}",
            "messages[1].train_detail must be a list of {\"begin_offset\", \"end_offset\", \"train\"}",
        ),
        ("\"train_detail\": [{\"begin_offset\": 0}]", "messages[1].train_detail[0] must be a list"),
        (
            "\"train_detail\": [{\"begin_offset\": 0, \"end_offset\": 5, \"train\": true}]",
            "messages[1].train_detail[0] goes from character 0 to 5; the content has 5, counted from 0",
        ),
        (
            "\"train_detail\": [{\"begin_offset\": 0, \"end_offset\": 2, \"train\": true}, {\"begin_offset\": 2, \"end_offset\": 4, \"train\": 0}]",
            "messages[1].train_detail[1] contradicts an entry before it; end_offset is the last character",
        ),
    ] {
        let text = error(&chat(&format!(", {mark}"), ""));
        assert!(text.starts_with(&format!("a.jsonl:1: {message}")), "{mark}: {text}");
    }
    let text = error(&sharegpt(", \"weight\": 0.5", ""));
    assert!(text.contains("conversations[1].weight is 0.5"), "{text}");
    let text = error(r#"{"text": "a", "weight": 2}"#);
    assert!(
        text.contains("weight is 2; it is learnt") && text.contains("with a weight in data.train"),
        "{text}"
    );
    // Only data.train_on decides whose turns are learnt.
    let text = error(&chat("", ", \"train\": true"));
    assert!(text.contains("messages[2].train marks as learnt what data.train_on: assistant does not learn; set data.train_on: all"), "{text}");
    assert!(load(&chat("", ", \"train\": true"), |spec| spec.train_on = TrainOn::All).is_ok());
}

#[test]
fn masks_of_tokenized_rows_are_honoured() {
    let labels = |record: &str| {
        let dataset = load(record, |_| {}).unwrap();
        (dataset.examples[0].input_ids.clone(), dataset.examples[0].labels.clone())
    };
    let right = (vec![1, 5, 6, 7, 2], vec![1, 5, 6, 7, 2]);
    assert_eq!(
        labels(r#"{"input_ids": [1, 5, 6, 7, 2, 0, 0, 0], "attention_mask": [1, 1, 1, 1, 1, 0, 0, 0]}"#),
        right
    );
    assert_eq!(
        labels(r#"{"input_ids": [0, 0, 1, 5, 6, 7, 2], "attention_mask": [false, 0.0, true, 1, 1, 1, 1.0]}"#),
        right
    );
    assert_eq!(
        labels(
            r#"{"input_ids": [0, 1, 5, 6, 2, 0], "attention_mask": [0, 1, 1, 1, 1, 0], "labels": [-100, -100, -100, 6, 2, 0],
            "position_ids": [1, 0, 1, 2, 3, 1], "token_type_ids": [0, 0, 0, 0, 0, 0], "special_tokens_mask": [1, 1, 0, 0, 1, 1], "length": 6}"#
        ),
        (vec![1, 5, 6, 2], vec![-100, -100, 6, 2])
    );
    for mask in ["loss_mask", "completion_mask", "assistant_masks", "loss_weights"] {
        let record = format!(
            r#"{{"input_ids": [1, 5, 6, 2, 0], "attention_mask": [1, 1, 1, 1, 0], "{mask}": [0, 0, 1, 1, 0]}}"#
        );
        assert_eq!(labels(&record), (vec![1, 5, 6, 2], vec![-100, -100, 6, 2]), "{mask}");
    }
    let nothing = r#"{"input_ids": [1, 5]}
{"input_ids": [1, 5], "attention_mask": [0, 0]}
{"input_ids": [1, 5], "loss_mask": [1, 0]}"#;
    let report = load(nothing, |_| {}).unwrap().report;
    assert_eq!((report.examples, report.without_trained_token), (1, 2));
}

#[test]
fn masks_of_tokenized_rows_are_checked() {
    for (more, message) in [
        ("\"attention_mask\": [1, 1]", "3 input_ids but 2 in attention_mask; there must be as many"),
        ("\"attention_mask\": [1, 1, 2]", "attention_mask[2]: 2 is neither 0 (padding) nor 1 (seen)"),
        ("\"attention_mask\": [[1, 1, 1]]", "3 input_ids but 1 in attention_mask"),
        ("\"attention_mask\": 1", "\"attention_mask\" must be a list, not a number"),
        ("\"loss_mask\": [0, 1, 0.5]", "loss_mask[2]: 0.5 is neither 0 (not learnt) nor 1 (learnt)"),
        ("\"loss_mask\": 0.5", "loss_mask is 0.5; it is learnt"),
        (
            "\"position_ids\": [0, 1, 0]",
            "position_ids[2] is 0 where the tokens before end at 1; give each example of a packed row a row",
        ),
        ("\"position_ids\": [0, 1]", "3 input_ids but 2 position_ids"),
        ("\"position_ids\": [0, 1, -1]", "position_ids[2]: -1 is not a position"),
        ("\"token_type_ids\": [0, 1, 1]", "\"token_type_ids\" has others than 0"),
        ("\"seq_lengths\": [1, 2]", "\"seq_lengths\": a row of several examples packed is not read"),
        ("\"pixel_values\": [0.5]", "\"pixel_values\": only text can be trained on"),
    ] {
        let error = error_of("a.jsonl", &format!("{{\"input_ids\": [1, 5, 2], {more}}}"), |_| {});
        assert!(error.starts_with(&format!("a.jsonl:1: {message}")), "{more}: {error}");
    }
}

#[test]
fn keys_that_change_what_is_taught_are_honoured_or_refused() {
    let error = |record: &str| error_of("a.jsonl", record, |_| {});
    let chat = r#""messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#;
    for (more, message) in [
        ("\"functions\": [{}]", "\"functions\": this is OpenAI's older form"),
        ("\"images\": [\"a.png\"]", "\"images\": only text can be trained on"),
        ("\"kto_tag\": false", "\"kto_tag\": preference data"),
        ("\"documents\": [{\"text\": \"x\"}]", "\"documents\": documents beside messages are not read"),
        ("\"chat_template_kwargs\": {\"enable_thinking\": false}", "\"chat_template_kwargs\": settings"),
        ("\"label\": true", "\"label\": preference data"),
    ] {
        assert!(error(&format!("{{{chat}, {more}}}")).contains(message), "{more}");
    }
    assert!(load(&format!("{{{chat}, \"images\": [], \"functions\": null, \"label\": 3}}"), |_| {}).is_ok());
    for (more, message) in [
        ("\"refusal\": \"No.\"", "messages[1].refusal: give the words"),
        ("\"images\": [\"a.png\"]", "messages[1].images: only text"),
    ] {
        let record = format!("{{{}}}", chat.replace("\"b\"", &format!("\"b\", {more}")));
        assert!(error(&record).contains(message), "{more}");
    }
    assert!(
        error(r#"{"prompt": "a", "completion": "b", "system": "Be kind."}"#)
            .contains("\"system\" has no place beside two texts")
    );

    let text = |record: &str| masked(&load(record, |_| {}).unwrap().examples[0], &tokenizer());
    let system = "<|im_start|>system⏎\nBe kind.<|im_end|>⏎\n";
    for record in [
        format!("{{\"system\": \"Be kind.\", {chat}}}"),
        r#"{"system_prompt": "Be kind.", "question": "a", "response": "b"}"#.to_string(),
        r#"{"system": "Be kind.", "prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#.to_string(),
    ] {
        let text = text(&record);
        assert!(text.starts_with(system) && text.ends_with("[b<|im_end|>⏎\n]"), "{text}");
    }
    // What a sharegpt turn has beside its tag and value reaches the template.
    let thought = r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "reasoning_content": "hm"}]}"#;
    let dataset = load(thought, |spec| spec.chat_template = Some("qwen3".into())).unwrap();
    assert!(masked(&dataset.examples[0], &tokenizer()).contains("hm"));
}
