//! Hooks as they are stored, found by name, paused.
//!
//! It never keeps what it read: callers load again when told.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::event::Event;
use crate::capture::wake;
use crate::catalog::names;
use crate::catalog::rights::{As, is_admin};
use crate::error::{Error, Result};

/// A hook; `$1` narrows to one number.
const LOAD: &str = "\
SELECT pg_catalog.to_jsonb(h)::text FROM (
    SELECT h.id, h.name, h.event, h.server, h.path, h.method, h.body, h.channel, h.paused, h.paused_reason, h.recommender_id, h.owner AS owner_name,
           pg_catalog.to_regrole(h.owner)::oid::bigint AS owner
      FROM recsync.hook h WHERE $1 IS NULL OR h.id = $1) h";

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Hook {
    pub id: i32,
    /// Qualified and quoted.
    pub name: String,
    event: String,
    pub server: Option<String>,
    pub path: String,
    pub method: String,
    body: Option<Value>,
    /// Of NOTIFY.
    pub channel: Option<String>,
    pub paused: bool,
    pub paused_reason: Option<String>,
    recommender_id: Option<i32>,
    pub owner_name: String,
    owner: Option<i64>,
}

impl Hook {
    /// `None`: there is no such role any more.
    pub fn owner(&self) -> Option<pg_sys::Oid> {
        self.owner.map(|oid| pg_sys::Oid::from(oid as u32))
    }

    pub fn event(&self) -> Event {
        Event::find(&self.event).unwrap_or(Event::Embedded)
    }

    /// `None`: of all that its owner owns, if of any.
    pub fn hears_recommender(&self) -> Option<i32> {
        self.recommender_id
    }

    pub fn has_own_body(&self) -> bool {
        self.body.is_some()
    }

    /// With placeholders.
    pub fn body(&self) -> Value {
        let usual = || self.event().usual_body();
        self.body.clone().unwrap_or_else(usual)
    }
}

/// Every hook of the database. As recsync's owner.
pub fn load_all() -> Result<Vec<Hook>> {
    load(None)
}

fn load(id: Option<i32>) -> Result<Vec<Hook>> {
    Spi::connect(|client| {
        let rows = client.select(LOAD, None, &[id.into()])?;
        let hooks = rows.map(|row| {
            let json = row.get::<String>(1)?.unwrap_or_default();
            serde_json::from_str(&json)
                .map_err(|error| Error::Internal(format!("recsync.hook: {error}")))
        });
        hooks.collect()
    })
}

/// The hook that `name` means: its full name as recsync.status shows it, or a name by search_path.
pub fn find(name: &str) -> Result<Hook> {
    const FIND: &str = "SELECT id FROM recsync.hook WHERE name = ANY ($1) ORDER BY pg_catalog.array_position($1, name) LIMIT 1";
    let names = names::full_names(name)?;
    let _as = As::extension();
    let id = names::select_one::<i32>(FIND, &[names.into()])?;
    let found = id.map(|id| load(Some(id))).transpose()?;
    let hook = found.and_then(|mut hooks| hooks.pop());
    hook.ok_or_else(|| Error::NoSuchHook(name.to_owned()))
}

/// Refuses unless the caller may do with the hook what its owner may.
pub fn require_owner(hook: &Hook) -> Result<()> {
    // SAFETY: role look-ups by OID.
    let owns = |owner| unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), owner) };
    if hook.owner().is_some_and(owns) || is_admin() {
        return Ok(());
    }
    Err(Error::Denied {
        what: format!("you are not the owner of hook {}", hook.name),
        grant: "Its owner may call this, a member of that role, and recsync_admin (GRANT recsync_admin TO …).".into(),
    })
}

/// pause and resume.
pub fn set_paused(name: &str, paused: bool) -> Result<()> {
    let hook = find(name)?;
    require_owner(&hook)?;
    let _as = As::extension();
    Spi::run_with_args(
        "UPDATE recsync.hook SET paused = $2, paused_reason = NULL, paused_by_server = false, overflowed = overflowed AND $2 WHERE id = $1",
        &[hook.id.into(), paused.into()],
    )?;
    wake::after_catalog_change();
    Ok(())
}

/// Pauses one that cannot go on, unless it has another server or owner by now: roles and servers are found as they are
/// called at the moment, and a rename may have been committed since the hook was read. The reason stands in
/// recsync.status, and a change of its server ends it. As recsync's owner.
pub fn pause_for(hook: &Hook, reason: &str) -> Result<()> {
    Spi::run_with_args(
        "UPDATE recsync.hook SET paused = true, paused_reason = $2, paused_by_server = true
          WHERE id = $1 AND NOT paused AND server IS NOT DISTINCT FROM $3 AND owner = $4",
        &[
            hook.id.into(),
            reason.into(),
            hook.server.clone().into(),
            hook.owner_name.clone().into(),
        ],
    )?;
    Ok(())
}

/// One that waited for its server goes on, unless a person has paused it. False where it stays paused.
pub fn go_on(id: i32) -> Result<bool> {
    go_on_where("id = $1", id.into())
}

/// These servers were changed: hooks that are paused because of them go on.
pub fn resume_for_servers(servers: &[String]) -> Result<()> {
    go_on_where("server = ANY ($1)", servers.to_vec().into()).map(drop)
}

/// True where there were some.
fn go_on_where(which: &str, given: DatumWithOid) -> Result<bool> {
    let resume = format!(
        "UPDATE recsync.hook SET paused = false, paused_reason = NULL, paused_by_server = false
          WHERE {which} AND paused_by_server RETURNING id"
    );
    Spi::connect_mut(|client| Ok(!client.update(resume.as_str(), None, &[given])?.is_empty()))
}
