//! embed, search, wait_for, change_log, dead_letter and status.

use std::time::{Duration, Instant};

use crate::support::{Api, Sql, shared};

#[test]
fn search_returns_the_nearest_rows_with_score_and_rank_and_a_filter_on_live_columns() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, category text, price numeric, tags text[], gone timestamptz)");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api')");
    db.run("INSERT INTO item SELECT i, 'row ' || i, CASE i % 3 WHEN 0 THEN 'shoes' WHEN 1 THEN 'hats' END, i, ARRAY['t' || i % 5], CASE WHEN i > 90 THEN now() END FROM generate_series(1, 100) i");
    db.settle("item_embedding");
    let rows =
        db.rows("SELECT item, score, rank FROM recsync.search('item_embedding', 'row 42', k => 5)");
    assert_eq!(rows.len(), 5);
    assert_eq!(rows[0].get::<_, String>(0), "42");
    assert!(
        (rows[0].get::<_, f64>(1) - 1.0).abs() < 1e-5,
        "the same text is nearest"
    );
    let scores: Vec<f64> = rows.iter().map(|row| row.get(1)).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    assert_eq!(
        rows.iter()
            .map(|row| row.get::<_, i32>(2))
            .collect::<Vec<_>>(),
        [1, 2, 3, 4, 5]
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.search('item_embedding', 'x')"),
        10,
        "k is 10 by default"
    );
    // Whatever the index finds first, k rows come as long as there are k.
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.search('item_embedding', 'x', k => 1000)"),
        100
    );
    for (filter, count) in [
        (r#"{"category": "shoes"}"#, 33),
        (r#"{"category": ["shoes", "hats"]}"#, 67),
        (r#"{"category": null}"#, 33),
        (r#"{"price": {"gte": 10, "lt": 20}}"#, 10),
        (r#"{"price": {"gt": 10, "lte": 20}, "category": "hats"}"#, 3),
        (r#"{"tags": {"contains": ["t1"]}}"#, 20),
        (r#"{"gone": null, "price": {"gt": 85}}"#, 5),
        (r#"{"category": "it's; DROP TABLE item"}"#, 0),
        ("{}", 100),
    ] {
        let found: i64 = db.one(&format!(
            "SELECT count(*) FROM recsync.search('item_embedding', 'x', 1000, $j${filter}$j$)"
        ));
        assert_eq!(found, count, "{filter}");
    }
    for (arguments, code) in [
        (
            r#"'item_embedding', 'x', filter => '{"colour": "red"}'"#,
            "42703",
        ),
        (r#"'item_embedding', 'x', filter => '[1]'"#, "22023"),
        (
            r#"'item_embedding', 'x', filter => '{"price": {"near": 1}}'"#,
            "22023",
        ),
        ("'item_embedding', 'x', k => 0", "22023"),
        ("'nothing', 'x'", "42704"),
    ] {
        let error = db.refused(&format!("SELECT recsync.search({arguments})"));
        assert_eq!(error.code().code(), code, "{arguments}: {error:?}");
        assert!(error.hint().is_some(), "{arguments}: {error:?}");
    }
    db.run("UPDATE item SET category = 'boots' WHERE id = 42");
    let live: Vec<String> = db.column(r#"SELECT item FROM recsync.search('item_embedding', 'row 42', filter => '{"category": "boots"}')"#);
    assert_eq!(live, ["42"], "the filter sees the live row");
}

#[test]
fn search_over_a_composite_key_returns_it_as_json() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (shop text, \"No\" int, title text, PRIMARY KEY (shop, \"No\")); INSERT INTO item VALUES ('a', 1, 'one'), ('b', 2, 'two')");
    db.run("SELECT recsync.create_pipeline('e', 'item', columns => '{title}', server => 'api')");
    db.settle("e");
    assert_eq!(
        db.one::<String>("SELECT item FROM recsync.search('e', 'two', k => 1)"),
        r#"{"No": 2, "shop": "b"}"#
    );
}

#[test]
fn embed_returns_the_models_vector_and_asks_once_for_one_text() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "query_prefix 'query: ', document_prefix 'document: '");
    let stored: String = db.one("SELECT recsync.embed('item_embedding', 'trail shoes')::text");
    assert!(api.is_vector_of(&stored, "query: trail shoes"));
    let stored: String =
        db.one("SELECT recsync.embed('api', 'trail shoes', purpose => 'document')::text");
    assert!(api.is_vector_of(&stored, "document: trail shoes"));
    let asked = api.requests().len();
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 50) i");
    db.settle("item_embedding");
    let asked_for_rows = api.requests().len();
    assert!(asked_for_rows > asked);
    db.run("SELECT id FROM item_embedding ORDER BY embedding <=> recsync.embed('item_embedding', 'once') LIMIT 5");
    assert_eq!(
        api.times_asked("query: once"),
        1,
        "a plan that calls it per row makes one request"
    );
    db.run("EXPLAIN SELECT id FROM item_embedding ORDER BY embedding <=> (SELECT recsync.embed('item_embedding', 'never')) LIMIT 5");
    assert_eq!(
        api.times_asked("query: never"),
        0,
        "EXPLAIN makes no request"
    );
    for (arguments, code) in [
        ("'nothing', 'x'", "42704"),
        ("'api', ''", "22023"),
        ("'api', 'x', purpose => 'decoration'", "22023"),
    ] {
        assert_eq!(
            db.refused(&format!("SELECT recsync.embed({arguments})"))
                .code()
                .code(),
            code,
            "{arguments}"
        );
    }
    assert!(
        db.one::<Option<String>>("SELECT recsync.embed('api', NULL)::text")
            .is_none()
    );
}

#[test]
fn embed_gives_up_after_its_timeout_can_be_cancelled_and_says_what_the_provider_said() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    api.hold_texts_with("slow");
    db.run("SET recsync.embed_timeout = '300 ms'");
    let started = Instant::now();
    let error = db.refused("SELECT recsync.embed('api', 'slow one')");
    assert_eq!(error.code().code(), "57014", "{error:?}");
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert!(error.hint().unwrap().contains("recsync.embed_timeout"));

    db.run("SET recsync.embed_timeout = '60 s'; SET statement_timeout = '300 ms'");
    let started = Instant::now();
    assert_eq!(
        db.refused("SELECT recsync.embed('api', 'slow two')")
            .code()
            .code(),
        "57014"
    );
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    db.run("RESET statement_timeout; RESET recsync.embed_timeout");

    api.release();
    api.refuse_texts_with("bad", 400);
    let error = db.refused("SELECT recsync.embed('api', 'bad one')");
    assert_eq!(error.code().code(), "38000", "{error:?}");
    assert!(
        error.message().contains("as scripted") && error.message().contains("400"),
        "{}",
        error.message()
    );
    // The session is as good as before.
    let stored: String = db.one("SELECT recsync.embed('api', 'fine')::text");
    assert!(api.is_vector_of(&stored, "fine"));
}

#[test]
fn builtin_api_needs_no_request_and_finds_words() {
    let mut db = shared().database();
    db.run("CREATE SERVER builtin FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin'); CREATE TABLE item (id int PRIMARY KEY, title text)");
    db.run("INSERT INTO item VALUES (1, 'waterproof trail shoes'), (2, 'a book about cooking'), (3, 'winter coat')");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'builtin')");
    db.settle("item_embedding");
    let found: Vec<String> =
        db.column("SELECT item FROM recsync.search('item_embedding', 'shoes for the trail')");
    assert_eq!(found.len(), 3);
    assert_eq!(found[0], "1");
    assert_eq!(
        db.one::<String>("SELECT DISTINCT model FROM item_embedding"),
        db.one::<String>("SELECT max(model) FROM item_embedding")
    );
}

#[test]
fn wait_for_says_when_it_cannot_help() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    let refused = |client: &mut postgres::Client, prepare: &str, code: &str| {
        client.run(prepare);
        let error = client.refused("SELECT recsync.wait_for('item_embedding')");
        assert_eq!(error.code().code(), code, "{error:?}");
        assert!(error.hint().is_some());
        client.run("ROLLBACK");
    };
    refused(
        &mut db,
        "BEGIN; INSERT INTO item VALUES (1, 'mine')",
        "25001",
    );
    refused(&mut db, "BEGIN ISOLATION LEVEL REPEATABLE READ", "25001");
    refused(&mut db, "BEGIN ISOLATION LEVEL SERIALIZABLE", "25001");
    api.hold();
    db.run("INSERT INTO item VALUES (1, 'held')");
    let started = Instant::now();
    assert!(!db.one::<bool>("SELECT recsync.wait_for('item_embedding', '400 ms')"));
    let took = started.elapsed();
    assert!(
        (Duration::from_millis(390)..Duration::from_secs(3)).contains(&took),
        "{took:?}"
    );
    db.run("SET statement_timeout = '300 ms'");
    assert_eq!(
        db.refused("SELECT recsync.wait_for('item_embedding')")
            .code()
            .code(),
        "57014"
    );
    db.run("RESET statement_timeout");
    api.release();
    db.settle("item_embedding");
}

#[test]
fn wait_for_of_an_idle_pipeline_returns_at_once_and_of_a_paused_one_does_not_say_that_all_is_done()
{
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.settle("item_embedding");
    // Transactions that concern nobody.
    db.run("CREATE TABLE elsewhere (a int); INSERT INTO elsewhere VALUES (1)");
    let started = Instant::now();
    for _ in 0..10 {
        db.run("INSERT INTO elsewhere VALUES (1)");
        db.settle("item_embedding");
    }
    println!("wait_for with nothing to do: {:?}", started.elapsed() / 10);
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    db.run("SELECT recsync.pause('item_embedding')");
    db.run("INSERT INTO item VALUES (1, 'not embedded')");
    db.pause(Duration::from_millis(500));
    let answer = db.query("SELECT recsync.wait_for('item_embedding', '1 s')", &[]);
    let said_done = answer.is_ok_and(|rows| rows[0].get::<_, bool>(0));
    assert!(!said_done, "a change that waits for resume() is not done");
    db.run("SELECT recsync.resume('item_embedding')");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

/// What a role sees of the change log.
fn logged(db: &crate::support::Database, role: &str) -> i64 {
    db.connect_as(role)
        .one("SELECT count(*) FROM recsync.change_log")
}

#[test]
fn change_log_has_a_row_for_each_change_with_key_op_and_who() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("SET application_name = 'the shop'");
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.run("BEGIN; UPDATE item SET title = 'two' WHERE id = 1; UPDATE item SET id = 2 WHERE id = 1; COMMIT");
    db.run("DELETE FROM item WHERE id = 2");
    db.run("TRUNCATE item");
    let log: Vec<String> = db.column(
        "SELECT concat_ws(' ', op, table_name, record_key, old_record, changed_by, application_name) FROM recsync.change_log ORDER BY transaction_id, sequence",
    );
    assert_eq!(
        log,
        [
            r#"INSERT item {"id": 1} postgres the shop"#,
            r#"UPDATE item {"id": 1} postgres the shop"#,
            r#"UPDATE item {"id": 2} {"id": 1} postgres the shop"#,
            r#"DELETE item {"id": 2} postgres the shop"#,
            "TRUNCATE item postgres the shop",
        ]
    );
    assert!(db.one::<bool>(
        "SELECT bool_and(changed_at > now() - interval '5 min') FROM recsync.change_log"
    ));
    assert_eq!(
        db.one::<i64>("SELECT count(DISTINCT transaction_id) FROM recsync.change_log"),
        4
    );
    db.run("DROP ROLE IF EXISTS log_admin, log_stranger; CREATE ROLE log_admin LOGIN IN ROLE recsync_admin; CREATE ROLE log_stranger LOGIN IN ROLE pg_monitor");
    assert_eq!(
        (logged(&db, "log_admin"), logged(&db, "log_stranger")),
        (0, 0),
        "an administrator sees what they may read"
    );
    db.run("GRANT SELECT ON item TO log_admin, log_stranger");
    assert_eq!(
        (logged(&db, "log_admin"), logged(&db, "log_stranger")),
        (5, 0)
    );
    db.run("ALTER TABLE item ENABLE ROW LEVEL SECURITY");
    assert_eq!(logged(&db, "log_admin"), 0, "policies hide rows from them");
    assert_eq!(
        db.connect_as("log_stranger")
            .one::<i64>("SELECT count(*) FROM recsync.status"),
        1,
        "pg_monitor sees numbers"
    );
    db.run("DROP TABLE item CASCADE");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.change_log WHERE table_name IS NULL"),
        5,
        "the audit outlives its table"
    );
    assert!(db.refused("DELETE FROM recsync.change_log").code().code() != "00000");
}

#[test]
fn status_tells_pending_in_flight_dead_lag_and_the_last_error() {
    let api = Api::start();
    let mut db = shared().database();
    api.refuse_texts_with("poison", 400);
    db.items(&api, "max_batch_inputs '5', max_concurrency '1'");
    db.run("INSERT INTO item VALUES (0, 'poison')");
    db.settle("item_embedding");
    let quiet =
        "SELECT concat_ws(' ', kind, name, state, pending, in_flight, dead) FROM recsync.status";
    crate::support::wait_until(crate::support::PATIENCE, "status is quiet", || {
        db.one::<String>(quiet) == "pipeline public.item_embedding running 0 0 1"
    });
    assert!(
        db.one::<String>("SELECT last_error FROM recsync.status")
            .contains("400")
    );
    api.hold();
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 20) i");
    api.wait_until_held(1);
    crate::support::wait_until(
        crate::support::PATIENCE,
        "status shows what is in flight",
        || db.one("SELECT in_flight = 5 AND pending >= 15 AND lag_seconds > 0 FROM recsync.status"),
    );
    api.release();
    db.settle("item_embedding");
    crate::support::wait_until(crate::support::PATIENCE, "status is quiet", || {
        db.one::<String>(quiet) == "pipeline public.item_embedding running 0 0 1"
    });
}

/// Nobody waits for it. The worker has read a stretch of the log without a change, which is not worth writing, before a
/// change comes that takes longer than it takes until the log is looked at.
#[test]
fn status_is_quiet_as_soon_as_all_is_done() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.settle("item_embedding");
    db.run("GRANT SELECT ON item TO pg_monitor");
    db.pause(Duration::from_millis(200));
    api.hold();
    db.run("INSERT INTO item VALUES (1, 'row')");
    api.wait_until_held(1);
    db.pause(Duration::from_millis(2500));
    api.release();
    crate::support::wait_until(crate::support::PATIENCE, "status is quiet", || {
        db.one("SELECT pending = 0 AND in_flight = 0 AND lag_seconds = 0 FROM recsync.status")
    });
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 1);
}
