//! How many events a second one session applies. Not asserted: it depends on the machine.

use std::time::Instant;

use super::{apply, items};
use crate::support::{Database, Sql};

const BATCHES: usize = 60;
const BATCH: usize = 500;

fn measure(db: &mut Database, what: &str, event: impl Fn(usize) -> String) {
    let batches: Vec<String> = (0..BATCHES)
        .map(|batch| {
            let events = (0..BATCH).map(|number| event(batch * BATCH + number));
            format!("[{}]", events.collect::<Vec<_>>().join(","))
        })
        .collect();
    let started = Instant::now();
    let applied: i64 = batches.iter().map(|events| apply(db, events)).sum();
    let took = started.elapsed();
    assert_eq!(applied as usize, BATCHES * BATCH);
    println!(
        "{what}: {:.0} events/s in batches of {BATCH}",
        applied as f64 / took.as_secs_f64()
    );
}

#[test]
#[ignore = "a measurement: run it by its name, with a library built for release"]
fn events_a_second() {
    let mut db = items();
    db.run("CREATE SCHEMA shop; CREATE TABLE shop.item (LIKE item INCLUDING ALL)");
    measure(&mut db, "inserts", |n| {
        format!(
            r#"{{"event_id": "i{n}", "operation": "insert", "table": "item", "record_id": {n}, "data": {{"title": "item {n}", "stock": 3}}}}"#
        )
    });
    measure(
        &mut db,
        "upserts of rows that are there, with a sequence",
        |n| {
            format!(
                r#"{{"event_id": "u{n}", "operation": "upsert", "table": "item", "record_id": {n}, "data": {{"title": "new {n}", "stock": 4}}, "sequence": {n}}}"#
            )
        },
    );
    measure(&mut db, "Debezium's", |n| {
        format!(
            r#"{{"before": null, "after": {{"id": {n}, "title": "item {n}", "stock": 3}}, "op": "c", "ts_ms": 1700000000456,
                "source": {{"connector": "postgresql", "name": "shop", "ts_ms": 1700000000123, "schema": "shop", "table": "item", "txId": {n}, "lsn": {n}}}}}"#
        )
    });
}
