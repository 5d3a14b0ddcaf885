//! What the change log holds of a row: capture modes, audits, large values; and who may have a table audited.

use crate::support::{Api, Database, Sql, shared};

/// op, key, old and new row of every change, oldest first.
fn log(db: &mut Database) -> Vec<String> {
    db.column(
        "SELECT concat_ws(' ', op, record_key, COALESCE(old_record::text, '-'), COALESCE(record::text, '-'))
           FROM recsync.change_log ORDER BY sequence",
    )
}

fn pipeline(db: &mut Database, name: &str, columns: &str, capture: &str) {
    db.run(&format!(
        "SELECT recsync.create_pipeline('{name}', 'item', columns => '{{{columns}}}', server => 'api', index => 'none', capture => '{capture}')"
    ));
}

#[test]
fn widest_capture_mode_of_a_tables_pipelines_counts_and_narrows_when_they_go() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, body text, stock int)");
    pipeline(&mut db, "by_title", "title", "keys");
    db.run("INSERT INTO item VALUES (1, 'one', 'body', 0)");
    pipeline(&mut db, "by_body", "body", "columns");
    db.run("UPDATE item SET title = 'two', stock = 1");
    db.run("UPDATE item SET stock = 2");
    pipeline(&mut db, "by_both", "title,body", "full");
    db.run("UPDATE item SET id = 2");
    db.run("UPDATE item SET stock = 3");
    db.run("SELECT recsync.drop_pipeline('by_both')");
    db.run("UPDATE item SET body = NULL");
    db.run("UPDATE item SET id = 3");
    db.run("SELECT recsync.drop_pipeline('by_body')");
    db.run("UPDATE item SET body = 'not used any more'");
    db.run("UPDATE item SET title = 'three'");
    db.run("DELETE FROM item");
    assert_eq!(
        log(&mut db),
        [
            r#"INSERT {"id": 1} - -"#,
            r#"UPDATE {"id": 1} {"body": "body", "title": "one"} {"body": "body", "title": "two"}"#,
            r#"UPDATE {"id": 2} {"id": 1, "body": "body", "stock": 2, "title": "two"} {"id": 2, "body": "body", "stock": 2, "title": "two"}"#,
            r#"UPDATE {"id": 2} {"body": "body", "title": "two"} {"body": null, "title": "two"}"#,
            r#"UPDATE {"id": 3} {"id": 2, "body": null, "title": "two"} {"body": null, "title": "two"}"#,
            r#"UPDATE {"id": 3} - -"#,
            r#"DELETE {"id": 3} - -"#,
        ]
    );
    db.settle("by_title");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM by_title"), 0);
    let refused = db.refused("SELECT recsync.create_pipeline('p', 'item', columns => '{title}', server => 'api', capture => 'everything')");
    assert_eq!(refused.code().code(), "22023");
    assert!(refused.hint().unwrap().contains("full"));
}

#[test]
fn audit_logs_every_change_of_a_table_with_and_without_a_pipeline() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("CREATE TABLE alone (a int, b text, note text, PRIMARY KEY (b, a))");
    db.run("SELECT recsync.audit('alone')");
    db.run("INSERT INTO alone VALUES (1, 'x', 'first'); UPDATE alone SET note = 'second'; UPDATE alone SET note = 'second'; UPDATE alone SET a = 2; TRUNCATE alone");
    assert_eq!(
        log(&mut db),
        [
            r#"INSERT {"a": 1, "b": "x"} - {"a": 1, "b": "x", "note": "first"}"#,
            r#"UPDATE {"a": 1, "b": "x"} {"a": 1, "b": "x", "note": "first"} {"a": 1, "b": "x", "note": "second"}"#,
            r#"UPDATE {"a": 2, "b": "x"} {"a": 1, "b": "x", "note": "second"} {"a": 2, "b": "x", "note": "second"}"#,
            "TRUNCATE - -",
        ]
    );
    assert_eq!(
        db.column::<String>("SELECT name FROM recsync.status WHERE kind = 'audit'"),
        ["public.alone"]
    );
    db.run("SELECT recsync.audit('alone', mode => 'keys')");
    db.run("INSERT INTO alone VALUES (3, 'y', 'third')");
    db.run("UPDATE alone SET note = 'fourth'");
    assert_eq!(
        log(&mut db)[4..],
        [
            r#"INSERT {"a": 3, "b": "y"} - -"#,
            r#"UPDATE {"a": 3, "b": "y"} - -"#
        ]
    );
    db.run("SELECT recsync.unaudit('alone')");
    db.run("UPDATE alone SET note = 'unseen'");
    assert_eq!(log(&mut db).len(), 6);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'alone'::regclass"),
        0
    );
    assert_eq!(
        db.refused("SELECT recsync.unaudit('alone')").code().code(),
        "42704"
    );
    db.run("SELECT recsync.unaudit('alone', if_exists => true)");

    // Beside a pipeline: an update that its text does not use is logged, and costs it nothing.
    db.run("SELECT recsync.audit('item'); INSERT INTO item VALUES (1, 'one')");
    db.settle("item_embedding");
    let asked = api.requests().len();
    db.run("UPDATE item SET stock = 7");
    assert_eq!(
        log(&mut db).last().unwrap(),
        r#"UPDATE {"id": 1} {"id": 1, "stock": 0, "title": "one"} {"id": 1, "stock": 7, "title": "one"}"#
    );
    db.run("SELECT recsync.unaudit('item')");
    db.run("UPDATE item SET stock = 8");
    db.run("UPDATE item SET title = 'two'");
    db.settle("item_embedding");
    assert_eq!(log(&mut db).last().unwrap(), r#"UPDATE {"id": 1} - -"#);
    assert_eq!(api.requests().len(), asked + 1);
    db.assert_items_in_step(&api);
}

