//! How alike two items are: by the users that they have in common. How that is counted for one item, from the
//! interactions.
//!
//! It never counts by more than an item's last users: how alike a popular item's neighbours are is known from them.

use crate::catalog::recommender::{Recommender, tables};
use crate::error::Result;

/// Added to the cosine's divisor: two items that few users have in common are less alike than they look (shrinkage:
/// Ferrari Dacrema, Cremonesi, Jannach, RecSys 2019, "Are we really making much progress?").
const SHRINKAGE: f64 = 10.0;
/// Interactions with an item, the last ones, by whose users its neighbours are counted.
const LAST: usize = 200;

/// The items of user `u` that count: those of the last interactions whose weights come to more than nothing. Weights
/// are added as numeric: whether they come to more must not depend on their order.
pub fn set_of_user(r: &Recommender) -> Result<String> {
    Ok(format!(
        "SELECT h.item_id
           FROM (SELECT e.item_id, e.weight FROM {} e WHERE e.user_id {} u.user_id
                  ORDER BY e.at DESC, {} LIMIT {}) h
          GROUP BY h.item_id HAVING pg_catalog.sum(h.weight::numeric) > 0",
        r.interactions(),
        r.user_key()?.equals,
        r.latest_first(),
        r.history,
    ))
}

/// Of item `a`, the users of its last interactions. They stand for all of its users.
pub fn last_users(r: &Recommender) -> Result<String> {
    Ok(format!(
        "SELECT DISTINCT l.user_id
           FROM (SELECT e.user_id FROM {} e WHERE e.item_id {} a.item_id ORDER BY e.at DESC LIMIT {LAST}) l",
        r.interactions(),
        r.item_key()?.equals,
    ))
}

/// How alike two items are that have so many users in common, of so many and so many. While another table's rows are
/// read that are not counted yet, an item may have less than none: all are counted after that.
pub fn of(common: f64, one: f64, other: f64) -> f64 {
    common / ((one * other).max(0.0).sqrt() + SHRINKAGE)
}

/// Of item `a`, a row of what is known of each: all others that have users in common with it, `other_id`, and their
/// `likeness`: [`of`] as SQL.
pub fn counted(r: &Recommender) -> Result<String> {
    Ok(format!(
        "SELECT c.other_id, c.users / (pg_catalog.sqrt(GREATEST(a.users::float8 * b.users, 0)) + {SHRINKAGE}) AS likeness
           FROM (SELECT o.other_id, pg_catalog.count(*) * a.users / pg_catalog.max(y.looked_at)::float8 AS users
                   FROM (SELECT s.items, pg_catalog.count(*) OVER () AS looked_at
                           FROM ({last}) u
                          CROSS JOIN LATERAL (SELECT pg_catalog.array_agg(x.item_id) AS items, pg_catalog.bool_or(x.item_id {equals} a.item_id) AS has_it
                                                FROM ({set}) x) s
                          WHERE s.has_it) y
                  CROSS JOIN LATERAL pg_catalog.unnest(y.items) AS o (other_id)
                  WHERE NOT (o.other_id {equals} a.item_id)
                  GROUP BY o.other_id) c
           JOIN {items} b ON b.item_id {equals} c.other_id",
        last = last_users(r)?,
        items = tables::items(r.of),
        equals = r.item_key()?.equals,
        set = set_of_user(r)?,
    ))
}
