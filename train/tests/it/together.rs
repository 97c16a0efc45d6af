//! Runs that train together end in the bytes that each has alone.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use compute::Precision;
use data::{Dataset, Example};
use model::adapter::init::Init;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Selection};
use model::{Adapter, Checkpointing, Decoder, Keeping, Layout};
use train::{Decay, Event, Job, Outcome, Rule, Saving, Schedule, Settings, Together, Trainer};

use crate::common::{adapter_bytes, random_examples, settings, tiny};

/// A run's adapter, data and settings.
struct Setup {
    peft: PeftConfig,
    seed: u64,
    train: Dataset,
    eval: Vec<Example>,
    settings: Settings,
}

/// Runs that differ in all that runs may differ in.
fn setups() -> Vec<Setup> {
    let peft = |targets: &str, r, dropout, dora| PeftConfig {
        target_modules: Some(Selection::Expression(targets.to_owned())),
        r,
        lora_dropout: dropout,
        use_dora: dora,
        ..PeftConfig::default()
    };
    let all = targets::ALL_LINEAR;
    let upper = r"model\.layers\.1\..*_proj";
    let rate = |learning_rate, settings: Settings| {
        let optimizer = train::OptimizerSettings { learning_rate, ..settings.optimizer };
        Settings { optimizer, ..settings }
    };
    let mut packed = Settings { epochs: 2, seed: 7, ..settings() };
    (packed.order.packing, packed.order.shuffle, packed.order.seed) = (true, true, 7);
    let mut shuffled = Settings { epochs: 2, batch_size: 3, micro_batch_tokens: 40, ..settings() };
    (shuffled.order.shuffle, shuffled.order.seed) = (true, 9);
    let constant = Schedule { decay: Decay::Constant, warmup: Some(0.0) };
    let lion = train::OptimizerSettings { rule: Rule::Lion { betas: [0.9, 0.99] }, ..settings().optimizer };
    let of = |peft, seed, examples, held_out, settings| Setup {
        peft,
        seed,
        train: Dataset::of_examples(random_examples(examples)),
        eval: random_examples(held_out),
        settings,
    };
    vec![
        of(peft(all, 4, 0.0, false), 1, 24, 5, settings()),
        of(peft(all, 4, 0.0, false), 1, 24, 5, rate(0.001, settings())),
        // Several micro-batches a step, which are more than a pass has room for with the others.
        of(peft(all, 2, 0.1, false), 2, 24, 5, rate(0.02, shuffled)),
        of(peft(all, 3, 0.2, true), 3, 17, 0, Settings { schedule: constant, ..packed }),
        of(peft(upper, 5, 0.0, true), 4, 9, 3, Settings { eval_every: Some(1), seed: 1, ..settings() }),
        of(peft("lm_head|.*q_proj", 6, 0.1, false), 5, 24, 5, Settings { max_steps: Some(3), ..settings() }),
        of(peft(".*down_proj", 1, 0.0, false), 6, 2, 1, Settings { optimizer: lion, ..settings() }),
        of(peft(all, 4, 0.0, false), 1, 24, 4, Settings { early_stopping_patience: Some(1), ..settings() }),
    ]
}

impl Setup {
    fn job<'a>(&'a self, decoder: &'a Decoder, folder: &'a Path, stop: &'a AtomicBool) -> Job<'a> {
        let resolution = targets::resolve(&self.peft, &decoder.config).unwrap();
        let layout = Layout::of_adapter(&resolution, &decoder.config);
        let mut adapter = Adapter::zeros(layout, self.peft.lora_dropout as f32, &decoder.device);
        adapter.initialize(Init::Default, self.seed, decoder);
        Job {
            decoder,
            adapter,
            saving: Saving::Adapter(&self.peft),
            train: &self.train,
            eval: &self.eval,
            settings: self.settings.clone(),
            folder,
            stop,
            forgetting: None,
            pause: None,
        }
    }
}

/// A tiny random model with experts.
fn tiny_experts() -> Decoder {
    let text = r#"{"model_type": "mixtral", "vocab_size": 67, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "initializer_range": 0.2, "tie_word_embeddings": false, "hidden_act": "silu",
        "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": null}"#;
    let config = model::Config::from_json(text, "config.json".as_ref()).unwrap();
    Decoder::random(&config, &compute::Device::cpu(2), Precision::F32, None, 7)
}

