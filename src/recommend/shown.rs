//! log_shown: which items of a list somebody has had before their eyes, where and when.
//!
//! A showing is one row, which names the list and not the user: whose it is says the list_id. It never looks at what has
//! come of it: that is asked by recsync.attribution.

use pgrx::JsonB;
use pgrx::datum::Uuid;
use pgrx::prelude::*;
use serde_json::Value;
use std::time::Duration;

// What has come of it.
mod attribution;

use super::lists::list_id::ListId;
use super::lists::statements::main_source;
use crate::catalog::recommender::functions::{Kind, require_execute};
use crate::catalog::recommender::{Recommender, by_id};
use crate::catalog::rights::As;
use crate::error::{Error, OrReport, Result};
use crate::statement::{Finds, Statement};

/// Items of one showing, as many as a list may have.
const MOST_ITEMS: usize = 10_000;
/// Characters of a placement.
const LONGEST_PLACEMENT: usize = 100;
/// Showings that are removed together.
const AT_ONCE: i64 = 10_000;

#[pg_extern(sql = r#"
CREATE FUNCTION log_shown(list_id uuid, placement text DEFAULT NULL, items text[] DEFAULT NULL, reasons jsonb DEFAULT NULL, shown_at timestamptz DEFAULT NULL) RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION log_shown(uuid, text, text[], jsonb, timestamptz) IS
'Notes what was shown of a list, for recsync.attribution: one INSERT. list_id: of the list, as recommend gave it; it says of which recommender and, without naming the user, whose the list is. placement: where, up to 100 characters; items: the keys of the items that were shown, as text, up to 10000; without them the showing is counted, but not what comes of it; an empty array notes nothing. reasons: their reasons as recommend gave them, a JSON array in the same order, by which the source of each is known. shown_at: when, now by default, and where it is later than that. Kept for recsync.shown_retention. Needs EXECUTE on <name>_recommend. Errors: 42501 without it, 42704 the recommender does not exist any more, 22023 not a list_id, or bad items, reasons or placement, 22P02 (or what the type says) an item that is no key of the items, 55000 where a table is gone, 25006 on a standby.';
"#)]
fn log_shown(
    list_id: Option<Uuid>,
    placement: Option<&str>,
    items: Option<Vec<Option<String>>>,
    reasons: Option<JsonB>,
    shown_at: Option<TimestampWithTimeZone>,
) {
    let reasons = reasons.map(|reasons| reasons.0);
    log(list_id, placement, items, reasons, shown_at).or_report();
}

fn log(
    list_id: Option<Uuid>,
    placement: Option<&str>,
    items: Option<Vec<Option<String>>>,
    reasons: Option<Value>,
    shown_at: Option<TimestampWithTimeZone>,
) -> Result<()> {
    const LOG: &str = "\
INSERT INTO recsync.shown_log (recommender_id, shown_at, list_id, placement, items, sources)
VALUES ($1, LEAST($2, pg_catalog.now()), $3, $4, $5, $6)";
    thread_local! {
        static STATEMENT: Statement = Statement::new(LOG);
    }
    crate::catalog::install::require_primary()?;
    let list = list_id.and_then(|id| ListId::read(id.as_bytes()));
    let list = list.ok_or_else(|| {
        let hint = "Give the list_id of a row that recommend, or recommend_batch, has returned.";
        Error::argument("list_id", "it is not that of a recommender's list", hint)
    })?;
    let number = list.recommender();
    let recommender = by_id(number)?.filter(|found| found.id == found.of);
    let recommender = recommender.ok_or_else(|| Error::NoSuchRecommender(number.to_string()))?;
    require_execute(&recommender, Kind::Recommend)?;
    if placement.is_some_and(|placement| placement.chars().count() > LONGEST_PLACEMENT) {
        return Err(Error::argument(
            "placement",
            format!("it is longer than {LONGEST_PLACEMENT} characters"),
            "Name the place in a word or two, for example 'home' or 'cart'.",
        ));
    }
    let sources = sources_of(reasons, items.as_deref())?;
    let items = items.map(|items| keys(&recommender, items)).transpose()?;
    if items.as_deref().is_some_and(<[String]>::is_empty) {
        return Ok(());
    }
    let _as = As::extension();
    Spi::connect_mut(|client| {
        let arguments = [
            number.into(),
            shown_at.into(),
            list.uuid().into(),
            placement.into(),
            items.into(),
            sources.into(),
        ];
        STATEMENT.with(|statement| statement.update(client, &arguments).map(|_| ()))
    })
}

