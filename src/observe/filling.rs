//! backfill: a look at the rows that are there, at all of them or at some; and what recsync.status says of one.
//!
//! It never looks at a row itself but to count: the worker does, in slices, behind all changes.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::SeqCst;

use super::status::visible;
use crate::capture::wake;
use crate::catalog::expression::{self, Wanted};
use crate::catalog::pipeline::{self, Pipeline};
use crate::catalog::rights::As;
use crate::dispatch::backfill::size;
use crate::error::{Error, OrReport, Result};
use crate::shared;

/// What is under way: whether it has not ended, and which rows it queues.
const UNDER_WAY: &str = "\
SELECT b.finished_at IS NULL, b.row_filter FROM recsync.backfill b WHERE b.pipeline_id = $1 FOR UPDATE";

/// The start. A look at some rows is none at all of them, which stays advised.
const BEGIN: &str = "\
INSERT INTO recsync.backfill AS b (pipeline_id, round, row_filter, rate) VALUES ($1, 1, $2, $3)
ON CONFLICT (pipeline_id) DO UPDATE
   SET after_key = NULL, done = 0, finished_at = NULL, round = b.round + 1, total = NULL, row_filter = excluded.row_filter, rate = excluded.rate,
       reason = NULL, advised = CASE WHEN excluded.row_filter IS NOT NULL THEN b.advised END";

#[pg_extern(sql = r#"
CREATE FUNCTION backfill(name text, row_filter text DEFAULT NULL, rate integer DEFAULT NULL) RETURNS bigint LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION backfill(text, text, integer) IS
'Has the worker look at all rows of a pipeline, or at those for which row_filter is true (an SQL expression over the row, as of create_pipeline), in slices in the order of the key, behind all changes; unchanged texts cost no call. rate: rows a second, instead of recsync.backfill_rate. It begins when the transaction has committed and goes on after a crash; recsync.status shows how far it is. A backfill that waits for recsync.resume is replaced. Returns how many rows that are: about, of all of them; counted, with row_filter, for which all rows are read. Errors: 42704, 42501 for others than the owner and recsync_admin, 55000 where the pipeline is paused or broken, or a look at all rows is under way that has these among them, 22023 for an impossible argument, 25006 on a standby.';
"#)]
fn backfill(name: Option<&str>, row_filter: Option<&str>, rate: Option<i32>) -> i64 {
    (|| {
        let name = name
            .ok_or_else(|| Error::argument("name", "it is missing", "Give the pipeline's name."))?;
        begin(name, row_filter, rate)
    })()
    .or_report()
}

fn begin(name: &str, row_filter: Option<&str>, rate: Option<i32>) -> Result<i64> {
    crate::catalog::install::require_primary()?;
    let pipeline = pipeline::find(name)?;
    pipeline::require_owner(&pipeline)?;
    if pipeline.paused {
        return Err(Error::Paused(pipeline.relation));
    }
    pipeline.require_whole()?;
    if rate.is_some_and(|rate| rate < 1) {
        return Err(Error::argument(
            "rate",
            "it is no number of rows a second",
            "Give 1 or more, or nothing for recsync.backfill_rate.",
        ));
    }
    let source = pipeline.source_oid();
    let filter = row_filter
        .map(|filter| expression::parse("row_filter", source, filter, Wanted::Boolean))
        .transpose()?
        .map(|filter| filter.sql);
    let (of, owner) = (&pipeline.rows_of, pipeline.owner());
    let rows = match &filter {
        Some(filter) => size::matching(of, filter, owner)?,
        None => size::rows(source, of, owner)?,
    };
    {
        let _as = As::extension();
        let filter = match (filter, under_way(&pipeline)?) {
            (Some(wanted), UnderWay::Some(filter)) if wanted != filter => {
                Some(format!("({filter}) OR ({wanted})"))
            }
            (Some(_), UnderWay::All) => return Err(Error::BackfillRuns(pipeline.relation)),
            (wanted, _) => wanted,
        };
        Spi::run_with_args(BEGIN, &[pipeline.id.into(), filter.into(), rate.into()])?;
        Spi::run_with_args(
            "UPDATE recsync.pipeline SET backfill_held = NULL WHERE id = $1 AND backfill_held IS NOT NULL",
            &[pipeline.id.into()],
        )?;
    }
    wake::after_catalog_change();
    Ok(rows)
}

/// Which rows are being looked at.
enum UnderWay {
    Nothing,
    All,
    Some(String),
}

/// Its row is locked: the worker moves on after this transaction.
fn under_way(pipeline: &Pipeline) -> Result<UnderWay> {
    Spi::connect_mut(|client| {
        let rows = client.update(UNDER_WAY, Some(1), &[pipeline.id.into()])?;
        if rows.is_empty() {
            return Ok(UnderWay::Nothing);
        }
        let row = rows.first();
        let (runs, filter) = (row.get::<bool>(1)?, row.get::<String>(2)?);
        Ok(match (runs, filter) {
            (Some(true), _) if pipeline.filling.held => UnderWay::Nothing,
            (Some(true), Some(filter)) => UnderWay::Some(filter),
            (Some(true), None) => UnderWay::All,
            _ => UnderWay::Nothing,
        })
    })
}

/// What this database's worker says of backfills.
#[pg_extern(volatile)]
fn filling() -> TableIterator<
    'static,
    (
        name!(pipeline_id, i32),
        name!(rate, Option<f64>),
        name!(waits_for, Option<String>),
    ),
> {
    // SAFETY: this process's database.
    let database = unsafe { pg_sys::MyDatabaseId };
    let visible = visible().or_report();
    let counters = shared::shared()
        .into_iter()
        .flat_map(|shared| &shared.counters);
    let rows: Vec<_> = counters
        .filter(|counters| counters.database.load(SeqCst) == database.to_u32())
        .map(|counters| (counters.pipeline.load(SeqCst), counters))
        .filter(|(pipeline, _)| visible.contains(pipeline))
        .map(|(pipeline, counters)| {
            let rate = counters.filled_per_1000_s.load(SeqCst);
            let waits = counters.waits_for_standby.load(SeqCst);
            (
                pipeline,
                (rate > 0).then(|| rate as f64 / 1_000.0),
                waits.then(|| {
                    "its backfill waits for a standby that is behind by more than recsync.max_replica_lag".to_owned()
                }),
            )
        })
        .collect();
    TableIterator::new(rows)
}

extension_sql!(
    r#"
COMMENT ON FUNCTION filling() IS 'How fast the backfills go that are under way, in rows a second, and what they wait for, of the pipelines that the caller may see; see recsync.status.';
"#,
    name = "filling_comment",
    requires = [filling]
);
