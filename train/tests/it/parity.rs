//! Twenty steps of PEFT with `torch.optim.AdamW`, from the same adapter on the same batches.

use std::sync::atomic::AtomicBool;

use compute::{Device, Matrix, MatrixMut, Precision};
use data::Dataset;
use model::adapter::init::Init;
use model::adapter::peft::{PeftConfig, WEIGHTS_FILE};
use model::{Adapter, Checkpoint, Decoder, Layout, ModelFolder, StoredDType};
use train::{Event, Job, Saving, StepMetrics};

use crate::common::{examples, fixture, json, settings_of};

fn check(name: &str) {
    let folder = fixture(name);
    let run = json(&folder.join("run.json"));
    let base = folder.join(run["model"].as_str().unwrap());
    let files = ModelFolder::open(&base).unwrap();
    let decoder = Decoder::load_for(&files, None, &Device::cpu(2), Precision::F32, None).unwrap();
    let full = run["adapter"]["method"] == "full";
    let (adapter, peft) = if full {
        let mut adapter = Adapter::zeros(Layout::full(&decoder.config), 0.0, &Device::cpu(2));
        adapter.initialize(Init::Default, 0, &decoder);
        (adapter, PeftConfig::default())
    } else {
        let (adapter, files) =
            Adapter::load(&folder.join("initial"), &decoder.config, None, &Device::cpu(2)).unwrap();
        (adapter, files.config)
    };
    let layout = adapter.layout.clone();
    let saving = match full {
        true => Saving::Model { base: &files, tokenizer: &base, dtype: StoredDType::F32 },
        false => Saving::Adapter(&peft),
    };
    let out = tempfile::tempdir().unwrap();
    let (train, stop) = (Dataset::of_examples(examples(&folder.join("data.jsonl"))), AtomicBool::new(false));
    let settings = settings_of(&run);
    let job = Job {
        decoder: &decoder,
        adapter,
        saving,
        train: &train,
        eval: &[],
        settings,
        folder: out.path(),
        stop: &stop,
        forgetting: None,
        pause: None,
    };
    let mut steps: Vec<StepMetrics> = Vec::new();
    train::train(job, &mut |event| {
        if let Event::Step(step) = event {
            steps.push(step.clone());
        }
    })
    .unwrap();

    same_steps(name, &steps, 2e-5);
    let file = if full { "model.safetensors" } else { WEIGHTS_FILE };
    let [got, expected] =
        [out.path(), &folder.join("final")].map(|f| Checkpoint::open_file(&f.join(file)).unwrap());
    for tensor in layout.tensors() {
        let read = |from: &Checkpoint| {
            let mut values = Matrix::zeros(tensor.rows, tensor.cols, compute::DType::F32);
            from.read_into(
                &tensor.name,
                MatrixMut::from_f32(tensor.rows, tensor.cols, values.as_mut().f32()),
            )
            .unwrap();
            values.to_vec()
        };
        let (got, expected) = (read(&got), read(&expected));
        let squares =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
        let distance = squares(&mut got.iter().zip(&expected).map(|(g, e)| g - e));
        let relative = (distance / squares(&mut expected.iter().copied())).sqrt();
        assert!(relative < 1e-3, "{name}: {} ends {relative} away (relative L2)", tensor.name);
    }
}

/// Compares a run's steps with those of PEFT, whose losses are so far away at most (relative).
pub(crate) fn same_steps(name: &str, steps: &[StepMetrics], tolerance: f64) {
    let expected = json(&fixture(name).join("expected.json"));
    let expected = expected.as_array().unwrap();
    assert_eq!(steps.len(), expected.len(), "{name}: number of steps");
    for (got, expected) in steps.iter().zip(expected) {
        let step = got.step;
        let close = |what: &str, got: f64, relative: f64| {
            let expected = expected[what].as_f64().unwrap();
            let distance = (got - expected).abs() / expected.abs().max(1e-12);
            assert!(
                distance <= relative || got == expected,
                "{name}: step {step}: {what} is {got}, not {expected}"
            );
        };
        close("loss", got.loss, tolerance);
        close("grad_norm", got.grad_norm, 5.0 * tolerance);
        close("learning_rate", got.learning_rate, 1e-12);
        close("tokens", got.tokens as f64, 0.0);
        close("trained_tokens", got.trained_tokens as f64, 0.0);
    }
}

#[test]
fn linear_schedule_with_warm_up_and_clipping() {
    check("base-linear");
}

#[test]
fn cosine_schedule_with_weight_decay() {
    check("cosine-decay");
}

#[test]
fn constant_schedule_with_rank_stabilized_scale() {
    check("constant-rslora");
}

#[test]
fn rank_and_alpha_patterns() {
    check("constant-patterns");
}

#[test]
fn a_head_trained_whole_beside_low_rank_updates() {
    check("modules-to-save");
}

#[test]
fn other_betas_and_eps_with_an_update_of_the_head() {
    check("betas-eps");
}

#[test]
fn another_learning_rate_for_b() {
    check("lora-plus");
}

#[test]
fn over_a_base_in_four_bits_with_double_quantization() {
    check("qlora-nested");
}

#[test]
fn over_a_base_in_four_bits_from_another_adapter() {
    check("qlora-plain");
}

#[test]
fn magnitudes_over_a_base_in_four_bits() {
    check("qlora-dora");
}

#[test]
fn random_factors_in_orthogonal_subspaces() {
    check("orthogonal");
}

#[test]
fn all_weights_of_a_tied_model() {
    check("full");
}

#[test]
fn magnitudes_beside_low_rank_updates() {
    check("dora");
}

#[test]
fn norms_on_both_sides_and_two_rotary_bases() {
    check("gemma3");
}

#[test]
fn fused_projections() {
    check("phi3");
}

#[test]
fn learned_positions_and_transposed_weights() {
    check("gpt2");
}

#[test]
fn half_of_each_head_turned_by_neighbours() {
    check("glm4");
}

#[test]
fn both_halves_of_a_block_on_the_same_input() {
    check("gpt-neox");
}

#[test]
fn an_adapter_on_the_attention_of_a_mixture_of_experts() {
    check("qwen3-moe");
}

#[test]
fn soft_caps_of_scores_and_logits() {
    check("gemma2");
}

#[test]
fn rotary_factors_by_the_length_of_a_sequence() {
    check("phi3-longrope");
}

#[test]
fn layers_without_rotary_embedding() {
    check("smollm3");
}

#[test]
fn factors_on_embedding_residual_and_logits() {
    check("granite");
}

#[test]
fn norms_behind_alone_and_over_all_heads() {
    check("olmo2");
    check("olmo3");
}

#[test]
fn queries_scaled_by_position() {
    check("ministral3");
}

#[test]
fn layer_norms_and_biases_beside_a_rotary_embedding() {
    check("starcoder2");
}

#[test]
fn norms_behind_the_rotation() {
    check("hunyuan");
}

#[test]
fn neighbours_turned_in_whole_heads() {
    check("ernie4-5");
}

#[test]
fn experts_whose_weights_are_a_softmax_of_the_chosen() {
    check("mixtral");
}
