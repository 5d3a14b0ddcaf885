//! Batches sent, replies landed: what a reply means for the rows that were in it.
//!
//! It never decides by itself that a row is lost: a failure charges the row only where the row can be its cause.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

// Of the rows of one request.
mod outcome;

use super::ready::Ready;
use super::running::{Lanes, Running};
use crate::dispatch::queue::{Job, Lane as QueueLane, Queue, RowKey};
use crate::embed::endpoint::Purpose;
use crate::embed::failure::{Class, Failure};
use crate::embed::lane::{Batch, Reply};
use crate::embed::rate::{self, Grant, Spent};
use crate::embed::token_rate::TokenRate;
use crate::ledger::bill::{Payer, Saved};
use crate::store::Embedded;
use outcome::{Blame, arrived, fail, microseconds_at};

/// A request in flight.
struct Flight {
    pipeline: i32,
    lane: u64,
    rows: Vec<Ready>,
    /// Of each row: which inputs of the request are its texts. Equal texts are sent once.
    inputs: Vec<Vec<usize>>,
    /// So many of the first rows have been rendered anew since, and are not its own any more: only their texts are.
    retired: usize,
    sent: Instant,
    /// Its rows have been written down as jobs.
    written: bool,
    /// What it has cost of the account's limits, where there are some.
    spent: Option<Spent>,
}

impl Flight {
    fn own_rows(&self) -> impl Iterator<Item = &Ready> {
        self.rows.iter().skip(self.retired)
    }
}

#[derive(Default)]
pub struct Flights {
    flights: HashMap<u64, Flight>,
    /// Which flight asks for a text: by pipeline and hash.
    texts: HashMap<(i32, Vec<u8>), u64>,
    /// Who pays for what is in the air, also for flights that were abandoned.
    payers: HashMap<u64, Rc<Payer>>,
    last: u64,
}

/// Rows of one flight: a text that more rows have than this is asked for again.
const MOST_ROWS: usize = 4_096;

/// What has to be written for a row whose request failed.
pub enum Verdict {
    /// Again later, by a job.
    Retry { job: Job, delay: Duration },
    /// Given up.
    Bury { job: Job, failure: Failure },
}

/// What a round's replies come to, for one pipeline.
#[derive(Default)]
pub struct Landed {
    /// Each with the lane from which it was sent.
    pub embedded: Vec<(QueueLane, Embedded)>,
    pub verdicts: Vec<Verdict>,
    /// The pipeline cannot go on: why.
    pub configuration: Option<String>,
    /// The last reply's: `None` after a success.
    pub failure: Option<(Class, Option<u16>)>,
    /// Of all replies: those that failed, and how long each took.
    pub failures: Vec<(Class, Option<u16>)>,
    pub took: Vec<Duration>,
    pub tokens: u64,
    /// What rows did not have to pay for.
    pub saved: Saved,
    pub requests: u64,
    /// Texts of which only the beginning was sent.
    pub truncated: u64,
    /// Rows that are no longer in flight.
    pub rows: usize,
}

impl Flights {
    pub fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// Sends one request of what is ready; false where the server's lane takes none. A row that has changed since it
    /// was rendered is rendered anew instead.
    pub fn send(
        &mut self,
        running: &mut Running,
        lanes: &mut Lanes,
        queue: &mut Queue,
        storers: usize,
    ) -> bool {
        let Some(server) = lanes.get(running.lane) else {
            return false;
        };
        let flights = self.flights.values();
        let in_the_air = flights.filter(|flight| flight.lane == running.lane);
        if !running.limited_for().is_zero() || !server.allows(in_the_air.count()) {
            return false;
        }
        loop {
            if !running.has_sendable(storers) {
                server.breaker.probe_lost(Instant::now());
                return true;
            }
            let Some(count) = running.admitted(server, storers) else {
                server.breaker.probe_lost(Instant::now());
                return false;
            };
            let (stale, rows): (Vec<Ready>, Vec<Ready>) = running
                .take_next(count, storers)
                .into_iter()
                .partition(|ready| queue.changed_since(&ready.job.row));
            for ready in stale {
                queue.put_back(&ready.job.row, QueueLane::Live);
                running.spare.extend(ready.spare());
            }
            let rows: Vec<Ready> = rows
                .into_iter()
                .filter_map(|ready| self.ride(ready, running))
                .collect();
            if rows.is_empty() {
                continue;
            }
            let mut inputs: Vec<String> = Vec::new();
            let mut known: HashMap<&[u8], usize> = HashMap::new();
            let mut inputs_of_rows = Vec::with_capacity(rows.len());
            for ready in &rows {
                let of_row = ready.sent().map(|part| {
                    *known.entry(&part.hash).or_insert_with(|| {
                        inputs.push(part.text.clone());
                        inputs.len() - 1
                    })
                });
                inputs_of_rows.push(of_row.collect());
            }
            self.last += 1;
            if let Err(_refused) = server.lane.submit(Batch {
                id: self.last,
                inputs,
                purpose: Purpose::Document,
            }) {
                server.breaker.probe_lost(Instant::now());
                running.halves.push_front(rows);
                return false;
            }
            self.payers.insert(self.last, Rc::clone(&running.payer));
            running.in_flight += rows.len();
            for part in rows.iter().flat_map(Ready::sent) {
                self.texts
                    .insert((running.pipeline.id, part.hash.clone()), self.last);
            }
            self.flights.insert(
                self.last,
                Flight {
                    pipeline: running.pipeline.id,
                    lane: running.lane,
                    rows,
                    inputs: inputs_of_rows,
                    retired: 0,
                    sent: Instant::now(),
                    written: false,
                    spent: running.grant.take().map(Grant::spend),
                },
            );
            return true;
        }
    }

