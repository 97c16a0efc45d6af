//! Settings that can be written in more than one way.

use compute::quant::blocks::GROUP;
use std::fmt::{self, Display};
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde::{Deserialize as DeriveDeserialize, Serialize as DeriveSerialize};

use super::Format;

/// A size in bytes, written `12GiB`, `48GB`, `512MiB`, or as a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ByteSize(
    /// Bytes.
    pub(crate) u64,
);

/// Units from the largest, so that the first that divides a size is the one to write it in.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

const BYTE_SIZE: &str = "a size such as 12GiB, 48GB or 512MiB";

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (text[..end].parse::<f64>(), text[end..].trim());
        let scale = match unit {
            "" => Some(1),
            unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, scale)| *scale),
        };
        match (number, scale) {
            // Up to 2^63, where an f64 still rounds to a u64 without harm.
            (Ok(number), Some(scale)) if number * (scale as f64) < 9.2e18 => {
                Ok(Self((number * scale as f64).round() as u64))
            }
            _ => Err(format!("expected {BYTE_SIZE}")),
        }
    }
}

impl Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = UNITS.iter().find(|(_, scale)| self.0.is_multiple_of(*scale)).expect("1 divides");
        // A multiple of 1000 and of 1024 is shown in the unit that makes the shorter number.
        write!(f, "{}{unit}", self.0 / scale)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByteSizeVisitor;
        impl Visitor<'_> for ByteSizeVisitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(BYTE_SIZE)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(ByteSizeVisitor)
    }
}

/// How the frozen base is quantized: to four bits as bitsandbytes does, or to integers in groups.
#[derive(Clone, Copy, Debug, PartialEq, DeriveSerialize)]
pub(crate) struct Quantization {
    #[serde(rename = "type")]
    pub(crate) kind: QuantizationType,
    /// Whether the blocks' scales are quantized too; of `nf4` and `fp4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) double_quant: Option<bool>,
    /// Weights that share a scale; of `nf4` and `fp4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) block_size: Option<usize>,
    /// Weights that share a scale and a minimum; of integers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group_size: Option<usize>,
}

impl Quantization {
    /// What `quantization: nf4` means.
    pub(crate) const NF4: Self = Self {
        kind: QuantizationType::Nf4,
        double_quant: Some(true),
        block_size: Some(64),
        group_size: None,
    };

    /// The format that it stands for.
    pub(crate) fn format(self) -> compute::quant::Format {
        use compute::quant::{BlockType, Code, CodebookFormat, Format};
        let codebook = |code| {
            let (double_quant, block_size) =
                (self.double_quant != Some(false), self.block_size.unwrap_or(64));
            Format::Codebook(CodebookFormat { code, block_size, double_quant })
        };
        match self.kind {
            QuantizationType::Nf4 => codebook(Code::Nf4),
            QuantizationType::Fp4 => codebook(Code::Fp4),
            QuantizationType::Int4 => Format::Blocks(BlockType::Int4),
            QuantizationType::Int3 => Format::Blocks(BlockType::Int3),
            QuantizationType::Int2 => Format::Blocks(BlockType::Int2),
        }
    }
}

/// What codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, DeriveSerialize, DeriveDeserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum QuantizationType {
    /// Quantiles of a normal distribution, as weights are.
    Nf4,
    /// Floating-point numbers of four bits.
    Fp4,
    /// Integers of four bits, with a scale and a minimum for each group of a row.
    Int4,
    /// Integers of three bits.
    Int3,
    /// Integers of two bits.
    Int2,
}

impl QuantizationType {
    fn is_integer(self) -> bool {
        matches!(self, Self::Int4 | Self::Int3 | Self::Int2)
    }
}

