//! Jobs in memory: changes of one row coalesced into one job, one flight a row at a time.
//!
//! Each job is tied to a ticket: a stretch of the change log or a slice of a backfill. A ticket is done when
//! all its jobs are, and only then may the checkpoint (or the backfill's position) pass it; what is in here
//! when the worker dies is read again. It never forgets a row that changes while its request is in flight:
//! that row is due again when it lands.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

pub use super::job::{Job, RowKey};
use super::pace::{Lately, Pace, Waiting};

/// Removals first, then what changed, then what was there before; what is not due yet comes when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    Removal,
    Live,
    Backfill,
    Quiet,
}

#[derive(Debug)]
struct Entry {
    job: Job,
    ticket: Option<u64>,
    lane: Lane,
    since: Instant,
    taken: bool,
    /// In lane Quiet: when it is due.
    due: Option<Instant>,
    /// Changed again while taken.
    again: Option<Again>,
}

/// A change of a row that is taken.
#[derive(Clone, Copy, Debug)]
struct Again {
    ticket: Option<u64>,
    /// `None`: due as soon as it has landed.
    pace: Option<Pace>,
    changes: u32,
    /// It is a row of the job table, of which what is in flight does not know.
    stored: bool,
}

/// What a ticket stands for; handed back when it is done.
#[derive(Clone, Debug, PartialEq)]
pub enum Ticket {
    /// The change log up to this snapshot, as `pg_snapshot` writes it.
    Log(String),
    /// A pipeline's rows up to this key; `None`: the last slice.
    Backfill {
        pipeline: i32,
        round: i32,
        up_to: Option<Vec<String>>,
        rows: i64,
    },
}

#[derive(Default)]
pub struct Queue {
    entries: HashMap<RowKey, Entry>,
    waiting: BTreeMap<(i32, Lane), VecDeque<RowKey>>,
    /// The rows of lane Quiet, by time.
    quiet: Waiting,
    lately: Lately,
    /// Rows that were deleted while they are taken: their vector must not wait for the flight to land.
    passing: BTreeMap<i32, Vec<RowKey>>,
    tickets: BTreeMap<u64, (Ticket, usize)>,
    next_ticket: u64,
    /// When it was last looked for jobs that have waited for long.
    looked_at: Option<Instant>,
}

const LONG: usize = 1_000;
const LOOK: Duration = Duration::from_millis(200);

impl Queue {
    /// Opens a ticket; jobs added with it hold it open. Close the adding with [`Queue::finished_tickets`].
    pub fn open(&mut self, ticket: Ticket) -> u64 {
        self.next_ticket += 1;
        self.tickets.insert(self.next_ticket, (ticket, 0));
        self.next_ticket
    }

    /// A row is due. One that waits already is due once; one that is taken is due again afterwards.
    pub fn add(&mut self, row: RowKey, lane: Lane, ticket: Option<u64>) {
        self.add_job(Job::new(row), lane, ticket);
    }

    pub fn add_job(&mut self, job: Job, lane: Lane, ticket: Option<u64>) {
        self.place(job, lane, ticket, None, None);
    }

    /// A row has changed; `pace` says when it is due.
    pub fn add_change(&mut self, row: RowKey, ticket: Option<u64>, pace: Pace, now: Instant) {
        self.change(Job::new(row), ticket, pace, now);
    }

    fn change(&mut self, job: Job, ticket: Option<u64>, pace: Pace, now: Instant) {
        let due = match pace {
            Pace::AtOnce => self.lately.spaced(&job.row, now),
            Pace::Quiet { debounce, .. } => Some(now + debounce),
        };
        let lane = due.map_or(Lane::Live, |_| Lane::Quiet);
        self.place(job, lane, ticket, Some(pace), due);
    }

