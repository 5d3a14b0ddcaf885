//! How long those who watch wait: recsync's views and functions at a thousand pipelines and ten million jobs. See
//! benches/README.md.
//!
//! It never measures the work itself: the worker rests, and nothing is embedded.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod bench;

#[path = "../../tests/support/mod.rs"]
mod support;

use std::fmt::Write;
use std::time::Instant;

use bench::setting::{conditions, keep, load, percentile, size};
use bench::tables::{most, print_goals, table};
use support::{Api, Cluster, Database, Sql};

const SETTINGS: &[(&str, &str)] = &[
    ("shared_buffers", "2GB"),
    ("max_wal_size", "8GB"),
    ("recsync.enabled", "off"),
    // For the filling alone.
    ("maintenance_work_mem", "1GB"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
];

/// What is asked, and what must not take longer than this many milliseconds at p50.
const GOAL_MS: f64 = 20.0;
const LOOKS: &[(&str, &str)] = &[
    ("status", "SELECT * FROM recsync.status"),
    ("overview", "SELECT * FROM recsync.overview"),
    ("health()", "SELECT * FROM recsync.health()"),
    (
        "usage, today",
        "SELECT * FROM recsync.usage WHERE day = (now() AT TIME ZONE 'UTC')::date",
    ),
    (
        "usage, a pipeline's month",
        "SELECT * FROM recsync.usage WHERE pipeline = 'public.e500'",
    ),
    ("dead_letter", "SELECT * FROM recsync.dead_letter"),
    ("errors", "SELECT * FROM recsync.errors"),
    ("generation", "SELECT * FROM recsync.generation"),
    ("list_cache", "SELECT * FROM recsync.list_cache"),
    ("metrics()", "SELECT recsync.metrics()"),
];

fn main() {
    let (pipelines, jobs) = (size("PIPELINES", 1_000), size("JOBS", 10_000_000));
    println!("{}\n", conditions(SETTINGS));
    let cluster = Cluster::start(SETTINGS);
    let api = Api::start();
    let mut db = cluster.database();
    fill(&mut db, &api, pipelines, jobs);
    println!(
        "{pipelines} pipelines, {jobs} jobs; load average: {}\n",
        load()
    );
    let mut goals = Vec::new();
    let mut rows = Vec::new();
    let mut csv = String::from("what,ms\n");
    for (name, query) in LOOKS {
        let times = times(&mut db, query, size("LOOKS", 50));
        let (p50, p99) = (percentile(&times, 50), percentile(&times, 99));
        rows.push(format!("{name} | {p50:.1} | {p99:.1}"));
        goals.push(most(format!("{name}: p50 in ms"), GOAL_MS, p50));
        for ms in times {
            let _ = writeln!(csv, "{name},{ms:.3}");
        }
    }
    table("a look, in ms", "what | p50 | p99", &rows);
    println!();
    print_goals(&goals);
    println!("\n{}", keep("observe.csv", &csv).display());
    println!("load average now: {}", load());
}

/// Sorted, in milliseconds, after one that is not counted.
fn times(db: &mut Database, query: &str, count: usize) -> Vec<f64> {
    let mut times: Vec<f64> = (0..=count)
        .map(|_| {
            let start = Instant::now();
            db.rows(query);
            start.elapsed().as_secs_f64() * 1_000.0
        })
        .skip(1)
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

/// One pipeline as users make it, and copies of it in recsync's tables, with relations of their own; for each a month in
/// the ledger and its share of the jobs, and for each tenth ten dead letters.
fn fill(db: &mut Database, api: &Api, pipelines: usize, jobs: usize) {
    db.items(api, "price_per_million_tokens '1', monthly_budget '1000'");
    db.run(&format!(
        "INSERT INTO recsync.pipeline
         SELECT (jsonb_populate_record(p, jsonb_build_object('id', 100000 + i, 'relation', 'public.e' || i, 'vectors', 'public.e' || i || '_g1'))).*
           FROM recsync.pipeline p, generate_series(1, {pipelines} - 1) i"
    ));
    db.run(&format!(
        "DO $$ BEGIN FOR i IN 1 .. {pipelines} - 1 LOOP
             EXECUTE format('CREATE TABLE e%s_g1 (id int); CREATE VIEW e%s AS SELECT * FROM e%s_g1', i, i, i);
             IF i % 100 = 0 THEN COMMIT; END IF;
         END LOOP; END $$"
    ));
    db.run(
        "SET session_replication_role = replica;
         INSERT INTO recsync.backfill (pipeline_id, done, finished_at, round, total) SELECT id, 10, now(), 1, 10 FROM recsync.pipeline ON CONFLICT DO NOTHING;
         INSERT INTO recsync.usage_day
         SELECT p.id, 'api', 'test', 'USD', date_trunc('month', now() AT TIME ZONE 'UTC')::date + d, 10, 0, 100, 1000, 1000, 0, 0.001, 5, 5, 0.000005, 5, 5, 0.00005, 5, 5, 0.00005
           FROM recsync.pipeline p, generate_series(0, 29) d;
         INSERT INTO recsync.dead_letter_log (pipeline_id, record_key, attempt, class, status, message)
         SELECT p.id, ARRAY[i::text], 3, 'permanent', 400, 'no' FROM recsync.pipeline p, generate_series(1, 10) i WHERE p.id % 10 = 0;
         INSERT INTO recsync.usage_month
         SELECT date_trunc('month', day::timestamp)::date, pipeline_id, server, currency, sum(tokens), sum(cost),
                sum(coalesced_tokens + unchanged_tokens + known_tokens), sum(coalesced_cost + unchanged_cost + known_cost)
           FROM recsync.usage_day GROUP BY 1, 2, 3, 4;
         RESET session_replication_role"
    );
    // In one transaction, so that the worker does not look at the jobs while they have no index.
    db.run(&format!(
        "SET session_replication_role = replica;
         ALTER TABLE recsync.job DROP CONSTRAINT job_pkey;
         DROP INDEX recsync.job_due;
         INSERT INTO recsync.job (pipeline_id, record_key) SELECT p.id, ARRAY[i::text] FROM recsync.pipeline p, generate_series(1, {jobs} / {pipelines}) i;
         ALTER TABLE recsync.job ADD PRIMARY KEY (pipeline_id, record_key);
         CREATE INDEX job_due ON recsync.job (pipeline_id, available_at, record_key) WHERE leased_until IS NULL;
         RESET session_replication_role"
    ));
    // Alone: not in a transaction with others.
    db.run("VACUUM ANALYZE recsync.job");
    db.run("ANALYZE");
    // The worker takes them up once; what it finds is of no interest here.
    db.run("SELECT pg_reload_conf()");
}
