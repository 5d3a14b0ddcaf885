//! Vectors are stored: one transaction a pipeline, the same in the leader and in a writer. What the leader stores
//! by itself, and what becomes of the rows.
//!
//! It never stores for long before the log is looked at again, and never lets a store that fails touch another
//! pipeline's.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::intake::write_down;
use super::leader::{Leader, report};
use super::process::{
    Failed, guard_user_code, is_definition, is_passing, release_user_code, transaction,
};
use super::rest::works;
use super::running::{Running, State};
use super::unstored::Part;
use crate::catalog::change::Cause;
use crate::dispatch::jobs::{self, Again, Put};
use crate::dispatch::queue::{Job, Lane as QueueLane};
use crate::embed::retry::backoff;
use crate::hooks::outbox;
use crate::ledger::bill::Bills;
use crate::ledger::log;
use crate::store::known::{self, Known};
use crate::store::{Embedded, Writer, Written};

/// How long the leader stores before it looks at the log again: a change that comes during a backfill, at some
/// milliseconds a row with HNSW, waits no longer than for this.
const SLICE: Duration = Duration::from_millis(20);
/// How long it holds the locks of users' rows at a time, where the vectors go into a column of theirs.
pub const LOCKED: Duration = Duration::from_millis(10);

/// Vectors of one pipeline to be stored together.
pub struct Task {
    pub pipeline: i32,
    pub model: String,
    /// There are dead letters, which these may make obsolete.
    pub dead_letters: bool,
    pub embedded: Vec<Embedded>,
    /// What they have cost.
    pub bills: Bills,
}

impl Task {
    pub fn new(running: &Running, mut embedded: Vec<Embedded>, bills: Bills) -> Task {
        embedded.sort_by(|one, other| one.job.row.cmp(&other.job.row));
        Task {
            pipeline: running.pipeline.id,
            model: running.endpoint.model.clone(),
            dead_letters: running.dead_letters,
            embedded,
            bills,
        }
    }
}

/// The vectors and their jobs' completion, in one transaction. Where fewer were written than given, somebody else has
/// written to the relation: the rows have to be looked at once more, and no job is complete.
pub fn store(writer: &Writer, task: &Task) -> std::result::Result<Written, Failed> {
    transaction(|| {
        guard_user_code()?;
        let written = writer.write(&task.embedded, &task.model)?;
        release_user_code();
        log::append(&task.bills)?;
        if written.is_all_of(&task.embedded) {
            let jobs = written.ended(&task.embedded);
            let stored = jobs.clone().filter(|job| job.stored);
            jobs::complete(task.pipeline, stored.map(|job| &job.row))?;
            if task.dead_letters {
                jobs::unbury(task.pipeline, jobs.clone().map(|job| &job.row))?;
            }
            outbox::embedded(task.pipeline, jobs.map(|job| &*job.row.key))?;
        }
        Ok(written)
    })
}

