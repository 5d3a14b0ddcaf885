//! How fast recommendations are, and how soon a click and a new item are in them. See benches/README.md.
//!
//! A shop with items of a hundred kinds, whose users mostly like one of them. It never says how good the lists are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod bench;

#[path = "../../tests/support/mod.rs"]
mod support;

/// From a click to the list after it.
mod whole;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use postgres::Client;

use bench::indexes::wait_for_index;
use bench::loopback::{Loopback, Model, Vectors};
use bench::setting::{
    conditions, is_wanted, load as load_average, memory_mb, percentile, size_or_quick,
};
use bench::tables::{Goal, least, most, print_goals, table};
use support::{Cluster, Sql, wait_until};

/// Of an ordinary server, where the tests' clusters are set to be quick.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("shared_buffers", "2GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
    ("maintenance_work_mem", "1GB"),
    ("max_worker_processes", "16"),
];

const DIMENSIONS: usize = 384;
/// Kinds of items, and what one of as many brands is a share of.
const KINDS: usize = 100;
const K: i64 = 10;
const POLL: Duration = Duration::from_micros(200);

/// What the environment may set.
struct Sizes {
    items: usize,
    users: usize,
    interactions: usize,
    /// Lists that are asked for, of each sort.
    lists: usize,
    clicks_per_s: usize,
    clicks_s: usize,
    /// Of the whole loop, and how many users click all the time: those of whom it is measured click once.
    events_per_s: usize,
    at_it: usize,
    new_items: usize,
}

struct Shop {
    sizes: Sizes,
    client: Client,
    cluster: Cluster,
    api: Loopback,
    goals: Vec<Goal>,
}

type Part = fn(&mut Shop);

fn main() {
    let of = size_or_quick;
    let sizes = Sizes {
        items: of("ITEMS", 100_000, 2_000),
        users: of("USERS", 50_000, 500),
        interactions: of("INTERACTIONS", 1_000_000, 10_000),
        lists: of("LISTS", 1_000, 50),
        clicks_per_s: of("CLICKS", 1_000, 200),
        clicks_s: of("SECONDS", 20, 3),
        events_per_s: of("EVENTS", 500, 100),
        at_it: of("AT_IT", 2_000, 100),
        new_items: of("NEW_ITEMS", 50, 5),
    };
    println!("{}", conditions(SETTINGS));
    let mut shop = Shop::load(sizes);
    let parts: [(&str, Part); 5] = [
        ("lists", Shop::lists),
        ("ready", Shop::ready),
        ("clicks", Shop::clicks),
        ("new", Shop::new_items),
        ("loop", Shop::whole_loop),
    ];
    for (_, run) in parts.iter().filter(|(name, _)| is_wanted("PARTS", name)) {
        run(&mut shop);
    }
    print_goals(&shop.goals);
    println!("\nload average now: {}", load_average());
}

