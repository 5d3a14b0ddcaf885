//! The vectors of items and of users' interests: where they come from, and that what is kept is what the interactions
//! and the vectors of now give.

use fastrand::Rng;

use crate::shop::{HISTORY, WEIGHT, change_at_random, items, number, tables, views};
use crate::support::{Cluster, Database, PATIENCE, Sql, shared, wait_until};

const PRODUCTS: i32 = 25;

/// The recommender's arguments that give the items vectors.
const TEXT: &str = "text => '{title}', server => 'local'";

/// Products, events, and a server that makes vectors.
pub fn with_server(cluster: &Cluster) -> Database<'_> {
    let mut db = tables(cluster);
    db.run("CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin')");
    db
}

/// Recommender `shop`, whose items have the vectors of their titles.
fn shop(cluster: &Cluster) -> Database<'_> {
    let mut db = with_server(cluster);
    db.run(&format!(
        "INSERT INTO product SELECT i, (ARRAY['red', 'green', 'blue', 'striped'])[1 + i % 4] || ' ' || (ARRAY['shirt', 'shoe', 'hat'])[1 + i % 3] || ' ' || i
           FROM generate_series(1, {PRODUCTS}) i;
         SELECT recsync.create_recommender('shop', 'product', 'event', {TEXT}, weight => $$ {WEIGHT} $$, seen => $$ kind = 'buy' $$,
                                           eligible => 'NOT hidden', history => {HISTORY})"
    ));
    db
}

/// Waits until every user has a vector that is not stale, of vectors of items that are in place.
pub fn settle(db: &mut Database) {
    db.settle("shop");
    let id = number(db);
    wait_until(PATIENCE, "the interests are up to date", || {
        db.one(&format!(
            "SELECT NOT EXISTS (SELECT FROM recsync.interest_{id} WHERE stale) AND NOT EXISTS (SELECT FROM recsync.revised_{id})
                AND (SELECT count(*) FROM recsync.interest_{id}) = (SELECT count(DISTINCT user_id) FROM recsync.interaction_{id})"
        ))
    });
}

/// Users whose vector differs from that of their events.
fn differences(db: &mut Database) -> Vec<String> {
    let id = number(db);
    db.column(&format!(
        "WITH numbered AS (SELECT e.*, ({WEIGHT})::float8 AS weight, row_number() OVER (PARTITION BY user_id ORDER BY created_at DESC, id DESC) AS n
                             FROM event e WHERE user_id IS NOT NULL AND product_id IS NOT NULL),
              faded AS (SELECT user_id, product_id, weight * 2 ^ (-extract(epoch FROM max(created_at) OVER (PARTITION BY user_id) - created_at)::float8 / 1209600) / (1 + (n - 1) / 2.0) AS weight
                          FROM numbered WHERE n <= {HISTORY}),
              number AS (SELECT f.user_id, x.i, sum(f.weight * x.x) / sum(abs(f.weight)) AS x
                           FROM faded f JOIN shop_embedding v ON v.id = f.product_id, unnest(v.embedding::real[]) WITH ORDINALITY AS x (x, i) GROUP BY 1, 2),
              counted AS (SELECT user_id, array_agg(x ORDER BY i) AS interest, max(abs(x)) > 1e-6 AS is_one FROM number GROUP BY user_id)
         SELECT format('%s: kept %s, is %s', COALESCE(k.user_id, c.user_id), k.interest, c.interest)
           FROM recsync.interest_{id} k FULL JOIN counted c USING (user_id)
          WHERE (k.interest IS NOT NULL) <> COALESCE(c.is_one, false)
             OR EXISTS (SELECT FROM unnest(k.interest::real[], c.interest) AS x (kept, counted) WHERE abs(kept - counted) > 1e-5)"
    ))
}

