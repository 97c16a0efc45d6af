//! How adapters begin: what is drawn, and which beginnings fit which adapter.

use compute::{Device, Precision};
use model::adapter::init::Init;
use model::adapter::peft::{PeftConfig, Selection, targets};
use model::{Adapter, Decoder, Layout};

use crate::common::{fixture, load, opened};

fn settings(r: usize) -> PeftConfig {
    PeftConfig {
        r,
        target_modules: Some(Selection::Expression(targets::ALL_LINEAR.to_owned())),
        ..PeftConfig::default()
    }
}

#[test]
fn orthogonal_factors_cancel_and_each_is_as_large_as_peft_s() {
    let base = load("llama2");
    let resolution = targets::resolve(&settings(8), &base.config).unwrap();
    Init::Orthogonal.check(&resolution, &base.config).unwrap();
    let mut adapter = Adapter::zeros(Layout::of_adapter(&resolution, &base.config), 0.0, &Device::cpu(1));
    adapter.initialize(Init::Orthogonal, 3, &base);
    let (mut squares, mut count) = ([0.0; 2], [0; 2]);
    for (module, trained) in adapter.layout.modules() {
        let (a, b) = adapter.lora(trained.lora().unwrap());
        let (rank, inner) = (a.rows(), a.cols());
        for row in b.f32().chunks(rank) {
            for col in 0..inner {
                let sum: f32 = (0..rank).map(|k| row[k] * a.f32()[k * inner + col]).sum();
                assert!(sum.abs() < 1e-6, "{module:?}: {sum}");
            }
        }
        for (n, factor) in [a, b].into_iter().enumerate() {
            squares[n] += factor.f32().iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            count[n] += factor.f32().len();
        }
    }
    // Half of the rows of an orthogonal matrix, times normal numbers of deviation 0.1.
    for (squares, count) in squares.into_iter().zip(count) {
        let deviation = (squares / count as f64).sqrt();
        assert!((deviation - 0.1 / 2.0_f64.sqrt()).abs() < 0.005, "{deviation}");
    }
}

#[test]
fn what_cannot_begin_so_is_refused_with_the_reason() {
    let wrong = |init: Init, case: &str, settings: PeftConfig| {
        let config = opened(case).config;
        let resolution = targets::resolve(&settings, &config).unwrap();
        init.check(&resolution, &config).unwrap_err().to_string()
    };
    let with_head = PeftConfig {
        target_modules: Some(Selection::List(vec!["q_proj".into(), "lm_head".into()])),
        ..settings(2)
    };
    let of_experts = PeftConfig {
        target_modules: Some(Selection::List(vec![])),
        target_parameters: vec!["mlp.experts.gate_up_proj".into()],
        ..settings(2)
    };
    for (message, expected) in [
        (wrong(Init::Orthogonal, "llama2", settings(3)), "needs even ranks"),
        (wrong(Init::Orthogonal, "qwen3-moe", of_experts.clone()), "is not for target_parameters"),
        (wrong(Init::Pissa, "llama2", settings(41)), "has 40 directions at most in"),
        (wrong(Init::Olora, "qwen2", with_head), "would change the embedding too"),
        (wrong(Init::Loftq, "qwen3-moe", of_experts), "leave target_parameters out"),
        (wrong(Init::Pissa, "llama2", PeftConfig { use_dora: true, ..settings(2) }), "is for method lora"),
    ] {
        assert!(message.contains(expected), "{message}");
    }
    let base = opened("nf4");
    let resolution = targets::resolve(&settings(2), &base.config).unwrap();
    let mut adapter = Adapter::zeros(Layout::of_adapter(&resolution, &base.config), 0.0, &Device::cpu(1));
    let begin = (Init::Pissa, 0);
    let error = Decoder::load_and_begin(&base, &Device::cpu(1), Precision::F32, None, begin, &mut adapter)
        .unwrap_err();
    assert!(error.to_string().contains("name the model's 16-bit checkpoint"), "{error}");
}

#[test]
fn a_beginning_in_the_base_depends_on_no_number_of_threads_and_on_no_seed() {
    let begun = |init, threads, seed| {
        let base = opened("llama3");
        let resolution = targets::resolve(&settings(4), &base.config).unwrap();
        let device = Device::cpu(threads);
        let mut layout = Layout::of_adapter(&resolution, &base.config);
        layout.take_out_of_base();
        let mut adapter = Adapter::zeros(layout, 0.0, &device);
        let precision = Precision::Bf16;
        let decoder =
            Decoder::load_and_begin(&base, &device, precision, None, (init, seed), &mut adapter).unwrap();
        let plain = Decoder::load(&fixture("llama3"), &device, precision, None).unwrap();
        (
            adapter.parameters.values().to_vec(),
            decoder.probe(Some(&adapter)).to_vec(),
            plain.probe(None).to_vec(),
        )
    };
    for init in [Init::Pissa, Init::Olora] {
        let (values, logits, plain) = begun(init, 1, 1);
        let (again, same, _) = begun(init, 3, 2);
        assert_eq!((&values, &logits), (&again, &same));
        // In bf16 the rest of a weight is rounded.
        let largest = logits.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(0.0 < largest && largest < 0.5, "{largest}");
    }
}
