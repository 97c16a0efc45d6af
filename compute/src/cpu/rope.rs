//! Rotary embedding on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::MatrixMut;
use crate::ops::rope::RopeTable;

/// Turns by the position's angle times `direction` (1 or -1).
pub(crate) fn turn(cpu: &Cpu, x: MatrixMut<'_>, table: &RopeTable, positions: &[u32], direction: f32) {
    let (tokens, width) = (x.rows(), x.cols());
    by_dtype!(x.dtype(), X => {
        cpu.for_rows(width, RowsMut::new(X::of_mut(x), tokens), |rows, x| {
            turn_rows(x, table, &positions[rows], direction);
        });
    });
}

multiversion! {
    fn turn_rows<X: Element>(x: &mut [X], table: &RopeTable, positions: &[u32], direction: f32) {
        let (head, half) = (table.head_dim(), table.head_dim() / 2);
        let width = x.len() / positions.len();
        for (row, &position) in x.chunks_exact_mut(width).zip(positions) {
            let first = position as usize * half;
            let (cos, sin) = (&table.cos[first..][..half], &table.sin[first..][..half]);
            for head in row.chunks_exact_mut(head) {
                let (a, b) = head.split_at_mut(half);
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    let (u, v, sin) = (a.load(), b.load(), sin * direction);
                    *a = X::store(u * cos - v * sin);
                    *b = X::store(v * cos + u * sin);
                }
            }
        }
    }
}
