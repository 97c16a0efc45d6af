//! Moments in eight bits and moments in a file: what changes no byte, what changes little, and what is
//! refused.

use std::fs;
use std::path::Path;

use compute::Precision;
use model::arena;
use model::memory::Component;
use model::{Checkpoint, Checkpointing, Decoder};
use train::{Demand, Job, OptimizerSettings, Outcome, Planned, Rule, Saves, Saving, Settings};

use crate::common::{
    adapter_bytes, lora_of_rank, random_examples, run_adapter, settings, tiny, without_hashes,
};

/// Of the tensors of this rank, those of the narrowest layers have fewer than 4096 elements.
const RANK: usize = 256;

const ADAMW: Rule = Rule::AdamW { betas: [0.9, 0.99], eps: 1e-8 };
const ADAMW_8BIT: Rule = Rule::AdamW8bit { betas: [0.9, 0.99], eps: 1e-8 };

/// Six steps, with a rate of its own for every second tensor.
fn with(rule: Rule, memory: Option<u64>) -> Settings {
    let optimizer = OptimizerSettings {
        rule,
        memory,
        learning_rate: 1e-3,
        weight_decay: 0.1,
        lora_plus_ratio: 4.0,
        ..settings().optimizer
    };
    Settings { optimizer, saves: Saves::EverySteps(2), ..settings() }
}

fn go(decoder: &Decoder, settings: &Settings, folder: &Path, stop_after: Option<u64>) -> (Outcome, Vec<f64>) {
    let adapter = lora_of_rank(decoder, 0.1, RANK);
    let (outcome, told) =
        run_adapter(decoder, adapter, &random_examples(24), &[], settings, folder, stop_after);
    (outcome, told.steps.iter().map(|step| step.loss).collect())
}

/// Bytes of the moments in memory, as the plan has them.
fn planned(decoder: &Decoder, settings: &Settings) -> u64 {
    let (adapter, _) = lora_of_rank(decoder, 0.0, RANK);
    let extent =
        Demand { longest: 8, step: 8, total: 8, compared: 0 }.extent(8, Checkpointing::None, Precision::F32);
    let run = Planned { layout: &adapter.layout, dropout: 0.0, optimizer: settings.optimizer };
    let plan = train::memory_plan(&decoder.config, &[run], extent, None);
    plan.bytes(Component::Optimizer)
}

fn moments(run: &Path) -> Vec<u8> {
    fs::read(run.join("checkpoints/step-000006/optimizer.safetensors")).unwrap()
}

