//! Databases and extensions come and go, also while a worker is busy.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postgres::NoTls;

use crate::commands::at_once;
use crate::support::{Api, Cluster, Database, PATIENCE, Sql, shared, wait_until};

/// What DDL on a database may take while its worker has to leave: far less than the 5 s after which PostgreSQL
/// itself gives up.
const AT_ONCE: Duration = Duration::from_secs(3);

/// A database whose worker has a request in flight that does not end.
fn busy<'a>(cluster: &'a Cluster, api: &Api) -> Database<'a> {
    let mut db = cluster.database();
    db.items(api, "");
    db.run("INSERT INTO item VALUES (1, 'fine')");
    db.settle("item_embedding");
    api.hold_texts_with("slow");
    db.run("INSERT INTO item VALUES (2, 'slow')");
    api.wait_until_held(1);
    db
}

#[test]
fn worker_starts_soon_after_create_extension_without_a_restart() {
    let mut db = shared().database();
    let created = Instant::now();
    db.worker();
    println!("worker after CREATE EXTENSION: {:?}", created.elapsed());
    assert!(
        created.elapsed() < Duration::from_secs(3),
        "the worker took {:?}",
        created.elapsed()
    );
    assert_eq!(
        db.one::<i64>(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'recsync launcher'"
        ),
        1
    );
}

#[test]
fn create_extension_in_two_databases_at_once_succeeds_in_both() {
    let cluster = Cluster::start(&[]);
    // Both make the role recsync_admin, which is the cluster's.
    let (mut one, other) = (cluster.empty_database(), cluster.empty_database());
    let mut second = other.connect();
    one.run("BEGIN; CREATE EXTENSION recsync CASCADE");
    let creating =
        std::thread::spawn(move || second.batch_execute("CREATE EXTENSION recsync CASCADE"));
    one.pause(Duration::from_millis(300));
    one.run("COMMIT");
    creating
        .join()
        .unwrap()
        .unwrap_or_else(|error| panic!("{}", crate::support::sql::describe(&error)));
}

#[test]
fn database_without_the_extension_has_no_worker_and_a_rolled_back_create_extension_starts_none() {
    let mut db = shared().empty_database();
    db.run("BEGIN; CREATE EXTENSION recsync CASCADE; ROLLBACK");
    db.pause(Duration::from_secs(2));
    assert_eq!(db.worker_now(), None);
}

#[test]
fn drop_extension_cascade_succeeds_at_once_also_while_the_worker_is_busy() {
    let api = Api::start();
    let mut db = busy(shared(), &api);
    at_once(&mut db, "DROP EXTENSION recsync CASCADE", AT_ONCE);
    wait_until(PATIENCE, "the worker leaves", || db.worker_now().is_none());
    api.release();
    db.run("INSERT INTO item VALUES (3, 'nobody watches'); UPDATE item SET title = 'x'; DELETE FROM item WHERE id = 1; TRUNCATE item");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal"),
        0
    );
    // It can come back.
    db.run("CREATE EXTENSION recsync CASCADE");
    db.worker();
}

#[test]
fn drop_database_succeeds_at_once_also_while_the_worker_is_busy() {
    let api = Api::start();
    let db = busy(shared(), &api);
    let mut admin = shared().connect("postgres");
    let name = db.name.clone();
    disconnect(&mut admin, &name);
    at_once(&mut admin, &format!("DROP DATABASE {name}"), AT_ONCE);
    api.release();
}

#[test]
fn rename_of_a_database_succeeds_at_once_and_the_worker_goes_on_there() {
    let api = Api::start();
    let db = busy(shared(), &api);
    let (name, renamed) = (db.name.clone(), format!("{} \"renamed\"", db.name));
    let mut admin = shared().connect("postgres");
    disconnect(&mut admin, &name);
    at_once(
        &mut admin,
        &format!(
            "ALTER DATABASE {name} RENAME TO \"{}\"",
            renamed.replace('"', "\"\"")
        ),
        AT_ONCE,
    );
    api.release();
    let mut client = shared().connect(&renamed);
    client.run("INSERT INTO item VALUES (3, 'after the rename')");
    assert!(client.one::<bool>("SELECT recsync.wait_for('item_embedding', '30 s')"));
    assert_eq!(client.one::<i64>("SELECT count(*) FROM item_embedding"), 3);
    drop(client);
    at_once(
        &mut admin,
        &format!("DROP DATABASE \"{}\"", renamed.replace('"', "\"\"")),
        AT_ONCE,
    );
}

