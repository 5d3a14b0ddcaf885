//! Writers: processes that store for the leader where the index is the limit.
//!
//! A row stays the leader's until the answer is there: it is in one writer's hands at a time, and what a writer had
//! when it ended is stored by somebody else. The leader never waits for a writer.

use pgrx::pg_sys;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::process::{Dynamic, Failed, transaction};
use super::running::Running;
use super::storing::Task;
use super::unstored::Part;
use crate::dispatch::queue::{Job, Lane, RowKey};
use crate::error::Error;
use crate::ledger::bill::Bills;
use crate::shared::Shared;
use crate::shared::slots::{self, Reservation};
use crate::store::{Embedded, Written};
use channel::{Channel, Received, Sent};
use message::{Answer, Declaration, order};

// The leader's side of the work: whom to give what, and what becomes of it.
mod giving;

// What they write to each other.
mod message;

// How it gets there.
mod channel;

// The process.
mod process;

/// Orders that a writer has at a time: it works on one and finds the next.
const AHEAD: usize = 2;
/// Rows of an order: about as many as are stored in a tenth of a second.
const MOST_ROWS: usize = 64;
/// What a row with chunks is taken for: an order of some that have more is longer than others.
const CHUNKS_OF_A_ROW: usize = 16;
/// How long a writer with nothing to do is kept.
const IDLE: Duration = Duration::from_secs(5);
/// How soon another one is tried for where the server had none to give.
const RETRY: Duration = Duration::from_secs(5);

/// Rows in a writer's hands.
pub struct Given {
    number: u64,
    pub pipeline: i32,
    /// As which the pipeline was declared; `None`: it is no more, nor are its rows.
    pub declaration: Option<u64>,
    pub part: Part,
    /// Its jobs have been written down meanwhile.
    pub written: bool,
    /// What was given with them, to be written in the same transaction.
    pub bills: Bills,
}

/// What has become of rows that were given.
pub enum Heard {
    Answer(Given, Result<Written, Failed>, Duration),
    /// The writer has ended without an answer.
    Lost(Given),
}

struct Writer {
    // Before the process, of whose handle it knows.
    channel: Channel,
    _process: Dynamic,
    place: Reservation,
    /// The declarations that it knows, by pipeline.
    knows: HashMap<i32, u64>,
    /// Orders that are not sent yet, or in part.
    outgoing: VecDeque<Vec<u8>>,
    given: VecDeque<Given>,
    idle_since: Instant,
}

#[derive(Default)]
pub struct Writers {
    writers: Vec<Writer>,
    retry_at: Option<Instant>,
    orders: u64,
}

impl Writers {
    /// Whether there are any, and they have begun.
    pub fn are_there(&self) -> bool {
        self.writers.iter().any(|writer| writer.channel.is_open())
    }

    pub fn count(&self) -> usize {
        self.writers.len()
    }

    /// Rows that are in their hands.
    pub fn rows(&self, pipeline: i32) -> HashSet<&RowKey> {
        self.given()
            .filter(|given| given.pipeline == pipeline)
            .flat_map(|given| given.part.jobs())
            .map(|job| &job.row)
            .collect()
    }

    /// What they have in their hands of a pipeline as it is declared now.
    pub fn embedded(&self, running: &Running) -> impl Iterator<Item = &Embedded> {
        let (id, declaration) = (running.pipeline.id, Some(running.declaration));
        self.given()
            .filter(move |given| given.pipeline == id && given.declaration == declaration)
            .flat_map(|given| &given.part.embedded)
    }

    /// Whether they have anything in their hands, of any pipeline.
    pub fn are_busy(&self) -> bool {
        self.given().next().is_some()
    }

    fn given(&self) -> impl Iterator<Item = &Given> {
        self.writers.iter().flat_map(|writer| &writer.given)
    }

    fn given_mut(&mut self) -> impl Iterator<Item = &mut Given> {
        self.writers.iter_mut().flat_map(|writer| &mut writer.given)
    }

    /// The pipeline is no more, or does not run: what becomes of its rows is nobody's business.
    pub fn forget(&mut self, pipeline: i32) {
        for given in self.given_mut().filter(|given| given.pipeline == pipeline) {
            given.declaration = None;
        }
    }

    /// Live rows that have been in a writer's hands for `age` and are not written down: from now on their jobs are
    /// rows.
    pub fn overdue(&mut self, age: Duration) -> Vec<(i32, Vec<Job>)> {
        let old = |given: &&mut Given| {
            let part = &given.part;
            part.lane != Lane::Backfill && !given.written && part.since.elapsed() >= age
        };
        self.given_mut()
            .filter(old)
            .filter(|given| given.declaration.is_some())
            .map(|given| {
                given.written = true;
                (given.pipeline, given.part.store_jobs())
            })
            .collect()
    }

    /// What the writers say, and what those have left that have ended.
    pub fn hear(&mut self) -> Vec<Heard> {
        let mut heard = Vec::new();
        self.writers.retain_mut(|writer| {
            // What it has said comes first, also where it has ended.
            let lives = writer.hear(&mut heard) && writer.send_outgoing();
            if !lives {
                heard.extend(writer.given.drain(..).map(Heard::Lost));
            }
            lives
        });
        heard
    }

