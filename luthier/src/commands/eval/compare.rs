//! Systems beside each other: what each comes to, and how much the others differ from the first one.

use std::fmt;

use eval::paired::{Bootstrap, Comparison, Estimate, Groups, Part};
use serde::Serialize;

use crate::terminal::{Table, p_value};

/// Numbers of items that are shown where systems differ.
const SHOWN: usize = 12;
/// The seed of what is drawn for intervals: the same items give the same numbers.
const SEED: u64 = 0;

/// How a number is to be read.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A loss, in nats: less is better.
    Loss,
    /// A share: more is better.
    Share,
}

/// What a system got for each item, in the items' order.
pub(super) struct Got {
    pub(super) name: String,
    pub(super) parts: Vec<Part>,
}

/// The difference of a system from the first one.
#[derive(Serialize)]
pub(super) struct Difference {
    system: String,
    than: String,
    #[serde(flatten)]
    comparison: Comparison,
}

/// A difference, and where it comes from: items that one system got right and the other not, by their numbers
/// from 1.
#[derive(Serialize)]
pub(super) struct Flips {
    #[serde(flatten)]
    difference: Difference,
    gained: Vec<usize>,
    lost: Vec<usize>,
}

impl Flips {
    /// By how much the system is better.
    pub(super) fn difference(&self) -> Estimate {
        self.difference.comparison.difference
    }
}

/// Intervals of 95 %.
pub(super) fn bootstrap() -> Bootstrap {
    Bootstrap { seed: SEED, ..Bootstrap::default() }
}

/// What each system comes to, if there are items enough for an interval.
pub(super) fn estimates(all: &[Got], groups: Option<&Groups>) -> Vec<Option<Estimate>> {
    all.iter().map(|got| estimate(&got.parts, groups)).collect()
}

fn estimate(parts: &[Part], groups: Option<&Groups>) -> Option<Estimate> {
    match scores(parts) {
        Some(scores) => bootstrap().mean(&scores, groups).ok(),
        None => bootstrap().ratio(parts, groups).ok(),
    }
}

/// The scores of items that count once each.
fn scores(parts: &[Part]) -> Option<Vec<f64>> {
    parts.iter().map(|part| (part.count == 1.0).then_some(part.sum)).collect()
}

/// How every other system differs from the first one.
pub(super) fn differences(all: &[Got], groups: Option<&Groups>) -> Vec<Difference> {
    let Some((first, others)) = all.split_first() else { return Vec::new() };
    let compared = |other: &Got| {
        let comparison = match (scores(&other.parts), scores(&first.parts)) {
            (Some(a), Some(b)) => bootstrap().difference(&a, &b, groups),
            _ => bootstrap().ratio_difference(&other.parts, &first.parts, groups),
        };
        let (system, than) = (other.name.clone(), first.name.clone());
        Some(Difference { system, than, comparison: comparison.ok()? })
    };
    others.iter().filter_map(compared).collect()
}

/// How every other system differs from the first one, of scores from 0 to 1, and in which items.
pub(super) fn flips(all: &[Got], groups: Option<&Groups>) -> Vec<Flips> {
    let Some((first, others)) = all.split_first() else { return Vec::new() };
    let of = |(difference, other): (Difference, &Got)| {
        let pairs = first.parts.iter().zip(&other.parts).map(|(a, b)| (a.sum, b.sum));
        let numbers = |is: fn((f64, f64)) -> bool| {
            (1..).zip(pairs.clone()).filter(|(_, pair)| is(*pair)).map(|(number, _)| number).collect()
        };
        Flips { difference, gained: numbers(|(a, b)| b > a), lost: numbers(|(a, b)| b < a) }
    };
    differences(all, groups).into_iter().zip(others).map(of).collect()
}

/// Differences and items in words.
pub(super) fn tell_flips(f: &mut fmt::Formatter<'_>, what: &str, all: &[Flips]) -> fmt::Result {
    if all.is_empty() {
        return Ok(());
    }
    let differences: Vec<&Difference> = all.iter().map(|flips| &flips.difference).collect();
    writeln!(f, "{}\n", table(Kind::Share, what, &differences))?;
    for Flips { difference: Difference { system, than, .. }, gained, lost } in all {
        writeln!(f, "{system} is better than {than} at {} items{}", gained.len(), shown(gained))?;
        writeln!(f, "{system} is worse than {than} at {} items{}", lost.len(), shown(lost))?;
    }
    writeln!(f)
}

fn shown(numbers: &[usize]) -> String {
    let mut words: Vec<String> = numbers.iter().take(SHOWN).map(usize::to_string).collect();
    if numbers.len() > SHOWN {
        words.push("...".to_owned());
    }
    if words.is_empty() { String::new() } else { format!(": {}", words.join(", ")) }
}

/// The differences in words, a line each.
pub(super) fn table(kind: Kind, what: &str, differences: &[&Difference]) -> Table {
    let mut table = Table::new([what, "difference", "95 % interval", "p", "that is"]);
    for Difference { system, than, comparison } in differences.iter().copied() {
        let Estimate { value, low, high } = comparison.difference;
        let better = match kind {
            Kind::Loss => value < 0.0,
            Kind::Share => value > 0.0,
        };
        let words = match (low <= 0.0 && high >= 0.0, better) {
            (true, _) => "no more than chance explains",
            (false, true) => "better",
            (false, false) => "worse",
        };
        table.row([
            format!("{system} less {than}"),
            format!("{value:+.4}"),
            format!("{low:+.4} to {high:+.4}"),
            p_value(comparison.p_value),
            words.to_owned(),
        ]);
    }
    table
}

/// An interval in words.
pub(super) fn interval(estimate: Option<Estimate>) -> String {
    estimate.map_or("too few items".to_owned(), |Estimate { low, high, .. }| format!("{low:.4} to {high:.4}"))
}
