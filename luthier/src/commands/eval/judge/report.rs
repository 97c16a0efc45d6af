//! What judgements come to: the tables, in words and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::path::PathBuf;

use eval::paired::{Bootstrap, Estimate};
use eval::tournament::{
    Agreement, BradleyTerry, Elo, FileReport, Judgement, Order, OrderBias, Percent, Rates, Rating,
    RatingsKind, Reading, Tournament, TournamentError, Verdict,
};
use serde::Serialize;

use super::super::compare;
use crate::run_file::Kind;
use crate::terminal::{Table, count, one_line};

/// Replies that are shown of those that could not be read.
const SHOWN: usize = 12;

/// A reply in which there was no verdict to be found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Unread {
    pub(super) question: String,
    pub(super) first: String,
    pub(super) second: String,
    /// How the reply ends.
    pub(super) ending: String,
    /// Why it ended, where the judge's endpoint told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) finish_reason: Option<String>,
}

/// One judge's judgements of one kind, and what they come to.
#[derive(Serialize)]
pub(super) struct Tables {
    systems: usize,
    questions: usize,
    games: usize,
    /// Whose scores are 100 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    percent: Option<Vec<Percent>>,
    bradley_terry: Option<Vec<Rating>>,
    elo: Option<Vec<Rating>>,
    rates: Option<Vec<Rates>>,
    pairs: Option<Vec<Rates>>,
    order_bias: Option<OrderBias>,
    /// How many replies were read in which way.
    readings: BTreeMap<Reading, usize>,
    unread: Vec<Unread>,
    /// Which tables are missing, and why.
    notes: Vec<String>,
    #[serde(skip)]
    tournament: Tournament,
}

impl Tables {
    /// The tables of judgements. One that cannot be made, as for too few questions, is a note.
    ///
    /// # Errors
    /// If there is no judgement.
    pub(super) fn of(
        judgements: &[Judgement],
        reference: Option<&str>,
        readings: BTreeMap<Reading, usize>,
        unread: Vec<Unread>,
    ) -> Result<Self, TournamentError> {
        let tournament = Tournament::new(judgements)?;
        let bootstrap = compare::bootstrap();
        let has_scores = judgements.iter().any(|of| matches!(of.verdict, Verdict::Scores(_)));
        let mut notes = Vec::new();
        let reference = reference.filter(|_| has_scores);
        let percent =
            reference.and_then(|name| noted(&mut notes, "percent", tournament.percent_of(name, &bootstrap)));
        let bradley_terry = tournament.bradley_terry(&BradleyTerry::default(), &bootstrap);
        Ok(Tables {
            systems: tournament.systems().len(),
            questions: tournament.questions(),
            games: tournament.games(),
            reference: reference.map(str::to_owned),
            percent,
            bradley_terry: noted(&mut notes, "bradley_terry", bradley_terry),
            elo: noted(&mut notes, "elo", tournament.elo(&Elo::default())),
            rates: noted(&mut notes, "rates", tournament.rates(&bootstrap)),
            pairs: noted(&mut notes, "pairs", tournament.pair_rates(&bootstrap)),
            order_bias: noted(&mut notes, "order_bias", tournament.order_bias(&bootstrap)),
            readings,
            unread,
            notes,
            tournament,
        })
    }
}

/// A table, or a note that says why there is none: one without its numbers must not take the others along.
fn noted<T>(notes: &mut Vec<String>, table: &str, made: Result<T, TournamentError>) -> Option<T> {
    made.map_err(|error| notes.push(format!("{table}: {error}"))).ok()
}

/// The one system beside which all others were rated, if there is one alone.
pub(super) fn beside_all(judgements: &[Judgement]) -> Option<&str> {
    let mut common: Option<BTreeSet<&str>> = None;
    for Judgement { first, second, .. } in judgements {
        let pair = BTreeSet::from([first.as_str(), second.as_str()]);
        common = Some(common.map_or(pair.clone(), |common| &common & &pair));
    }
    common.filter(|common| common.len() == 1).and_then(|common| common.into_iter().next())
}

