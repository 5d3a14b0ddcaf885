//! Vectors of rows that have one for each chunk of their text.
//!
//! It never leaves old and new chunks of a row beside each other: all of them are written in the transaction that
//! removes the others, and a chunk that is as it was is not touched.

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;
use std::collections::HashSet;

use super::known::Known;
use super::{Embedded, Written, vector, vectors_of};
use crate::catalog::names;
use crate::catalog::pipeline::Pipeline;
use crate::catalog::rights::As;
use crate::dispatch::queue::Job;
use crate::dispatch::render::{given, key_arguments, keyed};
use crate::error::{Error, Result};
use crate::statement::Statement;

/// The statements of one pipeline.
pub struct Chunks {
    pipeline: Pipeline,
    /// The hash of the text that a row's chunks are of, which nobody changes meanwhile.
    fence: Statement,
    /// Chunks beyond the last.
    shorten: Statement,
    /// Vectors in whose place others come.
    replaced: Statement,
    write: Statement,
}

impl Chunks {
    pub fn new(pipeline: &Pipeline, vector_schema: &str) -> Chunks {
        let keys = pipeline.keys();
        let count = keys.len();
        let vectors = &pipeline.vectors;
        let names = crate::dispatch::render::names(count);
        let on_vectors = keyed(keys, "e", |key| &key.stored, "v");
        let stored: Vec<&str> = keys.iter().map(|key| key.stored.as_str()).collect();
        let stored = stored.join(", ");
        let values: Vec<String> = keys
            .iter()
            .enumerate()
            .map(|(n, key)| format!("(v.k{})::{}", n + 1, key.type_name))
            .collect();
        // The parameters after the keys: arrays of these types.
        let more = |types: &[&str]| -> String {
            let arrays = types.iter().zip(count + 1..);
            arrays
                .map(|(of, n)| format!(", pg_catalog.unnest(${n}::{of}[])"))
                .collect()
        };
        let fence = format!(
            "SELECT (SELECT e.text_hash FROM {vectors} e WHERE {on_vectors} AND e.chunk OPERATOR(pg_catalog.=) 1 FOR UPDATE)
               FROM {} WITH ORDINALITY AS v ({names}, i) ORDER BY v.i",
            given(count, ""),
        );
        let of_model = format!(
            "e.model OPERATOR(pg_catalog.=) ${}::text",
            count + 2 // after one array
        );
        let shorten = format!(
            "DELETE FROM {vectors} e USING {} AS v ({names}, chunks) WHERE {on_vectors} AND e.chunk OPERATOR(pg_catalog.>) v.chunks
             RETURNING e.content_hash, CASE WHEN {of_model} THEN e.embedding::pg_catalog.float4[] END",
            given(count, &more(&["int"])),
        );
        let replaced = format!(
            "SELECT e.content_hash, e.embedding::pg_catalog.float4[] FROM {vectors} e CROSS JOIN {} AS v ({names}, chunk, hash)
              WHERE {on_vectors} AND e.chunk OPERATOR(pg_catalog.=) v.chunk AND e.content_hash OPERATOR(pg_catalog.<>) v.hash
                AND e.model OPERATOR(pg_catalog.=) ${}::text",
            given(count, &more(&["int", "bytea"])),
            count + 3,
        );
        let vector = format!("{vector_schema}.vector");
        let write = format!(
            "INSERT INTO {vectors} AS e ({stored}, chunk, chunk_start, chunk_end, embedding, content_hash, text_hash, model, embedded_at)
             SELECT {}, v.chunk, v.chunk_start, v.chunk_end, v.embedding::{vector_schema}.{}, v.hash, v.text_hash, ${}::text, pg_catalog.clock_timestamp()
               FROM {} AS v ({names}, chunk, hash, chunk_start, chunk_end, embedding, text_hash)
             ON CONFLICT ({stored}, chunk) DO UPDATE SET chunk_start = excluded.chunk_start, chunk_end = excluded.chunk_end,
                    embedding = excluded.embedding, content_hash = excluded.content_hash, text_hash = excluded.text_hash,
                    model = excluded.model, embedded_at = excluded.embedded_at
              WHERE (e.content_hash, e.chunk_start, e.chunk_end, e.text_hash, e.model)
                 IS DISTINCT FROM (excluded.content_hash, excluded.chunk_start, excluded.chunk_end, excluded.text_hash, excluded.model)",
            values.join(", "),
            pipeline.storage,
            count + 7,
            given(count, &more(&["int", "bytea", "int", "int", &vector, "bytea"])),
        );
        Chunks {
            pipeline: pipeline.clone(),
            fence: Statement::by_key(fence),
            shorten: Statement::by_key(shorten),
            replaced: Statement::by_key(replaced),
            write: Statement::by_key(write),
        }
    }

