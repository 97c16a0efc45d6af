//! A model, a tokenizer and examples small enough to train in a blink, written byte by byte so that tests can
//! spoil them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// Tensors by name: shape and values.
pub(crate) type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

const VOCABULARY: usize = 32;
const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz .";

/// The model folder `m`: two layers of a Llama over letters, with a tokenizer and a chat template.
pub(crate) fn model(folder: &Path) {
    let model = folder.join("m");
    fs::create_dir(&model).unwrap();
    write_json(&model.join("config.json"), &config());
    fs::write(model.join("model.safetensors"), safetensors(&weights(2), |_| {})).unwrap();
    write_tokenizer(&model);
}

/// Writes a tokenizer of letters with a chat template into a model's folder.
pub(crate) fn write_tokenizer(model: &Path) {
    write_json(&model.join("tokenizer.json"), &tokenizer());
    let template = "{% for m in messages %}{{ m.role[0] }} {{ m.content }}{% if m.role == 'assistant' %}\
                    {{ eos_token }}{% endif %}{% endfor %}";
    let special = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "chat_template": template,
    });
    write_json(&model.join("tokenizer_config.json"), &special);
}

/// Writes JSON in one line.
pub(crate) fn write_json(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).unwrap();
}

/// The model's config.json.
pub(crate) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "hidden_act": "silu", "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
    })
}

/// The weights of the model with so many layers.
pub(crate) fn weights(layers: usize) -> Weights {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, 16]),
        ("model.norm.weight".to_owned(), vec![16]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, 16]),
    ];
    for layer in 0..layers {
        for (part, shape) in [
            ("input_layernorm", vec![16]),
            ("self_attn.q_proj", vec![16, 16]),
            ("self_attn.k_proj", vec![8, 16]),
            ("self_attn.v_proj", vec![8, 16]),
            ("self_attn.o_proj", vec![16, 16]),
            ("post_attention_layernorm", vec![16]),
            ("mlp.gate_proj", vec![32, 16]),
            ("mlp.up_proj", vec![32, 16]),
            ("mlp.down_proj", vec![16, 32]),
        ] {
            shapes.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    let mut random = Random(1);
    let mut value = |norm: bool| if norm { 1.0 } else { random.below(2001) as f32 / 2500.0 - 0.4 };
    shapes
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let values = std::iter::repeat_with(|| value(shape.len() == 1)).take(count).collect();
            (name, (shape, values))
        })
        .collect()
}

/// A safetensors file of `f32`, its header spoilt by `spoil`.
pub(crate) fn safetensors(weights: &Weights, spoil: impl FnOnce(&mut Value)) -> Vec<u8> {
    let (mut header, mut data) = (json!({}), Vec::new());
    for (name, (shape, values)) in weights {
        let start = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        header[name] = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
    }
    spoil(&mut header);
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

fn tokenizer() -> Value {
    let special = ["<unk>", "<s>", "</s>"];
    let letters = LETTERS.chars().map(String::from);
    let tokens = special.iter().map(|s| (*s).to_owned()).chain(letters);
    let vocabulary: serde_json::Map<String, Value> =
        tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    })
}

/// A file of tokenized examples, the same for the same seed.
pub(crate) fn examples(path: &Path, count: usize, seed: u64) {
    let mut random = Random(seed);
    let mut text = String::new();
    for _ in 0..count {
        let length = 3 + random.below(18);
        let ids: Vec<u64> = (0..length).map(|_| 3 + random.below(28)).collect();
        text += &json!({"input_ids": ids, "labels": ids}).to_string();
        text.push('\n');
    }
    fs::write(path, text).unwrap();
}

/// Numbers without a pattern (Knuth's linear congruential generator).
pub(crate) struct Random(pub u64);

impl Random {
    /// A number from 0 up to, not including, `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}
