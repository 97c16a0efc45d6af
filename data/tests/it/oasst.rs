//! Trees of messages as OpenAssistant exports them: which conversations they give, what is left out, and what
//! is refused.

use std::path::{Path, PathBuf};

use data::convert::{Converted, Target, convert};
use data::{Asked, DataError, DataSpec, Dataset, Format, Oasst, Paths, Questions, SourceSpec};
use serde_json::{Value, json};

use crate::support::{Files, error_of, fixture, load, masked, tokenizer};

fn spec(paths: Paths, languages: &[&str]) -> Oasst {
    Oasst { paths, languages: languages.iter().map(|&language| language.into()).collect() }
}

/// The conversations of a file, each as its contents with `|` between, and what was told.
fn read(path: PathBuf, format: Format, oasst: &Oasst) -> Result<(Vec<String>, Converted), DataError> {
    let mut found = Vec::new();
    let told =
        convert(&[SourceSpec::new(path)], format, oasst, Target::Auto, |line| -> Result<(), DataError> {
            let record: Value = serde_json::from_str(line).unwrap();
            let messages = record["messages"].as_array().unwrap().iter().enumerate();
            let content = |(i, message): (usize, &Value)| {
                assert_eq!(message["role"], ["user", "assistant"][i % 2], "{line}");
                message["content"].as_str().unwrap().to_owned()
            };
            found.push(messages.map(content).collect::<Vec<_>>().join("|"));
            Ok(())
        })?;
    Ok((found, told))
}

fn read_lines(records: &[Value], oasst: &Oasst) -> Result<(Vec<String>, Converted), DataError> {
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    let files = Files::new(&[("a.jsonl", &lines.join("\n"))]);
    read(files.path("a.jsonl"), Format::Auto, oasst)
}

/// What the records give, at best.
fn best(records: &[Value]) -> Vec<String> {
    read_lines(records, &Oasst::default()).unwrap().0
}

/// Why nothing came of a tree.
fn left_out(records: &[Value]) -> Vec<(&'static str, usize)> {
    let (found, told) = read_lines(records, &spec(Paths::Best, &["en"])).unwrap();
    assert!(found.is_empty(), "{found:?}");
    told.unfit.into_iter().collect()
}

fn error(records: &[Value]) -> String {
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    error_of("a.jsonl", &lines.join("\n"), |spec| spec.format = Format::Oasst)
}

/// A message with replies.
fn node(role: &str, text: &str, more: Value, replies: &[Value]) -> Value {
    let mut node = json!({"message_id": text, "text": text, "role": role, "lang": "en", "replies": replies});
    node.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    node
}

fn tree(prompt: Value) -> Value {
    json!({"message_tree_id": prompt["message_id"], "tree_state": "ready_for_export", "prompt": prompt})
}

fn answered() -> Value {
    tree(node("prompter", "q", json!({}), &[node("assistant", "a", json!({}), &[])]))
}

/// A message in a row of its own.
fn flat(tree: &str, id: &str, parent: Option<&str>, role: &str) -> Value {
    json!({"message_id": id, "parent_id": parent, "message_tree_id": tree, "text": id, "role": role, "lang": "en"})
}

#[test]
fn rows_and_a_tree_give_the_conversations_of_the_best_replies() {
    let path = || fixture("parquet/oasst.parquet");
    let violin = "What is a violin?|A bowed instrument.|Who makes it?|A luthier.";
    let geige = "Was ist eine Geige?|Ein Streichinstrument.";
    let (found, told) = read(path(), Format::Auto, &Oasst::default()).unwrap();
    assert_eq!((found, told.unfit.len()), (vec![violin.to_owned(), geige.to_owned()], 0));
    assert_eq!((told.files[0].format, told.files[0].found, told.files[0].records), (Format::Oasst, true, 2));
    let (found, _) = read(path(), Format::Oasst, &spec(Paths::All, &[])).unwrap();
    assert_eq!(found, ["What is a violin?|A drum.", violin, geige]);
    let (found, told) = read(path(), Format::Oasst, &spec(Paths::Best, &["de", "fr"])).unwrap();
    assert_eq!(found, [geige]);
    let unfit: Vec<_> = told.unfit.into_iter().collect();
    assert_eq!(unfit, [("trees in languages that data.oasst_languages does not name", 1)]);

    let better =
        node("assistant", "better", json!({"rank": 0}), &[node("prompter", "more?", json!({}), &[])]);
    let whole = tree(node(
        "prompter",
        "q",
        json!({}),
        &[node("assistant", "worse", json!({"rank": 1}), &[]), better],
    ));
    assert_eq!(best(std::slice::from_ref(&whole)), ["q|better"]);
    assert_eq!(read_lines(&[whole], &spec(Paths::All, &[])).unwrap().0, ["q|worse", "q|better"]);
}

