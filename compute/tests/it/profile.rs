//! The account of where time goes: counted by definition, and only while somebody asks.

use compute::ops::attention::{self, Attention, Segment};
use compute::ops::matmul::{Factor, matmul};
use compute::profile::{Key, Work};
use compute::{DType, Device, Matrix, Precision};

#[test]
fn a_product_counts_its_multiplications_and_additions_and_the_bytes_of_its_matrices() {
    let device = Device::cpu(1);
    let (a, b) = (Matrix::zeros(3, 5, DType::Bf16), Matrix::zeros(7, 5, DType::F32));
    let mut c = Matrix::zeros(3, 7, DType::F32);
    let mut product = |accumulate| {
        let (a, b) = (Factor::Plain(a.as_ref()), Factor::Transposed(b.as_ref()));
        matmul(&device, Precision::F32, 1.0, a, b, accumulate, c.as_mut());
    };
    product(false);
    device.profile().start();
    product(false);
    product(true);
    let profile = device.profile().stop();
    product(false);
    let total = profile[&Key { operation: "product", size: Some([3, 7, 5]) }];
    assert_eq!((profile.len(), total.calls), (1, 2), "{profile:?}");
    assert!(total.seconds > 0.0);
    let (read, written) = (2 * 3 * 5 + 4 * 7 * 5, 4 * 3 * 7);
    assert_eq!(total.work, Work { flops: 2 * 2 * 3 * 7 * 5, bytes: 2 * read + 3 * written });
    assert!(device.profile().stop().is_empty(), "what ran after the end is not counted");
}

#[test]
fn attention_counts_the_pairs_that_see_each_other() {
    let device = Device::cpu(1);
    // A whole sequence, and one whose first five tokens are in a cache.
    let segments =
        [Segment { queries: 0..9, keys: (0..9).into() }, Segment { queries: 9..12, keys: (9..17).into() }];
    for window in [None, Some(1), Some(4), Some(6), Some(100)] {
        let kind = Attention { heads: 4, kv_heads: 2, head_dim: 8, scale: 0.3, window, cap: None };
        let (q, k) = (Matrix::zeros(12, 32, DType::F32), Matrix::zeros(17, 16, DType::F32));
        let (mut out, mut lse) = (Matrix::zeros(12, 32, DType::F32), Matrix::zeros(12, 4, DType::F32));
        device.profile().start();
        let (q, k) = (q.as_ref(), k.as_ref());
        attention::forward(&device, Precision::F32, &kind, &segments, q, k, k, out.as_mut(), lse.as_mut());
        let total = device.profile().stop()[&Key::from("attention")];
        let sees = |position: usize| (position + 1).min(window.unwrap_or(usize::MAX));
        let pairs: usize = (0..9).map(sees).sum::<usize>() + (5..8).map(sees).sum::<usize>();
        assert_eq!(total.work.flops, (2 * 2 * pairs * 32) as u64, "a window of {window:?}");
        assert_eq!(total.work.bytes, 4 * 2 * (12 * 32 + 17 * 16), "a window of {window:?}");
    }
}
