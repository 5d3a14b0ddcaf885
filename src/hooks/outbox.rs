//! What hooks are to be told: written in the transaction that makes it true, read and deleted by the worker. One
//! statement a transition.
//!
//! It never writes anything where nobody listens, and never holds the text of a row. Who writes keeps a lock until its
//! transaction ends: it is the last thing that a transaction does.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::{Map, Value, json};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::event::{COLLABORATIVE, Event, USER};
use crate::catalog::names::own_relation;
use crate::catalog::rights::As;
use crate::error::{Error, Result};
use crate::statement::{Finds, Statement};

/// Keys in one delivery: of a long key, a body of some hundred kilobytes.
const MOST_KEYS: usize = 500;

/// This process has written something since it last looked.
static WRITTEN: AtomicBool = AtomicBool::new(false);

/// Who hears of event $1 of $2, a pipeline or a recommender, and what that is called. A hook's owner has to own what it
/// hears of.
const LISTENERS: &str = "\
SELECT h.id, t.name
  FROM (SELECT relation AS name, relation AS owned FROM recsync.pipeline WHERE id = $2
        UNION ALL SELECT name, items FROM recsync.recommender WHERE id = $2) t
  JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(t.owned)
  JOIN recsync.hook h ON h.event = $1 AND NOT h.overflowed AND (h.pipeline_id = $2 OR h.recommender_id = $2 OR h.pipeline_id IS NULL AND h.recommender_id IS NULL)
 WHERE pg_catalog.pg_has_role(pg_catalog.to_regrole(h.owner)::oid, c.relowner, 'USAGE')";

const WRITE: &str = "\
INSERT INTO recsync.delivery (hook_id, source, keys, data)
SELECT h.id, $2, k.keys::json, $4::json
  FROM pg_catalog.unnest($1::int4[]) AS h (id), pg_catalog.unnest($3::text[]) WITH ORDINALITY AS k (keys, n)
 ORDER BY k.n";

const READ: &str = "\
SELECT d.number, d.message_id::text, d.source, d.keys::text, d.data::text, d.attempt,
       GREATEST(extract(epoch FROM NULLIF(d.available_at, '-infinity') - pg_catalog.clock_timestamp()) * 1000, 0)::bigint,
       (extract(epoch FROM d.last_attempt_at) * 1000000)::bigint,
       pg_catalog.to_char(d.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')
  FROM recsync.delivery d WHERE d.hook_id = $1 AND d.number > $2 AND d.available_at < 'infinity'
 ORDER BY d.number LIMIT $3";

const DONE: &str = "DELETE FROM recsync.delivery WHERE hook_id = $1 AND number = $2";

const RETRY: &str = "\
UPDATE recsync.delivery SET attempt = $3, available_at = pg_catalog.clock_timestamp() + $4 * interval '1 ms', last_attempt_at = pg_catalog.clock_timestamp()
 WHERE hook_id = $1 AND number = $2";

const BURY: &str = "\
WITH given_up AS (UPDATE recsync.delivery SET attempt = $3, available_at = 'infinity', last_attempt_at = pg_catalog.clock_timestamp()
                   WHERE hook_id = $1 AND number = $2 RETURNING hook_id, message_id, attempt)
INSERT INTO recsync.dead_letter_log (pipeline_id, record_key, attempt, class, status, message)
SELECT hook_id, ARRAY[message_id::text], attempt, $4, $5, $6 FROM given_up
ON CONFLICT (pipeline_id, record_key) DO UPDATE
   SET attempt = excluded.attempt, class = excluded.class, status = excluded.status, message = excluded.message, failed_at = excluded.failed_at";

/// An event, for those who listen to `of`: a pipeline's number or a recommender's. The last thing in a transaction.
pub fn emit(event: Event, of: i32, keys: &[Value], data: Map<String, Value>) -> Result<()> {
    let _as = As::extension();
    let (hooks, source) = listeners(event, of)?;
    if hooks.is_empty() {
        return Ok(());
    }
    let parts: Vec<String> = match keys {
        [] => vec!["[]".to_owned()],
        keys => keys
            .chunks(MOST_KEYS)
            .map(|part| json!(part).to_string())
            .collect(),
    };
    hold_order()?;
    let data = Value::Object(data).to_string();
    update(
        WRITE,
        &[hooks.into(), source.into(), parts.into(), data.into()],
    )?;
    WRITTEN.store(true, SeqCst);
    Ok(())
}

