//! The rows that were there before the pipeline: read in slices in the order of the key, behind all live changes.
//!
//! It never remembers a slice before its rows are done, so that a crash repeats it; unchanged rows cost no call.

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::capture::json::KEY_SETTINGS;
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
        "SELECT ARRAY[{}] FROM {} s {condition} ORDER BY {} LIMIT {SLICE}",
        texts.join(", "),
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
                slice.push(row.get::<Vec<String>>(1)?.unwrap_or_default());
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

/// All rows of these pipelines are to be looked at again. As recsync's owner.
pub fn restart(pipelines: &[i32]) -> Result<()> {
    Spi::run_with_args(
        "INSERT INTO recsync.backfill AS b (pipeline_id, round) SELECT pg_catalog.unnest($1::int[]), 1
         ON CONFLICT (pipeline_id) DO UPDATE SET after_key = NULL, done = 0, finished_at = NULL, round = b.round + 1",
        &[pipelines.to_vec().into()],
    )?;
    Ok(())
}
