//! estimate: what embedding a table, or what is left of it, would come to: tokens, money, time and room.
//!
//! It never sends anything: texts are counted here.

use pgrx::datum::{AnyNumeric, Interval};
use pgrx::pg_sys;
use pgrx::prelude::*;

// What an alteration of a pipeline would come to.
pub mod alteration;

// Tokens of many texts by those of some.
mod sample;

// Disk, WAL and time.
mod size;

// The same in a moment, by a sample.
pub mod price;

use crate::catalog::declare::checks::{content_of_columns, form};
use crate::catalog::expression::{self, Wanted};
use crate::catalog::names::{self, qualified, quote, select_one};
use crate::catalog::pipeline;
use crate::catalog::rights::As;
use crate::catalog::server;
use crate::catalog::watch::describe_source;
use crate::dispatch::environment::Environment;
use crate::dispatch::fault::Looked;
use crate::dispatch::read::in_snapshot_of_now;
use crate::dispatch::render::{rows, secret, text_hash};
use crate::embed::endpoint::Endpoint;
use crate::embed::long_text::{LongText, Mode};
use crate::error::{Error, OrReport, Result};
use crate::statement::in_parts;
use sample::Sample;
use size::{Limits, Shape};

/// Texts in memory at a time.
const AT_ONCE: i64 = 256;
/// Decimal places of money: a short text costs less than a thousandth of a cent.
const PLACES: usize = 6;

/// The columns of `recsync.estimate`.
type Estimate = (i64, i64, i64, Option<AnyNumeric>, Interval, i64, i64, i64);

#[pg_extern(sql = r#"
CREATE FUNCTION estimate(name text) RETURNS TABLE (rows bigint, characters bigint, tokens bigint, cost numeric, duration interval, disk_bytes bigint, wal_bytes bigint, tokens_error bigint)
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION estimate(text) IS
'What embedding the rows of a pipeline would come to that have no vector of their text by the server''s model now; nothing is sent. rows and characters are exact; tokens are counted (cl100k_base, with the server''s document_prefix) for up to 1,000 texts, and for more estimated from a random sample of 1,000, with an error (tokens_error) that is exceeded once in 20 times; cost by the server''s price_per_million_tokens or that of its model''s preset, in its currency, NULL where neither is known; duration: the longest of what requests_per_minute, tokens_per_minute, 0.5 s a full request at max_concurrency, and the store allow, without the building of the index; disk_bytes and wal_bytes: the table of vectors and its indexes. Texts that are equal or known are counted although they cost nothing. It renders all rows, as the owner. Errors: 42704, 42501 for others than the owner and recsync_admin, 55000 where it is broken, and what the expressions raise.';
"#)]
#[allow(clippy::type_complexity)] // the columns of an SQL function
fn estimate_pipeline(
    name: &str,
) -> TableIterator<
    'static,
    (
        name!(rows, i64),
        name!(characters, i64),
        name!(tokens, i64),
        name!(cost, Option<AnyNumeric>),
        name!(duration, Interval),
        name!(disk_bytes, i64),
        name!(wal_bytes, i64),
        name!(tokens_error, i64),
    ),
> {
    TableIterator::once(of_pipeline(name).or_report())
}

