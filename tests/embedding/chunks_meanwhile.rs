//! Chunks of a row while requests fail, rows change, and processes end or share the work.

use std::collections::HashSet;

use crate::chunks::{assert_in_step, chunks, declare, items, put, sent};
use crate::long_texts::story;
use crate::support::{Api, Cluster, PATIENCE, Sql, shared, wait_until};

#[test]
fn new_chunks_are_never_seen_beside_old_ones_and_a_bad_one_is_named() {
    let api = Api::start();
    let mut db = items(&api);
    let text = story(1, 1..=60);
    sent(&mut db, &api, 1, &text);
    let state = "SELECT md5(string_agg(chunk || encode(content_hash, 'hex'), ',' ORDER BY chunk)) FROM item_embedding";
    let before: String = db.one(state);
    api.refuse_texts_with("bad", 422);
    let edited = text
        .replace("Sentence 10 of", "Sentence 10, a good one, of")
        .replace("Sentence 50 of", "Sentence 50, a bad one, of");
    put(&mut db, 1, &edited);
    db.settle("item_embedding");
    assert_eq!(db.one::<String>(state), before, "all or none");
    let message: String = db.one("SELECT message FROM recsync.dead_letter");
    assert!(
        message.contains("chunk ") && message.contains(" of "),
        "{message}"
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 1);
    // What was paid for is not paid for again.
    assert!(api.texts().iter().any(|text| text.contains("a good one")));
    let paid = api.texts().len();
    api.refuse_nothing();
    db.run("SELECT recsync.retry_dead_letters('item_embedding')");
    db.settle("item_embedding");
    assert_in_step(&mut db, &api);
    let again = api.texts().split_off(paid);
    assert!(
        again.iter().all(|text| !text.contains("a good one")),
        "{again:?}"
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
}

#[test]
fn a_row_of_more_chunks_than_a_request_takes_is_asked_for_in_several() {
    let api = Api::start();
    let mut db = shared().database();
    declare(
        &mut db,
        &api,
        "max_batch_inputs '7', max_concurrency '2'",
        "none",
    );
    db.run("BEGIN");
    for id in 1..=6 {
        put(&mut db, id, &story(id, 1..=60));
    }
    db.run("COMMIT");
    db.settle("item_embedding");
    assert_in_step(&mut db, &api);
    let requests = api.requests();
    assert!(requests.iter().all(|request| request.inputs.len() <= 7));
    let inputs = api.texts();
    assert_eq!(
        inputs.iter().collect::<HashSet<_>>().len(),
        inputs.len(),
        "each once"
    );
    let full = requests
        .iter()
        .filter(|request| request.inputs.len() == 7)
        .count();
    assert!(
        full * 10 >= requests.len() * 7,
        "{full} of {} are full",
        requests.len()
    );
}

#[test]
fn a_row_that_changes_while_its_chunks_are_in_flight_ends_with_the_last_text() {
    let api = Api::start();
    let mut db = shared().database();
    declare(
        &mut db,
        &api,
        "max_batch_inputs '5', max_concurrency '1'",
        "none",
    );
    api.hold_texts_with("Sentence 40 of");
    put(&mut db, 1, &story(1, 1..=60));
    api.wait_until_held(1);
    let edited = story(1, 1..=60).replace("Sentence 41 of", "Sentence 41, another, of");
    put(&mut db, 1, &edited);
    api.release();
    db.settle("item_embedding");
    assert_in_step(&mut db, &api);
    let first: Vec<String> = api
        .texts()
        .into_iter()
        .filter(|text| text.contains("Sentence 1 of"))
        .collect();
    assert_eq!(first.len(), 1, "what had come is known");
}

#[test]
fn invariant_1_a_crash_between_requests_or_before_the_store_loses_nothing() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = cluster.database();
    declare(
        &mut db,
        &api,
        "max_batch_inputs '5', max_concurrency '1'",
        "none",
    );
    let text = story(1, 1..=60);
    api.hold_texts_with("Sentence 40 of");
    put(&mut db, 1, &text);
    api.wait_until_held(1);
    db.kill9_worker();
    api.release();
    db.settle("item_embedding");
    assert_in_step(&mut db, &api);
    let count = chunks(&mut db, 1) as usize;
    assert!(api.texts().len() <= 2 * count);

    let mut other = db.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("LOCK TABLE item_embedding_g1 IN SHARE MODE")
        .unwrap();
    put(
        &mut db,
        1,
        &text.replace("Sentence 30 of", "Sentence 30, another, of"),
    );
    db.wait_until_worker_waits_for_lock();
    db.kill9_worker();
    drop(lock.commit());
    db.settle("item_embedding");
    assert_in_step(&mut db, &api);
}

#[test]
fn writers_store_chunks_as_the_worker_does() {
    let cluster = Cluster::start(&[
        ("max_worker_processes", "16"),
        ("recsync.max_writers", "2"),
        ("recsync.index_min_rows", "0"),
    ]);
    let api = Api::start();
    let mut db = cluster.database();
    declare(&mut db, &api, "", "hnsw");
    put(&mut db, 0, &story(0, 1..=10));
    db.settle("item_embedding");
    wait_until(PATIENCE, "the index is there", || {
        db.one("SELECT count(*) = 1 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indisvalid AND c.relname LIKE 'item_embedding_g1_hnsw%'")
    });
    db.run("CREATE TABLE stored_by (pid int);
            CREATE FUNCTION note_pid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.stored_by VALUES (pg_backend_pid()); PERFORM pg_sleep(0.002); RETURN NEW; END $$;
            CREATE TRIGGER note AFTER INSERT OR UPDATE ON item_embedding_g1 FOR EACH ROW EXECUTE FUNCTION note_pid()");
    db.run("BEGIN");
    for id in 1..=400 {
        put(&mut db, id, &story(id, 1..=12));
    }
    db.run("COMMIT");
    db.settle("item_embedding");
    assert_in_step(&mut db, &api);
    let worker = db.worker();
    let by_others: i64 = db.one(&format!(
        "SELECT count(*) FROM stored_by WHERE pid <> {worker}"
    ));
    assert!(by_others > 100, "{by_others}");
}
