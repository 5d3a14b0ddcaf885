//! Sessions that know nothing of each other run random transactions; workers and servers are killed meanwhile. When
//! all is quiet the log is the committed history, and the vectors are those of the rows.
//!
//! `RECSYNC_SEED` replays one seed, `RECSYNC_RANDOM_TRANSACTIONS` sets how many transactions a session has, and
//! `RECSYNC_NIGHTLY=1` makes it many seeds of many. A seed fixes what each session tries, not how they meet.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, ops::Range};

use fastrand::Rng;

use crate::support::{Api, Cluster, Database, Sql, process, shared};
use session::{Session, Stage};
use tables::Watch;

/// What a session tries.
mod plan;

/// The tables that they change.
mod tables;

/// A change as SQL, and what came of it.
mod change;

/// A session at work.
mod session;

/// What the log, the vectors and the requests must be.
mod model;

const SESSIONS: u64 = 6;
const ROWS: u32 = 20;
/// In one run: each may cost each text one more request, so that many prove less.
const MOST_KILLS: usize = 10;
/// Workers that end again and again are started ever more slowly, unless one has lived for a while in between.
const QUICK_KILLS: usize = 4;
const A_WHILE: Duration = Duration::from_secs(20);

/// Who dies during a run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deaths {
    None,
    /// The worker, by pg_terminate_backend.
    Worker,
    /// That, kill -9 of the worker, which takes all sessions with it, and kill -9 of the whole server.
    Server,
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

#[test]
fn random_transactions_leave_a_log_that_is_their_history_and_vectors_of_their_rows() {
    for seed in seeds(2) {
        run(shared(), seed, Deaths::None);
    }
}

#[test]
fn random_transactions_and_a_worker_terminated_again_and_again_leave_no_gap() {
    for seed in seeds(2) {
        run(shared(), seed, Deaths::Worker);
    }
}

#[test]
fn random_transactions_prepared_ones_and_a_server_killed_again_and_again_leave_no_gap() {
    let cluster = Cluster::start(&[("max_prepared_transactions", "20")]);
    for seed in seeds(1) {
        run(&cluster, seed, Deaths::Server);
    }
}

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| {
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number"))
    })
}

fn is_nightly() -> bool {
    setting("RECSYNC_NIGHTLY").unwrap_or(0) > 0
}

/// The seeds of a test: other ones each time, unless one is named.
fn seeds(count: u64) -> Range<u64> {
    let first = setting("RECSYNC_SEED");
    let count = match first {
        Some(_) => 1,
        None if is_nightly() => 20 * count,
        None => count,
    };
    let first = first.unwrap_or_else(|| u64::from(Rng::new().u32(..)));
    first..first + count
}

fn run(cluster: &Cluster, seed: u64, deaths: Deaths) {
    let transactions = setting("RECSYNC_RANDOM_TRANSACTIONS")
        .map(|wanted| wanted as usize)
        .unwrap_or(if is_nightly() { 1_000 } else { 50 });
    let _seed = Seed(seed);
    let mut rng = Rng::with_seed(seed);
    let watch = Watch {
        audited_is_embedded: rng.bool(),
    };
    println!("RECSYNC_SEED={seed}: {transactions} transactions a session, {deaths:?}, {watch:?}");
    let api = Api::start();
    api.set_delay(Duration::from_millis(rng.u64(0..8)));
    let mut db = cluster.database();
    watch.declare(&mut db, &api, ROWS);
    let before = model::rows(&mut db);
    let started = Instant::now();
    let name = db.name.clone();
    let stage = Stage {
        cluster,
        database: &name,
        crashes: deaths == Deaths::Server,
        backends: Mutex::default(),
    };
    let busy = AtomicUsize::new(SESSIONS as usize);
    let (histories, kills) = thread::scope(|scope| {
        let sessions: Vec<_> = (0..SESSIONS)
            .map(|number| {
                let (stage, busy) = (&stage, &busy);
                scope.spawn(move || {
                    let _done = Done(busy);
                    let works =
                        plan::of_session(seed, number, transactions, deaths == Deaths::Server);
                    Session::open(stage, number).run(&works)
                })
            })
            .collect();
        let kills = kill_while(&mut db, &mut rng, deaths, &busy);
        let histories = sessions.into_iter().map(|session| session.join().unwrap());
        (histories.collect::<Vec<_>>(), kills)
    });
    let ran = started.elapsed();
    assert_eq!(
        kills > 0,
        deaths != Deaths::None,
        "the run was over before anybody died"
    );
    session::finish_all_prepared(&mut db);
    for table in watch.embedded() {
        db.settle(&format!("{}_embedding", table.name));
    }
    let quiet = started.elapsed();
    let conflicts: usize = histories.iter().map(|(_, conflicts)| conflicts).sum();
    let history: Vec<_> = histories
        .into_iter()
        .flat_map(|(history, _)| history)
        .collect();
    let causes = model::check_log(&mut db, before, &history, watch);
    let asked = api.texts();
    model::check_requests(&causes, &asked, kills);
    assert_vectors_are_those_of_the_rows(&mut db, &api, watch);
    println!(
        "RECSYNC_SEED={seed}: {} transactions, {conflicts} conflicts, {kills} kills, {} texts asked for, {:?} rows left;
         ran {ran:?}, quiet after {quiet:?}, checked after {:?}",
        history.len(),
        asked.len(),
        session::sizes(&mut db),
        started.elapsed()
    );
}

/// Counts itself out, also when its session fails.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Kills at random times while sessions are busy; says how often.
fn kill_while(db: &mut Database, rng: &mut Rng, deaths: Deaths, busy: &AtomicUsize) -> usize {
    let (mut kills, mut quick, mut last) = (0, 0, Instant::now());
    loop {
        thread::sleep(Duration::from_millis(rng.u64(20..400)));
        if busy.load(Ordering::SeqCst) == 0 {
            return kills;
        }
        // Each kind at least once.
        let what = if kills < 2 { kills } else { rng.usize(..12) };
        if last.elapsed() > A_WHILE {
            quick = 0;
        }
        match what {
            _ if deaths == Deaths::None || kills == MOST_KILLS => continue,
            0 | 2 if deaths == Deaths::Server => {
                db.kill9_worker();
                quick = 0; // the launcher has begun anew as well
            }
            1 if deaths == Deaths::Server => {
                quick = 0;
                db.cluster.kill9_all();
                db.cluster.start_again();
                db.reconnect();
            }
            _ => match db.worker_now().filter(|_| quick < QUICK_KILLS) {
                Some(worker) => {
                    process::signal(worker, libc::SIGTERM);
                    quick += 1;
                }
                None => continue,
            },
        }
        kills += 1;
        last = Instant::now();
    }
}

fn assert_vectors_are_those_of_the_rows(db: &mut Database, api: &Api, watch: Watch) {
    for table in watch.embedded() {
        let text = format!("concat_ws(E'\\n', {})", table.text.join(", "));
        let filter = if table.filtered { "shown" } else { "true" };
        db.assert_in_step(
            api,
            &format!(
                "SELECT ({keys})::text, CASE WHEN {filter} THEN {text} END, e.embedding::text
                   FROM {name} s FULL JOIN {name}_embedding e USING ({keys})",
                keys = table.key_list(),
                name = table.name
            ),
        );
    }
    for what in ["dead_letter", "job"] {
        let left: i64 = db.one(&format!("SELECT count(*) FROM recsync.{what}"));
        assert_eq!(left, 0, "rows of recsync.{what}");
    }
}
