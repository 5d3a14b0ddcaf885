//! How much is kept for a hook that cannot be told: `recsync.hook_limit` letters, those that were given up among them.
//!
//! It never takes back a letter. A hook that has so many is paused until somebody resumes it, and nothing more is
//! written for it meanwhile.

use pgrx::prelude::*;

use super::outbox;
use crate::error::Result;

/// Hooks that have so many, found by a look at no more letters than that.
const FULL: &str = "\
SELECT pg_catalog.array_agg(h.id) FROM recsync.hook h
 WHERE NOT h.overflowed AND (SELECT pg_catalog.count(*) FROM (SELECT FROM recsync.delivery d WHERE d.hook_id = h.id LIMIT $1) d) >= $1";

/// A letter to one that hears which lists are old: what it will not hear of is in here.
const ALL_ARE_OLD: &str = "\
INSERT INTO recsync.delivery (hook_id, source, keys, data)
SELECT h.id, r.name, '[\"user_recs:*\", \"collab_recs:*\"]', '{}'
  FROM recsync.hook h JOIN recsync.recommender r ON h.recommender_id IS NULL OR h.recommender_id = r.id
  JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(r.items)
 WHERE h.id = ANY ($1) AND h.event = 'invalidated'
   AND pg_catalog.pg_has_role(pg_catalog.to_regrole(h.owner)::oid, c.relowner, 'USAGE')
 ORDER BY h.id, r.id";

const STOP: &str = "\
WITH stopped AS (UPDATE recsync.hook SET overflowed = true, paused = true, paused_by_server = false, paused_reason = $2
                  WHERE id = ANY ($1) RETURNING name)
SELECT pg_catalog.array_agg(name) FROM stopped";

/// Stops those for which `most` letters are kept. Their numbers and names.
pub fn stop_full(most: usize) -> Result<(Vec<i32>, Vec<String>)> {
    let full = crate::catalog::names::select_one::<Vec<i32>>(FULL, &[(most as i64).into()])?;
    let Some(full) = full else {
        return Ok((Vec::new(), Vec::new()));
    };
    outbox::hold_order()?;
    Spi::run_with_args(ALL_ARE_OLD, &[full.clone().into()])?;
    let reason = format!(
        "{most} letters have not arrived (recsync.hook_limit), and nothing more is written for it: what happens until recsync.resume is not told"
    );
    let names = Spi::get_one_with_args::<Vec<String>>(STOP, &[full.clone().into(), reason.into()])?;
    Ok((full, names.unwrap_or_default()))
}
