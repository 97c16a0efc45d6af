//! One body, several instruction sets: how the element-wise kernels are compiled and what they are made of.
//!
//! rustc's baseline for x86-64 is SSE2. [`multiversion!`] compiles a kernel's body for AVX-512, AVX2 and the
//! baseline and picks one when it is called; the loops are written so that the compiler vectorizes them.
//! Nothing here uses a fused multiply-add and every sum has a fixed number of lanes, so a kernel gives the
//! same bytes on every instruction set.

use std::sync::OnceLock;

use bytemuck::Pod;

use super::gemm::Isa;
use crate::matrix::{Slice, SliceMut};
use crate::{MatrixMut, MatrixRef, bf16};

/// How many partial sums a reduction keeps: two AVX-512 registers, enough to hide the latency of an addition.
pub(crate) const LANES: usize = 32;

/// Asks for a cache line, into the second level.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is only a hint, and SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// A width that a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Baseline,
    Avx2,
    Avx512,
}

impl Width {
    /// The widest that this processor has, or what `LUTHIER_ISA` forces; found once.
    #[inline]
    pub(crate) fn detect() -> Self {
        static WIDTH: OnceLock<Width> = OnceLock::new();
        *WIDTH.get_or_init(|| match Isa::detect() {
            Isa::Portable => Width::Baseline,
            Isa::Avx2 => Width::Avx2,
            Isa::Avx512 | Isa::Avx512Bf16 => Width::Avx512,
        })
    }
}

/// Defines a function whose body is compiled for every [`Width`]; a call runs the widest that the processor
/// has. Type parameters have one bound each.
///
/// What the body calls must be `#[inline(always)]`, and heavy loops must be `for` loops: a function, or a
/// closure handed to an iterator's adapter, that the compiler does not inline is compiled for the baseline.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($generic:ident: $bound:ident),+>)? ($($arg:ident: $ty:ty),* $(,)?)
     $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn baseline $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2 $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                baseline $(::<$($generic),+>)? ($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
            fn avx512 $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                baseline $(::<$($generic),+>)? ($($arg),*)
            }

            match $crate::cpu::simd::Width::detect() {
                // SAFETY: `detect` gives only what this processor has.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Width::Avx512 => unsafe { avx512 $(::<$($generic),+>)? ($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Width::Avx2 => unsafe { avx2 $(::<$($generic),+>)? ($($arg),*) },
                _ => baseline $(::<$($generic),+>)? ($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;

/// Evaluates an expression with a type name bound to the element type that a [`crate::DType`] stands for.
macro_rules! by_dtype {
    ($dtype:expr, $name:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $name = f32;
                $body
            }
            $crate::DType::Bf16 => {
                type $name = $crate::bf16;
                $body
            }
        }
    };
}
pub(crate) use by_dtype;

