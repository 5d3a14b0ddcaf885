use super::{CREATE, in_step, items, sent, table};
use crate::support::{Api, Cluster, Database, PATIENCE, Sql, shared, wait_until};

#[test]
fn a_column_that_is_missing_is_added_and_follows_every_change() {
    let api = Api::start();
    let mut db = table(&api, "");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 300) i");
    db.run(CREATE);
    assert_eq!(
        db.one::<String>("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'item'::regclass AND attname = 'embedding'"),
        "vector(16)"
    );
    assert_eq!(
        db.column::<String>("SELECT attname::text FROM pg_attribute WHERE attrelid = 'item_embedding'::regclass AND attnum > 0 ORDER BY attnum"),
        ["id", "embedding", "content_hash", "model", "embedded_at"]
    );
    let mut cost = |change: &str| sent(&mut db, &api, change);
    assert_eq!(cost("SELECT"), 300, "the rows that were there");
    assert_eq!(
        cost("INSERT INTO item VALUES (1001, 'new'), (1002, NULL), (1003, '')"),
        1
    );
    assert_eq!(cost("UPDATE item SET title = 'changed' WHERE id = 1"), 1);
    assert_eq!(cost("UPDATE item SET stock = stock + 1"), 0);
    assert_eq!(cost("UPDATE item SET title = NULL WHERE id <= 100"), 0);
    assert_eq!(
        cost("UPDATE item SET title = 'row ' || id WHERE id BETWEEN 2 AND 100"),
        0,
        "known texts"
    );
    assert_eq!(cost("DELETE FROM item WHERE id BETWEEN 200 AND 250"), 0);
    assert_eq!(
        cost("INSERT INTO item VALUES (200, 'row 201'), (201, 'row 2')"),
        1,
        "a text that another row has costs nothing; a deleted row has taken its vector along"
    );
    assert_eq!(cost("TRUNCATE item"), 0);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding_g1"), 0);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
}

#[test]
fn rows_that_match_no_filter_have_no_vector() {
    let api = Api::start();
    let mut db = table(&api, "");
    db.run("ALTER TABLE item ADD embedding vector(16)");
    db.run("INSERT INTO item SELECT i, 'row ' || i, i % 2, array_fill(1, ARRAY[16])::vector FROM generate_series(1, 40) i");
    db.run(&CREATE.replace("server =>", "row_filter => 'stock > 0', server =>"));
    let query = "SELECT id::text, CASE WHEN stock > 0 THEN title END, embedding::text FROM item";
    for change in [
        "SELECT",
        "UPDATE item SET stock = 1 - stock WHERE id <= 10",
        "UPDATE item SET stock = 0, title = 'changed while hidden' WHERE id <= 10",
        "UPDATE item SET stock = 1 WHERE id <= 5",
    ] {
        db.run(change);
        db.settle("item_embedding");
        db.assert_in_step(&api, query);
    }
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM item_embedding"),
        db.one::<i64>("SELECT count(*) FROM item WHERE stock > 0")
    );
}

#[test]
fn a_row_that_changes_its_key_keeps_its_vector_without_a_call() {
    let api = Api::start();
    let mut db = items(&api);
    let cost = |db: &mut Database, change: &str| sent(db, &api, change);
    let insert = "INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 50) i";
    assert_eq!(cost(&mut db, insert), 50);
    let version = "SELECT xmin::text FROM item WHERE title = 'row 7'";
    db.run("UPDATE item SET id = id + 1000");
    let moved = db.one::<String>(version);
    assert_eq!(cost(&mut db, "SELECT"), 0);
    assert_eq!(
        db.one::<String>(version),
        moved,
        "a row whose vector is there is not written again"
    );
    assert_eq!(
        cost(
            &mut db,
            "BEGIN; UPDATE item SET id = 1 WHERE id = 1001; UPDATE item SET id = 1001 WHERE id = 1002; UPDATE item SET id = 1002 WHERE id = 1; COMMIT"
        ),
        0,
        "two rows swap their keys"
    );
    assert_eq!(
        cost(
            &mut db,
            "UPDATE item SET id = id + 1000, title = 'moved and changed' WHERE id = 1003"
        ),
        1
    );
    assert_eq!(
        cost(
            &mut db,
            "WITH moved AS (DELETE FROM item WHERE id = 1004 RETURNING *) INSERT INTO item SELECT id + 5000, title, stock, embedding FROM moved"
        ),
        0,
        "it has taken its vector along"
    );
}