#[test]
fn paged_equals_unpaged_byte_for_byte_under_a_tenth_of_the_state_and_less() {
    let decoder = tiny(2, Precision::F32);
    for rule in [ADAMW, ADAMW_8BIT] {
        let state = planned(&decoder, &with(rule, None));
        let whole = tempfile::tempdir().unwrap();
        go(&decoder, &with(rule, None), whole.path(), None);
        for budget in [state / 10, state / 2, arena::SMALLEST, state] {
            let settings = with(rule, Some(budget));
            let held = planned(&decoder, &settings);
            assert!(held <= budget && held > budget / 3, "{held} bytes of a budget of {budget}");
            let paged = tempfile::tempdir().unwrap();
            go(&decoder, &settings, paged.path(), None);
            assert!(adapter_bytes(whole.path()) == adapter_bytes(paged.path()), "{rule:?} under {budget}");
            assert!(moments(whole.path()) == moments(paged.path()), "{rule:?} under {budget}");
            let mut left: Vec<_> =
                fs::read_dir(paged.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            left.sort();
            let files = ["adapter_config.json", "adapter_model.safetensors", "checkpoints", "metrics.jsonl"];
            assert_eq!(left, files, "the pages leave nothing");
        }
    }
}

#[test]
fn stopped_after_any_step_and_resumed_under_any_budget_gives_the_same_bytes() {
    let decoder = tiny(2, Precision::F32);
    for rule in [ADAMW, ADAMW_8BIT] {
        let whole = tempfile::tempdir().unwrap();
        go(&decoder, &with(rule, None), whole.path(), None);
        for stop_after in 1..6 {
            let out = tempfile::tempdir().unwrap();
            let budgets = [Some(20_000 * stop_after), None];
            let [first, then] = if stop_after % 2 == 0 { budgets } else { [budgets[1], budgets[0]] };
            let (outcome, _) = go(&decoder, &with(rule, first), out.path(), Some(stop_after));
            assert_eq!(outcome, Outcome::Interrupted);
            assert_eq!(go(&decoder, &with(rule, then), out.path(), None).0, Outcome::Finished);
            assert!(adapter_bytes(whole.path()) == adapter_bytes(out.path()), "{rule:?}, step {stop_after}");
            assert!(moments(whole.path()) == moments(out.path()), "{rule:?}, step {stop_after}");
        }
    }
}

#[test]
fn moments_in_eight_bits_take_a_quarter_and_are_learnt_with_as_well() {
    let decoder = tiny(2, Precision::F32);
    let [wide, narrow] = [ADAMW, ADAMW_8BIT].map(|rule| planned(&decoder, &with(rule, None)));
    assert!(narrow * 3 < wide, "{narrow} and {wide} bytes");
    let [wide, narrow] = [ADAMW, ADAMW_8BIT].map(|rule| {
        let out = tempfile::tempdir().unwrap();
        go(&decoder, &Settings { epochs: 6, ..with(rule, None) }, out.path(), None).1
    });
    assert!(wide[35] < 0.9 * wide[0], "it learns: {wide:?}");
    for (step, (wide, narrow)) in wide.iter().zip(&narrow).enumerate() {
        assert!((narrow / wide - 1.0).abs() < 0.02, "step {step}: {narrow} in eight bits, {wide} in f32");
    }
}

#[test]
fn checkpoints_have_codes_and_scales_of_large_tensors_and_numbers_of_small_ones() {
    let (decoder, out) = (tiny(1, Precision::F32), tempfile::tempdir().unwrap());
    go(&decoder, &with(ADAMW_8BIT, None), out.path(), None);
    let path = out.path().join("checkpoints/step-000006/optimizer.safetensors");
    let file = Checkpoint::open_file(&path).unwrap();
    for tensor in lora_of_rank(&decoder, 0.0, RANK).0.layout.tensors() {
        let shape = |prefix: &str| file.tensor(&format!("{prefix}{}", tensor.name)).map(|t| t.shape.clone());
        let whole = Some(vec![tensor.rows, tensor.cols]);
        if tensor.range.len() < 4096 {
            assert_eq!([shape("m."), shape("v.")], [whole.clone(), whole]);
            assert_eq!(shape("m_codes."), None);
        } else {
            assert_eq!([shape("m_codes."), shape("v_codes.")], [whole.clone(), whole]);
            let blocks = Some(vec![tensor.range.len().div_ceil(256)]);
            assert_eq!([shape("m_absmax."), shape("v_absmax.")], [blocks.clone(), blocks]);
        }
    }
}

/// Takes a run up from its checkpoint and says why that fails.
fn refusal(decoder: &Decoder, settings: Settings, folder: &Path) -> String {
    let (adapter, peft) = lora_of_rank(decoder, 0.1, RANK);
    let (train, stop) = (data::Dataset::of_examples(random_examples(24)), false.into());
    let saving = Saving::Adapter(&peft);
    let job = Job {
        decoder,
        adapter,
        saving,
        train: &train,
        eval: &[],
        settings,
        folder,
        stop: &stop,
        forgetting: None,
        pause: None,
    };
    train::train(job, &mut |_| {}).unwrap_err().to_string()
}

#[test]
fn moments_of_another_optimizer_and_scales_that_are_no_numbers_are_refused() {
    let (decoder, out) = (tiny(1, Precision::F32), tempfile::tempdir().unwrap());
    go(&decoder, &with(ADAMW_8BIT, None), out.path(), Some(2));
    let path = out.path().join("checkpoints/step-000002/optimizer.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let error = refusal(&decoder, with(ADAMW, None), out.path());
    assert!(error.contains("belongs to another run"), "{error}");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let (name, info) = header.as_object().unwrap().iter().find(|(n, _)| n.starts_with("v_absmax.")).unwrap();
    let position = 8 + length + info["data_offsets"][0].as_u64().unwrap() as usize + 4;
    bytes[position..position + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    without_hashes(path.parent().unwrap());
    let error = refusal(&decoder, with(ADAMW_8BIT, Some(10_000)), out.path());
    assert!(error.contains(name.as_str()) && error.contains("NaN"), "{error}");
    assert!(error.contains("no checkpoint is whole"), "{error}");
}

#[test]
fn a_budget_below_a_page_is_refused_before_the_first_step() {
    let (decoder, out) = (tiny(1, Precision::F32), tempfile::tempdir().unwrap());
    let error = refusal(&decoder, with(ADAMW, Some(4095)), out.path());
    assert!(error.starts_with("`optimizer.memory` allows 4095 bytes"), "{error}");
    assert!(error.contains("give it 4096 bytes or more"), "{error}");
    assert!(!out.path().join("metrics.jsonl").exists());
}
