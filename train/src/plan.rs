//! Which examples each optimizer step sees: a function of the settings and the seed, so a resumed run needs
//! no more than its step.

use compute::Precision;
use data::{Dataset, Example, OrderSpec, Row};
use model::{Checkpointing, Extent, Purpose};

use crate::forecast::Amount;
use crate::job::Forgetting;

/// What the examples of a run ask of its buffers, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The longest example.
    pub longest: usize,
    /// The largest optimizer step, or all there are.
    pub step: usize,
    /// The most that can be asked for at once: a step, or all that is evaluated on.
    pub total: usize,
    /// The longest text that passes together with itself, with the adapter and without it, to tell what the model
    /// forgets; 0: none does.
    pub compared: usize,
}

impl Demand {
    /// The tokens of a micro-batch, at most: an example is never cut, so a longer one is a micro-batch of its own.
    pub(crate) fn micro_batch(self, micro_batch_tokens: usize) -> usize {
        micro_batch_tokens.min(self.total).max(self.longest)
    }

    /// The longest sequence of all.
    pub fn positions(self) -> usize {
        self.longest.max(self.compared)
    }

    /// The buffers for so many tokens in memory at once. An example is never cut, so a longer one has room
    /// too.
    pub fn extent(
        self,
        micro_batch_tokens: usize,
        checkpointing: Checkpointing,
        precision: Precision,
    ) -> Extent {
        Extent {
            tokens: self.micro_batch(micro_batch_tokens).max(2 * self.compared),
            positions: self.positions(),
            purpose: Purpose::Train(checkpointing),
            precision,
        }
    }
}

/// The steps of a run.
#[derive(Debug)]
pub struct StepPlan<'a> {
    dataset: &'a Dataset,
    order: OrderSpec,
    batch_size: usize,
    /// Steps done at the end of each epoch.
    epoch_ends: Vec<u64>,
    /// How often the run passes each example.
    visits: Vec<u64>,
    current: Option<(u64, Vec<Row>)>,
}

impl<'a> StepPlan<'a> {
    /// The steps of `epochs` epochs over these examples, `batch_size` rows a step, at most `max_steps`.
    pub fn new(
        dataset: &'a Dataset,
        order: OrderSpec,
        batch_size: usize,
        epochs: u64,
        max_steps: Option<u64>,
    ) -> Self {
        let visits = vec![0; dataset.examples.len()];
        let mut plan = StepPlan { dataset, order, batch_size, epoch_ends: Vec::new(), visits, current: None };
        let mut steps = 0;
        for epoch in 0..epochs {
            if max_steps.is_some_and(|most| steps >= most) {
                break;
            }
            let left = max_steps.map_or(usize::MAX, |most| (most - steps) as usize);
            let rows = dataset.rows(&OrderSpec { epoch, ..order });
            let passed = rows.iter().take(left.saturating_mul(batch_size)).flatten();
            passed.for_each(|&example| plan.visits[example] += 1);
            steps += rows.len().div_ceil(batch_size) as u64;
            plan.epoch_ends.push(steps);
            plan.current = Some((epoch, rows));
        }
        plan
    }

    /// Number of steps.
    pub fn steps(&self) -> u64 {
        self.epoch_ends.last().copied().unwrap_or(0)
    }

    /// What a run of so many steps does, evaluated every so often on `eval`, and every so often on what tells
    /// whether the model forgets.
    pub fn amount(
        &self,
        steps: u64,
        (eval_every, eval): (Option<u64>, &[Example]),
        forgetting: Option<&Forgetting<'_>>,
    ) -> Amount {
        let tokens = |example: &Example| example.len() as u64;
        let passed =
            || self.dataset.examples.iter().zip(&self.visits).map(|(e, &visits)| (tokens(e), visits));
        Amount {
            steps,
            tokens: passed().map(|(tokens, visits)| tokens * visits).sum(),
            first_tokens: passed().map(|(tokens, visits)| tokens * visits.min(1)).sum(),
            evaluations: if eval.is_empty() { 0 } else { 1 + self.evaluations(0, steps, eval_every, eval) },
            eval_tokens: eval.iter().map(tokens).sum(),
            compared_tokens: forgetting.map_or(0, |forgetting| {
                // With the adapter and without it.
                2 * forgetting.times(0, steps) * forgetting.texts.iter().map(tokens).sum::<u64>()
            }),
        }
    }

