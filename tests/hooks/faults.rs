//! Receivers that fail, workers that die.

use std::collections::HashSet;
use std::time::Duration;

use postgres::fallible_iterator::FallibleIterator;
use serde_json::{Value, json};

use crate::support::Mishap::{Reset, ResetAfterwards, Silence, Status};
use crate::support::{Api, Cluster, Database, PATIENCE, Receiver, Sql, shared, wait_until};
use crate::{items, server, status};

#[track_caller]
fn all_told(db: &mut Database) {
    wait_until(PATIENCE, "all has been told", || {
        status(db, "pending") == "0"
    });
}

fn told(receiver: &Receiver) -> HashSet<String> {
    receiver.keys().iter().map(Value::to_string).collect()
}

#[test]
fn a_letter_in_flight_when_the_worker_is_killed_comes_again_with_its_id() {
    let cluster = Cluster::start(&[]);
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(&cluster, &api, &receiver, "");
    receiver.hold();
    db.run("INSERT INTO item VALUES (1, 'one')");
    receiver.wait_until_held(1);
    db.kill9_worker();
    receiver.release();
    all_told(&mut db);
    wait_until(PATIENCE, "it has come twice", || {
        receiver.letters().len() >= 2
    });
    let letters = receiver.letters();
    let ids: HashSet<&String> = letters.iter().map(|letter| &letter.id).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert!(letters.iter().all(|letter| letter.text == letters[0].text));
}

#[test]
fn no_event_is_lost_whatever_dies_while_they_are_told() {
    let cluster = Cluster::start(&[]);
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(&cluster, &api, &receiver, "");
    for round in 0..6 {
        db.run(&format!(
            "INSERT INTO item SELECT {round} * 1000 + i, 'row ' || i FROM generate_series(1, 200) i"
        ));
        receiver.hold();
        receiver.wait_until_held(1);
        match round % 3 {
            0 => db.kill9_worker(),
            1 => {
                cluster.kill9_all();
                cluster.start_again();
                db.reconnect();
            }
            _ => {
                cluster.restart();
                db.reconnect();
            }
        }
        receiver.release();
    }
    db.settle("item_embedding");
    all_told(&mut db);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM item_embedding"), 1_200);
    assert_eq!(told(&receiver).len(), 1_200);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.dead_letter"), 0);
}

#[test]
fn no_event_is_lost_while_the_receiver_fails_in_every_way() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(
        shared(),
        &api,
        &receiver,
        "read_timeout '300ms', max_attempts '20'",
    );
    let mishaps = [
        Status(500, ""),
        Reset,
        Silence,
        Status(502, ""),
        ResetAfterwards,
        Status(429, "Retry-After: 1\r\n"),
        Status(409, ""),
    ];
    for round in 0..14 {
        receiver.play([mishaps[round % mishaps.len()].clone()]);
        db.run(&format!("INSERT INTO item VALUES ({round}, 'row {round}')"));
        db.settle("item_embedding");
    }
    wait_until(PATIENCE, "all has gone wrong that was to", || {
        receiver.mishaps_left() == 0
    });
    all_told(&mut db);
    assert_eq!(told(&receiver).len(), 14);
    // Whatever was sent twice had its id.
    let mut texts = std::collections::HashMap::new();
    for letter in receiver.letters() {
        assert_eq!(
            *texts
                .entry(letter.id.clone())
                .or_insert(letter.text.clone()),
            letter.text
        );
    }
    assert_eq!(status(&mut db, "dead"), "0");
}

#[test]
fn retry_after_is_obeyed() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "");
    receiver.play([Status(503, "Retry-After: 2\r\n")]);
    db.run("INSERT INTO item VALUES (1, 'one')");
    receiver.wait_for(1);
    let letters = receiver.letters();
    let waited = letters[1].at - letters[0].at;
    assert!(waited >= Duration::from_millis(1_900), "{waited:?}");
    assert_eq!(letters[0].id, letters[1].id);
}

