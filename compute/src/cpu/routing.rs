//! Experts on the host: choices and sums are by token, rows by expert.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, LANES, by_dtype, exp, fold, max, multiversion};
use crate::ops::routing::Routing;
use crate::{MatrixMut, MatrixRef};

/// What an element costs in units of an addition: its exponential, and the search for the largest.
const COST: usize = 10;

pub(crate) fn choose(cpu: &Cpu, logits: MatrixRef<'_>, routing: &mut Routing) {
    let (tokens, experts) = (logits.rows(), logits.cols());
    let logits = logits.f32();
    let Routing { per_token, normalized, chosen, weights, .. } = routing;
    let (k, normalized) = (*per_token, *normalized);
    if k == 0 || tokens == 0 {
        return;
    }
    let out = (RowsMut::new(chosen, tokens), RowsMut::new(weights, tokens));
    cpu.for_rows(COST * experts, out, |range, (chosen, weights)| {
        let mut p = vec![0.0; experts];
        let rows = chosen.chunks_exact_mut(k).zip(weights.chunks_exact_mut(k)).zip(range);
        for ((chosen, weights), token) in rows {
            softmax(&logits[token * experts..][..experts], &mut p);
            largest(&p, chosen);
            for (weight, &expert) in weights.iter_mut().zip(&*chosen) {
                *weight = p[expert as usize];
            }
            if normalized {
                let sum: f32 = weights.iter().sum();
                weights.iter_mut().for_each(|weight| *weight /= sum);
            }
        }
    });
}

/// Token by token on one thread: next to the experts' products it is nothing.
pub(crate) fn load(logits: MatrixRef<'_>, probability: &mut [f64]) {
    let mut p = vec![0.0; probability.len()];
    for row in logits.f32().chunks_exact(p.len().max(1)) {
        softmax(row, &mut p);
        probability.iter_mut().zip(&p).for_each(|(sum, &p)| *sum += f64::from(p));
    }
}

pub(crate) fn choose_backward(
    cpu: &Cpu,
    logits: MatrixMut<'_>,
    dweights: &[f32],
    dp: &[f32],
    routing: &Routing,
) {
    let (tokens, experts) = (logits.rows(), logits.cols());
    let k = routing.per_token;
    cpu.for_rows(COST * experts, RowsMut::new(logits.f32(), tokens), |range, logits| {
        let mut p = vec![0.0; experts];
        for (row, token) in logits.chunks_exact_mut(experts).zip(range) {
            softmax(row, &mut p);
            let pairs = token * k..(token + 1) * k;
            let (chosen, weights) = (&routing.chosen[pairs.clone()], &routing.weights[pairs.clone()]);
            let dweights = &dweights[pairs];
            let along: f32 = dweights.iter().zip(weights).map(|(d, w)| d * w).sum();
            let total: f32 = chosen.iter().map(|&expert| p[expert as usize]).sum();
            let pull = |d: f32| if routing.normalized { (d - along) / total } else { d };
            let pairs = || chosen.iter().zip(dweights).map(|(&expert, &d)| (expert as usize, pull(d)));
            let of_all: f32 = dp.iter().zip(&p).map(|(d, p)| d * p).sum();
            let common: f32 = of_all + pairs().map(|(expert, q)| q * p[expert]).sum::<f32>();
            row.iter_mut().zip(&p).for_each(|(d, p)| *d = -p * common);
            row.iter_mut().zip(&p).zip(dp).for_each(|((d, p), dp)| *d += p * dp);
            pairs().for_each(|(expert, q)| row[expert] += p[expert] * q);
        }
    });
}

fn softmax(logits: &[f32], p: &mut [f32]) {
    let largest = max(logits);
    let mut sum = 0.0;
    for (p, logit) in p.iter_mut().zip(logits) {
        *p = exp(logit - largest);
        sum += *p;
    }
    p.iter_mut().for_each(|p| *p /= sum);
}

/// The numbers of the largest elements, largest first, the lower number first where two are equal.
fn largest(p: &[f32], chosen: &mut [u32]) {
    let mut found = 0;
    for (expert, &value) in p.iter().enumerate() {
        let place = chosen[..found].iter().position(|&other| value > p[other as usize]).unwrap_or(found);
        if place < chosen.len() {
            found = (found + 1).min(chosen.len());
            chosen[place..found].rotate_right(1);
            chosen[place] = expert as u32;
        }
    }
}

