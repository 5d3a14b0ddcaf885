//! What else a list can be asked: pages, kinds, what is tried out, why, since when, for how long.

use serde_json::Value;

use crate::shop::{items, shop, tables, views};
use crate::support::{Database, Sql, shared};

/// A JSON value.
fn json(client: &mut postgres::Client, select: &str) -> Value {
    let text: String = client.one(&format!("SELECT ({select})::text"));
    serde_json::from_str(&text).unwrap()
}

/// Ann's list and what it is made of: of 60 products with six prices each has been viewed by some.
fn frequented(db: &mut Database) {
    db.run(
        "UPDATE product SET price = id % 6;
         INSERT INTO event (user_id, product_id) SELECT 'u' || i % 25, 1 + (i * i) % 40 FROM generate_series(1, 300) i;
         INSERT INTO event (user_id, product_id) VALUES ('ann', 1), ('ann', 2), ('ann', 5)",
    );
    db.settle("shop");
}

#[test]
fn pages_are_one_list_with_one_id() {
    let mut db = shop(shared(), 60);
    frequented(&mut db);
    for more in ["", ", max_per => '{\"price\": 9}'", ", explore => 0.3"] {
        let whole = items(&mut db, &format!("shop_recommend('ann', k => 60{more})"));
        let mut pages = Vec::new();
        for page in 0..6 {
            let page = format!(
                "shop_recommend('ann', k => 10, skip => {}{more})",
                10 * page
            );
            pages.extend(items(&mut db, &page));
        }
        let apart = whole.iter().filter(|item| !pages.contains(item)).count();
        // What is tried out is chosen by the list, of which k is a part.
        if more.contains("explore") {
            let mut once = pages.clone();
            once.sort();
            once.dedup();
            assert_eq!(once.len(), pages.len(), "{pages:?}");
        } else {
            assert_eq!((pages, apart), (whole, 0), "{more}");
        }
        let of_pages: Vec<String> = db.column(&format!(
            "SELECT DISTINCT list_id::text FROM (SELECT list_id FROM shop_recommend('ann'{more}) UNION ALL SELECT list_id FROM shop_recommend('ann', skip => 7{more})) l"
        ));
        assert_eq!(of_pages.len(), 1);
    }
    let ranks: Vec<i32> = db.column("SELECT rank FROM shop_recommend('ann', k => 3, skip => 20)");
    assert_eq!(ranks, [21, 22, 23]);
    assert_eq!(
        items(&mut db, "shop_recommend('ann', skip => 60)"),
        Vec::<i32>::new()
    );
}

#[test]
fn of_one_kind_there_are_no_more_than_is_said_and_still_as_many_as_possible() {
    let mut db = shop(shared(), 60);
    frequented(&mut db);
    db.run("UPDATE product SET title = NULL WHERE id > 57");
    let all = items(&mut db, "shop_recommend('ann', k => 60)");
    for (most, possible) in [(1, 6), (2, 12), (9, 54)] {
        let max_per = format!("shop_recommend('ann', k => 60, max_per => '{{\"price\": {most}}}')");
        let listed = items(&mut db, &max_per);
        // The best of each kind, in the order of the list.
        let best = all.iter().enumerate().filter(|(n, item)| {
            let before = all[..*n].iter().filter(|other| *other % 6 == *item % 6);
            before.count() < most
        });
        let best: Vec<i32> = best.map(|(_, item)| *item).collect();
        assert_eq!(listed, best);
        assert_eq!(listed.len(), possible);
    }
    // Each product has a title of its own; none is no kind.
    let both = "shop_recommend('ann', k => 60, max_per => '{\"price\": 2, \"title\": 1}')";
    assert_eq!(items(&mut db, both).len(), 12);
    assert_eq!(
        items(
            &mut db,
            "shop_recommend('ann', k => 60, max_per => '{\"title\": 1}')"
        )
        .len(),
        60
    );
    let popular = "recsync.recommend('shop', k => 5, max_per => '{\"price\": 1}', filter => '{\"price\": [0, 1]}')";
    assert_eq!(db.one::<i64>(&format!("SELECT count(*) FROM {popular}")), 2);
}

