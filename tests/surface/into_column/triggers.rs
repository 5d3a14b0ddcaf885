use super::{CREATE, in_step, items, sent, table};
use crate::support::{Api, PATIENCE, Sql, wait_until};

#[test]
fn a_trigger_that_changes_the_text_on_every_update_does_not_loop() {
    let api = Api::start();
    let mut db = table(&api, "");
    db.run("ALTER TABLE item ADD updated_at timestamptz; CREATE SEQUENCE touched;
            CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN NEW.updated_at := clock_timestamp(); PERFORM nextval('public.touched'); RETURN NEW; END $$;
            CREATE TRIGGER touch BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION touch()");
    db.run(&CREATE.replace("'{title}'", "'{title,updated_at}'"));
    // There are no rows from before it: one that is stored already has another text when it is looked at again.
    db.settle("item_embedding");
    db.run("INSERT INTO item VALUES (1, 'one'), (2, 'two')");
    db.settle("item_embedding");
    assert_eq!(api.texts().len(), 2);
    db.run("UPDATE item SET title = 'one, changed' WHERE id = 1");
    db.settle("item_embedding");
    // Another change, which is read after anything that the stores may have logged.
    db.run("INSERT INTO item VALUES (3, 'three')");
    db.settle("item_embedding");
    assert_eq!(api.texts().len(), 4, "{:?}", api.texts());
    let changes: i64 = db.one("SELECT count(*) FROM recsync.change_log");
    assert_eq!(changes, 4, "the worker's own updates are no changes");
    assert_eq!(
        db.one::<i64>("SELECT last_value FROM touched"),
        5,
        "four vectors and one update"
    );
}

#[test]
fn what_a_trigger_writes_to_other_tables_and_other_rows_is_captured() {
    let api = Api::start();
    let mut db = table(&api, "");
    db.run("CREATE TABLE note (id int PRIMARY KEY, title text)");
    db.pipeline("note_embedding", "note");
    db.run(CREATE);
    // As a user writes them: names are found by the path of the database's sessions.
    db.run("CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
              BEGIN
                INSERT INTO note VALUES (NEW.id, 'note on ' || NEW.title) ON CONFLICT (id) DO UPDATE SET title = excluded.title;
                UPDATE item SET title = 'the total' WHERE id = 0 AND NEW.id = 2;
                RETURN NULL;
              END $$;
            CREATE TRIGGER tell AFTER UPDATE OF embedding ON item FOR EACH ROW EXECUTE FUNCTION tell()");
    db.run("INSERT INTO item VALUES (0, 'total'), (1, 'one')");
    db.settle("item_embedding");
    db.run("INSERT INTO item VALUES (2, 'two')");
    for pipeline in [
        "item_embedding",
        "note_embedding",
        "item_embedding",
        "note_embedding",
    ] {
        db.settle(pipeline);
    }
    in_step(&mut db, &api);
    db.assert_in_step(
        &api,
        "SELECT n.id::text, n.title, e.embedding::text FROM note n FULL JOIN note_embedding e USING (id)",
    );
    assert_eq!(
        db.column::<String>("SELECT title FROM note ORDER BY id"),
        ["note on the total", "note on one", "note on two"]
    );
}

#[test]
fn a_trigger_that_refuses_the_vector_makes_a_dead_letter_and_delays_no_other_row() {
    let api = Api::start();
    let mut db = table(&api, "max_attempts '1'");
    db.run("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
              BEGIN
                IF NEW.id = 7 THEN RAISE EXCEPTION 'not this one' USING ERRCODE = 'check_violation'; END IF;
                IF NEW.id = 8 THEN RETURN NULL; END IF;
                RETURN NEW;
              END $$;
            CREATE TRIGGER refuse BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION refuse()");
    db.run(CREATE);
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 40) i");
    db.settle("item_embedding");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 38);
    assert_eq!(
        db.column::<String>(
            "SELECT record_key[1] || ': ' || message FROM recsync.dead_letter ORDER BY 1"
        ),
        [
            "7: the vector could not be stored: not this one",
            "8: the vector could not be stored: a trigger of public.item has kept 1 rows from getting their vector"
        ]
    );
    db.run(
        "DROP TRIGGER refuse ON item; UPDATE item SET title = 'again ' || id WHERE id IN (7, 8)",
    );
    db.settle("item_embedding");
    in_step(&mut db, &api);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
}

#[test]
fn deferred_triggers_run_as_the_owner_and_audits_hold_what_users_change() {
    let api = Api::start();
    let mut db = items(&api);
    db.run("DROP ROLE IF EXISTS column_owner; CREATE ROLE column_owner; GRANT CREATE ON SCHEMA public TO column_owner; GRANT USAGE ON FOREIGN SERVER api TO column_owner;
            ALTER TABLE item OWNER TO column_owner; ALTER VIEW item_embedding OWNER TO column_owner; ALTER TABLE item_embedding_g1 OWNER TO column_owner;
            CREATE TABLE seen (who name); ALTER TABLE seen OWNER TO column_owner;
            CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen VALUES (current_user); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER see AFTER UPDATE ON item DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.embedding IS NOT NULL) EXECUTE FUNCTION see();
            SELECT recsync.audit('item')");
    db.settle("item_embedding"); // the worker knows of the new owner: what it learns during a request is asked again
    assert_eq!(sent(&mut db, &api, "INSERT INTO item VALUES (1, 'one')"), 1);
    assert_eq!(
        db.column::<String>("SELECT who::text FROM seen"),
        ["column_owner"]
    );
    db.run("UPDATE item SET stock = 5");
    wait_until(PATIENCE, "the audit holds the user's changes", || {
        db.column::<String>("SELECT op FROM recsync.change_log ORDER BY sequence")
            == ["INSERT", "UPDATE"]
    });
}
