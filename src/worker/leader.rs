//! One database's worker: the steps of the flow, in order, for ever.
//!
//! It never holds a transaction, a snapshot or a lock while it waits.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::flights::{Flights, Landed, Verdict};
use super::process::{self, Bell, Failed, guard_user_code, release_user_code, transaction};
use super::running::{Lanes, Ready, Running, State, broken};
use super::upkeep::{self, Checkpoint};
use crate::catalog::names;
use crate::catalog::pipeline;
use crate::dispatch::jobs::{self, Put};
use crate::dispatch::queue::{Job, Lane as QueueLane, Queue, RowKey, Ticket};
use crate::dispatch::read::{Change, Reader};
use crate::dispatch::render::{Rendered, Renderer};
use crate::dispatch::backfill;
use crate::embed::failure::describe;
use crate::embed::lane::{Lane, Reply};
use crate::error::{Error, Result};
use crate::settings;
use crate::shared::{self, Database, Presence, Shared};
use crate::store::Writer;

/// Rows rendered in one transaction.
const CHUNK: usize = 256;
/// Changes of one pipeline kept in memory; the rest is written down as jobs.
const MOST_IN_MEMORY: usize = 20_000;
/// A change that has waited this long is written down, so that the checkpoint can move.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a worker with nothing to do keeps its slot while other databases wait for one.
const IDLE: Duration = Duration::from_secs(1);
/// How long a busy one keeps it.
const SHIFT: Duration = Duration::from_secs(10);
/// How often an idle worker looks without being woken: only against a wake-up that was lost.
const FALLBACK: Duration = Duration::from_secs(60);

