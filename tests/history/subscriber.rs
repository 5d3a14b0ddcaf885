//! For a primary where nothing may be installed: a logical subscriber with `on_replica => true` carries capture, worker
//! and vectors. The primary has a publication and nothing of recsync's, not even preloaded.

use std::collections::HashMap;
use std::time::Duration;

use crate::support::{Api, Cluster, Database, PATIENCE, Sql, wait_until};

/// The tables, the same on both sides: watched on the subscriber with `on_replica`, or without.
const TABLES: &str = "
CREATE TABLE product (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0);
CREATE TABLE listing (shop text, code uuid, title text, PRIMARY KEY (code, shop));
CREATE TABLE unwatched (id int PRIMARY KEY, title text);
CREATE TABLE mark (id int PRIMARY KEY);";
const WATCHED: [(&str, &str); 2] = [("product", "id"), ("listing", "code, shop")];

fn primary() -> Cluster {
    Cluster::start(&[
        ("shared_preload_libraries", ""),
        ("wal_level", "logical"),
        ("logical_decoding_work_mem", "64kB"),
        ("max_prepared_transactions", "5"),
    ])
}

fn subscriber() -> Cluster {
    Cluster::start(&[
        // What is embedded has been captured: what triggers have not seen is not looked at by itself.
        ("recsync.auto_verify", "off"),
        ("wal_retrieve_retry_interval", "100ms"),
        ("max_prepared_transactions", "5"),
    ])
}

/// A database on each side, and what the subscriber embeds.
struct Pair<'a> {
    primary: Database<'a>,
    subscriber: Database<'a>,
    api: Api,
    marks: i32,
}

impl<'a> Pair<'a> {
    fn create(primary: &'a Cluster, subscriber: &'a Cluster) -> Pair<'a> {
        let mut pair = Pair {
            primary: primary.empty_database(),
            subscriber: subscriber.database(),
            api: Api::start(),
            marks: 0,
        };
        pair.primary.run(TABLES);
        pair.primary
            .run("CREATE PUBLICATION of_the_shop FOR TABLE product, listing, unwatched, mark");
        let db = &mut pair.subscriber;
        db.run(TABLES);
        db.server("api", &pair.api, "");
        for (table, _) in WATCHED {
            db.run(&format!(
                "SELECT recsync.create_pipeline('{table}_embedding', '{table}', columns => '{{title}}', server => 'api',
                        index => 'none', on_replica => true)"
            ));
        }
        db.pipeline("unwatched_embedding", "unwatched");
        pair
    }

    /// Begins with a copy of the rows that are there.
    fn subscribe(&mut self, options: &str) {
        let directory = self.primary.cluster.data_directory();
        let socket = directory.parent().unwrap().display();
        self.subscriber.run(&format!(
            "CREATE SUBSCRIPTION of_the_shop CONNECTION 'host={socket} port=5432 user=postgres dbname={}'
                    PUBLICATION of_the_shop WITH ({options})",
            self.primary.name
        ));
        wait_until(PATIENCE, "the initial copy is done", || {
            self.subscriber
                .one("SELECT count(*) = 4 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel")
        });
    }

    /// Waits until the subscriber has what the primary has committed.
    #[track_caller]
    fn catch_up(&mut self) {
        self.marks += 1;
        let mark = self.marks;
        self.primary
            .run(&format!("INSERT INTO mark VALUES ({mark})"));
        wait_until(PATIENCE, "the subscriber has caught up", || {
            self.subscriber.one(&format!(
                "SELECT EXISTS (SELECT FROM mark WHERE id = {mark})"
            ))
        });
    }

    /// That the subscriber has the vector of every row of the primary's, and no other.
    #[track_caller]
    fn assert_in_step(&mut self, after: &str) {
        self.catch_up();
        for (table, keys) in WATCHED {
            self.subscriber.settle(&format!("{table}_embedding"));
            let rows = pairs(
                &mut self.primary,
                &format!("SELECT ({keys})::text, title FROM {table} WHERE title <> ''"),
            );
            let mut vectors = pairs(
                &mut self.subscriber,
                &format!("SELECT ({keys})::text, embedding::text FROM {table}_embedding"),
            );
            for (key, title) in rows {
                let vector = vectors
                    .remove(&key)
                    .unwrap_or_else(|| panic!("{after}: {table} {key} has no vector"));
                assert!(
                    self.api.is_vector_of(&vector, &title),
                    "{after}: {table} {key} has the vector of another text"
                );
            }
            assert!(
                vectors.is_empty(),
                "{after}: vectors of {table} without a row: {:?}",
                vectors.keys()
            );
        }
    }
}

