//! The types of elements in files, and how they become those of a matrix.

use compute::DType;
use compute::quant::BlockType;
use half::bf16;

/// How a tensor's elements are stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoredDType {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Bytes: codes of quantized weights, never weights themselves.
    U8,
    /// A byte each: masks, never weights.
    Bool,
    /// Words of codes, never weights themselves.
    U32,
    /// Whole numbers, never weights.
    I32,
    /// Whole numbers, never weights.
    I64,
    /// Weights in blocks, as compute has them.
    Blocks(BlockType),
}

impl StoredDType {
    /// Elements that are stored together, and their bytes.
    pub fn unit(self) -> (usize, usize) {
        match self {
            StoredDType::F32 | StoredDType::U32 | StoredDType::I32 => (1, 4),
            StoredDType::Bf16 | StoredDType::F16 => (1, 2),
            StoredDType::U8 | StoredDType::Bool => (1, 1),
            StoredDType::I64 => (1, 8),
            StoredDType::Blocks(kind) => (kind.elements(), kind.bytes()),
        }
    }

    /// Bytes of so many elements, whole units of them.
    pub fn bytes(self, elements: usize) -> usize {
        let (count, bytes) = self.unit();
        elements / count * bytes
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            StoredDType::F32 => "F32",
            StoredDType::Bf16 => "BF16",
            StoredDType::F16 => "F16",
            StoredDType::U8 => "U8",
            StoredDType::Bool => "BOOL",
            StoredDType::U32 => "U32",
            StoredDType::I32 => "I32",
            StoredDType::I64 => "I64",
            StoredDType::Blocks(kind) => kind.name(),
        }
    }

    /// The name in a config.json.
    pub fn torch_name(self) -> &'static str {
        match self {
            StoredDType::F32 => "float32",
            StoredDType::Bf16 => "bfloat16",
            StoredDType::F16 => "float16",
            StoredDType::U8 => "uint8",
            StoredDType::Bool => "bool",
            StoredDType::U32 => "uint32",
            StoredDType::I32 => "int32",
            StoredDType::I64 => "int64",
            StoredDType::Blocks(kind) => kind.name(),
        }
    }

    /// The type in which a matrix holds these values: F16 needs `f32` to lose nothing.
    pub fn matrix_dtype(self) -> DType {
        match self {
            StoredDType::Bf16 => DType::Bf16,
            StoredDType::F32 | StoredDType::F16 | StoredDType::Blocks(_) => DType::F32,
            other => panic!("{} are no weights", other.name()),
        }
    }

    /// Whether weights may be stored so.
    pub fn is_weight(self) -> bool {
        use StoredDType::{Bf16, Blocks, F16, F32};
        matches!(self, F32 | Bf16 | F16 | Blocks(_))
    }

    /// The type of this name in a safetensors header.
    pub(super) fn parse(name: &str) -> Option<StoredDType> {
        use StoredDType::{Bf16, Bool, F16, F32, I32, I64, U8, U32};
        [F32, Bf16, F16, U8, Bool, U32, I32, I64].into_iter().find(|d| d.name() == name)
    }
}

impl From<DType> for StoredDType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => StoredDType::F32,
            DType::Bf16 => StoredDType::Bf16,
        }
    }
}

/// An element of a matrix.
pub(super) trait Element: Copy {
    fn from_f32(value: f32) -> Self;
    /// Without a rounding that would change nothing: most files are of this type, and are read as fast as
    /// they come.
    fn from_bf16(value: bf16) -> Self;
    fn finite(self) -> bool;
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }
    fn from_bf16(value: bf16) -> Self {
        value.to_f32()
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn from_bf16(value: bf16) -> Self {
        value
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}
