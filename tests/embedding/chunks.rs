//! Pipelines that have a row for each chunk of a text: which chunks there are, what an edit costs, what is found.

use std::collections::HashSet;
use std::process::{Command, Stdio};

use crate::long_texts::story;
use crate::support::cluster::bin;
use crate::support::database::by_hand;
use crate::support::{Api, Database, PATIENCE, Sql, shared, wait_until};

/// Table `item`, a server and a pipeline with chunks of up to 60 tokens: four or five sentences of a story at the most.
pub fn declare(db: &mut Database, api: &Api, options: &str, index: &str) {
    db.server("api", api, options);
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    db.run(&format!(
        "SELECT recsync.create_pipeline('item_embedding', 'item', '{{title}}', server => 'api', index => '{index}',
                                        long_text => 'chunks', chunk_tokens => 60)"
    ));
    db.settle("item_embedding"); // what is written from now on is no row from before it
}

pub fn items<'a>(api: &Api) -> Database<'a> {
    let mut db = shared().database();
    declare(&mut db, api, "", "none");
    db
}

pub fn put(db: &mut Database, id: i32, text: &str) {
    db.execute(
        "INSERT INTO item VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET title = excluded.title",
        &[&id, &text],
    )
    .unwrap();
}

/// Writes, waits, and says what was sent for it.
pub fn sent(db: &mut Database, api: &Api, id: i32, text: &str) -> Vec<String> {
    let before = api.texts().len();
    put(db, id, text);
    db.settle("item_embedding");
    assert_in_step(db, api);
    api.texts().split_off(before)
}

/// That each row has all chunks of its current text and no others, each with its vector.
#[track_caller]
pub fn assert_in_step(db: &mut Database, api: &Api) {
    db.assert_in_step(
        api,
        "SELECT concat_ws('/', COALESCE(i.id, e.id), e.chunk), CASE WHEN e.chunk IS NULL THEN i.title ELSE substr(i.title, e.chunk_start, e.chunk_end - e.chunk_start + 1) END,
                e.embedding::text FROM item i FULL JOIN item_embedding e ON e.id = i.id",
    );
    let incomplete: Vec<i32> = db.column(
        r"SELECT i.id FROM item i JOIN item_embedding e USING (id) GROUP BY i.id
          HAVING max(e.chunk) <> count(*)
              OR regexp_replace(string_agg(substr(i.title, e.chunk_start, e.chunk_end - e.chunk_start + 1), '' ORDER BY e.chunk), '\s', '', 'g')
                 <> regexp_replace(i.title, '\s', '', 'g')",
    );
    assert!(incomplete.is_empty(), "{incomplete:?}");
}

pub fn chunks(db: &mut Database, id: i32) -> i64 {
    db.one(&format!(
        "SELECT count(*) FROM item_embedding WHERE id = {id}"
    ))
}

#[test]
fn a_text_has_a_row_for_each_of_its_chunks() {
    let api = Api::start();
    let mut db = items(&api);
    let sent_for = sent(
        &mut db,
        &api,
        1,
        &format!("Füße im Schnee. {}", story(1, 1..=60)),
    );
    let count = chunks(&mut db, 1);
    assert!((12..=45).contains(&count), "{count} chunks");
    assert_eq!(sent_for.len() as i64, count);
    assert_eq!(sent(&mut db, &api, 2, "a short one"), ["a short one"]);
    assert_eq!(chunks(&mut db, 2), 1);
    // In one or many of ten rows, what is the same is sent once.
    assert_eq!(sent(&mut db, &api, 3, "a short one").len(), 0);
}

