//! Rotary embedding on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::MatrixMut;
use crate::ops::rope::RopeTable;

/// Turns by the angle of each token's row of the table times `direction` (1 or -1).
pub(crate) fn turn(cpu: &Cpu, x: MatrixMut<'_>, table: &RopeTable, rows: &[u32], direction: f32) {
    let (tokens, width) = (x.rows(), x.cols());
    let (cos, sin) = (table.cos.as_ref().f32(), table.sin.as_ref().f32());
    by_dtype!(x.dtype(), X => {
        cpu.for_rows(width, RowsMut::new(X::of_mut(x), tokens), |range, x| {
            turn_rows(x, table, cos, sin, &rows[range], direction);
        });
    });
}

multiversion! {
    fn turn_rows<X: Element>(x: &mut [X], table: &RopeTable, cos: &[f32], sin: &[f32], rows: &[u32], direction: f32) {
        let half = table.dims / 2;
        let width = x.len() / rows.len();
        for (x, &row) in x.chunks_exact_mut(width).zip(rows) {
            let first = row as usize * half;
            let (cos, sin) = (&cos[first..][..half], &sin[first..][..half]);
            let angles = || cos.iter().zip(sin).map(|(cos, sin)| (cos, sin * direction));
            for head in x.chunks_exact_mut(table.head_dim()) {
                let head = &mut head[..table.dims];
                if table.interleaved {
                    let (pairs, _) = head.as_chunks_mut::<2>();
                    pairs.iter_mut().zip(angles()).for_each(|([a, b], angle)| turn_pair(a, b, angle));
                } else {
                    let (a, b) = head.split_at_mut(half);
                    a.iter_mut().zip(b).zip(angles()).for_each(|((a, b), angle)| turn_pair(a, b, angle));
                }
            }
        }
    }
}

#[inline(always)]
fn turn_pair<X: Element>(a: &mut X, b: &mut X, (cos, sin): (&f32, f32)) {
    let (u, v) = (a.load(), b.load());
    *a = X::store(u * cos - v * sin);
    *b = X::store(v * cos + u * sin);
}