    /// A row whose text another flight asks for flies with it; any other comes back, as does one of which more than one
    /// text is to be sent.
    fn ride(&mut self, mut ready: Ready, running: &mut Running) -> Option<Ready> {
        let wanted = match ready.pending().take(2).collect::<Vec<_>>()[..] {
            [part] => part.hash.clone(),
            _ => return Some(ready),
        };
        let text = (running.pipeline.id, wanted);
        let flight = self
            .texts
            .get(&text)
            .and_then(|id| self.flights.get_mut(id))
            .filter(|flight| flight.rows.len() < MOST_ROWS);
        let Some(flight) = flight else {
            return Some(ready);
        };
        let same = flight.rows.iter().zip(&flight.inputs);
        let same = same.flat_map(|(other, inputs)| other.sent().zip(inputs));
        let Some(input) = same
            .filter(|(part, _)| part.hash == text.1)
            .map(|(_, input)| *input)
            .next()
        else {
            return Some(ready);
        };
        ready.sends = 1;
        flight.rows.push(ready);
        flight.inputs.push(vec![input]);
        running.in_flight += 1;
        None
    }

    /// A pipeline is declared otherwise: what its flights bring counts only for rows whose text is still the same, which
    /// ride along once they are rendered anew. Their rows.
    pub fn retire(&mut self, pipeline: i32) -> Vec<RowKey> {
        let flights = self.flights.values_mut();
        let own = flights.filter(|flight| flight.pipeline == pipeline);
        own.flat_map(|flight| {
            let rows = flight.own_rows().map(|ready| ready.job.row.clone());
            let rows: Vec<RowKey> = rows.collect();
            flight.retired = flight.rows.len();
            rows
        })
        .collect()
    }

    /// Lets go of the flights of which `keeps` (pipeline, lane) does not hold: what they bring is for a declaration
    /// that is no more. Their rows.
    pub fn abandon(&mut self, keeps: impl Fn(i32, u64) -> bool) -> Vec<RowKey> {
        let gone = self
            .flights
            .extract_if(|_, flight| !keeps(flight.pipeline, flight.lane));
        let rows = gone
            .flat_map(|(_, flight)| flight.rows.into_iter().skip(flight.retired))
            .map(|ready| ready.job.row)
            .collect();
        let flights = &self.flights;
        self.texts.retain(|_, id| flights.contains_key(id));
        rows
    }

    /// Flights that have been in the air for `age` and are not written down yet: from now on their jobs are rows.
    pub fn overdue(&mut self, age: Duration) -> Vec<(i32, Vec<Job>)> {
        let old = self
            .flights
            .values_mut()
            .filter(|flight| !flight.written && flight.sent.elapsed() >= age);
        old.map(|flight| {
            flight.written = true;
            let own = flight.rows.iter_mut().skip(flight.retired);
            let jobs = own.map(|ready| {
                ready.job.stored = true;
                ready.job.clone()
            });
            (flight.pipeline, jobs.collect())
        })
        .collect()
    }

