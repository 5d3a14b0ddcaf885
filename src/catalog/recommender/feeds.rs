//! add_interactions, drop_interactions: other tables of interactions of a recommender, its feeds.
//!
//! A feed is a recommender in all that concerns one table of interactions (source, key, expressions, backfill), and the
//! one it belongs to in everything else. It never has items, pairs or interests of its own.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::create::{described, find_columns};
use super::tables::{self, require_owner_reads};
use super::{Recommender, by_id, find, require_owner};
use crate::capture::wake;
use crate::catalog::expression::{self, Expression, Wanted};
use crate::catalog::names::{qualified, quote, select_one};
use crate::catalog::pipeline;
use crate::catalog::rights::As;
use crate::catalog::watch::{
    lock_in_tries, notice_of_source, refresh, release, table_owner, watch,
};
use crate::dispatch::backfill;
use crate::error::{Error, OrReport, Result};

/// What a column is called, or an expression for it; neither: to be found.
struct Given<'a> {
    names: [&'static str; 2],
    column: Option<&'a str>,
    expression: Option<&'a str>,
}

struct Wish<'a> {
    source: pg_sys::Oid,
    user: Given<'a>,
    item: Given<'a>,
    at: Given<'a>,
    weight: &'a str,
    seen: &'a str,
}

#[pg_extern(sql = r#"
CREATE FUNCTION add_interactions(name text, source regclass, user_column text DEFAULT NULL, user_expression text DEFAULT NULL, item_column text DEFAULT NULL, item_expression text DEFAULT NULL,
    at_column text DEFAULT NULL, at_expression text DEFAULT NULL, weight text DEFAULT '1', seen text DEFAULT 'true')
RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION add_interactions IS
'Another table of interactions of a recommender, beside the one that it was created with. name: a recommender; source: a table with a primary key; user_column, item_column, at_column: its columns, by default found as in create_recommender; user_expression, item_expression, at_expression: SQL expressions instead, which may look into other tables by a subquery, as (SELECT customer_id FROM orders o WHERE o.id = order_id): changes of those are not seen, only of source; weight, seen: as in create_recommender. The rows that are there are read, too. By the owner of both tables; the owner of the items has to be able to read source, and what subqueries read. Errors: 42704 unknown recommender, 42501 without the rights, 42710 where the table is one of the recommender''s already, 55000 without a primary key, 42702 where several columns can be meant, 42703 no such column, 42846 a user or item that cannot be cast to what users and items are, 22023 impossible argument, 55P03.';
"#)]
#[allow(clippy::too_many_arguments)]
fn add_interactions(
    name: Option<&str>,
    source: Option<pg_sys::Oid>,
    user_column: Option<&str>,
    user_expression: Option<&str>,
    item_column: Option<&str>,
    item_expression: Option<&str>,
    at_column: Option<&str>,
    at_expression: Option<&str>,
    weight: Option<&str>,
    seen: Option<&str>,
) {
    let given = |names, column, expression| Given {
        names,
        column,
        expression,
    };
    let wish = Wish {
        source: source.unwrap_or(pg_sys::InvalidOid),
        user: given(
            ["user_column", "user_expression"],
            user_column,
            user_expression,
        ),
        item: given(
            ["item_column", "item_expression"],
            item_column,
            item_expression,
        ),
        at: given(["at_column", "at_expression"], at_column, at_expression),
        weight: weight.unwrap_or("1"),
        seen: seen.unwrap_or("true"),
    };
    add(name.unwrap_or_default(), &wish).or_report();
}

#[pg_extern(sql = r#"
CREATE FUNCTION drop_interactions(name text, source regclass) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION drop_interactions(text, regclass) IS
'Ends what add_interactions began: the table''s rows count no more. What is kept of the recommender''s other interactions is made anew; until it is there, lists are made of less. Errors: 42704 unknown recommender, or the table is not one that was added to it, 42501 for others than the owner of its items and recsync_admin, 55P03.';
"#)]
fn drop_interactions(name: &str, source: pg_sys::Oid) {
    remove(name, source).or_report();
}

fn add(name: &str, wish: &Wish) -> Result<()> {
    crate::catalog::install::require_primary()?;
    crate::catalog::install::require_worker()?;
    let recommender = find(name)?;
    require_owner(&recommender)?;
    if recommender.items_oid() == pg_sys::InvalidOid {
        return Err(recommender.broken(format!("table {} does not exist", recommender.items)));
    }
    let (table, source) = described("source", wish.source)?;
    let mut tables = vec![recommender.interactions.clone()];
    tables.extend(of(&recommender)?.into_iter().map(|feed| feed.interactions));
    if tables.contains(&table) {
        return Err(Error::InteractionsExist {
            name: recommender.name,
            relation: table,
        });
    }
    let [user, item, at, weight, seen] = expressions(wish, &recommender, &table)?;
    require_readable(
        &recommender,
        wish.source,
        &table,
        &[&user, &item, &at, &weight, &seen],
    )?;
    lock_in_tries(wish.source, &table, pg_sys::ShareRowExclusiveLock)?;
    let source_id = watch(wish.source, &table, &source)?;
    let mut used: Vec<String> = [&user, &item, &at, &weight, &seen]
        .into_iter()
        .flat_map(|expression| expression.columns.clone())
        .collect();
    used.sort();
    used.dedup();
    {
        let _as = As::extension();
        Spi::run_with_args(
            "INSERT INTO recsync.feed (recommender_id, source_id, user_expression, item_expression, at_expression, weight, seen, used_columns)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            &[
                recommender.id.into(),
                source_id.into(),
                user.sql.into(),
                item.sql.into(),
                at.sql.into(),
                weight.sql.into(),
                seen.sql.into(),
                used.into(),
            ],
        )?;
    }
    refresh(wish.source, &table, source_id, source.owner)?;
    let last = by_id(recommender.id)?.and_then(|recommender| recommender.members().pop());
    let feed = by_id(last.unwrap_or_default())?
        .ok_or_else(|| Error::NoSuchRecommender(recommender.name.clone()))?;
    tables::make_feed(&feed)?;
    {
        let _as = As::extension();
        backfill::restart(&[feed.id])?;
    }
    notice_of_source(wish.source, &table)?;
    wake::after_catalog_change();
    Ok(())
}

