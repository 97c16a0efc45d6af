//! Which instructions the kernels use.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

/// An instruction set that there are kernels for, from the plainest to the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    /// Plain Rust, right everywhere.
    Portable,
    /// x86-64 with AVX2, FMA and F16C: 8 products of `f32` at a time.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL: 16 products of `f32` at a time.
    Avx512,
    /// The same with AVX512_BF16: 32 products of `bf16` at a time.
    Avx512Bf16,
}

impl Isa {
    /// All of them, the best first.
    pub(crate) const ALL: [Isa; 4] = [Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Portable];

    /// The name that `LUTHIER_ISA` knows it by.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Whether this processor has it.
    pub(crate) fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            };
            let avx512 = || {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            };
            match self {
                Isa::Portable => true,
                Isa::Avx2 => avx2(),
                Isa::Avx512 => avx512(),
                Isa::Avx512Bf16 => avx512() && is_x86_feature_detected!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Portable
        }
    }

    /// The best one here, unless `LUTHIER_ISA` names another. A name that is unknown or that this processor
    /// cannot run is reported on stderr, once, and ignored.
    pub(crate) fn detect() -> Self {
        static DETECTED: LazyLock<Isa> = LazyLock::new(Isa::detect_once);
        *DETECTED
    }

    fn detect_once() -> Self {
        let best = Isa::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Portable);
        let Ok(name) = std::env::var("LUTHIER_ISA") else { return best };
        match name.parse::<Isa>() {
            Ok(isa) if isa.is_available() => isa,
            Ok(isa) => {
                eprintln!("LUTHIER_ISA={isa}: this processor lacks it; using {best}");
                best
            }
            Err(message) => {
                eprintln!("LUTHIER_ISA={name}: {message}; using {best}");
                best
            }
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Isa::ALL.map(Isa::name).join(", ");
        Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| format!("not one of {}", known()))
    }
}
