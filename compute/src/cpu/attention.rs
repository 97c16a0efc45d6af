//! Causal attention on the host: one row at a time, until the tiles stand.

use crate::matrix::SliceMut;
use crate::ops::attention::{Attention, Segment};
use crate::{Cpu, MatrixMut, MatrixRef, Precision, bf16};

/// See [`crate::ops::attention::forward`].
pub(crate) fn forward(
    _cpu: &Cpu,
    _precision: Precision,
    spec: &Attention,
    segments: &[Segment],
    q: MatrixRef<'_>,
    k: MatrixRef<'_>,
    v: MatrixRef<'_>,
    mut out: MatrixMut<'_>,
    lse: &mut [f32],
) {
    let d = spec.head_dim;
    let (q, k, v) = (q.to_vec(), k.to_vec(), v.to_vec());
    for (s, h, t, first, past) in rows(spec, segments) {
        let key = |j: usize| ((s.keys.start + j) * spec.kv_heads + h / spec.group()) * d;
        let row = (t * spec.heads + h) * d;
        let scores: Vec<f32> =
            (first..past).map(|j| spec.scale * dot(&q[row..][..d], &k[key(j)..][..d])).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        lse[t * spec.heads + h] = max + scores.iter().map(|s| (s - max).exp()).sum::<f32>().ln();
        let mut sum = vec![0.0; d];
        for (j, s) in (first..past).zip(&scores) {
            axpy((s - lse[t * spec.heads + h]).exp(), &v[key(j)..][..d], &mut sum);
        }
        store(&mut out, row, &sum);
    }
}

/// See [`crate::ops::attention::backward`].
pub(crate) fn backward(
    _cpu: &Cpu,
    _precision: Precision,
    spec: &Attention,
    segments: &[Segment],
    q: MatrixRef<'_>,
    k: MatrixRef<'_>,
    v: MatrixRef<'_>,
    out: MatrixRef<'_>,
    lse: &[f32],
    dout: MatrixRef<'_>,
    mut dq: MatrixMut<'_>,
    mut dk: MatrixMut<'_>,
    mut dv: MatrixMut<'_>,
) {
    let d = spec.head_dim;
    let (q, k, v, out, dout) = (q.to_vec(), k.to_vec(), v.to_vec(), out.to_vec(), dout.to_vec());
    let (mut sk, mut sv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
    for (s, h, t, first, past) in rows(spec, segments) {
        let key = |j: usize| ((s.keys.start + j) * spec.kv_heads + h / spec.group()) * d;
        let row = (t * spec.heads + h) * d;
        let delta = dot(&out[row..][..d], &dout[row..][..d]);
        let mut sq = vec![0.0; d];
        for j in first..past {
            let (kj, vj) = (&k[key(j)..][..d], &v[key(j)..][..d]);
            let p = (spec.scale * dot(&q[row..][..d], kj) - lse[t * spec.heads + h]).exp();
            let ds = p * (dot(&dout[row..][..d], vj) - delta) * spec.scale;
            axpy(p, &dout[row..][..d], &mut sv[key(j)..][..d]);
            axpy(ds, &q[row..][..d], &mut sk[key(j)..][..d]);
            axpy(ds, kj, &mut sq);
        }
        store(&mut dq, row, &sq);
    }
    let width = spec.kv_heads * d;
    for row in segments.iter().flat_map(|s| s.keys.clone()) {
        store(&mut dk, row * width, &sk[row * width..][..width]);
        store(&mut dv, row * width, &sv[row * width..][..width]);
    }
}

/// Segment, head, row of `q`, first visible key and the one past the last.
fn rows<'a>(
    spec: &'a Attention,
    segments: &'a [Segment],
) -> impl Iterator<Item = (&'a Segment, usize, usize, usize, usize)> {
    segments.iter().flat_map(move |s| {
        (0..spec.heads).flat_map(move |h| {
            s.queries.clone().enumerate().map(move |(i, t)| {
                let past = s.keys.len() - s.queries.len() + i + 1;
                (s, h, t, past.saturating_sub(spec.window.unwrap_or(past)), past)
            })
        })
    })
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += alpha * x);
}

fn store(m: &mut MatrixMut<'_>, at: usize, values: &[f32]) {
    match &mut m.data {
        SliceMut::F32(s) => s[at..][..values.len()].copy_from_slice(values),
        SliceMut::Bf16(s) => s[at..].iter_mut().zip(values).for_each(|(s, v)| *s = bf16::from_f32(*v)),
    }
}
