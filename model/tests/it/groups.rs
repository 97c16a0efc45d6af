//! Several adapters in one pass: what each group of rows comes to alone.

use compute::{Device, Precision};
use model::adapter::init::Init;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Selection};
use model::memory::{Allocator, Component};
use model::{
    Activations, Adapter, Batch, Checkpointing, Decoder, Extent, Group, Keeping, Layout, Parameters, Purpose,
    Run,
};

use crate::common::fixture;

/// An adapter whose values are all of some size, and the key of its masks.
fn adapter(decoder: &Decoder, settings: PeftConfig, seed: u64) -> Adapter {
    let resolution = targets::resolve_as_peft(&settings, &decoder.config).unwrap();
    let layout = Layout::of_adapter(&resolution, &decoder.config);
    let mut adapter = Adapter::zeros(layout, settings.lora_dropout as f32, &decoder.device);
    adapter.initialize(Init::Default, seed, decoder);
    for (i, value) in adapter.parameters.values_mut().f32().iter_mut().enumerate() {
        *value += 0.1 * (compute::random::uniform(seed, i as u64) as f32 - 0.5);
    }
    adapter
}

fn lora(names: &[&str], r: usize, dropout: f64) -> PeftConfig {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let target_modules = Some(Selection::List(names));
    PeftConfig { target_modules, r, lora_dropout: dropout, ..PeftConfig::default() }
}

/// The group of few rows.
const FEW: u64 = 4;

/// Sequences of a group, numbered in the run.
fn sequences(group: u64, vocabulary: usize) -> Vec<Vec<u32>> {
    let token =
        |s: u64, i: u64| compute::random::below(compute::random::key(group, s), i, vocabulary as u64) as u32;
    // The last group is one short sequence: products of so few rows go another way.
    let (count, least) = if group == FEW { (1, 3) } else { (3, 6) };
    (0..count).map(|s| (0..least + 3 * s).map(|i| token(s, i)).collect()).collect()
}

fn push(batch: &mut Batch, group: usize, vocabulary: usize) {
    for (s, ids) in sequences(group as u64, vocabulary).iter().enumerate() {
        batch.push(ids, &ids.iter().map(|&id| id as i32).collect::<Vec<_>>());
        batch.examples.push(10 * group + s);
    }
}

/// Buffers for all of these adapters: those of one that has all their modules at the largest rank.
fn buffers(decoder: &Decoder, layout: &Layout, checkpointing: Checkpointing) -> Activations {
    let purpose = Purpose::Train(checkpointing);
    let extent = Extent { tokens: 200, positions: 40, purpose, precision: decoder.precision };
    Activations::new(&decoder.config, layout, 0.1, extent, &mut Allocator::real(&decoder.device))
}

#[test]
fn groups_of_rows_come_to_what_they_come_to_alone() {
    for (case, whole) in
        [("llama3", "norm"), ("gemma3", "embed_tokens"), ("gpt2", "wte"), ("glm4", "lm_head")]
    {
        let (q, o) = if case == "gpt2" { ("c_attn", "attn.c_proj") } else { ("q_proj", "o_proj") };
        let dora = |r| PeftConfig { use_dora: true, ..lora(&[o, q], r, 0.0) };
        let saved = PeftConfig { modules_to_save: vec![whole.to_owned()], ..lora(&[q], 2, 0.0) };
        // The joint layout: DoRA's modules at the largest rank.
        check_groups(case, [lora(&[q, o], 4, 0.1), dora(3), saved], dora(4));
    }
}

/// Among experts the rows of all groups meet, each expert's sorted by group.
#[test]
fn groups_of_rows_train_experts_apart() {
    for case in ["qwen3-moe", "mixtral"] {
        let experts = |names: &[&str], r, modules: &[&str]| {
            let names = names.iter().map(|name| format!("mlp.experts.{name}")).collect();
            PeftConfig { target_parameters: names, ..lora(modules, r, 0.0) }
        };
        let all = ["gate_up_proj", "down_proj"];
        let beside = lora(&["o_proj"], 2, 0.1);
        let adapters = [experts(&all, 4, &["q_proj"]), beside, experts(&all[1..], 3, &["q_proj"])];
        check_groups(case, adapters, experts(&all, 4, &["q_proj", "o_proj"]));
    }
}

