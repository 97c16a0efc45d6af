//! A plot as SVG. Colours come from [`STYLE`], so that one drawing reads on light, on dark and on paper.

use std::fmt::Write as _;

use super::axis::{Axis, Unit};
use super::{Curve, Kind, Plot};

/// The size of a plot, and of the margins that its numbers stand in.
const SIZE: (f64, f64) = (540.0, 240.0);
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 28.0;
/// Colours that are told apart; more curves have the same ones, dashed.
const COLOURS: usize = 8;
const DASHES: [&str; 3] = ["", " stroke-dasharray=\"7 4\"", " stroke-dasharray=\"2 4\""];
/// More marks than these would hide their line.
const MARKS: usize = 80;

/// The style of plots and of the dots of their legends (colours after Okabe and Ito 2008, brighter on dark).
pub(crate) const STYLE: &str = "\
.plot { width: 100%; max-width: 46rem; height: auto; display: block; } .plot text { fill: currentColor; font-size: 12px; }
.plot .grid { stroke: currentColor; opacity: 0.15; } .plot path { fill: none; stroke: var(--c); stroke-width: 1.8; }
.plot .faint { opacity: 0.25; stroke-width: 1; } .plot circle { fill: var(--c); }
.dot { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 50%; margin-right: 0.5em; background: var(--c); }
.c0 { --c: #0072b2; } .c1 { --c: #d55e00; } .c2 { --c: #009e73; } .c3 { --c: #b3588f; }
.c4 { --c: #b87f00; } .c5 { --c: #3b9cd0; } .c6 { --c: #8c6bb1; } .c7 { --c: #7f7f7f; }
@media screen and (prefers-color-scheme: dark) {
.c0 { --c: #4ba3e3; } .c1 { --c: #f0803c; } .c2 { --c: #2fc79b; } .c3 { --c: #dd8fc0; }
.c4 { --c: #e6b03c; } .c5 { --c: #85cdf5; } .c6 { --c: #b79be0; } .c7 { --c: #a8a8a8; }
}
@media print { .dot { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
";

/// The class of a colour by its number.
pub(crate) fn class(colour: usize) -> String {
    format!("c{}", colour % COLOURS)
}

/// Text that is no markup, also within an attribute.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

impl Plot {
    /// The drawing; empty where there is nothing to see.
    pub(crate) fn svg(&self) -> String {
        let Some((x, y)) = self.axes() else { return String::new() };
        let title = escaped(&self.title);
        let (width, height) = SIZE;
        let mut svg = format!(
            "<svg class=\"plot\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">\n"
        );
        self.grid(&mut svg, &x, &y);
        // Single values lie behind all means.
        for faint in [true, false] {
            for curve in self.curves.iter().filter(|curve| (curve.kind == Kind::Faint) == faint) {
                draw(&mut svg, curve, &x, &y);
            }
        }
        svg + "</svg>\n"
    }

    fn grid(&self, svg: &mut String, x: &Axis, y: &Axis) {
        for (value, text) in y.marks(5, self.unit) {
            let down = down(y, value);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{down:.1}\" y2=\"{down:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                SIZE.0 - RIGHT,
                LEFT - 8.0,
                down + 4.0
            );
        }
        for (value, text) in x.marks(6, Unit::Count) {
            let along = along(x, value);
            let anchor = if value == 0.0 {
                "start"
            } else if along > SIZE.0 - 40.0 {
                "end"
            } else {
                "middle"
            };
            let _ = writeln!(
                svg,
                "<text x=\"{along:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{text}</text>",
                SIZE.1 - 8.0
            );
        }
    }
}

fn along(x: &Axis, step: f64) -> f64 {
    LEFT + (SIZE.0 - LEFT - RIGHT) * x.part(step)
}

fn down(y: &Axis, value: f64) -> f64 {
    TOP + (SIZE.1 - TOP - BOTTOM) * (1.0 - y.part(value))
}

fn draw(svg: &mut String, curve: &Curve, x: &Axis, y: &Axis) {
    let place = |&(step, value): &(f64, f64)| (along(x, step), down(y, value));
    let mut path = String::new();
    for (across, below) in curve.points.iter().map(place) {
        let letter = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{letter}{across:.1} {below:.1}");
    }
    let faint = if curve.kind == Kind::Faint { " faint" } else { "" };
    let dashes = DASHES[curve.colour / COLOURS % DASHES.len()];
    let (class, name) = (class(curve.colour), escaped(&curve.name));
    if !path.is_empty() {
        let _ =
            writeln!(svg, "<path class=\"{class}{faint}\"{dashes} d=\"{path}\"><title>{name}</title></path>");
    }
    // A curve of one point has no line.
    if curve.points.len() == 1 || (curve.kind == Kind::Marked && curve.points.len() <= MARKS) {
        for (across, below) in curve.points.iter().map(place) {
            let _ = writeln!(
                svg,
                "<circle class=\"{class}{faint}\" cx=\"{across:.1}\" cy=\"{below:.1}\" r=\"3\"/>"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_name_holds_is_text() {
        let name = "<script>alert('1')</script>&\"";
        let plot = Plot::new(
            name,
            Unit::Plain,
            vec![Curve::new(name, 0, Kind::Line, [(1, 2.0), (2, 1.0), (3, 1.5)])],
        );
        let svg = plot.svg();
        assert!(!svg.contains("<script") && !svg.contains("('1')"), "{svg}");
        let safe = "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;";
        assert_eq!(svg.matches(safe).count(), 2, "{svg}");
    }

    #[test]
    fn a_curve_runs_from_the_left_to_the_right_and_falls_as_its_values_do() {
        let svg =
            Plot::new("loss", Unit::Plain, vec![Curve::new("a", 1, Kind::Marked, [(0, 2.0), (4, 1.0)])])
                .svg();
        let path = svg.split(" d=\"").nth(1).unwrap().split('"').next().unwrap();
        let numbers: Vec<f64> = path
            .split(['M', 'L', ' '])
            .filter(|part| !part.is_empty())
            .map(|part| part.parse().unwrap())
            .collect();
        assert_eq!((numbers[0], numbers[2]), (LEFT, SIZE.0 - RIGHT));
        assert!(numbers[1] < numbers[3], "down is more: {path}");
        assert_eq!(svg.matches("<circle").count(), 2);
        let nothing = Plot::new("loss", Unit::Plain, vec![Curve::new("a", 0, Kind::Line, [])]);
        assert!(nothing.is_empty() && nothing.svg().is_empty());
    }
}
