//! Vectors of texts that were asked for lately, for all sessions: what one has paid for another need not.
//!
//! It holds hashes and vectors, never a text. Nobody waits: a reader that meets a writer finds nothing, a writer that
//! meets another leaves its vector out.
//!
//! Sources: sequence locks as in Boehm, "Can Seqlocks Get Along With Programming Language Memory Models?" (2012);
//! the clock algorithm for what makes room (Corbató 1968).

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, fence};

use sha2::{Digest, Sha256};

use super::endpoint::{Endpoint, Purpose};

/// With [`MAX_DIMENSIONS`] floats each: 4 MiB, and 16 kB for the rest.
const SLOTS: usize = 256;
/// A longer vector is not kept; few models have one.
const MAX_DIMENSIONS: usize = 4_096;
/// In nanoseconds, an hour: a model that was exchanged behind its name is soon asked, however much a text is in demand.
const MAX_AGE: i64 = 3_600_000_000_000;

/// What a vector is found by: everything that makes it, the text included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key([u64; 4]);

impl Key {
    /// Servers whose options or keys differ in anything at all share nothing.
    pub fn of(endpoint: &Endpoint, purpose: Purpose, input: &str) -> Key {
        let server = format!("{endpoint:?}");
        let mut hash = Sha256::new();
        hash.update((server.len() as u64).to_le_bytes());
        hash.update(server);
        hash.update(match purpose {
            Purpose::Document => [0],
            Purpose::Query => [1],
        });
        hash.update(input);
        let hash = hash.finalize();
        let mut key = [0; 4];
        for (to, from) in key.iter_mut().zip(hash.as_chunks::<8>().0) {
            *to = u64::from_le_bytes(*from);
        }
        Key(key)
    }
}

/// The vectors. Zeroed memory holds none.
#[repr(C)]
pub struct Recent {
    hand: AtomicU32,
    slots: [Slot; SLOTS],
    /// Apart from the slots, so that looking through those reads little memory.
    vectors: [[AtomicU32; MAX_DIMENSIONS]; SLOTS],
}

#[repr(C)]
struct Slot {
    /// Odd while it is written; 0 before the first time.
    version: AtomicU32,
    /// Asked for since the hand last came by.
    used: AtomicU32,
    stored_at: AtomicI64,
    dimensions: AtomicU64,
    key: [AtomicU64; 4],
}

impl Slot {
    fn holds(&self, key: Key) -> bool {
        let words = self.key.iter().map(|word| word.load(Relaxed));
        words.eq(key.0)
    }
}

impl Recent {
    pub const fn new() -> Recent {
        Recent {
            hand: AtomicU32::new(0),
            slots: [const {
                Slot {
                    version: AtomicU32::new(0),
                    used: AtomicU32::new(0),
                    stored_at: AtomicI64::new(0),
                    dimensions: AtomicU64::new(0),
                    key: [const { AtomicU64::new(0) }; 4],
                }
            }; SLOTS],
            vectors: [const { [const { AtomicU32::new(0) }; MAX_DIMENSIONS] }; SLOTS],
        }
    }

    /// The vector of `key`, if it is there and not older than an hour. `now` as of [`super::rate::now`].
    pub fn get(&self, key: Key, now: i64) -> Option<Vec<f32>> {
        let mut slots = self.slots.iter().zip(&self.vectors);
        slots.find_map(|(slot, vector)| {
            let version = slot.version.load(Acquire);
            if version == 0 || !version.is_multiple_of(2) || !slot.holds(key) {
                return None;
            }
            let age = now.saturating_sub(slot.stored_at.load(Relaxed));
            let dimensions = slot.dimensions.load(Relaxed) as usize;
            let numbers = vector.get(..dimensions)?.iter();
            let numbers = numbers.map(|bits| f32::from_bits(bits.load(Relaxed)));
            let numbers: Vec<f32> = numbers.collect();
            fence(Acquire);
            let whole = slot.version.load(Relaxed) == version;
            (whole && age < MAX_AGE).then(|| {
                slot.used.store(1, Relaxed);
                numbers
            })
        })
    }

    /// Keeps a vector, in place of one that nobody has asked for lately.
    pub fn put(&self, key: Key, numbers: &[f32], now: i64) {
        if numbers.len() > MAX_DIMENSIONS {
            return;
        }
        let known = self.slots.iter().position(|slot| slot.holds(key));
        if let Some(index) = known.or_else(|| self.least_wanted()) {
            self.write(index, key, numbers, now);
        }
    }

    fn least_wanted(&self) -> Option<usize> {
        let mut hand = std::iter::repeat_with(|| self.hand.fetch_add(1, Relaxed) as usize % SLOTS);
        hand.by_ref()
            .take(2 * SLOTS)
            .find(|&index| self.slots[index].used.swap(0, Relaxed) == 0)
    }

