//! Builds that keep somebody waiting give way: the launcher looks, since the leader may be among those who wait.
//!
//! The build's own lock on the table hinders nobody who reads or writes, but DDL waits for it, and whoever comes later
//! waits for the DDL. It never takes a lock itself.

use pgrx::pg_sys;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::settings;
use crate::shared::{Shared, slots};

/// How often it looks while there are builds: before PostgreSQL looks for deadlocks (deadlock_timeout, a second), of
/// which a build is part where somebody it waits for wants its table.
const LOOK: Duration = Duration::from_millis(250);

/// Ends the builds that somebody waits for, and all of them where recsync is disabled. Returns in how long it has to be
/// looked again.
pub fn attend(shared: &Shared) -> Option<Duration> {
    let mut next = None;
    for entry in &shared.databases {
        let database = pg_sys::Oid::from(entry.oid.load(SeqCst));
        for pid in slots::pids(&entry.indexer, database) {
            next = Some(LOOK);
            if !settings::enabled() || keeps_somebody_waiting(pid) {
                // SAFETY: a signal to a process of ours; one that has ended meanwhile is no harm.
                unsafe { libc::kill(pid, libc::SIGTERM) };
            }
        }
    }
    next
}

/// Whether somebody waits for a lock on a table that conflicts with the one that a build holds.
fn keeps_somebody_waiting(build: i32) -> bool {
    const HELD: i32 = pg_sys::ShareUpdateExclusiveLock as i32;
    // SAFETY: a copy of the lock table, allocated in the current context, of as many entries as it says.
    let locks = unsafe {
        let data = pg_sys::GetLockStatusData();
        std::slice::from_raw_parts((*data).locks, (*data).nelements as usize)
    };
    let of_table = |lock: &&pg_sys::LockInstanceData| {
        u32::from(lock.locktag.locktag_type) == pg_sys::LockTagType::LOCKTAG_RELATION
    };
    let table = |lock: &pg_sys::LockInstanceData| {
        (lock.locktag.locktag_field1, lock.locktag.locktag_field2)
    };
    let tables = || locks.iter().filter(of_table);
    let held: Vec<_> = tables()
        .filter(|lock| lock.pid == build && lock.holdMask & (1 << HELD) != 0)
        .map(table)
        .collect();
    // All modes from its own on conflict with it.
    tables()
        .any(|lock| lock.pid != build && lock.waitLockMode >= HELD && held.contains(&table(lock)))
}
