//! `SWEEP.yaml`: many runs out of one, by values for some of its settings.
//!
//! ```yaml
//! run: RUN.yaml                                      # or its settings themselves
//! grid:                                              # every combination of these
//!   optimizer.learning_rate: [1e-4, 3e-4]
//!   adapter.r: [8, 16]
//! random:                                            # or so many draws
//!   count: 12
//!   seed: 1
//!   optimizer.learning_rate: {low: 1e-5, high: 1e-3, log: true}
//!   adapter.r: [8, 16, 32]
//! halving: {keep: 0.5, every: 50}                    # every so many steps this part goes on
//! output: sweep                                      # the folder of the runs' folders
//! ```

mod choices;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use super::decode::{Problem, decode_section, nearest};
use super::yaml::{self, Key, Node, Origin, Value};
use super::{FileText, Override, Settings};
use crate::error::user;
use choices::{combinations, draws};

/// More runs than this are a slip of the pen.
const MOST_RUNS: usize = 1000;
/// Longer names of runs become numbers.
const LONGEST_NAME: usize = 80;
/// The keys of a sweep file.
const KEYS: [&str; 5] = ["run", "grid", "random", "halving", "output"];
/// Learning rates, where nobody says how many.
const USUAL_COUNT: u64 = 8;

/// The runs of a sweep, and what becomes of them.
#[derive(Debug)]
pub(crate) struct Sweep {
    /// The folder of the runs' folders.
    pub(crate) output: PathBuf,
    pub(crate) halving: Option<Halving>,
    pub(crate) members: Vec<Member>,
}

/// One run of a sweep.
#[derive(Debug)]
pub(crate) struct Member {
    /// The name of its folder.
    pub(crate) name: String,
    /// The settings that are its own: key and value.
    pub(crate) changes: Vec<(String, String)>,
    pub(crate) settings: Settings,
}

/// Successive halving (Jamieson and Talwalkar 2016): the best runs go on.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Halving {
    /// The part of the runs that goes on.
    #[serde(default = "half")]
    pub(crate) keep: f64,
    /// Steps between two comparisons.
    pub(crate) every: u64,
}

fn half() -> f64 {
    0.5
}

/// Learning rates from the lowest to the highest, as they are typed: `1e-5..1e-3`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    low: f64,
    high: f64,
}

impl FromStr for Rates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|x| x.is_finite() && *x > 0.0);
        let ends = text.split_once("..").and_then(|(low, high)| Some((number(low)?, number(high)?)));
        match ends {
            Some((low, high)) if low < high => Ok(Rates { low, high }),
            Some(_) => Err("the first rate must be the lower one".into()),
            None => Err("expected two rates above 0, such as 1e-5..1e-3".into()),
        }
    }
}

impl Rates {
    /// So many of them, a constant factor apart, in two digits.
    fn spaced(self, count: usize) -> Vec<f64> {
        let step = (self.high / self.low).powf(1.0 / (count.max(2) - 1) as f64);
        let mut rates: Vec<f64> = (0..count).map(|i| rounded(self.low * step.powi(i as i32), 2)).collect();
        rates.dedup();
        rates
    }
}

/// A number in so many digits.
fn rounded(x: f64, digits: usize) -> f64 {
    format!("{x:.*e}", digits - 1).parse().expect("a number")
}

/// A value for a key.
#[derive(Clone, Debug)]
struct Change {
    key: Key,
    value: Node,
}

impl Sweep {
    /// Reads a sweep file. `overrides` are laid over the settings of every run, `output` over the file's.
    ///
    /// # Errors
    /// If the file, or any run that comes of it, is not understood.
    pub(crate) fn read(path: &Path, overrides: &[Override], output: Option<&str>) -> anyhow::Result<Self> {
        let file = FileText::read(path, "sweep file")?;
        let report = |problem: Problem| problem.report(Some(&file));
        let tree = yaml::parse(&file.text).map_err(report)?;
        let sections = Sections::of(tree).map_err(report)?;
        let halving = sections.halving().map_err(report)?;
        let written = sections.output().map_err(report)?;
        let mut lists = sections.runs().map_err(report)?;
        let (tree, file) = match &sections.run.value {
            Value::String(path) => {
                // A place in this file is none in that of the run.
                lists.iter_mut().flatten().for_each(Change::forget_place);
                let file = FileText::read(Path::new(path), "run file")?;
                let tree = yaml::parse(&file.text).map_err(|problem| problem.report(Some(&file)))?;
                (tree, file)
            }
            _ => (sections.run, file),
        };
        Sweep::new((tree, Some(file)), overrides, lists, output.map(PathBuf::from).or(written), halving)
    }

