//! index => …: what create_pipeline accepts at which width, and what search finds by it.

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, shared, wait_until};

#[test]
fn width_decides_storage_and_index_unless_they_are_given_and_what_cannot_be_has_a_hint() {
    let mut db = shared().database();
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text)");
    for dimensions in [384, 2_000, 3_072, 5_000, 16_000] {
        db.run(&format!(
            "CREATE SERVER w{dimensions} FOREIGN DATA WRAPPER recsync OPTIONS (api 'openai', url 'http://127.0.0.1:1/v1', model 'test', dimensions '{dimensions}', api_key_env 'TEST_API_KEY')"
        ));
    }
    for (number, (dimensions, arguments, wanted)) in [
        (384, "", Some("vector hnsw")),
        (384, "index => 'hnsw_bit'", Some("vector hnsw_bit")),
        (
            384,
            "storage => 'halfvec', index => 'hnsw_bit'",
            Some("halfvec hnsw_bit"),
        ),
        (2_000, "", Some("vector hnsw")),
        (3_072, "", Some("halfvec hnsw")),
        (3_072, "storage => 'vector'", Some("vector hnsw_bit")),
        (
            3_072,
            "storage => 'vector', index => 'none'",
            Some("vector none"),
        ),
        (3_072, "storage => 'vector', index => 'hnsw'", None),
        (5_000, "", Some("vector hnsw_bit")),
        (5_000, "storage => 'halfvec'", Some("halfvec hnsw_bit")),
        (5_000, "index => 'none'", Some("vector none")),
        (5_000, "index => 'hnsw'", None),
        (16_000, "", Some("vector hnsw_bit")),
    ]
    .into_iter()
    .enumerate()
    {
        let comma = if arguments.is_empty() { "" } else { ", " };
        let create = format!(
            "SELECT recsync.create_pipeline('e{number}', 'item', columns => '{{title}}', server => 'w{dimensions}'{comma}{arguments})"
        );
        let Some(wanted) = wanted else {
            let error = db.refused(&create);
            assert_eq!(error.code().code(), "22023", "{create}: {error:?}");
            assert!(
                error.hint().unwrap_or_default().contains("hnsw_bit"),
                "{error:?}"
            );
            continue;
        };
        db.run(&create);
        let made: String = db.one(&format!(
            "SELECT storage || ' ' || index FROM recsync.pipeline WHERE relation = 'public.e{number}'"
        ));
        assert_eq!(made, wanted, "{create}");
    }
    // Given or not, it is the same definition.
    db.run("SELECT recsync.create_pipeline('e0', 'item', columns => '{title}', server => 'w384', index => 'hnsw', if_not_exists => true)");
}

/// What `search` finds, with its scores.
fn found(db: &mut Database, pipeline: &str, query: &str, filter: &str) -> Vec<(String, f64)> {
    db.rows(&format!(
        "SELECT item, score FROM recsync.search('{pipeline}', '{query}', 10, {filter})"
    ))
    .iter()
    .map(|row| (row.get(0), row.get(1)))
    .collect()
}

fn wait_for_index(db: &mut Database, table: &str) -> String {
    let query = format!(
        "SELECT x.relname::text FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am a ON a.oid = x.relam
          WHERE i.indrelid = '{table}'::regclass AND a.amname = 'hnsw' AND i.indisvalid"
    );
    wait_until(PATIENCE, "the index is there", || {
        !db.column::<String>(&query).is_empty()
    });
    db.one(&query)
}

