//! What a command did to a watched table, carried over into what is declared.

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::json;

use super::{Attribute, Before, Pipeline, Recommender, Source, owners, quietly, state};
use crate::capture::buffer::{self, Change, Kind, Op};
use crate::capture::wake;
use crate::catalog::change::{Cause, pause_for};
use crate::catalog::column;
use crate::catalog::expression::Analysed;
use crate::catalog::names::quote;
use crate::catalog::pipeline;
use crate::catalog::recommender;
use crate::catalog::rights::{As, in_subtransaction};
use crate::catalog::watch::{
    drop_triggers, forget_cached, lock_in_tries, watch_truncate, watch_unseen,
};
use crate::dispatch::backfill;
use crate::error::Result;

/// What the command did is carried over, source by source.
pub fn follow(before: &Before) -> Result<()> {
    let sources = || before.state.sources.iter().flatten();
    let pipelines = || before.state.pipelines.iter().flatten();
    let mut relations = serde_json::Map::new();
    let mut servers = serde_json::Map::new();
    for source in sources() {
        relations.insert(source.stored.clone(), json!(source.oid));
    }
    for pipeline in pipelines() {
        relations.insert(pipeline.stored.clone(), json!(pipeline.oid));
        relations.insert(pipeline.stored_vectors.clone(), json!(pipeline.vectors_oid));
        servers.insert(pipeline.stored_server.clone(), json!(pipeline.server_oid));
    }
    let mut schemas = serde_json::Map::new();
    for recommender in before.state.recommenders.iter().flatten() {
        relations.insert(recommender.stored.clone(), json!(recommender.oid));
        if let Some(shown) = &recommender.impressions {
            relations.insert(shown.stored.relation.clone(), json!(shown.oid));
        }
        schemas.insert(recommender.of.to_string(), json!(recommender.schema_oid));
    }
    let known = json!({ "relations": relations, "servers": servers, "schemas": schemas });
    let Some(now) = state(Some(known.to_string()))? else {
        return Ok(());
    };
    let ended = owners::follow(before, &now);
    for was in sources() {
        let mut current = now.sources.iter().flatten();
        let Some(is) = current.find(|is| is.id == was.id) else {
            continue;
        };
        let of_source: Vec<_> = now
            .pipelines
            .iter()
            .flatten()
            .filter(|pipeline| pipeline.source_id == is.id && !ended.contains(&pipeline.id))
            .collect();
        let recommenders: Vec<_> = now
            .recommenders
            .iter()
            .flatten()
            .filter(|recommender| recommender.source_id == is.id)
            .collect();
        if was.oid.is_some() {
            quietly(|| match is.current {
                Some(_) => follow_source(was, is, &of_source, &recommenders, before),
                None => clean_up(is, &of_source, &recommenders),
            });
        }
    }
    Ok(())
}

fn follow_source(
    was: &Source,
    is: &Source,
    pipelines: &[&Pipeline],
    recommenders: &[&Recommender],
    before: &Before,
) -> Result<()> {
    let renamed = |names: &[String]| -> Vec<String> {
        names.iter().map(|name| is.name_now(was, name)).collect()
    };
    let key = renamed(&is.key_columns);
    for pipeline in pipelines {
        if let Some(reason) = is.misfit(was, &pipeline.used_columns, pipeline.into_column.as_ref())
        {
            let _as = As::extension();
            pause_for(pipeline.id, &reason, Cause::Declaration)?;
        }
        carry_pipeline(pipeline, &renamed, before)?;
        quietly(|| show_keys(pipeline, &key));
    }
    for recommender in recommenders {
        if let Some(reason) = is.misfit(was, &recommender.used_columns, None) {
            let _as = As::extension();
            recommender::pause_for(recommender.id, &reason)?;
        }
        recommender.carry(&renamed, before)?;
        recommender.carry_impressions(before)?;
    }
    let used = renamed(&is.used_columns);
    let shows_others = is.current.as_ref() != Some(&is.stored) || key != is.key_columns;
    carry_source(is, key, used)?;
    for pipeline in pipelines {
        let relation = pipeline.current.as_ref().unwrap_or(&pipeline.stored);
        let column = pipeline.into_column.as_ref().map(std::slice::from_ref);
        if column.is_some_and(|column| shows_others || renamed(column) != column) {
            quietly(|| column::show_again(relation));
        }
    }
    let ids = pipelines.iter().map(|pipeline| pipeline.id);
    let ids: Vec<i32> = ids
        .chain(recommenders.iter().map(|recommender| recommender.id))
        .collect();
    follow_partitions(was, is, &ids, before)?;
    for recommender in recommenders {
        recommender.end_without_items(is, before)?;
    }
    Ok(())
}

