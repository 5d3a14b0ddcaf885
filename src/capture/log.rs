//! Appends one row to the change log: a heap insert and one index entry, without SPI.
//!
//! It never waits for a lock that another session holds: a log table that is being rotated is passed over.

use pgrx::pg_sys;
use std::ffi::{CStr, c_int};
use std::sync::atomic::Ordering::SeqCst;

use super::sources::relation_oid;
use crate::shared::{self, LOG_TABLES};

/// One row event, as it is written. Keys are jsonb datums.
pub struct Change {
    pub op: Op,
    pub source: i32,
    pub relation: pg_sys::Oid,
    pub record_key: Option<pg_sys::Datum>,
    /// In capture mode `keys`: the key before, where an update changed it.
    pub old_record: Option<pg_sys::Datum>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    Insert = b'I',
    Update = b'U',
    Delete = b'D',
    Truncate = b'T',
}

const NAMES: [&CStr; LOG_TABLES as usize] = [
    c"log_0", c"log_1", c"log_2", c"log_3", c"log_4", c"log_5", c"log_6", c"log_7",
];
const COLUMNS: usize = 11;

unsafe extern "C-unwind" {
    // Not in pgrx's bindings. Draws from a sequence without a check of rights: the writer needs none on recsync.
    fn nextval_internal(sequence: pg_sys::Oid, check_permissions: bool) -> i64;
}

/// Appends `change` to the current log table.
///
/// # Safety
/// Inside a trigger: a transaction is open, datums are valid in the current memory context.
pub unsafe fn append(change: Change) {
    let Some(sequence) = relation_oid(c"change_log_sequence") else {
        return;
    };
    let Some(table) = lock_current() else { return };
    // SAFETY: the table is locked, opened and closed here; its descriptor decides how many values are built,
    // and the values have the types of the log tables' columns in the order of the install script.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::NoLock as _);
        let width = (*(*relation).rd_att).natts as usize;
        let mut values = [pg_sys::Datum::from(0); 64];
        let mut nulls = [true; 64];
        let mut set = |index: usize, value: Option<pg_sys::Datum>| {
            if let Some(value) = value {
                values[index] = value;
                nulls[index] = false;
            }
        };
        set(
            0,
            Some(pg_sys::Datum::from(pg_sys::GetTopFullTransactionId().value)),
        );
        let number = pg_sys::ffi::pg_guard_ffi_boundary(|| nextval_internal(sequence, false));
        set(1, Some(pg_sys::Datum::from(number)));
        set(2, Some(pg_sys::Datum::from(change.source)));
        set(3, Some(pg_sys::Datum::from(change.relation.to_u32())));
        set(4, Some(pg_sys::Datum::from(change.op as u8 as i8)));
        set(5, change.record_key);
        set(6, change.old_record);
        // 7 is the whole record, for the wider capture modes.
        set(
            8,
            Some(pg_sys::Datum::from(
                pg_sys::GetCurrentStatementStartTimestamp(),
            )),
        );
        let role = pg_sys::GetUserNameFromId(pg_sys::GetSessionUserId(), true);
        set(9, (!role.is_null()).then(|| text(role)));
        let application = pg_sys::application_name;
        set(
            10,
            (!application.is_null() && *application != 0).then(|| text(application)),
        );
        debug_assert!(width >= COLUMNS);
        let tuple =
            pg_sys::heap_form_tuple((*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::CatalogTupleInsert(relation, tuple);
        pg_sys::table_close(relation, pg_sys::NoLock as _);
    }
}

unsafe fn text(value: *const std::ffi::c_char) -> pg_sys::Datum {
    // SAFETY: a NUL-terminated string; the copy lives in the current memory context.
    pg_sys::Datum::from(unsafe { pg_sys::cstring_to_text(value) })
}

/// The current log table, else the next one that is free, with the lock that a writer holds until its commit.
fn lock_current() -> Option<pg_sys::Oid> {
    let current = shared::shared()
        .and_then(shared::Shared::own_database)
        .map_or(0, |own| own.log_table.load(SeqCst));
    let mut last = None;
    for step in 0..LOG_TABLES {
        let table = relation_oid(NAMES[((current + step) % LOG_TABLES) as usize])?;
        // SAFETY: takes the lock only if nobody holds a conflicting one.
        if unsafe { pg_sys::ConditionalLockRelationOid(table, pg_sys::RowExclusiveLock as c_int) } {
            return Some(table);
        }
        last.get_or_insert(table);
    }
    // Somebody has locked every log table by hand.
    let table = last?;
    // SAFETY: an ordinary lock request.
    unsafe { pg_sys::LockRelationOid(table, pg_sys::RowExclusiveLock as c_int) };
    Some(table)
}
