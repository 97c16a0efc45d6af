//! From values to blocks: the scale and the minimum of a group, and the nearest codes.
//!
//! `q8_0`, `q4_0`, `q5_0`, `q5_1` and `int4` come to the bytes of the package `gguf` (0.19.0, `quants.py`), which are
//! those of ggml's reference; integers of three and two bits are made alike, with fewer codes. The types of 256
//! values have scales that are rounded themselves: there each group's scale is the best of several by weighted
//! least squares, as ggml looks for it (`ggml-quants.c`, `make_qkx2_quants`, `make_qx_quants`).

use half::f16;

use super::blocks::{Affine, BlockType, GROUP};

/// Writes a block of so many values and bytes.
pub(super) fn encode(kind: BlockType, values: &[f32], block: &mut [u8]) {
    block.fill(0);
    match kind {
        BlockType::F16 => {
            for (to, &x) in block.as_chunks_mut().0.iter_mut().zip(values) {
                *to = f16::from_f32(x).to_le_bytes();
            }
        }
        BlockType::Q8_0 => {
            let (d, inverse) = step(largest(values).abs() / 127.0);
            put_half(block, 0, d);
            for (to, x) in block[2..].iter_mut().zip(values) {
                *to = (x * inverse).round() as i8 as u8;
            }
        }
        BlockType::Q4_0 => centred(values, 8, |d, codes| {
            put_half(block, 0, d);
            put_nibbles(&mut block[2..], codes);
        }),
        BlockType::Q5_0 => centred(values, 16, |d, codes| {
            put_half(block, 0, d);
            put_bits(&mut block[2..6], codes, 4);
            put_nibbles(&mut block[6..], codes);
        }),
        BlockType::Int4 | BlockType::Q5_1 | BlockType::Int3 | BlockType::Int2 => {
            let (d, m) = range_of(values, kind.affine_codes().expect("a scale and a minimum"));
            let (_, inverse) = step(d);
            let largest = kind.affine_codes().expect("as above");
            let code = |x: f32| (((x - m) * inverse + 0.5) as u8).min(largest);
            put_half(block, 0, d);
            put_half(block, 2, m);
            put_codes(kind, block, std::array::from_fn(|i| code(values[i])));
        }
        BlockType::Q4K | BlockType::Q5K => encode_with_minima(kind, values, block),
        BlockType::Q6K => encode_q6_k(values, block),
    }
}

/// The scale and the minimum with which codes from 0 to `largest` reach over all values.
fn range_of(values: &[f32], largest: u8) -> (f32, f32) {
    let most = values.iter().fold(f32::NEG_INFINITY, |most, &x| if x > most { x } else { most });
    let least = values.iter().fold(f32::INFINITY, |least, &x| if x < least { x } else { least });
    ((most - least) / f32::from(largest), least)
}

/// Writes the scale and the minimum of a block whose codes are to come.
pub(super) fn begin_affine(values: &[f32], codes: u8, block: &mut [u8]) -> Affine {
    let (d, m) = range_of(values, codes);
    block.fill(0);
    put_half(block, 0, d);
    put_half(block, 2, m);
    let [d, m] = [d, m].map(|x| f16::from_f32(x).to_f32());
    let (d, inverse) = step(d);
    Affine { d, m, inverse, largest: codes.into() }
}

/// Writes the codes of a block that begins with a scale and a minimum.
pub(super) fn put_codes(kind: BlockType, block: &mut [u8], codes: [u8; GROUP]) {
    match kind {
        BlockType::Int4 => put_nibbles(&mut block[4..], codes),
        BlockType::Q5_1 => {
            put_bits(&mut block[4..8], codes, 4);
            put_nibbles(&mut block[8..], codes);
        }
        BlockType::Int3 => {
            put_bits(&mut block[12..], codes, 2);
            put_pairs(&mut block[4..12], codes);
        }
        BlockType::Int2 => put_pairs(&mut block[4..], codes),
        _ => unreachable!("{kind} has no minimum of its own"),
    }
}

