//! A data set examined: its lengths, what a limit on them costs, and what its author may not have meant, the
//! worst first.

use std::collections::BTreeMap;

use crate::oddity::Oddity;
use crate::source::Kind;
use crate::{Dataset, Example, Format, IGNORE, OnOverflow, Source, Tokenizer, TokenizerError};

/// Places that a finding names.
const NAMED: usize = 5;
/// Of the learnt tokens, how many may be lost to the limit on lengths before that is serious.
const LOST_SHARE: f64 = 0.01;

/// Of a held-out set only these findings matter: what it measures is less than it seems.
const MEASURED: [&str; 3] = ["no_trained_token", "beyond_max_length", "duplicate"];

/// What was found.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Audit {
    /// The training examples.
    pub train: Summary,
    /// The held-out examples, if there are any.
    pub eval: Option<Summary>,
    /// What is wrong or odd, the most serious first.
    pub findings: Vec<Finding>,
}

/// A set in numbers.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Examples that can be trained on.
    pub examples: usize,
    /// Their tokens, uncut.
    pub tokens: usize,
    /// Those that carry loss.
    pub trained_tokens: usize,
    /// The length of an example, in tokens.
    pub lengths: Lengths,
    /// Examples by length: those of at most so many tokens and more than the entry before.
    pub histogram: Vec<Bin>,
    /// The limit on lengths.
    pub max_length: usize,
    /// Examples beyond it that are cut off or left out.
    pub beyond: usize,
    /// Tokens that carry loss and are lost by that.
    pub lost_tokens: usize,
    /// Limits at which 95, 99 and 100 of a hundred examples are whole.
    pub fitting: [usize; 3],
    /// The longest examples and their tokens.
    pub longest: Vec<(String, usize)>,
}

/// How lengths are spread.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Lengths {
    /// The shortest.
    pub min: usize,
    /// Half are no longer.
    pub median: usize,
    /// 90 of a hundred are no longer.
    pub p90: usize,
    /// 99 of a hundred are no longer.
    pub p99: usize,
    /// The longest.
    pub max: usize,
}

/// A bar of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Bin {
    /// The longest that belongs here.
    pub up_to: usize,
    /// How many do.
    pub examples: usize,
}

/// Something that is wrong or odd.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// A name for programs.
    pub kind: &'static str,
    /// Whether it spoils the result or what is measured of it.
    pub serious: bool,
    /// In how many examples.
    pub count: usize,
    /// What it is.
    pub what: String,
    /// Where, the first few.
    pub places: Vec<String>,
    /// What to do.
    pub advice: String,
}

/// A set and how it is looked at.
struct Set<'a> {
    data: &'a Dataset,
    /// In front of what is said of it.
    of: &'static str,
    /// The normalized text before the first learnt token, for examples that have such.
    prompts: Vec<Option<String>>,
    /// The token that stands for what cannot be spelt: texts that have it may differ where their tokens do
    /// not.
    unknown: Option<u32>,
}

impl Audit {
    /// Examines sets that were loaded without a limit on lengths, under the limit that a run would have.
    pub fn new(
        train: &Dataset,
        eval: Option<&Dataset>,
        max_length: usize,
        on_overflow: OnOverflow,
        tokenizer: &Tokenizer,
    ) -> Result<Self, TokenizerError> {
        let sets = [Some((train, "")), eval.map(|eval| (eval, "held-out: "))];
        let sets: Vec<Set<'_>> = sets
            .into_iter()
            .flatten()
            .map(|(data, of)| {
                Ok(Set { data, of, prompts: prompts(data, tokenizer)?, unknown: tokenizer.unknown() })
            })
            .collect::<Result<_, TokenizerError>>()?;
        let mut findings = Vec::new();
        if let [train, eval] = sets.as_slice() {
            findings.extend(leaks(train, eval));
        }
        let summarize = |set: &Set<'_>| Summary::new(set.data, max_length, on_overflow);
        for set in &sets {
            let found = set.findings(&summarize(set), on_overflow);
            findings.extend(found.into_iter().filter(|f| set.of.is_empty() || MEASURED.contains(&f.kind)));
        }
        // The order in which they are looked for is that of their weight, within each degree.
        findings.sort_by_key(|finding| !finding.serious);
        Ok(Audit { train: summarize(&sets[0]), eval: sets.get(1).map(summarize), findings })
    }
}

