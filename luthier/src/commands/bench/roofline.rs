//! The roofline (Williams, Waterman, Patterson 2009): what this machine can do, measured in the run itself,
//! and how near each operation comes to it.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::thread;
use std::time::Instant;

use compute::profile::{Key, Total, Work};
use compute::{Device, Precision};
use serde_json::{Value, json};

use crate::terminal::{Table, count};

/// What the machine does at most.
#[derive(Clone, Copy)]
pub(super) struct Peaks {
    /// Floating-point operations a second of a product's innermost loop, its data in cache.
    pub(super) flops: f64,
    /// Bytes a second read from memory.
    pub(super) bandwidth: f64,
}

impl Peaks {
    pub(super) fn measure(device: &Device, precision: Precision) -> Self {
        // Twice, some time apart: what disturbs one measurement may have passed at the other.
        let flops = || device.peak_flops(precision);
        let (before, bandwidth, after) = (flops(), read_bandwidth(device.threads()), flops());
        Peaks { flops: before.max(after), bandwidth }
    }

    /// The least seconds that this work can take: those of its arithmetic, or of its bytes if all came from
    /// memory.
    fn least_seconds(&self, work: Work) -> f64 {
        (work.flops as f64 / self.flops).max(work.bytes as f64 / self.bandwidth)
    }
}

/// Bytes a second that `threads` threads read from memory: the best of several passes over more than caches
/// hold.
fn read_bandwidth(threads: usize) -> f64 {
    const WORDS: usize = 256 << 17;
    let words = vec![1_u64; WORDS];
    let pass = || {
        let begun = Instant::now();
        thread::scope(|scope| {
            for part in words.chunks(WORDS.div_ceil(threads)) {
                scope.spawn(move || black_box(part.iter().fold(0_u64, |sum, &word| sum.wrapping_add(word))));
            }
        });
        (8 * WORDS) as f64 / begun.elapsed().as_secs_f64()
    };
    (0..8).map(|_| pass()).fold(0.0, f64::max)
}

/// Where the time of some steps went.
pub(super) struct Roofline {
    rows: Vec<(Key, Total)>,
    steps: f64,
    /// Of all steps, what is between the operations included.
    seconds: f64,
    peaks: Peaks,
}

/// Operations of a smaller share of the time are told together.
const SMALLEST_SHARE: f64 = 0.005;

impl Roofline {
    pub(super) fn new(profile: BTreeMap<Key, Total>, steps: usize, seconds: f64, peaks: Peaks) -> Self {
        let mut rows: Vec<_> = profile.into_iter().collect();
        rows.sort_by(|(_, a), (_, b)| b.seconds.total_cmp(&a.seconds));
        Roofline { rows, steps: steps as f64, seconds, peaks }
    }

    pub(super) fn json(&self) -> Value {
        let row = |(key, total): &(Key, Total)| {
            json!({
                "operation": key.operation,
                "size": key.size,
                "calls_per_step": total.calls as f64 / self.steps,
                "seconds_per_step": total.seconds / self.steps,
                "share": total.seconds / self.seconds,
                "flops_per_second": total.work.flops as f64 / total.seconds,
                "bytes_per_second": total.work.bytes as f64 / total.seconds,
                "of_roof": self.peaks.least_seconds(total.work) / total.seconds,
            })
        };
        self.rows.iter().map(row).collect()
    }

    /// One line for each operation that matters, the slowest first. `step` is what a step is called.
    pub(super) fn text(&self, step: &str) -> String {
        let mut table =
            Table::new(["operation", "m x n x k", "calls", "ms", "share", "GFLOP/s", "GB/s", "of roof"]);
        let milliseconds = |seconds: f64| format!("{:.2}", 1e3 * seconds / self.steps);
        let percent = |part: f64| format!("{:.1} %", 100.0 * part);
        let (mut small, mut watched) = (0.0, 0.0);
        for (key, total) in &self.rows {
            watched += total.seconds;
            if total.seconds < SMALLEST_SHARE * self.seconds {
                small += total.seconds;
                continue;
            }
            let rate = |amount: u64| format!("{:.1}", amount as f64 / total.seconds / 1e9);
            table.row([
                key.operation.to_owned(),
                key.size.map_or(String::new(), |[m, n, k]| format!("{m} x {n} x {k}")),
                count(total.calls as f64 / self.steps),
                milliseconds(total.seconds),
                percent(total.seconds / self.seconds),
                if total.work.flops > 0 { rate(total.work.flops) } else { String::new() },
                rate(total.work.bytes),
                percent(self.peaks.least_seconds(total.work) / total.seconds),
            ]);
        }
        for (name, seconds) in [("other operations", small), ("between operations", self.seconds - watched)] {
            let share = percent(seconds / self.seconds);
            let empty = String::new;
            table.row([
                name.to_owned(),
                empty(),
                empty(),
                milliseconds(seconds),
                share,
                empty(),
                empty(),
                empty(),
            ]);
        }
        format!(
            "{table}\n\ncalls and ms are of a {step}; the roof is {:.0} GFLOP/s or {:.1} GB/s, measured in this run, and what \
             finds its data in cache can be above it",
            self.peaks.flops / 1e9,
            self.peaks.bandwidth / 1e9
        )
    }
}
