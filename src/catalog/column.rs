//! into_column: vectors in a column of the source. What the column must be, how it is made, and how the pipeline's
//! view shows it.
//!
//! It never lets anything depend on the source's columns: PostgreSQL would refuse their owner's DDL because of it. So
//! the view reads them through a function whose body is plain text, which the planner puts in its place.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::ddl::seeing_its_effects;
use super::names::{literal, quote, select_one, vector_schema};
use super::pipeline::{self, Pipeline};
use super::rights::{As, with_settings};
use super::watch::{SourceTable, lock_in_tries};
use crate::error::{Error, Result};

/// Bytes of a name in PostgreSQL.
const LONGEST_NAME: usize = 63;

/// The column as it is.
struct Is {
    /// `vector` or `halfvec`; `None`: something else.
    storage: Option<String>,
    type_name: String,
    modifier: i32,
    generated: bool,
    not_null: bool,
}

fn refused(reason: String, hint: &str) -> Error {
    Error::argument("into_column", reason, hint)
}

fn describe(source: pg_sys::Oid, name: &str) -> Result<Option<Is>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT CASE WHEN t.typname IN ('vector', 'halfvec') AND t.typnamespace = (SELECT x.extnamespace FROM pg_catalog.pg_extension x WHERE x.extname = 'vector')
                         THEN t.typname::text END,
                    pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypmod, a.attgenerated <> '', a.attnotnull
               FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
              WHERE a.attrelid = $1 AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped",
            Some(1),
            &[source.into(), name.into()],
        )?;
        if rows.is_empty() {
            return Ok(None);
        }
        let row = rows.first();
        Ok(Some(Is {
            storage: row.get::<String>(1)?,
            type_name: row.get::<String>(2)?.unwrap_or_default(),
            modifier: row.get::<i32>(3)?.unwrap_or(-1),
            generated: row.get::<bool>(4)?.unwrap_or(false),
            not_null: row.get::<bool>(5)?.unwrap_or(false),
        }))
    })
}

/// Whether the source has the column, and of which storage it is. Refuses one that cannot hold the vectors.
pub fn check(
    source: pg_sys::Oid,
    table: &SourceTable,
    name: &str,
    storage: Option<&str>,
    dimensions: usize,
) -> Result<Option<String>> {
    if name.is_empty() || name.len() > LONGEST_NAME {
        return Err(refused(
            format!("\"{name}\" is not a column's name"),
            "Give 1 to 63 bytes.",
        ));
    }
    let Some(is) = describe(source, name)? else {
        return Ok(None);
    };
    let column = quote(name);
    if table.key_columns.iter().any(|key| key == name) {
        return Err(refused(
            format!("column {column} is part of the primary key"),
            "Name a column of its own; it is added where it is missing.",
        ));
    }
    let Some(is_stored) = is.storage else {
        return Err(refused(
            format!("column {column} is {}", is.type_name),
            "Name a column of pgvector's type vector or halfvec, or one that is not there: it is added.",
        ));
    };
    if is.modifier != -1 && is.modifier as usize != dimensions {
        return Err(refused(
            format!(
                "column {column} is {}, the server gives {dimensions} dimensions",
                is.type_name
            ),
            "Name a column of this width, or one that is not there: it is added.",
        ));
    }
    if is.generated {
        return Err(refused(
            format!("column {column} is generated"),
            "Only its expression can write it: name another column.",
        ));
    }
    if is.not_null {
        return Err(refused(
            format!("column {column} is NOT NULL"),
            "A row has no vector until its text is embedded, or when it has no text: ALTER TABLE … ALTER … DROP NOT NULL.",
        ));
    }
    if storage.is_some_and(|storage| storage != is_stored) {
        return Err(Error::argument(
            "storage",
            format!("column {column} is {}", is.type_name),
            format!("Leave storage out, or give storage => '{is_stored}'."),
        ));
    }
    Ok(Some(is_stored))
}

