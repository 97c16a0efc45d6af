//! `luthier eval choice`: which of its choices a model finds likeliest behind a question.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use data::{Tokenizer, source};
use eval::choice::{Form, GroupMeans, Likelihood, Question, Scores, Shots, split_for_tokens};
use eval::paired::{Estimate, Groups, Part};
use infer::{Scored, Scorer, Stem};
use model::Layout;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::compare::{self, Flips, Got};
use super::items;
use super::systems::{Holder, System, Systems};
use crate::cli::{self, Global};
use crate::error::user;
use crate::run_file::{Purpose, Settings};
use crate::setup::{self, Inference};
use crate::terminal::{self, Progress, Table, count};

/// From so many groups on, such as the subjects of MMLU, it is groups that are drawn for intervals.
const GROUPS: usize = 20;

pub(super) fn run(args: &cli::Choice, global: &Global) -> anyhow::Result<ExitCode> {
    let mut settings = args.settings()?;
    settings.validate(Purpose::Other)?;
    let device = global.device()?;
    // What can be wrong with the questions is known before the weights are read.
    args.items.iter().try_for_each(|path| items::check(path, &args.data))?;
    let (form, questions) = read(&args.data, args.form.as_deref())?;
    let systems = Systems::open(&args.systems, &mut settings, &device)?;
    let tokenizer = systems.base.tokenizer()?;
    let context = systems.base.config.max_position_embeddings;
    let asked = Asked::of(args, &questions, &tokenizer, context)?;
    asked.warn(context);
    let longest = asked.longest();
    check_memory(&settings, &systems, longest, global.threads())?;

    let (mut holder, mut all) = (Holder::new(&systems.base, &settings, &device), Vec::new());
    for system in &systems.all {
        let decoder = holder.decoder(system)?;
        let begun = Instant::now();
        let mut scorer = Scorer::new(decoder, &asked.stems, &system.layout());
        let mut progress = Progress::items("scoring", asked.stems.len() as u64, 0);
        let scored = scorer.score(&asked.stems, system.adapter.as_ref(), &mut |done| {
            progress.set(done as u64, &system.name);
        })?;
        progress.finish(&system.name);
        all.push(Answers::of(system, &asked, &questions, &scored, begun.elapsed().as_secs_f64())?);
    }
    if let Some(path) = &args.items {
        items::write(path, items(&questions, &all))?;
    }
    let report = Report::of(form, args.shots.count, &questions, &asked, &all);
    match args.systems.json {
        true => terminal::print_json(&report)?,
        false => terminal::print_line(&report)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The questions of a file, a folder or a pattern; of MMLU's folders of CSV files a subject is a file.
fn read(path: &Path, form: Option<&str>) -> anyhow::Result<(Form, Vec<Question>)> {
    let mut form = form.map(str::parse::<Form>).transpose()?;
    let mut questions = Vec::new();
    for file in source::files(path)? {
        let rows = rows(&file)?;
        let of_file = match form {
            Some(form) => form,
            None => *form.insert(Form::detect(&rows).with_context(|| file.display().to_string())?),
        };
        let subject = file.file_stem().map(|stem| stem.to_string_lossy());
        let subject = subject.as_deref().map(|stem| {
            ["_test", "_dev", "_val"].iter().find_map(|split| stem.strip_suffix(split)).unwrap_or(stem)
        });
        let group = subject.filter(|_| rows.iter().any(Value::is_array));
        questions.extend(of_file.questions(&rows, group).with_context(|| file.display().to_string())?);
    }
    match form {
        Some(form) if !questions.is_empty() => Ok((form, questions)),
        _ => Err(user(format!("{}: there are no questions", path.display()))),
    }
}

/// The rows of a file: objects, or of a table of MMLU, which has no line of names, lists of cells.
fn rows(file: &Path) -> anyhow::Result<Vec<Value>> {
    let is_table = file.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("csv"));
    if is_table {
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_path(file)?;
        let rows: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>()?;
        let is_answer = |row: &csv::StringRecord| row.len() == 6 && ["A", "B", "C", "D"].contains(&&row[5]);
        let answers = rows.iter().filter(|row| is_answer(row)).count();
        let has_names = rows.first().is_some_and(|row| row.iter().any(|cell| cell == "answer"));
        if 2 * answers > rows.len() && !has_names {
            if let Some(wrong) = rows.iter().position(|row| !is_answer(row)) {
                return Err(user(format!(
                    "{}, row {}: a row of MMLU's tables is a question, four choices and the letter of the right one, A to \
                     D; this one has {} cells, of which the last is {:?}",
                    file.display(),
                    wrong + 1,
                    rows[wrong].len(),
                    rows[wrong].iter().next_back().unwrap_or_default()
                )));
            }
            return Ok(rows.iter().map(|row| row.iter().collect()).collect());
        }
    }
    let row = |row| Value::Object(if is_table { typed(row) } else { row });
    source::records(file)?.map(|record| Ok(row(record?.parse()?))).collect()
}

/// A row of a table, whose cells are texts, with the list and the number in two of them that lines of JSON have.
fn typed(mut row: Map<String, Value>) -> Map<String, Value> {
    for key in ["choices", "gold"] {
        if let Some(cell) = row.get_mut(key)
            && let Some(value) = cell.as_str().and_then(|text| serde_json::from_str(text).ok())
        {
            *cell = value;
        }
    }
    row
}

/// The questions as tokens.
struct Asked {
    stems: Vec<Stem>,
    /// Of each question's choices the stem and the branch.
    places: Vec<Vec<(usize, usize)>>,
    /// Choices whose beginning was cut.
    cut: usize,
}

impl Asked {
    fn of(
        args: &cli::Choice,
        questions: &[Question],
        tokenizer: &Tokenizer,
        context: usize,
    ) -> anyhow::Result<Self> {
        let pool = args.shots.from.as_ref().map(|path| read(path, args.form.as_deref())).transpose()?;
        let pool = pool.as_ref().map_or(questions, |(_, pool)| pool);
        let shots = Shots::new(pool, args.shots.count, args.shots.order(args.seed));
        let mut asked = Asked { stems: Vec::new(), places: Vec::new(), cut: 0 };
        for (number, question) in questions.iter().enumerate() {
            let prompt = question.prompt(&shots.of(question, number as u64)?);
            let first = asked.stems.len();
            let mut places = Vec::new();
            for (before, continuation) in prompt.pairs() {
                let (mut stem, branch) = encode(tokenizer, before, continuation)
                    .with_context(|| format!("{}: question {}", args.data.display(), number + 1))?;
                // The last token is predicted, and needs no place.
                let over = (stem.len() + branch.len()).saturating_sub(context + 1);
                if over >= stem.len() {
                    let message = format!(
                        "{}: question {} has a choice of more tokens than the {context} that the model was made for; \
                         shorten it, or leave the question out",
                        args.data.display(),
                        number + 1
                    );
                    return Err(user(message));
                }
                asked.cut += usize::from(over > 0);
                stem.drain(..over);
                let known = (first..asked.stems.len()).find(|&known| asked.stems[known].tokens == stem);
                let at = known.unwrap_or(asked.stems.len());
                if known.is_none() {
                    asked.stems.push(Stem { tokens: stem, branches: Vec::new() });
                }
                places.push((at, asked.stems[at].branches.len()));
                asked.stems[at].branches.push(branch);
            }
            asked.places.push(places);
        }
        Ok(asked)
    }

    fn warn(&self, context: usize) {
        if self.cut > 0 {
            eprintln!(
                "warning: {} choices with what stands before them have more tokens than the {context} that the \
                 model was made for; their beginnings were cut",
                self.cut
            );
        }
    }

    fn longest(&self) -> usize {
        let of = |stem: &Stem| stem.tokens.len() + stem.branches.iter().map(Vec::len).max().unwrap_or(0);
        self.stems.iter().map(of).max().unwrap_or(1)
    }

    /// Tokens that pass through the model for a system.
    fn tokens(&self) -> usize {
        let of = |stem: &Stem| {
            stem.tokens.len() + stem.branches.iter().map(|branch| branch.len() - 1).sum::<usize>()
        };
        self.stems.iter().map(of).sum()
    }
}

/// The tokens of a context, and those of both texts together beyond as many: lm-evaluation-harness'
/// `_encode_pair`, and its one token for no context.
fn encode(tokenizer: &Tokenizer, context: &str, continuation: &str) -> anyhow::Result<(Vec<u32>, Vec<u32>)> {
    let ids = |text: &str, special: bool| Ok::<_, anyhow::Error>(tokenizer.encode(text, special)?.ids);
    let (context, continuation) = split_for_tokens(context, continuation);
    let before = tokenizer.bos().or(tokenizer.eos());
    let (stem, branch) = if context.is_empty() {
        let before = before
            .ok_or_else(|| user("nothing stands before the choices, and the tokenizer has no BOS or EOS"))?;
        let mut branch = ids(&continuation, false)?;
        // A choice that brings the token along does not get a second one.
        let brings = branch.len() > 1 && branch[0] == before;
        branch.drain(..usize::from(brings));
        (vec![before], branch)
    } else {
        // Nor does a context that begins with the token's text.
        let written = before.map(|before| tokenizer.decode(&[before], false)).transpose()?;
        let special = !written.is_some_and(|written| context.starts_with(&written));
        let stem = ids(context, special)?;
        let mut whole = ids(&format!("{context}{continuation}"), special)?;
        let branch = whole.split_off(stem.len().min(whole.len()));
        (stem, branch)
    };
    match branch.is_empty() {
        true => Err(user(format!(
            "the choice {continuation:?} has no tokens of its own: this tokenizer joins it with what stands before it; \
             word the end of the context otherwise, or leave the question out"
        ))),
        false => Ok((stem, branch)),
    }
}

/// Refuses what does not fit.
fn check_memory(
    settings: &Settings,
    systems: &Systems,
    longest: usize,
    threads: usize,
) -> anyhow::Result<()> {
    let need = |inference: Inference<'_>| {
        let of =
            |layout: &Layout| Scorer::memory_plan(inference.config, inference.precision, longest, layout);
        let plans = systems.all.iter().map(|system| of(&system.layout()));
        inference.plan(&plans.max_by_key(|plan| plan.total()).expect("there is a system"), longest)
    };
    let inference = systems.inference(settings, threads);
    setup::check_memory("the evaluation", &need(inference), settings.run.memory, || {
        let smaller = systems.smaller(inference);
        smaller.into_iter().map(|(words, other)| (words, need(other))).collect()
    })
}

