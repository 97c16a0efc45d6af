//! The values of a sweep file, run by run: every combination, or draws.

use serde::Deserialize;

use super::super::decode::{Problem, decode_section};
use super::super::yaml::{Key, Node, Origin, Value};
use super::{Change, MOST_RUNS, rounded};

/// Draws for each run that is wanted, since the same values may be drawn again.
const MOST_DRAWS: usize = 100;

/// The entries of a section.
fn entries<'n>(name: &str, node: &'n Node) -> Result<&'n [(Key, Node)], Problem> {
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => Ok(entries),
        _ => {
            let message = format!(
                "must name settings with their values, such as adapter.r: [8, 16], not {}",
                node.describe()
            );
            Err(Problem::about(name, message, node.origin.clone()))
        }
    }
}

/// Whether a run can have a key of its own.
fn check_key(section: &str, key: &Key) -> Result<(), Problem> {
    match &*key.name {
        "output" => {
            let message = "cannot differ between runs: each has a folder in that of the sweep";
            Err(Problem::about(&format!("{section}.output"), message, key.origin.clone()))
        }
        _ => Ok(()),
    }
}

/// Every combination of the values of a grid, the first key's changing last.
pub(super) fn combinations(grid: &Node) -> Result<Vec<Vec<Change>>, Problem> {
    let mut lists: Vec<Vec<Change>> = vec![Vec::new()];
    for (key, node) in entries("grid", grid)? {
        check_key("grid", key)?;
        let path = format!("grid.{}", key.name);
        let about = |message: String| Err(Problem::about(&path, message, key.origin.clone()));
        let values = match &node.value {
            Value::List(values) if !values.is_empty() => values,
            Value::Map(_) => {
                return about(
                    "must be a list of values; keys are named in full, as in adapter.r: [8, 16]".into(),
                );
            }
            _ => return about(format!("must be a list of values, not {}", node.describe())),
        };
        let word = |n: usize| match values[n].value {
            Value::List(_) | Value::Map(_) => None,
            _ => Some(values[n].describe()),
        };
        let twice =
            (0..values.len()).find(|&n| (0..n).any(|other| word(n).is_some() && word(n) == word(other)));
        if let Some(n) = twice {
            return about(format!("names {} twice; each value makes a run", values[n].describe()));
        }
        if lists.len().saturating_mul(values.len()) > MOST_RUNS {
            return about(format!("makes more than {MOST_RUNS} runs"));
        }
        let with = |list: &Vec<Change>| -> Vec<Vec<Change>> {
            let change = |value: &Node| Change { key: key.clone(), value: value.clone() };
            values.iter().map(|value| [&list[..], &[change(value)]].concat()).collect()
        };
        lists = lists.iter().flat_map(with).collect();
    }
    Ok(lists)
}

/// What a key is drawn from.
enum Choice<'n> {
    Values(&'n [Node]),
    Range { low: f64, high: f64, log: bool, whole: bool },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    low: f64,
    high: f64,
    #[serde(default)]
    log: bool,
}

impl<'n> Choice<'n> {
    fn of(key: &Key, node: &'n Node) -> Result<Self, Problem> {
        let path = format!("random.{}", key.name);
        let about = |message: String| Err(Problem::about(&path, message, key.origin.clone()));
        let entries = match &node.value {
            Value::List(values) if !values.is_empty() => return Ok(Choice::Values(values)),
            Value::Map(entries) => entries,
            _ => {
                let message = "must be a list of values or {low: 1e-5, high: 1e-3, log: true}";
                return about(format!("{message}, not {}", node.describe()));
            }
        };
        let Range { low, high, log } = decode_section(&path, node)?;
        if !(low.is_finite() && high.is_finite() && low < high) {
            return about("must have a `low` that is below its `high`".into());
        }
        if log && low <= 0.0 {
            return about("must have a `low` above 0 where it is drawn from by `log`".into());
        }
        let is_whole = |(key, node): &(Key, Node)| {
            key.name == "log" || matches!(node.value, Value::Signed(0..) | Value::Unsigned(_))
        };
        Ok(Choice::Range { low, high, log, whole: entries.iter().all(is_whole) })
    }

    /// The value at a place between 0 and 1.
    fn value(&self, at: f64, origin: &Origin) -> Node {
        match *self {
            Choice::Values(values) => {
                values[((at * values.len() as f64) as usize).min(values.len() - 1)].clone()
            }
            Choice::Range { low, high, log, whole } => {
                // The last whole number has as much room as the others.
                let high = if whole && !log { high + 1.0 } else { high };
                let x = if log { low * (high / low).powf(at) } else { low + at * (high - low) };
                let (value, text) = if whole {
                    let n = if log { x.round() } else { x.floor() } as u64;
                    (Value::Unsigned(n), n.to_string())
                } else {
                    let x = rounded(x, 3);
                    let text = if (1e-3..1e4).contains(&x.abs()) { x.to_string() } else { format!("{x:e}") };
                    (Value::Float(x), text)
                };
                Node { text: Some(text), ..Node::new(value, origin.clone()) }
            }
        }
    }
}

/// So many different draws, the same for the same seed.
pub(super) fn draws(random: &Node) -> Result<Vec<Vec<Change>>, Problem> {
    let (mut count, mut seed, mut choices) = (None, 0, Vec::new());
    for (key, node) in entries("random", random)? {
        match &*key.name {
            "count" => count = Some(decode_section::<usize>("random.count", node)?),
            "seed" => seed = decode_section::<u64>("random.seed", node)?,
            _ => {
                check_key("random", key)?;
                choices.push((key, Choice::of(key, node)?));
            }
        }
    }
    let about = |message: String| Err(Problem::about("random", message, random.origin.clone()));
    let Some(count) = count.filter(|count| (1..=MOST_RUNS).contains(count)) else {
        return about(format!("needs a `count` of runs, from 1 to {MOST_RUNS}"));
    };
    if choices.is_empty() {
        return about("names no setting to draw".into());
    }
    let mut lists: Vec<Vec<Change>> = Vec::new();
    for draw in 0..count * MOST_DRAWS {
        let change = |(i, (key, choice)): (usize, &(&Key, Choice<'_>))| {
            let at = compute::random::uniform(compute::random::key(seed, i as u64), draw as u64);
            Change { key: (*key).clone(), value: choice.value(at, &key.origin) }
        };
        let list: Vec<Change> = choices.iter().enumerate().map(change).collect();
        let same = |other: &Vec<Change>| {
            other.iter().zip(&list).all(|(one, other)| one.value.plain() == other.value.plain())
        };
        if !lists.iter().any(same) {
            lists.push(list);
        }
        if lists.len() == count {
            break;
        }
    }
    Ok(lists)
}
