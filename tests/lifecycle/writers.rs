//! Writers: they come when there is a bulk of vectors for an HNSW index, obey signals and DDL in the middle of a
//! store, and leave by themselves.

use std::time::{Duration, Instant};

use crate::commands::{at_once, copy_rename_and_drop};
use crate::support::{Api, Cluster, Database, PATIENCE, Sql, process, wait_until};

/// What a row's store takes with HNSW.
const ROW: Duration = Duration::from_millis(2);

/// So long that a store does not end by itself.
const LONG: Duration = Duration::from_secs(1);

/// A signal is obeyed in under a second; the machine may be busy.
const SOON: Duration = Duration::from_secs(3);

fn cluster(settings: &[(&str, &str)]) -> Cluster {
    let usual = [
        ("max_worker_processes", "16"),
        ("recsync.max_workers", "4"),
        ("recsync.max_writers", "2"),
        ("recsync.expression_timeout", "60s"),
    ];
    let settings: Vec<(&str, &str)> = usual
        .into_iter()
        .filter(|(name, _)| !settings.iter().any(|(other, _)| other == name))
        .chain(settings.iter().copied())
        .collect();
    Cluster::start(&settings)
}

/// A database whose writers are in the middle of a store that does not end.
fn busy<'a>(cluster: &'a Cluster, api: &Api) -> Database<'a> {
    let mut db = cluster.database();
    db.slow_items(api, "", 2_000, ROW);
    db.wait_until_writers_store(2);
    db.store_takes(LONG);
    // Orders that were begun before end soon; what follows is long.
    db.pause(Duration::from_millis(500));
    db.wait_until_writers_store(2);
    db
}

