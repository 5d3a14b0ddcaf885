//! A transaction's changes, gathered in blocks and written before it commits.
//!
//! A block holds changes that have all in common but the rows, up to a page or a thousand of them; what does not
//! fit begins the next one. Each subtransaction has a block of its own, written under its own id before it ends,
//! so that one that is rolled back leaves nothing. It never raises in an abort, and in a commit only as long as
//! the transaction can still be rolled back.
//!
//! A block gets its number when it is full or the transaction goes on elsewhere: after all its rows have been
//! locked, and before anything that this transaction does to them later. So for one row the order of the
//! numbers is the order of its changes, within a transaction and across them.

use pgrx::pg_sys;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_void};

use super::log;
use super::sources;

/// A block this large is written: what fits on a page.
const BYTES: usize = 7_800;
/// The most changes of a block, and the numbers that it has.
pub const CHANGES: u32 = 1_000;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    Insert = b'I',
    Update = b'U',
    Delete = b'D',
    Truncate = b'T',
    /// Rows were written where no trigger has seen them.
    Unseen = b'R',
}

/// What the changes of a block have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub source: i32,
    pub relation: pg_sys::Oid,
    pub op: Op,
    /// No pipeline's text has changed.
    pub audit_only: bool,
}

/// One row event, as JSON; empty: not there.
#[derive(Default)]
pub struct Change {
    pub record_key: Vec<u8>,
    /// The key before, where an update changed it.
    pub old_key: Vec<u8>,
    pub old_record: Vec<u8>,
    pub record: Vec<u8>,
}

impl Change {
    pub fn clear(&mut self) {
        for part in self.parts_mut() {
            part.clear();
        }
    }

    /// What it adds to the log.
    pub fn bytes(&self) -> usize {
        self.parts().map(Vec::len).iter().sum()
    }

    fn parts(&self) -> [&Vec<u8>; 4] {
        [
            &self.record_key,
            &self.old_key,
            &self.old_record,
            &self.record,
        ]
    }

    fn parts_mut(&mut self) -> [&mut Vec<u8>; 4] {
        [
            &mut self.record_key,
            &mut self.old_key,
            &mut self.old_record,
            &mut self.record,
        ]
    }
}

/// Changes that become one row of the log.
pub struct Block {
    pub kind: Kind,
    pub changes: u32,
    /// JSON arrays without their closing bracket.
    pub arrays: Change,
    pub changed_at: pg_sys::TimestampTz,
    pub changed_by: pg_sys::Oid,
    pub application_name: Option<CString>,
    /// Drawn when no change can come any more.
    pub sequence: Option<i64>,
}

struct Level {
    depth: i32,
    block: Block,
}

