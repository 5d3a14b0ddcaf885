//! What create_pipeline was given, argument by argument: each is turned into what is stored, or refused with a hint.
//!
//! It never writes anything.

use pgrx::JsonB;
use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::catalog::index::Options;
use crate::catalog::names::{self, quote, select_one};
use crate::catalog::pipeline::When;
use crate::catalog::rights::in_subtransaction;
use crate::dispatch::schedule::is_cron;
use crate::embed::endpoint::Endpoint;
use crate::embed::long_text::{self, Mode};
use crate::error::{Error, Result};

/// Reads what says when a change is due.
pub fn when(
    schedule: Option<&str>,
    debounce: Option<Interval>,
    max_delay: Option<Interval>,
) -> Result<When> {
    let schedule = schedule.unwrap_or("realtime").trim().to_owned();
    let word = ["realtime", "near_realtime", "hourly", "daily"].contains(&schedule.as_str());
    let seconds = |argument, interval: Option<Interval>| {
        let seconds = interval.map(|interval| interval.as_micros() as f64 / 1e6);
        seconds
            .map(|seconds| positive(argument, seconds))
            .transpose()
    };
    let when = When {
        every_s: (!word && !is_cron(&schedule))
            .then(|| interval(&schedule))
            .flatten(),
        debounce_s: seconds("debounce", debounce)?,
        max_delay_s: seconds("max_delay", max_delay)?,
        schedule,
    };
    match when.schedule() {
        Ok(_) => Ok(when),
        Err(reason) => Err(Error::argument(
            "schedule",
            format!("\"{}\": {reason}", when.schedule),
            "The valid ones are realtime, near_realtime, hourly, daily, an interval such as 15 minutes, and a cron expression such as 30 3 * * *, in the database's time zone.",
        )),
    }
}

/// The seconds of what PostgreSQL can read as an interval.
fn interval(text: &str) -> Option<f64> {
    let read = || {
        select_one::<f64>(
            "SELECT extract(epoch FROM $1::interval)::float8",
            &[text.into()],
        )
    };
    in_subtransaction(read).ok().flatten()
}

fn positive(argument: &'static str, seconds: f64) -> Result<f64> {
    if seconds >= 0.0 {
        return Ok(seconds);
    }
    Err(Error::argument(
        argument,
        format!("{seconds} s is no time to wait for"),
        "Give a positive interval.",
    ))
}

/// The relation's own name in `name`, which is read like any relation's: `product_embedding`, `"Mixed"`,
/// `shop.product_embedding`. It lives in the source's schema, and has up to `longest` bytes, so that suffixes fit.
pub fn relation_name(name: &str, schema: &str, longest: usize) -> Result<String> {
    let parts = names::parts(name);
    let refused = |reason: String, hint: &str| Err(Error::argument("name", reason, hint));
    let relation = match parts.as_deref() {
        Some([]) => String::new(),
        Some([relation]) => relation.clone(),
        Some([of, relation]) if of == schema => relation.clone(),
        Some([_, _]) => {
            return refused(
                format!("\"{name}\" is not in the source's schema {schema}"),
                "What it is the name of lives beside the table: leave the schema out.",
            );
        }
        _ => {
            return refused(
                format!("\"{name}\" is not a relation's name"),
                "Give name or schema.name; a name with capitals, blanks or signs in double quotes: name => '\"My Name\"'.",
            );
        }
    };
    if relation.is_empty() || relation.len() > longest {
        return refused(
            format!("\"{relation}\" leaves no room for suffixes"),
            &format!("Give 1 to {longest} bytes."),
        );
    }
    Ok(relation)
}

/// `concat_ws(newline, a, b)`: NULLs left out.
pub fn content_of_columns(source: pg_sys::Oid, name: &str, columns: &[String]) -> Result<String> {
    let known = select_one::<Vec<String>>(
        "SELECT pg_catalog.array_agg(attname::text ORDER BY attnum) FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped",
        &[source.into()],
    )?
    .unwrap_or_default();
    for column in columns {
        if !known.contains(column) {
            return Err(Error::NoSuchColumn {
                relation: name.to_owned(),
                column: column.clone(),
                columns: known.join(", "),
            });
        }
    }
    let columns: Vec<String> = columns
        .iter()
        .map(|column| format!("{}::text", quote(column)))
        .collect();
    Ok(format!(
        "pg_catalog.concat_ws(E'\\n', {})",
        columns.join(", ")
    ))
}

/// The dimensions that pgvector's graphs take.
pub fn widest(storage: &str) -> usize {
    match storage {
        "halfvec" => 4_000,
        _ => 2_000,
    }
}

/// How the index is to be made, where there is one.
pub fn options(given: Option<JsonB>, index: Option<&str>) -> Result<Option<Options>> {
    let Some(JsonB(given)) = given else {
        return Ok(None);
    };
    let refused = |reason: String, hint: &str| Err(Error::argument("index_options", reason, hint));
    if index == Some("none") {
        return refused(
            "there is no index".into(),
            "Leave it out, or index => 'none'.",
        );
    }
    match Options::of(&given) {
        Ok(options) => Ok(Some(options)),
        Err(reason) => refused(
            reason,
            "Give what pgvector's hnsw takes, for example '{\"m\": 24, \"ef_construction\": 128}': m from 2 to 100 (16 if it is not given), ef_construction from 4 to 1000 (64), at least twice m.",
        ),
    }
}

