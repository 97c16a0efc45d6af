//! What frozen layers give for examples that come again is kept: it changes no byte, and these layers are not
//! run again.

use std::fs;
use std::path::Path;

use compute::Precision;
use data::{Dataset, Example};
use model::adapter::init::Init;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Selection};
use model::memory::Component;
use model::{Adapter, Checkpointing, Decoder, FrozenExtent, Keeping, Layout};
use train::{Demand, Outcome, Planned, Settings, StepPlan};

use crate::common::{adapter_bytes, random_examples, run_adapter, settings, tiny};

/// Which part of the tiny model's two layers is trained.
#[derive(Clone, Copy, Debug)]
enum Upper {
    LastLayer,
    Head,
    FinalNorm,
}

fn lora(decoder: &Decoder, upper: Upper) -> (Adapter, PeftConfig) {
    let name = if let Upper::LastLayer = upper { r"model\.layers\.1\..*_proj" } else { "lm_head" };
    let peft = PeftConfig {
        target_modules: Some(Selection::Expression(name.to_owned())),
        modules_to_save: if let Upper::FinalNorm = upper { vec!["norm".to_owned()] } else { Vec::new() },
        lora_dropout: 0.1,
        ..PeftConfig::default()
    };
    let resolution = targets::resolve(&peft, &decoder.config).unwrap();
    let mut adapter = Adapter::zeros(Layout::of_adapter(&resolution, &decoder.config), 0.1, &decoder.device);
    adapter.initialize(Init::Default, 1, decoder);
    (adapter, peft)
}

/// Three epochs in packed rows and several micro-batches, with evaluations.
fn usual() -> Settings {
    let mut settings = Settings { epochs: 3, micro_batch_tokens: 40, eval_every: Some(4), ..settings() };
    settings.order.packing = true;
    settings.order.shuffle = true;
    settings
}

/// A line of metrics as far as it is no time: the step, its loss and gradient norm, the loss of an
/// evaluation.
type Line = (u64, Option<f64>, Option<f64>, Option<f64>);

fn metrics(folder: &Path) -> Vec<Line> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let v: serde_json::Value = serde_json::from_str(line).unwrap();
        let number = |key: &str| v[key].as_f64();
        (v["step"].as_u64().unwrap(), number("loss"), number("grad_norm"), number("eval_loss"))
    };
    text.lines().map(line).collect()
}

fn go(decoder: &Decoder, upper: Upper, settings: &Settings, folder: &Path, stop: Option<u64>) -> Outcome {
    let (train, eval) = (random_examples(24), random_examples(5));
    run_adapter(decoder, lora(decoder, upper), &train, &eval, settings, folder, stop).0
}

/// What a run leaves: the adapter's bytes, and its metrics.
fn result(decoder: &Decoder, upper: Upper, settings: &Settings, stop: Option<u64>) -> (Vec<u8>, Vec<Line>) {
    let out = tempfile::tempdir().unwrap();
    if stop.is_some() {
        assert_eq!(go(decoder, upper, settings, out.path(), stop), Outcome::Interrupted);
    }
    assert_eq!(go(decoder, upper, settings, out.path(), None), Outcome::Finished);
    let files = fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().file_name());
    assert!(!files.into_iter().any(|name| name.to_string_lossy().starts_with('.')), "pages are left");
    (adapter_bytes(out.path()), metrics(out.path()))
}

#[test]
fn what_is_kept_in_memory_or_in_a_file_gives_the_bytes_of_what_is_computed_again() {
    let block = |memory| Checkpointing::Block(Keeping { memory, ..Keeping::default() });
    for precision in [Precision::F32, Precision::Bf16] {
        let decoder = tiny(2, precision);
        for upper in [Upper::LastLayer, Upper::Head, Upper::FinalNorm] {
            let again = result(&decoder, upper, &usual(), None);
            for frozen_activations in [Some(4096), Some(20_000), Some(u64::MAX)] {
                for checkpointing in [Checkpointing::None, block(None), block(Some(4096))] {
                    let settings = Settings { frozen_activations, checkpointing, ..usual() };
                    let kept = result(&decoder, upper, &settings, None);
                    assert!(again == kept, "{precision:?}, {upper:?}, {settings:?}");
                }
            }
        }
    }
}

