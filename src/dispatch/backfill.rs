//! The rows that were there before the pipeline: read in slices in the order of the key, behind all live changes.
//!
//! It never remembers a slice before its rows are done, so that a crash repeats it; unchanged rows cost no call.

// How fast it goes.
pub mod throttle;

// About how many rows there are.
pub mod size;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::capture::json::KEY_SETTINGS;
use crate::catalog::names::select_one;
use crate::catalog::pipeline::Key;
use crate::catalog::rights::{As, with_settings};
use crate::error::Result;

/// Rows a slice.
pub const SLICE: usize = 1_000;

/// Rows that are read in slices, and by whom.
pub struct Rows<'a> {
    /// As it stands in a FROM.
    pub of: &'a str,
    pub keys: &'a [Key],
    /// What a key's column is called there, quoted.
    pub column: fn(&Key) -> &str,
    pub owner: pg_sys::Oid,
}

/// The keys of the next slice after `after`.
pub fn slice(rows: &Rows, after: Option<&[String]>) -> Result<Vec<Vec<String>>> {
    let slice = slice_of(rows, after, SLICE, None)?;
    Ok(slice.into_iter().map(|(key, _)| key).collect())
}

/// The same of `most` rows, and of each whether it passes `filter`, an expression over a row `s`.
pub fn slice_of(
    rows: &Rows,
    after: Option<&[String]>,
    most: usize,
    filter: Option<&str>,
) -> Result<Vec<(Vec<String>, bool)>> {
    let keys = rows.keys;
    let columns: Vec<String> = keys
        .iter()
        .map(|key| format!("s.{}", (rows.column)(key)))
        .collect();
    let texts: Vec<String> = columns
        .iter()
        .map(|column| format!("{column}::text"))
        .collect();
    let order: Vec<String> = columns
        .iter()
        .map(|column| format!("{column} ASC"))
        .collect();
    let condition = if after.is_some() {
        format!("WHERE {}", after_key(keys, &columns, 1))
    } else {
        String::new()
    };
    let sql = format!(
        "SELECT ARRAY[{}], ({}) IS TRUE FROM {} s {condition} ORDER BY {} LIMIT {most}",
        texts.join(", "),
        filter.unwrap_or("true"),
        rows.of,
        order.join(", ")
    );
    let arguments: Vec<_> = after
        .unwrap_or_default()
        .iter()
        .map(|value| value.as_str().into())
        .collect();
    let _as = As::owner(rows.owner);
    // A row's key has one text, here and in the change log.
    with_settings(KEY_SETTINGS, || {
        Spi::connect(|client| {
            let mut slice = Vec::new();
            for row in client.select(sql.as_str(), None, &arguments)? {
                let key = row.get::<Vec<String>>(1)?.unwrap_or_default();
                slice.push((key, row.get::<bool>(2)? == Some(true)));
            }
            Ok(slice)
        })
    })
}

/// `(a, b) > ($1, $2)` by the operators of the primary key's index; `columns` are the keys' values, `first` is the
/// number of the first parameter.
pub fn after_key(keys: &[Key], columns: &[String], first: usize) -> String {
    let value = |index: usize| format!("${}::text::{}", index + first, keys[index].type_name);
    if keys.iter().all(|key| key.after == "OPERATOR(pg_catalog.>)") {
        let values: Vec<String> = (0..keys.len()).map(value).collect();
        return format!("ROW({}) > ROW({})", columns.join(", "), values.join(", "));
    }
    let alternatives: Vec<String> = (0..keys.len())
        .map(|last| {
            let mut terms: Vec<String> = (0..last)
                .map(|index| format!("{} {} {}", columns[index], keys[index].equals, value(index)))
                .collect();
            terms.push(format!(
                "{} {} {}",
                columns[last],
                keys[last].after,
                value(last)
            ));
            format!("({})", terms.join(" AND "))
        })
        .collect();
    format!("({})", alternatives.join(" OR "))
}

