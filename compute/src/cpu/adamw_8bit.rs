//! AdamW with moments in eight bits, on the host.

use std::sync::LazyLock;

use super::Cpu;
use super::rows::RowsMut;
use super::simd::multiversion;
use crate::ops::adamw_8bit::{BLOCK, Moments8};
use crate::ops::optimizer::AdamW;
use crate::quant::dynamic_map;

/// What a block costs in units of an addition: the arithmetic of AdamW, and the codes back and forth.
const BLOCK_COST: usize = 24 * BLOCK;

/// Points of the grid on which values are encoded.
const POINTS: usize = 1 << 16;

/// A data type of 256 values: what the codes mean, and the code of each point of the grid.
struct Codec {
    map: &'static [f32; 256],
    codes: Box<[u8; POINTS]>,
}

static SIGNED: LazyLock<Codec> = LazyLock::new(|| Codec::new(dynamic_map::signed()));
static UNSIGNED: LazyLock<Codec> = LazyLock::new(|| Codec::new(dynamic_map::unsigned()));

impl Codec {
    fn new(map: &'static [f32; 256]) -> Self {
        let mut codes = vec![0; POINTS];
        let mut code = 0;
        for (k, to) in codes.iter_mut().enumerate() {
            let point = (2 * k) as f32 / (POINTS - 1) as f32 - 1.0;
            while code < 255 && point > (map[code] + map[code + 1]) * 0.5 {
                code += 1;
            }
            *to = code as u8;
        }
        Codec { map, codes: codes.try_into().expect("as many codes as points") }
    }
}

/// A step's constants as the kernel wants them.
struct Constants {
    decay: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root_correction2: f32,
    eps: f32,
    minus_step_size: f32,
    grad_scale: f32,
}

impl Constants {
    fn new(s: &AdamW, grad_scale: f32) -> Self {
        let correction1 = 1.0 - s.beta1.powf(s.step as f64);
        let correction2 = 1.0 - s.beta2.powf(s.step as f64);
        Constants {
            decay: (1.0 - s.learning_rate * s.weight_decay) as f32,
            beta1: s.beta1 as f32,
            one_minus_beta1: (1.0 - s.beta1) as f32,
            beta2: s.beta2 as f32,
            one_minus_beta2: (1.0 - s.beta2) as f32,
            root_correction2: correction2.sqrt() as f32,
            eps: s.eps as f32,
            minus_step_size: -(s.learning_rate / correction1) as f32,
            grad_scale,
        }
    }
}

pub(crate) fn adamw_8bit(
    cpu: &Cpu,
    params: &mut [f32],
    grads: &[f32],
    moments: Moments8<'_>,
    settings: &AdamW,
    grad_scale: f32,
) {
    let constants = &Constants::new(settings, grad_scale);
    let (signed, unsigned) = (&*SIGNED, &*UNSIGNED);
    let Moments8 { m, v, m_absmax, v_absmax } = moments;
    let (full, whole) = (params.len() / BLOCK, params.len() / BLOCK * BLOCK);
    let (params, params_rest) = params.split_at_mut(whole);
    let (grads, grads_rest) = grads.split_at(whole);
    let ((m, m_rest), (v, v_rest)) = (m.split_at_mut(whole), v.split_at_mut(whole));
    let (m_absmax, m_absmax_rest) = m_absmax.split_at_mut(full);
    let (v_absmax, v_absmax_rest) = v_absmax.split_at_mut(full);
    let out = (
        RowsMut::new(params, full),
        RowsMut::new(m, full),
        RowsMut::new(v, full),
        RowsMut::new(m_absmax, full),
        RowsMut::new(v_absmax, full),
    );
    cpu.for_rows(BLOCK_COST, out, |range, (params, m, v, m_absmax, v_absmax)| {
        let grads = &grads[range.start * BLOCK..range.end * BLOCK];
        blocks(params, grads, m, v, m_absmax, v_absmax, constants, signed, unsigned);
    });
    blocks(
        params_rest,
        grads_rest,
        m_rest,
        v_rest,
        m_absmax_rest,
        v_absmax_rest,
        constants,
        signed,
        unsigned,
    );
}

multiversion! {
    fn blocks(
        params: &mut [f32], grads: &[f32], m: &mut [u8], v: &mut [u8], m_absmax: &mut [f32], v_absmax: &mut [f32],
        c: &Constants, signed: &Codec, unsigned: &Codec
    ) {
        for (i, (m_absmax, v_absmax)) in m_absmax.iter_mut().zip(v_absmax).enumerate() {
            let range = i * BLOCK..params.len().min((i + 1) * BLOCK);
            let (params, grads) = (&mut params[range.clone()], &grads[range.clone()]);
            let (m_codes, v_codes) = (&mut m[range.clone()], &mut v[range]);
            // What lies behind a short block's end stays zero, and zeros change no largest magnitude.
            let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
            decode(m_codes, *m_absmax, signed, &mut m);
            decode(v_codes, *v_absmax, unsigned, &mut v);
            for (((p, g), m), v) in params.iter_mut().zip(grads).zip(&mut m).zip(&mut v) {
                let g = g * c.grad_scale;
                *m = *m * c.beta1 + c.one_minus_beta1 * g;
                *v = *v * c.beta2 + c.one_minus_beta2 * g * g;
                let denominator = v.sqrt() / c.root_correction2 + c.eps;
                *p = *p * c.decay + c.minus_step_size * *m / denominator;
            }
            *m_absmax = encode(&m, signed, m_codes);
            *v_absmax = encode(&v, unsigned, v_codes);
        }
    }
}

#[inline(always)]
fn decode(codes: &[u8], absmax: f32, codec: &Codec, values: &mut [f32; BLOCK]) {
    for (value, &code) in values.iter_mut().zip(codes) {
        *value = codec.map[usize::from(code)] * absmax;
    }
}

/// Rounds a block to codes; returns its largest magnitude.
#[inline(always)]
fn encode(values: &[f32; BLOCK], codec: &Codec, codes: &mut [u8]) -> f32 {
    let mut largest = [0.0f32; 16];
    for chunk in values.as_chunks::<16>().0 {
        for (largest, value) in largest.iter_mut().zip(chunk) {
            let magnitude = value.abs();
            *largest = if magnitude > *largest { magnitude } else { *largest };
        }
    }
    let absmax = largest.iter().fold(0.0f32, |a, &b| a.max(b));
    if absmax == 0.0 {
        codes.fill(0);
        return 0.0;
    }
    let inverse = 1.0 / absmax;
    let mut points = [0i32; BLOCK];
    for (point, &value) in points.iter_mut().zip(values) {
        let x = (value * inverse).clamp(-1.0, 1.0);
        // In bitsandbytes a fused multiplication and addition; in f64 both are exact, and what is left is its rounding.
        let at = f64::from((x + 1.0) * 0.5) * (POINTS - 1) as f64 + 0.5;
        *point = at as f32 as i32;
    }
    for (code, &point) in codes.iter_mut().zip(&points) {
        *code = codec.codes[point as usize & (POINTS - 1)];
    }
    absmax
}
