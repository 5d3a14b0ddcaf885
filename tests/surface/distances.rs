//! distance => … and index_options => …: what near means, and how the index is made.

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, shared, wait_until};

const DISTANCES: [(&str, &str, &str); 3] = [
    ("cosine", "1 - (e.embedding <=> q)", "cosine_ops"),
    ("inner_product", "-(e.embedding <#> q)", "ip_ops"),
    ("l2", "1 / (1 + (e.embedding <-> q))", "l2_ops"),
];

/// 200 rows, whose vectors are of all lengths once they have been stretched.
fn items(db: &mut Database, api: &Api) {
    db.server("api", api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text)");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 200) i");
}

/// By which the longest is not the nearest to what it points to.
fn stretch(db: &mut Database, pipeline: &str, storage: &str) {
    db.run(&format!(
        "UPDATE {pipeline}_g1 e SET embedding = (SELECT array_agg(x * (0.2 + (e.id * 37 % 100) / 25.0))::vector::{storage} FROM unnest(e.embedding::real[]) x)"
    ));
}

/// The ten nearest to a text, by pgvector itself, with their scores.
fn nearest(db: &mut Database, pipeline: &str, storage: &str, score: &str) -> Vec<(String, f64)> {
    db.rows(&format!(
        "WITH q AS MATERIALIZED (SELECT recsync.embed('{pipeline}', 'row 17')::{storage} AS q)
         SELECT e.id::text, ({score})::float8 FROM {pipeline} e, q ORDER BY 2 DESC, 1 LIMIT 10"
    ))
    .iter()
    .map(|row| (row.get(0), row.get(1)))
    .collect()
}

fn found(db: &mut Database, call: &str) -> Vec<(String, f64)> {
    db.rows(&format!("SELECT item, score FROM {call} ORDER BY rank"))
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

#[track_caller]
fn assert_alike(found: &[(String, f64)], wanted: &[(String, f64)], what: &str) {
    let alike = found.len() == wanted.len()
        && found
            .iter()
            .zip(wanted)
            .all(|(one, other)| one.0 == other.0 && (one.1 - other.1).abs() < 1e-4);
    assert!(alike, "{what}: {found:?}\nwanted {wanted:?}");
}

fn index_scans(db: &mut Database, table: &str) -> i64 {
    db.run("SELECT pg_stat_force_next_flush()");
    db.one(&format!(
        "SELECT COALESCE(sum(idx_scan), 0)::bigint FROM pg_stat_user_indexes WHERE relname = '{table}' AND indexrelname ~ '_hnsw'"
    ))
}

#[test]
fn search_and_similar_compare_by_the_pipelines_distance_with_and_without_an_index() {
    let cluster = Cluster::start(&[
        ("recsync.index_min_rows", "100"),
        ("max_worker_processes", "16"),
    ]);
    let api = Api::start();
    let mut db = cluster.database();
    items(&mut db, &api);
    let mut orders = Vec::new();
    for (distance, score, class) in DISTANCES {
        for (storage, index) in [
            ("vector", "none"),
            ("vector", "hnsw"),
            ("halfvec", "hnsw"),
            ("vector", "hnsw_bit"),
        ] {
            let what = format!("{distance}, {storage}, {index}");
            let pipeline = format!("e{}", orders.len());
            db.run(&format!(
                "SELECT recsync.create_pipeline('{pipeline}', 'item', columns => '{{title}}', server => 'api', storage => '{storage}', index => '{index}', distance => '{distance}')"
            ));
            db.settle(&pipeline);
            stretch(&mut db, &pipeline, storage);
            let wanted = nearest(&mut db, &pipeline, storage, score);
            if index != "none" {
                wait_until(PATIENCE, "the index is there", || {
                    db.one(&format!("SELECT indexed FROM recsync.generation WHERE pipeline = 'public.{pipeline}'"))
                });
                let definition: String = db.one(&format!(
                    "SELECT indexdef FROM pg_indexes WHERE tablename = '{pipeline}_g1' AND indexdef LIKE '%USING hnsw%'"
                ));
                let class = match index {
                    "hnsw" => format!("{storage}_{class}"),
                    _ => "bit_hamming_ops".to_owned(),
                };
                assert!(definition.contains(&class), "{definition}");
            }
            // So few rows the planner would rather look at.
            db.run("SET enable_seqscan = off; SET enable_sort = off; SET hnsw.ef_search = 200");
            let before = index_scans(&mut db, &format!("{pipeline}_g1"));
            let call = format!("recsync.search('{pipeline}', 'row 17', 10)");
            assert_alike(&found(&mut db, &call), &wanted, &what);
            if index != "none" {
                wait_until(PATIENCE, "the index is used", || {
                    index_scans(&mut db, &format!("{pipeline}_g1")) > before
                });
            }
            db.run("RESET enable_seqscan; RESET enable_sort");
            let similar = found(
                &mut db,
                &format!("recsync.similar('{pipeline}', 3, k => 5)"),
            );
            let wanted: Vec<(String, f64)> = db
                .rows(&format!(
                    "WITH q AS MATERIALIZED (SELECT embedding AS q FROM {pipeline} WHERE id = 3)
                     SELECT e.id::text, ({score})::float8 FROM {pipeline} e, q WHERE e.id <> 3 ORDER BY 2 DESC, 1 LIMIT 5"
                ))
                .iter()
                .map(|row| (row.get(0), row.get(1)))
                .collect();
            assert_alike(&similar, &wanted, &format!("similar, {what}"));
            if (storage, index) == ("vector", "none") {
                orders.push(wanted.into_iter().map(|(item, _)| item).collect::<Vec<_>>());
            }
            db.run(&format!("SELECT recsync.drop_pipeline('{pipeline}')"));
        }
    }
    // Else the test would not see by which it is.
    assert!(
        orders[0] != orders[1] && orders[1] != orders[2] && orders[0] != orders[2],
        "{orders:?}"
    );
}

#[test]
fn recommenders_compare_items_by_the_distance_of_their_pipeline() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    db.run("CREATE TABLE event (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id text, item_id int REFERENCES item, created_at timestamptz NOT NULL DEFAULT now())");
    let mut lists = Vec::new();
    for (distance, score, _) in DISTANCES {
        let pipeline = format!("by_{distance}");
        db.run(&format!(
            "SELECT recsync.create_pipeline('{pipeline}', 'item', columns => '{{title}}', server => 'api', index => 'none', distance => '{distance}')"
        ));
        db.settle(&pipeline);
        stretch(&mut db, &pipeline, "vector");
        db.run(&format!(
            "SELECT recsync.create_recommender('shop_{distance}', '{pipeline}', 'event', collaborative => '{{}}')"
        ));
        db.run("INSERT INTO event (user_id, item_id) VALUES ('ann', 3)");
        db.settle(&format!("shop_{distance}"));
        let wanted: Vec<(String, f64)> = db
            .rows(&format!(
                "WITH q AS MATERIALIZED (SELECT embedding AS q FROM {pipeline} WHERE id = 3)
                 SELECT e.id::text, ({score})::float8 FROM {pipeline} e, q WHERE e.id <> 3 ORDER BY 2 DESC, 1 LIMIT 10"
            ))
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        let similar = found(
            &mut db,
            &format!("recsync.similar('shop_{distance}', 3, by => 'content')"),
        );
        assert_alike(&similar, &wanted, distance);
        // All that ann has done is to look at 3: what is near to that is what she may like.
        let list: Vec<String> = db.column(&format!(
            "SELECT item FROM recsync.recommend('shop_{distance}', 'ann'::text, k => 10) ORDER BY rank"
        ));
        let wanted: Vec<String> = wanted.into_iter().map(|(item, _)| item).collect();
        assert_eq!(list, wanted, "{distance}");
        lists.push(list);
    }
    assert!(lists[0] != lists[1] && lists[1] != lists[2] && lists[0] != lists[2]);
}

