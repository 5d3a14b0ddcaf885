//! Invariant 8: one bad row is isolated and delays no other; a bad provider charges no row an attempt and delays no
//! other provider's pipelines. Of invariant 9: 429 and Retry-After are obeyed and charge no attempt.

use std::time::{Duration, Instant};

use crate::support::{Api, PATIENCE, Sql, shared, wait_until};

#[test]
fn invariant_8_one_poison_row_among_500_is_isolated_and_dead_lettered_and_comes_back_on_retry() {
    let api = Api::start();
    let mut db = shared().database();
    api.refuse_texts_with("poison", 400);
    db.items(&api, "max_batch_inputs '50', max_attempts '3'");
    db.run("INSERT INTO item SELECT i, CASE WHEN i = 237 THEN 'poison' ELSE 'row ' || i END FROM generate_series(1, 500) i");
    db.settle("item_embedding");

    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM item_embedding"),
        499,
        "the other 499 are embedded"
    );
    let dead = db.rows("SELECT pipeline, record_key, class, status, message, failed_at > now() - interval '5 min' FROM recsync.dead_letter");
    assert_eq!(dead.len(), 1);
    assert!(dead[0].get::<_, String>(0).contains("item_embedding"));
    assert_eq!(dead[0].get::<_, Vec<String>>(1), ["237"]);
    assert_eq!(dead[0].get::<_, String>(2), "permanent");
    assert_eq!(dead[0].get::<_, Option<i32>>(3), Some(400));
    assert!(
        dead[0].get::<_, String>(4).contains("as scripted"),
        "the server's reason is in the message"
    );
    assert!(dead[0].get::<_, bool>(5));
    // 10 batches; halving one of 50 takes at most 2 requests for each of 6 steps; 3 attempts at worst.
    let requests = api.requests().len();
    assert!(
        requests <= 10 + 3 * 13,
        "{requests} requests to isolate one row among 500"
    );
    let most = (1..=500)
        .filter(|&id| id != 237)
        .map(|id| api.times_asked(&format!("row {id}")))
        .max();
    assert!(
        most <= Some(1 + 3 * 6),
        "a good row was sent {most:?} times"
    );

    api.refuse_nothing();
    db.run("INSERT INTO item VALUES (501, 'later')");
    db.settle("item_embedding");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"),
        1,
        "it waits for a person"
    );
    assert_eq!(
        db.one::<i64>("SELECT recsync.retry_dead_letters('item_embedding')"),
        1
    );
    db.settle("item_embedding");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
    db.assert_items_in_step(&api);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 501);
}

#[test]
fn invariant_8_a_new_text_takes_a_row_out_of_the_dead_letters_and_a_delete_does_too() {
    let api = Api::start();
    let mut db = shared().database();
    api.refuse_texts_with("poison", 422);
    db.items(&api, "");
    db.run("INSERT INTO item VALUES (1, 'poison a'), (2, 'poison b'), (3, 'fine')");
    db.settle("item_embedding");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 2);
    db.run("UPDATE item SET title = 'mended' WHERE id = 1");
    db.run("DELETE FROM item WHERE id = 2");
    db.settle("item_embedding");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
    db.assert_items_in_step(&api);
}

#[test]
fn invariant_8_row_that_fails_again_and_again_delays_no_other() {
    let api = Api::start();
    let mut db = shared().database();
    api.refuse_texts_with("cursed", 418);
    db.items(
        &api,
        "max_attempts '4', max_batch_inputs '1', max_concurrency '1'",
    );
    // A row that the backfill still finds is a change besides, and asked for twice.
    db.settle("item_embedding");
    db.run("INSERT INTO item VALUES (1, 'cursed')");
    wait_until(PATIENCE, "the first attempt", || {
        api.times_asked("cursed") == 1
    });
    for id in 2..12 {
        db.run(&format!("INSERT INTO item VALUES ({id}, 'row {id}')"));
        let stored = format!("SELECT count(*) FROM item_embedding WHERE id = {id}");
        let took = wait_until(PATIENCE, "the other row is embedded", || {
            db.one::<i64>(&stored) == 1
        });
        assert!(
            took < Duration::from_secs(2),
            "row {id} waited {took:?} for a row that fails"
        );
    }
    wait_until(PATIENCE, "it is given up", || {
        db.one::<i64>("SELECT count(*) FROM recsync.dead_letter") == 1
    });
    assert_eq!(api.times_asked("cursed"), 4, "max_attempts");
    let dead = db.rows("SELECT attempt, class, status FROM recsync.dead_letter");
    assert_eq!(
        (
            dead[0].get::<_, i32>(0),
            dead[0].get::<_, &str>(1),
            dead[0].get::<_, i32>(2)
        ),
        (4, "temporary", 418)
    );
    // Exponential backoff with jitter: at least half of 1, 2 and 4 s.
    let times: Vec<Instant> = api
        .requests()
        .iter()
        .filter(|r| r.inputs == ["cursed"])
        .map(|r| r.at)
        .collect();
    for (pair, least) in times.windows(2).zip([500, 1_000, 2_000]) {
        assert!(
            pair[1] - pair[0] >= Duration::from_millis(least - 50),
            "tried again after {:?}",
            pair[1] - pair[0]
        );
    }
}

