//! create_pipeline: what a user declares, checked and written down.
//!
//! It never writes anything before everything has been checked.

use pgrx::JsonB;
use pgrx::datum::{AnyNumeric, Interval};
use pgrx::pg_sys;
use pgrx::prelude::*;

// Its arguments, one by one.
pub mod checks;

// A backfill that is to be confirmed.
pub mod confirm;

use super::column;
use super::ddl::seeing_its_effects;
use super::expression::{self, Wanted};
use super::index::{Distance, Options};
use super::names::{qualified, quote, select_one};
use super::pipeline::{self, Pipeline, When};
use super::relations::make_relations;
use super::rights::As;
use super::server;
use super::watch::{CAPTURES, describe_source, lock_in_tries, notice_of_source, refresh, watch};
use crate::capture::wake;
use crate::embed::long_text::Mode;
use crate::error::{Error, OrReport, Result};
use crate::ledger::budget;
use checks::{chunks_fit, content_of_columns, form, long_texts, options, relation_name, when};

/// What create_pipeline was asked for.
struct Declaration {
    name: String,
    source: pg_sys::Oid,
    columns: Option<Vec<String>>,
    content: Option<String>,
    server: String,
    when: When,
    row_filter: Option<String>,
    storage: Option<String>,
    index: Option<String>,
    distance: Distance,
    index_options: Option<Options>,
    into_column: Option<String>,
    long_text: (Mode, Option<i32>),
    capture: String,
    on_replica: bool,
    backfill: bool,
    monthly_budget: Option<AnyNumeric>,
}

#[pg_extern(sql = r#"
CREATE FUNCTION create_pipeline(name text, source regclass, columns text[] DEFAULT NULL, content text DEFAULT NULL, server text DEFAULT NULL,
    schedule text DEFAULT 'realtime', debounce interval DEFAULT NULL, max_delay interval DEFAULT NULL, row_filter text DEFAULT NULL, long_text text DEFAULT 'truncate', storage text DEFAULT NULL,
    index text DEFAULT NULL, into_column text DEFAULT NULL, capture text DEFAULT 'keys', on_replica boolean DEFAULT false, backfill boolean DEFAULT true, if_not_exists boolean DEFAULT false,
    distance text DEFAULT 'cosine', index_options jsonb DEFAULT NULL, chunk_tokens integer DEFAULT NULL, monthly_budget numeric DEFAULT NULL)
