//! adopt_vectors: vectors that were there before a pipeline, in a column or a table, are taken instead of being paid for
//! again.
//!
//! It never writes to a pipeline's relation: what it finds is kept by the hash of the text that the row has now, and the
//! backfill takes it from there. A row that changes later has another text.

// Where they are.
mod from;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::declare::confirm;
use super::names::{self, quote};
use super::pipeline::{self, Pipeline};
use super::rights::As;
use crate::capture::wake;
use crate::dispatch::backfill::{self, size};
use crate::dispatch::environment::Environment;
use crate::dispatch::read::in_snapshot_of_now;
use crate::dispatch::render::{secret, text_hash};
use crate::embed::endpoint::{Endpoint, Purpose};
use crate::error::{Error, OrReport, Result};
use crate::recommend::query::vector_of;
use crate::settings;
use crate::statement::in_parts;
use crate::store::adopted::{self, Found};
use crate::store::column;
use from::From;

/// Rows in memory at a time.
const AT_ONCE: i64 = 256;
/// Two vectors of one text by one model are as near as this: what base64, halfvec and the provider's own machines make of
/// one stays above 0.9999, other models and other texts are far below.
const SAME: f64 = 0.999;

#[pg_extern(sql = r#"
CREATE FUNCTION adopt_vectors(name text, model text, vectors regclass DEFAULT NULL, vector_column text DEFAULT NULL, key_columns text[] DEFAULT NULL, check_rows integer DEFAULT 10)
RETURNS bigint LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION adopt_vectors(text, text, regclass, text, text[], integer) IS
'Takes vectors that were there before a pipeline for those of its rows'' present texts, so that nobody pays for them again, and has the backfill embed the others. model: by which they were made, which has to be the server''s; vectors: the relation that they are in, by default the source; vector_column: the column there, by default the only one of pgvector''s types, or the pipeline''s into_column; key_columns: the columns there that hold the source''s key, by default those of the same names or of the foreign key to it; check_rows: the texts of so many rows are embedded and compared first, 0 for none. Create the pipeline with backfill => false before. Returns how many rows have one. Errors: 22023 for another model, other dimensions, several vectors of a row, or where some of the compared ones are not the server''s (cosine below 0.999); 42704, 42501, 42703, 55000 where it is paused or broken, 25006 on a standby, and those of embed.';
"#)]
fn adopt_vectors(
    name: Option<&str>,
    model: Option<&str>,
    vectors: Option<pg_sys::Oid>,
    vector_column: Option<&str>,
    key_columns: Option<Vec<Option<String>>>,
    check_rows: Option<i32>,
) -> i64 {
    (|| {
        let name = name
            .ok_or_else(|| Error::argument("name", "it is missing", "Give the pipeline's name."))?;
        let key_columns = key_columns.map(|columns| columns.into_iter().flatten().collect());
        let wanted = Wanted {
            model,
            vectors,
            vector_column,
            key_columns,
            check_rows: check_rows.unwrap_or(0).max(0) as usize,
        };
        adopt(name, wanted)
    })()
    .or_report()
}

struct Wanted<'a> {
    model: Option<&'a str>,
    vectors: Option<pg_sys::Oid>,
    vector_column: Option<&'a str>,
    key_columns: Option<Vec<String>>,
    check_rows: usize,
}

fn adopt(name: &str, wanted: Wanted) -> Result<i64> {
    crate::catalog::install::require_primary()?;
    let pipeline = pipeline::find(name)?;
    pipeline::require_owner(&pipeline)?;
    if pipeline.paused {
        return Err(Error::Paused(pipeline.relation));
    }
    let endpoint = pipeline.require_endpoint()?;
    if wanted.model != Some(endpoint.model.as_str()) {
        let given = wanted.model.map_or("it is missing".to_owned(), |given| {
            format!("the server gives \"{}\", not \"{given}\"", endpoint.model)
        });
        return Err(Error::argument(
            "model",
            given,
            format!(
                "Vectors of another model cannot be compared with the server's: only those of {} can be adopted.",
                endpoint.model
            ),
        ));
    }
    if pipeline.has_chunks() {
        return Err(Error::argument(
            "name",
            "a vector there would be of a text, and the pipeline has one for each chunk of it",
            "Vectors of whole texts are adopted by pipelines with long_text => 'truncate' or 'mean'.",
        ));
    }
    let from = From::find(
        &pipeline,
        wanted.vectors,
        wanted.vector_column,
        wanted.key_columns,
    )?;
    from.require_one_a_row(&pipeline)?;
    let mut sample = Sample::of(wanted.check_rows);
    let adopted = read(&pipeline, &from, &endpoint, &mut sample)?;
    sample.compare(pipeline.account, &pipeline.server, &from)?;
    begin(&pipeline, adopted)?;
    Ok(adopted)
}

