//! One database's worker: the steps of the flow, in order, for ever.
//!
//! It never holds a transaction, a snapshot or a lock while it waits.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::filling::Standbys;
use super::flights::Flights;
use super::hooks::Hooks;
use super::indexer::Indexer;
use super::intake::REST_PATIENCE;
use super::keeping::Keeping;
use super::latency::Latency;
use super::load::Incomplete;
use super::process::{self, Bell, Failed, transaction};
use super::rebuilding::Swaps;
use super::rest::works;
use super::running::{Lanes, State, Turns};
use super::share::Shares;
use super::shift::IDLE;
use super::spending::Spending;
use super::telling::{Telling, Turned, tell_turned};
use super::trainer::Trainer;
use super::upkeep::{self, Checkpoint};
use super::watching::Watching;
use super::writers::Writers;
use crate::catalog::install::installed_version;
use crate::dispatch::jobs::{self};
use crate::dispatch::queue::{Lane as QueueLane, Queue};
use crate::dispatch::read::Reader;
use crate::embed::lane::Reply;
use crate::embed::secret::SecretPolicy;
use crate::error::{Error, Result};
use crate::observe::status::failure;
use crate::settings;
use crate::shared::{Database, Presence, Shared};
use crate::store::known;

/// Rows rendered in one transaction.
pub(super) const CHUNK: usize = 256;
/// A change that has waited this long is written down, so that the checkpoint can move.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Changes that come this close one after the other are a stream: the worker lets some gather, and whoever commits
/// has nobody to wake meanwhile.
const STREAM: Duration = Duration::from_millis(2);
const LINGER: Duration = Duration::from_millis(1);
/// What is waited for beyond a time, since waits are in whole milliseconds.
const TICK: Duration = Duration::from_millis(1);
/// Rounds in a row that make a stream.
const STREAM_ROUNDS: u32 = 4;
/// How often an idle worker looks without being woken: only against a wake-up that was lost.
pub(super) const FALLBACK: Duration = Duration::from_secs(60);

pub(super) struct Leader {
    pub(super) shared: &'static Shared,
    pub(super) database: &'static Database,
    /// The library's and the installed version differ: nothing is done until they agree.
    pub(super) suspended: bool,
    /// A pipeline's triggers are not there (yet): it is looked at again before long.
    pub(super) restoring: bool,
    pub(super) incomplete: Incomplete,
    pub(super) secret: Vec<u8>,
    pub(super) pipelines: BTreeMap<i32, State>,
    /// Those that run.
    pub(super) recommenders: BTreeMap<i32, Keeping>,
    /// Sources of all pipelines and recommenders, running or not.
    pub(super) sources: HashSet<i32>,
    pub(super) lanes: Lanes,
    pub(super) flights: Flights,
    pub(super) writers: Writers,
    pub(super) indexer: Indexer,
    pub(super) swaps: Swaps,
    pub(super) trainer: Trainer,
    pub(super) standbys: Standbys,
    /// What is spent and saved, and not written yet.
    pub(super) spending: Spending,
    pub(super) latency: Latency,
    pub(super) watching: Watching,
    pub(super) telling: Telling,
    pub(super) hooks: Hooks,
    pub(super) queue: Queue,
    pub(super) reader: Reader,
    pub(super) checkpoint: Checkpoint,
    /// Jobs have ended in this round: somebody may wait for that.
    pub(super) jobs_ended: bool,
    pub(super) replies: Receiver<Reply>,
    pub(super) reply_to: Sender<Reply>,
    pub(super) ringer: Arc<dyn Fn() + Send + Sync>,
    /// Where keys may come from and requests may go, as the lanes know it.
    pub(super) policy: SecretPolicy,
    pub(super) jitter: fastrand::Rng,
    pub(super) started: Instant,
    pub(super) busy_at: Instant,
    /// When the log last had changes, and how many rounds in a row it has had some.
    pub(super) read_at: Instant,
    pub(super) stream: u32,
    pub(super) first_in_turn: usize,
    pub(super) turns: Turns,
    pub(super) shares: Shares,
    /// How often a pipeline has been taken up with another declaration than before.
    pub(super) declarations: u64,
}

