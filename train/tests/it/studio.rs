//! Models that are trained a request at a time: objectives against their formulas, requests together against
//! requests alone, checkpoints, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use compute::Precision;
use compute::random::{below, key, uniform};
use train::{
    ModelSettings, Objective, Passed, Sequence, StepSettings, Studio, StudioError, StudioExtent, Work,
};

use crate::common::tiny;

const VOCABULARY: u64 = 67;
const ALL: [Objective; 5] = [
    Objective::CrossEntropy,
    Objective::ImportanceSampling,
    Objective::Ppo { clip: [0.8, 1.2] },
    Objective::Cispo { clip: [0.7, 1.4] },
    Objective::Dro { beta: 0.3 },
];

fn studio_of(tokens: usize, memory: u64) -> Studio {
    let extent = StudioExtent { tokens, max_rank: 8, memory };
    Studio::new(Arc::new(tiny(2, Precision::F32)), "tiny", extent).unwrap()
}

fn studio() -> Studio {
    studio_of(64, 1 << 30)
}

fn of_rank(rank: usize) -> ModelSettings {
    ModelSettings { rank, seed: rank as u64, attention: true, mlp: true, head: true }
}

const STEP: StepSettings =
    StepSettings { learning_rate: 0.01, betas: [0.9, 0.95], eps: 1e-12, weight_decay: 0.0, clip: 0.0 };

/// Random examples with all that any objective asks for.
fn examples(seed: u64, count: u64) -> Vec<Sequence> {
    let example = |i: u64| {
        let draw = |n: u64, bound: u64| below(key(seed, i), n, bound);
        let length = 2 + draw(0, 20);
        let tokens = |from: u64| (0..length).map(|n| draw(from + n, VOCABULARY) as u32).collect::<Vec<_>>();
        let numbers = |from: u64, low: f64, high: f64| {
            (0..length).map(|n| (low + (high - low) * uniform(key(seed, i), from + n)) as f32).collect()
        };
        Sequence {
            ids: tokens(100),
            targets: tokens(200),
            weights: numbers(300, 0.0, 1.0),
            sampled: numbers(400, -5.0, -3.0),
            advantages: numbers(500, -1.0, 1.0),
        }
    };
    (0..count).map(example).collect()
}

fn work(model: &str, examples: Vec<Sequence>, objective: Objective) -> Work {
    // Of a policy's fields cross entropy has none.
    let plain = |example| Sequence { sampled: Vec::new(), advantages: Vec::new(), ..example };
    let examples = match objective.is_of_policy() {
        true => examples,
        false => examples.into_iter().map(plain).collect(),
    };
    Work { model: model.into(), examples, objective, backward: true }
}

fn alone(studio: &mut Studio, work: Work) -> Result<Passed, StudioError> {
    studio.pass(vec![work]).pop().unwrap()
}

/// All files of a saved model.
fn saved(studio: &mut Studio, model: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep").join("saved");
    studio.save(model, &path, true).unwrap();
    files(&path)
}

fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(path).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// The losses of the formulas, written once more.
fn formula(objective: Objective, p: f64, q: f64, a: f64) -> f64 {
    let r = p.exp() / q.exp();
    match objective {
        Objective::CrossEntropy => -p,
        Objective::ImportanceSampling => -r * a,
        Objective::Ppo { clip: [low, high] } => -f64::min(r * a, r.max(low).min(high) * a),
        // The factor is held fixed by whoever differentiates.
        Objective::Cispo { clip: [low, high] } => -r.max(low).min(high) * p * a,
        Objective::Dro { beta } => -(p * a) + beta / 2.0 * (p - q).powi(2),
    }
}

#[test]
fn objectives_are_their_formulas_and_derivatives_their_differences() {
    let mut clipped = 0;
    for objective in ALL {
        for i in 0..400 {
            let draw = |n: u64, low: f64, high: f64| low + (high - low) * uniform(key(9, i), n);
            let (q, a) = (draw(0, -4.0, -0.1), draw(1, -2.0, 2.0));
            let p = q + draw(2, -0.6, 0.6);
            let (loss, derivative) = objective.of_token(p, q, a);
            let expected = formula(objective, p, q, a);
            assert!((loss - expected).abs() < 1e-12, "{objective:?}: {loss} and {expected}");
            let h = 1e-6;
            let ratio = (p - q).exp();
            let difference = match objective {
                Objective::Cispo { clip: [low, high] } => -ratio.clamp(low, high) * a,
                _ => (formula(objective, p + h, q, a) - formula(objective, p - h, q, a)) / (2.0 * h),
            };
            let at_kink =
                matches!(objective, Objective::Ppo { clip } if clip.iter().any(|c| (ratio - c).abs() < 1e-5));
            assert!(at_kink || (derivative - difference).abs() < 1e-7, "{objective:?} at {p}, {q}, {a}");
            clipped += usize::from(matches!(objective, Objective::Ppo { .. }) && derivative == 0.0);
        }
    }
    assert!(clipped > 50, "{clipped} of PPO's were clipped");
}

