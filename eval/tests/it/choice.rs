//! Multiple-choice questions, against what lm-evaluation-harness' own tasks made of the same rows.

use eval::choice::{
    ChoiceError, Form, GroupMean, GroupMeans, Likelihood, Question, ShotOrder, Shots, split_for_tokens,
};
use serde_json::{Value, json};

fn fixture(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap()
}

fn form_of(case: &Value) -> Form {
    case["form"].as_str().unwrap().parse().unwrap()
}

/// Log-likelihoods of which only the sum and greediness count.
fn likelihoods(logs: &[f64]) -> Vec<Likelihood> {
    logs.iter().map(|&log| Likelihood { log, tokens: 1, greedy: false }).collect()
}

#[test]
fn texts_are_those_of_lm_evaluation_harness() {
    let cases = fixture("choices.json");
    let mut prompts = 0;
    for case in cases.as_array().unwrap() {
        let questions = form_of(case).questions(list(case, "rows"), None).unwrap();
        for (question, item) in questions.iter().zip(list(case, "items")) {
            for expected in list(item, "prompts") {
                let shots = list(expected, "shots").iter().map(|i| &questions[i.as_u64().unwrap() as usize]);
                let prompt = question.prompt(&shots.collect::<Vec<_>>());
                let pairs: Vec<(&str, &str)> = prompt.pairs().collect();
                assert_eq!(json!(pairs), expected["requests"], "{}", case["task"]);
                let shared = pairs.iter().all(|pair| pair.0 == pairs[0].0);
                assert_eq!(prompt.shared_context(), shared.then_some(pairs[0].0));
                prompts += 1;
            }
            let bare = question.prompt(&[]);
            let (context, continuation) = bare.pairs().next().unwrap();
            let (context, continuation) = split_for_tokens(context, continuation);
            assert_eq!(json!([context, continuation]), item["cut"]);
        }
    }
    assert!(prompts > 100);
}

