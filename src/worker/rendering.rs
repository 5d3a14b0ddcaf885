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
use super::ready::Ready;
use super::running::{Running, State};
use super::writers::Writers;
use crate::catalog::change::Cause;
use crate::dispatch::jobs::{self, Again};
use crate::dispatch::queue::{Job, Lane as QueueLane};
use crate::dispatch::render::{Rendered, know};
use crate::embed::long_text::{Mode, Part};
use crate::embed::parts::{MOST_PARTS, MOST_TOKENS};
use crate::embed::token_rate::TokenRate;
use crate::hooks::outbox;
use crate::ledger::bill::Saved;
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
        self.keep_spare()?;
        for id in self.in_turn() {
            self.render_passing(id)?;
            let allowed = self.filling_allows(id, CHUNK);
            let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
                continue;
            };
            let lanes = [QueueLane::Removal, QueueLane::Live, QueueLane::Backfill];
            let next = lanes.into_iter().find_map(|lane| {
                let takes = lane == QueueLane::Removal || !running.is_full(lane);
                let at_once = match running.long_text.mode {
                    Mode::Truncate => CHUNK,
                    Mode::Mean | Mode::Chunks => CHUNK / 8, // dividing a text takes its time
                };
                let most = match lane {
                    QueueLane::Backfill => allowed.min(at_once),
                    _ => at_once,
                };
                let taken = takes.then(|| self.queue.take(id, lane, most))?;
                if lane == QueueLane::Backfill {
                    running.filling.throttle.took(Instant::now(), taken.len());
                }
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

    /// The pipelines' numbers, another one first in each round; without those whose table nobody may write to.
    pub(super) fn in_turn(&self) -> Vec<i32> {
        let held = |state: &State| matches!(state, State::Runs(running) if running.held);
        let ids = self.pipelines.iter().filter(|(_, state)| !held(state));
        let mut ids: Vec<i32> = ids.map(|(id, _)| *id).collect();
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
        if jobs.is_empty() {
            return Ok(());
        }
        if let Err(failed) = render(running, &jobs, &self.secret) {
            report(Some(&running.pipeline.relation), &failed); // they are due again when they land
            return Ok(());
        }
        for job in &jobs {
            if let Some(change) = self.latency.passes(&job.row)
                && let Some(meters) = self.meters_of(id)
            {
                change.shows(self.shared, meters);
            }
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
                let (mut gone, mut same) = (Vec::new(), Vec::new());
                let mut seen = Seen::default();
                let mut to_be_cleared = Vec::new();
                let clears = running.renderer.removes_from_source();
                for (job, rendered) in jobs.into_iter().zip(rendered) {
                    seen.count(&rendered, &job, lane, &running.renderer.rate);
                    match rendered {
                        Rendered::Gone { removed: true } if clears => to_be_cleared.push(job),
                        Rendered::Gone { removed: true } => gone.push(job.row),
                        // A text that is too long was put aside where it was rendered.
                        Rendered::Gone { .. } | Rendered::Unchanged { .. } | Rendered::TooLong => {
                            same.push(job.row);
                        }
                        Rendered::Known {
                            parts,
                            hash,
                            stored_hash,
                        } => {
                            let ready = Ready::new(job, parts, hash, stored_hash, lane);
                            let embedded = ready.into_embedded(running.long_text.mode);
                            running.unstored.push(lane, embedded);
                        }
                        Rendered::Text {
                            parts,
                            hash,
                            stored_hash,
                            ..
                        } => {
                            running.push_ready(Ready::new(job, parts, hash, stored_hash, lane));
                        }
                    }
                }
                self.spending.saved(&running.payer, seen.saved);
                if let Some(counters) = self.shared.counters_or_new(self.database_oid(), id) {
                    seen.add_to(counters);
                }
                self.change_ends(gone.iter(), true);
                self.change_ends(same.iter(), false);
                for row in gone.iter().chain(&same) {
                    self.queue.finish(row);
                }
                self.clear(id, to_be_cleared)
            }
            Err(failed) if is_definition(failed.code) || is_passing(failed.code) => {
                let relation = running.pipeline.relation.clone();
                report(Some(&relation), &failed);
                if is_definition(failed.code)
                    && self.pause_unless_changed(id, &failed.message, Cause::Declaration)?
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
                self.change_ends(jobs.iter().map(|job| &job.row), false);
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
        let database = self.database_oid();
        for state in self.pipelines.values_mut() {
            let Some(running) = state.running() else {
                continue;
            };
            while !running.held
                && self.writers.rows(running.pipeline.id).is_empty()
                && running.sweep.is_some_and(|at| at <= Instant::now())
            {
                let renderer = &running.renderer;
                let swept = transaction(|| {
                    guard_user_code()?;
                    renderer.remove_orphans()
                });
                if let Ok(false) = swept
                    && let Some(change) = self.latency.truncation_shows(running.pipeline.id)
                    && let Some(counters) = self.shared.counters(database, running.pipeline.id)
                {
                    change.shows(self.shared, self.shared.meters(counters));
                }
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
    saved: Saved,
}

impl Seen {
    /// A row that the worker looks at for a reason of its own saves nothing when its text is unchanged.
    fn count(&mut self, rendered: &Rendered, job: &Job, lane: QueueLane, rate: &TokenRate) {
        self.processed += 1;
        let known_of = |parts: &[Part]| {
            let known = parts.iter().filter(|part| part.vector.is_some());
            known.fold((0, 0), |(count, tokens), part| {
                (count + 1, tokens + rate.of(&part.text))
            })
        };
        let tokens = match rendered {
            Rendered::Unchanged { tokens } => {
                self.unchanged += 1;
                if lane == QueueLane::Backfill {
                    return;
                }
                self.saved.unchanged.add(1, *tokens);
                *tokens
            }
            Rendered::Known { parts, .. } => {
                self.known += 1;
                let (count, tokens) = known_of(parts);
                self.saved.known.add(count, tokens);
                tokens
            }
            Rendered::Gone { removed } => {
                self.removed += i64::from(*removed);
                return;
            }
            Rendered::Text { parts, .. } => {
                let (count, tokens) = known_of(parts);
                self.saved.known.add(count, tokens);
                return;
            }
            Rendered::TooLong => return,
        };
        let coalesced = job.coalesced();
        self.saved.coalesced.add(coalesced, coalesced * tokens);
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
        Rendered::Text { hash, parts, .. } => Some((hash, parts)),
        _ => None,
    });
    let wanted: HashSet<&[u8]> = texts
        .flat_map(|(hash, parts)| parts.iter().map(|part| &part.hash).chain([hash]))
        .map(Vec::as_slice)
        .collect();
    if wanted.is_empty() {
        return;
    }
    let unstored = running.unstored.iter().chain(writers.embedded(running));
    let vectors = unstored
        .flat_map(Embedded::vectors)
        .filter(|(hash, _)| wanted.contains(hash))
        .map(|(hash, vector)| (hash.to_vec(), vector.to_vec()))
        .collect();
    know(rendered, &vectors);
}

/// Why a text is not embedded that has more parts than a text may have.
fn too_long() -> String {
    format!(
        "its text is too long: it has more than {MOST_TOKENS} tokens, or comes to more than {MOST_PARTS} chunks"
    )
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
    running: &mut Running,
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
        renderer.recognise(jobs, &mut rendered, model, secret)?;
        for job in those(jobs, &rendered, |row| *row == Rendered::TooLong) {
            running.dead_letters = true;
            jobs::bury(job, "permanent", None, &too_long())?;
        }
        let done: Vec<&Job> = those(jobs, &rendered, |row| match row {
            Rendered::Gone { removed } => !(clears && *removed),
            row => matches!(row, Rendered::Unchanged { .. }),
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
