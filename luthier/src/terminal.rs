//! What the person sees: results on stdout; progress, colours and notes on stderr.
//!
//! A terminal gets a progress bar and colours; anything else gets plain lines now and then. `NO_COLOR` (any
//! value that is not empty) and `TERM=dumb` turn colours off.

pub(crate) mod live;
mod progress;

use std::fmt::{self, Display, Write as _};
use std::io::{self, ErrorKind, IsTerminal, Write as _};
use std::path::Path;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use anyhow::Context;
use serde::Serialize;
use serde::ser::SerializeStruct;
use unicode_width::UnicodeWidthChar;

pub(crate) use progress::{Facts, Progress};

/// Columns of a terminal that does not tell.
const USUAL_COLUMNS: usize = 80;

/// Whoever read stdout has gone away (`| head`): nothing is left to do, and nobody is to blame.
#[derive(Debug)]
pub(crate) struct StdoutClosed;

impl Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout was closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Writes text to stdout as it is and flushes it, so that streamed tokens are seen at once.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        result => result.context("cannot write to stdout"),
    }
}

/// Writes text and a line's end to stdout.
pub(crate) fn print_line(text: impl Display) -> anyhow::Result<()> {
    print(&format!("{text}\n"))
}

/// Writes one JSON object and a line's end to stdout: the whole output of a command under `--json`.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print_line(serde_json::to_string_pretty(value).context("cannot write the result as JSON")?)
}

/// Whether colours are welcome on stdout.
pub(crate) fn stdout_colour() -> bool {
    colour_allowed() && io::stdout().is_terminal()
}

/// Whether colours are welcome on stderr.
pub(crate) fn stderr_colour() -> bool {
    colour_allowed() && io::stderr().is_terminal()
}

/// The columns of the terminal that stdout is; those of a usual one where it is none.
pub(crate) fn stdout_columns() -> usize {
    console::Term::stdout().size_checked().map_or(USUAL_COLUMNS, |(_, columns)| usize::from(columns))
}

fn colour_allowed() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

/// A table with a header; columns of numbers stand to the right.
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self { header: header.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row, which must have as many cells as the header.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert_eq!(cells.len(), self.header.len(), "cells in a row, columns in the table");
        self.rows.push(cells);
    }

    /// Whether a column's cells stand to the right.
    fn is_of_numbers(&self, column: usize) -> bool {
        self.rows.iter().all(|row| is_number(&row[column])) && !self.rows.is_empty()
    }
}

/// A page has it as `header`, `rows`, and which columns are `numbers`.
impl Serialize for Table {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let columns = 0..self.header.len();
        let numbers: Vec<bool> = columns.map(|column| self.is_of_numbers(column)).collect();
        let mut table = serializer.serialize_struct("Table", 3)?;
        table.serialize_field("header", &self.header)?;
        table.serialize_field("rows", &self.rows)?;
        table.serialize_field("numbers", &numbers)?;
        table.end()
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<&Vec<String>> = std::iter::once(&self.header).chain(&self.rows).collect();
        for (number, line) in lines.iter().enumerate() {
            let mut text = String::new();
            for (column, cell) in line.iter().enumerate() {
                let width = lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
                let gap = if column == 0 { "" } else { "  " };
                match self.is_of_numbers(column) {
                    true => write!(text, "{gap}{cell:>width$}")?,
                    false => write!(text, "{gap}{cell:<width$}")?,
                }
            }
            let end = if number + 1 == lines.len() { "" } else { "\n" };
            write!(f, "{}{end}", text.trim_end())?;
        }
        Ok(())
    }
}

/// Numbers with or without a unit, and empty cells.
fn is_number(cell: &str) -> bool {
    cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit() || c == '-')
}

/// A size in bytes for people: `512 B`, `1.5 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = n as f64;
    let mut unit = 0;
    // 1023.95 would be written as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A p-value in three digits.
pub(crate) fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".to_owned() } else { format!("{p:.3}") }
}

/// How many times as large `all` is as `some`, for people.
pub(crate) fn times(all: f64, some: f64) -> String {
    let times = all / some;
    if times < 999.5 { count(times) } else { format!("{times:.0}") }
}

/// How many fewer, or more, `some` are than `all`: `191 times fewer`.
pub(crate) fn times_fewer(all: f64, some: f64) -> String {
    match () {
        () if some < all => format!("{} times fewer", times(all, some)),
        () if some > all => format!("{} times as many", times(some, all)),
        () => "as many".to_owned(),
    }
}