/// A stored element: `f32` or `bf16`. Arithmetic is in `f32`.
pub(crate) trait Element: Pod + Send + Sync {
    fn load(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn store(value: f32) -> Self;
    /// Elements; panics if they are of the other type.
    fn of_slice(slice: Slice<'_>) -> &[Self];
    /// Elements; panics if they are of the other type.
    fn of_slice_mut(slice: SliceMut<'_>) -> &mut [Self];

    /// A matrix's elements, which have no gaps between their rows; panics if they are of the other type.
    fn of(matrix: MatrixRef<'_>) -> &[Self] {
        Self::of_slice(matrix.slice())
    }

    /// A matrix's elements, as [`Element::of`].
    fn of_mut(matrix: MatrixMut<'_>) -> &mut [Self] {
        Self::of_slice_mut(matrix.slice())
    }

    /// What lies from a matrix's first element to its last, gaps included.
    fn of_strided(matrix: MatrixRef<'_>) -> &[Self] {
        Self::of_slice(matrix.strided())
    }

    /// What lies from a matrix's first element to its last, gaps included.
    fn of_strided_mut(matrix: MatrixMut<'_>) -> &mut [Self] {
        Self::of_slice_mut(matrix.strided())
    }
}

impl Element for f32 {
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }

    #[inline(always)]
    fn store(value: f32) -> Self {
        value
    }

    fn of_slice(slice: Slice<'_>) -> &[f32] {
        match slice {
            Slice::F32(s) => s,
            Slice::Bf16(_) => panic!("expected f32, got bf16"),
        }
    }

    fn of_slice_mut(slice: SliceMut<'_>) -> &mut [f32] {
        match slice {
            SliceMut::F32(s) => s,
            SliceMut::Bf16(_) => panic!("expected f32, got bf16"),
        }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn load(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn store(value: f32) -> Self {
        // Branch-free, unlike `bf16::from_f32`, so that loops vectorize; the same values, NaN made quiet
        // included.
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
    }

    fn of_slice(slice: Slice<'_>) -> &[bf16] {
        match slice {
            Slice::Bf16(s) => s,
            Slice::F32(_) => panic!("expected bf16, got f32"),
        }
    }

    fn of_slice_mut(slice: SliceMut<'_>) -> &mut [bf16] {
        match slice {
            SliceMut::Bf16(s) => s,
            SliceMut::F32(_) => panic!("expected bf16, got f32"),
        }
    }
}

/// `eˣ` to about 1e-7 relative; 0 below -87.3, infinite above 88.37 (shortly before `f32` ends); NaN stays
/// NaN.
///
/// Range reduction and polynomial of Cephes' `expf` (S. L. Moshier).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer that stands in the low bits
    const LN2_HIGH: f32 = 0.693_359_4; // a few bits, so that n times it is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const SMALLEST: f32 = -87.3;
    const LARGEST: f32 = 88.37; // beyond it the exponent's bits run over
    let c = if x < SMALLEST { SMALLEST } else { x };
    let c = if c > LARGEST { LARGEST } else { c };
    let shifted = c * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (c - n * LN2_HIGH) - n * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let mantissa = p * (r * r) + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let value = mantissa * f32::from_bits(exponent);
    let value = if x > LARGEST { f32::INFINITY } else { value };
    if x < SMALLEST { 0.0 } else { value }
}

/// `1 / (1 + e⁻ˣ)`
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh x` to about 5e-7 relative, from -1 to 1 whatever `x`.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    tanh_and_slope(x).0
}

/// [`tanh`] and its slope `1 - tanh² x`, to about 5e-7 relative, also where little is left of it.
#[inline(always)]
pub(crate) fn tanh_and_slope(x: f32) -> (f32, f32) {
    let e = exp(-2.0 * x.abs());
    let inverse = 1.0 / (1.0 + e);
    // The quotient cancels near zero, where the first terms of the series are exact enough.
    let square = x * x;
    let series = -1.0 / 3.0 + square * (2.0 / 15.0 + square * (-17.0 / 315.0));
    let near = x + x * square * series;
    let far = ((1.0 - e) * inverse).copysign(x);
    (if square < 0.04 { near } else { far }, 4.0 * e * inverse * inverse)
}

/// Folds lanes into one number in a fixed order.
#[inline(always)]
pub(crate) fn fold(lanes: [f32; LANES], with: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = with(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ term(x[i])`, in [`LANES`] partial sums.
#[inline(always)]
pub(crate) fn sum<X: Element>(x: &[X], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(x.load());
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += term(x.load());
    }
    fold(lanes, |a, b| a + b)
}

/// `Σ x[i] * y[i] * of(z[i])`, in [`LANES`] partial sums.
#[inline(always)]
pub(crate) fn dot3<X: Element, Y: Element, Z: Element>(
    x: &[X],
    y: &[Y],
    z: &[Z],
    of: impl Fn(f32) -> f32,
) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((xs, x), (ys, y), (zs, z)) =
        (x.as_chunks::<LANES>(), y.as_chunks::<LANES>(), z.as_chunks::<LANES>());
    for ((x, y), z) in xs.iter().zip(ys).zip(zs) {
        for i in 0..LANES {
            lanes[i] += x[i].load() * y[i].load() * of(z[i].load());
        }
    }
    for (i, ((x, y), z)) in x.iter().zip(y).zip(z).enumerate() {
        lanes[i] += x.load() * y.load() * of(z.load());
    }
    fold(lanes, |a, b| a + b)
}

/// The largest element; negative infinity for an empty slice.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, *x);
    }
    fold(lanes, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_two_units_in_the_last_place() {
        for i in -873_000..=883_700 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 1.5e-7, "exp({x}): relative error {error:e}");
        }
    }

    #[test]
    fn tanh_is_accurate_to_a_few_units_in_the_last_place() {
        for i in -200_000..=200_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - want).abs() / want.abs().max(1e-30);
            assert!(error < 8e-7, "tanh({x}): relative error {error:e}");
        }
        for i in -8_000..=8_000 {
            let x = i as f32 * 5e-3;
            let want = 1.0 / f64::from(x).cosh().powi(2);
            let error = (f64::from(tanh_and_slope(x).1) - want).abs() / want;
            assert!(error < 8e-7, "slope of tanh at {x}: relative error {error:e}");
        }
        assert_eq!([-1e30, 1e30, f32::INFINITY, f32::NEG_INFINITY].map(tanh), [-1.0, 1.0, 1.0, -1.0]);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn exp_of_the_extremes_is_zero_infinite_or_nan() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(100.0), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn storing_bf16_agrees_with_the_half_crate() {
        for i in 0..1_000_000_u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            let (ours, theirs) = (<bf16 as Element>::store(x), bf16::from_f32(x));
            assert_eq!(ours.to_bits(), theirs.to_bits(), "{x}");
        }
    }
}
