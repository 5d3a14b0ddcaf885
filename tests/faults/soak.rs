//! Two databases, three tables, sessions that change them, a DBA who is busy, and a fifth of all requests that go
//! wrong. With the faults off everything is in step in the end, and the workers are no larger than before.
//!
//! `RECSYNC_SOAK` is how long, in seconds: 20 unless it is given, 1800 for a night. `RECSYNC_SEED` tries the same
//! again; how the sessions meet is another each time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use fastrand::Rng;

use crate::support::{Api, Cluster, Database, Fault, PATIENCE, Sql, wait_until};
use resources::Resources;

/// What the sessions do.
mod load;

/// What a process holds.
mod resources;

const PERCENT: u8 = 20;
/// Before the first look at what a worker holds: until then it opens connections and fills its caches.
const WARM_UP: f64 = 0.3;

/// What a worker may hold more in the end than after the warm-up: what the allocator keeps of the largest burst, by
/// thread.
const MORE_MEMORY_KB: u64 = 16 * 1024;
/// Requests at a time, and so threads and connections, that a server has.
const CONCURRENCY: u64 = 4;

fn setting(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
    )
}

/// Says how to repeat a run that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("RECSYNC_SEED={} replays this run", self.0);
        }
    }
}

fn faults() -> Vec<Fault> {
    const JSON: &str = "application/json";
    let mut faults = vec![
        Fault::Status(400),
        Fault::Status(401),
        Fault::Status(403),
        Fault::Status(404),
        Fault::Status(418),
        Fault::Status(422),
        Fault::Status(429),
        Fault::StatusWith(429, "Retry-After: 1\r\n".into()),
        Fault::StatusWith(503, "Retry-After-Ms: 300\r\n".into()),
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(529),
        Fault::Says("text/html", "<html>busy</html>"),
        Fault::Says(JSON, ""),
        Fault::Says(JSON, "[]"),
        Fault::Says(JSON, r#"{"error":{"code":503,"message":"overloaded"}}"#),
        Fault::Says(JSON, r#"{"error":"no room"}"#),
        Fault::Dimensions(7),
        Fault::Silence,
        Fault::Drip(Duration::from_millis(50)),
        Fault::Endless,
        Fault::GzipBomb,
    ];
    let plain = [
        Fault::TooFew,
        Fault::TooMany,
        Fault::Reversed,
        Fault::IndexMissing,
        Fault::IndexRepeated,
        Fault::IndexTooLarge,
        Fault::Number(f32::NAN),
        Fault::Number(f32::INFINITY),
        Fault::Zeros,
        Fault::HalfTheJson,
        Fault::HalfTheBody,
        Fault::HalfTheChunks,
        Fault::ResetInTheMiddle,
        Fault::ResetAfterRequest,
        Fault::Gzip,
        Fault::BrokenGzip,
    ];
    // Those that cost no time and pause nothing are played more often.
    faults.extend(plain.iter().cloned().cycle().take(3 * plain.len()));
    faults
}

/// The servers have short timeouts, and give a row three attempts.
const OPTIONS: &str =
    "max_attempts '3', max_batch_inputs '20', read_timeout '300ms', total_timeout '700ms'";

fn databases<'a>(cluster: &'a Cluster, api: &Api, other: &Api) -> [Database<'a>; 2] {
    let mut first = cluster.database();
    first.items(api, OPTIONS);
    first.server("other", other, OPTIONS);
    first.run("CREATE TABLE film (id int PRIMARY KEY, title text, stock int NOT NULL DEFAULT 0)");
    first.run("SELECT recsync.create_pipeline('film_embedding', 'film', columns => '{title}', server => 'other')");
    let mut second = cluster.database();
    second.items(api, OPTIONS);
    [first, second]
}

#[test]
fn random_faults_under_load_lose_nothing_double_nothing_and_leave_nothing_behind() {
    let time = Duration::from_secs(setting("RECSYNC_SOAK").unwrap_or(20));
    let seed = setting("RECSYNC_SEED").unwrap_or_else(|| u64::from(Rng::new().u32(..)));
    let _seed = Seed(seed);
    println!("RECSYNC_SEED={seed} RECSYNC_SOAK={}", time.as_secs());
    let cluster = Cluster::start(&[("max_worker_processes", "16"), ("recsync.max_workers", "8")]);
    let (api, other) = (Api::start(), Api::start());
    let mut databases = databases(&cluster, &api, &other);
    let workers = [databases[0].worker(), databases[1].worker()];

    api.play_at_random(PERCENT, &faults(), seed);
    other.play_at_random(PERCENT, &faults(), seed + 1);
    other.refuse_texts_with("text 13", 422);
    let changes = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let mut warm = Vec::new();
    thread::scope(|scope| {
        for (number, database) in [0, 0, 0, 1].into_iter().enumerate() {
            let tables: &[&str] = if database == 0 {
                &["item", "film"]
            } else {
                &["item"]
            };
            let client = databases[database].connect();
            let rng = Rng::with_seed(seed + 10 + number as u64);
            let (over, changes) = (&over, &changes);
            scope.spawn(move || load::change(client, tables, rng, over, changes));
        }
        let reader = databases[0].connect();
        let dbas = [databases[0].connect(), databases[1].connect()];
        let (over, rng) = (&over, Rng::with_seed(seed + 20));
        scope.spawn(move || load::search(reader, over));
        scope.spawn(move || load::administrate(dbas, rng, over));
        thread::sleep(time.mul_f64(WARM_UP));
        warm.extend(workers.map(Resources::of));
        thread::sleep(time.mul_f64(1.0 - WARM_UP));
        over.store(true, Ordering::Relaxed);
    });
    let requests = api.requests_made() + other.requests_made();
    let played = api.play_no_more() + other.play_no_more();
    let changes = changes.into_inner();
    other.refuse_nothing();
    println!("{changes} changes, {requests} requests, {played} of them wrong");
    assert!(played * 8 > requests, "too few went wrong");

    let pipelines = [(0, "item", &api), (0, "film", &other), (1, "item", &api)];
    let ended = Instant::now();
    for (database, table, api) in pipelines {
        end_in_step(&mut databases[database], table, api);
    }
    println!("in step {:?} after the last fault", ended.elapsed());
    for (database, worker) in workers.into_iter().enumerate() {
        assert_eq!(databases[database].worker(), worker, "the worker has died");
        let servers = if database == 0 { 2 } else { 1 };
        not_larger(worker, servers, &warm[database]);
    }
}

/// With the faults off every row comes to its vector, and looking at all of them once more costs no request.
fn end_in_step(db: &mut Database, table: &str, api: &Api) {
    let pipeline = format!("{table}_embedding");
    let dead = format!("SELECT recsync.retry_dead_letters('{pipeline}')");
    db.run(&format!("SELECT recsync.resume('{pipeline}')"));
    db.settle(&pipeline);
    let given_up: i64 = db.one(&dead);
    db.settle(&pipeline);
    println!("{pipeline}: {given_up} dead letters tried again");
    let rows = format!(
        "SELECT COALESCE(i.id, e.id)::text, i.title, e.embedding::text
           FROM {table} i FULL JOIN {pipeline} e ON e.id = i.id"
    );
    db.assert_in_step(api, &rows);
    assert!(!db.rows(&rows).is_empty(), "{table} is empty");
    for left in ["job", "dead_letter_log"] {
        let count = format!(
            "SELECT count(*) FROM recsync.{left} l JOIN recsync.pipeline p ON p.id = l.pipeline_id WHERE p.relation = 'public.{pipeline}'"
        );
        assert_eq!(db.one::<i64>(&count), 0, "{left} of {pipeline}");
    }
    let asked = api.requests_made();
    db.run(&format!("SELECT recsync.pause('{pipeline}')"));
    db.run(&format!("SELECT recsync.resume('{pipeline}')"));
    db.settle(&pipeline);
    assert_eq!(api.requests_made(), asked, "{pipeline}: sent once more");
}

/// Threads of lanes that are no more end with their last request.
fn not_larger(worker: i32, servers: u64, warm: &Resources) {
    let mut now = Resources::of(worker);
    let most_threads = 1 + servers * CONCURRENCY;
    let most_sockets = warm.sockets + servers * CONCURRENCY;
    wait_until(
        PATIENCE,
        "the worker's threads and connections are few",
        || {
            now = Resources::of(worker);
            now.threads <= most_threads && now.sockets <= most_sockets
        },
    );
    println!("worker {worker} after the warm-up: {warm:?}; in the end: {now:?}");
    assert!(
        now.memory_kb <= warm.memory_kb + MORE_MEMORY_KB,
        "the worker's memory grew from {} to {} kB",
        warm.memory_kb,
        now.memory_kb
    );
}
