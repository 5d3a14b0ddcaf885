//! The index of a pipeline: built after the load, by a process of its own that is in nobody's way.

use std::time::{Duration, Instant};

use postgres::{Client, Transaction};

use crate::commands::{at_once, copy_rename_and_drop};
use crate::support::{Api, Cluster, Database, PATIENCE, Sql, process, shared, wait_until};

/// Longer than a pipeline has to be calm before its index is built.
const CALM: Duration = Duration::from_secs(4);

/// A signal is obeyed in under a second; the machine may be busy.
const SOON: Duration = Duration::from_secs(3);

/// Rows whose graph takes longer than a test looks at it, where it does not fit into maintenance_work_mem.
const MANY: usize = 20_000;
const DIMENSIONS: usize = 100;

const ITEM: &str = "CREATE TABLE item (id int PRIMARY KEY, title text)";

fn items(db: &mut Database, api: &Api, rows: usize, index: &str) {
    db.server("api", api, "");
    db.run(ITEM);
    db.run(&format!(
        "INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, {rows}) i"
    ));
    db.run(&format!(
        "SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{{title}}', server => 'api', index => '{index}')"
    ));
}

/// Its HNSW indexes: name, whether it is valid.
fn indexes(db: &mut Database) -> Vec<(String, bool)> {
    db.rows("SELECT x.relname::text, i.indisvalid FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am a ON a.oid = x.relam
              WHERE i.indrelid = 'item_embedding_g1'::regclass AND a.amname = 'hnsw'")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

#[track_caller]
fn wait_for_index(db: &mut Database) -> String {
    // A graph of MANY rows is half a minute's work where other tests are at work, too.
    wait_until(4 * PATIENCE, "the index is there", || {
        matches!(&indexes(db)[..], [(_, true)])
    });
    // Not before its process has ended: what it holds, a next command would wait for.
    wait_until(PATIENCE, "the indexer ends", || db.indexer().is_none());
    indexes(db)[0].0.clone()
}

fn scans(db: &mut Database, index: &str) -> i64 {
    db.run("SELECT pg_stat_force_next_flush()");
    db.one(&format!(
        "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = '{index}'"
    ))
}

/// A snapshot that is held until its transaction ends: a build waits for it.
fn hold_snapshot(holder: &mut Client) -> Transaction<'_> {
    let mut held = holder.transaction().unwrap();
    held.batch_execute(
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class",
    )
    .unwrap();
    held
}

/// A database with a build that takes long, and is under way.
fn building<'a>(cluster: &'a Cluster, api: &Api) -> Database<'a> {
    assert_eq!(api.dimensions(), DIMENSIONS);
    let mut db = cluster.database();
    items(&mut db, api, 1, "hnsw");
    db.settle("item_embedding");
    db.run(&format!(
        "INSERT INTO item_embedding_g1
         SELECT i, (SELECT array_agg(random() - 0.5) FROM generate_series(1, {DIMENSIONS} + 0 * i))::vector, '\\x00', 'test', now()
           FROM generate_series(2, {MANY}) i"
    ));
    // Which has the worker look.
    db.run("GRANT SELECT ON item_embedding_g1 TO PUBLIC");
    db.wait_until_index_is_being_built();
    db
}

/// Whose builds take long: a graph beyond maintenance_work_mem grows row by row, by one process.
fn slow_cluster() -> Cluster {
    Cluster::start(&[
        ("max_worker_processes", "16"),
        ("recsync.max_workers", "4"),
        ("maintenance_work_mem", "1MB"),
        ("max_parallel_maintenance_workers", "0"),
    ])
}

