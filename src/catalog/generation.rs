//! Generations of a pipeline: rebuild, cancel_rebuild, rollback_rebuild, drop_generation.
//!
//! A new generation is a pipeline of its own beside the one in service, with a table of its own and without a view: it
//! is backfilled, kept in step, indexed and retried as any. Once it is complete the worker swaps it in ([`swap`]). Here
//! nothing of the generation in service is ever touched.

// A complete generation takes the place of the one in service.
pub mod swap;

use pgrx::JsonB;
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::declare::checks::{chunks_fit, form, long_texts, options, widest};
use super::index::{Distance, Options};
use super::names::{parts, quote, resolve};
use super::pipeline::{self, Pipeline};
use super::recommender::embedding::require_unused;
use super::relations::make_table;
use super::rights::As;
use super::server;
use super::watch::{describe_source, table_owner};
use crate::capture::wake;
use crate::dispatch::{backfill, jobs};
use crate::embed::long_text::Mode;
use crate::error::{Error, OrReport, Result};

/// Bytes of a name in PostgreSQL.
const LONGEST_NAME: usize = 63;

/// What rebuild was asked for; what is not given stays as it is.
#[derive(Default)]
pub struct Wish<'a> {
    pub server: Option<&'a str>,
    pub storage: Option<&'a str>,
    pub index: Option<&'a str>,
    pub distance: Option<&'a str>,
    pub index_options: Option<JsonB>,
    pub long_text: Option<&'a str>,
    pub chunk_tokens: Option<i32>,
}

#[pg_extern(sql = r#"
CREATE FUNCTION rebuild(name text, server text DEFAULT NULL, storage text DEFAULT NULL, index text DEFAULT NULL, distance text DEFAULT NULL, index_options jsonb DEFAULT NULL,
    long_text text DEFAULT NULL, chunk_tokens integer DEFAULT NULL)
RETURNS regclass LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION rebuild(text, text, text, text, text, jsonb, text, integer) IS
'Builds a new generation of a pipeline''s vectors beside the one in service: by another server (model), in another storage, with another index, distance or index_options, with long texts treated otherwise (long_text, chunk_tokens), as in create_pipeline; what is not given stays, unless the width of the new vectors forbids it. Texts whose model and pieces do not change cost no call: their vectors are copied. Changes go to both meanwhile; once all rows have their vector and the index is there, the worker swaps it in. recsync.generation shows how far it is. Returns the table of the new generation, by whose name wait_for, search, verify, run and the functions for dead letters know it. The generation before stays until the next rebuild or drop_generation, see rollback_rebuild. Locks: on the source ACCESS SHARE; at the swap ACCESS EXCLUSIVE on the pipeline''s view, in tries of 50 ms. Errors: 42704 unknown pipeline, 42501 for others than its owner and recsync_admin, 55006 while one is under way, 2BP01 where the type of the vectors or the columns change (chunks) and others depend on the view, or a recommender uses the pipeline, which takes no chunks, 0A000 where the vectors are in a column of the source, 22023 for an impossible argument, 55000 where it is broken, 25006 on a standby.';
"#)]
#[allow(clippy::too_many_arguments)]
fn rebuild(
    name: Option<&str>,
    server: Option<&str>,
    storage: Option<&str>,
    index: Option<&str>,
    distance: Option<&str>,
    index_options: Option<JsonB>,
    long_text: Option<&str>,
    chunk_tokens: Option<i32>,
) -> pg_sys::Oid {
    let wish = Wish {
        server,
        storage,
        index,
        distance,
        index_options,
        long_text,
        chunk_tokens,
    };
    begin(name.unwrap_or_default(), wish).or_report()
}

/// Begins a new generation; its table.
pub fn begin(name: &str, wish: Wish) -> Result<pg_sys::Oid> {
    let pipeline = changeable(name)?;
    super::install::require_worker()?;
    let others = of(pipeline.id)?;
    let new = New::of(&pipeline, &others, wish)?;
    for kept in &others {
        notice!(
            "generation {} of {}, which was kept, is dropped",
            kept.generation,
            pipeline.relation
        );
        drop_one(kept)?;
    }
    new.make(&pipeline)?;
    wake::after_catalog_change();
    Ok(resolve(&new.vectors)?.unwrap_or(pg_sys::InvalidOid))
}

