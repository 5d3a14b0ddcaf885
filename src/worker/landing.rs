//! Replies become vectors to be stored, retries or dead letters.
//!
//! It never stores a vector: that takes long, and a reply tells of the server, which the next request needs.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use pgrx::prelude::*;

use super::flights::{Landed, Verdict};
use super::leader::Leader;
use super::process::{Failed, transaction};
use super::running::{Running, State};
use crate::catalog::change::Cause;
use crate::dispatch::jobs::{self, Again, Put};
use crate::dispatch::queue::{Job, Lane as QueueLane, RowKey};
use crate::embed::failure::describe;
use crate::error::Result;
use crate::hooks::outbox;
use crate::ledger::bill::Saved;
use crate::shared::meters::now_us;
use crate::store::{Embedded, known};

impl Leader {
    /// Takes the replies that have come.
    pub(super) fn land(&mut self) -> std::result::Result<(), Failed> {
        let mut landed: HashMap<i32, Landed> = HashMap::new();
        let jitter = &mut self.jitter;
        while let Ok(reply) = self.replies.try_recv() {
            if let Some(payer) = self.flights.payer_of(&reply) {
                self.spending.sent(&payer, reply.sent);
            }
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
        for (id, landed) in landed {
            self.busy_at = Instant::now();
            let database = self.database_oid();
            if let Some(counters) = self.shared.counters_or_new(database, id) {
                counters.requests.fetch_add(landed.requests as i64, SeqCst);
                counters.tokens.fetch_add(landed.tokens as i64, SeqCst);
                counters
                    .truncated
                    .fetch_add(landed.truncated as i64, SeqCst);
                let failure = landed.failure.map_or(0, |(class, status)| {
                    (class as i64 + 1) * 1_000 + i64::from(status.unwrap_or(0))
                });
                counters.failure.store(failure, SeqCst);
                let meters = self.shared.meters(counters);
                for took in &landed.took {
                    meters.requests.observe(took.as_micros() as i64);
                }
                for (class, status) in &landed.failures {
                    meters
                        .failures
                        .note((*class).into(), *status, None, now_us());
                }
            }
            let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
                continue; // paused or dropped meanwhile: `load` let go of its rows
            };
            let relation = running.pipeline.relation.clone();
            for took in &landed.took {
                let milliseconds = took.as_millis();
                debug1!(
                    "recsync worker: pipeline {relation}: a batch was answered after {milliseconds} ms"
                );
            }
            let mut saved = landed.saved;
            let known = waits_for_these(running, &landed.embedded, &mut saved);
            self.spending.saved(&running.payer, saved);
            if let Some(counters) = self.shared.counters_or_new(database, id) {
                counters.known.fetch_add(known.len() as i64, SeqCst);
            }
            for (lane, embedded) in landed.embedded.into_iter().chain(known) {
                // Somebody waits for a row that has changed meanwhile; its vector is paid for and may be right.
                let lane = match self.queue.changed_since(&embedded.job.row) {
                    true => QueueLane::Live,
                    false => lane,
                };
                running.unstored.push(lane, embedded);
            }
            if !landed.verdicts.is_empty() {
                self.decide(id, landed.verdicts)?;
            }
            if let Some(reason) = landed.configuration {
                self.pause_unless_changed(id, &reason, Cause::Server)?;
            }
        }
        Ok(())
    }

    /// Vectors of parts whose row is rendered anew are known from now on.
    pub(super) fn keep_spare(&mut self) -> std::result::Result<(), Failed> {
        for running in self.pipelines.values_mut().filter_map(State::running) {
            let spare = std::mem::take(&mut running.spare);
            if let (Some(recipe), false) = (running.writer.recipe(), spare.is_empty()) {
                transaction(|| known::keep(recipe, &spare))?;
            }
        }
        Ok(())
    }

    /// Rows whose request failed become jobs or dead letters, in one transaction.
    fn decide(&mut self, id: i32, verdicts: Vec<Verdict>) -> std::result::Result<(), Failed> {
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(());
        };
        let decided = transaction(|| {
            let mut puts = Vec::new();
            for verdict in &verdicts {
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
            tell_of_dead_letters(id, &verdicts)
        });
        let buried = verdicts.iter().filter_map(|verdict| match verdict {
            Verdict::Retry { .. } => None,
            Verdict::Bury { job, .. } => Some(job.row.clone()),
        });
        let buried: Vec<RowKey> = buried.collect();
        let jobs: Vec<Job> = verdicts
            .into_iter()
            .map(|verdict| match verdict {
                Verdict::Retry { job, .. } | Verdict::Bury { job, .. } => job,
            })
            .collect();
        if let Err(failed) = decided {
            return self.cannot_store(id, jobs, failed);
        }
        self.jobs_ended = true;
        self.change_ends(buried.iter(), false);
        for job in jobs {
            self.queue.written_down(&job.row);
        }
        self.job_due_at(id, Instant::now());
        Ok(())
    }
}

/// Those that were given up, by what they were given up for.
fn tell_of_dead_letters(id: i32, verdicts: &[Verdict]) -> Result<()> {
    let mut buried: BTreeMap<(&str, Option<u16>), Vec<&[String]>> = BTreeMap::new();
    for verdict in verdicts {
        if let Verdict::Bury { job, failure } = verdict {
            let why = (failure.class.as_str(), failure.status);
            buried.entry(why).or_default().push(&job.row.key);
        }
    }
    buried.into_iter().try_for_each(|((class, status), keys)| {
        outbox::dead_letters(id, keys.into_iter(), class, status)
    })
}

/// Texts that were rendered before the same text's vector came, and are not sent yet: what has come is theirs, too.
fn waits_for_these(
    running: &mut Running,
    landed: &[(QueueLane, Embedded)],
    saved: &mut Saved,
) -> Vec<(QueueLane, Embedded)> {
    let vectors: HashMap<Vec<u8>, Vec<f32>> = landed
        .iter()
        .flat_map(|(_, embedded)| embedded.vectors())
        .map(|(hash, vector)| (hash.to_vec(), vector.to_vec()))
        .collect();
    let mode = running.long_text.mode;
    let ready = running.take_known(&vectors, saved);
    for ready in &ready {
        let tokens = ready.would_cost(&running.renderer.rate);
        let coalesced = ready.job.coalesced();
        saved.coalesced.add(coalesced, coalesced * tokens);
    }
    ready
        .into_iter()
        .map(|ready| (ready.lane, ready.into_embedded(mode)))
        .collect()
}
