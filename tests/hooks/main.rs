//! Hooks: letters and NOTIFY. The receiver checks every signature; the clusters are real.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

/// create_hook, drop_hook: what is refused, what it is called.
mod declaring;

/// Letters: what is in them, their order, bodies.
mod letters;

/// What is said of pipelines and recommenders, event by event.
mod events;

/// Items that have gone.
mod items;

/// From a click to the list after it.
mod whole_loop;

/// LISTEN.
mod notices;

/// Lists in Redis, by the example.
mod redis;

/// Receivers that fail, workers that die.
mod faults;

/// Who hears of what.
mod rights;

use support::{Api, Cluster, Database, Receiver, Sql};

/// Server `hooks` of api webhook at `receiver`, with further options such as `max_attempts '1'`.
pub fn server(db: &mut Database, receiver: &Receiver, options: &str) {
    let comma = if options.is_empty() { "" } else { ", " };
    db.run(&format!(
        "CREATE SERVER hooks FOREIGN DATA WRAPPER recsync OPTIONS (api 'webhook', url '{}', api_key_env 'TEST_HOOK_API_KEY'{comma}{options})",
        receiver.url()
    ));
}

/// Table `item` with pipeline `item_embedding`, and hook `told` on what is embedded.
pub fn items<'a>(
    cluster: &'a Cluster,
    api: &Api,
    receiver: &Receiver,
    options: &str,
) -> Database<'a> {
    let mut db = cluster.database();
    db.items(api, "");
    server(&mut db, receiver, options);
    db.run("SELECT recsync.create_hook('told', 'embedded', 'hooks', '/told', listens_to => 'item_embedding')");
    db
}

/// A row of recsync.status.
pub fn status(db: &mut Database, column: &str) -> String {
    db.one(&format!(
        "SELECT COALESCE({column}::text, 'NULL') FROM recsync.status WHERE kind = 'hook'"
    ))
}