impl Shop {
    fn load(sizes: Sizes) -> Shop {
        let cluster = Cluster::start(SETTINGS);
        let mut client = cluster.connect("postgres");
        let api = Loopback::start(Model {
            dimensions: DIMENSIONS,
            vectors: Vectors::Clustered,
            delay: Duration::ZERO,
        });
        client.run("CREATE EXTENSION recsync CASCADE");
        client.run(&api.server("loopback", &["max_batch_inputs '256'"]));
        let (items, users, interactions) = (sizes.items, sizes.users, sizes.interactions);
        client.run(&format!(
            "SELECT setseed(0.5);
             CREATE TABLE item (id bigint PRIMARY KEY, title text NOT NULL, brand int NOT NULL, hidden boolean NOT NULL DEFAULT false);
             INSERT INTO item SELECT n, 'Item ' || n || ' of kind ' || n % {KINDS}, (n / {KINDS}) % {KINDS} FROM generate_series(1, {items}) n;
             CREATE TABLE event (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id bigint NOT NULL, item_id bigint NOT NULL REFERENCES item,
                                 created_at timestamptz NOT NULL DEFAULT clock_timestamp());
             INSERT INTO event (user_id, item_id, created_at)
             SELECT u, CASE WHEN random() < 0.8 THEN 1 + (u % {KINDS} + {KINDS} * floor(power(random(), 3) * {per_kind})::bigint) % {items}
                            ELSE 1 + floor(power(random(), 4) * {items})::bigint END,
                    now() - interval '90 days' + i * interval '90 days' / {interactions}
               FROM (SELECT i, 1 + floor(power(random(), 1.5) * {users})::bigint AS u FROM generate_series(1, {interactions}) i) e",
            per_kind = items / KINDS,
        ));
        client.run("VACUUM ANALYZE");
        let started = Instant::now();
        client.run(
            "SELECT recsync.create_recommender('shop', 'item', 'event', text => ARRAY['title'], server => 'loopback', eligible => 'NOT hidden')",
        );
        let pipeline: String = client.one(
            "SELECT p.relation FROM recsync.recommender r JOIN recsync.pipeline p ON p.id = r.pipeline_id",
        );
        let until = |client: &mut Client, name: &str| {
            let wait = format!("SELECT recsync.wait_for('{name}', '1 h')");
            assert!(client.one::<bool>(&wait), "{name} is not done in an hour");
            started.elapsed().as_secs_f64()
        };
        let embedded = until(&mut client, &pipeline);
        let listed = until(&mut client, "shop");
        let generation: String = client.one("SELECT vectors FROM recsync.pipeline");
        wait_for_index(&mut client, &generation);
        let indexed = started.elapsed().as_secs_f64();
        client.run("VACUUM ANALYZE");
        client.run("CHECKPOINT");
        let worker =
            client.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'recsync worker'");
        let tables: i64 = client.one(
            "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
              WHERE relnamespace = 'recsync'::regnamespace AND relkind = 'r' AND relname ~ '_[0-9]+$' AND relname !~ '^(change_log|known)'",
        );
        let row = format!(
            "{embedded:.0} | {listed:.0} | {indexed:.0} | {:.0} | {:.0} | {:.0}",
            memory_mb(worker, "VmHWM:"),
            memory_mb(worker, "RssAnon:"),
            tables as f64 / 1e6
        );
        let title = format!(
            "load of {items} items, {users} users, {interactions} interactions: seconds from create_recommender until"
        );
        let head = "items embedded | interactions read, neighbours listed | index built | MB of the worker at the most | of its own | MB of tables";
        table(&title, head, &[row]);
        Shop {
            sizes,
            client,
            cluster,
            api,
            goals: Vec::new(),
        }
    }

    /// Lists for users who have had to do with something, by one session: made when they are asked for.
    fn lists(&mut self) {
        self.client.run("SET recsync.list_age = 0");
        let users: Vec<i64> = self.client.column(&format!(
            "SELECT DISTINCT user_id FROM (SELECT user_id FROM event WHERE id % 97 = 0 LIMIT {}) e",
            3 * self.sizes.lists
        ));
        let users = &users[..users.len().min(self.sizes.lists)];
        let generation: String = self.client.one("SELECT vectors FROM recsync.pipeline");
        let interests = format!(
            "recsync.interest_{}",
            self.client.one::<i32>("SELECT id FROM recsync.recommender")
        );
        let asked = [
            (
                "recommend",
                "SELECT id FROM shop_recommend($1, k => 10)".to_owned(),
            ),
            (
                "recommend, filter of 1%",
                "SELECT id FROM shop_recommend($1, k => 10, filter => '{\"brand\": 7}')".to_owned(),
            ),
            (
                "HNSW query by hand",
                format!(
                    "SELECT e.id FROM {generation} e ORDER BY e.embedding <=> (SELECT interest FROM {interests} WHERE user_id = $1) LIMIT 10"
                ),
            ),
            (
                "popular",
                "SELECT id FROM shop_popular(k => 10) WHERE $1::bigint > 0".to_owned(),
            ),
            (
                "similar",
                format!(
                    "SELECT id FROM shop_similar(1 + $1::bigint % {}, k => 10)",
                    self.sizes.items
                ),
            ),
        ];
        let mut rows = Vec::new();
        let mut p50s = Vec::new();
        for (name, sql) in &asked {
            let statement = self.client.prepare(sql).unwrap();
            let mut fewest = i64::MAX;
            let mut times = Vec::new();
            for round in 0..2 {
                for user in users {
                    let started = Instant::now();
                    let found = self.client.query(&statement, &[user]).unwrap().len() as i64;
                    // The first round warms up.
                    if round > 0 {
                        times.push(started.elapsed().as_secs_f64() * 1e3);
                        fewest = fewest.min(found);
                    }
                }
            }
            let per_s = 1e3 * times.len() as f64 / times.iter().sum::<f64>();
            times.sort_by(f64::total_cmp);
            let at = |percent| percentile(&times, percent);
            rows.push(format!(
                "{name} | {} | {:.2} | {:.2} | {:.2} | {per_s:.0} | {fewest}",
                times.len(),
                at(50),
                at(90),
                at(99)
            ));
            if *name == "recommend" {
                self.goals.push(most("recommend: ms at p50", 10.0, at(50)));
                self.goals.push(most("recommend: ms at p99", 25.0, at(99)));
            }
            if name.contains("filter") {
                self.goals
                    .push(least("with a filter of 1%: rows", K as f64, fewest as f64));
                self.goals.push(most(
                    "with a filter of 1% / without: p50",
                    3.0,
                    at(50) / p50s[0],
                ));
            }
            p50s.push(at(50));
        }
        table(
            "lists of ten, one session, in ms",
            "list | lists | p50 | p90 | p99 | a second | rows at the least",
            &rows,
        );
        let users = format!(
            "SELECT DISTINCT user_id FROM event WHERE id % 97 = 0 LIMIT {}",
            self.sizes.lists
        );
        let per_s = self.batch(&users);
        let goal = least("recommend_batch: users a second", 1_000.0, per_s);
        self.goals.push(goal);
        self.client.run("RESET recsync.list_age");
    }

