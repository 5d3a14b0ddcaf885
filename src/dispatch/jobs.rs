//! Jobs that are rows of `recsync.job`: what is retried, delayed or put aside. One statement a transition.
//!
//! It never holds a row's text: a job is a key.

use pgrx::prelude::*;
use std::sync::Arc;
use std::time::Duration;

use super::queue::{Job, RowKey};
use crate::error::Result;

/// How long a claim is good for; a worker that starts anew takes all leases back anyway.
const LEASE: &str = "5 minutes";

/// Write down: keys as JSON arrays in $2.
const PUT: &str = "\
INSERT INTO recsync.job AS j (pipeline_id, record_key, attempt, available_at, last_attempt_at)
SELECT $1, ARRAY(SELECT pg_catalog.jsonb_array_elements_text(k.key::jsonb)), k.attempt,
       pg_catalog.clock_timestamp() + k.delay * interval '1 ms', pg_catalog.to_timestamp(k.last / 1000000.0)
  FROM ROWS FROM (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::int[]), pg_catalog.unnest($4::bigint[]), pg_catalog.unnest($5::bigint[]))
       AS k (key, attempt, delay, last)
ON CONFLICT (pipeline_id, record_key) DO UPDATE
   SET attempt = GREATEST(j.attempt, excluded.attempt), available_at = excluded.available_at, leased_until = NULL,
       last_attempt_at = COALESCE(excluded.last_attempt_at, j.last_attempt_at)";

/// Take due jobs under a lease.
const CLAIM: &str = "\
WITH due AS (SELECT j.pipeline_id, j.record_key FROM recsync.job j
              WHERE j.available_at <= pg_catalog.clock_timestamp() AND j.pipeline_id = ANY ($1)
                AND (j.leased_until IS NULL OR j.leased_until < pg_catalog.clock_timestamp())
              ORDER BY j.available_at LIMIT $2 FOR UPDATE SKIP LOCKED)
UPDATE recsync.job j SET leased_until = pg_catalog.clock_timestamp() + $3::interval
  FROM due WHERE j.pipeline_id = due.pipeline_id AND j.record_key = due.record_key
RETURNING j.pipeline_id, j.record_key, j.attempt, (extract(epoch FROM j.last_attempt_at) * 1000000)::bigint";

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

/// Milliseconds until the next job of these pipelines is due.
const NEXT: &str = "\
SELECT (extract(epoch FROM pg_catalog.min(GREATEST(j.available_at, j.leased_until)) - pg_catalog.clock_timestamp()) * 1000)::bigint
  FROM recsync.job j WHERE j.pipeline_id = ANY ($1)";

/// A job as it is written down.
pub struct Put<'a> {
    pub job: &'a Job,
    pub delay: Duration,
}

/// Writes jobs of one pipeline down.
pub fn put(pipeline: i32, jobs: &[Put]) -> Result<()> {
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
    Spi::run_with_args(
        PUT,
        &[
            pipeline.into(),
            keys.into(),
            attempts.into(),
            delays.into(),
            last.into(),
        ],
    )?;
    Ok(())
}

/// Writes all of these jobs down, with the same delay.
pub fn put_all(pipeline: i32, jobs: &[Job], delay: Duration) -> Result<()> {
    let puts: Vec<Put> = jobs.iter().map(|job| Put { job, delay }).collect();
    put(pipeline, &puts)
}

/// Takes up to `most` due jobs of these pipelines.
pub fn claim(pipelines: &[i32], most: usize) -> Result<Vec<Job>> {
    Spi::connect_mut(|client| {
        let rows = client.update(
            CLAIM,
            None,
            &[
                pipelines.to_vec().into(),
                (most as i64).into(),
                LEASE.into(),
            ],
        )?;
        let mut jobs = Vec::new();
        for row in rows {
            let key = row.get::<Vec<String>>(2)?.unwrap_or_default();
            jobs.push(Job {
                row: RowKey {
                    pipeline: row.get::<i32>(1)?.unwrap_or(0),
                    key: Arc::from(key),
                },
                attempt: row.get::<i32>(3)?.unwrap_or(0).unsigned_abs(),
                stored: true,
                last_attempt_us: row.get::<i64>(4)?,
            });
        }
        Ok(jobs)
    })
}

/// Removes the rows of jobs that are done.
pub fn complete<'a>(pipeline: i32, rows: impl Iterator<Item = &'a RowKey>) -> Result<()> {
    by_key(COMPLETE, pipeline, rows)
}

/// Takes a lease on jobs that were written down while they are in flight, as a claim would have.
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

/// Time until the next job of these pipelines is due; `None` where there is none.
pub fn next_due(pipelines: &[i32]) -> Result<Option<Duration>> {
    let milliseconds =
        crate::catalog::names::select_one::<i64>(NEXT, &[pipelines.to_vec().into()])?;
    Ok(milliseconds.map(|milliseconds| Duration::from_millis(milliseconds.max(0) as u64)))
}

/// The leases on a pipeline's jobs: whoever runs it next takes them at once.
pub fn release(pipeline: i32) -> Result<()> {
    Spi::run_with_args(
        "UPDATE recsync.job SET leased_until = NULL WHERE pipeline_id = $1 AND leased_until IS NOT NULL",
        &[pipeline.into()],
    )?;
    Ok(())
}

/// The leases of a worker that is no more.
pub fn take_back_leases() -> Result<()> {
    Spi::run("UPDATE recsync.job SET leased_until = NULL WHERE leased_until IS NOT NULL")?;
    Ok(())
}

/// A key as a JSON array of text.
fn key_json(row: &RowKey) -> String {
    serde_json::Value::from(row.key.to_vec()).to_string()
}
