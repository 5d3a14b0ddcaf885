//! How many jobs wait: counted while they are few, estimated when they are many, so that who watches never reads millions
//! of rows.
//!
//! It never looks at whose jobs they are.

use pgrx::prelude::*;

use super::status::visible;
use crate::catalog::names::select_one;
use crate::catalog::rights::As;
use crate::error::{OrReport, Result};
use crate::statement::{Finds, Statement};

/// Jobs that are counted at a time, of all pipelines together: some milliseconds' worth. Each pipeline gets its share of
/// it, and of those that have more it is estimated how many.
const COUNTED: i64 = 10_000;

/// With the share as $1. What is more is estimated as PostgreSQL's planner does it, by the statistics of ANALYZE and the
/// table's size now; and since when the oldest waits by those that are due first. It is one descent of an index a
/// pipeline.
const COUNTS: &str = include_str!("jobs.sql");

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
    let share = COUNTED / pipelines.unwrap_or(0).max(1);
    // Millions of rows are never collected: what is read in an index's order ends where enough has been found.
    let counts = Statement::kept(COUNTS, Finds::InOrder);
    Spi::connect(|client| {
        let mut rows = Vec::new();
        for row in counts.select(client, &[share.into()])? {
            let id = row.get::<i32>(1)?.unwrap_or(0);
            if visible.contains(&id) {
                rows.push((id, row.get::<i64>(2)?.unwrap_or(0), row.get(3)?));
            }
        }
        Ok(rows)
    })
}
