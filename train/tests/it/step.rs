//! What a step computes does not depend on how it was computed.

use compute::Precision;
use model::{Checkpointing, Keeping};
use train::Settings;

use crate::common::{adapter_bytes, random_examples, run, settings, tiny};

/// The losses and gradient norms of a run.
fn curve(settings: &Settings, dropout: f32) -> Vec<(f64, f64)> {
    let out = tempfile::tempdir().unwrap();
    let decoder = tiny(2, Precision::F32);
    let (_, told) = run(&decoder, dropout, &random_examples(24), &[], settings, out.path(), None);
    told.steps.iter().map(|s| (s.loss, s.grad_norm)).collect()
}

fn assert_close(a: &[(f64, f64)], b: &[(f64, f64)]) {
    assert_eq!(a.len(), b.len());
    for ((loss, norm), (other_loss, other_norm)) in a.iter().zip(b) {
        assert!((loss / other_loss - 1.0).abs() < 1e-5, "loss {loss} and {other_loss}");
        assert!((norm / other_norm - 1.0).abs() < 1e-4, "norm {norm} and {other_norm}");
    }
}

#[test]
fn any_split_into_micro_batches_gives_the_same_step() {
    let whole = curve(&settings(), 0.0);
    for micro_batch_tokens in [1, 33, 50, 70] {
        assert_close(&whole, &curve(&Settings { micro_batch_tokens, ..settings() }, 0.0));
    }
}

#[test]
fn recomputed_activations_give_the_bytes_of_kept_ones() {
    for dropout in [0.0, 0.2] {
        let kept = curve(&settings(), dropout);
        let recomputed = curve(
            &Settings { checkpointing: Checkpointing::Block(Keeping::default()), ..settings() },
            dropout,
        );
        assert_eq!(kept, recomputed);
    }
}

#[test]
fn layers_inputs_in_a_file_give_the_bytes_of_those_in_memory() {
    for precision in [Precision::F32, Precision::Bf16] {
        let bytes = |checkpointing| {
            let out = tempfile::tempdir().unwrap();
            let settings = Settings { checkpointing, micro_batch_tokens: 70, ..settings() };
            let (train, eval) = (random_examples(24), random_examples(4));
            run(&tiny(2, precision), 0.1, &train, &eval, &settings, out.path(), None);
            let files = std::fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().file_name());
            assert!(!files.into_iter().any(|name| name.to_string_lossy().starts_with('.')), "pages are left");
            adapter_bytes(out.path())
        };
        let whole = bytes(Checkpointing::None);
        for memory in [None, Some(4096), Some(5000)] {
            assert_eq!(
                whole,
                bytes(Checkpointing::Block(Keeping { memory, ..Keeping::default() })),
                "{memory:?}"
            );
        }
    }
}

#[test]
fn inputs_rounded_to_bf16_change_no_first_loss_and_little_after_it() {
    let rounded = Checkpointing::Block(Keeping { bf16: true, ..Keeping::default() });
    let [exact, rounded] = [Checkpointing::None, rounded]
        .map(|checkpointing| curve(&Settings { checkpointing, ..settings() }, 0.0));
    assert_eq!(exact[0].0, rounded[0].0);
    assert_ne!(exact[0].1, rounded[0].1);
    for ((loss, norm), (other_loss, other_norm)) in exact.iter().zip(&rounded) {
        assert!((other_loss / loss - 1.0).abs() < 1e-3, "loss {loss} and {other_loss}");
        assert!((other_norm / norm - 1.0).abs() < 1e-2, "norm {norm} and {other_norm}");
    }
}

#[test]
fn packed_rows_give_the_step_of_separate_ones() {
    // One step over everything: packing only changes the order in which examples lie in memory.
    let mut one = Settings { batch_size: 1000, ..settings() };
    let separate = curve(&one, 0.0);
    one.order.packing = true;
    assert_close(&separate, &curve(&one, 0.0));
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let bytes = |threads, precision| {
        let out = tempfile::tempdir().unwrap();
        run(&tiny(threads, precision), 0.1, &random_examples(24), &[], &settings(), out.path(), None);
        adapter_bytes(out.path())
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let one = bytes(1, precision);
        assert_eq!(one, bytes(2, precision));
        assert_eq!(one, bytes(5, precision));
    }
}
