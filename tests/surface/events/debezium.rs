//! Debezium's envelopes as its connectors for PostgreSQL and MySQL write them.

use super::{apply, report};
use crate::support::{Sql, shared};

/// A change of inventory.customers on a PostgreSQL server, without schema.
fn postgresql(op: &str, before: &str, after: &str, lsn: i64) -> String {
    format!(
        r#"{{"before": {before}, "after": {after},
            "source": {{"version": "3.0.0.Final", "connector": "postgresql", "name": "shop", "ts_ms": 1700000000123, "snapshot": "false", "db": "shop",
                        "sequence": "[null,\"{lsn}\"]", "schema": "inventory", "table": "customers", "txId": 555, "lsn": {lsn}, "xmin": null}},
            "op": "{op}", "ts_ms": 1700000000456, "transaction": null}}"#
    )
}

#[test]
fn changes_of_postgresql_are_applied_once_and_in_order() {
    let mut db = shared().database();
    db.run("CREATE SCHEMA inventory; CREATE TABLE inventory.customers (id int PRIMARY KEY, name text NOT NULL, note text)");
    let row = |id: i32, name: &str, note: &str| {
        format!(r#"{{"id": {id}, "name": "{name}", "note": {note}}}"#)
    };
    let events = [
        postgresql("r", "null", &row(1, "Anne", "\"first\""), 100),
        postgresql("c", "null", &row(2, "Ben", "null"), 110),
        postgresql(
            "u",
            "null",
            &row(1, "Anna", "\"__debezium_unavailable_value\""),
            120,
        ),
        postgresql("d", r#"{"id": 2, "name": null, "note": null}"#, "null", 130),
        "null".into(),
        postgresql("m", "null", "null", 131),
    ];
    let batch = format!("[{}]", events.join(","));
    let outcomes: Vec<String> = db.column(&format!(
        "SELECT outcome FROM recsync.apply_events_report($e${batch}$e$)"
    ));
    assert_eq!(
        outcomes,
        [
            "applied", "applied", "applied", "applied", "ignored", "ignored"
        ]
    );
    let rows = "SELECT concat_ws(' ', id, name, note) FROM inventory.customers ORDER BY id";
    assert_eq!(
        db.column::<String>(rows),
        ["1 Anna first"],
        "what was not sent stays"
    );
    assert_eq!(apply(&mut db, &batch), 0);
    // Read again from another place of the topic: it is older than what is there.
    let late = postgresql("u", "null", &row(1, "Old", "null"), 115);
    assert!(report(&mut db, &late, "abort")[0].ends_with(" outdated"));
    let truncate = postgresql("t", "null", "null", 140);
    let refused = db.refused(&format!("SELECT recsync.apply_events($e${truncate}$e$)"));
    assert_eq!(refused.code().code(), "0A000");
    assert!(refused.detail().unwrap().contains("Field: op."));
    assert_eq!(db.column::<String>(rows), ["1 Anna first"]);
    // One transaction may change a key: two events of one position.
    let moved = format!(
        "[{},{}]",
        postgresql("d", r#"{"id": 1}"#, "null", 150),
        postgresql("c", "null", &row(7, "Anna", "null"), 150)
    );
    assert_eq!(apply(&mut db, &moved), 2);
    assert_eq!(db.column::<String>(rows), ["7 Anna"]);
}

#[test]
fn schema_says_what_values_mean() {
    let mut db = shared().database();
    db.run(
        "CREATE SCHEMA shop; CREATE TABLE shop.orders (id bigint PRIMARY KEY, price numeric(10,2), born date, at timestamp, placed timestamptz, opens time, doc jsonb, raw bytea, note text)",
    );
    let event = r#"{
      "schema": {"type": "struct", "name": "mysql.shop.orders.Envelope", "fields": [
        {"type": "struct", "field": "before", "fields": []},
        {"type": "struct", "optional": true, "field": "after", "fields": [
          {"type": "int64", "optional": false, "field": "id"},
          {"type": "bytes", "optional": true, "name": "org.apache.kafka.connect.data.Decimal", "version": 1, "parameters": {"scale": "2", "connect.decimal.precision": "10"}, "field": "price"},
          {"type": "int32", "optional": true, "name": "io.debezium.time.Date", "version": 1, "field": "born"},
          {"type": "int64", "optional": true, "name": "io.debezium.time.MicroTimestamp", "version": 1, "field": "at"},
          {"type": "string", "optional": true, "name": "io.debezium.time.ZonedTimestamp", "version": 1, "field": "placed"},
          {"type": "int64", "optional": true, "name": "io.debezium.time.MicroTime", "version": 1, "field": "opens"},
          {"type": "string", "optional": true, "name": "io.debezium.data.Json", "version": 1, "field": "doc"},
          {"type": "bytes", "optional": true, "field": "raw"},
          {"type": "string", "optional": true, "field": "note"}]},
        {"type": "struct", "field": "source", "fields": []},
        {"type": "string", "field": "op"}]},
      "payload": {"before": null,
        "after": {"id": 9007199254740993, "price": "z8c=", "born": 19782, "at": 1709210096789012, "placed": "2024-02-29T12:34:56Z", "opens": 45296789012,
                  "doc": "{\"a\": [1.50]}", "raw": "AP8n", "note": null},
        "source": {"version": "3.0.0.Final", "connector": "mysql", "name": "mysql", "ts_ms": 1709210096000, "snapshot": "false", "db": "shop", "table": "orders",
                   "server_id": 223344, "gtid": null, "file": "mysql-bin.000003", "pos": 484, "row": 0},
        "op": "c", "ts_ms": 1709210096100}}"#;
    db.run("SET timezone = 'Asia/Kolkata'");
    assert_eq!(apply(&mut db, event), 1);
    db.run("SET timezone = 'UTC'");
    assert_eq!(
        db.one::<String>("SELECT o::text FROM shop.orders o"),
        r#"(9007199254740993,-123.45,2024-02-29,"2024-02-29 12:34:56.789012","2024-02-29 12:34:56+00",12:34:56.789012,"{""a"": [1.50]}","\\x00ff27",)"#
    );
    assert_eq!(
        apply(&mut db, event),
        0,
        "by the position in the binary log"
    );
    assert_eq!(
        apply(&mut db, &event.replace("\"pos\": 484", "\"pos\": 500")),
        1
    );
    assert_eq!(apply(&mut db, r#"{"schema": null, "payload": null}"#), 0);
    // Without the schema a number is a number, and no date.
    let bare = event
        .replace("\"schema\": {\"type\"", "\"other\": {\"type\"")
        .replace("484", "600");
    let refused = db.refused(&format!("SELECT recsync.apply_events($e${bare}$e$)"));
    assert_eq!(&refused.code().code()[..2], "22");
}
