//! Tournaments whose results follow from a few lines of arithmetic, other programs' numbers, and ratings in
//! files, whole and damaged.

use std::fs;
use std::path::{Path, PathBuf};

use eval::paired::Bootstrap;
use eval::tournament::{
    Anchor, BradleyTerry, Elo, Judgement, Order, Outcome, Rating, Ratings, RatingsKind, Reading, Tournament,
    TournamentError, Verdict, read_scores, read_verdict,
};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::Value;

const SETTINGS: Bootstrap = Bootstrap { resamples: 1000, level: 0.95, seed: 1 };

fn judgement(question: usize, first: &str, second: &str, verdict: Verdict) -> Judgement {
    Judgement { question: question.to_string(), first: first.to_owned(), second: second.to_owned(), verdict }
}

fn game(question: usize, first: &str, second: &str, points: f64) -> Judgement {
    let outcome = Outcome::ALL.into_iter().find(|outcome| outcome.points() == points);
    judgement(question, first, second, Verdict::Better(outcome.unwrap()))
}

fn rating(ratings: &[Rating], system: &str) -> f64 {
    ratings.iter().find(|rating| rating.system == system).unwrap().rating.value
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ratings")
}

fn fixture() -> Value {
    serde_json::from_str(include_str!("../fixtures/statistics.json")).unwrap()
}

#[test]
fn ratings_in_files_give_the_percentages_that_their_sums_do() {
    let ratings = Ratings::read(&folder()).unwrap();
    let scores = Tournament::new(&ratings.scores).unwrap();
    let percent = scores.percent_of("chat", &SETTINGS).unwrap();
    assert_eq!(percent.iter().map(|p| p.system.as_str()).collect::<Vec<_>>(), ["alpha", "beta"]);
    // Of alpha standing first: 8 + 9 + 9 + 3 over 8 + 8 + 8 + 10; second: 7 + 9 + 8 + 4 over 8 + 9 + 7.5 +
    // 10.
    let (first, second) = (100.0 * 29.0 / 34.0, 100.0 * 28.0 / 34.5);
    assert!((percent[0].standing_first.unwrap().value - first).abs() < 1e-9);
    assert!((percent[0].standing_second.unwrap().value - second).abs() < 1e-9);
    assert!((percent[0].percent.value - (first + second) / 2.0).abs() < 1e-9);
    assert_eq!((percent[0].questions, percent[0].games, percent[1].games), (4, 8, 7));
    // Of beta a reply was not read, so one order has three questions.
    let value = 50.0 * (25.0 / 35.0 + 18.0 / 26.0);
    assert!((percent[1].percent.value - value).abs() < 1e-9);
    assert!(percent[1].percent.low < value && value < percent[1].percent.high);
    let json = serde_json::to_value(&percent).unwrap();
    assert_eq!(json[0]["percent"]["value"], percent[0].percent.value);
}

#[test]
fn a_file_says_how_its_replies_were_read_and_whose_answers_stand_first() {
    let ratings = Ratings::read(&folder()).unwrap();
    let report =
        |name: &str| ratings.files.iter().find(|file| file.path.to_string_lossy().contains(name)).unwrap();
    let alpha = report("relative/alpha");
    assert_eq!(
        (alpha.order, alpha.first.as_str(), alpha.second.as_str()),
        (Order::Reversed, "chat", "alpha")
    );
    assert_eq!(
        alpha.readings.iter().map(|(&r, &n)| (r, n)).collect::<Vec<_>>(),
        [(Reading::AsAsked, 3), (Reading::Labelled, 1)]
    );
    assert_eq!(report("relative/chat-vs-alpha").order, Order::Reversed);
    assert_eq!(report("relative/beta").order, Order::AsNamed);
    // What was recorded of the third reply is not what it says.
    let beta = report("relative/chat-vs-beta");
    assert_eq!((beta.disagreeing.as_slice(), beta.unread[0].line), ([3].as_slice(), 4));
    assert!(beta.unread[0].ending.ends_with("= 8.2  Neither is right."), "{}", beta.unread[0].ending);
    let readings = ratings.readings(RatingsKind::Scores);
    assert_eq!(readings.values().sum::<usize>() + ratings.unread(RatingsKind::Scores), 16);
    assert_eq!((readings[&Reading::Brackets], readings[&Reading::InWords]), (1, 1));
    assert_eq!((ratings.better.len(), ratings.unread(RatingsKind::Better)), (23, 1));
}

