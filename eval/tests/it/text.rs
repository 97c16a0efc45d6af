//! Metrics of texts, against what the programs that people quote said of the same texts.

use std::time::{Duration, Instant};

use eval::text::{
    Bleu, BleuCounts, Decimal, ExactMatch, JsonMatch, JsonScore, Metric, NumberMatch, Pattern, PatternMatch,
    Rouge, RougeKind, TextError, TokenF1, first_json, json_equal, pass_at_k, porter_stem, squad_normalized,
};
use serde_json::{Value, json};

fn fixture(name: &str) -> Vec<Value> {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap()
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap()
}

fn texts<'a>(row: &'a Value, key: &str) -> Vec<&'a str> {
    row[key].as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

fn near(got: f64, expected: &Value, what: impl std::fmt::Debug) {
    let expected = expected.as_f64().unwrap();
    assert!((got - expected).abs() <= 1e-9, "{got} is not {expected}: {what:?}");
}

#[test]
fn rouge_is_that_of_rouge_score() {
    let kinds = [
        ("rouge1", RougeKind::ONE),
        ("rouge2", RougeKind::TWO),
        ("rouge3", RougeKind::N(3.try_into().unwrap())),
        ("rougeL", RougeKind::L),
        ("rougeLsum", RougeKind::Lsum),
    ];
    let rows = fixture("rouge.json");
    assert!(rows.len() > 300);
    for row in &rows {
        for (stem, scores) in [(false, &row["plain"]), (true, &row["stemmed"])] {
            for (name, kind) in kinds {
                let score =
                    Rouge { kind, stem }.score(text(row, "answer"), &texts(row, "references")).unwrap();
                for (got, expected) in
                    [score.precision, score.recall, score.f1].iter().zip(scores[name].as_array().unwrap())
                {
                    near(*got, expected, (name, stem, row));
                }
            }
        }
    }
}

#[test]
fn stems_are_those_of_nltk() {
    let rows = fixture("porter.json");
    assert!(rows.len() > 2000);
    for row in &rows {
        let (word, stem) = (row[0].as_str().unwrap(), row[1].as_str().unwrap());
        assert_eq!(porter_stem(word), stem, "{word}");
    }
}

#[test]
fn a_stem_of_what_is_no_word_is_what_it_was() {
    for word in ["", "a", "é", "日本語ing", "ings\u{301}"] {
        assert_eq!(porter_stem(word), word);
    }
}

#[test]
fn bleu_is_that_of_sacrebleu() {
    let fixture = &fixture("bleu.json")[0];
    let items = fixture["items"].as_array().unwrap();
    assert!(items.len() > 300);
    let (mixed, lower) = (Bleu::default(), Bleu { lowercase: true });
    for row in items {
        let (answer, references) = (text(row, "answer"), texts(row, "references"));
        assert_eq!(mixed.tokens(answer), texts(row, "tokens"), "{answer:?}");
        let hundredth = |key: &str| json!(row[key].as_f64().unwrap() / 100.0);
        near(mixed.sentence(answer, &references).unwrap(), &hundredth("sentence"), row);
        near(lower.sentence(answer, &references).unwrap(), &hundredth("sentence_lower"), row);
        let counts = mixed.counts(answer, &references).unwrap();
        near(counts.score(), &hundredth("sentence_all_orders"), row);
    }
    for corpus in fixture["corpora"].as_array().unwrap() {
        let [begin, end] = ["begin", "end"].map(|key| corpus[key].as_u64().unwrap() as usize);
        let bleu = if corpus["lower"] == true { lower } else { mixed };
        let counts: BleuCounts = items[begin..end]
            .iter()
            .map(|row| bleu.counts(text(row, "answer"), &texts(row, "references")).unwrap())
            .sum();
        assert_eq!(json!(counts.correct), corpus["counts"]);
        assert_eq!(json!(counts.total), corpus["totals"]);
        assert_eq!(
            json!([counts.answer_len, counts.reference_len]),
            json!([corpus["sys_len"], corpus["ref_len"]])
        );
        near(counts.brevity_penalty(), &corpus["bp"], corpus);
        near(counts.score(), &json!(corpus["score"].as_f64().unwrap() / 100.0), corpus);
    }
}

