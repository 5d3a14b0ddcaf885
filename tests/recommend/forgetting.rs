//! forget: a person leaves every table of recsync's and the log; others stay as they are.

use crate::shop::{items, shop, views};
use crate::support::{Database, Sql, shared};

/// Where in schema recsync a text is found: rows of all its tables, as text.
fn found(db: &mut Database, text: &str) -> Vec<String> {
    let tables: Vec<String> = db.column(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE n.nspname = 'recsync' AND c.relkind IN ('r', 'v', 'm') ORDER BY 1",
    );
    assert!(tables.len() > 20, "{tables:?}");
    let mut found = Vec::new();
    for table in tables {
        let rows: Vec<String> = db.column(&format!(
            "SELECT t::text FROM {table} t WHERE strpos(t::text, '{text}') > 0"
        ));
        found.extend(rows.into_iter().map(|row| format!("{table}: {row}")));
    }
    found
}

#[test]
fn a_person_leaves_every_table_and_the_log() {
    let mut db = shared().database();
    // The key of an interaction has the person in it, and all of each row is logged.
    db.run(
        "CREATE TABLE product (id int PRIMARY KEY, title text);
         CREATE TABLE visit (visitor text, product_id int, at timestamptz, note text, PRIMARY KEY (visitor, product_id));
         INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 9) i;
         CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin');
         SELECT recsync.create_recommender('shop', 'product', 'visit', user_column => 'visitor', text => '{title}', server => 'local');
         SELECT recsync.audit('visit')",
    );
    let person = "ann \"the hiker\"";
    for visitor in [person, "bob", "hiker"] {
        db.run(&format!(
            "INSERT INTO visit VALUES ('{visitor}', 1, now(), 'x'), ('{visitor}', 2, now(), 'y')"
        ));
    }
    db.run(&format!(
        "UPDATE visit SET note = 'moved from {person}', product_id = 3 WHERE visitor = 'bob' AND product_id = 2;
         UPDATE visit SET visitor = '{person}', product_id = 4 WHERE visitor = 'hiker' AND product_id = 2"
    ));
    db.settle("shop");
    assert!(found(&mut db, "the hiker").len() > 4);
    let forget = format!(
        "SELECT interests, factors, log_changes, shown FROM recsync.forget('shop', '{person}')"
    );
    let error = db.refused(&forget);
    assert_eq!(error.code().code(), "55000");
    assert!(
        error.message().ends_with("3 rows of public.visit"),
        "{error:?}"
    );
    let list: String = db.one(&format!(
        "SELECT list_id::text FROM shop_recommend('{person}', k => 1)"
    ));
    db.run(&format!(
        "SELECT recsync.log_shown('{list}', 'home', '{{5}}')"
    ));
    assert_eq!(found(&mut db, &list).len(), 2);
    let others: Vec<String> = db.column(
        "SELECT l::text FROM recsync.change_log l WHERE concat(record_key, old_record, record) LIKE '%bob%' ORDER BY 1",
    );
    db.run(&format!("DELETE FROM visit WHERE visitor = '{person}'"));
    let row = db.query_one(&forget, &[]).unwrap();
    let (interests, log_changes): (i64, i64) = (row.get(0), row.get(2));
    assert!(interests <= 1); // gone with the interactions, as the worker is fast
    assert_eq!(log_changes, 6); // two inserted, one taken over, three deleted
    assert_eq!(row.get::<_, i64>(3), 1);
    assert_eq!(found(&mut db, &list), Vec::<String>::new());
    // What others have written of them is theirs: here, a note of bob's.
    let left = found(&mut db, "the hiker");
    assert!(
        left.iter().all(|row| row.contains("moved from")),
        "{left:?}"
    );
    let same: Vec<String> = db.column(
        "SELECT l::text FROM recsync.change_log l WHERE concat(record_key, old_record, record) LIKE '%bob%' ORDER BY 1",
    );
    assert_eq!(others, same);
    assert_eq!(items(&mut db, "shop_similar(1, by => 'interactions')"), [3]);
    // Nothing comes back, and the log goes on.
    db.run("INSERT INTO visit VALUES ('cid', 5, now(), 'z')");
    db.settle("shop");
    let again = db.query_one(&forget, &[]).unwrap();
    assert_eq!((again.get::<_, i64>(0), again.get::<_, i64>(2)), (0, 0));
}

#[test]
fn only_the_owner_of_the_items_has_somebody_forgotten() {
    let mut db = shop(shared(), 3);
    views(&mut db, "ann", &[1]);
    db.settle("shop");
    let stranger = format!("forgetful_{}", std::process::id());
    db.run(&format!("CREATE ROLE {stranger} LOGIN"));
    let mut client = db.connect_as(&stranger);
    for (who, code) in [("nothing", "42704"), ("public.shop", "42501")] {
        let error = client.refused(&format!("SELECT * FROM recsync.forget('{who}', 'ann')"));
        assert_eq!(error.code().code(), code);
    }
    // In the transaction that deletes it cannot be known yet.
    let error = db.refused("BEGIN; DELETE FROM event; SELECT * FROM recsync.forget('shop', 'ann')");
    assert_eq!(error.code().code(), "25001");
}