RETURNS regclass LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION create_pipeline(text, regclass, text[], text, text, text, interval, interval, text, text, text, text, text, text, boolean, boolean, boolean, text, jsonb, integer, numeric) IS
'Keeps a table embedded. name: the pipeline and the view that will hold its vectors, in the source''s schema; columns (joined by newlines, NULLs left out) or content (an SQL expression over the row): the text; server: a foreign server of wrapper recsync; schedule: realtime, near_realtime (a row that has been quiet for a second, after 4 s at the latest), hourly, daily, an interval or a cron expression in the database''s time zone; debounce, max_delay: how long a row has to be quiet, and the longest it waits for that; row_filter: only rows for which it is true; storage: vector or halfvec (by default what the width asks for); index: hnsw (up to 2,000 dimensions of vector, 4,000 of halfvec), hnsw_bit (over the vectors'' signs, any width; only search uses it) or none, by default hnsw where the width allows it, else hnsw_bit; it is built once the first load is over and there are recsync.index_min_rows vectors; distance: cosine, inner_product or l2, by which search, similar and recommenders compare vectors, and the index is made; index_options: m and ef_construction of the index as JSON, pgvector''s own where they are not given; into_column: a pgvector column of the source that is to hold the vectors (added where it is missing) instead of a table of their own; recsync makes no index on it; capture: what old_record and record of the change log hold: keys (nothing), columns (those that the text uses) or full (all columns); on_replica: changes that logical replication applies are captured, too; backfill: embed the rows that are there; monthly_budget: what may be spent in a calendar month (UTC), in the server''s currency: see set_budget. long_text: what becomes of a text that the model does not take in one piece: truncate (its beginning is embedded), mean (the mean of its parts'' vectors) or chunks (a row a chunk, of at most chunk_tokens tokens, 512 by default). Returns the view. Errors: 42501 without the rights, 42710 where it exists otherwise, 55000 without a primary key, 22023 for an impossible argument.';
"#)]
#[allow(clippy::too_many_arguments)]
fn create_pipeline_v2(
    name: Option<&str>,
    source: Option<pg_sys::Oid>,
    columns: Option<Vec<Option<String>>>,
    content: Option<&str>,
    server: Option<&str>,
    schedule: Option<&str>,
    debounce: Option<Interval>,
    max_delay: Option<Interval>,
    row_filter: Option<&str>,
    long_text: Option<&str>,
    storage: Option<&str>,
    index: Option<&str>,
    into_column: Option<&str>,
    capture: Option<&str>,
    on_replica: Option<bool>,
    backfill: Option<bool>,
    if_not_exists: Option<bool>,
    distance: Option<&str>,
    index_options: Option<JsonB>,
    chunk_tokens: Option<i32>,
    monthly_budget: Option<AnyNumeric>,
) -> pg_sys::Oid {
    (|| {
        let required = |argument: &'static str, value: Option<&str>| {
            value.map(str::to_owned).ok_or_else(|| {
                Error::argument(
                    argument,
                    "it is missing",
                    format!("Give {argument} => '…'."),
                )
            })
        };
        let declaration = Declaration {
            name: required("name", name)?,
            source: source.ok_or_else(|| {
                Error::argument("source", "it is missing", "Give the table to be embedded.")
            })?,
            columns: columns.map(|columns| columns.into_iter().flatten().collect()),
            content: content.map(str::to_owned),
            server: required("server", server)?,
            when: when(schedule, debounce, max_delay)?,
            row_filter: row_filter.map(str::to_owned),
            storage: storage.map(str::to_owned),
            index: index.map(str::to_owned),
            distance: Distance::of(distance.unwrap_or("cosine"))?,
            index_options: options(index_options, into_column.map_or(index, |_| Some("none")))?,
            into_column: into_column.map(str::to_owned),
            long_text: long_texts(long_text, chunk_tokens, into_column)?,
            capture: capture.unwrap_or("keys").to_owned(),
            on_replica: on_replica.unwrap_or(false),
            backfill: backfill.unwrap_or(true),
            monthly_budget,
        };
        create(&declaration, if_not_exists.unwrap_or(false))
    })()
    .or_report()
}

/// The pipeline of a recommender's items; the same again is accepted.
pub fn create_for_items(
    name: &str,
    items: pg_sys::Oid,
    columns: &[String],
    server: &str,
) -> Result<pg_sys::Oid> {
    let declaration = Declaration {
        name: name.to_owned(),
        source: items,
        columns: Some(columns.to_vec()),
        content: None,
        server: server.to_owned(),
        when: when(None, None, None)?,
        row_filter: None,
        storage: None,
        index: None,
        distance: Distance::default(),
        index_options: None,
        into_column: None,
        long_text: (Mode::Truncate, None),
        capture: "keys".to_owned(),
        on_replica: false,
        backfill: true,
        monthly_budget: None,
    };
    create(&declaration, true)
}

