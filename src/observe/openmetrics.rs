//! A snapshot as OpenMetrics text, as Prometheus and others read it.
//!
//! Names are a promise: they are in the README, and dashboards use them. It never calls PostgreSQL.
//!
//! Source: OpenMetrics 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).

// Families, lines, labels and numbers.
mod text;

// Tokens and money.
mod money;

// Servers of pipelines and hooks.
mod providers;

use super::health::Health;
use super::snapshot::{DatabaseView, PipelineView, Snapshot, State, Worker};
use crate::shared::failures;
use crate::shared::histogram::Distribution;
use crate::shared::meters::Op;
use text::{Bounds, Kind, Labels, Text};

/// What the text is, for HTTP.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const BYTES: Option<&str> = Some("bytes");
const SECONDS: Option<&str> = Some("seconds");
/// About what a pipeline takes that has done something of each kind.
const BYTES_OF_PIPELINE: usize = 8 * 1024;

type Shown = fn(&PipelineView) -> bool;

/// The whole text, up to `# EOF`.
pub fn text(snapshot: &Snapshot) -> String {
    let views: Vec<Named> = snapshot
        .pipelines()
        .map(|(database, view)| Named {
            database,
            view,
            // The label that names it is its kind.
            labels: Labels::of(&[("database", &database.name), (view.kind, &view.name)]),
        })
        .collect();
    let bytes = (1 + views.len()) * BYTES_OF_PIPELINE;
    let mut writer = Writer {
        snapshot,
        views,
        text: Text::with_capacity(bytes),
    };
    of_cluster(&mut writer);
    of_databases(&mut writer);
    latencies(&mut writer);
    of_pipelines(&mut writer);
    providers::write(&mut writer);
    money::write(&mut writer);
    writer.text.end()
}

/// A pipeline, recommender or hook, with what names it in each of its lines.
struct Named<'a> {
    database: &'a DatabaseView,
    view: &'a PipelineView,
    labels: Labels,
}

struct Writer<'a> {
    snapshot: &'a Snapshot,
    views: Vec<Named<'a>>,
    text: Text,
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

impl Writer<'_> {
    /// One of the whole cluster.
    fn one(&mut self, name: &str, help: &str, value: f64) {
        let mut lines = self.text.family(name, None, Kind::Gauge, help);
        lines.gauge(&Labels::default(), value);
    }

    fn database_gauge(
        &mut self,
        name: &str,
        unit: Option<&str>,
        help: &str,
        value: fn(&DatabaseView) -> Option<f64>,
    ) {
        let mut lines = self.text.family(name, unit, Kind::Gauge, help);
        for database in &self.snapshot.databases {
            if let Some(value) = value(database) {
                lines.gauge(&Labels::of(&[("database", &database.name)]), value);
            }
        }
    }

    fn gauge(
        &mut self,
        name: &str,
        unit: Option<&str>,
        help: &str,
        shown: Shown,
        value: fn(&PipelineView) -> Option<f64>,
    ) {
        let mut lines = self.text.family(name, unit, Kind::Gauge, help);
        for named in self.views.iter().filter(|named| shown(named.view)) {
            if let Some(value) = value(named.view) {
                lines.gauge(&named.labels, value);
            }
        }
    }

    fn counter(&mut self, name: &str, help: &str, shown: Shown, value: fn(&PipelineView) -> u64) {
        let mut lines = self.text.family(name, None, Kind::Counter, help);
        for named in self.views.iter().filter(|named| shown(named.view)) {
            lines.counter(&named.labels, value(named.view));
        }
    }

    /// Of each label that `values` gives its durations; what has none yet is not there, as with any label set of
    /// Prometheus' own libraries before its first observation.
    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        shown: Shown,
        each: impl Fn(&PipelineView, &mut dyn FnMut(Option<&'static str>, &Distribution)),
    ) {
        let bounds = Bounds::new();
        let mut lines = self.text.family(name, SECONDS, Kind::Histogram, help);
        for named in self.views.iter().filter(|named| shown(named.view)) {
            each(named.view, &mut |op, values| {
                if values.count() == 0 {
                    return;
                }
                match op {
                    Some(op) => lines.histogram(&named.labels.and("op", op), &bounds, values),
                    None => lines.histogram(&named.labels, &bounds, values),
                }
            });
        }
    }
}

fn of_cluster(writer: &mut Writer) {
    let snapshot = writer.snapshot;
    writer
        .text
        .family(
            "recsync_build",
            None,
            Kind::Info,
            "The version of the library.",
        )
        .info(&Labels::of(&[("version", snapshot.version)]));
    writer.one(
        "recsync_healthy",
        "Whether recsync.health() finds nothing wrong.",
        flag(Health::of(snapshot).ok),
    );
    writer.one(
        "recsync_enabled",
        "The setting recsync.enabled.",
        flag(snapshot.enabled),
    );
    writer.one(
        "recsync_standby",
        "Whether this server is a standby, which has no workers.",
        flag(snapshot.standby),
    );
    writer.one(
        "recsync_waiting_databases",
        "Databases whose worker would run if there were a slot.",
        snapshot.waiting_databases.into(),
    );
    let mut lines = writer.text.family(
        "recsync_http",
        BYTES,
        Kind::Counter,
        "Bytes of the bodies of requests to providers, and of their answers, by workers and sessions.",
    );
    for (direction, bytes) in [
        ("sent", snapshot.sent_bytes),
        ("received", snapshot.received_bytes),
    ] {
        lines.counter(&Labels::of(&[("direction", direction)]), bytes);
    }
}

