//! What keeps the log and the tables small: the checkpoint, the rotation of the log, and small look-ups of recsync's own.
//!
//! It never queues for a lock: a log table that somebody reads is rotated another time.

use pgrx::prelude::*;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::load::RESTORED;
use super::process::{Failed, transaction};
use crate::catalog::names::select_one;
use crate::catalog::rights::with_settings;
use crate::dispatch::backfill;
use crate::dispatch::queue::Ticket;
use crate::dispatch::read::{BY_INDEX, current_snapshot};
use crate::dispatch::snapshot::Snapshot;
use crate::error::{Error, Result};
use crate::events::rotation as events;
use crate::recommend::shown;
use crate::settings;
use crate::shared::{Database, LOG_TABLES};

/// How often the log is looked at, and how often while changes come.
const ROTATION: Duration = Duration::from_secs(60);
const BUSY_ROTATION: Duration = Duration::from_secs(1);

/// The stored checkpoint, and what is known of it in memory.
pub struct Checkpoint {
    snapshot: Snapshot,
    /// Where its row stands: found without the index, whose dead entries a held snapshot would pile up.
    row: Option<String>,
    /// Reached, and not written because nothing in between concerned us.
    reached: Option<Snapshot>,
    /// Changes have been read since it was last written.
    pub has_changes: bool,
    /// Since it was last looked at: it is looked at before long.
    pub log_has_grown: bool,
    looked_at_log: Instant,
    /// When what was shown is looked at for what is too old.
    sweeps_shown_at: Instant,
    /// When the register of events is looked at.
    rotates_events_at: Instant,
}

/// Bytes of a log table from the first row on that the checkpoint `$1` has not seen.
const UNDISPATCHED: &str = "\
SELECT COALESCE((SELECT pg_catalog.pg_relation_size('recsync.log_N') - (l.ctid::text::point)[0]::bigint * 8192
                   FROM recsync.log_N l
                  WHERE l.transaction_id >= pg_catalog.pg_snapshot_xmin($1::pg_snapshot)
                    AND NOT pg_catalog.pg_visible_in_snapshot(l.transaction_id, $1::pg_snapshot)
                  ORDER BY l.transaction_id, l.sequence LIMIT 1), 0)";

/// The checkpoint from which this worker goes on. One of another server (a restore, a copy), or none: everything
/// is looked at again from now on, which costs a call only for texts that have changed. The same where more has
/// piled up while no worker ran than the log is meant to hold.
pub fn resume_checkpoint() -> Result<(Checkpoint, Snapshot)> {
    let own = select_one::<String>(
        "SELECT c.snapshot::text FROM recsync.checkpoint c, pg_catalog.pg_control_system() s
          WHERE c.system_identifier = s.system_identifier
            AND c.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())",
        &[],
    )?;
    let overflows = match &own {
        Some(text) => undispatched(text)? > settings::log_max_size(),
        None => false,
    };
    if overflows {
        log!(
            "recsync worker: more changes are waiting than recsync.log_max_size: all rows are looked at instead"
        );
    }
    let snapshot = match own.filter(|_| !overflows) {
        Some(text) => text.parse().map_err(Error::Internal)?,
        None => {
            let declared = select_one::<Vec<i32>>(
                "SELECT pg_catalog.array_agg(id) FROM (SELECT id FROM recsync.pipeline UNION ALL SELECT id FROM recsync.recommender) d",
                &[],
            )?;
            let declared = declared.unwrap_or_default();
            match overflows {
                true => backfill::begin(
                    &declared,
                    Some("more changes were waiting than recsync.log_max_size"),
                )?,
                false => backfill::advise(&declared, RESTORED)?,
            }
            let now = current_snapshot()?;
            write(&now, None)?;
            now
        }
    };
    let checkpoint = Checkpoint {
        snapshot,
        row: None,
        reached: None,
        has_changes: false,
        log_has_grown: false,
        looked_at_log: Instant::now(),
        sweeps_shown_at: Instant::now(),
        rotates_events_at: Instant::now(),
    };
    let from = checkpoint.snapshot.clone();
    Ok((checkpoint, from))
}

fn undispatched(checkpoint: &str) -> Result<i64> {
    (0..LOG_TABLES)
        .map(|table| {
            let sql = UNDISPATCHED.replace("log_N", &format!("log_{table}"));
            Ok(select_one::<i64>(&sql, &[checkpoint.into()])?.unwrap_or(0))
        })
        .sum()
}

/// Writes the checkpoint; `row` is where it stood. Returns where it stands now.
fn write(snapshot: &Snapshot, row: Option<&str>) -> Result<Option<String>> {
    if let Some(row) = row {
        let moved = Spi::connect_mut(|client| {
            let table = client.update(
                "UPDATE recsync.checkpoint SET snapshot = $1::pg_snapshot WHERE ctid = $2::tid RETURNING ctid::text",
                None,
                &[snapshot.to_string().into(), row.into()],
            )?;
            if table.is_empty() {
                Ok(None)
            } else {
                table.first().get_one::<String>()
            }
        })?;
        if moved.is_some() {
            return Ok(moved);
        }
    }
    Ok(Spi::get_one_with_args::<String>(
        "INSERT INTO recsync.checkpoint (snapshot, system_identifier, database)
         SELECT $1::pg_snapshot, s.system_identifier, d.oid
           FROM pg_catalog.pg_control_system() s, pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
         ON CONFLICT (only_row) DO UPDATE
            SET snapshot = excluded.snapshot, system_identifier = excluded.system_identifier, database = excluded.database
         RETURNING ctid::text",
        &[snapshot.to_string().into()],
    )?)
}

