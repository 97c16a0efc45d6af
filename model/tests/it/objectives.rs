//! Objectives whose derivative by each loss is known only when the losses are: forward, losses, backward with
//! a weight for each target.

use model::memory::{Allocator, Component};
use model::{Adapter, Batch, Parameters};

use crate::common::{fixture, load, training_buffers};

/// Two sequences; all of both are targets.
fn batch() -> Batch {
    let mut batch = Batch::new();
    for ids in [&[1_u32, 5, 9, 33, 7, 60, 2][..], &[1, 8, 41, 3, 90, 17, 55, 4, 99, 2]] {
        let labels: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        batch.push(ids, &labels);
    }
    batch
}

/// The gradient of the losses so weighted, and the losses.
fn gradient(case: &str, weights: &dyn Fn(&[f32]) -> Vec<f32>) -> (Vec<f32>, Vec<f32>) {
    let decoder = load(case);
    let (adapter, _) =
        Adapter::load(&fixture(case).join("adapter"), &decoder.config, None, &decoder.device).unwrap();
    let (run, batch) = (decoder.run(Some(&adapter)), batch());
    let mut buffers = training_buffers(&decoder, &adapter.layout, 0.0, batch.tokens());
    let mut gradients =
        Parameters::zeros(&adapter.layout, Component::Gradients, &mut Allocator::real(&decoder.device));
    let [mut before, mut after] = [(); 2].map(|()| vec![0.0; batch.targets.len()]);
    decoder.forward_to_train(&run, &batch, &mut buffers).unwrap();
    decoder.losses(&run, &batch, &mut buffers, &mut before);
    decoder.backward(&run, &batch, &weights(&before), &mut buffers, &mut after, &mut gradients).unwrap();
    assert_eq!(before, after, "{case}: asking for the losses first changes nothing");
    (gradients.values().f32().to_vec(), after)
}

#[test]
fn the_gradient_is_linear_in_the_weights_of_the_targets() {
    for case in ["llama3", "gemma2", "qwen3-moe"] {
        let (first, losses) =
            gradient(case, &|losses| (0..losses.len()).map(|i| f32::from(u8::from(i < 6))).collect());
        let (second, _) =
            gradient(case, &|losses| (0..losses.len()).map(|i| f32::from(u8::from(i >= 6))).collect());
        // The derivative of `ln(1 + exp(a - b))` for the summed losses `a`, `b` of two sequences: as in
        // preference training.
        let of_both = |losses: &[f32]| {
            let difference = losses[..6].iter().sum::<f32>() - losses[6..].iter().sum::<f32>();
            1.0 / (1.0 + (-difference).exp())
        };
        let (both, _) = gradient(case, &|losses| {
            let slope = of_both(losses);
            (0..losses.len()).map(|i| if i < 6 { slope } else { -slope }).collect()
        });
        let slope = of_both(&losses);
        let largest = first.iter().chain(&second).fold(0.0_f32, |a, v| a.max(v.abs()));
        for ((both, first), second) in both.iter().zip(&first).zip(&second) {
            let want = slope * (first - second);
            assert!((both - want).abs() < 2e-5 * largest, "{case}: {both}, not {want}");
        }
    }
}
