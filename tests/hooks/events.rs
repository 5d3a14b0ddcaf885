//! What is said of pipelines and recommenders, event by event.

use serde_json::{Value, json};

use crate::server;
use crate::support::{Api, Database, PATIENCE, Receiver, Sql, shared, wait_until};

/// Tables `product` and `event`, with a recommender over them and server `hooks`.
fn shop(receiver: &Receiver, more: &str) -> Database<'static> {
    let mut db = shared().database();
    server(&mut db, receiver, "");
    db.run(&format!(
        "CREATE TABLE product (id int PRIMARY KEY, title text);
         CREATE TABLE event (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id bigint, product_id int REFERENCES product, created_at timestamptz NOT NULL DEFAULT clock_timestamp());
         INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 20) i;
         SELECT recsync.create_recommender('shop', 'product', 'event' {more})"
    ));
    db
}

fn view(db: &mut Database, user: i64, products: &[i32]) {
    for product in products {
        db.run(&format!(
            "INSERT INTO event (user_id, product_id) VALUES ({user}, {product})"
        ));
    }
}

fn bodies(receiver: &Receiver, path: &str) -> Vec<Value> {
    let letters = receiver.taken().into_iter();
    letters
        .filter(|letter| letter.path == path)
        .map(|letter| letter.body)
        .collect()
}

#[test]
fn an_interaction_invalidates_its_users_lists_and_then_what_others_are_shown_by_it() {
    let receiver = Receiver::start();
    let mut db = shop(&receiver, "");
    db.run(
        "SELECT recsync.create_hook('told', 'invalidated', 'hooks', '/told', listens_to => 'shop')",
    );
    view(&mut db, 42, &[1, 2]);
    let scopes = [json!("user_recs:42"), json!("collab_recs:*")];
    for scope in &scopes {
        wait_until(PATIENCE, "the scope is invalid", || {
            receiver.keys().contains(scope)
        });
    }
    assert!(receiver.keys().iter().all(|scope| scopes.contains(scope)));
    // What is derived was there when it was said.
    let first = receiver.taken().remove(0);
    assert_eq!(first.body["data"]["source"], "public.shop");
    assert_eq!(first.body["data"]["users"], json!(["42"]));
    // A correction is one for both users.
    let before = receiver.taken().len();
    db.run("UPDATE event SET user_id = 43 WHERE product_id = 2");
    receiver.wait_for(before + 1);
    wait_until(PATIENCE, "both are told of", || {
        let keys: Vec<Value> = receiver.taken()[before..]
            .iter()
            .flat_map(|letter| letter.body["data"]["keys"].as_array().unwrap().clone())
            .collect();
        [json!("user_recs:42"), json!("user_recs:43")]
            .iter()
            .all(|scope| keys.contains(scope))
    });
}

#[test]
fn an_interaction_that_is_rolled_back_invalidates_nothing() {
    let receiver = Receiver::start();
    let mut db = shop(&receiver, "");
    db.run("SELECT recsync.create_hook('told', 'invalidated', 'hooks', listens_to => 'shop')");
    db.run("BEGIN; INSERT INTO event (user_id, product_id) VALUES (7, 1); ROLLBACK");
    view(&mut db, 8, &[1]);
    receiver.wait_for(1);
    assert!(!receiver.keys().contains(&json!("user_recs:7")));
}

#[test]
fn readme_example_predictions_are_warmed_for_the_users_of_whom_something_is_new() {
    let receiver = Receiver::start();
    let mut db = shop(&receiver, "");
    let example = readme_example("/predictions/warm");
    db.run(&example);
    view(&mut db, 42, &[1, 2]);
    let letter = receiver.wait_for(1).remove(0);
    assert_eq!(
        (letter.method.as_str(), letter.path.as_str()),
        ("POST", "/predictions/warm")
    );
    assert_eq!(letter.body, json!({"user_ids": ["42"]}));
    wait_until(PATIENCE, "all has been told", || {
        crate::status(&mut db, "pending") == "0"
    });
    // Neighbours were counted, too: there is nobody to warm for that.
    assert!(
        receiver
            .taken()
            .iter()
            .all(|letter| letter.body == json!({"user_ids": ["42"]}))
    );
}