/// A number for people: `950`, `4.72 M`, `175 B` (three significant digits; thousands, millions, billions).
pub(crate) fn count(n: f64) -> String {
    const UNITS: [&str; 5] = ["", " K", " M", " B", " T"];
    let mut value = n;
    let mut unit = 0;
    while value.abs() >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value.abs() {
        v if v >= 99.95 || (unit == 0 && n.fract() == 0.0) => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}{}", UNITS[unit])
}

/// A time for people: `0.42 s`, `12 s`, `3 min 05 s`, `2 h 10 min`, `1 d 4 h`.
pub(crate) fn duration(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        return format!("{:.2} s", time.as_secs_f64());
    }
    let seconds = time.as_secs_f64().round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {:02} s", seconds % 60),
        3600..86400 => format!("{hours} h {:02} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// A time as `2026-11-30T14:05:09Z`, from seconds since 1970; the days by Hinnant's `civil_from_days`
/// (howardhinnant.github.io/date_algorithms.html).
pub(crate) fn date(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86400) + 719_468, seconds.rem_euclid(86400));
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A path or name as a shell takes it: in quotes where it has other characters than usual ones.
pub(crate) fn quoted(path: impl AsRef<Path>) -> String {
    let text = path.as_ref().display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:,@%=".contains(c);
    match !text.is_empty() && text.chars().all(plain) && !text.starts_with('-') {
        true => text,
        false if text.starts_with('-') => format!("'./{}'", text.replace('\'', "'\\''")),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// A time for people where seconds matter only while there are few: `95 s`, `12 min`, `2 h 10 min`.
pub(crate) fn rough(time: Duration) -> String {
    match time.as_secs_f64().round() as u64 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", (seconds + 30) / 60),
        _ => duration(time),
    }
}

/// An example's text with its trained parts painted, or within `⟦ ⟧` where there is no colour.
///
/// `segments` are neighbouring pieces of text and whether they are trained on; neighbours of one kind are
/// joined. Control characters other than line ends and tabs are shown escaped: the text comes from files that
/// may hold anything, and a terminal obeys it.
pub(crate) fn paint_segments<'a>(
    segments: impl IntoIterator<Item = (&'a str, bool)>,
    colour: bool,
) -> String {
    let style = Style::new().bold().fg_color(Some(AnsiColor::Green.into()));
    let (open, close) = match colour {
        true => (style.render().to_string(), style.render_reset().to_string()),
        false => ("⟦".to_owned(), "⟧".to_owned()),
    };
    let mut painted = String::new();
    let mut inside = false;
    for (text, trained) in segments.into_iter().filter(|(text, _)| !text.is_empty()) {
        if trained != inside {
            painted.push_str(if trained { &open } else { &close });
            inside = trained;
        }
        painted.push_str(&printable(text));
    }
    if inside {
        painted.push_str(&close);
    }
    painted
}

/// The beginning of neighbouring pieces of text, at most so many columns wide as [`paint_segments`] shows
/// them, and whether that is less than all. Cut before it is painted: in the middle of what is painted, the
/// colour would not end.
pub(crate) fn cut_segments<'a>(
    segments: impl IntoIterator<Item = (&'a str, bool)>,
    mut columns: usize,
) -> (Vec<(&'a str, bool)>, bool) {
    let mut kept = Vec::new();
    for (text, trained) in segments {
        let (beginning, width) = cut(text, columns);
        columns -= width;
        kept.push((beginning, trained));
        if beginning.len() < text.len() {
            return (kept, true);
        }
    }
    (kept, false)
}

/// The longest beginning of a text that is at most so many columns wide as [`printable`] shows it, and its
/// width.
pub(crate) fn cut(text: &str, columns: usize) -> (&str, usize) {
    let mut width = 0;
    for (start, c) in text.char_indices() {
        let shown = match c {
            '\n' | '\t' => 1,
            c if c.is_control() => c.escape_default().len(),
            c => c.width().unwrap_or(0),
        };
        if width + shown > columns {
            return (&text[..start], width);
        }
        width += shown;
    }
    (text, width)
}

/// The text with control characters other than line ends and tabs escaped, safe to show on a terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A text from a file as part of a line: [`printable`], without what would begin another line or turn the
/// direction of writing.
pub(crate) fn one_line(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in printable(text).chars() {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if turns || c == '\n' || c == '\t' {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A loss. One of many digits, as of a run that diverged, does not push the rest of its table away.
pub(crate) fn loss(loss: f64) -> String {
    if loss.abs() < 1e6 { format!("{loss:.4}") } else { format!("{loss:.4e}") }
}

/// A part as percent.
pub(crate) fn percent(part: f64) -> String {
    format!("{} %", digits(100.0 * part))
}

/// Three significant digits, or two of what is tiny.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if (0.001..100.0).contains(&v) => format!("{value:.*}", (2.0 - v.log10().floor()) as usize),
        v if v >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_counts_and_times_read_as_people_write_them() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(12 << 30), "12.0 GiB");
        assert_eq!(count(950.0), "950");
        assert_eq!(count(55.613), "55.6");
        assert_eq!(count(4_718_592.0), "4.72 M");
        assert_eq!(count(174_604_000_000.0), "175 B");
        assert_eq!(times_fewer(8e9, 41.9e6), "191 times fewer");
        assert_eq!(times_fewer(174.6e9, 4.7e6), "37149 times fewer");
        assert_eq!(times_fewer(512.0, 768.0), "1.50 times as many");
        assert_eq!(times_fewer(512.0, 512.0), "as many");
        assert_eq!(duration(Duration::from_millis(420)), "0.42 s");
        assert_eq!(duration(Duration::from_secs(185)), "3 min 05 s");
        assert_eq!(duration(Duration::from_secs(7800)), "2 h 10 min");
        assert_eq!(duration(Duration::from_secs(100_800)), "1 d 4 h");
    }

    #[test]
    fn times_are_told_in_utc() {
        for (seconds, told) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_796_050_240, "2026-11-30T14:50:40Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(seconds), told);
        }
    }

    #[test]
    fn a_table_sets_numbers_to_the_right() {
        let mut table = Table::new(["component", "bytes"]);
        table.row(["base", "2.3 GiB"]);
        table.row(["activations", "12.0 MiB"]);
        assert_eq!(table.to_string(), "component       bytes\nbase          2.3 GiB\nactivations  12.0 MiB");
    }

    #[test]
    fn trained_text_is_marked_and_control_characters_are_disarmed() {
        let segments =
            [("user: hi\n", false), ("hel", true), ("lo\x1b[2J", true), ("", false), ("\n", false)];
        assert_eq!(paint_segments(segments, false), "user: hi\n⟦hello\\u{1b}[2J⟧\n");
        assert_eq!(paint_segments(segments, true), "user: hi\n\x1b[1m\x1b[32mhello\\u{1b}[2J\x1b[0m\n");
    }

    #[test]
    fn text_is_cut_before_it_is_painted_so_that_the_colour_ends() {
        let segments = [("ab", false), ("cdef", true), ("gh", false)];
        let shown = |columns, colour| {
            let (kept, cut) = cut_segments(segments, columns);
            (paint_segments(kept, colour), cut)
        };
        for columns in 0..8 {
            let (text, cut) = shown(columns, true);
            let on_terminal = text.replace("\x1b[1m\x1b[32m", "").replace("\x1b[0m", "");
            assert_eq!((on_terminal.as_str(), cut), (&"abcdefgh"[..columns], true));
            let painted = columns > 2;
            assert_eq!([text.contains("\x1b[32m"), text.contains("\x1b[0m")], [painted; 2], "{text:?}");
        }
        assert_eq!(shown(8, false), ("ab⟦cdef⟧gh".to_owned(), false));
        assert_eq!(cut_segments([("", true)], 0), (vec![("", true)], false));
    }

    #[test]
    fn wide_and_control_characters_count_as_wide_as_they_are_shown() {
        assert_eq!(cut("日本語", 5), ("日本", 4), "two columns each");
        assert_eq!(cut("e\u{301}f", 1), ("e\u{301}", 1), "a mark stays with its letter");
        assert_eq!(cut("\x1b[2Jx", 5), ("", 0), "an escape is shown whole, as \\u{{1b}}, or not");
        assert_eq!(cut("\x1b[2Jx", 6), ("\x1b", 6));
        assert_eq!(cut("a\nb\tc", 4), ("a\nb\t", 4));
        assert_eq!(cut("", 0), ("", 0));
    }
}
