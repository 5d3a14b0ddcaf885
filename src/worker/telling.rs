//! What the server's log says of the worker's work: a line where a state changes, once, and each batch at debug1.
//!
//! It never writes a line a row, nor anything of a row's: no key, no text, and no reason, which may quote one.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::SeqCst;

use pgrx::prelude::*;

use crate::shared::{self, Shared};

/// What is declared, as it was at a look: its number, its name, and whether it is paused.
pub(super) struct Seen {
    pub id: i32,
    pub name: String,
    pub paused: bool,
    /// By recsync, for a reason that recsync.status shows.
    pub for_a_reason: bool,
}

/// Whether something's server is left alone because it fails, from now on or no more.
pub(super) struct Turned {
    /// Of whom others that share it need not be told.
    pub lane: u64,
    /// As `pipeline public.item_embedding`.
    pub what: String,
    pub server: String,
    pub fails: bool,
    /// The last failure, as recsync.status shows it.
    pub failure: Option<String>,
}

#[derive(Default)]
pub(super) struct Telling {
    /// By kind: what was paused at the last look. What a worker finds when it begins has been said before.
    paused: HashMap<&'static str, HashMap<i32, bool>>,
}

impl Telling {
    pub fn look(&mut self, kind: &'static str, seen: &[Seen]) {
        let now = seen.iter().map(|one| (one.id, one.paused)).collect();
        let Some(before) = self.paused.insert(kind, now) else {
            return;
        };
        for one in seen {
            let name = &one.name;
            match (before.get(&one.id), one.paused, one.for_a_reason) {
                (Some(false), true, true) => ereport!(
                    WARNING,
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("recsync worker: {kind} {name} is paused, see recsync.status")
                ),
                (Some(false), true, false) => {
                    log!("recsync worker: {kind} {name} was paused by somebody");
                }
                (Some(true), false, _) => log!("recsync worker: {kind} {name} runs again"),
                _ => {}
            }
        }
    }
}

/// Something was paused: the next look at what is declared finds it, and says so.
pub(super) fn was_paused() {
    if let Some(database) = shared::shared().and_then(Shared::own_database) {
        database.catalog_changed.store(true, SeqCst);
    }
}

/// One line a server: of the one that has met the failure, where several share it.
pub(super) fn tell_turned(mut turned: Vec<Turned>) {
    turned.sort_by_key(|one| one.failure.is_none());
    let mut told = HashSet::new();
    for one in turned {
        if !told.insert(one.lane) {
            continue;
        }
        let (what, server) = (one.what, one.server);
        if one.fails {
            let failure = one.failure.unwrap_or_else(|| "provider".into());
            ereport!(
                WARNING,
                PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
                format!(
                    "recsync worker: {what}: server {server} fails and is left alone: {failure}"
                )
            );
        } else {
            log!("recsync worker: {what}: server {server} answers again");
        }
    }
}
