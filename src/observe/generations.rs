//! How far the index over a generation's vectors is, for recsync.generation.
//!
//! It never tells more of a build than how much of the table it has read.

use pgrx::prelude::*;

use crate::catalog::names::select_kept;
use crate::catalog::rights::As;
use crate::error::{OrReport, Result};

/// Whether there is one, and its build, which only recsync's own processes and roles like pg_monitor see otherwise.
const PROGRESS: &str = "\
SELECT pg_catalog.jsonb_build_array(
         COALESCE((SELECT pg_catalog.bool_or(i.indisvalid) FROM pg_catalog.pg_index i
                     JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = x.relam
                    WHERE i.indrelid = t.oid AND m.amname = 'hnsw'), false),
         p.phase, p.blocks_done::float8 / NULLIF(p.blocks_total, 0))::text
  FROM (SELECT pg_catalog.to_regclass($1)::oid AS oid) t
  LEFT JOIN pg_catalog.pg_stat_progress_create_index p ON p.relid = t.oid AND p.datname = pg_catalog.current_database()
 LIMIT 1";

/// A valid index over vectors, or the phase of its build and how much of the table that has read.
#[pg_extern(volatile, strict)]
fn index_progress(
    relation: &str,
) -> TableIterator<
    'static,
    (
        name!(valid, bool),
        name!(phase, Option<String>),
        name!(done, Option<f64>),
    ),
> {
    TableIterator::once(progress(relation).or_report())
}

fn progress(relation: &str) -> Result<(bool, Option<String>, Option<f64>)> {
    let _as = As::extension();
    let found = select_kept::<String>(PROGRESS, &[relation.into()])?;
    let found = found.and_then(|json| serde_json::from_str(&json).ok());
    Ok(found.unwrap_or_default())
}

extension_sql!(
    r#"
COMMENT ON FUNCTION index_progress(text) IS 'Whether a table has a valid index over vectors, and how far its build is; for recsync.generation.';
"#,
    name = "index_progress_comment",
    requires = [index_progress]
);
