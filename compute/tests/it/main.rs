//! Every operation against its definition.

mod adamw_8bit;
mod attention;
mod bias;
mod common;
mod cross_entropy;
mod dropout;
mod embedding;
mod gated;
mod kernels;
mod low_rank;
mod matmul;
mod noise;
mod optimizer;
mod profile;
mod quant;
mod random;
mod reduce;
mod residual;
mod rms_norm;
mod rope;
mod widths;
