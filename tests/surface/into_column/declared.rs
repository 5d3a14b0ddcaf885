use super::{CREATE, in_step, items, sent, table};
use crate::support::{Api, PATIENCE, Sql, wait_until};

#[test]
fn each_column_that_cannot_hold_the_vectors_is_refused_with_a_hint() {
    let api = Api::start();
    let mut db = table(&api, "");
    db.run("ALTER TABLE item ADD words text, ADD narrow vector(3), ADD half halfvec(16), ADD full_one vector NOT NULL DEFAULT array_fill(0, ARRAY[16])::vector,
              ADD made vector(16) GENERATED ALWAYS AS (array_fill(0, ARRAY[16])::vector) STORED, ADD good vector(16), ADD taken vector(16);
            CREATE TABLE by_vector (embedding vector(16) PRIMARY KEY, title text)");
    db.run("SELECT recsync.create_pipeline('other', 'item', columns => '{title}', server => 'api', into_column => 'taken')");
    let item = "'e', 'item', columns => '{title}', server => 'api'";
    for (arguments, wanted) in [
        (format!("{item}, into_column => 'words'"), "text"),
        (format!("{item}, into_column => 'narrow'"), "16 dimensions"),
        (format!("{item}, into_column => 'full_one'"), "NOT NULL"),
        (format!("{item}, into_column => 'made'"), "generated"),
        (format!("{item}, into_column => 'id'"), "primary key"),
        (format!("{item}, into_column => ''"), "63"),
        (format!("{item}, into_column => 'taken'"), "other"),
        (
            format!("{item}, into_column => 'half', storage => 'vector'"),
            "halfvec",
        ),
        (
            format!("{item}, into_column => 'good', row_filter => 'good IS NULL'"),
            "uses column good",
        ),
        (
            "'e', 'item', content => $$title || taken::text$$, server => 'api'".to_owned(),
            "taken",
        ),
        (
            "'e', 'item', content => 'item::text', server => 'api', into_column => 'added'"
                .to_owned(),
            "uses column added",
        ),
        (
            "'e', 'by_vector', columns => '{title}', server => 'api', into_column => 'embedding'"
                .to_owned(),
            "primary key",
        ),
    ] {
        let error = db.refused(&format!("SELECT recsync.create_pipeline({arguments})"));
        let said = format!("{} {}", error.message(), error.hint().unwrap_or_default());
        assert_eq!(error.code().code(), "22023", "{arguments}: {said}");
        assert!(
            error.hint().is_some() && said.contains(wanted),
            "{arguments}: \"{wanted}\" is not in: {said}"
        );
    }
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_attribute WHERE attrelid = 'item'::regclass AND attname = 'added'"),
        0,
        "a refusal has left a column"
    );
}

