//! Every operation against its definition.

mod attention;
mod matmul;
