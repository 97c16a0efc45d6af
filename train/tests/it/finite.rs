//! A run whose numbers are no longer finite ends with an error that says what is left, and leaves no result.

use std::path::Path;

use compute::Precision;
use data::Example;
use model::Adapter;
use model::adapter::peft::PeftConfig;
use train::{Outcome, Rule, Saves, Settings, TrainError};

use crate::common::{Told, lora, random_examples, settings, tiny, try_run};

fn with_rate(learning_rate: f64) -> Settings {
    let mut settings = settings();
    settings.schedule.warmup = Some(0.0);
    settings.optimizer.learning_rate = learning_rate;
    settings
}

fn go(settings: &Settings, eval: &[Example], folder: &Path) -> (train::Result<Outcome>, Told) {
    let decoder = tiny(1, Precision::F32);
    try_run(&decoder, lora(&decoder, 0.0), &random_examples(20), eval, settings, folder, None)
}

/// The message of a run that ended so; it left no result.
#[track_caller]
fn ended(outcome: train::Result<Outcome>, folder: &Path) -> String {
    let error = outcome.unwrap_err();
    assert!(matches!(error, TrainError::Ended { .. }), "{error}");
    for name in ["adapter_model.safetensors", "adapter_config.json"] {
        assert!(!folder.join(name).exists(), "a result of a run that diverged: {error}");
    }
    error.to_string()
}

#[test]
fn a_run_that_diverges_before_the_first_checkpoint_promises_none() {
    let out = tempfile::tempdir().unwrap();
    let (outcome, told) = go(&with_rate(1e30), &[], out.path());
    let said = ended(outcome, out.path());
    assert_eq!(told.steps.len(), 1);
    assert!(said.starts_with("step 2: the loss is NaN; lower optimizer.learning_rate"), "{said}");
    assert!(said.ends_with("no checkpoint had been saved yet"), "{said}");
}

#[test]
fn a_run_that_diverges_later_names_the_last_checkpoint_there_is() {
    let out = tempfile::tempdir().unwrap();
    let usual = Settings { max_steps: Some(2), ..with_rate(1e-3) };
    assert_eq!(go(&usual, &[], out.path()).0.unwrap(), Outcome::Finished);
    let longer = Settings { max_steps: Some(5), ..with_rate(1e30) };
    let said = ended(go(&longer, &[], out.path()).0, out.path());
    let checkpoint = out.path().join("checkpoints/step-000002");
    assert!(said.starts_with("step 4: the loss is"), "{said}");
    assert!(
        said.contains(&format!("the last checkpoint, {}, is from before", checkpoint.display())),
        "{said}"
    );
    // One that does not hold what was saved is none to go on from.
    std::fs::write(checkpoint.join("state.json"), "{}").unwrap();
    let said = go(&longer, &[], out.path()).0.unwrap_err().to_string();
    assert!(said.contains("no checkpoint is whole"), "{said}");
}

#[test]
fn what_the_last_step_made_of_the_tensors_is_looked_at_before_it_is_saved() {
    // 1e38: finite values with which nothing can be computed; 1e300: no f32 any more.
    for rate in [1e38, 1e300] {
        let settings = [
            Settings { max_steps: Some(1), ..with_rate(rate) },
            Settings { saves: Saves::EverySteps(1), ..with_rate(rate) },
        ];
        for settings in settings {
            let out = tempfile::tempdir().unwrap();
            let said = ended(go(&settings, &[], out.path()).0, out.path());
            assert!(
                said.starts_with("step 1: ") && said.contains("no checkpoint had been saved yet"),
                "{said}"
            );
            assert_eq!(std::fs::read_dir(out.path().join("checkpoints")).unwrap().count(), 0, "{said}");
        }
    }
}

#[test]
fn an_evaluation_that_is_not_finite_ends_the_run_and_is_never_the_best() {
    let out = tempfile::tempdir().unwrap();
    let settings = Settings { eval_every: Some(1), early_stopping_patience: Some(3), ..with_rate(1e30) };
    let (outcome, told) = go(&settings, &random_examples(3), out.path());
    let said = ended(outcome, out.path());
    assert!(said.starts_with("step 1: the held-out loss is"), "{said}");
    assert_eq!(told.evaluations.iter().map(|e| e.0).collect::<Vec<_>>(), [0]);
    let metrics = std::fs::read_to_string(out.path().join("metrics.jsonl")).unwrap();
    assert!(!metrics.contains("null") && metrics.lines().count() == 2, "{metrics}");
}

#[test]
fn a_gradient_whose_square_is_too_large_for_the_moments_ends_the_run() {
    let decoder = tiny(1, Precision::F32);
    let (adapter, _) = lora(&decoder, 0.0);
    let peft = PeftConfig {
        lora_alpha: 1e26,
        r: 4,
        target_modules: Some(model::adapter::peft::Selection::Expression("all-linear".into())),
        ..PeftConfig::default()
    };
    let resolution = model::adapter::peft::targets::resolve(&peft, &decoder.config).unwrap();
    let mut scaled =
        Adapter::zeros(model::Layout::of_adapter(&resolution, &decoder.config), 0.0, &decoder.device);
    scaled.parameters.values_mut().f32().copy_from_slice(adapter.parameters.values().f32());
    let mut settings = with_rate(1e-3);
    settings.optimizer.max_grad_norm = 0.0;
    let out = tempfile::tempdir().unwrap();
    let (outcome, _) =
        try_run(&decoder, (scaled, peft), &random_examples(20), &[], &settings, out.path(), None);
    let said = ended(outcome, out.path());
    assert!(
        said.starts_with("step 1: the gradient norm is") && said.contains("nothing had been trained"),
        "{said}"
    );
}

#[test]
fn a_result_that_is_what_the_run_began_with_is_told() {
    let unchanged = |settings: Settings, eval: &[Example]| {
        let out = tempfile::tempdir().unwrap();
        let (outcome, told) = go(&settings, eval, out.path());
        assert_eq!(outcome.unwrap(), Outcome::Finished);
        told.unchanged
    };
    let warmed_up = |warmup| {
        let mut settings = Settings { max_steps: Some(1), ..with_rate(1e-3) };
        settings.schedule.warmup = Some(warmup);
        settings
    };
    assert!(unchanged(warmed_up(0.03), &[]), "the only step's rate is 0");
    assert!(!unchanged(warmed_up(0.0), &[]));
    let mut tiny_steps = with_rate(1e-60);
    tiny_steps.optimizer.rule = Rule::Sgd;
    assert!(unchanged(tiny_steps, &[]), "no step is large enough to change a number");
    // Random tokens can be learnt by heart only: under a high rate no evaluation is better than the first.
    let settings = Settings { eval_every: Some(1), early_stopping_patience: Some(2), ..with_rate(3.0) };
    assert!(unchanged(settings, &random_examples(4)[2..]), "the best tensors are the first");
}