impl Summary {
    fn new(data: &Dataset, max_length: usize, on_overflow: OnOverflow) -> Self {
        let mut lengths: Vec<usize> = data.examples.iter().map(Example::len).collect();
        lengths.sort_unstable();
        // The length that so many of a hundred examples do not exceed.
        let percentile = |percent: usize| {
            let rank = (lengths.len() * percent).div_ceil(100);
            lengths.get(rank.saturating_sub(1)).copied().unwrap_or(0)
        };
        let beyond = || data.examples.iter().filter(|example| is_beyond(example, max_length));
        let lost = |example: &Example| match on_overflow {
            OnOverflow::Truncate => learnt(&example.labels[max_length..]),
            OnOverflow::Drop | OnOverflow::Error => example.trained_tokens(),
        };
        let mut longest: Vec<&Example> = data.examples.iter().collect();
        longest.sort_by_key(|example| std::cmp::Reverse(example.len()));
        Summary {
            examples: data.report.examples,
            tokens: data.report.tokens,
            trained_tokens: data.report.trained_tokens,
            lengths: Lengths {
                min: percentile(0),
                median: percentile(50),
                p90: percentile(90),
                p99: percentile(99),
                max: percentile(100),
            },
            histogram: histogram(&lengths),
            max_length,
            beyond: beyond().count(),
            lost_tokens: beyond().map(lost).sum(),
            fitting: [95, 99, 100].map(percentile),
            longest: longest.iter().take(NAMED).map(|e| (e.source.to_string(), e.len())).collect(),
        }
    }
}

/// Whether an example loses something to the limit. The document of a text file is cut into pieces, of which
/// none is lost.
fn is_beyond(example: &Example, max_length: usize) -> bool {
    example.len() > max_length && Kind::of(&example.source.file).ok() != Some(Kind::Document)
}

fn learnt(labels: &[i32]) -> usize {
    labels.iter().filter(|&&label| label != IGNORE).count()
}

/// Bars of double length each, from the shortest that has an example to the longest.
fn histogram(sorted: &[usize]) -> Vec<Bin> {
    let Some((&first, &last)) = sorted.first().zip(sorted.last()) else { return Vec::new() };
    let mut bins = Vec::new();
    let (mut up_to, mut counted) = (first.next_power_of_two(), 0);
    loop {
        let until = sorted.partition_point(|&length| length <= up_to);
        bins.push(Bin { up_to, examples: until - counted });
        if up_to >= last {
            return bins;
        }
        (up_to, counted) = (up_to * 2, until);
    }
}

/// The text before each example's first learnt token, in small letters, with one space for any number of
/// them, and without the marks that end sentences. A text that is learnt whole has none.
fn prompts(data: &Dataset, tokenizer: &Tokenizer) -> Result<Vec<Option<String>>, TokenizerError> {
    let is_text = |example: &Example| {
        let file = data.report.files.iter().find(|file| file.path == *example.source.file);
        file.is_some_and(|file| file.format == Format::Text)
    };
    let prompt = |example: &Example| {
        let first = example.labels.iter().skip(1).position(|&label| label != IGNORE);
        let ids = &example.input_ids[..first.map_or(0, |first| first + 1)];
        if tokenizer.unknown().is_some_and(|unknown| ids.contains(&unknown)) {
            return Ok(None);
        }
        let text = tokenizer.decode(ids, true)?;
        let words =
            text.split_whitespace().map(|word| word.trim_end_matches(['.', ',', '?', '!']).to_lowercase());
        let text = words.collect::<Vec<_>>().join(" ");
        Ok((!is_text(example) && !text.is_empty()).then_some(text))
    };
    data.examples.iter().map(prompt).collect()
}

