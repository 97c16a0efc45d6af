//! One optimizer step over the flat buffers: clip, then update, a page of the state at a time.

use std::ops::Range;
use std::path::Path;

use compute::ops::adamw_8bit::{BLOCK, Moments8, adamw_8bit};
use compute::ops::{optimizer, reduce};
use compute::{Device, MatrixRef};
use model::adapter::parameters::Role;
use model::arena::{self, Arena};
use model::checkpoint::{CheckpointWriter, TensorSpec};
use model::memory::{Allocator, Component};
use model::{Checkpoint, Layout, ModelError, Parameters, StoredDType};

use crate::error::{Result, TrainError};

/// Tensors of fewer elements keep their moments in `f32` also where others have them in eight bits, as in
/// bitsandbytes.
const SMALLEST_8BIT: usize = 4096;
/// What stands before the names of the first and second moments in a checkpoint.
const MOMENTS: [&str; 2] = ["m.", "v."];
/// The same for moments in eight bits.
const CODES: [&str; 2] = ["m_codes.", "v_codes."];
const ABSMAX: [&str; 2] = ["m_absmax.", "v_absmax."];
/// What the file of pages is called while it has a name.
const PAGES: &str = ".optimizer.pages.tmp";

/// Which update rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Decoupled weight decay (Loshchilov and Hutter 2019), as `torch.optim.AdamW`.
    AdamW {
        /// Decay of the first and second moment.
        betas: [f64; 2],
        /// Added to the root of the second moment.
        eps: f64,
    },
    /// The same with moments in eight bits (Dettmers et al. 2022), as bitsandbytes' `AdamW8bit`; tensors of
    /// fewer than 4096 elements keep them in `f32`.
    AdamW8bit {
        /// Decay of the first and second moment.
        betas: [f64; 2],
        /// Added to the root of the second moment.
        eps: f64,
    },
    /// Sign of an interpolated momentum (Chen et al. 2023).
    Lion {
        /// Interpolation and decay.
        betas: [f64; 2],
    },
    /// Plain gradient descent, without momentum.
    Sgd,
}

impl Rule {
    /// Values for each parameter that the rule keeps.
    fn moments(self) -> usize {
        match self {
            Rule::AdamW { .. } | Rule::AdamW8bit { .. } => 2,
            Rule::Lion { .. } => 1,
            Rule::Sgd => 0,
        }
    }

    /// Whether the moments of a tensor of so many elements are kept in eight bits.
    fn eight_bit(self, elements: usize) -> bool {
        matches!(self, Rule::AdamW8bit { .. }) && elements >= SMALLEST_8BIT
    }

    /// Words of 32 bits that the state of so many parameters takes: the moments one after the other; in eight
    /// bits the scales of both, then the codes of both.
    fn words(self, parameters: usize, eight_bit: bool) -> usize {
        if eight_bit { Moments8::words(parameters) } else { self.moments() * parameters }
    }

    /// The most parameters whose state is within so many words: whole blocks, one at least.
    fn parameters(self, words: usize, eight_bit: bool) -> usize {
        let block = self.words(BLOCK, eight_bit);
        words.checked_div(block).unwrap_or(usize::MAX).max(1).saturating_mul(BLOCK)
    }
}

/// The settings of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// Which update rule.
    pub rule: Rule,
    /// The base learning rate, which the schedule multiplies.
    pub learning_rate: f64,
    /// Decoupled decay of every trained tensor.
    pub weight_decay: f64,
    /// Gradients longer than this are scaled down to it; 0: never.
    pub max_grad_norm: f64,
    /// Learning rate of B over that of A (Hayou et al. 2024, LoRA+).
    pub lora_plus_ratio: f64,
    /// Bytes of the moments that may be in memory at once, [`arena::SMALLEST`] at least; the others lie in a
    /// file in the run folder. `None`: all are in memory. It changes no result.
    pub memory: Option<u64>,
}