#[test]
fn writers_run_during_a_backfill_into_hnsw_and_leave_afterwards() {
    let cluster = cluster(&[]);
    let api = Api::start();
    let mut db = cluster.database();
    db.slow_items(&api, "", 2_000, ROW);
    wait_until(PATIENCE, "two writers run", || db.writers().len() == 2);
    let writers = db.writers();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    let stored: Vec<i32> =
        db.column("SELECT pid FROM stored_by GROUP BY pid HAVING count(*) > 100");
    assert!(
        writers.iter().all(|writer| stored.contains(writer)),
        "{writers:?} ran, {stored:?} stored"
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM stored_by"), 2_000);
    let left = wait_until(PATIENCE, "the writers leave", || db.writers().is_empty());
    println!("writers left {left:?} after the backfill");
    // A few rows are no reason to come back.
    db.run("UPDATE item SET title = 'again ' || id WHERE id <= 20");
    db.settle("item_embedding");
    assert!(db.writers().is_empty());
    // A bulk of changes is.
    db.run("UPDATE item SET title = 'once more ' || id WHERE id <= 1000");
    wait_until(PATIENCE, "a writer runs", || !db.writers().is_empty());
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.job"), 0);
}

#[test]
fn pipeline_without_an_hnsw_index_needs_no_writer() {
    // More rows than there are: none is built meanwhile.
    let cluster = cluster(&[("recsync.index_min_rows", "100000")]);
    let api = Api::start();
    let mut db = cluster.database();
    db.slow_items(&api, "", 1_000, Duration::ZERO);
    db.settle("item_embedding");
    wait_until(PATIENCE, "the writers leave", || db.writers().is_empty());
    db.run("DROP INDEX IF EXISTS item_embedding_g1_embedding_idx; DO $$ DECLARE i regclass; BEGIN
              FOR i IN SELECT x.indexrelid FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid JOIN pg_am a ON a.oid = c.relam
                        WHERE x.indrelid = 'item_embedding_g1'::regclass AND a.amname = 'hnsw'
              LOOP EXECUTE 'DROP INDEX ' || i; END LOOP; END $$");
    db.store_takes(ROW);
    db.run("UPDATE item SET title = 'again ' || id");
    let mut seen = 0;
    wait_until(PATIENCE, "all is stored", || {
        seen = seen.max(db.writers().len());
        db.one::<bool>("SELECT recsync.wait_for('item_embedding', '50 ms')")
    });
    assert_eq!(seen, 0, "a writer ran without an HNSW index");
    db.assert_items_in_step(&api);
    // An index that somebody makes is noticed.
    db.run("CREATE INDEX ON item_embedding_g1 USING hnsw (embedding vector_cosine_ops)");
    db.run("UPDATE item SET title = 'with it ' || id");
    wait_until(PATIENCE, "a writer runs", || !db.writers().is_empty());
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn max_writers_is_obeyed_by_all_databases_together_and_after_a_reload() {
    let cluster = cluster(&[("recsync.max_writers", "1")]);
    let api = Api::start();
    let mut databases = [cluster.database(), cluster.database()];
    for db in &mut databases {
        db.slow_items(&api, "", 1_200, ROW);
    }
    const WRITERS: &str =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'recsync writer'";
    let most = |db: &mut Database, until: &mut dyn FnMut(&mut Database) -> bool| {
        let mut most = 0;
        wait_until(PATIENCE, "it is done", || {
            most = most.max(db.one::<i64>(WRITERS));
            until(db)
        });
        most
    };
    let seen = most(&mut databases[0], &mut |db| {
        db.one("SELECT count(*) >= 600 FROM stored_by")
    });
    assert_eq!(seen, 1);
    cluster.set("recsync.max_writers", "3");
    for db in &mut databases {
        db.run("UPDATE item SET title = 'again ' || id");
    }
    wait_until(PATIENCE, "more of them run", || {
        databases[0].one::<i64>(WRITERS) == 3
    });
    for db in &mut databases {
        db.settle("item_embedding");
        db.assert_items_in_step(&api);
    }
}

#[test]
fn backfill_without_a_free_process_is_stored_by_the_worker() {
    // PostgreSQL's own launcher of logical replication, recsync's launcher, its worker.
    let cluster = cluster(&[("max_worker_processes", "3")]);
    let api = Api::start();
    let mut db = cluster.database();
    db.slow_items(&api, "", 600, ROW);
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    let worker = db.worker();
    assert_eq!(
        db.column::<i32>("SELECT DISTINCT pid FROM stored_by"),
        [worker]
    );
    let log = cluster.log();
    assert!(!log.contains("recsync worker: SQLSTATE"), "{log}");
}

#[test]
fn terminated_writer_loses_and_doubles_nothing() {
    let cluster = cluster(&[]);
    let api = Api::start();
    let mut db = cluster.database();
    db.slow_items(&api, "", 2_000, ROW);
    let worker = db.worker();
    for _ in 0..5 {
        db.wait_until_writers_store(1);
        let writer = db.writers()[0];
        db.run(&format!("SELECT pg_terminate_backend({writer})"));
        wait_until(PATIENCE, "the writer ends", || !process::is_running(writer));
    }
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(db.worker(), worker, "the worker was disturbed");
    let mut texts = api.texts();
    let sent = texts.len();
    texts.sort();
    texts.dedup();
    assert_eq!(sent, texts.len(), "a text was paid for twice");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
}

#[test]
fn writers_end_with_their_worker_and_the_next_one_goes_on() {
    let cluster = cluster(&[]);
    let api = Api::start();
    let mut db = busy(&cluster, &api);
    let (worker, writers) = (db.worker(), db.writers());
    let started = Instant::now();
    db.run(&format!("SELECT pg_terminate_backend({worker})"));
    wait_until(PATIENCE, "the writers end", || {
        !writers.iter().any(|writer| process::is_running(*writer))
    });
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    db.store_takes(Duration::ZERO);
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn disabled_recsync_stores_nothing_and_lets_its_writers_go() {
    let cluster = cluster(&[]);
    let api = Api::start();
    let mut db = cluster.database();
    db.slow_items(&api, "", 2_000, ROW);
    db.wait_until_writers_store(1);
    cluster.set("recsync.enabled", "off");
    wait_until(PATIENCE, "the writers leave", || db.writers().is_empty());
    const STORED: &str = "SELECT count(*) FROM item_embedding";
    let stored: i64 = db.one(STORED);
    db.pause(Duration::from_millis(500));
    assert_eq!(db.one::<i64>(STORED), stored);
    assert!(stored < 2_000);
    cluster.set("recsync.enabled", "on");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn drop_extension_succeeds_at_once_also_while_writers_store() {
    let cluster = cluster(&[]);
    let api = Api::start();
    let mut db = busy(&cluster, &api);
    at_once(&mut db, "DROP EXTENSION recsync CASCADE", SOON);
    wait_until(PATIENCE, "the writers leave", || db.writers().is_empty());
}

#[test]
fn drop_rename_and_copy_of_a_database_succeed_at_once_also_while_writers_store() {
    let cluster = cluster(&[]);
    let api = Api::start();
    let mut admin = cluster.connect("postgres");
    copy_rename_and_drop(&mut admin, SOON, || busy(&cluster, &api));
    wait_until(PATIENCE, "the writers leave", || {
        admin.one("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'recsync writer'")
    });
}

#[test]
fn fast_shutdown_ends_at_once_also_while_writers_store() {
    let cluster = cluster(&[]);
    let api = Api::start();
    let mut db = busy(&cluster, &api);
    db.store_takes(LONG);
    let took = cluster.stop_fast();
    println!("fast shutdown: {took:?}");
    assert!(took < SOON, "fast shutdown took {took:?}");
    let log = cluster.log();
    assert!(
        !log.contains("PANIC") && !log.contains("terminated by signal"),
        "{log}"
    );
    cluster.start_again();
    db.reconnect();
    db.store_takes(Duration::ZERO);
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}