#[test]
fn an_edit_costs_the_chunks_around_it() {
    let api = Api::start();
    let mut db = items(&api);
    let text = story(1, 1..=110);
    sent(&mut db, &api, 1, &text);
    assert!(chunks(&mut db, 1) >= 30);
    let edited = text.replace(
        "Sentence 55 of",
        "Sentence 55, which is another and longer one, of",
    );
    let cost = sent(&mut db, &api, 1, &edited);
    assert!((1..=3).contains(&cost.len()), "{cost:?}");
    let longer = text.replace(
        "Sentence 30 of",
        &format!("{}Sentence 30 of", story(2, 1..=4)),
    );
    let cost = sent(&mut db, &api, 1, &longer);
    assert!((1..=5).contains(&cost.len()), "{cost:?}");
    let appended = format!("{longer}{}", story(1, 111..=111));
    assert!(sent(&mut db, &api, 1, &appended).len() <= 3);
    assert_eq!(
        sent(&mut db, &api, 1, &text).len(),
        0,
        "all of it was there before"
    );
}

#[test]
fn rows_without_a_change_are_left_as_they_are() {
    let api = Api::start();
    let mut db = items(&api);
    let text = story(1, 1..=60);
    sent(&mut db, &api, 1, &text);
    let count = chunks(&mut db, 1);
    let before = db.one::<String>("SELECT max(xmin::text) FROM item_embedding_g1");
    // Of the same length, so that nothing moves.
    sent(
        &mut db,
        &api,
        1,
        &text.replace("Sentence 30 of story 1", "Sentence 30 of story 7"),
    );
    let left: i64 = db.one(&format!(
        "SELECT count(*) FROM item_embedding_g1 WHERE xmin::text = '{before}'"
    ));
    assert!(left >= count - 4, "{left} of {count}");
    db.run("UPDATE item SET stock = stock + 1");
    db.run("SELECT recsync.pause('item_embedding'); SELECT recsync.resume('item_embedding')");
    let before = api.texts().len();
    db.settle("item_embedding");
    assert_eq!(api.texts().len(), before);
}

#[test]
fn a_text_that_gets_shorter_or_goes_takes_its_chunks_along() {
    let api = Api::start();
    let mut db = items(&api);
    sent(&mut db, &api, 1, &story(1, 1..=60));
    sent(&mut db, &api, 2, &story(2, 1..=60));
    sent(&mut db, &api, 1, &story(1, 1..=8));
    assert!((2..=6).contains(&chunks(&mut db, 1)));
    sent(&mut db, &api, 1, "");
    assert_eq!(chunks(&mut db, 1), 0);
    assert_eq!(sent(&mut db, &api, 1, &story(1, 1..=60)).len(), 0, "known");
    db.run("DELETE FROM item WHERE id = 2");
    db.settle("item_embedding");
    assert_eq!(chunks(&mut db, 2), 0);
    db.run("UPDATE item SET id = 10");
    db.settle("item_embedding");
    assert_in_step(&mut db, &api);
    assert!(chunks(&mut db, 10) > 10);
    db.run("TRUNCATE item");
    db.settle("item_embedding");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 0);
}

