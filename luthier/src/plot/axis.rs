//! The range of an axis, where a value stands on it, and the round numbers that are marked.

use crate::terminal::{bytes, count};

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A number as it is.
    Plain,
    /// Thousands and millions are shortened.
    Count,
    Bytes,
}

/// An axis from one value to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
}

/// What is less of a range is not marked apart: rounding of the marks themselves.
const SLACK: f64 = 1e-9;

impl Axis {
    /// From 0 to a last step.
    pub(super) fn of_steps(last: f64) -> Self {
        Axis { low: 0.0, high: last.max(1.0), logarithmic: false }
    }

    /// The axis on which values are seen, with a little room around them. The greatest ones of many, as of a
    /// run that diverged, stand at its end: they would press all others to the bottom. None without values.
    pub(super) fn of_values(mut values: Vec<f64>, logarithmic: bool, from_zero: bool) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (&low, &most) = (values.first()?, values.get(values.len() * 98 / 100)?);
        if logarithmic && low > 0.0 {
            let room = (most / low).powf(0.05).max(1.01);
            return Some(Axis { low: low / room, high: most * room, logarithmic: true });
        }
        let room = match 0.05 * (most - low) {
            0.0 => (0.05 * most.abs()).max(1e-6),
            room => room,
        };
        let low = if from_zero && low >= 0.0 { 0.0 } else { low - room };
        Some(Axis { low, high: most + room, logarithmic: false })
    }

    /// Where a value stands, from 0 to 1.
    pub(super) fn part(&self, value: f64) -> f64 {
        let part = match self.logarithmic {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        part.clamp(0.0, 1.0)
    }

    /// Round values, about as many as are wanted, as they are written.
    pub(super) fn marks(&self, wanted: usize, unit: Unit) -> Vec<(f64, String)> {
        if self.logarithmic {
            let decades = self.decades();
            if decades.len() > 1 {
                return thin(decades, wanted)
                    .into_iter()
                    .map(|mark| (mark, written(mark, mark, unit)))
                    .collect();
            }
        }
        let step = round_step((self.high - self.low) / wanted.max(1) as f64, unit);
        let first = (self.low / step - SLACK).ceil() as i64;
        let last = (self.high / step + SLACK).floor() as i64;
        (first..=last).map(|n| n as f64 * step).map(|mark| (mark, written(mark, step, unit))).collect()
    }

    /// Powers of ten, with 2 and 5 between them where they are few.
    fn decades(&self) -> Vec<f64> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let between: &[f64] = if last - first > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let all = (first..=last).flat_map(|power| between.iter().map(move |n| n * 10f64.powi(power)));
        all.filter(|mark| (self.low..=self.high).contains(mark)).collect()
    }
}

/// Every second, third ... of many marks.
fn thin(marks: Vec<f64>, wanted: usize) -> Vec<f64> {
    let every = marks.len().div_ceil(wanted.max(1) + 2).max(1);
    marks.into_iter().step_by(every).collect()
}

/// The least round number that is not below this one.
fn round_step(least: f64, unit: Unit) -> f64 {
    if unit == Unit::Bytes {
        return 2f64.powf((least.log2() - SLACK).ceil().max(0.0));
    }
    let power = 10f64.powf(least.log10().floor());
    let times = [1.0, 2.0, 5.0].into_iter().find(|times| times * power >= least * (1.0 - SLACK));
    let step = times.unwrap_or(10.0) * power;
    if unit == Unit::Count { step.max(1.0) } else { step }
}

/// A mark between which there are steps of this size.
fn written(mark: f64, step: f64, unit: Unit) -> String {
    match unit {
        Unit::Count => short(&count(mark)),
        Unit::Bytes => short(&bytes(mark.max(0.0).round() as u64)),
        Unit::Plain if mark.abs() < step / 2.0 => "0".to_owned(),
        Unit::Plain if step < 1e-3 || mark.abs() >= 1e5 => {
            let text = format!("{mark:.2e}");
            let (digits, power) = text.split_once('e').expect("an exponent");
            format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        Unit::Plain => {
            let digits = (-step.log10().floor()).max(0.0) as usize;
            format!("{mark:.digits$}")
        }
    }
}

/// A number with its unit, without zeros behind the point.
fn short(text: &str) -> String {
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let number = match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    };
    format!("{number} {unit}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(axis: Axis, unit: Unit) -> Vec<String> {
        axis.marks(4, unit).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn marks_are_round_and_written_as_short_as_they_are() {
        let linear = |low, high| Axis { low, high, logarithmic: false };
        assert_eq!(marks(linear(0.0, 400.0), Unit::Count), ["0", "100", "200", "300", "400"]);
        assert_eq!(marks(linear(1.93, 4.2), Unit::Plain), ["2", "3", "4"]);
        assert_eq!(marks(linear(2.31, 2.58), Unit::Plain), ["2.4", "2.5"]);
        assert_eq!(marks(linear(0.0, 2e-4), Unit::Plain), ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]);
        assert_eq!(marks(linear(0.0, 4100.0), Unit::Count), ["0", "2 K", "4 K"]);
        assert_eq!(marks(linear(0.0, 5e7), Unit::Bytes), ["0 B", "16 MiB", "32 MiB"]);
        assert_eq!(marks(linear(-0.1, 0.1), Unit::Plain), ["-0.10", "-0.05", "0", "0.05", "0.10"]);
        assert_eq!(marks(Axis::of_steps(0.0), Unit::Count), ["0", "1"]);
    }

    #[test]
    fn a_logarithmic_axis_has_powers_of_ten() {
        let axis = |low, high| Axis { low, high, logarithmic: true };
        assert_eq!(marks(axis(0.5, 2000.0), Unit::Plain), ["1", "10", "100", "1000"]);
        assert!((axis(1.0, 100.0).part(10.0) - 0.5).abs() < 1e-12);
        assert_eq!(marks(axis(0.5, 40.0), Unit::Plain), ["0.5", "1", "2", "5", "10", "20"]);
        // Within one decade the marks are those of a linear axis.
        assert_eq!(marks(axis(2.1, 3.9), Unit::Plain), ["2.5", "3.0", "3.5"]);
    }

    #[test]
    fn few_huge_values_do_not_press_the_others_down() {
        let mut values: Vec<f64> = (0..100).map(|n| 1.0 + f64::from(n) / 100.0).collect();
        values.push(1e9);
        let axis = Axis::of_values(values, false, false).unwrap();
        assert!(axis.high < 3.0 && axis.part(1e9) == 1.0 && axis.part(-1e9) == 0.0);
        assert_eq!(Axis::of_values(Vec::new(), false, false), None);
        let level = Axis::of_values(vec![3.0; 4], false, false).unwrap();
        assert!(level.low < 3.0 && level.high > 3.0);
        assert_eq!(Axis::of_values(vec![3.0, 5.0], false, true).unwrap().low, 0.0);
        // Zero has no logarithm.
        assert!(!Axis::of_values(vec![0.0, 5.0], true, false).unwrap().logarithmic);
    }
}
