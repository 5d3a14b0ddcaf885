//! Which rows of a pipeline have work that is still to be done: a change that the worker has not read or not worked off,
//! a job, or a backfill that has not come to them.
//!
//! It is right as of one snapshot, the active one, under which the rows have to be looked at, too: a change and its line in the log
//! commit together, and the checkpoint passes the line only once the row's vector, job or dead letter has been committed.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::HashSet;
use std::ffi::CString;

use super::backfill::after_key;
use super::jobs;
use super::queue::Job;
use super::read::{BY_INDEX, Key, keys};
use super::render::{given, key_arguments, names};
use crate::catalog::names::own_relation;
use crate::catalog::pipeline::Pipeline;
use crate::catalog::rights::{As, with_settings};
use crate::error::Result;
use crate::shared::LOG_TABLES;
use crate::statement::{Statement, in_parts};

/// The lines of the log about a table that the checkpoint has not passed.
const UNREAD: &str = "\
SELECT l.op::text, l.record_keys::text, l.old_keys::text FROM recsync.log l
 WHERE l.transaction_id >= (SELECT pg_catalog.pg_snapshot_xmin(k.snapshot) FROM recsync.checkpoint k)
   AND NOT pg_catalog.pg_visible_in_snapshot(l.transaction_id, (SELECT k.snapshot FROM recsync.checkpoint k))
   AND l.source_id = $1 AND NOT l.audit_only";
/// Of these so many are read at a time.
const LINES: i64 = 256;

/// How far the backfill has come, in a row; none where there is nothing left of it.
const BACKFILL: &str =
    "SELECT after_key FROM recsync.backfill WHERE pipeline_id = $1 AND finished_at IS NULL";

/// The statements for one pipeline.
pub struct Pending {
    pipeline: i32,
    source: i32,
    owner: pg_sys::Oid,
    unread: Statement,
    /// The numbers of the given keys that come after one.
    after: Statement,
    jobs: Statement,
    dead_letters: Statement,
}

/// Rows for which something is still to be done.
pub enum Waits {
    All,
    These(HashSet<Key>),
}

impl Waits {
    pub fn has(&self, job: &Job) -> bool {
        match self {
            Waits::All => true,
            Waits::These(rows) => rows.contains(&job.row.key),
        }
    }
}

impl Pending {
    pub fn new(pipeline: &Pipeline) -> Pending {
        let keys = pipeline.keys();
        let columns: Vec<String> = keys
            .iter()
            .enumerate()
            .map(|(n, key)| format!("(k.k{})::{}", n + 1, key.type_name))
            .collect();
        let after = format!(
            "SELECT k.i FROM {} WITH ORDINALITY AS k ({}, i) WHERE {}",
            given(keys.len(), ""),
            names(keys.len()),
            after_key(keys, &columns, keys.len() + 1),
        );
        Pending {
            pipeline: pipeline.id,
            source: pipeline.source_id,
            owner: pipeline.owner(),
            unread: Statement::new(UNREAD).under_active_snapshot(),
            after: Statement::by_key(after),
            jobs: jobs::find_jobs(),
            dead_letters: jobs::find_dead_letters(),
        }
    }

    /// From here to the end of the (sub)transaction no part of the log is emptied. To be called before the snapshot is
    /// taken: what it sees as not worked off may be so a moment later, and gone from the log.
    pub fn hold_log() {
        for table in 0..LOG_TABLES {
            let name = CString::new(format!("log_{table}")).unwrap_or_default();
            if let Some(table) = own_relation(&name) {
                // SAFETY: a relation of recsync's, locked as a query locks what it reads.
                unsafe { pg_sys::LockRelationOid(table, pg_sys::AccessShareLock as _) };
            }
        }
    }

    /// Which of these rows wait; `whole`: a TRUNCATE that was not worked off, or an unfinished backfill, is something for
    /// all of them, as it is for vectors without a row.
    pub fn among(&self, rows: &[Job], whole: bool) -> Result<Waits> {
        let mut waits = HashSet::new();
        if let Some(after) = self.backfill()? {
            match after {
                Some(after) if !whole => waits.extend(self.after(rows, after)?),
                _ => return Ok(Waits::All),
            }
        }
        if self.log(rows, &mut waits)? && whole {
            return Ok(Waits::All);
        }
        waits.extend(self.found(&self.jobs, rows)?);
        Ok(Waits::These(waits))
    }

    /// Which of these rows were given up.
    pub fn dead_letters(&self, rows: &[Job]) -> Result<HashSet<Key>> {
        self.found(&self.dead_letters, rows)
    }

    fn found(&self, statement: &Statement, rows: &[Job]) -> Result<HashSet<Key>> {
        let _as = As::extension();
        jobs::found(statement, self.pipeline, rows.iter().map(|job| &job.row))
    }

    /// Of a backfill that has not ended: the last row that is done.
    fn backfill(&self) -> Result<Option<Option<Vec<String>>>> {
        let _as = As::extension();
        Spi::connect(|client| {
            let mut rows = client.select(BACKFILL, Some(1), &[self.pipeline.into()])?;
            match rows.next() {
                Some(row) => Ok(Some(row.get::<Vec<String>>(1)?)),
                None => Ok(None),
            }
        })
    }

    fn after(&self, rows: &[Job], after: Vec<String>) -> Result<Vec<Key>> {
        let mut arguments = key_arguments(rows.iter());
        arguments.extend(after.into_iter().map(Into::into));
        let _as = As::owner(self.owner);
        Spi::connect(|client| {
            let mut found = Vec::new();
            for row in self.after.select(client, &arguments)? {
                let number = row.get::<i64>(1)?.unwrap_or(1) as usize - 1;
                found.extend(rows.get(number).map(|job| Key::clone(&job.row.key)));
            }
            Ok(found)
        })
    }

    /// Adds those that the log has something about. Whether it has a TRUNCATE, too.
    fn log(&self, rows: &[Job], waits: &mut HashSet<Key>) -> Result<bool> {
        let wanted: HashSet<&Key> = rows.iter().map(|job| &job.row.key).collect();
        let mut truncated = false;
        let _as = As::extension();
        with_settings(BY_INDEX, || {
            in_parts(
                LINES,
                |client| {
                    let cursor = self.unread.cursor(client, &[self.source.into()])?;
                    Ok(cursor.detach_into_name())
                },
                |line| {
                    truncated |= line.get::<String>(1)?.as_deref() == Some("T");
                    for column in [2, 3] {
                        let changed = keys(line.get::<&str>(column)?)?;
                        waits.extend(changed.into_iter().filter(|key| wanted.contains(key)));
                    }
                    Ok(())
                },
            )
        })?;
        Ok(truncated)
    }
}
