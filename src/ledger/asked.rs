//! What sessions have sent by `embed` and `search`: counted in shared memory, since they write nothing, and put into the
//! ledger by the worker.
//!
//! Nobody waits and nothing is locked: any thread may add. What is here when the server ends is lost.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64};

use crate::embed::sent::Sent;

/// Pairs of a pipeline and a server that are told apart; the requests of others are not counted.
const SLOTS: usize = 1_024;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const NAMED: u32 = 2;

/// What was asked of a server, for a pipeline or for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    pub database: u32,
    /// By the number of its account; 0: none.
    pub pipeline: i32,
    pub server: u32,
}

/// Zeroed memory holds nothing.
#[repr(C)]
pub struct Asked {
    slots: [Slot; SLOTS],
}

#[repr(C)]
struct Slot {
    state: AtomicU32,
    database: AtomicU32,
    pipeline: AtomicI32,
    server: AtomicU32,
    /// Something was added since the last [`Asked::take`].
    news: AtomicBool,
    requests: AtomicU64,
    inputs: AtomicU64,
    bytes: AtomicU64,
    tokens: AtomicU64,
    estimated: AtomicU64,
}

impl Slot {
    fn is_of(&self, asker: Asker) -> bool {
        self.state.load(SeqCst) == NAMED && self.asker() == asker
    }

    fn asker(&self) -> Asker {
        Asker {
            database: self.database.load(SeqCst),
            pipeline: self.pipeline.load(SeqCst),
            server: self.server.load(SeqCst),
        }
    }

    fn claim(&self, asker: Asker) -> bool {
        let claimed = self
            .state
            .compare_exchange(FREE, TAKEN, SeqCst, SeqCst)
            .is_ok();
        if claimed {
            self.database.store(asker.database, SeqCst);
            self.pipeline.store(asker.pipeline, SeqCst);
            self.server.store(asker.server, SeqCst);
            self.state.store(NAMED, SeqCst);
        }
        claimed
    }
}

impl Asked {
    /// Adds what a session has sent. True where nothing of it waited to be taken: the worker does not know yet.
    pub fn add(&self, asker: Asker, sent: Sent) -> bool {
        if sent.is_nothing() {
            return false;
        }
        let known = self.slots.iter().find(|slot| slot.is_of(asker));
        // Two that claim at once make two slots of one asker, which does no harm.
        let slot = known.or_else(|| self.slots.iter().find(|slot| slot.claim(asker)));
        let Some(slot) = slot else {
            return false;
        };
        for (counter, more) in [
            (&slot.requests, sent.requests),
            (&slot.inputs, sent.inputs),
            (&slot.bytes, sent.bytes),
            (&slot.tokens, sent.tokens),
            (&slot.estimated, sent.estimated),
        ] {
            counter.fetch_add(more, SeqCst);
        }
        !slot.news.swap(true, SeqCst)
    }

    fn slots_of(&self, database: u32) -> impl Iterator<Item = &Slot> {
        self.slots
            .iter()
            .take_while(|slot| slot.state.load(SeqCst) != FREE)
            .filter(move |slot| slot.database.load(SeqCst) == database)
    }

    /// Whether something in a database waits to be taken.
    pub fn has_news(&self, database: u32) -> bool {
        self.slots_of(database).any(|slot| slot.news.load(SeqCst))
    }

    /// What was added in a database since the last call.
    pub fn take(&self, database: u32) -> Vec<(Asker, Sent)> {
        let slots = self.slots_of(database);
        let news = slots.filter(|slot| slot.news.swap(false, SeqCst));
        let taken = news.map(|slot| {
            let sent = Sent {
                requests: slot.requests.swap(0, SeqCst),
                inputs: slot.inputs.swap(0, SeqCst),
                bytes: slot.bytes.swap(0, SeqCst),
                tokens: slot.tokens.swap(0, SeqCst),
                estimated: slot.estimated.swap(0, SeqCst),
            };
            (slot.asker(), sent)
        });
        taken.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Box<Asked> {
        // SAFETY: atomics, all of them zero: memory that holds nothing.
        unsafe { Box::new_zeroed().assume_init() }
    }

    fn sent(tokens: u64) -> Sent {
        Sent {
            requests: 1,
            tokens,
            ..Sent::default()
        }
    }

    fn asker(database: u32, pipeline: i32) -> Asker {
        Asker {
            database,
            pipeline,
            server: 5,
        }
    }

    #[test]
    fn what_is_added_is_taken_once_by_its_database() {
        let asked = asked();
        assert!(asked.add(asker(1, 7), sent(10)));
        asked.add(asker(2, 7), sent(20));
        assert!(!asked.add(asker(1, 7), sent(30)), "is known to be there");
        assert!(asked.has_news(1) && !asked.has_news(3));
        asked.add(asker(1, 0), sent(40));
        let mut taken = asked.take(1);
        taken.sort_by_key(|(asker, _)| asker.pipeline);
        let tokens: Vec<u64> = taken.iter().map(|(_, sent)| sent.tokens).collect();
        assert_eq!(tokens, [40, 40]);
        assert_eq!(taken[1].1.requests, 2);
        assert!(asked.take(1).is_empty() && !asked.has_news(1));
        assert_eq!(asked.take(2).len(), 1);
    }

    #[test]
    fn threads_that_add_at_once_lose_nothing() {
        let asked = asked();
        std::thread::scope(|scope| {
            for pipeline in 0..8 {
                let asked = &asked;
                scope.spawn(move || {
                    for _ in 0..1_000 {
                        asked.add(asker(1, pipeline % 2), sent(1));
                    }
                });
            }
        });
        let total: u64 = asked.take(1).iter().map(|(_, sent)| sent.tokens).sum();
        assert_eq!(total, 8_000);
    }

    #[test]
    fn more_askers_than_there_is_room_for_are_left_out() {
        let asked = asked();
        for pipeline in 0..2 * SLOTS as i32 {
            asked.add(asker(1, pipeline), sent(1));
        }
        assert_eq!(asked.take(1).len(), SLOTS);
    }
}
