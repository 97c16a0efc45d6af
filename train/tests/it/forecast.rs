//! What a run will do is known before it, what is kept of it, and how long it takes is measured without a
//! trace.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use compute::Precision;
use data::Dataset;
use train::{Job, Outcome, Saves, Saving, Settings, StepPlan, Trainer};

use crate::common::{Told, adapter_bytes, lora, random_examples, run, settings, tiny};

fn go(settings: &Settings, folder: &std::path::Path) -> Told {
    let (train, eval) = (random_examples(23), random_examples(4));
    let (outcome, told) = run(&tiny(2, Precision::F32), 0.1, &train, &eval, settings, folder, None);
    assert_eq!(outcome, Outcome::Finished);
    told
}

#[test]
fn steps_tokens_and_evaluations_are_counted_before_they_happen() {
    for (epochs, max_steps, eval_every) in [
        (2, None, Some(3)),
        (2, None, Some(5)),
        (3, None, None),
        (3, Some(7), None),
        (1, Some(4), Some(4)),
        (2, Some(1), None),
    ] {
        let settings = Settings { epochs, max_steps, eval_every, batch_size: 5, ..settings() };
        let out = tempfile::tempdir().unwrap();
        let told = go(&settings, out.path());
        let (train, eval) = (Dataset::of_examples(random_examples(23)), random_examples(4));
        let plan = StepPlan::new(&train, settings.order, 5, epochs, max_steps);
        let steps = plan.steps().min(max_steps.unwrap_or(u64::MAX));
        let amount = plan.amount(steps, (eval_every, &eval), None);
        let case = format!("{epochs} {max_steps:?} {eval_every:?}");
        assert_eq!(amount.steps, told.steps.len() as u64, "{case}");
        assert_eq!(amount.tokens, told.steps.iter().map(|step| step.tokens).sum::<u64>(), "{case}");
        assert_eq!(amount.evaluations, told.evaluations.len() as u64, "{case}");
        let once: usize = train.examples.iter().map(|example| example.len()).sum();
        assert!(
            amount.first_tokens <= once as u64
                && (epochs == 1 || max_steps.is_some() || amount.first_tokens == once as u64)
        );
    }
}

#[test]
fn without_a_number_of_steps_a_run_is_evaluated_after_each_epoch() {
    let settings = Settings { epochs: 3, batch_size: 5, ..settings() };
    let told = go(&settings, tempfile::tempdir().unwrap().path());
    let steps: Vec<u64> = told.evaluations.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [0, 5, 10, 15]);
}

#[test]
fn the_best_evaluation_is_kept_as_an_adapter_and_the_result_is_the_last() {
    let constant = train::Schedule { decay: train::Decay::Constant, warmup: Some(0.0) };
    let usual = Settings { epochs: 3, batch_size: 5, ..settings() };
    let mut settings = Settings { max_steps: Some(10), eval_every: Some(1), schedule: constant, ..usual };
    settings.optimizer.learning_rate = 0.06;
    let out = tempfile::tempdir().unwrap();
    let told = go(&settings, out.path());
    let best = told.evaluations.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    assert!(best > 0 && best < 10, "the first and the last are not the best: {:?}", told.evaluations);
    let kept = out.path().join("checkpoints/best");
    assert!(kept.join("adapter_config.json").exists() && adapter_bytes(&kept) != adapter_bytes(out.path()));
    let until_then = tempfile::tempdir().unwrap();
    go(&Settings { max_steps: Some(best), ..settings }, until_then.path());
    assert_eq!(adapter_bytes(&kept), adapter_bytes(until_then.path()));
}

#[test]
fn checkpoints_come_after_a_time_too_and_change_no_result() {
    let with = |saves| Settings { epochs: 2, batch_size: 5, saves, ..settings() };
    let [often, never] = [Duration::ZERO, Duration::MAX].map(|time| {
        let out = tempfile::tempdir().unwrap();
        (go(&with(Saves::Every(time)), out.path()).saved, adapter_bytes(out.path()))
    });
    assert_eq!((often.0, never.0), (10, 1));
    assert!(often.1 == never.1);
}

#[test]
fn a_rehearsal_measures_every_part() {
    let decoder = tiny(2, Precision::F32);
    let (adapter, peft) = lora(&decoder, 0.1);
    let (train, eval) = (Dataset::of_examples(random_examples(23)), random_examples(4));
    let out = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let settings = Settings { epochs: 2, batch_size: 5, ..settings() };
    let job = Job {
        decoder: &decoder,
        adapter,
        saving: Saving::Adapter(&peft),
        train: &train,
        eval: &eval,
        settings,
        folder: out.path(),
        stop: &stop,
        forgetting: None,
        pause: None,
    };
    let pace = Trainer::open(job).unwrap().rehearse(Duration::from_millis(50)).unwrap();
    let parts = [pace.first, pace.again, pace.update, pace.evaluate[0], pace.evaluate[1]];
    assert!(parts.iter().all(|seconds| *seconds > 0.0 && *seconds < 1.0), "{pace:?}");
}
