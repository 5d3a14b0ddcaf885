//! Keys, names, columns, inheritance, and what is no table for a pipeline.

use super::case::{Case, Mode};
use super::runner::check;
use crate::support::shared;

#[test]
fn keys_of_every_kind_are_logged_and_embedded() {
    check(shared(), Mode::Keys, keys());
}

#[test]
fn keys_of_every_kind_are_audited() {
    check(shared(), Mode::Audited, keys());
}

#[test]
fn tables_of_every_kind_are_logged_and_embedded() {
    check(shared(), Mode::Keys, tables());
}

#[test]
fn tables_of_every_kind_are_audited() {
    check(shared(), Mode::Audited, tables());
}

#[test]
fn what_has_no_changes_to_capture_is_refused_with_a_hint() {
    check(shared(), Mode::Keys, refusals());
}

const TYPES: &str = r#"CREATE TYPE mood AS ENUM ('sad', 'it''s "fine"', 'happy, very');
    CREATE DOMAIN code AS text CHECK (value <> ''); CREATE DOMAIN number AS bigint; CREATE TYPE pair AS (a int, b text)"#;

/// A type as extension citext makes it, in SQL: equal without regard to case.
const CITEXT: &str = "
    CREATE TYPE citext;
    CREATE FUNCTION citext_in(cstring) RETURNS citext LANGUAGE internal IMMUTABLE STRICT AS 'textin';
    CREATE FUNCTION citext_out(citext) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
    CREATE TYPE citext (INPUT = citext_in, OUTPUT = citext_out, LIKE = text, CATEGORY = 'S', COLLATABLE = true);
    CREATE CAST (citext AS text) WITHOUT FUNCTION AS IMPLICIT;
    CREATE CAST (text AS citext) WITHOUT FUNCTION AS ASSIGNMENT;
    CREATE FUNCTION citext_cmp(a citext, b citext) RETURNS int LANGUAGE sql IMMUTABLE STRICT AS 'SELECT bttextcmp(lower(a::text), lower(b::text))';
    CREATE FUNCTION citext_lt(a citext, b citext) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS 'SELECT lower(a::text) < lower(b::text)';
    CREATE FUNCTION citext_le(a citext, b citext) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS 'SELECT lower(a::text) <= lower(b::text)';
    CREATE FUNCTION citext_eq(a citext, b citext) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS 'SELECT lower(a::text) = lower(b::text)';
    CREATE FUNCTION citext_ge(a citext, b citext) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS 'SELECT lower(a::text) >= lower(b::text)';
    CREATE FUNCTION citext_gt(a citext, b citext) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS 'SELECT lower(a::text) > lower(b::text)';
    CREATE OPERATOR = (LEFTARG = citext, RIGHTARG = citext, FUNCTION = citext_eq, COMMUTATOR = =, MERGES);
    CREATE OPERATOR < (LEFTARG = citext, RIGHTARG = citext, FUNCTION = citext_lt, COMMUTATOR = >);
    CREATE OPERATOR <= (LEFTARG = citext, RIGHTARG = citext, FUNCTION = citext_le, COMMUTATOR = >=);
    CREATE OPERATOR >= (LEFTARG = citext, RIGHTARG = citext, FUNCTION = citext_ge);
    CREATE OPERATOR > (LEFTARG = citext, RIGHTARG = citext, FUNCTION = citext_gt);
    CREATE OPERATOR CLASS citext_ops DEFAULT FOR TYPE citext USING btree AS
        OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 citext_cmp(citext, citext)";

