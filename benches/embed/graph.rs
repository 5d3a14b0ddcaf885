//! Many rows at once into an index that is there: recsync, and INSERT … SELECT of the same vectors, ready, into the same
//! kind of index by as many sessions as recsync has processes that store.

use std::thread;
use std::time::Instant;

use crate::bench::indexes::wait_for_index;
use crate::bench::loopback::Vectors;
use crate::bench::tables::table;
use crate::figures::Figures;
use crate::support::{Cluster, Sql};
use crate::{SETTINGS, Sizes, add_rows, fill, settle, start};

pub const PART: &str = "graph";
pub const ROWS: &str = "rows/s";

pub const KINDS: [Vectors; 2] = [Vectors::Clustered, Vectors::Random];
const DIMENSIONS: usize = 384;
/// Rows that are in the index before.
const BEFORE: usize = 1_000;

/// The variants of a kind of vectors: recsync's and the limit.
pub fn variants(kind: Vectors) -> [String; 2] {
    let kind = kind.label();
    [
        format!("recsync, {kind}"),
        format!("INSERT … SELECT, {kind}"),
    ]
}

pub fn run(sizes: &Sizes, figures: &mut Figures) {
    let (cluster, mut client) = start(SETTINGS);
    // Not there in a recsync that stores in one process only.
    let writers = "SELECT COALESCE(current_setting('recsync.max_writers', true), '0')::int";
    let sessions = 1 + client.one::<i32>(writers) as usize;
    let rows = sizes.graph_rows;
    for kind in KINDS {
        let api = sizes.api(DIMENSIONS, kind);
        client.run(&api.server("loopback", &["max_batch_inputs '256'"]));
        fill(&mut client, "item", BEFORE);
        client.run(
            "SELECT recsync.create_pipeline('item_embedding', 'item', index => 'hnsw',
                    columns => '{title}', server => 'loopback')",
        );
        settle(&mut client, "item_embedding");
        wait_for_index(&mut client, "item_embedding_g1");
        // Added while it is paused: a backfill, once it goes on, of a table that is not empty.
        client.run("SELECT recsync.pause('item_embedding')");
        add_rows(&mut client, "item", BEFORE + 1, BEFORE + rows);
        client.run("CHECKPOINT");
        let started = Instant::now();
        client.run("SELECT recsync.resume('item_embedding')");
        settle(&mut client, "item_embedding");
        let took = started.elapsed().as_secs_f64();
        let stored: i64 = client.one("SELECT count(*) FROM item_embedding");
        assert_eq!(stored as usize, BEFORE + rows, "a vector a row");
        let [recsync, plain] = variants(kind);
        figures.add(PART, recsync, ROWS, rows as f64 / took);
        client.run(&format!(
            "CREATE TABLE ready AS SELECT * FROM item_embedding_g1 ORDER BY id;
             CREATE TABLE plain (LIKE item_embedding_g1 INCLUDING ALL);
             INSERT INTO plain SELECT * FROM ready WHERE id <= {BEFORE}"
        ));
        client.run("VACUUM ANALYZE ready");
        client.run("CHECKPOINT");
        let took = insert(&cluster, sessions);
        figures.add(PART, plain, ROWS, rows as f64 / took);
        client.run("DROP TABLE ready, plain");
        client.run("SELECT recsync.drop_pipeline('item_embedding')");
        client.run("DROP TABLE item; DROP SERVER loopback");
    }
    let rows = KINDS.map(|kind| {
        let [recsync, plain] = variants(kind).map(|variant| figures.one(PART, &variant, ROWS));
        let kind = kind.label();
        format!(
            "{kind} | {recsync:.0} | {plain:.0} | {:.2}",
            recsync / plain
        )
    });
    let title = format!("drain, HNSW, {DIMENSIONS} dimensions, {sessions} processes that store");
    let head = "vectors | recsync, rows/s | INSERT … SELECT, rows/s | ratio";
    table(&title, head, &rows);
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