    /// The writer that may be given more, of the first `most`: the one that has least to do.
    fn free(&mut self, most: usize) -> Option<&mut Writer> {
        self.writers
            .iter_mut()
            .take(most)
            .filter(|writer| writer.channel.is_open() && writer.given.len() < AHEAD)
            .min_by_key(|writer| writer.given.len())
    }

    /// Whether one is on its way that has not begun yet.
    fn is_starting(&self) -> bool {
        self.writers.iter().any(|writer| !writer.channel.is_open())
    }

    /// Rows of an order: fewer of wide vectors, so that two orders fit in the queue.
    fn rows_of_order(running: &Running) -> usize {
        if running.pipeline.into_column.is_some() {
            return 1; // an order is a transaction, and the row a user's
        }
        let chunks = match running.long_text.has_chunks() {
            true => CHUNKS_OF_A_ROW,
            false => 1,
        };
        let row = running.endpoint.dimensions * size_of::<f32>() * chunks;
        (channel::ORDER / row.max(1)).clamp(1, MOST_ROWS)
    }

    /// Gives a free writer rows of a pipeline. The rows come back where the order could not be written.
    fn give(
        &mut self,
        most: usize,
        running: &Running,
        part: Part,
        bills: Bills,
    ) -> Result<(), (Part, Bills)> {
        self.orders += 1;
        let number = self.orders;
        let Some(writer) = self.free(most) else {
            return Err((part, bills));
        };
        let id = running.pipeline.id;
        let is_news = writer.knows.get(&id) != Some(&running.declaration);
        let declaration = is_news.then(|| Declaration {
            pipeline: running.pipeline.clone(),
            vector_schema: running.vector_schema.clone(),
            recipe: running.writer.recipe().cloned(),
        });
        let mut task = Task::new(running, part.embedded, bills);
        let written = order(number, declaration, &task);
        let part = Part {
            embedded: std::mem::take(&mut task.embedded),
            ..part
        };
        let Ok(message) = written else {
            return Err((part, task.bills));
        };
        writer.knows.insert(id, running.declaration);
        writer.outgoing.push_back(message);
        writer.given.push_back(Given {
            number,
            pipeline: id,
            declaration: Some(running.declaration),
            part,
            written: false,
            bills: task.bills,
        });
        writer.send_outgoing(); // an end is noticed when it is heard
        Ok(())
    }

    /// Asks the server for one more, where fewer than `most` are at work in all databases. A server that has no
    /// place for it is no error.
    fn start(&mut self, shared: &Shared, database: pg_sys::Oid, most: usize) -> Result<(), Failed> {
        if self.retry_at.is_some_and(|at| at > Instant::now()) {
            return Ok(());
        }
        let Some(place) = slots::reserve(&shared.writers, database, most) else {
            self.retry_at = Some(Instant::now() + RETRY);
            return Ok(());
        };
        let started = transaction(|| {
            let Some(mut channel) = Channel::create() else {
                return Ok(None);
            };
            let mut worker = process::description(database, channel.handle(), place);
            let Some(process) = Dynamic::start(&mut worker) else {
                return Ok(None);
            };
            channel.watch(process.handle());
            Ok::<_, Error>(Some((channel, process)))
        });
        match started {
            Ok(Some((channel, process))) => {
                self.retry_at = None;
                self.writers.push(Writer {
                    channel,
                    _process: process,
                    place,
                    knows: HashMap::new(),
                    outgoing: VecDeque::new(),
                    given: VecDeque::new(),
                    idle_since: Instant::now(),
                });
                Ok(())
            }
            none => {
                slots::take_back(&shared.writers, place);
                self.retry_at = Some(Instant::now() + RETRY);
                none.map(|_| ())
            }
        }
    }

    /// Writers that have had nothing to do for long are let go, and those beyond `most` once they have nothing.
    fn let_go(&mut self, most: usize) {
        let mut index = 0;
        self.writers.retain(|writer| {
            let kept = index < most && writer.idle_since.elapsed() < IDLE;
            index += 1;
            kept || !writer.given.is_empty()
        });
    }

    /// When one is to be let go.
    pub fn next_end(&self) -> Option<Duration> {
        let idle = self.writers.iter().filter(|w| w.given.is_empty());
        idle.map(|writer| IDLE.saturating_sub(writer.idle_since.elapsed()))
            .min()
    }
}

impl Writer {
    /// Sends what there is room for; false when the writer has ended.
    fn send_outgoing(&mut self) -> bool {
        while let Some(message) = self.outgoing.front() {
            match self.channel.send(message) {
                Sent::Whole => drop(self.outgoing.pop_front()),
                Sent::InPart => return true,
                Sent::Gone => return false,
            }
        }
        true
    }

    /// Its answers; false when it has ended.
    fn hear(&mut self, heard: &mut Vec<Heard>) -> bool {
        loop {
            let message = match self.channel.receive() {
                Received::Message(message) => message,
                Received::Nothing => return true,
                Received::Gone => return false,
            };
            let Some(answer) = Answer::read(&message) else {
                return false;
            };
            let at = self
                .given
                .iter()
                .position(|given| given.number == answer.number);
            if let Some(given) = at.and_then(|at| self.given.remove(at)) {
                let (outcome, took) = answer.into_outcome();
                heard.push(Heard::Answer(given, outcome, took));
                self.idle_since = Instant::now();
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(shared) = crate::shared::shared() {
            slots::take_back(&shared.writers, self.place); // in case it never began
        }
    }
}
