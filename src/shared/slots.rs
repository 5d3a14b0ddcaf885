//! Places for writers and indexers: as many as run at once in the cluster or in a database, each with the database it
//! works for.
//!
//! It never lets two processes have one place, nor one that its leader has taken back: each reservation has a number
//! of its own.

use pgrx::pg_sys;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// The most that `recsync.max_writers` allows.
pub const MAX_WRITERS: usize = 64;

/// In the lower half of a place's state instead of a process id: asked for, not started yet.
const RESERVED: u32 = u32::MAX;

#[repr(C)]
pub struct Slot {
    /// The number of the reservation, and below it 0 (free), [`RESERVED`] or the process id.
    state: AtomicU64,
    database: AtomicU32,
}

/// A place that was reserved, as the process that is to take it is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Reservation {
    pub slot: u32,
    pub number: u32,
}

fn state(number: u32, holder: u32) -> u64 {
    u64::from(number) << 32 | u64::from(holder)
}

fn holder(state: u64) -> u32 {
    state as u32
}

impl Slot {
    /// The process that has the place, if it works for `database`.
    fn pid_in(&self, database: pg_sys::Oid) -> Option<i32> {
        let holder = holder(self.state.load(SeqCst));
        let works = holder != 0 && holder != RESERVED;
        (works && self.database.load(SeqCst) == database.to_u32()).then_some(holder as i32)
    }

    /// Frees the place if it still has this state.
    fn free(&self, from: u64) -> bool {
        let free = state((from >> 32) as u32, 0);
        self.state
            .compare_exchange(from, free, SeqCst, SeqCst)
            .is_ok()
    }
}

/// Reserves a place where fewer than `most` are taken.
pub fn reserve(slots: &[Slot], database: pg_sys::Oid, most: usize) -> Option<Reservation> {
    let taken = |slot: &&Slot| holder(slot.state.load(SeqCst)) != 0;
    if slots.iter().filter(taken).count() >= most {
        return None;
    }
    slots.iter().enumerate().find_map(|(index, slot)| {
        let free = slot.state.load(SeqCst);
        if holder(free) != 0 {
            return None;
        }
        let number = ((free >> 32) as u32).wrapping_add(1);
        slot.state
            .compare_exchange(free, state(number, RESERVED), SeqCst, SeqCst)
            .ok()?;
        slot.database.store(database.to_u32(), SeqCst);
        Some(Reservation {
            slot: index as u32,
            number,
        })
    })
}

/// Whether no place is taken or reserved.
pub fn are_free(slots: &[Slot]) -> bool {
    slots
        .iter()
        .all(|slot| holder(slot.state.load(SeqCst)) == 0)
}

/// The process that was started for a reservation takes its place; false where that has been taken back.
pub fn take(slots: &[Slot], place: Reservation, pid: i32) -> bool {
    slots.get(place.slot as usize).is_some_and(|slot| {
        let reserved = state(place.number, RESERVED);
        slot.state
            .compare_exchange(reserved, state(place.number, pid as u32), SeqCst, SeqCst)
            .is_ok()
    })
}

/// The leader takes back a place whose process has not started, and will not.
pub fn take_back(slots: &[Slot], place: Reservation) {
    if let Some(slot) = slots.get(place.slot as usize) {
        slot.free(state(place.number, RESERVED));
    }
}

/// The same for all of a database, whose leader ends.
pub fn take_back_all(slots: &[Slot], database: pg_sys::Oid) {
    for slot in slots {
        let now = slot.state.load(SeqCst);
        if holder(now) == RESERVED && slot.database.load(SeqCst) == database.to_u32() {
            slot.free(now);
        }
    }
}

/// A process leaves its place.
pub fn leave(slots: &[Slot], pid: i32) {
    for slot in slots {
        let now = slot.state.load(SeqCst);
        if holder(now) == pid as u32 {
            slot.free(now);
        }
    }
}

/// The processes that work for a database.
pub fn pids(slots: &[Slot], database: pg_sys::Oid) -> Vec<i32> {
    slots
        .iter()
        .filter_map(|slot| slot.pid_in(database))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(count: usize) -> Vec<Slot> {
        let slot = || Slot {
            state: AtomicU64::new(0),
            database: AtomicU32::new(0),
        };
        (0..count).map(|_| slot()).collect()
    }

    fn database(oid: u32) -> pg_sys::Oid {
        pg_sys::Oid::from(oid)
    }

    #[test]
    fn no_more_places_are_taken_than_are_allowed_by_all_databases_together() {
        let slots = slots(4);
        let first = reserve(&slots, database(1), 2).unwrap();
        assert!(take(&slots, first, 100));
        assert!(reserve(&slots, database(2), 2).is_some());
        assert!(reserve(&slots, database(1), 2).is_none());
        assert!(reserve(&slots, database(1), 3).is_some());
        leave(&slots, 100);
        assert!(reserve(&slots, database(3), 3).is_some());
    }

    #[test]
    fn a_process_that_comes_too_late_finds_its_place_gone() {
        let slots = slots(1);
        let first = reserve(&slots, database(1), 1).unwrap();
        take_back(&slots, first);
        assert!(!take(&slots, first, 100));
        // Also when somebody else waits for it by now.
        let second = reserve(&slots, database(2), 1).unwrap();
        assert!(!take(&slots, first, 100));
        assert!(take(&slots, second, 200));
        assert!(pids(&slots, database(1)).is_empty());
        assert_eq!(pids(&slots, database(2)), [200]);
    }

    #[test]
    fn a_leader_that_ends_takes_back_what_has_not_started() {
        let slots = slots(3);
        let [one, other, foreign] = [1, 1, 2].map(|oid| reserve(&slots, database(oid), 3).unwrap());
        assert!(take(&slots, one, 100));
        take_back_all(&slots, database(1));
        assert!(!take(&slots, other, 101));
        assert!(take(&slots, foreign, 102));
        assert_eq!(pids(&slots, database(1)), [100]);
    }
}
