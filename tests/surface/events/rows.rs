//! Values, keys and tables of all kinds.

use super::{apply, report};
use crate::support::{Sql, shared};

#[test]
fn values_are_what_their_columns_types_read() {
    let mut db = shared().database();
    db.run(
        r#"CREATE TYPE mood AS ENUM ('sad', 'fine'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN must AS int NOT NULL;
           CREATE TABLE wide (id uuid PRIMARY KEY, n numeric, b bigint, d double precision, f boolean, t text, v varchar(5), tz timestamptz, iv interval, ints int[], texts text[][],
             j json, jb jsonb, m mood, p pair, r int4range, by bytea, vec vector(3), must must DEFAULT 3)"#,
    );
    db.run("SET timezone = 'Europe/Berlin'");
    let event = r#"{"event_id": 1, "operation": "insert", "table": "wide", "record_id": "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "data": {
        "n": 12345678901234567890.012300, "b": 9223372036854775807, "d": 1e-3, "f": true, "t": "it's \"quoted\" \\ and ü \n", "v": "five5", "tz": "2024-02-29 12:00",
        "iv": "1 year 2 days", "ints": [1, null, 3], "texts": [["a", "b c"], ["\"", "d"]], "j": {"b": 1, "a": [1.10]}, "jb": {"b": 1.50, "a": null}, "m": "fine", "p": {"a": 1, "b": "x"},
        "r": "[1,5)", "by": "\\x00ff", "vec": [1, 2, 3]}}"#;
    assert_eq!(apply(&mut db, event), 1);
    assert_eq!(
        db.one::<String>("SELECT concat_ws('|', id, n, b, d, f, t, v, tz AT TIME ZONE 'UTC', iv, ints, texts, j->>'a', jb, m, p, r, by, vec, must) FROM wide"),
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11|12345678901234567890.012300|9223372036854775807|0.001|t|it's \"quoted\" \\ and ü \n|five5|2024-02-29 11:00:00|1 year 2 days|{1,NULL,3}|{{a,\"b c\"},{\"\\\"\",d}}|[1.10]|{\"a\": null, \"b\": 1.50}|fine|(1,x)|[1,5)|\\x00ff|[1,2,3]|3"
    );
    let long = r#"{"event_id": 2, "operation": "update", "table": "wide", "record_id": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "data": {"v": "longer"}}"#;
    assert_eq!(
        db.refused(&format!("SELECT recsync.apply_events('{long}')"))
            .code()
            .code(),
        "22001"
    );
    let null = r#"{"event_id": 3, "operation": "update", "table": "wide", "record_id": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "data": {"n": null, "jb": null}}"#;
    assert_eq!(apply(&mut db, null), 1);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM wide WHERE n IS NULL AND jb IS NULL"),
        1
    );
}

#[test]
fn names_of_all_kinds_and_keys_of_several_columns() {
    let mut db = shared().database();
    db.run(
        r#"CREATE SCHEMA "Ten ant"; CREATE TABLE "Ten ant"."Order ""Line""" ("Order Id" numeric, at timestamptz, "select" text, dropped int, "to""tal" numeric GENERATED ALWAYS AS (n * 2) STORED, n numeric, PRIMARY KEY (at, "Order Id"));
           ALTER TABLE "Ten ant"."Order ""Line""" DROP COLUMN dropped; SET search_path = "Ten ant", public, recsync"#,
    );
    let event = |id: i32, operation: &str, key: &str, sequence: i32| {
        format!(
            r#"{{"event_id": {id}, "operation": "{operation}", "table": "\"Order \"\"Line\"\"\"", "key": {key}, "data": {{"select": "s{id}", "n": {id}, "to\"tal": 99}}, "sequence": {sequence}}}"#
        )
    };
    // The same key however it is written: in another time zone, with other digits.
    let events = [
        event(
            1,
            "insert",
            r#"{"Order Id": 1, "at": "2024-02-29T12:00:00Z"}"#,
            5,
        ),
        event(
            2,
            "update",
            r#"{"Order Id": "1.00", "at": "2024-02-29 13:00:00+01"}"#,
            6,
        ),
        event(
            3,
            "update",
            r#"{"Order Id": 1.0, "at": "2024-02-29 14:00:00+02"}"#,
            4,
        ),
        event(
            4,
            "insert",
            r#"{"Order Id": 2, "at": "2024-02-29T12:00:00Z"}"#,
            1,
        ),
        event(
            5,
            "delete",
            r#"{"Order Id": 2.0, "at": "2024-02-29T12:00:00Z"}"#,
            2,
        ),
    ];
    assert_eq!(
        report(&mut db, &format!("[{}]", events.join(",")), "abort"),
        [
            "1 1 applied",
            "2 2 applied",
            "3 3 outdated",
            "4 4 applied",
            "5 5 applied"
        ]
    );
    assert_eq!(
        db.column::<String>(
            r#"SELECT concat_ws(' ', "select", n, "to""tal") FROM "Order ""Line""""#
        ),
        ["s2 2 4"]
    );
    let folded = r#"{"event_id": 1, "operation": "delete", "table": "ORDER", "record_id": 1}"#;
    assert_eq!(
        db.refused(&format!("SELECT recsync.apply_events('{folded}')"))
            .code()
            .code(),
        "42P01"
    );
}

