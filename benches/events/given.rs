//! Events as others send them. It never sends the same one twice.

use std::sync::LazyLock;

use serde_json::{Value, json};

/// The text of an event, by its number, where the first so many rows were there before.
type Event = fn(number: usize, rows: usize) -> String;

pub const KINDS: [(&str, Event); 4] = [
    ("inserts", insert),
    ("upserts of rows that are there, with a `sequence`", upsert),
    ("Debezium's, without schema", bare),
    ("Debezium's, with schema", described),
];

fn insert(number: usize, _: usize) -> String {
    format!(
        r#"{{"event_id": "i{number}", "operation": "insert", "table": "item", "record_id": {number}, "data": {{"title": "item {number}", "stock": 3}}}}"#
    )
}

/// Of the rows that the first inserts have made: their keys' sequences are known.
fn upsert(number: usize, rows: usize) -> String {
    let id = number % rows;
    format!(
        r#"{{"event_id": "u{number}", "operation": "upsert", "table": "item", "record_id": {id}, "data": {{"title": "new {number}", "stock": 4}}, "sequence": {number}}}"#
    )
}

fn bare(number: usize, _: usize) -> String {
    payload("bare", number)
}

fn described(number: usize, _: usize) -> String {
    static SCHEMA: LazyLock<String> = LazyLock::new(|| schema().to_string());
    let payload = payload("described", number);
    format!(r#"{{"schema": {}, "payload": {payload}}}"#, *SCHEMA)
}

/// As its connector for PostgreSQL writes it.
fn payload(schema: &str, number: usize) -> String {
    format!(
        r#"{{"before": null, "after": {{"id": {number}, "title": "item {number}", "stock": 3}},
            "source": {{"version": "3.0.0.Final", "connector": "postgresql", "name": "shop", "ts_ms": 1700000000123, "snapshot": "false", "db": "shop",
                        "sequence": "[null,\"{number}\"]", "ts_us": 1700000000123456, "ts_ns": 1700000000123456000,
                        "schema": "{schema}", "table": "item", "txId": {number}, "lsn": {number}, "xmin": null}},
            "transaction": null, "op": "c", "ts_ms": 1700000000456, "ts_us": 1700000000456789, "ts_ns": 1700000000456789000}}"#
    )
}

/// What Kafka Connect's converter puts beside each of them.
fn schema() -> Value {
    let field = |kind: &str, optional: bool, name: &str| json!({"type": kind, "optional": optional, "field": name});
    let row = |name: &str| {
        json!({"type": "struct", "optional": true, "name": "shop.described.item.Value", "field": name,
               "fields": [field("int32", false, "id"), field("string", false, "title"), field("int32", false, "stock")]})
    };
    let source = json!({"type": "struct", "optional": false, "name": "io.debezium.connector.postgresql.Source", "version": 1, "field": "source", "fields": [
        field("string", false, "version"), field("string", false, "connector"), field("string", false, "name"), field("int64", false, "ts_ms"),
        json!({"type": "string", "optional": true, "name": "io.debezium.data.Enum", "version": 1, "parameters": {"allowed": "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"}, "default": "false", "field": "snapshot"}),
        field("string", false, "db"), field("string", true, "sequence"), field("int64", true, "ts_us"), field("int64", true, "ts_ns"),
        field("string", false, "schema"), field("string", false, "table"), field("int64", true, "txId"), field("int64", true, "lsn"), field("int64", true, "xmin")]});
    let transaction = json!({"type": "struct", "optional": true, "name": "event.block", "version": 1, "field": "transaction",
        "fields": [field("string", false, "id"), field("int64", false, "total_order"), field("int64", false, "data_collection_order")]});
    json!({"type": "struct", "optional": false, "name": "shop.described.item.Envelope", "version": 2,
           "fields": [row("before"), row("after"), source, transaction, field("string", false, "op"),
                      field("int64", true, "ts_ms"), field("int64", true, "ts_us"), field("int64", true, "ts_ns")]})
}
