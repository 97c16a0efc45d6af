//! A data set: every example of some files, tokenized and labelled in parallel, with a report of what was
//! noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::error::named_enum;
use crate::format::{self, Oasst, Opened, Trees};
use crate::label::{Border, Ending, Labelled, Labeller};
use crate::oddity::Oddity;
use crate::order::{OrderSpec, Row, Shuffle, epoch_rows};
use crate::source::{RawContent, RawRecord, files, shown};
use crate::template::{Part, PlainEnd};
use crate::{
    ChatTemplate, DataError, Example, Format, IGNORE, Source, SourceSpec, TemplateError, Tokenizer, TrainOn,
};

/// Records that are tokenized in parallel before the next are read.
const CHUNK: usize = 1024;

/// What happens to an example of more than `max_length` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOverflow {
    /// It is cut off there. The document of a `.txt` file is cut into pieces instead, of which none is lost.
    Truncate,
    /// It is left out.
    Drop,
    /// It is an error.
    Error,
}

named_enum!(OnOverflow, "value of data.on_overflow", Truncate = "truncate", Drop = "drop", Error = "error");

/// What to load and how; the `data` section of a run file.
#[derive(Clone, Debug)]
pub struct DataSpec {
    /// Files and folders.
    pub sources: Vec<SourceSpec>,
    /// The format of sources that name none themselves.
    pub format: Format,
    /// What is taken out of trees of messages.
    pub oasst: Oasst,
    /// Which tokens carry loss.
    pub train_on: TrainOn,
    /// A built-in template's name or a file; `None`: the tokenizer's own.
    pub chat_template: Option<String>,
    /// The longest example, in tokens.
    pub max_length: usize,
    /// What happens to longer ones.
    pub on_overflow: OnOverflow,
    /// The rows of the model's embedding: a token id beyond is an error.
    pub vocab_size: Option<usize>,
    /// The time that a template may print, in seconds since 1970; `None`: now. A resumed run passes its first
    /// start.
    pub unix_time: Option<i64>,
}

impl DataSpec {
    /// The given sources under default settings.
    pub fn new(sources: Vec<SourceSpec>) -> Self {
        DataSpec {
            sources,
            format: Format::Auto,
            oasst: Oasst::default(),
            train_on: TrainOn::Assistant,
            chat_template: None,
            max_length: 2048,
            on_overflow: OnOverflow::Truncate,
            vocab_size: None,
            unix_time: None,
        }
    }

    /// One file or folder under default settings.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::new(vec![SourceSpec::new(path)])
    }
}

/// What was read and noticed.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Report {
    /// Each file with its format, in order.
    pub files: Vec<FileReport>,
    /// Examples that can be trained on.
    pub examples: usize,
    /// All their tokens.
    pub tokens: usize,
    /// Those of them that carry loss, after the shift.
    pub trained_tokens: usize,
    /// The longest example, in tokens.
    pub longest: usize,
    /// The limit on an example's length.
    pub max_length: usize,
    /// Examples cut off at `max_length`.
    pub truncated: usize,
    /// Examples left out because they were longer than `max_length`.
    pub dropped: usize,
    /// Documents of `.txt` files cut into pieces.
    pub split: usize,
    /// Examples left out because none of their tokens carries loss.
    pub without_trained_token: usize,
    /// What of the files was no example to begin with, by the reason.
    pub left_out: BTreeMap<&'static str, usize>,
    /// Examples that begin with two beginning-of-text tokens.
    pub double_bos: usize,
    /// Examples with a trained part that does not end in an end token, so that the model does not learn to
    /// stop there.
    pub missing_end: usize,
    /// Examples whose trained parts end in a special token at which the model does not stop, by token.
    pub other_end: BTreeMap<String, usize>,
    /// Completions, and those of which the tokenizer joins the prompt's end and the completion's beginning into one
    /// token.
    pub completions: usize,
    /// See [`completions`](Self::completions).
    pub joined: usize,
    /// Examples of which the chat template leaves something out that the assistant's turns do not need, by
    /// what that is.
    pub unwritten: BTreeMap<String, usize>,
    /// The end-of-text token if it is the padding token as well.
    pub pad_is_eos: Option<String>,
    /// Whether the tokenizer has an end-of-text token.
    pub has_eos: bool,
    /// The end-of-turn marker of the chat template if it is plain text to the tokenizer.
    pub plain_end: Option<PlainEnd>,
    /// What of the text that is learnt the vocabulary cannot spell.
    pub unknown: Unknown,
    /// What is odd about single records, in their order.
    #[serde(skip)]
    pub oddities: Vec<(Source, Oddity)>,
}

