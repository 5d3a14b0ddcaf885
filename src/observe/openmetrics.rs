//! A snapshot as OpenMetrics text, as Prometheus and others read it.
//!
//! Names are a promise: they are in the README, and dashboards use them. It never calls PostgreSQL.
//!
//! Source: OpenMetrics 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).

// Tokens and money.
mod money;

// Servers of pipelines and hooks.
mod providers;

use std::fmt::Result;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::health::Health;
use super::snapshot::{DatabaseView, PipelineView, Snapshot, State, Worker};
use crate::shared::failures::Kind;
use crate::shared::histogram::{BOUNDS_US, Distribution};
use crate::shared::meters::Op;

/// What the text is, for HTTP.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels<'a> = Vec<(&'static str, &'a str)>;
type Shown = fn(&PipelineView) -> bool;

/// The whole text, up to `# EOF`.
pub fn text(snapshot: Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Numbers(snapshot)));
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Numbers(Snapshot);

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result {
        let mut writer = Writer {
            snapshot: &self.0,
            encoder: &mut encoder,
        };
        of_cluster(&mut writer)?;
        of_databases(&mut writer)?;
        latencies(&mut writer)?;
        of_pipelines(&mut writer)?;
        providers::write(&mut writer)?;
        money::write(&mut writer)
    }
}

struct Writer<'a, 'e> {
    snapshot: &'a Snapshot,
    encoder: &'a mut DescriptorEncoder<'e>,
}

fn is_pipeline(view: &PipelineView) -> bool {
    view.kind == "pipeline"
}

fn is_hook(view: &PipelineView) -> bool {
    view.kind == "hook"
}

/// What sends requests to a server.
fn is_sender(view: &PipelineView) -> bool {
    !is_recommender(view)
}

fn is_recommender(view: &PipelineView) -> bool {
    view.kind == "recommender"
}

/// The label that names it is its kind.
fn labels<'a>(database: &'a DatabaseView, view: &'a PipelineView) -> Labels<'a> {
    vec![("database", &database.name), (view.kind, &view.name)]
}

fn counter(metric: &mut MetricEncoder, labels: &Labels, value: u64) -> Result {
    let mut metric = metric.encode_family(labels)?;
    metric.encode_counter::<NoLabelSet, u64, f64>(&value, None)
}

fn gauge(metric: &mut MetricEncoder, labels: &Labels, value: f64) -> Result {
    metric.encode_family(labels)?.encode_gauge(&value)
}

/// What has had none yet is not there, as with any label set before its first observation.
fn histogram(metric: &mut MetricEncoder, labels: &Labels, values: &Distribution) -> Result {
    if values.count() == 0 {
        return Ok(());
    }
    let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6);
    let bounds = bounds.chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(values.counts).collect();
    let mut metric = metric.encode_family(labels)?;
    let sum = values.sum_us as f64 / 1e6;
    metric.encode_histogram::<NoLabelSet>(sum, values.count(), &buckets, None)
}

impl Writer<'_, '_> {
    /// A metric with a line or more of what `each` writes.
    fn metric(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        kind: MetricType,
        help: &str,
        each: impl FnOnce(&Snapshot, &mut MetricEncoder) -> Result,
    ) -> Result {
        let mut metric = self
            .encoder
            .encode_descriptor(name, help, unit.as_ref(), kind)?;
        each(self.snapshot, &mut metric)
    }

    /// One of the whole cluster.
    fn one(&mut self, name: &str, unit: Option<Unit>, help: &str, value: f64) -> Result {
        self.metric(name, unit, MetricType::Gauge, help, |_, metric| {
            gauge(metric, &Vec::new(), value)
        })
    }

    fn database_gauge(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        value: fn(&DatabaseView) -> Option<f64>,
    ) -> Result {
        self.metric(name, unit, MetricType::Gauge, help, |snapshot, metric| {
            for database in &snapshot.databases {
                if let Some(value) = value(database) {
                    gauge(metric, &vec![("database", &database.name)], value)?;
                }
            }
            Ok(())
        })
    }

    fn gauge(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        shown: Shown,
        value: fn(&PipelineView) -> Option<f64>,
    ) -> Result {
        self.metric(name, unit, MetricType::Gauge, help, |snapshot, metric| {
            for (database, view) in snapshot.pipelines().filter(|(_, view)| shown(view)) {
                if let Some(value) = value(view) {
                    gauge(metric, &labels(database, view), value)?;
                }
            }
            Ok(())
        })
    }