#[test]
fn index_is_built_after_the_load_and_not_during_it_and_search_uses_it() {
    let api = Api::start();
    let mut db = shared().database();
    api.hold_texts_with("late");
    db.server("api", &api, "max_batch_inputs '50'");
    db.run(ITEM);
    db.run("INSERT INTO item SELECT i, CASE WHEN i <= 1200 THEN 'row ' ELSE 'late ' END || i FROM generate_series(1, 2000) i");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api')");
    wait_until(PATIENCE, "most rows are stored", || {
        db.one("SELECT count(*) >= 1000 FROM item_embedding")
    });
    db.pause(CALM);
    assert_eq!(indexes(&mut db), [], "built during the load");
    assert_eq!(db.indexer(), None);
    let nearest = "SELECT item FROM recsync.search('item_embedding', 'row 42', k => 1)";
    assert_eq!(db.one::<String>(nearest), "42");
    api.release();
    db.settle("item_embedding");
    let index = wait_for_index(&mut db);
    let before = scans(&mut db, &index);
    // So few rows the planner would rather look at.
    db.run("SET enable_seqscan = off; SET enable_sort = off");
    assert_eq!(db.one::<String>(nearest), "42");
    wait_until(PATIENCE, "the index is used", || {
        scans(&mut db, &index) > before
    });
    // A COPY into it later is stored as ever.
    db.run("INSERT INTO item SELECT i, 'more ' || i FROM generate_series(2001, 2600) i");
    db.settle("item_embedding");
    assert_eq!(indexes(&mut db), [(index, true)]);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 2_600);
}

#[test]
fn table_with_fewer_rows_than_index_min_rows_has_no_index_until_it_has_as_many() {
    let cluster = Cluster::start(&[("recsync.index_min_rows", "500")]);
    let api = Api::start();
    let mut db = cluster.database();
    items(&mut db, &api, 499, "hnsw");
    db.settle("item_embedding");
    db.pause(CALM);
    assert_eq!(indexes(&mut db), []);
    db.run("INSERT INTO item VALUES (500, 'the last one')");
    let index = wait_for_index(&mut db);
    assert_eq!(index, "item_embedding_g1_hnsw_1");
    // Dropped, it is made again; without any rows never, with 0 for the first one.
    cluster.set("recsync.index_min_rows", "0");
    db.run("DELETE FROM item");
    db.settle("item_embedding");
    db.run(&format!("DROP INDEX {index}"));
    db.pause(CALM);
    assert_eq!(indexes(&mut db), []);
    db.run("INSERT INTO item VALUES (1, 'the first one')");
    wait_for_index(&mut db);
}

#[test]
fn index_that_somebody_else_made_is_enough_and_none_is_made_where_none_was_declared() {
    let cluster = Cluster::start(&[
        ("recsync.index_min_rows", "0"),
        ("max_worker_processes", "16"),
    ]);
    let api = Api::start();
    let mut db = cluster.database();
    db.server("api", &api, "");
    db.run(ITEM);
    db.run(
        "BEGIN;
         SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'hnsw');
         CREATE INDEX own ON item_embedding_g1 USING hnsw (embedding vector_cosine_ops);
         COMMIT",
    );
    db.pipeline("other_embedding", "item");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 50) i");
    db.settle("item_embedding");
    db.pause(CALM);
    assert_eq!(indexes(&mut db), [("own".to_owned(), true)]);
    let other: i64 =
        db.one("SELECT count(*) FROM pg_index WHERE indrelid = 'other_embedding_g1'::regclass");
    assert_eq!(other, 2, "the primary key's and the hash's");
    // One that search cannot use is not.
    db.run("DROP INDEX own; CREATE INDEX own ON item_embedding_g1 USING hnsw (embedding vector_l2_ops)");
    wait_until(PATIENCE, "the declared one is there, too", || {
        indexes(&mut db).len() == 2
    });
    wait_until(PATIENCE, "it is valid", || {
        indexes(&mut db).iter().all(|(_, valid)| *valid)
    });
}

