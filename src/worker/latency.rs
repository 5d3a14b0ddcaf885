//! How long changes take from their commit to where they show: remembered by row until then.
//!
//! Of a row that changes many times before its vector is there, the first change counts, and no other: it has waited the
//! longest. What is given up, or turns out to change nothing, counts not at all. It never holds more than so many rows.

use std::collections::HashMap;

use super::leader::Leader;
use crate::dispatch::queue::RowKey;
use crate::dispatch::read::Block;
use crate::shared::Shared;
use crate::shared::commits::Commits;
use crate::shared::meters::{Meters, Op, now_us};

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

/// Rows that are remembered, of all pipelines together.
const MOST: usize = 200_000;

/// A committed change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    transaction: u64,
    op: Op,
    /// As PostgreSQL's timestamps: its commit, or, where that is not known, when its statement began, which is never later.
    at_us: i64,
    is_commit: bool,
}

impl Change {
    pub fn of(block: &Block, commits: &Commits) -> Change {
        let mut change = Change {
            transaction: block.transaction,
            op: Op::of(block.op),
            at_us: block.changed_at,
            is_commit: false,
        };
        change.look_up(commits);
        change
    }

    /// A worker may read a change before its session has said when it committed.
    fn look_up(&mut self, commits: &Commits) {
        if !self.is_commit
            && let Some(at_us) = commits.of(self.transaction)
        {
            (self.at_us, self.is_commit) = (at_us, true);
        }
    }

    /// Counts it: it shows since now.
    pub fn shows(mut self, shared: &Shared, meters: &Meters) {
        self.look_up(&shared.commits);
        meters.latency[self.op as usize].observe(now_us() - self.at_us);
        if !self.is_commit {
            meters.estimated.fetch_add(1, Relaxed);
        }
    }
}

/// A row's first change that does not show yet, and the first since the row was taken for it.
#[derive(Debug)]
struct Awaited {
    first: Change,
    again: Option<Change>,
}

#[derive(Default)]
pub struct Latency {
    rows: HashMap<RowKey, Awaited>,
    truncated: HashMap<i32, Change>,
    /// Changes of rows for which there was no room.
    pub unmeasured: HashMap<i32, u64>,
}

impl Latency {
    /// `taken`: what becomes of an earlier change of the row is under way, and this one comes after it.
    pub fn changed(&mut self, row: &RowKey, change: Change, taken: impl FnOnce() -> bool) {
        if let Some(awaited) = self.rows.get_mut(row) {
            if awaited.again.is_none() && taken() {
                awaited.again = Some(change);
            }
        } else if self.rows.len() < MOST {
            let awaited = Awaited {
                first: change,
                again: None,
            };
            self.rows.insert(row.clone(), awaited);
        } else {
            *self.unmeasured.entry(row.pipeline).or_default() += 1;
        }
    }

    pub fn was_truncated(&mut self, pipeline: i32, change: Change) {
        self.truncated.entry(pipeline).or_insert(change);
    }

    /// The row is as its first change has made it, and has `changed_again` since or not.
    pub fn shows(&mut self, row: &RowKey, changed_again: impl FnOnce() -> bool) -> Option<Change> {
        let awaited = self.rows.remove(row)?;
        if changed_again() {
            let again = awaited.again.unwrap_or(awaited.first);
            let awaited = Awaited {
                first: again,
                again: None,
            };
            self.rows.insert(row.clone(), awaited);
        }
        Some(awaited.first)
    }

    /// What it changed to since it was taken shows already: it is gone.
    pub fn passes(&mut self, row: &RowKey) -> Option<Change> {
        self.rows.get_mut(row)?.again.take()
    }

    pub fn truncation_shows(&mut self, pipeline: i32) -> Option<Change> {
        self.truncated.remove(&pipeline)
    }

    /// Nothing of these is waited for any more.
    pub fn keep(&mut self, wanted: impl Fn(i32) -> bool) {
        self.rows.retain(|row, _| wanted(row.pipeline));
        self.truncated.retain(|pipeline, _| wanted(*pipeline));
        self.unmeasured.retain(|pipeline, _| wanted(*pipeline));
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.truncated.is_empty()
    }

    /// Since when each pipeline's oldest change waits.
    pub fn oldest(&self) -> HashMap<i32, i64> {
        let rows = self.rows.iter();
        let rows = rows.map(|(row, awaited)| (row.pipeline, awaited.first.at_us));
        let truncated = self.truncated.iter();
        let all = rows.chain(truncated.map(|(pipeline, change)| (*pipeline, change.at_us)));
        let mut oldest = HashMap::new();
        for (pipeline, at_us) in all {
            let known = oldest.entry(pipeline).or_insert(at_us);
            *known = at_us.min(*known);
        }
        oldest
    }
}