/// A slice is done: remembers where to go on, or that this was the last, unless all rows are to be looked at again
/// since. As recsync's owner.
pub fn advance(pipeline: i32, round: i32, up_to: Option<&[String]>, rows: i64) -> Result<()> {
    Spi::run_with_args(
        "UPDATE recsync.backfill SET after_key = COALESCE($3, after_key), done = done + $4,
                finished_at = CASE WHEN $3 IS NULL THEN pg_catalog.clock_timestamp() END WHERE pipeline_id = $1 AND round = $2",
        &[pipeline.into(), round.into(), up_to.map(<[String]>::to_vec).into(), rows.into()],
    )?;
    Ok(())
}

/// The start of a look at all rows: what `$1` names.
const RESTART: &str = "\
INSERT INTO recsync.backfill AS b (pipeline_id, round, reason) SELECT pg_catalog.unnest($1::int[]), 1, $2
ON CONFLICT (pipeline_id) DO UPDATE
   SET after_key = NULL, done = 0, finished_at = NULL, round = b.round + 1, total = NULL, row_filter = NULL, reason = excluded.reason, advised = NULL";

/// All rows of these pipelines are to be looked at again. As recsync's owner.
pub fn restart(pipelines: &[i32]) -> Result<()> {
    begin(pipelines, None)
}

/// The same; `reason`: why recsync does so by itself.
pub fn begin(pipelines: &[i32], reason: Option<&str>) -> Result<()> {
    Spi::run_with_args(RESTART, &[pipelines.to_vec().into(), reason.into()])?;
    Ok(())
}

/// All rows of these should be looked at: nobody has seen what became of them. The worker begins once it has done with what
/// it looks at now, unless `recsync.auto_verify` is off. Recommenders, to which that costs no call, begin at once. As
/// recsync's owner.
pub fn advise(declared: &[i32], reason: &str) -> Result<()> {
    const ADVISE: &str = "\
INSERT INTO recsync.backfill AS b (pipeline_id, finished_at, advised)
SELECT p.id, pg_catalog.clock_timestamp(), $2 FROM recsync.pipeline p WHERE p.id = ANY ($1::int[])
ON CONFLICT (pipeline_id) DO UPDATE SET advised = COALESCE(b.advised, excluded.advised)";
    const OTHERS: &str = "\
SELECT pg_catalog.array_agg(d.id) FROM pg_catalog.unnest($1::int[]) AS d (id) WHERE NOT EXISTS (SELECT FROM recsync.pipeline p WHERE p.id = d.id)";
    Spi::run_with_args(ADVISE, &[declared.to_vec().into(), reason.into()])?;
    match select_one::<Vec<i32>>(OTHERS, &[declared.to_vec().into()])? {
        Some(others) => restart(&others),
        None => Ok(()),
    }
}

/// What was advised is done: the worker begins, with the reason that was given. As recsync's owner.
pub fn follow_advice(pipeline: i32) -> Result<()> {
    const REASON: &str = "SELECT advised FROM recsync.backfill WHERE pipeline_id = $1";
    let reason = select_one::<String>(REASON, &[pipeline.into()])?;
    begin(&[pipeline], reason.as_deref())
}

/// Notes about how many rows it will have looked at. As recsync's owner.
pub fn expect(pipeline: i32, round: i32, total: i64) -> Result<()> {
    Spi::run_with_args(
        "UPDATE recsync.backfill SET total = $3 WHERE pipeline_id = $1 AND round = $2",
        &[pipeline.into(), round.into(), total.into()],
    )?;
    Ok(())
}

/// The backfill waits for `resume`; changes do not. As recsync's owner.
pub fn hold(pipeline: i32, reason: &str) -> Result<()> {
    Spi::run_with_args(
        "UPDATE recsync.pipeline SET backfill_held = $2 WHERE id = $1",
        &[pipeline.into(), reason.into()],
    )?;
    Ok(())
}
