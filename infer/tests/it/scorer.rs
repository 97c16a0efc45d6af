//! Scores of texts that begin alike: those of each whole text by itself.

use std::sync::Arc;

use compute::quant::Format;
use compute::{Precision, random};
use infer::{InferError, Scored, Scorer, Stem};
use model::memory::Allocator;
use model::{Activations, Adapter, Batch, Decoder, Extent, Layout, Purpose, Run};

use crate::engine::{adapters, llama, of_family};

/// Lengths of stems and of branches: on both sides of a page's end, more of them than a pass has pages for.
const STEMS: [(usize, &[usize]); 7] = [
    (1, &[1, 2, 1]),
    (5, &[7, 1, 130, 3]),
    (127, &[1, 2, 3, 129]),
    (128, &[1, 2, 130]),
    (129, &[1, 5]),
    (300, &[84, 1]),
    (40, &[2; 60]),
];

fn stems(vocabulary: usize) -> Vec<Stem> {
    let token = |key, i| random::below(random::key(3, key), i, vocabulary as u64) as u32;
    let text = |key, len: usize| (0..len as u64).map(|i| token(key, i)).collect::<Vec<u32>>();
    let stem = |(n, (len, branches)): (usize, &(usize, &[usize]))| Stem {
        tokens: text(n as u64, *len),
        branches: branches.iter().enumerate().map(|(i, &len)| text((100 * n + i + 7) as u64, len)).collect(),
    };
    STEMS.iter().enumerate().map(stem).collect()
}

/// The definition, over the logits of a pass of the whole text.
fn by_itself(decoder: &Decoder, adapter: Option<&Adapter>, stem: &[u32], branch: &[u32]) -> (f64, bool) {
    let text = [stem, branch].concat();
    let layout = adapter.map(|adapter| adapter.layout.clone()).unwrap_or_default();
    let extent = Extent {
        tokens: text.len(),
        positions: text.len(),
        purpose: Purpose::Infer,
        precision: decoder.precision,
    };
    let mut buffers =
        Activations::new(&decoder.config, &layout, 0.0, extent, &mut Allocator::real(&decoder.device));
    let mut batch = Batch::new();
    batch.push_unlabelled(&text);
    let run = Run { by_tiles: true, ..decoder.run(adapter) };
    decoder.forward(&run, &batch, None, &mut buffers);
    let (mut sum, mut is_greedy) = (0.0, true);
    for (i, &token) in branch.iter().enumerate() {
        let logits = decoder.logits(&run, &[stem.len() + i - 1], &mut buffers).download();
        let logits: Vec<f64> = logits.f32().iter().map(|&logit| f64::from(logit)).collect();
        let most = logits.iter().copied().fold(f64::MIN, f64::max);
        let normalizer = most + logits.iter().map(|logit| (logit - most).exp()).sum::<f64>().ln();
        sum += logits[token as usize] - normalizer;
        is_greedy &= logits[token as usize] == most;
    }
    (sum, is_greedy)
}

fn score(decoder: &Arc<Decoder>, stems: &[Stem], adapter: Option<&Adapter>) -> Vec<Vec<Scored>> {
    let layout = Layout::room(&decoder.config, 16, 16);
    let mut told = Vec::new();
    let mut scorer = Scorer::new(Arc::clone(decoder), stems, &layout);
    let scores = scorer.score(stems, adapter, &mut |done| told.push(done)).unwrap();
    assert_eq!(told.last().copied().unwrap_or(0), stems.len());
    scores
}

#[test]
fn branches_have_the_scores_of_whole_texts() {
    let llamas = [llama(Precision::F32, None), llama(Precision::Bf16, Some(Format::QLORA))];
    let families = ["qwen3-moe", "gemma3"].map(|family| (of_family(family), vec![None]));
    for (decoder, adapters) in
        llamas.map(|llama| (Arc::clone(&llama), adapters(&llama))).into_iter().chain(families)
    {
        let stems = stems(decoder.config.vocab_size);
        for adapter in &adapters {
            let adapter = adapter.as_deref();
            let scores = score(&decoder, &stems, adapter);
            for (stem, scores) in stems.iter().zip(&scores) {
                for (branch, scored) in stem.branches.iter().zip(scores).take(4) {
                    let (expected, is_greedy) = by_itself(&decoder, adapter, &stem.tokens, branch);
                    let error = (scored.logprob - expected).abs() / branch.len() as f64;
                    assert!(error < 1e-5, "{scored:?}, not {expected}");
                    assert_eq!(scored.is_greedy, is_greedy);
                    // Those beside it change no bit.
                    let alone = Stem { tokens: stem.tokens.clone(), branches: vec![branch.clone()] };
                    assert_eq!(&score(&decoder, &[alone], adapter)[0][0], scored);
                }
            }
        }
    }
}

#[test]
fn a_branch_that_the_model_would_take_is_told() {
    let decoder = llama(Precision::F32, None);
    let likeliest = (0..97).find(|&token| by_itself(&decoder, None, &[1, 2, 3], &[token]).1).unwrap();
    let branches = vec![vec![likeliest], vec![(likeliest + 1) % 97], vec![likeliest, 200 % 97]];
    let scores = score(&decoder, &[Stem { tokens: vec![1, 2, 3], branches }], None);
    assert!(scores[0][0].is_greedy && !scores[0][1].is_greedy);
    assert!(scores[0][0].logprob > scores[0][1].logprob && scores[0][0].logprob > scores[0][2].logprob);
}

#[test]
fn nothing_to_score_is_nothing() {
    let decoder = llama(Precision::F32, None);
    assert_eq!(score(&decoder, &[], None), Vec::<Vec<Scored>>::new());
    let bare = Stem { tokens: vec![1], branches: Vec::new() };
    assert_eq!(score(&decoder, &[bare.clone(), bare], None), [vec![], vec![]]);
}

#[test]
fn damaged_weights_are_told() {
    let decoder = llama(Precision::F32, None);
    let mut damaged = adapters(&decoder).swap_remove(0).unwrap();
    Arc::get_mut(&mut damaged).unwrap().parameters.values_mut().f32().fill(f32::NAN);
    let stems = stems(97);
    let mut scorer = Scorer::new(Arc::clone(&decoder), &stems, &damaged.layout);
    let told = scorer.score(&stems, Some(&damaged), &mut |_| ()).unwrap_err();
    assert!(matches!(told, InferError::NotFinite { .. }), "{told}");
    // The room is as good as new.
    assert!(scorer.score(&stems, None, &mut |_| ()).is_ok());
}
