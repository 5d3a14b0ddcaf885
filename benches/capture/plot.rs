//! The bar chart of the bulk INSERT: what each variant adds to a row, in CPU time and in WAL. Plain SVG that reads on
//! light and dark ground; it never scales the two sides alike.

use std::fmt::Write;

use crate::bulk;
use crate::figures::{CPU_US, Figures, Measure, WAL_BYTES};
use crate::setting::keep;
use crate::variant::{VARIANTS, Variant};

const LABELS: f64 = 130.0;
const PANEL: f64 = 300.0;
const BAR: f64 = 22.0;
const STEP: f64 = 32.0;
const TOP: f64 = 58.0;

/// Writes target/bench/capture.svg and says where that is.
pub fn write(figures: &Figures) -> String {
    if !figures.has(bulk::INSERT) {
        return "no plot without the bulk INSERT".into();
    }
    let height = TOP + STEP * (VARIANTS.len() - 1) as f64 + 6.0;
    let width = LABELS + 2.0 * PANEL;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\"\n     \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#888\">\n"
    );
    text(&mut svg, 8.0, 20.0, "added to a row by INSERT … SELECT");
    panel(&mut svg, figures, LABELS, "CPU µs/row", CPU_US, 2);
    panel(
        &mut svg,
        figures,
        LABELS + PANEL,
        "WAL bytes/row",
        WAL_BYTES,
        0,
    );
    for (row, variant) in VARIANTS[1..].iter().enumerate() {
        text(&mut svg, 8.0, baseline(row), variant.label());
    }
    svg.push_str("</svg>\n");
    format!("plot: {}", keep("capture.svg", &svg).display())
}

fn panel(svg: &mut String, figures: &Figures, left: f64, title: &str, of: Measure, digits: usize) {
    text(svg, left, TOP - 14.0, title);
    let added =
        |variant: Variant| figures.added(bulk::INSERT, variant.label(), VARIANTS[0].label(), of);
    let most = VARIANTS
        .map(added)
        .into_iter()
        .fold(f64::MIN_POSITIVE, f64::max);
    for (row, &variant) in VARIANTS[1..].iter().enumerate() {
        let (top, value) = (TOP + STEP * row as f64, added(variant));
        // Room for the number beside the longest bar.
        let length = (value / most * (PANEL - 70.0)).max(1.0);
        let color = if variant == Variant::Audit {
            "#c0504d"
        } else {
            "#3b7dd8"
        };
        let bar = format!("x=\"{left}\" y=\"{top}\" width=\"{length:.1}\" height=\"{BAR}\"");
        writeln!(svg, "<rect {bar} fill=\"{color}\"/>").unwrap();
        text(
            svg,
            left + length + 6.0,
            baseline(row),
            &format!("{value:.digits$}"),
        );
    }
}

fn baseline(row: usize) -> f64 {
    TOP + STEP * row as f64 + BAR * 0.7
}

fn text(svg: &mut String, x: f64, y: f64, content: &str) {
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\">{content}</text>").unwrap();
}
