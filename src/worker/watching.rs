//! What others watch: numbers that only the tables know, looked up for them now and then.
//!
//! It never costs more than a hundredth of the worker's time, and next to nothing while nobody watches.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::leader::Leader;
use super::process::{Failed, transaction};
use super::running::{ServerLane, State};
use crate::embed::rate::Pace;
use crate::observe::gauges;
use crate::shared::meters::{Provider, now_us};

/// How old numbers of tables get while somebody watches.
const WATCHED: Duration = Duration::from_secs(5);
/// And while nobody does, of a worker that has something to do.
const UNWATCHED: Duration = Duration::from_secs(60);
/// Whoever has asked within that time watches: Prometheus asks every 15 s or every minute.
const ATTENTION_US: i64 = 150_000_000;
/// A look may take so much of the time until the next one.
const SHARE: u32 = 100;
/// How often the oldest change is looked for.
const LAG: Duration = Duration::from_secs(1);

/// When was looked last.
#[derive(Default)]
pub struct Watching {
    /// When, and for how long that is good; `None`: something was declared since, which who watches should see.
    looked: Option<(Instant, Duration)>,
    lag: Option<Instant>,
    waits: bool,
}

impl Watching {
    pub fn look_now(&mut self) {
        self.looked = None;
    }
}

impl Leader {
    fn is_watched(&self) -> bool {
        now_us() - self.shared.watch.asked_us.load(SeqCst) < ATTENTION_US
    }

    /// In how long numbers of tables have to be looked up again.
    fn tables_in(&self) -> Duration {
        let good_for = match self.is_watched() {
            true => WATCHED,
            false => UNWATCHED,
        };
        self.watching
            .looked
            .map_or(Duration::ZERO, |(at, at_least)| {
                good_for.max(at_least).saturating_sub(at.elapsed())
            })
    }

    /// In how long the next look is due, for a worker that has nothing else to do; `None` while nobody watches.
    pub(super) fn next_look(&self) -> Option<Duration> {
        let lag = self.watching.waits.then_some(LAG);
        let tables = self.is_watched().then(|| self.tables_in());
        lag.into_iter().chain(tables).min()
    }

    pub(super) fn look_at_tables(&mut self) -> std::result::Result<(), Failed> {
        if !self.tables_in().is_zero() {
            return Ok(());
        }
        let now = Instant::now();
        let (pipelines, recommenders) = (&self.pipelines, &self.recommenders);
        self.latency.keep(|id| {
            let runs = |state: &State| matches!(state, State::Runs(_));
            pipelines.get(&id).is_some_and(runs) || recommenders.contains_key(&id)
        });
        let (shared, database) = (self.shared, self.database);
        transaction(|| gauges::look(shared, database, true))?;
        self.watching.looked = Some((now, now.elapsed() * SHARE));
        Ok(())
    }

    /// What this worker knows by itself: its servers now; since when changes wait once a second while some do, and when
    /// none does any more.
    pub(super) fn show(&mut self) {
        let database = self.database_oid();
        for (id, state) in &mut self.pipelines {
            let Some(counters) = self.shared.counters(database, *id) else {
                continue;
            };
            let provider = &self.shared.meters(counters).provider;
            match state.running() {
                Some(running) => {
                    if let Some(lane) = self.lanes.get(running.lane) {
                        let most = running.endpoint.max_concurrency;
                        show_provider(provider, lane, most, running.limited_for());
                    }
                }
                None => provider.reset(),
            }
        }
        self.show_hooks();
        let waits = !self.latency.is_empty();
        let due = self.watching.lag.is_none_or(|at| at.elapsed() >= LAG);
        if waits != self.watching.waits || waits && due {
            self.watching.waits = waits;
            self.watching.lag = Some(Instant::now());
            self.publish_lag();
        }
    }
}

/// The server of a pipeline or hook, as its worker sees it now; `most`: requests at a time.
pub(super) fn show_provider(
    provider: &Provider,
    lane: &mut ServerLane,
    most: usize,
    limited_for: Duration,
) {
    let breaker = match lane.breaker.as_str() {
        "closed" => 0,
        "half-open" => 1,
        _ => 2,
    };
    provider.breaker.store(breaker, SeqCst);
    provider.window.store(lane.window.size() as u32, SeqCst);
    provider.most.store(most as u32, SeqCst);
    let flights = lane.lane.in_flight() as u32;
    provider.flights.store(flights, SeqCst);
    let rests = lane.rests_until();
    let rests = rests.map(|until| until.saturating_duration_since(Instant::now()));
    let rests = rests.unwrap_or_default().max(limited_for);
    let until = match rests.is_zero() {
        true => 0,
        false => now_us() + rests.as_micros() as i64,
    };
    provider.rests_until_us.store(until, SeqCst);
    let (account, limits) = lane.account.kept();
    provider.account.store(account, SeqCst);
    let limit = |pace: Option<Pace>| pace.map_or(0, |pace| pace.limit());
    let (requests, tokens) = (limit(limits.requests), limit(limits.tokens));
    provider.requests_per_minute.store(requests, SeqCst);
    provider.tokens_per_minute.store(tokens, SeqCst);
}