#[test]
fn replies_are_read_in_every_shape_that_judges_gave_them() {
    use Reading::{AsAsked, Brackets, InWords, Labelled};
    let solved =
        "The endpoints are (2, 2) and (10, 4).\nAssistant 1:\n3x + 10 = 5(x - 2)\nAssistant 2: 4x = 8\n";
    for (reply, expected) in [
        ("8 7.5\nBecause", Some((AsAsked, [8.0, 7.5]))),
        ("\n  (8, 7)  \nBecause", Some((AsAsked, [8.0, 7.0]))),
        ("Scores:\nAssistant 1: 10\nAssistant 2: 4", Some((Labelled, [10.0, 4.0]))),
        ("Scores: Assistant 1: 8, Assistant 2: 10", Some((Labelled, [8.0, 10.0]))),
        ("Scores: (Assistant 1: 4, Assistant 2: 10)\nSo it is.", Some((Labelled, [4.0, 10.0]))),
        ("Assistant 1: 2/10 - wrong\nAssistant 2: 10/10 (due to steps)", Some((Labelled, [2.0, 10.0]))),
        (
            "Assistant 1: 5\nAssistant 2: 5\nThen again:\nAssistant 1: 6\nAssistant 2: 7",
            Some((Labelled, [6.0, 7.0])),
        ),
        ("Assistant 1: 1\nAssistant 2: 9\n\nOutput: (1, 10)", Some((Brackets, [1.0, 10.0]))),
        ("The output Python tuple is (9, 10). Assistant 2 is better.", Some((Brackets, [9.0, 10.0]))),
        ("So:\n\n(8, 10)\n", Some((Brackets, [8.0, 10.0]))),
        (
            "I would give Assistant 1 a score of 9 out of 10 and Assistant 2 a score of 2.",
            Some((InWords, [9.0, 2.0])),
        ),
        (
            "Assistant 1 receives a score of 1, and Assistant 2 receives a score of 10.",
            Some((InWords, [1.0, 10.0])),
        ),
        ("I give both Assistant 1 and Assistant 2 a score of 10.", Some((InWords, [10.0, 10.0]))),
        ("", None),
        ("80 90", None),
        ("Output: (11, 3)", None),
        ("-1 5", None),
        ("Assistant 1: 10", None),
        ("error", None),
    ] {
        assert_eq!(read_scores(reply), expected, "{reply}");
        // A solution before it, with numbers of its own, changes nothing where scores are not asked for
        // first.
        if !matches!(expected, Some((AsAsked, _))) {
            assert_eq!(read_scores(&format!("{solved}{reply}")), expected, "{reply}");
        }
    }
    for (reply, expected) in [
        ("Both.\n\n1", Some((AsAsked, Outcome::First))),
        ("Both.\n\n 3. \n", Some((AsAsked, Outcome::Tie))),
        ("Therefore, I choose 2.", Some((InWords, Outcome::Second))),
        ("I choose option 3, as both are equivalent.", Some((InWords, Outcome::Tie))),
        ("Assistant A explains more.\n\n[[A]]", Some((Brackets, Outcome::First))),
        (
            "You asked for [[A]], [[B]] or [[C]].\nMy verdict is [[B]], for it is right.",
            Some((Brackets, Outcome::Second)),
        ),
        ("[[ C ]]", Some((Brackets, Outcome::Tie))),
        ("My final verdict is: [[B>>A]]", Some((Brackets, Outcome::Second))),
        ("[[A>B]]\n", Some((Brackets, Outcome::First))),
        ("[[A<B]]", Some((Brackets, Outcome::Second))),
        ("[[A=B]]", Some((Brackets, Outcome::Tie))),
        ("[[A>A]]", None),
        ("[[D]] [A]", None),
        ("I cannot choose between Assistant 1 and Assistant 2.", None),
        ("4", None),
        ("", None),
    ] {
        assert_eq!(read_verdict(reply), expected, "{reply}");
    }
    // Long replies take time in proportion to their length.
    read_scores(&"Assistant 1: 1 (".repeat(20_000));
    read_scores(&"both a score of ".repeat(20_000));
    read_verdict(&"choose ".repeat(50_000));
    read_verdict(&"[[A>".repeat(50_000));
}

