//! A single change, from its commit until another connection sees the new vector. It never measures inside the server.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use postgres::{Client, Statement};

use super::indexes::wait_for_index;
use super::loopback::Loopback;
use super::setting::percentile;
use crate::support::{Cluster, Sql, wait_until};

/// Between two looks; with the query itself, a look every 0.25 ms.
const POLL: Duration = Duration::from_micros(100);
/// Between two changes: what is measured is a change that comes alone.
const PAUSE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(60);
const BACKFILL: Duration = Duration::from_secs(3600);
const WARM_UP: usize = 30;

/// A table whose changes are waited for.
pub struct Watched {
    table: String,
    rows: usize,
    client: Client,
    watcher: Client,
    update: Statement,
    look: Statement,
    changed: usize,
}

/// Where a change's time goes, in the order of the flow.
#[derive(Clone, Copy)]
pub struct Stages {
    /// Commit returned → request arrived: wake, dispatch, render, send. Negative where the worker was quicker than
    /// the client.
    pub request_ms: f64,
    /// In the API.
    pub api_ms: f64,
    /// Answer sent → seen: receive, decode, store, commit, look.
    pub store_ms: f64,
    pub total_ms: f64,
}

impl Stages {
    /// What it takes without the API.
    pub fn own_ms(&self) -> f64 {
        self.total_ms - self.api_ms
    }
}

impl Watched {
    /// Of `table (id, title)` with the ids 1 to `rows`; the pipeline's relation is `table_embedding`.
    pub fn new(cluster: &Cluster, table: &str, rows: usize) -> Watched {
        let (mut client, mut watcher) = (cluster.connect("postgres"), cluster.connect("postgres"));
        let update = format!("UPDATE {table} SET title = $1 WHERE id = $2");
        let look = format!("SELECT content_hash FROM {table}_embedding WHERE id = $1");
        Watched {
            table: table.to_owned(),
            rows,
            update: client.prepare(&update).unwrap(),
            look: watcher.prepare(&look).unwrap(),
            client,
            watcher,
            changed: 0,
        }
    }

    /// Changes one row and waits until its new vector is seen. Nobody else asks `api`.
    pub fn change(&mut self, api: &Loopback) -> Stages {
        sleep(PAUSE);
        self.changed += 1;
        let id = 1 + (self.changed * 7_919 % self.rows) as i32;
        let title = format!("Item {id} of {}, by change {}", self.table, self.changed);
        let before = self.hash(id);
        drop(api.take());
        self.client.execute(&self.update, &[&title, &id]).unwrap();
        let committed = Instant::now();
        let seen = loop {
            let now = self.hash(id);
            let looked = Instant::now();
            if now != before {
                break looked;
            }
            assert!(committed.elapsed() < PATIENCE, "not visible: {title}");
            sleep(POLL);
        };
        let requests = api.take();
        assert_eq!(requests.len(), 1, "one request a change");
        assert_eq!(requests[0].inputs, 1);
        Stages {
            request_ms: signed_ms(committed, requests[0].arrived),
            api_ms: signed_ms(requests[0].arrived, requests[0].answered),
            store_ms: signed_ms(requests[0].answered, seen),
            total_ms: signed_ms(committed, seen),
        }
    }

    fn hash(&mut self, id: i32) -> Vec<u8> {
        self.watcher.query_one(&self.look, &[&id]).unwrap().get(0)
    }
}

/// One cluster with a table with HNSW and one without; transactions held open in one do not touch the other.
pub struct Side {
    pub api: Loopback,
    pub client: Client,
    /// With HNSW, without an index.
    pub tables: [Watched; 2],
    held: bool,
    holder: Client,
    held_id: Option<String>,
    pub cluster: Cluster,
}

/// The variants: first those of the side without a held transaction.
pub const NAMES: [&str; 4] = ["HNSW", "no index", "HNSW, held", "no index, held"];