#[test]
fn a_letter_that_is_refused_is_a_dead_letter_and_can_be_tried_again() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "");
    receiver.fail_letters_with("\"1\"", Status(422, ""));
    db.run("INSERT INTO item VALUES (1, 'one')");
    wait_until(PATIENCE, "it is given up", || {
        status(&mut db, "dead") == "1"
    });
    db.run("INSERT INTO item VALUES (2, 'two')");
    receiver.wait_for(1);
    assert_eq!(receiver.keys(), [json!("2")]);
    all_told(&mut db);
    let found: String = db.one("SELECT pipeline || ' ' || class || ' ' || status || ' ' || attempt FROM recsync.dead_letter");
    assert_eq!(found, "public.told permanent 422 1");
    let id: String = db.one("SELECT record_key[1] FROM recsync.dead_letter");
    assert_eq!(receiver.letters()[0].id, format!("msg_{id}"));
    receiver.fail_nothing();
    assert_eq!(
        db.one::<i64>("SELECT recsync.retry_dead_letters('told', class => 'provider')"),
        0
    );
    assert_eq!(db.one::<i64>("SELECT recsync.retry_dead_letters('told', keys => (SELECT array_agg(record_key[1]) FROM recsync.dead_letter))"), 1);
    receiver.wait_for(2);
    all_told(&mut db);
    assert_eq!(told(&receiver).len(), 2);
    assert_eq!(status(&mut db, "dead"), "0");
    receiver.fail_letters_with("\"3\"", Status(400, ""));
    db.run("INSERT INTO item VALUES (3, 'three')");
    wait_until(PATIENCE, "it is given up", || {
        status(&mut db, "dead") == "1"
    });
    assert_eq!(
        db.one::<i64>("SELECT recsync.purge_dead_letters('told')"),
        1
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM recsync.delivery"), 0);
}

#[test]
fn a_letter_at_which_the_receiver_fails_holds_up_no_other_key_and_is_given_up() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "max_attempts '2'");
    receiver.fail_letters_with("\"1\"", Status(500, ""));
    db.run("INSERT INTO item VALUES (1, 'one')");
    wait_until(PATIENCE, "it has failed", || !receiver.letters().is_empty());
    db.settle("item_embedding");
    for id in 2..6 {
        db.run(&format!("INSERT INTO item VALUES ({id}, 'row {id}')"));
        db.settle("item_embedding");
    }
    receiver.wait_for(4);
    // It is its own fault only once others have been taken meanwhile.
    for id in 6..200 {
        if status(&mut db, "dead") == "1" {
            break;
        }
        db.run(&format!("INSERT INTO item VALUES ({id}, 'row {id}')"));
        db.run("SELECT pg_sleep(0.3)");
    }
    assert_eq!(status(&mut db, "dead"), "1");
    assert!(!told(&receiver).contains("\"1\""));
}

#[test]
fn a_receiver_that_is_down_charges_no_letter_an_attempt() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "max_attempts '1'");
    receiver.play_always(Some(Status(503, "")));
    db.run("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 3) i");
    wait_until(PATIENCE, "it has failed several times", || {
        receiver.letters().len() >= 3
    });
    receiver.play_always(None);
    all_told(&mut db);
    assert_eq!(told(&receiver).len(), 3);
    assert_eq!(status(&mut db, "dead"), "0");
}

#[test]
fn a_receiver_that_is_elsewhere_pauses_the_hook_until_its_server_is_changed() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "");
    receiver.play_always(Some(Status(404, "")));
    db.run("INSERT INTO item VALUES (1, 'one')");
    wait_until(PATIENCE, "the hook is paused", || {
        status(&mut db, "state") == "paused"
    });
    assert!(status(&mut db, "paused_reason").contains("404"));
    assert_eq!(
        (status(&mut db, "pending"), status(&mut db, "dead")),
        ("1".into(), "0".into())
    );
    receiver.play_always(None);
    db.run("ALTER SERVER hooks OPTIONS (ADD max_attempts '4')");
    receiver.wait_for(1);
    all_told(&mut db);
}

