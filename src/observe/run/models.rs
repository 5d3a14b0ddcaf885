//! run of a recommender: its models are trained now.
//!
//! It never trains anything itself: a trainer does, as at the time of the schedule, and what there was before stays until
//! that has ended.

use pgrx::datum::Interval;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use super::super::wait::{Goal, until};
use super::{Outcome, Worker, counters};
use crate::catalog::recommender::{Recommender, by_id};
use crate::catalog::rights::As;
use crate::dispatch::read::in_snapshot_of_now;
use crate::error::{Error, Result, sqlstate_text};
use crate::shared::Database;

/// What is known of a model.
#[derive(Default)]
struct Known {
    trained_us: Option<i64>,
    pairs: i64,
    error: Option<String>,
}

/// It holds no lock that a trainer, or somebody who alters the recommender, would wait for.
pub fn run(database: &Database, recommender: &Recommender) -> Result<Outcome> {
    let (since, worker) = (Instant::now(), Worker::default());
    let ask = || database.checkpoint_wanted.store(true, SeqCst);
    Goal::read(recommender.id)?.wait(database, None, ask, || worker.is_there(database))?;
    let names: Vec<&str> = recommender
        .learning
        .models()
        .map(|model| model.name())
        .collect();
    let before = in_snapshot_of_now(|| known(recommender.id))?;
    if !names.is_empty() {
        train(database, recommender, &worker)?;
    }
    let now = in_snapshot_of_now(|| known(recommender.id))?;
    let (mut processed, mut inserts, mut updates, mut unchanged) = (0, 0, 0, 0);
    let none = Known::default();
    for name in names {
        let [was, is] = [&before, &now].map(|known| known.get(name).unwrap_or(&none));
        if was.trained_us == is.trained_us {
            unchanged += 1;
            if let Some(error) = &is.error {
                notice!("{error}");
            }
            continue;
        }
        processed = is.pairs.max(processed);
        match was.trained_us {
            None => inserts += 1,
            Some(_) => updates += 1,
        }
    }
    let latency = Interval::from_micros(since.elapsed().as_micros() as i64);
    Ok((processed, inserts, updates, 0, 0, unchanged, latency))
}

/// Asks for it, and waits until it has been done.
fn train(database: &Database, recommender: &Recommender, worker: &Worker) -> Result<()> {
    let counters = counters(recommender.id, &recommender.name)?;
    counters.run_failure.store(0, SeqCst);
    let number = counters.runs_wanted.fetch_add(1, SeqCst) + 1;
    until(database, || {
        let now = by_id(recommender.id)?;
        let now = now.ok_or_else(|| Error::NoSuchRecommender(recommender.name.clone()))?;
        if now.paused {
            return Err(Error::Paused(now.name));
        }
        worker.is_there(database)?;
        Ok(counters.runs_ended.load(SeqCst) >= number)
    })?;
    match counters.run_failure.load(SeqCst) {
        0 => Ok(()),
        code => Err(Error::Training {
            name: recommender.name.clone(),
            code: sqlstate_text(PgSqlErrorCode::from(code as i32)),
        }),
    }
}

fn known(recommender: i32) -> Result<HashMap<String, Known>> {
    const KNOWN: &str = "\
SELECT model, (extract(epoch FROM trained_at) * 1000000)::bigint, interactions, error FROM recsync.trained_model WHERE recommender_id = $1";
    let _as = As::extension();
    Spi::connect(|client| {
        let mut models = HashMap::new();
        for row in client.select(KNOWN, None, &[recommender.into()])? {
            let known = Known {
                trained_us: row.get(2)?,
                pairs: row.get::<i64>(3)?.unwrap_or_default(),
                error: row.get(4)?,
            };
            models.insert(row.get::<String>(1)?.unwrap_or_default(), known);
        }
        Ok(models)
    })
}
