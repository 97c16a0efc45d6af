//! What a model gives to texts that are there: of many that begin alike, the beginning is computed once.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

use compute::Precision;
use model::memory::{Allocator, MemoryPlan};
use model::{Activations, Adapter, Batch, Cache, Config, Decoder, Extent, Group, Layout, PAGE, Purpose, Run};

use crate::generator::InferError;

/// Tokens of a pass, where no text is longer.
const TOKENS: usize = 1024;
/// Pages of the cache, where no text needs more: each branch has its last ones for itself.
const PAGES: usize = 32;

/// A beginning, and texts that may follow it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stem {
    /// The tokens of the beginning, one at least.
    pub tokens: Vec<u32>,
    /// The tokens of what follows, one at least each.
    pub branches: Vec<Vec<u32>>,
}

impl Stem {
    /// Tokens of the longest text that it comes to.
    fn longest(&self) -> usize {
        self.tokens.len() + self.branches.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// What a model gives to a branch behind its stem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The logarithm of its probability: the sum over its tokens.
    pub logprob: f64,
    /// Whether each of its tokens is the likeliest one where it stands.
    pub is_greedy: bool,
}

/// Buffers to score in, for texts up to some length.
#[derive(Debug)]
pub struct Scorer {
    decoder: Arc<Decoder>,
    buffers: Activations,
    cache: Cache,
    pages: usize,
}

/// Some branches of a stem, which pass through the model with it.
struct Part {
    stem: usize,
    branches: Range<usize>,
}

/// A row of a pass, and the tokens that may follow it: of which stem's which branch, and which token.
struct Asked {
    row: usize,
    next: Vec<((usize, usize), u32)>,
}

impl Scorer {
    /// Room for stems of these kinds, and for adapters of a layout.
    pub fn new(decoder: Arc<Decoder>, stems: &[Stem], layout: &Layout) -> Self {
        let longest = stems.iter().map(Stem::longest).max().unwrap_or(1);
        let allocator = &mut Allocator::real(&decoder.device);
        let (buffers, cache) = room(&decoder.config, decoder.precision, longest, layout, allocator);
        let pages = pages(longest);
        Scorer { decoder, buffers, cache, pages }
    }

    /// The memory that [`Scorer::new`] asks for, of a model like this and texts of so many tokens.
    pub fn memory_plan(config: &Config, precision: Precision, longest: usize, layout: &Layout) -> MemoryPlan {
        let mut planning = Allocator::planning();
        room(config, precision, longest, layout, &mut planning);
        planning.into_plan()
    }

