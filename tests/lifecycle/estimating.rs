//! estimate: what it says beforehand against what it comes to.

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, shared, wait_until};

struct Estimate {
    rows: i64,
    characters: i64,
    tokens: i64,
    cost: Option<String>,
    duration: String,
    disk_bytes: i64,
    wal_bytes: i64,
    tokens_error: i64,
}

#[track_caller]
fn estimate(db: &mut Database, arguments: &str) -> Estimate {
    let rows = db.rows(&format!(
        "SELECT rows, characters, tokens, cost::text, duration::text, disk_bytes, wal_bytes, tokens_error FROM recsync.estimate({arguments})"
    ));
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    Estimate {
        rows: row.get(0),
        characters: row.get(1),
        tokens: row.get(2),
        cost: row.get(3),
        duration: row.get(4),
        disk_bytes: row.get(5),
        wal_bytes: row.get(6),
        tokens_error: row.get(7),
    }
}

const TABLE: &str = "'item', '{title}', server => 'api'";

/// Table `item` with `count` texts that have two tokens in eleven characters each.
fn table<'a>(api: &Api, options: &str, count: i32) -> Database<'a> {
    let mut db = shared().database();
    db.server("api", api, options);
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    db.run(&format!(
        "INSERT INTO item SELECT i, 'hello world' FROM generate_series(1, {count}) i"
    ));
    db
}

#[test]
fn few_texts_are_counted_exactly_and_nothing_is_sent() {
    let api = Api::start();
    let mut db = table(&api, "price_per_million_tokens '20'", 300);
    db.run("INSERT INTO item VALUES (1001, NULL), (1002, ''); INSERT INTO item VALUES (1003, 'antidisestablishmentarianism', 7), (1004, 'お誕生日おめでとう', 7)");
    let all = estimate(&mut db, TABLE);
    assert_eq!((all.rows, all.characters), (302, 300 * 11 + 28 + 9));
    assert_eq!((all.tokens, all.tokens_error), (600 + 6 + 9, 0));
    assert_eq!(
        all.cost.as_deref(),
        Some("0.012300"),
        "615 of a million at 20"
    );
    let some = estimate(&mut db, &format!("{TABLE}, row_filter => 'stock > 5'"));
    assert_eq!((some.rows, some.characters, some.tokens), (2, 37, 15));
    let twice =
        "'item', content => $$title || ' ' || title$$, row_filter => 'id <= 300', server => 'api'";
    assert_eq!(estimate(&mut db, twice).tokens, 1_200);
    db.run("ALTER SERVER api OPTIONS (DROP price_per_million_tokens, ADD document_prefix 'hello world ')");
    let prefixed = estimate(&mut db, &format!("{TABLE}, row_filter => 'id <= 300'"));
    assert_eq!(prefixed.characters, 3_300, "of the texts");
    assert_eq!(
        prefixed.tokens, 1_200,
        "what is put before them is paid for"
    );
    assert_eq!(prefixed.cost, None, "no price is known");
    assert_eq!(api.requests_made(), 0);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.status"),
        0,
        "and nothing is made"
    );
    db.run("DELETE FROM item");
    let nothing = estimate(&mut db, TABLE);
    assert_eq!(
        (
            nothing.rows,
            nothing.tokens,
            nothing.disk_bytes,
            nothing.wal_bytes
        ),
        (0, 0, 0, 0)
    );
}

