//! Memory and arithmetic on a device.
//!
//! A [`Matrix`] is the only tensor: row-major, `f32` or `bf16`, rows are tokens (activations) or output
//! features (weights). It lies in a device's memory, and so does a [`Vector`] of whole numbers. Operations
//! live in [`ops`], one file each, with the formula, the shapes, a forward and a backward; they write into
//! matrices their callers own and never allocate results. A [`Device`] is matched inside each operation.
//!
//! This crate knows nothing of files, models, adapters, text or JSON. It is the only one with `unsafe`.
//!
//! Letters for shapes, everywhere: `T` tokens, `C` model width, `H`/`K` query/key heads, `D` head size, `F`
//! inner width, `V` vocabulary, `R` rank, `L` layers.

mod cpu;
mod device;
mod matrix;
mod memory;
pub mod ops;
pub mod profile;
pub mod quant;
pub mod random;
mod vector;

pub use cpu::{Cpu, Foreground, Yielding, yielding};
pub use device::{Device, Null};
pub use half::bf16;
pub use matrix::{DType, Download, Home, Matrix, MatrixMut, MatrixRef, Precision};
pub use memory::{Buffer, MappedFile};
pub use vector::{Vector, VectorRef};