    /// Writes all chunks of the rows whose text was the same when these were rendered. The vectors that no row has then,
    /// where they are to be `kept`.
    pub fn write(
        &self,
        embedded: &[Embedded],
        model: &str,
        kept: bool,
    ) -> Result<(Written, Vec<Known>)> {
        let _as = As::owner(self.pipeline.owner());
        Spi::connect_mut(|client| {
            let rows = self.unchanged(client, embedded)?;
            let mut written = Written::default();
            written.inserted = rows.iter().filter(|row| row.stored_hash.is_none()).count();
            written.updated = rows.len() - written.inserted;
            let mut known = Vec::new();
            if written.updated > 0 {
                let old: Vec<&Embedded> = rows
                    .iter()
                    .filter(|row| row.stored_hash.is_some())
                    .copied()
                    .collect();
                known = self.make_room(client, &old, model, kept)?;
            }
            if !rows.is_empty() {
                self.write.update(client, &arguments(&rows, model)?)?;
            }
            Ok((written, known))
        })
    }

    fn unchanged<'a>(
        &self,
        client: &mut SpiClient,
        embedded: &'a [Embedded],
    ) -> Result<Vec<&'a Embedded>> {
        let jobs = embedded.iter().map(|row| &row.job);
        let mut unchanged = Vec::with_capacity(embedded.len());
        let rows = self.fence.update(client, &key_arguments(jobs))?;
        for (is, row) in rows.zip(embedded) {
            if is.get::<Vec<u8>>(1)? == row.stored_hash {
                unchanged.push(row);
            }
        }
        Ok(unchanged)
    }

    /// Chunks that a row has not any more go. Their vectors, and those that are written over.
    fn make_room(
        &self,
        client: &mut SpiClient,
        rows: &[&Embedded],
        model: &str,
        kept: bool,
    ) -> Result<Vec<Known>> {
        let mut known = Vec::new();
        if kept {
            let mut wanted = key_arguments(of_chunks(rows));
            wanted.extend([
                numbers(rows).into(),
                hashes(rows).into(),
                model.to_owned().into(),
            ]);
            known = vectors_of(self.replaced.select(client, &wanted)?)?;
        }
        let counts: Vec<i32> = rows.iter().map(|row| row.chunks.len() as i32).collect();
        let mut arguments = key_arguments(rows.iter().map(|row| &row.job));
        arguments.extend([counts.into(), model.to_owned().into()]);
        known.extend(vectors_of(self.shorten.update(client, &arguments)?)?);
        let still: HashSet<Vec<u8>> = hashes(rows).into_iter().collect();
        known.retain(|(hash, _)| !still.contains(hash));
        Ok(known)
    }
}

/// The job of each chunk's row.
fn of_chunks<'a>(rows: &[&'a Embedded]) -> impl Iterator<Item = &'a Job> {
    rows.iter()
        .flat_map(|row| row.chunks.iter().map(|_| &row.job))
}

fn numbers(rows: &[&Embedded]) -> Vec<i32> {
    let numbers = rows.iter().flat_map(|row| 1..=row.chunks.len() as i32);
    numbers.collect()
}

fn hashes(rows: &[&Embedded]) -> Vec<Vec<u8>> {
    let chunks = rows.iter().flat_map(|row| &row.chunks);
    chunks.map(|chunk| chunk.hash.clone()).collect()
}

fn arguments(rows: &[&Embedded], model: &str) -> Result<Vec<DatumWithOid<'static>>> {
    let (of_vector, of_array) = names::vector_types()
        .ok_or_else(|| Error::Internal("extension vector is missing".into()))?;
    let chunks = || rows.iter().flat_map(|row| &row.chunks);
    let vectors: Vec<&[f32]> = chunks().map(|chunk| chunk.vector.as_slice()).collect();
    // The first chunk says of which text all of them are.
    let text_hashes: Vec<Option<Vec<u8>>> = rows
        .iter()
        .flat_map(|row| (0..row.chunks.len()).map(|n| (n == 0).then(|| row.hash.clone())))
        .collect();
    let mut arguments = key_arguments(of_chunks(rows));
    arguments.extend([
        numbers(rows).into(),
        hashes(rows).into(),
        chunks().map(|chunk| chunk.from).collect::<Vec<_>>().into(),
        chunks().map(|chunk| chunk.to).collect::<Vec<_>>().into(),
        vector::array(&vectors, of_vector, of_array),
        text_hashes.into(),
        model.to_owned().into(),
    ]);
    Ok(arguments)
}