    /// A run at several learning rates, by its file if there is one.
    ///
    /// # Errors
    /// If a setting is not understood.
    pub(crate) fn of_rates(
        run: Option<&Path>,
        overrides: &[Override],
        rates: Rates,
        count: Option<u64>,
        output: Option<&str>,
    ) -> anyhow::Result<Self> {
        let count = count.unwrap_or(USUAL_COUNT);
        if !(2..=MOST_RUNS as u64).contains(&count) {
            return Err(user(format!("--count {count}: expected 2 to {MOST_RUNS} learning rates")));
        }
        let (tree, file) = match run {
            None => (Node::new(Value::Null, Origin::Default), None),
            Some(path) => {
                let file = FileText::read(path, "run file")?;
                let tree = yaml::parse(&file.text).map_err(|problem| problem.report(Some(&file)))?;
                (tree, Some(file))
            }
        };
        let change = |rate: f64| {
            let origin = Origin::Flag(format!("--learning-rates: {rate:e}").into());
            let value =
                Node { text: Some(format!("{rate:e}")), ..Node::new(Value::Float(rate), origin.clone()) };
            vec![Change { key: Key { name: "optimizer.learning_rate".into(), origin }, value }]
        };
        let lists = rates.spaced(count as usize).into_iter().map(change).collect();
        Sweep::new((tree, file), overrides, lists, output.map(PathBuf::from), None)
    }

    fn new(
        (tree, file): (Node, Option<FileText>),
        overrides: &[Override],
        lists: Vec<Vec<Change>>,
        output: Option<PathBuf>,
        halving: Option<Halving>,
    ) -> anyhow::Result<Self> {
        let of_run = Settings::of(tree.clone(), file.clone(), overrides.to_vec())?.run.output;
        let output = output.or(of_run).ok_or_else(|| {
            user("`output` is missing: the folder for the runs of the sweep; set it in the file or by --output")
        })?;
        let names = names(&lists);
        let mut members = Vec::new();
        for (name, list) in names.into_iter().zip(lists) {
            let changes = list.iter().map(|c| (c.key.name.clone(), c.value.plain())).collect();
            let mut overrides = overrides.to_vec();
            overrides.extend(list.into_iter().map(Change::into_override));
            overrides.push(Override::flag("--output", "output", &output.join(&name).display().to_string()));
            let settings = Settings::of(tree.clone(), file.clone(), overrides)?;
            members.push(Member { name, changes, settings });
        }
        Ok(Sweep { output, halving, members })
    }
}

impl Change {
    /// Says of where it was written only that it was in the sweep file.
    fn forget_place(&mut self) {
        let origin = Origin::Flag(format!("the sweep's {}: {}", self.key.name, self.value.plain()).into());
        self.value.relabel(&origin);
        self.key.origin = origin;
    }

    fn into_override(self) -> Override {
        let Change { key: Key { name, origin }, value } = self;
        Override::at(&name, value, origin)
    }
}

impl Node {
    /// The value in a word.
    fn plain(&self) -> String {
        let list = |parts: Vec<String>| parts.join(",");
        match &self.value {
            Value::Null => "null".into(),
            Value::String(text) => text.clone(),
            Value::List(items) => list(items.iter().map(Node::plain).collect()),
            Value::Map(entries) => {
                list(entries.iter().map(|(key, value)| format!("{}:{}", key.name, value.plain())).collect())
            }
            _ => self.text.clone().unwrap_or_default(),
        }
    }

    /// Says that all of it was written there.
    fn relabel(&mut self, origin: &Origin) {
        self.origin = origin.clone();
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.relabel(origin)),
            Value::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
                key.origin = origin.clone();
                value.relabel(origin);
            }),
            _ => {}
        }
    }
}

/// The sections of a sweep file.
struct Sections {
    run: Node,
    grid: Option<Node>,
    random: Option<Node>,
    halving: Option<Node>,
    output: Option<Node>,
}

