//! Rows become texts, and texts requests.
//!
//! It never lets one bad row hold up the others: a chunk that fails is halved until the row is alone.

use std::collections::HashSet;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::intake::write_down;
use super::leader::{CHUNK, Leader, report};
use super::process::{
    Failed, guard_user_code, is_definition, is_passing, release_user_code, transaction,
};
use super::running::{Ready, Running, State};
use super::writers::Writers;
use crate::dispatch::jobs::{self, Again};
use crate::dispatch::queue::{Job, Lane as QueueLane};
use crate::dispatch::render::{Rendered, know};
use crate::hooks::outbox;
use crate::shared::Counters;
use crate::store::Embedded;

impl Leader {
    /// Rows become texts, texts become requests, until there is something more urgent to do.
    pub(super) fn render_and_send(&mut self) -> std::result::Result<(), Failed> {
        self.first_in_turn = self.first_in_turn.wrapping_add(1);
        loop {
            let more = self.render_in_turn()?;
            self.send();
            let urgent = !self.replies.is_empty()
                || self.database.wake.has_rung()
                || self.database.catalog_changed.load(SeqCst);
            if !more || urgent {
                return Ok(());
            }
        }
    }

    /// A chunk of each pipeline: removals first, then live changes, then the backfill. True when there may be more.
    fn render_in_turn(&mut self) -> std::result::Result<bool, Failed> {
        let mut more = false;
        for id in self.in_turn() {
            self.render_passing(id)?;
            let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
                continue;
            };
            let lanes = [QueueLane::Removal, QueueLane::Live, QueueLane::Backfill];
            let next = lanes.into_iter().find_map(|lane| {
                let takes = lane == QueueLane::Removal || !running.is_full(lane);
                let taken = takes.then(|| self.queue.take(id, lane, CHUNK))?;
                (!taken.is_empty()).then_some((lane, taken))
            });
            if let Some((lane, taken)) = next {
                more = true;
                self.busy_at = Instant::now();
                self.render(id, lane, taken)?;
            }
        }
        Ok(more)
    }

    /// The pipelines' numbers, another one first in each round.
    pub(super) fn in_turn(&self) -> Vec<i32> {
        let mut ids: Vec<i32> = self.pipelines.keys().copied().collect();
        let first = self.first_in_turn % ids.len().max(1);
        ids.rotate_left(first);
        ids
    }

    /// What is ready goes out as far as the servers take it. A place that is free goes to the pipeline that has
    /// waited for one the longest.
    fn send(&mut self) {
        let storers = self.writers.count().max(1);
        let mut closed = Vec::new();
        loop {
            let next = self
                .pipelines
                .values_mut()
                .filter_map(State::running)
                .filter(|running| !closed.contains(&running.lane) && running.has_sendable(storers))
                .min_by_key(|running| running.sent_at);
            let Some(running) = next else {
                return;
            };
            let (lanes, queue) = (&mut self.lanes, &mut self.queue);
            if self.flights.send(running, lanes, queue, storers) {
                running.sent_at = self.turns.next();
            } else {
                closed.push(running.lane);
            }
        }
    }

    /// Rows that were deleted while their request is in flight: their old vector goes now. They stay taken. Those in
    /// a writer's hands are locked: they are due again when it has done.
    fn render_passing(&mut self, id: i32) -> std::result::Result<(), Failed> {
        let mut jobs = self.queue.take_passing(id);
        let running = self.pipelines.get_mut(&id).and_then(State::running);
        if running.is_some_and(|running| running.renderer.removes_from_source()) {
            return Ok(()); // its vector has gone with it
        }
        if !jobs.is_empty() {
            let given = self.writers.rows(id);
            jobs.retain(|job| !given.contains(&job.row));
        }
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(());
        };
        if !jobs.is_empty()
            && let Err(failed) = render(running, &jobs, &self.secret)
        {
            report(Some(&running.pipeline.relation), &failed); // they are due again when they land
        }
        Ok(())
    }

    /// Renders a chunk; one that fails is halved until the row that is the cause is alone.
    fn render(
        &mut self,
        id: i32,
        lane: QueueLane,
        jobs: Vec<Job>,
    ) -> std::result::Result<(), Failed> {
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(());
        };
        self.jobs_ended = true;
        match render(running, &jobs, &self.secret) {
            Ok(mut rendered) => {
                know_unstored(&mut rendered, running, &self.writers);
                let mut seen = Seen::default();
                let mut to_be_cleared = Vec::new();
                let clears = running.renderer.removes_from_source();
                for (job, rendered) in jobs.into_iter().zip(rendered) {
                    seen.count(&rendered);
                    match rendered {
                        Rendered::Gone { removed: true } if clears => to_be_cleared.push(job),
                        Rendered::Gone { .. } | Rendered::Unchanged => self.queue.finish(&job.row),
                        Rendered::Known {
                            vector,
                            hash,
                            stored_hash,
                        } => running.unstored.push(
                            lane,
                            Embedded {
                                job,
                                vector,
                                hash,
                                stored_hash,
                            },
                        ),
                        Rendered::Text {
                            text,
                            hash,
                            stored_hash,
                            ..
                        } => {
                            running.push_ready(Ready {
                                job,
                                text,
                                hash,
                                stored_hash,
                                since: Instant::now(),
                                tokens: None,
                                lane,
                            });
                        }
                    }
                }
                if let Some(counters) = self.shared.counters_or_new(self.database_oid(), id) {
                    seen.add_to(counters);
                }
                self.clear(id, to_be_cleared)
            }
            Err(failed) if is_definition(failed.code) || is_passing(failed.code) => {
                let relation = running.pipeline.relation.clone();
                report(Some(&relation), &failed);
                if is_definition(failed.code)
                    && self.pause_unless_changed(id, &relation, &failed.message)?
                {
                    return Ok(());
                }
                write_down(id, &jobs, Duration::from_secs(1), Again::Then)?;
                for job in &jobs {
                    self.queue.written_down(&job.row);
                }
                self.job_due_at(id, Instant::now() + Duration::from_secs(1));
                Ok(())
            }
            Err(failed) if jobs.len() == 1 => {
                report(Some(&running.pipeline.relation), &failed);
                running.dead_letters = true;
                let message = format!("its text could not be rendered: {}", failed.message);
                transaction(|| {
                    jobs.iter()
                        .try_for_each(|job| jobs::bury(job, "permanent", None, &message))?;
                    let keys = jobs.iter().map(|job| &*job.row.key);
                    outbox::dead_letters(id, keys, "permanent", None)
                })?;
                for job in &jobs {
                    self.queue.finish(&job.row);
                }
                Ok(())
            }
            Err(_) => {
                let mut jobs = jobs;
                let half = jobs.split_off(jobs.len() / 2);
                self.render(id, lane, jobs)?;
                self.render(id, lane, half)
            }
        }
    }

    /// Vectors whose row went away without a row event. Not while a writer holds locks on some: it is given no more
    /// until this is done.
    pub(super) fn sweep(&mut self) -> std::result::Result<(), Failed> {
        for state in self.pipelines.values_mut() {
            let Some(running) = state.running() else {
                continue;
            };
            while self.writers.rows(running.pipeline.id).is_empty()
                && running.sweep.is_some_and(|at| at <= Instant::now())
            {
                let renderer = &running.renderer;
                let swept = transaction(|| {
                    guard_user_code()?;
                    renderer.remove_orphans()
                });
                running.sweep = match swept {
                    Ok(more) => more.then(Instant::now),
                    Err(failed) => {
                        report(Some(&running.pipeline.relation), &failed);
                        Some(Instant::now() + Duration::from_secs(5))
                    }
                };
            }
        }
        Ok(())
    }
}

