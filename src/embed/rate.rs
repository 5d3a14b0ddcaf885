//! Limits a minute, kept by all processes that share a table of counters: who asks is told when to go.
//!
//! Each limit is one number, the time at which all that was granted would have arrived at an even pace. A grant moves
//! it by compare-and-exchange; nobody ever locks, waits or sleeps here, and the clock is the caller's. What was granted
//! first goes first, so that a large request is not kept out by small ones. No 60 seconds ever see more than the limit.
//!
//! Source: generic cell rate algorithm (ITU-T Recommendation I.371, annex A, virtual scheduling), with the time of a
//! grant that does not conform yet put off instead of refused.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use super::left::{Left, Said};

/// Accounts that are known at a time; a cluster has as many as it has keys and models.
const ENTRIES: usize = 256;
/// How much later than its time a grant may be used, and a request may come in at the provider than another that was
/// sent with it. A limit is kept in a minute and this together, which costs a sixtieth of the rate.
pub const SLACK: i64 = 1_000_000_000;
/// A minute of the provider's, in nanoseconds.
const MINUTE: i64 = 60_000_000_000 + SLACK;
/// The largest limit: an interval stays some ten nanoseconds long.
const MAX_LIMIT: u64 = 1_000_000_000;

/// Nanoseconds of a clock that all processes of the machine share and nobody sets.
pub fn now() -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills in the struct that it is given; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    // The fields' types differ between platforms.
    #[allow(clippy::unnecessary_cast)]
    let nanoseconds = time.tv_sec as i64 * 1_000_000_000 + time.tv_nsec as i64;
    nanoseconds
}

/// From `now` until `at`; zero where that has passed.
pub fn until(at: i64, now: i64) -> Duration {
    Duration::from_nanos(at.saturating_sub(now).try_into().unwrap_or(0))
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A worker, for rows. It leaves a quarter of what may go at once to sessions.
    Worker,
    /// A session, for a person who waits.
    Session,
}

/// A limit a minute as a pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    limit: i64,
    /// What may go at once after a pause.
    burst: i64,
    /// Nanoseconds a unit.
    interval: i64,
}

impl Pace {
    /// A tenth of the limit at once, the rest evenly: together not more than the limit in a minute, whenever it begins.
    pub fn per_minute(limit: u64) -> Pace {
        let limit = limit.clamp(1, MAX_LIMIT);
        let burst = (limit / 10).max(1);
        Pace {
            limit: limit as i64,
            burst: burst as i64,
            interval: MINUTE.unsigned_abs().div_ceil(limit - burst + 1) as i64,
        }
    }

    /// The limit itself.
    pub fn limit(&self) -> u64 {
        self.limit.unsigned_abs()
    }

    /// What may go at once after a pause.
    pub fn burst(&self) -> u64 {
        self.burst.unsigned_abs()
    }

    /// More units than the limit count as all of it: such a request has a minute of its own.
    fn units(&self, count: u64) -> i64 {
        i64::try_from(count).unwrap_or(i64::MAX).min(self.limit)
    }

    /// When `units` conform, the counter being at `arrival`. More than the burst go after as long a pause as they take.
    fn start(&self, arrival: i64, units: i64, asker: Asker) -> i64 {
        let burst = match asker {
            Asker::Worker => self.burst - self.burst / 4,
            Asker::Session => self.burst,
        };
        arrival.saturating_add((units - burst) * self.interval)
    }

    /// How many may go at once to a session, the counter being at `arrival`: none while more was granted ahead.
    fn left(&self, arrival: i64, now: i64) -> Left {
        let granted = (arrival.saturating_sub(now).max(0) + self.interval - 1) / self.interval;
        Left {
            now: (self.burst - granted).max(0).unsigned_abs(),
            limit: Some(self.limit()),
        }
    }

    /// Where the counter is once `units` have gone at `at`.
    fn charged(&self, arrival: i64, units: i64, at: i64) -> i64 {
        arrival.max(at).saturating_add(units * self.interval)
    }
}