#[test]
fn a_column_that_is_there_is_used_as_it_is() {
    let api = Api::start();
    let mut db = table(&api, "");
    for (number, (kind, storage)) in [
        ("vector(16)", "vector"),
        ("vector", "vector"),
        ("halfvec(16)", "halfvec"),
        ("halfvec", "halfvec"),
    ]
    .into_iter()
    .enumerate()
    {
        let table = format!("t{number}");
        db.run(&format!("CREATE TABLE {table} (id int PRIMARY KEY, embedding {kind}, title text);
                         INSERT INTO {table} VALUES (1, array_fill(0.25, ARRAY[16])::vector, 'one'), (2, NULL, 'two'), (3, array_fill(0.25, ARRAY[16])::vector, NULL)"));
        db.run(&format!("SELECT recsync.create_pipeline('{table}_e', '{table}', columns => '{{title}}', server => 'api', into_column => 'embedding')"));
        db.settle(&format!("{table}_e"));
        let type_now: String = db.one(&format!("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attname = 'embedding'"));
        assert_eq!(type_now, kind);
        let indexes: i64 = db.one(&format!("SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam WHERE i.indrelid = '{table}'::regclass AND amname = 'hnsw'"));
        assert_eq!(indexes, 0, "an index on a user's table is the user's");
        for (id, text) in [(1, "one"), (2, "two")] {
            let vector: Vec<f32> = db.one(&format!(
                "SELECT embedding::real[] FROM {table} WHERE id = {id}"
            ));
            let right = vector
                .iter()
                .zip(api.vector(text))
                .all(|(is, wanted)| (is - wanted).abs() < 1e-3);
            assert!(right, "{kind}: {vector:?}");
        }
        assert_eq!(
            db.column::<i32>(&format!("SELECT id FROM {table} WHERE embedding IS NULL")),
            [3],
            "no text, no vector"
        );
        assert_eq!(
            db.one::<String>(&format!(
                "SELECT storage FROM recsync.pipeline WHERE relation LIKE '%{table}_e'"
            )),
            storage
        );
        assert_eq!(
            db.column::<String>(&format!(
                "SELECT item FROM recsync.search('{table}_e', 'two')"
            ))[0],
            "2"
        );
    }
}

#[test]
fn repetition_says_what_differs() {
    let api = Api::start();
    let mut db = items(&api);
    let again = CREATE.replace("server =>", "if_not_exists => true, server =>");
    db.run(&again);
    for (other, wanted) in [
        (again.replace("'embedding'", "'elsewhere'"), "elsewhere"),
        (again.replace("'embedding'", "NULL"), "none"),
    ] {
        let error = db.refused(&other);
        assert_eq!(error.code().code(), "42710");
        let hint = error.hint().unwrap_or_default();
        assert!(
            hint.contains("into_column") && hint.contains(wanted),
            "{hint}"
        );
    }
}

#[test]
fn drop_pipeline_leaves_the_column_and_says_how_to_drop_it() {
    let api = Api::start();
    let mut db = items(&api);
    sent(&mut db, &api, "INSERT INTO item VALUES (1, 'one')");
    let notices = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let heard = notices.clone();
    let mut config = db.cluster.config("postgres", &db.name);
    config.notice_callback(move |notice| heard.lock().unwrap().push(notice.message().to_owned()));
    let mut client = config.connect(postgres::NoTls).unwrap();
    client.run("SELECT recsync.drop_pipeline('item_embedding', keep_vectors => true)");
    let notices = notices.lock().unwrap();
    assert!(
        notices
            .iter()
            .any(|notice| notice.contains("ALTER TABLE public.item DROP COLUMN embedding")),
        "{notices:?}"
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM item WHERE embedding IS NOT NULL"),
        1
    );
    for gone in [
        "to_regclass('item_embedding')",
        "to_regclass('item_embedding_g1')",
        "to_regproc('item_embedding_g1')",
    ] {
        assert!(db.one::<bool>(&format!("SELECT {gone} IS NULL")), "{gone}");
    }
    db.run(CREATE);
    db.settle("item_embedding");
    in_step(&mut db, &api);
}

#[test]
fn names_are_followed() {
    let api = Api::start();
    let mut db = items(&api);
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 5) i");
    db.settle("item_embedding");
    db.run("CREATE SCHEMA shop");
    for (rename, table, key, column) in [
        (
            "ALTER TABLE item RENAME embedding TO \"Vector\"",
            "item",
            "id",
            "\"Vector\"",
        ),
        (
            "ALTER TABLE item RENAME id TO key",
            "item",
            "key",
            "\"Vector\"",
        ),
        (
            "ALTER TABLE item RENAME TO thing",
            "thing",
            "key",
            "\"Vector\"",
        ),
        (
            "ALTER TABLE thing SET SCHEMA shop",
            "shop.thing",
            "key",
            "\"Vector\"",
        ),
        (
            "ALTER TABLE item_embedding_g1 RENAME TO memory",
            "shop.thing",
            "key",
            "\"Vector\"",
        ),
        (
            "ALTER TABLE shop.thing RENAME \"Vector\" TO v",
            "shop.thing",
            "key",
            "v",
        ),
    ] {
        db.run(rename);
        db.run(&format!("UPDATE {table} SET title = title || '.' WHERE {key} <= 3; INSERT INTO {table} ({key}, title) SELECT max({key}) + 1, 'after' || max({key}) FROM {table}"));
        db.settle("item_embedding");
        db.assert_in_step(
            &api,
            &format!("SELECT s.{key}::text, s.title, s.{column}::text FROM {table} s"),
        );
        db.assert_in_step(&api, &format!("SELECT {key}::text, s.title, e.embedding::text FROM {table} s FULL JOIN item_embedding e USING ({key})"));
        assert_eq!(
            db.one::<i64>("SELECT count(*) FROM recsync.search('item_embedding', 'row', k => 3)"),
            3
        );
    }
    assert_eq!(
        db.one::<String>("SELECT into_column FROM recsync.pipeline"),
        "v"
    );
}

#[test]
fn a_column_that_is_dropped_or_retyped_pauses_the_pipeline_and_the_ddl_goes_through() {
    let api = Api::start();
    let mut db = items(&api);
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 5) i");
    db.settle("item_embedding");
    for (ddl, wanted, mend) in [
        (
            "ALTER TABLE item DROP COLUMN embedding",
            "column embedding of public.item was dropped",
            "ALTER TABLE item ADD embedding vector(16)",
        ),
        (
            "ALTER TABLE item ALTER embedding TYPE text",
            "column embedding of public.item is text now, it was public.vector",
            "ALTER TABLE item ALTER embedding TYPE vector(16) USING embedding::vector",
        ),
    ] {
        db.run(ddl);
        wait_until(PATIENCE, "the pipeline is paused", || {
            db.one::<Option<String>>("SELECT paused_reason FROM recsync.status")
                .as_deref()
                == Some(wanted)
        });
        db.run("UPDATE item SET title = title || '.' WHERE id <= 2");
        db.run(mend);
        db.run("SELECT recsync.resume('item_embedding')");
        db.settle("item_embedding");
        in_step(&mut db, &api);
    }
    // A width that its rows allow, but the pipeline's vectors do not have.
    db.run("DELETE FROM item; ALTER TABLE item ALTER embedding TYPE vector(3)");
    wait_until(PATIENCE, "the pipeline is paused", || {
        db.one::<Option<String>>("SELECT paused_reason FROM recsync.status")
            .is_some_and(|reason| reason.contains("vector(3) now, not vector(16)"))
    });
    db.run("DROP TABLE item");
    for gone in [
        "to_regclass('item_embedding')",
        "to_regclass('item_embedding_g1')",
        "to_regproc('item_embedding_g1')",
    ] {
        assert!(db.one::<bool>(&format!("SELECT {gone} IS NULL")), "{gone}");
    }
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.status"), 0);
}

#[test]
fn the_view_shows_a_vector_only_to_those_who_may_read_it_in_the_source() {
    let api = Api::start();
    let mut db = items(&api);
    sent(
        &mut db,
        &api,
        "INSERT INTO item VALUES (1, 'one'), (2, 'two')",
    );
    db.run("DROP ROLE IF EXISTS column_reader; CREATE ROLE column_reader LOGIN; GRANT SELECT ON item_embedding TO column_reader; GRANT USAGE ON FOREIGN SERVER api TO column_reader");
    let mut reader = db.connect_as("column_reader");
    let error = reader.refused("SELECT embedding FROM item_embedding");
    assert_eq!(error.code().code(), "42501", "{error:?}");
    db.run("GRANT SELECT ON item TO column_reader; CREATE POLICY one ON item USING (id = 1); ALTER TABLE item ENABLE ROW LEVEL SECURITY");
    assert_eq!(
        reader.column::<i32>("SELECT id FROM item_embedding"),
        [1],
        "row-level security of the source holds"
    );
    assert_eq!(
        reader.column::<String>("SELECT item FROM recsync.search('item_embedding', 'two')"),
        ["1"]
    );
}
