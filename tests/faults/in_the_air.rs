//! Pauses, resumptions and changes of a server while its requests are in the air: what they bring is for a
//! declaration that is no more.

use std::time::{Duration, Instant};

use crate::subject::{ROWS, Subject};
use crate::support::{Api, Fault, PATIENCE, Sql, wait_until};

#[test]
fn vectors_of_a_model_that_is_no_more_are_not_stored_as_the_new_ones() {
    let mut subject = Subject::new("");
    let newer = Api::of_model("newer", subject.api.dimensions());
    subject.api.hold();
    subject.insert(ROWS);
    subject.api.wait_until_held(1);
    let alter = format!(
        "ALTER SERVER api OPTIONS (SET model 'newer', SET url '{}')",
        newer.url()
    );
    subject.db.run(&alter);
    wait_until(PATIENCE, "the new model is asked", || {
        newer.requests_made() > 0
    });
    subject.api.release();
    subject.db.settle("item_embedding");
    subject.db.assert_items_in_step(&newer);
    assert_eq!(
        subject
            .db
            .column::<String>("SELECT DISTINCT model FROM item_embedding"),
        ["newer"]
    );
    assert_eq!(newer.requests_made(), 1);
}

#[test]
fn other_address_of_the_same_model_is_asked_once_and_the_old_answer_is_not_believed() {
    let mut subject = Subject::new("");
    let moved = Api::of_model("moved", subject.api.dimensions());
    subject.api.hold();
    subject.insert(ROWS);
    subject.api.wait_until_held(1);
    subject.db.run(&format!(
        "ALTER SERVER api OPTIONS (SET url '{}')",
        moved.url()
    ));
    wait_until(PATIENCE, "the new address is asked", || {
        moved.requests_made() > 0
    });
    subject.api.release();
    subject.db.settle("item_embedding");
    subject.db.assert_items_in_step(&moved);
    assert_eq!(moved.requests_made(), 1);
}

#[test]
fn refusal_that_comes_after_the_server_was_mended_pauses_nothing() {
    let mut subject = Subject::new("");
    let good = Api::start();
    subject.api.accept_only_key("unknown");
    subject.api.hold();
    subject.insert(ROWS);
    subject.api.wait_until_held(1);
    subject.db.run(&format!(
        "ALTER SERVER api OPTIONS (SET url '{}')",
        good.url()
    ));
    wait_until(PATIENCE, "the new address is asked", || {
        good.requests_made() > 0
    });
    subject.api.release();
    subject.db.pause(Duration::from_millis(200));
    subject.db.settle("item_embedding");
    subject.db.assert_items_in_step(&good);
    assert_ne!(subject.state(), "paused");
}

#[test]
fn answer_from_before_a_pause_does_not_end_what_has_changed_since() {
    let mut subject = Subject::new("max_batch_inputs '1'");
    const ROWS: i32 = 400;
    subject.insert(ROWS);
    subject.settle_in_step();
    subject.api.hold_texts_with("older");
    subject.db.run(&format!(
        "UPDATE item SET title = 'older' WHERE id = {ROWS}"
    ));
    subject.api.wait_until_held(1);
    subject.db.run("SELECT recsync.pause('item_embedding')");
    wait_until(PATIENCE, "the worker has let go of it", || {
        subject.db.one("SELECT in_flight = 0 FROM recsync.status")
    });
    // The last row is far behind the others when the pipeline goes on, and the older answer comes meanwhile.
    subject.db.run("UPDATE item SET title = 'newer ' || id");
    subject.api.hold_texts_with("newer");
    subject.db.run("SELECT recsync.resume('item_embedding')");
    subject.api.wait_until_held(2);
    subject.api.release_but_hold_texts_with("newer");
    wait_until(PATIENCE, "the older answer has gone out", || {
        subject.api.held() == 1
    });
    subject.db.pause(Duration::from_millis(200));
    subject.api.release();
    subject.settle_in_step();
}

#[test]
fn pause_while_jobs_are_leased_lets_go_of_them_at_once() {
    let mut subject = Subject::new("");
    // What rests for long is written down, under a lease.
    subject.api.play_always(Some(Fault::Status(503)));
    subject.insert(ROWS);
    wait_until(PATIENCE, "its jobs are leased", || {
        subject
            .db
            .one("SELECT count(*) > 0 FROM recsync.job WHERE leased_until IS NOT NULL")
    });
    subject.api.play_always(Some(Fault::Status(401)));
    subject.paused_because();
    subject.api.play_always(None);
    subject.db.run("SELECT recsync.resume('item_embedding')");
    let resumed = Instant::now();
    subject.settle_in_step();
    let took = resumed.elapsed();
    assert!(
        took < Duration::from_secs(5),
        "settled {took:?} after it was resumed"
    );
}

#[test]
fn pipeline_that_is_dropped_and_made_anew_takes_nothing_of_the_old_one() {
    let mut subject = Subject::new("");
    subject.api.hold();
    subject.insert(ROWS);
    subject.api.wait_until_held(1);
    subject
        .db
        .run("SELECT recsync.drop_pipeline('item_embedding')");
    subject.db.run("UPDATE item SET title = 'made anew ' || id");
    subject.db.pipeline("item_embedding", "item");
    subject.api.release();
    subject.settle_in_step();
    assert_eq!(subject.sizes(), [4, 4]);
}