#[test]
fn readme_example_a_model_server_is_told_to_refresh_once_a_model_is_trained() {
    let receiver = Receiver::start();
    let mut db = shop(&receiver, ", collaborative => '{item_knn,ease}'");
    for user in 1..=30 {
        view(
            &mut db,
            user,
            &[
                (user % 20) as i32 + 1,
                (user % 7) as i32 + 1,
                (user % 3) as i32 + 1,
            ],
        );
    }
    let example = readme_example("/models/refresh");
    db.run(&example);
    db.rows("SELECT * FROM recsync.run('shop')");
    let wanted = |model: &str| json!({"action": "refresh_model", "model": model, "sync_type": "incremental"});
    for model in ["item_knn", "ease"] {
        wait_until(PATIENCE, "the model is told of", || {
            bodies(&receiver, "/models/refresh").contains(&wanted(model))
        });
    }
}

/// The statement of README.md's section Hooks that names this path.
fn readme_example(path: &str) -> String {
    let readme = include_str!("../../README.md");
    let section = &readme[readme.find("### Hooks").expect("a section Hooks")..];
    let mut statements = section
        .split("```sql")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .flat_map(|block| block.split(";\n"));
    let found =
        statements.find(|statement| statement.contains(path) && statement.contains("create_hook"));
    found
        .expect("an example with this path")
        .replace("'models'", "'hooks'")
}

#[test]
fn rows_that_are_given_up_are_told_of_with_their_class_and_status_and_no_text() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = shared().database();
    db.items(&api, "");
    server(&mut db, &receiver, "");
    db.run("SELECT recsync.create_hook('told', 'dead_letter', 'hooks', listens_to => 'item_embedding')");
    api.refuse_texts_with("bad", 422);
    db.run("INSERT INTO item VALUES (1, 'good'), (2, 'bad one'), (3, 'bad two')");
    db.settle("item_embedding");
    wait_until(PATIENCE, "both are told of", || receiver.keys().len() == 2);
    let mut keys: Vec<String> = receiver.keys().iter().map(ToString::to_string).collect();
    keys.sort();
    assert_eq!(keys, ["\"2\"", "\"3\""]);
    let letter = receiver.taken().remove(0);
    assert_eq!(letter.body["data"]["class"], "permanent");
    assert_eq!(letter.body["data"]["status"], 422);
    assert!(!letter.text.contains("bad"));
}

#[test]
fn an_item_that_is_described_otherwise_invalidates_the_lists_of_those_who_liked_it() {
    let receiver = Receiver::start();
    let mut db = shared().database();
    server(&mut db, &receiver, "");
    db.run(
        "CREATE SERVER local FOREIGN DATA WRAPPER recsync OPTIONS (api 'builtin');
         CREATE TABLE product (id int PRIMARY KEY, title text);
         CREATE TABLE event (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id bigint, product_id int REFERENCES product, created_at timestamptz NOT NULL DEFAULT clock_timestamp());
         INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 20) i;
         SELECT recsync.create_recommender('shop', 'product', 'event', text => '{title}', server => 'local')",
    );
    view(&mut db, 42, &[1]);
    view(&mut db, 43, &[2]);
    let id: i32 = db.one("SELECT id FROM recsync.recommender");
    wait_until(PATIENCE, "the users' vectors are made", || {
        db.one(&format!(
            "SELECT count(*) = 2 AND bool_and(NOT stale) AND NOT EXISTS (SELECT FROM recsync.revised_{id}) FROM recsync.interest_{id}"
        ))
    });
    db.run("SELECT recsync.create_hook('told', 'invalidated', 'hooks', listens_to => 'shop')");
    db.run("UPDATE product SET title = 'something else altogether' WHERE id = 1");
    wait_until(PATIENCE, "the user is told of", || {
        receiver.keys().contains(&json!("user_recs:42"))
    });
    assert!(!receiver.keys().contains(&json!("user_recs:43")));
}
