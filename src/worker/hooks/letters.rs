//! Letters sent and landed.
//!
//! It never decides by itself that a letter is lost: a failure charges it only where it can be its cause.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::{REST, note_pause};
use crate::embed::endpoint::Purpose;
use crate::embed::failure::{Class, Failure, describe};
use crate::embed::lane::{Batch, Reply};
use crate::embed::rate::{self, Asker, Grant};
use crate::embed::retry::backoff;
use crate::error::Result;
use crate::hooks::outbox;
use crate::hooks::saying::{letter_of, order_keys};
use crate::worker::leader::Leader;
use crate::worker::process::{Failed, transaction};
use crate::worker::running::ServerLane;

/// What a round's replies come to.
#[derive(Default)]
struct Landed {
    done: Vec<(i32, i64)>,
    retries: Vec<(i32, i64, u32, Duration)>,
    given_up: Vec<(i32, i64, u32, Failure)>,
    paused: BTreeMap<i32, String>,
}

impl Leader {
    pub(super) fn land_letters(&mut self) -> std::result::Result<(), Failed> {
        let mut landed = Landed::default();
        while let Ok(reply) = self.hooks.replies.try_recv() {
            self.busy_at = Instant::now();
            self.land_letter(reply, &mut landed);
        }
        let is_empty =
            landed.done.is_empty() && landed.retries.is_empty() && landed.given_up.is_empty();
        if !is_empty {
            transaction(|| landed.write())?;
        }
        for (id, reason) in &landed.paused {
            if let Some(listening) = self.hooks.listening.remove(id) {
                note_pause(&listening.hook, reason)?;
            }
        }
        for (id, number) in landed.done {
            self.forget_letter(id, number);
        }
        for (id, number, ..) in landed.given_up {
            self.forget_letter(id, number);
        }
        Ok(())
    }

    fn forget_letter(&mut self, id: i32, number: i64) {
        if let Some(listening) = self.hooks.listening.get_mut(&id) {
            listening
                .waiting
                .retain(|waiting| waiting.stored.number != number);
        }
    }

    fn land_letter(&mut self, reply: Reply, landed: &mut Landed) {
        let Some((id, number)) = self.hooks.flights.remove(&reply.id) else {
            return;
        };
        let jitter = self.jitter.f64();
        let server = self.hooks.lanes.get(reply.lane);
        let blame = server
            .map(|server| heed(server, &reply, jitter))
            .unwrap_or_default();
        if let Some(counters) = self.shared.counters_or_new(self.database_oid(), id) {
            counters.requests.fetch_add(1, SeqCst);
            let failure = reply.result.as_ref().err().map_or(0, |failure| {
                (failure.class as i64 + 1) * 1_000 + i64::from(failure.status.unwrap_or(0))
            });
            counters.failure.store(failure, SeqCst);
            let meters = self.shared.meters(counters);
            meters.requests.observe(reply.took.as_micros() as i64);
            if let Err(failure) = &reply.result {
                let class = failure.class.into();
                let at = crate::shared::meters::now_us();
                meters.failures.note(class, failure.status, None, at);
            }
            if reply.result.is_ok() {
                counters.embedded.fetch_add(1, SeqCst);
                // SAFETY: the server's clock.
                let now = unsafe { pg_sys::GetCurrentTimestamp() };
                counters.last_embedded_us.store(now, SeqCst);
            }
        }
        let failure = match reply.result {
            Ok(_) => return landed.done.push((id, number)),
            Err(failure) => failure,
        };
        let Some(listening) = self.hooks.listening.get_mut(&id) else {
            return; // it is paused or gone, and the letter still there
        };
        let most = listening
            .endpoint
            .as_ref()
            .map_or(1, |endpoint| endpoint.max_attempts);
        let waiting = listening.waiting.iter_mut();
        let Some(waiting) = waiting.into_iter().find(|one| one.stored.number == number) else {
            return;
        };
        waiting.in_flight = false;
        if failure.class == Class::Configuration {
            landed
                .paused
                .entry(id)
                .or_insert_with(|| describe(&failure));
            return;
        }
        // A failure of the receiver is the letter's own only where it has taken others since.
        let last = waiting.stored.last_attempt_us;
        let charged = match failure.class {
            Class::Provider => {
                failure.status.is_some()
                    && !failure.rate_limited
                    && last
                        .zip(blame.healthy_since)
                        .is_some_and(|(last, healthy)| healthy > last)
            }
            Class::Temporary => !blame.receiver_is_blamed,
            Class::Permanent | Class::Configuration => true,
        };
        let attempt = waiting.stored.attempt + u32::from(charged);
        if charged && (failure.class == Class::Permanent || attempt >= most) {
            landed.given_up.push((id, number, attempt, failure));
            return;
        }
        // A letter that the receiver has not answered goes first when that is asked again; others go before one that it
        // has, or nobody would know whose fault it is.
        let delay = match failure.status {
            None | Some(429) => Duration::ZERO,
            Some(_) => backoff(attempt.max(1), jitter),
        };
        waiting.stored.attempt = attempt;
        waiting.stored.last_attempt_us = Some(now_us());
        waiting.due = Instant::now() + delay;
        landed.retries.push((id, number, attempt, delay));
    }

