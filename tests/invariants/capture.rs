//! Invariant 2: a rolled-back change leaves nothing.
//! Invariant 6: an update of columns that the text does not use costs nothing; the worker's own writes neither.

use crate::support::{Api, Sql, shared};

#[test]
fn invariant_2_rolled_back_changes_and_savepoints_leave_nothing() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("INSERT INTO item VALUES (1, 'one'), (2, 'two')");
    db.settle("item_embedding");
    let logged: i64 = db.one("SELECT count(*) FROM recsync.change_log");
    assert_eq!(logged, 2);

    db.run("BEGIN; INSERT INTO item VALUES (3, 'never a'); UPDATE item SET title = 'never b' WHERE id = 1;
            DELETE FROM item WHERE id = 2; TRUNCATE item; ROLLBACK");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.change_log"),
        logged
    );

    db.run("BEGIN; UPDATE item SET title = 'kept' WHERE id = 1;
            SAVEPOINT s; UPDATE item SET title = 'never c' WHERE id = 2; INSERT INTO item VALUES (4, 'never d');
            ROLLBACK TO s; INSERT INTO item VALUES (5, 'kept, too'); COMMIT");
    // An exception block of PL/pgSQL is a savepoint as well.
    db.run(
        "DO $$ BEGIN
              BEGIN UPDATE item SET title = 'never e' WHERE id = 1; DELETE FROM item; PERFORM 1 / 0;
              EXCEPTION WHEN division_by_zero THEN NULL; END;
            END $$",
    );
    db.refused("INSERT INTO item VALUES (6, 'never f'), (6, 'never g')");
    db.settle("item_embedding");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.change_log"),
        logged + 2
    );
    db.assert_items_in_step(&api);
    let sent = api.texts();
    assert!(
        !sent.iter().any(|text| text.contains("never")),
        "rolled back, and sent: {sent:?}"
    );
}

#[test]
fn invariant_6_update_of_an_unused_column_costs_no_log_row_no_call_and_no_write() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("INSERT INTO item SELECT i, repeat('text ', 3000) || i FROM generate_series(1, 50) i");
    db.settle("item_embedding");
    const STORED: &str = "SELECT string_agg(concat_ws(' ', id, embedded_at, xmin), ',' ORDER BY id) FROM item_embedding_g1";
    let (requests, stored) = (api.requests().len(), db.one::<String>(STORED));
    let logged: i64 = db.one("SELECT count(*) FROM recsync.change_log");

    db.run("UPDATE item SET stock = stock + 1");
    db.run("UPDATE item SET title = title, stock = 7 WHERE id < 10");
    db.run("INSERT INTO item (id, title) VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET stock = 9");
    db.settle("item_embedding");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.change_log"),
        logged,
        "an unused column was logged"
    );
    assert_eq!(
        api.requests().len(),
        requests,
        "an unused column was paid for"
    );
    assert_eq!(
        db.one::<String>(STORED),
        stored,
        "an unused column made a vector be written"
    );

    db.run("UPDATE item SET title = 'changed', stock = 8 WHERE id = 1");
    db.settle("item_embedding");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.change_log"),
        logged + 1
    );
    assert_eq!(api.times_asked("changed"), 1);
}

#[test]
fn invariant_6_the_workers_own_writes_are_not_captured() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    // A pipeline over the vectors of another: whatever the worker writes there is its own.
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 20) i");
    db.settle("item_embedding");
    db.run("SELECT recsync.create_pipeline('models', 'item_embedding_g1', content => 'model', server => 'api', index => 'none')");
    db.settle("models");
    let logged: i64 = db.one("SELECT count(*) FROM recsync.change_log");
    db.run("UPDATE item SET title = 'again ' || id");
    db.settle("item_embedding");
    assert_eq!(
        db.column::<String>("SELECT DISTINCT table_name::text FROM recsync.change_log"),
        ["item"],
        "the worker's own writes are in the log"
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.change_log"),
        logged + 20
    );
}
