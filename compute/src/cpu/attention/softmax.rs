//! The softmax of a tile, forward and backward: what stands between attention's products.
//!
//! Written twice: as loops that the compiler vectorizes for any processor, and with AVX-512's own instructions
//! (round, scale by a power of two, convert to `bf16`), which need a third of the operations: two fifths of attention's
//! time with the first, a tenth with the second (docs/notes/2026-11-attention.md).

use std::ops::Range;

use super::KEYS;
use crate::cpu::gemm::Isa;
use crate::cpu::simd::{self, Element, LANES, multiversion};

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
    fn width(&self) -> usize {
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

/// One tile's part of the softmax: `p = exp(scale * s - max)` with `max` raised to this tile's; `denominator` and `sums`
/// are brought to the new `max`, and `denominator` takes in the sum of `p`. Hidden columns get 0. `scores` and `p` are
/// `[rows, KEYS]`.
pub(super) fn step<P: Element>(isa: Isa, view: &View, scores: &[f32], p: &mut [P], running: Running<'_>) {
    match isa {
        // SAFETY: the processor has what `isa` says.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => unsafe { avx512::step(view, scores, p, running) },
        _ => step_plain::<P>(view, scores, p, running),
    }
}

/// `p = exp(scale * s - lse)` and `ds = p (dp - delta) * scale`; 0 in hidden columns. `lse` and `delta` have an element for
/// each row, the others are `[rows, KEYS]`.
pub(super) fn gradient<P: Element>(
    isa: Isa,
    view: &View,
    (scores, dp): (&[f32], &[f32]),
    (lse, delta): (&[f32], &[f32]),
    (p, ds): (&mut [P], &mut [P]),
) {
    match isa {
        // SAFETY: the processor has what `isa` says.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => unsafe { avx512::gradient(view, (scores, dp), (lse, delta), (p, ds)) },
        _ => gradient_plain::<P>(view, scores, dp, lse, delta, p, ds),
    }
}

multiversion! {
    fn step_plain<P: Element>(view: &View, scores: &[f32], p: &mut [P], running: Running<'_>) {
        let Running { max, denominator, sums, .. } = running;
        let d = sums.len() / max.len();
        let tile = scores.chunks_exact(KEYS).zip(p.chunks_exact_mut(KEYS));
        let state = max.iter_mut().zip(denominator).zip(sums.chunks_exact_mut(d));
        for (r, ((s, p), ((max, denominator), sums))) in tile.zip(state).enumerate() {
            let columns = view.columns(r);
            let (s, p) = (&s[..view.width()], &mut p[..view.width()]);
            let new = (view.scale * largest(s, &columns)).max(*max);
            if new > *max {
                let factor = simd::exp(*max - new);
                *denominator *= factor;
                sums.iter_mut().for_each(|s| *s *= factor);
                *max = new;
            }
            *denominator += exponentials(s, &columns, view.scale, new, p);
        }
    }
}

/// The largest element of these columns; negative infinity if there are none. `s` is whole chunks of [`LANES`].
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

/// `p = exp(scale * s - max)` in these columns, 0 in others; returns the sum. `s` and `p` are whole chunks of [`LANES`].
#[inline(always)]
fn exponentials<P: Element>(s: &[f32], columns: &Range<usize>, scale: f32, max: f32, p: &mut [P]) -> f32 {
    let (first, count) = (columns.start as u32, columns.len() as u32);
    let mut lanes = [0.0; LANES];
    for (chunk, (s, p)) in s.chunks_exact(LANES).zip(p.chunks_exact_mut(LANES)).enumerate() {
        for i in 0..LANES {
            let visible = ((chunk * LANES + i) as u32).wrapping_sub(first) < count;
            let e = simd::exp(scale * s[i] - max);
            let e = if visible { e } else { 0.0 };
            lanes[i] += e;
            p[i] = P::store(e);
        }
    }
    simd::fold(lanes, |a, b| a + b)
}

multiversion! {
    fn gradient_plain<P: Element>(
        view: &View, scores: &[f32], dp: &[f32], lse: &[f32], delta: &[f32], p: &mut [P], ds: &mut [P],
    ) {
        let read = scores.chunks_exact(KEYS).zip(dp.chunks_exact(KEYS));
        let write = p.chunks_exact_mut(KEYS).zip(ds.chunks_exact_mut(KEYS));
        for (r, (((s, dp), (p, ds)), (lse, delta))) in read.zip(write).zip(lse.iter().zip(delta)).enumerate() {
            let columns = view.columns(r);
            let (first, count) = (columns.start as u32, columns.len() as u32);
            for c in 0..view.width() {
                let visible = (c as u32).wrapping_sub(first) < count;
                let e = simd::exp(view.scale * s[c] - lse);
                let g = e * (dp[c] - delta) * view.scale;
                p[c] = P::store(if visible { e } else { 0.0 });
                ds[c] = P::store(if visible { g } else { 0.0 });
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{Element, KEYS, LANES, Running, View};

    // A row's mask is made as one number; a chunk is two vectors.
    const _: () = assert!(KEYS == 128 && LANES == 32);

    /// [`super::step`], in three passes over the rows: what a row waits for in one goes on for others meanwhile.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn step<P: Element>(view: &View, scores: &[f32], p: &mut [P], running: Running<'_>) {
        let Running { max, denominator, sums, factor } = running;
        let (d, width) = (sums.len() / max.len(), view.width());
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
        let tile = scores.chunks_exact(KEYS).zip(p.chunks_exact_mut(KEYS));
        let state = max.iter().zip(denominator).zip(factor).zip(sums.chunks_exact_mut(d));
        for (r, ((s, p), (((max, denominator), factor), sums))) in tile.zip(state).enumerate() {
            sums.iter_mut().for_each(|s| *s *= *factor);
            let max = _mm512_set1_ps(*max);
            let mut sum = _mm512_setzero_ps();
            let read = s[..width].as_chunks::<LANES>().0.iter().zip(mask(view, r));
            for ((s, visible), p) in read.zip(p[..width].as_chunks_mut::<LANES>().0) {
                let [low, high] = load(s);
                let low = exp(visible[0], _mm512_fmsub_ps(low, scale, max));
                let high = exp(visible[1], _mm512_fmsub_ps(high, scale, max));
                sum = _mm512_add_ps(sum, _mm512_add_ps(low, high));
                store([low, high], p);
            }
            *denominator += _mm512_reduce_add_ps(sum);
        }
    }

    /// Takes a tile's largest scores from `factor` into `max`, and leaves there what sums so far have to be multiplied
    /// by.
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

    /// [`super::gradient`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn gradient<P: Element>(
        view: &View,
        (scores, dp): (&[f32], &[f32]),
        (lse, delta): (&[f32], &[f32]),
        (p, ds): (&mut [P], &mut [P]),
    ) {
        let width = view.width();
        let read = scores.chunks_exact(KEYS).zip(dp.chunks_exact(KEYS));
        let write = p.chunks_exact_mut(KEYS).zip(ds.chunks_exact_mut(KEYS));
        let scale = _mm512_set1_ps(view.scale);
        for (r, (((s, dp), (p, ds)), (lse, delta))) in read.zip(write).zip(lse.iter().zip(delta)).enumerate()
        {
            let (lse, delta) = (_mm512_set1_ps(*lse), _mm512_set1_ps(*delta));
            let read = s[..width].as_chunks::<LANES>().0.iter().zip(dp.as_chunks::<LANES>().0);
            let write = p[..width].as_chunks_mut::<LANES>().0.iter_mut().zip(ds.as_chunks_mut::<LANES>().0);
            for (((s, dp), (p, ds)), visible) in read.zip(write).zip(mask(view, r)) {
                let ([s, s_high], [dp, dp_high]) = (load(s), load(dp));
                let low = exp(visible[0], _mm512_fmsub_ps(s, scale, lse));
                let high = exp(visible[1], _mm512_fmsub_ps(s_high, scale, lse));
                let ds_low = _mm512_mul_ps(_mm512_mul_ps(low, scale), _mm512_sub_ps(dp, delta));
                let ds_high = _mm512_mul_ps(_mm512_mul_ps(high, scale), _mm512_sub_ps(dp_high, delta));
                store([low, high], p);
                store(
                    [_mm512_maskz_mov_ps(visible[0], ds_low), _mm512_maskz_mov_ps(visible[1], ds_high)],
                    ds,
                );
            }
        }
    }

    /// A bit for each column that row `r` sees, for the two vectors of each chunk.
    #[inline(always)]
    fn mask(view: &View, r: usize) -> [[u16; 2]; KEYS / LANES] {
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

    /// Two vectors as stored elements.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn store<P: Element>(v: [__m512; 2], to: &mut [P; LANES]) {
        let to = to.as_mut_ptr();
        // SAFETY: there are two kinds of `Element`, told apart by their size; 32 of them can be written.
        unsafe {
            if size_of::<P>() == 2 {
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(v[1], v[0]));
                _mm512_storeu_si512(to.cast(), both);
            } else {
                _mm512_storeu_ps(to.cast(), v[0]);
                _mm512_storeu_ps(to.cast::<f32>().add(16), v[1]);
            }
        }
    }

    /// `eˣ` where the mask is set, for `x <= 88`; 0 elsewhere. `x log2 e = n + r` with `|r| <= 1/2`; `2^r` by a polynomial
    /// with relative error below 1e-7 (least maximum, fitted with 1 as its constant). The relative error grows by
    /// `|x| 2^-24`, when the result is `e^x` of something larger.
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
