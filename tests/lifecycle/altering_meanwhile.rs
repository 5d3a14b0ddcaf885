//! alter_pipeline while rows change and texts are in the air.

use std::time::Duration;

use crate::altering::{alter, assert_texts, declared, items};
use crate::support::{Api, PATIENCE, Sql, shared, wait_until};

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
