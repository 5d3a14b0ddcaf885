//! The worker obeys signals and settings also in the middle of a slow request, and an error in one pipeline is not
//! the others'.

use std::time::{Duration, Instant};

use crate::support::{Api, Cluster, PATIENCE, Sql, process, shared, wait_until};

/// A signal is obeyed in under a second; the machine may be busy.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn terminated_worker_ends_at_once_in_a_slow_request_is_back_within_five_seconds_and_picks_up() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    api.hold();
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 70) i");
    api.wait_until_held(1);
    for how in ["pg_terminate_backend", "SIGTERM"] {
        let worker = db.worker();
        let started = Instant::now();
        match how {
            "SIGTERM" => process::signal(worker, libc::SIGTERM),
            _ => db.run(&format!("SELECT pg_terminate_backend({worker})")),
        }
        let ended = wait_until(PATIENCE, "the worker ends", || !process::is_running(worker));
        assert!(ended < SOON, "{how}: the worker took {ended:?} to end");
        wait_until(PATIENCE, "another worker runs", || {
            db.worker_now().is_some_and(|pid| pid != worker)
        });
        println!(
            "{how}: ended after {ended:?}, back after {:?}",
            started.elapsed()
        );
        assert!(
            started.elapsed() < Duration::from_secs(6),
            "{how}: the worker was back after {:?}",
            started.elapsed()
        );
    }
    api.release();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn terminated_launcher_comes_back_and_its_workers_go_on() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = cluster.database();
    db.items(&api, "");
    let worker = db.worker();
    const LAUNCHER: &str =
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'recsync launcher'";
    let launcher: i32 = db.one(LAUNCHER);
    db.run(&format!("SELECT pg_terminate_backend({launcher})"));
    wait_until(PATIENCE, "another launcher runs", || {
        db.column::<i32>(LAUNCHER)
            .iter()
            .any(|pid| *pid != launcher)
    });
    // It starts workers again, and none beside the one that is there.
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    assert_eq!(db.worker(), worker, "the worker was disturbed");
    db.run(&format!("SELECT pg_terminate_backend({worker})"));
    wait_until(PATIENCE, "another worker runs", || {
        db.worker_now().is_some_and(|pid| pid != worker)
    });
    db.run("INSERT INTO item VALUES (2, 'two')");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn fast_shutdown_ends_at_once_in_a_slow_request_also_of_a_search() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = cluster.database();
    db.items(&api, "");
    api.hold();
    db.run("INSERT INTO item VALUES (1, 'slow')");
    api.wait_until_held(1);
    let mut client = db.connect();
    let search = std::thread::spawn(move || {
        client
            .batch_execute("SELECT recsync.search('item_embedding', 'slow, too')")
            .is_err()
    });
    api.wait_until_held(2);
    let took = cluster.stop_fast();
    println!("fast shutdown: {took:?}");
    assert!(took < SOON, "fast shutdown took {took:?}");
    assert!(search.join().unwrap(), "the search was cancelled");
    let log = cluster.log();
    assert!(
        !log.contains("PANIC") && !log.contains("terminated by signal"),
        "{log}"
    );
    cluster.start_again();
    api.release();
    db.reconnect();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn smart_shutdown_is_not_held_up_by_the_worker() {
    let cluster = Cluster::start(&[]);
    let mut db = cluster.database();
    db.worker();
    let name = db.name.clone();
    let mut admin = cluster.connect("postgres");
    admin.run(&format!("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}' AND backend_type = 'client backend'"));
    drop(admin);
    process::signal(cluster.postmaster_pid(), libc::SIGTERM);
    let took = cluster.wait_until_stopped();
    assert!(
        took < Duration::from_secs(5),
        "smart shutdown took {took:?}"
    );
}

