//! Invariant 13: no key and no row text where they do not belong; roles without grants write to watched tables and
//! can read nothing of recsync's.

use std::fs;
use std::path::Path;

use crate::support::cluster::TEST_API_KEY;
use crate::support::{Api, Cluster, Database, PATIENCE, Sql, shared, wait_until};

#[test]
fn invariant_13_role_without_grants_writes_to_a_watched_table_and_reads_nothing_of_recsyncs() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("INSERT INTO item VALUES (1, 'secret of the owner')");
    db.run("DROP ROLE IF EXISTS writer; CREATE ROLE writer LOGIN");
    db.run("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON item TO writer");
    api.refuse_texts_with("poison", 400);
    let mut writer = db.connect_as("writer");
    writer.run("INSERT INTO item VALUES (2, 'by the writer'), (3, 'poison')");
    writer.run("UPDATE item SET title = title || ', changed' WHERE id = 2");
    writer.run("DELETE FROM item WHERE id = 1");
    writer.run("BEGIN; SAVEPOINT s; TRUNCATE item; ROLLBACK TO s; COMMIT");
    db.settle("item_embedding");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 1);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 1);
    assert_eq!(
        db.column::<String>(
            "SELECT DISTINCT changed_by FROM recsync.change_log WHERE op <> 'INSERT' OR record_key <> '{\"id\": 1}'"
        ),
        ["writer"],
        "the log says who changed"
    );

    let relations: Vec<String> = db.column(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE n.nspname = 'recsync' AND c.relkind IN ('r', 'v', 'm', 'S', 'p', 'f')
            AND c.relname <> 'presets' ORDER BY 1", // models and prices: nobody's data
    );
    assert!(relations.len() > 10, "{relations:?}");
    let for_everybody = [
        "recsync.attribution",
        "recsync.change_log",
        "recsync.dead_letter",
        "recsync.errors",
        "recsync.generation",
        "recsync.list_cache",
        "recsync.model",
        "recsync.overview",
        "recsync.shown",
        "recsync.status",
        "recsync.status_query",
        "recsync.usage",
    ];
    for relation in relations {
        if for_everybody.contains(&relation.as_str()) {
            assert_eq!(
                writer.one::<i64>(&format!("SELECT count(*) FROM {relation}")),
                0,
                "{relation} shows others' rows"
            );
        } else {
            assert_eq!(
                writer
                    .refused(&format!("SELECT * FROM {relation}"))
                    .code()
                    .code(),
                "42501",
                "{relation}"
            );
        }
        assert!(
            writer
                .batch_execute(&format!("DELETE FROM {relation}"))
                .is_err(),
            "deletes from {relation}"
        );
        assert!(
            writer
                .batch_execute(&format!("INSERT INTO {relation} DEFAULT VALUES"))
                .is_err(),
            "inserts into {relation}"
        );
    }
    for query in [
        "SELECT * FROM item_embedding",
        "SELECT * FROM item_embedding_g1",
        "SELECT recsync.embed('api', 'x')",
        "SELECT recsync.embed('item_embedding', 'x')",
        "SELECT * FROM recsync.search('item_embedding', 'x')",
        "SELECT recsync.drop_pipeline('item_embedding')",
        "SELECT recsync.pause('item_embedding')",
        "SELECT recsync.resume('item_embedding')",
        "SELECT recsync.retry_dead_letters('item_embedding')",
        "SELECT recsync.create_pipeline('mine', 'item', columns => '{title}', server => 'api')",
        "CREATE SERVER mine FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin')",
        "ALTER SERVER api OPTIONS (SET url 'http://127.0.0.1:1/v1')",
    ] {
        let error = writer.refused(query);
        assert_eq!(error.code().code(), "42501", "{query}: {}", error.message());
    }
    let asked = api.requests().len();
    assert!(writer.batch_execute("SELECT recsync.capture_v1()").is_err());
    assert_eq!(
        api.requests().len(),
        asked,
        "a role without USAGE had something sent"
    );
}

#[test]
fn invariant_13_search_shows_only_rows_that_the_caller_may_read() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("INSERT INTO item SELECT i, 'row ' || i, i % 2 FROM generate_series(1, 10) i");
    db.settle("item_embedding");
    db.run("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN");
    db.run("GRANT SELECT ON item, item_embedding TO reader; GRANT USAGE ON FOREIGN SERVER api TO reader");
    db.run("ALTER TABLE item ENABLE ROW LEVEL SECURITY; CREATE POLICY even ON item TO reader USING (stock = 0)");
    let mut reader = db.connect_as("reader");
    let found: Vec<String> = reader.column(
        "SELECT item FROM recsync.search('item_embedding', 'row 1', k => 10) ORDER BY item::int",
    );
    assert_eq!(
        found,
        ["2", "4", "6", "8", "10"],
        "row-level security of the source holds"
    );
}