fn pairs(db: &mut Database, query: &str) -> HashMap<String, String> {
    let rows = db.rows(query);
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Where a subscription starts its worker anew (for `two_phase`, once the copy is done), PostgreSQL may start the next
/// one before the last has let go of the origin: it says so, and starts another.
const RESTARTED: &str = "ERROR:  replication origin with ID 1 is already active for PID";

fn lines_of_error(cluster: &Cluster) -> Vec<String> {
    let log = cluster.log();
    let bad = |line: &&str| {
        let is_bad = ["ERROR:", "PANIC:", "terminated by signal"]
            .iter()
            .any(|bad| line.contains(bad));
        is_bad && !line.contains(RESTARTED)
    };
    log.lines().filter(bad).map(str::to_owned).collect()
}

#[test]
fn subscriber_embeds_what_is_copied_inserted_updated_deleted_rekeyed_and_truncated_on_the_primary()
{
    let (primary, subscriber) = (primary(), subscriber());
    let mut pair = Pair::create(&primary, &subscriber);
    pair.primary.run(
        "INSERT INTO product SELECT i, 'copied ' || i FROM generate_series(1, 300) i;
         INSERT INTO listing SELECT 'shop ' || i % 3, gen_random_uuid(), 'copied listing ' || i FROM generate_series(1, 50) i;
         INSERT INTO unwatched SELECT i, 'not to be seen ' || i FROM generate_series(1, 10) i",
    );
    pair.subscribe("streaming = off");
    pair.assert_in_step("the initial copy");
    for change in [
        "INSERT INTO product SELECT i, 'inserted ' || i FROM generate_series(1001, 1050) i",
        "INSERT INTO listing VALUES ('shop 1', gen_random_uuid(), 'quoted \" '' , )'), ('shop, \"2\"', gen_random_uuid(), 'odd key')",
        "UPDATE product SET title = 'updated ' || id WHERE id % 5 = 0",
        "UPDATE product SET title = NULL WHERE id % 50 = 1; UPDATE product SET title = '' WHERE id % 50 = 2",
        "UPDATE listing SET title = title || ' again'",
        "DELETE FROM product WHERE id % 7 = 0; DELETE FROM listing WHERE shop = 'shop 2'",
        "UPDATE product SET id = -id WHERE id BETWEEN 100 AND 120",
        "UPDATE listing SET shop = 'renamed ' || shop WHERE shop = 'shop 0'",
        "BEGIN; UPDATE product SET id = 0 WHERE id = 3; UPDATE product SET id = 3 WHERE id = 4; UPDATE product SET id = 4 WHERE id = 0; COMMIT",
        "INSERT INTO product VALUES (3, 'upserted'), (2000, 'upserted, too') ON CONFLICT (id) DO UPDATE SET title = excluded.title",
        "BEGIN; SAVEPOINT a; UPDATE product SET title = 'never'; DELETE FROM listing; ROLLBACK TO a; DELETE FROM product WHERE id = 3; COMMIT",
        "TRUNCATE listing",
        "BEGIN; INSERT INTO listing VALUES ('gone', gen_random_uuid(), 'never'); TRUNCATE listing, product;
         INSERT INTO product VALUES (1, 'after TRUNCATE'), (9, 'after TRUNCATE, too'); COMMIT",
        "UPDATE unwatched SET title = 'still not to be seen'; DELETE FROM unwatched WHERE id = 1",
    ] {
        pair.primary.run(change);
        pair.assert_in_step(change);
    }
    let asked = pair.api.requests().len();
    pair.primary.run("UPDATE product SET stock = stock + 1");
    pair.assert_in_step("an unused column");
    assert_eq!(
        pair.api.requests().len(),
        asked,
        "an unused column was paid for"
    );
    let sent = pair.api.texts();
    assert!(!sent.iter().any(|text| text.contains("never")));

    // What documentation says of a pipeline without on_replica: it is blind for the primary's changes.
    assert_eq!(
        pair.subscriber.one::<i64>(
            "SELECT count(*) FROM recsync.change_log WHERE table_name = 'unwatched'::regclass AND op <> 'UNSEEN'"
        ),
        0
    );
    assert!(!sent.iter().any(|text| text.contains("not to be seen")));
    pair.subscriber
        .run("INSERT INTO unwatched VALUES (100, 'written here')");
    pair.subscriber.settle("unwatched_embedding");
    assert_eq!(pair.api.times_asked("written here"), 1);

    let installed: i64 = pair
        .primary
        .one("SELECT count(*) FROM pg_extension WHERE extname IN ('recsync', 'vector')");
    assert_eq!(installed, 0);
    let bad = lines_of_error(&subscriber);
    assert!(bad.is_empty(), "{bad:?}");
}

/// Every kind of change, over all rows; `round` makes the texts new.
fn change_everything(primary: &mut Database, round: &str) {
    primary.run(&format!(
        "DELETE FROM product WHERE id > 5000;
         INSERT INTO product SELECT i, 'many {round} ' || i FROM generate_series(1, 400) i
             ON CONFLICT (id) DO UPDATE SET title = excluded.title;
         DELETE FROM product WHERE id % 9 = 0;
         UPDATE product SET id = id + 5000 WHERE id % 9 = 1"
    ));
    primary.run(&format!(
        "TRUNCATE listing;
         INSERT INTO listing SELECT 'shop', gen_random_uuid(), '{round} listing ' || i FROM generate_series(1, 100) i"
    ));
    primary.run("DELETE FROM product WHERE id > 5000 AND id % 2 = 0");
    primary.run(&format!(
        "UPDATE listing SET title = title || ', again', shop = 'moved' WHERE title LIKE '% listing 1%'; SELECT '{round}'"
    ));
}

#[test]
fn subscriber_that_lags_is_restarted_or_killed_embeds_every_row_in_the_end() {
    let (primary, subscriber) = (primary(), subscriber());
    let mut pair = Pair::create(&primary, &subscriber);
    change_everything(&mut pair.primary, "at first");
    pair.subscribe("streaming = off");
    pair.assert_in_step("the initial copy");

    pair.subscriber
        .run("ALTER SUBSCRIPTION of_the_shop DISABLE");
    for round in 0..5 {
        change_everything(&mut pair.primary, &format!("lagging {round}"));
    }
    pair.subscriber.run("ALTER SUBSCRIPTION of_the_shop ENABLE");
    pair.assert_in_step("a subscription that lagged");

    subscriber.stop_fast();
    change_everything(&mut pair.primary, "while it was down");
    subscriber.start_again();
    pair.subscriber.reconnect();
    pair.assert_in_step("a restart");

    pair.api.hold();
    change_everything(&mut pair.primary, "before it was killed");
    pair.api.wait_until_held(1);
    subscriber.kill9_all();
    pair.api.release();
    change_everything(&mut pair.primary, "while it was dead");
    subscriber.start_again();
    pair.subscriber.reconnect();
    pair.assert_in_step("kill -9");

    // In the middle of the apply, the worker and everybody else with it.
    pair.api.set_delay(Duration::from_millis(5));
    for round in 0..3 {
        change_everything(&mut pair.primary, &format!("killed at {round}"));
        pair.subscriber.kill9_worker();
    }
    pair.assert_in_step("kill -9 of the worker");
    let dead: i64 = pair
        .subscriber
        .one("SELECT count(*) FROM recsync.dead_letter");
    assert_eq!(dead, 0);
}

#[test]
fn subscriber_embeds_streamed_and_prepared_transactions_when_they_are_committed() {
    let (primary, subscriber) = (primary(), subscriber());
    let mut pair = Pair::create(&primary, &subscriber);
    pair.primary
        .run("INSERT INTO product SELECT i, 'copied ' || i FROM generate_series(1, 20) i");
    pair.subscribe("streaming = on, two_phase = on");
    pair.assert_in_step("the initial copy");
    pair.primary.run(
        "BEGIN; INSERT INTO product SELECT i, 'streamed ' || i FROM generate_series(101, 2000) i;
         SAVEPOINT a; UPDATE product SET title = 'never a'; ROLLBACK TO a;
         SAVEPOINT b; UPDATE product SET title = 'kept ' || id WHERE id < 150; RELEASE b;
         DELETE FROM product WHERE id % 3 = 0; COMMIT",
    );
    pair.assert_in_step("a streamed transaction");
    pair.primary.run(
        "BEGIN; INSERT INTO product SELECT i, 'never b ' || i FROM generate_series(3001, 5000) i; ROLLBACK",
    );
    for (token, end) in [("kept", "COMMIT"), ("never", "ROLLBACK")] {
        let text = format!("{token} when prepared");
        pair.primary.run(&format!(
            "BEGIN; UPDATE product SET title = '{text}' WHERE id = 1; DELETE FROM product WHERE id = 2"
        ));
        pair.primary.run(&format!("PREPARE TRANSACTION '{token}'"));
        pair.catch_up();
        let waiting: i64 = pair
            .subscriber
            .one("SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()");
        assert_eq!(waiting, 1, "it is prepared on the subscriber, too");
        pair.subscriber.settle("product_embedding");
        assert_eq!(pair.api.times_asked(&text), 0);
        pair.primary.run(&format!("{end} PREPARED '{token}'"));
        pair.assert_in_step(&text);
        pair.primary
            .run("INSERT INTO product VALUES (2, 'there again') ON CONFLICT DO NOTHING");
    }
    let sent = pair.api.texts();
    assert!(!sent.iter().any(|text| text.contains("never")));
    let bad = lines_of_error(&subscriber);
    assert!(bad.is_empty(), "{bad:?}");
}
