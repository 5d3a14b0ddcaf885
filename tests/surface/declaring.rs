//! create_pipeline and drop_pipeline: each refusal has its SQLSTATE and a hint.

use crate::support::{Api, Database, Sql, shared};

const CREATE: &str =
    "SELECT recsync.create_pipeline('e', 'item', columns => '{title}', server => 'api')";

fn items(api: &Api) -> Database<'static> {
    let mut db = shared().database();
    db.server("api", api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, n int)");
    db
}

#[test]
fn each_refusal_of_create_pipeline_has_its_sqlstate_and_a_hint() {
    let api = Api::start();
    let mut db = items(&api);
    db.run("CREATE TABLE keyless (title text); CREATE VIEW shown AS SELECT * FROM item;
            CREATE MATERIALIZED VIEW stored AS SELECT * FROM item; CREATE TEMP TABLE passing (id int PRIMARY KEY, title text);
            CREATE FOREIGN DATA WRAPPER far; CREATE SERVER far FOREIGN DATA WRAPPER far;
            CREATE FOREIGN TABLE abroad (id int, title text) SERVER far; CREATE TABLE taken (id int)");
    for (arguments, code, wanted) in [
        (
            "'e', 'keyless', columns => '{title}', server => 'api'",
            "55000",
            "PRIMARY KEY",
        ),
        (
            "'e', 'shown', columns => '{title}', server => 'api'",
            "42809",
            "table",
        ),
        (
            "'e', 'stored', columns => '{title}', server => 'api'",
            "42809",
            "tables",
        ),
        (
            "'e', 'passing', columns => '{title}', server => 'api'",
            "42809",
            "ordinary table",
        ),
        (
            "'e', 'abroad', columns => '{title}', server => 'api'",
            "42809",
            "local",
        ),
        (
            "'e', 'pg_class', columns => '{relname}', server => 'api'",
            "42809",
            "table",
        ),
        (
            "'e', 'recsync.job', columns => '{attempt}', server => 'api'",
            "42809",
            "table",
        ),
        (
            "'e', 'item', columns => '{title,colour}', server => 'api'",
            "42703",
            "title",
        ),
        (
            "'e', 'item', columns => '{title}', content => 'title', server => 'api'",
            "22023",
            "content",
        ),
        ("'e', 'item', server => 'api'", "22023", "content"),
        (
            "'e', 'item', columns => '{}', server => 'api'",
            "22023",
            "content",
        ),
        (
            "'e', 'item', content => $$title || random()$$, server => 'api'",
            "22023",
            "volatile",
        ),
        (
            "'e', 'item', columns => '{title}', row_filter => 'random() < 0.5', server => 'api'",
            "22023",
            "volatile",
        ),
        (
            "'e', 'item', columns => '{title}', server => 'nowhere'",
            "42704",
            "CREATE SERVER",
        ),
        (
            "'e', 'item', columns => '{title}', server => 'far'",
            "42704",
            "CREATE SERVER",
        ),
        ("'e', 'item', columns => '{title}'", "22023", "server"),
        (
            "NULL, 'item', columns => '{title}', server => 'api'",
            "22023",
            "name",
        ),
        (
            "'e', NULL, columns => '{title}', server => 'api'",
            "22023",
            "table",
        ),
        (
            "'', 'item', columns => '{title}', server => 'api'",
            "22023",
            "59",
        ),
        (
            "'e', 'item', columns => '{title}', server => 'api', schedule => 'sometimes'",
            "22023",
            "realtime",
        ),
        (
            "'e', 'item', columns => '{title}', server => 'api', storage => 'floppy'",
            "22023",
            "halfvec",
        ),
        (
            "'e', 'item', columns => '{title}', server => 'api', index => 'btree'",
            "22023",
            "hnsw",
        ),
        (
            "'taken', 'item', columns => '{title}', server => 'api'",
            "42P07",
            "another",
        ),
    ] {
        let error = db.refused(&format!("SELECT recsync.create_pipeline({arguments})"));
        assert_eq!(error.code().code(), code, "{arguments}: {error:?}");
        let said = format!("{} {}", error.message(), error.hint().unwrap_or_default());
        assert!(
            error.hint().is_some() && said.contains(wanted),
            "{arguments}: \"{wanted}\" is not in: {said}"
        );
    }
    // PostgreSQL's own errors for what it parses itself.
    for (content, code) in [
        ("title ||", "42601"),
        ("colour", "42703"),
        ("no_such_function(title)", "42883"),
        ("(SELECT title FROM item LIMIT 1)", "0A000"),
        ("max(title)", "42803"),
        ("title, n", "22023"),
        ("title FROM item", "22023"),
    ] {
        let error = db.refused(&format!(
            "SELECT recsync.create_pipeline('e', 'item', content => $${content}$$, server => 'api')"
        ));
        assert_eq!(error.code().code(), code, "{content}: {error:?}");
    }
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'item'::regclass"),
        0,
        "a refusal has left a trigger"
    );
}

