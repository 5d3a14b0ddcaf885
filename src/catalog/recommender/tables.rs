//! The tables that the worker keeps for a recommender: its interactions, what is known of each item, the neighbours of
//! each item and which of those lists are stale; where the items have vectors, those of the users' interests; and lists
//! that are ready for users.
//!
//! They are the extension's, so that they go with it and are in no dump, and their names are made of the
//! recommender's number, so that no name of a user's is taken. It never gives them to anybody but the owner of the
//! items, as whom they are written.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::embedding::Vectors;
use super::{Recommender, by_id, models};
use crate::catalog::names::{own_relation, quote};
use crate::catalog::rights::{As, may_read};
use crate::dispatch::backfill;
use crate::error::{Error, Result};

pub fn interactions(id: i32) -> String {
    format!("recsync.interaction_{id}")
}

pub fn items(id: i32) -> String {
    format!("recsync.item_{id}")
}

pub fn neighbours(id: i32) -> String {
    format!("recsync.neighbour_{id}")
}

/// Items whose lists are to be counted anew; twice where a process has taken that upon itself and one is stale again
/// since.
pub fn stale(id: i32) -> String {
    format!("recsync.stale_{id}")
}

/// What statements are planned by: after a load nobody has looked at the tables yet.
pub fn analyze(recommender: &Recommender) -> Result<()> {
    let _as = As::extension();
    Ok(Spi::run(&format!(
        "ANALYZE {}, {}",
        interactions(recommender.id),
        items(recommender.of)
    ))?)
}

/// Holds the interactions, as a reader does, before anything else that is kept is read: whoever makes the tables anew
/// begins with them, and nobody waits for the other one.
pub fn hold(recommender: &Recommender) {
    for member in recommender.members() {
        let name = std::ffi::CString::new(format!("interaction_{member}"));
        let relation = name.ok().and_then(|name| own_relation(&name));
        if let Some(relation) = relation {
            // SAFETY: the table is looked up again by whoever reads it; the lock ends with the transaction.
            unsafe { pg_sys::LockRelationOid(relation, pg_sys::AccessShareLock as _) };
        }
    }
}

/// What is counted from all interactions.
fn counted(id: i32) -> [String; 3] {
    [items(id), neighbours(id), stale(id)]
}

pub fn interests(id: i32) -> String {
    format!("recsync.interest_{id}")
}

/// Items that have got another vector, of which users' interests do not know yet.
pub fn revised(id: i32) -> String {
    format!("recsync.revised_{id}")
}

/// Lists of users that are ready before they are asked for.
pub fn lists(id: i32) -> String {
    format!("recsync.list_{id}")
}

/// User and item of a feed, from the recommender's own interactions `i`.
const OF_FEED: &str = "i.user_id, i.item_id";