#[test]
fn models_together_come_to_the_bytes_of_each_alone() {
    let (mut together, mut one_by_one) = (studio(), studio());
    let names: Vec<String> = (0..ALL.len()).map(|i| format!("m{i}")).collect();
    let only = ModelSettings { attention: false, mlp: true, head: false, ..of_rank(3) };
    for (i, name) in names.iter().enumerate() {
        let settings = if i == 2 { only } else { of_rank(i + 1) };
        together.create(name, settings).unwrap();
        one_by_one.create(name, settings).unwrap();
    }
    for round in 0..3 {
        // More than a pass has room for, and of some models more than one micro-batch.
        let works: Vec<Work> = names
            .iter()
            .zip(ALL)
            .zip([3, 9, 2, 6, 1])
            .map(|((name, objective), count)| work(name, examples(10 * round + count, count), objective))
            .map(|work| Work { backward: round != 1 || work.model != "m3", ..work })
            .collect();
        let passed = together.pass(works.clone());
        for (passed, work) in passed.into_iter().zip(works) {
            let (passed, own) = (passed.unwrap(), alone(&mut one_by_one, work).unwrap());
            assert_eq!(passed.loss.to_bits(), own.loss.to_bits());
            assert_eq!(passed, own);
        }
        for name in &names {
            assert_eq!(together.step(name, STEP).unwrap(), one_by_one.step(name, STEP).unwrap());
        }
    }
    for name in &names {
        assert!(saved(&mut together, name) == saved(&mut one_by_one, name), "{name}");
    }
}

#[test]
fn the_loss_is_a_weighted_sum_and_gradients_add_up_until_a_step() {
    let mut studio = studio();
    for name in ["once", "twice", "whole"] {
        studio.create(name, of_rank(4)).unwrap();
    }
    let all = examples(1, 2);
    let passed = alone(&mut studio, work("whole", all.clone(), Objective::CrossEntropy)).unwrap();
    let sum: f64 = passed
        .logprobs
        .iter()
        .zip(&all)
        .flat_map(|(logprobs, example)| logprobs.iter().zip(&example.weights))
        .map(|(p, w)| -f64::from(*p) * f64::from(*w))
        .sum();
    assert!((passed.loss - sum).abs() < 1e-9, "{} and {sum}", passed.loss);
    for example in &all {
        alone(&mut studio, work("twice", vec![example.clone()], Objective::CrossEntropy)).unwrap();
    }
    alone(&mut studio, work("once", vec![all[0].clone()], Objective::CrossEntropy)).unwrap();
    let [whole, twice, once] = ["whole", "twice", "once"].map(|name| studio.step(name, STEP).unwrap());
    assert!((whole - twice).abs() < 1e-5 * whole, "{whole} and {twice}");
    assert!((whole - once).abs() > 0.01 * whole, "{whole} and {once}");
    assert_eq!(studio.step("whole", STEP).unwrap(), 0.0, "a step takes the gradients with it");
}

#[test]
fn a_policy_at_its_samples_has_the_gradients_of_weighted_cross_entropy() {
    let mut studio = studio();
    studio.create("policy", of_rank(4)).unwrap();
    studio.create("plain", of_rank(4)).unwrap();
    let mut all = examples(2, 3);
    let forward = Work { backward: false, ..work("policy", all.clone(), Objective::CrossEntropy) };
    let now = alone(&mut studio, forward).unwrap();
    let mut plain = all.clone();
    for ((example, plain), logprobs) in all.iter_mut().zip(&mut plain).zip(now.logprobs) {
        example.sampled = logprobs;
        example.weights.fill(1.0);
        plain.weights.clone_from(&example.advantages);
    }
    let of_policy = alone(&mut studio, work("policy", all, Objective::ImportanceSampling)).unwrap();
    let of_plain = alone(&mut studio, work("plain", plain, Objective::CrossEntropy)).unwrap();
    assert_eq!(of_policy.logprobs, of_plain.logprobs);
    let norms = ["policy", "plain"].map(|name| studio.step(name, STEP).unwrap());
    assert!(norms[0] > 0.0 && norms[0] == norms[1], "{norms:?}");
    assert!(saved(&mut studio, "policy") == saved(&mut studio, "plain"));
}