#[test]
fn create_pipeline_needs_the_table_create_on_its_schema_and_usage_on_the_server() {
    let api = Api::start();
    let mut db = items(&api);
    db.run(
        "DROP ROLE IF EXISTS declarer; CREATE ROLE declarer LOGIN; GRANT ALL ON item TO declarer",
    );
    let mut declarer = db.connect_as("declarer");
    let refused = |declarer: &mut postgres::Client, wanted: &str| {
        let error = declarer.refused(CREATE);
        assert_eq!(error.code().code(), "42501", "{error:?}");
        let said = format!("{} {}", error.message(), error.hint().unwrap_or_default());
        assert!(said.contains(wanted), "\"{wanted}\" is not in: {said}");
    };
    refused(&mut declarer, "own");
    db.run("ALTER TABLE item OWNER TO declarer");
    refused(&mut declarer, "GRANT CREATE ON SCHEMA public TO declarer");
    db.run("GRANT CREATE ON SCHEMA public TO declarer");
    refused(
        &mut declarer,
        "GRANT USAGE ON FOREIGN SERVER api TO declarer",
    );
    db.run("GRANT USAGE ON FOREIGN SERVER api TO declarer");
    declarer.run(CREATE);
    declarer.run("INSERT INTO item VALUES (1, 'mine')");
    assert!(declarer.one::<bool>("SELECT recsync.wait_for('e', '30 s')"));
    assert_eq!(declarer.one::<i64>("SELECT count(*) FROM e"), 1);
    assert_eq!(
        declarer.column::<String>("SELECT DISTINCT pg_get_userbyid(relowner)::text FROM pg_class WHERE relname IN ('e', 'e_g1')"),
        ["declarer"]
    );
    assert_eq!(
        declarer.one::<i64>("SELECT count(*) FROM recsync.change_log"),
        1,
        "the owner reads the log of their table"
    );
    assert_eq!(
        declarer.one::<i64>("SELECT count(*) FROM recsync.status"),
        1
    );
    assert_eq!(
        declarer.one::<String>("SELECT item FROM recsync.search('e', 'mine')"),
        "1"
    );
    declarer.run("SELECT recsync.drop_pipeline('e')");
}

#[test]
fn repetition_is_refused_or_with_if_not_exists_nothing_and_another_definition_says_what_differs() {
    let api = Api::start();
    let mut db = items(&api);
    db.run(CREATE);
    assert_eq!(db.refused(CREATE).code().code(), "42710");
    let again = CREATE.replace("server =>", "if_not_exists => true, server =>");
    assert_eq!(
        db.one::<String>(
            &again
                .replace("SELECT ", "SELECT (")
                .replace("'api')", "'api'))::text")
        ),
        "e"
    );
    let error = db.refused(&again.replace("columns => '{title}'", "content => 'upper(title)'"));
    assert_eq!(error.code().code(), "42710");
    let said = format!(
        "{} {} {}",
        error.message(),
        error.detail().unwrap_or_default(),
        error.hint().unwrap_or_default()
    );
    assert!(said.contains("content") && said.contains("upper"), "{said}");
}

