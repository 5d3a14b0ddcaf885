//! Many rows at once, without an index: rows that were there before the pipeline, and one transaction that changes all
//! of them. The limit is what PostgreSQL does with vectors that are ready: INSERT … SELECT and UPDATE by one session.

use std::time::Instant;

use postgres::Client;

use crate::bench::loopback::{Loopback, Vectors};
use crate::bench::tables::table;
use crate::figures::Figures;
use crate::support::Sql;
use crate::{SETTINGS, Sizes, fill_with, settle, start};

pub const PART: &str = "drain";
pub const ROWS: &str = "rows/s";

pub const DIMENSIONS: [usize; 2] = [384, 1_536];
pub const CONCURRENCY: [usize; 2] = [8, 16];

/// Rows that were there, and rows that change.
#[derive(Clone, Copy)]
pub enum Mode {
    Backfill,
    Changes,
}

pub const MODES: [Mode; 2] = [Mode::Backfill, Mode::Changes];

/// Inputs of a request at most.
const BATCH: usize = 256;

impl Mode {
    pub fn label(self) -> &'static str {
        match self {
            Mode::Backfill => "backfill",
            Mode::Changes => "changes",
        }
    }

    /// What it is compared with.
    pub fn limit(self) -> &'static str {
        match self {
            Mode::Backfill => "INSERT … SELECT",
            Mode::Changes => "UPDATE",
        }
    }

    /// The name of a variant; without requests, that of the limit.
    pub fn variant(self, dimensions: usize, concurrency: Option<usize>) -> String {
        match concurrency {
            Some(most) => format!("{}, {dimensions} dimensions, {most} requests", self.label()),
            None => format!("{}, {dimensions} dimensions", self.limit()),
        }
    }
}

pub fn run(sizes: &Sizes, figures: &mut Figures) {
    let (_cluster, mut client) = start(SETTINGS);
    for dimensions in DIMENSIONS {
        let api = sizes.api(dimensions, Vectors::Random);
        for concurrency in CONCURRENCY {
            let (inputs, most) = (
                format!("max_batch_inputs '{BATCH}'"),
                format!("max_concurrency '{concurrency}'"),
            );
            client.run(&api.server("loopback", &[&inputs, &most]));
            // Texts that no other variant has.
            let seed = format!("'{concurrency} ' || n");
            fill_with(&mut client, "item", sizes.drain_rows, &seed);
            for mode in MODES {
                let variant = mode.variant(dimensions, Some(concurrency));
                let rows = sizes.drain_rows;
                drain(&mut client, &api, mode, &variant, rows, figures);
            }
            if Some(&concurrency) == CONCURRENCY.last() {
                plain(&mut client, dimensions, sizes.drain_rows, figures);
            }
            client.run("SELECT recsync.drop_pipeline('item_embedding')");
            client.run("DROP TABLE item; DROP SERVER loopback");
        }
    }
    print(figures);
}

fn drain(
    client: &mut Client,
    api: &Loopback,
    mode: Mode,
    variant: &str,
    rows: usize,
    figures: &mut Figures,
) {
    client.run("CHECKPOINT");
    drop(api.take());
    let started = match mode {
        Mode::Backfill => {
            let started = Instant::now();
            client.run(
                "SELECT recsync.create_pipeline('item_embedding', 'item', index => 'none',
                        columns => '{title}', server => 'loopback')",
            );
            started
        }
        Mode::Changes => {
            client.run("VACUUM ANALYZE item_embedding_g1");
            client.run("UPDATE item SET title = 'Changed: ' || title");
            Instant::now()
        }
    };
    settle(client, "item_embedding");
    let took = started.elapsed().as_secs_f64();
    let newest = "SELECT count(*) FROM item_embedding";
    assert_eq!(client.one::<i64>(newest) as usize, rows, "a vector a row");
    let requests = api.take();
    let inputs: usize = requests.iter().map(|request| request.inputs).sum();
    assert_eq!(inputs, rows, "an input a row");
    figures.add(PART, variant, ROWS, rows as f64 / took);
    figures.add(PART, variant, "requests", requests.len() as f64);
    figures.add(PART, variant, "inputs a row", inputs as f64 / rows as f64);
}

/// The same vectors, ready in a table, written by one statement into one like the pipeline's.
fn plain(client: &mut Client, dimensions: usize, rows: usize, figures: &mut Figures) {
    client.run(
        "CREATE TABLE ready AS SELECT * FROM item_embedding_g1 ORDER BY id;
         CREATE TABLE plain (LIKE item_embedding_g1 INCLUDING ALL)",
    );
    let insert = "INSERT INTO plain SELECT * FROM ready";
    let update = "UPDATE plain p SET embedding = r.embedding, content_hash = r.content_hash, model = r.model,
                         embedded_at = clock_timestamp() FROM ready r WHERE r.id = p.id";
    for (mode, statement) in MODES.into_iter().zip([insert, update]) {
        client.run("VACUUM ANALYZE ready");
        client.run("VACUUM ANALYZE plain");
        client.run("CHECKPOINT");
        let started = Instant::now();
        client.run(statement);
        let took = started.elapsed().as_secs_f64();
        figures.add(
            PART,
            mode.variant(dimensions, None),
            ROWS,
            rows as f64 / took,
        );
    }
    client.run("DROP TABLE ready, plain");
}

fn print(figures: &Figures) {
    let mut rows = Vec::new();
    for mode in MODES {
        for dimensions in DIMENSIONS {
            let limit = mode.variant(dimensions, None);
            let most = figures.one(PART, &limit, ROWS);
            for concurrency in CONCURRENCY {
                let variant = mode.variant(dimensions, Some(concurrency));
                let rate = figures.one(PART, &variant, ROWS);
                let [requests, inputs] = ["requests", "inputs a row"]
                    .map(|measure| figures.one(PART, &variant, measure));
                let share = rate / most;
                rows.push(format!(
                    "{variant} | {rate:.0} | {share:.2} | {requests} | {inputs:.2}"
                ));
            }
            rows.push(format!("{limit} | {most:.0} | 1.00 | | "));
        }
    }
    let head = "variant | rows/s | limit = 1 | requests | inputs a row";
    table("drain, no index", head, &rows);
}
