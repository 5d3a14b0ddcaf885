//! wait_for: true once every change committed before the call is embedded, removed, counted or given up.
//!
//! It never polls: the worker signals when its checkpoint has moved.

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use crate::capture::wake;
use crate::catalog::names::{select_kept, select_one};
use crate::catalog::pipeline;
use crate::catalog::recommender;
use crate::catalog::rights::As;
use crate::dispatch::read::{current_snapshot, in_snapshot_of_now};
use crate::dispatch::snapshot::Snapshot;
use crate::error::{Error, OrReport, Result};
use crate::shared::{self, Database};

/// The rows that were there before the pipeline or recommender have been dispatched.
const BACKFILLED: &str = "\
SELECT EXISTS (SELECT FROM recsync.backfill WHERE pipeline_id = $1 AND finished_at IS NOT NULL
                  AND (advised IS NULL OR NOT pg_catalog.current_setting('recsync.auto_verify')::boolean))
   AND NOT EXISTS (SELECT FROM recsync.feed f LEFT JOIN recsync.backfill b ON b.pipeline_id = f.id WHERE f.recommender_id = $1 AND b.finished_at IS NULL)";

/// Nothing of the pipeline that was put aside before `$2` is left to do; what has failed since `$3` is left for later.
const NOTHING_LEFT: &str = "\
SELECT NOT EXISTS (SELECT FROM recsync.job WHERE pipeline_id = $1 AND created_at <= $2
                      AND ($3::timestamptz IS NULL OR last_attempt_at IS NULL OR last_attempt_at < $3::timestamptz))";

/// The name, if it is a recommender's number.
const STALE: &str = "\
SELECT 'recsync.' || c.relname FROM pg_catalog.pg_class c
 WHERE c.oid = pg_catalog.to_regclass('recsync.stale_' || $1)";

const PAUSED: &str = "\
SELECT relation FROM recsync.pipeline WHERE id = $1 AND (paused OR backfill_held IS NOT NULL) UNION ALL SELECT name FROM recsync.recommender WHERE id = $1 AND paused";

const OVER_BUDGET: &str = "\
SELECT notice FROM recsync.budget_notice
 WHERE pipeline_id = $1 AND stops AND month = pg_catalog.date_trunc('month', pg_catalog.clock_timestamp() AT TIME ZONE 'UTC')::date";

#[pg_extern(sql = r#"
CREATE FUNCTION wait_for(name text, timeout interval DEFAULT '30 s') RETURNS boolean LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION wait_for(text, interval) IS
'Read your writes: true once every change committed before the call (and the backfill) is embedded, removed or a dead letter, or counts for a recommender, whose items and users have their vectors by then, too; false when the timeout passes first. It holds the statement''s snapshot meanwhile. Errors: 25001 in a transaction that has changed a watched table itself or that is not READ COMMITTED, 42704 unknown name, 25006 on a standby, 55000 where recsync is not preloaded or it is paused.';
"#)]
fn wait_for(name: &str, timeout: Interval) -> bool {
    let timeout =
        Duration::from_micros(timeout.as_micros().clamp(0, i128::from(i32::MAX) * 1_000) as u64);
    is_settled(name, timeout).or_report()
}

