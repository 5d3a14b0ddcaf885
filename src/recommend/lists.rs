//! recommend, similar, popular: lists of items, in the caller's session.
//!
//! What may be listed, and in what order, is asked as the owner of the items; which of them pass the filter and may be
//! seen is asked of the live rows as the caller. It never returns fewer than there are: where the candidates are too
//! few, it goes on through all items. It writes nothing, so that a standby answers, too.

use pgrx::datum::{DatumWithOid, Uuid};
use pgrx::prelude::*;
use pgrx::{JsonB, pg_sys};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

// What is asked as the owner.
mod statements;

use super::filter;
use super::search::{columns, require_select};
use crate::catalog::recommender::functions::{Kind, require_execute};
use crate::catalog::recommender::{Recommender, by_id, find};
use crate::catalog::rights::{As, with_settings};
use crate::error::{Error, OrReport, Result};

/// Items that are looked through at a time where the candidates were too few.
const PAGE: usize = 1_000;

/// An item that may be listed.
struct Candidate {
    item: String,
    score: f64,
    reason: Value,
}

/// What a list is asked for, beside whose it is.
struct Wanted {
    k: usize,
    filter: Option<Value>,
}

type Recommended = TableIterator<'static, (String, f64, i32, JsonB, Uuid)>;
type Listed = TableIterator<'static, (String, f64, i32)>;

#[pg_extern(sql = r#"
CREATE FUNCTION recommend(name text, user_id text DEFAULT NULL, k integer DEFAULT 10, filter jsonb DEFAULT NULL, exclude_seen boolean DEFAULT true, session_items text[] DEFAULT NULL)
RETURNS TABLE (item text, score double precision, rank integer, reason jsonb, list_id uuid) LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION recommend(text, text, integer, jsonb, boolean, text[]) IS
'k items for a user: neighbours of what they have had to do with, the popular, the latest. name: a recommender; user_id: NULL, or one that nobody knows, gets what is popular, then the latest; filter: {"column": value | [any, of] | {"gte","gt","lte","lt","contains"} | null}, checked against the live row; exclude_seen: leave out what the user has seen, and session_items; session_items: keys of items that count as seen a moment ago, without a user, too. Returns item (the key as text), score, rank from 1, reason (the places that sources gave it: neighbours, popular, latest; rest: what was left) and list_id (the same for the same question). As many rows as pass, up to k. Needs EXECUTE on <name>_recommend and SELECT on the items. Errors: 42501 without the rights, 42704 unknown recommender, 42703 unknown column in filter, 22023 bad k or filter, 55000 where a table is gone.';
"#)]
fn recommend(
    name: &str,
    user_id: Option<&str>,
    k: Option<i32>,
    filter: Option<JsonB>,
    exclude_seen: Option<bool>,
    session_items: Option<Vec<Option<String>>>,
) -> TableIterator<
    'static,
    (
        name!(item, String),
        name!(score, f64),
        name!(rank, i32),
        name!(reason, JsonB),
        name!(list_id, Uuid),
    ),
> {
    let found = find(name);
    let list = |r: &Recommender| recommended(r, user_id, k, filter, exclude_seen, session_items);
    found.and_then(|recommender| list(&recommender)).or_report()
}

#[pg_extern(sql = r#"
CREATE FUNCTION recommend_of(recommender integer, user_id text, k integer, filter jsonb, exclude_seen boolean, session_items text[])
RETURNS TABLE (item text, score double precision, rank integer, reason jsonb, list_id uuid) LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION recommend_of(integer, text, integer, jsonb, boolean, text[]) IS 'recommend() by the recommender''s number: for <name>_recommend.';
"#)]
fn recommend_of(
    recommender: i32,
    user_id: Option<&str>,
    k: Option<i32>,
    filter: Option<JsonB>,
    exclude_seen: Option<bool>,
    session_items: Option<Vec<Option<String>>>,
) -> TableIterator<
    'static,
    (
        name!(item, String),
        name!(score, f64),
        name!(rank, i32),
        name!(reason, JsonB),
        name!(list_id, Uuid),
    ),
> {
    let list = |r: &Recommender| recommended(r, user_id, k, filter, exclude_seen, session_items);
    numbered(recommender)
        .and_then(|recommender| list(&recommender))
        .or_report()
}