#[test]
fn of_a_text_that_is_truncated_what_is_sent_counts() {
    let api = Api::start();
    let mut db = table(
        &api,
        "max_input_tokens '100', document_prefix 'passage: '",
        2,
    );
    db.run(
        "INSERT INTO item SELECT i, repeat('The boots of story ' || i || ' are for mud, snow and ice. ', i) FROM generate_series(3, 30) i",
    );
    let all = estimate(&mut db, TABLE);
    assert_eq!(all.rows, 30);
    db.pipeline("item_embedding", "item");
    db.settle("item_embedding");
    db.run("CREATE TABLE sent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text)");
    // A text that two rows have is sent once and counted twice.
    let texts = api.texts();
    for text in texts
        .iter()
        .chain(["passage: hello world"].map(|text| text.to_owned()).iter())
    {
        db.execute("INSERT INTO sent (title) VALUES ($1)", &[text])
            .unwrap();
    }
    db.server("plain", &api, "");
    let sent = estimate(&mut db, "'sent', '{title}', server => 'plain'");
    assert_eq!((sent.rows, sent.tokens), (30, all.tokens));
    assert!(all.tokens < 30 * 100, "{}", all.tokens);
}

#[test]
fn many_texts_are_estimated_by_a_sample_within_the_error_that_is_said() {
    let api = Api::start();
    let mut db = table(&api, "", 0);
    // Two tokens a repetition; the long word has six in 28 characters.
    db.run("INSERT INTO item SELECT i, CASE WHEN i % 5 = 0 THEN 'antidisestablishmentarianism' ELSE 'hello world' || repeat(' hello world', i % 20) END FROM generate_series(1, 6000) i");
    let exact: i64 =
        db.one("SELECT sum(CASE WHEN id % 5 = 0 THEN 6 ELSE 2 + 2 * (id % 20) END) FROM item");
    let all = estimate(&mut db, TABLE);
    assert_eq!(all.rows, 6_000);
    assert_eq!(
        all.characters,
        db.one::<i64>("SELECT sum(length(title)) FROM item")
    );
    let off = (all.tokens - exact).abs();
    assert!(
        off > 0 && off <= all.tokens_error,
        "{} for {exact} ± {}",
        all.tokens,
        all.tokens_error
    );
    assert!(
        all.tokens_error < exact / 20,
        "± {} of {exact}",
        all.tokens_error
    );
}

#[test]
fn of_a_pipeline_only_what_is_left_is_counted_paused_or_not() {
    let api = Api::start();
    let mut db = table(&api, "", 0);
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 500) i");
    db.pipeline("item_embedding", "item");
    db.settle("item_embedding");
    assert_eq!(estimate(&mut db, "'item_embedding'").rows, 0);
    db.run("SELECT recsync.pause('item_embedding')");
    db.run("INSERT INTO item VALUES (501, 'hello world'); UPDATE item SET title = 'tiktoken is great!' WHERE id = 7; UPDATE item SET stock = 1; DELETE FROM item WHERE id = 8");
    db.run("UPDATE item_embedding_g1 SET model = 'another' WHERE id = 9");
    api.forget();
    let left = estimate(&mut db, "name => 'item_embedding'");
    assert_eq!((left.rows, left.characters), (3, 11 + 18 + 5));
    db.run("SELECT recsync.resume('item_embedding')");
    db.settle("item_embedding");
    assert_eq!(api.texts().len(), 3);
    assert_eq!(estimate(&mut db, "'item_embedding'").rows, 0);
}

#[test]
fn the_slowest_of_the_servers_limits_is_the_time() {
    let api = Api::start();
    let mut db = table(&api, "max_batch_inputs '50', max_concurrency '2'", 1_000);
    let mut duration = |options: &str| {
        if !options.is_empty() {
            db.run(&format!("ALTER SERVER api OPTIONS ({options})"));
        }
        estimate(&mut db, TABLE).duration
    };
    assert_eq!(
        duration(""),
        "00:00:05",
        "20 requests of half a second, two at a time"
    );
    assert_eq!(duration("ADD requests_per_minute '10'"), "00:02:00");
    assert_eq!(duration("ADD tokens_per_minute '100'"), "00:20:00");
    assert_eq!(
        duration("DROP tokens_per_minute, ADD max_batch_tokens '20'"),
        "00:10:00",
        "100 requests of 20 tokens"
    );
}

