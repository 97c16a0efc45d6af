//! Operations: one file each, with its formula, its shapes, a forward, a backward and the match on the device.

pub mod attention;
pub mod matmul;
