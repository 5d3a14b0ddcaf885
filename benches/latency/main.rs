//! How long a committed change takes until its vector is visible, with an embedding API that answers at once: what
//! recsync and PostgreSQL cost, without a model. See benches/README.md.
//!
//! Four variants: HNSW or no index, with and without a transaction that is held open throughout. They take turns in
//! rounds, so that what else the machine does falls on all of them. It never measures inside the server: a change is
//! visible when another connection sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// The API.
mod loopback;

#[path = "../support/setting.rs"]
mod setting;

#[path = "../../tests/support/mod.rs"]
mod support;

use std::fmt::Write;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use postgres::{Client, Statement};

use loopback::{DIMENSIONS, Loopback};
use setting::{conditions, keep, load, percentile, size};
use support::{Cluster, Sql};

const ROUNDS: usize = 10;
const WARM_UP: usize = 30;
/// Between two looks; with the query itself, a look every 0.25 ms.
const POLL: Duration = Duration::from_micros(100);
/// Between two changes: what is measured is a change that comes alone.
const PAUSE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(60);
/// With HNSW, a row takes some milliseconds.
const BACKFILL: Duration = Duration::from_secs(3600);

/// Of an ordinary server, where the tests' clusters are set to be quick. Autovacuum, which follows the loading, would
/// fall on one variant only: the tables are vacuumed and analysed before.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("shared_buffers", "512MB"),
    ("max_wal_size", "4GB"),
    ("autovacuum", "off"),
];

fn main() {
    let (rows, changes) = (size("ROWS", 10_000), size("CHANGES", 300));
    println!("{}\n", conditions(SETTINGS));
    let mut sides = [Side::start(rows, false), Side::start(rows, true)];
    // What loading has left to be written must not be written under the measured changes.
    let _ = Command::new("sync").status();
    for side in &mut sides {
        side.hold();
        for index in 0..side.tables.len() {
            for _ in 0..WARM_UP {
                side.change(index);
            }
        }
    }
    let mut measured: Vec<Measured> = Vec::new();
    for round in 0..ROUNDS {
        for turn in 0..4 {
            let variant = (round + turn) % 4;
            let (side, index) = (&mut sides[variant / 2], variant % 2);
            for _ in 0..(changes / ROUNDS).max(1) {
                let stages = side.change(index);
                measured.push(Measured {
                    variant,
                    round,
                    stages,
                });
            }
        }
    }
    sides.iter_mut().for_each(Side::finish);
    report(&measured);
    println!("\n{}", write_csv(&measured));
    println!("load average now: {}", load());
}

/// One cluster with both tables; transactions held open in one do not touch the other.
struct Side {
    held: bool,
    api: Loopback,
    client: Client,
    watcher: Client,
    holder: Client,
    held_id: Option<String>,
    tables: Vec<Watched>,
    cluster: Cluster,
    rows: usize,
}

struct Watched {
    update: Statement,
    look: Statement,
    changed: usize,
}

/// Where a change's time goes, in the order of the flow.
struct Stages {
    /// Commit returned → request arrived: wake, dispatch, render, send. Negative where the worker was quicker than
    /// the client.
    request_ms: f64,
    /// In the API.
    api_ms: f64,
    /// Answer sent → seen: receive, decode, store, commit, look.
    store_ms: f64,
    total_ms: f64,
}

struct Measured {
    variant: usize,
    round: usize,
    stages: Stages,
}

const NAMES: [&str; 4] = ["HNSW", "no index", "HNSW, held", "no index, held"];

