//! Dead letters: tried again by class, time and key, forgotten, and left by rows that change.

use crate::support::{Api, Database, Sql, shared};

fn dead(db: &mut Database) -> Vec<String> {
    db.column("SELECT record_key::text FROM recsync.dead_letter ORDER BY record_key")
}

/// How many rows a call says that it took, once they have been tried.
#[track_caller]
fn retry(db: &mut Database, arguments: &str) -> i64 {
    let count = db.one(&format!(
        "SELECT recsync.retry_dead_letters('item_embedding'{arguments})"
    ));
    db.settle("item_embedding");
    count
}

#[test]
fn exhausted_rows_are_tried_again_by_key_class_and_time_with_all_their_attempts() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "max_attempts '2'");
    api.refuse_texts_with("poison", 422);
    db.run("INSERT INTO item SELECT i, 'poison ' || i FROM generate_series(1, 6) i; INSERT INTO item VALUES (7, 'fine')");
    db.settle("item_embedding");
    assert_eq!(dead(&mut db), ["{1}", "{2}", "{3}", "{4}", "{5}", "{6}"]);

    // What is still bad comes back, with the attempts counted from the beginning.
    let before = api.times_asked("poison 1");
    assert_eq!(retry(&mut db, ", keys => ARRAY['1']"), 1);
    assert!(api.times_asked("poison 1") > before, "it was tried");
    assert_eq!(dead(&mut db).len(), 6);
    assert_eq!(
        db.one::<i32>("SELECT attempt - (SELECT attempt FROM recsync.dead_letter WHERE record_key = '{2}') FROM recsync.dead_letter WHERE record_key = '{1}'"),
        0
    );

    api.refuse_nothing();
    assert_eq!(
        retry(&mut db, ", keys => ARRAY['1', '3', '7', '99']"),
        2,
        "those that are dead"
    );
    assert_eq!(dead(&mut db), ["{2}", "{4}", "{5}", "{6}"]);
    assert_eq!(retry(&mut db, ", 'temporary'"), 0, "of another class");
    assert_eq!(retry(&mut db, ", 'temporary', keys => ARRAY['2']"), 0);
    db.run("UPDATE recsync.dead_letter_log SET failed_at = failed_at - interval '1 day' WHERE record_key = '{4}'");
    assert_eq!(retry(&mut db, ", before => now() - interval '1 hour'"), 1);
    assert_eq!(dead(&mut db), ["{2}", "{5}", "{6}"]);
    assert_eq!(
        retry(
            &mut db,
            ", keys => (SELECT array_agg(record_key) FROM recsync.dead_letter WHERE record_key <> '{2}')"
        ),
        2
    );
    assert_eq!(dead(&mut db), ["{2}"]);
    assert_eq!(retry(&mut db, ", keys => '{}'"), 0);
    assert_eq!(retry(&mut db, ", 'permanent'"), 1);
    assert_eq!(dead(&mut db), [""; 0]);
    db.assert_items_in_step(&api);
    for (arguments, code) in [
        (", 'hopeless'", "22023"),
        (", keys => ARRAY[NULL]", "22023"),
    ] {
        let error = db.refused(&format!(
            "SELECT recsync.retry_dead_letters('item_embedding'{arguments})"
        ));
        assert_eq!(error.code().code(), code, "{arguments}");
        assert!(error.hint().is_some(), "{arguments}");
    }
}

#[test]
fn keys_of_several_columns_are_an_array_of_keys() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE item (part text, id int, title text, PRIMARY KEY (part, id))");
    db.pipeline("item_embedding", "item");
    api.refuse_texts_with("poison", 422);
    db.run("INSERT INTO item SELECT p, i, 'poison ' || p || i FROM generate_series(1, 2) i, unnest('{a,\"b c\"}'::text[]) p");
    db.settle("item_embedding");
    assert_eq!(dead(&mut db).len(), 4);
    api.refuse_nothing();
    assert_eq!(retry(&mut db, ", keys => ARRAY['b c', '1']"), 1);
    assert_eq!(
        retry(
            &mut db,
            ", keys => (SELECT array_agg(record_key) FROM recsync.dead_letter WHERE record_key[2] = '2')"
        ),
        2
    );
    assert_eq!(dead(&mut db), ["{a,1}"]);
    let error =
        db.refused("SELECT recsync.retry_dead_letters('item_embedding', keys => ARRAY['a'])");
    assert_eq!(error.code().code(), "22023");
    assert!(error.message().contains("2 columns"), "{}", error.message());
}

#[test]
fn a_row_that_changes_leaves_the_dead_letters_and_a_purge_forgets_the_rest() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    api.refuse_texts_with("poison", 422);
    db.run("INSERT INTO item SELECT i, 'poison ' || i FROM generate_series(1, 6) i");
    db.settle("item_embedding");
    db.run("UPDATE item SET title = 'mended' WHERE id = 1; UPDATE item SET title = NULL WHERE id = 2; DELETE FROM item WHERE id = 3;
            UPDATE item SET title = 'poison still' WHERE id = 4; UPDATE item SET stock = 1");
    db.settle("item_embedding");
    assert_eq!(dead(&mut db), ["{4}", "{5}", "{6}"]);
    db.run("UPDATE recsync.dead_letter_log SET failed_at = failed_at - interval '1 day' WHERE record_key = '{5}'");
    let purge = "SELECT recsync.purge_dead_letters('item_embedding'";
    assert_eq!(
        db.one::<i64>(&format!("{purge}, now() - interval '1 hour')")),
        1
    );
    assert_eq!(dead(&mut db), ["{4}", "{6}"]);
    assert_eq!(db.one::<i64>(&format!("{purge})")), 2);
    assert_eq!(dead(&mut db), [""; 0]);
    // They are without a vector now, and nothing says why: that is for verify to say.
    assert_eq!(
        db.one::<i64>("SELECT missing FROM recsync.verify('item_embedding')"),
        3
    );
}
