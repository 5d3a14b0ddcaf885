//! What is kept is what a count of the interactions gives, whatever has happened to them and whoever died meanwhile.

use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::shop::{
    assert_kept_right, change_at_random, differences, differing_lists, items, number, shop, tables,
    views,
};
use crate::support::{Cluster, PATIENCE, Sql, shared, wait_until};

const PRODUCTS: i32 = 25;

#[test]
fn thousands_of_random_changes_leave_what_a_count_of_the_events_gives() {
    let mut db = shop(shared(), PRODUCTS);
    let mut rng = Rng::with_seed(20_261_127);
    for round in 0..6 {
        for _ in 0..150 {
            change_at_random(&mut db, &mut rng);
        }
        if round == 3 {
            db.run("DELETE FROM event WHERE user_id = 'u3'");
        }
        db.settle("shop");
        assert_kept_right(&mut db);
    }
    assert!(db.one::<i64>("SELECT count(*) FROM event") > 300);
    // And one item too few in one list would have been found.
    let lists = format!("recsync.neighbour_{}", number(&mut db));
    db.run(&format!(
        "UPDATE {lists} SET others = others[2:] WHERE ctid = (SELECT ctid FROM {lists} WHERE others <> '{{}}' LIMIT 1)"
    ));
    assert_eq!(differences(&mut db).len(), 1);
    // Counted all at once, they are what a count of the events gives.
    let id = number(&mut db);
    db.run(&format!(
        "INSERT INTO recsync.stale_{id} SELECT item_id, now() FROM recsync.item_{id} ON CONFLICT DO NOTHING;
         INSERT INTO event (user_id, product_id) VALUES ('somebody', 1)"
    ));
    db.settle("shop");
    assert_eq!(differing_lists(&mut db), [] as [String; 0]);
}

#[test]
fn events_that_were_there_before_are_read_and_changes_meanwhile_are_not_lost() {
    let mut db = tables(shared());
    db.run(
        "INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 25) i;
         INSERT INTO event (user_id, product_id, created_at)
         SELECT 'u' || i % 97, 1 + (i * i) % 25, timestamptz '2026-05-01' + i * interval '7 min' FROM generate_series(1, 4500) i",
    );
    db.run(&format!(
        "SELECT recsync.create_recommender('shop', 'product', 'event', weight => $$ {} $$, seen => $$ kind = 'buy' $$, history => {})",
        crate::shop::WEIGHT,
        crate::shop::HISTORY
    ));
    db.run("UPDATE event SET product_id = 1 WHERE id % 100 = 0");
    db.run("DELETE FROM event WHERE id % 70 = 0");
    db.settle("shop");
    assert_kept_right(&mut db);
}

/// More interactions than the worker counts itself; what comes and goes meanwhile is written before or after that.
#[test]
fn many_events_are_counted_by_a_process_and_changes_meanwhile_are_not_lost() {
    let cluster = Cluster::start(&[]);
    let mut db = tables(&cluster);
    db.run(
        "INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 2000) i;
         INSERT INTO event (user_id, product_id, created_at)
         SELECT 'u' || i % 4999, 1 + (i * 37 + i / 4999 * 501) % 2000, timestamptz '2026-05-01' + i * interval '1 min' FROM generate_series(1, 25000) i",
    );
    db.run(&format!(
        "SELECT recsync.create_recommender('shop', 'product', 'event', weight => $$ {} $$, seen => $$ kind = 'buy' $$, history => {})",
        crate::shop::WEIGHT,
        crate::shop::HISTORY
    ));
    let id = number(&mut db);
    let finished =
        format!("SELECT finished_at IS NOT NULL FROM recsync.backfill WHERE pipeline_id = {id}");
    let mut events = 25_000;
    while !db.one::<bool>(&finished) {
        let (gone, moved) = (events % 24_000, (events + 7) % 24_000);
        db.run(&format!(
            "INSERT INTO event (user_id, product_id, created_at) VALUES ('u{gone}', {}, timestamptz '2026-06-01' + {events} * interval '1 min');
             DELETE FROM event WHERE id = {gone}; UPDATE event SET product_id = {} WHERE id = {moved}",
            1 + events % 2000,
            1 + events * 31 % 2000
        ));
        events += 1;
    }
    db.settle("shop");
    assert!(cluster.log().contains("its interactions were counted"));
    assert_kept_right(&mut db);
}