/// What a system says to all questions.
struct Answers {
    name: String,
    likelihoods: Vec<Vec<Likelihood>>,
    scores: Vec<Scores>,
    seconds: f64,
}

impl Answers {
    fn of(
        system: &System,
        asked: &Asked,
        questions: &[Question],
        scored: &[Vec<Scored>],
        seconds: f64,
    ) -> anyhow::Result<Self> {
        let likelihood = |&(stem, branch): &(usize, usize)| {
            let Scored { logprob: log, is_greedy: greedy } = scored[stem][branch];
            Likelihood { log, tokens: asked.stems[stem].branches[branch].len(), greedy }
        };
        let likelihoods: Vec<Vec<Likelihood>> =
            asked.places.iter().map(|places| places.iter().map(likelihood).collect()).collect();
        let scores = questions.iter().zip(&likelihoods).map(|(question, of)| question.scores(of));
        let scores = scores.collect::<Result<_, _>>()?;
        Ok(Answers { name: system.name.clone(), likelihoods, scores, seconds })
    }

    fn got(&self, score: impl Fn(&Scores) -> f64) -> Got {
        Got { name: self.name.clone(), parts: self.scores.iter().map(|of| Part::score(score(of))).collect() }
    }
}

/// A score of a system.
#[derive(Serialize)]
struct Accuracy {
    value: f64,
    /// By drawing questions anew; where there are many groups, groups.
    interval: Option<Estimate>,
}

