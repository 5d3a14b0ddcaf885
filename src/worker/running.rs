//! Pipelines as the worker runs them: their statements, their server's lane, the texts that are ready to go.
//!
//! It never waits: what cannot go on now stays where it is for the next round.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::calendar::Calendar;
use super::claims::Claims;
use super::filling::Filler;
use super::indexer::Progress;
use super::ready::{Ready, Weight, fill};
use super::storing::LOCKED;
use super::unstored::Unstored;
use crate::catalog::pipeline::Pipeline;
use crate::dispatch::queue::{Job, Lane as QueueLane, RowKey};
use crate::dispatch::render::Renderer;
use crate::embed::account::Account;
use crate::embed::batch::Room;
use crate::embed::endpoint::Endpoint;
use crate::embed::lane::Lane;
use crate::embed::limits::Limits;
use crate::embed::long_text::LongText;
use crate::embed::rate::{self, Asker, Grant};
use crate::embed::retry::Breaker;
use crate::embed::size::Size;
use crate::embed::window::Window;
use crate::ledger::bill::{Payer, Saved};
use crate::shared;
use crate::store::Writer;
use crate::store::known::Known;

pub struct Running {
    pub pipeline: Pipeline,
    /// The number of the declaration by which it runs.
    pub declaration: u64,
    pub vector_schema: String,
    pub endpoint: Endpoint,
    /// On whose account it goes.
    pub payer: Rc<Payer>,
    /// A budget is spent: nothing more is sent. What needs no request goes on.
    pub is_spent: bool,
    pub long_text: LongText,
    pub renderer: Renderer,
    pub writer: Writer,
    /// The lane's number in [`Lanes`].
    pub lane: u64,
    /// When its changes are due.
    pub calendar: Calendar,
    pub claims: Claims,
    /// How fast the backfill goes, and how far it is.
    pub filling: Filler,
    /// Of changes; those of the backfill, which wait for them.
    pub ready: VecDeque<Ready>,
    pub ready_backfill: VecDeque<Ready>,
    /// Halves of a batch that failed: sent as they are, or in parts, before what is ready.
    pub halves: VecDeque<Vec<Ready>>,
    /// TRUNCATE, or the end of a backfill: vectors without a row have to be looked for.
    /// When; a failure puts it off.
    pub sweep: Option<Instant>,
    /// The page of the log that is being dispatched has a change of it.
    pub changed: bool,
    /// There are dead letters, which a success may make obsolete.
    pub dead_letters: bool,
    /// Rows in flight.
    pub in_flight: usize,
    /// Its table is being indexed while nobody writes to it.
    pub held: bool,
    /// When the account's limits let the next request go.
    pub grant: Option<Grant>,
    /// Vectors that have come.
    pub unstored: Unstored,
    /// Those of parts of rows that are rendered anew: they are known from now on.
    pub spare: Vec<Known>,
    /// What is known on the way to its index, where it lacks one.
    pub index: Progress,
    /// When it last sent a request, and gave a writer rows: turns, in which others come first that waited longer.
    pub sent_at: u64,
    pub given_at: u64,
}

impl Running {
    /// Texts that are rendered and not sent, and vectors that are not stored: bounded, so that neither a provider that is
    /// down nor a slow index fills the memory.
    pub fn is_full(&self, lane: QueueLane) -> bool {
        let ready = match lane {
            QueueLane::Backfill => &self.ready_backfill,
            _ => &self.ready,
        };
        let ready = ready.iter().chain(self.halves.iter().flatten());
        let texts: usize = ready.map(|ready| ready.parts.len()).sum();
        texts >= 4 * self.endpoint.max_batch_inputs || self.unstored.is_full(lane)
    }

    /// Whether there are texts to be sent, where `storers` processes store the vectors: no more are asked for than
    /// can be stored.
    pub fn has_sendable(&self, storers: usize) -> bool {
        !self.is_spent
            && (!self.halves.is_empty()
                || [QueueLane::Live, QueueLane::Backfill]
                    .into_iter()
                    .any(|lane| self.may_send(lane, storers)))
    }

    /// Whether its backfill goes on.
    pub fn reads_rows(&self) -> bool {
        !self.pipeline.backfilled && !self.is_spent
    }

