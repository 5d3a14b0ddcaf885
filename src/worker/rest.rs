//! Whether a database's worker does anything: not where `recsync.enabled` is off, nor in a copy of another site's database.
//!
//! Capture goes on in both cases, and so does dispatch. It never looks at a table itself but when it is told to.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::process::{Failed, transaction};
use crate::catalog::site;
use crate::settings;
use crate::shared::Database;

/// This process's database is a copy of another site's.
static ELSEWHERE: AtomicBool = AtomicBool::new(true);

/// In the leader.
pub fn works() -> bool {
    settings::enabled() && !ELSEWHERE.load(Relaxed)
}

/// Looks whose database it is, and tells those who wait.
pub fn look(database: &Database) -> Result<(), Failed> {
    let site = transaction(site::elsewhere)?;
    let is_elsewhere = site.is_some();
    if let Some(site) = site
        && !database.elsewhere.load(SeqCst)
    {
        pgrx::log!("recsync worker: {}", site::reason(&site));
    }
    ELSEWHERE.store(is_elsewhere, Relaxed);
    database.elsewhere.store(is_elsewhere, SeqCst);
    tell(database);
    Ok(())
}

/// After a change of what [`works`] depends on.
pub fn tell(database: &Database) {
    let rests = !works();
    if database.rests.swap(rests, SeqCst) != rests {
        database.signal_progress();
    }
}
