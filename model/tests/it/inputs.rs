//! Layers' inputs that are not kept as they are: in a file they change no bit, rounded they change gradients
//! a little.

use compute::{Device, Precision};
use model::adapter::init::Init;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Selection};
use model::memory::{Allocator, Component};
use model::{
    Activations, Adapter, Batch, Checkpointing, Decoder, Extent, Keeping, Layout, Parameters, Purpose,
};

use crate::common::{fixture, relative_difference};
use crate::families;

const TOKENS: usize = 150;

struct Passed {
    losses: Vec<f32>,
    gradients: Vec<f32>,
    /// Bytes of activations, as the plan has them.
    planned: u64,
}

/// Two passes forward and backward over a long batch, all weights being trained, the second one over a
/// shorter batch.
fn passed(decoder: &Decoder, checkpointing: Checkpointing) -> Passed {
    let layout = Layout::full(&decoder.config);
    let mut adapter = Adapter::zeros(layout.clone(), 0.0, &Device::cpu(2));
    adapter.initialize(Init::Default, 0, decoder);
    let extent = Extent {
        tokens: TOKENS,
        positions: TOKENS,
        purpose: Purpose::Train(checkpointing),
        precision: decoder.precision,
    };
    let mut planning = Allocator::planning();
    Activations::new(&decoder.config, &layout, 0.0, extent, &mut planning);
    let planned = planning.into_plan().bytes(Component::Activations);
    let mut buffers =
        Activations::new(&decoder.config, &layout, 0.0, extent, &mut Allocator::real(&Device::cpu(2)));
    let folder = tempfile::tempdir().unwrap();
    buffers.open(folder.path()).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
    let mut gradients =
        Parameters::zeros(&layout, Component::Gradients, &mut Allocator::real(&Device::cpu(2)));
    let mut all = Vec::new();
    for tokens in [TOKENS, TOKENS / 3] {
        let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 7 % decoder.config.vocab_size as u32).collect();
        let mut batch = Batch::new();
        // GPT-2 has no more positions than its fixture's longest text.
        for ids in ids.chunks(decoder.config.max_position_embeddings.min(tokens)) {
            batch.push(ids, &ids.iter().map(|&id| id as i32).collect::<Vec<_>>());
        }
        let mut losses = vec![0.0; batch.targets.len()];
        let run = decoder.run(Some(&adapter));
        let weights = vec![0.01; losses.len()];
        decoder.forward_to_train(&run, &batch, &mut buffers).unwrap();
        decoder.backward(&run, &batch, &weights, &mut buffers, &mut losses, &mut gradients).unwrap();
        all.extend(losses);
    }
    Passed { losses: all, gradients: gradients.values().f32().to_vec(), planned }
}

fn load(case: &str, precision: Precision) -> Decoder {
    Decoder::load(&fixture(case), &Device::cpu(2), precision, None).unwrap()
}

fn block(bf16: bool, memory: Option<u64>) -> Checkpointing {
    Checkpointing::Block(Keeping { bf16, memory, ..Keeping::default() })
}

#[test]
fn in_a_file_they_change_no_bit_and_no_more_is_held_than_the_budget() {
    for (case, precision) in
        [("llama3", Precision::F32), ("llama3", Precision::Bf16), ("qwen3", Precision::F32)]
    {
        let decoder = load(case, precision);
        let (layers, width) = (decoder.config.layers as u64, decoder.config.hidden_size);
        let input = (TOKENS * width * precision.dtype().size()) as u64;
        for (bf16, size) in [(false, input), (true, (TOKENS * width * 2) as u64)] {
            let whole = passed(&decoder, block(bf16, None));
            for budget in [4096, size, layers * size - 1, layers * size] {
                let paged = passed(&decoder, block(bf16, Some(budget)));
                assert!(
                    whole.losses == paged.losses && whole.gradients == paged.gradients,
                    "{case}, {budget}"
                );
                // What is kept in memory, beside the one input that is worked on.
                let held = paged.planned + layers * size - whole.planned;
                assert!(held <= budget && 2 * held > budget, "{held} bytes of a budget of {budget}");
            }
        }
    }
}

#[test]
fn what_attention_needs_may_be_kept_too_and_changes_no_bit() {
    for (case, precision) in
        [("llama3", Precision::Bf16), ("qwen3", Precision::F32), ("mistral", Precision::F32)]
    {
        let decoder = load(case, precision);
        let with_attention = Checkpointing::Block(Keeping { attention: true, ..Keeping::default() });
        let [none, more, least] =
            [Checkpointing::None, with_attention, block(false, None)].map(|c| passed(&decoder, c));
        for other in [&more, &least] {
            assert!(none.losses == other.losses && none.gradients == other.gradients, "{case}");
        }
        assert!(least.planned < more.planned && more.planned < none.planned, "{case}");
    }
}

