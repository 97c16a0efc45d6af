//! What is trained beside, or in place of, a frozen weight: a file for each method, with its tensors, how
//! they begin, its passes and its merge.

pub(crate) mod dora;
pub(crate) mod full;
pub(crate) mod lora;
pub(crate) mod qalora;
pub(crate) mod quantization_aware;
