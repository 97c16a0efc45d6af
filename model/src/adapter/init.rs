//! The values that training begins from.

use compute::random;

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
                Trained::Lora(lora) => {
                    if lora.first != [0, 0] {
                        continue; // it shares the tensors of another one
                    }
                    let tensor = &self.layout.tensors()[lora.a];
                    let key = tensor.name.bytes().fold(seed, |key, byte| random::key(key, u64::from(byte)));
                    let bound = 1.0 / (tensor.cols as f64).sqrt();
                    let value = |i| match init {
                        Init::Default => (2.0 * random::uniform(key, i) - 1.0) * bound,
                        Init::Gaussian => random::normal(key, i) / lora.rank as f64,
                    };
                    let a = self.parameters.tensor_mut(tensor).f32();
                    a.iter_mut().enumerate().for_each(|(i, v)| *v = value(i as u64) as f32);
                }
                Trained::Full(full) => {
                    let tensors = self.layout.tensors();
                    let to = self.parameters.tensor_mut(&tensors[full.weight]);
                    decoder.base_weight(module).copy_to(&decoder.device, to);
                    if let Some(index) = full.bias {
                        let bias = decoder.base_bias(module).expect("a module trained with its bias has one");
                        self.parameters.tensor_mut(&tensors[index]).copy_from(bias);
                    }
                }
            }
        }
    }
}
