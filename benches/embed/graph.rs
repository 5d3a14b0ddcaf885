//! Many rows at once into an index that is there: recsync, and INSERT … SELECT of the same vectors, ready, into the same
//! kind of index by as many sessions as recsync has writers.

use std::thread;
use std::time::Instant;

use postgres::Client;

use crate::bench::indexes::wait_for_index;
use crate::bench::loopback::Vectors;
use crate::bench::tables::table;
use crate::figures::Figures;
use crate::support::{Cluster, Sql};
use crate::{SETTINGS, Sizes, add_rows, fill, settle, start};

pub const PART: &str = "graph";
pub const ROWS: &str = "rows/s";

pub const KINDS: [Vectors; 2] = [Vectors::Clustered, Vectors::Random];
pub const WRITERS: [usize; 2] = [1, 2];
const DIMENSIONS: usize = 384;
/// Rows that are in the index before.
const BEFORE: usize = 1_000;

/// The variants of a kind of vectors: recsync's and the limit.
pub fn variants(kind: Vectors, writers: usize) -> [String; 2] {
    let kind = kind.label();
    [
        format!("recsync, {kind}, {writers} writers"),
        format!("INSERT … SELECT, {kind}, {writers} sessions"),
    ]
}

pub fn run(sizes: &Sizes, figures: &mut Figures) {
    let (cluster, mut client) = start(SETTINGS);
    for kind in KINDS {
        for writers in WRITERS {
            measure(&cluster, &mut client, kind, writers, sizes, figures);
        }
    }
    let mut rows = Vec::new();
    for kind in KINDS {
        for writers in WRITERS {
            let [recsync, plain] =
                variants(kind, writers).map(|variant| figures.one(PART, &variant, ROWS));
            rows.push(format!(
                "{} | {writers} | {recsync:.0} | {plain:.0} | {:.2}",
                kind.label(),
                recsync / plain
            ));
        }
    }
    let title = format!("drain, HNSW, {DIMENSIONS} dimensions");
    let head = "vectors | writers, sessions | recsync, rows/s | INSERT … SELECT, rows/s | ratio";
    table(&title, head, &rows);
}

fn measure(
    cluster: &Cluster,
    client: &mut Client,
    kind: Vectors,
    writers: usize,
    sizes: &Sizes,
    figures: &mut Figures,
) {
    let rows = sizes.graph_rows;
    cluster.set("recsync.max_writers", &writers.to_string());
    let api = sizes.api(DIMENSIONS, kind);
    client.run(&api.server("loopback", &["max_batch_inputs '256'"]));
    fill(client, "item", BEFORE);
    client.run(
        "SELECT recsync.create_pipeline('item_embedding', 'item', index => 'hnsw',
                columns => '{title}', server => 'loopback')",
    );
    settle(client, "item_embedding");
    wait_for_index(client, "item_embedding_g1");
    // Added while it is paused: a backfill, once it goes on, of a table that is not empty.
    client.run("SELECT recsync.pause('item_embedding')");
    add_rows(client, "item", BEFORE + 1, BEFORE + rows);
    client.run("CHECKPOINT");
    let started = Instant::now();
    client.run("SELECT recsync.resume('item_embedding')");
    settle(client, "item_embedding");
    let took = started.elapsed().as_secs_f64();
    let stored: i64 = client.one("SELECT count(*) FROM item_embedding");
    assert_eq!(stored as usize, BEFORE + rows, "a vector a row");
    let [recsync, plain] = variants(kind, writers);
    figures.add(PART, recsync, ROWS, rows as f64 / took);
    client.run(&format!(
        "CREATE TABLE ready AS SELECT * FROM item_embedding_g1 ORDER BY id;
         CREATE TABLE plain (LIKE item_embedding_g1 INCLUDING ALL);
         INSERT INTO plain SELECT * FROM ready WHERE id <= {BEFORE}"
    ));
    client.run("VACUUM ANALYZE ready");
    client.run("CHECKPOINT");
    let took = insert(cluster, writers);
    figures.add(PART, plain, ROWS, rows as f64 / took);
    client.run("DROP TABLE ready, plain");
    client.run("SELECT recsync.drop_pipeline('item_embedding')");
    client.run("DROP TABLE item; DROP SERVER loopback");
}

/// Each session inserts its part, all at the same time; how long until the last one is done.
fn insert(cluster: &Cluster, sessions: usize) -> f64 {
    let mut clients: Vec<_> = (0..sessions).map(|_| cluster.connect("postgres")).collect();
    let started = Instant::now();
    thread::scope(|scope| {
        for (part, client) in clients.iter_mut().enumerate() {
            scope.spawn(move || {
                client.run(&format!(
                    "INSERT INTO plain SELECT * FROM ready WHERE id > {BEFORE} AND id % {sessions} = {part} ORDER BY id"
                ));
            });
        }
    });
    started.elapsed().as_secs_f64()
}