/// Refuses what [`begin`] would refuse.
pub fn check(pipeline: &Pipeline, wish: Wish) -> Result<()> {
    New::of(pipeline, &of(pipeline.id)?, wish).map(|_| ())
}

/// The pipeline of that name, for its owner, whose generations nobody else changes until the transaction's end.
fn changeable(name: &str) -> Result<Pipeline> {
    const LOCK: &str = "SELECT id FROM recsync.pipeline WHERE id = $1 FOR NO KEY UPDATE";
    crate::catalog::install::require_primary()?;
    let pipeline = pipeline::find(name)?;
    pipeline::require_owner(&pipeline)?;
    {
        let _as = As::extension();
        Spi::run_with_args(LOCK, &[pipeline.id.into()])?;
    }
    // A swap may have been quicker.
    let now = pipeline::find(&pipeline.relation)?;
    match now.id == pipeline.id {
        true => Ok(now),
        false => changeable(name),
    }
}

/// The generations of a pipeline that are not in service.
pub fn of(pipeline: i32) -> Result<Vec<Pipeline>> {
    let _as = As::extension();
    let all = pipeline::load_all()?.into_iter();
    Ok(all
        .filter(|other| other.of_pipeline == Some(pipeline))
        .collect())
}

/// Refuses while a generation is being built, or rolled back to.
pub fn require_none_builds(pipeline: &Pipeline, others: &[Pipeline]) -> Result<()> {
    match others.iter().any(|other| other.builds) {
        true => Err(Error::BeingRebuilt(pipeline.relation.clone())),
        false => Ok(()),
    }
}

/// Storage and index: what is given, else what the pipeline has, where the width allows that.
fn form_of(
    pipeline: &Pipeline,
    wish: &Wish,
    dimensions: usize,
) -> Result<(&'static str, &'static str)> {
    let mut storage = Some(wish.storage.unwrap_or(&pipeline.storage));
    let mut index = Some(wish.index.unwrap_or(&pipeline.index));
    if index == Some("hnsw") && dimensions > widest(storage.unwrap_or_default()) {
        (storage, index) = (wish.storage, wish.index);
    }
    form(storage, index, dimensions)
}

/// What becomes of long texts: what is given, else as it is.
pub fn long_texts_of(
    pipeline: &Pipeline,
    long_text: Option<&str>,
    chunk_tokens: Option<i32>,
) -> Result<(Mode, Option<i32>)> {
    let name = long_text.unwrap_or(&pipeline.long_text);
    let stays = pipeline.chunk_tokens.filter(|_| name == "chunks");
    let tokens = chunk_tokens.or(stays.map(|tokens| tokens as i32));
    long_texts(Some(name), tokens, pipeline.into_column.as_deref())
}

fn require_no_dependents(pipeline: &Pipeline) -> Result<()> {
    match swap::dependents(&pipeline.relation)? {
        None => Ok(()),
        Some(dependents) => Err(Error::ViewInUse {
            view: pipeline.relation.clone(),
            dependents,
        }),
    }
}

/// `<name>_g<number>`, beside the pipeline's view.
fn table_name(relation: &str, number: i32) -> Result<String> {
    let parts = parts(relation).unwrap_or_default();
    let [schema, name] = parts.as_slice() else {
        return Err(Error::Internal(format!("{relation} has no schema")));
    };
    let end = format!("_g{number}");
    let room = name.floor_char_boundary(LONGEST_NAME - end.len());
    Ok(format!(
        "{}.{}",
        quote(schema),
        quote(&format!("{}{end}", &name[..room]))
    ))
}

/// A generation that is to be built.
struct New {
    vectors: String,
    server: String,
    storage: &'static str,
    index: &'static str,
    dimensions: usize,
    distance: Distance,
    options: Option<Options>,
    long_text: (Mode, Option<i32>),
    number: i32,
}

