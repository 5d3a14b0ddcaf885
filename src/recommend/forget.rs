//! forget: a person leaves what is made of their interactions, the change log, and what was shown to them.
//!
//! It never touches a row of the interactions, which are the user's: it refuses while there are any, since what is made
//! of them would come back.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::time::Duration;

use super::lists::list_id::whose;
use super::shown;
use crate::capture::json::KEY_SETTINGS;
use crate::catalog::names::{literal, resolve, select_one};
use crate::catalog::recommender::{Recommender, by_id, find, models, require_owner, tables};
use crate::catalog::rights::{As, with_settings};
use crate::error::{Error, OrReport, Result};
use crate::observe::wait;

/// How long what was deleted may take to be gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// Changes that are looked at together.
const AT_ONCE: usize = 1_000;
/// Tables of the change log.
const LOGS: usize = 8;

/// A change in the log: its row, and its place in that, from 1.
#[derive(Clone)]
struct Change {
    transaction_id: String,
    sequence: i64,
    place: i64,
    /// The row before and after, as far as it is logged.
    rows: [String; 2],
}

#[pg_extern(sql = r#"
CREATE FUNCTION forget(name text, user_id text) RETURNS TABLE (interests bigint, factors bigint, log_changes bigint, shown bigint) LANGUAGE c VOLATILE STRICT ROWS 1 AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION forget(text, text) IS
'Erases a person from what is made of interactions, from the change log of their tables, and from what log_shown has noted. name: a recommender; user_id: the user, as text. First delete the person''s interactions, or give them another user, and commit: forget waits until that is counted. Returns how many vectors of interests, and of factors of a model, were removed, and how many changes in the log were emptied (key and records become {}), and how many showings were removed. The space that they took in the log is freed when that part of the log is, after recsync.log_retention. Errors: 42704 unknown recommender, 42501 for others than the owner of its items and recsync_admin, 55000 where there are interactions of the user yet, or the worker does not get there within 30 s, 25001 in a transaction that has changed a watched table, 25006 on a standby.';
"#)]
fn forget(
    name: &str,
    user_id: &str,
) -> TableIterator<
    'static,
    (
        name!(interests, i64),
        name!(factors, i64),
        name!(log_changes, i64),
        name!(shown, i64),
    ),
> {
    let counts = erase(name, user_id).or_report();
    TableIterator::once(counts)
}

fn erase(name: &str, user: &str) -> Result<(i64, i64, i64, i64)> {
    let recommender = find(name)?;
    require_owner(&recommender)?;
    if !wait::is_settled(&recommender.name, PATIENCE)? {
        return Err(still_there(&recommender, "changes are not counted yet"));
    }
    // SAFETY: a snapshot of now, since what was counted meanwhile is not in the statement's; popped below, or by an
    // ERROR's abort.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    let counts = erase_now(&recommender, user);
    // SAFETY: pops the snapshot pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    counts
}

fn still_there(recommender: &Recommender, reason: impl Into<String>) -> Error {
    Error::StillThere {
        name: recommender.name.clone(),
        reason: reason.into(),
    }
}

fn erase_now(recommender: &Recommender, user: &str) -> Result<(i64, i64, i64, i64)> {
    let (id, key) = (recommender.of, recommender.user_key()?);
    let (equals, kind) = (&key.equals, &key.type_name);
    let mut changes = 0;
    for member in recommender.members() {
        let member =
            by_id(member)?.ok_or_else(|| Error::NoSuchRecommender(recommender.name.clone()))?;
        let kept = format!(
            "SELECT pg_catalog.count(*) FROM {} e WHERE e.user_id {equals} $1::{kind}",
            tables::interactions(member.id)
        );
        let _as = As::owner(recommender.owner());
        let kept = select_one::<i64>(&kept, &[user.into()])?.unwrap_or(0);
        if kept > 0 {
            let rows = format!("{kept} rows of {}", member.interactions);
            return Err(still_there(recommender, rows));
        }
    }
    // The types may be the owner's domains.
    let removed = |table: String, column: &str| -> Result<i64> {
        let _as = As::owner(recommender.owner());
        if resolve(&table)?.is_none() {
            return Ok(0);
        }
        let sql = format!(
            "WITH gone AS (DELETE FROM {table} t WHERE t.{column} {equals} $1::{kind} RETURNING 1) SELECT pg_catalog.count(*) FROM gone"
        );
        Ok(Spi::get_one_with_args::<i64>(&sql, &[user.into()])?.unwrap_or(0))
    };
    let interests = removed(tables::interests(id), "user_id")?;
    let factors = removed(models::user_factors(id), "key")?;
    removed(tables::lists(id), "user_id")?; // gone with the interactions; for certain
    let written = {
        let _as = As::owner(recommender.owner());
        let written = format!("SELECT ($1::{kind})::text");
        select_one::<String>(&written, &[user.into()])?.unwrap_or_default()
    };
    for member in recommender.members() {
        if let Some(member) = by_id(member)? {
            changes += erase_from_log(&member, &written)?;
        }
    }
    let whose = whose(recommender, user)?;
    let _as = As::extension();
    let shown = shown::remove(id, Some(&whose))?;
    Ok((interests, factors, changes, shown))
}

/// Changes of the person's rows: those whose user is theirs by what is logged of the row, before or after.
fn erase_from_log(of: &Recommender, user: &str) -> Result<i64> {
    let mut erased = 0;
    for number in 0..LOGS {
        let log = format!("recsync.log_{number}");
        mentioning(&log, of.source_id, user, |candidates| {
            let theirs = theirs(of, user, &candidates)?;
            if !theirs.is_empty() {
                empty(&log, &theirs)?;
                erased += theirs.len() as i64;
            }
            Ok(())
        })?;
    }
    Ok(erased)
}

