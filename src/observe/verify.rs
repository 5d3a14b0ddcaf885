//! verify, verify_rows, repair: whether each row has the vector of its text, and work for those that have not.
//!
//! It never changes a vector itself: what is wrong becomes a job.

use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::{Map, Value};
use std::collections::VecDeque;
use std::time::Duration;

// The rows and vectors in slices.
mod walk;

use crate::capture::wake;
use crate::catalog::pipeline::Key;
use crate::catalog::rights::As;
use crate::dispatch::fault::Fault;
use crate::dispatch::jobs::{self, Again};
use crate::dispatch::queue::Job;
use crate::error::{OrReport, Result};
use walk::{Found, Walk};
pub(super) use walk::{fail, is_of_a_row};

/// The columns of `recsync.verify`.
type Counts = (i64, i64, i64, i64);

/// Counts what is wrong with a pipeline's rows and vectors.
#[pg_extern(volatile, strict)]
#[allow(clippy::type_complexity)] // the columns of an SQL function
fn verify(
    name: &str,
) -> TableIterator<
    'static,
    (
        name!(missing, i64),
        name!(stale, i64),
        name!(orphaned, i64),
        name!(wrong_model, i64),
    ),
> {
    TableIterator::once(count(name).or_report())
}

fn count(name: &str) -> Result<Counts> {
    let mut walk = Walk::of(name)?;
    let mut counts = (0, 0, 0, 0);
    while let Some(found) = walk.next()? {
        for (_, fault) in found {
            *match fault {
                Fault::Missing => &mut counts.0,
                Fault::Stale => &mut counts.1,
                Fault::Orphaned => &mut counts.2,
                Fault::WrongModel => &mut counts.3,
            } += 1;
        }
    }
    Ok(counts)
}

/// Lists what [`verify`] counts.
#[pg_extern(volatile, strict)]
fn verify_rows(name: &str) -> TableIterator<'static, (name!(key, JsonB), name!(fault, String))> {
    let mut walk = Walk::of(name).or_report();
    let mut found: VecDeque<Found> = VecDeque::new();
    TableIterator::new(std::iter::from_fn(move || {
        while found.is_empty() {
            found.extend(walk.next().or_report()?);
        }
        let (job, fault) = found.pop_front()?;
        let key = key_object(walk.pipeline.keys(), &job);
        Some((key, fault.name().to_owned()))
    }))
}

/// A key as the change log shows it: whole numbers and booleans as JSON's own, all else as text.
fn key_object(keys: &[Key], job: &Job) -> JsonB {
    let value = |key: &Key, text: &String| match key.type_name.as_str() {
        "smallint" | "integer" | "bigint" => text.parse::<i64>().map_or(Value::Null, Value::from),
        "boolean" => Value::from(text == "true"),
        _ => Value::from(text.as_str()),
    };
    let columns = keys.iter().zip(job.row.key.iter());
    let columns = columns.map(|(key, text)| (key.name.clone(), value(key, text)));
    JsonB(Value::Object(columns.collect::<Map<_, _>>()))
}

/// Queues what [`verify`] counts.
#[pg_extern(volatile, strict)]
fn repair(name: &str) -> i64 {
    queue(name).or_report()
}

fn queue(name: &str) -> Result<i64> {
    crate::catalog::install::require_primary()?;
    let mut walk = Walk::of(name)?;
    let mut queued = 0;
    while let Some(found) = walk.next()? {
        let jobs: Vec<Job> = found.into_iter().map(|(job, _)| job).collect();
        if jobs.is_empty() {
            continue;
        }
        queued += jobs.len() as i64;
        let _as = As::extension();
        jobs::put_all(walk.pipeline.id, &jobs, Duration::ZERO, Again::Earlier)?;
    }
    // What was advised is done by this.
    {
        let _as = As::extension();
        Spi::run_with_args(
            "UPDATE recsync.backfill SET advised = NULL WHERE pipeline_id = $1 AND advised IS NOT NULL",
            &[walk.pipeline.id.into()],
        )?;
    }
    wake::after_catalog_change();
    Ok(queued)
}

extension_sql!(
    r#"
COMMENT ON FUNCTION verify(text) IS
'Compares all rows of a pipeline with their vectors, as they stand, and counts those that nothing is about to put right: missing (a row that passes row_filter and has a text has no vector), stale (its vector is not that of its text, or the text cannot be rendered), orphaned (a vector, or what is noted of one, without a row, or whose row passes no filter or has no text), wrong_model (by another model than the server''s). A row counts once. Not counted are rows with a change that the worker has not worked off, a job or a dead letter, and those that a backfill has not come to. It reads in slices of 1,000 in the order of the key, writes nothing, can be cancelled, and works on a standby; the statement''s snapshot is held meanwhile. Errors: 42704 unknown pipeline, 42501 for others than its owner and recsync_admin, 55000 where it is paused or broken, 25001 in a transaction that has changed a watched table itself or that is not READ COMMITTED.';
COMMENT ON FUNCTION verify_rows(text) IS
'Lists what verify counts: key (an object of the key''s columns, as in recsync.change_log) and fault (missing, stale, orphaned, wrong_model) of each such row. Errors as verify.';
COMMENT ON FUNCTION repair(text) IS
'Queues what verify counts: missing, stale and wrong_model rows are embedded again, orphaned vectors removed, by the worker, once the transaction has committed; wait_for waits for it. Texts that are known cost no call. Returns how many rows. Errors as verify, and 25006 on a standby.';
"#,
    name = "verify_comments",
    requires = [verify, verify_rows, repair]
);