/// PEFT takes `down_proj` for that of layers without experts, which have other rows than experts do.
#[test]
fn layers_without_experts_have_dora_and_dropout_beside_those_with_them() {
    let dora = |r| PeftConfig { use_dora: true, ..lora(&["q_proj", "down_proj"], r, 0.1) };
    check_groups("qwen3-moe-step", [dora(2), lora(&["down_proj", "o_proj"], 3, 0.1), dora(3)], {
        PeftConfig { use_dora: true, ..lora(&["q_proj", "o_proj", "down_proj"], 3, 0.1) }
    });
}

/// That five groups of rows with these adapters and none come to what each comes to alone, in buffers for a
/// joint layout.
fn check_groups(case: &str, adapters: [PeftConfig; 3], joint: PeftConfig) {
    for precision in [Precision::F32, Precision::Bf16] {
        let decoder = Decoder::load(&fixture(case), &Device::cpu(2), precision, None).unwrap();
        let mut seed = 0;
        let adapters = adapters.clone().map(|settings| {
            seed += 1;
            adapter(&decoder, settings, seed)
        });
        let joint = adapter(&decoder, joint.clone(), 1).layout;
        let run = |adapter, key| Run { dropout_key: Some(key), ..decoder.run(adapter) };
        let runs = [
            run(Some(&adapters[0]), 7),
            run(None, 8),
            run(Some(&adapters[1]), 9),
            run(Some(&adapters[2]), 10),
            run(Some(&adapters[0]), 11),
        ];
        let gradients = |run: &Run<'_>| {
            let layout = run.adapter.map(|a| a.layout.clone()).unwrap_or_default();
            Parameters::zeros(&layout, Component::Gradients, &mut Allocator::real(&decoder.device))
        };
        for checkpointing in [Checkpointing::None, Checkpointing::Block(Keeping::default())] {
            let (mut together, mut groups) = (Batch::new(), Vec::new());
            for (n, run) in runs.iter().enumerate() {
                let start = together.tokens();
                push(&mut together, n, decoder.config.vocab_size);
                groups.push(Group { rows: start..together.tokens(), run: *run });
            }
            let mut work = buffers(&decoder, &joint, checkpointing);
            decoder.forward_groups_to_train(&groups, &together, &mut work).unwrap();
            let (mut losses, weights) =
                (vec![0.0; together.targets.len()], vec![0.3; together.targets.len()]);
            let mut got: Vec<Parameters> = runs.iter().map(gradients).collect();
            decoder.backward_groups(&groups, &together, &weights, &mut work, &mut losses, &mut got).unwrap();
            let mut asked = vec![0.0; losses.len()];
            decoder.forward_groups_to_train(&groups, &together, &mut work).unwrap();
            decoder.losses_of_groups(&groups, &together, &mut work, &mut asked);
            assert_eq!(asked, losses, "{case}: losses alone");
            let mut rest = &losses[..];
            for (n, run) in runs.iter().enumerate() {
                let mut alone = Batch::new();
                push(&mut alone, n, decoder.config.vocab_size);
                let mut work = buffers(&decoder, &joint, checkpointing);
                let (mut want, mut of_group) = (gradients(run), vec![0.0; alone.targets.len()]);
                decoder.forward_to_train(run, &alone, &mut work).unwrap();
                let weights = vec![0.3; of_group.len()];
                decoder.backward(run, &alone, &weights, &mut work, &mut of_group, &mut want).unwrap();
                let (losses, others) = rest.split_at(of_group.len());
                let what = || format!("{case}, {precision:?}, group {n}, {checkpointing:?}");
                assert_eq!(losses, of_group, "{}", what());
                assert_eq!(got[n].values().f32(), want.values().f32(), "{}", what());
                assert!(run.adapter.is_none() || want.values().f32().iter().any(|g| *g != 0.0));
                rest = others;
            }
        }
    }
}

