//! Adapters whose files hold weights of the base itself, or more rows than its vocabulary, and adapters of
//! mlx-lm.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use compute::quant::Format;
use compute::{Device, MatrixRef, Precision};
use model::adapter::init::Init;
use model::adapter::peft::files::save_adapter;
use model::adapter::peft::folder::AdapterFolder;
use model::adapter::peft::targets;
use model::adapter::peft::{AdapterTensor, PeftConfig, Selection, WEIGHTS_FILE, write_adapter};
use model::checkpoint::{CheckpointWriter, TensorSpec};
use model::{
    Adapter, BaseWeight, Batch, Checkpoint, Config, Decoder, Layout, ModelError, ModuleId, OnLoading, Part,
    StoredDType,
};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::common::{Tensors, all_logits, fixture, largest_difference, load, opened, training_buffers};

fn open(folder: &Path, case: &str) -> Result<AdapterFolder, ModelError> {
    let base = opened(case);
    let mut files = AdapterFolder::open(folder, &base.config, None)?;
    files.compare(&base)?;
    Ok(files)
}

fn logits(folder: &Path, case: &str, ids: &[u32]) -> Vec<f32> {
    let files = open(folder, case).unwrap();
    let device = Device::cpu(2);
    let decoder = Decoder::load_for(&opened(case), Some(&files), &device, Precision::F32, None).unwrap();
    let adapter = files.read(&Device::cpu(2)).unwrap();
    let mut batch = Batch::new();
    batch.push_unlabelled(ids);
    let mut buffers = training_buffers(&decoder, &adapter.layout, 0.0, batch.tokens());
    all_logits(&decoder, &decoder.run(Some(&adapter)), &batch, &mut buffers).to_vec()
}

#[test]
fn weights_of_the_base_in_an_adapters_file_are_used_as_by_peft() {
    for (case, name, added) in [
        ("llama3", "tied-embedding", 0),
        ("llama2", "embedding-and-head", 0),
        ("llama2", "targeted-head", 0),
        ("llama3", "tied-resized", 3),
        ("llama2", "resized-saved", 3),
        ("llama3", "tied-resized-saved", 3),
    ] {
        let folder = fixture("whole-tensors").join(name);
        let expected = Tensors::read(&folder.join("expected.safetensors"));
        let got = logits(&folder, case, &expected.ids("input_ids"));
        let difference = largest_difference(&got, expected.get("logits"));
        assert!(difference < 1e-4, "{name}: logits are off by {difference}");
        assert_eq!(open(&folder, case).unwrap().added_tokens, added, "{name}");
    }
}

#[test]
fn what_equals_the_base_takes_nobodys_place() {
    let files = open(&fixture("llama2").join("adapter-lm_head"), "llama2").unwrap();
    assert_eq!((files.base_tensors, files.notes), (vec![], vec![]));
}

#[test]
fn training_on_is_refused_where_it_would_lose_a_tensor() {
    let refused = |name: &str, case| {
        open(&fixture("whole-tensors").join(name), case)
            .unwrap()
            .require_unchanged_base()
            .unwrap_err()
            .to_string()
    };
    let told = refused("tied-embedding", "llama3");
    assert!(
        told.contains("`base_model.model.lm_head.weight` differs from the base's and is not trained"),
        "{told}"
    );
    let told = refused("tied-resized", "llama3");
    assert!(
        told.contains("has 3 rows more than the base's vocabulary of 101: tokens were added before"),
        "{told}"
    );
    open(&fixture("llama2").join("adapter-lm_head"), "llama2").unwrap().require_unchanged_base().unwrap();
}

type Extra<'a> = (&'a str, &'a [usize], &'a [f32]);