/// The examples of a set by what they are, in groups of the same, each group in the order of the set.
fn groups<'a, K: Ord>(keys: impl Iterator<Item = Option<K>> + 'a) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<K, Vec<usize>> = BTreeMap::new();
    for (i, key) in keys.enumerate() {
        if let Some(key) = key {
            groups.entry(key).or_default().push(i);
        }
    }
    let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
    groups.sort_unstable();
    groups
}

/// What is learnt of an example.
fn answer(example: &Example) -> Vec<i32> {
    example.labels.iter().copied().filter(|&label| label != IGNORE).collect()
}

/// Held-out examples that are trained on.
fn leaks(train: &Set<'_>, eval: &Set<'_>) -> Vec<Finding> {
    let trained: BTreeMap<_, _> =
        train.data.examples.iter().filter_map(|e| Some((train.content(e)?, &e.source))).rev().collect();
    let asked: BTreeMap<&String, &Source> = train
        .prompts
        .iter()
        .zip(&train.data.examples)
        .filter_map(|(prompt, example)| Some((prompt.as_ref()?, &example.source)))
        .rev()
        .collect();
    let (mut whole, mut prompts) = (Vec::new(), Vec::new());
    for (example, prompt) in eval.data.examples.iter().zip(&eval.prompts) {
        let pair = |other: &Source| format!("{} = {other}", example.source);
        let same = eval.content(example).and_then(|content| trained.get(&content));
        match (same, prompt.as_ref().and_then(|prompt| asked.get(prompt))) {
            (Some(other), _) => whole.push(pair(other)),
            (None, Some(other)) => prompts.push(pair(other)),
            (None, None) => {}
        }
    }
    let leak = |kind, what: &str, places: Vec<String>, advice: &str| Finding {
        kind,
        serious: true,
        count: places.len(),
        what: what.into(),
        places: places.into_iter().take(NAMED).collect(),
        advice: advice.into(),
    };
    let findings = [
        leak(
            "leaked_example",
            "held-out examples are training examples, too",
            whole,
            "take them out of one of the sets: the held-out loss is too good by them",
        ),
        leak(
            "leaked_prompt",
            "held-out prompts are training prompts, too, with another answer",
            prompts,
            "keep all answers to a prompt in one set",
        ),
    ];
    findings.into_iter().filter(|finding| finding.count > 0).collect()
}