#[test]
fn invariant_8_provider_that_is_down_charges_no_attempt_and_delays_no_other_providers_pipeline() {
    let (dead, alive) = (Api::start(), Api::start());
    let mut db = shared().database();
    // One attempt: whatever charged one would make a dead letter.
    db.items(&dead, "max_attempts '1'");
    db.server("other", &alive, "max_attempts '1'");
    db.run("CREATE TABLE film (id int PRIMARY KEY, title text)");
    db.run("SELECT recsync.create_pipeline('film_embedding', 'film', columns => '{title}', server => 'other', index => 'none')");
    dead.down();
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 200) i");
    wait_until(PATIENCE, "the status says what is wrong", || {
        db.one("SELECT bool_or(last_error IS NOT NULL) FROM recsync.status WHERE name LIKE '%item_embedding'")
    });
    for id in 0..20 {
        db.run(&format!("INSERT INTO film VALUES ({id}, 'film {id}')"));
        let started = Instant::now();
        db.settle("film_embedding");
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "another provider's pipeline waited {:?}",
            started.elapsed()
        );
    }
    db.assert_in_step(&alive, "SELECT f.id::text, f.title, e.embedding::text FROM film f FULL JOIN film_embedding e USING (id)");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 0);
    dead.up();
    db.settle("item_embedding");
    db.assert_items_in_step(&dead);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"),
        0,
        "a row was charged for its provider"
    );
}

#[test]
fn invariant_8_provider_that_answers_500_charges_no_attempt() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "max_attempts '1', max_concurrency '1'");
    api.fail_next(2, 500, None);
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 20) i");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
}

#[test]
fn invariant_8_row_that_makes_the_provider_answer_500_is_isolated_and_given_up() {
    let api = Api::start();
    let mut db = shared().database();
    api.refuse_texts_with("cursed", 500);
    db.items(&api, "max_attempts '2', max_batch_inputs '20'");
    db.run("INSERT INTO item SELECT i, CASE i WHEN 7 THEN 'cursed' ELSE 'row ' || i END FROM generate_series(1, 20) i");
    wait_until(
        Duration::from_secs(60),
        "the other nineteen are embedded",
        || db.one::<i64>("SELECT count(*) FROM item_embedding") == 19,
    );
    // It is charged only where the provider has answered others since its last failure.
    let mut others = 20;
    wait_until(Duration::from_secs(60), "it is given up", || {
        others += 1;
        db.run(&format!(
            "INSERT INTO item VALUES ({others}, 'row {others}')"
        ));
        db.one::<bool>("SELECT count(*) = 1 AND bool_and(class = 'provider' AND status = 500) FROM recsync.dead_letter")
    });
    db.settle("item_embedding");
}

#[test]
fn invariant_9_429_with_retry_after_is_obeyed_by_all_and_charges_no_attempt() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(
        &api,
        "max_attempts '1', max_batch_inputs '5', max_concurrency '4'",
    );
    api.hold();
    api.fail_next(4, 429, Some(2));
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 60) i");
    api.wait_until_held(4);
    api.release();
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
    let at: Vec<Instant> = api.requests().iter().map(|request| request.at).collect();
    assert!(
        at[4] - at[3] >= Duration::from_millis(1_900),
        "asked again after {:?}",
        at[4] - at[3]
    );
}
