//! DDL of others on what is declared: renames are followed in the same transaction, what is dropped is cleaned up,
//! what does not fit any more is paused, with the reason, and what waited for a change of its server goes on.
//!
//! It never stands in the way of the command: what goes wrong here is a WARNING, and the worker finds out by
//! itself.

// The command's effects.
mod follow;

// Those on recommenders.
mod recommenders;

// Those on who owns what.
mod owners;

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::Deserialize;
use std::cell::Cell;

use super::change::resume_for_servers;
use super::expression::{Analysed, Wanted};
use super::install::installed_version;
use super::names::{Canonical, own_relation, select_one};
use super::rights::{As, in_subtransaction};
use super::utility::list;
use crate::capture::wake;
use crate::error::Result;
use recommenders::Recommender;

/// What is declared, as it is.
const STATE: &str = include_str!("ddl.sql");

#[derive(Deserialize)]
struct State {
    sources: Option<Vec<Source>>,
    pipelines: Option<Vec<Pipeline>>,
    recommenders: Option<Vec<Recommender>>,
}

/// `stored` is the name in recsync's tables, `current` that of the relation that is meant; `None` where it is gone.
#[derive(Deserialize)]
struct Source {
    id: i32,
    stored: String,
    oid: Option<i64>,
    current: Option<String>,
    owner: Option<i64>,
    key_columns: Vec<String>,
    used_columns: Vec<String>,
    attributes: Option<Vec<Attribute>>,
    file: Option<String>,
    tables: Option<Vec<i64>>,
    disabled: Option<Vec<i64>>,
    /// ENABLE TRIGGER ALL has been at one that is to fire as a replica.
    unseen_off: bool,
}

#[derive(Deserialize)]
struct Attribute {
    number: i32,
    name: String,
    dropped: bool,
    modifier: i32,
    #[serde(rename = "type")]
    type_name: Option<String>,
    type_oid: i64,
}

#[derive(Deserialize)]
struct Pipeline {
    id: i32,
    source_id: i32,
    /// It is a generation of that one, which is in service.
    of_pipeline: Option<i32>,
    stored: String,
    oid: Option<i64>,
    current: Option<String>,
    owner: Option<i64>,
    stored_vectors: String,
    vectors_oid: Option<i64>,
    vectors: Option<String>,
    stored_server: String,
    server_oid: Option<i64>,
    server: Option<String>,
    columns: Option<Vec<String>>,
    into_column: Option<String>,
    used_columns: Vec<String>,
    content: String,
    row_filter: Option<String>,
    shown: Option<Vec<String>>,
}

impl Pipeline {
    /// It is a generation that is not in service: its name is that of its table.
    fn has_no_view(&self) -> bool {
        self.oid.is_some() && self.oid == self.vectors_oid
    }
}

/// What was declared before a command, and its expressions by OIDs.
pub struct Before {
    state: State,
    /// The command may bring rows with a partition.
    attaches: bool,
    /// It may change texts without a change of their rows.
    rewrites: bool,
    /// It drops what somebody owns.
    drops_owned: bool,
    /// By pipeline: content and row_filter, where a name in them may change.
    expressions: Vec<(i32, Analysed, Option<Analysed>)>,
    /// By recommender and column of its declaration.
    of_recommenders: Vec<(i32, String, Analysed)>,
}

thread_local! {
    /// Commands of our own that follow somebody's are not followed again.
    static FOLLOWING: Cell<bool> = const { Cell::new(false) };
}

/// The state before a command that may change names, tables, triggers or partitions; `None` when nothing is
/// declared here.
///
/// # Safety
/// `node` is a utility statement that has not run yet.
pub unsafe fn before(node: *mut pg_sys::Node) -> Option<Before> {
    use pg_sys::NodeTag as T;
    // SAFETY: a node has a tag.
    let tag = unsafe { (*node).type_ };
    let renames = matches!(tag, T::T_RenameStmt | T::T_AlterObjectSchemaStmt);
    let attaches = tag == T::T_AlterTableStmt;
    let rewrites = tag == T::T_AlterEnumStmt;
    let drops_owned = tag == T::T_DropOwnedStmt;
    let others = matches!(
        tag,
        T::T_DropStmt | T::T_CreateStmt | T::T_ReassignOwnedStmt
    );
    let others = others || drops_owned;
    // SAFETY: a plain global of this process.
    let is_ours = FOLLOWING.get() || unsafe { pg_sys::creating_extension };
    if !(renames || attaches || rewrites || others) || is_ours || !is_installed() {
        return None;
    }
    quietly(|| {
        // SAFETY: passed on from the caller.
        if !unsafe { may_concern(node) } {
            return Ok(None);
        }
        let Some(state) = state(None)? else {
            return Ok(None);
        };
        let (expressions, of_recommenders) = if renames {
            (analysed(&state), recommenders::analysed(&state))
        } else {
            Default::default()
        };
        Ok(Some(Before {
            state,
            attaches,
            rewrites,
            drops_owned,
            expressions,
            of_recommenders,
        }))
    })
    .flatten()
}

