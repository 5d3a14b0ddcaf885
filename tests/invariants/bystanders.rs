//! Invariant 10: a user's write never waits for, fails because of, or becomes a deadlock's victim through recsync.
//! Invariant 11: a transaction that is open for long delays nobody else's changes.

use std::time::{Duration, Instant};

use crate::support::{Api, Database, Sql, shared};

/// What a statement may take. 10 ms is what is promised, and what nine of ten must keep to; the machine may be busy
/// with something else. The times themselves are printed.
const AT_ONCE: Duration = Duration::from_millis(10);
const BUSY_MACHINE: Duration = Duration::from_millis(1_000);

/// How long the store's transaction is held up.
const HELD: Duration = Duration::from_secs(3);

const ISOLATION_LEVELS: [&str; 3] = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];

/// 200 embedded rows, and a second table that is truncated.
fn watched<'a>(api: &Api) -> Database<'a> {
    let mut db = shared().database();
    db.items(api, "");
    db.run("CREATE TABLE other (id int PRIMARY KEY, title text)");
    db.pipeline("other_embedding", "other");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 200) i");
    db.run("INSERT INTO other SELECT i, 'row ' || i FROM generate_series(1, 200) i");
    db.settle("item_embedding");
    db.settle("other_embedding");
    db
}

/// Every kind of write at each isolation level, in transactions and by themselves, for `how_long`.
fn write_at_each_isolation_level(db: &Database, how_long: Duration) {
    let mut user = db.connect();
    // What waits for the lock that the test holds would wait for ever.
    user.run(
        "SET lock_timeout = '2 s'; SET statement_timeout = '5 s'; SET deadlock_timeout = '50 ms'",
    );
    let started = Instant::now();
    let mut times = Vec::new();
    let mut id = 0;
    while started.elapsed() < how_long {
        for level in ISOLATION_LEVELS {
            id += 1;
            user.run(&format!(
                "BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM item"
            ));
            for statement in [
                format!(
                    "UPDATE item SET title = 'by a user' WHERE id = {}",
                    id % 40 + 1
                ),
                format!("DELETE FROM item WHERE id = {}", id % 200 + 1),
                format!(
                    "INSERT INTO item VALUES ({}, 'new') ON CONFLICT (id) DO UPDATE SET title = 'again'",
                    id % 200 + 1
                ),
                format!(
                    "UPDATE item SET id = id + 100000 WHERE id = {}",
                    (id + 7) % 200 + 1
                ),
                "INSERT INTO other VALUES (1000, 'to be truncated') ON CONFLICT DO NOTHING".into(),
                "TRUNCATE other".into(),
                "COMMIT".into(),
                "UPDATE item SET title = title || '!' WHERE id BETWEEN 50 AND 60".into(),
                "DELETE FROM item WHERE id > 100000".into(),
            ] {
                let started = Instant::now();
                user.run(&statement);
                times.push((started.elapsed(), statement));
            }
        }
    }
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].0;
    let (worst, which) = times.last().unwrap();
    println!(
        "{} statements: p50 {:?}, p90 {:?}, p99 {:?}, worst {worst:?} ({which})",
        times.len(),
        at(50),
        at(90),
        at(99)
    );
    assert!(
        at(90) < AT_ONCE,
        "a tenth of a user's writes took {:?} and more",
        at(90)
    );
    assert!(*worst < BUSY_MACHINE, "{which} took {worst:?}");
}

#[test]
fn invariant_10_users_write_at_every_isolation_level_while_a_store_holds_its_rows() {
    let api = Api::start();
    let mut db = watched(&api);
    // The store has written some of its rows when it comes to one that it must wait for.
    let mut other = db.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("SELECT FROM item_embedding_g1 WHERE id IN (40, 200) FOR UPDATE")
        .unwrap();
    db.run("UPDATE item SET title = 'stored in one transaction ' || id");
    db.wait_until_worker_waits_for_lock();
    write_at_each_isolation_level(&db, HELD);
    lock.commit().unwrap();
    settled_and_in_step(&mut db, &api);
}

#[test]
fn invariant_10_users_write_at_every_isolation_level_while_an_index_is_built_on_the_vectors() {
    let api = Api::start();
    let mut db = watched(&api);
    let mut other = db.connect();
    let mut build = other.transaction().unwrap();
    build
        .batch_execute("CREATE INDEX ON item_embedding_g1 USING hnsw (embedding vector_cosine_ops)")
        .unwrap();
    build
        .batch_execute("CREATE INDEX ON other_embedding_g1 (model)")
        .unwrap();
    db.run("UPDATE item SET title = 'while an index is built ' || id");
    db.wait_until_worker_waits_for_lock();
    write_at_each_isolation_level(&db, HELD);
    build.commit().unwrap();
    settled_and_in_step(&mut db, &api);
}