    fn place(
        &mut self,
        job: Job,
        lane: Lane,
        ticket: Option<u64>,
        pace: Option<Pace>,
        due: Option<Instant>,
    ) {
        let row = job.row.clone();
        let Some(entry) = self.entries.get_mut(&row) else {
            self.entries.insert(
                row.clone(),
                Entry {
                    job,
                    ticket,
                    lane,
                    since: Instant::now(),
                    taken: false,
                    due,
                    again: None,
                },
            );
            self.hold(ticket);
            return self.wait(row, lane, due);
        };
        // A row that is looked at for another reason has not changed.
        let changes = match lane {
            Lane::Removal | Lane::Backfill => 0,
            Lane::Live | Lane::Quiet => job.changes,
        };
        entry.job.attempt = entry.job.attempt.max(job.attempt);
        if entry.taken {
            if lane == Lane::Removal {
                self.passing
                    .entry(row.pipeline)
                    .or_default()
                    .push(row.clone());
            }
            match &mut entry.again {
                Some(_) if lane == Lane::Backfill => {}
                Some(again) => {
                    again.pace = again.pace.and(pace);
                    again.changes += changes;
                    again.stored |= job.stored;
                }
                None if lane == Lane::Backfill => {}
                None => {
                    entry.again = Some(Again {
                        ticket,
                        pace,
                        changes,
                        stored: job.stored,
                    });
                    self.hold(ticket);
                }
            }
            return;
        }
        entry.job.stored |= job.stored;
        entry.job.changes += changes;
        // It waits already: once is enough, in the more urgent place of the two; a quiet one is put off.
        if let (Some(Pace::Quiet { max_delay, .. }), Some(_), Some(due)) = (pace, entry.due, due) {
            entry.due = Some(due.min(entry.since + max_delay));
        }
        let moves = lane < entry.lane;
        if moves {
            (entry.lane, entry.due) = (lane, None);
        }
        if entry.ticket.is_none() && !entry.job.stored {
            entry.ticket = ticket;
            self.hold(ticket);
        }
        if moves {
            self.wait(row, lane, None);
        }
    }

    fn wait(&mut self, row: RowKey, lane: Lane, due: Option<Instant>) {
        match due {
            Some(due) => self.quiet.push(row, due),
            None => self
                .waiting
                .entry((row.pipeline, lane))
                .or_default()
                .push_back(row),
        }
    }

    /// Quiet rows whose time has come are live.
    pub fn release_due(&mut self, now: Instant) {
        for row in self.quiet.take_due(now) {
            match self.entries.get_mut(&row) {
                Some(entry) if entry.taken || entry.lane != Lane::Quiet => {}
                Some(Entry { due: Some(due), .. }) if *due > now => {
                    let due = *due;
                    self.quiet.push(row, due);
                }
                Some(entry) => {
                    (entry.lane, entry.due) = (Lane::Live, None);
                    self.wait(row, Lane::Live, None);
                }
                None => {}
            }
        }
    }

    /// All of a pipeline's quiet rows are live.
    pub fn release_all(&mut self, pipeline: i32) {
        for row in self.quiet.take_all(pipeline) {
            if let Some(entry) = self.entries.get_mut(&row)
                && !entry.taken
                && entry.lane == Lane::Quiet
            {
                (entry.lane, entry.due) = (Lane::Live, None);
                self.wait(row, Lane::Live, None);
            }
        }
    }

    /// When a quiet row may be due.
    pub fn next_due(&self) -> Option<Instant> {
        self.quiet.next()
    }

    /// Takes up to `most` waiting jobs of a lane, oldest first.
    pub fn take(&mut self, pipeline: i32, lane: Lane, most: usize) -> Vec<Job> {
        let Some(waiting) = self.waiting.get_mut(&(pipeline, lane)) else {
            return Vec::new();
        };
        let (mut taken, now) = (Vec::new(), Instant::now());
        while taken.len() < most {
            let Some(row) = waiting.pop_front() else {
                break;
            };
            if let Some(entry) = self.entries.get_mut(&row)
                && !entry.taken
                && entry.lane == lane
            {
                entry.taken = true;
                if lane == Lane::Live {
                    self.lately.took(&row, now);
                }
                taken.push(entry.job.clone());
            }
        }
        taken
    }

