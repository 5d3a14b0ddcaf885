//! The ledger's tables: bills appended, and folded into days and months.
//!
//! A row is never updated with a store: `usage_log` is only appended to, and emptied by TRUNCATE when it has been folded. It
//! never queues for a lock: while somebody reads the ledger it is folded another time.

use pgrx::prelude::*;
use std::collections::HashMap;

use super::bill::Bills;
use super::month::Month;
use crate::catalog::names::select_one;
use crate::error::Result;
use crate::statement::Statement;

const APPEND: &str = "\
INSERT INTO recsync.usage_log (pipeline_id, server, model, price, currency, day, requests, queries, inputs, bytes, tokens, estimated_tokens,
                               coalesced, coalesced_tokens, unchanged, unchanged_tokens, known, known_tokens)
VALUES ($1, $2, $3, $4::numeric, $5, (pg_catalog.clock_timestamp() AT TIME ZONE 'UTC')::date, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)";

/// In the transaction that has written the rest.
const FOLD: &str = "\
INSERT INTO recsync.usage_day AS d SELECT * FROM recsync.usage_unfolded
ON CONFLICT (pipeline_id, server, model, currency, day) DO UPDATE
   SET requests = d.requests + excluded.requests, queries = d.queries + excluded.queries, inputs = d.inputs + excluded.inputs,
       bytes = d.bytes + excluded.bytes, tokens = d.tokens + excluded.tokens, estimated_tokens = d.estimated_tokens + excluded.estimated_tokens,
       cost = COALESCE(d.cost + excluded.cost, d.cost, excluded.cost),
       coalesced = d.coalesced + excluded.coalesced, coalesced_tokens = d.coalesced_tokens + excluded.coalesced_tokens,
       coalesced_cost = COALESCE(d.coalesced_cost + excluded.coalesced_cost, d.coalesced_cost, excluded.coalesced_cost),
       unchanged = d.unchanged + excluded.unchanged, unchanged_tokens = d.unchanged_tokens + excluded.unchanged_tokens,
       unchanged_cost = COALESCE(d.unchanged_cost + excluded.unchanged_cost, d.unchanged_cost, excluded.unchanged_cost),
       known = d.known + excluded.known, known_tokens = d.known_tokens + excluded.known_tokens,
       known_cost = COALESCE(d.known_cost + excluded.known_cost, d.known_cost, excluded.known_cost)";

/// The same, of the month: what is added here is what is added there.
const FOLD_MONTHS: &str = "\
INSERT INTO recsync.usage_month AS m
SELECT pg_catalog.date_trunc('month', day::timestamp)::date, pipeline_id, server, currency, pg_catalog.sum(tokens)::bigint, pg_catalog.sum(cost),
       pg_catalog.sum(coalesced_tokens + unchanged_tokens + known_tokens)::bigint, pg_catalog.sum(coalesced_cost + unchanged_cost + known_cost)
  FROM recsync.usage_unfolded GROUP BY 1, 2, 3, 4
ON CONFLICT (month, pipeline_id, server, currency) DO UPDATE
   SET tokens = m.tokens + excluded.tokens, cost = COALESCE(m.cost + excluded.cost, m.cost, excluded.cost),
       spared_tokens = m.spared_tokens + excluded.spared_tokens,
       spared_cost = COALESCE(m.spared_cost + excluded.spared_cost, m.spared_cost, excluded.spared_cost)";

/// Appends bills, in the caller's transaction. As recsync's owner.
pub fn append(bills: &Bills) -> Result<()> {
    thread_local! {
        static STATEMENT: Statement = Statement::new(APPEND);
    }
    for (payer, bill) in bills {
        let (sent, saved) = (&bill.sent, &bill.saved);
        let number = |number: u64| (number as i64).into();
        let arguments = [
            payer.account.into(),
            payer.server.as_str().into(),
            payer.model.as_str().into(),
            payer.price_per_million_tokens.as_deref().into(),
            payer.currency.as_str().into(),
            number(sent.requests),
            number(bill.queries),
            number(sent.inputs),
            number(sent.bytes),
            number(sent.tokens),
            number(sent.estimated),
            number(saved.coalesced.count),
            number(saved.coalesced.tokens),
            number(saved.unchanged.count),
            number(saved.unchanged.tokens),
            number(saved.known.count),
            number(saved.known.tokens),
        ];
        Spi::connect_mut(|client| {
            STATEMENT
                .with(|statement| statement.update(client, &arguments))
                .map(|_| ())
        })?;
    }
    Ok(())
}

/// Whether there is something to fold.
pub fn has_rows() -> Result<bool> {
    let found = select_one::<bool>("SELECT EXISTS (SELECT FROM recsync.usage_log)", &[])?;
    Ok(found == Some(true))
}

/// Folds what was appended into days and months. An error by NOWAIT where somebody reads or writes it: another time.
pub fn fold() -> Result<()> {
    Spi::run("LOCK TABLE recsync.usage_log IN ACCESS EXCLUSIVE MODE NOWAIT")?;
    Spi::run(FOLD)?;
    Spi::run(FOLD_MONTHS)?;
    Spi::run("TRUNCATE recsync.usage_log")?;
    Ok(())
}

/// The money of a month so far, by account and currency and by server and currency.
#[derive(Default)]
pub struct Spent {
    pub by_account: HashMap<(i32, String), f64>,
    pub by_server: HashMap<(String, String), f64>,
}

impl Spent {
    pub fn add(&mut self, account: i32, server: &str, currency: &str, cost: f64) {
        let of_account = (account, currency.to_owned());
        *self.by_account.entry(of_account).or_default() += cost;
        let of_server = (server.to_owned(), currency.to_owned());
        *self.by_server.entry(of_server).or_default() += cost;
    }

    /// What the ledger has of it.
    pub fn read(month: Month) -> Result<Spent> {
        const SPENT: &str = "\
SELECT pipeline_id, server, currency, pg_catalog.sum(cost)::float8 FROM recsync.ledger_month
 WHERE month >= $1::date AND cost IS NOT NULL GROUP BY pipeline_id, server, currency";
        let mut spent = Spent::default();
        Spi::connect(|client| -> Result<()> {
            for row in client.select(SPENT, None, &[month.first_day().into()])? {
                spent.add(
                    row.get::<i32>(1)?.unwrap_or(0),
                    &row.get::<String>(2)?.unwrap_or_default(),
                    &row.get::<String>(3)?.unwrap_or_default(),
                    row.get::<f64>(4)?.unwrap_or(0.0),
                );
            }
            Ok(())
        })?;
        Ok(spent)
    }
}
