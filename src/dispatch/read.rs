//! Reads the change log between two snapshots: what is visible now and was not at the checkpoint.
//!
//! It never trusts the order in which transactions commit: the range above the checkpoint's xmax and the
//! transactions that were in progress then are read as two queries, both with visibility in the new snapshot
//! (the method of PgQ).

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::ffi::{CStr, CString};
use std::fmt;
use std::sync::Arc;

use super::snapshot::Snapshot;
use crate::catalog::rights::with_settings;
use crate::error::{Error, Result};
use crate::statement::Statement;

/// Changes that one round reads, or somewhat more; the rest follows in the next rounds.
const PAGE: usize = 5_000;
/// Rows of the log that one query reads at the most: each may hold a thousand changes.
const ROWS: f64 = 256.0;

const RANGE: &str = include_str!("range.sql");
const STRAGGLERS: &str = include_str!("stragglers.sql");

/// The log tables have no statistics, and a plan is made while they are empty: without these the planner would
/// read and sort them as a whole.
pub const BY_INDEX: &[(&CStr, &CStr)] = &[
    (c"enable_seqscan", c"off"),
    (c"enable_bitmapscan", c"off"),
    (c"enable_sort", c"off"),
];

/// Row events that have source and op in common.
pub struct Block {
    pub transaction: u64,
    pub source_id: i32,
    pub op: char,
    /// As PostgreSQL's timestamps: when the statement began that made them.
    pub changed_at: i64,
    /// Empty for a TRUNCATE.
    pub keys: Vec<Key>,
    /// The keys before, where updates changed them.
    pub old_keys: Vec<Key>,
}

/// A key's values as text, in the order of the key's columns. Their names may have changed since they were logged.
pub type Key = Arc<[String]>;

/// Where reading stands: everything seen by `from` has been read, and part of what `to` sees.
pub struct Reader {
    from: Snapshot,
    /// The snapshot that is being read up to, and the last row read of the two queries.
    paging: Option<(Snapshot, Phase, (u64, i64))>,
    /// Changes in a row of the log, as last seen.
    density: f64,
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
    pub blocks: Vec<Block>,
    /// Set when everything up to this snapshot has been read.
    pub complete: Option<Snapshot>,
}

impl Reader {
    pub fn new(from: Snapshot) -> Reader {
        Reader {
            from,
            paging: None,
            density: 16.0,
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
                        blocks: Vec::new(),
                        complete: None,
                    });
                }
                self.paging = Some((now, Phase::Stragglers, (0, 0)));
            }
            let Some((to, mut phase, mut last)) = self.paging.take() else {
                return Err(Error::Internal("a page without a snapshot".into()));
            };
            let mut blocks = Vec::new();
            let mut room = PAGE as f64;
            loop {
                let most = (room / self.density).clamp(1.0, ROWS).ceil();
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
                                (most as i64).into(),
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
                            (most as i64).into(),
                        ],
                    )?),
                };
                let (mut count, mut changes) = (0.0, 0.0);
                for row in rows.into_iter().flatten() {
                    count += 1.0;
                    changes += f64::from(row.get::<i32>(3)?.unwrap_or(1));
                    last = (
                        row.get::<i64>(1)?.unwrap_or(0) as u64,
                        row.get::<i64>(2)?.unwrap_or(0),
                    );
                    let op = row.get::<String>(5)?;
                    blocks.push(Block {
                        transaction: last.0,
                        source_id: row.get::<i32>(4)?.unwrap_or(0),
                        changed_at: row
                            .get::<TimestampWithTimeZone>(8)?
                            .and_then(IntoDatum::into_datum)
                            .map_or(0, |changed_at| changed_at.value() as i64),
                        op: op.and_then(|op| op.chars().next()).unwrap_or(' '),
                        keys: keys(row.get::<&str>(6)?)?,
                        old_keys: keys(row.get::<&str>(7)?)?,
                    });
                }
                if count > 0.0 {
                    self.density = changes / count;
                }
                room -= changes;
                if count == most {
                    if room > 0.0 {
                        continue;
                    }
                    self.paging = Some((to, phase, last));
                    return Ok(Page {
                        blocks,
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
                            blocks,
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

/// Runs `body` under a snapshot of now, where the transaction is READ COMMITTED.
pub fn in_snapshot_of_now<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: a snapshot of now, popped below; an ERROR's abort pops it, too.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    let done = body();
    // SAFETY: pops the snapshot pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    done
}

/// Runs `body` in a snapshot of now, also where the transaction has one of its own: what is declared is what the catalog,
/// which has none, says. Not where a statement runs in several processes, which share one.
pub fn in_latest_snapshot<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: a plain question to the server.
    if unsafe { pg_sys::IsInParallelMode() } {
        return body();
    }
    // SAFETY: as above.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
    let done = body();
    // SAFETY: as above.
    unsafe { pg_sys::PopActiveSnapshot() };
    done
}

/// The keys of a JSON array of objects: their values as the text of their types; JSON's own numbers keep every digit.
pub fn keys(json: Option<&str>) -> Result<Vec<Key>> {
    let Some(json) = json else {
        return Ok(Vec::new());
    };
    let rows: Vec<Row> = serde_json::from_str(json)
        .map_err(|error| Error::Internal(format!("a key of the change log: {error}")))?;
    Ok(rows.into_iter().map(|row| Key::from(row.0)).collect())
}

/// The key of one such object.
pub fn key(json: &str) -> Result<Key> {
    let row: Row = serde_json::from_str(json)
        .map_err(|error| Error::Internal(format!("a key as JSON: {error}")))?;
    Ok(Key::from(row.0))
}

/// The values of a JSON object, in their order.
struct Row(Vec<String>);

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Row, D::Error> {
        struct Values;
        impl<'de> Visitor<'de> for Values {
            type Value = Row;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Row, A::Error> {
                let mut values = Vec::new();
                while let Some((_, value)) = map.next_entry::<IgnoredAny, &RawValue>()? {
                    let text = value.get();
                    values.push(if text.starts_with('"') {
                        serde_json::from_str(text).map_err(A::Error::custom)?
                    } else {
                        text.to_owned()
                    });
                }
                Ok(Row(values))
            }
        }
        deserializer.deserialize_map(Values)
    }
}