#[test]
fn a_vector_that_somebody_writes_over_is_taken_for_that_of_no_text() {
    let api = Api::start();
    let mut db = items(&api);
    assert_eq!(
        sent(
            &mut db,
            &api,
            "INSERT INTO item VALUES (1, 'one'), (2, 'two'), (3, 'three')"
        ),
        3
    );
    // Nobody is told of it, and another row with that text does not get it.
    db.run("UPDATE item SET embedding = array_fill(0.25, ARRAY[16])::vector WHERE id = 1; UPDATE item SET embedding = NULL WHERE id = 2");
    db.run("INSERT INTO item VALUES (4, 'one'), (5, 'two')");
    db.settle("item_embedding");
    db.assert_in_step(
        &api,
        "SELECT id::text, title, embedding::text FROM item WHERE id > 2",
    );
    assert_eq!(api.texts().len(), 5);
    // Whenever the row is looked at, it gets the right one.
    assert_eq!(
        sent(
            &mut db,
            &api,
            "SELECT recsync.pause('item_embedding'); SELECT recsync.resume('item_embedding')"
        ),
        0
    );
    // A row that is deleted and comes back with its text, before anybody has looked, has no vector.
    sent(
        &mut db,
        &api,
        "BEGIN; DELETE FROM item WHERE id = 3; INSERT INTO item VALUES (3, 'three'); COMMIT",
    );
}

