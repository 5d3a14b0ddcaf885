//! What is measured of a pipeline, of a database and of the cluster, for `recsync.metrics()` and who else watches.
//!
//! Nobody locks: each number has one process that sets it, or is only ever added to. It outlives the worker, and starts
//! at zero with the server. It never holds a text or a key of a row.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use super::failures::Failures;
use super::histogram::Histogram;
use super::money::Money;
use super::text::Text;
use crate::embed::traffic::Traffic;

/// What a row event did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Insert,
    Update,
    Delete,
    Truncate,
}

impl Op {
    pub const ALL: [Op; 4] = [Op::Insert, Op::Update, Op::Delete, Op::Truncate];

    /// As the change log has it.
    pub fn of(op: char) -> Op {
        match op {
            'I' => Op::Insert,
            'D' => Op::Delete,
            'T' => Op::Truncate,
            _ => Op::Update,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Truncate => "truncate",
        }
    }
}

/// Of a pipeline, of a table of a recommender's interactions, or of a hook.
#[repr(C)]
pub struct Meters {
    /// 0: its worker has not said yet; 1: a pipeline; 2: a recommender; 3: a hook.
    pub kind: AtomicU32,
    /// 1: somebody has paused it; 2: recsync has, for a reason; 3: the month's budget is spent.
    pub paused: AtomicU32,
    pub name: Text<256>,
    pub server: Text<64>,
    /// Dead letters, and rows of the job table (of a hook: what it has not been told yet): as of the last look at them.
    pub dead: AtomicI64,
    pub jobs: AtomicI64,
    /// Since when the oldest of these waits, and the oldest change in the worker's memory; 0: there is none.
    pub job_since_us: AtomicI64,
    pub waits_since_us: AtomicI64,
    /// When the oldest of its models was trained; 0: there is none.
    pub trained_us: AtomicI64,
    /// From commit to where the change shows, by [`Op`]. Of a recommender the first alone is used.
    pub latency: [Histogram; Op::ALL.len()],
    /// Of these, those whose commit's time was not known: counted from when the statement began.
    pub estimated: AtomicU64,
    /// Changes that became visible and were not in `latency`, because too many waited to remember them all.
    pub unmeasured: AtomicU64,
    /// Requests to the provider, answered well or not.
    pub requests: Histogram,
    pub failures: Failures,
    pub provider: Provider,
    pub money: Money,
}

/// A pipeline's server, as its worker sees it.
#[repr(C)]
pub struct Provider {
    /// 0: closed, 1: half-open, 2: open.
    pub breaker: AtomicU32,
    /// Requests that it gets at a time at the most, now and ever, and those that it has.
    pub window: AtomicU32,
    pub most: AtomicU32,
    pub flights: AtomicU32,
    /// Until when it is left alone, for its failures or its limits; 0: it is not.
    pub rests_until_us: AtomicI64,
    /// Its account, by which [`crate::embed::rate::Rates`] knows what is left of its limits; 0: it is not asked.
    pub account: AtomicU64,
    /// The limits a minute that are kept; 0: there is none.
    pub requests_per_minute: AtomicU64,
    pub tokens_per_minute: AtomicU64,
}

/// Of a database.
#[repr(C)]
pub struct Facts {
    pub name: Text<64>,
    /// When the worker, or somebody who asked, last looked at the tables; 0: nobody has.
    pub looked_us: AtomicI64,
    pub log_bytes: AtomicI64,
    /// When the oldest transaction began that keeps dead rows and the log's changes from going away; 0: there is none.
    pub held_since_us: AtomicI64,
    /// The library and the extension are of different versions.
    pub suspended: AtomicU32,
}

/// Of the cluster.
#[repr(C)]
pub struct Watch {
    /// When somebody last asked for numbers: workers look at their tables for them.
    pub asked_us: AtomicI64,
    /// The launcher's, which says what only it knows.
    pub launcher_pid: AtomicU32,
    pub in_recovery: AtomicU32,
    pub disabled: AtomicU32,
    /// Bodies of requests and of their answers.
    pub traffic: Traffic,
}

impl Meters {
    pub fn reset(&self) {
        self.name.set("");
        self.server.set("");
        for number in [&self.kind, &self.paused] {
            number.store(0, SeqCst);
        }
        for number in [
            &self.dead,
            &self.jobs,
            &self.job_since_us,
            &self.waits_since_us,
            &self.trained_us,
        ] {
            number.store(0, SeqCst);
        }
        self.latency.iter().for_each(Histogram::reset);
        self.requests.reset();
        self.failures.reset();
        self.estimated.store(0, Relaxed);
        self.unmeasured.store(0, Relaxed);
        self.provider.reset();
        self.money.reset();
    }
}

impl Provider {
    pub fn reset(&self) {
        for number in [&self.breaker, &self.window, &self.most, &self.flights] {
            number.store(0, SeqCst);
        }
        self.rests_until_us.store(0, SeqCst);
        for number in [
            &self.account,
            &self.requests_per_minute,
            &self.tokens_per_minute,
        ] {
            number.store(0, SeqCst);
        }
    }
}

impl Facts {
    pub fn reset(&self) {
        self.name.set("");
        for number in [&self.looked_us, &self.log_bytes, &self.held_since_us] {
            number.store(0, SeqCst);
        }
        self.suspended.store(0, SeqCst);
    }
}

/// The clock as PostgreSQL's timestamps, on any thread.
pub fn now_us() -> i64 {
    const UNIX_EPOCH_US: i64 = 946_684_800_000_000;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_micros() as i64 - UNIX_EPOCH_US)
}
