//! Items found by their vectors: what is like what a user has had, what is like an item; new items, and those that
//! nobody has touched.

use std::time::{Duration, Instant};

use crate::interests::{settle, with_server};
use crate::shop::{items, views};
use crate::support::{Cluster, Database, PATIENCE, Sql, shared, wait_until};

/// Topics, each with a vocabulary of its own.
const TOPICS: i32 = 10;

/// Recommender `shop` over `products` products, whose titles are of the topic of their number's last digit.
fn library(cluster: &Cluster, products: i32) -> Database<'_> {
    let mut db = with_server(cluster);
    db.run(&format!(
        "INSERT INTO product SELECT i, (SELECT string_agg(md5((i % {TOPICS})::text || '-' || (i + w) % 7), ' ') FROM generate_series(1, 6) w)
           FROM generate_series(1, {products}) i;
         SELECT recsync.create_recommender('shop', 'product', 'event', text => '{{title}}', server => 'local', seen => $$ kind = 'buy' $$,
            weight => $$ CASE kind WHEN 'return' THEN -1 ELSE 1 END $$, eligible => 'NOT hidden')"
    ));
    db
}

fn reason(db: &mut Database, list: &str, id: i32) -> String {
    db.one(&format!("SELECT reason::text FROM {list} WHERE id = {id}"))
}

/// How many of these are of the topic.
fn of_topic(topic: i32, listed: &[i32]) -> usize {
    listed.iter().filter(|id| **id % TOPICS == topic).count()
}

#[test]
fn what_is_like_what_a_user_has_had_is_recommended_though_nobody_has_touched_it() {
    let mut db = library(shared(), 200);
    views(&mut db, "ann", &[3, 13, 23]);
    settle(&mut db);
    let listed = items(&mut db, "shop_recommend('ann', k => 12)");
    assert!(of_topic(3, &listed) >= 9, "{listed:?}");
    let cold = listed
        .iter()
        .find(|id| **id > 23 && **id % TOPICS == 3)
        .unwrap();
    let reason = reason(&mut db, "shop_recommend('ann', k => 12)", *cold);
    assert!(reason.contains("\"interest\": "), "{reason}");
    // A visitor who has looked at two things just now.
    let listed = items(
        &mut db,
        "shop_recommend(session_items => '{5,15}', k => 10)",
    );
    assert!(
        of_topic(5, &listed) >= 7 && !listed.contains(&5),
        "{listed:?}"
    );
    // Both.
    let listed = items(
        &mut db,
        "shop_recommend('ann', session_items => '{5,15,25}', k => 30)",
    );
    assert!(
        of_topic(5, &listed) >= 5 && of_topic(3, &listed) >= 5,
        "{listed:?}"
    );
}

#[test]
fn with_a_filter_what_is_near_and_passes_comes_first() {
    let mut db = library(shared(), 4000);
    views(&mut db, "ann", &[3, 13, 23]);
    db.run("UPDATE product SET price = 99 WHERE id % 400 IN (43, 54)"); // twenty, half of them of her topic
    settle(&mut db);
    let listed = items(
        &mut db,
        r#"shop_recommend('ann', k => 10, filter => '{"price": 99}')"#,
    );
    assert!(
        listed.len() == 10 && of_topic(3, &listed) >= 9,
        "{listed:?}"
    );
    // What the caller may not read they may not filter by.
    let reader = crate::rights::role("buyer");
    db.run(&format!(
        "GRANT SELECT (id, title) ON product TO {reader}; GRANT EXECUTE ON FUNCTION shop_recommend TO {reader}"
    ));
    let mut client = db.connect_as(&reader);
    assert_eq!(
        items_as(&mut client, "shop_recommend('ann', k => 10)").len(),
        10
    );
    let filtered = r#"SELECT * FROM shop_recommend('ann', filter => '{"price": 99}')"#;
    assert_eq!(client.refused(filtered).code().code(), "42501");
}

fn items_as(client: &mut impl Sql, list: &str) -> Vec<i32> {
    client.column(&format!("SELECT id FROM {list} ORDER BY rank"))
}

