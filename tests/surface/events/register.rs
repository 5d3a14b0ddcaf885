//! The same events in two sessions at once, and the tables of the register in turn.

use std::sync::mpsc;
use std::thread;

use postgres::Client;

use super::{apply, items, report, rows};
use crate::support::{Database, PATIENCE, Sql, wait_until};

fn event(id: &str, sequence: i32) -> String {
    format!(
        r#"{{"event_id": "{id}", "operation": "upsert", "table": "item", "record_id": 1, "data": {{"title": "{id}"}}, "sequence": {sequence}}}"#
    )
}

/// What becomes of `later` in a second session, when the first has applied `first` and ends its transaction by `end` once
/// the second waits.
fn raced(db: &mut Database, first: &str, later: &str, end: &str) -> String {
    let mut one = db.connect();
    let mut other = db.connect();
    one.run("BEGIN");
    assert_eq!(apply(&mut one, first), 1);
    let pid: i32 = other.one("SELECT pg_backend_pid()");
    let (answer, outcome) = mpsc::channel();
    let later = later.to_owned();
    let second = thread::spawn(move || answer.send(report(&mut other, &later, "abort").concat()));
    wait_until(PATIENCE, "the second session waits", || {
        db.one(&format!(
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'"
        ))
    });
    one.run(end);
    let outcome = outcome.recv().unwrap();
    second.join().unwrap().unwrap();
    outcome
}

#[test]
fn second_of_two_sessions_waits_for_the_first_and_then_has_a_repeat() {
    let mut db = items();
    let event_a = event("a", 1);
    assert_eq!(raced(&mut db, &event_a, &event_a, "COMMIT"), "1 a repeated");
    assert_eq!(rows(&mut db), ["1 a 7"]);
}

#[test]
fn second_of_two_sessions_applies_what_the_first_rolls_back() {
    let mut db = items();
    let event_a = event("a", 1);
    assert_eq!(
        raced(&mut db, &event_a, &event_a, "ROLLBACK"),
        "1 a applied"
    );
    assert_eq!(rows(&mut db), ["1 a 7"]);
}

#[test]
fn older_event_of_a_row_waits_for_the_newer_one_and_is_outdated() {
    let mut db = items();
    assert_eq!(
        raced(&mut db, &event("new", 2), &event("old", 1), "COMMIT"),
        "1 old outdated"
    );
    assert_eq!(rows(&mut db), ["1 new 7"]);
    assert_eq!(
        raced(&mut db, &event("newer", 4), &event("third", 3), "ROLLBACK"),
        "1 third applied"
    );
    assert_eq!(rows(&mut db), ["1 third 7"]);
}

