//! Operations: one file each, with its formula, its shapes, a forward, a backward and the match on the
//! device.

pub mod activation;
pub mod adamw_8bit;
pub mod attention;
pub mod bias;
pub mod copy;
pub mod cross_entropy;
pub mod divergence;
pub mod dropout;
pub mod embedding;
pub mod gated;
pub mod gptq;
pub mod layer_norm;
pub mod low_rank;
pub mod magnitude;
pub mod matmul;
pub mod noise;
pub mod optimizer;
pub mod pool;
pub mod position_scale;
pub mod reduce;
pub mod residual;
pub mod rms_norm;
pub mod rope;
pub mod routing;
pub mod scale;
pub mod soft_cap;
