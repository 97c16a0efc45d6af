//! AdamW with moments in eight bits: every step is that of bitsandbytes, to the code, and that of its formula
//! in `f64`.

use compute::Device;
use compute::ops::adamw_8bit::{BLOCK, Moments8, adamw_8bit};
use compute::ops::optimizer::AdamW;
use compute::quant::dynamic_map;

use crate::common::{normals, on_threads, row, row_mut};

/// Parameters and state of one tensor.
#[derive(Clone)]
struct Tensor {
    p: Vec<f32>,
    m: Vec<u8>,
    v: Vec<u8>,
    m_absmax: Vec<f32>,
    v_absmax: Vec<f32>,
}

impl Tensor {
    fn new(p: Vec<f32>) -> Self {
        let (n, blocks) = (p.len(), p.len().div_ceil(BLOCK));
        Tensor { p, m: vec![0; n], v: vec![0; n], m_absmax: vec![0.0; blocks], v_absmax: vec![0.0; blocks] }
    }

    fn step(&mut self, device: &Device, grads: &[f32], settings: &AdamW, grad_scale: f32) {
        let n = self.p.len();
        let mut state = vec![0.0; Moments8::words(n)];
        let moments = Moments8::of(&mut state, n);
        moments.m.copy_from_slice(&self.m);
        moments.v.copy_from_slice(&self.v);
        moments.m_absmax.copy_from_slice(&self.m_absmax);
        moments.v_absmax.copy_from_slice(&self.v_absmax);
        let (p, words) = (row_mut(&mut self.p), row_mut(&mut state));
        adamw_8bit(device, p, row(grads), words, settings, grad_scale);
        let Moments8 { m, v, m_absmax, v_absmax } = Moments8::of(&mut state, n);
        (self.m, self.v) = (m.to_vec(), v.to_vec());
        (self.m_absmax, self.v_absmax) = (m_absmax.to_vec(), v_absmax.to_vec());
    }

    /// The moments that the codes stand for.
    fn moments(&self) -> [Vec<f64>; 2] {
        let decode = |codes: &[u8], absmax: &[f32], map: &[f32; 256]| {
            let value = |(i, &c): (usize, &u8)| f64::from(map[usize::from(c)] * absmax[i / BLOCK]);
            codes.iter().enumerate().map(value).collect()
        };
        [
            decode(&self.m, &self.m_absmax, dynamic_map::signed().values()),
            decode(&self.v, &self.v_absmax, dynamic_map::unsigned().values()),
        ]
    }
}

fn settings(step: u64, weight_decay: f64) -> AdamW {
    let learning_rate = 1e-2 / step as f64;
    AdamW { learning_rate, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay, step }
}

/// The little-endian numbers of a file, from the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(n);
        self.0 = rest;
        taken.to_vec()
    }

    fn u32(&mut self) -> usize {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap()) as usize
    }

    fn f32s(&mut self, n: usize) -> Vec<f32> {
        self.bytes(4 * n).as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }
}

/// Gradients, and what stands after the step.
type Step = (Vec<f32>, Tensor);

/// The runs of the fixture: weight decay, the tensor before, and each step.
fn fixture() -> Vec<(f32, Tensor, Vec<Step>)> {
    let bytes = include_bytes!("../fixtures/adamw_8bit.bin");
    let mut from = Reader(bytes);
    let (runs, steps) = (from.u32(), from.u32());
    let mut run = |_| {
        let n = from.u32();
        let blocks = n.div_ceil(BLOCK);
        let weight_decay = from.f32s(1)[0];
        let start = Tensor::new(from.f32s(n));
        let mut step = |_| {
            let grads = from.f32s(n);
            let (p, m, v) = (from.f32s(n), from.bytes(n), from.bytes(n));
            let (m_absmax, v_absmax) = (from.f32s(blocks), from.f32s(blocks));
            (grads, Tensor { p, m, v, m_absmax, v_absmax })
        };
        (weight_decay, start, (0..steps).map(&mut step).collect())
    };
    let runs = (0..runs).map(&mut run).collect();
    assert!(from.0.is_empty());
    runs
}

