//! metrics(), health() and errors: what is counted, for whom, and that Prometheus reads it.

use crate::support::numbers::Numbers;
use crate::support::{Api, Cluster, Database, PATIENCE, Sql, shared, wait_until};

const SECRET: &str = "a text that nobody but its owner may see";

fn metrics(db: &mut Database) -> Numbers {
    Numbers::parse(&db.one::<String>("SELECT recsync.metrics()"))
}

/// Of one pipeline of this database: by name, with more labels.
fn value(db: &mut Database, name: &str, pipeline: &str, more: &[(&str, &str)]) -> f64 {
    find(db, name, pipeline, more).unwrap_or_else(|| panic!("there is no {name} of {pipeline}"))
}

/// `None` where the worker has not seen the pipeline yet.
fn find(db: &mut Database, name: &str, pipeline: &str, more: &[(&str, &str)]) -> Option<f64> {
    let numbers = metrics(db);
    let mut labels = vec![("database", db.name.as_str()), ("pipeline", pipeline)];
    labels.extend(more);
    numbers.find(name, &labels)
}

/// Rows that come from now on are changes, not the backfill's.
fn items_without_backfill(db: &mut Database, api: &Api) {
    db.items(api, "");
    wait_until(PATIENCE, "the backfill has ended", || {
        db.one("SELECT state = 'running' FROM recsync.status WHERE kind = 'pipeline'")
    });
}

#[test]
fn what_was_done_is_counted_by_pipeline_and_op_as_openmetrics_and_outlives_the_worker() {
    let api = Api::start();
    let mut db = shared().database();
    items_without_backfill(&mut db, &api);
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 3) i");
    db.settle("item_embedding");
    db.run("UPDATE item SET title = 'changed' WHERE id = 1");
    db.settle("item_embedding");
    db.run("DELETE FROM item WHERE id = 2");
    db.settle("item_embedding");
    let of = |db: &mut Database, name: &str, op: &str| {
        find(db, name, "public.item_embedding", &[("op", op)])
    };
    const COUNT: &str = "recsync_event_latency_seconds_count";
    for (op, count) in [
        ("insert", Some(3.0)),
        ("update", Some(1.0)),
        ("delete", Some(1.0)),
        ("truncate", None), // there is none yet
    ] {
        assert_eq!(of(&mut db, COUNT, op), count, "{op}");
    }
    assert!(of(&mut db, "recsync_event_latency_seconds_sum", "insert") > Some(0.0));
    db.run("TRUNCATE item");
    db.settle("item_embedding");
    wait_until(PATIENCE, "the truncation is counted", || {
        of(&mut db, COUNT, "truncate") == Some(1.0)
    });

    wait_until(PATIENCE, "nothing waits", || {
        ["recsync_pending", "recsync_lag_seconds"]
            .iter()
            .all(|name| value(&mut db, name, "public.item_embedding", &[]) == 0.0)
    });
    let numbers = metrics(&mut db);
    let labels = [
        ("database", db.name.as_str()),
        ("pipeline", "public.item_embedding"),
    ];
    assert_eq!(numbers.of("recsync_vectors_stored_total", &labels), 4.0);
    assert_eq!(numbers.of("recsync_latency_estimated_total", &labels), 0.0);
    assert_eq!(
        numbers.of("recsync_embed_seconds_count", &labels),
        numbers.of("recsync_requests_total", &labels)
    );
    assert!(numbers.of("recsync_requests_total", &labels) >= 2.0);
    assert!(numbers.of("recsync_http_bytes_total", &[("direction", "received")]) > 100.0);
    assert!(numbers.of("recsync_log_bytes", &labels[..1]) > 0.0);
    let running = [labels[0], labels[1], ("state", "running")];
    assert_eq!(numbers.of("recsync_state", &running), 1.0);
    for (name, (kind, unit, help)) in &numbers.families {
        assert!(name.starts_with("recsync_"), "{name}");
        assert!(!help.is_empty(), "{name} has no HELP");
        assert!(
            unit.is_empty() || name.ends_with(unit),
            "{name}: unit {unit}"
        );
        assert_ne!(kind, "unknown", "{name}");
    }

    let worker = db.worker();
    db.run(&format!("SELECT pg_terminate_backend({worker})"));
    wait_until(PATIENCE, "another worker runs", || {
        db.worker_now().is_some_and(|pid| pid != worker)
    });
    assert_eq!(
        of(&mut db, COUNT, "insert"),
        Some(3.0),
        "lost with the worker"
    );
}