/// How far two judges agree, or one asked in two ways.
#[derive(Serialize)]
pub(super) struct Agreed {
    between: [String; 2],
    #[serde(flatten)]
    agreement: Agreement,
}

impl Agreed {
    /// Of two sets of judgements, if they have some in common.
    pub(super) fn of(between: [&str; 2], one: &Tournament, other: &Tournament) -> Result<Self, String> {
        let agreement = one.agreement(other, &compare::bootstrap());
        let between = between.map(str::to_owned);
        match agreement {
            Ok(agreement) => Ok(Agreed { between, agreement }),
            Err(error) => Err(format!("agreement between {} and {}: {error}", between[0], between[1])),
        }
    }
}

/// How numbers were come by.
#[derive(Serialize)]
struct Statistics {
    bootstrap: Bootstrap,
    bradley_terry: BradleyTerry,
    elo: Elo,
}

/// Where judgements come from.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Whence {
    /// A folder of files.
    Ratings(PathBuf),
    /// A judge that was asked.
    Judge(Asked),
}

/// Who was asked, and how much that took.
#[derive(Serialize)]
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) url: String,
    pub(super) kind: Kind,
    /// The file with its instructions; none: ours.
    pub(super) prompt: Option<PathBuf>,
    pub(super) judgements: usize,
    /// Different requests: where both answers are the same, both orders are one.
    pub(super) requests: usize,
    /// Judgements that there is no reply for, which only `--partial` passes over.
    pub(super) missing: usize,
    /// Tokens of all replies and their prompts, whenever they were paid for.
    pub(super) tokens: u64,
    /// Requests of this command, those included that were sent again.
    pub(super) sent: u64,
    pub(super) again: u64,
    pub(super) output: PathBuf,
}

impl Display for Whence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = match self {
            Whence::Ratings(folder) => return write!(f, "read from   {}", folder.display()),
            Whence::Judge(asked) => asked,
        };
        let Asked { model, url, judgements, missing, tokens, sent, again, output, .. } = asked;
        writeln!(f, "judge       {} at {}", one_line(model), one_line(url))?;
        if *missing > 0 {
            writeln!(f, "missing     {missing} of {judgements} judgements have no reply yet")?;
        }
        write!(f, "cost        {} tokens; {sent} requests were sent now", count(*tokens as f64))?;
        if *again > 0 {
            write!(f, ", {again} of them again")?;
        }
        write!(f, "\nreplies in  {}", output.display())
    }
}

/// All that is told, of ratings in files or of a judge that was asked.
#[derive(Serialize)]
pub(super) struct Report {
    /// `ratings` or `judge`.
    #[serde(flatten)]
    whence: Whence,
    /// Of scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scores: Option<Tables>,
    /// Of verdicts that name the better answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) better: Option<Tables>,
    pub(super) agreement: Vec<Agreed>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) files: Vec<FileReport>,
    statistics: Statistics,
    /// What could not be said, and why.
    pub(super) notes: Vec<String>,
}

impl Report {
    pub(super) fn new(whence: Whence, scores: Option<Tables>, better: Option<Tables>) -> Self {
        Report {
            whence,
            scores,
            better,
            agreement: Vec::new(),
            files: Vec::new(),
            statistics: Statistics {
                bootstrap: compare::bootstrap(),
                bradley_terry: BradleyTerry::default(),
                elo: Elo::default(),
            },
            notes: Vec::new(),
        }
    }

    /// The tables that there are, with what they are called.
    fn tables(&self) -> impl Iterator<Item = (&'static str, &Tables)> {
        let kinds = [("scores", self.scores.as_ref()), ("better", self.better.as_ref())];
        kinds.into_iter().filter_map(|(kind, tables)| Some((kind, tables?)))
    }

