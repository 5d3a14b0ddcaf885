//! Budgets: a warning at 80%, no further request at 100%, and the pipeline goes on by itself when there is money again.

use std::time::Duration;

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, shared, wait_until};

/// A token costs a unit of money; as the scripted API counts them, a text of 20 bytes costs 5.
const PRICE: &str = "price_per_million_tokens '1000000'";

/// Text number `n`, of five tokens.
fn text(n: usize) -> String {
    format!("text number {n:>8}")
}

/// Inserts rows of five tokens each.
fn insert(db: &mut Database, from: usize, to: usize) {
    db.run(&format!(
        "INSERT INTO item SELECT i, 'text number ' || lpad(i::text, 8) FROM generate_series({from}, {to}) i"
    ));
}

fn status(db: &mut Database, column: &str) -> Option<String> {
    db.one(&format!("SELECT {column}::text FROM recsync.status WHERE kind = 'pipeline' AND name = 'public.item_embedding'"))
}

fn wait_for_state(db: &mut Database, wanted: &str) {
    wait_until(PATIENCE, &format!("it is {wanted}"), || {
        status(db, "state").as_deref() == Some(wanted)
    });
}

fn stored(db: &mut Database) -> i64 {
    db.one("SELECT count(*) FROM item_embedding")
}

#[test]
fn pipeline_warns_at_80_percent_stops_at_its_budget_and_goes_on_when_that_is_raised() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = cluster.database();
    db.items(
        &api,
        &format!("{PRICE}, max_batch_inputs '1', max_concurrency '2'"),
    );
    db.run("SELECT recsync.set_budget('item_embedding', 100)");
    insert(&mut db, 1, 15);
    db.settle("item_embedding");
    assert_eq!(status(&mut db, "warning"), None);
    assert_eq!(
        status(
            &mut db,
            "month_tokens || ' ' || month_cost || ' ' || monthly_budget || ' ' || currency"
        ),
        Some("75 75 100 USD".into())
    );
    insert(&mut db, 16, 17);
    db.settle("item_embedding");
    let warning = "80% of the monthly budget of 100 USD is spent";
    wait_until(PATIENCE, "there is a warning", || {
        status(&mut db, "warning").as_deref() == Some(warning)
    });
    assert_eq!(status(&mut db, "state").unwrap(), "running");
    // The rest of the budget is three rows: two more requests may be in the air by then.
    insert(&mut db, 18, 60);
    wait_for_state(&mut db, "paused");
    let reason = "the monthly budget of 100 USD is spent";
    assert_eq!(status(&mut db, "paused_reason").as_deref(), Some(reason));
    for call in ["wait_for", "run"] {
        let error = db.refused(&format!("SELECT recsync.{call}('item_embedding')"));
        assert_eq!(error.code().code(), "55000");
        assert_eq!(error.message(), format!("it is paused: {reason}"));
    }
    db.pause(Duration::from_millis(500));
    let asked = api.requests_made();
    assert!((20..=21).contains(&asked), "{asked} requests");
    wait_until(PATIENCE, "what was paid for is stored", || {
        stored(&mut db) == asked as i64
    });
    // What needs no request goes on: a deleted row, and the text of another.
    db.run("DELETE FROM item WHERE id = 1; UPDATE item SET title = (SELECT title FROM item WHERE id = 2) WHERE id = 3");
    wait_until(PATIENCE, "the deleted row has no vector", || {
        db.one::<i64>("SELECT count(*) FROM item_embedding WHERE id = 1") == 0
            && api.is_vector_of(
                &db.one::<String>("SELECT embedding::text FROM item_embedding WHERE id = 3"),
                &text(2),
            )
    });
    assert_eq!(api.requests_made(), asked);
    // Another worker knows it, too, and says it no second time.
    let worker = db.worker();
    db.run(&format!("SELECT pg_terminate_backend({worker})"));
    wait_until(PATIENCE, "another worker runs", || {
        db.worker_now().is_some_and(|pid| pid != worker)
    });
    insert(&mut db, 61, 61);
    db.pause(Duration::from_millis(1_000));
    assert_eq!(api.requests_made(), asked);
    assert_eq!(status(&mut db, "state").unwrap(), "paused");
    for said in [warning, reason] {
        let log = cluster.log();
        let lines = log.lines().filter(|line| {
            line.contains("recsync worker: pipeline") && line.ends_with(&format!(": {said}"))
        });
        assert_eq!(lines.count(), 1, "{said}");
    }
    db.run("SELECT recsync.set_budget('item_embedding', 1000)");
    wait_for_state(&mut db, "running");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(status(&mut db, "warning"), None);
    assert_eq!(api.requests_made(), 61, "each text once");
}

