//! Tokens and money, with their currency as a label: what has no price is not there.
//!
//! It never adds up two currencies.

use std::collections::HashSet;
use std::fmt::Result;

use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;

use super::{Labels, Writer, counter, gauge, is_pipeline, labels};
use crate::observe::snapshot::{DatabaseView, MoneyView, PipelineView};
use crate::shared::money::REASONS;

pub(super) fn write(writer: &mut Writer) -> Result {
    writer.counter(
        "recsync_query_requests",
        "Requests of embed and search, of the queries for a pipeline; those by a server's name are in recsync.usage.",
        is_pipeline,
        |view| view.money.queries,
    )?;
    writer.counter(
        "recsync_query_tokens",
        "Tokens of these.",
        is_pipeline,
        |view| view.money.query_tokens,
    )?;
    of_reasons(writer)?;
    writer.metric(
        "recsync_cost",
        None,
        MetricType::Counter,
        "Money for what was sent, rows and queries, at the price of the time; recsync.usage has it to the last digit, and by day.",
        |snapshot, metric| {
            for (database, view) in snapshot.pipelines().filter(|(_, view)| is_paid(view)) {
                let labels = in_currency(database, view);
                let mut metric = metric.encode_family(&labels)?;
                metric.encode_counter::<NoLabelSet, f64, f64>(&view.money.cost, None)?;
            }
            Ok(())
        },
    )?;
    writer.metric(
        "recsync_saved_cost",
        None,
        MetricType::Counter,
        "Money that was not spent, because changes came together (coalesced), a text was that of its vector (unchanged) or its vector was known.",
        |snapshot, metric| {
            for (database, view) in snapshot.pipelines().filter(|(_, view)| is_paid(view)) {
                for (reason, cost) in REASONS.iter().zip(&view.money.spared_cost) {
                    let mut labels = in_currency(database, view);
                    labels.push(("reason", reason));
                    let mut metric = metric.encode_family(&labels)?;
                    metric.encode_counter::<NoLabelSet, f64, f64>(cost, None)?;
                }
            }
            Ok(())
        },
    )?;
    of_month(writer)
}

/// Its server is known, and so what its money is.
fn is_paid(view: &PipelineView) -> bool {
    is_pipeline(view) && !view.money.currency.is_empty()
}

fn in_currency<'a>(database: &'a DatabaseView, view: &'a PipelineView) -> Labels<'a> {
    let mut labels = labels(database, view);
    labels.push(("currency", &view.money.currency));
    labels
}

fn of_reasons(writer: &mut Writer) -> Result {
    type Values = fn(&MoneyView) -> [u64; REASONS.len()];
    let each: [(&str, &str, Values); 2] = [
        (
            "recsync_saved",
            "Changes or texts that did not have to be sent, by reason: coalesced, unchanged, known.",
            |money| money.spared,
        ),
        (
            "recsync_saved_tokens",
            "Tokens of these, estimated by the provider's count of other texts.",
            |money| money.spared_tokens,
        ),
    ];
    for (name, help, values) in each {
        writer.metric(name, None, MetricType::Counter, help, |snapshot, metric| {
            for (database, view) in snapshot.pipelines().filter(|(_, view)| is_pipeline(view)) {
                for (reason, value) in REASONS.iter().zip(values(&view.money)) {
                    let mut labels = labels(database, view);
                    labels.push(("reason", reason));
                    counter(metric, &labels, value)?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// What the ledger has of this month, as of the last look at the tables.
fn of_month(writer: &mut Writer) -> Result {
    writer.gauge(
        "recsync_month_tokens",
        None,
        "Tokens of this month of UTC, as recsync.usage has them.",
        is_pipeline,
        |view| Some(view.money.month_tokens as f64),
    )?;
    type Value = fn(&MoneyView) -> Option<f64>;
    let each: [(&str, &str, Value); 2] = [
        (
            "recsync_month_cost",
            "Money of this month of UTC, as recsync.usage has it.",
            |money| Some(money.month_cost),
        ),
        (
            "recsync_monthly_budget",
            "What the pipeline may spend in a month (set_budget), where there is a limit.",
            |money| money.budget,
        ),
    ];
    for (name, help, value) in each {
        writer.metric(name, None, MetricType::Gauge, help, |snapshot, metric| {
            for (database, view) in snapshot.pipelines().filter(|(_, view)| is_paid(view)) {
                if let Some(value) = value(&view.money) {
                    gauge(metric, &in_currency(database, view), value)?;
                }
            }
            Ok(())
        })?;
    }
    let each: [(&str, &str, Value); 2] = [
        (
            "recsync_server_month_cost",
            "Money of this month of UTC that all pipelines of a server of this database have spent together.",
            |money| Some(money.server_month_cost),
        ),
        (
            "recsync_server_monthly_budget",
            "What they may spend together (the server's option monthly_budget), where there is a limit.",
            |money| money.server_budget,
        ),
    ];
    for (name, help, value) in each {
        writer.metric(name, None, MetricType::Gauge, help, |snapshot, metric| {
            for database in &snapshot.databases {
                let mut told = HashSet::new();
                for view in database.pipelines.iter().filter(|view| is_paid(view)) {
                    if !told.insert(&view.server) {
                        continue; // another pipeline of the same server
                    }
                    let labels: Labels = vec![
                        ("database", &database.name),
                        ("server", &view.server),
                        ("currency", &view.money.currency),
                    ];
                    if let Some(value) = value(&view.money) {
                        gauge(metric, &labels, value)?;
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}