#[pg_extern(sql = r#"
CREATE FUNCTION estimate(source regclass, columns text[] DEFAULT NULL, content text DEFAULT NULL, server text DEFAULT NULL, row_filter text DEFAULT NULL, storage text DEFAULT NULL, index text DEFAULT NULL)
RETURNS TABLE (rows bigint, characters bigint, tokens bigint, cost numeric, duration interval, disk_bytes bigint, wal_bytes bigint, tokens_error bigint)
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION estimate(regclass, text[], text, text, text, text, text) IS
'The same for a pipeline that create_pipeline would make of these arguments: all rows that pass row_filter and have a text. Errors: those of create_pipeline (42704, 42501, 22023, 55000), and what the expressions raise.';
"#)]
#[allow(clippy::type_complexity, clippy::too_many_arguments)] // the columns and arguments of an SQL function
fn estimate_source(
    source: Option<pg_sys::Oid>,
    columns: Option<Vec<Option<String>>>,
    content: Option<&str>,
    server: Option<&str>,
    row_filter: Option<&str>,
    storage: Option<&str>,
    index: Option<&str>,
) -> TableIterator<
    'static,
    (
        name!(rows, i64),
        name!(characters, i64),
        name!(tokens, i64),
        name!(cost, Option<AnyNumeric>),
        name!(duration, Interval),
        name!(disk_bytes, i64),
        name!(wal_bytes, i64),
        name!(tokens_error, i64),
    ),
> {
    let columns = columns.map(|columns| columns.into_iter().flatten().collect::<Vec<String>>());
    let of = || {
        let (source, server) = match (source, server) {
            (Some(source), Some(server)) => (source, server),
            (None, _) => return Err(missing("source")),
            (_, None) => return Err(missing("server")),
        };
        of_source(
            source,
            columns.as_deref(),
            content,
            server,
            row_filter,
            (storage, index),
        )
    };
    TableIterator::once(of().or_report())
}

fn missing(argument: &'static str) -> Error {
    Error::argument(
        argument,
        "it is missing",
        format!("Give {argument} => '…'."),
    )
}

fn of_pipeline(name: &str) -> Result<Estimate> {
    let pipeline = pipeline::find(name)?;
    pipeline::require_owner(&pipeline)?;
    let endpoint = pipeline.require_endpoint()?;
    let long_text = pipeline.long_text(&endpoint);
    let (secret, size) = {
        let _as = As::extension();
        let size = "SELECT pg_catalog.pg_relation_size($1::oid)";
        let size = select_one::<i64>(size, &[pipeline.source_oid().into()])?;
        (secret()?, size.unwrap_or(0))
    };
    let schema = names::vector_schema().unwrap_or_default();
    let (mut texts, mut keys, mut all) =
        (Sample::new(&endpoint.document_prefix, long_text), 0, 0_i64);
    let in_column = pipeline.into_column.is_some();
    let look = |row: Looked, key| {
        all += 1;
        let Some(text) = &row.text else {
            return Ok(());
        };
        let hash = text_hash(&secret, text, &long_text)?;
        if row.fault(Some(&hash), &endpoint.model, in_column).is_some() {
            texts.add(text);
            keys += key;
        }
        Ok(())
    };
    let rows = rows::all_rows(&pipeline, &schema);
    // Texts are compared with their vectors, and so rendered as the worker does.
    Environment::noted()?.within(|| read(&rows, pipeline.owner(), look))?;
    let shape = Shape {
        dimensions: endpoint.dimensions as u64,
        storage: &pipeline.storage,
        index: &pipeline.index,
        model: &endpoint.model,
        key: keys as f64 / texts.texts().max(1) as f64,
        source_row: in_column.then(|| size as f64 / all.max(1) as f64),
    };
    estimate(&texts, &endpoint, long_text, shape)
}

