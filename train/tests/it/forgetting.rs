//! What a run forgets: the numbers against the base's own losses and logits, the limit, and the same bytes however
//! the run is interrupted.

use std::fs;
use std::path::Path;

use compute::Precision;
use data::Example;
use model::memory::Allocator;
use model::{Activations, Adapter, Batch, Decoder, Extent, Layout, Purpose};
use tempfile::tempdir;
use train::{ForgettingMetrics, History, Outcome, Settings};

use crate::common::{
    Told, adapter_bytes, lora, random_examples, run_adapter, settings, tiny, try_run_measured,
};

/// Steps between two measurements.
const EVERY: u64 = 3;

/// Seven steps of three epochs, with dropout, which measuring must leave out.
fn seven_steps() -> Settings {
    Settings { epochs: 1, batch_size: 3, max_steps: Some(7), ..settings() }
}

fn texts() -> Vec<Example> {
    random_examples(30).split_off(26)
}

fn go(decoder: &Decoder, limit: Option<f64>, folder: &Path, stop_after: Option<u64>) -> (Outcome, Told) {
    let texts = texts();
    let forgetting = train::Forgetting { texts: &texts, every: EVERY, limit };
    let held_out = (&[][..], Some(forgetting));
    let train = random_examples(23);
    let settings = seven_steps();
    let (outcome, told) =
        try_run_measured(decoder, lora(decoder, 0.1), &train, held_out, &settings, folder, stop_after);
    (outcome.unwrap(), told)
}

/// The numbers by the logits of base and adapter, each by itself.
fn definition(decoder: &Decoder, adapter: &Adapter) -> ForgettingMetrics {
    let log_softmax = |layout: &Layout, adapter: Option<&Adapter>, batch: &Batch| -> Vec<Vec<f64>> {
        let (precision, purpose) = (decoder.precision, Purpose::Infer);
        let extent = Extent { tokens: 64, positions: 64, purpose, precision };
        let mut allocator = Allocator::real(&decoder.device);
        let mut buffers = Activations::new(&decoder.config, layout, 0.0, extent, &mut allocator);
        let run = decoder.run(adapter);
        decoder.forward(&run, batch, None, &mut buffers);
        let rows: Vec<usize> = batch.targets.iter().map(|target| target.row).collect();
        let logits = decoder.logits(&run, &rows, &mut buffers).download();
        let normalized = |row: &[f32]| -> Vec<f64> {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            row.iter().map(|x| f64::from(*x) - sum.ln()).collect()
        };
        logits.f32().chunks(decoder.config.vocab_size).map(normalized).collect()
    };
    let (mut kl, mut loss, mut base_loss, mut tokens) = (0.0, 0.0, 0.0, 0);
    for text in texts() {
        let mut batch = Batch::new();
        batch.push(&text.input_ids, &text.labels);
        let base = log_softmax(&Layout::default(), None, &batch);
        let with = log_softmax(&adapter.layout, Some(adapter), &batch);
        for ((p, q), target) in base.iter().zip(&with).zip(&batch.targets) {
            kl += p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            loss -= q[target.token as usize];
            base_loss -= p[target.token as usize];
            tokens += 1;
        }
    }
    let mean = |sum: f64| sum / tokens as f64;
    ForgettingMetrics {
        step: 0,
        forgetting_kl: mean(kl),
        forgetting_loss: mean(loss),
        forgetting_base_loss: mean(base_loss),
        forgetting_tokens: tokens,
    }
}

#[test]
fn what_is_measured_is_the_divergence_from_the_base_on_texts_that_are_not_trained() {
    for (precision, tolerance) in [(Precision::F32, 2e-5), (Precision::Bf16, 2e-2)] {
        let decoder = tiny(2, precision);
        let out = tempdir().unwrap();
        let (outcome, told) = go(&decoder, None, out.path(), None);
        assert_eq!(outcome, Outcome::Finished);
        let steps: Vec<u64> = told.measured.iter().map(|metrics| metrics.step).collect();
        assert_eq!(steps, [3, 6, 7], "every three steps, and in the end");
        assert_eq!(History::read(out.path()).unwrap().forgetting, told.measured);
        let mut adapter = lora(&decoder, 0.1).0;
        let file = out.path().join("adapter_model.safetensors");
        let weights = model::adapter::peft::folder::AdapterFolder::open(out.path(), &decoder.config, None);
        assert!(file.exists());
        adapter.parameters = weights.unwrap().read(&decoder.device).unwrap().parameters;
        let (got, want) = (told.measured.last().unwrap(), definition(&decoder, &adapter));
        let close = |got: f64, want: f64| (got / want - 1.0).abs() < tolerance;
        assert!(close(got.forgetting_kl, want.forgetting_kl), "{got:?}, not {want:?}");
        assert!(close(got.forgetting_loss, want.forgetting_loss), "{got:?}, not {want:?}");
        assert!(close(got.forgetting_base_loss, want.forgetting_base_loss), "{got:?}, not {want:?}");
        assert_eq!(got.forgetting_tokens, want.forgetting_tokens);
        assert!(want.forgetting_kl > 0.01, "there is something to measure: {want:?}");
    }
}

