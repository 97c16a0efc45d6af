//! The values that training begins from.

use super::method::{dora, full, lora};
use super::parameters::{Adapter, Trained};
use crate::decoder::Decoder;
use crate::names::ModuleId;

/// How A begins; B begins as zero, so that the adapted model begins as the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// Uniform in ±1/√in, as PEFT's default (`kaiming_uniform_(a=√5)`).
    Default,
    /// Normal with deviation 1/R, as PEFT's `"gaussian"`.
    Gaussian,
}

impl Adapter {
    /// Fills in the beginning: low-rank updates by `init`, modules trained whole with the base's own values.
    pub fn initialize(&mut self, init: Init, seed: u64, decoder: &Decoder) {
        let modules: Vec<(ModuleId, Trained)> = self.layout.modules().collect();
        for (module, trained) in modules {
            match trained {
                Trained::Lora(update) => lora::initialize(self, update, init, seed),
                Trained::Dora(update) => {
                    lora::initialize(self, update.lora, init, seed);
                    dora::initialize(self, update, decoder.base_weight(module), &decoder.device);
                }
                Trained::Full(copy) => full::initialize(self, copy, module, decoder),
            }
        }
    }
}
