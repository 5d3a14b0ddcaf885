//! How far the indexes over vectors are, for recsync.generation.
//!
//! It never tells more of a build than how much of the table it has read.

use pgrx::prelude::*;

use super::status::visible;
use crate::catalog::names::Canonical;
use crate::catalog::rights::As;
use crate::error::{OrReport, Result};
use crate::statement::{Finds, Statement};

/// Of those tables that have one, or get one: whether it is there, and its build, which only recsync's own processes and
/// roles like pg_monitor see otherwise. Tables are found by name from their indexes: a look-up of each name takes longer.
const STATES: &str = "\
WITH build AS MATERIALIZED (
     SELECT relid, phase, blocks_done::float8 / NULLIF(blocks_total, 0) AS done
       FROM pg_catalog.pg_stat_progress_create_index WHERE datname = pg_catalog.current_database()
), ready AS MATERIALIZED (
     SELECT i.indrelid FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
       JOIN pg_catalog.pg_am m ON m.oid = x.relam AND m.amname = 'hnsw' WHERE i.indisvalid GROUP BY i.indrelid
), named AS MATERIALIZED (
     SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) AS vectors, r.indrelid IS NOT NULL AS valid, b.phase, b.done
       FROM ready r FULL JOIN build b ON b.relid = r.indrelid
       JOIN pg_catalog.pg_class c ON c.oid = COALESCE(r.indrelid, b.relid) JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
)
SELECT p.id, d.valid, d.phase, d.done FROM recsync.pipeline p JOIN named d ON d.vectors = p.vectors";

type Row = (i32, bool, Option<String>, Option<f64>);

#[pg_extern(sql = r#"
CREATE FUNCTION index_states() RETURNS TABLE (pipeline_id integer, valid boolean, phase text, done double precision) LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION index_states() IS 'Whether the table of each generation that the caller may see has a valid index over vectors, and the phase of its build with how much of the table that has read, from 0 to 1; for recsync.generation.';
"#)]
fn index_states() -> TableIterator<
    'static,
    (
        name!(pipeline_id, i32),
        name!(valid, bool),
        name!(phase, Option<String>),
        name!(done, Option<f64>),
    ),
> {
    TableIterator::new(states().or_report())
}

fn states() -> Result<Vec<Row>> {
    let visible = visible()?;
    let _as = As::extension();
    let _canonical = Canonical::begin();
    let states = Statement::kept(STATES, Finds::AsPlanned);
    Spi::connect(|client| {
        let mut rows = Vec::new();
        for row in states.select(client, &[])? {
            let id = row.get::<i32>(1)?.unwrap_or(0);
            if visible.contains(&id) {
                rows.push((
                    id,
                    row.get::<bool>(2)?.unwrap_or(false),
                    row.get(3)?,
                    row.get(4)?,
                ));
            }
        }
        Ok(rows)
    })
}
