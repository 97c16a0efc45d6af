//! The order of examples and their packing into rows.

use data::OrderSpec;
use data::order::{Shuffle, epoch_rows, fill};
use proptest::prelude::*;

const SPEC: OrderSpec =
    OrderSpec { seed: 42, epoch: 0, shuffle: true, packing: true, group: None, max_length: 512 };

proptest! {
    #[test]
    fn packing_loses_and_repeats_nothing_and_no_row_overflows(
        lengths in prop::collection::vec(1usize..=64, 0..300), seed: u64, epoch in 0u64..9, shuffle: bool, packing: bool,
    ) {
        let spec = OrderSpec { seed, epoch, shuffle, packing, group: None, max_length: 64 };
        let rows = epoch_rows(&lengths, &spec);
        let mut seen: Vec<usize> = rows.iter().flatten().copied().collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        for row in &rows {
            prop_assert!(!row.is_empty());
            prop_assert!(row.iter().map(|&i| lengths[i]).sum::<usize>() <= 64);
            prop_assert!(packing || row.len() == 1);
        }
        prop_assert_eq!(&rows, &epoch_rows(&lengths, &spec));
    }
}

proptest! {
    #[test]
    fn grouping_loses_and_repeats_nothing_and_sorts_what_is_drawn_together(
        lengths in prop::collection::vec(1usize..=64, 0..600), seed: u64, epoch in 0u64..9, step in 1usize..20,
    ) {
        let spec = OrderSpec { seed, epoch, group: Some(step), ..GROUPED };
        let rows = epoch_rows(&lengths, &spec);
        let mut seen: Vec<usize> = rows.iter().flatten().copied().collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        prop_assert!(rows.iter().all(|row| row.len() == 1));
        prop_assert_eq!(&rows, &epoch_rows(&lengths, &spec));
        // As many steps are drawn together as transformers' mega-batches have.
        let together = step * (lengths.len() / (step * 4)).clamp(1, 50);
        for drawn in rows.chunks(together) {
            prop_assert!(drawn.is_sorted_by_key(|row| std::cmp::Reverse(lengths[row[0]])));
        }
    }
}

const GROUPED: OrderSpec = OrderSpec { packing: false, group: Some(16), ..SPEC };

/// What rows of so many lengths would be padded with, as a share of all, if each step were a rectangle.
fn padding(lengths: &[usize], spec: &OrderSpec) -> f64 {
    let rows = epoch_rows(lengths, spec);
    let step = |step: &[Vec<usize>]| {
        let longest = step.iter().map(|row| lengths[row[0]]).max().unwrap_or(0);
        longest * step.len()
    };
    let padded: usize = rows.chunks(16).map(step).sum();
    1.0 - lengths.iter().sum::<usize>() as f64 / padded as f64
}

#[test]
fn a_step_has_examples_of_similar_length() {
    let lengths = lengths(20_000);
    let (apart, grouped) =
        (padding(&lengths, &OrderSpec { group: None, ..GROUPED }), padding(&lengths, &GROUPED));
    assert!(apart > 0.6 && grouped < 0.1, "{apart} {grouped}");
}

#[test]
fn groups_differ_by_epoch_and_seed() {
    let lengths = lengths(2000);
    let first = epoch_rows(&lengths, &GROUPED);
    assert_ne!(first, epoch_rows(&lengths, &OrderSpec { epoch: 1, ..GROUPED }));
    assert_ne!(first, epoch_rows(&lengths, &OrderSpec { seed: 43, ..GROUPED }));
}

/// Lengths as chats have them: many short, few long.
fn lengths(count: usize) -> Vec<usize> {
    let mut random = Shuffle::new(3, "lengths", 0);
    (0..count).map(|_| 1 + (511.0 * random.fraction().powi(3)) as usize).collect()
}

#[test]
fn rows_are_almost_full() {
    let lengths = lengths(20_000);
    let rows = epoch_rows(&lengths, &SPEC);
    let fill = fill(&rows, &lengths, 512);
    assert!(fill > 0.99, "{fill}");
}

#[test]
fn every_epoch_and_every_seed_has_its_own_order() {
    let lengths = lengths(200);
    let first = epoch_rows(&lengths, &SPEC);
    assert_ne!(first, epoch_rows(&lengths, &OrderSpec { epoch: 1, ..SPEC }));
    assert_ne!(first, epoch_rows(&lengths, &OrderSpec { seed: 43, ..SPEC }));
}

#[test]
fn without_shuffling_the_order_is_kept() {
    let plain = OrderSpec { shuffle: false, packing: false, ..SPEC };
    assert_eq!(epoch_rows(&[5, 6, 7], &plain), [[0], [1], [2]]);
    let packed = OrderSpec { shuffle: false, max_length: 10, ..SPEC };
    assert_eq!(epoch_rows(&[4, 9, 6, 1], &packed), [vec![0, 2], vec![1, 3]]);
}

#[test]
fn long_examples_do_not_gather_at_the_beginning() {
    let lengths = lengths(20_000);
    let rows = epoch_rows(&lengths, &SPEC);
    let longest = |row: &Vec<usize>| row.iter().map(|&i| lengths[i]).max().unwrap();
    let mean = |rows: &[Vec<usize>]| rows.iter().map(longest).sum::<usize>() as f64 / rows.len() as f64;
    let (front, back) = rows.split_at(rows.len() / 2);
    assert!((mean(front) / mean(back) - 1.0).abs() < 0.05, "{} {}", mean(front), mean(back));
}

#[test]
fn the_order_of_a_seed_is_pinned() {
    let mut order: Vec<usize> = (0..12).collect();
    Shuffle::new(42, "examples", 0).shuffle(&mut order);
    insta::assert_debug_snapshot!(order.iter().map(usize::to_string).collect::<Vec<_>>().join(" "), @r#""4 8 5 7 10 11 0 1 9 6 2 3""#);
}
