//! Progress on stderr: a bar on a terminal, else a line now and then.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{USUAL_COLUMNS, bytes, count, duration, rough, stderr_colour};

/// The least time between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(5);
/// A long run has about so many plain lines for each doubling of its time.
const PLAIN_SHARE: u32 = 30;
/// Columns of the bar itself.
const BAR: std::ops::RangeInclusive<usize> = 6..=30;

/// How the amount is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Items,
    Bytes,
    /// Optimizer steps, beside which much is told: the bar takes what room is left.
    Steps,
}

/// Progress on stderr: a bar on a terminal, else a line now and then, ever more seldom.
pub(crate) struct Progress {
    what: String,
    unit: Unit,
    total: u64,
    start: u64,
    position: u64,
    since: Instant,
    bar: Option<ProgressBar>,
    /// When the last plain line was printed, and at which position.
    last: Option<(Instant, u64)>,
}

/// What is told beside the bar of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Epochs done.
    pub(crate) epoch: f64,
    /// The mean loss of the last steps.
    pub(crate) loss: f64,
    pub(crate) held_out: Option<f64>,
    /// None: each run has its own.
    pub(crate) learning_rate: Option<f64>,
    pub(crate) tokens_per_second: f64,
    /// The most that the process has held.
    pub(crate) memory_bytes: u64,
    pub(crate) elapsed: Duration,
    pub(crate) left: Option<Duration>,
}

impl Facts {
    /// The facts in the order in which they are shown, those that need more columns than there are left out:
    /// the least important first.
    fn line(&self, columns: usize) -> String {
        let held_out = self.held_out.map(|loss| format!("held-out {loss:.3}"));
        let left = self.left.map(|time| format!("{} left", rough(time)));
        let mut parts = vec![
            (4, Some(format!("epoch {:.2}", self.epoch))),
            (8, Some(format!("loss {:.3}", self.loss))),
            (6, held_out),
            (3, self.learning_rate.map(|of| format!("lr {}", rate(of)))),
            (2, Some(format!("{} tokens/s", count(self.tokens_per_second)))),
            (1, Some(bytes(self.memory_bytes))),
            (5, Some(rough(self.elapsed))),
            (7, left),
        ];
        parts.retain(|(_, part)| part.is_some());
        loop {
            let texts: Vec<&str> = parts.iter().filter_map(|(_, part)| part.as_deref()).collect();
            let line = texts.join("  ");
            if line.chars().count() <= columns || parts.is_empty() {
                return line;
            }
            let least = parts.iter().map(|(importance, _)| *importance).min();
            parts.retain(|(importance, _)| Some(*importance) != least);
        }
    }
}

impl Progress {
    /// Progress over `total` things (examples), `done` of them already done by an earlier run.
    pub(crate) fn items(what: &str, total: u64, done: u64) -> Self {
        Self::new(what, Unit::Items, total, done)
    }

    /// Progress over `total` bytes, `done` of them already there.
    pub(crate) fn bytes(what: &str, total: u64, done: u64) -> Self {
        Self::new(what, Unit::Bytes, total, done)
    }

    /// Progress over the `total` steps of a run, `done` of them by an earlier process.
    pub(crate) fn steps(what: &str, total: u64, done: u64) -> Self {
        Self::new(what, Unit::Steps, total, done)
    }

    fn new(what: &str, unit: Unit, total: u64, done: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            bar.set_style(style(unit, 24));
            bar.set_prefix(what.to_owned());
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        let since = Instant::now();
        Self { what: what.to_owned(), unit, total, start: done, position: done, since, bar, last: None }
    }

    /// Moves to `position` (from 0 to the total) with some words.
    pub(crate) fn set(&mut self, position: u64, words: &str) {
        self.position = position;
        if let Some(bar) = &self.bar {
            bar.set_message(words.to_owned());
            bar.set_position(position);
        } else if self.plain_line_is_due() {
            let left = self.time_left().map(|left| format!("{} left", duration(left)));
            let words: Vec<&str> =
                [words].into_iter().chain(left.as_deref()).filter(|w| !w.is_empty()).collect();
            self.print_plain(&words.join("  "));
        }
    }

    /// Moves to a step with its facts.
    pub(crate) fn set_step(&mut self, step: u64, facts: &Facts) {
        self.position = step;
        if let Some(bar) = &self.bar {
            self.fit(bar, facts);
            bar.set_position(step);
        } else if self.plain_line_is_due() {
            self.print_plain(&facts.line(usize::MAX));
        }
    }