#[test]
fn what_is_switched_off_tells_nothing_and_forgets_nothing() {
    let cluster = Cluster::start(&[]);
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(&cluster, &api, &receiver, "");
    receiver.play_always(Some(Status(503, "")));
    db.run("INSERT INTO item VALUES (1, 'one')");
    wait_until(PATIENCE, "it has failed", || !receiver.letters().is_empty());
    cluster.set("recsync.enabled", "off");
    wait_until(PATIENCE, "the worker rests", || {
        let before = receiver.letters().len();
        db.pause(Duration::from_secs(2));
        receiver.letters().len() == before
    });
    receiver.play_always(None);
    assert_eq!(status(&mut db, "pending"), "1");
    cluster.set("recsync.enabled", "on");
    receiver.wait_for(1);
    all_told(&mut db);
}

#[test]
fn letters_are_told_as_fast_under_a_snapshot_that_somebody_holds() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "");
    let mut other = db.connect();
    let mut held = other
        .build_transaction()
        .isolation_level(postgres::IsolationLevel::RepeatableRead)
        .start()
        .unwrap();
    held.query("SELECT count(*) FROM item", &[]).unwrap();
    let mut times = Vec::new();
    for quarter in 0..4 {
        let began = std::time::Instant::now();
        db.run(&format!(
            "DO $$ BEGIN FOR n IN 1..200 LOOP
               INSERT INTO item VALUES (n, 'a {quarter} ' || n) ON CONFLICT (id) DO UPDATE SET title = excluded.title;
               COMMIT; PERFORM pg_sleep(0.005);
             END LOOP; END $$"
        ));
        db.settle("item_embedding");
        all_told(&mut db);
        times.push(began.elapsed());
    }
    held.rollback().unwrap();
    let read: i64 = db.one("SELECT count(*) FROM recsync.delivery");
    assert_eq!(read, 0);
    assert!(times[3] < times[0] * 2, "{times:?}");
}

#[test]
fn a_clone_at_another_site_tells_nobody_anything_until_it_is_adopted() {
    let cluster = Cluster::start(&[]);
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(&cluster, &api, &receiver, "");
    db.run("SELECT recsync.create_hook('heard', 'embedded')");
    receiver.play_always(Some(Status(503, "")));
    db.run("INSERT INTO item VALUES (1, 'one')");
    wait_until(PATIENCE, "it has failed", || !receiver.letters().is_empty());
    let copy = cluster.copy();
    copy.set_for_next_start("recsync.site", "staging");
    copy.start_again();
    receiver.play_always(None);
    db.run("INSERT INTO item VALUES (3, 'three')"); // wakes the worker of the original
    db.settle("item_embedding");
    let all_is_told = "SELECT sum(pending) = 0 FROM recsync.status WHERE kind = 'hook'";
    wait_until(PATIENCE, "the original has told all", || {
        db.one(all_is_told)
    });

    let taken = || {
        let all = receiver.letters().into_iter();
        all.filter(|letter| letter.taken).collect::<Vec<_>>()
    };
    let mut clone = copy.database_named(&db.name);
    let mut listener = clone.connect();
    listener.run("LISTEN recsync_heard");
    let waiting_for =
        "SELECT waiting_for FROM recsync.status WHERE kind = 'hook' AND name = 'public.told'";
    wait_until(PATIENCE, "the clone says whose it is", || {
        let reason: Option<String> = clone.one(waiting_for);
        reason.is_some_and(|reason| reason.contains("adopt_site"))
    });
    // Something to tell, of which only the letter that the original has sent was there before.
    clone.run("INSERT INTO recsync.delivery (hook_id, source, keys, data) SELECT id, 'public.item_embedding', '[\"7\"]', '{}' FROM recsync.hook");
    clone.run("INSERT INTO item VALUES (2, 'two')");
    clone.pause(Duration::from_secs(2));
    assert_eq!(taken().len(), 2, "both from the original");
    let mut heard = listener.notifications();
    assert!(heard.iter().next().unwrap().is_none());
    clone.run("SELECT recsync.adopt_site()");
    wait_until(PATIENCE, "all has been told", || {
        clone.one::<bool>(all_is_told) && told(&receiver).contains("\"2\"")
    });
    assert!(told(&receiver).contains("\"7\""));
    // The letter that was underway when the copy was made came from both, under one id.
    let ids: Vec<String> = taken()
        .into_iter()
        .filter(|letter| letter.text.contains("[\"1\"]"))
        .map(|letter| letter.id)
        .collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
    drop(heard);
    wait_until(PATIENCE, "it is heard", || {
        listener
            .notifications()
            .timeout_iter(Duration::from_millis(20))
            .next()
            .unwrap()
            .is_some()
    });
}

