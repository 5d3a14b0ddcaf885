//! Vectors that have come and are not stored yet, of one pipeline: whose turn it is, and how many at a time.
//!
//! It never touches the database: it is a queue and a sum of times.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::dispatch::queue::{Job, Lane, RowKey};
use crate::store::Embedded;

/// Rows that are stored together, all of one lane.
pub struct Part {
    pub lane: Lane,
    /// When the first of them came.
    pub since: Instant,
    pub embedded: Vec<Embedded>,
}

impl Part {
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.embedded.iter().map(|embedded| &embedded.job)
    }

    /// Jobs that are not rows yet: from now on they are, once the caller has written them down.
    pub fn store_jobs(&mut self) -> Vec<Job> {
        store_jobs(self.embedded.iter_mut())
    }

    /// Takes out the rows at these places.
    pub fn take(&mut self, places: &[usize]) -> Part {
        let mut place = 0;
        let taken = self.embedded.extract_if(.., |_| {
            place += 1;
            places.contains(&(place - 1))
        });
        Part {
            embedded: taken.collect(),
            ..*self
        }
    }

    fn split_off(&mut self, at: usize) -> Option<Part> {
        (at < self.embedded.len()).then(|| Part {
            embedded: self.embedded.split_off(at),
            ..*self
        })
    }
}

/// A pipeline's vectors that are not stored yet. Rows that somebody waits for (live ones) come first.
pub struct Unstored {
    live: VecDeque<(Instant, Embedded)>,
    backfill: VecDeque<(Instant, Embedded)>,
    /// What could not be stored together, by halves, and what a writer that ended had: stored as they are.
    parts: VecDeque<Part>,
    /// Those whose row somebody has locked, and when they are tried again.
    locked: Vec<(Instant, Part)>,
    pub cost: Cost,
}

/// Live rows beyond this many are a bulk of changes, which writers may take as they take a backfill.
pub const BULK: usize = 64;
/// Vectors that wait while more of them are asked for: about as many as are stored in this time,
const STOCK: Duration = Duration::from_secs(1);
/// but at least and at most so many.
const LEAST_STOCK: usize = 256;
pub const MOST_STOCK: usize = 4_096;

/// When a row that was locked is tried again: after a fourth of the time that its vector has waited,
const AGAIN: u32 = 4;
/// but at least and at most this,
const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(2);
/// and this much later for each that is locked, so that trying takes a fraction of the time.
const PER_ROW: Duration = Duration::from_millis(2);

impl Unstored {
    pub fn new(slow: bool) -> Unstored {
        Unstored {
            live: VecDeque::new(),
            backfill: VecDeque::new(),
            parts: VecDeque::new(),
            locked: Vec::new(),
            cost: Cost::guess(slow),
        }
    }

