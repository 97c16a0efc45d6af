//! Examples as batches, and the losses of those that are not trained on.

use data::Example;
use model::{Activations, Batch, Change, Decoder, Run};

use crate::error::{Result, TrainError};

/// Of each of these examples, the first of which has this number in the run, the sum of the losses of its trained
/// tokens, and their number. Keeps no logits.
///
/// # Errors
/// If the buffers keep what frozen layers give, and it cannot be written or read.
pub fn evaluate(
    run: &Run<'_>,
    decoder: &Decoder,
    (first, examples): (usize, &[Example]),
    buffers: &mut Activations,
) -> Result<Vec<(f64, u64)>> {
    let examples: Vec<(usize, &Example)> = (first..).zip(examples).collect();
    let mut of_examples = Vec::new();
    for batch in micro_batches(&examples, buffers.extent().tokens) {
        let losses = losses(run, decoder, &batch, buffers)?;
        let mut rest = batch.targets.iter().zip(&losses).peekable();
        for segment in &batch.segments {
            let own = std::iter::from_fn(|| rest.next_if(|(target, _)| target.row < segment.queries.end));
            of_examples
                .push(own.fold((0.0, 0), |(sum, count), (_, loss)| (sum + f64::from(*loss), count + 1)));
        }
    }
    Ok(of_examples)
}

/// The sum of the losses of all trained tokens of these examples and their number, by at most so many tokens at once:
/// what a run alone has room for, since sums depend on it.
pub(crate) fn evaluate_by(
    run: &Run<'_>,
    decoder: &Decoder,
    (first, examples): (usize, &[Example]),
    most: usize,
    buffers: &mut Activations,
) -> Result<(f64, u64)> {
    let examples: Vec<(usize, &Example)> = (first..).zip(examples).collect();
    let (mut sum, mut tokens) = (0.0, 0);
    for batch in micro_batches(&examples, most) {
        sum += self::sum(&losses(run, decoder, &batch, buffers)?);
        tokens += batch.targets.len() as u64;
    }
    Ok((sum, tokens))
}

/// What the run's adapter changes about the trained tokens of each of these texts. They pass with the adapter and
/// without it, so the longest of them must have room in the buffers twice.
pub fn changes(
    run: &Run<'_>,
    decoder: &Decoder,
    texts: &[Example],
    buffers: &mut Activations,
) -> Vec<Vec<Change>> {
    let of_text = |text: &Example| {
        let mut batch = Batch::new();
        batch.push(&text.input_ids, &text.labels);
        decoder.changes(run, &batch, buffers)
    };
    texts.iter().map(of_text).collect()
}

/// The losses of a batch's targets.
pub(crate) fn losses(
    run: &Run<'_>,
    decoder: &Decoder,
    batch: &Batch,
    buffers: &mut Activations,
) -> Result<Vec<f32>> {
    let mut losses = vec![0.0; batch.targets.len()];
    decoder.forward_examples(run, batch, buffers).map_err(TrainError::of_pages)?;
    decoder.losses(run, batch, buffers, &mut losses);
    Ok(losses)
}

/// The sum of losses, in order.
pub(crate) fn sum(losses: &[f32]) -> f64 {
    losses.iter().map(|&loss| f64::from(loss)).sum()
}

/// Cuts numbered examples, in order, into batches of at most `most` tokens; an example longer than that
/// stands alone.
pub(crate) fn micro_batches(examples: &[(usize, &Example)], most: usize) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for &(number, example) in examples {
        if batches.last().is_none_or(|batch| batch.tokens() + example.len() > most) {
            batches.push(Batch::new());
        }
        let batch = batches.last_mut().expect("there is a batch");
        batch.push(&example.input_ids, &example.labels);
        batch.examples.push(number);
    }
    batches
}