#[test]
fn create_database_from_a_busy_template_succeeds_at_once_and_both_go_on() {
    let api = Api::start();
    let db = busy(shared(), &api);
    let (name, copy) = (db.name.clone(), format!("{}_copy", db.name));
    let mut admin = shared().connect("postgres");
    disconnect(&mut admin, &name);
    at_once(
        &mut admin,
        &format!("CREATE DATABASE {copy} TEMPLATE {name}"),
        AT_ONCE,
    );
    api.release();
    for database in [&name, &copy] {
        let mut client = shared().connect(database);
        client.run(&format!("INSERT INTO item VALUES (4, 'in {database}')"));
        assert!(
            client.one::<bool>("SELECT recsync.wait_for('item_embedding', '30 s')"),
            "in {database}"
        );
        assert_eq!(
            client.one::<i64>("SELECT count(*) FROM item_embedding"),
            3,
            "in {database}"
        );
        assert_eq!(api.times_asked(&format!("in {database}")), 1);
    }
    // Texts that had a vector when the copy was made are not paid for again.
    assert_eq!(api.times_asked("fine"), 1);
    admin.run(&format!("DROP DATABASE {copy} WITH (FORCE)"));
}

/// The test's own connections to `name` would be in the way.
fn disconnect(admin: &mut postgres::Client, name: &str) {
    admin.run(&format!(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}' AND backend_type = 'client backend'"
    ));
}

#[test]
fn twenty_databases_are_served_in_turn_with_eight_worker_processes_and_status_says_who_waits() {
    let cluster = Cluster::start(&[("max_worker_processes", "8")]);
    let mut databases: Vec<Database> = (0..20).map(|_| cluster.database()).collect();
    for db in &mut databases {
        db.run(
            "CREATE SERVER builtin FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin');
                CREATE TABLE item (id int PRIMARY KEY, title text);
                INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 30) i",
        );
        db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'builtin', index => 'none')");
    }
    let mut said_so = false;
    let started = Instant::now();
    for round in 0..2 {
        let expected = 30 + round;
        wait_until(
            Duration::from_secs(240),
            "every database has its turn",
            || {
                let mut waiting = 0;
                for db in &mut databases {
                    said_so |= db.one::<bool>(
                        "SELECT bool_or(status::text LIKE '%slot%') FROM recsync.status",
                    );
                    if db.one::<i64>("SELECT count(*) FROM item_embedding") != expected {
                        waiting += 1;
                    }
                }
                waiting == 0
            },
        );
        println!("20 databases, round {round}: {:?}", started.elapsed());
        let workers: i64 = databases[0]
            .one("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'recsync worker'");
        assert!(
            workers <= 2,
            "{workers} workers: more than recsync.max_workers"
        );
        for db in &mut databases {
            db.run(&format!("INSERT INTO item VALUES (100 + {round}, 'more')"));
        }
    }
    assert!(
        said_so,
        "no recsync.status said that its database lacks a slot"
    );
}

#[test]
fn without_preloading_create_extension_warns_and_create_pipeline_is_refused_with_a_hint() {
    let cluster = Cluster::start(&[("shared_preload_libraries", "")]);
    let db = cluster.empty_database();
    let notices = Arc::new(Mutex::new(Vec::new()));
    let mut config = cluster.config("postgres", &db.name);
    let heard = Arc::clone(&notices);
    config.notice_callback(move |notice| heard.lock().unwrap().push(notice));
    let mut client = config.connect(NoTls).unwrap();
    client.run("CREATE EXTENSION recsync CASCADE");
    let warned = notices.lock().unwrap().iter().any(|notice| {
        notice.severity() == "WARNING"
            && notice
                .hint()
                .or(notice.detail())
                .is_some_and(|hint| hint.contains("shared_preload_libraries"))
    });
    assert!(warned, "{:?}", notices.lock().unwrap());
    client.run("CREATE SERVER builtin FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin'); CREATE TABLE item (id int PRIMARY KEY, title text)");
    let error = client.refused(
        "SELECT recsync.create_pipeline('e', 'item', columns => '{title}', server => 'builtin')",
    );
    assert_eq!(error.code().code(), "55000");
    assert!(
        error.hint().unwrap().contains("shared_preload_libraries"),
        "{error:?}"
    );
}

#[test]
fn triggers_of_a_cluster_that_is_no_longer_preloaded_capture_and_the_worker_catches_up_later() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = cluster.database();
    db.items(&api, "");
    db.run("INSERT INTO item VALUES (1, 'before')");
    db.settle("item_embedding");
    cluster.set_for_next_start("shared_preload_libraries", "");
    cluster.restart();
    db.reconnect();
    db.run("INSERT INTO item VALUES (2, 'without'); UPDATE item SET title = 'changed without' WHERE id = 1");
    cluster.set_for_next_start("shared_preload_libraries", "recsync");
    cluster.restart();
    db.reconnect();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn drop_server_is_refused_while_a_pipeline_uses_it_and_cascade_pauses_the_pipeline() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    let error = db.refused("DROP SERVER api");
    assert!(format!("{error:?}").contains("item_embedding"), "{error:?}");
    db.run("DROP SERVER api CASCADE");
    db.run("INSERT INTO item VALUES (1, 'while there is no server')");
    wait_until(
        PATIENCE,
        "the pipeline says that its server is gone",
        || {
            db.one("SELECT bool_or(state = 'paused' AND paused_reason LIKE '%api%') FROM recsync.status")
        },
    );
    db.server("api", &api, "");
    db.run("SELECT recsync.resume('item_embedding')");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}
