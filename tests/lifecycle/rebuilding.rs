//! rebuild: a new generation of a pipeline's vectors beside the one in service, and the swap.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use postgres::Client;

use crate::support::sql::describe;
use crate::support::{Api, Cluster, Database, PATIENCE, Sql, eventually, shared, wait_until};

const ROWS: i64 = 300;

/// `item` with [`ROWS`] rows, pipeline `item_embedding` by server `api`, and server `new` for another model.
pub fn embedded(db: &mut Database, api: &Api, new: &Api, index: &str) {
    db.server("api", api, "");
    db.server("new", new, "");
    db.run("ALTER SERVER new OPTIONS (SET model 'another')");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    db.run(&format!(
        "INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, {ROWS}) i"
    ));
    db.run(&format!(
        "SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{{title}}', server => 'api', index => '{index}')"
    ));
    db.settle("item_embedding");
}

/// The number of the generation in service.
pub fn generation(db: &mut Database) -> i32 {
    db.one("SELECT generation FROM recsync.generation WHERE state = 'in service'")
}

#[track_caller]
pub fn wait_for_generation(db: &mut Database, number: i32) {
    let mut states = Vec::new();
    let swapped = eventually(PATIENCE, || {
        states = db.column::<String>("SELECT g::text FROM recsync.generation g");
        generation(db) == number
    });
    assert!(
        swapped,
        "generation {number} is not in service:\n{}",
        states.join("\n")
    );
}

#[track_caller]
fn wait_until_it_waits_for(db: &mut Database, what: &str) {
    let mut states = Vec::new();
    let waits = eventually(PATIENCE, || {
        states = db.column::<String>("SELECT g::text FROM recsync.generation g");
        let waits_for: Vec<Option<String>> =
            db.column("SELECT waits_for FROM recsync.generation WHERE state = 'building'");
        matches!(&waits_for[..], [Some(waits_for)] if waits_for.contains(what))
    });
    assert!(waits, "not for {what}:\n{}", states.join("\n"));
}

pub fn states(db: &mut Database) -> Vec<String> {
    db.column("SELECT generation || ' ' || state FROM recsync.generation ORDER BY generation")
}

#[test]
fn rebuild_by_another_model_swaps_once_each_row_has_its_vector_and_changes_go_to_both_meanwhile() {
    let (api, new) = (Api::start(), Api::of_model("new", 24));
    let mut db = shared().database();
    embedded(&mut db, &api, &new, "none");
    new.hold();
    let table: String = db.one("SELECT recsync.rebuild('item_embedding', server => 'new')::text");
    assert_eq!(table, "item_embedding_g2");
    new.wait_until_held(1);
    db.run("UPDATE item SET title = 'changed' WHERE id = 7; DELETE FROM item WHERE id = 8; INSERT INTO item VALUES (1000, 'late')");
    wait_until(PATIENCE, "the one in service is in step", || {
        let changed: String = db.one("SELECT embedding::text FROM item_embedding WHERE id = 7");
        api.is_vector_of(&changed, "changed")
            && db.one("SELECT count(*) = 1 FROM item_embedding WHERE id = 1000")
            && db.one::<i64>("SELECT count(*) FROM item_embedding WHERE id = 8") == 0
    });
    db.assert_items_in_step(&api);
    assert_eq!(states(&mut db), ["1 in service", "2 building"]);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.status"), 1);
    new.release();
    wait_for_generation(&mut db, 2);
    db.assert_items_in_step(&new);
    assert_eq!(states(&mut db), ["1 kept", "2 in service"]);
    assert_eq!(
        db.one::<String>("SELECT item FROM recsync.search('item_embedding', 'changed', k => 1)"),
        "7"
    );
    // From now on it is the pipeline.
    let before = api.requests_made();
    db.run("UPDATE item SET title = 'after' WHERE id = 9");
    db.settle("item_embedding");
    db.assert_items_in_step(&new);
    assert_eq!(api.requests_made(), before);
    db.run("SELECT recsync.drop_pipeline('item_embedding')");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_class WHERE relname LIKE 'item\\_embedding%'"),
        0
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.pipeline"), 0);
}

