//! alter_pipeline while rows change and texts are in the air.

use std::time::Duration;

use crate::altering::{alter, assert_texts, declared, items};
use crate::support::{Api, Cluster, PATIENCE, Sql, shared, wait_until};

#[test]
fn text_of_before_that_is_in_the_air_is_never_stored_and_the_new_one_does_not_wait_for_it() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    api.hold_texts_with("slow");
    db.run("UPDATE item SET title = 'slow ' || id, hidden = id = 3 WHERE id <= 3");
    db.run("INSERT INTO item (id, title) VALUES (21, 'slow 21')");
    api.wait_until_held(1);
    alter(
        &mut db,
        "content => $$ 'item ' || upper(title) $$, row_filter => 'NOT hidden'",
    );
    // The answer of the old text is still to come.
    wait_until(PATIENCE, "the new texts are stored", || {
        db.one("SELECT recsync.wait_for('e', '100 ms')")
    });
    assert!(api.held() > 0, "a request of before is still in flight");
    const TEXT: &str = "CASE WHEN NOT i.hidden THEN 'item ' || upper(i.title) END";
    assert_texts(&mut db, &api, TEXT);
    api.release();
    wait_until(PATIENCE, "the answer has landed", || api.held() == 0);
    db.run("INSERT INTO item (id, title) VALUES (22, 'after it')");
    db.settle("e");
    assert_texts(&mut db, &api, TEXT);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM e"), 21);
}

#[test]
fn text_in_the_air_that_stays_the_same_is_not_sent_twice() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    api.hold_texts_with("slow");
    db.run("UPDATE item SET title = 'slow ' || id WHERE id <= 3");
    api.wait_until_held(1);
    alter(&mut db, "row_filter => 'id <> 2'");
    wait_until(
        PATIENCE,
        "the row that does not match has lost its vector",
        || db.one("SELECT count(*) = 0 FROM e WHERE id = 2"),
    );
    api.release();
    db.settle("e");
    assert_texts(&mut db, &api, "CASE WHEN i.id <> 2 THEN i.title END");
    for id in 1..=3 {
        assert_eq!(api.times_asked(&format!("slow {id}")), 1);
    }
}

#[test]
fn change_of_a_column_that_is_used_from_now_on_is_not_lost_between_a_writer_and_the_alteration() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    let mut other = db.connect();
    let mut writer = other.transaction().unwrap();
    writer
        .batch_execute("UPDATE item SET description = 'written meanwhile' WHERE id = 1")
        .unwrap();
    let before = declared(&mut db);
    let error = db.refused("SELECT recsync.alter_pipeline('e', columns => '{title,description}')");
    assert_eq!(error.code().code(), "55P03");
    assert!(error.hint().is_some());
    assert_eq!(declared(&mut db), before);
    // What needs no lock on the source is changed all the same.
    db.run("SELECT recsync.alter_pipeline('e', content => $$ 'new ' || title $$, schedule => 'near_realtime')");
    writer.commit().unwrap();
    alter(
        &mut db,
        "columns => '{title,description}', schedule => 'realtime'",
    );
    db.settle("e");
    assert_texts(&mut db, &api, "concat_ws(E'\\n', i.title, i.description)");
}

#[test]
fn altered_while_rows_change_all_the_time_each_row_ends_with_its_text() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    api.set_delay(Duration::from_millis(20));
    let mut other = db.connect();
    for round in 0..8 {
        other.run(&format!("UPDATE item SET title = 'round {round} of ' || id, description = 'd {round}' WHERE id % 3 = {round} % 3"));
        let columns = if round % 2 == 0 {
            "title,description"
        } else {
            "title"
        };
        let filter = if round % 3 == 0 { "id <> 5" } else { "-" };
        // Where the worker stores a moment after the UPDATE, nobody holds a lock on the source.
        db.run(&format!("SELECT recsync.alter_pipeline('e', columns => '{{{columns}}}', row_filter => '{filter}')"));
    }
    db.settle("e");
    assert_texts(&mut db, &api, "i.title");
}