#[test]
fn many_sessions_with_the_same_events_apply_each_once() {
    let mut db = items();
    db.run("CREATE TABLE click (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event int)");
    let events: Vec<String> = (1..=400)
        .map(|id| format!(r#"{{"event_id": {id}, "operation": "insert", "table": "click", "data": {{"event": {id}}}}}"#))
        .collect();
    thread::scope(|scope| {
        for start in 0..4 {
            let (mut client, events) = (db.connect(), &events);
            scope.spawn(move || {
                // Each in another order: those of a call are waited for in one.
                for batch in 0..4 {
                    let from = (start + batch) % 4 * 100;
                    let mut batch = events[from..from + 100].to_vec();
                    if start % 2 == 0 {
                        batch.reverse();
                    }
                    apply(&mut client, &format!("[{}]", batch.join(",")));
                }
            });
        }
    });
    assert_eq!(
        db.one::<String>("SELECT concat_ws(' ', count(*), count(DISTINCT event)) FROM click"),
        "400 400"
    );
}

/// Makes the open table, or what is closed, as old as that, and has the worker look.
fn age(db: &mut Client, column: &str, age: &str) {
    db.run(&format!(
        "UPDATE recsync.event_register SET {column} = now() - interval '{age}' WHERE {column} IS NOT NULL AND (closed_at IS NULL OR '{column}' = 'closed_at')"
    ));
    db.run("SELECT pg_reload_conf()");
}

fn parts(db: &mut Client) -> Vec<String> {
    db.column(
        "SELECT CASE WHEN closed_at IS NOT NULL THEN 'closed' WHEN opened_at IS NOT NULL THEN 'open' ELSE 'free' END FROM recsync.event_register ORDER BY number",
    )
}

#[test]
fn what_stands_in_a_closed_table_is_known_until_it_is_old() {
    let mut db = items();
    db.worker();
    assert_eq!(apply(&mut db, &event("a", 5)), 1);
    age(&mut db, "opened_at", "4 days");
    wait_until(PATIENCE, "the table is closed", || {
        parts(&mut db)[..2] == ["closed", "open"]
    });
    assert_eq!(
        report(
            &mut db,
            &format!("[{},{},{}]", event("a", 5), event("b", 4), event("c", 6)),
            "abort"
        ),
        ["1 a repeated", "2 b outdated", "3 c applied"]
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.event_0"), 2);
    // A transaction whose snapshot is older than that sees it, too.
    let mut fixed = db.connect();
    fixed.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    fixed.one::<i64>("SELECT count(*) FROM item");
    assert_eq!(apply(&mut db, &event("d", 7)), 1);
    age(&mut db, "opened_at", "4 days");
    wait_until(PATIENCE, "the next one is closed", || {
        parts(&mut db)[..3] == ["closed", "closed", "open"]
    });
    assert_eq!(
        report(&mut fixed, &event("d", 7), "abort"),
        ["1 d repeated"]
    );
    assert_eq!(
        report(&mut fixed, &event("e", 6), "abort"),
        ["1 e outdated"]
    );
    fixed.run("COMMIT");
    // Old enough, they go, by TRUNCATE.
    age(&mut db, "closed_at", "8 days");
    wait_until(PATIENCE, "the tables are emptied", || {
        parts(&mut db) == ["free", "free", "open", "free"]
    });
    assert_eq!(
        db.one::<i64>(
            "SELECT pg_relation_size('recsync.event_0') + pg_relation_size('recsync.event_1')"
        ),
        0
    );
    // But what has been asked for since.
    assert_eq!(
        report(
            &mut db,
            &format!("[{},{}]", event("a", 6), event("c", 7)),
            "abort"
        ),
        ["1 a outdated", "2 c applied"]
    );
    assert_eq!(rows(&mut db), ["1 c 7"]);
}

#[test]
fn table_is_closed_only_when_nobody_has_written_to_it_without_having_committed() {
    let mut db = items();
    db.worker();
    // The ring is to turn without the worker's help, which waits for 50 ms and then a minute.
    let close = "BEGIN; SET LOCAL lock_timeout = '50ms'; LOCK TABLE recsync.event_0 IN SHARE ROW EXCLUSIVE MODE;
                 UPDATE recsync.event_register SET closed_at = CASE number WHEN 0 THEN now() END, opened_at = now() WHERE number IN (0, 1); COMMIT";
    let mut one = db.connect();
    one.run("BEGIN");
    assert_eq!(apply(&mut one, &event("a", 5)), 1);
    let mut turner = db.connect();
    assert_eq!(turner.refused(close).code().code(), "55P03");
    turner.run("ROLLBACK");
    // One that was about to write while the tables changed writes to the new one, and knows what is in the old one.
    one.run("COMMIT");
    turner.run("BEGIN; LOCK TABLE recsync.event_0 IN SHARE ROW EXCLUSIVE MODE");
    let mut other = db.connect();
    let pid: i32 = other.one("SELECT pg_backend_pid()");
    let second = thread::spawn(move || {
        let events = format!("[{},{}]", event("a", 5), event("b", 6));
        report(&mut other, &events, "abort")
    });
    wait_until(PATIENCE, "the second session waits", || {
        db.one(&format!(
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'"
        ))
    });
    turner.run("UPDATE recsync.event_register SET closed_at = CASE number WHEN 0 THEN now() END, opened_at = now() WHERE number IN (0, 1); COMMIT");
    assert_eq!(second.join().unwrap(), ["1 a repeated", "2 b applied"]);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.event_1"),
        2,
        "an event and a key"
    );
}

/// Upserts of rows from `from` on, each an event of its own.
fn events(name: &str, from: usize, count: usize) -> String {
    let events = (from..from + count).map(|n| {
        format!(
            r#"{{"event_id": "{name}{n}", "operation": "upsert", "table": "item", "record_id": {n}, "data": {{"title": "{name}"}}, "sequence": {n}}}"#
        )
    });
    format!("[{}]", events.collect::<Vec<_>>().join(","))
}

#[test]
fn who_sends_many_events_keeps_what_closed_tables_do_not_hold_and_no_longer_than_they_do() {
    let mut db = items();
    db.worker();
    let close = |db: &mut Database, number: usize| {
        age(db, "opened_at", "4 days");
        wait_until(PATIENCE, "the table is closed", || {
            parts(db)[number] == "closed"
        });
    };
    assert_eq!(apply(&mut db, &events("a", 0, 700)), 700);
    close(&mut db, 0);
    // From the second call on what is not there is known.
    for from in [1_000, 2_000, 3_000] {
        assert_eq!(apply(&mut db, &events("b", from, 700)), 700);
    }
    assert_eq!(apply(&mut db, &events("a", 0, 701)), 1);
    assert_eq!(
        report(&mut db, &event("old", 0), "abort"),
        ["1 old outdated"]
    );
    // Once around: the same table holds others.
    for number in 1..4 {
        close(&mut db, number);
        age(&mut db, "closed_at", "8 days");
        wait_until(PATIENCE, "the tables are emptied", || {
            !parts(&mut db).contains(&"closed".to_owned())
        });
        assert_eq!(apply(&mut db, &events("c", number * 1_000, 10)), 10);
    }
    assert_eq!(parts(&mut db)[0], "open");
    assert_eq!(apply(&mut db, &events("d", 0, 700)), 700);
    close(&mut db, 0);
    assert_eq!(apply(&mut db, &events("d", 0, 700)), 0);
    for from in [1_000, 2_000] {
        assert_eq!(apply(&mut db, &events("e", from, 700)), 700);
    }
    assert_eq!(apply(&mut db, &events("d", 0, 700)), 0);
}
