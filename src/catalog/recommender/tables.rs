//! The tables that the worker keeps for a recommender: its interactions, what is known of each item, the neighbours of
//! each item and which of those lists are stale; and where the items have vectors, those of the users' interests.
//!
//! They are the extension's, so that they go with it and are in no dump, and their names are made of the
//! recommender's number, so that no name of a user's is taken. It never gives them to anybody but the owner of the
//! items, as whom they are written.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::embedding::Vectors;
use super::{Recommender, models};
use crate::catalog::names::quote;
use crate::catalog::rights::As;
use crate::error::Result;

pub fn interactions(id: i32) -> String {
    format!("recsync.interaction_{id}")
}

pub fn items(id: i32) -> String {
    format!("recsync.item_{id}")
}

pub fn neighbours(id: i32) -> String {
    format!("recsync.neighbour_{id}")
}

pub fn stale(id: i32) -> String {
    format!("recsync.stale_{id}")
}

/// All of them.
pub fn all(id: i32) -> [String; 4] {
    [interactions(id), items(id), neighbours(id), stale(id)]
}

pub fn interests(id: i32) -> String {
    format!("recsync.interest_{id}")
}

/// Items that have got another vector, of which users' interests do not know yet.
pub fn revised(id: i32) -> String {
    format!("recsync.revised_{id}")
}

/// Makes them, in place of those that are there. All rows have to be looked at after that.
pub fn make(recommender: &Recommender) -> Result<()> {
    let id = recommender.id;
    let item = recommender.item_key()?;
    let [interactions, items, neighbours, stale] = all(id);
    let stored: Vec<String> = recommender
        .keys()
        .iter()
        .map(|key| key.stored.clone())
        .collect();
    let keys: Vec<String> = recommender
        .keys()
        .iter()
        .map(|key| format!("s.{} AS {}", key.column, key.stored))
        .collect();
    let (keys, stored) = (keys.join(", "), stored.join(", "));
    let (source, user) = (&recommender.interactions, &recommender.user_expression);
    let owner = owner_name(recommender.owner());
    let of_vectors = match &recommender.vectors {
        Some(vectors) => statements_of_vectors(id, vectors, &owner),
        None => Vec::new(),
    };
    let of_models = models::tables(id, &interactions, &owner)?;
    drop(id)?;
    let _as = As::extension();
    // Columns take their types, collations included, from the sources.
    let made = [
        format!(
            "CREATE TABLE {interactions} AS
             SELECT {keys}, {user} AS user_id, i.{item} AS item_id, NULL::timestamptz AS at, NULL::float8 AS weight, NULL::boolean AS seen
               FROM {source} s, {catalogue} i WITH NO DATA",
            item = item.column,
            catalogue = recommender.items,
        ),
        format!(
            "ALTER TABLE {interactions} ADD PRIMARY KEY ({stored}), ALTER user_id SET NOT NULL, ALTER item_id SET NOT NULL,
                   ALTER at SET NOT NULL, ALTER weight SET NOT NULL, ALTER seen SET NOT NULL"
        ),
        format!("CREATE INDEX interaction_{id}_user ON {interactions} (user_id, at, {stored})"),
        format!("CREATE INDEX ON {interactions} (item_id, at)"),
        // They come in the order of their time, for the most part.
        format!("CREATE INDEX ON {interactions} USING brin (at)"),
        format!(
            "CREATE TABLE {items} AS
             SELECT item_id, 0 AS users, 0::bigint AS interactions, NULL::float8 AS heat FROM {interactions} WITH NO DATA"
        ),
        format!(
            "ALTER TABLE {items} ADD PRIMARY KEY (item_id), ALTER users SET NOT NULL, ALTER interactions SET NOT NULL"
        ),
        format!("CREATE INDEX ON {items} (heat, item_id)"),
        format!(
            "CREATE TABLE {neighbours} AS
             SELECT item_id, ARRAY[item_id] AS others, NULL::float4[] AS likeness FROM {interactions} WITH NO DATA"
        ),
        format!(
            "ALTER TABLE {neighbours} ADD PRIMARY KEY (item_id), ALTER others SET NOT NULL, ALTER likeness SET NOT NULL"
        ),
        format!(
            "CREATE TABLE {stale} AS SELECT item_id, NULL::timestamptz AS since FROM {interactions} WITH NO DATA"
        ),
        format!("ALTER TABLE {stale} ADD PRIMARY KEY (item_id), ALTER since SET NOT NULL"),
        format!("CREATE INDEX ON {stale} (since)"),
    ];
    // Before they are the extension's: a dump holds only what was granted after that.
    let owned = all(id).into_iter().flat_map(|table| {
        [
            format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {owner}"),
            format!("ALTER EXTENSION recsync ADD TABLE {table}"),
        ]
    });
    for sql in made
        .into_iter()
        .chain(owned)
        .chain(of_vectors)
        .chain(of_models)
    {
        Spi::run(&sql)?;
    }
    Ok(())
}

/// A row of interests is rewritten with each interaction of its user: there is room for it in its page.
fn statements_of_vectors(id: i32, vectors: &Vectors, owner: &str) -> Vec<String> {
    let (interactions, interests, revised) = (interactions(id), interests(id), revised(id));
    let Vectors {
        schema,
        storage,
        dimensions,
        ..
    } = vectors;
    vec![
        format!(
            "CREATE TABLE {interests} WITH (fillfactor = 50) AS
             SELECT user_id, NULL::{schema}.{storage}({dimensions}) AS interest, false AS stale FROM {interactions} WITH NO DATA"
        ),
        format!("ALTER TABLE {interests} ADD PRIMARY KEY (user_id), ALTER stale SET NOT NULL"),
        format!(
            "CREATE TABLE {revised} AS SELECT 0::bigint AS number, item_id FROM {interactions} WITH NO DATA"
        ),
        format!(
            "ALTER TABLE {revised} ADD PRIMARY KEY (number), ALTER number ADD GENERATED ALWAYS AS IDENTITY, ALTER item_id SET NOT NULL"
        ),
        format!("CREATE INDEX ON {revised} (item_id)"),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {interests}, {revised} TO {owner}"),
        format!("ALTER EXTENSION recsync ADD TABLE {interests}"),
        format!("ALTER EXTENSION recsync ADD TABLE {revised}"),
    ]
}

/// The vectors of users' interests are made anew, where they are kept.
pub fn forget_interests(id: i32) -> Result<()> {
    let _as = As::extension();
    if crate::catalog::names::resolve(&interests(id))?.is_some() {
        Spi::run(&format!("DELETE FROM {}", interests(id)))?;
    }
    Ok(())
}

/// Drops those that are there.
pub fn drop(id: i32) -> Result<()> {
    let _as = As::extension();
    for table in all(id)
        .into_iter()
        .chain([interests(id), revised(id)])
        .chain(models::all(id))
    {
        let there = crate::catalog::names::resolve(&table)?;
        if there.is_some() {
            Spi::run(&format!("ALTER EXTENSION recsync DROP TABLE {table}"))?;
            Spi::run(&format!("DROP TABLE {table}"))?;
        }
    }
    Ok(())
}

pub(super) fn owner_name(owner: pg_sys::Oid) -> String {
    // SAFETY: a look-up of a role by OID; an unknown one has the name of its number.
    let name = unsafe { pg_sys::GetUserNameFromId(owner, true) };
    if name.is_null() {
        return String::from("\"\"");
    }
    // SAFETY: a NUL-terminated name.
    quote(&unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy())
}
