//! What recsync.search finds by an index of what a search of all vectors finds, and how long it takes.

use std::time::Instant;

use postgres::Client;

use crate::bench::embedder::Embedder;
use crate::bench::indexes::{size, wait_for_index};
use crate::bench::setting::percentile;
use crate::bench::tables::table;
use crate::support::Sql;
use crate::texts::query;
use crate::{DIMENSIONS, INDEXES, Sizes, add_rows, create, loopback, settle, start};

const K: usize = 10;

pub fn run(sizes: &Sizes) {
    let api = loopback();
    let server = api.server("api", &["max_batch_inputs '256'"]);
    measure("clustered", &server, sizes.rows, sizes);
    match Embedder::start() {
        Some(model) => measure(
            "all-MiniLM-L6-v2",
            &model.server("api"),
            sizes.model_rows,
            sizes,
        ),
        None => println!("\nno vectors of a model: LOCAL_EMBEDDER and MODEL_DIR name none"),
    }
}

/// Three pipelines of one table: the vectors of the first are copied to the others, so that they are asked for once.
fn measure(vectors: &str, server: &str, rows: usize, sizes: &Sizes) {
    let (_cluster, mut client) = start();
    client.run(server);
    add_rows(&mut client, 1, rows);
    client.run(&create("none", "none"));
    settle(&mut client, "none");
    for index in INDEXES {
        client.run(&format!(
            "BEGIN; {}; INSERT INTO {index}_g1 SELECT * FROM none_g1; COMMIT",
            create(index, index)
        ));
        settle(&mut client, index);
        wait_for_index(&mut client, &format!("{index}_g1"));
    }
    for name in ["item", "none_g1", "hnsw_g1", "hnsw_bit_g1"] {
        client.run(&format!("VACUUM ANALYZE {name}"));
    }
    let (exact, times) = ask_all(&mut client, "none", sizes);
    let mut lines = vec![line("none", &times, "1 by definition", 0)];
    for index in INDEXES {
        let (found, times) = ask_all(&mut client, index, sizes);
        let common = found.iter().zip(&exact);
        let common = common.map(|(found, exact)| found.iter().filter(|item| exact.contains(item)));
        let common: usize = common.map(Iterator::count).sum();
        let all: usize = exact.iter().map(Vec::len).sum();
        let bytes = size(&mut client, &format!("{index}_g1"));
        let recall = format!("{:.3}", common as f64 / all as f64);
        lines.push(line(index, &times, &recall, bytes));
    }
    table(
        &format!(
            "search, {vectors} vectors: {rows} rows, {DIMENSIONS} dimensions, k = {K}, {} queries whose vector the session knows",
            sizes.queries
        ),
        "index | recall | p50 ms | p99 ms | MB",
        &lines,
    );
}

fn line(index: &str, times: &[f64], recall: &str, bytes: i64) -> String {
    format!(
        "{index} | {recall} | {:.2} | {:.2} | {:.1}",
        percentile(times, 50),
        percentile(times, 99),
        bytes as f64 / 1e6
    )
}

/// Each query once for its vector, and once for its time: what it has found; the times in ms, in ascending order.
fn ask_all(client: &mut Client, pipeline: &str, sizes: &Sizes) -> (Vec<Vec<String>>, Vec<f64>) {
    let search = format!("SELECT item FROM recsync.search($1, $2, {K})");
    let search = client.prepare(&search).unwrap();
    let (mut found, mut times) = (Vec::new(), Vec::new());
    for number in 0..sizes.queries {
        let text = query(number);
        client.query(&search, &[&pipeline, &text]).unwrap();
        let started = Instant::now();
        let rows = client.query(&search, &[&pipeline, &text]).unwrap();
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        found.push(rows.iter().map(|row| row.get(0)).collect());
    }
    times.sort_by(f64::total_cmp);
    (found, times)
}
