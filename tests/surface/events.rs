//! apply_events: what becomes of each event, and what is refused.

use postgres::Client;

use crate::support::{Database, PATIENCE, Sql, shared, wait_until};

/// Debezium's envelopes.
mod debezium;

/// Values and keys of all types.
mod rows;

/// With whose rights, and what others can read.
mod rights;

/// The same events in two sessions at once; the register's tables in turn.
mod register;

fn apply(client: &mut Client, events: &str) -> i64 {
    client.one(&format!("SELECT recsync.apply_events($e${events}$e$)"))
}

/// position, event_id, outcome and SQLSTATE of each event.
fn report(client: &mut Client, events: &str, on_error: &str) -> Vec<String> {
    client.column(&format!(
        "SELECT concat_ws(' ', \"position\", event_id, outcome, sqlstate) FROM recsync.apply_events_report($e${events}$e$, '{on_error}')"
    ))
}

fn items() -> Database<'static> {
    let mut db = shared().database();
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text NOT NULL, stock int NOT NULL DEFAULT 7 CHECK (stock >= 0))");
    db
}

fn rows(db: &mut Client) -> Vec<String> {
    db.column("SELECT concat_ws(' ', id, title, stock) FROM item ORDER BY id")
}

#[test]
fn each_event_is_applied_once_and_a_repeat_is_nothing() {
    let mut db = items();
    let events = r#"[
        {"event_id": "a", "operation": "insert", "table": "item", "record_id": 1, "data": {"title": "one"}},
        {"event_id": "b", "operation": "upsert", "table": "public.item", "key": {"id": 2}, "data": {"title": "two", "stock": 2}},
        {"event_id": "c", "operation": "insert", "table": "item", "data": {"id": 3, "title": "three"}},
        {"event_id": "d", "operation": "update", "table": "item", "record_id": "2", "data": {"stock": 3}, "timestamp": "2026-11-30T12:00:00Z"},
        {"event_id": "e", "operation": "delete", "table": "item", "record_id": 3}
    ]"#;
    assert_eq!(apply(&mut db, events), 5);
    assert_eq!(rows(&mut db), ["1 one 7", "2 two 3"]);
    db.run("UPDATE item SET title = 'by hand'");
    assert_eq!(apply(&mut db, events), 0);
    assert_eq!(
        report(&mut db, events, "abort"),
        [
            "1 a repeated",
            "2 b repeated",
            "3 c repeated",
            "4 d repeated",
            "5 e repeated"
        ]
    );
    assert_eq!(rows(&mut db), ["1 by hand 7", "2 by hand 3"]);

    // Twice in one call, and as one object.
    let twice = r#"[{"event_id": 5, "operation": "update", "table": "item", "record_id": 1, "data": {"title": "new"}},
                    {"event_id": 5, "operation": "update", "table": "item", "record_id": 1, "data": {"title": "newer"}}]"#;
    assert_eq!(
        report(&mut db, twice, "abort"),
        ["1 5 applied", "2 5 repeated"]
    );
    let one = r#"{"event_id": 6, "operation": "delete", "table": "item", "record_id": 2}"#;
    assert_eq!(apply(&mut db, one), 1);
    assert_eq!(rows(&mut db), ["1 new 7"]);
    assert_eq!(apply(&mut db, "[]"), 0);

    // An id is one of a table's.
    db.run("CREATE TABLE other (id int PRIMARY KEY)");
    let other = r#"{"event_id": "a", "operation": "insert", "table": "other", "record_id": 1}"#;
    let refused = db.refused(&format!("SELECT recsync.apply_events('{other}')"));
    assert_eq!(refused.code().code(), "22023", "data is missing");
    assert_eq!(
        apply(
            &mut db,
            &other.replace("\"record_id\": 1", "\"data\": {\"id\": 1}")
        ),
        1
    );
}

#[test]
fn rolled_back_event_is_applied_the_next_time() {
    let mut db = items();
    let event = r#"{"event_id": "a", "operation": "insert", "table": "item", "record_id": 1, "data": {"title": "one"}}"#;
    db.run(&format!(
        "BEGIN; SELECT recsync.apply_events('{event}'); ROLLBACK"
    ));
    db.run(&format!(
        "BEGIN; SAVEPOINT s; SELECT recsync.apply_events('{event}'); ROLLBACK TO s; COMMIT"
    ));
    assert!(rows(&mut db).is_empty());
    assert_eq!(apply(&mut db, event), 1);
    assert_eq!(rows(&mut db), ["1 one 7"]);
}