    /// Its declaration or its server says otherwise what it costs and what may be spent.
    pub fn take_prices(&mut self, pipeline: &Pipeline) {
        self.pipeline.monthly_budget = pipeline.monthly_budget;
        if let Ok(endpoint) = pipeline.endpoint() {
            self.endpoint.take_prices(&endpoint);
            self.payer = Rc::new(Payer::new(
                pipeline.id,
                pipeline.account,
                &pipeline.server,
                &self.endpoint,
            ));
        }
    }

    fn may_send(&self, lane: QueueLane, storers: usize) -> bool {
        let ready = match lane {
            QueueLane::Backfill => &self.ready_backfill,
            _ => &self.ready,
        };
        !ready.is_empty() && self.unstored.has_room(lane, storers)
    }

    /// Rows that writers may take: where the index is the limit, and no vectors are about to be swept away that they
    /// would be waited for.
    pub fn bulk(&self) -> usize {
        let sweeps = self.sweep.is_some_and(|at| at <= Instant::now());
        match self.pipeline.hnsw && !sweeps && !self.held {
            true => self.unstored.bulk(),
            false => 0,
        }
    }

    /// How many rows are stored in one transaction that may take so long. Those of a column are users' rows, for
    /// whose locks a user's statement may have to wait meanwhile.
    pub fn rows_at_once(&self, time: Duration) -> usize {
        match self.pipeline.into_column {
            Some(_) if self.pipeline.hnsw => 1,
            Some(_) => self.unstored.cost.rows_in(time.min(LOCKED)),
            None => self.unstored.cost.rows_in(time),
        }
    }

    /// Whether the leader stores what has come in this lane; `writers`: whether there are any.
    pub fn is_stored_by_leader(&self, lane: QueueLane, writers: bool) -> bool {
        lane != QueueLane::Backfill || !self.pipeline.hnsw || !writers
    }

    /// How long the oldest text that is ready, and no row of the job table, has waited for its server.
    pub fn unwritten_for(&self) -> Option<Duration> {
        let ready = self.ready.iter().chain(&self.ready_backfill);
        let ready = ready.chain(self.halves.iter().flatten());
        let unwritten = ready.filter(|ready| !ready.job.stored);
        let oldest = unwritten.map(|ready| ready.since).min();
        oldest.map(|since| since.elapsed())
    }

    /// Jobs of ready texts that are not rows yet: from now on they are, once the caller has written them down.
    pub fn store_ready(&mut self) -> Vec<Job> {
        let ready = self
            .ready
            .iter_mut()
            .chain(self.ready_backfill.iter_mut())
            .chain(self.halves.iter_mut().flatten());
        ready
            .filter(|ready| !ready.job.stored)
            .map(|ready| {
                ready.job.stored = true;
                ready.job.clone()
            })
            .collect()
    }

    /// The jobs of all texts that are ready: they are rendered anew another time.
    pub fn drain_ready(&mut self) -> Vec<Job> {
        let ready = self.ready.drain(..).chain(self.ready_backfill.drain(..));
        let ready = ready.chain(self.halves.drain(..).flatten());
        let ready: Vec<Ready> = ready.collect();
        let jobs = ready.iter().map(|ready| ready.job.clone()).collect();
        self.spare.extend(ready.into_iter().flat_map(Ready::spare));
        jobs
    }

    /// Takes out the rows whose last vectors are among these, by the hashes of their texts: they need no request any more.
    pub fn take_known(
        &mut self,
        known: &HashMap<Vec<u8>, Vec<f32>>,
        saved: &mut Saved,
    ) -> Vec<Ready> {
        let mut taken = Vec::new();
        for ready in [&mut self.ready, &mut self.ready_backfill] {
            for ready in ready.iter_mut() {
                for part in ready.pending_mut() {
                    part.vector = known.get(&part.hash).cloned();
                    if part.vector.is_some() {
                        saved.known.add(1, self.renderer.rate.of(&part.text));
                    }
                }
            }
            let (complete, others) = std::mem::take(ready)
                .into_iter()
                .partition::<VecDeque<_>, _>(Ready::is_complete);
            *ready = others;
            taken.extend(complete);
        }
        taken
    }

