//! The audit of a set: its numbers, and every finding with its place.

use data::audit::{Audit, Bin, Finding};
use data::{DataSpec, Dataset, OnOverflow, TrainOn};

use crate::support::{Files, tokenizer};

/// Longer than any example here.
const UNCUT: usize = 1 << 20;

fn load(lines: &str) -> Dataset {
    let files = Files::new(&[("a.jsonl", lines)]);
    let mut spec = DataSpec::file(files.path("a.jsonl"));
    spec.max_length = UNCUT;
    Dataset::load(&spec, &tokenizer()).unwrap()
}

fn audit(train: &str, eval: Option<&str>, max_length: usize) -> Audit {
    let (train, eval) = (load(train), eval.map(load));
    let mut audit =
        Audit::new(&train, eval.as_ref(), max_length, OnOverflow::Truncate, &tokenizer()).unwrap();
    // The folders are others each time.
    let name = |place: &str| {
        let words = place.split(' ').map(|word| match word.rfind("/a.jsonl") {
            Some(at) => &word[at + 1..],
            None => word,
        });
        words.collect::<Vec<_>>().join(" ")
    };
    for finding in &mut audit.findings {
        finding.places = finding.places.iter().map(|place| name(place)).collect();
    }
    for (place, _) in &mut audit.train.longest {
        *place = name(place);
    }
    audit
}

fn chat(turns: &[(&str, &str)]) -> String {
    let messages: Vec<_> =
        turns.iter().map(|(role, content)| serde_json::json!({"role": role, "content": content})).collect();
    format!("{}\n", serde_json::json!({ "messages": messages }))
}

fn asked(question: &str, answer: &str) -> String {
    chat(&[("user", question), ("assistant", answer)])
}

/// The finding of a kind, which there must be.
fn found<'a>(audit: &'a Audit, kind: &str) -> &'a Finding {
    audit.findings.iter().find(|finding| finding.kind == kind).unwrap_or_else(|| panic!("{kind}: {audit:?}"))
}

#[test]
fn a_set_without_faults_has_no_findings() {
    let audit = audit(&(asked("a", "b") + &asked("c", "d")), Some(&asked("e", "f")), 2048);
    assert_eq!(audit.findings, []);
    assert_eq!((audit.train.examples, audit.eval.unwrap().examples), (2, 1));
}

#[test]
fn lengths_are_counted_in_tokens_and_the_limit_is_weighed() {
    // Ids as they are: 10 examples of 3 to 12 tokens, all learnt but the first token.
    let ids = |n: usize| format!("{{\"input_ids\": {:?}}}\n", (0..n).map(|i| 40 + i).collect::<Vec<_>>());
    let audit = audit(&(3..=12).map(ids).collect::<String>(), None, 10);
    let train = &audit.train;
    assert_eq!((train.tokens, train.trained_tokens), (75, 65));
    let lengths = &train.lengths;
    let lengths = (lengths.min, lengths.median, lengths.p90, lengths.p99, lengths.max);
    assert_eq!(lengths, (3, 7, 11, 12, 12));
    let bins = [(4, 2), (8, 4), (16, 4)].map(|(up_to, examples)| Bin { up_to, examples });
    assert_eq!(train.histogram, bins);
    assert_eq!((train.beyond, train.lost_tokens, train.fitting), (2, 3, [12, 12, 12]));
    assert_eq!(train.longest[..2], [("a.jsonl:10".to_string(), 12), ("a.jsonl:9".to_string(), 11)]);
    let beyond = found(&audit, "beyond_max_length");
    assert!(
        beyond.serious && beyond.what.contains("they are cut off, and 4.6 % of the tokens"),
        "{beyond:?}"
    );
    assert_eq!(beyond.places, ["a.jsonl:9 (11 tokens)", "a.jsonl:10 (12 tokens)"]);
}