#[test]
fn measuring_changes_no_byte_of_the_result() {
    let decoder = tiny(2, Precision::Bf16);
    let (train, texts) = (random_examples(23), texts());
    let longest = texts.iter().map(Example::len).max().unwrap();
    // Also where the texts need more room than micro-batches, which are cut as they are without them.
    for micro_batch_tokens in [4096, longest] {
        let settings = Settings { micro_batch_tokens, ..seven_steps() };
        let (with, without) = (tempdir().unwrap(), tempdir().unwrap());
        let held_out = (&[][..], Some(train::Forgetting { texts: &texts, every: EVERY, limit: None }));
        let adapter = || lora(&decoder, 0.1);
        let (outcome, _) =
            try_run_measured(&decoder, adapter(), &train, held_out, &settings, with.path(), None);
        assert_eq!(outcome.unwrap(), Outcome::Finished);
        run_adapter(&decoder, adapter(), &train, &[], &settings, without.path(), None);
        assert_eq!(adapter_bytes(with.path()), adapter_bytes(without.path()), "{micro_batch_tokens}");
    }
}

#[test]
fn beyond_the_limit_the_run_ends_with_the_last_adapter_within_it() {
    let decoder = tiny(2, Precision::F32);
    let free = tempdir().unwrap();
    let (_, told) = go(&decoder, None, free.path(), None);
    let [third, sixth, _] = &told.measured[..] else { panic!("{:?}", told.measured) };
    assert!(third.forgetting_kl < sixth.forgetting_kl, "the model forgets more and more");
    let between = (third.forgetting_kl + sixth.forgetting_kl) / 2.0;

    let limited = tempdir().unwrap();
    let (outcome, told) = go(&decoder, Some(between), limited.path(), None);
    assert_eq!((outcome, told.forgot, told.steps.len()), (Outcome::Finished, Some(Some(3)), 6));
    let of_third = tempdir().unwrap();
    go(&decoder, None, of_third.path(), Some(3));
    let saved = fs::read(of_third.path().join("checkpoints/step-000003/adapter_model.safetensors")).unwrap();
    assert_eq!(adapter_bytes(limited.path()), saved);
    let (outcome, _) = go(&decoder, Some(between), limited.path(), None);
    assert_eq!(outcome, Outcome::AlreadyFinished);

    // A limit that nothing is within ends the run at once, and the result is what there is.
    let strict = tempdir().unwrap();
    let (_, told) = go(&decoder, Some(third.forgetting_kl / 2.0), strict.path(), None);
    assert_eq!((told.forgot, told.steps.len()), (Some(None), 3));
    assert_eq!(adapter_bytes(strict.path()), saved);
}

#[test]
fn a_run_that_is_stopped_anywhere_measures_the_same() {
    let decoder = tiny(2, Precision::F32);
    let whole = tempdir().unwrap();
    let (_, told) = go(&decoder, None, whole.path(), None);
    let limit = Some((told.measured[0].forgetting_kl + told.measured[1].forgetting_kl) / 2.0);
    for limit in [None, limit] {
        let whole = tempdir().unwrap();
        go(&decoder, limit, whole.path(), None);
        let wanted = History::read(whole.path()).unwrap().forgetting;
        for stop_after in 1..7 {
            let broken = tempdir().unwrap();
            go(&decoder, limit, broken.path(), Some(stop_after));
            go(&decoder, limit, broken.path(), None);
            assert_eq!(History::read(broken.path()).unwrap().forgetting, wanted, "after step {stop_after}");
            assert_eq!(adapter_bytes(broken.path()), adapter_bytes(whole.path()), "after step {stop_after}");
        }
    }
}
