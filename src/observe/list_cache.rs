//! Lists that were ready when they were asked for, and those that were made then: what recsync.list_cache shows.
//!
//! It never knows of whom a list was.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::SeqCst;

use super::status::visible;
use crate::error::OrReport;
use crate::shared;

#[pg_extern(sql = r#"
CREATE FUNCTION list_counters() RETURNS TABLE (recommender_id integer, ready bigint, made bigint, warmed bigint) LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION list_counters() IS 'Numbers of lists in shared memory, of the recommenders that the caller may see; see recsync.list_cache.';
"#)]
fn list_counters() -> TableIterator<
    'static,
    (
        name!(recommender_id, i32),
        name!(ready, i64),
        name!(made, i64),
        name!(warmed, i64),
    ),
> {
    // SAFETY: this process's database.
    let database = unsafe { pg_sys::MyDatabaseId };
    let visible = visible().or_report();
    let counters = shared::shared()
        .into_iter()
        .flat_map(|shared| shared.counters.iter())
        .filter(|counters| counters.database.load(SeqCst) == database.to_u32());
    let rows: Vec<(i32, i64, i64, i64)> = counters
        .map(|counters| {
            (
                counters.pipeline.load(SeqCst),
                counters.lists_ready.load(SeqCst),
                counters.lists_made.load(SeqCst),
                counters.lists_warmed.load(SeqCst),
            )
        })
        .filter(|(id, ..)| visible.contains(id))
        .collect();
    TableIterator::new(rows)
}
