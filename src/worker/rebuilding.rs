//! Generations that are complete take the place of those in service: each row has its vector, the index is there, and
//! nobody reads by a snapshot that does not see all of that.
//!
//! It never waits for a lock, nor for a transaction: what is not to be had is tried again.

use pgrx::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::indexer::look;
use super::leader::{Leader, report};
use super::process::{Failed, is_passing, transaction};
use super::running::{Running, State};
use crate::catalog::generation::swap::swap;
use crate::catalog::names::select_one;
use crate::catalog::pipeline;
use crate::dispatch::backfill;
use crate::error::Result;
use crate::hooks::outbox;
use crate::settings;

/// How soon a swap is tried again that somebody's lock was in the way of.
const SOON: Duration = Duration::from_millis(200);
/// The same, of anything else.
const LATER: Duration = Duration::from_secs(1);

/// How far a backfill is, is in no dump: after a restore it begins once more.
const BEGUN: &str = "SELECT EXISTS (SELECT FROM recsync.backfill WHERE pipeline_id = $1)";

/// Rows of generation `$1` without their vector: all that is not done when its backfill has ended is written down.
const LEFT: &str = "\
SELECT CASE WHEN NOT EXISTS (SELECT FROM recsync.backfill WHERE pipeline_id = $1 AND finished_at IS NOT NULL)
              OR EXISTS (SELECT FROM recsync.job WHERE pipeline_id = $1
                            AND (attempt > 0 OR leased_until IS NOT NULL OR available_at <= pg_catalog.clock_timestamp()))
            THEN 'rows without their vector'
            WHEN d.dead > 0
            THEN pg_catalog.format('%s rows that were given up: see recsync.dead_letter, retry_dead_letters and purge_dead_letters', d.dead) END
  FROM (SELECT pg_catalog.count(*) AS dead FROM recsync.dead_letter_log WHERE pipeline_id = $1) d";

/// Who reads by a snapshot now, by process and transaction.
const READERS: &str = "\
SELECT pg_catalog.array_agg(pg_catalog.format('%s, since %s', pid, xact_start) ORDER BY xact_start) FROM pg_catalog.pg_stat_activity
 WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid() AND backend_xmin IS NOT NULL
   AND backend_type <> 'autovacuum worker'";

/// What is known of generations on their way into service.
#[derive(Default)]
pub struct Swaps(HashMap<i32, Try>);

#[derive(Default)]
struct Try {
    /// Not before that.
    at: Option<Instant>,
    /// Once it is complete: those who have read since before that, and may not see it.
    readers: Option<Vec<String>>,
    waits_for: Option<String>,
}

impl Leader {
    /// Has those take their place that may.
    pub(super) fn swap_generations(&mut self) -> std::result::Result<(), Failed> {
        let building = self.building();
        self.swaps.0.retain(|id, _| building.contains(id));
        for id in building {
            if self.is_calm(id) && self.swaps.at(id) <= Instant::now() {
                self.try_to_swap(id)?;
            }
        }
        Ok(())
    }

    /// Generations that are being built, as far as they run.
    fn building(&mut self) -> Vec<i32> {
        let running = self.pipelines.iter_mut();
        let running = running.filter_map(|(id, state)| Some((*id, state.running()?)));
        running
            .filter_map(|(id, running)| running.pipeline.builds.then_some(id))
            .collect()
    }

