//! Reading, overriding, checking, writing and comparing settings. What messages look like is held by
//! `tests/it`.

use super::*;

/// The whole of `RUN.yaml` with its defaults, as the manual shows it.
const DEFAULTS: &str = "
model: null
memory: null
precision: bf16
quantization: null
data:
  train: null
  eval: null
  eval_fraction: null
  format: auto
  oasst_paths: best
  oasst_languages: []
  train_on: assistant
  chat_template: null
  max_length: null
  on_overflow: truncate
  packing: true
  group_by_length: false
  shuffle: true
adapter:
  method: lora
  r: 16
  alpha: 32
  dropout: 0.0
  target_modules: all-linear
  target_parameters: []
  rslora: false
  init: default
  init_from: null
  rank_pattern: {}
  alpha_pattern: {}
  modules_to_save: []
  group_size: null
  pooling: null
optimizer:
  memory: null
  name: adamw
  learning_rate: null
  betas: [0.9, 0.999]
  eps: 1.0e-8
  weight_decay: 0.0
  max_grad_norm: 1.0
  lora_plus_ratio: 1.0
schedule:
  name: linear
  warmup: null
training:
  epochs: null
  max_steps: null
  batch_size: null
  micro_batch_tokens: auto
  checkpointing: auto
  activation_offloading: auto
  activation_precision: null
  frozen_activations: auto
  eval_every: null
  save_every: null
  keep_checkpoints: 2
  tensorboard: false
  early_stopping_patience: null
  forgetting_every: null
  forgetting_data: null
  forgetting_limit: null
  router_aux_loss: 0.0
  quantization_aware: null
  seed: 42
output: null
";

/// Every key away from its default, in the ways of writing that differ most.
const CHANGED: &str = "
model: 2024
memory: 1.5GiB
precision: f32
quantization: {type: fp4, block_size: 128}
data:
  train:
    - a.jsonl
    - {path: b.txt, format: text, weight: 0.25}
  eval: 'e: f.jsonl'
  format: messages
  oasst_paths: all
  oasst_languages: [en]
  train_on: completion
  chat_template: no
  max_length: 512
  on_overflow: drop
  packing: no
  group_by_length: true
  shuffle: false
adapter:
  method: dora
  r: 4
  alpha: 7.5
  dropout: 0.1
  target_modules: .*\\.(q|v)_proj
  target_parameters: [experts.down_proj]
  rslora: true
  init: gaussian
  init_from: adapters/old
  rank_pattern: {v_proj: 8, '.*q_proj': 2}
  alpha_pattern: {'layers\\.0\\..*': 1.5}
  modules_to_save: [lm_head]
  group_size: 64
  pooling: mean
optimizer:
  memory: 512MiB
  name: paged_adamw_8bit
  learning_rate: 1e-3
  betas: [0, 0.5]
  eps: 1e-6
  weight_decay: 0.1
  max_grad_norm: 0
  lora_plus_ratio: 16
schedule: {name: cosine, warmup: 10}
training:
  epochs: 3
  max_steps: 100
  batch_size: 2
  micro_batch_tokens: 4096
  checkpointing: none
  activation_offloading: 512MiB
  activation_precision: bf16
  frozen_activations: 64MiB
  eval_every: 10
  save_every: 20
  keep_checkpoints: 1
  tensorboard: true
  early_stopping_patience: 3
  forgetting_every: 20
  forgetting_data: g.jsonl
  forgetting_limit: 0.25
  router_aux_loss: 0.01
  quantization_aware: q8_0
  seed: 18446744073709551615
output: out/run 1
";

fn read(text: &str) -> Settings {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("RUN.yaml");
    std::fs::write(&path, text).unwrap();
    Settings::resolve(Some(&path), Vec::new()).unwrap()
}

fn with(sets: &[&str]) -> Settings {
    Settings::resolve(None, sets.iter().map(|set| Override::set(set).unwrap()).collect()).unwrap()
}

