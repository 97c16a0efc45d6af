//! Adapter folders: PEFT's own come in and go out byte for byte, others are refused with their reason.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use compute::{DType, Matrix, MatrixRef};
use model::adapter::peft::folder::AdapterFolder;
use model::adapter::peft::targets;
use model::adapter::peft::{
    AdapterTensor, PeftConfig, Pooling, QaLora, Selection, a_key, b_key, key_prefix, scaling, write_adapter,
};
use model::{Checkpoint, Config, ModuleId, Part};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::fixture;

const ADAPTERS: [(&str, &str); 7] = [
    ("llama2", "adapter-lm_head"),
    ("llama2", "adapter-patterns"),
    ("llama2", "adapter-regex"),
    ("llama3", "adapter"),
    ("mistral", "adapter"),
    ("qwen2", "adapter"),
    ("qwen3", "adapter"),
];

fn config_error(changes: Value) -> String {
    let mut json = json!({"peft_type": "LORA", "target_modules": ["q_proj"], "r": 8, "lora_alpha": 16});
    json.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let path = Path::new("a/adapter_config.json");
    PeftConfig::from_json(&json.to_string(), path).expect_err("these settings are refused").to_string()
}

/// The fields of PEFT 0.5's `LoraConfig` that a plain adapter has.
const PLAIN: [&str; 12] = [
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "target_modules",
    "task_type",
];

#[test]
fn settings_are_written_as_peft_writes_them_without_what_is_not_used() {
    for (case, adapter) in ADAPTERS {
        let text = fs::read_to_string(fixture(case).join(adapter).join("adapter_config.json")).unwrap();
        let theirs: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
        let config = PeftConfig::from_json(&text, Path::new(adapter)).unwrap();
        let kept =
            |field: &str| PLAIN.contains(&field) || (adapter.ends_with("patterns") && USED.contains(&field));
        const USED: [&str; 3] = ["alpha_pattern", "rank_pattern", "use_rslora"];
        let expected: BTreeMap<&String, &Value> = theirs.iter().filter(|(field, _)| kept(field)).collect();
        assert_eq!(config.to_json(), serde_json::to_string_pretty(&expected).unwrap(), "{case}/{adapter}");
    }
}

#[test]
fn targets_are_written_as_names_that_select_the_same_layers() {
    let model = Config::load(&fixture("llama2")).unwrap();
    let expression = |text: &str| Some(Selection::Expression(text.into()));
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let some = ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"];
    let whole = |module: &str| vec![module.to_owned()];
    for (target_modules, modules_to_save, names) in [
        (expression("all-linear"), vec![], Some(&all[..])),
        (expression("all-linear"), whole("lm_head"), Some(&all)),
        (expression("all-linear"), whole("layers.0.self_attn.q_proj"), None),
        (expression(".*(down_proj|lm_head)"), vec![], Some(&["down_proj", "lm_head"])),
        (expression(r"model\.layers\.1\..*(q|up)_proj"), vec![], Some(&some)),
        (None, vec![], Some(&["q_proj", "v_proj"])),
        // What a person listed stands as it was written.
        (Some(Selection::List(vec!["v_proj".into(), "layers.0.mlp.up_proj".into()])), vec![], None),
    ] {
        let settings = PeftConfig { target_modules, modules_to_save, ..PeftConfig::default() };
        let resolution = targets::resolve(&settings, &model).unwrap();
        let settled = settings.clone().settled(&resolution, &model);
        let Some(Selection::List(list)) = &settled.target_modules else { panic!("{settled:?}") };
        if let Some(names) = names {
            assert_eq!(list, names);
        }
        // Older versions look for targets among the modules trained whole, too: names must select no other
        // there either.
        let alone = PeftConfig { modules_to_save: vec![], ..settled.clone() };
        assert_eq!(targets::resolve(&alone, &model).unwrap().targets, resolution.targets, "{list:?}");
    }
}

