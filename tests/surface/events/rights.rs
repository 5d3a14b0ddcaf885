//! apply_events writes with the caller's rights, and what it keeps is nobody's to read.

use postgres::Client;

use super::{apply, report};
use crate::support::{Database, Sql, shared};

/// A database with table `item (id, title, owner)`, and a role of that name that may call apply_events.
fn caller(role: &str) -> (Database<'static>, Client) {
    let mut db = shared().database();
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, owner text NOT NULL DEFAULT CURRENT_USER)");
    let client = add_caller(&mut db, role);
    (db, client)
}

fn add_caller(db: &mut Database, role: &str) -> Client {
    db.run(&format!(
        "DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN;
         GRANT EXECUTE ON FUNCTION recsync.apply_events, recsync.apply_events_report TO {role}"
    ));
    db.connect_as(role)
}

fn event(id: &str, operation: &str, record: i32, data: &str) -> String {
    format!(
        r#"{{"event_id": "{id}", "operation": "{operation}", "table": "item", "record_id": {record}, "data": {data}, "sequence": 5}}"#
    )
}

#[test]
fn execute_is_nobodys_until_it_is_granted() {
    let mut db = shared().database();
    db.run("DROP ROLE IF EXISTS events_nobody; CREATE ROLE events_nobody LOGIN");
    let mut nobody = db.connect_as("events_nobody");
    for call in [
        "recsync.apply_events('[]')",
        "recsync.apply_events_report('[]')",
    ] {
        let refused = nobody.refused(&format!("SELECT {call}"));
        assert_eq!(refused.code().code(), "42501", "{call}");
    }
}

