//! What the triggers have not seen: the pipeline says so, and looks at all rows by itself unless it is told not to.

use std::time::Duration;

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, by_hand, shared, wait_until};

fn items<'a>(cluster: &'a Cluster, api: &Api) -> Database<'a> {
    let mut db = cluster.database();
    db.items(api, "");
    db.run("INSERT INTO item (id, title) SELECT i, 'row ' || i FROM generate_series(1, 300) i");
    db.settle("item_embedding");
    api.forget();
    db
}

/// What a session does whose triggers do not fire.
fn as_replica(db: &mut Database, sql: &str) {
    db.run(&format!(
        "SET session_replication_role = replica; {sql}; RESET session_replication_role"
    ));
}

fn needs(db: &mut Database) -> Option<String> {
    db.one("SELECT needs_verify FROM recsync.status WHERE name = 'public.item_embedding'")
}

/// How often all rows were begun to be looked at.
fn rounds(db: &mut Database) -> i32 {
    db.one("SELECT round FROM recsync.backfill")
}

const LOAD: &str = "INSERT INTO item VALUES (1001, 'loaded'); UPDATE item SET title = 'changed' WHERE id = 7; DELETE FROM item WHERE id = 8";

#[test]
fn a_load_as_a_replica_is_followed_by_itself_and_only_what_has_changed_is_paid_for() {
    let api = Api::start();
    let mut db = items(shared(), &api);
    as_replica(&mut db, LOAD);
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    let mut texts = api.texts();
    texts.sort();
    assert_eq!(texts, ["changed", "loaded"]);
    let reason: String = db.one("SELECT backfill_reason FROM recsync.status");
    assert!(reason.contains("session_replication_role"), "{reason}");
    assert_eq!(needs(&mut db), None);
    let logged: Vec<String> = db
        .column("SELECT op FROM recsync.change_log WHERE op NOT IN ('INSERT', 'UPDATE', 'DELETE')");
    assert_eq!(
        logged,
        ["UNSEEN", "UNSEEN", "UNSEEN"][..logged.len()],
        "a line a transaction, or a few"
    );
    assert!(!logged.is_empty());
    let before = rounds(&mut db);
    as_replica(
        &mut db,
        "BEGIN; INSERT INTO item VALUES (1002, 'never'); ROLLBACK; UPDATE item SET title = 'x' WHERE id = -1; COPY item FROM '/dev/null'",
    );
    db.run("UPDATE item SET title = 'seen' WHERE id = 9");
    db.settle("item_embedding");
    assert_eq!(rounds(&mut db), before, "nothing was written");
    as_replica(&mut db, "TRUNCATE item");
    db.settle("item_embedding");
    wait_until(PATIENCE, "no vector is left", || {
        db.one("SELECT count(*) = 0 FROM item_embedding")
    });
}

#[test]
fn where_it_is_told_not_to_it_says_so_until_somebody_repairs_or_looks() {
    let api = Api::start();
    let mut db = items(by_hand(), &api);
    as_replica(&mut db, LOAD);
    wait_until(PATIENCE, "it says so", || needs(&mut db).is_some());
    db.settle("item_embedding");
    db.pause(Duration::from_millis(300));
    assert_eq!(api.requests_made(), 0);
    assert_eq!(db.one::<i64>("SELECT recsync.repair('item_embedding')"), 3);
    assert_eq!(needs(&mut db), None);
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    as_replica(&mut db, "INSERT INTO item VALUES (1003, 'more')");
    wait_until(PATIENCE, "it says so", || needs(&mut db).is_some());
    db.run("SELECT recsync.backfill('item_embedding', 'id = 1')");
    db.settle("item_embedding");
    assert!(needs(&mut db).is_some(), "some rows are not all of them");
    db.run("SELECT recsync.backfill('item_embedding')");
    assert_eq!(needs(&mut db), None);
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn turned_on_again_it_follows_what_it_has_noted() {
    let cluster = Cluster::start(&[("recsync.auto_verify", "off")]);
    let api = Api::start();
    let mut db = items(&cluster, &api);
    as_replica(&mut db, LOAD);
    wait_until(PATIENCE, "it says so", || needs(&mut db).is_some());
    cluster.set("recsync.auto_verify", "on");
    wait_until(PATIENCE, "it has begun", || needs(&mut db).is_none());
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn a_load_into_a_partition_after_enable_trigger_all_is_noticed_and_ordinary_writes_begin_nothing() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0) PARTITION BY RANGE (id);
            CREATE TABLE item_low PARTITION OF item FOR VALUES FROM (0) TO (1000);
            CREATE TABLE item_high PARTITION OF item FOR VALUES FROM (1000) TO (2000)");
    db.pipeline("item_embedding", "item");
    db.run("INSERT INTO item VALUES (1, 'one'), (1001, 'two')");
    db.settle("item_embedding");
    as_replica(&mut db, "INSERT INTO item_high VALUES (1002, 'three')");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    db.run("ALTER TABLE item_high DISABLE TRIGGER ALL; ALTER TABLE item_high ENABLE TRIGGER ALL; ALTER TABLE item ENABLE TRIGGER ALL");
    db.settle("item_embedding");
    let before = rounds(&mut db);
    db.run("INSERT INTO item VALUES (2, 'four'); UPDATE item SET title = 'five' WHERE id = 1001; TRUNCATE item_low");
    db.settle("item_embedding");
    assert_eq!(rounds(&mut db), before, "what was seen needs no look");
    as_replica(&mut db, "INSERT INTO item_high VALUES (1003, 'six')");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    db.run("CREATE TABLE item_more PARTITION OF item FOR VALUES FROM (2000) TO (3000)");
    as_replica(&mut db, "INSERT INTO item_more VALUES (2000, 'seven')");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    db.run("SELECT recsync.drop_pipeline('item_embedding')");
    let left: i64 = db.one("SELECT count(*) FROM pg_trigger WHERE tgname LIKE '00_recsync%'");
    assert_eq!(left, 0);
}

