//! Bar charts, one below the other. Plain SVG that reads on light and dark ground; it never scales two panels alike.

use std::fmt::Write;

use super::setting::keep;

const PANEL: f64 = 300.0;
const BAR: f64 = 22.0;
const STEP: f64 = 32.0;
/// From a chart's title to its first bar.
const TOP: f64 = 58.0;

/// Bars of the same rows, side by side in panels.
pub struct Chart {
    pub title: String,
    pub rows: Vec<Row>,
    pub panels: Vec<Panel>,
}

pub struct Row {
    pub label: String,
    /// What it is compared with, not recsync's.
    pub other: bool,
}

pub struct Panel {
    pub title: String,
    pub digits: usize,
    /// A value for each row; NaN: none.
    pub values: Vec<f64>,
    /// A mark in each row, such as a goal; NaN or left out: none.
    pub marks: Vec<f64>,
}

/// Writes a file of target/bench and says where that is.
pub fn write(file: &str, charts: &[Chart]) -> String {
    let labels = charts.iter().flat_map(|chart| &chart.rows);
    let longest = labels.map(|row| row.label.chars().count()).max();
    let left = (16.0 + 7.6 * longest.unwrap_or(0) as f64).round();
    let panels = charts.iter().map(|chart| chart.panels.len()).max();
    let width = left + PANEL * panels.unwrap_or(0) as f64;
    let height = |chart: &Chart| TOP + STEP * chart.rows.len() as f64 + 6.0;
    let total: f64 = charts.iter().map(height).sum();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {total}\" width=\"{width}\"\n     \
         height=\"{total}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#888\">\n"
    );
    let mut top = 0.0;
    for chart in charts {
        text(&mut svg, 8.0, top + 20.0, &chart.title);
        for (row, Row { label, .. }) in chart.rows.iter().enumerate() {
            text(&mut svg, 8.0, baseline(top, row), label);
        }
        for (index, panel) in chart.panels.iter().enumerate() {
            draw(&mut svg, chart, panel, left + PANEL * index as f64, top);
        }
        top += height(chart);
    }
    svg.push_str("</svg>\n");
    format!("plot: {}", keep(file, &svg).display())
}

fn draw(svg: &mut String, chart: &Chart, panel: &Panel, left: f64, top: f64) {
    text(svg, left, top + TOP - 14.0, &panel.title);
    let all = panel.values.iter().chain(&panel.marks);
    let most = all.copied().fold(f64::MIN_POSITIVE, f64::max);
    // Room for the number beside the longest bar.
    let length = |value: f64| (value / most * (PANEL - 70.0)).max(1.0);
    for (row, (&value, Row { other, .. })) in panel.values.iter().zip(&chart.rows).enumerate() {
        if value.is_nan() {
            continue;
        }
        let (y, width) = (top + TOP + STEP * row as f64, length(value));
        let color = if *other { "#c0504d" } else { "#3b7dd8" };
        let bar = format!("x=\"{left}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\"");
        writeln!(svg, "<rect {bar} fill=\"{color}\"/>").unwrap();
        let mark = panel.marks.get(row).filter(|mark| !mark.is_nan());
        if let Some(&mark) = mark {
            let (x, y, height) = (left + length(mark), y - 4.0, BAR + 8.0);
            let line = format!("x=\"{x:.1}\" y=\"{y}\" width=\"2\" height=\"{height}\"");
            writeln!(svg, "<rect {line} fill=\"#888\"/>").unwrap();
        }
        let digits = panel.digits;
        let x = left + width.max(mark.map_or(0.0, |&mark| length(mark) + 2.0)) + 6.0;
        text(svg, x, baseline(top, row), &format!("{value:.digits$}"));
    }
}

fn baseline(top: f64, row: usize) -> f64 {
    top + TOP + STEP * row as f64 + BAR * 0.7
}

fn text(svg: &mut String, x: f64, y: f64, content: &str) {
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\">{content}</text>").unwrap();
}
