//! Rotary position embedding (Su et al., 2021, arXiv:2104.09864) in Hugging Face's layout.
//!
//! `x[T, H * D]` is `H` heads of size `D`, whose first `r` dimensions are turned (all of them in most models,
//! the rest stays as it is); with `h = r / 2`, the pair `(i, i + h)` of every head is turned by the angle of
//! the token's position:
//!
//! ```text
//! angle(p, i)  = p * inv_freq[i]                               i < h
//! x'[i]        = m * (x[i] * cos(angle) - x[i + h] * sin(angle))
//! x'[i + h]    = m * (x[i + h] * cos(angle) + x[i] * sin(angle))
//! ```
//!
//! or, where pairs are [neighbours](Rotation::interleaved), `(2i, 2i + 1)` in place of `(i, i + h)`.
//! `inv_freq[i] = theta^(-2i / r)`, changed by a [`RopeScaling`]; `m` is 1 but for YaRN and LongRoPE. A
//! rotation's transpose turns back, so the backward is the same with `-angle`:
//!
//! ```text
//! dx[i]        = m * (dx'[i] * cos(angle) + dx'[i + h] * sin(angle))
//! dx[i + h]    = m * (dx'[i + h] * cos(angle) - dx'[i] * sin(angle))
//! ```
//!
//! Frequencies, angles, cosines and sines are `f32`, computed step by step as transformers'
//! `modeling_rope_utils.py` computes them: at large positions a frequency's last bit shows.

use crate::profile::Work;
use crate::{DType, Device, Matrix, MatrixMut, VectorRef, cpu};

/// How frequencies are changed to reach beyond the context that a model was first trained on. Names and
/// meanings are those of `rope_parameters` (`rope_scaling`) in config.json.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As the model was trained.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// How many times longer the context becomes.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, those between interpolated.
    Llama3 {
        /// How many times longer the context becomes.
        factor: f64,
        /// Wavelengths longer than `original_max_position_embeddings / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context of the original training, in tokens.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al., 2023, arXiv:2309.00071).
    Yarn {
        /// How many times longer the context becomes.
        factor: f64,
        /// The context of the original training, in tokens.
        original_max_position_embeddings: usize,
        /// Frequencies with more rotations than this over the original context are kept (usually 32).
        beta_fast: f64,
        /// Frequencies with fewer rotations than this are divided (usually 1).
        beta_slow: f64,
        /// What multiplies cosine and sine; none: inferred from `factor`, `mscale` and `mscale_all_dim`.
        attention_factor: Option<f64>,
        /// The numerator's share in the inferred attention factor; counts only together with
        /// `mscale_all_dim`.
        mscale: Option<f64>,
        /// The denominator's share in the inferred attention factor.
        mscale_all_dim: Option<f64>,
        /// Whether the borders between the three ranges are rounded to whole dimensions (usually true).
        truncate: bool,
    },
    /// LongRoPE (Ding et al., 2024, arXiv:2402.13753): each frequency is divided by a factor of its own.
    LongRope {
        /// `[r / 2]`, for sequences up to the original context.
        short_factor: Vec<f64>,
        /// `[r / 2]`, for longer ones.
        long_factor: Vec<f64>,
        /// How many times longer the context becomes.
        factor: f64,
        /// The context of the original training, in tokens.
        original_max_position_embeddings: usize,
        /// What multiplies cosine and sine; none: inferred from `factor`.
        attention_factor: Option<f64>,
    },
}

/// Which dimensions of a head are turned, and how fast.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Dimensions that are turned, `r`, the first ones; even.
    pub dims: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched for long contexts.
    pub scaling: RopeScaling,
    /// Whether `(2i, 2i + 1)` are turned together, rather than `(i, i + r / 2)`.
    pub interleaved: bool,
}