impl Side {
    /// Loads both tables and says how long that took.
    pub fn start(settings: &[(&str, &str)], api: Loopback, rows: usize, held: bool) -> Side {
        let cluster = Cluster::start(settings);
        let (mut client, holder) = (cluster.connect("postgres"), cluster.connect("postgres"));
        client.run("CREATE EXTENSION recsync CASCADE");
        client.run(&api.server("loopback", &[]));
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
            wait_until(BACKFILL, "the backfill", || {
                client.one::<bool>(&wait) && client.one::<i64>(&count) == rows as i64
            });
            let took = started.elapsed().as_secs_f64();
            let per_second = rows as f64 / took;
            println!("backfill, index {index}: {rows} rows in {took:.2} s, {per_second:.0} rows/s");
            if index == "hnsw" {
                let took = wait_for_index(&mut client, &format!("{table}_embedding_g1"));
                println!("its index: {:.2} s after that", took.as_secs_f64());
            }
            client.run(&format!("VACUUM ANALYZE {table}"));
            client.run(&format!("VACUUM ANALYZE {table}_embedding_g1"));
            Watched::new(&cluster, &table, rows)
        });
        client.run("CHECKPOINT");
        Side {
            api,
            client,
            tables,
            held,
            holder,
            held_id: None,
            cluster,
        }
    }

    /// Opens the transaction, if this side has one, and makes the changes that count for nothing.
    pub fn warm_up(&mut self) {
        // What loading has left to be written must not be written under the measured changes.
        let _ = Command::new("sync").status();
        if self.held {
            self.holder.run("BEGIN");
            self.held_id = Some(self.holder.one("SELECT pg_current_xact_id()::text"));
        }
        for index in 0..self.tables.len() {
            for _ in 0..WARM_UP {
                self.change(index);
            }
        }
    }

    pub fn change(&mut self, index: usize) -> Stages {
        self.tables[index].change(&self.api)
    }

    /// That the transaction was there all the time, and that nothing went wrong.
    pub fn finish(&mut self) {
        let id: Option<String> = self
            .holder
            .one("SELECT pg_current_xact_id_if_assigned()::text");
        assert_eq!(id, self.held_id, "the transaction was not held throughout");
        let states: Vec<String> = self
            .client
            .column("SELECT state FROM recsync.status WHERE dead = 0");
        let log = self.cluster.log();
        assert_eq!(states, ["running", "running"], "the server's log:\n{log}");
    }
}

/// `changes` changes of each of the four variants, which take turns in `rounds`: variant, round, stages.
pub fn take_turns(
    sides: &mut [Side; 2],
    rounds: usize,
    changes: usize,
) -> Vec<(usize, usize, Stages)> {
    let mut measured = Vec::new();
    for round in 0..rounds {
        for turn in 0..NAMES.len() {
            let variant = (round + turn) % NAMES.len();
            let (side, index) = (&mut sides[variant / 2], variant % 2);
            for _ in 0..(changes / rounds).max(1) {
                measured.push((variant, round, side.change(index)));
            }
        }
    }
    measured
}

/// A row of the table that [`HEAD`] begins; `time` is what the first columns are about.
pub fn row(name: &str, changes: &[Stages], time: fn(&Stages) -> f64) -> String {
    let total = sorted(changes, time);
    let stage = |stage: fn(&Stages) -> f64| {
        let times = sorted(changes, stage);
        let (p50, p99) = (percentile(&times, 50), percentile(&times, 99));
        format!("{p50:.2} ({p99:.2})")
    };
    format!(
        "{name} | {} | {:.2} | {:.2} | {:.2} | {} | {} | {}",
        total.len(),
        percentile(&total, 50),
        percentile(&total, 90),
        percentile(&total, 99),
        stage(|stages| stages.request_ms),
        stage(|stages| stages.api_ms),
        stage(|stages| stages.store_ms)
    )
}

pub const HEAD: &str =
    "variant | changes | p50 | p90 | p99 | commit → request | in the API | answer → visible";

/// In ascending order.
pub fn sorted(changes: &[Stages], time: fn(&Stages) -> f64) -> Vec<f64> {
    let mut times: Vec<f64> = changes.iter().map(time).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// From one moment to another, which may be the earlier.
fn signed_ms(from: Instant, to: Instant) -> f64 {
    let later = to.saturating_duration_since(from).as_secs_f64();
    (later - from.saturating_duration_since(to).as_secs_f64()) * 1000.0
}