#[test]
fn budget_of_a_server_holds_for_all_of_its_pipelines_and_for_questions() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(
        &api,
        &format!("{PRICE}, monthly_budget '50', currency 'EUR'"),
    );
    db.run("CREATE TABLE other (id int PRIMARY KEY, title text)");
    db.pipeline("other_embedding", "other");
    insert(&mut db, 1, 8);
    db.settle("item_embedding");
    let warning = "80% of the monthly budget of 50 EUR of server \"api\" is spent";
    wait_until(PATIENCE, "there is a warning for both", || {
        db.one::<i64>(&format!(
            "SELECT count(*) FROM recsync.status WHERE warning = '{warning}'"
        )) == 2
    });
    db.run("SELECT recsync.embed('api', 'a question of ten tokens, more or less..')");
    let reason = "the monthly budget of 50 EUR of server \"api\" is spent";
    wait_until(PATIENCE, "both are paused", || {
        db.one::<i64>(&format!("SELECT count(*) FROM recsync.status WHERE state = 'paused' AND paused_reason = '{reason}'")) == 2
    });
    wait_until(PATIENCE, "the money is shown", || {
        status(&mut db, "month_cost || ' ' || server_month_cost || ' ' || server_monthly_budget || ' ' || currency").as_deref() == Some("40 50 50 EUR")
    });
    db.run("INSERT INTO other VALUES (1, 'one')");
    insert(&mut db, 9, 9);
    let asked = api.requests_made();
    db.pause(Duration::from_millis(500));
    assert_eq!(api.requests_made(), asked);
    // Nobody's search stops.
    db.run("SELECT recsync.embed('api', 'another question')");
    assert_eq!(api.requests_made(), asked + 1);
    db.run("ALTER SERVER api OPTIONS (SET monthly_budget '100')");
    wait_for_state(&mut db, "running");
    db.settle("item_embedding");
    db.settle("other_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(api.requests_made(), asked + 3);
}

#[test]
fn request_in_the_air_is_not_sent_again_when_only_the_price_or_a_budget_changes() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, &format!("{PRICE}, monthly_budget '500'"));
    api.hold();
    insert(&mut db, 1, 1);
    api.wait_until_held(1);
    db.run("ALTER SERVER api OPTIONS (SET price_per_million_tokens '2000000', SET monthly_budget '600')");
    db.run("SELECT recsync.set_budget('item_embedding', 7)");
    insert(&mut db, 2, 2);
    api.wait_until_held(2);
    api.release();
    wait_for_state(&mut db, "paused");
    wait_until(PATIENCE, "both are stored", || stored(&mut db) == 2);
    assert_eq!(api.requests_made(), 2);
    let cost: f64 = db.one("SELECT sum(cost)::float8 FROM recsync.usage");
    assert!((15.0..=20.0).contains(&cost), "{cost}");
}

#[test]
fn new_month_has_its_budget_anew() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, PRICE);
    db.run("SELECT recsync.set_budget('item_embedding', 5)");
    insert(&mut db, 1, 1);
    wait_for_state(&mut db, "paused");
    insert(&mut db, 2, 2);
    // As if all of it had been last month: what was said, and what was spent.
    let worker = db.worker();
    db.run(&format!("SELECT pg_terminate_backend({worker})"));
    wait_until(PATIENCE, "it is folded", || {
        db.one::<bool>("SELECT (SELECT count(*) FROM recsync.usage_day) = 1 AND (SELECT count(*) FROM recsync.usage_log) = 0")
    });
    db.run("UPDATE recsync.usage_day SET day = (date_trunc('month', now() AT TIME ZONE 'UTC') - interval '1 day')::date;
            UPDATE recsync.usage_month SET month = month - interval '1 month';
            UPDATE recsync.budget_notice SET month = month - interval '1 month'");
    assert_eq!(
        status(&mut db, "state").unwrap(),
        "running",
        "what was said last month is said no more"
    );
    let worker = db.worker();
    db.run(&format!("SELECT pg_terminate_backend({worker})"));
    wait_until(PATIENCE, "it has gone on", || stored(&mut db) == 2);
    wait_for_state(&mut db, "paused");
    assert_eq!(status(&mut db, "month_cost"), Some("5".into()));
    assert_eq!(
        db.one::<i64>("SELECT count(DISTINCT day) FROM recsync.usage"),
        2
    );
}

#[test]
fn budgets_are_declared_checked_and_shown() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, PRICE);
    db.run(
        "CREATE TABLE item (id int PRIMARY KEY, title text); INSERT INTO item VALUES (1, 'one')",
    );
    let create = |more: &str| {
        format!(
            "SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{{title}}', server => 'api', index => 'none'{more})"
        )
    };
    let error = db.refused(&create(", monthly_budget => -1"));
    assert_eq!(error.code().code(), "22023");
    db.run(&create(", monthly_budget => 0"));
    wait_for_state(&mut db, "paused");
    assert_eq!(api.requests_made(), 0, "nothing may be spent");
    let error = db.refused(&create(", if_not_exists => true"));
    assert!(
        error
            .hint()
            .unwrap_or_default()
            .contains("monthly_budget (is 0, given none)"),
        "{error:?}"
    );
    db.run(&create(", if_not_exists => true, monthly_budget => 0"));
    assert_eq!(
        db.refused("SELECT recsync.set_budget('item_embedding', 'NaN')")
            .code()
            .code(),
        "22023"
    );
    db.run("SELECT recsync.set_budget('item_embedding', NULL)");
    db.settle("item_embedding");
    let stranger = format!("{}_stranger", db.name);
    db.run(&format!("CREATE ROLE {stranger} LOGIN"));
    let error = db
        .connect_as(&stranger)
        .refused("SELECT recsync.set_budget('item_embedding', 5)");
    assert_eq!(error.code().code(), "42501");
    db.run(&format!("DROP ROLE {stranger}"));
}
