//! search: the rows nearest to a text, joined with the live rows as the caller may read them.
//!
//! An index over bits gives more candidates than are asked for, which the full vectors then put in order. It never
//! returns fewer rows than there are: where the index gives too few, it looks at all of them.

use pgrx::JsonB;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::{CStr, CString};

// The filter of the pipeline itself.
mod passing;

use super::filter::{self, Column};
use super::query;
use crate::catalog::index::bits_of;
use crate::catalog::names;
use crate::catalog::pipeline::{self, Pipeline};
use crate::catalog::rights::{in_catalog, with_settings};
use crate::embed::endpoint::Purpose;
use crate::error::{Error, OrReport, Result};
use crate::statement::{Finds, Statement};
use crate::store::vector::{self, Numbers};

type Found = (String, f64, i32);

/// Candidates by bits for each row that is asked for: with so many the ten nearest of some thousand texts are all found at
/// 384 dimensions (benches/README.md), and the fewer a vector has, the less its bits say. At least so many, which cost a
/// millisecond or two.
const OVERSAMPLING: usize = 20;
const FEWEST_CANDIDATES: usize = 200;
/// Chunks that are looked at for each row that is asked for; where that gives too few rows as many times more, so often.
const CHUNKS_A_ROW: usize = 4;
const ROUNDS_OF_CHUNKS: usize = 3;
/// As far as hnsw.ef_search goes; beyond it the index is asked for more.
const MOST_LOOKED_AT: usize = 1_000;

/// The rows nearest to a text.
#[pg_extern(stable, parallel_restricted)]
fn search(
    name: &str,
    query: &str,
    k: default!(i32, 10),
    filter: default!(Option<JsonB>, "NULL"),
) -> TableIterator<'static, (name!(item, String), name!(score, f64), name!(rank, i32))> {
    TableIterator::new(find(name, query, k, filter.map(|filter| filter.0)).or_report())
}

extension_sql!(
    r#"
COMMENT ON FUNCTION search(text, text, integer, jsonb) IS
'The k rows of a pipeline''s source nearest to a text: item (the key as text; several columns as a JSON object), score (more for what is nearer: by distance cosine the cosine similarity, 1 = same direction; by inner_product the inner product; by l2 1 / (1 + distance)), rank from 1; of a pipeline with chunks each row once, by its best chunk. filter: {"column": value | [any, of] | {"gte","gt","lte","lt","contains"} | null}, checked against the live row. Needs SELECT on the source and on the pipeline''s relation, and USAGE on the server. Errors: 42704 unknown pipeline, 42703 unknown column in filter, 22023 bad k or filter, and those of embed.';
"#,
    name = "search_comment",
    requires = [search]
);

fn find(name: &str, query: &str, k: i32, filter: Option<serde_json::Value>) -> Result<Vec<Found>> {
    if !(1..=10_000).contains(&k) {
        return Err(Error::argument(
            "k",
            format!("{k} rows cannot be asked for"),
            "Give 1 to 10000.",
        ));
    }
    let pipeline = pipeline::hold(name)?;
    require_readable(&pipeline)?;
    let values = query::vector_of(
        Some(pipeline.account),
        &pipeline.server,
        query,
        Purpose::Query,
    )?;
    nearest(&pipeline, &values, k as usize, filter.as_ref())
}

/// Refuses where the pipeline is broken, or the caller may not read the vectors and the rows.
fn require_readable(pipeline: &Pipeline) -> Result<()> {
    if let Some(pipeline::Trouble::Broken(reason)) = pipeline.trouble() {
        return Err(Error::BrokenPipeline {
            name: pipeline.relation.clone(),
            reason,
        });
    }
    require_select(&[&pipeline.relation, &pipeline.source])
}

