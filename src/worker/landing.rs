//! Replies become vectors, retries or dead letters: one transaction a pipeline.
//!
//! It never lets a store that fails touch another pipeline's.

use pgrx::pg_sys;
use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::flights::{Landed, Verdict};
use super::leader::{Leader, is_definition, report};
use super::process::{Failed, guard_user_code, release_user_code, transaction};
use super::running::{Running, State};
use crate::dispatch::jobs::{self, Put};
use crate::dispatch::queue::Job;
use crate::embed::failure::describe;
use crate::embed::retry::backoff;

impl Leader {
    /// Replies become vectors: stored with their jobs' completion, in one transaction a pipeline.
    pub(super) fn land(&mut self) -> std::result::Result<(), Failed> {
        let mut landed: HashMap<i32, Landed> = HashMap::new();
        let jitter = &mut self.jitter;
        while let Ok(reply) = self.replies.try_recv() {
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
            }
            let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
                continue; // paused or dropped meanwhile: `load` let go of its rows
            };
            let relation = running.pipeline.relation.clone();
            let stored = store(running, &mut landed);
            if let Some(reason) = landed.configuration.take() {
                self.pause(id, &relation, &reason)?;
                self.database.catalog_changed.store(true, SeqCst);
            }
            match stored {
                Ok(all_written) => {
                    let count = landed.embedded.len() as i64;
                    for embedded in &landed.embedded {
                        self.queue.finish(&embedded.job.row);
                    }
                    for verdict in &landed.verdicts {
                        let (Verdict::Retry { job, .. } | Verdict::Bury { job, .. }) = verdict;
                        self.queue.finish(&job.row);
                    }
                    if !landed.verdicts.is_empty() || !all_written {
                        self.next_job = Some(Instant::now());
                    }
                    if let Some(counters) = self.shared.counters_or_new(self.database_oid(), id) {
                        counters.embedded.fetch_add(count, SeqCst);
                        if count > 0 {
                            // SAFETY: the server's clock.
                            counters
                                .last_embedded_us
                                .store(unsafe { pg_sys::GetCurrentTimestamp() }, SeqCst);
                        }
                    }
                }
                Err(failed) => {
                    report(Some(&relation), &failed);
                    self.after_failed_store(id, &failed, landed)?;
                }
            }
        }
        Ok(())
    }

    /// A store that was rolled back: what is wrong with the table pauses the pipeline; anything else is tried again,
    /// a row at a time where there were several.
    pub(super) fn after_failed_store(
        &mut self,
        id: i32,
        failed: &Failed,
        landed: Landed,
    ) -> std::result::Result<(), Failed> {
        if is_definition(failed.code) {
            if let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) {
                let relation = running.pipeline.relation.clone();
                self.pause(id, &relation, &failed.message)?;
                self.database.catalog_changed.store(true, SeqCst);
            }
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
        let most = self
            .pipelines
            .get_mut(&id)
            .and_then(State::running)
            .map_or(3, |r| r.endpoint.max_attempts);
        transaction(|| {
            let mut puts = Vec::new();
            let retried: Vec<Job> = jobs
                .iter()
                .cloned()
                .map(|job| Job {
                    attempt: job.attempt + 1,
                    ..job
                })
                .collect();
            for job in &retried {
                if job.attempt >= most {
                    jobs::bury(
                        job,
                        "permanent",
                        None,
                        &format!("the vector could not be stored: {}", failed.message),
                    )?;
                } else {
                    puts.push(Put {
                        job,
                        delay: backoff(job.attempt, 0.5),
                    });
                }
            }
            jobs::put(id, &puts)
        })?;
        for job in jobs {
            self.queue.finish(&job.row);
        }
        self.next_job = Some(Instant::now());
        Ok(())
    }
}

/// Vectors, completions, retries and dead letters of one pipeline, in one transaction.
fn store(running: &mut Running, landed: &mut Landed) -> std::result::Result<bool, Failed> {
    let id = running.pipeline.id;
    transaction(|| {
        let mut all_written = true;
        let mut puts = Vec::new();
        if !landed.embedded.is_empty() {
            guard_user_code()?;
            all_written = running
                .writer
                .write(&mut landed.embedded, &running.endpoint.model)?;
            release_user_code();
            let jobs = landed.embedded.iter().map(|embedded| &embedded.job);
            if all_written {
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
        jobs::put(id, &puts)?;
        Ok(all_written)
    })
}