    /// Sends what may go, in its order.
    pub(super) fn send_letters(&mut self, id: i32) {
        let hooks = &mut self.hooks;
        let Some(listening) = hooks.listening.get_mut(&id) else {
            return;
        };
        let Some(server) = listening.lane.and_then(|number| hooks.lanes.get(number)) else {
            return;
        };
        let now = Instant::now();
        let mut earlier: HashSet<String> = HashSet::new();
        let mut next: Option<Instant> = None;
        let mut sooner = |at: Instant| next = Some(next.map_or(at, |other: Instant| other.min(at)));
        let mut flying = server.lane.in_flight();
        for waiting in &mut listening.waiting {
            let keys = order_keys(&waiting.stored);
            let blocked = keys.iter().any(|key| earlier.contains(key));
            earlier.extend(keys);
            if blocked || waiting.in_flight {
                continue;
            }
            if waiting.due > now {
                sooner(waiting.due);
                continue;
            }
            match may_send(server, &mut listening.grant, flying) {
                Go::Now => {}
                Go::At(at) => {
                    sooner(at);
                    break;
                }
                Go::NotYet => {
                    // What flies rings the bell when it lands.
                    let rest = server.rests_until();
                    if let Some(at) = rest.or((flying == 0).then(|| now + REST)) {
                        sooner(at);
                    }
                    break;
                }
            }
            let Some(letter) = letter_of(&listening.hook, &waiting.stored) else {
                continue;
            };
            hooks.last += 1;
            let batch = Batch {
                id: hooks.last,
                inputs: letter.into_inputs(),
                purpose: Purpose::Document,
            };
            if server.lane.submit(batch).is_err() {
                server.breaker.probe_lost(now);
                sooner(now + REST);
                break;
            }
            hooks
                .flights
                .insert(hooks.last, (id, waiting.stored.number));
            waiting.in_flight = true;
            flying += 1;
            if let Some(grant) = listening.grant.take() {
                grant.spend();
            }
        }
        hooks.next = hooks.next.into_iter().chain(next).min();
        if let Some(counters) = self.shared.counters_or_new(self.database_oid(), id) {
            let listening = self.hooks.listening.get(&id);
            let flying =
                listening.map_or(0, |one| one.waiting.iter().filter(|w| w.in_flight).count());
            counters.in_flight.store(flying as i64, SeqCst);
        }
    }
}

impl Landed {
    fn write(&self) -> Result<()> {
        // What is lost is sent again under the same id.
        Spi::run("SET LOCAL synchronous_commit = off")?;
        for (id, number) in &self.done {
            outbox::done(*id, *number)?;
        }
        for (id, number, attempt, delay) in &self.retries {
            outbox::retry(*id, *number, *attempt, *delay)?;
        }
        for (id, number, attempt, failure) in &self.given_up {
            let reason = describe(failure);
            let failure = (failure.class.as_str(), failure.status, reason.as_str());
            outbox::bury(*id, *number, *attempt, failure)?;
        }
        Ok(())
    }
}

/// What is known of the receiver when a letter fails.
#[derive(Default)]
struct Blame {
    /// It answers nobody well.
    receiver_is_blamed: bool,
    /// When it last did before.
    healthy_since: Option<i64>,
}

/// What a reply says of its server.
fn heed(server: &mut ServerLane, reply: &Reply, jitter: f64) -> Blame {
    let now = Instant::now();
    let healthy_since = server
        .breaker
        .last_success()
        .map(|at| now_us() - at.elapsed().as_micros() as i64);
    let mut blame = Blame {
        healthy_since,
        ..Blame::default()
    };
    match &reply.result {
        Ok(told) => {
            server.window.success(reply.took);
            server.pace(told.limits, 1, None);
            server.breaker.success(now);
        }
        Err(failure) => {
            if failure.class == Class::Provider && server.breaker.open_until().is_none() {
                server.window.overload();
            }
            server.pace(failure.limits, 1, failure.asked_to_wait());
            match failure.class {
                Class::Provider => server.breaker.failure(now, failure.retry_after, jitter),
                Class::Temporary => blame.receiver_is_blamed = server.breaker.doubt(now, jitter),
                Class::Permanent | Class::Configuration => server.breaker.success(now),
            }
        }
    }
    blame
}

/// When a letter may go to a server.
enum Go {
    Now,
    At(Instant),
    /// Not before something else has happened.
    NotYet,
}

fn may_send(server: &mut ServerLane, grant: &mut Option<Grant>, flying: usize) -> Go {
    if server.account.is_limited() {
        let clock = rate::now();
        let kept = grant.take().filter(|grant| !grant.has_lapsed(clock));
        *grant = kept.or_else(|| server.account.ask(0, Asker::Worker, clock, i64::MAX).ok());
        let wait = grant.as_ref().map(|grant| rate::until(grant.at(), clock));
        match wait {
            None => return Go::NotYet,
            Some(Duration::ZERO) => {}
            Some(wait) => return Go::At(Instant::now() + wait),
        }
    }
    match server.allows(flying) {
        true => Go::Now,
        false => Go::NotYet,
    }
}

fn now_us() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_micros() as i64
}