    /// A change of every row at once (TRUNCATE): what is taken is due again when it lands.
    pub fn touch_taken(&mut self, pipeline: i32, ticket: Option<u64>) {
        let mut touched = 0;
        for entry in self.entries.values_mut() {
            if entry.job.row.pipeline == pipeline && entry.taken && entry.again.is_none() {
                entry.again = Some(Again {
                    ticket,
                    pace: None,
                    changes: 0,
                    stored: false,
                });
                touched += 1;
            }
        }
        for _ in 0..touched {
            self.hold(ticket);
        }
    }

    /// Taken rows of a pipeline that were deleted since: to be looked at now, and again when they land.
    pub fn take_passing(&mut self, pipeline: i32) -> Vec<Job> {
        let rows = self.passing.remove(&pipeline).unwrap_or_default();
        rows.into_iter().map(Job::new).collect()
    }

    /// Whether a taken row has changed since it was taken.
    pub fn changed_since(&self, row: &RowKey) -> bool {
        self.entries
            .get(row)
            .is_some_and(|entry| entry.again.is_some())
    }

    /// A taken job has ended, well or not: it lets go of its ticket. A row that changed meanwhile waits again.
    pub fn finish(&mut self, row: &RowKey) {
        let Some(entry) = self.entries.remove(row) else {
            return;
        };
        self.release(entry.ticket);
        if let Some(again) = entry.again {
            let job = Job {
                changes: again.changes,
                stored: again.stored,
                ..Job::new(row.clone())
            };
            match again.pace {
                Some(pace) => self.change(job, again.ticket, pace, Instant::now()),
                None => self.add_job(job, Lane::Live, again.ticket),
            }
            self.release(again.ticket); // it is held by the row that waits now
        }
    }

    /// A taken job has become a row of the job table and ends here. Where its row changed meanwhile and waits again, that
    /// is what the row of the table stands for.
    pub fn written_down(&mut self, row: &RowKey) {
        self.finish(row);
        if let Some(entry) = self.entries.get_mut(row) {
            entry.job.stored = true;
        }
    }

    /// A taken job has become a row of the job table: it lets go of its ticket and goes on.
    pub fn detach(&mut self, row: &RowKey) {
        let Some(entry) = self.entries.get_mut(row) else {
            return;
        };
        entry.job.stored = true;
        let ticket = entry.ticket.take();
        self.release(ticket);
    }

    /// A taken job waits again, unharmed.
    pub fn put_back(&mut self, row: &RowKey, lane: Lane) {
        let Some(entry) = self.entries.get_mut(row) else {
            return;
        };
        entry.taken = false;
        entry.lane = lane;
        if let Some(again) = entry.again.take() {
            entry.job.changes += again.changes;
            entry.job.stored |= again.stored;
            self.release(again.ticket);
        }
        self.waiting
            .entry((row.pipeline, lane))
            .or_default()
            .push_front(row.clone());
    }

    /// Every change of a pipeline that waits, taken at once: to be written down.
    pub fn take_changes(&mut self, pipeline: i32) -> Vec<Job> {
        [Lane::Removal, Lane::Live]
            .into_iter()
            .flat_map(|lane| self.take(pipeline, lane, usize::MAX))
            .collect()
    }

    /// Forgets a pipeline that is no more.
    pub fn forget(&mut self, pipeline: i32) {
        let rows: Vec<RowKey> = self
            .entries
            .keys()
            .filter(|row| row.pipeline == pipeline)
            .cloned()
            .collect();
        for row in rows {
            if let Some(entry) = self.entries.remove(&row) {
                self.release(entry.ticket);
                if let Some(again) = entry.again {
                    self.release(again.ticket);
                }
            }
        }
        self.waiting.retain(|(of, _), _| *of != pipeline);
        self.quiet.take_all(pipeline);
        self.passing.remove(&pipeline);
        self.tickets.retain(|_, (ticket, _)| !matches!(ticket, Ticket::Backfill { pipeline: of, .. } if *of == pipeline));
    }