/// A scale and its inverse, 0 where it is.
fn step(d: f32) -> (f32, f32) {
    (d, if d == 0.0 { 0.0 } else { 1.0 / d })
}

/// The first of the values that are farthest from zero.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest: f32, &x| if x.abs() > largest.abs() { x } else { largest })
}

/// Codes around `zero`, of which the value farthest from zero gets 0.
fn centred(values: &[f32], zero: u8, put: impl FnOnce(f32, [u8; GROUP])) {
    let (d, inverse) = step(largest(values) / -f32::from(zero));
    let code = |x: f32| ((x * inverse + f32::from(zero) + 0.5) as u8).min(2 * zero - 1);
    put(d, std::array::from_fn(|i| code(values[i])));
}

fn put_half(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// The low half of each code: sixteen in the low halves of bytes, sixteen in the high ones.
fn put_nibbles(to: &mut [u8], codes: [u8; GROUP]) {
    for (i, to) in to[..16].iter_mut().enumerate() {
        *to = codes[i] & 15 | codes[i + 16] << 4;
    }
}

/// The two low bits of each code: eight bytes, four times.
fn put_pairs(to: &mut [u8], codes: [u8; GROUP]) {
    for (i, to) in to[..8].iter_mut().enumerate() {
        *to = (0..4).fold(0, |byte, part| byte | (codes[i + 8 * part] & 3) << (2 * part));
    }
}

/// A bit of each code, one after the other.
fn put_bits(to: &mut [u8], codes: [u8; GROUP], bit: u32) {
    for (i, code) in codes.into_iter().enumerate() {
        to[i / 8] |= (code >> bit & 1) << (i % 8);
    }
}

/// Eight groups whose scales and minima have six bits each.
fn encode_with_minima(kind: BlockType, values: &[f32], block: &mut [u8]) {
    let (codes, first) = if kind == BlockType::Q4K { (15, -1.0) } else { (31, -0.5) };
    let (groups, _) = values.as_chunks::<GROUP>();
    let fits: [(f32, f32); 8] = std::array::from_fn(|g| fit_with_minimum(&groups[g], codes, first));
    let most = |of: fn(&(f32, f32)) -> f32| fits.iter().map(of).fold(0.0, f32::max);
    let (d, d_inverse) = step(most(|fit| fit.0) / 63.0);
    let (dmin, dmin_inverse) = step(most(|fit| fit.1) / 63.0);
    put_half(block, 0, d);
    put_half(block, 2, dmin);
    let [d, dmin] = [d, dmin].map(|x| f16::from_f32(x).to_f32());
    let rounded = |x: f32, inverse: f32| ((x * inverse).round() as u8).min(63);
    for (g, (scale, min)) in fits.into_iter().enumerate() {
        let (scale, min) = (rounded(scale, d_inverse), rounded(min, dmin_inverse));
        put_scale_and_min(&mut block[4..16], g, scale, min);
        let (_, inverse) = step(d * f32::from(scale));
        let least = dmin * f32::from(min);
        let (high, low) = if kind == BlockType::Q4K { (None, 16) } else { (Some(16), 48) };
        for (i, x) in groups[g].iter().enumerate() {
            let code = ((x + least) * inverse).round().clamp(0.0, codes.into()) as u8;
            block[low + 32 * (g / 2) + i] |= (code & 15) << (4 * (g % 2));
            if let Some(high) = high {
                block[high + i] |= code >> 4 << g;
            }
        }
    }
}

/// The opposite of [`super::blocks::scale_and_min`].
fn put_scale_and_min(packed: &mut [u8], group: usize, scale: u8, min: u8) {
    match group {
        0..4 => {
            packed[group] |= scale;
            packed[group + 4] |= min;
        }
        _ => {
            packed[group + 4] = scale & 15 | min << 4;
            packed[group - 4] |= scale >> 4 << 6;
            packed[group] |= min >> 4 << 6;
        }
    }
}

/// The scale, and how far the minimum lies below zero, with which codes from 0 to `largest` come closest to
/// the values; large ones count more. Scales around that of the range are tried, the first of `first` codes
/// more than there are, and for each the best scale and minimum for the codes that it leads to.
fn fit_with_minimum(values: &[f32; GROUP], largest: u8, first: f32) -> (f32, f32) {
    const TRIES: usize = 20;
    const STEP: f32 = 0.1;
    let root_mean_square = (values.iter().map(|x| x * x).sum::<f32>() / GROUP as f32).sqrt();
    let weights = values.map(|x| root_mean_square + x.abs());
    let (_, least) = range_of(values, largest);
    let most = values.iter().fold(f32::NEG_INFINITY, |most, &x| most.max(x));
    let least = least.min(0.0);
    if most <= least {
        return (0.0, -least);
    }
    let top = f32::from(largest);
    let code = |x: f32, inverse: f32, least: f32| (inverse * (x - least)).round().clamp(0.0, top);
    let error = |inverse: f32, from: f32, scale: f32, least: f32| -> f32 {
        let of = |(x, w): (&f32, &f32)| w * (scale * code(*x, inverse, from) + least - x).powi(2);
        values.iter().zip(&weights).map(of).sum()
    };
    let inverse = top / (most - least);
    let mut best = (1.0 / inverse, least);
    let mut smallest = error(inverse, least, best.0, best.1);
    let (sum_w, sum_x) = values.iter().zip(&weights).fold((0.0, 0.0), |(a, b), (x, w)| (a + w, b + w * x));
    for attempt in 0..=TRIES {
        let inverse = (first + STEP * attempt as f32 + top) / (most - least);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
        for (x, w) in values.iter().zip(&weights) {
            let l = code(*x, inverse, least);
            (sum_l, sum_l2, sum_xl) = (sum_l + w * l, sum_l2 + w * l * l, sum_xl + w * l * x);
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let mut min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        if min > 0.0 {
            (scale, min) = (sum_xl / sum_l2, 0.0);
        }
        let error = error(inverse, least, scale, min);
        if error < smallest {
            (smallest, best) = (error, (scale, min));
        }
    }
    (best.0.max(0.0), -best.1)
}

/// Sixteen half groups whose scales have eight bits each.
fn encode_q6_k(values: &[f32], block: &mut [u8]) {
    let (groups, _) = values.as_chunks::<16>();
    let scales: [f32; 16] = std::array::from_fn(|g| fit_without_minimum(&groups[g]));
    let (d, inverse) = step(largest(&scales) / -128.0);
    put_half(block, 208, d);
    let d = f16::from_f32(d).to_f32();
    for (g, scale) in scales.into_iter().enumerate() {
        let scale = (inverse * scale).round().clamp(-128.0, 127.0) as i8;
        block[192 + g] = scale as u8;
        let (_, inverse) = step(d * f32::from(scale));
        let (part, line, half) = (g / 8, g / 2 % 4, g % 2);
        for (i, x) in groups[g].iter().enumerate() {
            let code = ((x * inverse).round().clamp(-32.0, 31.0) + 32.0) as u8;
            let i = 16 * half + i;
            block[64 * part + 32 * (line % 2) + i] |= (code & 15) << (4 * (line / 2));
            block[128 + 32 * part + i] |= code >> 4 << (2 * line);
        }
    }
}

/// The scale with which codes from -32 to 31 come closest to the values, each of which counts by its square.
fn fit_without_minimum(values: &[f32; 16]) -> f32 {
    let extreme = largest(values);
    if extreme.abs() < 1e-15 {
        return 0.0;
    }
    let sums = |inverse: f32| {
        values.iter().fold((0.0, 0.0), |(xl, l2), x| {
            let (l, w) = ((inverse * x).round().clamp(-32.0, 31.0), x * x);
            (xl + w * x * l, l2 + w * l * l)
        })
    };
    let mut best = (0.0, f32::NEG_INFINITY);
    for attempt in -9..=9 {
        let (xl, l2) = sums(-(32.0 + 0.1 * attempt as f32) / extreme);
        // What the best scale for these codes takes off the error.
        if l2 > 0.0 && xl * xl > best.1 * l2 {
            best = (xl / l2, xl * xl / l2);
        }
    }
    best.0
}
