//! Rows rendered to text, as the pipeline's owner: what is unchanged ends here, what is gone loses its vector.
//!
//! It never runs an expression with more rights than the owner's, and locks no row of the source to look at it.

use hmac::{Hmac, KeyInit, Mac};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use sha2::Sha256;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};

// A row of the source beside its row of vectors.
pub mod rows;

use super::fault::{Fault, Looked};
use super::queue::Job;
use crate::catalog::names::select_one;
use crate::catalog::pipeline::{Key, Pipeline};
use crate::catalog::rights::As;
use crate::embed::long_text::{LongText, Part};
use crate::embed::token_rate::TokenRate;
use crate::error::{Error, Result};
use crate::statement::Statement;
use crate::store::adopted;
use crate::store::column::{Column, Held};
use crate::store::known::{self, Recipe};
use crate::store::vectors_of;
use rows::{columns, first_chunk, looked, same_row, same_text};

/// What a row comes to.
#[derive(Debug, PartialEq)]
pub enum Rendered {
    /// Deleted, not matching `row_filter`, or without text: its vector, if it had one, has been removed.
    Gone { removed: bool },
    /// Its vector is that of its text already, which would have had so many tokens.
    Unchanged { tokens: u64 },
    Text {
        /// What is to be sent, one part until the text is divided.
        parts: Vec<Part>,
        hash: Vec<u8>,
        stored_hash: Option<Vec<u8>>,
        /// The hash of the vector that the row's column holds.
        held: Option<Vec<u8>>,
    },
    /// A text all of whose vectors are known.
    Known {
        parts: Vec<Part>,
        hash: Vec<u8>,
        stored_hash: Option<Vec<u8>>,
    },
    /// A text of more parts than a text may have.
    TooLong,
}

/// Orphans removed in one statement.
const ORPHANS: usize = 10_000;

/// The statements of one pipeline; made anew when its declaration changes.
pub struct Renderer {
    pipeline: Pipeline,
    look: Statement,
    remove: Remove,
    /// The vectors that other rows of the pipeline have.
    same_text: Statement,
    /// Those that the generation in service has.
    copies: Option<Statement>,
    recipe: Option<Recipe>,
    /// There are vectors that were there before the pipeline.
    adopts: Cell<bool>,
    /// What texts would have cost.
    pub rate: TokenRate,
    long_text: LongText,
    remove_orphans: Statement,
    without_row: Statement,
}

/// How a row that is gone loses its vector.
enum Remove {
    /// From the pipeline's own table.
    Table(Statement),
    /// From the source's column, whose vectors a statement reads.
    Column(Box<Column>, Statement),
}

