//! A writer: a process that stores what its leader gives it, and says what became of it.
//!
//! It never decides anything: which rows, in which order, and what to do about a failure is the leader's. It ends
//! with its leader, or when that has no more to give.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::ffi::c_int;
use std::time::Instant;

use super::channel::{Channel, Received};
use super::message::{Answer, Order, read_order};
use crate::error::Failed;
use crate::shared::slots::{Reservation, Slot};
use crate::shared::{Database, Shared};
use crate::store::{Writer, Written};
use crate::worker::process;
use crate::worker::storing::store;

const NAME: &str = "recsync writer";

/// What a writer is told at its start, beside its database.
#[repr(C)]
#[derive(Clone, Copy)]
struct Start {
    channel: u32,
    place: Reservation,
}

/// How the leader asks the server for a writer.
pub fn description(
    database: pg_sys::Oid,
    channel: u32,
    place: Reservation,
) -> pg_sys::BackgroundWorker {
    let mut worker = process::description(NAME, "recsync_writer_main", database);
    process::tell(&mut worker, Start { channel, place });
    worker
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn recsync_writer_main(database: pg_sys::Datum) {
    // SAFETY: what `description` has filled in.
    let start = unsafe { process::told::<Start>() };
    let Some(own) = process::take_place(database, slots, start.place, sign_off) else {
        return;
    };
    let Some(channel) = Channel::open(start.channel) else {
        return;
    };
    process::start(Some(own.database));
    work(channel);
}

fn slots(shared: &'static Shared, _: &'static Database) -> &'static [Slot] {
    &shared.writers
}

unsafe extern "C-unwind" fn sign_off(_code: c_int, entry: pg_sys::Datum) {
    // SAFETY: what `take_place` has registered it with.
    unsafe { process::leave_place(entry, slots) };
}

/// Until the leader closes the channel.
fn work(mut channel: Channel) {
    let memory = process::RoundMemory::create();
    let mut writers = HashMap::new();
    loop {
        memory.renew();
        process::reload_if_asked();
        let order = match channel.receive() {
            Received::Message(message) => read_order(&message),
            Received::Nothing => {
                process::show(None);
                process::wait_for_latch();
                continue;
            }
            Received::Gone => return,
        };
        process::show(Some(c"recsync: storing"));
        let answer = order.and_then(|order| carry_out(order, &mut writers));
        let sent = answer
            .and_then(|answer| answer.to_bytes().ok())
            .is_some_and(|answer| channel.send_all(&answer));
        if !sent {
            return;
        }
    }
}

/// `None`: an order for a pipeline that this writer was never told of.
fn carry_out(mut order: Order, writers: &mut HashMap<i32, Writer>) -> Option<Answer> {
    if let Some(declared) = order.declaration.take() {
        let writer = Writer::new(&declared.pipeline, &declared.vector_schema, declared.recipe);
        writers.insert(order.task.pipeline, writer);
    }
    let writer = writers.get(&order.task.pipeline)?;
    let started = Instant::now();
    let outcome: Result<Written, Failed> = store(writer, &order.task);
    Some(Answer::new(order.number, outcome, started.elapsed()))
}
