//! What every export of a whole model begins and ends with: the model as it computes here, and the proof that
//! what was written computes the same.

use std::path::Path;

use anyhow::Context;
use compute::quant::Format;
use compute::{Device, Matrix, Precision};
use model::adapter::merge::Difference;
use model::{Adapter, Decoder, OnLoading};
use serde_json::{Value, json};

use crate::cli::Global;
use crate::error::user;
use crate::setup::{Base, Subject};
use crate::terminal;

/// What both models are asked (Lewis Carroll, "Alice's Adventures in Wonderland", 1865).
pub(super) const TEXT: &str = "Alice was beginning to get very tired of sitting by her sister on the bank, and of \
                               having nothing to do: once or twice she had peeped into the book her sister was \
                               reading, but it had no pictures or conversations in it, \u{201c}and what is the use \
                               of a book,\u{201d} thought Alice \u{201c}without pictures or conversation?\u{201d}";

/// How far logits may be off with weights of a type, by its name in lower case, relative to their size: some
/// times what it usually is.
pub(super) fn bound(kind: &str) -> f64 {
    match kind {
        "f32" => 1e-4,
        "f16" => 5e-3,
        "bf16" => 3e-2,
        "q8_0" => 5e-2,
        "q6_k" => 0.15,
        "q5_0" | "q5_1" | "q5_k" => 0.3,
        _ => 0.6,
    }
}

/// A model that is to be exported, with an adapter added into it if there is one.
pub(super) struct Original {
    pub(super) base: Base,
    pub(super) adapter: Option<Adapter>,
    /// How the base is quantized on loading.
    quantization: Option<Format>,
    /// For which weights the adapter was trained.
    aware: Option<Format>,
    /// For which precision it was.
    held: Precision,
    device: Device,
}

/// The same, loaded, with its logits on a text.
pub(super) struct Loaded {
    pub(super) decoder: Decoder,
    text: [Vec<u32>; 1],
    expected: Matrix,
    precision: Precision,
    device: Device,
}

impl Original {
    pub(super) fn open(model: Option<&str>, adapter: Option<&str>, global: &Global) -> anyhow::Result<Self> {
        let device = global.device()?;
        let subject = Subject::open(model, adapter, &device)?;
        // As merging does it: an adapter has learnt to make up for the rounding of the base it was trained over.
        let quantization = if adapter.is_some() { subject.quantization(None) } else { None };
        let trained = subject.remembered.as_ref().map(|run| run.precision.engine());
        let aware = subject.remembered.as_ref().and_then(|run| run.training.quantization_aware);
        let aware = aware.map(|aware| aware.format());
        let Subject { base, adapter, .. } = subject;
        Ok(Original { base, adapter, quantization, aware, held: trained.unwrap_or(Precision::F32), device })
    }

    /// The format of its weights: that which they were trained for, or are held in.
    pub(super) fn own_format(&self) -> Option<Format> {
        self.aware.or(self.quantization).or(self.base.config.quantization)
    }

    /// Loads it for an export whose linear layers have this format, if they have one.
    pub(super) fn load(&mut self, exported: Option<Format>) -> anyhow::Result<Loaded> {
        // What was trained for these very weights is held against what it computed with.
        let is_aware = self.aware.is_some() && self.aware == exported;
        if let (true, Some(adapter)) = (is_aware, &mut self.adapter) {
            adapter.layout.quantization_aware = self.aware;
        }
        let precision = if is_aware { self.held } else { Precision::F32 };
        let on_loading = self.quantization.map(|format| OnLoading { format, held: self.held });
        let (base, device) = (&self.base, self.device.clone());
        let decoder =
            Decoder::load_for(&base.files, base.changed_by.as_ref(), &device, precision, on_loading)?;
        let mut ids = base.tokenizer()?.encode(TEXT, true)?.ids;
        ids.truncate(base.config.max_position_embeddings);
        let text = [ids];
        let expected = decoder.logits_of(self.adapter.as_ref(), &text);
        Ok(Loaded { decoder, text, expected, precision, device })
    }
}

impl Loaded {
    /// Reads back what was written, in place of the model and not beside it, and holds its logits against
    /// those of the model. `what` it is; `bound`: how far they may be off; `advice` if they are further.
    pub(super) fn prove(
        self,
        path: &Path,
        what: &str,
        bound: f64,
        advice: &str,
    ) -> anyhow::Result<Difference> {
        let Loaded { decoder, text, expected, precision, device } = self;
        drop(decoder);
        let read = Decoder::load(path, &device, precision, None);
        let read = read.with_context(|| format!("the {what} cannot be read back"))?;
        let divergence = Difference::between(&expected, &read.logits_of(None, &text));
        if !divergence.is_within(bound) {
            return Err(user(format!(
                "the logits of the {what} differ from the model's by {} on a text, where {} are allowed; nothing was \
                 kept: {advice}, or allow more by --max-divergence",
                terminal::percent(divergence.relative),
                terminal::percent(bound)
            )));
        }
        Ok(divergence)
    }
}

/// The proof in words.
pub(super) fn in_words(divergence: Difference) -> String {
    format!(
        "read back and found the same; on a text its logits differ from the model's by {}, by {:.2e} in the mean and \
         {:.2e} at most",
        terminal::percent(divergence.relative),
        divergence.mean,
        divergence.largest
    )
}

/// Adds the proof to what is printed as JSON.
pub(super) fn add_to(facts: &mut Value, divergence: Difference) {
    facts["largest_difference"] = json!(divergence.largest);
    facts["mean_difference"] = json!(divergence.mean);
    facts["relative_difference"] = json!(divergence.relative);
}
