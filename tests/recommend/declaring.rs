//! create_recommender and drop_recommender: three statements, columns that are found, what is refused and why.

use std::sync::{Arc, Mutex};

use postgres::NoTls;

use crate::shop::{items, shop, tables};
use crate::support::{Database, Sql, shared};

/// What is said while the statement runs.
fn notices(db: &Database, sql: &str) -> Vec<String> {
    let said = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&said);
    let mut client = db
        .cluster
        .config("postgres", &db.name)
        .notice_callback(move |notice| hears.lock().unwrap().push(notice.message().to_owned()))
        .connect(NoTls)
        .unwrap();
    client.run(sql);
    said.lock().unwrap().clone()
}

#[test]
fn three_statements_from_an_empty_database_with_two_tables_to_a_list() {
    let mut db = shared().empty_database();
    db.run(
        "CREATE TABLE customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);
         CREATE TABLE product (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text);
         CREATE TABLE event (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id bigint REFERENCES customer,
                             product_id bigint REFERENCES product, created_at timestamptz DEFAULT now());
         INSERT INTO customer (name) SELECT 'customer ' || i FROM generate_series(1, 50) i;
         INSERT INTO product (title) SELECT 'product ' || i FROM generate_series(1, 20) i;
         INSERT INTO event (user_id, product_id) SELECT i, p FROM generate_series(1, 50) i, generate_series(1, 20) p WHERE (i * p) % 7 = 1",
    );
    db.run("CREATE EXTENSION recsync CASCADE");
    let said = notices(
        &db,
        "SELECT recsync.create_recommender('shop', items => 'product', interactions => 'event')",
    );
    assert_eq!(
        said,
        [
            "recommender public.shop: of public.event, the user is user_id, the item product_id, the time created_at"
        ]
    );
    db.settle("shop");
    let rows: Vec<String> = db.column(
        "SELECT p.title FROM shop_recommend(42) r JOIN product p USING (id) ORDER BY r.rank",
    );
    assert_eq!(rows.len(), 10, "{rows:?}");
    assert_eq!(
        db.one::<String>("SELECT state FROM recsync.status WHERE kind = 'recommender'"),
        "running"
    );
}

#[test]
fn users_need_no_table_and_columns_can_be_given() {
    let mut db = shared().database();
    db.run(
        "CREATE TABLE film (code text PRIMARY KEY);
         CREATE TABLE rating (who uuid, film_code text, stars int, PRIMARY KEY (who, film_code), seen_on date, noted timestamp);
         INSERT INTO film VALUES ('a'), ('b'), ('c')",
    );
    db.run("SELECT recsync.create_recommender('films', 'film', 'rating', user_column => 'who', item_column => 'film_code', at_column => 'seen_on', weight => 'stars - 2.5')");
    db.run("INSERT INTO rating VALUES ('00000000-0000-0000-0000-000000000001', 'a', 5, '2026-01-01', now())");
    db.settle("films");
    let listed: Vec<String> = db.column(
        "SELECT code FROM films_recommend('00000000-0000-0000-0000-000000000001') ORDER BY rank",
    );
    assert_eq!(listed, ["c", "b"]);
    let listed: Vec<String> =
        db.column("SELECT item FROM recsync.recommend('films', '00000000-0000-0000-0000-000000000001'::uuid) ORDER BY rank");
    assert_eq!(listed, ["c", "b"]);
}

