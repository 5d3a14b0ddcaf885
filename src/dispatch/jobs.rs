//! Jobs that are rows of `recsync.job`: what is retried, delayed or put aside. One statement a transition.
//!
//! It never holds a row's text: a job is a key.

use pgrx::prelude::*;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::queue::{Job, RowKey};
use super::read::Key;
use crate::catalog::names;
use crate::error::Result;
use crate::statement::Statement;

/// Until when a claim is good, for people who look: a worker that starts anew takes all leases back.
const LEASE: &str = "5 minutes";

/// Write down: keys as JSON arrays in $2. A job that is there already: see [`Again`], $6; its changes are added up.
const PUT: &str = "\
INSERT INTO recsync.job AS j (pipeline_id, record_key, attempt, available_at, last_attempt_at, changes)
SELECT $1, ARRAY(SELECT pg_catalog.jsonb_array_elements_text(k.key::jsonb)), k.attempt,
       pg_catalog.clock_timestamp() + k.delay * interval '1 ms', pg_catalog.to_timestamp(k.last / 1000000.0), k.changes
  FROM ROWS FROM (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::int[]), pg_catalog.unnest($4::bigint[]), pg_catalog.unnest($5::bigint[]),
                  pg_catalog.unnest($7::int[])) AS k (key, attempt, delay, last, changes)
ON CONFLICT (pipeline_id, record_key) DO UPDATE
   SET attempt = GREATEST(j.attempt, excluded.attempt), leased_until = NULL, changes = j.changes + excluded.changes,
       available_at = CASE WHEN $6 IS NULL THEN excluded.available_at WHEN $6 = 0 THEN LEAST(j.available_at, excluded.available_at)
                           ELSE LEAST(excluded.available_at, j.created_at + $6 * interval '1 ms') END,
       last_attempt_at = COALESCE(excluded.last_attempt_at, j.last_attempt_at)";

/// Take due jobs of a pipeline under a lease, along the index from where the last claim ended ($2, $3): what was
/// claimed before leaves dead entries behind there, which a held snapshot keeps. Due is what was to be by $4; jobs
/// that were there at $7 are due whatever their time, but for those that have failed since.
const CLAIM: &str = "\
UPDATE recsync.job j SET leased_until = pg_catalog.clock_timestamp() + $5::interval
 WHERE j.ctid = ANY (ARRAY(
       SELECT d.ctid FROM recsync.job d
        WHERE d.pipeline_id = $1 AND d.leased_until IS NULL AND (d.available_at, d.record_key) > ($2::timestamptz, $3)
          AND d.available_at <= $4::timestamptz
          AND ($7::timestamptz IS NULL OR d.created_at <= $7::timestamptz AND (d.last_attempt_at IS NULL OR d.last_attempt_at < $7::timestamptz))
        ORDER BY d.available_at, d.record_key LIMIT $6 FOR UPDATE SKIP LOCKED))
RETURNING (extract(epoch FROM j.available_at) * 1000000)::bigint, j.record_key, j.attempt,
          (extract(epoch FROM j.last_attempt_at) * 1000000)::bigint, j.available_at::text, j.changes";

/// Done, with effect or without.
const COMPLETE: &str = "DELETE FROM recsync.job r USING";

/// Give up: what is known of the failure stays for the owner.
const BURY: &str = "\
INSERT INTO recsync.dead_letter_log (pipeline_id, record_key, attempt, class, status, message)
SELECT $1, ARRAY(SELECT pg_catalog.jsonb_array_elements_text($2::jsonb)), $3, $4, $5, $6
ON CONFLICT (pipeline_id, record_key) DO UPDATE
   SET attempt = excluded.attempt, class = excluded.class, status = excluded.status, message = excluded.message, failed_at = excluded.failed_at";

/// A row that was given up has been embedded after all, or is gone.
const UNBURY: &str = "DELETE FROM recsync.dead_letter_log r USING";

/// The end of a statement about the rows `r` of a pipeline by their keys, JSON arrays in $2. They are made into
/// arrays first (OFFSET 0), so that the primary key finds the rows.
const BY_KEY: &str = "\
(SELECT ARRAY(SELECT pg_catalog.jsonb_array_elements_text(g.key::jsonb)) AS key FROM pg_catalog.unnest($2::text[]) AS g (key) OFFSET 0) k
 WHERE r.pipeline_id = $1 AND r.record_key = k.key";

