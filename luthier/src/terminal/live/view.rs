//! What is seen of a run that is watched. What is told of it is computed elsewhere.

use anstyle::AnsiColor;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Gauge, Paragraph, Wrap};
use train::StepMetrics;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::plot::{Cell, Curve, Kind, Plot, Unit};
use crate::terminal::progress::rate;
use crate::terminal::{Facts, bytes, count, digits, one_line, printable, rough};

/// Notes that are kept.
const NOTES: usize = 1000;
/// Rows for the example and for the notes, with their frames, and for an answered prompt.
const EXAMPLE: u16 = 8;
const FEW: u16 = 6;
const OF_PROMPT: u16 = 4;
/// Terminals with fewer rows have no room for the example, for the answers beside it, or for the notes. Where
/// there is room for one of them, the answers take the example's place as soon as there are any.
const ROOM_FOR_EXAMPLE: u16 = 28;
const ROOM_FOR_BOTH: u16 = 38;
const ROOM_FOR_NOTES: u16 = 18;

/// All that is shown.
#[derive(Default)]
pub(crate) struct View {
    /// What is trained, on what, and where to.
    pub(crate) title: String,
    /// Steps of the run, and those done.
    pub(crate) steps: u64,
    pub(crate) step: u64,
    pub(crate) facts: Facts,
    pub(crate) grad_norm: Option<f64>,
    pub(crate) planned_bytes: u64,
    /// Losses by step, smoothed, and held-out ones.
    pub(crate) losses: Vec<(u64, f64)>,
    pub(crate) held_out: Vec<(u64, f64)>,
    /// Pieces of the first example, and whether they are trained on.
    pub(crate) example: Vec<(String, bool)>,
    /// Prompts, and what the model answers to them as it learns.
    pub(crate) answered: Vec<Answered>,
    /// Whether a stop was asked for.
    pub(crate) stopping: bool,
    /// Whether colours are welcome.
    pub(crate) colour: bool,
    pub(crate) notes: Vec<String>,
}

/// A prompt with its answers.
#[derive(Default)]
pub(crate) struct Answered {
    pub(crate) prompt: String,
    /// What its example goes on with.
    pub(crate) expected: String,
    /// By the steps after which they were given: the first one, and the last.
    pub(crate) answers: Vec<(u64, String)>,
}

impl View {
    /// The loop begins, or goes on, after `step` of `steps`: what was done after it comes again.
    pub(crate) fn begin(&mut self, step: u64, steps: u64) {
        (self.step, self.steps) = (step, steps);
        self.losses.retain(|(of, _)| *of <= step);
        self.held_out.retain(|(of, _)| *of <= step);
    }

    /// A step is done; its loss is that of the facts.
    pub(crate) fn go_on(&mut self, metrics: &StepMetrics, facts: &Facts) {
        self.step = metrics.step;
        self.grad_norm = Some(metrics.grad_norm);
        self.losses.push((metrics.step, facts.loss));
        self.facts = facts.clone();
    }

    /// What the model answers to the prompts, in their order, after a step.
    pub(crate) fn answer(&mut self, step: u64, answers: Vec<String>) {
        for (answered, answer) in self.answered.iter_mut().zip(answers) {
            answered.answers.truncate(1);
            answered.answers.push((step, answer));
        }
    }

    /// Adds a line to the notes.
    pub(crate) fn note(&mut self, line: &str) {
        if self.notes.len() == NOTES {
            self.notes.remove(0);
        }
        self.notes.push(line.to_owned());
    }

