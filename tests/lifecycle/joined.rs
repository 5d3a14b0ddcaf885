//! alter_pipeline, rebuild, long texts, budgets and owners, one with another: a pipeline is one thing, whichever of its
//! generations is in service.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::altering::{alter, items};
use crate::rebuilding::{states, wait_for_generation};
use crate::support::sql::describe;
use crate::support::{Api, Database, PATIENCE, Sql, eventually, shared, wait_until};

/// A token costs a unit of money; as the scripted API counts them, a text of 20 bytes costs 5.
const PRICE: &str = "price_per_million_tokens '1000000'";

/// A server `new` for another model.
fn other_server(db: &mut Database, new: &Api, options: &str) {
    db.server("new", new, options);
    db.run("ALTER SERVER new OPTIONS (SET model 'another')");
}

/// That each row of `item` has the vector of this text.
#[track_caller]
fn assert_texts(db: &mut Database, api: &Api, text: &str) {
    db.assert_in_step(
        api,
        &format!("SELECT COALESCE(i.id, e.id)::text, {text}, e.embedding::text FROM item i FULL JOIN e ON e.id = i.id"),
    );
}

fn count(db: &mut Database, what: &str) -> i64 {
    db.one(&format!("SELECT count(*) FROM {what}"))
}

#[test]
fn another_storage_is_a_new_generation_and_sends_nothing() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    let said = alter(
        &mut db,
        "storage => 'halfvec', schedule => 'near_realtime', dry_run => true",
    );
    assert_eq!(said, alter(&mut db, "NULL"), "nothing is sent");
    assert_eq!(states(&mut db), ["1 in service"]);
    alter(
        &mut db,
        "storage => 'halfvec', schedule => 'near_realtime', monthly_budget => 7",
    );
    wait_for_generation(&mut db, 2);
    assert_eq!(api.requests_made(), 0);
    let declared: Vec<String> = db.column(
        "SELECT concat_ws(' ', generation, storage, schedule, monthly_budget) FROM recsync.pipeline ORDER BY generation",
    );
    assert_eq!(
        declared,
        ["1 vector near_realtime 7", "2 halfvec near_realtime 7"]
    );
    assert_eq!(count(&mut db, "e"), 20);
    // It is declared so now.
    alter(&mut db, "storage => 'halfvec'");
    assert_eq!(states(&mut db), ["1 kept", "2 in service"]);
    let wide = Api::with_dimensions(17);
    db.server("wide", &wide, "");
    let error =
        db.refused("SELECT recsync.alter_pipeline('e', server => 'wide', storage => 'vector')");
    assert_eq!(error.code().code(), "22023");
    assert!(error.hint().unwrap().contains("recsync.rebuild("));
}

/// What a text of the table's first row says, and a hundred others do not.
const LONG: &str = "(SELECT string_agg('Sentence ' || n || ' of story ' || id || ' is about boots, laces and mud. ', '' ORDER BY n) FROM generate_series(1, 40) n)";

#[test]
fn long_texts_are_treated_otherwise_and_back_while_searches_go_on() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    db.run("ALTER SERVER api OPTIONS (ADD max_input_tokens '100')");
    db.run(&format!(
        "UPDATE item SET title = {LONG} WHERE id IN (1, 2)"
    ));
    db.settle("e");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (mut client, stopped) = (db.connect(), &stop);
        let searches = scope.spawn(move || {
            let nearest = client
                .prepare("SELECT item FROM recsync.search('e', $1, k => 3)")
                .unwrap();
            let mut count = 0;
            while !stopped.load(Ordering::SeqCst) {
                for number in [7, 13, 20] {
                    let found = client
                        .query(&nearest, &[&format!("row {number}")])
                        .unwrap_or_else(|error| panic!("{}", describe(&error)));
                    assert_eq!(found.len(), 3);
                    assert_eq!(found[0].get::<_, String>(0), number.to_string());
                    count += 1;
                }
            }
            count
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            round_trip(&mut db, &api);
        }));
        stop.store(true, Ordering::SeqCst);
        assert!(searches.join().unwrap() > 10);
        outcome.unwrap();
    });
}

/// The texts that were sent since the last call, without the questions of searches.
fn sent(api: &Api) -> Vec<String> {
    let mut texts = api.texts();
    api.forget();
    texts.retain(|text| !text.starts_with("row "));
    texts
}