#[test]
fn full_record_is_what_to_jsonb_shows() {
    let mut db = shared().database();
    db.run(
        r#"CREATE TYPE mood AS ENUM ('sad', 'it''s "fine"'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN whole AS int; CREATE DOMAIN wholes AS int[];
           CREATE TABLE wide (id whole PRIMARY KEY, "odd "" name" text, s smallint, i int, l bigint, n numeric, r real, d double precision, b boolean, t text, v varchar(9), c char(5), na name,
             ch "char", by bytea, da date, ts timestamp, tz timestamptz, ti time, tt timetz, iv interval, u uuid, net inet, j json, jb jsonb, m mood, p pair, ints int[], texts text[][], pairs pair[],
             ws wholes, rg int4range, bits bit(3), tv tsvector, o oid, pt point, twice bigint GENERATED ALWAYS AS (i::bigint * 2) STORED)"#,
    );
    db.run("SELECT recsync.audit('wide', large_values => true)");
    db.run("SET extra_float_digits = 0; SET datestyle = 'German'; SET timezone = 'Asia/Kolkata'; SET intervalstyle = 'iso_8601'");
    db.run(
        r#"INSERT INTO wide VALUES
            (1, E'quote " back \\ new\n\t\r\x01 ü 漢', -1, 2147483647, -9223372036854775808, 12345678901234567890.0100, 0.1, 1e300, true, '', 'v', 'c', 'name', 'x', '\x00ff27',
             '2024-02-29', '2024-02-29 12:34:56.789', '2024-02-29 12:34:56.789+02', '12:34:56.7', '12:34:56+02', '1 year 2 days 03:04:05', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '::1/128',
             '{"b" : 1, "a": [1, null]}', '{"b": 1.50}', 'it''s "fine"', (1, 'x "y"'), '{1,NULL,3}', '{{a,"b c"},{NULL,"\""}}', ARRAY[(1, 'a')::pair, NULL], '{4,5}', '[1,5)', '101', 'a:1 b', 7, '(1,2)'),
            (2, NULL, NULL, NULL, NULL, 'NaN', 'Infinity', '-Infinity', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'infinity', '-infinity', 'infinity', NULL, NULL, NULL, NULL, NULL, 'null', 'null',
             NULL, (NULL, NULL), '{}', '{}', '{}', NULL, 'empty', NULL, NULL, NULL, NULL)"#,
    );
    for (what, query) in [
        (
            "inserted",
            "SELECT count(*) FROM wide w JOIN recsync.change_log l ON l.op = 'INSERT' AND l.record = to_jsonb(w) AND l.old_record IS NULL AND l.record_key = jsonb_build_object('id', w.id)",
        ),
        (
            "updated",
            "WITH u AS (UPDATE wide SET id = id + 10 RETURNING *) SELECT count(*) FROM u",
        ),
        (
            "after the update",
            "SELECT count(*) FROM wide w JOIN recsync.change_log l ON l.op = 'UPDATE' AND l.record = to_jsonb(w) AND l.old_record = to_jsonb(w) || jsonb_build_object('id', w.id - 10)",
        ),
    ] {
        assert_eq!(db.one::<i64>(query), 2, "{what}");
    }
    db.run("CREATE TABLE gone AS SELECT to_jsonb(w) AS was FROM wide w; DELETE FROM wide");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM gone g JOIN recsync.change_log l ON l.op = 'DELETE' AND l.old_record = g.was AND l.record IS NULL"),
        2
    );
}

