//! GPTQ on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::multiversion;
use crate::quant::blocks::{BlockType, GROUP};
use crate::{MatrixMut, MatrixRef};

/// Rows that pass the columns together: what is read of `u` serves all of them.
const TILE: usize = 32;

/// Writes the blocks of `w`, whose rows do not depend on each other.
pub(crate) fn quantize(cpu: &Cpu, w: MatrixMut<'_>, u: MatrixRef<'_>, kind: BlockType, to: &mut [u8]) {
    let (out, inner) = (w.rows(), w.cols());
    let row_bytes = kind.size_bytes(inner);
    let u = u.f32();
    let rows = (RowsMut::new(w.f32(), out), RowsMut::new(to, out));
    cpu.for_rows(inner * inner, rows, |_, (w, to)| {
        for (w, to) in w.chunks_mut(TILE * inner).zip(to.chunks_mut(TILE * row_bytes)) {
            tile(w, u, inner, kind, to);
        }
    });
}

fn tile(w: &mut [f32], u: &[f32], inner: usize, kind: BlockType, to: &mut [u8]) {
    let (rows, row_bytes) = (w.len() / inner, kind.size_bytes(inner));
    let mut errors = [[0.0_f32; GROUP]; TILE];
    for first in (0..inner).step_by(GROUP) {
        for (row, errors) in errors.iter_mut().enumerate().take(rows) {
            let w = &mut w[row * inner..][first..first + GROUP];
            let block = &mut to[row * row_bytes + first / GROUP * kind.bytes()..][..kind.bytes()];
            let scale = kind.begin_affine(w, block);
            let mut codes = [0; GROUP];
            for i in 0..GROUP {
                let u = &u[(first + i) * inner + first..][..GROUP];
                let (code, value) = scale.nearest(w[i]);
                codes[i] = code;
                errors[i] = (w[i] - value) / u[i];
                for j in i + 1..GROUP {
                    w[j] -= errors[i] * u[j];
                }
            }
            kind.put_codes(block, codes);
        }
        let rest = first + GROUP;
        for i in 0..GROUP {
            let u = &u[(first + i) * inner + rest..][..inner - rest];
            for (row, errors) in errors.iter().enumerate().take(rows) {
                take_off(&mut w[row * inner + rest..][..inner - rest], u, errors[i]);
            }
        }
    }
}

multiversion! {
    /// `w -= error * u`
    fn take_off(w: &mut [f32], u: &[f32], error: f32) {
        for (w, u) in w.iter_mut().zip(u) {
            *w -= error * u;
        }
    }
}
