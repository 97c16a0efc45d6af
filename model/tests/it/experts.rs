//! Mixtures of experts: adapters over all experts as PEFT has them, the loss of their load, and choices at
//! the edges.

use compute::{Device, Precision};
use model::adapter::init::Init;
use model::adapter::peft::files::save_adapter;
use model::adapter::peft::folder::AdapterFolder;
use model::adapter::peft::targets;
use model::adapter::peft::{CONFIG_FILE, PeftConfig, Selection, WEIGHTS_FILE};
use model::memory::{Allocator, Component};
use model::{
    Activations, Adapter, Batch, Checkpoint, Checkpointing, Config, Decoder, Extent, Keeping, Layout,
    Parameters, Purpose, Run,
};

use crate::common::{
    Tensors, all_logits, check_merged, fixture, largest_difference, load, relative_difference,
    training_buffers,
};

const CASES: [&str; 2] = ["qwen3-moe", "mixtral"];

fn open(case: &str, name: &str, config: &Config) -> (Adapter, AdapterFolder) {
    Adapter::load(&fixture(case).join(name), config, None, &Device::cpu(2)).unwrap()
}

/// The labelled sequences of a fixture.
fn labelled(expected: &Tensors) -> Batch {
    let mut batch = Batch::new();
    for i in 0..2 {
        batch.push(&expected.ids(&format!("input_ids.{i}")), &expected.labels(&format!("labels.{i}")));
    }
    batch
}

/// The mean loss of a batch, that of the load of its experts, and all gradients of the first and
/// `router_aux_loss` times the second.
fn gradients(
    decoder: &Decoder,
    adapter: &Adapter,
    batch: &Batch,
    router_aux_loss: f32,
    checkpointing: Checkpointing,
) -> (f64, f64, Parameters) {
    let layout = &adapter.layout;
    let purpose = Purpose::Train(checkpointing);
    let (tokens, precision) = (batch.tokens(), decoder.precision);
    let extent = Extent { tokens, positions: tokens, purpose, precision };
    let mut buffers =
        Activations::new(&decoder.config, layout, 0.0, extent, &mut Allocator::real(&Device::cpu(2)));
    let mut gradients =
        Parameters::zeros(layout, Component::Gradients, &mut Allocator::real(&Device::cpu(2)));
    let mut losses = vec![0.0; batch.targets.len()];
    let scale = 1.0 / losses.len() as f32;
    let run = Run { router_aux_loss, ..decoder.run(Some(adapter)) };
    let weights = vec![scale; losses.len()];
    decoder.forward_to_train(&run, batch, &mut buffers).unwrap();
    decoder.backward(&run, batch, &weights, &mut buffers, &mut losses, &mut gradients).unwrap();
    let loss = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64;
    (loss, buffers.router_aux_loss(), gradients)
}

#[test]
fn adapters_over_experts_have_the_logits_losses_and_gradients_of_peft() {
    for case in CASES {
        let decoder = load(case);
        let (adapter, files) = open(case, "adapter-experts", &decoder.config);
        let expected = Tensors::read(&fixture(case).join("expected_adapter-experts.safetensors"));
        let batch = labelled(&expected);
        let (loss, _, got) = gradients(&decoder, &adapter, &batch, 0.0, Checkpointing::None);
        let want = expected.get("loss")[0];
        assert!((loss - want).abs() < 1e-5 * want, "{case}: loss {loss}, not {want}");
        // Gradients in the order of PEFT's tensors, as an adapter's file has them.
        let folder = tempfile::tempdir().unwrap();
        save_adapter(folder.path(), &files.config, &adapter.layout, &got).unwrap();
        let written = Tensors::read(&folder.path().join(WEIGHTS_FILE));
        let mut known = 0;
        for (name, key) in expected.names().filter_map(|n| Some((n, n.strip_prefix("grad.")?))) {
            let values: Vec<f32> = written.get(key).iter().map(|&v| v as f32).collect();
            let difference = relative_difference(&values, expected.get(name));
            assert!(difference < 2e-5, "{case}: gradient of {key} is off by {difference}");
            known += 1;
        }
        assert_eq!(known, adapter.layout.tensors().len(), "{case}: number of trained tensors");
        if expected.names().any(|name| name == "logits") {
            let mut batch = Batch::new();
            batch.push_unlabelled(&expected.ids("input_ids"));
            let mut buffers = training_buffers(&decoder, &adapter.layout, 0.0, batch.tokens());
            let logits = all_logits(&decoder, &decoder.run(Some(&adapter)), &batch, &mut buffers);
            let difference = largest_difference(logits.as_ref().f32(), expected.get("logits"));
            assert!(difference < 1e-4, "{case}: logits are off by {difference}");
        }
    }
}

