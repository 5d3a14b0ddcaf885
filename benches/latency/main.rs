//! How long a committed change takes until its vector is visible, with an embedding API that answers at once: what
//! recsync and PostgreSQL cost, without a model. See benches/README.md.
//!
//! Four variants: HNSW or no index, with and without a transaction that is held open throughout. They take turns in
//! rounds, so that what else the machine does falls on all of them. It never measures inside the server: a change is
//! visible when another connection sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod bench;

#[path = "../../tests/support/mod.rs"]
mod support;

use std::fmt::Write;
use std::time::Duration;

use bench::loopback::{Loopback, Model, Vectors};
use bench::setting::{conditions, keep, load, percentile, size};
use bench::tables::table;
use bench::visible::{HEAD, NAMES, Side, Stages, row, sorted, take_turns};

const ROUNDS: usize = 10;

/// Of an ordinary server, where the tests' clusters are set to be quick. Autovacuum, which follows the loading, would
/// fall on one variant only: the tables are vacuumed and analysed before.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("shared_buffers", "512MB"),
    ("max_wal_size", "4GB"),
    ("autovacuum", "off"),
    // Also in a run with few rows.
    ("recsync.index_min_rows", "100"),
];

const MODEL: Model = Model {
    dimensions: 384,
    vectors: Vectors::Random,
    delay: Duration::ZERO,
};

fn main() {
    let (rows, changes) = (size("ROWS", 10_000), size("CHANGES", 300));
    println!("{}\n", conditions(SETTINGS));
    let start = |held| Side::start(SETTINGS, Loopback::start(MODEL), rows, held);
    let mut sides = [false, true].map(start);
    sides.iter_mut().for_each(Side::warm_up);
    let measured = take_turns(&mut sides, ROUNDS, changes);
    sides.iter_mut().for_each(Side::finish);
    report(&measured);
    println!("\n{}", write_csv(&measured));
    println!("load average now: {}", load());
}

fn report(measured: &[(usize, usize, Stages)]) {
    let of = |variant: usize| -> Vec<Stages> {
        let of = measured.iter().filter(|(its, ..)| *its == variant);
        of.map(|(_, _, stages)| *stages).collect()
    };
    let rows = NAMES.iter().enumerate();
    let rows = rows.map(|(variant, name)| row(name, &of(variant), |stages| stages.total_ms));
    table(
        "commit → visible in ms, and p50 (p99) of its stages",
        HEAD,
        &rows.collect::<Vec<_>>(),
    );
    println!();
    for (index, name) in NAMES.iter().enumerate().take(2) {
        let ratio = |percent| {
            let of = |variant| {
                percentile(
                    &sorted(&of(variant), |stages: &Stages| stages.total_ms),
                    percent,
                )
            };
            of(index + 2) / of(index)
        };
        println!(
            "{}: held / not held = {:.2} at p50, {:.2} at p99",
            name,
            ratio(50),
            ratio(99)
        );
    }
}

/// Each change's figures, to target/bench/latency.csv.
fn write_csv(measured: &[(usize, usize, Stages)]) -> String {
    let mut csv =
        "variant,round,commit_to_request_ms,in_api_ms,answer_to_visible_ms,total_ms\n".to_owned();
    for (variant, round, stages) in measured {
        let Stages {
            request_ms,
            api_ms,
            store_ms,
            total_ms,
        } = stages;
        let name = NAMES[*variant].replace(", ", " ");
        writeln!(
            csv,
            "{name},{round},{request_ms:.4},{api_ms:.4},{store_ms:.4},{total_ms:.4}"
        )
        .unwrap();
    }
    format!("each change: {}", keep("latency.csv", &csv).display())
}