fn error(sets: &[&str]) -> String {
    match Settings::resolve(None, sets.iter().map(|set| Override::set(set).unwrap()).collect()) {
        Ok(settings) => settings.validate(Purpose::Train).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

/// An error in the settings beyond those that make them a whole run.
fn fault(sets: &[&str]) -> String {
    let whole = ["model=m", "data.train=d.jsonl", "output=o"];
    error(&[&whole, sets].concat())
}

#[test]
fn the_defaults_are_those_of_the_manual() {
    assert_eq!(read(DEFAULTS).run, RunFile::default());
    assert_eq!(read("").run, RunFile::default());
    assert_eq!(read("adapter:\n  # r: 8\n").run, RunFile::default(), "a section may be empty");
}

#[test]
fn a_written_file_reads_back_the_same_and_is_written_the_same_again() {
    for text in [DEFAULTS, CHANGED] {
        let run = read(text).run;
        let written = run.to_yaml().unwrap();
        let back = read(&written).run;
        assert_eq!(back, run, "{written}");
        assert_eq!(back.to_yaml().unwrap(), written);
    }
    assert_eq!(flatten(&RunFile::default()).len(), flatten(&read(CHANGED).run).len());
    for ((key, default), (_, changed)) in flatten(&RunFile::default()).iter().zip(flatten(&read(CHANGED).run))
    {
        assert!(*default != changed || key == "data.eval_fraction", "{key} is tried only with its default");
    }
}

#[test]
fn values_mean_what_their_key_expects_whatever_yaml_takes_them_for() {
    let run = read(CHANGED).run;
    assert_eq!(run.model.as_deref(), Some("2024"));
    assert_eq!(run.data.chat_template.as_deref(), Some("no"));
    assert!(!run.data.packing);
    assert_eq!(run.memory, Some(ByteSize(3 << 29)));
    assert_eq!(run.adapter.rank_pattern.0, [("v_proj".to_owned(), 8), (".*q_proj".to_owned(), 2)]);
    assert_eq!(run.adapter.target_modules, TargetModules::Regex(r".*\.(q|v)_proj".into()));
    assert_eq!(run.optimizer.betas, [0.0, 0.5]);
    for (text, meant) in [
        ("auto", Offloading::Auto),
        ("no", Offloading::Never),
        ("true", Offloading::Within(ByteSize(4 << 20))),
        ("8192", Offloading::Within(ByteSize(8192))),
    ] {
        let sets =
            ["activation_offloading", "frozen_activations"].map(|key| format!("training.{key}={text}"));
        let training = with(&[&sets[0], &sets[1]]).run.training;
        assert_eq!([training.activation_offloading, training.frozen_activations], [meant; 2], "{text}");
    }
    let sources = run.data.sources();
    assert_eq!(sources[0], Source { path: "a.jsonl".into(), format: Some(Format::Messages), weight: 1.0 });
    assert_eq!(sources[1], Source { path: "b.txt".into(), format: Some(Format::Text), weight: 0.25 });
}

#[test]
fn later_settings_win_over_earlier_ones_and_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("RUN.yaml");
    std::fs::write(&path, "model: a\nadapter: {r: 4, alpha: 8}\n").unwrap();
    let overrides = vec![
        Override::set("adapter.r=8").unwrap(),
        Override::set("adapter.target_modules=[q_proj, v_proj]").unwrap(),
        Override::set("data.eval=a=b.jsonl").unwrap(),
        Override::set("training.max_steps=").unwrap(),
        Override::flag("--model", "model", "null"),
    ];
    let run = Settings::resolve(Some(&path), overrides).unwrap().run;
    assert_eq!((run.adapter.r, run.adapter.alpha), (8, 8.0));
    assert_eq!(run.adapter.target_modules, TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]));
    assert_eq!(run.data.eval, Some("a=b.jsonl".into()));
    assert_eq!(run.training.max_steps, None);
    assert_eq!(run.model.as_deref(), Some("null"), "a flag's value is taken as it is");
}

