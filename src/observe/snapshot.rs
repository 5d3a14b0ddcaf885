//! What shared memory says at a moment, as plain data: what the metrics, the health and the status page are made of.
//!
//! It never calls PostgreSQL, so that any thread may take one, and never holds a text or key of a row, or a reason that
//! might quote one.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use serde::Serialize;

use crate::embed::left::Left;
use crate::embed::rate::{self, Limits, Pace, Rates};
use crate::shared::failures::{Failure, Kind};
use crate::shared::histogram::Distribution;
use crate::shared::meters::{Meters, Op, now_us};
use crate::shared::money::{Money, REASONS};
use crate::shared::{Counters, Database, Presence, Shared};

const SECOND_US: f64 = 1_000_000.0;

#[derive(Debug, Default, Serialize)]
pub struct Snapshot {
    pub version: &'static str,
    /// Seconds since 1970.
    pub at: f64,
    pub launcher: bool,
    pub standby: bool,
    /// `recsync.enabled`.
    pub enabled: bool,
    pub waiting_databases: u32,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub databases: Vec<DatabaseView>,
}

/// A database that has recsync.
#[derive(Debug, Default, Serialize)]
pub struct DatabaseView {
    pub name: String,
    pub worker: Worker,
    /// How long ago somebody looked at the tables; `None`: nobody has.
    pub looked_seconds_ago: Option<f64>,
    pub log_bytes: u64,
    pub holdback_seconds: f64,
    pub pipelines: Vec<PipelineView>,
}

/// What is with a database's worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Worker {
    #[default]
    Runs,
    /// It has nothing to do, and has left its place to another database's.
    GaveWay,
    /// A command such as ALTER DATABASE holds it off.
    Held,
    /// The library and the extension are of different versions.
    Suspended,
    LacksSlot,
    Starting,
    /// There are none on a standby.
    Standby,
}

/// A pipeline, a hook, or a recommender with all its tables of interactions.
#[derive(Debug, Default, Serialize)]
pub struct PipelineView {
    pub kind: &'static str,
    pub name: String,
    pub server: String,
    pub state: State,
    pub pending: u64,
    pub in_flight: u64,
    pub dead: u64,
    pub lag_seconds: f64,
    pub changed_seconds_ago: Option<f64>,
    pub embedded_seconds_ago: Option<f64>,
    pub trained_seconds_ago: Option<f64>,
    pub embedded: u64,
    pub requests: u64,
    pub tokens: u64,
    pub processed: u64,
    pub unchanged: u64,
    pub known: u64,
    pub removed: u64,
    /// By op, in the order of [`Op::ALL`]; of a recommender the first alone.
    pub latency: [Distribution; Op::ALL.len()],
    pub estimated: u64,
    pub unmeasured: u64,
    pub request_time: Distribution,
    /// By [`Kind::ALL`].
    pub errors: [u64; Kind::ALL.len()],
    pub failures: Vec<FailureView>,
    pub provider: ProviderView,
    pub money: MoneyView,
    pub lists: ListsView,
}

/// See [`Money`].
#[derive(Debug, Default, Serialize)]
pub struct MoneyView {
    /// Empty: of no price is known anything.
    pub currency: String,
    pub cost: f64,
    pub queries: u64,
    pub query_tokens: u64,
    /// By [`REASONS`].
    pub spared: [u64; REASONS.len()],
    pub spared_tokens: [u64; REASONS.len()],
    pub spared_cost: [f64; REASONS.len()],
    pub month_tokens: u64,
    pub month_cost: f64,
    pub month_spared_tokens: u64,
    pub month_spared_cost: f64,
    pub budget: Option<f64>,
    pub server_month_cost: f64,
    pub server_budget: Option<f64>,
}