#[test]
fn f1_and_its_normalization_are_those_of_squad() {
    let rows = fixture("squad.json");
    assert!(rows.len() > 300);
    for row in &rows {
        let (answer, references) = (text(row, "answer"), texts(row, "references"));
        assert_eq!(squad_normalized(answer), text(row, "normalized"), "{answer:?}");
        near(TokenF1.score(answer, &references).unwrap(), &row["f1"], row);
        let is_equal = references.iter().any(|one| squad_normalized(one) == squad_normalized(answer));
        assert_eq!(json!(u8::from(is_equal)), row["exact"], "{row}");
    }
}

#[test]
fn exact_match_is_that_of_lm_evaluation_harness() {
    let fixture = &fixture("matches.json")[0]["exact"];
    let options: Vec<ExactMatch> = fixture["options"].as_array().unwrap().iter().map(exact_match).collect();
    for row in fixture["rows"].as_array().unwrap() {
        for (option, expected) in options.iter().zip(row["scores"].as_array().unwrap()) {
            let got = option.score(text(row, "answer"), &[text(row, "reference")]).unwrap();
            assert_eq!(Some(got), expected.as_f64(), "{option:?} {row}");
        }
    }
}

fn exact_match(options: &Value) -> ExactMatch {
    let is = |key: &str| options[key] == true;
    let remove = options["regexes_to_ignore"].as_array().into_iter().flatten();
    ExactMatch {
        // Python's \Z is our $.
        remove: remove.map(|one| Pattern::new(&one.as_str().unwrap().replace(r"\Z", "$")).unwrap()).collect(),
        ignore_case: is("ignore_case"),
        ignore_punctuation: is("ignore_punctuation"),
        ignore_numbers: is("ignore_numbers"),
        strip: false,
    }
}

#[test]
fn what_an_expression_finds_is_what_lm_evaluation_harness_filters() {
    let fixture = &fixture("matches.json")[0]["regex"];
    let answers = texts(fixture, "answers");
    for row in fixture["patterns"].as_array().unwrap() {
        let pattern = Pattern::new(text(row, "pattern")).unwrap();
        let select = row["select"].as_i64().unwrap() as isize;
        let metric = PatternMatch { select, ..PatternMatch::first(pattern) };
        for (answer, expected) in answers.iter().zip(texts(row, "got")) {
            assert_eq!(metric.extract(answer).unwrap(), expected, "{:?} {select} {answer:?}", row["pattern"]);
        }
    }
}

#[test]
fn gsm8k_is_that_of_lm_evaluation_harness() {
    let rows = fixture("matches.json")[0]["gsm8k"].as_array().unwrap().clone();
    assert!(rows.len() > 200);
    for row in &rows {
        let answer = text(row, "answer");
        for (metric, key) in
            [(NumberMatch::Strict, "strict-match"), (NumberMatch::Flexible, "flexible-extract")]
        {
            assert_eq!(metric.extract(answer).unwrap(), row[key][0], "{key} {row}");
            let got = metric.score(answer, &[text(row, "reference")]).unwrap();
            assert_eq!(Some(got), row[key][1].as_f64(), "{key} {row}");
        }
    }
}

