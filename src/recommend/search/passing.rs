//! Which of the rows that were found pass the pipeline's row_filter now: an expression of its owner's, and so theirs to run.
//!
//! It never runs it with the rights of whoever searches.

use pgrx::prelude::*;
use std::collections::HashSet;

use super::Found;
use crate::catalog::names::literal;
use crate::catalog::pipeline::Pipeline;
use crate::catalog::rights::As;
use crate::error::Result;

/// How many times as many rows are looked for where too few pass.
const MORE: usize = 4;

/// The first `k` rows that pass, of those that `find` gives, which is asked for so many; it gives fewer where there are no
/// more.
pub fn first(
    pipeline: &Pipeline,
    k: usize,
    find: impl Fn(usize) -> Result<Vec<Found>>,
) -> Result<Vec<Found>> {
    let Some(filter) = &pipeline.row_filter else {
        return find(k);
    };
    let mut most = k;
    loop {
        let found = find(most)?;
        let is_all = found.len() < most;
        let passing = passing(pipeline, filter, &found)?;
        let first = found
            .into_iter()
            .filter(|(item, ..)| passing.contains(item));
        let first: Vec<Found> = (1..)
            .zip(first.take(k))
            .map(|(rank, (item, score, _))| (item, score, rank))
            .collect();
        if first.len() == k || is_all {
            return Ok(first);
        }
        most = most.saturating_mul(MORE);
    }
}

/// Those of the rows that pass, by the snapshot that they were found in.
fn passing(pipeline: &Pipeline, filter: &str, found: &[Found]) -> Result<HashSet<String>> {
    let keys = pipeline.keys();
    let on = keys.iter().map(|key| {
        let given = match keys {
            [_] => "f.item".to_owned(),
            _ => format!("(f.item::jsonb ->> {})", literal(&key.name)),
        };
        format!("s.{} {} {given}::{}", key.column, key.equals, key.type_name)
    });
    let on: Vec<String> = on.collect();
    let sql = format!(
        "SELECT f.item FROM pg_catalog.unnest($1::text[]) AS f (item) JOIN {} s ON {} WHERE {filter}",
        pipeline.rows_of,
        on.join(" AND "),
    );
    let items: Vec<&str> = found.iter().map(|(item, ..)| item.as_str()).collect();
    let _as = As::owner(pipeline.owner());
    Spi::connect(|client| {
        let rows = client.select(sql.as_str(), None, &[items.into()])?;
        rows.map(|row| Ok(row.get::<String>(1)?.unwrap_or_default()))
            .collect()
    })
}
