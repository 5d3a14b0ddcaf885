//! Jobs that are rows, taken up when they are due: a pipeline's oldest first, each pipeline by itself.
//!
//! It never looks for a job before the time that the last look gave, and never twice at the same place: what was
//! claimed leaves dead entries in the index, which a snapshot that is held open keeps.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::leader::{CHUNK, Leader};
use super::process::{Failed, transaction};
use super::running::State;
use crate::dispatch::jobs::{self, Place};
use crate::dispatch::queue::Lane as QueueLane;

/// Claimed at once.
const MOST: usize = CHUNK * 4;
/// A pipeline with so many changes in memory claims no jobs yet.
const ENOUGH: usize = 10_000;
/// How often it is looked from the beginning: for a job that a backend put behind the place where claims stand.
const SWEEP: Duration = Duration::from_secs(60);
/// How soon it is looked again where the provider rests or enough is in memory.
const LATER: Duration = Duration::from_secs(1);

/// Where a pipeline's claims stand.
pub struct Claims {
    /// When to look again; `None`: there is no job.
    next: Option<Instant>,
    after: Place,
    swept: Instant,
    run: Option<Run>,
}

/// All jobs that were there at a time are due, because somebody asked for it.
struct Run {
    at: String,
    after: Place,
}

impl Claims {
    pub fn new() -> Claims {
        Claims {
            next: Some(Instant::now()),
            after: Place::first(),
            swept: Instant::now(),
            run: None,
        }
    }

    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// A job is due then.
    pub fn due_at(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// It is looked from the beginning, now.
    pub fn start_over(&mut self) {
        (self.after, self.swept) = (Place::first(), Instant::now());
        self.due_at(self.swept);
    }
}

impl Leader {
    /// Jobs that are due and are rows.
    pub(super) fn claim(&mut self) -> std::result::Result<(), Failed> {
        let ids: Vec<i32> = self.pipelines.keys().copied().collect();
        for id in ids {
            self.claim_of(id)?;
        }
        Ok(())
    }

    fn claim_of(&mut self, id: i32) -> std::result::Result<(), Failed> {
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else {
            return Ok(());
        };
        let now = Instant::now();
        let claims = &mut running.claims;
        if claims.next.is_none_or(|at| at > now) {
            return Ok(());
        }
        let rests = self
            .lanes
            .get(running.lane)
            .is_some_and(|lane| lane.rests_until().is_some());
        if rests || running.is_spent || self.queue.waits(id, QueueLane::Live) >= ENOUGH {
            claims.next = Some(now + LATER);
            return Ok(());
        }
        if claims.swept.elapsed() >= SWEEP {
            claims.start_over();
        }
        let (after, run) = match &claims.run {
            Some(run) => (&run.after, Some(run.at.as_str())),
            None => (&claims.after, None),
        };
        let (claimed, place, next) = transaction(|| {
            let (claimed, place) = jobs::claim(id, after, run, MOST)?;
            let next = match claimed.len() < MOST && run.is_none() {
                true => jobs::next_due(id, &place)?,
                false => Some(Duration::ZERO),
            };
            Ok((claimed, place, next))
        })?;
        match &mut claims.run {
            Some(_) if claimed.len() < MOST => claims.run = None,
            Some(run) => run.after = place,
            None => claims.after = place,
        }
        claims.next = next.map(|next| now + next);
        for job in claimed {
            self.queue.add_job(job, QueueLane::Live, None);
        }
        Ok(())
    }

    /// `recsync.run`: what waits for its time is due now.
    pub(super) fn start_runs(&mut self) -> std::result::Result<(), Failed> {
        let database = self.database_oid();
        for (id, state) in &mut self.pipelines {
            let Some(running) = state.running() else {
                continue;
            };
            let Some(counters) = self.shared.counters_or_new(database, *id) else {
                continue;
            };
            let wanted = counters.runs_wanted.load(SeqCst);
            if wanted == counters.runs_started.load(SeqCst) {
                continue;
            }
            running.claims.run = Some(Run {
                at: transaction(jobs::now)?,
                after: Place::first(),
            });
            running.claims.due_at(Instant::now());
            if let Some(lane) = self.lanes.get(running.lane) {
                lane.breaker.probe_now(Instant::now());
            }
            self.queue.release_all(*id);
            counters.runs_started.store(wanted, SeqCst);
        }
        Ok(())
    }
}