/// Learnt text that the vocabulary cannot spell.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Unknown {
    /// The token that stands for it.
    pub token: String,
    /// How often it is learnt.
    pub count: usize,
    /// Among how many learnt tokens.
    pub of: usize,
    /// Some of the text.
    pub samples: Vec<String>,
}

/// Of the learnt tokens, how many may stand for unknown text before that is worth a word.
const UNKNOWN_SHARE: f64 = 0.001;
/// Samples of unknown text that are kept.
const SAMPLES: usize = 5;

impl Unknown {
    /// The share of the learnt tokens.
    pub fn share(&self) -> f64 {
        self.count as f64 / self.of.max(1) as f64
    }

    /// What a person should know, if the share is worth a word.
    pub fn warning(&self) -> Option<String> {
        (self.share() >= UNKNOWN_SHARE).then(|| {
            let samples: Vec<String> = self.samples.iter().map(|text| format!("{text:?}")).collect();
            let such = if samples.is_empty() { String::new() } else { format!(", such as {}", samples.join(", ")) };
            format!(
                "Of the tokens that carry loss, {:.1} % are {}: this tokenizer cannot spell some of the text{such}, and the model would \
                 learn to write {} for it.",
                100.0 * self.share(),
                self.token,
                self.token
            )
        })
    }
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// The format of its records.
    pub format: Format,
    /// Whether the format was found by looking rather than named.
    pub found: bool,
    /// The number of records.
    pub records: usize,
}

impl Report {
    /// Whether most completions begin within the last token of their prompt.
    pub fn joins_prompts(&self) -> bool {
        2 * self.joined > self.completions
    }

    /// What a person should know before the first step, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let max = self.max_length;
        let why = if self.has_eos { "" } else { " (the tokenizer names no eos_token)" };
        let counted = [
            (self.truncated, format!("Cut off at data.max_length = {max} tokens")),
            (self.dropped, format!("Left out, being longer than data.max_length = {max} tokens")),
            (self.without_trained_token, "Left out, having no token that carries loss".to_string()),
            (
                self.double_bos,
                "Beginning with two beginning-of-text tokens, of which the text or the template has one and the tokenizer adds \
                 another"
                    .to_string(),
            ),
            (
                self.missing_end,
                self.plain_end.as_ref().map_or_else(
                    || format!("Without an end-of-turn token at the end{why}, so that the model does not learn to stop"),
                    PlainEnd::describe,
                ),
            ),
        ];
        let joined = self.joins_prompts().then(|| (self.joined, JOINED.to_string()));
        let counted = counted.into_iter().chain(joined).filter(|(count, _)| *count > 0);
        let mut warnings: Vec<String> =
            counted.map(|(count, what)| format!("{what}: {}.", examples(count))).collect();
        warnings.extend(self.left_out.iter().map(|(what, count)| format!("Left out, {what}: {count}.")));
        for (token, count) in &self.other_end {
            warnings.push(format!(
                "Ending in {token}, at which this model does not stop by itself (make it an eos_token_id in \
                 generation_config.json): {}.",
                examples(*count)
            ));
        }
        warnings.extend(self.unknown.warning());
        for (what, count) in &self.unwritten {
            warnings.push(format!("The chat template does not write {what}: {}.", examples(*count)));
        }
        if let Some(token) = &self.pad_is_eos {
            warnings.push(format!(
                "The padding token is the end-of-text token {token}; nothing is masked for that, so the model still learns to stop."
            ));
        }
        warnings
    }
}

/// What is wrong with completions that begin within a token, and what to do.
const JOINED: &str = "With the end of the prompt and the beginning of the completion in one token, which is \
                      not learnt, so that the model never sees a prompt end as it will be asked (begin the \
                      completion, rather than end the prompt, with the space between them)";

fn examples(count: usize) -> String {
    format!("{count} example{}", if count == 1 { "" } else { "s" })
}

/// Examples with the order in which epochs visit them.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// All examples, in the order of the files; each has at least one token that carries loss.
    pub examples: Vec<Example>,
    /// What was read and noticed.
    pub report: Report,
    /// Each example's weight.
    weights: Vec<f64>,
}

