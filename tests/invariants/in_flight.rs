//! Invariant 3: no transaction, snapshot or row lock is held while a request is in flight.
//! Invariant 5: an older text never overwrites a newer one; a deleted row is in no result from the commit on.

use std::time::{Duration, Instant};

use crate::support::{Api, Database, PATIENCE, Sql, shared, wait_until};

#[test]
fn invariant_3_no_transaction_snapshot_or_lock_is_held_while_a_request_is_in_flight() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 100) i");
    db.settle("item_embedding");
    api.hold();
    db.run("UPDATE item SET title = 'held ' || id");
    api.wait_until_held(2);
    let worker = db.worker();
    // The worker may do something short at any time; what is held during the request is seen again and again.
    let mut seen = Vec::new();
    for _ in 0..20 {
        let state = db.rows(&format!(
            "SELECT pg_sleep(0.03)::text, xact_start::text, backend_xmin::text, backend_xid::text,
                    (SELECT string_agg(DISTINCT concat_ws(' ', locktype, relation::regclass, virtualxid, mode), ', ')
                       FROM pg_locks WHERE pid = {worker} AND locktype <> 'advisory')
               FROM pg_stat_activity WHERE pid = {worker}"
        ));
        let [start, xmin, xid, locks]: [Option<String>; 4] =
            std::array::from_fn(|column| state[0].get(column + 1));
        seen.push(format!("{start:?} {xmin:?} {xid:?} {locks:?}"));
    }
    let idle = format!("{0:?} {0:?} {0:?} {0:?}", None::<String>);
    let busy: Vec<&String> = seen.iter().filter(|state| **state != idle).collect();
    assert!(
        busy.len() <= 5,
        "the worker is in a transaction or holds locks during a request: {busy:#?}"
    );
    // Whatever anybody wants to do with the tables, they can.
    db.run("SET lock_timeout = '2 s'");
    db.run("BEGIN; LOCK TABLE item, item_embedding_g1 IN ACCESS EXCLUSIVE MODE; COMMIT");
    db.run("BEGIN; SELECT FROM item FOR UPDATE NOWAIT; SELECT FROM item_embedding_g1 FOR UPDATE NOWAIT; COMMIT");
    api.release();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn invariant_5_update_while_the_rows_request_is_in_flight_ends_with_the_newer_text() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    api.hold_texts_with("first");
    db.run("INSERT INTO item VALUES (1, 'first')");
    api.wait_until_held(1);
    db.run("UPDATE item SET title = 'second' WHERE id = 1");
    db.run("UPDATE item SET title = 'third' WHERE id = 1");
    assert!(
        !db.one::<bool>("SELECT recsync.wait_for('item_embedding', '200 ms')"),
        "the newer text is not embedded yet"
    );
    api.release();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn invariant_5_vector_that_was_written_since_the_text_was_rendered_is_not_overwritten_blindly() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("INSERT INTO item VALUES (1, 'first')");
    db.settle("item_embedding");
    api.hold_texts_with("second");
    db.run("UPDATE item SET title = 'second' WHERE id = 1");
    api.wait_until_held(1);
    // What another writer, of a newer text, would leave.
    db.run("UPDATE item_embedding_g1 SET content_hash = 'newer'");
    api.release();
    db.settle("item_embedding");
    assert_eq!(
        api.times_asked("second"),
        2,
        "the row is looked at again when its vector has changed meanwhile"
    );
    db.assert_items_in_step(&api);
}

#[test]
fn invariant_5_reply_for_an_older_text_that_comes_last_does_not_win() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "max_batch_inputs '1', max_concurrency '8'");
    db.run("INSERT INTO item SELECT i, 'start ' || i FROM generate_series(1, 8) i");
    db.settle("item_embedding");
    for round in 0..5 {
        api.hold_texts_with(&format!("older {round}"));
        db.run(&format!(
            "UPDATE item SET title = 'older {round} of ' || id WHERE id <= 4"
        ));
        api.wait_until_held(4);
        db.run(&format!(
            "UPDATE item SET title = 'newer {round} of ' || id WHERE id <= 4"
        ));
        // Time enough for a worker that does not wait for the older reply.
        db.pause(Duration::from_millis(100));
        api.release();
        db.settle("item_embedding");
        db.assert_items_in_step(&api);
    }
}

