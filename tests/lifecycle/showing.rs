//! What somebody sees who looks around with psql: it fits the terminal, everything says what it is, and no look at it
//! reads millions of rows.

use crate::support::{Api, Cluster, PATIENCE, Sql, shared, wait_until};

#[test]
fn overview_fits_120_columns_whatever_names_reasons_and_numbers_there_are() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    api.refuse_texts_with("bad", 400);
    let long = "a_name_that_is_longer_than_most_but_which_is_allowed";
    db.run(&format!(
        "CREATE SCHEMA \"Another schema\";
         CREATE TABLE \"Another schema\".{long} (id int PRIMARY KEY, title text);
         SELECT recsync.create_pipeline('\"Another schema\".{long}_e', '\"Another schema\".{long}', columns => '{{title}}', server => 'api', index => 'none');
         SELECT recsync.audit('item')"
    ));
    db.run(
        "CREATE TABLE event (id int PRIMARY KEY, user_id int NOT NULL, item_id int NOT NULL REFERENCES item, created_at timestamptz NOT NULL DEFAULT now());
         SELECT recsync.create_recommender('shop', items => 'item', interactions => 'event', user_column => 'user_id')",
    );
    db.run("INSERT INTO item SELECT i, 'bad ' || i FROM generate_series(1, 30) i");
    db.settle("item_embedding");
    db.run(&format!(
        "ALTER TABLE \"Another schema\".{long} DROP COLUMN title"
    ));
    wait_until(PATIENCE, "it is paused for a long reason", || {
        db.one("SELECT count(*) = 1 FROM recsync.status WHERE length(paused_reason) > 31")
    });
    let shown = db.cluster.tool(
        "psql",
        &db.name,
        &["--no-psqlrc", "--command", "SELECT * FROM recsync.overview"],
        b"",
    );
    let shown = String::from_utf8(shown).unwrap();
    for line in shown.lines() {
        assert!(
            line.chars().count() <= 120,
            "{} columns: {line}",
            line.chars().count()
        );
    }
    for kind in [
        "pipeline",
        "recommender",
        "audit",
        "(4 rows)",
        "permanent (HTTP 400)",
        "…",
    ] {
        assert!(shown.contains(kind), "no {kind} in\n{shown}");
    }
    // One source: the same rows, the same numbers.
    let differs: i64 = db.one(
        "SELECT count(*) FROM recsync.status s FULL JOIN recsync.overview o
             ON o.kind = s.kind AND left(o.name, 29) = left(s.name, 29) AND o.state = s.state AND o.pending = s.pending AND o.dead = s.dead
          WHERE s.name IS NULL OR o.name IS NULL",
    );
    assert_eq!(differs, 0);
}

