//! The rows that were there before: how fast they go, how far they are, which of them, and what they wait for.

use std::time::{Duration, Instant};

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, eventually, shared, wait_until};

/// Table `item` with so many rows, all of them from before the pipeline, for which nothing has been done.
fn rows<'a>(cluster: &'a Cluster, api: &Api, count: i32) -> Database<'a> {
    let mut db = cluster.database();
    db.server("api", api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    db.run(&format!(
        "INSERT INTO item (id, title) SELECT i, 'row ' || i FROM generate_series(1, {count}) i"
    ));
    db
}

fn create(db: &mut Database, more: &str) {
    db.run(&format!(
        "SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{{title}}', server => 'api', index => 'none'{more})"
    ));
}

fn vectors(db: &mut Database) -> i64 {
    db.one("SELECT count(*) FROM item_embedding")
}

/// What recsync.status says of the pipeline.
#[track_caller]
fn status<T: postgres::types::FromSqlOwned>(db: &mut Database, column: &str) -> T {
    db.one(&format!(
        "SELECT {column} FROM recsync.status WHERE name = 'public.item_embedding'"
    ))
}

#[test]
fn a_backfill_goes_as_fast_as_it_may_and_says_how_far_it_is_while_changes_pass_it_by() {
    let cluster = Cluster::start(&[("recsync.backfill_rate", "200")]);
    let api = Api::start();
    let mut db = rows(&cluster, &api, 2_000);
    create(&mut db, "");
    let started = Instant::now();
    wait_until(PATIENCE, "rows are done, and it is known how fast", || {
        status(
            &mut db,
            "backfill_rate IS NOT NULL AND backfill_eta IS NOT NULL AND backfilled >= 400",
        )
    });
    assert!(
        started.elapsed() >= Duration::from_millis(1_500),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(status::<String>(&mut db, "state"), "backfill");
    assert_eq!(status::<i64>(&mut db, "backfill_total"), 2_000);
    let rate: f64 = status(&mut db, "backfill_rate");
    assert!((120.0..260.0).contains(&rate), "{rate} rows a second");
    let eta: f64 = status(&mut db, "extract(epoch FROM backfill_eta)::float8");
    assert!((2.0..14.0).contains(&eta), "{eta} s");
    wait_until(PATIENCE, "pg_stat_activity says it, too", || {
        db.one("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'recsync worker' AND datname = current_database()
                   AND query ~ '^recsync: backfill public.item_embedding: [0-9]+ of 2000 rows$'")
    });
    let changed = Instant::now();
    db.run("UPDATE item SET title = 'changed' WHERE id = 2000");
    wait_until(PATIENCE, "the change is embedded", || {
        db.one("SELECT count(*) = 1 FROM item_embedding WHERE id = 2000")
    });
    assert!(
        changed.elapsed() < Duration::from_secs(3),
        "{:?}",
        changed.elapsed()
    );
    assert!(vectors(&mut db) < 1_800, "and the rest has yet to come");
    cluster.set("recsync.backfill_rate", "0");
    let lifted = Instant::now();
    db.settle("item_embedding");
    assert!(
        lifted.elapsed() < Duration::from_secs(4),
        "{:?}",
        lifted.elapsed()
    );
    db.assert_items_in_step(&api);
    assert!(status::<bool>(
        &mut db,
        "state = 'running' AND backfilled = 2000 AND backfill_eta IS NULL"
    ));
    wait_until(PATIENCE, "the activity is another one", || {
        db.one("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'recsync worker' AND datname = current_database() AND query = 'recsync: working'")
    });
}

#[test]
fn some_rows_are_looked_at_by_a_filter_and_no_others_whatever_dies_meanwhile() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = rows(&cluster, &api, 5_000);
    create(&mut db, ", backfill => false");
    api.hold();
    let counted: i64 =
        db.one("SELECT recsync.backfill('item_embedding', 'id % 5 = 0 AND title <> $$row 10$$')");
    assert_eq!(counted, 999);
    api.wait_until_held(1);
    db.kill9_worker();
    api.release();
    db.settle("item_embedding");
    assert_eq!(vectors(&mut db), 999);
    let wrong: i64 = db.one("SELECT count(*) FROM item_embedding WHERE id % 5 <> 0 OR id = 10");
    assert_eq!(wrong, 0);
    assert_eq!(
        status::<i64>(&mut db, "backfilled"),
        5_000,
        "all were looked at"
    );
    api.forget();
    assert_eq!(
        db.one::<i64>("SELECT recsync.backfill('item_embedding', rate => 1000000)"),
        5_000
    );
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(api.texts().len(), 4_001, "what is unchanged costs nothing");
}

#[test]
fn two_filters_one_after_the_other_are_both_followed_and_all_rows_are_never_forgotten_for_some() {
    let api = Api::start();
    let mut db = rows(shared(), &api, 300);
    create(&mut db, ", backfill => false");
    api.hold();
    db.run("SELECT recsync.backfill('item_embedding', 'id <= 10', rate => 5)");
    db.run("SELECT recsync.backfill('item_embedding', 'id > 295')");
    api.release();
    db.settle("item_embedding");
    assert_eq!(
        db.column::<i32>("SELECT id FROM item_embedding ORDER BY id"),
        (1..=10).chain(296..=300).collect::<Vec<_>>()
    );
    db.run("SELECT recsync.backfill('item_embedding', rate => 1)");
    let error = db.refused("SELECT recsync.backfill('item_embedding', 'id = 1')");
    assert_eq!(error.code().code(), "55000", "{}", error.message());
    db.run("SELECT recsync.backfill('item_embedding')");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn a_rate_of_its_own_holds_for_one_backfill() {
    let api = Api::start();
    let mut db = rows(shared(), &api, 60);
    create(&mut db, ", backfill => false");
    let started = Instant::now();
    db.run("SELECT recsync.backfill('item_embedding', rate => 20)");
    db.settle("item_embedding");
    assert!(
        started.elapsed() >= Duration::from_millis(2_500),
        "{:?}",
        started.elapsed()
    );
    db.assert_items_in_step(&api);
}

#[test]
fn a_filter_that_fails_holds_the_backfill_and_no_change() {
    let api = Api::start();
    let mut db = rows(shared(), &api, 50);
    create(&mut db, ", backfill => false");
    db.run("UPDATE item SET stock = id");
    db.run("BEGIN; SELECT recsync.backfill('item_embedding', '100 / stock > 5'); UPDATE item SET stock = 0 WHERE id = 30; COMMIT");
    wait_until(PATIENCE, "the backfill is held", || {
        status(&mut db, "state = 'paused'")
    });
    let reason: String = status(&mut db, "paused_reason");
    assert!(reason.contains("22012"), "{reason}");
    db.run("INSERT INTO item VALUES (100, 'new', 200)");
    wait_until(PATIENCE, "the change is embedded", || {
        db.one("SELECT count(*) = 1 FROM item_embedding WHERE id = 100")
    });
    db.run("UPDATE item SET stock = 200 WHERE id = 30; SELECT recsync.resume('item_embedding')");
    db.settle("item_embedding");
    assert_eq!(vectors(&mut db), 17, "those of 1 to 16, and the new one");
}

#[test]
fn refusals_of_backfill_say_what_is_wrong() {
    let api = Api::start();
    let mut db = rows(shared(), &api, 10);
    create(&mut db, "");
    db.settle("item_embedding");
    db.run("DROP ROLE IF EXISTS backfill_stranger; CREATE ROLE backfill_stranger LOGIN");
    let mut stranger = db.connect_as("backfill_stranger");
    for (call, code) in [
        ("'nothing'", "42704"),
        ("'item_embedding', 'nothing > 1'", "42703"),
        ("'item_embedding', 'stock'", "42804"),
        ("'item_embedding', 'random() > 0.5'", "22023"),
        ("'item_embedding', 'EXISTS (SELECT FROM item)'", "0A000"),
        ("'item_embedding', rate => 0", "22023"),
    ] {
        let error = db.refused(&format!("SELECT recsync.backfill({call})"));
        assert_eq!(error.code().code(), code, "{call}: {}", error.message());
    }
    let error = stranger.refused("SELECT recsync.backfill('item_embedding')");
    assert_eq!(error.code().code(), "42501");
    db.run("SELECT recsync.pause('item_embedding')");
    let error = db.refused("SELECT recsync.backfill('item_embedding')");
    assert_eq!(error.code().code(), "55000");
}

#[test]
fn a_backfill_waits_for_a_standby_that_is_behind_and_changes_do_not() {
    let cluster = Cluster::start(&[
        ("recsync.max_replica_lag", "300ms"),
        ("recsync.backfill_rate", "200"),
    ]);
    let standby = cluster.standby();
    let api = Api::start();
    let mut db = rows(&cluster, &api, 3_000);
    wait_until(PATIENCE, "the standby streams", || {
        db.one("SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")
    });
    create(&mut db, "");
    wait_until(PATIENCE, "it goes on", || {
        status(&mut db, "backfilled >= 200")
    });
    standby
        .connect("postgres")
        .run("SELECT pg_wal_replay_pause()");
    wait_until(PATIENCE, "it waits", || {
        status(&mut db, "COALESCE(waiting_for, '') LIKE '%standby%'")
    });
    wait_until(PATIENCE, "what was under way is over", || {
        let before: i64 = vectors(&mut db);
        db.pause(Duration::from_millis(500));
        vectors(&mut db) == before
    });
    let before = vectors(&mut db);
    assert!(before < 2_900, "{before}");
    db.run("INSERT INTO item VALUES (5000, 'new')");
    wait_until(PATIENCE, "the change is embedded", || {
        db.one("SELECT count(*) = 1 FROM item_embedding WHERE id = 5000")
    });
    db.pause(Duration::from_millis(1_500));
    assert_eq!(vectors(&mut db), before + 1);
    standby
        .connect("postgres")
        .run("SELECT pg_wal_replay_resume()");
    wait_until(PATIENCE, "it goes on", || vectors(&mut db) > before + 100);
    wait_until(PATIENCE, "it waits no more", || {
        status(&mut db, "waiting_for IS NULL")
    });
    cluster.set("recsync.backfill_rate", "0");
    cluster.set("recsync.max_replica_lag", "0");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn a_large_backfill_waits_with_its_price_as_the_reason_until_it_is_confirmed() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = rows(&cluster, &api, 0);
    db.run("ALTER SERVER api OPTIONS (ADD price_per_million_tokens '20')");
    db.run("INSERT INTO item SELECT i, 'hello world' || i FROM generate_series(1, 500) i");
    db.run("SET recsync.backfill_confirm_rows = 400");
    create(&mut db, ", row_filter => 'id > 50'");
    let reason: String = status(&mut db, "paused_reason");
    assert_eq!(status::<String>(&mut db, "state"), "paused");
    for part in [
        "about 450 rows",
        "tokens",
        "0.02",
        "USD",
        "recsync.resume('public.item_embedding')",
    ] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    db.run(
        "INSERT INTO item VALUES (1000, 'new'); UPDATE item SET title = 'changed' WHERE id = 100",
    );
    wait_until(PATIENCE, "changes are embedded", || vectors(&mut db) == 2);
    let error = db.refused("SELECT recsync.wait_for('item_embedding')");
    assert_eq!(error.code().code(), "55000");
    cluster.restart();
    db.reconnect();
    db.run("INSERT INTO item VALUES (1001, 'newer')");
    wait_until(PATIENCE, "changes are embedded", || vectors(&mut db) == 3);
    assert_eq!(api.texts().len(), 3, "nothing else is paid for");
    db.run("SELECT recsync.resume('item_embedding')");
    db.settle("item_embedding");
    assert_eq!(status::<String>(&mut db, "state"), "running");
    assert_eq!(vectors(&mut db), 452);
    // A look at all of them again is not asked about.
    db.run("SELECT recsync.pause('item_embedding'); SELECT recsync.resume('item_embedding')");
    db.settle("item_embedding");
    assert_eq!(api.texts().len(), 452);
}

#[test]
fn a_backfill_is_not_asked_about_where_it_is_small_or_nobody_wants_to_be_asked() {
    let api = Api::start();
    for (rows_there, setting, asks) in [
        (300, "300", false),
        (300, "299", true),
        (300, "-1", false),
        (1, "0", true),
        (0, "0", false),
    ] {
        let mut db = rows(shared(), &api, rows_there);
        db.run(&format!("SET recsync.backfill_confirm_rows = {setting}"));
        create(&mut db, "");
        assert_eq!(
            status::<bool>(&mut db, "paused_reason IS NOT NULL"),
            asks,
            "{rows_there} rows, {setting}"
        );
    }
    let mut db = rows(shared(), &api, 100);
    db.run("SET recsync.backfill_confirm_rows = 10");
    create(&mut db, ", backfill => false");
    assert!(
        status::<bool>(&mut db, "paused_reason IS NULL"),
        "there is nothing to be confirmed"
    );
    // A row that cannot be rendered makes no pipeline impossible.
    db.run("SELECT recsync.create_pipeline('other', 'item', content => '(1 / stock)::text', server => 'api', index => 'none')");
    let reason: String =
        db.one("SELECT paused_reason FROM recsync.status WHERE name = 'public.other'");
    assert!(reason.contains("cannot be estimated"), "{reason}");
    db.run("SELECT recsync.backfill('other')");
    db.settle("other");
    assert_eq!(
        db.one::<i64>("SELECT dead FROM recsync.status WHERE name = 'public.other'"),
        100
    );
}

#[test]
fn the_price_of_a_large_table_is_told_in_a_moment_by_some_of_its_pages() {
    let api = Api::start();
    let mut db = rows(shared(), &api, 0);
    db.run("ALTER SERVER api OPTIONS (ADD price_per_million_tokens '100')");
    db.run("INSERT INTO item SELECT i, rpad('hello world', 1900, ' hello world') FROM generate_series(1, 24000) i");
    let (pages, tokens): (i64, i64) = {
        let row = &db.rows("SELECT pg_relation_size('item') / 8192, tokens FROM recsync.estimate('item', '{title}', server => 'api')")[0];
        (row.get(0), row.get(1))
    };
    assert!(pages > 5_000, "{pages} pages: too few for a sample");
    let started = Instant::now();
    db.run("SET recsync.backfill_confirm_rows = 10000");
    create(&mut db, "");
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    let reason: String = status(&mut db, "paused_reason");
    let number = |before: &str| -> f64 {
        let end = reason
            .find(before)
            .unwrap_or_else(|| panic!("{before}: {reason}"));
        let start = reason[..end].rfind(' ').map_or(0, |at| at + 1);
        reason[start..end].parse().unwrap()
    };
    assert!((20_000.0..28_000.0).contains(&number(" rows")), "{reason}");
    assert!(
        (number(" tokens") / tokens as f64 - 1.0).abs() < 0.2,
        "{reason}, not {tokens}"
    );
    assert_eq!(api.requests_made(), 0);
    assert!(!eventually(Duration::from_millis(300), || api
        .requests_made()
        > 0));
}