#[test]
fn rights_are_those_of_the_caller_on_the_table_and_its_columns() {
    let (mut db, mut caller) = caller("events_caller");
    let insert = event("a", "insert", 1, r#"{"title": "one"}"#);
    assert_eq!(report(&mut caller, &insert, "skip"), ["1 a refused 42501"]);
    db.run("GRANT INSERT (id, title), UPDATE (title), SELECT (id, title) ON item TO events_caller");
    assert_eq!(report(&mut caller, &insert, "skip"), ["1 a applied"]);
    let other = event("b", "upsert", 1, r#"{"owner": "me"}"#);
    assert_eq!(report(&mut caller, &other, "skip"), ["1 b refused 42501"]);
    let update = event("c", "update", 1, r#"{"title": "two"}"#);
    assert_eq!(report(&mut caller, &update, "skip"), ["1 c applied"]);
    let delete = event("d", "delete", 1, "null");
    let refused = caller.refused(&format!("SELECT recsync.apply_events('{delete}')"));
    assert_eq!(refused.code().code(), "42501");
    assert!(
        refused
            .message()
            .contains("permission denied for table item"),
        "{}",
        refused.message()
    );
    assert_eq!(
        db.column::<String>("SELECT concat_ws(' ', id, title, owner) FROM item"),
        ["1 two events_caller"],
        "defaults are the caller's"
    );
    // A table that the caller cannot see the schema of.
    db.run("CREATE SCHEMA hidden; CREATE TABLE hidden.item (id int PRIMARY KEY)");
    let hidden =
        r#"{"event_id": 1, "operation": "delete", "table": "hidden.item", "record_id": 1}"#;
    let outcome = report(&mut caller, hidden, "skip").concat();
    assert!(
        outcome.ends_with("42501") || outcome.ends_with("42P01"),
        "{outcome}"
    );
}

#[test]
fn row_level_security_holds_and_the_search_path_is_the_callers() {
    let (mut db, mut caller) = caller("events_tenant");
    db.run(
        "GRANT ALL ON item TO events_tenant; ALTER TABLE item ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON item USING (owner = CURRENT_USER);
         INSERT INTO item VALUES (1, 'of postgres', 'postgres')",
    );
    let events = format!(
        "[{},{},{},{},{}]",
        event("a", "upsert", 1, r#"{"title": "taken"}"#),
        event("b", "update", 1, r#"{"title": "taken"}"#),
        event("c", "insert", 2, r#"{"title": "mine"}"#),
        event(
            "d",
            "insert",
            3,
            r#"{"title": "for you", "owner": "postgres"}"#
        ),
        event("e", "delete", 1, "null"),
    );
    assert_eq!(
        report(&mut caller, &events, "skip"),
        [
            "1 a refused 42501",
            "2 b refused P0002",
            "3 c applied",
            "4 d refused 42501",
            "5 e applied"
        ]
    );
    let rows = "SELECT concat_ws(' ', id, title) FROM item ORDER BY id";
    assert_eq!(db.column::<String>(rows), ["1 of postgres", "2 mine"]);
    db.run("CREATE SCHEMA theirs AUTHORIZATION events_tenant; CREATE TABLE theirs.item (id int PRIMARY KEY, title text); GRANT ALL ON theirs.item TO events_tenant");
    caller.run("SET search_path = theirs, public");
    assert_eq!(
        apply(
            &mut caller,
            &event("c", "insert", 2, r#"{"title": "there"}"#)
        ),
        1
    );
    assert_eq!(
        db.column::<String>("SELECT title FROM theirs.item"),
        ["there"]
    );
}

#[test]
fn what_one_role_has_applied_keeps_nothing_from_another() {
    let (mut db, mut one) = caller("events_one");
    let mut other = add_caller(&mut db, "events_other");
    db.run(
        "GRANT ALL ON item TO events_one, events_other; ALTER TABLE item ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON item USING (owner = CURRENT_USER)",
    );
    // What is not there for one is deleted by a number that nothing comes after.
    let first = r#"{"event_id": "x", "operation": "delete", "table": "item", "record_id": 1, "sequence": 9223372036854775807}"#;
    assert_eq!(apply(&mut one, first), 1);
    assert_eq!(
        apply(&mut other, &event("x", "insert", 1, r#"{"title": "mine"}"#)),
        1
    );
    assert_eq!(db.column::<String>("SELECT title FROM item"), ["mine"]);
}

#[test]
fn register_and_dead_letters_are_read_by_nobody_but_the_administrator() {
    let (mut db, mut caller) = caller("events_reader");
    db.run("GRANT ALL ON item TO events_reader; DROP ROLE IF EXISTS events_admin; CREATE ROLE events_admin LOGIN IN ROLE recsync_admin");
    let bad = r#"{"event_id": "x", "operation": "upsert", "table": "item", "record_id": "the secret", "data": {"title": "t"}}"#;
    let applied: i64 = caller.one(&format!(
        "SELECT recsync.apply_events('{bad}', on_error => 'dead_letter')"
    ));
    assert_eq!(applied, 0);
    for table in [
        "event_0",
        "event_1",
        "event_2",
        "event_3",
        "event_register",
        "event_dead_letter",
    ] {
        for statement in [
            format!("SELECT * FROM recsync.{table}"),
            format!("DELETE FROM recsync.{table}"),
            format!("TRUNCATE recsync.{table}"),
            format!("INSERT INTO recsync.{table} DEFAULT VALUES"),
        ] {
            assert_eq!(
                caller.refused(&statement).code().code(),
                "42501",
                "{statement}"
            );
        }
    }
    let mut admin = db.connect_as("events_admin");
    assert_eq!(
        admin.column::<String>("SELECT concat_ws(' ', sent_by, sqlstate, event->>'record_id') FROM recsync.event_dead_letter"),
        ["events_reader 22P02 the secret"]
    );
    admin.run("DELETE FROM recsync.event_dead_letter");
    assert_eq!(
        admin.refused("SELECT * FROM recsync.event_0").code().code(),
        "42501"
    );
    // No value stands in the register.
    let columns: Vec<String> = db.column(
        "SELECT DISTINCT format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = 'recsync.event_0'::regclass AND attnum > 0 ORDER BY 1",
    );
    assert_eq!(columns, ["bigint", "uuid"]);
}

#[test]
fn values_and_names_are_never_sql() {
    let (mut db, mut caller) = caller("events_evil");
    db.run("GRANT ALL ON item TO events_evil; CREATE TABLE victim (id int PRIMARY KEY); INSERT INTO victim VALUES (1)");
    let evil = r#"'); DROP TABLE victim; --"#;
    let escaped = evil.replace('\'', "''");
    let events = format!(
        r#"[{{"event_id": "{escaped}", "operation": "insert", "table": "item", "record_id": 1, "data": {{"title": "{escaped}"}}}},
            {{"event_id": "b", "operation": "insert", "table": "item; DROP TABLE victim", "record_id": 1, "data": {{"title": "x"}}}},
            {{"event_id": "c", "operation": "insert", "table": "item", "record_id": 2, "data": {{"title\") SELECT 1; DROP TABLE victim; --": "x"}}}},
            {{"event_id": "d", "operation": "delete", "table": "item", "key": {{"id = 1 OR true --": 1}}}}]"#
    );
    let outcomes: Vec<String> = caller.column(&format!(
        "SELECT concat_ws(' ', outcome, sqlstate) FROM recsync.apply_events_report('{events}', 'skip')"
    ));
    assert_eq!(
        outcomes,
        ["applied", "refused 22023", "refused 42703", "refused 22023"]
    );
    assert_eq!(db.column::<String>("SELECT title FROM item"), [evil]);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM victim"), 1);
}
