//! Events of other systems, applied to tables: each once, in the caller's transaction, with the caller's rights.
//!
//! ```text
//!  jsonb --> given | debezium --> prepare (table, columns, key) --> register (new? in order?) --> one statement a run
//! ```
//!
//! It never writes a row by other rights than the caller's, and never puts a value into SQL.

use pgrx::AnyElement;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::CStr;

// What is given: recsync's own form,
mod given;

// Debezium's envelopes,
mod debezium;

// and what their schemas say of values.
mod semantic;

// The table that an event is for.
mod target;

// Both together.
mod prepare;

// Which events were applied.
mod register;

// What a closed table of them does not hold.
mod absent;

// What keeps that small.
pub mod rotation;

// All of it, in order.
mod apply;

use apply::{OnError, Outcome, What};

use crate::error::{Error, OrReport, Result, sqlstate_text};

extension_sql_file!(
    "events/tables.sql",
    name = "event_tables",
    requires = ["tables"]
);

#[pg_extern(sql = r#"
CREATE FUNCTION apply_events(events jsonb, on_error text DEFAULT 'abort') RETURNS bigint LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
REVOKE ALL ON FUNCTION apply_events(jsonb, text) FROM PUBLIC;
COMMENT ON FUNCTION apply_events(jsonb, text) IS
'Applies events of other systems to tables, each once, in the caller''s transaction and with the caller''s rights; returns how many were applied. events: a JSON array, or one event: {event_id, operation: insert | update | upsert | delete, table, record_id | key, data, timestamp, sequence}, or a Debezium envelope with or without schema. on_error: abort (the call is an error), skip (the other events are applied) or dead_letter (the same, and the event is kept in recsync.event_dead_letter). Errors: the SQLSTATE of what is wrong with an event, 22023 a malformed one or bad arguments, 42703 no such column, 42P01 no such table, 55000 a table without a primary key, P0002 an update of a row that is not there, 25006 on a standby. See apply_events_report.';
"#)]
fn apply_events(events: AnyElement, on_error: &str) -> i64 {
    let outcomes = apply(events, on_error).or_report();
    let applied = outcomes
        .iter()
        .filter(|outcome| matches!(outcome.what, What::Applied));
    applied.count() as i64
}

type Report = (
    i32,
    Option<String>,
    &'static str,
    Option<String>,
    Option<String>,
);

#[pg_extern(sql = r#"
CREATE FUNCTION apply_events_report(events jsonb, on_error text DEFAULT 'abort') RETURNS TABLE ("position" integer, event_id text, outcome text, sqlstate text, message text) LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
REVOKE ALL ON FUNCTION apply_events_report(jsonb, text) FROM PUBLIC;
COMMENT ON FUNCTION apply_events_report(jsonb, text) IS
'Does what apply_events does and returns what became of each event. position: in the array, from 1; event_id: as given, or made of Debezium''s source position and the row''s key; outcome: applied, repeated (it was applied before), outdated (a higher sequence was applied to its row before), ignored (a tombstone, a message of the source''s), refused, or dead_letter; sqlstate and message: why it was refused, or ignored. Arguments and errors are those of apply_events.';
"#)]
#[allow(clippy::type_complexity)] // the columns of an SQL function
fn apply_events_report(
    events: AnyElement,
    on_error: &str,
) -> TableIterator<
    'static,
    (
        name!(position, i32),
        name!(event_id, Option<String>),
        name!(outcome, &'static str),
        name!(sqlstate, Option<String>),
        name!(message, Option<String>),
    ),
> {
    let keeps = on_error == "dead_letter";
    let outcomes = apply(events, on_error).or_report().into_iter();
    TableIterator::new(
        (1..)
            .zip(outcomes)
            .map(move |(position, outcome)| row(position, outcome, keeps)),
    )
}

fn row(position: i32, outcome: Outcome, keeps: bool) -> Report {
    let (what, code, message) = match outcome.what {
        What::Applied => ("applied", None, None),
        What::Repeated => ("repeated", None, None),
        What::Outdated => ("outdated", None, None),
        What::Ignored(reason) => ("ignored", None, Some(reason.to_owned())),
        What::Refused(refusal) => {
            let what = if keeps { "dead_letter" } else { "refused" };
            let code = sqlstate_text(refusal.code);
            (what, Some(code), Some(refusal.to_string()))
        }
    };
    (position, outcome.id, what, code, message)
}

fn apply(events: AnyElement, on_error: &str) -> Result<Vec<Outcome>> {
    let on_error = match on_error {
        "abort" => OnError::Abort,
        "skip" => OnError::Skip,
        "dead_letter" => OnError::DeadLetter,
        other => {
            return Err(Error::argument(
                "on_error",
                format!("\"{other}\" is not what can be done about an event that fails"),
                "The valid ones are abort, skip and dead_letter.",
            ));
        }
    };
    // As text, not as a parsed value: that would round numbers.
    // SAFETY: the argument is declared as jsonb and is not NULL; the text is used before this call ends.
    let text =
        unsafe { pgrx::direct_function_call::<&CStr>(pg_sys::jsonb_out, &[Some(events.datum())]) };
    let text = text.unwrap_or_default().to_string_lossy();
    apply::apply(&text, on_error)
}