impl Renderer {
    pub fn new(
        pipeline: &Pipeline,
        vector_schema: &str,
        recipe: Option<Recipe>,
        long_text: LongText,
    ) -> Renderer {
        let keys = pipeline.keys();
        let source = &pipeline.rows_of;
        let vectors = &pipeline.vectors;
        let on_vectors = keyed(keys, "e", |key| &key.stored, "k");
        let held = Held::of(pipeline, vector_schema);
        let look = format!(
            "SELECT {} FROM {given} WITH ORDINALITY AS k ({names}, i)
               LEFT JOIN {source} s ON {on_source} LEFT JOIN {vectors} e ON {on_vectors}{first} ORDER BY k.i",
            columns(pipeline, vector_schema),
            first = first_chunk(pipeline),
            given = given(keys.len(), ""),
            names = names(keys.len()),
            on_source = keyed(keys, "s", |key| &key.column, "k"),
        );
        let (given, names, model) = (given(keys.len(), ""), names(keys.len()), keys.len() + 1);
        let remove = match &pipeline.into_column {
            None => Remove::Table(Statement::by_key(format!(
                "DELETE FROM {vectors} e USING {given} AS k ({names}) WHERE {on_vectors}
                 RETURNING e.content_hash, CASE WHEN e.model = ${model}::text THEN e.embedding::pg_catalog.float4[] END"
            ))),
            Some(_) => Remove::Column(
                Box::new(Column::new(pipeline, vector_schema)),
                Statement::by_key(format!(
                    "SELECT e.content_hash, {}::pg_catalog.float4[] FROM {} CROSS JOIN {given} AS k ({names})
                      WHERE {on_vectors} AND e.model OPERATOR(pg_catalog.=) ${model}::text",
                    held.vector, held.from
                )),
            ),
        };
        let remove_orphans = format!(
            "DELETE FROM {vectors} WHERE ctid = ANY (ARRAY(SELECT e.ctid FROM {vectors} e
              WHERE NOT EXISTS (SELECT FROM {source} s WHERE {}) LIMIT {ORPHANS}))",
            same_row(keys)
        );
        let without_row = format!(
            "SELECT EXISTS (SELECT FROM {vectors} e WHERE {on_vectors}) AND NOT EXISTS (SELECT FROM {source} s WHERE {})
               FROM {given} WITH ORDINALITY AS k ({names}, i) ORDER BY k.i",
            keyed(keys, "s", |key| &key.column, "k"),
        );
        Renderer {
            pipeline: pipeline.clone(),
            look: Statement::by_key(look).under_active_snapshot(),
            remove,
            same_text: same_text(&held.vector, &held.from),
            copies: pipeline.copies_from.as_ref().map(|table| {
                let vector = format!("e.embedding::{vector_schema}.vector");
                same_text(&vector, &format!("{table} e"))
            }),
            rate: TokenRate::new(recipe.is_none()),
            recipe,
            adopts: Cell::new(pipeline.filling.adopted),
            long_text,
            remove_orphans: Statement::planned_each_time(remove_orphans),
            without_row: Statement::by_key(without_row).under_active_snapshot(),
        }
    }

    /// Renders `jobs`, as the pipeline's owner.
    pub fn render(&self, jobs: &[Job], model: &str, secret: &[u8]) -> Result<Vec<Rendered>> {
        self.look(jobs, |mut row| {
            let Some(text) = row.text.take() else {
                return Ok(Rendered::Gone {
                    removed: row.has_something(),
                });
            };
            let hash = text_hash(secret, &text, &self.long_text)?;
            if row.is_of(&hash, model) {
                return Ok(Rendered::Unchanged {
                    tokens: self.rate.of(&text),
                });
            }
            Ok(Rendered::Text {
                parts: vec![Part::of(text, hash.clone())],
                hash,
                stored_hash: row.stored_hash,
                held: row.held,
            })
        })
    }

    /// What is wrong with each of these rows, as they stand. Their texts are rendered as the pipeline's owner.
    pub fn faults(&self, jobs: &[Job], model: &str, secret: &[u8]) -> Result<Vec<Option<Fault>>> {
        self.look(jobs, |row| {
            let text = row.text.as_deref();
            let hash = text.map(|text| text_hash(secret, text, &self.long_text));
            let hash = hash.transpose()?;
            Ok(row.fault(hash.as_deref(), model, self.removes_from_source()))
        })
    }

    /// Each of these rows as it stands, with the vector that it has. Their texts are rendered as the pipeline's owner.
    pub fn look<T>(&self, jobs: &[Job], each: impl Fn(Looked) -> Result<T>) -> Result<Vec<T>> {
        let _as = As::owner(self.pipeline.owner());
        let rows = Spi::connect(|client| -> Result<Vec<T>> {
            let mut rows = Vec::with_capacity(jobs.len());
            for row in self.look.select(client, &key_arguments(jobs.iter()))? {
                rows.push(each(looked(&row)?)?);
            }
            Ok(rows)
        })?;
        if rows.len() != jobs.len() {
            return Err(Error::Internal(format!(
                "{} keys gave {} rows",
                jobs.len(),
                rows.len()
            )));
        }
        Ok(rows)
    }

    /// The same of vectors, where all that can be wrong is that there is no row.
    pub fn without_row(&self, jobs: &[Job]) -> Result<Vec<Option<Fault>>> {
        let _as = As::owner(self.pipeline.owner());
        let arguments = key_arguments(jobs.iter());
        Spi::connect(|client| {
            let rows = self.without_row.select(client, &arguments)?;
            rows.map(|row| Ok((row.get::<bool>(1)? == Some(true)).then_some(Fault::Orphaned)))
                .collect()
        })
    }

    /// Whether a vector that is to be removed is in a user's row, which may be locked.
    pub fn removes_from_source(&self) -> bool {
        matches!(self.remove, Remove::Column(..))
    }

    /// Removes the vectors of rows that are gone, as the pipeline's owner; they are known from then on. Which rows
    /// somebody has locked, and keep theirs for now.
    pub fn remove(&self, gone: &[&Job], model: &str) -> Result<Vec<usize>> {
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        let (busy, removed) = match &self.remove {
            Remove::Table(statement) => {
                let mut arguments = key_arguments(gone.iter().copied());
                arguments.push(model.to_owned().into());
                let _as = As::owner(self.pipeline.owner());
                let removed =
                    Spi::connect_mut(|client| vectors_of(statement.update(client, &arguments)?))?;
                (Vec::new(), removed)
            }
            Remove::Column(column, held) => column.clear(gone, model, held)?,
        };
        if let Some(recipe) = &self.recipe {
            known::keep(recipe, &removed)?;
        }
        Ok(busy)
    }

    /// Whether there are vectors that were there before the pipeline.
    pub fn adopts(&self, there_are: bool) {
        self.adopts.set(there_are);
    }

    /// Rows whose column holds the vector of their text already: they have changed their key, or it was there before.
    fn attest(&self, jobs: &[Job], rendered: &mut [Rendered], model: &str) -> Result<()> {
        let Remove::Column(column, _) = &self.remove else {
            return Ok(());
        };
        let rows: Vec<(&Job, &[u8], &[u8])> = jobs
            .iter()
            .zip(rendered.iter())
            .filter_map(|(job, rendered)| match rendered {
                Rendered::Text {
                    hash,
                    held: Some(held),
                    ..
                } => Some((job, hash.as_slice(), held.as_slice())),
                _ => None,
            })
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        let adopted = match self.adopts.get() {
            true => {
                let hashes: Vec<Vec<u8>> = rows.iter().map(|(_, hash, _)| hash.to_vec()).collect();
                adopted::held(self.pipeline.id, &hashes)?
            }
            false => HashSet::new(),
        };
        let attested = column.attest(&rows, model, &adopted)?;
        for rendered in rendered {
            if let Rendered::Text {
                parts,
                hash,
                held: Some(held),
                ..
            } = rendered
                && attested.contains(&(hash.clone(), held.clone()))
            {
                let tokens = parts.iter().map(|part| self.rate.of(&part.text)).sum();
                *rendered = Rendered::Unchanged { tokens };
            }
        }
        Ok(())
    }

    /// Texts that other rows of the pipeline have, or that rows have had, need no call; those that are left are divided
    /// where they are long. Parts of a row that are rows of their own are recognised one by one.
    pub fn recognise(
        &self,
        jobs: &[Job],
        rendered: &mut [Rendered],
        model: &str,
        secret: &[u8],
    ) -> Result<()> {
        if self.long_text.has_chunks() {
            self.divide(rendered, secret)?;
            return self.recognise_parts(rendered, model);
        }
        self.attest(jobs, rendered, model)?;
        if self.adopts.get() {
            let hashes = unknown(rendered);
            let vectors = adopted::find(self.pipeline.id, &hashes)?;
            know(rendered, &vectors);
        }
        self.recognise_parts(rendered, model)?;
        self.divide(rendered, secret)?;
        let several = |row: &Rendered| match row {
            Rendered::Text { parts, .. } => parts.len() > 1,
            _ => false,
        };
        match rendered.iter().any(several) {
            true => self.recognise_parts(rendered, model), // of a try that failed
            false => Ok(()),
        }
    }

    /// Long texts become their parts.
    fn divide(&self, rendered: &mut [Rendered], secret: &[u8]) -> Result<()> {
        for row in rendered {
            let Rendered::Text { parts, hash, .. } = row else {
                continue;
            };
            let long = |part: &Part| self.long_text.may_divide(&part.text);
            let Some(part) = parts.pop_if(|part| long(part)) else {
                continue;
            };
            let hash_of = |text: &str| content_hash(secret, text);
            match self.long_text.divide(part.text, hash, hash_of)? {
                Some(divided) => *parts = divided,
                None => *row = Rendered::TooLong,
            }
        }
        Ok(())
    }

    fn recognise_parts(&self, rendered: &mut [Rendered], model: &str) -> Result<()> {
        let Some(recipe) = &self.recipe else {
            return Ok(());
        };
        let hashes = unknown(rendered);
        if hashes.is_empty() {
            return Ok(());
        }
        let mut vectors = known::find(recipe, &hashes)?;
        {
            let _as = As::owner(self.pipeline.owner());
            let arguments = [hashes.into(), model.to_owned().into()];
            for statement in self.copies.iter().chain([&self.same_text]) {
                vectors.extend(Spi::connect(|client| {
                    vectors_of(statement.select(client, &arguments)?)
                })?);
            }
        }
        know(rendered, &vectors);
        Ok(())
    }

    /// Removes vectors whose row is gone, a slice at a time; true when there may be more.
    pub fn remove_orphans(&self) -> Result<bool> {
        let _as = As::owner(self.pipeline.owner());
        Spi::connect_mut(|client| Ok(self.remove_orphans.update(client, &[])?.len() == ORPHANS))
    }
}

