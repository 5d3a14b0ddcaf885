//! Appends one block of changes to the change log: a heap insert and one index entry, without SPI.
//!
//! It never waits for a lock that another session holds: a log table that is being rotated is passed over.

use pgrx::pg_sys;
use std::ffi::c_int;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use super::buffer::{Block, CHANGES, Change};
use super::sources::{LogTable, Own};
use super::wake;
use crate::shared::LOG_TABLES;

unsafe extern "C-unwind" {
    // Not in pgrx's bindings. Draws from a sequence without a check of rights: the writer needs none on recsync.
    fn nextval_internal(sequence: pg_sys::Oid, check_permissions: bool) -> i64;
}

/// Numbers that a block has.
const NUMBERS: i64 = CHANGES as i64;
/// Numbers that one value of the sequence stands for: 2²⁰, so that the sequence, whose page every session would
/// wait for, is asked once for a thousand blocks.
const RANGE_BITS: u32 = 20;

/// Gives the block its number: no change may be added from here on. Numbers are drawn from one counter that all
/// sessions share, so that the order in which they are drawn is theirs.
pub fn draw(block: &mut Block, sequence: pg_sys::Oid) -> i64 {
    *block
        .sequence
        .get_or_insert_with(|| match wake::own_database() {
            Some(database) => draw_from(&database.log_sequence, || next_range(sequence)),
            None => next_range(sequence),
        })
}

fn draw_from(counter: &AtomicI64, next_range: impl Fn() -> i64) -> i64 {
    let mut next = counter.load(SeqCst);
    loop {
        let fits = next != 0 && (next + NUMBERS - 1) >> RANGE_BITS == next >> RANGE_BITS;
        let first = if fits { next } else { next_range() };
        match counter.compare_exchange(next, first + NUMBERS, SeqCst, SeqCst) {
            Ok(_) => return first,
            Err(other) => next = other, // a range that somebody else has begun meanwhile counts, and not ours
        }
    }
}

/// The first number of a range that nobody has, after a crash, too.
fn next_range(sequence: pg_sys::Oid) -> i64 {
    // SAFETY: the sequence exists, a transaction is open; the boundary turns an ERROR into an unwinding. A
    // transaction may have become read-only after its changes: they are to be logged all the same.
    unsafe {
        let read_only = pg_sys::XactReadOnly;
        pg_sys::XactReadOnly = false;
        let number = pg_sys::ffi::pg_guard_ffi_boundary(|| nextval_internal(sequence, false));
        pg_sys::XactReadOnly = read_only;
        number << RANGE_BITS
    }
}

