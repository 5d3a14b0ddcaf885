//! alter_recommender: what was declared is changed in place, and what follows from that is computed again.
//!
//! It never changes what a recommender is of: other items or interactions are another recommender.

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::create::{require_time, seconds};
use super::{Recommender, by_id, find, impressions, require_owner, tables, users};
use crate::capture::wake;
use crate::catalog::expression::{self, Expression, Wanted};
use crate::catalog::names::{quote, select_one};
use crate::catalog::rights::As;
use crate::catalog::watch::{lock_in_tries, refresh, table_owner};
use crate::dispatch::backfill;
use crate::error::{Error, OrReport, Result};
use crate::hooks::watched;
use crate::recommend::interest::is_made_otherwise;

/// What has to be computed again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Again {
    Nothing,
    /// The vectors of users' interests are made by another rule.
    Interests,
    /// All interactions are read again, and what differs is counted.
    Interactions,
    /// What is kept was counted by another rule, and is made anew.
    Everything,
}

/// `None`: as it is.
struct Changes<'a> {
    user_column: Option<&'a str>,
    item_column: Option<&'a str>,
    at_column: Option<&'a str>,
    weight: Option<&'a str>,
    seen: Option<&'a str>,
    seen_for_s: Option<f64>,
    eligible: Option<&'a str>,
    boost: Option<&'a str>,
    half_life_s: Option<f64>,
    history: Option<i32>,
    half_life_rank: Option<f64>,
    collaborative: Option<Vec<Option<String>>>,
    schedule: Option<&'a str>,
    users: Option<pg_sys::Oid>,
    impressions: Option<pg_sys::Oid>,
}

#[pg_extern(sql = r#"
CREATE FUNCTION alter_recommender(name text, user_column text DEFAULT NULL, item_column text DEFAULT NULL, at_column text DEFAULT NULL, weight text DEFAULT NULL, seen text DEFAULT NULL,
    seen_for interval DEFAULT NULL, eligible text DEFAULT NULL, boost text DEFAULT NULL, half_life interval DEFAULT NULL, history integer DEFAULT NULL,
    half_life_rank double precision DEFAULT NULL, collaborative text[] DEFAULT NULL, schedule text DEFAULT NULL, users regclass DEFAULT NULL, impressions regclass DEFAULT NULL)
RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION alter_recommender IS
'Changes a recommender in place: the arguments are those of create_recommender, NULL leaves a setting as it is; seen_for => ''0'': for ever again; users, impressions => ''-'': none. eligible, boost, seen_for, half_life_rank, schedule, users and impressions hold at once, and collaborative, once what it adds is trained; after a change of weight or seen all interactions are read again; after one of a column, half_life or history what is kept is made anew, and until it is there lists are made of less. Errors: 42704 where it does not exist, 42501 for others than the owner of its items and recsync_admin, 22023 impossible argument, 42703 no such column, 42846 a user or item that cannot be cast to what users and items are, 55P03.';
"#)]
#[allow(clippy::too_many_arguments)]
fn alter_recommender(
    name: Option<&str>,
    user_column: Option<&str>,
    item_column: Option<&str>,
    at_column: Option<&str>,
    weight: Option<&str>,
    seen: Option<&str>,
    seen_for: Option<Interval>,
    eligible: Option<&str>,
    boost: Option<&str>,
    half_life: Option<Interval>,
    history: Option<i32>,
    half_life_rank: Option<f64>,
    collaborative: Option<Vec<Option<String>>>,
    schedule: Option<&str>,
    users: Option<pg_sys::Oid>,
    impressions: Option<pg_sys::Oid>,
) {
    let changes = Changes {
        user_column,
        item_column,
        at_column,
        weight,
        seen,
        seen_for_s: seen_for.map(seconds),
        eligible,
        boost,
        half_life_s: half_life.map(seconds),
        history,
        half_life_rank,
        collaborative,
        schedule,
        users,
        impressions,
    };
    alter(name.unwrap_or_default(), &changes).or_report();
}

fn alter(name: &str, changes: &Changes) -> Result<()> {
    crate::catalog::install::require_primary()?;
    crate::catalog::install::require_worker()?;
    let is = find(name)?;
    require_owner(&is)?;
    for (table, oid) in [
        (&is.items, is.items_oid()),
        (&is.interactions, is.source_oid()),
    ] {
        if oid == pg_sys::InvalidOid {
            return Err(is.broken(format!("table {table} does not exist")));
        }
    }
    require_time("half_life", changes.half_life_s)?;
    require_time(
        "seen_for",
        changes.seen_for_s.filter(|seconds| *seconds != 0.0),
    )?;
    super::create::require_history(changes.history.unwrap_or(is.history))?;
    let learning = is.learning.changed(
        changes.collaborative.clone(),
        changes.schedule,
        changes.half_life_rank,
    )?;
    let items = (is.items_oid(), is.items.as_str());
    let impressions = changes
        .impressions
        .map(|relation| impressions::find(relation, items, is.owner()))
        .transpose()?;
    let source = is.source_oid();
    lock_in_tries(source, &is.interactions, pg_sys::ShareRowExclusiveLock)?;
    write(&is, changes)?;
    learning.write(is.id)?;
    if let Some(users) = changes.users {
        users::set(&is, users)?;
    }
    if let Some(impressions) = impressions {
        impressions::write(is.id, impressions.as_ref())?;
    }
    let owner = table_owner(source)?;
    refresh(source, &is.interactions, is.source_id, owner)?;
    let now = by_id(is.id)?.ok_or_else(|| Error::NoSuchRecommender(name.to_owned()))?;
    watched::settle(&now)?;
    watched::note_altered(now.id)?;
    match again(&is, &now) {
        Again::Nothing => {}
        Again::Interests => tables::forget_interests(now.id)?,
        Again::Interactions => {
            tables::forget_interests(now.id)?;
            restart(&now)?;
        }
        Again::Everything => {
            tables::make(&now)?;
            restart(&now)?;
        }
    }
    wake::after_catalog_change();
    Ok(())
}

