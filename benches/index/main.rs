//! What an index costs and what it finds: hnsw and hnsw_bit side by side, built before and after the load. See
//! benches/README.md.
//!
//! Loads are by a loopback API that answers at once; what is found, also by a real model where LOCAL_EMBEDDER names a
//! server of it. It never compares figures of two runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// Rows into a table without an index, and into one with it.
mod load;

/// Recall, latency, size.
mod find;

/// Texts, and the model on this machine.
mod texts;

#[path = "../support/mod.rs"]
mod bench;

#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use postgres::Client;

use bench::loopback::{Loopback, Model, Vectors};
use bench::setting::{conditions, is_wanted, load as load_average, size_or_quick};
use support::{Cluster, Sql};

/// Of an ordinary server, where the tests' clusters are set to be quick. Nothing runs beside what is measured.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
    ("maintenance_work_mem", "512MB"),
    ("autovacuum", "off"),
    ("max_worker_processes", "16"),
    // Also in a run with few rows.
    ("recsync.index_min_rows", "100"),
];

pub const DIMENSIONS: usize = 384;
pub const INDEXES: [&str; 2] = ["hnsw", "hnsw_bit"];

/// What the environment may set.
pub struct Sizes {
    /// Of each load, and rows that come into an index that is there.
    pub rows: usize,
    pub more: usize,
    /// With vectors of the model.
    pub model_rows: usize,
    pub queries: usize,
}

type Part = fn(&Sizes);

fn main() {
    let of = size_or_quick;
    let sizes = Sizes {
        rows: of("ROWS", 20_000, 1_000),
        more: of("MORE", 3_000, 200),
        model_rows: of("MODEL_ROWS", 10_000, 500),
        queries: of("QUERIES", 200, 20),
    };
    println!("{}", conditions(SETTINGS));
    let parts: [(&str, Part); 2] = [("load", load::run), ("find", find::run)];
    for (name, run) in parts.iter().filter(|(name, _)| is_wanted("PARTS", name)) {
        let started = Instant::now();
        run(&sizes);
        eprintln!("{name}: {:.0} s", started.elapsed().as_secs_f64());
    }
    println!("\nload average now: {}", load_average());
}

/// A cluster with recsync in its database `postgres`, and a connection to it.
fn start() -> (Cluster, Client) {
    let cluster = Cluster::start(SETTINGS);
    let mut client = cluster.connect("postgres");
    client.run("CREATE EXTENSION recsync CASCADE");
    client.run("CREATE TABLE item (id bigint PRIMARY KEY, title text NOT NULL)");
    (cluster, client)
}

/// An API that answers at once, with vectors as those of texts lie.
fn loopback() -> Loopback {
    Loopback::start(Model {
        dimensions: DIMENSIONS,
        vectors: Vectors::Clustered,
        delay: Duration::ZERO,
    })
}

/// Adds rows `first` to `last`.
fn add_rows(client: &mut Client, first: usize, last: usize) {
    let titles: Vec<String> = (first..=last).map(texts::text).collect();
    client
        .execute(
            "INSERT INTO item SELECT $1 + n - 1, title FROM unnest($2::text[]) WITH ORDINALITY AS t (title, n)",
            &[&(first as i64), &titles],
        )
        .unwrap();
}

/// The statement that makes pipeline `name` by server `api`.
fn create(name: &str, index: &str) -> String {
    format!(
        "SELECT recsync.create_pipeline('{name}', 'item', index => '{index}', columns => '{{title}}', server => 'api')"
    )
}

/// Waits until everything committed before is embedded and says how long that took.
fn settle(client: &mut Client, pipeline: &str) -> f64 {
    let started = Instant::now();
    let done = client.one::<bool>(&format!("SELECT recsync.wait_for('{pipeline}', '1 h')"));
    assert!(done, "{pipeline} is not done within an hour");
    started.elapsed().as_secs_f64()
}