thread_local! {
    /// The open transactions' blocks, outermost first.
    static LEVELS: RefCell<Vec<Level>> = const { RefCell::new(Vec::new()) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    /// The arrays of the last block that was written, for the next one.
    static SPARE: RefCell<Change> = RefCell::new(Change::default());
}

/// Adds a change to the current (sub)transaction's block.
pub fn add(kind: Kind, change: &Change) {
    let Some(own) = sources::own() else { return };
    register();
    // SAFETY: inside a transaction.
    let depth = unsafe { pg_sys::GetCurrentTransactionNestLevel() };
    LEVELS.with_borrow_mut(|levels| {
        if levels.last().is_some_and(|level| level.depth < depth) {
            // From here on this transaction may change the outer blocks' rows again.
            for level in levels.iter_mut() {
                log::draw(&mut level.block, own.sequence);
            }
        } else if let Some(level) = levels.pop_if(|level| !level.block.takes(kind, change)) {
            log::write(level.block, &own);
        }
        match levels.last_mut() {
            Some(level) if level.depth == depth => level.block.add(change),
            _ => {
                let mut block = Block::new(kind);
                block.add(change);
                levels.push(Level { depth, block });
            }
        }
    });
}

/// Writes the current (sub)transaction's block.
pub fn flush() {
    // SAFETY: inside a transaction.
    let depth = unsafe { pg_sys::GetCurrentTransactionNestLevel() };
    let level = LEVELS.with_borrow_mut(|levels| levels.pop_if(|level| level.depth >= depth));
    if let Some(level) = level
        && let Some(own) = sources::own()
    {
        log::write(level.block, &own);
    }
}

impl Block {
    fn new(kind: Kind) -> Block {
        // SAFETY: plain questions to the server; the name is copied.
        unsafe {
            let name = pg_sys::application_name;
            Block {
                kind,
                changes: 0,
                arrays: SPARE.take(),
                changed_at: pg_sys::GetCurrentStatementStartTimestamp(),
                changed_by: pg_sys::GetSessionUserId(),
                application_name: (!name.is_null() && *name != 0)
                    .then(|| CStr::from_ptr(name).to_owned()),
                sequence: None,
            }
        }
    }

    fn takes(&self, kind: Kind, change: &Change) -> bool {
        let parts = || self.arrays.parts().into_iter().zip(change.parts());
        self.sequence.is_none()
            && self.kind == kind
            && !matches!(kind.op, Op::Truncate | Op::Unseen)
            && self.changes < CHANGES
            && parts().all(|(array, part)| array.is_empty() == part.is_empty())
            && parts().map(|(array, part)| array.len() + part.len() + 1).sum::<usize>() < BYTES
            // SAFETY: plain questions to the server.
            && unsafe {
                let name = pg_sys::application_name;
                self.changed_at == pg_sys::GetCurrentStatementStartTimestamp()
                    && self.changed_by == pg_sys::GetSessionUserId()
                    && match &self.application_name {
                        Some(known) => !name.is_null() && CStr::from_ptr(name) == known.as_c_str(),
                        None => name.is_null() || *name == 0,
                    }
            }
    }

    fn add(&mut self, change: &Change) {
        for (array, part) in self.arrays.parts_mut().into_iter().zip(change.parts()) {
            if !part.is_empty() {
                array.push(if self.changes == 0 { b'[' } else { b',' });
                array.extend_from_slice(part);
            }
        }
        self.changes += 1;
    }

    /// The block has been written: its memory serves the next one.
    pub fn recycle(mut self) {
        if self
            .arrays
            .parts()
            .iter()
            .all(|array| array.capacity() <= 4 * BYTES)
        {
            self.arrays.clear();
            SPARE.replace(self.arrays);
        }
    }
}

fn register() {
    if !REGISTERED.replace(true) {
        // SAFETY: once a backend; the callbacks live as long as the library stays loaded, for ever.
        unsafe {
            pg_sys::RegisterXactCallback(Some(at_end_of_transaction), std::ptr::null_mut());
            pg_sys::RegisterSubXactCallback(Some(at_end_of_subtransaction), std::ptr::null_mut());
        }
    }
}

// No guard here: an abort and a commit that is written must not fail, and what is done there cannot.
unsafe extern "C-unwind" fn at_end_of_transaction(event: pg_sys::XactEvent::Type, _: *mut c_void) {
    use pg_sys::XactEvent as E;
    match event {
        // SAFETY: the transaction can still be rolled back.
        E::XACT_EVENT_PRE_COMMIT | E::XACT_EVENT_PRE_PREPARE => unsafe { guarded_flush() },
        E::XACT_EVENT_ABORT => forget_from(0),
        _ => {}
    }
}

unsafe extern "C-unwind" fn at_end_of_subtransaction(
    event: pg_sys::SubXactEvent::Type,
    _: pg_sys::SubTransactionId,
    _: pg_sys::SubTransactionId,
    _: *mut c_void,
) {
    use pg_sys::SubXactEvent as E;
    match event {
        // SAFETY: the subtransaction can still be rolled back.
        E::SUBXACT_EVENT_PRE_COMMIT_SUB => unsafe { guarded_flush() },
        E::SUBXACT_EVENT_ABORT_SUB => {
            // SAFETY: inside a transaction.
            let depth = unsafe { pg_sys::GetCurrentTransactionNestLevel() };
            forget_from(depth);
        }
        _ => {}
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn guarded_flush() {
    flush();
}

/// Blocks of (sub)transactions at this depth or below are those of a rolled-back one.
fn forget_from(depth: i32) {
    let _ = LEVELS.try_with(|levels| {
        if let Ok(mut levels) = levels.try_borrow_mut() {
            levels.retain(|level| level.depth < depth);
        }
    });
}
