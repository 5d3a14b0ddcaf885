//! Pipelines as the worker runs them: their statements, their server's lane, the texts that are ready to go.
//!
//! It never waits: what cannot go on now stays where it is for the next round.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::calendar::Calendar;
use super::claims::Claims;
use crate::catalog::pipeline::Pipeline;
use crate::dispatch::queue::Job;
use crate::dispatch::render::Renderer;
use crate::embed::account::Account;
use crate::embed::batch::{Room, take};
use crate::embed::endpoint::Endpoint;
use crate::embed::lane::Lane;
use crate::embed::limits::Limits;
use crate::embed::rate::{self, Asker, Grant};
use crate::embed::retry::Breaker;
use crate::embed::size::Size;
use crate::embed::tokens::estimate_tokens;
use crate::embed::window::Window;
use crate::shared;
use crate::store::Writer;

/// A text that waits for a free thread.
#[derive(Clone)]
pub struct Ready {
    pub job: Job,
    pub text: String,
    pub hash: Vec<u8>,
    pub stored_hash: Option<Vec<u8>>,
    pub since: Instant,
    /// Estimated, once somebody has asked.
    pub tokens: Option<u64>,
}

impl Ready {
    fn tokens(&mut self) -> u64 {
        *self
            .tokens
            .get_or_insert_with(|| estimate_tokens(&self.text))
    }
}

pub struct Running {
    pub pipeline: Pipeline,
    pub endpoint: Endpoint,
    pub renderer: Renderer,
    pub writer: Writer,
    /// The lane's number in [`Lanes`].
    pub lane: u64,
    /// When its changes are due.
    pub calendar: Calendar,
    pub claims: Claims,
    pub ready: VecDeque<Ready>,
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
    /// When the account's limits let the next request go.
    pub grant: Option<Grant>,
}

impl Running {
    /// Texts that are rendered and not sent: bounded, so that a provider that is down fills no memory.
    pub fn is_full(&self) -> bool {
        self.ready_count() >= 4 * self.endpoint.max_batch_inputs
    }

    /// How long the oldest text that is ready, and no row of the job table, has waited for its server.
    pub fn unstored_for(&self) -> Option<Duration> {
        let ready = self.ready.iter().chain(self.halves.iter().flatten());
        let unstored = ready.filter(|ready| !ready.job.stored);
        let oldest = unstored.map(|ready| ready.since).min();
        oldest.map(|since| since.elapsed())
    }

    /// Jobs of ready texts that are not rows yet: from now on they are, once the caller has written them down.
    pub fn store_ready(&mut self) -> Vec<Job> {
        let ready = self
            .ready
            .iter_mut()
            .chain(self.halves.iter_mut().flatten());
        ready
            .filter(|ready| !ready.job.stored)
            .map(|ready| {
                ready.job.stored = true;
                ready.job.clone()
            })
            .collect()
    }

    pub fn ready_count(&self) -> usize {
        self.ready.len() + self.halves.iter().map(Vec::len).sum::<usize>()
    }

    /// How long the account's limits keep the next request.
    pub fn limited_for(&self) -> Duration {
        let at = self.grant.as_ref().map(Grant::at);
        at.map_or(Duration::ZERO, |at| rate::until(at, rate::now()))
    }

    /// How many texts may go in one request now; `None` where the account's limits do not let any go yet.
    pub fn admitted(&mut self, server: &mut ServerLane) -> Option<usize> {
        let room = server.room();
        let account = server.account;
        if !account.is_limited() {
            return Some(self.next_count(room));
        }
        let now = rate::now();
        let grant = self.grant.take().filter(|grant| !grant.has_lapsed(now));
        if let Some(grant) = grant {
            // Texts that have come since are not in it.
            let tokens = grant.tokens();
            let count = self.next_count(room.with_tokens(tokens));
            if tokens.is_none_or(|most| self.tokens_of_next(count) <= most) {
                self.grant = Some(grant);
                return Some(count);
            }
        }
        let count = self.next_count(room.with_tokens(account.batch_tokens()));
        let tokens = if account.counts_tokens() {
            self.tokens_of_next(count)
        } else {
            0
        };
        self.grant = account.ask(tokens, Asker::Worker, now, i64::MAX).ok();
        self.limited_for().is_zero().then_some(count)
    }

    /// How many texts make the next request: the oldest that fit into one.
    fn next_count(&mut self, room: Room) -> usize {
        if let Some(half) = self.halves.front() {
            return half.len().min(room.inputs);
        }
        // A token is a byte at the least: counting bytes is enough while they fit.
        let texts = self.ready.iter().map(|ready| ready.text.len());
        let count = take(room, texts.map(|bytes| (bytes as u64, bytes)));
        if count == room.inputs.min(self.ready.len()) || room.tokens.is_none() {
            return count;
        }
        let texts = self.ready.iter_mut();
        take(room, texts.map(|ready| (ready.tokens(), ready.text.len())))
    }

    fn tokens_of_next(&mut self, count: usize) -> u64 {
        match self.halves.front_mut() {
            Some(half) => half.iter_mut().take(count).map(Ready::tokens).sum(),
            None => self.ready.iter_mut().take(count).map(Ready::tokens).sum(),
        }
    }

    /// Takes the texts of the next request.
    pub fn take_next(&mut self, count: usize) -> Vec<Ready> {
        let Some(mut half) = self.halves.pop_front() else {
            return self.ready.drain(..count).collect();
        };
        let rest = half.split_off(count.min(half.len()));
        if !rest.is_empty() {
            self.halves.push_front(rest);
        }
        half
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

    /// Whether a request may be sent now; see [`Breaker::allows`].
    pub fn allows(&mut self) -> bool {
        let now = Instant::now();
        self.lane.in_flight() < self.window.size()
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
            .find(|(_, lane)| lane.owner == owner && lane.endpoint == *endpoint);
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