    /// Draws it, leaving out what there is no room for.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let height = frame.area().height;
        let rows = |wanted: u16, room: u16| if height >= room { wanted } else { 0 };
        let answered: Vec<&Answered> = self.answered.iter().filter(|of| !of.answers.is_empty()).collect();
        let (of_answers, for_example) = match answered.len() as u16 {
            0 => (0, ROOM_FOR_EXAMPLE),
            prompts => (rows(prompts * OF_PROMPT + 2, ROOM_FOR_EXAMPLE), ROOM_FOR_BOTH),
        };
        let of_example = if self.example.is_empty() { 0 } else { rows(EXAMPLE, for_example) };
        let [head, bar, chart, facts, example, answers, notes, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(1),
            Constraint::Length(of_example),
            Constraint::Length(of_answers),
            Constraint::Length(rows(FEW, ROOM_FOR_NOTES)),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(Line::styled(one_line(&self.title), Modifier::BOLD), head);
        frame.render_widget(self.gauge(), bar);
        self.draw_chart(frame, chart);
        frame.render_widget(Line::raw(self.facts_in_words()), facts);
        if example.height > 0 {
            let block = Block::bordered().title("the first example, what is trained marked");
            let text = Paragraph::new(self.example_lines()).wrap(Wrap { trim: false });
            frame.render_widget(text.block(block), example);
        }
        if answers.height > 0 {
            let block = Block::bordered().title("answers to held-out prompts");
            let columns = usize::from(block.inner(answers).width);
            let lines = answered.iter().flat_map(|of| self.answered_lines(of, columns));
            frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), answers);
        }
        if notes.height > 0 {
            let shown = usize::from(notes.height.saturating_sub(2));
            let last = self.notes.iter().skip(self.notes.len().saturating_sub(shown));
            let lines: Vec<Line<'_>> = last.map(|line| self.note_line(line)).collect();
            frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("notes")), notes);
        }
        let keys = match self.stopping {
            false => "q or Ctrl-C: stop and save",
            true => "stopping: the step ends and a checkpoint is saved; q again ends at once",
        };
        frame.render_widget(Line::styled(keys, Modifier::DIM), foot);
    }

    fn gauge(&self) -> Gauge<'static> {
        let Facts { epoch, elapsed, left, .. } = &self.facts;
        let left = left.map_or(String::new(), |left| format!("  {} left", rough(left)));
        let (done, all) = (self.step, self.steps);
        let label = format!("step {done}/{all}  epoch {epoch:.2}  {}{left}", rough(*elapsed));
        let style = self.painted(Color::Cyan);
        let ratio = if all == 0 { 0.0 } else { (done as f64 / all as f64).clamp(0.0, 1.0) };
        Gauge::default().gauge_style(style).ratio(ratio).label(label)
    }

    fn draw_chart(&self, frame: &mut Frame<'_>, area: Rect) {
        // Where there is no colour, the curves are letters.
        let letters = !self.colour && !self.held_out.is_empty();
        let [of_loss, of_held_out] =
            if letters { ["a: loss ", "b: held-out "] } else { ["loss ", "held-out "] };
        let mut title = vec![Span::raw(of_loss)];
        if let Some((_, loss)) = self.losses.last() {
            title.push(Span::styled(format!("{loss:.4} "), self.painted(Color::Cyan)));
        }
        if let Some((_, loss)) = self.held_out.last() {
            title.push(Span::raw(of_held_out));
            title.push(Span::styled(format!("{loss:.4} "), self.painted(Color::Yellow)));
        }
        let block = Block::bordered().title(Line::from(title));
        let inside = block.inner(area);
        frame.render_widget(block, area);
        let curves = vec![
            Curve::new("loss", 0, Kind::Line, self.losses.iter().copied()),
            Curve::new("held-out", 1, Kind::Marked, self.held_out.iter().copied()),
        ];
        let plot = Plot::new("loss", Unit::Plain, curves);
        let rows = plot.cells(usize::from(inside.width), usize::from(inside.height), letters);
        let lines: Vec<Line<'_>> = rows.iter().map(|row| self.cells_line(row)).collect();
        frame.render_widget(Paragraph::new(lines), inside);
    }

    fn cells_line(&self, row: &[Cell]) -> Line<'static> {
        let spans = row.chunk_by(|a, b| a.colour == b.colour).map(|run| {
            let text: String = run.iter().map(|cell| cell.symbol).collect();
            let style = run[0].colour.map_or(Style::new(), |colour| self.painted(colour_of(colour)));
            Span::styled(text, style)
        });
        Line::from(spans.collect::<Vec<_>>())
    }

    fn facts_in_words(&self) -> String {
        let Facts { learning_rate, tokens_per_second, memory_bytes, .. } = &self.facts;
        let parts = [
            learning_rate.map(|of| format!("learning rate {}", rate(of))),
            self.grad_norm.map(|norm| format!("gradient norm {}", digits(norm))),
            (*tokens_per_second > 0.0).then(|| format!("{} tokens/s", count(*tokens_per_second))),
            (*memory_bytes > 0)
                .then(|| format!("memory {} of {} planned", bytes(*memory_bytes), bytes(self.planned_bytes))),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("   ")
    }

    /// The example's text, a line a line.
    fn example_lines(&self) -> Vec<Line<'static>> {
        let mut lines = vec![Line::default()];
        for (text, trained) in &self.example {
            let style = match (trained, self.colour) {
                (false, _) => Style::new(),
                (true, true) => Style::new().fg(Color::Green).add_modifier(Modifier::BOLD),
                (true, false) => Style::new().add_modifier(Modifier::UNDERLINED),
            };
            for (n, part) in printable(text).split('\n').enumerate() {
                if n > 0 {
                    lines.push(Line::default());
                }
                let part = Span::styled(part.replace('\t', "    "), style);
                lines.last_mut().expect("there is a line").push_span(part);
            }
        }
        lines
    }

    /// A prompt's end, what its example goes on with, the first answer, and the last one.
    fn answered_lines(&self, of: &Answered, columns: usize) -> Vec<Line<'static>> {
        let label = |text: &str| format!("{text:<9} ");
        let room = columns.saturating_sub(label("").len());
        let mut lines = vec![
            Line::styled(label("prompt") + &end_of(&one_line(of.prompt.trim()), room), Modifier::DIM),
            Line::styled(label("example") + &one_line(of.expected.trim()), Modifier::DIM),
        ];
        for (n, (step, answer)) in of.answers.iter().enumerate() {
            let style = if n > 0 { self.painted(Color::Green) } else { Style::new() };
            let said = Span::styled(one_line(answer.trim()), style);
            lines.push(Line::from(vec![Span::raw(label(&format!("step {step}"))), said]));
        }
        lines.resize(usize::from(OF_PROMPT), Line::default());
        lines
    }

    fn note_line(&self, line: &str) -> Line<'static> {
        let style = if line.starts_with("warning") { self.painted(Color::Yellow) } else { Style::new() };
        Line::styled(one_line(line), style)
    }

    fn painted(&self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }
}

