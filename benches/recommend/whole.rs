//! The whole loop at a steady rate of clicks: each comes by apply_events; of some it is measured when the user's interest
//! has moved, when a hook has been told, and when a list that knows of it is ready.
//!
//! It never asks the worker anything: it looks at what others see, tables and letters.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, sleep};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use postgres::Client;
use serde_json::json;

use super::Shop;
use super::bench::setting::percentile;
use super::bench::tables::{most, table};
use super::support::{Receiver, Sql, wait_until};

/// Sessions by which clicks come: by one alone, with a commit each, they do not come to the rate that is wanted.
const CLICKERS: usize = 2;
/// Of so many clicks one is measured.
const MEASURED: u64 = 20;
/// Lists that are made a minute at the most, so that the budget is not what is measured.
const LISTS: usize = 5_000;
/// How long it is waited for the last of them.
const PATIENCE: Duration = Duration::from_secs(60);

struct Click {
    user: i64,
    item: i64,
    /// Before the call and after it, in seconds since 1970, and after it.
    from: f64,
    to: f64,
    committed: Instant,
}

/// Clicks at a steady rate, as far as one session comes.
struct Stream<'a> {
    /// What the events' ids begin with.
    name: String,
    at_it: i64,
    measured: &'a [i64],
    items: i64,
    pause: Duration,
    seconds: usize,
}

impl Shop {
    pub fn whole_loop(&mut self) {
        let id: i32 = self.client.one("SELECT id FROM recsync.recommender");
        let receiver = Receiver::start();
        self.client.run(&format!(
            "CREATE SERVER hooks FOREIGN DATA WRAPPER recsync OPTIONS (api 'webhook', url '{}', api_key_env 'TEST_HOOK_API_KEY');
             SELECT recsync.create_hook('warm', 'invalidated', 'hooks', '/predictions/warm', listens_to => 'shop', body => '{{\"user_ids\": \"{{{{users}}}}\"}}')",
            receiver.url()
        ));
        self.client
            .run(&format!("ALTER SYSTEM SET recsync.warm_limit = {LISTS}"));
        self.client
            .run("SELECT pg_reload_conf(); SELECT recsync.resume('shop')");
        let since = self.train();
        let ready = format!(
            "SELECT count(*) FROM recsync.list_{id} WHERE user_id % 2 = 0 AND made_at > '{since}'"
        );
        let wanted = self.sizes.users.min(1_000) as i64 / 4;
        wait_until(PATIENCE * 10, "lists are ready", || {
            sleep(Duration::from_millis(100));
            self.client.one::<i64>(&ready) >= wanted
        });
        let users: Vec<i64> = self.client.column(&format!(
            "SELECT user_id FROM recsync.list_{id} WHERE user_id % 2 = 0 ORDER BY active_at DESC"
        ));
        let moved = format!(
            "SELECT p.n::int4 FROM ROWS FROM (unnest($1::bigint[]), unnest($2::bigint[]), unnest($3::float8[])) WITH ORDINALITY AS p (user_id, item_id, at, n)
               JOIN recsync.interaction_{id} e ON e.user_id = p.user_id AND e.item_id = p.item_id AND e.at >= to_timestamp(p.at)
               JOIN recsync.interest_{id} i ON i.user_id = p.user_id AND NOT i.stale"
        );
        let listed = format!(
            "SELECT p.n::int4 FROM ROWS FROM (unnest($1::bigint[]), unnest($2::bigint[]), unnest($3::float8[])) WITH ORDINALITY AS p (user_id, item_id, at, n)
               JOIN recsync.list_{id} l ON l.user_id = p.user_id AND l.made_at >= to_timestamp(p.at)"
        );
        let clicks: Mutex<Vec<Click>> = Mutex::default();
        let stop = AtomicBool::new(false);
        let connect = || self.cluster.connect("postgres");
        let clickers: Vec<Client> = (0..CLICKERS).map(|_| connect()).collect();
        let looks = [(); 2].map(|()| {
            let mut look = connect();
            // By keys alone, whatever the planner takes a table for: looking is not to take the processors.
            look.run("SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off");
            look
        });
        let (rate, seconds) = (self.sizes.events_per_s, self.sizes.clicks_s);
        let (items, at_it) = (self.sizes.items as i64, self.sizes.at_it as i64);
        let (reached, mut times) = thread::scope(|scope| {
            let [one, other] = looks;
            let (clicks, stop) = (&clicks, &stop);
            let moves = scope.spawn(move || {
                let from = |click: &Click| click.from;
                watch(one, &moved, from, clicks, stop, Duration::from_millis(10))
            });
            let lists = scope.spawn(move || {
                let to = |click: &Click| click.to;
                watch(other, &listed, to, clicks, stop, Duration::from_millis(100))
            });
            let share = users.len() / CLICKERS;
            let clickers = clickers.into_iter().zip(users.chunks(share)).enumerate();
            let clickers: Vec<_> = clickers
                .map(|(n, (client, measured))| {
                    let stream = Stream {
                        name: format!("{n}."),
                        at_it,
                        measured,
                        items,
                        pause: Duration::from_secs(1) / (rate / CLICKERS) as u32,
                        seconds,
                    };
                    scope.spawn(move || stream.click(client, clicks))
                })
                .collect();
            let reached: f64 = clickers.into_iter().map(|one| one.join().unwrap()).sum();
            stop.store(true, SeqCst);
            (reached, [moves.join().unwrap(), lists.join().unwrap()])
        });
        let clicks = clicks.into_inner().unwrap();
        let mut told = Vec::new();
        wait_until(PATIENCE, "all have been told of", || {
            told = letters(&receiver, &clicks);
            told.len() == clicks.len()
        });
        let [moves, lists] = &mut times;
        let mut rows = Vec::new();
        for (name, goal, times) in [
            ("interest moved", 500.0, moves),
            ("hook received", 500.0, &mut told),
            ("list ready again", 10_000.0, lists),
        ] {
            times.sort_by(f64::total_cmp);
            let at = |percent| percentile(times, percent);
            rows.push(format!(
                "{name} | {} of {} | {:.1} | {:.1} | {:.1}",
                times.len(),
                clicks.len(),
                at(50),
                at(90),
                at(99)
            ));
            self.goals
                .push(most(format!("click → {name}: ms at p99"), goal, at(99)));
        }
        let title = format!(
            "the whole loop, {reached:.0} clicks a second by apply_events, one event a call, {CLICKERS} sessions, in ms from the commit"
        );
        table(&title, "until | clicks | p50 | p90 | p99", &rows);
        self.client
            .run("SELECT recsync.drop_hook('warm'); DROP SERVER hooks");
        self.client.run("ALTER SYSTEM RESET recsync.warm_limit");
        self.client.run("SELECT pg_reload_conf()");
    }
}

