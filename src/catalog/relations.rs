//! A pipeline's relations: the table of vectors, and the view that is the pipeline's name.
//!
//! It never makes anything in another name than the source's owner's, and no index over vectors that are still to come:
//! see [`super::index`].

use pgrx::prelude::*;

use super::names::{literal, quote};
use super::rights::As;
use super::watch::SourceTable;
use crate::error::{Error, Result};

/// Bytes of a vector that stands in its row, where nothing has to be fetched for it. A page has 8 kB, and the key, the
/// hash and the model stand beside it.
const WIDEST_IN_ROW: usize = 7_000;

/// What says of a row of vectors which piece of the text it is of.
pub const OF_CHUNK: &str = ", chunk, chunk_start, chunk_end";

pub fn make_relations(
    relation: &str,
    vectors: &str,
    source: &str,
    table: &SourceTable,
    storage: &str,
    dimensions: usize,
    chunks: bool,
) -> Result<()> {
    make_table(vectors, source, table, storage, dimensions, chunks)?;
    let of_chunk = if chunks { OF_CHUNK } else { "" };
    let keys: Vec<String> = table.key_columns.iter().map(|key| quote(key)).collect();
    let keys = keys.join(", ");
    let _as = As::maker(table.owner);
    Spi::run(&format!(
        "CREATE VIEW {relation} AS SELECT {keys}{of_chunk}, embedding, content_hash, model, embedded_at FROM {vectors}"
    ))?;
    Spi::run(&format!(
        "COMMENT ON VIEW {relation} IS {}",
        literal(&format!(
            "Embeddings of {source}, kept by recsync; drop it with recsync.drop_pipeline."
        ))
    ))?;
    Ok(())
}

/// The table of a generation.
pub fn make_table(
    vectors: &str,
    source: &str,
    table: &SourceTable,
    storage: &str,
    dimensions: usize,
    chunks: bool,
) -> Result<()> {
    let schema = super::names::vector_schema()
        .ok_or_else(|| Error::Internal("extension vector is missing".into()))?;
    let keys: Vec<String> = table.key_columns.iter().map(|key| quote(key)).collect();
    let keys = keys.join(", ");
    let _as = As::maker(table.owner);
    // Of a text that has several rows: which piece a row is, and the hash of the whole, which the first one has.
    let (made_of_chunk, text_hash, chunk) = match chunks {
        true => (
            ", NULL::int AS chunk, NULL::int AS chunk_start, NULL::int AS chunk_end",
            ", NULL::bytea AS text_hash",
            ", chunk",
        ),
        false => ("", "", ""),
    };
    // The key columns take their types, collations included, from the source.
    Spi::run(&format!(
        "CREATE TABLE {vectors} AS SELECT {keys}{made_of_chunk}, NULL::{schema}.{storage}({dimensions}) AS embedding, NULL::bytea AS content_hash,
                NULL::text AS model, NULL::timestamptz AS embedded_at{text_hash} FROM {source} WITH NO DATA"
    ))?;
    Spi::run(&format!(
        "ALTER TABLE {vectors} ADD PRIMARY KEY ({keys}{chunk}), ALTER embedding SET NOT NULL, ALTER content_hash SET NOT NULL,
               ALTER model SET NOT NULL, ALTER embedded_at SET NOT NULL"
    ))?;
    let number = if storage == "halfvec" { 2 } else { 4 };
    if dimensions * number <= WIDEST_IN_ROW {
        Spi::run(&format!(
            "ALTER TABLE {vectors} ALTER embedding SET STORAGE PLAIN"
        ))?;
    }
    // By which a text is found that another row has.
    Spi::run(&format!("CREATE INDEX ON {vectors} (content_hash)"))?;
    Ok(())
}
