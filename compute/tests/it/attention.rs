//! Attention against its definition in f64, and that definition's gradient against central differences.

use compute::ops::attention::{Attention, Keys, PAGE, Segment, backward, forward};
use compute::{DType, Device, Matrix, Precision};

use crate::common::cpus;
use proptest::prelude::*;

/// One problem: what kind of attention over which rows, with values for its inputs.
#[derive(Clone, Debug)]
struct Problem {
    attention: Attention,
    segments: Vec<Segment>,
    /// Inputs, row by row: `q [T, H*D]`, `k [S, K*D]`, `v [S, K*D]`, `dout [T, H*D]`.
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    dout: Vec<f64>,
}

/// The rows of keys that do not lie in pages.
fn rows_of_keys(segment: &Segment) -> std::ops::Range<usize> {
    let first = segment.keys.row(0);
    first..first + segment.keys.len()
}

/// Results, row by row; zero on rows outside segments.
#[derive(Debug, PartialEq)]
struct Results {
    out: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

impl Problem {
    /// Sequences packed end to end, `(queries, keys)` each, with random values about as large as a model's.
    fn new(
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        window: Option<usize>,
        lengths: &[(usize, usize)],
    ) -> Self {
        let scale = (head_dim as f32).powf(-0.5);
        let attention = Attention { heads, kv_heads, head_dim, scale, window, cap: None };
        let (mut t, mut s) = (0, 0);
        let segments = lengths.iter().map(|&(queries, keys)| {
            (t, s) = (t + queries, s + keys);
            Segment { queries: t - queries..t, keys: (s - keys..s).into() }
        });
        let segments = segments.collect();
        let mut state = 1 + (t * 31 + s * 7 + heads * 3 + head_dim) as u64;
        let mut values = |n: usize| -> Vec<f64> { (0..n).map(|_| f64::from(normal(&mut state))).collect() };
        let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
        Problem {
            attention,
            segments,
            q: values(t * wide),
            k: values(s * narrow),
            v: values(s * narrow),
            dout: values(t * wide),
        }
    }

    /// The same with capped scores.
    fn capped(mut self, cap: f32) -> Self {
        self.attention.cap = Some(cap);
        self
    }

    /// The same with inputs that `bf16` holds exactly.
    fn rounded(mut self) -> Self {
        for values in [&mut self.q, &mut self.k, &mut self.v, &mut self.dout] {
            values.iter_mut().for_each(|v| *v = compute::bf16::from_f64(*v).to_f64());
        }
        self
    }

    /// Head, query row, key rows that it sees.
    fn visible(&self) -> Vec<(usize, usize, std::ops::Range<usize>)> {
        let mut all = Vec::new();
        for s in &self.segments {
            for (i, t) in s.queries.clone().enumerate() {
                let keys = rows_of_keys(s);
                let past = keys.end - s.queries.len() + i + 1;
                let first =
                    self.attention.window.map_or(keys.start, |w| keys.start.max(past.saturating_sub(w)));
                all.extend((0..self.attention.heads).map(|h| (h, t, first..past)));
            }
        }
        all
    }

    /// Where the values of a head stand in a row of queries and in a row of keys.
    fn at(&self, h: usize, t: usize, j: usize) -> (usize, usize) {
        let Attention { heads, kv_heads, head_dim, .. } = self.attention;
        ((t * heads + h) * head_dim, (j * kv_heads + h / (heads / kv_heads)) * head_dim)
    }