    /// Gives the facts the terminal's columns, and the bar what they leave.
    fn fit(&self, bar: &ProgressBar, facts: &Facts) {
        let columns =
            Term::stderr().size_checked().map_or(USUAL_COLUMNS, |(_, columns)| usize::from(columns));
        let position = format!("{}/{}", self.position, self.total).chars().count();
        // A terminal that a line fills to its last column may break it.
        let room = columns.saturating_sub(BAR.start() + 1 + position + 2 + 1);
        let line = facts.line(room);
        let rest = room - line.chars().count().min(room);
        bar.set_style(style(self.unit, (BAR.start() + rest).min(*BAR.end())));
        bar.set_message(line);
    }

    /// Prints a line of its own, above the bar if there is one.
    pub(crate) fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Ends the progress; the last state stays visible.
    pub(crate) fn finish(mut self, words: &str) {
        if let Some(bar) = self.bar.take() {
            bar.set_message(words.to_owned());
            bar.abandon();
        } else if self.last.is_none_or(|(_, position)| position != self.position) {
            self.print_plain(words);
        }
    }

    /// The same for a run.
    pub(crate) fn finish_steps(mut self, facts: &Facts) {
        if let Some(bar) = self.bar.take() {
            self.fit(&bar, facts);
            bar.abandon();
        } else if self.last.is_none_or(|(_, position)| position != self.position) {
            self.print_plain(&facts.line(usize::MAX));
        }
    }

    fn plain_line_is_due(&self) -> bool {
        let pause = PLAIN_EVERY.max(self.since.elapsed() / PLAIN_SHARE);
        self.last.is_none_or(|(when, _)| when.elapsed() >= pause)
    }

    fn print_plain(&mut self, words: &str) {
        let amount = |n: u64| if self.unit == Unit::Bytes { bytes(n) } else { n.to_string() };
        let mut line = format!("{} {}/{}", self.what, amount(self.position), amount(self.total));
        if !words.is_empty() {
            write!(line, "  {words}").expect("writing to a string");
        }
        eprintln!("{line}");
        self.last = Some((Instant::now(), self.position));
    }

    /// From the mean speed of this run; `None` at its start and at the end.
    fn time_left(&self) -> Option<Duration> {
        let done = self.position.saturating_sub(self.start);
        let left = self.total.saturating_sub(self.position);
        (done > 0 && left > 0).then(|| self.since.elapsed().mul_f64(left as f64 / done as f64))
    }
}

/// A learning rate in two digits.
pub(super) fn rate(rate: f64) -> String {
    if rate == 0.0 { "0".to_owned() } else { format!("{rate:.1e}") }
}

fn style(unit: Unit, width: usize) -> ProgressStyle {
    let bar = match stderr_colour() {
        true => format!("{{bar:{width}.cyan/blue}}"),
        false => format!("{{bar:{width}}}"),
    };
    let template = match unit {
        Unit::Steps => format!("{bar} {{pos}}/{{len}}  {{msg}}"),
        Unit::Items => format!("{{prefix}} {bar} {{pos}}/{{len}}  {{msg}}  {{eta}} left"),
        Unit::Bytes => {
            format!(
                "{{prefix}} {bar} {{binary_bytes}}/{{binary_total_bytes}}  {{binary_bytes_per_sec}}  {{eta}} left"
            )
        }
    };
    ProgressStyle::with_template(&template).expect("a valid template").progress_chars("━╸─")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            epoch: 0.6,
            loss: 5.1234,
            held_out: Some(5.3012),
            learning_rate: Some(1.2e-3),
            tokens_per_second: 1234.0,
            memory_bytes: 310 << 20,
            elapsed: Duration::from_secs(41),
            left: Some(Duration::from_secs(110)),
        }
    }

    #[test]
    fn what_is_least_important_goes_first_where_there_is_no_room() {
        let all =
            "epoch 0.60  loss 5.123  held-out 5.301  lr 1.2e-3  1.23 K tokens/s  310.0 MiB  41 s  110 s left";
        assert_eq!(facts().line(usize::MAX), all);
        assert_eq!(facts().line(70), "epoch 0.60  loss 5.123  held-out 5.301  lr 1.2e-3  41 s  110 s left");
        assert_eq!(facts().line(40), "loss 5.123  held-out 5.301  110 s left");
        assert_eq!(facts().line(12), "loss 5.123");
        assert_eq!(facts().line(3), "");
    }
}