#[test]
fn adapters_over_experts_are_written_as_they_were_read() {
    for case in CASES {
        let config = Config::load(&fixture(case)).unwrap();
        let (adapter, files) = open(case, "adapter-experts", &config);
        let folder = tempfile::tempdir().unwrap();
        let settings = files.config.clone().settled(&files.resolution, &config);
        assert_eq!(settings, files.config);
        save_adapter(folder.path(), &settings, &adapter.layout, &adapter.parameters).unwrap();
        let theirs = fixture(case).join("adapter-experts");
        let [ours, theirs] =
            [folder.path(), &theirs].map(|f| Checkpoint::open_file(&f.join(WEIGHTS_FILE)).unwrap());
        assert_eq!(ours.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>());
        for name in ours.names() {
            let bytes = |from: &Checkpoint| {
                let mut bytes = vec![0; from.tensor(name).unwrap().size_bytes() as usize];
                from.read_bytes(name, 0, &mut bytes).unwrap();
                (from.tensor(name).unwrap().shape.clone(), bytes)
            };
            assert_eq!(bytes(&ours), bytes(&theirs), "{case}: {name}");
        }
        let (again, files) = Adapter::load(folder.path(), &config, None, &Device::cpu(2)).unwrap();
        assert_eq!(again.parameters.values().f32(), adapter.parameters.values().f32());
        assert_eq!(files.config, settings);
    }
}

#[test]
fn adapters_of_experts_one_by_one_have_the_logits_of_peft_and_are_written_as_over_all() {
    let decoder = load("mixtral");
    let (adapter, files) = open("mixtral", "adapter-per-expert", &decoder.config);
    let expected = Tensors::read(&fixture("mixtral").join("expected_adapter-per-expert.safetensors"));
    let mut batch = Batch::new();
    batch.push_unlabelled(&expected.ids("input_ids"));
    let logits = |adapter: &Adapter| {
        let mut buffers = training_buffers(&decoder, &adapter.layout, 0.0, batch.tokens());
        all_logits(&decoder, &decoder.run(Some(adapter)), &batch, &mut buffers).to_vec()
    };
    let got = logits(&adapter);
    let difference = largest_difference(&got, expected.get("logits"));
    assert!(difference < 1e-4, "logits are off by {difference}");

    let folder = tempfile::tempdir().unwrap();
    let settings = files.config.clone().settled(&files.resolution, &decoder.config);
    save_adapter(folder.path(), &settings, &adapter.layout, &adapter.parameters).unwrap();
    let file = Checkpoint::open_file(&folder.path().join(WEIGHTS_FILE)).unwrap();
    let shape = |key: &str| {
        file.tensor(&format!("base_model.model.model.layers.1.mlp.experts.{key}.weight"))
            .unwrap()
            .shape
            .clone()
    };
    // Gate and up of rank 2 each are one update of rank 4, for each of four experts.
    assert_eq!((shape("base_layer.lora_A"), shape("base_layer.lora_B")), (vec![16, 32], vec![48, 16]));
    assert_eq!((shape("lora_A"), shape("lora_B")), (vec![8, 24], vec![32, 8]));
    let (again, _) = Adapter::load(folder.path(), &decoder.config, None, &Device::cpu(2)).unwrap();
    assert_eq!(logits(&again), got);
}