#[test]
fn truncate_empties_it_and_what_comes_after_counts() {
    let mut db = shop(shared(), PRODUCTS);
    views(&mut db, "ann", &[1, 2, 3]);
    db.settle("shop");
    db.run("BEGIN; TRUNCATE event; INSERT INTO event (user_id, product_id) VALUES ('bob', 4), ('bob', 5); COMMIT");
    db.settle("shop");
    assert_kept_right(&mut db);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM event"), 2);
}

#[test]
fn invariant_1_worker_killed_while_events_come_loses_and_doubles_nothing() {
    let cluster = Cluster::start(&[]);
    let mut db = shop(&cluster, PRODUCTS);
    let mut rng = Rng::with_seed(9);
    for _ in 0..3 {
        for _ in 0..60 {
            change_at_random(&mut db, &mut rng);
        }
        db.kill9_worker();
    }
    for _ in 0..20 {
        change_at_random(&mut db, &mut rng);
    }
    db.settle("shop");
    assert_kept_right(&mut db);
}

#[test]
fn invariant_1_worker_killed_between_effect_and_commit_does_it_once() {
    let cluster = Cluster::start(&[]);
    let mut db = shop(&cluster, PRODUCTS);
    views(&mut db, "ann", &[1, 2]);
    db.settle("shop");
    let id: i32 = db.one("SELECT id FROM recsync.recommender");
    let mut other = db.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute(&format!("LOCK TABLE recsync.stale_{id} IN SHARE MODE"))
        .unwrap();
    views(&mut db, "ann", &[3]);
    db.wait_until_worker_waits_for_lock(); // the interaction is written, what follows is not
    db.kill9_worker();
    drop(lock.commit());
    db.settle("shop");
    assert_kept_right(&mut db);
}

#[test]
fn an_event_counts_within_half_a_second() {
    let mut db = shop(shared(), PRODUCTS);
    views(&mut db, "ann", &[1, 2]);
    views(&mut db, "bob", &[3, 4]);
    db.settle("shop");
    let mut times = Vec::new();
    for product in 5..=15 {
        db.run(&format!(
            "INSERT INTO event (user_id, product_id, kind) VALUES ('ann', {product}, 'buy')"
        ));
        let started = Instant::now();
        wait_until(PATIENCE, "what was bought is not recommended", || {
            !items(&mut db, "shop_recommend('ann', k => 25)").contains(&product)
        });
        times.push(started.elapsed());
    }
    times.sort();
    let median = times[times.len() / 2];
    assert!(median < Duration::from_millis(500), "{times:?}");
}

#[test]
fn one_bad_event_is_put_aside_and_delays_no_other() {
    let mut db = tables(shared());
    db.run(
        "INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 25) i;
         ALTER TABLE event ADD stars text NOT NULL DEFAULT '1';
         SELECT recsync.create_recommender('shop', 'product', 'event', weight => 'stars::float8', history => 6, seen => 'true')",
    );
    db.run(
        "INSERT INTO event (id, user_id, product_id, stars) SELECT i, 'u' || i % 5, i % 20 + 1, CASE i WHEN 33 THEN 'many' ELSE '2' END FROM generate_series(1, 60) i",
    );
    db.settle("shop");
    let dead: Vec<String> = db.column("SELECT record_key[1] || ' ' || class FROM recsync.dead_letter WHERE pipeline = 'public.shop'");
    assert_eq!(dead, ["33 permanent"]);
    let id: i32 = db.one("SELECT id FROM recsync.recommender");
    let kept = format!("SELECT count(*) FROM recsync.interaction_{id}");
    assert_eq!(db.one::<i64>(&kept), 59);
    db.run("UPDATE event SET stars = '5' WHERE id = 33");
    db.settle("shop");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
    assert_eq!(db.one::<i64>(&kept), 60);
}