#[test]
fn insert_of_a_row_that_is_there_writes_it_and_deletion_of_one_that_is_not_is_fine() {
    let mut db = items();
    db.run("INSERT INTO item VALUES (1, 'before', 1)");
    let events = r#"[{"event_id": 1, "operation": "insert", "table": "item", "record_id": 1, "data": {"title": "after"}},
                     {"event_id": 2, "operation": "delete", "table": "item", "record_id": 9}]"#;
    assert_eq!(apply(&mut db, events), 2);
    assert_eq!(rows(&mut db), ["1 after 1"]);
    let missing = r#"{"event_id": 3, "operation": "update", "table": "item", "record_id": 9, "data": {"title": "nobody"}}"#;
    let refused = db.refused(&format!("SELECT recsync.apply_events('{missing}')"));
    assert_eq!(refused.code().code(), "P0002");
    assert!(
        refused.message().contains("event 1 cannot be applied"),
        "{}",
        refused.message()
    );
}

#[test]
fn lower_sequence_does_not_overwrite_a_row_nor_bring_it_back() {
    let mut db = items();
    let event = |id: &str, operation: &str, sequence: i64| {
        format!(
            r#"{{"event_id": "{id}", "operation": "{operation}", "table": "item", "record_id": 1, "data": {{"title": "{id}"}}, "sequence": {sequence}}}"#
        )
    };
    let outcome = |db: &mut Client, id: &str, operation: &str, sequence: i64| {
        let event = event(id, operation, sequence);
        report(db, &event, "abort").concat()
    };
    assert_eq!(outcome(&mut db, "a", "upsert", 5), "1 a applied");
    assert_eq!(outcome(&mut db, "b", "upsert", 4), "1 b outdated");
    assert_eq!(outcome(&mut db, "b", "upsert", 4), "1 b repeated");
    assert_eq!(
        outcome(&mut db, "c", "upsert", 5),
        "1 c applied",
        "the same is not lower"
    );
    assert_eq!(rows(&mut db), ["1 c 7"]);
    assert_eq!(outcome(&mut db, "d", "delete", 9), "1 d applied");
    assert_eq!(outcome(&mut db, "e", "upsert", 8), "1 e outdated");
    assert!(rows(&mut db).is_empty());

    // In one call, in any order; another row has another order, and who names no sequence has none.
    let other = r#"{"event_id": "h", "operation": "insert", "table": "item", "record_id": 2, "data": {"title": "h"}, "sequence": 1}"#;
    let free = r#"{"event_id": "i", "operation": "upsert", "table": "item", "record_id": 1, "data": {"title": "i"}}"#;
    let events = [
        event("f", "upsert", 12),
        event("g", "upsert", 11),
        other.into(),
        free.into(),
        event("j", "delete", 10),
    ];
    assert_eq!(
        report(&mut db, &format!("[{}]", events.join(",")), "abort"),
        [
            "1 f applied",
            "2 g outdated",
            "3 h applied",
            "4 i applied",
            "5 j outdated"
        ]
    );
    assert_eq!(rows(&mut db), ["1 i 7", "2 h 7"]);
}

#[test]
fn bad_event_is_refused_alone() {
    let mut db = items();
    let event = |id: usize, stock: &str| {
        format!(
            r#"{{"event_id": "e{id}", "operation": "insert", "table": "item", "record_id": {id}, "data": {{"title": "t", "stock": {stock}}}, "sequence": 5}}"#
        )
    };
    let batch = |third: &str, fifth: &str| {
        let events: Vec<String> = (1..=6)
            .map(|id| match id {
                3 => event(id, third),
                5 => event(id, fifth),
                _ => event(id, "1"),
            })
            .collect();
        format!("[{}]", events.join(","))
    };
    let bad = batch("-1", "\"many\"");
    let refused = db.refused(&format!("SELECT recsync.apply_events('{bad}')"));
    assert_eq!(
        refused.code().code(),
        "23514",
        "the SQLSTATE is the cause's"
    );
    assert!(
        refused.message().starts_with("event 3 cannot be applied: "),
        "{}",
        refused.message()
    );
    assert!(refused.detail().unwrap().contains("Event id: e3."));
    assert!(refused.hint().unwrap().contains("skip"));
    assert!(rows(&mut db).is_empty());

    assert_eq!(
        report(&mut db, &bad, "skip"),
        [
            "1 e1 applied",
            "2 e2 applied",
            "3 e3 refused 23514",
            "4 e4 applied",
            "5 e5 refused 22P02",
            "6 e6 applied"
        ]
    );
    assert_eq!(rows(&mut db).len(), 4);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.event_dead_letter"),
        0
    );

    // Kept with the reason, once however often it is sent; and applied when it has become possible.
    for _ in 0..2 {
        let count: i64 = db.one(&format!(
            "SELECT recsync.apply_events('{bad}', on_error => 'dead_letter')"
        ));
        assert_eq!(count, 0);
    }
    assert_eq!(
        db.column::<String>("SELECT concat_ws(' ', event_id, sent_by, sqlstate, attempts, event->'data'->>'stock') FROM recsync.event_dead_letter ORDER BY event_id"),
        ["e3 postgres 23514 2 -1", "e5 postgres 22P02 2 many"]
    );
    assert!(report(&mut db, &bad, "dead_letter")[2].starts_with("3 e3 dead_letter 23514"));
    assert_eq!(
        report(&mut db, &batch("3", "5"), "skip")[2..5],
        ["3 e3 applied", "4 e4 repeated", "5 e5 applied"]
    );
    assert_eq!(rows(&mut db).len(), 6);
}

