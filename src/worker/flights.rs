//! Batches sent, replies landed: what a reply means for the rows that were in it.
//!
//! It never decides by itself that a row is lost: a failure charges the row only where the row can be its cause.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::running::{Lanes, Ready, Running};
use crate::dispatch::queue::{Job, Lane as QueueLane, Queue};
use crate::embed::endpoint::Purpose;
use crate::embed::failure::{Class, Failure, describe};
use crate::embed::lane::{Batch, Reply};
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
}

#[derive(Default)]
pub struct Flights {
    flights: HashMap<u64, Flight>,
    last: u64,
}

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
        if !server.allows() {
            return false;
        }
        loop {
            let batch = running.next_batch(storers);
            if batch.is_empty() {
                server.breaker.probe_lost(Instant::now());
                return true;
            }
            let (stale, rows): (Vec<Ready>, Vec<Ready>) = batch
                .into_iter()
                .partition(|ready| queue.changed_since(&ready.job.row));
            for ready in stale {
                queue.put_back(&ready.job.row, QueueLane::Live);
            }
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
            self.flights.insert(
                self.last,
                Flight {
                    pipeline: running.pipeline.id,
                    lane: running.lane,
                    rows,
                    input,
                    sent: Instant::now(),
                    written: false,
                },
            );
            return true;
        }
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
        let now = Instant::now();
        let result = landed.entry(flight.pipeline).or_default();
        result.requests += 1;
        result.rows += flight.rows.len();
        let server = lanes.get(flight.lane);
        let breaker = server.map(|server| {
            match &reply.result {
                Ok(embeddings) => {
                    server.window.success(reply.took);
                    server.pace(embeddings.limits, embeddings.tokens);
                }
                Err(failure) => {
                    // Requests that were in flight together fail together.
                    if failure.class == Class::Provider && server.breaker.open_until().is_none() {
                        server.window.overload();
                    }
                    server.pace(failure.limits, 1);
                }
            }
            &mut server.breaker
        });
        let healthy_since = breaker
            .as_ref()
            .and_then(|breaker| breaker.last_success())
            .map(microseconds_at);
        match (&reply.result, breaker) {
            (Ok(_), Some(breaker)) => breaker.success(now),
            (Err(failure), Some(breaker)) if failure.class == Class::Provider => {
                breaker.failure(now, failure.retry_after, jitter());
            }
            // The provider did answer: it is there.
            (Err(_), Some(breaker)) => breaker.success(now),
            (_, None) => {}
        }
        result.failure = reply
            .result
            .as_ref()
            .err()
            .map(|failure| (failure.class, failure.status));
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
                Err(failure) => fail(failure, flight.rows, running, result, healthy_since, jitter),
            }
        }
    }
}

fn fail(
    failure: Failure,
    mut rows: Vec<Ready>,
    running: &mut Running,
    landed: &mut Landed,
    healthy_since: Option<i64>,
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
    if suspicious && texts > 1 {
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
        let charged = failure.class != Class::Provider
            || job
                .last_attempt_us
                .zip(healthy_since)
                .is_some_and(|(last, healthy)| healthy > last);
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