/// Refuses where the texts of a pipeline of the source are made of vectors: they would change without being seen to.
pub fn check_use(
    source: &str,
    into_column: Option<&str>,
    used: &[String],
    whole_row: bool,
) -> Result<()> {
    const HINT: &str =
        "The text and the filter cannot use a column that recsync writes: name its other columns.";
    if let Some(column) = into_column
        && (whole_row || used.iter().any(|used| used == column))
    {
        return Err(refused(
            format!("the text or the filter uses column {}", quote(column)),
            HINT,
        ));
    }
    let (written, taken) = {
        let _as = As::extension();
        let written = select_one::<Vec<String>>(
            "SELECT pg_catalog.array_agg(p.into_column) FROM recsync.pipeline p JOIN recsync.source s ON s.id = p.source_id WHERE s.relation = $1 AND p.into_column IS NOT NULL",
            &[source.into()],
        )?;
        let taken = select_one::<String>(
            "SELECT p.relation FROM recsync.pipeline p JOIN recsync.source s ON s.id = p.source_id
              WHERE s.relation = $1 AND (p.into_column = $2 OR $2 = ANY (p.used_columns)) LIMIT 1",
            &[source.into(), into_column.into()],
        )?;
        (written.unwrap_or_default(), taken)
    };
    if let (Some(column), Some(pipeline)) = (into_column, taken) {
        return Err(refused(
            format!("column {} is used by pipeline {pipeline}", quote(column)),
            "Each pipeline needs a column of its own.",
        ));
    }
    if let Some(column) = written.iter().find(|written| used.contains(written)) {
        return Err(Error::argument(
            "content",
            format!("column {} holds the vectors of a pipeline", quote(column)),
            HINT,
        ));
    }
    Ok(())
}

/// Adds the column to the source, its partitions and its heirs, as their owner.
pub fn add(
    source: pg_sys::Oid,
    source_name: &str,
    table: &SourceTable,
    name: &str,
    storage: &str,
    dimensions: usize,
) -> Result<()> {
    let schema = schema()?;
    let relations = select_one::<Vec<pg_sys::Oid>>(
        "WITH RECURSIVE heir AS (SELECT $1::oid AS relid UNION SELECT i.inhrelid FROM heir h JOIN pg_catalog.pg_inherits i ON i.inhparent = h.relid)
         SELECT pg_catalog.array_agg(relid ORDER BY relid <> $1::oid, relid) FROM heir",
        &[source.into()],
    )?;
    for relation in relations.unwrap_or_default() {
        lock_in_tries(relation, source_name, pg_sys::AccessExclusiveLock)?;
    }
    let _as = As::maker(table.owner);
    Spi::run(&format!(
        "ALTER TABLE {source_name} ADD COLUMN {} {schema}.{storage}({dimensions})",
        quote(name)
    ))?;
    Ok(())
}

fn schema() -> Result<String> {
    vector_schema().ok_or_else(|| Error::Internal("extension vector is missing".into()))
}

/// The pipeline's own table: of which text, by which model, the vector is that a row's column holds. A vector is
/// recognised by its hash, since a row may change its key and a user may write the column.
pub fn make_table(vectors: &str, source: &str, table: &SourceTable) -> Result<()> {
    let keys: Vec<String> = table.key_columns.iter().map(|key| quote(key)).collect();
    let keys = keys.join(", ");
    let _as = As::maker(table.owner);
    // The key columns take their types, collations included, from the source.
    Spi::run(&format!(
        "CREATE TABLE {vectors} AS SELECT {keys}, NULL::bytea AS content_hash, NULL::text AS model, NULL::timestamptz AS embedded_at,
                NULL::bytea AS embedding_hash FROM {source} WITH NO DATA"
    ))?;
    Spi::run(&format!(
        "ALTER TABLE {vectors} ADD PRIMARY KEY ({keys}), ALTER content_hash SET NOT NULL, ALTER model SET NOT NULL, ALTER embedded_at SET NOT NULL"
    ))?;
    // By which a text is found that another row has.
    Spi::run(&format!("CREATE INDEX ON {vectors} (content_hash)"))?;
    Ok(())
}

