//! The lists of items' neighbours, kept: which of them are stale, and how they are counted anew.
//!
//! It never counts when an interaction comes: an item that has many is counted once for all of them, a moment later.

use pgrx::prelude::*;
use pgrx::spi::SpiClient;
use std::time::{Duration, Instant};

use crate::catalog::recommender::{Recommender, tables};
use crate::error::Result;
use crate::recommend::likeness;
use crate::statement::Statement;

/// Neighbours that are kept of each item.
pub const KEPT: usize = 100;
/// Lists that are written over those `n` of before.
pub const REPLACE: &str = "ON CONFLICT (item_id) DO UPDATE SET others = excluded.others, likeness = excluded.likeness
          WHERE n.others IS DISTINCT FROM excluded.others OR n.likeness IS DISTINCT FROM excluded.likeness";
/// Lists that are counted together: at first, at the most, and as many as take about this long.
const AT_FIRST: i64 = 4;
const MOST_AT_ONCE: i64 = 64;
const TIME: Duration = Duration::from_millis(20);

const BEGINNING: &str = "-infinity";

/// The statements of one recommender.
pub struct Neighbours {
    mark: Statement,
    /// Before anything else is read: whoever makes the tables anew begins with this one.
    lock: String,
    next: Statement,
    count: Statement,
    remove: Statement,
    done: Statement,
    give_back: String,
    /// No list that was marked before this is left to be counted.
    counted_up_to: String,
    at_once: i64,
}

/// The statement that counts the lists of items `a` of which `which` is true.
pub fn counting(r: &Recommender, which: &str) -> Result<String> {
    Ok(format!(
        "INSERT INTO {lists} AS n (item_id, others, likeness)
         SELECT a.item_id, COALESCE(l.others, '{{}}'), COALESCE(l.likeness, '{{}}')
           FROM {items} a
          CROSS JOIN LATERAL (SELECT pg_catalog.array_agg(k.other_id ORDER BY k.likeness DESC, k.other_id) AS others,
                                     pg_catalog.array_agg(k.likeness::float4 ORDER BY k.likeness DESC, k.other_id) AS likeness
                                FROM ({counted} ORDER BY likeness DESC, c.other_id LIMIT {KEPT}) k) l
          WHERE {which}
         {REPLACE}",
        items = tables::items(r.of),
        lists = tables::neighbours(r.of),
        counted = likeness::counted(r)?,
    ))
}

impl Neighbours {
    pub fn new(r: &Recommender) -> Result<Neighbours> {
        let item = r.item_key()?;
        let (kind, equals) = (&item.type_name, &item.equals);
        let (items, lists, stale) = (
            tables::items(r.of),
            tables::neighbours(r.of),
            tables::stale(r.of),
        );
        let given = format!("$1::text[]::{kind}[]");
        Ok(Neighbours {
            mark: Statement::by_key(format!(
                "INSERT INTO {stale} (item_id, since)
                 SELECT DISTINCT v::{kind}, pg_catalog.clock_timestamp() FROM pg_catalog.unnest($1::text[]) AS v
                     ON CONFLICT DO NOTHING"
            )),
            lock: format!(
                "LOCK TABLE {} IN ACCESS SHARE MODE",
                tables::interactions(r.of)
            ),
            // What was counted before has left dead entries behind.
            next: Statement::by_key(format!(
                "SELECT s.item_id::text, s.since::text FROM {stale} s WHERE NOT s.taken AND s.since >= $1::timestamptz ORDER BY s.since LIMIT $2"
            )),
            count: Statement::by_key(counting(r, &format!("a.item_id {equals} ANY ({given})"))?),
            remove: Statement::by_key(format!(
                "DELETE FROM {lists} n WHERE n.item_id {equals} ANY ({given})
                    AND NOT EXISTS (SELECT FROM {items} t WHERE t.item_id {equals} n.item_id)"
            )),
            done: Statement::by_key(format!(
                "DELETE FROM {stale} s WHERE s.item_id {equals} ANY ({given})"
            )),
            give_back: format!(
                "WITH back AS (DELETE FROM {stale} s WHERE s.taken RETURNING s.item_id, s.since)
                 INSERT INTO {stale} (item_id, since) SELECT back.item_id, back.since FROM back ON CONFLICT DO NOTHING"
            ),
            counted_up_to: BEGINNING.into(),
            at_once: AT_FIRST,
        })
    }

    /// These items' lists are to be counted anew.
    pub fn mark(&self, client: &mut SpiClient, items: Vec<String>) -> Result<()> {
        if !items.is_empty() {
            self.mark.update(client, &[items.into()])?;
        }
        Ok(())
    }

    /// Those that a process has taken that is no more are to be counted here. False when there were none.
    pub fn give_back(&mut self) -> Result<bool> {
        Spi::run(&self.lock)?;
        let back = Spi::connect_mut(|client| -> Result<usize> {
            Ok(client.update(self.give_back.as_str(), None, &[])?.len())
        })?;
        self.counted_up_to = BEGINNING.into();
        Ok(back > 0)
    }

    /// Counts some of those that are stale, first those that have been so the longest. False when there were none.
    pub fn count_some(&mut self) -> Result<bool> {
        let began = Instant::now();
        Spi::run(&self.lock)?;
        let (items, last) = Spi::connect_mut(|client| -> Result<_> {
            let (mut items, mut last) = self.stale(client, &self.counted_up_to)?;
            if items.is_empty() {
                // A clock that was put back has marked some before that.
                (items, last) = self.stale(client, BEGINNING)?;
            }
            if !items.is_empty() {
                // First of all they are nobody else's.
                for statement in [&self.done, &self.count, &self.remove] {
                    statement.update(client, &[items.clone().into()])?;
                }
            }
            Ok((items, last))
        })?;
        self.counted_up_to = last.unwrap_or_else(|| BEGINNING.into());
        let share = TIME.as_secs_f64() / began.elapsed().as_secs_f64().max(1e-6);
        let next = (items.len() as f64 * share) as i64;
        self.at_once = next.clamp(1, MOST_AT_ONCE);
        Ok(!items.is_empty())
    }

    /// The next ones, and since when the last of them has been stale.
    fn stale(&self, client: &SpiClient, from: &str) -> Result<(Vec<String>, Option<String>)> {
        let (mut items, mut last) = (Vec::new(), None);
        for row in self
            .next
            .select(client, &[from.into(), self.at_once.into()])?
        {
            items.extend(row.get::<String>(1)?);
            last = row.get::<String>(2)?;
        }
        Ok((items, last))
    }
}
