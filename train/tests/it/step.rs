//! What a step computes does not depend on how it was computed.

use compute::Precision;
use model::Checkpointing;
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
        let recomputed = curve(&Settings { checkpointing: Checkpointing::Block, ..settings() }, dropout);
        assert_eq!(kept, recomputed);
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
