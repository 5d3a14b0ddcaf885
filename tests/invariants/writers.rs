//! Invariants 1, 4, 5, 7 and 8 where writers store: nothing is lost, doubled or older than it should be, and one bad row
//! delays no other.

use std::time::Duration;

use crate::support::{Api, Cluster, PATIENCE, Sql, process, wait_until};

/// What a row's store takes with HNSW.
const ROW: Duration = Duration::from_millis(2);

fn cluster() -> Cluster {
    Cluster::start(&[("max_worker_processes", "16"), ("recsync.max_writers", "2")])
}

#[test]
fn invariant_1_writer_killed_in_the_middle_of_a_store_loses_nothing() {
    let cluster = cluster();
    let api = Api::start();
    let mut db = cluster.database();
    db.slow_items(&api, "", 1_500, ROW);
    db.wait_until_writers_store(1);
    db.run("UPDATE item SET title = 'changed ' || id WHERE id % 10 = 0");
    process::kill9(db.writers()[0]);
    wait_until(PATIENCE, "the server notices the crash", || {
        db.batch_execute("SELECT 1").is_err()
    });
    db.reconnect();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.job"), 0);
}

#[test]
fn invariant_5_rows_that_change_go_and_come_while_writers_store_end_with_their_current_text() {
    let cluster = cluster();
    let api = Api::start();
    let mut db = cluster.database();
    db.slow_items(&api, "", 2_000, ROW);
    db.wait_until_writers_store(1);
    for round in 0..8 {
        for change in [
            "UPDATE item SET title = 'round $ of ' || id WHERE id % 7 = $ % 7",
            "DELETE FROM item WHERE id % 31 = $",
            "UPDATE item SET title = NULL WHERE id % 37 = $",
            "UPDATE item SET id = id + 10000 WHERE id % 41 = $ AND id < 10000",
            "INSERT INTO item SELECT 20000 + $ * 100 + i, 'new $ ' || i FROM generate_series(1, 20) i",
        ] {
            db.run(&change.replace('$', &round.to_string()));
            db.pause(Duration::from_millis(20));
        }
    }
    assert!(
        !db.writers().is_empty(),
        "the writers were to be busy meanwhile"
    );
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    // The same once more, with every row known to the table.
    db.run("UPDATE item SET title = 'all ' || id");
    db.wait_until_writers_store(1);
    db.run(
        "UPDATE item SET title = 'some ' || id WHERE id % 3 = 0; DELETE FROM item WHERE id % 5 = 0",
    );
    db.pause(Duration::from_millis(100));
    db.run(
        "TRUNCATE item; INSERT INTO item SELECT i, 'after all ' || i FROM generate_series(1, 50) i",
    );
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn invariant_8_row_that_cannot_be_stored_is_a_dead_letter_and_delays_no_other() {
    let cluster = cluster();
    let api = Api::start();
    let mut db = cluster.database();
    db.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = 'check_violation'; END $$",
    );
    db.slow_items(&api, "max_attempts '1'", 1_000, ROW);
    db.run(
        "CREATE TRIGGER refuse BEFORE INSERT ON item_embedding_g1 FOR EACH ROW WHEN (NEW.id = 777) EXECUTE FUNCTION refuse()",
    );
    db.settle("item_embedding");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 999);
    assert_eq!(
        db.column::<Vec<String>>("SELECT record_key FROM recsync.dead_letter"),
        [["777"]]
    );
    assert!(
        db.one::<bool>("SELECT bool_and(message LIKE '%not this one%') FROM recsync.dead_letter")
    );
    let stored_by_writers: i64 =
        db.one("SELECT count(*) FROM stored_by WHERE pid <> (SELECT pid FROM pg_stat_activity WHERE backend_type = 'recsync worker')");
    assert!(stored_by_writers > 500, "{stored_by_writers}");
    db.run(
        "DROP TRIGGER refuse ON item_embedding_g1; UPDATE item SET title = 'now' WHERE id = 777",
    );
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
}

#[test]
fn invariant_7_text_whose_vector_is_not_stored_yet_is_not_asked_for_again() {
    let cluster = cluster();
    let api = Api::start();
    let mut db = cluster.database();
    db.slow_items(&api, "", 1_500, ROW);
    db.wait_until_writers_store(1);
    // The first ones are stored, others in the writers' hands, ready, in flight, or not looked at yet.
    db.run("INSERT INTO item SELECT id + 10000, title FROM item");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(api.texts().len(), 1_500);
}

#[test]
fn pipeline_that_is_paused_altered_or_dropped_while_writers_store_goes_on_rightly() {
    let cluster = cluster();
    let api = Api::start();
    let mut db = cluster.database();
    db.slow_items(&api, "", 2_000, ROW);
    db.wait_until_writers_store(1);
    db.run("SELECT recsync.pause('item_embedding')");
    db.run("UPDATE item SET title = 'while paused ' || id WHERE id % 9 = 0");
    db.run("SELECT recsync.resume('item_embedding')");
    db.wait_until_writers_store(1);
    // Another declaration, by which everything is rendered anew.
    db.run("ALTER SERVER api OPTIONS (ADD max_batch_inputs '20')");
    db.run("UPDATE item SET title = 'altered ' || id WHERE id % 9 = 1");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    db.run("UPDATE item SET title = 'at last ' || id");
    db.wait_until_writers_store(1);
    db.run("SELECT recsync.drop_pipeline('item_embedding')");
    let worker = db.worker();
    wait_until(PATIENCE, "the writers leave", || db.writers().is_empty());
    assert_eq!(db.worker(), worker);
}