#[test]
fn runs_together_over_four_bits_end_in_the_bytes_of_each_alone() {
    let text = r#"{"model_type": "llama", "vocab_size": 67, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "initializer_range": 0.2, "tie_word_embeddings": false, "hidden_act": "silu"}"#;
    let config = model::Config::from_json(text, "config.json".as_ref()).unwrap();
    let (device, format) = (compute::Device::cpu(2), compute::quant::Format::QLORA);
    let decoder = Decoder::random(&config, &device, Precision::Bf16, Some(format), 7);
    let (setups, stop) = (setups(), AtomicBool::new(false));
    let folders: Vec<_> = setups.iter().map(|_| tempfile::tempdir().unwrap()).collect();
    let jobs = setups.iter().zip(&folders).map(|(s, f)| s.job(&decoder, f.path(), &stop));
    let together = Together { tokens: 4096, checkpointing: Checkpointing::None };
    let outcomes = Trainer::open_all(jobs.collect(), together).unwrap().run_all(&mut |_, _| ());
    assert!(outcomes.iter().all(|outcome| outcome.is_ok()), "{outcomes:?}");
    for (n, (setup, together)) in setups.iter().zip(&folders).enumerate() {
        let alone = tempfile::tempdir().unwrap();
        train::train(setup.job(&decoder, alone.path(), &stop), &mut |_| ()).unwrap();
        assert_eq!(metrics(alone.path()), metrics(together.path()), "run {n}");
        assert!(adapter_bytes(alone.path()) == adapter_bytes(together.path()), "run {n}");
    }
}

/// The load of experts is that of all rows of a pass: a run that trains it passes alone.
#[test]
fn a_run_that_balances_experts_has_passes_of_its_own() {
    let (decoder, mut setups, stop) = (tiny_experts(), setups(), AtomicBool::new(false));
    setups.truncate(3);
    for setup in &mut setups {
        let names = Selection::List(vec!["q_proj".into(), "o_proj".into()]);
        setup.peft.target_modules = Some(names);
        setup.peft.target_parameters = vec!["mlp.experts.down_proj".into()];
        setup.peft.lora_dropout = 0.0; // as PEFT has it for experts
    }
    setups[1].settings.router_aux_loss = 0.1;
    let folders: Vec<_> = setups.iter().map(|_| tempfile::tempdir().unwrap()).collect();
    let jobs = setups.iter().zip(&folders).map(|(s, f)| s.job(&decoder, f.path(), &stop));
    let together = Together { tokens: 4096, checkpointing: Checkpointing::None };
    let outcomes = Trainer::open_all(jobs.collect(), together).unwrap().run_all(&mut |_, _| ());
    for (n, (setup, together)) in setups.iter().zip(&folders).enumerate() {
        assert_eq!(*outcomes[n].as_ref().unwrap(), Outcome::Finished);
        let alone = tempfile::tempdir().unwrap();
        train::train(setup.job(&decoder, alone.path(), &stop), &mut |_| ()).unwrap();
        assert_eq!(metrics(alone.path()), metrics(together.path()), "run {n}");
        assert!(adapter_bytes(alone.path()) == adapter_bytes(together.path()), "run {n}");
    }
    assert!(metrics(folders[1].path()).iter().any(|line| line["router_aux_loss"].is_number()));
}

/// The lines of metrics without times and memory.
fn metrics(folder: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        let line = value.as_object_mut().unwrap();
        line.remove("tokens_per_second");
        line.remove("memory_bytes");
        value
    };
    text.lines().map(line).collect()
}

