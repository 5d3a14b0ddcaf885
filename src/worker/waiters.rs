//! Builds and trainings that keep somebody waiting give way: the launcher looks, since the leader may be among those who
//! wait.
//!
//! Their own locks hinder nobody who reads or writes, but DDL waits for them, and whoever comes later waits for the DDL.
//! It never takes a lock itself.

use pgrx::pg_sys;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::settings;
use crate::shared::{Shared, slots};

/// How often it looks while there are builds: before PostgreSQL looks for deadlocks (deadlock_timeout, a second), of
/// which a build is part where somebody it waits for wants its table.
const LOOK: Duration = Duration::from_millis(250);

/// Ends the builds and trainings that somebody waits for, and all of them where recsync is disabled. Returns in how long
/// it has to be looked again.
pub fn attend(shared: &Shared) -> Option<Duration> {
    let mut next = None;
    for entry in &shared.databases {
        let database = pg_sys::Oid::from(entry.oid.load(SeqCst));
        let indexers = slots::pids(&entry.indexer, database).into_iter();
        let trainers = slots::pids(&shared.trainer, database).into_iter();
        for pid in indexers.chain(trainers) {
            next = Some(LOOK);
            if !settings::enabled() || entry.rests.load(SeqCst) || keeps_somebody_waiting(pid) {
                // SAFETY: a signal to a process of ours; one that has ended meanwhile is no harm.
                unsafe { libc::kill(pid, libc::SIGTERM) };
            }
        }
    }
    next
}

/// Whether somebody waits for a lock on a table that conflicts with one that the process holds.
fn keeps_somebody_waiting(process: i32) -> bool {
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
        .filter(|lock| lock.pid == process)
        .map(|lock| (table(lock), lock.holdMask))
        .collect();
    tables()
        .filter(|lock| lock.pid != process && lock.waitLockMode != 0)
        .any(|lock| {
            let conflicts = conflicts_of(lock.waitLockMode);
            held.iter()
                .any(|(of, mask)| *of == table(lock) && mask & conflicts != 0)
        })
}

/// The modes that a mode of a table's lock conflicts with, as a mask (PostgreSQL's docs, table 13.2).
fn conflicts_of(mode: pg_sys::LOCKMODE) -> i32 {
    // From a mode on, all of those that are stronger.
    let from = |mode: i32| (1 << 9) - (1 << mode);
    match mode {
        1 => from(8),
        2 => from(7),
        3 => from(5),
        4 => from(4),
        5 => from(3) & !(1 << 5),
        6 => from(3),
        7 => from(2),
        8 => from(1),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each mode's, as PostgreSQL's LockConflicts has them.
    #[test]
    fn modes_conflict_as_the_docs_say_and_both_ways() {
        let list = |mode: i32| -> Vec<i32> {
            (1..=8)
                .filter(|other| conflicts_of(mode) & (1 << other) != 0)
                .collect()
        };
        assert_eq!(list(1), [8]);
        assert_eq!(list(3), [5, 6, 7, 8]);
        assert_eq!(list(4), [4, 5, 6, 7, 8]);
        assert_eq!(list(5), [3, 4, 6, 7, 8]);
        for one in 1..=8 {
            for other in 1..=8 {
                assert_eq!(list(one).contains(&other), list(other).contains(&one));
            }
        }
    }
}
