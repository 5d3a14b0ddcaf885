use std::time::{Duration, Instant};

use super::{CREATE, in_step, items, table};
use crate::support::{Api, Database, PATIENCE, Sql, wait_until};

/// How many rows have a vector.
fn stored(db: &mut Database) -> i64 {
    db.one("SELECT count(*) FROM item WHERE embedding IS NOT NULL")
}

/// Whether the worker, or a writer, waits for a lock of somebody's.
fn worker_waits(db: &mut Database) -> bool {
    let name = db.name.clone();
    db.one(&format!(
        "SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
          WHERE NOT l.granted AND a.backend_type LIKE 'recsync %' AND a.datname = '{name}'"
    ))
}

/// Over this time, what must not happen does not.
fn meanwhile(time: Duration, mut check: impl FnMut()) {
    let started = Instant::now();
    while started.elapsed() < time {
        check();
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_row_that_a_user_has_locked_is_not_waited_for_and_its_text_is_paid_for_once() {
    let api = Api::start();
    let mut db = items(&api);
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 60) i");
    db.settle("item_embedding");
    api.hold();
    db.run("UPDATE item SET title = 'changed ' || id");
    api.wait_until_held(1);
    let mut other = db.connect();
    let mut open = other.transaction().unwrap();
    open.batch_execute("UPDATE item SET stock = 1 WHERE id IN (1, 30, 60)")
        .unwrap();
    let now: String = db.one("SELECT clock_timestamp()::text");
    let changed = format!("SELECT count(*) FROM item_embedding_g1 WHERE embedded_at > '{now}'");
    api.release();
    wait_until(PATIENCE, "all others are stored", || {
        db.one::<i64>(&changed) == 57
    });
    // Others go on, and what is locked is not asked for again.
    db.run("INSERT INTO item VALUES (100, 'meanwhile')");
    wait_until(PATIENCE, "another row is stored", || {
        db.one::<i64>(&changed) == 58
    });
    meanwhile(Duration::from_secs(1), || {
        assert!(!worker_waits(&mut db), "the worker waits for a user");
        assert_eq!(db.one::<i64>(&changed), 58);
    });
    open.commit().unwrap();
    db.settle("item_embedding");
    in_step(&mut db, &api);
    for id in [1, 30, 60] {
        assert_eq!(api.times_asked(&format!("changed {id}")), 1);
    }
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
    assert_eq!(
        db.one::<i64>("SELECT COALESCE(max(attempt), 0)::bigint FROM recsync.job"),
        0
    );
}

#[test]
fn a_row_that_changes_or_goes_while_it_is_locked_ends_as_it_should() {
    let api = Api::start();
    let mut db = items(&api);
    api.hold();
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 6) i");
    api.wait_until_held(1);
    let mut other = db.connect();
    let mut open = other.transaction().unwrap();
    open.batch_execute(
        "UPDATE item SET title = 'changed' WHERE id = 1; DELETE FROM item WHERE id = 2; UPDATE item SET id = 33 WHERE id = 3;
         UPDATE item SET title = NULL WHERE id = 4; SELECT FROM item WHERE id = 5 FOR UPDATE",
    )
    .unwrap();
    api.release();
    wait_until(PATIENCE, "the row that nobody holds is stored", || {
        stored(&mut db) == 1
    });
    open.commit().unwrap();
    db.settle("item_embedding");
    in_step(&mut db, &api);
    assert_eq!(stored(&mut db), 4);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding_g1"), 4);
    assert_eq!(api.times_asked("row 3"), 1, "its text has not changed");
}

#[test]
fn a_row_without_a_text_that_is_locked_loses_its_vector_afterwards() {
    let api = Api::start();
    let mut db = items(&api);
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 100) i");
    db.settle("item_embedding");
    let mut other = db.connect();
    db.run("SELECT recsync.pause('item_embedding')");
    db.run("UPDATE item SET title = NULL WHERE id <= 90");
    let mut open = other.transaction().unwrap();
    open.batch_execute("SELECT FROM item WHERE id IN (1, 90) FOR NO KEY UPDATE")
        .unwrap();
    db.run("SELECT recsync.resume('item_embedding')");
    wait_until(PATIENCE, "the others have lost theirs", || {
        stored(&mut db) == 12
    });
    meanwhile(Duration::from_millis(500), || {
        assert!(!worker_waits(&mut db), "the worker waits for a user");
        assert_eq!(stored(&mut db), 12);
    });
    open.commit().unwrap();
    db.settle("item_embedding");
    in_step(&mut db, &api);
    assert_eq!(stored(&mut db), 10);
    assert_eq!(api.texts().len(), 100);
}

#[test]
fn a_table_that_is_locked_for_an_index_build_or_ddl_is_not_waited_for() {
    let api = Api::start();
    let mut db = items(&api);
    db.run("CREATE TABLE other (id int PRIMARY KEY, title text)");
    db.pipeline("other_embedding", "other");
    db.run("INSERT INTO item VALUES (1, 'one'), (2, 'two'), (3, NULL)");
    db.settle("item_embedding");
    for lock in ["SHARE", "SHARE ROW EXCLUSIVE"] {
        api.hold();
        db.run(&format!(
            "UPDATE item SET title = 'one by {lock}' WHERE id = 1"
        ));
        api.wait_until_held(1);
        let mut builder = db.connect();
        let mut build = builder.transaction().unwrap();
        build
            .batch_execute(&format!("LOCK TABLE item IN {lock} MODE"))
            .unwrap();
        api.release();
        db.run(&format!(
            "INSERT INTO other VALUES ({}, 'other')",
            lock.len()
        ));
        db.settle("other_embedding");
        meanwhile(Duration::from_millis(500), || {
            assert!(!worker_waits(&mut db), "the worker waits for a user");
        });
        build.commit().unwrap();
        db.settle("item_embedding");
        in_step(&mut db, &api);
        assert_eq!(api.times_asked(&format!("one by {lock}")), 1);
    }
}

#[test]
fn users_write_while_vectors_are_stored_and_wait_for_milliseconds_at_most() {
    let api = Api::start();
    let mut db = table(&api, "");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 6000) i");
    let mut user = db.connect();
    user.run("SET lock_timeout = '250 ms'; SET deadlock_timeout = '20 ms'");
    db.run(CREATE);
    let mut times = Vec::new();
    let mut round = 0;
    while stored(&mut db) < 5_000 || round < 50 {
        round += 1;
        for statement in [
            format!("UPDATE item SET title = 'by a user ' || id WHERE id % 500 = {round} % 500"),
            format!(
                "UPDATE item SET stock = stock + 1 WHERE id BETWEEN {round} * 10 AND {round} * 10 + 200"
            ),
            format!("DELETE FROM item WHERE id = {}", 6000 - round),
        ] {
            let started = Instant::now();
            user.run(&statement);
            times.push(started.elapsed());
        }
    }
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!(
        "{} statements: p50 {:?}, p90 {:?}, p99 {:?}, worst {:?}",
        times.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
    assert!(at(90) < Duration::from_millis(50), "{:?}", at(90));
    db.settle("item_embedding");
    in_step(&mut db, &api);
}