#[test]
fn sequence_of_a_refused_event_does_not_count() {
    let mut db = items();
    let event = |id: &str, record: &str, stock: i32, sequence: i32| {
        format!(
            r#"{{"event_id": "{id}", "operation": "upsert", "table": "item", "record_id": {record}, "data": {{"title": "{id}", "stock": {stock}}}, "sequence": {sequence}}}"#
        )
    };
    let first = format!(
        "[{},{},{},{}]",
        event("a", "1", 1, 3),
        event("b", "1", -1, 9),
        event("c", "1", 2, 5),
        event("d", "2", -1, 9)
    );
    assert_eq!(
        report(&mut db, &first, "skip"),
        [
            "1 a applied",
            "2 b refused 23514",
            "3 c applied",
            "4 d refused 23514"
        ]
    );
    let second = format!(
        "[{},{},{}]",
        event("e", "1", 3, 6),
        event("f", "2", 4, 1),
        event("g", "1", 5, 4)
    );
    assert_eq!(
        report(&mut db, &second, "skip"),
        ["1 e applied", "2 f applied", "3 g outdated"]
    );
    assert_eq!(rows(&mut db), ["1 e 3", "2 f 4"]);
    // A key that its type does not read.
    let third = format!(
        "[{},{}]",
        event("h", "\"one\"", 1, 1),
        event("i", "3", 1, 1)
    );
    assert_eq!(
        report(&mut db, &third, "skip"),
        ["1 h refused 22P02", "2 i applied"]
    );
}

