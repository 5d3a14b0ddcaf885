//! A load into an empty table, with the index built before it, as somebody may make it, or after it, as recsync does; and
//! more rows into the index that is there.

use std::time::Instant;

use crate::bench::indexes::{size, wait_for_index};
use crate::bench::tables::table;
use crate::support::Sql;
use crate::{DIMENSIONS, INDEXES, Sizes, add_rows, create, loopback, settle, start};

/// The index that recsync would build, made by hand.
fn by_hand(index: &str) -> String {
    let key = match index {
        "hnsw" => "embedding vector_cosine_ops".to_owned(),
        _ => format!("(binary_quantize(embedding)::bit({DIMENSIONS})) bit_hamming_ops"),
    };
    format!("CREATE INDEX ON item_embedding_g1 USING hnsw ({key})")
}

pub fn run(sizes: &Sizes) {
    let mut loads = Vec::new();
    let mut inserts = Vec::new();
    for index in INDEXES {
        loads.push(load(sizes, index, true, &mut inserts));
    }
    for index in ["none", INDEXES[0], INDEXES[1]] {
        loads.push(load(sizes, index, false, &mut inserts));
    }
    table(
        &format!(
            "{} rows into an empty table, {DIMENSIONS} dimensions, clustered vectors",
            sizes.rows
        ),
        "index | rows/s until all are visible | s until then | s until the index is there, too | MB",
        &loads,
    );
    let title = format!("{} more rows into that", sizes.more);
    table(&title, "index | rows/s", &inserts);
}

/// A row of the first table; and one of the second, where the index is recsync's.
fn load(sizes: &Sizes, index: &str, before: bool, inserts: &mut Vec<String>) -> String {
    let api = loopback();
    let (_cluster, mut client) = start();
    client.run(&api.server("api", &["max_batch_inputs '256'"]));
    add_rows(&mut client, 1, sizes.rows);
    client.run("VACUUM ANALYZE item");
    client.run("CHECKPOINT");
    let by_hand = if before {
        by_hand(index)
    } else {
        String::new()
    };
    let create = create("item_embedding", index);
    let started = Instant::now();
    client.run(&format!("BEGIN; {create}; {by_hand}; COMMIT"));
    settle(&mut client, "item_embedding");
    let visible = started.elapsed().as_secs_f64();
    let mut bytes = 0;
    if index != "none" {
        wait_for_index(&mut client, "item_embedding_g1");
        bytes = size(&mut client, "item_embedding_g1");
    }
    let indexed = started.elapsed().as_secs_f64();
    if !before {
        client.run("VACUUM ANALYZE item_embedding_g1");
        client.run("CHECKPOINT");
        add_rows(&mut client, sizes.rows + 1, sizes.rows + sizes.more);
        let took = settle(&mut client, "item_embedding");
        inserts.push(format!("{index} | {:.0}", sizes.more as f64 / took));
    }
    let when = if before { "before" } else { "after" };
    format!(
        "{index}, {when} the load | {:.0} | {visible:.2} | {indexed:.2} | {:.1}",
        sizes.rows as f64 / visible,
        bytes as f64 / 1e6
    )
}