#[test]
fn runs_together_end_in_the_bytes_of_each_alone() {
    for precision in [Precision::F32, Precision::Bf16] {
        let (decoder, setups, stop) = (tiny(2, precision), setups(), AtomicBool::new(false));
        let alone: Vec<_> = setups
            .iter()
            .map(|setup| {
                let folder = tempfile::tempdir().unwrap();
                train::train(setup.job(&decoder, folder.path(), &stop), &mut |_| ()).unwrap();
                (adapter_bytes(folder.path()), metrics(folder.path()))
            })
            .collect();
        for (tokens, checkpointing) in [
            (4096, Checkpointing::None),
            (150, Checkpointing::Block(Keeping::default())),
            (1, Checkpointing::Block(Keeping { attention: true, mlp: 2, ..Keeping::default() })),
        ] {
            let folders: Vec<_> = setups.iter().map(|_| tempfile::tempdir().unwrap()).collect();
            let jobs = setups.iter().zip(&folders).map(|(s, f)| s.job(&decoder, f.path(), &stop));
            let trainer = Trainer::open_all(jobs.collect(), Together { tokens, checkpointing }).unwrap();
            let mut told = vec![0; setups.len()];
            let outcomes = trainer.run_all(&mut |run, event| {
                told[run] += u64::from(matches!(event, Event::Step(_)));
            });
            for (n, (folder, (bytes, lines))) in folders.iter().zip(&alone).enumerate() {
                assert_eq!(*outcomes[n].as_ref().unwrap(), Outcome::Finished);
                assert_eq!(&metrics(folder.path()), lines, "{precision:?}, {tokens} tokens, run {n}");
                assert!(adapter_bytes(folder.path()) == *bytes, "{precision:?}, {tokens} tokens, run {n}");
                assert_eq!(told[n] as usize, lines.iter().filter(|l| !l["loss"].is_null()).count());
            }
        }
    }
}

#[test]
fn a_run_that_diverges_or_stops_leaves_the_others_alone() {
    let (decoder, mut setups) = (tiny(2, Precision::F32), setups());
    setups[1].settings.optimizer.learning_rate = 1e30;
    let stops: Vec<_> = setups.iter().map(|_| AtomicBool::new(false)).collect();
    let folders: Vec<_> = setups.iter().map(|_| tempfile::tempdir().unwrap()).collect();
    let paths: Vec<_> = folders.iter().map(|folder| folder.path().to_owned()).collect();
    let jobs = setups.iter().zip(&paths).zip(&stops).map(|((s, f), stop)| s.job(&decoder, f, stop));
    let together = Together { tokens: 400, checkpointing: Checkpointing::None };
    let outcomes = Trainer::open_all(jobs.collect(), together).unwrap().run_all(&mut |run, event| {
        if let (0, Event::Step(step)) = (run, event) {
            stops[0].store(step.step == 2, std::sync::atomic::Ordering::Relaxed);
        }
    });
    assert_eq!(*outcomes[0].as_ref().unwrap(), Outcome::Interrupted);
    let said = outcomes[1].as_ref().unwrap_err().to_string();
    assert!(said.contains("step ") && said.contains("no checkpoint had been saved yet"), "{said}");
    let alone = tempfile::tempdir().unwrap();
    let never = AtomicBool::new(false);
    for n in 2..setups.len() {
        assert_eq!(*outcomes[n].as_ref().unwrap(), Outcome::Finished);
        let alone = alone.path().join(n.to_string());
        train::train(setups[n].job(&decoder, &alone, &never), &mut |_| ()).unwrap();
        assert!(adapter_bytes(&alone) == adapter_bytes(&paths[n]), "run {n}");
    }
    // The run that was stopped goes on in other company.
    let again = tempfile::tempdir().unwrap();
    let jobs =
        vec![setups[2].job(&decoder, again.path(), &never), setups[0].job(&decoder, &paths[0], &never)];
    let outcomes = Trainer::open_all(jobs, together).unwrap().run_all(&mut |_, _| ());
    assert!(outcomes.iter().all(|outcome| *outcome.as_ref().unwrap() == Outcome::Finished));
    let whole = alone.path().join("0");
    train::train(setups[0].job(&decoder, &whole, &never), &mut |_| ()).unwrap();
    assert!(adapter_bytes(&whole) == adapter_bytes(&paths[0]));
    assert_eq!(metrics(&whole), metrics(&paths[0]));
}

