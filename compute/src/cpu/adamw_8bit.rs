//! AdamW with moments in eight bits, on the host.

use super::Cpu;
use super::optimizer::AdamWConstants;
use super::rows::RowsMut;
use super::simd::multiversion;
use crate::ops::adamw_8bit::{BLOCK, Moments8};
use crate::ops::optimizer::AdamW;
use crate::quant::dynamic_map::{self, DynamicMap};

/// What a block costs in units of an addition: the arithmetic of AdamW, and the codes back and forth.
const BLOCK_COST: usize = 24 * BLOCK;

pub(crate) fn adamw_8bit(
    cpu: &Cpu,
    params: &mut [f32],
    grads: &[f32],
    moments: Moments8<'_>,
    settings: &AdamW,
    grad_scale: f32,
) {
    let constants = &AdamWConstants::new(settings);
    let (signed, unsigned) = (dynamic_map::signed(), dynamic_map::unsigned());
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
        blocks(params, grads, m, v, m_absmax, v_absmax, constants, grad_scale, signed, unsigned);
    });
    blocks(
        params_rest,
        grads_rest,
        m_rest,
        v_rest,
        m_absmax_rest,
        v_absmax_rest,
        constants,
        grad_scale,
        signed,
        unsigned,
    );
}

multiversion! {
    fn blocks(
        params: &mut [f32], grads: &[f32], m: &mut [u8], v: &mut [u8], m_absmax: &mut [f32], v_absmax: &mut [f32],
        c: &AdamWConstants, grad_scale: f32, signed: &DynamicMap, unsigned: &DynamicMap
    ) {
        for (i, (m_absmax, v_absmax)) in m_absmax.iter_mut().zip(v_absmax).enumerate() {
            let range = i * BLOCK..params.len().min((i + 1) * BLOCK);
            let (params, grads) = (&mut params[range.clone()], &grads[range.clone()]);
            let (m_codes, v_codes) = (&mut m[range.clone()], &mut v[range]);
            // What lies behind a short block's end stays zero, and zeros change no largest magnitude.
            let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
            signed.decode(m_codes, *m_absmax, &mut m);
            unsigned.decode(v_codes, *v_absmax, &mut v);
            for (((p, g), m), v) in params.iter_mut().zip(grads).zip(&mut m).zip(&mut v) {
                let g = g * grad_scale;
                *m = *m * c.beta1 + c.one_minus_beta1 * g;
                *v = *v * c.beta2 + c.one_minus_beta2 * g * g;
                let denominator = v.sqrt() / c.root_correction2 + c.eps;
                *p = *p * c.decay + c.minus_step_size * *m / denominator;
            }
            *m_absmax = signed.encode(&m, m_codes);
            *v_absmax = unsigned.encode(&v, v_codes);
        }
    }
}