/// Milliseconds until the next job of a pipeline after that place is due.
const NEXT: &str = "\
SELECT (extract(epoch FROM d.available_at - pg_catalog.clock_timestamp()) * 1000)::bigint
  FROM recsync.job d WHERE d.pipeline_id = $1 AND d.leased_until IS NULL AND (d.available_at, d.record_key) > ($2::timestamptz, $3)
 ORDER BY d.available_at, d.record_key LIMIT 1";

/// What a job that is written down again is due by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Again {
    /// The new time.
    Then,
    /// The earlier of the two.
    Earlier,
    /// The new time, but not so much later than its first change.
    Within(Duration),
}

/// A place in the order of a pipeline's jobs: when one is due, and its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    available_at: String,
    key: Vec<String>,
}

impl Place {
    /// Before all of them.
    pub fn first() -> Place {
        Place {
            available_at: "-infinity".into(),
            key: Vec::new(),
        }
    }
}

/// A job as it is written down.
pub struct Put<'a> {
    pub job: &'a Job,
    pub delay: Duration,
}

/// Writes jobs of one pipeline down.
pub fn put(pipeline: i32, jobs: &[Put], again: Again) -> Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    let keys: Vec<String> = jobs.iter().map(|put| key_json(&put.job.row)).collect();
    let attempts: Vec<i32> = jobs.iter().map(|put| put.job.attempt as i32).collect();
    let delays: Vec<i64> = jobs
        .iter()
        .map(|put| put.delay.as_millis() as i64)
        .collect();
    let last: Vec<Option<i64>> = jobs.iter().map(|put| put.job.last_attempt_us).collect();
    // One that is written down is known with all of its changes.
    let changes = jobs.iter().map(|put| match put.job.stored {
        true => 0,
        false => put.job.changes as i32,
    });
    let changes: Vec<i32> = changes.collect();
    let within = match again {
        Again::Then => None,
        Again::Earlier => Some(0),
        Again::Within(time) => Some(time.as_millis().max(1) as i64),
    };
    Spi::run_with_args(
        PUT,
        &[
            pipeline.into(),
            keys.into(),
            attempts.into(),
            delays.into(),
            last.into(),
            within.into(),
            changes.into(),
        ],
    )?;
    Ok(())
}

/// Writes all of these jobs down, with the same delay.
pub fn put_all(pipeline: i32, jobs: &[Job], delay: Duration, again: Again) -> Result<()> {
    let puts: Vec<Put> = jobs.iter().map(|job| Put { job, delay }).collect();
    put(pipeline, &puts, again)
}

/// Takes up to `most` jobs of a pipeline that are due after a place, in their order, and says where it stopped: at the
/// last of them. `run`: what was there by then is due now.
pub fn claim(
    pipeline: i32,
    after: &Place,
    run: Option<&str>,
    most: usize,
) -> Result<(Vec<Job>, Place)> {
    thread_local! {
        static STATEMENT: Statement = Statement::by_key(CLAIM);
    }
    let due = match run {
        Some(_) => "infinity".to_owned(),
        None => now()?,
    };
    Spi::connect_mut(|client| {
        let arguments = [
            pipeline.into(),
            after.available_at.as_str().into(),
            after.key.clone().into(),
            due.into(),
            LEASE.into(),
            (most as i64).into(),
            run.into(),
        ];
        let mut jobs = Vec::new();
        for row in STATEMENT.with(|statement| statement.update(client, &arguments))? {
            let key = row.get::<Vec<String>>(2)?.unwrap_or_default();
            let job = Job {
                row: RowKey {
                    pipeline,
                    key: Arc::from(key),
                },
                attempt: row.get::<i32>(3)?.unwrap_or(0).unsigned_abs(),
                stored: true,
                last_attempt_us: row.get::<i64>(4)?,
                changes: row.get::<i32>(6)?.unwrap_or(1).max(1).unsigned_abs(),
            };
            let place = (
                row.get::<i64>(1)?.unwrap_or(0),
                row.get::<String>(5)?.unwrap_or_default(),
            );
            jobs.push((place, job));
        }
        // They come in the order in which they stand on disk.
        jobs.sort_by(|((one_at, _), one), ((other_at, _), other)| {
            one_at
                .cmp(other_at)
                .then_with(|| one.row.key.cmp(&other.row.key))
        });
        let last = jobs.last().map(|((_, available_at), job)| Place {
            available_at: available_at.clone(),
            key: job.row.key.to_vec(),
        });
        let jobs = jobs.into_iter().map(|(_, job)| job).collect();
        Ok((jobs, last.unwrap_or_else(|| after.clone())))
    })
}