#[test]
fn held_snapshot_keeps_an_index_waiting_and_nothing_else() {
    let cluster = Cluster::start(&[("recsync.index_min_rows", "100")]);
    let api = Api::start();
    let mut db = cluster.database();
    let mut holder = db.connect();
    let held = hold_snapshot(&mut holder);
    items(&mut db, &api, 200, "hnsw");
    db.wait_until_indexer_waits();
    db.run("UPDATE item SET title = 'meanwhile ' || id WHERE id <= 50; INSERT INTO item VALUES (201, 'new')");
    db.settle("item_embedding");
    db.assert_in_step(
        &api,
        "SELECT i.id::text, i.title, e.embedding::text FROM item i FULL JOIN item_embedding e USING (id)",
    );
    let found: String =
        db.one("SELECT item FROM recsync.search('item_embedding', 'meanwhile 7', k => 1)");
    assert_eq!(found, "7");
    assert!(indexes(&mut db).iter().all(|(_, valid)| !valid));
    held.commit().unwrap();
    wait_for_index(&mut db);
}

#[test]
fn what_an_indexer_has_left_that_was_ended_is_dropped_and_built_again() {
    let cluster = Cluster::start(&[("recsync.index_min_rows", "100")]);
    let api = Api::start();
    let mut db = cluster.database();
    let mut holder = db.connect();
    let held = hold_snapshot(&mut holder);
    items(&mut db, &api, 200, "hnsw");
    db.wait_until_indexer_waits();
    let indexer = db.indexer().unwrap();
    db.run(&format!("SELECT pg_terminate_backend({indexer})"));
    wait_until(PATIENCE, "it ends", || !process::is_running(indexer));
    let left = indexes(&mut db);
    assert!(matches!(&left[..], [(_, false)]), "{left:?}");
    // The next one drops it first.
    wait_until(PATIENCE, "the next one runs", || db.indexer().is_some());
    held.commit().unwrap();
    wait_for_index(&mut db);
    let log = cluster.log();
    assert!(
        !log.contains("PANIC") && !log.contains("terminated by signal"),
        "{log}"
    );
}

#[test]
fn killed_indexer_takes_the_server_down_and_the_index_is_built_afterwards() {
    let cluster = slow_cluster();
    let api = Api::with_dimensions(DIMENSIONS);
    let mut db = building(&cluster, &api);
    process::kill9(db.indexer().unwrap());
    wait_until(PATIENCE, "the server notices the crash", || {
        db.batch_execute("SELECT 1").is_err()
    });
    db.reconnect();
    cluster.set("maintenance_work_mem", "64MB");
    wait_for_index(&mut db);
}

#[test]
fn ddl_and_drop_pipeline_do_not_wait_for_a_build_and_it_is_begun_again_after_the_former() {
    let cluster = slow_cluster();
    let api = Api::with_dimensions(DIMENSIONS);
    let mut db = building(&cluster, &api);
    // A transaction that the build will wait for, and that wants its table: the build is the one to give way.
    let mut other = db.connect();
    let mut open = other.transaction().unwrap();
    open.batch_execute("SELECT pg_current_xact_id(); SELECT count(*) FROM pg_class")
        .unwrap();
    let started = Instant::now();
    open.batch_execute("ALTER TABLE item_embedding_g1 ALTER model SET STATISTICS 10")
        .unwrap();
    open.batch_execute("TRUNCATE item_embedding_g1").unwrap();
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    open.rollback().unwrap();
    db.wait_until_index_is_being_built();
    at_once(
        &mut db,
        "SELECT recsync.drop_pipeline('item_embedding')",
        SOON,
    );
    wait_until(SOON, "the build ends", || db.indexer().is_none());
    assert!(db.one::<bool>("SELECT to_regclass('item_embedding_g1') IS NULL"));
}

#[test]
fn build_ends_with_a_pause_of_its_pipeline() {
    let cluster = slow_cluster();
    let api = Api::with_dimensions(DIMENSIONS);
    let mut db = building(&cluster, &api);
    at_once(&mut db, "SELECT recsync.pause('item_embedding')", SOON);
    wait_until(SOON, "the build ends", || db.indexer().is_none());
    db.pause(CALM);
    assert_eq!(db.indexer(), None);
}

#[test]
fn disabled_recsync_builds_no_index_and_enabled_again_it_does() {
    let cluster = slow_cluster();
    let api = Api::with_dimensions(DIMENSIONS);
    let mut db = building(&cluster, &api);
    cluster.set("recsync.enabled", "off");
    wait_until(SOON, "the build ends", || db.indexer().is_none());
    db.pause(CALM);
    assert_eq!(db.indexer(), None);
    cluster.set("maintenance_work_mem", "64MB");
    cluster.set("recsync.enabled", "on");
    wait_for_index(&mut db);
}

