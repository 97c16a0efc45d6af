//! What a GGUF file says of a model, under the keys of llama.cpp's converter (`conversion/base.py`,
//! `TextModel.set_gguf_parameters`, and the classes of the families beside it).

use compute::ops::rope::{RopeScaling, Rotation};

use super::names::ROPE_FACTORS;
use super::writer::{Entries, Said};
use crate::config::{Config, GgufForm, NormKind, Positions};

/// Architectures for which llama.cpp computes windows, and which each `n`-th layer is without one where the
/// file does not say.
const WINDOWS: [(&str, usize); 3] = [("gemma2", 2), ("gemma3", 6), ("olmo2", 4)];
/// Architectures for which it divides each frequency by a factor of its own.
const DIVIDED: [&str; 3] = ["llama", "granite", "mistral3"];
/// And by one of two, as the context is long.
const LONG_ROPE: [&str; 4] = ["llama", "granite", "mistral3", "phi3"];
/// Architectures whose head is the embedding, always.
const TIED: [&str; 1] = ["gemma2"];
/// And whose head never is.
const UNTIED: [&str; 2] = ["olmo2", "gptneox"];

/// What metadata says of a model, and the tensors that only its rotary embedding needs.
pub(super) struct Description {
    pub(super) entries: Entries,
    /// Names and values.
    pub(super) factors: Vec<(&'static str, Vec<f32>)>,
}

/// Whether windows are lost on llama.cpp: its texts differ from the model's beyond the length of one.
pub(super) fn loses_windows(config: &Config, form: GgufForm) -> Option<usize> {
    let window = config.blocks.iter().find_map(|block| block.window);
    window.filter(|_| WINDOWS.iter().all(|(name, _)| *name != form.architecture))
}

/// What a file says of a model of this form.
///
/// # Errors
/// What llama.cpp computes in another way, or not at all.
pub(super) fn describe(config: &Config, form: GgufForm) -> Result<Description, String> {
    let name = form.architecture;
    if TIED.contains(&name) && !config.tie_word_embeddings {
        return Err(format!("has a head of its own, and that of llama.cpp's {name} is the embedding"));
    }
    if UNTIED.contains(&name) && config.tie_word_embeddings {
        return Err(format!("has the embedding as its head, and llama.cpp's {name} has another"));
    }
    let mut keys = Keys { prefix: name, entries: Vec::new() };
    keys.count("block_count", config.layers);
    keys.count("context_length", config.max_position_embeddings);
    keys.count("embedding_length", config.hidden_size);
    keys.count("feed_forward_length", config.intermediate_size);
    keys.count("attention.head_count", config.heads);
    keys.count("attention.head_count_kv", config.kv_heads);
    keys.count("attention.key_length", config.head_dim);
    keys.count("attention.value_length", config.head_dim);
    keys.count("vocab_size", config.vocab_size);
    let kind = if config.norm == NormKind::Layer { "" } else { "rms_" };
    keys.float(&format!("attention.layer_norm_{kind}epsilon"), config.norm_eps.into());
    set_windows(&mut keys, config);
    if let Some(experts) = &config.experts {
        keys.count("expert_count", experts.count);
        keys.count("expert_used_count", experts.per_token);
        if name == "qwen3moe" {
            keys.count("expert_feed_forward_length", experts.inner);
        }
    }
    if name == "granite" {
        keys.float("attention.scale", config.attention_scale.into());
        keys.float("embedding_scale", config.embedding_scale.into());
        keys.float("residual_scale", config.residual_scale.into());
        keys.float("logit_scale", 1.0 / f64::from(config.logits_scale));
    }
    for (key, cap) in
        [("attn_logit_softcapping", config.attention_cap), ("final_logit_softcapping", config.logits_cap)]
    {
        if let Some(cap) = cap {
            keys.float(key, cap.into());
        }
    }
    if name == "gptneox" {
        keys.say("use_parallel_residual", Said::Bool(config.parallel_residual));
    }
    let factors = match config.positions {
        Positions::Learned => Vec::new(),
        Positions::Rotary => set_rope(&mut keys, config)?,
    };
    Ok(Description { entries: keys.entries, factors })
}

struct Keys {
    prefix: &'static str,
    entries: Entries,
}

impl Keys {
    fn say(&mut self, key: &str, value: Said) {
        self.entries.push((format!("{}.{key}", self.prefix), value));
    }

    fn count(&mut self, key: &str, count: usize) {
        self.say(key, Said::Count(count.try_into().expect("sizes of models fit into 32 bits")));
    }

