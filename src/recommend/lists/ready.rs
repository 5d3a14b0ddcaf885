//! Lists that the worker has made before they were asked for, served.
//!
//! What may be listed is asked of the live rows, as for every list, and where too few are left, or something else is asked
//! than what a list was made for, there is none. So it never serves another list than one that is made now begins with,
//! but for what others have done since, and never one that is older than `recsync.list_age`.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::SeqCst;

use super::question::Question;
use super::selection::Selection;
use super::sieve::{Candidate, Sieve};
use super::statements::{self, Parts};
use super::warm::{self, KEPT};
use crate::catalog::recommender::{Recommender, tables};
use crate::catalog::rights::{As, with_settings};
use crate::error::Result;
use crate::recommend::interest;
use crate::settings;
use crate::shared;
use crate::statement::{Finds, Statement};

/// Candidates that are looked at first, at the least: more than most lists are long.
const FIRST: usize = 32;

/// The page that is asked for, of the list that is ready for the user; `None`: it is to be made.
pub fn list(
    r: &Recommender,
    user: Option<&str>,
    question: &Question,
    sieve: &Sieve,
) -> Result<Option<Vec<Candidate>>> {
    let found = match user.filter(|_| may_be_ready(r, question)) {
        Some(user) => ready(r, user, question, sieve)?,
        None => None,
    };
    // SAFETY: this process's database.
    let database = unsafe { pg_sys::MyDatabaseId };
    if let Some(counters) = shared::shared().and_then(|shared| shared.counters(database, r.id)) {
        match found {
            Some(_) => counters.lists_ready.fetch_add(1, SeqCst),
            None => counters.lists_made.fetch_add(1, SeqCst),
        };
    }
    Ok(found)
}

/// Whether a list that was made for the user alone answers this. Where the items have vectors, a filter says which of them
/// are candidates.
fn may_be_ready(r: &Recommender, question: &Question) -> bool {
    question.is_plain()
        && question.up_to() <= KEPT
        && (question.filter.is_none() || r.vectors.is_none())
        && warm::is_told(r)
        && !settings::list_age().is_zero()
}

fn ready(
    r: &Recommender,
    user: &str,
    question: &Question,
    sieve: &Sieve,
) -> Result<Option<Vec<Candidate>>> {
    let limits = question.max_per.values().copied().collect();
    let mut selection = Selection::new(question.up_to(), limits);
    let first = (question.up_to() * 3 / 2).clamp(FIRST, KEPT);
    for (from, to) in [(1, first), (first + 1, KEPT)] {
        let Some(page) = open(r, user, from, to)? else {
            return Ok(None);
        };
        sieve.offer(page, |offer| selection.offer(offer))?;
        if selection.is_full() {
            let chosen = selection.chosen().into_iter().skip(question.skip);
            return Ok(Some(chosen.collect()));
        }
    }
    Ok(None)
}

/// Those of candidates `from` to `to` that may be listed now, as the owner; `None` where no list is ready.
fn open(r: &Recommender, user: &str, from: usize, to: usize) -> Result<Option<Vec<Candidate>>> {
    let sql = select(r)?;
    let _as = As::owner(r.owner());
    with_settings(&[(c"jit", c"off")], || {
        Spi::connect(|client| {
            let arguments = [
                user.into(),
                Vec::<String>::new().into(),
                true.into(),
                r.generation().into(),
                settings::list_age().as_secs_f64().into(),
                (from as i32).into(),
                (to as i32).into(),
            ];
            let statement = Statement::kept(&sql, Finds::ByKey);
            let Some(row) = statement.select(client, &arguments)?.next() else {
                return Ok(None);
            };
            let open = row.get::<Vec<i32>>(1)?.unwrap_or_default();
            let items = row.get::<Vec<String>>(2)?.unwrap_or_default();
            let scores = row.get::<Vec<f64>>(3)?.unwrap_or_default();
            let places = row.get::<Vec<Option<i32>>>(4)?.unwrap_or_default();
            let candidate = |number: &i32| {
                let n = (*number as usize).wrapping_sub(1);
                let places = places.chunks(statements::SOURCES).nth(n)?;
                Some(Candidate {
                    item: items.get(n)?.clone(),
                    score: *scores.get(n)?,
                    reason: statements::reason(places.to_vec()),
                })
            };
            Ok(Some(open.iter().filter_map(candidate).collect()))
        })
    })
}

/// Of candidates $6 to $7 of the list of generation $4 that is not older than $5 seconds: which of them may be listed, by
/// their numbers from 1, and what they are. A list goes when it becomes known which users liked an item that has got
/// another vector: until then it is not served.
fn select(r: &Recommender) -> Result<String> {
    let parts = Parts::new(r)?;
    let Parts {
        rows, key, equals, ..
    } = &parts;
    let (user, width) = (r.user_key()?, statements::SOURCES);
    Ok(format!(
        "WITH {hidden}
         SELECT ARRAY(SELECT c.n::int4 FROM pg_catalog.unnest(l.items) WITH ORDINALITY AS c (item, n) JOIN {rows} s ON {key} {equals} c.item
                       WHERE {open} ORDER BY c.n), l.items::text[], l.scores, l.places
           FROM (SELECT l.items[$6:$7] AS items, l.scores[$6:$7] AS scores, l.places[($6 - 1) * {width} + 1:$7 * {width}] AS places
                   FROM {lists} l
                  WHERE l.user_id {user_equals} $1::{user_type} AND l.generation = $4
                    AND l.made_at > pg_catalog.statement_timestamp() - pg_catalog.make_interval(secs => $5){known}) l",
        known = match r.vectors {
            Some(_) => format!(" AND {}", interest::is_known(r, "$1")?),
            None => String::new(),
        },
        hidden = parts.hidden(r)?,
        open = parts.open(r),
        lists = tables::lists(r.of),
        user_equals = user.equals,
        user_type = user.type_name,
    ))
}
