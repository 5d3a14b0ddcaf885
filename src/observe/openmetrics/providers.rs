//! Servers of pipelines and hooks, each as the worker of its pipeline or hook sees it.
//!
//! It never says anything of a server that nobody uses.

use std::fmt::Result;

use prometheus_client::registry::Unit;

use super::{Writer, is_sender};
use crate::embed::left::Left;

pub(super) fn write(writer: &mut Writer) -> Result {
    writer.gauge(
        "recsync_breaker_open",
        None,
        "Whether the server of a pipeline or hook is left alone because it fails: 1 open, 0.5 being probed, 0 closed.",
        is_sender,
        |view| {
            Some(match view.provider.breaker {
                "open" => 1.0,
                "half-open" => 0.5,
                _ => 0.0,
            })
        },
    )?;
    writer.gauge(
        "recsync_provider_failing",
        Some(Unit::Seconds),
        "Since when the server of a pipeline or hook fails; 0 where it does not.",
        is_sender,
        |view| Some(view.provider.failing_seconds),
    )?;
    writer.gauge(
        "recsync_provider_rest",
        Some(Unit::Seconds),
        "How long no request is sent, for the server's failures or its limits.",
        is_sender,
        |view| Some(view.provider.rest_seconds),
    )?;
    writer.gauge(
        "recsync_concurrency",
        None,
        "Requests that the server of a pipeline or hook gets at a time at the most, as it bears them.",
        is_sender,
        |view| Some(view.provider.window.into()),
    )?;
    writer.gauge(
        "recsync_concurrency_limit",
        None,
        "The most that it ever gets: max_concurrency.",
        is_sender,
        |view| Some(view.provider.most.into()),
    )?;
    writer.gauge(
        "recsync_requests_in_flight",
        None,
        "Requests that the server of a pipeline or hook has not answered yet, of all pipelines that share it.",
        is_sender,
        |view| Some(view.provider.flights.into()),
    )?;
    what_is_left(writer)
}

/// Of limits; where there is none, nothing is said.
fn what_is_left(writer: &mut Writer) -> Result {
    fn now(left: Option<Left>) -> Option<f64> {
        left.map(|left| left.now as f64)
    }
    fn limit(left: Option<Left>) -> Option<f64> {
        left.and_then(|left| left.limit).map(|limit| limit as f64)
    }
    writer.gauge(
        "recsync_limit_requests",
        None,
        "Requests a minute (or in the time of the provider's limit) that the server of a pipeline or hook may get, where there is a limit.",
        is_sender,
        |view| limit(view.provider.requests_left),
    )?;
    writer.gauge(
        "recsync_limit_requests_left",
        None,
        "Of these, those that may go now: of a limit of recsync's own a tenth at the most, since the others go evenly.",
        is_sender,
        |view| now(view.provider.requests_left),
    )?;
    writer.gauge(
        "recsync_limit_tokens",
        None,
        "Tokens a minute (or in the time of the provider's limit) that the server of a pipeline or hook may get, where there is a limit.",
        is_sender,
        |view| limit(view.provider.tokens_left),
    )?;
    writer.gauge(
        "recsync_limit_tokens_left",
        None,
        "Of these, those that may go now, as of requests.",
        is_sender,
        |view| now(view.provider.tokens_left),
    )
}
