//! The relation that holds vectors which were there before: its column, and how its rows belong to the source's.
//!
//! It never guesses between two columns: it lists them.

use pgrx::pg_sys;

use super::super::names::{qualified, quote, select_one};
use super::super::pipeline::Pipeline;
use super::super::rights::{As, in_catalog, may_read};
use crate::error::{Error, Result};

/// The columns of a relation, and which of them are pgvector's.
const COLUMNS: &str = "\
SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
 WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
   AND (NOT $2 OR t.typname IN ('vector', 'halfvec') AND t.typnamespace = (SELECT x.extnamespace FROM pg_catalog.pg_extension x WHERE x.extname = 'vector'))";

/// The columns of relation `$1` that refer to columns `$3` of `$2`, in their order; NULL unless one foreign key has all.
const REFERRING: &str = "\
SELECT CASE WHEN pg_catalog.count(*) = 1 THEN (pg_catalog.array_agg(f.columns))[1] END
  FROM (SELECT pg_catalog.to_json(pg_catalog.array_agg(a.attname::text ORDER BY k.n))::text AS columns
          FROM pg_catalog.pg_constraint c
         CROSS JOIN pg_catalog.unnest($3::text[]) WITH ORDINALITY AS k (name, n)
          JOIN pg_catalog.pg_attribute s ON s.attrelid = $2 AND s.attname = k.name
          JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attnum = c.conkey[pg_catalog.array_position(c.confkey, s.attnum)]
         WHERE c.conrelid = $1 AND c.confrelid = $2 AND c.contype = 'f'
         GROUP BY c.oid HAVING pg_catalog.count(*) = pg_catalog.cardinality($3::text[])) f";

pub struct From {
    /// Qualified and quoted.
    pub name: String,
    /// The vector, as SQL over a row `s` of the source and a row `a` of the relation.
    pub vector: String,
    /// It is the column that is to hold the pipeline's vectors.
    pub is_own_column: bool,
    /// The relation's columns in the order of the source's key, quoted; none where it is the source.
    keys: Option<Vec<String>>,
}

impl From {
    pub fn find(
        pipeline: &Pipeline,
        relation: Option<pg_sys::Oid>,
        column: Option<&str>,
        keys: Option<Vec<String>>,
    ) -> Result<From> {
        let source = pipeline.source_oid();
        let relation = relation.unwrap_or(source);
        let is_source = relation == source;
        let name = qualified(relation).ok_or_else(|| {
            Error::argument(
                "vectors",
                "there is no such relation",
                "Name the table that they are in.",
            )
        })?;
        require_read(pipeline, relation, &name)?;
        let all = columns(relation, false)?;
        let unknown = |column: &str| Error::NoSuchColumn {
            relation: name.clone(),
            column: column.to_owned(),
            columns: all.join(", "),
        };
        let into = pipeline.into_column.as_deref().filter(|_| is_source);
        let column = match column.or(into) {
            Some(column) if all.iter().any(|name| name == column) => column.to_owned(),
            Some(column) => return Err(unknown(column)),
            None => the_only_one(&name, columns(relation, true)?)?,
        };
        let keys = match keys {
            _ if is_source => None,
            Some(keys) => {
                if let Some(key) = keys.iter().find(|key| !all.contains(key)) {
                    return Err(unknown(key));
                }
                Some(keys)
            }
            None => Some(keys_of(pipeline, relation, &name, &all)?),
        };
        if keys
            .as_ref()
            .is_some_and(|keys| keys.len() != pipeline.key_columns.len())
        {
            return Err(Error::argument(
                "key_columns",
                format!(
                    "the key of {} is ({})",
                    pipeline.source,
                    pipeline.key_columns.join(", ")
                ),
                "Give as many columns, in its order.",
            ));
        }
        Ok(From {
            is_own_column: is_source && pipeline.into_column.as_ref() == Some(&column),
            vector: format!("{}.{}", if is_source { "s" } else { "a" }, quote(&column)),
            keys: keys.map(|keys| keys.iter().map(|key| quote(key)).collect()),
            name,
        })
    }

