//! Tokens and money, with their currency as a label: what has no price is not there.
//!
//! It never adds up two currencies.

use std::collections::HashSet;

use super::text::{Kind, Labels};
use super::{Named, Writer, is_pipeline};
use crate::observe::snapshot::{MoneyView, PipelineView};
use crate::shared::money::REASONS;

pub(super) fn write(writer: &mut Writer) {
    writer.counter(
        "recsync_query_requests",
        "Requests of embed and search, of the queries for a pipeline; those by a server's name are in recsync.usage.",
        is_pipeline,
        |view| view.money.queries,
    );
    writer.counter(
        "recsync_query_tokens",
        "Tokens of these.",
        is_pipeline,
        |view| view.money.query_tokens,
    );
    of_reasons(writer);
    let Writer { views, text, .. } = &mut *writer;
    let mut lines = text.family(
        "recsync_cost",
        None,
        Kind::Counter,
        "Money for what was sent, rows and queries, at the price of the time; recsync.usage has it to the last digit, and by day.",
    );
    for named in views.iter().filter(|named| is_paid(named.view)) {
        lines.amount(&in_currency(named), named.view.money.cost);
    }
    let mut lines = text.family(
        "recsync_saved_cost",
        None,
        Kind::Counter,
        "Money that was not spent, because changes came together (coalesced), a text was that of its vector (unchanged) or its vector was known.",
    );
    for named in views.iter().filter(|named| is_paid(named.view)) {
        let labels = in_currency(named);
        for (reason, cost) in REASONS.iter().zip(named.view.money.spared_cost) {
            lines.amount(&labels.and("reason", reason), cost);
        }
    }
    of_month(writer);
}

/// Its server is known, and so what its money is.
fn is_paid(view: &PipelineView) -> bool {
    is_pipeline(view) && !view.money.currency.is_empty()
}

fn in_currency(named: &Named) -> Labels {
    named.labels.and("currency", &named.view.money.currency)
}

fn of_reasons(writer: &mut Writer) {
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
        let mut lines = writer.text.family(name, None, Kind::Counter, help);
        for named in writer.views.iter().filter(|named| is_pipeline(named.view)) {
            for (reason, value) in REASONS.iter().zip(values(&named.view.money)) {
                lines.counter(&named.labels.and("reason", reason), value);
            }
        }
    }
}

/// What the ledger has of this month, as of the last look at the tables.
fn of_month(writer: &mut Writer) {
    writer.gauge(
        "recsync_month_tokens",
        None,
        "Tokens of this month of UTC, as recsync.usage has them.",
        is_pipeline,
        |view| Some(view.money.month_tokens as f64),
    );
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
        let mut lines = writer.text.family(name, None, Kind::Gauge, help);
        for named in writer.views.iter().filter(|named| is_paid(named.view)) {
            if let Some(value) = value(&named.view.money) {
                lines.gauge(&in_currency(named), value);
            }
        }
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
        let mut lines = writer.text.family(name, None, Kind::Gauge, help);
        let mut told = HashSet::new();
        for named in writer.views.iter().filter(|named| is_paid(named.view)) {
            let (database, view) = (&named.database.name, named.view);
            if !told.insert((database, &view.server)) {
                continue; // another pipeline of the same server
            }
            let labels = Labels::of(&[
                ("database", database),
                ("server", &view.server),
                ("currency", &view.money.currency),
            ]);
            if let Some(value) = value(&view.money) {
                lines.gauge(&labels, value);
            }
        }
    }
}
