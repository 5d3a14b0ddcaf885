//! When a changed row is due: at once, spaced out where it changes again and again, or when it has been quiet.
//!
//! It never reads a clock and never holds a job: it is arithmetic on times, and a list of rows by time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use super::queue::RowKey;

/// A row that was taken up less than this ago waits so much longer for its next time, doubling up to the longest: a
/// thousand updates of one row in a second cost five calls, and a realtime row is never half a second behind.
const FIRST_SPACE: Duration = Duration::from_millis(100);
const LONGEST_SPACE: Duration = Duration::from_millis(400);
/// A row that was left alone for so long is an ordinary one again.
const CALM: Duration = Duration::from_secs(2);
/// Rows that are remembered for that. In a burst of more rows than this, no single one stands out.
const REMEMBERED: usize = 4_096;

/// How soon a pipeline's changed rows are due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// At once, but for a row that changes again and again.
    AtOnce,
    /// `debounce` after the row's last change, at the latest `max_delay` after its first.
    Quiet {
        debounce: Duration,
        max_delay: Duration,
    },
}

impl Pace {
    /// How long a change waits that is not kept in memory.
    pub fn delay(self) -> Duration {
        match self {
            Pace::AtOnce => Duration::ZERO,
            Pace::Quiet { debounce, .. } => debounce,
        }
    }
}

/// Rows that were taken up lately, and for how long each is to be left alone.
#[derive(Default)]
pub struct Lately {
    rows: HashMap<RowKey, (Instant, Duration)>,
    pruned: Option<Instant>,
}

impl Lately {
    /// A row is taken up.
    pub fn took(&mut self, row: &RowKey, now: Instant) {
        if let Some((at, space)) = self.rows.get_mut(row) {
            *space = if now.saturating_duration_since(*at) < CALM {
                (*space * 2).min(LONGEST_SPACE)
            } else {
                FIRST_SPACE
            };
            *at = now;
            return;
        }
        if self.rows.len() >= REMEMBERED {
            // Looked through once in a while, not for every row of a burst.
            if self
                .pruned
                .is_some_and(|at| now.saturating_duration_since(at) < CALM / 4)
            {
                return;
            }
            self.pruned = Some(now);
            self.rows
                .retain(|_, (at, _)| now.saturating_duration_since(*at) < CALM);
        }
        if self.rows.len() < REMEMBERED {
            self.rows.insert(row.clone(), (now, FIRST_SPACE));
        }
    }

    /// Until when a row that has changed now is left alone; `None`: it is due.
    pub fn spaced(&self, row: &RowKey, now: Instant) -> Option<Instant> {
        let (at, space) = self.rows.get(row)?;
        Some(*at + *space).filter(|due| *due > now)
    }
}

/// Rows by the time at which they may be due, a pipeline's together. A row that is put off meanwhile stays where it
/// is: whoever takes it out asks for its time of now.
#[derive(Default)]
pub struct Waiting {
    rows: BTreeMap<i32, BinaryHeap<Reverse<(Instant, RowKey)>>>,
}

impl Waiting {
    pub fn push(&mut self, row: RowKey, due: Instant) {
        self.rows
            .entry(row.pipeline)
            .or_default()
            .push(Reverse((due, row)));
    }

    /// Takes out the rows whose time has come.
    pub fn take_due(&mut self, now: Instant) -> Vec<RowKey> {
        let mut due = Vec::new();
        for rows in self.rows.values_mut() {
            while rows.peek().is_some_and(|Reverse((at, _))| *at <= now) {
                due.extend(rows.pop().map(|Reverse((_, row))| row));
            }
        }
        due
    }

    /// Takes out all of a pipeline's rows.
    pub fn take_all(&mut self, pipeline: i32) -> Vec<RowKey> {
        let rows = self.rows.remove(&pipeline).unwrap_or_default();
        rows.into_iter().map(|Reverse((_, row))| row).collect()
    }

    /// When the first of them may be due.
    pub fn next(&self) -> Option<Instant> {
        let firsts = self.rows.values().filter_map(BinaryHeap::peek);
        firsts.map(|Reverse((at, _))| *at).min()
    }

    pub fn count(&self, pipeline: i32) -> usize {
        self.rows.get(&pipeline).map_or(0, BinaryHeap::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn row(key: usize) -> RowKey {
        RowKey {
            pipeline: 1,
            key: Arc::from([key.to_string()]),
        }
    }

    /// How often a row that changes every millisecond for a second is taken up.
    #[test]
    fn a_row_that_changes_a_thousand_times_in_a_second_is_taken_up_five_times() {
        let start = Instant::now();
        let (mut lately, mut taken, mut due) = (Lately::default(), Vec::new(), None);
        for ms in 0..1_500 {
            let now = start + Duration::from_millis(ms);
            if ms < 1_000 && due.is_none() {
                due = Some(lately.spaced(&row(1), now).unwrap_or(now));
            }
            if due.is_some_and(|due| due <= now) {
                lately.took(&row(1), now);
                taken.push(ms);
                due = None;
            }
        }
        assert_eq!(taken, [0, 100, 300, 700, 1_100]);
        let later = start + Duration::from_millis(1_100) + CALM;
        assert_eq!(lately.spaced(&row(1), later), None);
        lately.took(&row(1), later);
        assert_eq!(lately.spaced(&row(1), later), Some(later + FIRST_SPACE));
    }

    #[test]
    fn rows_that_are_remembered_are_bounded_and_forgotten() {
        let start = Instant::now();
        let mut lately = Lately::default();
        for key in 0..REMEMBERED + 10 {
            lately.took(&row(key), start);
        }
        assert_eq!(lately.rows.len(), REMEMBERED);
        lately.took(&row(REMEMBERED + 10), start + CALM);
        assert_eq!(lately.rows.len(), 1);
    }

    #[test]
    fn rows_come_out_when_their_time_has_come() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut waiting = Waiting::default();
        for (key, ms) in [(1, 30), (2, 10), (3, 20)] {
            waiting.push(row(key), at(ms));
        }
        assert_eq!(waiting.next(), Some(at(10)));
        assert_eq!(waiting.take_due(at(20)), [row(2), row(3)]);
        assert_eq!(waiting.count(1), 1);
        assert_eq!(waiting.take_all(1), [row(1)]);
        assert_eq!(waiting.next(), None);
    }
}
