//! The 256 values of bitsandbytes' dynamic 8-bit data type, on which scales and optimizer states are rounded:
//! for each power of ten from 1e-6 to 1 twice as many equal steps as for the one before it (Dettmers et al.
//! 2022, arXiv:2110.02861, section 2; `functional.create_dynamic_map`).

use std::sync::LazyLock;

/// Elements that share a scale.
pub const BLOCK: usize = 256;

/// Points of the grid on which values are encoded.
const POINTS: usize = 1 << 16;

/// A data type of 256 values: what the codes mean, and the code of each point of a grid from -1 to 1.
///
/// bitsandbytes encodes on the grid when it computes on a CPU (`cquantize_blockwise_cpu_fp32`): the code of
/// `x` is that of the value nearest to the nearest of the points `2 k / 65535 - 1`, the lower one of two as
/// near. No point is zero.
#[derive(Debug)]
pub struct DynamicMap {
    values: [f32; 256],
    codes: Box<[u8; POINTS]>,
}

/// Both signs: scales of scales, first moments. From -0.993 to 1, zero at index 127.
pub fn signed() -> &'static DynamicMap {
    static MAP: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(map(true)));
    &MAP
}

/// Positive values only: second moments. From 0 to 1.
pub fn unsigned() -> &'static DynamicMap {
    static MAP: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(map(false)));
    &MAP
}

impl DynamicMap {
    fn new(values: [f32; 256]) -> Self {
        let mut codes = vec![0; POINTS];
        let mut code = 0;
        for (k, to) in codes.iter_mut().enumerate() {
            let point = (2 * k) as f32 / (POINTS - 1) as f32 - 1.0;
            while code < 255 && point > (values[code] + values[code + 1]) * 0.5 {
                code += 1;
            }
            *to = code as u8;
        }
        DynamicMap { values, codes: codes.try_into().expect("as many codes as points") }
    }

    /// What the codes mean, in ascending order.
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// The values of a block's codes.
    #[inline(always)]
    pub(crate) fn decode(&self, codes: &[u8], absmax: f32, values: &mut [f32; BLOCK]) {
        for (value, &code) in values.iter_mut().zip(codes) {
            *value = self.values[usize::from(code)] * absmax;
        }
    }

    /// Rounds a block to codes and returns its largest magnitude. A short block ends in zeros, for which
    /// there are no codes; a block of zeros has zeros as its codes and its magnitude.
    #[inline(always)]
    pub(crate) fn encode(&self, values: &[f32; BLOCK], codes: &mut [u8]) -> f32 {
        let mut largest = [0.0f32; 16];
        for chunk in values.as_chunks::<16>().0 {
            for (largest, value) in largest.iter_mut().zip(chunk) {
                let magnitude = value.abs();
                *largest = if magnitude > *largest { magnitude } else { *largest };
            }
        }
        let absmax = largest.iter().fold(0.0f32, |a, &b| a.max(b));
        if absmax == 0.0 {
            codes.fill(0);
            return 0.0;
        }
        let inverse = 1.0 / absmax;
        let mut points = [0i32; BLOCK];
        for (point, &value) in points.iter_mut().zip(values) {
            let x = (value * inverse).clamp(-1.0, 1.0);
            // In bitsandbytes a fused multiplication and addition; in f64 both are exact, and what is left is
            // its rounding.
            let at = f64::from((x + 1.0) * 0.5) * (POINTS - 1) as f64 + 0.5;
            *point = at as f32 as i32;
        }
        for (code, &point) in codes.iter_mut().zip(&points) {
            *code = self.codes[point as usize & (POINTS - 1)];
        }
        absmax
    }
}

fn map(signed: bool) -> [f32; 256] {
    const POWERS: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut values = vec![0.0, 1.0];
    for (i, power) in POWERS.into_iter().enumerate() {
        let intervals = if signed { 1 << i } else { 2 << i };
        let bounds: Vec<f32> = (0..=intervals).map(|k| bound(k, intervals)).collect();
        for pair in bounds.windows(2) {
            let value = power * ((pair[0] + pair[1]) / 2.0);
            values.push(value);
            values.extend(signed.then_some(-value));
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("the intervals add up to 254")
}

/// `torch.linspace(0.1, 1, intervals + 1)[k]`, to the bit: counted from the nearer end, with one rounding.
fn bound(k: usize, intervals: usize) -> f32 {
    let step = (1.0 - 0.1_f32) / intervals as f32;
    if k < intervals.div_ceil(2) {
        step.mul_add(k as f32, 0.1)
    } else {
        (-step).mul_add((intervals - k) as f32, 1.0)
    }
}
