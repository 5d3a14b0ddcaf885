//! Pipelines as they are stored, with all that their SQL needs: names resolved, key types and operators looked up.
//!
//! It never keeps what it read: names may mean something else a moment later, so callers load again when told.

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use std::time::Duration;

// As they stand in the catalog.
mod find;

use super::index::{self, Distance};
use super::names;
use crate::dispatch::schedule::Schedule;
use crate::embed::endpoint::{Endpoint, MONEY_OPTIONS};
use crate::embed::long_text::{LongText, Mode};
use crate::error::{Error, Result};

pub use find::{PRIMARY, find, find_any, hold, keys_sql, load_all};

/// How the reason of a pause begins that a GRANT or another owner ends.
pub const LACKS: &str = "its owner lacks a right";

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Pipeline {
    pub id: i32,
    /// On whose account it goes: the number of its first generation.
    pub account: i32,
    /// The pipeline's view, qualified and quoted: its name.
    pub relation: String,
    /// The table of the generation in service, qualified and quoted.
    pub vectors: String,
    pub source_id: i32,
    pub source: String,
    /// The source in a FROM: of a table that others inherit from, its own rows only.
    pub rows_of: String,
    pub unlogged: bool,
    pub key_columns: Vec<String>,
    /// What the text was made of, where it was declared by columns.
    pub columns: Option<Vec<String>>,
    pub used_columns: Vec<String>,
    /// SQL over the source's row `s`, fully qualified.
    pub content: String,
    pub row_filter: Option<String>,
    pub server: String,
    #[serde(flatten)]
    pub when: When,
    /// The source's column that holds the vectors; the pipeline's own table then says which text each of them is of.
    pub into_column: Option<String>,
    /// The type of that column, where it cannot hold them.
    column_misfit: Option<String>,
    /// What becomes of texts that the model does not take in one piece: `truncate`, `mean` or `chunks`.
    pub long_text: String,
    /// The most that a chunk has, where there are chunks.
    pub chunk_tokens: Option<i64>,
    /// What the owner's sessions have as their search_path, where that was set for them.
    pub owner_path: Option<String>,
    pub storage: String,
    pub index: String,
    pub dimensions: i64,
    /// What may be spent for it in a month, in the server's currency.
    pub monthly_budget: Option<f64>,
    pub distance: Distance,
    pub index_options: Option<index::Options>,
    /// Counts the tables of vectors that it has had.
    pub generation: i32,
    /// It is another generation of that pipeline, called as its table is;
    pub of_pipeline: Option<i32>,
    /// that is kept in step, and takes the place of the one in service once it is complete.
    pub builds: bool,
    /// The table of the generation in service, where the same text has the same vector there.
    #[serde(default)]
    pub copies_from: Option<String>,
    /// Its vectors have an HNSW index, which makes each of them cost milliseconds.
    pub hnsw: bool,
    /// The index that was declared is there and valid, whoever made it.
    pub indexed: bool,
    pub capture: String,
    pub on_replica: bool,
    pub paused: bool,
    pub paused_reason: Option<String>,
    owner: Option<i64>,
    pub owner_name: Option<String>,
    /// The statement that gives its owner the right on the source or on its table that they need and have not.
    lacks: Option<String>,
    vectors_exist: bool,
    source_oid: Option<i64>,
    captured: bool,
    keys: Option<Vec<Key>>,
    missing_column: Option<String>,
    pub dead_letters: bool,
    /// Where it stands is not known: its declaration has come from a dump.
    pub restored: bool,
    pub backfilled: bool,
    pub backfill_after: Option<Vec<String>>,
    pub backfill_round: i32,
    pub filling: Filling,
    /// The table of vectors is empty after a crash.
    pub vectors_unlogged: bool,
    server_options: Option<Vec<(String, String)>>,
    mapping_options: Option<Vec<(String, String)>>,
    server_usable: Option<bool>,
}

/// What there is to say of its backfill.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Filling {
    /// It waits for `resume`.
    pub held: bool,
    pub done: i64,
    pub total: Option<i64>,
    /// Only such rows are queued: SQL over the source's row `s`.
    pub row_filter: Option<String>,
    /// Rows a second, in the place of the setting.
    pub rate: Option<u32>,
    /// All rows should be looked at when it has ended.
    pub advised: bool,
    /// There are vectors that were there before.
    pub adopted: bool,
}

/// When its changes are due, as it was declared.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct When {
    pub schedule: String,
    /// The schedule, where it is an interval; this and the others in seconds.
    pub every_s: Option<f64>,
    pub debounce_s: Option<f64>,
    pub max_delay_s: Option<f64>,
}

/// One column of the primary key.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Key {
    pub name: String,
    /// The name, quoted: in the source,
    pub column: String,
    /// in the table of vectors, which keeps that of its making,
    pub stored: String,
    /// and in the pipeline's view.
    pub shown: String,
    /// Qualified where it must be; without a length, to which a cast would cut a value off.
    #[serde(rename = "type")]
    pub type_name: String,
    pub equals: String,
    pub after: String,
}

