//! Keys of all types, names of all kinds, and what becomes of a recommender when its tables change or go.

use crate::shop::{assert_kept_right, items, shop, views};
use crate::support::{PATIENCE, Sql, shared, wait_until};

#[test]
fn keys_of_any_type_and_names_of_any_kind() {
    let mut db = shared().database();
    db.run(
        r#"CREATE SCHEMA "Mixed Case";
           CREATE TYPE "Mixed Case".shade AS ENUM ('red', 'green', 'blue');
           SET search_path = "Mixed Case", public;
           CREATE TABLE "The Items" ("rank" shade PRIMARY KEY, "the title" text);
           CREATE TABLE "Events" (a timestamptz, b numeric, "user" inet NOT NULL, "Item" shade, at timestamp NOT NULL, PRIMARY KEY (b, a));
           INSERT INTO "The Items" VALUES ('red', 'x'), ('green', 'y'), ('blue', 'z')"#,
    );
    db.run(r#"SELECT recsync.create_recommender('"My Shop"', '"The Items"', '"Events"', user_column => 'user', item_column => 'Item', at_column => 'at')"#);
    db.run(
        r#"INSERT INTO "Events" VALUES (now(), 1.0, '::1', 'red', now()), (now(), 2, '::1', 'green', now()), (now(), 3, '10.0.0.1', 'red', now());
           UPDATE "Events" SET b = 1.00 WHERE b = 1"#,
    );
    db.settle(r#""My Shop""#);
    // The key's name is one of the list's columns, too.
    let listed: Vec<String> =
        db.column(r#"SELECT item::text FROM "My Shop_recommend"('10.0.0.1') ORDER BY rank"#);
    assert_eq!(listed, ["green", "blue"]);
    let listed: Vec<String> =
        db.column(r#"SELECT item FROM recsync.similar('"Mixed Case"."My Shop"', 'red')"#);
    assert_eq!(listed, ["green"]);
    let listed: Vec<String> = db.column(
        r#"SELECT item FROM recsync.recommend('"My Shop"', filter => '{"the title": "z"}')"#,
    );
    assert_eq!(listed, ["blue"]);
    let listed: Vec<String> = db.column(
        r#"SELECT item::text FROM "My Shop_rank"('10.0.0.1', '{blue,green}') ORDER BY rank"#,
    );
    assert_eq!(listed, ["green", "blue"]);
    db.run(r#"SELECT recsync.drop_recommender('"My Shop"')"#);
}

#[test]
fn a_value_too_long_for_its_key_is_nobody_and_not_its_beginning() {
    let mut db = shared().database();
    db.run(
        "CREATE TABLE product (code char(4) PRIMARY KEY);
         CREATE TABLE event (id int PRIMARY KEY, user_id varchar(3), product char(4), at timestamptz);
         INSERT INTO product VALUES ('a'), ('bbbb'), ('c');
         SELECT recsync.create_recommender('shop', 'product', 'event', item_column => 'product');
         INSERT INTO event VALUES (1, 'ann', 'a', now()), (2, 'ann', 'bbbb', now())",
    );
    db.settle("shop");
    for (call, rows) in [
        ("recsync.recommend('shop', 'ann')", 1),
        ("recsync.recommend('shop', 'anna')", 3),
        ("recsync.similar('shop', 'bbbb')", 1),
        ("recsync.similar('shop', 'bbbbb')", 0),
        (
            "shop_recommend('anna', filter => '{\"code\": \"bbbb\"}')",
            1,
        ),
    ] {
        assert_eq!(
            db.one::<i64>(&format!("SELECT count(*) FROM {call}")),
            rows,
            "{call}"
        );
    }
}

#[test]
fn partitioned_tables_work() {
    let mut db = shared().database();
    db.run(
        "CREATE TABLE product (id int PRIMARY KEY) PARTITION BY LIST (id);
         CREATE TABLE product_1 PARTITION OF product FOR VALUES IN (1, 2);
         CREATE TABLE product_2 PARTITION OF product DEFAULT;
         CREATE TABLE event (id int, user_id int, product_id int REFERENCES product, at timestamptz, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
         CREATE TABLE event_2 PARTITION OF event DEFAULT;
         INSERT INTO product VALUES (1), (2), (3);
         SELECT recsync.create_recommender('shop', 'product', 'event');
         INSERT INTO event VALUES (1, 7, 1, '2026-02-01'), (2, 7, 2, '2026-08-01'), (3, 7, 3, '2026-02-02')",
    );
    db.settle("shop");
    assert_eq!(items(&mut db, "shop_similar(1)"), [2, 3]);
    db.run("ALTER TABLE event DETACH PARTITION event_1");
    db.settle("shop");
    assert_eq!(items(&mut db, "shop_similar(1)"), Vec::<i32>::new());
    let id: i32 = db.one("SELECT id FROM recsync.recommender");
    assert_eq!(
        db.column::<i32>(&format!("SELECT item_id FROM recsync.interaction_{id}")),
        [2]
    );
}

#[test]
fn renames_of_tables_columns_and_schemas_are_followed() {
    let mut db = shop(shared(), 5);
    views(&mut db, "ann", &[1, 2]);
    for change in [
        "ALTER TABLE event RENAME TO click",
        "ALTER TABLE click RENAME product_id TO thing",
        "ALTER TABLE click RENAME kind TO sort",
        "ALTER TABLE click RENAME user_id TO who",
        "ALTER TABLE product RENAME TO good",
        "ALTER TABLE good RENAME hidden TO invisible",
        "ALTER TABLE good RENAME id TO number",
        "ALTER SCHEMA public RENAME TO shop",
    ] {
        db.run(change);
        db.run("SET search_path = shop, public");
    }
    db.run("INSERT INTO click (who, thing, sort) VALUES ('ann', 3, 'buy')");
    db.settle("shop.shop");
    db.run("UPDATE good SET invisible = true WHERE number = 1");
    assert_eq!(items(&mut db, "shop_similar(2)"), [3]);
    assert_eq!(
        db.column::<String>("SELECT item FROM recsync.recommend('shop', 'ann', k => 1)"),
        ["2"]
    );
    assert_eq!(
        db.column::<i32>("SELECT id FROM shop_rank('ann', '{5,2,4}') ORDER BY rank LIMIT 1"),
        [2]
    );
    let state: String =
        db.one("SELECT concat_ws(' ', name, state, paused_reason) FROM recsync.status");
    assert_eq!(state, "shop.shop running");
}

#[test]
fn a_dropped_column_pauses_with_the_reason_and_resume_goes_on() {
    let mut db = shop(shared(), 5);
    views(&mut db, "ann", &[1, 2]);
    db.settle("shop");
    db.run("ALTER TABLE event DROP kind");
    let why: String = db.one("SELECT state || ': ' || paused_reason FROM recsync.status");
    assert_eq!(why, "paused: column kind of public.event was dropped");
    views(&mut db, "ann", &[3]); // nobody's write is in the way
    db.run(
        "ALTER TABLE event ADD kind text NOT NULL DEFAULT 'view'; SELECT recsync.resume('shop')",
    );
    db.settle("shop");
    assert_kept_right(&mut db);
    db.run("SELECT recsync.pause('shop')");
    views(&mut db, "ann", &[4]);
    db.run("DELETE FROM event WHERE product_id = 1");
    db.run("SELECT recsync.resume('shop')");
    db.settle("shop");
    assert_kept_right(&mut db);
}

#[test]
fn a_recommender_goes_with_its_tables() {
    for drop in [
        "DROP TABLE event",
        "DROP TABLE product CASCADE",
        "DROP TABLE event, product",
    ] {
        let mut db = shop(shared(), 2);
        views(&mut db, "ann", &[1]);
        db.settle("shop");
        db.run(drop);
        let left: Vec<String> = db.column(
            "SELECT name FROM recsync.status UNION ALL SELECT relation FROM recsync.source
              UNION ALL SELECT proname::text FROM pg_proc WHERE proname LIKE 'shop%'
              UNION ALL SELECT relname::text FROM pg_class WHERE relname ~ '^(interaction|item|neighbour|stale)_[0-9]'
              UNION ALL SELECT tgname::text FROM pg_trigger WHERE tgname LIKE '00_recsync%'",
        );
        assert_eq!(left, Vec::<String>::new(), "{drop}");
    }
}

#[test]
fn drop_extension_takes_what_is_kept_and_a_new_one_begins_anew() {
    let mut db = shop(shared(), 3);
    views(&mut db, "ann", &[1, 2]);
    db.settle("shop");
    db.run("DROP EXTENSION recsync CASCADE");
    assert_eq!(
        db.one::<i64>(
            "SELECT count(*) FROM pg_class WHERE relname ~ '^(interaction|item|neighbour|stale)_[0-9]'"
        ),
        0
    );
    db.run("DROP FUNCTION shop_recommend, shop_similar, shop_popular, shop_rank; CREATE EXTENSION recsync");
    db.run("SELECT recsync.create_recommender('shop', 'product', 'event')");
    db.settle("shop");
    assert_eq!(items(&mut db, "shop_similar(1)"), [2]);
}

#[test]
fn what_is_kept_is_made_again_where_it_is_missing_as_after_a_restore() {
    let mut db = shop(shared(), 5);
    views(&mut db, "ann", &[1, 2, 3]);
    db.settle("shop");
    let id: i32 = db.one("SELECT id FROM recsync.recommender");
    db.run(&format!(
        "ALTER EXTENSION recsync DROP TABLE recsync.stale_{id}; DROP TABLE recsync.stale_{id};
         SELECT recsync.pause('shop'); SELECT recsync.resume('shop')"
    ));
    wait_until(PATIENCE, "it is made again", || {
        db.one(&format!(
            "SELECT to_regclass('recsync.stale_{id}') IS NOT NULL"
        ))
    });
    db.settle("shop");
    assert_kept_right(&mut db);
}
