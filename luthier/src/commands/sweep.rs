//! `luthier sweep`: many runs that differ in some settings, trained together over one base, and compared.
//!
//! Each run has a folder as `luthier train` writes it, and ends in the same bytes. All that a sweep knows
//! lies there: one that is killed and started again leaves finished runs as they are, goes on with the others
//! from their checkpoints, and decides again, by the same held-out losses, which of them halving keeps.

mod contender;
mod field;
mod narrator;
mod page;
mod pool;
mod results;
mod seeds;

use std::fs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::cli::{self, Global};
use crate::error::{STOPPED, user};
use crate::run_file::{Halving, Member, Purpose, Sweep};
use crate::run_folder;
use crate::signal;
use crate::terminal;
use contender::{Contender, State};
use field::Field;
use results::Results;

pub(super) fn run(args: cli::Sweep, global: &Global) -> anyhow::Result<ExitCode> {
    let sweep = args.runs()?;
    check(&sweep)?;
    let Sweep { output, halving, members } = sweep;
    let mut field = Field::gather(members, global, args.quiet)?;
    fs::create_dir_all(&output).with_context(|| format!("cannot make the folder {}", output.display()))?;
    let stop = signal::stop_on_request()?;
    field.claim()?;
    compete(&mut field, halving, &stop)?;
    if stop.load(Ordering::Relaxed) {
        field.interrupt();
    }
    let over_seeds = if stop.load(Ordering::Relaxed) { Vec::new() } else { seeds::compare(&mut field)? };
    let results = Results::of(&output, &field.contenders, over_seeds)?;
    results.write()?;
    match args.json {
        true => terminal::print_json(&results)?,
        false => terminal::print_line(&results)?,
    }
    if field.contenders.iter().any(|contender| contender.state == State::Interrupted) {
        eprintln!("stopped on request, all is saved; the same command goes on");
        return Ok(ExitCode::from(STOPPED));
    }
    match field.contenders.iter().find_map(|contender| contender.failure()) {
        Some(why) if results.best().is_none() => {
            Err(user(format!("no run came to an end; the first: {why}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Checks what can be known before a file is opened.
fn check(sweep: &Sweep) -> anyhow::Result<()> {
    if sweep.output.join(run_folder::SETTINGS).exists() {
        let message = "holds a run; a sweep needs a folder of its own for the folders of its runs";
        return Err(user(format!("{} {message}", sweep.output.display())));
    }
    for Member { settings, .. } in &sweep.members {
        settings.validate(Purpose::Train)?;
        let data = &settings.run.data;
        if let (Some(_), Some(_)) = (&sweep.halving, settings.run.training.early_stopping_patience) {
            let message = "and `halving` each end runs by their held-out losses: leave one of them out";
            return Err(settings.refuse("training.early_stopping_patience", message));
        }
        if sweep.halving.is_some() && data.eval.is_none() && data.eval_fraction.is_none() {
            let message = "is missing: `halving` compares held-out losses; set it, or data.eval_fraction";
            return Err(settings.refuse("data.eval", message));
        }
    }
    Ok(())
}

/// Trains all runs to their ends, or as far as they come.
fn compete(field: &mut Field<'_>, halving: Option<Halving>, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut alive: Vec<usize> = (0..field.contenders.len()).collect();
    for rung in 1.. {
        let longest = alive.iter().map(|&n| field.contenders[n].steps()).max().unwrap_or(0);
        // Among runs that have ended there is nothing left to save.
        let halved = halving.filter(|h| alive.len() > 1 && h.every.saturating_mul(rung) < longest);
        let pause = halved.map(|h| h.every * rung);
        field.train(&alive, pause, stop)?;
        let (Some(Halving { keep, .. }), Some(step)) = (halved, pause) else { return Ok(()) };
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut standings = Vec::new();
        for n in alive {
            let contender: &Contender = &field.contenders[n];
            if contender.failure().is_none() {
                standings.push((contender.standing_at(step)?, n));
            }
        }
        standings.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.cmp(&b.1)));
        // One at least leaves at each comparison, as long as there are several.
        let most = standings.len().saturating_sub(1).max(1);
        let kept = ((standings.len() as f64 * keep).ceil() as usize).clamp(1, most);
        let of = standings.len();
        for (place, &(standing, n)) in standings.iter().enumerate().skip(kept) {
            field.contenders[n].lose(step, standing, place + 1, of);
        }
        alive = standings.iter().take(kept).map(|&(_, n)| n).collect();
        // In the order of the file, so that company does not depend on losses.
        alive.sort_unstable();
        if alive.is_empty() {
            return Ok(());
        }
    }
    Ok(())
}