impl MoneyView {
    fn of(money: &Money) -> MoneyView {
        let number = |number: &AtomicU64| number.load(SeqCst);
        MoneyView {
            currency: money.currency.get(),
            cost: money.cost.get(),
            queries: number(&money.queries),
            query_tokens: number(&money.query_tokens),
            spared: money.spared.each_ref().map(number),
            spared_tokens: money.spared_tokens.each_ref().map(number),
            spared_cost: money.spared_cost.each_ref().map(|amount| amount.get()),
            month_tokens: number(&money.month.tokens),
            month_cost: money.month.cost.get(),
            month_spared_tokens: number(&money.month.spared_tokens),
            month_spared_cost: money.month.spared_cost.get(),
            budget: money.budget.get(),
            server_month_cost: money.month.server_cost.get(),
            server_budget: money.server_budget.get(),
        }
    }
}

/// A recommender's lists since the server started: those that were ready when they were asked for, those that were made
/// then, and those that the worker has made before.
#[derive(Debug, Default, Serialize)]
pub struct ListsView {
    pub ready: u64,
    pub made: u64,
    pub warmed: u64,
}

/// What a pipeline, recommender or hook does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    #[default]
    Running,
    /// Somebody has paused it.
    Paused,
    /// recsync has paused it, for a reason that `recsync.status` shows.
    Stopped,
    /// The month's budget is spent.
    BudgetSpent,
    /// Its server fails, and is left alone for the moment.
    ProviderDown,
    /// `recsync.enabled` is off.
    Disabled,
    /// There is no worker.
    Waiting,
}

#[derive(Debug, Default, Serialize)]
pub struct ProviderView {
    /// `closed`, `half-open` or `open`.
    pub breaker: &'static str,
    pub failing_seconds: f64,
    pub rest_seconds: f64,
    pub window: u32,
    pub most: u32,
    pub flights: u32,
    /// What is left of the limits of its account; `None`: there is none that anybody knows of.
    pub requests_left: Option<Left>,
    pub tokens_left: Option<Left>,
}

#[derive(Clone, Debug, Serialize)]
pub struct FailureView {
    #[serde(flatten)]
    pub failure: Failure,
    pub seconds_ago: f64,
    pub sqlstate: Option<String>,
    pub meaning: &'static str,
}

impl Snapshot {
    pub fn take(shared: &Shared) -> Snapshot {
        let now = now_us();
        let watch = &shared.watch;
        let mut snapshot = Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            at: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0.0, |now| now.as_secs_f64()),
            launcher: watch.launcher_pid.load(SeqCst) != 0,
            standby: watch.in_recovery.load(SeqCst) != 0,
            enabled: watch.disabled.load(SeqCst) == 0,
            waiting_databases: shared.waiting_databases.load(SeqCst),
            sent_bytes: watch.traffic.sent.load(SeqCst),
            received_bytes: watch.traffic.received.load(SeqCst),
            databases: Vec::new(),
        };
        for entry in &shared.databases {
            let oid = entry.oid.load(SeqCst);
            if oid == 0 || entry.presence() != Presence::Present {
                continue;
            }
            let mut view = DatabaseView::of(entry, oid, snapshot.standby, now);
            for counters in &shared.counters {
                if counters.database.load(SeqCst) == oid {
                    view.add(counters, shared, snapshot.enabled, now);
                }
            }
            view.pipelines
                .sort_by(|one, other| (one.kind, &one.name).cmp(&(other.kind, &other.name)));
            snapshot.databases.push(view);
        }
        snapshot
            .databases
            .sort_by(|one, other| one.name.cmp(&other.name));
        snapshot
    }

    pub fn pipelines(&self) -> impl Iterator<Item = (&DatabaseView, &PipelineView)> {
        let databases = self.databases.iter();
        databases.flat_map(|database| database.pipelines.iter().map(move |p| (database, p)))
    }
}