#[test]
fn invariant_5_delete_truncate_null_and_key_change_while_the_request_is_in_flight_leave_no_vector()
{
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("INSERT INTO item SELECT i, 'was there ' || i FROM generate_series(1, 3) i");
    db.settle("item_embedding");
    let changes = [
        ("DELETE FROM item WHERE id > 1", 1),
        ("UPDATE item SET title = NULL WHERE id > 1", 1),
        ("UPDATE item SET title = '' WHERE id > 1", 1),
        ("UPDATE item SET id = id + 100 WHERE id > 1", 5),
        ("TRUNCATE item", 0),
    ];
    // The reply comes at the same time as the change, or when the worker has long dealt with it.
    let rounds = changes.map(|change| [(0, change), (300, change)]).concat();
    for (round, (pause, (change, left))) in rounds.into_iter().enumerate() {
        db.run(
            "INSERT INTO item SELECT i, 'there again ' || i FROM generate_series(1, 3) i
                ON CONFLICT (id) DO UPDATE SET title = excluded.title",
        );
        db.settle("item_embedding");
        api.hold();
        // A text that recsync knows would need no request.
        db.run(&format!(
            "UPDATE item SET title = title || ' held {round}' WHERE id BETWEEN 2 AND 3"
        ));
        db.run(&format!(
            "INSERT INTO item SELECT i, 'new and held {round} ' || i FROM generate_series(4, 5) i"
        ));
        api.wait_until_held(1);
        db.run(change);
        db.pause(Duration::from_millis(pause));
        api.release();
        db.settle("item_embedding");
        db.assert_items_in_step(&api);
        assert_eq!(
            db.one::<i64>("SELECT count(*) FROM item_embedding"),
            left,
            "after {change} and {pause} ms"
        );
        db.run("DELETE FROM item WHERE id <> 1");
        db.settle("item_embedding");
    }
}

#[test]
fn invariant_5_deleted_truncated_or_no_longer_matching_row_is_in_no_result_from_the_commit_on() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run(
        "CREATE TABLE item (id int PRIMARY KEY, title text, hidden boolean NOT NULL DEFAULT false);
            INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 20) i",
    );
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', row_filter => 'NOT hidden')");
    db.settle("item_embedding");
    assert_eq!(found(&mut db).len(), 20);

    // The worker cannot act: it waits for this lock.
    let mut other = db.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("LOCK TABLE item_embedding_g1 IN SHARE MODE")
        .unwrap();
    db.run("DELETE FROM item WHERE id = 1");
    assert!(
        !found(&mut db).contains(&"1".to_owned()),
        "a deleted row is in the result"
    );
    db.run("UPDATE item SET hidden = true WHERE id = 2");
    assert!(
        !found(&mut db).contains(&"2".to_owned()),
        "a row that no longer matches is in the result"
    );
    db.run("UPDATE item SET id = 103 WHERE id = 3");
    assert!(
        !found(&mut db).contains(&"3".to_owned()),
        "a key that is no longer there is in the result"
    );
    assert_eq!(found(&mut db).len(), 17);
    db.run("TRUNCATE item");
    assert_eq!(
        found(&mut db),
        Vec::<String>::new(),
        "truncated rows are in the result"
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM item_embedding_g1"),
        20,
        "the worker was not held up"
    );
    lock.commit().unwrap();
    db.settle("item_embedding");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding_g1"), 0);
}

fn found(db: &mut Database) -> Vec<String> {
    db.column("SELECT item FROM recsync.search('item_embedding', 'row 1', k => 100) ORDER BY rank")
}

#[test]
fn invariant_5_vector_of_a_deleted_row_is_gone_soon_also_while_another_request_is_in_flight() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 60) i");
    db.settle("item_embedding");
    api.hold();
    db.run("UPDATE item SET title = 'slow' WHERE id = 60");
    api.wait_until_held(1);
    let mut times = Vec::new();
    for id in 1..=40 {
        let left = format!("SELECT count(*) FROM item_embedding WHERE id = {id}");
        db.run(&format!("DELETE FROM item WHERE id = {id}"));
        let committed = Instant::now();
        wait_until(PATIENCE, "the vector is gone", || db.one::<i64>(&left) == 0);
        times.push(committed.elapsed());
    }
    times.sort();
    println!(
        "vector gone after the delete's commit: p50 {:?}, worst {:?} of {}",
        times[times.len() / 2],
        times[times.len() - 1],
        times.len()
    );
    // 50 ms is what is promised; a busy machine gets more for the median, and a missed wake-up would take longer.
    assert!(
        times[times.len() / 2] < Duration::from_millis(150),
        "{times:?}"
    );
    api.release();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}