/// One account's counters. All of them 0: nothing has been sent yet.
#[derive(Debug)]
#[repr(C)]
pub struct Entry {
    /// 0: free.
    key: AtomicU64,
    requests: AtomicI64,
    tokens: AtomicI64,
    /// Until when the provider has asked everybody to wait.
    rest: AtomicI64,
    /// What the provider has said is left of requests and of tokens.
    said: [Said; 2],
}

impl Entry {
    const fn new() -> Entry {
        Entry {
            key: AtomicU64::new(0),
            requests: AtomicI64::new(0),
            tokens: AtomicI64::new(0),
            rest: AtomicI64::new(0),
            said: [Said::nothing(), Said::nothing()],
        }
    }

    /// What the provider has said of requests, and of tokens.
    pub fn said(&self) -> [&Said; 2] {
        self.said.each_ref()
    }

    /// What is left of the limits on requests and on tokens; `None` where there is no limit that is known.
    pub fn left(&self, limits: Limits, now: i64) -> [Option<Left>; 2] {
        let own = [
            (limits.requests, &self.requests),
            (limits.tokens, &self.tokens),
        ];
        std::array::from_fn(|which| {
            let (pace, counter) = own[which];
            let own = pace.map(|pace| pace.left(counter.load(SeqCst), now));
            Left::narrower(own, self.said[which].left(now))
        })
    }

    /// Nobody sends before `at`.
    pub fn rest_until(&self, at: i64) {
        self.rest.fetch_max(at, SeqCst);
    }

    /// Until when nobody sends.
    pub fn rests_until(&self) -> i64 {
        self.rest.load(SeqCst)
    }

    /// Whether its counters say no more than new ones would.
    fn is_idle(&self, now: i64) -> bool {
        let times = [&self.requests, &self.tokens, &self.rest];
        times.iter().all(|time| time.load(SeqCst) < now - MINUTE)
    }

    /// One request of `tokens` tokens, by those limits that there are: granted for now or later, but not for later than
    /// `latest`.
    ///
    /// # Errors
    /// When it could go, where that is later than `latest`. Nothing is charged then.
    pub fn ask(
        &'static self,
        limits: Limits,
        tokens: u64,
        asker: Asker,
        now: i64,
        latest: i64,
    ) -> Result<Grant, i64> {
        let request = limits.requests.map(|pace| (pace, 1));
        let tokens = limits.tokens.map(|pace| (pace, pace.units(tokens)));
        loop {
            let (one, many) = (self.requests.load(SeqCst), self.tokens.load(SeqCst));
            let start = |wanted: Option<(Pace, i64)>, arrival| {
                wanted.map_or(now, |(pace, units)| pace.start(arrival, units, asker))
            };
            let at = now.max(start(request, one)).max(start(tokens, many));
            if at > latest {
                return Err(at);
            }
            let mut grant = Grant {
                entry: self,
                at,
                requests: None,
                tokens: None,
            };
            // Where another was faster the grant is dropped, which takes back what it has charged.
            if let Some((pace, units)) = request {
                match Charge::make(&self.requests, pace, units, one, at) {
                    Some(charge) => grant.requests = Some(charge),
                    None => continue,
                }
            }
            if let Some((pace, units)) = tokens {
                match Charge::make(&self.tokens, pace, units, many, at) {
                    Some(charge) => grant.tokens = Some(charge),
                    None => continue,
                }
            }
            return Ok(grant);
        }
    }
}

/// What limits an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub requests: Option<Pace>,
    pub tokens: Option<Pace>,
}

/// What was charged to one counter.
#[derive(Debug)]
struct Charge {
    pace: Pace,
    units: i64,
    before: i64,
    after: i64,
}

impl Charge {
    fn make(counter: &AtomicI64, pace: Pace, units: i64, before: i64, at: i64) -> Option<Charge> {
        let after = pace.charged(before, units, at);
        let made = counter.compare_exchange(before, after, SeqCst, SeqCst);
        made.ok().map(|_| Charge {
            pace,
            units,
            before,
            after,
        })
    }
}

/// The right to send one request at a time. Dropped unused, it is given back, unless somebody has been granted a later
/// one since.
#[derive(Debug)]
pub struct Grant {
    entry: &'static Entry,
    at: i64,
    requests: Option<Charge>,
    tokens: Option<Charge>,
}