/// Whether a command may concern a watched table: one has triggers, which most tables that come and go have not.
unsafe fn may_concern(node: *mut pg_sys::Node) -> bool {
    use pg_sys::NodeTag as T;
    // SAFETY: each cast follows the node's tag; lists and names are the parser's.
    unsafe {
        match (*node).type_ {
            T::T_AlterTableStmt => {
                let alter = &*node.cast::<pg_sys::AlterTableStmt>();
                // A pipeline's view has no triggers.
                let is_given_away = |command: *mut std::ffi::c_void| {
                    let command = &*command.cast::<pg_sys::AlterTableCmd>();
                    command.subtype == pg_sys::AlterTableType::AT_ChangeOwner
                };
                list(alter.cmds).any(is_given_away) || has_triggers(alter.relation)
            }
            T::T_CreateStmt => !(*node.cast::<pg_sys::CreateStmt>()).partbound.is_null(),
            // A value's new name is in texts that no row change tells of.
            T::T_AlterEnumStmt => !(*node.cast::<pg_sys::AlterEnumStmt>()).oldVal.is_null(),
            T::T_DropStmt => {
                let drop = &*node.cast::<pg_sys::DropStmt>();
                let plain = drop.removeType == pg_sys::ObjectType::OBJECT_TABLE
                    && drop.behavior == pg_sys::DropBehavior::DROP_RESTRICT;
                !plain
                    || list(drop.objects)
                        .any(|name| has_triggers(pg_sys::makeRangeVarFromNameList(name.cast())))
            }
            _ => true,
        }
    }
}

unsafe fn has_triggers(name: *mut pg_sys::RangeVar) -> bool {
    // SAFETY: look-ups by name and OID; the form is read before its entry is released.
    unsafe {
        let relation = pg_sys::RangeVarGetRelidExtended(
            name,
            pg_sys::NoLock as _,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        );
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::RELOID as _,
            pg_sys::Datum::from(relation),
        );
        if tuple.is_null() {
            return false;
        }
        let class = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
        let has = (*class).relhastriggers || (*class).relispartition;
        pg_sys::ReleaseSysCache(tuple);
        has
    }
}

/// After the command: names, triggers and pauses follow what it did.
pub fn after(before: Before) {
    seeing_its_effects(|| {
        let _following = Following::begin();
        if is_installed() {
            quietly(|| follow::follow(&before));
        }
        wake::after_catalog_change();
    });
}

/// It ends with this value, also where the statement is cancelled meanwhile.
struct Following;

impl Following {
    fn begin() -> Following {
        FOLLOWING.set(true);
        Following
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        FOLLOWING.set(false);
    }
}

/// After a command that has made or changed these servers, or who may use them and how: what waited for that goes on.
pub fn after_server_change(servers: &[String]) {
    seeing_its_effects(|| {
        if is_installed() {
            quietly(|| resume_for_servers(servers));
            // One may be on the point of being paused for what it lacked.
            wake::after_catalog_change();
        }
    });
}

/// After a GRANT of whatever: what waited for it goes on.
pub fn after_grant() {
    owners::after_grant();
}

/// Runs `body` under a snapshot that sees what this transaction has done.
pub(super) fn seeing_its_effects<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: a fresh snapshot, popped below. Some commands end the transaction that they began in, and with it its
    // snapshot.
    unsafe {
        pg_sys::CommandCounterIncrement();
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
    }
    let value = body();
    // SAFETY: pops the snapshot pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    value
}

fn is_installed() -> bool {
    own_relation(c"source").is_some()
}

/// Runs `body` so that its failure does not fail the user's command.
fn quietly<T>(body: impl FnOnce() -> Result<T>) -> Option<T> {
    // The tables of an older version are not those that this library knows: it is updated first.
    if installed_version().ok()?.as_deref() != Some(env!("CARGO_PKG_VERSION")) {
        return None;
    }
    in_subtransaction(body)
        .inspect_err(|failed| warning!("recsync could not follow this command: {}", failed.message))
        .ok()
}

fn state(known: Option<String>) -> Result<Option<State>> {
    let (_as, _canonical) = (As::extension(), Canonical::begin());
    let json = select_one::<String>(STATE, &[known.into()])?;
    json.map(|json| {
        serde_json::from_str(&json)
            .map_err(|error| crate::error::Error::Internal(format!("recsync.source: {error}")))
    })
    .transpose()
}

/// The pipelines' expressions, those that can be analysed.
fn analysed(state: &State) -> Vec<(i32, Analysed, Option<Analysed>)> {
    let _as = As::extension();
    let analyse = |source: &Source, text: &str, wanted| {
        let oid = pg_sys::Oid::from(source.oid? as u32);
        in_subtransaction(|| Analysed::of("content", oid, text, Some(c"s"), wanted)).ok()
    };
    let pipelines = state.pipelines.iter().flatten();
    pipelines
        .filter_map(|pipeline| {
            let mut sources = state.sources.iter().flatten();
            let source = sources.find(|source| source.id == pipeline.source_id)?;
            let content = analyse(source, &pipeline.content, Wanted::Text)?;
            let filter = match &pipeline.row_filter {
                Some(filter) => Some(analyse(source, filter, Wanted::Boolean)?),
                None => None,
            };
            Some((pipeline.id, content, filter))
        })
        .collect()
}