/// The clock, as text.
pub fn now() -> Result<String> {
    let now = names::select_one::<String>("SELECT pg_catalog.clock_timestamp()::text", &[])?;
    Ok(now.unwrap_or_default())
}

/// Which rows have a job, or were given up: for [`found`].
pub fn find_jobs() -> Statement {
    find("recsync.job")
}

pub fn find_dead_letters() -> Statement {
    find("recsync.dead_letter_log")
}

fn find(table: &str) -> Statement {
    Statement::by_key(format!("SELECT r.record_key FROM {table} r, {BY_KEY}"))
        .under_active_snapshot()
}

/// The keys of those of `rows` that a statement finds. As recsync's owner.
pub fn found<'a>(
    statement: &Statement,
    pipeline: i32,
    rows: impl Iterator<Item = &'a RowKey>,
) -> Result<HashSet<Key>> {
    let keys: Vec<String> = rows.map(key_json).collect();
    Spi::connect(|client| {
        let rows = statement.select(client, &[pipeline.into(), keys.into()])?;
        rows.map(|row| Ok(Key::from(row.get::<Vec<String>>(1)?.unwrap_or_default())))
            .collect()
    })
}

/// Removes the rows of jobs that are done.
pub fn complete<'a>(pipeline: i32, rows: impl Iterator<Item = &'a RowKey>) -> Result<()> {
    by_key(COMPLETE, pipeline, rows)
}

/// Takes a lease on jobs that were written down while they are in flight, as a claim would have.
/// All jobs of a pipeline that is not kept in step any more. As recsync's owner.
pub fn forget(pipeline: i32) -> Result<()> {
    Spi::run_with_args(
        "DELETE FROM recsync.job WHERE pipeline_id = $1",
        &[pipeline.into()],
    )?;
    Ok(())
}

pub fn lease<'a>(pipeline: i32, rows: impl Iterator<Item = &'a RowKey>) -> Result<()> {
    let hold = format!(
        "UPDATE recsync.job r SET leased_until = pg_catalog.clock_timestamp() + interval '{LEASE}' FROM"
    );
    by_key(&hold, pipeline, rows)
}

/// Removes the dead letters of rows that are right after all.
pub fn unbury<'a>(pipeline: i32, rows: impl Iterator<Item = &'a RowKey>) -> Result<()> {
    by_key(UNBURY, pipeline, rows)
}

fn by_key<'a>(what: &str, pipeline: i32, rows: impl Iterator<Item = &'a RowKey>) -> Result<()> {
    let keys: Vec<String> = rows.map(key_json).collect();
    if !keys.is_empty() {
        Spi::run_with_args(&format!("{what} {BY_KEY}"), &[pipeline.into(), keys.into()])?;
    }
    Ok(())
}

/// Gives a job up, with the failure's class, HTTP status and message.
pub fn bury(job: &Job, class: &str, status: Option<i32>, message: &str) -> Result<()> {
    Spi::run_with_args(
        BURY,
        &[
            job.row.pipeline.into(),
            key_json(&job.row).into(),
            (job.attempt as i32).into(),
            class.into(),
            status.into(),
            message.into(),
        ],
    )?;
    complete(job.row.pipeline, std::iter::once(&job.row))
}

/// Time until the next job of a pipeline after a place is due; `None` where there is none.
pub fn next_due(pipeline: i32, after: &Place) -> Result<Option<Duration>> {
    let milliseconds = names::select_one::<i64>(
        NEXT,
        &[
            pipeline.into(),
            after.available_at.as_str().into(),
            after.key.clone().into(),
        ],
    )?;
    Ok(milliseconds.map(|milliseconds| Duration::from_millis(milliseconds.max(0) as u64)))
}

/// The leases of a worker that is no more, or of a pipeline that was paused.
pub fn take_back_leases(pipeline: Option<i32>) -> Result<()> {
    Spi::run_with_args(
        "UPDATE recsync.job SET leased_until = NULL WHERE leased_until IS NOT NULL AND ($1 IS NULL OR pipeline_id = $1)",
        &[pipeline.into()],
    )?;
    Ok(())
}

/// A key as a JSON array of text.
fn key_json(row: &RowKey) -> String {
    serde_json::Value::from(row.key.to_vec()).to_string()
}
