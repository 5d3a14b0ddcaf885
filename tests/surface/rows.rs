//! Keys of all types, names of all kinds, and what makes a row's vector come and go.

use crate::support::{Api, Database, Sql, shared};

/// Pipeline `<table>_embedding` through inserts, updates, a key change and a delete on `table (key…, title)`; three
/// different keys.
fn lives_through_changes(
    db: &mut Database,
    api: &Api,
    table: &str,
    keys: &str,
    [first, second, third]: [&str; 3],
) {
    let pipeline = &format!("{table}_embedding");
    db.pipeline(pipeline, table);
    db.run(&format!(
        "INSERT INTO {table} ({keys}, title) VALUES ({first}, 'one'), ({second}, 'two')"
    ));
    db.settle(pipeline);
    in_step(db, api, table, keys, 2);
    db.run(&format!(
        "UPDATE {table} SET title = 'one, changed' WHERE ({keys}) = ({first})"
    ));
    db.run(&format!(
        "UPDATE {table} SET ({keys}) = ROW({third}) WHERE ({keys}) = ({second})"
    ));
    db.settle(pipeline);
    in_step(db, api, table, keys, 2);
    db.run(&format!("DELETE FROM {table} WHERE ({keys}) = ({third})"));
    db.settle(pipeline);
    in_step(db, api, table, keys, 1);
    let first = db.one::<i64>(&format!(
        "SELECT count(*) FROM {pipeline} WHERE ({keys}) = ({first})"
    ));
    assert_eq!(first, 1, "the key columns keep names and types");
}

fn in_step(db: &mut Database, api: &Api, table: &str, keys: &str, count: i64) {
    let pipeline = format!("{table}_embedding");
    db.assert_in_step(
        api,
        &format!("SELECT ({keys})::text, s.title, e.embedding::text FROM {table} s FULL JOIN {pipeline} e USING ({keys})"),
    );
    assert_eq!(
        db.one::<i64>(&format!("SELECT count(*) FROM {pipeline}")),
        count,
        "{table}"
    );
}

#[test]
fn keys_of_every_type_and_composite_keys_work() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TYPE mood AS ENUM ('sad', 'it''s \"fine\"', 'happy, very'); CREATE DOMAIN code AS text CHECK (value <> '')");
    let cases = [
        ("smallint", "1", "-2", "3"),
        (
            "bigint",
            "9007199254740993",
            "-9223372036854775808",
            "9223372036854775807",
        ),
        (
            "uuid",
            "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid",
            "'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid",
            "'b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid",
        ),
        (
            "text",
            "'plain'",
            "E'quote '' double \" back \\\\ new\\nline {} , ü 漢'",
            "''",
        ),
        ("varchar(40)", "'a'", "'NULL'", "' leading and trailing '"),
        ("char(8)", "'a'", "'b  '", "'c'"),
        (
            "timestamptz",
            "'2024-02-29 12:34:56.789012+05:30'::timestamptz",
            "'infinity'::timestamptz",
            "'0044-03-15 00:00:00+00 BC'::timestamptz",
        ),
        (
            "timestamp",
            "'2024-02-29 12:34:56.789012'::timestamp",
            "'-infinity'::timestamp",
            "'1999-12-31'::timestamp",
        ),
        (
            "date",
            "'2024-01-02'::date",
            "'1950-12-31'::date",
            "'infinity'::date",
        ),
        (
            "interval",
            "'1 year 2 mons 3 days 04:05:06.7'::interval",
            "'-1 day'::interval",
            "'00:00:00.000001'::interval",
        ),
        (
            "numeric",
            "12345678901234567890.12345678901234567890",
            "-0.10",
            "'NaN'::numeric",
        ),
        (
            "double precision",
            "0.1::float8 + 0.2::float8",
            "'-Infinity'::float8",
            "1e-300::float8",
        ),
        ("real", "0.1::real", "1e30::real", "'NaN'::real"),
        ("boolean", "true", "false", "NULL::boolean"),
        (
            "bytea",
            r"'\x00ff27'::bytea",
            r"'\x'::bytea",
            r"'\x5c'::bytea",
        ),
        (
            "inet",
            "'10.0.0.1/8'::inet",
            "'::1'::inet",
            "'192.168.1.1'::inet",
        ),
        (
            "mood",
            "'sad'::mood",
            "'it''s \"fine\"'::mood",
            "'happy, very'::mood",
        ),
        ("code", "'x'", "'y'", "'z'"),
        (
            "int[]",
            "'{1,2}'::int[]",
            "'{}'::int[]",
            "'{3,NULL}'::int[]",
        ),
        (
            "int4range",
            "'[1,5)'::int4range",
            "'empty'::int4range",
            "'(,)'::int4range",
        ),
    ];
    for (number, (kind, first, second, third)) in cases.into_iter().enumerate() {
        let table = format!("t{number}");
        db.run(&format!(
            "CREATE TABLE {table} (k {kind} PRIMARY KEY, title text)"
        ));
        // A boolean has no third value.
        let third = if third.starts_with("NULL") {
            second
        } else {
            third
        };
        println!("{kind}");
        lives_through_changes(&mut db, &api, &table, "k", [first, second, third]);
    }
    db.run("CREATE TABLE pairs (a uuid, title text, b mood, c timestamptz, PRIMARY KEY (c, b, a))");
    lives_through_changes(
        &mut db,
        &api,
        "pairs",
        "a, b, c",
        [
            "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, 'sad'::mood, '2024-02-29 12:34:56.789+00'::timestamptz",
            "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, 'it''s \"fine\"'::mood, 'infinity'::timestamptz",
            "'b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, 'happy, very'::mood, '2024-02-29 12:34:56.789+00'::timestamptz",
        ],
    );
    let dead: Vec<String> = db.column("SELECT d::text FROM recsync.dead_letter d");
    assert!(dead.is_empty(), "{dead:?}");
}