impl Sections {
    fn of(tree: Node) -> Result<Self, Problem> {
        let described = tree.describe();
        let Value::Map(entries) = tree.value else {
            let message = format!("a sweep file has the sections {}; this is {described}", KEYS.join(", "));
            return Err(Problem::new(message).at(tree.origin));
        };
        let mut found = KEYS.map(|_| None);
        for (key, node) in entries {
            match KEYS.iter().position(|known| *known == key.name) {
                Some(place) => found[place] = Some(node),
                None => {
                    let meant = match nearest(&key.name, KEYS.into_iter()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!(
                            "a sweep file has {}; a run's settings stand below `run`",
                            KEYS.join(", ")
                        ),
                    };
                    let message = format!("unknown key `{}`; {meant}", key.name);
                    return Err(Problem::new(message).at(key.origin));
                }
            }
        }
        let [run, grid, random, halving, output] = found;
        let run = run.unwrap_or(Node::new(Value::Null, Origin::Default));
        if !matches!(run.value, Value::Null | Value::Map(_) | Value::String(_)) {
            let message = format!("must be a run's settings or the name of its file, not {}", run.describe());
            return Err(Problem::about("run", message, run.origin));
        }
        Ok(Sections { run, grid, random, halving, output })
    }

    fn halving(&self) -> Result<Option<Halving>, Problem> {
        let Some(node) = &self.halving else { return Ok(None) };
        let halving: Halving = decode_section("halving", node)?;
        let about = |message: &str| Err(Problem::about("halving", message, node.origin.clone()));
        match halving {
            Halving { every: 0, .. } => about("compares every 1 step or more"),
            Halving { keep, .. } if !(0.0..1.0).contains(&keep) || keep == 0.0 => {
                about("keeps a part of the runs: keep must lie between 0 and 1")
            }
            halving => Ok(Some(halving)),
        }
    }

    fn output(&self) -> Result<Option<PathBuf>, Problem> {
        self.output.as_ref().map(|node| decode_section("output", node)).transpose().map(Option::flatten)
    }

    /// What the runs change, run by run.
    fn runs(&self) -> Result<Vec<Vec<Change>>, Problem> {
        match (&self.grid, &self.random) {
            (Some(grid), None) => combinations(grid),
            (None, Some(random)) => draws(random),
            (Some(_), Some(random)) => {
                let message = "and `grid` exclude each other; a list of values in `random` is drawn from";
                Err(Problem::about("random", message, random.origin.clone()))
            }
            (None, None) => {
                Err(Problem::new("a sweep needs `grid` or `random`: the settings that its runs differ in"))
            }
        }
    }
}

/// A name for each run, of what it changes; all numbers where one would be too long or stand twice.
fn names(lists: &[Vec<Change>]) -> Vec<String> {
    let letter = |c: char| if c.is_ascii_alphanumeric() || "._-+".contains(c) { c } else { '-' };
    let clean = |text: &str| text.chars().map(letter).collect::<String>();
    let name = |list: &Vec<Change>| {
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let part = |change: &Change| {
            let (key, short) = (&change.key.name, last(&change.key.name));
            let alone = list.iter().filter(|other| last(&other.key.name) == short).count() == 1;
            format!("{}-{}", clean(if alone { &short } else { key }), clean(&change.value.plain()))
        };
        list.iter().map(part).collect::<Vec<_>>().join("_")
    };
    let names: Vec<String> = lists.iter().map(name).collect();
    let mut sorted: Vec<String> = names.iter().map(|name| name.to_lowercase()).collect();
    sorted.sort_unstable();
    let twice = sorted.windows(2).any(|pair| pair[0] == pair[1]);
    match twice || names.iter().any(|name| name.len() > LONGEST_NAME) {
        true => (1..=names.len()).map(|n| format!("run-{n:03}")).collect(),
        false => names,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_a_constant_factor_apart_and_have_two_digits() {
        let rates: Rates = "1e-5..1e-3".parse().unwrap();
        assert_eq!(rates.spaced(3), [1e-5, 1e-4, 1e-3]);
        assert_eq!(rates.spaced(8), [1e-5, 1.9e-5, 3.7e-5, 7.2e-5, 1.4e-4, 2.7e-4, 5.2e-4, 1e-3]);
        for wrong in ["1e-3..1e-5", "0..1", "1e-5", "a..b", "1e-5..inf", "-1..1"] {
            assert!(wrong.parse::<Rates>().is_err(), "{wrong}");
        }
    }
}
