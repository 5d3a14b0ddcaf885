//! How many jobs wait: counted while they are few, estimated when they are many, so that who watches never reads millions
//! of rows.
//!
//! It never looks at whose jobs they are.

use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiHeapTupleData};
use std::cmp::Ordering;
use std::collections::HashMap;

use super::status::visible;
use crate::catalog::names::select_one;
use crate::catalog::rights::As;
use crate::error::{OrReport, Result};
use crate::statement::{Finds, Statement};

/// Jobs that are counted at a time, of all pipelines together: some milliseconds' worth. Each pipeline gets its share of
/// it, and of those that have more it is estimated how many.
const COUNTED: i64 = 10_000;
/// To find a pipeline's first job takes as long as to read so many more: that goes off its share.
const FOUND: i64 = 8;
/// What is always counted.
const LEAST: i64 = 1;

/// With the share as $1: of each pipeline's due jobs the first ones, and since when the oldest of these waits. It is one
/// descent of an index a pipeline.
const DUE: &str = include_str!("jobs.sql");

const LEASED: &str = "\
SELECT pipeline_id, pg_catalog.count(*), pg_catalog.min(created_at) FROM recsync.job WHERE leased_until IS NOT NULL GROUP BY pipeline_id";

/// What is more than was counted is estimated as PostgreSQL's planner does it, by the statistics of ANALYZE and the table's
/// size now.
const STATISTICS: &str = "\
SELECT CASE WHEN c.relpages > 0 THEN c.reltuples::float8 / c.relpages * (pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::float8) ELSE 0 END,
       s.n_distinct, s.most_common_vals::text::int4[], s.most_common_freqs
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_stats s ON s.schemaname = 'recsync' AND s.tablename = 'job' AND s.attname = 'pipeline_id'
 WHERE c.oid = 'recsync.job'::regclass";

type Row = (i32, i64, Option<TimestampWithTimeZone>);

#[pg_extern(sql = r#"
CREATE FUNCTION job_counts() RETURNS TABLE (pipeline_id integer, jobs bigint, oldest timestamptz) LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION job_counts() IS 'How many jobs a pipeline has and since when the oldest waits, of the pipelines that the caller may see and that have some. Up to 10,000 of all pipelines together are counted; of a pipeline that has more than its share of these it is estimated, by the statistics of the last ANALYZE. See recsync.status.';
"#)]
fn job_counts() -> TableIterator<
    'static,
    (
        name!(pipeline_id, i32),
        name!(jobs, i64),
        name!(oldest, Option<TimestampWithTimeZone>),
    ),
> {
    TableIterator::new(counts().or_report())
}

fn counts() -> Result<Vec<Row>> {
    let visible = visible()?;
    let _as = As::extension();
    let pipelines = select_one::<i64>("SELECT pg_catalog.count(*) FROM recsync.pipeline", &[])?;
    let share = (COUNTED / pipelines.unwrap_or(0).max(1) - FOUND).max(LEAST);
    // Millions of rows are never collected: what is read in an index's order ends where enough has been found.
    let due = Statement::kept(DUE, Finds::InOrder);
    Spi::connect(|client| {
        let mut leased = leased(client)?;
        let mut statistics = None;
        let mut rows = Vec::new();
        for row in due.select(client, &[share.into()])? {
            let id = row.get::<i32>(1)?.unwrap_or(0);
            let (seen, since) = (row.get::<i64>(2)?.unwrap_or(0), row.get(3)?);
            let leased = leased.remove(&id);
            if seen == 0 && leased.is_none() || !visible.contains(&id) {
                continue;
            }
            let (leased, leased_since) = leased.unwrap_or_default();
            let mut jobs = seen + leased;
            if seen > share {
                if statistics.is_none() {
                    statistics = Some(Statistics::read(client)?);
                }
                jobs = jobs.max(statistics.as_ref().map_or(0, |all| all.rows_of(id)));
            }
            let oldest = [since, leased_since].into_iter().flatten();
            rows.push((id, jobs, oldest.min_by(by_time)));
        }
        Ok(rows)
    })
}

/// By worker, which are few: how many, and since when the oldest waits.
fn leased(client: &SpiClient) -> Result<HashMap<i32, (i64, Option<TimestampWithTimeZone>)>> {
    let leased = Statement::kept(LEASED, Finds::ByKey).select(client, &[])?;
    let of = |row: SpiHeapTupleData| -> Result<_> {
        let jobs = row.get::<i64>(2)?.unwrap_or(0);
        Ok((row.get::<i32>(1)?.unwrap_or(0), (jobs, row.get(3)?)))
    };
    leased.map(of).collect()
}

fn by_time(one: &TimestampWithTimeZone, other: &TimestampWithTimeZone) -> Ordering {
    one.partial_cmp(other).unwrap_or(Ordering::Equal)
}

/// What ANALYZE has found: how many rows the table has now, and the shares of the pipelines.
#[derive(Default)]
struct Statistics {
    rows: f64,
    common: HashMap<i32, f64>,
    /// Of each other.
    rest: f64,
}

impl Statistics {
    fn read(client: &SpiClient) -> Result<Statistics> {
        let found = Statement::kept(STATISTICS, Finds::ByKey).select(client, &[])?;
        if found.is_empty() {
            return Ok(Statistics::default());
        }
        let row = found.first();
        let rows = row.get::<f64>(1)?.unwrap_or(0.0);
        let distinct = f64::from(row.get::<f32>(2)?.unwrap_or(0.0));
        let distinct = match distinct < 0.0 {
            true => -distinct * rows,
            false => distinct,
        };
        let ids = row.get::<Vec<i32>>(3)?.unwrap_or_default();
        let shares = row.get::<Vec<f32>>(4)?.unwrap_or_default();
        let common: HashMap<i32, f64> = ids
            .into_iter()
            .zip(shares.into_iter().map(f64::from))
            .collect();
        let left = 1.0 - common.values().sum::<f64>();
        let others = distinct - common.len() as f64;
        Ok(Statistics {
            rows,
            rest: left.max(0.0) / others.max(1.0),
            common,
        })
    }

    fn rows_of(&self, pipeline: i32) -> i64 {
        let share = self.common.get(&pipeline).copied().unwrap_or(self.rest);
        (share * self.rows).round() as i64
    }
}