#[test]
fn what_is_ambiguous_or_missing_is_refused_with_the_candidates() {
    let mut db = tables(shared());
    let refused = |db: &mut Database, change: &str| {
        db.run(change);
        let error = db.refused("SELECT recsync.create_recommender('shop', 'product', 'event')");
        format!(
            "{} {} {}",
            error.code().code(),
            error.message(),
            error.hint().unwrap_or_default()
        )
    };
    assert_eq!(
        refused(
            &mut db,
            "ALTER TABLE event ADD returned_id int REFERENCES product"
        ),
        "42702 several columns of \"public.event\" can be meant by item_column Give item_column => '…': product_id, returned_id."
    );
    assert_eq!(
        refused(
            &mut db,
            "ALTER TABLE event DROP returned_id, ADD paid_at timestamp"
        ),
        "42702 several columns of \"public.event\" can be meant by at_column Give at_column => '…': created_at, paid_at."
    );
    assert_eq!(
        refused(
            &mut db,
            "ALTER TABLE event DROP paid_at, ADD customer_id text"
        ),
        "42702 several columns of \"public.event\" can be meant by user_column Give user_column => '…': user_id, customer_id."
    );
    let said = refused(&mut db, "ALTER TABLE event DROP customer_id, DROP user_id");
    assert!(
        said.starts_with("22023")
            && said.contains("user_column")
            && said.contains("kind, created_at"),
        "{said}"
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgname LIKE '00_recsync%'"),
        0
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.source"), 0);
}

#[test]
fn impossible_arguments_are_refused_each_with_its_sqlstate() {
    let mut db = tables(shared());
    db.run(
        "CREATE TABLE pair (a int, b int, PRIMARY KEY (a, b));
         CREATE TABLE keyless (user_id int, product_id int, at timestamptz)",
    );
    for (arguments, code) in [
        ("'shop', 'pair', 'event'", "22023"),
        ("'shop', 'product', 'keyless'", "55000"),
        (
            "'shop', 'product', 'event', item_column => 'created_at'",
            "42846",
        ),
        (
            "'shop', 'product', 'event', user_column => 'nobody'",
            "42703",
        ),
        ("'shop', 'product', 'event', weight => 'colour'", "42703"),
        ("'shop', 'product', 'event', weight => 'random()'", "22023"),
        (
            "'shop', 'product', 'event', weight => '(SELECT 1)'",
            "0A000",
        ),
        ("'shop', 'product', 'event', seen => 'product_id'", "42804"),
        ("'shop', 'product', 'event', eligible => 'kind'", "42703"),
        ("'shop', 'product', 'event', half_life => '0 s'", "22023"),
        ("'shop', 'product', 'event', history => 0", "22023"),
        ("'', 'product', 'event'", "22023"),
        ("NULL, 'product', 'event'", "22023"),
        ("'a.b', 'product', 'event'", "22023"),
    ] {
        let error = db.refused(&format!("SELECT recsync.create_recommender({arguments})"));
        assert_eq!(
            error.code().code(),
            code,
            "{arguments}: {}",
            error.message()
        );
    }
}

#[test]
fn the_same_again_is_accepted_if_asked_and_another_is_refused_with_the_difference() {
    let mut db = shop(shared(), 3);
    let again = |more: &str| {
        format!(
            "SELECT recsync.create_recommender('shop', 'product', 'event', weight => $$ {} $$, seen => $$ kind = 'buy' $$, eligible => 'NOT hidden', history => {}{more})",
            crate::shop::WEIGHT,
            crate::shop::HISTORY
        )
    };
    assert_eq!(db.refused(&again("")).code().code(), "42710");
    db.run(&again(", if_not_exists => true"));
    let error = db.refused(&again(", half_life => '1 day', if_not_exists => true"));
    assert_eq!(error.code().code(), "42710");
    assert!(
        error
            .hint()
            .unwrap()
            .contains("half_life (is 1209600 s, given 86400 s)"),
        "{error:?}"
    );
}

#[test]
fn drop_recommender_leaves_nothing() {
    let mut db = shop(shared(), 3);
    db.run("INSERT INTO event (user_id, product_id) VALUES ('ann', 1)");
    db.settle("shop");
    db.run("SELECT recsync.drop_recommender('shop')");
    let left: Vec<String> = db.column(
        "SELECT relname::text FROM pg_class WHERE relname ~ '^(interaction|item|neighbour|stale)_[0-9]'
          UNION ALL SELECT proname::text FROM pg_proc WHERE proname LIKE 'shop%'
          UNION ALL SELECT tgname::text FROM pg_trigger WHERE tgname LIKE '00_recsync%'
          UNION ALL SELECT relation FROM recsync.source UNION ALL SELECT pipeline_id::text FROM recsync.backfill",
    );
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(
        db.refused("SELECT recsync.drop_recommender('shop')")
            .code()
            .code(),
        "42704"
    );
    db.run("SELECT recsync.drop_recommender('shop', if_exists => true)");
    db.run("INSERT INTO event (user_id, product_id) VALUES ('ann', 2)");
}

#[test]
fn recommenders_and_pipelines_share_a_table_and_go_one_by_one() {
    let mut db = shop(shared(), 3);
    db.run(
        "CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin');
         SELECT recsync.create_recommender('other', 'product', 'event');
         SELECT recsync.create_pipeline('kinds', 'event', columns => '{kind}', server => 'local', index => 'none')",
    );
    db.run("INSERT INTO event (user_id, product_id) VALUES ('ann', 1), ('ann', 2), ('bob', 1)");
    for name in ["shop", "other", "kinds"] {
        db.settle(name);
    }
    assert_eq!(items(&mut db, "other_similar(1)"), [2]);
    db.run("SELECT recsync.drop_recommender('other')");
    db.run("SELECT recsync.drop_pipeline('kinds')");
    db.run("INSERT INTO event (user_id, product_id) VALUES ('bob', 3)");
    db.settle("shop");
    assert_eq!(items(&mut db, "shop_similar(3)"), [1]);
}