/// Numbers are in the order of the commits: nobody else writes until this transaction ends.
pub fn hold_order() -> Result<()> {
    let sequence = own_relation(c"delivery_number")
        .ok_or_else(|| Error::Internal("recsync.delivery_number is missing".into()))?;
    // SAFETY: an ordinary lock of a sequence that is there, kept until the transaction ends. It conflicts with itself
    // and not with what nextval takes.
    unsafe { pg_sys::LockRelationOid(sequence, pg_sys::ShareUpdateExclusiveLock as _) };
    Ok(())
}

fn listeners(event: Event, of: i32) -> Result<(Vec<i32>, String)> {
    Spi::connect(|client| {
        let statement = Statement::kept(LISTENERS, Finds::ByKey);
        let (mut hooks, mut name) = (Vec::new(), String::new());
        for row in statement.select(client, &[event.as_str().into(), of.into()])? {
            hooks.extend(row.get::<i32>(1)?);
            name = row.get::<String>(2)?.unwrap_or_default();
        }
        Ok((hooks, name))
    })
}

/// Vectors of these rows of a pipeline are stored.
pub fn embedded<'a>(pipeline: i32, keys: impl Iterator<Item = &'a [String]>) -> Result<()> {
    let keys: Vec<Value> = keys.map(key).collect();
    match keys.is_empty() {
        true => Ok(()),
        false => emit(Event::Embedded, pipeline, &keys, Map::new()),
    }
}

/// Lists of these users are not those of now.
pub fn invalidated_users(recommender: i32, users: &[String]) -> Result<()> {
    let scopes: Vec<Value> = users
        .iter()
        .map(|user| json!(format!("{USER}{user}")))
        .collect();
    match scopes.is_empty() {
        true => Ok(()),
        false => emit(Event::Invalidated, recommender, &scopes, Map::new()),
    }
}

/// What is made of others' interactions is not that of now.
pub fn invalidated_neighbours(recommender: i32) -> Result<()> {
    emit(
        Event::Invalidated,
        recommender,
        &[json!(COLLABORATIVE)],
        Map::new(),
    )
}

/// A model of a recommender was trained (`generation`: none), or a pipeline's vectors are those of another generation.
pub fn generation(of: i32, model: &str, generation: Option<i32>) -> Result<()> {
    let data = json!({"model": model, "generation": generation});
    emit(Event::Generation, of, &[json!(model)], members(data))
}

/// Rows of a pipeline or recommender were given up.
pub fn dead_letters<'a>(
    of: i32,
    keys: impl Iterator<Item = &'a [String]>,
    class: &str,
    status: Option<u16>,
) -> Result<()> {
    let keys: Vec<Value> = keys.map(key).collect();
    let data = json!({"class": class, "status": status});
    match keys.is_empty() {
        true => Ok(()),
        false => emit(Event::DeadLetter, of, &keys, members(data)),
    }
}

/// So much of a server's budget is spent by now, among others by this pipeline.
pub fn budget(pipeline: i32, server: &str, spent: f64, budget: f64, currency: &str) -> Result<()> {
    let data = json!({"server": server, "spent": spent, "budget": budget, "currency": currency});
    emit(Event::Budget, pipeline, &[json!(server)], members(data))
}