#[test]
fn a_run_that_goes_on_makes_again_what_was_kept_and_ends_in_the_same_bytes() {
    let decoder = tiny(2, Precision::F32);
    let again = result(&decoder, Upper::LastLayer, &usual(), None);
    let steps = again.1.iter().map(|line| line.0).max().unwrap();
    for stop in 1..steps {
        let settings = Settings { frozen_activations: Some(4096), ..usual() };
        assert!(again == result(&decoder, Upper::LastLayer, &settings, Some(stop)), "stopped after {stop}");
    }
}

/// Examples that stand in a batch of their own without being too few tokens to be kept.
fn long_examples() -> Vec<Example> {
    random_examples(40).into_iter().filter(|example| example.len() > 8).take(12).collect()
}

/// How often attention runs forward in a run. Without held-out examples, a loss is looked at before the
/// result is saved: one example more.
fn attentions(upper: Upper, settings: Settings, eval: &[Example]) -> u64 {
    let (decoder, out) = (tiny(2, Precision::F32), tempfile::tempdir().unwrap());
    decoder.device.profile().start();
    run_adapter(&decoder, lora(&decoder, upper), &long_examples(), eval, &settings, out.path(), None);
    decoder.device.profile().stop().get(&"attention".into()).map_or(0, |total| total.calls)
}

#[test]
fn frozen_layers_run_once_for_each_example() {
    for frozen_activations in [Some(4096), Some(u64::MAX)] {
        let two = Settings { epochs: 2, batch_size: 1, ..settings() };
        let kept = Settings { frozen_activations, ..two.clone() };
        assert_eq!(attentions(Upper::LastLayer, two.clone(), &[]), 2 * (12 + 12) + 2);
        assert_eq!(attentions(Upper::LastLayer, kept.clone(), &[]), 2 * 12 + 12 + 1);
        assert_eq!(attentions(Upper::Head, kept.clone(), &[]), 2 * 12);
        // Seen once, but evaluated three times, all in one batch.
        let once = Settings { epochs: 1, eval_every: Some(6), ..kept };
        assert_eq!(attentions(Upper::LastLayer, once.clone(), &long_examples()), 2 * 12 + 2 + 1 + 1);
        assert_eq!(attentions(Upper::Head, once, &long_examples()), 2 * 12 + 2);
    }
}

#[test]
fn what_was_kept_serves_in_other_batches() {
    let shuffled = |frozen_activations| {
        let mut settings = Settings { epochs: 2, frozen_activations, ..settings() };
        settings.order.shuffle = true;
        attentions(Upper::LastLayer, settings, &[])
    };
    assert_eq!((shuffled(None), shuffled(Some(4096))), (2 * (3 + 3) + 2, 2 * 3 + 3 + 1));
}

#[test]
fn only_examples_that_come_again_are_kept() {
    let train = Dataset::of_examples(random_examples(10));
    let (eval, order) = (random_examples(2), settings().order);
    let lengths: Vec<usize> = train.examples.iter().map(Example::len).collect();
    let repeated = |epochs, max_steps, eval: &[Example]| {
        StepPlan::new(&train, order, 4, epochs, max_steps).repeated(eval)
    };
    assert_eq!(repeated(1, None, &[]), [0; 10]);
    assert_eq!(repeated(2, Some(3), &[]), [0; 10], "the second epoch never begins");
    assert_eq!(repeated(2, None, &[]), lengths);
    assert_eq!(repeated(9, Some(4), &[]), [&lengths[..4], &[0; 6]].concat(), "a step of the second epoch");
    assert_eq!(repeated(1, None, &eval), [&[0; 10][..], &lengths[..2]].concat());
}

#[test]
fn the_plan_counts_what_is_kept() {
    let decoder = tiny(2, Precision::F32);
    let (adapter, _) = lora(&decoder, Upper::LastLayer);
    let extent =
        Demand { longest: 8, step: 8, total: 8, compared: 0 }.extent(8, Checkpointing::None, Precision::F32);
    let bytes = |memory| {
        let frozen = Some(FrozenExtent { lengths: &[100, 0, 60], memory });
        let run = Planned { layout: &adapter.layout, dropout: 0.1, optimizer: settings().optimizer };
        let plan = train::memory_plan(&decoder.config, &[run], extent, frozen);
        plan.bytes(Component::FrozenActivations)
    };
    assert_eq!(bytes(u64::MAX), 160 * 24 * 4);
    assert_eq!(bytes(4096), 4096);
}
