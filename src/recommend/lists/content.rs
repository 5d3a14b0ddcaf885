//! Items by their vectors: what is asked as the owner of the items.
//!
//! It never holds a vector: that is a parameter. A statement without a limit never uses an index, which would end where
//! it has looked at enough.

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use serde_json::Value;
use std::ffi::CStr;

use super::question::Question;
use super::statements::{FUSION, MOST, Parts};
use crate::catalog::index::bits_of;
use crate::catalog::names::select_kept;
use crate::catalog::recommender::Recommender;
use crate::catalog::recommender::embedding::Vectors;
use crate::catalog::rights::{As, with_settings};
use crate::error::Result;
use crate::recommend::filter::{Column, conditions};
use crate::recommend::interest;
use crate::recommend::search::{columns, load_library};
use crate::statement::{Finds, Statement};
use crate::store::vector::Numbers;

/// Items nearest to a vector that are candidates; so many are looked at a time in an index.
const NEAREST: usize = 200;
/// With a filter, candidates for each row that is wanted, since each may be one of many that were looked at; and so many
/// at the least.
const FILTERED: usize = 2;
const FEWEST: usize = 20;
/// Candidates by bits for each of those.
const OVERSAMPLING: usize = 5;

/// For statements that look at vectors. An index goes on where what it has found is not eligible; in which order it
/// finds does not matter, since distances decide.
pub const SETTINGS: [(&CStr, &CStr); 3] = [
    // Compiling the plan would take longer than running it.
    (c"jit", c"off"),
    (c"hnsw.iterative_scan", c"relaxed_order"),
    (c"hnsw.ef_search", c"200"),
];

/// Which of the items that are near to a user's interests are candidates.
pub struct Near<'a> {
    vectors: &'a Vectors,
    /// The filter, of rows `s`: what is near and does not pass it is no candidate.
    pub conditions: Vec<String>,
    /// Its values, and what else they are asked with: parameters from `$5` on.
    pub parameters: Vec<Vec<String>>,
    most: usize,
}

/// Whose list it is, and what is left out of it.
pub struct For<'a> {
    pub user: Option<&'a str>,
    pub session: &'a [String],
    pub exclude_seen: bool,
}

impl For<'_> {
    /// Of `among`, what is near to the user's interests; none where the items have no vectors, or nothing is known of the
    /// user. `ready` is shown what is looked for before it is.
    pub fn nearest(
        &self,
        r: &Recommender,
        among: &Recommender,
        question: &Question,
        ready: impl FnOnce(&mut Near) -> Result<()>,
    ) -> Result<Vec<String>> {
        let Some(interest) = interest::of_user(r, self.user, self.session)? else {
            return Ok(Vec::new());
        };
        let Some(mut near) = Near::of(r, question)? else {
            return Ok(Vec::new());
        };
        ready(&mut near)?;
        near.items(among, self, interest)
    }

    /// The parameters `$1` to `$5` of [`super::statements`].
    pub fn arguments(
        &self,
        nearest: &[String],
        factors: &Option<Numbers>,
    ) -> Vec<DatumWithOid<'_>> {
        vec![
            self.user.into(),
            self.session.to_vec().into(),
            self.exclude_seen.into(),
            nearest.to_vec().into(),
            factors.clone().into(),
        ]
    }
}

impl Near<'_> {
    /// `None` where the items have no vectors. The caller's right to filter so is not looked at here.
    pub fn of<'a>(r: &'a Recommender, question: &Question) -> Result<Option<Near<'a>>> {
        let Some(vectors) = &r.vectors else {
            return Ok(None);
        };
        let (conditions, parameters) = match &question.filter {
            None => Default::default(),
            Some(filter) => {
                let columns = columns(r.items_oid())?;
                match may_choose(r, filter, &columns)? {
                    true => conditions(filter, &columns, &r.items, 5)?,
                    false => Default::default(),
                }
            }
        };
        let most = match conditions.as_slice() {
            [] => NEAREST,
            _ => (FILTERED * question.up_to()).clamp(FEWEST, NEAREST),
        };
        Ok(Some(Near {
            vectors,
            conditions,
            parameters,
            most,
        }))
    }

    /// Those nearest to a vector, in order, as the owner.
    pub fn items(&self, r: &Recommender, of: &For, vector: Vec<f32>) -> Result<Vec<String>> {
        load_library()?;
        let parts = Parts::new(r)?;
        let passes: Vec<String> = (self.conditions.iter().cloned())
            .chain([parts.open(r)])
            .collect();
        let statement = format!(
            "WITH {hidden} SELECT n.item_id::text FROM ({nearest}) n ORDER BY n.distance, n.item_id",
            hidden = parts.hidden(r)?,
            nearest = nearest(r, self.vectors, 4, &passes.join(" AND "), self.most)?,
        );
        // Where few pass a filter, to look at all of them may take less than to look for the nearest in an index.
        let finds = match self.conditions.is_empty() {
            true => Finds::ByKey,
            false => Finds::AsGiven,
        };
        let mut arguments: Vec<DatumWithOid> = vec![
            of.user.into(),
            of.session.to_vec().into(),
            of.exclude_seen.into(),
            Numbers(vector).into(),
        ];
        arguments.extend(self.parameters.iter().map(|values| values.clone().into()));
        let _as = As::owner(r.owner());
        with_settings(&SETTINGS, || {
            Spi::connect(|client| {
                let statement = Statement::kept(&statement, finds);
                let mut items = Vec::new();
                for row in statement.select(client, &arguments)? {
                    items.extend(row.get::<String>(1)?);
                }
                Ok(items)
            })
        })
    }
}