/// Norms that are computed once for all passes give the bytes of norms that each pass computes.
#[test]
fn norms_of_an_adapter_that_does_not_change_are_computed_once() {
    for precision in [Precision::F32, Precision::Bf16] {
        check_fixed(precision);
    }
}

fn check_fixed(precision: Precision) {
    let decoder = Decoder::load(&fixture("llama3"), &Device::cpu(2), precision, None).unwrap();
    let dora = |seed| {
        adapter(&decoder, PeftConfig { use_dora: true, ..lora(&["q_proj", "down_proj"], 3, 0.0) }, seed)
    };
    let (first, second) = (dora(1), dora(2));
    let extent = Extent { tokens: 40, positions: 40, purpose: Purpose::Infer, precision };
    let mut buffers =
        Activations::new(&decoder.config, &first.layout, 0.0, extent, &mut Allocator::real(&decoder.device));
    let mut batch = Batch::new();
    push(&mut batch, 0, decoder.config.vocab_size);
    let mut losses = |adapter: &Adapter| {
        let (run, mut losses) = (decoder.run(Some(adapter)), vec![0.0; batch.targets.len()]);
        decoder.forward(&run, &batch, None, &mut buffers);
        decoder.losses(&run, &batch, &mut buffers, &mut losses);
        losses
    };
    let each = [&first, &second].map(&mut losses);
    assert_ne!(each[0], each[1]);
    // In bf16 what is fixed rounds once where the others round twice.
    let same = |got: &[f32], want: &[f32]| match precision {
        Precision::F32 => assert_eq!(got, want),
        Precision::Bf16 => got.iter().zip(want).for_each(|(g, w)| assert!((g - w).abs() < 0.05 * w.abs())),
    };
    decoder.fix(&first);
    let fixed = losses(&first);
    same(&fixed, &each[0]);
    assert_eq!(losses(&second), each[1], "another adapter than the fixed one");
    decoder.fix(&second);
    same(&losses(&second), &each[1]);
    assert_eq!(losses(&first), fixed);
}

/// Two groups, the second with an adapter of this rank and dropout, in buffers for rank 2, whose examples
/// have no numbers.
fn pass_unprepared(r: usize, dropout: f64) {
    let decoder = Decoder::load(&fixture("llama3"), &Device::cpu(1), Precision::F32, None).unwrap();
    let [small, other] =
        [lora(&["q_proj"], 2, 0.0), lora(&["q_proj"], r, dropout)].map(|s| adapter(&decoder, s, 1));
    let mut batch = Batch::new();
    batch.push_unlabelled(&[1, 2, 3]);
    batch.push_unlabelled(&[4, 5, 6]);
    let run = Run { dropout_key: Some(1), ..decoder.run(Some(&other)) };
    let groups = [Group { rows: 0..3, run: decoder.run(None) }, Group { rows: 3..6, run }];
    let mut work = buffers(&decoder, &small.layout, Checkpointing::None);
    decoder.forward_groups(&groups, &batch, None, &mut work);
}

#[test]
#[should_panic(expected = "an adapter of rank 3 in buffers for ranks up to 2")]
fn buffers_are_for_the_ranks_of_all_groups() {
    pass_unprepared(3, 0.0);
}

#[test]
#[should_panic(expected = "examples without numbers in groups that drop inputs")]
fn examples_that_drop_inputs_have_numbers() {
    pass_unprepared(2, 0.1);
}

#[test]
#[should_panic(expected = "groups of whole sequences")]
fn a_sequence_is_of_one_group() {
    let decoder = Decoder::load(&fixture("llama3"), &Device::cpu(1), Precision::F32, None).unwrap();
    let mut batch = Batch::new();
    batch.push_unlabelled(&[1, 2, 3, 4]);
    let run = decoder.run(None);
    let groups = [Group { rows: 0..2, run }, Group { rows: 2..4, run }];
    let mut work = buffers(&decoder, &Layout::default(), Checkpointing::None);
    decoder.forward_groups(&groups, &batch, None, &mut work);
}
