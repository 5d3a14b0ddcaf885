//! What has gone wrong lately for one pipeline, and how often anything has: classes, statuses and SQLSTATEs.
//!
//! It never holds a message: a provider's may quote a text, and PostgreSQL's a row.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst};

use serde::Serialize;

use crate::embed::failure::Class;

/// Kinds of failures that are remembered, of each pipeline.
const PLACES: usize = 8;

/// What a failure is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Temporary,
    Permanent,
    Provider,
    Configuration,
    /// A transaction of the worker's: rendering, storing, keeping or building failed with an SQLSTATE.
    Database,
}

impl Kind {
    pub const ALL: [Kind; 5] = [
        Kind::Temporary,
        Kind::Permanent,
        Kind::Provider,
        Kind::Configuration,
        Kind::Database,
    ];

    /// As dead letters call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Temporary => Class::Temporary.as_str(),
            Kind::Permanent => Class::Permanent.as_str(),
            Kind::Provider => Class::Provider.as_str(),
            Kind::Configuration => Class::Configuration.as_str(),
            Kind::Database => "database",
        }
    }

    /// For people, in words that hold nothing of the failure's own.
    pub fn meaning(self) -> &'static str {
        match self {
            Kind::Temporary => {
                "the provider could not answer a request, which may be the texts' fault or its own"
            }
            Kind::Permanent => "the provider refuses a text",
            Kind::Provider => "the provider is not there, too busy, or fails",
            Kind::Configuration => "the provider refuses the key, the model or the address",
            Kind::Database => "a transaction of the worker's has failed",
        }
    }
}

impl From<Class> for Kind {
    fn from(class: Class) -> Kind {
        match class {
            Class::Temporary => Kind::Temporary,
            Class::Permanent => Kind::Permanent,
            Class::Provider => Kind::Provider,
            Class::Configuration => Kind::Configuration,
        }
    }
}

/// One kind of failure of a pipeline, and how often it came.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    pub class: Kind,
    /// HTTP.
    pub status: Option<u16>,
    /// As PostgreSQL packs it.
    #[serde(skip)]
    pub sqlstate: Option<i32>,
    pub at_us: i64,
    pub count: u64,
}

#[repr(C)]
pub struct Failures {
    counts: [AtomicU64; Kind::ALL.len()],
    places: [Place; PLACES],
}

#[repr(C)]
struct Place {
    /// Odd while it is being written.
    version: AtomicU32,
    /// Kind, status and SQLSTATE, see [`pack`]; 0: nothing.
    what: AtomicU64,
    at_us: AtomicI64,
    count: AtomicU64,
}

fn pack(kind: Kind, status: Option<u16>, sqlstate: Option<i32>) -> u64 {
    let sqlstate = sqlstate.unwrap_or(0) as u32;
    (kind as u64 + 1) << 48 | u64::from(status.unwrap_or(0)) << 32 | u64::from(sqlstate)
}

impl Failures {
    /// One more; the kind that has not come for the longest is forgotten for a new one.
    pub fn note(&self, kind: Kind, status: Option<u16>, sqlstate: Option<i32>, at_us: i64) {
        self.counts[kind as usize].fetch_add(1, SeqCst);
        let what = pack(kind, status, sqlstate);
        let mut places = self.places.iter();
        let known = places.find(|place| place.what.load(SeqCst) == what);
        let oldest = || {
            self.places
                .iter()
                .min_by_key(|place| place.at_us.load(SeqCst))
        };
        let Some(place) = known.or_else(oldest) else {
            return;
        };
        let version = place.version.load(SeqCst);
        let free = version & 1 == 0
            && place
                .version
                .compare_exchange(version, version + 1, SeqCst, SeqCst)
                .is_ok();
        if !free {
            return; // another process notes one at this very moment: it is counted, and that is all
        }
        if place.what.swap(what, SeqCst) != what {
            place.count.store(0, SeqCst);
        }
        place.count.fetch_add(1, SeqCst);
        place.at_us.store(at_us, SeqCst);
        place.version.store(version.wrapping_add(2), SeqCst);
    }

    pub fn counts(&self) -> [u64; Kind::ALL.len()] {
        std::array::from_fn(|kind| self.counts[kind].load(SeqCst))
    }

    /// The latest first.
    pub fn lately(&self) -> Vec<Failure> {
        let mut lately: Vec<Failure> = self.places.iter().filter_map(Place::read).collect();
        lately.sort_by_key(|failure| std::cmp::Reverse(failure.at_us));
        lately
    }

    pub fn reset(&self) {
        self.counts.iter().for_each(|count| count.store(0, SeqCst));
        for place in &self.places {
            place.what.store(0, SeqCst);
            place.at_us.store(0, SeqCst);
            place.count.store(0, SeqCst);
        }
    }
}

impl Place {
    fn read(&self) -> Option<Failure> {
        let version = self.version.load(SeqCst);
        let (what, at_us, count) = (
            self.what.load(SeqCst),
            self.at_us.load(SeqCst),
            self.count.load(SeqCst),
        );
        let whole = version & 1 == 0 && self.version.load(SeqCst) == version;
        let kind = (what >> 48) as usize;
        let class = *Kind::ALL.get(kind.checked_sub(1).filter(|_| whole)?)?;
        Some(Failure {
            class,
            status: Some((what >> 32) as u16).filter(|status| *status != 0),
            sqlstate: Some(what as u32 as i32).filter(|sqlstate| *sqlstate != 0),
            at_us,
            count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Failures {
        Failures {
            counts: [const { AtomicU64::new(0) }; Kind::ALL.len()],
            places: [const {
                Place {
                    version: AtomicU32::new(0),
                    what: AtomicU64::new(0),
                    at_us: AtomicI64::new(0),
                    count: AtomicU64::new(0),
                }
            }; PLACES],
        }
    }

    #[test]
    fn equal_failures_are_one_with_a_count_and_the_latest_comes_first() {
        let failures = none();
        failures.note(Kind::Provider, Some(429), None, 10);
        failures.note(Kind::Database, None, Some(-7), 20);
        failures.note(Kind::Provider, Some(429), None, 30);
        let lately = failures.lately();
        assert_eq!(lately.len(), 2);
        assert_eq!(
            (lately[0].status, lately[0].count, lately[0].at_us),
            (Some(429), 2, 30)
        );
        assert_eq!(
            (lately[1].class, lately[1].sqlstate),
            (Kind::Database, Some(-7))
        );
        assert_eq!(failures.counts(), [0, 0, 2, 0, 1]);
    }

    #[test]
    fn the_kind_that_has_not_come_for_the_longest_is_forgotten_and_stays_counted() {
        let failures = none();
        for status in 1..=PLACES as u16 + 1 {
            failures.note(Kind::Permanent, Some(status), None, status.into());
        }
        let lately = failures.lately();
        assert_eq!(lately.len(), PLACES);
        assert!(
            lately
                .iter()
                .all(|failure| failure.status != Some(1) && failure.count == 1)
        );
        assert_eq!(
            failures.counts()[Kind::Permanent as usize],
            PLACES as u64 + 1
        );
    }
}