#[test]
fn search_lists_each_row_once_by_its_best_chunk() {
    let api = Api::start();
    for index in ["none", "hnsw", "hnsw_bit"] {
        let mut db = shared().database();
        declare(&mut db, &api, "", index);
        db.run("BEGIN");
        for id in 1..=150 {
            put(&mut db, id, &story(id, 1..=40));
        }
        db.run("COMMIT");
        db.settle("item_embedding");
        if index != "none" {
            wait_until(PATIENCE, "the index is there", || {
                db.one::<bool>("SELECT EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                                 WHERE i.indrelid = 'item_embedding_g1'::regclass AND i.indisvalid AND c.relname LIKE '%hnsw%')")
            });
        }
        let wanted: String = db.one(
            "SELECT substr(i.title, e.chunk_start, e.chunk_end - e.chunk_start + 1) FROM item i JOIN item_embedding e USING (id) WHERE i.id = 17 AND e.chunk = 5",
        );
        let found = db
            .query(
                "SELECT item, score, rank FROM recsync.search('item_embedding', $1, k => 10)",
                &[&wanted],
            )
            .unwrap();
        let ids: Vec<String> = found.iter().map(|row| row.get(0)).collect();
        assert_eq!(ids[0], "17", "{index}");
        assert!(found[0].get::<_, f64>(1) > 0.999);
        assert_eq!(
            ids.iter().collect::<HashSet<_>>().len(),
            10,
            "{index}: {ids:?}"
        );
        assert_eq!(found[9].get::<_, i32>(2), 10);
        if index != "hnsw_bit" {
            let exact: Vec<String> = db
                .query(
                    "SELECT id::text FROM item_embedding GROUP BY id
                      ORDER BY min(embedding <=> (SELECT recsync.embed('item_embedding', $1))) LIMIT 10",
                    &[&wanted],
                )
                .unwrap()
                .iter()
                .map(|row| row.get(0))
                .collect();
            assert_eq!(ids, exact, "{index}");
        }
        // As many as there are, and only those that pass.
        let all = db.query("SELECT item FROM recsync.search('item_embedding', $1, k => 100, filter => '{\"id\": {\"lte\": 12}}')", &[&wanted]).unwrap();
        assert_eq!(all.len(), 12, "{index}");
        // Which chunk it is, the view says.
        let best = db
            .query_one(
                "SELECT id, chunk FROM item_embedding ORDER BY embedding <=> (SELECT recsync.embed('item_embedding', $1)) LIMIT 1",
                &[&wanted],
            )
            .unwrap();
        assert_eq!((best.get::<_, i32>(0), best.get::<_, i32>(1)), (17, 5));
    }
}

#[test]
fn what_is_similar_to_a_row_goes_by_all_of_its_chunks() {
    let api = Api::start();
    let mut db = items(&api);
    for id in 1..=5 {
        put(&mut db, id, &story(id, 1..=12));
    }
    db.settle("item_embedding");
    let found: Vec<String> =
        db.column("SELECT item FROM recsync.similar('item_embedding', 1, k => 10)");
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(!found.contains(&"1".to_owned()));
    let nearest: String = db.one(
        "SELECT id::text FROM item_embedding WHERE id <> 1 GROUP BY id
          ORDER BY min(embedding <=> (SELECT avg(embedding) FROM item_embedding WHERE id = 1)) LIMIT 1",
    );
    assert_eq!(found[0], nearest);
}

#[test]
fn a_text_of_too_many_chunks_is_a_dead_letter() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text)");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', '{title}', server => 'api', index => 'none', long_text => 'chunks', chunk_tokens => 16)");
    put_title(&mut db, 1, &story(1, 1..=4_500));
    put_title(&mut db, 2, "a short one");
    db.settle("item_embedding");
    let message: String =
        db.one("SELECT message FROM recsync.dead_letter WHERE record_key = '{1}'");
    assert!(
        message.contains("too long") && message.contains("2048 chunks"),
        "{message}"
    );
    assert_eq!(api.texts(), ["a short one"]);
}

fn put_title(db: &mut Database, id: i32, text: &str) {
    db.execute("INSERT INTO item VALUES ($1, $2)", &[&id, &text])
        .unwrap();
}

