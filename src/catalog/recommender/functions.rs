//! The typed functions of a recommender, beside its items: `<name>_recommend`, `<name>_similar`, `<name>_popular`,
//! `<name>_rank`.
//!
//! They hold the recommender's number, not its name, so that a renamed schema changes nothing. It never lets PUBLIC
//! call them: EXECUTE on them is the right to call.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::Recommender;
use crate::catalog::names::{literal, parts, quote, select_kept, select_one};
use crate::catalog::rights::{As, in_catalog};
use crate::error::{Error, Result};

/// What a typed function does.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Recommend,
    Similar,
    Popular,
    Rank,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Recommend, Kind::Similar, Kind::Popular, Kind::Rank];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Recommend => "recommend",
            Kind::Similar => "similar",
            Kind::Popular => "popular",
            Kind::Rank => "rank",
        }
    }

    fn arguments(self) -> &'static [Argument] {
        match self {
            Kind::Recommend => OF_RECOMMEND,
            Kind::Similar => OF_SIMILAR,
            Kind::Popular => OF_POPULAR,
            Kind::Rank => OF_RANK,
        }
    }

    /// The longest of the suffixes, with its underscore.
    pub const LONGEST: usize = "_recommend".len();
}

/// An argument of a list, beside whose list it is: as the generic functions have it (recommend/lists/functions.sql).
struct Argument {
    name: &'static str,
    /// `{item}`: the items' key's.
    kind: &'static str,
    /// Empty: it has to be given.
    default: &'static str,
    /// As what is handed on, of the parameter `{}`.
    value: &'static str,
}

const fn argument(
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    value: &'static str,
) -> Argument {
    Argument {
        name,
        kind,
        default,
        value,
    }
}

const K: Argument = argument("k", "integer", "10", "{}");
const FILTER: Argument = argument("filter", "jsonb", "NULL", "{}");
const OF_RECOMMEND: &[Argument] = &[
    K,
    FILTER,
    argument("exclude_seen", "boolean", "true", "{}"),
    argument("diversity", "double precision", "0", "{}"),
    argument("max_per", "jsonb", "NULL", "{}"),
    argument("explore", "double precision", "0", "{}"),
    argument("skip", "integer", "0", "{}"),
    argument("session_items", "{item}[]", "NULL", "{}::pg_catalog.text[]"),
    argument("explain", "boolean", "false", "{}"),
];
const OF_SIMILAR: &[Argument] = &[K, FILTER, argument("by", "text", "NULL", "{}")];
const OF_POPULAR: &[Argument] = &[
    K,
    argument(
        "since",
        "interval",
        "NULL",
        "extract(epoch FROM {})::pg_catalog.float8",
    ),
    FILTER,
];

const OF_RANK: &[Argument] = &[argument(
    "candidates",
    "{item}[]",
    "",
    "{}::pg_catalog.text[]",
)];

/// Names that the functions' columns have, and the argument before all others.
const TAKEN: [&str; 6] = ["user_id", "item_id", "score", "rank", "reason", "list_id"];

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
    let taken = |name: &str| {
        let mut arguments = Kind::ALL.into_iter().flat_map(Kind::arguments);
        TAKEN.contains(&name) || arguments.any(|argument| argument.name == name)
    };
    let shown = if taken(&item.name) {
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
        let whose = match kind {
            Kind::Recommend => Some(format!("user_id {user} DEFAULT NULL")),
            Kind::Similar => Some(format!("item_id {kind_of_item}")),
            Kind::Popular => None,
            Kind::Rank => Some(format!("user_id {user}")),
        };
        let (more, columns) = match kind {
            Kind::Recommend => (", reason jsonb, list_id uuid", ", r.reason, r.list_id"),
            Kind::Similar | Kind::Popular | Kind::Rank => ("", ""),
        };
        let first = 1 + usize::from(whose.is_some());
        let values: Vec<String> = (first..)
            .zip(kind.arguments())
            .map(|(n, argument)| {
                let value = argument.value.replace("{}", &format!("${n}"));
                match kind {
                    Kind::Rank => value,
                    _ => format!("'{}', {value}", argument.name),
                }
            })
            .collect();
        let passed = whose.as_ref().map_or("", |_| " $1::pg_catalog.text,");
        let arguments: Vec<String> = whose
            .into_iter()
            .chain(kind.arguments().iter().map(|argument| {
                let Argument {
                    name,
                    kind,
                    default,
                    ..
                } = argument;
                let kind = kind.replace("{item}", kind_of_item);
                match *default {
                    "" => format!("{name} {kind}"),
                    default => format!("{name} {kind} DEFAULT {default}"),
                }
            }))
            .collect();
        let (arguments, values) = (arguments.join(", "), values.join(", "));
        let asked = match kind {
            Kind::Rank => values,
            _ => format!("pg_catalog.jsonb_build_object({values})"),
        };
        let body = format!(
            " SELECT r.item::{kind_of_item}, r.score, r.rank{columns} FROM {}{passed} {asked}) r ORDER BY r.rank ",
            mark(id, kind.as_str())
        );
        let function = of(kind);
        Spi::run(&format!(
            "CREATE FUNCTION {function} ({arguments}) RETURNS TABLE ({shown} {kind_of_item}, score double precision, rank integer{more})
             LANGUAGE sql STABLE PARALLEL SAFE COST 10000 ROWS 10 AS {}",
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
        let may = in_catalog(|| {
            select_kept::<bool>(
                "SELECT proowner = $2 AND pg_catalog.has_function_privilege(oid, 'EXECUTE') FROM pg_catalog.pg_proc WHERE oid = $1",
                &[function.into(), recommender.owner().into()],
            )
        })?;
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
    let found = in_catalog(|| {
        select_kept::<Vec<pg_sys::Oid>>(
        "SELECT pg_catalog.array_agg(p.oid) FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
          WHERE p.proname = $1 AND n.nspname = $2 AND pg_catalog.strpos(p.prosrc, $3) > 0",
        &[
            format!("{name}_{}", kind.as_str()).into(),
            schema.into(),
            mark(recommender.id, kind.as_str()).into(),
        ],
    )
    })?;
    Ok(found.unwrap_or_default())
}

fn signature(function: pg_sys::Oid) -> Result<String> {
    // In full, whatever the caller's search_path would leave out.
    let name =
        in_catalog(|| select_one::<String>("SELECT $1::regprocedure::text", &[function.into()]))?;
    Ok(name.unwrap_or_default())
}