/// Every row that has a text and a vector; how many they are.
fn read(pipeline: &Pipeline, from: &From, endpoint: &Endpoint, sample: &mut Sample) -> Result<i64> {
    let schema = names::vector_schema().unwrap_or_default();
    let held = match from.is_own_column {
        true => column::hash(pipeline, &schema),
        false => "NULL::bytea".to_owned(),
    };
    let sql = format!(
        "SELECT CASE WHEN {} THEN {} END, ({})::{schema}.vector::pg_catalog.float4[], {held} FROM {} WHERE {} IS NOT NULL",
        pipeline.row_filter.as_deref().unwrap_or("true"),
        pipeline.content,
        from.vector,
        from.joined(pipeline),
        from.vector,
    );
    let long_text = pipeline.long_text(endpoint);
    let secret = {
        let _as = As::extension();
        secret()?
    };
    let (mut found, mut adopted) = (Vec::new(), 0);
    let keep = |found: &mut Vec<Found>| -> Result<()> {
        let _as = As::extension();
        adopted::keep(pipeline.id, found)?;
        found.clear();
        Ok(())
    };
    let owner = pipeline.owner();
    let each = |row: &pgrx::spi::SpiHeapTupleData| {
        let text = row.get::<String>(1)?.filter(|text| !text.is_empty());
        let (Some(text), Some(vector)) = (text, row.get::<Vec<f32>>(2)?) else {
            return Ok(());
        };
        if vector.len() != endpoint.dimensions {
            return Err(Error::argument(
                "vectors",
                format!(
                    "a vector in {} has {} dimensions, the server gives {}",
                    from.name,
                    vector.len(),
                    endpoint.dimensions
                ),
                "Only vectors of the server's width can be adopted.",
            ));
        }
        if vector.iter().all(|number| *number == 0.0) {
            return Ok(()); // nobody's embedding
        }
        adopted += 1;
        let hash = text_hash(&secret, &text, &long_text)?;
        let held = row.get::<Vec<u8>>(3)?;
        if long_text.mark(&text).is_none() {
            sample.offer(text, &vector); // another is not embedded in one piece
        }
        found.push(Found {
            hash,
            vector: held.is_none().then_some(vector),
            held,
        });
        match found.len() as i64 >= AT_ONCE {
            true => keep(&mut found),
            false => Ok(()),
        }
    };
    // Texts are to have the hashes that they have for the worker, and so are rendered as it does.
    Environment::noted()?.within(|| {
        let _as = As::owner(owner);
        in_snapshot_of_now(|| {
            let open = |client: &pgrx::spi::SpiClient| {
                Ok(client
                    .try_open_cursor(sql.as_str(), &[])?
                    .detach_into_name())
            };
            in_parts(AT_ONCE, open, each)
        })
    })?;
    keep(&mut found)?;
    Ok(adopted)
}

/// The backfill begins: what was found costs no call. Where it has not been confirmed that the others may be paid for,
/// and they are many, it waits for that.
fn begin(pipeline: &Pipeline, adopted: i64) -> Result<()> {
    let rows = size::rows(pipeline.source_oid(), &pipeline.rows_of, pipeline.owner())?;
    let left = rows.saturating_sub(adopted);
    {
        let _as = As::extension();
        backfill::restart(&[pipeline.id])?;
        Spi::run_with_args(
            "UPDATE recsync.pipeline SET backfill_held = NULL WHERE id = $1 AND backfill_held IS NOT NULL",
            &[pipeline.id.into()],
        )?;
    }
    let unconfirmed = pipeline.filling.held || pipeline.backfilled;
    if unconfirmed && settings::backfill_confirm_rows().is_some_and(|most| left > most) {
        confirm::hold(
            pipeline,
            &format!("about {left} rows have no vector to adopt"),
        )?;
    }
    wake::after_catalog_change();
    Ok(())
}

/// Some rows at random, for a comparison (Vitter, Algorithm R, ACM TOMS 1985).
struct Sample {
    size: usize,
    seen: usize,
    rows: Vec<(String, Vec<f32>)>,
}

impl Sample {
    fn of(size: usize) -> Sample {
        Sample {
            size,
            seen: 0,
            rows: Vec::new(),
        }
    }

    fn offer(&mut self, text: String, vector: &[f32]) {
        self.seen += 1;
        if self.rows.len() < self.size {
            return self.rows.push((text, vector.to_vec()));
        }
        let place = fastrand::usize(0..self.seen);
        if let Some(row) = self.rows.get_mut(place) {
            *row = (text, vector.to_vec());
        }
    }

    /// Refuses where some of them are not what the server gives for their text.
    fn compare(&self, account: i32, server: &str, from: &From) -> Result<()> {
        let mut other = 0;
        for (text, vector) in &self.rows {
            pgrx::check_for_interrupts!();
            let asked = vector_of(Some(account), server, text, Purpose::Document)?;
            other += usize::from(cosine(&asked, vector) < SAME);
        }
        if other == 0 {
            return Ok(());
        }
        Err(Error::argument(
            "vectors",
            format!(
                "{other} of {} vectors in {} that were compared are not those of their rows' present texts by server {}",
                self.rows.len(),
                from.name,
                quote(server)
            ),
            "They may be of another model, of texts that were put together otherwise (see the pipeline's columns or content), or stale. check_rows => 0 adopts them as they are.",
        ))
    }
}

fn cosine(one: &[f32], other: &[f32]) -> f64 {
    let product = |one: &[f32], other: &[f32]| -> f64 {
        let pairs = one.iter().zip(other);
        pairs
            .map(|(one, other)| f64::from(*one) * f64::from(*other))
            .sum()
    };
    let lengths = (product(one, one) * product(other, other)).sqrt();
    match lengths > 0.0 {
        true => product(one, other) / lengths,
        false => 0.0,
    }
}
