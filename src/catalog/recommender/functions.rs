//! The typed functions of a recommender, beside its items: `<name>_recommend`, `<name>_similar`, `<name>_popular`.
//!
//! They hold the recommender's number, not its name, so that a renamed schema changes nothing. It never lets PUBLIC
//! call them: EXECUTE on them is the right to call.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::Recommender;
use crate::catalog::names::{literal, parts, quote, select_one};
use crate::catalog::rights::As;
use crate::error::{Error, Result};

/// What a typed function does.
#[derive(Clone, Copy)]
pub enum Kind {
    Recommend,
    Similar,
    Popular,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Recommend, Kind::Similar, Kind::Popular];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Recommend => "recommend",
            Kind::Similar => "similar",
            Kind::Popular => "popular",
        }
    }

    /// The longest of the suffixes, with its underscore.
    pub const LONGEST: usize = "_recommend".len();
}

/// Names that the functions' own arguments and columns have.
const TAKEN: [&str; 10] = [
    "user_id",
    "item_id",
    "k",
    "filter",
    "exclude_seen",
    "session_items",
    "score",
    "rank",
    "reason",
    "list_id",
];

/// What all functions of the recommender have in their bodies, and no others.
fn mark(id: i32, kind: &str) -> String {
    format!("recsync.{kind}_of({id},")
}

fn schema_and_name(recommender: &Recommender) -> Result<(String, String)> {
    match parts(&recommender.name).as_deref() {
        Some([schema, name]) => Ok((schema.clone(), name.clone())),
        _ => Err(Error::Internal(format!("recommender {}", recommender.name))),
    }
}

/// Makes them, in the name of the owner of the items.
pub fn make(recommender: &Recommender) -> Result<()> {
    let (schema, name) = schema_and_name(recommender)?;
    let item = recommender.item_key()?;
    let user = &recommender.user_key()?.type_name;
    let shown = if TAKEN.contains(&item.name.as_str()) {
        "item"
    } else {
        item.column.as_str()
    };
    let kind_of_item = &item.type_name;
    let id = recommender.id;
    let of = |kind: Kind| {
        format!(
            "{}.{}",
            quote(&schema),
            quote(&format!("{name}_{}", kind.as_str()))
        )
    };
    let _as = As::maker(recommender.owner());
    for kind in Kind::ALL {
        let (arguments, more, passed) = match kind {
            Kind::Recommend => (
                format!(
                    "user_id {user} DEFAULT NULL, k integer DEFAULT 10, filter jsonb DEFAULT NULL, exclude_seen boolean DEFAULT true, session_items {kind_of_item}[] DEFAULT NULL"
                ),
                ", reason jsonb, list_id uuid",
                "$1::pg_catalog.text, $2, $3, $4, $5::pg_catalog.text[]",
            ),
            Kind::Similar => (
                format!("item_id {kind_of_item}, k integer DEFAULT 10, filter jsonb DEFAULT NULL"),
                "",
                "$1::pg_catalog.text, $2, $3",
            ),
            Kind::Popular => (
                "k integer DEFAULT 10, filter jsonb DEFAULT NULL".to_owned(),
                "",
                "$1, $2",
            ),
        };
        let columns = if more.is_empty() {
            ""
        } else {
            ", r.reason, r.list_id"
        };
        let body = format!(
            " SELECT r.item::{kind_of_item}, r.score, r.rank{columns} FROM {} {passed}) r ORDER BY r.rank ",
            mark(id, kind.as_str())
        );
        let function = of(kind);
        Spi::run(&format!(
            "CREATE FUNCTION {function} ({arguments}) RETURNS TABLE ({shown} {kind_of_item}, score double precision, rank integer{more})
             LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 10 AS {}",
            literal(&body)
        ))?;
        for made in of_kind(recommender, kind)? {
            let made = signature(made)?;
            Spi::run(&format!("REVOKE ALL ON FUNCTION {made} FROM PUBLIC"))?;
            Spi::run(&format!(
                "COMMENT ON FUNCTION {made} IS {}",
                literal(&format!(
                    "recsync.{}() for recommender {}, with the types of its keys; EXECUTE on it is the right to call either.",
                    kind.as_str(),
                    recommender.name
                ))
            ))?;
        }
    }
    Ok(())
}

/// Drops those that are there.
pub fn drop(recommender: &Recommender) -> Result<()> {
    for kind in Kind::ALL {
        for function in of_kind(recommender, kind)? {
            let function = signature(function)?;
            let _as = As::extension();
            Spi::run(&format!("DROP FUNCTION {function}"))?;
        }
    }
    Ok(())
}

/// Refuses unless the caller may call the typed function of that kind: the one that belongs to the owner of the items,
/// since anybody may make one that looks like it.
pub fn require_execute(recommender: &Recommender, kind: Kind) -> Result<()> {
    for function in of_kind(recommender, kind)? {
        let may = select_one::<bool>(
            "SELECT proowner = $2 AND pg_catalog.has_function_privilege(oid, 'EXECUTE') FROM pg_catalog.pg_proc WHERE oid = $1",
            &[function.into(), recommender.owner().into()],
        )?;
        if may == Some(true) {
            return Ok(());
        }
    }
    let (schema, name) = schema_and_name(recommender)?;
    Err(Error::Denied {
        what: format!(
            "you may not call recsync.{} for recommender {}",
            kind.as_str(),
            recommender.name
        ),
        grant: format!(
            "GRANT EXECUTE ON FUNCTION {}.{} TO …;",
            quote(&schema),
            quote(&format!("{name}_{}", kind.as_str()))
        ),
    })
}

fn of_kind(recommender: &Recommender, kind: Kind) -> Result<Vec<pg_sys::Oid>> {
    let (schema, name) = schema_and_name(recommender)?;
    let found = select_one::<Vec<pg_sys::Oid>>(
        "SELECT pg_catalog.array_agg(p.oid) FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
          WHERE p.proname = $1 AND n.nspname = $2 AND pg_catalog.strpos(p.prosrc, $3) > 0",
        &[
            format!("{name}_{}", kind.as_str()).into(),
            schema.into(),
            mark(recommender.id, kind.as_str()).into(),
        ],
    )?;
    Ok(found.unwrap_or_default())
}

fn signature(function: pg_sys::Oid) -> Result<String> {
    Ok(
        select_one::<String>("SELECT $1::regprocedure::text", &[function.into()])?
            .unwrap_or_default(),
    )
}
