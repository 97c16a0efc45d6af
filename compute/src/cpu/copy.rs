//! Moving elements on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::{MatrixMut, MatrixRef};

pub(crate) fn copy(cpu: &Cpu, y: MatrixMut<'_>, x: MatrixRef<'_>) {
    if y.cols() == 0 {
        return;
    }
    if y.as_ref().is_contiguous() && x.is_contiguous() {
        let n = y.rows() * y.cols();
        return copy_rows(cpu, y.reshape(n, 1), x.reshape(n, 1));
    }
    copy_rows(cpu, y, x);
}

fn copy_rows(cpu: &Cpu, y: MatrixMut<'_>, x: MatrixRef<'_>) {
    let (rows, cols, to_stride, from_stride) = (y.rows(), y.cols(), y.stride(), x.stride());
    by_dtype!(y.dtype(), Y => by_dtype!(x.dtype(), X => {
        let x = X::of_strided(x);
        cpu.for_rows(cols, RowsMut::strided(Y::of_strided_mut(y), rows, to_stride), |range, y| {
            if to_stride == cols && from_stride == cols {
                return move_to(y, &x[range.start * cols..range.end * cols]);
            }
            for (y, row) in y.chunks_mut(to_stride).zip(range) {
                move_to(&mut y[..cols], &x[row * from_stride..][..cols]);
            }
        });
    }));
}

/// Bits stay as they are where the type does: there are two, of different sizes.
fn move_to<Y: Element, X: Element>(y: &mut [Y], x: &[X]) {
    match size_of::<Y>() == size_of::<X>() {
        true => bytemuck::cast_slice_mut::<Y, u8>(y).copy_from_slice(bytemuck::cast_slice(x)),
        false => convert(y, x),
    }
}

multiversion! {
    fn convert<Y: Element, X: Element>(y: &mut [Y], x: &[X]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = Y::store(x.load());
        }
    }
}

pub(crate) fn fill(cpu: &Cpu, y: MatrixMut<'_>, value: f32) {
    let (rows, cols, stride) = (y.rows(), y.cols(), y.stride());
    if cols == 0 {
        return;
    }
    // What lies without gaps may be divided anywhere.
    let whole = y.as_ref().is_contiguous();
    let (rows, cols, stride) = if whole { (rows * cols, 1, 1) } else { (rows, cols, stride) };
    by_dtype!(y.dtype(), Y => {
        let value = Y::store(value);
        cpu.for_rows(cols, RowsMut::strided(Y::of_strided_mut(y), rows, stride), |_, y| {
            if stride == cols {
                return y.fill(value);
            }
            y.chunks_mut(stride).for_each(|y| y[..cols].fill(value));
        });
    });
}

pub(crate) fn gather(cpu: &Cpu, y: MatrixMut<'_>, x: MatrixRef<'_>, rows: &[u32]) {
    let (cols, to_stride, from_stride) = (y.cols(), y.stride(), x.stride());
    if cols == 0 {
        return;
    }
    by_dtype!(y.dtype(), Y => by_dtype!(x.dtype(), X => {
        let x = X::of_strided(x);
        cpu.for_rows(cols, RowsMut::strided(Y::of_strided_mut(y), rows.len(), to_stride), |range, y| {
            for (y, &row) in y.chunks_mut(to_stride).zip(&rows[range]) {
                move_to(&mut y[..cols], &x[row as usize * from_stride..][..cols]);
            }
        });
    }));
}

pub(crate) fn scatter(cpu: &Cpu, y: MatrixMut<'_>, x: MatrixRef<'_>, rows: &[u32]) {
    let (all, cols, to_stride, from_stride) = (y.rows(), y.cols(), y.stride(), x.stride());
    if cols == 0 {
        return;
    }
    // A task owns a range of the rows of `y` and looks through all numbers for them, so that no row is
    // written by two threads.
    let work = (rows.len() * cols).div_ceil(all.max(1));
    by_dtype!(y.dtype(), Y => by_dtype!(x.dtype(), X => {
        let x = X::of_strided(x);
        cpu.for_rows(work, RowsMut::strided(Y::of_strided_mut(y), all, to_stride), |range, y| {
            for (from, &row) in rows.iter().enumerate().filter(|(_, row)| range.contains(&(**row as usize))) {
                let to = &mut y[(row as usize - range.start) * to_stride..][..cols];
                move_to(to, &x[from * from_stride..][..cols]);
            }
        });
    }));
}
