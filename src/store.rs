//! Store: vectors written to the pipeline's table, as its owner, and the jobs' completion with them.
//!
//! It never overwrites what it did not see: each write is fenced by the content hash that was there when the
//! text was rendered. It takes no lock on a row of the source.

// pgvector's values, built in place.
pub mod vector;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;

use crate::catalog::names;
use crate::catalog::pipeline::Pipeline;
use crate::catalog::rights::As;
use crate::dispatch::queue::Job;
use crate::dispatch::render::{given, key_arguments, keyed};
use crate::error::{Error, Result};
use crate::statement::Statement;

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
    insert: Statement,
    update: Statement,
}

impl Writer {
    pub fn new(pipeline: &Pipeline, vector_schema: &str) -> Writer {
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
        let more = format!("{more}, pg_catalog.unnest(${}::bytea[])", count + 4);
        let update = format!(
            "UPDATE {vectors} e SET embedding = {embedding}, content_hash = v.hash, model = ${}::text, embedded_at = pg_catalog.clock_timestamp()
               FROM {} AS v ({names}, embedding, hash, stored_hash) WHERE {} AND e.content_hash = v.stored_hash",
            count + 3,
            given(count, &more),
            keyed(pipeline, "e", |key| &key.stored, "v"),
        );
        Writer {
            pipeline: pipeline.clone(),
            insert: Statement::new(insert),
            update: Statement::new(update),
        }
    }

    /// Writes the vectors, in the order of their keys. False when some were not written because the row's
    /// vector had changed meanwhile: those rows have to be looked at again.
    pub fn write(&self, embedded: &mut [Embedded], model: &str) -> Result<bool> {
        embedded.sort_by(|one, other| one.job.row.cmp(&other.job.row));
        let (old, new): (Vec<&Embedded>, Vec<&Embedded>) = embedded
            .iter()
            .partition(|embedded| embedded.stored_hash.is_some());
        let _as = As::owner(self.pipeline.owner());
        Spi::connect_mut(|client| {
            let mut written = 0;
            if !new.is_empty() {
                written += self.insert.update(client, &arguments(&new, model)?)?.len();
            }
            if !old.is_empty() {
                let mut arguments = arguments(&old, model)?;
                let hashes: Vec<Option<Vec<u8>>> = old
                    .iter()
                    .map(|embedded| embedded.stored_hash.clone())
                    .collect();
                arguments.push(hashes.into());
                written += self.update.update(client, &arguments)?.len();
            }
            Ok(written == embedded.len())
        })
    }
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
