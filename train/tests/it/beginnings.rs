//! Adapters that begin as parts of the base's weights: PEFT's beginning, its steps, and what it saves.

use std::path::Path;

use compute::quant::{Code, CodebookFormat, Format};
use compute::{DType, Device, Matrix, Precision};
use model::adapter::init::Init;
use model::adapter::merge::Difference;
use model::adapter::peft::PeftConfig;
use model::adapter::peft::folder::AdapterFolder;
use model::{Adapter, Checkpoint, Decoder, Layout, ModelFolder, ModuleId, OnLoading};
use train::Outcome;

use crate::common::{adapter_bytes, examples, fixture, json, run_adapter, settings_of, try_run};
use crate::parity::same_steps;

/// What a fixture's run begins from.
struct Begun {
    base: ModelFolder,
    decoder: Decoder,
    adapter: Adapter,
    peft: PeftConfig,
}

fn init_of(name: &str) -> Init {
    match json(&fixture(name).join("run.json"))["adapter"]["init"].as_str().unwrap() {
        "pissa" => Init::Pissa,
        "olora" => Init::Olora,
        "loftq" => Init::Loftq,
        other => panic!("{other}"),
    }
}

/// The base and the adapter of a fixture's run, begun by `init`.
fn begin(name: &str, init: Init, precision: Precision, quantization: Option<Format>) -> Begun {
    let folder = fixture(name);
    let run = json(&folder.join("run.json"));
    let base = ModelFolder::open(&folder.join(run["model"].as_str().unwrap())).unwrap();
    let files = AdapterFolder::open(&folder.join("initial"), &base.config, None).unwrap();
    init.check(&files.resolution, &base.config).unwrap();
    let mut layout = Layout::of_adapter(&files.resolution, &base.config);
    if init.changes_base() {
        layout.take_out_of_base();
    }
    let device = Device::cpu(2);
    let mut adapter = Adapter::zeros(layout, 0.0, &device);
    let on_loading = quantization.map(|format| OnLoading { format, held: precision });
    let decoder =
        Decoder::load_and_begin(&base, &device, precision, on_loading, (init, 1), &mut adapter).unwrap();
    Begun { base, decoder, adapter, peft: files.config }
}

fn begin_in_f32(name: &str) -> Begun {
    let nf4 = Format::Codebook(CodebookFormat { code: Code::Nf4, block_size: 64, double_quant: false });
    let quantization = json(&fixture(name).join("run.json")).get("quantization").map(|_| nf4);
    begin(name, init_of(name), Precision::F32, quantization)
}

/// The updates `scale * B A` of every module, whatever their rank.
fn updates(adapter: &Adapter) -> Vec<(ModuleId, Matrix)> {
    let update = |(module, trained): (ModuleId, model::adapter::parameters::Trained)| {
        let lora = trained.lora()?;
        let (a, b) = adapter.lora(lora);
        let (rank, inner) = (a.rows(), a.cols());
        let mut product = Matrix::zeros(b.rows(), inner, DType::F32);
        for (row, to) in product.as_mut().f32().chunks_mut(inner).enumerate() {
            for (col, to) in to.iter_mut().enumerate() {
                let terms = (0..rank)
                    .map(|k| f64::from(b.f32()[row * rank + k]) * f64::from(a.f32()[k * inner + col]));
                *to = (f64::from(lora.scale) * terms.sum::<f64>()) as f32;
            }
        }
        Some((module, product))
    };
    adapter.layout.modules().filter_map(update).collect()
}

/// Of all modules, the largest |a - b| / |b|.
fn furthest(got: &[(ModuleId, Matrix)], expected: &[(ModuleId, Matrix)]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let distance = |((m, g), (n, e)): (&(ModuleId, Matrix), &(ModuleId, Matrix))| {
        assert_eq!(m, n);
        relative(&g.to_vec(), &e.to_vec())
    };
    got.iter().zip(expected).map(distance).fold(0.0, f64::max)
}