#[test]
fn a_reply_without_a_rank_comes_after_the_ranked_ones_and_equal_ones_in_order() {
    let answer = |text: &str, rank: Value| node("assistant", text, json!({"rank": rank}), &[]);
    let of = |answers: &[Value]| best(&[tree(node("prompter", "q", json!({}), answers))]);
    assert_eq!(of(&[answer("none", Value::Null), answer("third", json!(2))]), ["q|third"]);
    assert_eq!(of(&[answer("first", Value::Null), answer("second", Value::Null)]), ["q|first"]);
    assert_eq!(of(&[answer("a", json!(1.0)), answer("b", json!(0.0))]), ["q|b"]);
}

#[test]
fn messages_of_a_tree_may_stand_in_any_order_but_together() {
    let [a, b, c] = [("q", None, "prompter"), ("a", Some("q"), "assistant"), ("r", Some("a"), "prompter")]
        .map(|(id, parent, role)| flat("q", id, parent, role));
    let d = flat("q", "b", Some("r"), "assistant");
    let other = flat("x", "x", None, "prompter");
    assert_eq!(best(&[d.clone(), c.clone(), b.clone(), a.clone()]), ["q|a|r|b"]);
    let apart = error(&[a, b, other, c, d]);
    let expected = "a.jsonl:4: the messages of this \"message_tree_id\" do not stand next to each other; sort the file by it";
    assert_eq!(apart, expected);
}

#[test]
fn a_tree_of_which_two_files_have_a_part_is_refused_with_the_place() {
    let of = |rows: &[(&str, Option<&str>, &str)]| {
        let row =
            |&(id, parent, role): &(&str, Option<&str>, &str)| format!("{}\n", flat("t", id, parent, role));
        rows.iter().map(row).collect::<String>()
    };
    let (q, a) = (("q", None, "prompter"), ("a", Some("q"), "assistant"));
    let (r, b) = (("r", Some("a"), "prompter"), ("b", Some("r"), "assistant"));
    let told = |first: &str, second: &str| {
        let files = Files::new(&[("a.jsonl", first), ("b.jsonl", second)]);
        let mut spec =
            DataSpec::new(["a.jsonl", "b.jsonl"].map(|name| SourceSpec::new(files.path(name))).to_vec());
        spec.format = Format::Oasst;
        let told = Dataset::load(&spec, &tokenizer()).map(|dataset| dataset.examples.len());
        told.map_err(|error| error.to_string().replace(&format!("{}/", files.folder().display()), ""))
    };
    let put = "put all messages of a tree into one file, next to each other";
    assert_eq!(
        told(&of(&[q, a]), &of(&[b, r])).unwrap_err(),
        format!(
            "b.jsonl:2: messages of the tree \"t\" stand at a.jsonl:1, too, and the parent of this one, \
             \"a\", is not in this file; {put}"
        )
    );
    assert_eq!(
        told(&of(&[r, b]), &of(&[q, a])).unwrap_err(),
        format!("b.jsonl:1: messages of the tree \"t\" stand at a.jsonl:1, too; {put}")
    );
    assert_eq!(told(&of(&[q, a]), &of(&[q, a])), Ok(2), "a tree that is whole in both");
}