impl Dataset {
    /// Reads, renders, tokenizes and labels. The first thing wrong, in the order of the files, is the error.
    pub fn load(spec: &DataSpec, tokenizer: &Tokenizer) -> Result<Self, DataError> {
        check(spec)?;
        let fix_time = |template: ChatTemplate| match spec.unix_time {
            Some(time) => template.at_time(time),
            None => template,
        };
        let template = ChatTemplate::resolve(spec.chat_template.as_deref(), tokenizer)?.map(fix_time);
        let alpaca = ChatTemplate::builtin("alpaca").expect("it is built in").with_special_tokens(tokenizer);
        let labeller = Labeller {
            tokenizer,
            template: template.as_ref(),
            instruction_template: &alpaca,
            train_on: spec.train_on,
        };
        let (dataset, trees) = (Dataset::empty(spec, tokenizer), Trees::default());
        let mut loading = Loading { spec, labeller, dataset, trees, left_out: None };
        for source in &spec.sources {
            for file in files(&source.path)? {
                loading.file(&file, source).map_err(|error| loading.left_out.take().unwrap_or(error))?;
            }
        }
        if let Some(error) = loading.left_out {
            return Err(error);
        }
        let mut dataset = loading.dataset;
        dataset.count();
        dataset.report.unknown.of = dataset.report.trained_tokens;
        if dataset.report.missing_end > 0 {
            dataset.report.plain_end = template.as_ref().and_then(|template| template.plain_end(tokenizer));
        }
        if dataset.examples.is_empty() {
            return Err(DataError::NothingTrained(dataset.why_empty(spec)));
        }
        Ok(dataset)
    }

    /// Examples that were made elsewhere, each seen once per epoch.
    pub fn of_examples(examples: Vec<Example>) -> Self {
        let weights = vec![1.0; examples.len()];
        let mut dataset = Dataset { examples, weights, report: Report::default() };
        dataset.count();
        dataset
    }

    fn empty(spec: &DataSpec, tokenizer: &Tokenizer) -> Self {
        let pad_is_eos =
            tokenizer.pad().filter(|&pad| tokenizer.is_end(pad)).and_then(|pad| tokenizer.id_to_token(pad));
        let has_eos = tokenizer.eos().is_some();
        let token = tokenizer.unknown().and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default();
        let unknown = Unknown { token, ..Unknown::default() };
        let report =
            Report { max_length: spec.max_length, pad_is_eos, has_eos, unknown, ..Report::default() };
        Dataset { examples: Vec::new(), weights: Vec::new(), report }
    }

    fn count(&mut self) {
        let (examples, report) = (&self.examples, &mut self.report);
        report.examples = examples.len();
        report.tokens = examples.iter().map(Example::len).sum();
        report.trained_tokens = examples.iter().map(Example::trained_tokens).sum();
        report.longest = examples.iter().map(Example::len).max().unwrap_or(0);
    }

    fn why_empty(&self, spec: &DataSpec) -> String {
        let report = &self.report;
        let records: usize = report.files.iter().map(|file| file.records).sum();
        if records == 0 {
            let paths: Vec<String> =
                report.files.iter().map(|file| file.path.display().to_string()).collect();
            let left_out: Vec<String> =
                report.left_out.iter().map(|(what, count)| format!("; {what}: {count}")).collect();
            return format!("there is no example in {}{}", paths.join(", "), left_out.concat());
        }
        format!(
            "of {records} records {} have no token that carries loss (data.train_on = {}, {} cut off) and {} are longer than \
             data.max_length = {}",
            report.without_trained_token, spec.train_on, report.truncated, report.dropped, spec.max_length
        )
    }

    /// The rows that an epoch visits, in order: indices into `examples`. Weights count here; a weight of 2 is
    /// two visits.
    pub fn rows(&self, spec: &OrderSpec) -> Vec<Row> {
        let visits = self.visits(spec);
        let lengths: Vec<usize> = visits.iter().map(|&i| self.examples[i].len()).collect();
        let mut rows = epoch_rows(&lengths, spec);
        for row in &mut rows {
            row.iter_mut().for_each(|place| *place = visits[*place]);
        }
        rows
    }

    /// The examples that an epoch visits, in the order of the files. Over n epochs an example of weight w is
    /// visited floor(n w) or ceil(n w) times.
    fn visits(&self, spec: &OrderSpec) -> Vec<usize> {
        let times = |(i, &weight): (usize, &f64)| {
            let offset = Shuffle::new(spec.seed, "weights", i as u64).fraction();
            let until = |epoch: u64| (epoch as f64 * weight + offset).floor() as usize;
            std::iter::repeat_n(i, until(spec.epoch + 1) - until(spec.epoch))
        };
        self.weights.iter().enumerate().flat_map(times).collect()
    }

