//! The pipeline that gives the items of a recommender their vectors: one that is there, or one that is made of columns
//! of the items, `<name>_embedding`.
//!
//! It never drops a pipeline that it has not made, or that another recommender uses.

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::Deserialize;

use super::Recommender;
use crate::catalog::index::Distance;
use crate::catalog::names::{parts, qualified, quote, resolve, select_one};
use crate::catalog::pipeline::{self, Pipeline};
use crate::catalog::rights::As;
use crate::catalog::watch::{lock_in_tries, table_owner};
use crate::catalog::{change, declare};
use crate::error::{Error, Result};

/// Of recommender `r`, as JSON that makes [`Vectors`].
pub const LOAD: &str = include_str!("embedding.sql");

/// The vectors of a recommender's items.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Vectors {
    pub pipeline_id: i32,
    /// The pipeline's view, qualified and quoted; and its table.
    pub relation: String,
    pub table: String,
    /// The view's column that is the item's key, quoted.
    pub key: String,
    pub storage: String,
    /// Where pgvector is, quoted.
    pub schema: String,
    pub dimensions: i32,
    /// There is an index over bits.
    pub by_bits: bool,
    /// Whether each change of a vector is noted, so that what is made of it is known to be right.
    pub noted: bool,
    /// The interests that are kept are of another generation of the vectors.
    pub outdated: bool,
    pub distance: Distance,
}

/// What create_recommender was asked for.
pub enum Wish {
    Nothing,
    Of(Box<Pipeline>),
    Text {
        columns: Vec<String>,
        server: String,
    },
}

/// The table of the items, which are given as a table or as a pipeline over one, and where their vectors come from.
pub fn wish(
    items: pg_sys::Oid,
    text: Option<Vec<Option<String>>>,
    server: Option<&str>,
) -> Result<(pg_sys::Oid, Wish)> {
    let given = match qualified(items) {
        Some(name) => pipeline::find(&name).ok(),
        None => None,
    };
    match (given, text, server) {
        (Some(pipeline), None, None) => {
            pipeline::require_owner(&pipeline)?;
            require_one_vector("items", &pipeline)?;
            Ok((pipeline.source_oid(), Wish::Of(Box::new(pipeline))))
        }
        (Some(pipeline), ..) => Err(Error::argument(
            "text",
            format!(
                "the items have the vectors of pipeline {}",
                pipeline.relation
            ),
            "Leave text and server out, or give the table of the items.",
        )),
        (None, Some(columns), Some(server)) => Ok((
            items,
            Wish::Text {
                columns: columns.into_iter().flatten().collect(),
                server: server.to_owned(),
            },
        )),
        (None, None, None) => Ok((items, Wish::Nothing)),
        (None, None, Some(_)) => Err(Error::argument(
            "text",
            "it is missing",
            "Give the columns whose text the server is to embed, for example text => ARRAY['title', 'description'].",
        )),
        (None, Some(_), None) => Err(Error::argument(
            "server",
            "it is missing",
            "Give the server that is to embed the text: one of CREATE SERVER … FOREIGN DATA WRAPPER recsync.",
        )),
    }
}

/// Refuses a pipeline of which a row has several vectors: lists are made of what is near to one.
pub fn require_one_vector(argument: &'static str, pipeline: &Pipeline) -> Result<()> {
    if !pipeline.has_chunks() {
        return Ok(());
    }
    Err(Error::argument(
        argument,
        format!(
            "pipeline {} has a vector for each chunk of a row's text",
            pipeline.relation
        ),
        "Give a pipeline with long_text => 'mean' or 'truncate'; the same table may have both.",
    ))
}

impl Wish {
    pub fn is_text(&self) -> bool {
        matches!(self, Wish::Text { .. })
    }

    /// The full name of the pipeline, for a recommender of that full name.
    pub fn pipeline(&self, recommender: &str) -> Option<String> {
        match self {
            Wish::Nothing => None,
            Wish::Of(pipeline) => Some(pipeline.relation.clone()),
            Wish::Text { .. } => own_pipeline(recommender),
        }
    }

    /// Refuses where the pipeline that was made is another than would be made now.
    pub fn compare(&self, recommender: &str, items: pg_sys::Oid) -> Result<()> {
        self.grant(recommender, items).map(|_| ())
    }

    /// The number of the pipeline, which is made where it has to be.
    pub fn grant(&self, recommender: &str, items: pg_sys::Oid) -> Result<Option<i32>> {
        let (columns, server) = match self {
            Wish::Nothing => return Ok(None),
            Wish::Of(pipeline) => return Ok(Some(pipeline.id)),
            Wish::Text { columns, server } => (columns, server),
        };
        let name = own_pipeline(recommender).unwrap_or_default();
        declare::create_for_items(&name, items, columns, server)?;
        Ok(Some(pipeline::find(&name)?.id))
    }
}