/// Where the vectors of a pipeline are.
pub struct Holder<'a> {
    /// Qualified and quoted.
    pub table: &'a str,
    /// Quoted.
    pub column: String,
}

/// Why a pipeline cannot run as things are.
#[derive(Debug, PartialEq)]
pub enum Trouble {
    /// A restore is under way, or the triggers were dropped: it is left alone.
    Restoring,
    Broken(String),
}

impl When {
    /// # Errors
    /// What is wrong with it; it was checked at the declaration.
    pub fn schedule(&self) -> std::result::Result<Schedule, String> {
        let duration = |seconds: Option<f64>| {
            seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
        };
        Schedule::new(
            &self.schedule,
            duration(self.every_s),
            duration(self.debounce_s),
            duration(self.max_delay_s),
        )
    }

    /// For a person.
    pub fn text(&self) -> String {
        let mut text = self.schedule.clone();
        for (name, seconds) in [
            ("debounce", self.debounce_s),
            ("max_delay", self.max_delay_s),
        ] {
            if let Some(seconds) = seconds {
                text += &format!(" with {name} {seconds} s");
            }
        }
        text
    }
}

impl Pipeline {
    pub fn owner(&self) -> pg_sys::Oid {
        self.owner
            .map_or(pg_sys::InvalidOid, |oid| pg_sys::Oid::from(oid as u32))
    }

    pub fn source_oid(&self) -> pg_sys::Oid {
        self.source_oid
            .map_or(pg_sys::InvalidOid, |oid| pg_sys::Oid::from(oid as u32))
    }

    pub fn keys(&self) -> &[Key] {
        self.keys.as_deref().unwrap_or_default()
    }

    /// The table and column that hold its vectors: its own table's, or the source's.
    pub fn holder(&self) -> Holder<'_> {
        match &self.into_column {
            Some(column) => Holder {
                table: &self.source,
                column: names::quote(column),
            },
            None => Holder {
                table: &self.vectors,
                column: "embedding".to_owned(),
            },
        }
    }

    /// Whether its relation has a row a chunk.
    pub fn has_chunks(&self) -> bool {
        self.long_text == "chunks"
    }

    /// What becomes of long texts by that server.
    pub fn long_text(&self, endpoint: &Endpoint) -> LongText {
        let mode = Mode::find(&self.long_text).unwrap_or(Mode::Truncate);
        let tokens = self.chunk_tokens.map(i64::unsigned_abs);
        LongText::new(mode, tokens, endpoint)
    }

    /// There is an HNSW index, or the rows are users', with triggers of theirs.
    pub fn is_slow_to_store(&self) -> bool {
        self.hnsw || self.into_column.is_some()
    }

    /// Whether nothing has changed but what the worker itself changes, the backfill's position and dead letters, and
    /// what needs no other statements or requests: an index, and what is a matter of money.
    pub fn is_declared_as(&self, other: &Pipeline) -> bool {
        let mut other = other.clone();
        other.monthly_budget = self.monthly_budget;
        if without_money(&self.server_options) == without_money(&other.server_options) {
            other.server_options.clone_from(&self.server_options);
        }
        other.dead_letters = self.dead_letters;
        other.hnsw = self.hnsw;
        other.indexed = self.indexed;
        other.restored = self.restored;
        other.backfilled = self.backfilled;
        other.backfill_after.clone_from(&self.backfill_after);
        other.backfill_round = self.backfill_round;
        other.filling.clone_from(&self.filling);
        *self == other
    }

    /// Whether its vectors are of the same type, and its relation has the same columns.
    pub fn has_type_of(&self, other: &Pipeline) -> bool {
        let form = |of: &Pipeline| (of.storage.clone(), of.dimensions, of.has_chunks());
        form(self) == form(other)
    }

    /// The generation before, which is not kept in step.
    pub fn is_kept(&self) -> bool {
        self.of_pipeline.is_some() && !self.builds
    }

    /// That it cannot run, and why.
    pub fn broken(&self, reason: String) -> Error {
        Error::BrokenPipeline {
            name: self.relation.clone(),
            reason,
        }
    }

    /// Refuses where its declaration does not fit its tables.
    pub fn require_whole(&self) -> Result<()> {
        match self.trouble() {
            Some(Trouble::Broken(reason)) => Err(self.broken(reason)),
            _ => Ok(()),
        }
    }

    /// By what its texts are embedded; an error where it is broken.
    pub fn require_endpoint(&self) -> Result<Endpoint> {
        self.require_whole()?;
        self.endpoint().map_err(|reason| self.broken(reason))
    }

    /// What is wrong with it, if anything.
    pub fn trouble(&self) -> Option<Trouble> {
        let broken = |reason: String| Some(Trouble::Broken(reason));
        if self.source_oid.is_none() {
            return broken(format!("its source {} does not exist", self.source));
        }
        if self.owner.is_none() || !self.vectors_exist {
            return broken(format!(
                "its relation {} or the table behind it does not exist",
                self.relation
            ));
        }
        if let Some(column) = &self.missing_column {
            return broken(format!(
                "column \"{column}\" of {} does not exist",
                self.source
            ));
        }
        if let (Some(column), Some(is)) = (&self.into_column, &self.column_misfit) {
            return broken(format!(
                "column \"{column}\" of {} is {is} now, not {}({})",
                self.source, self.storage, self.dimensions
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
                self.source,
                self.key_columns.join(", ")
            ));
        }
        if !self.captured {
            return Some(Trouble::Restoring);
        }
        None
    }

    /// Why its owner may not do what has to be done in their name, if so.
    pub fn lacks(&self) -> Option<String> {
        let grant = self.lacks.as_ref()?;
        Some(format!("{LACKS} ({grant})"))
    }

    /// Where its texts are sent: the server's options and the owner's user mapping.
    pub fn endpoint(&self) -> std::result::Result<Endpoint, String> {
        let Some(options) = &self.server_options else {
            return Err(format!("server \"{}\" does not exist", self.server));
        };
        if self.server_usable != Some(true) {
            return Err(format!(
                "its owner has no USAGE on server \"{}\" (GRANT USAGE ON FOREIGN SERVER {} TO {})",
                self.server,
                names::quote(&self.server),
                names::quote(self.owner_name.as_deref().unwrap_or_default())
            ));
        }
        let endpoint =
            Endpoint::from_options(options, self.mapping_options.as_deref().unwrap_or_default())
                .map_err(|error| format!("server \"{}\": {}", self.server, error.message))?;
        if endpoint.dimensions as i64 != self.dimensions {
            return Err(format!(
                "server \"{}\" now gives {} dimensions, the pipeline's vectors have {}",
                self.server, endpoint.dimensions, self.dimensions
            ));
        }
        Ok(endpoint)
    }
}