    /// Evaluations that are due after a later step than `step`, until the `last`: every so many steps, or
    /// after each epoch, and in the end.
    pub(crate) fn evaluations(&self, step: u64, last: u64, every: Option<u64>, eval: &[Example]) -> u64 {
        if eval.is_empty() || step >= last {
            return 0;
        }
        let between = match every {
            Some(n) => (last - 1) / n - step / n,
            None => self.epoch_ends.iter().filter(|&&end| end > step && end < last).count() as u64,
        };
        between + 1
    }

    /// The tokens of each example that the run passes more than once, 0 of the others: those of training
    /// first, then the held-out ones, which are evaluated before the first step and after the last at least.
    pub fn repeated(&self, eval: &[Example]) -> Vec<usize> {
        let train = self.dataset.examples.iter().zip(&self.visits);
        let train = train.map(|(example, &visits)| if visits > 1 { example.len() } else { 0 });
        train.chain(eval.iter().map(Example::len)).collect()
    }

    /// What the run asks of its buffers if it is evaluated on `eval`, and by `compared` what the model forgets. It
    /// is the same for more epochs or steps.
    pub fn demand(&self, eval: &[Example], compared: &[Example]) -> Demand {
        let compared = compared.iter().map(Example::len).max().unwrap_or(0);
        let longest = |examples: &[Example]| examples.iter().map(Example::len).max().unwrap_or(0);
        let tokens = |examples: &[Example]| examples.iter().map(Example::len).sum::<usize>();
        let train = &self.dataset.examples;
        let row = if self.order.packing { self.order.max_length } else { longest(train) };
        let (held_out, longest) = (tokens(eval), longest(train).max(longest(eval)).max(1));
        let step = self.batch_size.saturating_mul(row).min(tokens(train).max(held_out)).max(longest);
        Demand { longest, step, total: step.max(held_out), compared }
    }

    /// Epochs that the run begins.
    pub fn epochs(&self) -> u64 {
        self.epoch_ends.len() as u64
    }

    /// Whether an epoch ends with a step.
    pub(crate) fn ends_epoch(&self, step: u64) -> bool {
        self.epoch_ends.binary_search(&step).is_ok()
    }

    /// The examples of a step (from 1), in order.
    pub fn examples(&mut self, step: u64) -> Vec<usize> {
        let (epoch, start) = self.locate(step);
        let first = (step - 1 - start) as usize * self.batch_size;
        let batch_size = self.batch_size;
        self.rows(epoch).iter().skip(first).take(batch_size).flat_map(|row| row.iter().copied()).collect()
    }

    /// Epochs done after a step.
    pub fn epochs_done(&self, step: u64) -> f64 {
        let (epoch, start) = self.locate(step);
        let steps = self.epoch_ends[epoch as usize] - start;
        epoch as f64 + (step - start) as f64 / steps as f64
    }

    /// The epoch of a step and the steps before it.
    fn locate(&self, step: u64) -> (u64, u64) {
        let epoch = self.epoch_ends.partition_point(|&end| end < step);
        (epoch as u64, if epoch == 0 { 0 } else { self.epoch_ends[epoch - 1] })
    }

    fn rows(&mut self, epoch: u64) -> &[Row] {
        if self.current.as_ref().is_none_or(|(of, _)| *of != epoch) {
            self.current = Some((epoch, self.dataset.rows(&OrderSpec { epoch, ..self.order })));
        }
        &self.current.as_ref().expect("just set").1
    }
}
