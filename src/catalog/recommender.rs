//! Recommenders as they are stored, with all that their SQL needs: names resolved, key types and operators looked up.
//!
//! It never keeps what it read: names may mean something else a moment later, so callers load again when told.

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::Deserialize;
use sha2::{Digest, Sha256};

// create_recommender.
pub mod create;

// Columns found from foreign keys, types and names.
mod columns;

// The pipeline that gives the items vectors.
pub mod embedding;
// add_interactions, drop_interactions.
pub mod feeds;

// The pipeline that says what users are like.
pub mod users;

// A table of the user's own that says what was shown.
pub mod impressions;

// alter_recommender.
mod alter;

// drop_recommender.
pub mod drop;

// The typed functions.
pub mod functions;

// The tables that the worker keeps.
pub mod tables;

// What is trained, and when.
pub mod models;

use super::names;
use super::pipeline::{Key, PRIMARY, Trouble, keys_sql};
use super::rights::{As, in_catalog};
use crate::capture::wake;
use crate::dispatch::backfill;
use crate::dispatch::read::in_latest_snapshot;
use crate::error::{Error, Result};
use crate::statement::Statement;
use embedding::Vectors;
use impressions::Impressions;
pub use models::{Learning, Model};
use users::Users;

/// Recommenders as JSON.
const LOAD: &str = include_str!("recommenders.sql");

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Recommender {
    pub id: i32,
    /// The recommender's own number, where this is another of its tables of interactions (a feed): then expressions, source,
    /// keys and backfill are the feed's.
    pub of: i32,
    members: Vec<Member>,
    /// Qualified and quoted.
    pub name: String,
    pub items: String,
    pub source_id: i32,
    pub interactions: String,
    key_columns: Vec<String>,
    /// SQL over a row `s` of the interactions, fully qualified.
    pub user_expression: String,
    pub item_expression: String,
    pub at_expression: String,
    pub weight: String,
    pub seen: String,
    /// `None`: for ever.
    pub seen_for_s: Option<f64>,
    /// SQL over a row `s` of the items.
    pub eligible: String,
    pub boost: String,
    pub half_life_s: f64,
    pub history: i32,
    #[serde(flatten)]
    pub learning: Learning,
    pub vectors: Option<Vectors>,
    pub users: Option<Users>,
    pub impressions: Option<Impressions>,
    pub makes_pipeline: bool,
    pub paused: bool,
    pub paused_reason: Option<String>,
    items_oid: Option<i64>,
    owner: Option<i64>,
    /// The items in a FROM.
    pub items_rows: Option<String>,
    item_keys: Option<Vec<Key>>,
    source_oid: Option<i64>,
    /// The interactions in a FROM.
    pub rows_of: Option<String>,
    pub unlogged: bool,
    captured: bool,
    keys: Option<Vec<Key>>,
    user_keys: Option<Vec<Key>>,
    kept: bool,
    missing_column: Option<String>,
    pub dead_letters: bool,
    /// When its models were last begun, as PostgreSQL's timestamps; `None`: one of them never was.
    pub trained_us: Option<i64>,
    /// When those in service had been trained, by their names, in seconds; JSON's null: none has been.
    in_service: Option<serde_json::Value>,
    /// On how many pairs of a user and an item.
    pub trained_on: i64,
    pub backfilled: bool,
    pub backfill_round: i32,
    pub backfill_after: Option<Vec<String>>,
}

/// One of a recommender's tables of interactions.
#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Member {
    id: i32,
    /// Columns of its key.
    keys: usize,
}

fn oid(number: Option<i64>) -> pg_sys::Oid {
    number.map_or(pg_sys::InvalidOid, |oid| pg_sys::Oid::from(oid as u32))
}

impl Recommender {
    /// Who owns the items, and with whose rights everything of the recommender's is done.
    pub fn owner(&self) -> pg_sys::Oid {
        oid(self.owner)
    }