    /// Rows that have changed and are not due yet, taken at once: to be written down with the time that is left.
    pub fn take_quiet(&mut self, pipeline: i32, now: Instant) -> Vec<(Job, Duration)> {
        let mut taken = Vec::new();
        for row in self.quiet.take_all(pipeline) {
            if let Some(entry) = self.entries.get_mut(&row)
                && !entry.taken
                && let Some(due) = entry.due
            {
                entry.taken = true;
                taken.push((entry.job.clone(), due.saturating_duration_since(now)));
            }
        }
        taken
    }

    pub fn waits(&self, pipeline: i32, lane: Lane) -> usize {
        if lane == Lane::Quiet {
            return self.quiet.count(pipeline);
        }
        self.waiting.get(&(pipeline, lane)).map_or(0, VecDeque::len)
    }

    /// All that waits, in whatever lane.
    pub fn waiting(&self, pipeline: i32) -> usize {
        [Lane::Removal, Lane::Live, Lane::Backfill, Lane::Quiet]
            .into_iter()
            .map(|lane| self.waits(pipeline, lane))
            .sum()
    }

    pub fn is_taken(&self, row: &RowKey) -> bool {
        self.entries.get(row).is_some_and(|entry| entry.taken)
    }

    /// Whether the row waits or is taken.
    pub fn holds(&self, row: &RowKey) -> bool {
        self.entries.contains_key(row)
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn has_slice(&self, pipeline: i32) -> bool {
        self.tickets.values().any(|(ticket, _)| matches!(ticket, Ticket::Backfill { pipeline: of, .. } if *of == pipeline))
    }

    /// Pipelines with a waiting job of the log that is older than `age`: it keeps the checkpoint from moving.
    /// A long queue is looked through a few times a second at the most.
    pub fn older_than(&mut self, age: Duration) -> Vec<i32> {
        let now = Instant::now();
        let looked = self.looked_at.map(|at| now.saturating_duration_since(at));
        if self.entries.len() > LONG && looked.is_some_and(|ago| ago < LOOK) {
            return Vec::new();
        }
        self.looked_at = Some(now);
        let mut pipelines: Vec<i32> = self
            .entries
            .values()
            .filter(|entry| {
                !entry.taken
                    && entry.ticket.is_some()
                    && entry.lane != Lane::Backfill
                    && now.saturating_duration_since(entry.since) > age
            })
            .map(|entry| entry.job.row.pipeline)
            .collect();
        pipelines.sort_unstable();
        pipelines.dedup();
        pipelines
    }

    /// Tickets that are done, in order: a stretch of the log only when all before it are, a pipeline's slice likewise.
    pub fn finished_tickets(&mut self) -> Vec<Ticket> {
        let mut finished = Vec::new();
        let mut log_open = false;
        let mut open: Vec<i32> = Vec::new();
        self.tickets.retain(|_, (ticket, jobs)| {
            let blocked = match ticket {
                Ticket::Log(_) => log_open,
                Ticket::Backfill { pipeline, .. } => open.contains(pipeline),
            };
            if *jobs == 0 && !blocked {
                finished.push(ticket.clone());
                return false;
            }
            match ticket {
                Ticket::Log(_) => log_open = true,
                Ticket::Backfill { pipeline, .. } => open.push(*pipeline),
            }
            true
        });
        finished
    }

    /// Whether what was read of the log is not all finished.
    pub fn has_open_log(&self) -> bool {
        let mut tickets = self.tickets.values();
        tickets.any(|(ticket, _)| matches!(ticket, Ticket::Log(_)))
    }

    fn hold(&mut self, ticket: Option<u64>) {
        if let Some((_, jobs)) = ticket.and_then(|ticket| self.tickets.get_mut(&ticket)) {
            *jobs += 1;
        }
    }

    fn release(&mut self, ticket: Option<u64>) {
        if let Some((_, jobs)) = ticket.and_then(|ticket| self.tickets.get_mut(&ticket)) {
            *jobs = jobs.saturating_sub(1);
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