fn of_source(
    source: pg_sys::Oid,
    columns: Option<&[String]>,
    content: Option<&str>,
    server: &str,
    row_filter: Option<&str>,
    (storage, index): (Option<&str>, Option<&str>),
) -> Result<Estimate> {
    let name = qualified(source).ok_or_else(|| missing("source"))?;
    let table = describe_source(source, &name)?;
    let (argument, text) = match (columns, content) {
        (Some(columns), None) if !columns.is_empty() => {
            ("columns", content_of_columns(source, &name, columns)?)
        }
        (None, Some(content)) => ("content", content.to_owned()),
        _ => {
            return Err(Error::argument(
                "columns",
                "give either columns or content",
                "As to create_pipeline.",
            ));
        }
    };
    let content = expression::parse(argument, source, &text, Wanted::Text)?.sql;
    let filter = row_filter
        .map(|filter| expression::parse("row_filter", source, filter, Wanted::Boolean))
        .transpose()?
        .map_or("true".to_owned(), |filter| filter.sql);
    let endpoint = server::endpoint(server, table.owner)?;
    let (storage, index) = form(storage, index, endpoint.dimensions)?;
    let rows_of = {
        const ONLY: &str = "SELECT relkind <> 'p' FROM pg_catalog.pg_class WHERE oid = $1";
        let _as = As::extension();
        match select_one::<bool>(ONLY, &[source.into()])? {
            Some(false) => name,
            _ => format!("ONLY {name}"),
        }
    };
    let key_columns: Vec<String> = table.key_columns.iter().map(|key| quote(key)).collect();
    let sql = format!(
        "SELECT CASE WHEN {filter} THEN {content} END, NULL::bytea, NULL::text, NULL::bytea, {} FROM {rows_of} s",
        rows::key_size(key_columns.iter().map(String::as_str)),
    );
    let long_text = LongText::new(Mode::Truncate, None, &endpoint);
    let (mut texts, mut keys) = (Sample::new(&endpoint.document_prefix, long_text), 0);
    read(&sql, table.owner, |row, key| {
        if let Some(text) = &row.text {
            texts.add(text);
            keys += key;
        }
        Ok(())
    })?;
    let shape = Shape {
        dimensions: endpoint.dimensions as u64,
        storage,
        index,
        model: &endpoint.model,
        key: keys as f64 / texts.texts().max(1) as f64,
        source_row: None,
    };
    estimate(&texts, &endpoint, long_text, shape)
}

/// Every row of a query of rendered texts, and the size of its key, as the owner of the expressions in it.
fn read(
    sql: &str,
    owner: pg_sys::Oid,
    mut each: impl FnMut(Looked, i64) -> Result<()>,
) -> Result<()> {
    let _as = As::owner(owner);
    in_snapshot_of_now(|| {
        in_parts(
            AT_ONCE,
            |client| Ok(client.try_open_cursor(sql, &[])?.detach_into_name()),
            |row| {
                let size = row.get::<i32>(5)?.unwrap_or(0);
                each(rows::looked(row)?, i64::from(size))
            },
        )
    })
}

fn limits(endpoint: &Endpoint) -> Limits {
    let room = endpoint.room();
    Limits {
        inputs: room.inputs as u64,
        batch_tokens: room.tokens,
        batch_bytes: room.bytes as u64,
        concurrency: endpoint.max_concurrency as u64,
        requests_per_minute: endpoint.requests_per_minute,
        tokens_per_minute: endpoint.tokens_per_minute,
        sends: endpoint.api.wire.is_some(),
    }
}

fn estimate(
    texts: &Sample,
    endpoint: &Endpoint,
    long_text: LongText,
    shape: Shape,
) -> Result<Estimate> {
    let tokens = texts.tokens();
    let inputs = texts.inputs().ceil();
    let vectors = match long_text.has_chunks() {
        true => inputs,
        false => texts.texts() as f64,
    };
    let duration =
        limits(endpoint).duration(inputs as u64, tokens.count, texts.bytes(), shape.dimensions);
    let bytes = shape.bytes(vectors);
    let cost = endpoint
        .price_per_million_tokens
        .map(|price| format!("{:.PLACES$}", price * tokens.count / 1e6))
        .map(|cost| AnyNumeric::try_from(cost.as_str()))
        .transpose()
        .map_err(|error| Error::Internal(error.to_string()))?;
    let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    Ok((
        texts.texts() as i64,
        texts.characters() as i64,
        tokens.count.round() as i64,
        cost,
        Interval::from_micros(micros),
        bytes.disk.ceil() as i64,
        bytes.wal.ceil() as i64,
        tokens.error.ceil() as i64,
    ))
}