#[pg_extern(sql = r#"
CREATE FUNCTION similar(name text, item_id text, k integer DEFAULT 10, filter jsonb DEFAULT NULL)
RETURNS TABLE (item text, score double precision, rank integer) LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION "similar"(text, text, integer, jsonb) IS
'Items that the users of an item have had to do with, too: by the cosine of their users, shrunk where these are few. name: a recommender; filter: as in recommend. Returns item (the key as text), score, rank; as many as there are, up to k. Needs EXECUTE on <name>_similar and SELECT on the items. Errors: as recommend.';
"#)]
fn similar(
    name: &str,
    item_id: Option<&str>,
    k: Option<i32>,
    filter: Option<JsonB>,
) -> TableIterator<'static, (name!(item, String), name!(score, f64), name!(rank, i32))> {
    find(name)
        .and_then(|recommender| similar_to(&recommender, item_id, k, filter))
        .or_report()
}

#[pg_extern(sql = r#"
CREATE FUNCTION similar_of(recommender integer, item_id text, k integer, filter jsonb)
RETURNS TABLE (item text, score double precision, rank integer) LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION similar_of(integer, text, integer, jsonb) IS 'similar() by the recommender''s number: for <name>_similar.';
"#)]
fn similar_of(
    recommender: i32,
    item_id: Option<&str>,
    k: Option<i32>,
    filter: Option<JsonB>,
) -> TableIterator<'static, (name!(item, String), name!(score, f64), name!(rank, i32))> {
    numbered(recommender)
        .and_then(|recommender| similar_to(&recommender, item_id, k, filter))
        .or_report()
}

#[pg_extern(sql = r#"
CREATE FUNCTION popular(name text, k integer DEFAULT 10, filter jsonb DEFAULT NULL)
RETURNS TABLE (item text, score double precision, rank integer) LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION popular(text, integer, jsonb) IS
'Items by their interactions'' weights, of which half is left after the recommender''s half_life; those without any come last, the latest first. name: a recommender; filter: as in recommend. Returns item (the key as text), score (a share of the most popular one''s), rank; as many as pass, up to k. Needs EXECUTE on <name>_popular and SELECT on the items. Errors: as recommend.';
"#)]
fn popular(
    name: &str,
    k: Option<i32>,
    filter: Option<JsonB>,
) -> TableIterator<'static, (name!(item, String), name!(score, f64), name!(rank, i32))> {
    find(name)
        .and_then(|recommender| most_popular(&recommender, k, filter))
        .or_report()
}

#[pg_extern(sql = r#"
CREATE FUNCTION popular_of(recommender integer, k integer, filter jsonb)
RETURNS TABLE (item text, score double precision, rank integer) LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION popular_of(integer, integer, jsonb) IS 'popular() by the recommender''s number: for <name>_popular.';
"#)]
fn popular_of(
    recommender: i32,
    k: Option<i32>,
    filter: Option<JsonB>,
) -> TableIterator<'static, (name!(item, String), name!(score, f64), name!(rank, i32))> {
    numbered(recommender)
        .and_then(|recommender| most_popular(&recommender, k, filter))
        .or_report()
}

extension_sql!(
    r#"
CREATE FUNCTION recommend(name text, user_id bigint, k integer DEFAULT 10, filter jsonb DEFAULT NULL, exclude_seen boolean DEFAULT true, session_items text[] DEFAULT NULL)
RETURNS TABLE (item text, score double precision, rank integer, reason jsonb, list_id uuid) LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 10
AS $$ SELECT r.item, r.score, r.rank, r.reason, r.list_id FROM recsync.recommend($1, $2::pg_catalog.text, $3, $4, $5, $6) r $$;
CREATE FUNCTION recommend(name text, user_id uuid, k integer DEFAULT 10, filter jsonb DEFAULT NULL, exclude_seen boolean DEFAULT true, session_items text[] DEFAULT NULL)
RETURNS TABLE (item text, score double precision, rank integer, reason jsonb, list_id uuid) LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 10
AS $$ SELECT r.item, r.score, r.rank, r.reason, r.list_id FROM recsync.recommend($1, $2::pg_catalog.text, $3, $4, $5, $6) r $$;
CREATE FUNCTION "similar"(name text, item_id bigint, k integer DEFAULT 10, filter jsonb DEFAULT NULL)
RETURNS TABLE (item text, score double precision, rank integer) LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 10
AS $$ SELECT r.item, r.score, r.rank FROM recsync."similar"($1, $2::pg_catalog.text, $3, $4) r $$;
CREATE FUNCTION "similar"(name text, item_id uuid, k integer DEFAULT 10, filter jsonb DEFAULT NULL)
RETURNS TABLE (item text, score double precision, rank integer) LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 10
AS $$ SELECT r.item, r.score, r.rank FROM recsync."similar"($1, $2::pg_catalog.text, $3, $4) r $$;
COMMENT ON FUNCTION recommend(text, bigint, integer, jsonb, boolean, text[]) IS 'recommend() for users with a bigint key.';
COMMENT ON FUNCTION recommend(text, uuid, integer, jsonb, boolean, text[]) IS 'recommend() for users with a uuid key.';
COMMENT ON FUNCTION "similar"(text, bigint, integer, jsonb) IS 'similar() for items with a bigint key.';
COMMENT ON FUNCTION "similar"(text, uuid, integer, jsonb) IS 'similar() for items with a uuid key.';
"#,
    name = "list_overloads",
    requires = [recommend, similar]
);

