//! The choice of experts against its definition, and the rows sorted by it.

use compute::ops::routing::{self, Load, Routing};
use compute::{DType, Device, Matrix};

use crate::common::{
    DTYPES, assert_close, assert_within, column_mut, dot, gradient, matrix, on_threads, row, wide,
};

/// Tokens, experts, experts a token.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (5, 4, 2), (9, 7, 7), (33, 8, 2), (130, 17, 3), (64, 128, 8)];

/// Probabilities of a row of logits.
fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = logits.iter().map(|l| (l - largest).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|e| e / sum).collect()
}

/// The weights of these experts of every token.
fn weights(logits: &[f64], experts: usize, chosen: &[u32], normalized: bool) -> Vec<f64> {
    let k = chosen.len() * experts / logits.len();
    let rows = logits.chunks(experts).zip(chosen.chunks(k));
    rows.flat_map(|(logits, chosen)| {
        let p = softmax(logits);
        let w: Vec<f64> = chosen.iter().map(|&e| p[e as usize]).collect();
        let sum: f64 = if normalized { w.iter().sum() } else { 1.0 };
        w.into_iter().map(|w| w / sum).collect::<Vec<_>>()
    })
    .collect()
}

fn choose(device: &Device, logits: &Matrix, k: usize, normalized: bool) -> Routing {
    let mut routing = Routing::new(logits.cols(), k, normalized, logits.rows());
    routing::choose(device, logits.as_ref(), &mut routing);
    routing
}

#[test]
fn the_most_probable_experts_are_chosen_with_their_weights() {
    for (tokens, experts, k) in SHAPES {
        for normalized in [false, true] {
            let logits = matrix(tokens, experts, DType::F32, 1);
            let got = on_threads(|device| {
                let routing = choose(device, &logits, k, normalized);
                let chosen = routing.chosen().iter().map(|&e| e as f32).collect();
                vec![chosen, routing.weights().to_vec()]
            });
            let chosen: Vec<u32> = got[0].iter().map(|&e| e as u32).collect();
            for (row, chosen) in wide(&logits).chunks(experts).zip(chosen.chunks(k)) {
                let mut order: Vec<u32> = (0..experts as u32).collect();
                order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
                assert_eq!(chosen, &order[..k]);
            }
            let want = weights(&wide(&logits), experts, &chosen, normalized);
            assert_within(1e-6, &got[1], &want, "weights");
        }
    }
}

#[test]
fn of_equal_experts_the_first_are_chosen() {
    let logits = Matrix::from_f32(1, 6, &[1.0, 3.0, 1.0, 3.0, 3.0, 1.0]);
    assert_eq!(choose(&Device::cpu(1), &logits, 4, true).chosen(), [1, 3, 4, 0]);
}

#[test]
fn the_gradient_of_the_choice_is_that_of_the_weights() {
    for (tokens, experts, k) in SHAPES.into_iter().filter(|(t, e, _)| t * e < 700) {
        for normalized in [false, true] {
            let (logits, dw) = (matrix(tokens, experts, DType::F32, 1), matrix(tokens, k, DType::F32, 2));
            let got = on_threads(|device| {
                let routing = choose(device, &logits, k, normalized);
                let mut dlogits = matrix(tokens, experts, DType::F32, 1);
                routing::choose_backward(
                    device,
                    dlogits.as_mut(),
                    dw.as_ref().reshape(tokens * k, 1),
                    None,
                    &routing,
                );
                vec![dlogits.to_vec()]
            });
            let chosen = choose(&Device::cpu(1), &logits, k, normalized).chosen().to_vec();
            let loss = |logits: &[f64]| dot(&weights(logits, experts, &chosen, normalized), &wide(&dw));
            assert_within(2e-6, &got[0], &gradient(&wide(&logits), loss), "dlogits");
        }
    }
}

