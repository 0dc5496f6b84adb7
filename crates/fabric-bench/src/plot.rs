//! One drawing: rate against size, both axes logarithmic in size, a line per way of sending.
use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::figures::{Figure, size};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 40.0;
const COLORS: [&str; 8] =
    ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f"];

/// The drawing of all lines that have several sizes.
pub(crate) fn svg(title: &str, lines: &[Figure]) -> String {
    let mut series: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for line in lines {
        if let Some(rate) = line.rate() {
            series.entry(&line.name).or_default().push((line.bytes as f64, rate));
        }
    }
    series.retain(|_, points| points.len() > 1);
    let points = || series.values().flatten();
    let least = points().map(|(bytes, _)| bytes.log2()).fold(f64::INFINITY, f64::min);
    let most = points().map(|(bytes, _)| bytes.log2()).fold(least + 1.0, f64::max);
    let top = points().map(|(_, rate)| *rate).fold(1.0, f64::max) * 1.05;
    let x = |bytes: f64| LEFT + (bytes.log2() - least) / (most - least) * (WIDTH - LEFT - 190.0);
    let y = |rate: f64| HEIGHT - BOTTOM - rate / top * (HEIGHT - BOTTOM - 20.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    // A string takes whatever is written.
    let mut draw = |part: std::fmt::Arguments<'_>| _ = writeln!(text, "{part}");
    draw(format_args!("<text x=\"{LEFT}\" y=\"14\">{title}</text>"));
    for step in 0..=4_u8 {
        let rate = top * f64::from(step) / 4.0;
        let at = y(rate);
        draw(format_args!(
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"8\" y=\"{:.1}\">{rate:.0}</text>",
            WIDTH - 190.0,
            at + 4.0
        ));
    }
    let mut sizes: Vec<usize> = lines.iter().map(|line| line.bytes).filter(|bytes| *bytes > 0).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for bytes in sizes.into_iter().step_by(2).filter(|_| !series.is_empty()) {
        draw(format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(bytes as f64),
            HEIGHT - BOTTOM + 18.0,
            size(bytes)
        ));
    }
    for (at, (name, points)) in series.iter().enumerate() {
        let color = COLORS[at % COLORS.len()];
        let path: Vec<String> =
            points.iter().map(|(bytes, rate)| format!("{:.1},{:.1}", x(*bytes), y(*rate))).collect();
        draw(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.6\"/>",
            path.join(" ")
        ));
        let row = 34 + 16 * at;
        draw(format_args!("<text x=\"{:.1}\" y=\"{row}\" fill=\"{color}\">{name}</text>", WIDTH - 180.0));
    }
    text.push_str("</svg>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_several_sizes_are_drawn_inside() {
        let line = |name: &str, bytes, micros| Figure { name: name.to_owned(), bytes, micros: [micros; 3] };
        let lines = [
            line("put", 1 << 10, 5.0),
            line("put", 1 << 29, 1400.0),
            line("get", 1 << 20, 9.0),
            line("call", 0, 3.0),
        ];
        let text = svg("GB/s", &lines);
        assert!(text.contains(">GB/s</text>"));
        assert_eq!(text.matches("<polyline").count(), 1);
        let points = text.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        for number in points.split([' ', ',']) {
            let number: f64 = number.parse().unwrap();
            assert!((0.0..=WIDTH).contains(&number), "{points}");
        }
        assert!(svg("", &[]).ends_with("</svg>\n"));
    }
}