fn numbered(id: i32) -> Result<Recommender> {
    by_id(id)?.ok_or_else(|| Error::NoSuchRecommender(id.to_string()))
}

fn recommended(
    recommender: &Recommender,
    user: Option<&str>,
    k: Option<i32>,
    filter: Option<JsonB>,
    exclude_seen: Option<bool>,
    session_items: Option<Vec<Option<String>>>,
) -> Result<Recommended> {
    let wanted = wanted(recommender, Kind::Recommend, k, filter)?;
    let exclude_seen = exclude_seen.unwrap_or(true);
    let session: Vec<String> = session_items.into_iter().flatten().flatten().collect();
    let list = list_id(&json!([
        recommender.id,
        recommender.backfill_round,
        user,
        wanted.k,
        wanted.filter,
        exclude_seen,
        session,
    ]));
    let arguments = || vec![user.into(), session.clone().into(), exclude_seen.into()];
    let found = list_of(
        recommender,
        &wanted,
        &statements::recommend(recommender)?,
        Some(&statements::rest(recommender)?),
        arguments,
    )?;
    let ranked = (1..).zip(found).map(move |(rank, candidate)| {
        (
            candidate.item,
            candidate.score,
            rank,
            JsonB(candidate.reason),
            list,
        )
    });
    Ok(TableIterator::new(ranked))
}

fn similar_to(
    recommender: &Recommender,
    item: Option<&str>,
    k: Option<i32>,
    filter: Option<JsonB>,
) -> Result<Listed> {
    let wanted = wanted(recommender, Kind::Similar, k, filter)?;
    let statement = statements::similar(recommender)?;
    Ok(ranked(list_of(
        recommender,
        &wanted,
        &statement,
        None,
        || vec![item.into()],
    )?))
}

fn most_popular(
    recommender: &Recommender,
    k: Option<i32>,
    filter: Option<JsonB>,
) -> Result<Listed> {
    let wanted = wanted(recommender, Kind::Popular, k, filter)?;
    let nobody = || {
        vec![
            None::<&str>.into(),
            Vec::<String>::new().into(),
            false.into(),
        ]
    };
    let found = list_of(
        recommender,
        &wanted,
        &statements::popular(recommender)?,
        Some(&statements::rest(recommender)?),
        nobody,
    )?;
    Ok(ranked(found))
}

fn ranked(found: Vec<Candidate>) -> Listed {
    TableIterator::new(
        (1..)
            .zip(found)
            .map(|(rank, candidate)| (candidate.item, candidate.score, rank)),
    )
}

/// What is asked for, once it is clear that the caller may and that it can be answered.
fn wanted(
    recommender: &Recommender,
    kind: Kind,
    k: Option<i32>,
    filter: Option<JsonB>,
) -> Result<Wanted> {
    let k = k.unwrap_or(10);
    if !(1..=10_000).contains(&k) {
        return Err(Error::argument(
            "k",
            format!("{k} rows cannot be asked for"),
            "Give 1 to 10000.",
        ));
    }
    require_execute(recommender, kind)?;
    if recommender.items_oid() == pg_sys::InvalidOid {
        return Err(recommender.broken(format!("table {} does not exist", recommender.items)));
    }
    require_select(&[&recommender.items])?;
    Ok(Wanted {
        k: k as usize,
        filter: filter.map(|filter| filter.0),
    })
}

