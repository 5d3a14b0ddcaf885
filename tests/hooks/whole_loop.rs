//! The whole of it: a click comes from elsewhere, counts once, takes a list away, is told of, and the list is there again.

use serde_json::{Value, json};

use crate::server;
use crate::support::{PATIENCE, Receiver, Sql, shared, wait_until};

#[test]
fn a_click_that_comes_twice_counts_once_is_told_of_once_and_the_list_is_there_again() {
    let receiver = Receiver::start();
    let mut db = shared().database();
    server(&mut db, &receiver, "");
    db.run(
        "CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin');
         CREATE TABLE product (id int PRIMARY KEY, title text);
         CREATE TABLE event (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id bigint, product_id int REFERENCES product, created_at timestamptz NOT NULL DEFAULT clock_timestamp());
         INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 40) i;
         SELECT recsync.create_recommender('shop', 'product', 'event', text => '{title}', server => 'local')",
    );
    for product in 1..=3 {
        db.run(&format!(
            "INSERT INTO event (user_id, product_id) VALUES (42, {product}), (43, {product})"
        ));
    }
    let id: i32 = db.one("SELECT id FROM recsync.recommender");
    db.settle("shop");
    let is_ready = format!(
        "SELECT count(*) = 2 FROM recsync.list_{id} l JOIN recsync.interest_{id} i USING (user_id) WHERE NOT i.stale
            AND NOT EXISTS (SELECT FROM recsync.revised_{id})"
    );
    wait_until(PATIENCE, "both lists are ready", || db.one(&is_ready));
    let ready = |db: &mut crate::support::Database| {
        db.one::<i64>("SELECT ready FROM recsync.list_cache WHERE recommender = 'public.shop'")
    };
    let listed = "SELECT id FROM shop_recommend(42, k => 10) ORDER BY rank";
    let before = ready(&mut db);
    let clicked = db.column::<i32>(listed)[0];
    assert_eq!(ready(&mut db), before + 1, "it was ready");

    db.run(
        "SELECT recsync.create_hook('warm', 'invalidated', 'hooks', '/predictions/warm', listens_to => 'shop', body => '{\"user_ids\": \"{{users}}\"}')",
    );
    let state = format!(
        "SELECT jsonb_build_object('interest', (SELECT interest::text FROM recsync.interest_{id} WHERE user_id = 42 AND NOT stale),
                                   'of_another', (SELECT interest::text FROM recsync.interest_{id} WHERE user_id = 43),
                                   'interactions', (SELECT count(*) FROM recsync.interaction_{id} WHERE user_id = 42),
                                   'list', (SELECT made_at FROM recsync.list_{id} WHERE user_id = 42))::text"
    );
    let look = |db: &mut crate::support::Database| -> Value {
        serde_json::from_str(&db.one::<String>(&state)).unwrap()
    };
    let was = look(&mut db);
    assert_eq!(was["interactions"], 3);
    let click = json!([{"event_id": "click-1", "operation": "insert", "table": "event",
                        "data": {"user_id": 42, "product_id": clicked}, "timestamp": "2026-11-30T12:00:00Z"}]);
    let apply = format!("SELECT recsync.apply_events('{click}')");
    assert_eq!(db.one::<i64>(&apply), 1);
    assert_eq!(db.one::<i64>(&apply), 0, "the second time");
    db.settle("shop");
    // As soon as it counts the list of before has gone.
    let now = look(&mut db);
    assert_eq!(now["interactions"], 4);
    assert_ne!(now["list"], was["list"]);
    assert!(!db.column::<i32>(listed).contains(&clicked));
    wait_until(PATIENCE, "the interest has moved", || {
        look(&mut db)["interest"].is_string()
    });
    let moved = look(&mut db);
    assert_ne!(moved["interest"], was["interest"]);
    assert_eq!(moved["of_another"], was["of_another"]);
    receiver.wait_for(1);
    wait_until(PATIENCE, "the list is ready again", || db.one(&is_ready));
    // Once more: it moves nothing, and nothing is told.
    assert_eq!(db.one::<i64>(&apply), 0, "the third time");
    db.settle("shop");
    let before = ready(&mut db);
    let again = db.column::<i32>(listed);
    assert_eq!(ready(&mut db), before + 1, "it was ready again");
    assert_eq!(again.len(), 10);
    for seen in [1, 2, 3, clicked] {
        assert!(!again.contains(&seen), "{again:?}");
    }
    assert_eq!(look(&mut db)["interest"], moved["interest"]);
    wait_until(PATIENCE, "all has been told", || {
        crate::status(&mut db, "pending") == "0"
    });
    // The receiver takes letters with a valid signature only.
    let letters = receiver.letters();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].path, "/predictions/warm");
    assert_eq!(letters[0].body, json!({"user_ids": ["42"]}));
}
