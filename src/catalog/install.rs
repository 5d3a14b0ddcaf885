//! What CREATE EXTENSION checks and announces, and the event triggers' part in it.
//!
//! It never starts anything by itself: the launcher does, when the transaction has committed.

use pgrx::prelude::*;

use crate::capture::wake;
use crate::error::{Error, Result};
use crate::shared;

extension_sql_file!("tables.sql", name = "tables", bootstrap);
extension_sql_file!(
    "comments.sql",
    name = "comments",
    requires = ["tables", "event_tables", "hook_tables"]
);
extension_sql_file!("views.sql", name = "views", finalize);

#[pg_extern(sql = r#"
CREATE FUNCTION announce() RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
REVOKE ALL ON FUNCTION announce() FROM PUBLIC;
COMMENT ON FUNCTION announce() IS 'Called by the install script: tells the launcher that the extension is here.';
"#)]
fn announce() {
    if shared::shared().is_none() {
        ereport!(
            WARNING,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "recsync is not preloaded: changes can be captured, but no worker will run",
            "Add recsync to shared_preload_libraries in postgresql.conf and restart the server."
        );
    }
    if let Some(version) = old_pgvector() {
        warning!(
            "pgvector {version} has a known corruption in the vacuum of HNSW indexes (mended in 0.8.4) and, before 0.8.2, CVE-2026-3172: update it"
        );
    }
    let publications = super::names::select_one::<String>(
        "SELECT pg_catalog.string_agg(pg_catalog.quote_ident(pubname), ', ' ORDER BY pubname) FROM pg_catalog.pg_publication WHERE puballtables",
        &[],
    );
    if let Ok(Some(publications)) = publications {
        ereport!(
            WARNING,
            PgSqlErrorCode::ERRCODE_WARNING,
            format!(
                "publication {publications} is FOR ALL TABLES: it sends recsync's own tables, too"
            ),
            "A subscriber that has no recsync stops at their first change: publish the tables, or the schemas, that it needs."
        );
    }
    wake::after_extension_change();
}

/// The version of the extension in this database, `None` where it is not installed.
pub fn installed_version() -> Result<Option<String>> {
    super::rights::in_catalog(|| {
        super::names::select_one(
            "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'recsync'",
            &[],
        )
    })
}

/// Refuses on a standby.
pub fn require_primary() -> Result<()> {
    // SAFETY: a plain question to the server.
    match unsafe { pgrx::pg_sys::RecoveryInProgress() } {
        true => Err(Error::Recovery),
        false => Ok(()),
    }
}

/// Refuses where the library and the extension in this database are of different versions, or there is no worker.
pub fn require_worker() -> Result<()> {
    if shared::shared().is_none() {
        return Err(Error::NotPreloaded);
    }
    let loaded = env!("CARGO_PKG_VERSION");
    match installed_version()? {
        Some(installed) if installed != loaded => Err(Error::WrongVersion {
            loaded: loaded.into(),
            installed,
        }),
        _ => Ok(()),
    }
}

/// The version of pgvector, where it is older than the one that has its known faults mended.
fn old_pgvector() -> Option<String> {
    let version = super::names::select_one::<String>(
        "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'vector'",
        &[],
    );
    let version = version.ok().flatten()?;
    let mut numbers = version
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    ((next(), next(), next()) < (0, 8, 4)).then_some(version)
}
