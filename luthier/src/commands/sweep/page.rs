//! `sweep.html`: the runs' loss curves beside their table, in one file that needs no network.

use std::fmt::Write as _;

use super::results::RunResult;
use crate::commands::page;
use crate::plot::{self, Curve, Kind, Plot, Unit, escaped, smoothed};

/// The page.
pub(super) fn page(title: &str, runs: &[RunResult]) -> String {
    let title = escaped(title);
    let train = plot("Training loss by step, smoothed", runs, |n, run| {
        let losses = run.history.steps.iter().map(|step| (step.step, step.loss));
        Curve::new(&run.name, n, Kind::Line, smoothed(losses))
    });
    let eval = plot("Held-out loss by step", runs, |n, run| {
        let losses = run.history.evaluations.iter().map(|of| (of.step, of.eval_loss));
        Curve::new(&run.name, n, Kind::Marked, losses)
    });
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>\n{}</style></head>\n\
         <body>\n<h1>{title}</h1>\n",
        page::style()
    );
    for plot in [eval, train].into_iter().filter(|plot| !plot.is_empty()) {
        let _ = write!(page, "<h2>{}</h2>\n{}", plot.title, plot.svg());
    }
    table(&mut page, runs);
    page += "</body></html>\n";
    page
}

fn plot(title: &str, runs: &[RunResult], curve: impl Fn(usize, &RunResult) -> Curve) -> Plot {
    Plot::new(title, Unit::Plain, runs.iter().enumerate().map(|(n, run)| curve(n, run)).collect())
}

fn table(page: &mut String, runs: &[RunResult]) {
    *page += "<h2>Runs, the best first</h2>\n<div class=\"wide\"><table><tr><th>run</th>";
    for (key, _) in runs.first().map_or(&[][..], |run| &run.changes) {
        let _ = write!(page, "<th>{}</th>", escaped(key));
    }
    *page += "<th>steps</th><th>train loss</th><th>held-out loss</th><th>state</th></tr>\n";
    let loss = |loss: Option<f64>| loss.map_or(String::new(), |loss| format!("{loss:.4}"));
    for (n, run) in runs.iter().enumerate() {
        let (colour, name) = (plot::class(n), escaped(&run.name));
        let _ = write!(page, "<tr><td><span class=\"dot {colour}\"></span>{name}</td>");
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
    *page += "</table></div>\n";
}