    /// The formulas of the operation's page, one by one; and for each element the sum of the squares of what
    /// is added up to it and was rounded on its way. Roundings are independent, so together they err as the
    /// root of that: an element is small where large terms cancel, its error is not.
    fn definition(&self) -> (Results, Results) {
        let (d, scale) = (self.attention.head_dim, f64::from(self.attention.scale));
        let cap = self.attention.cap.map(f64::from);
        let (t, wide) = (self.q.len() / (self.attention.heads * d), self.q.len());
        let zero = || Results {
            out: vec![0.0; wide],
            lse: vec![0.0; t * self.attention.heads],
            dq: vec![0.0; wide],
            dk: vec![0.0; self.k.len()],
            dv: vec![0.0; self.v.len()],
        };
        let (mut r, mut squares) = (zero(), zero());
        for (h, t, keys) in self.visible() {
            let (q, _) = self.at(h, t, 0);
            let scores: Vec<f64> = keys
                .clone()
                .map(|j| scale * dot(&self.q[q..][..d], &self.k[self.at(h, t, j).1..][..d]))
                .map(|s| cap.map_or(s, |cap| cap * (s / cap).tanh()))
                .collect();
            let lse = scores.iter().map(|s| s.exp()).sum::<f64>().ln();
            r.lse[t * self.attention.heads + h] = lse;
            squares.lse[t * self.attention.heads + h] = 1.0;
            for (j, s) in keys.clone().zip(&scores) {
                let (p, v) = ((s - lse).exp(), &self.v[self.at(h, t, j).1..][..d]);
                add(p, v, &mut r.out[q..][..d]);
                add_squares(p, v, &mut squares.out[q..][..d]);
            }
            let dout = &self.dout[q..][..d];
            let delta = dot(dout, &r.out[q..][..d]);
            // `out` was rounded, and so were the probabilities that made it.
            let out = r.out[q..][..d].iter().zip(&squares.out[q..][..d]);
            let delta_error: f64 = dout.iter().zip(out).map(|(dout, (o, s))| dout * dout * (o * o + s)).sum();
            // The error of `δ` is the same for every key of this query: in `dq` it adds up.
            let mut mean_key = vec![0.0; d];
            for (j, s) in keys.zip(&scores) {
                let (_, k) = self.at(h, t, j);
                let p = (s - lse).exp();
                let slope = scale * cap.map_or(1.0, |cap| 1.0 - (s / cap).powi(2));
                let ds = p * (dot(dout, &self.v[k..][..d]) - delta) * slope;
                let ds_error = (ds * ds + (p * slope).powi(2) * delta_error).sqrt();
                add(p, dout, &mut r.dv[k..][..d]);
                add(ds, &self.q[q..][..d], &mut r.dk[k..][..d]);
                add(ds, &self.k[k..][..d], &mut r.dq[q..][..d]);
                add_squares(p, dout, &mut squares.dv[k..][..d]);
                add_squares(ds_error, &self.q[q..][..d], &mut squares.dk[k..][..d]);
                add_squares(ds, &self.k[k..][..d], &mut squares.dq[q..][..d]);
                add(p, &self.k[k..][..d], &mut mean_key);
            }
            add_squares(scale * delta_error.sqrt(), &mean_key, &mut squares.dq[q..][..d]);
        }
        (r, squares)
    }

    /// What the operation makes of it.
    fn run(&self, threads: usize, precision: Precision) -> Results {
        self.run_on(&Device::cpu(threads), precision, precision.dtype())
    }

    fn run_on(&self, device: &Device, precision: Precision, dtype: DType) -> Results {
        let Attention { heads, kv_heads, head_dim, .. } = self.attention;
        let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
        let [q, dout] = [&self.q, &self.dout].map(|values| matrix(values, wide, dtype));
        let [k, v] = [&self.k, &self.v].map(|values| matrix(values, narrow, dtype));
        let mut out = Matrix::zeros(q.rows(), wide, dtype);
        let mut lse = Matrix::zeros(q.rows(), heads, DType::F32);
        let (a, segments) = (&self.attention, &self.segments[..]);
        let (q, k, v) = (q.as_ref(), k.as_ref(), v.as_ref());
        forward(device, precision, a, segments, q, k, v, out.as_mut(), lse.as_mut());
        let mut dq = Matrix::zeros(q.rows(), wide, dtype);
        let [mut dk, mut dv] = [(); 2].map(|()| Matrix::zeros(k.rows(), narrow, dtype));
        let (o, l, d) = (out.as_ref(), lse.as_ref(), dout.as_ref());
        backward(device, precision, a, segments, q, k, v, o, l, d, dq.as_mut(), dk.as_mut(), dv.as_mut());
        let [out, lse, dq, dk, dv] =
            [out, lse, dq, dk, dv].map(|m| m.to_vec().into_iter().map(f64::from).collect::<Vec<_>>());
        Results { out, lse, dq, dk, dv }
    }