impl Grant {
    /// Not before this.
    pub fn at(&self) -> i64 {
        self.at
    }

    /// Too late to use it.
    pub fn has_lapsed(&self, now: i64) -> bool {
        now - self.at >= SLACK
    }

    /// Tokens that it is for, at most as many as the limit; `None` where they are not limited.
    pub fn tokens(&self) -> Option<u64> {
        let charge = self.tokens.as_ref()?;
        Some(charge.units.unsigned_abs())
    }

    /// The request is sent.
    pub fn spend(mut self) -> Spent {
        self.requests = None;
        Spent {
            entry: self.entry,
            tokens: self.tokens.take(),
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let counters = [
            (&self.entry.requests, self.requests.take()),
            (&self.entry.tokens, self.tokens.take()),
        ];
        for (counter, charge) in counters {
            if let Some(charge) = charge {
                let _ = counter.compare_exchange(charge.after, charge.before, SeqCst, SeqCst);
            }
        }
    }
}

/// A grant that was used.
#[derive(Debug)]
pub struct Spent {
    entry: &'static Entry,
    tokens: Option<Charge>,
}

impl Spent {
    /// What the provider has counted instead of the estimate.
    pub fn correct(self, tokens: u64, now: i64) {
        let Some(charge) = self.tokens else {
            return;
        };
        let more = charge.pace.units(tokens) - charge.units;
        // Less counts only while the charge still delays somebody: later it would be a gift.
        if more > 0 || now <= charge.after {
            let counter = &self.entry.tokens;
            counter.fetch_add(more * charge.pace.interval, SeqCst);
        }
    }
}

/// The counters of all accounts. Zeroed memory is an empty table.
#[repr(C)]
pub struct Rates {
    entries: [Entry; ENTRIES],
}

/// For a process without shared memory, and for accounts beyond the table.
pub static LOCAL: Rates = Rates::new();

impl Rates {
    pub const fn new() -> Rates {
        Rates {
            entries: [const { Entry::new() }; ENTRIES],
        }
    }

    /// The counters of `key` (not 0): its own, free ones, or those of an account that has been idle for a minute;
    /// `None` where all are in use. Ask for them anew each time: idle ones may have got another owner. A grant of the
    /// former owner's may then count for the new one, which does not matter: it is one in a minute.
    pub fn entry(&self, key: u64, now: i64) -> Option<&Entry> {
        if let Some(entry) = self.known(key) {
            return Some(entry);
        }
        let take =
            |entry: &&Entry, from| match entry.key.compare_exchange(from, key, SeqCst, SeqCst) {
                Ok(_) => {
                    entry.said.iter().for_each(Said::forget); // the former owner's
                    true
                }
                Err(other) => other == key,
            };
        let free = |entry: &&Entry| entry.key.load(SeqCst) == 0 && take(entry, 0);
        let idle = |entry: &&Entry| {
            let owner = entry.key.load(SeqCst);
            entry.is_idle(now) && take(entry, owner)
        };
        let mut entries = self.entries.iter();
        entries
            .find(free)
            .or_else(|| self.entries.iter().find(idle))
    }

    /// The counters of `key`, where it has some.
    pub fn known(&self, key: u64) -> Option<&Entry> {
        let mut entries = self.entries.iter();
        entries.find(|entry| entry.key.load(SeqCst) == key)
    }

    /// What is left of an account's limits: see [`Entry::left`]. One that has sent nothing has all of it.
    pub fn left(&self, key: u64, limits: Limits, now: i64) -> [Option<Left>; 2] {
        static IDLE: Entry = Entry::new();
        match key {
            0 => [None, None],
            _ => self.known(key).unwrap_or(&IDLE).left(limits, now),
        }
    }

    /// The counters of `key`, or those of another account, so that both go more slowly than they might.
    pub fn entry_or_shared(&self, key: u64, now: i64) -> &Entry {
        let shared = &self.entries[key as usize % ENTRIES];
        self.entry(key, now).unwrap_or(shared)
    }
}

impl Default for Rates {
    fn default() -> Rates {
        Rates::new()
    }
}

#[cfg(test)]
#[path = "rate_tests.rs"]
mod tests;