/// The hashes of texts, and of parts of texts, without a vector.
fn unknown(rendered: &[Rendered]) -> Vec<Vec<u8>> {
    let texts = rendered.iter().filter_map(|rendered| match rendered {
        Rendered::Text { parts, .. } => Some(parts.iter().filter(|part| part.vector.is_none())),
        _ => None,
    });
    texts.flatten().map(|part| part.hash.clone()).collect()
}

/// Texts whose vectors are among these need no call. A vector may be that of a text as a whole, or of a part.
pub fn know(rendered: &mut [Rendered], vectors: &HashMap<Vec<u8>, Vec<f32>>) {
    for rendered in rendered {
        let Rendered::Text {
            parts,
            hash,
            stored_hash,
            ..
        } = rendered
        else {
            continue;
        };
        if let Some(vector) = vectors.get(hash) {
            parts.truncate(1);
            parts[0].vector = Some(vector.clone());
        }
        for part in parts.iter_mut().filter(|part| part.vector.is_none()) {
            part.vector = vectors.get(&part.hash).cloned();
        }
        if parts.iter().all(|part| part.vector.is_some()) {
            *rendered = Rendered::Known {
                parts: std::mem::take(parts),
                hash: std::mem::take(hash),
                stored_hash: stored_hash.take(),
            };
        }
    }
}

