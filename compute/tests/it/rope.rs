//! Rotary embedding: the rotation against its definition in f64, the frequencies against transformers'.

use compute::ops::rope::{self, RopeScaling, RopeTable, Rotation};
use compute::{DType, Device, Matrix};

use crate::common::{DTYPES, assert_close, dot, gradient, ids, matrix, on_threads, wide};

const THETA: f64 = 10_000.0;

const POSITIONS: usize = 300;

/// YaRN with everything that may be left out left out, but for the attention factor.
fn yarn(factor: f64, original_max_position_embeddings: usize, attention_factor: Option<f64>) -> RopeScaling {
    RopeScaling::Yarn {
        factor,
        original_max_position_embeddings,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    }
}

/// Every pair of the first dimensions of every head turned by `position * frequency[i]`, times `m`.
fn definition(x: &[f64], positions: &[u32], head: usize, rotation: &Rotation) -> Vec<f64> {
    let (frequencies, m) = rotation.scaling.frequencies(rotation.dims, rotation.theta, false);
    let (width, half) = (x.len() / positions.len(), rotation.dims / 2);
    let mut y = x.to_vec();
    for (row, &position) in y.chunks_mut(width).zip(positions) {
        for head in row.chunks_mut(head) {
            for (i, &frequency) in frequencies[..half].iter().enumerate() {
                let angle = f64::from(position as f32 * frequency); // rounded as the reference rounds it
                let (first, second) = if rotation.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (u, v) = (head[first], head[second]);
                head[first] = m * (u * angle.cos() - v * angle.sin());
                head[second] = m * (v * angle.cos() + u * angle.sin());
            }
        }
    }
    y
}

/// All of a head and some of it, both kinds of pairs, with and without a factor on cosine and sine.
fn rotations(head: usize) -> Vec<Rotation> {
    let mut rotations = Vec::new();
    for dims in [head, (head / 4).max(1) * 2] {
        for interleaved in [false, true] {
            for scaling in [RopeScaling::None, yarn(4.0, 128, None)] {
                rotations.push(Rotation { dims, theta: THETA, scaling, interleaved });
            }
        }
    }
    rotations
}

/// Tokens, heads and head sizes.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 2), (3, 2, 4), (5, 3, 14), (4, 1, 64), (2, 2, 80), (250, 9, 64)];

#[test]
fn heads_are_turned_as_the_definition_says() {
    for (tokens, heads, head) in SHAPES {
        for (dtype, rotation) in
            DTYPES.into_iter().flat_map(|d| rotations(head).into_iter().map(move |r| (d, r)))
        {
            let (x, positions) = (matrix(tokens, heads * head, dtype, 1), ids(tokens, POSITIONS, 2));
            let table = RopeTable::new(&Device::cpu(1), head, &rotation, POSITIONS);
            let got = on_threads(|device| {
                let mut y = matrix(tokens, heads * head, dtype, 1);
                rope::forward(device, y.as_mut(), &table, (&positions).into());
                vec![y.to_vec()]
            });
            let want = definition(&wide(&x), &positions, head, &rotation);
            assert_close(dtype, &got[0], &want, "y");
        }
    }
}

#[test]
fn the_gradient_is_that_of_the_definition() {
    for (tokens, heads, head) in SHAPES.into_iter().filter(|(t, h, d)| t * h * d <= 600) {
        for (dtype, rotation) in
            DTYPES.into_iter().flat_map(|d| rotations(head).into_iter().map(move |r| (d, r)))
        {
            let (x, dy) = (matrix(tokens, heads * head, dtype, 1), matrix(tokens, heads * head, dtype, 3));
            let positions = ids(tokens, POSITIONS, 2);
            let table = RopeTable::new(&Device::cpu(1), head, &rotation, POSITIONS);
            let got = on_threads(|device| {
                let mut dx = matrix(tokens, heads * head, dtype, 3);
                rope::backward(device, dx.as_mut(), &table, (&positions).into());
                vec![dx.to_vec()]
            });
            let loss = |x: &[f64]| dot(&definition(x, &positions, head, &rotation), &wide(&dy));
            assert_close(dtype, &got[0], &gradient(&wide(&x), loss), "dx");
        }
    }
}

/// Fails unless a scaling gives transformers' `inv_freq` (to two units in the last place: its powers are
/// vectorized and not always correctly rounded) and attention factor.
fn assert_frequencies(scaling: RopeScaling, theta: f64, want: &[f32], factor: f64) {
    let (got, m) = scaling.frequencies(2 * want.len(), theta, false);
    assert!((m - factor).abs() < 1e-12, "{scaling:?}: attention factor {m}, not {factor}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let distance = got.to_bits().abs_diff(want.to_bits());
        assert!(distance <= 2, "{scaling:?}, frequency {i}: {got:e} is {distance} units off {want:e}");
    }
}

