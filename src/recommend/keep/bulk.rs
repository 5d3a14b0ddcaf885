//! What is kept of items, counted at once instead of change by change: the same numbers.
//!
//! It never counts into tables that hold something already.

use pgrx::prelude::*;

use super::{HEAT, share};
use crate::catalog::recommender::{Recommender, tables};
use crate::error::Result;
use crate::recommend::likeness;

/// Fills the empty table of items from the interactions that are kept. As the owner of the items.
pub fn count(r: &Recommender) -> Result<()> {
    let (interactions, items) = (r.interactions(), tables::items(r.of));
    Spi::run(&format!(
        "INSERT INTO {items} (item_id, users, interactions, heat)
         SELECT h.item_id, COALESCE(g.users, 0), h.interactions, h.heat
           FROM (SELECT w.item_id, pg_catalog.count(*) AS interactions, {HEAT} AS heat
                   FROM (SELECT c.item_id, c.share, pg_catalog.max(c.share) OVER (PARTITION BY c.item_id) AS most
                           FROM (SELECT e.item_id, {share} AS share FROM {interactions} e) c) w
                  GROUP BY w.item_id) h
           LEFT JOIN (SELECT x.item_id, pg_catalog.count(*) AS users
                        FROM (SELECT DISTINCT e.user_id FROM {interactions} e) u CROSS JOIN LATERAL ({set}) x
                       GROUP BY x.item_id) g ON g.item_id {equals} h.item_id",
        share = share(r),
        set = likeness::set_of_user(r)?,
        equals = r.item_key()?.equals,
    ))?;
    Ok(())
}
