//! Reads the change log between two snapshots: what is visible now and was not at the checkpoint.
//!
//! It never trusts the order in which transactions commit: the range above the checkpoint's xmax and the
//! transactions that were in progress then are read as two queries, both with visibility in the new snapshot
//! (the method of PgQ).

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::ffi::{CStr, CString};

use super::snapshot::Snapshot;
use crate::catalog::rights::with_settings;
use crate::error::{Error, Result};
use crate::statement::Statement;

/// Rows of the log that one round reads at the most; the rest follows in the next rounds.
const PAGE: i64 = 5_000;

const RANGE: &str = "\
SELECT l.transaction_id::text::bigint, l.sequence, l.source_id, l.op::text, l.record_key::text, l.old_record::text
  FROM recsync.log l
 WHERE (l.transaction_id, l.sequence) > ($1::text::xid8, $2) AND l.transaction_id < $3::text::xid8
   AND pg_catalog.pg_visible_in_snapshot(l.transaction_id, $4::pg_snapshot)
 ORDER BY l.transaction_id, l.sequence LIMIT $5";

const STRAGGLERS: &str = "\
SELECT l.transaction_id::text::bigint, l.sequence, l.source_id, l.op::text, l.record_key::text, l.old_record::text
  FROM recsync.log l
 WHERE l.transaction_id = ANY ($1::text::xid8[]) AND (l.transaction_id, l.sequence) > ($2::text::xid8, $3)
   AND pg_catalog.pg_visible_in_snapshot(l.transaction_id, $4::pg_snapshot)
 ORDER BY l.transaction_id, l.sequence LIMIT $5";

/// The log tables have no statistics, and a plan is made while they are empty: without these the planner would
/// read and sort them as a whole.
const BY_INDEX: &[(&CStr, &CStr)] = &[
    (c"enable_seqscan", c"off"),
    (c"enable_bitmapscan", c"off"),
    (c"enable_sort", c"off"),
];

/// One row event as the worker reads it.
pub struct Change {
    pub source_id: i32,
    pub op: char,
    pub key: KeyJson,
    /// The key before, where an update changed it.
    pub old_key: KeyJson,
}

/// A key as the log holds it: `{"column": value}`.
pub type KeyJson = Option<HashMap<String, String>>;

/// Where reading stands: everything seen by `from` has been read, and part of what `to` sees.
pub struct Reader {
    from: Snapshot,
    /// The snapshot that is being read up to, and the last row read of the two queries.
    paging: Option<(Snapshot, Phase, (u64, i64))>,
    range: Statement,
    stragglers: Statement,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Stragglers,
    Range,
}

/// One round's reading.
pub struct Page {
    pub changes: Vec<Change>,
    /// Set when everything up to this snapshot has been read.
    pub complete: Option<Snapshot>,
}

impl Reader {
    pub fn new(from: Snapshot) -> Reader {
        Reader {
            from,
            paging: None,
            range: Statement::new(RANGE),
            stragglers: Statement::new(STRAGGLERS),
        }
    }

    /// The next changes. In a READ COMMITTED transaction: the snapshot is taken first, the rows are read after it.
    pub fn read(&mut self) -> Result<Page> {
        with_settings(BY_INDEX, || self.read_by_index())
    }

    fn read_by_index(&mut self) -> Result<Page> {
        Spi::connect(|client| {
            if self.paging.is_none() {
                let now = current_snapshot()?;
                if now == self.from {
                    return Ok(Page {
                        changes: Vec::new(),
                        complete: None,
                    });
                }
                self.paging = Some((now, Phase::Stragglers, (0, 0)));
            }
            let Some((to, mut phase, mut last)) = self.paging.take() else {
                return Err(Error::Internal("a page without a snapshot".into()));
            };
            let mut changes = Vec::new();
            loop {
                let room = PAGE - changes.len() as i64;
                let snapshot = to.to_string();
                let rows = match phase {
                    Phase::Stragglers if self.from.xip.is_empty() => None,
                    Phase::Stragglers => {
                        let xids: Vec<String> = self.from.xip.iter().map(u64::to_string).collect();
                        Some(self.stragglers.select(
                            client,
                            &[
                                format!("{{{}}}", xids.join(",")).into(),
                                last.0.to_string().into(),
                                last.1.into(),
                                snapshot.into(),
                                room.into(),
                            ],
                        )?)
                    }
                    Phase::Range => Some(self.range.select(
                        client,
                        &[
                            last.0.to_string().into(),
                            last.1.into(),
                            to.xmax.to_string().into(),
                            snapshot.into(),
                            room.into(),
                        ],
                    )?),
                };
                let mut count = 0;
                for row in rows.into_iter().flatten() {
                    count += 1;
                    last = (
                        row.get::<i64>(1)?.unwrap_or(0) as u64,
                        row.get::<i64>(2)?.unwrap_or(0),
                    );
                    changes.push(Change {
                        source_id: row.get::<i32>(3)?.unwrap_or(0),
                        op: row
                            .get::<String>(4)?
                            .and_then(|op| op.chars().next())
                            .unwrap_or(' '),
                        key: key(row.get::<String>(5)?)?,
                        old_key: key(row.get::<String>(6)?)?,
                    });
                }
                if count == room {
                    self.paging = Some((to, phase, last));
                    return Ok(Page {
                        changes,
                        complete: None,
                    });
                }
                match phase {
                    Phase::Stragglers => {
                        phase = Phase::Range;
                        last = (self.from.xmax.saturating_sub(1), i64::MAX);
                    }
                    Phase::Range => {
                        self.from = to.clone();
                        return Ok(Page {
                            changes,
                            complete: Some(to),
                        });
                    }
                }
            }
        })
    }

    /// Whether there is more to read at once.
    pub fn has_more(&self) -> bool {
        self.paging.is_some()
    }
}

/// What the active snapshot sees.
pub fn current_snapshot() -> Result<Snapshot> {
    // SAFETY: two functions of the server; the first takes nothing, the second what the first gives.
    let text = unsafe {
        pgrx::direct_function_call_as_datum(pg_sys::pg_current_snapshot, &[]).and_then(|snapshot| {
            pgrx::direct_function_call::<CString>(pg_sys::pg_snapshot_out, &[Some(snapshot)])
        })
    };
    text.unwrap_or_default()
        .to_string_lossy()
        .parse()
        .map_err(Error::Internal)
}

/// The values as the text of their types: JSON's own numbers keep every digit.
fn key(json: Option<String>) -> Result<KeyJson> {
    let Some(json) = json else { return Ok(None) };
    let bad =
        |error: serde_json::Error| Error::Internal(format!("a key of the change log: {error}"));
    let raw: HashMap<String, &RawValue> = serde_json::from_str(&json).map_err(bad)?;
    raw.into_iter()
        .map(|(name, value)| {
            let text = value.get();
            let text = if text.starts_with('"') {
                serde_json::from_str::<String>(text).map_err(bad)?
            } else {
                text.to_owned()
            };
            Ok((name, text))
        })
        .collect::<Result<_>>()
        .map(Some)
}