impl DatabaseView {
    fn of(entry: &Database, oid: u32, standby: bool, now: i64) -> DatabaseView {
        let facts = &entry.facts;
        let name = facts.name.get();
        DatabaseView {
            name: match name.is_empty() {
                true => format!("#{oid}"), // nobody has looked yet
                false => name,
            },
            worker: match () {
                () if standby => Worker::Standby,
                () if entry.worker_pid.load(SeqCst) == 0 => match () {
                    () if entry.gave_way.load(SeqCst) => Worker::GaveWay,
                    () if entry.hold_pid.load(SeqCst) != 0 => Worker::Held,
                    () if entry.lacks_slot.load(SeqCst) => Worker::LacksSlot,
                    () => Worker::Starting,
                },
                () if facts.suspended.load(SeqCst) != 0 => Worker::Suspended,
                () => Worker::Runs,
            },
            looked_seconds_ago: ago(facts.looked_us.load(SeqCst), now),
            log_bytes: unsigned(facts.log_bytes.load(SeqCst)),
            holdback_seconds: ago(facts.held_since_us.load(SeqCst), now).unwrap_or(0.0),
            pipelines: Vec::new(),
        }
    }

    fn add(&mut self, counters: &Counters, shared: &Shared, enabled: bool, now: i64) {
        let Some(view) = PipelineView::of(counters, shared, self.worker, enabled, now) else {
            return;
        };
        if view.kind != "recommender" {
            return self.pipelines.push(view); // one has one name
        }
        let same = |known: &&mut PipelineView| known.kind == view.kind && known.name == view.name;
        match self.pipelines.iter_mut().find(same) {
            Some(known) => known.merge(view),
            None => self.pipelines.push(view),
        }
    }
}

impl PipelineView {
    fn of(
        counters: &Counters,
        shared: &Shared,
        worker: Worker,
        enabled: bool,
        now: i64,
    ) -> Option<PipelineView> {
        let meters = shared.meters(counters);
        let kind = match meters.kind.load(SeqCst) {
            1 => "pipeline",
            2 => "recommender",
            3 => "hook",
            _ => return None,
        };
        let provider = ProviderView::of(counters, meters, &shared.rates, now);
        let state = match meters.paused.load(SeqCst) {
            1 => State::Paused,
            2 => State::Stopped,
            3 => State::BudgetSpent,
            _ if !enabled => State::Disabled,
            _ if !matches!(worker, Worker::Runs | Worker::GaveWay) => State::Waiting,
            _ if provider.failing_seconds > 0.0 => State::ProviderDown,
            _ => State::Running,
        };
        let waits = [&meters.waits_since_us, &meters.job_since_us];
        let waits = waits.map(|since| since.load(SeqCst));
        let oldest = waits.into_iter().filter(|since| *since != 0).min();
        let in_flight = counters.in_flight.load(SeqCst);
        let number = |number: &std::sync::atomic::AtomicI64| unsigned(number.load(SeqCst));
        Some(PipelineView {
            kind,
            name: meters.name.get(),
            server: meters.server.get(),
            state,
            pending: number(&counters.pending) + number(&meters.jobs),
            in_flight: unsigned(in_flight),
            dead: number(&meters.dead),
            lag_seconds: oldest.and_then(|since| ago(since, now)).unwrap_or(0.0),
            changed_seconds_ago: ago(counters.last_change_us.load(SeqCst), now),
            embedded_seconds_ago: ago(counters.last_embedded_us.load(SeqCst), now),
            trained_seconds_ago: ago(meters.trained_us.load(SeqCst), now),
            embedded: number(&counters.embedded),
            requests: number(&counters.requests),
            tokens: number(&counters.tokens),
            processed: number(&counters.processed),
            unchanged: number(&counters.unchanged),
            known: number(&counters.known),
            removed: number(&counters.removed),
            latency: std::array::from_fn(|op| meters.latency[op].read()),
            estimated: meters.estimated.load(SeqCst),
            unmeasured: meters.unmeasured.load(SeqCst),
            request_time: meters.requests.read(),
            errors: meters.failures.counts(),
            failures: meters
                .failures
                .lately()
                .into_iter()
                .map(|failure| FailureView {
                    seconds_ago: ago(failure.at_us, now).unwrap_or(0.0),
                    sqlstate: failure.sqlstate.map(sqlstate_text),
                    meaning: failure.class.meaning(),
                    failure,
                })
                .collect(),
            provider,
            money: MoneyView::of(&meters.money),
            lists: ListsView {
                ready: number(&counters.lists_ready),
                made: number(&counters.lists_made),
                warmed: number(&counters.lists_warmed),
            },
        })
    }