#[test]
fn numbers_are_compared_by_value() {
    let is = |answer: &str, reference: &str| NumberMatch::Value.score(answer, &[reference]).unwrap() == 1.0;
    for (answer, reference) in [
        ("so it is $1,000.00.", "1000"),
        ("18", "He sells 9 + 9.\n#### 18"),
        ("#### 18 and that's 100% sure", "18.0"),
        ("first 3, then -5", "-5"),
        ("−5", "-5.0"),
        ("-$5", "$-5"),
        ("1e3", "1,000"),
        (".5", "0.50"),
        ("5.", "5"),
        ("007", "7"),
        ("-0", "0"),
        ("3-4", "4"),
        ("x = 1,2", "2"),
        ("€12", "12"),
        ("1234567890123456789012345678901", "1234567890123456789012345678901.0"),
        ("1e99999999999999999999", "#### 1e99999999999999999998"),
    ] {
        assert!(is(answer, reference), "{answer:?} {reference:?}");
    }
    for (answer, reference) in [
        ("none", "0"),
        ("", "0"),
        ("####", "0"),
        ("1234567890123456789012345678901", "1234567890123456789012345678902"),
        ("5", "-5"),
        ("#### 17\nor 18", "18"),
        ("1.05", "1.5"),
        ("٣", "3"),
    ] {
        assert!(!is(answer, reference), "{answer:?} {reference:?}");
    }
    let all = |text: &'static str| Decimal::all(text).map(|(found, _)| found).collect::<Vec<_>>();
    assert_eq!(
        all("1,234,5 x.7 a-3 (-3) $-2.50% 3.4.5 2e 2e5"),
        ["1,234", "5", "7", "3", "-3", "$-2.50", "3.4", "5", "2", "2e5"]
    );
    let none = NumberMatch::Value.score("5", &["5", "five"]);
    assert!(matches!(none, Err(TextError::NoNumber { index: 1, .. })), "{none:?}");
}

#[test]
fn json_is_found_in_what_stands_around_it() {
    for (answer, expected) in [
        (" [1, 2]\n", json!([1, 2])),
        ("7", json!(7)),
        ("null", json!(null)),
        ("Sure! {\"a\": [1, {}]} as you asked, {\"b\": 2}", json!({"a": [1, {}]})),
        ("Here:\n```json\n{\"a\": 1}\n```\nDone.", json!({"a": 1})),
        ("{not this}\n~~~\n[true]\n~~~", json!([true])),
        ("```python\nprint(1)\n```\nthen ```\n3\n```", json!(3)),
        ("```{\"a\": 1}```\n", json!({"a": 1})),
        ("```json {\"a\": 1}```", json!({"a": 1})),
        ("```json\n{\"a\": \"```\"}\n```", json!({"a": "```"})),
        ("```json\n{\"a\": 1}", json!({"a": 1})),
        ("{\"a\": {\"b\": 1}", json!({"b": 1})),
        ("日本 {\"ключ\": \"\\u00e9\"}", json!({"ключ": "é"})),
    ] {
        assert_eq!(first_json(answer), Some(expected), "{answer:?}");
    }
    for answer in
        ["", "there are 3 of them", "true enough", "{", "[1, 2", "```", "~~~\n", "{'a': 1}", "\u{feff}"]
    {
        assert_eq!(first_json(answer), None, "{answer:?}");
    }
}

