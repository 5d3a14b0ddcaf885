//! impressions: a table or view of the user's own that says what was shown, a row an item, beside what log_shown notes.
//!
//! It is read where it is counted, as the owner of the items. It never copies a row, and lists never depend on it.

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};

use super::Recommender;
use super::columns::{self, Column, NotFound};
use super::tables::owner_name;
use crate::catalog::names::{parts, qualified, quote, resolve, select_one};
use crate::catalog::rights::{As, in_catalog, may_read};
use crate::error::{Error, Result};

/// Where it is, as it is stored: names.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Impressions {
    /// Qualified and quoted.
    pub relation: String,
    /// Its columns.
    pub list_id: String,
    pub item: String,
    pub at: String,
    pub placement: Option<String>,
    pub reason: Option<String>,
}

/// A column as the catalog has it.
struct Found {
    column: Column,
    type_name: String,
    /// Its values are text.
    is_text: bool,
}

const LIST_ID: &str = "list_id";
/// Among several times, the one that is meant.
const SHOWN_AT: &str = "shown_at";
const PLACEMENT: &str = "placement";
const REASON: &str = "reason";

const UUID: &[&str] = &["uuid"];
const TIME: &[&str] = &["timestamp with time zone"];
const JSON: &[&str] = &["jsonb", "json"];

/// What the argument `impressions` means, for items of this table and owner; `-` is none.
pub fn find(
    relation: pg_sys::Oid,
    (items, items_name): (pg_sys::Oid, &str),
    owner: pg_sys::Oid,
) -> Result<Option<Impressions>> {
    if relation == pg_sys::InvalidOid {
        return Ok(None);
    }
    let name = qualified(relation).ok_or_else(|| {
        let hint = "Give a table or a view; '-' is none.";
        Error::argument("impressions", "there is no such table", hint)
    })?;
    require_permanent(relation, &name)?;
    require_readable(relation, &name, owner)?;
    let found = columns_of(relation)?;
    let impressions = choose(&name, &found, (items, items_name))?;
    let is_text = |found: &Found| found.column.name == impressions.item && found.is_text;
    if !found.iter().any(is_text) {
        require_cast(&impressions, items, owner)?;
    }
    Ok(Some(impressions))
}

/// What is shown becomes a key of the items: PostgreSQL says where it cannot.
fn require_cast(impressions: &Impressions, items: pg_sys::Oid, owner: pg_sys::Oid) -> Result<()> {
    const KIND: &str = "\
SELECT pg_catalog.format_type(a.atttypid, -1) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
 WHERE i.indrelid = $1 AND i.indisprimary";
    let _as = As::owner(owner);
    let kind = select_one::<String>(KIND, &[items.into()])?.unwrap_or_default();
    let sql = format!(
        "SELECT true FROM (SELECT (s.{})::{kind} FROM {} s) i LIMIT 0",
        quote(&impressions.item),
        impressions.relation
    );
    select_one::<bool>(&sql, &[]).map(|_| ())
}

fn require_permanent(relation: pg_sys::Oid, name: &str) -> Result<()> {
    const READABLE: &str = "SELECT relkind IN ('r', 'p', 'v', 'm', 'f') AND relpersistence <> 't' FROM pg_catalog.pg_class WHERE oid = $1";
    match in_catalog(|| select_one::<bool>(READABLE, &[relation.into()]))? {
        Some(true) => Ok(()),
        _ => Err(Error::argument(
            "impressions",
            format!("{name} is no table or view that other sessions can read"),
            "Give a table or a view that is not temporary.",
        )),
    }
}

/// Whoever asks may read it, and the owner of the items, as whom it is read.
fn require_readable(relation: pg_sys::Oid, name: &str, owner: pg_sys::Oid) -> Result<()> {
    // SAFETY: this process's user.
    for role in [unsafe { pg_sys::GetUserId() }, owner] {
        if !may_read(role, relation)? {
            let role = owner_name(role);
            return Err(Error::Denied {
                what: format!("{role} may not read {name}"),
                grant: format!("GRANT SELECT ON {name} TO {role};"),
            });
        }
    }
    Ok(())
}

fn columns_of(relation: pg_sys::Oid) -> Result<Vec<Found>> {
    const COLUMNS: &str = "\
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, NULL), t.typcategory = 'S',
       (SELECT pg_catalog.min(c.confrelid::bigint) FROM pg_catalog.pg_constraint c
         WHERE c.conrelid = a.attrelid AND c.contype = 'f' AND c.conkey = ARRAY[a.attnum] AND c.conparentid = 0)
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
 WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
    in_catalog(|| {
        Spi::connect(|client| {
            let mut columns = Vec::new();
            for row in client.select(COLUMNS, None, &[relation.into()])? {
                let type_name = row.get::<String>(2)?.unwrap_or_default();
                columns.push(Found {
                    column: Column {
                        name: row.get::<String>(1)?.unwrap_or_default(),
                        is_time: TIME.contains(&type_name.as_str()),
                        refers_to: row.get::<i64>(4)?.map(|table| table as u32),
                    },
                    type_name,
                    is_text: row.get::<bool>(3)?.unwrap_or_default(),
                });
            }
            Ok(columns)
        })
    })
}

