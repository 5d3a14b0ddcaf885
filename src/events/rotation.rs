//! What keeps the register small: its tables are closed in turn, and emptied when what they hold is old enough.
//!
//! It never deletes a row, and never keeps anybody waiting for longer than its caller's lock_timeout.

use pgrx::prelude::*;
use std::time::Duration;

use super::register::PARTS;
use crate::catalog::names::select_one;
use crate::error::Result;

/// Tables that the retention is spread over: one is written, two are kept whole, and one is free when it is needed.
const SPANS: u32 = PARTS as u32 - 2;

/// Empties one table that was closed `retention` ago; true when it did. A failure is a lock that somebody holds.
pub fn empty(retention: Duration) -> Result<bool> {
    const OLD: &str = "\
SELECT number FROM recsync.event_register
 WHERE closed_at <= pg_catalog.clock_timestamp() - $1 * interval '1 second' ORDER BY closed_at LIMIT 1";
    let Some(number) = select_one::<i32>(OLD, &[retention.as_secs_f64().into()])? else {
        return Ok(false);
    };
    Spi::run(&format!(
        "LOCK TABLE recsync.event_{number} IN ACCESS EXCLUSIVE MODE NOWAIT"
    ))?;
    Spi::run(&format!("TRUNCATE recsync.event_{number}"))?;
    Spi::run_with_args(
        "UPDATE recsync.event_register SET opened_at = NULL, closed_at = NULL WHERE number = $1",
        &[number.into()],
    )?;
    Ok(true)
}

/// Closes the open table where it has been open for long enough and holds something, and opens the next one; true when it
/// did. Who writes waits for this, and this for who has written: the caller sets lock_timeout.
pub fn close(retention: Duration) -> Result<bool> {
    const DUE: &str = "\
SELECT o.number FROM recsync.event_register o JOIN recsync.event_register n ON n.number = (o.number + 1) % $2
 WHERE o.opened_at <= pg_catalog.clock_timestamp() - $1 * interval '1 second' AND o.closed_at IS NULL AND n.opened_at IS NULL";
    let span = retention / SPANS;
    let parts = PARTS as i32;
    let due = [span.as_secs_f64().into(), parts.into()];
    let Some(number) = select_one::<i32>(DUE, &due)? else {
        return Ok(false);
    };
    let holds = format!("SELECT EXISTS (SELECT FROM recsync.event_{number})");
    if select_one::<bool>(&holds, &[])? != Some(true) {
        return Ok(false);
    }
    Spi::run(&format!(
        "LOCK TABLE recsync.event_{number} IN SHARE ROW EXCLUSIVE MODE"
    ))?;
    Spi::run_with_args(
        "UPDATE recsync.event_register
            SET closed_at = CASE number WHEN $1 THEN pg_catalog.clock_timestamp() END,
                opened_at = CASE number WHEN $1 THEN opened_at ELSE pg_catalog.clock_timestamp() END
          WHERE number IN ($1, ($1 + 1) % $2)",
        &[number.into(), parts.into()],
    )?;
    Ok(true)
}
