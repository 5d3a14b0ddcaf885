//! search: the rows nearest to a text, joined with the live rows as the caller may read them.
//!
//! It never returns fewer rows than there are: where the index gives too few, it looks at all of them.

use pgrx::JsonB;
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::filter::{self, Column};
use super::query;
use crate::catalog::names;
use crate::catalog::pipeline::{self, Pipeline};
use crate::catalog::rights::with_settings;
use crate::embed::endpoint::Purpose;
use crate::error::{Error, OrReport, Result};
use crate::store::vector;

type Found = (String, f64, i32);

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
'The k rows of a pipeline''s source nearest to a text: item (the key as text; several columns as a JSON object), score (cosine similarity, 1 = same direction), rank from 1. filter: {"column": value | [any, of] | {"gte","gt","lte","lt","contains"} | null}, checked against the live row. Needs SELECT on the source and on the pipeline''s relation, and USAGE on the server. Errors: 42704 unknown pipeline, 42703 unknown column in filter, 22023 bad k or filter, and those of embed.';
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
    let pipeline = pipeline::find(name)?;
    if let Some(pipeline::Trouble::Broken(reason)) = pipeline.trouble() {
        return Err(Error::BrokenPipeline {
            name: pipeline.relation,
            reason,
        });
    }
    require_select(&[&pipeline.relation, &pipeline.source])?;
    let schema = names::vector_schema()
        .ok_or_else(|| Error::Internal("extension vector is missing".into()))?;
    let (vector_type, _) = names::vector_types()
        .ok_or_else(|| Error::Internal("extension vector is missing".into()))?;
    let values = query::vector_of(&pipeline.server, query, Purpose::Query)?;
    // Its settings exist once its library is loaded.
    names::select_one::<bool>(&format!("SELECT '[1]'::{schema}.vector IS NOT NULL"), &[])?;

    let (conditions, parameters) = match &filter {
        None => Default::default(),
        Some(filter) => filter::conditions(
            filter,
            &columns(pipeline.source_oid())?,
            &pipeline.source,
            2,
        )?,
    };
    let sql = statement(&pipeline, &schema, &conditions, k);
    let run = || -> Result<Vec<Found>> {
        let mut arguments = vec![vector::single(&values, vector_type)];
        arguments.extend(parameters.iter().map(|values| values.clone().into()));
        Spi::connect(|client| {
            let mut found = Vec::new();
            for row in client.select(sql.as_str(), None, &arguments)? {
                found.push((
                    row.get::<String>(1)?.unwrap_or_default(),
                    row.get::<f64>(2)?.unwrap_or_default(),
                    found.len() as i32 + 1,
                ));
            }
            Ok(found)
        })
    };
    let by_index = with_settings(&[(c"hnsw.iterative_scan", c"strict_order")], run)?;
    if by_index.len() == k as usize {
        return Ok(by_index);
    }
    with_settings(&[(c"enable_indexscan", c"off")], run)
}

/// SELECT on all of them, or an error that hints at the GRANT.
pub fn require_select(relations: &[&String]) -> Result<()> {
    for relation in relations {
        let may = names::select_one::<bool>(
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

/// As the caller: the relation's vectors, the source's live rows.
fn statement(pipeline: &Pipeline, schema: &str, conditions: &[String], k: i32) -> String {
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
    let mut wanted: Vec<String> = pipeline
        .row_filter
        .iter()
        .map(|filter| format!("({filter})"))
        .collect();
    wanted.extend_from_slice(conditions);
    let wanted = if wanted.is_empty() {
        String::new()
    } else {
        format!("WHERE {}", wanted.join(" AND "))
    };
    let distance = format!(
        "e.embedding OPERATOR({schema}.<=>) $1::{schema}.{}({})",
        pipeline.storage, pipeline.dimensions
    );
    format!(
        "SELECT {item}, (1 - ({distance}))::float8 FROM {} e JOIN {} s ON {} {wanted} ORDER BY {distance} LIMIT {k}",
        pipeline.relation,
        pipeline.rows_of,
        on.join(" AND "),
    )
}

/// The columns that a filter may name.
pub fn columns(source: pg_sys::Oid) -> Result<Vec<Column>> {
    Spi::connect(|client| {
        let mut columns = Vec::new();
        let rows = client.select(
            "SELECT a.attname::text, pg_catalog.quote_ident(a.attname), pg_catalog.format_type(a.atttypid, -1)
               FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            None,
            &[source.into()],
        )?;
        for row in rows {
            columns.push(Column {
                name: row.get::<String>(1)?.unwrap_or_default(),
                quoted: row.get::<String>(2)?.unwrap_or_default(),
                type_name: row.get::<String>(3)?.unwrap_or_default(),
            });
        }
        Ok(columns)
    })
}