#[test]
fn vectors_in_a_column_and_vectors_by_their_bits_do_as_well() {
    for (kind, index) in [
        (
            "into_column => 'embedding'",
            "CREATE INDEX ON product USING hnsw (embedding vector_cosine_ops)",
        ),
        (
            "index => 'hnsw_bit', storage => 'halfvec'",
            "CREATE INDEX ON vectors_g1 USING hnsw ((binary_quantize(embedding)::bit(384)) bit_hamming_ops)",
        ),
    ] {
        let mut db = library(shared(), 200);
        db.run(&format!(
            "SELECT recsync.drop_recommender('shop');
             SELECT recsync.create_pipeline('vectors', 'product', columns => '{{title}}', server => 'local', {kind});
             SELECT recsync.create_recommender('shop', 'vectors', 'event')"
        ));
        views(&mut db, "ann", &[3, 13, 23]);
        settle(&mut db);
        db.run(index);
        let listed = items(&mut db, "shop_recommend('ann', k => 8)");
        assert_eq!(
            (listed.len(), of_topic(3, &listed)),
            (8, 8),
            "{kind}: {listed:?}"
        );
        let alike = items(&mut db, "shop_similar(5, k => 8, by => 'content')");
        assert_eq!(
            (alike.len(), of_topic(5, &alike)),
            (8, 8),
            "{kind}: {alike:?}"
        );
        db.run("UPDATE product SET title = (SELECT title FROM product WHERE id = 7) WHERE id IN (3, 13, 23)");
        db.settle("vectors");
        assert_eq!(
            of_topic(7, &items(&mut db, "shop_recommend('ann', k => 8)")),
            8,
            "{kind}"
        );
    }
}

#[test]
fn what_a_user_dislikes_pushes_away() {
    let mut db = library(shared(), 100);
    db.run("INSERT INTO event (user_id, product_id, kind) VALUES ('ann', 3, 'view'), ('ann', 4, 'return')");
    settle(&mut db);
    let places: Vec<(i32, i32)> = db
        .rows("SELECT id, (reason ->> 'interest')::int FROM shop_recommend('ann', k => 100) WHERE reason ? 'interest' AND id % 10 IN (3, 4)")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    for (id, place) in places {
        assert!(
            if id % TOPICS == 3 {
                place <= 12
            } else {
                place > 80
            },
            "{id}: {place}"
        );
    }
}

#[test]
fn a_list_follows_an_item_that_has_become_another_though_nobody_has_told_its_users() {
    let mut db = library(shared(), 100);
    views(&mut db, "ann", &[3]);
    settle(&mut db);
    assert!(of_topic(3, &items(&mut db, "shop_recommend('ann', k => 6)")) >= 5);
    db.run("SELECT recsync.pause('shop'); UPDATE product SET title = (SELECT title FROM product WHERE id = 7) WHERE id = 3");
    db.settle("shop_embedding");
    let listed = items(&mut db, "shop_recommend('ann', k => 6)");
    assert!(of_topic(7, &listed) >= 5, "{listed:?}");
    db.run("UPDATE product SET title = NULL WHERE id = 3");
    db.settle("shop_embedding");
    let reasons: Vec<String> = db.column("SELECT reason::text FROM shop_recommend('ann')");
    assert!(
        !reasons.iter().any(|reason| reason.contains("interest")),
        "{reasons:?}"
    );
}

#[test]
fn a_list_follows_a_click_though_the_vector_of_its_user_cannot_be_made() {
    let mut db = library(shared(), 100);
    views(&mut db, "ann", &[3]);
    settle(&mut db);
    let id = crate::shop::number(&mut db);
    db.run(&format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON recsync.interest_{id} FOR EACH ROW EXECUTE FUNCTION refuse();
         INSERT INTO event (user_id, product_id, created_at) SELECT 'ann', 7, now() + interval '1 year' FROM generate_series(1, 3)"
    ));
    wait_until(PATIENCE, "it is paused", || {
        db.one("SELECT paused_reason IS NOT DISTINCT FROM 'not now' FROM recsync.status WHERE kind = 'recommender'")
    });
    let listed = items(&mut db, "shop_recommend('ann', k => 8)");
    assert!(of_topic(7, &listed) >= 6, "{listed:?}");
    db.run(&format!(
        "DROP TRIGGER refuse ON recsync.interest_{id}; SELECT recsync.resume('shop')"
    ));
    settle(&mut db);
}

