//! Requests beside each other: each comes to what it comes to alone, nothing is lost and nothing leaks.

use std::collections::BTreeMap;
use std::sync::Arc;

use compute::quant::{BlockType, Format};
use compute::{Device, Precision, random};
use infer::{
    Allowed, Ask, Constraint, Engine, Event, Extent, Finish, Generator, InferError, Logprobs, Request,
    RequestId, Sampling, Sums,
};
use model::adapter::init::Init;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Pooling, QaLora, Selection};
use model::memory::Allocator;
use model::{Activations, Adapter, Batch, Config, Decoder, Layout, Purpose};

const SETTINGS: &str = r#"{"model_type": "llama", "vocab_size": 97, "hidden_size": 128, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 700,
    "rms_norm_eps": 1e-5, "initializer_range": 0.3, "tie_word_embeddings": false, "hidden_act": "silu"}"#;

pub(crate) fn llama(precision: Precision, quantization: Option<Format>) -> Arc<Decoder> {
    let config = Config::from_json(SETTINGS, "config.json".as_ref()).unwrap();
    Arc::new(Decoder::random(&config, &Device::cpu(2), precision, quantization, 7))
}

/// A model of another family, of random weights, for longer texts than its fixture is.
pub(crate) fn of_family(case: &str) -> Arc<Decoder> {
    let path = format!("{}/../model/tests/fixtures/{case}/config.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("\"max_position_embeddings\": 64", "\"max_position_embeddings\": 700");
    let config = Config::from_json(&text, path.as_ref()).unwrap();
    Arc::new(Decoder::random(&config, &Device::cpu(2), Precision::Bf16, None, 7))
}

/// An adapter of made up values.
fn adapter(decoder: &Decoder, names: &[&str], r: usize, settings: PeftConfig) -> Arc<Adapter> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let settings = PeftConfig { target_modules: Some(Selection::List(names)), r, ..settings };
    let resolution = targets::resolve_as_peft(&settings, &decoder.config).unwrap();
    let layout = Layout::of_adapter(&resolution, &decoder.config);
    let mut adapter = Adapter::zeros(layout, 0.0, &decoder.device);
    adapter.initialize(Init::Default, r as u64, decoder);
    for (i, value) in adapter.parameters.values_mut().f32().iter_mut().enumerate() {
        *value += 0.3 * (random::uniform(r as u64, i as u64) as f32 - 0.5);
    }
    Arc::new(adapter)
}

/// Of different ranks and methods, and none.
pub(crate) fn adapters(decoder: &Decoder) -> Vec<Option<Arc<Adapter>>> {
    let plain = PeftConfig::default;
    let dora = || PeftConfig { use_dora: true, ..plain() };
    let qalora = PeftConfig { qalora: Some(QaLora { group: 16, pooling: Pooling::Sum }), ..plain() };
    let whole = PeftConfig { modules_to_save: vec!["norm".to_owned()], ..plain() };
    let made = [
        adapter(decoder, &["q_proj", "v_proj"], 4, plain()),
        adapter(decoder, &["q_proj", "k_proj", "o_proj"], 16, plain()),
        adapter(decoder, &["o_proj", "q_proj"], 3, dora()),
        adapter(decoder, &["q_proj"], 5, qalora),
        adapter(decoder, &["v_proj"], 2, whole),
    ];
    made.into_iter().map(Some).chain([None]).collect()
}

fn extent(sums: Sums) -> Extent {
    Extent { context: 700, cached_tokens: 4000, step_tokens: 160, running: 9, max_rank: 16, sums }
}

/// Lets a fifth of all tokens come, another fifth at each place; after `length` of them nothing.
#[derive(Clone, Debug)]
struct Fifth {
    taken: Vec<u32>,
    length: usize,
}

impl Fifth {
    fn rule(length: usize) -> Box<dyn Constraint> {
        Box::new(Fifth { taken: Vec::new(), length })
    }

    fn has(before: &[u32], token: u32) -> bool {
        let sum: u32 = before.iter().sum();
        (token + sum + before.len() as u32).is_multiple_of(5)
    }
}

