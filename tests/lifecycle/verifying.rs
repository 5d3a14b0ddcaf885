//! verify, verify_rows, repair: what nobody captured is found, and only that is paid for.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::{Api, Database, Sql, by_hand};

/// Table `item` with so many rows, all of which have their vector.
fn items<'a>(api: &Api, count: i32) -> Database<'a> {
    let mut db = by_hand().database();
    db.items(api, "");
    fill(&mut db, count);
    db
}

fn fill(db: &mut Database, count: i32) {
    db.run(&format!(
        "INSERT INTO item (id, title) SELECT i, 'row ' || i FROM generate_series(1, {count}) i"
    ));
    db.settle("item_embedding");
    assert_eq!(verify(db), [0; 4]);
}

/// What no trigger sees.
fn unseen(db: &mut Database, sql: &str) {
    db.run(&format!(
        "SET session_replication_role = replica; {sql}; RESET session_replication_role"
    ));
}

/// Missing, stale, orphaned, wrong model.
#[track_caller]
fn verify(db: &mut Database) -> [i64; 4] {
    let row = &db
        .rows("SELECT missing, stale, orphaned, wrong_model FROM recsync.verify('item_embedding')")
        [0];
    [0, 1, 2, 3].map(|column| row.get(column))
}

#[track_caller]
fn listed(db: &mut Database) -> Vec<String> {
    db.column(
        "SELECT fault || ' ' || key FROM recsync.verify_rows('item_embedding') ORDER BY fault, key",
    )
}

/// Repairs, waits, and gives the texts that were sent for it, and how many rows were queued.
#[track_caller]
fn repair(db: &mut Database, api: &Api) -> (i64, Vec<String>) {
    api.forget();
    let queued = db.one("SELECT recsync.repair('item_embedding')");
    db.settle("item_embedding");
    assert_eq!(verify(db), [0; 4], "after the repair");
    let mut texts = api.texts();
    texts.sort();
    (queued, texts)
}

#[test]
fn what_was_written_behind_the_triggers_is_counted_listed_and_repaired_and_nothing_else_is_paid_for()
 {
    let api = Api::start();
    let mut db = items(&api, 2_500);
    api.forget();
    unseen(
        &mut db,
        "INSERT INTO item VALUES (2501, 'loaded'), (2502, NULL), (2503, ''), (-1, 'first');
         UPDATE item SET title = 'changed ' || id WHERE id IN (20, 1000, 1001);
         UPDATE item SET stock = 7 WHERE id < 500;
         UPDATE item SET title = NULL WHERE id = 31; UPDATE item SET title = '' WHERE id = 32;
         DELETE FROM item WHERE id IN (30, 2500)",
    );
    db.run("DELETE FROM item_embedding_g1 WHERE id IN (10, 1500)");
    db.run("UPDATE item_embedding_g1 SET model = 'another' WHERE id IN (40, 41)");
    assert_eq!(verify(&mut db), [4, 3, 4, 2]);
    assert_eq!(
        listed(&mut db),
        [
            r#"missing {"id": -1}"#,
            r#"missing {"id": 10}"#,
            r#"missing {"id": 1500}"#,
            r#"missing {"id": 2501}"#,
            r#"orphaned {"id": 30}"#,
            r#"orphaned {"id": 31}"#,
            r#"orphaned {"id": 32}"#,
            r#"orphaned {"id": 2500}"#,
            r#"stale {"id": 20}"#,
            r#"stale {"id": 1000}"#,
            r#"stale {"id": 1001}"#,
            r#"wrong_model {"id": 40}"#,
            r#"wrong_model {"id": 41}"#,
        ]
    );
    assert_eq!(api.requests_made(), 0, "looking costs nothing");
    let (queued, texts) = repair(&mut db, &api);
    assert_eq!(queued, 13);
    assert_eq!(
        texts,
        [
            "changed 1000",
            "changed 1001",
            "changed 20",
            "first",
            "loaded",
            "row 10",
            "row 1500",
            "row 40",
            "row 41"
        ]
    );
    db.assert_items_in_step(&api);
    assert_eq!(
        db.one::<i64>("SELECT recsync.repair('item_embedding')"),
        0,
        "there is nothing left to repair"
    );
    assert_eq!(listed(&mut db), [""; 0]);
}

