//! drop_pipeline, pause, resume: what becomes of a pipeline after its creation.
//!
//! It never touches the source's rows.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::column;
use super::generation;
use super::names::{quote, select_one};
use super::pipeline::{self, LACKS, Pipeline};
use super::recommender;
use super::rights::As;
use super::watch::{release, table_owner};
use crate::capture::wake;
use crate::dispatch::backfill;
use crate::error::{Error, OrReport, Result};
use crate::hooks::hook;
use crate::ledger::budget;

#[pg_extern(sql = r#"
CREATE FUNCTION drop_pipeline(name text, keep_vectors boolean DEFAULT false, if_exists boolean DEFAULT false) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION drop_pipeline(text, boolean, boolean) IS
'Ends a pipeline: its view, its vectors of all generations (unless keep_vectors, or they are in a column of the source, which stays as it is), its work, and the triggers when no other pipeline needs them. Errors: 42704 where it does not exist (unless if_exists), 42501 for others than its owner and recsync_admin, 2BP01 where a recommender uses it.';
"#)]
fn drop_pipeline(name: &str, keep_vectors: bool, if_exists: bool) {
    (|| -> Result<()> {
        let pipeline = match pipeline::find(name) {
            Err(Error::NoSuchPipeline(_)) if if_exists => {
                notice!("pipeline \"{name}\" does not exist, skipping");
                return Ok(());
            }
            found => found?,
        };
        if pipeline.owner() != pg_sys::InvalidOid {
            pipeline::require_owner(&pipeline)?;
        }
        recommender::embedding::require_unused(&pipeline)?;
        end(&pipeline, keep_vectors)?;
        wake::after_catalog_change();
        Ok(())
    })()
    .or_report();
}

/// The pipeline with its relations, and the triggers where nothing else needs them.
pub fn end(pipeline: &Pipeline, keep_vectors: bool) -> Result<()> {
    for generation in generation::of(pipeline.id)? {
        generation::drop_one(&generation)?;
    }
    {
        let _as = As::extension();
        pipeline::delete(pipeline.id)?;
    }
    if pipeline.owner() != pg_sys::InvalidOid {
        let function = column::function_of(&pipeline.relation)?;
        let _as = As::maker(pipeline.owner());
        Spi::run(&format!("DROP VIEW IF EXISTS {}", pipeline.relation))?;
        if let Some(function) = function {
            Spi::run(&format!("DROP FUNCTION {function}()"))?;
        }
        // Beside a column the table holds no vectors.
        if !keep_vectors || pipeline.into_column.is_some() {
            Spi::run(&format!("DROP TABLE IF EXISTS {}", pipeline.vectors))?;
        }
    }
    // The triggers are those of the source's owner, who may be another by now.
    let source = pipeline.source_oid();
    release(
        source,
        &pipeline.source,
        pipeline.source_id,
        table_owner(source)?,
    )?;
    if let Some(name) = &pipeline.into_column {
        let (column, table) = (quote(name), &pipeline.source);
        notice!(
            "column {column} of {table} stays with the vectors that it has: ALTER TABLE {table} DROP COLUMN {column} removes them"
        );
    }
    Ok(())
}

#[pg_extern(sql = r#"
CREATE FUNCTION pause(name text) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION pause(text) IS 'Stops the work for a pipeline, recommender or hook; capture goes on, so nothing is lost. resume(name) picks up. Errors: 42704 unknown name, 42501 for others than its owner and recsync_admin.';
"#)]
fn pause(name: &str) {
    set_paused(name, true).or_report();
}

#[pg_extern(sql = r#"
CREATE FUNCTION resume(name text) RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION resume(text) IS 'Lets a paused pipeline, recommender or hook run again. All rows of the first two are looked at; texts that are unchanged cost no call. Where only the backfill of a pipeline waits, it begins, or goes on. A hook is told what it has missed. Errors: 42704 unknown name, 42501 for others than its owner and recsync_admin.';
"#)]
fn resume(name: &str) {
    set_paused(name, false).or_report();
}