#[test]
fn invariant_13_key_and_row_text_are_in_no_catalog_no_log_line_and_not_in_pg_stat_activity() {
    let cluster = Cluster::start(&[
        ("log_min_messages", "debug1"),
        ("log_error_verbosity", "verbose"),
    ]);
    let api = Api::start();
    let mut db = cluster.database();
    const TEXT: &str = "the text of a row that nobody should see";
    api.echo_in_errors();
    api.refuse_texts_with("refused", 400);
    db.items(&api, "max_attempts '2'");
    db.run(&format!(
        "INSERT INTO item VALUES (1, '{TEXT}'), (2, 'refused {TEXT}')"
    ));
    db.settle("item_embedding");
    // An expression that fails with the row's text in its message, and a provider that does not know the key.
    db.run("SELECT recsync.create_pipeline('number', 'item', content => '(title::int)::text', server => 'api', index => 'none')");
    db.settle("number");
    api.fail_next(1, 401, None);
    db.run(&format!(
        "UPDATE item SET title = '{TEXT}, again' WHERE id = 1"
    ));
    wait_until(PATIENCE, "the key was refused", || api.failures_left() == 0);
    let _ = db.batch_execute("SELECT recsync.embed('api', 'refused query')");
    db.run("SELECT recsync.search('item_embedding', 'something')");

    let sent = api.requests();
    let bearer = format!("Bearer {TEST_API_KEY}");
    assert!(
        sent.iter()
            .all(|request| request.header("authorization") == Some(bearer.as_str())),
        "the key was not used"
    );
    assert_eq!(
        holding(&mut db, TEST_API_KEY, &[]),
        Vec::<String>::new(),
        "relations that hold the key"
    );
    // The source has the text, and the dead letters say to their owner what was wrong with it.
    let own = [
        "public.item",
        "recsync.dead_letter",
        "recsync.dead_letter_log",
    ];
    assert_eq!(
        holding(&mut db, TEXT, &own),
        Vec::<String>::new(),
        "relations that hold a row's text"
    );
    assert_eq!(
        db.one::<i64>(&format!(
            "SELECT count(*) FROM recsync.dead_letter WHERE message LIKE '%{TEST_API_KEY}%'"
        )),
        0
    );
    let log = cluster.log();
    assert!(
        !log.contains(TEST_API_KEY),
        "the key is in the server's log"
    );
    // Statements of users that fail are logged by PostgreSQL as they are; none of these has failed.
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(TEXT)).collect();
    assert!(
        lines.is_empty(),
        "a row's text is in the server's log: {lines:#?}"
    );
    assert_eq!(
        files_with(&cluster.data_directory(), TEST_API_KEY),
        Vec::<String>::new(),
        "files that hold the key"
    );
}

/// The relations of the database, catalogs and views included, in which some row holds `text`.
fn holding(db: &mut Database, text: &str, but: &[&str]) -> Vec<String> {
    let relations: Vec<String> = db.column(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'v', 'm', 'p') AND n.nspname !~ '^pg_toast'
            AND c.relname NOT IN ('pg_statistic', 'pg_stats', 'pg_stats_ext', 'pg_stats_ext_exprs', 'pg_hba_file_rules', 'pg_backend_memory_contexts',
                                  'pg_shmem_allocations_numa', 'pg_buffercache_numa')",
    );
    // Not in the query's own text: it would find itself in pg_stat_activity.
    let (start, end) = text.split_at(text.len() / 2);
    let condition = format!("strpos(t::text, concat('{start}', '{end}')) > 0");
    let relations = relations
        .into_iter()
        .filter(|relation| !but.contains(&relation.as_str()));
    relations
        .filter(|relation| {
            db.one(&format!(
                "SELECT EXISTS (SELECT FROM {relation} t WHERE {condition})"
            ))
        })
        .collect()
}

fn files_with(directory: &Path, needle: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, needle));
        } else if let Ok(bytes) = fs::read(&path)
            && contains(&bytes, needle.as_bytes())
        {
            found.push(path.display().to_string());
        }
    }
    found
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    // windows() over a cluster's files takes minutes without optimisation.
    // SAFETY: memmem reads within the two given lengths.
    let found = unsafe {
        libc::memmem(
            bytes.as_ptr().cast(),
            bytes.len(),
            needle.as_ptr().cast(),
            needle.len(),
        )
    };
    !found.is_null()
}