/// How vectors of that width are stored, and the index over them: what was asked for, or what the width allows.
pub fn form(
    storage: Option<&str>,
    index: Option<&str>,
    dimensions: usize,
) -> Result<(&'static str, &'static str)> {
    let known = |argument, of: &[&'static str], name: Option<&str>, hint: &str| match name {
        None => Ok(None),
        Some(name) => match of.iter().find(|known| **known == name) {
            Some(known) => Ok(Some(*known)),
            None => Err(Error::argument(
                argument,
                format!("\"{name}\" is not one"),
                hint.to_owned(),
            )),
        },
    };
    let given = known(
        "storage",
        &["vector", "halfvec"],
        storage,
        "The valid ones are vector and halfvec.",
    )?;
    let index = known(
        "index",
        &["hnsw", "hnsw_bit", "none"],
        index,
        "The valid ones are hnsw, hnsw_bit and none.",
    )?;
    let storage = given.unwrap_or(match dimensions {
        2_001..=4_000 => {
            notice!(
                "{dimensions} dimensions are too wide for an index on vector: storage is halfvec"
            );
            "halfvec"
        }
        _ => "vector",
    });
    let fits = dimensions <= widest(storage);
    match index {
        Some("hnsw") if !fits => Err(Error::argument(
            "index",
            format!(
                "hnsw takes up to {} dimensions of {storage}, not {dimensions}",
                widest(storage)
            ),
            "hnsw_bit takes any width, and storage => 'halfvec' up to 4,000 with hnsw; or choose a model with fewer dimensions, or ask it for fewer with the server's option dimensions.",
        )),
        Some(index) => Ok((storage, index)),
        None if fits => Ok((storage, "hnsw")),
        None => {
            notice!(
                "{dimensions} dimensions are too wide for an index on {storage}: index is hnsw_bit"
            );
            Ok((storage, "hnsw_bit"))
        }
    }
}

/// Tokens that a chunk may be asked to have at most: fewer say nothing, and no model takes more.
const CHUNK_TOKENS: std::ops::RangeInclusive<i32> = 16..=100_000;
/// What a pipeline's relation has beside the key, where it has chunks.
const COLUMNS_OF_CHUNKS: [&str; 3] = ["chunk", "chunk_start", "chunk_end"];

/// What becomes of long texts, and how large chunks are.
pub fn long_texts(
    long_text: Option<&str>,
    chunk_tokens: Option<i32>,
    into_column: Option<&str>,
) -> Result<(Mode, Option<i32>)> {
    let name = long_text.unwrap_or("truncate");
    let mode = Mode::find(name).ok_or_else(|| {
        Error::argument(
            "long_text",
            format!("\"{name}\" is not one"),
            "The valid ones are truncate, mean and chunks.",
        )
    })?;
    match (mode, chunk_tokens, into_column) {
        (Mode::Chunks, _, Some(_)) => Err(Error::argument(
            "long_text",
            "a column of the source has room for one vector a row, not for one a chunk",
            "Leave into_column out, or give long_text => 'mean' or 'truncate'.",
        )),
        (Mode::Chunks, Some(tokens), _) if !CHUNK_TOKENS.contains(&tokens) => Err(Error::argument(
            "chunk_tokens",
            format!("{tokens} tokens are no chunk"),
            format!("Give {} to {}.", CHUNK_TOKENS.start(), CHUNK_TOKENS.end()),
        )),
        (Mode::Chunks, tokens, _) => {
            Ok((mode, Some(tokens.unwrap_or(long_text::CHUNK_TOKENS as i32))))
        }
        (_, Some(_), _) => Err(Error::argument(
            "chunk_tokens",
            format!("long_text is {}", mode.name()),
            "It belongs to long_text => 'chunks'.",
        )),
        (_, None, _) => Ok((mode, None)),
    }
}

/// Refuses chunks that the model does not take, or whose columns are the key's already.
pub fn chunks_fit(
    (mode, tokens): (Mode, Option<i32>),
    endpoint: &Endpoint,
    key_columns: &[String],
) -> Result<()> {
    if mode != Mode::Chunks {
        return Ok(());
    }
    if let Some(column) = key_columns
        .iter()
        .find(|key| COLUMNS_OF_CHUNKS.contains(&key.as_str()))
    {
        return Err(Error::argument(
            "long_text",
            format!("the primary key has a column \"{column}\", which would be the chunk's"),
            "Rename it, or give long_text => 'mean' or 'truncate'.",
        ));
    }
    match (tokens, endpoint.input_tokens()) {
        (Some(tokens), Some(most))
            if tokens as u64 > most && tokens as u64 != long_text::CHUNK_TOKENS =>
        {
            Err(Error::argument(
                "chunk_tokens",
                format!("the model takes {most} estimated tokens at a time, not {tokens}"),
                "Give no more than that; or raise the server's option max_input_tokens if the model takes more.",
            ))
        }
        _ => Ok(()),
    }
}
