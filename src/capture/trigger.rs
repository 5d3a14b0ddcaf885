//! `capture_v1`, the trigger function behind every watched table; its name and argument (the source's id) are
//! frozen, since triggers of older versions stay in user's schemas.
//!
//! It never raises because of what a pipeline wants: where the configuration does not fit the table any more,
//! it logs what it can and the worker pauses the pipeline.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};
use std::ffi::CStr;

use super::buffer::{self, Change, Kind, Op};
use super::sources::{Column, Source};
use super::{json, own, sources, wake};

thread_local! {
    /// The change that is being made, kept for its memory.
    static CHANGE: RefCell<Change> = RefCell::new(Change::default());
    /// Bytes logged for audits alone since the worker was last told.
    static GROWN: Cell<usize> = const { Cell::new(0) };
}

/// A session wakes the worker for each so many bytes that it logs for audits alone.
const GROWTH: usize = 128 * 1024;

unsafe extern "C-unwind" {
    // Not in pgrx's bindings: equality of the stored image, detoasting where it must.
    fn datum_image_eq(
        one: pg_sys::Datum,
        other: pg_sys::Datum,
        by_value: bool,
        length: std::ffi::c_int,
    ) -> bool;
}

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_capture_v1() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// AFTER ROW (INSERT, UPDATE, DELETE) and AFTER STATEMENT (TRUNCATE).
///
/// # Safety
/// Called by PostgreSQL's trigger manager.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn capture_v1(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the trigger manager's contract: `context` is a TriggerData when the tag says so.
    unsafe {
        let data = (*fcinfo).context.cast::<pg_sys::TriggerData>();
        if data.is_null() || (*data).type_ != pg_sys::NodeTag::T_TriggerData {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "recsync.capture_v1 can only be called as a trigger"
            );
        }
        let relation = (*data).tg_relation;
        if let Some(id) = source_id((*data).tg_trigger)
            && let Some(source) = sources::of(relation, id)
        {
            capture(&source, relation, data);
        }
        pg_sys::Datum::from(0)
    }
}

/// The trigger's argument.
///
/// # Safety
/// A trigger that is being called.
pub(super) unsafe fn source_id(trigger: *mut pg_sys::Trigger) -> Option<i32> {
    // SAFETY: tgargs holds tgnargs NUL-terminated strings.
    unsafe {
        if (*trigger).tgnargs < 1 {
            return None;
        }
        CStr::from_ptr(*(*trigger).tgargs)
            .to_str()
            .ok()?
            .parse()
            .ok()
    }
}

unsafe fn capture(source: &Source, relation: pg_sys::Relation, data: *mut pg_sys::TriggerData) {
    let mut change = CHANGE.take();
    change.clear();
    // SAFETY: slots are those of the event that `tg_event` names, and are deformed before they are read.
    unsafe {
        let deformed = |slot| {
            pg_sys::slot_getsomeattrs_int(slot, source.deform.min((*(*relation).rd_att).natts));
            slot
        };
        let record = |slot, into: &mut Vec<u8>| {
            if let Some(columns) = &source.record {
                json::record(columns, slot, source.large_values, into);
            }
        };
        let event = (*data).tg_event & pg_sys::TRIGGER_EVENT_OPMASK;
        let mut kind = Kind {
            source: source.id,
            relation: source.relation,
            op: Op::Truncate,
            audit_only: !source.dispatched,
        };
        if event == pg_sys::TRIGGER_EVENT_TRUNCATE {
            kind.relation = (*relation).rd_id;
        } else {
            let Some(key) = &source.key else { return };
            let row = deformed((*data).tg_trigslot);
            match event {
                pg_sys::TRIGGER_EVENT_INSERT => {
                    kind.op = Op::Insert;
                    json::key(key, row, &mut change.record_key);
                    record(row, &mut change.record);
                }
                pg_sys::TRIGGER_EVENT_DELETE => {
                    kind.op = Op::Delete;
                    json::key(key, row, &mut change.record_key);
                    record(row, &mut change.old_record);
                }
                _ => {
                    kind.op = Op::Update;
                    let new = deformed((*data).tg_newslot);
                    let same_key = same(key, row, new);
                    if same_key && own::writes(source.id) {
                        json::key(key, new, &mut change.record_key);
                        if own::has(&change.record_key) {
                            CHANGE.replace(change);
                            return;
                        }
                        change.clear();
                    }
                    let used = source.used.as_deref();
                    if same_key && used.is_some_and(|used| same(used, row, new)) {
                        kind.audit_only = true;
                    }
                    if kind.audit_only
                        && source
                            .audited
                            .as_deref()
                            .is_none_or(|all| same_key && same(all, row, new))
                    {
                        CHANGE.replace(change);
                        return;
                    }
                    json::key(key, new, &mut change.record_key);
                    if !same_key {
                        json::key(key, row, &mut change.old_key);
                    }
                    record(row, &mut change.old_record);
                    record(new, &mut change.record);
                }
            }
        }
        buffer::add(kind, &change);
        if kind.audit_only {
            grow(&change);
        } else {
            wake::after_changes();
        }
    }
    CHANGE.replace(change);
}

/// The worker does not wait for what is logged for an audit alone, but it has to rotate the log.
fn grow(change: &Change) {
    let bytes = GROWN.get() + change.bytes();
    if bytes >= GROWTH {
        wake::after_growth();
    }
    GROWN.set(bytes % GROWTH);
}

/// Whether all `columns` have the same stored image in both rows. Nothing is detoasted while the images
/// are equal byte by byte, which they are for a column that the update did not set.
unsafe fn same(
    columns: &[Column],
    old: *mut pg_sys::TupleTableSlot,
    new: *mut pg_sys::TupleTableSlot,
) -> bool {
    columns.iter().all(|column| {
        // SAFETY: both slots are deformed up to the column.
        unsafe {
            let null = (
                *(*old).tts_isnull.add(column.index),
                *(*new).tts_isnull.add(column.index),
            );
            let value = (
                *(*old).tts_values.add(column.index),
                *(*new).tts_values.add(column.index),
            );
            match null {
                (true, true) => true,
                (false, false) => same_image(column, value.0, value.1),
                _ => false,
            }
        }
    })
}

unsafe fn same_image(column: &Column, one: pg_sys::Datum, other: pg_sys::Datum) -> bool {
    if column.by_value {
        return one == other;
    }
    // SAFETY: datums of the column's type; for a varlena the header says how many bytes are stored here,
    // which for a TOASTed value is the pointer.
    unsafe {
        if column.length == -1 {
            let (one, other) = (
                one.cast_mut_ptr::<pg_sys::varlena>(),
                other.cast_mut_ptr::<pg_sys::varlena>(),
            );
            let length = pgrx::varsize_any(one);
            if length == pgrx::varsize_any(other)
                && std::slice::from_raw_parts(one.cast::<u8>(), length)
                    == std::slice::from_raw_parts(other.cast::<u8>(), length)
            {
                return true;
            }
        }
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            datum_image_eq(one, other, column.by_value, column.length.into())
        })
    }
}