/// Makes them, in place of those that are there. All rows have to be looked at after that.
pub fn make(recommender: &Recommender) -> Result<()> {
    let mut members = Vec::new();
    for id in recommender.members() {
        members.extend(match id == recommender.id {
            true => Some(recommender.clone()),
            false => by_id(id)?,
        });
    }
    let id = recommender.of;
    let item = recommender.item_key()?;
    let [items, neighbours, stale] = counted(id);
    let owner = owner_name(recommender.owner());
    let of_vectors = match &recommender.vectors {
        Some(vectors) => statements_of_vectors(id, vectors, &owner),
        None => Vec::new(),
    };
    let of_models = models::tables(id, &interactions(id), &owner)?;
    let of_lists = statements_of_lists(id, &owner);
    drop(id, &recommender.members())?;
    let _as = As::extension();
    // Columns take their types, collations included, from the sources, those of feeds from the recommender's own.
    for member in &members {
        let (user, catalogue) = match member.id == id {
            true => (
                format!(
                    "{} AS user_id, i.{} AS item_id",
                    member.user_expression, item.column
                ),
                recommender.items.clone(),
            ),
            false => (OF_FEED.to_owned(), interactions(id)),
        };
        for sql in statements_of_interactions(member, &user, &catalogue, &owner) {
            Spi::run(&sql)?;
        }
    }
    let interactions = interactions(id);
    let made = [
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
            "CREATE TABLE {stale} AS SELECT item_id, NULL::timestamptz AS since, false AS taken FROM {interactions} WITH NO DATA"
        ),
        format!(
            "ALTER TABLE {stale} ADD PRIMARY KEY (item_id, taken), ALTER since SET NOT NULL, ALTER taken SET NOT NULL, ALTER taken SET DEFAULT false"
        ),
        format!("CREATE INDEX ON {stale} (taken, since)"),
    ];
    // Before they are the extension's: a dump holds only what was granted after that.
    let owned = counted(id).into_iter().flat_map(|table| {
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
        .chain(of_lists)
    {
        Spi::run(&sql)?;
    }
    Ok(())
}

/// All rows are to be looked at again; of all tables of interactions where what is kept of them has to be made, which
/// waits until all of them are there.
pub fn made_again(id: i32) -> Result<Option<Recommender>> {
    // What has been loaded may be older than what another of its tables has brought about.
    let Some(recommender) = by_id(id)? else {
        return Ok(None);
    };
    if recommender.is_kept() {
        if recommender.unlogged {
            backfill::restart(&[id])?;
        }
        return by_id(id);
    }
    let members = recommender.members();
    for member in &members {
        if by_id(*member)?.is_some_and(|member| member.trouble().is_some()) {
            return Ok(Some(recommender));
        }
    }
    make(&recommender)?;
    backfill::restart(&members)?;
    by_id(id)
}

/// Makes that of a feed, beside those that are there.
pub fn make_feed(feed: &Recommender) -> Result<()> {
    let owner = owner_name(feed.owner());
    let _as = As::extension();
    for sql in statements_of_interactions(feed, OF_FEED, &interactions(feed.of), &owner) {
        Spi::run(&sql)?;
    }
    Ok(())
}

/// The interactions of one table, with its key.
fn statements_of_interactions(
    member: &Recommender,
    user_and_item: &str,
    catalogue: &str,
    owner: &str,
) -> [String; 7] {
    let (id, source) = (member.id, &member.interactions);
    let keys = member.keys();
    let stored: Vec<&str> = keys.iter().map(|key| key.stored.as_str()).collect();
    let columns: Vec<String> = keys
        .iter()
        .map(|key| format!("s.{} AS {}", key.column, key.stored))
        .collect();
    let (columns, stored) = (columns.join(", "), stored.join(", "));
    let interactions = interactions(id);
    [
        format!(
            "CREATE TABLE {interactions} AS
             SELECT {columns}, {user_and_item}, NULL::timestamptz AS at, NULL::float8 AS weight, NULL::boolean AS seen
               FROM {source} s, {catalogue} i WITH NO DATA"
        ),
        format!(
            "ALTER TABLE {interactions} ADD PRIMARY KEY ({stored}), ALTER user_id SET NOT NULL, ALTER item_id SET NOT NULL,
                   ALTER at SET NOT NULL, ALTER weight SET NOT NULL, ALTER seen SET NOT NULL"
        ),
        // With what is read of them: a user's rows, and an item's, are spread over all of the table.
        format!(
            "CREATE INDEX interaction_{id}_user ON {interactions} (user_id, at, {stored}) INCLUDE (item_id, weight)"
        ),
        format!("CREATE INDEX ON {interactions} (item_id, at) INCLUDE (user_id, weight)"),
        // They come in the order of their time, for the most part.
        format!("CREATE INDEX ON {interactions} USING brin (at)"),
        // Before it is the extension's: a dump holds only what was granted after that.
        format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {interactions} TO {owner}"),
        format!("ALTER EXTENSION recsync ADD TABLE {interactions}"),
    ]
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

/// Makes the tables of the users' interests anew where they are of another generation of the items' vectors, and has
/// changes of these noted. An error where somebody holds one of them.
pub fn interests_again(id: i32) -> Result<Option<Recommender>> {
    let outdated = |recommender: &Recommender| {
        let vectors = recommender.vectors.as_ref();
        vectors.filter(|vectors| vectors.outdated).cloned()
    };
    if let Some(recommender) = by_id(id)?
        && let Some(vectors) = outdated(&recommender)
    {
        let id = recommender.of;
        let owner = owner_name(recommender.owner());
        {
            let _as = As::extension();
            drop_tables([interests(id), revised(id)].into_iter())?;
            for sql in statements_of_vectors(id, &vectors, &owner) {
                Spi::run(&sql)?;
            }
        }
        super::embedding::note_changes(&recommender)?;
    }
    by_id(id)
}

/// Of each user the best candidates, in order, with their scores and the places that the sources gave them: for each
/// candidate as many as there are sources. A row that is written again finds room in its page.
fn statements_of_lists(id: i32, owner: &str) -> [String; 4] {
    let (interactions, lists) = (interactions(id), lists(id));
    [
        format!(
            "CREATE TABLE {lists} WITH (fillfactor = 70) AS
             SELECT user_id, 0::bigint AS generation, NULL::timestamptz AS made_at, NULL::timestamptz AS active_at,
                    ARRAY[item_id] AS items, NULL::float8[] AS scores, NULL::int4[] AS places FROM {interactions} WITH NO DATA"
        ),
        format!(
            "ALTER TABLE {lists} ADD PRIMARY KEY (user_id), ALTER generation SET NOT NULL, ALTER made_at SET NOT NULL, ALTER active_at SET NOT NULL,
                   ALTER items SET NOT NULL, ALTER scores SET NOT NULL, ALTER places SET NOT NULL"
        ),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {lists} TO {owner}"),
        format!("ALTER EXTENSION recsync ADD TABLE {lists}"),
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

/// Drops those that are there of a recommender, and of its tables of interactions.
pub fn drop(id: i32, members: &[i32]) -> Result<()> {
    let _as = As::extension();
    let of_members = members.iter().map(|member| interactions(*member));
    let others = counted(id)
        .into_iter()
        .chain([interests(id), revised(id), lists(id)])
        .chain(models::all(id));
    drop_tables(of_members.chain(others))
}

fn drop_tables(tables: impl Iterator<Item = String>) -> Result<()> {
    for table in tables {
        let there = crate::catalog::names::resolve(&table)?;
        if there.is_some() {
            Spi::run(&format!("ALTER EXTENSION recsync DROP TABLE {table}"))?;
            Spi::run(&format!("DROP TABLE {table}"))?;
        }
    }
    Ok(())
}

/// Whoever owns the items reads what else there is of the recommender.
pub(super) fn require_owner_reads(
    owner: pg_sys::Oid,
    items: &str,
    relation: pg_sys::Oid,
    name: &str,
) -> Result<()> {
    if may_read(owner, relation)? {
        return Ok(());
    }
    let owner = owner_name(owner);
    Err(Error::Denied {
        what: format!("the owner of {items}, {owner}, may not read {name}"),
        grant: format!("GRANT SELECT ON {name} TO {owner};"),
    })
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
