//! Generation over a device without elements.

use std::path::Path;

use compute::{Device, Precision};
use infer::{Finish, Generator, Request, Sampling};
use model::{Adapter, Decoder};

#[test]
fn text_is_generated_by_operations_and_transfers_alone() {
    for case in ["llama3", "gemma3", "gpt2", "phi3-longrope", "ministral3", "qwen3-moe", "nf4"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures").join(case);
        for precision in [Precision::F32, Precision::Bf16] {
            let decoder = Decoder::load(&folder, &Device::null(), precision, None).unwrap();
            let adapter = folder.join("adapter");
            let adapter = adapter
                .exists()
                .then(|| Adapter::load(&adapter, &decoder.config, None, &decoder.device).unwrap().0);
            let mut generator = Generator::new(&decoder, adapter.as_ref(), 30);
            let prompt = [3, 14, 15, 9, 2, 6, 5];
            let request =
                Request { prompt: &prompt, max_tokens: 9, stop: &[], sampling: Sampling::default() };
            let generation = generator.generate(request, &mut |_| true).unwrap();
            assert_eq!((generation.tokens.len(), generation.finish), (9, Finish::Length), "{case}");
        }
    }
}