impl Checkpoint {
    /// Passes `finished`: writes the new position where it matters or is `wanted`. True when it was written.
    pub fn advance(
        &mut self,
        finished: &[Ticket],
        wanted: bool,
    ) -> std::result::Result<bool, Failed> {
        let mut slices = Vec::new();
        for ticket in finished {
            match ticket {
                Ticket::Log(snapshot) if snapshot.is_empty() => {} // part of a longer stretch
                Ticket::Log(snapshot) => self.reached = snapshot.parse().ok(),
                Ticket::Backfill {
                    pipeline,
                    round,
                    up_to,
                    rows,
                } => slices.push((*pipeline, *round, up_to.as_deref(), *rows)),
            }
        }
        let reached = self.reached.take_if(|_| self.has_changes || wanted);
        if reached.is_none() && slices.is_empty() {
            return Ok(false);
        }
        let row = self.row.take();
        let row = transaction(|| {
            // A lost checkpoint only means that rows are looked at again: not worth waiting for the disk.
            Spi::run("SET LOCAL synchronous_commit = off")?;
            let row = match &reached {
                Some(reached) => write(reached, row.as_deref())?,
                None => row,
            };
            slices
                .iter()
                .try_for_each(|(pipeline, round, up_to, rows)| {
                    backfill::advance(*pipeline, *round, *up_to, *rows)
                })?;
            Ok(row)
        })?;
        self.row = row;
        if let Some(reached) = reached {
            self.snapshot = reached;
            self.has_changes = false;
        }
        Ok(true)
    }

    /// Whether it is time to look at the log, and there is something in it. The checkpoint has to be written first.
    pub fn rotation_is_due(&mut self) -> bool {
        if !self.next_rotation().is_zero() {
            return false;
        }
        self.looked_at_log = Instant::now();
        self.log_has_grown = false;
        transaction(sizes).is_ok_and(|sizes| sizes.iter().any(|size| *size > 0))
    }

    /// What was shown too long ago goes, some at a time.
    pub fn sweep_shown(&mut self) {
        if !self.next_sweep_of_shown().is_zero() {
            return;
        }
        let swept = transaction(|| {
            Spi::run("SET LOCAL lock_timeout = '50ms'")?;
            // A crash leaves them for the next time.
            Spi::run("SET LOCAL synchronous_commit = off")?;
            shown::sweep(settings::shown_retention())
        });
        // A failure is a lock that somebody holds: another time.
        let pause = match swept {
            Ok(true) => BUSY_ROTATION,
            Ok(false) | Err(_) => ROTATION,
        };
        self.sweeps_shown_at = Instant::now() + pause;
    }

    /// In how long that is looked at.
    pub fn next_sweep_of_shown(&self) -> Duration {
        self.sweeps_shown_at
            .saturating_duration_since(Instant::now())
    }

    /// Both are looked at now: the settings may be others.
    pub fn hasten_sweeps(&mut self) {
        self.sweeps_shown_at = Instant::now();
        self.rotates_events_at = Instant::now();
    }

    /// A table of the register of events that is old enough is emptied, one that is full of them closed.
    pub fn rotate_events(&mut self) {
        if !self.next_rotation_of_events().is_zero() {
            return;
        }
        let retention = settings::event_retention();
        let step = |step: fn(Duration) -> Result<bool>| {
            transaction(|| {
                Spi::run("SET LOCAL lock_timeout = '50ms'")?;
                Spi::run("SET LOCAL synchronous_commit = off")?;
                step(retention)
            })
        };
        // A failure is a lock that somebody holds: another time, and not soon, since it was waited for.
        let steps = [step(events::empty), step(events::close)];
        let goes_on = steps.iter().any(|step| matches!(step, Ok(true)));
        let pause = if goes_on { BUSY_ROTATION } else { ROTATION };
        self.rotates_events_at = Instant::now() + pause;
    }

    /// In how long that is looked at.
    pub fn next_rotation_of_events(&self) -> Duration {
        self.rotates_events_at
            .saturating_duration_since(Instant::now())
    }

    /// In how long the log is looked at.
    pub fn next_rotation(&self) -> Duration {
        let pause = if self.log_has_grown {
            BUSY_ROTATION
        } else {
            ROTATION
        };
        pause.saturating_sub(self.looked_at_log.elapsed())
    }
}

