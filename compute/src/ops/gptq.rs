//! Integers for a weight that lose little of what its layer computes: GPTQ (Frantar et al., 2022,
//! arXiv:2210.17323), with a scale and a minimum for each group.
//!
//! Of inputs with `H = Xᵀ X [in, in]`, damped, `u` is the upper factor of the inverse: `H⁻¹ = uᵀ u`. Column after
//! column is rounded, and what that costs is taken from the columns that are still to come:
//!
//! ```text
//! e[o] = (w[o, i] - q[o, i]) / u[i, i]                w[o, j] -= e[o] u[i, j]      for j > i
//! ```
//!
//! A group's scale and minimum are those of its values when its first column is reached, rounded to half
//! precision; columns keep their order, so that groups stay what they are.

use crate::profile::Work;
use crate::quant::{BlockType, Blocks, Quantized};
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// Integers for `w[out, in]`, `f32`, which is overwritten, with `u[in, in]`, `f32`, of which what lies below the
/// diagonal is not read.
///
/// # Panics
/// If the shapes do not agree, the type has no minima of its own, or rows are not whole blocks.
pub fn quantize(device: &Device, w: MatrixMut<'_>, u: MatrixRef<'_>, kind: BlockType) -> Quantized {
    let (out, inner) = (w.rows(), w.cols());
    assert_eq!((inner, inner), (u.rows(), u.cols()), "the factor of a layer with {inner} inputs");
    assert!(kind.affine_codes().is_some(), "{kind} has no minima of its own");
    let work =
        || Work { flops: (out * inner * inner) as u64, bytes: (w.size_bytes() + u.size_bytes()) as u64 };
    let _watch = device.watch("gptq", [w.home(), u.home()], work);
    match device {
        Device::Cpu(cpu) => {
            let mut blocks = Blocks::zeros(kind, out * inner);
            cpu::gptq::quantize(cpu, w, u, kind, blocks.bytes_mut());
            Quantized::of_blocks(out, inner, blocks)
        }
        Device::Null(_) => Quantized::zeros(device, out, inner, crate::quant::Format::Blocks(kind)),
    }
}
