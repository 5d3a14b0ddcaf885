//! Letters: what is in them, their order, bodies.

use serde_json::json;

use crate::support::{Api, PATIENCE, Receiver, Sql, shared, wait_until};
use crate::{items, server, status};

#[test]
fn a_letter_is_signed_and_says_which_rows_were_embedded() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "");
    db.run("INSERT INTO item VALUES (1, 'one'), (2, 'two'), (3, NULL)");
    receiver.wait_for(1);
    db.settle("item_embedding");
    wait_until(PATIENCE, "all has been told", || {
        status(&mut db, "pending") == "0"
    });
    let mut keys = receiver.keys();
    keys.sort_by_key(ToString::to_string);
    assert_eq!(keys, [json!("1"), json!("2")]);
    let letter = receiver.taken().remove(0);
    assert_eq!(
        (letter.method.as_str(), letter.path.as_str()),
        ("POST", "/told")
    );
    assert_eq!(letter.header("content-type"), Some("application/json"));
    assert!(letter.id.starts_with("msg_"), "{}", letter.id);
    assert_eq!(letter.body["type"], "embedded");
    assert_eq!(letter.body["data"]["source"], "public.item_embedding");
    assert_eq!(letter.body["data"]["hook"], "public.told");
    assert!(!letter.text.contains("one"), "the text of a row");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.delivery"), 0);
    assert_eq!(
        status(&mut db, "embedded"),
        receiver.taken().len().to_string()
    );
}

#[test]
fn a_vector_is_there_when_its_letter_comes_and_a_failed_store_says_nothing() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "");
    let mut other = db.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("LOCK TABLE item_embedding_g1 IN SHARE MODE")
        .unwrap();
    db.run("INSERT INTO item VALUES (1, 'one')");
    db.wait_until_worker_waits_for_lock();
    assert!(receiver.letters().is_empty());
    lock.commit().unwrap();
    receiver.wait_for(1);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 1);
}

#[test]
fn a_body_is_filled_in_and_the_method_and_path_are_those_that_were_given() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = shared().database();
    db.items(&api, "");
    server(&mut db, &receiver, r#"headers '{"X-Shop": "7"}'"#);
    db.run(
        r#"SELECT recsync.create_hook('told', 'embedded', 'hooks', '/v2/cache?x=1', 'put',
             '{"drop": "{{keys}}", "why": "{{event}} of {{ source }}", "n": [1, null], "id": "{{id}}"}')"#,
    );
    db.run(r#"INSERT INTO item VALUES (1, 'a "quoted" one')"#);
    let letter = receiver.wait_for(1).remove(0);
    assert_eq!(
        (letter.method.as_str(), letter.path.as_str()),
        ("PUT", "/v2/cache?x=1")
    );
    assert_eq!(letter.header("x-shop"), Some("7"));
    let wanted = json!({"drop": ["1"], "why": "embedded of public.item_embedding", "n": [1, null], "id": letter.id});
    assert_eq!(letter.body, wanted);
}

#[test]
fn a_key_of_several_columns_is_an_array() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = shared().database();
    db.server("api", &api, "");
    server(&mut db, &receiver, "");
    db.run("CREATE TABLE page (site text, id int, title text, PRIMARY KEY (site, id))");
    db.pipeline("page_embedding", "page");
    db.run("SELECT recsync.create_hook('told', 'embedded', 'hooks')");
    db.run("INSERT INTO page VALUES ('a, \"b\"', 7, 'one')");
    receiver.wait_for(1);
    assert_eq!(receiver.keys(), [json!(["a, \"b\"", "7"])]);
}

#[test]
fn letters_of_one_key_come_in_the_order_of_the_commits_whatever_goes_wrong() {
    use crate::support::Mishap::{Reset, ResetAfterwards, Status};
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "");
    receiver.play([
        Status(503, ""),
        Reset,
        ResetAfterwards,
        Status(409, ""),
        Status(429, "Retry-After: 1\r\n"),
    ]);
    for round in 0..20 {
        db.run(&format!(
            "INSERT INTO item SELECT i, 'text {round} of ' || i FROM generate_series(1, 5) i
             ON CONFLICT (id) DO UPDATE SET title = excluded.title"
        ));
        db.settle("item_embedding");
    }
    wait_until(PATIENCE, "all has been told", || {
        status(&mut db, "pending") == "0"
    });
    // Each round was stored before the next: a key's letters are as many, and their times rise.
    let letters = receiver.taken();
    for key in 1..=5 {
        let times: Vec<String> = letters
            .iter()
            .filter(|letter| {
                letter.body["data"]["keys"]
                    .as_array()
                    .unwrap()
                    .contains(&json!(key.to_string()))
            })
            .map(|letter| letter.body["timestamp"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(times.len(), 20, "letters of {key}");
        assert!(times.is_sorted(), "{times:?}");
    }
    assert_eq!(receiver.mishaps_left(), 0);
    assert_eq!(status(&mut db, "dead"), "0");
}

#[test]
fn many_rows_come_in_letters_of_a_bounded_size() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "");
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 3000) i");
    db.settle("item_embedding");
    wait_until(PATIENCE, "all has been told", || {
        status(&mut db, "pending") == "0"
    });
    let letters = receiver.taken();
    let count = |letter: &crate::support::receiver::Letter| {
        letter.body["data"]["keys"].as_array().unwrap().len()
    };
    assert!(
        letters
            .iter()
            .all(|letter| (1..=500).contains(&count(letter)))
    );
    let mut keys: Vec<String> = receiver.keys().iter().map(ToString::to_string).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 3_000);
}