#[test]
fn text_of_before_that_is_being_stored_gives_way_to_the_new_one_and_an_open_transaction_too() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    let (mut one, mut other) = (db.connect(), db.connect());
    let mut user = one.transaction().unwrap();
    user.batch_execute(
        "UPDATE item SET title = 'open ' || id WHERE id IN (9, 10); UPDATE item SET title = 'hidden' WHERE id = 11;
         DELETE FROM item WHERE id = 12; INSERT INTO item (id, title) VALUES (22, 'open 22')",
    )
    .unwrap();
    let mut holder = other.transaction().unwrap();
    holder
        .batch_execute("LOCK TABLE e_g1 IN SHARE MODE")
        .unwrap();
    db.run("BEGIN; UPDATE item SET title = 'stored ' || id WHERE id <= 3; DELETE FROM item WHERE id = 4;
            UPDATE item SET title = 'hidden' WHERE id = 5; INSERT INTO item (id, title) VALUES (21, 'stored 21'); COMMIT");
    db.wait_until_worker_waits_for_lock();
    alter(
        &mut db,
        "content => $$ 'item ' || upper(title) $$, row_filter => $$ title <> 'hidden' $$",
    );
    // Changes while it cannot store: of a row whose vector it has in its hands, and of another.
    db.run("UPDATE item SET title = 'later ' || id WHERE id IN (3, 6)");
    holder.commit().unwrap();
    db.settle("e");
    const TEXT: &str = "CASE WHEN i.title <> 'hidden' THEN 'item ' || upper(i.title) END";
    assert_texts(&mut db, &api, TEXT);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM e"), 19);
    user.commit().unwrap();
    db.settle("e");
    assert_texts(&mut db, &api, TEXT);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM e"), 18);
    let texts = api.texts();
    for text in &texts {
        assert_eq!(api.times_asked(text), 1, "{text}");
    }
    assert!(!texts.contains(&"item HIDDEN".to_owned()), "{texts:?}");
}

#[test]
fn texts_of_before_in_writers_hands_give_way_to_the_new_ones() {
    const ROWS: usize = 1_000;
    let cluster = Cluster::start(&[("max_worker_processes", "16"), ("recsync.max_writers", "2")]);
    let api = Api::start();
    let mut db = cluster.database();
    db.slow_items(&api, "", ROWS, Duration::from_millis(2));
    db.wait_until_writers_store(2);
    let mut other = db.connect();
    let mut holder = other.transaction().unwrap();
    holder
        .batch_execute("LOCK TABLE item_embedding_g1 IN SHARE MODE")
        .unwrap();
    wait_until(
        PATIENCE,
        "both writers are in the middle of a store",
        || {
            db.one("SELECT count(DISTINCT pid) = 2 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND a.backend_type = 'recsync writer'")
        },
    );
    let stored: i64 = db.one("SELECT count(*) FROM item_embedding");
    assert!(stored < ROWS as i64, "some are in the writers' hands");
    db.run("SELECT recsync.alter_pipeline('item_embedding', content => $$ 'item ' || title $$, row_filter => 'id <> 500')");
    db.run("UPDATE item SET title = 'changed ' || id WHERE id % 50 = 0; DELETE FROM item WHERE id % 70 = 0");
    db.store_takes(Duration::ZERO);
    holder.commit().unwrap();
    db.settle("item_embedding");
    db.assert_in_step(
        &api,
        "SELECT COALESCE(i.id, e.id)::text, CASE WHEN i.id <> 500 THEN 'item ' || i.title END, e.embedding::text
           FROM item i FULL JOIN item_embedding e ON e.id = i.id",
    );
    let texts = api.texts();
    for text in texts.iter().filter(|text| text.starts_with("item ")) {
        assert_eq!(api.times_asked(text), 1, "{text}");
    }
    let left: i64 = db.one(
        "SELECT (SELECT count(*) FROM recsync.job) + (SELECT count(*) FROM recsync.dead_letter)",
    );
    assert_eq!(left, 0);
}

#[test]
fn vectors_that_wait_for_rows_of_a_column_which_users_have_locked_give_way_to_the_new_ones() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text); INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 20) i");
    db.run("SELECT recsync.create_pipeline('e', 'item', columns => '{title}', server => 'api', index => 'none', into_column => 'v')");
    db.settle("e");
    api.hold();
    db.run("UPDATE item SET title = 'changed ' || id");
    api.wait_until_held(1);
    let (mut one, mut other) = (db.connect(), db.connect());
    let mut changes = one.transaction().unwrap();
    changes
        .batch_execute("UPDATE item SET title = 'changed twice' WHERE id = 1")
        .unwrap();
    let mut looks = other.transaction().unwrap();
    looks
        .batch_execute("SELECT FROM item WHERE id IN (2, 3) FOR UPDATE")
        .unwrap();
    let now: String = db.one("SELECT clock_timestamp()::text");
    api.release();
    wait_until(PATIENCE, "all others are stored", || {
        db.one(&format!(
            "SELECT count(*) = 17 FROM e_g1 WHERE embedded_at > '{now}'"
        ))
    });
    alter(
        &mut db,
        "content => $$ 'item ' || title $$, row_filter => $$ title <> 'changed 3' $$",
    );
    const COLUMN: &str = "SELECT id::text, CASE WHEN title <> 'changed 3' THEN 'item ' || title END, v::text FROM item";
    wait_until(PATIENCE, "the others have their new vectors", || {
        let vectors: Vec<String> =
            db.column("SELECT 'item ' || title || '|' || v::text FROM item WHERE id > 3");
        vectors.iter().all(|row| {
            let (text, vector) = row.split_once('|').unwrap();
            api.is_vector_of(vector, text)
        })
    });
    changes.commit().unwrap();
    looks.rollback().unwrap();
    db.settle("e");
    db.assert_in_step(&api, COLUMN);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM e"), 19);
}
