//! A user's list, made before it is asked for: by the worker, with nobody's filter.
//!
//! It holds the best candidates as the owner of the items sees them; what a caller may see of it is asked when it is
//! served. It never makes one where it could not be known when it is not right any more.

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;

use super::content::{self, For};
use super::learnt;
use super::question::Question;
use super::statements;
use crate::catalog::recommender::{Recommender, tables};
use crate::catalog::rights::{As, with_settings};
use crate::error::Result;
use crate::recommend::search::load_library;
use crate::statement::{Finds, Statement};

/// Candidates of a list.
pub const KEPT: usize = 200;

/// Whether all that changes a list is told of. What users are like, and vectors in a column of the items, are looked up
/// for each list.
pub fn is_told(r: &Recommender) -> bool {
    r.users.is_none() && r.vectors.as_ref().is_none_or(|vectors| vectors.noted)
}

/// What has become of a user's list.
#[derive(Clone, Copy, PartialEq)]
pub enum Made {
    Yes,
    /// Of who has done nothing there is none.
    No,
    /// The vector of the user's interests is not right at the moment.
    NotYet,
}

/// Makes a user's list, in a transaction of its own.
pub fn make(r: &Recommender, user: &str) -> Result<Made> {
    tables::hold(r);
    match is_stale(r, user)? {
        Some(false) => {}
        Some(true) => return Ok(Made::NotYet),
        None => return Ok(Made::No),
    }
    let of = For {
        user: Some(user),
        session: &[],
        exclude_seen: true,
    };
    let nearest = of.nearest(r, r, &Question::default(), |_| Ok(()))?;
    let factors = learnt::factors(r, of.user, of.session)?;
    let settings = match r.vectors {
        None => &content::SETTINGS[..1],
        Some(_) => {
            load_library()?;
            &content::SETTINGS[..]
        }
    };
    let (best, write) = (statements::recommend(r)?, write(r)?);
    let _as = As::owner(r.owner());
    let (mut items, mut scores, mut places) = (Vec::new(), Vec::new(), Vec::new());
    Spi::connect(|client| -> Result<()> {
        let best = Statement::kept(&best, Finds::ByKey);
        let arguments = of.arguments(&nearest, &factors);
        let mut cursor = with_settings(settings, || best.cursor(client, &arguments))?;
        for row in with_settings(settings, || cursor.fetch(KEPT as _))? {
            let of_row = row.get::<Vec<Option<i32>>>(3)?;
            if let (Some(item), Some(score), Some(of_row)) =
                (row.get::<String>(1)?, row.get::<f64>(2)?, of_row)
            {
                items.push(item);
                scores.push(score);
                places.extend(of_row);
            }
        }
        Ok(())
    })?;
    Spi::connect_mut(|client| {
        let arguments: [DatumWithOid; 5] = [
            user.into(),
            r.generation().into(),
            items.into(),
            scores.into(),
            places.into(),
        ];
        let written = Statement::kept(&write, Finds::ByKey).update(client, &arguments)?;
        Ok(match written.is_empty() {
            true => Made::No,
            false => Made::Yes,
        })
    })
}

/// Whether the vector of the user's interests is stale, `None` where there is none. What makes one wrong marks it, and
/// takes the list away that was made when it was right.
fn is_stale(r: &Recommender, user: &str) -> Result<Option<bool>> {
    if r.vectors.is_none() {
        return Ok(Some(false));
    }
    let key = r.user_key()?;
    let stale = format!(
        "SELECT i.stale FROM {} i WHERE i.user_id {} $1::{}",
        tables::interests(r.of),
        key.equals,
        key.type_name
    );
    let _as = As::owner(r.owner());
    crate::catalog::names::select_kept::<bool>(&stale, &[user.into()])
}

fn write(r: &Recommender) -> Result<String> {
    let (user, item) = (r.user_key()?, r.item_key()?);
    Ok(format!(
        "INSERT INTO {lists} AS l (user_id, generation, made_at, active_at, items, scores, places)
         SELECT e.user_id, $2, pg_catalog.now(), pg_catalog.max(e.at), $3::text[]::{item_type}[], $4, $5
           FROM {interactions} e WHERE e.user_id {equals} $1::{user_type} GROUP BY e.user_id
             ON CONFLICT (user_id) DO UPDATE SET generation = excluded.generation, made_at = excluded.made_at, active_at = excluded.active_at,
                items = excluded.items, scores = excluded.scores, places = excluded.places
          RETURNING 1",
        lists = tables::lists(r.of),
        item_type = item.type_name,
        interactions = r.interactions(),
        equals = user.equals,
        user_type = user.type_name,
    ))
}

/// Users whose lists are to be made again, those who did something last first: lists of another generation, and those
/// that are older than `age` seconds.
pub fn outdated(r: &Recommender, age: f64, most: usize) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT l.user_id::text FROM {} l
          WHERE l.generation <> $1 OR l.made_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2)
          ORDER BY l.active_at DESC LIMIT $3",
        tables::lists(r.of)
    );
    let _as = As::owner(r.owner());
    texts(
        &sql,
        &[r.generation().into(), age.into(), (most as i64).into()],
    )
}

/// Of more than `most` lists those go whose users have done nothing for the longest. How many there are then.
pub fn trim(r: &Recommender, most: usize) -> Result<usize> {
    let lists = tables::lists(r.of);
    let sql = format!(
        "WITH beyond AS (DELETE FROM {lists} l WHERE l.ctid = ANY (ARRAY(SELECT l.ctid FROM {lists} l ORDER BY l.active_at DESC OFFSET $1)) RETURNING 1)
         SELECT (SELECT pg_catalog.count(*) FROM {lists}) - (SELECT pg_catalog.count(*) FROM beyond)"
    );
    let _as = As::owner(r.owner());
    let left = Spi::get_one_with_args::<i64>(&sql, &[(most as i64).into()])?;
    Ok(left.unwrap_or(0) as usize)
}

/// Users of the interactions in `pages` of a table of them before page `before` that have no list, those who did
/// something last first. Rows are written in the order of what has happened, for the most part.
pub fn active(r: &Recommender, member: i32, before: u32, pages: u32) -> Result<Vec<String>> {
    let user = r.user_key()?;
    let sql = format!(
        "SELECT u.user_id::text
           FROM (SELECT e.user_id, pg_catalog.max(e.at) AS at FROM {} e
                  WHERE e.ctid >= '({},0)'::tid AND e.ctid < '({before},0)'::tid GROUP BY e.user_id) u
          WHERE NOT EXISTS (SELECT FROM {} l WHERE l.user_id {} u.user_id) ORDER BY u.at DESC",
        tables::interactions(member),
        before.saturating_sub(pages),
        tables::lists(r.of),
        user.equals,
    );
    let _as = As::owner(r.owner());
    texts(&sql, &[])
}

/// How many pages of interactions there are of one table.
pub fn pages(member: i32) -> Result<u32> {
    let sql = "SELECT (pg_catalog.pg_relation_size(pg_catalog.to_regclass($1)) / pg_catalog.current_setting('block_size')::bigint)::bigint";
    let pages = crate::catalog::names::select_one::<i64>(
        sql,
        &[tables::interactions(member).as_str().into()],
    )?;
    Ok(u32::try_from(pages.unwrap_or(0)).unwrap_or(u32::MAX))
}

fn texts(sql: &str, arguments: &[DatumWithOid]) -> Result<Vec<String>> {
    Spi::connect(|client| {
        let mut found = Vec::new();
        for row in client.select(sql, None, arguments)? {
            found.extend(row.get::<String>(1)?);
        }
        Ok(found)
    })
}