#[test]
fn what_an_export_has_beside_finished_trees_is_left_out_and_counted() {
    let answer = || node("assistant", "a", json!({}), &[]);
    let with = |more: Value| tree(node("prompter", "q", more, &[answer()]));
    let mut growing = answered();
    growing["tree_state"] = json!("growing");
    assert_eq!(left_out(&[growing]), [("trees that are not ready for export, by their tree_state", 1)]);
    let rejected = [with(json!({"deleted": true})), with(json!({"review_result": false}))];
    assert_eq!(left_out(&rejected), [("trees whose prompt was deleted or rejected in review", 2)]);
    let languages = [with(json!({"lang": "de"})), with(json!({"lang": null}))];
    assert_eq!(left_out(&languages), [("trees in languages that data.oasst_languages does not name", 2)]);
    let spam =
        node("assistant", "s", json!({"review_result": false}), &[node("prompter", "r", json!({}), &[])]);
    let unanswered =
        [tree(node("prompter", "q", json!({}), &[])), tree(node("prompter", "q", json!({}), &[spam]))];
    assert_eq!(left_out(&unanswered), [("trees without an answer", 2)]);
    assert_eq!(
        left_out(&[json!({"message_tree_id": "t", "prompt": null})]),
        [("trees without their first message", 1)]
    );
    let filtered = [flat("t", "r", Some("a"), "prompter"), flat("t", "b", Some("r"), "assistant")];
    let expected = [("messages whose parent is missing", 1), ("trees without their first message", 1)];
    assert_eq!(left_out(&filtered), expected);
    let texts = [
        json!({"text": "### Human: a### Human: b"}),
        json!({"text": "hello"}),
        json!({"text": "### Human: a"}),
    ];
    let files = Files::new(&[("a.jsonl", &texts.map(|text| text.to_string()).join("\n"))]);
    let (_, told) = read(files.path("a.jsonl"), Format::Oasst, &Oasst::default()).unwrap();
    assert_eq!(
        told.unfit.into_iter().collect::<Vec<_>>(),
        [("texts in which Human and Assistant do not take turns", 3)]
    );
}

#[test]
fn what_was_left_out_is_told_before_training() {
    let lines = format!("{}\n{}", answered(), tree(node("prompter", "q", json!({}), &[])));
    let report = load(&lines, |_| {}).unwrap().report;
    assert_eq!(report.warnings(), ["Left out, trees without an answer: 1."]);
    let nothing = error(&[tree(node("prompter", "q", json!({}), &[]))]);
    assert_eq!(
        nothing,
        "nothing would be trained: there is no example in a.jsonl; trees without an answer: 1"
    );
}

#[test]
fn what_contradicts_itself_is_an_error_with_its_place() {
    let reply = |role: &str, text: &str| node(role, text, json!({}), &[]);
    let with = |replies: &[Value]| error(&[answered(), tree(node("prompter", "q", json!({}), replies))]);
    assert_eq!(
        with(&[reply("assistant", "a"), reply("prompter", "b")]),
        "a.jsonl:2: prompt.replies[1].role: the prompter replies to a message of the prompter"
    );
    assert_eq!(
        with(&[reply("asistant", "a")]),
        "a.jsonl:2: prompt.replies[0].role: unknown role \"asistant\", did you mean \"assistant\"?; known: prompter, assistant"
    );
    assert_eq!(
        with(&[reply("assistant", "q")]),
        "a.jsonl:2: prompt.replies[0].message_id: the tree has another message of this id"
    );
    assert_eq!(with(&[json!("a")]), "a.jsonl:2: prompt.replies[0] must be a message, not a string");
    assert_eq!(
        with(&[node("assistant", "a", json!({"rank": "first"}), &[])]),
        "a.jsonl:2: prompt.replies[0].rank must be a whole number or null, not \"first\""
    );
    assert_eq!(
        with(&[node("assistant", "a", json!({"deleted": 0}), &[])]),
        "a.jsonl:2: prompt.replies[0].deleted must be true, false or null, not a number"
    );
    assert_eq!(
        error(&[tree(node("assistant", "q", json!({}), &[]))]),
        "a.jsonl:1: prompt.role: a tree begins with a message of the prompter"
    );
    assert_eq!(
        error(&[tree(json!({"role": "prompter", "text": "q", "replies": {}}))]),
        "a.jsonl:1: prompt.replies must be a list, not an object"
    );
    assert_eq!(error(&[tree(json!({"role": "prompter"}))]), "a.jsonl:1: the key prompt.text is missing");
    let flat_error = |rows: &[(&str, Option<&str>, &str)]| {
        error(&rows.iter().map(|&(id, parent, role)| flat("t", id, parent, role)).collect::<Vec<_>>())
    };
    assert_eq!(
        flat_error(&[("t", None, "prompter"), ("b", Some("c"), "assistant"), ("c", Some("b"), "prompter")]),
        "a.jsonl:2: \"parent_id\": following the parents leads back to this message"
    );
    assert_eq!(
        flat_error(&[("t", None, "prompter"), ("u", None, "prompter")]),
        "a.jsonl:2: \"parent_id\": is null, and the tree has a first message already"
    );
    assert_eq!(
        flat_error(&[("t", None, "prompter"), ("t", Some("t"), "assistant")]),
        "a.jsonl:2: \"message_id\": the tree has another message of this id"
    );
    assert_eq!(
        error(&[json!({"message_id": "a", "role": "prompter", "text": "a"})]),
        "a.jsonl:1: a message needs \"message_tree_id\", a text, which says to which tree it belongs"
    );
    assert!(
        error(&[json!({"prompt": "a"})])
            .starts_with("a.jsonl:1: is no record of the format oasst: neither a tree")
    );
}

