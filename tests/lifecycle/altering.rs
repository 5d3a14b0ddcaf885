//! alter_pipeline: each setting in place, what follows from it and nothing else.

use std::time::Duration;

use crate::support::{Api, Database, PATIENCE, Sql, shared, wait_until};

/// `item` of twenty rows, of which each second one has a description, and pipeline `e` over their titles.
pub fn items(db: &mut Database, api: &Api) {
    db.server("api", api, "");
    db.run(
        "CREATE TABLE item (id int PRIMARY KEY, title text, description text, hidden boolean NOT NULL DEFAULT false);
         INSERT INTO item SELECT i, 'row ' || i, CASE WHEN i % 2 = 0 THEN 'described ' || i END FROM generate_series(1, 20) i",
    );
    db.run("SELECT recsync.create_pipeline('e', 'item', columns => '{title}', server => 'api', index => 'none')");
    db.settle("e");
    api.forget();
}

pub fn alter(db: &mut Database, arguments: &str) -> Comes {
    let row = &db.rows(&format!(
        "SELECT * FROM recsync.alter_pipeline('e', {arguments})"
    ))[0];
    Comes {
        rows: row.get("rows"),
        unchanged: row.get("unchanged"),
        embeds: row.get("embeds"),
        removes: row.get("removes"),
        fails: row.get("fails"),
        tokens: row.get("tokens"),
    }
}

#[derive(Debug, PartialEq)]
pub struct Comes {
    rows: Option<i64>,
    unchanged: Option<i64>,
    embeds: i64,
    removes: i64,
    fails: i64,
    tokens: i64,
}

const NOTHING: Comes = Comes {
    rows: None,
    unchanged: None,
    embeds: 0,
    removes: 0,
    fails: 0,
    tokens: 0,
};

/// What is declared and what has been looked at, as text.
pub fn declared(db: &mut Database) -> String {
    db.one("SELECT pg_catalog.format('%s %s', p, b.round) FROM recsync.pipeline p JOIN recsync.backfill b ON b.pipeline_id = p.id")
}

fn rounds(db: &mut Database) -> i32 {
    db.one("SELECT round FROM recsync.backfill")
}

/// That each row has the vector of `text`, an SQL expression over a row `i`, and there is no other vector.
#[track_caller]
pub fn assert_texts(db: &mut Database, api: &Api, text: &str) {
    db.assert_in_step(
        api,
        &format!("SELECT COALESCE(i.id, e.id)::text, {text}, e.embedding::text FROM item i FULL JOIN e ON e.id = i.id"),
    );
}

#[test]
fn only_rows_whose_text_changes_are_embedded_again_and_a_dry_run_says_how_many() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    let before = declared(&mut db);
    let change = "columns => '{title,description}'";
    let said = alter(&mut db, &format!("{change}, dry_run => true"));
    assert_eq!(
        (said.rows, said.unchanged, said.embeds, said.removes),
        (Some(20), Some(10), 10, 0)
    );
    assert!(said.tokens >= 10, "{said:?}");
    db.pause(Duration::from_millis(300));
    assert_eq!(declared(&mut db), before, "a dry run changes nothing");
    assert_eq!(api.requests_made(), 0, "a dry run sends nothing");

    assert_eq!(alter(&mut db, change), said);
    db.settle("e");
    let mut sent = api.texts();
    sent.sort();
    let mut wanted: Vec<String> =
        db.column("SELECT title || E'\\n' || description FROM item WHERE description IS NOT NULL");
    wanted.sort();
    assert_eq!(sent, wanted);
    assert_texts(&mut db, &api, "concat_ws(E'\\n', i.title, i.description)");
    // From now on the new column is watched.
    db.run("UPDATE item SET description = 'by now' WHERE id = 1");
    db.settle("e");
    assert_texts(&mut db, &api, "concat_ws(E'\\n', i.title, i.description)");
    // And the one that is not used any more is not.
    alter(&mut db, "content => 'description'");
    db.settle("e");
    assert_texts(&mut db, &api, "i.description");
    api.forget();
    db.run("UPDATE item SET title = 'unused'");
    db.settle("e");
    assert_eq!(api.texts(), Vec::<String>::new());
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM recsync.change_log WHERE op = 'UPDATE' AND record_key ->> 'id' = '20'"),
        0
    );
}

