//! What is said of pipelines and recommenders, event by event.

use serde_json::{Value, json};

use crate::server;
use crate::support::{Api, Cluster, Database, PATIENCE, Receiver, Sql, shared, wait_until};

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
    let told = receiver.keys();
    assert!(told.iter().all(|scope| scopes.contains(scope)), "{told:?}");
    // Letters of other keys may have passed it.
    let mut letters = receiver.taken().into_iter();
    let of_user = letters.find(|letter| letter.body["data"]["keys"] == json!(["user_recs:42"]));
    let of_user = of_user.expect("a letter of the user alone");
    assert_eq!(of_user.body["data"]["source"], "public.shop");
    assert_eq!(of_user.body["data"]["users"], json!(["42"]));
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

#[test]
fn a_generation_that_is_swapped_in_is_told_of_once_and_the_hook_stays_with_the_pipeline() {
    let (api, new, receiver) = (Api::start(), Api::of_model("new", 24), Receiver::start());
    let mut db = shared().database();
    db.items(&api, "");
    db.server("new", &new, "");
    db.run("ALTER SERVER new OPTIONS (SET model 'another')");
    server(&mut db, &receiver, "");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 20) i");
    db.settle("item_embedding");
    for event in ["generation", "embedded"] {
        db.run(&format!(
            "SELECT recsync.create_hook('{event}', '{event}', 'hooks', '/{event}', listens_to => 'item_embedding')"
        ));
    }
    let mut told = Vec::new();
    for (number, change, model) in [
        (
            2,
            "recsync.rebuild('item_embedding', server => 'new')",
            "another",
        ),
        (1, "recsync.rollback_rebuild('item_embedding')", "test"),
    ] {
        db.run(&format!("SELECT {change}"));
        told.push((json!(model), json!(number)));
        wait_until(PATIENCE, "the swap is told of", || {
            bodies(&receiver, "/generation").len() == told.len()
        });
        // What it tells of is in service by then.
        let in_service = "SELECT generation FROM recsync.generation WHERE state = 'in service'";
        assert_eq!(db.one::<i32>(in_service), number);
    }
    let letters = bodies(&receiver, "/generation");
    let said = letters.iter().map(|body| {
        assert_eq!(body["data"]["source"], "public.item_embedding");
        assert_eq!(body["data"]["keys"], json!([body["data"]["model"]]));
        (
            body["data"]["model"].clone(),
            body["data"]["generation"].clone(),
        )
    });
    assert_eq!(said.collect::<Vec<_>>(), told);
    db.run("SELECT recsync.drop_generation('item_embedding')");
    db.run("INSERT INTO item VALUES (100, 'a late one')");
    wait_until(PATIENCE, "the hook hears on", || {
        bodies(&receiver, "/embedded")
            .iter()
            .any(|body| body["data"]["keys"] == json!(["100"]))
    });
    assert_eq!(bodies(&receiver, "/generation").len(), 2);
}

#[test]
fn a_budget_is_told_of_once_at_80_percent_and_once_when_it_is_spent() {
    let cluster = Cluster::start(&[]);
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = cluster.database();
    db.items(
        &api,
        "price_per_million_tokens '1000000', max_batch_inputs '1', max_concurrency '1', currency 'EUR'",
    );
    server(&mut db, &receiver, "");
    db.run("SELECT recsync.set_budget('item_embedding', 100); SELECT recsync.create_hook('told', 'budget', 'hooks')");
    // A text of 20 bytes costs 5.
    let insert = |db: &mut Database, from: i32, to: i32| {
        db.run(&format!(
            "INSERT INTO item SELECT i, 'text number ' || lpad(i::text, 8) FROM generate_series({from}, {to}) i"
        ));
    };
    insert(&mut db, 1, 16);
    let at_80 = receiver.wait_for(1).remove(0);
    let data = &at_80.body["data"];
    assert_eq!(
        (&data["source"], &data["server"], &data["keys"]),
        (
            &json!("public.item_embedding"),
            &json!("api"),
            &json!(["api"])
        )
    );
    assert_eq!(
        (&data["spent"], &data["budget"], &data["currency"]),
        (&json!(80.0), &json!(100.0), &json!("EUR"))
    );
    insert(&mut db, 17, 40);
    let spent = receiver.wait_for(2).remove(1);
    assert!(spent.body["data"]["spent"].as_f64().unwrap() >= 100.0);
    // Another worker says it no second time, and what has been retracted is said again.
    let worker = db.worker();
    db.run(&format!("SELECT pg_terminate_backend({worker})"));
    wait_until(PATIENCE, "another worker runs", || {
        db.worker_now().is_some_and(|pid| pid != worker)
    });
    db.run("SELECT recsync.set_budget('item_embedding', 90)");
    let again = receiver.wait_for(3).remove(2);
    assert_eq!(again.body["data"]["budget"], json!(90.0));
    assert_eq!(receiver.taken().len(), 3);
}
