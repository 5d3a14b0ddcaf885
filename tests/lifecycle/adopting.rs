//! adopt_vectors: what somebody has paid for already is not paid for again, and nothing else is taken.

use crate::support::{Api, Database, PATIENCE, Sql, shared, wait_until};

fn literal(vector: &[f32]) -> String {
    let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
    format!("[{}]", numbers.join(","))
}

/// Table `item` with a column of vectors, made by hand, of rows 1 to `count`.
fn by_hand<'a>(api: &Api, count: i32) -> Database<'a> {
    let mut db = shared().database();
    db.server("api", api, "");
    db.run("CREATE TABLE item (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0, embedding vector(16))");
    let rows: Vec<String> = (1..=count)
        .map(|id| {
            let text = format!("row {id}");
            format!("({id}, '{text}', '{}')", literal(&api.vector(&text)))
        })
        .collect();
    db.run(&format!(
        "INSERT INTO item (id, title, embedding) VALUES {}",
        rows.join(", ")
    ));
    db
}

fn create(db: &mut Database, more: &str) {
    db.run(&format!(
        "SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{{title}}', server => 'api', index => 'none', backfill => false{more})"
    ));
}

#[track_caller]
fn adopt(db: &mut Database, more: &str) -> i64 {
    db.one(&format!(
        "SELECT recsync.adopt_vectors('item_embedding', 'test'{more})"
    ))
}

/// That what was kept meanwhile is gone.
#[track_caller]
fn nothing_is_left_over(db: &mut Database) {
    wait_until(PATIENCE, "what was adopted is forgotten", || {
        db.one("SELECT count(*) = 0 FROM recsync.adopted")
    });
}

#[test]
fn vectors_of_a_column_are_taken_and_only_the_sample_and_what_has_none_or_has_changed_is_paid_for()
{
    let api = Api::start();
    let mut db = by_hand(&api, 2_500);
    db.run("UPDATE item SET embedding = NULL WHERE id <= 3; INSERT INTO item VALUES (3000, NULL), (3001, 'new')");
    create(&mut db, "");
    db.run("BEGIN");
    assert_eq!(adopt(&mut db, ""), 2_497);
    assert_eq!(api.requests_made(), 10, "so many are compared");
    let mut other = db.connect();
    other.run("UPDATE item SET title = 'changed' WHERE id = 2000; UPDATE item SET stock = 7 WHERE id < 100");
    db.run("COMMIT");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
    let texts = api.texts();
    let mut paid = texts[10..].to_vec();
    paid.sort();
    assert_eq!(paid, ["changed", "new", "row 1", "row 2", "row 3"]);
    nothing_is_left_over(&mut db);
    // The pipeline goes on as any other.
    db.run("UPDATE item SET title = 'later' WHERE id = 5");
    db.settle("item_embedding");
    db.assert_items_in_step(&api);
}

#[test]
fn vectors_of_a_table_belong_to_rows_by_its_foreign_key_its_names_or_as_is_said() {
    for (definition, columns, more) in [
        (
            "id int GENERATED ALWAYS AS IDENTITY, product int UNIQUE REFERENCES item, embedding vector(16)",
            "product, embedding",
            "",
        ),
        (
            "id int PRIMARY KEY, embedding halfvec(16), other text",
            "id, embedding",
            "",
        ),
        (
            "number bigint, one vector(16), two real[]",
            "number, two",
            ", vector_column => 'two', key_columns => '{number}'",
        ),
    ] {
        // One of its own: what a session has compared, the others of the cluster know for a while.
        let api = Api::start();
        let mut db = by_hand(&api, 300);
        db.run(&format!("CREATE TABLE old ({definition}); INSERT INTO old ({columns}) SELECT id, embedding FROM item WHERE id <= 250; ALTER TABLE item DROP COLUMN embedding"));
        create(&mut db, "");
        assert_eq!(
            adopt(&mut db, &format!(", 'old', check_rows => 3{more}")),
            250,
            "{definition}"
        );
        db.settle("item_embedding");
        assert_eq!(api.texts().len(), 53, "{definition}");
        assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 300);
        nothing_is_left_over(&mut db);
    }
}

#[test]
fn vectors_that_stand_in_the_column_that_is_to_hold_them_stay_there_untouched() {
    let api = Api::start();
    let mut db = by_hand(&api, 500);
    db.run("UPDATE item SET embedding = NULL WHERE id = 7");
    create(&mut db, ", into_column => 'embedding'");
    db.run("CREATE TABLE before AS SELECT id, ctid AS place FROM item");
    assert_eq!(adopt(&mut db, ", check_rows => 0"), 499);
    db.settle("item_embedding");
    assert_eq!(api.texts(), ["row 7"]);
    let moved: Vec<i32> =
        db.column("SELECT id FROM item JOIN before USING (id) WHERE item.ctid <> place");
    assert_eq!(moved, [7], "no row is written anew");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 500);
    nothing_is_left_over(&mut db);
    let faults: i64 = db.one("SELECT count(*) FROM recsync.verify_rows('item_embedding')");
    assert_eq!(faults, 0);
}

