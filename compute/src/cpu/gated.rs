//! Gated activations on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, exp, multiversion, sigmoid};
use crate::ops::gated::Activation;
use crate::{MatrixMut, MatrixRef};

/// An activation function as a type, so that its loop is compiled for it.
pub(super) trait Act {
    fn value(x: f32) -> f32 {
        Self::value_and_slope(x).0
    }

    /// `act(x)` and `act'(x)`
    fn value_and_slope(x: f32) -> (f32, f32);
}

pub(super) struct Silu;
pub(super) struct Gelu;
pub(super) struct GeluTanh;

/// Evaluates an expression with a type name bound to what an [`Activation`] stands for.
macro_rules! by_activation {
    ($activation:expr, $name:ident => $body:expr) => {
        match $activation {
            Activation::Silu => {
                type $name = $crate::cpu::gated::Silu;
                $body
            }
            Activation::Gelu => {
                type $name = $crate::cpu::gated::Gelu;
                $body
            }
            Activation::GeluTanh => {
                type $name = $crate::cpu::gated::GeluTanh;
                $body
            }
        }
    };
}
pub(super) use by_activation;

impl Act for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let s = sigmoid(x);
        (x * s, s * (1.0 + x * (1.0 - s)))
    }
}

impl Act for Gelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * normal_distribution(x)
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        const DENSITY_AT_0: f32 = 0.398_942_3;
        let p = normal_distribution(x);
        (x * p, p + x * (DENSITY_AT_0 * exp(-0.5 * x * x)))
    }
}

impl Act for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        let (s, _) = gelu_tanh_gate(x);
        x * s
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let (s, du) = gelu_tanh_gate(x);
        // At the far ends du * x overflows where 1 - s is 0; the slope there is s itself.
        let bend = if s > 0.0 && s < 1.0 { 2.0 * x * du * (1.0 - s) } else { 0.0 };
        (x * s, s * (1.0 + bend))
    }
}

/// `σ(2u)` and `u'` for `u = √(2/π) (x + 0.044715 x³)`
#[inline(always)]
fn gelu_tanh_gate(x: f32) -> (f32, f32) {
    const SCALE: f32 = 0.797_884_6; // √(2/π)
    const CUBIC: f32 = 0.044_715;
    let u = SCALE * (x + CUBIC * x * x * x);
    (sigmoid(2.0 * u), SCALE * (1.0 + 3.0 * CUBIC * x * x))
}

/// `Φ(x) = erfc(-x / √2) / 2`, with the Chebyshev fit of erfc in Numerical Recipes (`erfcc`), whose relative
/// error is below 1.2e-7.
#[inline(always)]
fn normal_distribution(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    let p = 0.170_872_77;
    let p = p * t - 0.822_152_23;
    let p = p * t + 1.488_515_9;
    let p = p * t - 1.135_204;
    let p = p * t + 0.278_868_07;
    let p = p * t - 0.186_288_06;
    let p = p * t + 0.096_784_18;
    let p = p * t + 0.374_091_96;
    let p = p * t + 1.000_023_7;
    let p = p * t - 1.265_512_2;
    let tail = 0.5 * (t * exp(p - z * z));
    if x < 0.0 { tail } else { 1.0 - tail }
}

pub(crate) fn forward(
    cpu: &Cpu,
    activation: Activation,
    y: MatrixMut<'_>,
    gate: MatrixRef<'_>,
    up: MatrixRef<'_>,
) {
    by_dtype!(y.dtype(), X => by_activation!(activation, A => forward_typed::<X, A>(cpu, y, gate, up)));
}

fn forward_typed<X: Element, A: Act>(cpu: &Cpu, y: MatrixMut<'_>, gate: MatrixRef<'_>, up: MatrixRef<'_>) {
    let (y, gate, up) = (X::of_mut(y), X::of(gate), X::of(up));
    let len = y.len();
    cpu.for_rows(COST, RowsMut::new(y, len), |range, y| {
        forward_slice::<X, A>(y, &gate[range.clone()], &up[range]);
    });
}

/// What an element costs here in units of an addition: the exponential and the division.
pub(super) const COST: usize = 8;

multiversion! {
    fn forward_slice<X: Element, A: Act>(y: &mut [X], gate: &[X], up: &[X]) {
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = X::store(A::value(gate.load()) * up.load());
        }
    }
}

pub(crate) fn backward(
    cpu: &Cpu,
    activation: Activation,
    gate: MatrixMut<'_>,
    up: MatrixMut<'_>,
    dy: MatrixRef<'_>,
) {
    by_dtype!(dy.dtype(), X => by_activation!(activation, A => backward_typed::<X, A>(cpu, gate, up, dy)));
}

fn backward_typed<X: Element, A: Act>(cpu: &Cpu, gate: MatrixMut<'_>, up: MatrixMut<'_>, dy: MatrixRef<'_>) {
    let (gate, up, dy) = (X::of_mut(gate), X::of_mut(up), X::of(dy));
    let len = dy.len();
    cpu.for_rows(COST, (RowsMut::new(gate, len), RowsMut::new(up, len)), |range, (gate, up)| {
        backward_slice::<X, A>(gate, up, &dy[range]);
    });
}

multiversion! {
    fn backward_slice<X: Element, A: Act>(gate: &mut [X], up: &mut [X], dy: &[X]) {
        for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
            let (value, slope) = A::value_and_slope(gate.load());
            let (u, d) = (up.load(), dy.load());
            *gate = X::store(d * u * slope);
            *up = X::store(d * value);
        }
    }
}