/// A server's options but those that say what it costs.
fn without_money(options: &Option<Vec<(String, String)>>) -> Vec<&(String, String)> {
    let options = options.iter().flatten();
    options
        .filter(|(name, _)| !MONEY_OPTIONS.contains(&name.as_str()))
        .collect()
}

/// Which generations that are being built may copy from the one in service: where the same text has the same vector.
pub fn find_copies(pipelines: &mut [Pipeline]) {
    let recipe = |pipeline: &Pipeline| pipeline.endpoint().ok().map(|e| e.recipe());
    let builds = pipelines.iter().filter(|pipeline| pipeline.builds);
    let copies: Vec<(i32, String)> = builds
        .filter_map(|next| {
            let now = pipelines
                .iter()
                .find(|now| Some(now.id) == next.of_pipeline)?;
            (recipe(next)? == recipe(now)?).then(|| (next.id, now.vectors.clone()))
        })
        .collect();
    for (id, table) in copies {
        let next = pipelines.iter_mut().find(|pipeline| pipeline.id == id);
        if let Some(next) = next {
            next.copies_from = Some(table);
        }
    }
}

/// The pipeline and its generations are no more, and nothing of it is left in recsync's tables. As recsync's owner.
pub fn delete(id: i32) -> Result<()> {
    forget(id)?;
    // What it has spent stays in the ledger, under the name that it had.
    Spi::run_with_args(
        "INSERT INTO recsync.usage_name SELECT COALESCE(account, id), relation FROM recsync.pipeline WHERE id = $1 AND of_pipeline IS NULL ON CONFLICT DO NOTHING",
        &[id.into()],
    )?;
    Spi::run_with_args(
        "DELETE FROM recsync.pipeline WHERE $1 IN (id, of_pipeline)",
        &[id.into()],
    )?;
    Ok(())
}

/// What is known of a pipeline or recommender by its number alone goes. As recsync's owner.
pub fn forget(id: i32) -> Result<()> {
    Spi::run_with_args(
        "WITH b AS (DELETE FROM recsync.backfill WHERE pipeline_id = $1), n AS (DELETE FROM recsync.budget_notice WHERE pipeline_id = $1) DELETE FROM recsync.dead_letter_log WHERE pipeline_id = $1",
        &[id.into()],
    )?;
    Ok(())
}

/// Refuses unless the caller may do with the pipeline what its owner may.
pub fn require_owner(pipeline: &Pipeline) -> Result<()> {
    // SAFETY: role look-ups by OID.
    let is_owner = unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), pipeline.owner()) };
    if is_owner || super::rights::is_admin() {
        return Ok(());
    }
    Err(Error::Denied {
        what: format!("you are not the owner of pipeline {}", pipeline.relation),
        grant: "Its owner may call this, a member of that role, and recsync_admin (GRANT recsync_admin TO …).".into(),
    })
}