/// The columns that are meant, by name and type; else an error that says all that was looked for.
fn choose(name: &str, found: &[Found], items: (pg_sys::Oid, &str)) -> Result<Impressions> {
    let named = |wanted: &str, fits: &dyn Fn(&Found) -> bool| {
        let found = found
            .iter()
            .find(|found| found.column.name == wanted && fits(found));
        found.map(|found| found.column.name.clone())
    };
    let of = |types: &'static [&'static str]| {
        move |found: &Found| types.contains(&found.type_name.as_str())
    };
    let mut lacks = Vec::new();
    let list_id = named(LIST_ID, &of(UUID));
    if list_id.is_none() {
        lacks.push("no uuid called list_id".to_owned());
    }
    let all: Vec<Column> = found.iter().map(|found| found.column.clone()).collect();
    let bare = parts(items.1).and_then(|mut parts| parts.pop());
    let bare = bare.unwrap_or_default();
    let item = match columns::find_item(&all, (items.0.to_u32(), &bare)) {
        Ok(item) => Some(item),
        Err(NotFound::Ambiguous { candidates, .. }) => {
            lacks.push(format!(
                "several that can be the item ({})",
                list(&candidates)
            ));
            None
        }
        Err(_) => {
            lacks.push("none that is the item".to_owned());
            None
        }
    };
    let times: Vec<&Column> = all.iter().filter(|column| column.is_time).collect();
    let at = match times.as_slice() {
        [one] => Some(one.name.clone()),
        [] => {
            lacks.push("no timestamp with time zone".to_owned());
            None
        }
        _ => named(SHOWN_AT, &of(TIME)).or_else(|| {
            lacks.push("several timestamps with time zone, none called shown_at".to_owned());
            None
        }),
    };
    let (Some(list_id), Some(item), Some(at)) = (list_id, item, at) else {
        let all: Vec<String> = all.into_iter().map(|column| column.name).collect();
        return Err(Error::argument(
            "impressions",
            format!("of the columns of {name} there are {}", lacks.join(", ")),
            format!(
                "Looked for are a uuid called list_id; the item's key, by a foreign key to {items} or as {bare}_id, {bare} or item; a timestamp with time zone, called shown_at where there are several; and, where they are, a placement of a text type and a reason of type jsonb. The columns are {}. A view can show them so.",
                list(&all),
                items = items.1,
            ),
        ));
    };
    Ok(Impressions {
        relation: name.to_owned(),
        list_id,
        item,
        at,
        placement: named(PLACEMENT, &|found| found.is_text),
        reason: named(REASON, &of(JSON)),
    })
}

fn list(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| quote(name)).collect();
    names.join(", ")
}

/// Into the recommender's row.
pub fn write(recommender: i32, impressions: Option<&Impressions>) -> Result<()> {
    const WRITE: &str = "UPDATE recsync.recommender SET impressions = $2::jsonb WHERE id = $1";
    let json = impressions.map(|impressions| serde_json::json!(impressions).to_string());
    let _as = As::extension();
    Spi::run_with_args(WRITE, &[recommender.into(), json.into()])?;
    Ok(())
}

/// The relation's name, for a person.
pub fn text(impressions: Option<&Impressions>) -> &str {
    impressions.map_or("none", |impressions| &impressions.relation)
}

impl Impressions {
    /// Whether the item's column is text: keys as recommend gives them, which need not be read as the key's type.
    ///
    /// # Errors
    /// Where the relation is not any more what it was, or the owner of the items may not read it.
    pub fn item_is_text(&self, recommender: &Recommender) -> Result<bool> {
        let broken = |reason: String| Error::BrokenImpressions {
            name: recommender.name.clone(),
            relation: self.relation.clone(),
            reason,
        };
        let _as = As::extension();
        let relation =
            resolve(&self.relation)?.ok_or_else(|| broken("it does not exist".into()))?;
        if !may_read(recommender.owner(), relation)? {
            let owner = owner_name(recommender.owner());
            return Err(broken(format!("{owner} may not (GRANT SELECT)")));
        }
        let found = columns_of(relation)?;
        let used = [
            (Some(&self.list_id), UUID),
            (Some(&self.at), TIME),
            (Some(&self.item), &[][..]),
            (self.placement.as_ref(), &[][..]),
            (self.reason.as_ref(), JSON),
        ];
        for (name, types) in used {
            let Some(name) = name else { continue };
            let mut columns = found.iter();
            let Some(is) = columns.find(|found| found.column.name == *name) else {
                return Err(broken(format!("its column {} does not exist", quote(name))));
            };
            let type_name = is.type_name.as_str();
            if !types.is_empty() && !types.contains(&type_name) {
                let (name, was) = (quote(name), types.join(" or "));
                return Err(broken(format!(
                    "its column {name} is {type_name}, not {was}"
                )));
            }
        }
        let mut columns = found.iter();
        Ok(columns.any(|found| found.column.name == self.item && found.is_text))
    }
}
