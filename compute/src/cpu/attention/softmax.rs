//! The softmax of a tile, forward and backward: what stands between attention's products.
//!
//! Written twice: as loops that the compiler vectorizes for any processor, and with AVX-512's own
//! instructions (round, scale by a power of two, convert to `bf16`), which need a third of the operations:
//! two fifths of attention's time with the first, a tenth with the second (docs/notes/2026-11-attention.md).

use std::ops::Range;

use super::KEYS;
use crate::cpu::gemm::{Isa, LeftLayout, PackedLeft, PackedRight, RightLayout};
use crate::cpu::simd::{self, LANES, multiversion};
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::{Element, by_dtype};
use crate::{Matrix, MatrixMut};

/// `f32` elements of a row that stand together in a packed left factor.
const CHUNK: usize = 16;

/// What a tile shows: which columns each row sees.
#[derive(Clone)]
pub(super) struct View {
    /// Rows of one token.
    pub(super) group: usize,
    /// Factor on scores.
    pub(super) scale: f32,
    /// Keys that a query sees at most.
    pub(super) window: usize,
    /// Position of the first row's token.
    pub(super) position: usize,
    /// Positions of the columns.
    pub(super) keys: Range<usize>,
}

impl View {
    /// The columns that row `r` sees.
    #[inline(always)]
    fn columns(&self, r: usize) -> Range<usize> {
        let past = self.position + r / self.group + 1;
        let (first, past) = (past.saturating_sub(self.window), past.min(self.keys.end));
        let start = first.max(self.keys.start) - self.keys.start;
        start..past.saturating_sub(self.keys.start).max(start)
    }

    /// Columns to compute: those of the tile, up to whole chunks of [`LANES`].
    #[inline(always)]
    pub(super) fn width(&self) -> usize {
        self.keys.len().next_multiple_of(LANES)
    }
}

/// A row's state while its keys go by.
pub(super) struct Running<'a> {
    /// `[rows]`: the largest scaled score so far.
    pub(super) max: &'a mut [f32],
    /// `[rows]`: `Σ_j exp(s_j - max)` so far.
    pub(super) denominator: &'a mut [f32],
    /// `[rows, D]`: `Σ_j exp(s_j - max) v_j` so far.
    pub(super) sums: &'a mut [f32],
    /// `[rows]`, to work with.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "only AVX-512 works on several rows at once")
    )]
    pub(super) factor: &'a mut [f32],
}

/// One tile's part of the softmax: `p = exp(scale * s - max)` with `max` raised to this tile's; `denominator`
/// and `sums` are brought to the new `max`, and `denominator` takes in the sum of `p`. Hidden columns get 0.
/// `scores` are `[rows, KEYS]`, `p` is the left factor of a product.
pub(super) fn step(isa: Isa, view: &View, scores: &[f32], p: &mut PackedLeft, running: Running<'_>) {
    let layout = p.layout();
    let p = p.values().as_mut();
    match (isa, p.dtype()) {
        // SAFETY: the processor has what `isa` says.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, dtype) => unsafe {
            by_dtype!(dtype, P => avx512::step(view, scores, P::of_mut(p), layout, running))
        },
        _ => step_plain(view, scores, p.f32(), layout, running),
    }
}

/// `p = exp(scale * s - lse)` and `ds = p (dp - delta) * scale`; 0 in hidden columns. `lse` and `delta` have
/// an element for each row, `scores` and `dp` are `[rows, KEYS]`; `p` is a right factor, `ds` one of either
/// side.
pub(super) fn gradient(
    isa: Isa,
    view: &View,
    (scores, dp): (&[f32], &[f32]),
    (lse, delta): (&[f32], &[f32]),
    p: &mut PackedRight,
    ds: (&mut PackedLeft, &mut PackedRight),
) {
    let (left, right) = (ds.0.layout(), p.layout());
    let [p, ds_left, ds_right] = [p.values(), ds.0.values(), ds.1.values()].map(Matrix::as_mut);
    match (isa, p.dtype()) {
        // SAFETY: the processor has what `isa` says.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, dtype) => unsafe {
            by_dtype!(dtype, P => {
                let to = [p, ds_left, ds_right].map(P::of_mut);
                avx512::gradient(view, (scores, dp), (lse, delta), to, (left, right));
            })
        },
        _ => {
            let to = [p, ds_left, ds_right].map(MatrixMut::f32);
            gradient_plain(view, scores, dp, lse, delta, to, left, right);
        }
    }
}