impl Side {
    fn start(rows: usize, held: bool) -> Side {
        let cluster = Cluster::start(SETTINGS);
        let connect = || cluster.connect("postgres");
        let (mut client, mut watcher, holder) = (connect(), connect(), connect());
        let api = Loopback::start();
        client.run("CREATE EXTENSION recsync CASCADE");
        client.run(&format!(
            "CREATE SERVER loopback FOREIGN DATA WRAPPER recsync OPTIONS (api 'openai', url '{}',
             model 'loopback', dimensions '{DIMENSIONS}', api_key_env 'TEST_API_KEY')",
            api.url()
        ));
        let tables = ["hnsw", "none"].map(|index| {
            let table = format!("item_{index}");
            client.run(&format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, title text NOT NULL);
                 INSERT INTO {table} SELECT n, 'Item ' || n || ': ' || md5(n::text) || md5((-n)::text)
                   FROM generate_series(1, {rows}) n"
            ));
            let started = Instant::now();
            client.run(&format!(
                "SELECT recsync.create_pipeline('{table}_embedding', '{table}', index => '{index}',
                        columns => '{{title}}', server => 'loopback')"
            ));
            let count = format!("SELECT count(*) FROM {table}_embedding");
            let wait = format!("SELECT recsync.wait_for('{table}_embedding', '1 h')");
            support::wait_until(BACKFILL, "the backfill", || {
                client.one::<bool>(&wait) && client.one::<i64>(&count) == rows as i64
            });
            let took = started.elapsed().as_secs_f64();
            let per_second = rows as f64 / took;
            println!("backfill, index {index}: {rows} rows in {took:.2} s, {per_second:.0} rows/s");
            client.run(&format!("VACUUM ANALYZE {table}"));
            client.run(&format!("VACUUM ANALYZE {table}_embedding_g1"));
            Watched {
                update: prepare(
                    &mut client,
                    format!("UPDATE {table} SET title = $1 WHERE id = $2"),
                ),
                look: prepare(
                    &mut watcher,
                    format!("SELECT content_hash FROM {table}_embedding WHERE id = $1"),
                ),
                changed: 0,
            }
        });
        client.run("CHECKPOINT");
        Side {
            held,
            api,
            client,
            watcher,
            holder,
            held_id: None,
            tables: tables.into(),
            cluster,
            rows,
        }
    }

    /// Opens the transaction, if this side has one.
    fn hold(&mut self) {
        if self.held {
            self.holder.run("BEGIN");
            self.held_id = Some(self.holder.one("SELECT pg_current_xact_id()::text"));
        }
    }

    /// That the transaction was there all the time, and that nothing went wrong.
    fn finish(&mut self) {
        let id: Option<String> = self
            .holder
            .one("SELECT pg_current_xact_id_if_assigned()::text");
        assert_eq!(id, self.held_id, "the transaction was not held throughout");
        let states: Vec<String> = self
            .client
            .column("SELECT state FROM recsync.status WHERE dead = 0");
        assert_eq!(
            states,
            ["running", "running"],
            "the server's log:\n{}",
            self.cluster.log()
        );
    }

    /// Changes one row and waits until its new vector is seen.
    fn change(&mut self, index: usize) -> Stages {
        sleep(PAUSE);
        let table = &mut self.tables[index];
        table.changed += 1;
        let id = 1 + (table.changed * 7_919 % self.rows) as i32;
        let title = format!("Item {id} of table {index}, by change {}", table.changed);
        let before: Vec<u8> = self.watcher.query_one(&table.look, &[&id]).unwrap().get(0);
        drop(self.api.take());
        self.client.execute(&table.update, &[&title, &id]).unwrap();
        let committed = Instant::now();
        let seen = loop {
            let now: Vec<u8> = self.watcher.query_one(&table.look, &[&id]).unwrap().get(0);
            let looked = Instant::now();
            if now != before {
                break looked;
            }
            assert!(
                committed.elapsed() < PATIENCE,
                "not visible; the server's log:\n{}",
                self.cluster.log()
            );
            sleep(POLL);
        };
        let requests = self.api.take();
        assert_eq!(requests.len(), 1, "one request a change");
        assert_eq!(requests[0].inputs, 1);
        Stages {
            request_ms: signed_ms(committed, requests[0].arrived),
            api_ms: signed_ms(requests[0].arrived, requests[0].answered),
            store_ms: signed_ms(requests[0].answered, seen),
            total_ms: signed_ms(committed, seen),
        }
    }
}

fn report(measured: &[Measured]) {
    let times = |variant: usize, stage: fn(&Stages) -> f64| {
        let of = measured.iter().filter(|one| one.variant == variant);
        let mut times: Vec<f64> = of.map(|one| stage(&one.stages)).collect();
        times.sort_by(f64::total_cmp);
        times
    };
    println!("\ncommit → visible in ms, and p50 (p99) of its stages\n");
    println!(
        "| variant | changes | p50 | p90 | p99 | commit → request | in the API | answer → visible |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (variant, name) in NAMES.iter().enumerate() {
        let total = times(variant, |stages| stages.total_ms);
        let stage = |stage: fn(&Stages) -> f64| {
            let times = times(variant, stage);
            format!(
                "{:.2} ({:.2})",
                percentile(&times, 50),
                percentile(&times, 99)
            )
        };
        println!(
            "| {name} | {} | {:.2} | {:.2} | {:.2} | {} | {} | {} |",
            total.len(),
            percentile(&total, 50),
            percentile(&total, 90),
            percentile(&total, 99),
            stage(|stages| stages.request_ms),
            stage(|stages| stages.api_ms),
            stage(|stages| stages.store_ms)
        );
    }
    println!();
    for (index, name) in NAMES.iter().enumerate().take(2) {
        let ratio = |percent| {
            let of = |variant| percentile(&times(variant, |stages| stages.total_ms), percent);
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
fn write_csv(measured: &[Measured]) -> String {
    let mut csv =
        "variant,round,commit_to_request_ms,in_api_ms,answer_to_visible_ms,total_ms\n".to_owned();
    for Measured {
        variant,
        round,
        stages,
    } in measured
    {
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

fn prepare(client: &mut Client, sql: String) -> Statement {
    client.prepare(&sql).unwrap()
}

/// From one moment to another, which may be the earlier.
fn signed_ms(from: Instant, to: Instant) -> f64 {
    let later = to.saturating_duration_since(from).as_secs_f64();
    (later - from.saturating_duration_since(to).as_secs_f64()) * 1000.0
}
