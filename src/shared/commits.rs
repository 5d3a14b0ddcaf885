//! When the last transactions that changed a watched table were committed: a lossy ring, by transaction.
//!
//! It never makes a commit wait or fail: an entry is three stores into memory. Transactions that are as many apart as the
//! ring has places share one, and the later takes it; prepared transactions are not in it, nor is what was committed
//! before the server started.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

/// A power of two. A worker reads a change within milliseconds of its commit, or, where it is not there, of its own
/// start: 16,384 transactions are what is committed meanwhile on a busy server.
const PLACES: usize = 16_384;

#[repr(C)]
pub struct Commits {
    places: [Place; PLACES],
}

#[repr(C)]
struct Place {
    /// 0: nothing, or being written.
    transaction: AtomicU64,
    at_us: AtomicI64,
}

impl Commits {
    fn place(&self, transaction: u64) -> &Place {
        &self.places[transaction as usize % PLACES]
    }

    /// Cannot fail: called in the commit callback. Two that write one place at the same moment commit at the same moment,
    /// so that it does not matter whose time is left there.
    pub fn note(&self, transaction: u64, at_us: i64) {
        let place = self.place(transaction);
        place.transaction.store(0, SeqCst);
        place.at_us.store(at_us, SeqCst);
        place.transaction.store(transaction, SeqCst);
    }

    /// As PostgreSQL's timestamps; `None` where it is not known (any more).
    pub fn of(&self, transaction: u64) -> Option<i64> {
        let place = self.place(transaction);
        let is_there = || place.transaction.load(SeqCst) == transaction;
        let at_us = is_there().then(|| place.at_us.load(SeqCst))?;
        is_there().then_some(at_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_known_until_a_later_one_takes_its_place() {
        let commits = Commits {
            places: [const {
                Place {
                    transaction: AtomicU64::new(0),
                    at_us: AtomicI64::new(0),
                }
            }; PLACES],
        };
        assert_eq!(commits.of(7), None);
        commits.note(7, 70);
        commits.note(8, 80);
        assert_eq!((commits.of(7), commits.of(8)), (Some(70), Some(80)));
        commits.note(7 + PLACES as u64, 90);
        assert_eq!(commits.of(7), None);
        assert_eq!(commits.of(7 + PLACES as u64), Some(90));
    }
}