    /// Adds how far a judge agrees with itself where it was asked in both ways.
    pub(super) fn compare_kinds(&mut self) {
        if let (Some(scores), Some(better)) = (&self.scores, &self.better) {
            let agreed = Agreed::of(["scores", "better"], &scores.tournament, &better.tournament);
            self.add(vec![agreed]);
        }
    }

    /// Adds how far the judge agrees with another.
    pub(super) fn compare_with(&mut self, others: &[(String, Tournament)]) {
        let mut all = Vec::new();
        for (kind, tables) in self.tables() {
            for (name, other) in others {
                all.push(Agreed::of([kind, name], &tables.tournament, other));
            }
        }
        self.add(all);
    }

    fn add(&mut self, all: Vec<Result<Agreed, String>>) {
        for agreed in all {
            match agreed {
                Ok(agreed) => self.agreement.push(agreed),
                Err(note) => self.notes.push(note),
            }
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, tables) in self.tables() {
            tables.write(kind, f)?;
        }
        for Agreed { between: [one, other], agreement } in &self.agreement {
            write!(
                f,
                "agreement   {one} and {other}: {} of {} judgements",
                percent(agreement.share),
                agreement.games
            )?;
            match agreement.kappa {
                Some(Estimate { value, low, high }) => {
                    writeln!(f, ", kappa {value:.2}, {low:.2} to {high:.2}")?;
                }
                None => writeln!(f)?,
            }
        }
        let reversed = self.files.iter().filter(|file| file.order == Order::Reversed).count();
        if reversed > 0 {
            let all = self.files.len();
            writeln!(
                f,
                "note        in {reversed} of {all} files the answers stand in the other order than the name says, \
                 as their ids show; --json lists them"
            )?;
        }
        for note in &self.notes {
            writeln!(f, "note        {}", one_line(note))?;
        }
        write!(f, "{}", self.whence)
    }
}

impl Tables {
    fn write(&self, kind: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tables { systems, questions, games, .. } = self;
        let of = if kind == "scores" { "scores" } else { "verdicts" };
        writeln!(f, "{of:<11} {games} judgements of {systems} systems on {questions} questions")?;
        if let (Some(all), Some(reference)) = (&self.percent, &self.reference) {
            let mut table = Table::new([
                &format!("% of {}", one_line(reference)),
                "",
                "95 % interval",
                "first",
                "second",
                "games",
            ]);
            let order =
                |order: Option<Estimate>| order.map_or(String::new(), |of| format!("{:.1}", of.value));
            for Percent { system, games, percent: of, standing_first, standing_second, .. } in all {
                table.row([
                    one_line(system),
                    format!("{:.1}", of.value),
                    format!("{:.1} to {:.1}", of.low, of.high),
                    order(*standing_first),
                    order(*standing_second),
                    games.to_string(),
                ]);
            }
            writeln!(f, "\n{table}")?;
        }
        if let Some(all) = &self.bradley_terry {
            let mut table =
                Table::new(["rating", "Bradley-Terry", "95 % interval", "Elo", "by order of games", "games"]);
            for Rating { system, games, rating } in all {
                let elo = self.elo.iter().flatten().find(|of| of.system == *system).map(|of| of.rating);
                let range = |Estimate { low, high, .. }: Estimate| format!("{low:.0} to {high:.0}");
                table.row([
                    one_line(system),
                    format!("{:.0}", rating.value),
                    range(*rating),
                    elo.map_or(String::new(), |elo| format!("{:.0}", elo.value)),
                    elo.map_or(String::new(), range),
                    games.to_string(),
                ]);
            }
            writeln!(f, "\n{table}")?;
        }
        let all = self.rates.iter().flatten().cloned();
        let pairs = self.pairs.iter().flatten().map(|of| self.seen_from_its_system(of));
        let rates: Vec<Rates> = match self.systems {
            // Of two systems, both rows say the same; so do those of several that only met the reference.
            2 => pairs.collect(),
            systems if pairs.clone().count() < systems => all.collect(),
            _ => all.chain(pairs).collect(),
        };
        if !rates.is_empty() {
            let mut table = Table::new(["", "beside", "won %", "95 % interval", "tied %", "lost %", "games"]);
            for Rates { system, opponent, win, tie, loss, games, .. } in rates {
                table.row([
                    one_line(&system),
                    opponent.as_deref().map_or("all others".to_owned(), one_line),
                    format!("{:.1}", 100.0 * win.value),
                    format!("{:.1} to {:.1}", 100.0 * win.low, 100.0 * win.high),
                    format!("{:.1}", 100.0 * tie.value),
                    format!("{:.1}", 100.0 * loss.value),
                    games.to_string(),
                ]);
            }
            writeln!(f, "\n{table}")?;
        }
        writeln!(f)?;
        if let Some(bias) = &self.order_bias {
            bias_in_words(bias, f)?;
        }
        let readings: Vec<String> =
            self.readings.iter().map(|(reading, count)| format!("{count} {}", in_words(*reading))).collect();
        let unread = self.unread.len();
        writeln!(f, "replies     {}, {unread} not at all", readings.join(", "))?;
        for Unread { question, first, second, ending, finish_reason } in self.unread.iter().take(SHOWN) {
            let ended = finish_reason.as_deref().filter(|reason| *reason != "stop");
            let ended = ended.map_or(String::new(), |reason| format!(" (ended by {})", one_line(reason)));
            let [question, first, second] = [question, first, second].map(|text| one_line(text));
            let ending = one_line(ending);
            writeln!(f, "unread      question {question}, {first} before {second}: {ending:?}{ended}")?;
        }
        if unread > SHOWN {
            writeln!(f, "unread      ... and {} more; --json lists them", unread - SHOWN)?;
        }
        for note in &self.notes {
            writeln!(f, "note        {}", one_line(note))?;
        }
        writeln!(f)
    }

