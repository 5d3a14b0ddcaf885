//! The log is a ring: it stays small by `recsync.log_max_size` and `recsync.log_retention`, keeps what is not dispatched
//! whatever its size, and is in no writer's way while somebody reads it.

use std::collections::BTreeSet;
use std::env;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, process, wait_until};

const MAX: i64 = 1024 * 1024;

/// What a log of `MAX` may come to between two looks at it: writers do not wait for the rotation.
const BOUND: i64 = 2 * MAX;

fn cluster(retention: &str) -> Cluster {
    Cluster::start(&[
        ("recsync.log_max_size", "1MB"),
        ("recsync.log_retention", retention),
        ("max_prepared_transactions", "2"),
    ])
}

/// Table `item` with a pipeline over its title, and an audit that makes each change a row of two kilobytes in the log.
fn audited<'a>(cluster: &'a Cluster, api: &Api, rows: usize) -> Database<'a> {
    let mut db = cluster.database();
    db.items(api, "");
    db.run("ALTER TABLE item ADD body text");
    db.run(&format!(
        "INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, {rows}) i"
    ));
    db.settle("item_embedding");
    db.run("SELECT recsync.audit('item')");
    db
}

/// Makes the log of `audited` grow by some two kilobytes a row, by an update that no text uses.
fn fill(db: &mut Client, rows: &str) {
    db.run(&format!(
        "UPDATE item SET body = (SELECT string_agg(md5(random()::text || i || id), '') FROM generate_series(1, 32) i) WHERE id {rows}"
    ));
}

/// The bytes of each table of the ring.
fn sizes(db: &mut Client) -> Vec<i64> {
    db.column("SELECT pg_table_size(('recsync.log_' || n)::regclass) * (pg_relation_size(('recsync.log_' || n)::regclass) > 0)::int FROM generate_series(0, 7) n ORDER BY n")
}

fn size(db: &mut Client) -> i64 {
    sizes(db).iter().sum()
}

fn used(db: &mut Client) -> BTreeSet<usize> {
    let sizes = sizes(db);
    (0..sizes.len()).filter(|&table| sizes[table] > 0).collect()
}

/// A small change that the worker has to read: the log is looked at more often while there are such. Not too often.
fn nudge(db: &mut Client) {
    db.run("UPDATE item SET title = 'nudge ' || md5(random()::text) WHERE id = 1; SELECT pg_sleep(0.02)");
}

#[track_caller]
fn wait_until_small(db: &mut Client, bound: i64) {
    wait_until(PATIENCE, "the log is small again", || {
        nudge(db);
        size(db) <= bound
    });
}