#[test]
fn rebuild_with_another_storage_or_index_or_none_at_all_costs_no_call() {
    let cluster = Cluster::start(&[("recsync.index_min_rows", "100")]);
    let (api, new) = (Api::start(), Api::start());
    let mut db = cluster.database();
    embedded(&mut db, &api, &new, "none");
    db.run("GRANT SELECT ON item_embedding TO PUBLIC");
    let before = api.requests_made();
    db.run("SELECT recsync.rebuild('item_embedding', storage => 'halfvec', index => 'hnsw', index_options => '{\"m\": 8, \"ef_construction\": 32}')");
    wait_for_generation(&mut db, 2);
    let index: String = db.one(
        "SELECT indexdef FROM pg_indexes WHERE tablename = 'item_embedding_g2' AND indexdef LIKE '%hnsw%'",
    );
    assert!(
        index.contains("halfvec_cosine_ops")
            && index.contains("m='8'")
            && index.contains("ef_construction='32'"),
        "{index}"
    );
    assert_eq!(
        db.one::<String>("SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = 'item_embedding'::regclass AND attname = 'embedding'"),
        "halfvec"
    );
    for number in 3..=4 {
        db.run("SELECT recsync.rebuild('item_embedding')");
        wait_for_generation(&mut db, number);
    }
    assert_eq!(api.requests_made(), before);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), ROWS);
    assert_eq!(states(&mut db), ["3 kept", "4 in service"]);
}

/// Searches by prepared statements until it is told to stop; how often.
fn search_throughout(mut client: Client, stop: &AtomicBool) -> usize {
    let nearest = client
        .prepare("SELECT item, score FROM recsync.search('item_embedding', $1, k => 3)")
        .unwrap();
    let counted = client
        .prepare(
            "SELECT count(*), count(DISTINCT e.model) FROM item_embedding e JOIN item USING (id)",
        )
        .unwrap();
    let own = client
        .prepare("SELECT i.id FROM item i JOIN item_embedding e USING (id) ORDER BY e.embedding <=> (SELECT recsync.embed('item_embedding', $1)) LIMIT 3")
        .unwrap();
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        for number in [17, 170, 230] {
            let text = format!("row {number}");
            let found = client
                .query(&nearest, &[&text])
                .unwrap_or_else(|error| panic!("{}", describe(&error)));
            assert_eq!(found.len(), 3);
            assert_eq!(found[0].get::<_, String>(0), number.to_string());
            let rows = client
                .query_one(&counted, &[])
                .unwrap_or_else(|error| panic!("{}", describe(&error)));
            assert_eq!((rows.get::<_, i64>(0), rows.get::<_, i64>(1)), (ROWS, 1));
            let found = client
                .query(&own, &[&text])
                .unwrap_or_else(|error| panic!("{}", describe(&error)));
            assert_eq!(found.len(), 3);
            assert_eq!(found[0].get::<_, i32>(0), number);
            count += 1;
        }
    }
    count
}