    /// Scores all branches of all stems. `done` is told how many stems are.
    ///
    /// # Errors
    /// If the model's logits are not finite numbers.
    ///
    /// # Panics
    /// If a stem or a branch is empty, longer than those that there is room for, or has unknown tokens.
    pub fn score(
        &mut self,
        stems: &[Stem],
        adapter: Option<&Adapter>,
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<Scored>>, InferError> {
        adapter.into_iter().for_each(|adapter| self.decoder.fix(adapter));
        let nothing = Scored { logprob: 0.0, is_greedy: true };
        let mut scores: Vec<Vec<Scored>> =
            stems.iter().map(|stem| vec![nothing; stem.branches.len()]).collect();
        let mut next = (0, 0);
        while next.0 < stems.len() {
            let (parts, after) = self.parts(stems, next);
            self.pass(stems, &parts, adapter, &mut scores)?;
            next = after;
            done(next.0);
        }
        Ok(scores)
    }

    /// What goes into one pass from a stem's branch on, and where the next one begins. A stem whose branches do not
    /// fit is part of the next pass, too.
    fn parts(&self, stems: &[Stem], (mut stem, mut branch): (usize, usize)) -> (Vec<Part>, (usize, usize)) {
        let (mut tokens, mut pages) = (self.buffers.extent().tokens, self.pages);
        let mut parts = Vec::new();
        while let Some(of) = stems.get(stem) {
            let first = branch;
            let (own_tokens, own_pages) = (of.tokens.len(), of.tokens.len().div_ceil(PAGE));
            let fits = |tokens: usize, pages: usize, branch: &Vec<u32>, own: (usize, usize)| {
                branch.len() - 1 + own.0 <= tokens && branch_pages(of, branch) + own.1 <= pages
            };
            // A stem comes with its first branch or not at all.
            let mut own = (own_tokens, own_pages);
            while let Some(next) = of.branches.get(branch).filter(|next| fits(tokens, pages, next, own)) {
                tokens -= next.len() - 1 + own.0;
                pages -= branch_pages(of, next) + own.1;
                (own, branch) = ((0, 0), branch + 1);
            }
            if branch > first {
                parts.push(Part { stem, branches: first..branch });
            }
            if branch < of.branches.len() {
                assert!(
                    !parts.is_empty(),
                    "a text of {} tokens is longer than there is room for",
                    of.longest()
                );
                break;
            }
            (stem, branch) = (stem + 1, 0);
        }
        (parts, (stem, branch))
    }

    fn pass(
        &mut self,
        stems: &[Stem],
        parts: &[Part],
        adapter: Option<&Adapter>,
        scores: &mut [Vec<Scored>],
    ) -> Result<(), InferError> {
        let (batch, asked) = batch(stems, parts);
        if asked.is_empty() {
            return Ok(());
        }
        // So that a text's score does not depend on those that pass with it.
        let Scorer { decoder, buffers, cache, .. } = self;
        let run = Run { by_tiles: true, ..decoder.run(adapter) };
        decoder.forward_groups(&[Group::of_all(&run, &batch)], &batch, Some(cache), buffers);
        for asked in asked.chunks(buffers.logits_rows()) {
            let rows: Vec<usize> = asked.iter().map(|asked| asked.row).collect();
            let logits = decoder.logits(&run, &rows, buffers).download();
            let likeliest = likeliest(asked, logits.f32(), decoder.config.vocab_size)?;
            drop(logits);
            for (i, likeliest) in likeliest.into_iter().enumerate() {
                // Rows that more tokens may follow stand in front.
                let nexts = asked.iter().map_while(|asked| asked.next.get(i));
                let tokens: Vec<u32> = nexts.clone().map(|(_, token)| *token).collect();
                let losses = decoder.losses_of_next(&tokens, buffers);
                for ((((stem, branch), _), loss), is_likeliest) in nexts.zip(losses).zip(likeliest) {
                    let scored = &mut scores[*stem][*branch];
                    scored.logprob -= f64::from(loss);
                    scored.is_greedy &= is_likeliest;
                }
            }
        }
        Ok(())
    }
}

/// Whether no other token is likelier, of the first token behind each row, of the second of those that have two, and
/// so on.
fn likeliest(asked: &[Asked], logits: &[f32], vocabulary: usize) -> Result<Vec<Vec<bool>>, InferError> {
    let mut all = vec![Vec::new(); asked.first().map_or(0, |asked| asked.next.len())];
    for (asked, logits) in asked.iter().zip(logits.chunks_exact(vocabulary)) {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(InferError::NotFinite { tokens: asked.row + 1 });
        }
        let most = logits.iter().copied().fold(f32::MIN, f32::max);
        for (all, (_, token)) in all.iter_mut().zip(&asked.next) {
            all.push(logits[*token as usize] == most);
        }
    }
    Ok(all)
}

/// Pages that a branch has for itself.
fn branch_pages(stem: &Stem, branch: &[u32]) -> usize {
    (stem.tokens.len() + branch.len() - 1).div_ceil(PAGE) - stem.tokens.len() / PAGE
}

/// The rows of a pass, and what is asked of them, of which most is asked first.
fn batch(stems: &[Stem], parts: &[Part]) -> (Batch, Vec<Asked>) {
    let (mut batch, mut asked, mut free) = (Batch::new(), Vec::new(), 0_u32..);
    for &Part { stem, ref branches } in parts {
        let Stem { tokens, branches: all } = &stems[stem];
        let own: Vec<u32> = free.by_ref().take(tokens.len().div_ceil(PAGE)).collect();
        let first = batch.push_paged(tokens, 0, own.as_slice().into());
        let rows = first..first + tokens.len();
        let firsts = branches.clone().map(|branch| ((stem, branch), all[branch][0]));
        asked.push(Asked { row: rows.end - 1, next: firsts.collect() });
        for branch in branches.clone() {
            // The last token predicts nothing that is asked for.
            let [new @ .., _] = all[branch].as_slice() else { panic!("a branch has a token") };
            if new.is_empty() {
                continue;
            }
            let full = own[..tokens.len() / PAGE].iter().copied();
            let pages: Arc<[u32]> =
                full.chain(free.by_ref().take(branch_pages(&stems[stem], &all[branch]))).collect();
            let row = batch.push_branch(new, rows.clone(), pages);
            let next = all[branch][1..].iter().enumerate();
            asked.extend(next.map(|(i, &token)| Asked { row: row + i, next: vec![((stem, branch), token)] }));
        }
    }
    asked.sort_by_key(|asked| Reverse(asked.next.len()));
    (batch, asked)
}

/// Pages for any text of so many tokens, with its stem's own.
fn pages(longest: usize) -> usize {
    PAGES.max(2 * longest.div_ceil(PAGE))
}

fn room(
    config: &Config,
    precision: Precision,
    longest: usize,
    layout: &Layout,
    allocator: &mut Allocator,
) -> (Activations, Cache) {
    let tokens = TOKENS.max(longest);
    let extent = Extent { tokens, positions: longest, purpose: Purpose::Infer, precision };
    let buffers = Activations::new(config, layout, 0.0, extent, allocator);
    (buffers, Cache::new(config, precision, PAGE * pages(longest), allocator))
}