    pub fn items_oid(&self) -> pg_sys::Oid {
        oid(self.items_oid)
    }

    pub fn source_oid(&self) -> pg_sys::Oid {
        oid(self.source_oid)
    }

    /// The key of the interactions.
    pub fn keys(&self) -> &[Key] {
        self.keys.as_deref().unwrap_or_default()
    }

    /// The numbers of all its tables of interactions; the first is the recommender's own.
    pub fn members(&self) -> Vec<i32> {
        self.members.iter().map(|member| member.id).collect()
    }

    /// The same, with tables of interactions of its own, under another number.
    pub fn under(&self, number: i32) -> Recommender {
        let mut other = self.clone();
        (other.id, other.of) = (number, number);
        let keys = self.keys().len();
        other.members = vec![Member { id: number, keys }];
        other
    }

    /// All its kept interactions, as they stand in a FROM.
    pub fn interactions(&self) -> String {
        let rows = |member: &Member| {
            let keys: Vec<String> = (1..=member.keys).map(|n| format!("k{n}::text")).collect();
            format!(
                "SELECT user_id, item_id, at, weight, seen, pg_catalog.jsonb_build_array({}, {}) AS row FROM {}",
                member.id,
                keys.join(", "),
                tables::interactions(member.id)
            )
        };
        match self.members.as_slice() {
            [_] => tables::interactions(self.of),
            members => {
                let all: Vec<String> = members.iter().map(rows).collect();
                format!("({})", all.join(" UNION ALL "))
            }
        }
    }

    /// Columns of [`Self::interactions`] that order those of the same time.
    pub fn order(&self) -> Vec<String> {
        match self.members.as_slice() {
            [one] => (1..=one.keys).map(|n| format!("e.k{n}")).collect(),
            _ => vec!["e.row".to_owned()],
        }
    }

    /// ORDER BY of [`Self::interactions`], the latest first, after the time.
    pub fn latest_first(&self) -> String {
        let order = self.order();
        let order: Vec<String> = order.iter().map(|by| format!("{by} DESC")).collect();
        order.join(", ")
    }

    /// Which table of interactions a row of [`Self::interactions`] is of, and its key, as a JSON array.
    pub fn row_key(&self) -> String {
        match self.members.as_slice() {
            [one] => {
                let keys: Vec<String> = (1..=one.keys).map(|n| format!("e.k{n}::text")).collect();
                format!(
                    "pg_catalog.jsonb_build_array({}, {})",
                    one.id,
                    keys.join(", ")
                )
            }
            _ => "e.row".to_owned(),
        }
    }

    /// The key of the items, which is called `item_id` in the kept tables.
    ///
    /// # Errors
    /// Where the items have no key of one column any more.
    pub fn item_key(&self) -> Result<&Key> {
        match self.item_keys.as_deref() {
            Some([key]) => Ok(key),
            _ => Err(self.broken(self.no_item_key())),
        }
    }

    /// What users are called by, as it is kept.
    ///
    /// # Errors
    /// Where nothing is kept yet.
    pub fn user_key(&self) -> Result<&Key> {
        self.user_keys
            .as_deref()
            .and_then(<[Key]>::first)
            .ok_or_else(|| self.broken("its tables do not exist yet".into()))
    }

    fn no_item_key(&self) -> String {
        format!("{} has no primary key of one column any more", self.items)
    }

    pub fn broken(&self, reason: String) -> Error {
        Error::BrokenRecommender {
            name: self.name.clone(),
            reason,
        }
    }

    /// Whether nothing has changed but what the worker itself changes, and what it does not look at.
    pub fn is_declared_as(&self, other: &Recommender) -> bool {
        let mut other = other.clone();
        other.dead_letters = self.dead_letters;
        other.users.clone_from(&self.users);
        other.impressions.clone_from(&self.impressions);
        other.take_training(self);
        other.take_position(self);
        *self == other
    }