    fn write(&self, index: usize, key: Key, numbers: &[f32], now: i64) {
        let slot = &self.slots[index];
        let version = slot.version.load(Relaxed);
        let writing = version.wrapping_add(1);
        let free = version.is_multiple_of(2)
            && (slot.version)
                .compare_exchange(version, writing, Acquire, Relaxed)
                .is_ok();
        if !free {
            return;
        }
        fence(Release);
        for (to, from) in slot.key.iter().zip(key.0) {
            to.store(from, Relaxed);
        }
        slot.stored_at.store(now, Relaxed);
        slot.dimensions.store(numbers.len() as u64, Relaxed);
        for (to, from) in self.vectors[index].iter().zip(numbers) {
            to.store(from.to_bits(), Relaxed);
        }
        slot.used.store(0, Relaxed);
        // 0 stands for a slot without a vector.
        let written = writing.wrapping_add(1);
        slot.version
            .store(if written == 0 { 2 } else { written }, Release);
    }
}

impl Default for Recent {
    fn default() -> Recent {
        Recent::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::testing::endpoint;

    fn key(number: u64) -> Key {
        Key([number; 4])
    }

    #[test]
    fn what_was_put_is_found_until_an_hour_has_passed() {
        static RECENT: Recent = Recent::new();
        assert_eq!(RECENT.get(key(0), 0), None, "an empty slot holds nothing");
        RECENT.put(key(1), &[1.0, 2.0], 5);
        RECENT.put(key(2), &[3.0; MAX_DIMENSIONS], 5);
        RECENT.put(key(3), &[4.0; MAX_DIMENSIONS + 1], 5);
        assert_eq!(RECENT.get(key(1), 6), Some(vec![1.0, 2.0]));
        assert_eq!(RECENT.get(key(2), 6).map(|v| v.len()), Some(MAX_DIMENSIONS));
        assert_eq!(RECENT.get(key(3), 6), None);
        assert_eq!(RECENT.get(key(1), 5 + MAX_AGE), None);
        RECENT.put(key(1), &[9.0], 5 + MAX_AGE);
        assert_eq!(RECENT.get(key(1), 6 + MAX_AGE), Some(vec![9.0]));
    }

    #[test]
    fn what_nobody_asks_for_makes_room_for_what_is_new() {
        static RECENT: Recent = Recent::new();
        for number in 1..=10 * SLOTS as u64 {
            RECENT.put(key(number), &[number as f32], 0);
            assert_eq!(RECENT.get(key(1), 0), Some(vec![1.0]), "always in demand");
        }
        let last = 10 * SLOTS as u64;
        let kept = (2..=last).filter(|number| RECENT.get(key(*number), 0).is_some());
        assert!(kept.count() > SLOTS / 2);
        assert!(RECENT.get(key(last), 0).is_some());
        assert!(RECENT.get(key(2), 0).is_none());
    }

    #[test]
    fn no_reader_sees_half_a_vector() {
        static RECENT: Recent = Recent::new();
        let numbers = |number: u64| vec![number as f32; 700];
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                scope.spawn(move || {
                    for round in 0..20_000_u64 {
                        // Few slots' worth of room, so that they are written again and again.
                        let number = 1 + (round * 7 + thread * 13) % 300;
                        match RECENT.get(key(number), 0) {
                            Some(found) => assert_eq!(found, numbers(number)),
                            None => RECENT.put(key(number), &numbers(number), 0),
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn everything_that_makes_a_vector_is_in_its_key() {
        let plain = endpoint("http://127.0.0.1:1/v1", &[]);
        let of = |endpoint: &Endpoint| Key::of(endpoint, Purpose::Query, "text");
        let same = endpoint("http://127.0.0.1:1/v1", &[]);
        assert_eq!(of(&plain), of(&same));
        assert_ne!(of(&plain), Key::of(&plain, Purpose::Document, "text"));
        assert_ne!(of(&plain), Key::of(&plain, Purpose::Query, "other"));
        for other in [
            ("url", "http://127.0.0.1:2/v1"),
            ("model", "other"),
            ("dimensions", "4"),
            ("query_prefix", "query: "),
            ("extra_body", r#"{"a": 1}"#),
            ("normalize", "on"),
            ("send_dimensions", "on"),
            ("headers", r#"{"a": "b"}"#),
            ("api_key_env", "OTHER_API_KEY"),
            ("proxy", "http://127.0.0.1:3"),
        ] {
            let server = endpoint("http://127.0.0.1:1/v1", &[other]);
            assert_ne!(of(&plain), of(&server), "{other:?}");
        }
    }
}
