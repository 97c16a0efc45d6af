//! The host as a device: its thread pool, its instruction set and the kernels of every operation.

pub(crate) mod activation;
pub(crate) mod adamw_8bit;
pub(crate) mod attention;
pub(crate) mod bias;
pub(crate) mod blocks;
mod column_sums;
pub(crate) mod copy;
pub(crate) mod cross_entropy;
pub(crate) mod divergence;
pub(crate) mod dropout;
pub(crate) mod embedding;
pub(crate) mod gated;
pub(crate) mod gemm;
pub(crate) mod gptq;
pub(crate) mod layer_norm;
pub(crate) mod magnitude;
pub(crate) mod noise;
pub(crate) mod optimizer;
mod pool;
pub(crate) mod pool_columns;
pub(crate) mod position_scale;
pub(crate) mod quant;
pub(crate) mod reduce;
pub(crate) mod residual;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod routing;
mod rows;
pub(crate) mod scale;
mod simd;
pub(crate) mod soft_cap;
mod turn;

use std::sync::Arc;

pub(crate) use pool::Pool;
pub use turn::{Foreground, Yielding, yielding};

use crate::Precision;
use crate::profile::Profile;
use gemm::Isa;

/// A handle on the host's processors; cloning shares the same threads.
#[derive(Clone, Debug)]
pub struct Cpu {
    pub(crate) pool: Arc<Pool>,
    pub(crate) isa: Isa,
    pub(crate) profile: Arc<Profile>,
}

impl Cpu {
    /// `threads` threads (0: one per available processor), the best instruction set that the processor has.
    /// `LUTHIER_ISA` (`avx512bf16`, `avx512`, `avx2`, `portable`) forces another one, to test or compare.
    pub fn new(threads: usize) -> Self {
        let threads =
            if threads == 0 { std::thread::available_parallelism().map_or(1, |n| n.get()) } else { threads };
        Cpu { pool: Arc::new(Pool::new(threads)), isa: Isa::detect(), profile: Arc::default() }
    }

    /// `threads` threads as in [`Cpu::new`] and this instruction set, by the name that `LUTHIER_ISA` knows it
    /// by; for tests and comparisons.
    ///
    /// # Errors
    /// A message if the name is unknown or this processor lacks the instructions.
    pub fn with_isa(threads: usize, name: &str) -> Result<Self, String> {
        let isa: Isa = name.parse().map_err(|e| format!("{name}: {e}"))?;
        if !isa.is_available() {
            return Err(format!("{name}: this processor lacks it"));
        }
        Ok(Cpu { isa, ..Cpu::new(threads) })
    }

    /// The name of the instruction set in use.
    pub fn isa(&self) -> &'static str {
        self.isa.name()
    }

    /// Floating-point operations a second that a matrix product's innermost loop reaches here on all threads,
    /// with its data in the first-level cache: the measure of what a whole product could reach. Takes some
    /// 100 ms.
    pub fn peak_flops(&self, precision: Precision) -> f64 {
        gemm::peak_flops(self, precision)
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}
