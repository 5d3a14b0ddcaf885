//! create_recommender: what a user declares, checked and written down.
//!
//! It never writes anything before everything has been checked.

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::columns::{self, Column, Columns, NotFound};
use super::embedding::{self, Wish};
use super::functions::{self, Kind};
use super::impressions::{self, Impressions};
use super::tables::{self, require_owner_reads};
use super::{Learning, Recommender, by_id, find, users};
use crate::capture::wake;
use crate::catalog::declare::checks::relation_name;
use crate::catalog::expression::{self, Expression, Wanted};
use crate::catalog::names::{qualified, quote, select_one};
use crate::catalog::rights::As;
use crate::catalog::watch::{
    SourceTable, describe_source, lock_in_tries, notice_of_source, refresh, watch,
};
use crate::dispatch::backfill;
use crate::error::{Error, OrReport, Result};
use crate::hooks::watched;

/// What create_recommender was asked for.
struct Declaration<'a> {
    name: &'a str,
    items: pg_sys::Oid,
    interactions: pg_sys::Oid,
    user_column: Option<&'a str>,
    item_column: Option<&'a str>,
    at_column: Option<&'a str>,
    vectors: Wish,
    weight: &'a str,
    seen: &'a str,
    seen_for_s: Option<f64>,
    eligible: &'a str,
    boost: &'a str,
    half_life_s: f64,
    history: i32,
    learning: Learning,
    users: pg_sys::Oid,
    impressions: pg_sys::Oid,
}

/// What it comes to.
struct Declared {
    name: String,
    items: String,
    interactions: String,
    user: Expression,
    item: Expression,
    at: Expression,
    weight: Expression,
    seen: Expression,
    eligible: Expression,
    boost: Expression,
    impressions: Option<Impressions>,
}

#[pg_extern(sql = r#"
CREATE FUNCTION create_recommender(name text, items regclass, interactions regclass, user_column text DEFAULT NULL, item_column text DEFAULT NULL, at_column text DEFAULT NULL,
    text text[] DEFAULT NULL, server text DEFAULT NULL, weight text DEFAULT '1', seen text DEFAULT 'true', seen_for interval DEFAULT NULL, eligible text DEFAULT 'true', boost text DEFAULT '1', half_life interval DEFAULT '14 days', history integer DEFAULT 100,
    half_life_rank double precision DEFAULT 2, collaborative text[] DEFAULT NULL, schedule text DEFAULT 'daily', users regclass DEFAULT NULL, impressions regclass DEFAULT NULL, if_not_exists boolean DEFAULT false)