/// `E Σ_e f[e] P[e]` over the rows of several layers, with the choices as they are.
fn load_loss(layers: &[Vec<f64>], chosen: &[Vec<u32>], experts: usize) -> f64 {
    let p: Vec<Vec<f64>> = layers.iter().flat_map(|logits| logits.chunks(experts)).map(softmax).collect();
    let rows = p.len() as f64;
    let of_expert = |e: usize| {
        let f = chosen.iter().flatten().filter(|&&c| c as usize == e).count() as f64 / rows;
        f * p.iter().map(|p| p[e]).sum::<f64>() / rows
    };
    experts as f64 * (0..experts).map(of_expert).sum::<f64>()
}

#[test]
fn the_load_of_experts_and_its_gradient_are_those_of_the_definition() {
    for (tokens, experts, k) in SHAPES.into_iter().filter(|(t, e, _)| t * e < 700) {
        // Two layers, the second of other size; the gradient of the first by both of its losses.
        let layers = [matrix(tokens, experts, DType::F32, 1), matrix(tokens + 3, experts, DType::F32, 5)];
        let (dw, scale) = (matrix(tokens, k, DType::F32, 2), 0.75);
        let got = on_threads(|device| {
            let (mut load, mut dp) = (Load::new(experts), vec![0.0; experts]);
            load.clear();
            for logits in &layers {
                routing::load(device, logits.as_ref(), &choose(device, logits, k, true), &mut load);
            }
            load.gradient(scale, &mut dp);
            let mut dlogits = matrix(tokens, experts, DType::F32, 1);
            let routing = choose(device, &layers[0], k, true);
            routing::choose_backward(
                device,
                dlogits.as_mut(),
                dw.as_ref().reshape(tokens * k, 1),
                Some(row(&dp)),
                &routing,
            );
            vec![dlogits.to_vec(), vec![load.loss() as f32]]
        });
        let device = Device::cpu(1);
        let chosen = [0, 1].map(|l| choose(&device, &layers[l], k, true).chosen().to_vec());
        let both = |first: &[f64]| load_loss(&[first.to_vec(), wide(&layers[1])], &chosen, experts);
        let loss =
            |first: &[f64]| dot(&weights(first, experts, &chosen[0], true), &wide(&dw)) + scale * both(first);
        assert_within(1e-6, &got[1], &[both(&wide(&layers[0]))], "loss");
        assert_within(2e-6, &got[0], &gradient(&wide(&layers[0]), loss), "dlogits");
    }
    // Evenly spread, the loss is the number of experts a token.
    let (even, mut load) = (Matrix::zeros(4, 4, DType::F32), Load::new(4));
    routing::load(&Device::cpu(1), even.as_ref(), &choose(&Device::cpu(1), &even, 4, true), &mut load);
    assert_eq!(load.loss(), 4.0);
}

#[test]
fn rows_are_sorted_by_expert_whatever_the_choice() {
    let device = Device::cpu(1);
    let all_to_one = Matrix::from_f32(3, 4, &[0.0, 9.0, 0.0, 5.0].repeat(3));
    let spread = matrix(50, 4, DType::F32, 3);
    for logits in [all_to_one, spread] {
        let (tokens, k) = (logits.rows(), 2);
        let routing = choose(&device, &logits, k, true);
        let x = matrix(tokens, 3, DType::F32, 4);
        let mut sorted = Matrix::zeros(tokens * k, 3, DType::F32);
        routing::gather(&device, sorted.as_mut(), x.as_ref(), &routing);
        let (sorted, x) = (sorted.to_vec(), x.to_vec());
        let mut rows = 0;
        for expert in 0..4 {
            let range = routing.rows_of(expert);
            assert_eq!(range.start, rows);
            rows = range.end;
            let of_expert = |pair: &usize| routing.chosen()[*pair] == expert as u32;
            let tokens: Vec<usize> = (0..tokens * k).filter(of_expert).map(|pair| pair / k).collect();
            let want: Vec<f32> = tokens.iter().flat_map(|t| x[t * 3..][..3].to_vec()).collect();
            assert_eq!(sorted[range.start * 3..range.end * 3], want);
        }
        assert_eq!(rows, tokens * k);
    }
}