#[test]
fn searches_from_several_sessions_see_no_error_no_gap_and_no_two_models_throughout_rebuilds() {
    let cluster = Cluster::start(&[
        ("recsync.index_min_rows", "100"),
        ("max_worker_processes", "16"),
    ]);
    let (api, new) = (Api::of_model("old", 16), Api::of_model("new", 24));
    let mut db = cluster.database();
    embedded(&mut db, &api, &new, "hnsw");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let searches: Vec<_> = (0..4)
            .map(|_| {
                let (client, stop) = (db.connect(), &stop);
                scope.spawn(move || search_throughout(client, stop))
            })
            .collect();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (number, arguments) in [
                (2, ", server => 'new'"),
                (3, ", storage => 'halfvec'"),
                (4, ", index => 'hnsw_bit'"),
                (5, ", server => 'api'"),
                (6, ", distance => 'l2', index => 'hnsw'"),
            ] {
                db.run(&format!(
                    "SELECT recsync.rebuild('item_embedding'{arguments})"
                ));
                wait_for_generation(&mut db, number);
            }
            db.run("SELECT recsync.rollback_rebuild('item_embedding')");
            wait_for_generation(&mut db, 5);
        }));
        stop.store(true, Ordering::SeqCst);
        for search in searches {
            let count = search.join().unwrap();
            assert!(count > 20, "only {count} searches");
        }
        outcome.unwrap();
    });
}

#[test]
fn grants_comments_and_dependent_views_survive_a_rebuild_to_the_same_type() {
    let (api, new) = (Api::start(), Api::of_model("new", 16));
    let mut db = shared().database();
    embedded(&mut db, &api, &new, "none");
    let (reader, manager) = (
        format!("reader_{}", db.name),
        format!("manager_{}", db.name),
    );
    db.run(&format!(
        "CREATE ROLE {reader}; CREATE ROLE {manager}; GRANT SELECT ON item_embedding TO {reader}; COMMENT ON VIEW item_embedding IS 'ours';
         CREATE VIEW near AS SELECT e.id, e.embedding FROM item_embedding e"
    ));
    let oid: u32 = db.one("SELECT 'item_embedding'::regclass::oid");
    db.run("SELECT recsync.rebuild('item_embedding', server => 'new')");
    wait_for_generation(&mut db, 2);
    assert_eq!(db.one::<u32>("SELECT 'item_embedding'::regclass::oid"), oid);
    db.assert_in_step(
        &new,
        "SELECT i.id::text, i.title, n.embedding::text FROM item i FULL JOIN near n USING (id)",
    );
    assert!(db.one::<bool>(&format!(
        "SELECT has_table_privilege('{reader}', 'item_embedding', 'SELECT')"
    )));
    // Another type, in whose way the view is.
    let refused = db.refused("SELECT recsync.rebuild('item_embedding', storage => 'halfvec')");
    assert_eq!(refused.code().code(), "2BP01");
    assert!(
        refused.message().contains("view near"),
        "{}",
        refused.message()
    );
    db.run("DROP VIEW near");
    db.run(&format!(
        "GRANT SELECT (id) ON item_embedding TO {manager} WITH GRANT OPTION; GRANT SELECT ON item_embedding TO {manager} WITH GRANT OPTION;
         SET ROLE {manager}; GRANT SELECT ON item_embedding TO PUBLIC; RESET ROLE;
         COMMENT ON COLUMN item_embedding.id IS 'the key'; ALTER VIEW item_embedding SET (security_barrier = true)"
    ));
    const AS_IT_IS: &str = "SELECT relacl::text || ' ' || obj_description(oid, 'pg_class') || col_description(oid, 1) || reloptions::text
        || (SELECT string_agg(attacl::text, '') FROM pg_attribute WHERE attrelid = c.oid) FROM pg_class c WHERE oid = 'item_embedding'::regclass";
    let before: String = db.one(AS_IT_IS);
    db.run("SELECT recsync.rebuild('item_embedding', storage => 'halfvec')");
    wait_for_generation(&mut db, 3);
    assert_ne!(db.one::<u32>("SELECT 'item_embedding'::regclass::oid"), oid);
    assert_eq!(db.one::<String>(AS_IT_IS), before);
    db.run(&format!(
        "DROP OWNED BY {reader}, {manager}; DROP ROLE {reader}, {manager}"
    ));
}