impl Source {
    pub(super) fn owner(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.owner.unwrap_or_default() as u32)
    }

    pub(super) fn relation(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.oid.unwrap_or_default() as u32)
    }

    fn attributes(&self) -> impl Iterator<Item = &Attribute> {
        self.attributes.iter().flatten()
    }

    /// The attribute that was called `name`, as it was and as it is.
    fn attribute<'a>(
        &'a self,
        was: &'a Source,
        name: &str,
    ) -> Option<(&'a Attribute, &'a Attribute)> {
        let old = was.attributes().find(|a| !a.dropped && a.name == name)?;
        let new = self.attributes().find(|a| a.number == old.number)?;
        Some((old, new))
    }

    /// What the column that was called `name` is called now; a dropped one keeps its name.
    fn name_now(&self, was: &Source, name: &str) -> String {
        match self.attribute(was, name) {
            Some((_, new)) if !new.dropped => new.name.clone(),
            _ => name.to_owned(),
        }
    }

    /// Why what uses these columns, or writes one of them, cannot go on as it was: one of them or of the key is gone or
    /// of another type.
    fn misfit(
        &self,
        was: &Source,
        used_columns: &[String],
        into_column: Option<&String>,
    ) -> Option<String> {
        let columns = was.key_columns.iter().chain(used_columns);
        columns.chain(into_column).find_map(|name| {
            let (old, new) = self.attribute(was, name)?;
            let source = self.current.as_deref().unwrap_or_default();
            let column = quote(name);
            if new.dropped {
                return Some(format!("column {column} of {source} was dropped"));
            }
            let rewritten = self.file != was.file;
            if old.type_oid != new.type_oid {
                let (old, new) = (old.type_name.as_deref(), new.type_name.as_deref());
                return Some(format!(
                    "column {column} of {source} is {} now, it was {}",
                    new.unwrap_or_default(),
                    old.unwrap_or_default()
                ));
            }
            let is_text = into_column != Some(name);
            (old.modifier != new.modifier && rewritten && is_text)
                .then(|| format!("the values of column {column} of {source} were rewritten"))
        })
    }
}

/// Columns of watched items, under their new names.
const CARRY_ITEMS: &str = "\
UPDATE recsync.watched_items w
   SET used_columns = ARRAY(SELECT COALESCE(n.name, u) FROM pg_catalog.unnest(w.used_columns) u
                              LEFT JOIN ROWS FROM (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) AS n (old, name) ON n.old = u ORDER BY 1)
 WHERE w.source_id = $1";

fn carry_source(source: &Source, key: Vec<String>, used: Vec<String>) -> Result<()> {
    let name = source.current.as_deref().unwrap_or_default();
    if source.stored != name || source.key_columns != key || source.used_columns != used {
        {
            let _as = As::extension();
            let (was, is) = (source.used_columns.clone(), used.clone());
            Spi::run_with_args(CARRY_ITEMS, &[source.id.into(), was.into(), is.into()])?;
            Spi::run_with_args(
                "UPDATE recsync.source SET relation = $2, key_columns = $3, used_columns = $4 WHERE id = $1",
                &[source.id.into(), name.into(), key.into(), used.into()],
            )?;
        }
        forget_cached(source.relation())?;
    }
    Ok(())
}

fn carry_pipeline(
    pipeline: &Pipeline,
    renamed: &impl Fn(&[String]) -> Vec<String>,
    before: &Before,
) -> Result<()> {
    let expressions = before
        .expressions
        .iter()
        .find(|(id, ..)| *id == pipeline.id);
    let (content, filter) = match expressions {
        Some((_, content, filter)) => (content.sql(), filter.as_ref().map(Analysed::sql)),
        None => (pipeline.content.clone(), pipeline.row_filter.clone()),
    };
    let relation = pipeline.current.as_ref().unwrap_or(&pipeline.stored);
    let vectors = pipeline
        .vectors
        .as_ref()
        .unwrap_or(&pipeline.stored_vectors);
    let server = pipeline.server.as_ref().unwrap_or(&pipeline.stored_server);
    let columns = pipeline.columns.as_deref().map(renamed);
    let into_column = pipeline.into_column.as_ref();
    let into_column = into_column.and_then(|column| renamed(std::slice::from_ref(column)).pop());
    let used = renamed(&pipeline.used_columns);
    if *relation == pipeline.stored
        && *vectors == pipeline.stored_vectors
        && *server == pipeline.stored_server
        && columns == pipeline.columns
        && into_column == pipeline.into_column
        && used == pipeline.used_columns
        && content == pipeline.content
        && filter == pipeline.row_filter
    {
        return Ok(());
    }
    let _as = As::extension();
    Spi::run_with_args(
        "UPDATE recsync.pipeline SET relation = $2, vectors = $3, server = $4, columns = $5, used_columns = $6, content = $7, row_filter = $8, into_column = $9 WHERE id = $1",
        &[
            pipeline.id.into(),
            relation.as_str().into(),
            vectors.as_str().into(),
            server.as_str().into(),
            columns.into(),
            used.into(),
            content.into(),
            filter.into(),
            into_column.into(),
        ],
    )?;
    Ok(())
}

