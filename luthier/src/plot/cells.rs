//! A plot for a terminal: braille, of which a cell has two by four dots. Where there is no colour, several
//! curves are drawn as letters, so that they can be told apart.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::axis::{Axis, Unit};
use super::{Kind, Plot};
use crate::terminal::one_line;

/// Colours of a terminal's sixteen that are read on light and on dark.
pub(crate) const COLOURS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Red,
    AnsiColor::Blue,
];
/// Rows of a plot among lines of text, its axis included.
const ROWS: usize = 13;
/// Columns of such a plot at most.
const WIDEST: usize = 100;
/// The bits of a cell's dots, by column and row (Unicode's braille patterns).
const DOTS: [[u32; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];

/// What stands in one place of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) symbol: char,
    /// None: as text.
    pub(crate) colour: Option<AnsiColor>,
}

impl Cell {
    const EMPTY: Cell = Cell { symbol: ' ', colour: None };
}

/// The dots of a drawing.
struct Canvas {
    columns: usize,
    rows: usize,
    /// Of each cell its dots, and the curve that was drawn there last.
    cells: Vec<(u32, usize)>,
}

impl Canvas {
    fn new(columns: usize, rows: usize) -> Self {
        Canvas { columns, rows, cells: vec![(0, 0); columns * rows] }
    }

    fn dot(&mut self, x: i64, y: i64, curve: usize) {
        let (x, y) =
            (x.clamp(0, 2 * self.columns as i64 - 1) as usize, y.clamp(0, 4 * self.rows as i64 - 1) as usize);
        let cell = &mut self.cells[y / 4 * self.columns + x / 2];
        *cell = (cell.0 | DOTS[x % 2][y % 4], curve);
    }

    fn line(&mut self, from: (i64, i64), to: (i64, i64), curve: usize) {
        let length = (to.0 - from.0).abs().max((to.1 - from.1).abs()).max(1);
        for n in 0..=length {
            let between = |from: i64, to: i64| from + ((to - from) * n + length / 2).div_euclid(length);
            self.dot(between(from.0, to.0), between(from.1, to.1), curve);
        }
    }
}

impl Plot {
    /// The axes of steps and values, if there are any.
    pub(super) fn axes(&self) -> Option<(Axis, Axis)> {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let values = points().map(|(_, value)| *value).collect();
        let y = Axis::of_values(values, self.logarithmic, self.from_zero)?;
        Some((Axis::of_steps(points().map(|(step, _)| *step).fold(0.0, f64::max)), y))
    }

    /// The drawing, with marks to its left and below. Faint curves are left out: a terminal has too few dots.
    /// `letters`: curves are drawn as letters. Nothing where there is no room for it.
    pub(crate) fn cells(&self, columns: usize, rows: usize, letters: bool) -> Vec<Vec<Cell>> {
        let Some((x, y)) = self.axes() else { return Vec::new() };
        let marks = y.marks((rows / 2).max(2), self.unit);
        let left = marks.iter().map(|(_, text)| text.chars().count()).max().unwrap_or(0) + 1;
        if columns < left + 10 || rows < 3 {
            return Vec::new();
        }
        let (width, height) = (columns - left, rows - 1);
        let mut canvas = Canvas::new(width, height);
        self.draw(&mut canvas, &x, &y);
        let mut drawn = vec![vec![Cell::EMPTY; columns]; rows];
        for (n, (dots, curve)) in canvas.cells.iter().enumerate().filter(|(_, (dots, _))| *dots != 0) {
            let symbol = match letters {
                true => letter(self.curves[*curve].colour),
                false => char::from_u32(0x2800 + dots).expect("a braille pattern"),
            };
            let colour = Some(COLOURS[self.curves[*curve].colour % COLOURS.len()]);
            drawn[n / width][left + n % width] = Cell { symbol, colour };
        }
        for (value, text) in marks {
            let row = ((1.0 - y.part(value)) * (height - 1) as f64).round() as usize;
            write_at(&mut drawn[row], left - 1 - text.chars().count(), &text);
        }
        let mut free = left;
        for (value, text) in x.marks((width / 12).max(2), Unit::Count) {
            let at = left + (x.part(value) * (width - 1) as f64).round() as usize;
            let at = at.saturating_sub(text.chars().count() / 2).min(columns - text.chars().count());
            if at >= free {
                write_at(&mut drawn[rows - 1], at, &text);
                free = at + text.chars().count() + 1;
            }
        }
        drawn
    }

