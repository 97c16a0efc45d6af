//! Choosing the next token from logits.

use std::collections::BTreeMap;

use compute::random;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0: always the likeliest token.
    pub temperature: f32,
    /// Only the likeliest tokens that together have this probability, one at least; 1: all.
    pub top_p: f32,
    /// Only this many of the likeliest tokens; 0: all.
    pub top_k: usize,
    /// Only tokens that are at least this part as likely as the likeliest; 0: all.
    pub min_p: f32,
    /// Taken from the logit of every token that the answer has (OpenAI's `presence_penalty`).
    pub presence_penalty: f32,
    /// The same for each time that it has it.
    pub frequency_penalty: f32,
    /// Logits of tokens that prompt or answer have are divided by it where positive, else multiplied; 1:
    /// nothing (Keskar et al. 2019).
    pub repetition_penalty: f32,
    /// Same seed, same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Whether it asks what prompt and answer have already.
    fn has_penalties(&self) -> bool {
        (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)
    }
}

/// Draws tokens; the draw at a place depends only on the seed and the place.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    drawn: u64,
    candidates: Vec<(f32, u32)>,
    /// How often the answer has a token, 0 for those of the prompt alone; empty without penalties.
    counts: BTreeMap<u32, u32>,
    /// Logits less penalties.
    lowered: Vec<f32>,
}

impl Sampler {
    /// A sampler at its first draw, behind a prompt.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let seen = if sampling.has_penalties() { prompt } else { &[] };
        let counts = seen.iter().map(|&token| (token, 0)).collect();
        Sampler { sampling, drawn: 0, candidates: Vec::new(), counts, lowered: Vec::new() }
    }

    /// The next token for logits `[V]`. Ties go to the smaller id; what is minus infinity never comes.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        if !self.sampling.has_penalties() {
            return self.draw(logits);
        }
        let mut lowered = std::mem::take(&mut self.lowered);
        lowered.clear();
        lowered.extend_from_slice(logits);
        let Sampling { presence_penalty, frequency_penalty, repetition_penalty, .. } = self.sampling;
        for (&token, &count) in &self.counts {
            let logit = lowered.get_mut(token as usize).filter(|logit| **logit > f32::NEG_INFINITY);
            let Some(logit) = logit else { continue };
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
            if count > 0 {
                *logit -= presence_penalty + frequency_penalty * count as f32;
            }
            // Whatever the penalties are, something can be drawn.
            *logit = if logit.is_nan() { f32::MIN } else { logit.clamp(f32::MIN, f32::MAX) };
        }
        let token = self.draw(&lowered);
        self.lowered = lowered;
        *self.counts.entry(token).or_default() += 1;
        token
    }

    /// [`Sampler::sample`] of logits from which penalties are taken.
    fn draw(&mut self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_p, top_k, min_p, seed, .. } = self.sampling;
        let draw = random::uniform(random::key(seed, 0x5a), self.drawn);
        self.drawn += 1;
        if temperature <= 0.0 {
            return likeliest(logits);
        }
        self.candidates.clear();
        let possible = logits.iter().zip(0..).filter(|(logit, _)| **logit > f32::NEG_INFINITY);
        self.candidates.extend(possible.map(|(&l, id)| (l, id)));
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if top_k > 0 && top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, order);
            self.candidates.truncate(top_k);
        }
        let largest = self.candidates.iter().map(|c| c.0).fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| f64::from((logit - largest) / temperature).exp();
        if min_p > 0.0 {
            // The likeliest weighs 1.
            self.candidates.retain(|c| weight(c.0) >= f64::from(min_p));
        }
        let total: f64 = self.candidates.iter().map(|c| weight(c.0)).sum();
        // All that is left out below weighs less than 1 - top_p, so that sorting the rest is enough: a few of
        // many.
        let floor = (1.0 - f64::from(top_p)) * total / self.candidates.len() as f64;
        self.candidates.retain(|c| weight(c.0) >= floor);
        if top_p < 1.0 || top_k > 0 {
            self.candidates.sort_unstable_by(order);
        }
        // Nucleus (Holtzman et al. 2020): the shortest prefix whose probability reaches top_p.
        let (mut nucleus, mut kept) = (0.0, 0);
        for candidate in &self.candidates {
            nucleus += weight(candidate.0);
            kept += 1;
            if nucleus >= f64::from(top_p) * total {
                break;
            }
        }
        if kept == 0 {
            // Weights beyond what numbers hold.
            return likeliest(logits);
        }
        let mut rest = draw * nucleus;
        for candidate in &self.candidates[..kept] {
            rest -= weight(candidate.0);
            if rest < 0.0 {
                return candidate.1;
            }
        }
        self.candidates[kept - 1].1
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    best as u32
}