impl Set<'_> {
    /// What an example is, if that can be told.
    fn content<'e>(&self, example: &'e Example) -> Option<(&'e [u32], &'e [i32])> {
        let is_known = self.unknown.is_none_or(|unknown| !example.input_ids.contains(&unknown));
        is_known.then_some((&example.input_ids, &example.labels))
    }

    fn findings(&self, summary: &Summary, on_overflow: OnOverflow) -> Vec<Finding> {
        let report = &self.data.report;
        let finding = |kind, serious, what: String, places: Vec<String>, advice: &str| Finding {
            kind,
            serious,
            count: places.len(),
            what: format!("{}{what}", self.of),
            places: places.into_iter().take(NAMED).collect(),
            advice: advice.into(),
        };
        let odd = |wanted: Oddity| -> Vec<String> {
            let places = report.oddities.iter().filter(|(_, oddity)| *oddity == wanted);
            places.map(|(at, _)| at.to_string()).collect()
        };
        let share = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;

        let lost = share(summary.lost_tokens, summary.trained_tokens);
        let beyond = self.data.examples.iter().filter(|example| is_beyond(example, summary.max_length));
        let fate = match on_overflow {
            OnOverflow::Truncate => "are cut off",
            OnOverflow::Drop => "are left out",
            OnOverflow::Error => "stop the run",
        };
        let end = match &report.plain_end {
            None => "what is learnt does not end in an end token, so that the model does not learn to stop"
                .to_string(),
            Some(end) => format!(
                "a turn ends with `{}`, which is {} tokens of plain text to this tokenizer, so that the model does not stop by itself",
                end.marker, end.tokens
            ),
        };
        let fitting = match report.plain_end.as_ref().map(|end| end.fitting.join(", ")) {
            Some(names) if !names.is_empty() => {
                format!("set data.chat_template to one whose markers are tokens: {names}")
            }
            _ => "let texts end in the tokenizer's eos_token, or use a chat template that writes it".into(),
        };
        let (same, differing) = self.repeated();
        let orders = report.oddities.iter().filter_map(|(at, oddity)| match oddity {
            Oddity::Order(what) => Some(format!("{at} ({what})")),
            _ => None,
        });
        let unknown = report.unknown.warning().map(|warning| warning.trim_end_matches('.').to_string());
        let findings = [
            finding(
                "no_trained_token",
                true,
                "no token is learnt; the examples are left out".into(),
                odd(Oddity::NothingLearnt),
                "see what data.train_on and the marks in the data leave; take the records out if that is meant",
            ),
            finding("no_end", true, end, odd(Oddity::NoEnd), &fitting),
            finding(
                "joined",
                report.joins_prompts(),
                "the prompt's end and the completion's beginning are one token, which is not learnt, so that \
                 the model never sees a prompt end as it will be asked"
                    .into(),
                odd(Oddity::Joined),
                "begin the completion, rather than end the prompt, with the space between them",
            ),
            finding(
                "unknown",
                report.unknown.warning().is_some(),
                unknown.unwrap_or_else(|| {
                    "some of the text that is learnt cannot be spelt by this tokenizer".into()
                }),
                odd(Oddity::Unknown),
                "use a model whose tokenizer knows these characters, or write them in others",
            ),
            finding(
                "beyond_max_length",
                lost >= 100.0 * LOST_SHARE || on_overflow == OnOverflow::Error,
                format!(
                    "longer than data.max_length = {}: they {fate}, and {lost:.1} % of the tokens that carry loss are lost",
                    summary.max_length
                ),
                beyond.map(|example| format!("{} ({} tokens)", example.source, example.len())).collect(),
                &format!(
                    "data.max_length: {} keeps 95 % of the examples whole, {} keeps 99 %, {} all",
                    summary.fitting[0], summary.fitting[1], summary.fitting[2]
                ),
            ),
            finding(
                "other_end",
                true,
                format!(
                    "what is learnt ends in {}, at which this model does not stop by itself",
                    report.other_end.keys().cloned().collect::<Vec<_>>().join(", ")
                ),
                odd(Oddity::OtherEnd),
                "make it an eos_token_id in generation_config.json",
            ),
            finding(
                "differing_answers",
                false,
                "the prompt comes again with another answer".into(),
                differing,
                "keep the better answer, unless many answers are meant",
            ),
            finding(
                "duplicate",
                false,
                "the same example comes again".into(),
                same,
                "keep one of them; to see it more often, give its file a weight in data.train",
            ),
            finding(
                "empty",
                false,
                "somebody says nothing".into(),
                odd(Oddity::Empty),
                "take the turn out: an empty answer is learnt as an answer",
            ),
            finding(
                "unanswered",
                false,
                "the last turn is not the assistant's; it is only read".into(),
                odd(Oddity::Unanswered),
                "end each conversation with an answer",
            ),
            finding(
                "role_order",
                false,
                "the roles do not take turns".into(),
                orders.collect(),
                "join turns of one speaker, and put the system message first; many templates refuse what they do not know",
            ),
        ];
        findings.into_iter().filter(|finding| finding.count > 0).collect()
    }

    /// Examples that come again, and examples whose prompt comes again with another answer, each with what it
    /// repeats.
    fn repeated(&self) -> (Vec<String>, Vec<String>) {
        let examples = &self.data.examples;
        let pair = |i: usize, first: usize| format!("{} = {}", examples[i].source, examples[first].source);
        let whole = groups(examples.iter().map(|example| self.content(example)));
        let same = whole.iter().flat_map(|group| group[1..].iter().map(|&i| pair(i, group[0])));
        let mut differing = Vec::new();
        for group in groups(self.prompts.iter().map(Option::as_ref)) {
            let first = answer(&examples[group[0]]);
            let others = group[1..].iter().filter(|&&i| answer(&examples[i]) != first);
            differing.extend(others.map(|&i| pair(i, group[0])));
        }
        (same.collect(), differing)
    }
}
