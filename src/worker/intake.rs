//! What comes in: changes of the log, jobs that are due, slices of backfills; and how far the checkpoint may move.
//!
//! It never renders a row: a job is a key.

use pgrx::pg_sys;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::calendar::Due;
use super::latency::Change;
use super::leader::{Leader, PATIENCE};
use super::process::{Failed, transaction};
use super::rest::works;
use super::running::State;
use super::upkeep;
use crate::dispatch::backfill;
use crate::dispatch::jobs::{self, Again, Put};
use crate::dispatch::pace::Pace;
use crate::dispatch::queue::{Job, Lane as QueueLane, RowKey, Ticket};
use crate::dispatch::read::Block;

/// Changes of one pipeline kept in memory; the rest is written down as jobs.
pub(super) const MOST_IN_MEMORY: usize = 100_000;

/// Why all rows of a table are to be looked at that somebody has written to as a replica.
const UNSEEN: &str = "rows were written with session_replication_role = replica";

/// The same, where the server is left alone for now: what cannot be sent must not hold up the checkpoint, for
/// which others may wait.
pub(super) const REST_PATIENCE: Duration = Duration::from_millis(200);

impl Leader {
    /// The change log becomes jobs.
    pub(super) fn dispatch(&mut self) -> std::result::Result<(), Failed> {
        let reader = &mut self.reader;
        let page = transaction(|| reader.read())?;
        if page.blocks.is_empty() && page.complete.is_none() {
            return Ok(());
        }
        // A pipeline that was declared a moment ago: its first changes may be here before its declaration is.
        if page
            .blocks
            .iter()
            .any(|block| !self.sources.contains(&block.source_id))
        {
            self.load()?;
            self.sources
                .extend(page.blocks.iter().map(|block| block.source_id));
        }
        let ticket = self.queue.open(match &page.complete {
            Some(snapshot) => Ticket::Log(snapshot.to_string()),
            None => Ticket::Log(String::new()),
        });
        for running in self.pipelines.values_mut().filter_map(State::running) {
            running.calendar.look()?;
        }
        let mut put_down = PutDown::new();
        self.advise_unseen(&page.blocks)?;
        self.tell_of_gone_items(&page.blocks)?;
        for block in &page.blocks {
            self.busy_at = Instant::now();
            self.dispatch_block(block, ticket, &mut put_down);
            self.dispatch_to_recommenders(block, ticket);
        }
        self.start_over()?;
        self.note_changes();
        for ((id, delay), (again, jobs)) in put_down {
            write_down(id, &together(jobs), delay, again)?;
            self.job_due_at(id, Instant::now() + delay);
        }
        if !page.blocks.is_empty() {
            self.has_read();
        }
        Ok(())
    }

    /// Of tables that somebody has written to as a replica all rows should be looked at: that is written before the
    /// checkpoint may pass.
    fn advise_unseen(&mut self, blocks: &[Block]) -> std::result::Result<(), Failed> {
        let unseen = |source| {
            let mut blocks = blocks.iter();
            blocks.any(|block| block.op == 'R' && block.source_id == source)
        };
        let mut advised = Vec::new();
        for (id, state) in &mut self.pipelines {
            if let Some(running) = state.running()
                && unseen(running.pipeline.source_id)
            {
                running.pipeline.filling.advised = true;
                advised.push(*id);
            }
        }
        if advised.is_empty() {
            return Ok(());
        }
        transaction(|| backfill::advise(&advised, UNSEEN))
    }

    /// Once a page, not once a change: when each pipeline that had one last had one. What it has ready of rows of the
    /// backfill that have changed is of no use: they are live now.
    fn note_changes(&mut self) {
        let database = self.database_oid();
        for (id, state) in &mut self.pipelines {
            let changed = state
                .running()
                .is_some_and(|r| std::mem::take(&mut r.changed));
            if changed && let Some(running) = state.running() {
                for row in running.withdraw(|row| self.queue.changed_since(row)) {
                    self.queue.put_back(&row, QueueLane::Live);
                }
            }
            if changed && let Some(counters) = self.shared.counters_or_new(database, *id) {
                // SAFETY: the server's clock.
                let now = unsafe { pg_sys::GetCurrentTimestamp() };
                counters.last_change_us.store(now, SeqCst);
            }
        }
    }