    /// Who pays for a reply; once.
    pub fn payer_of(&mut self, reply: &Reply) -> Option<Rc<Payer>> {
        self.payers.remove(&reply.id)
    }

    /// What `reply` means. `running` tells of the pipeline it belongs to, `None` where that is no more.
    pub fn land<'a>(
        &mut self,
        reply: Reply,
        lanes: &mut Lanes,
        landed: &mut HashMap<i32, Landed>,
        running: impl FnOnce(i32) -> Option<&'a mut Running>,
        jitter: &mut impl FnMut() -> f64,
    ) {
        let Some(mut flight) = self.flights.remove(&reply.id) else {
            return;
        };
        for part in flight.rows.iter().flat_map(Ready::sent) {
            let text = (flight.pipeline, part.hash.clone());
            if self.texts.get(&text) == Some(&reply.id) {
                self.texts.remove(&text);
            }
        }
        let now = Instant::now();
        let own = flight.own_rows().count();
        let result = landed.entry(flight.pipeline).or_default();
        result.requests += 1;
        result.rows += own;
        result.took.push(reply.took);
        let server = lanes.get(flight.lane);
        let breaker = server.map(|server| {
            match &reply.result {
                Ok(embeddings) => {
                    server.window.success(reply.took);
                    server.size.answered();
                    server.pace(embeddings.limits, embeddings.tokens, None);
                    if let (Some(spent), 1..) = (flight.spent.take(), embeddings.tokens) {
                        spent.correct(embeddings.tokens, rate::now());
                    }
                }
                Err(failure) => {
                    // Requests that were in flight together fail together.
                    if failure.class == Class::Provider && server.breaker.open_until().is_none() {
                        server.window.overload();
                    }
                    if failure.timed_out {
                        server.size.timed_out(reply.inputs.len(), now);
                    }
                    server.pace(failure.limits, 1, failure.asked_to_wait());
                }
            }
            &mut server.breaker
        });
        let healthy_since = breaker
            .as_ref()
            .and_then(|breaker| breaker.last_success())
            .map(microseconds_at);
        let mut provider_is_blamed = false;
        if let Some(breaker) = breaker {
            match reply.result.as_ref().map_err(|failure| failure.class) {
                Err(Class::Provider) => {
                    let retry_after = reply.result.as_ref().err().and_then(|f| f.retry_after);
                    breaker.failure(now, retry_after, jitter());
                }
                Err(Class::Temporary) => provider_is_blamed = breaker.doubt(now, jitter()),
                // A provider that refuses something is there.
                Ok(_) | Err(Class::Permanent | Class::Configuration) => breaker.success(now),
            }
        }
        result.failure = reply
            .result
            .as_ref()
            .err()
            .map(|failure| (failure.class, failure.status));
        result.failures.extend(result.failure);
        let running = running(flight.pipeline);
        if let Some(running) = running {
            running.in_flight = running.in_flight.saturating_sub(own);
            match reply.result {
                Ok(embeddings) => {
                    result.tokens += embeddings.tokens;
                    let bytes = reply.inputs.iter().map(String::len).sum();
                    let rate = &running.renderer.rate;
                    rate.heard(reply.sent.tokens, bytes);
                    note_shared(&flight, reply.inputs.len(), rate, &mut result.saved);
                    let rows = flight.rows.into_iter().zip(flight.inputs);
                    for (number, (ready, inputs)) in rows.enumerate() {
                        let vectors = inputs.iter().map(|input| embeddings.vectors.get(*input));
                        let own = number >= flight.retired;
                        arrived(ready, own, vectors, running, result);
                    }
                }
                Err(failure) => {
                    let blame = Blame {
                        provider_is_blamed,
                        healthy_since,
                    };
                    let rows = flight.rows.into_iter().skip(flight.retired);
                    fail(failure, rows.collect(), running, result, blame, jitter);
                }
            }
        }
    }
}

/// Texts that stood once in a request for several rows.
fn note_shared(flight: &Flight, inputs: usize, rate: &TokenRate, saved: &mut Saved) {
    let mut sent = vec![false; inputs];
    for (ready, of_row) in flight.rows.iter().zip(&flight.inputs) {
        for (part, input) in ready.sent().zip(of_row) {
            let before = sent
                .get_mut(*input)
                .map(|sent| std::mem::replace(sent, true));
            if before == Some(true) {
                saved.known.add(1, rate.of(&part.text));
            }
        }
    }
}
