//! The bar chart of the bulk INSERT: what each variant adds to a row, in CPU time and in WAL.

use crate::bench::plot::{self, Chart, Panel, Row};
use crate::bulk;
use crate::figures::{CPU_US, Figures, Measure, WAL_BYTES};
use crate::variant::{VARIANTS, Variant};

/// Writes target/bench/capture.svg and says where that is.
pub fn write(figures: &Figures) -> String {
    if !figures.has(bulk::INSERT) {
        return "no plot without the bulk INSERT".into();
    }
    let rows = VARIANTS[1..].iter().map(|variant| Row {
        label: variant.label().into(),
        other: *variant == Variant::Audit,
    });
    let chart = Chart {
        title: "added to a row by INSERT … SELECT".into(),
        rows: rows.collect(),
        panels: vec![
            panel(figures, "CPU µs/row", CPU_US, 2),
            panel(figures, "WAL bytes/row", WAL_BYTES, 0),
        ],
    };
    plot::write("capture.svg", &[chart])
}

fn panel(figures: &Figures, title: &str, of: Measure, digits: usize) -> Panel {
    let base = VARIANTS[0].label();
    let added = VARIANTS[1..]
        .iter()
        .map(|variant| figures.added(bulk::INSERT, variant.label(), base, of));
    Panel {
        title: title.into(),
        digits,
        values: added.collect(),
        marks: Vec::new(),
    }
}
