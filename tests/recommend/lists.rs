//! recommend, similar, popular: what is listed, in what order, why; and that there is always as much as there is.

use crate::shop::{items, shop, views};
use crate::support::{Cluster, PATIENCE, Sql, shared, wait_until};

#[test]
fn what_users_of_the_same_items_have_had_comes_first() {
    let mut db = shop(shared(), 40);
    for user in 0..8 {
        views(&mut db, &format!("hiker {user}"), &[1, 2, 3]);
        views(&mut db, &format!("cook {user}"), &[11, 12, 13]);
    }
    for user in 0..12 {
        views(&mut db, &format!("everybody {user}"), &[30]);
    }
    views(&mut db, "ann", &[1, 2]);
    db.run("UPDATE event SET kind = 'buy' WHERE user_id = 'ann'");
    db.settle("shop");
    let listed = items(&mut db, "shop_recommend('ann', k => 5)");
    assert_eq!(listed[0], 3, "{listed:?}");
    assert!(!listed.contains(&1) && !listed.contains(&2), "{listed:?}");
    let reason: String = db.one("SELECT reason::text FROM shop_recommend('ann') WHERE id = 3");
    assert!(
        reason.contains("\"neighbours\": 1") && reason.contains("\"popular\": "),
        "{reason}"
    );
    assert_eq!(items(&mut db, "shop_similar(11, k => 2)"), [12, 13]);
    assert_eq!(items(&mut db, "shop_popular(k => 1)"), [30]);
    // A visitor who has looked at two things just now.
    let listed = items(
        &mut db,
        "shop_recommend(session_items => '{11,12}', k => 3)",
    );
    assert_eq!(listed[0], 13, "{listed:?}");
    assert!(!listed.contains(&11), "{listed:?}");
}