#[test]
fn damaged_and_foreign_files_are_refused_with_file_and_line() {
    let refused = |name: &str, text: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), text).unwrap();
        let error = Ratings::read(folder.path()).unwrap_err().to_string();
        error.replace(&format!("{}/", folder.path().display()), "")
    };
    let scores = "a-vs-b-gpt4-reviewer.jsonl";
    let good = r#"{"question_id": 1, "text": "8 7", "score": [8, 7]}"#;
    let after_good = |bad: &str| refused(scores, format!("{good}\n\n{bad}\n").as_bytes());
    assert_eq!(
        after_good(r#"{"question_id": 2}"#),
        "a-vs-b-gpt4-reviewer.jsonl:3: the line is no record of a rating: missing field `text`; it needs \
         `question_id` and `text`"
    );
    assert!(
        after_good(r#"{"question_id": 2, "text": "8 "#)
            .contains(":3: the line is no record of a rating: EOF")
    );
    assert!(after_good(&"[".repeat(100_000)).contains(":3: the line is no record"));
    assert!(
        after_good(r#"{"question_id": 2, "text": "8 7", "score": 1}"#).contains(":3: `score` is one number")
    );
    assert!(after_good(good).contains(":3: question 1 of `a` and `b` in this order was judged in"));
    let long = format!(r#"{{"question_id": 2, "text": "{}"}}"#, "x".repeat(1 << 20));
    assert!(after_good(&long).contains(":3: the line is longer than 1024 KiB"));
    let id = format!(r#"{{"question_id": "{}", "text": "8 7"}}"#, "x".repeat(300));
    assert!(after_good(&id).contains(":3: an id is longer than 256 bytes"));
    assert!(
        refused(scores, b"{\"question_id\": 1, \"text\": \"\xff\"}").contains(":1: the line is not UTF-8")
    );
    let pair = r#"{"question_id": 1, "text": "1", "score": [1, 2]}"#;
    assert!(
        refused("a-vs-b-gpt-4-reviewer-threeclass.jsonl", pair.as_bytes()).contains(":1: `score` is a pair")
    );
    for other in ["notes.jsonl", "a-vs-a-gpt4-reviewer.jsonl", "-vs-b-gpt4-reviewer.jsonl", "a-vs-b.jsonl"] {
        assert!(refused(other, good.as_bytes()).contains("no file in this folder is called"), "{other}");
    }
    assert!(
        Ratings::read(Path::new("/no/such/folder"))
            .unwrap_err()
            .to_string()
            .starts_with("cannot read /no/such")
    );

    // Two files of one pair, of which one has the lines in both orders.
    let folder = tempfile::tempdir().unwrap();
    let line = |q: usize, a: &str, b: &str| {
        format!(r#"{{"question_id": {q}, "text": "8 7", "answer1_id": "{a}{q}", "answer2_id": "{b}{q}"}}"#)
            + "\n"
    };
    let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
    write("a-vs-b-gpt4-reviewer.jsonl", line(1, "a", "b") + &line(2, "b", "a"));
    write("a-vs-c-gpt4-reviewer.jsonl", line(1, "a", "c") + &line(2, "a", "c"));
    let error = Ratings::read(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("`a` stands first in 1 lines and `b` in 1; a file has one order"), "{error}");
    // By the name alone where no id is known from elsewhere.
    fs::remove_file(folder.path().join("a-vs-b-gpt4-reviewer.jsonl")).unwrap();
    let ratings = Ratings::read(folder.path()).unwrap();
    assert_eq!((ratings.files[0].order, ratings.files[0].first.as_str()), (Order::ByNameAlone, "a"));
}

#[test]
fn elo_moves_points_as_its_formula_says_and_ratings_keep_their_sum() {
    // One game: the winner of two equal systems takes half of K.
    let one = Tournament::new(&[game(1, "a", "b", 1.0)]).unwrap();
    let ratings = one.elo(&Elo::default()).unwrap();
    assert_eq!((rating(&ratings, "a"), rating(&ratings, "b")), (1016.0, 984.0));
    // Two: the second win counts for less, in either order of the two.
    let two = Tournament::new(&[game(1, "a", "b", 1.0), game(2, "b", "a", 0.0)]).unwrap();
    let expected = 1016.0 + 32.0 * (1.0 - 1.0 / (1.0 + 10.0_f64.powf(-32.0 / 400.0)));
    assert!((rating(&two.elo(&Elo::default()).unwrap(), "a") - expected).abs() < 1e-9);

    let better = Ratings::read(&folder()).unwrap().better;
    let tournament = Tournament::new(&better).unwrap();
    let ratings = tournament.elo(&Elo::default()).unwrap();
    assert!((ratings.iter().map(|r| r.rating.value).sum::<f64>() - 3000.0).abs() < 1e-6);
    assert!(ratings.iter().all(|r| r.rating.low < r.rating.value && r.rating.value < r.rating.high));
    assert_eq!(ratings, tournament.elo(&Elo::default()).unwrap());
    assert_ne!(ratings, tournament.elo(&Elo { seed: 1, ..Elo::default() }).unwrap());
    assert_eq!(ratings.last().unwrap().system, "beta");
}

#[test]
fn bradley_terrys_strengths_are_those_of_another_optimizer() {
    for case in fixture()["bradley_terry"].as_array().unwrap() {
        let games: Vec<Judgement> = case["games"]
            .as_array()
            .unwrap()
            .iter()
            .enumerate()
            .map(|(question, of)| {
                game(question, &of[0].to_string(), &of[1].to_string(), of[2].as_f64().unwrap())
            })
            .collect();
        let tournament = Tournament::new(&games).unwrap();
        let settings = Bootstrap { resamples: 200, ..SETTINGS };
        let ratings = tournament.bradley_terry(&BradleyTerry::default(), &settings).unwrap();
        for (system, expected) in case["ratings"].as_array().unwrap().iter().enumerate() {
            let (ours, expected) = (rating(&ratings, &system.to_string()), expected.as_f64().unwrap());
            assert!((ours - expected).abs() < 0.01, "system {system}: {ours} instead of {expected}");
        }
        // Another anchor moves all alike.
        let anchor = Anchor::System("2".to_owned(), 500.0);
        let moved =
            tournament.bradley_terry(&BradleyTerry { anchor, ..BradleyTerry::default() }, &settings).unwrap();
        let by = rating(&moved, "0") - rating(&ratings, "0");
        assert!((rating(&moved, "1") - rating(&ratings, "1") - by).abs() < 1e-6);
        let anchored = moved.iter().find(|rating| rating.system == "2").unwrap().rating;
        assert_eq!((anchored.low, anchored.value, anchored.high), (500.0, 500.0, 500.0));
    }
}

#[test]
fn systems_that_never_lost_or_never_met_have_finite_ratings() {
    let mut games: Vec<Judgement> = (0..50).map(|question| game(question, "always", "never", 1.0)).collect();
    games.extend((0..50).map(|question| game(question, "other", "one", 0.5)));
    let tournament = Tournament::new(&games).unwrap();
    let ratings = tournament.bradley_terry(&BradleyTerry::default(), &SETTINGS).unwrap();
    let (always, never) = (rating(&ratings, "always"), rating(&ratings, "never"));
    assert!(always < 2200.0 && never > -200.0 && always - never > 800.0, "{always} {never}");
    assert!((rating(&ratings, "other") - 1000.0).abs() < 1e-6);
    // Thousands of games of it are a finite strength, too.
    let many: Vec<Judgement> = (0..20_000).map(|n| game(n % 100, "always", "never", 1.0)).collect();
    let few = Bootstrap { resamples: 100, ..SETTINGS };
    let ratings = Tournament::new(&many).unwrap().bradley_terry(&BradleyTerry::default(), &few).unwrap();
    assert!(ratings.iter().all(|r| r.rating.low.is_finite() && r.rating.high.is_finite()), "{ratings:?}");
}

#[test]
fn bradley_terrys_intervals_hold_the_true_difference_of_strengths() {
    // Three systems, whose answers to a question are all a little better or worse, in both orders.
    let strengths = [("a", 0.8), ("b", 0.2), ("c", 0.0)];
    let truth = 400.0 / std::f64::consts::LN_10 * 0.8;
    let mut random = Pcg64::seed_from_u64(4);
    let settings = |seed| Bootstrap { resamples: 400, seed, ..SETTINGS };
    let bradley_terry =
        BradleyTerry { anchor: Anchor::System("c".to_owned(), 0.0), ..BradleyTerry::default() };
    let mut held = 0;
    for seed in 0..400 {
        let mut games = Vec::new();
        for question in 0..80 {
            for (i, &(a, of_a)) in strengths.iter().enumerate() {
                for (j, &(b, of_b)) in strengths.iter().enumerate() {
                    if i != j {
                        let chance = 1.0 / (1.0 + f64::exp(of_b - of_a));
                        games.push(game(
                            question,
                            a,
                            b,
                            if random.random::<f64>() < chance { 1.0 } else { 0.0 },
                        ));
                    }
                }
            }
        }
        let ratings =
            Tournament::new(&games).unwrap().bradley_terry(&bradley_terry, &settings(seed)).unwrap();
        let a = ratings.iter().find(|rating| rating.system == "a").unwrap();
        held += u32::from(a.rating.holds(truth));
    }
    println!("{:.1} % of intervals held the true strength", f64::from(held) / 4.0);
    assert!((93.0..=97.0).contains(&(f64::from(held) / 4.0)), "{held} of 400");
}

#[test]
fn rates_are_shares_of_games_and_have_an_open_end_where_a_system_always_won() {
    let tournament = Tournament::new(&Ratings::read(&folder()).unwrap().better).unwrap();
    let rates = tournament.rates(&SETTINGS).unwrap();
    let alpha = &rates[0];
    assert_eq!((alpha.system.as_str(), alpha.opponent.as_deref(), alpha.games), ("alpha", None, 16));
    assert_eq!([alpha.win, alpha.tie, alpha.loss].map(|rate| rate.value * 16.0), [8.0, 4.0, 4.0]);
    let pairs = tournament.pair_rates(&SETTINGS).unwrap();
    assert_eq!(pairs.len(), 3);
    let pair = &pairs[2];
    assert_eq!((pair.system.as_str(), pair.opponent.as_deref(), pair.games), ("beta", Some("chat"), 7));
    assert!((pair.win.value - 1.0 / 7.0).abs() < 1e-12 && pair.tie.value == 0.0);
    // No tie on four questions: up to 1 - 0.025^(1/4) of ties would have gone unseen.
    assert!((pair.tie.high - (1.0 - 0.025_f64.powf(0.25))).abs() < 1e-9, "{:?}", pair.tie);
}

#[test]
fn kappa_is_scikit_learns() {
    let kappa = &fixture()["kappa"];
    let judge = |name: &str| {
        let verdicts = kappa[name].as_array().unwrap().iter().enumerate();
        let points = |verdict: &Value| [1.0, 0.0, 0.5][verdict.as_u64().unwrap() as usize - 1];
        let games: Vec<Judgement> =
            verdicts.map(|(at, verdict)| game(at, "a", "b", points(verdict))).collect();
        games
    };
    let (first, mut second) = (judge("first"), judge("second"));
    second.push(game(0, "b", "a", 1.0));
    let agreement =
        Tournament::new(&first).unwrap().agreement(&Tournament::new(&second).unwrap(), &SETTINGS).unwrap();
    assert_eq!((agreement.games, agreement.unmatched), (120, 1));
    assert!((agreement.share.value * 100.0 - kappa["percent"].as_f64().unwrap()).abs() < 1e-9);
    let ours = agreement.kappa.unwrap();
    assert!(
        (ours.value - kappa["kappa"].as_f64().unwrap()).abs() < 1e-9 && ours.low > 0.2 && ours.high < 0.8
    );
    // Judges who say one word only agree, but not more than by chance.
    let same: Vec<Judgement> = (0..10).map(|question| game(question, "a", "b", 1.0)).collect();
    let same = Tournament::new(&same).unwrap();
    let agreement = same.agreement(&same, &SETTINGS).unwrap();
    assert_eq!((agreement.share.value, agreement.share.high, agreement.kappa), (1.0, 1.0, None));
}

#[test]
fn a_judge_that_favours_the_first_place_is_found_out() {
    // On every question the first place wins in both orders, but for one where `a` does.
    let mut games = Vec::new();
    for question in 0..20 {
        games.push(judgement(question, "a", "b", Verdict::Scores([8.0, 6.0])));
        games.push(judgement(
            question,
            "b",
            "a",
            Verdict::Scores(if question == 0 { [6.0, 7.0] } else { [8.0, 7.0] }),
        ));
    }
    let bias = Tournament::new(&games).unwrap().order_bias(&SETTINGS).unwrap();
    assert_eq!((bias.games, bias.both_orders, bias.first.value), (40, 20, 39.0 / 40.0));
    assert_eq!((bias.contradict.unwrap().value, bias.agree.unwrap().value), (0.95, 0.05));
    assert_eq!(bias.first_less_second.unwrap().value, (20.0 * 2.0 + 19.0 - 1.0) / 40.0);
    assert!(bias.first_of_decided.unwrap().low > 0.5);
    let ties: Vec<Judgement> = (0..5).map(|question| game(question, "a", "b", 0.5)).collect();
    let bias = Tournament::new(&ties).unwrap().order_bias(&SETTINGS).unwrap();
    assert_eq!((bias.first_of_decided, bias.contradict, bias.first_less_second), (None, None, None));
}

#[test]
fn what_is_no_tournament_is_an_error_that_says_why() {
    let message = |error: TournamentError| error.to_string();
    assert_eq!(message(Tournament::new(&[]).unwrap_err()), "there are no judgements");
    assert_eq!(
        message(Tournament::new(&[game(1, "a", "a", 1.0)]).unwrap_err()),
        "judgement 0 (counted from 0) compares `a` with itself"
    );
    let negative = judgement(1, "a", "b", Verdict::Scores([1.0, -1.0]));
    assert_eq!(
        message(Tournament::new(&[game(1, "a", "b", 1.0), negative]).unwrap_err()),
        "judgement 1 (counted from 0) has a score of -1; a score is a number of 0 or more"
    );
    let one = Tournament::new(&[judgement(1, "a", "b", Verdict::Scores([1.0, 0.0]))]).unwrap();
    assert_eq!(
        message(one.percent_of("c", &SETTINGS).unwrap_err()),
        "no system is called `c`; there are a, b"
    );
    assert_eq!(
        message(one.percent_of("a", &SETTINGS).unwrap_err()),
        "b: an interval needs at least two questions, and there are 1"
    );
    let zeros: Vec<_> = (0..3).map(|q| judgement(q, "a", "b", Verdict::Scores([1.0, 0.0]))).collect();
    let zeros = Tournament::new(&zeros).unwrap();
    assert_eq!(
        message(zeros.percent_of("b", &SETTINGS).unwrap_err()),
        "a: the score in percent of the reference's is not defined for these items"
    );
    let games = Tournament::new(&[game(1, "a", "b", 1.0), game(2, "a", "b", 1.0)]).unwrap();
    assert_eq!(
        message(games.percent_of("a", &SETTINGS).unwrap_err()),
        "there are no judgements with scores of `a` and another system"
    );
    let other = Tournament::new(&[game(3, "a", "b", 1.0)]).unwrap();
    assert_eq!(
        message(games.agreement(&other, &SETTINGS).unwrap_err()),
        "there are no judgements that both judges made"
    );
    for settings in [
        Elo { k: 0.0, ..Elo::default() },
        Elo { shuffles: 1, ..Elo::default() },
        Elo { start: f64::NAN, ..Elo::default() },
        Elo { level: 1.0, ..Elo::default() },
    ] {
        assert!(games.elo(&settings).is_err(), "{settings:?}");
    }
    let prior = BradleyTerry { prior: 0.0, ..BradleyTerry::default() };
    assert!(games.bradley_terry(&prior, &SETTINGS).is_err());
    let anchor = BradleyTerry { anchor: Anchor::System("z".to_owned(), 0.0), ..BradleyTerry::default() };
    assert!(games.bradley_terry(&anchor, &SETTINGS).is_err());
}
