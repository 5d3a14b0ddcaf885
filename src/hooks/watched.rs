//! Items that are watched while a hook hears which lists are old: whoever keeps lists elsewhere has to learn that an item
//! has gone. Lists that are served here are asked of the live rows.
//!
//! It never watches items of which nobody hears, and never says which item it was.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::event::Event;
use super::hook::Hook;
use super::outbox;
use crate::catalog::expression::{Wanted, parse_stored};
use crate::catalog::names::select_one;
use crate::catalog::recommender::{self, Recommender};
use crate::catalog::rights::As;
use crate::catalog::watch::{describe_source, lock_in_tries, refresh, release, table_owner, watch};
use crate::error::Result;

/// Whether a hook hears of recommender `$1`, whose items belong to `$2`.
const IS_HEARD: &str = "\
SELECT EXISTS (SELECT FROM recsync.hook h WHERE h.event = 'invalidated'
   AND (h.recommender_id = $1 OR h.recommender_id IS NULL AND pg_catalog.pg_has_role(pg_catalog.to_regrole(h.owner)::oid, $2::oid, 'USAGE')))";

const WRITE: &str = "\
INSERT INTO recsync.watched_items (recommender_id, source_id, used_columns) VALUES ($1, $2, $3)
ON CONFLICT (recommender_id) DO UPDATE SET source_id = excluded.source_id, used_columns = excluded.used_columns";

const FORGET: &str = "\
WITH gone AS (DELETE FROM recsync.watched_items WHERE recommender_id = $1 RETURNING source_id)
SELECT pg_catalog.array_agg(s.id::text), pg_catalog.array_agg(s.relation) FROM gone g JOIN recsync.source s ON s.id = g.source_id";

/// A hook has come or gone: the items of what it hears of.
pub fn follow(hook: &Hook) -> Result<()> {
    if hook.event() != Event::Invalidated {
        return Ok(());
    }
    let all = {
        let _as = As::extension();
        recommender::load_all()?
    };
    let heard = all
        .iter()
        .filter(|r| r.id == r.of && hook.hears_recommender().is_none_or(|heard| heard == r.id));
    heard.into_iter().try_for_each(settle)
}

/// The items of a recommender are watched where a hook hears of it, for what its `eligible` uses.
pub fn settle(r: &Recommender) -> Result<()> {
    let items = r.items_oid();
    let is_heard = items != pg_sys::InvalidOid && {
        let _as = As::extension();
        select_one::<bool>(IS_HEARD, &[r.id.into(), r.owner().into()])? == Some(true)
    };
    if !is_heard {
        return forget(r.id);
    }
    let used = parse_stored("eligible", items, &r.eligible, Wanted::Boolean)?.columns;
    if known(r.id)?.as_ref() == Some(&used) {
        return Ok(());
    }
    let table = {
        let _as = As::maker(r.owner());
        describe_source(items, &r.items)?
    };
    lock_in_tries(items, &r.items, pg_sys::ShareRowExclusiveLock)?;
    let source = watch(items, &r.items, &table)?;
    {
        let _as = As::extension();
        Spi::run_with_args(WRITE, &[r.id.into(), source.into(), used.into()])?;
    }
    refresh(items, &r.items, source, table.owner)
}

fn known(recommender: i32) -> Result<Option<Vec<String>>> {
    let _as = As::extension();
    select_one::<Vec<String>>(
        "SELECT used_columns FROM recsync.watched_items WHERE recommender_id = $1",
        &[recommender.into()],
    )
}

/// They are watched no more, and the triggers go where nothing else needs them.
pub fn forget(recommender: i32) -> Result<()> {
    let (sources, names) = {
        let _as = As::extension();
        Spi::connect_mut(|client| -> Result<_> {
            let rows = client.update(FORGET, Some(1), &[recommender.into()])?;
            let row = rows.first();
            let texts =
                |column| -> Result<_> { Ok(row.get::<Vec<String>>(column)?.unwrap_or_default()) };
            Ok((texts(1)?, texts(2)?))
        })?
    };
    for (source, name) in sources.iter().zip(&names) {
        let oid = crate::catalog::names::resolve(name)?.unwrap_or(pg_sys::InvalidOid);
        let source = source.parse().unwrap_or_default();
        release(oid, name, source, table_owner(oid)?)?;
    }
    Ok(())
}

/// Whether one of these items may be listed no more, as their owner sees it.
pub fn has_gone(r: &Recommender, items: &[String]) -> Result<bool> {
    let (rows, key) = (r.items_rows.as_deref().unwrap_or_default(), r.item_key()?);
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.unnest($1::text[]) AS k (item) JOIN {rows} s ON s.{} {} k.item::{} WHERE ({}) IS NOT TRUE)",
        key.column, key.equals, key.type_name, r.eligible
    );
    let _as = As::owner(r.owner());
    Ok(select_one::<bool>(&sql, &[items.to_vec().into()])? == Some(true))
}

/// Lists of a recommender are made otherwise from this transaction's commit on: the worker tells it.
pub fn note_altered(recommender: i32) -> Result<()> {
    let _as = As::extension();
    Ok(Spi::run_with_args(
        "UPDATE recsync.watched_items SET altered = true WHERE recommender_id = $1",
        &[recommender.into()],
    )?)
}

/// The recommenders whose items are watched, with the number of their table's source. What has been altered is told.
pub fn load() -> Result<Vec<(i32, i32)>> {
    const LOAD: &str = "SELECT source_id, recommender_id, altered FROM recsync.watched_items";
    const TAKE: &str = "\
WITH taken AS (SELECT recommender_id FROM recsync.watched_items WHERE altered FOR UPDATE SKIP LOCKED),
     told AS (UPDATE recsync.watched_items w SET altered = false FROM taken t WHERE w.recommender_id = t.recommender_id RETURNING w.recommender_id)
SELECT pg_catalog.array_agg(recommender_id) FROM told";
    let (mut watched, mut some_altered) = (Vec::new(), false);
    Spi::connect(|client| -> Result<()> {
        for row in client.select(LOAD, None, &[])? {
            watched.extend(row.get::<i32>(1)?.zip(row.get::<i32>(2)?));
            some_altered |= row.get::<bool>(3)? == Some(true);
        }
        Ok(())
    })?;
    if some_altered {
        let altered = Spi::get_one::<Vec<i32>>(TAKE)?.unwrap_or_default();
        altered
            .into_iter()
            .try_for_each(outbox::invalidated_neighbours)?;
    }
    Ok(watched)
}
