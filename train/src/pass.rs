//! Micro-batches of several runs in one forward and backward pass over their base.
//!
//! Each run's rows are a group with its own adapter and its own gradients, and come to what they come to
//! alone, to the byte ([`Decoder::forward_groups_to_train`]). So runs may share any pass in any company; what
//! must not change is how a run's own examples are cut into micro-batches, and their order.

use std::collections::VecDeque;
use std::time::Instant;

use model::{Activations, Batch, Decoder, Group, Run};

use crate::course::Course;
use crate::error::{Result, TrainError};
use crate::evaluation::sum;

/// What all runs pass through.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    /// The frozen base.
    pub(crate) decoder: &'a Decoder,
    /// The buffers of a pass.
    pub(crate) buffers: Activations,
}

/// A run's step under way.
#[derive(Debug)]
pub(crate) struct Underway {
    pub(crate) begun: Instant,
    /// Its number, from 1.
    pub(crate) step: u64,
    /// All tokens of the step, and those that carry loss.
    pub(crate) tokens: usize,
    pub(crate) trained: usize,
    /// Key of its dropout masks.
    pub(crate) dropout_key: u64,
    /// Micro-batches that are still to pass.
    pub(crate) batches: VecDeque<Batch>,
    /// The sum of the losses so far.
    pub(crate) loss: f64,
    /// The mean load of experts so far.
    pub(crate) load: f64,
}

/// A run that takes part in a pass, with the micro-batch that it brings.
struct Member<'m, 'a> {
    course: &'m mut Course<'a>,
    step: &'m mut Underway,
    batch: Batch,
}

/// Brings all micro-batches of these steps through forward and backward passes, as many runs at once as the
/// buffers have room for.
///
/// # Errors
/// If what is not in memory cannot be written or read.
pub(crate) fn pass_all<'a>(
    room: &mut Room<'a>,
    steps: &mut [(&mut Course<'a>, &mut Underway)],
) -> Result<()> {
    let most = room.buffers.extent().tokens;
    loop {
        let (mut members, mut tokens) = (Vec::new(), 0);
        for (course, step) in steps.iter_mut() {
            let Some(next) = step.batches.front() else { continue };
            let alone = course.passes_alone();
            if !members.is_empty() && (alone || tokens + next.tokens() > most) {
                continue;
            }
            let batch = step.batches.pop_front().expect("there is a next one");
            tokens += batch.tokens();
            members.push(Member { course, step, batch });
            if alone {
                break;
            }
        }
        if members.is_empty() {
            return Ok(());
        }
        pass(room, members)?;
    }
}

/// One pass: adds to each member's gradients, and to the loss of its step.
fn pass(room: &mut Room<'_>, mut members: Vec<Member<'_, '_>>) -> Result<()> {
    let Room { decoder, buffers } = room;
    let (mut batch, mut rows, mut weights) = (Batch::new(), Vec::new(), Vec::new());
    for member in &members {
        let start = batch.tokens();
        batch.append(&member.batch);
        rows.push(start..batch.tokens());
        // The mean over the trained tokens of the whole step, whatever its micro-batches.
        let weight = 1.0 / member.step.trained.max(1) as f32;
        weights.resize(batch.targets.len(), weight);
    }
    let mut losses = vec![0.0; weights.len()];
    let mut gradients: Vec<_> = members.iter_mut().map(|member| member.course.lend_gradients()).collect();
    let group = |(member, rows)| {
        let Member { course, step, .. }: &Member<'_, '_> = member;
        let (dropout_key, router_aux_loss) = (Some(step.dropout_key), course.settings.router_aux_loss);
        Group { rows, run: Run { dropout_key, router_aux_loss, ..decoder.run(Some(&course.adapter)) } }
    };
    let groups: Vec<Group<'_>> = members.iter().zip(rows).map(group).collect();
    let passed = decoder.forward_groups_to_train(&groups, &batch, buffers).and_then(|()| {
        decoder.backward_groups(&groups, &batch, &weights, buffers, &mut losses, &mut gradients)
    });
    drop(groups);
    let mut rest = &losses[..];
    for (Member { course, step, batch }, gradients) in members.into_iter().zip(gradients) {
        course.take_gradients(gradients);
        let own;
        (own, rest) = rest.split_at(batch.targets.len());
        step.loss += sum(own);
        // Of a run alone: others have no loss of experts.
        step.load += buffers.router_aux_loss() * batch.tokens() as f64 / step.tokens as f64;
    }
    passed.map_err(TrainError::of_pages)
}
