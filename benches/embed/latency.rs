//! A single change until its vector is visible: nothing else to do, a transaction held open, a backfill in another
//! pipeline. What the API takes is measured with each change and left out.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::bench::indexes::wait_for_index;
use crate::bench::loopback::Vectors;
use crate::bench::tables::table;
use crate::bench::visible::{HEAD, NAMES, Side, Stages, row, take_turns};
use crate::figures::Figures;
use crate::support::{Sql, wait_until};
use crate::{SETTINGS, Sizes, add_rows, fill, settle};

pub const PART: &str = "latency";
pub const OWN: &str = "ms without the API";

pub const IDLE: [&str; 2] = [NAMES[0], NAMES[1]];
pub const HELD: [&str; 2] = [NAMES[2], NAMES[3]];
/// A backfill that inserts into an index that is there, and one into a table that was empty.
pub const INTO_INDEX: [&str; 2] = ["HNSW, backfill", "no index, backfill"];
pub const INTO_EMPTY: [&str; 2] = ["HNSW, first backfill", "no index, first backfill"];

/// What PostgreSQL takes to write a vector that is ready, after a wait as long as that for the API.
pub const PLAIN: [&str; 2] = ["UPDATE by hand, HNSW", "UPDATE by hand, no index"];

const ROUNDS: usize = 10;
const DIMENSIONS: usize = 384;
/// That the other pipeline has before its backfill, so that its index is one.
const BEFORE: usize = 1_000;

pub fn run(sizes: &Sizes, figures: &mut Figures) {
    let start = |held| {
        let api = sizes.api(DIMENSIONS, Vectors::Random);
        Side::start(SETTINGS, api, sizes.rows, held)
    };
    let mut sides = [false, true].map(start);
    sides.iter_mut().for_each(Side::warm_up);
    let taken = take_turns(&mut sides, ROUNDS, sizes.changes);
    let variants = NAMES.iter().enumerate().map(|(variant, name)| {
        let of = taken.iter().filter(|(its, ..)| *its == variant);
        (*name, of.map(|(_, _, stages)| *stages).collect())
    });
    let mut measured: Vec<(&str, Vec<Stages>)> = variants.collect();
    let [mut side, held] = sides;
    drop(held);
    for names in [INTO_INDEX, INTO_EMPTY] {
        let changes = while_backfilling(&mut side, names == INTO_INDEX, sizes);
        measured.extend(names.into_iter().zip(changes));
    }
    side.finish();
    for (name, index) in PLAIN.into_iter().zip(["hnsw", "none"]) {
        measured.push((name, plain(&mut side, index, sizes)));
    }
    let rows = measured.iter();
    let rows = rows.map(|(name, changes)| row(name, changes, Stages::own_ms));
    table(
        "commit → visible without the API, in ms, and p50 (p99) of its stages",
        HEAD,
        &rows.collect::<Vec<_>>(),
    );
    for (name, changes) in measured {
        for stages in changes {
            figures.add(PART, name, OWN, stages.own_ms());
            figures.add(PART, name, "ms commit to request", stages.request_ms);
            figures.add(PART, name, "ms in the API", stages.api_ms);
            figures.add(PART, name, "ms answer to visible", stages.store_ms);
        }
    }
}

/// Changes of both tables in turn, as long as a backfill runs in a pipeline of its own, server and API included.
fn while_backfilling(side: &mut Side, into_index: bool, sizes: &Sizes) -> [Vec<Stages>; 2] {
    let other = sizes.api(DIMENSIONS, Vectors::Random);
    let client = &mut side.client;
    let before = if into_index { BEFORE } else { 0 };
    client.run(&other.server("other", &["max_batch_inputs '256'"]));
    let create = "SELECT recsync.create_pipeline('bulk_embedding', 'bulk', columns => '{title}', server => 'other')";
    if into_index {
        fill(client, "bulk", before);
        client.run(create);
        settle(client, "bulk_embedding");
        wait_for_index(client, "bulk_embedding_g1");
        client.run("SELECT recsync.pause('bulk_embedding')");
        add_rows(client, "bulk", before + 1, before + sizes.backfill_rows);
        client.run("CHECKPOINT");
        client.run("SELECT recsync.resume('bulk_embedding')");
    } else {
        fill(client, "bulk", sizes.backfill_rows);
        client.run("CHECKPOINT");
        client.run(create);
    }
    let count = "SELECT count(*) FROM bulk_embedding";
    wait_until(Duration::from_secs(60), "the backfill stores", || {
        client.one::<i64>(count) > before as i64
    });
    let mut measured = [Vec::new(), Vec::new()];
    let state = "SELECT state FROM recsync.status WHERE name LIKE '%bulk_embedding'";
    while measured[1].len() < sizes.changes && side.client.one::<String>(state) != "running" {
        for (index, changes) in measured.iter_mut().enumerate() {
            changes.push(side.tables[index].change(&side.api));
        }
    }
    let client = &mut side.client;
    let stored = client.one::<i64>(count) - before as i64;
    println!(
        "{} changes of each table while {stored} of {} rows were backfilled",
        measured[0].len(),
        sizes.backfill_rows
    );
    client.run("SELECT recsync.drop_pipeline('bulk_embedding')");
    client.run("DROP TABLE bulk; DROP SERVER other");
    measured
}

/// Vectors that are ready, written one by one into a pipeline's table by a session that has nothing else to do.
fn plain(side: &mut Side, index: &str, sizes: &Sizes) -> Vec<Stages> {
    let client = &mut side.client;
    let count = sizes.changes;
    client.run(&format!(
        "DROP TABLE IF EXISTS ready;
         CREATE TABLE ready AS SELECT i::int AS n, ARRAY(SELECT random() - 0.5 + 0 * i FROM generate_series(1, {DIMENSIONS}))::vector AS embedding
           FROM generate_series(1, {count}) i;
         ALTER TABLE ready ADD PRIMARY KEY (n)"
    ));
    let write = client
        .prepare(&format!(
            "UPDATE item_{index}_embedding_g1 SET embedding = (SELECT embedding FROM ready WHERE n = $1), embedded_at = clock_timestamp()
              WHERE id = $2"
        ))
        .unwrap();
    let write = |n: usize| {
        sleep(sizes.delay);
        let (n, id) = (n as i32, 1 + (n * 7_919 % sizes.rows) as i32);
        let started = Instant::now();
        assert_eq!(client.execute(&write, &[&n, &id]).unwrap(), 1);
        let took = started.elapsed().as_secs_f64() * 1e3;
        Stages {
            request_ms: 0.0,
            api_ms: 0.0,
            store_ms: took,
            total_ms: took,
        }
    };
    (1..=count).map(write).collect()
}
