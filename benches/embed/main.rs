//! How fast and how frugal recsync embeds, beside the limits that PostgreSQL, pgvector and the API set in the same run,
//! and beside the customary consumer of an outbox. See benches/README.md.
//!
//! The embedding API is a loopback server that takes a fixed time for each request. It never measures inside recsync's
//! processes, but for the decoding of an answer, which it does itself by the library's code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// A single change until its vector is visible.
mod latency;

/// Many rows at once, without an index.
mod drain;

/// Answers read.
mod decode;

/// Many rows at once, with HNSW.
mod graph;

/// One row changed again and again.
mod hot;

/// Millions of jobs.
mod jobs;

/// The customary consumer.
mod outbox;

/// What was measured.
mod figures;

/// What was to be reached.
mod goals;

/// What is drawn of it.
mod picture;

#[path = "../support/mod.rs"]
mod bench;

#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use postgres::Client;

use bench::loopback::{Loopback, Model, Vectors};
use bench::setting::{conditions, is_wanted, load, size, size_or_quick};
use figures::Figures;
use support::{Cluster, Sql};

/// Of an ordinary server, where the tests' clusters are set to be quick; but nothing runs that would fall on one
/// variant only: no autovacuum, no checkpoint but those that are asked for.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum", "off"),
    // Also in a run with few rows.
    ("recsync.index_min_rows", "100"),
    ("max_worker_processes", "16"),
];

/// What the environment may set.
pub struct Sizes {
    /// Of the tables whose single changes are waited for, and changes of each variant.
    pub rows: usize,
    pub changes: usize,
    /// Of the backfill meanwhile.
    pub backfill_rows: usize,
    pub drain_rows: usize,
    pub graph_rows: usize,
    pub jobs: usize,
    /// Claims in each of the three phases.
    pub claims: usize,
    pub outbox_rows: usize,
    pub outbox_changes: usize,
    /// That the API takes for a request.
    pub delay: Duration,
}

impl Sizes {
    fn given() -> Sizes {
        let of = size_or_quick;
        Sizes {
            rows: of("ROWS", 10_000, 500),
            changes: of("CHANGES", 300, 20),
            backfill_rows: of("BACKFILL_ROWS", 100_000, 3_000),
            drain_rows: of("DRAIN_ROWS", 60_000, 3_000),
            graph_rows: of("GRAPH_ROWS", 10_000, 500),
            jobs: of("JOBS", 10_000_000, 60_000),
            claims: of("CLAIMS", 30, 5),
            outbox_rows: of("OUTBOX_ROWS", 10_000, 500),
            outbox_changes: of("OUTBOX_CHANGES", 300, 20),
            delay: Duration::from_millis(size("API_MS", 20) as u64),
        }
    }

    /// An API as most of this asks.
    pub fn api(&self, dimensions: usize, vectors: Vectors) -> Loopback {
        Loopback::start(Model {
            dimensions,
            vectors,
            delay: self.delay,
        })
    }
}

type Part = fn(&Sizes, &mut Figures);

/// By the names of variable PARTS.
const PARTS: [(&str, Part); 7] = [
    (latency::PART, latency::run),
    (drain::PART, drain::run),
    (decode::PART, decode::run),
    (graph::PART, graph::run),
    (hot::PART, hot::run),
    (jobs::PART, jobs::run),
    (outbox::PART, outbox::run),
];

fn main() {
    let sizes = Sizes::given();
    println!("{}", conditions(SETTINGS));
    let mut figures = Figures::default();
    for (name, run) in PARTS.iter().filter(|(name, _)| is_wanted("PARTS", name)) {
        eprintln!("{name} …");
        let started = Instant::now();
        run(&sizes, &mut figures);
        eprintln!("{name}: {:.0} s", started.elapsed().as_secs_f64());
    }
    goals::print(&figures);
    println!("\n{}", figures.write_csv());
    println!("{}", picture::write(&figures));
    println!("load average now: {}", load());
}

/// A cluster with recsync in its database `postgres`, and a connection to it.
fn start(settings: &[(&str, &str)]) -> (Cluster, Client) {
    let cluster = Cluster::start(settings);
    let mut client = cluster.connect("postgres");
    client.run("CREATE EXTENSION recsync CASCADE");
    (cluster, client)
}

/// Creates `table (id, title)` with `rows` rows of about 200 bytes.
fn fill(client: &mut Client, table: &str, rows: usize) {
    fill_with(client, table, rows, "n");
}

/// The same with texts of a seed of one's own, an SQL expression over the row's number `n`: what has been embedded before
/// would cost no request.
fn fill_with(client: &mut Client, table: &str, rows: usize, seed: &str) {
    client.run(&format!(
        "CREATE TABLE {table} (id int PRIMARY KEY, title text NOT NULL)"
    ));
    add_rows_with(client, table, (1, rows), seed);
    client.run(&format!("VACUUM ANALYZE {table}"));
}

fn add_rows(client: &mut Client, table: &str, first: usize, last: usize) {
    add_rows_with(client, table, (first, last), "n");
}

fn add_rows_with(client: &mut Client, table: &str, (first, last): (usize, usize), seed: &str) {
    client.run(&format!(
        "INSERT INTO {table} SELECT n, {} FROM generate_series({first}, {last}) n",
        text(seed)
    ));
}

/// An SQL expression: about 200 bytes of text, another one for each value of `seed`.
fn text(seed: &str) -> String {
    format!("'Item ' || {seed} || ': ' || repeat(md5(({seed})::text) || ' ', 6)")
}

/// Waits until everything committed before is embedded and says how long that took.
fn settle(client: &mut Client, pipeline: &str) -> f64 {
    let started = Instant::now();
    let done = client.one::<bool>(&format!("SELECT recsync.wait_for('{pipeline}', '1 h')"));
    assert!(done, "{pipeline} is not done within an hour");
    started.elapsed().as_secs_f64()
}