fn round_trip(db: &mut Database, api: &Api) {
    const VECTOR: &str = "SELECT embedding::text FROM e WHERE id = 1";
    let first: String = db.one(VECTOR);
    sent(api);
    // The mean of the parts, in place: short texts keep their vectors.
    let said = alter(db, "long_text => 'mean', dry_run => true");
    assert_eq!(alter(db, "long_text => 'mean'"), said);
    db.settle("e");
    let parts = sent(api);
    assert!(parts.len() >= 8, "{parts:?}");
    assert!(parts.iter().all(|part| part.contains("Sentence")));
    assert_ne!(db.one::<String>(VECTOR), first);
    assert_eq!(states(db), ["1 in service"]);
    // A row a chunk: another table.
    alter(
        db,
        "long_text => 'chunks', chunk_tokens => 80, dry_run => true",
    );
    assert_eq!(states(db), ["1 in service"]);
    alter(db, "long_text => 'chunks', chunk_tokens => 80");
    wait_for_generation(db, 2);
    db.settle("e");
    assert!(sent(api).iter().all(|part| part.contains("Sentence")));
    let of_chunks = count(db, "e WHERE id = 1");
    assert!(of_chunks >= 5, "{of_chunks} chunks");
    assert_eq!(count(db, "e WHERE id > 2"), 18);
    assert_chunks(db, api);
    // Larger ones, in place.
    alter(db, "chunk_tokens => 40");
    db.settle("e");
    assert!(count(db, "e WHERE id = 1") > of_chunks);
    assert_chunks(db, api);
    assert_eq!(states(db), ["1 kept", "2 in service"]);
    assert!(sent(api).iter().all(|part| part.contains("Sentence")));
    // And back: what the beginning was is known from before, or asked for again; short texts are not.
    alter(db, "long_text => 'truncate'");
    wait_for_generation(db, 3);
    db.settle("e");
    assert!(sent(api).len() <= 2);
    assert_eq!(count(db, "e"), 20);
    assert_eq!(db.one::<String>(VECTOR), first);
    assert_eq!(
        count(
            db,
            "pg_attribute WHERE attrelid = 'e'::regclass AND attname = 'chunk'"
        ),
        0
    );
    // Back to chunks as they were kept.
    db.run("SELECT recsync.rollback_rebuild('e')");
    wait_for_generation(db, 2);
    assert_chunks(db, api);
}

#[track_caller]
fn assert_chunks(db: &mut Database, api: &Api) {
    db.assert_in_step(
        api,
        "SELECT concat_ws('/', i.id, e.chunk), substr(i.title, e.chunk_start, e.chunk_end - e.chunk_start + 1), e.embedding::text FROM item i LEFT JOIN e USING (id)",
    );
}

#[test]
fn pipeline_of_a_recommender_gets_no_chunks() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    db.run("CREATE TABLE event (id int PRIMARY KEY, user_id int NOT NULL, item_id int NOT NULL REFERENCES item, at timestamptz NOT NULL DEFAULT now())");
    db.run("SELECT recsync.create_recommender('shop', 'e', 'event')");
    for call in [
        "rebuild('e', long_text => 'chunks')",
        "alter_pipeline('e', long_text => 'chunks')",
        "alter_pipeline('e', long_text => 'chunks', dry_run => true)",
    ] {
        let error = db.refused(&format!("SELECT recsync.{call}"));
        assert_eq!(error.code().code(), "2BP01", "{call}: {error:?}");
    }
    // Nor those that it had before.
    db.run("SELECT recsync.drop_recommender('shop')");
    alter(&mut db, "long_text => 'chunks'");
    wait_for_generation(&mut db, 2);
    alter(&mut db, "long_text => 'truncate'");
    wait_for_generation(&mut db, 3);
    db.run("SELECT recsync.create_recommender('shop', 'e', 'event')");
    let error = db.refused("SELECT recsync.rollback_rebuild('e')");
    assert_eq!(error.code().code(), "2BP01", "{error:?}");
    // One that comes meanwhile keeps the chunks from their place.
    db.run("SELECT recsync.drop_recommender('shop')");
    let other = Api::of_model("new", 16);
    other_server(&mut db, &other, "");
    other.hold();
    db.run("SELECT recsync.rebuild('e', server => 'new', long_text => 'chunks')");
    other.wait_until_held(1);
    db.run("SELECT recsync.create_recommender('shop', 'e', 'event')");
    other.release();
    wait_until(PATIENCE, "it waits", || {
        db.one("SELECT COALESCE(bool_or(waits_for LIKE '%shop%'), false) FROM recsync.generation WHERE state = 'building'")
    });
    assert_eq!(states(&mut db), ["3 in service", "4 building"]);
}