RETURNS text LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION create_recommender IS
'Recommends rows of one table by the rows of another. name: beside the items are made <name>_recommend, <name>_similar, <name>_popular and <name>_rank; items: a table with a primary key of one column, or a pipeline over one, whose vectors the items then have; interactions: a table of who did what with which item when, with a primary key; user_column, item_column, at_column: its columns, by default found from foreign keys, types and names (a NOTICE says which); text, server: columns of the items and the server that embeds them: makes pipeline <name>_embedding, as create_pipeline does, which goes with the recommender; weight: an SQL expression over an interaction, its importance (0 or less: none); seen: whether the user is to be shown the item no more; seen_for: for how long, by default for ever; eligible, boost: over an item, whether it may be recommended now, and a factor of its score; half_life: after which an interaction counts half; history: of how many of a user''s last interactions neighbours are made. half_life_rank: after how many newer items an item of the user counts half in their list (infinity: it does not matter); collaborative: of what users have in common, item_knn (counted as it comes), ease and als (models that are trained), none (''{}''); by default item_knn, and ease where there are 500 pairs of a user and an item, and recsync.training_memory is enough; schedule: when models are trained anew: hourly, daily, an interval or a cron expression in the database''s time zone; users: a pipeline over the table of the users, by the server of the items'' pipeline, whose vector of a user counts as three interactions of theirs; impressions: a table or view of what was shown, which recsync.attribution counts beside what log_shown notes: a row an item, with columns list_id (uuid), the item (by a foreign key or its name), a timestamptz, and placement and reason where it has them. Returns the full name. By the owner of both tables. Errors: those of create_pipeline where text is given, 42501 without the rights, 42710 where it exists otherwise, 55000 without a primary key, 42702 where several columns can be meant, 22023 where none can and for an impossible argument.';
"#)]
#[allow(clippy::too_many_arguments)]
fn create_recommender(
    name: Option<&str>,
    items: Option<pg_sys::Oid>,
    interactions: Option<pg_sys::Oid>,
    user_column: Option<&str>,
    item_column: Option<&str>,
    at_column: Option<&str>,
    text: Option<Vec<Option<String>>>,
    server: Option<&str>,
    weight: Option<&str>,
    seen: Option<&str>,
    seen_for: Option<Interval>,
    eligible: Option<&str>,
    boost: Option<&str>,
    half_life: Option<Interval>,
    history: Option<i32>,
    half_life_rank: Option<f64>,
    collaborative: Option<Vec<Option<String>>>,
    schedule: Option<&str>,
    users: Option<pg_sys::Oid>,
    impressions: Option<pg_sys::Oid>,
    if_not_exists: Option<bool>,
) -> String {
    const FORTNIGHT_S: f64 = 14.0 * 86_400.0;
    let missing = |argument| Error::argument(argument, "it is missing", "It has no default.");
    (|| {
        let given = items.ok_or_else(|| missing("items"))?;
        let (items, vectors) = embedding::wish(given, text, server)?;
        let wanted = Declaration {
            name: name.ok_or_else(|| missing("name"))?,
            items,
            interactions: interactions.ok_or_else(|| missing("interactions"))?,
            user_column,
            item_column,
            at_column,
            vectors,
            weight: weight.unwrap_or("1"),
            seen: seen.unwrap_or("true"),
            seen_for_s: seen_for.map(seconds),
            eligible: eligible.unwrap_or("true"),
            boost: boost.unwrap_or("1"),
            half_life_s: half_life.map_or(FORTNIGHT_S, seconds),
            history: history.unwrap_or(100),
            learning: Learning::new(collaborative, schedule, half_life_rank)?,
            users: users.unwrap_or(pg_sys::InvalidOid),
            impressions: impressions.unwrap_or(pg_sys::InvalidOid),
        };
        create(&wanted, if_not_exists.unwrap_or(false))
    })()
    .or_report()
}

pub fn seconds(interval: Interval) -> f64 {
    interval.as_micros() as f64 / 1e6
}

pub fn require_time(argument: &'static str, seconds: Option<f64>) -> Result<()> {
    if seconds.is_some_and(|seconds| seconds.is_nan() || seconds <= 0.0) {
        return Err(Error::argument(
            argument,
            "it is no time to wait for",
            "Give a positive interval such as 14 days.",
        ));
    }
    Ok(())
}

pub fn require_history(history: i32) -> Result<()> {
    if !(1..=1_000).contains(&history) {
        return Err(Error::argument(
            "history",
            format!("{history} interactions cannot be looked at"),
            "Give 1 to 1000.",
        ));
    }
    Ok(())
}