fn create(wanted: &Declaration, if_not_exists: bool) -> Result<pg_sys::Oid> {
    crate::catalog::install::require_primary()?;
    super::install::require_worker()?;
    let source_name = qualified(wanted.source).ok_or_else(|| {
        Error::argument(
            "source",
            "there is no such table",
            "Give the table to be embedded.",
        )
    })?;
    let table = describe_source(wanted.source, &source_name)?;
    table.require_create()?;
    let relation_name = relation_name(&wanted.name, &table.schema, 59)?;
    let relation = format!("{}.{}", quote(&table.schema), quote(&relation_name));
    let vectors = format!(
        "{}.{}",
        quote(&table.schema),
        quote(&format!("{relation_name}_g1"))
    );

    let (text, columns) = match (&wanted.columns, &wanted.content) {
        (Some(columns), None) if !columns.is_empty() => (
            content_of_columns(wanted.source, &source_name, columns)?,
            Some(columns.clone()),
        ),
        (None, Some(content)) => (content.clone(), None),
        _ => {
            return Err(Error::argument(
                "columns",
                "give either columns or content",
                "columns => ARRAY['title', 'description'] joins columns by newlines; content => $$title || ' by ' || author$$ is any expression.",
            ));
        }
    };
    let argument = if columns.is_some() {
        "columns"
    } else {
        "content"
    };
    let content = expression::parse(argument, wanted.source, &text, Wanted::Text)?;
    let filter = wanted
        .row_filter
        .as_deref()
        .map(|filter| expression::parse("row_filter", wanted.source, filter, Wanted::Boolean))
        .transpose()?;
    // SAFETY: the current user's OID.
    server::endpoint(&wanted.server, unsafe { pg_sys::GetUserId() })?;
    let endpoint = server::endpoint(&wanted.server, table.owner)?;
    chunks_fit(wanted.long_text, &endpoint, &table.key_columns)?;
    let (long_text, chunk_tokens) = wanted.long_text;
    let into_column = wanted.into_column.as_deref();
    let wanted_storage = wanted.storage.as_deref();
    let stored_as = match into_column {
        Some(name) => column::check(
            wanted.source,
            &table,
            name,
            wanted_storage,
            endpoint.dimensions,
        )?,
        None => None,
    };
    let (storage, index) = form(
        stored_as.as_deref().or(wanted_storage),
        index_asked_for(wanted)?,
        endpoint.dimensions,
    )?;
    budget::check(wanted.monthly_budget.as_ref())?;
    if !CAPTURES.contains(&wanted.capture.as_str()) {
        return Err(Error::argument(
            "capture",
            format!("\"{}\" is not a capture mode", wanted.capture),
            "The valid ones are keys, columns and full.",
        ));
    }
    let mut used: Vec<String> = content.columns.clone();
    used.extend(filter.iter().flat_map(|filter| filter.columns.clone()));
    used.sort();
    used.dedup();

    if let Some(existing) = existing(&relation)? {
        let difference = difference(
            &existing,
            &source_name,
            &content.sql,
            filter.as_ref().map(|f| f.sql.as_str()),
            (storage, index),
            wanted,
        );
        return match difference {
            None if if_not_exists => {
                notice!("pipeline {relation} already exists, skipping");
                Ok(
                    select_one::<pg_sys::Oid>("SELECT $1::regclass::oid", &[relation.into()])?
                        .unwrap_or(pg_sys::InvalidOid),
                )
            }
            None => Err(Error::PipelineExists(relation)),
            Some(difference) => Err(Error::PipelineDiffers {
                name: relation,
                difference,
            }),
        };
    }
    let whole_row = content.whole_row || filter.as_ref().is_some_and(|filter| filter.whole_row);
    column::check_use(&source_name, into_column, &used, whole_row)?;
    for name in [&relation, &vectors] {
        if select_one::<bool>(
            "SELECT pg_catalog.to_regclass($1) IS NOT NULL",
            &[name.as_str().into()],
        )? == Some(true)
        {
            return Err(Error::RelationExists(name.clone()));
        }
    }

    if let (Some(name), None) = (into_column, &stored_as) {
        let dimensions = endpoint.dimensions;
        column::add(
            wanted.source,
            &source_name,
            &table,
            name,
            storage,
            dimensions,
        )?;
    }
    lock_in_tries(wanted.source, &source_name, pg_sys::ShareRowExclusiveLock)?;
    let source_id = watch(wanted.source, &source_name, &table)?;
    match into_column {
        Some(_) => column::make_table(&vectors, &source_name, &table)?,
        None => make_relations(
            &relation,
            &vectors,
            &source_name,
            &table,
            storage,
            endpoint.dimensions,
            long_text == Mode::Chunks,
        )?,
    }
    {
        let _as = As::extension();
        Spi::run_with_args(
            "WITH p AS (INSERT INTO recsync.pipeline (relation, vectors, source_id, columns, content, row_filter, used_columns, server, schedule, every, debounce, max_delay, storage, index, into_column, dimensions, capture, on_replica, monthly_budget, distance, index_options, long_text, chunk_tokens)
                        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $15, $16 * interval '1 s', $17 * interval '1 s', $18 * interval '1 s', $9, $10, $19, $11, $13, $14, $20, $21, $22, $23, $24) RETURNING id)
             INSERT INTO recsync.backfill (pipeline_id, finished_at) SELECT id, CASE WHEN $12 THEN NULL ELSE pg_catalog.now() END FROM p",
            &[
                relation.as_str().into(),
                vectors.as_str().into(),
                source_id.into(),
                columns.into(),
                content.sql.into(),
                filter.map(|filter| filter.sql).into(),
                used.into(),
                wanted.server.as_str().into(),
                storage.into(),
                index.into(),
                (endpoint.dimensions as i32).into(),
                wanted.backfill.into(),
                wanted.capture.as_str().into(),
                wanted.on_replica.into(),
                wanted.when.schedule.as_str().into(),
                wanted.when.every_s.into(),
                wanted.when.debounce_s.into(),
                wanted.when.max_delay_s.into(),
                into_column.into(),
                wanted.monthly_budget.clone().into(),
                wanted.distance.name().into(),
                wanted.index_options.map(Options::json).into(),
                long_text.name().into(),
                chunk_tokens.into(),
            ],
        )?;
    }
    if into_column.is_some() {
        column::make_view(&relation, table.owner)?;
    }
    refresh(wanted.source, &source_name, source_id, table.owner)?;
    notice_of_source(wanted.source, &source_name)?;
    if wanted.backfill {
        let declared = seeing_its_effects(|| pipeline::find(&relation))?;
        confirm::hold_if_large(&declared, &endpoint)?;
    }
    wake::after_catalog_change();
    Ok(
        select_one::<pg_sys::Oid>("SELECT $1::regclass::oid", &[relation.into()])?
            .unwrap_or(pg_sys::InvalidOid),
    )
}