#[test]
fn rows_that_no_longer_match_lose_their_vector_and_get_it_back_with_the_filters_end() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    db.run("UPDATE item SET hidden = true WHERE id > 15");
    db.settle("e");
    let said = alter(&mut db, "row_filter => 'NOT hidden', dry_run => true");
    assert_eq!(
        (said.rows, said.unchanged, said.embeds, said.removes),
        (Some(15), Some(15), 0, 5)
    );
    alter(&mut db, "row_filter => 'NOT hidden'");
    db.settle("e");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM e"), 15);
    assert_texts(&mut db, &api, "CASE WHEN NOT i.hidden THEN i.title END");
    // The filter's column is watched.
    db.run("UPDATE item SET hidden = true WHERE id = 1");
    db.settle("e");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM e"), 14);
    let said = alter(&mut db, "row_filter => '-'");
    assert_eq!((said.unchanged, said.embeds), (Some(14), 6));
    db.settle("e");
    assert_texts(&mut db, &api, "i.title");
    assert_eq!(
        api.texts(),
        Vec::<String>::new(),
        "what is known costs no call"
    );
}

#[test]
fn another_server_of_the_same_width_is_taken_in_place_and_another_width_is_a_rebuild() {
    let api = Api::start();
    let other = Api::of_model("other", 16);
    let wide = Api::with_dimensions(17);
    let mut db = shared().database();
    items(&mut db, &api);
    db.run(&format!("CREATE SERVER same FOREIGN DATA WRAPPER recsync OPTIONS (api 'openai', url '{}', model 'test', dimensions '16', api_key_env 'TEST_API_KEY')", api.url()));
    db.run(&format!("CREATE SERVER other FOREIGN DATA WRAPPER recsync OPTIONS (api 'openai', url '{}', model 'another', dimensions '16', api_key_env 'TEST_API_KEY', price_per_million_tokens '1000')", other.url()));
    db.server("wide", &wide, "");
    let round = rounds(&mut db);
    assert_eq!(
        alter(&mut db, "server => 'same'"),
        NOTHING,
        "the model is the same"
    );
    db.run("UPDATE item SET title = 'by the other one' WHERE id = 1");
    db.settle("e");
    assert_eq!(rounds(&mut db), round);
    assert_eq!(api.texts(), ["by the other one"]);

    let said = &db.rows("SELECT embeds, tokens, cost::text FROM recsync.alter_pipeline('e', server => 'other', dry_run => true)")[0];
    let (embeds, tokens, cost): (i64, i64, String) = (said.get(0), said.get(1), said.get(2));
    assert_eq!(embeds, 20);
    assert_eq!(cost, format!("{:.6}", tokens as f64 / 1000.0));
    alter(&mut db, "server => 'other'");
    db.settle("e");
    assert_eq!(
        db.column::<String>("SELECT DISTINCT model FROM e"),
        ["another"]
    );
    assert_texts(&mut db, &other, "i.title");

    let error = db.refused("SELECT recsync.alter_pipeline('e', server => 'wide')");
    assert_eq!(error.code().code(), "22023");
    assert!(
        error.hint().unwrap().contains("recsync.rebuild("),
        "{error:?}"
    );
}

#[test]
fn schedule_debounce_capture_and_on_replica_hold_at_once_and_no_row_is_looked_at() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    let round = rounds(&mut db);
    assert_eq!(
        alter(
            &mut db,
            "schedule => 'daily', capture => 'full', on_replica => true"
        ),
        NOTHING
    );
    db.run("SET session_replication_role = replica; UPDATE item SET title = 'later' WHERE id = 1; RESET session_replication_role");
    db.pause(Duration::from_millis(300));
    assert_eq!(api.texts(), Vec::<String>::new());
    assert_eq!(
        db.one::<String>("SELECT record ->> 'description' || ' ' || (record ->> 'title') FROM recsync.change_log WHERE record_key ->> 'id' = '2' AND op = 'UPDATE' UNION ALL SELECT 'none' LIMIT 1"),
        "none"
    );
    db.run("UPDATE item SET title = 'full' WHERE id = 2");
    assert_eq!(
        db.one::<String>("SELECT record ->> 'description' FROM recsync.change_log WHERE record_key ->> 'id' = '2' AND op = 'UPDATE'"),
        "described 2"
    );
    alter(&mut db, "schedule => 'near_realtime', debounce => '60 s'");
    let when = "SELECT concat_ws(' ', schedule, debounce, max_delay) FROM recsync.pipeline";
    assert_eq!(db.one::<String>(when), "near_realtime 00:01:00");
    let error = db.refused("SELECT recsync.alter_pipeline('e', schedule => 'hourly')");
    assert_eq!(
        error.code().code(),
        "22023",
        "a debounce does not go with a timetable"
    );
    alter(&mut db, "schedule => 'realtime', debounce => '0'");
    assert_eq!(db.one::<String>(when), "realtime");
    db.run("UPDATE item SET title = 'now' WHERE id = 3");
    db.run("SELECT recsync.run('e')"); // what was put off until tomorrow
    db.settle("e");
    assert_texts(&mut db, &api, "i.title");
    assert_eq!(rounds(&mut db), round, "nobody had to look at all rows");
}