    /// The source's rows with those of the relation, in a FROM.
    pub fn joined(&self, pipeline: &Pipeline) -> String {
        let Some(keys) = &self.keys else {
            return format!("{} s", pipeline.rows_of);
        };
        let on: Vec<String> = pipeline
            .keys()
            .iter()
            .zip(keys)
            .map(|(key, of)| {
                format!(
                    "s.{} {} (a.{of})::{}",
                    key.column, key.equals, key.type_name
                )
            })
            .collect();
        let (rows_of, name) = (&pipeline.rows_of, &self.name);
        format!("{rows_of} s JOIN {name} a ON {}", on.join(" AND "))
    }

    /// Refuses where a row has several: they are those of pieces of its text.
    pub fn require_one_a_row(&self, pipeline: &Pipeline) -> Result<()> {
        let Some(keys) = &self.keys else {
            return Ok(());
        };
        let keys: Vec<String> = keys.iter().map(|key| format!("a.{key}")).collect();
        let (name, vector, keys) = (&self.name, &self.vector, keys.join(", "));
        let several = format!(
            "SELECT EXISTS (SELECT FROM {name} a WHERE {vector} IS NOT NULL GROUP BY {keys} HAVING pg_catalog.count(*) > 1)"
        );
        let _as = As::owner(pipeline.owner());
        match select_one::<bool>(&several, &[])? {
            Some(true) => Err(Error::argument(
                "vectors",
                format!("{name} has several vectors of one row"),
                "Give a view that has one a row. Vectors of the pieces of a text cannot be adopted.",
            )),
            _ => Ok(()),
        }
    }
}

fn require_read(pipeline: &Pipeline, relation: pg_sys::Oid, name: &str) -> Result<()> {
    let owner = pipeline.owner();
    if may_read(owner, relation)? {
        return Ok(());
    }
    // SAFETY: the owner exists.
    let role = unsafe { std::ffi::CStr::from_ptr(pg_sys::GetUserNameFromId(owner, false)) };
    let role = quote(&role.to_string_lossy());
    Err(Error::Denied {
        what: format!("the pipeline's owner {role} cannot read {name}"),
        grant: format!("GRANT SELECT ON {name} TO {role};"),
    })
}

fn columns(relation: pg_sys::Oid, vectors: bool) -> Result<Vec<String>> {
    let found = in_catalog(|| select_one(COLUMNS, &[relation.into(), vectors.into()]))?;
    Ok(found.unwrap_or_default())
}

fn the_only_one(name: &str, vectors: Vec<String>) -> Result<String> {
    match <[String; 1]>::try_from(vectors) {
        Ok([column]) => Ok(column),
        Err(vectors) => Err(Error::argument(
            "vector_column",
            match vectors.len() {
                0 => format!("{name} has no column of type vector or halfvec"),
                _ => format!(
                    "{name} has several columns of vectors: {}",
                    vectors.join(", ")
                ),
            },
            "Give vector_column => '…'. Arrays of numbers are read, too.",
        )),
    }
}

/// The columns that hold the source's key: of the same names, or of the one foreign key to it.
fn keys_of(
    pipeline: &Pipeline,
    relation: pg_sys::Oid,
    name: &str,
    all: &[String],
) -> Result<Vec<String>> {
    let keys = &pipeline.key_columns;
    let arguments = [
        relation.into(),
        pipeline.source_oid().into(),
        keys.clone().into(),
    ];
    let referring = in_catalog(|| select_one::<String>(REFERRING, &arguments))?;
    if let Some(columns) = referring {
        return serde_json::from_str(&columns).map_err(|error| Error::Internal(error.to_string()));
    }
    match keys.iter().all(|key| all.contains(key)) {
        true => Ok(keys.clone()),
        false => Err(Error::argument(
            "key_columns",
            format!(
                "{name} has no foreign key to {}, nor columns of the names of its key",
                pipeline.source
            ),
            format!(
                "Give key_columns => ARRAY['…'] in the order of the key ({}).",
                keys.join(", ")
            ),
        )),
    }
}