impl Leader {
    /// Changes of rows of one pipeline have come to their end: they show, or do not matter any more. Before the queue lets go of them.
    pub(super) fn change_ends<'a>(&mut self, rows: impl Iterator<Item = &'a RowKey>, shows: bool) {
        if self.latency.is_empty() {
            return; // a backfill
        }
        let mut meters = None;
        for row in rows {
            let again = || self.queue.changed_since(row);
            let Some(change) = self.latency.shows(row, again).filter(|_| shows) else {
                continue;
            };
            // They are one pipeline's.
            if meters.is_none() {
                meters = self.meters_of(row.pipeline);
            }
            if let Some(meters) = meters {
                change.shows(self.shared, meters);
            }
        }
    }

    pub(super) fn meters_of(&self, id: i32) -> Option<&'static Meters> {
        let counters = self.shared.counters(self.database_oid(), id)?;
        Some(self.shared.meters(counters))
    }

    /// Since when the oldest change of each pipeline waits.
    pub(super) fn publish_lag(&mut self) {
        let database = self.database_oid();
        let oldest = self.latency.oldest();
        for id in self.pipelines.keys().chain(self.recommenders.keys()) {
            if let Some(counters) = self.shared.counters(database, *id) {
                let since = oldest.get(id).copied().unwrap_or(0);
                let meters = self.shared.meters(counters);
                meters.waits_since_us.store(since, SeqCst);
                let unmeasured = self.latency.unmeasured.remove(id).unwrap_or(0);
                meters.unmeasured.fetch_add(unmeasured, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn change(at_us: i64) -> Change {
        Change {
            transaction: 1,
            op: Op::Update,
            at_us,
            is_commit: true,
        }
    }

    fn row(pipeline: i32) -> RowKey {
        RowKey {
            pipeline,
            key: Arc::from(["1".to_owned()]),
        }
    }

    #[test]
    fn of_changes_that_wait_together_the_first_counts() {
        let mut latency = Latency::default();
        latency.changed(&row(1), change(10), || false);
        latency.changed(&row(1), change(20), || false);
        assert_eq!(latency.oldest().get(&1), Some(&10));
        assert_eq!(latency.shows(&row(1), || false), Some(change(10)));
        assert_eq!(latency.shows(&row(1), || false), None);
        assert!(latency.rows.is_empty());
    }

    #[test]
    fn a_change_of_a_row_in_flight_waits_for_the_next_flight() {
        let mut latency = Latency::default();
        latency.changed(&row(1), change(10), || false);
        latency.changed(&row(1), change(20), || true);
        latency.changed(&row(1), change(30), || true);
        assert_eq!(latency.shows(&row(1), || true), Some(change(10)));
        assert_eq!(latency.shows(&row(1), || false), Some(change(20)));
        // What was put back and sent with the later text shows with it.
        latency.changed(&row(1), change(40), || false);
        latency.changed(&row(1), change(50), || true);
        assert_eq!(latency.shows(&row(1), || false), Some(change(40)));
        assert_eq!(latency.shows(&row(1), || false), None);
    }

    #[test]
    fn what_nobody_waits_for_is_forgotten() {
        let mut latency = Latency::default();
        latency.changed(&row(1), change(10), || false);
        latency.changed(&row(2), change(20), || false);
        latency.was_truncated(2, change(5));
        assert_eq!(latency.oldest().get(&2), Some(&5));
        latency.keep(|pipeline| pipeline == 1);
        assert_eq!(latency.oldest().len(), 1);
        assert_eq!(latency.truncation_shows(2), None);
    }

    /// Of what is counted of a row this is what takes time: the rest is a few additions a batch.
    #[test]
    #[ignore = "a measurement, see benches/README.md: cargo test --release --lib what_the_counters_cost -- --ignored --nocapture"]
    fn what_the_counters_cost_a_row() {
        use crate::shared::histogram::Histogram;
        const ROWS: usize = 10_000;
        const ROUNDS: usize = 50;
        // SAFETY: atomics, all of them zero: memory that holds nothing.
        let histogram: Box<Histogram> = unsafe { Box::new_zeroed().assume_init() };
        let rows: Vec<RowKey> = (0..ROWS)
            .map(|number| RowKey {
                pipeline: 1,
                key: Arc::from([number.to_string()]),
            })
            .collect();
        let mut latency = Latency::default();
        let start = std::time::Instant::now();
        for _ in 0..ROUNDS {
            for row in &rows {
                latency.changed(row, change(now_us()), || false);
            }
            for row in &rows {
                let shown = latency.shows(row, || false).unwrap();
                histogram.observe(now_us() - shown.at_us);
            }
        }
        let nanoseconds = start.elapsed().as_nanos() / (ROWS * ROUNDS) as u128;
        assert_eq!(histogram.read().count(), (ROWS * ROUNDS) as u64);
        println!("{nanoseconds} ns a row");
    }
}