    /// Fails where an element is further from the definition than so many roundings may move it, on any
    /// device.
    fn check(&self, precision: Precision, tolerance: f64) {
        let (want, squares) = self.definition();
        for device in devices() {
            let got = self.run_on(&device, precision, precision.dtype());
            for (name, got, want, squares) in [
                ("out", &got.out, &want.out, &squares.out),
                ("lse", &got.lse, &want.lse, &squares.lse),
                ("dq", &got.dq, &want.dq, &squares.dq),
                ("dk", &got.dk, &want.dk, &squares.dk),
                ("dv", &got.dv, &want.dv, &squares.dv),
            ] {
                for (i, ((g, w), squares)) in got.iter().zip(want).zip(squares).enumerate() {
                    let at =
                        || format!("{name}[{i}] of {:?} {:?} on {device:?}", self.attention, self.segments);
                    let near = tolerance * (w.abs() + squares.sqrt());
                    assert!((g - w).abs() <= near, "{}: {g}, {w} expected, within {near}", at());
                }
            }
        }
    }
}

/// This processor under every instruction set that it has.
fn devices() -> Vec<Device> {
    cpus(2).into_iter().map(Device::Cpu).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(alpha: f64, x: &[f64], y: &mut [f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += alpha * x);
}

fn add_squares(alpha: f64, x: &[f64], y: &mut [f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += (alpha * x).powi(2));
}

fn matrix(values: &[f64], cols: usize, dtype: DType) -> Matrix {
    let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
    Matrix::from_f32(values.len() / cols, cols, &values).to_dtype(dtype)
}

/// The sum of twelve uniform numbers, less six.
fn normal(state: &mut u64) -> f32 {
    let mut uniform = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..12).map(|_| uniform()).sum::<f32>() - 6.0
}

/// `f32` rounds by 2^-25 at most on average; scores are sums of some hundred such terms before `exp` takes
/// them.
const F32: f64 = 5e-5;
/// Roundings to 8 bits err by at most 2^-9 each: six times as much as all of them, added as independent
/// errors are.
const BF16: f64 = 6.0 / 512.0;

#[test]
fn the_definition_has_the_gradient_of_central_differences() {
    let plain = || Problem::new(4, 2, 3, Some(4), &[(5, 5), (2, 6), (1, 1)]);
    has_the_gradient_of_central_differences(plain());
    has_the_gradient_of_central_differences(plain().capped(1.5));
}

fn has_the_gradient_of_central_differences(mut p: Problem) {
    let (want, _) = p.definition();
    let loss = |p: &Problem| dot(&p.dout, &p.definition().0.out);
    let step = 1e-5;
    let inputs: [fn(&mut Problem) -> &mut Vec<f64>; 3] = [|p| &mut p.q, |p| &mut p.k, |p| &mut p.v];
    for (input, gradient) in inputs.into_iter().zip([&want.dq, &want.dk, &want.dv]) {
        for (i, want) in gradient.iter().enumerate() {
            let value = input(&mut p)[i];
            let [up, down] = [step, -step].map(|step| {
                input(&mut p)[i] = value + step;
                loss(&p)
            });
            input(&mut p)[i] = value;
            let slope = (up - down) / (2.0 * step);
            assert!((slope - want).abs() < 1e-8, "element {i}: {want}, slope {slope}");
        }
    }
}

#[test]
fn every_head_size_is_right() {
    for head_dim in [1, 8, 10, 16, 64, 80, 96, 128] {
        let p = Problem::new(4, 2, head_dim, None, &[(70, 70), (3, 3)]);
        p.check(Precision::F32, F32);
        p.rounded().check(Precision::Bf16, BF16);
    }
}

#[test]
fn groups_of_any_size_are_right() {
    for (heads, kv_heads) in [(1, 1), (3, 3), (6, 2), (7, 1), (40, 1), (8, 4)] {
        let p = Problem::new(heads, kv_heads, 8, None, &[(33, 33), (1, 1), (20, 90)]);
        p.check(Precision::F32, F32);
        p.rounded().check(Precision::Bf16, BF16);
    }
}

#[test]
fn sequences_of_many_tiles_are_right() {
    let p = Problem::new(2, 1, 16, None, &[(700, 700), (65, 1100)]);
    p.check(Precision::F32, F32);
    p.rounded().check(Precision::Bf16, BF16);
}

#[test]
fn sequences_longer_than_a_sweep_are_right() {
    // The larger the heads, the fewer keys' gradients fit into scratch at once.
    let p = Problem::new(2, 2, 300, None, &[(500, 500), (10, 450)]);
    p.check(Precision::F32, F32);
    p.rounded().check(Precision::Bf16, BF16);
}

#[test]
fn capped_scores_are_right() {
    for (cap, head_dim) in [(0.5, 8), (1.0, 64), (2.0, 80), (50.0, 256)] {
        for (window, lengths) in
            [(None, &[(70, 70), (3, 3)][..]), (Some(65), &[(300, 300), (30, 400), (1, 300)])]
        {
            let p = Problem::new(4, 2, head_dim, window, lengths).capped(cap);
            p.check(Precision::F32, F32);
            p.rounded().check(Precision::Bf16, BF16);
        }
    }
}

#[test]
fn scores_far_beyond_their_cap_neither_overflow_nor_move_what_is_in_reach() {
    for device in devices() {
        let mut p = Problem::new(2, 1, 16, None, &[(40, 40)]).capped(3.0);
        p.q.iter_mut().for_each(|v| *v *= 1e18);
        p.k.iter_mut().for_each(|v| *v *= 1e18);
        let got = p.run_on(&device, Precision::F32, DType::F32);
        assert!(got.out.iter().chain(&got.lse).chain(&got.dv).all(|v| v.is_finite()));
        // Every score is at its cap, whose slope is zero.
        assert!(got.dq.iter().chain(&got.dk).all(|v| *v == 0.0));
    }
}

#[test]
fn a_window_hides_what_is_older() {
    for window in [1, 2, 63, 64, 65, 200, 5000] {
        let p = Problem::new(2, 1, 16, Some(window), &[(300, 300), (30, 600), (1, 300)]);
        p.check(Precision::F32, F32);
        p.rounded().check(Precision::Bf16, BF16);
    }
    // The last block of queries sees keys from the last of a tile on, up to where the sums of keys end.
    let p = Problem::new(4, 1, 16, Some(2), &[(224, 224)]);
    p.check(Precision::F32, F32);
    p.rounded().check(Precision::Bf16, BF16);
}

#[test]
fn one_query_sees_its_whole_cache() {
    let p = Problem::new(8, 2, 64, None, &[(1, 1), (1, 2000), (1, 65), (1, 64), (1, 63)]);
    p.check(Precision::F32, F32);
    p.rounded().check(Precision::Bf16, BF16);
}

#[test]
fn scores_beyond_the_range_of_exp_do_not_overflow() {
    let mut p = Problem::new(2, 1, 8, None, &[(100, 100)]);
    p.attention.scale = 1.0;
    p.q.iter_mut().for_each(|q| *q *= 40.0);
    let r = p.run(1, Precision::F32);
    for values in [&r.out, &r.lse, &r.dq, &r.dk, &r.dv] {
        assert!(values.iter().all(|v| v.is_finite()));
    }
    // A softmax that sharp is a choice: every output is close to one of the values, never larger than all.
    let largest = p.v.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    assert!(r.out.iter().all(|o| o.abs() <= largest * 1.0001));
}

#[test]
fn half_precision_products_of_f32_inputs_are_close() {
    let p = Problem::new(4, 2, 64, None, &[(100, 100), (9, 80)]).rounded();
    let got = p.run_on(&Device::cpu(2), Precision::Bf16, DType::F32);
    for (g, w) in got.out.iter().zip(&p.definition().0.out) {
        assert!((g - w).abs() <= BF16 * (1.0 + w.abs()), "{g}, {w} expected");
    }
}

#[test]
fn rows_outside_segments_stay_as_they_are() {
    let mut p = Problem::new(2, 1, 8, None, &[(10, 10), (5, 5), (7, 7)]);
    p.segments.remove(1);
    let r = p.run(2, Precision::F32);
    let zero = |values: &[f64], rows: std::ops::Range<usize>, cols: usize| {
        values[rows.start * cols..rows.end * cols].iter().all(|v| *v == 0.0)
    };
    assert!(zero(&r.out, 10..15, 16) && zero(&r.dq, 10..15, 16) && zero(&r.lse, 10..15, 2));
    assert!(zero(&r.dk, 10..15, 8) && zero(&r.dv, 10..15, 8));
    p.check(Precision::F32, F32);
}

#[test]
fn keys_that_no_query_sees_get_a_zero_gradient() {
    for (queries, window) in [(0, None), (3, Some(2)), (1, Some(1))] {
        let p = Problem::new(2, 2, 8, window, &[(queries, 200), (4, 4)]);
        let device = Device::cpu(2);
        let [q, dout] = [&p.q, &p.dout].map(|values| matrix(values, 16, DType::F32));
        let [k, v] = [&p.k, &p.v].map(|values| matrix(values, 16, DType::F32));
        let out = Matrix::zeros(q.rows(), 16, DType::F32);
        let lse = Matrix::zeros(q.rows(), 2, DType::F32);
        let mut dq = Matrix::zeros(q.rows(), 16, DType::F32);
        let [mut dk, mut dv] = [(); 2].map(|()| matrix(&vec![7.0; 204 * 16], 16, DType::F32));
        let (q, k, v) = (q.as_ref(), k.as_ref(), v.as_ref());
        let (o, l, d) = (out.as_ref(), lse.as_ref(), dout.as_ref());
        let (a, s) = (&p.attention, &p.segments[..]);
        backward(&device, Precision::F32, a, s, q, k, v, o, l, d, dq.as_mut(), dk.as_mut(), dv.as_mut());
        assert!(dk.to_vec()[..190 * 16].iter().chain(&dv.to_vec()[..190 * 16]).all(|v| *v == 0.0));
    }
}

#[test]
fn packed_equals_separate_to_the_byte() {
    let lengths = [(20, 20), (130, 130), (1, 1), (64, 64), (600, 600), (3, 200), (1, 77)];
    for precision in [Precision::F32, Precision::Bf16] {
        let packed = Problem::new(4, 2, 16, Some(500), &lengths);
        let results = packed.run(2, precision);
        for s in &packed.segments {
            let (wide, narrow) = (64, 32);
            let wide = s.queries.start * wide..s.queries.end * wide;
            let keys = rows_of_keys(s);
            let narrow = keys.start * narrow..keys.end * narrow;
            let alone = Problem {
                attention: packed.attention.clone(),
                segments: vec![Segment { queries: 0..s.queries.len(), keys: (0..s.keys.len()).into() }],
                q: packed.q[wide.clone()].to_vec(),
                k: packed.k[narrow.clone()].to_vec(),
                v: packed.v[narrow.clone()].to_vec(),
                dout: packed.dout[wide.clone()].to_vec(),
            };
            let alone = alone.run(2, precision);
            assert_eq!(alone.out, results.out[wide.clone()]);
            assert_eq!(alone.lse, results.lse[s.queries.start * 4..s.queries.end * 4]);
            assert_eq!(alone.dq, results.dq[wide]);
            assert_eq!(alone.dk, results.dk[narrow.clone()]);
            assert_eq!(alone.dv, results.dv[narrow]);
        }
    }
}

/// What a query comes to does not depend on how many pass with it, nor on where the keys lie: all at once, in
/// parts, one by one, or with keys in pages that stand in any order beside those of others.
#[test]
fn queries_one_by_one_and_keys_in_pages_change_no_byte() {
    let (heads, kv_heads, d, keys) = (6, 2, 24, 3 * PAGE + 45);
    for (precision, window) in [
        (Precision::F32, None),
        (Precision::Bf16, None),
        (Precision::Bf16, Some(150)),
        (Precision::F32, Some(7)),
    ] {
        let whole = Problem::new(heads, kv_heads, d, window, &[(keys, keys)]);
        let (wide, narrow) = (heads * d, kv_heads * d);
        let [q, k, v] = [(&whole.q, wide), (&whole.k, narrow), (&whole.v, narrow)]
            .map(|(values, cols)| matrix(values, cols, precision.dtype()));
        // Pages 4, 0, 5 and 2 of six; the others and what is behind the last key hold nothing of worth.
        let pages = Keys::Pages { pages: [4, 0, 5, 2].into(), len: keys };
        let [mut k_pages, mut v_pages] = [(); 2]
            .map(|()| matrix(&vec![f64::from(f32::MAX); 6 * PAGE * narrow], narrow, precision.dtype()));
        for device in cpus(2).into_iter().map(Device::Cpu) {
            for (from, to) in [(&k, &mut k_pages), (&v, &mut v_pages)] {
                let mut next = 0;
                for rows in pages.runs(0..keys) {
                    let part = from.as_ref().rows_range(next..next + rows.len());
                    next += rows.len();
                    compute::ops::copy::copy(&device, to.as_mut().rows_range(rows), part);
                }
            }
            let attend = |segments: &[Segment], k: &Matrix, v: &Matrix| {
                let mut out = Matrix::zeros(keys, wide, precision.dtype());
                let mut lse = Matrix::zeros(keys, heads, DType::F32);
                let (k, v) = (k.as_ref(), v.as_ref());
                let (out_to, lse_to) = (out.as_mut(), lse.as_mut());
                forward(&device, precision, &whole.attention, segments, q.as_ref(), k, v, out_to, lse_to);
                (out.to_vec(), lse.to_vec())
            };
            let expected = attend(&whole.segments, &k, &v);
            let up_to = |len| Keys::Pages { pages: [4, 0, 5, 2].into(), len };
            for cuts in [vec![0, keys], vec![0, 1, 2, 5, 127, 128, 200, 384, keys], (0..=keys).collect()] {
                let parts = || cuts.windows(2).map(|at| at[0]..at[1]);
                let rows: Vec<_> =
                    parts().map(|queries| Segment { keys: (0..queries.end).into(), queries }).collect();
                let got = attend(&rows, &k, &v);
                assert!(got == expected, "{precision:?}, {window:?}, {} parts", cuts.len());
                let paged: Vec<_> =
                    parts().map(|queries| Segment { keys: up_to(queries.end), queries }).collect();
                let got = attend(&paged, &k_pages, &v_pages);
                assert!(got == expected, "{precision:?}, {window:?}, {} parts in pages", cuts.len());
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let p = Problem::new(4, 2, 16, None, &[(900, 900), (40, 40), (1, 300), (5, 5)]);
    for precision in [Precision::F32, Precision::Bf16] {
        let one = p.run(1, precision);
        for threads in [2, 3, 16] {
            assert!(p.run(threads, precision) == one, "{threads} threads, {precision:?}");
        }
    }
}

#[test]
#[should_panic(expected = "segments share rows")]
fn segments_that_share_query_rows_are_refused() {
    let mut p = Problem::new(1, 1, 4, None, &[(3, 3), (3, 3)]);
    p.segments[1].queries = 2..5;
    p.run(1, Precision::F32);
}

#[test]
#[should_panic(expected = "a segment of")]
fn more_queries_than_keys_are_refused() {
    let mut p = Problem::new(1, 1, 4, None, &[(3, 3)]);
    p.segments[0].keys = (0..2).into();
    p.run(1, Precision::F32);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_segments_are_right(
        groups in 1usize..4, kv_heads in 1usize..3, head_dim in 1usize..40, window in proptest::option::of(1usize..150),
        lengths in prop::collection::vec((0usize..80, 0usize..150), 1..5),
    ) {
        let lengths: Vec<_> = lengths.into_iter().map(|(queries, cached)| (queries, queries + cached)).collect();
        let p = Problem::new(groups * kv_heads, kv_heads, head_dim, window, &lengths);
        p.check(Precision::F32, F32);
        p.rounded().check(Precision::Bf16, BF16);
    }
}