multiversion! {
    /// Scores `s [rows, KEYS]` become `cap tanh(scale s / cap)`, in the first `width` columns.
    pub(super) fn cap(scores: &mut [f32], width: usize, scale: f32, cap: f32) {
        let inner = scale / cap;
        for s in scores.chunks_exact_mut(KEYS) {
            for s in s[..width].iter_mut() {
                *s = cap * simd::tanh(inner * *s);
            }
        }
    }
}

multiversion! {
    /// [`cap`] of the scores, and `dp` becomes `(dp - delta) scale (1 - (s / cap)²)`: the gradient of the
    /// scores is then `p dp`.
    pub(super) fn cap_gradient(
        products: (&mut [f32], &mut [f32]), delta: &[f32], width: usize, scale: f32, cap: f32
    ) {
        let inner = scale / cap;
        let rows = products.0.chunks_exact_mut(KEYS).zip(products.1.chunks_exact_mut(KEYS));
        for ((s, dp), delta) in rows.zip(delta) {
            for (s, dp) in s[..width].iter_mut().zip(&mut dp[..width]) {
                let (part, slope) = simd::tanh_and_slope(inner * *s);
                *s = cap * part;
                *dp = (*dp - delta) * (scale * slope);
            }
        }
    }
}

multiversion! {
    fn step_plain(view: &View, scores: &[f32], p: &mut [f32], layout: LeftLayout, running: Running<'_>) {
        let Running { max, denominator, sums, .. } = running;
        let stride = sums.len() / max.len();
        let state = max.iter_mut().zip(denominator).zip(sums.chunks_exact_mut(stride));
        for (r, (s, ((max, denominator), sums))) in scores.chunks_exact(KEYS).zip(state).enumerate() {
            let columns = view.columns(r);
            let s = &s[..view.width()];
            let new = (view.scale * largest(s, &columns)).max(*max);
            if new > *max {
                let factor = simd::exp(*max - new);
                *denominator *= factor;
                sums.iter_mut().for_each(|s| *s *= factor);
                *max = new;
            }
            *denominator += exponentials(s, &columns, view.scale, new, &mut p[layout.row(r)..], layout.step());
        }
    }
}

/// The largest element of these columns; negative infinity if there are none. `s` is whole chunks of
/// [`LANES`].
#[inline(always)]
fn largest(s: &[f32], columns: &Range<usize>) -> f32 {
    let (first, count) = (columns.start as u32, columns.len() as u32);
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for (chunk, s) in s.chunks_exact(LANES).enumerate() {
        for i in 0..LANES {
            let visible = ((chunk * LANES + i) as u32).wrapping_sub(first) < count;
            let s = if visible { s[i] } else { f32::NEG_INFINITY };
            lanes[i] = if s > lanes[i] { s } else { lanes[i] };
        }
    }
    simd::fold(lanes, |a, b| if b > a { b } else { a })
}

