//! The values that training begins from.
//!
//! Most are drawn. Some are parts of the base's weights, which are decomposed as they are loaded, one at a
//! time: of [`Init::Pissa`] and [`Init::Olora`] the frozen base is then what is left, `W - scale * B A`, so
//! that base and adapter together begin as the base was.

use std::cell::RefCell;

use compute::ops::matmul::{Factor, matmul};
use compute::ops::{copy, residual};
use compute::quant::{Format, Quantized};
use compute::{DType, Device, Matrix, MatrixMut, Precision};

use super::method::{dora, full, lora};
use super::parameters::{Adapter, Layout, Lora, Trained};
use super::peft::targets::Resolution;
use crate::config::Config;
use crate::decoder::Decoder;
use crate::decompose::{self, Singular};
use crate::error::{ModelError, Result};
use crate::folder::ModelFolder;
use crate::names::{ModuleId, Parameter};
use crate::weights::OnLoading;

/// How A and B begin. Where it is not said otherwise B begins as zero, so that the adapted model begins as
/// the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// A uniform in ±1/√in, as PEFT's default (`kaiming_uniform_(a=√5)`).
    Default,
    /// A normal with deviation 1/R, as PEFT's `"gaussian"`.
    Gaussian,
    /// A and B random in orthogonal subspaces, so that `B A` is zero and neither of them is, as PEFT's
    /// `"orthogonal"` (`LoraLayer.orthogonal_init`).
    Orthogonal,
    /// The leading singular values and vectors of the weight (Meng et al. 2024, arXiv:2404.02948, equations 3
    /// and 4), taken out of the base.
    Pissa,
    /// The leading part of the weight's orthogonal and triangular factors (Büyükakyüz 2024,
    /// arXiv:2406.01775), taken out of the base.
    Olora,
    /// The leading singular values and vectors of what quantization loses of the weight (Li et al. 2023,
    /// arXiv:2310.08659, algorithm 1 with one round).
    Loftq,
}

impl Init {
    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Init::Default => "default",
            Init::Gaussian => "gaussian",
            Init::Orthogonal => "orthogonal",
            Init::Pissa => "pissa",
            Init::Olora => "olora",
            Init::Loftq => "loftq",
        }
    }

    /// Whether A and B are parts of the base's weights.
    pub fn decomposes(self) -> bool {
        matches!(self, Init::Pissa | Init::Olora | Init::Loftq)
    }

    /// Whether A and B are taken out of the base.
    pub fn changes_base(self) -> bool {
        matches!(self, Init::Pissa | Init::Olora)
    }

    /// Bytes in use at once, beside base and adapter, while the largest weight of an adapter's layers is
    /// decomposed: itself, a copy, the factors and what the decomposition works in, in `f32`. It is over
    /// before the first step.
    pub fn memory(self, layout: &Layout) -> u64 {
        const MATRICES: u64 = 8;
        if !self.decomposes() {
            return 0;
        }
        let updates = layout.modules().filter_map(|(_, trained)| trained.lora());
        let elements = updates.map(|lora| (lora.out * layout.tensors()[lora.a].cols) as u64);
        MATRICES * DType::F32.size() as u64 * elements.max().unwrap_or(0)
    }

    /// Makes sure that an adapter on a model can begin so.
    ///
    /// # Errors
    /// If it has magnitudes, is on experts or on a head that is the embedding too, or has a rank that does
    /// not fit.
    pub fn check(self, resolution: &Resolution, model: &Config) -> Result<()> {
        let refuse = |problem: String| {
            Err(ModelError::setting("init", format!("is {}, which {problem}", self.name())))
        };
        if self == Init::Orthogonal && !resolution.parameters.is_empty() {
            return refuse("is not for target_parameters; choose default or gaussian".to_owned());
        }
        if let (Init::Orthogonal, Some(odd)) = (self, resolution.targets.iter().find(|t| t.rank % 2 != 0)) {
            return refuse(format!("needs even ranks, and {} has rank {}", odd.path, odd.rank));
        }
        if !self.decomposes() {
            return Ok(());
        }
        if resolution.dora {
            return refuse(
                "is for method lora: magnitudes begin as those of the base's own weights".to_owned(),
            );
        }
        if !resolution.parameters.is_empty() {
            return refuse("is for linear layers; leave target_parameters out".to_owned());
        }
        for target in &resolution.targets {
            if target.module == ModuleId::Head && model.tie_word_embeddings {
                return refuse(format!(
                    "would change the embedding too, which is the weight of {}; take that out of target_modules",
                    target.path
                ));
            }
            let module = model.module(target.module);
            let most = module.rows.min(module.cols);
            if target.rank > most {
                return refuse(format!(
                    "has {most} directions at most in {}, whose weight is {} x {}, and rank {} is asked for; choose a \
                     lower one",
                    target.path, module.rows, module.cols, target.rank
                ));
            }
        }
        Ok(())
    }
}

impl Adapter {
    /// Fills in the beginning: low-rank updates by `init`, modules trained whole with the base's own values.
    /// What is a part of the base's weights begins by [`Decoder::load_and_begin`], and here by
    /// [`Init::Default`].
    pub fn initialize(&mut self, init: Init, seed: u64, decoder: &Decoder) {
        self.draw(init, seed);
        self.copy_base(decoder);
    }