#[test]
fn drop_pipeline_takes_view_vectors_work_and_triggers_and_keep_vectors_keeps_the_table() {
    let api = Api::start();
    let mut db = items(&api);
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.run(CREATE);
    db.run(&CREATE.replace("'e'", "'kept'"));
    db.settle("e");
    db.settle("kept");
    db.run("SELECT recsync.drop_pipeline('kept', keep_vectors => true)");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM kept_g1"), 1);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'item'::regclass"),
        3,
        "the other pipeline's"
    );
    db.run("UPDATE item SET title = 'two'");
    db.settle("e");
    db.run("SELECT recsync.drop_pipeline('e')");
    for gone in ["e", "e_g1", "kept"] {
        assert!(
            db.one::<bool>(&format!("SELECT to_regclass('{gone}') IS NULL")),
            "{gone} is still there"
        );
    }
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'item'::regclass"),
        0
    );
    assert_eq!(
        db.refused("SELECT recsync.drop_pipeline('e')")
            .code()
            .code(),
        "42704"
    );
    db.run("SELECT recsync.drop_pipeline('e', if_exists => true)");
    let asked = api.requests().len();
    db.run("UPDATE item SET title = 'three'");
    db.run(&CREATE.replace("'e'", "'anew'"));
    db.settle("anew");
    assert_eq!(api.requests().len(), asked + 1);
    for call in ["pause", "resume", "wait_for", "retry_dead_letters"] {
        let error = db.refused(&format!("SELECT recsync.{call}('nobody')"));
        assert_eq!(error.code().code(), "42704", "{call}: {error:?}");
        assert!(error.hint().is_some(), "{call}");
    }
}

#[test]
fn create_pipeline_that_is_rolled_back_leaves_nothing_and_one_in_a_transaction_sees_its_rows() {
    let api = Api::start();
    let mut db = items(&api);
    db.run(&format!(
        "BEGIN; {CREATE}; INSERT INTO item VALUES (1, 'never'); ROLLBACK"
    ));
    assert!(db.one::<bool>("SELECT to_regclass('e') IS NULL AND to_regclass('e_g1') IS NULL"));
    db.run(&format!("BEGIN; INSERT INTO item VALUES (1, 'before'); {CREATE}; INSERT INTO item VALUES (2, 'after'); COMMIT"));
    db.settle("e");
    db.assert_in_step(
        &api,
        "SELECT i.id::text, i.title, e.embedding::text FROM item i FULL JOIN e USING (id)",
    );
    assert_eq!(api.times_asked("never"), 0);
}

#[test]
fn writers_during_create_pipeline_neither_wait_for_long_nor_lose_rows() {
    let api = Api::start();
    let mut db = items(&api);
    let mut holder = db.connect();
    let mut open = holder.transaction().unwrap();
    open.batch_execute("INSERT INTO item VALUES (1, 'open')")
        .unwrap();
    // It does not queue for its lock: whoever writes meanwhile waits for 50 ms at most.
    let mut second = db.connect();
    let creating = std::thread::spawn(move || {
        second
            .batch_execute(CREATE)
            .map_err(|error| error.code().cloned())
    });
    let mut worst = std::time::Duration::ZERO;
    let mut id = 10;
    while !creating.is_finished() {
        let started = std::time::Instant::now();
        db.run(&format!("INSERT INTO item VALUES ({id}, 'row {id}')"));
        worst = worst.max(started.elapsed());
        id += 1;
    }
    println!("worst write beside create_pipeline: {worst:?}");
    assert!(
        worst < std::time::Duration::from_millis(400),
        "a writer waited {worst:?}"
    );
    let refused = creating.join().unwrap().unwrap_err().unwrap();
    assert_eq!(refused.code(), "55P03", "it gives up with a hint");
    open.commit().unwrap();
    db.run(CREATE);
    db.settle("e");
    db.assert_in_step(
        &api,
        "SELECT i.id::text, i.title, e.embedding::text FROM item i FULL JOIN e USING (id)",
    );
}
