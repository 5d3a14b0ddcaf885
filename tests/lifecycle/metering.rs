//! Tokens, money, hooks and lists: what the metrics say is what the ledger, the receiver and the caller have seen.

use crate::support::numbers::Numbers;
use crate::support::{Api, Database, Mishap, PATIENCE, Receiver, Sql, shared, wait_until};

/// Of one pipeline of this database.
fn value(db: &mut Database, name: &str, more: &[(&str, &str)]) -> Option<f64> {
    let text: String = db.one("SELECT recsync.metrics()");
    let mut labels = vec![("database", db.name.as_str())];
    labels.extend(more);
    Numbers::parse(&text).find(name, &labels)
}

const ITEMS: (&str, &str) = ("pipeline", "public.item_embedding");

fn ledger(db: &mut Database, column: &str) -> f64 {
    db.one(&format!(
        "SELECT sum({column})::float8 FROM recsync.usage WHERE pipeline = 'public.item_embedding'"
    ))
}

#[track_caller]
fn close(one: Option<f64>, other: f64) {
    let one = one.expect("it is there");
    assert!(
        (one - other).abs() <= 1e-9 * other.abs().max(1e-6),
        "{one} is not {other}"
    );
}

#[test]
fn money_tokens_and_what_was_saved_are_those_of_the_ledger() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(
        &api,
        "price_per_million_tokens '0.5', currency 'EUR', monthly_budget '7'",
    );
    db.run("SELECT recsync.set_budget('item_embedding', 2.5)");
    db.run("INSERT INTO item SELECT i, 'row number ' || i FROM generate_series(1, 50) i");
    db.settle("item_embedding");
    // Known: texts that other rows have. Unchanged: a row is looked at again.
    db.run("INSERT INTO item SELECT 100 + i, 'row number ' || i FROM generate_series(1, 7) i");
    db.settle("item_embedding");
    db.run("UPDATE item SET title = 'other' WHERE id = 1; UPDATE item SET title = 'row number 1' WHERE id = 1");
    db.settle("item_embedding");
    db.run("SELECT recsync.embed('item_embedding', 'a question that somebody asks')");
    wait_until(PATIENCE, "the question is in the ledger", || {
        ledger(&mut db, "queries") == 1.0
    });
    let euro = [ITEMS, ("currency", "EUR")];
    close(
        value(&mut db, "recsync_cost_total", &euro),
        ledger(&mut db, "cost"),
    );
    close(
        value(&mut db, "recsync_month_cost", &euro),
        ledger(&mut db, "cost"),
    );
    close(
        value(&mut db, "recsync_month_tokens", &[ITEMS]),
        ledger(&mut db, "tokens"),
    );
    close(value(&mut db, "recsync_monthly_budget", &euro), 2.5);
    let server = [("server", "api"), ("currency", "EUR")];
    close(
        value(&mut db, "recsync_server_monthly_budget", &server),
        7.0,
    );
    close(
        value(&mut db, "recsync_server_month_cost", &server),
        ledger(&mut db, "cost"),
    );
    assert_eq!(
        value(&mut db, "recsync_query_requests_total", &[ITEMS]),
        Some(1.0)
    );
    let asked = ledger(&mut db, "tokens");
    let by_rows = value(&mut db, "recsync_tokens_total", &[ITEMS]).unwrap();
    close(
        value(&mut db, "recsync_query_tokens_total", &[ITEMS]),
        asked - by_rows,
    );
    for reason in ["coalesced", "unchanged", "known"] {
        let labels = [ITEMS, ("reason", reason)];
        let count = ledger(&mut db, reason);
        assert_eq!(
            value(&mut db, "recsync_saved_total", &labels),
            Some(count),
            "{reason}"
        );
        let tokens = ledger(&mut db, &format!("{reason}_tokens"));
        close(
            value(&mut db, "recsync_saved_tokens_total", &labels),
            tokens,
        );
        let labels = [ITEMS, ("reason", reason), ("currency", "EUR")];
        let cost = ledger(&mut db, &format!("{reason}_cost"));
        close(value(&mut db, "recsync_saved_cost_total", &labels), cost);
    }
    assert_eq!(
        value(
            &mut db,
            "recsync_saved_total",
            &[ITEMS, ("reason", "known")]
        ),
        Some(7.0)
    );

    // Spent: what is sent is over, and so are the running state and the number of the page.
    db.run("SELECT recsync.set_budget('item_embedding', 0)");
    let spent = [ITEMS, ("state", "budget_spent")];
    wait_until(PATIENCE, "its budget is spent", || {
        value(&mut db, "recsync_state", &spent) == Some(1.0)
    });
}