/// A key of type `kind` through inserts, updates, a change and a delete. Values are (literal, as the log shows it).
fn key(kind: &str, values: [(&str, &str); 3]) -> Case {
    let [(one, first), (two, second), (three, third)] = values;
    let create = format!("CREATE TABLE item (id {kind} PRIMARY KEY, title text, stock int)");
    Case::over(format!("a key of type {kind}"), TYPES)
        .given(create)
        .run(
            format!("INSERT INTO item VALUES ('{one}', 'one'), ('{two}', 'two')"),
            format!("INSERT {first}; INSERT {second}"),
        )
        .run(
            format!("UPDATE item SET title = 'changed' WHERE id = '{one}'::{kind}"),
            format!("UPDATE {first}"),
        )
        .run(
            format!("UPDATE item SET stock = 1 WHERE id = '{one}'::{kind}"),
            format!("(UPDATE {first})"),
        )
        .run(
            format!("UPDATE item SET id = '{three}' WHERE id = '{two}'::{kind}"),
            format!("UPDATE {third} <- {second}"),
        )
        .run(
            format!("DELETE FROM item WHERE id = '{three}'::{kind}"),
            format!("DELETE {third}"),
        )
        .holds("SELECT count(*) = 1 FROM item_embedding")
}

fn same(values: [&str; 3]) -> [(&str, &str); 3] {
    values.map(|value| (value, value))
}