    /// Those that can be stored now.
    pub fn len(&self) -> usize {
        let parts: usize = self.parts.iter().map(|part| part.embedded.len()).sum();
        self.live.len() + self.backfill.len() + parts
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those that wait for their row.
    pub fn locked(&self) -> impl Iterator<Item = &Embedded> {
        self.locked.iter().flat_map(|(_, part)| &part.embedded)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Embedded> {
        let parts = self.parts.iter().flat_map(|part| &part.embedded);
        let waiting = self.live.iter().chain(&self.backfill);
        let waiting = waiting.map(|(_, embedded)| embedded);
        waiting.chain(parts).chain(self.locked())
    }

    pub fn locked_count(&self) -> usize {
        self.locked
            .iter()
            .map(|(_, part)| part.embedded.len())
            .sum()
    }

    /// Rows that somebody has locked.
    pub fn push_locked(&mut self, part: Part) {
        if part.embedded.is_empty() {
            return;
        }
        let rows = self.locked_count() + part.embedded.len();
        let pause = (part.since.elapsed() / AGAIN).clamp(SOON, LATE) + PER_ROW * rows as u32;
        self.locked.push((Instant::now() + pause, part));
    }

    /// Those of them whose time has come can be tried again.
    pub fn release(&mut self, now: Instant) {
        let due = self.locked.extract_if(.., |(at, _)| *at <= now);
        self.parts.extend(due.map(|(_, part)| part));
    }

    /// When the next of them is tried again.
    pub fn next_try(&self) -> Option<Instant> {
        self.locked.iter().map(|(at, _)| *at).min()
    }

    /// Whether so much waits that nothing more may come in the lane. Rows that somebody keeps locked stop a backfill
    /// long before they stop live changes.
    pub fn is_full(&self, lane: Lane) -> bool {
        let most = match lane {
            Lane::Backfill => MOST_STOCK / 4,
            _ => MOST_STOCK,
        };
        let waiting = vectors(self.iter()) - self.locked_count();
        waiting >= MOST_STOCK || self.locked_count() >= most
    }

    pub fn push(&mut self, lane: Lane, embedded: Embedded) {
        self.of(lane).push_back((Instant::now(), embedded));
    }

    /// Rows that have to be stored as they are, before others of their lane.
    pub fn push_part(&mut self, part: Part) {
        if !part.embedded.is_empty() {
            self.parts.push_front(part);
        }
    }

    /// By halves: what cannot be stored together.
    pub fn push_halves(&mut self, mut part: Part) {
        let half = part.split_off(part.embedded.len() / 2);
        for part in half.into_iter().chain([part]) {
            self.push_part(part);
        }
    }

    /// Whether there is something of the lane to be stored.
    pub fn has(&self, lane: Lane) -> bool {
        let waiting = match lane {
            Lane::Backfill => &self.backfill,
            _ => &self.live,
        };
        !waiting.is_empty() || self.parts.iter().any(|part| part.lane == lane)
    }

    /// The next rows of the lane, at most so many.
    pub fn take(&mut self, lane: Lane, most: usize) -> Option<Part> {
        if let Some(at) = self.parts.iter().position(|part| part.lane == lane) {
            let mut part = self.parts.remove(at)?;
            self.parts.extend(part.split_off(most));
            return Some(part);
        }
        let waiting = self.of(lane);
        let since = waiting.front()?.0;
        let count = most.min(waiting.len());
        Some(Part {
            lane,
            since,
            embedded: waiting
                .drain(..count)
                .map(|(_, embedded)| embedded)
                .collect(),
        })
    }

    /// Rows that a writer may take: a bulk of changes, then backfill.
    pub fn bulk(&self) -> usize {
        self.len() - self.live.len().min(BULK)
    }

    /// The next of them, at most so many.
    pub fn take_bulk(&mut self, most: usize) -> Option<Part> {
        let live = self.live.len() > BULK || self.parts.iter().any(|part| part.lane == Lane::Live);
        match live {
            true => self.take(Lane::Live, most),
            false => self.take(Lane::Backfill, most),
        }
    }

    /// Whether more vectors of the lane may be asked for, where `storers` processes store them.
    pub fn has_room(&self, lane: Lane, storers: usize) -> bool {
        let stored = self.cost.rows_in(STOCK * storers as u32);
        let waiting = match lane {
            Lane::Backfill => &self.backfill,
            _ => &self.live,
        };
        waiting.len() < stored.clamp(LEAST_STOCK, MOST_STOCK)
            && vectors(waiting.iter().map(|(_, embedded)| embedded)) < MOST_STOCK
    }

    /// Backfilled rows that have changed since are somebody's who waits: their vectors, which are paid for and may be
    /// right, are stored first.
    pub fn promote(&mut self, has_changed: impl Fn(&RowKey) -> bool) {
        let waiting = std::mem::take(&mut self.backfill);
        let (mut changed, others): (VecDeque<_>, VecDeque<_>) = waiting
            .into_iter()
            .partition(|(_, embedded)| has_changed(&embedded.job.row));
        self.backfill = others;
        self.live.append(&mut changed);
    }

    /// Jobs of live rows that have waited for `age` and are not rows yet; see [`Part::store_jobs`].
    pub fn overdue(&mut self, age: Duration) -> Vec<Job> {
        let old = |since: &Instant| since.elapsed() >= age;
        let live = self.live.iter_mut().filter(|(since, _)| old(since));
        let locked = self.locked.iter_mut().map(|(_, part)| part);
        let parts = self
            .parts
            .iter_mut()
            .chain(locked)
            .filter(|part| part.lane != Lane::Backfill && old(&part.since));
        let parts = parts.flat_map(|part| part.embedded.iter_mut());
        store_jobs(live.map(|(_, embedded)| embedded).chain(parts))
    }

    /// All of it, to be let go.
    pub fn drain(&mut self) -> Vec<RowKey> {
        let locked = self.locked.drain(..).map(|(_, part)| part);
        let parts = self.parts.drain(..).chain(locked);
        let parts = parts.flat_map(|part| part.embedded);
        let waiting = self.live.drain(..).chain(self.backfill.drain(..));
        let rows = parts.chain(waiting.map(|(_, embedded)| embedded));
        rows.map(|embedded| embedded.job.row).collect()
    }

    fn of(&mut self, lane: Lane) -> &mut VecDeque<(Instant, Embedded)> {
        match lane {
            Lane::Backfill => &mut self.backfill,
            _ => &mut self.live,
        }
    }
}

fn vectors<'a>(embedded: impl Iterator<Item = &'a Embedded>) -> usize {
    embedded.map(|row| row.chunks.len().max(1)).sum()
}

fn store_jobs<'a>(embedded: impl Iterator<Item = &'a mut Embedded>) -> Vec<Job> {
    embedded
        .filter(|embedded| !embedded.job.stored)
        .map(|embedded| {
            embedded.job.stored = true;
            embedded.job.clone()
        })
        .collect()
}

/// What a row's store takes, by the last stores.
pub struct Cost {
    seconds: f64,
    rows: f64,
}

impl Cost {
    /// What the past counts against the next store.
    const PAST: f64 = 0.5;

    /// Before anything is known. `slow`: see [`Pipeline::is_slow_to_store`](crate::catalog::pipeline::Pipeline::is_slow_to_store).
    pub fn guess(slow: bool) -> Cost {
        let seconds = if slow { 0.003 } else { 0.000_1 };
        Cost { seconds, rows: 1.0 }
    }

    pub fn measured(&mut self, rows: usize, took: Duration) {
        self.seconds = self.seconds * Cost::PAST + took.as_secs_f64();
        self.rows = self.rows * Cost::PAST + rows as f64;
    }

    /// How many rows are stored in that time; one at the least.
    pub fn rows_in(&self, time: Duration) -> usize {
        let rows = time.as_secs_f64() * self.rows / self.seconds.max(1e-6);
        rows.clamp(1.0, 1e6) as usize
    }
}

#[cfg(test)]
#[path = "unstored_tests.rs"]
mod tests;
