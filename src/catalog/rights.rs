//! Running as somebody else: recsync's owner for its own tables, a pipeline's owner for everything of theirs.
//!
//! It never runs a user's expression outside a security-restricted operation.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;

use super::names;
use crate::error::{Failed, Result};
use crate::settings::set;

/// A change of user that ends with the value; an ERROR's abort ends it, too.
pub struct As {
    user: pg_sys::Oid,
    context: i32,
    level: i32,
}

impl As {
    /// recsync's owner: for its own tables, on behalf of whoever called, whose search_path must not say which operator
    /// an `=` is.
    pub fn extension() -> As {
        As::switch(
            extension_owner(),
            pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32,
            settings_level(CATALOG),
        )
    }

    /// The owner of a table, to make objects in their name. Only after the caller's right to do so was checked.
    pub fn maker(owner: pg_sys::Oid) -> As {
        As::switch(
            owner,
            pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32,
            settings_level(CATALOG),
        )
    }

    /// The owner of a pipeline in a security-restricted operation: whatever their expressions, triggers and
    /// operators do, they do with their owner's rights and cannot leave anything behind. Row-level security
    /// that would hide rows is an error: a hidden row must never look deleted.
    pub fn owner(owner: pg_sys::Oid) -> As {
        let path = format!(
            "pg_catalog, {}, pg_temp\0",
            names::vector_schema().unwrap_or_default()
        );
        let path = path.replace("pg_catalog, , ", "pg_catalog, ");
        let path = std::ffi::CStr::from_bytes_with_nul(path.as_bytes()).unwrap_or(CATALOG);
        let level = settings_level(path);
        // SAFETY: inside the level.
        unsafe { set(c"row_security", c"off") };
        As::switch(
            owner,
            (pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION) as i32,
            level,
        )
    }

    fn switch(to: pg_sys::Oid, flags: i32, level: i32) -> As {
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        // SAFETY: reads and sets this process's user; put back by `drop` or by the transaction's abort.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
            pg_sys::SetUserIdAndSecContext(to, context | flags);
        }
        As {
            user,
            context,
            level,
        }
    }
}

impl Drop for As {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // an ERROR is on its way: the abort puts everything back
        }
        // SAFETY: the values that were there before.
        unsafe {
            pg_sys::AtEOXact_GUC(false, self.level);
            pg_sys::SetUserIdAndSecContext(self.user, self.context);
        }
    }
}

/// PostgreSQL's own operators and types, before anybody's.
const CATALOG: &std::ffi::CStr = c"pg_catalog, pg_temp";

/// A level of settings with this search_path; closed by [`As`]'s `drop`, or by the transaction's abort.
fn settings_level(path: &std::ffi::CStr) -> i32 {
    // SAFETY: opens a level, and sets inside it.
    unsafe {
        let level = pg_sys::NewGUCNestLevel();
        set(c"search_path", path);
        level
    }
}

/// Runs `body`, which asks the catalog as the caller, whatever their search_path has in it.
pub fn in_catalog<T>(body: impl FnOnce() -> T) -> T {
    with_settings(&[(c"search_path", CATALOG)], body)
}

/// Whether a role has SELECT on a relation.
pub fn may_read(role: pg_sys::Oid, relation: pg_sys::Oid) -> Result<bool> {
    const MAY: &str = "SELECT pg_catalog.has_table_privilege($1, $2, 'SELECT')";
    let may = in_catalog(|| names::select_one::<bool>(MAY, &[role.into(), relation.into()]))?;
    Ok(may == Some(true))
}

/// Runs `body` with a settings level of its own.
pub fn with_settings<T>(
    settings: &[(&std::ffi::CStr, &std::ffi::CStr)],
    body: impl FnOnce() -> T,
) -> T {
    // SAFETY: the level is closed below, or by the transaction's abort.
    let level = unsafe { pg_sys::NewGUCNestLevel() };
    for (name, value) in settings {
        // SAFETY: inside the level.
        unsafe { set(name, value) };
    }
    let result = body();
    // SAFETY: closes the level opened above.
    unsafe { pg_sys::AtEOXact_GUC(false, level) };
    result
}

/// The role that owns the extension: whoever ran CREATE EXTENSION.
fn extension_owner() -> pg_sys::Oid {
    // SAFETY: syscache look-ups; the OID is valid whatever they find.
    unsafe {
        let table = names::own_relation(c"pipeline").unwrap_or(pg_sys::InvalidOid);
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::RELOID as _,
            pg_sys::Datum::from(table),
        );
        if tuple.is_null() {
            return pg_sys::GetUserId();
        }
        let class = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
        let owner = (*class).relowner;
        pg_sys::ReleaseSysCache(tuple);
        owner
    }
}

/// Whether the current user is a superuser or a member of recsync_admin.
pub fn is_admin() -> bool {
    // SAFETY: look-ups of roles.
    unsafe {
        let admin = pg_sys::get_role_oid(c"recsync_admin".as_ptr(), true);
        pg_sys::superuser()
            || (admin != pg_sys::InvalidOid
                && pg_sys::has_privs_of_role(pg_sys::GetUserId(), admin))
    }
}

/// Runs `body` in a subtransaction: kept when it returns Ok, rolled back when it returns Err or raises. Locks that
/// it took stay in the first case. A cancelled statement stays cancelled.
pub fn in_subtransaction<T>(body: impl FnOnce() -> Result<T>) -> std::result::Result<T, Failed> {
    subtransaction(body, true)
}

/// The same, but rolled back whatever it returns: nothing that it locked stays locked.
pub fn in_undone_subtransaction<T>(
    body: impl FnOnce() -> Result<T>,
) -> std::result::Result<T, Failed> {
    subtransaction(body, false)
}

fn subtransaction<T>(
    body: impl FnOnce() -> Result<T>,
    keep: bool,
) -> std::result::Result<T, Failed> {
    // SAFETY: the pattern of PL/pgSQL's exception block: context and resource owner are put back either way, and
    // what `body` allocates lives in the caller's context.
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let outcome = PgTryBuilder::new(AssertUnwindSafe(|| body().map_err(Failed::from)))
            .catch_others(|cause| Err(Failed::from(cause)))
            .execute();
        match &outcome {
            Ok(_) if keep => pg_sys::ReleaseCurrentSubTransaction(),
            _ => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        if let Err(failed) = &outcome
            && failed.code == PgSqlErrorCode::ERRCODE_QUERY_CANCELED
        {
            failed.raise();
        }
        outcome
    }
}
