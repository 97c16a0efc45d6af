//! Columns of a matrix, there and back.

use compute::ops::{columns, embedding};
use compute::{DType, Device, Matrix};

use crate::common::{DTYPES, assert_close, ids, matrix, on_threads, shapes, wide};

#[test]
fn columns_are_taken_and_put_where_they_were() {
    for (rows, cols) in shapes() {
        for dtype in DTYPES {
            let x = matrix(rows, cols, dtype, 1);
            for (start, end) in [(0, cols), (cols / 3, cols), (cols / 2, (cols / 2 + 1).max(2 * cols / 3))] {
                let got = on_threads(|device| {
                    let mut part = Matrix::zeros(rows, end - start, dtype);
                    columns::take(device, part.as_mut(), x.as_ref(), start);
                    let mut whole = matrix(rows, cols, dtype, 2);
                    columns::put(device, whole.as_mut(), part.as_ref(), start);
                    vec![part.to_vec(), whole.to_vec()]
                });
                let (x, other) = (x.to_vec(), matrix(rows, cols, dtype, 2).to_vec());
                let inside = |c: usize| (start..end).contains(&c);
                for (at, value) in got[1].iter().enumerate() {
                    assert_eq!(*value, if inside(at % cols) { x[at] } else { other[at] });
                }
                let part: Vec<f32> = x.chunks(cols).flat_map(|row| row[start..end].to_vec()).collect();
                assert_eq!(got[0], part);
            }
        }
    }
}

#[test]
#[should_panic(expected = "columns 3..6 of 5")]
fn columns_beyond_the_last_are_refused() {
    let (mut y, x) = (Matrix::zeros(2, 3, DType::F32), Matrix::zeros(2, 5, DType::F32));
    columns::take(&Device::cpu(1), y.as_mut(), x.as_ref(), 3);
}

#[test]
fn rows_of_a_second_table_are_added() {
    for (rows, cols) in shapes() {
        for (dtype, of_table) in DTYPES.into_iter().flat_map(|a| DTYPES.map(|b| (a, b))) {
            let (table, ids) = (matrix(13, cols, of_table, 1), ids(rows, 13, 2));
            let got = on_threads(|device| {
                let mut y = matrix(rows, cols, dtype, 3);
                embedding::add(device, y.as_mut(), table.as_ref(), &ids);
                vec![y.to_vec()]
            });
            let (table, mut want) = (wide(&table), wide(&matrix(rows, cols, dtype, 3)));
            for (row, &id) in want.chunks_mut(cols).zip(&ids) {
                row.iter_mut().zip(&table[id as usize * cols..]).for_each(|(y, w)| *y += w);
            }
            assert_close(dtype, &got[0], &want, "y");
        }
    }
}
