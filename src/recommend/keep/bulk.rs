//! What is kept of items, counted at once instead of change by change: the same numbers.
//!
//! While rows that were there before are read, interactions are only written; then all is counted. It never counts while
//! somebody counts changes.

use pgrx::prelude::*;

use super::{HEAT, share};
use crate::catalog::names::select_one;
use crate::catalog::recommender::{Recommender, tables};
use crate::catalog::rights::{As, with_settings};
use crate::error::Result;
use crate::recommend::likeness;
use crate::recommend::train::knn;

/// Of so many interactions counting takes a tenth of a second or two.
const MANY: usize = 20_000;

/// Whether there are so many interactions that a process of its own is to count.
pub fn are_many(r: &Recommender) -> Result<bool> {
    let sql = format!(
        "SELECT pg_catalog.count(*) = {MANY} FROM (SELECT FROM {} LIMIT {MANY}) AS counted",
        r.interactions()
    );
    let _as = As::owner(r.owner());
    Ok(select_one::<bool>(&sql, &[])? == Some(true))
}

/// Counts what is known of all items in place of what was, and marks all lists. Whoever writes interactions of this
/// table waits meanwhile, and whoever counts changes of others: each change is either in this count or added to it.
pub fn count_anew(r: &Recommender) -> Result<()> {
    let items = tables::items(r.of);
    {
        let _as = As::owner(r.owner());
        Spi::run(&format!(
            "LOCK TABLE {} IN SHARE MODE; LOCK TABLE {items} IN SHARE ROW EXCLUSIVE MODE; DELETE FROM {items}",
            tables::interactions(r.id)
        ))?;
        with_settings(&[(c"jit", c"off")], || count(r))?;
    }
    knn::mark_all(r)
}

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
