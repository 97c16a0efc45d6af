//! Every operation against its definition.

mod activation;
mod adamw_8bit;
mod attention;
mod bias;
mod columns;
mod common;
mod cross_entropy;
mod dropout;
mod embedding;
mod gated;
mod kernels;
mod layer_norm;
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
mod routing;
mod scale;
mod widths;
