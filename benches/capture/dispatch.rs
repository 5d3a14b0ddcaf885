//! From the log to jobs: a log of a million rows, each of a transaction of its own, is read by the worker's own
//! statements, and then by the worker. It looks at the worker from outside only: its CPU time and its checkpoint.
//!
//! Two clusters: in one of them another session has held a transaction with an id open since before the first row.

use std::time::Instant;

use postgres::types::{ToSql, Type};
use postgres::{Client, Statement, Transaction};

use crate::figures::{Figure, Figures};
use crate::support::{Cluster, Database, PATIENCE, Sql, wait_until};
use crate::variant;
use crate::worker::{Stopped, last_logged, wait_until_dispatched};
use crate::{SETTINGS, Sizes, cpu};

pub const READ: &str = "batch of 1,000 log rows";
pub const STRAGGLERS: &str = "rows of what was in progress";
pub const DISPATCH: &str = "dispatch";
/// Whether there is a held transaction.
pub const SIDES: [&str; 2] = ["no transaction held", "transaction held"];

const RANGE_SQL: &str = include_str!("../../src/dispatch/range.sql");
const STRAGGLERS_SQL: &str = include_str!("../../src/dispatch/stragglers.sql");

const BATCH: i64 = 1_000;
/// Each is changed as often as the others, so that there is something to coalesce.
const ROWS: usize = 10_000;

struct Side<'a> {
    name: &'static str,
    /// Before the database, which is not dropped while its worker is stopped.
    stopped: Option<Stopped>,
    db: Database<'a>,
    holder: Client,
    held: Option<String>,
    reader: Client,
    /// What the checkpoint had seen before the log was written.
    from: Snapshot,
}

struct Snapshot {
    xmax: String,
    in_progress: String,
}

pub fn run(sizes: &Sizes, figures: &mut Figures) {
    let clusters = [(); 2].map(|()| Cluster::start(SETTINGS));
    let mut sides: Vec<Side> = (0..2)
        .map(|index| Side::start(&clusters[index], SIDES[index], index == 1, sizes.log_rows))
        .collect();
    read(&mut sides, sizes.log_rows, figures);
    for side in &mut sides {
        side.dispatch(sizes.log_rows, figures);
        side.finish(sizes.log_rows);
    }
}

impl<'a> Side<'a> {
    fn start(cluster: &'a Cluster, name: &'static str, hold: bool, log_rows: usize) -> Side<'a> {
        let mut db = cluster.database();
        db.run(&format!(
            "CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin');
             CREATE TABLE item (id int PRIMARY KEY, title text NOT NULL);
             INSERT INTO item SELECT n, 'Item ' || n FROM generate_series(1, {ROWS}) n;
             CREATE PROCEDURE change(changes int) LANGUAGE plpgsql AS $$
             BEGIN
                 FOR n IN 1 .. changes LOOP
                     UPDATE item SET title = 'Change ' || n WHERE id = 1 + n % {ROWS};
                     COMMIT;
                 END LOOP;
             END $$"
        ));
        db.run(
            "SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'local',
                    index => 'none', backfill => false, capture => 'keys')",
        );
        let mut holder = db.connect();
        let held = hold.then(|| {
            holder.run("BEGIN");
            holder.one("SELECT pg_current_xact_id()::text")
        });
        // The checkpoint moves past a later transaction, and so knows of the one that is held.
        db.run("SELECT pg_current_xact_id()");
        assert!(db.one::<bool>("SELECT recsync.wait_for('item_embedding')"));
        let stopped = Some(Stopped::stop(&mut db));
        let row = &db.rows(
            "SELECT pg_snapshot_xmax(snapshot)::text, ARRAY(SELECT pg_snapshot_xip(snapshot))::text
               FROM recsync.checkpoint",
        )[0];
        let from = Snapshot {
            xmax: row.get(0),
            in_progress: row.get(1),
        };
        let in_progress = held.as_deref().unwrap_or_default();
        assert_eq!(from.in_progress, format!("{{{in_progress}}}"));
        let mut reader = db.connect();
        for setting in ["seqscan", "bitmapscan", "sort"] {
            reader.run(&format!("SET enable_{setting} = off"));
        }
        db.run("SET synchronous_commit = off");
        db.run(&format!("CALL change({log_rows})"));
        let logged: i64 = db.one(&format!("SELECT count(*) FROM ({}) l", variant::log()));
        assert_eq!(logged as usize, log_rows, "a log row for each transaction");
        db.run("CHECKPOINT");
        Side {
            name,
            stopped,
            db,
            holder,
            held,
            reader,
            from,
        }
    }

    /// The worker goes on, with `recsync.enabled = off`: it reads, coalesces, and writes down what it may not send.
    fn dispatch(&mut self, log_rows: usize, figures: &mut Figures) {
        let last = last_logged(&mut self.db);
        let stopped = self.stopped.take().unwrap();
        let worker = stopped.pid;
        let mut figure = Figure::new(DISPATCH, self.name, 1, log_rows);
        let used = cpu::used(worker);
        let started = Instant::now();
        drop(stopped);
        wait_until_dispatched(&mut self.db, &last);
        figure.wall_s = started.elapsed().as_secs_f64();
        figure.cpu_s = cpu::used(worker) - used;
        figures.add(figure);
        let jobs: i64 = self.db.one("SELECT count(*) FROM recsync.job");
        assert_eq!(
            jobs as usize,
            ROWS.min(log_rows),
            "a job for each changed row"
        );
    }

    /// That the transaction was there all the time, and that reading has left the log as it was.
    fn finish(&mut self, log_rows: usize) {
        let id: Option<String> = self
            .holder
            .one("SELECT pg_current_xact_id_if_assigned()::text");
        assert_eq!(id, self.held, "the transaction was not held throughout");
        wait_until(PATIENCE, "the statistics know the log", || {
            variant::log_inserts(&mut self.db) >= log_rows as i64
        });
        let dead = variant::log_statistic(&mut self.db, "n_dead_tup");
        assert_eq!(dead, 0, "dead tuples in the log");
    }
}