#[test]
fn vectors_of_another_model_width_or_text_are_refused_and_nothing_is_taken() {
    let api = Api::start();
    let other = Api::of_model("other", 16);
    let mut db = by_hand(&api, 60);
    create(&mut db, "");
    db.run(&format!("CREATE TABLE strange (id int PRIMARY KEY, embedding vector(16)); INSERT INTO strange SELECT id, '{}' FROM item", literal(&other.vector("row 1"))));
    db.run("CREATE TABLE narrow AS SELECT id, '[1,2,3]'::vector AS embedding FROM item");
    db.run("CREATE TABLE pieces AS SELECT i.id, i.embedding FROM item i, generate_series(1, 2)");
    db.run("CREATE TABLE nameless AS SELECT id AS number, embedding FROM item");
    db.run("CREATE TABLE two AS SELECT id, embedding, embedding AS more FROM item");
    for (call, code, says) in [
        (
            "'item_embedding', 'text-embedding-3-small'",
            "22023",
            "the server gives \"test\"",
        ),
        ("'item_embedding', NULL", "22023", "it is missing"),
        (
            "'item_embedding', 'test', 'strange'",
            "22023",
            "10 of 10 vectors",
        ),
        (
            "'item_embedding', 'test', 'narrow'",
            "22023",
            "3 dimensions, the server gives 16",
        ),
        (
            "'item_embedding', 'test', 'pieces'",
            "22023",
            "several vectors of one row",
        ),
        (
            "'item_embedding', 'test', 'nameless'",
            "22023",
            "no foreign key",
        ),
        (
            "'item_embedding', 'test', 'two'",
            "22023",
            "embedding, more",
        ),
        (
            "'item_embedding', 'test', 'two', 'nothing'",
            "42703",
            "nothing",
        ),
        (
            "'item_embedding', 'test', 'two', 'more', '{id,more}'",
            "22023",
            "the key of public.item is (id)",
        ),
        ("'nothing', 'test'", "42704", "nothing"),
    ] {
        let error = db.refused(&format!("SELECT recsync.adopt_vectors({call})"));
        assert_eq!(error.code().code(), code, "{call}: {}", error.message());
        let message = error.message();
        assert!(message.contains(says), "{call}: {message}");
        assert!(error.hint().is_some(), "{call}");
    }
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.adopted"), 0);
    db.settle("item_embedding");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM item_embedding"),
        0,
        "no backfill has begun"
    );
    assert_eq!(adopt(&mut db, ", 'two', 'more'"), 60);
    db.settle("item_embedding");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 60);
}

#[test]
fn only_the_owner_adopts_and_the_owner_has_to_be_able_to_read_it() {
    let api = Api::start();
    let mut db = by_hand(&api, 10);
    db.run("DROP ROLE IF EXISTS adopt_owner, adopt_stranger; CREATE ROLE adopt_owner LOGIN; CREATE ROLE adopt_stranger LOGIN");
    db.run("GRANT USAGE ON FOREIGN SERVER api TO adopt_owner; GRANT CREATE ON SCHEMA public TO adopt_owner");
    db.run(
        "CREATE TABLE old AS SELECT id, embedding FROM item; ALTER TABLE item OWNER TO adopt_owner",
    );
    let (mut owner, mut stranger) = (
        db.connect_as("adopt_owner"),
        db.connect_as("adopt_stranger"),
    );
    owner.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'none', backfill => false)");
    let call = "SELECT recsync.adopt_vectors('item_embedding', 'test', 'old')";
    assert_eq!(stranger.refused(call).code().code(), "42501");
    let error = owner.refused(call);
    assert_eq!(error.code().code(), "42501", "{}", error.message());
    assert_eq!(
        error.hint(),
        Some("GRANT SELECT ON public.old TO adopt_owner;")
    );
    db.run("GRANT SELECT ON old TO adopt_owner");
    assert_eq!(owner.one::<i64>(call), 10);
    db.settle("item_embedding");
    assert_eq!(api.texts().len(), 10, "those that were compared");
    db.run("SELECT recsync.drop_pipeline('item_embedding'); DROP TABLE item, old; DROP OWNED BY adopt_owner");
}

#[test]
fn a_backfill_that_waits_goes_on_where_little_is_left_and_waits_on_where_much_is() {
    let api = Api::start();
    for (there, waits) in [(295, false), (100, true)] {
        let mut db = by_hand(&api, 300);
        db.run(&format!("UPDATE item SET embedding = NULL WHERE id > {there}; SET recsync.backfill_confirm_rows = 50"));
        db.run("SELECT recsync.create_pipeline('item_embedding', 'item', columns => '{title}', server => 'api', index => 'none')");
        assert_eq!(adopt(&mut db, ", check_rows => 0"), there);
        let held: bool = db.one("SELECT state = 'paused' FROM recsync.status");
        assert_eq!(held, waits);
        if waits {
            let reason: String = db.one("SELECT paused_reason FROM recsync.status");
            assert!(reason.contains("about 200 rows"), "{reason}");
            db.run("SELECT recsync.resume('item_embedding')");
        }
        api.forget();
        db.settle("item_embedding");
        assert_eq!(api.texts().len() as i64, 300 - there);
    }
}