    /// Another table of interactions of the same recommender.
    fn merge(&mut self, other: PipelineView) {
        self.pending += other.pending;
        self.dead += other.dead;
        self.lag_seconds = self.lag_seconds.max(other.lag_seconds);
        for (ago, other) in [
            (&mut self.changed_seconds_ago, other.changed_seconds_ago),
            (&mut self.trained_seconds_ago, other.trained_seconds_ago),
        ] {
            *ago = match (*ago, other) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        for (one, other) in self.latency.iter_mut().zip(&other.latency) {
            one.add(other);
        }
        self.estimated += other.estimated;
        self.unmeasured += other.unmeasured;
        for (one, other) in self.errors.iter_mut().zip(other.errors) {
            *one += other;
        }
        self.lists.ready += other.lists.ready;
        self.lists.made += other.lists.made;
        self.lists.warmed += other.lists.warmed;
        self.failures.extend(other.failures);
        self.failures
            .sort_by(|one, other| one.seconds_ago.total_cmp(&other.seconds_ago));
    }
}

impl ProviderView {
    fn of(counters: &Counters, meters: &Meters, rates: &Rates, now: i64) -> ProviderView {
        let provider = &meters.provider;
        let pace = |limit: &AtomicU64| {
            let limit = limit.load(SeqCst);
            (limit > 0).then(|| Pace::per_minute(limit))
        };
        let limits = Limits {
            requests: pace(&provider.requests_per_minute),
            tokens: pace(&provider.tokens_per_minute),
        };
        let [requests_left, tokens_left] =
            rates.left(provider.account.load(SeqCst), limits, rate::now());
        let until = provider.rests_until_us.load(SeqCst);
        ProviderView {
            breaker: match provider.breaker.load(SeqCst) {
                0 => "closed",
                1 => "half-open",
                _ => "open",
            },
            failing_seconds: ago(counters.rests_since_us.load(SeqCst), now).unwrap_or(0.0),
            rest_seconds: (until - now).max(0) as f64 / SECOND_US,
            window: provider.window.load(SeqCst),
            most: provider.most.load(SeqCst),
            flights: provider.flights.load(SeqCst),
            requests_left,
            tokens_left,
        }
    }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// `None` for 0, which stands for never.
fn ago(at_us: i64, now: i64) -> Option<f64> {
    (at_us != 0).then(|| (now - at_us).max(0) as f64 / SECOND_US)
}

/// As PostgreSQL unpacks it: five characters of six bits.
fn sqlstate_text(code: i32) -> String {
    let characters = (0..5).map(|place| ((code >> (6 * place)) & 0x3f) as u8 + b'0');
    characters.map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sqlstate_is_unpacked_as_postgresql_packs_it() {
        // MAKE_SQLSTATE('2','2','P','0','2')
        let packed = b"22P02"
            .iter()
            .enumerate()
            .map(|(place, character)| i32::from((character - b'0') & 0x3f) << (6 * place))
            .sum();
        assert_eq!(sqlstate_text(packed), "22P02");
    }

    #[test]
    fn what_never_was_is_not_long_ago() {
        assert_eq!(ago(0, 5_000_000), None);
        assert_eq!(ago(2_000_000, 5_000_000), Some(3.0));
        assert_eq!(ago(9_000_000, 5_000_000), Some(0.0), "clocks differ");
    }
}
