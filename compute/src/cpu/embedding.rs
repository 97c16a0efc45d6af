//! Embedding on the host.

use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use super::{Cpu, quant};
use crate::quant::Quantized;
use crate::{MatrixMut, MatrixRef};

/// What a value of codes costs in units of an addition, about.
const DECODING: usize = 8;

pub(crate) fn forward(cpu: &Cpu, y: MatrixMut<'_>, table: MatrixRef<'_>, ids: &[u32]) {
    by_dtype!(y.dtype(), Y => by_dtype!(table.dtype(), W => forward_typed::<Y, W>(cpu, y, table, ids)));
}

fn forward_typed<Y: Element, W: Element>(cpu: &Cpu, y: MatrixMut<'_>, table: MatrixRef<'_>, ids: &[u32]) {
    let width = y.cols();
    let table = W::of(table);
    cpu.for_rows(width, RowsMut::new(Y::of_mut(y), ids.len()), |rows, y| gather(y, table, &ids[rows], width));
}

pub(crate) fn forward_quantized(cpu: &Cpu, y: MatrixMut<'_>, table: &Quantized, ids: &[u32]) {
    let width = y.cols();
    by_dtype!(y.dtype(), Y => {
        cpu.for_rows(DECODING * width, RowsMut::new(Y::of_mut(y), ids.len()), |rows, y| {
            for (y, &id) in y.chunks_exact_mut(width).zip(&ids[rows]) {
                quant::run(table, id as usize * width, y);
            }
        });
    });
}

multiversion! {
    fn gather<Y: Element, W: Element>(y: &mut [Y], table: &[W], ids: &[u32], width: usize) {
        for (y, &id) in y.chunks_exact_mut(width).zip(ids) {
            for (y, w) in y.iter_mut().zip(&table[id as usize * width..][..width]) {
                *y = Y::store(w.load());
            }
        }
    }
}

pub(crate) fn add(cpu: &Cpu, y: MatrixMut<'_>, table: MatrixRef<'_>, ids: &[u32]) {
    let width = y.cols();
    by_dtype!(y.dtype(), Y => by_dtype!(table.dtype(), W => {
        let table = W::of(table);
        cpu.for_rows(width, RowsMut::new(Y::of_mut(y), ids.len()), |rows, y| {
            gather_add(y, table, &ids[rows], width);
        });
    }));
}

multiversion! {
    fn gather_add<Y: Element, W: Element>(y: &mut [Y], table: &[W], ids: &[u32], width: usize) {
        for (y, &id) in y.chunks_exact_mut(width).zip(ids) {
            for (y, w) in y.iter_mut().zip(&table[id as usize * width..][..width]) {
                *y = Y::store(y.load() + w.load());
            }
        }
    }
}

pub(crate) fn backward(cpu: &Cpu, dtable: MatrixMut<'_>, dy: MatrixRef<'_>, ids: &[u32]) {
    by_dtype!(dy.dtype(), Y => backward_typed::<Y>(cpu, dtable, dy, ids));
}

fn backward_typed<Y: Element>(cpu: &Cpu, dtable: MatrixMut<'_>, dy: MatrixRef<'_>, ids: &[u32]) {
    let (vocabulary, width) = (dtable.rows(), dtable.cols());
    let dy = Y::of(dy);
    // A task owns a range of the table and looks through all ids for its rows: no row is written by two
    // threads, and its sum is in the order of the tokens.
    let work = (ids.len() * width).div_ceil(vocabulary.max(1));
    cpu.for_rows(work, RowsMut::new(dtable.f32(), vocabulary), |range, dtable| {
        for (t, &id) in ids.iter().enumerate().filter(|&(_, &id)| range.contains(&(id as usize))) {
            add_row(&mut dtable[(id as usize - range.start) * width..][..width], &dy[t * width..][..width]);
        }
    });
}

multiversion! {
    fn add_row<Y: Element>(sum: &mut [f32], dy: &[Y]) {
        for (sum, dy) in sum.iter_mut().zip(dy) {
            *sum += dy.load();
        }
    }
}