/// No index is made on a table of the user's.
fn index_asked_for(wanted: &Declaration) -> Result<Option<&str>> {
    match (&wanted.into_column, wanted.index.as_deref()) {
        (Some(_), None | Some("none")) => Ok(Some("none")),
        (Some(column), Some("hnsw" | "hnsw_bit")) => Err(Error::argument(
            "index",
            "recsync makes no index on a column of the source",
            format!(
                "Leave index out, and make one that search uses: CREATE INDEX CONCURRENTLY ON … USING hnsw ({} {}), or {}.",
                quote(column),
                wanted.distance.operator_class("vector"),
                wanted.distance.operator_class("halfvec"),
            ),
        )),
        (_, index) => Ok(index),
    }
}

fn existing(relation: &str) -> Result<Option<Pipeline>> {
    let _as = As::extension();
    Ok(pipeline::load_all()?
        .into_iter()
        .find(|pipeline| pipeline.relation == relation))
}

fn difference(
    is: &Pipeline,
    source: &str,
    content: &str,
    filter: Option<&str>,
    (storage, index): (&str, &str),
    wanted: &Declaration,
) -> Option<String> {
    let yes_no = |flag| if flag { "true" } else { "false" };
    let amount = |budget: Option<f64>| budget.map_or("none".to_owned(), |b| b.to_string());
    let given = wanted.monthly_budget.clone();
    let given = given.and_then(|budget| f64::try_from(budget).ok());
    let budgets = (amount(is.monthly_budget), amount(given));
    let schedules = (is.when.text(), wanted.when.text());
    let index_options = (text_of(is.index_options), text_of(wanted.index_options));
    let tokens = [is.chunk_tokens, wanted.long_text.1.map(i64::from)]
        .map(|tokens| tokens.map_or("none".to_owned(), |tokens| tokens.to_string()));
    let pairs = [
        ("source", is.source.as_str(), source),
        ("content", is.content.as_str(), content),
        (
            "row_filter",
            is.row_filter.as_deref().unwrap_or("none"),
            filter.unwrap_or("none"),
        ),
        ("server", is.server.as_str(), wanted.server.as_str()),
        ("schedule", schedules.0.as_str(), schedules.1.as_str()),
        ("storage", is.storage.as_str(), storage),
        ("index", is.index.as_str(), index),
        ("distance", is.distance.name(), wanted.distance.name()),
        (
            "index_options",
            index_options.0.as_str(),
            index_options.1.as_str(),
        ),
        (
            "into_column",
            is.into_column.as_deref().unwrap_or("none"),
            wanted.into_column.as_deref().unwrap_or("none"),
        ),
        ("monthly_budget", budgets.0.as_str(), budgets.1.as_str()),
        (
            "long_text",
            is.long_text.as_str(),
            wanted.long_text.0.name(),
        ),
        ("chunk_tokens", tokens[0].as_str(), tokens[1].as_str()),
        ("capture", is.capture.as_str(), wanted.capture.as_str()),
        (
            "on_replica",
            yes_no(is.on_replica),
            yes_no(wanted.on_replica),
        ),
    ];
    let differing: Vec<String> = pairs
        .into_iter()
        .filter(|(_, is, wanted)| is != wanted)
        .map(|(name, is, wanted)| format!("{name} (is {is}, given {wanted})"))
        .collect();
    (!differing.is_empty()).then(|| differing.join(", "))
}

fn text_of(options: Option<Options>) -> String {
    options.map_or("none".to_owned(), |options| options.json().0.to_string())
}