#[test]
fn identity_columns_have_what_the_event_says_and_else_what_comes_next() {
    let mut db = shared().database();
    db.run(
        "CREATE TABLE click (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, product int);
         CREATE TABLE line (id int PRIMARY KEY, number int GENERATED ALWAYS AS IDENTITY (START 100), note text);
         INSERT INTO line (id) VALUES (1)",
    );
    let events = r#"[
        {"event_id": "a", "operation": "insert", "table": "click", "data": {"product": 1}, "sequence": 1},
        {"event_id": "b", "operation": "insert", "table": "click", "data": {"product": 1}},
        {"event_id": "c", "operation": "insert", "table": "click", "record_id": 50, "data": {"product": 2}},
        {"event_id": "d", "operation": "upsert", "table": "line", "record_id": 1, "data": {"number": 7, "note": "there"}},
        {"event_id": "e", "operation": "upsert", "table": "line", "record_id": 2, "data": {"number": 7, "note": "new"}}
    ]"#;
    assert_eq!(apply(&mut db, events), 5);
    assert_eq!(apply(&mut db, events), 0);
    assert_eq!(
        db.column::<String>("SELECT concat_ws(' ', id, product) FROM click ORDER BY id"),
        ["1 1", "2 1", "50 2"]
    );
    assert_eq!(
        db.column::<String>("SELECT concat_ws(' ', id, number, note) FROM line ORDER BY id"),
        ["1 100 there", "2 7 new"]
    );
}

#[test]
fn rows_of_partitions_and_of_keys_alone_are_written() {
    let mut db = shared().database();
    db.run(
        "CREATE TABLE reading (day date, sensor int, value int, PRIMARY KEY (day, sensor)) PARTITION BY RANGE (day);
         CREATE TABLE reading_1 PARTITION OF reading FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
         CREATE TABLE reading_2 PARTITION OF reading FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
         CREATE TABLE tag (name text PRIMARY KEY)",
    );
    let events = r#"[
        {"event_id": 1, "operation": "insert", "table": "reading", "key": {"day": "2024-01-15", "sensor": 1}, "data": {"value": 1}},
        {"event_id": 2, "operation": "insert", "table": "reading", "key": {"day": "2024-02-15", "sensor": 1}, "data": {"value": 2}},
        {"event_id": 3, "operation": "upsert", "table": "reading", "key": {"day": "2024-02-15", "sensor": 1}, "data": {"value": 3}},
        {"event_id": 4, "operation": "insert", "table": "reading", "key": {"day": "2025-02-15", "sensor": 1}, "data": {"value": 4}},
        {"event_id": 5, "operation": "insert", "table": "tag", "record_id": "x", "data": {}},
        {"event_id": 6, "operation": "insert", "table": "tag", "record_id": "x", "data": {}}
    ]"#;
    let outcomes = report(&mut db, events, "skip");
    assert_eq!(
        outcomes,
        [
            "1 1 applied",
            "2 2 applied",
            "3 3 applied",
            "4 4 refused 23514",
            "5 5 applied",
            "6 6 applied"
        ]
    );
    assert_eq!(
        db.column::<i32>("SELECT value FROM reading ORDER BY day"),
        [1, 3]
    );
    assert_eq!(db.column::<String>("SELECT name FROM tag"), ["x"]);
}