#[test]
fn losses_fall_and_a_loaded_checkpoint_goes_on_as_if_nothing_had_been() {
    let folder = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (studio(), studio());
    first.create("a", of_rank(4)).unwrap();
    let round = |studio: &mut Studio, name: &str| {
        let passed = alone(studio, work(name, examples(5, 4), Objective::CrossEntropy)).unwrap();
        studio.step(name, STEP).unwrap();
        passed.loss
    };
    let losses: Vec<f64> = (0..8).map(|_| round(&mut first, "a")).collect();
    assert!(losses[7] < 0.8 * losses[0], "{losses:?}");
    let path = folder.path().join("saved");
    first.save("a", &path, true).unwrap();
    second.create("b", ModelSettings { seed: 99, ..of_rank(4) }).unwrap();
    second.load("b", &path, true).unwrap();
    second.create("c", of_rank(4)).unwrap();
    second.load("c", &path, false).unwrap();
    let next = [round(&mut first, "a"), round(&mut second, "b"), round(&mut second, "c")];
    assert!(next[0] == next[1] && next[1] == next[2], "{next:?}");
    assert!(saved(&mut first, "a") == saved(&mut second, "b"));
    assert!(saved(&mut first, "a") != saved(&mut second, "c"), "without moments a step is another one");
    // A turned byte is noticed, and the model stays as it was.
    let file = path.join("adapter_model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let before = saved(&mut second, "b");
    let told = second.load("b", &path, true).unwrap_err().to_string();
    assert!(told.contains("its bytes are not those that were written"), "{told}");
    assert!(before == saved(&mut second, "b"));
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let mut studio = studio_of(16, 150_000);
    let told = |error: StudioError| {
        assert!(error.is_of_request(), "{error}");
        error.to_string()
    };
    assert!(told(studio.create("a", of_rank(0)).unwrap_err()).contains("may be 1 to 8 here, and is 0"));
    assert!(told(studio.create("a", of_rank(9)).unwrap_err()).contains("and is 9"));
    let nothing = ModelSettings { attention: false, mlp: false, head: false, ..of_rank(1) };
    assert!(told(studio.create("a", nothing).unwrap_err()).contains("none of the modules"));
    studio.create("a", of_rank(8)).unwrap();
    let used = studio.used();
    let room = told(studio.create("b", of_rank(8)).unwrap_err());
    assert!(room.contains(&format!("have {used} of 150000 bytes")), "{room}");
    studio.remove("a");
    studio.create("a", of_rank(8)).unwrap();
    assert_eq!(studio.used(), used);

    let good =
        Sequence { ids: vec![1, 2], targets: vec![2, 3], weights: vec![1.0; 2], ..Sequence::default() };
    let of_policy = Sequence { sampled: vec![-1.0; 2], advantages: vec![1.0; 2], ..good.clone() };
    let mut refuse = |example: Sequence, objective, words: &str| {
        let work =
            Work { model: "a".into(), examples: vec![good.clone(), example], objective, backward: true };
        let works = vec![Work { model: "none".into(), ..work.clone() }, work];
        let works = if objective.is_of_policy() { vec![works[1].clone()] } else { works };
        let results = studio.pass(works);
        let told = told(results.into_iter().next_back().unwrap().unwrap_err());
        assert!(told.contains(words), "{told}");
    };
    let ce = Objective::CrossEntropy;
    refuse(Sequence::default(), ce, "example 1: it may have 1 to 16 tokens here, and has 0");
    let long = Sequence { ids: vec![1; 17], targets: vec![1; 17], weights: vec![1.0; 17], ..good.clone() };
    refuse(long, ce, "and has 17");
    refuse(Sequence { targets: vec![2, 67], ..good.clone() }, ce, "no token 67 in a vocabulary of 67");
    refuse(Sequence { ids: vec![u32::MAX, 1], ..good.clone() }, ce, "no token 4294967295");
    refuse(Sequence { targets: vec![2], ..good.clone() }, ce, "2 tokens and 1 targets");
    refuse(Sequence { weights: vec![1.0, f32::NAN], ..good.clone() }, ce, "is NaN");
    let infinite = Sequence { sampled: vec![f32::NEG_INFINITY, 0.0], ..of_policy.clone() };
    let works = vec![Work {
        model: "a".into(),
        examples: vec![infinite],
        objective: Objective::ImportanceSampling,
        backward: true,
    }];
    assert!(told(studio.pass(works).pop().unwrap().unwrap_err()).contains("is -inf"));

    for clip in [[1.2, 0.8], [f64::NAN, 1.0]] {
        let failed =
            alone(&mut studio, work("a", vec![of_policy.clone()], Objective::Ppo { clip })).unwrap_err();
        assert!(told(failed).contains("from low to high"));
    }
    // A ratio beyond all numbers: the request fails, and what had been added up is gone.
    alone(&mut studio, work("a", vec![good.clone()], ce)).unwrap();
    let unlikely = Sequence { sampled: vec![-1e30; 2], ..of_policy };
    let failed = alone(&mut studio, work("a", vec![unlikely], Objective::ImportanceSampling)).unwrap_err();
    assert!(told(failed).contains("the loss of example 0 is -inf"));
    assert_eq!(studio.step("a", STEP).unwrap(), 0.0);
    // A weight of nothing makes nothing of whatever it is.
    let masked =
        Sequence { weights: vec![0.0; 2], sampled: vec![-1e30; 2], advantages: vec![1.0; 2], ..good.clone() };
    assert_eq!(alone(&mut studio, work("a", vec![masked], Objective::ImportanceSampling)).unwrap().loss, 0.0);

    let none = studio.step("none", STEP).unwrap_err();
    assert!(told(none).contains("there is no model `none`"));
    // Weights that are no numbers are not saved.
    alone(&mut studio, work("a", vec![good], ce)).unwrap();
    studio.step("a", StepSettings { learning_rate: f64::MAX, ..STEP }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let told = told(studio.save("a", &folder.path().join("x"), false).unwrap_err());
    assert!(told.contains("no longer finite"), "{told}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