#[test]
fn a_hooks_letters_its_failures_and_its_receiver_are_watched_as_a_pipelines_are() {
    let api = Api::start();
    let receiver = Receiver::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.settle("item_embedding");
    db.run(&format!(
        "CREATE SERVER hooks FOREIGN DATA WRAPPER recsync OPTIONS (api 'webhook', url '{}', api_key_env 'TEST_HOOK_API_KEY')",
        receiver.url()
    ));
    db.run("SELECT recsync.create_hook('told', 'embedded', 'hooks', '/told', listens_to => 'item_embedding')");
    db.run("INSERT INTO item VALUES (1, 'one')");
    receiver.wait_for(1);
    let hook = ("hook", "public.told");
    wait_until(PATIENCE, "the letter is counted", || {
        value(&mut db, "recsync_deliveries_total", &[hook]) == Some(1.0)
    });
    assert_eq!(value(&mut db, "recsync_pending", &[hook]), Some(0.0));
    assert_eq!(
        value(&mut db, "recsync_provider_failing_seconds", &[hook]),
        Some(0.0)
    );
    receiver.play_always(Some(Mishap::Status(503, "")));
    db.run("INSERT INTO item VALUES (2, 'two')");
    wait_until(PATIENCE, "the receiver fails", || {
        value(&mut db, "recsync_provider_failing_seconds", &[hook]) > Some(0.0)
            && value(
                &mut db,
                "recsync_state",
                &[hook, ("state", "provider_down")],
            ) == Some(1.0)
    });
    assert_eq!(value(&mut db, "recsync_pending", &[hook]), Some(1.0));
    assert!(
        value(
            &mut db,
            "recsync_errors_total",
            &[hook, ("class", "provider")]
        ) >= Some(1.0)
    );
    let errors: String = db
        .one("SELECT kind || ' ' || name || ' ' || class FROM recsync.errors WHERE kind = 'hook'");
    assert_eq!(errors, "hook public.told provider");
    receiver.play_always(None);
    wait_until(PATIENCE, "it has arrived", || {
        value(&mut db, "recsync_deliveries_total", &[hook]) == Some(2.0)
            && value(&mut db, "recsync_provider_failing_seconds", &[hook]) == Some(0.0)
    });
    let name = db.name.clone();
    let checks: Vec<String> = db.column(&format!(
        "SELECT DISTINCT check_name FROM recsync.health() WHERE subject = '{name}: public.told' AND ok ORDER BY 1"
    ));
    assert_eq!(checks, ["hook", "provider"]);
}

#[test]
fn what_is_left_of_limits_is_that_of_the_own_pace_or_what_the_provider_says() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "requests_per_minute '600'");
    db.settle("item_embedding");
    let numbers = |db: &mut Database| {
        [
            "recsync_limit_requests",
            "recsync_limit_requests_left",
            "recsync_limit_tokens",
            "recsync_limit_tokens_left",
        ]
        .map(|name| value(db, name, &[ITEMS]))
    };
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    // A tenth may go at once, and is soon there again.
    wait_until(PATIENCE, "all is there again", || {
        numbers(&mut db) == [Some(600.0), Some(60.0), None, None]
    });
    api.announce(&[
        ("x-ratelimit-limit-requests", "500"),
        ("x-ratelimit-remaining-requests", "3"),
        ("x-ratelimit-reset-requests", "1h"),
        ("x-ratelimit-remaining-tokens", "7000"),
        ("x-ratelimit-reset-tokens", "1h"),
    ]);
    db.run("INSERT INTO item VALUES (2, 'two')");
    db.settle("item_embedding");
    let said = [Some(500.0), Some(3.0), None, Some(7_000.0)];
    assert_eq!(numbers(&mut db), said);
    // A session's requests are of the same account.
    api.announce(&[("x-ratelimit-remaining-requests", "2")]);
    db.run("SELECT recsync.embed('item_embedding', 'a question')");
    assert_eq!(numbers(&mut db)[1], Some(2.0));
}

#[test]
fn lists_that_were_ready_and_that_were_made_are_those_of_list_cache() {
    let mut db = shared().database();
    db.run(
        "CREATE TABLE product (id int PRIMARY KEY, title text);
         CREATE TABLE event (id int PRIMARY KEY, user_id int NOT NULL, product_id int NOT NULL REFERENCES product, created_at timestamptz NOT NULL DEFAULT now());
         INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 20) i",
    );
    db.run("SELECT recsync.create_recommender('shop', items => 'product', interactions => 'event', user_column => 'user_id')");
    db.run("INSERT INTO event SELECT i, i % 3, 1 + i % 5 FROM generate_series(1, 10) i");
    db.settle("shop");
    for user in [1, 2, 17] {
        db.run(&format!("SELECT FROM shop_recommend({user})"));
    }
    let shop = [("recommender", "public.shop")];
    for column in ["ready", "made", "warmed"] {
        wait_until(PATIENCE, "both say the same", || {
            let count: i64 = db.one(&format!("SELECT {column} FROM recsync.list_cache"));
            value(&mut db, &format!("recsync_lists_{column}_total"), &shop) == Some(count as f64)
        });
    }
    assert!(value(&mut db, "recsync_lists_made_total", &shop) >= Some(1.0));
}