impl OptimizerSettings {
    /// Bytes of memory for the moments of so many parameters, if they are those of large tensors.
    pub fn state_bytes(&self, parameters: u64) -> u64 {
        let eight_bit = self.rule.eight_bit(usize::MAX);
        let bytes = 4 * self.rule.words(parameters as usize, eight_bit) as u64;
        bytes.min(self.memory.unwrap_or(u64::MAX))
    }
}

/// A run of parameters that is updated at once, and whose state is a page.
#[derive(Debug)]
struct Piece {
    /// Where they lie in the flat buffer. With moments in eight bits: whole blocks of one tensor, or its end.
    range: Range<usize>,
    /// What the learning rate is multiplied by.
    multiple: f64,
    eight_bit: bool,
}

/// The moments of the trained tensors, in the layout of the adapter.
#[derive(Debug)]
pub(crate) struct Optimizer {
    settings: OptimizerSettings,
    pieces: Vec<Piece>,
    /// A page for each piece.
    arena: Arena,
}

impl Optimizer {
    pub(crate) fn new(settings: OptimizerSettings, layout: &Layout, allocator: &mut Allocator) -> Self {
        let rule = settings.rule;
        let mut groups: Vec<Piece> = Vec::new();
        for tensor in layout.tensors() {
            let multiple = if tensor.role == Role::B { settings.lora_plus_ratio } else { 1.0 };
            let eight_bit = rule.eight_bit(tensor.range.len());
            match groups.last_mut() {
                Some(last) if last.multiple == multiple && !last.eight_bit && !eight_bit => {
                    last.range.end = tensor.range.end;
                }
                _ => groups.push(Piece { range: tensor.range.clone(), multiple, eight_bit }),
            }
        }
        let (mut pieces, mut runs) = (Vec::new(), Vec::new());
        for Piece { range, multiple, eight_bit } in groups {
            let most = rule.parameters(arena::page_words(settings.memory), eight_bit).min(range.len());
            for (count, parameters) in [(range.len() / most, most), (1, range.len() % most)] {
                if parameters > 0 {
                    runs.push((count, rule.words(parameters, eight_bit)));
                }
            }
            if allocator.count(Component::Optimizer, 0).is_some() {
                pieces.extend(range.clone().step_by(most).map(|start| Piece {
                    range: start..range.end.min(start + most),
                    multiple,
                    eight_bit,
                }));
            }
        }
        let arena = Arena::new(&runs, settings.memory, Component::Optimizer, allocator);
        Optimizer { settings, pieces, arena }
    }

    /// Makes the file for what does not fit into memory.
    ///
    /// # Errors
    /// If the memory allowed is less than a page, or the file cannot be made.
    pub(crate) fn open(&mut self, folder: &Path) -> Result<()> {
        if let Some(memory) = self.settings.memory.filter(|&memory| memory < arena::SMALLEST) {
            let least = arena::SMALLEST;
            let problem = format!(
                "allows {memory} bytes, which is less than a page of the optimizer's state; give it {least} bytes or more"
            );
            return Err(TrainError::Setting { field: "optimizer.memory", problem });
        }
        self.arena.open(&folder.join(PAGES)).map_err(TrainError::of_pages)
    }

    /// Takes other settings for the steps to come: rates, decays, and the norm to clip to.
    ///
    /// # Panics
    /// If the moments would be others by them.
    pub(crate) fn retune(&mut self, settings: OptimizerSettings) {
        let of_moments = |settings: OptimizerSettings| {
            let OptimizerSettings { rule, lora_plus_ratio, memory, .. } = settings;
            (rule.moments(), rule.eight_bit(usize::MAX), lora_plus_ratio, memory)
        };
        assert_eq!(of_moments(self.settings), of_moments(settings), "settings of the same moments");
        self.settings = settings;
    }