/// The rows nearest to a row, by its key as [`search`] gives it.
pub fn similar(
    pipeline: &Pipeline,
    item: Option<&str>,
    k: usize,
    filter: Option<&serde_json::Value>,
) -> Result<Vec<Found>> {
    require_readable(pipeline)?;
    let schema = load_library()?;
    let keys = pipeline.keys();
    let is_it: Vec<String> = keys
        .iter()
        .map(|key| {
            let given = match keys {
                [_] => "$1".to_owned(),
                _ => format!("($1::jsonb ->> {})", names::literal(&key.name)),
            };
            let (column, equals, kind) = (&key.column, &key.equals, &key.type_name);
            format!("s.{column} {equals} {given}::{kind}")
        })
        .collect();
    let Search {
        item: key, rows, ..
    } = Search::new(pipeline, &schema, &is_it, 1);
    let sql = match pipeline.has_chunks() {
        true => {
            format!("SELECT {key}, {schema}.avg(e.embedding::{schema}.vector) {rows} GROUP BY 1")
        }
        false => format!("SELECT {key}, e.embedding::{schema}.vector {rows}"),
    };
    let found = Spi::connect(|client| -> Result<Option<(String, Numbers)>> {
        let mut found = client.select(sql.as_str(), Some(1), &[item.into()])?;
        match found.next() {
            Some(row) => Ok(row.get::<String>(1)?.zip(row.get::<Numbers>(2)?)),
            None => Ok(None),
        }
    })?;
    let Some((item, Numbers(vector))) = found else {
        return Ok(Vec::new());
    };
    if passing::first(pipeline, 1, |_| Ok(vec![(item.clone(), 1.0, 1)]))?.is_empty() {
        return Ok(Vec::new());
    }
    let others = nearest(pipeline, &vector, k + 1, filter)?.into_iter();
    let others = others.filter(|(other, ..)| *other != item).take(k);
    Ok((1..)
        .zip(others)
        .map(|(rank, (item, score, _))| (item, score, rank))
        .collect())
}

/// Where pgvector is. Its settings exist once its library is loaded.
pub fn load_library() -> Result<String> {
    let schema = names::vector_schema()
        .ok_or_else(|| Error::Internal("extension vector is missing".into()))?;
    thread_local! {
        static LOADED: Cell<bool> = const { Cell::new(false) };
    }
    if !LOADED.get() {
        names::select_one::<bool>(&format!("SELECT '[1]'::{schema}.vector IS NOT NULL"), &[])?;
        LOADED.set(true);
    }
    Ok(schema)
}

/// The k rows nearest to a vector, as the caller.
fn nearest(
    pipeline: &Pipeline,
    values: &[f32],
    k: usize,
    filter: Option<&serde_json::Value>,
) -> Result<Vec<Found>> {
    let schema = load_library()?;
    let (vector_type, _) = names::vector_types()
        .ok_or_else(|| Error::Internal("extension vector is missing".into()))?;
    let (conditions, parameters) = match filter {
        None => Default::default(),
        Some(filter) => filter::conditions(
            filter,
            &columns(pipeline.source_oid())?,
            &pipeline.source,
            2,
        )?,
    };
    let run = |sql: &str| -> Result<Vec<Found>> {
        let mut arguments = vec![vector::single(values, vector_type)];
        arguments.extend(parameters.iter().map(|values| values.clone().into()));
        Spi::connect(|client| {
            let mut found = Vec::new();
            for row in client.select(sql, None, &arguments)? {
                found.push((
                    row.get::<String>(1)?.unwrap_or_default(),
                    row.get::<f64>(2)?.unwrap_or_default(),
                    found.len() as i32 + 1,
                ));
            }
            Ok(found)
        })
    };
    passing::first(pipeline, k, |k| {
        let search = Search::new(pipeline, &schema, &conditions, k);
        let all = search.of_vectors();
        if pipeline.has_chunks() {
            return nearest_by_chunks(&search, run);
        }
        let by_index = if pipeline.index == "hnsw_bit" && pipeline.indexed {
            let candidates = candidates(k);
            let look_at = candidates.min(MOST_LOOKED_AT).to_string();
            let look_at = CString::new(look_at).unwrap_or_default();
            // In which order they are found does not matter: their vectors decide.
            let settings: [(&CStr, &CStr); 2] = [
                (c"hnsw.iterative_scan", c"relaxed_order"),
                (c"hnsw.ef_search", &look_at),
            ];
            with_settings(&settings, || run(&search.of_bits(candidates)))?
        } else {
            with_settings(&[(c"hnsw.iterative_scan", c"strict_order")], || run(&all))?
        };
        if by_index.len() == k {
            return Ok(by_index);
        }
        with_settings(&[(c"enable_indexscan", c"off")], || run(&all))
    })
}

