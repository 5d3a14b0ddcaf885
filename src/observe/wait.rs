//! wait_for: true once every change committed before the call is embedded, removed or given up.
//!
//! It never polls: the worker signals when its checkpoint has moved.

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use crate::capture::wake;
use crate::catalog::names::select_one;
use crate::catalog::pipeline;
use crate::catalog::rights::As;
use crate::dispatch::read::current_snapshot;
use crate::dispatch::snapshot::Snapshot;
use crate::error::{Error, OrReport, Result};
use crate::shared::{self, Database};

/// The rows that were there before the pipeline have been dispatched.
const BACKFILLED: &str = "\
SELECT NOT EXISTS (SELECT FROM recsync.backfill WHERE pipeline_id = $1 AND finished_at IS NULL)";

/// Nothing of the pipeline that was put aside before `$2` is left to do.
const NOTHING_LEFT: &str = "\
SELECT NOT EXISTS (SELECT FROM recsync.job WHERE pipeline_id = $1 AND created_at <= $2)";

const PAUSED: &str = "SELECT relation FROM recsync.pipeline WHERE id = $1 AND paused";

#[pg_extern(sql = r#"
CREATE FUNCTION wait_for(name text, timeout interval DEFAULT '30 s') RETURNS boolean LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION wait_for(text, interval) IS
'Read your writes: true once every change committed before the call (and the backfill) is embedded, removed or a dead letter; false when the timeout passes first. It holds the statement''s snapshot meanwhile. Errors: 25001 in a transaction that has changed a watched table itself or that is not READ COMMITTED, 42704 unknown pipeline, 25006 on a standby, 55000 where recsync is not preloaded or the pipeline is paused.';
"#)]
fn wait_for(name: &str, timeout: Interval) -> bool {
    let timeout =
        Duration::from_micros(timeout.as_micros().clamp(0, i128::from(i32::MAX) * 1_000) as u64);
    wait(name, timeout).or_report()
}

fn wait(name: &str, timeout: Duration) -> Result<bool> {
    // SAFETY: plain questions to the server.
    let (recovery, isolation) =
        unsafe { (pg_sys::RecoveryInProgress(), pg_sys::XactIsoLevel as u32) };
    if recovery {
        return Err(Error::Recovery);
    }
    if wake::has_own_changes() {
        return Err(Error::OwnChanges);
    }
    if isolation >= pg_sys::XACT_REPEATABLE_READ {
        return Err(Error::FixedSnapshot("REPEATABLE READ or SERIALIZABLE"));
    }
    crate::catalog::install::require_worker()?;
    let pipeline = pipeline::find(name)?;
    let database = shared::shared()
        .ok_or(Error::NotPreloaded)?
        .own_database()
        .ok_or(Error::NotPreloaded)?;
    let target = current_snapshot()?;
    let deadline = Instant::now() + timeout;
    database.prepare_to_wait();
    let reached = wait_until(database, pipeline.id, &target, deadline);
    Database::stop_waiting();
    reached
}

fn wait_until(
    database: &Database,
    pipeline: i32,
    target: &Snapshot,
    deadline: Instant,
) -> Result<bool> {
    // When checkpoint and backfill first covered the call: whatever it stands for is done by then, or is a job.
    let mut covered_at = None;
    loop {
        if is_reached(pipeline, target, &mut covered_at)? {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        if covered_at.is_none() {
            // An idle worker does not write its checkpoint: it has to be asked.
            database.checkpoint_wanted.store(true, SeqCst);
            database.wake.set_latch();
        }
        database.wait_for_progress(left.as_millis().clamp(1, 1_000) as i64);
    }
}

fn is_reached(
    pipeline: i32,
    target: &Snapshot,
    covered_at: &mut Option<TimestampWithTimeZone>,
) -> Result<bool> {
    // SAFETY: a snapshot of now, popped below; an ERROR's abort pops it, too.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    let reached = (|| {
        let _as = As::extension();
        if let Some(relation) = select_one::<String>(PAUSED, &[pipeline.into()])? {
            return Err(Error::Paused(relation));
        }
        if covered_at.is_none() {
            let checkpoint =
                select_one::<String>("SELECT snapshot::text FROM recsync.checkpoint", &[])?;
            let checkpoint: Snapshot = checkpoint
                .unwrap_or_default()
                .parse()
                .map_err(Error::Internal)?;
            if !checkpoint.covers(target)
                || select_one::<bool>(BACKFILLED, &[pipeline.into()])? != Some(true)
            {
                return Ok(false);
            }
            *covered_at = select_one("SELECT pg_catalog.clock_timestamp()", &[])?;
        }
        Ok(
            select_one::<bool>(NOTHING_LEFT, &[pipeline.into(), (*covered_at).into()])?
                == Some(true),
        )
    })();
    // SAFETY: pops the snapshot pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    reached
}
