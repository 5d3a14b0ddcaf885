//! Invariant 1: a committed change of a watched row is never lost, whatever dies when.
//! Invariant 4: a vector and the completion of its job commit together.

use std::time::Duration;

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, shared, wait_until};

const ROWS: i32 = 120;

/// Rows that are embedded, then a change of each kind, which the test interrupts.
fn embedded_items<'a>(cluster: &'a Cluster, api: &Api) -> Database<'a> {
    let mut db = cluster.database();
    db.items(api, "");
    db.run(&format!(
        "INSERT INTO item SELECT i, 'old ' || i FROM generate_series(1, {ROWS}) i"
    ));
    db.settle("item_embedding");
    db
}

fn change_items(db: &mut Database) {
    db.run("UPDATE item SET title = 'new ' || id WHERE id <= 60");
    db.run("DELETE FROM item WHERE id BETWEEN 61 AND 80");
    db.run("UPDATE item SET title = NULL WHERE id BETWEEN 81 AND 90");
    db.run("INSERT INTO item SELECT i, 'more ' || i FROM generate_series(1001, 1030) i");
    db.run("UPDATE item SET id = id + 2000 WHERE id BETWEEN 91 AND 95");
}

#[test]
fn invariant_1_worker_killed_while_a_request_is_in_flight_loses_nothing() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = embedded_items(&cluster, &api);
    api.hold();
    change_items(&mut db);
    api.wait_until_held(1);
    db.kill9_worker();
    api.release();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
}

#[test]
fn invariant_1_and_4_worker_killed_between_reply_and_commit_costs_one_call_and_nothing_else() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = embedded_items(&cluster, &api);
    let mut other = db.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("LOCK TABLE item_embedding_g1 IN SHARE MODE")
        .unwrap();
    db.run("UPDATE item SET title = 'between' WHERE id = 1");
    db.wait_until_worker_waits_for_lock();
    assert_eq!(
        api.times_asked("between"),
        1,
        "the reply is there before the store"
    );
    db.kill9_worker();
    drop(lock.commit());
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert!(
        api.times_asked("between") <= 2,
        "{} calls for one text",
        api.times_asked("between")
    );
}

#[test]
fn invariant_1_whole_server_killed_while_requests_are_in_flight_loses_nothing() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = embedded_items(&cluster, &api);
    api.hold();
    change_items(&mut db);
    api.wait_until_held(1);
    cluster.kill9_all();
    api.release();
    cluster.start_again();
    db.reconnect();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn invariant_1_whole_server_killed_between_reply_and_commit_loses_nothing() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = embedded_items(&cluster, &api);
    let mut other = db.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("LOCK TABLE item_embedding_g1 IN SHARE MODE")
        .unwrap();
    change_items(&mut db);
    db.wait_until_worker_waits_for_lock();
    cluster.kill9_all();
    drop(lock.commit());
    cluster.start_again();
    db.reconnect();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn invariant_1_server_killed_in_the_middle_of_a_backfill_goes_on_where_it_was() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = cluster.database();
    db.server("api", &api, "max_batch_inputs '10', max_concurrency '1'");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 600) i");
    api.hold_texts_with("row 300");
    db.pipeline("item_embedding", "item");
    api.wait_until_held(1);
    cluster.kill9_all();
    api.release();
    cluster.start_again();
    db.reconnect();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn invariant_1_clean_restart_in_the_middle_of_work_loses_nothing() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = embedded_items(&cluster, &api);
    api.hold();
    change_items(&mut db);
    api.wait_until_held(1);
    cluster.restart();
    api.release();
    db.reconnect();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn invariant_1_two_databases_at_once_lose_and_mix_nothing() {
    let cluster = shared();
    let apis = [Api::start(), Api::start()];
    let mut databases = [cluster.database(), cluster.database()];
    for (db, api) in databases.iter_mut().zip(&apis) {
        db.items(api, "");
    }
    let names = ["left", "right"];
    for round in 0..20 {
        for (db, name) in databases.iter_mut().zip(names) {
            db.run(&format!("INSERT INTO item SELECT {round} * 10 + i, '{name} {round} ' || i FROM generate_series(0, 9) i"));
            db.run(&format!(
                "UPDATE item SET title = '{name} again ' || id WHERE id % 7 = {round} % 7"
            ));
            db.run(&format!("DELETE FROM item WHERE id % 31 = {round}"));
        }
    }
    for ((db, api), (name, foreign)) in databases
        .iter_mut()
        .zip(&apis)
        .zip([("left", "right"), ("right", "left")])
    {
        db.settle("item_embedding");
        db.assert_items_in_step(api);
        let texts = api.texts();
        assert!(texts.iter().any(|text| text.contains(name)));
        assert!(
            !texts.iter().any(|text| text.contains(foreign)),
            "a text of another database was sent"
        );
    }
}