    /// How far the backfill is.
    pub fn take_position(&mut self, other: &Recommender) {
        self.backfilled = other.backfilled;
        self.backfill_round = other.backfill_round;
        self.backfill_after.clone_from(&other.backfill_after);
    }

    /// What has become of its models.
    pub fn take_training(&mut self, other: &Recommender) {
        self.trained_us = other.trained_us;
        self.in_service.clone_from(&other.in_service);
        self.trained_on = other.trained_on;
    }

    /// Which lists are of today: a hash of all that they are made by but what users have done, the declaration and the
    /// models in service. Whoever changes one of these makes lists of before unknown, in the same transaction.
    pub fn generation(&self) -> i64 {
        let mut by = self.clone();
        (by.paused, by.paused_reason, by.dead_letters) = (false, None, false);
        (by.backfilled, by.backfill_after, by.impressions) = (false, None, None);
        (by.trained_us, by.trained_on) = (None, 0); // also of a training that came to nothing
        let by = format!("{} {by:?}", env!("CARGO_PKG_VERSION"));
        let mut first = [0; 8];
        for (byte, from) in first.iter_mut().zip(Sha256::digest(by)) {
            *byte = from;
        }
        i64::from_ne_bytes(first)
    }

    /// Whether the tables are there that the worker keeps, for the owner of now.
    pub fn is_kept(&self) -> bool {
        self.kept && self.user_keys.is_some()
    }

    /// What is wrong with it, if anything.
    pub fn trouble(&self) -> Option<Trouble> {
        let broken = |reason: String| Some(Trouble::Broken(reason));
        for (table, oid) in [
            (&self.items, self.items_oid),
            (&self.interactions, self.source_oid),
        ] {
            if oid.is_none() {
                return broken(format!("table {table} does not exist"));
            }
        }
        if let Some(column) = &self.missing_column {
            return broken(format!(
                "column \"{column}\" of {} does not exist",
                self.interactions
            ));
        }
        if self
            .keys()
            .iter()
            .map(|key| &key.name)
            .ne(&self.key_columns)
        {
            return broken(format!(
                "the primary key of {} is not ({}) any more",
                self.interactions,
                self.key_columns.join(", ")
            ));
        }
        if self.item_key().is_err() {
            return broken(self.no_item_key());
        }
        (!self.captured).then_some(Trouble::Restoring)
    }
}

/// Every recommender of the database. Runs as recsync's owner.
pub fn load_all() -> Result<Vec<Recommender>> {
    load(None, false)
}

/// The recommender that `name` means: its full name as recsync.status shows it, or a name by search_path.
pub fn find(name: &str) -> Result<Recommender> {
    by_id(number(name)?)?.ok_or_else(|| Error::NoSuchRecommender(name.to_owned()))
}

/// Its number.
pub fn number(name: &str) -> Result<i32> {
    const FIND: &str = "SELECT id FROM recsync.recommender WHERE name = ANY ($1) ORDER BY pg_catalog.array_position($1, name) LIMIT 1";
    let names = names::full_names(name)?;
    let _as = As::extension();
    names::select_kept::<i32>(FIND, &[names.into()])?
        .ok_or_else(|| Error::NoSuchRecommender(name.to_owned()))
}

/// The recommender of that number.
pub fn by_id(id: i32) -> Result<Option<Recommender>> {
    let _as = As::extension();
    Ok(load(Some(id), false)?.pop())
}