    fn float(&mut self, key: &str, number: f64) {
        self.say(key, Said::Float(number as f32));
    }
}

fn set_windows(keys: &mut Keys, config: &Config) {
    let Some(window) = config.blocks.iter().find_map(|block| block.window) else {
        if keys.prefix == "phi3" {
            // By zero llama.cpp knows Phi-4.
            keys.count("attention.sliding_window", 0);
        }
        return;
    };
    keys.count("attention.sliding_window", window);
    let every = WINDOWS.iter().find(|(name, _)| *name == keys.prefix).map(|(_, every)| *every);
    let usual = |layer: usize| every.is_none_or(|every| !(layer + 1).is_multiple_of(every));
    let slides: Vec<bool> = config.blocks.iter().map(|block| block.window.is_some()).collect();
    if slides.iter().enumerate().any(|(layer, &slides)| slides != usual(layer)) {
        keys.say("attention.sliding_window_pattern", Said::Bools(slides));
    }
}

/// Says what the rotary embedding is; returns the tensors that it needs.
fn set_rope(keys: &mut Keys, config: &Config) -> Result<Vec<(&'static str, Vec<f32>)>, String> {
    let Rotation { dims, theta, ref scaling, .. } = config.ropes[0];
    keys.count("rope.dimension_count", dims);
    keys.float("rope.freq_base", theta);
    if let Some(local) = config.ropes.get(1).filter(|_| config.blocks.iter().any(|b| b.window.is_some())) {
        keys.float("rope.freq_base_swa", local.theta);
    }
    // What each frequency is divided by.
    let divided_by = || -> Vec<f32> {
        let [(plain, _), (scaled, _)] =
            [&RopeScaling::None, scaling].map(|scaling| scaling.frequencies(dims, theta, false));
        let pairs = plain.into_iter().zip(scaled);
        pairs.map(|(plain, scaled)| (f64::from(plain) / f64::from(scaled)) as f32).collect()
    };
    match *scaling {
        RopeScaling::None => {
            if keys.prefix == "phi3" {
                keys.count("rope.scaling.original_context_length", config.max_position_embeddings);
            }
            Ok(Vec::new())
        }
        RopeScaling::Linear { factor } => {
            keys.say("rope.scaling.type", "linear".into());
            keys.float("rope.scaling.factor", factor);
            Ok(Vec::new())
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            mscale_all_dim,
            ..
        } => {
            if (beta_fast, beta_slow) != (32.0, 1.0) && keys.prefix != "mistral3" {
                let problem = "has YaRN with borders of its own, and llama.cpp's";
                return Err(format!("{problem} {} takes 32 and 1", keys.prefix));
            }
            keys.say("rope.scaling.type", "yarn".into());
            keys.float("rope.scaling.factor", factor);
            keys.count("rope.scaling.original_context_length", original_max_position_embeddings);
            keys.float("rope.scaling.yarn_beta_fast", beta_fast);
            keys.float("rope.scaling.yarn_beta_slow", beta_slow);
            if keys.prefix == "mistral3" {
                if let Some(all) = mscale_all_dim {
                    keys.float("rope.scaling.yarn_log_multiplier", all);
                }
            } else {
                // llama.cpp multiplies by its own factor; this one corrects it.
                let (_, by) = scaling.frequencies(dims, theta, false);
                let own = 1.0 + 0.1 * factor.max(1.0).ln();
                if (by / own - 1.0).abs() > 1e-9 {
                    keys.float("rope.scaling.attn_factor", by / own);
                }
            }
            if let Some(growth) = &config.query_growth {
                keys.float("attention.temperature_scale", growth.beta);
            }
            Ok(Vec::new())
        }
        RopeScaling::Llama3 { .. } => divisors(keys.prefix, divided_by()),
        RopeScaling::LongRope { ref short_factor, ref long_factor, .. }
            if short_factor == long_factor && scaling.frequencies(dims, theta, false).1 == 1.0 =>
        {
            divisors(keys.prefix, in_32_bits(short_factor))
        }
        RopeScaling::LongRope {
            ref short_factor, ref long_factor, original_max_position_embeddings, ..
        } => {
            if !LONG_ROPE.contains(&keys.prefix) {
                return Err(format!("has LongRoPE, and llama.cpp's {} has not", keys.prefix));
            }
            keys.say("rope.scaling.type", "longrope".into());
            keys.count("rope.scaling.original_context_length", original_max_position_embeddings);
            keys.float("rope.scaling.attn_factor", scaling.frequencies(dims, theta, false).1);
            let [_, long, short] = ROPE_FACTORS;
            Ok(vec![(long, in_32_bits(long_factor)), (short, in_32_bits(short_factor))])
        }
    }
}

fn in_32_bits(factors: &[f64]) -> Vec<f32> {
    factors.iter().map(|&factor| factor as f32).collect()
}

fn divisors(name: &str, values: Vec<f32>) -> Result<Vec<(&'static str, Vec<f32>)>, String> {
    match DIVIDED.contains(&name) {
        true => Ok(vec![(ROPE_FACTORS[0], values)]),
        false => {
            Err(format!("divides each frequency by a factor of its own, and llama.cpp's {name} does not"))
        }
    }
}