fn of_databases(writer: &mut Writer) {
    writer.database_gauge(
        "recsync_worker_up",
        None,
        "Whether the database has its worker, or needs none at the moment.",
        |database| {
            let up = matches!(database.worker, Worker::Runs | Worker::GaveWay);
            (database.worker != Worker::Standby).then_some(flag(up))
        },
    );
    writer.database_gauge(
        "recsync_log",
        BYTES,
        "Size of the change log on disk.",
        |database| {
            database
                .looked_seconds_ago
                .map(|_| database.log_bytes as f64)
        },
    );
    writer.database_gauge(
        "recsync_holdback",
        SECONDS,
        "Age of the oldest transaction of the database, prepared ones included, that keeps dead rows and its own changes from being worked off.",
        |database| database.looked_seconds_ago.map(|_| database.holdback_seconds),
    );
    writer.database_gauge(
        "recsync_tables_looked_at",
        SECONDS,
        "How long ago the numbers that only tables know were looked up: dead letters, jobs, the log, what is paused.",
        |database| database.looked_seconds_ago,
    );
}

fn latencies(writer: &mut Writer) {
    writer.histogram(
        "recsync_event_latency",
        "From the commit of a change to the commit of its vector, or of its removal. Of changes of a row that are worked off together, the first counts.",
        is_pipeline,
        |view, write| {
            for (op, values) in Op::ALL.iter().zip(&view.latency) {
                write(Some(op.as_str()), values);
            }
        },
    );
    writer.histogram(
        "recsync_interaction_latency",
        "From the commit of a changed interaction to where it counts in lists.",
        is_recommender,
        |view, write| {
            let mut all = Distribution::default();
            view.latency.iter().for_each(|values| all.add(values));
            write(None, &all);
        },
    );
    writer.histogram(
        "recsync_embed",
        "Time of a worker's request to the provider, or to a hook's receiver, with retries after a refused key, answered well or not.",
        is_sender,
        |view, write| write(None, &view.request_time),
    );
}

fn of_pipelines(writer: &mut Writer) {
    let all: Shown = |_| true;
    writer.gauge(
        "recsync_pending",
        None,
        "Rows that wait: changes, backfill, retries; of a hook letters. What stands in a long queue of jobs is estimated, as recsync.status says.",
        all,
        |view| Some(view.pending as f64),
    );
    writer.gauge(
        "recsync_in_flight",
        None,
        "Rows that are at the provider, or whose vector is not stored yet.",
        is_pipeline,
        |view| Some(view.in_flight as f64),
    );
    writer.gauge(
        "recsync_dead_letters",
        None,
        "Rows, or letters of a hook, that were given up.",
        all,
        |view| Some(view.dead as f64),
    );
    writer.gauge(
        "recsync_lag",
        SECONDS,
        "Age of the oldest change that does not show yet, or of a hook's oldest letter.",
        all,
        |view| Some(view.lag_seconds),
    );
    let Writer { views, text, .. } = writer;
    let mut lines = text.family(
        "recsync_state",
        None,
        Kind::Gauge,
        "What a pipeline, recommender or hook does: stopped means that recsync has paused it for a reason, paused that somebody has.",
    );
    for named in &*views {
        for (state, name) in STATES {
            let labels = named.labels.and("state", name);
            lines.gauge(&labels, flag(named.view.state == state));
        }
    }
    let mut lines = text.family(
        "recsync_errors",
        None,
        Kind::Counter,
        "Failures: those of requests by whose fault they were, and transactions of the worker that failed (database).",
    );
    for named in &*views {
        for (class, count) in failures::Kind::ALL.iter().zip(named.view.errors) {
            lines.counter(&named.labels.and("class", class.as_str()), count);
        }
    }
    writer.counter(
        "recsync_requests",
        "Requests of the worker to the provider, or to a hook's receiver.",
        is_sender,
        |view| view.requests,
    );
    writer.counter(
        "recsync_tokens",
        "Tokens that the provider has counted.",
        is_pipeline,
        |view| view.tokens,
    );
    writer.counter(
        "recsync_vectors_stored",
        "Vectors that were stored.",
        is_pipeline,
        |view| view.embedded,
    );
    writer.counter(
        "recsync_vectors_removed",
        "Vectors that were removed because their row is gone, filtered out or without text.",
        is_pipeline,
        |view| view.removed,
    );
    writer.counter(
        "recsync_rows_processed",
        "Rows that were looked at.",
        is_pipeline,
        |view| view.processed,
    );
    writer.counter(
        "recsync_rows_unchanged",
        "Of these, those that had the vector of their text already.",
        is_pipeline,
        |view| view.unchanged,
    );
    writer.counter(
        "recsync_rows_known",
        "Of these, those whose text's vector was known, and cost no request.",
        is_pipeline,
        |view| view.known,
    );
    writer.counter("recsync_latency_estimated", "Changes whose latency was counted from when their statement began, because the time of the commit was not known (prepared transactions, a restart of the server).", all, |view| view.estimated);
    writer.counter(
        "recsync_latency_unmeasured",
        "Changes whose latency was not counted, because too many waited.",
        all,
        |view| view.unmeasured,
    );
    writer.gauge(
        "recsync_model_age",
        SECONDS,
        "How long ago the oldest model in service of a recommender was trained.",
        is_recommender,
        |view| view.trained_seconds_ago,
    );
    writer.counter(
        "recsync_deliveries",
        "Letters of a hook that have arrived.",
        is_hook,
        |view| view.embedded,
    );
    for (name, help, value) in LISTS {
        writer.counter(name, help, is_recommender, value);
    }
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