impl<'de> Deserialize<'de> for Quantization {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(DeriveDeserialize)]
        #[serde(deny_unknown_fields)]
        struct Full {
            #[serde(rename = "type")]
            kind: QuantizationType,
            double_quant: Option<bool>,
            block_size: Option<usize>,
            group_size: Option<usize>,
        }
        struct QuantizationVisitor;
        impl<'de> Visitor<'de> for QuantizationVisitor {
            type Value = Full;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "nf4, fp4, int4, int3, int2, {type, double_quant, block_size} or {type, group_size}",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Full, E> {
                let kind = match text {
                    "nf4" => QuantizationType::Nf4,
                    "fp4" => QuantizationType::Fp4,
                    "int4" => QuantizationType::Int4,
                    "int3" => QuantizationType::Int3,
                    "int2" => QuantizationType::Int2,
                    _ => return Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                };
                Ok(Full { kind, double_quant: None, block_size: None, group_size: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Full, A::Error> {
                Full::deserialize(MapAccessDeserializer::new(map))
            }
        }
        let Full { kind, double_quant, block_size, group_size } =
            deserializer.deserialize_any(QuantizationVisitor)?;
        if kind.is_integer() {
            if double_quant.is_some() || block_size.is_some() {
                return Err(de::Error::custom(
                    "integers have a group_size, and neither block_size nor double_quant",
                ));
            }
            let group_size = Some(group_size.unwrap_or(GROUP));
            return Ok(Self { kind, double_quant: None, block_size: None, group_size });
        }
        if group_size.is_some() {
            return Err(de::Error::custom("nf4 and fp4 have a block_size, and no group_size"));
        }
        let (double_quant, block_size) =
            (double_quant.or(Self::NF4.double_quant), block_size.or(Self::NF4.block_size));
        Ok(Self { kind, double_quant, block_size, group_size: None })
    }
}

/// `data.train`: a file, a folder, or a list of sources.
#[derive(Clone, Debug, PartialEq, DeriveSerialize)]
#[serde(untagged)]
pub(crate) enum TrainData {
    /// A file or a folder.
    One(PathBuf),
    /// Several, mixed by their weights.
    Many(Vec<Source>),
}

/// A source of examples.
#[derive(Clone, Debug, PartialEq, DeriveSerialize)]
pub(crate) struct Source {
    /// A file or a folder.
    pub(crate) path: PathBuf,
    /// None: `data.format`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) format: Option<Format>,
    /// How often an example of this source is seen, beside those of weight 1.
    pub(crate) weight: f64,
}

impl Source {
    /// The whole of a file or folder, once.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, format: None, weight: 1.0 }
    }
}

impl<'de> Deserialize<'de> for TrainData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TrainVisitor;
        impl<'de> Visitor<'de> for TrainVisitor {
            type Value = TrainData;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a file, a folder or a list of {path, format, weight}")
            }

            fn visit_str<E>(self, path: &str) -> Result<TrainData, E> {
                Ok(TrainData::One(path.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<TrainData, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(items)).map(TrainData::Many)
            }
        }
        deserializer.deserialize_any(TrainVisitor)
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(DeriveDeserialize)]
        #[serde(deny_unknown_fields)]
        struct Full {
            path: PathBuf,
            format: Option<Format>,
            weight: Option<f64>,
        }
        struct SourceVisitor;
        impl<'de> Visitor<'de> for SourceVisitor {
            type Value = Source;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or {path, format, weight}")
            }

            fn visit_str<E>(self, path: &str) -> Result<Source, E> {
                Ok(Source::new(path.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Source, A::Error> {
                let Full { path, format, weight } = Full::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Source { path, format, weight: weight.unwrap_or(1.0) })
            }
        }
        deserializer.deserialize_any(SourceVisitor)
    }
}

/// `adapter.target_modules`, by PEFT's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TargetModules {
    /// Every linear layer but the output head.
    AllLinear,
    /// Modules whose name is one of these or ends with `.` and one of these.
    Names(Vec<String>),
    /// Modules whose whole name matches this regular expression.
    Regex(String),
}

