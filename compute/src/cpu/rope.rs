//! Rotary embedding on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::MatrixMut;
use crate::ops::rope::RopeTable;

/// Turns by the angle of each token's row of the table times `direction` (1 or -1).
pub(crate) fn turn(cpu: &Cpu, x: MatrixMut<'_>, table: &RopeTable, rows: &[u32], direction: f32) {
    let (tokens, width) = (x.rows(), x.cols());
    by_dtype!(x.dtype(), X => {
        cpu.for_rows(width, RowsMut::new(X::of_mut(x), tokens), |range, x| {
            if table.interleaved {
                turn_neighbours(x, table, &rows[range], direction);
            } else {
                turn_halves(x, table, &rows[range], direction);
            }
        });
    });
}

multiversion! {
    fn turn_halves<X: Element>(x: &mut [X], table: &RopeTable, rows: &[u32], direction: f32) {
        let half = table.dims / 2;
        let width = x.len() / rows.len();
        for (x, &row) in x.chunks_exact_mut(width).zip(rows) {
            let first = row as usize * half;
            let (cos, sin) = (&table.cos[first..][..half], &table.sin[first..][..half]);
            for head in x.chunks_exact_mut(table.head_dim()) {
                let (a, b) = head[..table.dims].split_at_mut(half);
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    let (u, v, sin) = (a.load(), b.load(), sin * direction);
                    *a = X::store(u * cos - v * sin);
                    *b = X::store(v * cos + u * sin);
                }
            }
        }
    }
}

multiversion! {
    fn turn_neighbours<X: Element>(x: &mut [X], table: &RopeTable, rows: &[u32], direction: f32) {
        let half = table.dims / 2;
        let width = x.len() / rows.len();
        for (x, &row) in x.chunks_exact_mut(width).zip(rows) {
            let first = row as usize * half;
            let (cos, sin) = (&table.cos[first..][..half], &table.sin[first..][..half]);
            for head in x.chunks_exact_mut(table.head_dim()) {
                let (pairs, _) = head[..table.dims].as_chunks_mut::<2>();
                for (([a, b], cos), sin) in pairs.iter_mut().zip(cos).zip(sin) {
                    let (u, v, sin) = (a.load(), b.load(), sin * direction);
                    *a = X::store(u * cos - v * sin);
                    *b = X::store(v * cos + u * sin);
                }
            }
        }
    }
}
