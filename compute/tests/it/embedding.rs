//! Embedding: rows are looked up exactly, and their gradients summed where they came from.

use compute::ops::embedding;
use compute::{DType, Device, Matrix};

use crate::common::{
    DTYPES, assert_close, assert_within, dot, gradient, ids, matrix, on_threads, shapes, small_shapes,
    stored, wide,
};

/// `y[t] = table[ids[t]]`
fn definition(table: &[f64], ids: &[u32], width: usize) -> Vec<f64> {
    ids.iter().flat_map(|&id| table[id as usize * width..][..width].to_vec()).collect()
}

#[test]
fn a_row_is_the_token_s_row_of_the_table() {
    for (tokens, width) in shapes() {
        for (dtype, table_dtype) in DTYPES.into_iter().flat_map(|a| DTYPES.map(|b| (a, b))) {
            let table = matrix(13, width, table_dtype, 1);
            let ids = ids(tokens, 13, 2);
            let y = on_threads(|device| {
                let mut y = Matrix::zeros(tokens, width, dtype);
                embedding::forward(device, y.as_mut(), table.as_ref(), (&ids).into());
                vec![y.to_vec()]
            });
            let want = definition(&wide(&table), &ids, width);
            let want: Vec<f32> = want.into_iter().map(|v| stored(v as f32, dtype)).collect();
            assert_eq!(y[0], want);
        }
    }
}

#[test]
fn the_table_s_gradient_is_that_of_the_definition() {
    for (tokens, width) in small_shapes() {
        for dtype in DTYPES {
            let (table, dy) = (matrix(7, width, DType::F32, 1), matrix(tokens, width, dtype, 2));
            let ids = ids(tokens, 7, 3);
            let got = on_threads(|device| {
                let mut dtable = matrix(7, width, DType::F32, 4);
                embedding::backward(device, dtable.as_mut(), dy.as_ref(), (&ids).into());
                vec![dtable.to_vec()]
            });
            let held = wide(&matrix(7, width, DType::F32, 4));
            let slope = gradient(&wide(&table), |table| dot(&definition(table, &ids, width), &wide(&dy)));
            let want: Vec<f64> = held.iter().zip(slope).map(|(a, b)| a + b).collect();
            assert_within(1e-6, &got[0], &want, "dtable");
        }
    }
}

#[test]
fn many_tokens_on_few_rows_give_the_same_bytes_on_any_number_of_threads() {
    let (tokens, width) = (500, 301);
    let dy = matrix(tokens, width, DType::F32, 1);
    let ids = ids(tokens, 40, 2);
    on_threads(|device| {
        let mut dtable = Matrix::zeros(1000, width, DType::F32);
        embedding::backward(device, dtable.as_mut(), dy.as_ref(), (&ids).into());
        vec![dtable.to_vec()]
    });
}

#[test]
#[should_panic(expected = "token 1 has id 5, but the embedding table has 5 rows")]
fn an_id_beyond_the_table_is_refused() {
    let table = matrix(5, 2, DType::F32, 1);
    embedding::forward(
        &Device::cpu(1),
        Matrix::zeros(2, 2, DType::F32).as_mut(),
        table.as_ref(),
        (&[4, 5]).into(),
    );
}

#[test]
fn rows_of_a_second_table_are_added() {
    for (rows, cols) in shapes() {
        for (dtype, of_table) in DTYPES.into_iter().flat_map(|a| DTYPES.map(|b| (a, b))) {
            let (table, ids) = (matrix(13, cols, of_table, 1), ids(rows, 13, 2));
            let got = on_threads(|device| {
                let mut y = matrix(rows, cols, dtype, 3);
                embedding::add(device, y.as_mut(), table.as_ref(), (&ids).into());
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
