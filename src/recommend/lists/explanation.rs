//! Why an item is listed: what each source added to its score, its boost, and which of the user's items it is a
//! neighbour of.
//!
//! It never shows an interaction that the caller may not read.

use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

use super::sieve::Candidate;
use super::statements;
use crate::capture::json::KEY_SETTINGS;
use crate::catalog::names::select_one;
use crate::catalog::recommender::{Recommender, by_id};
use crate::catalog::rights::{As, with_settings};
use crate::dispatch::render::{given, keyed, names};
use crate::error::Result;

/// An item of the user's or the session's of which another is a neighbour.
struct Cause {
    /// The other's place, from 0.
    of: usize,
    item: String,
    weight: f64,
    likeness: f64,
    /// Of which table the interaction is, and its key; `None`: the caller has named the item.
    row: Option<(i32, Vec<String>)>,
}

/// Adds to the reasons of what was found.
pub fn explain(
    recommender: &Recommender,
    user: Option<&str>,
    session: &[String],
    found: &mut [Candidate],
) -> Result<()> {
    for candidate in found.iter_mut() {
        let reason = candidate.reason.as_object_mut();
        let Some(reason) = reason else { continue };
        let scores: Map<String, Value> = reason
            .iter()
            .filter_map(|(source, place)| {
                let share = statements::share(source, place.as_u64()?)?;
                Some((source.clone(), json!(share)))
            })
            .collect();
        reason.insert("scores".into(), Value::Object(scores));
    }
    let causes = causes(recommender, user, session, found)?;
    let readable = readable(recommender, &causes)?;
    for (n, cause) in causes.iter().enumerate() {
        let candidate = found.get_mut(cause.of);
        let reason = candidate.and_then(|candidate| candidate.reason.as_object_mut());
        let (Some(reason), true) = (reason, cause.row.is_none() || readable.contains(&n)) else {
            continue;
        };
        let because = reason.entry("because").or_insert_with(|| json!([]));
        if let Some(because) = because.as_array_mut() {
            because.push(
                json!({"item": cause.item, "weight": cause.weight, "likeness": cause.likeness}),
            );
        }
    }
    Ok(())
}

/// As the owner of the items. The boosts are put into the reasons.
fn causes(
    recommender: &Recommender,
    user: Option<&str>,
    session: &[String],
    found: &mut [Candidate],
) -> Result<Vec<Cause>> {
    let items: Vec<String> = found
        .iter()
        .map(|candidate| candidate.item.clone())
        .collect();
    let statement = statements::explain(recommender)?;
    let _as = As::owner(recommender.owner());
    // What the key of an interaction is as text must not depend on the session.
    with_settings(KEY_SETTINGS, || {
        Spi::connect(|client| {
            let mut causes = Vec::new();
            let arguments = [user.into(), session.to_vec().into(), items.into()];
            for row in client.select(statement.as_str(), None, &arguments)? {
                let of = row.get::<i32>(1)?.unwrap_or(1) as usize - 1;
                let candidate = found.get_mut(of);
                if let Some(reason) = candidate.and_then(|one| one.reason.as_object_mut()) {
                    reason.insert("boost".into(), json!(row.get::<f64>(2)?));
                }
                if let Some(item) = row.get::<String>(3)? {
                    let row_key = row.get::<JsonB>(6)?;
                    causes.push(Cause {
                        of,
                        item,
                        weight: row.get::<f64>(4)?.unwrap_or_default(),
                        likeness: row.get::<f64>(5)?.unwrap_or_default(),
                        row: row_key.and_then(|key| row_of(key.0)),
                    });
                }
            }
            Ok(causes)
        })
    })
}

/// `[table, key, …]`.
fn row_of(row: Value) -> Option<(i32, Vec<String>)> {
    let mut row = serde_json::from_value::<Vec<Value>>(row).ok()?.into_iter();
    let table = row.next()?.as_i64()? as i32;
    let key: Option<Vec<String>> = row.map(|value| Some(value.as_str()?.to_owned())).collect();
    Some((table, key?))
}

/// The causes whose interactions the caller may read.
fn readable(recommender: &Recommender, causes: &[Cause]) -> Result<BTreeSet<usize>> {
    let mut readable = BTreeSet::new();
    for id in recommender.members() {
        let rows: Vec<(usize, &Vec<String>)> = (0..)
            .zip(causes)
            .filter_map(|(n, cause)| match &cause.row {
                Some((table, key)) if *table == id => Some((n, key)),
                _ => None,
            })
            .collect();
        if rows.is_empty() {
            continue;
        }
        match id == recommender.id {
            true => readable.extend(readable_in(recommender, &rows)?),
            false => {
                if let Some(feed) = by_id(id)? {
                    readable.extend(readable_in(&feed, &rows)?);
                }
            }
        }
    }
    Ok(readable)
}

/// Those of one table of interactions.
fn readable_in(of: &Recommender, rows: &[(usize, &Vec<String>)]) -> Result<Vec<usize>> {
    const MAY: &str = "\
SELECT pg_catalog.bool_and(pg_catalog.has_column_privilege($1, c.name, 'SELECT')) FROM pg_catalog.unnest($2) AS c (name)";
    let keys = of.keys();
    let key_names: Vec<String> = keys.iter().map(|key| key.name.clone()).collect();
    let count = key_names.len();
    let may = select_one::<bool>(MAY, &[of.source_oid().into(), key_names.into()])?;
    if may != Some(true) {
        return Ok(Vec::new());
    }
    let statement = format!(
        "SELECT k.i::int4 FROM {} WITH ORDINALITY AS k ({}, i) JOIN {} s ON {}",
        given(count, ""),
        names(count),
        of.rows_of.as_deref().unwrap_or_default(),
        keyed(keys, "s", |key| &key.column, "k"),
    );
    let column = |n: usize| -> Vec<Option<String>> {
        rows.iter().map(|(_, key)| key.get(n).cloned()).collect()
    };
    let arguments: Vec<_> = (0..count).map(|n| column(n).into()).collect();
    with_settings(KEY_SETTINGS, || {
        Spi::connect(|client| {
            let mut readable = Vec::new();
            for row in client.select(statement.as_str(), None, &arguments)? {
                let number = row.get::<i32>(1)?.unwrap_or_default() as usize;
                readable.extend(rows.get(number.wrapping_sub(1)).map(|(n, _)| *n));
            }
            Ok(readable)
        })
    })
}
