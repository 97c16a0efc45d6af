//! How ggml stores values: in blocks of so many values and bytes.

use std::fmt;

use compute::quant::BlockType;

/// A type of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TensorType {
    number: u32,
    name: &'static str,
    elements: u64,
    bytes: u64,
}

/// Number, name, values and bytes of a block (`ggml-common.h`; `GGML_QUANT_SIZES` of the package `gguf`
/// 0.19.0).
const TYPES: [(u32, &str, u64, u64); 33] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

impl TensorType {
    /// IEEE single precision.
    pub const F32: TensorType = TensorType { number: 0, name: "F32", elements: 1, bytes: 4 };

    /// IEEE half precision.
    pub const F16: TensorType = TensorType { number: 1, name: "F16", elements: 1, bytes: 2 };
    /// bfloat16.
    pub const BF16: TensorType = TensorType { number: 30, name: "BF16", elements: 1, bytes: 2 };

    /// ggml's type of this name.
    pub const Q4_0: TensorType = TensorType { number: 2, name: "Q4_0", elements: 32, bytes: 18 };
    /// ggml's type of this name.
    pub const Q4_1: TensorType = TensorType { number: 3, name: "Q4_1", elements: 32, bytes: 20 };
    /// ggml's type of this name.
    pub const Q5_0: TensorType = TensorType { number: 6, name: "Q5_0", elements: 32, bytes: 22 };
    /// ggml's type of this name.
    pub const Q5_1: TensorType = TensorType { number: 7, name: "Q5_1", elements: 32, bytes: 24 };
    /// ggml's type of this name.
    pub const Q8_0: TensorType = TensorType { number: 8, name: "Q8_0", elements: 32, bytes: 34 };
    /// ggml's type of this name.
    pub const Q4_K: TensorType = TensorType { number: 12, name: "Q4_K", elements: 256, bytes: 144 };
    /// ggml's type of this name.
    pub const Q6_K: TensorType = TensorType { number: 14, name: "Q6_K", elements: 256, bytes: 210 };

    /// The type of blocks that hold its values as they are; none: values are read one by one, or not at all.
    pub fn blocks(self) -> Option<BlockType> {
        Some(match self.name {
            "F16" => BlockType::F16,
            "Q8_0" => BlockType::Q8_0,
            "Q4_0" => BlockType::Q4_0,
            "Q4_1" => BlockType::Int4,
            "Q5_0" => BlockType::Q5_0,
            "Q5_1" => BlockType::Q5_1,
            "Q4_K" => BlockType::Q4K,
            "Q5_K" => BlockType::Q5K,
            "Q6_K" => BlockType::Q6K,
            _ => return None,
        })
    }

    /// The type that holds such blocks as they are or, of integers of fewer bits, their values.
    pub fn of_blocks(kind: BlockType) -> TensorType {
        let kind = if kind.affine_codes().is_some_and(|codes| codes < 15) { BlockType::Int4 } else { kind };
        TensorType::all().find(|of| of.blocks() == Some(kind)).expect("a type for each kind of blocks")
    }

    /// The type of this number in a file.
    pub fn of(number: u32) -> Option<TensorType> {
        let (number, name, elements, bytes) = TYPES.into_iter().find(|of| of.0 == number)?;
        Some(TensorType { number, name, elements, bytes })
    }

    /// All that are known.
    pub fn all() -> impl Iterator<Item = TensorType> {
        TYPES.into_iter().filter_map(|of| TensorType::of(of.0))
    }

    /// Its number in a file.
    pub fn number(self) -> u32 {
        self.number
    }

    /// What llama.cpp calls it.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Values that are stored together, of one row.
    pub fn block_elements(self) -> u64 {
        self.elements
    }

    /// Bytes of such a block.
    pub fn block_bytes(self) -> u64 {
        self.bytes
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