#[test]
fn view_that_came_meanwhile_or_a_reader_keeps_the_swap_waiting_and_says_so() {
    let (api, new) = (Api::start(), Api::start());
    let mut db = shared().database();
    embedded(&mut db, &api, &new, "none");
    let mut other = db.connect();
    let mut open = other.transaction().unwrap();
    open.batch_execute(
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM item",
    )
    .unwrap();
    db.run("SELECT recsync.rebuild('item_embedding', storage => 'halfvec')");
    wait_until_it_waits_for(&mut db, "began before it was complete");
    // To whom nothing has changed. A search waits for nobody.
    let found = open
        .query(
            "SELECT item FROM recsync.search('item_embedding', 'row 3', k => 2)",
            &[],
        )
        .unwrap();
    assert_eq!(found.len(), 2);
    db.run("CREATE VIEW near AS SELECT id, embedding FROM item_embedding");
    open.commit().unwrap();
    wait_until_it_waits_for(&mut db, "view public.near");
    db.run("DROP VIEW near");
    wait_for_generation(&mut db, 2);
}

#[test]
fn transaction_with_a_snapshot_from_before_the_swap_searches_the_new_generation_after_it() {
    let (api, new) = (Api::start(), Api::of_model("new", 24));
    let mut db = shared().database();
    embedded(&mut db, &api, &new, "none");
    let (mut one, mut other) = (db.connect(), db.connect());
    let mut holder = one.transaction().unwrap();
    holder
        .batch_execute("SELECT count(*) FROM item_embedding")
        .unwrap();
    db.run("SELECT recsync.rebuild('item_embedding', server => 'new'); SELECT recsync.embed('new', 'row 3')");
    // Looked at from another database: nobody is to read in this one when it is complete.
    let waits: String = db.one(
        "SELECT format('SELECT EXISTS (SELECT FROM pg_locks WHERE database = %s AND relation = %s AND NOT granted)', oid, 'item_embedding'::regclass::oid)
           FROM pg_database WHERE datname = current_database()",
    );
    let mut elsewhere = shared().connect("postgres");
    wait_until(PATIENCE, "the view is in the way", || elsewhere.one(&waits));
    let mut reader = other.transaction().unwrap();
    reader
        .batch_execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM item")
        .unwrap();
    // It gives up, and tries again, whoever has begun since.
    for is in [false, true] {
        wait_until(PATIENCE, "it is tried again", || {
            elsewhere.one::<bool>(&waits) == is
        });
    }
    assert_eq!(generation(&mut db), 1);
    holder.commit().unwrap();
    wait_for_generation(&mut db, 2);
    let found = reader
        .query(
            "SELECT item, score FROM recsync.search('item_embedding', 'row 3', k => 1)",
            &[],
        )
        .unwrap_or_else(|error| panic!("{}", describe(&error)));
    assert_eq!(found[0].get::<_, String>(0), "3");
    assert!(found[0].get::<_, f64>(1) > 0.999);
}

#[test]
fn search_is_not_held_up_by_a_swap_that_waits_for_somebody_who_holds_the_view() {
    let (api, new) = (Api::start(), Api::start());
    let mut db = shared().database();
    embedded(&mut db, &api, &new, "none");
    db.run("SET recsync.embed_timeout = '20s'; SELECT recsync.embed('item_embedding', 'row 3')");
    let mut other = db.connect();
    let mut open = other.transaction().unwrap();
    open.batch_execute("SELECT count(*) FROM item_embedding")
        .unwrap();
    db.run("SELECT recsync.rebuild('item_embedding')");
    db.run("SELECT recsync.wait_for('item_embedding_g2', '60 s')");
    db.run("SET statement_timeout = '10s'");
    for _ in 0..200 {
        let found: String =
            db.one("SELECT item FROM recsync.search('item_embedding', 'row 3', k => 1)");
        assert_eq!(found, "3");
        assert_eq!(generation(&mut db), 1);
    }
    open.commit().unwrap();
    wait_for_generation(&mut db, 2);
}

