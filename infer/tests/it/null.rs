//! Generation over a device without elements.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use compute::{Device, Precision};
use infer::{Ask, Engine, Event, Extent, Finish, Generator, Request, Sampling, Sums};
use model::{Adapter, Decoder};

/// What lies in a folder and holds this file, in order.
fn folders_with(folder: &Path, file: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = all.filter(|path| path.join(file).exists()).collect();
    found.sort();
    found
}

#[test]
fn text_is_generated_by_operations_and_transfers_alone() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    let (mut tried, mut of_adapters) = (0, 0);
    for folder in folders_with(&models, "config.json") {
        let case = folder.display();
        for precision in [Precision::F32, Precision::Bf16] {
            let decoder = Decoder::load(&folder, &Device::null(), precision, None).unwrap();
            let read =
                |path: PathBuf| Adapter::load(&path, &decoder.config, None, &decoder.device).unwrap().0;
            let mut adapters = folders_with(&folder, "adapter_config.json");
            // It is there to be refused.
            adapters.retain(|path| !path.ends_with("adapter-vision"));
            let adapters: Vec<Arc<Adapter>> = adapters.into_iter().map(read).map(Arc::new).collect();
            for adapter in std::iter::once(None).chain(adapters.iter().map(|adapter| Some(&**adapter))) {
                let mut generator = Generator::new(&decoder, adapter, 30);
                let prompt = [3, 14, 15, 9, 2, 6, 5];
                let request =
                    Request { prompt: &prompt, max_tokens: 9, stop: &[], sampling: Sampling::default() };
                let generation = generator.generate(request, &mut |_| true).unwrap();
                assert_eq!((generation.tokens.len(), generation.finish), (9, Finish::Length), "{case}");
                (tried, of_adapters) = (tried + 1, of_adapters + usize::from(adapter.is_some()));
            }
            // All of them at once.
            let extent = Extent {
                context: 30,
                cached_tokens: 2048,
                step_tokens: 20,
                running: 4,
                max_rank: 64,
                sums: Sums::Rows,
            };
            let mut engine = Engine::new(Arc::new(decoder), extent);
            for adapter in std::iter::once(None).chain(adapters.into_iter().map(Some)) {
                let ask = Ask {
                    prompt: vec![3, 14, 15, 9, 2, 6, 5],
                    adapter,
                    max_tokens: 5,
                    stop: Vec::new(),
                    sampling: Sampling::default(),
                    constraint: None,
                    logprobs: Some(2),
                    prompt_logprobs: Some(2),
                    owner: 0,
                };
                engine.submit(ask).unwrap();
            }
            while !engine.is_idle() {
                let failed = |(_, event): &(_, Event)| matches!(event, Event::Failed(_));
                assert!(!engine.step().iter().any(failed), "{case}");
            }
        }
    }
    assert!(tried > 100 && of_adapters > 40, "{tried} generations, {of_adapters} with an adapter");
}