#[test]
fn settings_come_back_as_they_were() {
    let config = PeftConfig {
        r: 3,
        lora_alpha: 2.5,
        lora_dropout: 0.05,
        use_rslora: true,
        use_dora: true,
        qalora: Some(QaLora { group: 4, pooling: Pooling::Peft }),
        fan_in_fan_out: false,
        target_modules: Some(Selection::List(vec!["q_proj".into(), "lm_head".into()])),
        exclude_modules: Some(Selection::Expression(".*0.*".into())),
        layers_to_transform: Some(vec![0, 2]),
        layers_pattern: vec!["layers".into()],
        rank_pattern: vec![("z".into(), 4), ("a".into(), 2)], // the order counts
        alpha_pattern: vec![("z".into(), 4.0), ("a".into(), 0.5)],
        target_parameters: vec!["mlp.experts.gate_up_proj".into()],
        modules_to_save: vec!["norm".into()],
        init_lora_weights: json!("gaussian"),
        base_model_name_or_path: Some("owner/name".into()),
        revision: Some("main".into()),
    };
    assert_eq!(PeftConfig::from_json(&config.to_json(), Path::new("x")).unwrap(), config);
}

#[test]
fn settings_of_old_versions_take_pefts_defaults() {
    let config = PeftConfig::from_json(r#"{"peft_type": "LORA"}"#, Path::new("x")).unwrap();
    assert_eq!(config, PeftConfig::default());
}

#[test]
fn unknown_settings_that_are_off_are_let_pass() {
    let json =
        json!({"peft_type": "LORA", "use_new": false, "new_config": null, "new_map": {}, "new_list": []});
    PeftConfig::from_json(&json.to_string(), Path::new("x")).unwrap();
}

#[test]
fn the_scale_is_pefts() {
    assert_eq!(scaling(16, 32.0, false), 2.0);
    assert_eq!(scaling(16, 32.0, true), 8.0);
    assert_eq!(scaling(3, 5.0, true), (5.0 / 3f64.sqrt()) as f32);
}

macro_rules! refused {
    ($($name:ident: $changes:tt => $message:expr;)*) => {
        $(#[test]
        fn $name() {
            let got = config_error(json!($changes));
            assert!(got.starts_with("a/adapter_config.json: `"), "{got}");
            assert!(got.contains($message), "{got}\nlacks\n{}", $message);
        })*
    };
}

refused! {
    another_method_is_refused: {"peft_type": "IA3"} => "`peft_type` is \"IA3\"; only \"LORA\" adapters are supported";
    a_missing_method_is_refused: {"peft_type": null} => "`peft_type` is missing";
    another_task_is_refused: {"task_type": "SEQ_CLS"} => "`task_type` is \"SEQ_CLS\"";
    biases_are_not_supported: {"bias": "lora_only"} => "`bias` is \"lora_only\", which is not supported: trained biases";
    layer_replication_is_not_supported: {"layer_replication": [[0, 4], [2, 5]]} => "`layer_replication` is [[0,4],[2,5]]";
    target_parameters_are_a_list: {"target_parameters": "experts.w"} => "expected a list of names";
    trainable_tokens_are_not_supported: {"trainable_token_indices": [1, 2]} => "`trainable_token_indices` is [1,2]";
    lora_bias_is_not_supported: {"lora_bias": true} => "`lora_bias` is true";
    groups_of_qalora_are_numbers: {"use_qalora": true, "qalora_group_size": 0} => "`qalora_group_size` is 0";
    alora_is_not_supported: {"alora_invocation_tokens": [5]} => "`alora_invocation_tokens` is [5]";
    an_unknown_setting_that_is_on_is_refused: {"use_magic": true} => "`use_magic` is true, but this setting is not known";
    a_misspelt_setting_names_the_nearest: {"lora_alhpa": 4} => "the nearest is `lora_alpha`";
    a_changed_base_is_refused: {"init_lora_weights": "pissa_niter_4"} => "`init_lora_weights` is \"pissa_niter_4\": such an adapter fits only the base that was changed with it";
    a_rank_of_zero_is_refused: {"r": 0} => "`r` is 0";
    a_huge_rank_is_refused: {"r": 99999999} => "`r` is 99999999";
    a_rank_as_text_is_refused: {"r": "8"} => "`r` is \"8\"";
    an_alpha_that_is_no_number_is_refused: {"lora_alpha": "x"} => "`lora_alpha` is \"x\"";
    a_dropout_above_one_is_refused: {"lora_dropout": 1.5} => "`lora_dropout` is 1.5";
    a_rank_pattern_must_have_ranks: {"rank_pattern": {"q_proj": 0}} => "`rank_pattern[\"q_proj\"]` is 0; expected a rank";
    an_alpha_pattern_must_have_numbers: {"alpha_pattern": {"q_proj": "1"}} => "expected a number";
    targets_must_be_names: {"target_modules": [1]} => "`target_modules` is [1]; expected a list of names";
    layers_must_be_numbers: {"layers_to_transform": ["a"]} => "`layers_to_transform` is [\"a\"]";
}

/// PEFT's adapter of a fixture, copied so that it may be damaged.
fn copied(case: &str, adapter: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(case).join(adapter)).unwrap().flatten() {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn set(folder: &Path, field: &str, value: Value) {
    let path = folder.join("adapter_config.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    json[field] = value;
    fs::write(path, json.to_string()).unwrap();
}

fn open(folder: &Path, case: &str) -> Result<AdapterFolder, String> {
    let config = Config::load(&fixture(case)).unwrap();
    AdapterFolder::open(folder, &config, None).map_err(|e| e.to_string())
}

#[test]
fn every_adapter_of_peft_is_opened() {
    for (case, adapter) in ADAPTERS {
        let config = Config::load(&fixture(case)).unwrap();
        let opened = AdapterFolder::open(&fixture(case).join(adapter), &config, None).unwrap();
        assert_eq!(opened.notes, [""; 0], "{case}/{adapter}");
        for target in &opened.resolution.targets {
            let module = config.module(target.module);
            let mut a = Matrix::zeros(target.rank, module.cols, DType::F32);
            let mut b = Matrix::zeros(module.rows, target.rank, DType::F32);
            opened.read_into(&a_key(&target.path), a.as_mut()).unwrap();
            opened.read_into(&b_key(&target.path), b.as_mut()).unwrap();
        }
    }
}

#[test]
fn the_base_weight_that_peft_stores_with_a_head_is_reported() {
    let opened = open(&fixture("llama2").join("adapter-lm_head"), "llama2").unwrap();
    let told: Vec<(&str, String)> =
        opened.base_tensors.iter().map(|t| (t.key.as_str(), t.parameter.name())).collect();
    assert_eq!(told, [("base_model.model.lm_head.base_layer.weight", "lm_head.weight".to_owned())]);
    assert!(opened.resolution.targets.iter().any(|t| t.module == ModuleId::Head));
}

#[test]
fn another_bases_name_is_a_note() {
    let config = Config::load(&fixture("llama3")).unwrap();
    let folder = fixture("llama3").join("adapter");
    let notes = AdapterFolder::open(&folder, &config, Some("other/base")).unwrap().notes;
    assert_eq!(
        notes,
        ["the adapter was trained on \"tiny/llama3\" and is used with \"other/base\"; its shapes fit"]
    );
    assert!(AdapterFolder::open(&folder, &config, Some("tiny/llama3/")).unwrap().notes.is_empty());
}

#[test]
fn an_adapter_of_another_base_is_refused_with_both_shapes() {
    let got = open(&fixture("llama3").join("adapter"), "llama2").unwrap_err();
    assert!(got.contains("has shape [") && got.contains("but needs ["), "{got}");
    assert!(got.contains("the adapter was trained on \"tiny/llama3\": use it with that model"), "{got}");
}

#[test]
fn a_rank_that_is_not_the_files_is_refused() {
    let folder = copied("llama3", "adapter");
    set(folder.path(), "r", json!(5));
    let got = open(folder.path(), "llama3").unwrap_err();
    assert!(
        got.contains("has shape [4, ") && got.contains("but needs [5, ") && got.contains("(r 5; "),
        "{got}"
    );
}

#[test]
fn a_missing_tensor_is_an_error() {
    let folder = copied("llama2", "adapter-regex");
    set(folder.path(), "target_modules", json!(["q_proj", "v_proj", "o_proj"]));
    let got = open(folder.path(), "llama2").unwrap_err();
    assert!(got.contains(".lora_A.weight` is missing (the nearest is"), "{got}");
}

#[test]
fn an_unknown_tensor_is_an_error() {
    let folder = copied("llama3", "adapter");
    set(folder.path(), "target_modules", json!(["q_proj"]));
    let got = open(folder.path(), "llama3").unwrap_err();
    assert!(
        got.contains("is not called for by adapter_config.json on this model (the nearest that is: `"),
        "{got}"
    );
}

#[test]
fn settings_that_do_not_fit_the_model_name_the_file() {
    let folder = copied("llama3", "adapter");
    set(folder.path(), "target_modules", json!(["c_attn"]));
    let got = open(folder.path(), "llama3").unwrap_err();
    assert!(
        got.contains("adapter_config.json: `target_modules` names \"c_attn\", which the model does not have"),
        "{got}"
    );
    assert!(got.ends_with("; the adapter was trained on \"tiny/llama3\""), "{got}");
}

#[test]
fn names_without_effect_are_only_a_note_in_a_folder_of_pefts() {
    let folder = copied("llama3", "adapter");
    set(folder.path(), "exclude_modules", json!(["c_attn"]));
    let notes = open(folder.path(), "llama3").unwrap().notes;
    assert!(
        notes[0].contains("`exclude_modules` names \"c_attn\", which the model does not have"),
        "{notes:?}"
    );
}

#[test]
fn a_pickle_is_refused() {
    let folder = copied("llama3", "adapter");
    fs::rename(folder.path().join("adapter_model.safetensors"), folder.path().join("adapter_model.bin"))
        .unwrap();
    let got = open(folder.path(), "llama3").unwrap_err();
    assert!(got.contains("has its weights only as adapter_model.bin, a Python pickle"), "{got}");
}

#[test]
fn a_model_folder_is_not_an_adapter() {
    let got = open(&fixture("llama3"), "llama3").unwrap_err();
    assert!(got.starts_with("cannot read ") && got.contains("adapter_config.json"), "{got}");
}

#[test]
fn what_is_written_is_read_again() {
    let config = Config::load(&fixture("qwen2")).unwrap();
    let settings = PeftConfig { r: 2, modules_to_save: vec!["norm".into()], ..PeftConfig::default() };
    let resolution = model::adapter::peft::targets::resolve(&settings, &config).unwrap();
    let values: Vec<f32> = (0..4096).map(|i| i as f32 * 0.25).collect();
    let mut tensors = Vec::new();
    let mut add = |key: String, shape: &[usize]| {
        let elements = shape.iter().product();
        let values = MatrixRef::from_f32(1, elements, &values[..elements]);
        tensors.push(AdapterTensor { key, shape: shape.to_vec(), values });
    };
    for target in &resolution.targets {
        let module = config.module(target.module);
        add(a_key(&target.path), &[2, module.cols]);
        add(b_key(&target.path), &[module.rows, 2]);
    }
    for &module in &resolution.saved {
        add(format!("{}.weight", key_prefix(&config.path(module))), &[config.module(module).cols]);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/adapter");
    write_adapter(&path, &settings, &tensors).unwrap();

    let opened = AdapterFolder::open(&path, &config, None).unwrap();
    assert_eq!(opened.config, settings);
    let v = ModuleId::Linear { layer: 1, part: Part::V };
    let module = config.module(v);
    let mut b = Matrix::zeros(module.rows, 2, DType::F32);
    opened.read_into(&b_key(&config.path(v)), b.as_mut()).unwrap();
    assert_eq!(b.to_vec(), values[..module.rows * 2]);
    let metadata = Checkpoint::open_file(&path.join("adapter_model.safetensors")).unwrap().metadata().clone();
    assert_eq!(metadata, BTreeMap::from([("format".to_owned(), "pt".to_owned())]));
    let files: Vec<String> = fs::read_dir(&path)
        .unwrap()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(files.len(), 2, "{files:?}");
}