    /// What a pair's rates say of the system that is put beside the reference, where that is one of both.
    fn seen_from_its_system(&self, of: &Rates) -> Rates {
        let of = of.clone();
        match of.opponent {
            Some(system) if self.reference.as_ref() == Some(&of.system) => {
                Rates { system, opponent: Some(of.system), win: of.loss, loss: of.win, ..of }
            }
            opponent => Rates { opponent, ..of },
        }
    }
}

fn bias_in_words(bias: &OrderBias, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (first, tie, second) = (percent(bias.first), percent(bias.tie), percent(bias.second));
    writeln!(f, "places      first wins {first}, second {second}, ties {tie}")?;
    if let Some(Estimate { value, low, high }) = bias.first_less_second {
        writeln!(f, "            the first place has {value:+.2} points, {low:+.2} to {high:+.2}")?;
    }
    if let (Some(agree), Some(contradict)) = (bias.agree, bias.contradict) {
        writeln!(
            f,
            "both orders agree {}, name opposite winners {}, of {} pairs",
            percent(agree),
            percent(contradict),
            bias.both_orders
        )?;
    }
    Ok(())
}

/// A share in words.
fn percent(Estimate { value, low, high }: Estimate) -> String {
    format!("{:.1} % ({:.1} to {:.1})", 100.0 * value, 100.0 * low, 100.0 * high)
}

fn in_words(reading: Reading) -> &'static str {
    match reading {
        Reading::AsAsked => "read as asked for",
        Reading::Brackets => "from brackets",
        Reading::Labelled => "after the assistants' names",
        Reading::InWords => "from a sentence",
        Reading::Recorded => "from the field beside them",
    }
}

/// What the replies of files that could not be read are called here.
pub(super) fn unread_of(files: &[FileReport], kind: RatingsKind) -> Vec<Unread> {
    let of_file = |file: &FileReport| {
        let (first, second) = (file.first.clone(), file.second.clone());
        let unread = file.unread.clone().into_iter();
        unread.map(move |of| Unread {
            question: of.question,
            first: first.clone(),
            second: second.clone(),
            ending: of.ending,
            finish_reason: None,
        })
    };
    files.iter().filter(|file| file.kind == kind).flat_map(of_file).collect()
}
