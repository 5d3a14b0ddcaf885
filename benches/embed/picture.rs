//! The bar charts: single changes, many rows, claims. A mark in a row is what was to be reached.

use crate::bench::plot::{self, Chart, Panel, Row};
use crate::drain::{self, CONCURRENCY, MODES};
use crate::figures::Figures;
use crate::graph;
use crate::jobs::{self, PHASES, SIDES};
use crate::latency::{self, HELD, IDLE, INTO_EMPTY, INTO_INDEX};
use crate::outbox::{self, OUTBOX, RECSYNC};

/// Writes target/bench/embed.svg and says where that is.
pub fn write(figures: &Figures) -> String {
    let charts = [
        (latency::PART, latency(figures)),
        (drain::PART, drain(figures)),
        (graph::PART, graph(figures)),
        (jobs::PART, claims(figures)),
        (outbox::PART, outbox(figures)),
    ];
    let charts = charts.into_iter().filter(|(part, _)| figures.has(part));
    let charts: Vec<Chart> = charts.map(|(_, chart)| chart).collect();
    match charts.is_empty() {
        true => "no plot of these parts".into(),
        false => plot::write("embed.svg", &charts),
    }
}

fn row(label: impl Into<String>) -> Row {
    Row {
        label: label.into(),
        other: false,
    }
}

/// What recsync is compared with.
fn limit(label: impl Into<String>) -> Row {
    Row {
        label: label.into(),
        other: true,
    }
}

fn panel(title: &str, digits: usize, values: Vec<f64>, marks: Vec<f64>) -> Panel {
    Panel {
        title: title.into(),
        digits,
        values,
        marks,
    }
}

fn latency(figures: &Figures) -> Chart {
    let names: Vec<&str> = [IDLE, HELD, INTO_INDEX, INTO_EMPTY].concat();
    let at = |percent| {
        let of = |name: &&str| figures.percentile(latency::PART, name, latency::OWN, percent);
        names.iter().map(of).collect::<Vec<f64>>()
    };
    let none = f64::NAN;
    let (p50, p99) = (
        vec![6.5, 2.0],
        vec![12.0, 5.0, none, none, 100.0, 100.0, 100.0, 100.0],
    );
    Chart {
        title: "commit → visible without the API".into(),
        rows: names.iter().map(|name| row(*name)).collect(),
        panels: vec![
            panel("ms, p50", 1, at(50), p50),
            panel("ms, p99", 1, at(99), p99),
        ],
    }
}

fn drain(figures: &Figures) -> Chart {
    let mut rows = Vec::new();
    let mut values = drain::DIMENSIONS.map(|_| Vec::new());
    let mut marks = drain::DIMENSIONS.map(|_| Vec::new());
    for mode in MODES {
        for concurrency in CONCURRENCY.map(Some).into_iter().chain([None]) {
            rows.push(match concurrency {
                Some(most) => row(format!("{}, {most} requests", mode.label())),
                None => limit(mode.limit()),
            });
            for (index, dimensions) in drain::DIMENSIONS.into_iter().enumerate() {
                let variant = mode.variant(dimensions, concurrency);
                values[index].push(figures.one(drain::PART, &variant, drain::ROWS));
                let goal = [30_000.0, 9_000.0][index];
                marks[index].push(concurrency.map_or(f64::NAN, |_| goal));
            }
        }
    }
    let titles = drain::DIMENSIONS.map(|dimensions| format!("rows/s, {dimensions} dimensions"));
    let panels = titles.iter().zip(values).zip(marks);
    let panels = panels.map(|((title, values), marks)| panel(title, 0, values, marks));
    Chart {
        title: "many rows, no index".into(),
        rows,
        panels: panels.collect(),
    }
}

fn graph(figures: &Figures) -> Chart {
    let panels = graph::KINDS.map(|kind| {
        let variants = graph::WRITERS.map(|writers| graph::variants(kind, writers));
        let rates =
            variants.map(|pair| pair.map(|one| figures.one(graph::PART, &one, graph::ROWS)));
        let title = format!("rows/s, {} vectors", kind.label());
        panel(&title, 0, rates.concat(), Vec::new())
    });
    let rows = graph::WRITERS.map(|writers| {
        [
            row(format!("recsync, {writers} writers")),
            limit(format!("INSERT … SELECT, {writers} sessions")),
        ]
    });
    Chart {
        title: "many rows, HNSW".into(),
        rows: rows.into_iter().flatten().collect(),
        panels: panels.into(),
    }
}

fn claims(figures: &Figures) -> Chart {
    let panels = SIDES.map(|side| {
        let of = |phase| {
            let variant = jobs::variant(side, phase);
            figures.one(jobs::PART, &variant, jobs::CLAIM_MS)
        };
        panel(
            &format!("ms, p50, {side}"),
            1,
            PHASES.map(of).to_vec(),
            Vec::new(),
        )
    });
    Chart {
        title: "a claim of queued jobs".into(),
        rows: PHASES.map(row).into(),
        panels: panels.into(),
    }
}

fn outbox(figures: &Figures) -> Chart {
    let names = [RECSYNC, OUTBOX];
    let rates = names.map(|name| figures.one(outbox::PART, name, outbox::ROWS));
    let visible = names.map(|name| figures.percentile(outbox::PART, name, outbox::VISIBLE, 50));
    Chart {
        title: "the customary consumer".into(),
        rows: vec![row(RECSYNC), limit(OUTBOX)],
        panels: vec![
            panel("rows/s", 0, rates.to_vec(), Vec::new()),
            panel(
                "ms from commit to visible, p50",
                1,
                visible.to_vec(),
                Vec::new(),
            ),
        ],
    }
}