#[test]
fn a_share_of_the_places_is_for_items_that_few_have_had_to_do_with() {
    let mut db = shop(shared(), 400);
    db.run(
        "INSERT INTO event (user_id, product_id) SELECT 'u' || i % 50, 1 + i % 40 FROM generate_series(1, 2000) i;
         UPDATE product SET hidden = true WHERE id BETWEEN 100 AND 300",
    );
    db.settle("shop");
    let mut listed = |user: i32, share: f64| -> Vec<(i32, bool)> {
        db.query(
            "SELECT id, reason ? 'explored' FROM shop_recommend($1, k => 40, explore => $2) ORDER BY rank",
            &[&format!("u{user}"), &share],
        )
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
    };
    let mut tried = std::collections::BTreeSet::new();
    for user in 0..10 {
        let list = listed(user, 0.25);
        assert_eq!(list.len(), 40);
        let explored: Vec<i32> = list
            .iter()
            .filter(|(_, explored)| *explored)
            .map(|(id, _)| *id)
            .collect();
        assert!((9..=10).contains(&explored.len()), "{list:?}");
        assert!(
            explored.iter().all(|id| !(100..=300).contains(id)),
            "{list:?}"
        );
        // An item with 50 interactions is 51 times less likely than one without.
        assert!(
            explored.iter().filter(|id| **id <= 40).count() <= 2,
            "{list:?}"
        );
        assert_eq!(list, listed(user, 0.25));
        tried.extend(explored);
    }
    assert!(tried.len() > 50, "{tried:?}");
    assert!(listed(1, 0.0).iter().all(|(_, explored)| !explored));
    // The places are spread over the list.
    let list = listed(3, 0.25);
    let first: Vec<bool> = list[..20].iter().map(|(_, explored)| *explored).collect();
    assert_eq!(
        first.iter().filter(|explored| **explored).count(),
        5,
        "{first:?}"
    );
}

#[test]
fn an_explanation_has_scores_boost_and_the_items_whose_neighbour_it_is() {
    let mut db = shop(shared(), 10);
    for user in 0..4 {
        views(&mut db, &format!("hiker {user}"), &[1, 2, 3]);
    }
    views(&mut db, "ann", &[1, 2]);
    db.settle("shop");
    let short = json(
        &mut db,
        "SELECT reason FROM shop_recommend('ann') WHERE id = 3",
    );
    let long = json(
        &mut db,
        "SELECT reason FROM shop_recommend('ann', explain => true) WHERE id = 3",
    );
    assert_eq!(long["neighbours"], short["neighbours"]);
    assert!(short.get("because").is_none() && short.get("scores").is_none());
    let score: f64 = db.one("SELECT score FROM shop_recommend('ann') WHERE id = 3");
    let parts = long["scores"].as_object().unwrap().values();
    let sum: f64 = parts.map(|part| part.as_f64().unwrap()).sum();
    assert!(
        (sum * long["boost"].as_f64().unwrap() - score).abs() < 1e-12,
        "{long} {score}"
    );
    let because: Vec<&str> = long["because"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| cause["item"].as_str().unwrap())
        .collect();
    assert_eq!(because, ["2", "1"], "{long}"); // both have four users with it, 2 is the later
    let likeness: f64 = db.one("SELECT score FROM shop_similar(2) WHERE id = 3");
    assert_eq!(long["because"][0]["likeness"].as_f64().unwrap(), likeness);
    let of_session = json(
        &mut db,
        "SELECT reason FROM shop_recommend(session_items => '{2}', explain => true) WHERE id = 3",
    );
    assert_eq!(of_session["because"][0]["item"], "2");
}

