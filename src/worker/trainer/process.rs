//! The trainer: a process that trains a recommender's models, one after the other, and ends.
//!
//! It runs below everybody else's priority, on one processor. While it computes, on a thread, no transaction is open,
//! and it ends at once when it is told to: what it had not written yet is lost. It never takes more than
//! `recsync.training_memory`.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::c_int;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use crate::catalog::recommender::models::{Outcome, note};
use crate::catalog::recommender::{self, Model, Recommender, tables};
use crate::dispatch::backfill;
use crate::error::{Error, Result, sqlstate_text};
use crate::hooks::outbox;
use crate::recommend::keep::bulk;
use crate::recommend::train::{self, Extent, Input, Inputs, Trained, knn};
use crate::settings;
use crate::shared::slots::{Reservation, Slot};
use crate::shared::{Database, Shared};
use crate::worker::keeping;
use crate::worker::process::{self, Failed, is_passing, transaction};

const NAME: &str = "recsync trainer";
/// Below what people do: the operating system gives it what they leave.
const NICENESS: c_int = 10;

/// What a trainer is told at its start, beside its database.
#[repr(C)]
#[derive(Clone, Copy)]
struct Start {
    place: Reservation,
    recommender: i32,
    task: Task,
    /// Up to which `recsync.run` it is for; 0: none waits for it.
    run: i64,
}

/// What a trainer is to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Task {
    /// What is known of items, once all rows of a table that were there before have been read; then as for lists.
    Items,
    /// Lists of neighbours that are stale.
    Lists,
    /// All lists, and models.
    Models,
}

/// How the leader asks the server for a trainer.
pub fn description(
    database: pg_sys::Oid,
    place: Reservation,
    recommender: i32,
    (task, run): (Task, i64),
) -> pg_sys::BackgroundWorker {
    let mut worker = process::description(NAME, "recsync_trainer_main", database);
    let start = Start {
        place,
        recommender,
        task,
        run,
    };
    process::tell(&mut worker, start);
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
    let counters = own
        .shared
        .counters(database_of(own.entry), start.recommender);
    let counters = counters.filter(|_| start.run > 0);
    let ended = train_all(own.entry, start).unwrap_or_else(|failed| {
        let code = sqlstate_text(failed.code);
        log!(
            "recsync trainer: recommender {}: SQLSTATE {code}",
            start.recommender
        );
        if let Some(counters) = counters.filter(|_| !is_passing(failed.code)) {
            counters.run_failure.store(failed.code as i64, SeqCst);
            return true;
        }
        false
    });
    if let Some(counters) = counters.filter(|_| ended) {
        counters.runs_ended.fetch_max(start.run, SeqCst);
    }
}

