//! Copies, and rows that are gathered and scattered.

use compute::ops::copy::{copy, fill, gather, scatter};
use compute::{DType, Device, Matrix};

use crate::common::{DTYPES, ids, matrix, on_threads, shapes, stored};

/// Both element types, of what is written and of what is read.
fn kinds() -> impl Iterator<Item = (DType, DType)> {
    DTYPES.into_iter().flat_map(|to| DTYPES.map(|from| (to, from)))
}

#[test]
fn columns_are_copied_out_and_back_to_where_they_were() {
    for (rows, cols) in shapes() {
        for (to, from) in kinds() {
            let x = matrix(rows, cols, from, 1);
            for (start, end) in [(0, cols), (cols / 3, cols), (cols / 2, (cols / 2 + 1).max(2 * cols / 3))] {
                let got = on_threads(|device| {
                    let mut part = Matrix::zeros(rows, end - start, to);
                    copy(device, part.as_mut(), x.as_ref().cols_range(start..end));
                    let mut whole = matrix(rows, cols, from, 2);
                    copy(device, whole.as_mut().cols_range(start..end), part.as_ref());
                    let mut filled = matrix(rows, cols, from, 2);
                    fill(device, filled.as_mut().cols_range(start..end), 0.3);
                    vec![part.to_vec(), whole.to_vec(), filled.to_vec()]
                });
                let (x, other) = (x.to_vec(), matrix(rows, cols, from, 2).to_vec());
                let inside = |at: usize| (start..end).contains(&(at % cols));
                for (at, value) in got[1].iter().enumerate() {
                    let copied = stored(stored(x[at], to), from);
                    assert_eq!(*value, if inside(at) { copied } else { other[at] });
                    assert_eq!(got[2][at], if inside(at) { stored(0.3, from) } else { other[at] });
                }
                let part = x.chunks(cols).flat_map(|row| row[start..end].iter().map(|v| stored(*v, to)));
                assert_eq!(got[0], part.collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn rows_are_gathered_and_scattered_by_their_numbers() {
    for (rows, cols) in shapes() {
        for (to, from) in kinds() {
            let (x, numbers) = (matrix(13, cols + 3, from, 1), ids(rows, 13, 2));
            let of_x = |row: usize| x.to_vec()[row * (cols + 3) + 1..][..cols].to_vec();
            let got = on_threads(|device| {
                let mut taken = Matrix::zeros(rows, cols, to);
                let part = x.as_ref().cols_range(1..cols + 1);
                gather(device, taken.as_mut(), part, (&numbers).into());
                let mut back = matrix(13, cols + 3, from, 3);
                let part = back.as_mut().cols_range(2..cols + 2);
                scatter(device, part, taken.as_ref(), (&numbers).into());
                vec![taken.to_vec(), back.to_vec()]
            });
            let want: Vec<f32> =
                numbers.iter().flat_map(|&row| of_x(row as usize)).map(|v| stored(v, to)).collect();
            assert_eq!(got[0], want);
            for (row, back) in got[1].chunks(cols + 3).enumerate() {
                let mut want =
                    matrix(13, cols + 3, from, 3).to_vec()[row * (cols + 3)..][..cols + 3].to_vec();
                if numbers.contains(&(row as u32)) {
                    let values = of_x(row).into_iter().map(|v| stored(stored(v, to), from));
                    want[2..cols + 2].copy_from_slice(&values.collect::<Vec<_>>());
                }
                assert_eq!(back, want);
            }
        }
    }
}

#[test]
fn matrices_without_columns_and_parts_of_one_row_are_moved_too() {
    for device in [Device::cpu(1), Device::cpu(3)] {
        let device = &device;
        let (mut y, x) = (Matrix::zeros(3, 0, DType::F32), matrix(3, 5, DType::F32, 1));
        let none = x.as_ref().cols_range(2..2);
        copy(device, y.as_mut(), none);
        fill(device, y.as_mut(), 1.0);
        gather(device, y.as_mut(), none, (&[2, 0, 1]).into());
        scatter(device, y.as_mut(), none, (&[2, 0, 1]).into());
        let mut flat = Matrix::zeros(1, 300_000, DType::F32);
        fill(device, flat.as_mut().cols_range(7..250_007), 0.5);
        assert_eq!(flat.to_vec().iter().filter(|v| **v == 0.5).count(), 250_000);
    }
}

#[test]
fn of_a_row_that_is_named_twice_the_last_one_counts() {
    let (mut y, x) = (Matrix::zeros(3, 2, DType::F32), matrix(3, 2, DType::F32, 1));
    scatter(&Device::cpu(2), y.as_mut(), x.as_ref(), (&[1, 2, 1]).into());
    assert_eq!(y.to_vec()[2..4], x.to_vec()[4..6]);
}

#[test]
#[should_panic(expected = "columns 3..6 of 5")]
fn columns_beyond_the_last_are_refused() {
    Matrix::zeros(2, 5, DType::F32).as_ref().cols_range(3..6);
}

#[test]
#[should_panic(expected = "row 3 of 3")]
fn rows_beyond_the_last_are_refused() {
    let (mut y, x) = (Matrix::zeros(1, 2, DType::F32), matrix(3, 2, DType::F32, 1));
    gather(&Device::cpu(1), y.as_mut(), x.as_ref(), (&[3]).into());
}

#[test]
#[should_panic(expected = "rows of 2 columns, 5 apart")]
fn a_part_of_the_columns_is_not_reshaped() {
    Matrix::zeros(2, 5, DType::F32).as_ref().cols_range(0..2).reshape(4, 1);
}