/// `p = exp(scale * s - max)` in these columns, 0 in others; returns the sum. `s` is whole chunks of
/// [`LANES`], those of `p` begin `step` apart.
#[inline(always)]
fn exponentials(s: &[f32], columns: &Range<usize>, scale: f32, max: f32, p: &mut [f32], step: usize) -> f32 {
    let (first, count) = (columns.start as u32, columns.len() as u32);
    let mut lanes = [0.0; LANES];
    for (chunk, s) in s.chunks_exact(LANES).enumerate() {
        let mut e = [0.0; LANES];
        for i in 0..LANES {
            let visible = ((chunk * LANES + i) as u32).wrapping_sub(first) < count;
            e[i] = if visible { simd::exp(scale * s[i] - max) } else { 0.0 };
            lanes[i] += e[i];
        }
        for (half, e) in e.chunks_exact(CHUNK).enumerate() {
            p[(chunk * LANES / CHUNK + half) * step..][..CHUNK].copy_from_slice(e);
        }
    }
    simd::fold(lanes, |a, b| a + b)
}

multiversion! {
    fn gradient_plain(
        view: &View, scores: &[f32], dp: &[f32], lse: &[f32], delta: &[f32], to: [&mut [f32]; 3], left: LeftLayout,
        right: RightLayout,
    ) {
        let [p, ds_left, ds_right] = to;
        let read = scores.chunks_exact(KEYS).zip(dp.chunks_exact(KEYS));
        for (r, ((s, dp), (lse, delta))) in read.zip(lse.iter().zip(delta)).enumerate() {
            let columns = view.columns(r);
            let (first, count) = (columns.start as u32, columns.len() as u32);
            for chunk in 0..view.width() / CHUNK {
                let start = chunk * CHUNK;
                let (mut e, mut g) = ([0.0; CHUNK], [0.0; CHUNK]);
                for i in 0..CHUNK {
                    let visible = ((start + i) as u32).wrapping_sub(first) < count;
                    let p = simd::exp(view.scale * s[start + i] - lse);
                    let ds = p * (dp[start + i] - delta) * view.scale;
                    (e[i], g[i]) = if visible { (p, ds) } else { (0.0, 0.0) };
                }
                ds_left[left.row(r) + chunk * left.step()..][..CHUNK].copy_from_slice(&g);
                // A chunk is several panels' columns or some of one's.
                let width = right.panel.min(CHUNK);
                for (part, (e, g)) in e.chunks_exact(width).zip(g.chunks_exact(width)).enumerate() {
                    let column = start + part * width;
                    let at = right.at(r, column / right.panel) + column % right.panel;
                    p[at..at + width].copy_from_slice(e);
                    ds_right[at..at + width].copy_from_slice(g);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{Element, KEYS, LANES, LeftLayout, RightLayout, Running, View};
    use crate::cpu::gemm::join;

    // A row's mask is made as one number; a chunk is two vectors.
    const _: () = assert!(KEYS == 128 && LANES == 32);

    /// [`super::step`], in three passes over the rows: what a row waits for in one goes on for others
    /// meanwhile.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn step<P: Element>(
        view: &View,
        scores: &[f32],
        p: &mut [P],
        layout: LeftLayout,
        running: Running<'_>,
    ) {
        let Running { max, denominator, sums, factor } = running;
        let (stride, width) = (sums.len() / max.len(), view.width());
        for (r, (s, new)) in scores.chunks_exact(KEYS).zip(factor.iter_mut()).enumerate() {
            let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
            for (s, visible) in s[..width].as_chunks::<LANES>().0.iter().zip(mask(view, r)) {
                let [low, high] = load(s);
                largest = _mm512_mask_max_ps(largest, visible[0], largest, low);
                largest = _mm512_mask_max_ps(largest, visible[1], largest, high);
            }
            *new = view.scale * _mm512_reduce_max_ps(largest);
        }
        raise(max, denominator, factor);
        let scale = _mm512_set1_ps(view.scale);
        let state = max.iter().zip(denominator).zip(factor).zip(sums.chunks_exact_mut(stride));
        for (r, (s, (((max, denominator), factor), sums))) in scores.chunks_exact(KEYS).zip(state).enumerate()
        {
            if *factor != 1.0 {
                sums.iter_mut().for_each(|s| *s *= *factor);
            }
            let max = _mm512_set1_ps(*max);
            let mut sum = _mm512_setzero_ps();
            let p = &mut p[layout.row(r)..];
            for (i, (s, visible)) in s[..width].as_chunks::<LANES>().0.iter().zip(mask(view, r)).enumerate() {
                let [low, high] = load(s);
                let low = exp(visible[0], _mm512_fmsub_ps(low, scale, max));
                let high = exp(visible[1], _mm512_fmsub_ps(high, scale, max));
                sum = _mm512_add_ps(sum, _mm512_add_ps(low, high));
                store_left([low, high], i, p, layout.step());
            }
            *denominator += _mm512_reduce_add_ps(sum);
        }
    }

    /// Takes a tile's largest scores from `factor` into `max`, and leaves there what sums so far have to be
    /// multiplied by.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn raise(max: &mut [f32], denominator: &mut [f32], factor: &mut [f32]) {
        for r in (0..max.len()).step_by(16) {
            let rows = if max.len() - r >= 16 { u16::MAX } else { (1 << (max.len() - r)) - 1 };
            let [max, denominator, factor] =
                [&mut max[r..], &mut denominator[r..], &mut factor[r..]].map(<[_]>::as_mut_ptr);
            // SAFETY: the mask keeps to the rows that there are.
            unsafe {
                let old = _mm512_maskz_loadu_ps(rows, max);
                let new = _mm512_maskz_loadu_ps(rows, factor);
                let raised = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(new, old);
                // Where a row has seen no key yet, both are -infinity: their difference must not be taken.
                let difference = _mm512_maskz_sub_ps(raised, old, new);
                let by = exp(u16::MAX, difference);
                _mm512_mask_storeu_ps(max, rows & raised, new);
                _mm512_mask_storeu_ps(factor, rows, by);
                _mm512_mask_storeu_ps(
                    denominator,
                    rows,
                    _mm512_mul_ps(_mm512_maskz_loadu_ps(rows, denominator), by),
                );
            }
        }
    }

    /// [`super::gradient`]: two rows at a time, which stand together in a right factor of `bf16`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn gradient<P: Element>(
        view: &View,
        (scores, dp): (&[f32], &[f32]),
        (lse, delta): (&[f32], &[f32]),
        [p, ds_left, ds_right]: [&mut [P]; 3],
        (left, right): (LeftLayout, RightLayout),
    ) {
        assert!(right.panel == LANES, "a chunk of columns is a panel");
        let (rows, chunks) = (lse.len(), view.width() / LANES);
        let scale = _mm512_set1_ps(view.scale);
        for first in (0..rows).step_by(2) {
            let second = (first + 1).min(rows - 1);
            let masks =
                (mask(view, first), if second > first { mask(view, second) } else { Mask::default() });
            let [lse, delta] = [lse, delta].map(|v| [_mm512_set1_ps(v[first]), _mm512_set1_ps(v[second])]);
            let to = [left.row(first), left.row(second)];
            for i in 0..chunks {
                let visible = [masks.0[i], masks.1[i]];
                let (mut e, mut g) = ([[_mm512_setzero_ps(); 2]; 2], [[_mm512_setzero_ps(); 2]; 2]);
                for (r, row) in [first, second].into_iter().enumerate() {
                    let at = row * KEYS + i * LANES;
                    let (s, dp) = (load(chunk_of(scores, at)), load(chunk_of(dp, at)));
                    for h in 0..2 {
                        e[r][h] = exp(visible[r][h], _mm512_fmsub_ps(s[h], scale, lse[r]));
                        let d = _mm512_maskz_sub_ps(visible[r][h], dp[h], delta[r]);
                        g[r][h] = _mm512_mul_ps(_mm512_mul_ps(e[r][h], scale), d);
                    }
                }
                for (g, to) in g.into_iter().zip(to).take(second - first + 1) {
                    store_left(g, i, &mut ds_left[to..], left.step());
                }
                let at = right.at(first, i);
                store_right(e, &mut p[at..]);
                store_right(g, &mut ds_right[at..]);
            }
        }
    }

    /// The chunk that begins here.
    #[inline(always)]
    fn chunk_of(v: &[f32], at: usize) -> &[f32; LANES] {
        v[at..].first_chunk().expect("a row is whole chunks")
    }

    /// A bit for each column, for the two vectors of each chunk.
    type Mask = [[u16; 2]; KEYS / LANES];

    /// The columns that row `r` sees.
    #[inline(always)]
    fn mask(view: &View, r: usize) -> Mask {
        let columns = view.columns(r);
        let below = |n: usize| if n < 128 { (1 << n) - 1 } else { u128::MAX };
        let mask = below(columns.end) & !below(columns.start);
        std::array::from_fn(|i| [(mask >> (32 * i)) as u16, (mask >> (32 * i + 16)) as u16])
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(s: &[f32; LANES]) -> [__m512; 2] {
        // SAFETY: 32 elements can be read.
        unsafe { [_mm512_loadu_ps(s.as_ptr()), _mm512_loadu_ps(s.as_ptr().add(16))] }
    }

    /// The `i`-th 32 columns of a row of a left factor, which begins with `to` and whose chunks are `step`
    /// apart.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn store_left<P: Element>(v: [__m512; 2], i: usize, to: &mut [P], step: usize) {
        // SAFETY: there are two kinds of `Element`, told apart by their size; slices check that chunks are
        // there.
        unsafe {
            if size_of::<P>() == 2 {
                let to: &mut [P; 32] = to[i * step..].first_chunk_mut().expect("a chunk");
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(v[1], v[0]));
                _mm512_storeu_si512(to.as_mut_ptr().cast(), both);
            } else {
                for (half, v) in v.into_iter().enumerate() {
                    let to: &mut [P; 16] = to[(2 * i + half) * step..].first_chunk_mut().expect("a chunk");
                    _mm512_storeu_ps(to.as_mut_ptr().cast(), v);
                }
            }
        }
    }

    /// 32 columns of two rows of a right factor, `to` and on: `f32` one row after the other, `bf16` in pairs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn store_right<P: Element>(rows: [[__m512; 2]; 2], to: &mut [P]) {
        let to: &mut [P; 64] = to.first_chunk_mut().expect("two rows");
        // SAFETY: there are two kinds of `Element`, told apart by their size; 64 of them can be written.
        unsafe {
            if size_of::<P>() == 2 {
                for (half, (first, second)) in rows[0].into_iter().zip(rows[1]).enumerate() {
                    _mm512_storeu_si512(to.as_mut_ptr().add(32 * half).cast(), join(first, second));
                }
            } else {
                for (i, v) in rows.as_flattened().iter().enumerate() {
                    _mm512_storeu_ps(to.as_mut_ptr().add(16 * i).cast(), *v);
                }
            }
        }
    }

    /// `eˣ` where the mask is set, for `x <= 88`; 0 elsewhere. `x log2 e = n + r` with `|r| <= 1/2`; `2^r` by
    /// a polynomial with relative error below 1e-7 (least maximum, fitted with 1 as its constant). The
    /// relative error grows by `|x| 2^-24`, when the result is `e^x` of something larger.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn exp(mask: u16, x: __m512) -> __m512 {
        // Beyond -200 nothing is left; NaN, the second operand, passes.
        let x = _mm512_max_ps(_mm512_set1_ps(-200.0), x);
        let t = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
        let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(t);
        let r = _mm512_sub_ps(t, n);
        #[allow(clippy::approx_constant)] // close to ln 2, but the others were fitted with it as it is
        let coefficients = [1.326_472_7e-3, 9.671_513e-3, 5.550_733_6e-2, 0.240_222_42, 0.693_147, 1.0];
        let mut p = _mm512_set1_ps(coefficients[0]);
        for c in &coefficients[1..] {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
        }
        _mm512_maskz_scalef_ps(mask, p, n)
    }
}
