//! What is served: metrics, health, and a page for people.
//!
//! It never calls PostgreSQL: everything is made of shared memory, on the server's threads.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use serde::Serialize;

use super::health::Health;
use super::http::{Answer, Reply, Request};
use super::openmetrics;
use super::snapshot::Snapshot;
use crate::shared::Shared;
use crate::shared::failures::Kind;
use crate::shared::histogram::BOUNDS_US;
use crate::shared::meters::{Op, now_us};

const PAGE: &str = include_str!("page.html");
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
/// Workers look at their tables for those who have asked lately; whoever asks after so long wakes them.
pub const LATELY_US: i64 = 60_000_000;

/// Called where nobody has asked lately.
pub type Ringer = Arc<dyn Fn() + Send + Sync>;

pub fn answer(shared: &'static Shared, ring: Ringer) -> Arc<Answer> {
    let take = move || {
        let now = now_us();
        if now - shared.watch.asked_us.swap(now, SeqCst) > LATELY_US {
            ring();
        }
        Snapshot::take(shared)
    };
    Arc::new(move |request: &Request| match request.path.as_str() {
        "/" => Reply::ok(HTML, PAGE),
        "/metrics" => Reply::ok(openmetrics::CONTENT_TYPE, openmetrics::text(take())),
        "/healthz" => {
            let health = Health::of(&take());
            let body = json(&health);
            match health.ok {
                true => Reply::ok(JSON, body),
                false => Reply::unavailable(JSON, body),
            }
        }
        "/status.json" => Reply::ok(JSON, status(&take())),
        _ => Reply::not_found(),
    })
}

/// What the page is made of.
#[derive(Serialize)]
struct Status<'a> {
    health: Health,
    /// Upper bounds of the buckets of all durations, in seconds.
    bounds: Vec<f64>,
    ops: [&'static str; Op::ALL.len()],
    classes: [&'static str; Kind::ALL.len()],
    #[serde(flatten)]
    snapshot: &'a Snapshot,
}

fn status(snapshot: &Snapshot) -> Vec<u8> {
    json(&Status {
        health: Health::of(snapshot),
        bounds: BOUNDS_US.iter().map(|us| *us as f64 / 1e6).collect(),
        ops: Op::ALL.map(Op::as_str),
        classes: Kind::ALL.map(Kind::as_str),
        snapshot,
    })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Plain data with string keys: it cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}