impl Stream<'_> {
    /// How many a second there were.
    fn click(&self, mut client: Client, clicks: &Mutex<Vec<Click>>) -> f64 {
        let apply = client
            .prepare("SELECT recsync.apply_events($1::text::jsonb)")
            .unwrap();
        let started = Instant::now();
        let mut measured = self.measured.iter();
        let mut rng = fastrand::Rng::new();
        let mut n = 0;
        while started.elapsed() < Duration::from_secs(self.seconds as u64) {
            n += 1;
            let own = match n % MEASURED {
                0 => measured.next().copied(),
                _ => None,
            };
            let user = own.unwrap_or_else(|| 1 + 2 * rng.i64(0..self.at_it));
            let item = rng.i64(1..=self.items);
            let event = json!({"event_id": format!("{}{n}", self.name), "operation": "insert", "table": "event", "data": {"user_id": user, "item_id": item}});
            let from = epoch();
            client.execute(&apply, &[&event.to_string()]).unwrap();
            let click = Click {
                user,
                item,
                from,
                to: epoch(),
                committed: Instant::now(),
            };
            if own.is_some() {
                clicks.lock().unwrap().push(click);
            }
            sleep((self.pause * n as u32).saturating_sub(started.elapsed()));
        }
        n as f64 / started.elapsed().as_secs_f64()
    }
}

fn epoch() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs_f64()
}

/// When `sql` finds each click, in ms from its commit; those that it does not find in time are left out.
fn watch(
    mut client: Client,
    sql: &str,
    since: impl Fn(&Click) -> f64,
    clicks: &Mutex<Vec<Click>>,
    stop: &AtomicBool,
    poll: Duration,
) -> Vec<f64> {
    let find = client.prepare(sql).unwrap();
    let (mut known, mut waiting, mut times) = (0, Vec::new(), Vec::new());
    let mut stopped: Option<Instant> = None;
    loop {
        let new = clicks.lock().unwrap();
        for click in &new[known..] {
            waiting.push((click.user, click.item, since(click), click.committed));
        }
        known = new.len();
        drop(new);
        let users: Vec<i64> = waiting.iter().map(|one| one.0).collect();
        let items: Vec<i64> = waiting.iter().map(|one| one.1).collect();
        let from: Vec<f64> = waiting.iter().map(|one| one.2).collect();
        let found = client.query(&find, &[&users, &items, &from]).unwrap();
        let mut found: Vec<usize> = found
            .iter()
            .map(|row| row.get::<_, i32>(0) as usize - 1)
            .collect();
        found.sort_unstable();
        found.dedup();
        for n in found.into_iter().rev() {
            let (.., committed) = waiting.swap_remove(n);
            times.push(committed.elapsed().as_secs_f64() * 1e3);
        }
        if stop.load(SeqCst) {
            let stopped = stopped.get_or_insert_with(Instant::now);
            if waiting.is_empty() || stopped.elapsed() > PATIENCE {
                return times;
            }
        }
        sleep(poll);
    }
}

/// When a letter that names its user came, in ms from each click's commit.
fn letters(receiver: &Receiver, clicks: &[Click]) -> Vec<f64> {
    let mut came = std::collections::HashMap::new();
    for letter in receiver.taken() {
        for user in letter.body["user_ids"].as_array().unwrap() {
            let user = user.as_str().map(|id| id.parse::<i64>().unwrap());
            came.entry(user).or_insert(letter.at);
        }
    }
    let of_clicks = clicks.iter().filter_map(|click| {
        let at = came.get(&Some(click.user))?;
        Some(at.saturating_duration_since(click.committed).as_secs_f64() * 1e3)
    });
    of_clicks.collect()
}