    /// Clips and applies the gradients of step `step` (from 1) with this learning rate. Returns the norm
    /// before clipping.
    ///
    /// # Errors
    /// If the norm, or the square of a clipped element, is not a finite number: nothing is changed then. If a
    /// page cannot be written or read; a part of the parameters is then updated. In both cases the run can
    /// only end.
    pub(crate) fn step(
        &mut self,
        device: &Device,
        step: u64,
        learning_rate: f64,
        parameters: &mut Parameters,
        gradients: &Parameters,
    ) -> Result<f64> {
        let norm = reduce::sum_of_squares(device, gradients.values()).sqrt();
        let OptimizerSettings { rule, weight_decay, max_grad_norm, .. } = self.settings;
        // torch.nn.utils.clip_grad_norm_: the epsilon keeps a zero norm from dividing.
        let clip = if max_grad_norm > 0.0 { (max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        // The second moment is a mean of squares in f32.
        let square = (norm * clip).powi(2);
        if !square.is_finite() || square > f64::from(f32::MAX) {
            return Err(TrainError::not_finite(step, "the gradient norm", norm, step - 1));
        }
        let clip = clip as f32;
        for (index, piece) in self.pieces.iter().enumerate() {
            let state = self.arena.page_mut(index).map_err(TrainError::of_pages)?;
            let learning_rate = learning_rate * piece.multiple;
            let p = parameters.values_mut().cols_range(piece.range.clone());
            let g = gradients.values().cols_range(piece.range.clone());
            match rule {
                Rule::AdamW { betas: [beta1, beta2], eps }
                | Rule::AdamW8bit { betas: [beta1, beta2], eps } => {
                    let settings = optimizer::AdamW { learning_rate, beta1, beta2, eps, weight_decay, step };
                    if piece.eight_bit {
                        adamw_8bit(device, p, g, state, &settings, clip);
                    } else {
                        let (m, v) = state.split_at(p.cols());
                        optimizer::adamw(device, p, g, m, v, &settings, clip);
                    }
                }
                Rule::Lion { betas: [beta1, beta2] } => {
                    let settings = optimizer::Lion { learning_rate, beta1, beta2, weight_decay };
                    optimizer::lion(device, p, g, state, &settings, clip);
                }
                Rule::Sgd => {
                    optimizer::sgd(device, p, g, &optimizer::Sgd { learning_rate, weight_decay }, clip)
                }
            }
        }
        Ok(norm)
    }

    /// The tensors of a checkpoint.
    fn specs(&self, layout: &Layout) -> Vec<TensorSpec> {
        let rule = self.settings.rule;
        let mut specs = Vec::new();
        for (i, tensor) in layout.tensors().iter().enumerate() {
            let mut add = |prefixes: &[&str], shape: Vec<usize>, dtype| {
                for prefix in prefixes {
                    specs.push(TensorSpec {
                        name: format!("{prefix}{}", tensor.name),
                        shape: shape.clone(),
                        dtype,
                    });
                }
            };
            if rule.eight_bit(tensor.range.len()) {
                add(&CODES, layout.file_shape(i), StoredDType::U8);
                add(&ABSMAX, vec![tensor.range.len().div_ceil(BLOCK)], StoredDType::F32);
            } else {
                add(&MOMENTS[..rule.moments()], layout.file_shape(i), StoredDType::F32);
            }
        }
        specs
    }

    /// Writes the moments, page by page.
    pub(crate) fn write(&mut self, path: &Path, layout: &Layout) -> Result<()> {
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let mut writer = CheckpointWriter::file(path, &metadata, self.specs(layout))?;
        for (index, piece) in self.pieces.iter().enumerate() {
            let page = self.arena.page(index).map_err(TrainError::of_pages)?.download();
            let (n, state) = (piece.range.len(), page.f32());
            for part in parts(layout, &piece.range) {
                let name = |prefix: &str| format!("{prefix}{}", part.name);
                if !piece.eight_bit {
                    for (moment, prefix) in MOMENTS[..self.settings.rule.moments()].iter().enumerate() {
                        let values = &state[moment * n + part.offset..][..part.len];
                        writer.write_part(&name(prefix), part.start, row(values))?;
                    }
                    continue;
                }
                let blocks = n.div_ceil(BLOCK);
                let (absmax, codes) = state.split_at(2 * blocks);
                for (prefix, absmax) in ABSMAX.iter().zip(absmax.chunks(blocks)) {
                    writer.write_part(&name(prefix), part.start / BLOCK, row(absmax))?;
                }
                for (prefix, codes) in CODES.iter().zip(bytemuck::cast_slice::<f32, u8>(codes).chunks(n)) {
                    writer.write_bytes(&name(prefix), part.start, codes)?;
                }
            }
        }
        Ok(writer.finish()?)
    }

    /// Reads what [`Optimizer::write`] wrote, under whatever budget.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or the file holds others.
    pub(crate) fn read(&mut self, path: &Path, layout: &Layout) -> Result<()> {
        let file = Checkpoint::open_file(path)?;
        let wrong = |problem: String| ModelError::File { path: path.to_owned(), problem };
        let specs = self.specs(layout);
        let fits = |spec: &TensorSpec| {
            let found = file.tensor(&spec.name);
            found.is_some_and(|found| found.shape == spec.shape && found.dtype == spec.dtype)
        };
        if file.names().count() != specs.len() || !specs.iter().all(fits) {
            let problem = "does not hold the tensors of this run's settings; it belongs to another run";
            return Err(wrong(problem.to_owned()).into());
        }
        for (index, piece) in self.pieces.iter().enumerate() {
            let page = self.arena.page_mut(index).map_err(TrainError::of_pages)?;
            page.upload(|state| self.settings.rule.read_page(state.f32(), piece, layout, &file))?;
        }
        Ok(())
    }
}

impl Rule {
    /// Fills the state of a piece from the file of a checkpoint.
    fn read_page(self, state: &mut [f32], piece: &Piece, layout: &Layout, file: &Checkpoint) -> Result<()> {
        let n = piece.range.len();
        let read = |prefix: &str, part: &Part<'_>, start: usize, values: &mut [f32]| {
            file.read_part(&format!("{prefix}{}", part.name), start, values)
        };
        for part in parts(layout, &piece.range) {
            if !piece.eight_bit {
                for (moment, prefix) in MOMENTS[..self.moments()].iter().enumerate() {
                    let values = &mut state[moment * n + part.offset..][..part.len];
                    read(prefix, &part, part.start, values)?;
                }
                continue;
            }
            let Moments8 { m, v, m_absmax, v_absmax } = Moments8::of(state, n);
            read(ABSMAX[0], &part, part.start / BLOCK, m_absmax)?;
            read(ABSMAX[1], &part, part.start / BLOCK, v_absmax)?;
            for (prefix, codes) in CODES.iter().zip([m, v]) {
                file.read_bytes(&format!("{prefix}{}", part.name), part.start, codes)?;
            }
        }
        Ok(())
    }
}

/// What a piece has of a tensor.
struct Part<'a> {
    name: &'a str,
    /// Its first element in the tensor.
    start: usize,
    /// Its first element in the piece.
    offset: usize,
    len: usize,
}

/// The tensors, or parts of tensors, that lie in a range of the flat buffer.
fn parts<'a>(layout: &'a Layout, range: &Range<usize>) -> impl Iterator<Item = Part<'a>> {
    let range = range.clone();
    layout.tensors().iter().filter_map(move |tensor| {
        let (from, to) = (range.start.max(tensor.range.start), range.end.min(tensor.range.end));
        let len = to.checked_sub(from).filter(|&len| len > 0)?;
        Some(Part { name: &tensor.name, start: from - tensor.range.start, offset: from - range.start, len })
    })
}

fn row(values: &[f32]) -> MatrixRef<'_> {
    MatrixRef::from_f32(1, values.len(), values)
}