/// The key of the content hashes. As recsync's owner.
pub fn secret() -> Result<Vec<u8>> {
    select_one::<Vec<u8>>(
        "SELECT key FROM recsync.secret ORDER BY created_at LIMIT 1",
        &[],
    )?
    .ok_or_else(|| Error::Internal("recsync.secret is empty".into()))
}

/// HMAC-SHA-256 of the text under the database's secret, so that it tells nothing of a short text.
pub fn content_hash(secret: &[u8], text: &str) -> Result<Vec<u8>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret)
        .map_err(|error| Error::Internal(error.to_string()))?;
    mac.update(text.as_bytes());
    Ok(mac.finalize().into_bytes().to_vec())
}

/// The same of a row's text, and of how it is treated where that matters.
pub fn text_hash(secret: &[u8], text: &str, long_text: &LongText) -> Result<Vec<u8>> {
    match long_text.mark(text) {
        None => content_hash(secret, text),
        Some(mark) => content_hash(secret, &format!("{text}\0{mark}")),
    }
}

/// `ROWS FROM (unnest($1::text[]), …, more)`: keys as parameters.
pub fn given(columns: usize, more: &str) -> String {
    let arrays: Vec<String> = (1..=columns)
        .map(|n| format!("pg_catalog.unnest(${n}::text[])"))
        .collect();
    format!("ROWS FROM ({}{more})", arrays.join(", "))
}

/// `k1, k2, …`: the names of the given keys.
pub fn names(columns: usize) -> String {
    (1..=columns)
        .map(|n| format!("k{n}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `table.key = given.k1::type AND …` by the operators of the primary key; `name` is the key's in that table.
pub fn keyed(keys: &[Key], table: &str, name: impl Fn(&Key) -> &String, given: &str) -> String {
    keys.iter()
        .enumerate()
        .map(|(index, key)| {
            format!(
                "{table}.{} {} ({given}.k{})::{}",
                name(key),
                key.equals,
                index + 1,
                key.type_name
            )
        })
        .collect::<Vec<_>>()
        .join(" AND ")
}

/// One text array a key column.
pub fn key_arguments<'a>(jobs: impl Iterator<Item = &'a Job>) -> Vec<DatumWithOid<'static>> {
    let mut columns: Vec<Vec<String>> = Vec::new();
    for job in jobs {
        columns.resize_with(job.row.key.len(), Vec::new);
        for (column, value) in columns.iter_mut().zip(job.row.key.iter()) {
            column.push(value.clone());
        }
    }
    columns.into_iter().map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_hash_depends_on_text_and_secret() {
        let hash = |secret: &[u8], text| content_hash(secret, text).unwrap();
        assert_eq!(hash(b"one", "text"), hash(b"one", "text"));
        assert_ne!(hash(b"one", "text"), hash(b"two", "text"));
        assert_ne!(hash(b"one", "text"), hash(b"one", "test"));
        assert_eq!(hash(b"one", "").len(), 32);
    }
}