impl Leader {
    /// Stores what has landed, for a slice of time: what somebody waits for first, then what no writer takes.
    pub(super) fn store_a_slice(&mut self) -> std::result::Result<(), Failed> {
        if !works() {
            return Ok(());
        }
        let until = Instant::now() + SLICE;
        for running in self.pipelines.values_mut().filter_map(State::running) {
            running.unstored.release(Instant::now());
        }
        for lane in [QueueLane::Live, QueueLane::Backfill] {
            for id in self.in_turn() {
                loop {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(());
                    }
                    let writers = self.writers.are_there();
                    let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
                        break;
                    };
                    if !running.is_stored_by_leader(lane, writers) {
                        break;
                    }
                    let most = running.rows_at_once(left);
                    let Some(part) = running.unstored.take(lane, most) else {
                        break;
                    };
                    self.store_part(id, part)?;
                }
            }
        }
        Ok(())
    }

    /// Whether [`Leader::store_a_slice`] has something to do.
    pub(super) fn has_own_stores(&mut self) -> bool {
        let writers = self.writers.are_there();
        works()
            && self
                .pipelines
                .values_mut()
                .filter_map(State::running)
                .filter(|running| !running.held)
                .any(|running| {
                    [QueueLane::Live, QueueLane::Backfill].iter().any(|lane| {
                        running.is_stored_by_leader(*lane, writers) && running.unstored.has(*lane)
                    })
                })
    }

    fn store_part(&mut self, id: i32, mut part: Part) -> std::result::Result<(), Failed> {
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(());
        };
        let bills = self.spending.open.take(id);
        let task = Task::new(running, std::mem::take(&mut part.embedded), bills);
        let started = Instant::now();
        let outcome = store(&running.writer, &task);
        part.embedded = task.embedded;
        self.spending.settle(task.bills, outcome.is_ok());
        self.stored(id, part, outcome, started.elapsed())
    }

    /// What has become of rows that the leader or a writer was to store. What cannot be stored together is stored
    /// by halves, until the row that is the cause is alone.
    pub(super) fn stored(
        &mut self,
        id: i32,
        mut part: Part,
        outcome: std::result::Result<Written, Failed>,
        took: Duration,
    ) -> std::result::Result<(), Failed> {
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(()); // paused or dropped meanwhile: `load` let go of its rows
        };
        self.busy_at = Instant::now();
        self.hooks.look(); // a writer may have written for them
        match outcome {
            Ok(written) if written.is_all_of(&part.embedded) => {
                let locked = part.take(&written.busy);
                if locked.embedded.is_empty() {
                    running.unstored.cost.measured(part.embedded.len(), took);
                }
                running.unstored.push_locked(locked);
                self.settled(id, &part, &written);
                Ok(())
            }
            Ok(_) => {
                for job in part.jobs() {
                    self.queue.put_back(&job.row, QueueLane::Live);
                }
                Ok(())
            }
            Err(failed) if running.pipeline.into_column.is_some() && is_passing(failed.code) => {
                running.unstored.push_locked(part); // the table, or what a trigger of its needs
                Ok(())
            }
            Err(failed)
                if part.embedded.len() > 1
                    && !is_definition(failed.code)
                    && !is_passing(failed.code) =>
            {
                running.unstored.push_halves(part);
                Ok(())
            }
            Err(failed) => self.cannot_store(id, part.jobs().cloned().collect(), failed),
        }
    }

    /// What was stored is done.
    fn settled(&mut self, id: i32, part: &Part, written: &Written) {
        self.jobs_ended = true;
        self.change_ends(part.jobs().map(|job| &job.row), true);
        for job in part.jobs() {
            self.queue.finish(&job.row);
        }
        if let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) {
            running.index.stored(written.inserted);
            let (name, count) = (&running.pipeline.relation, written.count());
            debug1!("recsync worker: pipeline {name}: {count} vectors were stored");
        }
        if let Some(counters) = self.shared.counters_or_new(self.database_oid(), id) {
            for (counter, count) in [
                (&counters.embedded, written.count()),
                (&counters.inserted, written.inserted),
                (&counters.updated, written.updated),
            ] {
                counter.fetch_add(count as i64, SeqCst);
            }
            // SAFETY: the server's clock.
            let now = unsafe { pg_sys::GetCurrentTimestamp() };
            counters.last_embedded_us.store(now, SeqCst);
        }
    }

    /// Vectors of rows that are locked are known from now on: for the worker that comes next.
    pub(super) fn keep_locked(&mut self) -> std::result::Result<(), Failed> {
        for running in self.pipelines.values_mut().filter_map(State::running) {
            let locked: Vec<Known> = running
                .unstored
                .locked()
                .map(|row| (row.hash.clone(), row.vector.clone()))
                .collect();
            if let Some(recipe) = running.writer.recipe() {
                transaction(|| known::keep(recipe, &locked))?;
            }
        }
        Ok(())
    }

    /// The declaration does not fit any more, or the rows are tried again later, or given up.
    pub(super) fn cannot_store(
        &mut self,
        id: i32,
        jobs: Vec<Job>,
        failed: Failed,
    ) -> std::result::Result<(), Failed> {
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(());
        };
        let relation = running.pipeline.relation.clone();
        report(Some(&relation), &failed);
        self.jobs_ended = true;
        let definition = is_definition(failed.code);
        if definition && self.pause_unless_changed(id, &failed.message, Cause::Declaration)? {
            return Ok(());
        }
        if definition || is_passing(failed.code) {
            write_down(id, &jobs, Duration::from_secs(1), Again::Then)?;
        } else {
            self.charge(id, &jobs, &failed)?;
        }
        for job in jobs {
            self.queue.written_down(&job.row);
        }
        self.job_due_at(id, Instant::now());
        Ok(())
    }

    /// A store that fails by itself charges its rows an attempt; the last one gives them up.
    fn charge(
        &mut self,
        id: i32,
        jobs: &[Job],
        failed: &Failed,
    ) -> std::result::Result<(), Failed> {
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(());
        };
        let most = running.endpoint.max_attempts;
        running.dead_letters = true;
        let message = format!("the vector could not be stored: {}", failed.message);
        let charged: Vec<Job> = jobs
            .iter()
            .cloned()
            .map(|job| Job {
                attempt: job.attempt + 1,
                ..job
            })
            .collect();
        transaction(|| {
            let (mut puts, mut buried) = (Vec::new(), Vec::new());
            for job in &charged {
                if job.attempt >= most {
                    jobs::bury(job, "permanent", None, &message)?;
                    buried.push(&*job.row.key);
                } else {
                    puts.push(Put {
                        job,
                        delay: backoff(job.attempt, 0.5),
                    });
                }
            }
            jobs::put(id, &puts, Again::Then)?;
            outbox::dead_letters(id, buried.into_iter(), "permanent", None)
        })
    }
}