#[test]
fn pipeline_is_not_altered_while_a_generation_is_built_but_may_get_a_budget() {
    let (api, new) = (Api::start(), Api::of_model("new", 16));
    let mut db = shared().database();
    items(&mut db, &api);
    other_server(&mut db, &new, "");
    new.hold();
    db.run("SELECT recsync.rebuild('e', server => 'new')");
    new.wait_until_held(1);
    for dry_run in ["", ", dry_run => true"] {
        let error = db.refused(&format!(
            "SELECT recsync.alter_pipeline('e', content => 'upper(title)'{dry_run})"
        ));
        assert_eq!(error.code().code(), "55006");
        assert!(error.hint().unwrap().contains("cancel_rebuild"));
    }
    db.run("SELECT recsync.set_budget('e', 1000)");
    let budgets: Vec<String> =
        db.column("SELECT monthly_budget::text FROM recsync.pipeline ORDER BY generation");
    assert_eq!(budgets, ["1000", "1000"]);
    db.run("SELECT recsync.cancel_rebuild('e')");
    new.release();
    alter(&mut db, "content => 'upper(title)'");
    db.settle("e");
    assert_texts(&mut db, &api, "upper(i.title)");
}

#[test]
fn roll_back_looks_at_rows_by_what_is_declared_by_then() {
    let (api, new) = (Api::start(), Api::of_model("new", 16));
    let mut db = shared().database();
    items(&mut db, &api);
    other_server(&mut db, &new, "");
    db.run("SELECT recsync.rebuild('e', server => 'new')");
    wait_for_generation(&mut db, 2);
    alter(
        &mut db,
        "content => 'upper(title)', row_filter => 'id > 5', long_text => 'mean', new_name => 'f'",
    );
    alter_again(&mut db);
    db.run("ALTER TABLE item RENAME title TO name");
    db.settle("e");
    assert_texts(&mut db, &new, "CASE WHEN i.id > 5 THEN upper(i.name) END");
    db.run("SELECT recsync.rollback_rebuild('e')");
    wait_for_generation(&mut db, 1);
    assert_texts(&mut db, &api, "CASE WHEN i.id > 5 THEN upper(i.name) END");
    db.run("UPDATE item SET name = 'late' WHERE id = 9");
    db.settle("e");
    assert_texts(&mut db, &api, "CASE WHEN i.id > 5 THEN upper(i.name) END");
    let modes: Vec<String> = db.column("SELECT DISTINCT long_text FROM recsync.pipeline");
    assert_eq!(modes, ["mean"]);
}

/// Under its own name again; the tables of both generations have been called after the other.
fn alter_again(db: &mut Database) {
    let tables: Vec<String> = db.column("SELECT vectors FROM recsync.pipeline ORDER BY generation");
    assert_eq!(tables, ["public.f_g1", "public.f_g2"]);
    db.run("SELECT recsync.alter_pipeline('f', new_name => 'e')");
}

#[test]
fn tables_of_all_generations_follow_the_view_to_a_new_owner() {
    let (api, new) = (Api::start(), Api::of_model("new", 16));
    let mut db = shared().database();
    items(&mut db, &api);
    other_server(&mut db, &new, "");
    db.run("SELECT recsync.rebuild('e')");
    wait_for_generation(&mut db, 2);
    let [first, second] = ["first", "second"].map(|name| format!("{name}_{}", db.name));
    for role in [&first, &second] {
        db.run(&format!(
            "CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}; GRANT SELECT ON item TO {role}; GRANT USAGE ON FOREIGN SERVER api, new TO {role}"
        ));
    }
    let owners = |db: &mut Database| -> Vec<String> {
        db.column("SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname ~ '^e(_g\\d)?$' AND relkind IN ('r', 'v')")
    };
    db.run(&format!("ALTER VIEW e OWNER TO {first}"));
    assert_eq!(owners(&mut db), [first.as_str()]);
    assert_eq!(states(&mut db), ["1 kept", "2 in service"]);
    // One that is being built, too, and it goes on as theirs.
    new.hold();
    db.run("SELECT recsync.rebuild('e', server => 'new')");
    new.wait_until_held(1);
    db.run(&format!("ALTER VIEW e OWNER TO {second}"));
    assert_eq!(owners(&mut db), [second.as_str()]);
    // What they lack both wait for.
    db.run(&format!(
        "REASSIGN OWNED BY {second} TO {first}; REVOKE SELECT ON item FROM {second}"
    ));
    db.run(&format!("ALTER VIEW e OWNER TO {second}"));
    let paused: Vec<bool> = db.column("SELECT paused FROM recsync.pipeline");
    assert_eq!(paused, [true, true]);
    db.run(&format!("GRANT SELECT ON item TO {second}"));
    new.release();
    wait_for_generation(&mut db, 3);
    db.settle("e");
    assert_texts(&mut db, &new, "i.title");
    assert_eq!(owners(&mut db), [second.as_str()]);
    db.run(&format!("REASSIGN OWNED BY {second} TO {first}"));
    assert_eq!(owners(&mut db), [first.as_str()]);
    db.run("SELECT recsync.alter_pipeline('e', owner => 'postgres')");
    assert_eq!(owners(&mut db), ["postgres"]);
    db.run(&format!(
        "DROP OWNED BY {first}, {second}; DROP ROLE {first}, {second}"
    ));
}