    fn draw(&self, canvas: &mut Canvas, x: &Axis, y: &Axis) {
        let (across, down) = ((2 * canvas.columns - 1) as f64, (4 * canvas.rows - 1) as f64);
        let place = |&(step, value): &(f64, f64)| {
            ((x.part(step) * across).round() as i64, ((1.0 - y.part(value)) * down).round() as i64)
        };
        for (n, curve) in self.curves.iter().enumerate().filter(|(_, curve)| curve.kind != Kind::Faint) {
            let places: Vec<(i64, i64)> = curve.points.iter().map(place).collect();
            if let [(x, y)] = places[..] {
                canvas.dot(x, y, n);
            }
            places.windows(2).for_each(|pair| canvas.line(pair[0], pair[1], n));
        }
    }

    /// The plot among lines of text: a title, the drawing, and which curve is which where there are several.
    /// Empty where there is nothing to see.
    pub(crate) fn text(&self, columns: usize, colour: bool) -> String {
        let shown: Vec<_> = self.curves.iter().filter(|curve| curve.kind != Kind::Faint).collect();
        let letters = !colour && shown.len() > 1;
        let drawn = self.cells(columns.min(WIDEST), ROWS, letters);
        if drawn.is_empty() {
            return String::new();
        }
        let mut text = format!("{}\n", one_line(&self.title));
        for row in drawn {
            text += line(&row, colour).trim_end();
            text.push('\n');
        }
        if shown.len() > 1 {
            for curve in shown {
                let symbol = if letters { letter(curve.colour) } else { '━' };
                let cell = Cell { symbol, colour: Some(COLOURS[curve.colour % COLOURS.len()]) };
                let _ = writeln!(text, "  {} {}", line(&[cell], colour), one_line(&curve.name));
            }
        }
        text
    }
}

/// Cells as a terminal takes them, painted where colour is welcome.
fn line(row: &[Cell], colour: bool) -> String {
    let mut text = String::new();
    for run in row.chunk_by(|a, b| a.colour == b.colour) {
        let symbols: String = run.iter().map(|cell| cell.symbol).collect();
        match run[0].colour.filter(|_| colour) {
            Some(of) => {
                let style = Style::new().fg_color(Some(of.into()));
                let _ = write!(text, "{style}{symbols}{style:#}");
            }
            None => text += &symbols,
        }
    }
    text
}

/// The letter of a curve: a to z, again from the first one on.
fn letter(curve: usize) -> char {
    char::from(b'a' + (curve % 26) as u8)
}

fn write_at(row: &mut [Cell], at: usize, text: &str) {
    row[at..].iter_mut().zip(text.chars()).for_each(|(cell, symbol)| *cell = Cell { symbol, colour: None });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::Curve;

    fn plot(curves: usize) -> Plot {
        let curve = |n: usize| {
            let points = (0..=100).map(|step| (step, (n + 1) as f64 + (100 - step) as f64 / 50.0));
            Curve::new(&format!("run {n}"), n, Kind::Line, points)
        };
        Plot::new("loss", Unit::Plain, (0..curves).map(curve).collect())
    }

    #[test]
    fn a_falling_line_falls_from_the_left_to_the_right() {
        let text = plot(1).text(40, false);
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!((rows[0], rows.len()), ("loss", 1 + ROWS));
        assert!(rows.iter().all(|row| row.chars().count() <= 40), "{text}");
        let begin = |row: &str| row.chars().position(|c| ('\u{2801}'..='\u{28ff}').contains(&c));
        let begins: Vec<usize> = rows[1..ROWS].iter().filter_map(|row| begin(row)).collect();
        assert!(begins.len() > 8 && begins.is_sorted(), "{text}");
        assert!(rows[ROWS].trim_start().starts_with("0 ") && rows[ROWS].ends_with("100"), "{text}");
        assert!(rows.iter().any(|row| row.trim_start().starts_with("2.0 ")), "{text}");
    }

    #[test]
    fn several_curves_are_told_apart_with_and_without_colour() {
        let plain = plot(3).text(60, false);
        assert!(["a run 0", "b run 1", "c run 2"].iter().all(|words| plain.contains(words)), "{plain}");
        assert!(
            !plain.contains('\x1b') && !plain.contains('⠉') && plain.matches('b').count() > 20,
            "{plain}"
        );
        let coloured = plot(3).text(60, true);
        assert!(coloured.contains("\x1b[36m") && coloured.contains("\x1b[33m"), "{coloured}");
        assert_eq!(coloured.matches("\x1b[0m").count(), coloured.matches("\x1b[3").count());
    }

    #[test]
    fn there_is_no_drawing_without_room_or_values() {
        assert!(plot(1).cells(9, 10, false).is_empty() && plot(1).cells(80, 2, false).is_empty());
        assert!(plot(0).text(80, false).is_empty());
        for columns in 0..120 {
            let widths: Vec<usize> = plot(2).cells(columns, 9, false).iter().map(Vec::len).collect();
            assert!(widths.iter().all(|width| *width == columns), "{columns}: {widths:?}");
        }
    }
}
