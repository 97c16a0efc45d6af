//! `sweep.html`: the runs' loss curves beside their table, in one file that needs no network.

use std::fmt::Write as _;

use super::results::RunResult;

/// The size of a plot, and of the margin that its numbers stand in.
const SIZE: (f64, f64) = (860.0, 320.0);
const MARGIN: (f64, f64) = (56.0, 28.0);
/// Colours that are told apart on light and on dark (after Okabe and Ito 2008), again from the first on where
/// there are more runs.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"];
/// How much of a smoothed loss each step is.
const SMOOTHING: f64 = 0.2;
/// Points of a curve at most: a screen has no more.
const POINTS: usize = 500;

/// The page.
pub(super) fn page(title: &str, runs: &[RunResult]) -> String {
    let title = escaped(title);
    let curves = |of: &dyn Fn(&RunResult) -> Vec<(f64, f64)>| runs.iter().map(of).collect::<Vec<_>>();
    let train = curves(&|run| smoothed(run.history.steps.iter().map(|s| (s.step as f64, s.loss))));
    let eval = curves(&|run| run.history.evaluations.iter().map(|e| (e.step as f64, e.eval_loss)).collect());
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>\n{STYLE}</style></head>\n\
         <body>\n<h1>{title}</h1>\n"
    );
    if eval.iter().any(|curve| !curve.is_empty()) {
        plot(&mut page, "Held-out loss by step", &eval, runs);
    }
    plot(&mut page, "Training loss by step, smoothed", &train, runs);
    table(&mut page, runs);
    page += "</body></html>\n";
    page
}

const STYLE: &str = "\
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 1.5rem 0 0.3rem; }
svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 12px; }
svg .grid { stroke: currentColor; opacity: 0.15; } svg path { fill: none; stroke-width: 1.6; }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; }
th, td { text-align: left; padding: 0.25rem 0.8rem 0.25rem 0; border-bottom: 1px solid #8884; white-space: nowrap; }
.dot { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 50%; margin-right: 0.5em; }
";

/// A mean that follows the losses, which the first ones do not bend.
fn smoothed(losses: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let (mut sum, mut weight) = (0.0, 0.0);
    let follow = |(step, loss): (f64, f64)| {
        sum += SMOOTHING * (loss - sum);
        weight += SMOOTHING * (1.0 - weight);
        (step, sum / weight)
    };
    let all: Vec<(f64, f64)> = losses.map(follow).collect();
    let every = all.len().div_ceil(POINTS).max(1);
    let last = all.last().copied().filter(|_| !(all.len() - 1).is_multiple_of(every));
    all.into_iter().step_by(every).chain(last).collect()
}

/// Curves in the colours of their runs.
fn plot(page: &mut String, title: &str, curves: &[Vec<(f64, f64)>], runs: &[RunResult]) {
    let points = || curves.iter().flatten().filter(|(_, loss)| loss.is_finite());
    let last = points().map(|(step, _)| *step).fold(1.0, f64::max);
    // The losses of a run that diverged would press all others to the bottom.
    let mut losses: Vec<f64> = points().map(|(_, loss)| *loss).collect();
    losses.sort_by(f64::total_cmp);
    let Some(&low) = losses.first() else { return };
    let most = losses[losses.len() * 98 / 100];
    let high = most.max(low + 1e-6) + 0.05 * (most - low);
    let (width, height) = (SIZE.0 - 2.0 * MARGIN.0, SIZE.1 - 2.0 * MARGIN.1);
    let x = |step: f64| MARGIN.0 + width * step / last;
    let y = |loss: f64| MARGIN.1 + height * (1.0 - (loss.min(high) - low) / (high - low));
    let _ = writeln!(
        page,
        "<h2>{title}</h2>\n<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{title}\">",
        SIZE.0, SIZE.1
    );
    for i in 0..=4 {
        let part = f64::from(i) / 4.0;
        let (loss, step) = (low + part * (high - low), part * last);
        let (down, along) = (y(loss), x(step));
        let _ = writeln!(
            page,
            "<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{down:.1}\" y2=\"{down:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.3}</text>\
             <text x=\"{along:.1}\" y=\"{}\" text-anchor=\"middle\">{step:.0}</text>",
            MARGIN.0,
            SIZE.0 - MARGIN.0,
            MARGIN.0 - 6.0,
            down + 4.0,
            SIZE.1 - 8.0
        );
    }
    for (n, (curve, run)) in curves.iter().zip(runs).enumerate() {
        let mut path = String::new();
        for (step, loss) in curve.iter().filter(|(_, loss)| loss.is_finite()) {
            let letter = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{:.1} {:.1}", x(*step), y(*loss));
        }
        if !path.is_empty() {
            let (colour, name) = (COLOURS[n % COLOURS.len()], escaped(&run.name));
            let _ = writeln!(page, "<path d=\"{path}\" stroke=\"{colour}\"><title>{name}</title></path>");
        }
    }
    *page += "</svg>\n";
}

fn table(page: &mut String, runs: &[RunResult]) {
    *page += "<h2>Runs, the best first</h2>\n<table><tr><th>run</th>";
    for (key, _) in runs.first().map_or(&[][..], |run| &run.changes) {
        let _ = write!(page, "<th>{}</th>", escaped(key));
    }
    *page += "<th>steps</th><th>train loss</th><th>held-out loss</th><th>state</th></tr>\n";
    let loss = |loss: Option<f64>| loss.map_or(String::new(), |loss| format!("{loss:.4}"));
    for (n, run) in runs.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let name = escaped(&run.name);
        let _ = write!(page, "<tr><td><span class=\"dot\" style=\"background:{colour}\"></span>{name}</td>");
        for (_, value) in &run.changes {
            let _ = write!(page, "<td>{}</td>", escaped(value));
        }
        let why = run.why.as_ref().map_or(String::new(), |why| format!(": {}", escaped(why)));
        let (train, eval) = (loss(run.train_loss), loss(run.eval_loss));
        let _ = writeln!(
            page,
            "<td>{}</td><td>{train}</td><td>{eval}</td><td>{}{why}</td></tr>",
            run.steps, run.state
        );
    }
    *page += "</table>\n";
}

/// Text that is no markup.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