/// An adapter on the queries of a fixture with more tensors in its file, each filled by repeating its values.
fn adapter_with(case: &str, extras: &[Extra<'_>]) -> TempDir {
    let config = Config::load(&fixture(case)).unwrap();
    let settings = PeftConfig {
        r: 2,
        target_modules: Some(Selection::List(vec!["q_proj".into()])),
        ..PeftConfig::default()
    };
    let updates = (0..config.layers).flat_map(|layer| {
        let path = format!("model.layers.{layer}.self_attn.q_proj");
        [
            (format!("{path}.lora_A.weight"), vec![2, config.hidden_size], vec![0.25]),
            (format!("{path}.lora_B.weight"), vec![config.q_width(), 2], vec![0.5]),
        ]
    });
    let extras = extras.iter().map(|&(key, shape, values)| (key.to_owned(), shape.to_vec(), values.to_vec()));
    let filled: Vec<(String, Vec<usize>, Vec<f32>)> = updates
        .chain(extras)
        .map(|(key, shape, values)| {
            let elements = shape.iter().product();
            (key, shape, values.into_iter().cycle().take(elements).collect())
        })
        .collect();
    let tensors: Vec<AdapterTensor<'_>> = filled
        .iter()
        .map(|(key, shape, values)| AdapterTensor {
            key: format!("base_model.model.{key}"),
            shape: shape.clone(),
            values: MatrixRef::from_f32(1, values.len(), values),
        })
        .collect();
    let folder = tempdir().unwrap();
    write_adapter(folder.path(), &settings, &tensors).unwrap();
    folder
}

/// A weight of a fixture as `f32`.
fn base_values(case: &str, name: &str) -> Vec<f32> {
    let checkpoint = Checkpoint::open(&fixture(case)).unwrap();
    let mut values = vec![0.0; checkpoint.tensor(name).unwrap().element_count()];
    checkpoint.read_part(name, 0, &mut values).unwrap();
    values
}

#[test]
fn a_base_tensor_under_a_name_that_peft_would_drop_is_let_pass_only_if_it_is_the_bases() {
    let key = "lm_head.base_layer.weight";
    let head = base_values("llama2", "lm_head.weight");
    let equal = adapter_with("llama2", &[(key, &[101, 40], &head)]);
    assert_eq!(open(equal.path(), "llama2").unwrap().base_tensors, []);
    let told = open(adapter_with("llama2", &[(key, &[101, 40], &[0.5])]).path(), "llama2").unwrap_err();
    assert!(told.to_string().ends_with("would drop with these settings: its place is lm_head"), "{told}");
    let key = "model.layers.0.self_attn.q_proj.weight";
    let told = open(adapter_with("llama2", &[(key, &[40, 40], &[0.5])]).path(), "llama2").unwrap_err();
    assert!(told.to_string().ends_with("its place is model.layers.0.self_attn.q_proj.base_layer"), "{told}");
}

#[test]
fn a_rounded_copy_of_the_bases_weight_is_the_bases() {
    // The base is stored in bf16: a copy in f32 has its values, and one that differs by less than bf16 can
    // say is rounded to it.
    let values = base_values("llama3", "model.embed_tokens.weight");
    let nearly: Vec<f32> = values.iter().map(|v| v * 1.0001).collect();
    for copy in [&values, &nearly] {
        let folder = adapter_with("llama3", &[("model.embed_tokens.weight", &[101, 40], copy)]);
        assert_eq!(open(folder.path(), "llama3").unwrap().base_tensors, []);
    }
}

#[test]
fn any_weight_or_bias_of_the_base_takes_its_place() {
    for (key, shape) in [
        ("model.layers.1.self_attn.k_proj.bias", vec![20]),
        ("model.layers.0.input_layernorm.weight", vec![40]),
        ("model.norm.weight", vec![40]),
        ("model.layers.0.mlp.up_proj.weight", vec![56, 40]),
        ("model.layers.0.self_attn.q_proj.base_layer.bias", vec![40]),
    ] {
        let folder = adapter_with("qwen2", &[(key, &shape, &[0.5])]);
        let plain = adapter_with("qwen2", &[]);
        assert_eq!(open(folder.path(), "qwen2").unwrap().base_tensors.len(), 1, "{key}");
        let ids = [1, 5, 9, 33];
        assert_ne!(logits(folder.path(), "qwen2", &ids), logits(plain.path(), "qwen2", &ids), "{key}");
    }
}

#[test]
fn a_weight_in_four_bits_is_not_replaced() {
    let key = "model.layers.0.mlp.up_proj.weight";
    let config = Config::load(&fixture("nf4")).unwrap();
    let shape = [config.intermediate_size, config.hidden_size];
    let told = open(adapter_with("nf4", &[(key, &shape, &[0.5])]).path(), "nf4").unwrap_err().to_string();
    assert!(told.contains("up_proj.weight` stands for a weight that the base has quantized"), "{told}");
    let files = open(adapter_with("llama2", &[(key, &[56, 40], &[0.5])]).path(), "llama2").unwrap();
    let on_loading = OnLoading { format: Format::QLORA, held: Precision::F32 };
    let (device, format) = (Device::cpu(1), Some(on_loading));
    let told =
        Decoder::load_for(&opened("llama2"), Some(&files), &device, Precision::F32, format).unwrap_err();
    assert!(told.to_string().contains("which is to be quantized"), "{told}");
    // Embeddings are not in four bits.
    let shape = [config.vocab_size, config.hidden_size];
    let folder = adapter_with("nf4", &[("model.embed_tokens.weight", &shape, &[0.5])]);
    let files = open(folder.path(), "nf4").unwrap();
    assert_eq!(files.base_tensors.len(), 1);
    Decoder::load_for(&opened("nf4"), Some(&files), &device, Precision::F32, None).unwrap();
}

/// GPT-2 stores its linear layers as `[in, out]`, and so does PEFT where it trains one whole.
#[test]
fn a_layer_that_the_base_stores_transposed_is_written_as_there_and_read_again() {
    let (base, device) = (load("gpt2"), Device::cpu(2));
    // A square one and one that is not.
    let saved = ["h.1.attn.c_proj", "h.0.mlp.c_fc"].map(String::from).to_vec();
    let names = Some(Selection::List(vec!["c_attn".into()]));
    let settings =
        PeftConfig { target_modules: names, modules_to_save: saved.clone(), ..PeftConfig::default() };
    let layout = Layout::of_adapter(&targets::resolve(&settings, &base.config).unwrap(), &base.config);
    let mut adapter = Adapter::zeros(layout, 0.0, &device);
    adapter.initialize(Init::Default, 1, &base);
    let folder = tempdir().unwrap();
    save_adapter(folder.path(), &settings, &adapter.layout, &adapter.parameters).unwrap();
    let file = Checkpoint::open_file(&folder.path().join(WEIGHTS_FILE)).unwrap();
    for name in saved {
        let key = format!("base_model.model.transformer.{name}.weight");
        let mut values = vec![0.0; file.tensor(&key).unwrap().element_count()];
        file.read_part(&key, 0, &mut values).unwrap();
        assert!(values == base_values("gpt2", &format!("{name}.weight")), "{name}");
    }
    let (read, _) = Adapter::load(folder.path(), &base.config, None, &device).unwrap();
    assert!(read.parameters.values().f32() == adapter.parameters.values().f32());
}

#[test]
fn a_layer_that_the_base_stores_transposed_is_replaced_by_one_that_is_stored_so() {
    let (base, device) = (opened("gpt2"), Device::cpu(2));
    let settings = PeftConfig { r: 2, ..PeftConfig::default() };
    let layout = Layout::of_adapter(&targets::resolve(&settings, &base.config).unwrap(), &base.config);
    let adapter = Adapter::zeros(layout, 0.0, &device);
    let values = base_values("gpt2", "h.1.attn.c_proj.weight");
    let twice: Vec<f32> = values.iter().map(|value| 2.0 * value).collect();
    let updates = adapter.layout.tensors().iter().map(|tensor| AdapterTensor {
        key: tensor.name.clone(),
        shape: tensor.file_shape(),
        values: adapter.parameters.tensor(tensor),
    });
    let whole = AdapterTensor {
        key: "base_model.model.transformer.h.1.attn.c_proj.weight".into(),
        shape: vec![32, 32],
        values: MatrixRef::from_f32(32, 32, &twice),
    };
    let folder = tempdir().unwrap();
    write_adapter(folder.path(), &settings, &updates.chain([whole]).collect::<Vec<_>>()).unwrap();
    let files = open(folder.path(), "gpt2").unwrap();
    let weight = |adapter| {
        let decoder = Decoder::load_for(&base, adapter, &device, Precision::F32, None).unwrap();
        match decoder.base_weight(ModuleId::Linear { layer: 1, part: Part::O }) {
            BaseWeight::Dense(weight) => weight.to_vec(),
            BaseWeight::Quantized(_) => panic!("nothing is quantized"),
        }
    };
    let expected: Vec<f32> = weight(None).iter().map(|value| 2.0 * value).collect();
    assert!(weight(Some(&files)) == expected);
}

macro_rules! refused {
    ($($name:ident: $case:literal, $extras:expr => $message:expr;)*) => {
        $(#[test]
        fn $name() {
            let got = open(adapter_with($case, &$extras).path(), $case).unwrap_err().to_string();
            assert!(got.contains("adapter_model.safetensors: "), "{got}");
            assert!(got.contains($message), "{got}\nlacks\n{}", $message);
        })*
    };
}

refused! {
    two_names_of_a_tied_weight_must_agree: "llama3",
        [("model.embed_tokens.weight", &[101, 40], &[0.5]), ("lm_head.weight", &[101, 40], &[0.25])]
        => "`base_model.model.model.embed_tokens.weight` differs from `base_model.model.lm_head.weight`, and both stand for";
    a_base_tensor_that_is_not_finite_is_refused: "llama2", [("lm_head.weight", &[101, 40], &[f32::NAN])]
        => "`base_model.model.lm_head.weight` has the value NaN";
    a_base_tensor_of_another_width_is_refused: "llama2", [("lm_head.weight", &[101, 39], &[0.5])]
        => "has shape [101, 39] but needs [101, 40] here";
    a_magnitude_of_dora_is_refused: "llama2", [("model.layers.0.self_attn.q_proj.lora_magnitude_vector", &[40], &[1.0])]
        => "q_proj.lora_magnitude_vector` belongs to DoRA";
    an_update_of_an_embedding_is_refused: "llama2", [("model.embed_tokens.lora_embedding_A", &[2, 101], &[1.0])]
        => "lora_embedding_A` is a low-rank update of an embedding, which is not supported";
    single_trained_tokens_are_refused: "llama2", [("model.embed_tokens.token_adapter.trainable_tokens_delta", &[1, 40], &[1.0])]
        => "holds single trained tokens";
    a_bias_on_b_is_refused: "llama2", [("model.layers.0.self_attn.q_proj.lora_B.bias", &[40], &[1.0])]
        => "is a bias on B";
    fewer_rows_than_the_vocabulary_are_told: "llama2", [("lm_head.weight", &[100, 40], &[0.5])]
        => "has 100 rows, 1 fewer than the base's vocabulary of 101";
    more_rows_need_those_of_the_head_too: "llama2", [("model.embed_tokens.weight", &[104, 40], &[0.5])]
        => "holds embeddings of 104 tokens, 3 more than the base's vocabulary of 101: tokens were added before the adapter was \
            trained, so the base must be resized first, and the rows of lm_head are not in the file";
    embedding_and_head_must_have_one_vocabulary: "llama2",
        [("model.embed_tokens.weight", &[104, 40], &[0.5]), ("lm_head.weight", &[105, 40], &[0.5])]
        => "embedding and head have one vocabulary";
    a_tensor_of_no_module_is_refused: "llama2", [("model.layers.7.self_attn.q_proj.weight", &[40, 40], &[0.5])]
        => "is not called for by adapter_config.json";
}

#[test]
fn an_update_of_a_resized_head_needs_the_heads_rows_too() {
    let config = PeftConfig {
        r: 2,
        target_modules: Some(Selection::List(vec!["lm_head".into()])),
        ..PeftConfig::default()
    };
    let values = [0.5; 104 * 2];
    let tensor = |part: &str, shape: [usize; 2]| AdapterTensor {
        key: format!("base_model.model.lm_head.{part}.weight"),
        shape: shape.to_vec(),
        values: MatrixRef::from_f32(1, shape[0] * shape[1], &values[..shape[0] * shape[1]]),
    };
    let folder = tempdir().unwrap();
    write_adapter(folder.path(), &config, &[tensor("lora_A", [2, 40]), tensor("lora_B", [104, 2])]).unwrap();
    let told = open(folder.path(), "llama2").unwrap_err().to_string();
    assert!(
        told.contains("holds embeddings of 104 tokens, 3 more than the base's vocabulary of 101"),
        "{told}"
    );
}

#[test]
fn two_names_of_a_tied_weight_are_as_good_as_the_one_that_peft_knows() {
    let extras: [Extra<'_>; 2] = [
        ("model.embed_tokens.base_layer.weight", &[101, 40], &[0.5]),
        ("lm_head.weight", &[101, 40], &[0.5]),
    ];
    assert_eq!(open(adapter_with("llama3", &extras).path(), "llama3").unwrap().base_tensors.len(), 1);
}

#[test]
fn a_second_copy_of_what_is_trained_whole_must_be_equal() {
    let (from, folder) = (fixture("whole-tensors").join("resized-saved"), tempdir().unwrap());
    fs::copy(from.join("adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
    let changed = "base_model.model.lm_head.modules_to_save.weight";
    rewrite(
        &from.join("adapter_model.safetensors"),
        &folder.path().join("adapter_model.safetensors"),
        |name, _| (name.to_owned(), name == changed),
    );
    let told = open(folder.path(), "llama2").unwrap_err().to_string();
    assert!(
        told.contains("modules_to_save.weight` differs from `base_model.model.lm_head.weight`"),
        "{told}"
    );
}

/// Up to transformers 4.51 wrappers had the model of texts in another place; and an adapter of the model by
/// itself is one of the model in its wrapper, and the other way round.
#[test]
fn adapters_of_a_model_that_stood_elsewhere_are_read() {
    let key = |path: &str| format!("base_model.model.{path}");
    let config = Config::load(&fixture("gemma3-wrapped")).unwrap();
    let from = fixture("gemma3-wrapped").join("adapter");
    let (adapter, _) = Adapter::load(&from, &config, None, &Device::cpu(1)).unwrap();
    let moved = |to: &str| {
        let folder = tempdir().unwrap();
        let settings = fs::read_to_string(from.join("adapter_config.json")).unwrap();
        let settings = settings.replace(".*language_model\\\\.layers", ".*layers");
        assert!(settings.contains("\".*layers"), "{settings}");
        // Whole paths in the settings are those of the place, too.
        let pattern = format!("\"alpha_pattern\": {{\"{to}layers.0.self_attn.q_proj\": 60}}");
        let settings = settings.replace("\"alpha_pattern\": {}", &pattern);
        assert!(settings.contains(&pattern), "{settings}");
        fs::write(folder.path().join("adapter_config.json"), settings).unwrap();
        let file = "adapter_model.safetensors";
        rewrite(&from.join(file), &folder.path().join(file), |name, _| {
            (name.replace(&key("model.language_model."), &key(to)), false)
        });
        folder
    };
    let alone = Config::load(&fixture("gemma3")).unwrap();
    for to in ["language_model.model.", "model.", "model.language_model."] {
        let folder = moved(to);
        let (read, _) = Adapter::load(folder.path(), &config, None, &Device::cpu(1)).unwrap();
        assert_eq!(read.parameters.values().f32(), adapter.parameters.values().f32(), "{to}");
        let names =
            |adapter: &Adapter| adapter.layout.tensors().iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&read), names(&adapter), "{to}");
        let alpha = |layer| {
            let path = format!("model.language_model.layers.{layer}.self_attn.q_proj");
            let lora = read.layout.get(config.names.parse(&path).unwrap()).unwrap().lora().unwrap();
            lora.scale * lora.rank as f32
        };
        assert!(alpha(0) == 60.0 && alpha(1) != 60.0, "{to}: {} and {}", alpha(0), alpha(1));
        // The shapes of the other fixture are others, which is told by the names that it has.
        let told = Adapter::load(folder.path(), &alone, None, &Device::cpu(1)).unwrap_err().to_string();
        assert!(told.contains("`base_model.model.model.layers.0."), "{told}");
    }
    let lost = moved("model.");
    let settings = fs::read_to_string(lost.path().join("adapter_config.json")).unwrap();
    let settings =
        settings.replace("model.layers.0.self_attn.q_proj", r"model\\.layers\\.0\\.self_attn\\.q_proj");
    fs::write(lost.path().join("adapter_config.json"), settings).unwrap();
    let told = Adapter::load(lost.path(), &config, None, &Device::cpu(1)).unwrap_err().to_string();
    assert!(
        told.contains("`alpha_pattern` names places of the model that the adapter was trained on"),
        "{told}"
    );
    let twice = moved("model.");
    let file = twice.path().join("adapter_model.safetensors");
    let other = tempdir().unwrap();
    fs::copy(twice.path().join("adapter_config.json"), other.path().join("adapter_config.json")).unwrap();
    rewrite(&file, &other.path().join("adapter_model.safetensors"), |name, _| {
        let second = name.contains("layers.1.") && name.contains("q_proj.lora_A");
        let to = if second { "language_model.model.layers.0." } else { "model.layers.0." };
        let layer = if second { "model.layers.1." } else { "model.layers.0." };
        (name.replace(&key(layer), &key(to)), false)
    });
    let told = Adapter::load(other.path(), &config, None, &Device::cpu(1)).unwrap_err().to_string();
    assert!(told.contains("and another tensor both stand for"), "{told}");
}

/// Writes the tensors of a file as another one: each under the name that `change` gives, transposed (or else
/// as it is) in the files of mlx-lm; where it also says so, every value is moved.
fn rewrite(from: &Path, to: &Path, change: impl Fn(&str, &[usize]) -> (String, bool)) {
    let file = Checkpoint::open_file(from).unwrap();
    let transposes = to.ends_with("adapters.safetensors");
    let tensors: Vec<(TensorSpec, Vec<f32>)> = file
        .names()
        .map(|name| {
            let mut shape = file.tensor(name).unwrap().shape.clone();
            let (other, moved) = change(name, &shape);
            let mut values = vec![0.0; shape.iter().product()];
            file.read_part(name, 0, &mut values).unwrap();
            if moved {
                values.iter_mut().for_each(|v| *v += 1.0);
            }
            if transposes {
                let [rows, cols] = shape[..] else { panic!("a matrix") };
                values = (0..rows * cols).map(|i| values[i % rows * cols + i / rows]).collect();
                shape.reverse();
            }
            (TensorSpec { name: other, shape, dtype: StoredDType::F32 }, values)
        })
        .collect();
    let specs = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = CheckpointWriter::file(to, &BTreeMap::new(), specs).unwrap();
    for (spec, values) in &tensors {
        writer.write(&spec.name, MatrixRef::from_f32(1, values.len(), values)).unwrap();
    }
    writer.finish().unwrap();
}

/// PEFT's adapter of `llama3` (every linear layer, r 4, alpha 8) as mlx-lm would have written it, with these
/// settings changed.
fn of_mlx(changes: Value) -> TempDir {
    let folder = tempdir().unwrap();
    let from = fixture("llama3").join("adapter/adapter_model.safetensors");
    rewrite(&from, &folder.path().join("adapters.safetensors"), |name, _| {
        let name = name.trim_start_matches("base_model.model.");
        (name.replace(".lora_A.weight", ".lora_a").replace(".lora_B.weight", ".lora_b"), false)
    });
    let mut settings = json!({
        "adapter_path": "adapters", "batch_size": 4, "fine_tune_type": "lora", "iters": 10, "model": "tiny/llama3", "num_layers": 2,
        "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.1, "alpha": 16},
    });
    settings.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    fs::write(folder.path().join("adapter_config.json"), settings.to_string()).unwrap();
    folder
}

#[test]
fn an_adapter_of_mlx_lm_is_the_one_of_peft_with_the_same_numbers() {
    let config = Config::load(&fixture("llama3")).unwrap();
    let (expected, files) =
        Adapter::load(&fixture("llama3").join("adapter"), &config, None, &Device::cpu(2)).unwrap();
    let parts = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|p| format!("self_attn.{p}"));
    let keys: Vec<String> =
        parts.into_iter().chain(["gate_proj", "up_proj", "down_proj"].map(|p| format!("mlp.{p}"))).collect();
    let with_keys = json!({"lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys}});
    for changes in
        [json!({}), json!({"num_layers": -1}), json!({"num_layers": null, "lora_layers": 16}), with_keys]
    {
        let (got, read) =
            Adapter::load(of_mlx(changes.clone()).path(), &config, None, &Device::cpu(2)).unwrap();
        assert_eq!(read.resolution.targets, files.resolution.targets, "{changes}");
        assert_eq!(got.parameters.values().f32(), expected.parameters.values().f32(), "{changes}");
    }
    let (got, read) = Adapter::load(of_mlx(json!({})).path(), &config, None, &Device::cpu(2)).unwrap();
    assert_eq!((got.dropout, read.config.lora_alpha), (0.1, 8.0));
    assert_eq!(read.config.base_model_name_or_path.as_deref(), Some("tiny/llama3"));
}

macro_rules! refused_of_mlx {
    ($($name:ident: $changes:tt => $message:expr;)*) => {
        $(#[test]
        fn $name() {
            let got = open(of_mlx(json!($changes)).path(), "llama3").unwrap_err().to_string();
            assert!(got.contains($message), "{got}\nlacks\n{}", $message);
        })*
    };
}

refused_of_mlx! {
    dora_of_mlx_lm_is_refused: {"fine_tune_type": "dora"} => "`fine_tune_type` is dora; of mlx-lm's adapters only";
    full_weights_of_mlx_lm_are_refused: {"fine_tune_type": "full"} => "`fine_tune_type` is full; of mlx-lm's adapters only";
    an_old_dora_of_mlx_lm_is_refused: {"use_dora": true} => "`use_dora` is true; of mlx-lm's adapters only";
    mlx_lm_needs_its_parameters: {"lora_parameters": null} => "`lora_parameters` is missing";
    mlx_lm_needs_a_scale: {"lora_parameters": {"rank": 4}} => "`lora_parameters.scale` is missing";
    mlx_lm_needs_a_rank: {"lora_parameters": {"rank": 0, "scale": 1.0}} => "`lora_parameters.rank` is 0";
    another_rank_than_mlx_lms_tensors_have_is_refused: {"lora_parameters": {"rank": 3, "scale": 1.0}} => "has shape [4, 40] but needs [3, 40]";
    a_layer_that_mlx_lm_does_not_mean_is_refused: {"num_layers": 1}
        => "belongs to layer 0, but `num_layers` means the layers from 1 on";
    a_module_that_mlx_lm_does_not_name_is_refused: {"lora_parameters": {"rank": 4, "scale": 1.0, "keys": ["self_attn.q_proj"]}}
        => "belongs to no module that `lora_parameters.keys` names";
}

#[test]
fn a_module_that_mlx_lm_names_must_be_there() {
    let keys =
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj"];
    let keys: Vec<&str> = keys.into_iter().chain(["mlp.up_proj", "mlp.down_proj", "lm_head"]).collect();
    let folder = of_mlx(json!({"lora_parameters": {"rank": 4, "scale": 1.0, "keys": keys}}));
    let told = open(folder.path(), "llama2").unwrap_err().to_string();
    assert!(told.contains("`lm_head.lora_a` is missing, though `lora_parameters.keys`"), "{told}");
}
