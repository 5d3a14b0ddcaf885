//! When a pipeline's changes are due: its schedule, and the times of its timetable by the clock on the database's wall.
//!
//! It never waits: whoever asks gets a pace, or the time that is left.

use pgrx::pg_sys;
use std::time::{Duration, Instant};

use super::process::{Failed, transaction};
use crate::catalog::names::select_one;
use crate::dispatch::jobs::Again;
use crate::dispatch::pace::Pace;
use crate::dispatch::schedule::{Schedule, Timetable};
use crate::error::Result;

/// The clock in the session's time zone, as microseconds since 1970-01-01 00:00 there.
const WALL: &str =
    "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()::timestamp) * 1000000)::bigint";
/// Microseconds until a time on that clock. One that it leaves out or shows twice is PostgreSQL's to interpret.
const UNTIL: &str = "\
SELECT (extract(epoch FROM (timestamp '1970-01-01' + $1 * interval '1 microsecond')::timestamptz - pg_catalog.clock_timestamp()) * 1000000)::bigint";

pub struct Calendar {
    schedule: Schedule,
    now: Option<Stretch>,
}

/// From one time of a timetable to the next.
struct Stretch {
    /// As PostgreSQL's timestamps.
    began: i64,
    ends: Instant,
}

/// When a change is due.
pub enum Due {
    /// It is kept in memory.
    Soon(Pace),
    /// It is written down.
    In(Duration),
}

impl Calendar {
    pub fn new(schedule: Schedule) -> Calendar {
        Calendar {
            schedule,
            now: None,
        }
    }

    /// The time zone may be another.
    pub fn forget(&mut self) {
        self.now = None;
    }

    /// The times of a timetable around now. Before [`Calendar::due`].
    pub fn look(&mut self) -> std::result::Result<(), Failed> {
        if let Schedule::Timetable(timetable) = &self.schedule
            && self
                .now
                .as_ref()
                .is_none_or(|now| now.ends <= Instant::now())
        {
            self.now = transaction(|| stretch(timetable))?;
        }
        Ok(())
    }

    /// What becomes of a change that was written down, not due yet, when the row changes again.
    pub fn again(&self) -> Again {
        match self.schedule {
            Schedule::AtOnce => Again::Then,
            Schedule::Quiet { max_delay, .. } => Again::Within(max_delay),
            Schedule::Timetable(_) => Again::Earlier,
        }
    }

    /// When a change is due that was made at `changed_at`. Where a time of the timetable has passed since, nobody was
    /// there to see it, and the change is due at once.
    pub fn due(&self, changed_at: i64) -> Due {
        match (&self.schedule, &self.now) {
            (Schedule::AtOnce, _) => Due::Soon(Pace::AtOnce),
            (
                Schedule::Quiet {
                    debounce,
                    max_delay,
                },
                _,
            ) => Due::Soon(Pace::Quiet {
                debounce: *debounce,
                max_delay: *max_delay,
            }),
            (Schedule::Timetable(_), Some(now)) if now.began <= changed_at => {
                Due::In(now.ends.saturating_duration_since(Instant::now()))
            }
            (Schedule::Timetable(_), _) => Due::In(Duration::ZERO),
        }
    }
}

fn stretch(timetable: &Timetable) -> Result<Option<Stretch>> {
    let wall = select_one::<i64>(WALL, &[])?.unwrap_or(0);
    // SAFETY: the server's clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let Some(period) = timetable.around(wall) else {
        return Ok(None);
    };
    let until = select_one::<i64>(UNTIL, &[period.ends.into()])?.unwrap_or(0);
    Ok(Some(Stretch {
        began: now.saturating_sub(wall.saturating_sub(period.began)),
        ends: Instant::now() + Duration::from_micros(until.max(0) as u64),
    }))
}
