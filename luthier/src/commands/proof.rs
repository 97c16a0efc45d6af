//! What everything that writes a whole model begins and ends with: the model as it computes here, and the proof
//! that what was written computes the same.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use compute::quant::Format;
use compute::{Device, Matrix, Precision};
use model::adapter::merge::Difference;
use model::{Decoder, ModelError, OnLoading, StoredDType};
use serde_json::{Value, json};

use crate::cli::Global;
use crate::error::user;
use crate::setup::Subject;
use crate::terminal::{digits, percent};

/// What both models are asked (Lewis Carroll, "Alice's Adventures in Wonderland", 1865).
pub(super) const TEXT: &str = "Alice was beginning to get very tired of sitting by her sister on the bank, and of \
                               having nothing to do: once or twice she had peeped into the book her sister was \
                               reading, but it had no pictures or conversations in it, \u{201c}and what is the use \
                               of a book,\u{201d} thought Alice \u{201c}without pictures or conversation?\u{201d}";

/// Rounding that is more than this part of what the adapter does is worth a warning.
const WORTH_A_WARNING: f64 = 0.1;

/// How far logits may be off with weights of a type, by its name in lower case, of which some were rounded,
/// relative to their size: some times what it usually is. Integers that were not are the base's own, with
/// minima of half precision.
pub(super) fn bound(kind: &str, rounded: usize) -> f64 {
    match kind {
        "f32" => Difference::bound(StoredDType::F32),
        "bf16" => Difference::bound(StoredDType::Bf16),
        "f16" => Difference::bound(StoredDType::F16),
        _ if rounded == 0 => Difference::bound(StoredDType::F16),
        "q8_0" => 5e-2,
        "q6_k" => 0.15,
        "q5_0" | "q5_1" | "q5_k" => 0.3,
        _ => 0.6,
    }
}

/// What to do about an export that is too far off.
pub(super) const EXPORT_ADVICE: &str = "use a --type of more bits, or allow more by --max-divergence";
/// What to do about one that hides the adapter.
pub(super) const ADAPTER_ADVICE: &str =
    "use a --type of more bits, train with training.quantization_aware, or keep the adapter apart";

/// A model that is to be written, with an adapter added into it if there is one.
pub(super) struct Original {
    pub(super) subject: Subject,
    /// How the base is quantized on loading.
    quantization: Option<Format>,
    device: Device,
}

/// The same, loaded, with its logits on a text.
pub(super) struct Loaded {
    pub(super) decoder: Decoder,
    text: [Vec<u32>; 1],
    expected: Matrix,
    /// What the adapter does: the logits with it against those of the base alone.
    adapter: Option<Difference>,
    resized: bool,
    precision: Precision,
    device: Device,
}

impl Original {
    /// `quantization`: how the base is held (`Some(None)`: as its files have it), if a flag says so. Otherwise
    /// a base that an adapter is added to is held as it was in training: the adapter has learnt to make up for
    /// its rounding.
    pub(super) fn open(
        model: Option<&str>,
        adapter: Option<&str>,
        quantization: Option<Option<Format>>,
        global: &Global,
    ) -> anyhow::Result<Self> {
        let device = global.device()?;
        let subject = Subject::open(model, adapter, &device)?;
        let quantization = adapter.and_then(|_| subject.quantization(quantization));
        Ok(Original { subject, quantization, device })
    }

    /// The format of its weights: that which they were trained for, or are held in.
    pub(super) fn own_format(&self) -> Option<Format> {
        self.subject.trained_for().or(self.quantization).or(self.subject.base.config.quantization)
    }

    /// Loads it to be written with linear layers of this format, if they have one.
    ///
    /// # Errors
    /// Among others, if its logits are not finite.
    pub(super) fn load(&mut self, written: Option<Format>) -> anyhow::Result<Loaded> {
        let Original { subject, quantization, device } = self;
        // What was trained for these very weights is held against what it computed with.
        let aware = subject.trained_for();
        let is_aware = aware.is_some() && aware == written;
        if !is_aware {
            subject.tell_of_rounding();
        }
        if let (true, Some(adapter)) = (is_aware, &mut subject.adapter) {
            adapter.layout.quantization_aware = aware;
        }
        let trained = subject.remembered.as_ref().map(|run| run.precision.engine());
        // What is quantized on loading is quantized as its run held it; all else is as the files have it.
        let held = trained.unwrap_or(Precision::F32);
        let precision = if is_aware { held } else { Precision::F32 };
        let on_loading = quantization.map(|format| OnLoading { format, held });
        let Subject { base, adapter, .. } = &*subject;
        let load = |changed_by| Decoder::load_for(&base.files, changed_by, device, precision, on_loading);
        let mut ids = base.tokenizer()?.encode(TEXT, true)?.ids;
        ids.truncate(base.config.max_position_embeddings);
        let text = [ids];
        // What the adapter's file has in place of the base's own weights is a part of what it does. Of two
        // vocabularies only one can be asked.
        let changed_by = base.changed_by.as_ref();
        let alone = match changed_by.is_some() && !base.is_resized() {
            true => Some(load(None)?.logits_of(None, &text)),
            false => None,
        };
        let decoder = load(changed_by)?;
        let expected = decoder.logits_of(adapter.as_ref(), &text);
        let adapter = adapter.as_ref().map(|_| {
            let alone = alone.unwrap_or_else(|| decoder.logits_of(None, &text));
            Difference::between(&alone, &expected)
        });
        let effect = adapter.unwrap_or_else(|| Difference::between(&expected, &expected));
        if !effect.largest.is_finite() {
            return Err(user(
                "the model's logits are not finite: weights of it or of its adapter are damaged or too large",
            ));
        }
        let (resized, device) = (base.is_resized(), device.clone());
        Ok(Loaded { decoder, text, expected, adapter, resized, precision, device })
    }
}