#[test]
fn invariant_1_prepared_transaction_is_picked_up_when_it_is_committed_also_after_a_restart() {
    let cluster = Cluster::start(&[("max_prepared_transactions", "2")]);
    let api = Api::start();
    let mut db = embedded_items(&cluster, &api);
    for (id, restart) in [(1, false), (2, true)] {
        db.run(&format!(
            "BEGIN; UPDATE item SET title = 'prepared {id}' WHERE id = {id}"
        ));
        db.run(&format!("PREPARE TRANSACTION 'p{id}'"));
        db.run("UPDATE item SET title = 'beside ' || id WHERE id > 100");
        db.settle("item_embedding");
        assert_eq!(api.times_asked(&format!("prepared {id}")), 0);
        if restart {
            cluster.restart();
            db.reconnect();
        }
        db.run(&format!("COMMIT PREPARED 'p{id}'"));
        db.settle("item_embedding");
        db.assert_items_in_step(&api);
        assert_eq!(api.times_asked(&format!("prepared {id}")), 1);
    }
}

/// What a reader sees of one row that has been tried before, and so is a row of the job table: (jobs, vectors).
const JOB_AND_VECTOR: &str = "SELECT (SELECT count(*) FROM recsync.job)::text || (SELECT count(*) FROM item_embedding)::text";

/// A row whose first attempt has failed and whose second is held at the API.
fn second_attempt_in_flight<'a>(api: &Api) -> Database<'a> {
    let mut db = shared().database();
    db.items(api, "");
    api.fail_next_and_hold_the_rest(418);
    db.run("INSERT INTO item VALUES (1, 'tried twice')");
    wait_until(PATIENCE, "the first attempt has failed", || {
        api.failures_left() == 0
    });
    wait_until(PATIENCE, "it is a job", || {
        db.one::<String>(JOB_AND_VECTOR) == "10"
    });
    api.wait_until_held(1);
    db
}

#[test]
fn invariant_4_job_is_not_complete_before_its_vector_is_stored() {
    let api = Api::start();
    let mut db = second_attempt_in_flight(&api);
    let mut other = db.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("LOCK TABLE item_embedding_g1 IN SHARE MODE")
        .unwrap();
    api.release();
    db.wait_until_worker_waits_for_lock();
    assert_eq!(db.one::<String>(JOB_AND_VECTOR), "10");
    assert!(!db.one::<bool>("SELECT recsync.wait_for('item_embedding', '300 ms')"));
    lock.commit().unwrap();
    db.settle("item_embedding");
    assert_eq!(db.one::<String>(JOB_AND_VECTOR), "01");
    db.assert_items_in_step(&api);
}

#[test]
fn invariant_4_vector_is_not_visible_before_its_job_is_complete() {
    let api = Api::start();
    let mut db = second_attempt_in_flight(&api);
    let mut other = db.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("LOCK TABLE recsync.job IN SHARE MODE")
        .unwrap();
    api.release();
    db.wait_until_worker_waits_for_lock();
    assert_eq!(db.one::<String>(JOB_AND_VECTOR), "10");
    lock.commit().unwrap();
    db.settle("item_embedding");
    assert_eq!(db.one::<String>(JOB_AND_VECTOR), "01");
    db.assert_items_in_step(&api);
}

#[test]
fn invariant_4_wait_for_is_true_only_when_the_vector_is_visible() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    for id in 0..30 {
        api.set_delay(Duration::from_millis(id % 7));
        db.run(&format!("INSERT INTO item VALUES ({id}, 'row {id}')"));
        db.settle("item_embedding");
        let stored: String = db.one(&format!(
            "SELECT COALESCE((SELECT embedding::text FROM item_embedding WHERE id = {id}), '')"
        ));
        assert!(
            api.is_vector_of(&stored, &format!("row {id}")),
            "row {id} is not there after wait_for"
        );
    }
}