/// How far one side has been read, by a statement that stays prepared.
struct Reading<'a> {
    name: &'static str,
    backend: i32,
    transaction: Transaction<'a>,
    statement: Statement,
    upto: (String, String),
    last: (String, i64),
    rows: usize,
}

/// Both sides read their whole log in batches, in turn.
fn read(sides: &mut [Side], log_rows: usize, figures: &mut Figures) {
    let mut readings = Vec::new();
    for side in sides {
        let mut transaction = side.reader.transaction().unwrap();
        let now = "SELECT pg_snapshot_xmax(s)::text, s::text, pg_backend_pid() FROM pg_current_snapshot() s";
        let row = transaction.query_one(now, &[]).unwrap();
        let (upto, backend): ((String, String), i32) = ((row.get(0), row.get(1)), row.get(2));
        look_for_stragglers(side.name, &mut transaction, &side.from, &upto.1, figures);
        let types = [Type::TEXT, Type::INT8, Type::TEXT, Type::TEXT, Type::INT8];
        let statement = transaction.prepare_typed(RANGE_SQL, &types).unwrap();
        // Where the worker begins: just before everything that had no id yet.
        let before = side.from.xmax.parse::<u64>().unwrap() - 1;
        readings.push(Reading {
            name: side.name,
            backend,
            transaction,
            statement,
            upto,
            last: (before.to_string(), i64::MAX),
            rows: 0,
        });
    }
    let mut round = 0;
    let mut more = true;
    while more {
        round += 1;
        more = false;
        for reading in &mut readings {
            let figure = reading.next_batch(round);
            // The last, short ones are no batches of 1,000.
            if figure.units == BATCH as usize {
                figures.add(figure);
                more = true;
            }
        }
    }
    for reading in readings {
        assert_eq!(reading.rows, log_rows, "{}: rows read", reading.name);
    }
}

impl Reading<'_> {
    fn next_batch(&mut self, round: usize) -> Figure {
        let ((last, sequence), (xmax, snapshot)) = (&self.last, &self.upto);
        let parameters: [&(dyn ToSql + Sync); 5] = [last, sequence, xmax, snapshot, &BATCH];
        let used = cpu::used(self.backend);
        let started = Instant::now();
        let rows = self.transaction.query(&self.statement, &parameters);
        let rows = rows.unwrap();
        let mut figure = Figure::new(READ, self.name, round, rows.len());
        figure.wall_s = started.elapsed().as_secs_f64();
        figure.cpu_s = cpu::used(self.backend) - used;
        self.rows += rows.len();
        if let Some(row) = rows.last() {
            self.last = (row.get::<_, i64>(0).to_string(), row.get(1));
        }
        figure
    }
}

/// The other half of a look at the log: what was in progress at the checkpoint.
fn look_for_stragglers(
    name: &'static str,
    transaction: &mut Transaction,
    from: &Snapshot,
    now: &String,
    figures: &mut Figures,
) {
    let types = [Type::TEXT, Type::TEXT, Type::INT8, Type::TEXT, Type::INT8];
    let statement = transaction.prepare_typed(STRAGGLERS_SQL, &types).unwrap();
    let parameters: [&(dyn ToSql + Sync); 5] = [&from.in_progress, &"0", &0_i64, now, &BATCH];
    for round in 0..10 {
        let started = Instant::now();
        let found = transaction.query(&statement, &parameters).unwrap();
        let mut figure = Figure::new(STRAGGLERS, name, round, 1);
        figure.wall_s = started.elapsed().as_secs_f64();
        figures.add(figure);
        assert_eq!(found.len(), 0, "what was in progress has written nothing");
    }
}
