//! Pipelines as the worker runs them: their statements, their server's lane, the texts that are ready to go.
//!
//! It never waits: what cannot go on now stays where it is for the next round.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::unstored::Unstored;
use crate::catalog::pipeline::Pipeline;
use crate::dispatch::queue::{Job, Lane as QueueLane, RowKey};
use crate::dispatch::render::Renderer;
use crate::embed::batch::take;
use crate::embed::endpoint::Endpoint;
use crate::embed::lane::Lane;
use crate::embed::limits::Limits;
use crate::embed::retry::Breaker;
use crate::embed::tokens::estimate_tokens;
use crate::embed::window::Window;
use crate::store::Writer;

/// A text that waits for a free thread.
#[derive(Clone)]
pub struct Ready {
    pub job: Job,
    pub text: String,
    pub hash: Vec<u8>,
    pub stored_hash: Option<Vec<u8>>,
    pub since: Instant,
    /// Backfill, or live.
    pub lane: QueueLane,
}

pub struct Running {
    pub pipeline: Pipeline,
    /// The number of the declaration by which it runs.
    pub declaration: u64,
    pub vector_schema: String,
    pub endpoint: Endpoint,
    pub renderer: Renderer,
    pub writer: Writer,
    /// The lane's number in [`Lanes`].
    pub lane: u64,
    /// Of changes; those of the backfill, which wait for them.
    pub ready: VecDeque<Ready>,
    pub ready_backfill: VecDeque<Ready>,
    /// Halves of a batch that failed: sent as they are, before what is ready.
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
    /// Vectors that have come.
    pub unstored: Unstored,
    /// When it last sent a request, and gave a writer rows: turns, in which others come first that waited longer.
    pub sent_at: u64,
    pub given_at: u64,
}

impl Running {
    /// Texts that are rendered and not sent: bounded, so that a provider that is down fills no memory.
    pub fn is_full(&self, lane: QueueLane) -> bool {
        let ready = match lane {
            QueueLane::Backfill => self.ready_backfill.len(),
            _ => self.ready.len(),
        };
        ready + self.halves_count() >= 4 * self.endpoint.max_batch_inputs
    }

    /// Whether there are texts to be sent, where `storers` processes store the vectors: no more are asked for than
    /// can be stored.
    pub fn has_sendable(&self, storers: usize) -> bool {
        !self.halves.is_empty()
            || [QueueLane::Live, QueueLane::Backfill]
                .into_iter()
                .any(|lane| self.may_send(lane, storers))
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
        match self.pipeline.hnsw && !sweeps {
            true => self.unstored.bulk(),
            false => 0,
        }
    }

    /// Whether the leader stores what has come in this lane; `writers`: whether there are any.
    pub fn is_stored_by_leader(&self, lane: QueueLane, writers: bool) -> bool {
        lane != QueueLane::Backfill || !self.pipeline.hnsw || !writers
    }

    /// How long the oldest text that is ready has waited for its server.
    pub fn ready_for(&self) -> Duration {
        let oldest = self
            .ready
            .front()
            .into_iter()
            .chain(self.ready_backfill.front())
            .chain(self.halves.iter().flatten())
            .map(|ready| ready.since)
            .min();
        oldest.map_or(Duration::ZERO, |since| since.elapsed())
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

    pub fn push_ready(&mut self, ready: Ready) {
        match ready.lane {
            QueueLane::Backfill => self.ready_backfill.push_back(ready),
            _ => self.ready.push_back(ready),
        }
    }

    /// Takes out the backfilled rows that have changed since they were rendered, or since their vector came.
    pub fn withdraw(&mut self, has_changed: impl Fn(&RowKey) -> bool) -> Vec<RowKey> {
        let mut changed = self.unstored.withdraw(&has_changed);
        self.ready_backfill.retain(|ready| {
            let stays = !has_changed(&ready.job.row);
            if !stays {
                changed.push(ready.job.row.clone());
            }
            stays
        });
        changed
    }

    pub fn ready_count(&self) -> usize {
        self.ready.len() + self.ready_backfill.len() + self.halves_count()
    }

    fn halves_count(&self) -> usize {
        self.halves.iter().map(Vec::len).sum::<usize>()
    }

    /// The inputs of the next request: the oldest that fit into one, changes before backfill; the two never share one.
    pub fn next_batch(&mut self, storers: usize) -> Vec<Ready> {
        if let Some(half) = self.halves.pop_front() {
            return half;
        }
        let room = self.endpoint.room();
        let live = self.may_send(QueueLane::Live, storers);
        let ready = match live {
            true => &mut self.ready,
            false if self.may_send(QueueLane::Backfill, storers) => &mut self.ready_backfill,
            false => return Vec::new(),
        };
        let sizes = |tokens: fn(&str) -> u64| {
            let texts = ready.iter().map(|ready| ready.text.as_str());
            take(room, texts.map(|text| (tokens(text), text.len())))
        };
        // A token is a byte at the least: counting bytes is enough while they fit.
        let count = sizes(|text| text.len() as u64);
        let count = if count < room.inputs.min(ready.len()) && room.tokens.is_some() {
            sizes(estimate_tokens)
        } else {
            count
        };
        ready.drain(..count).collect()
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

/// A server as one owner uses it: its threads and its breaker.
pub struct ServerLane {
    pub lane: Lane,
    pub breaker: Breaker,
    /// By the limits that the provider announces: a request before then would be refused.
    paced_until: Option<Instant>,
    pub window: Window,
    endpoint: Endpoint,
    owner: u32,
}

impl ServerLane {
    /// Until when the server is left alone; `None` when it may be asked.
    pub fn rests_until(&self) -> Option<Instant> {
        let now = Instant::now();
        let rests = [self.breaker.open_until(), self.paced_until];
        rests
            .into_iter()
            .flatten()
            .filter(|until| *until > now)
            .max()
    }

    /// What an answer says of the account's limits: a request of as many tokens again waits for them.
    pub fn pace(&mut self, limits: Limits, tokens: u64) {
        let wait = limits.wait_for(tokens.max(1));
        self.paced_until = (!wait.is_zero()).then(|| Instant::now() + wait);
    }

    /// Whether a request may be sent now; see [`Breaker::allows`].
    pub fn allows(&mut self) -> bool {
        let now = Instant::now();
        self.lane.in_flight() < self.window.size()
            && self.lane.free() > 0
            && self.paced_until.is_none_or(|until| until <= now)
            && self.breaker.allows(now)
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
            paced_until: None,
            window: Window::new(endpoint.max_concurrency),
            endpoint: endpoint.clone(),
            owner,
        };
        self.lanes.insert(self.last, lane);
        self.last
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