    /// Trains the models now, since that makes lists unknown, and says when that was done.
    fn train(&mut self) -> String {
        self.client.run("SELECT FROM recsync.run('shop')");
        self.client.one("SELECT clock_timestamp()::text")
    }

    /// Lists that the worker has made before, beside the same ones made when they are asked for, in turn.
    fn ready(&mut self) {
        let id: i32 = self.client.one("SELECT id FROM recsync.recommender");
        let wanted = self.sizes.lists.min(self.sizes.users / 2);
        self.client
            .run(&format!("ALTER SYSTEM SET recsync.warm_limit = {wanted}"));
        self.client
            .run("SELECT pg_reload_conf(); SELECT recsync.resume('shop')");
        let since = self.train();
        let count = format!("SELECT count(*) FROM recsync.list_{id} WHERE made_at > '{since}'");
        let took = wait_until(Duration::from_secs(600), "lists are ready", || {
            self.client.one::<i64>(&count) >= wanted as i64
        });
        let users: Vec<i64> = self.client.column(&format!(
            "SELECT user_id FROM recsync.list_{id} ORDER BY user_id LIMIT {wanted}"
        ));
        let size: i64 = self.client.one(&format!(
            "SELECT pg_total_relation_size('recsync.list_{id}')"
        ));
        let sql = "SELECT id FROM shop_recommend($1, k => 10)";
        let statement = self.client.prepare(sql).unwrap();
        let counts = "SELECT ready FROM recsync.list_cache";
        let before: i64 = self.client.one(counts);
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..2 {
            for user in &users {
                for (age, times) in ["600", "0"].iter().zip(&mut times) {
                    self.client.run(&format!("SET recsync.list_age = {age}"));
                    let started = Instant::now();
                    let found = self.client.query(&statement, &[user]).unwrap().len() as i64;
                    // The first round warms up.
                    if round > 0 {
                        times.push(started.elapsed().as_secs_f64() * 1e3);
                    }
                    assert_eq!(found, K);
                }
            }
        }
        let ready = self.client.one::<i64>(counts) - before;
        assert!(
            ready >= 2 * users.len() as i64 * 9 / 10,
            "{ready} were ready"
        );
        let mut rows = Vec::new();
        let mut p50s = Vec::new();
        for (name, times) in ["ready", "made when asked for"].iter().zip(&mut times) {
            times.sort_by(f64::total_cmp);
            let at = |percent| percentile(times, percent);
            let per_s = 1e3 * times.len() as f64 / times.iter().sum::<f64>();
            rows.push(format!(
                "{name} | {} | {:.2} | {:.2} | {:.2} | {per_s:.0}",
                times.len(),
                at(50),
                at(90),
                at(99)
            ));
            p50s.push(at(50));
        }
        let title = format!(
            "lists of ten that are ready, and the same made when they are asked for, in ms; {} lists of {:.1} kB were made in {:.1} s",
            users.len(),
            size as f64 / users.len() as f64 / 1e3,
            took.as_secs_f64()
        );
        table(&title, "list | lists | p50 | p90 | p99 | a second", &rows);
        self.goals.push(most(
            "recommend of a list that is ready: ms at p50",
            1.0,
            p50s[0],
        ));
        self.client.run("RESET recsync.list_age");
        let per_s = self.batch(&format!("SELECT user_id FROM recsync.list_{id}"));
        self.goals.push(least(
            "recommend_batch of lists that are ready: users a second",
            1_000.0,
            per_s,
        ));
    }

    /// Users a second, all of them at once.
    fn batch(&mut self, users: &str) -> f64 {
        let batch = format!(
            "SELECT count(DISTINCT user_id) FROM recsync.recommend_batch('shop', '{users}', 10)"
        );
        // The first one warms up.
        let mut per_s = 0.0;
        for _ in 0..2 {
            let started = Instant::now();
            let lists: i64 = self.client.one(&batch);
            per_s = lists as f64 / started.elapsed().as_secs_f64();
        }
        per_s
    }