/// What an operator reads of a failed transaction: its SQLSTATE, not its text, which may quote a row.
pub(super) fn report(pipeline: Option<&str>, failed: &Failed) {
    let code = crate::error::sqlstate_text(failed.code);
    crate::observe::errors::note(pipeline, failed);
    match pipeline {
        Some(pipeline) => log!("recsync worker: pipeline {pipeline}: SQLSTATE {code}"),
        None => log!("recsync worker: SQLSTATE {code}"),
    }
}

impl Leader {
    pub(super) fn new(
        shared: &'static Shared,
        database: &'static Database,
        ringer: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Leader> {
        let (reply_to, replies) = unbounded();
        let ((checkpoint, from), prepared, spent) = transaction(|| {
            jobs::take_back_leases(None)?;
            known::resume(database)?;
            let checkpoint = upkeep::resume_checkpoint()?;
            Ok((checkpoint, upkeep::has_prepared()?, Spending::resume()?))
        })
        .map_err(|failed| Error::Internal(failed.message))?;
        database.prepared_declarations.store(prepared, SeqCst);
        database.catalog_changed.store(true, SeqCst);
        database.rests.store(!settings::enabled(), SeqCst); // where it is, it looks before it does anything
        let now = Instant::now();
        Ok(Leader {
            shared,
            database,
            suspended: false,
            restoring: false,
            incomplete: Incomplete::default(),
            secret: Vec::new(),
            pipelines: BTreeMap::new(),
            recommenders: BTreeMap::new(),
            sources: HashSet::new(),
            lanes: Lanes::default(),
            flights: Flights::default(),
            writers: Writers::default(),
            indexer: Indexer::default(),
            swaps: Swaps::default(),
            trainer: Trainer::default(),
            standbys: Standbys::default(),
            spending: Spending::new(spent, shared, pg_sys::Oid::from(database.oid.load(SeqCst))),
            latency: Latency::default(),
            watching: Watching::default(),
            telling: Telling::default(),
            hooks: Hooks::default(),
            queue: Queue::default(),
            reader: Reader::new(from),
            checkpoint,
            jobs_ended: false,
            replies,
            reply_to,
            ringer,
            policy: settings::secret_policy(),
            jitter: fastrand::Rng::new(),
            started: now,
            busy_at: now,
            read_at: now,
            stream: 0,
            first_in_turn: 0,
            turns: Turns::default(),
            shares: Shares::default(),
            declarations: 0,
        })
    }

    pub(super) fn run(mut self, mut bell: Bell) {
        let memory = process::RoundMemory::create();
        loop {
            memory.renew();
            let activity = self.activity();
            process::show(Some(&activity));
            match self.round() {
                Ok(true) => {}
                Ok(false) => return,
                Err(failed) => {
                    // The extension may have been dropped under us; otherwise a new process starts from what is committed.
                    report(None, &failed);
                    match transaction(installed_version) {
                        Ok(None) => self.database.set_presence(Presence::Absent),
                        // SAFETY: an orderly exit with a code that is no success.
                        _ => unsafe { pg_sys::proc_exit(1) },
                    }
                    return;
                }
            }
            let done = self.activity();
            if done != activity {
                process::show(Some(&done));
            }
            process::show(None);
            let idle = self.idle_time();
            let idle = self.warm(idle); // the last of all
            if self.stream >= STREAM_ROUNDS && !idle.is_zero() {
                bell.linger(LINGER);
            }
            bell.wait(self.database.wake.left_of(idle));
        }
    }

    /// One round; false when this worker has no place here any more.
    fn round(&mut self) -> std::result::Result<bool, Failed> {
        if process::reload_if_asked() {
            self.take_over_settings();
        }
        self.database.wake.arm(); // before the log is read: a commit after that reading wakes us
        if self.database.catalog_changed.swap(false, SeqCst) && !self.load()? {
            return Ok(false);
        }
        if self.suspended {
            return Ok(true);
        }
        self.hold_what_is_indexed();
        self.look_at_tables()?;
        self.land()?;
        self.hear_writers()?;
        self.store_a_slice()?;
        self.give_to_writers()?;
        self.dispatch()?;
        // What was declared before a change is what holds for it, whoever was quicker.
        if self.database.catalog_changed.swap(false, SeqCst) && !self.load()? {
            return Ok(false);
        }
        self.look_at_tables()?; // nothing is counted of what has no name yet
        self.queue.release_due(Instant::now());
        self.watch_budgets()?;
        let kept_for = self.keep()?;
        self.tell_hooks()?; // what users have done is told before what takes longer is done
        self.derive(kept_for)?;
        if works() {
            self.start_runs()?;
            self.claim()?;
            self.backfill()?;
            if !self.is_relieved() {
                self.render_and_send()?;
            }
            self.sweep()?;
            self.index()?;
            self.swap_generations()?;
            self.train()?;
        }
        self.tell_hooks()?;
        self.put_aside()?;
        self.checkpoint.log_has_grown |= self.database.log_has_grown.swap(false, SeqCst);
        let wanted = self.database.checkpoint_wanted.swap(false, SeqCst);
        if wanted {
            self.spending.hurry();
        }
        self.write_bills(false)?;
        self.move_checkpoint(wanted)?;
        self.checkpoint.sweep_shown();
        self.checkpoint.rotate_events();
        if known::is_full(self.database) {
            let _ = transaction(|| known::rotate(self.database)); // a lock that somebody holds: another time
        }
        self.publish();
        self.show();
        Ok(!self.gives_way()?)
    }

    fn publish(&mut self) {
        self.publish_recommenders();
        let database = self.database_oid();
        let mut turned = Vec::new();
        for (id, state) in &self.pipelines {
            let State::Runs(running) = state else {
                if let Some(counters) = self.shared.counters(database, *id) {
                    counters.pending.store(0, SeqCst);
                    counters.in_flight.store(0, SeqCst);
                }
                continue;
            };
            let Some(counters) = self.shared.counters_or_new(database, *id) else {
                continue;
            };
            let since = counters.rests_since_us.load(SeqCst);
            let rests = self
                .lanes
                .get(running.lane)
                .is_some_and(|lane| lane.breaker.is_open());
            if rests != (since != 0) {
                // SAFETY: the server's clock.
                let now = unsafe { pg_sys::GetCurrentTimestamp() };
                counters
                    .rests_since_us
                    .store(if rests { now } else { 0 }, SeqCst);
                turned.push(Turned {
                    lane: running.lane,
                    what: format!("pipeline {}", running.pipeline.relation),
                    server: running.payer.server.clone(),
                    fails: rests,
                    failure: failure(counters.failure.load(SeqCst)),
                });
            }
            let waiting = self.queue.waiting(*id);
            counters
                .pending
                .store((waiting + running.ready_count()) as i64, SeqCst);
            self.publish_filling(*id, counters);
            let unstored = running.unstored.len() + running.unstored.locked_count();
            let unstored = unstored + self.writers.rows(*id).len();
            counters
                .in_flight
                .store((running.in_flight + unstored) as i64, SeqCst);
        }
        tell_turned(turned);
    }

    /// How long nothing is due.
    fn idle_time(&mut self) -> Duration {
        let storers = self.writers.count().max(1);
        let now = Instant::now();
        let relieved = self.is_relieved();
        let mut wait = FALLBACK;
        if self.suspended {
            return wait;
        }
        if self.reader.has_more()
            || self.database.catalog_changed.load(SeqCst)
            || !self.replies.is_empty()
            || self.has_own_stores()
        {
            return Duration::ZERO;
        }
        if works() {
            for at in self.queue.next_due().iter() {
                wait = wait.min(at.saturating_duration_since(now) + TICK);
            }
            for (id, state) in &mut self.pipelines {
                let Some(running) = state.running() else {
                    continue;
                };
                if running.held {
                    continue; // the end of its index's build rings the bell
                }
                let waits = self.queue.waits(*id, QueueLane::Removal) > 0
                    || !running.is_full(QueueLane::Live)
                        && self.queue.waits(*id, QueueLane::Live) > 0;
                let sweep = running.sweep.filter(|_| self.writers.rows(*id).is_empty());
                for at in sweep.iter().chain(&running.claims.next()) {
                    wait = wait.min(at.saturating_duration_since(now));
                }
                for at in running.unstored.next_try().iter() {
                    wait = wait.min(at.saturating_duration_since(now) + TICK);
                }
                if relieved {
                    continue; // only what flies is waited for, and that rings the bell
                }
                let fills = running.fills_in(&self.queue, &self.standbys, now);
                if waits || fills == Some(Duration::ZERO) {
                    return Duration::ZERO;
                }
                wait = wait.min(fills.map_or(wait, |rest| rest + TICK));
                let Some(lane) = self.lanes.get(running.lane) else {
                    continue;
                };
                let rest = lane.rests_until();
                let rest =
                    rest.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
                let rest = rest.max(running.limited_for());
                // What is in flight rings the bell when it lands; nothing else does.
                if running.has_sendable(storers) && (!rest.is_zero() || lane.lane.in_flight() == 0)
                {
                    let put_aside = running.unwritten_for();
                    let put_aside = put_aside.map(|age| REST_PATIENCE.saturating_sub(age));
                    let rest = rest.min(put_aside.unwrap_or(rest));
                    wait = wait.min(rest + TICK);
                }
            }
        }
        if works()
            && let Some(at) = self
                .next_index()
                .into_iter()
                .chain(self.next_training())
                .chain(self.next_swap())
                .min()
        {
            wait = wait.min(at.saturating_duration_since(now) + TICK);
        }
        wait = wait.min(self.next_spending());
        wait = wait.min(self.checkpoint.next_rotation());
        wait = wait.min(self.checkpoint.next_sweep_of_shown());
        wait = wait.min(self.checkpoint.next_rotation_of_events());
        wait = wait.min(self.writers.next_end().unwrap_or(wait));
        wait = wait.min(self.keeps_on().unwrap_or(wait));
        wait = wait.min(self.next_look().unwrap_or(wait));
        wait = wait.min(self.hooks.next().map_or(wait, |next| next + TICK));
        if !self.queue.is_empty() {
            wait = wait.min(PATIENCE); // to write down what cannot be sent
        }
        if self.restoring {
            self.database.catalog_changed.store(true, SeqCst);
            wait = wait.min(PATIENCE);
        }
        if self.shared.waiting_databases.load(SeqCst) > 0 {
            wait = wait.min(IDLE);
        }
        wait
    }

    /// Vectors that have come and that nobody should pay for again.
    pub(super) fn has_unstored(&mut self) -> bool {
        let mut running = self.pipelines.values_mut().filter_map(State::running);
        self.writers.are_busy() || running.any(|running| !running.unstored.is_empty())
    }

    /// The log had changes in this round.
    pub(super) fn has_read(&mut self) {
        self.stream = if self.read_at.elapsed() < STREAM + LINGER {
            self.stream + 1
        } else {
            0
        };
        self.read_at = Instant::now();
        self.checkpoint.has_changes = true;
        self.checkpoint.log_has_grown = true;
    }

    /// A job of the pipeline is due then.
    pub(super) fn job_due_at(&mut self, id: i32, at: Instant) {
        if let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) {
            running.claims.due_at(at);
        }
    }

    pub(super) fn has_jobs(&mut self) -> bool {
        self.pipelines
            .values_mut()
            .filter_map(State::running)
            .any(|running| running.claims.next().is_some())
    }

    pub(super) fn database_oid(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.database.oid.load(SeqCst))
    }
}
