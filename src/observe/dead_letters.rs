//! retry_dead_letters, purge_dead_letters: what was given up, tried again or forgotten.
//!
//! It never loses one by the way: a dead letter that is tried again is a job first.

use pgrx::prelude::*;

use crate::capture::wake;
use crate::catalog::pipeline;
use crate::catalog::rights::As;
use crate::error::{OrReport, Result};

const RETRY: &str = "\
WITH taken AS (DELETE FROM recsync.dead_letter_log WHERE pipeline_id = $1 AND ($2 IS NULL OR class = $2)
                  AND ($3 IS NULL OR failed_at < $3) RETURNING record_key),
     queued AS (INSERT INTO recsync.job (pipeline_id, record_key) SELECT $1, record_key FROM taken
                ON CONFLICT (pipeline_id, record_key) DO UPDATE SET attempt = 0, available_at = pg_catalog.now() RETURNING 1)
SELECT pg_catalog.count(*) FROM queued";

const PURGE: &str = "\
WITH gone AS (DELETE FROM recsync.dead_letter_log WHERE pipeline_id = $1 AND ($2 IS NULL OR failed_at < $2) RETURNING 1)
SELECT pg_catalog.count(*) FROM gone";

#[pg_extern(sql = r#"
CREATE FUNCTION retry_dead_letters(name text, class text DEFAULT NULL, before timestamptz DEFAULT NULL) RETURNS bigint LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION retry_dead_letters(text, text, timestamptz) IS
'Tries rows again that were given up, with all their attempts: those of a class (permanent, temporary, provider), those before a time, or all. Returns how many.';
"#)]
fn retry_dead_letters(
    name: Option<&str>,
    class: Option<&str>,
    before: Option<TimestampWithTimeZone>,
) -> i64 {
    (|| -> Result<i64> {
        let pipeline = pipeline::find(name.unwrap_or_default())?;
        pipeline::require_owner(&pipeline)?;
        wake::after_catalog_change();
        let _as = As::extension();
        let count = Spi::get_one_with_args::<i64>(
            RETRY,
            &[pipeline.id.into(), class.into(), before.into()],
        )?;
        Ok(count.unwrap_or(0))
    })()
    .or_report()
}

#[pg_extern(sql = r#"
CREATE FUNCTION purge_dead_letters(name text, before timestamptz DEFAULT NULL) RETURNS bigint LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION purge_dead_letters(text, timestamptz) IS
'Forgets rows that were given up, those before a time or all; they stay without a current vector until they change. Returns how many.';
"#)]
fn purge_dead_letters(name: Option<&str>, before: Option<TimestampWithTimeZone>) -> i64 {
    (|| -> Result<i64> {
        let pipeline = pipeline::find(name.unwrap_or_default())?;
        pipeline::require_owner(&pipeline)?;
        let _as = As::extension();
        let count = Spi::get_one_with_args::<i64>(PURGE, &[pipeline.id.into(), before.into()])?;
        Ok(count.unwrap_or(0))
    })()
    .or_report()
}
