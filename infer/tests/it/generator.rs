use std::sync::Arc;

use compute::{Device, Precision};
use infer::{Finish, Generator, InferError, Request, Sampling};
use model::memory::Allocator;
use model::{Activations, Adapter, Batch, Config, Decoder, Extent, Layout, Purpose};

use crate::engine::{adapters, llama};

fn tiny() -> Decoder {
    let text = r#"{"model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "initializer_range": 0.3, "tie_word_embeddings": false, "hidden_act": "silu"}"#;
    let config = Config::from_json(text, "config.json".as_ref()).unwrap();
    Decoder::random(&config, &Device::cpu(2), Precision::F32, None, 7)
}

fn request(prompt: &[u32], max_tokens: usize) -> Request<'_> {
    Request { prompt, max_tokens, stop: &[], sampling: Sampling::default() }
}

/// Greedy continuation without a cache: the whole sequence anew for each token.
fn uncached(decoder: &Decoder, prompt: &[u32], new: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    let extent = Extent { tokens: 64, positions: 64, purpose: Purpose::Infer, precision: Precision::F32 };
    let allocator = &mut Allocator::real(&Device::cpu(2));
    let mut buffers = Activations::new(&decoder.config, &Layout::default(), 0.0, extent, allocator);
    for _ in 0..new {
        let mut batch = Batch::new();
        batch.push_unlabelled(&ids);
        let run = decoder.run(None);
        decoder.forward(&run, &batch, None, &mut buffers);
        let logits = decoder.logits(&run, &[ids.len() - 1], &mut buffers).f32();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        ids.push(best as u32);
    }
    ids.split_off(prompt.len())
}

#[test]
fn cached_equals_uncached() {
    let decoder = tiny();
    let prompt = [3, 14, 15, 9, 2, 6, 5];
    let mut generator = Generator::new(&decoder, None, 64);
    let generation = generator.generate(request(&prompt, 30), &mut |_| true).unwrap();
    assert_eq!(generation.tokens, uncached(&decoder, &prompt, 30));
    assert_eq!(generation.finish, Finish::Length);
}

#[test]
fn a_second_prompt_reuses_what_it_shares_and_says_the_same_as_a_fresh_start() {
    let decoder = tiny();
    let mut generator = Generator::new(&decoder, None, 64);
    generator.generate(request(&[1, 2, 3, 4, 5], 8), &mut |_| true).unwrap();
    let second = [1, 2, 3, 9, 9, 9];
    let reused = generator.generate(request(&second, 12), &mut |_| true).unwrap();
    assert_eq!(reused.computed_prompt_tokens, 3);
    assert_eq!(reused.tokens, uncached(&decoder, &second, 12));
    let again = generator.generate(request(&second, 12), &mut |_| true).unwrap();
    assert_eq!(again.computed_prompt_tokens, 1, "the last token is always computed");
    assert_eq!(again.tokens, reused.tokens);
}

#[test]
fn a_stop_token_the_context_and_the_listener_end_generation() {
    let decoder = tiny();
    let mut generator = Generator::new(&decoder, None, 16);
    let all = generator.generate(request(&[7, 8], 100), &mut |_| true).unwrap();
    assert_eq!(
        (all.tokens.len(), all.finish),
        (15, Finish::Length),
        "the last token needs no place of its own"
    );
    let stop = [all.tokens[4]];
    let first = all.tokens.iter().position(|t| *t == stop[0]).unwrap();
    let stopped =
        generator.generate(Request { stop: &stop, ..request(&[7, 8], 100) }, &mut |_| true).unwrap();
    assert_eq!((&stopped.tokens[..], stopped.finish), (&all.tokens[..first], Finish::Stop));
    let cancelled = generator.generate(request(&[7, 8], 100), &mut |_| false).unwrap();
    assert_eq!((cancelled.tokens.len(), cancelled.finish), (1, Finish::Cancelled));
}

#[test]
fn prompts_that_cannot_be_continued_are_refused() {
    let decoder = tiny();
    let mut generator = Generator::new(&decoder, None, 8);
    let mut refused = |prompt: &[u32]| generator.generate(request(prompt, 1), &mut |_| true).unwrap_err();
    assert_eq!(refused(&[]), InferError::EmptyPrompt);
    assert_eq!(refused(&[0; 9]), InferError::PromptTooLong { prompt: 9, context: 8 });
    assert_eq!(refused(&[61]), InferError::UnknownToken { token: 61, vocab_size: 61 });
}

#[test]
fn logits_that_are_not_finite_are_an_error_and_no_token() {
    let mut config = tiny().config;
    config.initializer_range = 3e38;
    let decoder = Decoder::random(&config, &Device::cpu(1), Precision::F32, None, 7);
    let mut generator = Generator::new(&decoder, None, 8);
    let error = generator.generate(request(&[1, 2], 4), &mut |_| panic!("no token")).unwrap_err();
    assert_eq!(error, InferError::NotFinite { tokens: 2 });
}

/// Of DoRA, the factors of a layer's rows depend on the adapter's values alone, and are computed ahead where
/// these do not change.
#[test]
fn a_generator_over_what_is_trained_takes_the_values_as_they_are() {
    let decoder = llama(Precision::F32, None);
    let dora = || Arc::into_inner(adapters(&decoder).remove(2).unwrap()).unwrap();
    let change =
        |adapter: &mut Adapter| adapter.parameters.values_mut().f32().iter_mut().for_each(|x| *x *= 2.0);
    let said = |mut generator: Generator<'_>| {
        generator.generate(request(&[3, 1, 4, 1, 5], 20), &mut |_| true).unwrap().tokens
    };
    let mut trained = dora();
    let before = said(Generator::over_trained(&decoder, Some(&trained), 40));
    assert_eq!(before, said(Generator::new(&decoder, Some(&dora()), 40)));
    change(&mut trained);
    let after = said(Generator::over_trained(&decoder, Some(&trained), 40));
    let mut fresh = dora();
    change(&mut fresh);
    assert_eq!(after, said(Generator::new(&decoder, Some(&fresh), 40)));
    assert_ne!(before, after);
}
