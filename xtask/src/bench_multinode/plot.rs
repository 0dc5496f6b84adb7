//! One drawing: for each problem the time of a call beside that of the same attention without communication.
use std::fmt::Write as _;

use super::report::{Line, Report};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 50.0;
const BAR: f64 = 11.0;
/// Bars of a line and the space below.
const LINE: f64 = 3.0 * BAR + 13.0;
const KINDS: [(&str, &str); 3] =
    [("overlapped", "#1f77b4"), ("attention only", "#7f7f7f"), ("gather, then attend", "#d62728")];

/// The drawing of all lines.
pub(super) fn svg(report: &Report) -> String {
    let most = report.lines.iter().flat_map(ratios).fold(1.0, f64::max);
    let height = TOP + report.lines.len() as f64 * LINE + 10.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    // A string takes whatever is written.
    let mut draw = |part: std::fmt::Arguments<'_>| _ = writeln!(text, "{part}");
    let title = format!(
        "{} ranks, {}: time of a forward, attention without communication = 1",
        report.ranks, report.device
    );
    draw(format_args!("<text x=\"8\" y=\"16\">{}</text>", escaped(&title)));
    for (at, (name, color)) in KINDS.iter().enumerate() {
        let x = LEFT + 150.0 * at as f64;
        draw(format_args!("<rect x=\"{x:.1}\" y=\"27\" width=\"10\" height=\"10\" fill=\"{color}\"/>"));
        draw(format_args!("<text x=\"{:.1}\" y=\"36\">{name}</text>", x + 14.0));
    }
    for (at, line) in report.lines.iter().enumerate() {
        let top = TOP + at as f64 * LINE;
        let name = escaped(&line.name);
        draw(format_args!("<text x=\"8\" y=\"{:.1}\">{name}</text>", top + 1.5 * BAR + 4.0));
        let times = [line.overlapped, line.attention, line.gathered];
        for (bar, (ratio, time)) in ratios(line).into_iter().zip(times).enumerate() {
            let (y, width) = (top + BAR * bar as f64, ratio / most * (WIDTH - LEFT - RIGHT));
            let color = KINDS[bar].1;
            draw(format_args!(
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{color}\"/>"
            ));
            draw(format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"9\">{:.3} ms ({ratio:.2})</text>",
                LEFT + width + 4.0,
                y + BAR - 2.0,
                time.median
            ));
        }
    }
    text.push_str("</svg>\n");
    text
}

/// Overlapped, alone, gathered first: each over alone.
fn ratios(line: &Line) -> [f64; 3] {
    let alone = line.attention.median.max(f64::MIN_POSITIVE);
    [line.overlapped, line.attention, line.gathered].map(|time| time.median / alone)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::super::report::Measured;
    use super::super::rows;
    use super::*;

    #[test]
    fn bars_are_as_long_as_the_times_and_inside() {
        let measured = Measured {
            overlapped: vec![2.0],
            attention: vec![1.0],
            gathered: vec![4.0],
            ..Measured::default()
        };
        let lines = rows::of_gpus()[..2]
            .iter()
            .filter_map(|row| Line::of(row, std::slice::from_ref(&measured)))
            .collect();
        let report = Report { backend: String::new(), device: "a < b".to_owned(), ranks: 2, lines };
        let text = svg(&report);
        let bars: Vec<f64> = text
            .split("<rect x=\"190\"")
            .skip(1)
            .map(|bar| bar.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(bars, [230.0, 115.0, 460.0, 230.0, 115.0, 460.0]);
        assert!(text.contains("a &lt; b") && text.ends_with("</svg>\n"));
        assert!(svg(&Report { lines: Vec::new(), ..report }).ends_with("</svg>\n"));
    }
}