#[test]
fn adapters_of_some_experts_or_of_one_of_gate_and_up_are_refused() {
    let config = Config::load(&fixture("mixtral")).unwrap();
    let theirs = fixture("mixtral").join("adapter-per-expert");
    let text = std::fs::read_to_string(theirs.join(CONFIG_FILE)).unwrap();
    let settings: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (targets, problem) in [
        (
            serde_json::json!(["w1", "w2"]),
            "experts.0.w1 and not model.layers.0.block_sparse_moe.experts.0.w3",
        ),
        (serde_json::json!(".*experts\\.[01]\\.w\\d"), "an update is of all experts of a block"),
        (serde_json::json!(["w1", "w2", "w3", "gate"]), "block_sparse_moe.gate.lora_A.weight` is missing"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(theirs.join(WEIGHTS_FILE), folder.path().join(WEIGHTS_FILE)).unwrap();
        let mut settings = settings.clone();
        settings["target_modules"] = targets;
        std::fs::write(folder.path().join(CONFIG_FILE), settings.to_string()).unwrap();
        let error = Adapter::load(folder.path(), &config, None, &Device::cpu(2)).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn merged_experts_compute_what_base_and_adapter_compute() {
    for (case, name) in
        [("qwen3-moe", "adapter-experts"), ("mixtral", "adapter-experts"), ("mixtral", "adapter-per-expert")]
    {
        let base = load(case);
        let (adapter, _) = open(case, name, &base.config);
        check_merged(case, &base, &adapter);
    }
}

/// Settings that train these parameters, and modules by the end of their names.
fn settings(parameters: &[&str], modules: &[&str]) -> PeftConfig {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    PeftConfig {
        r: 3,
        target_modules: (!modules.is_empty()).then(|| Selection::List(owned(modules))),
        target_parameters: owned(parameters),
        ..PeftConfig::default()
    }
}

#[test]
fn parameters_are_named_by_the_ends_of_their_names() {
    let config = Config::load(&fixture("qwen3-moe")).unwrap();
    let keys = |settings: &PeftConfig| -> Vec<String> {
        let layout = Layout::of_adapter(&targets::resolve(settings, &config).unwrap(), &config);
        let name = |key: &str| key.trim_start_matches("base_model.model.model.layers.").to_owned();
        let a = layout.tensors().iter().filter(|t| t.name.contains("lora_A"));
        a.map(|t| format!("{} {:?}", name(&t.name), t.file_shape())).collect()
    };
    let a = "lora_A.weight";
    // Layer 1 has no experts.
    let both = keys(&settings(&["experts.gate_up_proj", "down_proj"], &[]));
    let [inner, outer] = [0, 2].map(|layer| {
        [format!("{layer}.mlp.experts.base_layer.{a} [15, 32]"), format!("{layer}.mlp.experts.{a} [15, 12]")]
    });
    assert_eq!(both, [inner, outer].concat());
    let whole = "model.layers.2.mlp.experts.gate_up_proj";
    assert_eq!(keys(&settings(&[whole], &[])), [format!("2.mlp.experts.{a} [15, 32]")]);
    let router = keys(&settings(&["mlp.gate.weight"], &[]));
    assert_eq!(router, [0, 2].map(|layer| format!("{layer}.mlp.gate.{a} [3, 32]")));
    let patterns = PeftConfig {
        rank_pattern: vec![("experts.gate_up_proj".into(), 6)],
        alpha_pattern: vec![(".*\\.gate_up_proj".into(), 16.0)],
        ..settings(&["gate_up_proj", "gate.weight"], &["q_proj"])
    };
    let resolution = targets::resolve(&patterns, &config).unwrap();
    let got: Vec<_> = resolution.parameters.iter().map(|p| (p.layer, p.rank, p.alpha)).collect();
    assert_eq!(got, [(0, 3, 8.0), (0, 6, 16.0), (2, 3, 8.0), (2, 6, 16.0)]);
    assert_eq!(resolution.targets.len(), config.layers);
    let settled = patterns.clone().settled(&resolution, &config);
    assert_eq!(targets::resolve(&settled, &config).unwrap(), resolution, "{settled:?}");
    let text = settled.to_json();
    assert_eq!(PeftConfig::from_json(&text, std::path::Path::new(CONFIG_FILE)).unwrap(), settled);
}

#[test]
fn parameters_without_meaning_are_refused() {
    let [moe, dense] = ["qwen3-moe", "qwen3"].map(|case| Config::load(&fixture(case)).unwrap());
    let refused =
        |settings: &PeftConfig, config: &Config| targets::resolve(settings, config).unwrap_err().to_string();
    let got = refused(&settings(&["q_proj.weight"], &[]), &moe);
    assert!(got.contains("linear layers are named in target_modules"), "{got}");
    let got = refused(&settings(&["experts.up_gate_proj"], &[]), &moe);
    assert!(got.contains("mlp.experts.gate_up_proj"), "{got}");
    let got = refused(&settings(&["gate_up_proj"], &[]), &dense);
    assert!(got.contains("experts (it has none)"), "{got}");
    let dropping = PeftConfig { lora_dropout: 0.1, ..settings(&["gate_up_proj"], &[]) };
    assert!(refused(&dropping, &moe).contains("lora_dropout"), "{}", refused(&dropping, &moe));
}

/// A random model of a fixture's shape with other experts.
fn random(case: &str, threads: usize, count: usize, per_token: usize, normalized: bool) -> Decoder {
    let mut config = Config::load(&fixture(case)).unwrap();
    let experts = config.experts.as_mut().unwrap();
    (experts.count, experts.per_token, experts.normalized) = (count, per_token, normalized);
    config.initializer_range = 0.2;
    Decoder::random(&config, &Device::cpu(threads), Precision::F32, None, 7)
}

/// All weights of a model, to be trained.
fn all_weights(decoder: &Decoder) -> Adapter {
    let mut adapter = Adapter::zeros(Layout::full(&decoder.config), 0.0, &Device::cpu(2));
    adapter.initialize(Init::Default, 0, decoder);
    adapter
}

fn tokens(n: u32) -> Batch {
    let ids: Vec<u32> = (0..n).map(|i| (5 + 7 * i) % 97).collect();
    let labels: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let mut batch = Batch::new();
    batch.push(&ids, &labels);
    batch
}

/// A tensor's name, its gradient, and the same by central differences of `loss` along a direction of signs,
/// `step` long.
fn along_signs(
    step: f32,
    adapter: &mut Adapter,
    gradients: &Parameters,
    mut loss: impl FnMut(&Adapter) -> f64,
    chosen: impl Fn(&str) -> bool,
) -> Vec<(String, f64, f64)> {
    let sign = |i: usize| if compute::random::uniform(3, i as u64) < 0.5 { -1.0 } else { 1.0 };
    let tensors: Vec<_> = adapter.layout.tensors().iter().filter(|t| chosen(&t.name)).cloned().collect();
    let mut all = Vec::new();
    for tensor in tensors {
        let range = tensor.range.clone();
        let before = adapter.parameters.values().f32()[range.clone()].to_vec();
        let mut at = |far: f32| {
            let values = &mut adapter.parameters.values_mut().f32()[range.clone()];
            values.iter_mut().zip(&before).enumerate().for_each(|(i, (v, b))| *v = b + far * sign(i));
            loss(adapter)
        };
        let difference = (at(step) - at(-step)) / (2.0 * f64::from(step));
        at(0.0);
        let got = gradients.values().f32()[range.clone()].iter().enumerate();
        let got = got.map(|(i, &g)| f64::from(g) * f64::from(sign(i))).sum::<f64>();
        all.push((tensor.name.clone(), got, difference));
    }
    all
}

#[test]
fn gradients_are_right_whatever_the_choice_of_experts() {
    for (count, per_token, normalized) in
        [(1, 1, true), (4, 1, false), (4, 1, true), (5, 2, true), (3, 3, false)]
    {
        let decoder = random("mixtral", 2, count, per_token, normalized);
        let mut adapter = all_weights(&decoder);
        // Without a preference all tokens go to the first experts, and the others have none.
        let routers: Vec<_> =
            adapter.layout.tensors().iter().filter(|t| t.name.ends_with("gate.weight")).cloned().collect();
        assert_eq!(routers.len(), 2);
        for router in &routers {
            adapter.parameters.tensor_mut(router).f32().fill(0.0);
        }
        let batch = tokens(9);
        let (_, load, got) = gradients(&decoder, &adapter, &batch, 1.0, Checkpointing::None);
        assert!((load - per_token as f64).abs() < 1e-6, "equal probabilities: {load}");
        // Of the load, equal probabilities are a stationary point for the weights of the experts.
        let loss = |adapter: &Adapter| gradients(&decoder, adapter, &batch, 1.0, Checkpointing::None).0;
        let chosen = |name: &str| name.contains("experts") || name.contains("layers.0.self_attn.v_proj");
        for (name, got, want) in along_signs(1e-3, &mut adapter, &got, loss, chosen) {
            let unused = name.split("experts.").nth(1).and_then(|rest| rest[..1].parse::<usize>().ok());
            if unused.is_some_and(|expert| expert >= per_token) {
                assert_eq!((got, want), (0.0, 0.0), "{name}");
            }
            assert!(
                (got - want).abs() < 2e-3 * (0.1 + want.abs()),
                "{count}/{per_token} {name}: {got}, not {want}"
            );
        }
    }
}

#[test]
fn the_loss_of_the_load_is_trained_over_all_layers_together() {
    for case in CASES {
        let decoder = random(case, 2, 5, 2, case == "mixtral");
        let mut adapter = all_weights(&decoder);
        let batch = tokens(24);
        let (alone, none, without) = gradients(&decoder, &adapter, &batch, 0.0, Checkpointing::None);
        assert_eq!(none, 0.0, "not asked for, it is not computed");
        let (beside, load, with) = gradients(&decoder, &adapter, &batch, 0.5, Checkpointing::None);
        assert_eq!(alone, beside, "the losses of targets are without it");
        assert!(load > 2.0 && load < 5.0, "{load}");
        let block = Checkpointing::Block(Keeping::default());
        let (_, again, recomputed) = gradients(&decoder, &adapter, &batch, 0.5, block);
        assert_eq!((again, recomputed.values().f32()), (load, with.values().f32()), "{case}: computed again");
        let mut of_load =
            Parameters::zeros(&adapter.layout, Component::Gradients, &mut Allocator::real(&Device::cpu(2)));
        let both = with.values().f32().iter().zip(without.values().f32());
        of_load
            .values_mut()
            .f32()
            .iter_mut()
            .zip(both)
            .for_each(|(to, (with, without))| *to = 2.0 * (with - without));
        let loss = |adapter: &Adapter| gradients(&decoder, adapter, &batch, 0.5, Checkpointing::None).1;
        let chosen = |name: &str| name.ends_with("gate.weight") || name.contains("layers.0.self_attn.o_proj");
        // So short that no token chooses another expert.
        let all = along_signs(1e-4, &mut adapter, &of_load, loss, chosen);
        assert!(all.iter().any(|(_, got, _)| got.abs() > 1e-2), "{all:?}");
        for (name, got, want) in all {
            assert!((got - want).abs() < 2e-2 * (0.1 + want.abs()), "{case} {name}: {got}, not {want}");
        }
    }
}

#[test]
fn losses_and_gradients_do_not_depend_on_the_number_of_threads() {
    let pass = |threads: usize| {
        let decoder = random("qwen3-moe", threads, 5, 2, true);
        let resolution = targets::resolve(
            &settings(&["gate_up_proj", "down_proj", "gate.weight"], &["q_proj"]),
            &decoder.config,
        );
        let mut adapter =
            Adapter::zeros(Layout::of_adapter(&resolution.unwrap(), &decoder.config), 0.0, &Device::cpu(2));
        let values = adapter.parameters.values_mut().f32().iter_mut().enumerate();
        values.for_each(|(i, v)| *v = 0.1 * compute::random::normal(9, i as u64) as f32);
        let (loss, load, gradients) = gradients(&decoder, &adapter, &tokens(70), 0.1, Checkpointing::None);
        (loss, load, gradients.values().f32().to_vec())
    };
    assert_eq!(pass(1), pass(3));
}

#[test]
fn updates_of_experts_begin_without_effect_and_each_with_values_of_its_own() {
    let decoder = load("mixtral");
    let resolution = targets::resolve(&settings(&["gate_up_proj"], &[]), &decoder.config).unwrap();
    let mut adapter = Adapter::zeros(Layout::of_adapter(&resolution, &decoder.config), 0.0, &Device::cpu(2));
    adapter.initialize(Init::Default, 1, &decoder);
    assert!(adapter.is_without_effect());
    let a = &adapter.layout.tensors()[0];
    let values = adapter.parameters.tensor(a).f32();
    let bound = 1.0 / (a.cols as f32).sqrt();
    assert!(values.iter().all(|v| *v != 0.0 && v.abs() <= bound));
    assert_ne!(values[..3 * a.cols], values[3 * a.cols..6 * a.cols], "of the first two experts");
}

#[test]
fn the_plan_counts_what_is_allocated() {
    let decoder = load("mixtral");
    let resolution =
        targets::resolve(&settings(&["gate_up_proj", "down_proj"], &[]), &decoder.config).unwrap();
    let layout = Layout::of_adapter(&resolution, &decoder.config);
    for purpose in [Purpose::Train(Checkpointing::None), Purpose::Infer] {
        let plan = |mut allocator: Allocator| {
            let extent = Extent { tokens: 50, positions: 50, purpose, precision: Precision::Bf16 };
            Activations::new(&decoder.config, &layout, 0.0, extent, &mut allocator);
            allocator.into_plan()
        };
        let (planned, made) = (plan(Allocator::planning()), plan(Allocator::real(&Device::cpu(2))));
        for component in [Component::Activations, Component::Workspace] {
            assert_eq!(planned.bytes(component), made.bytes(component));
        }
    }
    assert_eq!(
        layout.len() as u64,
        4 * 2 * 3 * ((32 + 2 * 24) + (24 + 32)),
        "four experts of two layers, rank 3: [48, 32] and [32, 24]"
    );
}