#[derive(Serialize)]
struct OfSystem {
    system: String,
    accuracy: Accuracy,
    /// Of log-likelihoods over the choices' characters: lm-evaluation-harness' `acc_norm`.
    accuracy_norm: Accuracy,
    /// Over their bytes.
    accuracy_bytes: Accuracy,
    /// The probability of the right choices among all: `acc` of truthfulqa_mc2.
    probability: Accuracy,
    /// The mean of the groups' accuracies: MMLU as QLoRA counts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy_over_groups: Option<f64>,
    seconds: f64,
}

/// A system in two numbers.
#[derive(Serialize)]
struct Headline {
    items: usize,
    accuracy: f64,
    /// By bytes.
    accuracy_normalized: f64,
}

/// What is printed: the last system's numbers, beside them those of the first one if there are several, and then all
/// of it.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    last: Headline,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<Headline>,
    /// Of the last system's accuracy from the first one's, with the interval of 95 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<[f64; 2]>,
    form: &'static str,
    shots: usize,
    tokens: usize,
    systems: Vec<OfSystem>,
    /// Of accuracy, from the first system's.
    differences: Vec<Flips>,
}

/// A number for each question.
type Score = fn(&Scores) -> f64;

impl Report {
    fn of(form: Form, shots: usize, questions: &[Question], asked: &Asked, all: &[Answers]) -> Self {
        let labels: Vec<Option<&str>> = questions.iter().map(Question::group).collect();
        let groups = Groups::by(&labels);
        let has_groups = groups.count() > 1;
        // A handful of them, drawn anew, says little of others.
        let drawn = (groups.count() >= GROUPS).then_some(&groups);
        let of_all = |score: Score| {
            let got: Vec<Got> = all.iter().map(|answers| answers.got(score)).collect();
            let mean =
                |got: &Got| got.parts.iter().map(|part| part.sum).sum::<f64>() / got.parts.len() as f64;
            let intervals = compare::estimates(&got, drawn);
            got.iter()
                .zip(intervals)
                .map(|(got, interval)| Accuracy { value: mean(got), interval })
                .collect::<Vec<_>>()
        };
        let scores: [Score; 4] = [|of| of.acc, |of| of.acc_norm, |of| of.acc_bytes, |of| of.mass];
        let mut columns = scores.map(|score| of_all(score).into_iter());
        let systems = all.iter().map(|answers| {
            let [accuracy, accuracy_norm, accuracy_bytes, probability] =
                columns.each_mut().map(|column| column.next().expect("one for each system"));
            let by_group = labels.iter().zip(&answers.scores).map(|(group, of)| (*group, of.acc));
            let over_groups = GroupMeans::of(by_group).filter(|_| has_groups).map(|means| means.over_groups);
            OfSystem {
                system: answers.name.clone(),
                accuracy,
                accuracy_norm,
                accuracy_bytes,
                probability,
                accuracy_over_groups: over_groups,
                seconds: answers.seconds,
            }
        });
        let systems: Vec<OfSystem> = systems.collect();
        let headline = |of: &OfSystem| Headline {
            items: questions.len(),
            accuracy: of.accuracy.value,
            accuracy_normalized: of.accuracy_bytes.value,
        };
        let got: Vec<Got> = all.iter().map(|answers| answers.got(|of| of.acc)).collect();
        let differences = compare::flips(&got, drawn);
        let difference = differences.last().map(Flips::difference);
        Report {
            last: headline(systems.last().expect("there is a system")),
            baseline: (systems.len() > 1).then(|| headline(&systems[0])),
            difference: difference.map(|of| of.value),
            interval: difference.map(|of| [of.low, of.high]),
            form: form.name(),
            shots,
            tokens: asked.tokens() * all.len(),
            systems,
            differences,
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let has_groups = self.systems.iter().any(|of| of.accuracy_over_groups.is_some());
        let over_groups = has_groups.then_some("over groups");
        let mut table = Table::new(
            ["", "accuracy", "95 % interval", "by characters", "by bytes", "probability"]
                .into_iter()
                .chain(over_groups),
        );
        for of in &self.systems {
            let last = of.accuracy_over_groups.map(|mean| format!("{mean:.4}"));
            let cells = [
                of.system.clone(),
                format!("{:.4}", of.accuracy.value),
                compare::interval(of.accuracy.interval),
                format!("{:.4}", of.accuracy_norm.value),
                format!("{:.4}", of.accuracy_bytes.value),
                format!("{:.4}", of.probability.value),
            ];
            table.row(cells.into_iter().chain(last));
        }
        writeln!(f, "{table}\n")?;
        compare::tell_flips(f, "accuracy", &self.differences)?;
        let Report { last: Headline { items, .. }, form, shots, tokens, systems, .. } = self;
        let seconds: f64 = systems.iter().map(|of| of.seconds).sum();
        let speed = count(*tokens as f64 / seconds.max(1e-9));
        writeln!(f, "questions   {items} of the form {form}, {shots} worked examples before each")?;
        write!(f, "time        {seconds:.1} s, {speed} tokens/s")
    }
}

/// What came of each question.
fn items(questions: &[Question], all: &[Answers]) -> impl Iterator<Item = Value> {
    questions.iter().enumerate().map(|(number, question)| {
        let of_system = |answers: &Answers| {
            let logs: Vec<f64> = answers.likelihoods[number].iter().map(|of| of.log).collect();
            let greedy: Vec<bool> = answers.likelihoods[number].iter().map(|of| of.greedy).collect();
            let of = json!({"chosen": answers.scores[number].chosen, "logprobs": logs, "greedy": greedy});
            (answers.name.clone(), of)
        };
        let systems: Map<String, Value> = all.iter().map(of_system).collect();
        json!({"number": number + 1, "group": question.group(), "right": question.right(), "systems": systems})
    })
}