#[test]
fn reload_with_enabled_off_stops_requests_and_capture_goes_on_until_it_is_on_again() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = cluster.database();
    db.items(&api, "");
    db.run("INSERT INTO item VALUES (1, 'before')");
    db.settle("item_embedding");
    cluster.set("recsync.enabled", "off");
    wait_until(PATIENCE, "the setting is there", || {
        db.one::<String>("SHOW recsync.enabled") == "off"
    });
    // The worker has been told in the same moment; it may have been about to send.
    db.pause(Duration::from_millis(500));
    let asked = api.requests().len();
    db.run("INSERT INTO item SELECT i, 'while off ' || i FROM generate_series(2, 40) i");
    db.run("UPDATE item SET title = 'changed while off' WHERE id = 1");
    assert!(!db.one::<bool>("SELECT recsync.wait_for('item_embedding', '1 s')"));
    assert_eq!(
        api.requests().len(),
        asked,
        "a request was sent while recsync.enabled was off"
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.change_log"), 41);
    cluster.set("recsync.enabled", "on");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn error_in_one_pipeline_leaves_others_going_and_dead_letters_its_row() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("CREATE TABLE ratio (id int PRIMARY KEY, a int, b int)");
    db.run("SELECT recsync.create_pipeline('ratio_embedding', 'ratio', content => $$'ratio ' || (a / b)$$, server => 'api', index => 'none')");
    let worker = db.worker();
    db.run("INSERT INTO ratio SELECT i, i * 2, CASE WHEN i = 77 THEN 0 ELSE 1 END FROM generate_series(1, 100) i");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 100) i");
    db.settle("item_embedding");
    db.settle("ratio_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ratio_embedding"), 99);
    let dead = db.rows("SELECT record_key, class, status, message FROM recsync.dead_letter");
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].get::<_, Vec<String>>(0), ["77"]);
    assert_eq!(dead[0].get::<_, String>(1), "permanent");
    assert_eq!(dead[0].get::<_, Option<i32>>(2), None);
    assert!(dead[0].get::<_, String>(3).contains("division by zero"));
    assert_eq!(db.worker(), worker, "the error has ended the worker");
    db.run("UPDATE ratio SET b = 3 WHERE id = 77");
    db.settle("ratio_embedding");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ratio_embedding"), 100);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
}

#[test]
fn endless_expression_is_stopped_and_does_not_hold_up_other_pipelines() {
    let cluster = Cluster::start(&[("recsync.expression_timeout", "500ms")]);
    let api = Api::start();
    let mut db = cluster.database();
    db.items(&api, "");
    db.run(
        "CREATE TABLE slow (id int PRIMARY KEY, title text);
            CREATE FUNCTION endless(text) RETURNS text LANGUAGE plpgsql STABLE AS
            $$ BEGIN IF $1 = 'endless' THEN LOOP END LOOP; END IF; RETURN $1; END $$",
    );
    db.run("SELECT recsync.create_pipeline('slow_embedding', 'slow', content => 'endless(title)', server => 'api', index => 'none')");
    db.run("INSERT INTO slow VALUES (1, 'fine'), (2, 'endless'), (3, 'fine, too')");
    db.run("INSERT INTO item VALUES (1, 'not held up')");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    wait_until(
        Duration::from_secs(60),
        "the other rows are embedded",
        || db.one::<i64>("SELECT count(*) FROM slow_embedding") == 2,
    );
}

#[test]
fn pause_stops_one_pipeline_and_resume_catches_up() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("CREATE TABLE other (id int PRIMARY KEY, title text)");
    db.pipeline("other_embedding", "other");
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    db.run("SELECT recsync.pause('item_embedding')");
    assert_eq!(
        db.one::<String>("SELECT state FROM recsync.status WHERE name LIKE '%item_embedding'"),
        "paused"
    );
    db.run("UPDATE item SET title = 'while paused' WHERE id = 1; INSERT INTO item VALUES (2, 'while paused, too'); INSERT INTO other VALUES (1, 'goes on')");
    db.settle("other_embedding");
    assert_eq!(api.times_asked("while paused"), 0);
    db.run("SELECT recsync.resume('item_embedding')");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn worker_is_not_led_astray_by_settings_of_the_database_or_cluster() {
    let cluster = Cluster::start(&[
        ("default_transaction_read_only", "off"),
        ("statement_timeout", "0"),
    ]);
    let api = Api::start();
    let mut db = cluster.database();
    let name = db.name.clone();
    for setting in [
        "default_transaction_isolation = 'serializable'",
        "default_transaction_read_only = on",
        "default_transaction_deferrable = on",
        "search_path = 'nowhere'",
        "datestyle = 'SQL, DMY'",
        "lock_timeout = 1",
        "statement_timeout = 1",
        "bytea_output = 'escape'",
        "extra_float_digits = 0",
    ] {
        db.run(&format!("ALTER DATABASE {name} SET {setting}"));
    }
    let worker = db.worker();
    db.run(&format!("SELECT pg_terminate_backend({worker})"));
    wait_until(PATIENCE, "another worker runs", || {
        db.worker_now().is_some_and(|pid| pid != worker)
    });
    // This connection was made before: it has none of it.
    db.server("api", &api, "");
    db.run("CREATE TABLE moment (at timestamptz PRIMARY KEY, title text)");
    db.run("SELECT recsync.create_pipeline('moment_embedding', 'moment', columns => '{title}', server => 'api', index => 'none')");
    db.run("INSERT INTO moment SELECT timestamptz '2024-03-04 05:06:07.123456Z' + i * interval '1 day', 'moment ' || i FROM generate_series(1, 50) i");
    db.settle("moment_embedding");
    db.assert_in_step(&api, "SELECT m.at::text, m.title, e.embedding::text FROM moment m FULL JOIN moment_embedding e USING (at)");
}
