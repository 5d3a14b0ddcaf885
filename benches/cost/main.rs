//! What a catalogue's month costs: inputs, tokens and bytes that recsync sends, beside embedding every change and beside a
//! full reload every night. See benches/README.md.
//!
//! Both are reckoned from the same replay, with the same tokens and request bodies; recsync's figures are what a server on
//! the loopback address has received. It measures no times.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// The rows and their changes.
mod catalogue;

#[path = "../support/mod.rs"]
mod bench;

#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use postgres::Client;

use bench::loopback::{Loopback, Model, Vectors, tokens};
use bench::setting::{conditions, keep, size_or_quick};
use bench::tables::{most, print_goals, table};
use catalogue::{Catalogue, Change};
use support::{Cluster, Sql};

const SETTINGS: &[(&str, &str)] = &[("shared_buffers", "256MB"), ("max_wal_size", "4GB")];
const DIMENSIONS: usize = 384;
const NIGHTS: usize = 30;
/// Inputs of a request.
const BATCH: usize = 50;
/// Changes of a transaction of the shop's.
const TRANSACTION: usize = 10;

/// What goes to the provider.
#[derive(Clone, Copy, Default)]
struct Traffic {
    requests: usize,
    inputs: usize,
    tokens: usize,
    bytes: usize,
}

impl Traffic {
    fn add(&mut self, more: Traffic) {
        self.requests += more.requests;
        self.inputs += more.inputs;
        self.tokens += more.tokens;
        self.bytes += more.bytes;
    }

    /// Of these texts, in full requests as recsync writes them.
    fn of<'a>(texts: impl Iterator<Item = &'a str>) -> Traffic {
        let mut traffic = Traffic::default();
        let texts: Vec<&str> = texts.collect();
        for batch in texts.chunks(BATCH) {
            let body = serde_json::json!({"model": "loopback", "input": batch, "encoding_format": "base64"});
            traffic.add(Traffic {
                requests: 1,
                inputs: batch.len(),
                tokens: batch.iter().map(|text| tokens(text)).sum(),
                bytes: body.to_string().len(),
            });
        }
        traffic
    }

    fn row(&self, label: &str) -> String {
        let Traffic {
            requests,
            inputs,
            tokens,
            bytes,
        } = self;
        format!(
            "{label} | {requests} | {inputs} | {tokens} | {:.1}",
            *bytes as f64 / 1e6
        )
    }

    fn csv(&self, label: &str) -> String {
        let Traffic {
            requests,
            inputs,
            tokens,
            bytes,
        } = self;
        format!("{label},{requests},{inputs},{tokens},{bytes}\n")
    }
}

fn main() {
    let rows = size_or_quick("ROWS", 20_000, 1_000);
    let changes = size_or_quick("CHANGES", 200_000, 5_000);
    println!("{}", conditions(SETTINGS));
    let cluster = Cluster::start(SETTINGS);
    let mut client = cluster.connect("postgres");
    client.run("CREATE EXTENSION recsync CASCADE");
    let api = Loopback::start(Model {
        dimensions: DIMENSIONS,
        vectors: Vectors::Random,
        delay: Duration::from_millis(20),
    });
    let mut catalogue = Catalogue::new(rows, 1);
    load(&mut client, &api, &catalogue);
    let load = received(&api);
    let reckoned = Traffic::of(catalogue.texts());
    let error = reckoned.bytes as f64 / load.bytes as f64 - 1.0;
    assert!(
        error.abs() < 0.01,
        "a reload is reckoned {error:+.4} of what it is"
    );

    let started = Instant::now();
    let (every, nightly) = replay(&mut client, &mut catalogue, changes);
    settle(&mut client);
    let month = received(&api);
    eprintln!("replay: {:.0} s", started.elapsed().as_secs_f64());
    let new = catalogue.distinct() - rows;

    println!(
        "{rows} rows, {changes} changes, {new} of which ({:.1}%) give a new text",
        100.0 * new as f64 / changes as f64
    );
    let parts = [
        ("recsync, first load", load),
        ("recsync, the month's changes", month),
        ("(a) every change embedded", every),
        ("(b) 30 nightly reloads", nightly),
    ];
    let lines: Vec<String> = parts
        .iter()
        .map(|(label, traffic)| traffic.row(label))
        .collect();
    table("sent", "what | requests | inputs | tokens | MB", &lines);
    usage(&mut client, load, month);
    let whole = (load.bytes + month.bytes) as f64;
    print_goals(&[
        most(
            "the month's tokens, share of (a)",
            0.1,
            month.tokens as f64 / every.tokens as f64,
        ),
        most(
            "bytes, first load included, share of (b)",
            0.1,
            whole / nightly.bytes as f64,
        ),
    ]);
    let head = "what,requests,inputs,tokens,bytes\n".to_owned();
    let csv = parts.iter().map(|(label, traffic)| traffic.csv(label));
    let file = keep("cost.csv", &(head + &csv.collect::<String>()));
    println!("\n{}", file.display());
}