fn restart(recommender: &Recommender) -> Result<()> {
    let _as = As::extension();
    backfill::restart(&recommender.members())
}

/// What follows from what differs.
fn again(was: &Recommender, is: &Recommender) -> Again {
    let columns = |r: &Recommender| {
        let [user, item, at] = [&r.user_expression, &r.item_expression, &r.at_expression];
        [user.clone(), item.clone(), at.clone()]
    };
    if columns(was) != columns(is) || was.half_life_s != is.half_life_s || was.history != is.history
    {
        Again::Everything
    } else if was.weight != is.weight || was.seen != is.seen {
        Again::Interactions
    } else if is_made_otherwise(was, is) {
        Again::Interests
    } else {
        Again::Nothing
    }
}

/// The new declaration, its expressions checked; the columns that they use, with those of the others.
fn write(is: &Recommender, changes: &Changes) -> Result<()> {
    const WRITE: &str = "\
UPDATE recsync.recommender SET user_expression = $2, item_expression = $3, at_expression = $4, weight = $5, seen = $6, used_columns = $7,
       eligible = $8, boost = $9, half_life = COALESCE($10 * interval '1 s', half_life), history = COALESCE($11, history),
       seen_for = CASE WHEN $12 = 0 THEN NULL ELSE COALESCE($12 * interval '1 s', seen_for) END
 WHERE id = $1";
    let expression = |argument, table, given: Option<&str>, stored: &str, wanted| match given {
        Some(text) => expression::parse(argument, table, text, wanted),
        None => expression::parse_stored(argument, table, stored, wanted),
    };
    let column = |name: Option<&str>| name.map(quote);
    let source = is.source_oid();
    let of_interactions = [
        (
            "user_column",
            column(changes.user_column),
            &is.user_expression,
            Wanted::Any,
        ),
        (
            "item_column",
            column(changes.item_column),
            &is.item_expression,
            Wanted::Any,
        ),
        (
            "at_column",
            column(changes.at_column),
            &is.at_expression,
            Wanted::Time,
        ),
        (
            "weight",
            changes.weight.map(str::to_owned),
            &is.weight,
            Wanted::Number,
        ),
        (
            "seen",
            changes.seen.map(str::to_owned),
            &is.seen,
            Wanted::Boolean,
        ),
    ];
    let of_interactions = of_interactions
        .into_iter()
        .map(|(argument, given, stored, wanted)| {
            expression(argument, source, given.as_deref(), stored, wanted)
        });
    let of_interactions = of_interactions.collect::<Result<Vec<Expression>>>()?;
    let items = is.items_oid();
    let eligible = expression(
        "eligible",
        items,
        changes.eligible,
        &is.eligible,
        Wanted::Boolean,
    )?;
    let boost = expression("boost", items, changes.boost, &is.boost, Wanted::Number)?;
    let mut used: Vec<String> = of_interactions
        .iter()
        .flat_map(|expression| expression.columns.clone())
        .collect();
    used.sort();
    used.dedup();
    let mut sql = of_interactions
        .iter()
        .map(|expression| expression.sql.as_str());
    let mut next = || sql.next().unwrap_or_default();
    let [user, item, at, weight, seen] = [next(), next(), next(), next(), next()];
    require_types(is, user, item)?;
    let _as = As::extension();
    Spi::run_with_args(
        WRITE,
        &[
            is.id.into(),
            user.into(),
            item.into(),
            at.into(),
            weight.into(),
            seen.into(),
            used.into(),
            eligible.sql.into(),
            boost.sql.into(),
            changes.half_life_s.into(),
            changes.history.into(),
            changes.seen_for_s.into(),
        ],
    )?;
    Ok(())
}

/// Users keep the type that the typed functions have, and items become keys: PostgreSQL says where they cannot.
fn require_types(is: &Recommender, user: &str, item: &str) -> Result<()> {
    let users = &is.user_key()?.type_name;
    let items = &is.item_key()?.type_name;
    let castable = format!(
        "SELECT true FROM (SELECT ({user})::{users}, ({item})::{items} FROM {} s) i LIMIT 0",
        is.interactions
    );
    select_one::<bool>(&castable, &[]).map(|_| ())
}
