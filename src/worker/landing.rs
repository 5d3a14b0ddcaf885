//! Replies become vectors, retries or dead letters: one transaction a pipeline.
//!
//! It never lets a store that fails touch another pipeline's.

use pgrx::pg_sys;
use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::flights::{Landed, Verdict};
use super::intake::write_down;
use super::leader::{Leader, is_definition, is_passing, report};
use super::process::{Failed, guard_user_code, release_user_code, transaction};
use super::running::{Running, State};
use crate::catalog::change::Cause;
use crate::dispatch::jobs::{self, Again, Put};
use crate::dispatch::queue::Job;
use crate::embed::failure::describe;
use crate::embed::retry::backoff;
use crate::store::Written;

/// Vectors stored before the log is looked at again: with HNSW, at some milliseconds each, a change that
/// comes during a backfill waits no longer than for these.
const STORE_ROWS: usize = 64;

impl Leader {
    /// Replies become vectors: stored with their jobs' completion, in one transaction a pipeline.
    pub(super) fn land(&mut self) -> std::result::Result<(), Failed> {
        let mut landed: HashMap<i32, Landed> = HashMap::new();
        let jitter = &mut self.jitter;
        let rows = |landed: &HashMap<i32, Landed>| {
            landed.values().map(|l| l.embedded.len()).sum::<usize>()
        };
        while rows(&landed) < STORE_ROWS
            && let Ok(reply) = self.replies.try_recv()
        {
            let pipelines = &mut self.pipelines;
            self.flights.land(
                reply,
                &mut self.lanes,
                &mut landed,
                |id| {
                    pipelines
                        .get_mut(&id)
                        .and_then(State::running)
                        .map(|running| &mut *running)
                },
                &mut || jitter.f64(),
            );
        }
        for (id, mut landed) in landed {
            self.busy_at = Instant::now();
            if let Some(counters) = self.shared.counters_or_new(self.database_oid(), id) {
                counters.requests.fetch_add(landed.requests as i64, SeqCst);
                counters.tokens.fetch_add(landed.tokens as i64, SeqCst);
                let failure = landed.failure.map_or(0, |(class, status)| {
                    (class as i64 + 1) * 1_000 + i64::from(status.unwrap_or(0))
                });
                counters.failure.store(failure, SeqCst);
            }
            let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
                continue; // paused or dropped meanwhile: `load` let go of its rows
            };
            let relation = running.pipeline.relation.clone();
            let configuration = landed.configuration.take();
            self.settle(id, &relation, landed)?;
            if let Some(reason) = configuration {
                self.pause(id, &relation, &reason, Cause::Server)?;
                self.database.catalog_changed.store(true, SeqCst);
            }
        }
        Ok(())
    }

    /// Stores; what cannot be stored together is stored by halves, until the row that is the cause is alone.
    pub(super) fn settle(
        &mut self,
        id: i32,
        relation: &str,
        mut landed: Landed,
    ) -> std::result::Result<(), Failed> {
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(());
        };
        let failed = match store(running, &mut landed) {
            Ok(written) => {
                self.settled(id, &landed, written);
                return Ok(());
            }
            Err(failed) => failed,
        };
        if landed.embedded.len() > 1 && !is_definition(failed.code) && !is_passing(failed.code) {
            let embedded = landed.embedded.split_off(landed.embedded.len() / 2);
            let half = Landed {
                embedded,
                ..Landed::default()
            };
            self.settle(id, relation, landed)?;
            return self.settle(id, relation, half);
        }
        report(Some(relation), &failed);
        self.jobs_ended = true;
        let definition = is_definition(failed.code);
        if definition && self.pause_unless_changed(id, relation, &failed.message)? {
            return Ok(());
        }
        let jobs: Vec<Job> = landed
            .embedded
            .into_iter()
            .map(|embedded| embedded.job)
            .chain(landed.verdicts.into_iter().map(|verdict| match verdict {
                Verdict::Retry { job, .. } | Verdict::Bury { job, .. } => job,
            }))
            .collect();
        if definition || is_passing(failed.code) {
            write_down(id, &jobs, Duration::from_secs(1), Again::Then)?;
        } else {
            self.charge(id, &jobs, &failed)?;
        }
        for job in jobs {
            self.queue.finish(&job.row);
        }
        self.job_due_at(id, Instant::now());
        Ok(())
    }

    /// What was stored is done.
    fn settled(&mut self, id: i32, landed: &Landed, written: Written) {
        self.jobs_ended = true;
        for embedded in &landed.embedded {
            self.queue.finish(&embedded.job.row);
        }
        for verdict in &landed.verdicts {
            let (Verdict::Retry { job, .. } | Verdict::Bury { job, .. }) = verdict;
            self.queue.finish(&job.row);
        }
        if !landed.verdicts.is_empty() || !is_all(landed, written) {
            self.job_due_at(id, Instant::now());
        }
        if let Some(counters) = self.shared.counters_or_new(self.database_oid(), id)
            && !landed.embedded.is_empty()
        {
            for (counter, count) in [
                (&counters.embedded, landed.embedded.len()),
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
            let mut puts = Vec::new();
            for job in &charged {
                if job.attempt >= most {
                    jobs::bury(job, "permanent", None, &message)?;
                } else {
                    puts.push(Put {
                        job,
                        delay: backoff(job.attempt, 0.5),
                    });
                }
            }
            jobs::put(id, &puts, Again::Then)
        })
    }
}

/// Whether nobody else has written to the relation meanwhile.
fn is_all(landed: &Landed, written: Written) -> bool {
    written.inserted + written.updated == landed.embedded.len()
}

/// Vectors, completions, retries and dead letters of one pipeline, in one transaction.
fn store(running: &mut Running, landed: &mut Landed) -> std::result::Result<Written, Failed> {
    let id = running.pipeline.id;
    transaction(|| {
        let mut written = Written::default();
        let mut puts = Vec::new();
        if !landed.embedded.is_empty() {
            guard_user_code()?;
            written = running
                .writer
                .write(&mut landed.embedded, &running.endpoint.model)?;
            release_user_code();
            let jobs = landed.embedded.iter().map(|embedded| &embedded.job);
            if is_all(landed, written) {
                jobs::complete(
                    id,
                    jobs.clone().filter(|job| job.stored).map(|job| &job.row),
                )?;
            } else {
                // Somebody else has written to the relation: those rows are looked at once more.
                puts.extend(jobs.clone().map(|job| Put {
                    job,
                    delay: Duration::ZERO,
                }));
            }
            if running.dead_letters {
                jobs::unbury(id, jobs.map(|job| &job.row))?;
            }
        }
        for verdict in &landed.verdicts {
            match verdict {
                Verdict::Retry { job, delay } => puts.push(Put { job, delay: *delay }),
                Verdict::Bury { job, failure } => {
                    running.dead_letters = true;
                    jobs::bury(
                        job,
                        failure.class.as_str(),
                        failure.status.map(i32::from),
                        &describe(failure),
                    )?;
                }
            }
        }
        jobs::put(id, &puts, Again::Then)?;
        Ok(written)
    })
}