/// The table, its rows, the pipeline; until all is embedded.
fn load(client: &mut Client, api: &Loopback, catalogue: &Catalogue) {
    client.run(&api.server(
        "loopback",
        &["price_per_million_tokens '0.02'", "max_concurrency '4'"],
    ));
    client.run("CREATE TABLE product (id int PRIMARY KEY, description text NOT NULL, price int NOT NULL DEFAULT 0, stock int NOT NULL DEFAULT 0)");
    let texts: Vec<&str> = catalogue.texts().collect();
    let insert = "INSERT INTO product (id, description) SELECT n - 1, t FROM unnest($1::text[]) WITH ORDINALITY AS u (t, n)";
    client.execute(insert, &[&texts]).unwrap();
    client.run(
        "SELECT recsync.create_pipeline('product_embedding', 'product', columns => '{description}', server => 'loopback', index => 'none')",
    );
    settle(client);
}

/// The month: what embedding every change, and a reload every night, would have sent.
fn replay(client: &mut Client, catalogue: &mut Catalogue, changes: usize) -> (Traffic, Traffic) {
    let text = client
        .prepare("UPDATE product SET description = $2 WHERE id = $1")
        .unwrap();
    let stock = client
        .prepare("UPDATE product SET stock = stock + 1, price = price + 1 WHERE id = $1")
        .unwrap();
    let (mut every, mut nightly) = (Traffic::default(), Traffic::default());
    let mut done = 0;
    for night in 1..=NIGHTS {
        let day_ends = changes * night / NIGHTS;
        while done < day_ends {
            let count = TRANSACTION.min(day_ends - done);
            let mut transaction = client.transaction().unwrap();
            for _ in 0..count {
                let change = catalogue.change();
                let id = change.row() as i32;
                match &change {
                    Change::Text { text: new, .. } => transaction.execute(&text, &[&id, new]),
                    Change::Stock { .. } => transaction.execute(&stock, &[&id]),
                }
                .unwrap();
                every.add(Traffic::of(std::iter::once(catalogue.text(change.row()))));
            }
            transaction.commit().unwrap();
            done += count;
        }
        nightly.add(Traffic::of(catalogue.texts()));
    }
    (every, nightly)
}

/// What the API has had since the last call.
fn received(api: &Loopback) -> Traffic {
    let mut traffic = Traffic::default();
    for seen in api.take() {
        traffic.add(Traffic {
            requests: 1,
            inputs: seen.inputs,
            tokens: seen.tokens,
            bytes: seen.bytes,
        });
    }
    traffic
}

/// What recsync says of itself, which has to be what the API has had.
fn usage(client: &mut Client, load: Traffic, month: Traffic) {
    let row = client
        .query_one(
            "SELECT sum(requests)::bigint, sum(inputs)::bigint, sum(tokens)::bigint, sum(bytes)::bigint, sum(cost)::float8,
                    sum(coalesced)::bigint, sum(coalesced_tokens)::bigint, sum(unchanged)::bigint, sum(unchanged_tokens)::bigint,
                    sum(known)::bigint, sum(known_tokens)::bigint FROM recsync.usage",
            &[],
        )
        .unwrap();
    let number = |column: usize| row.get::<_, i64>(column) as usize;
    let mut all = load;
    all.add(month);
    let wanted = [all.requests, all.inputs, all.tokens, all.bytes];
    assert_eq!(
        [0, 1, 2, 3].map(number),
        wanted,
        "recsync.usage is what the API has had"
    );
    let cost: f64 = row.get(4);
    let saved = ["coalesced", "unchanged", "known"].iter().zip([5, 7, 9]);
    let lines: Vec<String> = saved
        .map(|(what, column)| format!("{what} | {} | {}", number(column), number(column + 1)))
        .collect();
    table(
        "saved, as recsync.usage has it",
        "what | changes or texts | tokens",
        &lines,
    );
    println!("\ncost: {cost:.4} USD at 0.02 a million tokens");
}

/// Until everything committed before is embedded.
fn settle(client: &mut Client) {
    assert!(client.one::<bool>("SELECT recsync.wait_for('product_embedding', '10 min')"));
}
