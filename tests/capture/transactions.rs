//! Savepoints, rollbacks, procedures, replication roles, several sessions.

use std::thread;

use super::case::{Case, Mode};
use super::history::{self, History};
use super::runner::check;
use crate::support::{Api, PATIENCE, Sql, shared, wait_until};

#[test]
fn what_a_transaction_keeps_is_logged_and_embedded_and_nothing_else() {
    check(shared(), Mode::Keys, transactions());
}

#[test]
fn what_a_transaction_keeps_is_audited_and_nothing_else() {
    check(shared(), Mode::Audited, transactions());
}

/// A second watched table.
const LINE: &str = "CREATE TABLE line (id int PRIMARY KEY, title text); INSERT INTO line VALUES (1, 'line one'), (2, 'line two')";

/// `count` inserts from `first` on, each after a savepoint, which ends as `end` says.
fn savepoints(first: i32, count: i32, end: fn(i32) -> &'static str) -> String {
    let one = |id: i32| {
        format!(
            "SAVEPOINT s; INSERT INTO item VALUES ({id}, 'row {id}'); UPDATE item SET title = 'within {id}' WHERE id = 1; {};",
            end(id)
        )
    };
    (first..first + count).map(one).collect()
}

/// Each within the one before.
fn nested(_: i32) -> &'static str {
    ""
}

fn every_other(id: i32) -> &'static str {
    match id % 2 {
        0 => "RELEASE s",
        _ => "ROLLBACK TO s",
    }
}

/// What of those inserts is logged, each with its update of row 1.
fn kept(first: usize, count: usize, step: usize) -> String {
    let kept = (first..first + count).step_by(step);
    kept.map(|id| format!("INSERT {id}; UPDATE 1"))
        .collect::<Vec<_>>()
        .join("; ")
}

