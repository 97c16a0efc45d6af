//! Jobs from random numbers, for benchmarks and where there is no trace.

use std::f64::consts::TAU;

use super::spec;
use crate::Millis;
use crate::amounts::WHOLE;
use crate::simulate::Arrival;

/// Devices of a job, processes that they are divided among, and how probable that is. Shapes as in the
/// published traces: most jobs have one device, most device hours belong to a few big ones.
const SIZES: [(u64, u32, f64); 7] =
    [(1, 1, 0.50), (2, 1, 0.15), (4, 1, 0.12), (8, 1, 0.12), (16, 2, 0.06), (32, 4, 0.03), (64, 8, 0.02)];
/// Half of the jobs compute for at most this time, in milliseconds.
const MEDIAN: f64 = 20.0 * 60_000.0;
/// The standard deviation of the logarithm of that time.
const SIGMA: f64 = 1.6;
/// The shortest and the longest job.
const BOUNDS: (f64, f64) = (10_000.0, 14.0 * 24.0 * 3_600_000.0);

/// What a generated trace looks like.
///
/// Jobs arrive as a Poisson process. Their work is log-normal: a median of 20 minutes, 1.6 as the standard
/// deviation of the logarithm (a mean of 72 minutes), cut to ten seconds to fourteen days. They have 1, 2, 4,
/// 8, 16, 32 or 64 devices (50, 15, 12, 12, 6, 3 and 2 %), above eight of them as processes of eight. Project
/// `p1` submits twice as many as `p2`, three times as many as `p3`, and so on (Zipf's law).
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Same seed, same trace.
    pub seed: u64,
    /// Jobs.
    pub jobs: usize,
    /// Projects, `p1` and on.
    pub projects: usize,
    /// Devices of the machines that it is for.
    pub devices: u64,
    /// The part of all devices that the jobs ask for on average; above 1, more and more wait.
    pub load: f64,
}

impl Load {
    /// The trace. Jobs bigger than all devices are left out of the distribution.
    ///
    /// # Panics
    /// If there is no project or no device, or `load` is not above zero.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Arrival> {
        assert!(self.projects > 0 && self.devices > 0 && self.load > 0.0, "{self:?} is no load");
        let sizes: Vec<_> = SIZES.iter().filter(|(devices, ..)| *devices <= self.devices).collect();
        let all: f64 = sizes.iter().map(|(.., p)| p).sum();
        let mean_size = sizes.iter().map(|(devices, _, p)| *devices as f64 * p).sum::<f64>() / all;
        let mean_work = MEDIAN * (SIGMA * SIGMA / 2.0).exp();
        let mean_gap = mean_size * mean_work / (self.load * self.devices as f64);
        let popularity: Vec<f64> = (1..=self.projects).map(|n| 1.0 / n as f64).collect();
        let popularity_sum: f64 = popularity.iter().sum();
        let mut random = Random(self.seed);
        let mut at = 0.0;
        let mut job = |n: usize| {
            if n > 0 {
                at -= (1.0 - random.unit()).ln() * mean_gap;
            }
            let work = (MEDIAN.ln() + SIGMA * random.normal()).exp().clamp(BOUNDS.0, BOUNDS.1);
            let size = pick(random.unit() * all, sizes.iter().map(|(.., p)| *p));
            let (devices, members, _) = *sizes[size];
            let project = pick(random.unit() * popularity_sum, popularity.iter().copied());
            let project = format!("p{}", project + 1);
            let each = devices * WHOLE / u64::from(members);
            let spec = spec(&format!("job-{}", n + 1), &project, &project, members, each, work as Millis);
            Arrival { at: at as Millis, spec: *spec }
        };
        (0..self.jobs).map(&mut job).collect()
    }
}

/// The place where the sum of `parts` passes a number.
fn pick(mut number: f64, parts: impl ExactSizeIterator<Item = f64>) -> usize {
    let last = parts.len() - 1;
    for (n, part) in parts.enumerate() {
        number -= part;
        if number < 0.0 {
            return n;
        }
    }
    last
}

/// SplitMix64 (Steele, Lea and Flood, *Fast Splittable Pseudorandom Number Generators*, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (TAU * self.unit()).cos()
    }
}