impl RopeScaling {
    /// The inverse frequencies `[dims / 2]` and the factor `m` on cosine and sine; `long`: those of sequences
    /// beyond the original context, where that makes a difference.
    ///
    /// # Panics
    /// If `dims` is odd.
    pub fn frequencies(&self, dims: usize, theta: f64, long: bool) -> (Vec<f32>, f64) {
        assert!(dims.is_multiple_of(2), "a rotary embedding turns pairs, not {dims} dimensions");
        let powers: Vec<f32> = (0..dims)
            .step_by(2)
            .map(|i| f64::from(theta as f32).powf(f64::from(i as f32 / dims as f32)) as f32)
            .collect();
        let plain = powers.iter().map(|p| 1.0 / p);
        match *self {
            RopeScaling::None => (plain.collect(), 1.0),
            RopeScaling::Linear { factor } => (plain.map(|f| f / factor as f32).collect(), 1.0),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let context = original_max_position_embeddings as f64;
                let scale = |f| llama3(f, factor, low_freq_factor, high_freq_factor, context);
                (plain.map(scale).collect(), 1.0)
            }
            RopeScaling::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } => {
                let m = attention_factor.unwrap_or_else(|| yarn_attention(factor, mscale, mscale_all_dim));
                (self.yarn(&powers, theta, factor), m)
            }
            RopeScaling::LongRope { ref short_factor, ref long_factor, factor, attention_factor, .. } => {
                let factors = if long { long_factor } else { short_factor };
                assert_eq!(factors.len(), powers.len(), "a factor for each frequency");
                let divided =
                    powers.iter().zip(factors).map(|(power, &factor)| 1.0 / (factor as f32 * power));
                (divided.collect(), attention_factor.unwrap_or_else(|| self.longrope_attention(factor)))
            }
        }
    }

    /// Whether frequencies depend on a sequence's length, and then the longest that takes the short ones.
    pub fn short_context(&self) -> Option<usize> {
        match *self {
            RopeScaling::LongRope { original_max_position_embeddings, .. } => {
                Some(original_max_position_embeddings)
            }
            _ => None,
        }
    }

    /// The attention factor of LongRoPE, as transformers infers it.
    fn longrope_attention(&self, factor: f64) -> f64 {
        let original = self.short_context().expect("frequencies calls this for LongRoPE only") as f64;
        if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() }
    }

    /// transformers' `_compute_yarn_parameters`: between the dimensions `low` and `high` a ramp leads from
    /// the kept to the divided frequency.
    fn yarn(&self, powers: &[f32], theta: f64, factor: f64) -> Vec<f32> {
        let &RopeScaling::Yarn { original_max_position_embeddings, beta_fast, beta_slow, truncate, .. } =
            self
        else {
            unreachable!("frequencies calls this for Yarn only");
        };
        let dim = (2 * powers.len()) as f64;
        let dimension_of = |rotations: f64| {
            let wavelength = original_max_position_embeddings as f64 / (rotations * std::f64::consts::TAU);
            dim * wavelength.ln() / (2.0 * theta.ln())
        };
        let (low, high) = (dimension_of(beta_fast), dimension_of(beta_slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001; // as transformers: no division by zero
        }
        let ramp = |i: usize| ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let mix = |(i, &power): (usize, &f32)| {
            let keep = 1.0 - ramp(i);
            1.0 / (factor as f32 * power) * (1.0 - keep) + 1.0 / power * keep
        };
        powers.iter().enumerate().map(mix).collect()
    }
}

/// transformers' `_compute_llama3_parameters` for one frequency.
fn llama3(f: f32, factor: f64, low_freq_factor: f64, high_freq_factor: f64, context: f64) -> f32 {
    let wavelength = std::f64::consts::TAU as f32 / f;
    if wavelength < (context / high_freq_factor) as f32 {
        f
    } else if wavelength > (context / low_freq_factor) as f32 {
        f / factor as f32
    } else {
        let smooth = (context as f32 / wavelength - low_freq_factor as f32)
            / (high_freq_factor - low_freq_factor) as f32;
        (1.0 - smooth) * f / factor as f32 + smooth * f
    }
}

/// The attention factor of YaRN, as transformers infers it.
fn yarn_attention(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
    let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    match (mscale, mscale_all_dim) {
        (Some(a), Some(b)) if a != 0.0 && b != 0.0 => scale(a) / scale(b),
        _ => scale(1.0),
    }
}

/// Cosines and sines of every position, `[rows, r / 2]` each, with the attention factor multiplied in.
#[derive(Debug)]
pub struct RopeTable {
    pub(crate) cos: Matrix,
    pub(crate) sin: Matrix,
    pub(crate) dims: usize,
    pub(crate) interleaved: bool,
    head_dim: usize,
    rows: usize,
}

