//! Invariant 7: the same text is not paid for twice: within a batch, in flight, across rows, across restarts, after
//! an edit is reverted.

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, shared, wait_until};

fn items<'a>(api: &Api) -> Database<'a> {
    let mut db = shared().database();
    db.items(api, "max_attempts '10'");
    db
}

/// Runs a change, waits, and says how many texts were sent for it.
fn sent(db: &mut Database, api: &Api, change: &str) -> usize {
    let before = api.texts().len();
    db.run(change);
    db.settle("item_embedding");
    db.assert_items_in_step(api);
    api.texts().len() - before
}

#[test]
fn invariant_7_an_edit_that_is_undone_costs_no_call() {
    let api = Api::start();
    let mut db = items(&api);
    let mut cost = |change: &str| sent(&mut db, &api, change);
    assert_eq!(
        cost("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 200) i"),
        200
    );
    assert_eq!(cost("UPDATE item SET title = 'sale: ' || title"), 200);
    assert_eq!(cost("UPDATE item SET title = substr(title, 7)"), 0);
    assert_eq!(cost("UPDATE item SET title = 'sale: ' || title"), 0);
    assert_eq!(cost("UPDATE item SET title = NULL WHERE id = 1"), 0);
    assert_eq!(cost("UPDATE item SET title = 'row 1' WHERE id = 1"), 0);
}

#[test]
fn invariant_7_a_row_that_comes_back_or_changes_its_key_costs_no_call() {
    let api = Api::start();
    let mut db = items(&api);
    let mut cost = |change: &str| sent(&mut db, &api, change);
    assert_eq!(cost("INSERT INTO item VALUES (1, 'one'), (2, 'two')"), 2);
    assert_eq!(cost("DELETE FROM item WHERE id = 1"), 0);
    assert_eq!(cost("INSERT INTO item VALUES (1, 'one')"), 0);
    assert_eq!(cost("UPDATE item SET id = id + 10"), 0);
    assert_eq!(cost("TRUNCATE item"), 0);
}

#[test]
fn invariant_7_rows_of_one_text_share_one_call() {
    let api = Api::start();
    let mut db = items(&api);
    let mut cost = |change: &str| sent(&mut db, &api, change);
    assert_eq!(
        cost("INSERT INTO item SELECT i, 'the same' FROM generate_series(1, 500) i"),
        1
    );
    assert_eq!(cost("INSERT INTO item VALUES (501, 'the same')"), 0);
    assert_eq!(cost("UPDATE item SET title = 'another'"), 1);
}

#[test]
fn invariant_7_a_text_that_is_in_flight_is_not_sent_again() {
    let api = Api::start();
    let mut db = items(&api);
    api.hold();
    db.run("INSERT INTO item VALUES (1, 'the same')");
    api.wait_until_held(1);
    db.run("INSERT INTO item VALUES (2, 'the same'), (3, 'another')");
    api.wait_until_held(2);
    api.release();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(api.times_asked("the same"), 1);
    // Where the request fails, all of its rows are tried again.
    api.refuse_texts_with("refused", 418);
    api.hold();
    db.run("INSERT INTO item VALUES (4, 'refused')");
    api.wait_until_held(1);
    db.run("INSERT INTO item VALUES (5, 'refused'), (6, 'and another')");
    api.wait_until_held(2);
    api.release();
    wait_until(PATIENCE, "both have failed", || {
        db.one::<i64>("SELECT count(*) FROM recsync.job WHERE attempt >= 1") == 2
    });
    api.refuse_nothing();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn invariant_7_a_restart_forgets_no_text_and_a_crash_none_that_a_row_has() {
    let api = Api::start();
    let cluster = Cluster::start(&[]);
    let mut db = cluster.database();
    db.items(&api, "");
    assert_eq!(
        sent(
            &mut db,
            &api,
            "INSERT INTO item VALUES (1, 'one'), (2, 'two')"
        ),
        2
    );
    assert_eq!(
        sent(
            &mut db,
            &api,
            "UPDATE item SET title = 'three' WHERE id = 1"
        ),
        1
    );
    cluster.restart();
    db.reconnect();
    assert_eq!(
        sent(&mut db, &api, "UPDATE item SET title = 'one' WHERE id = 1"),
        0
    );
    cluster.kill9_all();
    cluster.start_again();
    db.reconnect();
    assert_eq!(sent(&mut db, &api, "INSERT INTO item VALUES (3, 'one')"), 0);
}

#[test]
fn known_texts_are_nobodys_and_take_no_more_room_than_they_may() {
    let api = Api::start();
    let cluster = Cluster::start(&[("recsync.known_text_size", "1MB")]);
    let mut db = cluster.database();
    db.items(&api, "max_batch_inputs '500'");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 3000) i");
    db.settle("item_embedding");
    for round in 1..=4 {
        db.run(&format!("UPDATE item SET title = 'round {round} ' || id"));
        db.settle("item_embedding");
    }
    let size: i64 = db.one("SELECT sum(pg_relation_size(oid))::bigint FROM pg_class WHERE relname LIKE 'known\\_text\\__'");
    assert!(size > 0 && size < 2 << 20, "{size} bytes");
    assert_eq!(
        sent(
            &mut db,
            &api,
            "UPDATE item SET title = 'round 3 ' || id WHERE id > 2990"
        ),
        0
    );
    assert_eq!(
        sent(
            &mut db,
            &api,
            "UPDATE item SET title = 'row ' || id WHERE id <= 10"
        ),
        10,
        "forgotten"
    );

    db.run("CREATE ROLE reader LOGIN IN ROLE pg_monitor, recsync_admin");
    let mut reader = db.connect_as("reader");
    for relation in ["known_text", "known_text_0", "known_text_1"] {
        let error = reader.refused(&format!("SELECT * FROM recsync.{relation}"));
        assert_eq!(error.code().code(), "42501");
    }
    cluster.set("recsync.known_text_size", "0");
    wait_until(PATIENCE, "the setting is there", || {
        db.one("SELECT current_setting('recsync.known_text_size') = '0'")
    });
    assert_eq!(
        sent(&mut db, &api, "UPDATE item SET title = 'zero' WHERE id = 1"),
        1
    );
    assert_eq!(
        sent(&mut db, &api, "UPDATE item SET title = 'one' WHERE id = 1"),
        1
    );
    assert_eq!(
        sent(&mut db, &api, "UPDATE item SET title = 'zero' WHERE id = 1"),
        1
    );
}