fn relative(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let distance = squares(&mut got.iter().zip(expected).map(|(g, e)| g - e));
    (distance / squares(&mut expected.iter().copied())).sqrt()
}

fn saved(folder: &Path, base: &ModelFolder) -> Adapter {
    Adapter::load(folder, &base.config, None, &Device::cpu(2)).unwrap().0
}

/// The beginning, the steps and the result of a run are PEFT's.
fn check(name: &str) {
    let Begun { base, decoder, adapter, peft } = begin_in_f32(name);
    let folder = fixture(name);
    let initial = furthest(&updates(&adapter), &updates(&saved(&folder.join("initial"), &base)));
    assert!(initial < 2e-4, "{name}: an update begins {initial} away");
    if init_of(name).changes_base() {
        let left = Checkpoint::open_file(&folder.join("residual.safetensors")).unwrap();
        for parameter in base.config.parameters() {
            let (module, known) = (parameter.module, left.tensor(&parameter.name()).is_some());
            if !known {
                continue;
            }
            let (rows, cols) = (parameter.rows, parameter.cols);
            let mut expected = Matrix::zeros(rows, cols, DType::F32);
            match parameter.transposed {
                false => left.read_into(&parameter.name(), expected.as_mut()).unwrap(),
                true => {
                    let mut turned = Matrix::zeros(cols, rows, DType::F32);
                    left.read_into(&parameter.name(), turned.as_mut()).unwrap();
                    for (i, to) in expected.as_mut().f32().iter_mut().enumerate() {
                        *to = turned.as_ref().f32()[i % cols * rows + i / cols];
                    }
                }
            }
            let got = decoder.base_weight(module).dense().to_vec();
            let distance = relative(&got, &expected.to_vec());
            // Two singular values that are near each other leave their vectors to rounding.
            assert!(distance < 1e-4, "{name}: {} is left {distance} away", parameter.name());
        }
    }
    let out = tempfile::tempdir().unwrap();
    let (train, settings) =
        (examples(&folder.join("data.jsonl")), settings_of(&json(&folder.join("run.json"))));
    let (_, told) = run_adapter(&decoder, (adapter, peft), &train, &[], &settings, out.path(), None);
    same_steps(name, &told.steps, 5e-5);
    let (ours, theirs) = (saved(out.path(), &base), saved(&folder.join("final"), &base));
    let result = furthest(&updates(&ours), &updates(&theirs));
    assert!(result < 5e-3, "{name}: an update ends {result} away");
}

#[test]
fn singular_vectors_under_patterns() {
    check("pissa");
}

#[test]
fn singular_vectors_of_a_base_in_sixteen_bits_with_the_head_and_rank_stabilized_scale() {
    check("pissa-rslora");
}

#[test]
fn singular_vectors_of_transposed_weights() {
    check("pissa-gpt2");
}

#[test]
fn triangular_factors() {
    check("olora");
}

#[test]
fn what_four_bits_lose() {
    check("loftq");
}

#[test]
fn what_is_saved_computes_over_the_base_as_it_was_what_was_trained_over_what_is_left_of_it() {
    for name in ["pissa", "pissa-rslora", "pissa-gpt2", "olora"] {
        let Begun { base, decoder, mut adapter, peft } = begin_in_f32(name);
        let plain = Decoder::load(&base.path, &Device::cpu(2), Precision::F32, None).unwrap();
        let before = plain.probe(None);
        let started = Difference::between(&before, &decoder.probe(Some(&adapter)));
        assert!(started.relative < 2e-5, "{name}: base and adapter begin {started:?} from the base");
        // As if it had been trained.
        let values = adapter.parameters.values_mut().f32();
        values.iter_mut().enumerate().for_each(|(i, v)| *v += 0.1 * (i as f32).sin());
        let trained = decoder.probe(Some(&adapter));
        let out = tempfile::tempdir().unwrap();
        adapter.save(out.path(), &peft).unwrap();
        let read = saved(out.path(), &base);
        assert_eq!(read.layout.max_rank(), 2 * adapter.layout.max_rank());
        let apart = Difference::between(&trained, &plain.probe(Some(&read)));
        assert!(apart.relative < 2e-5, "{name}: {apart:?}");
        assert!(Difference::between(&before, &trained).relative > 1e-2, "{name}: nothing was trained");
    }
}