fn database_of(entry: &Database) -> pg_sys::Oid {
    pg_sys::Oid::from(entry.oid.load(SeqCst))
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

/// False where it cannot be done as things are.
fn train_all(database: &Database, start: Start) -> std::result::Result<bool, Failed> {
    let Some(recommender) = transaction(|| recommender::by_id(start.recommender))? else {
        return Ok(false);
    };
    if recommender.paused || !recommender.is_kept() || recommender.trouble().is_some() {
        return Ok(false);
    }
    if start.task == Task::Items {
        let began = Instant::now();
        transaction(|| count_items(&recommender))?;
        transaction(|| tables::analyze(&recommender))?;
        let (name, took) = (&recommender.name, began.elapsed().as_secs_f64());
        log!("recsync trainer: recommender {name}: its interactions were counted in {took:.1} s");
        database.catalog_changed.store(true, SeqCst);
        database.wake.set_latch();
    }
    // SAFETY: the server's clock.
    let started = unsafe { pg_sys::GetCurrentTimestamp() };
    let extent = transaction(|| train::extent(&recommender))?;
    let is_small = |model: &Model| train::bytes(*model, &extent) <= settings::training_memory();
    if start.task != Task::Models {
        if is_small(&Model::ItemKnn) {
            count_lists(&recommender, &extent)?;
        } // else whoever asked for it counts them one after the other
        return Ok(true);
    }
    // It is not looked before a run whether it is worth it.
    let is_worth_it = recommender.learning.is_chosen() || extent.pairs >= train::LEAST as i64;
    let models = recommender.learning.models();
    let (models, too_large): (Vec<Model>, Vec<Model>) = models
        .filter(|model| start.run == 0 || is_worth_it || *model == Model::ItemKnn)
        .partition(is_small);
    for model in too_large {
        refuse(&recommender, model, &extent, started)?;
    }
    let mut inputs = Inputs::default();
    for model in models {
        match model {
            Model::ItemKnn => {
                transaction(|| knn::take_all(&recommender))?;
                let error = count_lists(&recommender, &extent)?;
                write_down(&recommender, model, &extent, started, error.as_deref())?;
            }
            _ => train_one(&recommender, model, &mut inputs, &extent, started)?,
        }
    }
    Ok(true)
}

/// The end of a backfill: what has been read of it is counted, unless all is to be read again since.
fn count_items(recommender: &Recommender) -> Result<()> {
    let (id, round) = (recommender.id, recommender.backfill_round);
    bulk::count_anew(recommender)?;
    keeping::require_round(id, round, false)?;
    backfill::advance(id, round, None, 0)
}

/// Counts all lists of neighbours that are stale; or why not.
fn count_lists(
    recommender: &Recommender,
    extent: &Extent,
) -> std::result::Result<Option<String>, Failed> {
    let began = Instant::now();
    begins(recommender, Model::ItemKnn, extent);
    while transaction(|| knn::take(recommender))? {}
    transaction(|| knn::wait_for_marks(recommender))?;
    let input = transaction(|| Inputs::default().read(recommender, Model::ItemKnn))?;
    let trained = match train::trained(Model::ItemKnn, &input)? {
        Ok(trained) => trained,
        Err(error) => return Ok(Some(error)),
    };
    let (Input::Likeness(input), Trained::Lists(lists)) = (&*input, &trained) else {
        return Ok(None);
    };
    for part in input.parts(lists) {
        transaction(|| knn::write(recommender, input, part))?;
    }
    transaction(|| {
        knn::finish(recommender)?;
        outbox::invalidated_neighbours(recommender.of)
    })?;
    ended(recommender, Model::ItemKnn, began);
    Ok(None)
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
    inputs: &mut Inputs,
    extent: &Extent,
    started: i64,
) -> std::result::Result<(), Failed> {
    let began = Instant::now();
    let input = transaction(|| inputs.read(recommender, model))?;
    // With what has come since it was counted.
    let read = input.extent();
    let extent = read.as_ref().unwrap_or(extent);
    if train::bytes(model, extent) > settings::training_memory() {
        return refuse(recommender, model, extent, started);
    }
    begins(recommender, model, extent);
    let trained = match train::trained(model, &input)? {
        Ok(trained) => trained,
        Err(error) => {
            let error = format!("{}: {error}", model.name());
            return write_down(recommender, model, extent, started, Some(&error));
        }
    };
    transaction(|| {
        // Gone, or declared otherwise, meanwhile: the next one sees to it.
        let now = recommender::by_id(recommender.id)?;
        if now.is_none_or(|now| !now.is_declared_as(recommender)) {
            return Ok(());
        }
        train::write(recommender, &input, &trained)?;
        outbox::invalidated_neighbours(recommender.of)?;
        noted(recommender, model, extent, started, None)
    })?;
    ended(recommender, model, began);
    Ok(())
}

fn begins(recommender: &Recommender, model: Model, extent: &Extent) {
    log!(
        "recsync trainer: recommender {}: {} of {} items, {} users and {} pairs of them begins, in {} MB at the most",
        recommender.name,
        model.name(),
        extent.items,
        extent.users,
        extent.pairs,
        train::bytes(model, extent).div_ceil(1024 * 1024),
    );
}

fn ended(recommender: &Recommender, model: Model, began: Instant) {
    let (name, what) = (&recommender.name, model.name());
    let took = began.elapsed().as_secs_f64();
    log!("recsync trainer: recommender {name}: {what} was trained in {took:.1} s");
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
    )?;
    match error {
        None => outbox::generation(recommender.of, model.name(), None),
        Some(_) => Ok(()),
    }
}