#[test]
fn similar_is_by_content_by_interactions_or_by_both() {
    let mut db = library(shared(), 100);
    for user in ["ann", "bob", "eve"] {
        views(&mut db, user, &[3, 8]);
    }
    settle(&mut db);
    let mut similar = |by: &str| items(&mut db, &format!("shop_similar(3, k => 5, by => '{by}')"));
    let by_content = similar("content");
    assert!(
        of_topic(3, &by_content) == 5 && !by_content.contains(&3),
        "{by_content:?}"
    );
    assert_eq!(similar("interactions"), [8]);
    let blended = similar("blend");
    assert!(
        blended[..2].contains(&8) && of_topic(3, &blended) == 4,
        "{blended:?}"
    );
    assert_eq!(items(&mut db, "shop_similar(3, k => 5)"), blended);
    // All there is, and that in order.
    let scores: Vec<f64> =
        db.column("SELECT score FROM shop_similar(3, k => 500, by => 'content') ORDER BY rank");
    assert_eq!(scores.len(), 99);
    assert!(scores.is_sorted_by(|one, other| one >= other), "{scores:?}");
    db.run("UPDATE product SET hidden = true WHERE id % 10 = 3 AND id > 50");
    assert_eq!(
        of_topic(
            3,
            &items(&mut db, "shop_similar(3, k => 90, by => 'content')")
        ),
        4
    );
    // Of a pipeline.
    let similar = |arguments: &str| {
        format!("SELECT item FROM recsync.similar('shop_embedding', {arguments}) ORDER BY rank")
    };
    let found: Vec<String> = db.column(&similar("3, k => 5"));
    let found: Vec<i32> = found.iter().map(|item| item.parse().unwrap()).collect();
    assert!(of_topic(3, &found) == 5 && !found.contains(&3), "{found:?}");
    let found: Vec<String> = db.column(&similar(
        "'3', filter => '{\"id\": {\"gt\": 95}}', by => 'content'",
    ));
    assert_eq!(found.len(), 5);
    for (call, code) in [
        ("recsync.similar('shop', 3, by => 'colour')", "22023"),
        (
            "recsync.similar('shop_embedding', 3, by => 'blend')",
            "22023",
        ),
        ("recsync.similar('nothing', 3)", "42704"),
    ] {
        assert_eq!(
            db.refused(&format!("SELECT * FROM {call}")).code().code(),
            code,
            "{call}"
        );
    }
    db.run("SELECT recsync.create_recommender('plain', 'product', 'event')");
    assert_eq!(
        db.refused("SELECT * FROM plain_similar(3, by => 'content')")
            .code()
            .code(),
        "22023"
    );
}

#[test]
fn candidates_from_elsewhere_are_ranked_for_a_user() {
    let mut db = library(shared(), 60);
    views(&mut db, "ann", &[3, 13]);
    for user in ["bob", "eve"] {
        views(&mut db, user, &[3, 13, 28]);
    }
    settle(&mut db);
    let mut ranked = |user: &str, candidates: &str| -> Vec<i32> {
        let rank = format!("recsync.rank('shop', {user}, '{candidates}')");
        let listed: Vec<String> = db.column(&format!("SELECT item FROM {rank} ORDER BY rank"));
        listed.iter().map(|item| item.parse().unwrap()).collect()
    };
    // Her own, what hers have had, too, what is like hers; the rest as given, nothing twice, nothing else.
    let listed = ranked("'ann'", "{41,43,28,41,13,999}");
    assert!(
        listed.len() == 4 && listed[0] == 13 && listed[3] == 41,
        "{listed:?}"
    );
    assert_eq!(ranked("'nobody'", "{41,13,40}")[0], 13);
    assert_eq!(ranked("NULL", "{}"), Vec::<i32>::new());
    db.run("UPDATE product SET hidden = true WHERE id = 43");
    let scores: Vec<f64> =
        db.column("SELECT score FROM recsync.rank('shop', 'ann', '{41,43,28}') ORDER BY rank");
    assert!(scores.len() == 2 && scores[0] > scores[1], "{scores:?}");
    let many =
        "SELECT * FROM recsync.rank('shop', 'ann', ARRAY(SELECT generate_series(1, 10001)::text))";
    assert_eq!(db.refused(many).code().code(), "22023");
}