#[test]
fn a_run_that_is_stopped_and_gone_on_with_ends_in_the_same_bytes() {
    for name in ["pissa", "olora", "loftq"] {
        let folder = fixture(name);
        let run = json(&folder.join("run.json"));
        let (train, mut settings) = (examples(&folder.join("data.jsonl")), settings_of(&run));
        settings.early_stopping_patience = Some(9); // so that the best tensors are written and read, too
        let whole = tempfile::tempdir().unwrap();
        let go = |folder: &Path, stop_after| {
            let Begun { decoder, adapter, peft, .. } = begin_in_f32(name);
            run_adapter(&decoder, (adapter, peft), &train, &train[..2], &settings, folder, stop_after).0
        };
        assert_eq!(go(whole.path(), None), Outcome::Finished);
        let parts = tempfile::tempdir().unwrap();
        assert_eq!(go(parts.path(), Some(7)), Outcome::Interrupted);
        assert_eq!(go(parts.path(), None), Outcome::Finished);
        assert_eq!(adapter_bytes(whole.path()), adapter_bytes(parts.path()), "{name}");
    }
}

#[test]
fn a_checkpoint_that_began_from_other_values_is_not_gone_on_from() {
    let folder = fixture("pissa");
    let run = json(&folder.join("run.json"));
    let (train, settings) = (examples(&folder.join("data.jsonl")), settings_of(&run));
    let out = tempfile::tempdir().unwrap();
    let Begun { decoder, adapter, peft, .. } = begin_in_f32("pissa");
    run_adapter(&decoder, (adapter, peft), &train, &[], &settings, out.path(), Some(2));
    let Begun { decoder, adapter, peft, .. } = begin("pissa", Init::Olora, Precision::F32, None);
    let (outcome, _) = try_run(&decoder, (adapter, peft), &train, &[], &settings, out.path(), None);
    let message = outcome.unwrap_err().to_string();
    assert!(message.contains("began from other values"), "{message}");
}

/// Four bits of what is left, with the leading part beside them in `f32`, lose less than four bits of all;
/// so do four bits with the leading part of what they lose.
#[test]
fn both_beginnings_over_four_bits_are_nearer_to_the_base_than_four_bits_alone() {
    let name = "pissa";
    let base = begin_in_f32(name).base;
    let plain = Decoder::load(&base.path, &Device::cpu(2), Precision::F32, None).unwrap();
    let error = |decoder: &Decoder, adapter: Option<&Adapter>| {
        let mut sum = 0.0;
        for (module, update) in updates(adapter.unwrap_or(&begin_in_f32(name).adapter)) {
            let mut held = Matrix::zeros(update.rows(), update.cols(), DType::F32);
            decoder.base_weight(module).copy_to(&Device::cpu(2), held.as_mut());
            let update =
                if adapter.is_some() { update.to_vec() } else { vec![0.0; update.rows() * update.cols()] };
            let expected = plain.base_weight(module).dense().to_vec();
            let together: Vec<f32> = held.to_vec().iter().zip(update).map(|(w, u)| w + u).collect();
            sum += relative(&together, &expected);
        }
        sum
    };
    let four_bits = Decoder::load(&base.path, &Device::cpu(2), Precision::F32, Some(Format::QLORA)).unwrap();
    let alone = error(&four_bits, None);
    for init in [Init::Pissa, Init::Loftq] {
        let Begun { decoder, adapter, .. } = begin(name, init, Precision::F32, Some(Format::QLORA));
        let begun = error(&decoder, Some(&adapter));
        assert!(begun < 0.95 * alone, "{init:?}: {begun} against {alone}");
    }
}