// A step a line.
#[rustfmt::skip]
fn transactions() -> Vec<Case> {
    vec![
        Case::three("a transaction that is rolled back")
            .run("BEGIN; INSERT INTO item VALUES (4, 'never'); UPDATE item SET title = 'never', id = 11 WHERE id = 1; DELETE FROM item WHERE id = 2; TRUNCATE item; ROLLBACK", "")
            .run("BEGIN; INSERT INTO item VALUES (4, 'never')", "")
            .run("ROLLBACK", "")
            .run("BEGIN; UPDATE item SET title = 'never'", "")
            .refused("SELECT 1 / 0", "22012")
            .run("COMMIT", "")
            .run("INSERT INTO item VALUES (4, 'four')", "INSERT 4"),
        Case::three("a transaction of many statements is seen when it has committed")
            .run("BEGIN; INSERT INTO item VALUES (4, 'four')", "")
            .run("UPDATE item SET title = 'changed' WHERE id IN (1, 4)", "")
            .run("UPDATE item SET id = 5 WHERE id = 4", "")
            .other("INSERT INTO item VALUES (6, 'six')", "INSERT 6")
            .run("DELETE FROM item WHERE id = 2", "")
            .run("COMMIT", "INSERT 4; UPDATE 1; UPDATE 4; UPDATE 5 <- 4; DELETE 2"),
        Case::three("COMMIT AND CHAIN, ROLLBACK AND CHAIN")
            .run("BEGIN; UPDATE item SET title = 'a' WHERE id = 1; COMMIT AND CHAIN; UPDATE item SET title = 'b' WHERE id = 2; ROLLBACK AND CHAIN; UPDATE item SET title = 'c' WHERE id = 3; COMMIT", "UPDATE 1; UPDATE 3"),
        Case::three("other isolation levels")
            .run("BEGIN ISOLATION LEVEL REPEATABLE READ; UPDATE item SET title = 'a' WHERE id = 1; INSERT INTO item VALUES (4, 'four'); COMMIT", "UPDATE 1; INSERT 4")
            .run("BEGIN ISOLATION LEVEL SERIALIZABLE; UPDATE item SET title = 'b' WHERE id = 1; DELETE FROM item WHERE id = 4; COMMIT", "UPDATE 1; DELETE 4")
            .run("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE; SELECT count(*) FROM item; COMMIT", "")
            .run("BEGIN ISOLATION LEVEL REPEATABLE READ; UPDATE item SET title = 'first' WHERE id = 2", "")
            .other("UPDATE item SET title = 'beside' WHERE id = 3", "UPDATE 3")
            .refused("UPDATE item SET title = 'never' WHERE id = 3", "40001")
            .run("ROLLBACK", ""),
        Case::three("savepoints that are rolled back")
            .run("BEGIN; UPDATE item SET title = 'kept' WHERE id = 1; SAVEPOINT s; UPDATE item SET title = 'never' WHERE id = 2; INSERT INTO item VALUES (4, 'never');
                  ROLLBACK TO s; INSERT INTO item VALUES (5, 'kept'); COMMIT", "UPDATE 1; INSERT 5")
            .run("BEGIN; SAVEPOINT s; INSERT INTO item VALUES (6, 'never'); ROLLBACK TO s; INSERT INTO item VALUES (6, 'again, never'); ROLLBACK TO s; INSERT INTO item VALUES (6, 'six'); COMMIT", "INSERT 6")
            .run("BEGIN; SAVEPOINT s; INSERT INTO item VALUES (7, 'never'); ROLLBACK", "")
            .run("BEGIN; SAVEPOINT s; TRUNCATE item; INSERT INTO item VALUES (7, 'never'); ROLLBACK TO s; UPDATE item SET title = 'kept, too' WHERE id = 2; COMMIT", "UPDATE 2"),
        Case::three("savepoints that are released")
            .run("BEGIN; SAVEPOINT s; INSERT INTO item VALUES (4, 'four'); RELEASE s; INSERT INTO item VALUES (5, 'five'); COMMIT", "INSERT 4; INSERT 5")
            .run("BEGIN; SAVEPOINT s; INSERT INTO item VALUES (6, 'never'); RELEASE s; ROLLBACK", "")
            .run("BEGIN; SAVEPOINT a; INSERT INTO item VALUES (6, 'never'); SAVEPOINT b; INSERT INTO item VALUES (7, 'never'); RELEASE b; ROLLBACK TO a; COMMIT", ""),
        Case::three("savepoints within savepoints")
            .run("BEGIN; INSERT INTO item VALUES (4, '0'); SAVEPOINT a; INSERT INTO item VALUES (5, 'a'); SAVEPOINT b; INSERT INTO item VALUES (6, 'b'); SAVEPOINT c; INSERT INTO item VALUES (7, 'c');
                  ROLLBACK TO c; RELEASE b; INSERT INTO item VALUES (8, 'a, again'); COMMIT", "INSERT 4; INSERT 5; INSERT 6; INSERT 8")
            .run("BEGIN; SAVEPOINT a; UPDATE item SET title = 'a' WHERE id = 1; SAVEPOINT b; UPDATE item SET title = 'b' WHERE id = 1; SAVEPOINT c; UPDATE item SET title = 'c' WHERE id = 1; ROLLBACK TO b; UPDATE item SET title = 'd' WHERE id = 1; COMMIT", "UPDATE 1; UPDATE 1")
            .run("BEGIN; SAVEPOINT s; INSERT INTO item VALUES (9, 'outer'); SAVEPOINT s; INSERT INTO item VALUES (10, 'inner'); ROLLBACK TO s; RELEASE s; ROLLBACK TO s; INSERT INTO item VALUES (11, 'after'); COMMIT", "INSERT 11"),
        Case::three("one row, changed by turns inside and outside of savepoints")
            .run("BEGIN; INSERT INTO item VALUES (4, '1'); SAVEPOINT s; UPDATE item SET id = 5 WHERE id = 4; SAVEPOINT t; UPDATE item SET title = '3' WHERE id = 5; RELEASE t; DELETE FROM item WHERE id = 5; RELEASE s; INSERT INTO item VALUES (5, '5'); SAVEPOINT u; UPDATE item SET title = 'never'; ROLLBACK TO u; UPDATE item SET id = 4 WHERE id = 5; COMMIT",
                 "INSERT 4; UPDATE 5 <- 4; UPDATE 5; DELETE 5; INSERT 5; UPDATE 4 <- 5"),
        Case::three("writes to two tables by turns, in savepoints").given(LINE).also("line")
            .run("BEGIN; UPDATE item SET title = 'a' WHERE id = 1; UPDATE line SET title = 'a' WHERE id = 1; SAVEPOINT s; UPDATE line SET title = 'b' WHERE id = 1; UPDATE item SET title = 'b' WHERE id = 1; UPDATE line SET title = 'c' WHERE id = 2; RELEASE s; UPDATE item SET title = 'c' WHERE id = 2; COMMIT",
                 "UPDATE 1; line UPDATE 1; line UPDATE 1; UPDATE 1; line UPDATE 2; UPDATE 2")
            .run("BEGIN; SAVEPOINT s; UPDATE item SET title = 'never'; SAVEPOINT t; UPDATE line SET title = 'never'; ROLLBACK TO t; ROLLBACK TO s; UPDATE line SET title = 'd' WHERE id = 1; UPDATE item SET title = 'd' WHERE id = 3; COMMIT", "line UPDATE 1; UPDATE 3")
            .run("BEGIN; DELETE FROM line WHERE id = 1; SAVEPOINT s; DELETE FROM item; ROLLBACK TO s; TRUNCATE line; INSERT INTO item VALUES (4, 'four'); COMMIT", "line DELETE 1; line TRUNCATE; INSERT 4"),
        Case::three("exception blocks of PL/pgSQL").given(LINE).also("line")
            .run("DO $$ BEGIN BEGIN UPDATE item SET title = 'never'; DELETE FROM line; PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN INSERT INTO item VALUES (4, 'in the handler'); END; UPDATE line SET title = 'kept' WHERE id = 1; END $$", "INSERT 4; line UPDATE 1")
            .run("DO $$ BEGIN FOR i IN 5 .. 8 LOOP BEGIN INSERT INTO item VALUES (i, 'row ' || i); INSERT INTO line VALUES (i / 2 * 2, 'line ' || i); EXCEPTION WHEN unique_violation THEN NULL; END; END LOOP; END $$",
                 "INSERT 5; line INSERT 4; INSERT 6; line INSERT 6; INSERT 8; line INSERT 8")
            .refused("DO $$ BEGIN BEGIN UPDATE item SET title = 'never'; EXCEPTION WHEN division_by_zero THEN NULL; END; RAISE 'all of it'; END $$", "P0001")
            .run("DO $$ BEGIN BEGIN INSERT INTO item VALUES (9, 'outer'); BEGIN INSERT INTO item VALUES (10, 'never'); RAISE 'inner'; EXCEPTION WHEN OTHERS THEN NULL; END; INSERT INTO item VALUES (11, 'outer'); EXCEPTION WHEN OTHERS THEN NULL; END; END $$", "INSERT 9; INSERT 11"),
        Case::three("a hundred savepoints, every other one rolled back")
            .run(format!("BEGIN; {} COMMIT", savepoints(10, 100, every_other)), kept(10, 100, 2)),
        Case::three("seventy savepoints within each other")
            .run(format!("BEGIN; {} COMMIT", savepoints(10, 70, nested)), kept(10, 70, 1))
            .run(format!("BEGIN; SAVEPOINT base; {} ROLLBACK TO base; UPDATE item SET title = 'kept' WHERE id = 2; COMMIT", savepoints(100, 70, nested)), "UPDATE 2")
            .run(format!("BEGIN; {} ROLLBACK", savepoints(100, 70, nested)), ""),
        Case::three("a hundred subtransactions of PL/pgSQL, every other one rolled back")
            .run("DO $$ BEGIN FOR i IN 10 .. 109 LOOP BEGIN INSERT INTO item VALUES (i, 'row ' || i); IF i % 2 = 1 THEN RAISE 'undone'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$",
                 (10..110).step_by(2).map(|id| format!("INSERT {id}")).collect::<Vec<_>>().join("; ")),
        Case::three("procedures that commit and roll back")
            .given("CREATE PROCEDURE work() LANGUAGE plpgsql AS $$ BEGIN FOR i IN 4 .. 9 LOOP INSERT INTO item VALUES (i, 'row ' || i); IF i % 3 = 0 THEN ROLLBACK; ELSE COMMIT; END IF; END LOOP; UPDATE item SET title = 'last' WHERE id = 1; END $$")
            .run("CALL work()", "INSERT 4; INSERT 5; INSERT 7; INSERT 8; UPDATE 1")
            .run("DO $$ BEGIN UPDATE item SET title = 'a' WHERE id = 2; COMMIT; UPDATE item SET title = 'never' WHERE id = 3; ROLLBACK; DELETE FROM item WHERE id = 4; END $$", "UPDATE 2; DELETE 4")
            .refused_after("DO $$ BEGIN UPDATE item SET title = 'b' WHERE id = 2; COMMIT; UPDATE item SET title = 'never' WHERE id = 3; RAISE 'no'; END $$", "UPDATE 2", "P0001"),
        Case::three("session_replication_role = replica").not_replayed()
            .run("SET session_replication_role = replica", "")
            .run("INSERT INTO item VALUES (4, 'not captured')", "UNSEEN")
            .run("SET session_replication_role = origin; DELETE FROM item WHERE id = 4", "DELETE 4"),
        Case::three("session_replication_role = replica, on_replica")
            .text("columns => '{title}', on_replica => true", "s.title")
            .run("SET session_replication_role = replica; INSERT INTO item VALUES (4, 'four')", "INSERT 4")
            .run("UPDATE item SET stock = 1 WHERE id = 1", "(UPDATE 1)")
            .run("UPDATE item SET title = 'changed' WHERE id = 1; DELETE FROM item WHERE id = 2", "UPDATE 1; DELETE 2")
            .run("TRUNCATE item", "TRUNCATE")
            .run("SET session_replication_role = local; INSERT INTO item VALUES (5, 'five')", "INSERT 5")
            .run("SET session_replication_role = origin; INSERT INTO item VALUES (6, 'six')", "INSERT 6"),
        Case::three("a transaction that becomes read-only after its writes")
            .run("BEGIN; UPDATE item SET title = 'kept' WHERE id = 1; SET TRANSACTION READ ONLY; COMMIT", "UPDATE 1")
            .run("BEGIN; UPDATE item SET title = 'kept' WHERE id = 2; SAVEPOINT s; SET TRANSACTION READ ONLY; SELECT count(*) FROM item; RELEASE s; COMMIT", "UPDATE 2")
            .run("BEGIN; SAVEPOINT s; UPDATE item SET title = 'kept' WHERE id = 3; SET TRANSACTION READ ONLY; RELEASE s; COMMIT", "UPDATE 3"),
        Case::three("each change is told with its own application and role").only(&[Mode::Keys])
            .run("BEGIN; SET application_name = 'a'; UPDATE item SET title = 'a' WHERE id = 1; SET application_name = 'b'; UPDATE item SET title = 'b' WHERE id = 2; SET application_name = ''; UPDATE item SET title = 'c' WHERE id = 3; COMMIT", "UPDATE 1..3")
            .holds("SELECT array_agg(application_name ORDER BY sequence) = '{a,b,NULL}' FROM recsync.change_log WHERE table_name = 'item'::regclass")
            .run("GRANT ALL ON SCHEMA shop TO pg_monitor; GRANT ALL ON item TO pg_monitor; SET ROLE pg_monitor; DELETE FROM item WHERE id = 1; RESET ROLE", "DELETE 1")
            .run("SET SESSION AUTHORIZATION pg_monitor; DELETE FROM item WHERE id = 2; RESET SESSION AUTHORIZATION; DELETE FROM item WHERE id = 3", "DELETE 2; DELETE 3")
            .holds("SELECT array_agg(changed_by ORDER BY sequence) = '{postgres,pg_monitor,postgres}' FROM recsync.change_log WHERE table_name = 'item'::regclass AND op = 'DELETE'"),
        Case::three("one row, changed by two sessions one after the other")
            .run("BEGIN; UPDATE item SET title = 'by one' WHERE id = 1", "")
            .other("BEGIN; UPDATE item SET title = 'by two' WHERE id = 2", "")
            .run("COMMIT", "UPDATE 1")
            .other("UPDATE item SET title = 'by two' WHERE id = 1", "")
            .other("COMMIT", "UPDATE 2; UPDATE 1")
            .run("UPDATE item SET title = 'by one again' WHERE id < 3", "UPDATE 1; UPDATE 2"),
        Case::three("rows that another session has changed since the transaction began, and since its savepoints")
            .run("BEGIN; UPDATE item SET title = 'by one' WHERE id = 1; SAVEPOINT s; INSERT INTO item VALUES (4, 'four')", "")
            .other("UPDATE item SET title = 'by two' WHERE id = 2; UPDATE item SET title = 'by two' WHERE id = 3", "UPDATE 2; UPDATE 3")
            .run("RELEASE s; UPDATE item SET title = 'by one' WHERE id = 2; SAVEPOINT t; UPDATE item SET title = 'by one' WHERE id = 3; ROLLBACK TO t", "")
            .other("DELETE FROM item WHERE id = 3", "DELETE 3")
            .run("INSERT INTO item VALUES (3, 'anew')", "")
            .run("COMMIT", "UPDATE 1; INSERT 4; UPDATE 2; INSERT 3"),
        Case::three("a transaction that is held open while others commit")
            .run("BEGIN; UPDATE item SET title = 'held' WHERE id = 1", "")
            .other("INSERT INTO item SELECT i, 'beside ' || i FROM generate_series(4, 50) i", "INSERT 4..50")
            .other("DELETE FROM item WHERE id > 3", "DELETE 4..50")
            .run("INSERT INTO item VALUES (4, 'held, too')", "")
            .other("UPDATE item SET title = 'beside' WHERE id = 2", "UPDATE 2")
            .run("COMMIT", "UPDATE 1; INSERT 4"),
    ]
}

/// Of two changes of one row the later one has the higher sequence, also where its statement began earlier.
#[test]
fn a_statement_that_has_waited_for_a_row_comes_after_the_change_it_has_waited_for() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("INSERT INTO item SELECT i, 'row' FROM generate_series(1, 20) i");
    db.settle("item_embedding");
    history::prepare(&mut db);
    let mut history = History::begin(&mut db, Mode::Keys);
    let mut first = db.connect();
    first.run("BEGIN; UPDATE item SET title = 'first' WHERE id = 15");
    let mut second = db.connect();
    let pid: i32 = second.one("SELECT pg_backend_pid()");
    let waiting = thread::spawn(move || second.run("UPDATE item SET title = title || ', second'"));
    wait_until(PATIENCE, "the second waits for the row", || {
        db.one(&format!(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = {pid} AND NOT granted)"
        ))
    });
    // Many more than a statement draws numbers for at a time.
    first.run("INSERT INTO item SELECT i, 'beside' FROM generate_series(101, 2600) i; UPDATE item SET title = 'first, again' WHERE id = 15; COMMIT");
    waiting.join().unwrap();
    db.settle("item_embedding");
    let own: Vec<String> = db.column("SELECT op || ' ' || transaction_id FROM recsync.change_log WHERE record_key ->> 'id' = '15' ORDER BY sequence");
    assert_eq!(own.len(), 4, "{own:?}");
    assert!(own[1] == own[2] && own[3] > own[2], "{own:?}");
    history.assert_grown(
        &mut db,
        "~ UPDATE 1..20; UPDATE 15; UPDATE 15; INSERT 101..2600",
        "both",
    );
    db.assert_items_in_step(&api);
    assert_eq!(
        db.one::<String>("SELECT title FROM item WHERE id = 15"),
        "first, again, second"
    );
}