impl New {
    fn of(pipeline: &Pipeline, others: &[Pipeline], wish: Wish) -> Result<New> {
        pipeline.require_whole()?;
        if let Some(column) = &pipeline.into_column {
            return Err(Error::CannotRebuild {
                pipeline: pipeline.relation.clone(),
                column: column.clone(),
            });
        }
        require_none_builds(pipeline, others)?;
        let server = wish.server.unwrap_or(&pipeline.server).to_owned();
        // SAFETY: the current user's OID.
        server::endpoint(&server, unsafe { pg_sys::GetUserId() })?;
        let endpoint = server::endpoint(&server, pipeline.owner())?;
        let dimensions = endpoint.dimensions;
        let (storage, index) = form_of(pipeline, &wish, dimensions)?;
        let long_text = long_texts_of(pipeline, wish.long_text, wish.chunk_tokens)?;
        chunks_fit(long_text, &endpoint, &pipeline.key_columns)?;
        let distance = match wish.distance {
            Some(distance) => Distance::of(distance)?,
            None => pipeline.distance,
        };
        let options = match wish.index_options {
            Some(given) => options(Some(given), Some(index))?,
            None if index == "none" => None,
            None => pipeline.index_options,
        };
        let chunks = long_text.0 == Mode::Chunks;
        if chunks {
            require_unused(pipeline)?;
        }
        let has = (
            pipeline.storage.as_str(),
            pipeline.dimensions,
            pipeline.has_chunks(),
        );
        if (storage, dimensions as i64, chunks) != has {
            require_no_dependents(pipeline)?;
        }
        let numbers = others.iter().chain([pipeline]).map(|of| of.generation);
        let number = 1 + numbers.max().unwrap_or_default();
        let vectors = table_name(&pipeline.relation, number)?;
        if resolve(&vectors)?.is_some() {
            return Err(Error::RelationExists(vectors));
        }
        Ok(New {
            vectors,
            server,
            storage,
            index,
            dimensions,
            distance,
            options,
            long_text,
            number,
        })
    }

    /// Its table, and its declaration.
    fn make(&self, pipeline: &Pipeline) -> Result<()> {
        let source = pipeline.source_oid();
        let table = {
            let _as = As::maker(table_owner(source)?);
            describe_source(source, &pipeline.source)?
        };
        let table = table.owned_by(pipeline.owner())?;
        table.require_create()?;
        make_table(
            &self.vectors,
            &pipeline.source,
            &table,
            self.storage,
            self.dimensions,
            self.long_text.0 == Mode::Chunks,
        )?;
        self.write(pipeline.id)
    }

    /// Everything else is as it is declared of the pipeline. Where that rests because of its server, this one need not.
    fn write(&self, pipeline: i32) -> Result<()> {
        const WRITE: &str = "\
WITH new AS (
    INSERT INTO recsync.pipeline
    SELECT n.* FROM recsync.pipeline p CROSS JOIN LATERAL pg_catalog.jsonb_populate_record(p, pg_catalog.jsonb_build_object(
               'id', pg_catalog.nextval('recsync.pipeline_id_seq'), 'relation', $2::text, 'vectors', $2::text, 'server', $3::text,
               'storage', $4::text, 'index', $5::text, 'dimensions', $6::int4, 'distance', $7::text, 'index_options', $8::jsonb,
               'long_text', $10::text, 'chunk_tokens', $11::int4, 'account', COALESCE(p.account, p.id),
               'generation', $9::int4, 'of_pipeline', p.id, 'builds', true, 'created_at', pg_catalog.now(),
               'paused', p.paused AND p.paused_reason IS NULL, 'paused_reason', NULL, 'paused_by_server', false)) n
     WHERE p.id = $1 RETURNING id)
INSERT INTO recsync.backfill (pipeline_id) SELECT id FROM new";
        let _as = As::extension();
        Spi::run_with_args(
            WRITE,
            &[
                pipeline.into(),
                self.vectors.as_str().into(),
                self.server.as_str().into(),
                self.storage.into(),
                self.index.into(),
                (self.dimensions as i32).into(),
                self.distance.name().into(),
                self.options.map(Options::json).into(),
                self.number.into(),
                self.long_text.0.name().into(),
                self.long_text.1.into(),
            ],
        )?;
        Ok(())
    }
}

/// A generation that is not in service goes, with its vectors and its work.
pub fn drop_one(generation: &Pipeline) -> Result<()> {
    {
        let _as = As::extension();
        pipeline::delete(generation.id)?;
    }
    if generation.owner() != pg_sys::InvalidOid {
        let _as = As::maker(generation.owner());
        Spi::run(&format!("DROP TABLE IF EXISTS {}", generation.vectors))?;
    }
    Ok(())
}