#[test]
fn nothing_changed_is_a_notice_and_nobody_looks_at_anything() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    let before = declared(&mut db);
    for arguments in [
        "NULL",
        "'{title}'",
        "content => $$concat_ws(E'\\n', title::text)$$, server => 'api', schedule => 'realtime', row_filter => '-', storage => 'vector', index => 'none', long_text => 'truncate', \
         capture => 'keys', on_replica => false, new_name => 'e', owner => 'postgres'",
    ] {
        assert_eq!(alter(&mut db, arguments), NOTHING, "{arguments}");
    }
    assert_eq!(declared(&mut db), before);
    assert_eq!(api.requests_made(), 0);
}

#[test]
fn what_cannot_be_is_refused_with_a_hint_and_changes_nothing() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    db.run("CREATE TABLE taken (); CREATE TABLE f_g1 ()");
    let before = declared(&mut db);
    for (arguments, code, wanted) in [
        ("columns => '{title,colour}'", "42703", "title"),
        (
            "columns => '{title}', content => 'title'",
            "22023",
            "content",
        ),
        ("content => $$title || random()$$", "22023", "stable"),
        ("row_filter => 'random() < 0.5'", "22023", "stable"),
        ("server => 'nowhere'", "42704", "CREATE SERVER"),
        ("schedule => 'sometimes'", "22023", "realtime"),
        ("long_text => 'summary'", "22023", "truncate"),
        ("chunk_tokens => 100", "22023", "chunks"),
        ("long_text => 'chunks', chunk_tokens => 1", "22023", "16"),
        ("monthly_budget => -1", "22023", "NULL"),
        ("storage => 'floppy'", "22023", "halfvec"),
        ("into_column => 'v'", "22023", "another pipeline"),
        ("index => 'btree'", "22023", "hnsw"),
        ("capture => 'all'", "22023", "columns"),
        ("new_name => 'taken'", "42P07", "another"),
        ("new_name => 'f'", "42P07", "another"),
        ("new_name => 'elsewhere.f'", "22023", "schema"),
        ("owner => 'nobody here'", "42704", "role"),
    ] {
        for dry_run in ["", ", dry_run => true"] {
            let call = format!("SELECT recsync.alter_pipeline('e', {arguments}{dry_run})");
            let error = db.refused(&call);
            assert_eq!(error.code().code(), code, "{call}: {error:?}");
            let hint = error.hint().unwrap_or_default();
            assert!(hint.contains(wanted), "{call}: no \"{wanted}\" in: {hint}");
        }
    }
    let error = db.refused("SELECT recsync.alter_pipeline('nothing', schedule => 'daily')");
    assert_eq!(error.code().code(), "42704");
    db.run("BEGIN; SELECT recsync.alter_pipeline('e', content => 'description', new_name => 'g', index => 'hnsw'); ROLLBACK");
    db.settle("e");
    assert_eq!(declared(&mut db), before);
    assert_texts(&mut db, &api, "i.title");
    let error = db.refused("SELECT recsync.create_pipeline('e', 'item', columns => '{description}', server => 'api', if_not_exists => true)");
    assert!(
        error.hint().unwrap().contains("recsync.alter_pipeline"),
        "{error:?}"
    );
}

#[test]
fn rows_whose_new_text_cannot_be_computed_are_counted_and_become_dead_letters() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    db.run("UPDATE item SET description = id::text; UPDATE item SET description = 'no number' WHERE id = 7");
    let said = alter(&mut db, "content => $$ (100 / description::int)::text $$");
    assert_eq!((said.fails, said.embeds, said.rows), (1, 19, Some(19)));
    db.settle("e");
    assert_eq!(
        db.column::<Vec<String>>("SELECT record_key FROM recsync.dead_letter"),
        [["7".to_owned()]]
    );
}