#[test]
fn what_is_wrong_is_named_by_position_and_field() {
    let mut db = items();
    db.run("CREATE TABLE pair (a int, b int, note text, PRIMARY KEY (a, b)); CREATE TABLE keyless (id int); CREATE VIEW shown AS SELECT * FROM item");
    let good = r#"{"event_id": "good", "operation": "insert", "table": "item", "record_id": 1, "data": {"title": "one"}}"#;
    for (event, code, field) in [
        (
            r#"{"event_id": 1, "operation": "insert", "table": "item", "record_id": 1, "data": {"title": "x", "colour": "red"}}"#,
            "42703",
            "data.colour",
        ),
        (
            r#"{"event_id": 2, "operation": "insert", "table": "items", "record_id": 1, "data": {}}"#,
            "42P01",
            "table",
        ),
        (
            r#"{"event_id": 3, "operation": "insert", "table": "a.b.c", "record_id": 1, "data": {}}"#,
            "22023",
            "table",
        ),
        (
            r#"{"event_id": 4, "operation": "insert", "table": "nowhere.item", "record_id": 1, "data": {}}"#,
            "42P01",
            "table",
        ),
        (
            r#"{"event_id": 5, "operation": "insert", "table": "shown", "record_id": 1, "data": {}}"#,
            "42P01",
            "table",
        ),
        (
            r#"{"event_id": 6, "operation": "insert", "table": "keyless", "data": {"id": 1}}"#,
            "55000",
            "table",
        ),
        (
            r#"{"event_id": 7, "operation": "insert", "table": "pair", "record_id": 1, "data": {}}"#,
            "22023",
            "record_id",
        ),
        (
            r#"{"event_id": 8, "operation": "update", "table": "pair", "key": {"a": 1}, "data": {"note": "x"}}"#,
            "22023",
            "key.b",
        ),
        (
            r#"{"event_id": 9, "operation": "delete", "table": "pair", "key": {"a": 1, "b": 2, "c": 3}}"#,
            "22023",
            "key.c",
        ),
        (
            r#"{"event_id": 10, "operation": "update", "table": "item", "data": {"title": "x"}}"#,
            "22023",
            "record_id",
        ),
        (
            r#"{"event_id": 11, "operation": "update", "table": "item", "record_id": 1, "data": {"id": 2}}"#,
            "22023",
            "data.id",
        ),
        (
            r#"{"event_id": 12, "operation": "update", "table": "item", "record_id": 1, "data": {}}"#,
            "22023",
            "data",
        ),
        (
            r#"{"event_id": 13, "operation": "merge", "table": "item", "record_id": 1, "data": {}}"#,
            "22023",
            "operation",
        ),
        (
            r#"{"operation": "delete", "table": "item", "record_id": 1}"#,
            "22023",
            "event_id",
        ),
        (
            r#"{"event_id": 15, "operation": "delete", "table": "item", "record_id": 1, "sequence": "first"}"#,
            "22023",
            "sequence",
        ),
        (r#"{"op": "c", "after": {"id": 1}}"#, "22023", "source"),
    ] {
        let refused = db.refused(&format!("SELECT recsync.apply_events('[{good}, {event}]')"));
        assert_eq!(
            refused.code().code(),
            code,
            "{event}: {}",
            refused.message()
        );
        assert!(
            refused.message().starts_with("event 2 cannot be applied: "),
            "{}",
            refused.message()
        );
        let detail = refused.detail().unwrap_or_default();
        assert!(
            detail.contains(&format!("Field: {field}.")),
            "{event}: {detail}"
        );
    }
    assert!(rows(&mut db).is_empty());
    assert_eq!(
        report(&mut db, r#"[5, "x", null]"#, "skip"),
        ["1 refused 22023", "2 refused 22023", "3 ignored"]
    );
    for (call, argument) in [
        (
            "recsync.apply_events('[]', on_error => 'ignore')",
            "on_error",
        ),
        ("recsync.apply_events('\"text\"')", "events"),
        ("recsync.apply_events_report('5')", "events"),
    ] {
        let refused = db.refused(&format!("SELECT {call}"));
        assert_eq!(refused.code().code(), "22023", "{call}");
        assert!(
            refused.message().contains(&format!("\"{argument}\"")),
            "{}",
            refused.message()
        );
    }
}

#[test]
fn applied_event_reaches_a_pipeline_once() {
    let mut db = items();
    db.run("CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin')");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'local', index => 'none')");
    db.settle("item_embedding");
    let event = r#"{"event_id": "a", "operation": "insert", "table": "item", "record_id": 1, "data": {"title": "a waterproof shoe"}}"#;
    let logged = "SELECT count(*) FROM recsync.change_log";
    assert_eq!(apply(&mut db, event), 1);
    db.settle("item_embedding");
    assert_eq!(db.one::<i64>(logged), 1);
    let embedded: String = db.one("SELECT embedded_at::text FROM item_embedding");
    assert_eq!(apply(&mut db, event), 0);
    let bad = r#"[{"event_id": "b", "operation": "insert", "table": "item", "record_id": 2, "data": {"title": "stove"}},
                  {"event_id": "c", "operation": "insert", "table": "item", "record_id": 3, "data": {"title": "tent", "stock": -1}}]"#;
    assert_eq!(
        report(&mut db, bad, "skip"),
        ["1 b applied", "2 c refused 23514"]
    );
    db.settle("item_embedding");
    assert_eq!(
        db.one::<i64>(logged),
        2,
        "what was rolled back is in no log"
    );
    assert_eq!(
        db.one::<String>("SELECT embedded_at::text FROM item_embedding WHERE id = 1"),
        embedded
    );
    wait_until(PATIENCE, "the item is found", || {
        db.column::<String>(
            "SELECT item FROM recsync.search('item_embedding', 'waterproof shoes', k => 1)",
        ) == ["1"]
    });
    assert_eq!(
        db.column::<i32>("SELECT id FROM item_embedding ORDER BY id"),
        [1, 2]
    );
}

#[test]
fn triggers_that_call_it_again_and_keep_rows_back_are_followed() {
    let mut db = items();
    db.run(
        r#"CREATE TABLE copy (id int PRIMARY KEY, title text);
           CREATE FUNCTION copy_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.title = 'kept back' THEN RETURN NULL; END IF;
             PERFORM recsync.apply_events(jsonb_build_object('event_id', 'copy ' || NEW.id, 'operation', 'upsert', 'table', 'copy', 'record_id', NEW.id, 'data', jsonb_build_object('title', NEW.title)));
             RETURN NEW;
           END $$;
           CREATE TRIGGER copies BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION copy_it()"#,
    );
    let events = r#"[{"event_id": 1, "operation": "insert", "table": "item", "record_id": 1, "data": {"title": "one"}},
                     {"event_id": 2, "operation": "insert", "table": "item", "record_id": 2, "data": {"title": "kept back"}},
                     {"event_id": 3, "operation": "update", "table": "item", "record_id": 1, "data": {"title": "kept back"}}]"#;
    assert_eq!(
        report(&mut db, events, "skip"),
        ["1 1 applied", "2 2 applied", "3 3 refused P0002"]
    );
    assert_eq!(rows(&mut db), ["1 one 7"]);
    assert_eq!(db.column::<String>("SELECT title FROM copy"), ["one"]);
}
