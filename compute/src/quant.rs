//! Weights in four bits: sixteen values, scaled by the largest magnitude of each block (QLoRA, Dettmers et al. 2023,
//! arXiv:2305.14314; the bytes are those of bitsandbytes).
//!
//! A matrix is quantized as it lies in memory, row after row, in blocks that know nothing of rows: element `i` belongs to
//! block `i / block_size`, and stands in the high half of byte `i / 2` if `i` is even, in the low half if it is odd.
//! `value = round(table[code] * absmax[block])`, the product in `f32`, rounded to the type that was quantized.

pub mod dynamic_map;