#[test]
fn a_truncate_of_the_vectors_is_repaired_row_by_row_and_one_of_the_rows_too() {
    let api = Api::start();
    let mut db = items(&api, 1_100);
    db.run("TRUNCATE item_embedding_g1");
    assert_eq!(verify(&mut db), [1_100, 0, 0, 0]);
    let (queued, texts) = repair(&mut db, &api);
    assert_eq!((queued, texts.len()), (1_100, 1_100));
    db.assert_items_in_step(&api);
    unseen(&mut db, "TRUNCATE item");
    assert_eq!(verify(&mut db), [0, 0, 1_100, 0]);
    assert_eq!(repair(&mut db, &api), (1_100, vec![]));
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding_g1"), 0);
}

#[test]
fn a_column_is_compared_by_the_vector_that_it_holds() {
    let api = Api::start();
    let mut db = by_hand().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'none', into_column => 'embedding')");
    fill(&mut db, 1_200);
    unseen(
        &mut db,
        "INSERT INTO item VALUES (2001, 'loaded');
         UPDATE item SET embedding = NULL WHERE id = 1;
         UPDATE item SET embedding = array_fill(1, ARRAY[16])::vector WHERE id = 2;
         UPDATE item SET title = 'changed' WHERE id = 3;
         INSERT INTO item SELECT 2002, 'with a vector', 0, array_fill(1, ARRAY[16])::vector;
         UPDATE item SET title = NULL WHERE id = 4;
         DELETE FROM item WHERE id = 5;
         INSERT INTO item SELECT 2003, NULL, 0, array_fill(1, ARRAY[16])::vector",
    );
    db.run("UPDATE item_embedding_g1 SET model = 'another' WHERE id = 6");
    assert_eq!(
        listed(&mut db),
        [
            r#"missing {"id": 1}"#,
            r#"missing {"id": 2001}"#,
            r#"orphaned {"id": 4}"#,
            r#"orphaned {"id": 5}"#,
            r#"orphaned {"id": 2003}"#,
            r#"stale {"id": 2}"#,
            r#"stale {"id": 3}"#,
            r#"stale {"id": 2002}"#,
            r#"wrong_model {"id": 6}"#,
        ]
    );
    assert_eq!(verify(&mut db), [2, 3, 3, 1]);
    let (queued, texts) = repair(&mut db, &api);
    assert_eq!(queued, 9);
    assert_eq!(
        texts,
        [
            "changed",
            "loaded",
            "row 1",
            "row 2",
            "row 6",
            "with a vector"
        ]
    );
    db.assert_in_step(&api, "SELECT id::text, title, embedding::text FROM item");
    db.assert_items_in_step(&api);
}

#[test]
fn a_row_that_cannot_be_rendered_hides_no_other_and_becomes_a_dead_letter_that_is_not_counted() {
    let api = Api::start();
    let mut db = by_hand().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 1)");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', content => $$title || repeat('', 1 / stock)$$, server => 'api', index => 'none')");
    fill(&mut db, 600);
    unseen(
        &mut db,
        "UPDATE item SET stock = 0 WHERE id = 300; UPDATE item SET title = 'changed' WHERE id IN (299, 301)",
    );
    assert_eq!(verify(&mut db), [0, 3, 0, 0]);
    let (queued, texts) = repair(&mut db, &api);
    assert_eq!((queued, texts), (3, vec!["changed".to_owned()]));
    assert_eq!(
        db.column::<String>("SELECT record_key::text FROM recsync.dead_letter"),
        ["{300}"]
    );
    // What is known to be bad is not queued by each repair; it goes with its row.
    assert_eq!(repair(&mut db, &api), (0, vec![]));
    unseen(&mut db, "DELETE FROM item WHERE id = 300");
    assert_eq!(verify(&mut db), [0, 0, 1, 0]);
    assert_eq!(repair(&mut db, &api), (1, vec![]));
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
}