#[test]
fn latency_counts_from_the_commit_not_from_when_the_statement_began() {
    let api = Api::start();
    let mut db = shared().database();
    items_without_backfill(&mut db, &api);
    let open_for = 3;
    db.run(&format!(
        "BEGIN; INSERT INTO item VALUES (1, 'one'); SELECT pg_sleep({open_for}); COMMIT"
    ));
    db.settle("item_embedding");
    let of =
        |db: &mut Database, name| value(db, name, "public.item_embedding", &[("op", "insert")]);
    assert_eq!(of(&mut db, "recsync_event_latency_seconds_count"), 1.0);
    let took = of(&mut db, "recsync_event_latency_seconds_sum");
    assert!(took < f64::from(open_for), "{took} s");
    let estimated = value(
        &mut db,
        "recsync_latency_estimated_total",
        "public.item_embedding",
        &[],
    );
    assert_eq!(estimated, 0.0);
}

#[test]
fn a_prepared_transactions_latency_is_estimated_and_says_so() {
    let cluster = Cluster::start(&[("max_prepared_transactions", "5")]);
    let api = Api::start();
    let mut db = cluster.database();
    items_without_backfill(&mut db, &api);
    db.run("BEGIN; INSERT INTO item VALUES (1, 'one'); PREPARE TRANSACTION 'one'");
    db.run("COMMIT PREPARED 'one'");
    db.settle("item_embedding");
    let of =
        |db: &mut Database, name, labels: &[_]| value(db, name, "public.item_embedding", labels);
    let insert = [("op", "insert")];
    assert_eq!(
        of(&mut db, "recsync_event_latency_seconds_count", &insert),
        1.0
    );
    assert_eq!(of(&mut db, "recsync_latency_estimated_total", &[]), 1.0);
}