impl Constraint for Fifth {
    fn allowed(&mut self) -> Result<Allowed, String> {
        let mut tokens = vec![0; 4];
        (0..128)
            .filter(|&token| Fifth::has(&self.taken, token))
            .for_each(|t| tokens[t as usize / 32] |= 1 << (t % 32));
        match self.taken.len() {
            0..13 => Ok(Allowed { tokens, may_end: self.taken.len() % 2 == 1 }),
            _ => Err("thirteen is too much".into()),
        }
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.taken.push(token);
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.taken.len() == self.length
    }

    fn copy(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// What a request came to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<Logprobs>,
    of_prompt: Vec<Logprobs>,
    ended: Option<Finish>,
}

impl Answer {
    fn take(&mut self, event: Event) {
        assert_eq!(self.ended, None, "nothing comes behind the end");
        match event {
            Event::Prompt { logprobs, .. } => self.of_prompt = logprobs,
            Event::Token { token, logprobs } => {
                self.tokens.push(token);
                self.logprobs.extend(logprobs);
            }
            Event::End(finish) => self.ended = Some(finish),
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

fn alone(engine: &mut Engine, ask: &Ask) -> Answer {
    let id = engine.submit(ask.clone()).unwrap();
    let mut answer = Answer::default();
    while !engine.is_idle() {
        for (of, event) in engine.step() {
            assert_eq!(of, id);
            answer.take(event);
        }
    }
    answer
}

/// Requests of all kinds, drawn from a seed: short and long, with beginnings in common, greedy and sampled.
fn asks(adapters: &[Option<Arc<Adapter>>], count: u64, seed: u64) -> Vec<Ask> {
    let draw = |n: u64, what: u64, bound: u64| random::below(random::key(seed, n), what, bound);
    let one = |n: u64| {
        // Two prompts of which others are the beginning.
        let text = draw(n, 0, 2);
        let token = |i: u64| random::below(random::key(100, text), i, 97) as u32;
        let length = [1, 2, 3, 4, 5, 40, 127, 128, 129, 131, 260, 400, 520][draw(n, 1, 13) as usize];
        let mut prompt: Vec<u32> = (0..length).map(token).collect();
        if draw(n, 2, 3) == 0 {
            *prompt.last_mut().unwrap() = draw(n, 3, 97) as u32;
        }
        let sampled = Sampling { temperature: 0.9, top_p: 0.9, seed: n, ..Sampling::default() };
        let penal =
            Sampling { frequency_penalty: 0.4, repetition_penalty: 1.1, min_p: 0.02, top_k: 20, ..sampled };
        Ask {
            prompt,
            adapter: adapters[draw(n, 4, adapters.len() as u64) as usize].clone(),
            max_tokens: draw(n, 5, 30) as usize,
            stop: vec![draw(n, 6, 97) as u32],
            sampling: [Sampling::default(), sampled, penal][draw(n, 7, 3) as usize],
            constraint: (draw(n, 11, 3) == 0).then(|| Fifth::rule(draw(n, 12, 12) as usize + 1)),
            logprobs: (draw(n, 8, 2) == 0).then_some(3),
            prompt_logprobs: (draw(n, 9, 4) == 0).then_some(2),
            owner: draw(n, 10, 3),
        }
    };
    (0..count).map(one).collect()
}

/// Lets requests come at random times, some of which are cancelled, and holds each against what it comes to alone.
fn check(decoder: &Arc<Decoder>, adapters: &[Option<Arc<Adapter>>], sums: Sums, seed: u64) {
    let asks = asks(adapters, 30, seed);
    let mut engine = Engine::new(Arc::clone(decoder), extent(sums));
    let mut waiting: Vec<&Ask> = asks.iter().rev().collect();
    let mut running: BTreeMap<RequestId, (&Ask, Answer)> = BTreeMap::new();
    let (mut step, mut finished, mut shared) = (0, Vec::new(), 0);
    while !waiting.is_empty() || !engine.is_idle() {
        step += 1;
        assert!(step < 5000, "somebody starves");
        for _ in 0..random::below(seed, step, 4) {
            let Some(ask) = waiting.pop() else { break };
            running.insert(engine.submit(ask.clone()).unwrap(), (ask, Answer::default()));
        }
        if random::below(seed + 1, step, 25) == 0
            && let Some((&id, _)) = running.iter().next()
        {
            engine.cancel(id);
            running.remove(&id);
        }
        for (id, event) in engine.step() {
            let (_, answer) = running.get_mut(&id).expect("no event of a request that was cancelled");
            if let Event::Prompt { cached, .. } = event {
                shared += cached;
            }
            answer.take(event);
            if answer.ended.is_some() {
                finished.push(running.remove(&id).unwrap());
            }
        }
        let load = engine.load();
        assert!(load.running <= 9 && load.used_pages + load.kept_pages <= load.pages, "{load:?}");
    }
    assert!(running.is_empty() && finished.len() > 18, "{} finished", finished.len());
    assert!(shared > 0, "nothing was taken over from another request");
    let load = engine.load();
    assert_eq!((load.running, load.waiting, load.used_pages), (0, 0, 0), "pages leak");
    let small = Extent { running: 1, step_tokens: 512, cached_tokens: 700, ..extent(sums) };
    for (ask, answer) in finished {
        // Nothing is there from another request.
        let mut engine = Engine::new(Arc::clone(decoder), small);
        let expected = alone(&mut engine, ask);
        assert!(answer == expected, "{:?}: {answer:?}, alone {expected:?}", ask.prompt.len());
        if ask.constraint.is_some() {
            for (i, &token) in answer.tokens.iter().enumerate() {
                assert!(
                    Fifth::has(&answer.tokens[..i], token),
                    "{:?}: a token that may not come",
                    answer.tokens
                );
            }
            continue;
        }
        if sums == Sums::Rows && ask.sampling.min_p == 0.0 && ask.max_tokens > 0 {
            let mut generator = Generator::new(decoder, ask.adapter.as_deref(), 700);
            let request = Request {
                prompt: &ask.prompt,
                max_tokens: ask.max_tokens,
                stop: &ask.stop,
                sampling: ask.sampling,
            };
            let generation = generator.generate(request, &mut |_| true).unwrap();
            assert_eq!(generation.tokens, answer.tokens, "as `generate` has it");
            assert_eq!(Some(generation.finish), answer.ended);
        }
    }
}

#[test]
fn requests_with_adapters_of_all_kinds_come_to_what_they_come_to_alone() {
    let four_bits = [Format::QLORA, Format::Blocks(BlockType::Int4)];
    let bases = [(Precision::F32, None), (Precision::Bf16, None)]
        .into_iter()
        .chain(four_bits.map(|format| (Precision::Bf16, Some(format))));
    for (seed, (precision, quantization)) in bases.enumerate() {
        let decoder = llama(precision, quantization);
        let adapters = adapters(&decoder);
        for sums in [Sums::Rows, Sums::Tiles] {
            check(&decoder, &adapters, sums, 10 + seed as u64);
        }
    }
}

#[test]
fn so_do_those_of_experts_and_of_windows() {
    for case in ["qwen3-moe", "gemma3", "gemma2"] {
        let decoder = of_family(case);
        let plain = |r| adapter(&decoder, &["q_proj", "o_proj"], r, PeftConfig::default());
        let adapters = [Some(plain(4)), Some(plain(7)), None];
        // The fixtures' vocabularies are not smaller.
        assert!(decoder.config.vocab_size >= 97, "{case}");
        check(&decoder, &adapters, Sums::Rows, 3);
    }
}

/// The log-probabilities of a sampled text are those of a pass over the whole of it, as training makes it.
#[test]
fn what_is_sampled_by_tiles_has_the_log_probabilities_of_training() {
    for (precision, quantization) in
        [(Precision::F32, None), (Precision::Bf16, None), (Precision::Bf16, Some(Format::QLORA))]
    {
        let decoder = llama(precision, quantization);
        for adapter in adapters(&decoder) {
            let sampling = Sampling { temperature: 1.0, seed: 5, ..Sampling::default() };
            let ask = Ask {
                prompt: (0..150).map(|i| i * 7 % 97).collect(),
                adapter: adapter.clone(),
                max_tokens: 20,
                stop: Vec::new(),
                sampling,
                constraint: None,
                logprobs: Some(0),
                prompt_logprobs: Some(0),
                owner: 0,
            };
            let mut engine = Engine::new(Arc::clone(&decoder), extent(Sums::Tiles));
            let answer = alone(&mut engine, &ask);
            let text: Vec<u32> = ask.prompt.iter().chain(&answer.tokens).copied().collect();
            let of_pass = model::Extent { tokens: 200, positions: 700, purpose: Purpose::Infer, precision };
            let layout = adapter.as_ref().map(|adapter| adapter.layout.clone()).unwrap_or_default();
            let mut buffers = Activations::new(
                &decoder.config,
                &layout,
                0.0,
                of_pass,
                &mut Allocator::real(&decoder.device),
            );
            let mut batch = Batch::new();
            batch.push(&text, &text.iter().map(|&token| token as i32).collect::<Vec<_>>());
            let (run, mut losses) = (decoder.run(adapter.as_deref()), vec![0.0; batch.targets.len()]);
            decoder.forward(&run, &batch, None, &mut buffers);
            decoder.losses(&run, &batch, &mut buffers, &mut losses);
            let got: Vec<f32> =
                answer.of_prompt.iter().chain(&answer.logprobs).map(|of_token| of_token.logprob).collect();
            let expected: Vec<f32> = losses.iter().map(|loss| -loss).collect();
            assert_eq!(got, expected, "{precision:?}");
        }
    }
}

#[test]
fn log_probabilities_are_those_of_the_softmax() {
    let decoder = llama(Precision::F32, None);
    let mut engine = Engine::new(decoder, extent(Sums::Rows));
    let prompt = vec![5, 6, 7, 8];
    let ask = Ask {
        prompt,
        adapter: None,
        max_tokens: 5,
        stop: Vec::new(),
        sampling: Sampling::default(),
        constraint: None,
        logprobs: Some(97),
        prompt_logprobs: Some(97),
        owner: 0,
    };
    let answer = alone(&mut engine, &ask);
    assert_eq!((answer.of_prompt.len(), answer.logprobs.len()), (3, 5));
    for of_token in answer.of_prompt.iter().chain(&answer.logprobs) {
        let sum: f64 = of_token.top.iter().map(|&(_, logprob)| f64::from(logprob).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        assert!(of_token.top.is_sorted_by(|a, b| a.1 >= b.1));
        assert!(of_token.top.contains(&(of_token.token, of_token.logprob)));
    }
    assert!(answer.logprobs.iter().all(|of_token| of_token.top[0].0 == of_token.token), "greedy");
}

#[test]
fn what_there_is_no_room_for_is_refused() {
    let decoder = llama(Precision::F32, None);
    let large = adapter(&decoder, &["q_proj"], 17, PeftConfig::default());
    let small = Extent { cached_tokens: 256, ..extent(Sums::Rows) };
    let mut engine = Engine::new(Arc::clone(&decoder), small);
    let mut refused = |prompt: Vec<u32>, max_tokens, adapter: Option<Arc<Adapter>>| {
        let ask = Ask {
            prompt,
            adapter,
            max_tokens,
            stop: Vec::new(),
            sampling: Sampling::default(),
            constraint: None,
            logprobs: None,
            prompt_logprobs: None,
            owner: 0,
        };
        engine.submit(ask).map(|_| ()).unwrap_err()
    };
    assert_eq!(refused(Vec::new(), 1, None), InferError::EmptyPrompt);
    assert_eq!(refused(vec![1; 701], 1, None), InferError::PromptTooLong { prompt: 701, context: 700 });
    assert_eq!(refused(vec![97], 1, None), InferError::UnknownToken { token: 97, vocab_size: 97 });
    assert_eq!(refused(vec![1; 200], 58, None), InferError::TooLarge { needed: 3, pages: 2 });
    assert!(matches!(refused(vec![1], 1, Some(large)), InferError::AdapterTooLarge { .. }));
    let plan = Engine::memory_plan(&decoder.config, Precision::F32, small);
    let of_more =
        Engine::memory_plan(&decoder.config, Precision::F32, Extent { cached_tokens: 512, ..small });
    // Two pages of keys and values, of two heads of 32, in two layers.
    assert_eq!(of_more.total() - plan.total(), 2 * 2 * 256 * 64 * 4);
}

/// A request whose adapter brings numbers that are none fails alone.
#[test]
fn an_adapter_of_damaged_values_fails_its_own_requests_alone() {
    let decoder = llama(Precision::F32, None);
    let mut damaged = adapter(&decoder, &["q_proj", "o_proj"], 4, PeftConfig::default());
    let values = Arc::get_mut(&mut damaged).unwrap().parameters.values_mut();
    values.f32().iter_mut().for_each(|value| *value = f32::INFINITY);
    let mut engine = Engine::new(Arc::clone(&decoder), extent(Sums::Rows));
    let ask = |adapter| Ask {
        prompt: vec![1, 2, 3, 4, 5, 6],
        adapter,
        max_tokens: 4,
        stop: Vec::new(),
        sampling: Sampling::default(),
        constraint: None,
        logprobs: None,
        prompt_logprobs: Some(1),
        owner: 0,
    };
    let expected = alone(&mut engine, &ask(None));
    let [bad, good] = [Some(damaged), None].map(|adapter| engine.submit(ask(adapter)).unwrap());
    let mut answer = Answer::default();
    let mut failed = false;
    while !engine.is_idle() {
        for (id, event) in engine.step() {
            match event {
                Event::Failed(InferError::NotFinite { .. }) if id == bad => failed = true,
                event if id == good => answer.take(event),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(failed && answer == expected);
    assert_eq!(engine.load().used_pages, 0);
}

/// A request that is kept to something is asked of what may come, ends where nothing may, and fails alone.
#[test]
fn a_constraint_decides_what_comes_and_when_it_ends() {
    let decoder = llama(Precision::F32, None);
    let mut engine = Engine::new(decoder, extent(Sums::Rows));
    let ask = |constraint, max_tokens, stop| Ask {
        prompt: vec![1, 2, 3],
        adapter: None,
        max_tokens,
        stop,
        sampling: Sampling { temperature: 1.0, seed: 3, ..Sampling::default() },
        constraint,
        logprobs: Some(97),
        prompt_logprobs: None,
        owner: 0,
    };
    let free = alone(&mut engine, &ask(None, 1, Vec::new()));
    let kept = alone(&mut engine, &ask(Some(Fifth::rule(6)), 20, Vec::new()));
    assert_eq!((kept.tokens.len(), kept.ended), (6, Some(Finish::Stop)));
    // Log-probabilities are the model's own, also of what may not come.
    for ((token, logprob), (of_free, expected)) in kept.logprobs[0].top.iter().zip(&free.logprobs[0].top) {
        assert!(token == of_free && (logprob - expected).abs() < 1e-5, "{token}: {logprob}, not {expected}");
    }
    let cut = alone(&mut engine, &ask(Some(Fifth::rule(6)), 5, Vec::new()));
    assert_eq!((cut.tokens.as_slice(), cut.ended), (&kept.tokens[..5], Some(Finish::Length)));
    let last = alone(&mut engine, &ask(Some(Fifth::rule(6)), 6, Vec::new()));
    assert_eq!(last.ended, Some(Finish::Stop), "what is complete is not cut");
    // Every token ends the sequence: none of them comes where it must not end.
    let ended = alone(&mut engine, &ask(Some(Fifth::rule(6)), 20, (0..97).filter(|t| t % 5 != 0).collect()));
    assert_eq!((ended.tokens.len() % 2, ended.ended), (1, Some(Finish::Stop)));
    let bad = engine.submit(ask(Some(Fifth::rule(20)), 20, Vec::new())).unwrap();
    let good = engine.submit(ask(Some(Fifth::rule(6)), 20, Vec::new())).unwrap();
    let (mut answer, mut failed) = (Answer::default(), None);
    while !engine.is_idle() {
        for (id, event) in engine.step() {
            match event {
                Event::Failed(error) if id == bad => failed = Some(error),
                event if id == good => answer.take(event),
                _ => {}
            }
        }
    }
    assert_eq!(failed, Some(InferError::Constraint("thirteen is too much".into())));
    assert_eq!((answer, engine.load().used_pages), (kept, 0));
}