    /// Splits off a fraction of the examples for evaluation, chosen by the seed: (the rest, the fraction).
    pub fn split(self, fraction: f64, seed: u64) -> Result<(Self, Self), DataError> {
        let error = |message: String| DataError::Setting { key: "data.eval_fraction", message };
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(error(format!("{fraction} is not between 0 and 1")));
        }
        let total = self.examples.len();
        if total < 2 {
            return Err(error("a single example cannot be split".into()));
        }
        let count = ((total as f64 * fraction).round() as usize).clamp(1, total - 1);
        let mut order: Vec<usize> = (0..total).collect();
        Shuffle::new(seed, "eval_fraction", 0).shuffle(&mut order);
        let mut is_eval = vec![false; total];
        order[..count].iter().for_each(|&i| is_eval[i] = true);
        let mut train = Dataset { examples: Vec::new(), weights: Vec::new(), report: self.report };
        let mut eval = train.clone();
        for ((example, weight), is_eval) in self.examples.into_iter().zip(self.weights).zip(is_eval) {
            let part = if is_eval { &mut eval } else { &mut train };
            part.examples.push(example);
            part.weights.push(weight);
        }
        train.count();
        eval.count();
        Ok((train, eval))
    }
}

fn check(spec: &DataSpec) -> Result<(), DataError> {
    let setting = |key, message: String| Err(DataError::Setting { key, message });
    if spec.sources.is_empty() {
        return setting("data.train", "no file is named".into());
    }
    if spec.max_length < 2 {
        return setting(
            "data.max_length",
            format!("{} is too short: the first token never carries loss", spec.max_length),
        );
    }
    match spec
        .sources
        .iter()
        .find(|source| !(source.weight.is_finite() && source.weight > 0.0 && source.weight <= 1e6))
    {
        Some(source) => setting(
            "data.train",
            format!(
                "{}: weight {} must be more than 0 and at most 1000000",
                source.path.display(),
                source.weight
            ),
        ),
        None => Ok(()),
    }
}

/// A data set while it is being read.
struct Loading<'a> {
    spec: &'a DataSpec,
    labeller: Labeller<'a>,
    dataset: Dataset,
    /// Of all files.
    trees: Trees,
    /// The first record of which the chat template leaves out what it must not, with the number of others.
    left_out: Option<DataError>,
}

/// What one record became.
struct Outcome {
    at: Source,
    oddities: Vec<Oddity>,
    unknown: Option<String>,
    examples: Vec<Example>,
    fate: Fate,
    double_bos: bool,
    ending: Ending,
    border: Option<Border>,
    unwritten: BTreeSet<Part>,
}

#[derive(PartialEq)]
enum Fate {
    Kept,
    Truncated,
    Split,
    Dropped,
}

