//! examples/redis: the subscriber that deletes from Redis what a hook says is old. As it is, with a real Redis.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use postgres::Client;
use server::{Redis, Tools};

use crate::support::numbers::free_address;
use crate::support::{Database, PATIENCE, Sql, eventually, shared, wait_until};

/// The server and its protocol.
mod server;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/redis/invalidate.py");

/// What no scope is the name of.
const OTHERS: [&str; 3] = ["cart:42", "my_user_recs:42", "user_recs"];

/// The running script.
struct Subscriber {
    child: Child,
    said: PathBuf,
}

impl Subscriber {
    fn start(tools: &Tools, database: &str, redis: SocketAddr, folder: &Path) -> Subscriber {
        let said = folder.join("said");
        let output = File::create(&said).unwrap();
        let child = Command::new("python3")
            .arg(SCRIPT)
            .args([
                database,
                &format!("redis://{redis}/0"),
                "recsync_invalidated",
            ])
            .env("PYTHONPATH", &tools.python)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .expect("python3");
        Subscriber { child, said }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    /// How often it has begun.
    fn begun(&self) -> usize {
        self.said()
            .lines()
            .filter(|line| *line == "listening")
            .count()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the subscriber has said:\n{}", self.said());
        }
    }
}

/// Tables `product` and `event`, recommender `shop`, and a hook on it without a server; a role without any rights.
fn shop() -> Database<'static> {
    let mut db = shared().database();
    db.run(
        "CREATE TABLE product (id int PRIMARY KEY, title text);
         CREATE TABLE event (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id bigint, product_id int REFERENCES product, created_at timestamptz NOT NULL DEFAULT clock_timestamp());
         INSERT INTO product SELECT i, 'product ' || i FROM generate_series(1, 20) i;
         SELECT recsync.create_recommender('shop', items => 'product', interactions => 'event');
         CREATE ROLE redis_subscriber LOGIN",
    );
    let readme = include_str!("../../examples/redis/README.md");
    let example = readme.split("```sql").nth(1).expect("an example in SQL");
    db.run(example.split("```").next().unwrap());
    db
}

fn view(db: &mut Client, user: i64) {
    for product in [1, 2] {
        db.run(&format!(
            "INSERT INTO event (user_id, product_id) VALUES ({user}, {product})"
        ));
    }
}

/// Waits until no key is there but `kept` and [`OTHERS`].
#[track_caller]
fn wait_for_keys(redis: &Redis, subscriber: &Subscriber, kept: &[&str]) {
    let mut wanted: Vec<&str> = OTHERS.iter().chain(kept).copied().collect();
    wanted.sort_unstable();
    if !eventually(PATIENCE, || redis.keys() == wanted) {
        let mut keys = redis.keys();
        keys.truncate(20);
        panic!("{keys:?} are there, not {wanted:?}\n{}", subscriber.said());
    }
}

#[test]
fn lists_in_redis_go_when_they_are_old_whatever_connection_is_lost() {
    let Some(tools) = Tools::find() else {
        return;
    };
    let mut redis = Redis::start(&tools, free_address());
    let mut db = shop();
    redis.set(&OTHERS);
    // From before anybody listened.
    redis.set(&["user_recs:1", "collab_recs:shop:1"]);
    let conninfo = format!(
        "host={} port=5432 user=redis_subscriber dbname={}",
        db.cluster.data_directory().parent().unwrap().display(),
        db.name
    );
    let mut subscriber = Subscriber::start(&tools, &conninfo, redis.address, redis.folder());
    wait_until(PATIENCE, "it listens", || subscriber.begun() == 1);
    wait_for_keys(&redis, &subscriber, &[]);

    // One user's, and all collaborative ones, more than are deleted at once.
    redis.set(&["user_recs:42", "user_recs:43", "user_recs:420"]);
    let many: Vec<String> = (0..2_500)
        .map(|n| format!("collab_recs:shop:{n}"))
        .collect();
    redis.set(&many);
    view(&mut db, 42);
    wait_for_keys(&redis, &subscriber, &["user_recs:420", "user_recs:43"]);

    // A key was too long to be said.
    db.run(r#"SELECT pg_notify('recsync_invalidated', '{"keys": [], "omitted": 1}')"#);
    wait_for_keys(&redis, &subscriber, &[]);

    // What is said while its connection is lost is not heard.
    redis.set(&["user_recs:42", "user_recs:43", "collab_recs:shop:1"]);
    let ended: bool = db.one(
        "SELECT bool_and(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'redis_subscriber'",
    );
    assert!(ended);
    wait_until(PATIENCE, "it listens again", || subscriber.begun() == 2);
    wait_for_keys(&redis, &subscriber, &[]);

    // Redis comes back with what it had on disk, and was told of an old list while it was down.
    redis.set(&["user_recs:42", "collab_recs:shop:1"]);
    redis.kill9();
    view(&mut db, 42);
    db.settle("shop");
    wait_until(PATIENCE, "all has been said", || {
        db.one("SELECT count(*) = 0 FROM recsync.delivery")
    });
    wait_until(PATIENCE, "it has missed Redis", || {
        subscriber.said().matches("again in a second").count() == 2
    });
    redis.start_again();
    wait_for_keys(&redis, &subscriber, &[]);
    redis.set(&["user_recs:42", "user_recs:43"]);
    view(&mut db, 42);
    wait_for_keys(&redis, &subscriber, &["user_recs:43"]);
    assert!(subscriber.child.try_wait().unwrap().is_none(), "it ended");

    drop(subscriber);
    wait_until(PATIENCE, "its session ends", || {
        db.one("SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'redis_subscriber'")
    });
    db.run("DROP ROLE redis_subscriber");
}
