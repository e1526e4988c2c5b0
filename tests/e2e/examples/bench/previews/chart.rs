//! A plot of latencies over a run as SVG, logarithmic upwards. Pure.

use std::{fmt::Write as _, time::Duration};

/// One series: its name, its colour, and for each claim when it came and how long it took.
pub struct Series<'a> {
    pub name: &'a str,
    pub colour: &'a str,
    pub points: Vec<(Duration, Duration)>,
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 360.0;
const MARGIN: f64 = 50.0;
/// The axis of latencies, in milliseconds: three and a half decades.
const LOWEST: f64 = 5.0;
const HIGHEST: f64 = 20_000.0;

/// Draws.
pub fn draw(title: &str, series: &[Series<'_>]) -> String {
    let lasts = series
        .iter()
        .flat_map(|s| &s.points)
        .map(|(at, _)| at.as_secs_f64());
    let seconds = lasts.fold(1.0, f64::max).ceil();
    let x = |at: f64| MARGIN + at / seconds * (WIDTH - 2.0 * MARGIN);
    let y = |ms: f64| {
        let share = (ms.clamp(LOWEST, HIGHEST) / LOWEST).ln() / (HIGHEST / LOWEST).ln();
        HEIGHT - MARGIN - share * (HEIGHT - 2.0 * MARGIN)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{MARGIN}\" y=\"20\">{title}</text>\n"
    );
    for ms in [10.0, 100.0, 1000.0, 10_000.0] {
        let (y, right) = (y(ms), WIDTH - MARGIN);
        let _ = writeln!(
            svg,
            "<path d=\"M{MARGIN} {y:.1}H{right}\" stroke=\"#ccc\"/><text x=\"4\" y=\"{:.1}\">{ms} ms</text>",
            y + 4.0
        );
    }
    for step in 0..=6 {
        let at = seconds * f64::from(step) / 6.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\">{at:.0} s</text>",
            x(at) - 8.0,
            HEIGHT - MARGIN + 18.0
        );
    }
    for (series, line) in series.iter().zip(0_u8..) {
        for (at, took) in &series.points {
            let (x, y) = (x(at.as_secs_f64()), y(took.as_secs_f64() * 1000.0));
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"1.6\" fill=\"{}\" fill-opacity=\"0.6\"/>",
                series.colour
            );
        }
        let (x, y) = (WIDTH - MARGIN - 130.0, 20.0 + 16.0 * f64::from(line));
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{y}\" fill=\"{}\">{}</text>",
            series.colour, series.name
        );
    }
    svg + "</svg>\n"
}