/// What has been dispatched and has the user's text somewhere in it, some at a time. As recsync's owner.
fn mentioning(
    log: &str,
    source_id: i32,
    user: &str,
    mut found: impl FnMut(Vec<Change>) -> Result<()>,
) -> Result<()> {
    // An element that is not there is a NULL, or one of JSON.
    let object = |column: &str| {
        format!(
            "CASE WHEN pg_catalog.json_typeof(c.{column}) = 'object' THEN c.{column}::jsonb ELSE '{{}}' END"
        )
    };
    let [key, old_key, old_record, record] =
        ["record_key", "old_key", "old_record", "record"].map(object);
    let sql = format!(
        "SELECT l.transaction_id::text, l.sequence, c.n, ({key} || {old_key} || {old_record})::text, ({key} || {record})::text
           FROM recsync.checkpoint k, {log} l
          CROSS JOIN LATERAL ROWS FROM (pg_catalog.json_array_elements(l.record_keys), pg_catalog.json_array_elements(l.old_keys),
                                        pg_catalog.json_array_elements(l.old_records), pg_catalog.json_array_elements(l.records))
                WITH ORDINALITY AS c (record_key, old_key, old_record, record, n)
          WHERE l.source_id = $1 AND pg_catalog.pg_visible_in_snapshot(l.transaction_id, k.snapshot)
            AND pg_catalog.strpos(pg_catalog.concat(c.record_key, c.old_key, c.old_record, c.record), $2) > 0"
    );
    // As it stands in JSON, without its quotes.
    let escaped = serde_json::Value::from(user).to_string();
    let escaped = escaped.get(1..escaped.len() - 1).unwrap_or_default();
    let _as = As::extension();
    Spi::connect(|client| {
        let mut cursor = client.open_cursor(sql.as_str(), &[source_id.into(), escaped.into()]);
        loop {
            let mut changes = Vec::new();
            for row in cursor.fetch(AT_ONCE as _)? {
                changes.push(Change {
                    transaction_id: row.get::<String>(1)?.unwrap_or_default(),
                    sequence: row.get::<i64>(2)?.unwrap_or_default(),
                    place: row.get::<i64>(3)?.unwrap_or_default(),
                    rows: [
                        row.get::<String>(4)?.unwrap_or_default(),
                        row.get::<String>(5)?.unwrap_or_default(),
                    ],
                });
            }
            let last = changes.len() < AT_ONCE;
            found(changes)?;
            if last {
                return Ok(());
            }
        }
    })
}

/// Those whose user it is. As the owner of the items, whose expression says so.
fn theirs(of: &Recommender, user: &str, changes: &[Change]) -> Result<Vec<Change>> {
    let key = of.user_key()?;
    let sql = format!(
        "SELECT DISTINCT g.i::int4
           FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) WITH ORDINALITY AS g (before, after, i)
          CROSS JOIN LATERAL (VALUES (g.before), (g.after)) AS r (record)
          CROSS JOIN LATERAL pg_catalog.jsonb_populate_record(NULL::{source}, r.record::jsonb) s
          WHERE (({expression})::{kind}) {equals} $3::{kind}",
        source = of.interactions,
        expression = of.user_expression,
        kind = key.type_name,
        equals = key.equals,
    );
    let mut theirs = Vec::new();
    for some in changes.chunks(AT_ONCE) {
        let column = |n: usize| -> Vec<String> {
            some.iter()
                .filter_map(|change| change.rows.get(n).cloned())
                .collect()
        };
        let _as = As::owner(of.owner());
        with_settings(KEY_SETTINGS, || {
            Spi::connect(|client| -> Result<()> {
                let arguments = [column(0).into(), column(1).into(), user.into()];
                for row in client.select(sql.as_str(), None, &arguments)? {
                    let number = row.get::<i32>(1)?.unwrap_or_default() as usize;
                    theirs.extend(some.get(number.wrapping_sub(1)).cloned());
                }
                Ok(())
            })
        })?;
    }
    Ok(theirs)
}

/// Nothing is left of these changes but that there were some. As recsync's owner.
fn empty(log: &str, changes: &[Change]) -> Result<()> {
    let emptied = |column: &str| {
        format!(
            "{column} = (SELECT pg_catalog.json_agg(CASE WHEN c.n = ANY (m.places) AND pg_catalog.json_typeof(c.v) = 'object' THEN {nothing}::json ELSE c.v END ORDER BY c.n)
                           FROM pg_catalog.json_array_elements(l.{column}) WITH ORDINALITY AS c (v, n))",
            nothing = literal("{}"),
        )
    };
    let columns = ["record_keys", "old_keys", "old_records", "records"].map(emptied);
    let sql = format!(
        "UPDATE {log} l SET {}
           FROM (SELECT v.transaction_id::xid8 AS transaction_id, v.sequence, pg_catalog.array_agg(v.place) AS places
                   FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::bigint[]), pg_catalog.unnest($3::bigint[])) AS v (transaction_id, sequence, place)
                  GROUP BY 1, 2) m
          WHERE l.transaction_id = m.transaction_id AND l.sequence = m.sequence",
        columns.join(", ")
    );
    let ids: Vec<String> = changes.iter().map(|c| c.transaction_id.clone()).collect();
    let sequences: Vec<i64> = changes.iter().map(|change| change.sequence).collect();
    let places: Vec<i64> = changes.iter().map(|change| change.place).collect();
    let _as = As::extension();
    Spi::run_with_args(&sql, &[ids.into(), sequences.into(), places.into()])?;
    Ok(())
}
