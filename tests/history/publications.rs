//! Publications FOR ALL TABLES on a database with recsync publish recsync's tables, too: nothing that writes, user or
//! worker, may fail for it.

use std::sync::{Arc, Mutex};

use postgres::NoTls;
use postgres::error::DbError;

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, wait_until};

fn cluster() -> Cluster {
    Cluster::start(&[("wal_level", "logical")])
}

/// What is said to a client beside results.
type Notices = Arc<Mutex<Vec<DbError>>>;

/// CREATE EXTENSION in a database, and the warnings that came with it.
fn warnings_of_create_extension(db: &Database) -> Vec<DbError> {
    let heard = Notices::default();
    let mut config = db.cluster.config("postgres", &db.name);
    let notices = Arc::clone(&heard);
    config.notice_callback(move |notice| notices.lock().unwrap().push(notice));
    let mut client = config.connect(NoTls).unwrap();
    client.run("CREATE EXTENSION recsync CASCADE");
    drop(client);
    let mut heard = heard.lock().unwrap();
    heard.retain(|notice| notice.severity() == "WARNING");
    heard.split_off(0)
}

#[test]
fn create_extension_warns_of_a_publication_for_all_tables_by_its_name() {
    let cluster = cluster();
    let mut db = cluster.empty_database();
    db.run(
        "CREATE TABLE item (id int PRIMARY KEY, title text); CREATE SCHEMA shop; CREATE TABLE shop.item (id int PRIMARY KEY);
         CREATE PUBLICATION \"Every table\" FOR ALL TABLES; CREATE PUBLICATION one_table FOR TABLE item;
         CREATE PUBLICATION one_schema FOR TABLES IN SCHEMA shop",
    );
    let warnings = warnings_of_create_extension(&db);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let text = format!(
        "{} {} {}",
        warnings[0].message(),
        warnings[0].detail().unwrap_or_default(),
        warnings[0].hint().unwrap_or_default()
    );
    assert!(text.contains("Every table"), "{text}");
    assert!(
        !text.contains("one_table") && !text.contains("one_schema"),
        "{text}"
    );

    let mut other = cluster.empty_database();
    other
        .run("CREATE TABLE item (id int PRIMARY KEY); CREATE PUBLICATION one_table FOR TABLE item");
    let warnings = warnings_of_create_extension(&other);
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn publication_for_all_tables_breaks_no_write_of_users_and_none_of_the_workers() {
    let cluster = cluster();
    let api = Api::start();
    let mut db = cluster.empty_database();
    db.run("CREATE PUBLICATION everything FOR ALL TABLES");
    db.run("CREATE EXTENSION recsync CASCADE");
    db.run("SELECT pg_create_logical_replication_slot('reader', 'pgoutput')");
    db.items(&api, "max_attempts '2'");

    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 100) i");
    db.settle("item_embedding");
    db.run("UPDATE item SET title = 'changed ' || id WHERE id % 2 = 0");
    db.run("DELETE FROM item WHERE id % 3 = 0; UPDATE item SET title = NULL WHERE id % 7 = 0; UPDATE item SET id = -id WHERE id = 1");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);

    // A row that is tried twice, one that is given up, one that is taken up again.
    api.fail_next(1, 418, None);
    db.run("INSERT INTO item VALUES (200, 'tried twice')");
    db.settle("item_embedding");
    api.refuse_texts_with("bad", 400);
    db.run("INSERT INTO item VALUES (201, 'bad'), (202, 'bad, too'), (203, 'good')");
    db.settle("item_embedding");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 2);
    api.refuse_nothing();
    let again: i64 = db.one("SELECT recsync.retry_dead_letters('item_embedding')");
    assert_eq!(again, 2);
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    api.refuse_texts_with("worse", 400);
    db.run("UPDATE item SET title = 'worse' WHERE id = 201");
    db.settle("item_embedding");
    assert_eq!(
        db.one::<i64>("SELECT recsync.purge_dead_letters('item_embedding')"),
        1
    );
    api.refuse_nothing();
    db.run("DELETE FROM item WHERE id = 201");

    db.run("SELECT recsync.pause('item_embedding')");
    db.run("INSERT INTO item VALUES (300, 'while it is paused')");
    db.run("SELECT recsync.resume('item_embedding')");
    db.settle("item_embedding");
    db.run("BEGIN; TRUNCATE item; INSERT INTO item SELECT i, 'after TRUNCATE ' || i FROM generate_series(1, 20) i; COMMIT");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);

    // A worker that begins anew, an audit, and an end.
    let worker = db.worker();
    db.run(&format!("SELECT pg_terminate_backend({worker})"));
    db.run("SELECT recsync.audit('item'); UPDATE item SET stock = 1 WHERE id = 1");
    db.run("SELECT recsync.audit('item', mode => 'keys'); UPDATE item SET stock = 2 WHERE id = 1; SELECT recsync.unaudit('item')");
    wait_until(PATIENCE, "another worker runs", || {
        db.worker_now().is_some_and(|pid| pid != worker)
    });
    db.settle("item_embedding");

    assert!(
        db.one::<i64>("SELECT count(*) FROM pg_logical_slot_peek_binary_changes('reader', NULL, NULL, 'proto_version', '1', 'publication_names', 'everything')") > 0
    );
    // The log and the ledger are appended to and emptied as a whole.
    let without: Vec<String> = db.column(
        "SELECT oid::regclass::text FROM pg_class c
          WHERE relnamespace = 'recsync'::regnamespace AND relkind = 'r' AND relpersistence = 'p' AND relname NOT LIKE 'log\\__' AND relname <> 'usage_log'
            AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary)",
    );
    assert!(without.is_empty(), "without a primary key: {without:?}");
    db.run("SELECT recsync.drop_pipeline('item_embedding')");
    db.run("INSERT INTO item VALUES (1000, 'nobody watches')");
    db.run("SELECT pg_drop_replication_slot('reader'); DROP TABLE item; DROP EXTENSION recsync CASCADE");
    let log = cluster.log();
    let bad: Vec<&str> = log
        .lines()
        .filter(|line| {
            line.contains(" ERROR:") || line.contains("SQLSTATE") || line.contains(" PANIC:")
        })
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
}