#[test]
fn json_is_equal_by_value() {
    for (a, b, is) in [
        (r#"{"a": 1, "b": [1.0, "x"]}"#, r#"{"b": [1e0, "x"], "a": 1.0}"#, true),
        ("9007199254740993", "9007199254740992.0", false),
        ("18446744073709551615", "18446744073709551615", true),
        ("-0.0", "0", true),
        ("0.1", "0.10", true),
        ("1e300", "1.0e300", true),
        ("1e300", "1e301", false),
        ("1", "\"1\"", false),
        ("1", "true", false),
        ("[1, 2]", "[2, 1]", false),
        (r#"{"a": null}"#, "{}", false),
    ] {
        let [a, b] = [a, b].map(|text| serde_json::from_str::<Value>(text).unwrap());
        assert_eq!((json_equal(&a, &b), json_equal(&b, &a)), (is, is), "{a} {b}");
    }
}

#[test]
fn fields_of_json_are_scored_by_their_share() {
    let score = |fields: &[&str], answer: &str, reference: &str| {
        let metric = JsonMatch { fields: fields.iter().map(|field| field.to_string()).collect() };
        metric.score(answer, &[reference]).map(|JsonScore { equal, fields }| (equal, fields))
    };
    let reference = r#"{"name": "Ana", "age": 3, "at": {"x/y": [5]}, "note": "whatever"}"#;
    let answer = r#"I think {"age": 3.0, "name": "Bo", "at": {"x/y": [5, 6]}}"#;
    assert_eq!(score(&["name", "age"], answer, reference).unwrap(), (0.0, 0.5));
    assert_eq!(score(&["age", "/at/x~1y/0"], answer, reference).unwrap(), (1.0, 1.0));
    assert_eq!(score(&["age", "/at/x~1y/1", "missing", "note"], answer, reference).unwrap(), (0.0, 0.5));
    assert_eq!(score(&["missing"], "[]", reference).unwrap(), (0.0, 0.0));
    assert_eq!(score(&["age"], "no idea", reference).unwrap(), (0.0, 0.0));
    assert_eq!(score(&[], answer, reference).unwrap(), (0.0, 0.0));
    assert_eq!(score(&[], reference, reference).unwrap(), (1.0, 1.0));
    assert!(matches!(score(&[], "1", "{a}"), Err(TextError::NotJson { index: 0, .. })));
    assert!(matches!(score(&["/a~2"], "1", "1"), Err(TextError::Field { .. })));
}

#[test]
fn pass_at_k_is_the_estimator_of_the_paper() {
    for row in fixture("pass_at_k.json") {
        let [n, c, k] = [0, 1, 2].map(|i| row[i].as_u64().unwrap());
        near(pass_at_k(n, c, k).unwrap(), &row[3], &row);
    }
    for (n, c, k) in [(0, 0, 0), (0, 0, 1), (5, 6, 1), (5, 2, 0), (5, 2, 6), (5, 0, 6)] {
        assert!(matches!(pass_at_k(n, c, k), Err(TextError::Samples { .. })), "{n} {c} {k}");
    }
}

#[test]
fn every_metric_scores_what_equals_its_reference_with_1_and_wants_references() {
    for name in Metric::NAMES {
        let metric = Metric::named(name).unwrap();
        let same = if *name == "json" { "{\"a\": 18}" } else { "a cat sat there\n#### 18" };
        assert!((metric.score(same, &["#### 17 [", same][1..]).unwrap() - 1.0).abs() < 1e-12, "{name}");
        let empty: [&str; 0] = [];
        assert!(matches!(metric.score(same, &empty), Err(TextError::NoReferences)), "{name}");
    }
    let unknown = Metric::named("rouge").unwrap_err().to_string();
    assert!(unknown.starts_with("no metric is called \"rouge\"; known are exact_match, "), "{unknown}");
}

#[test]
fn an_expression_that_tracks_back_without_end_is_an_error() {
    let evil = PatternMatch::first(Pattern::new(r"(?=(a+)+$)(a|aa)+\1b").unwrap());
    let began = Instant::now();
    let error = evil.extract(&"a".repeat(100_000)).unwrap_err();
    assert!(matches!(error, TextError::Search { .. }), "{error}");
    // Long searches that find something are counted, too.
    let slow = Pattern::new(r"(?:(a|aa)+\1b|x)").unwrap();
    let error = slow.remove_from(&format!("{}x", "a".repeat(20)).repeat(1000)).unwrap_err();
    assert!(matches!(error, TextError::Search { .. }), "{error}");
    assert_eq!(slow.remove_from(&format!("{}x", "a".repeat(20)).repeat(10)).unwrap(), "a".repeat(200));
    // Those that a long text just needs are not too many.
    let far = format!("{}1 {}2", "-".repeat(300_000), "-".repeat(300_000));
    let far_apart =
        PatternMatch { select: -1, ..PatternMatch::first(Pattern::new(r"(?<=-)\d(?!\d)").unwrap()) };
    assert_eq!(far_apart.extract(&far).unwrap(), "2");
    let dot = PatternMatch { select: -1, ..PatternMatch::first(Pattern::new("x").unwrap()) };
    let error = dot.extract(&"x".repeat(Pattern::MAX_MATCHES + 1)).unwrap_err().to_string();
    assert!(error.contains("matches more than 100000 times"), "{error}");
    assert!(matches!(Pattern::new("(?<"), Err(TextError::Pattern { .. })));
    assert!(matches!(Pattern::new("(((a{900}){900}){900})"), Err(TextError::Pattern { .. })));
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn no_text_makes_a_metric_fail_or_leave_0_to_1() {
    const PIECES: [&str; 40] = [
        "0", "18", "1,000", ".", ",", "-", "−", "$", "€", "####", "#### ", "e", "E5", "e-", "(", ")", "{",
        "}", "[", "]", "\"", "\\", ":", "a", "the", "cat", "ly", "y", "ing", "é", "日", "\u{301}", "👍🏽", " ",
        "\n", "\u{1c}", "```", "~~~", "null", "&amp;",
    ];
    let mut state = 3u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let mut text = || (0..next(12)).map(|_| PIECES[next(PIECES.len())]).collect::<String>();
    let metrics: Vec<Metric> = Metric::NAMES.iter().map(|name| Metric::named(name).unwrap()).collect();
    for _ in 0..5000 {
        let (answer, reference) = (text(), text());
        for metric in &metrics {
            match metric.score(&answer, &[&reference]) {
                Ok(score) => {
                    assert!((0.0..=1.0).contains(&score), "{metric:?} {answer:?} {reference:?} {score}")
                }
                Err(TextError::NotJson { .. } | TextError::NoNumber { .. }) => {}
                Err(error) => panic!("{metric:?} {answer:?} {reference:?}: {error}"),
            }
        }
        for (written, number) in Decimal::all(&answer) {
            assert_eq!(Decimal::of_answer(written), Some(number), "{answer:?} {written:?}");
        }
    }
}

/// Text of many lines with some repetition, and one without a line's end.
fn long(words: usize, seed: u64, line: usize) -> String {
    let mut state = seed;
    let mut out = String::new();
    for i in 0..words {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        out.push_str(&format!("w{}", (state >> 33) % [3, 50, 5000][i % 3]));
        out.push(if (i + 1) % line == 0 { '\n' } else { ' ' });
    }
    out
}

#[test]
fn hundred_thousand_tokens_take_seconds() {
    let began = Instant::now();
    let (answer, reference) = (long(100_000, 1, 12), long(100_000, 2, 12));
    let [one_line, other_line] = [&answer, &reference].map(|text| text.replace('\n', " "));
    for kind in [RougeKind::ONE, RougeKind::TWO, RougeKind::L] {
        let score = Rouge { kind, stem: true }.score(&answer, &[&reference]).unwrap();
        assert!(score.f1 > 0.0 && score.f1 < 1.0);
    }
    let rouge = Rouge { kind: RougeKind::Lsum, stem: false };
    // A quarter of them is enough here: that is four million pairs of lines.
    assert!(rouge.score(&answer[..answer.len() / 4], &[&reference[..reference.len() / 4]]).unwrap().f1 > 0.0);
    // As one sentence each it is ROUGE-L, whose hits are those of one subsequence.
    let whole = rouge.score(&one_line, &[&other_line]).unwrap();
    assert_eq!(whole, Rouge { kind: RougeKind::L, stem: false }.score(&one_line, &[&other_line]).unwrap());
    for name in ["bleu", "f1", "gsm8k_flexible", "number"] {
        Metric::named(name).unwrap().score(&answer, &[&reference]).unwrap();
    }
    for hostile in ["[".repeat(100_000), "{\"a\":".repeat(20_000), "[\"".repeat(50_000), "[0,".repeat(40_000)]
    {
        assert_eq!(first_json(&hostile), None);
    }
    assert!(porter_stem(&"y".repeat(500_000)).len() > 1);
    assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
}
