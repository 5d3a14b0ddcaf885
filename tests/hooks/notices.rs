//! LISTEN.

use std::time::Duration;

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use serde_json::{Value, json};

use crate::support::{Api, PATIENCE, Receiver, Sql, shared, wait_until};
use crate::{items, status};

/// Waits until what has been heard on `channel` satisfies `enough`.
#[track_caller]
fn hear(
    client: &mut Client,
    channel: &str,
    mut enough: impl FnMut(&[Value]) -> bool,
) -> Vec<Value> {
    let mut heard = Vec::new();
    wait_until(PATIENCE, "it is heard", || {
        let mut notifications = client.notifications();
        let mut new = notifications.timeout_iter(Duration::from_millis(20));
        while let Ok(Some(notification)) = new.next() {
            assert_eq!(notification.channel(), channel);
            assert!(notification.payload().len() < 8_000);
            heard.push(serde_json::from_str(notification.payload()).unwrap());
        }
        enough(&heard)
    });
    heard
}

fn keys(heard: &[Value]) -> Vec<Value> {
    heard
        .iter()
        .flat_map(|payload| payload["keys"].as_array().unwrap().clone())
        .collect()
}

#[test]
fn a_hook_without_a_server_is_heard_by_listen_and_leaves_nothing_behind() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("SELECT recsync.create_hook('told', 'embedded')");
    let mut listener = db.connect();
    listener.run("LISTEN recsync_told");
    db.run("INSERT INTO item VALUES (1, 'one'), (2, 'two')");
    let heard = hear(&mut listener, "recsync_told", |heard| {
        keys(heard).len() == 2
    });
    assert_eq!(heard[0]["event"], "embedded");
    assert_eq!(heard[0]["source"], "public.item_embedding");
    wait_until(PATIENCE, "nothing is left", || {
        db.one::<i64>("SELECT count(*) FROM recsync.delivery") == 0
    });
    assert_eq!(status(&mut db, "pending"), "0");
}

#[test]
fn a_hook_with_a_server_is_heard_too_unless_it_is_not_to_be() {
    let (api, receiver) = (Api::start(), Receiver::start());
    let mut db = items(shared(), &api, &receiver, "");
    db.run("SELECT recsync.create_hook('quiet', 'embedded', 'hooks', '/quiet', notify => false)");
    assert_eq!(
        db.one::<Option<String>>("SELECT recsync.hook_channel('quiet')"),
        None
    );
    let mut listener = db.connect();
    listener.run("LISTEN recsync_told; LISTEN recsync_quiet");
    db.run("INSERT INTO item VALUES (1, 'one')");
    receiver.wait_for(2);
    let heard = hear(&mut listener, "recsync_told", |heard| !heard.is_empty());
    assert_eq!(keys(&heard), [json!("1")]);
}

#[test]
fn what_is_much_or_long_is_heard_in_parts_below_the_limit() {
    let api = Api::start();
    let mut db = shared().database();
    db.server("api", &api, "");
    db.run("CREATE TABLE page (url text PRIMARY KEY, title text)");
    db.pipeline("page_embedding", "page");
    db.run("SELECT recsync.create_hook('told', 'embedded')");
    let mut listener = db.connect();
    listener.run("LISTEN recsync_told");
    db.run("INSERT INTO page SELECT repeat('x', 300) || i, 'page ' || i FROM generate_series(1, 400) i");
    db.run("INSERT INTO page SELECT repeat('long', 5000), 'a long one'");
    db.settle("page_embedding");
    let heard = hear(&mut listener, "recsync_told", |heard| {
        keys(heard).len() == 400 && heard.iter().any(|payload| payload["omitted"] == 1)
    });
    assert!(heard.len() > 10);
}

#[test]
fn what_has_happened_since_is_heard_at_once_and_each_key_once() {
    let api = Api::start();
    let mut db = shared().database();
    db.items(&api, "");
    db.run("SELECT recsync.create_hook('told', 'embedded'); SELECT recsync.pause('told')");
    for change in [
        "INSERT INTO item VALUES (1, 'one'), (2, 'two')",
        "UPDATE item SET title = 'another' WHERE id = 1",
        "INSERT INTO item VALUES (3, 'three')",
    ] {
        db.run(change);
        db.settle("item_embedding");
    }
    assert!(db.one::<i64>("SELECT count(*) FROM recsync.delivery") >= 3);
    let mut listener = db.connect();
    listener.run("LISTEN recsync_told");
    db.run("SELECT recsync.resume('told')");
    let heard = hear(&mut listener, "recsync_told", |heard| !heard.is_empty());
    wait_until(PATIENCE, "all has been told", || {
        status(&mut db, "pending") == "0"
    });
    let mut keys: Vec<String> = keys(&heard).iter().map(ToString::to_string).collect();
    keys.sort();
    assert_eq!((heard.len(), keys.concat().as_str()), (1, r#""1""2""3""#));
}

#[test]
fn channels_of_all_names_can_be_listened_to_and_are_never_shared() {
    let mut db = shared().database();
    let long = "n".repeat(63);
    db.run("CREATE SCHEMA tenant7");
    for (name, channel) in [
        ("warm", "recsync_warm"),
        ("tenant7.warm", "recsync_tenant7.warm"),
        ("\"Mixed \"\"Case\"", "recsync_Mixed \"Case"),
    ] {
        db.run(&format!("SELECT recsync.create_hook('{name}', 'embedded')"));
        let found: String = db.one(&format!("SELECT recsync.hook_channel('{name}')"));
        assert_eq!(found, channel);
    }
    db.run("SELECT recsync.create_hook('\"tenant7.warm\"', 'embedded')");
    db.run(&format!("SELECT recsync.create_hook('{long}', 'embedded')"));
    let channels: Vec<String> =
        db.column("SELECT recsync.hook_channel(name) FROM recsync.status WHERE kind = 'hook'");
    assert_eq!(channels.len(), 5);
    let distinct: std::collections::HashSet<&String> = channels.iter().collect();
    assert_eq!(distinct.len(), 5, "{channels:?}");
    for channel in &channels {
        assert!(
            channel.starts_with("recsync_") && channel.len() <= 63,
            "{channel}"
        );
        db.run(&format!("LISTEN \"{}\"", channel.replace('"', "\"\"")));
    }
}