#[test]
fn sizes_are_read_in_binary_and_decimal_units_and_written_exactly() {
    for (text, bytes) in [
        ("12GiB", 12 << 30),
        ("48GB", 48_000_000_000),
        ("512MiB", 512 << 20),
        ("1.5gib", 3 << 29),
        ("1000", 1000),
        ("7 KB", 7000),
        ("12345B", 12345),
    ] {
        let size: ByteSize = text.parse().unwrap();
        assert_eq!(size.0, bytes, "{text}");
        assert_eq!(size.to_string().parse(), Ok(size), "{size}");
    }
    assert_eq!("12GiB".parse::<ByteSize>().unwrap().to_string(), "12GiB");
    for bad in ["", "GB", "12G", "-1GB", "1.2.3GB", "1e3", "99999999TiB", "12 bytes"] {
        assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
    }
}

#[test]
fn what_a_run_cannot_do_without_is_asked_for() {
    assert!(error(&[]).starts_with("`model` is required"));
    assert!(error(&["model=m"]).starts_with("`data.train` is required"));
    assert!(error(&["model=m", "data.train=d"]).starts_with("`output` is required"));
    with(&["model=m", "data.train=d"]).validate(Purpose::Preview).unwrap();
    with(&[]).validate(Purpose::Other).unwrap();
    with(&["model=m", "data.train=d", "output=o"]).validate(Purpose::Train).unwrap();
}

#[test]
fn a_key_is_set_by_itself_and_not_by_its_neighbours() {
    let settings = with(&["adapter.init_from=a", "training.checkpointing=block"]);
    for (key, set) in [
        ("adapter.init_from", true),
        ("training.checkpointing", true),
        ("adapter.r", false),
        ("training.batch_size", false),
        ("data.max_length", false),
    ] {
        assert_eq!(settings.is_set(key), set, "{key}");
    }
    assert!(read("data:\n  max_length: 2048\n").is_set("data.max_length"), "set to the default is set");
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    for set in [
        "memory=0GB",
        "data.train=[]",
        "data.eval_fraction=0",
        "data.eval_fraction=1.0",
        "data.max_length=1",
        "adapter.r=0",
        "adapter.alpha=0",
        "adapter.alpha=-1",
        "adapter.alpha=1.1e9",
        "adapter.dropout=0.995",
        "adapter.dropout=1",
        "adapter.dropout=-0.1",
        "adapter.target_modules=[]",
        "adapter.rank_pattern={q_proj: 0}",
        "adapter.rank_pattern={q_proj: 65537}",
        "adapter.alpha_pattern={q_proj: 0}",
        "adapter.alpha_pattern={q_proj: 1.1e9}",
        "optimizer.learning_rate=0",
        "optimizer.learning_rate=1e39",
        "optimizer.learning_rate=1e-60",
        "optimizer.betas=[0.9, 1]",
        "optimizer.eps=0",
        "optimizer.eps=1e-60",
        "optimizer.eps=1e39",
        "optimizer.weight_decay=-1",
        "optimizer.weight_decay=1e39",
        "optimizer.max_grad_norm=-1",
        "optimizer.max_grad_norm=1e39",
        "optimizer.lora_plus_ratio=0",
        "optimizer.lora_plus_ratio=1e39",
        "optimizer.memory=4095",
        "schedule.warmup=-1",
        "schedule.warmup=1.5",
        "training.epochs=0",
        "training.max_steps=0",
        "training.batch_size=0",
        "training.micro_batch_tokens=0",
        "training.activation_offloading=4095",
        "training.frozen_activations=4095",
        "training.eval_every=0",
        "training.eval_every=10",
        "training.save_every=0",
        "training.keep_checkpoints=0",
        "training.early_stopping_patience=1",
    ] {
        let key = set.split('=').next().unwrap();
        let message = fault(&[set]);
        assert!(message.starts_with(&format!("--set {set}: `{key}` ")), "{set}: {message}");
    }
    let small = fault(&["optimizer.memory=4095"]);
    assert!(small.contains("`optimizer.memory` must be 4096 bytes or more, or null"), "{small}");
    for set in ["training.activation_offloading=true", "training.activation_precision=bf16"] {
        let message = fault(&["training.checkpointing=none", set]);
        assert!(message.contains("checkpointing: none") && message.contains("auto or block"), "{message}");
        with(&["training.checkpointing=auto", set]).validate(Purpose::Other).unwrap();
    }
    let both = fault(&["data.eval=e.jsonl", "data.eval_fraction=0.1"]);
    assert!(both.contains("`data.eval_fraction` and `data.eval` exclude each other"), "{both}");
    let packed = fault(&["data.group_by_length=true"]);
    let expected = "--set data.group_by_length=true: `data.group_by_length` sorts single examples by length, and packed rows are \
                    all of one: set data.packing: false, or leave it out";
    assert_eq!(packed, expected);
    let sorted = fault(&["data.packing=false", "data.shuffle=false", "data.group_by_length=true"]);
    assert!(
        sorted.contains("`data.group_by_length` changes the order that `data.shuffle: false` keeps"),
        "{sorted}"
    );
    for set in ["data.oasst_paths=all", "data.oasst_languages=[en]"] {
        let message = fault(&["data.format=messages", set]);
        assert!(message.ends_with("belongs to data.format: oasst, or auto"), "{message}");
        with(&["data.format=messages", "data.train=[{path: a, format: oasst}]", set])
            .validate(Purpose::Other)
            .unwrap();
    }
    let full = fault(&["adapter.method=full", "adapter.init_from=a"]);
    assert!(full.contains("`adapter.init_from`"), "{full}");
    for settings in [
        &["adapter.init=loftq"][..],
        &["adapter.init=pissa", "adapter.init_from=a"],
        &["adapter.init=olora", "adapter.method=full"],
        &["adapter.init=orthogonal", "adapter.method=full"],
    ] {
        let message = fault(settings);
        assert!(message.contains("`adapter.init`"), "{message}");
    }
    with(&["adapter.init=loftq", "quantization=nf4"]).validate(Purpose::Other).unwrap();
}