    fn counter(
        &mut self,
        name: &str,
        help: &str,
        shown: Shown,
        value: fn(&PipelineView) -> u64,
    ) -> Result {
        self.metric(name, None, MetricType::Counter, help, |snapshot, metric| {
            for (database, view) in snapshot.pipelines().filter(|(_, view)| shown(view)) {
                counter(metric, &labels(database, view), value(view))?;
            }
            Ok(())
        })
    }
}

fn of_cluster(writer: &mut Writer) -> Result {
    writer.metric(
        "recsync_build",
        None,
        MetricType::Info,
        "The version of the library.",
        |snapshot, metric| metric.encode_info(&[("version", snapshot.version)]),
    )?;
    let healthy = Health::of(writer.snapshot).ok;
    writer.one(
        "recsync_healthy",
        None,
        "Whether recsync.health() finds nothing wrong.",
        flag(healthy),
    )?;
    let enabled = writer.snapshot.enabled;
    writer.one(
        "recsync_enabled",
        None,
        "The setting recsync.enabled.",
        flag(enabled),
    )?;
    let standby = writer.snapshot.standby;
    writer.one(
        "recsync_standby",
        None,
        "Whether this server is a standby, which has no workers.",
        flag(standby),
    )?;
    let waiting = writer.snapshot.waiting_databases;
    writer.one(
        "recsync_waiting_databases",
        None,
        "Databases whose worker would run if there were a slot.",
        waiting.into(),
    )?;
    writer.metric(
        "recsync_http",
        Some(Unit::Bytes),
        MetricType::Counter,
        "Bytes of the bodies of requests to providers, and of their answers, by workers and sessions.",
        |snapshot, metric| {
            counter(metric, &vec![("direction", "sent")], snapshot.sent_bytes)?;
            counter(metric, &vec![("direction", "received")], snapshot.received_bytes)
        },
    )
}

fn of_databases(writer: &mut Writer) -> Result {
    writer.database_gauge(
        "recsync_worker_up",
        None,
        "Whether the database has its worker, or needs none at the moment.",
        |database| {
            let up = matches!(database.worker, Worker::Runs | Worker::GaveWay);
            (database.worker != Worker::Standby).then_some(flag(up))
        },
    )?;
    writer.database_gauge(
        "recsync_log",
        Some(Unit::Bytes),
        "Size of the change log on disk.",
        |database| {
            database
                .looked_seconds_ago
                .map(|_| database.log_bytes as f64)
        },
    )?;
    writer.database_gauge(
        "recsync_holdback",
        Some(Unit::Seconds),
        "Age of the oldest transaction of the database, prepared ones included, that keeps dead rows and its own changes from being worked off.",
        |database| database.looked_seconds_ago.map(|_| database.holdback_seconds),
    )?;
    writer.database_gauge(
        "recsync_tables_looked_at",
        Some(Unit::Seconds),
        "How long ago the numbers that only tables know were looked up: dead letters, jobs, the log, what is paused.",
        |database| database.looked_seconds_ago,
    )
}

fn latencies(writer: &mut Writer) -> Result {
    writer.metric(
        "recsync_event_latency",
        Some(Unit::Seconds),
        MetricType::Histogram,
        "From the commit of a change to the commit of its vector, or of its removal. Of changes of a row that are worked off together, the first counts.",
        |snapshot, metric| {
            for (database, view) in snapshot.pipelines().filter(|(_, view)| is_pipeline(view)) {
                for (op, values) in Op::ALL.iter().zip(&view.latency) {
                    let mut labels = labels(database, view);
                    labels.push(("op", op.as_str()));
                    histogram(metric, &labels, values)?;
                }
            }
            Ok(())
        },
    )?;
    writer.metric(
        "recsync_interaction_latency",
        Some(Unit::Seconds),
        MetricType::Histogram,
        "From the commit of a changed interaction to where it counts in lists.",
        |snapshot, metric| {
            for (database, view) in snapshot
                .pipelines()
                .filter(|(_, view)| is_recommender(view))
            {
                let mut all = Distribution::default();
                view.latency.iter().for_each(|values| all.add(values));
                histogram(metric, &labels(database, view), &all)?;
            }
            Ok(())
        },
    )?;
    writer.metric(
        "recsync_embed",
        Some(Unit::Seconds),
        MetricType::Histogram,
        "Time of a worker's request to the provider, or to a hook's receiver, with retries after a refused key, answered well or not.",
        |snapshot, metric| {
            for (database, view) in snapshot.pipelines().filter(|(_, view)| is_sender(view)) {
                histogram(metric, &labels(database, view), &view.request_time)?;
            }
            Ok(())
        },
    )
}