#[test]
fn diversity_keeps_apart_what_is_alike() {
    let mut db = library(shared(), 200);
    views(&mut db, "ann", &[3, 13, 23, 4]);
    settle(&mut db);
    let mut list = |more: &str| items(&mut db, &format!("shop_recommend('ann', k => 12{more})"));
    let plain = list("");
    assert_eq!(list(", diversity => 0"), plain);
    let topics = |listed: &[i32]| {
        (0..TOPICS)
            .filter(|topic| of_topic(*topic, listed) > 0)
            .count()
    };
    let spread = list(", diversity => 0.7");
    assert!(spread.len() == 12 && spread[0] == plain[0], "{spread:?}");
    assert!(topics(&spread) > topics(&plain), "{plain:?} {spread:?}");
    // Pages of it are one list, and nothing comes twice.
    let all = items(&mut db, "shop_recommend('ann', k => 150, diversity => 0.7)");
    assert_eq!((&all[..12], all.len()), (&spread[..], 150));
    let page = items(
        &mut db,
        "shop_recommend('ann', k => 5, skip => 7, diversity => 0.7)",
    );
    assert_eq!(page, spread[7..]);
    let mut once = all.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), 150);
    for bad in ["2", "-0.1"] {
        let call = format!("SELECT * FROM shop_recommend('ann', diversity => {bad})");
        assert_eq!(db.refused(&call).code().code(), "22023", "{bad}");
    }
    db.run("SELECT recsync.create_recommender('plain', 'product', 'event')");
    let error = db.refused("SELECT * FROM plain_recommend('ann', diversity => 0.5)");
    assert_eq!(error.code().code(), "22023");
}

#[test]
fn a_key_of_several_columns_is_given_as_it_is_shown() {
    let mut db = with_server(shared());
    db.run(
        "CREATE TABLE film (code text, year int, title text, PRIMARY KEY (year, code));
         INSERT INTO film VALUES ('a', 1999, 'red shoe'), ('b', 1999, 'red shoes'), ('a', 2001, 'striped hat');
         SELECT recsync.create_pipeline('films', 'film', columns => '{title}', server => 'local')",
    );
    db.settle("films");
    let found: Vec<String> = db.column("SELECT item FROM recsync.similar('films', '{\"code\": \"a\", \"year\": 1999}') ORDER BY rank");
    assert_eq!(
        found,
        [
            r#"{"code": "b", "year": 1999}"#,
            r#"{"code": "a", "year": 2001}"#
        ]
    );
}

#[test]
fn new_items_are_found_by_content_three_times_as_often_as_by_chance() {
    let mut db = library(shared(), 300);
    settle(&mut db);
    // Relevant are the items of the same topic: a tenth of all.
    let hits: i64 = db.one(
        "SELECT count(*) FROM product p CROSS JOIN LATERAL shop_similar(p.id, k => 10, by => 'content') s
          WHERE p.id % 15 = 0 AND s.id % 10 = p.id % 10",
    );
    let by_chance = 20.0 * 10.0 * 29.0 / 299.0;
    assert!(hits as f64 >= 3.0 * by_chance, "{hits} against {by_chance}");
}

#[test]
fn a_new_item_is_similar_and_recommended_within_a_second() {
    let mut db = library(shared(), 50);
    views(&mut db, "ann", &[3, 13]);
    settle(&mut db);
    db.run("INSERT INTO product SELECT 1003, title FROM product WHERE id = 3");
    let started = Instant::now();
    wait_until(PATIENCE, "it is both", || {
        items(&mut db, "shop_recommend('ann', k => 10)").contains(&1003)
            && items(&mut db, "shop_similar(3, k => 10)").contains(&1003)
    });
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn interests_are_the_owners_and_nobody_elses() {
    let mut db = library(shared(), 10);
    let reader = crate::rights::role("reader");
    views(&mut db, "ann", &[3]);
    settle(&mut db);
    db.run(&format!(
        "GRANT SELECT ON product TO {reader}; GRANT EXECUTE ON FUNCTION shop_recommend, shop_similar TO {reader}"
    ));
    let id = crate::shop::number(&mut db);
    let mut client = db.connect_as(&reader);
    for table in ["interest", "revised"] {
        let error = client.refused(&format!("SELECT * FROM recsync.{table}_{id}"));
        assert_eq!(error.code().code(), "42501", "{table}");
    }
    for list in ["shop_recommend('ann', k => 3)", "shop_similar(3, k => 3)"] {
        assert_eq!(
            client
                .column::<i32>(&format!("SELECT id FROM {list}"))
                .len(),
            3,
            "{list}"
        );
    }
    let error = client.refused("SELECT * FROM recsync.similar('shop_embedding', 3)");
    assert_eq!(error.code().code(), "42501");
    client.refused("SELECT * FROM shop_embedding");
}