/// The view of a pipeline that was written down a moment ago.
pub fn make_view(relation: &str, owner: pg_sys::Oid) -> Result<()> {
    seeing_its_effects(|| {
        let pipeline = pipeline::find(relation)?;
        let Pipeline {
            relation, vectors, ..
        } = &pipeline;
        let keys = pipeline.keys();
        let collations = select_one::<Vec<String>>(
            "SELECT pg_catalog.array_agg(CASE WHEN a.attcollation <> t.typcollation THEN pg_catalog.format(' COLLATE %I.%I', n.nspname, c.collname) ELSE '' END ORDER BY a.attnum)
               FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
               LEFT JOIN (pg_catalog.pg_collation c JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace) ON c.oid = a.attcollation
              WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0",
            &[vectors.as_str().into()],
        )?;
        let collations = collations.unwrap_or_default();
        let shown: Vec<String> = keys.iter().map(|key| format!("e.{}", key.stored)).collect();
        let on = keys
            .iter()
            .zip(&collations)
            .enumerate()
            .map(|(n, (key, collation))| {
                format!("e.{} {} s.k{}{collation}", key.stored, key.equals, n + 1)
            });
        let on: Vec<String> = on.collect();
        let source = &pipeline.source;
        let comment = literal(&format!(
            "Embeddings of {source}, kept by recsync in its column {}; drop it with recsync.drop_pipeline.",
            pipeline.holder().column
        ));
        let function = function(&pipeline, vectors)?;
        let _as = As::maker(owner);
        for statement in [
            format!("CREATE {function}"),
            format!(
                "COMMENT ON FUNCTION {vectors}() IS 'What the view {} shows of its source; kept by recsync.'",
                relation.replace('\'', "''")
            ),
            format!(
                "CREATE VIEW {relation} AS SELECT {}, s.embedding, e.content_hash, e.model, e.embedded_at FROM {vectors} e JOIN {vectors}() s ON {}",
                shown.join(", "),
                on.join(" AND ")
            ),
            format!("COMMENT ON VIEW {relation} IS {comment}"),
        ] {
            Spi::run(&statement)?;
        }
        Ok(())
    })
}

/// The function's definition, behind CREATE or CREATE OR REPLACE. Its columns keep their names whatever the source's
/// are called.
fn function(pipeline: &Pipeline, name: &str) -> Result<String> {
    let keys = pipeline.keys();
    let column = pipeline.holder().column;
    let types: Vec<String> = keys
        .iter()
        .enumerate()
        .map(|(n, key)| format!("k{} {}", n + 1, key.type_name))
        .collect();
    let columns: Vec<String> = keys.iter().map(|key| format!("s.{}", key.column)).collect();
    let body = format!(
        "SELECT {}, s.{column} FROM {} s WHERE s.{column} IS NOT NULL",
        columns.join(", "),
        pipeline.rows_of
    );
    Ok(format!(
        "FUNCTION {name}() RETURNS TABLE ({}, embedding {}.{}) LANGUAGE sql STABLE PARALLEL SAFE AS {}",
        types.join(", "),
        schema()?,
        pipeline.storage,
        literal(&body)
    ))
}

/// The function that a pipeline's view reads its source through, qualified; `None` where it has none.
pub fn function_of(view: &str) -> Result<Option<String>> {
    select_one::<String>(
        "SELECT pg_catalog.format('%I.%I', n.nspname, f.proname)
           FROM pg_catalog.pg_rewrite r
           JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_catalog.pg_proc'::regclass
           JOIN pg_catalog.pg_proc f ON f.oid = d.refobjid AND f.pronargs = 0 AND f.proretset
           JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
          WHERE r.ev_class = pg_catalog.to_regclass($1)",
        &[view.into()],
    )
}

/// After a rename in the source: the view reads it by the names of now.
pub fn show_again(relation: &str) -> Result<()> {
    seeing_its_effects(|| {
        let pipeline = pipeline::find(relation)?;
        let (None, Some(name)) = (pipeline.trouble(), function_of(&pipeline.relation)?) else {
            return Ok(());
        };
        let function = function(&pipeline, &name)?;
        let _as = As::maker(pipeline.owner());
        with_settings(&[(c"check_function_bodies", c"off")], || {
            Spi::run(&format!("CREATE OR REPLACE {function}"))
        })?;
        Ok(())
    })
}