#[test]
fn composite_keys_with_collations_and_odd_names_work() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run(r#"CREATE SCHEMA "Odd ""schema"""; CREATE TABLE "Odd ""schema"""."Item.s" (dropped int, "Id %" text COLLATE "C", "select" text, title text, n numeric(10,2), PRIMARY KEY (n, "Id %", "select"));
              ALTER TABLE "Odd ""schema"""."Item.s" DROP dropped"#);
    db.run(r#"SELECT recsync.create_pipeline('"Item Embedding"', '"Odd ""schema"""."Item.s"', columns => '{title}', server => 'api', index => 'none', into_column => 'Vec "tor')"#);
    let table = r#""Odd ""schema"""."Item.s""#;
    let pipeline = r#""Odd ""schema"""."Item Embedding""#;
    for change in [
        r#"INSERT INTO $ ("Id %", "select", n, title) SELECT 'é ' || i, 'ß''"', i / 2.0, 'row ' || i FROM generate_series(1, 20) i"#,
        r#"UPDATE $ SET title = title || '!' WHERE n > 5"#,
        r#"UPDATE $ SET "Id %" = "Id %" || ' \ moved' WHERE n > 7"#,
        r#"DELETE FROM $ WHERE n > 9"#,
        r#"UPDATE $ SET title = NULL WHERE n < 2"#,
    ] {
        db.run(&change.replace('$', table));
        db.settle(pipeline);
        db.assert_in_step(
            &api,
            &format!(r#"SELECT i.n::text, i.title, i."Vec ""tor"::text FROM {table} i"#),
        );
        db.assert_in_step(
            &api,
            &format!(r#"SELECT i.n::text, i.title, e.embedding::text FROM {table} i FULL JOIN {pipeline} e USING (n, "Id %", "select")"#),
        );
    }
    let found: Vec<String> = db.column(&format!(
        "SELECT item FROM recsync.search('{pipeline}', 'row 5', k => 1)"
    ));
    assert_eq!(found, [r#"{"n": 2.50, "Id %": "é 5", "select": "ß'\""}"#]);
}

#[test]
fn partitioned_tables_get_their_vectors_leaf_by_leaf() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int, region text, title text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
            CREATE TABLE item_eu PARTITION OF item FOR VALUES IN ('eu'); CREATE TABLE item_us (title text, id int NOT NULL, region text NOT NULL);
            ALTER TABLE item_us ADD PRIMARY KEY (region, id); ALTER TABLE item ATTACH PARTITION item_us FOR VALUES IN ('us')");
    db.run(CREATE);
    for change in [
        "INSERT INTO item SELECT i, CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END, 'row ' || i FROM generate_series(1, 40) i",
        "UPDATE item SET title = title || ', changed' WHERE id <= 10",
        "UPDATE item SET region = 'us' WHERE id <= 20",
        "UPDATE item_eu SET title = NULL WHERE id > 30",
        "TRUNCATE item_us",
        "ALTER TABLE item DETACH PARTITION item_eu",
        "CREATE TABLE item_as PARTITION OF item FOR VALUES IN ('as'); INSERT INTO item (region, id, title) VALUES ('as', 1, 'east')",
    ] {
        db.run(change);
        db.settle("item_embedding");
        db.assert_in_step(&api, "SELECT id::text, title, embedding::text FROM item");
        db.assert_in_step(
            &api,
            "SELECT (region, id)::text, i.title, e.embedding::text FROM item i FULL JOIN item_embedding e USING (region, id)",
        );
    }
    assert_eq!(
        api.times_asked("row 12"),
        1,
        "a row that moves to another partition takes its vector along"
    );
}

#[test]
fn search_uses_an_index_of_the_users_on_the_column() {
    let api = Api::start();
    let mut db = table(&api, "");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 600) i");
    db.run(CREATE);
    db.settle("item_embedding");
    db.run("CREATE INDEX item_nearest ON item USING hnsw (embedding vector_cosine_ops); ANALYZE item; ANALYZE item_embedding_g1");
    let used = "SELECT COALESCE(sum(idx_scan), 0)::bigint FROM pg_stat_user_indexes WHERE indexrelname = 'item_nearest'";
    let no_other_way = "SET enable_seqscan = off; SET enable_sort = off";
    db.run(no_other_way);
    let plan: Vec<String> = db.column(
        "EXPLAIN SELECT e.id FROM item_embedding e ORDER BY e.embedding <=> array_fill(0.5, ARRAY[16])::vector LIMIT 5",
    );
    assert!(
        plan.iter().any(|line| line.contains("item_nearest")),
        "{plan:#?}"
    );
    let mut reader = db.connect();
    reader.run(no_other_way);
    let found: Vec<String> =
        reader.column("SELECT item FROM recsync.search('item_embedding', 'row 77', k => 3)");
    assert_eq!(found[0], "77");
    drop(reader); // its counts are there when it has ended
    wait_until(PATIENCE, "search has used the index", || {
        db.one::<i64>(used) > 0
    });
    // A change goes into the index, too.
    db.run("UPDATE item SET title = 'another' WHERE id = 78");
    db.settle("item_embedding");
    assert_eq!(
        db.column::<String>("SELECT item FROM recsync.search('item_embedding', 'another', k => 1)"),
        ["78"]
    );
    in_step(&mut db, &api);
}

#[test]
fn writers_store_into_a_column_with_an_index_and_none_of_it_is_captured() {
    let cluster = Cluster::start(&[("max_worker_processes", "16"), ("recsync.max_writers", "2")]);
    let api = Api::start();
    let mut db = cluster.database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0, embedding vector(16), pids int[]);
            CREATE INDEX ON item USING hnsw (embedding vector_cosine_ops);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(0.002); NEW.pids := NEW.pids || pg_backend_pid(); RETURN NEW; END $$;
            CREATE TRIGGER note BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION note();
            INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 800) i");
    db.run(CREATE);
    db.run("SELECT recsync.audit('item')"); // which would log each update of another column
    let mut writers = Vec::new();
    wait_until(PATIENCE, "writers are there", || {
        writers = db.writers();
        !writers.is_empty()
    });
    db.run("UPDATE item SET title = 'live ' || id WHERE id % 100 = 0");
    db.settle("item_embedding");
    in_step(&mut db, &api);
    let by_writers: i64 = db.one(&format!(
        "SELECT count(*) FROM item, unnest(pids) pid WHERE pid = ANY (ARRAY{writers:?})"
    ));
    assert!(by_writers > 100, "{by_writers}");
    let changes: i64 = db.one("SELECT count(*) FROM recsync.change_log");
    assert_eq!(changes, 8, "only the user's own");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.job"), 0);
}

#[test]
fn a_worker_that_is_killed_while_it_stores_loses_nothing() {
    let cluster = Cluster::start(&[]);
    let api = Api::start();
    let mut db = cluster.database();
    db.server("api", &api, "");
    db.run(
        "CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0);
            INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 300) i",
    );
    db.run(CREATE);
    db.settle("item_embedding");
    // A store that is half done: the row is written, its trigger waits.
    db.run("CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id = 7 THEN PERFORM pg_sleep(4); END IF; RETURN NULL; END $$;
            CREATE TRIGGER wait AFTER UPDATE OF embedding ON item FOR EACH ROW EXECUTE FUNCTION wait()");
    db.run("UPDATE item SET title = 'between ' || id WHERE id <= 20; DELETE FROM item WHERE id = 30; UPDATE item SET title = NULL WHERE id = 31; UPDATE item SET id = 1032 WHERE id = 32");
    let worker = db.worker();
    wait_until(PATIENCE, "the store is half done", || {
        db.one::<bool>(&format!("SELECT count(*) > 0 FROM pg_stat_activity WHERE pid = {worker} AND wait_event = 'PgSleep'"))
    });
    db.kill9_worker();
    db.run("DROP TRIGGER wait ON item");
    db.settle("item_embedding");
    in_step(&mut db, &api);
    assert!(
        api.times_asked("between 7") <= 2,
        "{} calls for one text",
        api.times_asked("between 7")
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
}