/// Pipelines and tokens in recsync.usage.
fn usage(db: &mut Database) -> Vec<String> {
    db.column(
        "SELECT pipeline || ' ' || sum(tokens) FROM recsync.usage GROUP BY pipeline ORDER BY 1",
    )
}

/// What was spent is in the ledger a moment after the vectors.
#[track_caller]
fn wait_for_usage(db: &mut Database, wanted: &[&str]) {
    let mut is = Vec::new();
    let came = eventually(PATIENCE, || {
        is = usage(db);
        is == wanted
    });
    assert!(came, "{is:?} is not {wanted:?}");
}

#[test]
fn what_its_generations_cost_is_the_pipelines_and_counts_for_its_budget() {
    let (api, new) = (Api::start(), Api::of_model("new", 16));
    let mut db = shared().database();
    db.server("api", &api, PRICE);
    other_server(
        &mut db,
        &new,
        &format!("{PRICE}, max_batch_inputs '1', max_concurrency '1'"),
    );
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text)");
    db.run("INSERT INTO item SELECT i, 'text number ' || lpad(i::text, 8) FROM generate_series(1, 10) i");
    db.run("SELECT recsync.create_pipeline('e', 'item', columns => '{title}', server => 'api', index => 'none', monthly_budget => 80)");
    db.settle("e");
    wait_for_usage(&mut db, &["public.e 50"]);
    // What the one before has spent counts: 30 are left.
    db.run("SELECT recsync.rebuild('e', server => 'new')");
    wait_until(PATIENCE, "it is spent", || {
        db.one("SELECT state = 'paused' FROM recsync.status WHERE name = 'public.e'")
    });
    wait_for_usage(&mut db, &["public.e 80"]);
    assert_eq!(new.requests_made(), 6);
    assert_eq!(states(&mut db), ["1 in service", "2 building"]);
    db.run("SELECT recsync.alter_pipeline('e', monthly_budget => 500) WHERE false; SELECT recsync.set_budget('e', 500)");
    wait_for_generation(&mut db, 2);
    const STATUS: &str = "SELECT concat_ws(' ', state, month_tokens, month_cost, monthly_budget, warning) FROM recsync.status WHERE kind = 'pipeline'";
    wait_for_usage(&mut db, &["public.e 100"]);
    wait_until(PATIENCE, "it runs", || {
        db.one::<String>(STATUS) == "running 100 100 500"
    });
    // The one before is gone, and what it has cost is not.
    db.run("SELECT recsync.drop_generation('e')");
    assert_eq!(usage(&mut db), ["public.e 100"]);
    db.run("SELECT recsync.embed('e', 'a text of 20 letters')");
    wait_for_usage(&mut db, &["public.e 105"]);
    db.run("SELECT recsync.alter_pipeline('e', monthly_budget => 105)");
    wait_until(PATIENCE, "it is spent", || {
        db.one::<String>(STATUS).starts_with("paused 105 105 105")
    });
    db.run("SELECT recsync.alter_pipeline('e', monthly_budget => 1000)");
    db.run("SELECT recsync.rebuild('e', server => 'api')");
    wait_for_generation(&mut db, 3);
    let before = usage(&mut db);
    assert_eq!(before.len(), 1);
    // To its owner, too.
    let role = format!("owner_{}", db.name);
    db.run(&format!("CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}; ALTER VIEW e OWNER TO {role}; SET ROLE {role}"));
    assert_eq!(usage(&mut db), before);
    db.run(&format!(
        "RESET ROLE; ALTER VIEW e OWNER TO postgres; DROP OWNED BY {role}; DROP ROLE {role}"
    ));
    db.run("SELECT recsync.drop_pipeline('e')");
    assert_eq!(usage(&mut db), before);
}