fn set_paused(name: &str, paused: bool) -> Result<()> {
    let pipeline = match pipeline::find(name) {
        Err(unknown @ Error::NoSuchPipeline(_)) => {
            return match recommender::set_paused(name, paused) {
                Err(Error::NoSuchRecommender(_)) => match hook::set_paused(name, paused) {
                    Err(Error::NoSuchHook(_)) => Err(unknown),
                    done => done,
                },
                done => done,
            };
        }
        found => found?,
    };
    pipeline::require_owner(&pipeline)?;
    // One that is being built beside it, too.
    let others = generation::of(pipeline.id)?;
    let both = others.iter().filter(|other| other.builds);
    let both: Vec<&Pipeline> = both.chain([&pipeline]).collect();
    let ids: Vec<i32> = both.iter().map(|of| of.id).collect();
    let paused_now = both.iter().filter(|of| of.paused).map(|of| of.id);
    let resumed: Vec<i32> = paused_now.filter(|_| !paused).collect();
    let _as = As::extension();
    Spi::run_with_args(
        "UPDATE recsync.pipeline SET paused = $2, paused_reason = NULL, paused_by_server = false, backfill_held = CASE WHEN $2 THEN backfill_held END WHERE id = ANY ($1)",
        &[ids.into(), paused.into()],
    )?;
    if !resumed.is_empty() {
        backfill::restart(&resumed)?;
    }
    wake::after_catalog_change();
    Ok(())
}

/// What a pause of recsync's is due to, which says what ends it beside resume().
#[derive(Clone, Copy, PartialEq)]
pub enum Cause {
    Declaration,
    /// Its server's options, key or rights: a change of them ends it.
    Server,
}

/// Pauses a pipeline that cannot go on; the reason stands in recsync.status. As recsync's owner. False where it is paused
/// already, or was dropped a moment ago.
pub fn pause_for(pipeline: i32, reason: &str, cause: Cause) -> Result<bool> {
    const PAUSE: &str = "\
UPDATE recsync.pipeline SET paused = true, paused_reason = $2, paused_by_server = $3 WHERE id = $1 AND NOT paused
RETURNING id";
    Spi::connect_mut(|client| {
        let by_server = cause == Cause::Server;
        let arguments = [pipeline.into(), reason.into(), by_server.into()];
        Ok(!client.update(PAUSE, None, &arguments)?.is_empty())
    })
}

/// A pipeline that waited for its server or for rights goes on, unless a person has paused it, or its tables are the reason.
pub fn go_on(id: i32) -> Result<()> {
    const RESUME: &str = "\
UPDATE recsync.pipeline SET paused = false, paused_reason = NULL, paused_by_server = false
 WHERE id = $1 AND paused AND (paused_by_server OR pg_catalog.starts_with(paused_reason, $2)) RETURNING id";
    let _as = As::extension();
    let arguments = [id.into(), LACKS.into()];
    let resumed = Spi::connect_mut(|client| {
        Ok::<_, crate::error::Error>(client.update(RESUME, None, &arguments)?.len())
    })?;
    if resumed > 0 {
        backfill::restart(&[id])?;
        wake::after_catalog_change();
    }
    Ok(())
}

/// These servers were changed: the pipelines and hooks that are paused because of them go on, once the worker is woken.
pub fn resume_for_servers(servers: &[String]) -> Result<()> {
    const RESUME: &str = "\
WITH resumed AS (UPDATE recsync.pipeline SET paused = false, paused_reason = NULL, paused_by_server = false
                  WHERE server = ANY ($1) AND paused_by_server RETURNING id)
SELECT pg_catalog.array_agg(id) FROM resumed";
    const USERS: &str =
        "SELECT pg_catalog.array_agg(id) FROM recsync.pipeline WHERE server = ANY ($1)";
    let _as = As::extension();
    let users = select_one::<Vec<i32>>(USERS, &[servers.to_vec().into()])?;
    budget::retract(&users.unwrap_or_default())?;
    let resumed = Spi::get_one_with_args::<Vec<i32>>(RESUME, &[servers.to_vec().into()])?;
    if let Some(pipelines) = resumed {
        backfill::restart(&pipelines)?;
    }
    hook::resume_for_servers(servers)
}
