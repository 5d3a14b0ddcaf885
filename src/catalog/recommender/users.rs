//! users: a pipeline over the table of the users, whose vectors say what they are like before they have done much.
//!
//! It never stores anything of a user's: their vector is looked up for each list.

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::Deserialize;

use super::embedding::require_one_vector;
use super::tables::require_owner_reads;
use super::{Recommender, by_id};
use crate::catalog::names::{qualified, resolve, select_one};
use crate::catalog::pipeline::{self, Pipeline};
use crate::catalog::rights::{As, in_subtransaction};
use crate::error::{Error, Result};

/// Of recommender `r` with items `i`, as JSON that makes [`Users`].
pub const LOAD: &str = include_str!("users.sql");

/// The vectors of a recommender's users.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Users {
    pub pipeline_id: i32,
    /// The pipeline's view, qualified and quoted.
    pub relation: String,
    /// The view's column that is the user, quoted, and its type.
    key: Option<String>,
    #[serde(rename = "type")]
    type_name: Option<String>,
    /// They can be compared with the items' vectors, and be read.
    usable: bool,
}

impl Users {
    /// SQL: the vector of user `$1`; `None` where there is none to be had.
    pub fn select(&self, r: &Recommender) -> Result<Option<String>> {
        let (Some(key), Some(vectors), true) = (&self.key, &r.vectors, self.usable) else {
            return Ok(None);
        };
        let user = r.user_key()?;
        let equals = match self.type_name.as_ref() == Some(&user.type_name) {
            true => user.equals.as_str(),
            false => "OPERATOR(pg_catalog.=)",
        };
        Ok(Some(format!(
            "SELECT u.embedding::{schema}.vector FROM {relation} u WHERE u.{key} {equals} $1::{kind}",
            schema = vectors.schema,
            relation = self.relation,
            kind = user.type_name,
        )))
    }
}

/// The pipeline's name, for a person.
pub fn text(users: Option<&Users>) -> &str {
    users.map_or("none", |users| &users.relation)
}

/// What the argument `users` means, checked and written down; `-` is none.
pub fn set(recommender: &Recommender, users: pg_sys::Oid) -> Result<()> {
    if users == pg_sys::InvalidOid {
        return write(recommender.id, None);
    }
    let pipeline = qualified(users).map(|name| pipeline::find(&name));
    let pipeline = pipeline.and_then(Result::ok).ok_or_else(|| {
        let name = qualified(users).unwrap_or_default();
        let hint = "Give a pipeline over the table of the users; '-' is none.";
        Error::argument("users", format!("{name} is no pipeline"), hint)
    })?;
    pipeline::require_owner(&pipeline)?;
    require_one_vector("users", &pipeline)?;
    require_comparable(recommender, &pipeline)?;
    require_readable(recommender, &pipeline)?;
    write(recommender.id, Some(pipeline.id))?;
    require_same_users(recommender, &pipeline)
}

/// Vectors of one model only can be compared.
fn require_comparable(recommender: &Recommender, users: &Pipeline) -> Result<()> {
    let Some(vectors) = &recommender.vectors else {
        return Err(Error::argument(
            "users",
            format!(
                "the items of {} have no vectors, with which those of users could be compared",
                recommender.name
            ),
            "Make the recommender with text and server, or with a pipeline as its items.",
        ));
    };
    let items = pipeline::find(&vectors.relation)?;
    if (&items.server, items.dimensions) == (&users.server, users.dimensions) {
        return Ok(());
    }
    Err(Error::argument(
        "users",
        format!(
            "{} has vectors of {} dimensions by server {}, the items have vectors of {} by server {}",
            users.relation, users.dimensions, users.server, items.dimensions, items.server
        ),
        format!(
            "Only vectors of one model can be compared: make the users' pipeline with server => '{}'.",
            items.server
        ),
    ))
}

fn require_readable(recommender: &Recommender, users: &Pipeline) -> Result<()> {
    let relation = &users.relation;
    let oid = resolve(relation)?.unwrap_or(pg_sys::InvalidOid);
    require_owner_reads(recommender.owner(), &recommender.items, oid, relation)
}

/// A user of the interactions is found by the key of the users' table.
fn require_same_users(recommender: &Recommender, users: &Pipeline) -> Result<()> {
    const HINT: &str = "It is to be a pipeline over a table whose key, of one column, is what interactions call users.";
    let now = by_id(recommender.id)?;
    let select = match now
        .as_ref()
        .and_then(|now| Some((now, now.users.as_ref()?)))
    {
        Some((now, users)) => users.select(now)?,
        None => None,
    };
    let Some(select) = select else {
        let reason = format!("the key of {} has several columns", users.source);
        return Err(Error::argument("users", reason, HINT));
    };
    let found = in_subtransaction(|| {
        let _as = As::owner(recommender.owner());
        select_one::<pg_sys::Oid>(
            &format!("SELECT NULL::oid FROM ({select}) u LIMIT 0"),
            &[None::<&str>.into()],
        )
    });
    found.map(|_| ()).map_err(|failed| {
        let reason = format!(
            "users of the interactions are not found by the key of {}: {}",
            users.source, failed.message
        );
        Error::argument("users", reason, HINT)
    })
}

fn write(recommender: i32, pipeline: Option<i32>) -> Result<()> {
    const WRITE: &str = "UPDATE recsync.recommender SET users_pipeline_id = $2 WHERE id = $1";
    let _as = As::extension();
    Spi::run_with_args(WRITE, &[recommender.into(), pipeline.into()])?;
    Ok(())
}
