//! Store: vectors written to the pipeline's table, as its owner, and the jobs' completion with them.
//!
//! It never overwrites what it did not see: each write is fenced by the content hash that was there when the
//! text was rendered. Where the vectors have a table of their own, it takes no lock on a row of the source.

// Vectors in a column of the source.
pub mod column;

// Vectors of chunks.
pub mod chunks;

// pgvector's values, built in place.
pub mod vector;

// Vectors that no row has any more.
pub mod known;

// Vectors that were there before the pipeline.
pub mod adopted;

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
use chunks::Chunks;
use column::{Column, Held};
use known::{Known, Recipe};

/// The vector of one row to be written, or those of its chunks.
pub struct Embedded {
    pub job: Job,
    pub vector: Vec<f32>,
    /// Where a chunk is a row: all of them, in the place of `vector`.
    pub chunks: Vec<Chunk>,
    /// Of the text.
    pub hash: Vec<u8>,
    /// The content hash that stood beside the old vector when the text was rendered; `None`: no vector yet.
    pub stored_hash: Option<Vec<u8>>,
}

/// A piece of a row's text.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Its first and last character, counted from 1.
    pub from: i32,
    pub to: i32,
    pub hash: Vec<u8>,
    pub vector: Vec<f32>,
}

impl Embedded {
    /// Its vectors, and the hashes of the texts that they are of.
    pub fn vectors(&self) -> impl Iterator<Item = (&[u8], &[f32])> {
        let whole = (!self.vector.is_empty()).then_some((&self.hash[..], &self.vector[..]));
        let chunks = self.chunks.iter();
        whole
            .into_iter()
            .chain(chunks.map(|chunk| (&chunk.hash[..], &chunk.vector[..])))
    }
}

/// The statements of one pipeline; made anew when its declaration changes.
pub struct Writer {
    pipeline: Pipeline,
    recipe: Option<Recipe>,
    into: Target,
    /// The vectors that an update replaces.
    replaced: Statement,
}

/// Where the vectors go.
enum Target {
    /// The pipeline's own table.
    Table {
        insert: Statement,
        update: Statement,
    },
    Column(Box<Column>),
    Chunks(Box<Chunks>),
}

/// What became of vectors that were to be written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Written {
    pub inserted: usize,
    pub updated: usize,
    /// Their row, which was to hold them, is gone.
    pub gone: usize,
    /// Which of those that were given have a row that somebody has locked: another time.
    pub busy: Vec<usize>,
}

impl Written {
    pub fn count(&self) -> usize {
        self.inserted + self.updated
    }

    /// Whether it is known what became of each of them. Else somebody else has written to the relation.
    pub fn is_all_of(&self, embedded: &[Embedded]) -> bool {
        self.count() + self.gone + self.busy.len() == embedded.len()
    }

    /// The jobs that have ended, where it is.
    pub fn ended<'a>(&'a self, embedded: &'a [Embedded]) -> impl Iterator<Item = &'a Job> + Clone {
        let rows = embedded.iter().enumerate();
        rows.filter(|(index, _)| !self.busy.contains(index))
            .map(|(_, embedded)| &embedded.job)
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
        let held = Held::of(pipeline, vector_schema);
        let replaced = format!(
            "SELECT e.content_hash, {}::pg_catalog.float4[] FROM {} CROSS JOIN {} AS v ({names}, stored_hash)
              WHERE {} AND e.content_hash OPERATOR(pg_catalog.=) v.stored_hash AND e.model OPERATOR(pg_catalog.=) ${}::text",
            held.vector,
            held.from,
            given(count, &format!(", pg_catalog.unnest(${}::bytea[])", count + 1)),
            keyed(keys, "e", |key| &key.stored, "v"),
            count + 2,
        );
        let of = |into| Writer {
            pipeline: pipeline.clone(),
            recipe: recipe.clone(),
            into,
            replaced: Statement::by_key(replaced.clone()),
        };
        if pipeline.into_column.is_some() {
            let column = Box::new(Column::new(pipeline, vector_schema));
            return of(Target::Column(column));
        }
        if pipeline.has_chunks() {
            let chunks = Box::new(Chunks::new(pipeline, vector_schema));
            return of(Target::Chunks(chunks));
        }
        let insert = format!(
            "INSERT INTO {vectors} ({}, embedding, content_hash, model, embedded_at)
             SELECT {}, {embedding}, v.hash, ${}::text, pg_catalog.clock_timestamp() FROM {} AS v ({names}, embedding, hash)
             ON CONFLICT DO NOTHING",
            columns.join(", "),
            values.join(", "),
            count + 3,
            given(count, &more),
        );
        let more = format!("{more}, pg_catalog.unnest(${}::bytea[])", count + 4);
        let update = format!(
            "UPDATE {vectors} e SET embedding = {embedding}, content_hash = v.hash, model = ${}::text, embedded_at = pg_catalog.clock_timestamp()
               FROM {} AS v ({names}, embedding, hash, stored_hash) WHERE {} AND e.content_hash = v.stored_hash",
            count + 3,
            given(count, &more),
            keyed(keys, "e", |key| &key.stored, "v"),
        );
        of(Target::Table {
            insert: Statement::by_key(insert),
            update: Statement::by_key(update),
        })
    }

    pub fn recipe(&self) -> Option<&Recipe> {
        self.recipe.as_ref()
    }

    /// Writes the vectors, which come in the order of their keys. Fewer are written than given where a row's vector
    /// had changed meanwhile: those rows have to be looked at again.
    pub fn write(&self, embedded: &[Embedded], model: &str) -> Result<Written> {
        let replaced = self.recipe.as_ref().map(|_| &self.replaced);
        let (written, replaced) = match &self.into {
            Target::Table { insert, update } => {
                self.write_table(insert, update, embedded, model, replaced)?
            }
            Target::Column(column) => column.write(embedded, model, replaced)?,
            Target::Chunks(chunks) => chunks.write(embedded, model, replaced.is_some())?,
        };
        if let Some(recipe) = &self.recipe {
            known::keep(recipe, &replaced)?;
        }
        Ok(written)
    }

    fn write_table(
        &self,
        insert: &Statement,
        update: &Statement,
        embedded: &[Embedded],
        model: &str,
        replaced: Option<&Statement>,
    ) -> Result<(Written, Vec<Known>)> {
        let (old, new): (Vec<&Embedded>, Vec<&Embedded>) = embedded
            .iter()
            .partition(|embedded| embedded.stored_hash.is_some());
        let stored: Vec<Option<Vec<u8>>> = old
            .iter()
            .map(|embedded| embedded.stored_hash.clone())
            .collect();
        let _as = As::owner(self.pipeline.owner());
        Spi::connect_mut(|client| {
            let mut written = Written::default();
            let mut known = Vec::new();
            if !new.is_empty() {
                let arguments = arguments(&new, model)?;
                written.inserted = insert.update(client, &arguments)?.len();
            }
            if !old.is_empty() {
                if let Some(replaced) = replaced {
                    let mut keys = key_arguments(old.iter().map(|embedded| &embedded.job));
                    keys.extend([stored.clone().into(), model.to_owned().into()]);
                    known = vectors_of(replaced.select(client, &keys)?)?;
                }
                let mut arguments = arguments(&old, model)?;
                arguments.push(stored.into());
                written.updated = update.update(client, &arguments)?.len();
            }
            Ok((written, known))
        })
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