/// The pipeline's view shows the key under the names that it has in the source. Where the view is busy it keeps
/// the old ones, which nothing of recsync's depends on.
fn show_keys(pipeline: &Pipeline, key: &[String]) -> Result<()> {
    let (Some(view), Some(oid)) = (&pipeline.current, pipeline.oid) else {
        return Ok(());
    };
    if pipeline.has_no_view() {
        return Ok(());
    }
    let shown = pipeline.shown.iter().flatten().zip(key);
    let renamed: Vec<_> = shown.filter(|(shown, key)| shown != key).collect();
    if !renamed.is_empty() {
        lock_in_tries(
            pg_sys::Oid::from(oid as u32),
            view,
            pg_sys::AccessExclusiveLock,
        )?;
        let owner = pg_sys::Oid::from(pipeline.owner.unwrap_or_default() as u32);
        let _as = As::maker(owner);
        for (shown, key) in renamed {
            let (shown, key) = (quote(shown), quote(key));
            Spi::run(&format!("ALTER VIEW {view} RENAME COLUMN {shown} TO {key}"))?;
        }
    }
    Ok(())
}

/// The table was dropped: its pipelines and recommenders go with it. A view that others depend on is left to them.
fn clean_up(source: &Source, pipelines: &[&Pipeline], recommenders: &[&Recommender]) -> Result<()> {
    for recommender in recommenders {
        recommender.end()?;
    }
    for pipeline in pipelines {
        {
            let _as = As::extension();
            pipeline::delete(pipeline.id)?;
        }
        let owner = pg_sys::Oid::from(pipeline.owner.unwrap_or_default() as u32);
        let dropped = in_subtransaction(|| {
            let function = match &pipeline.current {
                Some(view) => column::function_of(view)?,
                None => None,
            };
            let _as = As::maker(owner);
            if let Some(view) = pipeline
                .current
                .as_ref()
                .filter(|_| !pipeline.has_no_view())
            {
                Spi::run(&format!("DROP VIEW {view}"))?;
            }
            if let Some(function) = function {
                Spi::run(&format!("DROP FUNCTION {function}()"))?;
            }
            if let Some(vectors) = &pipeline.vectors {
                Spi::run(&format!("DROP TABLE {vectors}"))?;
            }
            Ok(())
        });
        if let Err(reason) = dropped {
            warning!(
                "{} is a pipeline no more, since {} was dropped, but is left: {}",
                pipeline.stored,
                source.stored,
                reason.message
            );
        }
    }
    let _as = As::extension();
    Spi::run_with_args(
        "DELETE FROM recsync.source WHERE id = $1",
        &[source.id.into()],
    )?;
    Ok(())
}

/// Partitions that came get a TRUNCATE trigger and, with what they brought, a look at all rows; those that went
/// leave orphans, which the worker removes as after a TRUNCATE. Triggers that were off may have missed changes.
fn follow_partitions(was: &Source, is: &Source, declared: &[i32], before: &Before) -> Result<()> {
    let tables = |source: &Source| source.tables.clone().unwrap_or_default();
    let (old, new) = (tables(was), tables(is));
    let came = new.iter().any(|table| !old.contains(table));
    if came {
        watch_truncate(is.relation(), is.id, is.owner())?;
        watch_unseen(is.relation(), is.id, is.owner())?;
        forget_cached(is.relation())?;
    }
    for table in old.iter().filter(|table| !new.contains(table)) {
        let kind = Kind {
            source: is.id,
            relation: pg_sys::Oid::from(*table as u32),
            op: Op::Truncate,
            audit_only: declared.is_empty(),
        };
        buffer::add(kind, &Change::default());
        wake::after_changes();
        drop_triggers(kind.relation, is.id, is.owner())?; // a detached partition keeps none of its root's
    }
    if is.unseen_off {
        watch_unseen(is.relation(), is.id, is.owner())?;
    }
    if declared.is_empty() {
        return Ok(());
    }
    if came && before.attaches || before.rewrites {
        let _as = As::extension();
        backfill::restart(declared)?;
    } else if was.disabled != is.disabled {
        let _as = As::extension();
        backfill::advise(declared, "its triggers were disabled for a while")?;
    }
    Ok(())
}