fn of_pipelines(writer: &mut Writer) -> Result {
    let all: Shown = |_| true;
    writer.gauge(
        "recsync_pending",
        None,
        "Rows that wait: changes, backfill, retries; of a hook letters. What stands in a long queue of jobs is estimated, as recsync.status says.",
        all,
        |view| Some(view.pending as f64),
    )?;
    writer.gauge(
        "recsync_in_flight",
        None,
        "Rows that are at the provider, or whose vector is not stored yet.",
        is_pipeline,
        |view| Some(view.in_flight as f64),
    )?;
    writer.gauge(
        "recsync_dead_letters",
        None,
        "Rows, or letters of a hook, that were given up.",
        all,
        |view| Some(view.dead as f64),
    )?;
    writer.gauge(
        "recsync_lag",
        Some(Unit::Seconds),
        "Age of the oldest change that does not show yet, or of a hook's oldest letter.",
        all,
        |view| Some(view.lag_seconds),
    )?;
    writer.metric(
        "recsync_state",
        None,
        MetricType::Gauge,
        "What a pipeline, recommender or hook does: stopped means that recsync has paused it for a reason, paused that somebody has.",
        |snapshot, metric| {
            for (database, view) in snapshot.pipelines() {
                for (state, name) in STATES {
                    let mut labels = labels(database, view);
                    labels.push(("state", name));
                    gauge(metric, &labels, flag(view.state == state))?;
                }
            }
            Ok(())
        },
    )?;
    writer.metric(
        "recsync_errors",
        None,
        MetricType::Counter,
        "Failures: those of requests by whose fault they were, and transactions of the worker that failed (database).",
        |snapshot, metric| {
            for (database, view) in snapshot.pipelines() {
                for (kind, count) in Kind::ALL.iter().zip(view.errors) {
                    let mut labels = labels(database, view);
                    labels.push(("class", kind.as_str()));
                    counter(metric, &labels, count)?;
                }
            }
            Ok(())
        },
    )?;
    writer.counter(
        "recsync_requests",
        "Requests of the worker to the provider, or to a hook's receiver.",
        is_sender,
        |view| view.requests,
    )?;
    writer.counter(
        "recsync_tokens",
        "Tokens that the provider has counted.",
        is_pipeline,
        |view| view.tokens,
    )?;
    writer.counter(
        "recsync_vectors_stored",
        "Vectors that were stored.",
        is_pipeline,
        |view| view.embedded,
    )?;
    writer.counter(
        "recsync_vectors_removed",
        "Vectors that were removed because their row is gone, filtered out or without text.",
        is_pipeline,
        |view| view.removed,
    )?;
    writer.counter(
        "recsync_rows_processed",
        "Rows that were looked at.",
        is_pipeline,
        |view| view.processed,
    )?;
    writer.counter(
        "recsync_rows_unchanged",
        "Of these, those that had the vector of their text already.",
        is_pipeline,
        |view| view.unchanged,
    )?;
    writer.counter(
        "recsync_rows_known",
        "Of these, those whose text's vector was known, and cost no request.",
        is_pipeline,
        |view| view.known,
    )?;
    writer.counter("recsync_latency_estimated", "Changes whose latency was counted from when their statement began, because the time of the commit was not known (prepared transactions, a restart of the server).", all, |view| view.estimated)?;
    writer.counter(
        "recsync_latency_unmeasured",
        "Changes whose latency was not counted, because too many waited.",
        all,
        |view| view.unmeasured,
    )?;
    writer.gauge(
        "recsync_model_age",
        Some(Unit::Seconds),
        "How long ago the oldest model in service of a recommender was trained.",
        is_recommender,
        |view| view.trained_seconds_ago,
    )?;
    writer.counter(
        "recsync_deliveries",
        "Letters of a hook that have arrived.",
        is_hook,
        |view| view.embedded,
    )?;
    for (name, help, value) in LISTS {
        writer.counter(name, help, is_recommender, value)?;
    }
    Ok(())
}

type OfLists = (&'static str, &'static str, fn(&PipelineView) -> u64);

const LISTS: [OfLists; 3] = [
    (
        "recsync_lists_ready",
        "Lists of a recommender that were ready when they were asked for.",
        |view| view.lists.ready,
    ),
    (
        "recsync_lists_made",
        "Lists of a recommender that were made when they were asked for.",
        |view| view.lists.made,
    ),
    (
        "recsync_lists_warmed",
        "Lists of a recommender that the worker has made before anybody asked for them.",
        |view| view.lists.warmed,
    ),
];

const STATES: [(State, &str); 7] = [
    (State::Running, "running"),
    (State::Paused, "paused"),
    (State::Stopped, "stopped"),
    (State::BudgetSpent, "budget_spent"),
    (State::ProviderDown, "provider_down"),
    (State::Disabled, "disabled"),
    (State::Waiting, "waiting"),
];

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}
