//! Rows become texts, and texts requests.
//!
//! It never lets one bad row hold up the others: a chunk that fails is halved until the row is alone.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::flights::Landed;
use super::intake::write_down;
use super::leader::{CHUNK, Leader, is_definition, is_passing, report};
use super::process::{Failed, guard_user_code, release_user_code, transaction};
use super::running::{Ready, Running, State};
use crate::dispatch::jobs::{self, Again};
use crate::dispatch::queue::{Job, Lane as QueueLane};
use crate::dispatch::render::Rendered;
use crate::shared::Counters;
use crate::store::Embedded;

impl Leader {
    /// Rows become texts, texts become requests: removals first, then live changes, then the backfill; a chunk of
    /// each pipeline in turn.
    pub(super) fn render_and_send(&mut self) -> std::result::Result<(), Failed> {
        let ids: Vec<i32> = self.pipelines.keys().copied().collect();
        self.first_in_turn = self.first_in_turn.wrapping_add(1);
        let mut more = true;
        while more && self.replies.is_empty() {
            more = false;
            for turn in 0..ids.len() {
                let id = ids[(self.first_in_turn + turn) % ids.len()];
                self.render_passing(id)?;
                let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
                    continue;
                };
                let mut taken = self.queue.take(id, QueueLane::Removal, CHUNK);
                for lane in [QueueLane::Live, QueueLane::Backfill] {
                    if !running.is_full() && taken.is_empty() {
                        taken = self.queue.take(id, lane, CHUNK);
                    }
                }
                if !taken.is_empty() {
                    more = true;
                    self.busy_at = Instant::now();
                    self.render(id, taken)?;
                }
                if let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) {
                    self.flights.send(running, &mut self.lanes, &mut self.queue);
                }
            }
            if self.database.catalog_changed.load(SeqCst) {
                break;
            }
        }
        Ok(())
    }

    /// Rows that were deleted while their request is in flight: their old vector goes now. They stay taken.
    fn render_passing(&mut self, id: i32) -> std::result::Result<(), Failed> {
        let jobs = self.queue.take_passing(id);
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
    pub(super) fn render(&mut self, id: i32, jobs: Vec<Job>) -> std::result::Result<(), Failed> {
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(());
        };
        self.jobs_ended = true;
        match render(running, &jobs, &self.secret) {
            Ok(rendered) => {
                let mut known = Landed::default();
                let mut seen = Seen::default();
                for (job, rendered) in jobs.into_iter().zip(rendered) {
                    seen.count(&rendered);
                    match rendered {
                        Rendered::Gone { .. } | Rendered::Unchanged => self.queue.finish(&job.row),
                        Rendered::Known {
                            vector,
                            hash,
                            stored_hash,
                        } => known.embedded.push(Embedded {
                            job,
                            vector,
                            hash,
                            stored_hash,
                        }),
                        Rendered::Text {
                            text,
                            hash,
                            stored_hash,
                        } => {
                            running.ready.push_back(Ready {
                                job,
                                text,
                                hash,
                                stored_hash,
                                since: Instant::now(),
                                tokens: None,
                            });
                        }
                    }
                }
                let relation = running.pipeline.relation.clone();
                if let Some(counters) = self.shared.counters_or_new(self.database_oid(), id) {
                    seen.add_to(counters);
                }
                if known.embedded.is_empty() {
                    return Ok(());
                }
                self.settle(id, &relation, known)
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
                    self.queue.finish(&job.row);
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
                        .try_for_each(|job| jobs::bury(job, "permanent", None, &message))
                })?;
                for job in &jobs {
                    self.queue.finish(&job.row);
                }
                Ok(())
            }
            Err(_) => {
                let mut jobs = jobs;
                let half = jobs.split_off(jobs.len() / 2);
                self.render(id, jobs)?;
                self.render(id, half)
            }
        }
    }

    /// Vectors whose row went away without a row event.
    pub(super) fn sweep(&mut self) -> std::result::Result<(), Failed> {
        for state in self.pipelines.values_mut() {
            let Some(running) = state.running() else {
                continue;
            };
            while running.sweep.is_some_and(|at| at <= Instant::now()) {
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
        let those = |wanted: fn(&Rendered) -> bool| {
            let pairs = jobs.iter().zip(&rendered);
            pairs
                .filter(move |(_, rendered)| wanted(rendered))
                .map(|(job, _)| job)
        };
        renderer.remove(
            those(|rendered| matches!(rendered, Rendered::Gone { removed: true })),
            model,
        )?;
        release_user_code();
        let done: Vec<&Job> =
            those(|rendered| matches!(rendered, Rendered::Gone { .. } | Rendered::Unchanged))
                .collect();
        renderer.recognise(&mut rendered, model)?;
        let stored = done.iter().filter(|job| job.stored);
        jobs::complete(running.pipeline.id, stored.map(|job| &job.row))?;
        if running.dead_letters {
            jobs::unbury(running.pipeline.id, done.iter().map(|job| &job.row))?;
        }
        Ok(rendered)
    })
}