#[test]
fn where_replicas_are_captured_row_by_row_nothing_else_is_looked_at() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'none', on_replica => true)");
    db.settle("item_embedding");
    let before = rounds(&mut db);
    as_replica(&mut db, "INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(rounds(&mut db), before);
}

#[test]
fn triggers_that_were_off_are_made_up_for_or_noted() {
    let api = Api::start();
    for (cluster, by_itself) in [(shared(), true), (by_hand(), false)] {
        let mut db = items(cluster, &api);
        db.run("ALTER TABLE item DISABLE TRIGGER ALL");
        db.run(LOAD);
        db.run("ALTER TABLE item ENABLE TRIGGER ALL");
        if !by_itself {
            wait_until(PATIENCE, "it says so", || needs(&mut db).is_some());
            assert_eq!(db.one::<i64>("SELECT recsync.repair('item_embedding')"), 3);
        }
        db.settle("item_embedding");
        db.assert_items_in_step(&api);
    }
}

#[test]
fn a_copy_of_a_database_looks_at_all_rows_or_says_that_it_should() {
    let api = Api::start();
    for (cluster, by_itself) in [(shared(), true), (by_hand(), false)] {
        let mut db = items(cluster, &api);
        db.run("DELETE FROM item_embedding_g1 WHERE id = 5");
        let name = db.name.clone();
        let mut admin = cluster.connect("postgres");
        let copied = || {
            let copy = format!("CREATE DATABASE {name}_copy TEMPLATE {name}");
            admin.batch_execute(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND backend_type = 'client backend'; ")).is_ok()
                && admin.batch_execute(&copy).is_ok()
        };
        wait_until(PATIENCE, "the copy is made", copied);
        let mut copy = cluster.connect(&format!("{name}_copy"));
        if by_itself {
            wait_until(PATIENCE, "all rows have been looked at", || {
                copy.one("SELECT count(*) = 300 FROM item_embedding")
            });
            let reason: String = copy.one("SELECT backfill_reason FROM recsync.status");
            assert!(reason.contains("copied"), "{reason}");
            assert_eq!(api.texts(), ["row 5"], "the others cost nothing");
        } else {
            wait_until(PATIENCE, "it says so", || {
                copy.one("SELECT COALESCE(needs_verify LIKE '%copied%', false) FROM recsync.status")
            });
            copy.run("UPDATE item SET title = 'seen' WHERE id = 6");
            wait_until(PATIENCE, "changes are embedded", || {
                api.times_asked("seen") == 1
            });
            copy.run("SELECT pg_sleep(0.5)");
            assert_eq!(api.texts(), ["seen"]);
        }
        drop(copy);
        api.forget();
        admin.run(&format!("DROP DATABASE {name}_copy WITH (FORCE)"));
        db.reconnect();
    }
}

#[test]
fn an_unlogged_table_of_vectors_that_a_crash_has_emptied_is_filled_again() {
    let cluster = Cluster::start(&[("recsync.known_text_size", "0")]);
    let api = Api::start();
    let mut db = cluster.database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    db.run("INSERT INTO item (id, title) SELECT i, 'row ' || i FROM generate_series(1, 300) i");
    db.pipeline("item_embedding", "item");
    db.settle("item_embedding");
    db.run("ALTER TABLE item_embedding_g1 SET UNLOGGED");
    db.settle("item_embedding");
    db.kill9_worker();
    wait_until(PATIENCE, "they are there again", || {
        db.one("SELECT count(*) = 300 FROM item_embedding")
    });
    let reason: String = db.one("SELECT backfill_reason FROM recsync.status");
    assert!(reason.contains("unlogged"), "{reason}");
    let before = rounds(&mut db);
    cluster.restart();
    db.reconnect();
    db.settle("item_embedding");
    assert_eq!(rounds(&mut db), before, "an orderly restart loses nothing");
}