#[test]
fn the_index_is_changed_in_place_and_search_goes_on() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text); INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 1100) i");
    db.run("SELECT recsync.create_pipeline('e', 'item', columns => '{title}', server => 'api')");
    let indexes = "SELECT COALESCE(string_agg(x.relname::text, ' ' ORDER BY x.relname), 'none') FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am a ON a.oid = x.relam
                    WHERE i.indrelid = 'e_g1'::regclass AND a.amname = 'hnsw' AND i.indisvalid";
    let nearest = "SELECT item FROM recsync.search('e', 'row 42', k => 1)";
    wait_until(PATIENCE, "the first index is built", || {
        db.one::<String>(indexes) == "e_g1_hnsw_1"
    });
    let round = rounds(&mut db);
    // A reader holds its lock: the call gives up after a second, and nobody queues behind it for long.
    let mut other = db.connect();
    let mut reader = other.transaction().unwrap();
    reader.batch_execute("SELECT count(*) FROM e").unwrap();
    let error = db.refused("SELECT recsync.alter_pipeline('e', index => 'hnsw_bit')");
    assert_eq!(error.code().code(), "55P03");
    reader.commit().unwrap();
    db.run("BEGIN"); // until its end nobody builds another one
    assert_eq!(alter(&mut db, "index => 'hnsw_bit'"), NOTHING);
    assert_eq!(db.one::<String>(indexes), "none");
    assert_eq!(db.one::<String>(nearest), "42");
    db.run("COMMIT");
    wait_until(PATIENCE, "the index over bits is built", || {
        db.one::<String>(indexes) == "e_g1_hnsw_bit_1"
    });
    assert_eq!(db.one::<String>(nearest), "42");
    // One of the user's own stays.
    db.run("CREATE INDEX own ON e_g1 USING hnsw (embedding vector_cosine_ops)");
    alter(&mut db, "index => 'none'");
    assert_eq!(db.one::<String>(indexes), "own");
    assert_eq!(db.one::<String>(nearest), "42");
    assert_eq!(rounds(&mut db), round);
    db.run("INSERT INTO item VALUES (2000, 'after it all')");
    db.settle("e");
    assert_texts(&mut db, &api, "i.title");
}

#[test]
fn new_name_renames_view_table_and_function_and_the_old_name_is_free() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    db.run("SELECT recsync.create_pipeline('c', 'item', columns => '{description}', server => 'api', into_column => 'v')");
    db.settle("c");
    db.run("SELECT recsync.alter_pipeline('c', new_name => '\"In Column\"', content => $$ 'd: ' || description $$)");
    alter(
        &mut db,
        "new_name => 'public.titles', schedule => 'near_realtime', debounce => '50 ms'",
    );
    let names: Vec<String> =
        db.column("SELECT relation || ' ' || vectors FROM recsync.pipeline ORDER BY id");
    assert_eq!(
        names,
        [
            "public.titles public.titles_g1",
            "public.\"In Column\" public.\"In Column_g1\""
        ]
    );
    db.run("SELECT FROM \"In Column_g1\"()");
    db.run("UPDATE item SET title = 'renamed ' || id, description = 'changed' WHERE id <= 2");
    db.settle("titles");
    db.settle("\"In Column\"");
    db.assert_in_step(&api, "SELECT i.id::text, i.title, e.embedding::text FROM item i FULL JOIN titles e ON e.id = i.id");
    db.assert_in_step(
        &api,
        "SELECT i.id::text, 'd: ' || i.description, i.v::text FROM item i",
    );
    db.run("SELECT recsync.create_pipeline('e', 'item', columns => '{title}', server => 'api', index => 'none');
            SELECT recsync.drop_pipeline('titles'); SELECT recsync.drop_pipeline('\"In Column\"'); SELECT recsync.drop_pipeline('e')");
    let left: Vec<String> = db.column("SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')");
    assert_eq!(left, ["item"]);
}

#[test]
fn a_recommender_over_an_altered_pipeline_goes_on() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    db.run("CREATE TABLE event (id int PRIMARY KEY, user_id int NOT NULL, item_id int NOT NULL REFERENCES item, created_at timestamptz NOT NULL DEFAULT now());
            SELECT recsync.create_recommender('shop', items => 'e', interactions => 'event');
            INSERT INTO event VALUES (1, 1, 1), (2, 1, 2), (3, 2, 3)");
    db.settle("shop");
    alter(
        &mut db,
        "content => $$ 'the ' || title $$, row_filter => 'id < 20', new_name => 'f'",
    );
    db.settle("f");
    db.settle("shop");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM shop_recommend(1, k => 30)"),
        18
    );
    let by = "SELECT count(*) FROM shop_recommend(1, k => 30) WHERE reason ? 'interest'";
    wait_until(PATIENCE, "interests are made of the new vectors", || {
        db.one::<i64>(by) > 0
    });
    db.run("INSERT INTO event VALUES (4, 1, 7)");
    db.settle("shop");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM shop_recommend(1, k => 30)"),
        17
    );
}

#[test]
fn paused_pipeline_is_mended_by_another_text_and_resumed() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    alter(&mut db, "columns => '{title,description}'");
    db.settle("e");
    db.run("ALTER TABLE item DROP description");
    wait_until(PATIENCE, "it is paused", || {
        db.one("SELECT paused FROM recsync.pipeline")
    });
    let said = alter(&mut db, "columns => '{title}'");
    assert_eq!((said.unchanged, said.embeds), (Some(10), 10));
    assert!(
        db.one::<bool>("SELECT paused FROM recsync.pipeline"),
        "who paused it, or resume, ends that"
    );
    db.run("SELECT recsync.resume('e')");
    db.settle("e");
    assert_texts(&mut db, &api, "i.title");
}