#[test]
fn rows_that_were_there_before_are_embedded_verified_and_repaired() {
    let api = Api::start();
    let mut db = by_hand().database(); // what triggers have not seen is not looked at by itself there
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    for id in 1..=20 {
        put(&mut db, id, &story(id, 1..=30));
    }
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', '{title}', server => 'api', index => 'none', long_text => 'chunks', chunk_tokens => 60)");
    db.settle("item_embedding");
    assert_in_step(&mut db, &api);
    let faults =
        "SELECT ARRAY[missing, stale, orphaned, wrong_model] FROM recsync.verify('item_embedding')";
    assert_eq!(db.one::<Vec<i64>>(faults), [0; 4]);
    assert_eq!(
        db.one::<i64>("SELECT rows FROM recsync.estimate('item_embedding')"),
        0
    );

    db.run("BEGIN; SET LOCAL session_replication_role = replica;
            DELETE FROM item_embedding_g1 WHERE id <= 2; UPDATE item SET title = title || ' And more.' WHERE id IN (3, 4, 5); DELETE FROM item WHERE id = 6;
            COMMIT");
    assert_eq!(db.one::<Vec<i64>>(faults), [2, 3, 1, 0]);
    assert_eq!(
        db.one::<i64>("SELECT rows FROM recsync.estimate('item_embedding')"),
        5
    );
    assert_eq!(db.one::<i64>("SELECT recsync.repair('item_embedding')"), 6);
    db.settle("item_embedding");
    assert_eq!(db.one::<Vec<i64>>(faults), [0; 4]);
    assert_in_step(&mut db, &api);
}

#[test]
fn what_cannot_have_chunks_is_refused() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "max_input_tokens '300'");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text);
            CREATE TABLE page (id int, chunk int, title text, PRIMARY KEY (id, chunk));
            CREATE TABLE event (id int PRIMARY KEY, user_id int NOT NULL, item_id int REFERENCES item, created_at timestamptz NOT NULL DEFAULT now())");
    let create = |table: &str, more: &str| {
        format!(
            "SELECT recsync.create_pipeline('{table}_embedding', '{table}', '{{title}}', server => 'api', index => 'none', {more})"
        )
    };
    for (table, more, argument) in [
        ("item", "long_text => 'pieces'", "long_text"),
        (
            "item",
            "long_text => 'chunks', into_column => 'embedding'",
            "long_text",
        ),
        ("item", "chunk_tokens => 100", "chunk_tokens"),
        (
            "item",
            "long_text => 'mean', chunk_tokens => 100",
            "chunk_tokens",
        ),
        (
            "item",
            "long_text => 'chunks', chunk_tokens => 3",
            "chunk_tokens",
        ),
        (
            "item",
            "long_text => 'chunks', chunk_tokens => 400",
            "chunk_tokens",
        ),
        ("page", "long_text => 'chunks'", "long_text"),
    ] {
        let error = db.refused(&create(table, more));
        assert_eq!(error.code().code(), "22023", "{more}");
        assert!(error.message().contains(argument), "{}", error.message());
        assert!(error.hint().is_some());
    }
    db.run(&create(
        "item",
        "long_text => 'chunks', chunk_tokens => 100",
    ));
    db.run(&create(
        "item",
        "long_text => 'chunks', chunk_tokens => 100, if_not_exists => true",
    ));
    for other in ["long_text => 'mean'", "long_text => 'chunks'"] {
        let error = db.refused(&create("item", &format!("{other}, if_not_exists => true")));
        assert_eq!(error.code().code(), "42710");
    }
    let error = db.refused("SELECT recsync.create_recommender('shop', 'item_embedding', 'event')");
    assert_eq!(error.code().code(), "22023");
    assert!(error.message().contains("chunk"), "{}", error.message());
}

#[test]
fn a_dump_carries_chunks_and_a_restored_copy_pays_for_nothing() {
    let api = Api::start();
    let mut db = items(&api);
    let text = story(1, 1..=40);
    sent(&mut db, &api, 1, &text);
    sent(&mut db, &api, 2, "a short one");
    let mut copy = shared().empty_database();
    let sockets: String = db.one("SHOW unix_socket_directories");
    let client = |program: &str, database: &str| {
        let mut command = Command::new(bin().join(program));
        command.args(["-h", &sockets, "-U", "postgres", "-d", database]);
        command
    };
    let mut dump = client("pg_dump", &db.name);
    let mut dump = dump.stdout(Stdio::piped()).spawn().unwrap();
    let restored = client("psql", &copy.name)
        .args(["-q", "-v", "ON_ERROR_STOP=1"])
        .stdin(dump.stdout.take().unwrap())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(restored.success() && dump.wait().unwrap().success());
    let before = api.texts().len();
    copy.settle("item_embedding");
    assert_eq!(api.texts().len(), before);
    assert_in_step(&mut copy, &api);
    let edited = text.replace("Sentence 20 of", "Sentence 20, another, of");
    let cost = sent(&mut copy, &api, 1, &edited);
    assert!((1..=3).contains(&cost.len()), "{cost:?}");
}
