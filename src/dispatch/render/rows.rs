//! A row of the source beside its row of vectors, as SQL, and what is read of the two.
//!
//! It never runs anything: see [`super::Renderer`].

use pgrx::spi::SpiHeapTupleData;

use crate::catalog::pipeline::{Key, Pipeline};
use crate::dispatch::fault::Looked;
use crate::error::Result;
use crate::statement::Statement;
use crate::store::column;

/// The vectors that texts have in a table, by their hashes.
pub fn same_text(vector: &str, from: &str) -> Statement {
    Statement::by_key(format!(
        "SELECT k.content_hash, k.vector FROM pg_catalog.unnest($1::bytea[]) AS h (hash)
          CROSS JOIN LATERAL (SELECT e.content_hash, {vector}::pg_catalog.float4[] AS vector FROM {from}
                               WHERE e.content_hash = h.hash AND e.model = $2::text LIMIT 1) k"
    ))
}

/// What [`looked`] reads of a row `s` of the source and its row `e` in the pipeline's table.
pub fn columns(pipeline: &Pipeline, vector_schema: &str) -> String {
    let wanted = match &pipeline.row_filter {
        Some(filter) => format!("s.ctid IS NOT NULL AND ({filter})"),
        None => "s.ctid IS NOT NULL".to_owned(),
    };
    // Of the text as a whole.
    let hash = match pipeline.has_chunks() {
        true => "e.text_hash",
        false => "e.content_hash",
    };
    // A column counts as the vector of a text only as long as it holds that vector.
    let (model, held_hash) = match &pipeline.into_column {
        None => ("e.model".to_owned(), "NULL::bytea".to_owned()),
        Some(_) => {
            let hash = column::hash(pipeline, vector_schema);
            let model = format!(
                "CASE WHEN e.embedding_hash OPERATOR(pg_catalog.=) {hash} THEN e.model END"
            );
            (model, hash)
        }
    };
    format!(
        "CASE WHEN {wanted} THEN {} END, {hash}, {model}, {held_hash}",
        pipeline.content
    )
}

/// A row of a query of such columns.
pub fn looked(row: &SpiHeapTupleData) -> Result<Looked> {
    Ok(Looked {
        text: row.get::<String>(1)?.filter(|text| !text.is_empty()),
        stored_hash: row.get::<Vec<u8>>(2)?,
        model: row.get::<String>(3)?,
        held: row.get::<Vec<u8>>(4)?,
    })
}

/// A query of all rows of the source as they stand, for [`looked`], with the size of each row's key.
pub fn all_rows(pipeline: &Pipeline, vector_schema: &str) -> String {
    let keys = pipeline.keys();
    format!(
        "SELECT {}, {} FROM {} s LEFT JOIN {} e ON {}{}",
        columns(pipeline, vector_schema),
        key_size(keys.iter().map(|key| key.column.as_str())),
        pipeline.rows_of,
        pipeline.vectors,
        same_row(keys),
        first_chunk(pipeline),
    )
}

/// The end of a condition that finds the row `e` of the pipeline's table which stands for a row of the source: the one
/// that it has, or its first chunk.
pub fn first_chunk(pipeline: &Pipeline) -> &'static str {
    match pipeline.has_chunks() {
        true => " AND e.chunk OPERATOR(pg_catalog.=) 1",
        false => "",
    }
}

/// The bytes of the key of a row `s`, of these columns, quoted.
pub fn key_size<'a>(columns: impl Iterator<Item = &'a str>) -> String {
    columns
        .map(|column| format!("pg_catalog.pg_column_size(s.{column})"))
        .collect::<Vec<_>>()
        .join(" + ")
}

/// A row `s` of the source and a row `e` of the pipeline's table have the same key.
pub fn same_row(keys: &[Key]) -> String {
    keys.iter()
        .map(|key| format!("s.{} {} e.{}", key.column, key.equals, key.stored))
        .collect::<Vec<_>>()
        .join(" AND ")
}
