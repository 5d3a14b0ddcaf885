//! Where a database is at home: a copy that is started elsewhere, under another `recsync.site`, sends nothing until it
//! is told to.
//!
//! A copy of the disk has all that its original has, the system's identifier and the checkpoint included: only what the
//! administrator says of the place tells them apart. It never decides by itself that a database has moved.

use pgrx::prelude::*;

use super::names::select_one;
use super::rights::{self, As};
use crate::capture::wake;
use crate::error::{Error, OrReport, Result};
use crate::settings;

// A restored dump brings the site that it was made at, beside the one that CREATE EXTENSION has noted.
const ELSEWHERE: &str =
    "SELECT name FROM recsync.site WHERE name <> $1 ORDER BY adopted_at, name LIMIT 1";

const ADOPT: &str = "\
WITH gone AS (DELETE FROM recsync.site WHERE name <> $1)
INSERT INTO recsync.site (name) SELECT $1 WHERE NOT EXISTS (SELECT FROM recsync.site WHERE name = $1)";

#[pg_extern(sql = r#"
CREATE FUNCTION adopt_site() RETURNS text LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
COMMENT ON FUNCTION adopt_site() IS
'Makes this database, a copy that was started or restored under another recsync.site, one of the site where it is now: from its commit on the worker sends and stores, and embed and search ask. Returns the site. No row is paid for that has the vector of its text. Errors: 42501 for others than superusers and members of recsync_admin, 25006 on a standby.';
"#)]
fn adopt_site() -> String {
    (|| -> Result<String> {
        if !rights::is_admin() {
            return Err(Error::Denied {
                what: "a site is adopted by superusers and members of recsync_admin only".into(),
                grant: "From then on texts leave this copy of the database: ask an administrator, or GRANT recsync_admin TO …".into(),
            });
        }
        let here = settings::site();
        let _as = As::extension();
        Spi::run_with_args(ADOPT, &[here.as_str().into()])?;
        wake::after_catalog_change();
        Ok(here)
    })()
    .or_report()
}

/// The site whose database this is, where that is not where it is now.
pub fn elsewhere() -> Result<Option<String>> {
    let here = settings::site();
    let _as = As::extension();
    select_one::<String>(ELSEWHERE, &[here.into()])
}

/// For a person: whose copy this is, and what to do.
pub fn reason(site: &str) -> String {
    format!(
        "this database is a copy of one of site \"{site}\", and recsync.site is \"{}\" here: nothing is sent until recsync.adopt_site() is called",
        settings::site()
    )
}

/// Refuses where nothing may be sent.
pub fn require_home() -> Result<()> {
    match elsewhere()? {
        Some(site) => Err(Error::Elsewhere(reason(&site))),
        None => Ok(()),
    }
}