#[test]
fn what_later_versions_bring_is_known_and_refused() {
    for set in ["data.format=preference", "data.train=[{path: a, format: preference}]"] {
        let key = set.split('=').next().unwrap();
        let message = fault(&[set]);
        assert!(
            message.contains(&format!("`{key}`")) && message.contains("not supported yet"),
            "{set}: {message}"
        );
    }
}

#[test]
fn wrong_types_name_the_key_the_value_and_what_is_allowed() {
    for (set, message) in [
        ("adapter.r=many", "`adapter.r`: expected a whole number of 0 or more, found `many`"),
        ("adapter.r=-1", "`adapter.r`: expected a whole number of 0 or more, found `-1`"),
        ("adapter.r=", "`adapter.r`: expected a whole number of 0 or more, found nothing"),
        ("adapter=lora", "`adapter`: expected a section of keys, found `lora`"),
        ("data.packing=1", "`data.packing`: expected true or false, found `1`"),
        ("model=[a]", "`model`: expected text, found a list"),
        ("precision=fp16", "`precision`: expected bf16 or f32, found `fp16`"),
        ("precision=null", "`precision`: expected bf16 or f32, found nothing"),
        ("memory=12G", "`memory`: expected a size such as 12GiB, 48GB or 512MiB, found `12G`"),
        (
            "quantization=int5",
            "`quantization`: expected nf4, fp4, int4, int3, int2, {type, double_quant, block_size} or {type, group_size}, \
             found `int5`",
        ),
        ("quantization={block_size: 64}", "`quantization` lacks the key `type`"),
        ("optimizer.betas=[0.9]", "`optimizer.betas`: expected a list of 2, found a list of 1"),
        ("optimizer.betas=[1, 2, 3]", "`optimizer.betas`: expected a list of 2, found a list of 3"),
        ("optimizer.betas=[0.9, x]", "`optimizer.betas.1`: expected a number, found `x`"),
        (
            "training.micro_batch_tokens=all",
            "`training.micro_batch_tokens`: expected auto or a number of tokens, found `all`",
        ),
        (
            "adapter.target_modules={a: b}",
            "`adapter.target_modules`: expected all-linear, a list of module names or a regular expression, found a section of keys",
        ),
        (
            "data.train=[{path: a, wieght: 2}]",
            "unknown key `data.train.0.wieght`; did you mean `data.train.0.weight`?",
        ),
        (
            "adapter.rank_pattern={q: x}",
            "`adapter.rank_pattern.q`: expected a whole number of 0 or more, found `x`",
        ),
        ("adapter.r.x=1", "`adapter.r`: expected a whole number of 0 or more, found a section of keys"),
        ("model.x=1", "`model`: expected text, found a section of keys"),
        (
            "training.activation_offloading=disk",
            "`training.activation_offloading`: expected auto, true, false or a size such as 512MiB, found `disk`",
        ),
        (
            "training.frozen_activations=memory",
            "`training.frozen_activations`: expected auto, true, false or a size such as 512MiB, found `memory`",
        ),
        (
            "training.enable_activation_offloading=true",
            "unknown key `training.enable_activation_offloading`; did you mean `training.activation_offloading`?",
        ),
        ("training.activation_precision=f32", "`training.activation_precision`: expected bf16, found `f32`"),
        ("seed=1", "unknown key `seed`; did you mean `training.seed`?"),
        ("lora_alpha=1", "unknown key `lora_alpha`; did you mean `adapter.alpha`?"),
        ("adapter.use_dora=true", "unknown key `adapter.use_dora`; did you mean `adapter.method: dora`?"),
        ("optimizer.lr=1", "unknown key `optimizer.lr`; did you mean `optimizer.learning_rate`?"),
        ("optimizer.warmup=1", "unknown key `optimizer.warmup`; did you mean `schedule.warmup`?"),
        ("xyzzy=1", "unknown key `xyzzy`\nknown keys: model,"),
        ("optimizer.learning_rate=.nan", "non-finite"),
        ("model=[a", "this is not valid YAML"),
    ] {
        let result = Override::set(set).and_then(|o| Settings::resolve(None, vec![o]));
        let error = result.map(|settings| settings.run).unwrap_err().to_string();
        assert!(error.starts_with(&format!("--set {set}: ")) && error.contains(message), "{set}: {error}");
    }
    for set in ["model", "=m", "adapter..r=1", ""] {
        assert!(Override::set(set).unwrap_err().to_string().contains("expected key.path=value"));
    }
}