fn create(wanted: &Declaration, if_not_exists: bool) -> Result<String> {
    crate::catalog::install::require_primary()?;
    crate::catalog::install::require_worker()?;
    let items = described("items", wanted.items)?;
    let interactions = described("interactions", wanted.interactions)?;
    let (declared, columns) = check(wanted, &items, &interactions)?;
    match find(&declared.name) {
        Ok(existing) => {
            let differs = difference(&existing, &declared, wanted);
            if differs.is_none() {
                wanted.vectors.compare(&declared.name, wanted.items)?;
            }
            return match differs {
                None if if_not_exists => {
                    notice!("recommender {} already exists, skipping", declared.name);
                    Ok(declared.name)
                }
                None => Err(Error::RecommenderExists(declared.name)),
                Some(difference) => Err(Error::RecommenderDiffers {
                    name: declared.name,
                    difference,
                }),
            };
        }
        Err(Error::NoSuchRecommender(_)) => {}
        Err(error) => return Err(error),
    }
    if crate::catalog::pipeline::find(&declared.name).is_ok() {
        return Err(Error::argument(
            "name",
            format!("{} is a pipeline", declared.name),
            "recsync.wait_for, pause and resume find both by their names: choose another.",
        ));
    }
    let pipeline = wanted.vectors.grant(&declared.name, wanted.items)?;
    let (source, table) = (wanted.interactions, &interactions.1);
    lock_in_tries(
        source,
        &declared.interactions,
        pg_sys::ShareRowExclusiveLock,
    )?;
    let source_id = watch(source, &declared.interactions, table)?;
    let id = insert(wanted, &declared, source_id, pipeline)?;
    impressions::write(id, declared.impressions.as_ref())?;
    refresh(source, &declared.interactions, source_id, table.owner)?;
    let load = || by_id(id)?.ok_or_else(|| Error::NoSuchRecommender(declared.name.clone()));
    tables::make(&load()?)?;
    functions::make(&load()?)?;
    embedding::note_changes(&load()?)?;
    users::set(&load()?, wanted.users)?;
    watched::settle(&load()?)?;
    notice_of_source(source, &declared.interactions)?;
    if [wanted.user_column, wanted.item_column, wanted.at_column].contains(&None) {
        notice!(
            "recommender {}: of {}, the user is {}, the item {}, the time {}",
            declared.name,
            declared.interactions,
            quote(&columns.user),
            quote(&columns.item),
            quote(&columns.at),
        );
    }
    wake::after_catalog_change();
    Ok(declared.name)
}

pub fn described(argument: &'static str, table: pg_sys::Oid) -> Result<(String, SourceTable)> {
    let name = qualified(table)
        .ok_or_else(|| Error::argument(argument, "there is no such table", "Give a table."))?;
    let described = describe_source(table, &name)?;
    Ok((name, described))
}

fn check(
    wanted: &Declaration,
    items: &(String, SourceTable),
    interactions: &(String, SourceTable),
) -> Result<(Declared, Columns)> {
    let (items_name, items) = items;
    let interactions_name = &interactions.0;
    items.require_create()?;
    let [key] = items.key_columns.as_slice() else {
        return Err(Error::argument(
            "items",
            format!("the primary key of {items_name} has several columns"),
            "Items are recommended by a key of one column: give them one, for example an identity column.",
        ));
    };
    require_owner_reads(
        items.owner,
        items_name,
        wanted.interactions,
        interactions_name,
    )?;
    require_time("half_life", Some(wanted.half_life_s))?;
    require_time("seen_for", wanted.seen_for_s)?;
    require_history(wanted.history)?;
    let base = relation_name(wanted.name, &items.schema, 63 - Kind::LONGEST)?;
    let columns = find_columns(
        (wanted.interactions, interactions_name),
        (wanted.items, items_name),
        [wanted.user_column, wanted.item_column, wanted.at_column],
    )?;
    let of_interaction = |argument, text: &str, wanted_type| {
        expression::parse(argument, wanted.interactions, text, wanted_type)
    };
    let of_item = |argument, text: &str, wanted_type| {
        expression::parse(argument, wanted.items, text, wanted_type)
    };
    let declared = Declared {
        name: format!("{}.{}", quote(&items.schema), quote(&base)),
        items: items_name.clone(),
        interactions: interactions_name.clone(),
        user: of_interaction("user_column", &quote(&columns.user), Wanted::Any)?,
        item: of_interaction("item_column", &quote(&columns.item), Wanted::Any)?,
        at: of_interaction("at_column", &quote(&columns.at), Wanted::Time)?,
        weight: of_interaction("weight", wanted.weight, Wanted::Number)?,
        seen: of_interaction("seen", wanted.seen, Wanted::Boolean)?,
        eligible: of_item("eligible", wanted.eligible, Wanted::Boolean)?,
        boost: of_item("boost", wanted.boost, Wanted::Number)?,
        impressions: impressions::find(
            wanted.impressions,
            (wanted.items, items_name),
            items.owner,
        )?,
    };
    require_cast(&declared, wanted, key)?;
    Ok((declared, columns))
}

