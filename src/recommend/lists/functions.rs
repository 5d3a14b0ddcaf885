//! The lists as SQL functions, by a recommender's number; those by its name are made of them in functions.sql.
//!
//! They only read, and what they set they set for themselves, which parallel workers may, too. They never take arguments
//! one by one: see [`Question`].

use pgrx::JsonB;
use pgrx::datum::Uuid;
use pgrx::prelude::*;
use std::rc::Rc;

use super::once;
use super::question::Question;
use super::rank::ranked_for;
use super::similar::{require_content, similar_to};
use super::{Listed, most_popular, recommended};
use crate::catalog::pipeline;
use crate::catalog::recommender::{Recommender, number};
use crate::error::{Error, OrReport, Result};
use crate::recommend::search;

extension_sql_file!(
    "functions.sql",
    name = "lists_by_name",
    requires = [
        recommend_of,
        similar_of,
        similar_by_name,
        popular_of,
        rank_of,
        recommender_number
    ]
);

#[pg_extern(sql = r#"
CREATE FUNCTION recommend_of(recommender integer, user_id text, asked jsonb)
RETURNS TABLE (item text, score double precision, rank integer, reason jsonb, list_id uuid) LANGUAGE c STABLE PARALLEL SAFE COST 10000 ROWS 10 AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION recommend_of(integer, text, jsonb) IS 'recommend() by the recommender''s number, its other arguments as a JSON object: for <name>_recommend.';
"#)]
fn recommend_of(
    recommender: Option<i32>,
    user_id: Option<&str>,
    asked: Option<JsonB>,
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
    asked_of(recommender, asked)
        .and_then(|(recommender, question)| recommended(&recommender, user_id, &question))
        .or_report()
}

#[pg_extern(sql = r#"
CREATE FUNCTION similar_of(recommender integer, item_id text, asked jsonb)
RETURNS TABLE (item text, score double precision, rank integer) LANGUAGE c STABLE PARALLEL SAFE COST 10000 ROWS 10 AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION similar_of(integer, text, jsonb) IS 'similar() by the recommender''s number, its other arguments as a JSON object: for <name>_similar.';
"#)]
fn similar_of(
    recommender: Option<i32>,
    item_id: Option<&str>,
    asked: Option<JsonB>,
) -> TableIterator<'static, (name!(item, String), name!(score, f64), name!(rank, i32))> {
    asked_of(recommender, asked)
        .and_then(|(recommender, question)| similar_to(&recommender, item_id, &question))
        .or_report()
}

#[pg_extern(sql = r#"
CREATE FUNCTION similar_by_name(name text, item_id text, asked jsonb)
RETURNS TABLE (item text, score double precision, rank integer) LANGUAGE c STABLE PARALLEL SAFE COST 10000 ROWS 10 AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION similar_by_name(text, text, jsonb) IS 'similar() by the name of a recommender or a pipeline, its other arguments as a JSON object.';
"#)]
fn similar_by_name(
    name: Option<&str>,
    item_id: Option<&str>,
    asked: Option<JsonB>,
) -> TableIterator<'static, (name!(item, String), name!(score, f64), name!(rank, i32))> {
    similar_in(name.unwrap_or_default(), item_id, asked).or_report()
}

fn similar_in(name: &str, item: Option<&str>, asked: Option<JsonB>) -> Result<Listed> {
    let question = question(asked)?;
    match number(name) {
        Err(unknown @ Error::NoSuchRecommender(_)) => {
            let pipeline = pipeline::hold(name).map_err(|_| unknown)?;
            require_content(&question)?;
            let found = search::similar(&pipeline, item, question.k, question.filter.as_ref())?;
            Ok(TableIterator::new(found))
        }
        found => similar_to(&*once::recommender(found?)?, item, &question),
    }
}

#[pg_extern(sql = r#"
CREATE FUNCTION popular_of(recommender integer, asked jsonb)
RETURNS TABLE (item text, score double precision, rank integer) LANGUAGE c STABLE PARALLEL SAFE COST 10000 ROWS 10 AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION popular_of(integer, jsonb) IS 'popular() by the recommender''s number, its arguments as a JSON object: for <name>_popular.';
"#)]
fn popular_of(
    recommender: Option<i32>,
    asked: Option<JsonB>,
) -> TableIterator<'static, (name!(item, String), name!(score, f64), name!(rank, i32))> {
    asked_of(recommender, asked)
        .and_then(|(recommender, question)| most_popular(&recommender, &question))
        .or_report()
}

#[pg_extern(sql = r#"
CREATE FUNCTION rank_of(recommender integer, user_id text, candidates text[])
RETURNS TABLE (item text, score double precision, rank integer) LANGUAGE c STABLE PARALLEL SAFE COST 10000 ROWS 10 AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION rank_of(integer, text, text[]) IS 'rank() by the recommender''s number: for <name>_rank.';
"#)]
fn rank_of(
    recommender: Option<i32>,
    user_id: Option<&str>,
    candidates: Option<Vec<Option<String>>>,
) -> TableIterator<'static, (name!(item, String), name!(score, f64), name!(rank, i32))> {
    let candidates = candidates.into_iter().flatten().flatten().collect();
    asked_of(recommender, None)
        .and_then(|(recommender, _)| ranked_for(&recommender, user_id, candidates))
        .or_report()
}

#[pg_extern(sql = r#"
CREATE FUNCTION recommender_number(name text) RETURNS integer LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION recommender_number(text) IS 'The number of the recommender that a name means, for recommend, similar and popular. Errors: 42704 where there is none.';
"#)]
fn recommender_number(name: Option<&str>) -> i32 {
    number(name.unwrap_or_default()).or_report()
}

fn asked_of(recommender: Option<i32>, asked: Option<JsonB>) -> Result<(Rc<Recommender>, Question)> {
    let found = once::recommender(recommender.unwrap_or_default())?;
    Ok((found, question(asked)?))
}

fn question(asked: Option<JsonB>) -> Result<Question> {
    Question::of(asked.map_or_else(|| serde_json::json!({}), |asked| asked.0))
}