/// Fails unless codes are equal but for `few` that are next to each other, and numbers to `tolerance` of 1 +
/// their size.
fn assert_same(got: &Tensor, want: &Tensor, few: usize, tolerance: f32, what: &str) {
    for (name, got, want) in [("m", &got.m, &want.m), ("v", &got.v, &want.v)] {
        let apart: Vec<u8> = got.iter().zip(want).map(|(a, b)| a.abs_diff(*b)).filter(|&d| d > 0).collect();
        assert!(
            apart.iter().all(|&d| d == 1) && apart.len() <= few,
            "{what}: codes of {name} {apart:?} apart"
        );
    }
    let close = |got: &[f32], want: &[f32], size: f32, name: &str| {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let off = (got - want).abs();
            assert!(off <= tolerance * (size + want.abs()), "{what}: {name}[{i}] is {got}, not {want}");
        }
    };
    close(&got.p, &want.p, 1.0, "p");
    close(&got.m_absmax, &want.m_absmax, 0.0, "absmax of m");
    close(&got.v_absmax, &want.v_absmax, 0.0, "absmax of v");
}

#[test]
fn each_step_is_that_of_bitsandbytes() {
    for (run, (weight_decay, start, steps)) in fixture().into_iter().enumerate() {
        let mut state = start;
        for (n, (grads, want)) in (1..).zip(steps) {
            state.step(&Device::cpu(1), &grads, &settings(n, f64::from(weight_decay)), 1.0);
            assert_same(&state, &want, 2, 3e-7, &format!("run {run}, step {n}"));
            state = want;
        }
    }
}

#[test]
fn five_steps_in_a_row_are_those_of_bitsandbytes() {
    for (run, (weight_decay, mut state, steps)) in fixture().into_iter().enumerate() {
        for (n, (grads, want)) in (1..).zip(steps) {
            state.step(&Device::cpu(1), &grads, &settings(n, f64::from(weight_decay)), 1.0);
            assert_same(&state, &want, 4, 1e-4, &format!("run {run}, step {n}"));
        }
    }
}

#[test]
fn a_step_is_its_formula_in_f64_and_its_codes_are_the_nearest_to_the_moments() {
    for n in [1, 255, 256, 257, 1000, 4099] {
        let mut state = Tensor::new(normals(n, 1));
        for step in 1..4 {
            let (grads, s) = (normals(n, 10 + step), settings(step, 0.1));
            let [m, v] = state.moments();
            let before = state.p.clone();
            state.step(&Device::cpu(1), &grads, &s, 0.5);
            let [m_after, v_after] = state.moments();
            for i in 0..n {
                let g = 0.5 * f64::from(grads[i]);
                let m = s.beta1 * m[i] + (1.0 - s.beta1) * g;
                let v = s.beta2 * v[i] + (1.0 - s.beta2) * g * g;
                let corrections = [s.beta1, s.beta2].map(|beta| 1.0 - beta.powi(step as i32));
                let update = m / corrections[0] / ((v / corrections[1]).sqrt() + s.eps);
                let p = f64::from(before[i]) * (1.0 - s.learning_rate * s.weight_decay)
                    - s.learning_rate * update;
                assert!((f64::from(state.p[i]) - p).abs() < 1e-6, "{n}: p[{i}]");
                for (value, coded, absmax, map) in [
                    (m, m_after[i], state.m_absmax[i / BLOCK], dynamic_map::signed().values()),
                    (v, v_after[i], state.v_absmax[i / BLOCK], dynamic_map::unsigned().values()),
                ] {
                    let absmax = f64::from(absmax);
                    let nearest = map
                        .iter()
                        .map(|&to| (f64::from(to) * absmax - value).abs())
                        .fold(f64::INFINITY, f64::min);
                    // The grid's spacing is 2 / 65535, so a point is at most half of that off, and the code
                    // chosen for it.
                    let off = (coded - value).abs();
                    assert!(off <= nearest + 2.1 / 65535.0 * absmax, "{n}: {coded} for {value}");
                }
            }
        }
    }
}

#[test]
fn a_block_without_gradients_stays_as_it_is() {
    let mut state = Tensor::new(normals(600, 1));
    let before = state.p.clone();
    let mut grads = normals(600, 2);
    grads[256..512].fill(0.0);
    for step in 1..4 {
        state.step(&Device::cpu(1), &grads, &settings(step, 0.0), 1.0);
    }
    assert_eq!(state.p[256..512], before[256..512]);
    assert_eq!((state.m_absmax[1], state.v_absmax[1]), (0.0, 0.0));
    assert!(state.m[256..512].iter().chain(&state.v[256..512]).all(|&code| code == 0));
}

#[test]
fn steps_have_the_same_bytes_on_any_number_of_threads() {
    let n = 50_001;
    let grads = normals(n, 1);
    on_threads(|device| {
        let mut state = Tensor::new(normals(n, 2));
        state.step(device, &grads, &settings(1, 0.1), 1.0);
        state.step(device, &grads, &settings(2, 0.1), 1.0);
        let codes = state.m.iter().chain(&state.v).map(|&code| f32::from(code)).collect();
        vec![state.p, codes, state.m_absmax, state.v_absmax]
    });
}