impl RopeTable {
    /// The table of positions `0..positions` for heads of size `head_dim`, in the memory of a device. Where
    /// frequencies depend on a sequence's length ([`RopeScaling::short_context`]) the rows of short sequences
    /// come first, then as many of long ones.
    ///
    /// # Panics
    /// If more dimensions than a head has, or an odd number, are to be turned.
    pub fn new(device: &Device, head_dim: usize, rotation: &Rotation, positions: usize) -> Self {
        let Rotation { dims, theta, ref scaling, interleaved } = *rotation;
        assert!(dims <= head_dim, "{dims} dimensions of a head of {head_dim} are turned");
        let rows = RopeTable::rows_of(scaling, positions);
        let mut tables = [(); 2].map(|()| Matrix::unset(rows, dims / 2, DType::F32));
        let [cos, sin] = &mut tables;
        let mut entries = cos.as_mut().f32().iter_mut().zip(sin.as_mut().f32());
        for long in [false, true].into_iter().take(if rows > positions { 2 } else { 1 }) {
            let (frequencies, m) = scaling.frequencies(dims, theta, long);
            let m = m as f32;
            for p in 0..positions {
                for f in &frequencies {
                    let angle = p as f32 * f;
                    let (cos, sin) = entries.next().expect("a place for each frequency of each position");
                    (*cos, *sin) = (angle.cos() * m, angle.sin() * m);
                }
            }
        }
        let [cos, sin] = tables.map(|table| device.take(table));
        RopeTable { cos, sin, dims, interleaved, head_dim, rows }
    }

    /// Rows of a table of so many positions.
    fn rows_of(scaling: &RopeScaling, positions: usize) -> usize {
        if scaling.short_context().is_some() { 2 * positions } else { positions }
    }

    /// Size of a head, `D`.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Number of rows in the table.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that a table of so many positions takes.
    pub fn size_bytes(rotation: &Rotation, positions: usize) -> usize {
        2 * RopeTable::rows_of(&rotation.scaling, positions) * (rotation.dims / 2) * size_of::<f32>()
    }
}

/// Turns every head of `x[T, H * D]` in place by its token's row of the table: its position, but for long
/// sequences under LongRoPE.
///
/// # Panics
/// If `x` is not made of heads of the table's size, or a row is beyond the table.
pub fn forward(device: &Device, x: MatrixMut<'_>, table: &RopeTable, rows: VectorRef<'_, u32>) {
    check(&x, table, rows);
    let _watch = device.watch("rotary embedding", [x.home(), table.cos.home(), rows.home()], || {
        Work::bytes(2 * x.size_bytes())
    });
    match device {
        Device::Cpu(cpu) => cpu::rope::turn(cpu, x, table, places(rows, table), 1.0),
        Device::Null(_) => {}
    }
}

/// Turns the gradient `dx[T, H * D]` back in place.
///
/// # Panics
/// As [`forward`].
pub fn backward(device: &Device, dx: MatrixMut<'_>, table: &RopeTable, rows: VectorRef<'_, u32>) {
    check(&dx, table, rows);
    let _watch =
        device.watch("rotary embedding backward", [dx.home(), table.cos.home(), rows.home()], || {
            Work::bytes(2 * dx.size_bytes())
        });
    match device {
        Device::Cpu(cpu) => cpu::rope::turn(cpu, dx, table, places(rows, table), -1.0),
        Device::Null(_) => {}
    }
}

fn check(x: &MatrixMut<'_>, table: &RopeTable, rows: VectorRef<'_, u32>) {
    assert_eq!(x.rows(), rows.len(), "tokens and their rows of the rotary table");
    assert!(
        table.head_dim > 0 && x.cols().is_multiple_of(table.head_dim),
        "{} columns are not heads of size {}",
        x.cols(),
        table.head_dim
    );
}

/// Rows that the host can read, all of them in the table.
fn places<'a>(rows: VectorRef<'a, u32>, table: &RopeTable) -> &'a [u32] {
    let all = table.rows;
    rows.below(all, |t, row| format!("token {t} takes row {row}, but the rotary table has {all} rows"))
}