#[test]
fn no_more_is_kept_for_a_hook_than_the_setting_says_and_what_it_missed_is_said_when_it_is_resumed()
{
    let cluster = Cluster::start(&[("recsync.hook_limit", "5")]);
    let receiver = Receiver::start();
    let mut db = cluster.database();
    server(&mut db, &receiver, "");
    db.run(
        "CREATE TABLE product (id int PRIMARY KEY, title text);
         CREATE TABLE event (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id bigint, product_id int REFERENCES product, created_at timestamptz NOT NULL DEFAULT clock_timestamp());
         INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 20) i;
         SELECT recsync.create_recommender('shop', 'product', 'event');
         SELECT recsync.create_hook('told', 'invalidated', 'hooks')",
    );
    receiver.play_always(Some(Status(503, "")));
    let view = |db: &mut Database, user: i32| {
        db.run(&format!(
            "INSERT INTO event (user_id, product_id) VALUES ({user}, 1)"
        ));
        db.settle("shop");
    };
    let mut user = 0;
    wait_until(PATIENCE, "the hook is paused", || {
        user += 1;
        view(&mut db, user);
        db.pause(Duration::from_millis(200));
        status(&mut db, "state") == "paused"
    });
    let reason = status(&mut db, "paused_reason");
    assert!(
        reason.contains("recsync.hook_limit") && reason.contains("recsync.resume"),
        "{reason}"
    );
    let fault = "SELECT count(*) FROM recsync.health() WHERE check_name = 'hook' AND NOT ok AND subject LIKE '%public.told'";
    wait_until(PATIENCE, "it is no healthy state", || {
        db.one::<i64>(fault) == 1
    });
    let kept = status(&mut db, "pending");
    for more in 1..=3 {
        view(&mut db, 1_000 + more);
    }
    assert_eq!(status(&mut db, "pending"), kept);
    // A change of the server is no reason to go on.
    db.run("ALTER SERVER hooks OPTIONS (ADD max_attempts '4')");
    receiver.play_always(None);
    view(&mut db, 1_004);
    assert_eq!(
        (status(&mut db, "pending"), status(&mut db, "state")),
        (kept.clone(), "paused".into())
    );
    cluster.set("recsync.hook_limit", "0");
    db.run("SELECT recsync.resume('told')");
    all_told(&mut db);
    let told = receiver.taken();
    assert_eq!(told.len().to_string(), kept);
    let all = json!(["user_recs:*", "collab_recs:*"]);
    let mut of_all = told
        .iter()
        .filter(|letter| letter.body["data"]["keys"] == all);
    assert_eq!(of_all.next().unwrap().body["data"]["users"], json!([]));
    view(&mut db, 2_000);
    wait_until(PATIENCE, "what is new is told of again", || {
        receiver.keys().contains(&json!("user_recs:2000"))
    });
    assert!(!receiver.keys().contains(&json!("user_recs:1001")));
}
