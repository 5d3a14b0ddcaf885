//! The trainer: a process that trains a recommender's models, one after the other, and ends.
//!
//! It runs below everybody else's priority, on one processor. While it computes, on a thread, no transaction is open,
//! and it ends at once when it is told to: what it had not written yet is lost. It never takes more than
//! `recsync.training_memory`.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use crate::catalog::recommender::models::{Outcome, note};
use crate::catalog::recommender::{self, Model, Recommender};
use crate::error::{Error, Result, sqlstate_text};
use crate::recommend::train::{self, Extent, Input};
use crate::settings;
use crate::shared::slots::{Reservation, Slot};
use crate::shared::{Database, Shared};
use crate::worker::process::{self, Failed, transaction};

const NAME: &str = "recsync trainer";
/// Below what people do: the operating system gives it what they leave.
const NICENESS: c_int = 10;

/// What a trainer is told at its start, beside its database.
#[repr(C)]
#[derive(Clone, Copy)]
struct Start {
    place: Reservation,
    recommender: i32,
}

/// How the leader asks the server for a trainer.
pub fn description(
    database: pg_sys::Oid,
    place: Reservation,
    recommender: i32,
) -> pg_sys::BackgroundWorker {
    let mut worker = process::description(NAME, "recsync_trainer_main", database);
    process::tell(&mut worker, Start { place, recommender });
    worker
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn recsync_trainer_main(database: pg_sys::Datum) {
    // SAFETY: what `description` has filled in.
    let start = unsafe { process::told::<Start>() };
    let Some(own) = process::take_place(database, slots, start.place, sign_off) else {
        return;
    };
    process::start(Some(own.database));
    // SAFETY: plain numbers; where it is refused, the priority stays as it is.
    unsafe { libc::nice(NICENESS) };
    own.shared.launcher.set_latch(); // which looks whether somebody is kept waiting
    process::show(Some(c"recsync: training"));
    process::RoundMemory::create().renew();
    if let Err(failed) = train_all(start.recommender) {
        let code = sqlstate_text(failed.code);
        log!(
            "recsync trainer: recommender {}: SQLSTATE {code}",
            start.recommender
        );
    }
}

fn slots(shared: &'static Shared, _: &'static Database) -> &'static [Slot] {
    &shared.trainer
}

unsafe extern "C-unwind" fn sign_off(_code: c_int, entry: pg_sys::Datum) {
    // SAFETY: what `take_place` has registered it with.
    if let Some(entry) = unsafe { process::leave_place(entry, slots) } {
        entry.catalog_changed.store(true, SeqCst);
        entry.wake.set_latch();
    }
}

fn train_all(id: i32) -> std::result::Result<(), Failed> {
    let Some(recommender) = transaction(|| recommender::by_id(id))? else {
        return Ok(());
    };
    if recommender.paused || !recommender.is_kept() || recommender.trouble().is_some() {
        return Ok(());
    }
    // SAFETY: the server's clock.
    let started = unsafe { pg_sys::GetCurrentTimestamp() };
    let extent = transaction(|| train::extent(&recommender))?;
    let (models, too_large): (Vec<Model>, Vec<Model>) = recommender
        .learning
        .models()
        .partition(|model| train::bytes(*model, &extent) <= settings::training_memory());
    for model in too_large {
        refuse(&recommender, model, &extent, started)?;
    }
    if models.is_empty() {
        return Ok(());
    }
    let input = Arc::new(transaction(|| train::read(&recommender))?);
    for model in models {
        train_one(&recommender, model, &input, started)?;
    }
    Ok(())
}

fn refuse(
    recommender: &Recommender,
    model: Model,
    extent: &Extent,
    started: i64,
) -> std::result::Result<(), Failed> {
    let megabytes = train::bytes(model, extent).div_ceil(1024 * 1024);
    let error = format!(
        "{} of {} items and {} pairs of a user and an item takes {megabytes} MB, more than recsync.training_memory",
        model.name(),
        extent.items,
        extent.pairs,
    );
    write_down(recommender, model, extent, started, Some(&error))
}

fn train_one(
    recommender: &Recommender,
    model: Model,
    input: &Arc<Input>,
    started: i64,
) -> std::result::Result<(), Failed> {
    let (began, extent) = (Instant::now(), input.extent());
    // What has come since it was counted.
    let bytes = train::bytes(model, &extent);
    if bytes > settings::training_memory() {
        return refuse(recommender, model, &extent, started);
    }
    let (name, what) = (&recommender.name, model.name());
    log!(
        "recsync trainer: recommender {name}: {what} of {} items, {} users and {} pairs of them begins, in {} MB at the most",
        extent.items,
        extent.users,
        extent.pairs,
        bytes.div_ceil(1024 * 1024),
    );
    let trained = match train::on_a_thread(model, Arc::clone(input))? {
        Ok(trained) => trained,
        Err(error) => {
            let error = format!("{what}: {error}");
            return write_down(recommender, model, &extent, started, Some(&error));
        }
    };
    transaction(|| {
        // Gone, or declared otherwise, meanwhile: the next one sees to it.
        let now = recommender::by_id(recommender.id)?;
        if now.is_none_or(|now| !now.is_declared_as(recommender)) {
            return Ok(());
        }
        train::write(recommender, input, &trained)?;
        noted(recommender, model, &extent, started, None)
    })?;
    let took = began.elapsed().as_secs_f64();
    log!("recsync trainer: recommender {name}: {what} was trained in {took:.1} s");
    Ok(())
}

fn write_down(
    recommender: &Recommender,
    model: Model,
    extent: &Extent,
    started: i64,
    error: Option<&str>,
) -> std::result::Result<(), Failed> {
    if let Some(error) = error {
        log!("recsync trainer: recommender {}: {error}", recommender.name);
    }
    transaction(|| noted(recommender, model, extent, started, error))
}

fn noted(
    recommender: &Recommender,
    model: Model,
    extent: &Extent,
    started: i64,
    error: Option<&str>,
) -> Result<()> {
    // SAFETY: a timestamptz is a count of microseconds, passed by value.
    let started = unsafe { TimestampWithTimeZone::from_datum(pg_sys::Datum::from(started), false) };
    let started = started.ok_or_else(|| Error::Internal("no time".into()))?;
    note(
        recommender,
        started,
        &Outcome {
            model,
            extent: *extent,
            bytes: train::bytes(model, extent),
            error,
        },
    )
}
