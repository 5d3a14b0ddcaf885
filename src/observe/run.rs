//! run: what waits for its time is done now, and the caller is told what that came to.
//!
//! It never does the work itself: it asks the worker and waits.

// Of a recommender: its models.
mod models;

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::status::worker_missing;
use super::wait::{Goal, waitable};
use crate::catalog::pipeline::{self, Pipeline};
use crate::catalog::{recommender, site};
use crate::embed::failure::Class;
use crate::error::{Error, OrReport, Result};
use crate::settings;
use crate::shared::{self, Counters, Database};

/// How long a provider may rest before a run gives up on it.
const REST: Duration = Duration::from_secs(2);
/// How long there may be no worker: databases are served in turn, each for some seconds.
const ABSENCE: Duration = Duration::from_secs(30);

/// The columns of `recsync.run`.
type Outcome = (i64, i64, i64, i64, i64, i64, Interval);

/// Runs a pipeline, or a recommender, now.
#[pg_extern(volatile, strict)]
#[allow(clippy::type_complexity)] // the columns of an SQL function
fn run(
    name: &str,
) -> TableIterator<
    'static,
    (
        name!(processed, i64),
        name!(inserts, i64),
        name!(updates, i64),
        name!(deletes, i64),
        name!(embedded, i64),
        name!(unchanged, i64),
        name!(latency, Interval),
    ),
> {
    TableIterator::once(run_now(name).or_report())
}

extension_sql!(
    r#"
COMMENT ON FUNCTION run(text) IS
'Does now what a pipeline or a recommender would do at its time. Of a pipeline: every change committed before the call, and what waits to be tried again. Returns what that came to: rows that were looked at (processed), vectors that were new (inserts), replaced (updates) and removed (deletes), rows whose text was sent (embedded) or was that of their vector (unchanged), and how long it took. Rows that fail are left for later, see recsync.dead_letter. Of a recommender: counts every change committed before the call, then all lists of neighbours anew, and trains its models, and waits for that. Returns the pairs of a user and an item that they were trained on (processed), models that are new (inserts), that took the place of older ones (updates), and that are as they were (unchanged: not worth it, or larger than recsync.training_memory, which a NOTICE says), and how long it took; the lists, item_knn, count as a model. Errors: 42704 unknown name, 42501 for others than its owner and recsync_admin, 25001 in a transaction that has changed a watched table itself or that is not READ COMMITTED, 25006 on a standby, 55000 where it is paused, or the worker rests (recsync.enabled) or is not there for 30 s, 38000 where its provider rests after failures, or a training has failed.';
"#,
    name = "run_comment",
    requires = [run]
);

fn run_now(name: &str) -> Result<Outcome> {
    let database = waitable()?;
    match pipeline::find_any(name) {
        Err(unknown @ Error::NoSuchPipeline(_)) => {
            let recommender = recommender::find(name).map_err(|_| unknown)?;
            recommender::require_owner(&recommender)?;
            models::run(database, &recommender)
        }
        found => run_pipeline(database, &found?),
    }
}

fn run_pipeline(database: &Database, pipeline: &Pipeline) -> Result<Outcome> {
    pipeline::require_owner(pipeline)?;
    let counters = counters(pipeline.id, &pipeline.relation)?;
    let started = Instant::now();
    let before = totals(counters);
    let mut goal = Goal::tried(pipeline.id)?;
    let ask = || {
        database.checkpoint_wanted.store(true, SeqCst);
        counters.runs_wanted.fetch_add(1, SeqCst);
    };
    // SAFETY: the server's clock.
    let began = unsafe { pg_sys::GetCurrentTimestamp() };
    let worker = Worker::default();
    goal.wait(database, None, ask, || {
        worker.is_there(database)?;
        provider_is_there(counters, began)
    })?;
    let now = totals(counters);
    let [processed, inserts, updates, deletes, unchanged, known] =
        std::array::from_fn(|n| now[n] - before[n]);
    let latency = Interval::from_micros(started.elapsed().as_micros() as i64);
    Ok((
        processed,
        inserts,
        updates,
        deletes,
        inserts + updates - known,
        unchanged,
        latency,
    ))
}

/// Those of a pipeline or a recommender of this database.
fn counters(id: i32, name: &str) -> Result<&'static Counters> {
    // SAFETY: this process's database.
    let database = unsafe { pg_sys::MyDatabaseId };
    shared::shared()
        .and_then(|shared| shared.counters(database, id))
        .ok_or_else(|| Error::NoCounters(name.to_owned()))
}

/// Whoever does what is waited for; since when nobody does.
#[derive(Default)]
struct Worker(Cell<Option<Instant>>);

impl Worker {
    /// An error where it rests, or has been missed for too long.
    fn is_there(&self, database: &Database) -> Result<()> {
        if database.elsewhere.load(SeqCst) {
            site::require_home()?;
        }
        if !settings::enabled() || database.rests.load(SeqCst) {
            return Err(Error::Rests("recsync.enabled is off".into()));
        }
        let Some(reason) = worker_missing() else {
            self.0.set(None);
            return Ok(());
        };
        let since = self.0.get().unwrap_or_else(Instant::now);
        self.0.set(Some(since));
        match since.elapsed() >= ABSENCE {
            true => Err(Error::Rests(reason)),
            false => Ok(()),
        }
    }
}

/// An error where the provider has been resting for a while, although it was asked once more for this run.
fn provider_is_there(counters: &Counters, began: i64) -> Result<()> {
    let since = counters.rests_since_us.load(SeqCst);
    // SAFETY: the server's clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    if since == 0 || now - since.max(began) < REST.as_micros() as i64 {
        return Ok(());
    }
    Err(Error::Embedding {
        class: Class::Provider.as_str(),
        message: "its provider fails and is left alone for now; what waits is done when it is back"
            .into(),
    })
}

fn totals(counters: &Counters) -> [i64; 6] {
    [
        &counters.processed,
        &counters.inserted,
        &counters.updated,
        &counters.removed,
        &counters.unchanged,
        &counters.known,
    ]
    .map(|counter| counter.load(SeqCst))
}
