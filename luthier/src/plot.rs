//! Curves over steps, drawn once for all who show them: as SVG for pages (`svg`), as braille for terminals
//! (`cells`). Both take their ranges and marks from `axis`.

mod axis;
mod cells;
mod svg;

pub(crate) use axis::Unit;
pub(crate) use cells::Cell;
pub(crate) use svg::{STYLE, class, escaped};

/// Points of a curve at most: a screen has no more.
const POINTS: usize = 500;

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Line,
    /// Single values, behind the line of their mean.
    Faint,
    /// Few values, each with a mark.
    Marked,
}

/// A named line over steps.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    pub(crate) name: String,
    /// Curves of one number have one colour.
    pub(crate) colour: usize,
    pub(crate) kind: Kind,
    /// Steps, in order, with values; those that are not finite are left out.
    points: Vec<(f64, f64)>,
}

impl Curve {
    pub(crate) fn new(
        name: &str,
        colour: usize,
        kind: Kind,
        points: impl IntoIterator<Item = (u64, f64)>,
    ) -> Self {
        let points = points.into_iter().filter(|(_, value)| value.is_finite());
        let points = thinned(points.map(|(step, value)| (step as f64, value)).collect());
        Curve { name: name.to_owned(), colour, kind, points }
    }
}

/// Curves over the same steps, and how their values are written.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) unit: Unit,
    /// Whether values stand at their logarithms, where all are above 0.
    pub(crate) logarithmic: bool,
    /// Whether the axis begins at 0 at the latest.
    pub(crate) from_zero: bool,
    pub(crate) curves: Vec<Curve>,
}

impl Plot {
    /// A plot on a linear axis.
    pub(crate) fn new(title: &str, unit: Unit, curves: Vec<Curve>) -> Self {
        Plot { title: title.to_owned(), unit, logarithmic: false, from_zero: false, curves }
    }

    /// Whether there is nothing to see.
    pub(crate) fn is_empty(&self) -> bool {
        self.curves.iter().all(|curve| curve.points.is_empty())
    }
}

/// A mean of the last values, which the first ones do not bend (as Adam corrects its moments).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Smoothed {
    sum: f64,
    weight: f64,
}

impl Smoothed {
    /// How much of the mean each value is.
    const SHARE: f64 = 0.1;

    /// Takes up a value; the mean with it.
    pub(crate) fn add(&mut self, value: f64) -> f64 {
        self.sum += Self::SHARE * (value - self.sum);
        self.weight += Self::SHARE * (1.0 - self.weight);
        self.sum / self.weight
    }

    /// The mean; none before the first value.
    pub(crate) fn mean(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// The mean that follows the values.
pub(crate) fn smoothed(values: impl IntoIterator<Item = (u64, f64)>) -> impl Iterator<Item = (u64, f64)> {
    let mut mean = Smoothed::default();
    values.into_iter().map(move |(step, value)| (step, mean.add(value)))
}

/// So many points that a screen shows them: of each stretch the least and the greatest value, so that no spike
/// is lost; the first and the last stay.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points;
    }
    let (first, last) = (points[0], points[points.len() - 1]);
    let mut kept = vec![first];
    for stretch in points[1..points.len() - 1].chunks(points.len().div_ceil(POINTS / 2)) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let least = stretch.iter().min_by(by_value).expect("a stretch has points");
        let greatest = stretch.iter().max_by(by_value).expect("a stretch has points");
        let (before, after) = if least.0 <= greatest.0 { (least, greatest) } else { (greatest, least) };
        kept.push(*before);
        kept.extend((before != after).then_some(*after));
    }
    kept.push(last);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_keep_their_ends_and_their_spikes() {
        let value = |step: u64| if step == 7_777 { 99.0 } else { (step as f64).sin() };
        let curve = Curve::new("a", 0, Kind::Line, (0..10_000).map(|step| (step, value(step))));
        assert!(curve.points.len() <= POINTS + 2, "{}", curve.points.len());
        assert!(curve.points.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!((curve.points[0].0, curve.points.last().unwrap().0), (0.0, 9_999.0));
        assert!(curve.points.contains(&(7_777.0, 99.0)));
        assert_eq!(Curve::new("a", 0, Kind::Line, [(1, f64::NAN), (2, 1.0)]).points, [(2.0, 1.0)]);
    }

    #[test]
    fn the_mean_is_not_bent_by_its_beginning_and_follows() {
        let mean: Vec<f64> = smoothed((1..=100).map(|step| (step, 5.0))).map(|(_, mean)| mean).collect();
        assert!(mean.iter().all(|mean| (mean - 5.0).abs() < 1e-12), "{mean:?}");
        let falling = smoothed((1..=100).map(|step| (step, if step <= 50 { 2.0 } else { 1.0 }))).last();
        assert!((1.0..1.01).contains(&falling.unwrap().1));
        assert_eq!(Smoothed::default().mean(), None);
    }
}
