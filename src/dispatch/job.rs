//! A job: a row whose text has to be looked at. It holds no text.

use std::sync::Arc;

/// A row of a pipeline: its key's values as text, in the order of the key's columns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowKey {
    pub pipeline: i32,
    pub key: Arc<[String]>,
}

/// What a job carries while it waits or flies.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub row: RowKey,
    /// Attempts that were charged.
    pub attempt: u32,
    /// Whether a row of `recsync.job` stands for it and has to go when it ends.
    pub stored: bool,
    /// When it last failed, as microseconds since the epoch.
    pub last_attempt_us: Option<i64>,
    /// Changes of the row that it stands for; those of a backfill are one.
    pub changes: u32,
}

impl Job {
    /// Not tried yet, not written down.
    pub fn new(row: RowKey) -> Job {
        Job {
            row,
            attempt: 0,
            stored: false,
            last_attempt_us: None,
            changes: 1,
        }
    }

    /// Changes that cost nothing of their own, because they came together with others.
    pub fn coalesced(&self) -> u64 {
        u64::from(self.changes.saturating_sub(1))
    }
}
