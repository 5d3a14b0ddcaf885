//! How many events a second `apply_events` applies, by one session in batches, while the register of applied events has its
//! open table only, and with as many closed ones as there can be. See benches/README.md.
//!
//! It never measures more than one session: the goal is one session's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// What is sent.
mod given;

#[path = "../support/mod.rs"]
mod bench;

#[path = "../../tests/support/mod.rs"]
mod support;

use std::fmt::Write;
use std::time::{Duration, Instant};

use bench::setting::{conditions, keep, load, percentile, size_or_quick};
use bench::tables::{least, print_goals, table};
use support::{Cluster, Database, Sql, wait_until};

const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("min_wal_size", "4GB"),
    ("autovacuum", "off"),
];

/// Events of a batch, which is a call and a transaction.
const BATCH: usize = 500;
/// Tables of the register that can be closed at the most: one of the four is open.
const CLOSED: usize = 3;
const GOAL: f64 = 20_000.0;

fn main() {
    let batches = size_or_quick("BATCHES", 200, 4);
    let known = size_or_quick("KNOWN", 1_000_000, 10_000);
    println!("{}\n", conditions(SETTINGS));
    let cluster = Cluster::start(SETTINGS);
    let mut db = cluster.database();
    db.run(
        "CREATE TABLE item (id int PRIMARY KEY, title text NOT NULL, stock int NOT NULL);
         CREATE SCHEMA bare; CREATE TABLE bare.item (LIKE item INCLUDING ALL);
         CREATE SCHEMA described; CREATE TABLE described.item (LIKE item INCLUDING ALL)",
    );
    write_wal(&mut db);
    let mut figures = Figures::default();
    figures.measure(&mut db, "open only", batches, 0);
    for number in 0..CLOSED {
        close(&mut db, number, known);
    }
    let what = format!("{CLOSED} closed");
    figures.measure(&mut db, &what, batches, batches * BATCH);
    figures.print();
    println!("load average now: {}", load());
}

#[derive(Default)]
struct Figures {
    rows: Vec<String>,
    goals: Vec<bench::tables::Goal>,
    csv: String,
}

impl Figures {
    /// Events of each kind, numbered on from `first`.
    fn measure(&mut self, db: &mut Database, register: &str, batches: usize, first: usize) {
        let mut prepare = |sql| db.prepare(sql).unwrap();
        let apply = prepare("SELECT recsync.apply_events($1::text::jsonb)");
        let read = prepare("SELECT $1::text::jsonb IS NULL");
        let rows = batches * BATCH;
        for (kind, event) in given::KINDS {
            let (mut times, mut readings, mut last) = (Vec::new(), Vec::new(), String::new());
            for batch in 0..batches {
                let from = first + batch * BATCH;
                let events: Vec<String> = (from..from + BATCH).map(|n| event(n, rows)).collect();
                let events = format!("[{}]", events.join(","));
                let started = Instant::now();
                let applied: i64 = db.query_one(&apply, &[&events]).unwrap().get(0);
                times.push(started.elapsed().as_secs_f64() * 1_000.0);
                assert_eq!(applied as usize, BATCH, "{kind}");
                last = events;
            }
            for _ in 0..batches.min(20) {
                let started = Instant::now();
                db.query_one(&read, &[&last]).unwrap();
                readings.push(started.elapsed().as_secs_f64() * 1_000.0);
            }
            for ms in &times {
                let _ = writeln!(self.csv, "{kind},{register},{ms:.3}");
            }
            let a_second = rows as f64 * 1_000.0 / times.iter().sum::<f64>();
            times.sort_by(f64::total_cmp);
            readings.sort_by(f64::total_cmp);
            let [p50, p99, reading] = [(&times, 50), (&times, 99), (&readings, 50)]
                .map(|(times, percent)| percentile(times, percent));
            self.rows.push(format!(
                "{kind} | {register} | {a_second:.0} | {p50:.1} | {p99:.1} | {reading:.1}"
            ));
            let what = format!("{kind}, {register}: events a second");
            self.goals.push(least(what, GOAL, a_second));
        }
    }

    fn print(&self) {
        let head = "events | register | a second | ms a batch: p50 | p99 | of them to read JSON as jsonb: p50";
        table("events of one session", head, &self.rows);
        println!();
        print_goals(&self.goals);
        let csv = format!("events,register,ms\n{}", self.csv);
        println!("\n{}", keep("events.csv", &csv).display());
    }
}

/// Files of WAL that are written again, as on a server that has run for a while: a new one is filled with zeros first.
fn write_wal(db: &mut Database) {
    for _ in 0..2 {
        db.run("SELECT pg_logical_emit_message(false, 'events', repeat('x', 16000000)) FROM generate_series(1, 120)");
        db.run("CHECKPOINT");
    }
}

/// Fills the open table of the register and has recsync close it: it has been open for long enough.
fn close(db: &mut Database, number: usize, known: usize) {
    db.run(&format!(
        "INSERT INTO recsync.event_{number} (digest) SELECT gen_random_uuid() FROM generate_series(1, {known})"
    ));
    db.run(&format!("VACUUM ANALYZE recsync.event_{number}"));
    db.run("UPDATE recsync.event_register SET opened_at = now() - interval '4 days' WHERE opened_at IS NOT NULL AND closed_at IS NULL");
    db.run("SELECT pg_reload_conf()");
    wait_until(Duration::from_secs(60), "the table is closed", || {
        db.one(&format!(
            "SELECT closed_at IS NOT NULL FROM recsync.event_register WHERE number = {number}"
        ))
    });
    db.run("CHECKPOINT");
}