#[test]
fn depth_is_no_crash() {
    let role = |i: usize| ["prompter", "assistant"][i % 2];
    let (nested, count) = ("{\"role\":\"prompter\",\"text\":\"a\",\"replies\":[", 100_000);
    let text =
        format!("{{\"message_tree_id\":\"t\",\"prompt\":{}{}}}", nested.repeat(count), "]}".repeat(count));
    assert!(
        error_of("a.jsonl", &text, |_| {})
            .contains("a.jsonl:1: lists and objects are nested more than 127 levels deep")
    );
    let parent = |i: usize| i.checked_sub(1).map(|parent| parent.to_string());
    let rows = |i: usize| flat("0", &i.to_string(), parent(i).as_deref(), role(i)).to_string();
    let lines: Vec<String> = (0..20_000).rev().map(rows).collect();
    let files = Files::new(&[("a.jsonl", &lines.join("\n"))]);
    for paths in [Paths::Best, Paths::All] {
        let (found, _) = read(files.path("a.jsonl"), Format::Auto, &spec(paths, &[])).unwrap();
        assert_eq!((found.len(), found[0].split('|').count()), (1, 20_000));
    }
    // Every answer is learnt, in time that grows with the tokens and not with their product with the answers.
    let mut spec = DataSpec::file(files.path("a.jsonl"));
    (spec.chat_template, spec.max_length) = (Some("guanaco".into()), 1 << 20);
    let dataset = Dataset::load(&spec, &tokenizer()).unwrap();
    let eos = tokenizer().eos().unwrap();
    let ends = dataset.examples[0].labels.iter().filter(|&&label| label == eos as i32).count();
    assert_eq!((dataset.examples.len(), ends), (1, 10_000));
}

const GUANACO: &str =
    "### Human: Hi there### Assistant: Hello!\n\nHow are you?### Human: Well.### Assistant: Good.";

#[test]
fn a_text_of_turns_is_learnt_as_it_is_or_as_turns() {
    let record = |text: &str| json!({"text": text}).to_string();
    let whole = load(&record(GUANACO), |_| {}).unwrap();
    assert_eq!(whole.report.files[0].format, Format::Text);
    assert_eq!(masked(&whole.examples[0], &tokenizer()).replace("⏎\n", "\n"), format!("<s>[{GUANACO}</s>]"));
    let turns = |text: &str, train_on| {
        let dataset = load(&record(text), |spec| {
            (spec.format, spec.train_on) = (Format::Oasst, train_on);
            spec.chat_template = Some("guanaco".into());
        });
        masked(&dataset.unwrap().examples[0], &tokenizer()).replace("⏎\n", "\n")
    };
    assert_eq!(
        turns(GUANACO, data::TrainOn::Assistant),
        "<s>### Human: Hi there### Assistant:[ Hello!\n\nHow are you?</s>]### Human: Well.### Assistant:[ Good.</s>]"
    );
    let unanswered = format!("{GUANACO}### Human: And then?");
    assert_eq!(turns(&unanswered, data::TrainOn::Assistant), turns(GUANACO, data::TrainOn::Assistant));
    // Of one question and one answer the template writes what the text has, to the token.
    let single = "### Human: Hi there### Assistant: Hello!";
    let ids = |dataset: Dataset| (dataset.examples[0].input_ids.clone(), dataset.report.trained_tokens);
    let as_turns = load(&record(single), |spec| {
        (spec.format, spec.train_on) = (Format::Oasst, data::TrainOn::All);
        spec.chat_template = Some("guanaco".into());
    });
    assert_eq!(ids(as_turns.unwrap()), ids(load(&record(single), |_| {}).unwrap()));
}

