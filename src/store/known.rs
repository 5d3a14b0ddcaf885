//! Vectors of texts that rows have had: an edit that is undone, or a row that comes back, costs no call.
//!
//! It never tells anybody what it holds: its keys are digests of digests, and nobody has rights on its tables. It is
//! read and written as recsync's owner, outside of any owner's expressions and triggers.

use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;

use super::vector;
use crate::catalog::names;
use crate::embed::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::settings;
use crate::shared::{self, Database};
use crate::statement::Statement;

/// What a vector takes in a table beside its numbers, with its index entry.
const OVERHEAD: usize = 120;
const TABLES: u32 = 2;

/// By what the vectors of a pipeline are known: everything that makes them, but the text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe([u8; 32]);

/// A text's hash and its vector.
pub type Known = (Vec<u8>, Vec<f32>);

impl Recipe {
    /// `None` where a vector costs nothing. A vector of less precision than `storage` has is another one.
    pub fn of(endpoint: &Endpoint, storage: &str) -> Option<Recipe> {
        endpoint.api.wire.as_ref()?;
        let digest = Sha256::new()
            .chain_update(endpoint.recipe())
            .chain_update(storage);
        Some(Recipe(digest.finalize().into()))
    }

    fn key(&self, hash: &[u8]) -> Vec<u8> {
        let digest = Sha256::new().chain_update(self.0).chain_update(hash);
        digest.finalize().to_vec()
    }
}

/// The vectors of those of `hashes` that are known.
pub fn find(recipe: &Recipe, hashes: &[Vec<u8>]) -> Result<HashMap<Vec<u8>, Vec<f32>>> {
    thread_local! {
        static STATEMENT: Statement = Statement::by_key(
            "SELECT k.key, k.embedding::pg_catalog.float4[] FROM recsync.known_text k WHERE k.key = ANY ($1)");
    }
    if settings::known_text_size() == 0 || hashes.is_empty() {
        return Ok(HashMap::new());
    }
    let of_key: HashMap<Vec<u8>, &Vec<u8>> =
        hashes.iter().map(|hash| (recipe.key(hash), hash)).collect();
    let keys: Vec<Vec<u8>> = of_key.keys().cloned().collect();
    Spi::connect(|client| {
        let mut found = HashMap::new();
        for row in STATEMENT.with(|statement| statement.select(client, &[keys.into()]))? {
            let (key, vector) = (row.get::<Vec<u8>>(1)?, row.get::<Vec<f32>>(2)?);
            if let (Some(hash), Some(vector)) = (key.and_then(|key| of_key.get(&key)), vector) {
                found.insert((*hash).clone(), vector);
            }
        }
        Ok(found)
    })
}

/// Keeps vectors that no row has any more.
pub fn keep(recipe: &Recipe, known: &[Known]) -> Result<()> {
    let Some(database) = shared::shared().and_then(shared::Shared::own_database) else {
        return Ok(());
    };
    if settings::known_text_size() == 0 || known.is_empty() {
        return Ok(());
    }
    let (vector_type, array_type) = names::vector_types()
        .ok_or_else(|| Error::Internal("extension vector is missing".into()))?;
    let keys: Vec<Vec<u8>> = known.iter().map(|(hash, _)| recipe.key(hash)).collect();
    let vectors: Vec<&[f32]> = known.iter().map(|(_, vector)| vector.as_slice()).collect();
    let bytes: usize = vectors
        .iter()
        .map(|vector| OVERHEAD + size_of_val(*vector))
        .sum();
    let table = database.known_table.load(SeqCst) % TABLES;
    thread_local! {
        static STATEMENTS: [Statement; TABLES as usize] = [0, 1].map(|table| Statement::by_key(format!(
            "INSERT INTO recsync.known_text_{table} SELECT k.key, k.embedding FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS k (key, embedding)
             ON CONFLICT DO NOTHING")));
    }
    let arguments = [
        keys.into(),
        vector::array(&vectors, vector_type, array_type),
    ];
    STATEMENTS.with(|statements| {
        Spi::connect_mut(|client| {
            statements[table as usize]
                .update(client, &arguments)
                .map(|_| ())
        })
    })?;
    database.known_bytes.fetch_add(bytes as i64, SeqCst);
    Ok(())
}

/// Whether it is time to [`rotate`].
pub fn is_full(database: &Database) -> bool {
    database.known_bytes.load(SeqCst) > settings::known_text_size() / i64::from(TABLES)
}

/// Empties the older table and goes on there. An error by NOWAIT where somebody reads it: another time.
pub fn rotate(database: &Database) -> Result<()> {
    let next = (database.known_table.load(SeqCst) + 1) % TABLES;
    Spi::run(&format!(
        "LOCK TABLE recsync.known_text_{next} IN ACCESS EXCLUSIVE MODE NOWAIT"
    ))?;
    Spi::run(&format!("TRUNCATE recsync.known_text_{next}"))?;
    database.known_table.store(next, SeqCst);
    database.known_bytes.store(0, SeqCst);
    Ok(())
}

/// At a worker's start: which table was the last, and how much is in it.
pub fn resume(database: &Database) -> Result<()> {
    let sizes = names::select_one::<Vec<i64>>(
        "SELECT pg_catalog.array_agg(pg_catalog.pg_relation_size(c.oid) + COALESCE(pg_catalog.pg_relation_size(NULLIF(c.reltoastrelid, 0)), 0) ORDER BY c.relname)
           FROM pg_catalog.pg_class c WHERE c.oid IN ('recsync.known_text_0'::regclass, 'recsync.known_text_1'::regclass)",
        &[],
    )?
    .unwrap_or_default();
    // The smaller one is the one that is being filled.
    let table = u32::from(sizes.get(1) < sizes.first() && sizes.get(1) != Some(&0));
    database.known_table.store(table, SeqCst);
    let size = sizes.get(table as usize).copied().unwrap_or(0);
    database.known_bytes.store(size, SeqCst);
    Ok(())
}