fn settled_and_in_step(db: &mut Database, api: &Api) {
    db.settle("item_embedding");
    db.settle("other_embedding");
    db.assert_items_in_step(api);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM other_embedding"),
        db.one::<i64>("SELECT count(*) FROM other")
    );
}

#[test]
fn invariant_10_repeatable_read_deletes_a_row_whose_vector_was_stored_since_its_snapshot() {
    let api = Api::start();
    let mut db = watched(&api);
    for level in &ISOLATION_LEVELS[1..] {
        // A change is in flight when the user's snapshot is taken, and stored before they write.
        api.hold_texts_with("as it was");
        db.run(&format!(
            "UPDATE item SET title = 'as it was, {level}' WHERE id BETWEEN 10 AND 12"
        ));
        db.run(&format!(
            "INSERT INTO item VALUES (5000, 'as it was, {level}, too')"
        ));
        api.wait_until_held(1);
        let mut user = db.connect();
        user.run(&format!(
            "BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM item"
        ));
        api.release();
        db.settle("item_embedding");
        user.run("DELETE FROM item WHERE id IN (10, 5000)");
        user.run("UPDATE item SET title = 'later' WHERE id = 11");
        user.run("UPDATE item SET id = id + 10000 WHERE id = 12");
        user.run("TRUNCATE other; COMMIT");
        db.settle("item_embedding");
        db.assert_items_in_step(&api);
        db.run(
            "INSERT INTO item VALUES (10, 'back'), (12, 'back'); DELETE FROM item WHERE id > 10000",
        );
    }
}

#[test]
fn invariant_10_paused_pipeline_and_stopped_provider_do_not_show_in_a_users_write() {
    let api = Api::start();
    let mut db = watched(&api);
    db.run("SELECT recsync.pause('other_embedding')");
    api.down();
    write_at_each_isolation_level(&db, Duration::from_secs(1));
    api.up();
    db.run("SELECT recsync.resume('other_embedding')");
    settled_and_in_step(&mut db, &api);
}

#[test]
fn invariant_10_any_ddl_on_a_watched_table_goes_through_and_a_lost_column_pauses_the_pipeline_with_a_reason()
 {
    let api = Api::start();
    let mut db = watched(&api);
    db.run("SET lock_timeout = '2 s'");
    db.run("ALTER TABLE item ADD note text; ALTER TABLE item DROP stock; ALTER TABLE item ALTER title SET NOT NULL");
    db.run("ALTER TABLE item ALTER title TYPE varchar(500)");
    db.run("UPDATE item SET title = 'after DDL' WHERE id = 1");
    db.settle("other_embedding");
    db.run("ALTER TABLE other DROP COLUMN title");
    db.run("INSERT INTO other VALUES (301)");
    crate::support::wait_until(
        crate::support::PATIENCE,
        "the pipeline says that its column is gone",
        || {
            db.one("SELECT COALESCE(bool_or(paused_reason LIKE '%title%'), false) FROM recsync.status WHERE name LIKE '%other_embedding'")
        },
    );
    db.run("DROP TABLE other CASCADE");
    db.run("INSERT INTO item VALUES (301, 'still watched')");
}

#[test]
fn invariant_11_open_transaction_delays_nobody_and_its_own_changes_come_when_it_commits() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("INSERT INTO item VALUES (1, 'one'), (2, 'two')");
    db.settle("item_embedding");
    let mut open = db.connect();
    let mut held = open.transaction().unwrap();
    held.batch_execute("UPDATE item SET title = 'held open' WHERE id = 1; INSERT INTO item VALUES (5, 'held open, too')").unwrap();
    let mut snapshot = db.connect();
    snapshot.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM item");

    let started = Instant::now();
    for id in 1_000..2_000 {
        db.run(&format!("INSERT INTO item VALUES ({id}, 'row {id}')"));
    }
    let written = started.elapsed();
    crate::support::wait_until(
        crate::support::PATIENCE,
        "the thousand are embedded beside the open one",
        || {
            db.one::<i64>("SELECT count(*) FROM item_embedding WHERE id BETWEEN 1000 AND 1999")
                == 1_000
        },
    );
    println!(
        "1,000 transactions beside an open one: written in {written:?}, embedded after {:?}",
        started.elapsed()
    );
    assert_eq!(
        api.times_asked("held open"),
        0,
        "a change was sent before it was committed"
    );
    // Each is dispatched once, however long the open one stays in every snapshot.
    let sent = api.texts();
    assert_eq!(sent.len(), 1_002, "something was sent twice");

    held.commit().unwrap();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(api.times_asked("held open"), 1);
    assert_eq!(api.texts().len(), 1_004);
    snapshot.run("COMMIT");
}