struct Leader {
    shared: &'static Shared,
    database: &'static Database,
    /// The library's and the installed version differ: nothing is done until they agree.
    suspended: bool,
    /// A pipeline's triggers are not there (yet): it is looked at again before long.
    restoring: bool,
    secret: Vec<u8>,
    pipelines: BTreeMap<i32, State>,
    lanes: Lanes,
    flights: Flights,
    queue: Queue,
    reader: Reader,
    checkpoint: Checkpoint,
    next_job: Option<Instant>,
    replies: Receiver<Reply>,
    reply_to: Sender<Reply>,
    ringer: Arc<dyn Fn() + Send + Sync>,
    jitter: fastrand::Rng,
    started: Instant,
    busy_at: Instant,
    first_in_turn: usize,
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn recsync_worker_main(database: pg_sys::Datum) {
    let oid = pg_sys::Oid::from(database.value() as u32);
    let Some(shared) = shared::shared() else { return };
    let Some(entry) = shared.database(oid) else { return };
    // SAFETY: this process's id.
    let pid = unsafe { pg_sys::MyProcPid };
    if entry.worker_pid.compare_exchange(0, pid, SeqCst, SeqCst).is_err() {
        return; // the one before is still on its way out; the launcher tries again
    }
    // SAFETY: runs while shared memory is still attached; the entry lives as long as the server.
    unsafe { pg_sys::before_shmem_exit(Some(sign_off), pg_sys::Datum::from(std::ptr::from_ref(entry))) };
    process::start(Some(oid));
    entry.wake.claim();
    match transaction(upkeep::installed_version) {
        Ok(None) => return entry.set_presence(Presence::Absent),
        Ok(Some(_)) => entry.set_presence(Presence::Present),
        Err(failed) => return report(None, &failed),
    }
    let bell = Bell::new().and_then(|bell| Ok((bell.ringer()?, bell)));
    let leader = bell.and_then(|(ringer, bell)| Ok((Leader::new(shared, entry, ringer)?, bell)));
    match leader {
        Ok((leader, bell)) => leader.run(bell),
        Err(error) => log!("recsync worker: could not start: {error}"),
    }
}

unsafe extern "C-unwind" fn sign_off(_code: std::ffi::c_int, entry: pg_sys::Datum) {
    // SAFETY: the address that recsync_worker_main registered.
    if let (Some(entry), Some(shared)) = (unsafe { entry.cast_mut_ptr::<Database>().as_ref() }, shared::shared()) {
        entry.wake.follow_quietly(&shared.launcher);
        entry.worker_pid.store(0, SeqCst);
        entry.signal_progress();
        shared.launcher.set_latch();
    }
}

/// What an operator reads of a failed transaction: its SQLSTATE, not its text, which may quote a row.
fn report(pipeline: Option<&str>, failed: &Failed) {
    let code = crate::error::sqlstate_text(failed.code);
    match pipeline {
        Some(pipeline) => log!("recsync worker: pipeline {pipeline}: SQLSTATE {code}"),
        None => log!("recsync worker: SQLSTATE {code}"),
    }
}

impl Leader {
    fn new(
        shared: &'static Shared,
        database: &'static Database,
        ringer: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Leader> {
        let (reply_to, replies) = unbounded();
        let (checkpoint, from) = transaction(|| {
            jobs::take_back_leases()?;
            upkeep::resume_checkpoint()
        })
        .map_err(|failed| Error::Internal(failed.message))?;
        database.catalog_changed.store(true, SeqCst);
        let now = Instant::now();
        Ok(Leader {
            shared,
            database,
            suspended: false,
            restoring: false,
            secret: Vec::new(),
            pipelines: BTreeMap::new(),
            lanes: Lanes::default(),
            flights: Flights::default(),
            queue: Queue::default(),
            reader: Reader::new(from),
            checkpoint,
            next_job: None,
            replies,
            reply_to,
            ringer,
            jitter: fastrand::Rng::new(),
            started: now,
            busy_at: now,
            first_in_turn: 0,
        })
    }

    fn run(mut self, mut bell: Bell) {
        loop {
            process::show(Some(c"recsync: working"));
            match self.round() {
                Ok(true) => {}
                Ok(false) => return,
                Err(failed) => {
                    // The extension may have been dropped under us; otherwise a new process starts from what is committed.
                    report(None, &failed);
                    match transaction(upkeep::installed_version) {
                        Ok(None) => self.database.set_presence(Presence::Absent),
                        // SAFETY: an orderly exit with a code that is no success.
                        _ => unsafe { pg_sys::proc_exit(1) },
                    }
                    return;
                }
            }
            process::show(None);
            bell.wait(self.idle_time());
        }
    }

    /// One round; false when this worker has no place here any more.
    fn round(&mut self) -> std::result::Result<bool, Failed> {
        process::reload_if_asked();
        self.database.wake.arm(); // before the log is read: a commit after that reading wakes us
        if self.database.catalog_changed.swap(false, SeqCst) && !self.load()? {
            return Ok(false);
        }
        if self.suspended {
            return Ok(true);
        }
        self.land()?;
        self.dispatch()?;
        if settings::enabled() {
            self.claim()?;
            self.backfill()?;
            self.render_and_send()?;
            self.sweep()?;
        }
        self.put_aside()?;
        self.move_checkpoint()?;
        self.publish();
        Ok(!self.gives_way()?)
    }

    /// Loads what is declared. False when the extension is gone.
    fn load(&mut self) -> std::result::Result<bool, Failed> {
        let loaded = transaction(|| {
            let version = upkeep::installed_version()?;
            if version.as_deref() != Some(env!("CARGO_PKG_VERSION")) {
                return Ok((version, Vec::new(), String::new(), Vec::new()));
            }
            let schema = names::vector_schema().unwrap_or_default();
            Ok((version, pipeline::load_all()?, schema, upkeep::secret()?))
        })?;
        let (version, pipelines, vector_schema, secret) = loaded;
        let Some(version) = version else {
            self.database.set_presence(Presence::Absent);
            return Ok(false);
        };
        self.suspended = version != env!("CARGO_PKG_VERSION");
        if self.suspended {
            log!("recsync worker: the library is {}, the extension {version}: waiting for ALTER EXTENSION recsync UPDATE", env!("CARGO_PKG_VERSION"));
            return Ok(true);
        }
        self.secret = secret;
        self.restoring = false;
        let mut known = std::mem::take(&mut self.pipelines);
        let mut off = Vec::new();
        for pipeline in pipelines {
            let before = known.remove(&pipeline.id);
            let state = match before {
                Some(State::Runs(running)) if running.pipeline == pipeline => State::Runs(running),
                before => {
                    if let Some(State::Runs(mut running)) = before {
                        self.let_go_of_ready(&mut running);
                    }
                    self.state_of(&pipeline, &vector_schema, &mut off)?
                }
            };
            self.pipelines.insert(pipeline.id, state);
        }
        for id in known.into_keys().chain(off) {
            self.queue.forget(id);
        }
        let used: Vec<u64> = self.pipelines.values_mut().filter_map(|state| state.running().map(|r| r.lane)).collect();
        self.lanes.keep(|lane| used.contains(&lane));
        self.next_job = Some(Instant::now());
        Ok(true)
    }

    fn state_of(
        &mut self,
        pipeline: &pipeline::Pipeline,
        vector_schema: &str,
        off: &mut Vec<i32>,
    ) -> std::result::Result<State, Failed> {
        if pipeline.paused {
            off.push(pipeline.id);
            return Ok(State::Off);
        }
        if let Some(reason) = broken(pipeline) {
            self.pause(pipeline.id, &pipeline.relation, &reason)?;
            off.push(pipeline.id);
            return Ok(State::Off);
        }
        if pipeline.trouble().is_some() {
            off.push(pipeline.id);
            self.restoring = true;
            transaction(|| backfill::restart(&[pipeline.id]))?;
            return Ok(State::Off);
        }
        let Ok(endpoint) = pipeline.endpoint() else { return Ok(State::Off) };
        let (reply_to, ringer) = (self.reply_to.clone(), self.ringer.clone());
        let lane = self.lanes.of(&endpoint, pipeline.owner().to_u32(), |number| {
            Lane::start(number, endpoint.clone(), settings::secret_policy(), reply_to, ringer)
        });
        Ok(State::Runs(Box::new(Running {
            renderer: Renderer::new(pipeline),
            writer: Writer::new(pipeline, vector_schema),
            pipeline: pipeline.clone(),
            endpoint,
            lane,
            ready: Default::default(),
            halves: Default::default(),
            sweep: false,
            in_flight: 0,
        })))
    }

    /// Replies become vectors: stored with their jobs' completion, in one transaction a pipeline.
    fn land(&mut self) -> std::result::Result<(), Failed> {
        let mut landed: HashMap<i32, Landed> = HashMap::new();
        let jitter = &mut self.jitter;
        while let Ok(reply) = self.replies.try_recv() {
            let pipelines = &mut self.pipelines;
            self.flights.land(
                reply,
                &mut self.lanes,
                &mut landed,
                |id| pipelines.get_mut(&id).and_then(State::running).map(|running| &mut *running),
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
                        if !all_written {
                            self.queue.add(embedded.job.row.clone(), QueueLane::Live, None);
                        }
                    }
                    for verdict in &landed.verdicts {
                        let (Verdict::Retry { job, .. } | Verdict::Bury { job, .. }) = verdict;
                        self.queue.finish(&job.row);
                    }
                    if !landed.verdicts.is_empty() {
                        self.next_job = Some(Instant::now());
                    }
                    if let Some(counters) = self.shared.counters_or_new(self.database_oid(), id) {
                        counters.embedded.fetch_add(count, SeqCst);
                        if count > 0 {
                            // SAFETY: the server's clock.
                            counters.last_embedded_us.store(unsafe { pg_sys::GetCurrentTimestamp() }, SeqCst);
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
    fn after_failed_store(&mut self, id: i32, failed: &Failed, landed: Landed) -> std::result::Result<(), Failed> {
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
        let most = self.pipelines.get_mut(&id).and_then(State::running).map_or(3, |r| r.endpoint.max_attempts);
        transaction(|| {
            let mut puts = Vec::new();
            let retried: Vec<Job> =
                jobs.iter().cloned().map(|job| Job { attempt: job.attempt + 1, ..job }).collect();
            for job in &retried {
                if job.attempt >= most {
                    jobs::bury(job, "permanent", None, &format!("the vector could not be stored: {}", failed.message))?;
                } else {
                    puts.push(Put { job, delay: crate::embed::retry::backoff(job.attempt, 0.5) });
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

    /// The change log becomes jobs.
    fn dispatch(&mut self) -> std::result::Result<(), Failed> {
        let reader = &mut self.reader;
        let page = transaction(|| reader.next())?;
        if page.changes.is_empty() && page.complete.is_none() {
            return Ok(());
        }
        let ticket = self.queue.open(match &page.complete {
            Some(snapshot) => Ticket::Log(snapshot.to_string()),
            None => Ticket::Log(String::new()),
        });
        let mut put_down: HashMap<i32, Vec<Job>> = HashMap::new();
        for change in &page.changes {
            self.busy_at = Instant::now();
            self.dispatch_one(change, ticket, &mut put_down);
        }
        for (id, jobs) in put_down {
            write_down(id, &jobs, Duration::ZERO)?;
        }
        if !page.changes.is_empty() {
            self.checkpoint.has_changes = true;
        }
        Ok(())
    }

    fn dispatch_one(&mut self, change: &Change, ticket: u64, put_down: &mut HashMap<i32, Vec<Job>>) {
        for (id, state) in &mut self.pipelines {
            let Some(running) = state.running().filter(|running| running.pipeline.source_id == change.source_id) else {
                continue; // what it misses is made up for by the backfill of `resume`
            };
            let database = pg_sys::Oid::from(self.database.oid.load(SeqCst));
            if let Some(counters) = self.shared.counters_or_new(database, *id) {
                // SAFETY: the server's clock.
                counters.last_change_us.store(unsafe { pg_sys::GetCurrentTimestamp() }, SeqCst);
            }
            if change.op == 'T' {
                running.sweep = true;
                continue;
            }
            let lane = if change.op == 'D' { QueueLane::Removal } else { QueueLane::Live };
            for (key, lane) in [(&change.old_key, QueueLane::Removal), (&change.key, lane)] {
                let Some(values) = key else { continue };
                // None: logged before a key column was renamed, in a table with several of them.
                let Some(row) = key_of(*id, values, &running.pipeline.key_columns) else { continue };
                if lane == QueueLane::Live && self.queue.waits(*id, lane) >= MOST_IN_MEMORY {
                    let job = Job { row, attempt: 0, stored: false, last_attempt_us: None };
                    put_down.entry(*id).or_default().push(job);
                } else {
                    self.queue.add(row, lane, Some(ticket));
                }
            }
        }
    }

    /// Jobs that are due and are rows.
    fn claim(&mut self) -> std::result::Result<(), Failed> {
        if self.next_job.is_none_or(|at| at > Instant::now()) {
            return Ok(());
        }
        let mut open = Vec::new();
        for (id, state) in &mut self.pipelines {
            if let Some(running) = state.running()
                && self.queue.waits(*id, QueueLane::Live) < MOST_IN_MEMORY / 2
                && self.lanes.get(running.lane).is_some_and(|lane| lane.breaker.open_until().is_none())
            {
                open.push(*id);
            }
        }
        let (claimed, next) = transaction(|| Ok((jobs::claim(&open, CHUNK * 4)?, jobs::next_due(&open)?)))?;
        self.next_job = next.map(|next| Instant::now() + next);
        if claimed.len() == CHUNK * 4 {
            self.next_job = Some(Instant::now());
        }
        for job in claimed {
            self.queue.add_job(job, QueueLane::Live, None);
        }
        Ok(())
    }

    /// The next slices of backfills, where nothing live waits.
    fn backfill(&mut self) -> std::result::Result<(), Failed> {
        for (id, state) in &mut self.pipelines {
            let Some(running) = state.running() else { continue };
            if running.pipeline.backfilled || self.queue.waits(*id, QueueLane::Backfill) > backfill::SLICE / 2 {
                continue;
            }
            let after = running.pipeline.backfill_after.clone();
            let pipeline = &running.pipeline;
            let slice = transaction(|| {
                guard_user_code()?;
                backfill::slice(pipeline, after.as_deref())
            });
            let slice = match slice {
                Ok(slice) => slice,
                Err(failed) => {
                    report(Some(&running.pipeline.relation), &failed);
                    let (relation, message) = (running.pipeline.relation.clone(), failed.message);
                    transaction(|| upkeep::pause(*id, &message))?;
                    log!("recsync worker: pipeline {relation} is paused: its rows could not be read");
                    self.database.catalog_changed.store(true, SeqCst);
                    continue;
                }
            };
            let last = slice.len() < backfill::SLICE;
            let up_to = if last { None } else { slice.last().cloned() };
            running.pipeline.backfill_after.clone_from(&up_to);
            running.pipeline.backfilled = last;
            let ticket =
                self.queue.open(Ticket::Backfill { pipeline: *id, up_to, rows: slice.len() as i64 });
            for key in slice {
                let row = RowKey { pipeline: *id, key: Arc::from(key) };
                self.queue.add(row, QueueLane::Backfill, Some(ticket));
            }
        }
        Ok(())
    }

    /// Rows become texts, texts become requests: removals first, then live changes, then the backfill; a chunk of
    /// each pipeline in turn.
    fn render_and_send(&mut self) -> std::result::Result<(), Failed> {
        let ids: Vec<i32> = self.pipelines.keys().copied().collect();
        self.first_in_turn = self.first_in_turn.wrapping_add(1);
        let mut more = true;
        while more && self.replies.is_empty() {
            more = false;
            for turn in 0..ids.len() {
                let id = ids[(self.first_in_turn + turn) % ids.len()];
                let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else { continue };
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

    /// Renders a chunk; one that fails is halved until the row that is the cause is alone.
    fn render(&mut self, id: i32, jobs: Vec<Job>) -> std::result::Result<(), Failed> {
        let Some(running) = self.pipelines.get_mut(&id).and_then(State::running) else { return Ok(()) };
        match render(running, &jobs, &self.secret) {
            Ok(rendered) => {
                for (job, rendered) in jobs.into_iter().zip(rendered) {
                    match rendered {
                        Rendered::Gone | Rendered::Unchanged => self.queue.finish(&job.row),
                        Rendered::Text { text, hash, stored_hash } => {
                            running.ready.push_back(Ready { job, text, hash, stored_hash });
                        }
                    }
                }
                Ok(())
            }
            Err(failed) if is_definition(failed.code) => {
                let relation = running.pipeline.relation.clone();
                report(Some(&relation), &failed);
                self.pause(id, &relation, &failed.message)?;
                self.database.catalog_changed.store(true, SeqCst);
                Ok(())
            }
            Err(failed) if is_passing(failed.code) => {
                report(Some(&running.pipeline.relation), &failed);
                write_down(id, &jobs, Duration::from_secs(1))?;
                for job in &jobs {
                    self.queue.finish(&job.row);
                }
                self.next_job = Some(Instant::now() + Duration::from_secs(1));
                Ok(())
            }
            Err(failed) if jobs.len() == 1 => {
                report(Some(&running.pipeline.relation), &failed);
                let message = format!("its text could not be rendered: {}", failed.message);
                transaction(|| jobs.iter().try_for_each(|job| jobs::bury(job, "permanent", None, &message)))?;
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
    fn sweep(&mut self) -> std::result::Result<(), Failed> {
        for state in self.pipelines.values_mut() {
            let Some(running) = state.running() else { continue };
            while running.sweep {
                let renderer = &running.renderer;
                let swept = transaction(|| {
                    guard_user_code()?;
                    renderer.remove_orphans()
                });
                match swept {
                    Ok(more) => running.sweep = more,
                    Err(failed) => {
                        report(Some(&running.pipeline.relation), &failed);
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// What cannot be sent for now is written down, so that the checkpoint can move and memory is bounded.
    fn put_aside(&mut self) -> std::result::Result<(), Failed> {
        if self.queue.is_empty() {
            return Ok(());
        }
        for id in self.queue.older_than(PATIENCE) {
            let jobs = self.queue.take_all(id);
            write_down(id, &jobs, Duration::ZERO)?;
            for job in jobs {
                self.queue.finish(&job.row);
            }
            self.next_job.get_or_insert(Instant::now());
        }
        for (id, state) in &mut self.pipelines {
            let Some(running) = state.running() else { continue };
            let blocked = self.lanes.get(running.lane).is_some_and(|lane| lane.breaker.open_until().is_some());
            if !blocked || running.ready_count() == 0 || self.busy_at.elapsed() < PATIENCE {
                continue;
            }
            let ready: Vec<Ready> = running.ready.drain(..).chain(running.halves.drain(..).flatten()).collect();
            let jobs: Vec<Job> = ready.into_iter().map(|ready| ready.job).collect();
            write_down(*id, &jobs, Duration::ZERO)?;
            for job in jobs {
                self.queue.finish(&job.row);
            }
            self.next_job.get_or_insert(Instant::now());
        }
        Ok(())
    }

    /// The checkpoint passes what is done; so do the positions of backfills.
    fn move_checkpoint(&mut self) -> std::result::Result<(), Failed> {
        let finished = self.queue.finished_tickets();
        let wanted = self.database.checkpoint_wanted.swap(false, SeqCst);
        for ticket in &finished {
            if let Ticket::Backfill { pipeline, up_to: None, .. } = ticket
                && let Some(running) = self.pipelines.get_mut(pipeline).and_then(State::running)
            {
                running.sweep = true;
                self.checkpoint.has_changes = true;
            }
        }
        if self.checkpoint.advance(&finished, wanted)? || wanted {
            self.database.signal_progress();
        }
        if self.checkpoint.rotation_is_due() {
            upkeep::rotate(self.database, &self.checkpoint);
        }
        Ok(())
    }

    fn publish(&self) {
        for (id, state) in &self.pipelines {
            let State::Runs(running) = state else { continue };
            let Some(counters) = self.shared.counters_or_new(self.database_oid(), *id) else { continue };
            let waiting: usize = [QueueLane::Removal, QueueLane::Live, QueueLane::Backfill]
                .into_iter()
                .map(|lane| self.queue.waits(*id, lane))
                .sum();
            counters.pending.store((waiting + running.ready_count()) as i64, SeqCst);
            counters.in_flight.store(running.in_flight as i64, SeqCst);
        }
    }

    /// How long nothing is due.
    fn idle_time(&mut self) -> Duration {
        let now = Instant::now();
        let mut wait = FALLBACK;
        if self.suspended {
            return wait;
        }
        if self.reader.has_more() || self.database.catalog_changed.load(SeqCst) || !self.replies.is_empty() {
            return Duration::ZERO;
        }
        if settings::enabled() {
            for at in self.next_job.iter() {
                wait = wait.min(at.saturating_duration_since(now));
            }
            for (id, state) in &mut self.pipelines {
                let Some(running) = state.running() else { continue };
                let waits = !running.is_full()
                    && [QueueLane::Live, QueueLane::Backfill].iter().any(|lane| self.queue.waits(*id, *lane) > 0);
                if waits || running.sweep || (!running.pipeline.backfilled && !self.queue.has_slice(*id)) {
                    return Duration::ZERO;
                }
                let open = self.lanes.get(running.lane).and_then(|lane| lane.breaker.open_until());
                if let (Some(until), true) = (open, running.ready_count() > 0) {
                    wait = wait.min(until.saturating_duration_since(now) + Duration::from_millis(1)).min(PATIENCE);
                }
            }
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

    /// Whether this worker leaves its slot to another database.
    fn gives_way(&mut self) -> std::result::Result<bool, Failed> {
        if self.shared.waiting_databases.load(SeqCst) == 0 || !self.flights.is_empty() {
            return Ok(false);
        }
        let idle = self.busy_at.elapsed() >= IDLE
            && self.started.elapsed() >= IDLE
            && self.queue.is_empty()
            && self.next_job.is_none();
        if idle {
            // Whoever commits from here on wakes the launcher; what was committed before has to be looked at once more.
            self.database.wake.follow(&self.shared.launcher);
            self.dispatch()?;
            if self.queue.is_empty() && !self.reader.has_more() && !self.database.catalog_changed.load(SeqCst) {
                self.database.gave_way.store(true, SeqCst);
                return Ok(true);
            }
            self.database.wake.claim();
            return Ok(false);
        }
        // A busy one hands over between two rounds; what is in memory is read again from the checkpoint.
        let over = self.started.elapsed() >= SHIFT;
        if over {
            self.database.gave_way.store(true, SeqCst);
            self.database.catalog_changed.store(true, SeqCst);
        }
        Ok(over)
    }

    fn pause(&mut self, id: i32, relation: &str, reason: &str) -> std::result::Result<(), Failed> {
        log!("recsync worker: pipeline {relation} is paused, see recsync.status");
        transaction(|| upkeep::pause(id, reason))
    }

    fn let_go_of_ready(&mut self, running: &mut Running) {
        for ready in running.ready.drain(..).chain(running.halves.drain(..).flatten()) {
            self.queue.put_back(&ready.job.row, QueueLane::Live);
        }
    }

    fn database_oid(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.database.oid.load(SeqCst))
    }
}

/// Renders in a transaction of its own; jobs of rows that are done end with it.
fn render(running: &Running, jobs: &[Job], secret: &[u8]) -> std::result::Result<Vec<Rendered>, Failed> {
    transaction(|| {
        guard_user_code()?;
        let rendered = running.renderer.render(jobs, &running.endpoint.model, secret)?;
        release_user_code();
        let done = jobs.iter().zip(&rendered).filter(|(_, rendered)| !matches!(rendered, Rendered::Text { .. }));
        let rows: Vec<&RowKey> = done.filter(|(job, _)| job.stored).map(|(job, _)| &job.row).collect();
        jobs::complete(running.pipeline.id, rows.iter().copied())?;
        Ok(rendered)
    })
}

/// Vectors, completions, retries and dead letters of one pipeline, in one transaction.
fn store(running: &Running, landed: &mut Landed) -> std::result::Result<bool, Failed> {
    let id = running.pipeline.id;
    transaction(|| {
        let mut all_written = true;
        if !landed.embedded.is_empty() {
            guard_user_code()?;
            all_written = running.writer.write(&mut landed.embedded, &running.endpoint.model)?;
            release_user_code();
            let stored = landed.embedded.iter().filter(|embedded| embedded.job.stored);
            jobs::complete(id, stored.map(|embedded| &embedded.job.row))?;
            if upkeep::has_dead_letters(id)? {
                jobs::unbury(id, landed.embedded.iter().map(|embedded| &embedded.job.row))?;
            }
        }
        let mut puts = Vec::new();
        for verdict in &landed.verdicts {
            match verdict {
                Verdict::Retry { job, delay } => puts.push(Put { job, delay: *delay }),
                Verdict::Bury { job, failure } => jobs::bury(
                    job,
                    failure.class.as_str(),
                    failure.status.map(i32::from),
                    &describe(failure),
                )?,
            }
        }
        jobs::put(id, &puts)?;
        Ok(all_written)
    })
}

fn write_down(pipeline: i32, jobs: &[Job], delay: Duration) -> std::result::Result<(), Failed> {
    let puts: Vec<Put> = jobs.iter().map(|job| Put { job, delay }).collect();
    transaction(|| jobs::put(pipeline, &puts))
}

/// The row that a logged key means; `None` where it names other columns.
fn key_of(pipeline: i32, values: &HashMap<String, String>, columns: &[String]) -> Option<RowKey> {
    let mut key: Vec<String> = columns.iter().filter_map(|column| values.get(column).cloned()).collect();
    if key.len() != columns.len() {
        if columns.len() != 1 || values.len() != 1 {
            return None;
        }
        key = values.values().cloned().collect();
    }
    Some(RowKey { pipeline, key: Arc::from(key) })
}

/// Errors that mean that the declaration does not fit the tables any more.
fn is_definition(code: PgSqlErrorCode) -> bool {
    use PgSqlErrorCode as C;
    matches!(
        code,
        C::ERRCODE_UNDEFINED_TABLE
            | C::ERRCODE_UNDEFINED_COLUMN
            | C::ERRCODE_UNDEFINED_FUNCTION
            | C::ERRCODE_UNDEFINED_OBJECT
            | C::ERRCODE_INVALID_SCHEMA_NAME
            | C::ERRCODE_INSUFFICIENT_PRIVILEGE
            | C::ERRCODE_DATATYPE_MISMATCH
            | C::ERRCODE_INVALID_TEXT_REPRESENTATION
    )
}

/// Errors that pass by themselves.
fn is_passing(code: PgSqlErrorCode) -> bool {
    use PgSqlErrorCode as C;
    matches!(code, C::ERRCODE_T_R_DEADLOCK_DETECTED | C::ERRCODE_LOCK_NOT_AVAILABLE | C::ERRCODE_T_R_SERIALIZATION_FAILURE)
}