pub(crate) fn gather(cpu: &Cpu, y: MatrixMut<'_>, x: MatrixRef<'_>, routing: &Routing) {
    let (rows, width) = (y.rows(), y.cols());
    by_dtype!(y.dtype(), X => {
        let x = X::of(x);
        cpu.for_rows(width, RowsMut::new(X::of_mut(y), rows), |range, y| {
            for (y, row) in y.chunks_exact_mut(width).zip(range) {
                y.copy_from_slice(&x[routing.token(row) * width..][..width]);
            }
        });
    });
}

pub(crate) fn sum(cpu: &Cpu, y: MatrixMut<'_>, accumulate: bool, x: MatrixRef<'_>, routing: &Routing) {
    let (tokens, width, k) = (y.rows(), y.cols(), routing.per_token);
    by_dtype!(y.dtype(), X => {
        let x = X::of(x);
        cpu.for_rows((k + 1) * width, RowsMut::new(X::of_mut(y), tokens), |range, y| {
            let mut total = vec![0.0; width];
            for (y, token) in y.chunks_exact_mut(width).zip(range) {
                total.fill(0.0);
                for &row in &routing.row[token * k..(token + 1) * k] {
                    add(&mut total, &x[row as usize * width..][..width]);
                }
                store(y, accumulate, &total);
            }
        });
    });
}

pub(crate) fn weigh(cpu: &Cpu, y: MatrixMut<'_>, x: MatrixRef<'_>, routing: &Routing) {
    let (rows, width) = (y.rows(), y.cols());
    by_dtype!(y.dtype(), X => {
        let x = X::of(x);
        cpu.for_rows(width, RowsMut::new(X::of_mut(y), rows), |range, y| {
            for (y, row) in y.chunks_exact_mut(width).zip(range) {
                scaled(y, &x[row * width..][..width], routing.weights[routing.pair[row] as usize]);
            }
        });
    });
}

pub(crate) fn weigh_backward(
    cpu: &Cpu,
    dy: MatrixMut<'_>,
    x: MatrixRef<'_>,
    dweights: &mut [f32],
    routing: &Routing,
) {
    let (rows, width) = (dy.rows(), dy.cols());
    let mut by_row = vec![0.0; rows];
    by_dtype!(dy.dtype(), X => {
        let x = X::of(x);
        let out = (RowsMut::new(X::of_mut(dy), rows), RowsMut::new(&mut by_row, rows));
        cpu.for_rows(2 * width, out, |range, (dy, by_row)| {
            for ((dy, dw), row) in dy.chunks_exact_mut(width).zip(by_row).zip(range) {
                *dw = dot(dy, &x[row * width..][..width]);
                scale(dy, routing.weights[routing.pair[row] as usize]);
            }
        });
    });
    for (&pair, dw) in routing.pair.iter().zip(by_row) {
        dweights[pair as usize] = dw;
    }
}

multiversion! {
    fn add<X: Element>(total: &mut [f32], x: &[X]) {
        for (total, x) in total.iter_mut().zip(x) {
            *total += x.load();
        }
    }
}

multiversion! {
    fn store<X: Element>(y: &mut [X], accumulate: bool, total: &[f32]) {
        for (y, total) in y.iter_mut().zip(total) {
            *y = X::store(if accumulate { y.load() + total } else { *total });
        }
    }
}

multiversion! {
    fn scaled<X: Element>(y: &mut [X], x: &[X], factor: f32) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = X::store(factor * x.load());
        }
    }
}

multiversion! {
    fn scale<X: Element>(y: &mut [X], factor: f32) {
        for y in y.iter_mut() {
            *y = X::store(factor * y.load());
        }
    }
}

multiversion! {
    fn dot<X: Element>(x: &[X], y: &[X]) -> f32 {
        let mut lanes = [0.0; LANES];
        for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
            for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
                *lane += x.load() * y.load();
            }
        }
        fold(lanes, |a, b| a + b)
    }
}
