//! The page itself: what stands on it, and the template that makes HTML of it. The template escapes all that
//! is put into it but drawings, which escape what they hold, and the style.

use anyhow::Context;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use serde::Serialize;
use serde_json::Value as Json;

use super::evaluations::Evaluation;
use super::material::Shown;
use super::samples::Sample;
use crate::plot::Plot;
use crate::terminal::Table;

const TEMPLATE: &str = include_str!("page.html");

/// All that stands on the page.
#[derive(Default, Serialize)]
pub(super) struct Page {
    pub(super) title: String,
    pub(super) version: &'static str,
    pub(super) written: String,
    pub(super) style: String,
    pub(super) runs: Vec<Run>,
    /// What the facts of each run are called.
    pub(super) facts: Vec<&'static str>,
    pub(super) plots: Vec<Drawing>,
    pub(super) evaluations: Vec<Evaluation>,
    pub(super) samples: Vec<Sample>,
    pub(super) samples_notes: Vec<String>,
    pub(super) examples: Vec<Shown>,
    pub(super) examples_notes: Vec<String>,
    pub(super) differing: Option<Table>,
}

/// A run on the page.
#[derive(Serialize)]
pub(super) struct Run {
    pub(super) name: String,
    /// Of its colour.
    pub(super) class: String,
    pub(super) facts: Vec<String>,
    pub(super) settings: Vec<(String, String)>,
}

/// A plot, drawn.
#[derive(Serialize)]
pub(super) struct Drawing {
    pub(super) title: String,
    svg: String,
}

impl Drawing {
    pub(super) fn of(plot: &Plot) -> Self {
        Drawing { title: plot.title.clone(), svg: plot.svg() }
    }
}

impl Page {
    /// The page as HTML.
    pub(super) fn render(&self) -> anyhow::Result<String> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let page = serde_json::to_value(self).context("the page")?;
        environment.render_str(TEMPLATE, value(page)).context("the page's template")
    }
}

/// JSON as the template takes it.
fn value(json: Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(is) => Value::from(is),
        Json::Number(number) => number.as_u64().map_or_else(|| Value::from(number.as_f64()), Value::from),
        Json::String(text) => Value::from(text),
        Json::Array(items) => Value::from(items.into_iter().map(value).collect::<Vec<Value>>()),
        Json::Object(fields) => Value::from_pairs(fields.into_iter().map(|(key, field)| (key, value(field)))),
    }
}