/// An item of an interaction becomes a key of the items: PostgreSQL says where it cannot.
fn require_cast(declared: &Declared, wanted: &Declaration, key: &str) -> Result<()> {
    let kind = select_one::<String>(
        "SELECT pg_catalog.format_type(atttypid, -1) FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attname = $2",
        &[wanted.items.into(), key.into()],
    )?
    .unwrap_or_default();
    let sql = format!(
        "SELECT true FROM (SELECT ({})::{kind} FROM {} s) i LIMIT 0",
        declared.item.sql, declared.interactions
    );
    select_one::<bool>(&sql, &[]).map(|_| ())
}

/// The columns of a table of interactions, by number and name, for a table of items, as they are given or found: user,
/// item and time.
pub fn find_columns(
    (source, interactions): (pg_sys::Oid, &str),
    (items, items_name): (pg_sys::Oid, &str),
    [user, item, at]: [Option<&str>; 3],
) -> Result<Columns> {
    const COLUMNS: &str = "\
SELECT a.attname::text, a.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype),
       (SELECT pg_catalog.min(c.confrelid::bigint) FROM pg_catalog.pg_constraint c
         WHERE c.conrelid = a.attrelid AND c.contype = 'f' AND c.conkey = ARRAY[a.attnum] AND c.conparentid = 0)
  FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
    let columns = Spi::connect(|client| -> Result<Vec<Column>> {
        let mut columns = Vec::new();
        for row in client.select(COLUMNS, None, &[source.into()])? {
            columns.push(Column {
                name: row.get::<String>(1)?.unwrap_or_default(),
                is_time: row.get::<bool>(2)?.unwrap_or_default(),
                refers_to: row.get::<i64>(3)?.map(|table| table as u32),
            });
        }
        Ok(columns)
    })?;
    let bare = crate::catalog::names::parts(items_name).and_then(|mut parts| parts.pop());
    let found = columns::find(
        &columns,
        (items.to_u32(), &bare.unwrap_or_default()),
        user,
        item,
        at,
    );
    let list = |names: &[String]| {
        names
            .iter()
            .map(|name| quote(name))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let all: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    found.map_err(|not_found| match not_found {
        NotFound::Unknown { column } => Error::NoSuchColumn {
            relation: interactions.to_owned(),
            column,
            columns: list(&all),
        },
        NotFound::None { argument, of } => Error::argument(
            argument,
            format!("{of} in {interactions}"),
            format!("Give {argument} => '…'. The columns are {}.", list(&all)),
        ),
        NotFound::Ambiguous {
            argument,
            candidates,
        } => Error::AmbiguousColumn {
            argument,
            relation: interactions.to_owned(),
            candidates: list(&candidates),
        },
    })
}

fn insert(
    wanted: &Declaration,
    declared: &Declared,
    source_id: i32,
    pipeline: Option<i32>,
) -> Result<i32> {
    let mut used: Vec<String> = [
        &declared.user,
        &declared.item,
        &declared.at,
        &declared.weight,
        &declared.seen,
    ]
    .into_iter()
    .flat_map(|expression| expression.columns.clone())
    .collect();
    used.sort();
    used.dedup();
    let _as = As::extension();
    let id = Spi::get_one_with_args::<i32>(
        "INSERT INTO recsync.recommender (name, items, source_id, user_expression, item_expression, at_expression, weight, seen, eligible, boost, used_columns, half_life, history, pipeline_id, makes_pipeline, seen_for, collaborative, schedule, every, half_life_rank)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 * interval '1 s', $13, $14, $15, $16 * interval '1 s', $17, $18, $19 * interval '1 s', $20) RETURNING id",
        &[
            declared.name.as_str().into(),
            declared.items.as_str().into(),
            source_id.into(),
            declared.user.sql.as_str().into(),
            declared.item.sql.as_str().into(),
            declared.at.sql.as_str().into(),
            declared.weight.sql.as_str().into(),
            declared.seen.sql.as_str().into(),
            declared.eligible.sql.as_str().into(),
            declared.boost.sql.as_str().into(),
            used.into(),
            wanted.half_life_s.into(),
            wanted.history.into(),
            pipeline.into(),
            wanted.vectors.is_text().into(),
            wanted.seen_for_s.into(),
            wanted.learning.collaborative.clone().into(),
            wanted.learning.when.schedule.as_str().into(),
            wanted.learning.when.every_s.into(),
            wanted.learning.half_life_rank.into(),
        ],
    )?
    .unwrap_or_default();
    backfill::restart(&[id])?;
    Ok(id)
}

fn difference(is: &Recommender, declared: &Declared, wanted: &Declaration) -> Option<String> {
    let half_lives = [is.half_life_s, wanted.half_life_s].map(|seconds| format!("{seconds} s"));
    let histories = [is.history, wanted.history].map(|history| history.to_string());
    let pipeline = wanted.vectors.pipeline(&declared.name);
    let pipelines = [
        is.vectors.as_ref().map(|vectors| &vectors.relation),
        pipeline.as_ref(),
    ]
    .map(|pipeline| pipeline.map_or("none", String::as_str));
    let seen_for = [is.seen_for_s, wanted.seen_for_s]
        .map(|seconds| seconds.map_or_else(|| "NULL".into(), |seconds| format!("{seconds} s")));
    let learnt = [&is.learning, &wanted.learning].map(Learning::text);
    let users = qualified(wanted.users);
    let users = [
        users::text(is.users.as_ref()),
        users.as_deref().unwrap_or("none"),
    ];
    let impressions = [&is.impressions, &declared.impressions]
        .map(|impressions| impressions::text(impressions.as_ref()));
    let pairs: [(&str, &str, &str); 18] = [
        ("items", &is.items, &declared.items),
        ("interactions", &is.interactions, &declared.interactions),
        ("user_column", &is.user_expression, &declared.user.sql),
        ("item_column", &is.item_expression, &declared.item.sql),
        ("at_column", &is.at_expression, &declared.at.sql),
        ("weight", &is.weight, &declared.weight.sql),
        ("seen", &is.seen, &declared.seen.sql),
        ("seen_for", &seen_for[0], &seen_for[1]),
        ("eligible", &is.eligible, &declared.eligible.sql),
        ("boost", &is.boost, &declared.boost.sql),
        ("half_life", &half_lives[0], &half_lives[1]),
        ("history", &histories[0], &histories[1]),
        ("half_life_rank", &learnt[0][0], &learnt[1][0]),
        ("collaborative", &learnt[0][1], &learnt[1][1]),
        ("schedule", &learnt[0][2], &learnt[1][2]),
        ("the items' pipeline", pipelines[0], pipelines[1]),
        ("users", users[0], users[1]),
        ("impressions", impressions[0], impressions[1]),
    ];
    let differing: Vec<String> = pairs
        .into_iter()
        .filter(|(_, is, wanted)| is != wanted)
        .map(|(name, is, wanted)| format!("{name} (is {is}, given {wanted})"))
        .collect();
    (!differing.is_empty()).then(|| differing.join(", "))
}