    /// Begins low-rank updates with random numbers.
    fn draw(&mut self, init: Init, seed: u64) {
        let modules: Vec<(ModuleId, Trained)> = self.layout.modules().collect();
        for update in modules.into_iter().filter_map(|(_, trained)| trained.lora()) {
            lora::initialize(self, update, init, seed);
        }
    }

    /// Begins what starts with the base's own values.
    fn copy_base(&mut self, decoder: &Decoder) {
        let modules: Vec<(ModuleId, Trained)> = self.layout.modules().collect();
        for (module, trained) in modules {
            match trained {
                Trained::Lora(_) => {}
                Trained::Dora(update) => {
                    dora::initialize(self, update, decoder.base_weight(module), &decoder.device);
                }
                Trained::Full(copy) => full::initialize(self, copy, module, decoder),
            }
        }
    }

    /// Begins the update of a layer, which is about to be quantized as `format` if at all, as a part of its
    /// weight `[out, in]`; gives what is left of that, as the precision has it: it needs more bits than the
    /// weight may have had.
    fn begin_with(
        &mut self,
        init: Init,
        lora: Lora,
        parameter: &Parameter,
        weight: Matrix,
        format: Option<Format>,
        (device, precision): (&Device, Precision),
    ) -> Result<Matrix> {
        let mut rest = device.zeros(weight.rows(), weight.cols(), DType::F32);
        copy::copy(device, rest.as_mut(), weight.as_ref());
        if init == Init::Loftq {
            // A layer that is not quantized has nothing to make up for.
            let Some(format) = format else { return Ok(weight) };
            let kept = Quantized::quantize(device, weight.as_ref(), format).dequantize(device, DType::F32);
            residual::add_scaled(device, rest.as_mut(), kept.as_ref(), -1.0);
        }
        let tensors = self.layout.tensors();
        let (to_a, to_b) = self.parameters.pair_mut(&tensors[lora.a], &tensors[lora.a + 1]);
        let values = rest.as_ref().download();
        let write = |a: MatrixMut<'_>, b: MatrixMut<'_>| {
            if init == Init::Olora {
                decompose::write_orthogonal_triangular(values.as_ref(), a, b);
                return Ok(());
            }
            let singular = Singular::of(values.as_ref()).ok_or_else(|| {
                let problem = format!("finds no singular values of {}; choose another one", parameter.name());
                ModelError::setting("init", problem)
            })?;
            singular.write_leading(lora.scale, a, b);
            Ok(())
        };
        to_a.upload(|a| to_b.upload(|b| write(a, b)))?;
        drop(values);
        if !init.changes_base() {
            return Ok(weight);
        }
        drop(weight);
        let (a, b) = self.lora(lora);
        let (a, b) = (Factor::Plain(a), Factor::Plain(b));
        matmul(device, Precision::F32, -lora.scale, b, a, true, rest.as_mut());
        if precision.dtype() == DType::F32 {
            return Ok(rest);
        }
        let mut left = device.unset(rest.rows(), rest.cols(), precision.dtype());
        copy::copy(device, left.as_mut(), rest.as_ref());
        Ok(left)
    }
}

impl Decoder {
    /// Loads the base of a run, as [`Decoder::load_for`] without an adapter, and begins what is trained on
    /// it. Weights that an adapter begins as a part of are decomposed as they come, before they are
    /// quantized: in memory is one of them at a time.
    ///
    /// # Errors
    /// As [`Decoder::load`]; also if parts of weights are asked for that the folder has in four bits.
    pub fn load_and_begin(
        base: &ModelFolder,
        device: &Device,
        precision: Precision,
        quantization: Option<OnLoading>,
        (init, seed): (Init, u64),
        adapter: &mut Adapter,
    ) -> Result<Self> {
        adapter.draw(init, seed);
        if !init.decomposes() {
            let decoder = Decoder::load_for(base, None, device, precision, quantization)?;
            adapter.copy_base(&decoder);
            return Ok(decoder);
        }
        if base.config.quantization.is_some() {
            let problem = format!(
                "says that the weights are quantized, and adapter.init: {} is about the weights before; name the model's \
                 16-bit checkpoint, and quantize it by `quantization`",
                init.name()
            );
            return Err(base.quantization_problem(problem));
        }
        let beginning = RefCell::new(&mut *adapter);
        let begin = |parameter: &Parameter, weight: Matrix| {
            let mut adapter = beginning.borrow_mut();
            match adapter.layout.get(parameter.module).and_then(Trained::lora) {
                Some(lora) if !parameter.bias => {
                    let format = quantization.map(|q| q.format).filter(|&format| parameter.takes(format));
                    adapter.begin_with(init, lora, parameter, weight, format, (device, precision))
                }
                _ => Ok(weight),
            }
        };
        let decoder = Decoder::load_changed(base, None, device, precision, quantization, &begin)?;
        if let Some(taken_out) = &mut adapter.taken_out {
            let began = adapter.parameters.values().cols_range(0..adapter.layout.taken_out());
            copy::copy(device, taken_out.values_mut(), began);
        }
        adapter.copy_base(&decoder);
        Ok(decoder)
    }
}