#[test]
fn a_runs_end_is_told_when_its_result_stands_and_not_when_all_have_ended() {
    let (decoder, mut setups, stop) = (tiny(2, Precision::F32), setups(), AtomicBool::new(false));
    setups.truncate(4);
    setups[1].settings.max_steps = Some(2);
    let folders: Vec<_> = setups.iter().map(|_| tempfile::tempdir().unwrap()).collect();
    // What was saved on other data cannot be gone on from.
    let other = setups[0].job(&decoder, folders[3].path(), &stop);
    train::train(other, &mut |_| ()).unwrap();
    let jobs = setups.iter().zip(&folders).map(|(s, f)| s.job(&decoder, f.path(), &stop));
    let together = Together { tokens: 4096, checkpointing: Checkpointing::None };
    let (mut ended, mut steps) = (Vec::<(usize, Option<Outcome>, bool, u32)>::new(), 0);
    let outcomes = Trainer::open_all(jobs.collect(), together).unwrap().run_all(&mut |run, event| {
        assert!(!ended.iter().any(|(other, ..)| *other == run), "nothing is told of a run that has ended");
        match event {
            Event::Step(_) => steps += 1,
            Event::Ended(end) => {
                let stands = folders[run].path().join("adapter_model.safetensors").is_file();
                ended.push((run, end.as_ref().ok().copied(), stands, steps));
            }
            _ => {}
        }
    });
    assert_eq!(ended[0], (3, None, true, 0), "one that cannot be taken up, before all others");
    assert_eq!(ended[1], (1, Some(Outcome::Finished), true, 6), "the short one, with two steps of each");
    assert_eq!(ended.len(), setups.len());
    for (run, end, ..) in ended {
        assert_eq!(outcomes[run].as_ref().ok().copied(), end, "run {run}");
    }
}

#[test]
fn a_run_pauses_evaluated_and_saved_and_goes_on_to_the_same_bytes() {
    let (decoder, setups, stop) = (tiny(2, Precision::F32), setups(), AtomicBool::new(false));
    let (whole, paused) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let setup = &setups[2];
    train::train(setup.job(&decoder, whole.path(), &stop), &mut |_| ()).unwrap();
    for step in [3, 5] {
        let job = Job { pause: Some(step), ..setup.job(&decoder, paused.path(), &stop) };
        assert_eq!(train::train(job, &mut |_| ()).unwrap(), Outcome::Paused);
        let last = metrics(paused.path()).pop().unwrap();
        assert!(last["step"] == step && last["eval_loss"].is_number(), "{last}");
    }
    train::train(setup.job(&decoder, paused.path(), &stop), &mut |_| ()).unwrap();
    assert!(adapter_bytes(whole.path()) == adapter_bytes(paused.path()));
}

#[test]
fn the_plan_of_runs_together_is_what_they_allocate() {
    let (decoder, setups, stop) = (tiny(1, Precision::Bf16), setups(), AtomicBool::new(false));
    let folders: Vec<_> = setups.iter().map(|_| tempfile::tempdir().unwrap()).collect();
    let jobs: Vec<_> = setups.iter().zip(&folders).map(|(s, f)| s.job(&decoder, f.path(), &stop)).collect();
    let layouts: Vec<Layout> = jobs.iter().map(|job| job.adapter.layout.clone()).collect();
    let together = Together { tokens: 300, checkpointing: Checkpointing::None };
    let plan = |setup: &Setup| {
        let Settings { order, batch_size, epochs, max_steps, .. } = setup.settings;
        let plan = train::StepPlan::new(&setup.train, order, batch_size, epochs, max_steps);
        let Settings { micro_batch_tokens, checkpointing, .. } = setup.settings;
        plan.demand(&setup.eval, &[]).extent(micro_batch_tokens, checkpointing, Precision::Bf16)
    };
    let extent = together.extent(setups.iter().map(plan));
    assert_eq!(extent.tokens, 300);
    let runs: Vec<_> = setups
        .iter()
        .zip(&layouts)
        .map(|(setup, layout)| train::Planned {
            layout,
            dropout: setup.peft.lora_dropout as f32,
            optimizer: setup.settings.optimizer,
        })
        .collect();
    let planned = train::memory_plan(&decoder.config, &runs, extent, None);
    assert_eq!(*Trainer::open_all(jobs, together).unwrap().memory(), planned);
}