#[test]
fn an_explanation_shows_no_interaction_that_the_caller_may_not_read() {
    let mut db = shop(shared(), 10);
    for user in 0..4 {
        views(&mut db, &format!("hiker {user}"), &[1, 2, 3]);
    }
    views(&mut db, "ann", &[1, 2]);
    db.settle("shop");
    let web = format!("explained_{}", std::process::id());
    db.run(&format!(
        "CREATE ROLE {web} LOGIN; GRANT SELECT ON product TO {web}; GRANT EXECUTE ON FUNCTION shop_recommend TO {web}"
    ));
    let mut client = db.connect_as(&web);
    let because = "SELECT COALESCE(reason->'because', '[]')::text FROM shop_recommend('ann', session_items => '{5}', explain => true) WHERE id = 3";
    assert_eq!(client.one::<String>(because), "[]");
    db.run(&format!(
        "ALTER TABLE event ENABLE ROW LEVEL SECURITY; GRANT SELECT (id) ON event TO {web};
         CREATE POLICY ones ON event USING (product_id = 1)"
    ));
    let some = json(&mut client, because);
    assert_eq!(some.as_array().unwrap().len(), 1, "{some}");
    assert_eq!(some[0]["item"], "1");
}

#[test]
fn what_was_seen_long_ago_may_come_again() {
    let mut db = tables(shared());
    db.run(
        "INSERT INTO product SELECT i FROM generate_series(1, 4) i;
         SELECT recsync.create_recommender('shop', 'product', 'event', seen_for => '30 days');
         INSERT INTO event (user_id, product_id, created_at) VALUES ('ann', 1, now() - interval '31 days'), ('ann', 2, now() - interval '29 days')",
    );
    db.settle("shop");
    let mut listed = items(&mut db, "shop_recommend('ann')");
    listed.sort();
    assert_eq!(listed, [1, 3, 4]);
    let error = db.refused(
        "SELECT recsync.create_recommender('shop', 'product', 'event', if_not_exists => true)",
    );
    assert!(
        error
            .hint()
            .unwrap()
            .contains("seen_for (is 2592000 s, given NULL)"),
        "{error:?}"
    );
}

#[test]
fn popular_since_counts_what_happened_since() {
    let mut db = shop(shared(), 6);
    db.run(
        "INSERT INTO event (user_id, product_id, created_at) SELECT 'a' || i, 1, now() - interval '20 days' FROM generate_series(1, 40) i;
         INSERT INTO event (user_id, product_id, created_at) SELECT 'b' || i, 2, now() - interval '3 days' FROM generate_series(1, 4) i;
         INSERT INTO event (user_id, product_id, created_at) VALUES ('c', 3, now() - interval '1 hour'), ('d', 3, now() - interval '4 days')",
    );
    db.settle("shop");
    assert_eq!(
        items(&mut db, "shop_popular(since => '1 day')"),
        [3, 1, 2, 6, 5, 4]
    );
    assert_eq!(
        items(&mut db, "shop_popular(since => '7 days', k => 3)"),
        [2, 3, 1]
    );
    // Of all time it is what popular says.
    let scores = |db: &mut Database, since: &str| -> Vec<f64> {
        db.column(&format!(
            "SELECT round(score::numeric, 6)::float8 FROM shop_popular(k => 3{since}) ORDER BY rank"
        ))
    };
    assert_eq!(
        scores(&mut db, ""),
        scores(&mut db, ", since => '10 years'")
    );
    assert_eq!(
        db.column::<String>(
            "SELECT item FROM recsync.popular('shop', 2, '1 day', '{\"id\": [1, 3]}')"
        ),
        ["3", "1"]
    );
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let mut db = shop(shared(), 5);
    for (arguments, code) in [
        ("skip => -1", "22023"),
        ("explore => 1.5", "22023"),
        ("explore => 'NaN'", "22023"),
        ("max_per => '{\"price\": 0}'", "22023"),
        ("max_per => '[1]'", "22023"),
        ("max_per => '{\"colour\": 1}'", "42703"),
    ] {
        let error = db.refused(&format!("SELECT * FROM shop_recommend({arguments})"));
        assert_eq!(
            error.code().code(),
            code,
            "{arguments}: {}",
            error.message()
        );
    }
    let error = db.refused("SELECT * FROM shop_popular(since => '-1 day')");
    assert_eq!(error.code().code(), "22023");
}
