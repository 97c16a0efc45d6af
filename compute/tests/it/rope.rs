//! Rotary embedding: the rotation against its definition in f64, the frequencies against transformers'.

use compute::ops::rope::{self, RopeScaling, RopeTable};
use compute::{DType, Device, Matrix};

use crate::common::{DTYPES, assert_close, dot, gradient, ids, matrix, on_threads, wide};

const THETA: f64 = 10_000.0;

const POSITIONS: usize = 300;

fn yarn(factor: f64, original_max_position_embeddings: usize) -> RopeScaling {
    RopeScaling::Yarn {
        factor,
        original_max_position_embeddings,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    }
}

/// Every pair `(i, i + D/2)` of every head turned by `position * frequency[i]`, times `m`.
fn definition(x: &[f64], positions: &[u32], head: usize, (frequencies, m): &(Vec<f32>, f64)) -> Vec<f64> {
    let (width, half) = (x.len() / positions.len(), head / 2);
    let mut y = x.to_vec();
    for (row, &position) in y.chunks_mut(width).zip(positions) {
        for head in row.chunks_mut(head) {
            for i in 0..half {
                let angle = f64::from(position as f32 * frequencies[i]); // rounded as the reference rounds it
                let (u, v) = (head[i], head[i + half]);
                head[i] = m * (u * angle.cos() - v * angle.sin());
                head[i + half] = m * (v * angle.cos() + u * angle.sin());
            }
        }
    }
    y
}

/// Tokens, heads and head sizes.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 2), (3, 2, 4), (5, 3, 14), (4, 1, 64), (2, 2, 80), (250, 9, 64)];

#[test]
fn heads_are_turned_as_the_definition_says() {
    for (tokens, heads, head) in SHAPES {
        for (dtype, scaling) in
            DTYPES.into_iter().flat_map(|d| [RopeScaling::None, yarn(4.0, 128)].map(|s| (d, s)))
        {
            let (x, positions) = (matrix(tokens, heads * head, dtype, 1), ids(tokens, POSITIONS, 2));
            let table = RopeTable::new(head, THETA, &scaling, POSITIONS);
            let got = on_threads(|device| {
                let mut y = matrix(tokens, heads * head, dtype, 1);
                rope::forward(device, y.as_mut(), &table, &positions);
                vec![y.to_vec()]
            });
            let want = definition(&wide(&x), &positions, head, &scaling.frequencies(head, THETA));
            assert_close(dtype, &got[0], &want, "y");
        }
    }
}

#[test]
fn the_gradient_is_that_of_the_definition() {
    for (tokens, heads, head) in SHAPES.into_iter().filter(|(t, h, d)| t * h * d <= 600) {
        for (dtype, scaling) in
            DTYPES.into_iter().flat_map(|d| [RopeScaling::None, yarn(4.0, 128)].map(|s| (d, s)))
        {
            let (x, dy) = (matrix(tokens, heads * head, dtype, 1), matrix(tokens, heads * head, dtype, 3));
            let positions = ids(tokens, POSITIONS, 2);
            let table = RopeTable::new(head, THETA, &scaling, POSITIONS);
            let got = on_threads(|device| {
                let mut dx = matrix(tokens, heads * head, dtype, 3);
                rope::backward(device, dx.as_mut(), &table, &positions);
                vec![dx.to_vec()]
            });
            let frequencies = scaling.frequencies(head, THETA);
            let loss = |x: &[f64]| dot(&definition(x, &positions, head, &frequencies), &wide(&dy));
            assert_close(dtype, &got[0], &gradient(&wide(&x), loss), "dx");
        }
    }
}

/// Fails unless a scaling gives transformers' `inv_freq` (to two units in the last place: its powers are vectorized and
/// not always correctly rounded) and attention factor.
fn assert_frequencies(scaling: RopeScaling, theta: f64, want: &[f32], factor: f64) {
    let (got, m) = scaling.frequencies(2 * want.len(), theta);
    assert!((m - factor).abs() < 1e-12, "{scaling:?}: attention factor {m}, not {factor}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let distance = got.to_bits().abs_diff(want.to_bits());
        assert!(distance <= 2, "{scaling:?}, frequency {i}: {got:e} is {distance} units off {want:e}");
    }
}