    /// Clicks at a steady rate; of some it is measured when they count.
    fn clicks(&mut self) {
        let id: i32 = self.client.one("SELECT id FROM recsync.recommender");
        let (users, items) = (self.sizes.users, self.sizes.items);
        let stop = AtomicBool::new(false);
        let mut others = self.cluster.connect("postgres");
        let mut own = self.cluster.connect("postgres");
        let mut watcher = self.cluster.connect("postgres");
        let pause = Duration::from_secs(1) / self.sizes.clicks_per_s as u32;
        let (times, clicks) = thread::scope(|scope| {
            let clicking = scope.spawn(|| {
                let click = others
                    .prepare(&format!(
                        "INSERT INTO event (user_id, item_id) SELECT 1 + floor(random() * {users})::bigint, 1 + floor(power(random(), 2) * {items})::bigint"
                    ))
                    .unwrap();
                let started = Instant::now();
                let mut clicks = 0_u32;
                while !stop.load(SeqCst) {
                    others.execute(&click, &[]).unwrap();
                    clicks += 1;
                    sleep((pause * clicks).saturating_sub(started.elapsed()));
                }
                f64::from(clicks) / started.elapsed().as_secs_f64()
            });
            let click = own
                .prepare("INSERT INTO event (user_id, item_id) VALUES ($1, $2) RETURNING id")
                .unwrap();
            let look = watcher
                .prepare(&format!(
                    "SELECT FROM recsync.interaction_{id} WHERE k1 = $1"
                ))
                .unwrap();
            let started = Instant::now();
            let mut times = Vec::new();
            while started.elapsed() < Duration::from_secs(self.sizes.clicks_s as u64) {
                let n = times.len() as i64;
                let user = 1 + n * 7_919 % users as i64;
                let item = 1 + n * 104_729 % items as i64;
                let event: i64 = own.query_one(&click, &[&user, &item]).unwrap().get(0);
                let committed = Instant::now();
                while watcher.query(&look, &[&event]).unwrap().is_empty() {
                    assert!(committed.elapsed() < Duration::from_secs(60));
                    sleep(POLL);
                }
                times.push(committed.elapsed().as_secs_f64() * 1e3);
            }
            stop.store(true, SeqCst);
            (times, clicking.join().unwrap())
        });
        let started = Instant::now();
        let done: bool = self.client.one("SELECT recsync.wait_for('shop', '1 h')");
        assert!(done);
        let caught_up = started.elapsed().as_secs_f64();
        let mut times = times;
        times.sort_by(f64::total_cmp);
        let at = |percent| percentile(&times, percent);
        self.goals
            .push(most("click → counts: ms at p99", 500.0, at(99)));
        let row = format!(
            "{clicks:.0} | {} | {:.1} | {:.1} | {:.1} | {caught_up:.1}",
            times.len(),
            at(50),
            at(90),
            at(99)
        );
        table(
            "clicks, from the commit until the next list knows of it, in ms",
            "clicks a second | measured | p50 | p90 | p99 | s until all lists of neighbours were counted after that",
            &[row],
        );
    }

    /// Items that come: until they are found by what they are like.
    fn new_items(&mut self) {
        let mut times = Vec::new();
        for n in 1..=self.sizes.new_items {
            let id = (self.sizes.items + n) as i64;
            drop(self.api.take());
            self.client
                .execute(
                    "INSERT INTO item VALUES ($1, 'New item ' || $1::bigint, 1)",
                    &[&id],
                )
                .unwrap();
            let committed = Instant::now();
            let found = format!("SELECT count(*) FROM shop_similar({id}, k => 10)");
            wait_until(
                Duration::from_secs(60),
                "the new item has neighbours",
                || self.client.one::<i64>(&found) > 0,
            );
            let took = committed.elapsed().as_secs_f64() * 1e3;
            let asked = self.api.take();
            let api: f64 = asked
                .iter()
                .map(|seen| (seen.answered - seen.arrived).as_secs_f64() * 1e3)
                .sum();
            times.push(took - api);
        }
        times.sort_by(f64::total_cmp);
        let at = |percent| percentile(&times, percent);
        self.goals.push(most(
            "new item → similar, without the API: ms at p99",
            1_000.0,
            at(99),
        ));
        let row = format!("{} | {:.1} | {:.1}", times.len(), at(50), at(99));
        table(
            "new items, from the commit until similar finds others by their vectors, without the API, in ms",
            "items | p50 | p99",
            &[row],
        );
    }
}
