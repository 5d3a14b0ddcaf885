//! Items that have gone: whoever keeps lists elsewhere hears of it.

use serde_json::json;

use crate::server;
use crate::support::{Api, Database, PATIENCE, Receiver, Sql, shared, wait_until};

/// Table `product` with recommender `shop`, without one interaction: nothing else makes a list old.
fn shop(receiver: &Receiver) -> Database<'static> {
    let mut db = shared().database();
    server(&mut db, receiver, "");
    db.run(
        "CREATE TABLE product (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 5, hidden boolean NOT NULL DEFAULT false);
         CREATE TABLE event (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id bigint, product_id int REFERENCES product, created_at timestamptz NOT NULL DEFAULT clock_timestamp());
         INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 1000) i",
    );
    db
}

const RECOMMENDER: &str =
    "SELECT recsync.create_recommender('shop', 'product', 'event', eligible => 'NOT hidden')";
const HOOK: &str = "SELECT recsync.create_hook('told', 'invalidated', 'hooks')";

/// recsync's triggers on the products.
fn triggers(db: &mut Database) -> i64 {
    db.one("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'product'::regclass AND tgname LIKE '00_recsync%'")
}

/// That the scope of all lists is told of so often after `change`.
#[track_caller]
fn assert_told(db: &mut Database, receiver: &Receiver, change: &str, times: usize) {
    let before = receiver.taken().len();
    db.run(change);
    db.settle("shop"); // it has been read
    wait_until(PATIENCE, "all has been told", || {
        crate::status(db, "pending") == "0"
    });
    let letters = receiver.taken().split_off(before);
    assert_eq!(letters.len(), times, "{change}");
    for letter in letters {
        let data = &letter.body["data"];
        assert_eq!(data["keys"], json!(["collab_recs:*"]), "{change}");
        assert_eq!(data["users"], json!([]), "{change}");
        assert_eq!(data["source"], "public.shop", "{change}");
    }
}

#[test]
fn an_item_that_is_hidden_or_deleted_makes_all_lists_old_and_other_changes_do_not() {
    let receiver = Receiver::start();
    let mut db = shop(&receiver);
    db.run(RECOMMENDER);
    assert_eq!(triggers(&mut db), 0);
    db.run(HOOK);
    assert!(triggers(&mut db) > 0);
    for (change, times) in [
        ("UPDATE product SET hidden = true WHERE id = 1", 1),
        ("DELETE FROM product WHERE id = 2", 1),
        ("UPDATE product SET id = -3 WHERE id = 3", 1),
        (
            "UPDATE product SET hidden = true WHERE id BETWEEN 10 AND 800",
            1,
        ),
        (
            "UPDATE product SET title = 'other', stock = 0 WHERE id = 4",
            0,
        ),
        ("UPDATE product SET hidden = false WHERE id = 1", 0),
        (
            "INSERT INTO product (id, hidden) VALUES (2000, false), (2001, true)",
            0,
        ),
        ("BEGIN; DELETE FROM product WHERE id = 5; ROLLBACK", 0),
    ] {
        assert_told(&mut db, &receiver, change, times);
    }
    // Names are followed, and another declaration is.
    db.run("ALTER TABLE product RENAME hidden TO gone; ALTER TABLE product RENAME TO article");
    let used = "SELECT used_columns FROM recsync.watched_items";
    assert_eq!(db.one::<Vec<String>>(used), ["gone"]);
    assert_told(
        &mut db,
        &receiver,
        "UPDATE article SET gone = true WHERE id = 6",
        1,
    );
    db.run("ALTER TABLE article RENAME TO product; ALTER TABLE product RENAME gone TO hidden");
    let altered =
        "SELECT recsync.alter_recommender('shop', eligible => 'NOT hidden AND stock > 0')";
    assert_told(&mut db, &receiver, altered, 1);
    assert_told(
        &mut db,
        &receiver,
        "UPDATE product SET stock = 0 WHERE id = 7",
        1,
    );
    // One that fails hides what it is asked of.
    let fails =
        "SELECT recsync.alter_recommender('shop', eligible => 'NOT hidden AND 100 / stock > 0')";
    assert_told(&mut db, &receiver, fails, 1);
    assert_told(
        &mut db,
        &receiver,
        "UPDATE product SET stock = 0 WHERE id = 8",
        1,
    );
    assert_told(
        &mut db,
        &receiver,
        "UPDATE product SET stock = 1 WHERE id = 9",
        0,
    );
    assert_told(&mut db, &receiver, "TRUNCATE product CASCADE", 1);
}

#[test]
fn items_are_watched_as_long_as_a_hook_hears_of_them() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = shop(&receiver);
    db.run(HOOK);
    db.run(RECOMMENDER); // after the hook, which hears of all
    assert!(triggers(&mut db) > 0);
    db.run("SELECT recsync.create_hook('other', 'invalidated', listens_to => 'shop'); SELECT recsync.drop_hook('told')");
    assert!(triggers(&mut db) > 0);
    db.run("SELECT recsync.drop_hook('other')");
    assert_eq!(triggers(&mut db), 0);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.source"),
        1,
        "the interactions"
    );
    // Where a pipeline is of the same table, its triggers stay, and it hears of no more than it did.
    db.server("api", &api, "");
    db.run(&format!("DELETE FROM product WHERE id > 5; {HOOK}"));
    db.pipeline("product_embedding", "product");
    db.settle("product_embedding");
    db.run("SELECT recsync.drop_recommender('shop')");
    let used = "SELECT used_columns FROM recsync.source WHERE relation = 'public.product'";
    assert_eq!(db.one::<Vec<String>>(used), ["title"]);
    db.run("SELECT recsync.drop_pipeline('product_embedding')");
    assert_eq!(triggers(&mut db), 0);
    db.run(RECOMMENDER);
    assert!(triggers(&mut db) > 0);
    db.run("DROP TABLE product CASCADE");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.source"), 0);
}