#[test]
fn names_of_any_kind_are_labels_and_dead_letters_and_jobs_are_counted() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "max_attempts '1'");
    db.run(r#"CREATE TABLE "o\d""d" (id int PRIMARY KEY, title text)"#);
    db.run(
        r#"SELECT recsync.create_pipeline('"line\""
{x=""1""}"', '"o\d""d"', columns => '{title}', server => 'api', index => 'none')"#,
    );
    let name = "public.\"line\\\"\"\n{x=\"\"1\"\"}\"";
    api.refuse_texts_with("bad", 400);
    db.run(r#"INSERT INTO "o\d""d" VALUES (1, 'good'), (2, 'bad'), (3, 'bad, too')"#);
    wait_until(PATIENCE, "two rows are given up", || {
        find(&mut db, "recsync_dead_letters", name, &[]) == Some(2.0)
    });
    let permanent = [("class", "permanent")];
    assert!(value(&mut db, "recsync_errors_total", name, &permanent) >= 2.0);
    // What was given up never shows, and is not counted as if it had.
    let insert = [("op", "insert")];
    assert_eq!(
        value(
            &mut db,
            "recsync_event_latency_seconds_count",
            name,
            &insert
        ),
        1.0
    );
}

#[test]
fn numbers_are_for_pg_monitor_and_recsync_admin_and_hold_no_text() {
    let api = Api::start();
    let mut db = shared().database();
    let role = format!("{}_watcher", db.name);
    db.items(&api, "max_attempts '1'");
    db.settle("item_embedding");
    api.echo_in_errors();
    api.refuse_texts_with("nobody", 400);
    db.run(&format!("INSERT INTO item VALUES (1, '{SECRET}')"));
    db.settle("item_embedding");
    db.run(&format!("CREATE ROLE {role} LOGIN"));
    let mut watcher = db.connect_as(&role);
    for function in ["metrics()", "health()"] {
        let error = watcher.refused(&format!("SELECT recsync.{function}"));
        assert_eq!(error.code().code(), "42501", "{function}");
    }
    assert_eq!(watcher.one::<i64>("SELECT count(*) FROM recsync.errors"), 0);
    db.run(&format!("GRANT pg_monitor TO {role}"));
    let text: String = watcher.one("SELECT recsync.metrics()");
    assert!(text.contains("public.item_embedding") && text.ends_with("# EOF\n"));
    let errors: String = watcher.one("SELECT string_agg(e::text, ' ') FROM recsync.errors e");
    assert!(
        errors.contains("permanent") && errors.contains("400"),
        "{errors}"
    );
    let health: String = watcher.one("SELECT string_agg(h::text, ' ') FROM recsync.health() h");
    for shown in [text, errors, health] {
        assert!(!shown.contains("nobody but"), "{shown}");
    }
    drop(watcher);
    db.run(&format!("DROP ROLE {role}"));
}

#[test]
fn errors_lists_what_went_wrong_by_status_and_sqlstate_with_how_often() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "max_attempts '5'");
    db.run(
        "CREATE TABLE item (id int PRIMARY KEY, title text);
         SELECT recsync.create_pipeline('item_embedding', 'item', content => $$title || (100 / (id - 1))$$, server => 'api', index => 'none')",
    );
    db.settle("item_embedding"); // a backfill would fail, too
    db.run(&format!("INSERT INTO item VALUES (1, '{SECRET}')"));
    db.settle("item_embedding");
    api.fail_next(1, 503, None);
    db.run("INSERT INTO item VALUES (2, 'two')");
    db.settle("item_embedding");
    let errors = db.rows(
        "SELECT concat_ws(' ', kind, name, class, status, sqlstate, count || ' ×'), message FROM recsync.errors
          WHERE at > now() - interval '10 minutes' ORDER BY class",
    );
    let shown: Vec<String> = errors.iter().map(|row| row.get(0)).collect();
    assert_eq!(
        shown,
        [
            "pipeline public.item_embedding database 22012 1 ×",
            "pipeline public.item_embedding provider 503 1 ×"
        ]
    );
    for row in errors {
        let message: String = row.get(1);
        assert!(
            !message.is_empty() && !message.contains("nobody"),
            "{message}"
        );
    }
}

#[test]
fn an_interaction_is_timed_from_its_commit_to_where_it_counts() {
    let mut db = shared().database();
    db.run(
        "CREATE TABLE product (id int PRIMARY KEY, title text);
         CREATE TABLE event (id int PRIMARY KEY, user_id int NOT NULL, product_id int NOT NULL REFERENCES product, created_at timestamptz NOT NULL DEFAULT now());
         INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 5) i",
    );
    db.run("SELECT recsync.create_recommender('shop', items => 'product', interactions => 'event', user_column => 'user_id')");
    db.settle("shop");
    db.run("INSERT INTO event SELECT i, i % 3, 1 + i % 5 FROM generate_series(1, 10) i");
    db.settle("shop");
    let numbers = metrics(&mut db);
    let labels = [
        ("database", db.name.as_str()),
        ("recommender", "public.shop"),
    ];
    assert_eq!(
        numbers.of("recsync_interaction_latency_seconds_count", &labels),
        10.0
    );
}

#[test]
fn health_says_what_is_wrong_and_what_to_do_and_a_pause_is_no_fault() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.settle("item_embedding");
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    let name = db.name.clone();
    let faults = move |db: &mut Database| -> Vec<String> {
        db.column(&format!(
            "SELECT check_name || ' ' || hint FROM recsync.health() WHERE NOT ok AND subject LIKE '{name}:%'"
        ))
    };
    assert_eq!(faults(&mut db), [""; 0]);
    db.run("SELECT recsync.pause('item_embedding')");
    assert_eq!(faults(&mut db), [""; 0]);
    db.run("SELECT recsync.resume('item_embedding'); ");
    db.settle("item_embedding");
    db.run("ALTER TABLE item DROP COLUMN title");
    wait_until(PATIENCE, "it is stopped", || !faults(&mut db).is_empty());
    let faults = faults(&mut db);
    assert!(
        faults[0].starts_with("pipeline ") && faults[0].contains("recsync.resume"),
        "{faults:?}"
    );
}