#[test]
fn keys_do_not_depend_on_the_writers_settings() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE moment (at timestamptz, span interval, x float8, b bytea, title text, PRIMARY KEY (at, span, x, b))");
    db.pipeline("moment_embedding", "moment");
    for (number, settings) in [
        "SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Kolkata'; SET intervalstyle = 'iso_8601'; SET extra_float_digits = -5; SET bytea_output = 'escape'",
        "SET datestyle = 'German'; SET timezone = 'America/New_York'; SET intervalstyle = 'sql_standard'; SET extra_float_digits = 3",
        "SET datestyle = 'Postgres, MDY'; SET timezone = 'UTC'; SET intervalstyle = 'postgres_verbose'",
    ]
    .iter()
    .enumerate()
    {
        let mut writer = db.connect();
        writer.run(settings);
        writer.run(&format!(
            "INSERT INTO moment SELECT timestamptz '2024-05-04 03:02:01.123456Z' + i * interval '1 day', i * interval '1 day 2:03:04', 0.1 + 0.2 * i, '\\x5c27', 'moment {number} ' || i
               FROM generate_series({number} * 10, {number} * 10 + 9) i"
        ));
        writer.run("DELETE FROM moment WHERE title LIKE '% 5'");
    }
    db.settle("moment_embedding");
    db.assert_in_step(&api, "SELECT m.title, m.title, e.embedding::text FROM moment m FULL JOIN moment_embedding e USING (at, span, x, b)");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM moment_embedding"), 29);
}