#[test]
fn a_text_is_compared_as_the_worker_renders_it_whatever_the_session_is_set_to() {
    let api = Api::start();
    let mut db = by_hand().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (day date, at timestamptz, part numeric, \"No\" bigint, on_sale boolean, title text, took interval NOT NULL DEFAULT '-1 day 2 hours',
                               PRIMARY KEY (day, at, part, \"No\", on_sale))");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', content => $$title || at || day || took$$, server => 'api', index => 'none')");
    db.run("INSERT INTO item SELECT '2026-02-01'::date + i % 3, '2026-03-04 05:06:07.89+00'::timestamptz + i * interval '1 h', i % 7 / 2.0, i, i % 2 = 0, 'row ' || i FROM generate_series(1, 1500) i");
    db.settle("item_embedding");
    db.run("SET timezone = 'Asia/Tokyo'; SET datestyle = 'SQL, DMY'; SET intervalstyle = 'sql_standard'; SET extra_float_digits = 0; SET bytea_output = 'escape'");
    assert_eq!(verify(&mut db), [0; 4]);
    assert_eq!(
        db.one::<i64>("SELECT rows FROM recsync.estimate('item_embedding')"),
        0
    );
    unseen(
        &mut db,
        "UPDATE item SET title = 'changed' WHERE \"No\" = 1234; DELETE FROM item WHERE \"No\" = 7",
    );
    assert_eq!(
        listed(&mut db),
        [
            r#"orphaned {"No": 7, "at": "2026-03-04 12:06:07.89+00", "day": "2026-02-02", "part": "0.00000000000000000000", "on_sale": false}"#,
            r#"stale {"No": 1234, "at": "2026-04-24 15:06:07.89+00", "day": "2026-02-02", "part": "1.00000000000000000000", "on_sale": true}"#,
        ]
    );
    let (queued, texts) = repair(&mut db, &api);
    assert_eq!((queued, texts.len()), (2, 1));
}

/// Memory of a process that is its own.
fn memory_kb(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let digits = line.unwrap().split_ascii_whitespace().next();
    digits.unwrap().parse().unwrap()
}

#[test]
fn the_memory_of_a_verify_does_not_grow_with_the_faults_that_it_finds() {
    let mut db = by_hand().database();
    db.run("CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin')");
    for (count, name) in [(3_000, "small"), (60_000, "large")] {
        db.run(&format!("CREATE TABLE {name} (id int PRIMARY KEY, title text); INSERT INTO {name} SELECT i, repeat('row ' || i, 50) FROM generate_series(1, {count}) i"));
        db.run(&format!("SELECT recsync.create_pipeline('{name}_embedding', '{name}', columns => '{{title}}', server => 'local', backfill => false)"));
    }
    db.run("SET work_mem = '64kB'");
    let pid = db.one("SELECT pg_backend_pid()");
    let missing = |name: &str| format!("SELECT missing FROM recsync.verify('{name}_embedding')");
    let listed = |name: &str| {
        format!(
            "SELECT count(*) FROM recsync.verify_rows('{name}_embedding') WHERE fault = 'missing'"
        )
    };
    for query in [missing, listed] {
        assert_eq!(db.one::<i64>(&query("small")), 3_000);
        let (before, over) = (memory_kb(pid), AtomicBool::new(false));
        let most = thread::scope(|scope| {
            let most = scope.spawn(|| {
                let mut most = 0;
                while !over.load(Ordering::SeqCst) {
                    most = memory_kb(pid).max(most);
                    thread::sleep(Duration::from_millis(5));
                }
                most
            });
            let found = db.one::<i64>(&query("large"));
            over.store(true, Ordering::SeqCst);
            assert_eq!(found, 60_000);
            most.join().unwrap()
        });
        println!("{before} kB, {most} kB");
        assert!(
            most < before + 8_000,
            "{before} kB before, {most} kB at most"
        );
    }
}