#[track_caller]
pub fn assert_kept_right(db: &mut Database) {
    settle(db);
    let wrong = differences(db);
    assert!(
        wrong.is_empty(),
        "{}: {:.2000}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Names of what recsync has made in the database.
fn made(db: &mut Database) -> Vec<String> {
    db.column(
        "SELECT relname::text FROM pg_class WHERE relname ~ '^(interaction|item|pair|interest|revised)_[0-9]' OR relname LIKE 'shop\\_%'
          UNION ALL SELECT tgname::text FROM pg_trigger WHERE tgname LIKE '00_recsync%'
          UNION ALL SELECT relation FROM recsync.pipeline UNION ALL SELECT relation FROM recsync.source",
    )
}

#[test]
fn text_and_server_make_a_pipeline_that_goes_with_the_recommender() {
    let mut db = shop(shared());
    db.settle("shop");
    let vectors: i64 = db.one("SELECT count(*) FROM shop_embedding");
    assert_eq!(vectors, i64::from(PRODUCTS));
    let error = db.refused("SELECT recsync.drop_pipeline('shop_embedding')");
    assert_eq!(error.code().code(), "2BP01", "{error:?}");
    assert!(error.hint().unwrap().contains("public.shop"));
    // Another recommender uses the same vectors.
    db.run("SELECT recsync.create_recommender('other', 'shop_embedding', 'event')");
    db.run("SELECT recsync.drop_recommender('shop')");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM shop_embedding"),
        vectors
    );
    db.run(
        "SELECT recsync.drop_recommender('other'); SELECT recsync.drop_pipeline('shop_embedding')",
    );
    assert_eq!(made(&mut db), Vec::<String>::new());
    // By itself it goes with the pipeline that it has made.
    db.run(&format!(
        "SELECT recsync.create_recommender('shop', 'product', 'event', {TEXT})"
    ));
    db.settle("shop");
    db.run("SELECT recsync.drop_recommender('shop')");
    assert_eq!(made(&mut db), Vec::<String>::new());
}

#[test]
fn what_makes_no_vectors_is_refused_as_by_create_pipeline() {
    let mut db = with_server(shared());
    db.run("SELECT recsync.create_pipeline('titles', 'product', columns => '{title}', server => 'local')");
    for (arguments, code) in [
        ("'product', 'event', text => '{title}'", "22023"),
        ("'product', 'event', server => 'local'", "22023"),
        (
            "'product', 'event', text => '{}', server => 'local'",
            "22023",
        ),
        (
            "'product', 'event', text => '{colour}', server => 'local'",
            "42703",
        ),
        (
            "'product', 'event', text => '{title}', server => 'nobody'",
            "42704",
        ),
        (
            "'titles', 'event', text => '{title}', server => 'local'",
            "22023",
        ),
    ] {
        let error = db.refused(&format!(
            "SELECT recsync.create_recommender('shop', {arguments})"
        ));
        assert_eq!(
            error.code().code(),
            code,
            "{arguments}: {}",
            error.message()
        );
    }
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.recommender"), 0);
}

#[test]
fn the_same_text_again_is_accepted_and_another_is_refused_with_the_difference() {
    let mut db = with_server(shared());
    let again = |more: &str| {
        format!(
            "SELECT recsync.create_recommender('shop', 'product', 'event', if_not_exists => true{more})"
        )
    };
    db.run(&again(&format!(", {TEXT}")));
    db.run(&again(&format!(", {TEXT}")));
    let error = db.refused(&again(""));
    assert_eq!(error.code().code(), "42710");
    assert!(
        error
            .hint()
            .unwrap()
            .contains("is public.shop_embedding, given none"),
        "{error:?}"
    );
    let error = db.refused(&again(", text => '{title, price}', server => 'local'"));
    assert_eq!(error.code().code(), "42710");
    assert!(error.hint().unwrap().contains("content"), "{error:?}");
}

#[test]
fn interests_are_what_events_and_vectors_give_whatever_has_happened_to_them() {
    let mut db = shop(shared());
    let mut rng = Rng::with_seed(2_711);
    for round in 0..5 {
        for _ in 0..60 {
            change_at_random(&mut db, &mut rng);
            let product = rng.i32(1..=PRODUCTS);
            match rng.u8(0..12) {
                0 => db.run(&format!(
                    "UPDATE product SET title = 'new {round} {product}' WHERE id = {product}"
                )),
                1 => db.run(&format!(
                    "UPDATE product SET title = NULL WHERE id = {product}"
                )),
                _ => {}
            }
        }
        match round {
            2 => db.run("DELETE FROM event WHERE user_id = 'u3'"),
            3 => db.run("TRUNCATE event"),
            _ => {}
        }
        assert_kept_right(&mut db);
    }
    let id = number(&mut db);
    assert!(
        db.one::<i64>(&format!(
            "SELECT count(interest) FROM recsync.interest_{id}"
        )) > 8
    );
    // And a difference in one number would have been found.
    db.run(&format!(
        "UPDATE recsync.interest_{id} k SET interest = (SELECT array_agg(x + CASE i WHEN 7 THEN 0.001 ELSE 0 END ORDER BY i) FROM unnest(k.interest::real[]) WITH ORDINALITY AS x (x, i))::real[]::vector
          WHERE user_id = (SELECT min(user_id) FROM recsync.interest_{id} WHERE interest IS NOT NULL)"
    ));
    assert_eq!(differences(&mut db).len(), 1);
}

#[test]
fn interests_are_right_after_the_worker_was_killed() {
    let cluster = Cluster::start(&[]);
    let mut db = shop(&cluster);
    let mut rng = Rng::with_seed(5);
    for _ in 0..3 {
        for product in 0..40 {
            change_at_random(&mut db, &mut rng);
            if product % 10 == 0 {
                db.run(&format!(
                    "UPDATE product SET title = 'another ' || random() WHERE id = {product}"
                ));
            }
        }
        db.kill9_worker();
    }
    assert_kept_right(&mut db);
}

#[test]
fn vectors_that_were_there_before_count() {
    let mut db = with_server(shared());
    db.run(
        "INSERT INTO product SELECT i, 'thing number ' || i FROM generate_series(1, 25) i;
         INSERT INTO event (user_id, product_id, created_at) SELECT 'u' || i % 90, 1 + i % 25, timestamptz '2026-05-01' + i * interval '1 min' FROM generate_series(1, 2000) i;
         SELECT recsync.create_pipeline('shop_embedding', 'product', columns => '{title}', server => 'local', storage => 'halfvec')",
    );
    db.settle("shop_embedding");
    db.run(&format!(
        "SELECT recsync.create_recommender('shop', 'shop_embedding', 'event', weight => $$ {WEIGHT} $$, history => {HISTORY})"
    ));
    settle(&mut db);
    // Half precision.
    let id = number(&mut db);
    let kind: String = db.one(&format!(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'recsync.interest_{id}'::regclass AND attname = 'interest'"
    ));
    assert_eq!(kind, "halfvec(384)");
    assert_eq!(
        db.one::<i64>(&format!(
            "SELECT count(interest) FROM recsync.interest_{id}"
        )),
        90
    );
}

#[test]
fn a_click_is_in_the_kept_vector_within_half_a_second() {
    let mut db = shop(shared());
    views(&mut db, "ann", &[1, 2]);
    settle(&mut db);
    let id = number(&mut db);
    let mut times = Vec::new();
    for product in 3..=13 {
        let before: String = db.one(&format!("SELECT interest::text FROM recsync.interest_{id}"));
        views(&mut db, "ann", &[product]);
        let started = std::time::Instant::now();
        wait_until(PATIENCE, "the vector is another", || {
            db.one(&format!(
                "SELECT interest::text <> '{before}' AND NOT stale FROM recsync.interest_{id}"
            ))
        });
        times.push(started.elapsed());
    }
    times.sort();
    assert!(
        times[times.len() / 2] < std::time::Duration::from_millis(500),
        "{times:?}"
    );
}

#[test]
fn pipeline_and_interests_go_with_the_tables() {
    for drop in [
        "DROP TABLE event",
        "DROP TABLE product CASCADE",
        "DROP TABLE event, product",
    ] {
        let mut db = shop(shared());
        views(&mut db, "ann", &[1]);
        settle(&mut db);
        db.run(drop);
        assert_eq!(made(&mut db), Vec::<String>::new(), "{drop}");
    }
}

#[test]
fn a_recommender_lives_on_without_its_pipeline_where_its_view_is_dropped() {
    let mut db = shop(shared());
    views(&mut db, "ann", &[1, 2]);
    settle(&mut db);
    db.run("DROP VIEW shop_embedding CASCADE; DROP TABLE shop_embedding_g1");
    views(&mut db, "ann", &[3]);
    wait_until(PATIENCE, "the event is kept", || {
        let id = number(&mut db);
        db.one(&format!(
            "SELECT count(*) = 3 FROM recsync.interaction_{id}"
        ))
    });
    assert_eq!(items(&mut db, "shop_recommend('ann', k => 10)").len(), 10);
    db.run("SELECT recsync.drop_recommender('shop')");
}

#[test]
fn drop_extension_takes_interests_and_a_new_one_makes_them() {
    let mut db = shop(shared());
    views(&mut db, "ann", &[1]);
    settle(&mut db);
    db.run(
        "DROP EXTENSION recsync CASCADE;
         DROP FUNCTION shop_recommend, shop_similar, shop_popular, shop_rank; DROP VIEW shop_embedding; DROP TABLE shop_embedding_g1",
    );
    let left: Vec<String> = db.column(
        "SELECT relname::text FROM pg_class WHERE relname ~ '^(interest|revised)_[0-9]' UNION ALL SELECT tgname::text FROM pg_trigger WHERE tgname LIKE '00_recsync%'",
    );
    assert_eq!(left, Vec::<String>::new());
    db.run("CREATE EXTENSION recsync; CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin')");
    db.run(&format!(
        "SELECT recsync.create_recommender('shop', 'product', 'event', {TEXT}, weight => $$ {WEIGHT} $$, history => {HISTORY})"
    ));
    assert_kept_right(&mut db);
}

#[test]
fn interests_are_made_again_where_they_are_missing_or_counted_by_another_rule() {
    let mut db = shop(shared());
    for user in ["ann", "bob"] {
        views(&mut db, user, &[1, 2, 3, 4, 5, 6, 7, 8]);
    }
    settle(&mut db);
    let id = number(&mut db);
    // As after a restore, which brings the vectors and the triggers but nothing that is kept.
    db.run("SELECT recsync.pause('shop')");
    for table in ["interest", "revised"] {
        db.run(&format!(
            "ALTER EXTENSION recsync DROP TABLE recsync.{table}_{id}; DROP TABLE recsync.{table}_{id}"
        ));
    }
    db.run("UPDATE product SET title = 'another thing' WHERE id = 8"); // nobody's vector is in the way
    db.settle("shop_embedding");
    assert_eq!(items(&mut db, "shop_recommend('ann', k => 10)").len(), 10);
    db.run("SELECT recsync.resume('shop')");
    wait_until(PATIENCE, "they are made again", || {
        db.one(&format!(
            "SELECT to_regclass('recsync.interest_{id}') IS NOT NULL"
        ))
    });
    assert_kept_right(&mut db);
    db.run("SELECT recsync.alter_recommender('shop', history => 2)");
    settle(&mut db);
    assert_eq!(differences(&mut db).len(), 2);
    db.run("SELECT recsync.alter_recommender('shop', history => 6, half_life_rank => 1)");
    settle(&mut db);
    assert_eq!(differences(&mut db).len(), 2);
    db.run("SELECT recsync.alter_recommender('shop', half_life_rank => 2)");
    assert_kept_right(&mut db);
    db.run("SELECT recsync.alter_recommender('shop', weight => '2')");
    settle(&mut db);
    db.run(&format!(
        "SELECT recsync.alter_recommender('shop', weight => $$ {WEIGHT} $$)"
    ));
    assert_kept_right(&mut db);
}