#[test]
fn quoted_mixed_case_and_schema_qualified_names_work() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("\"My Server\"", &api, "");
    db.run(r#"CREATE SCHEMA "Odd ""schema"""; CREATE TABLE "Odd ""schema"""."Item.s" ("Id %" int PRIMARY KEY, "ti""tle" text, "select" text, dropped int);
              ALTER TABLE "Odd ""schema"""."Item.s" DROP dropped"#);
    db.run(r#"SELECT recsync.create_pipeline('"Item Embedding"', '"Odd ""schema"""."Item.s"', columns => ARRAY['ti"tle', 'select'], server => 'My Server')"#);
    db.run(r#"INSERT INTO "Odd ""schema"""."Item.s" VALUES (1, 'one', 'two'), (2, NULL, 'alone'), (3, NULL, NULL)"#);
    let pipeline = r#""Odd ""schema"""."Item Embedding""#;
    db.settle(pipeline);
    db.assert_in_step(
        &api,
        &format!(
            r#"SELECT "Id %"::text, NULLIF(concat_ws(E'\n', "ti""tle", "select"), ''), e.embedding::text FROM "Odd ""schema"""."Item.s" s FULL JOIN {pipeline} e USING ("Id %")"#
        ),
    );
    let found: Vec<String> = db.column(&format!(
        "SELECT item FROM recsync.search('{pipeline}', 'alone')"
    ));
    assert_eq!(found[0], "2");
    db.run(r#"SET search_path = "Odd ""schema""", public"#);
    db.settle(r#""Item Embedding""#);
    db.run(r#"SELECT recsync.drop_pipeline('"Item Embedding"')"#);
    db.run("RESET search_path");

    // The same name in two schemas.
    db.run("CREATE SCHEMA tenant7; CREATE TABLE tenant7.item (id int PRIMARY KEY, title text); CREATE TABLE item (id int PRIMARY KEY, title text)");
    for schema in ["public", "tenant7"] {
        db.run(&format!("SELECT recsync.create_pipeline('{schema}.e', '{schema}.item', columns => '{{title}}', server => 'My Server')"));
        db.run(&format!(
            "INSERT INTO {schema}.item VALUES (1, 'of {schema}')"
        ));
        db.settle(&format!("{schema}.e"));
        db.assert_in_step(&api, &format!("SELECT id::text, title, embedding::text FROM {schema}.item FULL JOIN {schema}.e USING (id)"));
    }
}

#[test]
fn key_change_truncate_null_and_row_filter_move_and_remove_vectors() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, published boolean NOT NULL DEFAULT true)");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', row_filter => 'published AND length(title) < 100')");
    let query = "SELECT COALESCE(i.id, e.id)::text, CASE WHEN i.published AND length(i.title) < 100 THEN i.title END, e.embedding::text
                   FROM item i FULL JOIN item_embedding e USING (id)";
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 30) i");
    for (change, left) in [
        ("SELECT", 30),
        ("UPDATE item SET id = -id WHERE id <= 10", 30),
        (
            "UPDATE item SET id = CASE id WHEN 11 THEN 12 ELSE 11 END WHERE false",
            30,
        ),
        (
            "BEGIN; UPDATE item SET id = 0 WHERE id = 11; UPDATE item SET id = 11 WHERE id = 12; UPDATE item SET id = 12 WHERE id = 0; COMMIT",
            30,
        ),
        ("UPDATE item SET title = NULL WHERE id = 13", 29),
        ("UPDATE item SET title = '' WHERE id = 14", 28),
        ("UPDATE item SET title = 'back' WHERE id IN (13, 14)", 30),
        (
            "UPDATE item SET published = false WHERE id BETWEEN 15 AND 20",
            24,
        ),
        (
            "UPDATE item SET title = 'changed while hidden' WHERE id = 15",
            24,
        ),
        (
            "UPDATE item SET published = true WHERE id BETWEEN 15 AND 17",
            27,
        ),
        (
            "UPDATE item SET title = repeat('long ', 100) WHERE id = 21",
            26,
        ),
        (
            "DELETE FROM item WHERE id = 22; INSERT INTO item VALUES (22, 'another', true), (40, 'hidden', false)",
            26,
        ),
        (
            "BEGIN; TRUNCATE item; INSERT INTO item VALUES (1, 'after truncate'); COMMIT",
            1,
        ),
        ("TRUNCATE item", 0),
        ("INSERT INTO item VALUES (1, 'again')", 1),
    ] {
        db.run(change);
        db.settle("item_embedding");
        db.assert_in_step(&api, query);
        assert_eq!(
            db.one::<i64>("SELECT count(*) FROM item_embedding"),
            left,
            "{change}"
        );
    }
    assert!(
        !api.texts()
            .iter()
            .any(|text| text == "hidden" || text.starts_with("long")),
        "a row that does not match was sent"
    );
}

#[test]
fn every_way_of_writing_is_captured() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1), (2)");
    db.run(
        "ALTER TABLE item ADD parent int REFERENCES parent ON DELETE CASCADE ON UPDATE SET NULL",
    );
    {
        use std::io::Write;
        let mut copy = db
            .copy_in("COPY item (id, title, parent) FROM STDIN")
            .unwrap();
        copy.write_all(b"1\tby copy\t1\n2\tby copy, too\t1\n3\tthird\t2\n")
            .unwrap();
        copy.finish().unwrap();
    }
    db.run("INSERT INTO item VALUES (1, 'upserted') ON CONFLICT (id) DO UPDATE SET title = excluded.title");
    db.run("MERGE INTO item USING (VALUES (2, 'merged'), (4, 'merged in')) AS m (id, title) ON m.id = item.id
            WHEN MATCHED THEN UPDATE SET title = m.title WHEN NOT MATCHED THEN INSERT (id, title) VALUES (m.id, m.title)");
    db.run("WITH moved AS (DELETE FROM item WHERE id = 4 RETURNING *) INSERT INTO item SELECT id + 100, title FROM moved");
    db.run("CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.title := upper(NEW.title); RETURN NEW; END $$;
            CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION shout()");
    db.run("UPDATE item SET stock = 1 WHERE id = 3");
    db.run("DELETE FROM parent WHERE id = 1");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    assert_eq!(
        api.times_asked("THIRD"),
        1,
        "a change by a BEFORE trigger is a change"
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 2);
}

#[test]
fn partitioned_tables_are_watched_leaf_by_leaf() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int, region text, title text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
            CREATE TABLE item_eu PARTITION OF item FOR VALUES IN ('eu'); CREATE TABLE item_us (title text, id int NOT NULL, region text NOT NULL);
            ALTER TABLE item_us ADD PRIMARY KEY (region, id); ALTER TABLE item ATTACH PARTITION item_us FOR VALUES IN ('us')");
    db.pipeline("item_embedding", "item");
    let query = "SELECT (region, id)::text, i.title, e.embedding::text FROM item i FULL JOIN item_embedding e USING (region, id)";
    for change in [
        "INSERT INTO item SELECT i, CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END, 'row ' || i FROM generate_series(1, 20) i",
        "INSERT INTO item_us (id, region, title) VALUES (100, 'us', 'into the leaf'); UPDATE item_eu SET title = 'changed ' || id WHERE id < 10",
        "UPDATE item SET region = 'us' WHERE id = 2",
        "DELETE FROM item_us WHERE id = 1",
        "TRUNCATE item_us",
        "TRUNCATE item",
    ] {
        db.run(change);
        db.settle("item_embedding");
        db.assert_in_step(&api, query);
    }
}

#[test]
fn several_pipelines_over_one_table_each_follow_their_own_columns() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("ALTER TABLE item ADD body text");
    db.run("SELECT recsync.create_pipeline('body_embedding', 'item', content => $$'body: ' || body$$, server => 'api', storage => 'halfvec', index => 'none')");
    db.run("INSERT INTO item (id, title, body) VALUES (1, 'one', 'first')");
    db.settle("item_embedding");
    db.settle("body_embedding");
    assert_eq!(api.texts().len(), 2);
    db.run("UPDATE item SET body = 'second'");
    db.settle("item_embedding");
    db.settle("body_embedding");
    assert_eq!(
        api.texts()[2..],
        ["body: second"],
        "only the pipeline whose text has changed asks"
    );
    assert_eq!(
        db.one::<String>("SELECT pg_typeof(embedding)::text FROM body_embedding"),
        "halfvec"
    );
    db.assert_items_in_step(&api);
}