#[test]
fn a_tree_asks_its_last_question() {
    let unanswered = tree(node("prompter", "q", json!({}), &[]));
    let files = Files::new(&[("a.jsonl", &format!("{unanswered}\n{}", answered()))]);
    let read = |path: &Path| Questions::read(path, Format::Auto, &Oasst::default()).unwrap();
    let left_out = read(&files.path("a.jsonl")).left_out;
    assert_eq!(left_out.into_iter().collect::<Vec<_>>(), [("trees without an answer", 1)]);
    for (path, asked, answer) in
        [(files.path("a.jsonl"), "q", "a"), (fixture("parquet/oasst.parquet"), "Who makes it?", "A luthier.")]
    {
        let (_, question) = read(&path).questions.remove(0);
        let Asked::Chat(chat) = question.asked else { panic!("a tree is a conversation") };
        assert_eq!(chat.messages.last().unwrap()["content"], asked);
        assert_eq!(question.reference.as_deref(), Some(answer));
    }
}

#[test]
fn questions_are_read_as_training_reads_their_conversations() {
    let asked = |format, oasst: &Oasst, path: PathBuf| {
        let questions = Questions::read(&path, format, oasst).unwrap().questions;
        let last = |(_, question): (_, data::Question)| match question.asked {
            Asked::Chat(chat) => chat.messages.last().unwrap()["content"].as_str().unwrap().to_owned(),
            Asked::Text(text) => format!("text: {text}"),
        };
        questions.into_iter().map(last).collect::<Vec<_>>()
    };
    let rows = || fixture("parquet/oasst.parquet");
    let all = asked(Format::Auto, &spec(Paths::All, &[]), rows());
    assert_eq!(all, ["What is a violin?", "Who makes it?", "Was ist eine Geige?"]);
    assert_eq!(asked(Format::Oasst, &spec(Paths::Best, &["de"]), rows()), ["Was ist eine Geige?"]);
    let files = Files::new(&[("a.jsonl", &json!({"text": "### Human: q### Assistant: a"}).to_string())]);
    let best = Oasst::default();
    assert_eq!(asked(Format::Oasst, &best, files.path("a.jsonl")), ["q"]);
    assert_eq!(asked(Format::Auto, &best, files.path("a.jsonl")), ["text: ### Human: q### Assistant: a"]);
}

#[test]
fn packed_trees_are_read_as_plain_ones() {
    let files = Files::new(&[("a.trees.jsonl", &answered().to_string())]);
    let packed = files.path("b.trees.jsonl.zst");
    let plain = std::fs::read(files.path("a.trees.jsonl")).unwrap();
    std::fs::write(&packed, zstd::encode_all(&plain[..], 1).unwrap()).unwrap();
    for path in [files.path("a.trees.jsonl"), packed] {
        let dataset = Dataset::load(&DataSpec::file(path), &tokenizer()).unwrap();
        assert_eq!((dataset.examples.len(), dataset.report.files[0].format), (1, Format::Oasst));
    }
}

#[test]
fn marks_of_records_and_messages_are_kept() {
    /// How many of the conversations have something to learn.
    fn learnt(records: &[Value]) -> usize {
        let lines: Vec<String> = records.iter().map(Value::to_string).collect();
        let dataset = load(&lines.join("\n"), |spec| spec.format = Format::Oasst).unwrap();
        dataset.examples.iter().filter(|example| example.trained_tokens() > 0).count()
    }
    let of = |more: Value| tree(node("prompter", "q", json!({}), &[node("assistant", "a", more, &[])]));
    assert_eq!(learnt(&[of(json!({})), of(json!({}))]), 2);
    assert_eq!(learnt(&[of(json!({})), of(json!({"train": false}))]), 1, "a message");
    let mut whole = of(json!({}));
    whole["train"] = false.into();
    assert_eq!(learnt(&[of(json!({})), whole]), 1, "a tree");
    let text = |train: bool| json!({"text": "### Human: q### Assistant: a", "train": train});
    assert_eq!(learnt(&[text(true), text(false)]), 1, "a text");
}