/// The first k candidates that pass: of `first`, then of `rest`, which is given those of the first in vain.
fn list_of<'a>(
    recommender: &Recommender,
    wanted: &Wanted,
    first: &str,
    rest: Option<&str>,
    arguments: impl Fn() -> Vec<DatumWithOid<'a>>,
) -> Result<Vec<Candidate>> {
    let sieve = Sieve::new(recommender, wanted)?;
    let mut passed = Vec::new();
    let mut seen = Vec::new();
    sieve.read(first, &arguments(), wanted.k, &mut passed, |candidate| {
        seen.push(candidate.item.clone());
    })?;
    if let Some(rest) = rest
        && passed.len() < wanted.k
    {
        let mut arguments = arguments();
        arguments.push(seen.into());
        sieve.read(rest, &arguments, wanted.k, &mut passed, |_| ())?;
    }
    Ok(passed)
}

/// Lets through what passes the filter, as the caller sees it.
struct Sieve<'a> {
    recommender: &'a Recommender,
    statement: String,
    parameters: Vec<Vec<String>>,
}

impl<'a> Sieve<'a> {
    fn new(recommender: &'a Recommender, wanted: &Wanted) -> Result<Sieve<'a>> {
        let (conditions, parameters) = match &wanted.filter {
            None => Default::default(),
            Some(filter) => filter::conditions(
                filter,
                &columns(recommender.items_oid())?,
                &recommender.items,
                2,
            )?,
        };
        let item = recommender.item_key()?;
        let rows = recommender.items_rows.as_deref().unwrap_or_default();
        let mut statement = format!(
            "SELECT c.n::int4 FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS c (item, n)
               JOIN {rows} s ON s.{} {} (c.item)::{}",
            item.column, item.equals, item.type_name,
        );
        for (n, condition) in conditions.iter().enumerate() {
            statement += if n == 0 { " WHERE " } else { " AND " };
            statement += condition;
        }
        Ok(Sieve {
            recommender,
            statement: statement + &format!(" ORDER BY c.n LIMIT {}", wanted.k),
            parameters,
        })
    }

    /// Candidates of a statement of the owner's, page by page, until `most` have passed.
    fn read(
        &self,
        statement: &str,
        arguments: &[DatumWithOid],
        most: usize,
        passed: &mut Vec<Candidate>,
        mut note: impl FnMut(&Candidate),
    ) -> Result<()> {
        Spi::connect(|client| {
            let owner = self.recommender.owner();
            let mut cursor = {
                let _as = As::owner(owner);
                // Compiling the plan would take longer than running it.
                with_settings(&[(c"jit", c"off")], || {
                    client.open_cursor(statement, arguments)
                })
            };
            while passed.len() < most {
                let mut page = Vec::new();
                {
                    let _as = As::owner(owner);
                    for row in cursor.fetch(PAGE as _)? {
                        let reason = row.get::<JsonB>(3)?.map_or(Value::Null, |reason| reason.0);
                        page.push(Some(Candidate {
                            item: row.get::<String>(1)?.unwrap_or_default(),
                            score: row.get::<f64>(2)?.unwrap_or_default(),
                            reason,
                        }));
                    }
                }
                let last = page.len() < PAGE;
                page.iter().flatten().for_each(&mut note);
                let items: Vec<String> = page
                    .iter()
                    .flatten()
                    .map(|candidate| candidate.item.clone())
                    .collect();
                let mut arguments: Vec<DatumWithOid> = vec![items.into()];
                arguments.extend(self.parameters.iter().map(|values| values.clone().into()));
                for row in client.select(self.statement.as_str(), None, &arguments)? {
                    let number = row.get::<i32>(1)?.unwrap_or_default() as usize;
                    let candidate = page.get_mut(number.wrapping_sub(1)).and_then(Option::take);
                    passed.extend(candidate.filter(|_| passed.len() < most));
                }
                if last {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// The same for the same recommender, generation, user and arguments.
fn list_id(asked: &Value) -> Uuid {
    let mut bytes = [0; 16];
    for (byte, from) in bytes.iter_mut().zip(Sha256::digest(asked.to_string())) {
        *byte = from;
    }
    // A UUID of a form of one's own: version 8 of RFC 9562.
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Uuid::from_bytes(bytes)
}