/// The main source of each item.
fn sources_of(
    reasons: Option<Value>,
    items: Option<&[Option<String>]>,
) -> Result<Option<Vec<Option<&'static str>>>> {
    let Some(reasons) = reasons else {
        return Ok(None);
    };
    let wrong = |reason: String| {
        let hint = "Give the reasons of the items that were shown as a JSON array, in the order of items: jsonb_agg(reason ORDER BY rank).";
        Error::argument("reasons", reason, hint)
    };
    let Value::Array(reasons) = reasons else {
        return Err(wrong("it is not a JSON array".into()));
    };
    let shown = items.map_or(0, <[_]>::len);
    if reasons.len() != shown {
        let reason = format!("there are {} of them for {shown} items", reasons.len());
        return Err(wrong(reason));
    }
    Ok(Some(reasons.iter().map(main_source).collect()))
}

/// The keys as PostgreSQL writes them, by which interactions find them. As the owner of the items, whose type it may be.
fn keys(recommender: &Recommender, items: Vec<Option<String>>) -> Result<Vec<String>> {
    let wrong = |reason: &str| {
        let hint = "Give the keys of the items that were shown as text, 10000 at the most.";
        Err(Error::argument("items", reason, hint))
    };
    if items.len() > MOST_ITEMS {
        return wrong("there are too many");
    }
    let Some(items) = items.into_iter().collect::<Option<Vec<String>>>() else {
        return wrong("one of them is NULL");
    };
    let kind = &recommender.item_key()?.type_name;
    let sql = format!(
        "SELECT pg_catalog.array_agg((g.given::{kind})::text ORDER BY g.n) FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS g (given, n)"
    );
    let _as = As::owner(recommender.owner());
    Spi::connect(|client| {
        let statement = Statement::kept(&sql, Finds::ByKey);
        let rows = statement.select(client, &[items.into()])?;
        let row = rows.into_iter().next();
        let keys = row.map(|row| row.get::<Vec<String>>(1)).transpose()?;
        Ok(keys.flatten().unwrap_or_default())
    })
}

/// Removes some showings that are older than `retention`; true when there may be more. As recsync's owner.
pub fn sweep(retention: Duration) -> Result<bool> {
    const OLD: &str = "SELECT true FROM recsync.shown_log WHERE shown_at < pg_catalog.clock_timestamp() - $1 * interval '1 second' ORDER BY shown_at, number LIMIT 1";
    const SWEEP: &str = "\
WITH old AS MATERIALIZED (
       SELECT l.shown_at, l.number FROM recsync.shown_log l WHERE l.shown_at < pg_catalog.clock_timestamp() - $1 * interval '1 second'
        ORDER BY l.shown_at, l.number LIMIT $2
     ), gone AS (DELETE FROM recsync.shown_log l USING old o WHERE l.shown_at = o.shown_at AND l.number = o.number RETURNING 1)
SELECT pg_catalog.count(*) FROM gone";
    thread_local! {
        static STATEMENTS: [Statement; 2] = [Statement::by_key(OLD), Statement::by_key(SWEEP)];
    }
    let seconds = retention.as_secs_f64();
    STATEMENTS.with(|[old, sweep]| {
        // A look takes no transaction id.
        if Spi::connect(|client| Ok::<_, Error>(old.select(client, &[seconds.into()])?.is_empty()))?
        {
            return Ok(false);
        }
        Spi::connect_mut(|client| {
            let rows = sweep.update(client, &[seconds.into(), AT_ONCE.into()])?;
            let row = rows.into_iter().next();
            let gone = row.map(|row| row.get::<i64>(1)).transpose()?;
            Ok(gone.flatten().unwrap_or(0) >= AT_ONCE)
        })
    })
}

/// Removes those of a recommender; of lists of the user of that hash only, where there is one. As recsync's owner.
pub fn remove(recommender: i32, whose: Option<&[u8]>) -> Result<i64> {
    let sql = format!(
        "WITH gone AS (DELETE FROM recsync.shown_log WHERE recommender_id = $1 AND ($2 IS NULL OR {} = $2) RETURNING 1) SELECT pg_catalog.count(*) FROM gone",
        super::lists::list_id::whose_of("list_id")
    );
    let arguments = [recommender.into(), whose.map(<[u8]>::to_vec).into()];
    Ok(Spi::get_one_with_args::<i64>(&sql, &arguments)?.unwrap_or(0))
}