#[test]
fn a_new_user_gets_what_is_popular_then_the_latest() {
    let mut db = shop(shared(), 10);
    views(&mut db, "ann", &[4, 5]);
    views(&mut db, "bob", &[5]);
    db.settle("shop");
    assert_eq!(
        items(&mut db, "shop_recommend('nobody', k => 4)"),
        [5, 4, 10, 9]
    );
    assert_eq!(items(&mut db, "shop_recommend(k => 4)"), [5, 4, 10, 9]);
    assert_eq!(items(&mut db, "shop_popular(k => 4)"), [5, 4, 10, 9]);
    let reasons: Vec<String> =
        db.column("SELECT reason::text FROM shop_recommend(k => 3) ORDER BY rank");
    assert_eq!(
        reasons,
        [r#"{"popular": 1}"#, r#"{"popular": 2}"#, r#"{"latest": 1}"#]
    );
}

#[test]
fn popularity_fades_by_the_half_life() {
    let mut db = shop(shared(), 5);
    db.run(
        "INSERT INTO event (user_id, product_id, created_at) SELECT 'a' || i, 1, now() - interval '60 days' FROM generate_series(1, 10) i;
         INSERT INTO event (user_id, product_id, created_at) SELECT 'b' || i, 2, now() - interval '1 minute' FROM generate_series(1, 4) i;
         INSERT INTO event (user_id, product_id, created_at) SELECT 'c' || i, 3, now() - interval '14 days' FROM generate_series(1, 4) i",
    );
    db.settle("shop");
    assert_eq!(items(&mut db, "shop_popular(k => 3)"), [2, 3, 1]);
    let share: f64 = db.one("SELECT score FROM shop_popular() WHERE id = 3");
    assert!((share - 0.5).abs() < 0.001, "{share}");
}

#[test]
fn there_are_always_as_many_as_pass() {
    let mut db = shop(shared(), 2_500);
    db.run(
        "UPDATE product SET price = id, hidden = id % 2 = 0;
         INSERT INTO event (user_id, product_id, kind) SELECT 'u' || i % 40, 1 + i % 30, 'view' FROM generate_series(1, 400) i;
         INSERT INTO event (user_id, product_id, kind) SELECT 'ann', i, 'buy' FROM generate_series(1, 2460) i",
    );
    db.settle("shop");
    // 20 are left that are neither seen nor hidden.
    let left = items(&mut db, "shop_recommend('ann', k => 100)");
    assert_eq!(left.len(), 20);
    assert!(left.iter().all(|id| *id > 2460 && id % 2 == 1), "{left:?}");
    assert_eq!(items(&mut db, "shop_recommend('ann', k => 7)").len(), 7);
    // One in a thousand passes the filter, and the candidates are none of them.
    let few = r#"{"price": [111, 333, 999, 1001, 2000]}"#;
    let mut found = items(
        &mut db,
        &format!("shop_recommend('bob', filter => '{few}')"),
    );
    found.sort();
    assert_eq!(found, [111, 333, 999, 1001]);
    assert_eq!(
        items(&mut db, &format!("shop_popular(filter => '{few}')")).len(),
        4
    );
    assert_eq!(
        items(
            &mut db,
            "shop_recommend('ann', k => 2500, exclude_seen => false)"
        )
        .len(),
        1250
    );
}

#[test]
fn seen_is_what_is_declared_and_the_rest_may_come_again() {
    let mut db = shop(shared(), 4);
    views(&mut db, "ann", &[1]);
    db.run("INSERT INTO event (user_id, product_id, kind) VALUES ('ann', 2, 'buy')");
    db.settle("shop");
    let mut listed = items(&mut db, "shop_recommend('ann')");
    listed.sort();
    assert_eq!(listed, [1, 3, 4]);
    let mut listed = items(&mut db, "shop_recommend('ann', exclude_seen => false)");
    listed.sort();
    assert_eq!(listed, [1, 2, 3, 4]);
}

#[test]
fn a_hidden_deleted_or_sold_out_item_is_gone_at_once_and_a_new_one_is_there() {
    let mut db = shop(shared(), 6);
    views(&mut db, "ann", &[1, 2, 3]);
    views(&mut db, "bob", &[1, 2, 3]);
    db.settle("shop");
    assert_eq!(items(&mut db, "shop_similar(1)"), [2, 3]);
    db.run("UPDATE product SET hidden = true WHERE id = 2");
    assert_eq!(items(&mut db, "shop_similar(1)"), [3]);
    assert!(!items(&mut db, "shop_recommend('nobody')").contains(&2));
    assert!(!items(&mut db, "shop_popular()").contains(&2));
    db.run("DELETE FROM product WHERE id = 6; INSERT INTO product VALUES (7, 'just made')");
    let listed = items(&mut db, "shop_recommend('nobody')");
    assert!(!listed.contains(&6) && listed.contains(&7), "{listed:?}");
}

#[test]
fn boost_is_a_factor_of_the_score_in_recommend() {
    let mut db = shop(shared(), 3);
    db.run(
        "SELECT recsync.drop_recommender('shop');
         SELECT recsync.create_recommender('shop', 'product', 'event', boost => 'CASE WHEN price > 10 THEN 9 ELSE 1 END')",
    );
    views(&mut db, "ann", &[1, 2]);
    views(&mut db, "bob", &[1]);
    db.settle("shop");
    assert_eq!(items(&mut db, "shop_recommend()"), [1, 2, 3]);
    db.run("UPDATE product SET price = 20 WHERE id = 3");
    assert_eq!(items(&mut db, "shop_recommend()"), [3, 1, 2]);
}

#[test]
fn the_same_question_has_the_same_list_id_and_another_has_not() {
    let mut db = shop(shared(), 5);
    views(&mut db, "ann", &[1, 2]);
    db.settle("shop");
    let mut id = |arguments: &str| -> String {
        db.one(&format!(
            "SELECT DISTINCT list_id::text FROM recsync.recommend('shop', {arguments})"
        ))
    };
    let one = id("'ann'");
    assert_eq!(one, id("'ann', 10"));
    let others = [
        "'bob'",
        "'ann', 4",
        "'ann', filter => '{\"price\": 10}'",
        "'ann', exclude_seen => false",
        "'ann', session_items => '{3}'",
    ];
    for other in others {
        assert_ne!(one, id(other), "{other}");
    }
}

#[test]
fn a_hot_standby_answers_and_follows() {
    let cluster = Cluster::start(&[]);
    let mut db = shop(&cluster, 5);
    views(&mut db, "ann", &[1, 2]);
    views(&mut db, "bob", &[1]);
    db.settle("shop");
    let standby = cluster.standby();
    let mut client = standby.connect(&db.name);
    assert!(client.one::<bool>("SELECT pg_is_in_recovery()"));
    for list in [
        "shop_recommend('bob')",
        "shop_similar(1)",
        "shop_popular(filter => '{\"id\": [2, 5]}')",
    ] {
        let query = format!("SELECT id FROM {list} ORDER BY rank");
        wait_until(PATIENCE, "the standby has caught up", || {
            client.column::<i32>(&query) == db.column::<i32>(&query)
        });
        assert_eq!(client.column::<i32>(&query)[0], 2, "{list}");
    }
    db.run("INSERT INTO event (user_id, product_id, kind) VALUES ('bob', 2, 'buy')");
    wait_until(PATIENCE, "what is bought is gone from the list", || {
        !client
            .column::<i32>("SELECT id FROM shop_recommend('bob')")
            .contains(&2)
    });
}

#[test]
fn untyped_and_typed_parameters_find_their_function() {
    let mut db = shared().database();
    db.run(
        "CREATE TABLE product (id bigint PRIMARY KEY);
         CREATE TABLE event (id int PRIMARY KEY, user_id bigint, product_id bigint, at timestamptz);
         INSERT INTO product SELECT generate_series(1, 5);
         SELECT recsync.create_recommender('shop', 'product', 'event')",
    );
    db.settle("shop");
    for call in [
        "recsync.recommend('shop')",
        "recsync.recommend('shop', 42)",
        "recsync.recommend('shop', '42')",
        "recsync.recommend('shop', 42::bigint, 5)",
        "recsync.recommend('shop', 42::smallint, k => 5)",
        "recsync.recommend(name => 'shop', user_id => '42', session_items => ARRAY['1'], exclude_seen => false)",
        "recsync.popular('shop')",
        "shop_recommend(42)",
        "shop_recommend('42')",
        "shop_recommend(session_items => ARRAY[1, 2], exclude_seen => false)",
        "shop_popular()",
        "recsync.rank('shop', 42, '{5,4,3,2,1}')",
        "shop_rank(42, '{5,4,3,2,1}')",
        "shop_rank(NULL, ARRAY[1, 2, 3, 4, 5])",
        "shop_rank('42', candidates => ARRAY(SELECT id FROM product))",
    ] {
        assert_eq!(
            db.one::<i64>(&format!("SELECT count(*) FROM {call}")),
            5,
            "{call}"
        );
    }
    for call in [
        "recsync.similar('shop', 1)",
        "recsync.similar('shop', '1')",
        "shop_similar(1)",
    ] {
        assert_eq!(
            db.one::<i64>(&format!("SELECT count(*) FROM {call}")),
            0,
            "{call}"
        );
    }
    for parameter in ["$1", "$1::bigint", "$1::text"] {
        let text = format!("SELECT count(*) FROM recsync.recommend('shop', {parameter})");
        let statement = db.prepare(&text).unwrap();
        let name = statement.params()[0].name();
        let rows = match name {
            "int8" => db.query(&statement, &[&42_i64]),
            "text" => db.query(&statement, &[&"42"]),
            other => panic!("{parameter} is {other}"),
        };
        assert_eq!(rows.unwrap()[0].get::<_, i64>(0), 5);
    }
    // Of the typed one, parameters and columns have the types of the tables.
    let statement = db.prepare("SELECT * FROM shop_rank($1, $2)").unwrap();
    let parameters: Vec<&str> = statement.params().iter().map(|kind| kind.name()).collect();
    assert_eq!(parameters, ["int8", "_int8"]);
    let columns: Vec<(&str, &str)> = (statement.columns().iter())
        .map(|column| (column.name(), column.type_().name()))
        .collect();
    assert_eq!(
        columns,
        [("id", "int8"), ("score", "float8"), ("rank", "int4")]
    );
    let rows = db
        .query(&statement, &[&42_i64, &vec![3_i64, 1, 9]])
        .unwrap();
    assert_eq!(
        rows.iter().map(|row| row.get(0)).collect::<Vec<i64>>(),
        db.column::<i64>(
            "SELECT item::bigint FROM recsync.rank('shop', 42, '{3,1,9}') ORDER BY rank"
        )
    );
}

#[test]
fn typed_and_generic_functions_take_the_same_arguments() {
    let mut db = shop(shared(), 1);
    for kind in ["recommend", "similar", "popular"] {
        let shapes: Vec<String> = db.column(&format!(
            "SELECT DISTINCT regexp_replace(replace(pg_get_function_arguments(oid), 'name text, ', ''), '^(user|item)_id [^,]*, ', '')
               FROM pg_proc WHERE proname IN ('shop_{kind}', '{kind}')"
        ));
        // The session's items have the type of the items' key.
        let mut same: Vec<String> = shapes
            .iter()
            .map(|shape| shape.replace("integer[]", "text[]"))
            .collect();
        same.dedup();
        assert_eq!(same.len(), 1, "{shapes:?}");
        assert!(same[0].starts_with("k integer DEFAULT 10"), "{same:?}");
    }
}

#[test]
fn what_cannot_be_asked_is_refused() {
    let mut db = shop(shared(), 5);
    for (call, code) in [
        ("recsync.recommend('nothing')", "42704"),
        ("recsync.recommend('shop', k => 0)", "22023"),
        (
            "recsync.recommend('shop', filter => '{\"colour\": 1}')",
            "42703",
        ),
        ("recsync.recommend('shop', filter => '[1]')", "22023"),
        ("recsync.similar('shop', 'x')", "22P02"),
    ] {
        assert_eq!(
            db.refused(&format!("SELECT * FROM {call}")).code().code(),
            code,
            "{call}"
        );
    }
}

/// The setting has another name in PostgreSQL 15.
#[test]
fn parallel_workers_make_the_same_lists() {
    let mut db = shop(shared(), 30);
    for user in 0..6 {
        views(&mut db, &format!("hiker {user}"), &[1, 2, 3]);
    }
    views(&mut db, "ann", &[1, 2]);
    db.settle("shop");
    let batch = "recsync.recommend_batch('shop', $$ SELECT DISTINCT user_id FROM event $$, k => 5)";
    let lists = [
        "SELECT id::text FROM shop_recommend('ann', filter => '{\"price\": 10}', max_per => '{\"title\": 1}', explore => 0.3) ORDER BY rank",
        "SELECT item FROM recsync.recommend('shop', 'ann', explain => true) ORDER BY rank",
        "SELECT id::text FROM shop_similar(1) ORDER BY rank",
        "SELECT id::text FROM shop_popular() ORDER BY rank",
        "SELECT item FROM recsync.rank('shop', 'ann', '{9,3,1}') ORDER BY rank",
        "SELECT id::text FROM shop_rank('ann', '{9,3,1}') ORDER BY rank",
        &format!("SELECT user_id || ' ' || item FROM {batch} ORDER BY user_id, rank"),
    ];
    let alone = lists.map(|list| db.column::<String>(list));
    db.run(
        "SELECT set_config(name, 'on', false) FROM pg_settings WHERE name IN ('debug_parallel_query', 'force_parallel_mode')",
    );
    for (list, alone) in lists.iter().zip(alone) {
        assert_eq!(db.column::<String>(list), alone, "{list}");
    }
    let plan: Vec<String> = db.column(&format!("EXPLAIN {}", lists[0]));
    assert!(plan.join("\n").contains("Gather"), "{plan:?}");
}

#[test]
fn a_statement_lists_by_what_it_has_changed_itself() {
    let mut db = shop(shared(), 6);
    db.settle("shop");
    db.run(
        "DO $$ BEGIN
           ASSERT (SELECT count(*) FROM shop_popular()) = 6;
           PERFORM recsync.alter_recommender('shop', eligible => 'id < 3');
           ASSERT (SELECT count(*) FROM shop_popular()) = 2;
           UPDATE product SET id = id + 10 WHERE id = 1;
           ASSERT (SELECT count(*) FROM shop_popular()) = 1;
           BEGIN
             PERFORM recsync.alter_recommender('shop', eligible => 'true');
             ASSERT (SELECT count(*) FROM shop_popular()) = 6;
             RAISE division_by_zero;
           EXCEPTION WHEN division_by_zero THEN
             ASSERT (SELECT count(*) FROM shop_popular()) = 1;
           END;
         END $$",
    );
}
