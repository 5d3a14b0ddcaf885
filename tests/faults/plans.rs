//! embed() and search() cost one request for one text, whatever plan calls them how often, and none where nothing is
//! run.

use crate::support::{Api, Database, Sql, shared};

/// Rows enough for plans of every kind, embedded, with an index on the vectors.
fn shelf<'a>(api: &Api) -> Database<'a> {
    let mut db = shared().database();
    db.server("api", api, "max_batch_inputs '500'");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    db.run("INSERT INTO item SELECT i, 'row ' || i, i % 5 FROM generate_series(1, 600) i");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api')");
    db.settle("item_embedding");
    db.run("ANALYZE item; ANALYZE item_embedding_g1");
    db.run(
        "CREATE FUNCTION nearest(wanted text) RETURNS int LANGUAGE plpgsql STABLE AS $$
         DECLARE found int;
         BEGIN
           SELECT id INTO found FROM item_embedding ORDER BY embedding <=> recsync.embed('item_embedding', wanted), id LIMIT 1;
           RETURN found;
         END $$",
    );
    api.forget();
    db
}

/// Settings that make the planner take each road.
const ROADS: &[&str] = &[
    "",
    "SET enable_seqscan = off; SET enable_sort = off",
    "SET enable_indexscan = off; SET enable_bitmapscan = off",
    "SET debug_parallel_query = on; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0",
    "SET plan_cache_mode = force_generic_plan",
    "SET plan_cache_mode = force_custom_plan",
    "SET jit = on; SET jit_above_cost = 0",
    "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off; SET enable_memoize = off",
];

/// Queries with `TEXT` for the text that they search by.
const QUERIES: &[&str] = &[
    "SELECT recsync.embed('item_embedding', 'TEXT')",
    "SELECT id FROM item_embedding ORDER BY embedding <=> recsync.embed('item_embedding', 'TEXT') LIMIT 10",
    "SELECT id FROM item_embedding ORDER BY embedding <=> (SELECT recsync.embed('item_embedding', 'TEXT')) LIMIT 10",
    "SELECT id, embedding <=> recsync.embed('item_embedding', 'TEXT') FROM item_embedding",
    "SELECT id FROM item_embedding WHERE embedding <=> recsync.embed('item_embedding', 'TEXT') < 0.9",
    "SELECT id FROM item_embedding WHERE embedding <=> (SELECT recsync.embed('item_embedding', 'TEXT')) < 0.9",
    "SELECT id FROM item_embedding WHERE embedding = recsync.embed('item_embedding', 'TEXT')",
    "SELECT id FROM item_embedding WHERE embedding < recsync.embed('item_embedding', 'TEXT')",
    "SELECT id FROM item_embedding WHERE embedding = ANY (ARRAY[recsync.embed('item_embedding', 'TEXT')])",
    "SELECT id FROM item WHERE stock < recsync.embed('item_embedding', 'TEXT') <=> '[1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]'",
    "SELECT p.title FROM item p JOIN item_embedding e USING (id) WHERE p.stock = 3
      ORDER BY e.embedding <=> recsync.embed('item_embedding', 'TEXT') LIMIT 10",
    "SELECT p.id, near.id FROM item p, LATERAL (SELECT e.id FROM item_embedding e
      ORDER BY e.embedding <=> recsync.embed('item_embedding', 'TEXT') LIMIT 1) near WHERE p.id < 9",
    "SELECT p.id FROM item p WHERE EXISTS (SELECT FROM item_embedding e WHERE e.id = p.id
        AND e.embedding <=> recsync.embed('item_embedding', 'TEXT') < 0.9)",
    "SELECT count(*), stock FROM item JOIN item_embedding USING (id)
      GROUP BY stock HAVING min(embedding <=> recsync.embed('item_embedding', 'TEXT')) < 0.9",
    "WITH q AS MATERIALIZED (SELECT recsync.embed('item_embedding', 'TEXT') AS v) SELECT id FROM item_embedding, q ORDER BY embedding <=> v LIMIT 3",
    "SELECT nearest('TEXT')",
    "SELECT nearest('TEXT') FROM item WHERE id < 20",
    "SELECT * FROM recsync.search('item_embedding', 'TEXT')",
    "SELECT * FROM recsync.search('item_embedding', 'TEXT', k => 500)",
    "SELECT * FROM recsync.search('item_embedding', 'TEXT', filter => '{\"stock\": 3}')",
    "SELECT p.title FROM recsync.search('item_embedding', 'TEXT') s JOIN item p ON p.id = s.item::int ORDER BY s.rank",
    "SELECT p.id, s.item FROM item p, LATERAL recsync.search('item_embedding', 'TEXT', k => p.stock + 1) s WHERE p.id < 20",
    "SELECT title FROM item WHERE id IN (SELECT item::int FROM recsync.search('item_embedding', 'TEXT'))",
    "SELECT title FROM item WHERE id = (SELECT item::int FROM recsync.search('item_embedding', 'TEXT', k => 1))",
];

/// Every query on every road, its text an own one each time.
fn each(mut body: impl FnMut(&str, &str, String)) {
    for (road, settings) in ROADS.iter().enumerate() {
        for (number, query) in QUERIES.iter().enumerate() {
            let text = format!("text {number} on road {road}");
            body(settings, &text, query.replace("TEXT", &text));
        }
    }
}