#[test]
fn cancelled_rebuild_leaves_nothing_and_another_one_may_follow() {
    let (api, new) = (Api::start(), Api::of_model("new", 24));
    let mut db = shared().database();
    embedded(&mut db, &api, &new, "none");
    new.hold();
    db.run("SELECT recsync.rebuild('item_embedding', server => 'new')");
    new.wait_until_held(1);
    let refused = db.refused("SELECT recsync.rebuild('item_embedding')");
    assert_eq!(refused.code().code(), "55006");
    db.run("SELECT recsync.cancel_rebuild('item_embedding')");
    new.release();
    assert_eq!(
        db.refused("SELECT recsync.cancel_rebuild('item_embedding')")
            .code()
            .code(),
        "42704"
    );
    assert_eq!(states(&mut db), ["1 in service"]);
    assert!(db.one::<bool>("SELECT to_regclass('item_embedding_g2') IS NULL"));
    db.run("UPDATE item SET title = 'still' WHERE id = 1");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    db.run("SELECT recsync.rebuild('item_embedding', server => 'new')");
    wait_for_generation(&mut db, 2);
    db.assert_items_in_step(&new);
}

#[test]
fn rolled_back_to_the_generation_before_is_right_again_and_only_what_has_changed_costs_a_call() {
    let (api, new) = (Api::of_model("old", 16), Api::of_model("new", 24));
    let mut db = shared().database();
    embedded(&mut db, &api, &new, "none");
    let none = db.refused("SELECT recsync.rollback_rebuild('item_embedding')");
    assert_eq!(none.code().code(), "42704");
    db.run("SELECT recsync.rebuild('item_embedding', server => 'new')");
    wait_for_generation(&mut db, 2);
    db.run("UPDATE item SET title = 'meanwhile' WHERE id = 5; DELETE FROM item WHERE id = 6; INSERT INTO item VALUES (999, 'row 999')");
    db.settle("item_embedding");
    let before = api.texts().len();
    let (old, asked) = (before, new.requests_made());
    db.run("SELECT recsync.rollback_rebuild('item_embedding')");
    wait_for_generation(&mut db, 1);
    db.assert_items_in_step(&api);
    let mut texts = api.texts().split_off(old);
    texts.sort();
    assert_eq!(texts, ["meanwhile", "row 999"]);
    assert_eq!(new.requests_made(), asked);
    assert_eq!(states(&mut db), ["1 in service", "2 kept"]);
    // And forth again.
    db.run("SELECT recsync.rollback_rebuild('item_embedding')");
    wait_for_generation(&mut db, 2);
    db.assert_items_in_step(&new);
    db.run("SELECT recsync.drop_generation('item_embedding')");
    assert_eq!(states(&mut db), ["2 in service"]);
    assert!(db.one::<bool>("SELECT to_regclass('item_embedding_g1') IS NULL"));
    assert_eq!(
        db.refused("SELECT recsync.drop_generation('item_embedding')")
            .code()
            .code(),
        "42704"
    );
}

#[test]
fn row_that_was_given_up_keeps_the_swap_waiting_until_it_is_tried_again_or_purged() {
    let (api, new) = (Api::start(), Api::of_model("new", 24));
    let mut db = shared().database();
    embedded(&mut db, &api, &new, "none");
    new.refuse_texts_with("row 42", 400);
    db.run("SELECT recsync.rebuild('item_embedding', server => 'new')");
    wait_until(PATIENCE, "it waits", || {
        db.one::<bool>("SELECT COALESCE(waits_for LIKE '1 rows that were given up%', false) FROM recsync.generation WHERE state = 'building'")
    });
    assert_eq!(
        db.column::<String>("SELECT pipeline FROM recsync.dead_letter"),
        ["public.item_embedding_g2"]
    );
    assert_eq!(generation(&mut db), 1);
    new.refuse_nothing();
    db.run("SELECT recsync.retry_dead_letters('item_embedding_g2')");
    wait_for_generation(&mut db, 2);
    db.assert_items_in_step(&new);
}