/// Appends `block` to the current log table.
pub fn write(mut block: Block, own: &Own) {
    let sequence = draw(&mut block, own.sequence);
    let log = lock_current(own);
    // SAFETY: the table is locked, opened and closed here; its descriptor decides how many values are built,
    // and the values have the types of the log tables' columns in the order of the install script.
    unsafe {
        let relation = pg_sys::table_open(log.table, pg_sys::NoLock as _);
        let mut values = [pg_sys::Datum::from(0); 64];
        let mut nulls = [true; 64];
        let mut set = |index: usize, value: Option<pg_sys::Datum>| {
            if let Some(value) = value {
                values[index] = value;
                nulls[index] = false;
            }
        };
        let transaction = pg_sys::GetTopFullTransactionId().value;
        set(0, Some(pg_sys::Datum::from(transaction)));
        set(1, Some(pg_sys::Datum::from(sequence)));
        set(2, Some(pg_sys::Datum::from(block.changes as i32)));
        set(3, Some(pg_sys::Datum::from(block.kind.source)));
        set(4, Some(pg_sys::Datum::from(block.kind.relation.to_u32())));
        set(5, Some(pg_sys::Datum::from(block.kind.op as u8 as i8)));
        set(6, Some(pg_sys::Datum::from(block.kind.audit_only)));
        let Change {
            record_key,
            old_key,
            old_record,
            record,
        } = &mut block.arrays;
        for (index, array) in [record_key, old_key, old_record, record]
            .into_iter()
            .enumerate()
        {
            if !array.is_empty() {
                array.push(b']');
                set(7 + index, Some(text(array)));
            }
        }
        set(11, Some(pg_sys::Datum::from(block.changed_at)));
        let role = pg_sys::GetUserNameFromId(block.changed_by, true);
        let role = if role.is_null() {
            b"".as_slice() // dropped by this very transaction
        } else {
            std::ffi::CStr::from_ptr(role).to_bytes()
        };
        set(12, Some(text(role)));
        let application = block.application_name.as_deref();
        set(13, application.map(|name| text(name.to_bytes())));
        let tuple =
            pg_sys::heap_form_tuple((*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::simple_heap_insert(relation, tuple);
        index(relation, log.index, tuple, &mut values, &mut nulls);
        pg_sys::table_close(relation, pg_sys::NoLock as _);
        pg_sys::pfree(tuple.cast());
    }
    block.recycle();
}

/// The entry in the table's only index, whose columns are the first two: what CatalogTupleInsert would do at
/// twice the cost. Nothing looks for a duplicate: a number of the sequence is drawn once.
unsafe fn index(
    relation: pg_sys::Relation,
    index: pg_sys::Oid,
    tuple: pg_sys::HeapTuple,
    values: &mut [pg_sys::Datum],
    nulls: &mut [bool],
) {
    // SAFETY: the index is locked, opened and closed here; a B-tree does not look into the IndexInfo.
    unsafe {
        let index = pg_sys::index_open(index, pg_sys::RowExclusiveLock as _);
        let mut info = pg_sys::IndexInfo {
            type_: pg_sys::NodeTag::T_IndexInfo,
            ii_Unique: true,
            ..Default::default()
        };
        pg_sys::index_insert(
            index,
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
            &mut (*tuple).t_self,
            relation,
            pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO,
            false,
            &mut info,
        );
        pg_sys::index_close(index, pg_sys::NoLock as _);
    }
}

unsafe fn text(value: &[u8]) -> pg_sys::Datum {
    // SAFETY: the bytes are copied into the current memory context.
    pg_sys::Datum::from(unsafe {
        pg_sys::cstring_to_text_with_len(value.as_ptr().cast(), value.len() as c_int)
    })
}

/// The current log table, else the next one that is free, with the lock that a writer holds until its commit.
fn lock_current(own: &Own) -> LogTable {
    let current = wake::own_database().map_or(0, |database| database.log_table.load(SeqCst));
    let log = |step: u32| own.log[((current + step) % LOG_TABLES) as usize];
    let lock = pg_sys::RowExclusiveLock as c_int;
    for step in 0..LOG_TABLES {
        // SAFETY: takes the lock only if nobody holds a conflicting one.
        if unsafe { pg_sys::ConditionalLockRelationOid(log(step).table, lock) } {
            return log(step);
        }
    }
    // Somebody has locked every log table by hand.
    // SAFETY: an ordinary lock request.
    unsafe { pg_sys::LockRelationOid(log(0).table, lock) };
    log(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn numbers_rise_in_the_order_in_which_they_are_drawn_and_blocks_do_not_overlap() {
        let counter = AtomicI64::new(0);
        let ranges = AtomicI64::new(6);
        let next_range = || (ranges.fetch_add(1, SeqCst) + 1) << RANGE_BITS;
        let mut last = 0;
        for _ in 0..5_000 {
            let number = draw_from(&counter, next_range);
            assert!(
                number >= last + NUMBERS || last == 0,
                "{number} after {last}"
            );
            assert!(number >> RANGE_BITS == (number + NUMBERS - 1) >> RANGE_BITS);
            last = number;
        }
        assert_eq!(
            ranges.load(SeqCst),
            6 + 5,
            "a range serves a thousand blocks"
        );
        // After a restart the counter is new, and the sequence is not.
        let counter = AtomicI64::new(0);
        assert!(draw_from(&counter, next_range) > last);
    }

    #[test]
    fn numbers_drawn_by_many_at_once_are_all_different() {
        let (counter, ranges, drawn) =
            (AtomicI64::new(0), AtomicI64::new(0), Mutex::new(Vec::new()));
        let next_range = || (ranges.fetch_add(1, SeqCst) + 1) << RANGE_BITS;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut own = Vec::new();
                    for _ in 0..4_000 {
                        own.push(draw_from(&counter, next_range));
                    }
                    assert!(own.is_sorted());
                    drawn.lock().unwrap().extend(own);
                });
            }
        });
        let mut drawn = drawn.into_inner().unwrap();
        drawn.sort_unstable();
        assert!(drawn.windows(2).all(|pair| pair[1] - pair[0] >= NUMBERS));
    }
}