    pub fn push_ready(&mut self, ready: Ready) {
        self.ready_of(ready.lane).push_back(ready);
    }

    /// A row some of whose parts have come: the others are next.
    pub fn push_first(&mut self, ready: Ready) {
        self.ready_of(ready.lane).push_front(ready);
    }

    fn ready_of(&mut self, lane: QueueLane) -> &mut VecDeque<Ready> {
        match lane {
            QueueLane::Backfill => &mut self.ready_backfill,
            _ => &mut self.ready,
        }
    }

    /// Takes out the backfilled rows that have changed since they were rendered, and puts those forward whose vector
    /// has come.
    pub fn withdraw(&mut self, has_changed: impl Fn(&RowKey) -> bool) -> Vec<RowKey> {
        self.unstored.promote(&has_changed);
        let (changed, others): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.ready_backfill)
                .into_iter()
                .partition(|ready| has_changed(&ready.job.row));
        self.ready_backfill = others;
        let rows = changed.iter().map(|ready| ready.job.row.clone()).collect();
        self.spare
            .extend(changed.into_iter().flat_map(Ready::spare));
        rows
    }

    pub fn ready_count(&self) -> usize {
        self.ready.len() + self.ready_backfill.len() + self.halves_count()
    }

    fn halves_count(&self) -> usize {
        self.halves.iter().map(Vec::len).sum::<usize>()
    }

    /// How long the account's limits keep the next request.
    pub fn limited_for(&self) -> Duration {
        let at = self.grant.as_ref().map(Grant::at);
        at.map_or(Duration::ZERO, |at| rate::until(at, rate::now()))
    }

    /// How many texts may go in one request now; `None` where the account's limits do not let any go yet.
    pub fn admitted(&mut self, server: &mut ServerLane, storers: usize) -> Option<usize> {
        let room = server.room();
        let account = server.account;
        if !account.is_limited() {
            return Some(self.next_count(room, storers));
        }
        let now = rate::now();
        let grant = self.grant.take().filter(|grant| !grant.has_lapsed(now));
        if let Some(grant) = grant {
            // Texts that have come since are not in it.
            let tokens = grant.tokens();
            let count = self.next_count(room.with_tokens(tokens), storers);
            if tokens.is_none_or(|most| self.tokens_of_next(count, storers) <= most) {
                self.grant = Some(grant);
                return Some(count);
            }
        }
        let count = self.next_count(room.with_tokens(account.batch_tokens()), storers);
        let tokens = if account.counts_tokens() {
            self.tokens_of_next(count, storers)
        } else {
            0
        };
        self.grant = account.ask(tokens, Asker::Worker, now, i64::MAX).ok();
        self.limited_for().is_zero().then_some(count)
    }

    /// What the next request is made of where there are no halves: changes before backfill; the two never share one.
    fn next_ready(&mut self, storers: usize) -> &mut VecDeque<Ready> {
        match self.may_send(QueueLane::Live, storers) {
            true => &mut self.ready,
            false => &mut self.ready_backfill,
        }
    }

    /// How many rows make the next request: the oldest that fit into one, the last of them perhaps with some of its parts.
    fn next_count(&mut self, room: Room, storers: usize) -> usize {
        if let Some(half) = self.halves.front_mut() {
            return fill(
                half.iter_mut(),
                Room {
                    tokens: None,
                    ..room
                },
                Weight::Bytes,
            )
            .0;
        }
        let ready = self.next_ready(storers);
        // A token is a byte at the least: counting bytes is enough while they fit.
        let (count, is_all) = fill(ready.iter_mut(), room, Weight::Bytes);
        if is_all || room.tokens.is_none() {
            return count;
        }
        fill(ready.iter_mut(), room, Weight::Tokens).0
    }

    fn tokens_of_next(&mut self, count: usize, storers: usize) -> u64 {
        if let Some(half) = self.halves.front_mut() {
            return half.iter_mut().take(count).map(Ready::tokens).sum();
        }
        let ready = self.next_ready(storers).iter_mut();
        ready.take(count).map(Ready::tokens).sum()
    }

    /// Takes the texts of the next request.
    pub fn take_next(&mut self, count: usize, storers: usize) -> Vec<Ready> {
        let Some(mut half) = self.halves.pop_front() else {
            return self.next_ready(storers).drain(..count).collect();
        };
        let rest = half.split_off(count.min(half.len()));
        if !rest.is_empty() {
            self.halves.push_front(rest);
        }
        half
    }
}