/// The end of a text, at most so many columns wide.
fn end_of(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut width = 1;
    let fits = |c: &char| {
        width += c.width().unwrap_or(0);
        width <= columns
    };
    let kept: Vec<char> = text.chars().rev().take_while(fits).collect();
    ['…'].into_iter().chain(kept.into_iter().rev()).collect()
}

fn colour_of(colour: AnsiColor) -> Color {
    match colour {
        AnsiColor::Cyan => Color::Cyan,
        AnsiColor::Yellow => Color::Yellow,
        AnsiColor::Green => Color::Green,
        AnsiColor::Magenta => Color::Magenta,
        AnsiColor::Red => Color::Red,
        _ => Color::Blue,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn view() -> View {
        let mut view = View {
            title: "m, lora, rank 16".into(),
            steps: 200,
            step: 50,
            facts: Facts {
                epoch: 0.5,
                loss: 2.5,
                held_out: Some(2.75),
                learning_rate: Some(1e-3),
                tokens_per_second: 1234.0,
                memory_bytes: 300 << 20,
                elapsed: Duration::from_secs(41),
                left: Some(Duration::from_secs(110)),
            },
            grad_norm: Some(0.75),
            planned_bytes: 400 << 20,
            losses: (1..=50).map(|step| (step, 5.0 - step as f64 / 20.0)).collect(),
            held_out: vec![(0, 5.0), (50, 2.75)],
            example: vec![("user: hi\x1b[2J\n".into(), false), ("hello".into(), true)],
            answered: vec![Answered {
                prompt: format!("{}Which way?\n", "a long tale ".repeat(20)),
                expected: "North".into(),
                answers: Vec::new(),
            }],
            colour: true,
            ..View::default()
        };
        view.note("saved out/checkpoints/step-000050");
        view.note("warning: the held-out loss has risen");
        view
    }

    fn drawn(view: &View, columns: u16, rows: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn all_that_is_told_of_a_run_is_seen() {
        let shown = drawn(&view(), 100, 34);
        for words in [
            "m, lora, rank 16",
            "step 50/200  epoch 0.50  41 s  110 s left",
            "loss 2.5000 held-out 2.7500",
            "learning rate 1.0e-3   gradient norm 0.750   1.23 K tokens/s   memory 300.0 MiB of 400.0 MiB planned",
            "user: hi\\u{1b}[2J",
            "hello",
            "saved out/checkpoints/step-000050",
            "warning: the held-out loss has risen",
            "q or Ctrl-C: stop and save",
        ] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        assert!(shown.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "{shown}");
        let stopping = View { stopping: true, ..view() };
        assert!(drawn(&stopping, 100, 34).contains("q again ends at once"));
    }

    #[test]
    fn the_first_answer_and_the_last_stand_below_the_end_of_their_prompt() {
        let mut view = view();
        assert!(!drawn(&view, 60, 40).contains("answers to held-out prompts"));
        view.answer(0, vec!["South\x1b[2J".into()]);
        view.answer(50, vec!["East".into()]);
        view.answer(100, vec!["North\nit is".into()]);
        let shown = drawn(&view, 59, 40);
        for words in [
            "answers to held-out prompts",
            "prompt    …a long tale a long tale a long tale Which way?",
            "example   North",
            "step 0    South\\u{1b}[2J",
            "step 100  North\\nit is",
        ] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        assert!(!shown.contains("East") && shown.contains("the first example"), "{shown}");
        // Where there is room for one of both, it is the answers'.
        let shown = drawn(&view, 59, 30);
        assert!(shown.contains("North") && !shown.contains("the first example"), "{shown}");
    }

    #[test]
    fn any_size_of_terminal_and_an_empty_view_can_be_drawn() {
        for (columns, rows) in [(1, 1), (9, 3), (20, 10), (40, 17), (80, 24), (300, 100)] {
            let mut view = view();
            drawn(&view, columns, rows);
            view.answer(0, vec!["yes".into()]);
            drawn(&view, columns, rows);
            drawn(&View::default(), columns, rows);
        }
        let small = drawn(&view(), 80, 16);
        assert!(small.contains("step 50/200") && small.contains("q or Ctrl-C"), "{small}");
    }
}