/// Whether it got there in time.
pub fn is_settled(name: &str, timeout: Duration) -> Result<bool> {
    let database = waitable()?;
    let ids = match pipeline::find_any(name) {
        Err(unknown @ Error::NoSuchPipeline(_)) => {
            let recommender = recommender::find(name).map_err(|_| unknown)?;
            let of_items = recommender.vectors.map(|vectors| vectors.pipeline_id);
            let of_users = recommender.users.map(|users| users.pipeline_id);
            let pipelines = of_items.into_iter().chain(of_users);
            pipelines.chain([recommender.id]).collect()
        }
        found => vec![found?.id],
    };
    let goals = ids.into_iter().map(Goal::new);
    let goals = goals.collect::<Result<Vec<_>>>()?;
    let deadline = Instant::now() + timeout;
    for mut goal in goals {
        // An idle worker does not write its checkpoint: it has to be asked.
        let reached = goal.wait(
            database,
            Some(deadline),
            || {
                database.checkpoint_wanted.store(true, SeqCst);
            },
            || Ok(()),
        )?;
        if !reached {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The database for whose work the caller may wait, here and now.
pub fn waitable() -> Result<&'static Database> {
    crate::catalog::install::require_primary()?;
    require_new_snapshots()?;
    crate::catalog::install::require_worker()?;
    shared::shared()
        .ok_or(Error::NotPreloaded)?
        .own_database()
        .ok_or(Error::NotPreloaded)
}

/// Refuses where the transaction cannot see what is committed meanwhile, or has changes that nobody else sees.
pub fn require_new_snapshots() -> Result<()> {
    if wake::has_own_changes() {
        return Err(Error::OwnChanges);
    }
    // SAFETY: a plain question to the server.
    if unsafe { pg_sys::XactIsoLevel as u32 } >= pg_sys::XACT_REPEATABLE_READ {
        return Err(Error::FixedSnapshot("REPEATABLE READ or SERIALIZABLE"));
    }
    Ok(())
}

/// Waits until `reached` says so, which is asked whenever the worker says that something has been done.
pub fn until(database: &Database, mut reached: impl FnMut() -> Result<bool>) -> Result<()> {
    database.prepare_to_wait();
    let outcome = loop {
        match in_snapshot_of_now(&mut reached) {
            Ok(false) => {}
            reached_or_not => break reached_or_not.map(|_| ()),
        }
        database.wake.set_latch();
        database.wait_for_progress(1_000);
    };
    Database::stop_waiting();
    outcome
}

/// Progress is signalled hundreds of times a second where much is stored: whoever waits looks for a fifth of the time at
/// the most, and the rest is left to those who work.
const SHARE: u32 = 4;
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// What is waited for: all that is visible now is done.
pub struct Goal {
    pipeline: i32,
    target: Snapshot,
    /// When checkpoint and backfill first covered the target: whatever it stands for is done by then, or is a job.
    covered_at: Option<TimestampWithTimeZone>,
    /// Jobs that have failed since then count as done.
    since: Option<TimestampWithTimeZone>,
    /// Of a recommender: the table of its lists that are to be counted anew.
    stale: Option<String>,
}

impl Goal {
    /// Of a pipeline or recommender, by its number.
    pub fn new(id: i32) -> Result<Goal> {
        Ok(Goal {
            pipeline: id,
            target: current_snapshot()?,
            covered_at: None,
            since: None,
            stale: {
                let _as = As::extension();
                select_one(STALE, &[id.into()])?
            },
        })
    }

    /// The same, but that a job is done once it has been tried.
    pub fn tried(id: i32) -> Result<Goal> {
        Ok(Goal {
            since: select_one("SELECT pg_catalog.clock_timestamp()", &[])?,
            ..Goal::new(id)?
        })
    }

    /// The same, but that lists may be stale yet. It reads no table of the recommender's, which somebody may want to make
    /// anew meanwhile.
    pub fn read(id: i32) -> Result<Goal> {
        Ok(Goal {
            stale: None,
            ..Goal::new(id)?
        })
    }

    /// Waits until it is reached; false when the deadline passes first. `ask` asks the worker for it, after each look
    /// until all is covered, and once more then; `check` may give it up.
    pub fn wait(
        &mut self,
        database: &Database,
        deadline: Option<Instant>,
        ask: impl Fn(),
        check: impl Fn() -> Result<()>,
    ) -> Result<bool> {
        database.prepare_to_wait();
        let reached = self.wait_prepared(database, deadline, ask, check);
        Database::stop_waiting();
        reached
    }

    fn wait_prepared(
        &mut self,
        database: &Database,
        deadline: Option<Instant>,
        ask: impl Fn(),
        check: impl Fn() -> Result<()>,
    ) -> Result<bool> {
        let mut told = false;
        loop {
            let looks = Instant::now();
            if self.is_reached()? {
                return Ok(true);
            }
            // Who counts what was done looks when it is said that something was: then it is counted.
            let pause = match self.since {
                None => (looks.elapsed() * SHARE).min(LONGEST_PAUSE),
                Some(_) => Duration::ZERO,
            };
            check()?;
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            let covered = self.covered_at.is_some();
            if !told {
                ask();
                told = covered;
                database.wake.set_latch();
            }
            let left = left.map_or(1_000, |left| left.as_millis().clamp(1, 1_000) as i64);
            database.wait_for_progress(left);
            std::thread::sleep(pause);
        }
    }

    fn is_reached(&mut self) -> Result<bool> {
        in_snapshot_of_now(|| self.is_reached_now())
    }

    fn is_reached_now(&mut self) -> Result<bool> {
        let _as = As::extension();
        let pipeline = self.pipeline;
        if let Some(relation) = select_one::<String>(PAUSED, &[pipeline.into()])? {
            return Err(Error::Paused(relation));
        }
        if let Some(reason) = select_kept::<String>(OVER_BUDGET, &[pipeline.into()])? {
            return Err(Error::OverBudget(reason));
        }
        if self.covered_at.is_none() {
            let checkpoint =
                select_one::<String>("SELECT snapshot::text FROM recsync.checkpoint", &[])?;
            let checkpoint: Snapshot = checkpoint
                .unwrap_or_default()
                .parse()
                .map_err(Error::Internal)?;
            if !checkpoint.covers(&self.target)
                || select_one::<bool>(BACKFILLED, &[pipeline.into()])? != Some(true)
            {
                return Ok(false);
            }
            self.covered_at = select_one("SELECT pg_catalog.clock_timestamp()", &[])?;
        }
        let arguments = [pipeline.into(), self.covered_at.into(), self.since.into()];
        if select_one::<bool>(NOTHING_LEFT, &arguments)? != Some(true) {
            return Ok(false);
        }
        let Some(stale) = &self.stale else {
            return Ok(true);
        };
        let nothing = format!(
            "SELECT NOT EXISTS (SELECT FROM {stale} WHERE taken IN (false, true) AND since <= $1)"
        );
        Ok(select_one::<bool>(&nothing, &[self.covered_at.into()])? == Some(true))
    }
}
