//! What this process writes itself into the column that holds a pipeline's vectors: no change of the row.
//!
//! It never hides a change of another row or of another table, though a user's trigger may make it meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use crate::dispatch::read::{Key, key};

thread_local! {
    /// The source whose rows are being written; 0: none, as in every session of a user.
    static SOURCE: Cell<i32> = const { Cell::new(0) };
    static ROWS: RefCell<HashSet<Key>> = RefCell::new(HashSet::new());
}

/// Updates of these rows are this process's own while this lives.
pub struct Updates(());

impl Updates {
    pub fn begin(source: i32, rows: impl Iterator<Item = Key>) -> Updates {
        ROWS.with_borrow_mut(|own| own.extend(rows));
        SOURCE.set(source);
        Updates(())
    }
}

impl Drop for Updates {
    fn drop(&mut self) {
        SOURCE.set(0);
        ROWS.with_borrow_mut(HashSet::clear);
    }
}

/// Whether rows of the source are being written by this process.
pub fn writes(source: i32) -> bool {
    SOURCE.get() == source
}

/// Whether the row, by its key as JSON, is one of them.
pub fn has(record_key: &[u8]) -> bool {
    let key = std::str::from_utf8(record_key)
        .ok()
        .and_then(|json| key(json).ok());
    key.is_some_and(|key| ROWS.with_borrow(|own| own.contains(&key)))
}