/// Wherever a family has its norms, whatever its halves are: what is made again is what was.
#[test]
fn layers_of_every_family_are_made_again_to_the_bit() {
    let cases = families::ALL.into_iter().chain(["llama2", "mistral", "qwen2", "llama-bias"]);
    for (case, precision) in cases.flat_map(|case| [Precision::F32, Precision::Bf16].map(|p| (case, p))) {
        let decoder = load(case, precision);
        let none = passed(&decoder, Checkpointing::None);
        for (attention, mlp) in [(false, 0), (true, 0), (true, 1)] {
            let keeping = Keeping { attention, mlp, ..Keeping::default() };
            let block = passed(&decoder, Checkpointing::Block(keeping));
            let same = none.losses == block.losses && none.gradients == block.gradients;
            assert!(same, "{case}, {precision:?}, {keeping:?}");
        }
    }
}

/// Of the three layers' MLP halves the last ones are kept, as many as asked for, and only the others made
/// again.
#[test]
fn what_the_mlp_halves_of_some_layers_need_may_be_kept_too_and_changes_no_bit() {
    let decoder = load("qwen2-window", Precision::F32);
    let (layers, inner) = (decoder.config.layers, decoder.config.intermediate_size);
    assert_eq!(layers, 3);
    let none = passed(&decoder, Checkpointing::None);
    let (mut planned, mut calls) = (Vec::new(), Vec::new());
    for mlp in 0..=layers {
        decoder.device.profile().start();
        let keeping = Keeping { attention: true, mlp, ..Keeping::default() };
        let passed = passed(&decoder, Checkpointing::Block(keeping));
        let profile = decoder.device.profile().stop();
        let gates = profile.iter().filter(|(key, _)| key.size.is_some_and(|[_, n, _]| n == inner));
        calls.push(gates.map(|(_, total)| total.calls).sum::<u64>());
        assert!(none.losses == passed.losses && none.gradients == passed.gradients, "{mlp}");
        planned.push(passed.planned);
    }
    // One layer has a place anyway: the last one is never made again.
    assert!(planned[0] == planned[1] && planned[1] < planned[2] && planned[2] < planned[3], "{planned:?}");
    assert_eq!(planned[3], none.planned);
    // Two passes, a gate and an up projection each.
    assert_eq!([0, 1, 2, 3].map(|mlp| calls[mlp] - calls[3]), [8, 8, 4, 0]);
}

/// How often attention runs forward in two passes forward and backward: what is kept is not made again.
#[test]
fn only_what_is_not_kept_is_made_again_and_never_the_last_layer() {
    let decoder = load("llama3", Precision::F32);
    let layers = decoder.config.layers as u64;
    let attention = |checkpointing| {
        decoder.device.profile().start();
        passed(&decoder, checkpointing);
        decoder.device.profile().stop()[&"attention".into()].calls
    };
    let kept = Checkpointing::Block(Keeping { attention: true, ..Keeping::default() });
    assert_eq!(attention(Checkpointing::None), 2 * layers);
    assert_eq!(attention(kept), 2 * layers);
    assert_eq!(attention(block(false, None)), 2 * (layers + layers - 1));
}

#[test]
fn below_the_lowest_trained_layer_nothing_is_kept() {
    let decoder = load("llama3", Precision::F32);
    let config = &decoder.config;
    let of = |layers: Option<Vec<usize>>| {
        let target_modules = Some(Selection::List(vec!["q_proj".to_owned()]));
        let peft = PeftConfig { target_modules, layers_to_transform: layers, ..PeftConfig::default() };
        let layout = Layout::of_adapter(&targets::resolve(&peft, config).unwrap(), config);
        let purpose = Purpose::Train(Checkpointing::None);
        let extent = Extent { tokens: TOKENS, positions: TOKENS, purpose, precision: Precision::F32 };
        let mut planning = Allocator::planning();
        Activations::new(config, &layout, 0.0, extent, &mut planning);
        (layout.lowest_layer(), planning.into_plan().bytes(Component::Activations))
    };
    let last = config.layers - 1;
    let ((all, every), (one, single)) = (of(None), of(Some(vec![last])));
    assert_eq!((all, one, Layout::default().lowest_layer()), (Some(0), Some(last), None));
    let inputs = ((config.layers + 1) * TOKENS * config.hidden_size * 4) as u64;
    assert_eq!((single - inputs) * config.layers as u64, every - inputs);
}

#[test]
fn rounded_to_bf16_they_take_half_and_change_no_loss_and_gradients_a_little() {
    for case in ["llama3", "qwen3", "mistral"] {
        let decoder = load(case, Precision::F32);
        let (exact, rounded) = (passed(&decoder, block(false, None)), passed(&decoder, block(true, None)));
        assert_eq!(exact.losses, rounded.losses, "{case}: the forward pass does not see them");
        let exact_gradients: Vec<f64> = exact.gradients.iter().map(|&g| f64::from(g)).collect();
        let difference = relative_difference(&rounded.gradients, &exact_gradients);
        assert!(difference > 1e-6 && difference < 4e-3, "{case}: {difference}");
        let input = (TOKENS * decoder.config.hidden_size * 4 * decoder.config.layers) as u64;
        assert_eq!(rounded.planned + input / 2, exact.planned, "{case}");
        let decoder = load(case, Precision::Bf16);
        let (plain, set) = (passed(&decoder, block(false, None)), passed(&decoder, block(true, None)));
        assert!(plain.gradients == set.gradients && plain.planned == set.planned, "they are bf16 already");
    }
}