/// Counts the turns that are given: whoever had one the longest ago is next.
#[derive(Default)]
pub struct Turns(u64);

impl Turns {
    pub fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

/// A server as one owner uses it: its threads, its breaker, what it bears.
pub struct ServerLane {
    pub lane: Lane,
    pub breaker: Breaker,
    pub account: Account,
    /// By the limits that the provider announces: a request as large as the last one would be refused before then.
    paced_until: Option<Instant>,
    pub window: Window,
    pub size: Size,
    endpoint: Endpoint,
    owner: u32,
}

impl ServerLane {
    /// Until when the server is left alone; `None` when it may be asked.
    pub fn rests_until(&self) -> Option<Instant> {
        let now = Instant::now();
        let asked = now + self.account.rest(rate::now());
        let rests = [self.breaker.open_until(), self.paced_until, Some(asked)];
        rests
            .into_iter()
            .flatten()
            .filter(|until| *until > now)
            .max()
    }

    /// What an answer says of the account's limits: a request of as many tokens again waits for them, and where it
    /// asks to be left alone, everybody does.
    pub fn pace(&mut self, limits: Limits, tokens: u64, retry_after: Option<Duration>) {
        let wait = limits.wait_for(tokens.max(1));
        self.paced_until = (!wait.is_zero()).then(|| Instant::now() + wait);
        self.account.heed(retry_after, limits, rate::now());
    }

    /// Whether a request may be sent now, where so many have not landed yet: what their answers say is to be heard
    /// first. See [`Breaker::allows`].
    pub fn allows(&mut self, in_the_air: usize) -> bool {
        let now = Instant::now();
        in_the_air < self.window.size()
            && self.lane.free() > 0
            && self.paced_until.is_none_or(|until| until <= now)
            && self.account.rest(rate::now()).is_zero()
            && self.breaker.allows(now)
    }

    /// What one request may hold now.
    fn room(&mut self) -> Room {
        let room = self.endpoint.room();
        Room {
            inputs: room.inputs.min(self.size.most(Instant::now())),
            ..room
        }
    }
}

/// Lanes by number; a server whose options change gets a new one.
#[derive(Default)]
pub struct Lanes {
    lanes: HashMap<u64, ServerLane>,
    last: u64,
}

impl Lanes {
    pub fn get(&mut self, number: u64) -> Option<&mut ServerLane> {
        self.lanes.get_mut(&number)
    }

    /// The lane of this endpoint and owner, started by `start` where there is none.
    pub fn of(&mut self, endpoint: &Endpoint, owner: u32, start: impl FnOnce(u64) -> Lane) -> u64 {
        let known = self
            .lanes
            .iter()
            .find(|(_, lane)| lane.owner == owner && lane.endpoint.asks_as(endpoint));
        if let Some((number, _)) = known {
            return *number;
        }
        self.last += 1;
        let lane = ServerLane {
            lane: start(self.last),
            breaker: Breaker::new(),
            account: Account::of(endpoint, shared::rates()),
            paced_until: None,
            window: Window::new(endpoint.max_concurrency),
            size: Size::new(endpoint.max_batch_inputs),
            endpoint: endpoint.clone(),
            owner,
        };
        self.lanes.insert(self.last, lane);
        self.last
    }

    /// Drops all of them. A number is not given twice.
    pub fn clear(&mut self) {
        self.lanes.clear();
    }

    /// Drops lanes that nobody uses any more; their replies in flight still come.
    pub fn keep(&mut self, used: impl Fn(u64) -> bool) {
        self.lanes.retain(|number, _| used(*number));
    }
}

/// What becomes of a declared pipeline in this worker.
pub enum State {
    Runs(Box<Running>),
    /// Paused, or left alone: what it misses is made up for by a backfill when it runs again.
    Off,
}

impl State {
    pub fn running(&mut self) -> Option<&mut Running> {
        match self {
            State::Runs(running) => Some(running),
            State::Off => None,
        }
    }
}