#[test]
fn log_that_reaches_its_size_goes_round_the_ring_and_keeps_the_youngest_changes() {
    let cluster = cluster("1d");
    let api = Api::start();
    let mut db = audited(&cluster, &api, 200);
    let mut seen = BTreeSet::new();
    let started = Instant::now();
    while seen.len() < 5 {
        assert!(
            started.elapsed() < PATIENCE,
            "the ring has come no farther than {seen:?}"
        );
        // Slowly: what is written between two looks at the log is dropped together.
        fill(&mut db, "BETWEEN 2 AND 21");
        db.run("UPDATE item SET title = title || '!' WHERE id > 190");
        db.settle("item_embedding");
        db.pause(Duration::from_millis(150));
        let (size, used) = (size(&mut db), used(&mut db));
        assert!(size <= BOUND, "the log has {size} bytes");
        seen.extend(used);
        let youngest: i64 = db.one(
            "SELECT count(DISTINCT record->>'title') FROM recsync.change_log l JOIN item i ON l.record->>'title' = i.title
              WHERE l.op = 'UPDATE' AND i.id > 190",
        );
        assert_eq!(youngest, 10, "the youngest changes are gone");
    }
    // Once more, until the oldest are gone, too.
    wait_until(PATIENCE, "the oldest changes are dropped", || {
        fill(&mut db, "BETWEEN 2 AND 21");
        nudge(&mut db);
        db.one("SELECT count(*) = 0 FROM recsync.change_log WHERE record->>'title' LIKE 'row 19_!'")
    });
    let kept = size(&mut db);
    assert!(
        kept >= MAX / 2,
        "a log that may have {MAX} bytes has no more than {kept}"
    );
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn log_younger_than_its_retention_and_smaller_than_its_size_loses_nothing() {
    let cluster = cluster("1min");
    let api = Api::start();
    let mut db = audited(&cluster, &api, 50);
    fill(&mut db, "BETWEEN 2 AND 50");
    let logged: i64 = db.one("SELECT count(*) FROM recsync.change_log");
    assert_eq!(
        logged, 99,
        "the rows when they were inserted, and the update of all but one"
    );
    // Longer than the worker lets pass between two looks at a log that grows.
    let started = Instant::now();
    let mut small = 0;
    while started.elapsed() < Duration::from_millis(3_500) {
        db.run("UPDATE item SET stock = stock + 1 WHERE id = 1");
        small += 1;
        db.settle("item_embedding");
        assert_eq!(
            db.one::<i64>("SELECT count(*) FROM recsync.change_log"),
            logged + small
        );
    }
    assert!(size(&mut db) < MAX);
}

#[test]
fn log_without_retention_is_empty_soon_after_it_is_dispatched() {
    let cluster = cluster("0");
    let api = Api::start();
    let mut db = audited(&cluster, &api, 100);
    fill(&mut db, "BETWEEN 2 AND 101");
    db.settle("item_embedding");
    wait_until_small(&mut db, MAX / 10);
    let left: i64 =
        db.one("SELECT count(*) FROM recsync.change_log WHERE record->>'body' IS NOT NULL AND record->>'id' <> '1'");
    assert_eq!(
        left, 0,
        "changes that are dispatched and older than the retention"
    );
}

#[test]
fn log_of_an_audit_without_a_pipeline_goes_round_the_ring_as_well() {
    let cluster = cluster("1d");
    let mut db = cluster.database();
    db.run("CREATE TABLE item (id int PRIMARY KEY, body text); INSERT INTO item SELECT generate_series(1, 100)");
    db.run("SELECT recsync.audit('item')");
    let mut seen = BTreeSet::new();
    wait_until(PATIENCE, "three tables of the ring have been used", || {
        fill(&mut db, "BETWEEN 2 AND 11");
        seen.extend(used(&mut db));
        seen.len() >= 3
    });
    wait_until(PATIENCE, "the log is small", || size(&mut db) <= BOUND);
}

/// One writer's times, until it is told to stop; every statement must go through.
fn write(
    cluster: &Cluster,
    database: &str,
    writer: i32,
    stop: &AtomicBool,
    written: &AtomicI64,
) -> Vec<Duration> {
    let mut db = cluster.connect(database);
    db.run("SET lock_timeout = '50 ms'; SET statement_timeout = '5 s'");
    let mut times = Vec::new();
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) {
        round += 1;
        let id = writer * 50 + round % 50;
        for statement in [
            format!(
                "UPDATE item SET stock = stock + 1, body = repeat(md5('{writer} {round}'), 120) WHERE id = {id}"
            ),
            format!(
                "BEGIN; UPDATE item SET title = 'by {writer}, {round}' WHERE id = {id}; SAVEPOINT s; DELETE FROM item WHERE id = {id}; ROLLBACK TO s; COMMIT"
            ),
        ] {
            let started = Instant::now();
            db.run(&statement);
            times.push(started.elapsed());
            written.fetch_add(1, Ordering::SeqCst);
        }
    }
    times
}

#[test]
fn reader_of_the_log_that_is_held_open_delays_no_writer_while_the_log_wants_to_be_rotated() {
    let nightly = env::var("RECSYNC_NIGHTLY").is_ok_and(|value| value != "0");
    let held_for = Duration::from_secs(if nightly { 60 } else { 0 });
    let cluster = cluster("0");
    let api = Api::start();
    let mut db = audited(&cluster, &api, 250);
    // Autovacuum gives the end of a table back under a lock that every writer waits for: that would be its doing.
    db.run("ALTER TABLE item SET (vacuum_truncate = off)");
    let mut reader = db.connect();
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    let read: i64 = reader.one("SELECT count(*) FROM recsync.change_log");
    let (stop, written) = (AtomicBool::new(false), AtomicI64::new(0));
    let name = db.name.clone();
    let times = thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (cluster, name, stop, written) = (&cluster, &name, &stop, &written);
                scope.spawn(move || write(cluster, name, writer, stop, written))
            })
            .collect();
        let ended = Ended(&stop);
        let started = Instant::now();
        // Each table but the last that fills up is one the worker has tried to empty.
        wait_until(
            PATIENCE * 2,
            "writers have been moved on four times",
            || used(&mut db).len() > 4 && started.elapsed() >= held_for,
        );
        assert!(size(&mut db) > MAX, "what is read is still there");
        let again: i64 = reader.one("SELECT count(*) FROM recsync.change_log");
        assert_eq!(again, read, "the reader's own view has changed");
        let before = written.load(Ordering::SeqCst);
        reader.run("COMMIT");
        // The rotation is done while they write.
        wait_until(PATIENCE, "the ring is emptied behind the reader", || {
            used(&mut db).len() <= 3
        });
        println!(
            "reader held for {:?}; {before} statements meanwhile, {} in all",
            started.elapsed(),
            written.load(Ordering::SeqCst)
        );
        drop(ended);
        let times = writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap());
        times.collect::<Vec<_>>()
    });
    assert_nobody_waited(times);
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

/// Tells the writers to stop, also when the test fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn assert_nobody_waited(mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!(
        "{} statements: p50 {:?}, p99 {:?}, worst {:?}",
        times.len(),
        at(50),
        at(99),
        at(100)
    );
    assert!(at(99) < Duration::from_millis(50), "p99 {:?}", at(99));
    assert!(at(100) < Duration::from_secs(1), "worst {:?}", at(100));
}