#[test]
fn status_that_a_session_looks_at_again_is_as_of_now_and_of_whoever_looks() {
    let api = Api::start();
    let mut db = shared().database();
    let role = format!("{}_tenant", db.name);
    db.items(&api, "");
    db.run(&format!(
        "CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}; GRANT USAGE ON FOREIGN SERVER api TO {role}"
    ));
    const SEEN: &str = "SELECT name FROM recsync.status ORDER BY name";
    assert_eq!(db.column::<String>(SEEN), ["public.item_embedding"]);
    db.run(&format!("SET ROLE {role}"));
    assert_eq!(db.column::<String>(SEEN), [""; 0]);
    db.run("CREATE TABLE other (id int PRIMARY KEY, title text)");
    db.pipeline("other_embedding", "other");
    for of_all in ["recsync.status", "recsync.status_rows()"] {
        let seen: Vec<String> = db.column(&format!("SELECT name FROM {of_all}"));
        assert_eq!(seen, ["public.other_embedding"], "{of_all}");
    }
    db.run("RESET ROLE");
    let both = ["public.item_embedding", "public.other_embedding"];
    assert_eq!(db.column::<String>(SEEN), both);
    db.run("SELECT recsync.pause('item_embedding')");
    let paused = "SELECT name FROM recsync.status WHERE state = 'paused'";
    assert_eq!(db.column::<String>(paused), ["public.item_embedding"]);
    // As much as is planned anew.
    let differs: i64 = db.one(
        "SELECT count(*) FROM recsync.status s FULL JOIN recsync.status_query q ON q::text = s::text WHERE s.name IS NULL OR q.name IS NULL",
    );
    assert_eq!(differs, 0);
    db.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn everything_that_is_recsyncs_has_a_comment_and_functions_say_when_they_fail() {
    let mut db = shared().database();
    let without: Vec<String> = db.column(
        "SELECT pg_describe_object(classid, objid, 0) FROM pg_depend
          WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
            AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'recsync')
            AND obj_description(objid, classid::regclass::name) IS NULL",
    );
    assert_eq!(without, [""; 0]);
    let role: Option<String> = db.one(
        "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = 'recsync_admin'",
    );
    assert!(role.is_some_and(|text| text.contains("recsync")));
    // What users call has its errors in the manual; what views and triggers call is not called.
    let silent: Vec<String> = db.column(
        "SELECT p.oid::regprocedure::text FROM pg_proc p
          WHERE p.pronamespace = 'recsync'::regnamespace AND p.provolatile = 'v'
            AND p.proname IN ('create_pipeline', 'alter_pipeline', 'drop_pipeline', 'pause', 'resume', 'run', 'backfill', 'rebuild', 'verify', 'repair',
                              'wait_for', 'embed', 'search', 'retry_dead_letters', 'purge_dead_letters', 'create_recommender', 'alter_recommender',
                              'drop_recommender', 'recommend', 'similar', 'popular', 'rank', 'forget', 'evaluate', 'apply_events', 'create_hook',
                              'drop_hook', 'set_budget', 'metrics', 'health', 'estimate', 'audit', 'adopt_site')
            AND obj_description(p.oid, 'pg_proc') !~ '[0-9][0-9A-Z]{4}'",
    );
    assert_eq!(silent, [""; 0]);
}

#[test]
fn few_jobs_are_counted_and_many_are_estimated_without_reading_them() {
    let cluster = Cluster::start(&[("recsync.enabled", "off")]);
    let api = Api::start();
    let mut db = cluster.database();
    db.items(&api, "");
    db.run("CREATE TABLE other (id int PRIMARY KEY, title text)");
    db.pipeline("other_embedding", "other");
    db.run(
        "INSERT INTO recsync.job (pipeline_id, record_key, created_at)
         SELECT p.id, ARRAY[i::text], now() - interval '1 hour' FROM recsync.pipeline p, generate_series(1, CASE p.relation WHEN 'public.other_embedding' THEN 7 ELSE 60000 END) i",
    );
    db.run("ANALYZE recsync.job");
    let pending = |db: &mut crate::support::Database, name: &str| -> i64 {
        db.one(&format!(
            "SELECT pending FROM recsync.status WHERE name = 'public.{name}'"
        ))
    };
    assert_eq!(pending(&mut db, "other_embedding"), 7);
    let many = pending(&mut db, "item_embedding");
    assert!((57_000..63_000).contains(&many), "{many}");
    let lag: f64 = db.one("SELECT min(lag_seconds) FROM recsync.status WHERE kind = 'pipeline'");
    assert!((3_600.0..3_700.0).contains(&lag), "{lag}");
    // What is read of the table does not grow with it.
    let read = |db: &mut crate::support::Database| -> i64 {
        db.run("SELECT pg_stat_force_next_flush()");
        db.one("SELECT seq_tup_read + COALESCE(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE schemaname = 'recsync' AND relname = 'job'")
    };
    let before = read(&mut db);
    pending(&mut db, "item_embedding");
    db.run(
        "SELECT recsync.metrics(); SELECT FROM recsync.health(); SELECT FROM recsync.generation",
    );
    let after = read(&mut db);
    assert!(
        after - before < 4 * 10_100,
        "{} rows were read",
        after - before
    );
    // Never fewer than were seen.
    db.run("DELETE FROM recsync.job WHERE pipeline_id = (SELECT id FROM recsync.pipeline WHERE relation = 'public.other_embedding') AND record_key > '{3}'");
    assert_eq!(pending(&mut db, "other_embedding"), 3);
}