/// The rows whose best chunk is nearest. Chunks that are nearer than the best of the last row are all of rows that are
/// asked for: so that many chunks are looked at that there are as many rows among them, at last all.
fn nearest_by_chunks(
    search: &Search,
    run: impl Fn(&str) -> Result<Vec<Found>>,
) -> Result<Vec<Found>> {
    let by_bits = search.pipeline.index == "hnsw_bit" && search.pipeline.indexed;
    let mut chunks = search.k * CHUNKS_A_ROW;
    for _ in 0..ROUNDS_OF_CHUNKS {
        let (order, look_at, sql) = match by_bits {
            true => {
                let candidates = candidates(chunks);
                let sql = search.best_of(&search.chunks_of_bits(candidates, chunks));
                (c"relaxed_order", candidates.min(MOST_LOOKED_AT), sql)
            }
            false => {
                let sql = search.best_of(&search.chunks_of_vectors(Some(chunks)));
                (c"strict_order", chunks.min(MOST_LOOKED_AT), sql)
            }
        };
        let look_at = CString::new(look_at.to_string()).unwrap_or_default();
        let settings: [(&CStr, &CStr); 2] = [
            (c"hnsw.iterative_scan", order),
            (c"hnsw.ef_search", &look_at),
        ];
        let found = with_settings(&settings, || run(&sql))?;
        if found.len() == search.k {
            return Ok(found);
        }
        chunks *= CHUNKS_A_ROW;
    }
    let all = search.best_of(&search.chunks_of_vectors(None));
    with_settings(&[(c"enable_indexscan", c"off")], || run(&all))
}

/// How many rows nearest by their bits are put in order by their vectors, so that the nearest are among them.
fn candidates(k: usize) -> usize {
    (k * OVERSAMPLING)
        .clamp(FEWEST_CANDIDATES, MOST_LOOKED_AT)
        .max(2 * k)
}

/// SELECT on all of them, or an error that hints at the GRANT.
pub fn require_select(relations: &[&String]) -> Result<()> {
    for relation in relations {
        let may = names::select_kept::<bool>(
            "SELECT pg_catalog.has_table_privilege($1, 'SELECT') OR pg_catalog.has_any_column_privilege($1, 'SELECT')",
            &[relation.as_str().into()],
        )?;
        if may != Some(true) {
            return Err(Error::Denied {
                what: format!("you may not read {relation}"),
                grant: format!("GRANT SELECT ON {relation} TO …;"),
            });
        }
    }
    Ok(())
}

/// The parts of the statements that look, as the caller, at the relation's vectors and the source's live rows.
struct Search<'a> {
    pipeline: &'a Pipeline,
    schema: &'a str,
    k: usize,
    /// The key, as text.
    item: String,
    /// FROM and WHERE.
    rows: String,
    /// The text's vector.
    wanted: String,
    distance: String,
}