#[pg_extern(sql = r#"
CREATE FUNCTION cancel_rebuild(name text) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION cancel_rebuild(text) IS
'Ends a rebuild that is under way: the new generation is dropped, the one in service stays. One that is rolled back to stays kept instead. Errors: 42704 where there is no such pipeline, or no rebuild of it, 42501 for others than its owner and recsync_admin, 25006 on a standby.';
"#)]
fn cancel_rebuild(name: &str) {
    (|| -> Result<()> {
        let pipeline = changeable(name)?;
        let building = of(pipeline.id)?.into_iter().find(|other| other.builds);
        let building = building.ok_or_else(|| Error::NoGeneration {
            pipeline: pipeline.relation.clone(),
            which: "is being built",
        })?;
        match building.generation < pipeline.generation {
            true => keep(building.id)?,
            false => drop_one(&building)?,
        }
        wake::after_catalog_change();
        Ok(())
    })()
    .or_report();
}

/// A generation is not kept in step any more.
fn keep(id: i32) -> Result<()> {
    const KEEP: &str = "UPDATE recsync.pipeline SET builds = false, waits_for = NULL WHERE id = $1";
    let _as = As::extension();
    Spi::run_with_args(KEEP, &[id.into()])?;
    jobs::forget(id)?;
    pipeline::forget(id)
}

#[pg_extern(sql = r#"
CREATE FUNCTION rollback_rebuild(name text) RETURNS regclass LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION rollback_rebuild(text) IS
'Back to the generation that was in service before the last rebuild, which is kept until the next rebuild or drop_generation. It is brought into step first: all rows are looked at, what has not changed since costs no call, and changes go to both meanwhile; then the worker swaps it in as after a rebuild, and the other one is kept. Returns its table. Errors: 42704 where there is no such pipeline, or none is kept, 42501 for others than its owner and recsync_admin, 55006 while a rebuild is under way, 2BP01 where the type of the vectors or the columns change and others depend on the view, or it has chunks and a recommender uses the pipeline, 25006 on a standby.';
"#)]
fn rollback_rebuild(name: &str) -> pg_sys::Oid {
    roll_back(name).or_report()
}

fn roll_back(name: &str) -> Result<pg_sys::Oid> {
    const BUILD: &str = "UPDATE recsync.pipeline SET builds = true, paused = false, paused_reason = NULL, paused_by_server = false WHERE id = $1";
    let pipeline = changeable(name)?;
    let others = of(pipeline.id)?;
    require_none_builds(&pipeline, &others)?;
    let kept = others.first().ok_or_else(|| Error::NoGeneration {
        pipeline: pipeline.relation.clone(),
        which: "is kept",
    })?;
    if kept.has_chunks() {
        require_unused(&pipeline)?;
    }
    if !kept.has_type_of(&pipeline) {
        require_no_dependents(&pipeline)?;
    }
    {
        let _as = As::extension();
        Spi::run_with_args(BUILD, &[kept.id.into()])?;
        backfill::restart(&[kept.id])?;
    }
    wake::after_catalog_change();
    Ok(resolve(&kept.vectors)?.unwrap_or(pg_sys::InvalidOid))
}

#[pg_extern(sql = r#"
CREATE FUNCTION drop_generation(name text) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION drop_generation(text) IS
'Drops the generation that a rebuild has kept, and frees its space: there is nothing to roll back to after that. Errors: 42704 where there is no such pipeline, or none is kept, 42501 for others than its owner and recsync_admin, 55006 while it is rolled back to, 25006 on a standby.';
"#)]
fn drop_generation(name: &str) {
    (|| -> Result<()> {
        let pipeline = changeable(name)?;
        let others = of(pipeline.id)?;
        match others.as_slice() {
            [] => Err(Error::NoGeneration {
                pipeline: pipeline.relation.clone(),
                which: "is kept",
            }),
            others => {
                require_none_builds(&pipeline, others)?;
                others.iter().try_for_each(drop_one)
            }
        }
    })()
    .or_report();
}
