//! The table that an event is for, as the caller finds it, and the statements that write it.
//!
//! It never puts a value into SQL: a value goes as JSON, and becomes what the column's type reads.

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::Deserialize;

use super::given::{Name, Refusal};
use crate::catalog::names::{self, parts, quote};
use crate::catalog::pipeline::{Key, PRIMARY, keys_sql};
use crate::catalog::rights::{in_catalog, in_subtransaction};
use crate::error::{Error, Result};

/// What is to be done with rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verb {
    /// Inserted, or written over where they are there.
    Write,
    Update,
    Delete,
}

pub struct Target {
    pub oid: pg_sys::Oid,
    /// Qualified and quoted.
    pub name: String,
    pub columns: Vec<Column>,
    pub keys: Vec<Key>,
}

#[derive(Deserialize)]
pub struct Column {
    pub name: String,
    /// The name, quoted.
    column: String,
    /// Its type, with its length.
    definition: String,
    /// PostgreSQL computes it.
    pub generated: bool,
    /// An identity column that is always generated, unless one overrides it.
    always: bool,
    numeric: bool,
}

/// The table of that name, as the caller's search_path has it.
///
/// # Errors
/// There is none, the caller may not look there, or it has no primary key.
pub fn find(name: &Name) -> std::result::Result<Target, Refusal> {
    let written = match name {
        Name::Written(text) => parts(text).unwrap_or_default(),
        Name::Exact(parts) => parts.to_vec(),
    };
    let field = match name {
        Name::Written(_) => "table",
        Name::Exact(_) => "source.table",
    };
    if !matches!(written.len(), 1 | 2) {
        return Err(Refusal::malformed(field, "it is not the name of a table"));
    }
    let written: Vec<String> = written.iter().map(|part| quote(part)).collect();
    let written = written.join(".");
    let found = in_subtransaction(|| match names::resolve(&written)? {
        Some(oid) => describe(oid),
        None => Ok(None),
    });
    match found {
        Ok(Some(target)) => Ok(target),
        Ok(None) => Err(
            Refusal::malformed(field, format!("there is no table {written}"))
                .with_code(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE),
        ),
        Err(failed) => Err(Refusal::malformed(field, failed.message).with_code(failed.code)),
    }
}

/// `None` where it is no table.
fn describe(oid: pg_sys::Oid) -> Result<Option<Target>> {
    const COLUMNS: &str = "\
SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
         'name', a.attname, 'column', pg_catalog.quote_ident(a.attname),
         'definition', pg_catalog.format_type(a.atttypid, a.atttypmod), 'generated', a.attgenerated <> '',
         'always', a.attidentity = 'a', 'numeric', a.atttypid = 'numeric'::regtype) ORDER BY a.attnum)::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.oid = $1 AND c.relkind IN ('r', 'p')";
    let Some(name) = names::qualified(oid) else {
        return Ok(None);
    };
    let keys = format!("SELECT {}::text", keys_sql("$1", PRIMARY, "''", "''"));
    in_catalog(|| {
        let Some(columns) = names::select_kept::<String>(COLUMNS, &[oid.into()])? else {
            return Ok(None);
        };
        let keys = names::select_kept::<String>(&keys, &[name.as_str().into()])?;
        let keys = keys.ok_or_else(|| Error::NoPrimaryKey(name.clone()))?;
        let misread = |error: serde_json::Error| Error::Internal(error.to_string());
        Ok(Some(Target {
            oid,
            columns: serde_json::from_str(&columns).map_err(misread)?,
            keys: serde_json::from_str(&keys).map_err(misread)?,
            name,
        }))
    })
}

impl Target {
    /// The number of a column.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    pub fn is_key(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.name == name)
    }

    /// Whether an update of these columns sets any of them.
    pub fn can_set(&self, columns: &[usize]) -> bool {
        !self.assignments(columns, "r").is_empty()
    }

    fn key_numbers(&self) -> Vec<usize> {
        let keys = self.keys.iter();
        keys.filter_map(|key| self.column(&key.name)).collect()
    }

    /// Writes the rows of `$1`, a JSON array of objects of these columns, of which those of a deletion are the key's.
    pub fn statement(&self, verb: Verb, columns: &[usize]) -> String {
        match verb {
            Verb::Write => self.insert(columns),
            Verb::Update => {
                let set = self.assignments(columns, "r");
                let (rows, same) = (self.rows(columns), self.same());
                format!(
                    "UPDATE {} AS t SET {set} FROM {rows} WHERE {same}",
                    self.name
                )
            }
            Verb::Delete => {
                let (rows, same) = (self.rows(&self.key_numbers()), self.same());
                format!("DELETE FROM {} AS t USING {rows} WHERE {same}", self.name)
            }
        }
    }

    fn insert(&self, columns: &[usize]) -> String {
        let names = self.list(columns, |column| column.column.clone());
        let values = self.list(columns, |column| format!("r.{}", column.column));
        let overriding = if columns.iter().any(|number| self.columns[*number].always) {
            " OVERRIDING SYSTEM VALUE"
        } else {
            ""
        };
        let keys = self.key_numbers();
        let conflict = if keys.iter().all(|key| columns.contains(key)) {
            let keys = self.list(&keys, |column| column.column.clone());
            match self.assignments(columns, "excluded") {
                set if set.is_empty() => format!(" ON CONFLICT ({keys}) DO NOTHING"),
                set => format!(" ON CONFLICT ({keys}) DO UPDATE SET {set}"),
            }
        } else {
            String::new()
        };
        let (table, rows) = (&self.name, self.rows(columns));
        format!("INSERT INTO {table} ({names}){overriding} SELECT {values} FROM {rows}{conflict}")
    }

    /// For each of the rows of `$1` a digest of its key's values, whatever settings the session writes values by.
    pub fn key_digests(&self) -> String {
        let numbers = self.key_numbers();
        // 1 and 1.0 are the same key, and not the same text.
        let key = self.list(&numbers, |column| match column.numeric {
            true => format!("pg_catalog.trim_scale(r.{})", column.column),
            false => format!("r.{}", column.column),
        });
        format!(
            "SELECT pg_catalog.array_agg(pg_catalog.encode(pg_catalog.sha256(pg_catalog.record_send(ROW({key}))), 'hex')) FROM {}",
            self.rows(&numbers)
        )
    }

    /// `$1` as rows `r` of these columns, in its order. Not by jsonb_populate_record, which checks the columns that are not
    /// given, too.
    fn rows(&self, columns: &[usize]) -> String {
        let columns = self.list(columns, |column| {
            format!("{} {}", column.column, column.definition)
        });
        format!("pg_catalog.json_to_recordset($1::pg_catalog.json) AS r ({columns})")
    }

    /// Of what is no key, and may be set.
    fn assignments(&self, columns: &[usize], from: &str) -> String {
        let set: Vec<usize> = columns
            .iter()
            .copied()
            .filter(|number| {
                let column = &self.columns[*number];
                !column.always && !self.is_key(&column.name)
            })
            .collect();
        self.list(&set, |column| {
            format!("{} = {from}.{}", column.column, column.column)
        })
    }

    fn same(&self) -> String {
        let keys = self.keys.iter().map(|key| {
            let (column, equals) = (&key.column, &key.equals);
            format!("t.{column} {equals} r.{column}")
        });
        keys.collect::<Vec<_>>().join(" AND ")
    }

    fn list(&self, columns: &[usize], show: impl Fn(&Column) -> String) -> String {
        let columns = columns.iter().map(|number| show(&self.columns[*number]));
        columns.collect::<Vec<_>>().join(", ")
    }
}
