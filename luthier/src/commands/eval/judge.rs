//! `luthier eval judge`: systems whose answers a model compares.
//!
//! A judge file says whose answers to which questions (`judge/questions.rs`); each question with the answers
//! of two systems, in both orders, is a game (`games.rs`), shown to the judge in a prompt (`prompt.rs`). What
//! is not there yet is asked for (`ask.rs`, `endpoint.rs`) and kept as it comes (`replies.rs`), so that a
//! command that was stopped goes on, and one that has ended costs nothing when it is run again. The tables
//! (`report.rs`) are those of ratings that others left in files.

mod ask;
mod endpoint;
mod export;
mod games;
mod prompt;
mod questions;
mod replies;
mod report;
mod results;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use eval::tournament::{
    Judgement, Ratings, RatingsKind, Reading, Tournament, Verdict, read_scores, read_verdict,
};

use self::ask::{End, Outcome};
use self::endpoint::Endpoint;
use self::games::{Game, Games};
use self::prompt::Prompt;
use self::questions::Question;
use self::replies::Replies;
use self::report::{Asked, Report, Tables, Unread, Whence, beside_all, unread_of};
use self::results::Judged;
use crate::cli;
use crate::error::{STOPPED, user};
use crate::run_file::{JudgeFile, Judging, Kind};
use crate::signal;
use crate::terminal::{self, one_line};

/// Games that are shown of those without a reply.
const SHOWN: usize = 5;
/// Characters of a reply's end that are shown where it could not be read.
const ENDING: usize = 100;

pub(super) fn run(args: &cli::Judge) -> anyhow::Result<ExitCode> {
    match (&args.ratings, &args.file) {
        (Some(folder), _) => of_ratings(args, folder),
        (None, Some(file)) => of_file(args, file),
        (None, None) => unreachable!("clap asks for one of both"),
    }
}

