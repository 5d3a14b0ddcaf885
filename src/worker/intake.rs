//! What comes in: changes of the log, jobs that are due, slices of backfills; and how far the checkpoint may move.
//!
//! It never renders a row: a job is a key.

use pgrx::pg_sys;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::leader::{CHUNK, Leader, PATIENCE, report};
use super::process::{Failed, guard_user_code, transaction};
use super::running::State;
use super::upkeep;
use crate::dispatch::backfill;
use crate::dispatch::jobs;
use crate::dispatch::queue::{Job, Lane as QueueLane, RowKey, Ticket};
use crate::dispatch::read::Block;
use crate::settings;

/// Changes of one pipeline kept in memory; the rest is written down as jobs.
const MOST_IN_MEMORY: usize = 20_000;

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
        let mut put_down: HashMap<i32, Vec<Job>> = HashMap::new();
        for block in &page.blocks {
            self.busy_at = Instant::now();
            self.dispatch_block(block, ticket, &mut put_down);
        }
        self.note_changes();
        for (id, jobs) in put_down {
            self.next_job = Some(Instant::now());
            write_down(id, &jobs, Duration::ZERO)?;
        }
        if !page.blocks.is_empty() {
            self.has_read();
        }
        Ok(())
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

    fn dispatch_block(
        &mut self,
        block: &Block,
        ticket: u64,
        put_down: &mut HashMap<i32, Vec<Job>>,
    ) {
        for (id, state) in &mut self.pipelines {
            let Some(running) = state
                .running()
                .filter(|running| running.pipeline.source_id == block.source_id)
            else {
                continue; // what it misses is made up for by the backfill of `resume`
            };
            running.changed = true;
            if block.op == 'T' {
                running.sweep = Some(Instant::now());
                self.queue.touch_taken(*id, Some(ticket));
                continue;
            }
            let width = running.pipeline.key_columns.len();
            let lane = if block.op == 'D' {
                QueueLane::Removal
            } else {
                QueueLane::Live
            };
            for (keys, lane) in [(&block.old_keys, QueueLane::Removal), (&block.keys, lane)] {
                // Keys of another width were logged before the primary key was another.
                for key in keys.iter().filter(|key| key.len() == width) {
                    let row = RowKey {
                        pipeline: *id,
                        key: Arc::clone(key),
                    };
                    // A row that is in memory stays there: its job may be in flight, and ends the one written down.
                    if lane == QueueLane::Live
                        && self.queue.waits(*id, lane) >= MOST_IN_MEMORY
                        && !self.queue.holds(&row)
                    {
                        put_down.entry(*id).or_default().push(Job::new(row));
                    } else {
                        self.queue.add(row, lane, Some(ticket));
                    }
                }
            }
        }
    }

    /// Jobs that are due and are rows.
    pub(super) fn claim(&mut self) -> std::result::Result<(), Failed> {
        if self.next_job.is_none_or(|at| at > Instant::now()) {
            return Ok(());
        }
        let mut open = Vec::new();
        let mut closed = false;
        for (id, state) in &mut self.pipelines {
            let Some(running) = state.running() else {
                continue;
            };
            if self.queue.waits(*id, QueueLane::Live) < MOST_IN_MEMORY / 2
                && self
                    .lanes
                    .get(running.lane)
                    .is_some_and(|lane| lane.rests_until().is_none())
            {
                open.push(*id);
            } else {
                closed = true;
            }
        }
        let (claimed, next) =
            transaction(|| Ok((jobs::claim(&open, CHUNK * 4)?, jobs::next_due(&open)?)))?;
        self.next_job = next.map(|next| Instant::now() + next);
        if claimed.len() == CHUNK * 4 {
            self.next_job = Some(Instant::now());
        } else if closed {
            // A provider that rests, or a full queue: looked at again before long.
            let soon = Instant::now() + Duration::from_secs(1);
            self.next_job = Some(self.next_job.map_or(soon, |next| next.min(soon)));
        }
        for job in claimed {
            self.queue.add_job(job, QueueLane::Live, None);
        }
        Ok(())
    }

    /// The next slices of backfills, where nothing live waits.
    pub(super) fn backfill(&mut self) -> std::result::Result<(), Failed> {
        let ids: Vec<i32> = self.pipelines.keys().copied().collect();
        for id in ids {
            let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
                continue;
            };
            if running.pipeline.backfilled
                || self.queue.waits(id, QueueLane::Backfill) > backfill::SLICE / 2
            {
                continue;
            }
            let after = running.pipeline.backfill_after.clone();
            let pipeline = &running.pipeline;
            let slice = transaction(|| {
                guard_user_code()?;
                backfill::slice(pipeline, after.as_deref())
            });
            let slice = match slice {
                Ok(slice) => slice,
                Err(failed) => {
                    let relation = running.pipeline.relation.clone();
                    report(Some(&relation), &failed);
                    self.pause_unless_changed(id, &relation, &failed.message)?;
                    continue;
                }
            };
            let last = slice.len() < backfill::SLICE;
            let up_to = if last { None } else { slice.last().cloned() };
            running.pipeline.backfill_after.clone_from(&up_to);
            running.pipeline.backfilled = last;
            let ticket = self.queue.open(Ticket::Backfill {
                pipeline: id,
                round: running.pipeline.backfill_round,
                up_to,
                rows: slice.len() as i64,
            });
            for key in slice {
                let row = RowKey {
                    pipeline: id,
                    key: Arc::from(key),
                };
                self.queue.add(row, QueueLane::Backfill, Some(ticket));
            }
        }
        Ok(())
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
            let rests = self
                .lanes
                .get(running.lane)
                .is_some_and(|lane| lane.rests_until().is_some());
            if old.contains(id) {
                let jobs = self.queue.take_changes(*id);
                write_down(*id, &jobs, Duration::ZERO)?;
                for job in jobs {
                    self.queue.finish(&job.row);
                }
                self.next_job = Some(Instant::now());
            }
            leased.push((*id, running.unstored.overdue(PATIENCE)));
            if rests && running.ready_for() >= REST_PATIENCE {
                leased.push((*id, running.store_ready()));
            }
        }
        for (id, jobs) in leased.iter().filter(|(_, jobs)| !jobs.is_empty()) {
            transaction(|| {
                jobs::put_all(*id, jobs, Duration::ZERO)?;
                jobs::lease(*id, jobs.iter().map(|job| &job.row))
            })?;
            for job in jobs {
                self.queue.detach(&job.row);
            }
        }
        Ok(())
    }

    /// The checkpoint passes what is done; so do the positions of backfills.
    pub(super) fn move_checkpoint(&mut self) -> std::result::Result<(), Failed> {
        let finished = self.queue.finished_tickets();
        let wanted = self.database.checkpoint_wanted.swap(false, SeqCst);
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
        if settings::enabled() {
            self.sweep()?; // before the backfill counts as finished
        }
        let rotates = self.checkpoint.rotation_is_due();
        let advanced = self.checkpoint.advance(&finished, wanted || rotates)?;
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
) -> std::result::Result<(), Failed> {
    transaction(|| jobs::put_all(pipeline, jobs, delay))
}