#[test]
fn sums_over_experts_are_the_gradients_of_the_rows_by_expert() {
    for (tokens, experts, k) in SHAPES {
        for (dtype, accumulate) in DTYPES.into_iter().flat_map(|d| [false, true].map(|a| (d, a))) {
            let logits = matrix(tokens, experts, DType::F32, 1);
            let rows = matrix(tokens * k, 37, dtype, 2);
            let got = on_threads(|device| {
                let routing = choose(device, &logits, k, true);
                let mut y = matrix(tokens, 37, dtype, 3);
                routing::sum(device, y.as_mut(), accumulate, rows.as_ref(), &routing);
                vec![y.to_vec()]
            });
            // <gather(x), r> = <x, sum(r)> for every x: column by column with unit vectors.
            let routing = choose(&Device::cpu(1), &logits, k, true);
            let numbers: Vec<f32> = (0..tokens).map(|t| t as f32).collect();
            let mut token_of = Matrix::zeros(tokens * k, 1, DType::F32);
            let numbers = Matrix::from_f32(tokens, 1, &numbers);
            routing::gather(&Device::cpu(1), token_of.as_mut(), numbers.as_ref(), &routing);
            let mut want =
                if accumulate { wide(&matrix(tokens, 37, dtype, 3)) } else { vec![0.0; tokens * 37] };
            for (row, token) in wide(&rows).chunks(37).zip(token_of.to_vec()) {
                want[token as usize * 37..][..37].iter_mut().zip(row).for_each(|(y, x)| *y += x);
            }
            assert_close(dtype, &got[0], &want, "sum");
        }
    }
}

#[test]
fn weights_of_rows_and_their_gradients_are_those_of_the_definition() {
    for (tokens, experts, k) in SHAPES {
        for dtype in DTYPES {
            let (logits, width) = (matrix(tokens, experts, DType::F32, 1), 29);
            let (x, dy) = (matrix(tokens * k, width, dtype, 2), matrix(tokens * k, width, dtype, 3));
            let got = on_threads(|device| {
                let routing = choose(device, &logits, k, true);
                let mut y = Matrix::zeros(tokens * k, width, dtype);
                routing::weigh(device, y.as_mut(), x.as_ref(), &routing);
                let (mut dx, mut dw) = (matrix(tokens * k, width, dtype, 3), vec![0.0; tokens * k]);
                routing::weigh_backward(device, dx.as_mut(), x.as_ref(), column_mut(&mut dw), &routing);
                vec![y.to_vec(), dx.to_vec(), dw]
            });
            let routing = choose(&Device::cpu(1), &logits, k, true);
            // The pair of each row: the pairs of an expert stand in their own order.
            let pairs: Vec<usize> = (0..experts)
                .flat_map(|e| (0..tokens * k).filter(move |_| true).map(move |pair| (e, pair)))
                .filter(|&(e, pair)| routing.chosen()[pair] == e as u32)
                .map(|(_, pair)| pair)
                .collect();
            let w: Vec<f64> = pairs.iter().map(|&pair| f64::from(routing.weights()[pair])).collect();
            let weighted = |m: &Matrix| -> Vec<f64> {
                wide(m).chunks(width).zip(&w).flat_map(|(row, w)| row.iter().map(move |x| w * x)).collect()
            };
            assert_close(dtype, &got[0], &weighted(&x), "weighted");
            assert_close(dtype, &got[1], &weighted(&dy), "dx");
            let mut dw = vec![0.0; tokens * k];
            for ((x, dy), pair) in wide(&x).chunks(width).zip(wide(&dy).chunks(width)).zip(&pairs) {
                dw[*pair] = dot(x, dy);
            }
            assert_within(1e-5, &got[2], &dw, "dweights");
        }
    }
}