#[test]
fn changes_of_transactions_held_open_and_prepared_survive_any_rotation() {
    let cluster = cluster("0");
    let api = Api::start();
    let mut db = audited(&cluster, &api, 400);
    let mut held = db.connect();
    held.run("BEGIN; UPDATE item SET title = 'held ' || id WHERE id BETWEEN 101 AND 200; DELETE FROM item WHERE id = 200");
    fill(&mut held, "BETWEEN 101 AND 150");
    let mut other = db.connect();
    other.run("BEGIN; UPDATE item SET title = 'prepared ' || id WHERE id BETWEEN 201 AND 300; UPDATE item SET id = 1000 WHERE id = 300");
    fill(&mut other, "BETWEEN 201 AND 250");
    other.run("PREPARE TRANSACTION 'p'");
    let mut seen = BTreeSet::new();
    wait_until(PATIENCE, "the ring has been gone through", || {
        fill(&mut db, "BETWEEN 2 AND 100");
        nudge(&mut db);
        seen.extend(used(&mut db));
        seen.len() >= 6
    });
    db.settle("item_embedding");
    held.run("COMMIT");
    db.run("COMMIT PREPARED 'p'");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(api.times_asked("held 101"), 1);
    assert_eq!(api.times_asked("prepared 300"), 1);
    wait_until_small(&mut db, BOUND);
}

#[test]
fn changes_that_the_worker_has_not_read_or_not_ended_are_kept_beyond_the_size() {
    let cluster = cluster("0");
    let api = Api::start();
    let mut db = audited(&cluster, &api, 300);
    // It reads nothing.
    let worker = db.worker();
    process::signal(worker, libc::SIGSTOP);
    let before: i64 = db.one("SELECT count(*) FROM recsync.change_log");
    for round in 0..12 {
        fill(&mut db, "BETWEEN 2 AND 101");
        db.run(&format!(
            "UPDATE item SET title = 'unread {round} ' || id WHERE id <= 20"
        ));
    }
    assert!(size(&mut db) > BOUND);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.change_log"),
        before + 12 * 120
    );
    process::signal(worker, libc::SIGCONT);
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    wait_until_small(&mut db, BOUND);

    // It has read, and its requests are in the air: a crash must find them again.
    api.hold_texts_with("in the air");
    db.run("UPDATE item SET title = 'in the air ' || id WHERE id > 200");
    api.wait_until_held(1);
    let mut seen = BTreeSet::new();
    let started = Instant::now();
    while seen.len() < 4 && started.elapsed() < PATIENCE {
        fill(&mut db, "BETWEEN 2 AND 51");
        nudge(&mut db);
        seen.extend(used(&mut db));
        db.pause(Duration::from_millis(100));
        // Until they stand in the job table, the log alone knows of them.
        let logged: i64 = db.one(
            "SELECT count(*) FROM recsync.change_log WHERE record ->> 'title' LIKE 'in the air%' AND old_record ->> 'title' NOT LIKE 'in the air%'",
        );
        let written: i64 = db.one("SELECT count(*) FROM recsync.job");
        assert!(logged == 100 || written > 0, "{logged} of 100 are left");
    }
    db.kill9_worker();
    api.release();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    wait_until_small(&mut db, BOUND);
}

#[test]
fn worker_that_was_away_for_more_than_the_log_may_hold_looks_at_all_rows_and_pays_for_the_changed_ones()
 {
    let cluster = cluster("0");
    let api = Api::start();
    let mut db = audited(&cluster, &api, 300);
    // Nobody starts a worker while the launcher stands still.
    let launcher: i32 =
        db.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'recsync launcher'");
    let worker = db.worker();
    process::signal(launcher, libc::SIGSTOP);
    process::signal(worker, libc::SIGTERM);
    wait_until(PATIENCE, "the worker is away", || {
        !process::is_running(worker)
    });
    let asked = api.texts().len();
    let before: i64 = db.one("SELECT count(*) FROM recsync.change_log");
    for round in 0..20 {
        db.run(&format!(
            "UPDATE item SET title = 'away {round} ' || id, body = (SELECT string_agg(md5(random()::text || i || id), '') FROM generate_series(1, 32) i)
              WHERE id <= 100"
        ));
    }
    db.run("DELETE FROM item WHERE id BETWEEN 101 AND 120; UPDATE item SET id = id + 1000 WHERE id = 121");
    // What no change tells of is found where all rows are looked at.
    db.run("DELETE FROM item_embedding_g1 WHERE id = 300");
    assert!(size(&mut db) > BOUND);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.change_log"),
        before + 20 * 100 + 20 + 1,
        "an undispatched change was dropped"
    );
    process::signal(launcher, libc::SIGCONT);
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    let sent = api.texts().split_off(asked);
    assert_eq!(
        sent.len(),
        101,
        "the changed rows and the one whose vector was gone, not the one with another key: {sent:?}"
    );
    wait_until_small(&mut db, BOUND);
    db.run("UPDATE item SET title = 'as before' WHERE id = 1");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}