/// What rows came to.
#[derive(Default)]
struct Seen {
    processed: i64,
    unchanged: i64,
    removed: i64,
    known: i64,
}

impl Seen {
    fn count(&mut self, rendered: &Rendered) {
        self.processed += 1;
        match rendered {
            Rendered::Unchanged => self.unchanged += 1,
            Rendered::Gone { removed } => self.removed += i64::from(*removed),
            Rendered::Known { .. } => self.known += 1,
            Rendered::Text { .. } => {}
        }
    }

    fn add_to(&self, counters: &Counters) {
        for (counter, count) in [
            (&counters.processed, self.processed),
            (&counters.unchanged, self.unchanged),
            (&counters.removed, self.removed),
            (&counters.known, self.known),
        ] {
            counter.fetch_add(count, SeqCst);
        }
    }
}

/// A text whose vector has come and is not stored yet is known: of another row, or of the same under another key.
fn know_unstored(rendered: &mut [Rendered], running: &Running, writers: &Writers) {
    let texts = rendered.iter().filter_map(|rendered| match rendered {
        Rendered::Text { hash, .. } => Some(hash.as_slice()),
        _ => None,
    });
    let wanted: HashSet<&[u8]> = texts.collect();
    if wanted.is_empty() {
        return;
    }
    let unstored = running.unstored.iter().chain(writers.embedded(running));
    let vectors = unstored
        .filter(|embedded| wanted.contains(embedded.hash.as_slice()))
        .map(|embedded| (embedded.hash.clone(), embedded.vector.clone()))
        .collect();
    know(rendered, &vectors);
}

/// Jobs by what their rows came to.
fn those<'a>(
    jobs: &'a [Job],
    rendered: &'a [Rendered],
    wanted: impl Fn(&Rendered) -> bool + 'a,
) -> impl Iterator<Item = &'a Job> {
    let pairs = jobs.iter().zip(rendered);
    pairs
        .filter(move |(_, rendered)| wanted(rendered))
        .map(|(job, _)| job)
}

/// Renders in a transaction of its own; jobs of rows that are done end with it.
fn render(
    running: &Running,
    jobs: &[Job],
    secret: &[u8],
) -> std::result::Result<Vec<Rendered>, Failed> {
    transaction(|| {
        guard_user_code()?;
        let (renderer, model) = (&running.renderer, &running.endpoint.model);
        let mut rendered = renderer.render(jobs, model, secret)?;
        let clears = renderer.removes_from_source(); // what is to be cleared is not done yet
        let to_be_removed: Vec<&Job> = those(jobs, &rendered, |row| {
            *row == Rendered::Gone { removed: true }
        })
        .collect();
        if !clears {
            renderer.remove(&to_be_removed, model)?;
        }
        release_user_code();
        renderer.recognise(jobs, &mut rendered, model)?;
        let done: Vec<&Job> = those(jobs, &rendered, |row| match row {
            Rendered::Gone { removed } => !(clears && *removed),
            row => *row == Rendered::Unchanged,
        })
        .collect();
        let stored = done.iter().filter(|job| job.stored);
        jobs::complete(running.pipeline.id, stored.map(|job| &job.row))?;
        if running.dead_letters {
            jobs::unbury(running.pipeline.id, done.iter().map(|job| &job.row))?;
        }
        Ok(rendered)
    })
}
