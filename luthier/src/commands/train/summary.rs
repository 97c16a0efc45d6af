//! What came of a run, for people and as JSON.

use std::fmt::{self, Display};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use train::{ForgettingMetrics, History};

use super::narrator::forgotten;
use crate::run_file::{Method, QuantizationAware, RunFile};
use crate::run_folder::{self, Losses, OfResult};
use crate::terminal::{bytes, count, duration, quoted};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ended {
    Finished,
    /// By an earlier process.
    AlreadyFinished,
    /// On request, after saving.
    Stopped,
}

/// All that is told in the end.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    outcome: Ended,
    output: String,
    steps: u64,
    epochs: f64,
    loss: Option<Losses>,
    held_out_loss: Option<Losses>,
    tokens: u64,
    trained_tokens: u64,
    /// Of all steps, by whichever process, without evaluations.
    seconds: f64,
    tokens_per_second: f64,
    memory_bytes: u64,
    /// The checkpoint that a stopped run goes on from.
    checkpoint: Option<String>,
    /// The folder of the best evaluation's tensors, where they are not the result.
    best: Option<String>,
    /// The step that the result is of: not the last one where a rule took another.
    result_step: u64,
    /// What the result has forgotten, if that was measured.
    forgetting: Option<ForgettingMetrics>,
    /// Whether the result does anything; null where this process did not end the run.
    effect: Option<bool>,
    /// What to type next.
    next: Vec<String>,
}

impl Summary {
    /// What a run folder's metrics tell. `effect`: whether the result does anything.
    pub(super) fn of(
        folder: &Path,
        run: &RunFile,
        history: &History,
        outcome: Ended,
        checkpoint: Option<&Path>,
        effect: Option<bool>,
        chats: bool,
    ) -> Self {
        let steps = &history.steps;
        let held_out_loss = Losses::of_evaluations(history);
        let best = run_folder::best(folder);
        let of_result = OfResult::of(run, history);
        let is_last = steps.last().is_some_and(|last| last.step == of_result.step);
        let overfits = held_out_loss.is_some_and(|l| l.best_step > 0 && l.best_step < l.last_step);
        let best = (overfits && is_last && best.is_dir()).then(|| best.display().to_string());
        let (seconds, tokens) = (history.seconds(), steps.iter().map(|s| s.tokens).sum::<u64>());
        Summary {
            outcome,
            output: folder.display().to_string(),
            steps: steps.last().map_or(0, |step| step.step),
            epochs: steps.last().map_or(0.0, |step| step.epoch),
            loss: Losses::of_steps(history),
            held_out_loss,
            tokens,
            trained_tokens: steps.iter().map(|s| s.trained_tokens).sum(),
            seconds,
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
            memory_bytes: steps.iter().map(|s| s.memory_bytes).max().unwrap_or(0),
            checkpoint: checkpoint.map(|path| path.display().to_string()),
            best,
            result_step: of_result.step,
            forgetting: of_result.forgetting.cloned(),
            effect,
            next: next(folder, run, outcome, chats),
        }
    }

    /// How it ended.
    pub(crate) fn ended(&self) -> Ended {
        self.outcome
    }
}

/// What a person types next.
fn next(folder: &Path, run: &RunFile, outcome: Ended, chats: bool) -> Vec<String> {
    if outcome == Ended::Stopped {
        return vec![run_folder::resume_command(folder)];
    }
    let run_folder = quoted(folder);
    let full = run.adapter.method == Method::Full;
    let flag = if full { "--model" } else { "--adapter" };
    let mut next = vec![match chats {
        true => format!("luthier chat {flag} {run_folder}"),
        false => format!("luthier generate {flag} {run_folder} --prompt TEXT"),
    }];
    if let Some(eval) = &run.data.eval {
        // How the file is read is a setting of the data, which an adapter does not remember.
        let reading = run.reading_of_data().into_iter().map(|set| format!(" --set {}", quoted(set)));
        let reading = reading.collect::<String>();
        next.push(format!("luthier eval perplexity {flag} {run_folder} --data {}{reading}", quoted(eval)));
    }
    let beside = |ending: &str| {
        let mut name = folder.as_os_str().to_owned();
        name.push(ending);
        quoted(Path::new(&name))
    };
    match run.training.quantization_aware {
        _ if full => {}
        None => next.push(format!("luthier merge --adapter {run_folder} --output {}", beside("-merged"))),
        // What was trained is the model whose weights are rounded.
        Some(QuantizationAware::Nf4) => {
            let output = beside("-nf4");
            next.push(format!("luthier merge --adapter {run_folder} --output {output} --type nf4"));
        }
        Some(_) => {
            let model = quoted(run.model.as_deref().unwrap_or("MODEL"));
            let output = beside(".gguf");
            next.push(format!(
                "luthier export gguf --model {model} --adapter {run_folder} --output {output}"
            ));
        }
    }
    next
}

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { loss, held_out_loss, best, .. } = self;
        match self.steps {
            0 => writeln!(f, "steps     none yet")?,
            steps => writeln!(
                f,
                "steps     {steps} ({:.2} epochs), {} tokens in {} ({} tokens/s), {} at most",
                self.epochs,
                count(self.tokens as f64),
                duration(Duration::from_secs_f64(self.seconds)),
                count(self.tokens_per_second),
                bytes(self.memory_bytes)
            )?,
        }
        for (what, losses) in [("loss    ", loss), ("held out", held_out_loss)] {
            if let Some(losses) = losses {
                writeln!(f, "{what}  {losses}")?;
            }
        }
        if let Some(forgetting) = &self.forgetting {
            writeln!(f, "forgotten {}", forgotten(forgetting))?;
        }
        if self.result_step < self.steps {
            writeln!(f, "result    of step {}", self.result_step)?;
        }
        if let (Some(best), Some(losses)) = (best, held_out_loss) {
            writeln!(
                f,
                "The held-out loss has risen since step {}: {best} holds that step's adapter, {} the last one.",
                losses.best_step, self.output
            )?;
        }
        // What goes on with a run that was stopped is told where that is told.
        if self.outcome != Ended::Stopped {
            write!(f, "Try next:")?;
            self.next.iter().try_for_each(|command| write!(f, "\n  {command}"))?;
        }
        Ok(())
    }
}