/// The recommender of that number. The generations of its items' and users' vectors that are in service stay so until the
/// end of the transaction.
pub fn hold(id: i32) -> Result<Option<Recommender>> {
    const PIPELINES: &str = "\
SELECT pg_catalog.array_agg(p.relation) FROM recsync.recommender r JOIN recsync.pipeline p ON p.id IN (r.pipeline_id, r.users_pipeline_id)
 WHERE r.id = (SELECT m.recommender_id FROM recsync.member m WHERE m.id = $1)";
    let pipelines = {
        let _as = As::extension();
        names::select_kept::<Vec<String>>(PIPELINES, &[id.into()])?
    };
    let pipelines = pipelines.unwrap_or_default();
    if pipelines.is_empty() {
        return by_id(id);
    }
    for pipeline in pipelines {
        names::hold(&pipeline);
    }
    let _as = As::extension();
    in_latest_snapshot(|| Ok(load(Some(id), true)?.pop()))
}

fn load(id: Option<i32>, held: bool) -> Result<Vec<Recommender>> {
    fn loading(which: &str) -> Statement {
        Statement::planned_once(
            LOAD.replace("{which}", which)
                .replace("{vectors}", embedding::LOAD)
                .replace("{users}", users::LOAD)
                .replace("{item_keys}", &keys_sql("r.items", PRIMARY, "'item_id'", "''"))
                .replace("{keys}", &keys_sql("s.relation", PRIMARY, "'k' || k.n", "''"))
                .replace("{user_keys}", &keys_sql(
                    "'recsync.interaction_' || r.id",
                    "i.indexrelid = pg_catalog.to_regclass('recsync.interaction_' || r.id || '_user')",
                    "a.attname",
                    "''",
                )),
        )
    }
    thread_local! {
        static ALL: Statement = loading("true");
        static ONE: Statement = loading("m.id = $1");
        static ONE_NOW: Statement = loading("m.id = $1").under_active_snapshot();
    }
    let _canonical = names::Canonical::begin();
    // Types are called as they are for whom the worker and `As::owner` run.
    in_catalog(|| {
        Spi::connect(|client| {
            let mut recommenders = Vec::new();
            let rows = match id {
                None => ALL.with(|statement| statement.select(client, &[]))?,
                Some(id) if held => {
                    ONE_NOW.with(|statement| statement.select(client, &[id.into()]))?
                }
                Some(id) => ONE.with(|statement| statement.select(client, &[id.into()]))?,
            };
            for row in rows {
                let json = row.get::<String>(1)?.unwrap_or_default();
                recommenders.push(
                    serde_json::from_str(&json).map_err(|error| {
                        Error::Internal(format!("recsync.recommender: {error}"))
                    })?,
                );
            }
            Ok(recommenders)
        })
    })
}

/// pause and resume. When it runs again, all its interactions are looked at.
pub fn set_paused(name: &str, paused: bool) -> Result<()> {
    let recommender = find(name)?;
    require_owner(&recommender)?;
    let _as = As::extension();
    Spi::run_with_args(
        "UPDATE recsync.recommender SET paused = $2, paused_reason = NULL WHERE id = $1",
        &[recommender.id.into(), paused.into()],
    )?;
    if !paused && recommender.paused {
        backfill::restart(&recommender.members())?;
    }
    wake::after_catalog_change();
    Ok(())
}

/// Pauses one that cannot go on; the reason stands in recsync.status. As recsync's owner.
pub fn pause_for(id: i32, reason: &str) -> Result<()> {
    Spi::run_with_args(
        "UPDATE recsync.recommender SET paused = true, paused_reason = $2 WHERE id = (SELECT recommender_id FROM recsync.member WHERE id = $1) AND NOT paused",
        &[id.into(), reason.into()],
    )?;
    Ok(())
}

/// Refuses unless the caller may do with the recommender what its owner may.
pub fn require_owner(recommender: &Recommender) -> Result<()> {
    // SAFETY: role look-ups by OID.
    let is_owner = unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), recommender.owner()) };
    if is_owner || super::rights::is_admin() {
        return Ok(());
    }
    Err(Error::Denied {
        what: format!("you do not own the items of recommender {}", recommender.name),
        grant: "Their owner may call this, a member of that role, and recsync_admin (GRANT recsync_admin TO …).".into(),
    })
}