    fn dispatch_block(&mut self, block: &Block, ticket: u64, put_down: &mut PutDown) {
        let now = Instant::now();
        let change = Change::of(block, &self.shared.commits);
        for (id, state) in &mut self.pipelines {
            let Some(running) = state
                .running()
                .filter(|running| running.pipeline.source_id == block.source_id)
            else {
                continue; // what it misses is made up for by the backfill of `resume`
            };
            running.changed = true;
            if block.op == 'R' {
                continue; // that all rows are looked at is written down
            }
            if block.op == 'T' {
                running.sweep = Some(Instant::now());
                self.queue.touch_taken(*id, Some(ticket));
                self.latency.was_truncated(*id, change);
                continue;
            }
            let width = running.pipeline.key_columns.len();
            let full = self.queue.waits(*id, QueueLane::Live) >= MOST_IN_MEMORY;
            // What is not kept in memory: when it is due, and by when if it is written down already.
            let (pace, later) = match running.calendar.due(block.changed_at) {
                Due::Soon(pace) => (pace, full.then(|| pace.delay())),
                Due::In(delay) => (Pace::AtOnce, Some(delay)),
            };
            let again = running.calendar.again();
            let removed = match block.op {
                'D' => &block.keys,
                _ => &block.old_keys,
            };
            // Keys of another width were logged before the primary key was another.
            let row = |key: &Arc<[String]>| RowKey {
                pipeline: *id,
                key: Arc::clone(key),
            };
            for key in removed
                .iter()
                .chain(&block.keys)
                .filter(|key| key.len() == width)
            {
                let row = row(key);
                self.latency
                    .changed(&row, change, || self.queue.is_taken(&row));
            }
            for key in removed.iter().filter(|key| key.len() == width) {
                self.queue.add(row(key), QueueLane::Removal, Some(ticket));
            }
            if block.op == 'D' {
                continue;
            }
            for key in block.keys.iter().filter(|key| key.len() == width) {
                match later {
                    // A row that is in memory stays there: its job may be in flight, and ends the one written down.
                    Some(delay) if !self.queue.holds(&row(key)) => put_down
                        .entry((*id, delay))
                        .or_insert_with(|| (again, Vec::new()))
                        .1
                        .push(Job::new(row(key))),
                    _ => self.queue.add_change(row(key), Some(ticket), pace, now),
                }
            }
        }
    }

    /// A slice of a pipeline's or recommender's rows, `up_to` its last one (`None`: there are no more), for which `rows` were
    /// looked at.
    pub(super) fn queue_slice(
        &mut self,
        id: i32,
        round: i32,
        slice: Vec<Vec<String>>,
        up_to: Option<Vec<String>>,
        rows: i64,
    ) {
        let ticket = self.queue.open(Ticket::Backfill {
            pipeline: id,
            round,
            up_to,
            rows,
        });
        for key in slice {
            let row = RowKey {
                pipeline: id,
                key: Arc::from(key),
            };
            self.queue.add(row, QueueLane::Backfill, Some(ticket));
        }
    }