impl Serialize for TargetModules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AllLinear => serializer.serialize_str("all-linear"),
            Self::Names(names) => names.serialize(serializer),
            Self::Regex(regex) => serializer.serialize_str(regex),
        }
    }
}

impl<'de> Deserialize<'de> for TargetModules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TargetVisitor;
        impl<'de> Visitor<'de> for TargetVisitor {
            type Value = TargetModules;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("all-linear, a list of module names or a regular expression")
            }

            fn visit_str<E>(self, text: &str) -> Result<TargetModules, E> {
                Ok(match text {
                    "all-linear" => TargetModules::AllLinear,
                    regex => TargetModules::Regex(regex.to_owned()),
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<TargetModules, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(items)).map(TargetModules::Names)
            }
        }
        deserializer.deserialize_any(TargetVisitor)
    }
}

/// `training.micro_batch_tokens`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MicroBatch {
    /// As many as fit the memory.
    Auto,
    /// Tokens in memory at once.
    Tokens(usize),
}

impl Serialize for MicroBatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Tokens(tokens) => tokens.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for MicroBatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MicroBatchVisitor;
        impl Visitor<'_> for MicroBatchVisitor {
            type Value = MicroBatch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("auto or a number of tokens")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MicroBatch, E> {
                match text {
                    "auto" => Ok(MicroBatch::Auto),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_u64<E: de::Error>(self, tokens: u64) -> Result<MicroBatch, E> {
                usize::try_from(tokens)
                    .map(MicroBatch::Tokens)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(tokens), &self))
            }
        }
        deserializer.deserialize_any(MicroBatchVisitor)
    }
}

/// `training.activation_offloading` and `training.frozen_activations`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offloading {
    /// Layers' inputs: if nothing fits otherwise; then as much stays in memory as there is room for. What
    /// frozen layers give: if all of it has room in memory.
    Auto,
    /// All layers' inputs are in memory. What frozen layers give is not kept.
    Never,
    /// What is beyond this size lies in a file.
    Within(ByteSize),
}

impl Offloading {
    /// What `true` leaves in memory: a few pages of the size at which disks are as fast as they get.
    pub(crate) const LEAST: ByteSize = ByteSize(4 << 20);

    /// The budget that was set.
    pub(crate) fn memory(self) -> Option<u64> {
        match self {
            Self::Auto | Self::Never => None,
            Self::Within(size) => Some(size.0),
        }
    }
}

impl Serialize for Offloading {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Never => serializer.serialize_bool(false),
            Self::Within(size) => size.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Offloading {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OffloadingVisitor;
        impl Visitor<'_> for OffloadingVisitor {
            type Value = Offloading;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("auto, true, false or a size such as 512MiB")
            }

            fn visit_bool<E>(self, always: bool) -> Result<Offloading, E> {
                Ok(if always { Offloading::Within(Offloading::LEAST) } else { Offloading::Never })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Offloading, E> {
                match text {
                    "auto" => Ok(Offloading::Auto),
                    size => size
                        .parse()
                        .map(Offloading::Within)
                        .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_u64<E>(self, bytes: u64) -> Result<Offloading, E> {
                Ok(Offloading::Within(ByteSize(bytes)))
            }
        }
        deserializer.deserialize_any(OffloadingVisitor)
    }
}

/// Module name patterns and their values in the file's order, which is the order they are tried in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pattern<T>(
    /// Pattern and value.
    pub(crate) Vec<(String, T)>,
);

impl<T> Default for Pattern<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Serialize> Serialize for Pattern<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (pattern, value) in &self.0 {
            map.serialize_entry(pattern, value)?;
        }
        map.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pattern<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PatternVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for PatternVisitor<T> {
            type Value = Pattern<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("patterns and their values, such as {q_proj: 8}")
            }

            fn visit_unit<E>(self) -> Result<Pattern<T>, E> {
                Ok(Pattern(Vec::new()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pattern<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Pattern(entries))
            }
        }
        deserializer.deserialize_map(PatternVisitor(std::marker::PhantomData))
    }
}