    fn try_to_swap(&mut self, id: i32) -> std::result::Result<(), Failed> {
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(());
        };
        let known = self.swaps.0.entry(id).or_default();
        let (readers, waited_for) = (&mut known.readers, known.waits_for.clone());
        let outcome = transaction(|| {
            Spi::run("SET LOCAL lock_timeout = '50ms'")?;
            let step = step(running, readers)?;
            if let Step::Waits(reason) = &step
                && waited_for.as_ref() != Some(reason)
            {
                note(id, reason)?;
            }
            Ok(step)
        });
        let (wait, waits_for) = match outcome {
            Ok(Step::Done(name)) => {
                let number = running.pipeline.generation;
                log!("recsync worker: pipeline {name}: generation {number} is in service");
                self.swaps.0.remove(&id);
                self.load()?;
                return Ok(());
            }
            Ok(Step::Otherwise) => {
                self.database.catalog_changed.store(true, SeqCst);
                (LATER, None)
            }
            Ok(Step::Waits(reason)) => {
                let wait = match known.readers.as_deref() {
                    None | Some([]) => LATER,
                    Some(_) => SOON,
                };
                (wait, Some(reason))
            }
            Err(failed) if is_passing(failed.code) => (SOON, waited_for),
            Err(failed) => {
                report(Some(&running.pipeline.relation), &failed);
                (LATER, waited_for)
            }
        };
        known.at = Some(Instant::now() + wait);
        known.waits_for = waits_for;
        Ok(())
    }

    /// When [`Leader::swap_generations`] has something to do that nobody will wake this worker for.
    pub(super) fn next_swap(&mut self) -> Option<Instant> {
        let building = self.building().into_iter();
        let calm: Vec<i32> = building.filter(|id| self.is_calm(*id)).collect();
        calm.into_iter().map(|id| self.swaps.at(id)).min()
    }

    /// A worker with nothing else to do stays for that.
    pub(super) fn is_about_to_swap(&mut self) -> bool {
        settings::enabled() && self.next_swap().is_some()
    }
}

impl Swaps {
    /// When a generation is to be looked at: at once, where that has not been done yet.
    fn at(&self, id: i32) -> Instant {
        let at = self.0.get(&id).and_then(|of| of.at);
        at.unwrap_or_else(Instant::now)
    }
}

enum Step {
    /// The pipeline of that name has it in service.
    Done(String),
    /// It is declared otherwise than this worker knows.
    Otherwise,
    /// For what.
    Waits(String),
}

/// Swaps, if nothing is in the way. As recsync's owner. Whom it waits for, once it is complete, stays known where a lock is
/// not to be had.
fn step(running: &Running, readers: &mut Option<Vec<String>>) -> Result<Step> {
    let id = running.pipeline.id;
    let all = pipeline::load_all()?;
    let find = |id: i32| all.iter().find(|pipeline| pipeline.id == id);
    let Some(next) = find(id).filter(|next| next.builds && !next.paused) else {
        return Ok(Step::Otherwise);
    };
    let Some(now) = next.of_pipeline.and_then(find) else {
        return Ok(Step::Otherwise);
    };
    if select_one::<bool>(BEGUN, &[id.into()])? != Some(true) {
        backfill::restart(&[id])?;
        return Ok(Step::Otherwise);
    }
    // Whoever begins once it is complete sees that.
    let since_before = readers.take();
    if let Some(left) = select_one::<String>(LEFT, &[id.into()])? {
        return Ok(Step::Waits(left));
    }
    if next.index != "none" && !next.indexed && look(running)?.missing == 0 {
        return Ok(Step::Waits("its index".into()));
    }
    let mut reading = select_one::<Vec<String>>(READERS, &[])?.unwrap_or_default();
    if let Some(since_before) = since_before {
        reading.retain(|reader| since_before.contains(reader));
    }
    if let Some(reader) = readers.insert(reading).first() {
        let reason = format!("a transaction that began before it was complete (process {reader})");
        return Ok(Step::Waits(reason));
    }
    match swap(next, now)? {
        None => {
            outbox::generation(id, &running.endpoint.model, Some(next.generation))?;
            Ok(Step::Done(now.relation.clone()))
        }
        Some(reason) => Ok(Step::Waits(reason)),
    }
}

/// For recsync.generation.
fn note(id: i32, reason: &str) -> Result<()> {
    const NOTE: &str = "UPDATE recsync.pipeline SET waits_for = $2 WHERE id = $1 AND builds";
    Spi::run_with_args(NOTE, &[id.into(), reason.into()])?;
    Ok(())
}