/// Moves writers on to an empty log table where the current one is large or old, and empties those that are
/// dispatched and past retention, or too much. True when the log is still larger than it should be.
pub fn rotate(database: &Database, checkpoint: &Checkpoint) -> bool {
    let most = settings::log_max_size();
    let retention = settings::log_retention();
    let current = database.log_table.load(SeqCst);
    let Ok(mut sizes) = transaction(sizes) else {
        return true;
    };
    for table in transaction(|| oldest_first(&sizes)).unwrap_or_default() {
        if table == current {
            continue;
        }
        let kept = if sizes.iter().sum::<i64>() > most {
            Duration::ZERO
        } else {
            retention
        };
        // A failure is a lock that somebody holds: another time.
        if let Ok(true) = transaction(|| empty(table, checkpoint, kept))
            && let Some(size) = sizes.get_mut(table as usize)
        {
            *size = 0;
        }
    }
    let old = transaction(|| {
        oldest(current).map(|age| age.is_some_and(|age| age > retention / (LOG_TABLES - 1)))
    });
    let full = sizes
        .get(current as usize)
        .is_some_and(|size| *size > most / i64::from(LOG_TABLES));
    if (full || old.unwrap_or(false))
        && let Some(next) = (1..LOG_TABLES)
            .map(|step| (current + step) % LOG_TABLES)
            .find(|table| sizes.get(*table as usize) == Some(&0))
    {
        database.log_table.store(next, SeqCst);
    }
    sizes.iter().sum::<i64>() > most
}

/// Bytes of each log table's rows, large values included.
fn sizes() -> Result<Vec<i64>> {
    Ok(select_one::<Vec<i64>>(
        "SELECT pg_catalog.array_agg(pg_catalog.pg_relation_size(c.oid) + COALESCE(pg_catalog.pg_relation_size(NULLIF(c.reltoastrelid, 0)), 0) ORDER BY n)
           FROM pg_catalog.generate_series(0, 7) AS n JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass('recsync.log_' || n)",
        &[],
    )?
    .unwrap_or_default())
}

/// Log tables that are not empty, by their first transaction; first those whose rows were all rolled back.
fn oldest_first(sizes: &[i64]) -> Result<Vec<u32>> {
    let mut tables = Vec::new();
    for (table, _) in (0..LOG_TABLES).zip(sizes).filter(|(_, size)| **size > 0) {
        let sql = format!(
            "SELECT transaction_id::text::bigint FROM recsync.log_{table} ORDER BY transaction_id, sequence LIMIT 1"
        );
        tables.push((select_one::<i64>(&sql, &[])?, table));
    }
    tables.sort_unstable();
    Ok(tables.into_iter().map(|(_, table)| table).collect())
}

fn oldest(table: u32) -> Result<Option<Duration>> {
    let sql = format!(
        "SELECT extract(epoch FROM pg_catalog.clock_timestamp() - changed_at)::float8 FROM recsync.log_{table} ORDER BY transaction_id, sequence LIMIT 1"
    );
    Ok(select_one::<f64>(&sql, &[])?.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))))
}

/// Empties a log table where all of it is dispatched and older than `retention`; true when it did.
fn empty(table: u32, checkpoint: &Checkpoint, retention: Duration) -> Result<bool> {
    let is_done = || with_settings(BY_INDEX, || is_done(table, checkpoint, retention));
    if !is_done()? {
        return Ok(false);
    }
    Spi::run(&format!(
        "LOCK TABLE recsync.log_{table} IN ACCESS EXCLUSIVE MODE NOWAIT"
    ))?;
    // Under the lock once more, with a fresh snapshot: a writer may have come late.
    let done = is_done()?;
    if done {
        Spi::run(&format!("TRUNCATE recsync.log_{table}"))?;
    }
    Ok(done)
}

/// Whether a log table holds nothing that the checkpoint has not seen, and nothing younger than `retention`. The
/// table may be large: both are looked up by its index, and only one whose last row is old is read as a whole.
fn is_done(table: u32, checkpoint: &Checkpoint, retention: Duration) -> Result<bool> {
    let snapshot = checkpoint.snapshot.to_string();
    let undispatched = format!(
        "SELECT EXISTS (SELECT FROM recsync.log_{table} WHERE transaction_id >= pg_catalog.pg_snapshot_xmax($1::pg_snapshot))
             OR EXISTS (SELECT FROM recsync.log_{table} WHERE transaction_id = ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip($1::pg_snapshot))))"
    );
    if select_one::<bool>(&undispatched, &[snapshot.as_str().into()])? != Some(false) {
        return Ok(false);
    }
    if retention.is_zero() {
        return Ok(true);
    }
    let young = "changed_at > pg_catalog.clock_timestamp() - $1 * interval '1 second'";
    for look in [
        format!(
            "SELECT {young} FROM recsync.log_{table} ORDER BY transaction_id DESC, sequence DESC LIMIT 1"
        ),
        format!("SELECT EXISTS (SELECT FROM recsync.log_{table} WHERE {young})"),
    ] {
        if select_one::<bool>(&look, &[retention.as_secs_f64().into()])? == Some(true) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether there are prepared transactions in this database.
pub fn has_prepared() -> Result<bool> {
    let found = select_one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database())",
        &[],
    )?;
    Ok(found == Some(true))
}