#[test]
fn impossible_distances_and_options_of_an_index_are_refused_with_what_is_possible() {
    let api = Api::start();
    let mut db = shared().database();
    items(&mut db, &api);
    for (arguments, says) in [
        ("distance => 'hamming'", "cosine, inner_product and l2"),
        ("index_options => '{\"m\": 1}'", "from 2 to 100"),
        ("index_options => '{\"m\": 40}'", "at least twice m"),
        (
            "index_options => '{\"ef_construction\": 2000}'",
            "from 4 to 1000",
        ),
        ("index_options => '{\"lists\": 100}'", "unknown field"),
        ("index_options => '[16, 64]'", "no JSON object"),
        (
            "index => 'none', index_options => '{\"m\": 8}'",
            "there is no index",
        ),
        (
            "into_column => 'v', index_options => '{\"m\": 8}'",
            "there is no index",
        ),
    ] {
        let error = db.refused(&format!(
            "SELECT recsync.create_pipeline('e', 'item', columns => '{{title}}', server => 'api', {arguments})"
        ));
        assert_eq!(error.code().code(), "22023", "{arguments}: {error:?}");
        let told = format!("{} {}", error.message(), error.hint().unwrap_or_default());
        assert!(told.contains(says), "{arguments}: {told}");
    }
    let create = "SELECT recsync.create_pipeline('e', 'item', columns => '{title}', server => 'api', distance => 'l2', index_options => '{\"m\": 8}', if_not_exists => true)";
    db.run(create);
    db.run(create);
    let error = db.refused(&create.replace("l2", "cosine").replace('8', "9"));
    assert_eq!(error.code().code(), "42710");
    let hint = error.hint().unwrap_or_default();
    assert!(
        hint.contains("distance (is l2, given cosine)") && hint.contains("index_options"),
        "{hint}"
    );
}