impl Loading<'_> {
    fn file(&mut self, path: &Path, source: &SourceSpec) -> Result<(), DataError> {
        let Opened { mut records, format, found, left_out } =
            format::open(path, source.format.unwrap_or(self.spec.format), &self.spec.oasst, &self.trees)?;
        let mut count = 0;
        loop {
            let chunk: Vec<RawRecord> = records.by_ref().take(CHUNK).collect::<Result<_, _>>()?;
            if chunk.is_empty() {
                break;
            }
            count += chunk.len();
            let outcomes: Vec<Result<Outcome, DataError>> =
                chunk.par_iter().map(|record| self.record(record, format)).collect();
            for outcome in outcomes {
                match outcome {
                    Ok(outcome) => self.keep(outcome, source.weight),
                    Err(error @ DataError::Render { error: TemplateError::Unwritten { .. }, .. }) => {
                        self.leave_out(error);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        for (why, count) in left_out.lock().expect("nobody panics with it").iter() {
            *self.dataset.report.left_out.entry(why).or_default() += count;
        }
        self.dataset.report.files.push(FileReport { path: shown(path), format, found, records: count });
        Ok(())
    }

    fn record(&self, record: &RawRecord, format: Format) -> Result<Outcome, DataError> {
        let at = &record.at;
        let item = format.item(record.parse()?, at)?;
        let oddities = Oddity::of(&item);
        let labelled = self.labeller.label(item, at)?;
        self.check_vocabulary(&labelled, at)?;
        let bos = self.labeller.tokenizer.bos();
        let double_bos = matches!(labelled.input_ids[..], [a, b, ..] if Some(a) == bos && a == b);
        let is_document = matches!(record.content, RawContent::Document(_));
        let (used, fate) = self.fit(labelled.input_ids.len(), is_document, at)?;
        let ending = if fate == Fate::Truncated { Ending::Ended } else { labelled.ending };
        let ids = labelled.input_ids[..used].chunks(self.spec.max_length);
        let labels = labelled.labels[..used].chunks(self.spec.max_length);
        let piece = |(ids, labels): (&[u32], &[i32])| Example {
            input_ids: ids.to_vec(),
            labels: labels.to_vec(),
            source: at.clone(),
        };
        let unwritten = labelled.unwritten.into_iter().collect();
        let examples = ids.zip(labels).map(piece).collect();
        let (at, unknown, border) = (at.clone(), labelled.unknown, labelled.border);
        Ok(Outcome { at, oddities, unknown, examples, fate, double_bos, ending, border, unwritten })
    }

    fn check_vocabulary(&self, labelled: &Labelled, at: &Source) -> Result<(), DataError> {
        let Some(vocab_size) = self.spec.vocab_size else { return Ok(()) };
        let labels = labelled.labels.iter().filter(|&&label| label != IGNORE).map(|&label| label as u32);
        match labelled.input_ids.iter().copied().chain(labels).find(|&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(id) => {
                let token = self.labeller.tokenizer.id_to_token(id).unwrap_or_default();
                Err(DataError::Vocabulary { at: at.clone(), id, token, vocab_size })
            }
        }
    }

    /// How much of an example of so many tokens is used, in pieces of `max_length`.
    fn fit(&self, tokens: usize, is_document: bool, at: &Source) -> Result<(usize, Fate), DataError> {
        let max_length = self.spec.max_length;
        if tokens <= max_length {
            return Ok((tokens, Fate::Kept));
        }
        match self.spec.on_overflow {
            OnOverflow::Error => Err(DataError::Overflow { at: at.clone(), tokens, max_length }),
            OnOverflow::Drop => Ok((0, Fate::Dropped)),
            OnOverflow::Truncate if is_document => Ok((tokens, Fate::Split)),
            OnOverflow::Truncate => Ok((max_length, Fate::Truncated)),
        }
    }

    /// Counts a record that cannot be learnt; all are counted before the first is the error.
    fn leave_out(&mut self, error: DataError) {
        match &mut self.left_out {
            Some(DataError::Render { error: TemplateError::Unwritten { others, .. }, .. }) => *others += 1,
            first => *first = Some(error),
        }
    }

    fn keep(&mut self, outcome: Outcome, weight: f64) {
        let Dataset { examples, weights, report } = &mut self.dataset;
        report.truncated += usize::from(outcome.fate == Fate::Truncated);
        report.dropped += usize::from(outcome.fate == Fate::Dropped);
        report.split += usize::from(outcome.fate == Fate::Split);
        if outcome.fate == Fate::Dropped {
            return;
        }
        let note = |oddity| (outcome.at.clone(), oddity);
        report.oddities.extend(outcome.oddities.into_iter().map(note));
        let before = examples.len();
        // The last piece of a document may be a single token, which has nothing to be predicted from.
        examples.extend(outcome.examples.into_iter().filter(|example| example.trained_tokens() > 0));
        weights.resize(examples.len(), weight);
        if examples.len() == before {
            report.without_trained_token += 1;
            report.oddities.push(note(Oddity::NothingLearnt));
            return;
        }
        if let Some(id) = self.labeller.tokenizer.unknown() {
            let learnt = examples[before..].iter().flat_map(|example| example.labels.iter().skip(1));
            report.unknown.count += learnt.filter(|&&label| label == id as i32).count();
        }
        if let Some(text) = outcome.unknown {
            let text: String = text.chars().take(20).collect();
            if report.unknown.samples.len() < SAMPLES && !report.unknown.samples.contains(&text) {
                report.unknown.samples.push(text);
            }
            report.oddities.push(note(Oddity::Unknown));
        }
        report.completions += usize::from(outcome.border.is_some());
        if outcome.border == Some(Border::Joined) {
            report.joined += 1;
            report.oddities.push(note(Oddity::Joined));
        }
        report.double_bos += usize::from(outcome.double_bos);
        for part in &outcome.unwritten {
            *report.unwritten.entry(part.to_string()).or_default() += 1;
        }
        match outcome.ending {
            Ending::Ended => {}
            Ending::Open => {
                report.missing_end += 1;
                report.oddities.push(note(Oddity::NoEnd));
            }
            Ending::Other(id) => {
                report.oddities.push(note(Oddity::OtherEnd));
                let token = self.labeller.tokenizer.id_to_token(id).unwrap_or_else(|| id.to_string());
                *report.other_end.entry(token).or_default() += 1;
            }
        }
    }
}