/// Whether candidates may be chosen by a filter, as the owner: not where the caller must not know of some rows, nor by
/// types whose operators the owner may not find.
fn may_choose(r: &Recommender, filter: &Value, columns: &[Column]) -> Result<bool> {
    let hidden = select_kept::<bool>(
        "SELECT pg_catalog.row_security_active($1)",
        &[r.items_oid().into()],
    )?;
    let known = |name: &String| {
        let column = columns.iter().find(|column| column.name == *name);
        column.is_some_and(|column| !column.type_name.contains('.'))
    };
    let fields = filter.as_object();
    Ok(hidden != Some(true) && fields.is_none_or(|fields| fields.keys().all(known)))
}

/// `item_id` and `distance` of the items nearest to parameter `number`, of those that pass.
pub fn nearest(
    r: &Recommender,
    vectors: &Vectors,
    number: usize,
    passes: &str,
    most: usize,
) -> Result<String> {
    let Parts {
        rows, key, equals, ..
    } = &Parts::new(r)?;
    let Vectors {
        relation,
        key: of_vector,
        schema,
        ..
    } = vectors;
    let operator = vectors.distance.operator();
    let wanted = wanted(vectors, number);
    let from = format!("{relation} v JOIN {rows} s ON {key} {equals} v.{of_vector} WHERE {passes}");
    let distance = format!("v.embedding OPERATOR({schema}.{operator}) {wanted}");
    if !vectors.by_bits {
        return Ok(format!(
            "SELECT {key} AS item_id, {distance} AS distance FROM {from} ORDER BY {distance} LIMIT {most}"
        ));
    }
    let [theirs, its] =
        ["v.embedding", &wanted].map(|of| bits_of(of, i64::from(vectors.dimensions), schema));
    Ok(format!(
        "SELECT b.item_id, b.distance
           FROM (SELECT {key} AS item_id, {distance} AS distance FROM {from}
                  ORDER BY {theirs} OPERATOR({schema}.<~>) {its} LIMIT {}) b
          ORDER BY b.distance LIMIT {most}",
        most * OVERSAMPLING
    ))
}

fn wanted(vectors: &Vectors, number: usize) -> String {
    let Vectors {
        schema,
        storage,
        dimensions,
        ..
    } = vectors;
    format!("${number}::{schema}.{storage}({dimensions})")
}

/// What may be listed beside item `$1`.
fn others(r: &Recommender, parts: &Parts) -> String {
    let Parts {
        key, kind, equals, ..
    } = parts;
    format!("({}) AND NOT {key} {equals} $1::{kind}", r.eligible)
}

/// The items nearest to vector `$2`, that of item `$1`.
pub fn similar(r: &Recommender, vectors: &Vectors) -> Result<String> {
    let passes = others(r, &Parts::new(r)?);
    Ok(format!(
        "SELECT n.item_id::text, {}, NULL::int4[] FROM ({}) n ORDER BY n.distance, n.item_id",
        vectors.distance.score("n.distance"),
        nearest(r, vectors, 2, &passes, NEAREST)?
    ))
}

/// All others but those of `$3`, the nearest first.
pub fn rest(r: &Recommender, vectors: &Vectors, score: &str) -> Result<String> {
    let parts = Parts::new(r)?;
    let passes = others(r, &parts);
    let Parts {
        rows,
        key,
        kind,
        equals,
        ..
    } = &parts;
    let Vectors {
        relation,
        key: of_vector,
        schema,
        ..
    } = vectors;
    Ok(format!(
        "SELECT n.item_id::text, {score}, NULL::int4[]
           FROM (SELECT {key} AS item_id, (v.embedding OPERATOR({schema}.{operator}) {wanted}) + 0::float8 AS distance
                   FROM {relation} v JOIN {rows} s ON {key} {equals} v.{of_vector}
                  WHERE {passes} AND NOT {key} {equals} ANY (SELECT given::{kind} FROM pg_catalog.unnest($3::text[]) AS given)) n
          ORDER BY n.distance, n.item_id",
        wanted = wanted(vectors, 2),
        operator = vectors.distance.operator(),
    ))
}

/// Items that are near to `$2`, the vector of item `$1`, and those that have users in common with it: fused.
pub fn blend(r: &Recommender, vectors: &Vectors, by_interactions: &str) -> Result<String> {
    let parts = Parts::new(r)?;
    let passes = others(r, &parts);
    Ok(format!(
        "WITH listed AS (
           SELECT c.item_id, pg_catalog.row_number() OVER (ORDER BY c.score DESC, c.item_id) AS place
             FROM (SELECT i.item::{kind} AS item_id, i.score FROM ({by_interactions}) AS i (item, score) LIMIT {MOST}) c
            UNION ALL
           SELECT n.item_id, pg_catalog.row_number() OVER (ORDER BY n.distance, n.item_id)
             FROM ({nearest}) n)
         SELECT l.item_id::text, pg_catalog.sum({top} / ({FUSION} + l.place))::float8, NULL::int4[]
           FROM listed l GROUP BY l.item_id ORDER BY 2 DESC, l.item_id",
        kind = parts.kind,
        nearest = nearest(r, vectors, 2, &passes, NEAREST)?,
        // Who is first by both scores 1.
        top = (FUSION + 1.0) / 2.0,
    ))
}