#[test]
fn a_run_goes_on_under_the_settings_it_began_with() {
    let saved = with(&["training.max_steps=10", "adapter.rank_pattern={q_proj: 4}", "output=a"]).run;
    let now = |sets: &[&str]| {
        let before = ["training.max_steps=10", "adapter.rank_pattern={q_proj: 4}", "output=b"];
        differences(&saved, &with(&[&before, sets].concat()).run)
    };
    assert_eq!(now(&[]), []);
    assert_eq!(now(&["training.max_steps=20", "training.epochs=3"]), []);
    assert_eq!(now(&["training.max_steps=null"]), []);
    assert_eq!(now(&["optimizer.memory=8KiB", "memory=12GiB"]), []);
    assert_eq!(now(&["training.checkpointing=block", "training.activation_offloading=true"]), []);
    assert_eq!(now(&["training.frozen_activations=false", "training.tensorboard=true"]), []);
    assert_eq!(now(&["training.activation_precision=bf16"]).len(), 1);
    let difference = |key: &str, saved: &str, now: &str| Difference {
        key: key.into(),
        saved: saved.into(),
        now: now.into(),
    };
    assert_eq!(now(&["training.max_steps=5"]), [difference("training.max_steps", "10", "5")]);
    assert_eq!(
        now(&["adapter.rank_pattern={}", "precision=f32"]),
        [
            difference("precision", "\"bf16\"", "\"f32\""),
            difference("adapter.rank_pattern", "{\"q_proj\":4}", "{}")
        ]
    );
    let other = with(&["training.batch_size=4"]).run;
    let message = check_resume(&with(&["training.batch_size=8"]).run, &other).unwrap_err().to_string();
    assert!(message.contains("training.batch_size: 8 when the run began, 4 now"), "{message}");
}

#[test]
fn what_is_left_open_is_taken_from_a_run_that_goes_on() {
    let settled = ["training.batch_size=3", "training.micro_batch_tokens=96", "schedule.warmup=0.03"];
    let saved = with(&settled).run;
    let mut run = with(&[]).run;
    run.adopt_settled(&saved);
    assert_eq!(run, saved);
    let mut other = with(&["training.batch_size=8"]).run;
    other.adopt_settled(&saved);
    assert_eq!(differences(&saved, &other).len(), 1, "what is set is compared");
}