    /// What cannot be sent for now is written down, so that the checkpoint can move and memory is bounded.
    pub(super) fn put_aside(&mut self) -> std::result::Result<(), Failed> {
        if self.queue.is_empty() {
            return Ok(());
        }
        let old = self.queue.older_than(PATIENCE);
        // What is ready or in flight stays in memory, and stands in the job table under a lease meanwhile.
        let mut leased = self.flights.overdue(PATIENCE);
        leased.extend(self.writers.overdue(PATIENCE));
        for (id, state) in &mut self.pipelines {
            let Some(running) = state.running() else {
                continue;
            };
            if running.is_spent {
                // It may be for weeks: what needs a request is a job, and does not stand in the way of what needs none.
                let jobs = running.drain_ready();
                write_down(*id, &jobs, Duration::ZERO, Again::Then)?;
                for job in &jobs {
                    self.queue.written_down(&job.row);
                }
                running.claims.due_at(Instant::now());
            }
            let rests = !running.limited_for().is_zero()
                || self
                    .lanes
                    .get(running.lane)
                    .is_some_and(|lane| lane.rests_until().is_some());
            if old.contains(id) {
                let jobs = self.queue.take_changes(*id);
                write_down(*id, &jobs, Duration::ZERO, Again::Then)?;
                let quiet = self.queue.take_quiet(*id, Instant::now());
                let again = running.calendar.again();
                transaction(|| {
                    let puts = quiet.iter();
                    let puts: Vec<Put> = puts
                        .map(|(job, delay)| Put { job, delay: *delay })
                        .collect();
                    jobs::put(*id, &puts, again)
                })?;
                for job in jobs.iter().chain(quiet.iter().map(|(job, _)| job)) {
                    self.queue.finish(&job.row);
                }
                running.claims.due_at(Instant::now());
            }
            leased.push((*id, running.unstored.overdue(PATIENCE)));
            if rests
                && running
                    .unwritten_for()
                    .is_some_and(|age| age >= REST_PATIENCE)
            {
                leased.push((*id, running.store_ready()));
            }
        }
        for (id, jobs) in leased.iter().filter(|(_, jobs)| !jobs.is_empty()) {
            transaction(|| {
                jobs::put_all(*id, jobs, Duration::ZERO, Again::Then)?;
                jobs::lease(*id, jobs.iter().map(|job| &job.row))
            })?;
            for job in jobs {
                self.queue.detach(&job.row);
            }
        }
        Ok(())
    }

    /// The checkpoint passes what is done; so do the positions of backfills. `wanted`: somebody waits for it.
    pub(super) fn move_checkpoint(&mut self, wanted: bool) -> std::result::Result<(), Failed> {
        let finished = self.queue.finished_tickets();
        for ticket in &finished {
            if let Ticket::Backfill {
                pipeline,
                up_to: None,
                ..
            } = ticket
                && let Some(running) = self.pipelines.get_mut(pipeline).and_then(State::running)
            {
                running.sweep = Some(Instant::now());
                self.checkpoint.has_changes = true;
            }
        }
        let now = Instant::now();
        for ticket in &finished {
            if let Ticket::Backfill {
                pipeline,
                round,
                rows,
                ..
            } = ticket
                && let Some(running) = self.pipelines.get_mut(pipeline).and_then(State::running)
                && running.pipeline.backfill_round == *round
            {
                running.filling.passed(*rows, now);
            }
        }
        if works() {
            self.sweep()?; // before the backfill counts as finished
        }
        let rotates = self.checkpoint.rotation_is_due();
        let advanced = self.checkpoint.advance(&finished, wanted || rotates)?;
        self.checkpoint.has_changes |= self.queue.has_open_log(); // it is written once these are finished
        if advanced || std::mem::take(&mut self.jobs_ended) {
            self.database.signal_progress();
        }
        if rotates && upkeep::rotate(self.database, &self.checkpoint) {
            self.checkpoint.log_has_grown = true;
        }
        Ok(())
    }
}

pub(super) fn write_down(
    pipeline: i32,
    jobs: &[Job],
    delay: Duration,
    again: Again,
) -> std::result::Result<(), Failed> {
    transaction(|| jobs::put_all(pipeline, jobs, delay, again))
}

/// Changes of one row are one job.
fn together(jobs: Vec<Job>) -> Vec<Job> {
    let mut of_rows: HashMap<RowKey, Job> = HashMap::with_capacity(jobs.len());
    for job in jobs {
        match of_rows.entry(job.row.clone()) {
            Entry::Occupied(mut same) => same.get_mut().changes += job.changes,
            Entry::Vacant(first) => drop(first.insert(job)),
        }
    }
    of_rows.into_values().collect()
}

/// What is not kept in memory, by pipeline and delay.
type PutDown = BTreeMap<(i32, Duration), (Again, Vec<Job>)>;