#[test]
fn build_goes_on_when_the_worker_ends() {
    let cluster = slow_cluster();
    let api = Api::with_dimensions(DIMENSIONS);
    let mut db = building(&cluster, &api);
    let (worker, indexer) = (db.worker(), db.indexer().unwrap());
    db.run(&format!("SELECT pg_terminate_backend({worker})"));
    wait_until(PATIENCE, "the worker ends", || !process::is_running(worker));
    assert_ne!(db.worker(), worker);
    db.pause(CALM);
    assert_eq!(db.indexer(), Some(indexer));
    db.run("INSERT INTO item VALUES (0, 'meanwhile')");
    db.settle("item_embedding");
}

#[test]
fn drop_extension_succeeds_at_once_also_while_an_index_is_built() {
    let cluster = slow_cluster();
    let api = Api::with_dimensions(DIMENSIONS);
    let mut db = building(&cluster, &api);
    at_once(&mut db, "DROP EXTENSION recsync CASCADE", SOON);
    assert_eq!(db.indexer(), None);
}

#[test]
fn drop_rename_and_copy_of_a_database_succeed_at_once_also_while_an_index_is_built() {
    let cluster = slow_cluster();
    let api = Api::with_dimensions(DIMENSIONS);
    let mut admin = cluster.connect("postgres");
    copy_rename_and_drop(&mut admin, SOON, || building(&cluster, &api));
}

#[test]
fn fast_shutdown_ends_at_once_also_while_an_index_is_built() {
    let cluster = slow_cluster();
    let api = Api::with_dimensions(DIMENSIONS);
    let mut db = building(&cluster, &api);
    let took = cluster.stop_fast();
    println!("fast shutdown: {took:?}");
    assert!(took < SOON, "fast shutdown took {took:?}");
    cluster.set_for_next_start("maintenance_work_mem", "64MB");
    cluster.start_again();
    db.reconnect();
    wait_for_index(&mut db);
}

#[test]
fn build_that_lacks_shared_memory_for_several_processes_is_made_by_one() {
    let cluster = Cluster::start(&[
        ("max_worker_processes", "16"),
        ("recsync.index_min_rows", "100"),
        // More than /dev/shm has anywhere.
        ("maintenance_work_mem", "1000GB"),
        ("min_parallel_table_scan_size", "0"),
    ]);
    let api = Api::start();
    let mut db = cluster.database();
    items(&mut db, &api, 200, "hnsw");
    wait_for_index(&mut db);
    let log = cluster.log();
    assert!(log.contains("tried again by one process alone"), "{log}");
}

#[test]
fn build_that_fails_is_seen_in_status_and_tried_again() {
    let cluster = Cluster::start(&[("recsync.index_min_rows", "100")]);
    let api = Api::start();
    let mut db = cluster.database();
    db.run("CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'secret text' USING ERRCODE = '0A000'; END $$;
            CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION refuse()");
    db.run("ALTER EVENT TRIGGER refuse DISABLE");
    items(&mut db, &api, 99, "hnsw");
    db.settle("item_embedding");
    db.run("ALTER EVENT TRIGGER refuse ENABLE");
    db.run("INSERT INTO item VALUES (100, 'the last one')");
    const ERROR: &str = "SELECT last_error FROM recsync.status";
    wait_until(PATIENCE, "the failure is seen", || {
        db.one::<Option<String>>(ERROR).as_deref() == Some("index (SQLSTATE 0A000)")
    });
    db.run("INSERT INTO item VALUES (101, 'goes on')");
    db.settle("item_embedding");
    assert!(!cluster.log().contains("secret text"));
    db.run("DROP EVENT TRIGGER refuse");
    wait_for_index(&mut db);
    wait_until(PATIENCE, "the failure is forgotten", || {
        db.one::<Option<String>>(ERROR).is_none()
    });
}
