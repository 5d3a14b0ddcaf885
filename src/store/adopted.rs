//! Vectors that were there before the pipeline, by the hash of the text that their row had: taken instead of a call.
//!
//! It never says that a vector is of a text: who called adopt_vectors has. A row that has changed since has another text,
//! and so another hash.

use pgrx::prelude::*;
use std::collections::{HashMap, HashSet};

use super::known::Known;
use super::{vector, vectors_of};
use crate::catalog::names;
use crate::error::{Error, Result};
use crate::statement::Statement;

/// Rows that are forgotten in one round of the worker.
const SLICE: i64 = 2_000;

/// One that was found.
pub struct Found {
    pub hash: Vec<u8>,
    /// `None`: it stands in the source's column, with that hash.
    pub vector: Option<Vec<f32>>,
    pub held: Option<Vec<u8>>,
}

/// Keeps some; of a text that is there already the first one. As recsync's owner.
pub fn keep(pipeline: i32, found: &[Found]) -> Result<()> {
    thread_local! {
        static STATEMENT: Statement = Statement::by_key(
            "INSERT INTO recsync.adopted (pipeline_id, content_hash, embedding, embedding_hash)
             SELECT $1, k.hash, CASE WHEN k.held IS NULL THEN k.embedding END, k.held
               FROM ROWS FROM (pg_catalog.unnest($2::bytea[]), pg_catalog.unnest($3), pg_catalog.unnest($4::bytea[])) AS k (hash, embedding, held)
             ON CONFLICT DO NOTHING");
    }
    if found.is_empty() {
        return Ok(());
    }
    let (vector_type, array_type) = names::vector_types()
        .ok_or_else(|| Error::Internal("extension vector is missing".into()))?;
    // An element cannot be NULL here; one that stands in the column is not looked at.
    let vectors: Vec<&[f32]> = found
        .iter()
        .map(|found| found.vector.as_deref().unwrap_or(&[0.0]))
        .collect();
    let hashes: Vec<Vec<u8>> = found.iter().map(|found| found.hash.clone()).collect();
    let held: Vec<Option<Vec<u8>>> = found.iter().map(|found| found.held.clone()).collect();
    let arguments = [
        pipeline.into(),
        hashes.into(),
        vector::array(&vectors, vector_type, array_type),
        held.into(),
    ];
    STATEMENT.with(|statement| {
        Spi::connect_mut(|client| statement.update(client, &arguments).map(|_| ()))
    })
}

/// The vectors of those of `hashes` that were there before. As recsync's owner.
pub fn find(pipeline: i32, hashes: &[Vec<u8>]) -> Result<HashMap<Vec<u8>, Vec<f32>>> {
    thread_local! {
        static STATEMENT: Statement = Statement::by_key(
            "SELECT a.content_hash, a.embedding::pg_catalog.float4[] FROM recsync.adopted a
              WHERE a.pipeline_id = $1 AND a.content_hash = ANY ($2::bytea[]) AND a.embedding IS NOT NULL");
    }
    let arguments = [pipeline.into(), hashes.to_vec().into()];
    let found: Vec<Known> = STATEMENT.with(|statement| {
        Spi::connect(|client| vectors_of(statement.select(client, &arguments)?))
    })?;
    Ok(found.into_iter().collect())
}

/// Which of these texts have the vector that their row's column holds: pairs of both hashes. As recsync's owner.
pub fn held(pipeline: i32, hashes: &[Vec<u8>]) -> Result<HashSet<(Vec<u8>, Vec<u8>)>> {
    thread_local! {
        static STATEMENT: Statement = Statement::by_key(
            "SELECT a.content_hash, a.embedding_hash FROM recsync.adopted a
              WHERE a.pipeline_id = $1 AND a.content_hash = ANY ($2::bytea[]) AND a.embedding_hash IS NOT NULL");
    }
    let arguments = [pipeline.into(), hashes.to_vec().into()];
    STATEMENT.with(|statement| {
        Spi::connect(|client| {
            let mut held = HashSet::new();
            for row in statement.select(client, &arguments)? {
                held.extend(row.get::<Vec<u8>>(1)?.zip(row.get::<Vec<u8>>(2)?));
            }
            Ok(held)
        })
    })
}

/// Some of a pipeline's go, where its backfill has ended; true when there may be more. As recsync's owner.
pub fn forget(pipeline: i32) -> Result<bool> {
    const FORGET: &str = "\
DELETE FROM recsync.adopted WHERE ctid = ANY (ARRAY(SELECT a.ctid FROM recsync.adopted a WHERE a.pipeline_id = $1
   AND NOT EXISTS (SELECT FROM recsync.backfill b WHERE b.pipeline_id = $1 AND b.finished_at IS NULL) LIMIT $2))
RETURNING 1";
    Spi::connect_mut(|client| {
        let gone = client
            .update(FORGET, None, &[pipeline.into(), SLICE.into()])?
            .len();
        Ok(gone as i64 == SLICE)
    })
}