fn members(data: Value) -> Map<String, Value> {
    match data {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

/// A key of one column is a text, one of several an array of texts.
fn key(key: &[String]) -> Value {
    match key {
        [one] => json!(one),
        columns => json!(columns),
    }
}

/// Whether this process has written something since it was last asked.
pub fn has_written() -> bool {
    WRITTEN.swap(false, SeqCst)
}

/// One that has not been told yet.
pub struct Stored {
    pub number: i64,
    pub message_id: String,
    pub source: String,
    pub keys: Vec<Value>,
    pub data: Map<String, Value>,
    pub attempt: u32,
    pub due_in: Duration,
    pub last_attempt_us: Option<i64>,
    /// RFC 3339, in UTC.
    pub created_at: String,
}

/// Those of a hook after a number, in their order.
pub fn read(hook: i32, after: i64, most: usize) -> Result<Vec<Stored>> {
    Spi::connect(|client| {
        let statement = Statement::kept(READ, Finds::InOrder);
        let mut read = Vec::new();
        for row in statement.select(client, &[hook.into(), after.into(), (most as i64).into()])? {
            let text = |column| Ok::<_, Error>(row.get::<String>(column)?.unwrap_or_default());
            read.push(Stored {
                number: row.get::<i64>(1)?.unwrap_or(0),
                message_id: text(2)?,
                source: text(3)?,
                keys: serde_json::from_str(&text(4)?).unwrap_or_default(),
                data: serde_json::from_str(&text(5)?).unwrap_or_default(),
                attempt: row.get::<i32>(6)?.unwrap_or(0).unsigned_abs(),
                due_in: Duration::from_millis(row.get::<i64>(7)?.unwrap_or(0).unsigned_abs()),
                last_attempt_us: row.get::<i64>(8)?,
                created_at: text(9)?,
            });
        }
        Ok(read)
    })
}

/// Told.
pub fn done(hook: i32, number: i64) -> Result<()> {
    update(DONE, &[hook.into(), number.into()])
}

/// Another time.
pub fn retry(hook: i32, number: i64, attempt: u32, delay: Duration) -> Result<()> {
    let delay = delay.as_millis() as i64;
    let arguments = [
        hook.into(),
        number.into(),
        (attempt as i32).into(),
        delay.into(),
    ];
    update(RETRY, &arguments)
}

/// Given up, with the failure's class, HTTP status and message.
pub fn bury(
    hook: i32,
    number: i64,
    attempt: u32,
    (class, status, message): (&str, Option<u16>, &str),
) -> Result<()> {
    let arguments = [
        hook.into(),
        number.into(),
        (attempt as i32).into(),
        class.into(),
        status.map(i32::from).into(),
        message.into(),
    ];
    update(BURY, &arguments)
}

fn update(sql: &str, arguments: &[DatumWithOid]) -> Result<()> {
    Spi::connect_mut(|client| {
        Statement::kept(sql, Finds::ByKey).update(client, arguments)?;
        Ok(())
    })
}

/// What is left of hooks that are no more.
pub fn sweep() -> Result<()> {
    Ok(Spi::run(
        "WITH gone AS (DELETE FROM recsync.delivery WHERE hook_id NOT IN (SELECT id FROM recsync.hook) RETURNING hook_id)
         DELETE FROM recsync.dead_letter_log WHERE pipeline_id IN (SELECT hook_id FROM gone)",
    )?)
}

/// Letters that were given up, tried again: those of a class, before a time, of these ids. How many.
pub fn retry_dead_letters(
    hook: i32,
    class: Option<&str>,
    before: Option<TimestampWithTimeZone>,
    ids: Option<Vec<String>>,
) -> Result<i64> {
    const AGAIN: &str = "\
WITH taken AS (DELETE FROM recsync.dead_letter_log WHERE pipeline_id = $1 AND ($2 IS NULL OR class = $2)
                  AND ($3 IS NULL OR failed_at < $3) AND ($4 IS NULL OR record_key[1] = ANY ($4)) RETURNING record_key[1] AS id),
     queued AS (UPDATE recsync.delivery d SET attempt = 0, available_at = pg_catalog.now(), last_attempt_at = NULL
                  FROM taken t WHERE d.hook_id = $1 AND d.message_id = t.id::uuid RETURNING 1)
SELECT pg_catalog.count(*) FROM queued";
    let arguments = [hook.into(), class.into(), before.into(), ids.into()];
    let count = Spi::get_one_with_args::<i64>(AGAIN, &arguments)?;
    Ok(count.unwrap_or(0))
}

/// Forgets letters that were given up, those before a time or all. How many.
pub fn purge_dead_letters(hook: i32, before: Option<TimestampWithTimeZone>) -> Result<i64> {
    const PURGE: &str = "\
WITH gone AS (DELETE FROM recsync.dead_letter_log WHERE pipeline_id = $1 AND ($2 IS NULL OR failed_at < $2) RETURNING record_key[1] AS id),
     letters AS (DELETE FROM recsync.delivery d USING gone g WHERE d.hook_id = $1 AND d.message_id = g.id::uuid RETURNING 1)
SELECT pg_catalog.count(*) FROM gone";
    let count = Spi::get_one_with_args::<i64>(PURGE, &[hook.into(), before.into()])?;
    Ok(count.unwrap_or(0))
}
