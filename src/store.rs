//! Store: vectors written to the pipeline's table, as its owner, and the jobs' completion with them.
//!
//! It never overwrites what it did not see: each write is fenced by the content hash that was there when the
//! text was rendered. It takes no lock on a row of the source.

// pgvector's values, built in place.
pub mod vector;

// Vectors that no row has any more.
pub mod known;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiTupleTable;
use serde::{Deserialize, Serialize};

use crate::catalog::names;
use crate::catalog::pipeline::Pipeline;
use crate::catalog::rights::As;
use crate::dispatch::queue::Job;
use crate::dispatch::render::{given, key_arguments, keyed};
use crate::error::{Error, Result};
use crate::statement::Statement;
use known::{Known, Recipe};

/// One vector to be written.
pub struct Embedded {
    pub job: Job,
    pub vector: Vec<f32>,
    pub hash: Vec<u8>,
    /// The content hash that stood beside the old vector when the text was rendered; `None`: no vector yet.
    pub stored_hash: Option<Vec<u8>>,
}

/// The statements of one pipeline; made anew when its declaration changes.
pub struct Writer {
    pipeline: Pipeline,
    recipe: Option<Recipe>,
    insert: Statement,
    update: Statement,
    /// The vectors that an update replaces.
    replaced: Statement,
}

/// What became of vectors that were to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Written {
    pub inserted: usize,
    pub updated: usize,
}

impl Written {
    pub fn count(self) -> usize {
        self.inserted + self.updated
    }
}

impl Writer {
    pub fn new(pipeline: &Pipeline, vector_schema: &str, recipe: Option<Recipe>) -> Writer {
        let keys = pipeline.keys();
        let count = keys.len();
        let vectors = &pipeline.vectors;
        let columns: Vec<&str> = keys.iter().map(|key| key.stored.as_str()).collect();
        let names = crate::dispatch::render::names(count);
        let values: Vec<String> = keys
            .iter()
            .enumerate()
            .map(|(n, key)| format!("(v.k{})::{}", n + 1, key.type_name))
            .collect();
        let embedding = format!("v.embedding::{vector_schema}.{}", pipeline.storage);
        let more = format!(
            ", pg_catalog.unnest(${}::{vector_schema}.vector[]), pg_catalog.unnest(${}::bytea[])",
            count + 1,
            count + 2
        );
        let insert = format!(
            "INSERT INTO {vectors} ({}, embedding, content_hash, model, embedded_at)
             SELECT {}, {embedding}, v.hash, ${}::text, pg_catalog.clock_timestamp() FROM {} AS v ({names}, embedding, hash)
             ON CONFLICT DO NOTHING",
            columns.join(", "),
            values.join(", "),
            count + 3,
            given(count, &more),
        );
        let replaced = format!(
            "SELECT e.content_hash, e.embedding::pg_catalog.float4[]
               FROM {} AS v ({names}, stored_hash) JOIN {vectors} e ON {} AND e.content_hash = v.stored_hash WHERE e.model = ${}::text",
            given(count, &format!(", pg_catalog.unnest(${}::bytea[])", count + 1)),
            keyed(keys, "e", |key| &key.stored, "v"),
            count + 2,
        );
        let more = format!("{more}, pg_catalog.unnest(${}::bytea[])", count + 4);
        let update = format!(
            "UPDATE {vectors} e SET embedding = {embedding}, content_hash = v.hash, model = ${}::text, embedded_at = pg_catalog.clock_timestamp()
               FROM {} AS v ({names}, embedding, hash, stored_hash) WHERE {} AND e.content_hash = v.stored_hash",
            count + 3,
            given(count, &more),
            keyed(keys, "e", |key| &key.stored, "v"),
        );
        Writer {
            pipeline: pipeline.clone(),
            recipe,
            insert: Statement::new(insert),
            update: Statement::new(update),
            replaced: Statement::new(replaced),
        }
    }

    pub fn recipe(&self) -> Option<&Recipe> {
        self.recipe.as_ref()
    }

    /// Writes the vectors, in the order of their keys. Fewer are written than given where a row's vector had changed
    /// meanwhile: those rows have to be looked at again.
    pub fn write(&self, embedded: &mut [Embedded], model: &str) -> Result<Written> {
        embedded.sort_by(|one, other| one.job.row.cmp(&other.job.row));
        let (old, new): (Vec<&Embedded>, Vec<&Embedded>) = embedded
            .iter()
            .partition(|embedded| embedded.stored_hash.is_some());
        let stored: Vec<Option<Vec<u8>>> = old
            .iter()
            .map(|embedded| embedded.stored_hash.clone())
            .collect();
        let mut written = Written::default();
        let mut replaced = Vec::new();
        {
            let _as = As::owner(self.pipeline.owner());
            Spi::connect_mut(|client| -> Result<()> {
                if !new.is_empty() {
                    let arguments = arguments(&new, model)?;
                    written.inserted = self.insert.update(client, &arguments)?.len();
                }
                if !old.is_empty() {
                    if self.recipe.is_some() {
                        let mut keys = key_arguments(old.iter().map(|embedded| &embedded.job));
                        keys.extend([stored.clone().into(), model.to_owned().into()]);
                        replaced = vectors_of(self.replaced.select(client, &keys)?)?;
                    }
                    let mut arguments = arguments(&old, model)?;
                    arguments.push(stored.into());
                    written.updated = self.update.update(client, &arguments)?.len();
                }
                Ok(())
            })?;
        }
        if let Some(recipe) = &self.recipe {
            known::keep(recipe, &replaced)?;
        }
        Ok(written)
    }
}

/// Rows of a content hash and a vector's numbers.
pub fn vectors_of(rows: SpiTupleTable) -> Result<Vec<Known>> {
    let mut vectors = Vec::new();
    for row in rows {
        if let (Some(hash), Some(vector)) = (row.get::<Vec<u8>>(1)?, row.get::<Vec<f32>>(2)?) {
            vectors.push((hash, vector));
        }
    }
    Ok(vectors)
}

fn arguments(embedded: &[&Embedded], model: &str) -> Result<Vec<DatumWithOid<'static>>> {
    let mut arguments = key_arguments(embedded.iter().map(|embedded| &embedded.job));
    let (vector, array) = names::vector_types()
        .ok_or_else(|| Error::Internal("extension vector is missing".into()))?;
    let vectors: Vec<&[f32]> = embedded
        .iter()
        .map(|embedded| embedded.vector.as_slice())
        .collect();
    arguments.push(vector::array(&vectors, vector, array));
    arguments.push(
        embedded
            .iter()
            .map(|embedded| embedded.hash.clone())
            .collect::<Vec<_>>()
            .into(),
    );
    arguments.push(model.to_owned().into());
    Ok(arguments)
}