/// What was written, and what is asked of it.
pub(super) struct Written<'a> {
    pub(super) path: &'a Path,
    /// What it is called: `file`.
    pub(super) what: &'static str,
    /// What its weights are stored as.
    pub(super) kind: String,
    /// How far its logits may be off, if that is limited.
    pub(super) bound: Option<f64>,
    /// What to do if they are further.
    pub(super) advice: &'static str,
}

impl Loaded {
    /// Reads back what was written, in place of the model and not beside it, and holds its logits against
    /// those of the model.
    pub(super) fn prove(self, written: Written<'_>) -> anyhow::Result<Proof> {
        let Loaded { decoder, text, expected, adapter, resized, precision, device } = self;
        let Written { path, what, kind, bound, advice } = written;
        drop(decoder);
        let read = match Decoder::load(path, &device, precision, None) {
            Err(ModelError::Tensor { name, problem, .. }) => {
                return Err(user(format!(
                    "the weights of the {what} do not fit into {kind}: tensor `{name}` {problem}; {advice}"
                )));
            }
            read => read.with_context(|| format!("the {what} cannot be read back"))?,
        };
        let writing = Difference::between(&expected, &read.logits_of(None, &text));
        // Whatever may be lost, logits that are no numbers may not.
        let limit = bound.unwrap_or(f64::INFINITY);
        if !writing.is_within(limit) {
            return Err(user(format!(
                "the logits of the {what} differ from the model's by {} on a text, where {} are allowed; nothing was \
                 kept: {advice}",
                percent(writing.relative),
                percent(limit)
            )));
        }
        Ok(Proof { kind, adapter, writing, bound, resized })
    }
}

/// How far the logits of what was written are from those of the model.
pub(super) struct Proof {
    kind: String,
    /// Base and adapter against the base alone, if there is an adapter.
    adapter: Option<Difference>,
    /// What was written against the model.
    writing: Difference,
    bound: Option<f64>,
    /// The base was resized, of which the comparison with it says nothing.
    resized: bool,
}

impl Proof {
    /// The part of the adapter's effect that writing amounts to.
    fn share(&self) -> Option<f64> {
        let adapter = self.adapter.filter(|adapter| adapter.relative > 0.0);
        adapter.map(|adapter| self.writing.relative / adapter.relative)
    }

    /// Says on stderr what is lost of the adapter, if that is much, and what to do; or that there is nothing to
    /// lose.
    pub(super) fn warn(&self, advice: &str) {
        match (self.adapter, self.share()) {
            (_, Some(share)) if share > WORTH_A_WARNING => eprintln!(
                "warning: rounding the weights to {} changes the logits by {} of what the adapter does; {advice}",
                self.kind,
                percent(share),
            ),
            (Some(_), None) if !self.resized => eprintln!("note: this adapter changes nothing"),
            _ => {}
        }
    }

    /// Adds the proof to what is printed as JSON.
    pub(super) fn add_to(&self, facts: &mut Value) {
        let Proof { adapter, writing, bound, .. } = self;
        facts["largest_difference"] = json!(writing.largest);
        facts["mean_difference"] = json!(writing.mean);
        facts["relative_difference"] = json!(writing.relative);
        facts["bound"] = json!(bound);
        if let Some(adapter) = adapter {
            facts["adapter_largest_difference"] = json!(adapter.largest);
            facts["adapter_relative_difference"] = json!(adapter.relative);
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Proof { kind, adapter, writing, bound, .. } = self;
        writeln!(f, "weights  stored as {kind}")?;
        if let Some(adapter) = adapter {
            let (effect, largest) = (percent(adapter.relative), digits(adapter.largest));
            writeln!(f, "adapter  changes the logits of a text by {effect}, none by more than {largest}")?;
        }
        let (change, mean, largest) =
            (percent(writing.relative), digits(writing.mean), digits(writing.largest));
        let them = if adapter.is_some() { "them" } else { "the logits of a text" };
        write!(f, "writing  changes {them} by {change}")?;
        if let Some(share) = self.share() {
            write!(f, " ({} of what the adapter does)", percent(share))?;
        }
        write!(f, ", {mean} in the mean, none by more than {largest}")?;
        bound.map_or(Ok(()), |bound| write!(f, "; up to {} passes", percent(bound)))
    }
}