#[test]
fn search_by_an_index_over_bits_agrees_with_a_search_of_all_vectors_wherever_pgvector_lives() {
    let api = Api::with_dimensions(384);
    let mut db = shared().empty_database();
    db.run("CREATE SCHEMA \"Ext ensions\"; CREATE EXTENSION vector SCHEMA \"Ext ensions\"; CREATE EXTENSION recsync");
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL)");
    db.run("INSERT INTO item SELECT i, 'row ' || i, i / 100 FROM generate_series(1, 5000) i");
    let create = |name: &str, options: &str| {
        format!(
            "SELECT recsync.create_pipeline('{name}', 'item', columns => '{{title}}', server => 'api', {options})"
        )
    };
    db.run(&create("exact", "index => 'none'"));
    db.settle("exact");
    // Fifty rows around each of a hundred texts: as those of texts lie, which are not in all directions alike.
    db.run("SET search_path = public, \"Ext ensions\"");
    db.run(
        "UPDATE exact_g1 e SET embedding = c.embedding + (SELECT array_agg((random() - 0.5) * 0.05) FROM generate_series(1, 384 + 0 * e.id))::vector
           FROM exact_g1 c WHERE c.id = 1 + e.id % 100 AND e.id > 100",
    );
    // Their vectors are known already: no text is asked for again.
    for (name, type_name, options) in [
        ("bits", "vector", "index => 'hnsw_bit'"),
        (
            "half_bits",
            "halfvec",
            "index => 'hnsw_bit', storage => 'halfvec'",
        ),
    ] {
        let create = create(name, options);
        db.run(&format!(
            "BEGIN; {create}; INSERT INTO {name}_g1 SELECT id, embedding::{type_name}, content_hash, model, embedded_at FROM exact_g1; COMMIT"
        ));
        db.settle(name);
    }
    for name in ["bits", "half_bits"] {
        let index = wait_for_index(&mut db, &format!("{name}_g1"));
        db.run(&format!("ANALYZE {name}_g1; ANALYZE item"));
        let used =
            format!("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = '{index}'");
        let mut session = db.connect();
        for (filter, count) in [
            ("NULL", 10),
            (r#"'{"stock": {"lt": 25}}'"#, 10),
            (r#"'{"stock": 7}'"#, 10),
            (r#"'{"stock": 7, "id": {"lt": 703}}'"#, 3),
        ] {
            let (mut common, mut all) = (0, 0);
            for query in 0..10 {
                let query = format!("row {}", 1 + query * 7);
                let exact = found(&mut db, "exact", &query, filter);
                let by_bits = found(&mut db, name, &query, filter);
                assert_eq!(
                    (exact.len(), by_bits.len()),
                    (count, count),
                    "{name} {filter}"
                );
                assert!(by_bits.is_sorted_by(|a, b| a.1 >= b.1), "{by_bits:?}");
                for (item, score) in &by_bits {
                    let same = exact.iter().find(|(other, _)| other == item);
                    common += usize::from(same.is_some());
                    assert!(same.is_none_or(|(_, exact)| (exact - score).abs() < 0.001));
                }
                all += count;
            }
            println!("{name} {filter}: {common} of {all}");
            assert!(
                common * 100 >= all * 95,
                "{name} {filter}: {common} of {all}"
            );
        }
        db.run("SELECT pg_stat_force_next_flush()");
        wait_until(PATIENCE, "the index is used", || {
            session.one::<i64>(&used) >= 10
        });
        drop(session);
    }
    // All that there are, where more are asked for than an index gives.
    let all: i64 = db.one("SELECT count(*) FROM recsync.search('bits', 'query', k => 10000)");
    assert_eq!(all, 5_000);
}

#[test]
fn vectors_too_wide_for_a_row_and_for_a_graph_are_stored_and_found_by_their_bits() {
    let cluster = Cluster::start(&[("recsync.index_min_rows", "0")]);
    let api = Api::with_dimensions(5_000);
    let mut db = cluster.database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text); INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 30) i");
    db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api')");
    db.settle("item_embedding");
    wait_for_index(&mut db, "item_embedding_g1");
    db.run("UPDATE item SET title = 'another' WHERE id = 7");
    db.settle("item_embedding");
    db.assert_in_step(
        &api,
        "SELECT i.id::text, i.title, e.embedding::text FROM item i FULL JOIN item_embedding e USING (id)",
    );
    assert_eq!(
        found(&mut db, "item_embedding", "another", "NULL")[0].0,
        "7"
    );
}