#[test]
fn refusals_are_those_of_create_pipeline() {
    let api = Api::start();
    let mut db = table(&api, "", 10);
    db.run("DROP ROLE IF EXISTS estimate_stranger; CREATE ROLE estimate_stranger LOGIN; GRANT SELECT ON item TO estimate_stranger");
    db.pipeline("item_embedding", "item");
    let mut stranger = db.connect_as("estimate_stranger");
    for (arguments, code) in [
        ("'item', '{nothing}', server => 'api'", "42703"),
        ("'item', '{title}', server => 'nothing'", "42704"),
        ("'item', '{title}'", "22023"),
        ("'item', server => 'api'", "22023"),
        ("'item', '{title}', 'title', 'api'", "22023"),
        (
            "'item', content => 'random()::text', server => 'api'",
            "22023",
        ),
        (
            "'item', '{title}', server => 'api', storage => 'bytea'",
            "22023",
        ),
        ("'nothing'", "42704"),
    ] {
        let error = db.refused(&format!("SELECT recsync.estimate({arguments})"));
        assert_eq!(
            error.code().code(),
            code,
            "{arguments}: {}",
            error.message()
        );
    }
    for arguments in [TABLE, "'item_embedding'"] {
        let error = stranger.refused(&format!("SELECT recsync.estimate({arguments})"));
        assert_eq!(
            error.code().code(),
            "42501",
            "{arguments}: {}",
            error.message()
        );
        assert!(error.hint().is_some(), "{arguments}");
    }
}

/// What was said about disk and WAL, divided by what it came to.
fn sizes(cluster: &Cluster, dimensions: usize, options: &str, rows: i64) -> [f64; 2] {
    let api = Api::with_dimensions(dimensions);
    let mut db = cluster.database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id bigint PRIMARY KEY, title text)");
    db.run(&format!(
        "INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, {rows}) i"
    ));
    db.run("CHECKPOINT");
    let said = estimate(&mut db, &format!("{TABLE}{options}"));
    assert_eq!(said.rows, rows);
    db.run("CREATE TABLE before AS SELECT pg_current_wal_insert_lsn() AS lsn");
    db.run(&format!("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{{title}}', server => 'api'{options})"));
    db.settle("item_embedding");
    if !options.contains("none") {
        wait_until(PATIENCE, "the index is there", || {
            db.one("SELECT count(*) = 1 FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am a ON a.oid = x.relam WHERE a.amname = 'hnsw' AND i.indisvalid")
        });
    }
    let disk: i64 = db.one("SELECT pg_total_relation_size('item_embedding_g1')");
    let wal: i64 = db.one("SELECT (pg_current_wal_insert_lsn() - lsn)::bigint FROM before");
    let ratios = [
        said.disk_bytes as f64 / disk as f64,
        said.wal_bytes as f64 / wal as f64,
    ];
    println!("{dimensions}{options}: {ratios:.2?} of {disk} and {wal} bytes");
    ratios
}

#[test]
fn disk_and_wal_are_what_was_said_whatever_the_width_and_the_index() {
    let cluster = Cluster::start(&[
        ("recsync.index_min_rows", "0"),
        ("full_page_writes", "off"),
        ("max_wal_size", "4GB"),
    ]);
    for (dimensions, options, rows) in [
        (16, "", 6_000),
        (384, ", index => 'none'", 4_000),
        (384, "", 4_000),
        (1_536, "", 1_500),
        (1_536, ", storage => 'halfvec'", 1_500),
        (1_536, ", index => 'hnsw_bit'", 1_500),
        (3_072, ", storage => 'vector'", 800),
    ] {
        let [disk, wal] = sizes(&cluster, dimensions, options, rows);
        assert!((0.9..1.1).contains(&disk), "{dimensions}{options}: {disk}");
        assert!((0.85..1.2).contains(&wal), "{dimensions}{options}: {wal}");
    }
}
