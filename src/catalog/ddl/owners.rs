//! Whose a pipeline is: its view's owner, as of any view. The tables of all its generations and the function follow the view;
//! what a new owner lacks pauses the pipeline, and with DROP OWNED of its owner it is gone.
//!
//! It never gives anybody a right.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::{Before, Pipeline, Source, State, is_installed, quietly, seeing_its_effects};
use crate::capture::wake;
use crate::catalog::change::{Cause, go_on, pause_for};
use crate::catalog::column;
use crate::catalog::names::{quote, select_one};
use crate::catalog::pipeline::{self, LACKS};
use crate::catalog::rights::{As, in_catalog};
use crate::catalog::watch::{lock_in_tries, refresh, release, table_owner};
use crate::error::Result;

/// What a command did to owners and servers. The pipelines that are gone.
pub fn follow(before: &Before, now: &State) -> Vec<i32> {
    let mut ended = Vec::new();
    for pipeline in now.pipelines.iter().flatten() {
        let mut those = before.state.pipelines.iter().flatten();
        let mut sources = now.sources.iter().flatten();
        let was = those.find(|was| was.id == pipeline.id);
        let source = sources.find(|source| source.id == pipeline.source_id);
        let (Some(was), Some(source)) = (was, source.filter(|source| source.current.is_some()))
        else {
            continue; // with its source it goes anyway
        };
        if before.drops_owned && was.oid.is_some() && pipeline.current.is_none() {
            ended.extend(quietly(|| end(pipeline, source)).map(|()| pipeline.id));
            continue;
        }
        if pipeline.owner.is_some() && was.owner != pipeline.owner {
            let others = now.pipelines.iter().flatten();
            let others = others.filter(|other| other.of_pipeline == Some(pipeline.id));
            let all: Vec<&Pipeline> = others.chain([pipeline]).collect();
            quietly(|| take_along(pipeline, &all));
            for one in all {
                quietly(|| settle(one.current.as_deref().unwrap_or_default()));
            }
        }
        if was.server_oid.is_some() && pipeline.server_oid.is_none() {
            let reason = format!("server \"{}\" does not exist", pipeline.stored_server);
            quietly(|| pause(pipeline.id, &pipeline.stored, &reason, Cause::Server));
        }
    }
    seeing_its_effects(|| quietly(go_on_where_nothing_lacks));
    ended
}

/// After a GRANT: what waited for it goes on.
pub fn after_grant() {
    seeing_its_effects(|| {
        if is_installed() {
            quietly(go_on_where_nothing_lacks);
            wake::after_catalog_change(); // one may be on the point of being paused for what it lacked
        }
    });
}

fn go_on_where_nothing_lacks() -> Result<()> {
    const WAITING: &str = "SELECT pg_catalog.array_agg(relation) FROM recsync.pipeline WHERE paused AND pg_catalog.starts_with(paused_reason, $1)";
    let waiting = {
        let _as = As::extension();
        select_one::<Vec<String>>(WAITING, &[LACKS.into()])?
    };
    waiting.unwrap_or_default().iter().try_for_each(|name| {
        let pipeline = pipeline::find_any(name)?;
        match pipeline.lacks() {
            None => go_on(pipeline.id),
            Some(_) => Ok(()),
        }
    })
}

fn oid(number: Option<i64>) -> pg_sys::Oid {
    number.map_or(pg_sys::InvalidOid, |oid| pg_sys::Oid::from(oid as u32))
}

/// Its view was its owner's, and is gone; the source is somebody else's. What is left of it goes, too.
fn end(pipeline: &Pipeline, source: &Source) -> Result<()> {
    {
        let _as = As::extension();
        pipeline::delete(pipeline.id)?;
    }
    if let Some(vectors) = &pipeline.vectors {
        let owner = table_owner(oid(pipeline.vectors_oid))?;
        quietly(|| {
            let _as = As::maker(owner);
            Ok(Spi::run(&format!("DROP TABLE {vectors}"))?)
        });
    }
    let name = source.current.as_deref().unwrap_or_default();
    let (relation, owner) = (source.relation(), source.owner());
    seeing_its_effects(|| {
        // Where the source is locked, its triggers stay for now, and log no more than the others need.
        let released = quietly(|| release(relation, name, source.id, owner));
        if released.is_none() {
            quietly(|| refresh(relation, name, source.id, owner));
        }
    });
    Ok(())
}

/// The tables of all its generations and its function belong to whom the view belongs to; by the rights of whoever has given
/// that away.
fn take_along(pipeline: &Pipeline, generations: &[&Pipeline]) -> Result<()> {
    // SAFETY: a look-up of a role that owns something.
    let owner = unsafe {
        std::ffi::CStr::from_ptr(pg_sys::GetUserNameFromId(oid(pipeline.owner), false))
            .to_string_lossy()
    };
    let owner = quote(&owner);
    for generation in generations {
        let table = oid(generation.vectors_oid);
        if let Some(vectors) = &generation.vectors
            && table_owner(table)? != oid(pipeline.owner)
        {
            lock_in_tries(table, vectors, pg_sys::AccessExclusiveLock)?;
            in_catalog(|| Spi::run(&format!("ALTER TABLE {vectors} OWNER TO {owner}")))?;
        }
    }
    let function = match &pipeline.current {
        Some(view) => in_catalog(|| column::function_of(view))?,
        None => None,
    };
    if let Some(function) = function {
        in_catalog(|| Spi::run(&format!("ALTER FUNCTION {function}() OWNER TO {owner}")))?;
    }
    Ok(())
}

/// The new owner needs what creation asked for. One that waited for another owner goes on.
fn settle(relation: &str) -> Result<()> {
    let pipeline = seeing_its_effects(|| pipeline::find_any(relation))?;
    if pipeline.is_kept() {
        return Ok(()); // a roll back looks at all of it
    }
    let lacks = pipeline.lacks().map(|reason| (reason, Cause::Declaration));
    let is_out_of_reach = || Some((pipeline.endpoint().err()?, Cause::Server));
    go_on(pipeline.id)?;
    match lacks.or_else(is_out_of_reach) {
        Some((reason, cause)) => pause(pipeline.id, &pipeline.relation, &reason, cause),
        None => Ok(()),
    }
}

fn pause(id: i32, name: &str, reason: &str, cause: Cause) -> Result<()> {
    let _as = As::extension();
    if pause_for(id, reason, cause)? {
        warning!("pipeline {name} is paused: {reason}");
    }
    Ok(())
}
