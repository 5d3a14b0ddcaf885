//! Numbers that only the tables know, looked up for those who read shared memory: by the worker while somebody asks for
//! numbers, and by whoever asks in SQL.
//!
//! It never writes to a table, and never looks at a row's text.

use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::spi::SpiHeapTupleData;
use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;

use crate::error::{Error, Result};
use crate::shared::meters::now_us;
use crate::shared::money::Money;
use crate::shared::{Counters, Database, Shared};
use crate::statement::{Finds, Statement};

const OF_PIPELINES: &str = include_str!("gauges.sql");

/// How large the log is, and since when the oldest transaction runs (or waits for COMMIT PREPARED) that keeps dead rows
/// of this database, and what it has changed itself, from being worked off.
const OF_DATABASE: &str = "\
SELECT pg_catalog.current_database()::text,
       (SELECT pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid))::bigint FROM pg_catalog.pg_class c
         WHERE c.relnamespace = 'recsync'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^log_[0-7]$'),
       LEAST((SELECT pg_catalog.min(a.xact_start) FROM pg_catalog.pg_stat_activity a
               WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid()
                 AND (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL)),
             (SELECT pg_catalog.min(p.prepared) FROM pg_catalog.pg_prepared_xacts p WHERE p.database = pg_catalog.current_database()))";

/// What is paused, which is all that the tables have to say of whether all is well.
const PAUSES: &str = "\
SELECT p.id, CASE WHEN NOT p.paused THEN CASE WHEN g.stops THEN 3 ELSE 0 END WHEN p.paused_reason IS NULL THEN 1 ELSE 2 END
  FROM recsync.pipeline p
  LEFT JOIN recsync.budget_notice g ON g.pipeline_id = p.id AND g.month = pg_catalog.date_trunc('month', pg_catalog.clock_timestamp() AT TIME ZONE 'UTC')::date
UNION ALL
SELECT m.id, CASE WHEN NOT r.paused THEN 0 WHEN r.paused_reason IS NULL THEN 1 ELSE 2 END FROM recsync.member m JOIN recsync.recommender r ON r.id = m.recommender_id
UNION ALL
SELECT h.id, CASE WHEN NOT h.paused THEN 0 WHEN h.paused_reason IS NULL THEN 1 ELSE 2 END FROM recsync.hook h";

/// Looks at what is paused, and at nothing else.
pub fn look_at_pauses(shared: &Shared, database: &Database) -> Result<()> {
    let known = counters_of(shared, database);
    Spi::connect(|client| {
        for row in client.select(PAUSES, None, &[])? {
            if let Some(counters) = known.get(&row.get::<i32>(1)?.unwrap_or(0)) {
                let paused = row.get::<i32>(2)?.unwrap_or(0).unsigned_abs();
                shared.meters(counters).paused.store(paused, SeqCst);
            }
        }
        Ok(())
    })
}

/// Not looked for one by one: they may be a thousand.
fn counters_of<'a>(shared: &'a Shared, database: &Database) -> HashMap<i32, &'a Counters> {
    let oid = database.oid.load(SeqCst);
    let all = shared.counters.iter();
    all.filter(|counters| counters.database.load(SeqCst) == oid)
        .map(|counters| (counters.pipeline.load(SeqCst), counters))
        .collect()
}

/// Looks once, as recsync's owner. `make`: counters that are missing are made, and names are
/// written, both of which only the worker may do.
pub fn look(shared: &Shared, database: &Database, make: bool) -> Result<()> {
    let oid = pg_sys::Oid::from(database.oid.load(SeqCst));
    let known = counters_of(shared, database);
    Spi::connect(|client| -> Result<()> {
        let of_pipelines = Statement::kept(OF_PIPELINES, Finds::AsPlanned);
        for row in of_pipelines.select(client, &[])? {
            let id = row.get::<i32>(1)?.unwrap_or(0);
            let counters = match known.get(&id) {
                Some(counters) => Some(*counters),
                None if make => shared.counters_or_new(oid, id),
                None => None,
            };
            let Some(meters) = counters.map(|counters| shared.meters(counters)) else {
                continue;
            };
            let paused = row.get::<i32>(5)?.unwrap_or(0).unsigned_abs();
            meters.paused.store(paused, SeqCst);
            meters.dead.store(row.get::<i64>(6)?.unwrap_or(0), SeqCst);
            meters.jobs.store(row.get::<i64>(7)?.unwrap_or(0), SeqCst);
            meters.job_since_us.store(microseconds(row.get(8)?), SeqCst);
            meters.trained_us.store(microseconds(row.get(9)?), SeqCst);
            look_at_money(&meters.money, &row)?;
            if make {
                meters.name.set(row.get::<&str>(3)?.unwrap_or_default());
                meters.server.set(row.get::<&str>(4)?.unwrap_or_default());
                // Last: from here on it is shown.
                let kind = row.get::<i32>(2)?.unwrap_or(0).unsigned_abs();
                meters.kind.store(kind, SeqCst);
            }
        }
        let facts = &database.facts;
        let row = client.select(OF_DATABASE, Some(1), &[])?.first();
        if make {
            facts.name.set(row.get::<&str>(1)?.unwrap_or_default());
        }
        facts
            .log_bytes
            .store(row.get::<i64>(2)?.unwrap_or(0), SeqCst);
        facts.held_since_us.store(microseconds(row.get(3)?), SeqCst);
        facts.looked_us.store(now_us(), SeqCst);
        Ok(())
    })
}

/// Tokens and money of the month, and the budgets.
fn look_at_money(money: &Money, row: &SpiHeapTupleData) -> Result<()> {
    let count = |column| Ok::<_, Error>(row.get::<i64>(column)?.unwrap_or(0).unsigned_abs());
    let amount = |column| Ok::<_, Error>(row.get::<f64>(column)?.unwrap_or(0.0));
    money.currency.set(row.get::<&str>(10)?.unwrap_or_default());
    let month = &money.month;
    month.tokens.store(count(11)?, SeqCst);
    month.cost.set(amount(12)?);
    month.spared_tokens.store(count(13)?, SeqCst);
    month.spared_cost.set(amount(14)?);
    money.budget.set(row.get::<f64>(15)?);
    month.server_cost.set(amount(16)?);
    money.server_budget.set(row.get::<f64>(17)?);
    Ok(())
}

/// 0 where there is none.
fn microseconds(time: Option<TimestampWithTimeZone>) -> i64 {
    time.and_then(IntoDatum::into_datum)
        .map_or(0, |time| time.value() as i64)
}