#[test]
fn what_is_trained_on_and_held_out_is_the_first_finding() {
    let train = asked("Who are you?", "A model.") + &asked("Why?", "So.") + &asked("Why?", "So.");
    let eval = asked("Why?", "So.") + &asked("who are  YOU", "Nobody.") + &asked("What?", "That.");
    let audit = audit(&train, Some(&eval), 2048);
    let kinds: Vec<_> = audit.findings.iter().map(|finding| (finding.kind, finding.serious)).collect();
    assert_eq!(kinds, [("leaked_example", true), ("leaked_prompt", true), ("duplicate", false)]);
    assert_eq!(audit.findings[0].places, ["a.jsonl:1 = a.jsonl:2"]);
    assert_eq!(audit.findings[1].places, ["a.jsonl:2 = a.jsonl:1"]);
    assert_eq!(audit.findings[2].places, ["a.jsonl:3 = a.jsonl:2"]);
}

#[test]
fn prompts_with_several_answers_and_duplicates_are_told_apart() {
    let audit = audit(
        &(asked("Why?", "a") + &asked("why ", "b") + &asked("Why?", "a") + &asked("No", "c")),
        None,
        2048,
    );
    assert_eq!(found(&audit, "differing_answers").places, ["a.jsonl:2 = a.jsonl:1"]);
    assert_eq!(found(&audit, "duplicate").places, ["a.jsonl:3 = a.jsonl:1"]);
    // Texts have no prompts.
    let texts = "{\"text\": \"a b\"}\n{\"text\": \"a c\"}\n";
    assert_eq!(load_and_audit_kinds(texts), Vec::<&str>::new());
}

fn load_and_audit_kinds(lines: &str) -> Vec<&'static str> {
    audit(lines, None, 2048).findings.into_iter().map(|finding| finding.kind).collect()
}

#[test]
fn odd_conversations_are_named_each_by_its_oddity() {
    let cases = [
        ("empty", chat(&[("user", ""), ("assistant", "a")])),
        ("empty", chat(&[("user", "a"), ("assistant", " ")])),
        ("unanswered", chat(&[("user", "a"), ("assistant", "b"), ("user", "c")])),
        ("role_order", chat(&[("assistant", "a"), ("user", "b"), ("assistant", "c")])),
        ("role_order", chat(&[("user", "a"), ("user", "b"), ("assistant", "c")])),
        ("role_order", chat(&[("user", "a"), ("system", "b"), ("assistant", "c")])),
        ("no_trained_token", chat(&[("user", "x")])),
    ];
    for (kind, line) in cases {
        let audit = audit(&(asked("good", "fine") + &line), None, 2048);
        assert_eq!(found(&audit, kind).count, 1, "{line}");
        assert!(found(&audit, kind).places[0].starts_with("a.jsonl:2"), "{line}");
    }
    let good = chat(&[("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    assert_eq!(load_and_audit_kinds(&good), Vec::<&str>::new());
}

#[test]
fn the_document_of_a_text_file_loses_nothing_to_the_limit() {
    let files = Files::new(&[("a.txt", &"word ".repeat(100))]);
    let mut spec = DataSpec::file(files.path("a.txt"));
    (spec.max_length, spec.train_on) = (UNCUT, TrainOn::All);
    let data = Dataset::load(&spec, &tokenizer()).unwrap();
    let audit = Audit::new(&data, None, 16, OnOverflow::Truncate, &tokenizer()).unwrap();
    assert_eq!((audit.train.beyond, audit.findings.len()), (0, 0));
}

#[test]
fn prompts_that_end_within_a_token_are_found_and_serious_where_they_are_most() {
    let record = |prompt: &str, completion: &str| {
        format!("{}\n", serde_json::json!({"prompt": prompt, "completion": completion}))
    };
    let (joined, kept) = (record("say: ", "the a"), record("sing:", " the b"));
    let few = audit(&(kept.clone() + &joined), None, 2048);
    let finding = found(&few, "joined");
    assert_eq!(
        (finding.serious, finding.count, &finding.places[..]),
        (false, 1, &["a.jsonl:2".to_owned()][..])
    );
    assert!(found(&audit(&joined, None, 2048), "joined").serious);
}