impl<'a> Search<'a> {
    fn new(pipeline: &'a Pipeline, schema: &'a str, conditions: &[String], k: usize) -> Search<'a> {
        let keys = pipeline.keys();
        let on: Vec<String> = keys
            .iter()
            .map(|key| format!("s.{} {} e.{}", key.column, key.equals, key.shown))
            .collect();
        let item = match keys {
            [key] => format!("s.{}::text", key.column),
            _ => {
                let pairs: Vec<String> = keys
                    .iter()
                    .map(|key| format!("{}, s.{}", names::literal(&key.name), key.column))
                    .collect();
                format!("pg_catalog.jsonb_build_object({})::text", pairs.join(", "))
            }
        };
        let passes = match conditions.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", conditions.join(" AND ")),
        };
        let (relation, rows_of) = (&pipeline.relation, &pipeline.rows_of);
        let on = on.join(" AND ");
        let wanted = format!("$1::{schema}.{}({})", pipeline.storage, pipeline.dimensions);
        let operator = pipeline.distance.operator();
        Search {
            pipeline,
            schema,
            k,
            item,
            rows: format!("FROM {relation} e JOIN {rows_of} s ON {on}{passes}"),
            distance: format!("e.embedding OPERATOR({schema}.{operator}) {wanted}"),
            wanted,
        }
    }

    /// The nearest by their vectors, by an index over these where there is one.
    fn of_vectors(&self) -> String {
        let Search {
            k,
            item,
            rows,
            distance,
            ..
        } = self;
        let score = self.pipeline.distance.score(distance);
        format!("SELECT {item}, ({score})::float8 {rows} ORDER BY {distance} LIMIT {k}")
    }

    /// The `most` nearest chunks, or all, for [`Search::best_of`].
    fn chunks_of_vectors(&self, most: Option<usize>) -> String {
        let Search {
            item,
            rows,
            distance,
            ..
        } = self;
        let nearest = most.map(|most| format!("ORDER BY {distance} LIMIT {most}"));
        let nearest = nearest.unwrap_or_default();
        format!("SELECT {item} AS item, {distance} AS distance {rows} {nearest}")
    }

    /// The same of the `candidates` nearest by their bits.
    fn chunks_of_bits(&self, candidates: usize, most: usize) -> String {
        let of_bits = self.candidates_of_bits(candidates);
        format!("SELECT item, distance FROM ({of_bits}) candidate ORDER BY distance LIMIT {most}")
    }

    /// Each row once, by the best of its chunks.
    fn best_of(&self, chunks: &str) -> String {
        let score = self.pipeline.distance.score("pg_catalog.min(distance)");
        format!(
            "WITH chunk AS MATERIALIZED ({chunks})
             SELECT item, ({score})::float8 FROM chunk GROUP BY item
              ORDER BY pg_catalog.min(distance) LIMIT {}",
            self.k
        )
    }

    /// The nearest by their vectors of the `candidates` nearest by their bits.
    fn of_bits(&self, candidates: usize) -> String {
        let of_bits = self.candidates_of_bits(candidates);
        let k = self.k;
        let score = self.pipeline.distance.score("distance");
        format!(
            "WITH candidate AS MATERIALIZED ({of_bits})
             SELECT item, ({score})::float8 FROM candidate ORDER BY distance LIMIT {k}"
        )
    }

    fn candidates_of_bits(&self, candidates: usize) -> String {
        let Search {
            schema,
            item,
            rows,
            distance,
            ..
        } = self;
        let dimensions = self.pipeline.dimensions;
        let [theirs, its] = ["e.embedding", &self.wanted].map(|of| bits_of(of, dimensions, schema));
        format!(
            "SELECT {item} AS item, {distance} AS distance {rows}
              ORDER BY {theirs} OPERATOR({schema}.<~>) {its} LIMIT {candidates}"
        )
    }
}

/// The columns that a filter may name.
pub fn columns(source: pg_sys::Oid) -> Result<Vec<Column>> {
    const COLUMNS: &str = "\
SELECT a.attname::text, pg_catalog.quote_ident(a.attname), pg_catalog.format_type(a.atttypid, -1)
  FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
    // Types are named in full, but for PostgreSQL's own: the caller's search_path is not the owner's.
    let ask = || {
        Spi::connect(|client| {
            let mut columns = Vec::new();
            let rows = Statement::kept(COLUMNS, Finds::ByKey).select(client, &[source.into()])?;
            for row in rows {
                columns.push(Column {
                    name: row.get::<String>(1)?.unwrap_or_default(),
                    quoted: row.get::<String>(2)?.unwrap_or_default(),
                    type_name: row.get::<String>(3)?.unwrap_or_default(),
                });
            }
            Ok(columns)
        })
    };
    in_catalog(ask)
}