#[test]
fn scores_are_those_of_lm_evaluation_harness() {
    let cases = fixture("choices.json");
    let mut compared = 0;
    for case in cases.as_array().unwrap() {
        let form = form_of(case);
        let questions = form.questions(list(case, "rows"), None).unwrap();
        for (question, item) in questions.iter().zip(list(case, "items")) {
            for given in list(item, "scores") {
                let each = list(given, "lls").iter().zip(list(given, "greedy"));
                let likelihoods: Vec<Likelihood> = each
                    .map(|(log, greedy)| Likelihood {
                        log: log.as_f64().unwrap(),
                        tokens: 1,
                        greedy: greedy.as_bool().unwrap(),
                    })
                    .collect();
                let scores = question.scores(&likelihoods).unwrap();
                for (name, expected) in given["results"].as_object().unwrap() {
                    let got = match name.as_str() {
                        "acc" if form == Form::TruthfulQaMc2 => scores.mass,
                        "acc" => scores.acc,
                        "acc_norm" => scores.acc_norm,
                        "acc_bytes" => scores.acc_bytes,
                        "exact_match" => scores.exact_match,
                        other => panic!("{other}"),
                    };
                    let expected = expected.as_f64().unwrap();
                    assert!((got - expected).abs() < 1e-12, "{name} {got} {expected} {}", case["task"]);
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 500);
}

#[test]
fn descriptions_of_subjects_are_those_of_lm_evaluation_harness() {
    let descriptions = fixture("mmlu_descriptions.json");
    let descriptions = descriptions.as_object().unwrap();
    assert_eq!(descriptions.len(), 57);
    for (subject, description) in descriptions {
        let row = json!(["Q", "a", "b", "c", "d", "C"]);
        let question = Form::Mmlu.question(&row, 1, Some(subject)).unwrap();
        assert_eq!((question.group(), question.gold()), (Some(subject.as_str()), 2));
        let expected = format!("{}Q\nA. a\nB. b\nC. c\nD. d\nAnswer:", description.as_str().unwrap());
        assert_eq!(question.prompt(&[]).shared_context(), Some(expected.as_str()));
    }
    let bare = Form::Mmlu.question(&json!(["Q", "a", "b", "c", "d", "A"]), 1, None).unwrap();
    assert_eq!(bare.prompt(&[]).shared_context(), Some("Q\nA. a\nB. b\nC. c\nD. d\nAnswer:"));
}

#[test]
fn forms_are_told_by_their_fields() {
    let cases = fixture("choices.json");
    for case in cases.as_array().unwrap() {
        let (form, rows) = (form_of(case), list(case, "rows"));
        match (form, Form::detect(rows)) {
            (Form::TruthfulQaMc1 | Form::TruthfulQaMc2, Err(ChoiceError::TwoTargets { row: 1 })) => {
                let other = if form == Form::TruthfulQaMc1 { "mc2_targets" } else { "mc1_targets" };
                let mut row = rows[0].clone();
                row.as_object_mut().unwrap().shift_remove(other);
                assert_eq!(Form::detect(&[row]).unwrap(), form);
            }
            (form, found) => assert_eq!(found.unwrap(), form),
        }
    }
    let own = json!({"context": "C", "choices": ["a", "b"], "gold": 1});
    let cells = json!(["Q", "a", "b", "c", "d", "A"]);
    assert_eq!(Form::detect(std::slice::from_ref(&own)).unwrap(), Form::Choice);
    assert_eq!(Form::detect(std::slice::from_ref(&cells)).unwrap(), Form::Mmlu);
    let boolq = json!({"question": "q", "title": "T", "answer": true, "passage": "P"});
    assert_eq!(Form::detect(std::slice::from_ref(&boolq)).unwrap(), Form::BoolQ);
    assert_eq!(Form::BoolQ.question(&boolq, 1, None).unwrap().gold(), 1);
    let message = |rows: &[Value]| Form::detect(rows).unwrap_err().to_string();
    assert_eq!(
        message(&[own, cells]),
        "row 2 is of the form mmlu, but those before it of choice; give one form at a time"
    );
    assert_eq!(message(&[]), "there are no rows");
    let unknown = message(&[json!({"prompt": "x", "choices": [], "gold": 0})]);
    assert!(
        unknown.starts_with(
            "row 1 is of no known form, its fields are [prompt, choices, gold]; known \
     are choice (context, choices, gold), mmlu ("
        ),
        "{unknown}"
    );
    assert!(message(&[json!("x")]).starts_with("row 1 is of no known form, it is \"x\"; "));
    assert!(message(&[json!(["Q", "a", "A"])]).starts_with("row 1 is of no known form, it is a list of 3; "));
    for form in Form::ALL {
        assert_eq!(form.name().parse::<Form>().unwrap(), *form);
    }
    let unknown = "MMLU".parse::<Form>().unwrap_err().to_string();
    assert!(
        unknown
            .starts_with("no form of multiple-choice questions is called \"MMLU\"; known are choice, mmlu,")
    );
}

#[test]
fn rows_of_our_own_say_context_choices_gold_and_group() {
    let choices = ["blue", " red", "\ngreen"];
    let row = json!({"context": "The sky is", "choices": choices, "gold": [0, 2], "group": "colours"});
    let question = Form::Choice.question(&row, 1, Some("else")).unwrap();
    assert_eq!(
        (question.group(), question.len(), question.right()),
        (Some("colours"), 3, &[true, false, true][..])
    );
    let pairs = |question: &Question| -> Vec<String> {
        question
            .prompt(&[])
            .pairs()
            .map(|(context, continuation)| format!("{context}|{continuation}"))
            .collect()
    };
    assert_eq!(pairs(&question), ["The sky is| blue", "The sky is| red", "The sky is|\ngreen"]);
    let row = json!({"context": "", "choices": ["a", "b"], "gold": 1, "group": null});
    let question = Form::Choice.question(&row, 1, Some("else")).unwrap();
    assert_eq!(
        (question.group(), question.gold(), pairs(&question)),
        (Some("else"), 1, vec!["|a".into(), "|b".into()])
    );
    assert_eq!(question.prompt(&[&question]).pairs().next(), Some(("b\n\n", "a")));
}

#[test]
fn what_does_not_fit_is_named() {
    let row = |form: Form, row: Value| form.question(&row, 7, None).unwrap_err().to_string();
    let own = |gold: Value| row(Form::Choice, json!({"context": "C", "choices": ["a", "b"], "gold": gold}));
    let hellaswag = |label: Value| {
        row(
            Form::HellaSwag,
            json!({"activity_label": "", "ctx_a": "", "ctx_b": "", "endings": ["a", "b"], "label": label}),
        )
    };
    let arc = |choices: Value, key: Value| {
        row(Form::Arc, json!({"question": "q", "choices": choices, "answerKey": key}))
    };
    let wino = |sentence: &str, answer: Value| {
        row(Form::WinoGrande, json!({"sentence": sentence, "option1": "a", "option2": "b", "answer": answer}))
    };
    let mc1 = |labels: Value| {
        row(
            Form::TruthfulQaMc1,
            json!({"question": "q", "mc1_targets": {"choices": ["a", "b"], "labels": labels}}),
        )
    };
    let piqa = json!({"goal": "g", "sol1": "a", "sol2": "b", "label": -1});
    let mmlu = |choices: Value, answer: Value| {
        row(Form::Mmlu, json!({"question": "q", "choices": choices, "answer": answer}))
    };
    for (message, expected) in [
        (
            own(json!(2)),
            "row 7, of the form choice: \"gold\" must be an index from 0 to 1, or a list of such, but it \
             is 2",
        ),
        (
            own(json!([])),
            "row 7, of the form choice: \"gold\" must be an index from 0 to 1, or a list of such, but it \
             is a list of 0",
        ),
        (
            own(json!(-1)),
            "row 7, of the form choice: \"gold\" must be an index from 0 to 1, or a list of such, but it \
             is -1",
        ),
        (
            own(json!(0.5)),
            "row 7, of the form choice: \"gold\" must be an index from 0 to 1, or a list of such, but it \
             is 0.5",
        ),
        (
            row(Form::Choice, json!([])),
            "row 7, of the form choice: the row must be an object with fields, but it is a list of 0",
        ),
        (
            row(Form::Choice, json!({"context": 1})),
            "row 7, of the form choice: \"context\" must be a text, but it is 1",
        ),
        (
            row(Form::Choice, json!({"context": "", "choices": ["a", null]})),
            "row 7, of the form choice: \"choices\"[1] must be a text, but it is null",
        ),
        (
            row(Form::Choice, json!({"context": "", "choices": ["a"]})),
            "row 7, of the form choice: \"choices\" must have at least two choices, but has 1",
        ),
        (
            row(Form::Piqa, json!({"goal": "g", "sol1": "a"})),
            "row 7, of the form piqa: \"sol2\" is missing; the row has \"goal\", \"sol1\"",
        ),
        (
            row(Form::Piqa, piqa),
            "row 7, of the form piqa: \"label\" must be an index from 0 to 1, but it is -1; rows of a \
             test split without answers \
             cannot be scored",
        ),
        (
            hellaswag(json!("")),
            "row 7, of the form hellaswag: \"label\" must be an index from 0 to 1, but it is \"\"; rows \
             of a test split without \
             answers cannot be scored",
        ),
        (
            hellaswag(json!("2")),
            "row 7, of the form hellaswag: \"label\" must be an index from 0 to 1, but it is \"2\"",
        ),
        (
            arc(json!({"text": ["a", "b"], "label": ["A", "B"]}), json!("C")),
            "row 7, of the form arc: \"answerKey\" must be one of A, B, but it is \"C\"",
        ),
        (
            arc(json!({"text": ["a", "b"], "label": ["A", "B", "C"]}), json!("C")),
            "row 7, of the form arc: \"choices\" has 2 texts but 3 labels; there must be as many",
        ),
        (
            arc(json!({"text": ["a", "b"]}), json!("C")),
            "row 7, of the form arc: \"choices\".\"label\" is missing",
        ),
        (
            arc(json!(["a", "b"]), json!("A")),
            "row 7, of the form arc: \"choices\" must be an object with \"text\" and \"label\", but it is \
             a list of 2",
        ),
        (
            wino("no blank", json!("1")),
            "row 7, of the form winogrande: \"sentence\" must have a `_` where the options go, but has none",
        ),
        (
            wino("ends with _ ", json!("1")),
            "row 7, of the form winogrande: \"sentence\" must go on after its `_`; what follows is what \
             is scored",
        ),
        (
            wino("a _ b", json!("")),
            "row 7, of the form winogrande: \"answer\" must be 1 or 2, but it is \"\"",
        ),
        (
            row(Form::BoolQ, json!({"question": "q", "passage": "p", "label": "yes"})),
            "row 7, of the form boolq: \"label\" must be true, false, 1 or 0, but it is \"yes\"",
        ),
        (
            mmlu(json!(["a", "b", "c"]), json!(0)),
            "row 7, of the form mmlu: \"choices\" must have four choices, but has 3",
        ),
        (
            mmlu(json!(["a", "b", "c", "d"]), json!("E")),
            "row 7, of the form mmlu: \"answer\" must be a letter from A to D or an index from 0 to 3, \
             but it is \"E\"",
        ),
        (
            row(Form::Mmlu, json!(["q", "a", "b", "c", "d", 4])),
            "row 7, of the form mmlu: cell 6 must be a letter from A to D or an index from 0 to 3, \
             but it is 4",
        ),
        (
            row(Form::Mmlu, json!(["q", "a", 2, "c", "d", "A"])),
            "row 7, of the form mmlu: cell 3 must be a text, but it is 2",
        ),
        (
            row(Form::Mmlu, json!(["q", "a", "A"])),
            "row 7, of the form mmlu: the row must have six cells (question, four choices, letter), \
             but has 3",
        ),
        (
            row(Form::Mmlu, json!([])),
            "row 7, of the form mmlu: the row must have six cells (question, four choices, letter), \
             but has 0",
        ),
        (
            mc1(json!([1, 1])),
            "row 7, of the form truthfulqa_mc1: \"mc1_targets\".\"labels\" must call exactly one choice \
             right, but calls 2 so",
        ),
        (
            mc1(json!([0, 0])),
            "row 7, of the form truthfulqa_mc1: \"mc1_targets\".\"labels\" must call at least one choice \
             right, but calls 0 so",
        ),
        (
            mc1(json!([1])),
            "row 7, of the form truthfulqa_mc1: \"mc1_targets\".\"labels\" must be a list of 0 or 1 for \
             each of the 2 choices, but it \
             is a list of 1",
        ),
    ] {
        assert_eq!(message, expected);
    }
    let second = Form::Choice
        .questions(&[json!({"context": "", "choices": ["a", "b"], "gold": 0}), json!({"context": ""})], None);
    assert!(matches!(second, Err(ChoiceError::Row { row: 2, .. })));
}

/// Questions that differ, in two groups, with one twice.
fn pool() -> Vec<Question> {
    let row = |i: usize, group: &str| {
        let (context, gold) = (format!("Q{i}"), i % 2);
        json!({"context": context, "choices": ["a", "b"], "gold": gold, "group": group})
    };
    let mut rows: Vec<Value> = (0..20).map(|i| row(i, if i < 15 { "x" } else { "y" })).collect();
    rows.push(row(3, "x"));
    Form::Choice.questions(&rows, None).unwrap()
}

#[test]
fn examples_are_others_of_the_group_and_the_same_for_a_seed() {
    let pool = pool();
    let mut first_drawn = Vec::new();
    for (number, question) in (0..).zip(&pool) {
        let shots = Shots::new(&pool, 4, ShotOrder::Drawn { seed: 1 });
        let drawn = shots.of(question, number).unwrap();
        assert_eq!(drawn, shots.of(question, number).unwrap());
        assert!(drawn.iter().all(|shot| *shot != question && shot.group() == question.group()));
        let distinct =
            |shot: &&Question| drawn.iter().filter(|other| std::ptr::eq(**other, *shot)).count() == 1;
        assert!(drawn.iter().all(distinct));
        first_drawn.push(drawn[0].prompt(&[]).shared_context().unwrap().to_string());
        let first = Shots::new(&pool, 4, ShotOrder::First).of(question, number).unwrap();
        let expected: Vec<&Question> = pool
            .iter()
            .filter(|other| *other != question && other.group() == question.group())
            .take(4)
            .collect();
        assert_eq!(first, expected);
    }
    // Another release that draws others would make numbers incomparable.
    assert_eq!(first_drawn[..6], FIRST_DRAWN);
    let of = |seed| {
        let shots = Shots::new(&pool, 4, ShotOrder::Drawn { seed });
        shots.of(&pool[0], 0).unwrap().into_iter().cloned().collect::<Vec<_>>()
    };
    assert_ne!(of(1), of(2));
    let every = Shots::new(&pool, 14, ShotOrder::Drawn { seed: 3 });
    assert_eq!(every.of(&pool[3], 3).unwrap().len(), 14);
    let error = Shots::new(&pool, 5, ShotOrder::First).of(&pool[16], 16).unwrap_err().to_string();
    assert_eq!(error, "5 examples are wanted, but only 4 others are there in the group \"y\"");
    assert!(Shots::new(&[], 0, ShotOrder::First).of(&pool[0], 0).unwrap().is_empty());
}

const FIRST_DRAWN: [&str; 6] = ["Q8", "Q14", "Q4", "Q14", "Q3", "Q2"];

#[test]
fn every_other_question_is_drawn_about_as_often() {
    let pool = pool();
    let shots = Shots::new(&pool, 3, ShotOrder::Drawn { seed: 5 });
    let mut counts = vec![0; pool.len()];
    for number in 0..5000 {
        for shot in shots.of(&pool[0], number).unwrap() {
            counts[pool.iter().position(|question| std::ptr::eq(question, shot)).unwrap()] += 1;
        }
    }
    // 15 others, 3 of them each time: 1000 each, give or take four standard deviations of 28.
    assert!(
        counts.iter().enumerate().all(|(i, &count)| match i {
            1..=14 | 20 => (890..1110).contains(&count),
            _ => count == 0,
        }),
        "{counts:?}"
    );
}

#[test]
fn log_likelihoods_that_are_none_are_errors() {
    let row = json!({"context": "", "choices": ["a", "bbbb"], "gold": 1});
    let question = Form::Choice.question(&row, 1, None).unwrap();
    let scores = |logs: &[f64]| question.scores(&likelihoods(logs));
    assert!(matches!(scores(&[-1.0]), Err(ChoiceError::Count { given: 1, choices: 2 })));
    for bad in [f64::NAN, 1e-3, f64::INFINITY] {
        assert!(
            matches!(scores(&[-1.0, bad]), Err(ChoiceError::NotLogLikelihood { choice: 1, .. })),
            "{bad}"
        );
    }
    let scored = scores(&[f64::NEG_INFINITY, -3.0]).unwrap();
    assert_eq!((scored.chosen, scored.acc, scored.mass), (1, 1.0, 1.0));
    let scored = scores(&[f64::NEG_INFINITY; 2]).unwrap();
    assert_eq!((scored.chosen, scored.acc, scored.mass), (0, 0.0, 0.0));
    // Where both probabilities are 0 in an f64, their shares are not.
    let scored = scores(&[-2000.0, -2000.0]).unwrap();
    assert_eq!((scored.chosen, scored.acc, scored.acc_norm, scored.mass), (0, 0.0, 1.0, 0.5));
    let by_tokens = [
        Likelihood { log: -2.0, tokens: 1, greedy: false },
        Likelihood { log: -3.0, tokens: 2, greedy: true },
    ];
    let scored = question.scores(&by_tokens).unwrap();
    assert_eq!((scored.acc, scored.acc_tokens, scored.exact_match), (0.0, 1.0, 1.0));
    let none = question.scores(&[Likelihood { log: -2.0, tokens: 0, greedy: false }; 2]).unwrap();
    assert_eq!(none.acc_tokens, 0.0);
}

#[test]
fn mmlu_is_the_mean_over_subjects_for_qlora_and_over_items_for_lm_evaluation_harness() {
    let scores = [
        (Some("law"), 1.0),
        (Some("anatomy"), 1.0),
        (Some("law"), 0.0),
        (Some("law"), 0.0),
        (Some("law"), 0.0),
    ];
    let means = GroupMeans::of(scores).unwrap();
    assert_eq!((means.over_items, means.over_groups), (0.4, 0.625));
    let group = |name: &str, items, mean| GroupMean { group: Some(name.into()), items, mean };
    assert_eq!(means.groups, [group("anatomy", 1, 1.0), group("law", 4, 0.25)]);
    assert_eq!(GroupMeans::of([]), None);
}