/// `ROPE_INIT_FUNCTIONS` of transformers 5.23 with torch 2.15.
#[test]
fn frequencies_are_those_of_transformers() {
    let none = [
        1.000000000e+00,
        3.162277639e-01,
        1.000000015e-01,
        3.162277862e-02,
        9.999999776e-03,
        3.162277862e-03,
        1.000000047e-03,
        3.162277862e-04,
    ];
    assert_frequencies(RopeScaling::None, 10_000.0, &none, 1.0);

    let linear = [
        2.500000000e-01,
        7.905694097e-02,
        2.500000037e-02,
        7.905694656e-03,
        2.499999944e-03,
        7.905694656e-04,
        2.500000119e-04,
        7.905694656e-05,
    ];
    assert_frequencies(RopeScaling::Linear { factor: 4.0 }, 10_000.0, &linear, 1.0);

    let llama3 = [
        1.000000000e+00,
        6.636012793e-01,
        4.403666258e-01,
        2.922278345e-01,
        1.939227581e-01,
        1.286873817e-01,
        8.539710194e-02,
        5.666961893e-02,
        3.760603070e-02,
        2.495540865e-02,
        1.656044088e-02,
        1.098952908e-02,
        7.292665076e-03,
        4.839421250e-03,
        3.211446106e-03,
        1.290548011e-03,
        4.295567051e-04,
        9.708286234e-05,
        1.946163866e-05,
        1.291476747e-05,
        8.570255886e-06,
        5.687232260e-06,
        3.774054449e-06,
        2.504467147e-06,
        1.661967417e-06,
        1.102883630e-06,
        7.318749340e-07,
        4.856731266e-07,
        3.222932889e-07,
        2.138742303e-07,
        1.419272024e-07,
        9.418306490e-08,
    ];
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_frequencies(scaling, 500_000.0, &llama3, 1.0);
}

/// As above; the factors are those that YaRN infers, `0.1 ln(factor) + 1` unless told otherwise.
#[test]
fn yarn_frequencies_are_those_of_transformers() {
    let plain = [
        1.000000000e+00,
        4.216965139e-01,
        1.778279394e-01,
        7.498941571e-02,
        3.162277862e-02,
        1.333521493e-02,
        4.779901356e-03,
        1.659961650e-03,
        5.499999970e-04,
        1.686785836e-04,
        4.445698505e-05,
        1.874735608e-05,
        7.905693565e-06,
        3.333803534e-06,
        1.405853368e-06,
        5.928434348e-07,
    ];
    assert_frequencies(yarn(4.0, 32_768), 1_000_000.0, &plain, 1.138629436111989);

    let untruncated = [
        1.000000000e+00,
        5.623413324e-01,
        3.162277639e-01,
        1.778279394e-01,
        1.000000015e-01,
        5.623412877e-02,
        3.162277862e-02,
        1.509611961e-02,
        5.790104624e-03,
        1.738218707e-03,
        1.239524572e-04,
        4.445698505e-05,
        2.499999937e-05,
        1.405853254e-05,
        7.905694474e-06,
        4.445698323e-06,
    ];
    let scaling = RopeScaling::Yarn {
        factor: 40.0,
        original_max_position_embeddings: 4096,
        beta_fast: 16.0,
        beta_slow: 2.0,
        attention_factor: None,
        mscale: Some(1.0),
        mscale_all_dim: Some(0.8),
        truncate: false,
    };
    assert_frequencies(scaling, 10_000.0, &untruncated, 1.0569662567531275);

    let given = [
        1.000000000e+00,
        3.162277639e-01,
        1.000000015e-01,
        2.470529452e-02,
        5.624999758e-03,
        1.087032957e-03,
        1.250000059e-04,
        3.952847328e-05,
    ];
    let RopeScaling::Yarn { beta_fast, beta_slow, mscale, mscale_all_dim, truncate, .. } = yarn(8.0, 4096)
    else {
        unreachable!();
    };
    let scaling = RopeScaling::Yarn {
        factor: 8.0,
        original_max_position_embeddings: 4096,
        beta_fast,
        beta_slow,
        attention_factor: Some(1.25),
        mscale,
        mscale_all_dim,
        truncate,
    };
    assert_frequencies(scaling, 10_000.0, &given, 1.25);
}

#[test]
#[should_panic(expected = "token 1 has position 300, but the rotary table has 300 positions")]
fn a_position_beyond_the_table_is_refused() {
    let table = RopeTable::new(4, THETA, &RopeScaling::None, POSITIONS);
    rope::forward(&Device::cpu(1), Matrix::zeros(2, 4, DType::F32).as_mut(), &table, &[299, 300]);
}
