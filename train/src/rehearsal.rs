//! How fast a run goes, measured on its first batches.

use std::time::{Duration, Instant};

use model::Batch;

use crate::error::Result;
use crate::evaluation::{changes, losses, micro_batches};
use crate::forecast::Pace;
use crate::job::Forgetting;
use crate::pass::{Room, Underway, pass_all};
use crate::trainer::Trainer;

/// Batches that are measured at most to tell a run's time.
const REHEARSED: u64 = 16;

impl Trainer<'_> {
    /// Measures how fast this run would go, for about so long: gradients of its first micro-batches, an
    /// update, and held-out examples. What a second pass over the same examples takes is measured too, for
    /// frozen layers may have been kept by then. The trainer is of no use afterwards.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    ///
    /// # Panics
    /// If there are several runs.
    pub fn rehearse(mut self, time: Duration) -> Result<Pace> {
        let [run] = &mut self.runs[..] else { panic!("one run is measured at a time") };
        let device = &self.room.decoder.device;
        // Cut as steps are: the last one of a step may be small.
        let mut batches = Vec::new();
        for step in 1..=run.last.min(REHEARSED) {
            batches.extend(run.micro_batches(step));
        }
        batches.truncate(REHEARSED as usize + 1);
        let mut gradients = |batch: &Batch| {
            let mut step = Underway { batches: [batch.clone()].into(), ..run.begin_step(device) };
            pass_all(&mut self.room, &mut [(&mut *run, &mut step)])
        };
        // The first batch touches every page for the first time.
        gradients(&batches[0])?;
        let measured = &batches[1.min(batches.len() - 1)..];
        let part = time / 3;
        let first = measure(measured, part, &mut gradients)?;
        let again = measure(measured, part, &mut gradients)?;
        let begun = Instant::now();
        run.update(device, 1, 0.0)?;
        let update = begun.elapsed().as_secs_f64();
        let held_out: Vec<_> = (run.examples.len()..).zip(run.eval).collect();
        let mut evaluate = [0.0; 2];
        if let (Some(Forgetting { texts, .. }), true) = (run.forgetting, held_out.is_empty()) {
            let (begun, text) = (Instant::now(), &texts[..1]);
            let pass = self.room.decoder.run(Some(&run.adapter));
            changes(&pass, self.room.decoder, text, &mut self.room.buffers);
            evaluate[0] = begun.elapsed().as_secs_f64() / (2 * text[0].len()) as f64;
        } else if !held_out.is_empty() {
            let mut batches = micro_batches(&held_out, run.micro_batch);
            batches.truncate(REHEARSED as usize);
            let Room { decoder, buffers } = &mut self.room;
            let pass = decoder.run(Some(&run.adapter));
            for seconds in &mut evaluate {
                *seconds = measure(&batches, part / 2, &mut |batch| {
                    losses(&pass, decoder, batch, buffers).map(|_| ())
                })?;
            }
        }
        Ok(Pace { first, again, update, evaluate })
    }
}

/// Seconds that a token takes, over as many of these batches as the time allows, one at least.
fn measure(batches: &[Batch], time: Duration, work: &mut dyn FnMut(&Batch) -> Result<()>) -> Result<f64> {
    let (begun, mut tokens) = (Instant::now(), 0);
    for batch in batches {
        work(batch)?;
        tokens += batch.tokens();
        if begun.elapsed() >= time {
            break;
        }
    }
    Ok(begun.elapsed().as_secs_f64() / tokens as f64)
}