#[rustfmt::skip]
fn keys() -> Vec<Case> {
    // to_jsonb writes these otherwise than record_key does.
    const KEYS: &[Mode] = &[Mode::Keys];
    vec![
        key("smallint", same(["1", "-2", "3"])),
        key("int", same(["1", "-2147483648", "2147483647"])),
        key("bigint", same(["9007199254740993", "-9223372036854775808", "9223372036854775807"])),
        key("numeric", same(["12345678901234567890.12345678901234567890", "-0.10", "NaN"])),
        key("double precision", same(["0.30000000000000004", "-Infinity", "1e-300"])).only(KEYS),
        key("oid", same(["1", "2", "4294967295"])).only(KEYS),
        key("uuid", same(["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "ffffffff-ffff-ffff-ffff-ffffffffffff", "00000000-0000-0000-0000-000000000000"])),
        key("text", [("it''s \"2\\x\n3\" {,} ü 漢", "it's \"2\\x\n3\" {,} ü 漢"), ("NULL", "NULL"), ("", "")]),
        key("varchar(40)", same(["a", "null", " around "])),
        key("char(4)", [("a", "a   "), ("b", "b   "), ("c", "c   ")]),
        key("name", same(["a", "b", "c"])),
        key("timestamptz", [
            ("2024-02-29 12:34:56.789012+05:30", "2024-02-29 07:04:56.789012+00"),
            ("infinity", "infinity"),
            ("0044-03-15 00:00:00+00 BC", "0044-03-15 00:00:00+00 BC"),
        ]).only(KEYS),
        key("timestamp", same(["2024-02-29 12:34:56.789012", "-infinity", "1999-12-31 00:00:00"])).only(KEYS),
        key("date", same(["2024-01-02", "1950-12-31", "infinity"])),
        key("time", same(["00:00:00", "23:59:59.999999", "24:00:00"])),
        key("interval", same(["1 year 2 mons 3 days 04:05:06.7", "-1 days", "00:00:00.000001"])),
        key("bytea", same(["\\x00ff27", "\\x", "\\x5c"])),
        key("inet", same(["10.0.0.1/8", "::1", "192.168.1.1"])),
        key("mood", [("sad", "sad"), ("it''s \"fine\"", "it's \"fine\""), ("happy, very", "happy, very")]),
        key("code", same(["x", "y", "z"])),
        key("number", same(["1", "2", "3"])),
        key("int[]", same(["{1,2}", "{}", "{3,NULL}"])).only(KEYS),
        key("int4range", same(["[1,5)", "empty", "(,)"])),
        key("pair", same(["(1,a)", "(1,)", "(,\"b c\")"])).only(KEYS),
        Case::over("a key that is equal without regard to case", CITEXT)
            .given("CREATE TABLE item (id citext PRIMARY KEY, title text)")
            .run("INSERT INTO item VALUES ('Foo', 'one'), ('Bar', 'two')", "INSERT Foo; INSERT Bar")
            .run("UPDATE item SET title = 'changed' WHERE id = 'foo'", "UPDATE Foo")
            .run("UPDATE item SET id = 'FOO' WHERE id = 'foo'", "UPDATE FOO <- Foo")
            .run("UPDATE item SET id = 'Baz' WHERE id = 'BAR'", "UPDATE Baz <- Bar")
            .run("DELETE FROM item WHERE id = 'foo'", "DELETE FOO"),
        Case::over("a key of three columns", TYPES)
            .given("CREATE TABLE item (title text, a uuid, b mood, c timestamptz, PRIMARY KEY (c, b, a))")
            .key("a, b, c")
            .only(KEYS)
            .run("INSERT INTO item VALUES ('one', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'sad', '2024-02-29 00:00:00+00')",
                 r#"INSERT {"a": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "b": "sad", "c": "2024-02-29 00:00:00+00"}"#)
            .run("INSERT INTO item VALUES ('two', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'sad', 'infinity')",
                 r#"INSERT {"a": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "b": "sad", "c": "infinity"}"#)
            .run("UPDATE item SET b = 'happy, very' WHERE title = 'one'",
                 r#"UPDATE {"a": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "b": "happy, very", "c": "2024-02-29 00:00:00+00"} <- {"a": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "b": "sad", "c": "2024-02-29 00:00:00+00"}"#)
            .run("DELETE FROM item WHERE c = 'infinity'",
                 r#"DELETE {"a": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "b": "sad", "c": "infinity"}"#),
        Case::over("keys that are written under other settings of the session", "CREATE TABLE item (a timestamptz, b interval, c float8, d bytea, title text, PRIMARY KEY (a, b, c, d))")
            .key("a, b, c, d")
            .only(KEYS)
            .run("SET datestyle = 'SQL, DMY'; SET intervalstyle = 'iso_8601'; SET extra_float_digits = -5; SET bytea_output = 'escape'; SET timezone = 'Asia/Kolkata';
                  INSERT INTO item VALUES ('2024-02-29 00:00:00+00', '1 day 2:03:04', 0.1::float8 + 0.2, '\\x5c27', 'one')",
                 r#"INSERT {"a": "2024-02-29 00:00:00+00", "b": "1 day 02:03:04", "c": "0.30000000000000004", "d": "\\x5c27"}"#)
            .other("UPDATE item SET title = 'changed'", r#"UPDATE {"a": "2024-02-29 00:00:00+00", "b": "1 day 02:03:04", "c": "0.30000000000000004", "d": "\\x5c27"}"#),
        Case::over("a key of three columns, two of them with few values", "CREATE TABLE item (a bool, b int, title text, c text, PRIMARY KEY (a, b, c))")
            .key("a, b, c")
            .run("INSERT INTO item VALUES (true, 1, 'one', 'x'), (false, 1, 'two', 'x'), (true, 1, 'three', 'y')",
                 r#"INSERT {"a": true, "b": 1, "c": "x"}; INSERT {"a": false, "b": 1, "c": "x"}; INSERT {"a": true, "b": 1, "c": "y"}"#)
            .run("UPDATE item SET a = false WHERE c = 'y'", r#"UPDATE {"a": false, "b": 1, "c": "y"} <- {"a": true, "b": 1, "c": "y"}"#)
            .run("UPDATE item SET title = 'changed' WHERE a", r#"UPDATE {"a": true, "b": 1, "c": "x"}"#)
            .run("DELETE FROM item WHERE NOT a AND c = 'x'", r#"DELETE {"a": false, "b": 1, "c": "x"}"#),
    ]
}

#[rustfmt::skip]
fn tables() -> Vec<Case> {
    let (long, long_multibyte) = ("n".repeat(63), format!("{}n", "ü".repeat(31)));
    let long_pipeline = "v".repeat(59);
    vec![
        Case::over("quoted, mixed-case and non-ASCII names", r#"CREATE TABLE "Wa""re.Ä 漢" ("Id %" int PRIMARY KEY, "Ti""tle ü" text, "select" text)"#)
            .watch(|w| {
                (w.pipeline, w.source, w.rows) = (r#""Vektoren ß""#.into(), r#""Wa""re.Ä 漢""#.into(), r#""Wa""re.Ä 漢""#.into());
                (w.key, w.arguments) = (r#""Id %""#.into(), r#"columns => ARRAY['Ti"tle ü', 'select']"#.into());
                w.text = r#"NULLIF(concat_ws(E'\n', s."Ti""tle ü", s."select"), '')"#.into();
            })
            .run(r#"INSERT INTO "Wa""re.Ä 漢" VALUES (1, 'one', 'two'), (2, NULL, 'alone'), (3, NULL, NULL)"#,
                 r#""Wa""re.Ä 漢" INSERT {"Id %": 1}; "Wa""re.Ä 漢" INSERT {"Id %": 2}; "Wa""re.Ä 漢" INSERT {"Id %": 3}"#)
            .run(r#"UPDATE "Wa""re.Ä 漢" SET "select" = 'three' WHERE "Id %" = 2"#, r#""Wa""re.Ä 漢" UPDATE {"Id %": 2}"#),
        Case::over("names as long as they can be", format!("CREATE SCHEMA {long}; CREATE TABLE {long}.{long_multibyte} ({long} int PRIMARY KEY, {long_multibyte} text)"))
            .watch(|w| {
                w.source = format!("{long}.{long_multibyte}");
                (w.pipeline, w.rows, w.key) = (format!("{long}.{long_pipeline}"), w.source.clone(), long.clone());
                (w.arguments, w.text) = (format!("columns => '{{{long_multibyte}}}'"), format!("s.{long_multibyte}"));
            })
            .run(format!("INSERT INTO {long}.{long_multibyte} VALUES (1, 'one')"), format!("{long}.\"{long_multibyte}\" INSERT {{\"{long}\": 1}}"))
            .run(format!("UPDATE {long}.{long_multibyte} SET {long} = 2"), format!("{long}.\"{long_multibyte}\" UPDATE {{\"{long}\": 2}} <- {{\"{long}\": 1}}"))
            .run(format!("TRUNCATE {long}.{long_multibyte}"), format!("{long}.\"{long_multibyte}\" TRUNCATE")),
        Case::over("a schema that is not in the search_path", r#"CREATE SCHEMA "Far Away"; CREATE TABLE "Far Away".item (id int PRIMARY KEY, title text)"#)
            .watch(|w| {
                (w.pipeline, w.source, w.rows) = (r#""Far Away".e"#.into(), r#""Far Away".item"#.into(), r#""Far Away".item"#.into());
            })
            .run(r#"SET search_path = ''; INSERT INTO "Far Away".item VALUES (1, 'one')"#, r#""Far Away".item INSERT 1"#)
            .run(r#"SET search_path = pg_temp, nowhere; UPDATE "Far Away".item SET title = 'changed'"#, r#""Far Away".item UPDATE 1"#),
        Case::new("a name that is in two schemas")
            .given("CREATE SCHEMA tenant; CREATE TABLE tenant.item (id int PRIMARY KEY, title text)")
            .also("tenant.item")
            .run("INSERT INTO item VALUES (1, 'one'); INSERT INTO tenant.item VALUES (1, 'of the tenant')", "INSERT 1; tenant.item INSERT 1")
            .run("SET search_path = tenant; UPDATE item SET title = 'changed'", "tenant.item UPDATE 1")
            .run("DELETE FROM shop.item", "DELETE 1"),
        Case::three("a temporary table of the same name")
            .run("CREATE TEMP TABLE item (id int PRIMARY KEY, title text); INSERT INTO item VALUES (4, 'of the session'); TRUNCATE item", "")
            .run("UPDATE shop.item SET title = 'changed' WHERE id = 1", "UPDATE 1"),
        Case::over("a generated column", "CREATE TABLE item (id int PRIMARY KEY, name text, stock int, title text GENERATED ALWAYS AS (upper(name)) STORED)")
            .run("INSERT INTO item VALUES (1, 'one'), (2, NULL)", "INSERT 1; INSERT 2")
            .run("UPDATE item SET stock = 1", "(UPDATE 1); (UPDATE 2)")
            .run("UPDATE item SET name = 'ONE' WHERE id = 1", "(UPDATE 1)")
            .run("UPDATE item SET name = 'changed' WHERE id = 1", "UPDATE 1"),
        Case::over("a virtual generated column", "CREATE TABLE item (id int PRIMARY KEY, name text, stock int, title text GENERATED ALWAYS AS (lower(name)) VIRTUAL)")
            .since(18)
            .not_replayed()
            .run("INSERT INTO item VALUES (1, 'ONE'), (2, NULL)", "INSERT 1; INSERT 2")
            .run("UPDATE item SET stock = 1", "(UPDATE 1); (UPDATE 2)")
            .run("UPDATE item SET name = 'changed' WHERE id = 1", "UPDATE 1"),
        Case::over("a generated key", "CREATE TABLE item (id int GENERATED ALWAYS AS (n * 10) STORED PRIMARY KEY, n int, title text)")
            .run("INSERT INTO item (n, title) VALUES (1, 'one')", "INSERT 10")
            .run("UPDATE item SET n = 2", "UPDATE 20 <- 10"),
        Case::over("an identity column", "CREATE TABLE item (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text)")
            .run("INSERT INTO item (title) VALUES ('one'), ('two')", "INSERT 1; INSERT 2")
            .run("INSERT INTO item OVERRIDING SYSTEM VALUE VALUES (7, 'seven')", "INSERT 7")
            .run("TRUNCATE item RESTART IDENTITY", "TRUNCATE")
            .run("INSERT INTO item DEFAULT VALUES", "INSERT 1"),
        Case::over("a serial column", "CREATE TABLE item (title text, id serial PRIMARY KEY)")
            .run("INSERT INTO item VALUES ('one'), ('two')", "INSERT 1; INSERT 2"),
        Case::over("columns that were dropped and added again", "CREATE TABLE item (a int, id int, title text, b int); ALTER TABLE item DROP a, DROP title, DROP b")
            .given("ALTER TABLE item ADD PRIMARY KEY (id), ADD b text, ADD title text")
            .run("INSERT INTO item VALUES (1, 'b', 'one')", "INSERT 1")
            .run("ALTER TABLE item DROP b; ALTER TABLE item ADD b numeric DEFAULT 7", "")
            .run("UPDATE item SET b = 8", "(UPDATE 1)")
            .run("UPDATE item SET title = 'changed'", "UPDATE 1")
            .not_replayed(),
        Case::three("a column that was added with a default")
            .given("ALTER TABLE item ADD note text NOT NULL DEFAULT 'noted'")
            .text("columns => '{note,title}'", r"concat_ws(E'\n', s.note, s.title)")
            .run("UPDATE item SET stock = 1 WHERE id = 1", "(UPDATE 1)")
            .run("UPDATE item SET note = 'noted' WHERE id = 2", "")
            .run("UPDATE item SET note = 'changed' WHERE id = 3", "UPDATE 3"),
        Case::over("two hundred columns, the key last", format!("CREATE TABLE item ({}, title text, id int PRIMARY KEY)", (0..200).map(|n| format!("c{n} int")).collect::<Vec<_>>().join(", ")))
            .run("INSERT INTO item (id, title) VALUES (1, 'one')", "INSERT 1")
            .run("UPDATE item SET c100 = 1", "(UPDATE 1)")
            .run("UPDATE item SET title = 'changed', c199 = 1", "UPDATE 1"),
        Case::new("texts that are stored out of line")
            .run("ALTER TABLE item ALTER title SET STORAGE external; INSERT INTO item VALUES (1, repeat('long text ', 3000))", "INSERT 1")
            .run("UPDATE item SET stock = stock + 1", "(UPDATE 1)")
            .run("UPDATE item SET title = repeat('long text ', 3000)", "")
            .run("UPDATE item SET title = title || '.'", "UPDATE 1")
            .run("DELETE FROM item", "DELETE 1"),
        Case::over("columns without an equality of their own", "CREATE TABLE item (id int PRIMARY KEY, price numeric, data json, place point)")
            .text("content => 'concat(price, data, place)'", "concat(s.price, s.data, s.place)")
            .run("INSERT INTO item VALUES (1, 1.0, '{}', '(1,2)')", "INSERT 1")
            .run("UPDATE item SET price = 1.00", "UPDATE 1")
            .run("UPDATE item SET price = 1.00", "")
            .run("UPDATE item SET data = '{ }'", "UPDATE 1")
            .run("UPDATE item SET place = '(1.0,2)'", "")
            .run("UPDATE item SET place = '(1,3)'", "UPDATE 1"),
        Case::over("a text that is equal without regard to case", CITEXT)
            .given("CREATE TABLE item (id int PRIMARY KEY, title citext)")
            .text("content => 'title::text'", "s.title::text")
            .run("INSERT INTO item VALUES (1, 'one')", "INSERT 1")
            .run("UPDATE item SET title = 'ONE'", "UPDATE 1")
            .run("UPDATE item SET title = 'ONE'", ""),
        Case::new("rows that come to match the row_filter and cease to")
            .text("columns => '{title}', row_filter => 'stock > 0'", "CASE WHEN s.stock > 0 THEN s.title END")
            .run("INSERT INTO item VALUES (1, 'one', 1), (2, 'two', 0)", "INSERT 1; INSERT 2")
            .run("UPDATE item SET stock = 1 - stock", "UPDATE 1; UPDATE 2")
            .run("UPDATE item SET title = 'hidden' WHERE id = 1", "UPDATE 1")
            .run("UPDATE item SET stock = 2", "~ UPDATE 1; UPDATE 2"),
        Case::three("two pipelines over one table")
            .given("ALTER TABLE item ADD body text")
            .also("item")
            .watch(|w| (w.pipeline, w.arguments, w.text) = ("bodies".into(), "columns => '{body}'".into(), "s.body".into()))
            .run("INSERT INTO item (id, title, body) VALUES (4, 'four', 'its body')", "INSERT 4")
            .run("UPDATE item SET title = 'changed' WHERE id = 4", "UPDATE 4")
            .run("UPDATE item SET body = 'changed' WHERE id = 4", "UPDATE 4")
            .run("UPDATE item SET body = NULL, title = NULL WHERE id = 4", "UPDATE 4")
            .run("UPDATE item SET stock = 4 WHERE id = 4", "(UPDATE 4)")
            .not_replayed(),
        Case::over("a table of a type", "CREATE TYPE item_type AS (id int, title text); CREATE TABLE item OF item_type (PRIMARY KEY (id))")
            .run("INSERT INTO item VALUES (1, 'one')", "INSERT 1")
            .run("UPDATE item SET title = 'changed'", "UPDATE 1"),
        Case::three("a table that others inherit from")
            .given("CREATE TABLE child (extra int) INHERITS (item); INSERT INTO child VALUES (11, 'of the child')")
            .watch(|w| w.rows = "ONLY item".into())
            .run("INSERT INTO child VALUES (12, 'of the child, too')", "")
            .run("UPDATE item SET title = 'changed' WHERE id IN (1, 11)", "UPDATE 1")
            .run("CREATE TABLE another () INHERITS (item); INSERT INTO another VALUES (21, 'of another')", "")
            .run("DELETE FROM item WHERE id IN (2, 12, 21)", "DELETE 2")
            .run("TRUNCATE ONLY item", "TRUNCATE")
            .run("INSERT INTO item VALUES (1, 'again')", "INSERT 1")
            .run("TRUNCATE item", "TRUNCATE"),
        Case::three("a child with a pipeline of its own")
            .given("CREATE TABLE child (PRIMARY KEY (id)) INHERITS (item); INSERT INTO child VALUES (1, 'of the child')")
            .watch(|w| w.rows = "ONLY item".into())
            .also("child")
            .run("UPDATE item SET title = 'changed ' || tableoid::regclass WHERE id = 1", "UPDATE 1; child UPDATE 1")
            .run("DELETE FROM ONLY item WHERE id = 2", "DELETE 2")
            .run("ALTER TABLE child NO INHERIT item", "")
            .run("UPDATE child SET title = 'alone'", "child UPDATE 1"),
    ]
}

fn refusals() -> Vec<Case> {
    const PIPELINE: &str = "columns => '{title}', server => 'api', index => 'none'";
    let refused = [
        (
            "temporary",
            "CREATE TEMP TABLE item (id int PRIMARY KEY, title text)",
            "item",
            "42809",
            "ordinary table",
        ),
        (
            "view",
            "CREATE VIEW item AS SELECT 1 AS id, 'one' AS title",
            "item",
            "42809",
            "table",
        ),
        (
            "materialized view",
            "CREATE MATERIALIZED VIEW item AS SELECT 1 AS id, 'one' AS title",
            "item",
            "42809",
            "tables",
        ),
        (
            "foreign table",
            "DROP FOREIGN DATA WRAPPER IF EXISTS far CASCADE; CREATE FOREIGN DATA WRAPPER far; CREATE SERVER far FOREIGN DATA WRAPPER far; CREATE FOREIGN TABLE item (id int, title text) SERVER far",
            "item",
            "42809",
            "local",
        ),
        ("sequence", "CREATE SEQUENCE item", "item", "42809", "table"),
        (
            "index",
            "CREATE TABLE item (id int PRIMARY KEY, title text)",
            "item_pkey",
            "42809",
            "table",
        ),
        (
            "composite type",
            "CREATE TYPE item AS (id int, title text)",
            "item",
            "42809",
            "table",
        ),
        ("system table", "SELECT", "pg_class", "42809", "table"),
        (
            "table of recsync's",
            "SELECT",
            "recsync.job",
            "42809",
            "table",
        ),
        (
            "table without a primary key",
            "CREATE TABLE item (id int NOT NULL UNIQUE, title text)",
            "item",
            "55000",
            "PRIMARY KEY",
        ),
    ];
    let mut cases: Vec<Case> = Vec::new();
    for (what, given, source, code, hint) in refused {
        let case = Case::over(format!("a pipeline over a {what}"), given).unwatched();
        let sql = format!("SELECT recsync.create_pipeline('e', '{source}', {PIPELINE})");
        cases.push(
            case.refused_with_hint(sql, code, hint)
                .holds("SELECT count(*) = 0 FROM pg_trigger WHERE tgname LIKE '00_recsync%'"),
        );
        let case = Case::over(format!("the audit of a {what}"), given).unwatched();
        let sql = format!("SELECT recsync.audit('{source}')");
        cases.push(
            case.refused_with_hint(sql, code, hint)
                .holds("SELECT count(*) = 0 FROM pg_trigger WHERE tgname LIKE '00_recsync%'"),
        );
    }
    cases.push(
        Case::over(
            "a pipeline over an unlogged table",
            "CREATE UNLOGGED TABLE item (id int PRIMARY KEY, title text)",
        )
        .unwatched()
        .says(
            format!("SELECT recsync.create_pipeline('item_embedding', 'item', {PIPELINE})"),
            "",
            "unlogged",
        )
        .now_watched("item")
        .run("INSERT INTO item VALUES (1, 'one')", "INSERT 1"),
    );
    cases.push(
        Case::new("a pipeline over a table that others inherit from says so")
            .given("CREATE TABLE boots () INHERITS (item); CREATE TABLE shoes () INHERITS (item)")
            .unwatched()
            .says(
                format!("SELECT recsync.create_pipeline('item_embedding', 'item', {PIPELINE})"),
                "",
                "shoes",
            ),
    );
    cases
}