/// The tables of ratings in files.
fn of_ratings(args: &cli::Judge, folder: &Path) -> anyhow::Result<ExitCode> {
    let ratings = Ratings::read(folder)?;
    let tables = |judgements: &[Judgement], kind, reference| {
        if judgements.is_empty() {
            return Ok(None);
        }
        let (readings, unread) = (ratings.readings(kind), unread_of(&ratings.files, kind));
        Tables::of(judgements, reference, readings, unread).map(Some)
    };
    let scored: BTreeSet<&str> =
        ratings.scores.iter().flat_map(|of| [of.first.as_str(), of.second.as_str()]).collect();
    if let Some(name) = args.reference.as_deref().filter(|name| !scored.contains(name)) {
        let known = Vec::from_iter(scored).join(", ");
        let message = format!("no system with scores is called so; there are: {known}");
        return Err(user(format!("--reference {name}: {message}")));
    }
    let reference = args.reference.as_deref().or_else(|| beside_all(&ratings.scores));
    let scores = tables(&ratings.scores, RatingsKind::Scores, reference)?;
    let better = tables(&ratings.better, RatingsKind::Better, None)?;
    let mut report = Report::new(Whence::Ratings(folder.to_owned()), scores, better);
    report.files = ratings.files;
    if reference.is_none() && !ratings.scores.is_empty() {
        report.notes.push("no system was rated beside all others: name one by --reference".to_owned());
    }
    report.compare_kinds();
    if let Some(other) = &args.beside {
        report.compare_with(&results::read_other(other)?);
    }
    print(&report, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Judges what a file says, or writes its answers for others.
fn of_file(args: &cli::Judge, path: &Path) -> anyhow::Result<ExitCode> {
    let judging = Judging::read(path)?;
    let file = &judging.file;
    let questions = questions::read_questions(&file.questions)?;
    let answers: Vec<Vec<String>> = file
        .answers
        .values()
        .map(|path| questions::read_answers(path, &questions))
        .collect::<anyhow::Result<_>>()?;
    if let Some([form, folder]) = args.export.as_deref() {
        let systems = file.answers.keys().map(String::as_str).zip(answers.iter().map(Vec::as_slice));
        export::export(form.parse()?, Path::new(folder), &questions, systems)?;
        return Ok(ExitCode::SUCCESS);
    }
    judging.require_judge()?;
    let others = args.beside.as_deref().map(results::read_other).transpose()?;
    judge(args, &judging, &questions, &answers, &others.unwrap_or_default())
}

fn judge(
    args: &cli::Judge,
    judging: &Judging,
    questions: &[Question],
    answers: &[Vec<String>],
    others: &[(String, Tournament)],
) -> anyhow::Result<ExitCode> {
    let file = &judging.file;
    let prompt = Prompt::open(file.prompt.as_deref(), file.kind)?;
    let mut endpoint = Endpoint::open(judging);
    let games = Games::of(file, questions, answers, &prompt, &endpoint)?;
    if args.partial && !file.output.is_dir() {
        return Err(nothing(&[], file));
    }
    let mut replies = Replies::open(&file.output)?;
    let outcome = match args.partial || games.missing(&replies).is_empty() {
        true => Outcome::default(),
        false => {
            // Replies that are there can be counted by whoever has no key.
            endpoint.unlock(judging)?;
            let stop = signal::stop_on_request()?;
            tell_limits(file, games.missing(&replies).len());
            ask::ask_all(&games, &endpoint, &mut replies, file, &stop)
        }
    };
    let missing: Vec<&Game> =
        games.all().iter().filter(|game| replies.get(&game.request).is_none()).collect();
    if !missing.is_empty() && !args.partial {
        return incomplete(&games, &missing, outcome, judging);
    }
    let (all, unread) = read(&games, &replies, file.kind);
    let judgements: Vec<Judgement> = all.iter().filter_map(Judged::judgement).collect();
    if judgements.is_empty() {
        return Err(nothing(&unread, file));
    }
    let mut readings: BTreeMap<Reading, usize> = BTreeMap::new();
    all.iter().filter_map(|of| of.reading).for_each(|reading| *readings.entry(reading).or_default() += 1);
    let tables = Tables::of(&judgements, file.reference.as_deref(), readings, unread)?;
    let (scores, better) = match file.kind {
        Kind::Scores => (Some(tables), None),
        Kind::Verdict => (None, Some(tables)),
    };
    let asked = asked(file, &endpoint, &games, &replies, &outcome, missing.len());
    let mut report = Report::new(Whence::Judge(asked), scores, better);
    report.compare_with(others);
    if missing.is_empty() {
        results::write(&file.output, &all, &report)
            .with_context(|| format!("cannot write into {}", file.output.display()))?;
    }
    print(&report, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Says, before the first request is sent, how many there are and what limits them.
fn tell_limits(file: &JudgeFile, requests: usize) {
    let JudgeFile { judge, parallel, retries, backoff, timeout, budget, .. } = file;
    let most = |most: Option<u64>, what: &str| most.map(|most| format!("{most} {what}"));
    let budget: Vec<String> =
        [most(budget.requests, "requests"), most(budget.tokens, "tokens")].into_iter().flatten().collect();
    let budget = if budget.is_empty() {
        "no budget".to_owned()
    } else {
        format!("a budget of {}", budget.join(" and "))
    };
    eprintln!(
        "judge    {requests} requests to {} at {}, {parallel} at once, with {budget}; each has {timeout} s \
         for its reply, and up to {retries} more tries, the first after {backoff} s",
        one_line(&judge.model),
        one_line(&judge.url)
    );
}

/// What each reply says, in the games' order; those in which nothing was found also by themselves.
fn read(games: &Games<'_>, replies: &Replies, kind: Kind) -> (Vec<Judged>, Vec<Unread>) {
    let (mut all, mut unread) = (Vec::new(), Vec::new());
    for game in games.all() {
        let Some(of) = replies.get(&game.request) else { continue };
        let found = match kind {
            Kind::Scores => {
                read_scores(&of.reply).map(|(reading, scores)| (reading, Verdict::Scores(scores)))
            }
            Kind::Verdict => {
                read_verdict(&of.reply).map(|(reading, better)| (reading, Verdict::Better(better)))
            }
        };
        let [question, first, second] = games.names(game).map(str::to_owned);
        if found.is_none() {
            let (question, first, second) = (question.clone(), first.clone(), second.clone());
            let (ending, finish_reason) = (ending(&of.reply), of.finish_reason.clone());
            unread.push(Unread { question, first, second, ending, finish_reason });
        }
        let (reading, verdict) = found.unzip();
        all.push(Judged { question, first, second, verdict, reading });
    }
    (all, unread)
}

/// The last characters of a reply.
fn ending(reply: &str) -> String {
    let reply = reply.trim();
    let from = reply.char_indices().rev().nth(ENDING - 1).map_or(0, |(at, _)| at);
    reply[from..].to_owned()
}

/// Says which judgements there are no replies for, and why.
fn incomplete(
    games: &Games<'_>,
    missing: &[&Game],
    outcome: Outcome,
    judging: &Judging,
) -> anyhow::Result<ExitCode> {
    let (file, Outcome { failed, end, sent, tokens, .. }) = (&judging.file, outcome);
    let mut questions: Vec<String> = missing.iter().map(|game| one_line(games.names(game)[0])).collect();
    questions.dedup();
    if questions.len() > SHOWN {
        questions.truncate(SHOWN);
        questions.push("...".to_owned());
    }
    let (missing, all, questions) = (missing.len(), games.all().len(), questions.join(", "));
    let mut words = format!("{missing} of {all} judgements have no reply, of the questions {questions}");
    for (number, why) in failed.iter().take(SHOWN) {
        let [question, first, second] = games.names(&games.all()[*number]).map(one_line);
        words.push_str(&format!("\nquestion {question}, {first} before {second}: {why}"));
    }
    if failed.len() > SHOWN {
        words.push_str(&format!("\n... and {} more", failed.len() - SHOWN));
    }
    let kept = format!(
        "the replies so far are in {}: run the same command again to go on, or with --partial to count them",
        file.output.display()
    );
    let why = match end {
        Some(End::Broken(error)) => return Err(error),
        Some(End::Endpoint(why)) => {
            return Err(user(format!("{}: {why}\n{words}\n{kept}", one_line(&file.judge.url))));
        }
        None => return Err(user(format!("{words}\n{kept}"))),
        Some(End::Asked) => "stopped on request".to_owned(),
        Some(End::Tokens) if sent == 0 => {
            let message = "is less than one request may take, with `judge.max_tokens` for its reply";
            return Err(judging.refuse("budget.tokens", message));
        }
        Some(End::Requests) => format!("the budget of {sent} requests is used up"),
        Some(End::Tokens) => format!("the budget of tokens is used up, after {tokens}"),
    };
    eprintln!("{why}: {words}\n{kept}");
    Ok(ExitCode::from(STOPPED))
}

/// There is no reply, or none that could be read.
fn nothing(unread: &[Unread], file: &JudgeFile) -> anyhow::Error {
    let folder = file.output.display();
    match unread.first() {
        None => user(format!("there are no replies in {folder} yet")),
        Some(Unread { question, ending, .. }) => {
            let asked = if file.kind == Kind::Scores { "two scores" } else { "a verdict" };
            let (all, question) = (unread.len(), one_line(question));
            let ending = one_line(ending);
            let cut = unread.iter().all(|of| of.finish_reason.as_deref() == Some("length"));
            let cut = if cut { "; all were cut off: raise `judge.max_tokens`" } else { "" };
            user(format!(
                "none of {all} replies has {asked}; that to question {question} ends with {ending:?}; they are in \
                 {folder}{cut}"
            ))
        }
    }
}

/// Who was asked, and how much that took.
fn asked(
    file: &JudgeFile,
    endpoint: &Endpoint,
    games: &Games<'_>,
    replies: &Replies,
    outcome: &Outcome,
    missing: usize,
) -> Asked {
    let used: BTreeMap<&str, u64> = games
        .all()
        .iter()
        .filter_map(|game| Some((game.request.as_str(), replies.get(&game.request)?.tokens)))
        .collect();
    Asked {
        model: file.judge.model.clone(),
        url: endpoint.url().to_owned(),
        kind: file.kind,
        prompt: file.prompt.clone(),
        judgements: games.all().len(),
        requests: games.requests(),
        missing,
        tokens: used.values().fold(0, |sum, tokens| sum.saturating_add(*tokens)),
        sent: outcome.sent,
        again: outcome.again,
        output: file.output.clone(),
    }
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    match json {
        true => terminal::print_json(report),
        false => terminal::print_line(report),
    }
}