/// What the table's columns, or the expressions given for them, come to.
fn expressions(wish: &Wish, recommender: &Recommender, table: &str) -> Result<[Expression; 5]> {
    for Given {
        names: [column, expression],
        column: name,
        expression: sql,
    } in [&wish.user, &wish.item, &wish.at]
    {
        if name.is_some() && sql.is_some() {
            return Err(Error::argument(
                expression,
                format!("{column} is given, too"),
                "Give one of the two.",
            ));
        }
    }
    // A column that need not be found stands for what an expression says.
    let any = select_one::<String>(
        "SELECT attname::text FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum LIMIT 1",
        &[wish.source.into()],
    )?;
    let named = |given: &Given| -> Option<String> {
        match given.expression {
            Some(_) => any.clone(),
            None => given.column.map(str::to_owned),
        }
    };
    let (user, item, at) = (named(&wish.user), named(&wish.item), named(&wish.at));
    let found = find_columns(
        (wish.source, table),
        (recommender.items_oid(), &recommender.items),
        [user.as_deref(), item.as_deref(), at.as_deref()],
    )?;
    let of = |given: &Given, column: &str, wanted| {
        let [argument, of_expression] = given.names;
        match given.expression {
            Some(sql) => expression::parse_with_subqueries(of_expression, wish.source, sql, wanted),
            None => expression::parse(argument, wish.source, &quote(column), wanted),
        }
    };
    Ok([
        of(&wish.user, &found.user, Wanted::Any)?,
        of(&wish.item, &found.item, Wanted::Any)?,
        of(&wish.at, &found.at, Wanted::Time)?,
        expression::parse("weight", wish.source, wish.weight, Wanted::Number)?,
        expression::parse("seen", wish.source, wish.seen, Wanted::Boolean)?,
    ])
}

/// The owner of the items reads the table, and what its expressions look into; users and items become what they are in
/// the recommender. PostgreSQL says where they cannot.
fn require_readable(
    recommender: &Recommender,
    source: pg_sys::Oid,
    table: &str,
    [user, item, at, weight, seen]: &[&Expression; 5],
) -> Result<()> {
    let owner = recommender.owner();
    require_owner_reads(owner, &recommender.items, source, table)?;
    // What is not asked for would be left out, with what it reads.
    let sql = format!(
        "SELECT pg_catalog.num_nulls(u, i, a, w, seen) > 0 FROM (SELECT ({})::{}, ({})::{}, {}, {}, {} FROM {table} s) g (u, i, a, w, seen) LIMIT 0",
        user.sql,
        recommender.user_key()?.type_name,
        item.sql,
        recommender.item_key()?.type_name,
        at.sql,
        weight.sql,
        seen.sql,
    );
    let _as = As::owner(owner);
    select_one::<bool>(&sql, &[]).map(|_| ())
}

fn remove(name: &str, source: pg_sys::Oid) -> Result<()> {
    let recommender = find(name)?;
    require_owner(&recommender)?;
    let table = qualified(source).unwrap_or_default();
    let feed = of(&recommender)?
        .into_iter()
        .find(|feed| feed.interactions == table);
    let feed = feed.ok_or_else(|| Error::NoSuchInteractions {
        name: recommender.name.clone(),
        relation: table,
    })?;
    end_and_make_anew(&feed)?;
    wake::after_catalog_change();
    Ok(())
}

/// The tables that were added to a recommender.
pub fn of(recommender: &Recommender) -> Result<Vec<Recommender>> {
    let mut feeds = Vec::new();
    for id in recommender.members() {
        if id != recommender.of {
            feeds.extend(by_id(id)?);
        }
    }
    Ok(feeds)
}

/// It is one no more. What is kept of its interactions is left to the caller.
pub fn end(feed: &Recommender) -> Result<()> {
    {
        let _as = As::extension();
        pipeline::forget(feed.id)?;
        Spi::run_with_args("DELETE FROM recsync.feed WHERE id = $1", &[feed.id.into()])?;
    }
    let source = feed.source_oid();
    release(
        source,
        &feed.interactions,
        feed.source_id,
        table_owner(source)?,
    )
}

/// It is one no more, and counts no more.
pub fn end_and_make_anew(feed: &Recommender) -> Result<()> {
    tables::drop(feed.of, &feed.members())?;
    end(feed)?;
    if let Some(recommender) = by_id(feed.of)?
        && recommender.items_oid() != pg_sys::InvalidOid
    {
        tables::make(&recommender)?;
        let _as = As::extension();
        backfill::restart(&recommender.members())?;
    }
    Ok(())
}
