//! Batches sent, replies landed: what a reply means for the rows that were in it.
//!
//! It never decides by itself that a row is lost: a failure charges the row only where the row can be its cause.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::running::{Lanes, Ready, Running};
use crate::dispatch::queue::{Job, Lane as QueueLane, Queue, RowKey};
use crate::embed::endpoint::Purpose;
use crate::embed::failure::{Class, Failure, describe};
use crate::embed::lane::{Batch, Reply};
use crate::embed::rate::{self, Grant, Spent};
use crate::embed::retry::backoff;
use crate::store::Embedded;

/// A request in flight.
struct Flight {
    pipeline: i32,
    lane: u64,
    rows: Vec<Ready>,
    /// Of each row: which input of the request is its text. Equal texts are sent once.
    input: Vec<usize>,
    sent: Instant,
    /// Its rows have been written down as jobs.
    written: bool,
    /// What it has cost of the account's limits, where there are some.
    spent: Option<Spent>,
}

#[derive(Default)]
pub struct Flights {
    flights: HashMap<u64, Flight>,
    /// Which flight asks for a text: by pipeline and hash.
    texts: HashMap<(i32, Vec<u8>), u64>,
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
    pub requests: u64,
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
            let mut input = Vec::with_capacity(rows.len());
            for ready in &rows {
                let index = *known.entry(&ready.hash).or_insert_with(|| {
                    inputs.push(ready.text.clone());
                    inputs.len() - 1
                });
                input.push(index);
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
            running.in_flight += rows.len();
            for ready in &rows {
                self.texts
                    .insert((running.pipeline.id, ready.hash.clone()), self.last);
            }
            self.flights.insert(
                self.last,
                Flight {
                    pipeline: running.pipeline.id,
                    lane: running.lane,
                    rows,
                    input,
                    sent: Instant::now(),
                    written: false,
                    spent: running.grant.take().map(Grant::spend),
                },
            );
            return true;
        }
    }

    /// A row whose text another flight asks for flies with it; any other comes back.
    fn ride(&mut self, ready: Ready, running: &mut Running) -> Option<Ready> {
        let text = (running.pipeline.id, ready.hash.clone());
        let flight = self
            .texts
            .get(&text)
            .and_then(|id| self.flights.get_mut(id))
            .filter(|flight| flight.rows.len() < MOST_ROWS);
        let Some(flight) = flight else {
            return Some(ready);
        };
        let same = flight.rows.iter().zip(&flight.input);
        let Some(input) = same
            .filter(|(other, _)| other.hash == ready.hash)
            .map(|(_, input)| *input)
            .next()
        else {
            return Some(ready);
        };
        flight.rows.push(ready);
        flight.input.push(input);
        running.in_flight += 1;
        None
    }

    /// Lets go of the flights of which `keeps` (pipeline, lane) does not hold: what they bring is for a declaration
    /// that is no more. Their rows.
    pub fn abandon(&mut self, keeps: impl Fn(i32, u64) -> bool) -> Vec<RowKey> {
        let gone = self
            .flights
            .extract_if(|_, flight| !keeps(flight.pipeline, flight.lane));
        let rows = gone
            .flat_map(|(_, flight)| flight.rows)
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
            let jobs = flight.rows.iter_mut().map(|ready| {
                ready.job.stored = true;
                ready.job.clone()
            });
            (flight.pipeline, jobs.collect())
        })
        .collect()
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
        let Some(flight) = self.flights.remove(&reply.id) else {
            return;
        };
        for ready in &flight.rows {
            let text = (flight.pipeline, ready.hash.clone());
            if self.texts.get(&text) == Some(&reply.id) {
                self.texts.remove(&text);
            }
        }
        let now = Instant::now();
        let result = landed.entry(flight.pipeline).or_default();
        result.requests += 1;
        result.rows += flight.rows.len();
        result.took.push(reply.took);
        let server = lanes.get(flight.lane);
        let breaker = server.map(|server| {
            match &reply.result {
                Ok(embeddings) => {
                    server.window.success(reply.took);
                    server.size.answered();
                    server.pace(embeddings.limits, embeddings.tokens, None);
                    if let (Some(spent), 1..) = (flight.spent, embeddings.tokens) {
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
            running.in_flight = running.in_flight.saturating_sub(flight.rows.len());
            match reply.result {
                Ok(embeddings) => {
                    result.tokens += embeddings.tokens;
                    let rows = flight.rows.into_iter().zip(flight.input);
                    result.embedded.extend(rows.filter_map(|(ready, input)| {
                        let embedded = Embedded {
                            vector: embeddings.vectors.get(input)?.clone(),
                            job: ready.job,
                            hash: ready.hash,
                            stored_hash: ready.stored_hash,
                        };
                        Some((ready.lane, embedded))
                    }));
                }
                Err(failure) => {
                    let blame = Blame {
                        provider_is_blamed,
                        healthy_since,
                    };
                    fail(failure, flight.rows, running, result, blame, jitter);
                }
            }
        }
    }
}

/// What is known of the provider when a row fails.
struct Blame {
    /// It answers nobody well.
    provider_is_blamed: bool,
    /// When it last did before.
    healthy_since: Option<i64>,
}

fn fail(
    failure: Failure,
    mut rows: Vec<Ready>,
    running: &mut Running,
    landed: &mut Landed,
    blame: Blame,
    jitter: &mut impl FnMut() -> f64,
) {
    let texts = rows
        .iter()
        .map(|ready| &ready.hash)
        .collect::<std::collections::HashSet<_>>()
        .len();
    let suspicious = match failure.class {
        Class::Permanent | Class::Temporary => true,
        // One row's text may be what makes the provider fail: a limit or a dead line is nobody's fault.
        Class::Provider => failure.status.is_some() && !failure.rate_limited,
        Class::Configuration => {
            landed
                .configuration
                .get_or_insert_with(|| describe(&failure));
            false
        }
    };
    // Fewer may be answered in time.
    if (suspicious || failure.timed_out) && texts > 1 {
        let half = rows.split_off(rows.len() / 2);
        running.halves.push_back(rows);
        running.halves.push_back(half);
        return;
    }
    if failure.class == Class::Configuration {
        rows.into_iter().for_each(|ready| running.push_ready(ready));
        return;
    }
    if failure.class == Class::Provider && !suspicious {
        running.halves.push_front(rows);
        return;
    }
    for ready in rows {
        let mut job = ready.job;
        // A failure of the provider is the row's own only where the provider has answered others since.
        let charged = match failure.class {
            Class::Provider => job
                .last_attempt_us
                .zip(blame.healthy_since)
                .is_some_and(|(last, healthy)| healthy > last),
            Class::Temporary => !blame.provider_is_blamed,
            Class::Permanent | Class::Configuration => true,
        };
        job.attempt += u32::from(charged);
        job.last_attempt_us = Some(microseconds_at(Instant::now()));
        let give_up =
            failure.class == Class::Permanent || job.attempt >= running.endpoint.max_attempts;
        landed.verdicts.push(if give_up && charged {
            Verdict::Bury {
                job,
                failure: failure.clone(),
            }
        } else {
            let delay = backoff(job.attempt.max(1), jitter());
            Verdict::Retry { job, delay }
        });
    }
}

/// An instant as microseconds since the epoch, as PostgreSQL's clock would have it.
fn microseconds_at(instant: Instant) -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (now.saturating_sub(instant.elapsed())).as_micros() as i64
}