#[test]
fn query_asks_once_for_its_text_whatever_the_plan() {
    let api = Api::start();
    let db = shelf(&api);
    each(|settings, text, query| {
        // A session that remembers nothing.
        let mut session = db.connect();
        session.run(settings);
        session.run(&query);
        assert_eq!(api.times_asked(text), 1, "{settings}: {query}");
        session.run(&query);
        assert_eq!(api.times_asked(text), 1, "{settings}: {query}, again");
    });
    assert_eq!(api.requests_made(), ROADS.len() * QUERIES.len());
}

#[test]
fn nothing_is_asked_for_what_is_not_run() {
    let api = Api::start();
    let db = shelf(&api);
    let mut number = 0;
    each(|settings, _, query| {
        number += 1;
        let mut session = db.connect();
        session.run(settings);
        for command in [
            format!("EXPLAIN {query}"),
            format!("EXPLAIN (VERBOSE, FORMAT JSON) {query}"),
            format!("PREPARE p AS {query}; EXPLAIN EXECUTE p"),
            format!("EXPLAIN CREATE TABLE t AS {query}"),
            format!("EXPLAIN DECLARE c CURSOR FOR {query}"),
        ] {
            session.run(&command);
            assert_eq!(api.requests_made(), 0, "{settings}: {command}");
        }
        if !query.contains("count(*)") && !query.contains("p.id, ") {
            session.run(&format!("CREATE VIEW v{number} AS {query}"));
            session.run(&format!("CREATE TABLE t{number} AS {query} WITH NO DATA"));
        }
        assert_eq!(
            api.requests_made(),
            0,
            "{settings}: CREATE VIEW, WITH NO DATA {query}"
        );
    });
}

#[test]
fn prepared_statement_asks_once_for_each_text_however_often_it_is_executed() {
    let api = Api::start();
    let db = shelf(&api);
    let mut session = db.connect();
    for (number, query) in QUERIES.iter().enumerate() {
        if query.contains("'[1,0") {
            continue;
        }
        let name = format!("p{number}");
        let parametrised = query.replace("'TEXT'", "$1");
        session.run(&format!("PREPARE {name} (text) AS {parametrised}"));
        // Five times by plans of its own, then by the generic one.
        for _ in 0..7 {
            session.run(&format!("EXECUTE {name} ('prepared {number}')"));
        }
        assert_eq!(
            api.times_asked(&format!("prepared {number}")),
            1,
            "{parametrised}"
        );
        for round in 0..7 {
            let text = format!("prepared {number}, round {round}");
            session.run(&format!("EXECUTE {name} ('{text}')"));
            assert_eq!(api.times_asked(&text), 1, "{parametrised}");
        }
    }
}

#[test]
fn bind_parameters_of_a_driver_ask_once_for_each_text() {
    let api = Api::start();
    let db = shelf(&api);
    let mut session = db.connect();
    let statement = session
        .prepare("SELECT id FROM item_embedding ORDER BY embedding <=> recsync.embed('item_embedding', $1) LIMIT 10")
        .unwrap();
    for round in 0..7 {
        let text = format!("bound {}", round / 2);
        assert_eq!(session.query(&statement, &[&text]).unwrap().len(), 10);
    }
    assert_eq!(api.requests_made(), 4);
}

#[test]
fn each_text_of_a_join_is_asked_once() {
    let api = Api::start();
    let db = shelf(&api);
    let mut session = db.connect();
    for query in [
        "SELECT q.t, e.id FROM unnest(ARRAY['one', 'two', 'one', 'three', 'two']) q (t), LATERAL
           (SELECT id FROM item_embedding ORDER BY embedding <=> recsync.embed('item_embedding', q.t) LIMIT 2) e",
        "SELECT q.t, s.item FROM unnest(ARRAY['one', 'two', 'one', 'three', 'two']) q (t), recsync.search('item_embedding', q.t) s",
    ] {
        session.run(query);
        assert_eq!(api.requests_made(), 3, "{query}");
    }
}

#[test]
fn function_around_it_that_the_planner_runs_gets_the_vector() {
    let api = Api::start();
    let mut db = shelf(&api);
    // Not what embed() is: the planner runs such functions once and puts what they return into the plan.
    db.run("CREATE FUNCTION fixed(wanted text) RETURNS vector LANGUAGE sql IMMUTABLE AS $$ SELECT recsync.embed('item_embedding', wanted) $$");
    db.run("CREATE FUNCTION fixed_too(wanted text) RETURNS vector LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN recsync.embed('item_embedding', wanted); END $$");
    for (number, function) in ["fixed", "fixed_too"].into_iter().enumerate() {
        for operator in ["=", "<=>"] {
            let query = match operator {
                "=" => format!(
                    "SELECT id FROM item_embedding WHERE embedding = {function}('row 4{number}')"
                ),
                _ => format!(
                    "SELECT id FROM item_embedding ORDER BY embedding <=> {function}('row 4{number}') LIMIT 1"
                ),
            };
            let found: Vec<i32> = db.column(&query);
            assert_eq!(found, [40 + number as i32], "{query}");
        }
    }
    assert_eq!(api.requests_made(), 2);
}

#[test]
fn failure_is_reported_and_not_remembered() {
    let api = Api::start();
    let db = shelf(&api);
    let mut session = db.connect();
    api.fail_next(1, 503, None);
    let query = "SELECT id FROM item_embedding ORDER BY embedding <=> recsync.embed('item_embedding', 'x') LIMIT 10";
    assert_eq!(session.refused(query).code().code(), "38000");
    session.run(query);
    assert_eq!(api.requests_made(), 2);
}