#[test]
fn large_values_and_vectors_stay_out_unless_asked_for() {
    let mut db = shared().database();
    db.run("CREATE TABLE page (id int PRIMARY KEY, body text, raw bytea, v vector(3), h halfvec(3)); SELECT recsync.audit('page')");
    db.run(
        "ALTER TABLE page ALTER raw SET STORAGE EXTERNAL;
            INSERT INTO page VALUES (1, repeat('x', 8192), NULL, '[1,2,3]', '[1,2,3]'), (2, repeat('x', 8193), decode(repeat('ab', 100000), 'hex'), NULL, NULL)",
    );
    let records: Vec<String> = db
        .column("SELECT (record - 'body' || jsonb_build_object('length', length(record->>'body')))::text FROM recsync.change_log ORDER BY sequence");
    assert_eq!(
        records[0],
        r#"{"h": {"omitted_bytes": 10}, "v": {"omitted_bytes": 16}, "id": 1, "raw": null, "length": 8192}"#
    );
    assert_eq!(
        db.one::<String>(
            "SELECT record::text FROM recsync.change_log WHERE record_key @> '{\"id\": 2}'"
        ),
        r#"{"h": null, "v": null, "id": 2, "raw": {"omitted_bytes": 100000}, "body": {"omitted_bytes": 8193}}"#
    );
    db.run("SELECT recsync.audit('page', large_values => true); UPDATE page SET id = -id");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM page p JOIN recsync.change_log l ON l.op = 'UPDATE' AND l.record = to_jsonb(p)"),
        2
    );
}

#[test]
fn audit_is_for_the_tables_owner_and_for_tables_with_a_key() {
    let mut db = shared().database();
    db.run("DROP ROLE IF EXISTS audit_stranger; CREATE ROLE audit_stranger LOGIN; CREATE TABLE item (id int PRIMARY KEY); CREATE TABLE keyless (id int); CREATE VIEW shown AS SELECT * FROM item");
    let refused = db
        .connect_as("audit_stranger")
        .refused("SELECT recsync.audit('item')");
    assert_eq!(refused.code().code(), "42501");
    assert!(refused.hint().unwrap().contains("GRANT postgres"));
    for (statement, code) in [
        ("SELECT recsync.audit('keyless')", "55000"),
        ("SELECT recsync.audit('shown')", "42809"),
        ("SELECT recsync.audit('pg_class')", "42809"),
        ("SELECT recsync.audit('item', mode => 'columns')", "22023"),
        ("SELECT recsync.unaudit('item')", "42704"),
    ] {
        let refused = db.refused(statement);
        assert_eq!(refused.code().code(), code, "{statement}");
        assert!(refused.hint().is_some(), "{statement}");
    }
    db.run("SELECT recsync.audit('item')");
    assert_eq!(
        db.connect_as("audit_stranger")
            .refused("SELECT recsync.unaudit('item')")
            .code()
            .code(),
        "42501"
    );
}

#[test]
fn commit_times_are_shown_where_the_server_keeps_them() {
    let cluster = crate::support::Cluster::start(&[("track_commit_timestamp", "on")]);
    let mut db = cluster.database();
    db.run("CREATE TABLE item (id int PRIMARY KEY); SELECT recsync.audit('item', mode => 'keys')");
    db.run("BEGIN; INSERT INTO item VALUES (1); SELECT pg_sleep(0.02); COMMIT");
    assert!(db.one::<bool>(
        "SELECT committed_at >= changed_at + interval '20 ms' FROM recsync.change_log"
    ));
}

#[test]
fn log_tables_refuse_what_the_trigger_never_writes() {
    let mut db = shared().database();
    db.run("CREATE TABLE item (id int PRIMARY KEY); SELECT recsync.audit('item', mode => 'keys'); INSERT INTO item VALUES (1)");
    for change in [
        "record_keys = NULL",
        "op = 'T'",
        "op = 'X'",
        "old_keys = '[{}]'",
        "old_records = '[{}]'",
        "changes = 1001",
        "changes = 0",
        "changed_by = NULL",
    ] {
        let refused = db.refused(&format!("UPDATE recsync.log_0 SET {change}"));
        assert_eq!(&refused.code().code()[..2], "23", "{change}");
    }
    db.run("UPDATE recsync.log_0 SET op = 'D', old_records = '[{}]'");
}