/// The pipeline that create_recommender makes, qualified and quoted.
fn own_pipeline(recommender: &str) -> Option<String> {
    match parts(recommender).as_deref() {
        Some([schema, name]) => {
            let pipeline = quote(&format!("{name}_embedding"));
            Some(format!("{}.{pipeline}", quote(schema)))
        }
        _ => None,
    }
}

/// Drops the pipeline that was made with the recommender, which is gone.
pub fn drop(recommender: &Recommender) -> Result<()> {
    let Some(vectors) = &recommender.vectors else {
        return Ok(());
    };
    if !recommender.makes_pipeline || users_of(vectors.pipeline_id)?.is_some() {
        return stop_noting(recommender, &vectors.table);
    }
    change::end(&pipeline::find(&vectors.relation)?, false)
}

/// Refuses where recommenders need the pipeline.
pub fn require_unused(pipeline: &Pipeline) -> Result<()> {
    match users_of(pipeline.id)? {
        None => Ok(()),
        Some(recommenders) => Err(Error::PipelineInUse {
            pipeline: pipeline.relation.clone(),
            recommenders,
        }),
    }
}

/// From now on changes of the vectors are noted: by a trigger, so that nobody's are missed.
pub fn note_changes(recommender: &Recommender) -> Result<()> {
    let Some(Vectors { table, .. }) = &recommender.vectors else {
        return Ok(());
    };
    let id = recommender.id;
    if let Some(oid) = resolve(table)? {
        lock_in_tries(oid, table, pg_sys::ShareRowExclusiveLock)?;
        let name = format!("00_recsync_revise_{id}");
        let is_there = select_one::<bool>(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = $1 AND tgname = $2)",
            &[oid.into(), name.as_str().into()],
        )?;
        let _as = As::maker(table_owner(oid)?);
        if is_there == Some(true) {
            return Ok(Spi::run(&format!(
                "ALTER TABLE {table} ENABLE TRIGGER \"{name}\""
            ))?);
        }
        Spi::run(&format!(
            "CREATE TRIGGER \"{name}\" AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION recsync.revise_v1('{id}')"
        ))?;
    }
    Ok(())
}

/// Changes of a pipeline's vectors are not noted any more, for no recommender: its table is not the one in service from
/// now on. Nobody who reads it is in the way.
pub fn stop_noting_all(pipeline: &Pipeline) -> Result<()> {
    const NOTED: &str = "\
SELECT pg_catalog.array_agg(pg_catalog.quote_ident(tgname)) FROM pg_catalog.pg_trigger
 WHERE tgrelid = pg_catalog.to_regclass($1) AND tgname ~ '^00_recsync_revise_[0-9]+$' AND tgenabled IN ('O', 'A')";
    let table = &pipeline.vectors;
    let _as = As::maker(pipeline.owner());
    let noted = select_one::<Vec<String>>(NOTED, &[table.as_str().into()])?;
    for trigger in noted.unwrap_or_default() {
        Spi::run(&format!("ALTER TABLE {table} DISABLE TRIGGER {trigger}"))?;
    }
    Ok(())
}

/// Before anything that is kept goes: whoever stores a vector holds its table, and comes to what is kept from there.
pub fn hold(recommender: &Recommender) -> Result<()> {
    let Some(Vectors { table, .. }) = &recommender.vectors else {
        return Ok(());
    };
    match resolve(table)? {
        Some(oid) => lock_in_tries(oid, table, pg_sys::AccessExclusiveLock),
        None => Ok(()),
    }
}

fn stop_noting(recommender: &Recommender, table: &str) -> Result<()> {
    if let Some(oid) = resolve(table)? {
        lock_in_tries(oid, table, pg_sys::AccessExclusiveLock)?;
        let _as = As::maker(table_owner(oid)?);
        Spi::run(&format!(
            "DROP TRIGGER IF EXISTS \"00_recsync_revise_{}\" ON {table}",
            recommender.id
        ))?;
    }
    Ok(())
}

/// The recommenders whose items, or users, have the vectors of a pipeline.
pub fn users_of(pipeline: i32) -> Result<Option<String>> {
    let _as = As::extension();
    select_one::<String>(
        "SELECT pg_catalog.string_agg(name, ', ' ORDER BY name) FROM recsync.recommender WHERE $1 IN (pipeline_id, users_pipeline_id)",
        &[pipeline.into()],
    )
}