/// `ROPE_INIT_FUNCTIONS` of transformers 5.23 with torch 2.15.
#[test]
fn frequencies_are_those_of_transformers() {
    #[rustfmt::skip]
    let none = [
        1.0, 3.1622776e-1, 1.0e-1, 3.162278e-2, 1.0e-2, 3.1622779e-3, 1.0e-3, 3.162278e-4,
    ];
    assert_frequencies(RopeScaling::None, 10_000.0, &none, 1.0);

    #[rustfmt::skip]
    let linear = [
        2.5e-1, 7.905694e-2, 2.5e-2, 7.905695e-3, 2.5e-3, 7.9056947e-4, 2.5e-4, 7.905695e-5,
    ];
    assert_frequencies(RopeScaling::Linear { factor: 4.0 }, 10_000.0, &linear, 1.0);

    #[rustfmt::skip]
    let llama3 = [
        1.0, 6.636013e-1, 4.4036663e-1, 2.9222783e-1, 1.9392276e-1, 1.2868738e-1, 8.53971e-2, 5.666962e-2,
        3.760603e-2, 2.4955409e-2, 1.656044e-2, 1.0989529e-2, 7.292665e-3, 4.8394212e-3, 3.211446e-3, 1.290548e-3,
        4.295567e-4, 9.708286e-5, 1.9461639e-5, 1.29147675e-5, 8.570256e-6, 5.6872323e-6, 3.7740544e-6, 2.5044671e-6,
        1.6619674e-6, 1.1028836e-6, 7.3187493e-7, 4.856731e-7, 3.222933e-7, 2.1387423e-7, 1.419272e-7, 9.4183065e-8,
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
    #[rustfmt::skip]
    let plain = [
        1.0, 4.216965e-1, 1.7782794e-1, 7.4989416e-2, 3.162278e-2, 1.3335215e-2, 4.7799014e-3, 1.6599617e-3,
        5.5e-4, 1.6867858e-4, 4.4456985e-5, 1.8747356e-5, 7.905694e-6, 3.3338035e-6, 1.4058534e-6, 5.9284343e-7,
    ];
    assert_frequencies(yarn(4.0, 32_768, None), 1_000_000.0, &plain, 1.138629436111989);

    #[rustfmt::skip]
    let untruncated = [
        1.0, 5.6234133e-1, 3.1622776e-1, 1.7782794e-1, 1.0e-1, 5.623413e-2, 3.162278e-2, 1.509612e-2,
        5.7901046e-3, 1.7382187e-3, 1.2395246e-4, 4.4456985e-5, 2.5e-5, 1.40585325e-5, 7.9056945e-6, 4.4456983e-6,
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

    #[rustfmt::skip]
    let given = [
        1.0, 3.1622776e-1, 1.0e-1, 2.4705295e-2, 5.6249998e-3, 1.087033e-3, 1.25e-4, 3.9528473e-5,
    ];
    assert_frequencies(yarn(8.0, 4096, Some(1.25)), 10_000.0, &given, 1.25);
}

/// `_compute_longrope_parameters` of transformers, written again: short sequences take the first half of the
/// table, long ones the second.
#[test]
fn longrope_has_a_row_for_each_position_of_short_and_of_long_sequences() {
    let (short, long) = (vec![1.0, 1.25, 2.0], vec![1.5, 4.0, 9.0]);
    let scaling = RopeScaling::LongRope {
        short_factor: short.clone(),
        long_factor: long.clone(),
        factor: 4.0,
        original_max_position_embeddings: 64,
        attention_factor: None,
    };
    let m = (1.0 + 4.0_f64.ln() / 64.0_f64.ln()).sqrt();
    for (is_long, factors) in [(false, &short), (true, &long)] {
        let (got, factor) = scaling.frequencies(6, THETA, is_long);
        assert!((factor - m).abs() < 1e-12, "{factor}, not {m}");
        for (i, (got, divisor)) in got.iter().zip(factors).enumerate() {
            let want = 1.0 / (divisor * THETA.powf(2.0 * i as f64 / 6.0));
            assert!((f64::from(*got) - want).abs() < 3e-7 * want, "frequency {i}: {got:e}, not {want:e}");
        }
    }
    let rotation = Rotation { dims: 6, theta: THETA, scaling, interleaved: false };
    let table = RopeTable::new(&Device::cpu(1), 8, &rotation, 100);
    assert_eq!((table.rows(), RopeTable::size_bytes(&rotation, 100)), (200, 2 * 200 * 3 * 4));
    let turned = |row: u32| {
        let mut x = Matrix::from_f32(1, 8, &[1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 7.0, 8.0]);
        rope::forward(&Device::cpu(1), x.as_mut(), &table, (&[row]).into());
        x.to_vec()
    };
    for (row, factors) in [(37, &short), (137, &long)] {
        let got = turned(row);
        for i in 0..3 {
            let angle = 37.0 / (factors[i] * THETA.powf(2.0 * i as f64 / 6.0));
            assert!((f64::from(got[i]) - m * angle.cos()).abs() < 1e-5, "cosine {i} of row {row}");
            assert!((f64::from(got[i + 3]) - m * angle.sin()).abs() < 1e-5, "sine {i} of row {row}");
        }
        assert_eq!(got[6..], [7.0, 8.0], "what is not turned stays");
    }
}

#[test]
#[should_panic(expected = "token 1 takes row 300, but the rotary table has 300 rows")]
fn a_position_beyond_the_table_is_refused() {
    let rotation = Rotation { dims: 4, theta: THETA, scaling: RopeScaling::None, interleaved: false };
    let table = RopeTable::new(&Device::cpu(1), 4, &rotation, POSITIONS);
    rope::forward(&Device::cpu(1), Matrix::zeros(2, 4, DType::F32).as_mut(), &table, (&[299, 300]).into());
}
